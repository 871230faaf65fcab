//! HTTP/2 from clients. A connection, from its preface to its close, reads frames and writes what [`core`] has to be written; each
//! stream is served by a task of its own ([`stream`]). One timer per connection keeps the time limits of all of it, and ends
//! connections that flood.

mod core;
mod counts;
mod frame;
mod hpack;
mod huffman;
mod request;
mod state;
mod stream;
mod streams;
mod table;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use slab::Slab;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::io::poll_read_buf;

use self::core::{Begun, BlockWatch, Core};
use self::frame::{Code, Head};
use self::state::Fault;
use crate::client::Client;
use crate::config::Config;
use crate::exchange::{Exchange, Phase, Verdict, Watch};
use crate::http1::make_room;
use crate::worker::Worker;

pub(crate) use self::core::Limits;
pub(crate) use self::stream::StreamBody;
pub(crate) use self::streams::Answer;

/// What an HTTP/2 connection begins with, as far as it takes to know it: no HTTP/1 method is called so.
pub(crate) const PREFACE: &[u8] = b"PRI ";

/// Bytes that are read at once.
const READ: usize = 32 * 1024;

/// How long a connection that is to close may take to send what is left.
const CLOSING: Duration = Duration::from_secs(1);

/// Most bytes that are read away meanwhile.
const LEFT: usize = 1024 * 1024;

/// What HTTP/2 connections of clients may hold.
pub(crate) fn limits(config: &Config) -> Limits {
    Limits {
        window: u32::try_from(config.buffer_bytes).unwrap_or(128 * 1024),
        // The list counts 32 bytes for each field (RFC 9113 6.5.2).
        list: config.max_head_bytes + hpack::EACH * config.max_head_fields,
        streams: config.http2_max_streams,
    }
}

/// The open streams of a connection.
pub(crate) struct Streams {
    watched: RefCell<Slab<(Rc<Exchange>, Watch)>>,
    open: Cell<usize>,
    /// How many there were, ever.
    begun: Cell<u64>,
}

/// One open stream; dropped at its end.
pub(crate) struct Slot {
    streams: Rc<Streams>,
    key: Option<usize>,
}

impl Slot {
    /// The timer is to look no longer: the stream became a tunnel, which has its own.
    pub(crate) fn unwatch(&mut self) {
        if let Some(key) = self.key.take() {
            self.streams.watched.borrow_mut().remove(key);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.unwatch();
        self.streams.open.set(self.streams.open.get() - 1);
    }
}

impl Streams {
    fn open(self: &Rc<Self>, exchange: &Rc<Exchange>) -> Slot {
        self.open.set(self.open.get() + 1);
        self.begun.set(self.begun.get() + 1);
        let watch = Watch::new(Instant::now(), None);
        let key = self.watched.borrow_mut().insert((Rc::clone(exchange), watch));
        Slot {
            streams: Rc::clone(self),
            key: Some(key),
        }
    }

    /// Looks at every stream; those that waited too long end by themselves.
    fn look(&self, worker: &Worker, now: Instant) {
        for (_, (exchange, watch)) in self.watched.borrow_mut().iter_mut() {
            match (exchange.phase.get(), watch.look(exchange, &worker.limits, now)) {
                (_, Verdict::Expire | Verdict::Cut) => {
                    exchange.expired.set(true);
                    exchange.wake();
                }
                // It looks itself whether it should wait on.
                (Phase::Waiting, _) => exchange.wake(),
                _ => {}
            }
        }
    }
}

/// Serves the connection until it closes. `before` was read already.
pub(crate) async fn run<S>(worker: &Rc<Worker>, client: Rc<Client>, stream: S, before: Bytes)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stats = worker.stats();
    let mut socket = Socket {
        stream,
        read: BytesMut::from(&before[..]),
    };
    stats.http2_connections.add(1);
    let polite = match tokio::time::timeout(worker.limits.head, socket.preface()).await {
        Ok(Some(true)) => serve(worker, client, &mut socket).await,
        Ok(Some(false)) => {
            stats.bad_heads.add(1);
            true
        }
        Ok(None) | Err(_) => false,
    };
    stats.http2_connections.sub(1);
    if polite {
        linger(socket.stream).await;
    }
}

/// A connection's socket, and what was read of it.
struct Socket<S> {
    stream: S,
    read: BytesMut,
}

/// How a connection came to its end.
enum End {
    /// By both sides' leave: the last words may still be on their way.
    Said,
    /// The client is gone.
    Gone,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Reads the preface: whether it is one; none when the client has gone.
    async fn preface(&mut self) -> Option<bool> {
        loop {
            let n = self.read.len().min(frame::PREFACE.len());
            if self.read[..n] != frame::PREFACE[..n] {
                return Some(false);
            }
            if n == frame::PREFACE.len() {
                self.read.advance(n);
                return Some(true);
            }
            match self.stream.read_buf(&mut self.read).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return None,
            }
        }
    }

    /// Reads and writes as much as there is and the client takes.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        core: &Rc<Core>,
        spare: &dyn Fn() -> HeaderMap,
        mut begin: impl FnMut(Begun),
        mut fault: impl FnMut(Fault),
    ) -> Poll<End> {
        loop {
            let mut waits = false;
            while !core.ends() && !core.is_full() {
                if let Err(found) = frames(core, &mut self.read, spare, &mut begin) {
                    fault(found);
                    let code = match found {
                        Fault::Error(code) => code,
                        Fault::Flood(_) => Code::EnhanceYourCalm,
                    };
                    core.end(code);
                    break;
                }
                if core.is_full() {
                    break;
                }
                if self.read.is_empty() {
                    make_room(&mut self.read, READ);
                } else {
                    self.read.reserve(READ);
                }
                match poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.read) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(End::Gone),
                    Poll::Pending => {
                        waits = true;
                        break;
                    }
                }
            }
            if self.read.is_empty() {
                // Who waits holds nothing.
                self.read = BytesMut::new();
            }
            let mut broken = false;
            core.write(|bytes| match Pin::new(&mut self.stream).poll_write(cx, bytes) {
                Poll::Ready(Ok(n @ 1..)) => Some(n),
                Poll::Ready(Ok(0) | Err(_)) => {
                    broken = true;
                    None
                }
                Poll::Pending => None,
            });
            // TLS may still hold what was written.
            if broken || matches!(Pin::new(&mut self.stream).poll_flush(cx), Poll::Ready(Err(_))) {
                return Poll::Ready(End::Gone);
            }
            if core.is_over() {
                return Poll::Ready(End::Said);
            }
            if waits || core.ends() || core.is_full() {
                return Poll::Pending;
            }
        }
    }
}

/// Takes the frames that are whole.
fn frames(
    core: &Rc<Core>,
    read: &mut BytesMut,
    spare: &dyn Fn() -> HeaderMap,
    begin: &mut impl FnMut(Begun),
) -> Result<(), Fault> {
    while let Some(bytes) = read.first_chunk() {
        let head = Head::read(*bytes);
        if head.length > frame::PAYLOAD {
            return Err(Fault::Error(Code::FrameSize));
        }
        let Some(payload) = read.get(frame::HEAD..frame::HEAD + head.length) else {
            break;
        };
        core.frame(&head, payload, spare, begin)?;
        read.advance(frame::HEAD + head.length);
        if core.is_full() {
            break;
        }
    }
    Ok(())
}

/// `true` when the last words may still be on their way.
async fn serve<S>(worker: &Rc<Worker>, client: Rc<Client>, socket: &mut Socket<S>) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let start = Instant::now();
    let core = Core::new(worker.http2, start);
    let streams = Rc::new(Streams {
        watched: RefCell::default(),
        open: Cell::new(0),
        begun: Cell::new(0),
    });
    let mut timer = pin!(tokio::time::sleep(worker.tick));
    let mut drain = pin!(worker.drain.cancelled());
    let mut blocks = BlockWatch::default();
    // When there was last a stream, and how many there had been.
    let mut busy = (start, 0);
    let mut draining = false;
    let mut closing: Option<Instant> = None;
    let spare = || worker.fields();
    let begin = |begun: Begun| {
        let exchange = Rc::new(Exchange::of_stream(Rc::clone(&client), worker.limits.patience));
        let slot = streams.open(&exchange);
        worker.stats().http2_requests.add(1);
        let worker = Rc::clone(worker);
        // Boxed, since the runtime moves a task's future several times.
        tokio::task::spawn_local(Box::pin(stream::run(worker, exchange, slot, begun)));
    };
    let fault = |fault: Fault| {
        let stats = worker.stats();
        stats.bad_heads.add(1);
        if let Fault::Flood(kind) = fault {
            stats.http2_floods.add(1);
            tracing::info!(client = %client.ip, kind, "an HTTP/2 connection was closed: a flood");
        }
    };
    let end = poll_fn(|cx| {
        core.listen(cx.waker());
        loop {
            if let Poll::Ready(end) = socket.poll(cx, &core, &spare, begin, fault) {
                return Poll::Ready(end);
            }
            if core.ends() && closing.is_none() {
                closing = Some(Instant::now() + CLOSING);
            }
            if drain.as_mut().poll(cx).is_ready() && !draining {
                draining = true;
                core.go();
                continue;
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            timer.as_mut().reset((now + worker.tick).into());
            // What came before a client knew is served.
            if closing.is_some_and(|until| now >= until) && (core.ends() || streams.open.get() == 0) {
                return Poll::Ready(End::Said);
            }
            streams.look(worker, now);
            if blocks.is_late(core.look(now), worker.limits.head, now) {
                core.end(Code::EnhanceYourCalm);
                continue;
            }
            if streams.open.get() > 0 || streams.begun.get() > busy.1 {
                busy = (now, streams.begun.get());
            }
            let most = if busy.1 > 0 {
                worker.limits.idle
            } else {
                worker.limits.head
            };
            if closing.is_none() && now.saturating_duration_since(busy.0) >= most {
                closing = Some(now + CLOSING);
                core.go();
            }
        }
    })
    .await;
    core.gone();
    matches!(end, End::Said)
}

/// Ends our side and reads away what still comes, for a moment: closing with unread bytes would make the client's stack
/// discard what was said last.
async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buffer = vec![0; 16 * 1024];
    let read_away = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut left = LEFT;
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            left = left.saturating_sub(n);
            if left == 0 {
                return;
            }
        }
    };
    // Whoever has not closed by then is cut off.
    let _ = tokio::time::timeout(CLOSING, read_away).await;
}

/// What frames, behind a preface or not, lead to when they come in pieces of so many bytes: what is written, the requests, and why
/// the connection ends.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn replay(data: &[u8], size: usize) -> (Vec<u8>, Vec<String>, Option<Fault>) {
    let data = data.strip_prefix(frame::PREFACE).unwrap_or(data);
    let core = Core::new(limits(&Config::default()), Instant::now());
    let (mut read, mut begun, mut found) = (BytesMut::new(), Vec::new(), None);
    for part in data.chunks(size) {
        read.extend_from_slice(part);
        let begin = &mut |one: Begun| begun.push((format!("{:?}", one.head.parts), one.stream.open()));
        if let Err(fault) = frames(&core, &mut read, &HeaderMap::new, begin) {
            found = Some(fault);
            core.end(Code::Protocol);
            break;
        }
    }
    let mut out = Vec::new();
    core.write(|bytes| {
        out.extend_from_slice(bytes);
        Some(bytes.len())
    });
    let mut rest = &out[..];
    while let Some((head, payload)) = rest.split_first_chunk() {
        rest = payload.split_at(Head::read(*head).length).1;
    }
    assert!(rest.is_empty(), "half a frame was written");
    (out, begun.into_iter().map(|(head, _)| head).collect(), found)
}
