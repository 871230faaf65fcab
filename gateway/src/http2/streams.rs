//! One stream: what both its tasks, that which serves the request and that which reads its body, and the connection know of it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};

use super::core::Core;
use super::frame::Code;
use super::hpack;

/// Most bytes of a body that are sent at once, so that others get their turn: what every client takes in one frame.
const SHARE: usize = 16 * 1024;

/// Why a stream is over before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The client gave it up, or is gone.
    Client,
    /// It was reset here.
    Here,
}

/// The client takes nothing more of the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone;

/// A stream.
pub(crate) struct Stream {
    core: Rc<Core>,
    pub(super) id: u32,
    /// What may be sent to the client.
    pub(super) window: Cell<i64>,
    /// What the client may send, and what of it was read and not yet said.
    pub(super) inward: Cell<i64>,
    pub(super) read: Cell<i64>,
    /// It waits for room among the connection's others.
    pub(super) waits: Cell<bool>,
    /// Its request came whole.
    pub(super) received: Cell<bool>,
    /// What Content-Length says is still to come.
    pub(super) left: Cell<Option<u64>>,
    /// Received and not read.
    inbox: RefCell<BytesMut>,
    trailers: Cell<Option<HeaderMap>>,
    over: Cell<Option<Over>>,
    /// Its answer was sent whole.
    sent: Cell<bool>,
    /// Somebody has looked for a body: until then an empty one may come, which is not none.
    looked: Cell<bool>,
    /// The body is held by somebody who may read it.
    wanted: Cell<bool>,
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
}

impl Stream {
    /// A stream that has just begun. `windows`: what may be sent and received.
    pub(super) fn new(core: Rc<Core>, id: u32, windows: (i64, i64), length: Option<u64>, received: bool) -> Self {
        Self {
            core,
            id,
            window: Cell::new(windows.0),
            inward: Cell::new(windows.1),
            read: Cell::new(0),
            waits: Cell::new(false),
            received: Cell::new(received),
            left: Cell::new(length),
            inbox: RefCell::new(BytesMut::new()),
            trailers: Cell::new(None),
            over: Cell::new(None),
            sent: Cell::new(false),
            looked: Cell::new(received),
            wanted: Cell::new(true),
            reader: Cell::new(None),
            writer: Cell::new(None),
        }
    }

    /// Both sides of it, to be held once each.
    pub(crate) fn open(self: Rc<Self>) -> (Answer, Body) {
        (Answer(Rc::clone(&self)), Body(self))
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.get().is_some()
    }

    /// It is over before its end; how many bytes will not be read.
    pub(super) fn end(&self, over: Over) -> usize {
        if self.over.get().is_none() {
            self.over.set(Some(over));
        }
        self.wake_writer();
        self.wake_reader();
        self.inbox.take().len()
    }

    /// A part of the body came; `false`: nobody wants it.
    pub(super) fn take_in(&self, data: &[u8], end: bool) -> bool {
        let wanted = self.wanted.get();
        if wanted {
            self.inbox.borrow_mut().extend_from_slice(data);
        }
        self.received.set(end);
        self.wake_reader();
        wanted
    }

    pub(super) fn take_trailers(&self, fields: HeaderMap) {
        self.trailers.set(Some(fields));
        self.received.set(true);
        self.wake_reader();
    }

    pub(super) fn wake_writer(&self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    fn wake_reader(&self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }
}

/// The side of a stream that answers.
pub(crate) struct Answer(Rc<Stream>);

impl Answer {
    /// Sends an interim answer.
    pub(crate) fn interim(&self, status: StatusCode, fields: &HeaderMap) {
        if !self.0.is_over() && !self.0.sent.get() {
            self.fields(status, fields, false);
        }
    }

    /// Sends the head of the answer; `end`: it is all.
    pub(crate) fn head(&self, status: StatusCode, fields: &HeaderMap, end: bool) -> Result<(), Gone> {
        self.alive()?;
        self.0.sent.set(end);
        self.fields(status, fields, end);
        Ok(())
    }

    fn fields(&self, status: StatusCode, fields: &HeaderMap, end: bool) {
        self.0.core.send_fields(&self.0, end, |out| {
            hpack::write_status(out, status);
            hpack::write_fields(out, fields);
        });
    }

    /// Sends a part of the body, for which there is [`Answer::poll_room`]; none is needed for no bytes.
    pub(crate) fn data(&self, data: &[u8], end: bool) -> Result<(), Gone> {
        self.alive()?;
        self.0.sent.set(end);
        self.0.core.send_data(&self.0, data, end);
        Ok(())
    }

    /// Ends the answer with trailers.
    pub(crate) fn trailers(&self, fields: &HeaderMap) -> Result<(), Gone> {
        self.alive()?;
        self.0.sent.set(true);
        self.0
            .core
            .send_fields(&self.0, true, |out| hpack::write_fields(out, fields));
        Ok(())
    }

    /// Breaks the answer off.
    pub(crate) fn reset(&self, code: Code) {
        let whole = self.0.sent.get() && self.0.received.get();
        if !self.0.is_over() && !whole {
            self.0.core.send_reset(&self.0, code);
            let unread = self.0.end(Over::Here);
            self.0.core.release(None, unread);
        }
    }

    /// How many bytes of a body may be sent now; none when none ever may.
    pub(crate) fn poll_room(&self, cx: &Context<'_>, wanted: usize) -> Poll<Result<usize, Gone>> {
        self.alive()?;
        match self.0.core.room(&self.0, wanted.min(SHARE)) {
            0 => {
                self.listen(cx);
                Poll::Pending
            }
            room => Poll::Ready(Ok(room)),
        }
    }

    /// Ready when the connection has room for a head.
    pub(crate) fn poll_turn(&self, cx: &Context<'_>) -> Poll<Result<(), Gone>> {
        self.alive()?;
        if self.0.core.has_room(&self.0) {
            return Poll::Ready(Ok(()));
        }
        self.listen(cx);
        Poll::Pending
    }

    /// Ready when the client takes nothing more of it.
    pub(crate) fn poll_over(&self, cx: &Context<'_>) -> Poll<Gone> {
        if self.0.is_over() {
            return Poll::Ready(Gone);
        }
        self.listen(cx);
        Poll::Pending
    }

    fn listen(&self, cx: &Context<'_>) {
        self.0.writer.set(Some(cx.waker().clone()));
    }

    fn alive(&self) -> Result<(), Gone> {
        if self.0.is_over() { Err(Gone) } else { Ok(()) }
    }
}

/// The stream ends with the side that answers: whoever still holds its body gets nothing more.
impl Drop for Answer {
    fn drop(&mut self) {
        let stream = &self.0;
        let sent = stream.sent.get();
        let whole = sent && stream.received.get();
        if !stream.is_over() && !whole {
            // An answer that does not wait for its request ends it (RFC 9113 8.1).
            stream
                .core
                .send_reset(stream, if sent { Code::No } else { Code::Cancel });
        }
        let unread = stream.end(Over::Here);
        stream.core.release(None, unread);
        stream.core.forget(stream);
    }
}

/// The side of a stream that the request's body comes on.
pub(crate) struct Body(Rc<Stream>);

impl Body {
    /// Why it is over before its end.
    pub(crate) fn over(&self) -> Option<Over> {
        self.0.over.get()
    }

    /// All of it was read.
    pub(crate) fn is_end(&self) -> bool {
        let trailers = self.0.trailers.take();
        let end = !self.0.is_over()
            && self.0.received.get()
            && trailers.is_none()
            && self.0.inbox.borrow().is_empty()
            && self.0.looked.get();
        self.0.trailers.set(trailers);
        end
    }

    /// The next part; none at the end, or once it is over: see [`Body::over`]. What is read may be sent again.
    pub(crate) fn poll_data(&self, cx: &Context<'_>) -> Poll<Option<Bytes>> {
        self.0.looked.set(true);
        let data = self.0.inbox.borrow_mut().split().freeze();
        if !data.is_empty() {
            self.0.core.release(Some(&self.0), data.len());
            return Poll::Ready(Some(data));
        }
        if self.0.received.get() || self.0.is_over() {
            return Poll::Ready(None);
        }
        self.0.reader.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// What came behind the body.
    pub(crate) fn trailers(&self) -> Option<HeaderMap> {
        self.0.trailers.take()
    }

    /// Has the task woken when the stream is over.
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        self.0.reader.set(Some(cx.waker().clone()));
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.0.wanted.set(false);
        let unread = self.0.inbox.take().len();
        if unread > 0 {
            self.0.core.release(None, unread);
        }
    }
}
