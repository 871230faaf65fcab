//! The adapter with the real HAProxy, on ports and in a folder of its own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backends::registry::MemoryRegistry;
use haproxy::{Config, Deps, Error};
use model::AppConfig;
use model::config::Protocol;
use model::registry::{EntryKey, RegistryChange, RegistryRevision, RegistryWriter};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(20);

/// Without HAProxy there is nothing to test: a failure where everything is required, a word elsewhere.
fn haproxy_is_there() -> bool {
    let there = Command::new("haproxy")
        .arg("-v")
        .output()
        .is_ok_and(|o| o.status.success());
    if !there {
        assert!(
            std::env::var("CAAS_TEST_REQUIRE_ALL").is_err(),
            "haproxy is not installed"
        );
        eprintln!("skipped: haproxy is not installed");
    }
    there
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done().await {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Ports that a test names itself.
const FIXED: [u16; 2] = [15_998, 15_999];

/// A port at which nobody listens; none of those that the kernel gives to others meanwhile.
async fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let n = (std::process::id() * 8 + NEXT.fetch_add(1, Ordering::Relaxed)) % 1_000;
        let port = 15_000 + u16::try_from(n).expect("below 1,000");
        if !FIXED.contains(&port) && TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            return port;
        }
    }
}

/// Answers each HTTP request by its name and what follows the slash, until it is aborted.
async fn instance(name: &'static str) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("bound");
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut got = Vec::new();
                let mut buffer = [0; 4_096];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    got.extend_from_slice(&buffer[..n]);
                    while let Some(end) = got.windows(4).position(|w| w == b"\r\n\r\n") {
                        let last = got[..end]
                            .to_ascii_lowercase()
                            .windows(17)
                            .any(|w| w == b"connection: close");
                        let head = String::from_utf8_lossy(&got[..end]).into_owned();
                        got.drain(..end + 4);
                        let path = head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
                        let length = name.len() + path.len();
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}{path}");
                        if stream.write_all(answer.as_bytes()).await.is_err() || last {
                            return;
                        }
                    }
                }
            });
        }
    });
    (at, serving)
}

/// One request on a connection of its own: status and body.
async fn get(at: SocketAddr, host: &str) -> Result<(u16, String), String> {
    get_at(at, host, "/").await
}

async fn get_at(at: SocketAddr, host: &str, path: &str) -> Result<(u16, String), String> {
    let asking = async {
        let mut stream = TcpStream::connect(at).await.map_err(|e| format!("connect: {e}"))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(|e| format!("send: {e}"))?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .await
            .map_err(|e| format!("receive: {e}"))?;
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned();
        status.map(|s| (s, body)).ok_or(format!("no answer: {answer:?}"))
    };
    tokio::time::timeout(LIMIT, asking)
        .await
        .unwrap_or(Err("no answer in time".into()))
}

fn put(app: &str, version: &str, container: &str, at: SocketAddr) -> RegistryChange {
    RegistryChange::Put(key(app, version, container), model::Endpoint(at))
}

fn key(app: &str, version: &str, container: &str) -> EntryKey {
    EntryKey {
        app: app.parse().expect("app"),
        version: version.parse().expect("version"),
        container: container.parse().expect("container"),
    }
}

/// An adapter with its HAProxy.
struct World {
    dir: tempfile::TempDir,
    registry: Arc<MemoryRegistry>,
    http: SocketAddr,
    /// Where TLS is passed on.
    tls: SocketAddr,
    admin: SocketAddr,
    stop: CancellationToken,
    adapter: JoinHandle<Result<(), Error>>,
}

impl World {
    /// `program` checks configurations; `reload` is a shell script.
    async fn start(program: &str, reload: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        let http = SocketAddr::from(([127, 0, 0, 1], free_port().await));
        let tls = SocketAddr::from(([127, 0, 0, 1], free_port().await));
        let template = format!(
            "global\n    hard-stop-after 10s\n    stats socket {} mode 600 expose-fd listeners level admin\n\
             defaults\n    timeout connect 1s\n    timeout client 10s\n    timeout server 10s\n    option redispatch 1\n",
            at("control").display()
        );
        std::fs::write(at("template"), template).expect("written");
        std::fs::write(at("reload"), reload.replace("DIR", &dir.path().display().to_string())).expect("written");
        std::fs::set_permissions(at("reload"), std::fs::Permissions::from_mode(0o700)).expect("set");
        let config = Config {
            out: at("haproxy.cfg"),
            reload: at("reload").display().to_string(),
            program: program.into(),
            template: Some(at("template")),
            bind: http,
            tls_passthrough: Some(tls),
            domain: "test".into(),
            debounce_ms: 50,
            reload_every_ms: 200,
            linger_s: 1,
            ..Config::default()
        };
        let admin = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let registry = MemoryRegistry::new();
        assert!(registry.lead(LIMIT).await.expect("an answer"), "the only writer");
        let deps = Deps {
            registry: Arc::clone(&registry) as _,
        };
        let stop = CancellationToken::new();
        Self {
            admin: admin.local_addr().expect("bound"),
            adapter: tokio::spawn(haproxy::run(config, deps, admin, stop.clone())),
            dir,
            registry,
            http,
            tls,
            stop,
        }
    }

    async fn with_haproxy() -> Self {
        let reload = "#!/bin/sh\ncd DIR && handover=\n[ -S control ] && handover='-x control'\n\
                      exec haproxy -D -f haproxy.cfg -p pid $handover -sf $(cat pid 2>/dev/null)\n";
        Self::start("haproxy", reload).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn apply(&self, changes: Vec<RegistryChange>) -> RegistryRevision {
        self.registry.apply(&changes).await.expect("written")
    }

    /// Waits until HAProxy serves by `revision` and nothing of `container` is under way in it.
    async fn acknowledged(&self, revision: RegistryRevision, container: &str) {
        until("the adapter acknowledges", async || {
            let acks = self.registry.acknowledgements().await.expect("an answer");
            acks.iter().any(|(id, ack)| {
                id.starts_with("haproxy-")
                    && ack.applied >= revision
                    && ack.draining.iter().all(|c| c.as_str() != container)
            })
        })
        .await;
    }

    async fn metric(&self, name: &str) -> u64 {
        let page = get_path(self.admin, "/metrics").await;
        page.lines()
            .find_map(|l| l.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or(0)
    }

    async fn end(mut self) {
        self.stop.cancel();
        (&mut self.adapter).await.expect("no panic").expect("a clean end");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What this test started, by its own pid file.
        let pids = std::fs::read_to_string(self.path("pid")).unwrap_or_default();
        for pid in pids.split_whitespace() {
            let _ = Command::new("kill").arg(pid).status();
        }
    }
}

async fn get_path(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(at).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_follows_the_registry_without_a_failed_request() {
    if !haproxy_is_there() {
        return;
    }
    let world = World::with_haproxy().await;
    let ((one, first), (two, _second), (three, _third)) =
        (instance("one").await, instance("two").await, instance("three").await);
    let tcp_port = free_port().await;
    let mut db = AppConfig {
        protocol: Protocol::Tcp,
        ..AppConfig::default()
    };
    db.tcp.port = tcp_port;
    let shop = AppConfig {
        domains: vec!["shop.example.com".into()],
        ..AppConfig::default()
    };
    let wild = AppConfig {
        domains: vec!["*.example.com".into(), "shop.example.com/api".into()],
        strip_prefix: true,
        ..AppConfig::default()
    };
    let revision = world
        .apply(vec![
            put("hello", "1", "c1", one),
            put("hello", "1", "c2", two),
            put("shop", "7", "c4", three),
            put("db", "1", "c5", two),
            put("wild", "1", "c6", one),
            RegistryChange::Config("shop".parse().expect("id"), shop),
            RegistryChange::Config("wild".parse().expect("id"), wild),
            RegistryChange::Config("db".parse().expect("id"), db),
        ])
        .await;
    world.acknowledged(revision, "").await;
    let http = world.http;
    let heard = |host: &'static str| async move { get(http, host).await.expect("an answer") };
    let mut names = BTreeSet::new();
    for _ in 0..4 {
        names.insert(heard("hello.test").await.1);
    }
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(heard("SHOP.example.com:80").await, (200, "three".into()));
    assert_eq!(heard("7--shop.test").await.1, "three");
    assert_eq!(heard("Any.Example.com:80").await, (200, "one".into()));
    for (path, app) in [
        ("/api", "one"),
        ("/api/x?y", "onex?y"),
        ("/apix", "threeapix"),
        ("//api", "threeapi"),
        ("/API", "threeAPI"),
    ] {
        let answer = get_at(http, "Shop.example.com:80", path).await.expect("an answer");
        assert_eq!(answer, (200, app.into()), "{path}");
    }
    for nobody in ["example.com", "a.b.example.com", "any.example.org"] {
        assert_eq!(heard(nobody).await.0, 404, "{nobody}: a wildcard stands for one label");
    }
    assert_eq!(heard("nobody.test").await.0, 404);
    assert_eq!(heard("db.test").await.0, 404, "no web server");
    let tcp = SocketAddr::from(([127, 0, 0, 1], tcp_port));
    assert_eq!(get(tcp, "whatever").await.expect("an answer").1, "two");
    assert!(get_path(world.admin, "/ready").await.starts_with("HTTP/1.1 200"));

    // Scale up, then withdraw, under load.
    let (ended, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (ended, count) = (Arc::clone(&ended), Arc::clone(&count));
            tokio::spawn(async move {
                let mut names = BTreeSet::new();
                while !ended.load(Ordering::Relaxed) {
                    match get(http, "hello.test").await {
                        Ok((200, name)) => names.insert(name),
                        other => panic!("failed: {other:?}"),
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                }
                names
            })
        })
        .collect();
    let some = async |n: u32| {
        let goal = count.load(Ordering::Relaxed) + n;
        until("requests pass", async || {
            count.load(Ordering::Relaxed) >= goal || load.iter().any(JoinHandle::is_finished)
        })
        .await;
    };
    some(50).await;
    let revision = world.apply(vec![put("hello", "2", "c3", three)]).await;
    world.acknowledged(revision, "").await;
    some(50).await;
    let revision = world.apply(vec![RegistryChange::Remove(key("hello", "1", "c1"))]).await;
    world.acknowledged(revision, "c1").await;
    first.abort();
    some(200).await;
    ended.store(true, Ordering::Relaxed);
    let mut names = BTreeSet::new();
    for client in load {
        names.extend(client.await.expect("no request failed"));
    }
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["one", "three", "two"]);
    assert_eq!(heard("2--hello.test").await.1, "three");

    // What changes nothing reloads nothing.
    let reloads = world.metric("caas_haproxy_reloads_total").await;
    assert!((3..=5).contains(&reloads), "{reloads} reloads");
    let revision = world.apply(vec![put("hello", "2", "c3", three)]).await;
    world.acknowledged(revision, "").await;
    assert_eq!(world.metric("caas_haproxy_reloads_total").await, reloads);
    let maps = |dir: &Path| {
        let names = std::fs::read_dir(dir).expect("readable").flatten();
        names
            .filter(|e| e.path().extension().is_some_and(|x| x == "map"))
            .count()
    };
    assert_eq!(maps(world.dir.path()), 1, "maps of before are taken away");
    world.end().await;
}

/// The first message of a TLS client that wants `name`: no more than names it (RFC 8446 4.1.2, RFC 6066 3).
fn hello(name: &str) -> Vec<u8> {
    let sized = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
        [&length[..], bytes].concat()
    };
    let server = sized(&[&[0][..], &sized(name.as_bytes())].concat());
    let extensions = sized(&[&[0, 0][..], &sized(&server)].concat());
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &extensions].concat();
    let message = [&[1, 0][..], &sized(&body)].concat();
    [&[22, 3, 1][..], &sized(&message)].concat()
}

/// Says its name and what it was sent, once something was.
async fn echo(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4_096];
                if let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    let _ = stream.write_all(&[name.as_bytes(), &buffer[..n]].concat()).await;
                }
            });
        }
    });
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_passed_on_by_the_name_that_clients_say() {
    if !haproxy_is_there() {
        return;
    }
    let world = World::with_haproxy().await;
    let (vault, other) = (echo("vault").await, echo("other").await);
    let config = |text: &str| serde_json::from_str(text).expect("json");
    let revision = world
        .apply(vec![
            put("vault", "1", "c1", vault),
            put("vault", "2", "c2", other),
            put("web", "1", "c3", other),
            RegistryChange::Config(
                "vault".parse().expect("id"),
                config(
                    r#"{"protocol":"tcp","tcp":{"passthrough":true},"weights":{"1":100},"domains":["vault.example.com","*.example.com"],
                        "limits":{"deny":["192.0.2.0/24"]}}"#,
                ),
            ),
            RegistryChange::Config("web".parse().expect("id"), config(r#"{"domains":["web.example.com"]}"#)),
        ])
        .await;
    world.acknowledged(revision, "").await;
    assert_eq!(world.metric("caas_haproxy_refused_total").await, 0);
    for (name, app) in [
        ("vault.test", Some("vault")),
        ("VAULT.example.com", Some("vault")),
        ("1--vault.test", Some("vault")),
        ("2--vault.test", Some("other")),
        ("Any.example.com", Some("vault")),
        ("a.b.example.com", None),
        ("web.test", None),
        ("web.example.com", None),
        ("nobody.test", None),
    ] {
        let mut stream = TcpStream::connect(world.tls).await.expect("connected");
        let said = hello(name);
        stream.write_all(&said).await.expect("sent");
        let mut got = Vec::new();
        let reading = tokio::time::timeout(LIMIT, stream.read_to_end(&mut got));
        // Reset or closed: there is nobody.
        let _ = reading.await.expect("in time");
        let wanted = app.map(|app| [app.as_bytes(), &said].concat()).unwrap_or_default();
        assert_eq!(got, wanted, "{name}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_of_balancing_is_understood() {
    if !haproxy_is_there() {
        return;
    }
    let world = World::with_haproxy().await;
    let (at, _serving) = instance("one").await;
    let configs = [
        r#"{"balance":"least_request","limits":{"deny":["192.0.2.0/24","::/0"],"max_in_flight_per_endpoint":9}}"#,
        r#"{"balance":"peak_ewma","timeouts":{"connect_ms":500,"response_s":5,"idle_s":60},"redirect_https":true}"#,
        r#"{"balance":"consistent_hash"}"#,
        r#"{"balance":"consistent_hash","hash":{"header":"x-user"}}"#,
        r#"{"balance":"consistent_hash","hash":{"cookie":"session"},"weights":{"1":5}}"#,
        r#"{"protocol":"h2c"}"#,
        r#"{"protocol":"tcp","tcp":{"port":15998,"proxy_protocol":"v1"},"balance":"consistent_hash"}"#,
        r#"{"protocol":"tcp","tcp":{"port":15999,"proxy_protocol":"v2"},"timeouts":{"idle_s":9},"limits":{"deny":["10.0.0.0/8"]}}"#,
    ];
    let mut changes = Vec::new();
    for (n, text) in configs.iter().enumerate() {
        let app = format!("app-{n}");
        changes.push(put(&app, "1", &format!("c{n}"), at));
        let config = serde_json::from_str(text).expect("json");
        changes.push(RegistryChange::Config(app.parse().expect("id"), config));
    }
    let revision = world.apply(changes).await;
    world.acknowledged(revision, "").await;
    assert_eq!(world.metric("caas_haproxy_refused_total").await, 0);
    // A client by IPv4 is in no network of IPv6.
    assert_eq!(get(world.http, "app-0.test").await.expect("an answer").1, "one");
    assert_eq!(get(world.http, "app-2.test").await.expect("an answer").1, "one");
    assert_eq!(get(world.http, "app-1.test").await.expect("an answer").0, 308);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_configuration_leaves_the_old_one_and_is_not_acknowledged() {
    let world = World::start("false", "#!/bin/sh\ntouch DIR/reloaded\n").await;
    std::fs::write(world.path("haproxy.cfg"), "the old one").expect("written");
    world
        .apply(vec![put(
            "hello",
            "1",
            "c1",
            "127.0.0.1:2001".parse().expect("address"),
        )])
        .await;
    until("it is counted", async || {
        world.metric("caas_haproxy_refused_total").await >= 1
    })
    .await;
    let text = std::fs::read_to_string(world.path("haproxy.cfg")).expect("there");
    assert_eq!(text, "the old one");
    assert!(!world.path("reloaded").exists(), "nothing to reload");
    let acks = world.registry.acknowledgements().await.expect("an answer");
    assert!(acks.is_empty(), "{acks:?}");
    assert!(get_path(world.admin, "/ready").await.starts_with("HTTP/1.1 503"));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_fails_is_not_acknowledged_and_made_good() {
    let reload = "#!/bin/sh\ncd DIR && [ ! -e broken ] && cp haproxy.cfg loaded\n";
    let world = World::start("true", reload).await;
    let text = |name: &str| std::fs::read_to_string(world.path(name)).expect("there");
    let empty = world.apply(vec![]).await;
    world.acknowledged(empty, "").await;
    let first = text("loaded");
    assert_eq!(first, text("haproxy.cfg"));

    std::fs::write(world.path("broken"), "").expect("written");
    let at = "127.0.0.1:2001".parse().expect("address");
    let revision = world.apply(vec![put("hello", "1", "c1", at)]).await;
    until("the failure is counted", async || {
        world.metric("caas_haproxy_failures_total").await >= 1
    })
    .await;
    let acks = world.registry.acknowledgements().await.expect("an answer");
    assert!(acks.values().all(|ack| ack.applied < revision), "{acks:?}");
    assert_ne!(first, text("haproxy.cfg"), "it is tried again with this one");

    // Back to what HAProxy had: the file must follow, and the container may have been served by meanwhile.
    std::fs::remove_file(world.path("broken")).expect("was there");
    let revision = world.apply(vec![RegistryChange::Remove(key("hello", "1", "c1"))]).await;
    let draining = async || {
        let acks = world.registry.acknowledgements().await.expect("an answer");
        let ack = acks.into_values().next().expect("acknowledged before");
        ack.applied >= revision && ack.draining.iter().any(|c| c.as_str() == "c1")
    };
    until("it counts as draining", draining).await;
    assert_eq!((text("haproxy.cfg"), text("loaded")), (first.clone(), first));
    world.acknowledged(revision, "c1").await;
    world.end().await;
}

#[tokio::test]
async fn settings_that_can_not_work_are_named() {
    let sound = Config {
        out: "/etc/haproxy/haproxy.cfg".into(),
        reload: "systemctl reload haproxy".into(),
        ..Config::default()
    };
    assert!(sound.check().is_ok());
    for (bad, word) in [
        (
            Config {
                out: PathBuf::new(),
                ..sound.clone()
            },
            "haproxy.out",
        ),
        (
            Config {
                out: "/tmp/a b\nlisten".into(),
                ..sound.clone()
            },
            "haproxy.out",
        ),
        (
            Config {
                reload: String::new(),
                ..sound.clone()
            },
            "haproxy.reload",
        ),
        (
            Config {
                domain: "a b".into(),
                ..sound.clone()
            },
            "haproxy.domain",
        ),
        (
            Config {
                deadline_s: 0,
                ..sound.clone()
            },
            "haproxy.deadline_s",
        ),
    ] {
        let text = bad.check().expect_err("refused").to_string();
        assert!(text.contains(word), "{text}");
    }
}
