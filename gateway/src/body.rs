//! Bodies on their way through: streamed frame by frame, counted and limited. Only the
//! beginning of a request's is kept, until there is an answer, for the case that it has to be sent once more.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::net::TcpStream;

use crate::answer::{self, Reason, Shape};
use crate::exchange::Exchange;
use crate::flight::Flight;
use crate::headers;
use crate::http1::{Arriving, READ};
use crate::http2::StreamBody;
use crate::pool::Sender;

/// A request's body as the client's connection gives it.
pub(crate) enum ClientBody {
    None,
    Http1(Incoming),
    Http2(StreamBody),
}

impl From<Incoming> for ClientBody {
    fn from(body: Incoming) -> Self {
        Self::Http1(body)
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    #[inline]
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(|_| BodyError),
            Self::Http2(body) => body.poll_frame(cx),
            Self::None => Poll::Ready(None),
        }
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
            Self::None => true,
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.left().map(SizeHint::with_exact).unwrap_or_default(),
            Self::None => SizeHint::with_exact(0),
        }
    }
}

/// How far a request's body has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More is to come.
    Open,
    Whole,
    /// It grew beyond the limit.
    TooLarge,
    /// The client broke its framing or left.
    Broken,
}

/// Most bytes of a request's body that are kept so that it can be sent once more (Envoy, Pingora and Linkerd keep as many).
pub(crate) const REPLAY: usize = 64 * 1024;

/// Most parts of it that are kept as they came. Each holds the whole buffer that it was read into; what comes in more parts is copied.
const PARTS: usize = 16;

/// The beginning of a request's body, kept so that it can be sent once more.
#[derive(Default)]
struct Record {
    parts: Vec<Bytes>,
    /// What came after [`PARTS`] parts and was read once only.
    rest: Vec<u8>,
}

impl Record {
    fn keep(&mut self, data: &Bytes) {
        if self.parts.len() < PARTS {
            self.parts.push(data.clone());
        } else {
            self.rest.extend_from_slice(data);
        }
    }

    /// It is read from the first part on: the rest is one of them from now on.
    fn rewind(&mut self) {
        if !self.rest.is_empty() {
            self.parts.push(std::mem::take(&mut self.rest).into());
        }
    }
}

/// A request's body on the gateway's side: it outlives the connections that read it.
pub(crate) struct BodyState {
    pub(crate) bytes: Cell<u64>,
    pub(crate) progress: Cell<Progress>,
    most: u64,
    exchange: Rc<Exchange>,
    /// What the client sends; gone once nobody needs it any more.
    source: RefCell<Option<ClientBody>>,
    /// All of it so far, while it may have to be sent once more.
    record: RefCell<Option<Record>>,
    /// It will not be sent again: nothing more is kept.
    settled: Cell<bool>,
    /// Which reader may read: the last one made.
    reader: Cell<u32>,
    /// Which kept part that one reads next.
    next: Cell<usize>,
}

impl BodyState {
    /// `body`, failing beyond `most` bytes.
    pub(crate) fn new(body: ClientBody, most: u64, exchange: Rc<Exchange>) -> Rc<Self> {
        exchange.body_open.set(true);
        exchange.arrival.begin();
        Rc::new(Self {
            bytes: Cell::new(0),
            progress: Cell::new(Progress::Open),
            most,
            exchange,
            source: RefCell::new(Some(body)),
            record: RefCell::new(Some(Record::default())),
            settled: Cell::new(false),
            reader: Cell::new(0),
            next: Cell::new(0),
        })
    }

    /// The body from its first byte on, taken from whoever read it before; none when too much was read.
    pub(crate) fn read(self: &Rc<Self>) -> Option<RequestBody> {
        if self.settled.get() {
            return None;
        }
        let reader = self.reader.get().wrapping_add(1);
        self.reader.set(reader);
        self.next.set(0);
        if let Some(record) = &mut *self.record.borrow_mut() {
            record.rewind();
        }
        let state = Rc::clone(self);
        Some(RequestBody(Some(Reader { state, reader })))
    }

    /// It will not be sent again.
    pub(crate) fn settle(&self) {
        self.settled.set(true);
        if self.kept(|parts| parts.is_empty()) {
            self.record.replace(None);
        }
    }

    /// The kept parts that were not read yet.
    fn kept<T>(&self, read: impl FnOnce(&[Bytes]) -> T) -> T {
        let record = self.record.borrow();
        read(
            record
                .as_ref()
                .and_then(|r| r.parts.get(self.next.get()..))
                .unwrap_or_default(),
        )
    }

    /// The next kept part.
    fn again(&self) -> Option<Bytes> {
        let part = self.kept(|parts| parts.first().cloned())?;
        self.next.set(self.next.get() + 1);
        if self.settled.get() {
            self.settle();
        }
        Some(part)
    }

    fn end(&self, progress: Progress) {
        self.progress.set(progress);
        self.exchange.body_open.set(false);
        // The answer may be over before the body: what came was no head.
        self.exchange.head_begun.set(false);
        self.exchange.linger.set(progress != Progress::Whole);
    }

    fn keep(&self, data: &Bytes) {
        if self.settled.get() {
            return;
        }
        if self.bytes.get() > REPLAY as u64 {
            return self.settle_now();
        }
        if let Some(record) = &mut *self.record.borrow_mut() {
            record.keep(data);
            self.next.set(record.parts.len());
        }
    }

    /// Nothing that was kept is read any more.
    fn settle_now(&self) {
        self.settled.set(true);
        self.record.replace(None);
    }

    /// The next frame from the client.
    fn poll_source(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut source = self.source.borrow_mut();
        let Some(body) = &mut *source else {
            return Poll::Ready(Some(Err(BodyError)));
        };
        let Poll::Ready(next) = Pin::new(&mut *body).poll_frame(cx) else {
            self.exchange.arrival.wants();
            return Poll::Pending;
        };
        match next {
            Some(Ok(mut frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.bytes.set(self.bytes.get() + data.len() as u64);
                    self.exchange.arrival.came(self.bytes.get());
                    if self.bytes.get() > self.most {
                        self.end(Progress::TooLarge);
                        return Poll::Ready(Some(Err(BodyError)));
                    }
                    self.keep(data);
                } else if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                    // They are not kept.
                    self.settle_now();
                }
                if body.is_end_stream() {
                    self.end(Progress::Whole);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(_)) => {
                self.end(Progress::Broken);
                Poll::Ready(Some(Err(BodyError)))
            }
            None => {
                self.end(Progress::Whole);
                Poll::Ready(None)
            }
        }
    }
}

/// A request's body as the upstream connection reads it.
pub(crate) struct RequestBody(Option<Reader>);

struct Reader {
    state: Rc<BodyState>,
    reader: u32,
}

impl RequestBody {
    pub(crate) fn empty() -> Self {
        Self(None)
    }
}

impl Reader {
    fn is_last(&self) -> bool {
        self.reader == self.state.reader.get()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Nobody reads on: the client's connection is to know.
        if self.is_last() && self.state.settled.get() {
            self.state.source.replace(None);
        }
    }
}

/// Why a request's body could not be sent on. Always the client's doing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyError;

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request's body is broken or too large")
    }
}

impl std::error::Error for BodyError {}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(reader) = &self.0 else {
            return Poll::Ready(None);
        };
        if !reader.is_last() {
            return Poll::Ready(Some(Err(BodyError)));
        }
        match reader.state.again() {
            Some(part) => Poll::Ready(Some(Ok(Frame::data(part)))),
            None => reader.state.poll_source(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|reader| {
            reader.state.kept(<[Bytes]>::is_empty)
                && reader.state.source.borrow().as_ref().is_some_and(Body::is_end_stream)
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(reader) = &self.0 else {
            return SizeHint::with_exact(0);
        };
        let kept: usize = reader.state.kept(|parts| parts.iter().map(Bytes::len).sum());
        let rest = match &*reader.state.source.borrow() {
            Some(body) => body.size_hint(),
            None => SizeHint::new(),
        };
        if kept == 0 {
            return rest;
        }
        let mut hint = SizeHint::new();
        if let Some(most) = rest.upper() {
            hint.set_upper(most.saturating_add(kept as u64));
        }
        hint.set_lower(rest.lower().saturating_add(kept as u64));
        hint
    }
}

/// An endpoint's answer broke off, or broke its framing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnswerCut;

impl fmt::Display for AnswerCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer broke off")
    }
}

impl std::error::Error for AnswerCut {}

/// An answer's body as the client's connection reads it. It carries the request's record, which closes when the
/// body is done or dropped.
pub(crate) struct ResponseBody {
    source: Source,
    flight: Option<Box<Flight>>,
}

enum Source {
    /// All of it.
    Own(Option<Bytes>),
    /// By HTTP/1.1, still coming.
    Http1(Box<Arriving>),
    /// By HTTP/2.
    Http2(Incoming),
    /// What becomes a tunnel has none.
    Switched(Option<(TcpStream, Bytes)>),
}

impl ResponseBody {
    /// A body that is there: one of the gateway's own, or one that an endpoint has sent whole.
    pub(crate) fn own(bytes: Bytes) -> Self {
        Self {
            source: Source::Own((!bytes.is_empty()).then_some(bytes)),
            flight: None,
        }
    }

    /// The body that an endpoint sends by HTTP/1.1.
    pub(crate) fn arriving(body: Arriving) -> Self {
        Self {
            // Boxed: answers are moved about, and few are so long.
            source: Source::Http1(Box::new(body)),
            flight: None,
        }
    }

    /// The body that an endpoint sends by HTTP/2.
    pub(crate) fn http2(body: Incoming) -> Self {
        Self {
            source: Source::Http2(body),
            flight: None,
        }
    }

    /// The connection to an endpoint that has switched protocols, and what was read of it already.
    pub(crate) fn switched(stream: TcpStream, rest: Bytes) -> Self {
        Self {
            source: Source::Switched(Some((stream, rest))),
            flight: None,
        }
    }

    /// Takes the connection that has switched protocols.
    pub(crate) fn take_switched(&mut self) -> Option<(TcpStream, Bytes)> {
        match &mut self.source {
            Source::Switched(switched) => switched.take(),
            _ => None,
        }
    }

    /// Ties the request's record to the body.
    pub(crate) fn carry(&mut self, flight: Box<Flight>) {
        self.flight = Some(flight);
    }

    /// Drops what an endpoint answers in favour of an answer of the gateway's own.
    pub(crate) fn refuse(mut self, reason: Reason) -> Response<Self> {
        let mut response = answer::answer(reason, Shape::default(), None);
        if let Some(mut flight) = self.flight.take() {
            flight.leave();
            flight.reason = Some(reason);
            flight.status = response.status().as_u16();
            response.body_mut().carry(flight);
        }
        response
    }

    fn count(&mut self, frame: &Frame<Bytes>) {
        if let (Some(data), Some(flight)) = (frame.data_ref(), &mut self.flight) {
            flight.bytes_out += data.len() as u64;
            flight.exchange().queue(data.len());
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // hyper drops a body without asking for its end once `is_end_stream` holds.
        if let (Source::Http2(body), Some(flight)) = (&self.source, &mut self.flight)
            && body.is_end_stream()
        {
            flight.upstream_done();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = AnswerCut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerCut>>> {
        let this = self.get_mut();
        let mut item = match &mut this.source {
            Source::Own(bytes) => bytes.take().map(|b| Ok(Frame::data(b))),
            Source::Http1(body) => {
                let room = this.flight.as_ref().map_or(READ, |flight| flight.room());
                let item = ready!(body.poll_frame(cx, room));
                if let (Some(flight), Some(http1)) = (&mut this.flight, body.release()) {
                    flight.keep(Sender::Http1(http1));
                    flight.upstream_done();
                }
                item
            }
            Source::Http2(body) => ready!(Pin::new(body).poll_frame(cx)).map(|item| item.map_err(|_| AnswerCut)),
            Source::Switched(_) => None,
        };
        match &mut item {
            Some(Ok(frame)) => {
                this.count(frame);
                if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                }
            }
            Some(Err(_)) => {
                if let Some(flight) = &mut this.flight {
                    flight.cut = true;
                }
            }
            None => {
                if let (Source::Http2(_), Some(flight)) = (&this.source, &mut this.flight) {
                    flight.upstream_done();
                }
            }
        }
        Poll::Ready(item)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) => bytes.is_none(),
            Source::Http1(body) => body.is_done(),
            Source::Http2(body) => body.is_end_stream(),
            Source::Switched(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Source::Http1(body) => body.size_hint(),
            Source::Http2(body) => body.size_hint(),
            Source::Switched(_) => SizeHint::with_exact(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_parts_are_kept_as_few() {
        let mut record = Record::default();
        let sent: Vec<u8> = (0..REPLAY).map(|i| (i % 251) as u8).collect();
        for (round, half) in sent.chunks(REPLAY / 2).enumerate() {
            for byte in half {
                record.keep(&Bytes::copy_from_slice(&[*byte]));
            }
            assert_eq!(
                record.parts.len(),
                PARTS + round,
                "what came after them is one more each time"
            );
            record.rewind();
            record.rewind();
        }
        assert_eq!(record.parts.len(), PARTS + 2);
        assert_eq!(record.parts.concat(), sent);
    }
}
