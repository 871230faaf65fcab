//! Tunnels: connections that became something else than HTTP (WebSocket). Bytes are copied as they come, in both directions.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::OptionFuture;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::departure::FAREWELL;
use crate::flight::Flight;
use crate::pipe::{Party, Pipe, broken};
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

/// Notes what is written to the client.
fn follow(frames: &mut Option<Frames>) -> impl FnMut(&[u8]) {
    move |written| {
        if let Some(frames) = frames {
            frames.pass(written);
        }
    }
}

/// Puts a close frame behind what was written to the client, if one may stand there; `true` once nothing more is to be said.
fn goodbye(down: &mut Pipe, frames: Option<&Frames>) -> bool {
    let Some(frames) = frames else { return true };
    if down.ended || frames.closed {
        return down.rest.is_empty();
    }
    if down.rest.is_empty() && frames.between() {
        down.rest = Bytes::from_static(&websocket::GOING_AWAY);
        down.ended = true;
    }
    false
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
    let frames = websocket.then(Frames::default);
    let rests = |up, down| [up, down].map(Pipe::after);
    match endpoint {
        Side::Socket(endpoint, rest) => {
            copy(worker, client, endpoint, rests(before, rest), frames, flight, idle).await;
        }
        Side::Stream(upgraded) => match upgraded.await {
            Ok(endpoint) => {
                let pipes = rests(before, Bytes::new());
                copy(worker, client, TokioIo::new(endpoint), pipes, frames, flight, idle).await;
            }
            Err(_) => flight.cut = true,
        },
    }
}

/// The same between two sides; `pipes` are the way to the endpoint and the way back, `frames` the WebSocket's that go back.
async fn copy(
    worker: &Rc<Worker>,
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut endpoint: impl AsyncRead + AsyncWrite + Unpin,
    pipes: [Pipe; 2],
    mut frames: Option<Frames>,
    mut flight: Box<Flight>,
    idle: Duration,
) {
    let [mut up, mut down] = pipes;
    let mut leave = pin!(worker.leave.cancelled());
    // Only a WebSocket has a word for the end of its endpoint's time.
    let departing = flight.entered().filter(|_| frames.is_some());
    let departing = departing.map(|entered| Arc::clone(entered.endpoint()));
    let mut departs = pin!(OptionFuture::from(departing.as_ref().map(|e| e.departure.wait())));
    let mut told = None;
    let mut listens = false;
    worker.stats().tunnels_open.add(1);

    let look = (idle / 4).clamp(Duration::from_millis(50), Duration::from_secs(5));
    let mut timer = pin!(tokio::time::sleep(look));
    let mut moved = (0, Instant::now());
    flight.cut = poll_fn(|cx| {
        let mut scratch = worker.scratch.borrow_mut();
        let sent = up.poll(cx, &mut client, &mut endpoint, &mut scratch, |_| {});
        let received = down.poll(cx, &mut endpoint, &mut client, &mut scratch, follow(&mut frames));
        if let Some(who) = broken(sent, received) {
            // What is broken off behind an end that the client or the endpoint has said is no fault.
            let said = up.ended || told.is_some() || frames.as_ref().is_some_and(|frames| frames.closed);
            return Poll::Ready(who == Party::Endpoint && !said);
        }
        if !listens {
            // Polled once, so that the end of the drain wakes this task; whether it has come, the flag tells.
            listens = true;
            let _ = leave.as_mut().poll(cx);
            let _ = departs.as_mut().poll(cx);
        }
        let over = departing.as_ref().is_some_and(|e| e.departure.is_over());
        if over || worker.leaving.get() {
            let until = *told.get_or_insert_with(|| Instant::now() + FAREWELL);
            let mut said = goodbye(&mut down, frames.as_ref());
            while !said {
                match down.poll(cx, &mut endpoint, &mut client, &mut scratch, follow(&mut frames)) {
                    Poll::Ready(Ok(())) => said = goodbye(&mut down, frames.as_ref()),
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => break,
                }
            }
            // Whoever is still there may say goodbye too, for which its connection must stand.
            if said && (up.ended || worker.leaving.get()) {
                return Poll::Ready(false);
            }
            timer.as_mut().reset(until.into());
            return timer.as_mut().poll(cx).map(|()| false);
        }
        if sent.is_ready() && received.is_ready() {
            return Poll::Ready(false);
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
                return Poll::Ready(false);
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
}
