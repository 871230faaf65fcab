//! The private image registry: docker-registry with TLS and a password on the fleet's gateway address.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tokio::sync::Mutex;

use crate::keeper::Keeper;
use crate::pki::Pki;
use crate::process::{self, Daemon};
use crate::wait;

/// The registry.
#[derive(Debug)]
pub struct ImageRegistry {
    /// `10.77.x.1:5000`, as it stands in image names.
    pub address: String,
    /// Its user.
    pub user: String,
    /// And password.
    pub password: String,
    dir: PathBuf,
    keeper_init: u32,
    daemon: Mutex<Option<Daemon>>,
}

impl ImageRegistry {
    /// Starts it.
    pub async fn start(keeper: &Keeper, net: &str, pki: &Pki) -> Result<Self> {
        let dir = keeper.dir.join("registry");
        fs::create_dir_all(dir.join("data"))?;
        let ip = format!("{net}.1");
        let address = format!("{ip}:{}", process::free_port(&ip)?);
        let (user, password) = ("tenant".to_owned(), "sesame-open".to_owned());
        // bcrypt, the only hash that the registry takes; libcrypt knows it and perl is on every Debian.
        let salt = r#"print crypt($ARGV[0], '$2y$05$abcdefghijklmnopqrstuu')"#;
        let hash = process::run("perl", ["-e", salt, &password]).await?;
        fs::write(dir.join("htpasswd"), format!("{user}:{}\n", hash.trim()))?;
        let (d, p) = (dir.display(), pki.dir.display());
        let config = format!(
            "version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  cache: {{blobdescriptor: inmemory}}
  filesystem: {{rootdirectory: {d}/data}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http:
  addr: {address}
  tls: {{certificate: {p}/registry.crt, key: {p}/registry.key}}
  secret: e2e
auth:
  htpasswd: {{realm: e2e, path: {d}/htpasswd}}
"
        );
        fs::write(dir.join("config.yml"), config)?;
        let registry = Self {
            address,
            user,
            password,
            dir,
            keeper_init: keeper.init,
            daemon: Mutex::default(),
        };
        registry.up().await?;
        Ok(registry)
    }

    /// The full name of an image in it.
    pub fn image(&self, app: &str, version: &str) -> String {
        format!("{}/{app}:{version}", self.address)
    }

    /// Starts it again.
    pub async fn up(&self) -> Result<()> {
        let mut daemon = self.daemon.lock().await;
        if daemon.as_ref().is_some_and(Daemon::alive) {
            return Ok(());
        }
        let config = self.dir.join("config.yml");
        let args = ["docker-registry".as_ref(), "serve".as_ref(), config.as_os_str()];
        let started = Daemon::start(
            "docker-registry",
            self.keeper_init,
            "mp",
            args,
            &[],
            &self.dir.join("log"),
        )
        .await?;
        let open = async || tokio::net::TcpStream::connect(&self.address).await.map(drop);
        started.ready(Duration::from_secs(20), open).await?;
        *daemon = Some(started);
        Ok(())
    }

    /// `kill -9`.
    pub async fn down(&self) -> Result<()> {
        let daemon = self
            .daemon
            .lock()
            .await
            .take()
            .context("the registry is down already")?;
        daemon.kill().await
    }

    /// It accepts connections and never answers; `false` lets it go on.
    pub async fn freeze(&self, frozen: bool) -> Result<()> {
        let daemon = self.daemon.lock().await;
        let daemon = daemon.as_ref().context("the registry is down")?;
        daemon.signal(if frozen { Signal::STOP } else { Signal::CONT });
        wait::expect(daemon.alive(), || "the registry ended".into())
    }
}
