//! TCP routes, with real sockets on both sides.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gateway::Config;
use model::AppConfig;
use model::config::{Balance, Protocol, ProxyProtocol};
use model::registry::RegistryChange;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::outages::Silent;
use crate::support::*;

/// A port at which nobody listens, so that a gateway can; none of those that the kernel gives to others meanwhile.
pub(crate) async fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let own = u16::try_from(std::process::id() % 1_000).unwrap() * 20;
        let port = 10_000 + own + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            return port;
        }
    }
}

fn tcp(port: u16) -> AppConfig {
    let mut app = AppConfig {
        protocol: Protocol::Tcp,
        ..AppConfig::default()
    };
    app.tcp.port = port;
    app
}

fn settings() -> Config {
    Config {
        tcp_ports: "1024-65535".parse().unwrap(),
        tcp_listen_ip: Some([127, 0, 0, 1].into()),
        ..config()
    }
}

/// A gateway with the app `db` of this configuration at these addresses; where the app answers.
async fn db_with(settings: Config, app: AppConfig, addresses: &[SocketAddr]) -> (Gateway, SocketAddr) {
    let names: Vec<String> = (0..addresses.len()).map(|i| format!("c{i}")).collect();
    let at = SocketAddr::from(([127, 0, 0, 1], app.tcp.port));
    let entries: Vec<_> = addresses
        .iter()
        .zip(&names)
        .map(|(at, name)| ("db", "1", name.as_str(), *at))
        .collect();
    (Gateway::with(settings, &entries, &[("db", app)]).await, at)
}

async fn db(addresses: &[SocketAddr]) -> (Gateway, SocketAddr) {
    db_with(settings(), tcp(free_port().await), addresses).await
}

/// Says its name, then gives every byte back, then says goodbye once the client has ended.
async fn named(name: &'static str) -> SocketAddr {
    upstream(move |mut stream, _| async move {
        let _ = stream.write_all(name.as_bytes()).await;
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.write_all(b"bye").await;
    })
    .await
    .0
}

/// Reads what the other side says until it has ended.
async fn rest(stream: &mut TcpStream) -> String {
    let mut got = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut got)).await.unwrap();
    String::from_utf8_lossy(&got).into_owned()
}

/// Connects, says a word, ends; everything that came back.
async fn talk(at: SocketAddr) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(b"word").await.unwrap();
    stream.shutdown().await.unwrap();
    rest(&mut stream).await
}

async fn metric_is(gateway: &Gateway, line: &str, value: f64) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let got = gateway.metric(line).await;
        if (got - value).abs() < 0.5 {
            return;
        }
        assert!(Instant::now() < deadline, "{line} is {got}, not {value}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_pass_both_ways_and_each_side_may_end_first() {
    let (gateway, at) = db(&[named("hi:").await]).await;
    let mut client = TcpStream::connect(at).await.unwrap();
    let mut greeting = [0; 3];
    client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hi:", "who speaks first may be the endpoint");
    let big: Vec<u8> = (0..8_000_000u32).map(|i| (i % 251) as u8).collect();
    let mut back = vec![0; big.len()];
    let (mut read, mut write) = client.split();
    let (sent, received) = tokio::join!(write.write_all(&big), read.read_exact(&mut back));
    sent.unwrap();
    received.unwrap();
    assert!(back == big, "8 MB came back unchanged");
    metric_is(&gateway, "caas_gateway_tcp_connections{app=\"db\"}", 1.0).await;
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await, "bye", "the endpoint may still speak");
    metric_is(
        &gateway,
        "caas_gateway_tcp_ended_total{app=\"db\",reason=\"closed\"}",
        1.0,
    )
    .await;
    metric_is(&gateway, "caas_gateway_tcp_connections{app=\"db\"}", 0.0).await;
    metric_is(&gateway, "caas_gateway_tcp_bytes_in_total{app=\"db\"}", 8e6).await;
    metric_is(&gateway, "caas_gateway_tcp_bytes_out_total{app=\"db\"}", 8e6 + 6.0).await;
    // It is no web server.
    assert_eq!(gateway.get("db.localhost", "/").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_dead_endpoint_of_three_costs_no_connection() {
    let addresses = [named("a").await, refusing().await, named("b").await];
    let (gateway, at) = db(&addresses).await;
    let mut heard = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..40 {
        *heard.entry(talk(at).await).or_default() += 1;
    }
    assert_eq!(heard.keys().collect::<Vec<_>>(), ["awordbye", "bwordbye"], "{heard:?}");
    assert!(heard.values().all(|n| *n >= 10), "in turn: {heard:?}");
    assert!(gateway.metric("caas_gateway_ejections_total").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_accepts_and_closes_has_not_taken_it() {
    // As Docker's port proxy does for a container that has died.
    let (dead, tried) = upstream(|stream, _| async move { drop(stream) }).await;
    let (_gateway, at) = db(&[dead, named("a").await]).await;
    for _ in 0..6 {
        let mut client = TcpStream::connect(at).await.unwrap();
        let mut greeting = [0; 1];
        client.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"a");
    }
    assert!(tried.load(Ordering::SeqCst) >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_closes_on_clients_that_speak_first_costs_one_connection() {
    // The same before a Redis that has died: the client's word is there before the end is, and must not be said twice.
    let (dead, tried) = upstream(|mut stream, _| async move {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let _ = stream.shutdown().await;
    })
    .await;
    let (alive, _) = upstream(|mut stream, _| async move {
        let mut word = [0; 4];
        while stream.read_exact(&mut word).await.is_ok() && stream.write_all(b"PONG").await.is_ok() {}
    })
    .await;
    let (gateway, at) = db(&[dead, alive]).await;
    let mut failed = 0;
    for _ in 0..20 {
        let mut client = TcpStream::connect(at).await.unwrap();
        client.write_all(b"PING").await.unwrap();
        let mut answer = [0; 4];
        failed += i32::from(client.read_exact(&mut answer).await.is_err() || &answer != b"PONG");
    }
    assert!(tried.load(Ordering::SeqCst) >= 2, "the dead one was looked at again");
    assert_eq!(failed, 1);
    let reason = "caas_gateway_tcp_ended_total{app=\"db\",reason=\"no_answer\"}";
    metric_is(&gateway, reason, 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_the_connection_is_closed_at_once() {
    let (gateway, at) = db(&[]).await;
    assert_eq!(talk(at).await, "");
    let reason = |r| format!("caas_gateway_tcp_ended_total{{app=\"db\",reason=\"{r}\"}}");
    metric_is(&gateway, &reason("no_endpoints"), 1.0).await;
    gateway
        .tell(changes(2, vec![put("db", "1", "c", refusing().await)]), 2)
        .await;
    assert_eq!(talk(at).await, "");
    metric_is(&gateway, &reason("connect_failed"), 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_follow_the_registry_and_never_leave_their_range() {
    let [first, second, outside] = [free_port().await, free_port().await, free_port().await];
    let lowest = first.min(second);
    let gateway = Gateway::with(
        Config {
            tcp_ports: format!("{lowest}-{}", first.max(second)).parse().unwrap(),
            ..settings()
        },
        &[
            ("db", "1", "c", named("db").await),
            ("cache", "1", "c", named("cache").await),
        ],
        &[("db", tcp(first))],
    )
    .await;
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(talk(at(first)).await, "dbwordbye");
    let config = |revision, app: &str, config| {
        let app = app.parse().unwrap();
        changes(revision, vec![RegistryChange::Config(app, config)])
    };
    // What is acknowledged is open.
    gateway.tell(config(2, "cache", tcp(second)), 2).await;
    assert_eq!(talk(at(second)).await, "cachewordbye");
    let mut long = TcpStream::connect(at(first)).await.unwrap();
    assert_eq!(read_until(&mut long, "db").await, "db");
    // The app moves to another port; what is open stays open.
    if !(lowest..=first.max(second)).contains(&outside) {
        gateway.tell(config(3, "db", tcp(outside)), 3).await;
        assert!(TcpStream::connect(at(outside)).await.is_err(), "never opened");
    }
    gateway.tell(config(4, "db", AppConfig::default()), 4).await;
    let closed = Instant::now() + LIMIT;
    while TcpStream::connect(at(first)).await.is_ok() {
        assert!(Instant::now() < closed, "the port closes");
    }
    long.write_all(b"still there").await.unwrap();
    assert_eq!(read_until(&mut long, "there").await, "still there");
    assert_eq!(talk(at(second)).await, "cachewordbye");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_harms_nothing_and_is_tried_again() {
    let blocker = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (taken, free) = (blocker.local_addr().unwrap(), free_port().await);
    let gateway = Gateway::with(
        settings(),
        &[
            ("db", "1", "c", named("db").await),
            ("cache", "1", "c", named("cache").await),
        ],
        &[("db", tcp(taken.port())), ("cache", tcp(free))],
    )
    .await;
    assert_eq!(talk(([127, 0, 0, 1], free).into()).await, "cachewordbye");
    metric_is(&gateway, "caas_gateway_tcp_ports_failed", 1.0).await;
    metric_is(&gateway, "caas_gateway_tcp_ports_open", 1.0).await;
    drop(blocker);
    metric_is(&gateway, "caas_gateway_tcp_ports_open", 2.0).await;
    metric_is(&gateway, "caas_gateway_tcp_ports_failed", 0.0).await;
    assert_eq!(talk(taken).await, "dbwordbye");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_learns_who_the_client_is() {
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&heard);
        let (endpoint, _) = upstream(move |mut stream, _| {
            let ear = Arc::clone(&ear);
            async move {
                let mut got = Vec::new();
                let _ = stream.read_to_end(&mut got).await;
                *ear.lock().unwrap() = got;
                let _ = stream.write_all(b"ok").await;
            }
        })
        .await;
        let mut app = tcp(free_port().await);
        app.tcp.proxy_protocol = version;
        let (_gateway, at) = db_with(settings(), app, &[endpoint]).await;
        let mut client = TcpStream::connect(at).await.unwrap();
        let from = client.local_addr().unwrap();
        client.write_all(b"word").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await, "ok");
        let heard = heard.lock().unwrap().clone();
        if version == ProxyProtocol::V1 {
            let line = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\nword", from.port(), at.port());
            assert_eq!(String::from_utf8_lossy(&heard), line);
        } else {
            assert_eq!(&heard[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c");
            assert_eq!(heard[16..24], [127, 0, 0, 1, 127, 0, 0, 1]);
            assert_eq!(heard[24..26], from.port().to_be_bytes());
            assert_eq!(&heard[28..], b"word");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold() {
    let mut app = tcp(free_port().await);
    app.limits.max_in_flight = 1;
    let (gateway, at) = db_with(settings(), app.clone(), &[named("a").await]).await;
    let mut first = TcpStream::connect(at).await.unwrap();
    assert_eq!(read_until(&mut first, "a").await, "a");
    assert_eq!(talk(at).await, "", "one at a time");
    first.shutdown().await.unwrap();
    assert_eq!(rest(&mut first).await, "bye");
    metric_is(&gateway, "caas_gateway_tcp_connections{app=\"db\"}", 0.0).await;
    assert_eq!(talk(at).await, "awordbye");

    let config = |revision, app: &AppConfig| {
        let id = "db".parse().unwrap();
        changes(revision, vec![RegistryChange::Config(id, app.clone())])
    };
    app.limits.max_in_flight = 0;
    app.limits.deny = vec!["127.0.0.0/8".parse().unwrap()];
    gateway.tell(config(2, &app), 2).await;
    assert_eq!(talk(at).await, "");
    app.limits.deny.clear();
    app.limits.requests_per_second_per_client = 1;
    gateway.tell(config(3, &app), 3).await;
    let heard = [talk(at).await, talk(at).await, talk(at).await];
    assert_eq!(heard[0], "awordbye");
    assert!(heard.contains(&String::new()), "{heard:?}");
    for reason in ["overloaded", "denied", "rate_limited"] {
        let line = format!("caas_gateway_tcp_ended_total{{app=\"db\",reason=\"{reason}\"}}");
        assert!(gateway.metric(&line).await >= 1.0, "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_ends_after_the_apps_time() {
    let mut app = tcp(free_port().await);
    app.timeouts.idle_s = 1;
    let (gateway, at) = db_with(settings(), app, &[named("a").await]).await;
    let mut client = TcpStream::connect(at).await.unwrap();
    let begun = Instant::now();
    assert_eq!(rest(&mut client).await, "a");
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    metric_is(
        &gateway,
        "caas_gateway_tcp_ended_total{app=\"db\",reason=\"idle_timeout\"}",
        1.0,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_endpoint_keeps_what_it_has_and_is_told_as_draining() {
    let (gateway, at) = db(&[named("old").await]).await;
    let mut client = TcpStream::connect(at).await.unwrap();
    assert_eq!(read_until(&mut client, "old").await, "old");
    let swap = vec![put("db", "2", "new", named("new").await), remove("db", "1", "c0")];
    gateway.tell(changes(2, swap), 2).await;
    let draining = || gateway.feed.last_ack().is_some_and(|a| a.draining.len() == 1);
    assert!(draining(), "{:?}", gateway.feed.last_ack());
    assert_eq!(talk(at).await, "newwordbye");
    client.write_all(b"more").await.unwrap();
    assert_eq!(read_until(&mut client, "more").await, "more");
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await, "bye");
    until("nothing drains any more", || !draining()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_gateway_closes_its_ports_and_lets_connections_end() {
    let (gateway, at) = db(&[named("a").await]).await;
    let mut client = TcpStream::connect(at).await.unwrap();
    assert_eq!(read_until(&mut client, "a").await, "a");
    gateway.shutdown.cancel();
    let closed = Instant::now() + LIMIT;
    while TcpStream::connect(at).await.is_ok() {
        assert!(Instant::now() < closed, "the port closes");
    }
    client.write_all(b"last").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await, "lastbye");
    gateway.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_connected_when_the_gateway_stops_is_served() {
    for _ in 0..10 {
        let (gateway, at) = db(&[named("a").await]).await;
        // Let in by the kernel, whether the gateway knows of it or not.
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(TcpStream::connect(at).await.unwrap());
        }
        gateway.shutdown.cancel();
        for mut client in clients {
            client.write_all(b"word").await.unwrap();
            client.shutdown().await.unwrap();
            assert_eq!(rest(&mut client).await, "awordbye");
        }
        tokio::time::timeout(LIMIT, gateway.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_stays_with_one_endpoint_when_hashed_by_address() {
    let mut app = tcp(free_port().await);
    app.balance = Balance::ConsistentHash;
    let addresses = [named("a").await, named("b").await, named("c").await];
    let (_gateway, at) = db_with(settings(), app, &addresses).await;
    let first = talk(at).await;
    for _ in 0..8 {
        assert_eq!(talk(at).await, first);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_has_a_line_per_connection() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("access.log");
    let settings = Config {
        access_log: file.display().to_string(),
        ..settings()
    };
    let (_gateway, at) = db_with(settings, tcp(free_port().await), &[named("a").await]).await;
    talk(at).await;
    until("the line is written", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))
    })
    .await;
    let line: serde_json::Value = serde_json::from_str(std::fs::read_to_string(&file).unwrap().trim()).unwrap();
    assert_eq!((&line["protocol"], &line["app"]), (&"tcp".into(), &"db".into()));
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&4.into(), &8.into()));
    assert_eq!((&line["port"], &line["reason"]), (&at.port().into(), &"".into()));
}

fn config_of(app: &str, config: AppConfig) -> RegistryChange {
    RegistryChange::Config(app.parse().unwrap(), config)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_the_next_apps_at_once() {
    let port = free_port().await;
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let entries = [
        ("db", "1", "c", named("db").await),
        ("cache", "1", "c", named("cache").await),
    ];
    let gateway = Gateway::with(settings(), &entries, &[("db", tcp(port))]).await;
    let mut long = TcpStream::connect(at).await.unwrap();
    assert_eq!(read_until(&mut long, "db").await, "db");
    for (revision, from, to) in [(2, "db", "cache"), (3, "cache", "db"), (4, "db", "cache")] {
        let moves = vec![config_of(from, AppConfig::default()), config_of(to, tcp(port))];
        gateway.tell(changes(revision, moves), revision).await;
        assert_eq!(talk(at).await, format!("{to}wordbye"), "what is acknowledged is open");
        assert_eq!(gateway.metric("caas_gateway_tcp_ports_failed").await as u64, 0);
    }
    long.write_all(b"still there").await.unwrap();
    assert_eq!(read_until(&mut long, "there").await, "still there");
}

/// A gateway with the app `db` of this configuration, and a connection to it that waits for an endpoint which says nothing.
async fn waiting(mut app: AppConfig) -> (Gateway, SocketAddr, TcpStream, Silent) {
    let silent = Silent::start().await;
    app.timeouts.connect_ms = 400;
    let (gateway, at) = db_with(settings(), app, &[silent.at]).await;
    let client = TcpStream::connect(at).await.unwrap();
    gateway.reaches("caas_gateway_upstream_connects_total", 1.0).await;
    (gateway, at, client, silent)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_was_made_anew_meanwhile_counts_its_own_connections() {
    let mut app = tcp(free_port().await);
    let (gateway, at, mut client, _silent) = waiting(app.clone()).await;
    app.timeouts.connect_ms = 400;
    let anew = vec![
        remove("db", "1", "c0"),
        RegistryChange::ConfigRemove("db".parse().unwrap()),
        config_of("db", app),
        put("db", "1", "c1", named("new").await),
    ];
    gateway.tell(changes(2, anew), 2).await;
    client.write_all(b"word").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(
        rest(&mut client).await,
        "newwordbye",
        "the app that is there now has it"
    );
    assert_eq!(talk(at).await, "newwordbye", "alone it is not too many");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_speaks_http_by_now_is_no_tcp_app() {
    let (gateway, _, mut client, _silent) = waiting(tcp(free_port().await)).await;
    let http = Recorder::start("http").await;
    let moved = vec![
        config_of("db", AppConfig::default()),
        remove("db", "1", "c0"),
        put("db", "2", "c1", http.at),
    ];
    gateway.tell(changes(2, moved), 2).await;
    assert_eq!(gateway.get("db.localhost", "/").await.body, "http");
    let _ = client.write_all(b"word\r\n\r\n").await;
    assert_eq!(rest(&mut client).await, "");
    assert_eq!((http.count(), http.junk.lock().unwrap().len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_speaks_no_http_by_now_gets_no_request() {
    let silent = Silent::start().await;
    let mut app = AppConfig::default();
    app.timeouts.connect_ms = 400;
    let gateway = Gateway::with(settings(), &[("db", "1", "c0", silent.at)], &[("db", app)]).await;
    let (at, taken) = upstream(|stream, _| async move { drop(stream) }).await;
    let moved = vec![
        config_of("db", tcp(free_port().await)),
        remove("db", "1", "c0"),
        put("db", "2", "c1", at),
    ];
    let (answer, ()) = tokio::join!(gateway.get("db.localhost", "/"), async {
        gateway.reaches("caas_gateway_upstream_connects_total", 1.0).await;
        gateway.tell(changes(2, moved), 2).await;
    });
    assert_eq!((answer.status, answer.reason()), (502, "connect_failed"));
    assert_eq!(taken.load(Ordering::SeqCst), 0);
}
