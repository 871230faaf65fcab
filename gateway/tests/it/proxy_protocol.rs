//! The PROXY protocol from balancers in front.

use std::time::{Duration, Instant};

use gateway::Config;
use model::AppConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;
use crate::tls_support::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n";
const V1: &[u8] = b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 443\r\n";
/// The same client by version 2, with a TLV.
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x10\xcb\x00\x71\x07\xc6\x33\x64\x01\x9c\x40\x01\xbb\x04\x00\x01\x00";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

fn behind_a_balancer(config: Config) -> Config {
    Config {
        proxy_protocol_from: vec!["127.0.0.0/8".parse().unwrap()],
        ..config
    }
}

async fn start(config: Config) -> (Gateway, Recorder) {
    let recorder = Recorder::start("one").await;
    let gateway = Gateway::hello_with(config, &[recorder.at], AppConfig::default()).await;
    (gateway, recorder)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_is_who_the_balancer_says() {
    let (gateway, recorder) = start(behind_a_balancer(config())).await;
    let at = gateway.http;
    for (header, client, port) in [
        (V1, "203.0.113.7", "443".to_owned()),
        (V2, "203.0.113.7", "443".to_owned()),
        (
            &b"PROXY TCP6 2001:db8::1 ::1 1 443\r\n"[..],
            "2001:db8::1",
            "443".to_owned(),
        ),
        (&b"PROXY UNKNOWN\r\n"[..], "127.0.0.1", at.port().to_string()),
        (LOCAL, "127.0.0.1", at.port().to_string()),
    ] {
        let answer = Answer::parse(&exchange(at, &[header, GET.as_bytes()].concat()).await);
        assert_eq!(answer.status, 200, "{header:?}");
        let seen = recorder.last();
        assert_eq!(seen.header("x-forwarded-for"), [client]);
        assert_eq!(seen.header("x-forwarded-port"), [port]);
    }
    // In pieces, the request in the last one.
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for piece in V2.chunks(5) {
        stream.write_all(piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    stream.write_all(GET.as_bytes()).await.unwrap();
    assert!(read_until(&mut stream, "one").await.starts_with("HTTP/1.1 200"));
    assert_eq!(recorder.junk.lock().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_required_of_balancers() {
    let config = Config {
        header_timeout_ms: 300,
        ..behind_a_balancer(config())
    };
    let (gateway, recorder) = start(config).await;
    for bad in [
        GET.as_bytes(),
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 x\r\nGET / HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x12\x00\x0c\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        &[b'P'; 200],
    ] {
        let answer = Answer::parse(&exchange(gateway.http, bad).await);
        assert_eq!((answer.status, answer.reason()), (400, "bad_proxy_header"), "{bad:?}");
    }
    assert_eq!(gateway.metric("caas_gateway_proxy_headers_bad_total").await as u64, 5);
    // A header that does not come is not waited for longer than a head.
    for slow in [&b""[..], b"PROXY TCP4 1."] {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(gateway.http).await.unwrap();
        stream.write_all(slow).await.unwrap();
        let mut got = Vec::new();
        let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut got)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5) && got.is_empty());
    }
    assert_eq!(recorder.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_believed() {
    let config = Config {
        proxy_protocol_from: vec!["192.0.2.0/24".parse().unwrap()],
        ..config()
    };
    let (gateway, recorder) = start(config).await;
    for header in [V1, V2, LOCAL] {
        let answer = Answer::parse(&exchange(gateway.http, &[header, GET.as_bytes()].concat()).await);
        assert_eq!(answer.status, 400, "{header:?}");
    }
    assert_eq!(recorder.count(), 0);
    assert_eq!(gateway.get("hello.localhost", "/").await.status, 200);
    assert_eq!(recorder.last().header("x-forwarded-for"), ["127.0.0.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_count_the_client_not_the_balancer() {
    let config = Config {
        max_connections_per_client: 1,
        ..behind_a_balancer(config())
    };
    let (gateway, _recorder) = start(config).await;
    let mut first = TcpStream::connect(gateway.http).await.unwrap();
    first.write_all(V1).await.unwrap();
    assert_eq!(get(&mut first, "hello.localhost", "/").await.status, 200);
    let second = Answer::parse(&exchange(gateway.http, &[V2, GET.as_bytes()].concat()).await);
    assert_eq!((second.status, second.reason()), (503, "too_many_connections"));
    let other = [b"PROXY TCP4 203.0.113.8 198.51.100.1 1 2\r\n", GET.as_bytes()].concat();
    assert_eq!(Answer::parse(&exchange(gateway.http, &other).await).status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_comes_before_tls() {
    let authority = Authority::new();
    authority.put("hello", &["hello.localhost"]);
    let (gateway, recorder) = start(behind_a_balancer(authority.config())).await;
    let at = gateway.https.unwrap();
    for header in [V1, V2] {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(header).await.unwrap();
        let mut stream = authority.browser().over(stream, "hello.localhost").await.unwrap();
        assert_eq!(get(&mut stream, "hello.localhost", "/").await.status, 200);
        assert_eq!(recorder.last().header("x-forwarded-for"), ["203.0.113.7"]);
        assert_eq!(recorder.last().header("x-forwarded-proto"), ["https"]);
    }
    // TLS without it is refused.
    assert!(authority.browser().connect(at, "hello.localhost").await.is_err());
    assert_eq!(gateway.metric("caas_gateway_proxy_headers_bad_total").await as u64, 1);
}
