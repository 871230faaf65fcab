//! Which requests may be sent twice, and the copy that makes it possible. What may have reached an app is only repeated
//! when repeating it can do no harm.

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Uri};

use crate::body::RequestBody;

/// Whether a request may be repeated although an app may have seen it: a safe method, or the client's own word
/// (Idempotency-Key) that it is recognised. What no app has seen may always be repeated.
pub(crate) fn may_repeat(method: &Method, idempotency_key: bool) -> bool {
    idempotency_key || matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// The names and values of a request's headers; the vectors are used again and again.
pub(crate) type Spare = Vec<(HeaderName, HeaderValue)>;

/// A request's head, as it came, to be made once more. Copying shares the values' bytes.
pub(crate) struct Copy {
    method: Method,
    uri: Uri,
    headers: Spare,
}

impl Copy {
    pub(crate) fn of(method: &Method, uri: &Uri, headers: &HeaderMap, mut spare: Spare) -> Self {
        spare.extend(headers.iter().map(|(n, v)| (n.clone(), v.clone())));
        Self {
            method: method.clone(),
            uri: uri.clone(),
            headers: spare,
        }
    }

    /// The request once more, for the header rules to be applied to.
    pub(crate) fn request(&self, body: RequestBody) -> Request<RequestBody> {
        let mut headers = HeaderMap::with_capacity(self.headers.len() + 8);
        for (name, value) in &self.headers {
            headers.append(name.clone(), value.clone());
        }
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        request
    }

    /// Gives the vector back.
    pub(crate) fn into_spare(mut self) -> Spare {
        self.headers.clear();
        self.headers
    }
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

    #[test]
    fn the_copy_is_the_same_request() {
        let mut request = Request::new(RequestBody::empty());
        *request.uri_mut() = Uri::from_static("/a?b=c");
        request.headers_mut().append("x-a", HeaderValue::from_static("1"));
        request.headers_mut().append("x-a", HeaderValue::from_static("2"));
        let copy = Copy::of(request.method(), request.uri(), request.headers(), Vec::new());
        let again = copy.request(RequestBody::empty());
        assert_eq!(again.headers(), request.headers());
        assert_eq!((again.method(), again.uri()), (request.method(), request.uri()));
        assert!(copy.into_spare().is_empty());
    }
}
