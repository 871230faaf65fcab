//! Requests that try to be understood in two ways.
//!
//! A refused request is answered with a client error (or cut off) and nothing of it reaches an app. A normalised one
//! reaches the app exactly once, in a form with one reading.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;

/// What has to become of a request.
enum Want {
    /// 4xx or 501, or a closed connection, and nothing at the app.
    Refused,
    /// The app sees these request lines, and these body bytes in all.
    Seen(&'static [&'static str], &'static str),
}
use Want::{Refused, Seen};

const NEXT: &str = "GET /smuggled HTTP/1.1\r\nHost: hello.localhost\r\n\r\n";

/// `\r\n` after each line, Host added after the request line where the case does not bring one.
fn cases() -> Vec<(&'static str, String, Want)> {
    let h = "Host: hello.localhost\r\n";
    let post = |fields: &str, body: &str| format!("POST /a HTTP/1.1\r\n{h}{fields}\r\n{body}");
    let get = |fields: &str| format!("GET /a HTTP/1.1\r\n{h}{fields}Connection: close\r\n\r\n");
    let line = |line: &str| format!("{line}\r\n{h}Connection: close\r\n\r\n");
    let mut cases: Vec<(&'static str, String, Want)> = vec![
        // 1, 2: two framings, and encodings that hide
        (
            "cl before te",
            post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nX"),
            Seen(&["POST /a HTTP/1.1"], ""),
        ),
        (
            "te before cl",
            post(
                "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
                "1\r\nZ\r\n0\r\n\r\n",
            ),
            Seen(&["POST /a HTTP/1.1"], "Z"),
        ),
        (
            "te with space before colon",
            post("Transfer-Encoding : chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
            Refused,
        ),
        (
            "te with vertical tab",
            post("Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
            Refused,
        ),
        (
            "te with leading comma",
            post("Transfer-Encoding: ,chunked\r\n", "0\r\n\r\n"),
            Refused,
        ),
        (
            "te chunked, cow",
            post("Transfer-Encoding: chunked, cow\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
            Refused,
        ),
        ("te cow", post("Transfer-Encoding: cow\r\n", "0\r\n\r\n"), Refused),
        (
            "te gzip, chunked",
            post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
            Refused,
        ),
        (
            "te twice",
            post(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                "0\r\n\r\n",
            ),
            Refused,
        ),
        (
            "te chunked then identity",
            post(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
                "0\r\n\r\n",
            ),
            Refused,
        ),
        (
            "te quoted",
            post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"),
            Refused,
        ),
        (
            "te with parameter",
            post("Transfer-Encoding: chunked;a=b\r\n", "0\r\n\r\n"),
            Refused,
        ),
        (
            "te in http/1.0",
            format!("POST /a HTTP/1.0\r\n{h}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            Refused,
        ),
        (
            "te empty",
            post("Transfer-Encoding:\r\nContent-Length: 3\r\n", "abc"),
            Refused,
        ),
        // 3: lengths
        ("cl +5", post("Content-Length: +5\r\n", "abcde"), Refused),
        ("cl -5", post("Content-Length: -5\r\n", "abcde"), Refused),
        ("cl hex", post("Content-Length: 0x5\r\n", "abcde"), Refused),
        ("cl list", post("Content-Length: 5,6\r\n", "abcde"), Refused),
        ("cl empty", post("Content-Length: \r\n", "abcde"), Refused),
        (
            "cl overflow",
            post("Content-Length: 18446744073709551621\r\n", "abcde"),
            Refused,
        ),
        (
            "cl differ",
            post("Content-Length: 5\r\nContent-Length: 6\r\n", "abcde"),
            Refused,
        ),
        (
            "cl with space inside",
            post("Content-Length: 5 5\r\n", "abcde"),
            Refused,
        ),
        ("cl with letter", post("Content-Length: 5a\r\n", "abcde"), Refused),
        (
            "cl space before colon",
            post("Content-Length : 5\r\n", "abcde"),
            Refused,
        ),
        (
            "cl same twice",
            post(
                "Content-Length: 5\r\nContent-Length: 5\r\nConnection: close\r\n",
                "abcde",
            ),
            Seen(&["POST /a HTTP/1.1"], "abcde"),
        ),
        // 4: chunk grammar (the app may have seen the head: the request was whole when it began)
        (
            "te case and tabs",
            post(
                "tRaNsFeR-eNcOdInG:\tChUnKeD \t\r\nConnection: close\r\n",
                "1\r\nq\r\n0\r\n\r\n",
            ),
            Seen(&["POST /a HTTP/1.1"], "q"),
        ),
        (
            "chunk upper-case hex",
            post(
                "Transfer-Encoding: chunked\r\nConnection: close\r\n",
                "A\r\n0123456789\r\n0\r\n\r\n",
            ),
            Seen(&["POST /a HTTP/1.1"], "0123456789"),
        ),
        (
            "chunk extension",
            post(
                "Transfer-Encoding: chunked\r\nConnection: close\r\n",
                "1;a=b\r\nq\r\n0\r\n\r\n",
            ),
            Seen(&["POST /a HTTP/1.1"], "q"),
        ),
        (
            "chunk leading zeros",
            post(
                "Transfer-Encoding: chunked\r\nConnection: close\r\n",
                "0001\r\nq\r\n000\r\n\r\n",
            ),
            Seen(&["POST /a HTTP/1.1"], "q"),
        ),
        // 6: Expect
        (
            "expect something else",
            post(
                "Expect: y 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n",
                "abc",
            ),
            Seen(&["POST /a HTTP/1.1"], "abc"),
        ),
        (
            "expect with get",
            get("Expect: 100-continue\r\n"),
            Seen(&["GET /a HTTP/1.1"], ""),
        ),
        // 7: Host
        (
            "no host",
            "GET /a HTTP/1.1\r\nConnection: close\r\n\r\n".into(),
            Refused,
        ),
        ("no host 1.0", "GET /a HTTP/1.0\r\n\r\n".into(), Refused),
        ("two hosts", get(h), Refused),
        ("two hosts that differ", get("Host: other.localhost\r\n"), Refused),
        (
            "host space before colon",
            "GET /a HTTP/1.1\r\nHost : hello.localhost\r\n\r\n".into(),
            Refused,
        ),
        // 8: targets
        (
            "absolute decides",
            "GET http://hello.localhost/a HTTP/1.1\r\nHost: evil.localhost\r\nConnection: close\r\n\r\n".into(),
            Seen(&["GET /a HTTP/1.1"], ""),
        ),
        (
            "absolute to an address",
            line("GET http://169.254.169.254/latest HTTP/1.1"),
            Refused,
        ),
        (
            "absolute with user",
            line("GET http://hello.localhost@evil/ HTTP/1.1"),
            Refused,
        ),
        ("absolute ftp", line("GET ftp://hello.localhost/ HTTP/1.1"), Refused),
        ("connect", line("CONNECT hello.localhost:80 HTTP/1.1"), Refused),
        ("connect to elsewhere", line("CONNECT 127.0.0.1:22 HTTP/1.1"), Refused),
        ("authority form", line("GET hello.localhost:80 HTTP/1.1"), Refused),
        ("target without slash", line("GET a HTTP/1.1"), Refused),
        ("star with get", line("GET * HTTP/1.1"), Refused),
        (
            "options star",
            line("OPTIONS * HTTP/1.1"),
            Seen(&["OPTIONS * HTTP/1.1"], ""),
        ),
        (
            "double slash is a path",
            line("GET //evil.com/a HTTP/1.1"),
            Seen(&["GET //evil.com/a HTTP/1.1"], ""),
        ),
        ("fragment", line("GET /a#b HTTP/1.1"), Seen(&["GET /a HTTP/1.1"], "")),
        ("nul in the target", line("GET /a\0b HTTP/1.1"), Refused),
        ("space in the target", line("GET /a b HTTP/1.1"), Refused),
        ("tab in the request line", line("GET\t/a HTTP/1.1"), Refused),
        // 9, 10, 11: what the gateway says can't be taken away or forged
        (
            "connection names our fields",
            get("Connection: X-Forwarded-For, Host, Content-Length\r\n"),
            Seen(&["GET /a HTTP/1.1"], ""),
        ),
        (
            "h2c",
            get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
            Seen(&["GET /a HTTP/1.1"], ""),
        ),
        // grammar of heads
        ("obs-fold", get("X-A: b\r\n c\r\n"), Refused),
        ("line without colon", get("nonsense\r\n"), Refused),
        ("empty name", get(": x\r\n"), Refused),
        ("space in a name", get("X A: b\r\n"), Refused),
        ("nul in a value", get("X-A: a\0b\r\n"), Refused),
        (
            "bare cr in a value",
            get("X-A: a\rTransfer-Encoding: chunked\r\n"),
            Refused,
        ),
        ("control in a name", get("X\x01A: b\r\n"), Refused),
        ("non-ascii name", get("X-\u{e9}: b\r\n"), Refused),
        (
            "bare lf",
            "GET /a HTTP/1.1\nHost: hello.localhost\nConnection: close\n\n".into(),
            Seen(&["GET /a HTTP/1.1"], ""),
        ),
        ("version 1.2", line("GET /a HTTP/1.2"), Refused),
        ("version 2.0", line("GET /a HTTP/2.0"), Refused),
        ("version 0.9", "GET /a\r\n\r\n".into(), Refused),
        ("version lower case", line("GET /a http/1.1"), Refused),
        ("version with junk", line("GET /a HTTP/1.1x"), Refused),
        ("method with a separator", line("GE(T /a HTTP/1.1"), Refused),
        (
            "tls hello",
            "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03aaaaaaaaaaaaaaaaaaaaaaaa".into(),
            Refused,
        ),
        ("h2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), Refused),
        (
            "space before the first field",
            format!("GET /a HTTP/1.1\r\n {h}\r\n"),
            Refused,
        ),
        // 20: size
        (
            "a field of 40 kB",
            get(&format!("X-A: {}\r\n", "a".repeat(40_000))),
            Refused,
        ),
        (
            "a target of 70 kB",
            line(&format!("GET /{} HTTP/1.1", "a".repeat(70_000))),
            Refused,
        ),
        (
            "101 fields",
            get(&(0..100).map(|i| format!("X-{i}: 1\r\n")).collect::<String>()),
            Refused,
        ),
        (
            "20,000 fields",
            get(&(0..20_000).map(|i| format!("X-{i}: 1\r\n")).collect::<String>()),
            Refused,
        ),
        (
            "98 fields",
            get(&(0..98).map(|i| format!("X-{i}: 1\r\n")).collect::<String>()),
            Seen(&["GET /a HTTP/1.1"], ""),
        ),
    ];
    for host in [
        "app.test,evil",
        "evil@hello.localhost",
        "hello.localhost\x01.evil",
        "hello.localhost:80:80",
        "hello.localhost:99999",
        "[::1]",
        "",
        "hello..localhost",
        "hello.localhost/evil",
        "hello.localhost evil",
        "hello.localhost\\evil",
        "hello.localhost?",
        "hello.localhost#",
        "%68ello.localhost",
        "hello.localhost:0x50",
        "http://hello.localhost",
    ] {
        cases.push((
            "host",
            format!("GET /a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
            Refused,
        ));
    }
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_two_readings() {
    let cases = cases();
    assert!(cases.len() >= 60, "{}", cases.len());
    for (name, bytes, want) in cases {
        let app = Recorder::start("app").await;
        let gateway = Gateway::hello(&[app.at]).await;
        let refused = matches!(want, Refused);
        // After a request that must be refused comes one that would be seen if the first one's end were misjudged.
        let text = if refused { format!("{bytes}{NEXT}") } else { bytes };
        let got = exchange(gateway.http, text.as_bytes()).await;
        let answer = Answer::parse(&got);
        match want {
            Refused => {
                let status = answer.status;
                assert!(
                    status == 0 || status == 501 || (400..500).contains(&status),
                    "{name}: {status} {}",
                    answer.head
                );
                assert_eq!(app.count(), 0, "{name}: the app saw {:?}", app.seen.lock().unwrap());
            }
            Seen(lines, body) => {
                assert_eq!(answer.status, 200, "{name}: {}", answer.head);
                let seen = app.seen.lock().unwrap().clone();
                let got: Vec<&str> = seen.iter().map(crate::support::Seen::line).collect();
                assert_eq!(got, lines, "{name}");
                let bodies: Vec<u8> = seen.iter().flat_map(|s| s.body.clone()).collect();
                assert_eq!(bodies, body.as_bytes(), "{name}");
                for request in &seen {
                    assert_eq!(request.header("x-forwarded-for"), ["127.0.0.1"], "{name}");
                    assert_eq!(request.header("host").len(), 1, "{name}");
                    for gone in ["upgrade", "http2-settings", "expect", "connection"] {
                        assert!(request.header(gone).is_empty(), "{name}: {gone}");
                    }
                }
            }
        }
        assert!(
            app.junk.lock().unwrap().is_empty(),
            "{name}: {:?}",
            app.junk.lock().unwrap()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_chunks_are_the_clients_fault() {
    for (name, body) in [
        ("empty size", "\r\nabc\r\n0\r\n\r\n"),
        ("0x", "0x3\r\nabc\r\n0\r\n\r\n"),
        ("minus", "-0\r\n\r\n"),
        ("junk after the size", "3xyz\r\nabc\r\n0\r\n\r\n"),
        ("17 digits", "10000000000000003\r\nabc\r\n0\r\n\r\n"),
        ("newline in the extension", "3;a\nb\r\nabc\r\n0\r\n\r\n"),
        ("no end of line after the data", "3\r\nabcX\r\n0\r\n\r\n"),
        ("cut", "5\r\nab"),
    ] {
        let app = Recorder::start("app").await;
        let gateway = Gateway::hello(&[app.at]).await;
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        let head = "POST /a HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        if name == "cut" {
            client.shutdown().await.unwrap();
        } else {
            let _ = client.write_all(NEXT.as_bytes()).await;
        }
        let mut got = Vec::new();
        let _ = tokio::time::timeout(LIMIT, client.read_to_end(&mut got)).await;
        let status = Answer::parse(&got).status;
        assert!(status == 0 || status == 400, "{name}: {status}");
        assert_eq!(app.count(), 0, "{name}: a message without its end is none");
        let routes = gateway.admin("/routes").await.body;
        assert!(
            routes.contains("\"failures\":0"),
            "{name}: never counts against the endpoint: {routes}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_are_cut() {
    let app = Recorder::start("app").await;
    let fast = gateway::Config {
        header_timeout_ms: 300,
        body_idle_ms: 300,
        ..config()
    };
    let gateway = Gateway::hello_with(fast, &[app.at], model::AppConfig::default()).await;
    for (name, sent, answer) in [
        ("no byte", "", ""),
        ("half a line", "GE", "408"),
        ("half a head", "GET / HTTP/1.1\r\nHost: hello.localhost\r\nX-A: ", "408"),
        (
            "half a body",
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5\r\n\r\nab",
            "408",
        ),
        (
            "half a chunk",
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            "408",
        ),
    ] {
        let start = std::time::Instant::now();
        let got = exchange(gateway.http, sent.as_bytes()).await;
        let took = start.elapsed().as_millis();
        let got = String::from_utf8_lossy(&got).into_owned();
        assert!(
            got.contains(answer) && got.is_empty() == answer.is_empty(),
            "{name}: {got}"
        );
        assert!((250..2_500).contains(&took), "{name}: {took} ms");
    }
    assert_eq!(app.count(), 0);
    // A byte now and then does not buy time.
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    let start = std::time::Instant::now();
    let mut cut = false;
    while start.elapsed() < LIMIT && !cut {
        cut = client.write_all(b"G").await.is_err();
        let mut byte = [0; 64];
        let read = tokio::time::timeout(std::time::Duration::from_millis(50), client.read(&mut byte)).await;
        cut |= matches!(read, Ok(Ok(_) | Err(_)));
    }
    assert!(start.elapsed().as_millis() < 2_000, "cut after {:?}", start.elapsed());
}
