//! A role of the platform: one `caas` process, which scenarios start, kill and start again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tokio::sync::Mutex;

use crate::load;
use crate::process::Daemon;

/// One `caas` process.
#[derive(Debug)]
pub struct Role {
    /// `scheduler-1`, `gateway-2`, …
    pub name: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    ready: (SocketAddr, &'static str),
    log: PathBuf,
    keeper_init: u32,
    daemon: Mutex<Option<Daemon>>,
}

impl Role {
    /// Describes it; `ready` is what answers 200 when it can do its work. Nothing is started yet.
    pub fn new(
        name: &str,
        args: Vec<String>,
        env: Vec<(String, String)>,
        ready: (SocketAddr, &'static str),
        dir: &Path,
        keeper_init: u32,
    ) -> Self {
        let log = dir.join(format!("{name}.log"));
        Self {
            name: name.into(),
            args,
            env,
            ready,
            log,
            keeper_init,
            daemon: Mutex::default(),
        }
    }

    /// Starts it unless it runs, and waits until it is ready.
    pub async fn up(&self) -> Result<()> {
        self.launch().await?;
        self.ready().await
    }

    /// Starts it unless it runs, without waiting.
    pub async fn launch(&self) -> Result<()> {
        let mut daemon = self.daemon.lock().await;
        if daemon.as_ref().is_some_and(Daemon::alive) {
            return Ok(());
        }
        let args = std::iter::once(binary()?.to_string_lossy().into_owned()).chain(self.args.iter().cloned());
        *daemon = Some(Daemon::start(&self.name, self.keeper_init, "mp", args, &self.env, &self.log).await?);
        Ok(())
    }

    /// Waits until it is ready.
    pub async fn ready(&self) -> Result<()> {
        let daemon = self.daemon.lock().await;
        let daemon = daemon.as_ref().context("not started")?;
        let (address, path) = self.ready;
        let http = load::http();
        daemon
            .ready(Duration::from_secs(30), async || {
                match load::get(&http, address, "localhost", path).await {
                    Ok(answer) if answer.status == 200 => Ok(()),
                    other => Err(format!("{path}: {other:?}")),
                }
            })
            .await?;
        Ok(())
    }

    /// `kill -9`.
    pub async fn kill(&self) -> Result<()> {
        let daemon = self
            .daemon
            .lock()
            .await
            .take()
            .with_context(|| format!("{} does not run", self.name))?;
        daemon.kill().await
    }

    /// SIGTERM, until it has ended by itself.
    pub async fn stop(&self, limit: Duration) -> Result<()> {
        let daemon = self
            .daemon
            .lock()
            .await
            .take()
            .with_context(|| format!("{} does not run", self.name))?;
        daemon.end(Signal::TERM, limit).await
    }

    /// Whether it runs.
    pub async fn alive(&self) -> bool {
        self.daemon.lock().await.as_ref().is_some_and(Daemon::alive)
    }

    /// Its pid.
    pub async fn pid(&self) -> Option<u32> {
        self.daemon.lock().await.as_ref().map(|daemon| daemon.pid)
    }

    /// Where it writes.
    pub fn log(&self) -> &Path {
        &self.log
    }
}

/// The `caas` program under test: `CAAS_E2E_BIN`, else the one that lies beside the test programs.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CAAS_E2E_BIN") {
        return Ok(std::path::absolute(path)?);
    }
    let own = std::env::current_exe()?;
    let dirs = own.ancestors().skip(1).take(2);
    let found = dirs.map(|dir| dir.join("caas")).find(|path| path.is_file());
    found.context("the program `caas` is not built: run `cargo build -p caas` first")
}
