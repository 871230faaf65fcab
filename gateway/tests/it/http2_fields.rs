//! RFC 9113, section 8: what a request may say, and what is refused before any app sees it.

use crate::http2_conformance::Must::{Answer, Fail, Reset};
use crate::http2_conformance::{COMPRESSION_ERROR, Check, Must, PROTOCOL_ERROR, check, run_all};
use crate::http2_support::*;

/// A check of one whole request with these fields.
fn head(name: &'static str, fields: &[(&str, &str)], must: Must) -> Check {
    check(name, &[frame(HEADERS, WHOLE, 1, &block(fields))], must)
}

/// A check of one whole GET with these fields besides.
fn with(name: &'static str, more: &[(&str, &str)], must: Must) -> Check {
    check(name, &[frame(HEADERS, WHOLE, 1, &get("/bad", more))], must)
}

const METHOD: (&str, &str) = (":method", "GET");
const SCHEME: (&str, &str) = (":scheme", "http");
const PATH: (&str, &str) = (":path", "/bad");
const AUTHORITY: (&str, &str) = (":authority", "hello.localhost");

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_their_fields() {
    const MALFORMED: Must = Reset(&[PROTOCOL_ERROR]);
    run_all(vec![
        with("8.2 an upper case name", &[("X-A", "b")], Fail(&[PROTOCOL_ERROR])),
        with("8.2.1 CR in a value", &[("x-a", "b\rc")], Fail(&[PROTOCOL_ERROR])),
        with("8.2.1 LF in a value", &[("x-a", "b\nx-c: d")], Fail(&[PROTOCOL_ERROR])),
        with("8.2.1 NUL in a value", &[("x-a", "b\0c")], Fail(&[PROTOCOL_ERROR])),
        with("8.2.1 CR LF in a name", &[("x\r\nx-b", "c")], Fail(&[PROTOCOL_ERROR])),
        with("8.2.1 a colon in a name", &[("x:a", "b")], Fail(&[PROTOCOL_ERROR])),
        with("8.2.1 a space in a name", &[("x a", "b")], Fail(&[PROTOCOL_ERROR])),
        with(
            "8.2.1 an empty name",
            &[("", "b")],
            Fail(&[PROTOCOL_ERROR, COMPRESSION_ERROR]),
        ),
        with("8.2.2 connection", &[("connection", "close")], MALFORMED),
        with("8.2.2 keep-alive", &[("keep-alive", "timeout=1")], MALFORMED),
        with("8.2.2 proxy-connection", &[("proxy-connection", "close")], MALFORMED),
        with(
            "8.2.2 transfer-encoding",
            &[("transfer-encoding", "chunked")],
            MALFORMED,
        ),
        with("8.2.2 upgrade", &[("upgrade", "h2c")], MALFORMED),
        with("8.2.2 te: gzip", &[("te", "gzip")], MALFORMED),
        with("8.2.2 te: trailers, gzip", &[("te", "trailers, gzip")], MALFORMED),
        check(
            "8.2.2 te: trailers",
            &[frame(HEADERS, WHOLE, 1, &get("/good", &[("te", "trailers")]))],
            Answer(200),
        ),
        head(
            "8.3 a pseudo field unknown",
            &[METHOD, SCHEME, PATH, AUTHORITY, (":x", "y")],
            Fail(&[PROTOCOL_ERROR]),
        ),
        head(
            "8.3 a pseudo field of answers",
            &[METHOD, SCHEME, PATH, AUTHORITY, (":status", "200")],
            MALFORMED,
        ),
        head(
            "8.3 a pseudo field after others",
            &[METHOD, SCHEME, ("a", "b"), PATH, AUTHORITY],
            MALFORMED,
        ),
        head("8.3 two methods", &[METHOD, METHOD, SCHEME, PATH, AUTHORITY], MALFORMED),
        head(
            "8.3 two paths",
            &[METHOD, SCHEME, PATH, (":path", "/"), AUTHORITY],
            MALFORMED,
        ),
        head(
            "8.3 two authorities",
            &[METHOD, SCHEME, PATH, AUTHORITY, AUTHORITY],
            MALFORMED,
        ),
        head("8.3 two schemes", &[METHOD, SCHEME, SCHEME, PATH, AUTHORITY], MALFORMED),
        head("8.3.1 no method", &[SCHEME, PATH, AUTHORITY], MALFORMED),
        head("8.3.1 no scheme", &[METHOD, PATH, AUTHORITY], MALFORMED),
        head("8.3.1 no path", &[METHOD, SCHEME, AUTHORITY], Fail(&[PROTOCOL_ERROR])),
        head(
            "8.3.1 an empty path",
            &[METHOD, SCHEME, (":path", ""), AUTHORITY],
            MALFORMED,
        ),
        head(
            "8.3.1 a path with a space",
            &[METHOD, SCHEME, (":path", "/bad b"), AUTHORITY],
            Fail(&[PROTOCOL_ERROR]),
        ),
        head(
            "8.3.1 a path with a line",
            &[METHOD, SCHEME, (":path", "/bad\r\nx: y"), AUTHORITY],
            Fail(&[PROTOCOL_ERROR]),
        ),
        head(
            "8.3.1 a method with a line",
            &[(":method", "GET /bad HTTP/1.1"), SCHEME, PATH, AUTHORITY],
            Fail(&[PROTOCOL_ERROR]),
        ),
        head(
            "8.3.1 a scheme that is none of ours",
            &[METHOD, (":scheme", "ftp"), PATH, AUTHORITY],
            Answer(400),
        ),
        head("8.3.1 neither authority nor host", &[METHOD, SCHEME, PATH], Answer(400)),
        head(
            "8.3.1 host instead of an authority",
            &[METHOD, SCHEME, (":path", "/good"), ("host", "hello.localhost")],
            Answer(200),
        ),
        head(
            "8.3.1 both, agreeing",
            &[
                METHOD,
                SCHEME,
                (":path", "/good"),
                AUTHORITY,
                ("host", "Hello.localhost"),
            ],
            Answer(200),
        ),
        head(
            "8.3.1 both, disagreeing",
            &[METHOD, SCHEME, PATH, AUTHORITY, ("host", "other.localhost")],
            Answer(400),
        ),
        head(
            "8.3.1 two hosts",
            &[
                METHOD,
                SCHEME,
                PATH,
                AUTHORITY,
                ("host", "hello.localhost"),
                ("host", "b"),
            ],
            Answer(400),
        ),
        head(
            "8.3.1 a user in the authority",
            &[METHOD, SCHEME, PATH, (":authority", "a@hello.localhost")],
            Answer(400),
        ),
        head(
            "8.5 CONNECT with a path",
            &[(":method", "CONNECT"), SCHEME, PATH, AUTHORITY],
            MALFORMED,
        ),
        head(
            "RFC 8441 :protocol without CONNECT",
            &[METHOD, SCHEME, PATH, AUTHORITY, (":protocol", "websocket")],
            MALFORMED,
        ),
        with("8.1.1 a length without a body", &[("content-length", "1")], MALFORMED),
        with(
            "8.1.1 a length that is no number",
            &[("content-length", "1x")],
            MALFORMED,
        ),
        with("8.1.1 a length with a sign", &[("content-length", "+1")], MALFORMED),
        with(
            "8.1.1 two lengths",
            &[("content-length", "0"), ("content-length", "1")],
            MALFORMED,
        ),
        check(
            "8.1.1 less than the length",
            &[
                frame(
                    HEADERS,
                    END_HEADERS,
                    1,
                    &request("POST", "/cut", &[("content-length", "9")]),
                ),
                frame(DATA, END_STREAM, 1, b"short"),
            ],
            Fail(&[PROTOCOL_ERROR]),
        ),
        check(
            "8.1.1 more than the length",
            &[
                frame(
                    HEADERS,
                    END_HEADERS,
                    1,
                    &request("POST", "/cut", &[("content-length", "3")]),
                ),
                frame(DATA, END_STREAM, 1, b"longer"),
            ],
            Fail(&[PROTOCOL_ERROR]),
        ),
    ])
    .await;
}
