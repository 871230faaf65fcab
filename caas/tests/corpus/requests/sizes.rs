//! Heads that are too large, and requests that do not come.

use super::Ask::{Get, Line, Post, Raw};
use super::Case;
use super::Want::{Cut, Refused, Sees, Silence};
use super::run::{Family, run};

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    Case("field-40k", "RFC 6585 5", Get(b"X-A: {a*40000}\r\n"), Refused(431)),
    Case("field-1m", "RFC 6585 5", Get(b"X-A: {a*1000000}\r\n"), Refused(431)),
    Case("field-name-40k", "RFC 6585 5", Get(b"{a*40000}: b\r\n"), Refused(431)),
    Case("field-20k", "RFC 9110 5.4", Get(b"X-A: {a*20000}\r\nX-B: b\r\n"), Sees("GET /a HTTP/1.1|x-a: {a*20000}|x-b: b", b"")),
    Case("fields-101", "RFC 6585 5", Get(b"{X-#: 1\r\n*100}"), Refused(431)),
    Case("fields-20000", "RFC 6585 5", Get(b"{X-#: 1\r\n*20000}"), Refused(431)),
    Case("fields-alike-5000", "CVE-2011-3192", Get(b"{Range: bytes=0-1\r\n*5000}"), Refused(431)),
    Case("fields-alike-50", "RFC 9110 5.3", Get(b"{X-A: 1\r\n*50}"), Sees("GET /a HTTP/1.1{|x-a: 1*50}", b"")),
    Case("fields-empty-30k", "RFC 6585 5", Get(b"{a:\r\n*10000}"), Refused(431)),
    Case("cookies-40k", "RFC 6265 6.1", Get(b"{Cookie: a=b; c=d\r\n*2000}"), Refused(431)),
    Case("target-40k", "RFC 9112 3", Line(b"GET /{a*40000} HTTP/1.1"), Refused(431)),
    Case("target-70k", "RFC 9110 15.5.15", Line(b"GET /{a*70000} HTTP/1.1"), Refused(431)),
    Case("target-1m", "RFC 9110 15.5.15", Line(b"GET /{a*1000000} HTTP/1.1"), Refused(431)),
    Case("target-8k", "RFC 9112 3", Line(b"GET /a?{a*8000} HTTP/1.1"), Sees("GET /a?{a*8000} HTTP/1.1", b"")),
    Case("absolute-40k", "RFC 9112 3", Line(b"GET http://{host}/{a*40000} HTTP/1.1"), Refused(431)),
    Case("line-without-end", "RFC 9112 2.2", Raw(b"GET /a{ *300000}"), Refused(400)),
    Case("lines-before-100k", "RFC 9112 2.2", Raw(b"{\r\n*50000}GET /a HTTP/1.1\r\n{h}\r\n"), Refused(431)),
    Case("spaces-before-a-value", "CVE-2023-36053", Get(b"X-A:{ *30000}b\r\n"), Sees("GET /a HTTP/1.1|x-a: b", b"")),
    Case("body-100k", "RFC 9110 8.6", Post(b"Content-Length: 100000\r\n", b"{a*100000}"), Sees("POST /a HTTP/1.1|content-length: 100000", b"{a*100000}")),
];

/// Sent to a gateway that waits 1 s for heads and bodies; it waits longer by default.
#[rustfmt::skip]
pub(super) const SLOW: &[Case] = &[
    Case("slow-nothing", "CVE-2007-6750", Raw(b""), Cut(0)),
    Case("slow-half-a-method", "CVE-2007-6750", Raw(b"GE"), Cut(408)),
    Case("slow-half-a-line", "CVE-2007-6750", Raw(b"GET /a HT"), Cut(408)),
    Case("slow-half-a-field", "CVE-2007-6750", Raw(b"GET /a HTTP/1.1\r\n{h}X-A: b"), Cut(408)),
    Case("slow-no-empty-line", "CVE-2007-6750", Raw(b"GET /a HTTP/1.1\r\n{h}"), Cut(408)),
    Case("slow-cr-of-the-empty-line", "CVE-2007-6750", Raw(b"GET /a HTTP/1.1\r\n{h}\r"), Cut(408)),
    Case("slow-body", "RFC 9110 15.5.9", Post(b"Content-Length: 5\r\n", b"ab"), Cut(408)),
    Case("slow-body-none", "RFC 9110 15.5.9", Post(b"Content-Length: 5\r\n", b""), Cut(408)),
    Case("slow-chunk", "RFC 9110 15.5.9", Post(b"Transfer-Encoding: chunked\r\n", b"5\r\nab"), Cut(408)),
    Case("slow-chunk-size", "RFC 9110 15.5.9", Post(b"Transfer-Encoding: chunked\r\n", b"5"), Cut(408)),
    Case("slow-chunk-2-64", "CVE-2021-32714", Post(b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffff\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n{h}\r\n"), Cut(408)),
    Case("slow-last-chunk", "RFC 9110 15.5.9", Post(b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\n0\r\n"), Cut(408)),
    Case("slow-trailer", "RFC 9110 15.5.9", Post(b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\n0\r\nx-a: b\r\n"), Cut(408)),
    Case("slow-expect", "RFC 9110 10.1.1", Post(b"Expect: 100-continue\r\nContent-Length: 5\r\n", b""), Cut(408)),
    Case("slow-preface", "RFC 9113 3.4", Raw(b"PRI * HTTP/2.0\r\n"), Silence),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused() {
    run(Family::of(CASES)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_come_is_not_waited_for() {
    run(Family {
        settings: &[("HEADER_TIMEOUT_MS", "1000"), ("BODY_IDLE_MS", "1000")],
        ..Family::of(SLOW)
    })
    .await;
}
