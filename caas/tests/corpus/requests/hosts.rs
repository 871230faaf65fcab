//! Whom a request is for: Host, authorities, absolute targets, CONNECT.

use super::Ask::{Get, Line, Raw};
use super::Case;
use super::Want::{Answered, Refused, Sees};
use super::run::{Family, run};

const A: &str = "GET /a HTTP/1.1";

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    // How often.
    Case("host-none", "RFC 9112 3.2", Raw(b"GET /a HTTP/1.1\r\n\r\n"), Refused(400)),
    Case("host-none-1-0", "RFC 9112 3.2", Raw(b"GET /a HTTP/1.0\r\n\r\n"), Refused(400)),
    Case("host-twice", "RFC 9112 3.2", Get(b"{h}"), Refused(400)),
    Case("host-twice-differs", "RFC 9112 3.2", Get(b"Host: evil.localhost\r\n"), Refused(400)),
    Case("host-twice-first", "RFC 9112 3.2", Raw(b"GET /a HTTP/1.1\r\nHost: evil.localhost\r\n{h}\r\n"), Refused(400)),
    Case("host-twice-empty", "RFC 9112 3.2", Get(b"Host:\r\n"), Refused(400)),
    Case("host-space-colon", "CVE-2019-16276", Raw(b"GET /a HTTP/1.1\r\nHost : {host}\r\n\r\n"), Refused(400)),
    Case("host-folded", "RFC 9112 5.2", Raw(b"GET /a HTTP/1.1\r\nHost:\r\n {host}\r\n\r\n"), Refused(400)),
    Case("host-folded-more", "RFC 9112 5.2", Raw(b"GET /a HTTP/1.1\r\nHost: {host}\r\n .evil\r\n\r\n"), Refused(400)),
    Case("host-twice-absolute", "RFC 9112 3.2.2", Raw(b"GET http://{host}/a HTTP/1.1\r\n{h}{h}\r\n"), Refused(400)),
    Case("host-none-absolute", "RFC 9112 3.2", Raw(b"GET http://{host}/a HTTP/1.1\r\n\r\n"), Refused(400)),
    // What it says.
    Case("host-empty", "RFC 9112 3.2", Raw(b"GET /a HTTP/1.1\r\nHost: \r\n\r\n"), Refused(400)),
    Case("host-list", "RFC 9110 7.2", Raw(b"GET /a HTTP/1.1\r\nHost: {host},evil\r\n\r\n"), Refused(400)),
    Case("host-list-space", "RFC 9110 7.2", Raw(b"GET /a HTTP/1.1\r\nHost: {host} evil\r\n\r\n"), Refused(400)),
    Case("host-user", "RFC 9110 4.2.4", Raw(b"GET /a HTTP/1.1\r\nHost: evil@{host}\r\n\r\n"), Refused(400)),
    Case("host-user-after", "RFC 9110 4.2.4", Raw(b"GET /a HTTP/1.1\r\nHost: {host}@evil\r\n\r\n"), Refused(400)),
    Case("host-nul", "RFC 9110 5.5", Raw(b"GET /a HTTP/1.1\r\nHost: {host}\0.evil\r\n\r\n"), Refused(400)),
    Case("host-control", "RFC 9110 5.5", Raw(b"GET /a HTTP/1.1\r\nHost: {host}\x01.evil\r\n\r\n"), Refused(400)),
    Case("host-tab-inside", "RFC 9110 7.2", Raw(b"GET /a HTTP/1.1\r\nHost: {host}\tevil\r\n\r\n"), Refused(400)),
    Case("host-slash", "RFC 9110 7.2", Raw(b"GET /a HTTP/1.1\r\nHost: {host}/evil\r\n\r\n"), Refused(400)),
    Case("host-backslash", "RFC 9110 7.2", Raw(b"GET /a HTTP/1.1\r\nHost: {host}\\evil\r\n\r\n"), Refused(400)),
    Case("host-query", "RFC 9110 7.2", Raw(b"GET /a HTTP/1.1\r\nHost: {host}?a\r\n\r\n"), Refused(400)),
    Case("host-fragment", "RFC 9110 7.2", Raw(b"GET /a HTTP/1.1\r\nHost: {host}#a\r\n\r\n"), Refused(400)),
    Case("host-url", "RFC 9110 7.2", Raw(b"GET /a HTTP/1.1\r\nHost: http://{host}\r\n\r\n"), Refused(400)),
    Case("host-percent", "RFC 3986 3.2.2", Raw(b"GET /a HTTP/1.1\r\nHost: %63{host}\r\n\r\n"), Refused(400)),
    Case("host-quoted", "RFC 9110 7.2", Raw(b"GET /a HTTP/1.1\r\nHost: \"{host}\"\r\n\r\n"), Refused(400)),
    Case("host-semicolon", "RFC 9110 7.2", Raw(b"GET /a HTTP/1.1\r\nHost: {host};evil\r\n\r\n"), Refused(400)),
    Case("host-accent", "RFC 5890 2.3.2.1", Raw(b"GET /a HTTP/1.1\r\nHost: {host}\xc3\xa9\r\n\r\n"), Refused(400)),
    Case("host-wide-dot", "RFC 3490 3.1", Raw(b"GET /a HTTP/1.1\r\nHost: c\xe3\x80\x82localhost\r\n\r\n"), Refused(400)),
    Case("host-no-utf8", "RFC 9110 5.5", Raw(b"GET /a HTTP/1.1\r\nHost: {host}\xff\r\n\r\n"), Refused(400)),
    Case("host-dot", "RFC 1034 3.1", Raw(b"GET /a HTTP/1.1\r\nHost: .\r\n\r\n"), Refused(400)),
    Case("host-dot-first", "RFC 1034 3.1", Raw(b"GET /a HTTP/1.1\r\nHost: .{host}\r\n\r\n"), Refused(400)),
    Case("host-dots", "RFC 1034 3.1", Raw(b"GET /a HTTP/1.1\r\nHost: c..localhost\r\n\r\n"), Refused(400)),
    Case("host-dots-last", "RFC 1034 3.1", Raw(b"GET /a HTTP/1.1\r\nHost: {host}..\r\n\r\n"), Refused(400)),
    Case("host-path-dots", "the gateway's names", Raw(b"GET /a HTTP/1.1\r\nHost: ../../etc/passwd\r\n\r\n"), Refused(400)),
    Case("host-254-letters", "RFC 1035 2.3.4", Raw(b"GET /a HTTP/1.1\r\nHost: {a*254}\r\n\r\n"), Refused(400)),
    Case("host-30000-letters", "RFC 1035 2.3.4", Raw(b"GET /a HTTP/1.1\r\nHost: {a*30000}\r\n\r\n"), Refused(400)),
    Case("host-ipv6", "RFC 3986 3.2.2", Raw(b"GET /a HTTP/1.1\r\nHost: [::1]\r\n\r\n"), Refused(400)),
    Case("host-ipv6-bare", "RFC 3986 3.2.2", Raw(b"GET /a HTTP/1.1\r\nHost: ::1\r\n\r\n"), Refused(400)),
    Case("host-port-twice", "RFC 3986 3.2.3", Raw(b"GET /a HTTP/1.1\r\nHost: {host}:80:80\r\n\r\n"), Refused(400)),
    Case("host-port-large", "RFC 3986 3.2.3", Raw(b"GET /a HTTP/1.1\r\nHost: {host}:65536\r\n\r\n"), Refused(400)),
    Case("host-port-hex", "RFC 3986 3.2.3", Raw(b"GET /a HTTP/1.1\r\nHost: {host}:0x50\r\n\r\n"), Refused(400)),
    Case("host-port-plus", "RFC 3986 3.2.3", Raw(b"GET /a HTTP/1.1\r\nHost: {host}:+80\r\n\r\n"), Refused(400)),
    Case("host-port-name", "RFC 3986 3.2.3", Raw(b"GET /a HTTP/1.1\r\nHost: {host}:evil\r\n\r\n"), Refused(400)),
    Case("host-port-user", "RFC 3986 3.2", Raw(b"GET /a HTTP/1.1\r\nHost: {host}:80@evil\r\n\r\n"), Refused(400)),
    // Names that are the app's.
    Case("host-port", "RFC 9110 7.2", Raw(b"GET /a HTTP/1.1\r\nHost: {host}:8080\r\n\r\n"), Sees("GET /a HTTP/1.1|host: {host}:8080|x-forwarded-host: {host}:8080", b"")),
    Case("host-port-empty", "RFC 3986 3.2.3", Raw(b"GET /a HTTP/1.1\r\nHost: {host}:\r\n\r\n"), Sees("GET /a HTTP/1.1|host: {host}:|x-forwarded-host: {host}:", b"")),
    Case("host-dot-last", "RFC 1034 3.1", Raw(b"GET /a HTTP/1.1\r\nHost: {host}.\r\n\r\n"), Sees("GET /a HTTP/1.1|host: {host}.|x-forwarded-host: {host}.", b"")),
    Case("host-spaces-around", "RFC 9110 5.5", Raw(b"GET /a HTTP/1.1\r\nHost: \t {host} \t\r\n\r\n"), Sees(A, b"")),
    Case("host-field-case", "RFC 9110 5.1", Raw(b"GET /a HTTP/1.1\r\nhOsT: {host}\r\n\r\n"), Sees(A, b"")),
    Case("host-in-1-0", "RFC 9112 3.2", Raw(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n{h}\r\n"), Sees(A, b"")),
    // Names that nobody has: all alike.
    Case("nobody-address", "RFC 9110 7.2", Raw(b"GET /a HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"), Answered(404)),
    Case("nobody-loopback", "RFC 9110 7.2", Raw(b"GET /a HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"), Answered(404)),
    Case("nobody-number", "WHATWG URL 3.5", Raw(b"GET /a HTTP/1.1\r\nHost: 2130706433\r\n\r\n"), Answered(404)),
    Case("nobody-domain-itself", "the gateway's names", Raw(b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n"), Answered(404)),
    Case("nobody-below-an-app", "the gateway's names", Raw(b"GET /a HTTP/1.1\r\nHost: x.{host}\r\n\r\n"), Answered(404)),
    Case("nobody-after-an-app", "the gateway's names", Raw(b"GET /a HTTP/1.1\r\nHost: {host}.evil.example\r\n\r\n"), Answered(404)),
    Case("nobody-glued", "the gateway's names", Raw(b"GET /a HTTP/1.1\r\nHost: evil{host}\r\n\r\n"), Answered(404)),
    Case("nobody-no-version", "the gateway's names", Raw(b"GET /a HTTP/1.1\r\nHost: 9--{host}\r\n\r\n"), Answered(503)),
    Case("nobody-underscore", "RFC 952 1", Raw(b"GET /a HTTP/1.1\r\nHost: _{host}\r\n\r\n"), Answered(404)),
    // Absolute targets: the authority decides, Host follows.
    Case("absolute", "RFC 9112 3.2.2", Line(b"GET http://{host}/a HTTP/1.1"), Sees(A, b"")),
    Case("absolute-https", "RFC 9112 3.2.2", Line(b"GET https://{host}/a HTTP/1.1"), Sees(A, b"")),
    Case("absolute-case", "RFC 3986 3.1", Line(b"GET HTTP://{host}/a HTTP/1.1"), Sees(A, b"")),
    Case("absolute-over-host", "RFC 9112 3.2.2", Raw(b"GET http://{host}/a HTTP/1.1\r\nHost: evil.localhost\r\n\r\n"), Sees(A, b"")),
    Case("absolute-over-bad-host", "RFC 9112 3.2.2", Raw(b"GET http://{host}/a HTTP/1.1\r\nHost: a b@c\r\n\r\n"), Sees(A, b"")),
    Case("absolute-no-path", "RFC 9112 3.2.1", Line(b"GET http://{host} HTTP/1.1"), Sees("GET / HTTP/1.1", b"")),
    Case("absolute-query", "RFC 9112 3.2.1", Line(b"GET http://{host}?a=b HTTP/1.1"), Sees("GET /?a=b HTTP/1.1", b"")),
    Case("absolute-options", "RFC 9112 3.2.4", Line(b"OPTIONS http://{host} HTTP/1.1"), Sees("OPTIONS / HTTP/1.1", b"")),
    Case("absolute-double-slash", "RFC 9112 3.2.2", Line(b"GET http://{host}//evil.example/ HTTP/1.1"), Sees("GET //evil.example/ HTTP/1.1", b"")),
    Case("absolute-port", "RFC 9112 3.2.2", Line(b"GET http://{host}:81/a HTTP/1.1"), Sees("GET /a HTTP/1.1|host: {host}:81|x-forwarded-host: {host}:81", b"")),
    Case("absolute-other-app", "RFC 9112 3.2.2", Line(b"GET http://nobody.localhost/a HTTP/1.1"), Answered(404)),
    Case("absolute-metadata", "RFC 9112 3.2.2", Line(b"GET http://169.254.169.254/latest/meta-data HTTP/1.1"), Answered(404)),
    Case("absolute-ipv6", "RFC 3986 3.2.2", Line(b"GET http://[::1]:9090/a HTTP/1.1"), Refused(400)),
    Case("absolute-user", "RFC 9110 4.2.4", Line(b"GET http://{host}@evil.example/ HTTP/1.1"), Refused(400)),
    Case("absolute-user-password", "RFC 9110 4.2.4", Line(b"GET http://a:b@{host}/ HTTP/1.1"), Refused(400)),
    Case("absolute-ftp", "RFC 9110 7.4", Line(b"GET ftp://{host}/a HTTP/1.1"), Refused(400)),
    Case("absolute-file", "RFC 8089 2", Line(b"GET file:///etc/passwd HTTP/1.1"), Refused(400)),
    Case("absolute-unix", "CVE-2021-40438", Line(b"GET unix:/run/docker.sock|http://{host}/ HTTP/1.1"), Refused(400)),
    Case("absolute-ws", "RFC 6455 3", Line(b"GET ws://{host}/a HTTP/1.1"), Refused(400)),
    Case("absolute-no-host", "RFC 9110 4.2.1", Line(b"GET http:///a HTTP/1.1"), Refused(400)),
    Case("absolute-no-slashes", "RFC 9110 4.2.1", Line(b"GET http:{host}/a HTTP/1.1"), Refused(400)),
    Case("absolute-backslash", "WHATWG URL 4.4", Line(b"GET http://{host}\\@evil/ HTTP/1.1"), Refused(400)),
    Case("authority-form", "RFC 9112 3.2.3", Line(b"GET {host}:80 HTTP/1.1"), Refused(400)),
    Case("scheme-relative", "RFC 9112 3.2", Line(b"GET evil.example/a HTTP/1.1"), Refused(400)),
    // CONNECT.
    Case("connect", "RFC 9110 9.3.6", Line(b"CONNECT {host}:80 HTTP/1.1"), Refused(405)),
    Case("connect-elsewhere", "RFC 9110 9.3.6", Line(b"CONNECT 127.0.0.1:22 HTTP/1.1"), Refused(405)),
    Case("connect-path", "RFC 9112 3.2.3", Line(b"CONNECT /a HTTP/1.1"), Refused(405)),
    Case("connect-absolute", "RFC 9112 3.2.3", Line(b"CONNECT http://{host}/a HTTP/1.1"), Refused(405)),
    Case("connect-body", "RFC 9110 9.3.6", Line(b"CONNECT {host}:80 HTTP/1.1\r\nContent-Length: 3"), Refused(405)),
    Case("connect-1-0", "RFC 9110 9.3.6", Line(b"CONNECT {host}:80 HTTP/1.0"), Refused(405)),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_for_one_app() {
    run(Family::of(CASES)).await;
}
