//! One request and its answer at a time: how far they have come. The timer of the connection judges by it; nothing here
//! waits. HTTP/1 has one exchange per connection, used again and again; HTTP/2 has one per stream.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use http::Version;

use crate::client::Client;
use crate::hints::Hints;
use crate::upgrade::Tunnel;

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Between requests, or receiving a head.
    Idle,
    /// A request waits for the head of its answer (its body may still come).
    Waiting,
    /// The answer goes out.
    Answering,
}

/// The state of one request at a time.
pub(crate) struct Exchange {
    /// Who asks.
    pub(crate) client: Rc<Client>,
    pub(crate) phase: Cell<Phase>,
    /// Bytes came while no request was under way: a head is on its way.
    pub(crate) head_begun: Cell<bool>,
    /// The current request's body is not whole.
    pub(crate) body_open: Cell<bool>,
    /// How the current request's body comes.
    pub(crate) arrival: Arrival,
    /// Set by the timer when the current request waited too long.
    pub(crate) expired: Cell<bool>,
    /// It was its own body that it waited for.
    pub(crate) body_late: Cell<bool>,
    /// Something that was written for the client has not gone out: the socket takes no more at the moment.
    pub(crate) unsent: Cell<bool>,
    /// Bytes of the answer's body that the library has to write, at most.
    queued: Cell<usize>,
    /// The last request's body was not read to its end: what still comes must be read away, or the peer's stack discards the answer.
    pub(crate) linger: Cell<bool>,
    /// How long the current request may wait for its answer's head, and how long its answer may pause.
    pub(crate) patience: Cell<(Duration, Duration)>,
    /// Left by a request that became a tunnel.
    pub(crate) tunnel: RefCell<Option<Tunnel>>,
    /// Grows with each read or write that moved bytes.
    progress: Cell<u32>,
    /// Grows with each request.
    requests: Cell<u32>,
    /// It is a stream of an HTTP/2 connection, with a task of its own.
    pub(crate) http2: bool,
    /// The request's head was larger than one may be.
    pub(crate) head_too_large: Cell<bool>,
    /// Interim answers on their way to the client.
    pub(crate) hints: Hints,
    /// The client may be sent some: HTTP/1.0 knows none (RFC 9110 15.2).
    takes_hints: Cell<bool>,
    /// The client is to be told to send the body (100).
    pub(crate) go_on: Cell<bool>,
    /// The answer is over: the rest of the request's body is unwanted.
    stopped: Cell<bool>,
    /// The stream's task.
    waker: RefCell<Option<Waker>>,
    /// The task that reads the request's body.
    reader: RefCell<Option<Waker>>,
}

impl Exchange {
    /// `patience` holds for requests that no app has.
    pub(crate) fn new(client: Rc<Client>, patience: (Duration, Duration)) -> Self {
        Self {
            client,
            phase: Cell::new(Phase::Idle),
            head_begun: Cell::new(false),
            body_open: Cell::new(false),
            arrival: Arrival::default(),
            expired: Cell::new(false),
            body_late: Cell::new(false),
            unsent: Cell::new(false),
            queued: Cell::new(0),
            linger: Cell::new(false),
            patience: Cell::new(patience),
            tunnel: RefCell::new(None),
            progress: Cell::new(0),
            requests: Cell::new(0),
            http2: false,
            head_too_large: Cell::new(false),
            hints: Hints::default(),
            takes_hints: Cell::new(false),
            go_on: Cell::new(false),
            stopped: Cell::new(false),
            waker: RefCell::new(None),
            reader: RefCell::new(None),
        }
    }

    /// The exchange of an HTTP/2 stream.
    pub(crate) fn of_stream(client: Rc<Client>, patience: (Duration, Duration)) -> Self {
        Self {
            http2: true,
            ..Self::new(client, patience)
        }
    }

    /// Whether a request's head is on its way.
    pub(crate) fn owes_head(&self) -> bool {
        self.phase.get() == Phase::Idle && self.head_begun.get()
    }

    /// A request's head is whole.
    #[inline]
    pub(crate) fn begin(&self, version: Version) {
        self.requests.set(self.requests.get().wrapping_add(1));
        self.takes_hints.set(version >= Version::HTTP_11);
        self.hints.clear();
        self.phase.set(Phase::Waiting);
        self.head_begun.set(false);
        self.body_open.set(false);
        self.expired.set(false);
    }

    /// Who is told of interim answers to the current request.
    pub(crate) fn hints(&self) -> Option<&Hints> {
        self.takes_hints.get().then_some(&self.hints)
    }

    /// The request is over.
    #[inline]
    pub(crate) fn end(&self) {
        self.phase.set(Phase::Idle);
    }

    /// Bytes were read or written.
    #[inline]
    pub(crate) fn moved(&self) {
        self.progress.set(self.progress.get().wrapping_add(1));
    }

    /// How much more of the answer may be read at once, where a `buffer` may have so many bytes: so that no more than two such are
    /// held for whoever takes them slowly, and who takes them fast gets few large writes instead of many small ones.
    #[inline]
    pub(crate) fn room(&self, buffer: usize) -> usize {
        if self.http2 {
            // Its windows hold the rest.
            return buffer;
        }
        (buffer * 2).saturating_sub(self.queued.get()).max(buffer / 8)
    }

    /// The library has so many more bytes of the answer's body to write.
    #[inline]
    pub(crate) fn queue(&self, bytes: usize) {
        if !self.http2 {
            self.queued.set(self.queued.get() + bytes);
        }
    }

    /// So many bytes were written, heads and framing among them.
    #[inline]
    pub(crate) fn wrote(&self, bytes: usize) {
        self.queued.set(self.queued.get().saturating_sub(bytes));
    }

    /// The stream's task is to be woken when something changes here.
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        note(&self.waker, cx);
    }

    /// Wakes the stream's task.
    pub(crate) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Nothing more of the request's body is wanted.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    /// Whether nothing more of the request's body is wanted; whoever asks is woken when that changes.
    pub(crate) fn stopped(&self, cx: &Context<'_>) -> bool {
        note(&self.reader, cx);
        self.stopped.get()
    }
}

/// How a request's body comes: what the timer needs to know who trickles.
#[derive(Debug, Default)]
pub(crate) struct Arrival {
    bytes: Cell<u64>,
    /// The endpoint would take more than has come. While it does not, the client waits, not the gateway.
    wanted: Cell<bool>,
    /// How long more was wanted, as far as the timer saw.
    waited: Cell<Duration>,
    /// It may take its time: calls of gRPC may stay open for as long as their app likes.
    pub(crate) patient: Cell<bool>,
}

impl Arrival {
    /// A body begins.
    pub(crate) fn begin(&self) {
        self.bytes.set(0);
        self.wanted.set(false);
        self.waited.set(Duration::ZERO);
    }

    /// So many bytes have come in all.
    #[inline]
    pub(crate) fn came(&self, bytes: u64) {
        self.bytes.set(bytes);
        self.wanted.set(false);
    }

    /// More is wanted than has come.
    #[inline]
    pub(crate) fn wants(&self) {
        self.wanted.set(true);
    }

    /// Whether it comes too slowly on average, `since` the timer looked last.
    fn trickles(&self, pace: Pace, since: Duration) -> bool {
        if !self.wanted.get() || self.patient.get() {
            return false;
        }
        // A timer that looks late says that the gateway was busy, not that the client was slow.
        let waited = self.waited.get() + since.min(pace.grace / 4);
        self.waited.set(waited);
        waited > pace.grace && u128::from(self.bytes.get()) * 1_000 < u128::from(pace.bytes_per_s) * waited.as_millis()
    }
}

fn note(place: &RefCell<Option<Waker>>, cx: &Context<'_>) {
    match &mut *place.borrow_mut() {
        Some(waker) => waker.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

/// How fast a body has to come, on average over the time that is spent waiting for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) bytes_per_s: u64,
    /// It counts once so much time was spent.
    pub(crate) grace: Duration,
}

/// Limits of the timer, all from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) head: Duration,
    pub(crate) idle: Duration,
    pub(crate) body: Duration,
    pub(crate) pace: Pace,
    pub(crate) park: Option<Duration>,
    /// See [`Exchange::patience`]; an app may have its own.
    pub(crate) patience: (Duration, Duration),
}

/// What the timer decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Wait,
    /// Idle long enough to give its buffers back.
    Park,
    /// Idle too long: close without a word.
    Close,
    /// A head comes slowly: what came of it can be held in less.
    SlowHead,
    /// The current request waited too long: it answers by itself.
    Expire,
    /// An answer stands still: cut it.
    Cut,
    /// The rest of a body whose request was answered does not come, or nobody wants it: close.
    Abandon,
}

/// A connection that has been quiet for so long has nothing left to read or write.
const SETTLED: Duration = Duration::from_millis(10);

/// The timer's memory of an exchange. It looks every now and then instead of being told, so that requests pay nothing.
#[derive(Debug)]
pub(crate) struct Watch {
    progress: u32,
    requests: u32,
    /// When it looked last.
    looked: Instant,
    /// When bytes were last seen to move.
    moved: Instant,
    /// When a head was first seen to be on its way.
    head: Option<Instant>,
}

impl Watch {
    /// `head`: when a head began that is on its way.
    pub(crate) fn new(now: Instant, head: Option<Instant>) -> Self {
        Self {
            progress: 0,
            requests: 0,
            looked: now,
            moved: now,
            head,
        }
    }

    /// Since when a head is on its way.
    pub(crate) fn head(&self) -> Option<Instant> {
        self.head
    }

    /// Looks at the exchange.
    pub(crate) fn look(&mut self, exchange: &Exchange, limits: &Limits, now: Instant) -> Verdict {
        self.judge(exchange, limits, false, now)
    }

    /// The same where the worker may be `draining`: then who asks nothing is parked at once.
    pub(crate) fn judge(&mut self, exchange: &Exchange, limits: &Limits, draining: bool, now: Instant) -> Verdict {
        if exchange.progress.get() != self.progress {
            self.progress = exchange.progress.get();
            self.moved = now;
        }
        if exchange.requests.get() != self.requests {
            self.requests = exchange.requests.get();
            // Another one's.
            self.head = None;
        }
        let still = now.saturating_duration_since(self.moved);
        let since = now.saturating_duration_since(std::mem::replace(&mut self.looked, now));
        let (response, idle) = exchange.patience.get();
        let open = exchange.body_open.get();
        match exchange.phase.get() {
            // A request is over for the app when the last part of its answer is in a buffer, and its body may still come: neither
            // is a pause between requests.
            Phase::Idle if open || exchange.unsent.get() => {
                self.head = None;
                if exchange.unsent.get() && still >= idle {
                    return Verdict::Cut;
                }
                let most = if exchange.arrival.wanted.get() {
                    limits.body
                } else {
                    limits.body.max(idle)
                };
                if open && (still >= most || exchange.arrival.trickles(limits.pace, since)) {
                    return Verdict::Abandon;
                }
            }
            // Seen before.
            Phase::Idle if exchange.owes_head() && self.head.is_some() => return Verdict::SlowHead,
            Phase::Idle if exchange.owes_head() => self.head = Some(now),
            Phase::Idle => {
                self.head = None;
                if still >= limits.idle {
                    return Verdict::Close;
                }
                let park = if draining { Some(SETTLED) } else { limits.park };
                if park.is_some_and(|park| still >= park) {
                    return Verdict::Park;
                }
            }
            Phase::Waiting => {
                self.head = None;
                // While the endpoint does not take what has come, it is the app that is slow.
                let late = open && exchange.arrival.wanted.get();
                let most = if late { limits.body } else { response };
                if still >= most || (open && exchange.arrival.trickles(limits.pace, since)) {
                    exchange.body_late.set(late);
                    return Verdict::Expire;
                }
            }
            Phase::Answering => {
                self.head = None;
                // Both directions may stay open and be silent for as long as the app allows (gRPC).
                let most = if open { limits.body.max(idle) } else { idle };
                if still >= most {
                    return Verdict::Cut;
                }
            }
        }
        Verdict::Wait
    }
}

#[cfg(test)]
mod tests;
