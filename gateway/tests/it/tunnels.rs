//! Upgraded connections.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::replay::reset;
use crate::support::*;

pub(crate) const ASK: &str = "GET /ws HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
pub(crate) const YES: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: y\r\n\r\n";

/// Switches protocols, says something along with the switch, then echoes; ends when the client ends.
pub(crate) async fn echo() -> std::net::SocketAddr {
    let serve = |mut stream: TcpStream, _| async move {
        let mut buffer = Vec::new();
        let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await else {
            return;
        };
        assert_eq!(request.header("connection"), ["upgrade"]);
        assert_eq!(request.header("upgrade"), ["websocket"]);
        let _ = stream.write_all(&[YES, b"glued"].concat()).await;
        let _ = stream.write_all(&buffer).await;
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.write_all(b"bye").await;
    };
    upstream(serve).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_unchanged() {
    let gateway = Gateway::hello(&[echo().await]).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    // A frame glued to the request, and one glued to the switch.
    client.write_all(format!("{ASK}first").as_bytes()).await.unwrap();
    let got = read_until(&mut client, "gluedfirst").await;
    assert!(got.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{got}");
    assert!(
        got.to_lowercase().contains("upgrade: websocket") && got.contains("gluedfirst"),
        "{got}"
    );
    assert!(got.to_lowercase().contains("sec-websocket-accept: y"), "{got}");

    let big: Vec<u8> = (0..8_000_000u32).map(|i| (i % 251) as u8).collect();
    let (mut read, mut write) = client.split();
    let mut back = vec![0; big.len()];
    let (sent, received) = tokio::join!(write.write_all(&big), read.read_exact(&mut back));
    sent.unwrap();
    received.unwrap();
    assert!(back == big, "8 MB came back unchanged");
    assert_eq!(gateway.metric("caas_gateway_tunnels").await as u64, 1);
    assert_eq!(
        gateway.metric("caas_gateway_requests_in_flight{app=\"hello\"}").await as u64,
        1
    );

    // We have finished; the other side may still speak.
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(LIMIT, client.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(rest, b"bye");
    let deadline = std::time::Instant::now() + LIMIT;
    while gateway
        .metric("caas_gateway_requests_total{app=\"hello\",class=\"1xx\"}")
        .await
        < 1.0
    {
        assert!(
            std::time::Instant::now() < deadline,
            "the tunnel counts as one request when it ends"
        );
    }
    assert_eq!(gateway.metric("caas_gateway_tunnels").await as u64, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_an_answer_is_awaited_is_not_lost() {
    // An app that answers when it is told to: with a tunnel, or the request's path.
    let (seen, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, tell) = (Arc::clone(&seen), Arc::clone(&go));
    let (at, _) = upstream(move |mut stream, _| {
        let (seen, go) = (Arc::clone(&told), Arc::clone(&tell));
        async move {
            let mut buffer = Vec::new();
            while let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await {
                seen.notify_one();
                go.notified().await;
                let path = request.line().split(' ').nth(1).unwrap_or_default().to_owned();
                if path == "/ws" {
                    let _ = stream.write_all(YES).await;
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    return;
                }
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let ask = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: hello.localhost\r\nx-long: {}\r\n\r\n",
            "y".repeat(2_000)
        )
    };
    // The second request in pieces of different lengths: all of it, or a part, comes while the first one waits.
    for cut in [1, 10, 400, 600, 1_500, 2_070] {
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        client.write_all(ask("/one").as_bytes()).await.unwrap();
        seen.notified().await;
        let next = ask("/two");
        let (early, late) = next.as_bytes().split_at(cut.min(next.len()));
        client.write_all(early).await.unwrap();
        // Time for the gateway to read it.
        gateway.admin("/metrics").await;
        go.notify_one();
        read_until(&mut client, "/one").await;
        client.write_all(late).await.unwrap();
        seen.notified().await;
        go.notify_one();
        let got = read_until(&mut client, "/two").await;
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{cut}: {got}");
    }
    // A tunnel's bytes before the switch.
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    seen.notified().await;
    let early = "e".repeat(3_000);
    client.write_all(early.as_bytes()).await.unwrap();
    gateway.admin("/metrics").await;
    go.notify_one();
    let mut got = read_until(&mut client, "\r\n\r\n").await;
    client.write_all(b"late").await.unwrap();
    got.push_str(&read_until(&mut client, "late").await);
    assert!(got.ends_with(&format!("{early}late")), "{got}");
}

#[tokio::test(flavor = "multi_thread")]
async fn either_side_gone_ends_the_other() {
    let (at, _) = upstream(|mut stream, n| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        let _ = stream.write_all(YES).await;
        if n == 0 {
            return;
        }
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    tokio::time::timeout(Duration::from_secs(7), client.read_to_end(&mut got))
        .await
        .expect("closed with the app")
        .unwrap();

    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    drop(client);
    let deadline = std::time::Instant::now() + LIMIT;
    while gateway.metric("caas_gateway_requests_in_flight{app=\"hello\"}").await > 0.0 {
        assert!(std::time::Instant::now() < deadline, "closed with the client");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_plain_answers_stay_http() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    assert!(read_until(&mut client, "\r\n\r\napp").await.starts_with("HTTP/1.1 200"));
    client
        .write_all(b"GET /again HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
        .await
        .unwrap();
    assert!(read_until(&mut client, "\r\n\r\napp").await.starts_with("HTTP/1.1 200"));
    assert_eq!(app.count(), 2);
    // HTTP/1.0 and requests with a body can't ask.
    gateway
        .send("GET /ws HTTP/1.0\r\nHost: hello.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    assert!(app.last().header("upgrade").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_tunnel_ends_in_time() {
    let app = model::AppConfig {
        timeouts: model::config::Timeouts {
            idle_s: 1,
            ..Default::default()
        },
        ..Default::default()
    };
    let gateway = Gateway::hello_with(config(), &[echo().await], app).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    read_until(&mut client, "glued").await;
    let start = std::time::Instant::now();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(LIMIT, client.read_to_end(&mut rest))
        .await
        .expect("closed");
    assert!(
        (900..5_000).contains(&start.elapsed().as_millis()),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_endpoints_tunnel_lives_on_and_is_told() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[echo().await]).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    read_until(&mut client, "glued").await;
    let withdrawal = changes(2, vec![put("hello", "2", "new", app.at), remove("hello", "1", "c0")]);
    gateway.tell(withdrawal, 2).await;
    assert_eq!(gateway.feed.last_ack().unwrap().draining, ["c0".parse().unwrap()]);
    client.write_all(b"still here").await.unwrap();
    assert_eq!(read_until(&mut client, "here").await, "still here");
    drop(client);
    until("the tunnel's end is told", || {
        gateway.feed.last_ack().is_some_and(|a| a.draining.is_empty())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_may_ask_for_an_upgrade() {
    let (at, _) = answers(
        b"HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade, x-a\r\nUpgrade: websocket\r\nX-A: 1\r\n\
          Sec-WebSocket-Version: 13\r\ncontent-length: 2\r\n\r\nno",
    )
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let answer = gateway.get("hello.localhost", "/").await;
    assert_eq!((answer.status, answer.header("upgrade")), (426, Some("websocket")));
    assert!(answer.head.contains("connection: upgrade") && answer.header("x-a").is_none());
    assert_eq!(answer.header("sec-websocket-version"), Some("13"));
    // By HTTP/2 nobody can be asked for one.
    let mut client = crate::http2_support::Client::open(gateway.http).await;
    let answer = client.get("hello.localhost", "/").await;
    assert_eq!(
        (answer.status(), answer.header("upgrade"), answer.header("connection")),
        (426, "", "")
    );
}

/// Tunnels one after the other; `end` is what becomes of each once it is open.
async fn tunnels<F: Future<Output = ()>>(gateway: &Gateway, n: usize, end: impl Fn(TcpStream) -> F) {
    for _ in 0..n {
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        client.write_all(ASK.as_bytes()).await.unwrap();
        read_until(&mut client, "\r\n\r\n").await;
        end(client).await;
        gateway
            .reaches("caas_gateway_requests_in_flight{app=\"hello\"}", 0.0)
            .await;
    }
}

const EJECTIONS: &str = "caas_gateway_ejections_total";

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_vanish_count_against_no_endpoint() {
    let app = model::AppConfig {
        timeouts: model::config::Timeouts {
            idle_s: 1,
            ..Default::default()
        },
        ..Default::default()
    };
    let gateway = Gateway::hello_with(config(), &[echo().await, echo().await], app).await;
    tunnels(&gateway, 12, |client| async move { reset(&client) }).await;
    // Nor does silence until the time is over.
    let silent = (0..12).map(|_| {
        tunnels(&gateway, 1, |mut client| async move {
            let _ = client.read_to_end(&mut Vec::new()).await;
        })
    });
    futures::future::join_all(silent).await;
    assert_eq!(gateway.metric(EJECTIONS).await as u64, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_break_tunnels_off_are_left_out() {
    let breaking = || {
        upstream(|mut stream, _| async move {
            let _ = read_request(&mut stream, &mut Vec::new()).await;
            let _ = stream.write_all(YES).await;
            // A word of the client's, so that what was said before the break has arrived.
            let _ = stream.read(&mut [0; 8]).await;
            reset(&stream);
        })
    };
    let (one, other) = (breaking().await.0, breaking().await.0);
    let gateway = Gateway::hello(&[one, other]).await;
    tunnels(&gateway, 12, |mut client| async move {
        client.write_all(b"word").await.unwrap();
        let _ = client.read_to_end(&mut Vec::new()).await;
    })
    .await;
    assert!(gateway.metric(EJECTIONS).await >= 1.0);
}
