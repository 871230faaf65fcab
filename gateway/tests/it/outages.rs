//! Apps of which no instance can be reached: refused, or without a word, as when the hosts have lost power.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use model::AppConfig;
use model::config::{Protocol, Timeouts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// What a connect to an endpoint may take here. Whoever is answered sooner has waited for none.
const CONNECT: Duration = Duration::from_millis(600);

const TOLD: &str = "caas_gateway_own_answers_total{reason=\"unreachable\"}";
const CONNECTS: &str = "caas_gateway_upstream_connects_total";

fn impatient() -> AppConfig {
    AppConfig {
        timeouts: Timeouts {
            connect_ms: CONNECT.as_millis() as u32,
            ..Timeouts::default()
        },
        ..AppConfig::default()
    }
}

/// An endpoint whose host answers no connect: its queue of connections is full, so the kernel drops what comes.
pub(crate) struct Silent {
    listener: TcpListener,
    pub(crate) at: SocketAddr,
    queue: Vec<TcpStream>,
}

impl Silent {
    pub(crate) async fn start() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
            .bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
            .unwrap();
        socket.listen(0).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        let at = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        while let Ok(taken) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(at)).await {
            queue.push(taken.unwrap());
        }
        Self { listener, at, queue }
    }

    /// Its host is back.
    fn comes_back(self) {
        drop(self.queue);
        answer_ok(self.listener);
    }
}

fn answer_ok(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = Vec::new();
                while let Ok(Some(_)) = read_request(&mut stream, &mut buffer).await {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            });
        }
    });
}

/// Asks until it is known that no connect gets through.
async fn until_known(gateway: &Gateway) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let answer = gateway.get("hello.localhost", "/").await;
        if answer.reason() == "unreachable" {
            return;
        }
        assert_eq!((answer.status, answer.reason()), (502, "connect_failed"));
        assert!(Instant::now() < deadline, "known");
    }
}

/// Asks until there is an answer of the app's.
async fn until_back(gateway: &Gateway) {
    let start = Instant::now();
    while gateway.get("hello.localhost", "/").await.status != 200 {
        // The promise is one second; more than that is left to a busy machine.
        assert!(start.elapsed() < Duration::from_secs(3), "requests come through again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asks `n` times; each is answered before a connect could have failed.
async fn answered_at_once(gateway: &Gateway, n: usize) {
    for _ in 0..n {
        let start = Instant::now();
        let answer = gateway.get("hello.localhost", "/").await;
        let took = start.elapsed();
        assert_eq!((answer.status, answer.reason()), (503, "unreachable"));
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert!(took < CONNECT, "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_hosts_are_answered_for_at_once_and_found_again() {
    let (one, other) = (Silent::start().await, Silent::start().await);
    let well = Recorder::start("well").await;
    let entries = [
        ("hello", "1", "a", one.at),
        ("hello", "1", "b", other.at),
        ("well", "1", "c", well.at),
    ];
    let two = gateway::Config { workers: 2, ..config() };
    let gateway = Gateway::with(two, &entries, &[("hello", impatient())]).await;
    let start = Instant::now();
    until_known(&gateway).await;
    assert!(start.elapsed() >= CONNECT, "not before a connect has failed");
    let (connects, start) = (gateway.metric(CONNECTS).await, Instant::now());
    answered_at_once(&gateway, 300).await;
    // What the gateway tries is bounded by time, not by requests: each endpoint's pauses, up to half a second.
    let connects = gateway.metric(CONNECTS).await - connects;
    let most = 2.0 * (6.0 + start.elapsed().as_secs_f64() * 2.0);
    assert!(connects <= most, "{connects} connects, at most {most}");
    assert!(gateway.metric(TOLD).await >= 300.0);
    let told = gateway.admin("/explain?host=hello.localhost").await.body;
    assert!(told.contains("\"outcome\":\"unreachable\""), "{told}");
    assert_eq!(told.matches("\"why\":\"unreachable\"").count(), 2, "{told}");
    let fine = gateway.get("well.localhost", "/").await;
    assert_eq!((fine.status, fine.body.as_str()), (200, "well"), "no other app notices");

    // Longer than what is known from one connect holds: it is found out again and again meanwhile.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        answered_at_once(&gateway, 1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    one.comes_back();
    until_back(&gateway).await;
    for _ in 0..20 {
        assert_eq!(gateway.get("hello.localhost", "/").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connects_are_answered_for_at_once_and_found_again() {
    let at = refusing().await;
    let gateway = Gateway::hello_with(config(), &[at, refusing().await], impatient()).await;
    let (start, connects) = (Instant::now(), gateway.metric(CONNECTS).await);
    until_known(&gateway).await;
    answered_at_once(&gateway, 300).await;
    let connects = gateway.metric(CONNECTS).await - connects;
    let most = 2.0 * (10.0 + start.elapsed().as_secs_f64() * 2.0);
    assert!(connects <= most, "{connects} connects for 301 requests, at most {most}");
    answer_ok(TcpListener::bind(at).await.unwrap());
    until_back(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_says_counts_at_once() {
    let silent = Silent::start().await;
    let gateway = Gateway::hello_with(config(), &[silent.at], impatient()).await;
    until_known(&gateway).await;
    let app = Recorder::start("new").await;
    gateway
        .tell(changes(2, vec![put("hello", "1", "new", app.at)]), 2)
        .await;
    assert_eq!(gateway.get("hello.localhost", "/").await.body, "new");
    gateway.tell(changes(3, vec![remove("hello", "1", "new")]), 3).await;
    answered_at_once(&gateway, 1).await;
    // Said again: whoever says so has found it well, so the next request goes there.
    let at = silent.at;
    silent.comes_back();
    gateway.tell(changes(4, vec![put("hello", "1", "c0", at)]), 4).await;
    assert_eq!(gateway.get("hello.localhost", "/").await.status, 200);
    gateway.tell(changes(5, vec![remove("hello", "1", "c0")]), 5).await;
    assert_eq!(gateway.get("hello.localhost", "/").await.reason(), "no_endpoints");
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_accept_are_never_given_up() {
    // One takes its time beyond what the app allows; one closes without a word, as Docker's port proxy does for a dead app.
    let (slow, asked) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        let _ = stream.read_to_end(&mut buffer).await;
    })
    .await;
    let mut late = impatient();
    late.timeouts.response_s = 1;
    let gateway = Gateway::hello_with(config(), &[slow], late).await;
    for n in 1..=3 {
        assert_eq!(gateway.get("hello.localhost", "/").await.reason(), "upstream_timeout");
        assert_eq!(asked.load(Ordering::SeqCst), n);
    }
    let (dead, asked) = upstream(|stream, _| async move { drop(stream) }).await;
    let gateway = Gateway::hello_with(config(), &[dead], impatient()).await;
    for n in 1..=50 {
        assert_eq!(gateway.get("hello.localhost", "/").await.status, 502);
        assert!(asked.load(Ordering::SeqCst) >= n, "each request is tried");
    }
    assert_eq!(gateway.metric(TOLD).await as u64, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connect_that_fails_proves_nothing() {
    // The queue is full only for a moment: the gateway's own connect, after a request's has failed, gets through.
    let silent = Silent::start().await;
    let gateway = Gateway::hello_with(config(), &[silent.at], impatient()).await;
    assert_eq!(gateway.get("hello.localhost", "/").await.reason(), "connect_failed");
    silent.comes_back();
    until_back(&gateway).await;
    assert_eq!(gateway.metric(TOLD).await as u64, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_apps_are_closed_at_once() {
    static PORT: AtomicUsize = AtomicUsize::new(0);
    let silent = Silent::start().await;
    let port = loop {
        let own = std::process::id() as usize % 1_000 * 20 + PORT.fetch_add(1, Ordering::Relaxed);
        let port = 31_000 - own as u16;
        if TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            break port;
        }
    };
    let mut app = impatient();
    app.protocol = Protocol::Tcp;
    app.tcp.port = port;
    let settings = gateway::Config {
        tcp_ports: "1024-65535".parse().unwrap(),
        tcp_listen_ip: Some([127, 0, 0, 1].into()),
        ..config()
    };
    let gateway = Gateway::with(settings, &[("db", "1", "a", silent.at)], &[("db", app)]).await;
    let ended = "caas_gateway_tcp_ended_total{app=\"db\",reason=\"unreachable\"}";
    let deadline = Instant::now() + LIMIT;
    let mut quickest = LIMIT;
    while gateway.metric(ended).await < 20.0 {
        assert!(Instant::now() < deadline, "known");
        let start = Instant::now();
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        quickest = quickest.min(start.elapsed());
    }
    assert!(quickest < CONNECT, "{quickest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_not_multiplied() {
    // As port proxies do before dead apps: three of them, so that trying each would be three attempts for a request.
    let dead = || upstream(|stream, _| async move { drop(stream) });
    let all = [dead().await, dead().await, dead().await];
    let gateway = Gateway::hello(&all.each_ref().map(|(at, _)| *at)).await;
    let start = Instant::now();
    let requests = 1_500;
    for _ in 0..requests {
        assert_eq!(gateway.get("hello.localhost", "/").await.status, 502);
    }
    let attempts: usize = all.iter().map(|(_, asked)| asked.load(Ordering::SeqCst)).sum();
    let seconds = start.elapsed().as_secs_f64();
    // The retry budget: a fifth of the requests, a hundred saved up and three a second; and what the gateway tries by itself.
    let most = f64::from(requests) * 1.2 + 100.0 + 3.0 * seconds + 3.0 * (2.0 + seconds);
    assert!(attempts >= requests as usize, "each request is tried: {attempts}");
    assert!(
        attempts as f64 <= most,
        "{attempts} attempts for {requests} requests, at most {most}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_is_said_within_milliseconds() {
    let (one, other) = (Silent::start().await, Silent::start().await);
    let gateway = Gateway::hello_with(config(), &[one.at, other.at], impatient()).await;
    until_known(&gateway).await;
    let mut took = Vec::new();
    while took.len() < 300 {
        let start = Instant::now();
        let answer = gateway.get("hello.localhost", "/").await;
        assert_eq!(answer.reason(), "unreachable");
        took.push(start.elapsed());
    }
    took.sort_unstable();
    // A median on loopback, a connection for each: a busy machine moves the tail, not this.
    assert!(took[150] <= Duration::from_millis(10), "{:?}", took[150]);
}
