//! A real Docker host for tests, in namespaces of its own: nothing of the machine's own Docker, its network rules or its
//! files is touched, and everything goes when the value is dropped or the test process ends, however it ends.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::CreateImageOptions;
use caas_backends::engine::{EngineOptions, opener};
use futures::TryStreamExt as _;
use model::contract::engine::Fixture;
use model::engine::Engine;

/// What must be there to run a Docker host.
const NEEDED: [&str; 9] = [
    "dockerd",
    "containerd",
    "runc",
    "docker-init",
    "tini",
    "unshare",
    "nsenter",
    "ip",
    "gcc",
];

/// Why Docker hosts can't be run here, if so. With `CAAS_TEST_REQUIRE_ALL=1` that is a failure.
pub(crate) fn missing() -> Option<String> {
    let found = |name: &str| {
        let path = std::env::var("PATH").unwrap_or_default();
        path.split(':')
            .chain(["/usr/sbin", "/sbin"])
            .any(|dir| Path::new(dir).join(name).exists())
    };
    let mut why: Vec<String> = NEEDED
        .iter()
        .filter(|n| !found(n))
        .map(|n| format!("{n} is not installed"))
        .collect();
    let root = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "true"])
        .output();
    if !root.is_ok_and(|o| o.status.success()) {
        why.push("namespaces can't be made (not root?)".into());
    }
    if why.is_empty() {
        return None;
    }
    let why = why.join(", ");
    assert!(
        std::env::var("CAAS_TEST_REQUIRE_ALL").as_deref() != Ok("1"),
        "Docker hosts are required but can't be run: {why}"
    );
    println!("skipped: {why}");
    Some(why)
}

/// One Docker host.
#[derive(Debug)]
pub(crate) struct DockerHost {
    dir: PathBuf,
    name: String,
    /// The address at which the host is reached from here.
    pub(crate) address: IpAddr,
    init: u32,
    script: Child,
    daemon: Option<Child>,
    others: Vec<Child>,
    /// Arguments of dockerd beside the usual ones.
    pub(crate) extra: Vec<String>,
    /// `PATH` of dockerd, if not ours.
    pub(crate) path: Option<String>,
}

fn poll<T>(what: &str, patience: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(since.elapsed() < patience, "{what}: not within {patience:?}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        out.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

impl DockerHost {
    /// A host without a daemon yet.
    pub(crate) fn boot() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let name = format!("cb{pid:x}-{n}");
        let dir = std::env::temp_dir().join(format!("caas-engine-{name}"));
        // A /30 of 10.202.0.0/16 that depends on the process, so that test processes do not meet.
        let net = (pid.wrapping_mul(16).wrapping_add(n) % 16_384) * 4;
        let [third, fourth] = [(net / 256) as u8, (net % 256) as u8];
        let (root, address) = (
            Ipv4Addr::new(10, 202, third, fourth + 1),
            Ipv4Addr::new(10, 202, third, fourth + 2),
        );
        std::fs::create_dir_all(&dir).expect("a folder");
        let script_file = dir.join("dockerhost.sh");
        std::fs::write(&script_file, include_str!("dockerhost.sh")).expect("a file");
        let log = File::create(dir.join("boot.log")).expect("a file");
        let script = Command::new("setsid")
            .args(["bash".as_ref(), script_file.as_os_str(), dir.as_os_str(), name.as_ref()])
            .args([root.to_string(), address.to_string()])
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("setsid");
        let init = poll("the host boots", Duration::from_secs(20), || {
            std::fs::read_to_string(dir.join("init.pid")).ok()?.trim().parse().ok()
        });
        Self {
            dir,
            name,
            address: address.into(),
            init,
            script,
            daemon: None,
            others: Vec::new(),
            extra: Vec::new(),
            path: None,
        }
    }

    /// A host with a daemon that answers.
    pub(crate) fn start() -> Self {
        let mut host = Self::boot();
        host.start_daemon();
        host
    }

    /// The host's folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The engine's URL by its unix socket.
    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.dir.join("docker.sock").display())
    }

    /// A command that runs on the host.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "-t",
            &self.init.to_string(),
            "-m",
            "-p",
            "-u",
            "-i",
            "-n",
            "--",
            program,
        ]);
        command.stdin(Stdio::null());
        command
    }

    /// Starts dockerd and waits until it answers.
    pub(crate) fn start_daemon(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("dockerd.log"))
            .expect("a file");
        let mut command = self.command("env");
        if let Some(path) = &self.path {
            command.arg(format!("PATH={path}"));
        }
        command
            .arg("dockerd")
            .arg("--data-root")
            .arg(self.dir.join("data"))
            .arg("--exec-root")
            .arg(self.dir.join("exec"))
            .arg("--pidfile")
            .arg(self.dir.join("exec/docker.pid"))
            .args([
                "-H",
                &self.url(),
                "--cgroup-parent",
                &format!("/{}", self.name),
                "--storage-driver",
                "overlay2",
            ])
            .args(&self.extra)
            .stdout(log.try_clone().expect("a file"))
            .stderr(log);
        self.daemon = Some(command.spawn().expect("nsenter"));
        let socket = self.dir.join("docker.sock");
        poll("dockerd answers", Duration::from_secs(40), || {
            let mut stream = std::os::unix::net::UnixStream::connect(&socket).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
            stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n").ok()?;
            let mut text = [0; 12];
            std::io::Read::read_exact(&mut stream, &mut text).ok()?;
            text.ends_with(b"200").then_some(())
        });
    }

    /// The daemon's pid as seen from here.
    fn daemon_pid(&self) -> u32 {
        let outer = self.daemon.as_ref().expect("a daemon").id();
        let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).expect("its children");
        children
            .split_whitespace()
            .next()
            .and_then(|p| p.parse().ok())
            .expect("dockerd's pid")
    }

    /// kill -9 of the daemon.
    pub(crate) fn kill_daemon(&mut self) {
        run("kill", &["-9", &self.daemon_pid().to_string()]);
        self.daemon.take().expect("a daemon").wait().expect("its end");
    }

    /// The daemon is stopped where it stands: connections are accepted, nothing is answered.
    pub(crate) fn freeze_daemon(&self) {
        let pid = self.daemon_pid();
        run("kill", &["-STOP", &pid.to_string()]);
        // Its threads stop one by one; one that still runs might answer.
        let stopped = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat"));
            stat.map_or(true, |text| {
                text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
            })
        };
        poll("the daemon stands still", Duration::from_secs(5), || {
            let mut tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
            tasks.all(stopped).then_some(())
        });
    }

    /// It goes on.
    pub(crate) fn thaw_daemon(&self) {
        let pid = self.daemon_pid();
        run(
            "kill",
            &[
                "-CONT",
                &pid.to_string(),
                &self.daemon.as_ref().expect("a daemon").id().to_string(),
            ],
        );
    }

    /// Starts something else on the host; it ends with the host. Gives a number to signal it by.
    pub(crate) fn spawn(&mut self, program: &str, args: &[&str]) -> usize {
        let log = File::create(self.dir.join(format!("other-{}.log", self.others.len()))).expect("a file");
        let mut command = self.command(program);
        command.args(args).stdout(log.try_clone().expect("a file")).stderr(log);
        self.others.push(command.spawn().expect("nsenter"));
        self.others.len() - 1
    }

    /// Signals what `spawn` started.
    pub(crate) fn signal(&self, other: usize, signal: &str) {
        let outer = self.others[other].id();
        let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).expect("its children");
        let pid = children.split_whitespace().next().expect("its pid");
        run("kill", &[signal, pid]);
        if signal == "-CONT" {
            run("kill", &[signal, &outer.to_string()]);
        }
    }
}

impl Drop for DockerHost {
    fn drop(&mut self) {
        // The end of its input is the end of the host.
        drop(self.script.stdin.take());
        // One whose child was stopped has stopped itself, and would never see it end.
        for outer in self.daemon.iter().chain(&self.others) {
            let _ = Command::new("kill").args(["-CONT", &outer.id().to_string()]).status();
        }
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.wait();
        }
        for other in &mut self.others {
            let _ = other.wait();
        }
        let _ = self.script.wait();
    }
}

/// The static test program, compiled once per process.
pub(crate) fn test_program() -> Vec<u8> {
    static PROGRAM: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            let dir = tempfile::tempdir().expect("a folder");
            let (source, program) = (dir.path().join("testapp.c"), dir.path().join("testapp"));
            std::fs::write(&source, include_str!("testapp.c")).expect("a file");
            let [source, program] = [&source, &program].map(|p| p.to_str().expect("a path in UTF-8").to_owned());
            run("gcc", &["-static", "-O1", "-o", &program, &source]);
            std::fs::read(&program).expect("the program")
        })
        .clone()
}

/// A tar archive with one executable file at its root (ustar header, POSIX.1-1988).
pub(crate) fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (at, text) in [
        (100, "0000755\0"),
        (108, "0000000\0"),
        (116, "0000000\0"),
        (124, &format!("{:011o}\0", content.len())),
        (136, "00000000000\0"),
        (148, "        "),
        (156, "0"),
        (257, "ustar\x0000"),
    ] {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

/// The image of the test program.
pub(crate) const IMAGE: &str = "caas-test-app:1";

/// Docker itself, beside the engine under test.
pub(crate) fn raw(host: &DockerHost) -> Docker {
    let path = host.url();
    Docker::connect_with_unix(&path, 120, bollard::API_DEFAULT_VERSION).unwrap()
}

/// Makes an image of one file, as `docker import` does.
pub(crate) async fn import(docker: &Docker, image: &str, file: &str, content: &[u8]) {
    let (repo, tag) = image.rsplit_once(':').unwrap();
    let options = CreateImageOptions {
        from_src: Some("-".into()),
        repo: Some(repo.into()),
        tag: Some(tag.into()),
        changes: vec![format!("ENTRYPOINT [\"/{file}\"]")],
        ..Default::default()
    };
    let body = bollard::body_full(tar(file, content).into());
    docker
        .create_image(Some(options), Some(body), None)
        .try_for_each(|_| async { Ok(()) })
        .await
        .unwrap();
}

/// The host with the test image.
pub(crate) async fn with_image(host: DockerHost) -> DockerHost {
    import(&raw(&host), IMAGE, "testapp", &test_program()).await;
    host
}

/// The engine at `url`.
pub(crate) fn engine(url: &str) -> Arc<dyn Engine> {
    opener(EngineOptions::default())(url).unwrap()
}

/// What the contract needs, from `port` on.
pub(crate) fn fixture(host: &DockerHost, port: u16) -> Fixture {
    Fixture {
        engine: engine(&host.url()),
        image: IMAGE.into(),
        host_ip: host.address,
        port,
    }
}

/// A host of its own, not yet running its daemon.
pub(crate) async fn own() -> Option<DockerHost> {
    if missing().is_some() {
        return None;
    }
    Some(tokio::task::spawn_blocking(DockerHost::boot).await.unwrap())
}
