//! One try at one endpoint: a connection, kept or new, the request on it, and what became of it.

use std::cell::Cell;
use std::error::Error as _;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::header;
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use rustix::io::Errno;
use tokio::net::TcpStream;

use crate::body::{RequestBody, ResponseBody};
use crate::eject::Endpoint;
use crate::exchange::Exchange;
use crate::flight::Flight;
use crate::h2c::{Failed, Stream};
use crate::http1::{Failure, Http1};
use crate::identity::Question;
use crate::pool::Sender;
use crate::table::App;
use crate::websocket;
use crate::worker::Worker;

/// When so many connects failed while a request waits there, and it may be repeated, another endpoint is asked: a host that
/// has lost power never says that it is gone.
const GONE: u32 = 2;

/// What became of sending a request on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// There is a head of an answer.
    Answer,
    /// The app saw nothing of it: nothing was written, or the endpoint said that it did not look.
    Unsent,
    /// The same, because the connection had too many requests for the endpoint's taste.
    Refused,
    /// The endpoint has as many requests as it takes, and as many again wait.
    Full,
    /// The connection or stream ended before an answer.
    Lost,
    /// What came is no answer.
    Bad,
    /// The timer gave it up.
    Expired,
    /// The endpoint takes no WebSockets over HTTP/2. It saw nothing of the request.
    NoSockets,
    /// Who took a new connection did not prove to be the app, and saw nothing of the request.
    Stranger,
}

/// How a request is sent.
#[derive(Clone, Copy)]
pub(crate) struct How {
    /// On a new connection, whatever is kept.
    pub(crate) only_new: bool,
    /// It may be sent again although the app may have seen it.
    pub(crate) repeatable: bool,
    /// In HTTP/2.
    pub(crate) h2c: bool,
    /// There as an extended CONNECT for a WebSocket.
    pub(crate) socket: bool,
    /// The head says for HTTP/1.1 that there is a body.
    pub(crate) chunked: bool,
}

/// What came of one try.
pub(crate) struct Outcome {
    pub(crate) sent: Sent,
    /// The connection was not new: its failure says nothing about the endpoint.
    pub(crate) kept: bool,
    /// The stream that the answer comes on; or the connection that it came on, once it is free again.
    pub(crate) sender: Option<Sender>,
}

impl Outcome {
    fn of(sent: Sent, kept: bool) -> Self {
        let sender = None;
        Self { sent, kept, sender }
    }
}

/// What goes from here to the endpoint and back; heads are large and stay where they are.
pub(crate) struct Call<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) exchange: &'a Exchange,
    pub(crate) app: &'a App,
    pub(crate) parts: &'a Parts,
    pub(crate) body: Option<RequestBody>,
    pub(crate) answer: &'a mut Option<Response<ResponseBody>>,
    pub(crate) how: How,
}

/// One try at the endpoint that the flight holds.
pub(crate) async fn once(flight: &Flight, mut call: Call<'_>) -> Outcome {
    let Some(entered) = flight.entered() else {
        return Outcome::of(Sent::Unsent, false);
    };
    if call.how.h2c {
        http2(flight, entered.endpoint(), &mut call).await
    } else {
        http1(flight, entered.endpoint(), &mut call).await
    }
}

async fn http1(flight: &Flight, endpoint: &Endpoint, call: &mut Call<'_>) -> Outcome {
    let worker = call.worker;
    let found = if call.how.only_new {
        None
    } else {
        worker.kept(endpoint.id)
    };
    let kept = found.is_some();
    let mut http1 = match found {
        Some(http1) => {
            worker.stats().reused.add(1);
            http1
        }
        // Boxed: most requests need no space for it.
        None => match Box::pin(fresh(flight, endpoint, call.app)).await {
            Ok(http1) => http1,
            Err(sent) => return Outcome::of(sent, kept),
        },
    };
    let Some(body) = call.body.take() else {
        return Outcome::of(Sent::Unsent, kept);
    };
    http1.begin(call.parts, body);
    let hints = call.exchange.hints();
    let mut answer = None;
    let sent = waiting(endpoint, call, |cx| {
        http1
            .poll_answer(cx, worker, hints, &mut answer)
            .map(|came| match came {
                Ok(()) => Sent::Answer,
                Err(Failure::Unsent) => Sent::Unsent,
                Err(Failure::Lost) => Sent::Lost,
                Err(Failure::Bad) => Sent::Bad,
            })
    })
    .await;
    let Some(answer) = answer else {
        return Outcome::of(sent, kept);
    };
    let (response, free) = http1.answered(answer, flight.exchange(), worker.limits.body);
    *call.answer = Some(response);
    let sender = free.map(Sender::Http1);
    Outcome { sent, kept, sender }
}

async fn http2(flight: &Flight, endpoint: &Endpoint, call: &mut Call<'_>) -> Outcome {
    let worker = call.worker;
    let (stream, kept) = match worker.streams.place(endpoint.id) {
        Ok(Some(stream)) => (stream, true),
        // Boxed: most requests need no space for it.
        _ => match Box::pin(place(flight, endpoint, call.app)).await {
            Ok(taken) => taken,
            Err(sent) => return Outcome::of(sent, false),
        },
    };
    let Some(body) = call.body.take() else {
        return Outcome::of(Sent::Unsent, false);
    };
    let mut request = Request::from_parts(call.parts.clone(), body);
    if kept {
        worker.stats().reused.add(1);
    }
    if !for_http2(&mut request) {
        return Outcome::of(Sent::Bad, kept);
    }
    if call.how.chunked {
        request.headers_mut().remove(header::TRANSFER_ENCODING);
    }
    let mut sender = stream.sender();
    if call.how.socket {
        if !stream.takes_sockets() {
            return Outcome::of(Sent::NoSockets, kept);
        }
        websocket::to_connect(&mut request);
    }
    let mut answer = None;
    let sent = {
        let mut sending = pin!(sender.try_send_request(request));
        waiting(endpoint, call, |cx| {
            sending.as_mut().poll(cx).map(|came| match came {
                Ok(response) => {
                    answer = Some(response.map(ResponseBody::http2));
                    Sent::Answer
                }
                Err(error) if error.message().is_some() => Sent::Unsent,
                Err(error) => meaning(error.error()),
            })
        })
        .await
    };
    *call.answer = answer;
    match sent {
        Sent::Answer => Outcome {
            sent,
            kept,
            sender: Some(Sender::Http2(stream)),
        },
        Sent::Refused => {
            stream.full();
            Outcome::of(Sent::Unsent, true)
        }
        _ => {
            // It is going away, or nobody may be there any more.
            if matches!(sent, Sent::Unsent | Sent::Expired) {
                stream.retire();
            }
            // A stream that is reset says nothing about its connection.
            Outcome::of(sent, kept || !sender.is_closed())
        }
    }
}

/// The parts of a target stand in fields of their own, and Host in one of them (RFC 9113 8.3.1).
fn for_http2(request: &mut Request<RequestBody>) -> bool {
    let Some(authority) = request
        .headers_mut()
        .remove(header::HOST)
        .and_then(|host| Authority::try_from(host.as_bytes()).ok())
    else {
        return false;
    };
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    match Uri::from_parts(parts) {
        Ok(uri) => *request.uri_mut() = uri,
        Err(_) => return false,
    }
    // It named TE, which HTTP/2 keeps without it.
    request.headers_mut().remove(header::CONNECTION);
    *request.version_mut() = http::Version::HTTP_2;
    true
}

/// Waits for the head of the answer, or for the end of waiting.
async fn waiting(endpoint: &Endpoint, call: &Call<'_>, mut poll: impl FnMut(&mut Context<'_>) -> Poll<Sent>) -> Sent {
    let failures = endpoint.failures();
    let sent = poll_fn(|cx| match poll(cx) {
        Poll::Ready(sent) => Poll::Ready(sent),
        Poll::Pending if call.exchange.expired.get() => Poll::Ready(Sent::Expired),
        // The connection's timer looks here every now and then, as it does for `expired`.
        Poll::Pending if call.how.repeatable && endpoint.failures() >= failures + GONE => Poll::Ready(Sent::Lost),
        Poll::Pending => Poll::Pending,
    })
    .await;
    if sent == Sent::Answer {
        endpoint.reached();
    }
    sent
}

/// What an error before an answer says.
fn meaning(error: &hyper::Error) -> Sent {
    if error.is_parse() {
        return Sent::Bad;
    }
    match error.source().and_then(|source| source.downcast_ref::<h2::Error>()) {
        // Neither what comes after the last one that is looked at (RFC 9113 6.8) nor what is refused (8.7) was seen.
        Some(e) if e.is_remote() && e.is_go_away() => Sent::Unsent,
        Some(e) if e.is_remote() && e.reason() == Some(h2::Reason::REFUSED_STREAM) => Sent::Refused,
        Some(e) if e.is_library() => Sent::Bad,
        _ => Sent::Lost,
    }
}

/// Whether a connect failed for want of something on this machine (files, ports, memory), which says nothing about the endpoint.
pub(crate) fn is_own_fault(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    let wants = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::ADDRNOTAVAIL,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::AGAIN,
    ];
    errno.is_some_and(|errno| wants.contains(&errno))
}

/// A new connection to the endpoint, whose it has proved to be where that is asked.
async fn fresh(flight: &Flight, endpoint: &Endpoint, app: &App) -> Result<Box<Http1>, Sent> {
    let (worker, begun) = (flight.worker(), Instant::now());
    let dial = async || dial(flight, endpoint, app).await.ok_or(Sent::Unsent);
    let Some(question) = Question::of(&worker.shared, &app.shared, &app.settings, endpoint) else {
        let stream = dial().await?;
        endpoint.reach.reached();
        return Ok(Box::new(Http1::new(stream)));
    };
    let mut http1 = Box::new(Http1::new(dial().await?));
    let asking = async {
        match question.http1(worker, &mut http1).await {
            Some(true) => Ok(()),
            // It ends its connections with each answer. Whose the port is has been said just now.
            Some(false) => {
                *http1 = Http1::new(dial().await?);
                Ok(())
            }
            None => Err(Sent::Stranger),
        }
    };
    let asked = tokio::time::timeout(app.settings.connect, asking)
        .await
        .unwrap_or(Err(Sent::Stranger));
    flight.connect.set(begun.elapsed());
    match asked {
        Ok(()) => endpoint.reach.reached(),
        Err(Sent::Stranger) => stranger(worker, endpoint),
        Err(_) => {}
    }
    asked.map(|()| http1)
}

/// A place on a connection in HTTP/2 to the endpoint, a new one if need be, of which the same holds; whether it was there already.
async fn place(flight: &Flight, endpoint: &Endpoint, app: &App) -> Result<(Stream, bool), Sent> {
    let (worker, within, begun) = (flight.worker(), app.settings.connect, Instant::now());
    let question = Question::of(&worker.shared, &app.shared, &app.settings, endpoint);
    let dialled = Cell::new(false);
    let connect = async {
        let stream = dial(flight, endpoint, app).await?;
        dialled.set(true);
        if question.is_none() {
            endpoint.reach.reached();
        }
        Some(stream)
    };
    let prove = async |sender| {
        let Some(question) = &question else { return true };
        let proved = question.http2(worker, sender).await;
        if proved {
            endpoint.reach.reached();
            flight.connect.set(begun.elapsed());
        }
        proved
    };
    let taken = worker.streams.take(endpoint.id, &worker.back, within, connect, prove);
    taken.await.map_err(|why| match why {
        Failed::Peer if question.is_some() => {
            if dialled.get() {
                flight.connect.set(begun.elapsed());
                stranger(worker, endpoint);
            }
            Sent::Stranger
        }
        Failed::Peer | Failed::Connect => Sent::Unsent,
        Failed::Full => {
            // It does what it can.
            flight.own_fault.set(true);
            Sent::Full
        }
    })
}

/// Writes down that who took a connection did not prove to be the app.
fn stranger(worker: &Worker, endpoint: &Endpoint) {
    worker.stats().identity_failures.add(1);
    endpoint.connect_failed();
}

/// A socket to the endpoint, or none within the time.
async fn dial(flight: &Flight, endpoint: &Endpoint, app: &App) -> Option<TcpStream> {
    let (worker, within, begun) = (flight.worker(), app.settings.connect, Instant::now());
    worker.stats().connects.add(1);
    let stream = match tokio::time::timeout(within, TcpStream::connect(endpoint.address)).await {
        Ok(Ok(stream)) => stream,
        failed => {
            worker.stats().connect_failures.add(1);
            let own_fault = matches!(failed, Ok(Err(error)) if is_own_fault(&error));
            flight.own_fault.set(own_fault);
            if !own_fault {
                endpoint.connect_failed();
            }
            return None;
        }
    };
    let took = begun.elapsed();
    flight.connect.set(took);
    app.shared.stats().of(worker.index).connect.observe(took);
    // Fails only on a dead connection, which shows soon enough.
    let _ = stream.set_nodelay(true);
    Some(stream)
}
