//! WebSocket over HTTP/2 (RFC 8441), and how connections and tunnels end when the gateway stops.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::ext::Protocol;
use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http2_support::*;
use crate::support::*;
use crate::tunnels::{ASK, YES, echo};

fn connect(protocol: &'static str) -> Request<()> {
    Request::connect("http://hello.localhost/ws?a=b")
        .extension(Protocol::from_static(protocol))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .body(())
        .unwrap()
}

/// Waits for the settings, which allow it.
async fn open(gateway: &Gateway) -> Client {
    let client = Client::open(gateway.http).await;
    until("extended CONNECT is allowed", || {
        client.send.is_extended_connect_protocol_enabled()
    })
    .await;
    client
}

async fn read_to(body: &mut h2::RecvStream, mark: &[u8]) -> Vec<u8> {
    let mut got = Vec::new();
    while !got.ends_with(mark) {
        let Some(data) = soon(body.data()).await else { break };
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        got.extend(data);
    }
    got
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_over_http2() {
    let gateway = Gateway::hello(&[echo().await]).await;
    let mut client = open(&gateway).await;
    let (response, mut send) = client.start(connect("websocket"), false).await;
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), 200);
    for name in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(response.headers().get(name).is_none(), "{name}");
    }
    let mut body = response.into_body();
    assert_eq!(read_to(&mut body, b"glued").await, b"glued");
    let big: Bytes = (0..2_000_000u32).map(|i| (i % 251) as u8).collect();
    let (sent, back) = tokio::join!(upload(&mut send, big.clone(), false), async {
        let mut back = Vec::new();
        while back.len() < big.len() {
            let data = soon(body.data()).await.unwrap().unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            back.extend(data);
        }
        back
    });
    sent.unwrap();
    assert!(back == big, "unchanged");
    assert_eq!(gateway.metric("caas_gateway_tunnels").await as u64, 1);
    // Other requests share the connection.
    assert_eq!(client.get("nobody.localhost", "/").await.status(), 404);
    send.send_data(Bytes::new(), true).unwrap();
    assert_eq!(read_to(&mut body, b"bye").await, b"bye");
    assert_eq!(read_to(&mut body, b"no more").await, b"", "the app's end is ours");
    let deadline = Instant::now() + LIMIT;
    while gateway.metric("caas_gateway_tunnels").await > 0.0 {
        assert!(Instant::now() < deadline, "the tunnel's end is counted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_sees_an_upgrade_and_may_refuse_it() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let mut client = open(&gateway).await;
    // A plain 200 must not pass for a tunnel.
    let (response, _send) = client.start(connect("websocket"), false).await;
    let answer = finish(response).await.unwrap();
    assert_eq!((answer.status(), answer.header("x-caas-reason")), (502, "bad_upgrade"));
    let seen = app.last();
    assert_eq!(seen.line(), "GET /ws?a=b HTTP/1.1");
    assert_eq!(seen.header("upgrade"), ["websocket"]);
    assert_eq!(seen.header("connection"), ["upgrade"]);
    assert_eq!(seen.header("sec-websocket-version"), ["13"]);
    assert_eq!(seen.header("sec-websocket-protocol"), ["chat"]);
    assert_eq!(seen.header("sec-websocket-key")[0].len(), 24);
    // Other protocols are not spoken here.
    let (response, _send) = client.start(connect("connect-udp"), false).await;
    assert_eq!(finish(response).await.unwrap().status(), 405);
    assert_eq!(app.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn either_side_gone_ends_the_other() {
    let (at, connections) = upstream(|mut stream, n| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        let _ = stream.write_all(YES).await;
        if n > 0 {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let mut client = open(&gateway).await;
    let (response, mut send) = client.start(connect("websocket"), false).await;
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(read_to(&mut body, b"no more").await, b"", "ended with the app");
    send.send_data(Bytes::new(), true).unwrap();
    let (response, mut send) = client.start(connect("websocket"), false).await;
    assert_eq!(soon(response).await.unwrap().status(), 200);
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 2);
    send.send_reset(h2::Reason::CANCEL);
    let deadline = Instant::now() + LIMIT;
    while gateway.metric("caas_gateway_requests_in_flight{app=\"hello\"}").await > 0.0 {
        assert!(Instant::now() < deadline, "ended with the client");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_streams_finish() {
    let (slow, connections) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")
            .await;
    })
    .await;
    let gateway = Gateway::hello(&[slow]).await;
    let mut raw = Raw::open(gateway.http).await;
    raw.send(&frame(HEADERS, WHOLE, 1, &get("/", &[]))).await;
    until("the request is at the app", || {
        connections.load(std::sync::atomic::Ordering::SeqCst) == 1
    })
    .await;
    let mut idle = Client::open(gateway.http).await;
    assert_eq!(idle.get("nobody.localhost", "/").await.status(), 404);
    let start = Instant::now();
    gateway.shutdown.cancel();
    // First the warning, whose PING tells when all has come that was on its way; then the last stream that is served.
    let goodbye = raw.find(|f| f.kind == GOAWAY).await.expect("GOAWAY");
    assert_eq!(goodbye.code(), 0);
    let ping = raw.find(|f| f.kind == PING).await.expect("PING");
    raw.send(&frame(PING, ACK, 0, &ping.payload)).await;
    let answer = raw.find(|f| f.kind == HEADERS).await.expect("the answer");
    assert_eq!((answer.stream, answer.status()), (1, 200));
    raw.last_words().await;
    soon(idle.task).await.unwrap().expect("a clean end");
    soon(gateway.task).await.unwrap().expect("cleanly");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

/// An app that speaks frames: one at once, and half of one for those who ask for it.
async fn frames() -> std::net::SocketAddr {
    let serve = |mut stream: TcpStream, _| async move {
        let mut buffer = Vec::new();
        let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await else {
            return;
        };
        let asked = request.header("upgrade").concat();
        let yes = String::from_utf8_lossy(YES).replace("websocket", &asked);
        let _ = stream
            .write_all(&[yes.as_bytes(), &[0x81, 2, b'h', b'i']].concat())
            .await;
        if request.line().contains("half") {
            let _ = stream.write_all(&[0x81, 100, b'x']).await;
        }
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    };
    upstream(serve).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_are_told_that_the_gateway_goes() {
    let brief = gateway::Config {
        drain_timeout_s: 1,
        ..config()
    };
    let gateway = Gateway::hello_with(brief, &[frames().await], model::AppConfig::default()).await;
    let mut one = TcpStream::connect(gateway.http).await.unwrap();
    one.write_all(ASK.as_bytes()).await.unwrap();
    read_until(&mut one, "\u{2}hi").await;
    let mut half = TcpStream::connect(gateway.http).await.unwrap();
    half.write_all(ASK.replace("/ws", "/half").as_bytes()).await.unwrap();
    read_until(&mut half, "x").await;
    let mut client = open(&gateway).await;
    let (response, _send) = client.start(connect("websocket"), false).await;
    let mut two = soon(response).await.unwrap().into_body();
    read_to(&mut two, b"hi").await;

    let start = Instant::now();
    gateway.shutdown.cancel();
    let mut last = Vec::new();
    soon(one.read_to_end(&mut last)).await.unwrap();
    let took = start.elapsed();
    assert_eq!(last, [0x88, 2, 0x03, 0xe9], "close, going away");
    assert!(
        took >= Duration::from_millis(900),
        "not before the time is over: {took:?}"
    );
    assert_eq!(read_to(&mut two, &[0x03, 0xe9]).await, [0x88, 2, 0x03, 0xe9]);
    // Within a frame there is no place for it.
    last.clear();
    let _ = soon(half.read_to_end(&mut last)).await;
    assert_eq!(last, b"");
    soon(gateway.task).await.unwrap().expect("cleanly");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_are_told_that_their_instance_goes() {
    let mut app = model::AppConfig {
        drain_s: Some(30),
        ..model::AppConfig::default()
    };
    app.drains.insert("1".parse().unwrap(), 1);
    let gateway = Gateway::hello_with(config(), &[frames().await], app).await;
    let mut one = TcpStream::connect(gateway.http).await.unwrap();
    one.write_all(ASK.as_bytes()).await.unwrap();
    read_until(&mut one, "\u{2}hi").await;
    let mut half = TcpStream::connect(gateway.http).await.unwrap();
    half.write_all(ASK.replace("/ws", "/half").as_bytes()).await.unwrap();
    read_until(&mut half, "x").await;
    // Another protocol has no word for it.
    let mut other = TcpStream::connect(gateway.http).await.unwrap();
    let ask = ASK.replace("websocket", "other");
    other.write_all(ask.as_bytes()).await.unwrap();
    read_until(&mut other, "\u{2}hi").await;
    let mut client = open(&gateway).await;
    let (response, _send) = client.start(connect("websocket"), false).await;
    let mut two = soon(response).await.unwrap().into_body();
    read_to(&mut two, b"hi").await;

    let start = Instant::now();
    let next = frames().await;
    let withdrawal = changes(2, vec![put("hello", "2", "new", next), remove("hello", "1", "c0")]);
    gateway.tell(withdrawal, 2).await;
    let mut stays = TcpStream::connect(gateway.http).await.unwrap();
    stays.write_all(ASK.as_bytes()).await.unwrap();
    read_until(&mut stays, "\u{2}hi").await;
    let mut last = Vec::new();
    soon(one.read_to_end(&mut last)).await.unwrap();
    let took = start.elapsed();
    assert_eq!(last, [0x88, 2, 0x03, 0xe9], "close, going away");
    assert!(took >= Duration::from_millis(900), "not before its time: {took:?}");
    assert_eq!(read_to(&mut two, &[0x03, 0xe9]).await, [0x88, 2, 0x03, 0xe9]);
    // Within a frame there is no place for it: it is cut a moment later.
    last.clear();
    let _ = soon(half.read_to_end(&mut last)).await;
    assert_eq!(last, b"");
    assert_eq!(
        gateway.feed.last_ack().unwrap().draining,
        ["c0".parse().unwrap()],
        "the other protocol"
    );
    drop(other);
    until("nothing is under way there", || {
        gateway.feed.last_ack().is_some_and(|ack| ack.draining.is_empty())
    })
    .await;
    // At the other endpoint nothing ended.
    let none = tokio::time::timeout(Duration::from_millis(100), stays.read_to_end(&mut last)).await;
    assert!(none.is_err() && last.is_empty());
}
