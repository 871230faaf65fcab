//! Serving: connections in, requests to the router. It bounds connections, heads, the time to send one and the time
//! for which a client may leave an answer unread, and ends them at shutdown. It knows nothing of what is served.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Most connections at once; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 2_048;
/// How long a client may take to send a request's head; also how long an idle connection is kept.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// How long a client may take none of an answer while its buffers are full, or its machine acknowledge nothing
/// (`TCP_USER_TIMEOUT`, RFC 5482): then its connection is cut, so that it can't hold its place for ever.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// What the kernel keeps of an answer that is not read yet, bytes. Bounded, so that many such answers don't fill the memory,
/// and so that who reads slowly makes room before [`WRITE_DEADLINE`].
const SEND_BUFFER: usize = 256 * 1024;
/// Largest request head, bytes.
const MAX_HEAD: usize = 64 * 1024;
/// Most header fields.
const MAX_HEADERS: usize = 100;
/// Pause after a failed accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `shutdown`, then lets open requests finish for at most `grace`.
pub(crate) async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken, grace: Duration) {
    serve_within(listener, router, shutdown, grace, WRITE_DEADLINE).await;
}

async fn serve_within(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    grace: Duration,
    write_deadline: Duration,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let (stream, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = connection(stream, router.clone(), shutdown.clone(), write_deadline);
        let cut = cut.clone();
        connections.spawn(async move {
            let _place = place;
            tokio::select! {
                () = cut.cancelled() => {}
                () = connection => {}
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests cut off at shutdown");
        cut.cancel();
        connections.wait().await;
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(|_| std::io::Error::other("closed"))?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken, write_deadline: Duration) {
    // Small answers must not wait for the client's acknowledgement.
    let _ = stream.set_nodelay(true);
    // Where these can't be set, the deadline of writes still holds as soon as the buffers are full.
    let socket = SockRef::from(&stream);
    let _ = socket.set_tcp_user_timeout(Some(write_deadline));
    let _ = socket.set_send_buffer_size(SEND_BUFFER);
    let stream = Progressing::new(stream, write_deadline);
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// A connection whose writes fail when none has got on for a while.
#[derive(Debug)]
struct Progressing {
    stream: TcpStream,
    deadline: Duration,
    /// When the write that waits fails; meaningless while none does.
    fails: Pin<Box<Sleep>>,
    waits: bool,
}

impl Progressing {
    fn new(stream: TcpStream, deadline: Duration) -> Self {
        Self {
            stream,
            deadline,
            fails: Box::pin(sleep(deadline)),
            waits: false,
        }
    }

    /// What a write came to; one that has waited too long comes to an error.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waits = false;
            return written;
        }
        if !self.waits {
            self.waits = true;
            self.fails.as_mut().reset(Instant::now() + self.deadline);
        }
        ready!(self.fails.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client took none of the answer in time",
        )))
    }
}

impl AsyncRead for Progressing {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Progressing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Counts the answers that are still being sent.
    struct Sending(Arc<AtomicUsize>);

    impl Drop for Sending {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn who_never_reads_is_cut_off_and_who_reads_slowly_is_not() {
        let open = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&open);
        let endless = get(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let sending = Sending(Arc::clone(&counted));
            let chunks = futures::stream::repeat(Bytes::from_static(&[b'x'; 16 * 1024])).map(move |chunk| {
                let _while_it_is_sent = &sending;
                Ok::<_, std::convert::Infallible>(chunk)
            });
            async { Body::from_stream(chunks) }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = Router::new().route("/", endless);
        let second = Duration::from_secs(1);
        tokio::spawn(serve_within(listener, router, stop.clone(), Duration::ZERO, second));
        let ask = async || {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            stream
        };
        let deaf = ask().await;
        let mut slow = ask().await;
        let begun = Instant::now();
        let mut seen = 0;
        let mut some = vec![0; 64 * 1024];
        // The slow one takes a little now and then, for longer than the deadline.
        while begun.elapsed() < 3 * second {
            seen += slow.read(&mut some).await.expect("not cut off");
            tokio::time::sleep(second / 10).await;
        }
        assert!(seen > 0);
        assert_eq!(open.load(Ordering::SeqCst), 1, "only the slow one is left");
        drop((deaf, slow));
        stop.cancel();
    }
}
