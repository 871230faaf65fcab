//! The keeper: the first process of the run's PID, mount and network namespaces. It ends when the pipe from the test
//! process closes, and the kernel then ends everything else in them. A shell outside removes the folder and the control
//! groups afterwards. It must never hold state that a killed run would need.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use crate::{process, wait};

/// Runs outside the namespaces and waits for their end. $1: folder, $2: run name.
const OUTSIDE: &str = r#"
exec 3<&0
unshare --pid --fork --kill-child --mount --net --propagation private -- bash -c "$INSIDE" keeper "$1" <&3 3<&- &
inner=$!
exec 3<&- </dev/null
trap '' HUP INT TERM
wait $inner
find /sys/fs/cgroup -depth -type d -path "*/$2-*" -exec rmdir {} \; 2>/dev/null
[ -n "$CAAS_E2E_KEEP" ] || rm -rf "$1"
"#;

/// Runs inside, as their first process. Its pid outside is read before the new /proc is there.
const INSIDE: &str = r#"
set -e
read -r pid rest </proc/self/stat
mount -t proc proc /proc
ip link set lo up
ip link add br0 type bridge
ip link set br0 up
echo $pid >$1/keeper.tmp
mv $1/keeper.tmp $1/keeper.pid
exec tini -- cat
"#;

/// Everything that a run starts hangs on this; dropping it ends all of it.
#[derive(Debug)]
pub struct Keeper {
    /// The run's name, such as `caas-e2e-3f9a`.
    pub run: String,
    /// The run's folder.
    pub dir: PathBuf,
    /// The first process of its namespaces.
    pub init: u32,
    _outside: std::process::Child,
}

impl Keeper {
    /// Cleans up after runs that died, then opens the namespaces.
    pub async fn start() -> Result<Self> {
        sweep().await;
        let run = format!("caas-e2e-{:04x}", rand::random::<u16>());
        let dir = std::env::temp_dir().join(&run);
        fs::create_dir_all(&dir)?;
        let own = std::process::id();
        let started = process::stat(own).map_or(0, |(.., started)| started);
        fs::write(dir.join("owner"), format!("{own} {started}"))?;
        let log = fs::File::create(dir.join("keeper.log"))?;
        let outside = Command::new("setsid")
            .args(["bash", "-c", OUTSIDE, "keeper"])
            .args([dir.as_os_str(), run.as_ref()])
            .env("INSIDE", INSIDE)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("could not start the keeper")?;
        let pid = dir.join("keeper.pid");
        let (init, _) = wait::until("the keeper", Duration::from_secs(10), async || {
            let text = fs::read_to_string(&pid).map_err(|_| process::tail(&dir.join("keeper.log")))?;
            text.trim().parse::<u32>().map_err(|e| e.to_string())
        })
        .await?;
        Ok(Self {
            run,
            dir,
            init,
            _outside: outside,
        })
    }
}

/// Ends and removes what runs left behind whose test process is gone (their keeper's shell was killed as well).
async fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for dir in entries.flatten().map(|entry| entry.path()) {
        let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if !name.starts_with("caas-e2e-") || !dir.is_dir() || owner_lives(&dir) {
            continue;
        }
        if let Some(init) = fs::read_to_string(dir.join("keeper.pid"))
            .ok()
            .and_then(|t| t.trim().parse().ok())
            && fs::read_to_string(format!("/proc/{init}/cmdline")).is_ok_and(|c| c.starts_with("tini"))
        {
            process::signal(init, Signal::KILL);
            let gone = async || {
                if process::stat(init).is_none() {
                    Ok(())
                } else {
                    Err("still there")
                }
            };
            let _ = wait::until("end of an old run", Duration::from_secs(5), gone).await;
        }
        let pattern = format!("*/{name}-*");
        let find = [
            "/sys/fs/cgroup",
            "-depth",
            "-type",
            "d",
            "-path",
            &pattern,
            "-exec",
            "rmdir",
            "{}",
            ";",
        ];
        let _ = process::run("find", find).await;
        let _ = fs::remove_dir_all(&dir);
    }
}

/// Whether the test process that made `dir` still runs. A folder that is just being made counts as alive.
fn owner_lives(dir: &Path) -> bool {
    let Ok(text) = fs::read_to_string(dir.join("owner")) else {
        let age = fs::metadata(dir)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|at| at.elapsed().ok());
        return age.is_none_or(|age| age < Duration::from_secs(10));
    };
    let mut numbers = text.split(' ').map(|n| n.parse::<u64>().unwrap_or(0));
    let (pid, started) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    u32::try_from(pid)
        .ok()
        .and_then(process::stat)
        .is_some_and(|(.., start)| start == started)
}
