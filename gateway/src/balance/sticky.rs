//! The gateway's cookie: what a client keeps from one request to the next. Its value names nothing in clear: a version and an
//! endpoint are short hashes, which every gateway computes alike, so that a client may come in through any of them.

use http::header::{self, HeaderMap, HeaderValue};
use model::registry::EntryKey;
use sha2::{Digest as _, Sha256};

/// The cookie's name.
pub(crate) const COOKIE: &str = "caas_sticky";

/// What stands for an endpoint and its version outside the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tags {
    pub(crate) version: u32,
    /// Also the endpoint's place under consistent hashing.
    pub(crate) endpoint: u64,
}

/// The first eight bytes of a hash over the parts.
fn short(parts: &[&str]) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte))
}

impl Tags {
    /// Container ids have 256 random bits: nobody finds one from its hash.
    pub(crate) fn of(key: &EntryKey) -> Self {
        let (app, version) = (key.app.as_str(), key.version.as_str());
        Self {
            version: (short(&["version", app, version]) >> 32) as u32,
            endpoint: short(&["endpoint", app, version, key.container.as_str()]),
        }
    }
}

/// What a client's cookie says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) version: u32,
    /// With `sticky = "endpoint"`.
    pub(crate) endpoint: Option<u64>,
}

impl Kept {
    /// Reads a cookie's value; `None` for anything that the gateway never wrote.
    fn parse(value: &str) -> Option<Self> {
        let clean = value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let (version, endpoint) = value.split_at_checked(8).filter(|_| clean)?;
        let version = u32::from_str_radix(version, 16).ok()?;
        let endpoint = match endpoint.len() {
            0 => None,
            16 => Some(u64::from_str_radix(endpoint, 16).ok()?),
            _ => return None,
        };
        Some(Self { version, endpoint })
    }

    /// The cookie of a request; the first that the gateway could have written.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        cookies(headers, COOKIE).find_map(Self::parse)
    }

    /// The line that makes a browser keep it, until it is closed.
    pub(crate) fn line(self, secure: bool) -> Option<HeaderValue> {
        let endpoint = self.endpoint.map(|e| format!("{e:016x}")).unwrap_or_default();
        let secure = if secure { "; Secure" } else { "" };
        let text = format!(
            "{COOKIE}={:08x}{endpoint}; Path=/; HttpOnly; SameSite=Lax{secure}",
            self.version
        );
        HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).ok()
    }
}

/// The values of the cookies of that name, in order.
pub(crate) fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim_matches([' ', '\t']).split_once('='))
        .filter(move |(key, _)| *key == name)
        .map(|(_, value)| value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eject::tests::key;
    use proptest::prelude::*;

    fn with(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::COOKIE, line.parse().expect("value"));
        }
        headers
    }

    #[test]
    fn the_cookie_comes_back() {
        let tags = Tags::of(&key("hello", "1", "c1"));
        for endpoint in [None, Some(tags.endpoint)] {
            let kept = Kept {
                version: tags.version,
                endpoint,
            };
            let line = kept.line(false).expect("a line");
            let line = line.to_str().expect("text");
            assert!(line.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{line}");
            let pair = line.split(';').next().expect("a pair");
            assert_eq!(Kept::read(&with(&["a=1", &format!("b=2; {pair}; c=3")])), Some(kept));
            assert!(
                kept.line(true)
                    .expect("a line")
                    .to_str()
                    .expect("text")
                    .ends_with("; Secure")
            );
            assert!(!line.contains("c1") && !line.contains("127"));
        }
    }

    #[test]
    fn what_the_gateway_never_wrote_is_ignored() {
        for value in ["", "1", "0000000g", "+0000001", "000000001", "00000001 ", "é"] {
            assert_eq!(Kept::parse(value), None, "{value:?}");
        }
        assert_eq!(
            Kept::read(&with(&["caas_sticky=junk; caas_sticky=0000000a"]))
                .expect("the second")
                .version,
            10
        );
    }

    #[test]
    fn tags_differ_by_everything() {
        let of = |a, v, c| Tags::of(&key(a, v, c));
        let one = of("hello", "1", "c1");
        assert_eq!(one, of("hello", "1", "c1"));
        assert_ne!(one.version, of("hello", "2", "c1").version);
        assert_ne!(one.version, of("other", "1", "c1").version);
        assert_ne!(one.endpoint, of("hello", "1", "c2").endpoint);
    }

    proptest! {
        #[test]
        fn no_cookie_is_a_panic(line in "[ -~]{0,80}") {
            let _ = Kept::read(&with(&[&line]));
            let _ = Kept::parse(&line);
        }
    }
}
