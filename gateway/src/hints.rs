//! Interim answers of an app (103 Early Hints and the like), on their way to the client. They come while its request is being
//! served, and wait here until its connection writes; few, since an app may send as many as it likes.

use std::cell::RefCell;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};

use crate::headers;
use crate::http2::Answer;

/// Most that wait; further ones are dropped.
const MOST: usize = 8;

/// The interim answers of one request at a time.
#[derive(Debug, Default)]
pub(crate) struct Hints(RefCell<Vec<(StatusCode, HeaderMap)>>);

impl Hints {
    /// Whether any wait.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        !self.0.borrow().is_empty()
    }

    /// Forgets what waits: it belongs to a request that is over.
    pub(crate) fn clear(&self) {
        self.0.borrow_mut().clear();
    }

    /// Hears one, in the task that passes it on.
    pub(crate) fn hear(&self, status: StatusCode, fields: HeaderMap) {
        let mut waiting = self.0.borrow_mut();
        // Whether to go on is said by the gateway itself.
        if status != StatusCode::CONTINUE && waiting.len() < MOST {
            waiting.push((status, fields));
        }
    }

    fn take(&self) -> Vec<(StatusCode, HeaderMap)> {
        self.0
            .take()
            .into_iter()
            .filter_map(|(status, mut fields)| {
                // There is no body for it to speak of (RFC 9110 8.6).
                fields.remove(header::CONTENT_LENGTH);
                headers::rewrite_answer(&mut fields, false).then_some((status, fields))
            })
            .collect()
    }

    /// Passes on what waits to a client that speaks HTTP/2.
    pub(crate) fn pass(&self, respond: &Answer) {
        if !self.any() {
            return;
        }
        for (status, fields) in self.take() {
            respond.interim(status, &fields);
        }
    }

    /// What waits, as a client reads it that speaks HTTP/1.1.
    pub(crate) fn text(&self) -> Bytes {
        let mut text = Vec::new();
        for (status, fields) in self.take() {
            let reason = status.canonical_reason().unwrap_or_default();
            text.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
            for (name, value) in &fields {
                for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                    text.extend_from_slice(part);
                }
            }
            text.extend_from_slice(b"\r\n");
        }
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn fields(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (name.parse(), HeaderValue::from_static(value)));
        pairs.map(|(name, value)| (name.expect("a name"), value)).collect()
    }

    #[test]
    fn what_is_said_is_what_the_client_may_know() {
        let hints = Hints::default();
        let early = [
            ("link", "</a.css>"),
            ("connection", "x-b"),
            ("x-b", "1"),
            ("content-length", "3"),
        ];
        hints.hear(StatusCode::EARLY_HINTS, fields(&early));
        hints.hear(StatusCode::CONTINUE, HeaderMap::new());
        hints.hear(StatusCode::PROCESSING, HeaderMap::new());
        assert!(hints.any());
        let said = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";
        assert_eq!(hints.text(), said);
        assert!(!hints.any() && hints.text().is_empty());
    }

    #[test]
    fn few_wait() {
        let hints = Hints::default();
        for _ in 0..MOST + 2 {
            hints.hear(StatusCode::EARLY_HINTS, HeaderMap::new());
        }
        assert_eq!(hints.take().len(), MOST);
        hints.hear(StatusCode::EARLY_HINTS, HeaderMap::new());
        hints.clear();
        assert!(!hints.any());
    }
}
