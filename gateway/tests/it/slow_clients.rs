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
    let long = format!(
        "GET / HTTP/1.1\r\nHost: hello.localhost\r\nX-A: {}\r\nno field\r\n",
        "a".repeat(8_300)
    );
    for (name, sent, answer) in [
        ("no byte", "", ""),
        ("half a long head that is none", long.as_str(), "408"),
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

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_trickle_are_cut() {
    let app = Recorder::start("app").await;
    let strict = gateway::Config {
        min_body_grace_ms: 300,
        ..config()
    };
    let gateway = Gateway::hello_with(strict, &[app.at], model::AppConfig::default()).await;
    for framing in ["Content-Length: 5000", "Transfer-Encoding: chunked"] {
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nHost: hello.localhost\r\n{framing}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let start = std::time::Instant::now();
        let mut got = Vec::new();
        // 20 bytes/s of chunks or of what looks like some.
        while start.elapsed() < LIMIT && got.is_empty() {
            let _ = client.write_all(b"1\r\na\r\n").await;
            let pause = std::time::Duration::from_millis(300);
            let _ = tokio::time::timeout(pause, client.read_buf(&mut got)).await;
        }
        let _ = tokio::time::timeout(LIMIT, client.read_to_end(&mut got)).await;
        let answer = Answer::parse(&got);
        assert_eq!((answer.status, answer.reason()), (408, "request_timeout"), "{framing}");
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(start.elapsed().as_millis() < 3_000, "cut after {:?}", start.elapsed());
    }
    // By HTTP/2 the stream ends, the connection does not.
    let mut client = crate::http2_support::Client::open(gateway.http).await;
    let request = http::Request::post("http://hello.localhost/").body(()).unwrap();
    let (response, mut send) = client.start(request, false).await;
    let trickle = async {
        while send.send_data("a".into(), false).is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let (answer, ()) = tokio::join!(crate::http2_support::finish(response), trickle);
    // What the app has of it it does not answer.
    assert_eq!(answer.unwrap().status(), 408);
    assert_eq!(app.count(), 0);
    assert_eq!(client.get("hello.localhost", "/").await.status(), 200);
    // Slow, but not that slow: 20 pieces of 100 bytes each 50 ms.
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\nContent-Length: 2000\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..20 {
        client.write_all(&[b'a'; 100]).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(read_until(&mut client, "app").await.starts_with("HTTP/1.1 200"));
    assert_eq!(app.last().body.len(), 2_000);
    assert!(gateway.admin("/routes").await.body.contains("\"failures\":0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_takes_are_cut() {
    const LENGTH: usize = 30_000_000;
    let (at, _) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        while let Ok(Some(_)) = read_request(&mut stream, &mut buffer).await {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            if stream.write_all(&vec![b'a'; LENGTH]).await.is_err() {
                return;
            }
        }
    })
    .await;
    let app = model::AppConfig {
        timeouts: model::config::Timeouts {
            idle_s: 1,
            ..Default::default()
        },
        ..Default::default()
    };
    let gateway = Gateway::hello_with(config(), &[at], app).await;
    let ask = b"GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n";
    // Nothing taken after the head.
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    client.write_all(ask).await.unwrap();
    let start = std::time::Instant::now();
    let mut got = vec![0; 100];
    client.read_exact(&mut got).await.unwrap();
    while gateway.metric("caas_gateway_requests_in_flight{app=\"hello\"}").await > 0.0 {
        assert!(start.elapsed() < LIMIT, "the answer is given up");
    }
    assert!(start.elapsed().as_millis() >= 900, "{:?}", start.elapsed());
    let _ = tokio::time::timeout(LIMIT, client.read_to_end(&mut got))
        .await
        .expect("closed");
    assert!(got.len() < LENGTH, "{} bytes", got.len());
    // Slowly, but on and on: three times as long as a pause may be.
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    client.write_all(ask).await.unwrap();
    let start = std::time::Instant::now();
    let (mut taken, mut buffer) = (0, vec![0; 512 * 1_024]);
    while let Ok(n @ 1..) = client.read(&mut buffer).await {
        taken += n;
        if start.elapsed().as_secs() < 3 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
    assert!(taken > LENGTH, "{taken} bytes");
    assert!(gateway.admin("/routes").await.body.contains("\"failures\":0"));
}
