//! Sends the cases of HTTP/2 and looks at what came of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

use super::http2_cases::{Body, CASES, Case, Fields};
use super::run::{Apps, Next, bystander, wrong_at_app};
use super::template::Fill;
use crate::http2_frames::*;

/// Clients that send a case.
const CLIENTS: usize = 2;

/// What has to come of a request on stream 1, while stream 3 asks for `/next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// This status, and the next request is answered; the app sees nothing of this one.
    Refused(u16),
    /// The stream is reset and the next request is answered, or the connection ends: the RFC allows both. The app sees nothing.
    Fails,
    /// The same after a sound head, or 400: the app sees at most a request without an end.
    Broken,
    /// The app sees exactly this (as [`super::Want::Sees`]), and the next request.
    Sees(&'static str, &'static [u8]),
}

impl Want {
    /// What it means for the app.
    fn at_app(self) -> (super::Want, Next) {
        match self {
            Self::Sees(line, body) => (super::Want::Sees(line, body), Next::Times(CLIENTS)),
            Self::Refused(status) => (super::Want::Answered(status), Next::Times(CLIENTS)),
            Self::Fails => (super::Want::Silence, Next::Any),
            Self::Broken => (super::Want::Broken, Next::Any),
        }
    }
}

/// What came on a stream.
#[derive(Debug, Default)]
struct Stream {
    status: u16,
    body: Vec<u8>,
    reset: bool,
    done: bool,
}

/// The frames of a case and of the request after it.
fn frames(case: &Case, fill: &Fill<'_>) -> Vec<u8> {
    let (next, host) = (fill.bytes(b"/next"), fill.text("{host}"));
    let named = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/a"),
        (":authority", host.as_str()),
    ];
    let (more, replaced) = match case.2 {
        Fields::Whole(all) => (all, &named[..0]),
        Fields::With(more) => (more, &named[..]),
    };
    let mut fields: Vec<(String, String)> = replaced
        .iter()
        .filter(|(name, _)| !more.iter().any(|(n, _)| n == name))
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
        .collect();
    // Pseudo fields come first where the case does not say otherwise.
    let pseudo = if replaced.is_empty() {
        0
    } else {
        more.iter().take_while(|(n, _)| n.starts_with(':')).count()
    };
    for (at, (name, value)) in more.iter().enumerate() {
        let field = (fill.text(name), fill.text(value));
        if at < pseudo {
            fields.insert(at, field)
        } else {
            fields.push(field)
        }
    }
    let list =
        |fields: &[(String, String)]| block(&fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect::<Vec<_>>());
    let ends = if matches!(case.3, Body::None) { END_STREAM } else { 0 };
    let mut bytes = Vec::new();
    let head = list(&fields);
    let mut pieces = head.chunks(16_000).peekable();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        let flags = if kind == HEADERS { ends | last } else { last };
        bytes.extend(frame(kind, flags, 1, piece));
        kind = CONTINUATION;
    }
    match case.3 {
        Body::None => {}
        Body::Data(data) => bytes.extend(frame(DATA, END_STREAM, 1, data)),
        Body::Trailers(data, trailers) => {
            bytes.extend(frame(DATA, 0, 1, data));
            bytes.extend(frame(HEADERS, WHOLE, 1, &block(trailers)));
        }
    }
    let next = String::from_utf8(next).unwrap();
    let ask = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", next.as_str()),
        (":authority", host.as_str()),
    ];
    bytes.extend(frame(HEADERS, WHOLE, 3, &block(&ask)));
    bytes
}

/// Sends the frames; both streams, and whether the connection went on.
async fn send(at: SocketAddr, bytes: &[u8]) -> ([Stream; 2], bool) {
    let mut raw = Raw::open(at).await;
    raw.send(bytes).await;
    let mut streams: [Stream; 2] = Default::default();
    while !streams.iter().all(|s| s.done) {
        let Some(frame) = raw.next().await else {
            return (streams, false);
        };
        let stream = match frame.stream {
            1 => &mut streams[0],
            3 => &mut streams[1],
            _ if frame.kind == GOAWAY && frame.code() != 0 => return (streams, false),
            _ => continue,
        };
        match frame.kind {
            HEADERS if stream.status < 200 => stream.status = frame.status(),
            DATA => stream.body.extend(&frame.payload),
            RST_STREAM => (stream.reset, stream.done) = (!stream.done, true),
            _ => {}
        }
        stream.done |= matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0;
    }
    (streams, true)
}

/// What is wrong with what a client got, if anything is.
fn wrong(want: Want, [one, next]: &[Stream; 2], goes_on: bool) -> Option<String> {
    let right = match want {
        Want::Refused(status) => goes_on && one.status == status,
        Want::Fails => !goes_on || (one.reset && one.status == 0),
        Want::Broken => !goes_on || (one.reset && one.status == 0) || one.status == 400,
        Want::Sees(line, body) => {
            let path = line.split(' ').nth(1).unwrap_or_default();
            goes_on
                && one.status == 200
                && (line.starts_with("HEAD ") || one.body == [path.as_bytes(), b" ", body].concat())
        }
    };
    if !right {
        return Some(format!("got {one:?}, the connection goes on: {goes_on}"));
    }
    let next_right = !goes_on || (next.status == 200 && next.body == b"/next ");
    (!next_right).then(|| format!("the next request got {next:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_by_http2_have_one_reading() {
    let mut apps = Apps::start(&[], false, CASES.len()).await;
    let http = apps.gateway.http;
    let port = http.port().to_string();
    let at_once = Arc::new(Semaphore::new(16));
    let mut running = Vec::new();
    for (i, case) in CASES.iter().enumerate() {
        let (at_once, port) = (Arc::clone(&at_once), port.clone());
        running.push(tokio::spawn(async move {
            let _one = at_once.acquire_owned().await.unwrap();
            let host = format!("c{i}.localhost");
            let bytes = frames(
                case,
                &Fill {
                    host: &host,
                    port: &port,
                },
            );
            let done = AtomicBool::new(false);
            let attack = async {
                let all = futures::future::join_all((0..CLIENTS).map(|_| send(http, &bytes))).await;
                done.store(true, Ordering::Release);
                all
            };
            let (all, beside) = tokio::join!(attack, bystander(http, b"", &host, &done));
            let mut wrongs: Vec<String> = beside.err().into_iter().collect();
            wrongs.extend(
                all.iter()
                    .filter_map(|(streams, goes_on)| wrong(case.4, streams, *goes_on)),
            );
            wrongs
                .into_iter()
                .map(|w| format!("{} ({}), {:?}: {w}", case.0, case.1, case.4))
                .collect::<Vec<_>>()
        }));
    }
    let mut wrongs = Vec::new();
    for case in running {
        wrongs.extend(case.await.unwrap());
    }
    for (i, case) in CASES.iter().enumerate() {
        let host = format!("c{i}.localhost");
        let fill = Fill {
            host: &host,
            port: &port,
        };
        let (want, next) = case.4.at_app();
        let seen = wrong_at_app(&apps.books[i].lock().unwrap(), &fill, want, CLIENTS, next);
        wrongs.extend(
            seen.into_iter()
                .map(|w| format!("{} ({}), {:?}: {w}", case.0, case.1, case.4)),
        );
    }
    wrongs.extend(apps.held_against().await);
    assert!(wrongs.is_empty(), "{} wrong:\n{}", wrongs.len(), wrongs.join("\n"));
}
