//! Heads: a request's as an endpoint reads it, an answer's as an endpoint wrote it.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};
use http_body::Body as _;
use httparse::{ParserConfig, Status};

use crate::body::RequestBody;

/// Fields of an answer for which there is room without asking for memory: the default of `max_head_fields`.
const FIELDS: usize = 100;

/// How the end of a request's body is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// By so many bytes, still to come.
    Length(u64),
    /// By its last chunk, with trailers of these names.
    Chunked(Vec<HeaderName>),
}

/// Where the body of an answer ends (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// After so many bytes.
    Length(u64),
    /// With its last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// What is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    /// Where it is not the usual one.
    pub(super) reason: Option<Bytes>,
    pub(super) fields: HeaderMap,
    pub(super) extent: Extent,
    /// The endpoint will read another request on the connection.
    pub(super) keeps: bool,
    /// Its bytes.
    pub(super) length: usize,
}

/// Appends the head of a request to `out`, and says how its body has to be sent.
pub(super) fn write(out: &mut Vec<u8>, parts: &Parts, body: &RequestBody) -> Framing {
    let (framing, told) = framing(parts, body);
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    let target = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    if !target.starts_with(['/', '*']) {
        out.push(b'/');
    }
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in &parts.headers {
        if *name == header::TRANSFER_ENCODING || (*name == header::CONTENT_LENGTH && !told) {
            continue;
        }
        field(out, name, value);
    }
    match &framing {
        Framing::Chunked(_) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(length) if !told => field(out, &header::CONTENT_LENGTH, &HeaderValue::from(*length)),
        Framing::Length(_) => {}
    }
    out.extend_from_slice(b"\r\n");
    framing
}

fn field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// How the body is framed, and whether the fields tell its length (or that there is none).
fn framing(parts: &Parts, body: &RequestBody) -> (Framing, bool) {
    if body.is_end_stream() {
        return (Framing::Length(0), true);
    }
    let fields = &parts.headers;
    let chunked = || (Framing::Chunked(trailer_names(fields)), false);
    if fields.contains_key(header::TRANSFER_ENCODING) {
        return chunked();
    }
    let told = fields
        .get_all(header::CONTENT_LENGTH)
        .iter()
        .try_fold(None, |before, value| lengths(value.as_bytes(), before).map(Some));
    match (told, body.size_hint().exact()) {
        (Some(Some(length)), _) => (Framing::Length(length), true),
        (_, Some(length)) => (Framing::Length(length), false),
        // They hardly ever have a body; when one has, its encoding says so.
        _ if matches!(parts.method, Method::GET | Method::HEAD | Method::CONNECT) => (Framing::Length(0), true),
        _ => chunked(),
    }
}

/// What Trailer announces and may stand behind a body (RFC 9110 6.5.1).
fn trailer_names(fields: &HeaderMap) -> Vec<HeaderName> {
    let framing = [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::HOST,
        header::MAX_FORWARDS,
        header::SET_COOKIE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::TE,
    ];
    fields
        .get_all(header::TRAILER)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !framing.contains(name))
        .collect()
}

/// Appends the end of a chunked body, with those of its trailers that were announced.
pub(super) fn write_trailers(out: &mut Vec<u8>, trailers: &HeaderMap, announced: &[HeaderName]) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        if announced.contains(name) {
            field(out, name, value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Reads the head of an answer from `bytes` on from `at`; nothing while it is not whole. `fields`: an empty map, used for it.
/// `head_only`: of an answer to HEAD.
pub(super) fn read(
    bytes: &Bytes,
    at: usize,
    most: usize,
    head_only: bool,
    mut fields: HeaderMap,
) -> Result<Option<Head>, Malformed> {
    let mut few = [const { MaybeUninit::uninit() }; FIELDS];
    let mut many = Vec::new();
    let space = if most <= FIELDS {
        &mut few[..most]
    } else {
        many.resize_with(most, MaybeUninit::uninit);
        &mut many[..]
    };
    let mut response = httparse::Response::new(&mut []);
    let rest = bytes.get(at..).unwrap_or_default();
    let length = match ParserConfig::default().parse_response_with_uninit_headers(&mut response, rest, space) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(_) => return Err(Malformed),
    };
    let status = response
        .code
        .and_then(|c| StatusCode::from_u16(c).ok())
        .ok_or(Malformed)?;
    let reason = response.reason.filter(|r| Some(*r) != status.canonical_reason());
    let current = response.version == Some(1);
    let mut seen = Seen::default();
    fields.reserve(response.headers.len());
    for line in &*response.headers {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Malformed)?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(line.value)).map_err(|_| Malformed)?;
        seen.field(&name, line.value);
        fields.append(name, value);
    }
    let extent = match status.as_u16() {
        100..=199 | 204 | 304 => Extent::Length(0),
        _ if head_only => Extent::Length(0),
        _ => seen.extent(current)?,
    };
    Ok(Some(Head {
        status,
        reason: reason.map(|r| Bytes::copy_from_slice(r.as_bytes())),
        fields,
        extent,
        keeps: !seen.close && (current || seen.keep_alive),
        length,
    }))
}

/// What the fields of an answer say about its body and the connection.
#[derive(Default)]
struct Seen {
    close: bool,
    keep_alive: bool,
    encoded: bool,
    chunked: bool,
    length: Option<u64>,
    bad_length: bool,
}

impl Seen {
    fn field(&mut self, name: &HeaderName, value: &[u8]) {
        if *name == header::CONTENT_LENGTH {
            match lengths(value, self.length) {
                Some(length) => self.length = Some(length),
                None => self.bad_length = true,
            }
        } else if *name == header::TRANSFER_ENCODING {
            self.encoded = true;
            let last = value.rsplit(|b| *b == b',').next().unwrap_or_default();
            self.chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
        } else if *name == header::CONNECTION {
            for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                self.close |= token.eq_ignore_ascii_case(b"close");
                self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
            }
        }
    }

    fn extent(&self, current: bool) -> Result<Extent, Malformed> {
        match (self.encoded, self.length) {
            // HTTP/1.0 knows no encodings.
            (true, _) if !current => Err(Malformed),
            (true, _) if self.chunked => Ok(Extent::Chunked),
            (true, _) => Ok(Extent::Close),
            _ if self.bad_length => Err(Malformed),
            (false, Some(length)) => Ok(Extent::Length(length)),
            (false, None) => Ok(Extent::Close),
        }
    }
}

/// The length that a value of Content-Length tells, which may be a list of the same number again and again (RFC 9110 8.6);
/// `before`: what the lines before it said.
fn lengths(value: &[u8], mut before: Option<u64>) -> Option<u64> {
    for number in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
        if number.is_empty() {
            return None;
        }
        let mut length = 0_u64;
        for digit in number {
            if !digit.is_ascii_digit() {
                return None;
            }
            length = length.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
        }
        // More than any file can have is a trick on whoever counts with signs.
        if length > i64::MAX as u64 || before.is_some_and(|b| b != length) {
            return None;
        }
        before = Some(length);
    }
    before
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn read_all(text: &str, head_only: bool) -> Result<Option<Head>, Malformed> {
        read(
            &Bytes::copy_from_slice(text.as_bytes()),
            0,
            FIELDS,
            head_only,
            HeaderMap::new(),
        )
    }

    fn extent(fields: &str) -> Result<(Extent, bool), Malformed> {
        let head = read_all(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), false)?.expect("whole");
        Ok((head.extent, head.keeps))
    }

    #[test]
    fn heads_are_read_from_where_they_begin() {
        let text = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 404 Nope\r\nx-a: 1\r\nx-a: 2\r\n\r\nbody";
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let first = read(&bytes, 0, FIELDS, false, HeaderMap::new())
            .expect("sound")
            .expect("whole");
        assert_eq!((first.status.as_u16(), first.extent), (103, Extent::Length(0)));
        assert_eq!(first.fields[header::LINK], "</a>");
        let second = read(&bytes, first.length, FIELDS, false, HeaderMap::new())
            .expect("sound")
            .expect("whole");
        assert_eq!(second.status, 404);
        assert_eq!(second.reason.as_deref(), Some(&b"Nope"[..]));
        assert_eq!(second.fields.get_all("x-a").iter().count(), 2);
        assert_eq!(&bytes[first.length + second.length..], b"body");
        for cut in 0..first.length {
            let part = bytes.slice(..cut);
            assert!(matches!(read(&part, 0, FIELDS, false, HeaderMap::new()), Ok(None)));
        }
    }

    #[test]
    fn the_end_of_a_body_is_where_the_rules_say() {
        assert_eq!(extent("content-length: 5\r\n"), Ok((Extent::Length(5), true)));
        assert_eq!(
            extent("content-length: 5\r\ncontent-length: 5, 5\r\n"),
            Ok((Extent::Length(5), true))
        );
        assert_eq!(
            extent("content-length: 5\r\ntransfer-encoding: chunked\r\n"),
            Ok((Extent::Chunked, true))
        );
        assert_eq!(extent("transfer-encoding: gzip\r\n"), Ok((Extent::Close, true)));
        assert_eq!(extent("x: y\r\n"), Ok((Extent::Close, true)));
        assert_eq!(
            extent("connection: close\r\nconnection: keep-alive\r\ncontent-length: 0\r\n"),
            Ok((Extent::Length(0), false))
        );
        for bad in [
            "5, 6",
            "+5",
            "-5",
            "0x5",
            "",
            "5,",
            "18446744073709551615",
            "99999999999999999999",
        ] {
            assert_eq!(extent(&format!("content-length: {bad}\r\n")), Err(Malformed), "{bad}");
        }
        assert_eq!(extent("content-length: 5\r\ncontent-length: 6\r\n"), Err(Malformed));
        let old = |fields: &str| read_all(&format!("HTTP/1.0 200 OK\r\n{fields}\r\n"), false);
        assert!(old("transfer-encoding: chunked\r\n").is_err());
        assert!(matches!(
            old("content-length: 0\r\n"),
            Ok(Some(Head { keeps: false, .. }))
        ));
        assert!(matches!(
            old("connection: keep-alive\r\n"),
            Ok(Some(Head {
                keeps: true,
                extent: Extent::Close,
                ..
            }))
        ));
        let head = read_all("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", true);
        assert!(matches!(
            head,
            Ok(Some(Head {
                extent: Extent::Length(0),
                ..
            }))
        ));
    }

    #[test]
    fn more_fields_than_allowed_are_no_answer() {
        let text = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(150));
        let bytes = Bytes::from(text);
        for (most, whole) in [(100, false), (149, false), (150, true)] {
            assert_eq!(read(&bytes, 0, most, false, HeaderMap::new()).is_ok(), whole, "{most}");
        }
    }

    #[test]
    fn requests_say_where_they_end() {
        let head = |request: Request<()>| {
            let mut out = Vec::new();
            let framing = write(&mut out, &request.into_parts().0, &RequestBody::empty());
            (String::from_utf8(out).expect("text"), framing)
        };
        let get = Request::get("/a?b=c").header("host", "h").body(()).expect("request");
        let none = Framing::Length(0);
        assert_eq!(head(get), ("GET /a?b=c HTTP/1.1\r\nhost: h\r\n\r\n".into(), none));
        let mut all = Request::options("*").body(()).expect("request");
        all.headers_mut()
            .append(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        assert_eq!(head(all).0, "OPTIONS * HTTP/1.1\r\n\r\n");
        let query = Request::get("http://h?x=1").body(()).expect("request");
        assert_eq!(head(query).0, "GET /?x=1 HTTP/1.1\r\n\r\n");
        let names = Request::post("/")
            .header("trailer", "X-Sum, content-length,te")
            .body(())
            .expect("request");
        assert_eq!(trailer_names(names.headers()), ["x-sum"]);
        let (mut out, mut trailers) = (Vec::new(), HeaderMap::new());
        trailers.append("x-sum", HeaderValue::from_static("1"));
        trailers.append("x-other", HeaderValue::from_static("2"));
        write_trailers(&mut out, &trailers, &trailer_names(names.headers()));
        assert_eq!(out, b"0\r\nx-sum: 1\r\n\r\n");
    }
}
