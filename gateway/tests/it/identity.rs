//! Ports that have become another app's while the gateway was cut off from the registry: whoever takes a connection is asked first.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::Response;
use model::AppConfig;
use model::config::{Protocol, Timeouts};
use model::registry::RegistryEvent;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::h2c::{body_of, say};
use crate::support::*;

/// What a container was asked: first line, body.
type Served = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

const CHECKS: &str = "caas_gateway_upstream_identity_checks_total";
const FAILURES: &str = "caas_gateway_upstream_identity_failures_total";

/// How a container answers when it is asked whose it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    Name,
    /// In chunks.
    Chunks,
    /// The last word on the connection.
    Last,
    /// The name, without success.
    Failing,
    /// Not at all.
    Nothing,
}

/// A container: it answers what it is asked with its app's name.
struct Container {
    at: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// How often it was asked whose it is.
    asked: Arc<AtomicUsize>,
    /// What else it was asked.
    served: Served,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Container {
    async fn start(name: &'static str, says: Says, protocol: Protocol) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), name, says, protocol).await
    }

    async fn at(at: SocketAddr, name: &'static str, says: Says, protocol: Protocol) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let container = Self {
            at: listener.local_addr().unwrap(),
            connections: Arc::default(),
            asked: Arc::default(),
            served: Arc::default(),
            stop: CancellationToken::new(),
            task: tokio::spawn(async {}),
        };
        let (connections, stop) = (Arc::clone(&container.connections), container.stop.clone());
        let (asked, served) = (Arc::clone(&container.asked), Arc::clone(&container.served));
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (asked, served) = (Arc::clone(&asked), Arc::clone(&served));
                if protocol == Protocol::H2c {
                    open.spawn(http2(stream, name, asked, served));
                } else {
                    open.spawn(http1(stream, name, says, asked, served));
                }
            }
            drop(listener);
            open.shutdown().await;
        });
        Self { task, ..container }
    }

    /// It is gone, with all its connections.
    async fn go(self) -> SocketAddr {
        self.stop.cancel();
        self.task.await.unwrap();
        self.at
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn served(&self) -> Vec<(String, Vec<u8>)> {
        self.served.lock().unwrap().clone()
    }
}

async fn http1(mut stream: TcpStream, name: &'static str, says: Says, asked: Arc<AtomicUsize>, served: Served) {
    let mut buffer = Vec::new();
    while let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await {
        let line = request.line().to_owned();
        let answer = if line == "GET /who HTTP/1.1" {
            asked.fetch_add(1, Ordering::SeqCst);
            assert_eq!(request.header("host"), ["hello.localhost"]);
            match says {
                Says::Name => format!("HTTP/1.1 200 OK\r\nx-caas-app: {name}\r\ncontent-length: 2\r\n\r\nhi"),
                Says::Chunks => format!(
                    "HTTP/1.1 200 OK\r\nx-caas-app: {name}\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
                ),
                Says::Last => format!("HTTP/1.1 200 OK\r\nx-caas-app: {name}\r\nconnection: close\r\n\r\nhi"),
                Says::Failing => format!("HTTP/1.1 503 No\r\nx-caas-app: {name}\r\ncontent-length: 0\r\n\r\n"),
                Says::Nothing => continue,
            }
        } else {
            served.lock().unwrap().push((line, request.body));
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len())
        };
        let sent = stream.write_all(answer.as_bytes()).await;
        if sent.is_err() || answer.contains("connection: close") {
            return;
        }
    }
}

async fn http2(stream: TcpStream, name: &'static str, asked: Arc<AtomicUsize>, served: Served) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (asked, served) = (Arc::clone(&asked), Arc::clone(&served));
        tokio::spawn(async move {
            let (parts, body) = request.into_parts();
            if parts.uri == "http://hello.localhost/who" {
                asked.fetch_add(1, Ordering::SeqCst);
                let head = Response::builder().header("x-caas-app", name).body(()).unwrap();
                let _ = respond.send_response(head, true);
                return;
            }
            let body = body_of(body).await;
            let line = format!("{} {}", parts.method, parts.uri.path());
            served.lock().unwrap().push((line, body));
            say(&mut respond, name);
        });
    }
}

/// An app that says whose its containers are.
fn named(protocol: Protocol) -> AppConfig {
    AppConfig {
        protocol,
        identity_path: "/who".to_owned(),
        timeouts: Timeouts {
            connect_ms: 300,
            ..Timeouts::default()
        },
        ..AppConfig::default()
    }
}

/// A gateway whose copy of the registry is too old as soon as the registry is gone.
fn wary() -> gateway::Config {
    gateway::Config {
        identity_after_ms: 1,
        ..config()
    }
}

/// The registry is gone, for longer than is believed.
async fn cut_off(gateway: &Gateway) {
    gateway.feed.say(&RegistryEvent::Disconnected("gone".into()));
    let deadline = Instant::now() + LIMIT;
    while gateway.metric("caas_gateway_registry_stale_seconds").await < 0.01 {
        assert!(Instant::now() < deadline, "staleness shows");
    }
}

async fn post(gateway: &Gateway, body: &str) -> Answer {
    let length = body.len();
    let head =
        format!("POST /p HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    gateway.send(&format!("{head}{body}")).await
}

/// A request of one of several kinds.
async fn some(gateway: &Gateway, n: usize) -> Answer {
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    match n % 4 {
        0 | 1 => gateway.get("hello.localhost", "/g").await,
        2 => post(gateway, "abc").await,
        _ => {
            let head = "GET /ws HTTP/1.1\r\nHost: hello.localhost\r\nConnection: upgrade\r\nUpgrade: websocket";
            let rest = format!("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n");
            let mut stream = TcpStream::connect(gateway.http).await.unwrap();
            stream.write_all(format!("{head}\r\n{rest}").as_bytes()).await.unwrap();
            Answer::parse(read_until(&mut stream, "\r\n\r\n").await.as_bytes())
        }
    }
}

async fn a_port_changes_hands(protocol: Protocol) {
    let right = Container::start("hello", Says::Name, protocol).await;
    let gateway = Arc::new(Gateway::hello_with(wary(), &[right.at], named(protocol)).await);
    for _ in 0..20 {
        assert_eq!(gateway.get("hello.localhost", "/").await.body, "hello");
    }
    assert_eq!(right.asked(), 0, "nobody is asked while the registry is there");
    cut_off(&gateway).await;
    assert_eq!(gateway.get("hello.localhost", "/").await.body, "hello");
    assert_eq!(right.asked(), 0, "nor on a connection that is there already");

    let at = right.go().await;
    let wrong = Container::at(at, "other", Says::Name, protocol).await;
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move {
                for n in 0..50 {
                    let answer = some(&gateway, n).await;
                    let reason = answer.reason();
                    assert!(
                        matches!(reason, "not_identified" | "unreachable") || (n == 0 && reason == "connect_failed"),
                        "{n}: {} {reason:?}: {}",
                        answer.head,
                        answer.body
                    );
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1_500) {
        let answer = gateway.get("hello.localhost", "/").await;
        assert_eq!(
            answer.reason(),
            "unreachable",
            "the gateway's own connects let nobody else in"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        wrong.served(),
        [],
        "of more than 1,000 requests none came to the wrong app"
    );
    assert!(wrong.asked() > 0 && gateway.metric(FAILURES).await > 0.0);
    assert!(gateway.metric(CHECKS).await >= gateway.metric(FAILURES).await);
    let told = gateway
        .metric("caas_gateway_own_answers_total{reason=\"not_identified\"}")
        .await;
    let endpoints = gateway.admin("/endpoints?app=hello").await.body;
    assert!(
        told > 0.0 && endpoints.contains("\"reason\":\"not_identified\""),
        "{told} {endpoints}"
    );

    let at = wrong.go().await;
    let right = Container::at(at, "hello", Says::Name, protocol).await;
    let deadline = Instant::now() + LIMIT;
    while gateway.get("hello.localhost", "/").await.body != "hello" {
        assert!(Instant::now() < deadline, "the right one is let in again");
    }
    let (asked, body) = (right.asked(), "x".repeat(100_000));
    for _ in 0..30 {
        assert_eq!(post(&gateway, &body).await.body, "hello");
    }
    assert_eq!(right.asked(), asked, "once a connection, not once a request");
    let posts = right.served().into_iter().filter(|(line, _)| line.starts_with("POST"));
    assert_eq!(posts.filter(|(_, got)| got == body.as_bytes()).count(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_another_apps_gets_no_request() {
    a_port_changes_hands(Protocol::Http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_another_apps_gets_no_request_in_http2() {
    a_port_changes_hands(Protocol::H2c).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_has_the_request_whole_and_once() {
    for (protocol, says) in [
        (Protocol::Http, Says::Name),
        (Protocol::Http, Says::Failing),
        (Protocol::Http, Says::Nothing),
        (Protocol::H2c, Says::Name),
    ] {
        let name = if says == Says::Name { "other" } else { "hello" };
        let wrong = Container::start(name, says, protocol).await;
        let right = Container::start("hello", Says::Name, protocol).await;
        let gateway = Gateway::hello_with(wary(), &[wrong.at, right.at], named(protocol)).await;
        cut_off(&gateway).await;
        for n in 0..20 {
            let (start, body) = (Instant::now(), format!("{n}").repeat(10_000));
            let answer = post(&gateway, &body).await;
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (200, "hello"),
                "{says:?}: {}",
                answer.head
            );
            assert!(start.elapsed() < Duration::from_secs(3), "{says:?} holds up nobody");
            let served = right.served();
            assert_eq!((served.len(), served[n].1 == body.as_bytes()), (n + 1, true));
        }
        assert!(wrong.asked() > 0 && wrong.served().is_empty(), "{says:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_asked_once_and_then_used() {
    for says in [Says::Name, Says::Chunks] {
        let app = Container::start("hello", says, Protocol::Http).await;
        let gateway = Gateway::hello_with(wary(), &[app.at], named(Protocol::Http)).await;
        cut_off(&gateway).await;
        for _ in 0..50 {
            assert_eq!(gateway.get("hello.localhost", "/").await.body, "hello");
        }
        assert_eq!(
            (app.asked(), app.connections.load(Ordering::SeqCst)),
            (1, 1),
            "{says:?}"
        );
        assert_eq!(gateway.metric(CHECKS).await as u64, 1);
        // Back in contact, nobody is asked any more.
        gateway
            .tell(
                snapshot(2, &[("hello", "1", "c0", app.at)], &[("hello", named(Protocol::Http))]),
                2,
            )
            .await;
        let at = app.go().await;
        let app = Container::at(at, "hello", says, Protocol::Http).await;
        gateway.tell(changes(3, vec![put("hello", "1", "c0", at)]), 3).await;
        assert_eq!(gateway.get("hello.localhost", "/").await.body, "hello");
        assert_eq!(app.asked(), 0);
    }
    // Who ends each connection with the answer is asked, and gets the request on another.
    let app = Container::start("hello", Says::Last, Protocol::Http).await;
    let gateway = Gateway::hello_with(wary(), &[app.at], named(Protocol::Http)).await;
    cut_off(&gateway).await;
    for _ in 0..10 {
        assert_eq!(post(&gateway, "abc").await.body, "hello");
    }
    assert_eq!((app.asked(), app.connections.load(Ordering::SeqCst)), (1, 2));
    assert_eq!(app.served().len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_that_promise_nothing_are_not_asked() {
    let app = Container::start("other", Says::Name, Protocol::Http).await;
    let settings = gateway::Config {
        identity_after_ms: 0,
        ..config()
    };
    let silent = AppConfig {
        identity_path: String::new(),
        ..named(Protocol::Http)
    };
    let entries = [("quiet", "1", "c0", app.at), ("hello", "1", "c1", app.at)];
    let gateway = Gateway::with(
        settings,
        &entries,
        &[("quiet", silent), ("hello", named(Protocol::Http))],
    )
    .await;
    assert_eq!(gateway.get("quiet.localhost", "/").await.body, "other");
    assert_eq!(app.asked(), 0);
    let answer = gateway.get("hello.localhost", "/").await;
    assert_eq!(
        (answer.status, answer.reason()),
        (502, "not_identified"),
        "0: always asked"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_after_an_outage_is_asked_too() {
    let right = Container::start("hello", Says::Name, Protocol::Http).await;
    let app = [("hello", named(Protocol::Http))];
    let gateway = Gateway::hello_with(wary(), &[right.at], named(Protocol::Http)).await;
    cut_off(&gateway).await;
    let at = right.go().await;
    let wrong = Container::at(at, "other", Says::Name, Protocol::Http).await;
    // The registry is back without the endpoint, which is held for a while.
    gateway.tell(snapshot(2, &[], &app), 2).await;
    assert_eq!(gateway.metric("caas_gateway_endpoints_held").await as u64, 1);
    assert_eq!(gateway.get("hello.localhost", "/").await.reason(), "not_identified");
    assert_eq!((wrong.asked() > 0, wrong.served().len()), (true, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_begins_with_the_snapshot_file_asks_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("registry.json");
    let with_file = gateway::Config {
        snapshot_file: Some(file.clone()),
        ..config()
    };
    let right = Container::start("hello", Says::Name, Protocol::Http).await;
    let gateway = Gateway::hello_with(with_file.clone(), &[right.at], named(Protocol::Http)).await;
    assert_eq!(gateway.get("hello.localhost", "/").await.body, "hello");
    assert_eq!(right.asked(), 0);
    until("the file is written", || file.exists()).await;
    gateway.shutdown.cancel();
    gateway.task.await.unwrap().unwrap();
    let at = right.go().await;
    let wrong = Container::at(at, "other", Says::Name, Protocol::Http).await;
    let gateway = Gateway::silent(with_file).await;
    gateway.feed.say(&RegistryEvent::Disconnected("not there".into()));
    let deadline = Instant::now() + LIMIT;
    while gateway.admin("/ready").await.status != 200 {
        assert!(Instant::now() < deadline, "the file serves");
    }
    assert_eq!(gateway.get("hello.localhost", "/").await.reason(), "not_identified");
    assert_eq!((wrong.asked() > 0, wrong.served().len()), (true, 0));
}
