//! HTTP/2 in front, HTTP/1 behind: everything that a request can be and have.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::h2c::{body_of, h2c, say, streams};
use crate::http2_support::*;
use crate::support::*;

fn post(path: &str) -> http::request::Builder {
    Request::post(format!("http://hello.localhost{path}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_the_same_as_over_http1() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let mut client = Client::open(gateway.http).await;
    let request = Request::get("http://hello.localhost:81/a%20b/c?d=e&f")
        .header("cookie", "a=b")
        .header("cookie", "c=d")
        .header("te", "trailers")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x_forwarded_for", "6.6.6.6")
        .header("x-mine", "1")
        .body(())
        .unwrap();
    let answer = client.whole(request).await;
    assert_eq!((answer.status(), answer.body.as_slice()), (200, &b"app"[..]));
    assert_eq!(answer.header("x-name"), "app");
    assert_eq!(answer.header("content-length"), "3");
    assert!(answer.header("date").ends_with(" GMT"), "{answer:?}");
    let seen = app.last();
    assert_eq!(seen.line(), "GET /a%20b/c?d=e&f HTTP/1.1");
    assert_eq!(seen.header("host"), ["hello.localhost:81"]);
    assert_eq!(seen.header("cookie"), ["a=b; c=d"]);
    assert_eq!(seen.header("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.header("x-forwarded-host"), ["hello.localhost:81"]);
    assert!(seen.header("x_forwarded_for").is_empty());
    assert_eq!(
        (seen.header("x-mine"), seen.header("te")),
        (vec!["1"], vec!["trailers"])
    );
    assert_eq!(seen.header("x-request-id").len(), 1);

    // The gateway's own answers.
    let unknown = client.get("nobody.localhost", "/").await;
    assert_eq!(
        (unknown.status(), unknown.header("x-caas-reason")),
        (404, "unknown_app")
    );
    let connect = Request::connect("hello.localhost:443").body(()).unwrap();
    let refused = client.whole(connect).await;
    assert_eq!(
        (refused.status(), refused.header("x-caas-reason")),
        (405, "method_not_allowed")
    );
    assert_eq!(refused.header("connection"), "");
    assert_eq!(gateway.metric("caas_gateway_http2_requests_total").await as u64, 3);
    assert_eq!(
        gateway.metric("caas_gateway_requests_in_flight{app=\"hello\"}").await as u64,
        0
    );
    assert_eq!(gateway.metric("caas_gateway_http2_connections").await as u64, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_have_their_limits() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let mut client = Client::open(gateway.http).await;
    let mut many = Request::get("http://hello.localhost/").body(()).unwrap();
    for i in 0..101 {
        let name = http::HeaderName::from_bytes(format!("x-{i}").as_bytes()).unwrap();
        many.headers_mut().insert(name, HeaderValue::from_static("1"));
    }
    assert_eq!(client.whole(many).await.status(), 431);
    let large = Request::get("http://hello.localhost/")
        .header("x-large", "x".repeat(36 * 1024))
        .body(())
        .unwrap();
    let answer = client.whole(large).await;
    assert_eq!(answer.status(), 431);
    assert_eq!(app.count(), 0);
    // Far beyond, the connection ends.
    let huge = Request::get("http://hello.localhost/")
        .header("x-large", "x".repeat(200 * 1024))
        .body(())
        .unwrap();
    let (response, _) = client.start(huge, true).await;
    assert!(finish(response).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_every_kind() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let mut client = Client::open(gateway.http).await;
    // With a length, without one, empty, in crumbs.
    for (length, pieces) in [
        (Some(6), vec!["abc", "def"]),
        (None, vec!["abc", "def"]),
        (Some(0), vec![]),
        (None, vec![""]),
        (None, vec!["a"; 50]),
    ] {
        let mut request = post("/").body(()).unwrap();
        if let Some(length) = length {
            request
                .headers_mut()
                .insert("content-length", HeaderValue::from(length));
        }
        let (response, mut send) = client.start(request, pieces.is_empty()).await;
        for (i, piece) in pieces.iter().enumerate() {
            let last = i + 1 == pieces.len();
            send.send_data(Bytes::from_static(piece.as_bytes()), last).unwrap();
        }
        assert_eq!(finish(response).await.unwrap().status(), 200);
        let seen = app.last();
        assert_eq!(seen.body, pieces.concat().into_bytes(), "{pieces:?}");
        if length == Some(6) {
            assert_eq!(seen.header("content-length"), ["6"]);
        }
    }
    // HEAD has a length and nothing else, also when the gateway answers.
    let head = |host: &str| Request::head(format!("http://{host}/")).body(()).unwrap();
    let answer = client.whole(head("hello.localhost")).await;
    assert_eq!((answer.header("content-length"), answer.body.len()), ("3", 0));
    let answer = client.whole(head("nobody.localhost")).await;
    assert_eq!((answer.status(), answer.body.len()), (404, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_go_both_ways_unchanged() {
    const SIZE: usize = 4_000_000;
    let (at, _) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        while let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", request.body.len());
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&request.body).await;
        }
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let mut client = Client::open(gateway.http).await;
    let big: Bytes = (0..SIZE).map(|i| (i % 251) as u8).collect();
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let (response, mut send) = client.start(post("/").body(()).unwrap(), false).await;
        let data = big.clone();
        tasks.push(tokio::spawn(async move {
            upload(&mut send, data, true).await.unwrap();
            finish(response).await.unwrap()
        }));
    }
    for task in tasks {
        assert!(task.await.unwrap().body == big, "unchanged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_reach_the_client() {
    let (at, _) = answers(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: grpc-status\r\n\r\n3\r\nabc\r\n0\r\ngrpc-status: 0\r\n\r\n",
    )
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let mut client = Client::open(gateway.http).await;
    let answer = client.get("hello.localhost", "/").await;
    assert_eq!(answer.body, b"abc");
    assert_eq!(answer.trailers.expect("trailers")["grpc-status"], "0");
    assert_eq!(answer.head.headers().get("transfer-encoding"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_reach_the_app() {
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let (at, _) = upstream(move |mut stream, _| {
        let heard = heard.clone();
        async move {
            let got = read_until(&mut stream, "x-sum: 7\r\n\r\n").await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            let _ = heard.send(got);
        }
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let mut client = Client::open(gateway.http).await;
    let (response, mut send) = client
        .start(post("/").header("trailer", "x-sum").body(()).unwrap(), false)
        .await;
    send.send_data(Bytes::from_static(b"abc"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("7"));
    send.send_trailers(trailers).unwrap();
    assert_eq!(finish(response).await.unwrap().status(), 200);
    let got = soon(hears.recv()).await.unwrap();
    assert!(got.ends_with("3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n"), "{got}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_is_told_to_go_on() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let mut raw = Raw::open(gateway.http).await;
    let fields = request("POST", "/", &[("expect", "100-continue"), ("content-length", "3")]);
    raw.send(&frame(HEADERS, END_HEADERS, 1, &fields)).await;
    let interim = raw.find(|f| f.kind == HEADERS).await.expect("100");
    assert_eq!(interim.flags & END_STREAM, 0);
    raw.send(&frame(DATA, END_STREAM, 1, b"abc")).await;
    let answer = raw.find(|f| f.kind == HEADERS).await.expect("200");
    assert_eq!(answer.status(), 200);
    assert_eq!(app.last().body, b"abc");
    // Who is refused anyway is not.
    let fields = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "nobody.localhost"),
        ("expect", "100-continue"),
    ]);
    raw.send(&frame(HEADERS, END_HEADERS, 3, &fields)).await;
    let answer = raw.find(|f| f.kind == HEADERS).await.expect("404");
    assert_eq!(answer.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_none_in_the_way_of_another() {
    let may = tokio_util::sync::CancellationToken::new();
    let wait = may.clone();
    let (slow, _) = upstream(move |mut stream, _| {
        let wait = wait.clone();
        async move {
            let mut buffer = Vec::new();
            while let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await {
                wait.cancelled().await;
                let path = request.line().to_owned();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
    .await;
    let app = Recorder::start("app").await;
    let gateway = Gateway::with(config(), &[("slow", "1", "a", slow), ("hello", "1", "b", app.at)], &[]).await;
    let mut client = Client::open(gateway.http).await;
    let mut waiting = Vec::new();
    for i in 0..100 {
        let request = Request::get(format!("http://slow.localhost/{i}")).body(()).unwrap();
        waiting.push((i, client.start(request, true).await.0));
    }
    // Answered while all those wait.
    assert_eq!(client.get("hello.localhost", "/").await.status(), 200);
    may.cancel();
    for (i, response) in waiting {
        let answer = finish(response).await.unwrap();
        assert_eq!(answer.body, format!("GET /{i} HTTP/1.1").into_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_gives_up_everywhere() {
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
    let gateway = Gateway::hello(&[at]).await;
    let mut client = Client::open(gateway.http).await;
    for method in [Method::GET, Method::POST] {
        let request = Request::builder()
            .method(method.clone())
            .uri("http://hello.localhost/")
            .body(())
            .unwrap();
        let (response, mut send) = client.start(request, method == Method::GET).await;
        until("the request is there", || open.load(Ordering::SeqCst) == 1).await;
        send.send_reset(h2::Reason::CANCEL);
        drop(response);
        until("the request is gone", || open.load(Ordering::SeqCst) == 0).await;
    }
    // The whole connection too.
    let (_response, _send) = client
        .start(Request::get("http://hello.localhost/").body(()).unwrap(), true)
        .await;
    until("the request is there", || open.load(Ordering::SeqCst) == 1).await;
    client.task.abort();
    until("the request is gone", || open.load(Ordering::SeqCst) == 0).await;
    let deadline = std::time::Instant::now() + LIMIT;
    while gateway.metric("caas_gateway_responses_total{code=\"0\"}").await < 3.0 {
        assert!(std::time::Instant::now() < deadline, "counted as given up");
    }
    assert_eq!(gateway.metric("caas_gateway_ejections_total").await as u64, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_an_answer_is_no_answer() {
    let (at, _) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            .await;
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let mut client = Client::open(gateway.http).await;
    let (response, _) = client
        .start(Request::get("http://hello.localhost/").body(()).unwrap(), true)
        .await;
    let error = finish(response).await.expect_err("cut");
    assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
    // The connection is as good as before.
    assert_eq!(client.get("nobody.localhost", "/").await.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_apps_hold() {
    let app = Recorder::start("app").await;
    let small = gateway::Config {
        max_body_bytes: 10,
        ..config()
    };
    let gateway = Gateway::hello_with(small, &[app.at], model::AppConfig::default()).await;
    let mut client = Client::open(gateway.http).await;
    // Said, and found out; the second time the app's answer may not be waited for.
    let (response, _send) = client
        .start(post("/").header("content-length", "11").body(()).unwrap(), false)
        .await;
    let answer = finish(response).await.unwrap();
    assert_eq!(
        (answer.status(), answer.header("x-caas-reason")),
        (413, "body_too_large")
    );
    let (response, mut send) = client.start(post("/").body(()).unwrap(), false).await;
    send.send_data(Bytes::from_static(&[0; 11]), false).unwrap();
    let answer = finish(response).await.unwrap();
    assert_eq!(
        (answer.status(), answer.header("x-caas-reason")),
        (413, "body_too_large")
    );
    assert_eq!(app.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_tells_the_protocol() {
    let app = Recorder::start("app").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let logging = gateway::Config {
        access_log: path.to_str().unwrap().to_owned(),
        ..config()
    };
    let gateway = Gateway::hello_with(logging, &[app.at], model::AppConfig::default()).await;
    Client::open(gateway.http).await.get("hello.localhost", "/two").await;
    gateway.get("hello.localhost", "/one").await;
    let mut text = String::new();
    until("both are logged", || {
        text = std::fs::read_to_string(&path).unwrap_or_default();
        text.lines().count() == 2
    })
    .await;
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let want = if line["path"] == "/two" { "HTTP/2" } else { "HTTP/1.1" };
        assert_eq!(line["protocol"], want);
        assert_eq!(
            (&line["host"], &line["status"]),
            (&"hello.localhost".into(), &200.into())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_come_early() {
    let (at, _) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        while let Ok(Some(_)) = read_request(&mut stream, &mut buffer).await {
            let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\nconnection: x-b\r\nx-b: c\r\n\r\n".repeat(2);
            let _ = stream.write_all(hints.as_bytes()).await;
            let answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            let _ = stream.write_all(answer).await;
        }
    })
    .await;
    let gateway = Gateway::hello(&[at]).await;
    let mut raw = Raw::open(gateway.http).await;
    raw.send(&frame(HEADERS, WHOLE, 1, &get("/", &[]))).await;
    let mut heads = Vec::new();
    while heads.len() < 3 {
        heads.push(raw.find(|f| f.kind == HEADERS).await.expect("a head"));
    }
    assert_eq!(heads.iter().map(Frame::status).collect::<Vec<_>>(), [103, 103, 200]);
    let data = raw.find(|f| f.kind == DATA).await.expect("a body");
    assert_eq!(data.payload, b"ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_client_with_any_app() {
    let one = Recorder::start("name").await;
    let (two, _) = streams(100, |_, _, request, mut respond| async move {
        let head_only = request.method() == Method::HEAD;
        let body = body_of(request.into_body()).await;
        if head_only {
            let head = http::Response::builder().header("content-length", 4).body(()).unwrap();
            let _ = respond.send_response(head, true);
        } else {
            say(&mut respond, if body.is_empty() { "name" } else { "body" });
        }
    })
    .await;
    let entries = [("one", "1", "a", one.at), ("two", "1", "b", two)];
    let gateway = Gateway::with(config(), &entries, &[("two", h2c())]).await;
    let mut client = Client::open(gateway.http).await;
    for app in ["one", "two"] {
        let host = format!("{app}.localhost");
        assert_eq!(gateway.get(&host, "/").await.body, "name", "{app} by HTTP/1");
        assert_eq!(client.get(&host, "/").await.body, b"name", "{app} by HTTP/2");
        let head = format!("HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = gateway.send(&head).await;
        assert_eq!((answer.header("content-length"), answer.body.as_str()), (Some("4"), ""));
        let head = Request::head(format!("http://{host}/")).body(()).unwrap();
        let answer = client.whole(head).await;
        assert_eq!((answer.header("content-length"), answer.body.len()), ("4", 0), "{app}");
        let said = if app == "one" { "name" } else { "body" };
        let post = format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc");
        assert_eq!(gateway.send(&post).await.body, said);
        let post = Request::post(format!("http://{host}/")).body(()).unwrap();
        let (response, mut send) = client.start(post, false).await;
        send.send_data(Bytes::from_static(b"abc"), true).unwrap();
        assert_eq!(finish(response).await.unwrap().body, said.as_bytes(), "{app}");
    }
    assert!(one.junk.lock().unwrap().is_empty());
}
