//! A private ZooKeeper for tests: real servers on loopback, gone when the test process is, however it ends.

#![allow(dead_code, unreachable_pub, clippy::missing_panics_doc)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use caas_backends::registry::zookeeper::{Address, Options, ZooKeeperReader, ZooKeeperWriter};

const JARS: [&str; 9] = [
    "zookeeper",
    "zookeeper-jute",
    "slf4j-api",
    "netty-all",
    "metrics-core",
    "commons-cli",
    "snappy-java",
    "log4j-1.2",
    "slf4j-log4j12",
];

/// Runs `$@` until standard input ends, which it does when this process dies; prints its pid first.
const UNTIL_WE_DIE: &str =
    r#""$@" >/dev/null 2>&1 </dev/null & pid=$!; echo $pid; cat >/dev/null; kill -9 $pid 2>/dev/null"#;
/// Removes a directory when this process dies.
const CLEAN_UP: &str = r#"cat >/dev/null; sleep 0.2; rm -rf "$0""#;

/// ZooKeeper's own choice of what is logged. Without any log4j takes DEBUG, and the server spends most of the time of a read on
/// lines that nobody gets.
const LOG4J: &str = "log4j.rootLogger=INFO, C\nlog4j.appender.C=org.apache.log4j.ConsoleAppender\n\
                     log4j.appender.C.layout=org.apache.log4j.PatternLayout\n\
                     log4j.appender.C.layout.ConversionPattern=%d %p %m%n\n";
/// Options of Java for servers that start soon and need little.
const SMALL: &[&str] = &["-Xms32m", "-Xmx160m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
/// Options of Java for servers that are measured: its own choices, with the heap that ZooKeeper's start script gives.
#[allow(dead_code, reason = "tests measure nothing")]
pub const FULL: &[&str] = &["-Xmx1000m"];

/// A running server: its supervisor, and its own pid.
#[derive(Debug)]
struct Server {
    supervisor: Child,
    pid: u32,
}

impl Server {
    fn start(config: &Path, java: &[&str]) -> Self {
        let folder = config.parent().map(|folder| folder.display().to_string());
        let jars = JARS.iter().map(|jar| format!("/usr/share/java/{jar}.jar"));
        let classes: Vec<String> = folder.into_iter().chain(jars).collect();
        let mut supervisor = Command::new("sh")
            .args(["-c", UNTIL_WE_DIE, "sh", "java"])
            .args(java)
            .args(["-cp", &classes.join(":")])
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut pid = String::new();
        BufReader::new(supervisor.stdout.take().expect("piped"))
            .read_line(&mut pid)
            .expect("the pid");
        Self {
            supervisor,
            pid: pid.trim().parse().expect("a pid"),
        }
    }

    fn kill(mut self) {
        drop(self.supervisor.stdin.take());
        self.supervisor.wait().expect("the supervisor");
    }
}

/// One server, or an ensemble of three.
#[derive(Debug)]
pub struct ZooKeeper {
    dir: PathBuf,
    ports: Vec<u16>,
    servers: Vec<Option<Server>>,
    /// Options of Java.
    java: &'static [&'static str],
    /// Its end removes the directory.
    cleaner: Child,
}

impl Drop for ZooKeeper {
    fn drop(&mut self) {
        for server in self.servers.drain(..).flatten() {
            server.kill();
        }
        drop(self.cleaner.stdin.take());
        self.cleaner.wait().ok();
    }
}

/// Whether ZooKeeper can be started here; says so when not.
///
/// # Panics
/// When it can't and `CAAS_TEST_REQUIRE_ALL=1`.
pub fn available() -> bool {
    let java = Command::new("java")
        .arg("-version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let found = java.is_ok_and(|s| s.success()) && Path::new("/usr/share/java/zookeeper.jar").exists();
    if !found {
        let required = std::env::var("CAAS_TEST_REQUIRE_ALL").is_ok_and(|v| v == "1");
        assert!(!required, "ZooKeeper is not installed: apt-get install zookeeper");
        println!("skipped: ZooKeeper is not installed (apt-get install zookeeper)");
    }
    found
}

/// Options for tests: sessions that end soon.
pub fn quick() -> Options {
    Options {
        session_timeout: Duration::from_secs(2),
        ..Options::default()
    }
}

impl ZooKeeper {
    /// Starts `n` servers and waits until they serve.
    pub async fn start(n: usize) -> Self {
        Self::start_with(n, SMALL).await
    }

    /// As [`Self::start`], with these options of Java.
    pub async fn start_with(n: usize, java: &'static [&'static str]) -> Self {
        let (dir, cleaner) = tokio::task::spawn_blocking(scratch).await.expect("a directory");
        // All are held until all are known, so that they differ.
        let held: Vec<TcpListener> = (0..3 * n)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"))
            .collect();
        let ports: Vec<u16> = held.iter().map(|l| l.local_addr().expect("bound").port()).collect();
        drop(held);
        std::fs::write(dir.join("log4j.properties"), LOG4J).expect("written");
        let mut members = String::new();
        if n > 1 {
            for i in 0..n {
                members += &format!("server.{}=127.0.0.1:{}:{}\n", i + 1, ports[n + i], ports[2 * n + i]);
            }
        }
        for (i, port) in ports[..n].iter().enumerate() {
            let data = dir.join(format!("{}", i + 1));
            std::fs::create_dir_all(&data).expect("a directory");
            std::fs::write(data.join("myid"), format!("{}", i + 1)).expect("written");
            let config = format!(
                "tickTime=500\ninitLimit=20\nsyncLimit=10\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\n\
                 admin.enableServer=false\n4lw.commands.whitelist=*\nmaxClientCnxns=0\nforceSync=no\n{members}",
                data.display()
            );
            std::fs::write(dir.join(format!("{}.cfg", i + 1)), config).expect("written");
        }
        let mut zookeeper = Self {
            dir,
            ports: ports[..n].to_vec(),
            servers: (0..n).map(|_| None).collect(),
            java,
            cleaner,
        };
        for i in 0..n {
            zookeeper.start_server(i);
        }
        for i in 0..n {
            zookeeper.serves(i).await;
        }
        zookeeper
    }

    /// Starts server `i` (again).
    pub fn start_server(&mut self, i: usize) {
        let config = self.dir.join(format!("{}.cfg", i + 1));
        self.servers[i] = Some(Server::start(&config, self.java));
    }

    /// Ends server `i` with SIGKILL.
    pub fn kill_server(&mut self, i: usize) {
        self.servers[i].take().expect("it runs").kill();
    }

    /// Waits until server `i` serves.
    pub async fn serves(&self, i: usize) {
        let end = Instant::now() + Duration::from_secs(40);
        while !mode(self.ports[i]) {
            assert!(Instant::now() < end, "ZooKeeper server {} does not serve", i + 1);
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// `zk://…` with `chroot` (empty, or `/…`).
    pub fn url(&self, chroot: &str) -> String {
        format!("zk://{}{chroot}", self.servers())
    }

    /// `host:port,…`
    pub fn servers(&self) -> String {
        let hosts: Vec<String> = self.ports.iter().map(|p| format!("127.0.0.1:{p}")).collect();
        hosts.join(",")
    }

    /// A reader of the registry in `chroot`.
    pub fn reader(&self, chroot: &str) -> ZooKeeperReader {
        ZooKeeperReader::new(Address::parse(&self.url(chroot)).expect("sound"), quick())
    }

    /// A writer of the registry in `chroot`.
    pub fn writer(&self, chroot: &str) -> ZooKeeperWriter {
        ZooKeeperWriter::new(Address::parse(&self.url(chroot)).expect("sound"), quick())
    }

    /// Both, with sessions as they are by default: for what has nothing to do with lost ones.
    pub fn patient(&self, chroot: &str) -> (ZooKeeperReader, ZooKeeperWriter) {
        let address = Address::parse(&self.url(chroot)).expect("sound");
        (
            ZooKeeperReader::new(address.clone(), Options::default()),
            ZooKeeperWriter::new(address, Options::default()),
        )
    }
}

fn scratch() -> (PathBuf, Child) {
    let dir = tempfile::Builder::new()
        .prefix("caas-registry-")
        .tempdir()
        .expect("a directory")
        .keep();
    let cleaner = Command::new("sh")
        .args(["-c", CLEAN_UP])
        .arg(&dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell");
    (dir, cleaner)
}

fn mode(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"srvr")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("Mode: "))
}

/// Forwards bytes between a client and a server until it is frozen: then bytes stop, and no connection closes.
#[derive(Debug)]
pub struct Wire {
    port: u16,
    frozen: tokio::sync::watch::Sender<bool>,
    accept: tokio::task::JoinHandle<()>,
}

impl Wire {
    /// A wire to the only server of `zookeeper`.
    pub async fn to(zookeeper: &ZooKeeper) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let target = zookeeper.ports[0];
        let frozen = tokio::sync::watch::Sender::new(false);
        let state = frozen.subscribe();
        let accept = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", target)).await else {
                    continue;
                };
                let (client, server) = (client.into_split(), server.into_split());
                tokio::spawn(forward(client.0, server.1, state.clone()));
                tokio::spawn(forward(server.0, client.1, state.clone()));
            }
        });
        Self { port, frozen, accept }
    }

    /// `zk://…` through the wire.
    pub fn url(&self, chroot: &str) -> String {
        format!("zk://127.0.0.1:{}{chroot}", self.port)
    }

    /// Stops or lets go the bytes.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut frozen: tokio::sync::watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut buf = vec![0; 16 * 1024];
    while let Ok(n) = from.read(&mut buf).await {
        if n == 0 || frozen.wait_for(|f| !f).await.is_err() || to.write_all(&buf[..n]).await.is_err() {
            return;
        }
    }
}
