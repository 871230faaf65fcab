//! Header rules: what of a request and an answer is sent on. One pass over the names that are there; removals and
//! additions by name only where one was seen. Nothing that a client sends may pass for what the gateway says.

mod back;

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::answer::Shape;
use crate::client::Client;
use crate::worker::RequestId;

pub(crate) use back::{clean_trailers, rewrite_answer, switches_as_asked, upgrade_wanted};

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// No id that is sound.
static NO_ID: HeaderValue = HeaderValue::from_static("");

const HTTP: HeaderValue = HeaderValue::from_static("http");
const HTTPS: HeaderValue = HeaderValue::from_static("https");

macro_rules! removable {
    ($($flag:ident = $bit:literal $name:expr),+ $(,)?) => {
        $(const $flag: u32 = 1 << $bit;)+
        /// The header of each flag.
        fn flagged(flag: u32) -> HeaderName {
            match flag { $($flag => $name,)+ _ => header::CONNECTION }
        }
    };
}

removable! {
    CONNECTION = 0 header::CONNECTION,
    KEEP_ALIVE = 1 HeaderName::from_static("keep-alive"),
    PROXY_CONNECTION = 2 HeaderName::from_static("proxy-connection"),
    PROXY_AUTHORIZATION = 3 header::PROXY_AUTHORIZATION,
    TE = 4 header::TE,
    TRANSFER_ENCODING = 5 header::TRANSFER_ENCODING,
    UPGRADE = 6 header::UPGRADE,
    HTTP2_SETTINGS = 7 HeaderName::from_static("http2-settings"),
    EXPECT = 8 header::EXPECT,
    FORWARDED = 9 header::FORWARDED,
    X_REAL_IP = 10 HeaderName::from_static("x-real-ip"),
    REASON = 11 crate::answer::REASON_HEADER,
    CONTENT_LENGTH = 12 header::CONTENT_LENGTH,
    FORWARDED_FOR = 13 X_FORWARDED_FOR,
    FORWARDED_PROTO = 14 X_FORWARDED_PROTO,
    FORWARDED_HOST = 15 X_FORWARDED_HOST,
    FORWARDED_PORT = 16 X_FORWARDED_PORT,
}

/// What a trusted peer may say in the gateway's place.
const X_FORWARDED: u32 = FORWARDED_FOR | FORWARDED_PROTO | FORWARDED_HOST | FORWARDED_PORT;

fn remove_flagged(headers: &mut HeaderMap, mut flags: u32) {
    while flags != 0 {
        let flag = 1 << flags.trailing_zeros();
        headers.remove(flagged(flag));
        flags ^= flag;
    }
}

/// What one pass over a request's headers found.
#[derive(Debug, Default)]
pub(crate) struct Seen<'a> {
    pub(crate) host: Option<&'a HeaderValue>,
    pub(crate) hosts: u32,
    /// Transfer-Encoding is something else than one `chunked`.
    pub(crate) strange_encoding: bool,
    pub(crate) idempotency_key: bool,
    pub(crate) request_id: Option<&'a HeaderValue>,
    /// The client accepts pages.
    html: bool,
    grpc: bool,
    pub(crate) facts: Facts,
}

/// The part of [`Seen`] that outlives the borrow.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    remove: u32,
    trailers: bool,
    connection_upgrade: bool,
    /// Upgrade is there, names something, and no h2c.
    upgrade: bool,
    /// Content-Length has zeros in front, which some read as octal.
    padded_length: bool,
    /// Further names to be removed: nominated by Connection, aliases of what the gateway says.
    also: Vec<HeaderName>,
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii)
}

/// HTTP/2 without TLS, or a draft of it: to be agreed on with the gateway itself, never through it.
fn is_h2c(protocol: &[u8]) -> bool {
    protocol.len() >= 3 && protocol[..3].eq_ignore_ascii_case(b"h2c")
}

/// Whether `name` says something that only the gateway (or a trusted proxy) may say, once `_` is read as `-`.
fn gateway_says(name: &str) -> bool {
    let begins = |with: &str| {
        name.len() >= with.len()
            && name
                .bytes()
                .zip(with.bytes())
                .all(|(a, b)| a == b || (a == b'_' && b == b'-'))
    };
    begins("x-forwarded")
        || (name.len() == 9 && begins("forwarded"))
        || (name.len() == 9 && begins("x-real-ip"))
        || begins("x-caas-")
}

/// Never removed because a Connection header names them.
fn protected(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "host"
            | "content-length"
            | "transfer-encoding"
            | "content-type"
            | "authorization"
            | "cookie"
            | "set-cookie"
            | "date"
            | "x-request-id"
            | "traceparent"
            | "tracestate"
            | "te"
            | "upgrade"
    ) || gateway_says(name.as_str())
}

impl Facts {
    fn connection(&mut self, value: &HeaderValue) {
        self.remove |= CONNECTION;
        for token in tokens(value) {
            if token.eq_ignore_ascii_case(b"keep-alive") || token.eq_ignore_ascii_case(b"close") || token.is_empty() {
                continue;
            }
            if token.eq_ignore_ascii_case(b"upgrade") {
                self.connection_upgrade = true;
            } else if let Ok(name) = HeaderName::from_bytes(token)
                && !protected(&name)
                && self.also.len() < 100
            {
                self.also.push(name);
            }
        }
    }
}

/// The one pass over a request's headers.
pub(crate) fn inspect(headers: &HeaderMap) -> Seen<'_> {
    let mut seen = Seen::default();
    let f = &mut seen.facts;
    for (name, value) in headers {
        let text = name.as_str();
        match text.len() {
            2 if *name == header::TE => {
                f.remove |= TE;
                f.trailers |= tokens(value).any(|t| t.eq_ignore_ascii_case(b"trailers"));
            }
            4 if *name == header::HOST => {
                seen.hosts += 1;
                seen.host = Some(value);
            }
            // CGI would make a setting of it (CVE-2016-5385).
            5 if text == "proxy" => f.also.push(name.clone()),
            6 if *name == header::EXPECT => f.remove |= EXPECT,
            6 if *name == header::ACCEPT => {
                seen.html = value
                    .as_bytes()
                    .windows(9)
                    .any(|w| w.eq_ignore_ascii_case(b"text/html"));
            }
            7 if *name == header::UPGRADE => {
                // Several Upgrade lines are nothing that a client of ours has to send.
                f.upgrade =
                    f.remove & UPGRADE == 0 && tokens(value).any(|t| !t.is_empty()) && !tokens(value).any(is_h2c);
                f.remove |= UPGRADE;
            }
            9 if *name == header::FORWARDED => f.remove |= FORWARDED,
            9 if text == "x-real-ip" => f.remove |= X_REAL_IP,
            10 if *name == header::CONNECTION => f.connection(value),
            10 if text == "keep-alive" => f.remove |= KEEP_ALIVE,
            12 if *name == header::CONTENT_TYPE => seen.grpc = is_grpc(value),
            // Of several lines none is the request's.
            12 if text == "x-request-id" => {
                seen.request_id = Some(if seen.request_id.is_some() { &NO_ID } else { value });
            }
            14 if *name == header::CONTENT_LENGTH => f.padded_length = matches!(value.as_bytes(), [b'0', _, ..]),
            14 if text == "http2-settings" => f.remove |= HTTP2_SETTINGS,
            // Apps that read `_` as `-` would take them for the framing.
            14 if text == "content_length" => f.also.push(name.clone()),
            15 if text == "idempotency-key" => seen.idempotency_key = true,
            15 if text == "x-forwarded-for" => f.remove |= FORWARDED_FOR,
            16 if text == "x-forwarded-host" => f.remove |= FORWARDED_HOST,
            16 if text == "x-forwarded-port" => f.remove |= FORWARDED_PORT,
            16 if text == "proxy-connection" => f.remove |= PROXY_CONNECTION,
            17 if text == "x-forwarded-proto" => f.remove |= FORWARDED_PROTO,
            17 if *name == header::TRANSFER_ENCODING => {
                seen.strange_encoding |= f.remove & TRANSFER_ENCODING != 0
                    || !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
                f.remove |= TRANSFER_ENCODING;
            }
            17 if text == "transfer_encoding" => f.also.push(name.clone()),
            19 if *name == header::PROXY_AUTHORIZATION => f.remove |= PROXY_AUTHORIZATION,
            9.. if matches!(text.as_bytes()[0], b'x' | b'f') && gateway_says(text) => f.also.push(name.clone()),
            _ => {}
        }
    }
    seen
}

impl Seen<'_> {
    /// How an answer of the gateway's own is to look.
    pub(crate) fn shape(&self) -> Shape {
        match (self.grpc, self.html) {
            (true, _) => Shape::Grpc,
            (false, true) => Shape::Page,
            (false, false) => Shape::Json,
        }
    }
}

/// `application/grpc` and its formats; gRPC-Web is something else.
fn is_grpc(content_type: &HeaderValue) -> bool {
    content_type
        .as_bytes()
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

impl Facts {
    /// Whether the client asks for another protocol on this connection.
    pub(crate) fn wants_upgrade(&self) -> bool {
        self.upgrade && self.connection_upgrade
    }
}

/// Whether a trusted proxy says that the client speaks TLS to it.
pub(crate) fn forwarded_https(headers: &HeaderMap) -> bool {
    headers
        .get(X_FORWARDED_PROTO)
        .is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"))
}

/// What a request's headers become for the endpoint; applied again when the request is sent again.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) facts: Facts,
    /// The name that decided.
    pub(crate) host: HeaderValue,
    /// The name stood in the target: Host has to follow it.
    pub(crate) absolute: bool,
    /// The protocol that the request may become a tunnel for.
    pub(crate) upgrade: Option<HeaderValue>,
    /// The request has a body of unknown length although its method rarely has one: that has to be said.
    pub(crate) chunked: bool,
    /// A request id made here.
    pub(crate) id: Option<RequestId>,
    /// The client has sent one too, which can't be passed on.
    pub(crate) bad_id: bool,
}

impl Rules {
    /// Makes a request's headers what the endpoint is to see.
    pub(crate) fn apply(&self, headers: &mut HeaderMap, client: &Client) {
        let facts = &self.facts;
        let keep = client.trusted;
        let mut remove = facts.remove;
        if keep {
            remove &= !(FORWARDED | X_FORWARDED);
        }
        if remove != 0 {
            remove_flagged(headers, remove);
        }
        for name in &facts.also {
            // A trusted proxy may say more than the gateway knows of (X-Forwarded-Prefix).
            if !(keep && name.as_str().starts_with("x-forwarded-")) {
                headers.remove(name);
            }
        }
        if facts.padded_length
            && let Some(length) = headers.get(header::CONTENT_LENGTH)
            && let Ok(length) = HeaderValue::from_bytes(without_zeros(length.as_bytes()))
        {
            headers.insert(header::CONTENT_LENGTH, length);
        }
        if self.chunked {
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if facts.trailers {
            // TE is for the next hop only and says so (RFC 9110 10.1.4).
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
        if let Some(asked) = &self.upgrade {
            headers.insert(header::UPGRADE, asked.clone());
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        // Nothing of these names is left, unless a trusted peer sent it: appending is enough.
        let sent = if keep { facts.remove } else { 0 };
        headers.append(X_FORWARDED_FOR, client.address.clone());
        if sent & FORWARDED_FOR != 0 {
            let whole: Vec<&[u8]> = headers
                .get_all(X_FORWARDED_FOR)
                .iter()
                .map(HeaderValue::as_bytes)
                .collect();
            let value = HeaderValue::from_bytes(&whole.join(&b", "[..])).unwrap_or_else(|_| client.address.clone());
            headers.insert(X_FORWARDED_FOR, value);
        }
        if sent & FORWARDED_PROTO == 0 {
            headers.append(X_FORWARDED_PROTO, if client.https { HTTPS } else { HTTP });
        }
        if sent & FORWARDED_HOST == 0 {
            headers.append(X_FORWARDED_HOST, self.host.clone());
        }
        if sent & FORWARDED_PORT == 0 {
            headers.append(X_FORWARDED_PORT, HeaderValue::clone(&client.port));
        }
        if sent & FORWARDED != 0
            && let Some(element) = forwarded_element(client, &self.host)
        {
            headers.append(header::FORWARDED, element);
        }
        match self.id {
            Some(id) if self.bad_id => drop(headers.insert(X_REQUEST_ID, id.value())),
            Some(id) => drop(headers.append(X_REQUEST_ID, id.value())),
            None => {}
        }
        if self.absolute {
            headers.insert(header::HOST, self.host.clone());
        }
    }
}

/// A number without zeros in front.
fn without_zeros(digits: &[u8]) -> &[u8] {
    let zeros = digits.iter().take_while(|b| **b == b'0').count();
    &digits[zeros.min(digits.len().saturating_sub(1))..]
}

/// What this hop adds to a Forwarded header that a trusted peer sent (RFC 7239 section 4).
fn forwarded_element(client: &Client, host: &HeaderValue) -> Option<HeaderValue> {
    let proto = if client.https { "https" } else { "http" };
    let host = host.to_str().ok()?;
    let element = match client.ip {
        IpAddr::V4(ip) => format!("for={ip};host=\"{host}\";proto={proto}"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\";host=\"{host}\";proto={proto}"),
    };
    HeaderValue::try_from(element).ok()
}

/// Whether a request id made elsewhere may be passed on: 1 to 128 visible characters.
pub(crate) fn sound_id(value: &HeaderValue) -> bool {
    (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).expect("name"),
                HeaderValue::from_str(value).expect("value"),
            );
        }
        headers
    }

    fn client(trusted: bool) -> Client {
        let value = HeaderValue::from_static("192.0.2.1");
        let port = HeaderValue::from_static("8080");
        Client::new(IpAddr::from([192, 0, 2, 1]), value, port.into(), false, trusted)
    }

    fn sent(pairs: &[(&str, &str)], trusted: bool, upgrade: bool) -> Vec<String> {
        let mut headers = map(pairs);
        let facts = inspect(&headers).facts;
        let rules = Rules {
            host: HeaderValue::from_static("hello.localhost"),
            absolute: false,
            upgrade: (upgrade && facts.wants_upgrade()).then(|| headers[header::UPGRADE].clone()),
            id: None,
            chunked: false,
            bad_id: false,
            facts,
        };
        rules.apply(&mut headers, &client(trusted));
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(n, v)| format!("{n}: {}", v.to_str().expect("text")))
            .collect();
        lines.sort();
        lines
    }

    const OURS: [&str; 4] = [
        "x-forwarded-for: 192.0.2.1",
        "x-forwarded-host: hello.localhost",
        "x-forwarded-port: 8080",
        "x-forwarded-proto: http",
    ];

    #[test]
    fn nothing_forged_gets_through() {
        let forged = [
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "7.7.7.7"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x-forwarded_proto", "https"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-prefix", "/evil"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "1"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("x_real_ip", "6.6.6.6"),
            ("x-caas-reason", "evil"),
            ("proxy", "http://evil"),
            ("content_length", "9"),
            ("transfer_encoding", "chunked"),
        ];
        assert_eq!(sent(&forged, false, false), OURS);
        assert_eq!(without_zeros(b"00120"), b"120");
        assert_eq!(without_zeros(b"000"), b"0");
    }

    #[test]
    fn a_trusted_proxys_forwarded_gets_this_hop() {
        let lines = sent(&[("forwarded", "for=203.0.113.9;proto=https")], true, false);
        let own = "forwarded: for=192.0.2.1;host=\"hello.localhost\";proto=http";
        assert!(lines.iter().any(|l| l == own), "{lines:?}");
        assert!(
            lines.iter().any(|l| l == "forwarded: for=203.0.113.9;proto=https"),
            "{lines:?}"
        );
        let six = Client {
            ip: "2001:db8::1".parse().expect("address"),
            https: true,
            ..client(true)
        };
        let element = forwarded_element(&six, &HeaderValue::from_static("a.test:8443")).expect("sound");
        assert_eq!(element, "for=\"[2001:db8::1]\";host=\"a.test:8443\";proto=https");
    }

    #[test]
    fn a_trusted_proxy_is_believed() {
        let lines = sent(
            &[
                ("x-forwarded-for", "203.0.113.9"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-prefix", "/a"),
                ("x_forwarded_for", "6.6.6.6"),
            ],
            true,
            false,
        );
        assert_eq!(
            lines,
            [
                "x-forwarded-for: 203.0.113.9, 192.0.2.1",
                "x-forwarded-host: hello.localhost",
                "x-forwarded-port: 8080",
                "x-forwarded-prefix: /a",
                "x-forwarded-proto: https",
            ]
        );
    }

    #[test]
    fn hop_by_hop_headers_stay_here() {
        let lines = sent(
            &[
                (
                    "connection",
                    "keep-alive, X-Drop, X-Forwarded-For, Host, Content-Length, authorization",
                ),
                ("x-drop", "1"),
                ("host", "hello.localhost"),
                ("content-length", "3"),
                ("authorization", "Basic x"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("proxy-authorization", "Basic x"),
                ("te", "gzip, trailers"),
                ("upgrade", "websocket"),
                ("http2-settings", "AAA"),
                ("expect", "100-continue"),
            ],
            false,
            true,
        );
        let mut want = vec![
            "authorization: Basic x",
            "connection: te",
            "content-length: 3",
            "host: hello.localhost",
            "te: trailers",
        ];
        want.extend(OURS);
        assert_eq!(lines, want);
    }

    #[test]
    fn upgrades_only_when_asked_properly_and_never_h2c() {
        let ws = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        let lines = sent(&ws, false, true);
        assert!(lines.contains(&"connection: upgrade".into()) && lines.contains(&"upgrade: websocket".into()));
        for bad in [
            vec![("upgrade", "websocket")],
            vec![("connection", "upgrade"), ("upgrade", "h2c")],
            vec![("connection", "upgrade"), ("upgrade", "websocket, H2C")],
            vec![("connection", "upgrade"), ("upgrade", "h2c-14")],
            vec![("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")],
        ] {
            assert_eq!(sent(&bad, false, true), OURS, "{bad:?}");
        }
    }

    #[test]
    fn encodings() {
        for (values, strange) in [
            (vec!["chunked"], false),
            (vec!["Chunked"], false),
            (vec!["gzip, chunked"], true),
            (vec!["chunked, chunked"], true),
            (vec!["chunked", "chunked"], true),
            (vec![", chunked"], true),
        ] {
            let pairs: Vec<_> = values.iter().map(|v| ("transfer-encoding", *v)).collect();
            assert_eq!(inspect(&map(&pairs)).strange_encoding, strange, "{values:?}");
        }
    }

    #[test]
    fn answers_of_the_gateway_fit_the_client() {
        for (pairs, shape) in [
            (vec![], Shape::Json),
            (vec![("accept", "text/html,*/*")], Shape::Page),
            (vec![("content-type", "application/grpc")], Shape::Grpc),
            (
                vec![("content-type", "application/grpc+proto"), ("accept", "text/html")],
                Shape::Grpc,
            ),
            (vec![("content-type", "application/grpc-web+proto")], Shape::Json),
            (vec![("content-type", "application/json")], Shape::Json),
        ] {
            assert_eq!(inspect(&map(&pairs)).shape(), shape, "{pairs:?}");
        }
    }
}
