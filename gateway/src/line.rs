//! The socket of an upstream connection: it never writes a request where bytes that nobody asked for are waiting, knows
//! whether anything of a request was written, and bounds what an endpoint may send before the head of its answer.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use futures::task::AtomicWaker;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::ear::Ear;
use crate::hints::{Beginning, Hints};

/// Most interim answers (1xx) before an answer. Apps send one or two.
const INTERIM: u32 = 16;

/// Nothing of the answer has come.
const NOTHING: u8 = 0;
/// It has begun with interim ones.
const BEGUN: u8 = 1;
/// No more of them may come.
const OWN: u8 = 2;

/// What is known of the request that the connection is at. The HTTP library owns the socket and asks that what it owns may
/// move between threads, hence the atomics; all of it happens on one thread.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// The connection was used before: look whether it is quiet before the first byte is written.
    used: AtomicBool,
    /// Something of the request was written.
    wrote: AtomicBool,
    /// Bytes that may still come before the head of the answer is whole; 0: not counted.
    left: AtomicU32,
    /// Interim answers so far.
    interim: AtomicU32,
    /// What the bytes are that come: [`NOTHING`], [`BEGUN`] or [`OWN`].
    stage: AtomicU8,
    beginning: Mutex<Beginning>,
    /// Something came since the request began.
    heard: AtomicBool,
    waker: AtomicWaker,
    /// The task of the connection.
    task: OnceLock<Waker>,
    /// Wakes of the task wait, see [`Line::muted`].
    muted: AtomicBool,
    /// One waits.
    woken: AtomicBool,
}

/// The connection's own waker: it wakes the task, unless that is known to be of no use.
impl Wake for Line {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.muted.load(Ordering::Relaxed) {
            self.woken.store(true, Ordering::Relaxed);
        } else if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }
}

impl Line {
    /// Polls the connection in its task, always the same one, with a waker of its own (in `own`).
    pub(crate) fn poll<T>(
        self: &Arc<Self>,
        own: &mut Option<Waker>,
        cx: &Context<'_>,
        connection: impl FnOnce(&mut Context<'_>) -> T,
    ) -> T {
        let waker = own.get_or_insert_with(|| {
            // It is empty: nobody else sets it.
            let _ = self.task.set(cx.waker().clone());
            Waker::from(Arc::clone(self))
        });
        connection(&mut Context::from_waker(waker))
    }

    /// Reads a part of the answer's body. The library wakes the connection's task for each, so that it reads on; after the
    /// `last` one, which it has left behind already, that would be for nothing.
    pub(crate) fn muted<B, T>(&self, body: &mut B, read: impl FnOnce(&mut B) -> T, last: impl FnOnce(&B) -> bool) -> T {
        self.muted.store(true, Ordering::Relaxed);
        let result = read(body);
        self.muted.store(false, Ordering::Relaxed);
        if self.woken.swap(false, Ordering::Relaxed)
            && !last(body)
            && let Some(task) = self.task.get()
        {
            task.wake_by_ref();
        }
        result
    }

    /// A request is about to be sent; at most `most` bytes may come before its answer's head is whole. Interim answers go to
    /// `hints`.
    pub(crate) fn begin(&self, used: bool, most: u32, hints: Option<&Arc<Hints>>) {
        self.used.store(used, Ordering::Relaxed);
        self.wrote.store(false, Ordering::Relaxed);
        self.interim.store(0, Ordering::Relaxed);
        self.stage.store(NOTHING, Ordering::Relaxed);
        *self.beginning.lock().unwrap_or_else(PoisonError::into_inner) = Beginning::of(hints);
        self.left.store(most, Ordering::Relaxed);
    }

    /// The head of the answer is there.
    pub(crate) fn answered(&self) {
        self.left.store(0, Ordering::Relaxed);
    }

    /// Whether an endpoint may have seen something of the request.
    pub(crate) fn wrote(&self) -> bool {
        self.wrote.load(Ordering::Relaxed)
    }

    /// Whether more came before an answer than may.
    pub(crate) fn flooded(&self) -> bool {
        self.interim.load(Ordering::Relaxed) > INTERIM || self.left.load(Ordering::Relaxed) == 1
    }

    /// Ready once the endpoint has sent anything.
    pub(crate) fn poll_heard(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.heard.load(Ordering::Relaxed) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn heard(&self, bytes: &[u8]) -> io::Result<()> {
        if !self.heard.load(Ordering::Relaxed) {
            self.heard.store(true, Ordering::Relaxed);
            self.waker.wake();
        }
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return Ok(());
        }
        let came = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.left.store(left.saturating_sub(came).max(1), Ordering::Relaxed);
        match self.stage.load(Ordering::Relaxed) {
            // The status is not 1xx.
            NOTHING if bytes.get(9).is_some_and(|b| *b != b'1') => self.stage.store(OWN, Ordering::Relaxed),
            NOTHING | BEGUN => {
                let mut beginning = self.beginning.lock().unwrap_or_else(PoisonError::into_inner);
                let (ended, goes_on) = beginning.hear(bytes);
                self.stage.store(if goes_on { BEGUN } else { OWN }, Ordering::Relaxed);
                self.interim.fetch_add(ended, Ordering::Relaxed);
            }
            _ => {}
        }
        if self.flooded() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too much before an answer"));
        }
        Ok(())
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

    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Before the first byte of a request on a used connection: what waits there is a late or second answer, or the end.
    fn first_byte(&self) -> io::Result<()> {
        if !self.line.used.load(Ordering::Relaxed) {
            return Ok(());
        }
        match SockRef::from(&self.stream).peek(&mut [MaybeUninit::uninit(); 1]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            _ => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    fn written(&self, result: &Poll<io::Result<usize>>) {
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.line.wrote.store(true, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for LineIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let Self { stream, ear, .. } = &mut *self;
        ready!(ear.poll_read(stream, cx, buf))?;
        Poll::Ready(self.line.heard(&buf.filled()[before..]))
    }
}

impl AsyncWrite for LineIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.line.wrote() {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        }
        self.first_byte()?;
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.line.wrote() {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        self.first_byte()?;
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(&result);
        result
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interim_answers_are_counted() {
        let line = Line::default();
        line.begin(false, 100_000, None);
        let one = b"HTTP/1.1 100 Continue\r\n\r\n";
        for _ in 0..INTERIM {
            assert!(line.heard(one).is_ok());
        }
        assert!(line.heard(one).is_err() && line.flooded());
        line.begin(true, 100_000, None);
        assert!(line.heard(&one.repeat(17)).is_err());
        line.begin(true, 100_000, None);
        assert!(line.heard(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 1").is_ok() && !line.flooded());
    }

    #[test]
    fn bytes_before_an_answer_are_bounded() {
        let line = Line::default();
        line.begin(false, 100, None);
        assert!(line.heard(&[b'a'; 90]).is_ok());
        assert!(line.heard(&[b'a'; 10]).is_err() && line.flooded());
        line.begin(false, 100, None);
        line.answered();
        assert!(line.heard(&[b'a'; 1_000]).is_ok() && !line.flooded());
    }
}
