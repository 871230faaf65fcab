//! What is known about one client connection: who it is, and how far its current request has come. The connection's
//! timer judges by it; nothing here waits.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::upgrade::Tunnel;

/// What the connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Between requests, or receiving a head.
    Idle,
    /// A request waits for the head of its answer (its body may still come).
    Waiting,
    /// The answer goes out.
    Answering,
}

/// One client connection.
pub(crate) struct Client {
    /// The peer's address in its plain form.
    pub(crate) ip: IpAddr,
    /// The same as a header value.
    pub(crate) address: HeaderValue,
    /// The port that the client connected to, as a header value.
    pub(crate) port: HeaderValue,
    /// The peer's X-Forwarded-* are believed.
    pub(crate) trusted: bool,
    pub(crate) phase: Cell<Phase>,
    /// Bytes came while no request was under way: a head is on its way.
    pub(crate) head_begun: Cell<bool>,
    /// The current request's body is not whole.
    pub(crate) body_open: Cell<bool>,
    /// Set by the timer when the current request waited too long.
    pub(crate) expired: Cell<bool>,
    /// The last request's body was not read to its end: what still comes must be read away, or the peer's stack discards the answer.
    pub(crate) linger: Cell<bool>,
    /// How long the current request may wait for its answer's head, and how long its body may pause.
    pub(crate) patience: Cell<(Duration, Duration)>,
    /// Left by a request that became a tunnel.
    pub(crate) tunnel: RefCell<Option<Tunnel>>,
    /// Grows with each read or write that moved bytes.
    progress: Cell<u32>,
}

impl Client {
    pub(crate) fn new(ip: IpAddr, address: HeaderValue, port: HeaderValue, trusted: bool) -> Self {
        Self {
            ip,
            address,
            port,
            trusted,
            phase: Cell::new(Phase::Idle),
            // A new connection owes a head from the start.
            head_begun: Cell::new(true),
            body_open: Cell::new(false),
            expired: Cell::new(false),
            linger: Cell::new(false),
            patience: Cell::default(),
            tunnel: RefCell::new(None),
            progress: Cell::new(0),
        }
    }

    /// A request's head is whole.
    #[inline]
    pub(crate) fn begin(&self) {
        self.phase.set(Phase::Waiting);
        self.head_begun.set(false);
        self.body_open.set(false);
        self.expired.set(false);
    }

    /// The request is over.
    #[inline]
    pub(crate) fn end(&self) {
        self.phase.set(Phase::Idle);
    }

    fn moved(&self) {
        self.progress.set(self.progress.get().wrapping_add(1));
    }
}

/// Limits of the timer, all from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) head: Duration,
    pub(crate) idle: Duration,
    pub(crate) body: Duration,
    pub(crate) park: Option<Duration>,
}

/// What the timer decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Wait,
    /// Idle long enough to give its buffers back.
    Park,
    /// Idle too long: close without a word.
    Close,
    /// The head took too long: 408.
    HeadTimeout,
    /// The current request waited too long: it answers by itself.
    Expire,
    /// An answer stands still: cut the connection.
    Cut,
}

/// The timer's memory of a connection. It looks every now and then instead of being told, so that requests pay nothing.
#[derive(Debug)]
pub(crate) struct Watch {
    progress: u32,
    /// When the connection was last seen to move.
    moved: Instant,
    /// When a head was first seen to be on its way.
    head: Option<Instant>,
}

impl Watch {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            progress: 0,
            moved: now,
            head: None,
        }
    }

    /// Looks at the connection.
    pub(crate) fn look(&mut self, client: &Client, limits: &Limits, now: Instant) -> Verdict {
        if client.progress.get() != self.progress {
            self.progress = client.progress.get();
            self.moved = now;
        }
        let still = now.saturating_duration_since(self.moved);
        let (response, idle) = client.patience.get();
        match client.phase.get() {
            Phase::Idle if client.head_begun.get() => {
                let since = *self.head.get_or_insert(now);
                // The head's time runs from its first byte, however often a byte comes.
                if now.saturating_duration_since(since) >= limits.head {
                    return Verdict::HeadTimeout;
                }
                return Verdict::Wait;
            }
            Phase::Idle => {
                self.head = None;
                if still >= limits.idle {
                    return Verdict::Close;
                }
                if limits.park.is_some_and(|park| still >= park) {
                    return Verdict::Park;
                }
            }
            Phase::Waiting => {
                self.head = None;
                let most = if client.body_open.get() { limits.body } else { response };
                if still >= most {
                    return Verdict::Expire;
                }
            }
            Phase::Answering => {
                self.head = None;
                let most = if client.body_open.get() { limits.body } else { idle };
                if still >= most {
                    return Verdict::Cut;
                }
            }
        }
        Verdict::Wait
    }
}

/// A client's socket, with bytes that were read before, counting what moves.
pub(crate) struct Socket {
    stream: TcpStream,
    before: Bytes,
    client: Rc<Client>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, before: Bytes, client: Rc<Client>) -> Self {
        Self { stream, before, client }
    }

    pub(crate) fn into_parts(self) -> (TcpStream, Bytes) {
        (self.stream, self.before)
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if !self.before.is_empty() {
            let n = self.before.len().min(buf.remaining());
            buf.put_slice(&self.before[..n]);
            self.before.advance(n);
            return Poll::Ready(Ok(()));
        }
        let filled = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > filled {
            self.client.moved();
            if self.client.phase.get() == Phase::Idle {
                self.client.head_begun.set(true);
            }
        }
        result
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        if result.is_ready() {
            self.client.moved();
        }
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        if result.is_ready() {
            self.client.moved();
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(75),
        body: Duration::from_secs(30),
        park: Some(Duration::from_secs(2)),
    };

    fn client() -> Client {
        let value = HeaderValue::from_static("x");
        Client::new(IpAddr::from([127, 0, 0, 1]), value.clone(), value, false)
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_head_has_ten_seconds_however_many_bytes_drip() {
        let (client, start) = (client(), Instant::now());
        let mut watch = Watch::new(start);
        for s in 0..10 {
            client.moved();
            assert_eq!(watch.look(&client, &LIMITS, at(start, s)), Verdict::Wait);
        }
        client.moved();
        assert_eq!(watch.look(&client, &LIMITS, at(start, 10)), Verdict::HeadTimeout);
    }

    #[test]
    fn idle_parks_then_closes() {
        let (client, start) = (client(), Instant::now());
        client.begin();
        client.end();
        let mut watch = Watch::new(start);
        assert_eq!(watch.look(&client, &LIMITS, at(start, 1)), Verdict::Wait);
        assert_eq!(watch.look(&client, &LIMITS, at(start, 2)), Verdict::Park);
        let never = Limits { park: None, ..LIMITS };
        assert_eq!(watch.look(&client, &never, at(start, 74)), Verdict::Wait);
        assert_eq!(watch.look(&client, &never, at(start, 75)), Verdict::Close);
    }

    #[test]
    fn a_request_expires_by_its_own_limits() {
        let (client, start) = (client(), Instant::now());
        client.begin();
        client.patience.set((Duration::from_secs(60), Duration::from_secs(20)));
        let mut watch = Watch::new(start);
        assert_eq!(watch.look(&client, &LIMITS, at(start, 59)), Verdict::Wait);
        assert_eq!(watch.look(&client, &LIMITS, at(start, 60)), Verdict::Expire);
        client.body_open.set(true);
        assert_eq!(watch.look(&client, &LIMITS, at(start, 30)), Verdict::Expire);
        client.body_open.set(false);
        client.phase.set(Phase::Answering);
        assert_eq!(watch.look(&client, &LIMITS, at(start, 20)), Verdict::Cut);
        client.moved();
        assert_eq!(watch.look(&client, &LIMITS, at(start, 21)), Verdict::Wait);
    }
}
