//! Handshakes by HTTP/1, and what apps answer.

use super::Case;
use super::Want::{Gets, Tunnel};

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const TO_FOO: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo/2\r\n\r\n";
const TO_H2C: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const PLAIN: &str = "GET /a HTTP/1.1\r\n{h}{ws}\r\n";
/// Frames as a client sends them, masked, and not what HTTP begins with.
const FRAMES: &str = "GET /a HTTP/1.1\r\n{h}{ws}\r\n\u{1}\u{5}hello\u{9}";
/// The next request behind the handshake, for an app that nobody knows.
const SMUGGLED: &str = "GET /a HTTP/1.1\r\n{h}{ws}\r\nGET /smuggled HTTP/1.1\r\nHost: evil.localhost\r\n\r\n";

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    // Sound ones, however they are written.
    Case("plain", "RFC 6455 1.3", PLAIN, SWITCH, "websocket", Tunnel("")),
    Case("protocol-case", "RFC 9110 7.8", "GET /a HTTP/1.1\r\n{h}Connection: UPGRADE\r\nUPGRADE: WebSocket\r\n{key}\r\n", SWITCH, "WebSocket", Tunnel("")),
    Case("connection-list", "RFC 9110 7.6.1", "GET /a HTTP/1.1\r\n{h}Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n{key}\r\n", SWITCH, "websocket", Tunnel("")),
    Case("connection-lines", "RFC 9110 5.3", "GET /a HTTP/1.1\r\n{h}Connection: keep-alive\r\nConnection: ,upgrade,\r\nUpgrade: websocket\r\n{key}\r\n", SWITCH, "websocket", Tunnel("")),
    Case("connection-close-too", "RFC 9112 9.6", "GET /a HTTP/1.1\r\n{h}Connection: close, upgrade\r\nUpgrade: websocket\r\n{key}\r\n", SWITCH, "websocket", Tunnel("")),
    Case("host-in-target", "RFC 9112 3.2.2", "GET http://{host}/a HTTP/1.1\r\n{h}{ws}\r\n", SWITCH, "websocket", Tunnel("")),
    Case("te-too", "RFC 9110 10.1.4", "GET /a HTTP/1.1\r\n{h}TE: trailers\r\nConnection: TE, Upgrade\r\nUpgrade: websocket\r\n{key}\r\n", SWITCH, "websocket", Tunnel("")),
    Case("expect-too", "RFC 9110 10.1.1", "GET /a HTTP/1.1\r\n{h}{ws}Expect: 100-continue\r\n\r\n", SWITCH, "websocket", Tunnel("")),
    Case("behind-another-request", "RFC 9112 9.3.2", "GET /first HTTP/1.1\r\n{h}\r\nGET /a HTTP/1.1\r\n{h}{ws}\r\n", SWITCH, "websocket", Tunnel("")),
    Case("another-protocol", "RFC 9110 7.8", "GET /a HTTP/1.1\r\n{h}Connection: upgrade\r\nUpgrade: foo/2\r\n\r\n", TO_FOO, "foo/2", Tunnel("")),
    Case("one-of-two-protocols", "RFC 9110 7.8", "GET /a HTTP/1.1\r\n{h}Connection: upgrade\r\nUpgrade: websocket, foo/2\r\n{key}\r\n", TO_FOO, "websocket, foo/2", Tunnel("")),
    Case("post-without-body", "RFC 6455 4.1", "POST /a HTTP/1.1\r\n{h}{ws}Content-Length: 0\r\n\r\n", SWITCH, "websocket", Tunnel("")),
    // What RFC 6455 asks of a handshake the app judges.
    Case("no-key", "RFC 6455 4.2.1", "GET /a HTTP/1.1\r\n{h}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", SWITCH, "websocket", Tunnel("")),
    Case("version-8", "RFC 6455 4.4", "GET /a HTTP/1.1\r\n{h}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\n\r\n", "HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 13\r\nConnection: upgrade\r\nUpgrade: websocket\r\ncontent-length: 2\r\n\r\nno", "websocket", Gets(&[426, 200])),
    Case("version-two", "RFC 6455 4.4", "GET /a HTTP/1.1\r\n{h}{ws}Sec-WebSocket-Version: 8\r\n\r\n", "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno", "websocket", Gets(&[400, 200])),
    Case("accept-missing", "RFC 6455 4.2.2", PLAIN, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "websocket", Tunnel("")),
    Case("accept-wrong", "RFC 6455 4.2.2", PLAIN, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAA\r\n\r\n", "websocket", Tunnel("")),
    // Bytes that do not wait.
    Case("frames-early", "RFC 6455 4.1", FRAMES, SWITCH, "websocket", Tunnel("")),
    Case("request-early", "CVE-2026-2833", "GET /a HTTP/1.1\r\n{h}{ws}\r\nGET /smuggled HTTP/1.1 ", SWITCH, "websocket", Tunnel("")),
    Case("frame-with-the-switch", "RFC 6455 4.2.2", FRAMES, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nglued", "websocket", Tunnel("glued")),
    Case("answer-with-the-switch", "RFC 9110 7.8", PLAIN, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "websocket", Tunnel("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")),
    Case("hints-before-the-switch", "RFC 9110 15.2", PLAIN, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "websocket", Tunnel("")),
    Case("continue-before-the-switch", "RFC 9110 15.2.1", PLAIN, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "websocket", Tunnel("")),
    Case("switch-phrase", "RFC 9112 4", PLAIN, "HTTP/1.1 101 Yes, please\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "websocket", Tunnel("")),
    // Declined: what follows is the next request, and the gateway's to read.
    Case("declined", "CVE-2026-2833", PLAIN, OK, "websocket", Gets(&[200, 200])),
    Case("declined-and-a-request-early", "CVE-2026-2833", SMUGGLED, OK, "websocket", Gets(&[200, 404, 200])),
    Case("declined-and-frames-early", "RFC 6455 4.1", FRAMES, "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno", "websocket", Gets(&[400, 400])),
    Case("declined-by-403", "RFC 6455 4.2.2", PLAIN, "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", "websocket", Gets(&[403, 200])),
    Case("declined-by-503", "RFC 6455 4.2.2", SMUGGLED, "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno", "websocket", Gets(&[503, 404, 200])),
    Case("declined-by-204", "RFC 9110 15.3.5", PLAIN, "HTTP/1.1 204 No Content\r\n\r\n", "websocket", Gets(&[204, 200])),
    Case("declined-by-307", "RFC 6455 4.1", PLAIN, "HTTP/1.1 307 Temporary Redirect\r\nlocation: /b\r\ncontent-length: 0\r\n\r\n", "websocket", Gets(&[307, 200])),
    Case("declined-as-if-accepted", "CVE-2026-2833", SMUGGLED, "HTTP/1.1 200 OK\r\nConnection: Upgrade\r\nUpgrade: websocket\r\ncontent-length: 2\r\n\r\nok", "websocket", Gets(&[200, 404, 200])),
    Case("declined-to-h2c", "RFC 9113 3.1", PLAIN, "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: h2c\r\ncontent-length: 2\r\n\r\nno", "websocket", Gets(&[426, 200])),
    // Not asked for properly: no app is asked, and none may switch.
    Case("not-asked", "RFC 9110 15.2.2", "GET /a HTTP/1.1\r\n{h}\r\n", SWITCH, "", Gets(&[502, 200])),
    Case("no-connection", "RFC 9110 7.8", "GET /a HTTP/1.1\r\n{h}Upgrade: websocket\r\n{key}\r\n", SWITCH, "", Gets(&[502, 200])),
    Case("no-upgrade", "RFC 9110 7.8", "GET /a HTTP/1.1\r\n{h}Connection: Upgrade\r\n{key}\r\n", SWITCH, "", Gets(&[502, 200])),
    Case("upgrade-empty", "RFC 9110 7.8", "GET /a HTTP/1.1\r\n{h}Connection: Upgrade\r\nUpgrade: ,\r\n{key}\r\n", SWITCH, "", Gets(&[502, 200])),
    Case("upgrade-twice", "RFC 9110 7.8", "GET /a HTTP/1.1\r\n{h}Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: foo/2\r\n{key}\r\n", SWITCH, "", Gets(&[502, 200])),
    Case("http-1-0", "RFC 9110 7.8", "GET /a HTTP/1.0\r\n{h}{ws}\r\n", SWITCH, "", Gets(&[502])),
    Case("http-1-0-keep", "RFC 9110 7.8", "GET /a HTTP/1.0\r\n{h}Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n{key}\r\n", OK, "", Gets(&[200, 200])),
    Case("body", "CVE-2026-2833", "POST /a HTTP/1.1\r\n{h}{ws}Content-Length: 3\r\n\r\nabc", SWITCH, "", Gets(&[502, 200])),
    Case("body-of-get", "CVE-2026-2833", "GET /a HTTP/1.1\r\n{h}{ws}Content-Length: 3\r\n\r\nabc", OK, "", Gets(&[200, 200])),
    Case("body-in-chunks", "RFC 9110 7.8", "POST /a HTTP/1.1\r\n{h}{ws}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", SWITCH, "", Gets(&[502, 200])),
    Case("body-and-a-request", "CVE-2026-2833", "POST /a HTTP/1.1\r\n{h}{ws}Content-Length: 3\r\n\r\nabcGET /smuggled HTTP/1.1\r\nHost: evil.localhost\r\n\r\n", OK, "", Gets(&[200, 404, 200])),
    Case("lengths-differ", "RFC 9112 6.3", "GET /a HTTP/1.1\r\n{h}{ws}Content-Length: 0\r\nContent-Length: 3\r\n\r\nabc", SWITCH, "-", Gets(&[400])),
    Case("connection-names-upgrade-only", "RFC 9110 7.6.1", "GET /a HTTP/1.1\r\n{h}Connection: Upgrade, Sec-WebSocket-Version, Host\r\nUpgrade: websocket\r\n\r\n", SWITCH, "websocket", Tunnel("")),
    Case("folded", "RFC 9112 5.2", "GET /a HTTP/1.1\r\n{h}Connection: Upgrade\r\nUpgrade: web\r\n socket\r\n\r\n", SWITCH, "-", Gets(&[400])),
    Case("space-before-colon", "RFC 9112 5.1", "GET /a HTTP/1.1\r\n{h}Connection: Upgrade\r\nUpgrade : websocket\r\n\r\n", SWITCH, "-", Gets(&[400])),
    Case("connect", "RFC 9110 9.3.6", "CONNECT hello.localhost:80 HTTP/1.1\r\n{h}{ws}\r\n", SWITCH, "-", Gets(&[405])),
    Case("unknown-host", "RFC 9110 7.2", "GET /a HTTP/1.1\r\nHost: evil.localhost\r\n{ws}\r\n", SWITCH, "-", Gets(&[404, 200])),
    // HTTP/2 over what was HTTP/1.1 would be read by nobody here.
    Case("h2c", "RFC 9113 3.1", "GET /a HTTP/1.1\r\n{h}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", TO_H2C, "", Gets(&[502, 200])),
    Case("h2c-behind-websocket", "RFC 9113 3.1", "GET /a HTTP/1.1\r\n{h}Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n{key}\r\n", TO_H2C, "", Gets(&[502, 200])),
    Case("h2c-in-disguise", "RFC 9110 7.8", "GET /a HTTP/1.1\r\n{h}Connection: Upgrade\r\nUpgrade: H2C-17\r\n\r\n", TO_H2C, "", Gets(&[502, 200])),
    Case("h2c-unasked", "RFC 9110 7.8", PLAIN, TO_H2C, "websocket", Gets(&[502, 200])),
    // Switches that are none.
    Case("to-another-protocol", "RFC 9110 7.8", PLAIN, TO_FOO, "websocket", Gets(&[502, 200])),
    Case("to-two-protocols", "RFC 9110 7.8", PLAIN, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket, foo/2\r\n\r\n", "websocket", Gets(&[502, 200])),
    Case("to-another-version", "RFC 9110 7.8", "GET /a HTTP/1.1\r\n{h}Connection: Upgrade\r\nUpgrade: foo/3\r\n\r\n", TO_FOO, "foo/3", Gets(&[502, 200])),
    Case("to-nothing", "RFC 9110 7.8", PLAIN, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n", "websocket", Gets(&[502, 200])),
    Case("unnamed", "RFC 9110 7.6.1", PLAIN, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", "websocket", Gets(&[502, 200])),
    Case("switch-of-1-0", "RFC 9110 2.5", PLAIN, "HTTP/1.0 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "websocket", Tunnel("")),
    Case("junk-before", "RFC 9112 4", PLAIN, "junk HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "websocket", Gets(&[502, 200])),
    Case("head-too-long", "RFC 9112 3", PLAIN, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nx: {long}\r\n\r\n", "websocket", Gets(&[502, 200])),
    Case("switch-with-length", "RFC 9110 8.6", PLAIN, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\n", "websocket", Tunnel("")),
    Case("switch-with-chunks", "RFC 9112 6.1", PLAIN, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n", "websocket", Tunnel("")),
    Case("switch-with-bad-field", "RFC 9112 5.1", PLAIN, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nx y: z\r\n\r\n", "websocket", Gets(&[502, 200])),
];
