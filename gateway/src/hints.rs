//! Interim answers of an app (103 Early Hints and the like), on their way to the client. They come in the task of the app's
//! connection, before the answer, so they wait here; few, since an app may send as many as it likes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Context;

use bytes::Bytes;
use futures::task::AtomicWaker;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::headers;

/// Most that wait; further ones are dropped.
const MOST: usize = 8;

/// Most fields of an interim answer: as many as the HTTP library takes in any answer.
const FIELDS: usize = 100;

/// The interim answers of one request at a time.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    waiting: Mutex<Vec<(StatusCode, HeaderMap)>>,
    any: AtomicBool,
    waker: AtomicWaker,
}

impl Hints {
    /// Whether any wait.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Forgets what waits: it belongs to a request that is over.
    pub(crate) fn clear(&self) {
        if self.any() {
            drop(self.take());
        }
    }

    /// The client's task is to be woken when one comes.
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    fn hear(&self, status: StatusCode, fields: HeaderMap) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MOST {
            waiting.push((status, fields));
            self.any.store(true, Ordering::Relaxed);
            self.waker.wake();
        }
    }

    fn take(&self) -> Vec<(StatusCode, HeaderMap)> {
        self.any.store(false, Ordering::Relaxed);
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting
            .into_iter()
            .filter_map(|(status, mut fields)| {
                // There is no body for it to speak of (RFC 9110 8.6).
                fields.remove(header::CONTENT_LENGTH);
                headers::rewrite_answer(&mut fields, false).then_some((status, fields))
            })
            .collect()
    }

    /// Passes on what waits to a client that speaks HTTP/2; the task is woken when there is more.
    pub(crate) fn pass(&self, cx: &Context<'_>, respond: &mut SendResponse<Bytes>) {
        self.listen(cx);
        if !self.any() {
            return;
        }
        for (status, fields) in self.take() {
            let mut interim = Response::new(());
            *interim.status_mut() = status;
            *interim.headers_mut() = fields;
            // Fails only when the stream is gone, which shows next.
            let _ = respond.send_informational(interim);
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

/// The beginning of an answer, as far as it may hold interim ones.
#[derive(Debug, Default)]
pub(crate) struct Beginning {
    /// Who is told of them.
    hints: Weak<Hints>,
    /// Not a whole head yet.
    text: Vec<u8>,
}

impl Beginning {
    /// Of the answer to a request whose client takes interim answers by `hints`.
    pub(crate) fn of(hints: Option<&Arc<Hints>>) -> Self {
        Self {
            hints: hints.map(Arc::downgrade).unwrap_or_default(),
            text: Vec::new(),
        }
    }

    /// Hears what comes: how many interim answers end in it, and whether more of them may come.
    pub(crate) fn hear(&mut self, bytes: &[u8]) -> (u32, bool) {
        self.text.extend_from_slice(bytes);
        let mut ended = 0;
        // Half a line ends no head.
        while bytes.contains(&b'\n') && !self.text.is_empty() {
            let mut fields = [httparse::EMPTY_HEADER; FIELDS];
            let mut head = httparse::Response::new(&mut fields);
            let (length, status) = match (head.parse(&self.text), head.code) {
                (Ok(httparse::Status::Partial), _) => break,
                // What switches is the answer itself.
                (Ok(httparse::Status::Complete(length)), Some(code @ (100 | 102..=199))) => (length, code),
                _ => {
                    self.text = Vec::new();
                    return (ended, false);
                }
            };
            ended += 1;
            // Whether to go on is said by the gateway itself.
            if status != 100
                && let (Some(hints), Ok(status)) = (self.hints.upgrade(), StatusCode::from_u16(status))
            {
                hints.hear(status, fields_of(head.headers));
            }
            self.text.drain(..length);
        }
        (ended, true)
    }
}

fn fields_of(parsed: &[httparse::Header<'_>]) -> HeaderMap {
    let sound = |field: &httparse::Header<'_>| {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(field.value).ok()?))
    };
    let mut fields = HeaderMap::new();
    for (name, value) in parsed.iter().filter_map(sound) {
        fields.append(name, value);
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &[u8] =
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nconnection: x-b\r\nx-b: 1\r\ncontent-length: 3\r\n\r\n\
        HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";
    const SAID: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";

    #[test]
    fn interim_answers_are_heard_however_they_come() {
        for size in [1, 7, TWO.len(), 1_000] {
            let hints = Arc::<Hints>::default();
            let mut beginning = Beginning::of(Some(&hints));
            let whole = [TWO, b"HTTP/1.1 200 OK\r\n\r\n"].concat();
            let (mut ended, mut goes_on) = (0, true);
            for piece in whole.chunks(size) {
                assert!(goes_on);
                let (n, more) = beginning.hear(piece);
                (ended, goes_on) = (ended + n, more);
            }
            assert_eq!((ended, goes_on), (3, false), "pieces of {size}");
            assert!(hints.any());
            assert_eq!(hints.text(), SAID);
            assert!(!hints.any() && hints.text().is_empty());
        }
    }

    #[test]
    fn a_switch_and_what_is_no_answer_end_it() {
        for text in [
            "HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n",
            "junk\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nx y: z\r\n\r\n",
        ] {
            let hints = Arc::<Hints>::default();
            assert_eq!(Beginning::of(Some(&hints)).hear(text.as_bytes()), (0, false), "{text}");
            assert!(!hints.any());
        }
        // Nobody to tell.
        assert_eq!(Beginning::of(None).hear(TWO), (3, true));
    }

    #[test]
    fn few_wait() {
        let hints = Arc::<Hints>::default();
        let mut beginning = Beginning::of(Some(&hints));
        for _ in 0..MOST + 2 {
            assert_eq!(beginning.hear(b"HTTP/1.1 103 Early Hints\r\n\r\n"), (1, true));
        }
        assert_eq!(hints.take().len(), MOST);
        beginning.hear(b"HTTP/1.1 103 Early Hints\r\n\r\n");
        hints.clear();
        assert!(!hints.any());
    }
}
