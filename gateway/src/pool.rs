//! Unused HTTP/1.1 upstream connections of one worker. A connection is kept only when its last answer came whole and it waits for
//! the next request; it belongs to one endpoint (one container), never to an address.

use std::cell::{Cell, RefCell};
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

/// Those of each endpoint, last used last.
type Idle = HashMap<u64, Vec<Kept>, ahash::RandomState>;

/// The connections.
pub(crate) struct Pool {
    idle: RefCell<Idle>,
    count: Cell<usize>,
    bounds: Bounds,
}

/// How many are kept, and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Most in all.
    pub(crate) all: usize,
    /// Most of one endpoint.
    pub(crate) per_endpoint: usize,
    /// How long one is kept unused.
    pub(crate) keep: Duration,
}

impl Pool {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            idle: RefCell::default(),
            count: Cell::new(0),
            bounds,
        }
    }

    /// How long a connection is kept unused.
    pub(crate) fn keep(&self) -> Duration {
        self.bounds.keep
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count.get()
    }

    /// A connection on which nothing waits: it is open, and nobody has said anything unasked.
    pub(crate) fn take(&self, endpoint: u64) -> Option<Box<Http1>> {
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(&endpoint)?;
        while let Some(Kept { http1, .. }) = kept.pop() {
            self.count.set(self.count.get() - 1);
            if http1.is_quiet() {
                return Some(http1);
            }
        }
        None
    }

    /// Keeps a connection, unless there are enough of its endpoint. Where there are enough in all, those go that were unused longest:
    /// many at once, since finding them takes a look at all.
    pub(crate) fn put(&self, endpoint: u64, http1: Box<Http1>, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        if self.count.get() >= self.bounds.all {
            let mut since: Vec<_> = idle.values().flatten().map(|kept| kept.since).collect();
            let (_, oldest, _) = since.select_nth_unstable(self.bounds.all / 8);
            let oldest = *oldest;
            self.retain(&mut idle, |kept| kept.since > oldest);
        }
        let kept = idle.entry(endpoint).or_default();
        if kept.len() < self.bounds.per_endpoint {
            kept.push(Kept { http1, since: now });
            self.count.set(self.count.get() + 1);
        }
    }

    /// Closes what has been unused too long or is dead.
    pub(crate) fn sweep(&self, now: Instant) {
        let keep = self.bounds.keep;
        self.retain(&mut self.idle.borrow_mut(), |kept| {
            kept.http1.seems_quiet() && now.saturating_duration_since(kept.since) < keep
        });
    }

    fn retain(&self, idle: &mut Idle, stays: impl Fn(&Kept) -> bool) {
        let mut count = 0;
        idle.retain(|_, kept| {
            kept.retain(&stays);
            count += kept.len();
            !kept.is_empty()
        });
        self.count.set(count);
    }
}
