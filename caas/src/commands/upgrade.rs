//! `caas gateway upgrade`: asks a running gateway to hand its sockets to a new process of its program file, and waits until that
//! serves.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use crate::exit::{self, Failure};
use crate::handover::why_not;
use crate::parse;

/// Between two looks at whether the successor serves.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// `caas gateway upgrade`.
#[derive(Debug, Args)]
pub(crate) struct UpgradeArgs {
    /// The file that holds the gateway's process id (its own --pid-file)
    #[arg(long, value_name = "FILE", env = "CAAS_GATEWAY__PID_FILE")]
    pid_file: PathBuf,
    /// How long to wait for the new process
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = parse::duration)]
    timeout: Duration,
}

/// Sends the signal and waits.
pub(crate) async fn run(args: &UpgradeArgs) -> Result<Value, Failure> {
    let path = &args.pid_file;
    let old = read(path)?;
    let gone = || Failure::error(format!("no process {} runs ({} is left over)", id(old), path.display()));
    // From here on the id can't come to mean another process.
    let process = pidfd_open(old, PidfdFlags::empty()).map_err(|e| match e {
        Errno::SRCH => gone(),
        e => Failure::error(format!("process {} can't be watched: {e}", id(old))),
    })?;
    is_gateway(old, path)?;
    // What a hand-over before left is no word on this one.
    match fs::remove_file(why_not(path)) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            let file = why_not(path);
            return Err(Failure::error(format!("{} can't be removed: {e}", file.display())));
        }
        _ => {}
    }
    pidfd_send_signal(&process, Signal::USR2).map_err(|e| match e {
        Errno::PERM => Failure::new(
            exit::NOT_ALLOWED,
            format!("process {} is another user's: run this as that user or root", id(old)),
        ),
        Errno::SRCH => gone(),
        e => Failure::error(format!("process {} can't be signalled: {e}", id(old))),
    })?;
    let deadline = Instant::now() + args.timeout;
    loop {
        // The file is being written, or its folder is out of reach for a moment: that is no answer yet.
        if let Ok(new) = read(path)
            && new != old
        {
            return Ok(json!({ "pid": id(new), "predecessor": id(old) }));
        }
        if let Ok(why) = fs::read_to_string(why_not(path))
            && why.ends_with('\n')
        {
            let why = why.trim();
            return Err(Failure::error(format!(
                "no hand-over, process {} serves on: {why}",
                id(old)
            )));
        }
        if has_ended(old) && !read(path).is_ok_and(|new| new != old) {
            return Err(Failure::error(format!(
                "process {} has ended without a successor",
                id(old)
            )));
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(
                exit::TIMED_OUT,
                format!(
                    "no new process serves within {:?}; process {} serves on",
                    args.timeout,
                    id(old)
                ),
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn id(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}

/// The process that the file names.
fn read(path: &Path) -> Result<Pid, Failure> {
    let text = fs::read_to_string(path).map_err(|e| {
        Failure::error(format!("{} can't be read: {e}", path.display()))
            .line("a gateway writes it when it is started with --pid-file")
    })?;
    let number: Option<i32> = text.trim().parse().ok();
    number
        .filter(|n| *n > 0)
        .and_then(Pid::from_raw)
        .ok_or_else(|| Failure::error(format!("{} holds no process id", path.display())))
}

/// Refuses a process that is no gateway: the signal would end it.
fn is_gateway(pid: Pid, path: &Path) -> Result<(), Failure> {
    let proc = PathBuf::from(format!("/proc/{}", id(pid)));
    let arguments = fs::read(proc.join("cmdline")).unwrap_or_default();
    let status = fs::read_to_string(proc.join("status")).unwrap_or_default();
    if is_gateways(&arguments) && catches_usr2(&status) {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(&arguments).replace('\0', " ");
    let shown: String = shown.trim().chars().take(200).collect();
    let text = format!(
        "process {} of {} is no caas gateway that can be upgraded: {shown}",
        id(pid),
        path.display()
    );
    Err(Failure::error(text))
}

/// Whether a program's arguments, each ended by a zero byte, are those of `caas gateway`.
fn is_gateways(arguments: &[u8]) -> bool {
    let mut words = arguments.split(|b| *b == 0).skip(1);
    words.any(|word| word == b"gateway")
}

/// Whether the process, by its `/proc/PID/status` (proc(5)), has a handler for SIGUSR2.
fn catches_usr2(status: &str) -> bool {
    let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok())
        .is_some_and(|mask| mask >> (Signal::USR2.as_raw() - 1) & 1 == 1)
}

/// Whether the process has ended; one that only waits to be asked for its exit code has.
fn has_ended(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", id(pid))).map_or(true, |stat| {
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_known_by_their_words_and_their_handler() {
        assert!(is_gateways(b"/usr/bin/caas\0gateway\0--listen\0:80\0"));
        assert!(is_gateways(b"caas\0-o\0json\0gateway\0"));
        assert!(!is_gateways(b"gateway\0") && !is_gateways(b"caas\0up\0") && !is_gateways(b""));
        assert!(catches_usr2(
            "Name:\tcaas\nSigIgn:\t0000000000001000\nSigCgt:\t0000000100014a07\n"
        ));
        for not in [
            "SigCgt:\t0000000100014207\n",
            "SigIgn:\t0000000000000800\n",
            "SigCgt:\tnonsense\n",
            "",
        ] {
            assert!(!catches_usr2(not), "{not}");
        }
        let own = Pid::from_raw(i32::try_from(std::process::id()).expect("an id")).expect("not 0");
        let failure = is_gateway(own, Path::new("some.pid")).expect_err("a test");
        assert!(failure.message.contains("some.pid is no caas gateway"), "{failure}");
    }

    #[tokio::test]
    async fn files_that_name_no_gateway_are_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let ask = async |text: &str| {
            let pid_file = dir.path().join("pid");
            fs::write(&pid_file, text).expect("written");
            let timeout = Duration::from_secs(1);
            run(&UpgradeArgs { pid_file, timeout })
                .await
                .expect_err("refused")
                .message
        };
        for bad in ["", "x", "0", "-1", "99999999999"] {
            assert!(ask(bad).await.ends_with("pid holds no process id"), "{bad}");
        }
        assert!(ask("2147483647\n").await.starts_with("no process 2147483647 runs"));
        assert!(
            ask(&std::process::id().to_string())
                .await
                .contains("is no caas gateway")
        );
        let missing = UpgradeArgs {
            pid_file: dir.path().join("none"),
            timeout: Duration::ZERO,
        };
        let failure = run(&missing).await.expect_err("refused");
        assert!(failure.to_string().contains("--pid-file"), "{failure}");
    }
}
