//! TLS passthrough: apps with a certificate of their own at the gateway's TLS port.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gateway::Config;
use model::AppConfig;
use model::config::{Protocol, ProxyProtocol};
use model::registry::RegistryChange;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream;

use crate::support::*;
use crate::tls_support::*;

/// The app's only protocol, which the gateway does not know.
const OWN: &str = "own/1";

fn own() -> AppConfig {
    let mut app = AppConfig {
        protocol: Protocol::Tcp,
        domains: vec!["vault.example.com".into()],
        ..AppConfig::default()
    };
    app.tcp.passthrough = true;
    app
}

/// An app that speaks TLS itself: it says its name, then gives every byte back.
async fn speaks_tls(authority: &Authority, name: &'static str) -> SocketAddr {
    let names = ["vault.localhost", "1--vault.localhost", "vault.example.com"];
    let (chain, key) = authority.issue(&names);
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der(&chain)], key)
        .unwrap();
    config.alpn_protocols = vec![OWN.into()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (at, _) = upstream(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut tls) = acceptor.accept(stream).await else {
                return;
            };
            let _ = tls.write_all(name.as_bytes()).await;
            let _ = tls.flush().await;
            let (mut read, mut write) = tokio::io::split(tls);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
    })
    .await;
    at
}

/// An app that answers `answer` to the first `length` bytes, and what it heard.
async fn hears(length: usize) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    let (at, _) = upstream(move |mut stream, _| {
        let ear = Arc::clone(&ear);
        async move {
            let mut got = vec![0; length];
            if stream.read_exact(&mut got).await.is_ok() {
                *ear.lock().unwrap() = got;
                let _ = stream.write_all(b"answer").await;
            }
        }
    })
    .await;
    (at, heard)
}

/// App `vault` at these addresses, beside an app `hello` whose certificate is the gateway's.
async fn vault(
    gateways: &Authority,
    config: Config,
    app: AppConfig,
    addresses: &[SocketAddr],
) -> (Gateway, SocketAddr) {
    gateways.put("hello", &["hello.localhost", "*.example.com"]);
    let names: Vec<String> = (0..addresses.len()).map(|i| format!("v{i}")).collect();
    let hello = Recorder::start("hello").await;
    let mut entries = vec![("hello", "1", "c0", hello.at)];
    entries.extend(
        addresses
            .iter()
            .zip(&names)
            .map(|(at, c)| ("vault", "1", c.as_str(), *at)),
    );
    let gateway = Gateway::with(config, &entries, &[("vault", app)]).await;
    let at = gateway.https.unwrap();
    (gateway, at)
}

async fn said(stream: &mut TlsStream<TcpStream>, length: usize) -> String {
    let mut got = vec![0; length];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8(got).unwrap()
}

/// Everything that comes back for these bytes.
async fn answer(at: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut got = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut got)).await.unwrap();
    String::from_utf8_lossy(&got).into_owned()
}

async fn ended(gateway: &Gateway, reason: &str, times: f64) {
    let line = format!("caas_gateway_tcp_ended_total{{app=\"vault\",reason=\"{reason}\"}}");
    let deadline = Instant::now() + LIMIT;
    while gateway.metric(&line).await < times {
        assert!(Instant::now() < deadline, "{line} is not {times}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_sees_the_apps_certificate_and_protocol() {
    let (gateways, apps) = (Authority::new(), Authority::new());
    let endpoint = speaks_tls(&apps, "vault").await;
    let (gateway, at) = vault(&gateways, gateways.config(), own(), &[endpoint]).await;
    for version in [&TLS12, &TLS13] {
        let client = apps.client(&[version], &[OWN]);
        for name in ["vault.localhost", "Vault.Example.com", "1--vault.localhost"] {
            let mut stream = client.connect(at, name).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(OWN.as_bytes()));
            assert_eq!(said(&mut stream, 5).await, "vault");
            stream.write_all(b"word").await.unwrap();
            assert_eq!(said(&mut stream, 4).await, "word");
        }
    }
    // Half a megabyte there and back.
    let mut stream = apps
        .client(&[&TLS13], &[OWN])
        .connect(at, "vault.localhost")
        .await
        .unwrap();
    assert_eq!(said(&mut stream, 5).await, "vault");
    let (mut read, mut write) = tokio::io::split(stream);
    let sending = tokio::spawn(async move {
        write.write_all(&vec![b'x'; 500_000]).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    tokio::time::timeout(LIMIT, read.read_to_end(&mut back))
        .await
        .unwrap()
        .unwrap();
    sending.await.unwrap();
    assert!(back.len() == 500_000 && back.iter().all(|b| *b == b'x'));
    ended(&gateway, "closed", 1.0).await;
    assert!(
        gateway
            .metric("caas_gateway_tcp_connections_total{app=\"vault\"}")
            .await as u64
            >= 7
    );
    assert!(gateway.metric("caas_gateway_tcp_bytes_in_total{app=\"vault\"}").await > 500_000.0);

    // Other names are the gateway's as before.
    assert_eq!(gateways.browser().get(at, "hello.localhost", "/").await.status, 200);
    for unknown in ["nobody.localhost", "2--vault.example.org", "vault", "127.0.0.1"] {
        let error = apps.browser().connect(at, unknown).await.unwrap_err().to_string();
        assert!(
            error.contains("UnrecognizedName") || error.contains("UnrecognisedName"),
            "{error}"
        );
    }
    // At the plain port the app is no host: what comes there is HTTP.
    assert_eq!(gateway.get("vault.localhost", "/").await.reason(), "unknown_app");

    // It takes effect and ends at once.
    let told = |revision, app| {
        let change = RegistryChange::Config("vault".parse().unwrap(), app);
        changes(revision, vec![change])
    };
    let mut without = own();
    without.tcp.passthrough = false;
    gateway.tell(told(2, without), 2).await;
    assert!(apps.browser().connect(at, "vault.localhost").await.is_err());
    let theirs = gateways.browser().certificate(at, "vault.example.com").await;
    assert!(theirs.is_ok(), "the gateway's certificate again: {theirs:?}");
    gateway.tell(told(3, own()), 3).await;
    assert!(
        apps.client(&[&TLS13], &[OWN])
            .connect(at, "vault.localhost")
            .await
            .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_of_a_first_message_in_pieces_arrives() {
    let (gateways, apps) = (Authority::new(), Authority::new());
    let whole = apps.browser().hello("vault.localhost");
    // The same in records of one byte.
    let crumbs: Vec<u8> = whole[5..].iter().flat_map(|b| [0x16, 3, 1, 0, 1, *b]).collect();
    for bytes in [whole, crumbs] {
        let (endpoint, heard) = hears(bytes.len()).await;
        let (_gateway, at) = vault(&gateways, gateways.config(), own(), &[endpoint]).await;
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in bytes.chunks(1 + bytes.len() / 150) {
            stream.write_all(byte).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(read_until(&mut stream, "answer").await, "answer");
        assert_eq!(*heard.lock().unwrap(), bytes);
    }
}

/// The message with one more extension (RFC 8446 4.2) in its one record.
fn with_extension(hello: &[u8], kind: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = hello.to_vec();
    // Record header, message header, version and random; then three lists, each behind its length.
    let mut at = 5 + 4 + 2 + 32;
    at += 1 + usize::from(bytes[at]);
    at += 2 + usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    at += 1 + usize::from(bytes[at]);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
    bytes.extend(content);
    let length = |from: usize| u16::try_from(bytes.len() - from).unwrap().to_be_bytes();
    let (record, message, extensions) = (length(5), length(9), length(at + 2));
    bytes[3..5].copy_from_slice(&record);
    bytes[7..9].copy_from_slice(&message);
    bytes[at..at + 2].copy_from_slice(&extensions);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gateway_does_not_know_is_the_apps_to_understand() {
    let (gateways, apps) = (Authority::new(), Authority::new());
    let hello = apps.client(&[&TLS13], &[OWN]).hello("vault.localhost");
    // Encrypted ClientHello (outer, with a content that nobody can read), an empty and a long one to grease (RFC 8701).
    let outer = [&[0, 0, 1, 0, 1, 7, 0, 32][..], &[0x5a; 32], &[0, 200], &[0xa5; 200]].concat();
    let bytes = with_extension(&with_extension(&hello, 0x0a0a, b""), 0xfe0d, &outer);
    let bytes = with_extension(&bytes, 0xfafa, &[7; 3_000]);
    let (endpoint, heard) = hears(bytes.len()).await;
    let (_gateway, at) = vault(&gateways, gateways.config(), own(), &[endpoint]).await;
    assert_eq!(answer(at, &bytes).await, "answer");
    assert_eq!(*heard.lock().unwrap(), bytes);

    let (_gateway, at) = vault(&gateways, gateways.config(), own(), &[speaks_tls(&apps, "v").await]).await;
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut first = [0; 6];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut first))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((first[0], first[5]), (0x16, 2), "the app goes on with the handshake");
    // What is no first message at all is refused as before, whatever it claims to be.
    assert_eq!(
        answer(at, b"\x16\x03\x01\x00\x04\x02\x00\x00\x00").await.as_bytes()[0],
        0x15
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_endpoints_cost_no_connection() {
    let (gateways, apps) = (Authority::new(), Authority::new());
    // As Docker's port proxy does for a dead container.
    let (closes, asked) = upstream(|stream, _| async move { drop(stream) }).await;
    let sound = [speaks_tls(&apps, "vault").await, speaks_tls(&apps, "vault").await];
    let addresses = [refusing().await, closes, sound[0], sound[1]];
    let (gateway, at) = vault(&gateways, gateways.config(), own(), &addresses).await;
    let client = apps.client(&[&TLS13], &[OWN]);
    for _ in 0..40 {
        let mut stream = client.connect(at, "vault.localhost").await.unwrap();
        assert_eq!(said(&mut stream, 5).await, "vault");
    }
    let asked = asked.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(asked, 5, "left out after five in a row");
    gateway
        .tell(
            changes(
                2,
                vec![
                    remove("vault", "1", "v1"),
                    remove("vault", "1", "v2"),
                    remove("vault", "1", "v3"),
                ],
            ),
            2,
        )
        .await;
    assert!(client.connect(at, "vault.localhost").await.is_err());
    ended(&gateway, "connect_failed", 1.0).await;
    gateway.tell(changes(3, vec![put("vault", "1", "v1", closes)]), 3).await;
    gateway.tell(changes(4, vec![remove("vault", "1", "v0")]), 4).await;
    assert!(client.connect(at, "vault.localhost").await.is_err());
    ended(&gateway, "no_answer", 1.0).await;
    gateway.tell(changes(5, vec![remove("vault", "1", "v1")]), 5).await;
    assert!(client.connect(at, "vault.localhost").await.is_err());
    ended(&gateway, "no_endpoints", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_silence_are_those_of_tcp_routes() {
    let (gateways, apps) = (Authority::new(), Authority::new());
    let mut app = own();
    app.limits.max_in_flight = 1;
    app.timeouts.idle_s = 1;
    let endpoint = speaks_tls(&apps, "vault").await;
    let (gateway, at) = vault(&gateways, gateways.config(), app.clone(), &[endpoint]).await;
    let client = apps.client(&[&TLS13], &[OWN]);
    let mut first = client.connect(at, "vault.localhost").await.unwrap();
    assert_eq!(said(&mut first, 5).await, "vault");
    assert!(client.connect(at, "vault.localhost").await.is_err(), "one at a time");
    ended(&gateway, "overloaded", 1.0).await;
    let begun = Instant::now();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(LIMIT, first.read_to_end(&mut rest)).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    ended(&gateway, "idle_timeout", 1.0).await;
    app.limits.deny = vec!["127.0.0.0/8".parse().unwrap()];
    let change = RegistryChange::Config("vault".parse().unwrap(), app);
    gateway.tell(changes(2, vec![change]), 2).await;
    assert!(client.connect(at, "vault.localhost").await.is_err());
    ended(&gateway, "denied", 1.0).await;
    // Nothing of it stays counted.
    let open = "caas_gateway_connections";
    assert!(gateway.metric("caas_gateway_connections_total").await > 0.5);
    let deadline = Instant::now() + LIMIT;
    while gateway.metric(open).await > 0.5 {
        assert!(Instant::now() < deadline, "{open}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_learns_who_the_client_is() {
    let (gateways, apps) = (Authority::new(), Authority::new());
    let hello = apps.browser().hello("vault.localhost");
    let mut app = own();
    app.tcp.proxy_protocol = ProxyProtocol::V1;
    let line = "PROXY TCP4 203.0.113.7 198.51.100.1 40000 443\r\n";
    let (endpoint, heard) = hears(line.len() + hello.len()).await;
    let config = Config {
        proxy_protocol_from: vec!["127.0.0.0/8".parse().unwrap()],
        ..gateways.config()
    };
    let (_gateway, at) = vault(&gateways, config, app.clone(), &[endpoint]).await;
    let bytes = [line.as_bytes(), &hello].concat();
    assert_eq!(answer(at, &bytes).await, "answer");
    assert_eq!(*heard.lock().unwrap(), bytes, "what the balancer said is passed on");

    // Without a balancer: the client itself, and where it connected to.
    let mut stream;
    let (endpoint, heard) = hears(40 + hello.len()).await;
    let (_gateway, at) = vault(&gateways, gateways.config(), app, &[endpoint]).await;
    loop {
        stream = TcpStream::connect(at).await.unwrap();
        let line = format!(
            "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
            stream.local_addr().unwrap().port(),
            at.port()
        );
        stream.write_all(&hello).await.unwrap();
        if line.len() >= 40 {
            assert_eq!(read_until(&mut stream, "answer").await, "answer");
            assert!(heard.lock().unwrap().starts_with(line.as_bytes()));
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_outlast_a_withdrawal_and_a_drain() {
    let (gateways, apps) = (Authority::new(), Authority::new());
    let (old, new) = (speaks_tls(&apps, "old").await, speaks_tls(&apps, "new").await);
    let (gateway, at) = vault(&gateways, gateways.config(), own(), &[old]).await;
    let client = apps.client(&[&TLS13], &[OWN]);
    let mut first = client.connect(at, "vault.localhost").await.unwrap();
    assert_eq!(said(&mut first, 3).await, "old");
    let swap = vec![put("vault", "2", "w", new), remove("vault", "1", "v0")];
    gateway.tell(changes(2, swap), 2).await;
    assert!(gateway.feed.last_ack().is_some_and(|a| a.draining.len() == 1));
    let mut second = client.connect(at, "vault.localhost").await.unwrap();
    assert_eq!(said(&mut second, 3).await, "new");
    gateway.shutdown.cancel();
    let closed = Instant::now() + LIMIT;
    while TcpStream::connect(at).await.is_ok() {
        assert!(Instant::now() < closed, "the port closes");
    }
    for stream in [&mut first, &mut second] {
        stream.write_all(b"still").await.unwrap();
        assert_eq!(said(stream, 5).await, "still");
        stream.shutdown().await.unwrap();
    }
    drop((first, second));
    tokio::time::timeout(LIMIT, gateway.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}
