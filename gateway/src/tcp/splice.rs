//! Copying a connection's bytes, both ways at once, until both sides have said all they had to say.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::pipe::{Party, Pipe, broken};
use crate::worker::Worker;

/// How long the other direction may be silent after one side has ended: long enough for an answer to a request that was ended
/// by closing, and not as long as a peer that has vanished would be waited for.
const AFTER_END: Duration = Duration::from_secs(60);

/// How the copying ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides have closed.
    Closed,
    /// Nothing moved for too long.
    Idle,
    /// The client's side broke.
    Client,
    /// The endpoint's side broke.
    Endpoint,
    /// The endpoint ended it without a word to what the client had said.
    Unanswered,
}

/// Copies between the two. `moved` hears how many bytes came from the client and how many from the endpoint, as they move.
pub(super) async fn splice(
    worker: &Worker,
    client: &mut TcpStream,
    endpoint: &mut TcpStream,
    idle: Duration,
    mut moved: impl FnMut(u64, u64),
) -> End {
    let mut up = Pipe::default();
    let mut down = Pipe::default();
    let mut told = (0, 0);
    let look = (idle / 4).clamp(Duration::from_millis(50), Duration::from_secs(5));
    let mut timer = pin!(tokio::time::sleep(look));
    let mut last = (0, Instant::now());
    let mut unanswered = false;
    poll_fn(|cx| {
        let mut scratch = worker.scratch.borrow_mut();
        let sent = up.poll(cx, client, endpoint, &mut scratch, |_| {});
        let received = down.poll(cx, endpoint, client, &mut scratch, |_| {});
        moved(up.bytes - told.0, down.bytes - told.1);
        told = (up.bytes, down.bytes);
        let who = broken(sent, received);
        let broke = who == Some(Party::Endpoint);
        let silent = down.bytes == 0 && down.rest.is_empty() && up.bytes > 0;
        unanswered |= silent && !up.ended && (down.ended || broke);
        match who {
            Some(Party::Client) => return Poll::Ready(End::Client),
            _ if unanswered && (broke || up.closed) => return Poll::Ready(End::Unanswered),
            Some(Party::Endpoint) => return Poll::Ready(End::Endpoint),
            None if sent.is_ready() && received.is_ready() => return Poll::Ready(End::Closed),
            None => {}
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let bytes = up.bytes + down.bytes;
            if last.0 != bytes {
                last = (bytes, now);
            }
            let half = up.ended || down.ended;
            let most = if half { idle.min(AFTER_END) } else { idle };
            if now.saturating_duration_since(last.1) >= most {
                return Poll::Ready(End::Idle);
            }
            timer.as_mut().reset((now + look).into());
        }
        Poll::Pending
    })
    .await
}
