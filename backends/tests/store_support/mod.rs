//! A private MariaDB server for tests: its own directory, socket and port; killed when dropped.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use model::store::Store;
use tokio::process::{Child, Command};

/// How long the server may take to answer after it was started.
const START: Duration = Duration::from_secs(30);

static DATABASES: AtomicU32 = AtomicU32::new(1);

/// A server of the test's own.
#[derive(Debug)]
pub(crate) struct MariaDb {
    directory: PathBuf,
    port: u16,
    server: Child,
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        let _ = self.server.start_kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl MariaDb {
    /// Installs and starts one; `None` when the program is missing.
    pub(crate) async fn start() -> Option<Self> {
        let directory = std::env::temp_dir().join(format!(
            "caas-mariadb-{}-{}",
            std::process::id(),
            DATABASES.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir_all(&directory).expect("a directory");
        // Started as root it runs as its own user, who must be able to enter.
        let tmp = directory.join("tmp");
        std::fs::create_dir_all(&tmp).expect("a directory");
        let _ = Command::new("chown")
            .arg("mysql:mysql")
            .args([&directory, &tmp])
            .status()
            .await;
        let installed = Command::new("mariadb-install-db")
            .args([
                "--no-defaults",
                "--user=mysql",
                "--auth-root-authentication-method=normal",
            ])
            .args(["--skip-test-db", "--skip-name-resolve"])
            .arg(format!("--datadir={}", directory.join("data").display()))
            .arg(format!("--tmpdir={}", tmp.display()))
            .output()
            .await;
        match installed {
            Ok(done) => assert!(
                done.status.success(),
                "mariadb-install-db: {}\n{}{}",
                done.status,
                String::from_utf8_lossy(&done.stdout),
                String::from_utf8_lossy(&done.stderr)
            ),
            Err(_) => return None,
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .expect("a free port")
            .port();
        let server = spawn(&directory, port)?;
        let mut this = Self {
            directory,
            port,
            server,
        };
        this.answering().await;
        Some(this)
    }

    async fn answering(&mut self) {
        let start = Instant::now();
        let url = format!("mysql://root@127.0.0.1:{}/mysql", self.port);
        while create_database(&url, "probe").await.is_err() {
            if let Ok(Some(status)) = self.server.try_wait() {
                let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                panic!("mariadbd ended: {status}\n{log}");
            }
            assert!(start.elapsed() < START, "mariadbd does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `kill -9`, as by a power cut of the process.
    #[allow(dead_code, reason = "not every test that has a server kills it")]
    pub(crate) async fn kill(&mut self) {
        self.server.kill().await.expect("it runs");
    }

    /// Starts it again after [`Self::kill`], on the same data and port.
    #[allow(dead_code, reason = "not every test that has a server kills it")]
    pub(crate) async fn restart(&mut self) {
        self.server = spawn(&self.directory, self.port).expect("it was there before");
        self.answering().await;
    }

    /// The address of the server, without a database.
    pub(crate) fn base(&self) -> String {
        format!("mysql://root@127.0.0.1:{}", self.port)
    }
}

fn spawn(directory: &std::path::Path, port: u16) -> Option<Child> {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(directory.join("log"))
        .expect("a log file");
    Command::new("mariadbd")
        .args([
            "--no-defaults",
            "--user=mysql",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
        ])
        .args([
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=32M",
            "--performance-schema=OFF",
        ])
        .args([
            "--character-set-server=utf8mb4",
            "--collation-server=utf8mb4_bin",
            "--max-connections=200",
        ])
        .arg(format!("--datadir={}", directory.join("data").display()))
        // Each server deletes all `#sql*` files of its temporary folder when it starts, its neighbours' too.
        .arg(format!("--tmpdir={}", directory.join("tmp").display()))
        .arg(format!("--socket={}", directory.join("sock").display()))
        .arg(format!("--pid-file={}", directory.join("pid").display()))
        .arg(format!("--port={port}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .ok()
}

async fn create_database(url: &str, name: &str) -> Result<(), sqlx::Error> {
    use sqlx::Connection as _;
    let mut connection = sqlx::MySqlConnection::connect(url).await?;
    let sql = format!("CREATE DATABASE IF NOT EXISTS `{name}`");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await?;
    connection.close().await
}

/// The address of a fresh, migrated database on the server at `base`.
pub(crate) async fn fresh_database(base: &str) -> String {
    let name = format!(
        "caas_{}_{}",
        std::process::id(),
        DATABASES.fetch_add(1, Ordering::Relaxed)
    );
    create_database(&format!("{base}/mysql"), &name)
        .await
        .expect("a new database");
    let url = format!("{base}/{name}");
    caas_backends::store::migrate(&url).await.expect("migrated");
    url
}

/// One more handle on the store at `url`, as another process would have.
pub(crate) async fn handle(url: &str) -> Arc<dyn Store> {
    caas_backends::store::open(url).await.expect("a valid address")
}

/// Says that a test can't run here, or fails when all must.
pub(crate) fn skipped(why: &str) {
    assert!(
        std::env::var("CAAS_TEST_REQUIRE_ALL").as_deref() != Ok("1"),
        "{why}, and all tests must run"
    );
    eprintln!("skipped: {why}");
}
