//! HTTP/2 clients that mean harm, or can't keep up: bounded, cut in time, and nobody else is harmed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use model::AppConfig;
use model::config::Timeouts;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::http2_support::*;
use crate::support::*;

const ENHANCE_YOUR_CALM: u32 = 11;

/// An app that never answers, and how many requests are at it.
async fn never() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let open = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&open);
    let (at, _) = upstream(move |mut stream, _| {
        let open = Arc::clone(&counted);
        async move {
            open.fetch_add(1, Ordering::SeqCst);
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    (at, open)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flood_ends_within_a_second() {
    let (hung, open) = never().await;
    let app = Recorder::start("app").await;
    let gateway = Gateway::with(config(), &[("hello", "1", "a", hung), ("good", "1", "b", app.at)], &[]).await;
    let mut good = Client::open(gateway.http).await;
    let ask = |id: u32| frame(HEADERS, WHOLE, id, &get("/", &[]));
    let repeat = |one: Vec<u8>, times: usize| one.repeat(times);
    let upload = frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[]));
    let each = |make: &dyn Fn(u32) -> Vec<u8>| (0..2_000).flat_map(|i| make(2 * i + 1)).collect::<Vec<u8>>();
    let floods: Vec<(&str, Vec<u8>)> = vec![
        (
            "rapid reset (CVE-2023-44487)",
            each(&|id| [ask(id), frame(RST_STREAM, 0, id, &[0, 0, 0, 8])].concat()),
        ),
        (
            "made you reset (CVE-2025-8671)",
            each(&|id| {
                let fields = request("POST", "/", &[("content-length", "1")]);
                [
                    frame(HEADERS, END_HEADERS, id, &fields),
                    frame(DATA, END_STREAM, id, b"xx"),
                ]
                .concat()
            }),
        ),
        ("PING (CVE-2019-9512)", repeat(frame(PING, 0, 0, &[0; 8]), 5_000)),
        (
            "SETTINGS (CVE-2019-9515)",
            repeat(frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]), 5_000),
        ),
        (
            "PRIORITY (CVE-2019-9513)",
            repeat(frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1]), 20_000),
        ),
        (
            "WINDOW_UPDATE",
            repeat(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), 20_000),
        ),
        (
            "empty DATA (CVE-2019-9518)",
            [upload.clone(), repeat(frame(DATA, 0, 1, b""), 20_000)].concat(),
        ),
        ("frames unknown", repeat(frame(0xfe, 0, 0, b"x"), 20_000)),
        (
            "CONTINUATION (CVE-2024-27316)",
            [
                frame(HEADERS, 0, 1, &block(&[("x-a", "b")])),
                repeat(frame(CONTINUATION, 0, 1, &block(&[("x-a", "b")])), 20_000),
            ]
            .concat(),
        ),
        (
            // The table filled once, then a byte for each 4 KB.
            "a header block bomb",
            [
                frame(
                    HEADERS,
                    0,
                    1,
                    &[&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'v'; 4_000]].concat(),
                ),
                repeat(frame(CONTINUATION, 0, 1, &[0xbe; 4_000]), 5),
            ]
            .concat(),
        ),
    ];
    let count = floods.len();
    for (name, bytes) in floods {
        let start = Instant::now();
        let raw = Raw::open(gateway.http).await;
        let (mut read, mut write) = raw.split();
        // The flooder goes on for as long as it can.
        let flooding = tokio::spawn(async move { while write.write_all(&bytes).await.is_ok() {} });
        let code = read.last_words().await;
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{name}: {:?}",
            start.elapsed()
        );
        assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{name}");
        let asked = Instant::now();
        assert_eq!(good.get("good.localhost", "/").await.status(), 200, "{name}");
        assert!(asked.elapsed() < Duration::from_secs(1), "{name}");
        soon(flooding).await.unwrap();
        until("its requests are given up", || open.load(Ordering::SeqCst) == 0).await;
    }
    assert_eq!(gateway.metric("caas_gateway_http2_floods_total").await as usize, count);
    assert_eq!(gateway.metric("caas_gateway_ejections_total").await as u64, 0);
}

fn impatient() -> AppConfig {
    AppConfig {
        timeouts: Timeouts {
            idle_s: 1,
            ..Timeouts::default()
        },
        ..AppConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_cut_and_holds_little() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let (at, _) = upstream(move |mut stream, _| {
        let sent = Arc::clone(&counted);
        async move {
            let mut buffer = Vec::new();
            let _ = read_request(&mut stream, &mut buffer).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
                .await;
            while stream.write_all(&[0; 65_536]).await.is_ok() {
                sent.fetch_add(65_536, Ordering::SeqCst);
            }
        }
    })
    .await;
    let app = Recorder::start("app").await;
    let entries = [("hello", "1", "a", at), ("good", "1", "b", app.at)];
    let gateway = Gateway::with(config(), &entries, &[("hello", impatient())]).await;
    let mut raw = Raw::open(gateway.http).await;
    // No window at all for answers.
    raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    let start = Instant::now();
    for id in [1, 3, 5, 7] {
        raw.send(&frame(HEADERS, WHOLE, id, &get("/", &[]))).await;
    }
    for _ in 0..4 {
        let cut = raw.find(|f| matches!(f.kind, RST_STREAM | GOAWAY)).await.expect("cut");
        assert_eq!((cut.kind, cut.code()), (RST_STREAM, 8));
    }
    let took = start.elapsed();
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(6)).contains(&took),
        "{took:?}"
    );
    // What the four had sent lies in sockets and a few buffers: for each the kernel's two, and ours.
    let most = 4 * 10_000_000;
    assert!(sent.load(Ordering::SeqCst) < most, "{}", sent.load(Ordering::SeqCst));
    assert_eq!(gateway.get("good.localhost", "/").await.status, 200);
    assert_eq!(
        gateway.metric("caas_gateway_requests_in_flight{app=\"hello\"}").await as u64,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_waits_for_the_app() {
    // Reads the head and then nothing.
    let (at, _) = upstream(|mut stream, _| async move {
        let _ = stream.readable().await;
        tokio::time::sleep(LIMIT * 2).await;
        let _ = stream.shutdown().await;
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let mut client = Client::open(gateway.http).await;
    let request = Request::post("http://hello.localhost/").body(()).unwrap();
    let (_response, mut send) = client.start(request, false).await;
    let mut sent = 0usize;
    let piece = Bytes::from(vec![0; 65_536]);
    while tokio::time::timeout(Duration::from_millis(500), upload(&mut send, piece.clone(), false))
        .await
        .is_ok()
    {
        sent += piece.len();
        assert!(sent < 20_000_000, "the gateway takes more than it can pass on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_have_their_time() {
    let (at, _) = never().await;
    let hasty = gateway::Config {
        body_idle_ms: 300,
        ..config()
    };
    let gateway = Gateway::hello_with(hasty, &[at], AppConfig::default()).await;
    let mut client = Client::open(gateway.http).await;
    let request = Request::post("http://hello.localhost/").body(()).unwrap();
    let (response, mut send) = client.start(request, false).await;
    // Who goes on sending is waited for.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        send.send_data(Bytes::from_static(b"x"), false).unwrap();
    }
    let answer = finish(response).await.unwrap();
    assert_eq!(
        (answer.status(), answer.header("x-caas-reason")),
        (408, "request_timeout")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_silent_is_not_waited_for() {
    let (at, open) = never().await;
    let app = AppConfig {
        timeouts: Timeouts {
            response_s: 1,
            ..Timeouts::default()
        },
        ..AppConfig::default()
    };
    let gateway = Gateway::hello_with(config(), &[at], app).await;
    let mut client = Client::open(gateway.http).await;
    let answer = client.get("hello.localhost", "/").await;
    assert_eq!(
        (answer.status(), answer.header("x-caas-reason")),
        (504, "upstream_timeout")
    );
    assert!(!answer.body.is_empty());
    until("given up there", || open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_requests_end() {
    let app = Recorder::start("app").await;
    let hasty = gateway::Config {
        header_timeout_ms: 300,
        idle_timeout_s: 1,
        ..config()
    };
    let gateway = Gateway::hello_with(hasty, &[app.at], AppConfig::default()).await;
    // Nothing but a preface, and half of one.
    let start = Instant::now();
    let mut raw = Raw::open(gateway.http).await;
    assert_eq!(raw.last_words().await, Some(0));
    let mut half = Raw::silent(gateway.http).await;
    half.send(&PREFACE[..10]).await;
    assert_eq!(half.last_words().await, None);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    // A header block that does not end, however often something else comes.
    let mut raw = Raw::open(gateway.http).await;
    raw.send(&frame(HEADERS, WHOLE, 1, &get("/", &[]))).await;
    raw.send(&frame(HEADERS, END_STREAM, 3, b"")).await;
    assert_eq!(raw.last_words().await, Some(ENHANCE_YOUR_CALM));
    // Idle after a request.
    let start = Instant::now();
    let mut client = Client::open(gateway.http).await;
    assert_eq!(client.get("hello.localhost", "/").await.status(), 200);
    soon(client.task).await.unwrap().expect("a clean end");
    let took = start.elapsed();
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(5)).contains(&took),
        "{took:?}"
    );
    let deadline = Instant::now() + LIMIT;
    while gateway.metric("caas_gateway_http2_connections").await > 0.0 {
        assert!(Instant::now() < deadline, "all are closed");
    }
}
