//! Fields that mean something to the gateway: hop-by-hop ones, those that only it may say, upgrades and WebSocket handshakes.

use super::Ask::{Get, Post, Raw};
use super::Case;
use super::Want::{Last, Sees};
use super::run::{Family, run};

const A: &str = "GET /a HTTP/1.1";
const THREE: &str = "POST /a HTTP/1.1|content-length: 3";

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    // Connection takes nothing away that the gateway or the framing says.
    Case("connection-names-forwarded", "CVE-2024-45410", Get(b"Connection: X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Forwarded-Port, X-Request-Id\r\n"), Sees(A, b"")),
    Case("connection-names-host", "RFC 9110 7.6.1", Get(b"Connection: Host\r\n"), Sees(A, b"")),
    Case("connection-names-length", "RFC 9110 7.6.1", Post(b"Connection: Content-Length\r\nContent-Length: 3\r\n", b"abc"), Sees(THREE, b"abc")),
    Case("connection-names-encoding", "RFC 9110 7.6.1", Post(b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n", b"1\r\na\r\n0\r\n\r\n"), Sees("POST /a HTTP/1.1|transfer-encoding: chunked", b"a")),
    Case("connection-names-authorization", "CVE-2022-31813", Get(b"Connection: Authorization, Cookie\r\nAuthorization: Basic eDp5\r\nCookie: a=b\r\n"), Sees("GET /a HTTP/1.1|authorization: Basic eDp5|cookie: a=b", b"")),
    Case("connection-names-others", "RFC 9110 7.6.1", Get(b"Connection: X-Hop, X-Other\r\nX-Hop: 1\r\nX-Stays: 2\r\nX-Other: 3\r\n"), Sees("GET /a HTTP/1.1|x-stays: 2", b"")),
    Case("connection-names-itself", "RFC 9110 7.6.1", Get(b"Connection: Connection, connection\r\n"), Sees(A, b"")),
    Case("connection-names-nonsense", "RFC 9110 7.6.1", Get(b"Connection: ,, ;a=b, \"x\", \xff\r\nX-Stays: 2\r\n"), Sees("GET /a HTTP/1.1|x-stays: 2", b"")),
    Case("connection-names-many", "RFC 9110 7.6.1", Get(b"Connection: {x-#,*2000}\r\nX-Stays: 2\r\nX-7: 1\r\n"), Sees("GET /a HTTP/1.1|x-stays: 2", b"")),
    Case("connection-twice", "RFC 9110 7.6.1", Get(b"Connection: X-Hop\r\nConnection: X-Other\r\nX-Hop: 1\r\nX-Other: 2\r\n"), Sees(A, b"")),
    Case("connection-close-and-keep", "RFC 9112 9.3", Get(b"Connection: close\r\nConnection: keep-alive\r\n"), Last(A, b"")),
    Case("connection-close-case", "RFC 9110 7.6.1", Get(b"Connection: X-Hop, CLOSE\r\nX-Hop: 1\r\n"), Last(A, b"")),
    Case("keep-alive", "RFC 9110 7.6.1", Get(b"Connection: keep-alive\r\nKeep-Alive: timeout=5, max=1000\r\n"), Sees(A, b"")),
    Case("keep-alive-unnamed", "RFC 9110 7.6.1", Get(b"Keep-Alive: timeout=999999\r\n"), Sees(A, b"")),
    Case("proxy-connection", "RFC 9110 7.6.1", Get(b"Proxy-Connection: keep-alive\r\n"), Sees(A, b"")),
    Case("proxy-authorization", "RFC 9110 11.7.2", Get(b"Proxy-Authorization: Basic eDp5\r\n"), Sees(A, b"")),
    Case("te-trailers", "RFC 9110 10.1.4", Get(b"TE: trailers\r\n"), Sees("GET /a HTTP/1.1|te: trailers|connection: te", b"")),
    Case("te-others", "RFC 9110 10.1.4", Get(b"TE: gzip;q=1.0, deflate\r\n"), Sees(A, b"")),
    Case("te-trailers-and-others", "RFC 9110 10.1.4", Get(b"Connection: TE\r\nTE: gzip, Trailers\r\n"), Sees("GET /a HTTP/1.1|te: trailers|connection: te", b"")),
    Case("proxy-of-cgi", "CVE-2016-5385", Get(b"Proxy: http://evil.example:8080\r\n"), Sees(A, b"")),
    // What only the gateway says.
    Case("forwarded-for", "RFC 7239 8.1", Get(b"X-Forwarded-For: 6.6.6.6\r\n"), Sees(A, b"")),
    Case("forwarded-for-list", "RFC 7239 8.1", Get(b"X-Forwarded-For: 6.6.6.6, 127.0.0.1\r\nX-Forwarded-For: 10.0.0.1\r\n"), Sees(A, b"")),
    Case("forwarded-for-case", "RFC 9110 5.1", Get(b"x-FORWARDED-for: 6.6.6.6\r\n"), Sees(A, b"")),
    Case("forwarded-for-underscores", "CVE-2015-0219", Get(b"X_Forwarded_For: 6.6.6.6\r\nX-Forwarded_For: 6.6.6.6\r\nX_FORWARDED-FOR: 6.6.6.6\r\n"), Sees(A, b"")),
    Case("forwarded-others-underscores", "CVE-2015-0219", Get(b"X_Forwarded_Proto: https\r\nX_Forwarded_Host: evil\r\nX_Forwarded_Port: 1\r\nX_Real_IP: 6.6.6.6\r\n"), Sees(A, b"")),
    Case("forwarded-proto", "RFC 7239 5.4", Get(b"X-Forwarded-Proto: https\r\n"), Sees(A, b"")),
    Case("forwarded-host", "RFC 7239 5.3", Get(b"X-Forwarded-Host: evil.example\r\n"), Sees(A, b"")),
    Case("forwarded-port", "RFC 7239 8.1", Get(b"X-Forwarded-Port: 443\r\n"), Sees(A, b"")),
    Case("forwarded-others", "the gateway's own words", Get(b"X-Forwarded-Prefix: /evil\r\nX-Forwarded-Server: evil\r\nX-Forwarded-Ssl: on\r\nX-Forwarded: for=6.6.6.6\r\nX-Forwarded-Proto-Version: h2\r\n"), Sees(A, b"")),
    Case("forwarded", "RFC 7239 4", Get(b"Forwarded: for=6.6.6.6;proto=https;host=evil.example\r\n"), Sees(A, b"")),
    Case("forwarded-twice", "RFC 7239 4", Get(b"Forwarded: for=6.6.6.6\r\nForwarded: for=\"[::1]\"\r\n"), Sees(A, b"")),
    Case("real-ip", "the gateway's own words", Get(b"X-Real-IP: 6.6.6.6\r\n"), Sees(A, b"")),
    Case("forged-reason", "the gateway's own words", Get(b"X-Caas-Reason: forged\r\nX-Caas-Instance: forged\r\nX_Caas_Reason: forged\r\n"), Sees(A, b"")),
    Case("request-id-kept", "the gateway's own words", Get(b"X-Request-Id: abc-123\r\n"), Sees("GET /a HTTP/1.1|x-request-id: abc-123", b"")),
    Case("request-id-odd", "the gateway's own words", Get(b"X-Request-Id: a b\"c\r\n"), Sees(A, b"")),
    Case("request-id-long", "the gateway's own words", Get(b"X-Request-Id: {a*1000}\r\n"), Sees(A, b"")),
    Case("request-id-odd-then-good", "the gateway's own words", Get(b"X-Request-Id: a b\r\nX-Request-Id: abc-123\r\n"), Sees(A, b"")),
    Case("request-id-good-twice", "the gateway's own words", Get(b"X-Request-Id: abc-123\r\nX-Request-Id: abc-123\r\n"), Sees(A, b"")),
    Case("request-id-twice", "the gateway's own words", Get(b"X-Request-Id: a b\r\nX-Request-Id: c d\r\n"), Sees(A, b"")),
    Case("connection-takes-forwarded-in", "CVE-2022-31813", Get(b"Connection: close, X-Forwarded-For\r\nX-Forwarded-For: 6.6.6.6\r\n"), Last(A, b"")),
    // Upgrades: to nothing that changes the framing, and only when asked for properly.
    Case("upgrade-h2c", "RFC 9113 3.1", Get(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"), Sees(A, b"")),
    Case("upgrade-h2c-unnamed", "RFC 9110 7.8", Get(b"Connection: Upgrade\r\nUpgrade: h2c\r\n"), Sees(A, b"")),
    Case("upgrade-h2c-case", "RFC 9110 7.8", Get(b"Connection: UPGRADE\r\nUpgrade: H2C\r\n"), Sees(A, b"")),
    Case("upgrade-h2c-14", "RFC 7540 11.8", Get(b"Connection: Upgrade\r\nUpgrade: h2c-14\r\n"), Sees(A, b"")),
    Case("upgrade-h2c-second", "RFC 9110 7.8", Get(b"Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n"), Sees(A, b"")),
    Case("upgrade-h2c-twice", "RFC 9110 7.8", Get(b"Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n"), Sees(A, b"")),
    Case("upgrade-settings-only", "RFC 7540 3.2.1", Get(b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n"), Sees(A, b"")),
    Case("upgrade-unnamed", "RFC 9110 7.8", Get(b"Upgrade: websocket\r\n"), Sees(A, b"")),
    Case("upgrade-without-field", "RFC 9110 7.8", Get(b"Connection: Upgrade\r\n"), Sees(A, b"")),
    Case("upgrade-empty", "RFC 9110 7.8", Get(b"Connection: Upgrade\r\nUpgrade: \r\n"), Sees(A, b"")),
    Case("upgrade-1-0", "RFC 9110 7.8", Raw(b"GET /a HTTP/1.0\r\n{h}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), Last(A, b"")),
    Case("upgrade-1-0-keep-alive", "RFC 9110 7.8", Raw(b"GET /a HTTP/1.0\r\n{h}Connection: Upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n"), Sees(A, b"")),
    Case("upgrade-with-length", "RFC 9110 7.8", Post(b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n", b"abc"), Sees(THREE, b"abc")),
    Case("upgrade-with-hidden", "CVE-2026-2833", Raw(b"GET /a HTTP/1.1\r\n{h}Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 45\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: hello.localho\r\n"), Sees("GET /a HTTP/1.1|content-length: 45", b"GET /smuggled HTTP/1.1\r\nHost: hello.localho\r\n")),
    Case("upgrade-with-chunks", "RFC 9110 7.8", Post(b"Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"), Sees("POST /a HTTP/1.1|transfer-encoding: chunked", b"abc")),
    Case("upgrade-tls", "RFC 2817 3.1", Get(b"Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n"), Sees("GET /a HTTP/1.1|connection: upgrade|upgrade: TLS/1.0", b"")),
    // Handshakes that an app declines: what follows is the next request.
    Case("websocket-declined", "CVE-2026-2833", Get(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"), Sees(WEBSOCKET_13, b"")),
    Case("websocket-version-777", "Kettle 2019, WebSocket", Get(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\n"), Sees("GET /a HTTP/1.1|connection: upgrade|upgrade: websocket|sec-websocket-version: 777", b"")),
    Case("websocket-no-key", "RFC 6455 4.2.1", Get(b"Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n"), Sees("GET /a HTTP/1.1|connection: upgrade|upgrade: WebSocket|sec-websocket-version: 13", b"")),
    Case("websocket-post", "RFC 6455 4.1", Post(b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n", b""), Sees("POST /a HTTP/1.1|connection: upgrade|upgrade: websocket|content-length: 0", b"")),
    Case("websocket-key-twice", "RFC 6455 11.3.1", Get(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: x\r\n"), Sees(WEBSOCKET_KEYS, b"")),
    Case("websocket-connection-names-key", "RFC 9110 7.6.1", Get(b"Connection: Upgrade, Sec-WebSocket-Key\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n"), Sees("GET /a HTTP/1.1|connection: upgrade|upgrade: websocket", b"")),
];

const WEBSOCKET_13: &str = "GET /a HTTP/1.1|connection: upgrade|upgrade: websocket|sec-websocket-version: 13|sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
const WEBSOCKET_KEYS: &str = "GET /a HTTP/1.1|connection: upgrade|upgrade: websocket|sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==|sec-websocket-key: x";

#[tokio::test(flavor = "multi_thread")]
async fn nobody_says_what_only_the_gateway_says() {
    run(Family::of(CASES)).await;
}
