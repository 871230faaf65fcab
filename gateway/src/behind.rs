//! Whom a trusted proxy speaks for.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use crate::config::plain;
use crate::headers::X_FORWARDED_FOR;
use crate::limit::Networks;

/// The address of the client that a trusted proxy speaks for: the last one in X-Forwarded-For that is not itself trusted.
pub(crate) fn client_behind(headers: &HeaderMap, trusted: &Networks) -> Option<IpAddr> {
    let mut last = None;
    for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        for token in value.as_bytes().rsplit(|b| *b == b',') {
            // What is behind something else is nobody's word.
            let Some(ip) = address(token.trim_ascii()) else {
                return last;
            };
            last = Some(ip);
            if !trusted.contains(ip) {
                return last;
            }
        }
    }
    last
}

/// An address as proxies write it: bare, in brackets, or with the client's port (Azure's, RFC 7239 6).
fn address(token: &[u8]) -> Option<IpAddr> {
    let token = std::str::from_utf8(token).ok()?;
    let bare = token
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(token);
    let ip = bare.parse().or_else(|_| token.parse::<SocketAddr>().map(|at| at.ip()));
    ip.ok().map(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::tests::map;

    #[test]
    fn the_client_behind_proxies() {
        let trusted = Networks::new(&["10.0.0.0/8".parse().expect("network")]);
        let behind = |v: &str| client_behind(&map(&[("x-forwarded-for", v)]), &trusted);
        assert_eq!(
            behind("6.6.6.6, 203.0.113.9, 10.0.0.7"),
            Some(IpAddr::from([203, 0, 113, 9]))
        );
        assert_eq!(behind("10.0.0.1"), Some(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(behind("junk"), None);
        assert_eq!(behind("203.0.113.9, junk"), None);
        assert_eq!(behind("203.0.113.9, junk, 10.0.0.7"), Some(IpAddr::from([10, 0, 0, 7])));
        let six: IpAddr = "2001:db8::9".parse().expect("address");
        for (written, ip) in [
            ("203.0.113.9:51000", IpAddr::from([203, 0, 113, 9])),
            ("[2001:db8::9]:51000", six),
            ("[2001:db8::9]", six),
            ("::ffff:203.0.113.9", IpAddr::from([203, 0, 113, 9])),
        ] {
            assert_eq!(behind(&format!("{written}, 10.0.0.7")), Some(ip), "{written}");
        }
        for junk in ["203.0.113.9:", "203.0.113.9:99999", "[203.0.113.9", "[]", ""] {
            assert_eq!(behind(junk), None, "{junk}");
        }
    }
}
