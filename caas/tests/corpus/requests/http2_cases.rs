//! Requests by HTTP/2 (RFC 9113), on their way to an app that speaks HTTP/1.1: what would become two requests, two fields or another
//! target there.

use super::http2::Want::{self, Broken, Fails, Refused, Sees};

/// A request by HTTP/2: its name, its source, its fields, its body and what has to come of it.
pub(crate) struct Case(
    pub(super) &'static str,
    pub(super) &'static str,
    pub(super) Fields,
    pub(super) Body,
    pub(super) Want,
);

type List = &'static [(&'static str, &'static str)];

/// The fields of a request.
#[derive(Clone, Copy)]
pub(super) enum Fields {
    Whole(List),
    /// Those of a GET of `/a`; pseudo fields at the beginning replace its own.
    With(List),
}
use Fields::{Whole, With};

/// The body of a request.
#[derive(Clone, Copy)]
pub(super) enum Body {
    None,
    Data(&'static [u8]),
    Trailers(&'static [u8], List),
}
use Body::{Data, None, Trailers};

const A: &str = "GET /a HTTP/1.1";
const POST: (&str, &str) = (":method", "POST");
const CHUNKED: &str = "POST /a HTTP/1.1|transfer-encoding: chunked";
const THREE: &str = "POST /a HTTP/1.1|content-length: 3";
const METHOD: (&str, &str) = (":method", "GET");
const SCHEME: (&str, &str) = (":scheme", "http");
const PATH: (&str, &str) = (":path", "/a");
const HOST: (&str, &str) = (":authority", "{host}");
const HIDDEN: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";

#[rustfmt::skip]
pub(crate) const CASES: &[Case] = &[
    // Ends of bodies.
    Case("h2-no-length", "RFC 9113 8.1", With(&[POST]), Data(b"abc"), Sees(CHUNKED, b"abc")),
    Case("h2-length", "RFC 9113 8.1.1", With(&[POST, ("content-length", "3")]), Data(b"abc"), Sees(THREE, b"abc")),
    Case("h2-length-short", "CVE-2021-21409", With(&[POST, ("content-length", "0")]), Data(HIDDEN), Fails),
    Case("h2-length-shorter", "CVE-2021-21295", With(&[POST, ("content-length", "3")]), Data(b"abcGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"), Broken),
    Case("h2-length-long", "RFC 9113 8.1.1", With(&[POST, ("content-length", "9")]), Data(b"abc"), Broken),
    Case("h2-length-no-body", "RFC 9113 8.1.1", With(&[POST, ("content-length", "3")]), None, Fails),
    Case("h2-length-plus", "RFC 9110 8.6", With(&[POST, ("content-length", "+3")]), Data(b"abc"), Fails),
    Case("h2-length-list", "RFC 9110 8.6", With(&[POST, ("content-length", "3, 3")]), Data(b"abc"), Fails),
    Case("h2-length-hex", "RFC 9110 8.6", With(&[POST, ("content-length", "0x3")]), Data(b"abc"), Fails),
    Case("h2-length-empty", "RFC 9110 8.6", With(&[POST, ("content-length", "")]), Data(b"abc"), Fails),
    Case("h2-length-2-64", "RFC 9110 8.6", With(&[POST, ("content-length", "18446744073709551619")]), Data(b"abc"), Fails),
    Case("h2-lengths-differ", "RFC 9113 8.1.1", With(&[POST, ("content-length", "3"), ("content-length", "4")]), Data(b"abc"), Fails),
    Case("h2-lengths-alike", "RFC 9110 8.6", With(&[POST, ("content-length", "3"), ("content-length", "3")]), Data(b"abc"), Sees(THREE, b"abc")),
    Case("h2-length-too-large", "RFC 9110 15.5.14", With(&[POST, ("content-length", "104857601")]), Data(b""), Fails),
    Case("h2-length-underscore", "CVE-2015-0219", With(&[POST, ("content-length", "3"), ("content_length", "99")]), Data(b"abc"), Sees(THREE, b"abc")),
    Case("h2-body-is-a-request", "RFC 9112 11.2", With(&[POST]), Data(HIDDEN), Sees(CHUNKED, HIDDEN)),
    Case("h2-body-is-an-end", "RFC 9112 7.1", With(&[POST]), Data(b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"), Sees(CHUNKED, b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")),
    Case("h2-get-with-body", "RFC 9110 9.3.1", With(&[]), Data(HIDDEN), Sees("GET /a HTTP/1.1|transfer-encoding: chunked", HIDDEN)),
    Case("h2-empty-body", "RFC 9113 8.1", With(&[POST]), Data(b""), Sees(CHUNKED, b"")),
    // Fields of connections.
    Case("h2-transfer-encoding", "CVE-2021-21295", With(&[POST, ("transfer-encoding", "chunked")]), Data(b"0\r\n\r\n"), Fails),
    Case("h2-transfer-encoding-cl", "RFC 9113 8.2.2", With(&[POST, ("content-length", "5"), ("transfer-encoding", "chunked")]), Data(b"0\r\n\r\n"), Fails),
    Case("h2-transfer-encoding-underscore", "CVE-2015-0219", With(&[POST, ("transfer_encoding", "chunked")]), Data(b"abc"), Sees(CHUNKED, b"abc")),
    Case("h2-connection", "RFC 9113 8.2.2", With(&[("connection", "close, x-forwarded-for")]), None, Fails),
    Case("h2-keep-alive", "RFC 9113 8.2.2", With(&[("keep-alive", "timeout=5")]), None, Fails),
    Case("h2-proxy-connection", "RFC 9113 8.2.2", With(&[("proxy-connection", "close")]), None, Fails),
    Case("h2-upgrade", "RFC 9113 8.2.2", With(&[("upgrade", "websocket")]), None, Fails),
    Case("h2-te", "RFC 9113 8.2.2", With(&[("te", "gzip")]), None, Fails),
    Case("h2-te-trailers", "RFC 9113 8.2.2", With(&[("te", "trailers")]), None, Sees("GET /a HTTP/1.1|te: trailers|connection: te", b"")),
    Case("h2-settings", "RFC 7540 3.2.1", With(&[("http2-settings", "AAMAAABkAAQAAP__")]), None, Sees(A, b"")),
    Case("h2-expect", "RFC 9110 10.1.1", With(&[POST, ("expect", "100-continue"), ("content-length", "3")]), Data(b"abc"), Sees(THREE, b"abc")),
    // Names and values that would become lines.
    Case("h2-name-upper-case", "RFC 9113 8.2", With(&[("X-A", "b")]), None, Fails),
    Case("h2-name-lines", "Kettle 2021, H2.X", With(&[("x: y\r\ntransfer-encoding", "chunked")]), None, Fails),
    Case("h2-name-line-feed", "RFC 9113 8.2.1", With(&[("x\ny", "z")]), None, Fails),
    Case("h2-name-colon", "RFC 9113 8.2.1", With(&[("transfer-encoding:chunked", "x")]), None, Fails),
    Case("h2-name-space", "RFC 9113 8.2.1", With(&[("transfer-encoding ", "chunked")]), None, Fails),
    Case("h2-name-nul", "RFC 9113 8.2.1", With(&[("x\0", "y")]), None, Fails),
    Case("h2-name-empty", "CVE-2023-25725", With(&[("", "y")]), None, Fails),
    Case("h2-name-accent", "RFC 9113 8.2.1", With(&[("x\u{e9}", "y")]), None, Fails),
    Case("h2-value-lines", "Kettle 2021, H2.TE", With(&[("x", "y\r\ntransfer-encoding: chunked")]), None, Fails),
    Case("h2-value-request", "Kettle 2021, H2.X", With(&[("x", "y\r\n\r\nGET /smuggled HTTP/1.1\r\nx: z")]), None, Fails),
    Case("h2-value-cr", "RFC 9113 8.2.1", With(&[("x", "y\rz: a")]), None, Fails),
    Case("h2-value-line-feed", "RFC 9113 8.2.1", With(&[("x", "y\nz: a")]), None, Fails),
    Case("h2-value-nul", "RFC 9113 8.2.1", With(&[("x", "y\0z")]), None, Fails),
    Case("h2-value-control", "RFC 9110 5.5", With(&[("x", "y\x01z")]), None, Fails),
    Case("h2-cookie-lines", "RFC 9113 8.2.1", With(&[("cookie", "a=b"), ("cookie", "c\r\nx: y")]), None, Fails),
    Case("h2-cookie-crumbs", "RFC 9113 8.2.3", With(&[("cookie", "a=b"), ("x", "y"), ("cookie", "c=d")]), None, Sees("GET /a HTTP/1.1|cookie: a=b; c=d|x: y", b"")),
    // Pseudo fields.
    Case("h2-method-request", "Kettle 2021, H2 method", With(&[(":method", "GET /smuggled HTTP/1.1\r\nx: y\r\n\r\nGET")]), None, Fails),
    Case("h2-method-space", "RFC 9113 8.3.1", With(&[(":method", "GET /smuggled")]), None, Fails),
    Case("h2-method-empty", "RFC 9110 9.1", With(&[(":method", "")]), None, Fails),
    Case("h2-method-twice", "RFC 9113 8.3", Whole(&[METHOD, POST, SCHEME, PATH, HOST]), None, Fails),
    Case("h2-method-none", "RFC 9113 8.3.1", Whole(&[SCHEME, PATH, HOST]), None, Fails),
    Case("h2-path-lines", "Kettle 2021, H2 path", With(&[(":path", "/a HTTP/1.1\r\nx: y\r\n\r\nGET /smuggled")]), None, Fails),
    Case("h2-path-space", "RFC 9113 8.3.1", With(&[(":path", "/a HTTP/1.1")]), None, Fails),
    Case("h2-path-empty", "RFC 9113 8.3.1", With(&[(":path", "")]), None, Fails),
    Case("h2-path-none", "RFC 9113 8.3.1", Whole(&[METHOD, SCHEME, HOST]), None, Fails),
    Case("h2-path-twice", "RFC 9113 8.3", Whole(&[METHOD, SCHEME, PATH, (":path", "/smuggled"), HOST]), None, Fails),
    Case("h2-path-absolute", "RFC 9113 8.3.1", With(&[(":path", "http://evil.example/a")]), None, Fails),
    Case("h2-path-no-slash", "RFC 9113 8.3.1", With(&[(":path", "a")]), None, Fails),
    Case("h2-path-star", "RFC 9113 8.3.1", With(&[(":path", "*")]), None, Refused(400)),
    Case("h2-path-star-options", "RFC 9113 8.3.1", With(&[(":method", "OPTIONS"), (":path", "*")]), None, Sees("OPTIONS * HTTP/1.1", b"")),
    Case("h2-path-slashes", "RFC 3986 3.3", With(&[(":path", "//evil.example/a")]), None, Sees("GET //evil.example/a HTTP/1.1", b"")),
    Case("h2-path-control", "RFC 3986 2", With(&[(":path", "/a\x7f")]), None, Fails),
    Case("h2-scheme-none", "RFC 9113 8.3.1", Whole(&[METHOD, PATH, HOST]), None, Fails),
    Case("h2-scheme-url", "Kettle 2021, H2 scheme", With(&[(":scheme", "http://evil.example/a?")]), None, Fails),
    Case("h2-scheme-lines", "Kettle 2021, H2 scheme", With(&[(":scheme", "http\r\nx: y")]), None, Fails),
    Case("h2-scheme-other", "RFC 9113 8.3.1", With(&[(":scheme", "file")]), None, Refused(400)),
    Case("h2-authority-none", "RFC 9113 8.3.1", Whole(&[METHOD, SCHEME, PATH]), None, Refused(400)),
    Case("h2-authority-user", "RFC 9113 8.3.1", With(&[(":authority", "evil@{host}")]), None, Refused(400)),
    Case("h2-authority-lines", "Kettle 2021, H2 authority", With(&[(":authority", "{host}\r\nx: y")]), None, Fails),
    Case("h2-authority-path", "RFC 9113 8.3.1", With(&[(":authority", "{host}/evil")]), None, Refused(400)),
    Case("h2-authority-list", "RFC 9110 7.2", With(&[(":authority", "{host},evil")]), None, Refused(400)),
    Case("h2-authority-twice", "RFC 9113 8.3", Whole(&[METHOD, SCHEME, PATH, HOST, (":authority", "evil.localhost")]), None, Fails),
    Case("h2-authority-and-host", "RFC 9113 8.3.1", With(&[("host", "evil.localhost")]), None, Refused(400)),
    Case("h2-authority-and-hosts", "RFC 9113 8.3.1", With(&[("host", "{host}"), ("host", "{host}")]), None, Refused(400)),
    Case("h2-authority-other", "RFC 9110 15.5.5", With(&[(":authority", "nobody.localhost")]), None, Refused(404)),
    Case("h2-host-only", "RFC 9113 8.3.1", Whole(&[METHOD, SCHEME, PATH, ("host", "{host}")]), None, Sees(A, b"")),
    Case("h2-host-only-bad", "RFC 9110 7.2", Whole(&[METHOD, SCHEME, PATH, ("host", "{host} evil")]), None, Refused(400)),
    Case("h2-host-only-twice", "RFC 9110 7.2", Whole(&[METHOD, SCHEME, PATH, ("host", "{host}"), ("host", "evil.localhost")]), None, Refused(400)),
    Case("h2-pseudo-unknown", "RFC 9113 8.3", Whole(&[METHOD, SCHEME, PATH, HOST, (":x", "y")]), None, Fails),
    Case("h2-pseudo-status", "RFC 9113 8.3", Whole(&[METHOD, SCHEME, PATH, HOST, (":status", "200")]), None, Fails),
    Case("h2-pseudo-late", "RFC 9113 8.3", Whole(&[METHOD, SCHEME, ("x", "y"), PATH, HOST]), None, Fails),
    Case("h2-connect", "RFC 9113 8.5", Whole(&[(":method", "CONNECT"), (":authority", "127.0.0.1:22")]), None, Refused(405)),
    Case("h2-connect-path", "RFC 9113 8.5", With(&[(":method", "CONNECT")]), None, Fails),
    Case("h2-connect-other", "RFC 8441 4", With(&[(":method", "CONNECT"), (":protocol", "connect-udp")]), None, Refused(405)),
    Case("h2-protocol-get", "RFC 8441 4", With(&[(":method", "GET"), (":protocol", "websocket")]), None, Fails),
    // What only the gateway says.
    Case("h2-forwarded", "RFC 7239 8.1", With(&[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "evil"), ("forwarded", "for=6.6.6.6"), ("x-real-ip", "6.6.6.6")]), None, Sees(A, b"")),
    Case("h2-forwarded-underscores", "CVE-2015-0219", With(&[("x_forwarded_for", "6.6.6.6"), ("x-forwarded_proto", "https"), ("x_real_ip", "6.6.6.6")]), None, Sees(A, b"")),
    Case("h2-proxy", "CVE-2016-5385", With(&[("proxy", "http://evil.example")]), None, Sees(A, b"")),
    // Trailers.
    Case("h2-trailers", "RFC 9113 8.1", With(&[POST, ("trailer", "x-sum")]), Trailers(b"abc", &[("x-sum", "1")]), Sees("POST /a HTTP/1.1|transfer-encoding: chunked|trailer: x-sum|~x-sum: 1", b"abc")),
    Case("h2-trailers-pseudo", "RFC 9113 8.1", With(&[POST]), Trailers(b"abc", &[(":path", "/smuggled")]), Broken),
    Case("h2-trailers-framing", "RFC 9110 6.5.1", With(&[POST, ("trailer", "content-length, host")]), Trailers(b"abc", &[("content-length", "1"), ("host", "evil")]), Sees("POST /a HTTP/1.1|transfer-encoding: chunked|trailer: content-length, host", b"abc")),
    Case("h2-trailers-connection", "RFC 9113 8.2.2", With(&[POST]), Trailers(b"abc", &[("transfer-encoding", "chunked")]), Broken),
    Case("h2-trailers-forwarded", "RFC 9110 6.5.1", With(&[POST, ("trailer", "x-forwarded-for")]), Trailers(b"abc", &[("x-forwarded-for", "6.6.6.6")]), Sees("POST /a HTTP/1.1|transfer-encoding: chunked|trailer: x-forwarded-for", b"abc")),
    Case("h2-trailers-lines", "RFC 9113 8.2.1", With(&[POST]), Trailers(b"abc", &[("x", "y\r\nz: a")]), Broken),
    // Sizes.
    Case("h2-field-33k", "RFC 6585 5", With(&[("x", "{a*40000}")]), None, Refused(431)),
    Case("h2-path-33k", "RFC 9113 10.5.1", With(&[(":path", "/{a*40000}")]), None, Refused(431)),
];
