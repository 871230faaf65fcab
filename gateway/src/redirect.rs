//! Whether a request by http is sent to https instead: when its app asks for it and the name can be served there. What
//! certificate authorities fetch to prove that a domain is one's own is always served as it was asked for.

use http::header::HeaderMap;
use http::{HeaderValue, Uri};

use crate::client::Client;
use crate::headers::X_FORWARDED_PROTO;
use crate::shared::Shared;

/// Where authorities look (RFC 8555 section 8.3).
pub(crate) const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// Where a request for `name` that came by http is sent; `None` when it is served. The app asks for redirects.
pub(crate) fn target(
    shared: &Shared,
    client: &Client,
    headers: &HeaderMap,
    name: &str,
    uri: &Uri,
) -> Option<HeaderValue> {
    let tls = shared.tls.as_ref()?;
    // In front of a proxy that ends TLS, a redirect would lead back here for ever.
    let came_by_https = client.trusted
        && headers
            .get(X_FORWARDED_PROTO)
            .is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"));
    if came_by_https || uri.path().starts_with(CHALLENGES) || !tls.names(name) {
        return None;
    }
    location(name, shared.https_port, uri)
}

/// The same URL by https; `None` for the target `*`, which has none.
fn location(name: &str, port: u16, uri: &Uri) -> Option<HeaderValue> {
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    if path == "*" {
        return None;
    }
    // An absolute target may have a query and no path.
    let slash = if path.starts_with('/') { "" } else { "/" };
    let url = match port {
        443 => format!("https://{name}{slash}{path}"),
        port => format!("https://{name}:{port}{slash}{path}"),
    };
    HeaderValue::try_from(url).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_are_kept() {
        let to = |port, uri: &str| {
            let uri: Uri = uri.parse().expect("a target");
            location("a.test", port, &uri).map(|v| v.to_str().expect("text").to_owned())
        };
        assert_eq!(to(443, "/a/b?c=d&e").as_deref(), Some("https://a.test/a/b?c=d&e"));
        assert_eq!(to(8443, "/").as_deref(), Some("https://a.test:8443/"));
        assert_eq!(
            to(443, "http://a.test:80//evil.test/x").as_deref(),
            Some("https://a.test//evil.test/x")
        );
        assert_eq!(to(443, "http://a.test?x").as_deref(), Some("https://a.test/?x"));
        assert_eq!(to(443, "*"), None);
    }
}
