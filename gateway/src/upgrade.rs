//! Tunnels: connections that became something else than HTTP (WebSocket). Bytes are copied as they come, in both
//! directions, through one buffer per worker: a tunnel holds memory only while its receiver is slower than its sender.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use futures::future::OptionFuture;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::departure::FAREWELL;
use crate::flight::Flight;
use crate::websocket::{self, Frames};
use crate::worker::Worker;

/// How long the other direction may be silent after one side has closed.
const AFTER_CLOSE: Duration = Duration::from_secs(5);

/// The endpoint's side of a tunnel.
pub(crate) enum Side {
    /// A connection, and what was read of it already.
    Socket(TcpStream, Bytes),
    /// A stream of a connection that others share.
    Stream(OnUpgrade),
}

/// A request that became a tunnel; it counts as under way until the tunnel ends.
pub(crate) struct Tunnel {
    /// The endpoint's side.
    pub(crate) endpoint: Side,
    pub(crate) flight: Box<Flight>,
    /// Longest time without a byte in either direction.
    pub(crate) idle: Duration,
    /// It speaks WebSocket, which has a way to say goodbye.
    pub(crate) websocket: bool,
}

/// One direction.
struct Pipe {
    /// Read but not written.
    rest: Bytes,
    unflushed: bool,
    ended: bool,
    closed: bool,
    bytes: u64,
    /// Where the WebSocket's frames are that were written.
    frames: Option<Frames>,
}

impl Pipe {
    fn new(rest: Bytes) -> Self {
        Self {
            rest,
            unflushed: false,
            ended: false,
            closed: false,
            bytes: 0,
            frames: None,
        }
    }

    /// Copies until there is nothing to read or no room to write; ready when the sender has closed and the receiver knows.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        scratch: &mut [u8],
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.rest.is_empty() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.rest))?;
                self.unflushed = true;
                wrote(&mut self.bytes, &mut self.frames, &self.rest[..n])?;
                self.rest.advance(n);
                continue;
            }
            if self.ended {
                if !self.closed {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.closed = true;
                }
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(scratch);
            if Pin::new(&mut *from).poll_read(cx, &mut buffer)?.is_pending() {
                // TLS may still hold what was written.
                if self.unflushed && Pin::new(&mut *to).poll_flush(cx)?.is_ready() {
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
            let read = buffer.filled();
            if read.is_empty() {
                self.ended = true;
                continue;
            }
            let n = match Pin::new(&mut *to).poll_write(cx, read) {
                Poll::Ready(written) => {
                    let n = written?;
                    self.unflushed = true;
                    wrote(&mut self.bytes, &mut self.frames, &read[..n])?;
                    n
                }
                Poll::Pending => 0,
            };
            self.rest = Bytes::copy_from_slice(&read[n..]);
        }
    }

    /// Puts a close frame behind what was written, if one may stand there; `true` once nothing more is to be said.
    fn goodbye(&mut self) -> bool {
        let Some(frames) = &mut self.frames else { return true };
        if self.ended || frames.closed {
            return self.rest.is_empty();
        }
        if self.rest.is_empty() && frames.between() {
            self.rest = Bytes::from_static(&websocket::GOING_AWAY);
            self.ended = true;
        }
        false
    }
}

fn wrote(bytes: &mut u64, frames: &mut Option<Frames>, written: &[u8]) -> io::Result<()> {
    if written.is_empty() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    *bytes += written.len() as u64;
    if let Some(frames) = frames {
        frames.pass(written);
    }
    Ok(())
}

/// Copies until both sides have closed, one breaks, or nothing moves for too long. `before` is what the client sent ahead.
pub(crate) async fn run(
    worker: &Rc<Worker>,
    client: impl AsyncRead + AsyncWrite + Unpin,
    before: Bytes,
    tunnel: Tunnel,
) {
    let Tunnel {
        endpoint,
        mut flight,
        idle,
        websocket,
    } = tunnel;
    let mut down = Pipe::new(Bytes::new());
    down.frames = websocket.then(Frames::default);
    let mut pipes = (Pipe::new(before), down);
    match endpoint {
        Side::Socket(endpoint, rest) => {
            pipes.1.rest = rest;
            copy(worker, client, endpoint, pipes, flight, idle).await;
        }
        Side::Stream(upgraded) => match upgraded.await {
            Ok(endpoint) => copy(worker, client, TokioIo::new(endpoint), pipes, flight, idle).await,
            Err(_) => flight.cut = true,
        },
    }
}

/// The same between two sides; `pipes` are the way to the endpoint and the way back.
async fn copy(
    worker: &Rc<Worker>,
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut endpoint: impl AsyncRead + AsyncWrite + Unpin,
    pipes: (Pipe, Pipe),
    mut flight: Box<Flight>,
    idle: Duration,
) {
    let (mut up, mut down) = pipes;
    let mut leave = pin!(worker.leave.cancelled());
    // Only a WebSocket has a word for the end of its endpoint's time.
    let departing = flight.entered().filter(|_| down.frames.is_some());
    let departing = departing.map(|entered| Arc::clone(entered.endpoint()));
    let mut departs = pin!(OptionFuture::from(departing.as_ref().map(|e| e.departure.wait())));
    let mut told = None;
    let mut listens = false;
    worker.stats().tunnels_open.add(1);

    let look = (idle / 4).clamp(Duration::from_millis(50), Duration::from_secs(5));
    let mut timer = pin!(tokio::time::sleep(look));
    let mut moved = (0, Instant::now());
    let result = poll_fn(|cx| {
        let mut scratch = worker.scratch.borrow_mut();
        let sent = up.poll(cx, &mut client, &mut endpoint, &mut scratch)?;
        let mut received = down.poll(cx, &mut endpoint, &mut client, &mut scratch)?;
        if !listens {
            // Polled once, so that the end of the drain wakes this task; whether it has come, the flag tells.
            listens = true;
            let _ = leave.as_mut().poll(cx);
            let _ = departs.as_mut().poll(cx);
        }
        let over = departing.as_ref().is_some_and(|e| e.departure.is_over());
        if over || worker.leaving.get() {
            let until = *told.get_or_insert_with(|| Instant::now() + FAREWELL);
            let mut said = down.goodbye();
            while !said {
                received = down.poll(cx, &mut endpoint, &mut client, &mut scratch)?;
                if received.is_pending() {
                    break;
                }
                said = down.goodbye();
            }
            // Whoever is still there may say goodbye too, for which its connection must stand.
            if said && (up.ended || worker.leaving.get()) {
                return Poll::Ready(Ok(()));
            }
            timer.as_mut().reset(until.into());
            return timer.as_mut().poll(cx).map(Ok);
        }
        if sent.is_ready() && received.is_ready() {
            return Poll::Ready(io::Result::Ok(()));
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if moved.0 != up.bytes + down.bytes {
                moved = (up.bytes + down.bytes, now);
            }
            let most = if up.ended || down.ended {
                idle.min(AFTER_CLOSE)
            } else {
                idle
            };
            let still = now.saturating_duration_since(moved.1);
            if still >= most {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let next = if up.ended || down.ended {
                look.min(Duration::from_secs(1))
            } else {
                look
            };
            timer.as_mut().reset((now + next).into());
        }
        Poll::Pending
    })
    .await;
    worker.stats().tunnels_open.sub(1);
    flight.bytes_out = down.bytes;
    flight.cut = result.is_err();
}
