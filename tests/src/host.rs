//! One Docker host: namespaces under one first process, with a real `dockerd` in them, and the faults that befall it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use tokio::sync::Mutex;

use crate::docker::{self, Container};
use crate::keeper::Keeper;
use crate::pki::Pki;
use crate::process::{self, Daemon};
use crate::wait;

/// How the platform reaches a host's engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineAccess {
    /// Plain TCP; with `live_restore` containers keep running while the engine restarts.
    Tcp {
        /// dockerd's `--live-restore`.
        live_restore: bool,
    },
    /// TLS with client certificates.
    Tls,
}

/// Sets up a host inside its fresh namespaces. $1: name, $2: folder.
const BOOT: &str = r#"
set -e
hostname "$1"
mount -t proc proc /proc
mkdir -p /etc/docker /run/docker /run/containerd
mount --bind "$2/etc-docker" /etc/docker
for dir in /run/docker /run/containerd "$2/exec"; do mount -t tmpfs tmpfs $dir; done
ip link set lo up
touch "$2/booted"
exec tini -- sleep infinity
"#;

/// Listens on all ports given as arguments that are free.
const THIEF: &str = "for (@ARGV) { socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
                     bind($s, sockaddr_in($_, INADDR_ANY)) or next; listen($s, 9); push @kept, $s } sleep";

/// A Docker host.
#[derive(Debug)]
pub struct Host {
    /// `h1`, `h2`, `h3`.
    pub name: String,
    /// Its address in the fleet's network.
    pub address: String,
    /// The engine's URL for the platform.
    pub engine: String,
    access: EngineAccess,
    number: usize,
    dir: PathBuf,
    cgroup: String,
    gateway: String,
    keeper_init: u32,
    pki: PathBuf,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    boot: Option<Arc<Daemon>>,
    dockerd: Option<Arc<Daemon>>,
    thief: Option<Daemon>,
}

impl Host {
    /// Boots host `number` (1-3) and starts its engine.
    pub async fn start(keeper: &Keeper, net: &str, pki: &Pki, number: usize, access: EngineAccess) -> Result<Self> {
        let name = format!("h{number}");
        let address = format!("{net}.1{number}");
        let engine = match access {
            EngineAccess::Tcp { .. } => format!("tcp://{address}:2375"),
            EngineAccess::Tls => format!("https://{address}:2376"),
        };
        let host = Self {
            dir: keeper.dir.join(&name),
            cgroup: format!("/{}-{name}", keeper.run),
            gateway: format!("{net}.1"),
            keeper_init: keeper.init,
            pki: pki.dir.clone(),
            running: Mutex::default(),
            name,
            address,
            engine,
            access,
            number,
        };
        for sub in ["data", "exec", "etc-docker"] {
            fs::create_dir_all(host.dir.join(sub))?;
        }
        fs::write(host.dir.join("etc-docker/daemon.json"), "{}")?;
        host.power_on().await?;
        Ok(host)
    }

    /// The engine's unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    /// Lets the engine trust the registry's certificate; read at each pull.
    pub fn trust_registry(&self, registry: &str, pki: &Pki) -> Result<()> {
        let dir = self.dir.join("etc-docker/certs.d").join(registry);
        fs::create_dir_all(&dir)?;
        fs::copy(pki.dir.join("ca.crt"), dir.join("ca.crt"))?;
        Ok(())
    }

    /// Boots the machine and starts its engine.
    pub async fn power_on(&self) -> Result<()> {
        self.boot().await?;
        self.start_dockerd().await
    }

    async fn boot(&self) -> Result<()> {
        let _ = fs::remove_file(self.dir.join("booted"));
        let _ = fs::remove_file(self.socket());
        self.remove_cgroups().await;
        let dir = self.dir.to_string_lossy().into_owned();
        let unshare = [
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--fork",
            "--kill-child",
        ];
        let rest = ["--propagation", "private", "bash", "-c", BOOT, "boot", &self.name, &dir];
        let args = unshare.iter().chain(&rest);
        let log = self.dir.join("boot.log");
        let outer = Daemon::start(&self.name, self.keeper_init, "mp", args, &[], &log).await?;
        let init = process::first_child(outer.pid).await?;
        let booted = || {
            if self.dir.join("booted").exists() {
                Ok(())
            } else {
                Err("not booted")
            }
        };
        outer.ready(Duration::from_secs(10), async || booted()).await?;
        // A fixed MAC: with a new one the rebooted host would be unreachable until old ARP entries expire.
        let mac = format!("02:77:00:00:00:1{}", self.number);
        let (keeper, init_text) = (self.keeper_init.to_string(), init.to_string());
        // The keeper's namespaces number processes otherwise than we do: the pair is made here and its ends are moved.
        let pair = format!(
            "{}{}",
            self.name,
            &self.cgroup[self.cgroup.len() - 7..self.cgroup.len() - 3]
        );
        process::run(
            "ip",
            [
                "link", "add", &pair, "type", "veth", "peer", "name", "eth0", "address", &mac, "netns", &init_text,
            ],
        )
        .await?;
        process::run("ip", ["link", "set", &pair, "netns", &keeper]).await?;
        let rename = format!(
            "ip link set {pair} name {0} && ip link set {0} master br0 up",
            self.name
        );
        process::run("nsenter", ["-t", &keeper, "-n", "sh", "-c", &rename]).await?;
        let inner = format!(
            "ip addr add {}/24 dev eth0 && ip link set eth0 up && ip route add default via {}",
            self.address, self.gateway
        );
        process::run("nsenter", ["-t", &init_text, "-n", "sh", "-c", &inner]).await?;
        self.running.lock().await.boot = Some(Arc::new(outer));
        Ok(())
    }

    /// The host's first process.
    async fn init(&self) -> Result<u32> {
        let boot = self.running.lock().await.boot.clone().context("the host is off")?;
        process::first_child(boot.pid).await
    }

    /// Starts the engine and waits until it answers.
    pub async fn start_dockerd(&self) -> Result<()> {
        let init = self.init().await?;
        let dir = self.dir.display();
        let mut args = format!(
            "dockerd --data-root {dir}/data --exec-root {dir}/exec --pidfile {dir}/exec/docker.pid \
             -H unix://{dir}/docker.sock --cgroup-parent {} --storage-driver overlay2 \
             --exec-opt native.cgroupdriver=cgroupfs",
            self.cgroup
        );
        match self.access {
            EngineAccess::Tcp { live_restore } => {
                // Without naming the TLS choice dockerd sleeps 15 s at its start.
                args += &format!(" --tls=false -H tcp://{}:2375", self.address);
                args += if live_restore { " --live-restore" } else { "" };
            }
            EngineAccess::Tls => {
                let (pki, name) = (self.pki.display(), &self.name);
                args += &format!(
                    " --tlsverify --tlscacert {pki}/ca.crt --tlscert {pki}/{name}.crt --tlskey {pki}/{name}.key \
                     -H tcp://{}:2376",
                    self.address
                );
            }
        }
        let log = self.dir.join("dockerd.log");
        let name = format!("dockerd of {}", self.name);
        let daemon = Daemon::start(&name, init, "mpuin", args.split_ascii_whitespace(), &[], &log).await?;
        let socket = self.socket();
        daemon
            .ready(Duration::from_secs(40), async || {
                let (status, _) = docker::call(&socket, "GET", "/_ping").await?;
                wait::expect(status == 200, || format!("_ping: {status}"))
            })
            .await?;
        self.running.lock().await.dockerd = Some(Arc::new(daemon));
        Ok(())
    }

    async fn dockerd(&self) -> Result<Arc<Daemon>> {
        self.running
            .lock()
            .await
            .dockerd
            .clone()
            .context("the engine is not running")
    }

    /// `kill -9` of the engine; containers go on.
    pub async fn kill_dockerd(&self) -> Result<()> {
        self.dockerd().await?.kill().await?;
        self.running.lock().await.dockerd = None;
        Ok(())
    }

    /// Power cut: everything on it is gone at once, connections just fall silent.
    pub async fn power_cut(&self) -> Result<()> {
        let init = self.init().await?;
        // The cable goes first: dying processes would still say goodbye to their peers, which a dead machine does not.
        let keeper = self.keeper_init.to_string();
        process::run("nsenter", ["-t", &keeper, "-n", "ip", "link", "del", &self.name]).await?;
        let mut running = self.running.lock().await;
        if let Some(dockerd) = &running.dockerd {
            dockerd.signal(Signal::CONT);
        }
        let boot = running.boot.take();
        running.dockerd = None;
        running.thief = None;
        process::signal(init, Signal::KILL);
        if let Some(boot) = boot {
            let gone = async || if boot.alive() { Err("still there") } else { Ok(()) };
            wait::until("power cut", Duration::from_secs(10), gone).await?;
        }
        Ok(())
    }

    /// Pulls or plugs its network cable.
    pub async fn cable(&self, plugged: bool) -> Result<()> {
        let keeper = self.keeper_init.to_string();
        let state = if plugged { "up" } else { "down" };
        process::run("nsenter", ["-t", &keeper, "-n", "ip", "link", "set", &self.name, state]).await?;
        Ok(())
    }

    /// Cuts the engine's port off (or opens it again); containers and their ports are reached as before.
    pub async fn control_line(&self, open: bool) -> Result<()> {
        let init = self.init().await?.to_string();
        let script = if open {
            "iptables -F INPUT"
        } else {
            "iptables -I INPUT -p tcp --dport 2375:2376 -j DROP"
        };
        process::run("nsenter", ["-t", &init, "-n", "sh", "-c", script]).await?;
        Ok(())
    }

    /// Stops the engine with SIGSTOP: it accepts calls and never answers; containers go on. `false` lets it go on.
    pub async fn freeze_dockerd(&self, frozen: bool) -> Result<()> {
        self.dockerd()
            .await?
            .signal(if frozen { Signal::STOP } else { Signal::CONT });
        Ok(())
    }

    /// Takes those of `ports` that are free with a foreign listener; without any it gives back what it took.
    pub async fn steal_ports(&self, ports: &[u16]) -> Result<()> {
        let init = self.init().await?;
        let mut running = self.running.lock().await;
        if let Some(thief) = running.thief.take() {
            thief.kill().await?;
        }
        let Some(last) = ports.last() else { return Ok(()) };
        let args = ["perl", "-MSocket", "-e", THIEF].into_iter().map(str::to_owned);
        let args = args.chain(ports.iter().map(ToString::to_string));
        let thief = Daemon::start("port thief", init, "mpuin", args, &[], &self.dir.join("thief.log")).await?;
        let address = format!("{}:{last}", self.address);
        thief
            .ready(Duration::from_secs(5), async || {
                tokio::net::TcpStream::connect(&address).await.map(drop)
            })
            .await?;
        running.thief = Some(thief);
        Ok(())
    }

    /// Our containers on it.
    pub async fn containers(&self) -> Result<Vec<Container>> {
        docker::containers(&self.socket()).await
    }

    /// `kill -9` of a container's process, past the engine.
    pub async fn kill_container(&self, id: &str) -> Result<()> {
        let (status, answer) = docker::call(&self.socket(), "POST", &format!("/containers/{id}/kill")).await?;
        if status != 204 {
            bail!("kill of container {id}: {status} {answer}");
        }
        Ok(())
    }

    /// `docker rm -f` by a stranger's hand.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let (status, answer) = docker::call(&self.socket(), "DELETE", &format!("/containers/{id}?force=true")).await?;
        if status != 204 && status != 404 {
            bail!("removal of container {id}: {status} {answer}");
        }
        Ok(())
    }

    /// Whether machine and engine run; starts what does not.
    pub async fn heal(&self) -> Result<()> {
        let (on, engine) = {
            let running = self.running.lock().await;
            (
                running.boot.as_ref().is_some_and(|b| b.alive()),
                running.dockerd.as_ref().is_some_and(|d| d.alive()),
            )
        };
        if !on {
            return self.power_on().await;
        }
        self.cable(true).await?;
        self.control_line(true).await?;
        self.steal_ports(&[]).await?;
        if engine {
            self.freeze_dockerd(false).await
        } else {
            self.start_dockerd().await
        }
    }

    async fn remove_cgroups(&self) {
        let pattern = format!("/sys/fs/cgroup/*{}*", self.cgroup);
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
    }
}
