//! Endpoints that die, refuse, hang or lie, and what clients notice of it: nothing, where that is possible.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;

const POST: &str = "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";

/// Accepts and closes at once, as Docker's port proxy does for a dead app.
async fn accepting_for_the_dead() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    upstream(|stream, _| async move { drop(stream) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_dead_and_one_alive() {
    let app = Recorder::start("alive").await;
    let mut all = vec![app.at];
    for _ in 0..10 {
        all.push(refusing().await);
    }
    let gateway = Gateway::hello(&all).await;
    for _ in 0..30 {
        let start = Instant::now();
        assert_eq!(gateway.get("hello.localhost", "/").await.body, "alive");
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!(
            gateway.send(POST).await.status,
            200,
            "nothing was sent, so a POST is tried again too"
        );
    }
    let tried = gateway.metric("caas_gateway_upstream_connect_failures_total").await;
    assert!(tried <= 20.0, "the dead are left out: {tried} connects failed");
    let routes = gateway.admin("/routes?app=hello").await.body;
    assert_eq!(routes.matches("\"left_out\"").count(), 10, "{routes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_connection_proves_nothing() {
    let (dead, _) = accepting_for_the_dead().await;
    let app = Recorder::start("alive").await;
    let gateway = Gateway::hello(&[dead, app.at]).await;
    for _ in 0..20 {
        assert_eq!(gateway.get("hello.localhost", "/").await.body, "alive");
    }
    let routes = gateway.admin("/routes").await.body;
    assert_eq!(routes.matches("\"left_out\"").count(), 1, "{routes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_been_seen_is_not_sent_twice() {
    let heard = Arc::new(AtomicUsize::new(0));
    let heard2 = Arc::clone(&heard);
    let reads_and_closes = move |mut stream: TcpStream, _| {
        let heard = Arc::clone(&heard2);
        async move {
            let mut buffer = Vec::new();
            if let Ok(Some(_)) = read_request(&mut stream, &mut buffer).await {
                heard.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    let (one, _) = upstream(reads_and_closes.clone()).await;
    let (two, _) = upstream(reads_and_closes).await;
    let gateway = Gateway::hello(&[one, two]).await;
    let answer = gateway.send(POST).await;
    assert_eq!((answer.status, answer.reason()), (502, "upstream_closed"));
    assert_eq!(heard.load(Ordering::SeqCst), 1, "a POST is never repeated");
    let delete = "DELETE /x HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(gateway.send(delete).await.status, 502);
    assert_eq!(heard.load(Ordering::SeqCst), 2, "nor a DELETE");
    let keyed = "DELETE /x HTTP/1.1\r\nHost: hello.localhost\r\nIdempotency-Key: 1\r\nConnection: close\r\n\r\n";
    assert_eq!(gateway.send(keyed).await.status, 502);
    assert_eq!(heard.load(Ordering::SeqCst), 4, "with a key it is, once per endpoint");
    assert_eq!(gateway.get("hello.localhost", "/").await.status, 502);
    assert_eq!(heard.load(Ordering::SeqCst), 6, "a GET is repeated, once per endpoint");
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_that_die_cost_nobody_a_request() {
    // Closes each connection after a random number of milliseconds idle, around the time of its reuse.
    let (at, connections) = upstream(|mut stream, n| async move {
        let mut buffer = Vec::new();
        // A new connection may take its time on a busy machine; only kept ones are in the race.
        let mut patience = LIMIT;
        loop {
            match tokio::time::timeout(patience, read_request(&mut stream, &mut buffer)).await {
                Ok(Ok(Some(_))) => {
                    if stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await
                        .is_err()
                    {
                        return;
                    }
                    patience = Duration::from_millis(1 + (n as u64 * 7) % 5);
                }
                _ => return,
            }
        }
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    for i in 0..400u64 {
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
            .await
            .unwrap();
        let answer = read_until(&mut client, "\r\n\r\nok").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "request {i}: {answer}");
        tokio::time::sleep(Duration::from_millis(i % 6)).await;
    }
    assert!(connections.load(Ordering::SeqCst) > 20, "there were races to lose");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load() {
    // Three containers; one dies with its connections (reset) in the middle, and refuses from then on.
    let (a, b) = (Recorder::start("a").await, Recorder::start("b").await);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dying = listener.local_addr().unwrap();
    let container = tokio::spawn(async move {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            socket2::SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            tasks.spawn(async move {
                let mut buffer = Vec::new();
                while let Ok(Some(_)) = read_request(&mut stream, &mut buffer).await {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nc").await;
                }
            });
        }
    });
    let gateway = Arc::new(Gateway::hello(&[a.at, b.at, dying]).await);
    let done = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for _ in 0..8 {
        let (gateway, done) = (Arc::clone(&gateway), Arc::clone(&done));
        clients.push(tokio::spawn(async move {
            let mut client = TcpStream::connect(gateway.http).await.unwrap();
            let mut slowest = Duration::ZERO;
            for _ in 0..150 {
                let start = Instant::now();
                client
                    .write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
                    .await
                    .unwrap();
                let answer = read_until(&mut client, "\r\n\r\n").await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                slowest = slowest.max(start.elapsed());
                done.fetch_add(1, Ordering::SeqCst);
            }
            slowest
        }));
    }
    until("half of the requests", || done.load(Ordering::SeqCst) > 400).await;
    container.abort();
    for client in clients {
        let slowest = client.await.expect("no request failed");
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    }
    assert_eq!(done.load(Ordering::SeqCst), 1_200);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_never_count_against_an_endpoint() {
    let (slow, connections) = upstream(|mut stream, _| async move {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let gateway = Gateway::hello(&[slow]).await;
    for _ in 0..20 {
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
            .await
            .unwrap();
        let before = connections.load(Ordering::SeqCst);
        if before == 0 {
            until("the first arrives", || connections.load(Ordering::SeqCst) > 0).await;
        }
        drop(client);
    }
    let deadline = Instant::now() + LIMIT;
    while gateway
        .metric("caas_gateway_requests_total{app=\"hello\",class=\"aborted\"}")
        .await
        < 1.0
    {
        assert!(Instant::now() < deadline, "counted as aborted");
    }
    let routes = gateway.admin("/routes").await.body;
    assert!(routes.contains("\"failures\":0"), "{routes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_outside_the_allowed_networks_are_never_dialled() {
    let app = Recorder::start("app").await;
    let narrow = gateway::Config {
        endpoint_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
        ..config()
    };
    let gateway = Gateway::hello_with(narrow, &[app.at], model::AppConfig::default()).await;
    let answer = gateway.get("hello.localhost", "/").await;
    assert_eq!((answer.status, answer.reason()), (503, "no_endpoints"));
    assert_eq!(app.connections.load(Ordering::SeqCst), 0);
    assert_eq!(gateway.metric("caas_gateway_endpoints_refused_total").await as u64, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_stream_through() {
    let (at, _) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n")
            .await;
        let part = vec![b'x'; 100_000];
        for _ in 0..500 {
            let _ = stream.write_all(&part).await;
        }
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let got = exchange(
        gateway.http,
        b"GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n",
    )
    .await;
    let head = got.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    assert_eq!(got.len() - head, 50_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_at_an_endpoint_that_has_gone_is_asked_elsewhere() {
    // Takes one request, says nothing about it, and no connect gets through any more.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (taken, mut is_taken) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(listener);
        read_until(&mut stream, "\r\n\r\n").await;
        taken.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    let other = Recorder::start("other").await;
    let gateway = Gateway::hello(&[at, other.at]).await;
    let waiting = loop {
        let http = gateway.http;
        let mut waiting = tokio::spawn(async move { get_from(http, "hello.localhost", "/").await });
        tokio::select! {
            taken = &mut is_taken => {
                taken.unwrap();
                break waiting;
            }
            answered = &mut waiting => assert_eq!(answered.unwrap().body, "other"),
        }
    };
    let start = Instant::now();
    while !waiting.is_finished() {
        assert!(start.elapsed() < LIMIT, "long before the time for an answer is over");
        assert_eq!(gateway.get("hello.localhost", "/").await.body, "other");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(waiting.await.unwrap().body, "other");
}
