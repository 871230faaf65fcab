//! One stream of an HTTP/2 connection: its request is made what the rest of the gateway serves for HTTP/1 too, and the answer
//! goes out as the client's windows allow.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Slot;
use super::core::Begun;
use super::frame::Code;
use super::streams::{Answer, Body, Gone, Over};
use crate::answer::Reason;
use crate::body::{BodyError, ClientBody, ResponseBody};
use crate::exchange::Exchange;
use crate::worker::Worker;
use crate::{forward, upgrade, websocket};

/// Serves the stream to its end.
pub(crate) async fn run(worker: Rc<Worker>, exchange: Rc<Exchange>, mut slot: Slot, begun: Begun) {
    let Begun { mut head, stream } = begun;
    let (respond, stream) = stream.open();
    let parts = &mut head.parts;
    let head_only = parts.method == Method::HEAD;
    let socket = head.plain && parts.method == Method::CONNECT && websocket::from_connect(parts, rand::random());
    exchange.head_too_large.set(head.too_large);
    let (body, mut tunnel) = if socket {
        (ClientBody::None, Some(stream))
    } else {
        let body = StreamBody {
            stream,
            left: head.length,
            continues: head.continues,
            exchange: Rc::clone(&exchange),
        };
        (ClientBody::Http2(body), None)
    };
    let request = Request::from_parts(head.parts, body);
    let Ok(mut response) = asked(&worker, &exchange, request, &respond).await else {
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
    let receive = tunnel.take();
    match (switched, receive) {
        (Some(switched), Some(receive)) => {
            slot.unwatch();
            if respond.head(StatusCode::OK, &accepted(response), false).is_ok() {
                let stream = TunnelStream {
                    send: respond,
                    receive,
                    rest: Bytes::new(),
                };
                Box::pin(upgrade::run(&worker, stream, Bytes::new(), switched)).await;
            }
        }
        (_, receive) => {
            drop(receive);
            let _ = answer(&worker, &exchange, response, head_only, &respond).await;
        }
    }
    // An answer that did not wait for its request's body ends it.
    exchange.stop();
}

/// The answer, unless the client gives the stream up first.
async fn asked(
    worker: &Rc<Worker>,
    exchange: &Rc<Exchange>,
    request: Request<ClientBody>,
    respond: &Answer,
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
            respond.interim(StatusCode::CONTINUE, &HeaderMap::new());
        }
        // Also ready when the connection is gone.
        respond.poll_over(cx).map(Err)
    })
    .await
}

/// Sends the answer.
async fn answer(
    worker: &Worker,
    exchange: &Exchange,
    response: Response<ResponseBody>,
    head_only: bool,
    send: &Answer,
) -> Result<(), Gone> {
    let (mut head, body) = response.into_parts();
    let mut body = pin!(body);
    let bodiless = head_only || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let end = bodiless || body.is_end_stream();
    let fields = &mut head.headers;
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
    if length {
        one_length(head.status, fields);
    }
    if !date {
        fields.append(header::DATE, worker.date());
    }
    if let (false, false, Some(exact)) = (length, bodiless, body.size_hint().exact()) {
        fields.append(header::CONTENT_LENGTH, exact.into());
    }
    wait(exchange, send, |cx| send.poll_turn(cx)).await?;
    send.head(head.status, &head.headers, end)?;
    worker.give_back(head.headers);
    if end {
        return Ok(());
    }
    loop {
        let frame = match wait(exchange, send, |cx| body.as_mut().poll_frame(cx).map(Ok)).await? {
            Some(Ok(frame)) => frame,
            None => return send.data(&[], true),
            Some(Err(_)) => {
                // Half an answer must not look like a whole one.
                send.reset(Code::Internal);
                return Err(Gone);
            }
        };
        match frame.into_data() {
            Ok(data) => {
                let last = body.is_end_stream();
                write(exchange, send, data, last).await?;
                if last {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return send.trailers(&trailers);
                }
            }
        }
    }
}

/// Makes several equal lengths one, and that of an answer without a body none (RFC 9110 8.6): clients of HTTP/2 take neither.
fn one_length(status: StatusCode, fields: &mut HeaderMap) {
    if status == StatusCode::NO_CONTENT {
        fields.remove(header::CONTENT_LENGTH);
        return;
    }
    let mut lines = fields.get_all(header::CONTENT_LENGTH).iter();
    let (Some(first), second) = (lines.next(), lines.next()) else {
        return;
    };
    let number = first
        .as_bytes()
        .split(|b| *b == b',')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    if (second.is_some() || number.len() < first.len())
        && let Ok(one) = HeaderValue::from_bytes(number)
    {
        fields.insert(header::CONTENT_LENGTH, one);
    }
}

/// Sends one piece of a body as the windows allow.
async fn write(exchange: &Exchange, send: &Answer, mut data: Bytes, last: bool) -> Result<(), Gone> {
    if data.is_empty() {
        return send.data(&data, last);
    }
    while !data.is_empty() {
        let room = wait(exchange, send, |cx| send.poll_room(cx, data.len())).await?;
        send.data(&data[..room], last && room == data.len())?;
        data.advance(room);
        exchange.moved();
    }
    Ok(())
}

/// Waits for `what`, unless the client gives the stream up, or the timer does. That is looked for only while there is nothing to
/// send; sending tells it, too.
async fn wait<T>(
    exchange: &Exchange,
    send: &Answer,
    mut what: impl FnMut(&mut Context<'_>) -> Poll<Result<T, Gone>>,
) -> Result<T, Gone> {
    poll_fn(|cx| {
        if let Poll::Ready(done) = what(cx) {
            return Poll::Ready(done);
        }
        exchange.listen(cx);
        if exchange.expired.get() {
            send.reset(Code::Cancel);
            return Poll::Ready(Err(Gone));
        }
        send.poll_over(cx).map(Err)
    })
    .await
}

/// The answer to an extended CONNECT whose container switched protocols.
fn accepted(response: Response<ResponseBody>) -> HeaderMap {
    let (mut parts, _) = response.into_parts();
    for name in [
        header::CONNECTION,
        header::UPGRADE,
        header::SEC_WEBSOCKET_ACCEPT,
        header::CONTENT_LENGTH,
    ] {
        parts.headers.remove(name);
    }
    parts.headers
}

/// A request's body.
pub(crate) struct StreamBody {
    stream: Body,
    /// What Content-Length says is still to come.
    left: Option<u64>,
    /// The client waits to be told to go on.
    continues: bool,
    exchange: Rc<Exchange>,
}

impl StreamBody {
    pub(crate) fn left(&self) -> Option<u64> {
        self.left
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.stream.is_end()
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.exchange.stopped(cx) {
            return Poll::Ready(Some(Err(BodyError)));
        }
        if std::mem::take(&mut self.continues) {
            self.exchange.go_on.set(true);
            self.exchange.wake();
        }
        if let Some(data) = ready!(self.stream.poll_data(cx)) {
            // What the endpoint does not take stays here: no more is asked for.
            self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
            self.exchange.moved();
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match self.stream.over() {
            // Whoever serves the stream learns it too, and ends the request as one that its client has given up.
            Some(Over::Client) => {
                self.stream.listen(cx);
                Poll::Pending
            }
            Some(Over::Here) => Poll::Ready(Some(Err(BodyError))),
            None => Poll::Ready(self.stream.trailers().map(|trailers| Ok(Frame::trailers(trailers)))),
        }
    }
}

/// A stream that carries a tunnel.
struct TunnelStream {
    send: Answer,
    receive: Body,
    /// Received, not yet read.
    rest: Bytes,
}

fn broken() -> std::io::Error {
    std::io::ErrorKind::BrokenPipe.into()
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                Some(data) => self.rest = data,
                None if self.receive.over().is_some() => return Poll::Ready(Err(broken())),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let room = ready!(self.send.poll_room(cx, buf.len())).map_err(|Gone| broken())?;
        self.send.data(&buf[..room], false).map_err(|Gone| broken())?;
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // The connection's own task writes.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(self.send.data(&[], true).map_err(|Gone| broken()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_one_length_and_none_without_a_body() {
        let lengths = |status: u16, values: &[&'static str]| {
            let mut fields = HeaderMap::new();
            for value in values {
                fields.append(header::CONTENT_LENGTH, HeaderValue::from_static(value));
            }
            one_length(StatusCode::from_u16(status).expect("a status"), &mut fields);
            let left = fields.get_all(header::CONTENT_LENGTH).iter();
            left.map(|v| v.to_str().expect("text").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(200, &["5"]), ["5"]);
        assert_eq!(lengths(200, &["5, 5"]), ["5"]);
        assert_eq!(lengths(200, &["5", "5"]), ["5"]);
        assert_eq!(lengths(304, &["5"]), ["5"]);
        assert!(lengths(204, &["0"]).is_empty());
    }
}
