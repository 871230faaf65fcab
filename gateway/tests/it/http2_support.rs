//! An HTTP/2 client by the `h2` crate, beside the one that writes single frames.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;

pub(crate) use crate::http2_frames::*;
use crate::peers::LIMIT;

/// A connection by the `h2` crate.
pub(crate) struct Client {
    pub(crate) send: SendRequest<Bytes>,
    /// Ends with the connection.
    pub(crate) task: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// An answer with everything that belongs to it.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) head: Response<()>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Whole {
    pub(crate) fn status(&self) -> u16 {
        self.head.status().as_u16()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.head.headers().get(name).map_or("", |v| v.to_str().unwrap())
    }
}

impl Client {
    pub(crate) async fn open(at: SocketAddr) -> Self {
        Self::with(at, h2::client::Builder::new()).await
    }

    pub(crate) async fn with(at: SocketAddr, builder: h2::client::Builder) -> Self {
        let stream = TcpStream::connect(at).await.unwrap();
        let (send, connection) = builder.handshake(stream).await.unwrap();
        let task = tokio::spawn(connection);
        Self { send, task }
    }

    /// Sends a head; the body may follow unless `end`.
    pub(crate) async fn start(&mut self, request: Request<()>, end: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let mut ready = tokio::time::timeout(LIMIT, self.send.clone().ready())
            .await
            .expect("ready in time")
            .unwrap();
        ready.send_request(request, end).unwrap()
    }

    pub(crate) async fn get(&mut self, host: &str, path: &str) -> Whole {
        let request = Request::get(format!("http://{host}{path}")).body(()).unwrap();
        self.whole(request).await
    }

    /// A request without a body.
    pub(crate) async fn whole(&mut self, request: Request<()>) -> Whole {
        let (response, _) = self.start(request, true).await;
        finish(response).await.expect("an answer")
    }
}

/// The whole answer.
pub(crate) async fn finish(response: ResponseFuture) -> Result<Whole, h2::Error> {
    tokio::time::timeout(LIMIT, async {
        let (head, mut body) = response.await?.into_parts();
        let bytes = read(&mut body).await?;
        Ok(Whole {
            head: Response::from_parts(head, ()),
            body: bytes,
            trailers: body.trailers().await?,
        })
    })
    .await
    .expect("an answer in time")
}

async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend(data);
    }
    Ok(bytes)
}

/// Sends a body as the windows allow.
pub(crate) async fn upload(send: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len().min(65_536));
        let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
        let Some(room) = room else {
            return Err(h2::Reason::CANCEL.into());
        };
        let n = room?.min(data.len());
        let piece = data.split_to(n);
        send.send_data(piece, end && data.is_empty())?;
    }
    Ok(())
}

/// Waits at most [`LIMIT`] for something.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what).await.expect("in time")
}
