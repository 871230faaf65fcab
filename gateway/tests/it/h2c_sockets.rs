//! WebSockets of all clients with apps that speak HTTP/2 (RFC 8441).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::h2c::h2c;
use crate::http2_support::{Client, finish, soon};
use crate::support::*;

pub(crate) const HANDSHAKE: &str = "GET /ws?a=b HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\n\r\n";

/// What an app saw of a handshake.
pub(crate) type Seen = Arc<Mutex<Vec<(String, Option<String>, HeaderMap)>>>;

/// An app that takes WebSockets if `takes`, answers with this status, and echoes.
pub(crate) async fn app(takes: bool, status: u16) -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let seen2 = Arc::clone(&seen);
    let (at, _) = upstream(move |stream, _| {
        let seen = Arc::clone(&seen2);
        async move {
            let mut builder = h2::server::Builder::new();
            if takes {
                builder.enable_connect_protocol();
            }
            let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
                return;
            };
            while let Some(Ok((request, respond))) = connection.accept().await {
                let (parts, body) = request.into_parts();
                let protocol = parts.extensions.get::<Protocol>().map(|p| p.as_str().to_owned());
                let line = format!("{} {}", parts.method, parts.uri);
                seen.lock().unwrap().push((line, protocol, parts.headers));
                tokio::spawn(answer(parts.method == Method::CONNECT, status, body, respond));
            }
        }
    })
    .await;
    (at, seen)
}

async fn answer(socket: bool, status: u16, body: RecvStream, mut respond: SendResponse<Bytes>) {
    let head = Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header("sec-websocket-protocol", "chat")
        .body(())
        .unwrap();
    let open = socket && status == 200;
    let Ok(mut send) = respond.send_response(head, !open) else {
        return;
    };
    if open {
        let _ = send.send_data("hello".into(), false);
        echo(body, &mut send).await;
    }
}

async fn echo(mut body: RecvStream, send: &mut SendStream<Bytes>) {
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        if crate::http2_support::upload(send, data, false).await.is_err() {
            return;
        }
    }
    let _ = send.send_data("bye".into(), true);
}

async fn tunnels_end(gateway: &Gateway) {
    let deadline = Instant::now() + LIMIT;
    while gateway.metric("caas_gateway_tunnels").await > 0.0
        || gateway.metric("caas_gateway_requests_in_flight{app=\"hello\"}").await > 0.0
    {
        assert!(Instant::now() < deadline, "the tunnel's end is counted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_becomes_an_extended_connect() {
    let (at, seen) = app(true, 200).await;
    let gateway = Gateway::hello_with(config(), &[at], h2c()).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    // With a frame that does not wait for the answer.
    client.write_all(format!("{HANDSHAKE}first").as_bytes()).await.unwrap();
    let got = read_until(&mut client, "first").await;
    let answer = Answer::parse(got.as_bytes());
    assert_eq!((answer.status, answer.body.as_str()), (101, "hellofirst"), "{got}");
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    assert_eq!(answer.header("connection"), Some("upgrade"));
    assert!(got.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{got}");
    assert_eq!(answer.header("sec-websocket-protocol"), Some("chat"));
    assert!(answer.header("content-length").is_none() && answer.header("transfer-encoding").is_none());
    {
        let seen = seen.lock().unwrap();
        let (line, protocol, head) = &seen[0];
        assert_eq!(line, "CONNECT http://hello.localhost/ws?a=b");
        assert_eq!(protocol.as_deref(), Some("websocket"));
        assert_eq!(
            (&head["sec-websocket-version"], &head["sec-websocket-protocol"]),
            (&"13".parse().unwrap(), &"chat".parse().unwrap())
        );
        assert_eq!(head["x-forwarded-for"], "127.0.0.1");
        for name in ["upgrade", "connection", "sec-websocket-key", "host", "content-length"] {
            assert!(!head.contains_key(name), "{name}");
        }
    }
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let (mut read, mut write) = client.split();
    let mut back = vec![0; big.len()];
    let (sent, received) = tokio::join!(write.write_all(&big), read.read_exact(&mut back));
    sent.unwrap();
    received.unwrap();
    assert!(back == big, "3 MB came back unchanged");
    assert_eq!(gateway.metric("caas_gateway_tunnels").await as u64, 1);
    // Other requests share the connection, other tunnels too.
    assert_eq!(gateway.get("hello.localhost", "/").await.status, 200);
    let mut other = TcpStream::connect(gateway.http).await.unwrap();
    other.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    assert!(read_until(&mut other, "hello").await.ends_with("hello"));
    drop(other);
    // We have finished; the app may still speak.
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon(client.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"bye");
    tunnels_end(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extended_connect_stays_one() {
    let (at, seen) = app(true, 200).await;
    let gateway = Gateway::hello_with(config(), &[at], h2c()).await;
    let mut client = Client::open(gateway.http).await;
    until("extended CONNECT is allowed", || {
        client.send.is_extended_connect_protocol_enabled()
    })
    .await;
    let request = Request::connect("http://hello.localhost/ws?a=b")
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(())
        .unwrap();
    let (response, mut send) = client.start(request, false).await;
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), 200);
    for name in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(response.headers().get(name).is_none(), "{name}");
    }
    send.send_data("frame".into(), true).unwrap();
    let body = crate::h2c::body_of(response.into_body());
    assert_eq!(soon(body).await, b"helloframebye");
    let (line, protocol, head) = seen.lock().unwrap()[0].clone();
    assert_eq!(line, "CONNECT http://hello.localhost/ws?a=b");
    assert_eq!(protocol.as_deref(), Some("websocket"));
    assert!(!head.contains_key("sec-websocket-key"));
    tunnels_end(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_answers() {
    // An app that takes none, one that declines, one that answers what is neither yes nor no.
    for (takes, status, wanted, reason, asked) in [
        (false, 200, 501, "no_upgrade", 0),
        (true, 403, 403, "", 1),
        (true, 204, 502, "bad_upgrade", 1),
    ] {
        let (at, seen) = app(takes, status).await;
        let gateway = Gateway::hello_with(config(), &[at], h2c()).await;
        let mut stream = TcpStream::connect(gateway.http).await.unwrap();
        stream.write_all(HANDSHAKE.as_bytes()).await.unwrap();
        let answer = Answer::parse(read_until(&mut stream, "\r\n\r\n").await.as_bytes());
        assert_eq!((answer.status, answer.reason()), (wanted, reason), "{}", answer.head);
        assert_eq!(seen.lock().unwrap().len(), asked, "{status}");
        let mut client = Client::open(gateway.http).await;
        until("extended CONNECT is allowed", || {
            client.send.is_extended_connect_protocol_enabled()
        })
        .await;
        let request = Request::connect("http://hello.localhost/ws")
            .extension(Protocol::from_static("websocket"))
            .body(())
            .unwrap();
        let (response, _send) = client.start(request, false).await;
        let answer = finish(response).await.unwrap();
        assert_eq!((answer.status(), answer.header("x-caas-reason")), (wanted, reason));
        // Nothing of it counts against the container, and plain requests go on.
        assert!(gateway.admin("/routes").await.body.contains("\"failures\":0"));
        assert_eq!(gateway.get("hello.localhost", "/").await.status, status);
        tunnels_end(&gateway).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_end_here_are_checked_here() {
    let (at, seen) = app(true, 200).await;
    let gateway = Gateway::hello_with(config(), &[at], h2c()).await;
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (text, status, reason) in [
        (HANDSHAKE.replace(key, ""), 400, "bad_handshake"),
        (HANDSHAKE.replace(key, &key.repeat(2)), 400, "bad_handshake"),
        (HANDSHAKE.replace("dGhl", ""), 400, "bad_handshake"),
        (HANDSHAKE.replace("GET", "POST"), 400, "bad_handshake"),
        (HANDSHAKE.replace("websocket", "tls/1.0"), 501, "no_upgrade"),
    ] {
        let mut stream = TcpStream::connect(gateway.http).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let answer = Answer::parse(read_until(&mut stream, "}\n").await.as_bytes());
        assert_eq!((answer.status, answer.reason()), (status, reason), "{text}");
        // The connection goes on.
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
            .await
            .unwrap();
        assert!(read_until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    }
    assert!(seen.lock().unwrap().iter().all(|(line, ..)| line.starts_with("GET ")));
}
