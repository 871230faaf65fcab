//! TLS towards clients.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gateway::Config;
use model::AppConfig;
use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;
use crate::tls_support::*;

/// App `hello` behind a gateway with this authority's folder.
async fn start(authority: &Authority, config: Config) -> (Gateway, Recorder) {
    let recorder = Recorder::start("one").await;
    let domains = AppConfig {
        domains: vec!["shop.example.com".parse().unwrap(), "x.example.com".parse().unwrap()],
        ..AppConfig::default()
    };
    assert!(config.certificates_dir.as_deref() == Some(authority.dir.path()));
    (Gateway::hello_with(config, &[recorder.at], domains).await, recorder)
}

/// Waits until so many handshakes have failed for this reason: a client may know before it is counted.
async fn counted(gateway: &Gateway, reason: &str, times: u64) {
    let line = format!("caas_gateway_tls_failures_total{{reason=\"{reason}\"}}");
    let deadline = Instant::now() + LIMIT;
    loop {
        let n = gateway.metric(&line).await as u64;
        assert!(
            n <= times && Instant::now() < deadline,
            "{n} × {reason} instead of {times}"
        );
        if n == times {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_serve_and_the_app_knows() {
    let authority = Authority::new();
    authority.put("hello", &["hello.localhost"]);
    let (gateway, recorder) = start(&authority, authority.config()).await;
    let at = gateway.https.unwrap();
    for (version, label) in [(&TLS12, "1.2"), (&TLS13, "1.3")] {
        for alpn in [&["http/1.1"][..], &[]] {
            let client = authority.client(&[version], alpn);
            let answer = client.get(at, "hello.localhost", "/").await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "one"));
        }
        let line = format!("caas_gateway_tls_handshakes_total{{version=\"{label}\",resumed=\"false\"}}");
        assert_eq!(gateway.metric(&line).await as u64, 2);
    }
    let seen = recorder.last();
    assert_eq!(seen.header("x-forwarded-proto"), ["https"]);
    assert_eq!(seen.header("x-forwarded-port"), [at.port().to_string()]);
    assert_eq!(seen.header("x-forwarded-for"), ["127.0.0.1"]);
    // The plain port knows nothing of it.
    assert_eq!(gateway.get("hello.localhost", "/").await.status, 200);
    assert_eq!(recorder.last().header("x-forwarded-proto"), ["http"]);
    // A protocol that nobody speaks is refused by both.
    let strange = authority.client(&[&TLS13], &["spdy/3"]);
    assert!(strange.connect(at, "hello.localhost").await.is_err());
    counted(&gateway, "incompatible", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_agreed_on_in_the_handshake() {
    let authority = Authority::new();
    authority.put("hello", &["hello.localhost"]);
    let (gateway, recorder) = start(&authority, authority.config()).await;
    let client = authority.client(rustls::ALL_VERSIONS, &["h2", "http/1.1"]);
    let stream = client.connect(gateway.https.unwrap(), "hello.localhost").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut answers = Vec::new();
    for _ in 0..3 {
        let request = http::Request::get("https://hello.localhost/").body(()).unwrap();
        send = send.ready().await.unwrap();
        answers.push(send.send_request(request, true).unwrap().0);
    }
    for answer in answers {
        let answer = tokio::time::timeout(LIMIT, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
    }
    assert_eq!(recorder.count(), 3);
    assert_eq!(recorder.last().header("x-forwarded-proto"), ["https"]);
    drop(send);
    // It ends by close_notify, not by being cut.
    tokio::time::timeout(LIMIT, connection).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_chooses_the_certificate() {
    let authority = Authority::new();
    authority.put("exact", &["shop.example.com"]);
    authority.put("wild", &["*.example.com"]);
    let (gateway, _recorder) = start(&authority, authority.config()).await;
    let at = gateway.https.unwrap();
    let client = authority.browser();
    let file = |name: &str| der(&fs::read_to_string(authority.dir.path().join(name)).unwrap());
    assert_eq!(
        client.certificate(at, "Shop.Example.com").await.unwrap(),
        file("exact.crt")
    );
    assert_eq!(client.certificate(at, "x.example.com").await.unwrap(), file("wild.crt"));
    assert_eq!(client.get(at, "x.example.com", "/").await.status, 200);
    for unknown in ["a.b.example.com", "example.com", "other.test", "127.0.0.1"] {
        let error = client.certificate(at, unknown).await.unwrap_err().to_string();
        assert!(
            error.contains("UnrecognizedName") || error.contains("UnrecognisedName"),
            "{error}"
        );
    }
    counted(&gateway, "unknown_name", 4).await;

    // A default serves all those, though this client does not trust it for them.
    authority.put("default", &["fallback.test"]);
    gateway.reload.notify_one();
    until_served(&client, at, "fallback.test").await;
    assert!(client.certificate(at, "other.test").await.is_err());
    counted(&gateway, "refused_by_client", 1).await;
    assert!(
        gateway
            .metric("caas_gateway_certificate_expires_seconds{certificate=\"wild\"}")
            .await
            > 1e9
    );
    assert_eq!(gateway.metric("caas_gateway_certificates").await as u64, 3);
}

async fn until_served(client: &Client, at: std::net::SocketAddr, name: &str) {
    let deadline = Instant::now() + LIMIT;
    while client.certificate(at, name).await.is_err() {
        assert!(Instant::now() < deadline, "{name} is not served");
    }
}

/// Clients that keep a connection each and clients that make one per request, while certificates change under them.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_under_open_connections() {
    let authority = Arc::new(Authority::new());
    authority.put("a", &["hello.localhost"]);
    let (gateway, _recorder) = start(&authority, authority.config()).await;
    let at = gateway.https.unwrap();
    let (stop, done, failed) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut tasks = Vec::new();
    for kept in [true, true, false, false] {
        let (client, stop, done, failed) = (
            authority.browser(),
            Arc::clone(&stop),
            Arc::clone(&done),
            Arc::clone(&failed),
        );
        tasks.push(tokio::spawn(async move {
            let mut stream = client.connect(at, "hello.localhost").await.unwrap();
            while !stop.load(Ordering::Relaxed) {
                if !kept {
                    match client.connect(at, "hello.localhost").await {
                        Ok(new) => stream = new,
                        Err(_) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                    }
                }
                let answer = get(&mut stream, "hello.localhost", "/").await;
                let counter = if answer.status == 200 { &done } else { &failed };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let fresh = || authority.client(&[&TLS13], &[]);
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let before = fresh().certificate(at, "hello.localhost").await.unwrap();
        // Half a pair first, long enough to be met.
        let (chain, key) = authority.issue(&["hello.localhost"]);
        authority.write("a.crt", &chain);
        gateway.reload.notify_one();
        let line = "caas_gateway_certificates_bad_total";
        let told = gateway.metric(line).await;
        let deadline = Instant::now() + LIMIT;
        while gateway.metric(line).await == told && told == 0.0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(fresh().certificate(at, "hello.localhost").await.unwrap(), before);
        authority.write("a.key", &key);
        let begun = Instant::now();
        gateway.reload.notify_one();
        while fresh().certificate(at, "hello.localhost").await.unwrap() != der(&chain) {
            assert!(begun.elapsed() < LIMIT, "the new certificate is served");
        }
        slowest = slowest.max(begun.elapsed());
    }
    // By itself, without being told.
    let (chain, key) = authority.issue(&["hello.localhost"]);
    let begun = Instant::now();
    authority.write("a.pem", &format!("{chain}{key}"));
    while fresh().certificate(at, "hello.localhost").await.unwrap() != der(&chain) {
        assert!(begun.elapsed() < LIMIT, "the new certificate is served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let by_itself = begun.elapsed();
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(failed.load(Ordering::Relaxed), 0, "of {}", done.load(Ordering::Relaxed));
    assert!(done.load(Ordering::Relaxed) > 20);
    assert!(slowest < Duration::from_secs(1), "{slowest:?} after the word");
    assert!(by_itself < Duration::from_secs(5), "{by_itself:?} by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_taken_up_again() {
    let authority = Authority::new();
    authority.put("hello", &["hello.localhost"]);
    let (gateway, _recorder) = start(&authority, authority.config()).await;
    let at = gateway.https.unwrap();
    for (version, label) in [(&TLS12, "1.2"), (&TLS13, "1.3")] {
        let client = authority.client(&[version], &["http/1.1"]);
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let mut stream = client.connect(at, "hello.localhost").await.unwrap();
            // Tickets come with the first bytes.
            assert_eq!(get(&mut stream, "hello.localhost", "/").await.status, 200);
            kinds.push(stream.get_ref().1.handshake_kind().unwrap());
        }
        assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed], "{label}");
        let line = format!("caas_gateway_tls_handshakes_total{{version=\"{label}\",resumed=\"true\"}}");
        assert_eq!(gateway.metric(&line).await as u64, 1);
    }
}

/// A first message that offers TLS 1.1 at most.
const OLD: &[u8] = b"\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x02\
    0123456789abcdef0123456789abcdef\x00\x00\x04\x00\x2f\x00\x35\x01\x00";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_tls_is_told_so() {
    let authority = Authority::new();
    authority.put("default", &["hello.localhost"]);
    let config = Config {
        tls_handshake_timeout_ms: 300,
        ..authority.config()
    };
    let (gateway, recorder) = start(&authority, config).await;
    let at = gateway.https.unwrap();

    let answer = Answer::parse(&exchange(at, b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n").await);
    assert_eq!((answer.status, answer.reason()), (400, "plain_http"));
    assert!(answer.body.contains("https://"), "{}", answer.body);

    // Alert: fatal, protocol_version.
    let got = exchange(at, OLD).await;
    assert_eq!(got.get(5..7), Some(&[2, 70][..]), "{got:?}");
    for garbage in [
        &b"\x00\x01\x02\x03garbage"[..],
        &[0xff; 2_000],
        b"\x16\x03\x01\x00\x05hello",
    ] {
        let begun = Instant::now();
        exchange(at, garbage).await;
        assert!(begun.elapsed() < LIMIT, "garbage is cut");
    }
    // Nothing at all, and half a message.
    for slow in [&b""[..], &OLD[..20]] {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(slow).await.unwrap();
        let mut got = Vec::new();
        let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut got)).await.unwrap();
        let took = begun.elapsed();
        assert!(
            got.is_empty() && took >= Duration::from_millis(250) && took < Duration::from_secs(5),
            "{took:?}"
        );
    }
    counted(&gateway, "plain_http", 1).await;
    counted(&gateway, "version", 1).await;
    counted(&gateway, "timeout", 2).await;
    counted(&gateway, "bad_message", 3).await;
    assert_eq!(recorder.count(), 0);
    // None of it is in anybody's way.
    assert_eq!(authority.browser().get(at, "hello.localhost", "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_parked_and_serve_again() {
    let authority = Authority::new();
    authority.put("hello", &["hello.localhost"]);
    let config = Config {
        park_after_ms: 100,
        ..authority.config()
    };
    let (gateway, recorder) = start(&authority, config).await;
    let client = authority.browser();
    let mut stream = client.connect(gateway.https.unwrap(), "hello.localhost").await.unwrap();
    for _ in 0..2 {
        assert_eq!(get(&mut stream, "hello.localhost", "/").await.status, 200);
        let deadline = Instant::now() + LIMIT;
        while gateway.metric("caas_gateway_connections_parked").await == 0.0 {
            assert!(Instant::now() < deadline, "the idle connection is parked");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert_eq!(recorder.count(), 2);
    // A drain closes it in order: with close_notify, not by cutting it.
    gateway.shutdown.cancel();
    let mut rest = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    gateway.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_and_tunnels_go_through() {
    let authority = Authority::new();
    authority.put("hello", &["hello.localhost"]);
    let (echo, _) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        while let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await {
            if request.header("upgrade") == ["websocket"] {
                let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
                stream.write_all(switch).await.unwrap();
                stream.write_all(&buffer).await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                return;
            }
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", request.body.len());
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&request.body).await.unwrap();
        }
    })
    .await;
    let gateway = Gateway::hello_with(authority.config(), &[echo], AppConfig::default()).await;
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();

    let client = authority.browser();
    let mut stream = client.connect(gateway.https.unwrap(), "hello.localhost").await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: {}\r\n\r\n",
        big.len()
    );
    stream.write_all(&[head.as_bytes(), &big].concat()).await.unwrap();
    stream.flush().await.unwrap();
    let mut got = Vec::new();
    while got.len() < big.len() || !got.ends_with(&big) {
        assert!(stream.read_buf(&mut got).await.unwrap() > 0);
    }

    let ask = "GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut head).await.unwrap() > 0);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    let (mut read, mut write) = tokio::io::split(stream);
    let mut back = vec![0; big.len()];
    let both = async {
        tokio::join!(
            async {
                write.write_all(&big).await.unwrap();
                write.flush().await.unwrap();
            },
            read.read_exact(&mut back)
        )
    };
    let (_, received) = tokio::time::timeout(LIMIT, both).await.unwrap();
    received.unwrap();
    assert!(back == big, "3 MB came back unchanged");
    // Little by little: nothing stays behind in a buffer.
    for _ in 0..50 {
        write.write_all(b"ping").await.unwrap();
        write.flush().await.unwrap();
        let mut pong = [0; 4];
        tokio::time::timeout(LIMIT, read.read_exact(&mut pong))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&pong, b"ping");
    }
    write.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(LIMIT, read.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(rest.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_may_ask_for_https() {
    let authority = Authority::new();
    authority.put("hello", &["hello.localhost", "shop.example.com"]);
    let recorder = Recorder::start("one").await;
    let app = AppConfig {
        redirect_https: true,
        domains: vec!["shop.example.com".parse().unwrap(), "bare.example.com".parse().unwrap()],
        ..AppConfig::default()
    };
    let config = Config {
        trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
        ..authority.config()
    };
    let gateway = Gateway::hello_with(config, &[recorder.at], app.clone()).await;
    let port = gateway.https.unwrap().port();
    for (host, name) in [
        ("Hello.localhost:80", "hello.localhost"),
        ("shop.example.com", "shop.example.com"),
    ] {
        let answer = gateway.get(host, "/a/b?c=d").await;
        assert_eq!((answer.status, answer.reason()), (308, "redirect_https"));
        let location = format!("https://{name}:{port}/a/b?c=d");
        assert_eq!(answer.header("location"), Some(location.as_str()));
    }
    assert_eq!(recorder.count(), 0);
    // No certificate for the name, an authority's question, and what came by https already: served.
    assert_eq!(gateway.get("bare.example.com", "/").await.status, 200);
    let challenge = gateway.get("hello.localhost", "/.well-known/acme-challenge/x").await;
    assert_eq!(challenge.status, 200);
    let answer = gateway
        .send("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(answer.status, 200);
    let answer = authority
        .browser()
        .get(gateway.https.unwrap(), "hello.localhost", "/")
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(recorder.count(), 4);

    // Without TLS there is nowhere to go.
    let plain = Gateway::hello_with(config_without_tls(), &[recorder.at], app).await;
    assert_eq!(plain.get("hello.localhost", "/").await.status, 200);
}

fn config_without_tls() -> Config {
    crate::support::config()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_hosts_that_the_certificate_does_not_name_are_misdirected() {
    let authority = Authority::new();
    authority.put("hello", &["hello.localhost"]);
    authority.put("shop", &["*.example.com"]);
    let (gateway, recorder) = start(&authority, authority.config()).await;
    let at = gateway.https.unwrap();
    let mut one = authority.browser().connect(at, "hello.localhost").await.unwrap();
    for (host, status, reason) in [
        ("hello.localhost", 200, ""),
        ("shop.example.com", 421, "misdirected"),
        ("HELLO.localhost.:443", 200, ""),
        // Of another version, which the certificate does not name either.
        ("1--hello.localhost", 421, "misdirected"),
        ("nobody.localhost", 404, "unknown_app"),
        ("hello.localhost", 200, ""),
    ] {
        let answer = get(&mut one, host, "/").await;
        assert_eq!((answer.status, answer.reason()), (status, reason), "{host}");
    }
    // What the certificate names may share a connection (RFC 9113 9.1.1).
    let client = authority.client(rustls::ALL_VERSIONS, &["h2"]);
    let stream = client.connect(at, "shop.example.com").await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    let task = tokio::spawn(connection);
    let mut shared = crate::http2_support::Client { send, task };
    for (host, status) in [
        ("shop.example.com", 200),
        ("x.example.com", 200),
        ("hello.localhost", 421),
        ("shop.example.com", 200),
    ] {
        assert_eq!(shared.get(host, "/").await.status(), status, "{host}");
    }
    assert_eq!(recorder.count(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_brings_any_host_along() {
    let authority = Authority::new();
    authority.put("hello", &["hello.localhost"]);
    let trusting = Config {
        trusted_proxies: vec!["127.0.0.1/32".parse().unwrap()],
        ..authority.config()
    };
    let (gateway, _) = start(&authority, trusting).await;
    let browser = authority.browser();
    let mut stream = browser
        .connect(gateway.https.unwrap(), "hello.localhost")
        .await
        .unwrap();
    let answer = get(&mut stream, "shop.example.com", "/").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "one"));
}
