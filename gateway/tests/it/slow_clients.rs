//! Clients that take their time.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_are_cut() {
    let app = Recorder::start("app").await;
    let fast = gateway::Config {
        header_timeout_ms: 300,
        body_idle_ms: 300,
        ..config()
    };
    let gateway = Gateway::hello_with(fast, &[app.at], model::AppConfig::default()).await;
    for (name, sent, answer) in [
        ("no byte", "", ""),
        ("half a line", "GE", "408"),
        ("half a head", "GET / HTTP/1.1\r\nHost: hello.localhost\r\nX-A: ", "408"),
        (
            "half a body",
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5\r\n\r\nab",
            "408",
        ),
        (
            "half a chunk",
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            "408",
        ),
    ] {
        let start = std::time::Instant::now();
        let got = exchange(gateway.http, sent.as_bytes()).await;
        let took = start.elapsed().as_millis();
        let got = String::from_utf8_lossy(&got).into_owned();
        assert!(
            got.contains(answer) && got.is_empty() == answer.is_empty(),
            "{name}: {got}"
        );
        assert!((250..2_500).contains(&took), "{name}: {took} ms");
    }
    assert_eq!(app.count(), 0);
    // A byte now and then does not buy time.
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    let start = std::time::Instant::now();
    let mut cut = false;
    while start.elapsed() < LIMIT && !cut {
        cut = client.write_all(b"G").await.is_err();
        let mut byte = [0; 64];
        let read = tokio::time::timeout(std::time::Duration::from_millis(50), client.read(&mut byte)).await;
        cut |= matches!(read, Ok(Ok(_) | Err(_)));
    }
    assert!(start.elapsed().as_millis() < 2_000, "cut after {:?}", start.elapsed());
}
