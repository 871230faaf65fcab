//! Bodies on their way through: streamed frame by frame, counted, limited, never collected.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::exchange::Exchange;
use crate::flight::Flight;

/// A request's body as the client's connection gives it.
pub(crate) enum ClientBody {
    Http1(Incoming),
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    #[inline]
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Http1(body) => Pin::new(body).poll_frame(cx),
        }
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
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

/// What outlives a request's body, for the side that answers.
#[derive(Debug)]
pub(crate) struct BodyState {
    pub(crate) bytes: Cell<u64>,
    pub(crate) progress: Cell<Progress>,
}

/// A request's body as the upstream connection reads it.
pub(crate) struct RequestBody(Option<Streaming>);

struct Streaming {
    body: ClientBody,
    most: u64,
    state: Rc<BodyState>,
    exchange: Rc<Exchange>,
}

impl RequestBody {
    pub(crate) fn empty() -> Self {
        Self(None)
    }

    /// Streams `body`, failing beyond `most` bytes.
    pub(crate) fn streaming(body: ClientBody, most: u64, exchange: Rc<Exchange>) -> (Self, Rc<BodyState>) {
        let state = Rc::new(BodyState {
            bytes: Cell::new(0),
            progress: Cell::new(Progress::Open),
        });
        exchange.body_open.set(true);
        let streaming = Streaming {
            body,
            most,
            state: Rc::clone(&state),
            exchange,
        };
        (Self(Some(streaming)), state)
    }
}

impl Streaming {
    fn end(&self, progress: Progress) {
        self.state.progress.set(progress);
        self.exchange.body_open.set(false);
        // The answer may be over before the body: what came was no head.
        self.exchange.head_begun.set(false);
        self.exchange.linger.set(progress != Progress::Whole);
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

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(streaming) = self.0.as_mut() else {
            return Poll::Ready(None);
        };
        match ready!(Pin::new(&mut streaming.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let bytes = streaming.state.bytes.get() + data.len() as u64;
                    streaming.state.bytes.set(bytes);
                    if bytes > streaming.most {
                        streaming.end(Progress::TooLarge);
                        return Poll::Ready(Some(Err(BodyError)));
                    }
                }
                if streaming.body.is_end_stream() {
                    streaming.end(Progress::Whole);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(_)) => {
                streaming.end(Progress::Broken);
                Poll::Ready(Some(Err(BodyError)))
            }
            None => {
                streaming.end(Progress::Whole);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|s| s.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), |s| s.body.size_hint())
    }
}

/// An answer's body as the client's connection reads it. It carries the request's record, which closes when the
/// body is done or dropped.
pub(crate) struct ResponseBody {
    source: Source,
    flight: Option<Box<Flight>>,
}

enum Source {
    Own(Option<Bytes>),
    Upstream(Incoming),
}

impl ResponseBody {
    /// A body of the gateway's own.
    pub(crate) fn own(bytes: Bytes) -> Self {
        Self {
            source: Source::Own((!bytes.is_empty()).then_some(bytes)),
            flight: None,
        }
    }

    /// The body that an endpoint sends.
    pub(crate) fn upstream(body: Incoming) -> Self {
        Self {
            source: Source::Upstream(body),
            flight: None,
        }
    }

    /// Ties the request's record to the body.
    pub(crate) fn carry(&mut self, flight: Box<Flight>) {
        self.flight = Some(flight);
    }

    fn count(&mut self, frame: &Frame<Bytes>) {
        if let (Some(data), Some(flight)) = (frame.data_ref(), &mut self.flight) {
            flight.bytes_out += data.len() as u64;
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // hyper drops a body without asking for its end once `is_end_stream` holds.
        if let (Source::Upstream(body), Some(flight)) = (&self.source, &mut self.flight)
            && body.is_end_stream()
        {
            flight.upstream_done();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let item = match &mut this.source {
            Source::Own(bytes) => bytes.take().map(|b| Ok(Frame::data(b))),
            Source::Upstream(body) => ready!(Pin::new(body).poll_frame(cx)),
        };
        match &item {
            Some(Ok(frame)) => this.count(frame),
            Some(Err(_)) => {
                if let Some(flight) = &mut this.flight {
                    flight.cut = true;
                }
            }
            None => {
                if let (Source::Upstream(_), Some(flight)) = (&this.source, &mut this.flight) {
                    flight.upstream_done();
                }
            }
        }
        Poll::Ready(item)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) => bytes.is_none(),
            Source::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Source::Upstream(body) => body.size_hint(),
        }
    }
}
