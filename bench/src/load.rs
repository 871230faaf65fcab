//! Load by `wrk` and `h2load`, the figures that come of it, and the table that shows them.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::usage::Cpu;

/// Of one case with one proxy in one round.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// CPU microseconds per request (per connection, for the handshakes).
    pub(crate) cpu: f64,
    pub(crate) user: f64,
    pub(crate) per_second: f64,
    /// Microseconds, where they were measured.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    /// KiB per idle connection, or per slow one of attackers, where it was measured.
    pub(crate) kib: Option<f64>,
}

/// What a load program says that it did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) requests: f64,
    pub(crate) seconds: f64,
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
}

impl Done {
    /// With the CPU time that it cost.
    pub(crate) fn with(self, before: Cpu, after: Cpu) -> Figures {
        let per = |seconds: f64| seconds * 1e6 / self.requests.max(1.0);
        let user = per(after.user - before.user);
        Figures {
            cpu: user + per(after.system - before.system),
            user,
            per_second: self.requests / self.seconds,
            p50: self.p50,
            p99: self.p99,
            kib: None,
        }
    }
}

/// Seconds after which a load program is given up.
const HUNG: &str = "120";

/// Runs a program on CPU 0 and gives back what it printed.
pub(crate) fn run(program: &str, args: &[String]) -> Result<String> {
    let output = Command::new("taskset")
        .args(["-c", "0", "timeout", HUNG, program])
        .args(args)
        .output()
        .with_context(|| format!("running {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{program} failed: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// Reads the line that the `wrk` script prints: `RESULT requests seconds errors p50 p99`.
pub(crate) fn wrk(text: &str) -> Result<Done> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("RESULT "))
        .context("wrk printed no result")?;
    let numbers: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let [requests, seconds, errors, p50, p99] = numbers[..] else {
        bail!("wrk printed {line:?}");
    };
    ensure!(errors == 0.0, "{errors} of {requests} requests failed");
    Ok(Done {
        requests,
        seconds,
        p50: Some(p50),
        p99: Some(p99),
    })
}

/// Reads what `h2load` prints; `durations`: its log, from which the percentiles are taken.
pub(crate) fn h2load(text: &str, durations: Option<&str>) -> Result<Done> {
    let number = |before: &str, after: &str| -> Option<f64> {
        let line = text.lines().find(|l| l.contains(after) && l.contains(before))?;
        let end = line.find(after)?;
        let word = line[..end].rsplit([' ', ',']).next()?;
        word.parse().ok()
    };
    let requests = number("status codes:", " 2xx").context("h2load printed no status codes")?;
    let total = number("requests:", " total").context("h2load printed no total")?;
    ensure!(requests >= total, "{} of {total} requests failed", total - requests);
    let per_second = number("finished in", " req/s").context("h2load printed no rate")?;
    let mut times: Vec<f64> = durations
        .unwrap_or_default()
        .lines()
        .filter_map(|l| l.split('\t').nth(2)?.parse().ok())
        .collect();
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times.get((times.len() as f64 * q) as usize).copied();
    Ok(Done {
        requests,
        seconds: requests / per_second,
        p50: at(0.5),
        p99: at(0.99),
    })
}

/// The median; 0 of nothing.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Medians per proxy, and our CPU time in proportion to each peer's.
pub(crate) fn table(rows: &[(&str, &[Figures])]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let cpu: Vec<f64> = rows.iter().map(|(_, f)| median(f.iter().map(|f| f.cpu))).collect();
    let peers: Vec<usize> = (1..rows.len()).collect();
    let first = rows.first().map_or(&[][..], |(_, f)| f);
    let idle = first.iter().any(|f| f.kib.is_some());
    let attacked = !idle && rows.iter().any(|(_, f)| f.iter().any(|f| f.kib.is_some()));
    let latency = first.iter().any(|f| f.p50.is_some());
    let mut header = vec!["proxy".to_owned()];
    if idle {
        header.push("KiB per connection".into());
    } else {
        header.extend(["per second", "CPU µs", "min-max", "user µs"].map(str::to_owned));
        if latency {
            header.extend(["p50 µs", "p99 µs"].map(str::to_owned));
        }
        header.extend(peers.iter().map(|p| format!("CPU ÷ {}", rows[*p].0)));
        if attacked {
            header.push("KiB per attacker".into());
        }
    }
    table.set_header(header);
    for (i, (name, figures)) in rows.iter().enumerate() {
        let of = |f: fn(&Figures) -> Option<f64>| median(figures.iter().filter_map(f));
        let mut cells = vec![(*name).to_owned()];
        if idle {
            cells.push(format!("{:.1}", of(|f| f.kib)));
        } else {
            let least = figures.iter().map(|f| f.cpu).fold(f64::INFINITY, f64::min);
            let most = figures.iter().map(|f| f.cpu).fold(0.0, f64::max);
            cells.push(format!("{:.0}", of(|f| Some(f.per_second))));
            cells.push(format!("{:.1}", cpu[i]));
            cells.push(format!("{least:.1}-{most:.1}"));
            cells.push(format!("{:.1}", of(|f| Some(f.user))));
            if latency {
                cells.push(format!("{:.0}", of(|f| f.p50)));
                cells.push(format!("{:.0}", of(|f| f.p99)));
            }
            cells.extend(peers.iter().map(|p| format!("{:.2}", cpu[i] / cpu[*p])));
            if attacked {
                cells.push(format!("{:.1}", of(|f| f.kib)));
            }
        }
        let cells = cells.into_iter().enumerate().map(|(i, text)| {
            let alignment = if i == 0 {
                CellAlignment::Left
            } else {
                CellAlignment::Right
            };
            Cell::new(text).set_alignment(alignment)
        });
        table.add_row(cells);
    }
    table
}
