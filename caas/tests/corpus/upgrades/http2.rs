//! Handshakes by HTTP/2 (RFC 8441), for apps that speak HTTP/1.1.

use std::net::SocketAddr;

use super::{CLIENTS, ask_all, wrong_at_app};
use crate::http2_frames::*;
use crate::peers::*;

/// A handshake: its name, its source, its fields (of an extended CONNECT for a WebSocket, those given instead of or besides its own;
/// `-` takes one away), what follows as DATA (`END`: the stream ends with the head), what the app answers, the protocol that it
/// is asked for (`-`: it is not asked), and what comes of it.
pub(super) struct Case(
    pub(super) &'static str,
    pub(super) &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
    &'static str,
    &'static str,
    Want,
);

/// What comes of a handshake.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// 200, and every byte goes through.
    Tunnel,
    /// This status, no tunnel.
    Gets(u16),
    /// The stream is reset, or the connection ends.
    Fails,
}
use Want::{Fails, Gets, Tunnel};

const END: &str = "END";
const NONE: &[(&str, &str)] = &[];
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    Case("h2-plain", "RFC 8441 4", NONE, "", SWITCH, "websocket", Tunnel),
    Case("h2-protocol-case", "RFC 8441 4", &[(":protocol", "WebSocket")], "", SWITCH, "websocket", Tunnel),
    Case("h2-frames-early", "RFC 8441 5", NONE, "\u{1}\u{5}hello", SWITCH, "websocket", Tunnel),
    Case("h2-request-early", "CVE-2026-2833", NONE, SMUGGLED, SWITCH, "websocket", Tunnel),
    Case("h2-with-key", "RFC 8441 5", &[("sec-websocket-key", "AAAA"), ("sec-websocket-key", "BBBB")], "", SWITCH, "websocket", Tunnel),
    Case("h2-version-8", "RFC 6455 4.4", &[("sec-websocket-version", "8")], "", "HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: websocket\r\ncontent-length: 2\r\n\r\nno", "websocket", Gets(426)),
    Case("h2-declined", "CVE-2026-2833", NONE, "", "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", "websocket", Gets(403)),
    Case("h2-declined-and-a-request-early", "CVE-2026-2833", NONE, SMUGGLED, "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", "websocket", Gets(403)),
    Case("h2-plain-200", "RFC 8441 5", NONE, "", OK, "websocket", Gets(502)),
    Case("h2-plain-200-and-a-request-early", "CVE-2026-2833", NONE, SMUGGLED, OK, "websocket", Gets(502)),
    Case("h2-plain-204", "RFC 8441 5", NONE, "", "HTTP/1.1 204 No Content\r\n\r\n", "websocket", Gets(502)),
    Case("h2-to-another", "RFC 9110 7.8", NONE, "", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n", "websocket", Gets(502)),
    Case("h2-to-h2c", "RFC 9110 7.8", NONE, "", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", "websocket", Gets(502)),
    Case("h2-protocol-other", "RFC 9298 3.4", &[(":protocol", "connect-udp")], "", SWITCH, "-", Gets(405)),
    Case("h2-protocol-h2c", "RFC 8441 4", &[(":protocol", "h2c")], "", SWITCH, "-", Gets(405)),
    Case("h2-protocol-list", "RFC 8441 4", &[(":protocol", "websocket, h2c")], "", SWITCH, "-", Gets(405)),
    Case("h2-protocol-empty", "RFC 8441 4", &[(":protocol", "")], "", SWITCH, "-", Gets(405)),
    Case("h2-protocol-lines", "RFC 9113 8.2.1", &[(":protocol", "websocket\r\nx: y")], "", SWITCH, "-", Gets(405)),
    Case("h2-protocol-twice", "RFC 9113 8.3", &[(":protocol", "websocket"), (":protocol", "foo")], "", SWITCH, "-", Fails),
    Case("h2-protocol-of-get", "RFC 8441 4", &[(":method", "GET")], "", SWITCH, "-", Fails),
    Case("h2-protocol-as-field", "RFC 8441 4", &[(":protocol", "-"), ("protocol", "websocket")], "", SWITCH, "-", Fails),
    Case("h2-connect", "RFC 9113 8.5", &[(":protocol", "-"), (":scheme", "-"), (":path", "-")], "", SWITCH, "-", Gets(405)),
    Case("h2-no-path", "RFC 8441 4", &[(":path", "-")], "", SWITCH, "-", Fails),
    Case("h2-no-scheme", "RFC 8441 4", &[(":scheme", "-")], "", SWITCH, "-", Fails),
    Case("h2-scheme-other", "RFC 8441 5", &[(":scheme", "ftp")], "", SWITCH, "-", Gets(405)),
    Case("h2-no-authority", "RFC 9113 8.3.1", &[(":authority", "-")], "", SWITCH, "-", Gets(400)),
    Case("h2-host-differs", "RFC 9113 8.3.1", &[("host", "evil.localhost")], "", SWITCH, "-", Gets(400)),
    Case("h2-unknown-host", "RFC 9110 7.2", &[(":authority", "evil.localhost")], "", SWITCH, "-", Gets(404)),
    Case("h2-upgrade-too", "RFC 9113 8.2.2", &[("upgrade", "websocket")], "", SWITCH, "-", Fails),
    Case("h2-connection-too", "RFC 9113 8.2.2", &[("connection", "upgrade")], "", SWITCH, "-", Fails),
    Case("h2-upgrade-of-get", "RFC 9113 8.6", &[(":method", "GET"), (":protocol", "-"), ("upgrade", "websocket")], END, SWITCH, "-", Fails),
    Case("h2-length", "RFC 9110 9.3.6", &[("content-length", "35")], SMUGGLED, "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", "websocket", Gets(403)),
    Case("h2-expect", "RFC 9110 10.1.1", &[("expect", "100-continue")], "", SWITCH, "websocket", Tunnel),
    Case("h2-switch-unasked", "RFC 9113 8.6", &[(":method", "GET"), (":protocol", "-")], END, SWITCH, "", Gets(502)),
];

/// The fields of a case.
fn fields(case: &Case, host: &str) -> Vec<(String, String)> {
    let own = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", "/a"),
        (":authority", host),
        ("sec-websocket-version", "13"),
    ];
    let given = |name: &str| {
        case.2
            .iter()
            .filter(|(n, v)| *n == name && *v != "-")
            .copied()
            .collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for (name, value) in own {
        match (given(name), case.2.iter().any(|(n, _)| *n == name)) {
            (_, false) => all.push((name, value)),
            (given, true) => all.extend(given),
        }
    }
    all.extend(case.2.iter().filter(|(n, _)| !own.iter().any(|(o, _)| o == n)));
    all.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

/// What a client of the case got that is wrong, if anything is.
async fn attack(at: SocketAddr, case: &Case, host: &str) -> Result<(), String> {
    let fields = fields(case, host);
    let list: Vec<_> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let mut raw = Raw::open(at).await;
    let flags = if case.3 == END { WHOLE } else { END_HEADERS };
    raw.send(&frame(HEADERS, flags, 1, &block(&list))).await;
    let early = if case.3 == END { "" } else { case.3 };
    if !early.is_empty() {
        raw.send(&frame(DATA, 0, 1, early.as_bytes())).await;
    }
    let head = raw
        .find(|f| f.stream == 1 && matches!(f.kind, HEADERS | RST_STREAM) || f.kind == GOAWAY)
        .await;
    let status = head
        .as_ref()
        .map_or(0, |f| if f.kind == HEADERS { f.status() } else { 0 });
    match case.6 {
        Fails if status == 0 => {}
        Gets(wanted) if status == wanted => {
            // The connection goes on, with a request for the same app.
            let host = if fields.iter().any(|(_, v)| v == "evil.localhost") {
                "c0.localhost"
            } else {
                host
            };
            let next = [
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/next"),
                (":authority", host),
            ];
            raw.send(&frame(HEADERS, WHOLE, 3, &block(&next))).await;
            let data = raw.find(|f| f.stream == 3 && f.kind == DATA).await;
            if data.is_none_or(|f| f.payload != b"next") {
                return Err("the next request got another answer".into());
            }
        }
        Tunnel if status == 200 => {
            raw.send(&frame(DATA, 0, 1, b"ping")).await;
            let wanted = format!("{early}ping");
            let mut got = Vec::new();
            while got.len() < wanted.len() {
                let data = raw.find(|f| f.stream == 1 && matches!(f.kind, DATA | RST_STREAM)).await;
                match data {
                    Some(f) if f.kind == DATA => got.extend(f.payload),
                    _ => break,
                }
            }
            if got != wanted.as_bytes() {
                return Err(format!("{:?} came through", String::from_utf8_lossy(&got)));
            }
        }
        _ => return Err(format!("{:?}: got {head:?}", case.6)),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_by_http2_end_in_tunnels_or_answers() {
    let ask = |at, case, host: String| async move {
        let got = tokio::time::timeout(LIMIT * 8 / 10, attack(at, case, &host)).await;
        got.unwrap_or_else(|_| Err("nothing came".into()))
    };
    let (mut wrongs, books) = ask_all(CASES, |case| case.4, ask).await;
    // The key is the gateway's own, whatever the client has sent.
    let keys = |r: &&Seen| {
        r.header("sec-websocket-key").iter().any(|k| k.len() != 24) || r.head.matches("sec-websocket-key").count() > 1
    };
    for (i, (case, book)) in CASES.iter().zip(books).enumerate() {
        let book = book.lock().unwrap();
        let mut at_app = wrong_at_app(&book, case.5, CLIENTS);
        let seen = book.requests.iter().filter(keys);
        at_app.extend(seen.map(|r| format!("the app saw {}", r.head)));
        wrongs.extend(at_app.into_iter().map(|wrong| (i, wrong)));
    }
    let named = wrongs
        .iter()
        .map(|(i, w)| format!("{} ({}): {w}", CASES[*i].0, CASES[*i].1));
    let named: Vec<String> = named.collect();
    assert!(named.is_empty(), "{} wrong:\n{}", named.len(), named.join("\n"));
}
