//! Clients that stop taking an answer whose tail the gateway holds, and requests whose body outlives their answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use model::AppConfig;
use model::config::Timeouts;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::*;
use crate::tls_support::Authority;

const IN_FLIGHT: &str = "caas_gateway_requests_in_flight{app=\"hello\"}";
const OPEN: &str = "caas_gateway_connections";

fn timeouts(timeouts: Timeouts) -> AppConfig {
    AppConfig {
        timeouts,
        ..AppConfig::default()
    }
}

/// A connection on which little is on its way while nobody reads.
async fn narrow(at: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.connect(at).await.unwrap()
}

/// Bytes that two sockets hold between them when the one at [`narrow`] does not read.
async fn held() -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = narrow(listener.local_addr().unwrap()).await;
    let (mut server, _) = listener.accept().await.unwrap();
    let (mut held, piece) = (0, vec![b'a'; 128 * 1_024]);
    while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_millis(300), server.write(&piece)).await {
        held += n;
    }
    drop(client);
    held
}

/// What is long: no part of it is like the one before.
fn text(length: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_le_bytes).take(length).collect()
}

/// An app that answers `/long` by that many bytes and everything else by `short`.
async fn lengthy(length: usize) -> SocketAddr {
    let (at, _) = upstream(move |mut stream, _| async move {
        let mut buffer = Vec::new();
        while let Ok(Some(request)) = read_request(&mut stream, &mut buffer).await {
            let body = if request.line().contains("/long") {
                text(length)
            } else {
                b"short".to_vec()
            };
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            if stream.write_all(&[head.as_bytes(), &body].concat()).await.is_err() {
                return;
            }
        }
    })
    .await;
    at
}

/// Reads one answer with a length; what comes behind it stays in `buffer`.
async fn read_answer(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> (String, Vec<u8>) {
    let reading = async {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(stream.read_buf(buffer).await.unwrap() > 0, "a head comes");
        };
        let head = Answer::parse(&buffer[..end]);
        let length: usize = head.header("content-length").unwrap().parse().unwrap();
        while buffer.len() < end + length {
            assert!(
                stream.read_buf(buffer).await.unwrap() > 0,
                "{} of {length} bytes came",
                buffer.len() - end
            );
        }
        let body = buffer[end..end + length].to_vec();
        buffer.drain(..end + length);
        (head.head, body)
    };
    tokio::time::timeout(LIMIT, reading).await.expect("the answer comes")
}

async fn stalls_and_goes_on(gateway: &Gateway, mut client: impl AsyncRead + AsyncWrite + Unpin, length: usize) {
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: hello.localhost\r\n\r\n").into_bytes();
    client.write_all(&ask("/long")).await.unwrap();
    client.flush().await.unwrap();
    let mut first = [0; 100];
    client.read_exact(&mut first).await.unwrap();
    // The app has said everything; what the sockets do not hold the gateway does.
    gateway.reaches(IN_FLIGHT, 0.0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.write_all(&ask("/short")).await.unwrap();
    client.flush().await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut buffer = first.to_vec();
    let (_, long) = read_answer(&mut client, &mut buffer).await;
    assert!(long == text(length), "{} bytes as they were", long.len());
    assert_eq!(read_answer(&mut client, &mut buffer).await.1, b"short");
    // The connection is as good as new, also after it was parked.
    for _ in 0..2 {
        gateway.reaches("caas_gateway_connections_parked", 1.0).await;
        client.write_all(&ask("/short")).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(read_answer(&mut client, &mut buffer).await.1, b"short");
    }
    assert!(buffer.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_of_an_answer_waits_for_a_client_that_stalls() {
    let length = held().await + 100 * 1_024;
    let authority = Authority::new();
    authority.put("hello", &["hello.localhost"]);
    let parking = gateway::Config {
        park_after_ms: 50,
        ..authority.config()
    };
    let gateway = Gateway::hello_with(parking, &[lengthy(length).await], AppConfig::default()).await;
    stalls_and_goes_on(&gateway, narrow(gateway.http).await, length).await;
    gateway.reaches(OPEN, 0.0).await;
    let stream = narrow(gateway.https.unwrap()).await;
    let client = authority.browser().over(stream, "hello.localhost").await.unwrap();
    stalls_and_goes_on(&gateway, client, length).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_nobody_takes_is_given_up_as_the_rest_of_an_answer_is() {
    let length = held().await + 100 * 1_024;
    let short_idle = gateway::Config {
        park_after_ms: 50,
        ..config()
    };
    let app = timeouts(Timeouts {
        idle_s: 1,
        ..Timeouts::default()
    });
    let gateway = Gateway::hello_with(short_idle, &[lengthy(length).await], app).await;
    for ends in ["", "Connection: close\r\n"] {
        let mut client = narrow(gateway.http).await;
        let ask = format!("GET /long HTTP/1.1\r\nHost: hello.localhost\r\n{ends}\r\n");
        client.write_all(ask.as_bytes()).await.unwrap();
        let start = Instant::now();
        gateway.reaches(OPEN, 1.0).await;
        gateway.reaches(OPEN, 0.0).await;
        assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
        let mut got = Vec::new();
        let _ = tokio::time::timeout(LIMIT, client.read_to_end(&mut got))
            .await
            .expect("closed");
        assert!(got.len() < length, "{} bytes", got.len());
    }
}

/// An app that answers as soon as it has a head, and what each of its connections brought.
async fn hasty() -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let got = Arc::new(Mutex::new(Vec::<Vec<u8>>::new()));
    let seen = Arc::clone(&got);
    let (at, _) = upstream(move |mut stream, n| {
        seen.lock().unwrap().push(Vec::new());
        let seen = Arc::clone(&seen);
        async move {
            let mut answered = false;
            let mut buffer = [0; 4_096];
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                let head = {
                    let mut seen = seen.lock().unwrap();
                    seen[n].extend_from_slice(&buffer[..read]);
                    seen[n].windows(4).any(|w| w == b"\r\n\r\n")
                };
                if head && !std::mem::replace(&mut answered, true) {
                    let _ = stream
                        .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nearly")
                        .await;
                }
            }
        }
    })
    .await;
    (at, got)
}

const HALF: &str = "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 100\r\n\r\n\
    aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_body_is_no_request() {
    let (at, got) = hasty().await;
    let parking = gateway::Config {
        park_after_ms: 50,
        header_timeout_ms: 300,
        ..config()
    };
    let gateway = Gateway::hello_with(parking, &[at], AppConfig::default()).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    let mut buffer = Vec::new();
    client.write_all(HALF.as_bytes()).await.unwrap();
    assert_eq!(read_answer(&mut client, &mut buffer).await.1, b"early");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let rest = "GET /smuggled1 HTTP/1.1\r\nHost: hello.localhost\r\n\r\n";
    assert_eq!(rest.len(), 50);
    client.write_all(rest.as_bytes()).await.unwrap();
    let whole = |n: usize| got.lock().unwrap().get(n).cloned().unwrap_or_default();
    until("the app has the body", || whole(0).ends_with(rest.as_bytes())).await;
    client
        .write_all(b"GET /next HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(read_answer(&mut client, &mut buffer).await.1, b"early");
    assert!(whole(1).starts_with(b"GET /next "), "the next request is the next one");
    assert!(got.lock().unwrap().len() == 2 && buffer.is_empty());

    // One that comes slowly, for longer than a head may, is a body too.
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    client.write_all(HALF.as_bytes()).await.unwrap();
    assert_eq!(read_answer(&mut client, &mut buffer).await.1, b"early");
    for _ in 0..50 {
        client.write_all(b"b").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    until("the app has all of it", || whole(2).ends_with(&[b'b'; 50])).await;
    client
        .write_all(b"GET /again HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(read_answer(&mut client, &mut buffer).await.1, b"early");
    assert!(whole(3).starts_with(b"GET /again "));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_body_that_does_not_come_ends_the_connection() {
    let (at, got) = hasty().await;
    let strict = gateway::Config {
        park_after_ms: 50,
        body_idle_ms: 400,
        min_body_grace_ms: 400,
        ..config()
    };
    let gateway = Gateway::hello_with(strict, &[at], AppConfig::default()).await;
    for (n, trickles) in [false, true].into_iter().enumerate() {
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        client.write_all(HALF.as_bytes()).await.unwrap();
        let start = Instant::now();
        let mut all = Vec::new();
        let mut ended = false;
        while !ended {
            assert!(start.elapsed() < LIMIT, "closed");
            if trickles {
                let _ = client.write_all(b"b").await;
            }
            let read = tokio::time::timeout(Duration::from_millis(50), client.read_buf(&mut all)).await;
            ended = matches!(read, Ok(Ok(0) | Err(_)));
        }
        assert!(
            start.elapsed() > Duration::from_millis(350),
            "after {:?}",
            start.elapsed()
        );
        let answer = Answer::parse(&all);
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "early"),
            "and not a word more"
        );
        let body = got.lock().unwrap()[n].len();
        assert!(body < 400, "the app has half a request: {body} bytes");
    }
}

const LARGE: usize = 10 * 1_024 * 1_024;

fn upload(length: usize) -> Vec<u8> {
    let head = format!("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), &vec![b'a'; length]].concat()
}

/// Sends a large upload while the answer is read.
async fn post(at: SocketAddr) -> Answer {
    let (mut read, mut write) = TcpStream::connect(at).await.unwrap().into_split();
    // What is not wanted any more may be refused.
    let sending = tokio::spawn(async move {
        let _ = write.write_all(&upload(LARGE)).await;
        write
    });
    let (head, body) = read_answer(&mut read, &mut Vec::new()).await;
    sending.abort();
    Answer::parse(&[head.as_bytes(), b"\r\n\r\n", &body].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_reads_late_is_waited_for_as_for_its_answer() {
    // Reads nothing for a while, then all; of the second connection nothing ever.
    let (at, _) = upstream(move |mut stream, n| async move {
        if n == 1 {
            return std::future::pending().await;
        }
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let request = read_request(&mut stream, &mut Vec::new()).await.unwrap().unwrap();
        let body = request.body.len().to_string();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;
    let short = gateway::Config {
        body_idle_ms: 300,
        min_body_grace_ms: 300,
        ..config()
    };
    let patient = timeouts(Timeouts {
        response_s: 3,
        ..Timeouts::default()
    });
    let gateway = Gateway::hello_with(short, &[at], patient).await;
    assert_eq!(post(gateway.http).await.body, LARGE.to_string());
    let start = Instant::now();
    let never = post(gateway.http).await;
    assert_eq!((never.status, never.reason()), (504, "upstream_timeout"));
    assert!(start.elapsed() > Duration::from_millis(2_900), "{:?}", start.elapsed());
    assert!(
        gateway
            .admin("/routes")
            .await
            .body
            .contains("\"reason\":\"upstream_timeout\"")
    );
    // By HTTP/2 too.
    let mut client = crate::http2_support::Client::open(gateway.http).await;
    let request = http::Request::post("http://hello.localhost/").body(()).unwrap();
    let (response, mut send) = client.start(request, false).await;
    send.send_data(vec![b'a'; LARGE].into(), true).unwrap();
    let answer = crate::http2_support::finish(response).await.unwrap();
    assert_eq!((answer.status(), answer.body), (200, LARGE.to_string().into_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_answers_early_and_reads_no_more_holds_nothing() {
    for chunked in [false, true] {
        let (gone, mut ends) = tokio::sync::mpsc::unbounded_channel();
        let (at, _) = upstream(move |mut stream, _| {
            let gone = gone.clone();
            async move {
                let mut head = vec![0; 40];
                stream.read_exact(&mut head).await.unwrap();
                let answer: &[u8] = if chunked {
                    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nearly\r\n"
                } else {
                    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly"
                };
                stream.write_all(answer).await.unwrap();
                if chunked {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    stream.write_all(b"0\r\n\r\n").await.unwrap();
                }
                // Without reading it learns only by writing that the other side has gone.
                while stream.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                gone.send(()).unwrap();
            }
        })
        .await;
        let short = gateway::Config {
            body_idle_ms: 300,
            ..config()
        };
        let gateway = Gateway::hello_with(short, &[at], AppConfig::default()).await;
        // One that stays, one that goes, and one by HTTP/2.
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        let mut sent = 0;
        let all = upload(5 * LARGE);
        let sending = tokio::time::timeout(Duration::from_millis(800), async {
            while let Ok(n @ 1..) = client.write(&all[sent..]).await {
                sent += n;
            }
        });
        let _ = sending.await;
        assert!(read_until(&mut client, "early").await.starts_with("HTTP/1.1 200"));
        let left = tokio::time::timeout(LIMIT, ends.recv()).await;
        left.expect("the endpoint is left").unwrap();
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(200), client.write_all(&all)).await;
        drop(client);
        let left = tokio::time::timeout(LIMIT, ends.recv()).await;
        left.expect("the endpoint is left").unwrap();
        let mut client = crate::http2_support::Client::open(gateway.http).await;
        let request = http::Request::post("http://hello.localhost/").body(()).unwrap();
        let (response, mut send) = client.start(request, false).await;
        send.send_data(all.into(), true).unwrap();
        assert_eq!(crate::http2_support::finish(response).await.unwrap().status(), 200);
        let left = tokio::time::timeout(LIMIT, ends.recv()).await;
        left.expect("the endpoint is left").unwrap();
        gateway.reaches(IN_FLIGHT, 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_uploads_fast_reads_why_it_was_refused() {
    let app = Recorder::start("app").await;
    let small = gateway::Config {
        max_body_bytes: 1_000,
        ..config()
    };
    let gateway = Gateway::hello_with(small, &[app.at], AppConfig::default()).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    // It looks for an answer once it has said everything.
    let sent = tokio::time::timeout(LIMIT, client.write_all(&upload(3 * LARGE))).await;
    sent.expect("taken").expect("not reset");
    let mut buffer = Vec::new();
    let (head, _) = read_answer(&mut client, &mut buffer).await;
    assert!(head.starts_with("http/1.1 413"), "{head}");
    assert_eq!(client.read_buf(&mut buffer).await.unwrap(), 0);
}
