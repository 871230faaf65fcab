//! HTTP/1.1 to endpoints. A connection has no task of its own: whoever asks writes the request and reads the answer, in the task of
//! the client's connection or stream. Between two requests it is a socket and nothing more.

mod arriving;
mod asking;
mod decode;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod head;
mod landing;
mod reading;
mod sending;

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use hyper::ext::ReasonPhrase;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

pub(crate) use arriving::{Arriving, READ};
use decode::Decoder;
use head::{Extent, Head, Malformed};
pub(crate) use landing::{Landing, make_room};
pub(crate) use reading::Bounds;
use reading::Reading;
use sending::Sending;

use crate::body::{RequestBody, ResponseBody};
use crate::exchange::Exchange;
use crate::hints::Hints;
use crate::worker::Worker;

/// Most interim answers (1xx) before an answer. Apps send one or two.
const INTERIM: u32 = 16;

/// A connection to an endpoint.
pub(crate) struct Http1 {
    stream: TcpStream,
    sending: Sending,
    reading: Reading,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The endpoint saw nothing of the request.
    Unsent,
    /// The connection ended before an answer.
    Lost,
    /// What came is no answer.
    Bad,
}

/// The head of an answer, and what came with it.
pub(crate) struct Answer {
    head: Head,
    rest: Bytes,
}

impl Http1 {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            sending: Sending::new(),
            reading: Reading::new(false),
        }
    }

    /// Whether nothing waits to be read, as far as the runtime has heard: neither bytes that nobody asked for nor the end.
    pub(crate) fn seems_quiet(&self) -> bool {
        let look = self.stream.try_io(Interest::READABLE, || self.peek());
        matches!(look, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether nothing waits to be read: asks the system.
    pub(crate) fn is_quiet(&self) -> bool {
        matches!(self.peek(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    fn peek(&self) -> io::Result<usize> {
        SockRef::from(&self.stream).peek(&mut [MaybeUninit::uninit(); 1])
    }

    /// Takes a request, the next one.
    pub(crate) fn begin(&mut self, parts: &Parts, body: RequestBody) {
        self.sending.begin(parts, body);
        self.reading = Reading::new(parts.method == Method::HEAD);
    }

    /// Writes the request and reads until there is the head of an answer, which may come before the request is written whole.
    /// `answer`: where to put it; heads are large.
    pub(crate) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        hints: Option<&Hints>,
        answer: &mut Option<Answer>,
    ) -> Poll<Result<(), Failure>> {
        if !self.sending.is_over() {
            match self.sending.poll(cx, &mut self.stream) {
                Poll::Ready(Err(_)) => return Poll::Ready(Err(self.lost())),
                Poll::Ready(Ok(())) if !self.sending.wrote => return Poll::Ready(Err(Failure::Unsent)),
                // What can't be written any more may have been answered before.
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        loop {
            let bytes = {
                let mut landing = worker.landing.borrow_mut();
                let came = ready!(landing.poll_read(cx, &mut self.stream));
                if !matches!(came, Ok(1..)) {
                    return Poll::Ready(Err(self.lost()));
                }
                let Some(bytes) = self.reading.come(landing.take(), &worker.bounds) else {
                    continue;
                };
                bytes
            };
            let hear = |status, fields| {
                if let Some(hints) = hints {
                    hints.hear(status, fields);
                }
            };
            self.reading
                .read(&bytes, &worker.bounds, || worker.fields(), hear, answer)
                .map_err(|Malformed| Failure::Bad)?;
            if answer.is_some() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn lost(&self) -> Failure {
        if self.sending.wrote {
            Failure::Lost
        } else {
            Failure::Unsent
        }
    }

    /// The answer for the client; and the connection, when all of the answer is there and it waits for the next request. What is
    /// left of the request goes on beside it; once the answer is over, the endpoint may leave it untouched for so `long`.
    pub(crate) fn answered(
        self: Box<Self>,
        answer: Answer,
        exchange: &Rc<Exchange>,
        long: Duration,
    ) -> (Response<ResponseBody>, Option<Box<Self>>) {
        let Answer { head, mut rest } = answer;
        let mut free = None;
        let body = if head.status == StatusCode::SWITCHING_PROTOCOLS {
            ResponseBody::switched(self.stream, rest)
        } else {
            let length = match head.extent {
                Extent::Length(length) => usize::try_from(length).ok().filter(|length| *length <= rest.len()),
                Extent::Chunked | Extent::Close => None,
            };
            match length {
                Some(length) => {
                    let body = rest.split_to(length);
                    if !self.sending.is_over() {
                        self.write_on(exchange, long);
                    } else if head.keeps && rest.is_empty() && self.sending.is_done() {
                        free = Some(self);
                    }
                    ResponseBody::own(body)
                }
                None => {
                    let decoder = Decoder::new(head.extent);
                    ResponseBody::arriving(self.arriving(head.keeps, decoder, rest, exchange, long))
                }
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.fields;
        if let Some(reason) = head.reason.and_then(|reason| ReasonPhrase::try_from(reason).ok()) {
            response.extensions_mut().insert(reason);
        }
        (response, free)
    }

    fn arriving(
        self: Box<Self>,
        keeps: bool,
        decoder: Decoder,
        rest: Bytes,
        exchange: &Rc<Exchange>,
        long: Duration,
    ) -> Arriving {
        if self.sending.is_over() {
            let keeps = keeps && self.sending.is_done();
            return Arriving::whole(self, keeps, decoder, rest);
        }
        // The client may read only once it has written, so one must not wait for the other.
        let (read, write) = self.stream.into_split();
        let broken = Rc::new(Cell::new(false));
        let sending =
            tokio::task::spawn_local(
                self.sending
                    .finish(write, Rc::clone(&broken), Rc::clone(exchange), long),
            );
        Arriving::half(read, sending, broken, decoder, rest)
    }

    /// The answer is there, and did not wait for all of the request; who sends it goes on.
    fn write_on(self: Box<Self>, exchange: &Rc<Exchange>, long: Duration) {
        let (_, write) = self.stream.into_split();
        let finish = self.sending.finish(write, Rc::default(), Rc::clone(exchange), long);
        tokio::task::spawn_local(finish);
    }
}
