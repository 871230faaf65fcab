//! Interim answers on their way to clients that speak HTTP/1 (by HTTP/2: `http2::early_hints_come_early`).

use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::*;

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nX-Caas-Reason: forged\r\nConnection: x-b\r\nX-B: c\r\n\r\n";
const SEEN: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";
const OTHERS: &str = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";

/// Answers with hints, then with the path: at once for `/now`, in small pieces for `/pieces`, when it is told to for others.
async fn hinting(go: Arc<Notify>) -> std::net::SocketAddr {
    let serve = move |mut stream: TcpStream, _| {
        let go = Arc::clone(&go);
        async move {
            let mut buffer = Vec::new();
            while let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await {
                let path = request.line().split(' ').nth(1).unwrap_or_default().to_owned();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
                let whole = format!("{HINTS}{OTHERS}{answer}");
                match path.as_str() {
                    "/now" => drop(stream.write_all(whole.as_bytes()).await),
                    "/pieces" => {
                        for piece in whole.as_bytes().chunks(3) {
                            let _ = stream.write_all(piece).await;
                            let _ = stream.flush().await;
                            tokio::task::yield_now().await;
                        }
                    }
                    _ => {
                        let _ = stream.write_all(HINTS.as_bytes()).await;
                        go.notified().await;
                        let _ = stream.write_all(format!("{OTHERS}{answer}").as_bytes()).await;
                    }
                }
            }
        }
    };
    upstream(serve).await.0
}

fn ask(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
}

/// The answer to `path` without what differs.
fn whole(text: &str) -> Vec<String> {
    let lines = text.split("\r\n").filter(|l| !l.starts_with("date: "));
    lines.map(str::to_owned).collect()
}

fn wanted(path: &str, hints: bool) -> Vec<String> {
    let before = if hints {
        format!("{SEEN}HTTP/1.1 102 Processing\r\n\r\n")
    } else {
        String::new()
    };
    whole(&format!(
        "{before}HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}",
        path.len()
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_come_before_the_answer_is_there() {
    let go = Arc::new(Notify::new());
    let gateway = Gateway::hello(&[hinting(Arc::clone(&go)).await]).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    // Again and again on one connection.
    for _ in 0..3 {
        client.write_all(ask("/waits").as_bytes()).await.unwrap();
        let early = read_until(&mut client, "\r\n\r\n").await;
        assert_eq!(early, SEEN);
        go.notify_one();
        let rest = read_until(&mut client, "/waits").await;
        assert_eq!(whole(&format!("{early}{rest}")), wanted("/waits", true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_along_with_the_answer_stand_before_it() {
    let gateway = Gateway::hello(&[hinting(Arc::default()).await]).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    for path in ["/now", "/pieces", "/now", "/pieces"] {
        client.write_all(ask(path).as_bytes()).await.unwrap();
        assert_eq!(whole(&read_until(&mut client, path).await), wanted(path, true));
    }
    // HTTP/1.0 knows none (RFC 9110 15.2).
    for path in ["/now", "/pieces"] {
        let text = format!("GET {path} HTTP/1.0\r\nHost: hello.localhost\r\n\r\n");
        let got = String::from_utf8(exchange(gateway.http, text.as_bytes()).await).unwrap();
        assert!(got.contains(" 200 OK\r\n") && got.ends_with(path), "{got}");
        assert_eq!(got.matches("HTTP/1.").count(), 1, "{got}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_never_get_into_another_answer() {
    // Requests that come together, with answers of 300 kB between them that the client is slow to take.
    let (at, _) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        while let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await {
            let path = request.line().split(' ').nth(1).unwrap_or_default().to_owned();
            let body = path.repeat(300_000 / path.len());
            let answer = format!("{HINTS}HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    let paths: Vec<String> = (10..60).map(|i| format!("/{i}")).collect();
    let all: String = paths.iter().map(|p| ask(p)).collect();
    client.write_all(all.as_bytes()).await.unwrap();
    // What is not read yet fills the sockets.
    gateway.admin("/metrics").await;
    let mut got = read_until(&mut client, "\r\n\r\n").await;
    for path in &paths {
        let end = path.repeat(100_000);
        while !got.contains(&end) {
            let more = read_until(&mut client, path).await;
            assert!(!more.is_empty(), "{path}: {} bytes", got.len());
            got.push_str(&more);
        }
        let (before, after) = got.split_once(&end).unwrap();
        let head = before.strip_prefix(SEEN).unwrap_or(before);
        assert!(
            head.starts_with("HTTP/1.1 200 OK\r\n"),
            "{path}: {}",
            &head[..head.len().min(200)]
        );
        assert_eq!(head.matches("HTTP/1.1").count(), 1, "{path}");
        got = after.to_owned();
    }
    assert_eq!(got, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_before_it_sends_is_told_to_and_hinted() {
    let go = Arc::new(Notify::new());
    let gateway = Gateway::hello(&[hinting(Arc::clone(&go)).await]).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    let head = "POST /waits HTTP/1.1\r\nHost: hello.localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(
        read_until(&mut client, "\r\n\r\n").await,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    client.write_all(b"abc").await.unwrap();
    let early = read_until(&mut client, "\r\n\r\n").await;
    assert_eq!(early, SEEN);
    go.notify_one();
    let rest = read_until(&mut client, "/waits").await;
    assert_eq!(whole(&format!("{early}{rest}")), wanted("/waits", true));
}
