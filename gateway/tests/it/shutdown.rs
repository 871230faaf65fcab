//! Stopping without losing anybody's request.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn who_has_just_connected_is_answered() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(TcpStream::connect(gateway.http).await.unwrap());
    }
    let deadline = Instant::now() + LIMIT;
    while gateway.metric("caas_gateway_connections").await < 2.0 {
        assert!(Instant::now() < deadline, "both are open");
    }
    gateway.shutdown.cancel();
    let closed = Instant::now() + LIMIT;
    while TcpStream::connect(gateway.http).await.is_ok() {
        assert!(Instant::now() < closed, "the port closes");
    }
    let (mut asks, mut silent) = (clients.remove(0), clients.remove(0));
    let request = b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n";
    asks.write_all(request).await.unwrap();
    let mut got = Vec::new();
    tokio::time::timeout(LIMIT, asks.read_to_end(&mut got))
        .await
        .unwrap()
        .unwrap();
    let answer = Answer::parse(&got);
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    // Who says nothing holds nobody up.
    let begun = Instant::now();
    got.clear();
    tokio::time::timeout(LIMIT, silent.read_to_end(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert!(got.is_empty() && begun.elapsed() < Duration::from_secs(3));
    tokio::time::timeout(LIMIT, gateway.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn open_requests_finish_and_idle_connections_close() {
    let (slow, connections) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")
            .await;
    })
    .await;
    let app = Recorder::start("app").await;
    let gateway = Gateway::with(config(), &[("slow", "1", "a", slow), ("hello", "1", "b", app.at)], &[]).await;
    let mut idle = TcpStream::connect(gateway.http).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut idle, "\r\n\r\napp").await;
    let mut busy = TcpStream::connect(gateway.http).await.unwrap();
    busy.write_all(b"GET / HTTP/1.1\r\nHost: slow.localhost\r\n\r\n")
        .await
        .unwrap();
    until("the request is at the app", || {
        connections.load(std::sync::atomic::Ordering::SeqCst) == 1
    })
    .await;

    let start = Instant::now();
    gateway.shutdown.cancel();
    let mut rest = Vec::new();
    tokio::time::timeout(LIMIT, idle.read_to_end(&mut rest))
        .await
        .expect("closed")
        .unwrap();
    assert!(rest.is_empty());
    let mut got = Vec::new();
    tokio::time::timeout(LIMIT, busy.read_to_end(&mut got))
        .await
        .expect("answered")
        .unwrap();
    let answer = Answer::parse(&got);
    assert_eq!(
        (answer.status, answer.body.as_str(), answer.header("connection")),
        (200, "late", Some("close"))
    );
    tokio::time::timeout(LIMIT, gateway.task)
        .await
        .expect("ended")
        .unwrap()
        .expect("cleanly");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(TcpStream::connect(gateway.http).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn not_ready_at_once_and_accepting_for_a_while() {
    let app = Recorder::start("app").await;
    let slow_to_stop = gateway::Config {
        drain_delay_s: 1,
        ..config()
    };
    let gateway = Gateway::hello_with(slow_to_stop, &[app.at], model::AppConfig::default()).await;
    assert_eq!(gateway.admin("/ready").await.status, 200);
    gateway.shutdown.cancel();
    let deadline = Instant::now() + Duration::from_millis(800);
    while gateway.admin("/ready").await.status != 503 {
        assert!(Instant::now() < deadline, "not ready at once");
    }
    assert_eq!(gateway.get("hello.localhost", "/").await.status, 200, "still accepting");
    assert_eq!(gateway.admin("/live").await.status, 200);
    tokio::time::timeout(LIMIT, gateway.task)
        .await
        .expect("ended")
        .unwrap()
        .expect("cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drain_time_is_kept() {
    let (never, connections) = upstream(|mut stream, _| async move {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let impatient = gateway::Config {
        drain_timeout_s: 1,
        ..config()
    };
    let gateway = Gateway::hello_with(impatient, &[never], model::AppConfig::default()).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
        .await
        .unwrap();
    until("the request is at the app", || {
        connections.load(std::sync::atomic::Ordering::SeqCst) == 1
    })
    .await;
    let start = Instant::now();
    gateway.shutdown.cancel();
    tokio::time::timeout(LIMIT, gateway.task)
        .await
        .expect("ended")
        .unwrap()
        .expect("cleanly");
    let took = start.elapsed();
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(4)).contains(&took),
        "{took:?}"
    );
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(LIMIT, client.read_to_end(&mut rest))
        .await
        .expect("closed");
}
