//! ZooKeeper servers, one JVM each, on loopback.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Mutex;

use crate::keeper::Keeper;
use crate::process::{self, Daemon};
use crate::wait;

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

/// The longest session that the servers grant, ms. The platform asks for 10 s, and after a kill its next process waits for the
/// end of the session before.
const SESSION_MS: u32 = 5_000;

/// The ensemble.
#[derive(Debug)]
pub struct ZooKeeper {
    /// Client ports on 127.0.0.1.
    pub ports: Vec<u16>,
    dir: PathBuf,
    keeper_init: u32,
    servers: Vec<Mutex<Option<Daemon>>>,
}

impl ZooKeeper {
    /// Starts `count` servers (1 or 3) and waits until they serve.
    pub async fn start(keeper: &Keeper, count: usize) -> Result<Self> {
        let dir = keeper.dir.join("zookeeper");
        fs::create_dir_all(&dir)?;
        let log4j = "log4j.rootLogger=WARN, C\nlog4j.appender.C=org.apache.log4j.ConsoleAppender\n\
                     log4j.appender.C.layout=org.apache.log4j.PatternLayout\n\
                     log4j.appender.C.layout.ConversionPattern=%d %p %m%n\n";
        fs::write(dir.join("log4j.properties"), log4j)?;
        let mut ports: Vec<[u16; 3]> = Vec::new();
        while ports.len() < count {
            let fresh = [0; 3].map(|_| process::free_port("127.0.0.1").unwrap_or(0));
            let all: Vec<u16> = ports.iter().flatten().chain(&fresh).copied().collect();
            let distinct: std::collections::HashSet<u16> = all.iter().copied().collect();
            if distinct.len() == all.len() {
                ports.push(fresh);
            }
        }
        for (i, [client, ..]) in ports.iter().enumerate() {
            let number = i + 1;
            fs::create_dir_all(dir.join(number.to_string()))?;
            fs::write(dir.join(number.to_string()).join("myid"), number.to_string())?;
            let mut config = format!(
                "tickTime=500\ninitLimit=20\nsyncLimit=10\nmaxSessionTimeout={SESSION_MS}\ndataDir={}/{number}\nclientPortAddress=127.0.0.1\n\
                 clientPort={client}\nadmin.enableServer=false\n4lw.commands.whitelist=*\nmaxClientCnxns=0\n\
                 autopurge.purgeInterval=0\nforceSync=no\n",
                dir.display()
            );
            for (j, [_, peer, election]) in ports.iter().enumerate().filter(|_| count > 1) {
                config += &format!("server.{}=127.0.0.1:{peer}:{election}\n", j + 1);
            }
            fs::write(dir.join(format!("{number}.cfg")), config)?;
        }
        let zookeeper = Self {
            ports: ports.iter().map(|[client, ..]| *client).collect(),
            dir,
            keeper_init: keeper.init,
            servers: ports.iter().map(|_| Mutex::default()).collect(),
        };
        zookeeper.up().await?;
        Ok(zookeeper)
    }

    /// `zk://…` with all servers.
    pub fn url(&self) -> String {
        let servers: Vec<String> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("zk://{}", servers.join(","))
    }

    /// Starts the servers that do not run, and waits until all serve.
    pub async fn up(&self) -> Result<()> {
        for (i, server) in self.servers.iter().enumerate() {
            let mut server = server.lock().await;
            if server.as_ref().is_some_and(Daemon::alive) {
                continue;
            }
            let jars = JARS.map(|jar| format!("/usr/share/java/{jar}.jar")).join(":");
            let classes = format!("{}:{jars}", self.dir.display());
            let config = format!("{}/{}.cfg", self.dir.display(), i + 1);
            let java = [
                "java",
                "-Xms32m",
                "-Xmx96m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-cp",
                &classes,
            ];
            let main = ["org.apache.zookeeper.server.quorum.QuorumPeerMain", &config];
            let name = format!("zookeeper {}", i + 1);
            let log = self.dir.join(format!("{}.log", i + 1));
            *server = Some(Daemon::start(&name, self.keeper_init, "mp", java.iter().chain(&main), &[], &log).await?);
        }
        for (i, port) in self.ports.iter().enumerate() {
            let server = self.servers[i].lock().await;
            let daemon = server.as_ref().context("just started")?;
            daemon
                .ready(Duration::from_secs(30), async || mode(*port).await.map(drop))
                .await?;
        }
        Ok(())
    }

    /// `kill -9` of all servers.
    pub async fn down(&self) -> Result<()> {
        for server in &self.servers {
            if let Some(daemon) = server.lock().await.take() {
                daemon.kill().await?;
            }
        }
        Ok(())
    }

    /// `kill -9` of the leader only; the others go on after an election.
    pub async fn kill_leader(&self) -> Result<()> {
        for (i, port) in self.ports.iter().enumerate() {
            if mode(*port).await.is_ok_and(|mode| mode == "leader") {
                let daemon = self.servers[i].lock().await.take().context("the leader runs")?;
                return daemon.kill().await;
            }
        }
        anyhow::bail!("no leader found")
    }
}

/// `leader`, `follower` or `standalone`; an error while it does not serve.
async fn mode(port: u16) -> Result<String> {
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"srvr").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        anyhow::Ok(text)
    };
    let text = tokio::time::timeout(Duration::from_secs(2), ask).await??;
    let mode = text
        .lines()
        .find_map(|line| line.strip_prefix("Mode: "))
        .map(str::to_owned);
    wait::expect(mode.is_some(), || text.trim().to_owned())?;
    Ok(mode.unwrap_or_default())
}
