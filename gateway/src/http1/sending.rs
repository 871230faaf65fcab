//! A request on its way to an endpoint: its head, and its body as the client sends it.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::IoSlice;
use std::net::Shutdown;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::request::Parts;
use http_body::{Body as _, Frame};
use socket2::SockRef;
use tokio::io::AsyncWrite;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::Instant;

use super::head::{self, Framing};
use crate::body::{BodyError, RequestBody};
use crate::exchange::Exchange;
use crate::stream::poll_write_pieces;

/// What is still to be written of a request.
pub(super) struct Sending {
    /// The head, the size of a chunk, trailers: written first.
    first: Vec<u8>,
    /// So much of it is written.
    at: usize,
    /// A part of the body: written second.
    data: Bytes,
    /// What ends the chunk: written third.
    third: &'static [u8],
    framing: Framing,
    /// Where more comes from.
    body: Option<RequestBody>,
    /// Something of the request was written.
    pub(super) wrote: bool,
    /// The endpoint takes no more.
    failed: bool,
}

impl Sending {
    pub(super) fn new() -> Self {
        Self {
            first: Vec::new(),
            at: 0,
            data: Bytes::new(),
            third: b"",
            framing: Framing::Length(0),
            body: None,
            wrote: false,
            failed: false,
        }
    }

    /// Begins with another request; the one before was written whole.
    pub(super) fn begin(&mut self, parts: &Parts, body: RequestBody) {
        self.first.clear();
        self.at = 0;
        self.wrote = false;
        self.framing = head::write(&mut self.first, parts, &body);
        self.body = (!body.is_end_stream()).then_some(body);
    }

    /// The request was written whole.
    pub(super) fn is_done(&self) -> bool {
        self.body.is_none() && self.is_written() && !self.failed
    }

    /// There is nothing more to do.
    pub(super) fn is_over(&self) -> bool {
        self.failed || self.is_done()
    }

    fn is_written(&self) -> bool {
        self.at == self.first.len() && self.data.is_empty() && self.third.is_empty()
    }

    /// Writes as much as there is and the endpoint takes. Ready when there is nothing more to do: all is written, or the endpoint
    /// takes no more. Fails when the body can't be read.
    pub(super) fn poll<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<Result<(), BodyError>> {
        let mut waits = false;
        loop {
            if self.failed {
                self.body = None;
                return Poll::Ready(Ok(()));
            }
            if !waits
                && self.data.is_empty()
                && self.third.is_empty()
                && let Some(body) = &mut self.body
            {
                match Pin::new(body).poll_frame(cx) {
                    Poll::Ready(frame) => self.frame(frame.transpose()?)?,
                    Poll::Pending => waits = true,
                }
            }
            if self.is_written() {
                match self.body {
                    None => return Poll::Ready(Ok(())),
                    Some(_) if waits => return Poll::Pending,
                    Some(_) => continue,
                }
            }
            match ready!(self.poll_write(cx, to)) {
                Ok(n @ 1..) => self.wrote(n),
                Ok(0) | Err(_) => self.failed = true,
            }
        }
    }

    fn poll_write<W: AsyncWrite + Unpin>(&self, cx: &mut Context<'_>, to: &mut W) -> Poll<std::io::Result<usize>> {
        let first = &self.first[self.at..];
        if self.data.is_empty() && self.third.is_empty() {
            return Pin::new(to).poll_write(cx, first);
        }
        let all = [IoSlice::new(first), IoSlice::new(&self.data), IoSlice::new(self.third)];
        poll_write_pieces(Pin::new(to), cx, &all)
    }

    fn wrote(&mut self, mut n: usize) {
        self.wrote = true;
        let head = n.min(self.first.len() - self.at);
        self.at += head;
        if self.at == self.first.len() {
            self.first.clear();
            self.at = 0;
        }
        n -= head;
        let data = n.min(self.data.len());
        self.data.advance(data);
        if self.data.is_empty() {
            // Its buffer is needed no more.
            self.data = Bytes::new();
        }
        self.third = self.third.get(n - data..).unwrap_or_default();
    }

    /// The next part of the body, or its end.
    fn frame(&mut self, frame: Option<Frame<Bytes>>) -> Result<(), BodyError> {
        let last = frame.is_none() || self.body.as_ref().is_none_or(RequestBody::is_end_stream);
        let (data, trailers) = match frame.map(Frame::into_data) {
            Some(Ok(data)) => (data, None),
            Some(Err(frame)) => (Bytes::new(), frame.into_trailers().ok()),
            None => (Bytes::new(), None),
        };
        let last = last || trailers.is_some();
        match &mut self.framing {
            Framing::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(BodyError)?;
                if last && *left > 0 {
                    return Err(BodyError);
                }
                self.data = data;
            }
            Framing::Chunked(announced) => {
                if !data.is_empty() {
                    size(&mut self.first, data.len());
                    self.third = if last { b"\r\n0\r\n\r\n" } else { b"\r\n" };
                    self.data = data;
                } else if last {
                    head::write_trailers(&mut self.first, &trailers.unwrap_or_default(), announced);
                }
            }
        }
        if last {
            self.body = None;
        }
        Ok(())
    }

    /// Writes the rest while the answer is read elsewhere. `broken` is set when the body can't be read: then the endpoint has
    /// half a request, and what it answers to it is no answer. Whoever reads the answer holds the flag, too; once nobody does, the
    /// answer is over, and nothing of the request counts as under way: then it is given up when the endpoint takes nothing of it for
    /// so `long`, or there is no client any more.
    pub(super) async fn finish(
        mut self,
        mut to: OwnedWriteHalf,
        broken: Rc<Cell<bool>>,
        exchange: Rc<Exchange>,
        long: Duration,
    ) {
        let mut timer = pin!(tokio::time::sleep(long));
        let sent = poll_fn(|cx| {
            self.wrote = false;
            if let Poll::Ready(sent) = self.poll(cx, &mut to) {
                return Poll::Ready(Some(sent));
            }
            let waits_for_client = self.is_written();
            let over = Rc::strong_count(&broken) == 1;
            // The client's limits, and the answer's, are the business of its connection's timer.
            if self.wrote || waits_for_client || !over {
                timer.as_mut().reset(Instant::now() + long);
            }
            if exchange.stopped(cx) && !waits_for_client && self.body.is_some() {
                return Poll::Ready(None);
            }
            timer.as_mut().poll(cx).map(|()| None)
        })
        .await;
        match sent {
            None => {}
            // Dropped, it would end the connection for the endpoint, which may take that for the client's leaving.
            Some(Ok(())) => to.forget(),
            Some(Err(BodyError)) => {
                broken.set(true);
                // Fails only on a dead connection, whose end is noticed anyway.
                let _ = SockRef::from(to.as_ref()).shutdown(Shutdown::Both);
            }
        }
    }
}

/// The line before a chunk.
fn size(out: &mut Vec<u8>, size: usize) {
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for i in (0..digits).rev() {
        out.push(b"0123456789abcdef"[size >> (4 * i) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_chunks() {
        for n in [0, 1, 9, 10, 15, 16, 255, 256, 65_535, 1 << 20, usize::MAX] {
            let mut out = Vec::new();
            size(&mut out, n);
            assert_eq!(out, format!("{n:x}\r\n").as_bytes());
        }
    }
}
