//! The fleet: three Docker hosts on a network of their own, an image registry, ZooKeeper and MariaDB.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::host::{EngineAccess, Host};
use crate::keeper::Keeper;
use crate::mariadb::MariaDb;
use crate::pki::Pki;
use crate::process;
use crate::registry::ImageRegistry;
use crate::zookeeper::ZooKeeper;

/// What the fleet is started from: each program with the Debian package that has it.
const PROGRAMS: [(&str, &str); 16] = [
    ("dockerd", "docker.io"),
    ("docker", "docker.io (docker-cli on newer releases)"),
    ("containerd", "containerd"),
    ("docker-registry", "docker-registry"),
    ("java", "default-jre-headless"),
    ("mariadbd", "mariadb-server"),
    ("mariadb-install-db", "mariadb-server"),
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("pebble", "pebble"),
    ("pebble-challtestsrv", "pebble"),
    ("tini", "tini"),
    ("openssl", "openssl"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
];

/// The whole test bed of one run.
#[derive(Debug)]
pub struct Fleet {
    /// Ends everything when dropped.
    pub keeper: Keeper,
    /// First three numbers of the network, such as `10.77.3`; `.1` is this side.
    pub net: String,
    /// Certificates.
    pub pki: Pki,
    /// h1 (tcp), h2 (tcp, containers survive a restart of its engine), h3 (TLS with client certificates).
    pub hosts: Vec<Host>,
    /// The private image registry (TLS, user and password).
    pub registry: ImageRegistry,
    /// Three servers.
    pub zookeeper: ZooKeeper,
    /// The database.
    pub mariadb: MariaDb,
}

impl Fleet {
    /// Why no fleet can be started here, as one sentence; `None` if it can.
    pub fn missing() -> Option<String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs: Vec<_> = std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .collect();
        let lacking: Vec<String> = PROGRAMS
            .iter()
            .filter(|(program, _)| !dirs.iter().any(|dir| dir.join(program).exists()))
            .map(|(program, package)| format!("{program} (Debian package {package})"))
            .collect();
        if !lacking.is_empty() {
            return Some(format!("these programs are missing: {}", lacking.join(", ")));
        }
        if !Path::new("/usr/share/java/zookeeper.jar").exists() {
            return Some("ZooKeeper is missing (Debian package zookeeper)".into());
        }
        if !rustix::process::geteuid().is_root() {
            return Some("namespaces and Docker hosts need root: run it with sudo".into());
        }
        let unshare = std::process::Command::new("unshare")
            .args(["--net", "--pid", "--mount", "--fork", "true"])
            .output();
        match unshare {
            Ok(output) if output.status.success() => None,
            _ => Some("this machine does not allow new namespaces (CAP_SYS_ADMIN is needed)".into()),
        }
    }

    /// Starts all parts, side by side, and loads nothing yet.
    pub async fn start() -> Result<Self> {
        let keeper = Keeper::start().await?;
        let net = network(&keeper).await?;
        let pki = Pki::make(&keeper.dir.join("pki"), &net).await?;
        let host = async |number: usize, access| Host::start(&keeper, &net, &pki, number, access).await;
        let (registry, zookeeper, mariadb, h1, h2, h3) = futures::try_join!(
            ImageRegistry::start(&keeper, &net, &pki),
            ZooKeeper::start(&keeper, 3),
            MariaDb::start(&keeper),
            host(1, EngineAccess::Tcp { live_restore: false }),
            host(2, EngineAccess::Tcp { live_restore: true }),
            host(3, EngineAccess::Tls),
        )?;
        let hosts = vec![h1, h2, h3];
        for host in &hosts {
            host.trust_registry(&registry.address, &pki)?;
        }
        let fleet = Self {
            keeper,
            net,
            pki,
            hosts,
            registry,
            zookeeper,
            mariadb,
        };
        fleet
            .push_hello()
            .await
            .context("could not build and push the sample app")?;
        Ok(fleet)
    }

    /// The host of that name.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts
            .iter()
            .find(|host| host.name == name)
            .expect("h1, h2 and h3 are the fleet's hosts")
    }

    /// Starts and plugs in again whatever a scenario broke.
    pub async fn heal(&self) -> Result<()> {
        self.registry.up().await?;
        self.registry.freeze(false).await?;
        self.mariadb.up().await?;
        self.zookeeper.up().await?;
        for host in &self.hosts {
            host.heal().await?;
        }
        Ok(())
    }

    /// Builds the sample app and pushes it as `hello:1`, `hello:2` and `hello:3`.
    async fn push_hello(&self) -> Result<()> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let context = self.keeper.dir.join("hello");
        process::run(
            root.join("scripts/build-hello.sh").to_str().unwrap_or_default(),
            [&context],
        )
        .await?;
        let docker = self.docker_client(&self.registry.password).await?;
        for version in ["1", "2", "3"] {
            self.push(&docker, &context, "hello", version).await?;
        }
        Ok(())
    }

    /// Builds an image from `context` on h1 and pushes it as `{registry}/{app}:{version}`.
    pub async fn push(&self, docker: &[String], context: &Path, app: &str, version: &str) -> Result<()> {
        let image = self.registry.image(app, version);
        let tail = [
            "build",
            "-q",
            "--build-arg",
            &format!("VERSION={version}"),
            "-t",
            &image,
        ]
        .map(String::from);
        let context = context.to_string_lossy().into_owned();
        process::run("docker", docker.iter().cloned().chain(tail).chain([context])).await?;
        process::run("docker", docker.iter().cloned().chain(["push".into(), image])).await?;
        Ok(())
    }

    /// Arguments of a docker client that talks to h1 and is logged in to the registry with `password`.
    pub async fn docker_client(&self, password: &str) -> Result<Vec<String>> {
        let config = self.keeper.dir.join("docker-config");
        let socket = self.hosts[0].socket();
        let client = [
            "--config",
            &config.to_string_lossy(),
            "-H",
            &format!("unix://{}", socket.display()),
        ];
        let client: Vec<String> = client.iter().map(ToString::to_string).collect();
        let login = [
            "login",
            "-u",
            &self.registry.user,
            "-p",
            password,
            &self.registry.address,
        ]
        .map(String::from);
        process::run("docker", client.iter().cloned().chain(login)).await?;
        Ok(client)
    }

    /// A copy of `hello:{version}` under another name, for a scenario that wants its own repository.
    pub async fn push_copy(&self, version: &str, app: &str, as_version: &str) -> Result<()> {
        let docker = self.docker_client(&self.registry.password).await?;
        let (from, to) = (
            self.registry.image("hello", version),
            self.registry.image(app, as_version),
        );
        process::run("docker", docker.iter().cloned().chain(["tag".into(), from, to.clone()])).await?;
        process::run("docker", docker.iter().cloned().chain(["push".into(), to])).await?;
        Ok(())
    }
}

/// Ties the keeper's bridge to this side with a veth pair on a free 10.77.x.0/24.
async fn network(keeper: &Keeper) -> Result<String> {
    let link = keeper.run.replace("caas-e2e-", "ce");
    let init = keeper.init.to_string();
    for _ in 0..50 {
        let net = format!("10.77.{}", rand::random_range(1..250));
        if process::run("ip", ["-4", "route"]).await?.contains(&format!("{net}.")) {
            continue;
        }
        process::run(
            "ip",
            [
                "link", "add", &link, "type", "veth", "peer", "name", "root", "netns", &init,
            ],
        )
        .await?;
        process::run(
            "nsenter",
            ["-t", &init, "-n", "ip", "link", "set", "root", "master", "br0", "up"],
        )
        .await?;
        process::run("ip", ["addr", "add", &format!("{net}.1/24"), "dev", &link]).await?;
        process::run("ip", ["link", "set", &link, "up"]).await?;
        let answers = async || {
            process::run("ip", ["-4", "route", "get", &format!("{net}.11")])
                .await
                .map(drop)
        };
        crate::wait::until("the fleet's network", Duration::from_secs(5), answers).await?;
        return Ok(net);
    }
    bail!("no free network 10.77.x.0/24")
}
