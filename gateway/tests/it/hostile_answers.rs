//! Answers that are none, that do not end, or that try to reach somebody else.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;

const NEXT: &str = "GET /smuggled HTTP/1.1\r\nHost: hello.localhost\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_none() {
    for (name, bytes) in [
        ("ssh", &b"SSH-2.0-OpenSSH_9.2\r\n"[..]),
        ("status 1000", b"HTTP/1.1 1000 X\r\n\r\n"),
        ("no status", b"HTTP/1.1\r\n\r\n"),
        (
            "nul in a value",
            b"HTTP/1.1 200 OK\r\nx-a: a\0b\r\ncontent-length: 0\r\n\r\n",
        ),
        ("bare cr", b"HTTP/1.1 200 OK\r\nx-a: a\rb\r\ncontent-length: 0\r\n\r\n"),
        (
            "space before colon",
            b"HTTP/1.1 200 OK\r\nx-a : a\r\ncontent-length: 0\r\n\r\n",
        ),
        (
            "lengths differ",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        ),
        ("length is no number", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nab"),
        (
            "tunnel nobody asked for",
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nframes",
        ),
    ] {
        let (at, _) = answers(bytes).await;
        let gateway = Gateway::hello(&[at]).await;
        let answer = gateway.get("hello.localhost", "/").await;
        assert_eq!(answer.status, 502, "{name}: {}", answer.head);
        assert!(!answer.reason().is_empty() && !answer.body.contains("frames"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_without_end_are_cut_in_bounded_memory() {
    let (at, _) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while stream
            .write_all(b"x-endless: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n")
            .await
            .is_ok()
        {}
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    assert_eq!(gateway.get("hello.localhost", "/").await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_answers_never_end_cleanly() {
    let (short, _) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc")
            .await;
    })
    .await;
    let (unended, _) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .await;
    })
    .await;
    let gateway = Gateway::with(
        config(),
        &[("short", "1", "a", short), ("unended", "1", "b", unended)],
        &[],
    )
    .await;
    let answer = gateway.get("short.localhost", "/").await;
    assert_eq!(
        (answer.status, answer.header("content-length"), answer.body.as_str()),
        (200, Some("100"), "abc")
    );
    let answer = gateway.get("unended.localhost", "/").await;
    assert_eq!(answer.status, 200);
    assert!(!answer.body.contains("0\r\n\r\n"), "{:?}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_anothers_answer() {
    // Each answer is followed by a second one that nobody asked for, or has a body where there can be none.
    for (name, poison) in [
        (
            "two answers",
            &b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngoodHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"[..],
        ),
        (
            "204 with body",
            b"HTTP/1.1 204 No Content\r\ncontent-length: 6\r\n\r\npoison",
        ),
        (
            "304 with body",
            b"HTTP/1.1 304 Not Modified\r\ncontent-length: 6\r\n\r\npoison",
        ),
        (
            "more than the length",
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngoodpoison",
        ),
    ] {
        let (at, connections) = answers(poison).await;
        let gateway = std::sync::Arc::new(Gateway::hello(&[at]).await);
        let mut clients = Vec::new();
        for _ in 0..20 {
            let gateway = std::sync::Arc::clone(&gateway);
            clients.push(tokio::spawn(async move {
                for _ in 0..5 {
                    let answer = gateway.get("hello.localhost", "/").await;
                    assert!(!answer.body.contains("poison"), "{}", answer.body);
                    assert!([200, 204, 304].contains(&answer.status), "{}", answer.head);
                }
            }));
        }
        for client in clients {
            client.await.unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        assert!(
            connections.load(Ordering::SeqCst) >= 100,
            "{name}: no connection is used again"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_does_not_turn_the_body_into_a_request() {
    let (at, _) = upstream(|mut stream, _| async move {
        let mut byte = [0; 1];
        // Answers when the head has hardly begun.
        let _ = stream.read(&mut byte).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly")
            .await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let app = Recorder::start("app").await;
    let gateway = Gateway::with(config(), &[("early", "1", "a", at), ("hello", "1", "b", app.at)], &[]).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    let length = NEXT.len() + 100_000;
    let head = format!("POST / HTTP/1.1\r\nHost: early.localhost\r\nContent-Length: {length}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let answer = read_until(&mut client, "early").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let _ = client.write_all(NEXT.as_bytes()).await;
    let mut rest = Vec::new();
    let short = std::time::Duration::from_secs(1);
    let _ = tokio::time::timeout(short, client.read_to_end(&mut rest)).await;
    assert_eq!(
        String::from_utf8_lossy(&rest),
        "",
        "what follows is body, never a request"
    );
    assert_eq!(app.count(), 0);
}
