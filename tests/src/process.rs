//! Processes: short commands, and daemons inside the run's PID namespace.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// Runs a command to its end; its output, or an error with what it wrote.
pub async fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
    let mut command = tokio::process::Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    command.env_remove("DOCKER_HOST").env_remove("DOCKER_CONFIG");
    output(command).await
}

/// The same for a prepared command, within 60 s.
pub async fn output(command: tokio::process::Command) -> Result<String> {
    output_within(Duration::from_secs(60), command).await
}

/// The same with a limit.
pub async fn output_within(limit: Duration, mut command: tokio::process::Command) -> Result<String> {
    let shown = format!("{:?}", command.as_std());
    let done = tokio::time::timeout(limit, command.output())
        .await
        .map_err(|_| anyhow!("{shown}: not done within {limit:?}"))?
        .with_context(|| format!("could not run {shown}"))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if !done.status.success() {
        bail!(
            "{shown}: {}\n{text}{}",
            done.status,
            String::from_utf8_lossy(&done.stderr)
        );
    }
    Ok(text)
}

/// Sends a signal; a process that is gone already is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Parent, state and start time (ticks since boot) of a process.
pub fn stat(pid: u32) -> Option<(u32, char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some((
        fields.get(1)?.parse().ok()?,
        fields.first()?.chars().next()?,
        fields.get(19)?.parse().ok()?,
    ))
}

/// The child processes of `parent`.
pub fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| stat(*pid).is_some_and(|(ppid, ..)| ppid == parent))
        .collect()
}

/// The first child of `parent`, once it has one.
pub async fn first_child(parent: u32) -> Result<u32> {
    let (pid, _) = wait::until("a child process", Duration::from_secs(10), async || {
        children(parent).first().copied().ok_or("none")
    })
    .await?;
    Ok(pid)
}

/// A process in the run's PID namespace, started through `nsenter`, which stays outside and reaps it.
#[derive(Debug)]
pub struct Daemon {
    /// What it is called in messages.
    pub name: String,
    /// Where it writes.
    pub log: PathBuf,
    /// Its own pid as seen from here.
    pub pid: u32,
    nsenter: Mutex<std::process::Child>,
}

impl Daemon {
    /// Starts `args` in the namespaces of process `init` that `flags` name (`-mp`: mounts and processes). `env` is added
    /// to an environment without any `CAAS_…` variable.
    pub async fn start<S: AsRef<OsStr>>(
        name: &str,
        init: u32,
        flags: &str,
        args: impl IntoIterator<Item = S>,
        env: &[(String, String)],
        log: &Path,
    ) -> Result<Self> {
        let out = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new("nsenter");
        command.arg("-t").arg(init.to_string());
        command
            .args(flags.chars().map(|c| format!("-{c}")))
            .arg("--")
            .args(args);
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CAAS_") || key.starts_with("DOCKER_")) {
            command.env_remove(key);
        }
        command.envs(env.iter().map(|(k, v)| (k, v)));
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0);
        let nsenter = command.spawn().with_context(|| format!("could not start {name}"))?;
        let pid = first_child(nsenter.id())
            .await
            .with_context(|| format!("{name}: {}", tail(log)))?;
        Ok(Self {
            name: name.into(),
            log: log.into(),
            pid,
            nsenter: Mutex::new(nsenter),
        })
    }

    /// Whether it still runs.
    pub fn alive(&self) -> bool {
        let mut nsenter = self.nsenter.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(nsenter.try_wait(), Ok(None))
    }

    /// Sends it a signal. With SIGCONT `nsenter`, which stops along with it, goes on as well.
    pub fn signal(&self, which: Signal) {
        signal(self.pid, which);
        if which == Signal::CONT {
            signal(self.nsenter.lock().unwrap_or_else(PoisonError::into_inner).id(), which);
        }
    }

    /// Sends a signal and waits until it has ended.
    pub async fn end(&self, which: Signal, limit: Duration) -> Result<()> {
        self.signal(which);
        let what = format!("end of {}", self.name);
        wait::until(
            &what,
            limit,
            async || if self.alive() { Err("still runs") } else { Ok(()) },
        )
        .await?;
        Ok(())
    }

    /// `kill -9`, until it is gone.
    pub async fn kill(&self) -> Result<()> {
        self.signal(Signal::CONT);
        self.end(Signal::KILL, Duration::from_secs(10)).await
    }

    /// Waits until `probe` succeeds; when the process ends meanwhile, its log's end is the error.
    pub async fn ready<E: std::fmt::Debug>(
        &self,
        limit: Duration,
        mut probe: impl AsyncFnMut() -> Result<(), E>,
    ) -> Result<Duration> {
        let what = format!("{} ready", self.name);
        let ready = wait::until(&what, limit, async || {
            if !self.alive() {
                return Ok(false);
            }
            probe().await.map(|()| true)
        })
        .await;
        match ready {
            Ok((true, took)) => Ok(took),
            Ok((false, _)) => bail!("{} ended at start: {}", self.name, tail(&self.log)),
            Err(error) => Err(error.context(tail(&self.log))),
        }
    }
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    format!(
        "{}:\n{}",
        log.display(),
        lines[lines.len().saturating_sub(25)..].join("\n")
    )
}

/// A free TCP port of `address` below the kernel's ephemeral range, so that no outgoing connection takes it meanwhile.
pub fn free_port(address: &str) -> Result<u16> {
    for _ in 0..200 {
        let port = rand::random_range(12_000..19_000);
        if std::net::TcpListener::bind((address, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on {address}")
}
