//! Apps that speak HTTP/2 without TLS, behind clients that need not know.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use model::AppConfig;
use model::config::Protocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::support::*;

pub(crate) fn h2c() -> AppConfig {
    AppConfig {
        protocol: Protocol::H2c,
        ..AppConfig::default()
    }
}

/// What a test does with each stream of each connection: the connection's number, the stream's number on it, and the stream.
pub(crate) async fn streams<F, T>(most: u32, serve: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(usize, usize, Request<RecvStream>, SendResponse<Bytes>) -> T + Clone + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    upstream(move |stream, n| {
        let serve = serve.clone();
        async move {
            let mut builder = h2::server::Builder::new();
            let Ok(mut connection) = builder.max_concurrent_streams(most).handshake(stream).await else {
                return;
            };
            let mut i = 0;
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(serve(n, i, request, respond));
                i += 1;
            }
        }
    })
    .await
}

pub(crate) async fn body_of(mut body: RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(Ok(part)) = body.data().await {
        let _ = body.flow_control().release_capacity(part.len());
        all.extend_from_slice(&part);
    }
    all
}

pub(crate) fn say(respond: &mut SendResponse<Bytes>, text: &str) {
    let head = Response::builder()
        .header("content-length", text.len())
        .body(())
        .unwrap();
    if let Ok(mut stream) = respond.send_response(head, false) {
        let _ = stream.send_data(Bytes::copy_from_slice(text.as_bytes()), true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_http1_clients_share_a_connection() {
    let heads: Arc<Mutex<Vec<(String, HeaderMap)>>> = Arc::default();
    let heads2 = Arc::clone(&heads);
    let (at, connections) = streams(100, move |_, _, request, mut respond| {
        let heads = Arc::clone(&heads2);
        async move {
            let (parts, body) = request.into_parts();
            let line = format!("{} {}", parts.method, parts.uri);
            heads.lock().unwrap().push((line, parts.headers));
            let body = body_of(body).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            say(&mut respond, &format!("got {}", body.len()));
        }
    })
    .await;
    let gateway = Arc::new(Gateway::hello_with(config(), &[at], h2c()).await);
    let answer = gateway
        .send("POST /a?b=c HTTP/1.1\r\nHost: hello.localhost\r\nX-A: 1\r\nTE: trailers\r\nConnection: close, te\r\nContent-Length: 3\r\n\r\nabc")
        .await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "got 3"), "{}", answer.head);
    let (line, head) = heads.lock().unwrap()[0].clone();
    assert_eq!(line, "POST http://hello.localhost/a?b=c");
    assert_eq!(
        (&head["x-a"], &head["te"]),
        (&"1".parse().unwrap(), &"trailers".parse().unwrap())
    );
    assert_eq!(head["content-length"], "3");
    assert_eq!(head["x-forwarded-for"], "127.0.0.1");
    assert!(
        !head.contains_key("host") && !head.contains_key("connection"),
        "{head:?}"
    );
    let mut clients = Vec::new();
    for _ in 0..40 {
        let gateway = Arc::clone(&gateway);
        clients.push(tokio::spawn(async move {
            for _ in 0..5 {
                let answer = gateway.get("hello.localhost", "/").await;
                assert_eq!((answer.status, answer.body.as_str()), (200, "got 0"), "{}", answer.head);
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1, "one connection for all");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_streams_than_the_endpoint_takes() {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(Semaphore::new(0));
    let (gate2, open2, most2) = (Arc::clone(&gate), Arc::clone(&open), Arc::clone(&most));
    let (at, connections) = streams(3, move |_, _, _, mut respond| {
        let (gate, open, most) = (Arc::clone(&gate2), Arc::clone(&open2), Arc::clone(&most2));
        async move {
            most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            say(&mut respond, "ok");
            open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let gateway = Arc::new(Gateway::hello_with(config(), &[at], h2c()).await);
    let clients: Vec<_> = (0..9)
        .map(|_| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { gateway.get("hello.localhost", "/").await.status })
        })
        .collect();
    until("all nine are there at once", || open.load(Ordering::SeqCst) == 9).await;
    gate.add_permits(9);
    for client in clients {
        assert_eq!(client.await.unwrap(), 200);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_wait_for_a_stream_than_there_are() {
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    let (at, connections) = streams(1, move |_, _, _, mut respond| {
        let gate = Arc::clone(&waiting);
        async move {
            gate.acquire().await.unwrap().forget();
            say(&mut respond, "ok");
        }
    })
    .await;
    let one = gateway::Config { workers: 1, ..config() };
    let gateway = Arc::new(Gateway::hello_with(one, &[at], h2c()).await);
    let ask = |_| {
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move {
            let answer = gateway.get("hello.localhost", "/").await;
            (
                answer.status,
                answer.header("x-caas-reason").unwrap_or_default().to_owned(),
            )
        })
    };
    // 32 connections with a stream each, and as many that wait.
    let mut asked: Vec<_> = (0..80).map(ask).collect();
    until("the others are refused", || {
        asked.iter().filter(|asked| asked.is_finished()).count() == 16
    })
    .await;
    assert_eq!(connections.load(Ordering::SeqCst), 32);
    for refused in asked.extract_if(.., |asked| asked.is_finished()) {
        assert_eq!(refused.await.unwrap(), (503, "overloaded".to_owned()));
    }
    gate.add_permits(64);
    for served in asked {
        assert_eq!(served.await.unwrap(), (200, String::new()));
    }
    assert_eq!(gateway.metric("caas_gateway_ejections_total").await, 0.0);
}

/// Sends 200 POSTs over four clients; each must be answered with its own body.
async fn posts(gateway: &Arc<Gateway>) {
    let mut clients = Vec::new();
    for c in 0..4 {
        let gateway = Arc::clone(gateway);
        clients.push(tokio::spawn(async move {
            for i in 0..50 {
                let body = format!("{c}-{i:03}");
                let post = format!(
                    "POST / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\nContent-Length: 5\r\n\r\n{body}"
                );
                let answer = gateway.send(&post).await;
                assert_eq!((answer.status, &answer.body), (200, &body), "{}", answer.head);
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_sent_again_and_runs_once() {
    let refused: Arc<Mutex<std::collections::HashSet<Vec<u8>>>> = Arc::default();
    let ran = Arc::new(AtomicUsize::new(0));
    let (refused2, ran2) = (Arc::clone(&refused), Arc::clone(&ran));
    let (at, _) = streams(100, move |_, _, request, mut respond| {
        let (refused, ran) = (Arc::clone(&refused2), Arc::clone(&ran2));
        async move {
            let body = body_of(request.into_body()).await;
            if body.last().is_some_and(|b| b % 3 == 0) && refused.lock().unwrap().insert(body.clone()) {
                return respond.send_reset(Reason::REFUSED_STREAM);
            }
            ran.fetch_add(1, Ordering::SeqCst);
            say(&mut respond, &String::from_utf8_lossy(&body));
        }
    })
    .await;
    let gateway = Arc::new(Gateway::hello_with(config(), &[at], h2c()).await);
    posts(&gateway).await;
    assert_eq!(ran.load(Ordering::SeqCst), 200, "each ran once");
    assert!(refused.lock().unwrap().len() > 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_go_away_cost_nobody_a_request() {
    let ran = Arc::new(AtomicUsize::new(0));
    let ran2 = Arc::clone(&ran);
    // Every connection goes away after its seventh request.
    let (at, connections) = upstream(move |stream, _| {
        let ran = Arc::clone(&ran2);
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            let mut i = 0;
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                i += 1;
                if i == 7 {
                    connection.graceful_shutdown();
                }
                let ran = Arc::clone(&ran);
                tokio::spawn(async move {
                    let body = body_of(request.into_body()).await;
                    ran.fetch_add(1, Ordering::SeqCst);
                    say(&mut respond, &String::from_utf8_lossy(&body));
                });
            }
        }
    })
    .await;
    let gateway = Arc::new(Gateway::hello_with(config(), &[at], h2c()).await);
    posts(&gateway).await;
    assert_eq!(ran.load(Ordering::SeqCst), 200, "each ran once");
    assert!(connections.load(Ordering::SeqCst) > 15, "{connections:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_speak_http2_gets_no_request() {
    let app = Recorder::start("http/1.1").await;
    let gateway = Gateway::hello_with(config(), &[app.at], h2c()).await;
    let start = Instant::now();
    let answer = gateway.get("hello.localhost", "/").await;
    assert_eq!((answer.status, answer.reason()), (502, "connect_failed"));
    assert!(start.elapsed() < Duration::from_secs(2));
    let grpc = gateway
        .send("POST /a.B/C HTTP/1.1\r\nHost: hello.localhost\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(
        (grpc.status, grpc.header("grpc-status"), grpc.reason()),
        (200, Some("14"), "connect_failed")
    );
    let upgrade = gateway
        .send("GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: upgrade, close\r\nUpgrade: tls/1.0\r\n\r\n")
        .await;
    assert_eq!((upgrade.status, upgrade.reason()), (501, "no_upgrade"));
    let prefaces = app.seen.lock().unwrap();
    assert!(
        prefaces.iter().all(|p| ["PRI * HTTP/2.0", "SM"].contains(&p.line())),
        "{prefaces:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_resets_its_stream_and_no_other() {
    let reasons: Arc<Mutex<Vec<Reason>>> = Arc::default();
    let waiting = Arc::new(AtomicUsize::new(0));
    let (reasons2, waiting2) = (Arc::clone(&reasons), Arc::clone(&waiting));
    let (at, connections) = streams(100, move |_, _, request, mut respond| {
        let (reasons, waiting) = (Arc::clone(&reasons2), Arc::clone(&waiting2));
        async move {
            if request.uri().path() == "/quick" {
                return say(&mut respond, "quick");
            }
            let mut sender =
                (request.uri().path() == "/stream").then(|| respond.send_response(Response::new(()), false).unwrap());
            if let Some(sender) = &mut sender {
                let _ = sender.send_data(Bytes::from_static(b"some"), false);
            }
            waiting.fetch_add(1, Ordering::SeqCst);
            let reason = match sender {
                Some(mut sender) => std::future::poll_fn(|cx| sender.poll_reset(cx)).await,
                None => std::future::poll_fn(|cx| respond.poll_reset(cx)).await,
            };
            reasons.lock().unwrap().push(reason.unwrap());
        }
    })
    .await;
    let gateway = Gateway::hello_with(config(), &[at], h2c()).await;
    for (i, path) in ["/never", "/stream"].into_iter().enumerate() {
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        let text = format!("GET {path} HTTP/1.1\r\nHost: hello.localhost\r\n\r\n");
        client.write_all(text.as_bytes()).await.unwrap();
        until("the app has it", || waiting.load(Ordering::SeqCst) == i + 1).await;
        if path == "/stream" {
            assert!(read_until(&mut client, "some").await.contains("some"));
        }
        drop(client);
        until("the app hears of it", || reasons.lock().unwrap().len() == i + 1).await;
        assert_eq!(gateway.get("hello.localhost", "/quick").await.body, "quick");
    }
    assert_eq!(*reasons.lock().unwrap(), [Reason::CANCEL, Reason::CANCEL]);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let routes = gateway.admin("/routes").await.body;
    assert!(routes.contains("\"failures\":0"), "{routes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_hold_up_nobody() {
    let (at, connections) = streams(1_000, |_, _, request, mut respond| async move {
        if request.uri().path() == "/quick" {
            return say(&mut respond, "quick");
        }
        let mut sender = respond.send_response(Response::new(()), false).unwrap();
        loop {
            sender.reserve_capacity(65_536);
            match std::future::poll_fn(|cx| sender.poll_capacity(cx)).await {
                Some(Ok(n)) => {
                    if sender.send_data(vec![b'x'; n].into(), false).is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    })
    .await;
    let gateway = Gateway::hello_with(config(), &[at], h2c()).await;
    let mut stalled = Vec::new();
    for _ in 0..63 {
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        client
            .write_all(b"GET /endless HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
            .await
            .unwrap();
        let mut some = [0; 1];
        client.read_exact(&mut some).await.unwrap();
        stalled.push(client);
    }
    for _ in 0..20 {
        let start = Instant::now();
        assert_eq!(gateway.get("hello.localhost", "/quick").await.body, "quick");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_reset_never_end_cleanly() {
    let (at, _) = streams(100, |_, _, request, mut respond| async move {
        match request.uri().path() {
            "/before" => respond.send_reset(Reason::INTERNAL_ERROR),
            "/within" => {
                let mut sender = respond.send_response(Response::new(()), false).unwrap();
                sender.send_data(Bytes::from_static(b"some"), false).unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
                sender.send_reset(Reason::INTERNAL_ERROR);
            }
            _ => say(&mut respond, "fine"),
        }
    })
    .await;
    let gateway = Gateway::hello_with(config(), &[at], h2c()).await;
    let answer = gateway.get("hello.localhost", "/before").await;
    assert_eq!((answer.status, answer.reason()), (502, "upstream_closed"));
    let answer = gateway.get("hello.localhost", "/within").await;
    assert_eq!(answer.status, 200);
    assert!(
        answer.body.contains("some") && !answer.body.contains("0\r\n\r\n"),
        "{:?}",
        answer.body
    );
    assert_eq!(gateway.get("hello.localhost", "/").await.body, "fine");
}
