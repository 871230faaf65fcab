//! The body of an answer as it comes from an endpoint.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use tokio::net::tcp::OwnedReadHalf;
use tokio::task::JoinHandle;
use tokio_util::io::poll_read_buf;

use super::Http1;
use super::decode::Decoder;
use super::landing::{LONG, SPACE, make_room};
use crate::body::AnswerCut;

/// Bytes that are read at once at first, doubled while as many come.
pub(crate) const READ: usize = 16 * 1024;

/// A body that is still coming.
pub(crate) struct Arriving {
    wire: Wire,
    decoder: Decoder,
    /// Read, not yet looked at.
    rest: Bytes,
    buffer: BytesMut,
    /// So much is read at once.
    size: usize,
    /// It has broken off.
    cut: bool,
}

/// What it comes on.
enum Wire {
    /// A connection whose request is written; it may be used again if so.
    Whole { http1: Box<Http1>, keeps: bool },
    /// One whose request is still being written.
    Half {
        read: OwnedReadHalf,
        sending: JoinHandle<()>,
        broken: Rc<Cell<bool>>,
    },
    /// None any more.
    Gone,
}

impl Arriving {
    pub(super) fn whole(http1: Box<Http1>, keeps: bool, decoder: Decoder, rest: Bytes) -> Self {
        Self::new(Wire::Whole { http1, keeps }, decoder, rest)
    }

    pub(super) fn half(
        read: OwnedReadHalf,
        sending: JoinHandle<()>,
        broken: Rc<Cell<bool>>,
        decoder: Decoder,
        rest: Bytes,
    ) -> Self {
        Self::new(Wire::Half { read, sending, broken }, decoder, rest)
    }

    fn new(wire: Wire, decoder: Decoder, rest: Bytes) -> Self {
        // Where much came along with the head, much is to come: as much as there is room for.
        let size = if rest.len() >= LONG { 4 * SPACE } else { READ };
        Self {
            wire,
            decoder,
            rest,
            buffer: BytesMut::new(),
            size,
            cut: false,
        }
    }

    /// All of it came.
    pub(crate) fn is_done(&self) -> bool {
        self.decoder.is_done() && !self.cut
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.decoder.left().map(SizeHint::with_exact).unwrap_or_default()
    }

    /// The connection, once all came, if it waits for the next request.
    pub(crate) fn release(&mut self) -> Option<Box<Http1>> {
        if !self.is_done() || !self.rest.is_empty() {
            return None;
        }
        match std::mem::replace(&mut self.wire, Wire::Gone) {
            Wire::Whole { http1, keeps: true } => Some(http1),
            _ => None,
        }
    }

    /// The next part, of at most `room` bytes.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerCut>>> {
        if self.cut {
            return Poll::Ready(Some(Err(AnswerCut)));
        }
        loop {
            if self.decoder.is_done() {
                return Poll::Ready(None);
            }
            if !self.rest.is_empty() {
                match self.decoder.next(&mut self.rest) {
                    Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                    Ok(None) => continue,
                    Err(_) => return self.cut(cx),
                }
            }
            let most = self.decoder.left().and_then(|left| usize::try_from(left).ok());
            // One byte more than there should be: a full buffer would say that there may be more, and cost another look.
            let size = self.size.min(room);
            let most = most.map_or(size, |left| left.saturating_add(1).min(size));
            make_room(&mut self.buffer, most);
            let mut buffer = (&mut self.buffer).limit(most);
            let read = match &mut self.wire {
                Wire::Whole { http1, .. } => poll_read_buf(Pin::new(&mut http1.stream), cx, &mut buffer),
                Wire::Half { read, .. } => poll_read_buf(Pin::new(read), cx, &mut buffer),
                Wire::Gone => return self.cut(cx),
            };
            let Poll::Ready(read) = read else {
                // Who waits holds nothing.
                self.buffer = BytesMut::new();
                return Poll::Pending;
            };
            match read {
                Ok(n @ 1..) => {
                    if n >= self.size {
                        self.size *= 2;
                    }
                    self.rest = self.buffer.split().freeze();
                }
                Ok(0) if !self.is_broken() && self.decoder.end().is_ok() => {
                    self.wire = Wire::Gone;
                }
                Ok(0) | Err(_) => return self.cut(cx),
            }
        }
    }

    fn is_broken(&self) -> bool {
        matches!(&self.wire, Wire::Half { broken, .. } if broken.get())
    }

    /// The answer has broken off. What came of it is the client's, and is sent before it learns of the end.
    fn cut(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerCut>>> {
        self.stop();
        self.cut = true;
        self.wire = Wire::Gone;
        self.rest = Bytes::new();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Nobody reads the answer: the rest of the request is of no use.
    fn stop(&self) {
        if let Wire::Half { sending, .. } = &self.wire {
            sending.abort();
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if !self.is_done() {
            self.stop();
        }
    }
}
