//! The head of a request that is owed: the first one of a connection, or one of which only the beginning has come. What came of it is
//! held as it is until it is enough for an answer: the library's buffers and the future of a request are many times as large, and
//! who sends heads slowly in order to make a server hold much does it on thousands of connections.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Instant;

use tokio::io::{AsyncRead as _, ReadBuf};

use crate::door;
use crate::http2;
use crate::stream::Stream;
use crate::worker::Worker;

/// Of so many bytes at least the library looks at what there is; beyond it waits for the end of the head, whatever is in it.
const AT_ONCE: usize = 8_192;

/// From the first bytes it shows whether somebody speaks something else; later only the end of a line says anything new.
const FIRST: usize = 16;

/// A connection that owes a head.
pub(crate) struct Owing {
    pub(crate) stream: Stream,
    /// What came of it.
    pub(crate) held: Vec<u8>,
    /// Since when.
    pub(crate) since: Instant,
    /// It may turn out to speak HTTP/2 (RFC 9113 3.3).
    pub(crate) new: bool,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// Enough for an answer: a whole head, or what will never be one.
    Enough,
    /// Not enough in its time.
    Late,
    /// Nobody is there.
    Gone,
}

/// Reads until there is enough of it.
pub(crate) async fn read(worker: &Worker, owing: &mut Owing) -> Came {
    let limits = Limits::of(worker);
    if enough(&owing.held, 0, owing.new, limits) {
        // Also where the library finds that there is not: `since` goes on.
        let late = owing.since.elapsed() >= worker.limits.head;
        return if late { Came::Late } else { Came::Enough };
    }
    let mut late = pin!(tokio::time::sleep_until((owing.since + worker.limits.head).into()));
    // Who has just come when the worker begins to drain is about to ask, and has nowhere else to go.
    let mut drained = pin!(door::drained(worker));
    poll_fn(move |cx| {
        loop {
            // All share one buffer.
            let mut scratch = worker.scratch.borrow_mut();
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut owing.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Err(_)) => return Poll::Ready(Came::Gone),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    let said = !owing.held.is_empty();
                    return Poll::Ready(if said { Came::Enough } else { Came::Gone });
                }
                Poll::Ready(Ok(())) => {
                    let from = owing.held.len();
                    owing.held.extend_from_slice(buffer.filled());
                    if enough(&owing.held, from, owing.new, limits) {
                        return Poll::Ready(Came::Enough);
                    }
                }
            }
        }
        let over = late.as_mut().poll(cx).is_ready();
        match owing.held.is_empty() {
            // Who has sent nothing is not waiting for an answer.
            true if over || drained.as_mut().poll(cx).is_ready() => Poll::Ready(Came::Gone),
            false if over => Poll::Ready(Came::Late),
            _ => Poll::Pending,
        }
    })
    .await
}

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
struct Limits {
    bytes: usize,
    fields: usize,
}

impl Limits {
    fn of(worker: &Worker) -> Self {
        let config = &worker.shared.config;
        Self {
            bytes: config.max_head_bytes,
            fields: config.max_head_fields,
        }
    }
}

/// Whether something can be said to what came. Before `from` it could not.
fn enough(held: &[u8], from: usize, new: bool, limits: Limits) -> bool {
    if new && http2::PREFACE.starts_with(&held[..held.len().min(http2::PREFACE.len())]) {
        return held.len() >= http2::PREFACE.len();
    }
    if held.len() > limits.bytes {
        return true;
    }
    if from >= FIRST && !held[from..].contains(&b'\n') {
        return false;
    }
    let mut fields = Vec::with_capacity(limits.fields);
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(held, fields.spare_capacity_mut()) {
        Ok(status) => status.is_complete(),
        Err(_) => held.len() <= AT_ONCE || has_end(held),
    }
}

/// Whether there is an empty line.
fn has_end(held: &[u8]) -> bool {
    held.windows(2).any(|two| two == b"\n\n") || held.windows(3).any(|three| three == b"\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        bytes: 20_000,
        fields: 4,
    };

    /// After how many bytes, sent one by one, there is enough.
    fn after(text: &[u8], new: bool) -> Option<usize> {
        (0..=text.len()).find(|n| enough(&text[..*n], n.saturating_sub(1), new, LIMITS))
    }

    #[test]
    fn a_head_is_waited_for_to_its_end() {
        for head in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "\r\nGET / HTTP/1.0\r\n\r\n"] {
            let text = [head.as_bytes(), b"and more"].concat();
            assert_eq!(after(&text, true), Some(head.len()), "{head}");
            assert!(enough(&text, 0, true, LIMITS), "{head}");
        }
    }

    #[test]
    fn what_is_no_head_is_answered_as_soon_as_it_shows() {
        assert_eq!(after(b"\x16\x03\x01\x02", true), Some(1));
        assert_eq!(after(b"SSH-2.0-OpenSSH_9.2\r\n", true), Some(21));
        assert_eq!(after(b"GET / HTTP/1.1\r\nno field\r\nX: 1\r\n", false), Some(26));
        let many = b"GET / HTTP/1.1\r\na: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\ne: 5\r\n";
        assert_eq!(after(many, false), Some(many.len()));
        assert_eq!(after(&[b'A'; 20_100], false), Some(20_001));
        // The library would wait for its end.
        let long = [
            "GET / HTTP/1.1\r\nHost: a\r\nX: ",
            &"a".repeat(8_300),
            "\r\nno field\r\n",
        ]
        .concat();
        assert_eq!(after(long.as_bytes(), false), None);
        assert_eq!(after([&long, "\r\n"].concat().as_bytes(), false), Some(long.len() + 2));
    }

    #[test]
    fn the_preface_of_http2_only_begins_connections() {
        let preface = http2::PREFACE;
        assert_eq!(after(preface, true), Some(preface.len()));
        assert_eq!(after(b"PRIV / HTTP/1.1\r\n\r\n", true), Some(19));
        // Later it is an HTTP/1 request in a version that there is not.
        assert_eq!(after(b"PRI * HTTP/2.0\r\n\r\n", false), Some(12));
    }
}
