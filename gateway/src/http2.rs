//! One HTTP/2 connection from its preface to its close: it takes streams, each of which is served by a task of its own
//! ([`crate::http2_stream`]), keeps their time limits with one timer, and ends connections that flood.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use h2::Reason;
use h2::server::{Builder, Connection};
use slab::Slab;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use crate::client::Client;
use crate::config::Config;
use crate::exchange::{Exchange, Phase, Verdict, Watch};
use crate::http2_guard::{Fault, Guard, GuardWatch};
use crate::http2_stream;
use crate::worker::Worker;

/// What an HTTP/2 connection begins with, as far as it takes to know it: no HTTP/1 method is called so.
pub(crate) const PREFACE: &[u8] = b"PRI ";

/// How long a connection that is to close may take to send what is left.
const CLOSING: Duration = Duration::from_secs(1);

/// Most bytes that are read away meanwhile.
const LEFT: usize = 1024 * 1024;

/// The settings of all HTTP/2 connections of clients.
pub(crate) fn builder(config: &Config) -> Builder {
    let mut builder = Builder::new();
    let window = u32::try_from(config.buffer_bytes).unwrap_or(128 * 1024);
    // The list counts 32 bytes for each field (RFC 9113 6.5.2).
    let list = config.max_head_bytes + 32 * config.max_head_fields;
    builder
        .initial_window_size(window)
        .initial_connection_window_size(window.saturating_mul(4))
        .max_frame_size(16_384)
        .max_header_list_size(u32::try_from(list).unwrap_or(u32::MAX))
        .header_table_size(4_096)
        .max_concurrent_streams(config.http2_max_streams)
        .max_send_buffer_size(64 * 1024)
        // Streams that a client cancelled before they were taken (CVE-2023-44487), that the gateway had to cancel for errors of
        // the client's (CVE-2025-8671, "made you reset"), and that are remembered after their reset.
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(Some(256))
        .max_concurrent_reset_streams(50)
        .reset_stream_duration(Duration::from_secs(1))
        .enable_connect_protocol();
    builder
}

/// The open streams of a connection.
pub(crate) struct Streams {
    watched: RefCell<Slab<(Rc<Exchange>, Watch)>>,
    open: Cell<usize>,
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
    let guard = Rc::new(Guard::new());
    let stream = Rc::new(RefCell::new(stream));
    let watched = Watched {
        stream: Rc::clone(&stream),
        before,
        guard: Rc::clone(&guard),
    };
    stats.http2_connections.add(1);
    let handshake = worker.http2.handshake::<_, Bytes>(watched);
    let polite = match tokio::time::timeout(worker.limits.head, handshake).await {
        Ok(Ok(connection)) => serve(worker, client, connection, &guard).await,
        Ok(Err(error)) => {
            if !error.is_io() {
                stats.bad_heads.add(1);
            }
            false
        }
        Err(_) => false,
    };
    stats.http2_connections.sub(1);
    if polite && let Some(stream) = Rc::into_inner(stream) {
        linger(stream.into_inner()).await;
    }
}

/// `true` when the last words may still be on their way.
async fn serve<S>(
    worker: &Rc<Worker>,
    client: Rc<Client>,
    mut connection: Connection<Watched<S>, Bytes>,
    guard: &Rc<Guard>,
) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let streams = Rc::new(Streams {
        watched: RefCell::default(),
        open: Cell::new(0),
    });
    let start = Instant::now();
    let mut timer = pin!(tokio::time::sleep(worker.tick));
    let mut drain = pin!(worker.drain.cancelled());
    let mut frames = GuardWatch::new(start);
    // When there was last a stream, and whether there ever was one.
    let (mut busy, mut used) = (start, false);
    let mut draining = false;
    let mut closing: Option<Instant> = None;
    let ended = poll_fn(|cx| {
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    used = true;
                    let exchange = Rc::new(Exchange::of_stream(Rc::clone(&client), worker.limits.patience));
                    let slot = streams.open(&exchange);
                    worker.stats().http2_requests.add(1);
                    let worker = Rc::clone(worker);
                    // Boxed, since the runtime moves a task's future several times.
                    tokio::task::spawn_local(Box::pin(http2_stream::run(worker, exchange, slot, request, respond)));
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(error)),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {}
            }
            if closing.is_none()
                && let Some(fault) = guard.fault()
            {
                let code = match fault {
                    Fault::Flood(kind) => {
                        worker.stats().http2_floods.add(1);
                        tracing::info!(client = %client.ip, kind, "an HTTP/2 connection was closed: a flood");
                        Reason::ENHANCE_YOUR_CALM
                    }
                    Fault::NoSettings => {
                        worker.stats().bad_heads.add(1);
                        Reason::PROTOCOL_ERROR
                    }
                };
                closing = Some(Instant::now() + CLOSING);
                connection.abrupt_shutdown(code);
                continue;
            }
            if drain.as_mut().poll(cx).is_ready() && !draining {
                draining = true;
                connection.graceful_shutdown();
                continue;
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            timer.as_mut().reset((now + worker.tick).into());
            if closing.is_some_and(|until| now >= until) {
                return Poll::Ready(None);
            }
            streams.look(worker, now);
            if frames.look(guard, worker.limits.head, now) && closing.is_none() {
                closing = Some(now + CLOSING);
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                continue;
            }
            if streams.open.get() > 0 {
                busy = now;
            }
            let most = if used { worker.limits.idle } else { worker.limits.head };
            if closing.is_none() && now.saturating_duration_since(busy) >= most {
                closing = Some(now + CLOSING);
                connection.graceful_shutdown();
                continue;
            }
        }
    })
    .await;
    match ended {
        Some(error) => {
            if error.is_library() {
                worker.stats().bad_heads.add(1);
                if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
                    worker.stats().http2_floods.add(1);
                }
            }
            !error.is_io()
        }
        None => true,
    }
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

/// A client's connection whose frames are counted. Shared with [`run`], which outlives the library's use of it.
struct Watched<S> {
    stream: Rc<RefCell<S>>,
    before: Bytes,
    guard: Rc<Guard>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.guard.fault().is_some() {
            // The connection is about to be closed, by whoever has polled this.
            return Poll::Pending;
        }
        let filled = buf.filled().len();
        let result = if self.before.is_empty() {
            Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, buf)
        } else {
            let n = self.before.len().min(buf.remaining());
            buf.put_slice(&self.before[..n]);
            self.before.advance(n);
            Poll::Ready(Ok(()))
        };
        self.guard.read(&buf.filled()[filled..]);
        result
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &result {
            self.guard.wrote(*n);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut *self.stream.borrow_mut()).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx)
    }
}
