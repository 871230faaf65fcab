//! Chunked bodies: sizes, extensions, the ends of lines, trailers.

use super::Ask::{Post, Raw};
use super::Case;
use super::Want::{Broken, Sees};
use super::run::{Family, run};

const CHUNKED: &str = "POST /a HTTP/1.1|transfer-encoding: chunked";
const TE: &[u8] = b"Transfer-Encoding: chunked\r\n";

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    // Odd, and allowed.
    Case("chunk-upper-case", "RFC 9112 7.1", Post(TE, b"A\r\n0123456789\r\n0\r\n\r\n"), Sees(CHUNKED, b"0123456789")),
    Case("chunk-zeros", "RFC 9112 7.1", Post(TE, b"0003\r\nabc\r\n000\r\n\r\n"), Sees(CHUNKED, b"abc")),
    Case("chunk-extension", "RFC 9112 7.1.1", Post(TE, b"3;a=b\r\nabc\r\n0;c\r\n\r\n"), Sees(CHUNKED, b"abc")),
    Case("chunk-extension-quoted", "RFC 9112 7.1.1", Post(TE, b"3;a=\"b;c\"\r\nabc\r\n0\r\n\r\n"), Sees(CHUNKED, b"abc")),
    Case("chunk-extension-spaces", "RFC 9112 7.1.1", Post(TE, b"3 ; a = b\r\nabc\r\n0\r\n\r\n"), Sees(CHUNKED, b"abc")),
    Case("chunks-many", "RFC 9112 7.1", Post(TE, b"{1\r\na\r\n*500}0\r\n\r\n"), Sees(CHUNKED, b"{a*500}")),
    Case("chunk-holds-an-end", "RFC 9112 7.1", Post(TE, b"5\r\n0\r\n\r\n\r\n0\r\n\r\n"), Sees(CHUNKED, b"0\r\n\r\n")),
    Case("chunk-holds-a-request", "RFC 9112 11.2", Post(TE, b"23\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n\r\n0\r\n\r\n"), Sees(CHUNKED, b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")),
    Case("chunks-none", "RFC 9112 7.1", Post(TE, b"0\r\n\r\n"), Sees(CHUNKED, b"")),
    // Sizes.
    Case("chunk-size-empty", "RFC 9112 7.1", Post(TE, b"\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-only-extension", "RFC 9112 7.1", Post(TE, b";a=b\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-hex-mark", "CVE-2022-24761", Post(TE, b"0x3\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-minus", "RFC 9112 7.1", Post(TE, b"-3\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-minus-zero", "RFC 9112 7.1", Post(TE, b"-0\r\n\r\n"), Broken),
    Case("chunk-size-plus", "CVE-2022-24761", Post(TE, b"+3\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-underscore", "RFC 9112 7.1", Post(TE, b"0_3\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-letters", "RFC 9112 7.1", Post(TE, b"3xyz\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-no-hex", "RFC 9112 7.1", Post(TE, b"g\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-space-first", "RFC 9112 7.1", Post(TE, b" 3\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-space-inside", "RFC 9112 7.1", Post(TE, b"3 3\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-nul", "RFC 9112 7.1", Post(TE, b"3\0\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-comma", "RFC 9112 7.1", Post(TE, b"3,\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-17-digits", "CVE-2013-2028", Post(TE, b"10000000000000003\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-2-64-plus-3", "CVE-2021-32714", Post(TE, b"f0000000000000003\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-size-wide-digit", "RFC 9112 7.1", Post(TE, b"\xef\xbc\x93\r\nabc\r\n0\r\n\r\n"), Broken),
    // Ends of lines.
    Case("chunk-line-feed", "CVE-2025-22871", Post(TE, b"3\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-carriage-return", "RFC 9112 7.1", Post(TE, b"3\rabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-cr-cr-lf", "RFC 9112 7.1", Post(TE, b"3\r\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-extension-line-feed", "CVE-2024-52304", Post(TE, b"3;a\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-extension-line-feed-hidden", "CVE-2025-55315", Post(TE, b"3;\nxx\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-extension-cr", "CVE-2021-22960", Post(TE, b"3;a\rb\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-extension-endless", "CVE-2023-39326", Post(TE, b"3;{a*100000}\r\nabc\r\n0\r\n\r\n"), Broken),
    Case("chunk-extensions-many", "CVE-2024-22019", Post(TE, b"{1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\na\r\n*1000}0\r\n\r\n"), Broken),
    Case("chunk-too-long", "Kallus 2025, TERM.SPILL", Post(TE, b"3\r\nabcdef\r\n0\r\n\r\n"), Broken),
    Case("chunk-two-bytes-more", "Kallus 2025, TERM.SPILL", Post(TE, b"3\r\nabcXX0\r\n\r\n"), Broken),
    Case("chunk-no-end", "RFC 9112 7.1", Post(TE, b"3\r\nabc0\r\n\r\n"), Broken),
    Case("chunk-end-line-feed", "RFC 9112 7.1", Post(TE, b"3\r\nabc\n0\r\n\r\n"), Broken),
    Case("chunk-end-cr", "RFC 9112 7.1", Post(TE, b"3\r\nabc\r0\r\n\r\n"), Broken),
    Case("chunk-last-line-feeds", "RFC 9112 7.1", Post(TE, b"3\r\nabc\r\n0\n\n"), Broken),
    Case("chunk-last-cr-x", "RFC 9112 7.1", Post(TE, b"3\r\nabc\r\n0\r\n\rX"), Broken),
    // Trailers.
    Case("trailer-unannounced", "RFC 9110 6.5.1", Post(TE, b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"), Sees(CHUNKED, b"abc")),
    Case("trailer-announced", "RFC 9110 6.5", Post(b"Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n", b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"), Sees("POST /a HTTP/1.1|transfer-encoding: chunked|trailer: x-sum|~x-sum: 1", b"abc")),
    Case("trailer-framing", "RFC 9110 6.5.1", Post(b"Transfer-Encoding: chunked\r\nTrailer: content-length, transfer-encoding\r\n", b"3\r\nabc\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n"), Sees("POST /a HTTP/1.1|transfer-encoding: chunked|trailer: content-length, transfer-encoding", b"abc")),
    Case("trailer-host", "RFC 9110 6.5.1", Post(b"Transfer-Encoding: chunked\r\nTrailer: host\r\n", b"0\r\nHost: evil.localhost\r\n\r\n"), Sees("POST /a HTTP/1.1|transfer-encoding: chunked|trailer: host", b"")),
    Case("trailer-authorization", "RFC 9110 6.5.1", Post(b"Transfer-Encoding: chunked\r\nTrailer: authorization, cookie\r\n", b"0\r\nAuthorization: Basic eDp5\r\nCookie: a=b\r\n\r\n"), Sees("POST /a HTTP/1.1|transfer-encoding: chunked|trailer: authorization, cookie", b"")),
    Case("trailer-forwarded", "RFC 9110 6.5.1", Post(b"Transfer-Encoding: chunked\r\nTrailer: x-forwarded-for, forwarded\r\n", b"0\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\r\n"), Sees("POST /a HTTP/1.1|transfer-encoding: chunked|trailer: x-forwarded-for, forwarded", b"")),
    Case("trailer-connection", "RFC 9110 7.6.1", Post(b"Transfer-Encoding: chunked\r\nTrailer: connection, upgrade\r\n", b"0\r\nConnection: close\r\nUpgrade: h2c\r\n\r\n"), Sees("POST /a HTTP/1.1|transfer-encoding: chunked|trailer: connection, upgrade", b"")),
    Case("trailer-no-colon", "RFC 9112 5", Post(TE, b"0\r\nnonsense\r\n\r\n"), Broken),
    Case("trailer-space-colon", "CVE-2023-45648", Post(TE, b"0\r\nx-a : b\r\n\r\n"), Broken),
    Case("trailer-nul", "RFC 9110 5.5", Post(TE, b"0\r\nx-a: a\0b\r\n\r\n"), Broken),
    Case("trailer-folded", "RFC 9112 5.2", Post(TE, b"0\r\nx-a: b\r\n c\r\n\r\n"), Broken),
    Case("trailer-is-a-request", "CVE-2023-46589", Post(TE, b"0\r\nGET /smuggled HTTP/1.1\r\n{h}\r\n"), Broken),
    Case("trailer-long", "RFC 9110 5.4", Post(TE, b"0\r\nx-a: {a*200000}\r\n\r\n"), Broken),
    Case("trailers-many", "RFC 9110 5.4", Post(TE, b"0\r\n{x-#: 1\r\n*2000}\r\n"), Broken),
    // Of other methods.
    Case("chunks-in-get", "RFC 9110 9.3.1", Raw(b"GET /a HTTP/1.1\r\n{h}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), Sees("GET /a HTTP/1.1|transfer-encoding: chunked", b"abc")),
    Case("chunks-in-head", "RFC 9110 9.3.2", Raw(b"HEAD /a HTTP/1.1\r\n{h}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), Sees("HEAD /a HTTP/1.1|transfer-encoding: chunked", b"abc")),
];

#[tokio::test(flavor = "multi_thread")]
async fn chunks_have_one_reading() {
    run(Family::of(CASES)).await;
}
