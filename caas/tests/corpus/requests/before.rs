//! What comes before the first request of a connection: the PROXY header of a balancer, the first messages of TLS.

use super::Ask::{Get, Raw};
use super::Case;
use super::Want::{Refused, Sees, Silence};
use super::run::{Family, run};

/// Sent by a balancer, which has to begin with a header.
#[rustfmt::skip]
pub(super) const PROXY: &[Case] = &[
    Case("proxy-none", "PROXY protocol 2", Get(b""), Refused(400)),
    Case("proxy-empty-line", "PROXY protocol 2.1", Raw(b"PROXY\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-lower-case", "PROXY protocol 2.1", Raw(b"proxy TCP4 6.6.6.6 7.7.7.7 1 2\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-space-first", "PROXY protocol 2.1", Raw(b" PROXY TCP4 6.6.6.6 7.7.7.7 1 2\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-family", "PROXY protocol 2.1", Raw(b"PROXY UDP4 6.6.6.6 7.7.7.7 1 2\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-family-mixed", "PROXY protocol 2.1", Raw(b"PROXY TCP4 ::1 ::2 1 2\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-name", "PROXY protocol 2.1", Raw(b"PROXY TCP4 localhost 7.7.7.7 1 2\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-octal", "CVE-2021-29921", Raw(b"PROXY TCP4 010.0.0.1 7.7.7.7 1 2\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-short-address", "CVE-2021-29922", Raw(b"PROXY TCP4 127.1 7.7.7.7 1 2\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-zone", "PROXY protocol 2.1", Raw(b"PROXY TCP6 fe80::1%eth0 ::2 1 2\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-port-large", "PROXY protocol 2.1", Raw(b"PROXY TCP4 6.6.6.6 7.7.7.7 65536 2\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-port-zeros", "PROXY protocol 2.1", Raw(b"PROXY TCP4 6.6.6.6 7.7.7.7 01 2\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-port-sign", "PROXY protocol 2.1", Raw(b"PROXY TCP4 6.6.6.6 7.7.7.7 +1 2\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-two-spaces", "PROXY protocol 2.1", Raw(b"PROXY  TCP4 6.6.6.6 7.7.7.7 1 2\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-word-more", "PROXY protocol 2.1", Raw(b"PROXY TCP4 6.6.6.6 7.7.7.7 1 2 3\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-word-less", "PROXY protocol 2.1", Raw(b"PROXY TCP4 6.6.6.6 7.7.7.7 1\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-line-feed", "PROXY protocol 2.1", Raw(b"PROXY TCP4 6.6.6.6 7.7.7.7 1 2\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-long", "PROXY protocol 2.1", Raw(b"PROXY UNKNOWN {a*200}\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-2-version", "PROXY protocol 2.2", Raw(b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x0c\x06\x06\x06\x06\x07\x07\x07\x07\0\x01\0\x02GET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-2-command", "PROXY protocol 2.2", Raw(b"\r\n\r\n\0\r\nQUIT\n\x22\x11\0\x0c\x06\x06\x06\x06\x07\x07\x07\x07\0\x01\0\x02GET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-2-datagrams", "PROXY protocol 2.2", Raw(b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c\x06\x06\x06\x06\x07\x07\x07\x07\0\x01\0\x02GET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-2-short", "PROXY protocol 2.2", Raw(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b\x06\x06\x06\x06\x07\x07\x07\x07\0\x01\0GET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-2-long", "PROXY protocol 2.2", Raw(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xffGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-twice", "PROXY protocol 2", Raw(b"PROXY TCP4 6.6.6.6 7.7.7.7 1 2\r\nPROXY TCP4 6.6.6.6 7.7.7.7 1 2\r\nGET /a HTTP/1.1\r\n{h}\r\n"), Refused(400)),
    Case("proxy-good", "PROXY protocol 2.1", Raw(b"PROXY TCP4 6.6.6.6 7.7.7.7 1 81\r\nGET /a HTTP/1.1\r\n{h}X-Forwarded-For: 5.5.5.5\r\n\r\n"), Sees("GET /a HTTP/1.1|x-forwarded-for: 6.6.6.6|x-forwarded-port: 81", b"")),
    Case("proxy-2-tlv-garbage", "PROXY protocol 2.2.1", Raw(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f\x06\x06\x06\x06\x07\x07\x07\x07\0\x01\0\x51\xff\xff\xffGET /a HTTP/1.1\r\n{h}\r\n"), Sees("GET /a HTTP/1.1|x-forwarded-for: 6.6.6.6|x-forwarded-port: 81", b"")),
    Case("proxy-smuggled", "RFC 9112 2.2", Raw(b"PROXY TCP4 6.6.6.6 7.7.7.7 1 81\r\nGET /a HTTP/1.1\r\n{h}X: y\r\n z\r\n\r\n"), Refused(400)),
];

/// Sent to the port that speaks TLS.
#[rustfmt::skip]
pub(super) const TLS: &[Case] = &[
    Case("tls-plain-http", "RFC 9110 4.2.2", Get(b""), Refused(400)),
    Case("tls-plain-http-2", "RFC 9113 3.3", Raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Refused(400)),
    Case("tls-ssl-2", "RFC 6176 3", Raw(b"\x80\x2e\x01\0\x02\0\x15\0\0\0\x10\x01\0\x80\x02\0\x80\x03\0\x80\x04\0\x80\x05\0\x80\x06\0\x40\x07\0\xc0{a*16}"), Silence),
    Case("tls-zeros", "RFC 8446 5.1", Raw(b"{\0*64}"), Silence),
    Case("tls-ones", "RFC 8446 5.1", Raw(b"{\xff*64}"), Silence),
    Case("tls-record-too-long", "RFC 8446 5.1", Raw(b"\x16\x03\x01\xff\xff\x01\0\xff\xfb\x03\x03{a*65535}"), Silence),
    Case("tls-record-empty", "RFC 8446 5.1", Raw(b"\x16\x03\x01\0\0\x16\x03\x01\0\0\x16\x03\x01\0\0\x16\x03\x01\0\0{\0*32}"), Silence),
    Case("tls-alert-first", "RFC 8446 6", Raw(b"\x15\x03\x03\0\x02\x02\x28"), Silence),
    Case("tls-data-first", "RFC 8446 4.4", Raw(b"\x17\x03\x03\0\x10{a*16}"), Silence),
    Case("tls-heartbeat-first", "CVE-2014-0160", Raw(b"\x18\x03\x02\0\x03\x01\x40\0"), Silence),
    Case("tls-server-hello", "RFC 8446 4.1.3", Raw(b"\x16\x03\x03\0\x2a\x02\0\0\x26\x03\x03{a*32}\0\x13\x01\0"), Silence),
    Case("tls-hello-too-short", "RFC 8446 4.1.2", Raw(b"\x16\x03\x01\0\x06\x01\0\0\x02\x03\x03"), Silence),
    Case("tls-hello-no-suites", "RFC 8446 4.1.2", Raw(b"\x16\x03\x01\0\x2d\x01\0\0\x29\x03\x03{a*32}\0\0\0\x01\0\0\0"), Silence),
    Case("tls-1-0", "RFC 8996 4", Raw(b"\x16\x03\x01\0\x2f\x01\0\0\x2b\x03\x01{a*32}\0\0\x04\xc0\x13\xc0\x14\x01\0"), Silence),
    Case("tls-sni-nul", "RFC 6066 3", Raw(b"\x16\x03\x01\0\x43\x01\0\0\x3f\x03\x03{a*32}\0\0\x04\xc0\x2f\xc0\x30\x01\0\0\x12\0\0\0\x0e\0\x0c\0\0\x09c0\0.local"), Silence),
];

#[tokio::test(flavor = "multi_thread")]
async fn balancers_say_who_it_is() {
    run(Family {
        settings: &[("PROXY_PROTOCOL_FROM", r#"["127.0.0.0/8"]"#)],
        greeting: b"PROXY UNKNOWN\r\n",
        ..Family::of(PROXY)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_tls_ends() {
    run(Family {
        // What looks like the beginning of a message is waited for.
        settings: &[("TLS_HANDSHAKE_TIMEOUT_MS", "1000")],
        tls: true,
        ..Family::of(TLS)
    })
    .await;
}
