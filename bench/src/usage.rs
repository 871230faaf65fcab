//! What a process and its children use, from `/proc`.

use anyhow::{Context as _, Result};
use procfs::process::{Process, all_processes};

/// CPU seconds of a process tree.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

/// The process and all its descendants.
fn tree(root: u32) -> Result<Vec<Process>> {
    let mut all: Vec<(i32, Process)> = Vec::new();
    for process in all_processes()?.flatten() {
        // One that has gone meanwhile uses nothing.
        if let Ok(stat) = process.stat() {
            all.push((stat.ppid, process));
        }
    }
    let mut ids = vec![i32::try_from(root)?];
    let mut next = 0;
    while next < ids.len() {
        let parent = ids[next];
        ids.extend(all.iter().filter(|(of, _)| *of == parent).map(|(_, p)| p.pid));
        next += 1;
    }
    Ok(all
        .into_iter()
        .map(|(_, p)| p)
        .filter(|p| ids.contains(&p.pid))
        .collect())
}

/// CPU time so far: as the scheduler counts it, in nanoseconds; `stat` counts in ticks of 10 ms, and says how it divides.
pub(crate) fn cpu(root: u32) -> Result<Cpu> {
    let mut sum = Cpu::default();
    for process in tree(root)? {
        let (Ok(stat), Ok(tasks)) = (process.stat(), process.tasks()) else {
            continue;
        };
        let ran = tasks.flatten().filter_map(|task| task.schedstat().ok());
        let seconds = ran.map(|of| of.sum_exec_runtime as f64 / 1e9).sum::<f64>();
        let user = stat.utime as f64 / (stat.utime + stat.stime).max(1) as f64;
        sum.user += seconds * user;
        sum.system += seconds * (1.0 - user);
    }
    Ok(sum)
}

/// KiB of memory that is the tree's own: anonymous pages, shared ones in proportion. Program files are left out, since how much of
/// them counts depends on the neighbours.
pub(crate) fn anonymous_kib(root: u32) -> Result<f64> {
    let mut bytes = 0;
    for process in tree(root)? {
        let rollup = process.smaps_rollup().context("smaps_rollup of a proxy")?;
        for map in rollup.memory_map_rollup.iter() {
            bytes += map.extension.map.get("Pss_Anon").copied().unwrap_or_default();
        }
    }
    Ok(bytes as f64 / 1024.0)
}
