//! The gateway's own answers: each has a reason that a machine can read (`x-caas-reason`), is counted under it, and is a
//! short page or problem+json, as the client likes. Nothing from the request is ever echoed.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version};

use crate::body::ResponseBody;
use crate::exchange::Exchange;

/// Marks an answer as the gateway's own and says why.
pub(crate) const REASON_HEADER: HeaderName = HeaderName::from_static("x-caas-reason");

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal $status:ident $text:literal),+ $(,)?) => {
        /// Why the gateway answered by itself.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Reason { $($(#[$doc])* $name),+ }

        impl Reason {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),+];

            /// Stable name: header value, metric label, log field.
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code),+ }
            }

            pub(crate) const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status),+ }
            }

            /// One sentence for people.
            const fn text(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }
        }
    };
}

reasons! {
    AcmeChallenge = "acme_challenge" OK "This proves to a certificate authority whose domain it is.",
    RedirectHttps = "redirect_https" PERMANENT_REDIRECT "This app is served over https.",
    BadHost = "bad_host" BAD_REQUEST "The request needs exactly one valid Host.",
    BadTarget = "bad_target" BAD_REQUEST "The request's target is not one that this gateway serves.",
    BadFraming = "bad_framing" BAD_REQUEST "The request's Transfer-Encoding is not one that this gateway serves.",
    BadHead = "bad_head" BAD_REQUEST "The request's head could not be understood.",
    PlainHttp = "plain_http" BAD_REQUEST "This port speaks TLS.",
    BadProxyHeader = "bad_proxy_header" BAD_REQUEST "Connections from this address must begin with a sound PROXY header.",
    BadBody = "bad_body" BAD_REQUEST "The request's body could not be read.",
    HeadTooLarge = "head_too_large" REQUEST_HEADER_FIELDS_TOO_LARGE "The request has too many header fields.",
    TargetTooLong = "target_too_long" URI_TOO_LONG "The request's target is too long.",
    Denied = "denied" FORBIDDEN "Requests from this address are not accepted.",
    UnknownApp = "unknown_app" NOT_FOUND "There is no app of this name here.",
    MethodNotAllowed = "method_not_allowed" METHOD_NOT_ALLOWED "This gateway is not a forward proxy.",
    RequestTimeout = "request_timeout" REQUEST_TIMEOUT "The request did not arrive in time.",
    Misdirected = "misdirected" MISDIRECTED_REQUEST "This connection is not for this host: its certificate does not name it.",
    BodyTooLarge = "body_too_large" PAYLOAD_TOO_LARGE "The request's body is larger than this app accepts.",
    RateLimited = "rate_limited" TOO_MANY_REQUESTS "Too many requests; try again later.",
    BadHandshake = "bad_handshake" BAD_REQUEST "The WebSocket handshake needs the method GET and one key of 16 bytes.",
    NoUpgrade = "no_upgrade" NOT_IMPLEMENTED "The app speaks HTTP/2 and does not take upgrades to this protocol.",
    BadAnswer = "bad_answer" BAD_GATEWAY "The app's answer could not be understood.",
    UpstreamClosed = "upstream_closed" BAD_GATEWAY "The app closed the connection without an answer.",
    ConnectFailed = "connect_failed" BAD_GATEWAY "No instance of the app could be reached.",
    NotIdentified = "not_identified" BAD_GATEWAY "No instance of the app proved that it is one.",
    BadUpgrade = "bad_upgrade" BAD_GATEWAY "The app switched protocols without being asked to.",
    NotReady = "not_ready" SERVICE_UNAVAILABLE "The gateway does not know its apps yet.",
    NoEndpoints = "no_endpoints" SERVICE_UNAVAILABLE "The app has no running instance at the moment.",
    Unreachable = "unreachable" SERVICE_UNAVAILABLE "No instance of the app can be reached at the moment.",
    Overloaded = "overloaded" SERVICE_UNAVAILABLE "The app has too many requests under way.",
 TooManyConnections = "too_many_connections" SERVICE_UNAVAILABLE "There are too many connections at the moment.",
    UpstreamTimeout = "upstream_timeout" GATEWAY_TIMEOUT "The app did not answer in time.",
}

impl Reason {
    /// Whether the connection ends with this answer: the client and the gateway may read what follows differently.
    pub(crate) fn ends_connection(self) -> bool {
        matches!(
            self,
            Self::BadHost
                | Self::BadTarget
                | Self::BadFraming
                | Self::BadBody
                | Self::MethodNotAllowed
                | Self::RequestTimeout
                | Self::BodyTooLarge
        )
    }

    /// Seconds after which the client may try again.
    fn retry_after(self) -> Option<u64> {
        match self {
            Self::NotReady | Self::NoEndpoints | Self::Unreachable | Self::Overloaded | Self::RateLimited => Some(1),
            _ => None,
        }
    }
}

/// An answer of the gateway's own instead of an app's.
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    /// Seconds until the client may come again, where they are known.
    pub(crate) wait: Option<u64>,
    /// Where the client is to go.
    pub(crate) location: Option<HeaderValue>,
    /// What an authority is answered.
    pub(crate) proof: Option<Bytes>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            wait: None,
            location: None,
            proof: None,
        }
    }
}

impl Refusal {
    /// The answer that says so.
    pub(crate) fn into_answer(self, shape: Shape) -> Response<ResponseBody> {
        let mut response = match self.proof {
            Some(body) => proof(body),
            None => answer(self.reason, shape, self.wait),
        };
        if let Some(location) = self.location {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

/// How an answer of the gateway's own looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shape {
    /// problem+json (RFC 9457).
    #[default]
    Json,
    /// A page for people.
    Page,
    /// What gRPC clients understand: 200 and a status in the header.
    Grpc,
}

/// The gRPC status of an HTTP status, for answers that do not come from a gRPC service
/// (<https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>, as Envoy has it).
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

fn grpc_answer(reason: Reason) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::own(Bytes::new()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(grpc_status(reason.status())));
    headers.insert("grpc-message", HeaderValue::from_static(reason.text()));
    headers.insert(REASON_HEADER, HeaderValue::from_static(reason.as_str()));
    response
}

/// The answer for `reason`; `wait` overrides the seconds of Retry-After.
pub(crate) fn answer(reason: Reason, shape: Shape, wait: Option<u64>) -> Response<ResponseBody> {
    if shape == Shape::Grpc {
        return grpc_answer(reason);
    }
    let status = reason.status();
    let (kind, body) = if shape == Shape::Page {
        let title = status.canonical_reason().unwrap_or("Error");
        let page = format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{code} {title}</title>\
             <body style=\"font:16px system-ui;margin:4em auto;max-width:32em\"><h1>{code} {title}</h1><p>{text}</p>\
             <p><small>{reason}</small></p></body></html>\n",
            code = status.as_u16(),
            text = reason.text(),
            reason = reason.as_str(),
        );
        ("text/html; charset=utf-8", page)
    } else {
        let problem = format!(
            "{{\"type\":\"about:blank\",\"title\":\"{}\",\"status\":{},\"code\":\"{}\",\"detail\":\"{}\"}}\n",
            status.canonical_reason().unwrap_or("Error"),
            status.as_u16(),
            reason.as_str(),
            reason.text(),
        );
        ("application/problem+json", problem)
    };
    let mut response = Response::new(ResponseBody::own(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REASON_HEADER, HeaderValue::from_static(reason.as_str()));
    if let Some(seconds) = wait.or(reason.retry_after()) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if reason.ends_connection() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if reason == Reason::MethodNotAllowed {
        let allowed = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        headers.insert(header::ALLOW, allowed);
    }
    response
}

/// The answer to an authority that asks for proof of a domain (RFC 8555 section 8.3).
pub(crate) fn proof(body: Bytes) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::own(body));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REASON_HEADER, HeaderValue::from_static(Reason::AcmeChallenge.as_str()));
    response
}

/// Tells the client that its connection ends with this answer. HTTP/2 has a frame for it.
#[cold]
pub(crate) fn say_goodbye(exchange: &Exchange, response: &mut Response<ResponseBody>) {
    if !exchange.http2 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let close = HeaderValue::from_static("close");
        let fields = response.headers_mut();
        if !fields.get_all(header::CONNECTION).iter().any(|value| *value == close) {
            fields.append(header::CONNECTION, close);
        }
        if exchange.hints().is_none() {
            // hyper would promise a client of HTTP/1.0 the contrary, too.
            *response.version_mut() = Version::HTTP_10;
        }
    }
}

/// The whole 408 answer, written when there is no request to answer.
pub(crate) const TIMED_OUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\nx-caas-reason: request_timeout\r\n\r\n";

/// The whole answer to HTTP on the TLS port.
pub(crate) const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 48\r\nx-caas-reason: plain_http\r\n\r\nThis port speaks TLS: the URL must be https://.\n";

/// The whole answer to a balancer's connection that does not begin with a PROXY header.
pub(crate) const NO_PROXY_HEADER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 68\r\nx-caas-reason: bad_proxy_header\r\n\r\nConnections from this address must begin with a sound PROXY header.\n";

/// The whole answer to a connection above the limits.
pub(crate) const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\nretry-after: 1\r\nx-caas-reason: too_many_connections\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_name() {
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
        }
    }

    #[test]
    fn raw_answers_are_as_long_as_they_say() {
        for (raw, reason) in [
            (TIMED_OUT, Reason::RequestTimeout),
            (TOO_MANY, Reason::TooManyConnections),
            (PLAIN_HTTP, Reason::PlainHttp),
            (NO_PROXY_HEADER, Reason::BadProxyHeader),
        ] {
            let text = std::str::from_utf8(raw).expect("text");
            assert!(text.starts_with(&format!("HTTP/1.1 {}\r\n", reason.status())), "{text}");
            assert!(
                text.contains(&format!("{REASON_HEADER}: {}\r\n", reason.as_str())),
                "{text}"
            );
            let (head, body) = text.split_once("\r\n\r\n").expect("a head");
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{text}");
        }
    }

    #[test]
    fn a_page_for_browsers_and_json_for_the_rest() {
        let json = answer(Reason::NoEndpoints, Shape::Json, None);
        assert_eq!(json.status(), 503);
        assert_eq!(json.headers()[header::RETRY_AFTER], "1");
        assert_eq!(json.headers()[REASON_HEADER], "no_endpoints");
        assert_eq!(json.headers()[header::CONTENT_TYPE], "application/problem+json");
        let page = answer(Reason::UnknownApp, Shape::Page, None);
        assert_eq!(page.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
        assert!(page.headers().get(header::RETRY_AFTER).is_none());
    }
    #[test]
    fn grpc_clients_get_a_status_of_their_own() {
        for (reason, status) in [
            (Reason::NoEndpoints, "14"),
            (Reason::UpstreamTimeout, "14"),
            (Reason::UnknownApp, "12"),
            (Reason::Denied, "7"),
            (Reason::BadHost, "13"),
            (Reason::BodyTooLarge, "2"),
        ] {
            let answer = answer(reason, Shape::Grpc, None);
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["grpc-status"], status);
            assert_eq!(answer.headers()[REASON_HEADER], reason.as_str());
        }
        for reason in Reason::ALL {
            let plain = |b: u8| (b' '..=b'~').contains(&b) && b != b'%';
            assert!(
                reason.text().bytes().all(plain),
                "{reason:?} needs no encoding in grpc-message"
            );
        }
    }
}
