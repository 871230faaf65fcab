//! The head of a request, field by field as it comes, until it is what an HTTP/1 request has: the authority as Host, one Cookie, one
//! Content-Length (RFC 9113 8.2 and 8.3).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, Uri};

use super::hpack::Field;

/// The fields of one header block: those of a request, or trailers.
#[derive(Debug)]
pub(super) struct Fields {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<HeaderValue>,
    path: Option<PathAndQuery>,
    protocol: Option<h2::ext::Protocol>,
    rest: HeaderMap,
    /// A field that is no pseudo field came.
    begun: bool,
    /// It breaks a rule.
    malformed: bool,
    host: bool,
    /// More than one line of Cookie.
    crumbs: bool,
    length: Option<u64>,
    continues: bool,
    /// What its fields count; those beyond `most` are not kept.
    size: usize,
    most: usize,
}

/// A request's head.
pub(crate) struct Head {
    pub(crate) parts: Parts,
    /// What Content-Length says.
    pub(crate) length: Option<u64>,
    /// The client waits to be told to go on.
    pub(crate) continues: bool,
    /// The target can be one of ours.
    pub(crate) plain: bool,
    /// There were more fields than are kept.
    pub(crate) too_large: bool,
}

impl Fields {
    /// None yet; `rest` is an empty map for them.
    pub(super) fn new(rest: HeaderMap, most: usize) -> Self {
        Self {
            method: None,
            scheme: None,
            authority: None,
            path: None,
            protocol: None,
            rest,
            begun: false,
            malformed: false,
            host: false,
            crumbs: false,
            length: None,
            continues: false,
            size: 0,
            most,
        }
    }

    /// What its fields count (RFC 9113 6.5.2).
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The next field, and what it counts.
    pub(super) fn add(&mut self, field: Field, size: usize) {
        self.size = self.size.saturating_add(size);
        if self.size > self.most {
            return;
        }
        // Pseudo fields come first, each once (RFC 9113 8.3).
        let twice = match field {
            Field::Other(name, value) => return self.other(name, value),
            Field::Method(method) => self.method.replace(method).is_some(),
            Field::Scheme(scheme) => self.scheme.replace(scheme).is_some(),
            Field::Authority(authority) => self.authority.replace(authority).is_some(),
            Field::Path(path) => self.path.replace(path).is_some(),
            Field::Protocol(protocol) => match std::str::from_utf8(&protocol) {
                Ok(name) => self.protocol.replace(name.into()).is_some(),
                Err(_) => true,
            },
            Field::Bad => true,
        };
        self.malformed |= twice || self.begun;
    }

    fn other(&mut self, name: HeaderName, value: HeaderValue) {
        self.begun = true;
        // By length first: most names are none of these.
        match name.as_str().len() {
            2 if name == header::TE => self.malformed |= !value.as_bytes().eq_ignore_ascii_case(b"trailers"),
            4 if name == header::HOST => self.host = true,
            6 if name == header::COOKIE => self.crumbs |= self.rest.contains_key(header::COOKIE),
            6 if name == header::EXPECT => self.continues = true,
            // The connection's own fields have no place in HTTP/2 (RFC 9113 8.2.2).
            7 => self.malformed |= name == header::UPGRADE,
            10 => self.malformed |= name == header::CONNECTION || name.as_str() == "keep-alive",
            16 => self.malformed |= name.as_str() == "proxy-connection",
            17 => self.malformed |= name == header::TRANSFER_ENCODING,
            14 if name == header::CONTENT_LENGTH => {
                let digits = value.as_bytes();
                let length = match std::str::from_utf8(digits) {
                    Ok(text) if digits.iter().all(u8::is_ascii_digit) => text.parse::<u64>().ok(),
                    _ => None,
                };
                // Those that say the same become one.
                if length.is_some() && self.length == length {
                    return;
                }
                self.malformed |= length.is_none() || self.length.is_some();
                self.length = length;
            }
            _ => {}
        }
        self.rest.append(name, value);
    }

    /// As trailers, unless they are none.
    pub(super) fn trailers(self) -> Option<HeaderMap> {
        let pseudo = self.method.is_some()
            || self.scheme.is_some()
            || self.authority.is_some()
            || self.path.is_some()
            || self.protocol.is_some();
        (!self.malformed && !pseudo && self.size <= self.most).then_some(self.rest)
    }

    /// As a request, unless it is malformed (RFC 9113 8.1.1, 8.3.1, 8.5; RFC 8441 4). `end`: there is no body.
    pub(super) fn request(self, end: bool) -> Option<Head> {
        let too_large = self.size > self.most;
        let malformed = self.malformed || (end && self.length.is_some_and(|length| length > 0));
        let method = match self.method {
            Some(method) => method,
            // Cut off with the rest.
            None if too_large => Method::GET,
            None => return None,
        };
        let connect = method == Method::CONNECT && self.protocol.is_none();
        let named = self.scheme.is_some() && self.path.is_some();
        let rules = if connect {
            self.scheme.is_none() && self.path.is_none() && self.authority.is_some()
        } else {
            named && (self.protocol.is_none() || method == Method::CONNECT)
        };
        if malformed || !(rules || too_large) {
            return None;
        }
        let scheme = self.scheme.unwrap_or(Scheme::HTTP);
        let plain = scheme == Scheme::HTTP || scheme == Scheme::HTTPS;
        let tunnel = self.protocol.is_some();
        let mut parts = Request::new(()).into_parts().0;
        parts.method = method;
        parts.headers = self.rest;
        parts.version = http::Version::HTTP_2;
        parts.uri = match self.path {
            Some(path) if plain => Uri::from(path),
            // Refused where all targets are looked at.
            Some(path) => {
                let uri = Uri::builder().scheme(scheme).authority("_").path_and_query(path);
                uri.build().unwrap_or_default()
            }
            None => Uri::default(),
        };
        if let Some(protocol) = self.protocol {
            parts.extensions.insert(protocol);
        }
        if let Some(authority) = self.authority {
            // Both have to name the same (RFC 9113 8.3.1); two hosts are refused.
            let same = |v: &HeaderValue| v.as_bytes().eq_ignore_ascii_case(authority.as_bytes());
            if !self.host || !parts.headers.get_all(header::HOST).iter().all(same) {
                parts.headers.append(header::HOST, authority);
            }
        }
        if self.crumbs {
            join_cookies(&mut parts.headers);
        }
        Some(Head {
            parts,
            // What goes through a tunnel is no body.
            length: if tunnel { None } else { self.length },
            continues: self.continues,
            plain,
            too_large,
        })
    }
}

/// Cookies may come in crumbs, which HTTP/1 does not know (RFC 9113 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, whole);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn head(target: (&str, &str, &str), fields: &[(&'static str, &'static str)]) -> Option<Head> {
        let mut head = Fields::new(HeaderMap::new(), 1_000);
        let (scheme, authority, path) = target;
        head.add(Field::Method(Method::GET), 42);
        head.add(Field::Scheme(scheme.parse().expect("a scheme")), 42);
        head.add(Field::Authority(authority.parse().expect("an authority")), 42);
        head.add(Field::Path(path.parse().expect("a path")), 42);
        for (name, value) in fields {
            let size = name.len() + value.len() + 32;
            head.add(
                Field::Other(HeaderName::from_static(name), HeaderValue::from_static(value)),
                size,
            );
        }
        head.request(false)
    }

    fn values(head: &Head, name: HeaderName) -> Vec<&str> {
        let all = head.parts.headers.get_all(name);
        all.iter().map(|v| v.to_str().expect("text")).collect()
    }

    #[test]
    fn the_authority_becomes_the_host() {
        let plain = head(("https", "a.example:81", "/b?c"), &[]).expect("sound");
        assert_eq!(plain.parts.uri, "/b?c");
        assert_eq!(values(&plain, header::HOST), ["a.example:81"]);
        let same = head(("http", "a.example", "/"), &[("host", "A.example")]).expect("sound");
        assert_eq!(values(&same, header::HOST), ["A.example"]);
        // Two names: refused later as two hosts.
        let two = head(("http", "a.example", "/"), &[("host", "b.example")]).expect("sound");
        assert_eq!(values(&two, header::HOST), ["b.example", "a.example"]);
        let other = head(("ftp", "a.example", "/b"), &[]).expect("sound");
        assert_eq!((other.plain, other.parts.uri.scheme_str()), (false, Some("ftp")));
    }

    #[test]
    fn crumbs_become_one_cookie_and_equal_lengths_one_length() {
        let crumbs = [("cookie", "a=b"), ("x", "y"), ("cookie", "c=d; e"), ("cookie", "f")];
        let sound = head(("http", "a", "/"), &crumbs).expect("sound");
        assert_eq!(values(&sound, header::COOKIE), ["a=b; c=d; e; f"]);
        let twice = [("content-length", "3"), ("content-length", "3")];
        let sound = head(("http", "a", "/"), &twice).expect("sound");
        assert_eq!(
            (values(&sound, header::CONTENT_LENGTH), sound.length),
            (vec!["3"], Some(3))
        );
        for lengths in [["3", "4"], ["+3", "3"], ["", ""]] {
            let fields = lengths.map(|length| ("content-length", length));
            assert!(head(("http", "a", "/"), &fields).is_none(), "{lengths:?}");
        }
    }

    #[test]
    fn what_is_beyond_the_limit_is_not_kept() {
        let large: String = "x".repeat(900);
        let mut fields = Fields::new(HeaderMap::new(), 1_000);
        fields.add(Field::Path("/".parse().expect("a path")), 42);
        let value = HeaderValue::from_maybe_shared(Bytes::from(large)).expect("a value");
        fields.add(Field::Other(header::ACCEPT, value.clone()), 938);
        fields.add(Field::Other(header::ACCEPT, value), 938);
        assert_eq!((fields.size(), fields.rest.len()), (1_918, 1));
        assert!(fields.request(true).expect("to be answered").too_large);
    }
}
