//! Which requests may be sent twice. What may have reached an app is only repeated when repeating it can do no harm.

use http::Method;

/// Whether a request may be repeated although an app may have seen it: a safe method, or the client's own word
/// (Idempotency-Key) that it is recognised. What no app has seen may always be repeated.
pub(crate) fn may_repeat(method: &Method, idempotency_key: bool) -> bool {
    idempotency_key || matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_does_no_harm_is_repeated() {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE] {
            assert!(may_repeat(&method, false));
        }
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            assert!(!may_repeat(&method, false));
            assert!(may_repeat(&method, true));
        }
    }
}
