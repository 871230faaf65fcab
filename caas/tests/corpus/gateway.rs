//! A `caas gateway` of its own process, in front of apps that the test has started.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use model::registry::{EntryKey, RegistrySnapshot, SnapshotFile};

use crate::peers::{Answer, LIMIT, get_from, metric_at};

/// Settings that differ from the defaults, as variables of the environment without what they all begin with.
pub(crate) type Settings = &'static [(&'static str, &'static str)];

/// Most KiB of resident memory that a gateway may ever have had: it begins with 30,000 of a debug build, and has 41,000 in the end.
const MEMORY: u64 = 128 << 10;

/// A running gateway.
pub(crate) struct Gateway {
    pub(crate) http: SocketAddr,
    /// Where TLS is spoken, when it is on.
    pub(crate) https: SocketAddr,
    admin: SocketAddr,
    process: Child,
    dir: tempfile::TempDir,
}

/// An address that nobody else has: of this process alone, and of each only once.
fn address() -> SocketAddr {
    static PORT: AtomicU16 = AtomicU16::new(18_000);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, 64 + high % 64, middle, low);
    SocketAddr::new(IpAddr::V4(ip), PORT.fetch_add(1, Ordering::Relaxed))
}

impl Gateway {
    /// Which has an app of each name with an endpoint at its address; with `tls` also for TLS, with a certificate of its own making.
    pub(crate) async fn start(settings: Settings, tls: bool, apps: &[(&str, SocketAddr)]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        let mut snapshot = RegistrySnapshot::default();
        for (name, address) in apps {
            let key = EntryKey {
                app: name.parse().unwrap(),
                version: "1".parse().unwrap(),
                container: name.parse().unwrap(),
            };
            snapshot.endpoints.insert(key, model::Endpoint(*address));
        }
        let registry = serde_json::to_string(&SnapshotFile::from(&snapshot)).unwrap();
        fs::write(at("registry.json"), registry).expect("written");
        let (http, https, admin) = (address(), address(), address());
        let mut command = Command::new(env!("CARGO_BIN_EXE_caas"));
        command
            .arg("gateway")
            .args(["--registry", &format!("file:{}", at("registry.json").display())])
            .args(["--listen", &http.to_string(), "--admin", &admin.to_string()])
            .envs(
                settings
                    .iter()
                    .map(|(name, value)| (format!("CAAS_GATEWAY__{name}"), value)),
            )
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(at("log")).expect("a log"));
        if tls {
            let pair = rcgen::generate_simple_self_signed(vec!["*.localhost".to_owned()]).expect("a certificate");
            fs::write(at("default.crt"), pair.cert.pem()).expect("written");
            fs::write(at("default.key"), pair.signing_key.serialize_pem()).expect("written");
            command
                .args(["--tls-listen", &https.to_string(), "--certificates-dir"])
                .arg(dir.path());
        }
        let process = command.spawn().expect("it starts");
        let mut gateway = Self {
            http,
            https,
            admin,
            process,
            dir,
        };
        let deadline = Instant::now() + 3 * LIMIT;
        while tokio::net::TcpStream::connect(admin).await.is_err() || gateway.admin("/ready").await.status != 200 {
            let ended = gateway.process.try_wait().expect("it can be asked for");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{ended:?}: it does not serve:\n{}",
                gateway.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        gateway
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) async fn admin(&self, path: &str) -> Answer {
        get_from(self.admin, "a", path).await
    }

    /// The value of the metric with exactly these labels.
    pub(crate) async fn metric(&self, line: &str) -> f64 {
        metric_at(self.admin, line).await
    }

    /// Its peak of resident memory, in KiB.
    fn most_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let peak = status
            .lines()
            .find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        peak.expect("the system tells it")
    }

    /// What has become of the process that must not: it has ended, does not answer, has held more memory than
    /// messages can be worth, or a part of it has panicked.
    pub(crate) async fn harm(&mut self) -> Vec<String> {
        let mut harm = Vec::new();
        match self.process.try_wait() {
            Ok(None) => {
                let most = self.most_memory();
                if most > MEMORY {
                    harm.push(format!("{most} KiB of memory"));
                }
                let live = self.admin("/live").await;
                if live.status != 200 {
                    harm.push(format!("/live answers {} {:?}", live.head, live.body));
                }
            }
            ended => harm.push(format!("the process has ended: {ended:?}")),
        }
        let panics = panics(&self.log());
        harm.extend(panics.iter().map(|line| format!("the gateway's log: {line}")));
        harm
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The lines in which a program tells that a part of it has panicked, each with the next, which says why.
fn panics(log: &str) -> Vec<String> {
    let lines: Vec<&str> = log.lines().collect();
    let found = (0..lines.len()).filter(|i| lines[*i].contains("panicked"));
    found.map(|i| lines[i..lines.len().min(i + 2)].join(" ")).collect()
}

#[tokio::test]
async fn what_harms_the_process_is_seen() {
    let log = "2026 INFO gateway\n\nthread 'worker-0' (12) panicked at gateway/src/worker.rs:1:2:\nno such thing\nnote: run with\n";
    assert_eq!(
        panics(log),
        ["thread 'worker-0' (12) panicked at gateway/src/worker.rs:1:2: no such thing"]
    );
    let mut gateway = Gateway::start(&[], false, &[]).await;
    assert_eq!(gateway.harm().await, [""; 0]);
    gateway.process.kill().expect("it is there");
    gateway.process.wait().expect("it ends");
    let harm = gateway.harm().await;
    assert!(harm.len() == 1 && harm[0].contains("the process has ended"), "{harm:?}");
}
