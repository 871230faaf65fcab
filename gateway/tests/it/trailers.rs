//! Trailers both ways, and answers that do not wait for the body.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_both_sides_arrive_cleaned() {
    let (at, _) = upstream(|mut stream, _| async move {
        let request = read_until(&mut stream, ": 7\r\n\r\n").await;
        let trailers = request.split("\r\n0\r\n").nth(1).unwrap_or_default().replace("\r\n", "|");
        let head = request.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
        assert!(head.contains("te: trailers") && head.contains("connection: te"), "{head}");
        let answer = format!(
            "HTTP/1.1 200 OK\r\ntrailer: x-sum, x-forwarded-for\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{trailers}\r\n0\r\nx-sum: 42\r\nx-forwarded-for: 6.6.6.6\r\nx-caas-reason: forged\r\n\r\n",
            trailers.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let answer = gateway
        .send(
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTE: trailers\r\nConnection: te, close\r\nTrailer: x-check, x-forwarded-for\r\n\
             Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Check: 7\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n",
        )
        .await;
    assert_eq!(answer.status, 200, "{}", answer.head);
    let body = answer.body.to_ascii_lowercase();
    assert!(body.contains("x-check: 7"), "the request's arrived: {body}");
    assert!(body.ends_with("0\r\nx-sum: 42\r\n\r\n"), "the answer's arrived: {body}");
    assert!(!body.contains("6.6.6.6") && !body.contains("forged"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_wait_for_the_body_arrives() {
    let (at, _) = upstream(|mut stream, _| async move {
        let _ = read_until(&mut stream, "\r\n\r\n").await;
        let _ = stream
            .write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 4\r\nconnection: close\r\n\r\nwho?")
            .await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    for expect in ["", "Expect: 100-continue\r\n"] {
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nHost: hello.localhost\r\n{expect}Content-Length: 50000000\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let got = tokio::time::timeout(Duration::from_secs(5), read_until(&mut client, "who?"))
            .await
            .unwrap();
        // Who waits may be told to go on before the app has spoken, as with nginx and Envoy.
        assert!(
            got.contains("HTTP/1.1 401 Unauthorized") && got.ends_with("who?"),
            "{got}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_all_before_reading_is_not_held_up_by_the_answer() {
    const LENGTH: usize = 24 * 1024 * 1024;
    // Both directions are more than sockets hold.
    let (at, _) = upstream(|mut stream, _| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        let mut read = head.len() - head.find("\r\n\r\n").map_or(0, |end| end + 4);
        let (mut from, mut to) = stream.into_split();
        let answers = tokio::spawn(async move {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n");
            let _ = to.write_all(head.as_bytes()).await;
            let _ = to.write_all(&vec![b'a'; LENGTH]).await;
            to
        });
        let mut buffer = vec![0; 64 * 1024];
        while read < LENGTH {
            match from.read(&mut buffer).await {
                Ok(n @ 1..) => read += n,
                _ => return,
            }
        }
        let _ = answers.await;
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    let exchange = async {
        let head = format!("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: {LENGTH}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&vec![b'q'; LENGTH]).await.unwrap();
        read_until(&mut client, "\r\n\r\n").await;
        let (mut came, mut buffer) = (0, vec![0; 64 * 1024]);
        // What was read along with the head does not matter here.
        while came < LENGTH - buffer.len() {
            came += client.read(&mut buffer).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), exchange).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_a_request_that_breaks_off_never_ends_cleanly() {
    let (at, _) = upstream(|mut stream, _| async move {
        let _ = read_until(&mut stream, "\r\n\r\n").await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nbegun").await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        // Would be the clean end of the answer.
        drop(stream);
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let begun = read_until(&mut client, "begun").await;
    assert!(begun.starts_with("HTTP/1.1 200"), "{begun}");
    client.write_all(b"xyz\r\n").await.unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut rest)).await;
    assert!(ended.is_ok() && !rest.ends_with(b"0\r\n\r\n"), "{rest:?}");
}
