//! MariaDB without systemd, on a private folder and port.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::Mutex;

use crate::keeper::Keeper;
use crate::process::{self, Daemon};

/// The database server.
#[derive(Debug)]
pub struct MariaDb {
    /// Its port on 127.0.0.1.
    pub port: u16,
    dir: PathBuf,
    keeper_init: u32,
    daemon: Mutex<Option<Daemon>>,
}

impl MariaDb {
    /// Makes its folder and starts it.
    pub async fn start(keeper: &Keeper) -> Result<Self> {
        let dir = keeper.dir.join("mariadb");
        std::fs::create_dir_all(dir.join("tmp"))?;
        let text = dir.to_string_lossy().into_owned();
        process::run("chown", ["-R", "mysql:mysql", &text]).await?;
        let data = format!("--datadir={text}/data");
        // Each server deletes all `#sql*` files of its temporary folder when it starts, its neighbours' too.
        let tmp = format!("--tmpdir={text}/tmp");
        let rest = [
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
        ];
        process::run(
            "mariadb-install-db",
            ["--no-defaults", "--user=mysql", &data, &tmp].into_iter().chain(rest),
        )
        .await?;
        let port = process::free_port("127.0.0.1")?;
        let db = Self {
            port,
            dir,
            keeper_init: keeper.init,
            daemon: Mutex::default(),
        };
        db.up().await?;
        db.sql("create user 'caas'@'127.0.0.1' identified by 'pw'; grant all on *.* to 'caas'@'127.0.0.1'")
            .await?;
        Ok(db)
    }

    /// A new database; its URL.
    pub async fn database(&self, name: &str) -> Result<String> {
        self.sql(&format!("create database {name}")).await?;
        Ok(format!("mysql://caas:pw@127.0.0.1:{}/{name}", self.port))
    }

    async fn sql(&self, statement: &str) -> Result<()> {
        let socket = format!("--socket={}/sock", self.dir.display());
        process::run("mariadb", ["--no-defaults", &socket, "-u", "root", "-e", statement]).await?;
        Ok(())
    }

    /// Starts it (again).
    pub async fn up(&self) -> Result<()> {
        let mut daemon = self.daemon.lock().await;
        if daemon.as_ref().is_some_and(Daemon::alive) {
            return Ok(());
        }
        let args = format!(
            "mariadbd --no-defaults --user=mysql --datadir={d}/data --tmpdir={d}/tmp --socket={d}/sock --pid-file={d}/pid --port={} \
             --bind-address=127.0.0.1 --skip-name-resolve --innodb-buffer-pool-size=64M --innodb-log-file-size=32M \
             --innodb-flush-log-at-trx-commit=1 --performance-schema=OFF \
             --sql-mode=STRICT_ALL_TABLES,ONLY_FULL_GROUP_BY,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO \
             --character-set-server=utf8mb4 --collation-server=utf8mb4_bin --default-time-zone=+00:00 \
             --max-connections=300",
            self.port,
            d = self.dir.display(),
        );
        let args = args.split_ascii_whitespace();
        let started = Daemon::start("mariadbd", self.keeper_init, "mp", args, &[], &self.dir.join("log")).await?;
        started
            .ready(Duration::from_secs(30), async || self.sql("select 1").await)
            .await?;
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
            .context("the database is down already")?;
        daemon.kill().await
    }
}
