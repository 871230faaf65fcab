//! Copying a connection's bytes, both ways at once, until both sides have said all they had to say. Through one buffer per
//! worker: a connection holds memory only while its receiver is slower than its sender.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

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

/// Which side of a direction broke.
enum Broken {
    Sender,
    Receiver,
}

/// One direction.
#[derive(Default)]
struct Pipe {
    /// Read but not written.
    rest: Bytes,
    ended: bool,
    closed: bool,
    bytes: u64,
}

impl Pipe {
    /// Copies until there is nothing to read or no room to write; ready when the sender has ended and the receiver knows.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        scratch: &mut [u8],
    ) -> Poll<Result<(), Broken>> {
        loop {
            if !self.rest.is_empty() {
                let n = wrote(&ready!(Pin::new(&mut *to).poll_write(cx, &self.rest)))?;
                self.bytes += n as u64;
                self.rest.advance(n);
                continue;
            }
            if self.ended {
                if !self.closed {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(|_| Broken::Receiver)?;
                    self.closed = true;
                }
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *from).poll_read(cx, &mut buffer)).map_err(|_| Broken::Sender)?;
            let read = buffer.filled();
            if read.is_empty() {
                self.ended = true;
                continue;
            }
            let n = match Pin::new(&mut *to).poll_write(cx, read) {
                Poll::Ready(written) => wrote(&written)?,
                Poll::Pending => 0,
            };
            self.bytes += n as u64;
            self.rest = Bytes::copy_from_slice(&read[n..]);
        }
    }
}

fn wrote(written: &io::Result<usize>) -> Result<usize, Broken> {
    match written {
        Ok(n @ 1..) => Ok(*n),
        Ok(0) | Err(_) => Err(Broken::Receiver),
    }
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
        let sent = up.poll(cx, client, endpoint, &mut scratch);
        let received = down.poll(cx, endpoint, client, &mut scratch);
        moved(up.bytes - told.0, down.bytes - told.1);
        told = (up.bytes, down.bytes);
        let broke =
            matches!(sent, Poll::Ready(Err(Broken::Receiver))) || matches!(received, Poll::Ready(Err(Broken::Sender)));
        let silent = down.bytes == 0 && down.rest.is_empty() && up.bytes > 0;
        unanswered |= silent && !up.ended && (down.ended || broke);
        match (sent, received) {
            (Poll::Ready(Err(Broken::Sender)), _) | (_, Poll::Ready(Err(Broken::Receiver))) => {
                return Poll::Ready(End::Client);
            }
            _ if unanswered && (broke || up.closed) => return Poll::Ready(End::Unanswered),
            _ if broke => return Poll::Ready(End::Endpoint),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Closed),
            _ => {}
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
