//! Apps whose versions speak different kinds of HTTP at the same time: each instance is spoken to in what its release speaks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use http::HeaderMap;
use model::AppConfig;
use model::registry::RegistryChange;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::h2c::{body_of, say, streams};
use crate::h2c_sockets::{HANDSHAKE, app};
use crate::support::*;

/// An app's configuration as registry-sync publishes it.
fn read(text: &str) -> AppConfig {
    serde_json::from_str(text).unwrap()
}

/// Version 1 speaks HTTP/1.1, version 2 HTTP/2; the app is at version 1.
const AT_1: &str = r#"{"protocol":"http","protocols":{"2":"h2c"}}"#;
/// It is at version 2.
const AT_2: &str = r#"{"protocol":"h2c","protocols":{"1":"http"}}"#;

fn configure(text: &str) -> RegistryChange {
    RegistryChange::Config("hello".parse().unwrap(), read(text))
}

/// An app that speaks HTTP/2 and says `two` and the length of what it got.
async fn two() -> (SocketAddr, Arc<Mutex<Vec<HeaderMap>>>) {
    let heads: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
    let heads2 = Arc::clone(&heads);
    let (at, _) = streams(100, move |_, _, request, mut respond| {
        let heads = Arc::clone(&heads2);
        async move {
            let (parts, body) = request.into_parts();
            heads.lock().unwrap().push(parts.headers);
            let length = body_of(body).await.len();
            say(&mut respond, &format!("two {length}"));
        }
    })
    .await;
    (at, heads)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_version_is_asked_in_its_own_protocol() {
    let one = Recorder::start("one").await;
    let (two, heads) = two().await;
    let entries = [("hello", "1", "c1", one.at), ("hello", "2", "c2", two)];
    for text in [AT_1, AT_2] {
        let gateway = Gateway::with(config(), &entries, &[("hello", read(text))]).await;
        let mut said = Vec::new();
        for _ in 0..4 {
            let answer = gateway.get("hello.localhost", "/").await;
            assert_eq!(answer.status, 200, "{text}: {}", answer.head);
            said.push(answer.body.starts_with("two"));
        }
        assert_eq!(said.iter().filter(|two| **two).count(), 2, "in turn");
        // A body of unknown length, which has to be announced in HTTP/1.1 and must not be in HTTP/2.
        for (host, wanted) in [("1--hello.localhost", "one"), ("2--hello.localhost", "two 3")] {
            let request = format!(
                "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            );
            let answer = gateway.send(&request).await;
            assert_eq!(answer.status, 200, "{}", answer.head);
            assert!(answer.body.starts_with(wanted), "{}", answer.body);
        }
        assert_eq!(one.last().header("transfer-encoding"), ["chunked"]);
        assert_eq!(one.last().body, b"abc");
        assert!(
            heads
                .lock()
                .unwrap()
                .iter()
                .all(|head| !head.contains_key("transfer-encoding"))
        );
        let told = gateway.admin("/endpoints?app=hello").await.body;
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let endpoints = told["apps"][0]["endpoints"].as_array().unwrap();
        let of = |version: &str| endpoints.iter().find(|e| e["version"] == version).unwrap()["protocol"].clone();
        assert_eq!((of("1"), of("2")), ("http".into(), "h2c".into()), "{told}");
    }
    assert!(one.junk.lock().unwrap().is_empty(), "{:?}", one.junk);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_rolls_from_one_protocol_to_the_other_and_back() {
    let one = Recorder::start("one").await;
    let (two, _) = two().await;
    let gateway = Arc::new(Gateway::with(config(), &[("hello", "1", "c1", one.at)], &[]).await);
    let ended = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (gateway, ended) = (Arc::clone(&gateway), Arc::clone(&ended));
            tokio::spawn(async move {
                let mut answered = 0;
                while !ended.load(Ordering::Relaxed) {
                    let answer = gateway.get("hello.localhost", "/").await;
                    assert_eq!(answer.status, 200, "{}", answer.head);
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    let mut revision = 1;
    let mut said = async |all: Vec<RegistryChange>| {
        revision += 1;
        gateway.tell(changes(revision, all), revision).await;
        for _ in 0..10 {
            assert_eq!(gateway.get("hello.localhost", "/").await.status, 200);
        }
    };
    for _ in 0..5 {
        // As registry-sync tells a deploy: first that it began, then instance by instance, at last that only the new ones are left.
        said(vec![configure(AT_2)]).await;
        said(vec![put("hello", "2", "c2", two)]).await;
        said(vec![remove("hello", "1", "c1")]).await;
        said(vec![configure(r#"{"protocol":"h2c"}"#)]).await;
        // And a rollback.
        said(vec![configure(AT_1)]).await;
        said(vec![put("hello", "1", "c1", one.at), remove("hello", "2", "c2")]).await;
        said(vec![configure("{}")]).await;
    }
    ended.store(true, Ordering::Relaxed);
    let mut answered = 0;
    for client in clients {
        answered += client.await.unwrap();
    }
    assert!(answered > 0 && one.junk.lock().unwrap().is_empty(), "{:?}", one.junk);
    let endless = gateway.metric("caas_gateway_retries_total").await;
    assert_eq!(endless as u64, 0, "nobody was asked in vain");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_the_other_protocol_is_asked_when_one_fails() {
    let (two, _) = two().await;
    let one = Recorder::start("one").await;
    let dead = refusing().await;
    for (entries, wanted) in [
        ([("hello", "1", "c1", dead), ("hello", "2", "c2", two)], "two 3"),
        ([("hello", "1", "c1", one.at), ("hello", "2", "c2", dead)], "one"),
    ] {
        let gateway = Gateway::with(config(), &entries, &[("hello", read(AT_2))]).await;
        for _ in 0..4 {
            let request =
                "POST / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
            let answer = gateway.send(request).await;
            assert_eq!(answer.status, 200, "{}", answer.head);
            assert!(answer.body.starts_with(wanted), "{}", answer.body);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_reach_both_in_their_own_way() {
    let (one, _) =
        answers(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhello").await;
    let (two, seen) = app(true, 200).await;
    let entries = [("hello", "1", "c1", one), ("hello", "2", "c2", two)];
    let gateway = Gateway::with(config(), &entries, &[("hello", read(AT_1))]).await;
    for version in ["1", "2"] {
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        let handshake = HANDSHAKE.replace("hello.localhost", &format!("{version}--hello.localhost"));
        client.write_all(handshake.as_bytes()).await.unwrap();
        let got = read_until(&mut client, "hello").await;
        assert!(got.starts_with("HTTP/1.1 101 ") && got.ends_with("hello"), "{got}");
    }
    let line = seen.lock().unwrap()[0].0.clone();
    assert!(line.starts_with("CONNECT "), "{line}");
    // Another upgrade has no form in HTTP/2; one of WebSocket without its key neither.
    for (host, upgrade, wanted) in [
        ("1--hello.localhost", "other", "bad_upgrade"),
        ("2--hello.localhost", "other", "no_upgrade"),
        ("2--hello.localhost", "websocket", "bad_handshake"),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: upgrade\r\nUpgrade: {upgrade}\r\n\r\n");
        let answer = gateway.send(&request).await;
        assert_eq!(answer.reason(), wanted, "{}", answer.head);
    }
}
