//! One client connection from accept to close: requests one after the other, its time limits, idle parking, heads that come slowly,
//! and the hand-over to a tunnel.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};

use crate::answer::{self, Reason};
use crate::client::{Client, Socket};
use crate::door::Open;
use crate::exchange::{Exchange, Verdict, Watch};
use crate::forward;
use crate::http2;
use crate::idle;
use crate::limit::OneConnection;
use crate::owed::{self, Came, Owing};
use crate::stream::Stream;
use crate::tls;
use crate::upgrade::{self, Tunnel};
use crate::worker::Worker;

/// How long, and for how long without a byte, it is read away what comes after an answer that did not wait for its request (nginx'
/// defaults). It still counts as a connection of its client.
const LINGER: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));

/// The same after a word to who has sent no request, and once the worker drains.
pub(crate) const SHORT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(2));

/// How a stretch of serving ended.
enum Done {
    Closed,
    /// Between requests.
    Parked(Stream),
    /// A head is on its way.
    Owing(Owing),
    Tunnel(Stream, Bytes, Tunnel),
}

/// What is left of a connection after a stretch of requests.
enum Rest {
    /// The socket, until the client asks again.
    Parked(Stream),
    /// Boxed like all that is not there for long.
    Owing(Box<Owing>),
    /// What is no HTTP/1 any more, or never was, to its end.
    Other(Pin<Box<dyn Future<Output = ()>>>),
}

/// Serves the connection until it closes. `before` was read already.
///
/// This is the future of the connection's task and lives as long, so it is kept small: what serving needs is boxed and gone while
/// the connection is parked, and the arguments of an `async fn` would be kept twice.
pub(crate) fn run(
    open: Open,
    slot: Option<OneConnection>,
    client: Rc<Client>,
    stream: Stream,
    before: Bytes,
) -> impl Future<Output = ()> {
    let mut rest = Some(begin(&open.0, &client, stream, before));
    async move {
        loop {
            match &mut rest {
                Some(Rest::Parked(stream)) => {
                    let asks = idle::parked(&open.0, stream).await;
                    let Some(Rest::Parked(stream)) = rest.take() else { break };
                    if !asks {
                        break Box::pin(stream.close()).await;
                    }
                    rest = Box::pin(stretch(&open.0, &client, stream, Bytes::new(), None)).await;
                }
                Some(Rest::Owing(_)) => {
                    let Some(Rest::Owing(owing)) = rest.take() else { break };
                    rest = Box::pin(owe(&open.0, &client, owing)).await;
                }
                Some(Rest::Other(other)) => break other.as_mut().await,
                None => break,
            }
        }
        drop((slot, open));
    }
}

/// A new connection.
fn begin(worker: &Rc<Worker>, client: &Rc<Client>, stream: Stream, before: Bytes) -> Rest {
    let told = match &stream {
        Stream::Plain(_) => None,
        // The handshake has told.
        Stream::Tls(tls) => Some(tls.get_ref().1.alpn_protocol() == Some(tls::HTTP2)),
    };
    if told == Some(true) {
        return http2(worker, client, stream, before);
    }
    Rest::Owing(Box::new(Owing {
        stream,
        held: before.into(),
        since: Instant::now(),
        new: told.is_none(),
    }))
}

fn http2(worker: &Rc<Worker>, client: &Rc<Client>, stream: Stream, before: Bytes) -> Rest {
    let (worker, client) = (Rc::clone(worker), Rc::clone(client));
    Rest::Other(Box::pin(async move {
        http2::run(&worker, client, stream, before).await;
    }))
}

/// Waits for the head that the client owes, and serves it.
async fn owe(worker: &Rc<Worker>, client: &Rc<Client>, mut owing: Box<Owing>) -> Option<Rest> {
    match owed::read(worker, &mut owing).await {
        Came::Enough if owing.new && owing.held.starts_with(http2::PREFACE) => {
            Some(http2(worker, client, owing.stream, owing.held.into()))
        }
        Came::Enough => {
            let Owing {
                stream, held, since, ..
            } = *owing;
            Box::pin(stretch(worker, client, stream, held.into(), Some(since))).await
        }
        Came::Late => {
            worker.refused(Reason::RequestTimeout);
            if owing.stream.last_word(answer::TIMED_OUT).await {
                linger(worker, owing.stream, SHORT).await;
            }
            None
        }
        Came::Gone => None,
    }
}

/// Serves requests until there are none for a while. `begun`: since when a head is owed of which `before` came.
async fn stretch(
    worker: &Rc<Worker>,
    client: &Rc<Client>,
    stream: Stream,
    before: Bytes,
    begun: Option<Instant>,
) -> Option<Rest> {
    let exchange = Rc::new(Exchange::new(Rc::clone(client), worker.limits.patience));
    match serve(worker, &exchange, stream, before, begun).await {
        Done::Closed => None,
        Done::Parked(stream) => {
            client.last.forget();
            Some(Rest::Parked(stream))
        }
        Done::Owing(owing) => {
            client.last.forget();
            idle::let_go(worker);
            Some(Rest::Owing(Box::new(owing)))
        }
        Done::Tunnel(stream, before, tunnel) => {
            let worker = Rc::clone(worker);
            let tunnel = async move { upgrade::run(&worker, stream, before, tunnel).await };
            Some(Rest::Other(Box::pin(tunnel)))
        }
    }
}

async fn serve(
    worker: &Rc<Worker>,
    exchange: &Rc<Exchange>,
    stream: Stream,
    before: Bytes,
    begun: Option<Instant>,
) -> Done {
    let socket = Socket::new(stream, before, Rc::clone(exchange));
    let service = {
        let (worker, exchange) = (Rc::clone(worker), Rc::clone(exchange));
        service_fn(move |request: Request<Incoming>| forward::serve(Rc::clone(&worker), Rc::clone(&exchange), request))
    };
    let mut connection = worker.front.serve_connection(TokioIo::new(socket), service);
    let mut watch = Watch::new(Instant::now(), begun);
    let mut timer = pin!(tokio::time::sleep(worker.tick));
    let mut armed = false;

    // The hot path is one poll of hyper and one of the timer. `Some` is hyper's own end, `None` a verdict of the timer.
    let ended = poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready((Some(result), Verdict::Wait));
            }
            // Once it is armed, looking is enough; polling it each time would cost every request.
            if (armed && !timer.is_elapsed()) || timer.as_mut().poll(cx).is_pending() {
                armed = true;
                return Poll::Pending;
            }
            armed = false;
            let now = Instant::now();
            timer.as_mut().reset((now + worker.tick).into());
            match watch.judge(exchange, &worker.limits, worker.draining.get(), now) {
                Verdict::Wait => {}
                // The request answers 408 or 504 by itself on its next poll.
                Verdict::Expire => exchange.expired.set(true),
                verdict => return Poll::Ready((None, verdict)),
            }
        }
    })
    .await;

    let parts = connection.into_parts();
    // Who still sends on what came of a body learns that there is no more.
    exchange.stop();
    let (stream, unread) = parts.io.into_inner().into_parts();
    let read = joined(parts.read_buf, unread);
    match ended {
        (Some(Ok(())), _) => {
            if let Some(tunnel) = exchange.tunnel.borrow_mut().take() {
                if exchange.unsent.get() {
                    // The library has kept a part of the answers before; behind a gap nothing may follow.
                    return Done::Closed;
                }
                return Done::Tunnel(stream, read, tunnel);
            }
            if exchange.linger.get() {
                linger(worker, stream, LINGER).await;
            }
            Done::Closed
        }
        (Some(Err(error)), _) => {
            if error.is_parse() {
                // hyper has answered with 400, 414 or 431.
                worker.stats().bad_heads.add(1);
                worker.refused(refused(&error));
                linger(worker, stream, SHORT).await;
            }
            Done::Closed
        }
        (None, Verdict::Park) if read.is_empty() => Done::Parked(stream),
        (None, Verdict::Park | Verdict::SlowHead) => Done::Owing(Owing {
            stream,
            // A copy: what it came in has room for much more.
            held: read.to_vec(),
            since: watch.head().unwrap_or_else(Instant::now),
            new: false,
        }),
        (None, Verdict::Abandon) => {
            linger(worker, stream, LINGER).await;
            Done::Closed
        }
        (None, Verdict::Close) => {
            stream.close().await;
            Done::Closed
        }
        (None, _) => Done::Closed,
    }
}

/// Both, one after the other. What is empty may be the rest of a buffer, which must not outlive this.
fn joined(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (true, true) => Bytes::new(),
        (false, true) => first,
        (true, false) => second,
        (false, false) => [first, second].concat().into(),
    }
}

/// What hyper has answered to a head that it could not read.
fn refused(error: &hyper::Error) -> Reason {
    match error.is_parse_too_large() {
        // Its text is all that tells one from the other.
        true if error.to_string().starts_with("URI") => Reason::TargetTooLong,
        true => Reason::HeadTooLarge,
        false => Reason::BadHead,
    }
}

/// Closes our side and reads away what still comes: closing with unread bytes would make the client's stack discard the answer.
pub(crate) async fn linger(worker: &Worker, mut stream: Stream, (most, quiet): (Duration, Duration)) {
    let read_away = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut timer = pin!(tokio::time::sleep(quiet));
        poll_fn(|cx| {
            loop {
                // What comes is of no interest: all share one buffer.
                let mut scratch = worker.scratch.borrow_mut();
                let mut buffer = ReadBuf::new(&mut scratch);
                match Pin::new(&mut stream).poll_read(cx, &mut buffer) {
                    Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                        timer.as_mut().reset((Instant::now() + quiet).into());
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return timer.as_mut().poll(cx),
                }
            }
        })
        .await;
    };
    let drained = async {
        worker.drain.cancelled().await;
        tokio::time::sleep(SHORT.0).await;
    };
    // Whoever has not closed by then is cut off.
    tokio::select! {
        biased;
        () = read_away => {}
        () = tokio::time::sleep(most) => {}
        () = drained => {}
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf as _;

    use super::*;

    #[test]
    fn nothing_left_holds_no_buffer() {
        let buffer = Bytes::from(vec![7; 8_192]);
        let mut rest = buffer.clone();
        rest.advance(8_192);
        let held = joined(rest.clone(), rest);
        assert!(held.is_empty() && buffer.is_unique());
    }

    #[test]
    fn what_was_read_stays_in_order() {
        let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"two"));
        assert_eq!(joined(one.clone(), Bytes::new()), "one");
        assert_eq!(joined(Bytes::new(), two.clone()), "two");
        assert_eq!(joined(one, two), "onetwo");
    }
}
