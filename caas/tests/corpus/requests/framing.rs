//! Where a request ends: lengths, encodings, both; bodies that come after the answer; `Expect`.

use super::Ask::{Get, Line, Post, Raw};
use super::Case;
use super::Want::{Broken, Early, Last, Refused, Sees};
use super::run::{Family, run};

const CHUNKED: &str = "POST /a HTTP/1.1|transfer-encoding: chunked";
const THREE: &str = "POST /a HTTP/1.1|content-length: 3";
/// What a request hidden in a body would be.
const HIDDEN: &[u8] = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nX: ";

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    // Both: the encoding decides, the length is not sent on, the connection ends.
    Case("cl-te", "RFC 9112 6.1", Post(b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\nG"), Last(CHUNKED, b"")),
    Case("cl-te-hidden", "RFC 9112 6.3", Post(b"Content-Length: 40\r\nTransfer-Encoding: chunked\r\n", HIDDEN), Last(CHUNKED, b"")),
    Case("te-cl", "RFC 9112 6.1", Post(b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"1\r\nZ\r\n0\r\n\r\n"), Last(CHUNKED, b"Z")),
    Case("te-cl-hidden", "RFC 9112 11.2", Post(b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"23\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n\r\n0\r\n\r\n"), Last(CHUNKED, b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")),
    Case("te-cl-zero", "RFC 9112 6.1", Post(b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", b"3\r\nabc\r\n0\r\n\r\n"), Last(CHUNKED, b"abc")),
    Case("te-and-cl-that-is-none", "RFC 9112 6.1", Post(b"Transfer-Encoding: chunked\r\nContent-Length: x\r\n", b"0\r\n\r\n"), Last(CHUNKED, b"")),
    Case("cl-that-is-none-and-te", "RFC 9112 6.3", Post(b"Content-Length: x\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("get-cl-te", "RFC 9112 6.1", Get(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), Broken),
    Case("te-cl-keep-alive", "RFC 9112 6.1", Post(b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"0\r\n\r\n"), Last(CHUNKED, b"")),
    // Encodings that one side sees and the other does not.
    Case("te-space-colon", "CVE-2021-22959", Post(b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-tab-colon", "CVE-2021-22959", Post(b"Transfer-Encoding\t: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-vertical-tab", "CVE-2019-16789", Post(b"Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-form-feed", "RFC 9110 5.6.3", Post(b"Transfer-Encoding: \x0cchunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-nul", "RFC 9110 5.5", Post(b"Transfer-Encoding: chunked\0\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-no-break-space", "RFC 9110 5.6.3", Post(b"Transfer-Encoding: \xa0chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-byte-after", "RFC 9110 5.5", Post(b"Transfer-Encoding: chunked\xff\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-comma-first", "RFC 9110 5.6.1", Post(b"Transfer-Encoding: ,chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-comma-last", "RFC 9110 5.6.1", Post(b"Transfer-Encoding: chunked,\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-chunked-cow", "CVE-2022-32213", Post(b"Transfer-Encoding: chunked, cow\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-cow-chunked", "RFC 9112 6.1", Post(b"Transfer-Encoding: cow, chunked\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-gzip-chunked", "CVE-2019-16786", Post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-identity", "CVE-2021-33037", Post(b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n", b"abc"), Refused(400)),
    Case("te-chunked-identity", "CVE-2021-33037", Post(b"Transfer-Encoding: chunked, identity\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-identity-chunked", "RFC 9112 7", Post(b"Transfer-Encoding: identity, chunked\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-twice", "RFC 9112 6.1", Post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-chunked-twice", "RFC 9112 6.1", Post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-then-identity", "CVE-2020-8287", Post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-then-false", "CVE-2020-8287", Post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked-false\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-false-then", "CVE-2020-8287", Post(b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-quoted", "RFC 9112 7", Post(b"Transfer-Encoding: \"chunked\"\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-single-quoted", "RFC 9112 7", Post(b"Transfer-Encoding: 'chunked'\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-parameter", "RFC 9112 7", Post(b"Transfer-Encoding: chunked;a=b\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-weight", "RFC 9112 7.4", Post(b"Transfer-Encoding: chunked;q=1\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-prefix", "CVE-2019-18277", Post(b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-suffix", "RFC 9112 6.1", Post(b"Transfer-Encoding: chunkedx\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-empty", "RFC 9112 6.1", Post(b"Transfer-Encoding:\r\nContent-Length: 3\r\n", b"abc"), Refused(400)),
    Case("te-folded", "CVE-2022-32215", Post(b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-folded-more", "CVE-2022-32215", Post(b"Transfer-Encoding: chunked\r\n , identity\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-line-feed", "RFC 9112 2.2", Post(b"X-A: b\nTransfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"), Sees("POST /a HTTP/1.1|transfer-encoding: chunked|x-a: b", b"abc")),
    Case("te-carriage-return", "CVE-2023-30589", Post(b"X-A: b\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-space-first", "RFC 9112 2.2", Post(b" Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), Refused(400)),
    Case("te-case-and-tabs", "RFC 9110 5.5", Post(b"tRaNsFeR-eNcOdInG:\tChUnKeD \t\r\n", b"1\r\nq\r\n0\r\n\r\n"), Sees(CHUNKED, b"q")),
    Case("te-underscore", "CVE-2015-0219", Post(b"Transfer_Encoding: chunked\r\nContent-Length: 3\r\n", b"abc"), Sees(THREE, b"abc")),
    Case("te-http-1-0", "CVE-2021-33037", Raw(b"POST /a HTTP/1.0\r\n{h}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), Refused(400)),
    Case("te-http-1-0-cl", "RFC 9112 6.1", Raw(b"POST /a HTTP/1.0\r\n{h}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), Refused(400)),
    Case("te-in-get", "RFC 9110 9.3.1", Get(b"Transfer-Encoding: chunked\r\n"), Broken),
    // Lengths.
    Case("cl-plus", "CVE-2021-32715", Post(b"Content-Length: +3\r\n", b"abc"), Refused(400)),
    Case("cl-minus", "RFC 9110 8.6", Post(b"Content-Length: -3\r\n", b"abc"), Refused(400)),
    Case("cl-minus-zero", "RFC 9110 8.6", Post(b"Content-Length: -0\r\n", b""), Refused(400)),
    Case("cl-hex", "RFC 9110 8.6", Post(b"Content-Length: 0x3\r\n", b"abc"), Refused(400)),
    Case("cl-exponent", "RFC 9110 8.6", Post(b"Content-Length: 3e0\r\n", b"abc"), Refused(400)),
    Case("cl-underscore", "CVE-2023-47627", Post(b"Content-Length: 1_0\r\n", b"abcdefghij"), Refused(400)),
    Case("cl-underscore-name", "CVE-2015-0219", Post(b"Content_Length: 9\r\nContent-Length: 3\r\n", b"abc"), Sees(THREE, b"abc")),
    Case("cl-list", "RFC 9112 6.3", Post(b"Content-Length: 3, 4\r\n", b"abcd"), Refused(400)),
    Case("cl-list-alike", "RFC 9112 6.3", Post(b"Content-Length: 3, 3\r\n", b"abc"), Refused(400)),
    Case("cl-comma", "RFC 9110 5.6.1", Post(b"Content-Length: 3,\r\n", b"abc"), Refused(400)),
    Case("cl-empty", "RFC 9110 8.6", Post(b"Content-Length: \r\n", b"abc"), Refused(400)),
    Case("cl-space-inside", "CVE-2018-7159", Post(b"Content-Length: 1 2\r\n", b"abc"), Refused(400)),
    Case("cl-letter", "RFC 9110 8.6", Post(b"Content-Length: 3a\r\n", b"abc"), Refused(400)),
    Case("cl-quoted", "RFC 9110 8.6", Post(b"Content-Length: \"3\"\r\n", b"abc"), Refused(400)),
    Case("cl-fraction", "RFC 9110 8.6", Post(b"Content-Length: 3.0\r\n", b"abc"), Refused(400)),
    Case("cl-wide-digit", "CVE-2023-47627", Post(b"Content-Length: \xef\xbc\x93\r\n", b"abc"), Refused(400)),
    Case("cl-2-63", "RFC 9110 8.6", Post(b"Content-Length: 9223372036854775808\r\n", b"abc"), Refused(413)),
    Case("cl-2-64", "RFC 9110 8.6", Post(b"Content-Length: 18446744073709551619\r\n", b"abc"), Refused(400)),
    Case("cl-2-64-minus-1", "RFC 9110 8.6", Post(b"Content-Length: 18446744073709551615\r\n", b"abc"), Refused(431)),
    Case("cl-30-digits", "RFC 9110 8.6", Post(b"Content-Length: 100000000000000000000000000003\r\n", b"abc"), Refused(400)),
    Case("cl-too-large", "RFC 9110 15.5.14", Post(b"Content-Length: 104857601\r\n", b"abc"), Refused(413)),
    Case("cl-leading-zeros", "RFC 9110 8.6", Post(b"Content-Length: 0003\r\n", b"abc"), Sees(THREE, b"abc")),
    Case("cl-differ", "RFC 9112 6.3", Post(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abcd"), Refused(400)),
    Case("cl-differ-zero", "RFC 9112 6.3", Post(b"Content-Length: 0\r\nContent-Length: 45\r\n", b"GET /smuggled HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("cl-alike-twice", "RFC 9110 8.6", Post(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"), Sees(THREE, b"abc")),
    Case("cl-space-colon", "CVE-2019-16276", Post(b"Content-Length : 3\r\n", b"abc"), Refused(400)),
    Case("cl-folded", "RFC 9112 5.2", Post(b"Content-Length:\r\n 3\r\n", b"abc"), Refused(400)),
    Case("cl-carriage-return", "CVE-2023-30589", Post(b"X: y\rContent-Length: 3\r\n\r\n", b"abc"), Refused(400)),
    Case("cl-in-get", "RFC 9110 9.3.1", Raw(b"GET /a HTTP/1.1\r\n{h}Content-Length: 45\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: hello.localho\r\n"), Sees("GET /a HTTP/1.1|content-length: 45", b"GET /smuggled HTTP/1.1\r\nHost: hello.localho\r\n")),
    Case("cl-in-head", "RFC 9110 9.3.2", Raw(b"HEAD /a HTTP/1.1\r\n{h}Content-Length: 3\r\n\r\nabc"), Sees("HEAD /a HTTP/1.1|content-length: 3", b"abc")),
    Case("cl-in-options", "RFC 9110 9.3.7", Raw(b"OPTIONS /a HTTP/1.1\r\n{h}Content-Length: 3\r\n\r\nabc"), Sees("OPTIONS /a HTTP/1.1|content-length: 3", b"abc")),
    Case("cl-in-delete", "RFC 9110 9.3.5", Raw(b"DELETE /a HTTP/1.1\r\n{h}Content-Length: 3\r\n\r\nabc"), Sees("DELETE /a HTTP/1.1|content-length: 3", b"abc")),
    Case("cl-none-in-post", "RFC 9112 6.3", Post(b"", b""), Sees("POST /a HTTP/1.1", b"")),
    Case("cl-none-and-a-body", "RFC 9112 6.3", Post(b"", b"abc"), Sees("POST /a HTTP/1.1", b"")),
    Case("cl-zero", "RFC 9112 6.3", Post(b"Content-Length: 0\r\n", b""), Sees("POST /a HTTP/1.1|content-length: 0", b"")),
    // Lines between requests.
    Case("lines-after-the-body", "RFC 9112 2.2", Post(b"Content-Length: 3\r\n", b"abc\r\n"), Sees(THREE, b"abc")),
    Case("byte-after-the-body", "RFC 9112 6.3", Post(b"Content-Length: 3\r\nConnection: close\r\n", b"abcX"), Last(THREE, b"abc")),
    Case("request-after-close", "RFC 9112 9.6", Post(b"Content-Length: 3\r\nConnection: close\r\n", b"abcGET /smuggled HTTP/1.1\r\n{h}\r\n"), Last(THREE, b"abc")),
    Case("request-after-an-error", "RFC 9112 2.2", Post(b"Content-Length: x\r\n", b"GET /smuggled HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("http-1-0-keep-alive", "RFC 9112 C.2.2", Raw(b"POST /a HTTP/1.0\r\n{h}Connection: keep-alive\r\nContent-Length: 3\r\n\r\nabc"), Sees(THREE, b"abc")),
    Case("http-1-0", "RFC 9112 9.3", Raw(b"POST /a HTTP/1.0\r\n{h}Content-Length: 3\r\n\r\nabc"), Last(THREE, b"abc")),
    // Answers that do not wait for the body.
    Case("early-hidden", "Kettle 2025, 0.CL", Raw(b"POST /early HTTP/1.1\r\n{h}Content-Length: 45\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: hello.localho\r\n"), Early),
    Case("early-chunks", "Kettle 2025, 0.CL", Raw(b"POST /early HTTP/1.1\r\n{h}Transfer-Encoding: chunked\r\n\r\n23\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n\r\n0\r\n\r\n"), Early),
    Case("early-long", "RFC 9112 9.3", Raw(b"POST /early HTTP/1.1\r\n{h}Content-Length: 320000\r\n\r\n{GET /smuggled HTTP/1.1\r\nX:yz\r\n\r\n*10000}"), Early),
    // Expectations.
    Case("expect", "RFC 9110 10.1.1", Post(b"Expect: 100-continue\r\nContent-Length: 3\r\n", b"abc"), Sees(THREE, b"abc")),
    Case("expect-case", "RFC 9110 10.1.1", Post(b"EXPECT: 100-CONTINUE\r\nContent-Length: 3\r\n", b"abc"), Sees(THREE, b"abc")),
    Case("expect-other", "RFC 9110 10.1.1", Post(b"Expect: y 100-continue\r\nContent-Length: 3\r\n", b"abc"), Sees(THREE, b"abc")),
    Case("expect-list", "Kettle 2025, Expect", Post(b"Expect: 100-continue, x\r\nContent-Length: 3\r\n", b"abc"), Sees(THREE, b"abc")),
    Case("expect-twice", "Kettle 2025, Expect", Post(b"Expect: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n", b"abc"), Sees(THREE, b"abc")),
    Case("expect-get", "Kettle 2025, Expect", Get(b"Expect: 100-continue\r\n"), Sees("GET /a HTTP/1.1", b"")),
    Case("expect-get-length", "Kettle 2025, Expect", Raw(b"GET /a HTTP/1.1\r\n{h}Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"), Sees("GET /a HTTP/1.1|content-length: 3", b"abc")),
    Case("expect-http-1-0", "RFC 9110 10.1.1", Raw(b"POST /a HTTP/1.0\r\n{h}Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"), Last(THREE, b"abc")),
    Case("expect-folded", "Kettle 2025, Expect", Post(b"Expect:\r\n 100-continue\r\nContent-Length: 3\r\n", b"abc"), Refused(400)),
    Case("expect-te-cl", "Kettle 2025, Expect", Post(b"Expect: 100-continue\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), Last(CHUNKED, b"")),
    Case("expect-refused", "RFC 9110 10.1.1", Line(b"CONNECT {host}:80 HTTP/1.1\r\nExpect: 100-continue"), Refused(405)),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_one_end() {
    run(Family::of(CASES)).await;
}
