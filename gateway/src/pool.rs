//! Unused HTTP/1.1 upstream connections of one worker. A connection is kept only when its last answer came whole and it waits for
//! the next request; it belongs to one endpoint (one container), never to an address.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::h2c::Stream;
use crate::http1::Http1;

/// What a request holds of an upstream connection until its answer's end.
pub(crate) enum Sender {
    /// All of it.
    Http1(Box<Http1>),
    /// A stream.
    Http2(Stream),
}

struct Kept {
    http1: Box<Http1>,
    since: Instant,
}

/// The connections, last used first.
pub(crate) struct Pool {
    idle: RefCell<HashMap<u64, Vec<Kept>, ahash::RandomState>>,
    per_endpoint: usize,
    keep: Duration,
}

impl Pool {
    pub(crate) fn new(per_endpoint: usize, keep: Duration) -> Self {
        Self {
            idle: RefCell::default(),
            per_endpoint,
            keep,
        }
    }

    /// How long a connection is kept unused.
    pub(crate) fn keep(&self) -> Duration {
        self.keep
    }

    /// A connection on which nothing waits: it is open, and nobody has said anything unasked. With the number of others that went
    /// with it.
    pub(crate) fn take(&self, endpoint: u64) -> (Option<Box<Http1>>, u64) {
        let mut gone = 0;
        let mut idle = self.idle.borrow_mut();
        let Some(kept) = idle.get_mut(&endpoint) else {
            return (None, 0);
        };
        while let Some(Kept { http1, .. }) = kept.pop() {
            if http1.is_quiet() {
                return (Some(http1), gone);
            }
            gone += 1;
        }
        (None, gone)
    }

    /// Keeps a connection; `false` when there are enough.
    pub(crate) fn put(&self, endpoint: u64, http1: Box<Http1>, now: Instant) -> bool {
        let mut idle = self.idle.borrow_mut();
        let kept = idle.entry(endpoint).or_default();
        if kept.len() >= self.per_endpoint {
            return false;
        }
        kept.push(Kept { http1, since: now });
        true
    }

    /// Closes what has been unused too long or is dead; the number of connections closed.
    pub(crate) fn sweep(&self, now: Instant) -> u64 {
        let mut closed = 0;
        self.idle.borrow_mut().retain(|_, kept| {
            let before = kept.len();
            kept.retain(|k| k.http1.seems_quiet() && now.saturating_duration_since(k.since) < self.keep);
            closed += (before - kept.len()) as u64;
            !kept.is_empty()
        });
        closed
    }
}
