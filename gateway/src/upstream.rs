//! One try at one endpoint: a connection, kept or new, the request on it, and what became of it.

use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use http::header;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper_util::rt::TokioIo;
use model::config::Protocol;
use tokio::net::TcpStream;

use crate::body::RequestBody;
use crate::eject::Endpoint;
use crate::exchange::Exchange;
use crate::flight::Flight;
use crate::line::LineIo;
use crate::pool::{Http1, Sender};
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
    /// The connection or stream ended before an answer.
    Lost,
    /// What came is no answer.
    Bad,
    /// The timer gave it up.
    Expired,
    /// The endpoint takes no WebSockets over HTTP/2. It saw nothing of the request.
    NoSockets,
}

/// How a request is sent.
#[derive(Clone, Copy)]
pub(crate) struct How {
    /// On a new connection, whatever is kept.
    pub(crate) only_new: bool,
    /// It may be sent again although the app may have seen it.
    pub(crate) repeatable: bool,
    /// As an extended CONNECT for a WebSocket, where HTTP/2 is spoken.
    pub(crate) socket: bool,
}

/// What came of one try.
pub(crate) struct Outcome {
    pub(crate) sent: Sent,
    /// The connection was not new: its failure says nothing about the endpoint.
    pub(crate) kept: bool,
    /// What the answer comes on.
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
    pub(crate) request: &'a mut Option<Request<RequestBody>>,
    pub(crate) answer: &'a mut Option<Response<Incoming>>,
    pub(crate) how: How,
}

/// One try at the endpoint that the flight holds.
pub(crate) async fn once(flight: &Flight, mut call: Call<'_>) -> Outcome {
    let Some(entered) = flight.entered() else {
        return Outcome::of(Sent::Unsent, false);
    };
    match call.app.settings.config.protocol {
        Protocol::H2c => http2(flight, entered.endpoint(), &mut call).await,
        Protocol::Http | Protocol::Tcp => http1(flight, entered.endpoint(), &mut call).await,
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
    let found = match found {
        Some(sender) => {
            worker.stats().reused.add(1);
            Some(sender)
        }
        // Boxed: most requests need no space for it.
        None => Box::pin(connect(flight, endpoint.address, call.app)).await,
    };
    let (Some(mut http1), Some(request)) = (found, call.request.take()) else {
        return Outcome::of(Sent::Unsent, kept);
    };
    http1.line.begin(kept, worker.most_before_answer, call.exchange.hints());
    let sent = {
        let sending = pin!(http1.sender.try_send_request(request));
        answer_to(sending, endpoint, call).await
    };
    http1.line.answered();
    match sent {
        Sent::Answer => Outcome {
            sent,
            kept,
            sender: Some(Sender::Http1(http1)),
        },
        Sent::Lost if http1.line.flooded() => Outcome::of(Sent::Bad, kept),
        Sent::Lost if !http1.line.wrote() => Outcome::of(Sent::Unsent, kept),
        _ => Outcome::of(sent, kept),
    }
}

async fn http2(flight: &Flight, endpoint: &Endpoint, call: &mut Call<'_>) -> Outcome {
    let (worker, within) = (call.worker, call.app.settings.connect);
    let (stream, kept) = match worker.streams.place(endpoint.id) {
        Some(stream) => (Some(stream), true),
        None => {
            let connect = dial(flight, endpoint.address, call.app);
            // Boxed: most requests need no space for it.
            let taken = Box::pin(worker.streams.take(endpoint.id, &worker.back2, within, connect)).await;
            taken.map_or((None, false), |(stream, kept)| (Some(stream), kept))
        }
    };
    let (Some(stream), Some(mut request)) = (stream, call.request.take()) else {
        return Outcome::of(Sent::Unsent, false);
    };
    if kept {
        worker.stats().reused.add(1);
    }
    if !for_http2(&mut request) {
        return Outcome::of(Sent::Bad, kept);
    }
    let mut sender = stream.sender();
    if call.how.socket {
        if !stream.takes_sockets() {
            return Outcome::of(Sent::NoSockets, kept);
        }
        websocket::to_connect(&mut request);
    }
    let sent = {
        let sending = pin!(sender.try_send_request(request));
        answer_to(sending, endpoint, call).await
    };
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
    if request.uri().authority().is_some() {
        // It has come back from a connection that did not take it.
        return true;
    }
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
async fn answer_to<F>(mut sending: Pin<&mut F>, endpoint: &Endpoint, call: &mut Call<'_>) -> Sent
where
    F: Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
{
    let failures = endpoint.failures();
    let sent = poll_fn(|cx| match sending.as_mut().poll(cx) {
        Poll::Ready(Ok(response)) => {
            *call.answer = Some(response);
            Poll::Ready(Sent::Answer)
        }
        Poll::Ready(Err(mut error)) => Poll::Ready(match error.take_message() {
            Some(unsent) => {
                *call.request = Some(unsent);
                Sent::Unsent
            }
            None => meaning(error.error()),
        }),
        Poll::Pending if call.exchange.expired.get() => Poll::Ready(Sent::Expired),
        // The connection's timer looks here every now and then, as it does for `expired`.
        Poll::Pending if call.how.repeatable && endpoint.failures() >= failures + GONE => Poll::Ready(Sent::Lost),
        Poll::Pending => Poll::Pending,
    })
    .await;
    if sent == Sent::Answer {
        endpoint.worked();
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

/// A socket to `address`, or none within the time.
async fn dial(flight: &Flight, address: SocketAddr, app: &App) -> Option<TcpStream> {
    let (worker, within, begun) = (flight.worker(), app.settings.connect, Instant::now());
    worker.stats().connects.add(1);
    let stream = match tokio::time::timeout(within, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(_)) | Err(_) => {
            worker.stats().connect_failures.add(1);
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

/// A new HTTP/1.1 connection, or none within the time.
async fn connect(flight: &Flight, address: SocketAddr, app: &App) -> Option<Http1> {
    let (io, line) = LineIo::new(dial(flight, address, app).await?);
    let (sender, connection) = flight.worker().back.handshake(TokioIo::new(io)).await.ok()?;
    let (mut connection, mut waker, own) = (connection.with_upgrades(), None, Arc::clone(&line));
    tokio::task::spawn_local(poll_fn(move |cx| {
        // How it ends is heard by whoever uses it.
        own.poll(&mut waker, cx, |cx| Pin::new(&mut connection).poll(cx).map(drop))
    }));
    Some(Http1 { sender, line })
}
