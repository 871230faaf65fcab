//! HTTP/1.1 to endpoints. A connection has no task of its own: whoever asks writes the request and reads the answer, in the task of
//! the client's connection or stream. Between two requests it is a socket and nothing more.

mod arriving;
mod decode;
mod head;
mod sending;

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use hyper::ext::ReasonPhrase;
use socket2::SockRef;
use tokio::io::{AsyncRead as _, Interest, ReadBuf};
use tokio::net::TcpStream;

pub(crate) use arriving::{Arriving, READ};
use decode::Decoder;
use head::{Extent, Head};
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
    /// A head that is not whole.
    begun: Vec<u8>,
    /// Bytes since the request.
    came: usize,
    /// Interim answers since the request.
    interim: u32,
    /// The request was HEAD: its answer has no body.
    head_only: bool,
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
            begun: Vec::new(),
            came: 0,
            interim: 0,
            head_only: false,
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
        self.head_only = parts.method == Method::HEAD;
        self.came = 0;
        self.interim = 0;
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
                let mut scratch = worker.scratch.borrow_mut();
                let mut buffer = ReadBuf::new(&mut scratch);
                let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
                let came = buffer.filled();
                if read.is_err() || came.is_empty() {
                    return Poll::Ready(Err(self.lost()));
                }
                self.came += came.len();
                if self.begun.is_empty() {
                    Bytes::copy_from_slice(came)
                } else {
                    self.begun.extend_from_slice(came);
                    if !came.contains(&b'\n') && self.begun.len() <= worker.most_in_head {
                        continue;
                    }
                    Bytes::from(std::mem::take(&mut self.begun))
                }
            };
            self.read(&bytes, worker, hints, answer)?;
            if answer.is_some() {
                return Poll::Ready(Ok(()));
            }
            if self.came > worker.most_before_answer {
                return Poll::Ready(Err(Failure::Bad));
            }
        }
    }

    /// Looks for the head of an answer behind those of interim ones.
    fn read(
        &mut self,
        bytes: &Bytes,
        worker: &Worker,
        hints: Option<&Hints>,
        answer: &mut Option<Answer>,
    ) -> Result<(), Failure> {
        let mut at = 0;
        while at < bytes.len() {
            let most = worker.shared.config.max_head_fields;
            let head = match head::read(bytes, at, most, self.head_only, worker.fields()) {
                Ok(Some(head)) => head,
                Ok(None) if bytes.len() - at <= worker.most_in_head => {
                    self.begun = bytes[at..].to_vec();
                    break;
                }
                Ok(None) | Err(_) => return Err(Failure::Bad),
            };
            at += head.length;
            if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                let rest = bytes.slice(at..);
                *answer = Some(Answer { head, rest });
                return Ok(());
            }
            self.interim += 1;
            if self.interim > INTERIM {
                return Err(Failure::Bad);
            }
            if let Some(hints) = hints {
                hints.hear(head.status, head.fields);
            }
        }
        Ok(())
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
