//! RFC 9113, section by section, against the front of the gateway: what is wrong is refused as the RFC says, nothing of it
//! reaches an app, and what is allowed goes through. Each check is one connection.

use crate::http2_support::*;
use crate::support::*;

pub(crate) const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
pub(crate) const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

const SIZE: &[u32] = &[FRAME_SIZE_ERROR];
const COMPRESSION: &[u32] = &[COMPRESSION_ERROR];

/// What has to come of it. Requests to `/bad` must not reach an app.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Must {
    /// The connection goes on: stream 101 gets its answer.
    GoOn,
    /// Stream 1 is answered with this status, and the connection goes on.
    Answer(u16),
    /// Stream 1 is reset, with one of these codes, and the connection goes on.
    Reset(&'static [u32]),
    /// The connection ends with one of these codes.
    End(&'static [u32]),
    /// Either of the last two: the RFC allows both.
    Fail(&'static [u32]),
}
use Must::{Answer, End, Fail, GoOn, Reset};

pub(crate) struct Check {
    name: &'static str,
    bytes: Vec<u8>,
    must: Must,
}

pub(crate) fn check(name: &'static str, frames: &[Vec<u8>], must: Must) -> Check {
    Check {
        name,
        bytes: frames.concat(),
        must,
    }
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

async fn run(gateway: &Gateway, check: Check) -> Result<(), String> {
    let mut raw = Raw::open(gateway.http).await;
    let ask = frame(HEADERS, WHOLE, 101, &get("/good", &[]));
    let goes_on = matches!(check.must, GoOn | Answer(_) | Reset(_));
    raw.send(&check.bytes).await;
    let wrong = |what: String| Err(format!("{}: wanted {:?}, {what}", check.name, check.must));
    let mut seen = goes_on && matches!(check.must, GoOn);
    if seen {
        raw.send(&ask).await;
    }
    loop {
        let Some(frame) = raw.next().await else {
            return wrong("closed".into());
        };
        match (check.must, frame.kind, frame.stream) {
            (Answer(status), HEADERS, 1) if frame.status() == status => seen = true,
            (Reset(codes), RST_STREAM, 1) if codes.contains(&frame.code()) => seen = true,
            (Fail(codes), RST_STREAM, 1) if codes.contains(&frame.code()) => return Ok(()),
            (End(codes) | Fail(codes), GOAWAY, 0) if codes.contains(&frame.code()) => {
                raw.last_words().await;
                return Ok(());
            }
            // An answer that does not wait for its request ends it (8.1).
            (Answer(_), RST_STREAM, 1) if frame.code() == 0 => continue,
            (_, GOAWAY | RST_STREAM, _) => return wrong(format!("got {frame:?}")),
            (_, HEADERS, 101) if seen => {
                return if frame.status() == 200 {
                    Ok(())
                } else {
                    wrong(format!("afterwards {frame:?}"))
                };
            }
            (Answer(_) | Reset(_) | End(_) | Fail(_), HEADERS, 1) => return wrong(format!("got {frame:?}")),
            _ => continue,
        }
        raw.send(&ask).await;
    }
}

pub(crate) async fn run_all(checks: Vec<Check>) {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let mut wrong = Vec::new();
    for check in checks {
        if let Err(text) = run(&gateway, check).await {
            wrong.push(text);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let bad: Vec<_> = app
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(|r| r.head.clone())
        .filter(|h| h.contains("/bad"))
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
    // Uploads that were broken off, and nothing else.
    let junk = app.junk.lock().unwrap().clone();
    assert!(junk.iter().all(|j| j.contains(" cut: POST /")), "{junk:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_and_their_sizes() {
    let good = || frame(HEADERS, WHOLE, 1, &get("/good", &[]));
    let open = || frame(HEADERS, END_HEADERS, 1, &request("POST", "/upload", &[]));
    run_all(vec![
        check("4.1 a type unknown", &[frame(0xbe, 0xff, 0, b"whatever")], GoOn),
        check(
            "4.1 a type unknown on a stream",
            &[open(), frame(0xbe, 0, 1, b"x")],
            GoOn,
        ),
        check("4.1 flags unknown", &[frame(PING, 0xf0, 0, &[1; 8])], GoOn),
        check(
            "4.2 DATA too large",
            &[open(), frame(DATA, 0, 1, &[0; 16_385])],
            End(SIZE),
        ),
        check(
            "4.2 HEADERS too large",
            &[frame(HEADERS, WHOLE, 1, &[0; 16_385])],
            End(SIZE),
        ),
        check(
            "4.2 DATA as large as may be",
            &[open(), frame(DATA, END_STREAM, 1, &[b'x'; 16_384])],
            GoOn,
        ),
        check(
            "4.3 an index beyond the table",
            &[frame(HEADERS, WHOLE, 1, &[0xff, 0xff, 0x01])],
            End(COMPRESSION),
        ),
        check("4.3 index 0", &[frame(HEADERS, WHOLE, 1, &[0x80])], End(COMPRESSION)),
        check(
            "4.3 a table larger than allowed",
            &[frame(HEADERS, WHOLE, 1, &[0x3f, 0xe2, 0xff, 0x03])],
            End(COMPRESSION),
        ),
        check(
            "4.3 half a string",
            &[frame(HEADERS, WHOLE, 1, &[0, 0x7f])],
            End(COMPRESSION),
        ),
        check(
            "6.1 DATA padded",
            &[open(), frame(DATA, PADDED | END_STREAM, 1, &[2, b'a', 0, 0])],
            GoOn,
        ),
        check(
            "6.1 padding longer than DATA",
            &[open(), frame(DATA, PADDED, 1, &[4, 1, 2, 3])],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.2 HEADERS padded, with a priority",
            &[frame(
                HEADERS,
                WHOLE | PADDED | PRIORITIZED,
                1,
                &[&[1, 0, 0, 0, 3, 7][..], &get("/good", &[]), &[0]].concat(),
            )],
            Answer(200),
        ),
        check(
            "6.2 padding longer than HEADERS",
            &[frame(
                HEADERS,
                WHOLE | PADDED,
                1,
                &[&[255][..], &get("/bad", &[])].concat(),
            )],
            End(&[PROTOCOL_ERROR]),
        ),
        check("6.3 PRIORITY of 4 bytes", &[frame(PRIORITY, 0, 1, &[0; 4])], Fail(SIZE)),
        check("6.3 PRIORITY", &[frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])], GoOn),
        check(
            "6.4 RST_STREAM of 3 bytes",
            &[open(), frame(RST_STREAM, 0, 1, &[0; 3])],
            End(SIZE),
        ),
        check("6.5 SETTINGS of 5 bytes", &[frame(SETTINGS, 0, 0, &[0; 5])], End(SIZE)),
        check(
            "6.5 an acknowledgement that says something",
            &[frame(SETTINGS, ACK, 0, &[0; 6])],
            End(SIZE),
        ),
        check("6.5.2 a setting unknown", &[setting(0xabcd, 7)], GoOn),
        check(
            "6.5.2 push that is no yes or no",
            &[setting(2, 2)],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.5.2 a window too large",
            &[setting(4, 1 << 31)],
            End(&[FLOW_CONTROL_ERROR, PROTOCOL_ERROR]),
        ),
        check("6.5.2 frames too small", &[setting(5, 16_383)], End(&[PROTOCOL_ERROR])),
        check("6.5.2 frames too large", &[setting(5, 1 << 24)], End(&[PROTOCOL_ERROR])),
        check("6.7 PING of 6 bytes", &[frame(PING, 0, 0, &[0; 6])], End(SIZE)),
        check(
            "6.7 an answer that was not asked for",
            &[frame(PING, ACK, 0, &[0; 8])],
            GoOn,
        ),
        check(
            "6.9 WINDOW_UPDATE of 3 bytes",
            &[frame(WINDOW_UPDATE, 0, 0, &[0; 3])],
            End(SIZE),
        ),
        check(
            "6.9 by nothing, connection",
            &[frame(WINDOW_UPDATE, 0, 0, &[0; 4])],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.9 by nothing, stream",
            &[open(), frame(WINDOW_UPDATE, 0, 1, &[0; 4])],
            Fail(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.9.1 a window beyond 2^31-1, connection",
            &[frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())],
            End(&[FLOW_CONTROL_ERROR]),
        ),
        check(
            "6.9.1 a window beyond 2^31-1, stream",
            &[open(), frame(WINDOW_UPDATE, 0, 1, &0x7fff_ffff_u32.to_be_bytes())],
            Fail(&[FLOW_CONTROL_ERROR]),
        ),
        check("the control", &[good()], Answer(200)),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_their_states() {
    let done = || frame(HEADERS, WHOLE, 1, &get("/good", &[]));
    let open = || frame(HEADERS, END_HEADERS, 1, &request("POST", "/upload", &[]));
    let begun = |flags| frame(HEADERS, flags, 1, &get("/bad", &[])[..20]);
    run_all(vec![
        check(
            "5.1 DATA before HEADERS",
            &[frame(DATA, 0, 1, b"x")],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "5.1 RST_STREAM before HEADERS",
            &[frame(RST_STREAM, 0, 1, &[0; 4])],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "5.1 WINDOW_UPDATE before HEADERS",
            &[frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "5.1 CONTINUATION before HEADERS",
            &[frame(CONTINUATION, END_HEADERS, 1, &get("/bad", &[]))],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "5.1 DATA after the end",
            &[done(), frame(DATA, END_STREAM, 1, b"x")],
            Fail(&[STREAM_CLOSED, PROTOCOL_ERROR]),
        ),
        check(
            "5.1 HEADERS after the end",
            &[done(), frame(HEADERS, WHOLE, 1, &get("/bad", &[]))],
            Fail(&[STREAM_CLOSED, PROTOCOL_ERROR]),
        ),
        check(
            "5.1.1 an even number",
            &[frame(HEADERS, WHOLE, 2, &get("/bad", &[]))],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "5.1.1 a number lower than before",
            &[
                frame(HEADERS, WHOLE, 5, &get("/good", &[])),
                frame(HEADERS, WHOLE, 3, &get("/bad", &[])),
            ],
            End(&[PROTOCOL_ERROR, STREAM_CLOSED]),
        ),
        check(
            "6.1 DATA on stream 0",
            &[frame(DATA, END_STREAM, 0, b"x")],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.2 HEADERS on stream 0",
            &[frame(HEADERS, WHOLE, 0, &get("/bad", &[]))],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.3 PRIORITY on stream 0",
            &[frame(PRIORITY, 0, 0, &[0, 0, 0, 3, 1])],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.4 RST_STREAM on stream 0",
            &[frame(RST_STREAM, 0, 0, &[0; 4])],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.5 SETTINGS on a stream",
            &[frame(SETTINGS, 0, 1, &[])],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.6 PUSH_PROMISE by a client",
            &[frame(
                PUSH_PROMISE,
                END_HEADERS,
                1,
                &[&[0, 0, 0, 2][..], &get("/bad", &[])].concat(),
            )],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.7 PING on a stream",
            &[frame(PING, 0, 1, &[0; 8])],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.8 GOAWAY on a stream",
            &[frame(GOAWAY, 0, 1, &[0; 8])],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.10 a block in two frames",
            &[
                frame(HEADERS, END_STREAM, 1, &get("/good", &[])[..20]),
                frame(CONTINUATION, END_HEADERS, 1, &get("/good", &[])[20..]),
            ],
            Answer(200),
        ),
        check(
            "6.10 something else within a block",
            &[begun(END_STREAM), frame(PING, 0, 0, &[0; 8])],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.10 another stream within a block",
            &[begun(END_STREAM), frame(CONTINUATION, END_HEADERS, 3, b"")],
            End(&[PROTOCOL_ERROR]),
        ),
        check(
            "6.10 endless CONTINUATION (CVE-2024-27316)",
            &[begun(END_STREAM), frame(CONTINUATION, 0, 1, b"").repeat(100)],
            End(&[ENHANCE_YOUR_CALM]),
        ),
        check(
            "8.1 trailers that do not end",
            &[open(), frame(HEADERS, END_HEADERS, 1, &block(&[("a", "b")]))],
            Fail(&[PROTOCOL_ERROR]),
        ),
        check(
            "8.1 pseudo fields in trailers",
            &[open(), frame(HEADERS, WHOLE, 1, &block(&[(":method", "GET")]))],
            Fail(&[PROTOCOL_ERROR]),
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_preface() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    // 3.4: the rest of the preface is wrong, or no SETTINGS follow.
    for bytes in [
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(),
        b"PRI / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n".to_vec(),
        [PREFACE, &frame(PING, 0, 0, &[0; 8])].concat(),
        [PREFACE, b"GET / HTTP/1.1\r\nhost: hello.localhost\r\n\r\n"].concat(),
    ] {
        let mut raw = Raw::silent(gateway.http).await;
        raw.send(&bytes).await;
        raw.last_words().await;
    }
    // Byte by byte it is the same preface.
    let mut raw = Raw::silent(gateway.http).await;
    for byte in PREFACE {
        raw.send(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    raw.send(&frame(SETTINGS, 0, 0, &[])).await;
    raw.send(&frame(HEADERS, WHOLE, 1, &get("/good", &[]))).await;
    let answer = raw.find(|f| f.kind == HEADERS).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    // And what begins alike is none.
    assert_eq!(
        gateway
            .send("P / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n")
            .await
            .status,
        200
    );
    assert_eq!(
        gateway
            .send("PRIX / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n")
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_and_pings_are_answered() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let mut raw = Raw::silent(gateway.http).await;
    raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    let settings = raw.find(|f| f.kind == SETTINGS && f.flags == 0).await.unwrap();
    let value = |id: u16| {
        settings
            .payload
            .chunks(6)
            .find(|s| s[..2] == id.to_be_bytes())
            .map(|s| u32::from_be_bytes(s[2..].try_into().unwrap()))
    };
    // Streams, window, header list, extended CONNECT.
    assert_eq!(value(3), Some(250));
    assert_eq!(value(4), Some(128 * 1024));
    assert_eq!(value(6), Some(32 * 1024 + 32 * 100));
    assert_eq!(value(8), Some(1));
    raw.find(|f| f.kind == SETTINGS && f.flags == ACK)
        .await
        .expect("acknowledged");
    raw.send(&frame(PING, 0, 0, b"answerme")).await;
    let pong = raw.find(|f| f.kind == PING && f.flags == ACK).await.unwrap();
    assert_eq!(pong.payload, b"answerme");
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_kept() {
    let app = Recorder::start("app").await;
    let small = gateway::Config {
        buffer_bytes: 16_384,
        ..config()
    };
    let gateway = Gateway::hello_with(small, &[app.at], model::AppConfig::default()).await;
    let mut raw = Raw::open(gateway.http).await;
    // 6.9.1: four windows' worth in one piece.
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[]));
    for _ in 0..4 {
        bytes.extend(frame(DATA, 0, 1, &[0; 16_384]));
    }
    raw.send(&bytes).await;
    let end = raw
        .find(|f| matches!(f.kind, RST_STREAM | GOAWAY))
        .await
        .expect("refused");
    assert_eq!(end.code(), FLOW_CONTROL_ERROR);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_streams_than_allowed() {
    let (never, _) = upstream(|mut stream, _| async move {
        let mut rest = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
    })
    .await;
    let few = gateway::Config {
        http2_max_streams: 3,
        ..config()
    };
    let gateway = Gateway::hello_with(few, &[never], model::AppConfig::default()).await;
    let mut raw = Raw::open(gateway.http).await;
    for id in [1, 3, 5, 7] {
        raw.send(&frame(HEADERS, WHOLE, id, &get("/", &[]))).await;
    }
    let refused = raw.find(|f| f.kind == RST_STREAM).await.expect("refused");
    assert_eq!((refused.stream, refused.code()), (7, REFUSED_STREAM));
}
