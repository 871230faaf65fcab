//! One direction of a connection whose bytes pass as they come: read from one side and written to the other through one buffer per
//! worker. It holds memory only while its receiver is slower than its sender.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Which side of a direction broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    Sender,
    Receiver,
}

/// How a direction stands after a poll; ready when its sender has ended and its receiver knows, or one of them broke.
pub(crate) type Passed = Poll<Result<(), Broken>>;

/// A side of two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    Client,
    Endpoint,
}

/// Who broke, as the way to the endpoint and the way back say. If both did it is the client: what follows on that is no fault of
/// the endpoint's.
pub(crate) fn broken(up: Passed, down: Passed) -> Option<Party> {
    match (up, down) {
        (Poll::Ready(Err(Broken::Sender)), _) | (_, Poll::Ready(Err(Broken::Receiver))) => Some(Party::Client),
        (Poll::Ready(Err(Broken::Receiver)), _) | (_, Poll::Ready(Err(Broken::Sender))) => Some(Party::Endpoint),
        _ => None,
    }
}

/// One direction.
#[derive(Default)]
pub(crate) struct Pipe {
    /// Read but not written.
    pub(crate) rest: Bytes,
    unflushed: bool,
    /// The sender has ended.
    pub(crate) ended: bool,
    /// The receiver knows.
    pub(crate) closed: bool,
    /// Written so far.
    pub(crate) bytes: u64,
}

impl Pipe {
    /// Begins with what was read already.
    pub(crate) fn after(rest: Bytes) -> Self {
        Self {
            rest,
            ..Self::default()
        }
    }

    /// Copies until there is nothing to read or no room to write. `seen` is shown what is written.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        scratch: &mut [u8],
        mut seen: impl FnMut(&[u8]),
    ) -> Passed {
        loop {
            if !self.rest.is_empty() {
                let n = wrote(&ready!(Pin::new(&mut *to).poll_write(cx, &self.rest)))?;
                seen(&self.rest[..n]);
                self.passed(n);
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
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Sender)),
                Poll::Pending => {
                    // TLS may still hold what was written.
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|_| Broken::Receiver)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
            let read = buffer.filled();
            if read.is_empty() {
                self.ended = true;
                continue;
            }
            let n = match Pin::new(&mut *to).poll_write(cx, read) {
                Poll::Ready(written) => wrote(&written)?,
                Poll::Pending => 0,
            };
            seen(&read[..n]);
            self.passed(n);
            self.rest = Bytes::copy_from_slice(&read[n..]);
        }
    }

    fn passed(&mut self, n: usize) {
        self.unflushed |= n > 0;
        self.bytes += n as u64;
    }
}

fn wrote(written: &io::Result<usize>) -> Result<usize, Broken> {
    match written {
        Ok(n @ 1..) => Ok(*n),
        Ok(0) | Err(_) => Err(Broken::Receiver),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_to_blame_if_both_broke() {
        let (well, still) = (Poll::Ready(Ok(())), Poll::Pending);
        let (sender, receiver) = (Poll::Ready(Err(Broken::Sender)), Poll::Ready(Err(Broken::Receiver)));
        for other in [well, still] {
            assert_eq!(broken(sender, other), Some(Party::Client));
            assert_eq!(broken(other, receiver), Some(Party::Client));
            assert_eq!(broken(receiver, other), Some(Party::Endpoint));
            assert_eq!(broken(other, sender), Some(Party::Endpoint));
            assert_eq!(broken(well, other), None);
        }
        assert_eq!(broken(sender, sender), Some(Party::Client));
        assert_eq!(broken(receiver, receiver), Some(Party::Client));
        assert_eq!(broken(receiver, sender), Some(Party::Endpoint));
    }
}
