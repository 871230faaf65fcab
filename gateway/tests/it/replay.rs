//! What is sent again when an endpoint fails, and what never is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;

/// Lets the stream end with a reset.
pub(crate) fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Reads and executes POSTs whose body is their name, failing in every way at random: `executed` counts each name.
async fn failing_at_random(executed: Arc<Mutex<HashMap<String, u32>>>) -> std::net::SocketAddr {
    let (at, _) = upstream(move |mut stream, _| {
        let executed = Arc::clone(&executed);
        async move {
            if rand::random_ratio(1, 50) {
                return reset(&stream);
            }
            let mut buffer = Vec::new();
            loop {
                if rand::random_ratio(1, 100) {
                    // After a part of the request.
                    let mut some = vec![0; rand::random_range(1..200)];
                    let _ = stream.read(&mut some).await;
                    return reset(&stream);
                }
                let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await else {
                    return;
                };
                let name = String::from_utf8_lossy(&request.body).into_owned();
                *executed.lock().unwrap().entry(name.clone()).or_default() += 1;
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                match rand::random_range(0..100) {
                    // Before the answer, within it, right after it, and a moment after it.
                    0 => return reset(&stream),
                    1 => {
                        let _ = stream
                            .write_all(&answer.as_bytes()[..rand::random_range(1..answer.len())])
                            .await;
                        return reset(&stream);
                    }
                    2..5 => {
                        let _ = stream.write_all(answer.as_bytes()).await;
                        return;
                    }
                    5..8 => {
                        let _ = stream.write_all(answer.as_bytes()).await;
                        tokio::time::sleep(Duration::from_micros(rand::random_range(1..2_000))).await;
                        return reset(&stream);
                    }
                    _ => {
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            }
        }
    })
    .await;
    at
}

/// The next answer on a connection; nothing when the connection has ended before it did.
async fn answer_on(stream: &mut TcpStream) -> Option<Answer> {
    let mut got = Vec::new();
    let mut chunk = [0; 4_096];
    loop {
        if let Some(end) = got.windows(4).position(|w| w == b"\r\n\r\n") {
            let answer = Answer::parse(&got);
            let length: usize = answer.header("content-length")?.parse().ok()?;
            if got.len() >= end + 4 + length {
                return Some(answer);
            }
        }
        match tokio::time::timeout(LIMIT, stream.read(&mut chunk)).await {
            Ok(Ok(n @ 1..)) => got.extend_from_slice(&chunk[..n]),
            _ => return None,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_posts_and_none_runs_twice() {
    const CLIENTS: usize = 8;
    const EACH: usize = 1_250;
    let executed = Arc::new(Mutex::new(HashMap::new()));
    let at = failing_at_random(Arc::clone(&executed)).await;
    let gateway = Arc::new(Gateway::hello(&[at]).await);
    let mut clients = Vec::new();
    for c in 0..CLIENTS {
        let gateway = Arc::clone(&gateway);
        clients.push(tokio::spawn(async move {
            let mut stream = TcpStream::connect(gateway.http).await.unwrap();
            let mut answered = Vec::new();
            for i in 0..EACH {
                let name = format!("{c}-{i}-{}", "x".repeat(i % 50));
                let post = format!(
                    "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: {}\r\n\r\n{name}",
                    name.len()
                );
                let sent = stream.write_all(post.as_bytes()).await;
                match answer_on(&mut stream).await {
                    Some(answer) if answer.status == 200 => {
                        assert_eq!(answer.body, name, "its own answer");
                        answered.push(name);
                    }
                    Some(answer) => assert_eq!(answer.status, 502, "{}", answer.head),
                    None => {
                        drop(sent);
                        stream = TcpStream::connect(gateway.http).await.unwrap();
                    }
                }
            }
            answered
        }));
    }
    let mut answered = Vec::new();
    for client in clients {
        answered.extend(client.await.unwrap());
    }
    let executed = executed.lock().unwrap();
    let twice: Vec<_> = executed.iter().filter(|(_, n)| **n > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert!(answered.iter().all(|name| executed.get(name) == Some(&1)));
    // Resets that were certain to cost an answer: some 4 in 100.
    assert!(
        answered.len() > CLIENTS * EACH * 90 / 100,
        "{} answered",
        answered.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_on_connections_that_were_closed_meanwhile() {
    // Closes every connection right after its third answer, without having said so.
    let (at, connections) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        for _ in 0..3 {
            let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await else {
                return;
            };
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", request.body.len());
            let _ = stream.write_all(&[head.as_bytes(), &request.body].concat()).await;
        }
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    for i in 0..600 {
        let name = format!("{i:05}");
        let post = format!("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5\r\n\r\n{name}");
        client.write_all(post.as_bytes()).await.unwrap();
        let answer = answer_on(&mut client).await.expect("an answer");
        assert_eq!((answer.status, &answer.body), (200, &name), "{i}: {}", answer.head);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_sent_again_when_that_is_safe_and_they_are_small() {
    let heard = Arc::new(AtomicUsize::new(0));
    let heard2 = Arc::clone(&heard);
    let (dead, _) = upstream(move |mut stream, _| {
        let heard = Arc::clone(&heard2);
        async move {
            if let Ok(Some(_)) = read_request(&mut stream, &mut Vec::new()).await {
                heard.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let app = Recorder::start("alive").await;
    for (key, size, chunk, status) in [
        ("Idempotency-Key: 1\r\n", 3, 0, 200),
        ("Idempotency-Key: 1\r\n", 60_000, 0, 200),
        ("Idempotency-Key: 1\r\n", 60_000, 40_000, 200),
        ("Idempotency-Key: 1\r\n", 20_000, 1, 200),
        ("Idempotency-Key: 1\r\n", 200_000, 0, 502),
        ("", 3, 0, 502),
    ] {
        // Both orders of the turn: at least one request meets the dead one first.
        let gateway = Gateway::hello(&[dead, app.at]).await;
        let body: String = (0..size).map(|i| char::from(b'a' + (i % 23) as u8)).collect();
        let framed = if chunk > 0 {
            let text = |part: &[u8]| format!("{:x}\r\n{}\r\n", part.len(), String::from_utf8_lossy(part));
            let chunks: String = body.as_bytes().chunks(chunk).map(text).collect();
            format!("Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
        } else {
            format!("Content-Length: {size}\r\n\r\n{body}")
        };
        let request = format!("PUT / HTTP/1.1\r\nHost: hello.localhost\r\n{key}Connection: close\r\n{framed}");
        let (before, mut seen) = (heard.load(Ordering::SeqCst), Vec::new());
        for _ in 0..2 {
            let answer = gateway.send(&request).await;
            seen.push(answer.status);
            if answer.status == 200 {
                assert_eq!(app.last().body, body.as_bytes(), "the whole body arrived");
            }
        }
        assert_eq!(heard.load(Ordering::SeqCst) - before, 1, "the dead one is asked once");
        seen.sort_unstable();
        assert_eq!(seen, [200, status], "{key:?} with {size} bytes in chunks of {chunk}");
    }
}
