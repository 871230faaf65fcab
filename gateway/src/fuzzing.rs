//! What the bytes of others go through first, each as a function of bytes that fails when something does not hold which must: called by
//! the targets in `fuzz/`, and with arbitrary bytes by the tests here. No part of a product.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt as _;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use model::registry::{Acknowledgement, Endpoint as Address, RegistrySnapshot, SnapshotFile};
use model::{AppConfig, Load};

use crate::balance::{Ask, Tried};
use crate::client::Client;
use crate::config::Config;
use crate::eject::{Clock, Endpoint};
use crate::headers::{self, Rules};
use crate::http1;
use crate::http2;
use crate::limit::Networks;
use crate::proxy_protocol;
use crate::route::{self, Target};
use crate::table::{App, AppShared, Settings};
use crate::tls::hello;
use crate::trace;

/// A Host: refused, or a clean name that names one thing.
pub fn host(data: &[u8]) {
    const DOMAIN: &str = "apps.example";
    let (mut one, mut two) = ([0; 254], [0; 254]);
    let Ok(name) = route::name(data, &mut one) else { return };
    let clean = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    assert!(!name.is_empty() && name.len() <= 253 && name.bytes().all(clean));
    assert!(!name.starts_with('.') && !name.ends_with('.') && !name.contains(".."));
    assert_eq!(
        route::name(name.as_bytes(), &mut two),
        Ok(name),
        "a name stands for itself"
    );
    let whole = match route::target(name, DOMAIN) {
        Target::App(app) => {
            assert!(!app.contains('.') && !app.contains("--"));
            format!("{app}.{DOMAIN}")
        }
        Target::Version { version, app } => format!("{version}--{app}.{DOMAIN}"),
        Target::Domain(domain) => domain.to_owned(),
    };
    assert_eq!(whole, name);
}

/// Lines of fields as a header map, those left out that the parser refuses.
fn fields(data: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in data.split(|b| *b == b'\n').take(100) {
        let Some(at) = line.iter().position(|b| *b == b':') else {
            continue;
        };
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(&line[..at]),
            HeaderValue::from_bytes(line[at + 1..].trim_ascii()),
        ) {
            headers.append(name, value);
        }
    }
    headers
}

/// What an endpoint is to see exactly once, and as the gateway says.
const SAID: [(&str, &str); 4] = [
    ("x-forwarded-for", "192.0.2.1"),
    ("x-forwarded-proto", "http"),
    ("x-forwarded-host", "hello.localhost"),
    ("x-forwarded-port", "8080"),
];

/// What never goes on.
const HOP: [&str; 11] = [
    "expect",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "transfer-encoding",
    "http2-settings",
    "forwarded",
    "x-real-ip",
    "proxy",
    "content_length",
    "transfer_encoding",
];

/// The fields of a request, an answer and trailers: nothing forged, nothing of the connection gets through.
pub fn head(data: &[u8]) {
    let headers = fields(data);
    let host = HeaderValue::from_static("hello.localhost");
    let networks = ["192.0.2.0/24".parse(), "::/1".parse()]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
    for trusted in [false, true] {
        let seen = headers::inspect(&headers);
        let upgrade = seen.facts.wants_upgrade();
        let rules = Rules {
            facts: seen.facts,
            host: host.clone(),
            absolute: true,
            upgrade: upgrade.then(|| headers.get(header::UPGRADE).cloned()).flatten(),
            id: None,
            bad_id: false,
            chunked: false,
        };
        let (address, port) = (HeaderValue::from_static("192.0.2.1"), HeaderValue::from_static("8080"));
        let client = Client::new(IpAddr::from([192, 0, 2, 1]), address, port.into(), false, trusted);
        let mut sent = headers.clone();
        let _ = crate::behind::client_behind(&sent, &Networks::new(&networks));
        trace::parent(&mut sent, None);
        rules.apply(&mut sent, &client);
        let all = |name: &str| sent.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
        assert_eq!(all("host"), [host.as_bytes()]);
        assert!(all("connection").len() <= 1 && all("upgrade").len() <= 1 && all("traceparent").len() == 1);
        assert_eq!(!all("upgrade").is_empty(), upgrade);
        if trusted {
            assert!(all("x-forwarded-for").concat().ends_with(b"192.0.2.1"));
            continue;
        }
        for (name, value) in SAID {
            assert_eq!(all(name), [value.as_bytes()], "{name}");
        }
        for name in HOP {
            assert!(all(name).is_empty(), "{name}");
        }
        for name in sent.keys().map(|n| n.as_str().replace('_', "-")) {
            let ours = SAID.iter().any(|(said, _)| *said == name);
            assert!(
                ours || !(name.starts_with("x-forwarded") || name.starts_with("x-caas-")),
                "{name}"
            );
        }
    }
    let mut answer = headers.clone();
    // An encoding that is not chunked alone is refused.
    let _ = headers::rewrite_answer(&mut answer, false);
    for name in [
        "connection",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "x-caas-reason",
    ] {
        assert!(answer.get(name).is_none(), "{name}");
    }
    assert!(!headers.contains_key("transfer-encoding") || !answer.contains_key("content-length"));
    let mut trailers = headers;
    headers::clean_trailers(&mut trailers);
    for name in [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "authorization",
        "x-forwarded-for",
    ] {
        assert!(!trailers.contains_key(name), "{name}");
    }
}

/// A PROXY header: what is whole stays so whatever follows, and no beginning of it is anything but unfinished.
pub fn proxy_header(data: &[u8]) {
    let Ok(Some(header)) = proxy_protocol::parse(data) else {
        return;
    };
    assert!(header.length <= data.len() && header.length <= 536);
    let whole = &data[..header.length];
    assert_eq!(proxy_protocol::parse(whole), Ok(Some(header)));
    assert_eq!(
        proxy_protocol::parse(&[whole, b"GET / HTTP/1.1"].concat()),
        Ok(Some(header))
    );
    for end in 0..whole.len() {
        assert_eq!(proxy_protocol::parse(&whole[..end]), Ok(None), "{end} bytes of it");
    }
}

/// The first message of TLS: read to its end or refused, and whatever it names is in lower case.
pub fn tls_hello(data: &[u8]) {
    let mut rest = data;
    let read = hello::read(&mut rest, Vec::new()).now_or_never();
    if let Some(Ok(hello)) = read {
        let name = hello.server_name().unwrap_or_default();
        assert!(data.starts_with(&hello.raw) && name.to_ascii_lowercase() == name);
    }
}

/// The answer of an endpoint, behind a byte that says by `H` that the request was HEAD and one that decides how the answer is cut: the
/// same head, body, trailers and end however it is cut, and never more held than the bounds allow.
pub fn answer(data: &[u8]) {
    http1::fuzzing::answer(data);
}

/// Frames of HTTP/2: they mean the same however they are cut, and what is answered consists of whole frames.
pub fn http2_frames(data: &[u8]) {
    let whole = http2::replay(data, data.len().max(1));
    assert_eq!(http2::replay(data, 1), whole);
    assert_eq!(http2::replay(data, 7), whole);
}

/// The data of an entry of the registry: what can be read, can be written and read again.
pub fn payload(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(endpoint) = text.parse::<Address>()
    {
        assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
        let _ = Config::default().may_dial(endpoint.0);
    }
    if let Ok(load) = Load::parse(data) {
        assert_eq!(Load::parse(&serde_json::to_vec(&load).unwrap_or_default()), Ok(load));
    }
    if let Ok(ack) = serde_json::from_slice::<Acknowledgement>(data) {
        let text = serde_json::to_vec(&ack).unwrap_or_default();
        assert!(serde_json::from_slice::<Acknowledgement>(&text).is_ok_and(|again| again == ack));
    }
    if let Ok(config) = serde_json::from_slice::<AppConfig>(data)
        && config.check().is_empty()
    {
        let text = serde_json::to_vec(&config).unwrap_or_default();
        assert!(serde_json::from_slice::<AppConfig>(&text).is_ok_and(|again| again == config));
        serves(config, &["1", "2"]);
    }
}

/// A file of the whole registry: read, written, read again; and every app in it can be served.
pub fn snapshot(data: &[u8]) {
    let Ok(file) = serde_json::from_slice::<SnapshotFile>(data) else {
        return;
    };
    let snapshot = RegistrySnapshot::from(file);
    let text = serde_json::to_vec(&SnapshotFile::from(&snapshot)).unwrap_or_default();
    let again = serde_json::from_slice::<SnapshotFile>(&text).map(RegistrySnapshot::from);
    assert!(again.is_ok_and(|again| again == snapshot));
    for config in snapshot.configs.into_values().filter(|c| c.check().is_empty()) {
        serves(config, &["1"]);
    }
}

/// An app with this configuration and endpoints of these versions can be made, and asked.
fn serves(config: AppConfig, versions: &[&str]) {
    let Ok(id) = "hello".parse() else { return };
    let shared = Arc::new(AppShared::new(id, 1));
    let settings = Arc::new(Settings::new(config, &Config::default()));
    let endpoints = versions.iter().filter_map(|version| {
        let key = model::registry::EntryKey {
            app: "hello".parse().ok()?,
            version: version.parse().ok()?,
            container: "c1".parse().ok()?,
        };
        let stats = shared.version(&key.version);
        Some(Arc::new(Endpoint::new(key, ([127, 0, 0, 1], 8080).into(), 0, stats)))
    });
    let endpoints = endpoints.collect();
    let app = App::new(Arc::clone(&shared), settings, true, endpoints, "eu");
    let mut ask = Ask::default();
    if let Some(plan) = &app.plan {
        plan.read(&mut ask, &HeaderMap::new(), IpAddr::from([192, 0, 2, 1]));
        let _ = plan.shares(&app.endpoints);
    }
    let (clock, now) = (Clock::new(), Instant::now());
    for _ in 0..3 {
        let _ = app.pick(&ask, &Tried::default(), clock, now, |_: &Arc<Endpoint>| {});
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Arbitrary bytes, and pieces of what is looked for between them.
    fn bytes(words: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            3 => prop::sample::select(words).prop_map(<[u8]>::to_vec),
            1 => prop::collection::vec(any::<u8>(), 0..20),
        ];
        prop::collection::vec(word, 0..20).prop_map(|words| words.concat())
    }

    #[rustfmt::skip]
    const FIELDS: &[&[u8]] = &[
        b"Connection: ", b"close", b", ", b"Upgrade", b"Upgrade: ", b"websocket", b"h2c", b"\n", b"\n", b"\n", b"x-forwarded-for: 6.6.6.6",
        b"X_Forwarded_For: 1", b"te: trailers", b"TE: gzip", b"Transfer-Encoding: chunked", b"content-length: 007", b"Content_Length: 1",
        b"Host: a", b"Forwarded: for=1", b"proxy: x", b"Expect: 100-continue", b"x-request-id: a", b"traceparent: 00-", b"x-a", b": b",
    ];
    #[rustfmt::skip]
    const PROXY: &[&[u8]] = &[
        b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b"1.2.3.4 ", b"::1 ", b"80", b" ", b"\r\n", b"\r\n\r\n\0\r\nQUIT\n", b"\x21", b"\x20", b"\x11", b"\0\x0c", b"\x01\x02\x03\x04",
    ];
    #[rustfmt::skip]
    const JSON: &[&[u8]] = &[
        b"{", b"}", b"[", b"]", b":", b",", b"\"host\":\"h1\"", b"\"region\":\"\"", b"\"applied\":1", b"\"draining\":[]", b"\"weights\":{\"1\":5}", b"\"balance\":\"peak_ewma\"", b"10.0.0.1:80",
    ];
    #[rustfmt::skip]
    const HOSTS: &[&[u8]] = &[b"hello", b".", b"--", b":80", b"apps.example", b"APPS.EXAMPLE", b"1.2", b"_", b"@", b"["];
    #[rustfmt::skip]
    const TLS: &[&[u8]] = &[b"\x16\x03\x01", b"\x01\0\0", b"\x03\x03", b"\0\0", b"\0\x20", b"\x13\x01", b"\0\0\0\x0e\0\x0c\0\0\x09localhost"];
    #[rustfmt::skip]
    const FRAMES: &[&[u8]] = &[
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\x04\0\0\0\0\0", b"\0\0\x03\x01\0\0\0\0\x01abc", b"\0\0\0\x09\x04\0\0\0\x01", b"\0\0\x04\x08\0\0\0\0\0aaaa",
    ];

    #[rustfmt::skip]
    const ANSWERS: &[&[u8]] = &[
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n", b"HTTP/1.1 204 No Content\r\n", b"HTTP/1.1 304 Not Modified\r\n", b"content-length: 5\r\n", b"content-length: 5, 5\r\n",
        b"transfer-encoding: chunked\r\n", b"transfer-encoding: gzip\r\n", b"connection: close\r\n", b"x-a: b\r\n", b"\r\n", b"\r\n", b"\n", b"5\r\nhello\r\n", b"5;a=b\r\nhello\r\n",
        b"0\r\n\r\n", b"0\r\n", b"hello",
    ];

    proptest! {
        #[test]
        fn answers(head in any::<bool>(), cuts in any::<u8>(), text in bytes(ANSWERS)) {
            answer(&[&[if head { b'H' } else { b'G' }, cuts], &text[..]].concat());
        }

        #[test]
        fn hosts(data in bytes(HOSTS)) { host(&data); }

        #[test]
        fn heads(data in bytes(FIELDS)) { head(&data); }

        #[test]
        fn proxy_headers(data in bytes(PROXY)) { proxy_header(&data); }

        #[test]
        fn tls_hellos(data in bytes(TLS)) { tls_hello(&data); }

        #[test]
        fn frames(data in bytes(FRAMES)) { http2_frames(&data); }

        #[test]
        fn payloads(data in bytes(JSON)) { payload(&data); snapshot(&data); }
    }
}
