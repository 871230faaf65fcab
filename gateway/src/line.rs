//! The socket of an HTTP/2 connection to an endpoint, which tells when the endpoint has said something at all.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::ear::Ear;

/// What is known of the connection. The HTTP library owns the socket and asks that what it owns may move between threads, hence
/// the atomics; all of it happens on one thread.
#[derive(Debug, Default)]
pub(crate) struct Line {
    heard: AtomicBool,
    waker: AtomicWaker,
}

impl Line {
    /// Ready once the endpoint has sent anything.
    pub(crate) fn poll_heard(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.heard.load(Ordering::Relaxed) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn heard(&self) {
        if !self.heard.load(Ordering::Relaxed) {
            self.heard.store(true, Ordering::Relaxed);
            self.waker.wake();
        }
    }
}

/// The socket as the HTTP library uses it.
#[derive(Debug)]
pub(crate) struct LineIo {
    stream: TcpStream,
    ear: Ear,
    line: Arc<Line>,
}

impl LineIo {
    pub(crate) fn new(stream: TcpStream) -> (Self, Arc<Line>) {
        let line = Arc::new(Line::default());
        let io = Self {
            stream,
            ear: Ear::new(),
            line: Arc::clone(&line),
        };
        (io, line)
    }
}

impl AsyncRead for LineIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, ear, line } = &mut *self;
        ready!(ear.poll_read(stream, cx, buf))?;
        line.heard();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LineIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
