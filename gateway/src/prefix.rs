//! Paths of a host whose app does not want to know of them (`strip_prefix`): they are taken off before it is asked, and told in
//! `X-Forwarded-Prefix`, as Traefik's StripPrefix does. What a trusted proxy has taken off before stays in front.

use http::HeaderValue;
use http::header::HeaderName;
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};

use crate::route;
use crate::table::By;
use crate::worker::Worker;

const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// The target without its first `prefix` bytes, which are a path of whole segments: what is left begins with `/`.
fn without(target: &PathAndQuery, prefix: usize) -> Option<PathAndQuery> {
    let rest = target.as_str().get(prefix..)?;
    let slash = if rest.starts_with('/') { "" } else { "/" };
    PathAndQuery::try_from(format!("{slash}{rest}")).ok()
}

/// Takes off the path by which the host's app was found, if it was. `parts` are what the app is asked, but for this.
pub(crate) fn strip(worker: &Worker, host: &HeaderValue, parts: &mut Parts) {
    let mut scratch = route::SCRATCH;
    let Ok(name) = route::name(host.as_bytes(), &mut scratch) else {
        return;
    };
    let own = &worker.shared.config.domain;
    let target = route::target(name, own);
    let prefix = worker.with_table(|table| match table.find(target, own, parts.uri.path()) {
        Some((_, By::Path(prefix))) => HeaderValue::from_str(prefix).ok(),
        _ => None,
    });
    if let Some(prefix) = prefix
        && let Some(target) = parts.uri.path_and_query()
        && let Some(rest) = without(target, prefix.len())
    {
        parts.uri = Uri::from(rest);
        parts.headers.append(X_FORWARDED_PREFIX, prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_as_it_came() {
        for (target, want) in [
            ("/api", "/"),
            ("/api/", "/"),
            ("/api?a=/b", "/?a=/b"),
            ("/api/?", "/?"),
            ("/api/x/y?z", "/x/y?z"),
            ("/api//x", "//x"),
            ("/api/../x", "/../x"),
            ("/api/%2e%2e/a%20b;p?q=a%20b&c=[1]", "/%2e%2e/a%20b;p?q=a%20b&c=[1]"),
        ] {
            let target = PathAndQuery::from_static(target);
            assert_eq!(without(&target, "/api".len()).expect("a target"), want);
        }
    }
}
