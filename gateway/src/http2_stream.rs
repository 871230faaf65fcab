//! One stream of an HTTP/2 connection: its request is made what the rest of the gateway serves for HTTP/1 too, and the answer
//! goes out as the client's windows allow.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::{Body as _, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::answer::Reason;
use crate::body::{BodyError, ClientBody, ResponseBody};
use crate::exchange::Exchange;
use crate::http2::Slot;
use crate::worker::Worker;
use crate::{forward, upgrade, websocket};

/// Most bytes of a body that ask for a part of the connection's window at once: what every client takes in one frame.
const SHARE: usize = 16 * 1024;

/// Why a stream ended early; the client knows, or learns it by the reset.
struct Gone;

/// Serves the stream to its end.
pub(crate) async fn run(
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    mut slot: Slot,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (mut parts, stream) = request.into_parts();
    let head_only = parts.method == Method::HEAD;
    let fields = Fields::of(&parts.headers);
    let plain = normalise(&mut parts, &fields);
    let socket = plain && parts.method == Method::CONNECT && websocket::from_connect(&mut parts, rand::random());
    let (body, mut tunnel) = if socket {
        (ClientBody::None, Some(stream))
    } else {
        let body = StreamBody::new(stream, &fields, Rc::clone(&exchange));
        (ClientBody::Http2(body), None)
    };
    let request = Request::from_parts(parts, body);
    let Ok(mut response) = asked(&worker, &exchange, request, &mut respond).await else {
        exchange.stop();
        return;
    };
    // From here the answer has its own time.
    exchange.expired.set(false);
    exchange.moved();
    if tunnel.is_some() && exchange.tunnel.borrow().is_none() && response.status().is_success() {
        // In HTTP/2 any 2xx would mean that the tunnel stands.
        response = response.into_body().refuse(Reason::BadUpgrade);
    }
    let switched = exchange.tunnel.borrow_mut().take();
    match (switched, tunnel.take()) {
        (Some(switched), Some(receive)) => {
            slot.unwatch();
            let response = accepted(response);
            if let Ok(send) = respond.send_response(response, false) {
                let stream = TunnelStream {
                    send,
                    receive,
                    rest: Bytes::new(),
                };
                Box::pin(upgrade::run(&worker, stream, Bytes::new(), switched)).await;
            }
        }
        _ => {
            let _ = answer(&worker, &exchange, response, head_only, &mut respond).await;
        }
    }
    // An answer that did not wait for its request's body ends it.
    exchange.stop();
}

/// What one pass over a request's fields found.
#[derive(Default)]
struct Fields {
    host: bool,
    /// Lines of Cookie and of Content-Length.
    cookies: usize,
    lengths: usize,
    /// The last Content-Length.
    length: Option<u64>,
    /// The client waits to be told to go on.
    continues: bool,
}

impl Fields {
    fn of(headers: &HeaderMap) -> Self {
        let mut fields = Self::default();
        for (name, value) in headers {
            match name.as_str().len() {
                4 if *name == header::HOST => fields.host = true,
                6 if *name == header::COOKIE => fields.cookies += 1,
                6 if *name == header::EXPECT => fields.continues = true,
                14 if *name == header::CONTENT_LENGTH => {
                    fields.lengths += 1;
                    fields.length = value.to_str().ok().and_then(|l| l.parse().ok());
                }
                _ => {}
            }
        }
        fields
    }
}

/// Makes the target and the fields what an HTTP/1 request has: the authority as Host, one Cookie, one Content-Length. What is
/// wrong is left so that it is refused where all requests are looked at. `false`: refused for sure.
fn normalise(parts: &mut Parts, fields: &Fields) -> bool {
    let plain = matches!(parts.uri.scheme_str(), None | Some("http" | "https"));
    if let Some(authority) = parts.uri.authority() {
        let authority = HeaderValue::from_str(authority.as_str()).unwrap_or(HeaderValue::from_static("@"));
        // Both have to name the same (RFC 9113 8.3.1); two hosts are refused.
        let same = |v: &HeaderValue| v.as_bytes().eq_ignore_ascii_case(authority.as_bytes());
        if !fields.host || !parts.headers.get_all(header::HOST).iter().all(same) {
            parts.headers.append(header::HOST, authority);
        }
    }
    if plain && parts.uri.authority().is_some() {
        let uri = std::mem::take(&mut parts.uri);
        parts.uri = uri.into_parts().path_and_query.map(Uri::from).unwrap_or_default();
    }
    if fields.cookies > 1 {
        join_cookies(&mut parts.headers);
    }
    if fields.lengths > 1
        && let Some(length) = parts.headers.get(header::CONTENT_LENGTH).cloned()
    {
        // The library has refused those that differ.
        parts.headers.insert(header::CONTENT_LENGTH, length);
    }
    plain
}

/// Cookies may come in crumbs, which HTTP/1 does not know (RFC 9113 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, whole);
    }
}

/// The answer, unless the client gives the stream up first.
async fn asked(
    worker: &Rc<Worker>,
    exchange: &Rc<Exchange>,
    request: Request<ClientBody>,
    respond: &mut SendResponse<Bytes>,
) -> Result<Response<ResponseBody>, Gone> {
    let mut serving = pin!(forward::serve(Rc::clone(worker), Rc::clone(exchange), request));
    poll_fn(|cx| {
        exchange.listen(cx);
        let served = serving.as_mut().poll(cx);
        exchange.hints.pass(respond);
        if let Poll::Ready(Ok(response)) = served {
            return Poll::Ready(Ok(response));
        }
        if exchange.go_on.take() {
            let mut interim = Response::new(());
            *interim.status_mut() = StatusCode::CONTINUE;
            // Fails only when the stream is gone, which shows next.
            let _ = respond.send_informational(interim);
        }
        // Also ready when the connection is gone.
        respond.poll_reset(cx).map(|_| Err(Gone))
    })
    .await
}

/// Sends the answer.
async fn answer(
    worker: &Worker,
    exchange: &Exchange,
    response: Response<ResponseBody>,
    head_only: bool,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), Gone> {
    let (parts, body) = response.into_parts();
    let mut body = pin!(body);
    let mut head = Response::from_parts(parts, ());
    let bodiless = head_only || matches!(head.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let end = bodiless || body.is_end_stream();
    let fields = head.headers_mut();
    let (mut connection, mut date, mut length) = (false, false, false);
    for name in fields.keys() {
        match name.as_str().len() {
            4 => date |= *name == header::DATE,
            10 => connection |= *name == header::CONNECTION,
            14 => length |= *name == header::CONTENT_LENGTH,
            _ => {}
        }
    }
    if connection {
        // Of the gateway's own answers; an app's have lost it.
        fields.remove(header::CONNECTION);
    }
    if !date {
        fields.append(header::DATE, worker.date());
    }
    if let (false, false, Some(exact)) = (length, bodiless, body.size_hint().exact()) {
        fields.append(header::CONTENT_LENGTH, exact.into());
    }
    let mut send = respond.send_response(head, end).map_err(|_| Gone)?;
    if end {
        return Ok(());
    }
    loop {
        // That the stream is over is looked for only while there is nothing to send; sending tells it, too.
        let next = poll_fn(|cx| match body.as_mut().poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => over(exchange, &mut send, cx).map(Err),
        })
        .await;
        let frame = match next {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => return send.send_data(Bytes::new(), true).map_err(|_| Gone),
            Ok(Some(Err(_))) => {
                // Half an answer must not look like a whole one.
                send.send_reset(h2::Reason::INTERNAL_ERROR);
                return Err(Gone);
            }
            Err(gone) => {
                send.send_reset(h2::Reason::CANCEL);
                return Err(gone);
            }
        };
        match frame.into_data() {
            Ok(data) => {
                let last = body.is_end_stream();
                write(exchange, &mut send, data, last).await?;
                if last {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return send.send_trailers(trailers).map_err(|_| Gone);
                }
            }
        }
    }
}

/// Sends one piece of a body as the windows allow.
async fn write(exchange: &Exchange, send: &mut SendStream<Bytes>, mut data: Bytes, last: bool) -> Result<(), Gone> {
    if data.is_empty() {
        return send.send_data(data, last).map_err(|_| Gone);
    }
    while !data.is_empty() {
        let room = poll_fn(|cx| match poll_room(send, data.len(), cx) {
            Poll::Ready(room) => Poll::Ready(room.ok_or(Gone)),
            Poll::Pending => over(exchange, send, cx).map(Err),
        })
        .await;
        let Ok(room) = room else {
            send.send_reset(h2::Reason::CANCEL);
            return Err(Gone);
        };
        let piece = data.split_to(room.min(data.len()));
        send.send_data(piece, last && data.is_empty()).map_err(|_| Gone)?;
        exchange.moved();
    }
    Ok(())
}

/// Ready when the client has given the stream up, or the timer has.
fn over(exchange: &Exchange, send: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Gone> {
    exchange.listen(cx);
    if exchange.expired.get() {
        return Poll::Ready(Gone);
    }
    send.poll_reset(cx).map(|_| Gone)
}

/// How many bytes may be sent now; `None` when none ever may.
fn poll_room(send: &mut SendStream<Bytes>, wanted: usize, cx: &mut Context<'_>) -> Poll<Option<usize>> {
    send.reserve_capacity(wanted.min(SHARE));
    loop {
        let room = send.capacity();
        if room > 0 {
            return Poll::Ready(Some(room));
        }
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(None),
        }
    }
}

/// The answer to an extended CONNECT whose container switched protocols.
fn accepted(response: Response<ResponseBody>) -> Response<()> {
    let (mut parts, _) = response.into_parts();
    parts.status = StatusCode::OK;
    for name in [
        header::CONNECTION,
        header::UPGRADE,
        header::SEC_WEBSOCKET_ACCEPT,
        header::CONTENT_LENGTH,
    ] {
        parts.headers.remove(name);
    }
    Response::from_parts(parts, ())
}

/// A request's body.
pub(crate) struct StreamBody {
    stream: RecvStream,
    /// What Content-Length says is still to come.
    left: Option<u64>,
    /// The client waits to be told to go on.
    continues: bool,
    done: bool,
    exchange: Rc<Exchange>,
}

impl StreamBody {
    fn new(stream: RecvStream, fields: &Fields, exchange: Rc<Exchange>) -> Self {
        Self {
            stream,
            left: fields.length,
            continues: fields.continues,
            done: false,
            exchange,
        }
    }

    pub(crate) fn left(&self) -> Option<u64> {
        self.left
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.done || self.stream.is_end_stream()
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.exchange.stopped(cx) {
            return Poll::Ready(Some(Err(BodyError)));
        }
        if std::mem::take(&mut self.continues) {
            self.exchange.go_on.set(true);
            self.exchange.wake();
        }
        if !self.done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // What the endpoint does not take stays here: no more is asked for.
                    let released = self.stream.flow_control().release_capacity(data.len());
                    if released.is_err() {
                        return Poll::Ready(Some(Err(BodyError)));
                    }
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    self.exchange.moved();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // Whoever serves the stream learns it too, and ends the request as one that its client has given up.
                Some(Err(error)) if error.is_io() || (error.is_reset() && error.is_remote()) => return Poll::Pending,
                Some(Err(_)) => return Poll::Ready(Some(Err(BodyError))),
                None => self.done = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(None) => Poll::Ready(None),
            Err(_) => Poll::Ready(Some(Err(BodyError))),
        }
    }
}

/// A stream that carries a tunnel.
struct TunnelStream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Received, not yet read.
    rest: Bytes,
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(data)) => self.rest = data,
                Some(Err(error)) => return Poll::Ready(Err(std::io::Error::other(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest.split_to(n));
        let released = self.receive.flow_control().release_capacity(n);
        Poll::Ready(released.map_err(std::io::Error::other))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let broken = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let room = ready!(poll_room(&mut self.send, buf.len(), cx)).ok_or_else(broken)?;
        let n = room.min(buf.len());
        self.send
            .send_data(Bytes::copy_from_slice(&buf[..n]), false)
            .map_err(std::io::Error::other)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // The connection's own task writes.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let ended = self.send.send_data(Bytes::new(), true);
        Poll::Ready(ended.map_err(std::io::Error::other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str, fields: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::new(());
        *request.uri_mut() = uri.parse().unwrap();
        for (name, value) in fields {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        request.into_parts().0
    }

    fn normal(parts: &mut Parts) -> bool {
        let fields = Fields::of(&parts.headers);
        normalise(parts, &fields)
    }

    fn hosts(parts: &Parts) -> Vec<&str> {
        parts
            .headers
            .get_all(header::HOST)
            .iter()
            .map(|v| v.to_str().unwrap())
            .collect()
    }

    #[test]
    fn the_authority_becomes_the_host() {
        let mut p = parts("https://a.example:81/b?c", &[]);
        assert!(normal(&mut p));
        assert_eq!((p.uri.to_string().as_str(), hosts(&p)), ("/b?c", vec!["a.example:81"]));
        let mut p = parts("http://a.example/", &[("host", "A.example")]);
        normal(&mut p);
        assert_eq!(hosts(&p), ["A.example"]);
        // Two names: refused later as two hosts.
        let mut p = parts("http://a.example/", &[("host", "b.example")]);
        normal(&mut p);
        assert_eq!(hosts(&p), ["b.example", "a.example"]);
        let mut p = parts("ftp://a.example/", &[]);
        assert!(!normal(&mut p));
        assert_eq!(p.uri.scheme_str(), Some("ftp"));
    }

    #[test]
    fn crumbs_become_one_cookie() {
        let mut p = parts(
            "/",
            &[("cookie", "a=b"), ("x", "y"), ("cookie", "c=d; e"), ("cookie", "f")],
        );
        normal(&mut p);
        let cookies: Vec<_> = p.headers.get_all(header::COOKIE).iter().collect();
        assert_eq!(cookies, ["a=b; c=d; e; f"]);
    }

    #[test]
    fn equal_lengths_become_one() {
        let mut p = parts("/", &[("content-length", "3"), ("content-length", "3")]);
        normal(&mut p);
        assert_eq!(p.headers.get_all(header::CONTENT_LENGTH).iter().count(), 1);
    }
}
