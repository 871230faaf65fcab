//! Who is at the other end of a connection, and its socket.

use std::cell::{OnceCell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::ear::Ear;
use crate::exchange::{Exchange, Phase};
use crate::rate::Held;
use crate::stream::{Stream, poll_write_pieces};
use crate::table::App;
use crate::tls::Certificate;

/// The peer of one connection.
pub(crate) struct Client {
    /// Its address in its plain form.
    pub(crate) ip: IpAddr,
    /// The same as a header value.
    pub(crate) address: HeaderValue,
    /// The port that it connected to, as a header value; shared, since quiet connections are to hold little.
    pub(crate) port: Rc<HeaderValue>,
    /// It speaks TLS to this gateway.
    pub(crate) https: bool,
    /// Its X-Forwarded-* are believed.
    pub(crate) trusted: bool,
    /// What it asked for last.
    pub(crate) last: LastHost,
    /// Whom the gateway has shown itself as, to clients that named a server in their handshake.
    pub(crate) shown: OnceCell<Box<Shown>>,
}

impl Client {
    /// One that has asked for nothing yet.
    pub(crate) fn new(ip: IpAddr, address: HeaderValue, port: Rc<HeaderValue>, https: bool, trusted: bool) -> Self {
        Self {
            ip,
            address,
            port,
            https,
            trusted,
            last: LastHost::default(),
            shown: OnceCell::new(),
        }
    }
}

/// Whom a client takes the gateway for: requests may be for these hosts and no others (RFC 9110 4.3.3).
pub(crate) struct Shown {
    /// The server that the client named, in lower case.
    pub(crate) name: String,
    pub(crate) certificate: Arc<Certificate>,
}

impl Shown {
    /// Whether a request for `host`, in lower case, belongs on the connection.
    pub(crate) fn is(&self, host: &str) -> bool {
        self.name == host || self.certificate.covers(host)
    }
}

/// The host that a client asked for last, its app, and the client's rate there.
#[derive(Default)]
pub(crate) struct LastHost {
    known: RefCell<Option<Box<Known>>>,
    pub(crate) rate: Held,
}

struct Known {
    /// As it came.
    host: Vec<u8>,
    app: Arc<App>,
    /// The table that says so.
    table: u64,
}

impl LastHost {
    /// The app, if `host` is the last one and the table is still the same.
    #[inline]
    pub(crate) fn app(&self, host: &[u8], table: u64) -> Option<Arc<App>> {
        match &*self.known.borrow() {
            Some(known) if known.table == table && known.host == host => Some(Arc::clone(&known.app)),
            _ => None,
        }
    }

    pub(crate) fn remember(&self, host: &[u8], app: &Arc<App>, table: u64) {
        let (host, app) = (host.to_vec(), Arc::clone(app));
        self.known.replace(Some(Box::new(Known { host, app, table })));
    }

    /// Gives back what it holds.
    pub(crate) fn forget(&self) {
        self.known.replace(None);
        self.rate.forget();
    }
}

/// The socket of a connection that serves one request after the other, with bytes that were read before, counting what moves.
pub(crate) struct Socket {
    stream: Stream,
    ear: Ear,
    before: Bytes,
    exchange: Rc<Exchange>,
    /// All that the library had to say before the answer to the current request is written.
    level: bool,
    /// Interim answers that are being written.
    interim: Bytes,
}

impl Socket {
    pub(crate) fn new(stream: Stream, before: Bytes, exchange: Rc<Exchange>) -> Self {
        Self {
            stream,
            ear: Ear::new(),
            before,
            exchange,
            level: false,
            interim: Bytes::new(),
        }
    }

    /// The stream, and what was read of it and is still to be looked at.
    pub(crate) fn into_parts(self) -> (Stream, Bytes) {
        (self.stream, self.before)
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(socket) => self.ear.poll_read(socket, cx, buf),
            // A read may wait for something to be written.
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }

    /// Looks whether the client is still there while its request, which has come whole, is under way. The library would do so
    /// with a buffer for a whole head, which few clients need then.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.exchange.phase.get() == Phase::Idle || self.exchange.body_open.get() || !self.before.is_empty() {
            return Ok(());
        }
        let mut space = [MaybeUninit::uninit(); 512];
        let mut buf = ReadBuf::uninit(&mut space);
        match self.poll_stream(cx, &mut buf) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(())) if buf.filled().is_empty() => Err(io::ErrorKind::ConnectionAborted.into()),
            // The next request.
            Poll::Ready(Ok(())) => {
                self.before = Bytes::copy_from_slice(buf.filled());
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(error),
        }
    }

    /// Writes the interim answers that wait.
    fn pass_hints(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let hints = &self.exchange.hints;
        if self.interim.is_empty() && hints.any() {
            self.interim = hints.text();
        }
        while !self.interim.is_empty() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.interim))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.interim.advance(n);
        }
        self.interim = Bytes::new();
        Poll::Ready(Ok(()))
    }

    /// Before the library writes: interim answers that came along with the answer go first, if its next byte is the answer's first.
    fn before_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let first = std::mem::take(&mut self.level) && self.exchange.phase.get() != Phase::Waiting;
        if !self.interim.is_empty() || (first && self.exchange.hints.any()) {
            return self.pass_hints(cx);
        }
        Poll::Ready(Ok(()))
    }

    /// Bytes of a request have come.
    fn came(&self) {
        let exchange = &self.exchange;
        // A body may outlive its request's answer.
        if exchange.phase.get() == Phase::Idle && !exchange.body_open.get() {
            exchange.head_begun.set(true);
            if exchange.unsent.get() {
                // What comes does not move the answer before it.
                return;
            }
        }
        exchange.moved();
    }

    /// Bytes that the library had were written, or will be.
    fn went(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Ready(written) => {
                self.exchange.moved();
                self.exchange.wrote(*written.as_ref().unwrap_or(&0));
            }
            Poll::Pending => self.exchange.unsent.set(true),
        }
        result
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.before.is_empty() {
            let n = self.before.len().min(buf.remaining());
            buf.put_slice(&self.before[..n]);
            self.before.advance(n);
            if self.before.is_empty() {
                // Its buffer is needed no more.
                self.before = Bytes::new();
            }
            self.came();
            return Poll::Ready(Ok(()));
        }
        let filled = buf.filled().len();
        let result = self.poll_stream(cx, buf);
        if buf.filled().len() > filled {
            self.came();
        }
        result
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = match self.before_write(cx)? {
            Poll::Ready(()) => Pin::new(&mut self.stream).poll_write(cx, buf),
            Poll::Pending => Poll::Pending,
        };
        self.went(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = match self.before_write(cx)? {
            Poll::Ready(()) => poll_write_pieces(Pin::new(&mut self.stream), cx, bufs),
            Poll::Pending => Poll::Pending,
        };
        self.went(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The library flushes whenever it has nothing else to do.
        self.look(cx)?;
        if self.exchange.phase.get() == Phase::Waiting {
            // It flushes what it has written itself, so nothing of that is left.
            self.level = true;
            if self.exchange.hints.any() || !self.interim.is_empty() {
                ready!(self.pass_hints(cx))?;
            }
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        // It asks only once it has nothing more to write.
        self.exchange.unsent.set(flushed.is_pending());
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.exchange.unsent.set(closed.is_pending());
        closed
    }
}
