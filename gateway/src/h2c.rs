//! Upstream connections that speak HTTP/2 without TLS (RFC 9113 3.3): few per endpoint and worker, each shared by many
//! requests. A connection takes requests only once the endpoint has proved that it speaks HTTP/2.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::body::RequestBody;
use crate::line::LineIo;

/// Most streams that are opened on one connection. Together with the two windows it means that requests whose clients don't read
/// never hold up others: the connection's window can't be used up by streams that have used up theirs.
const STREAMS: usize = 64;
/// Bytes of an answer that an endpoint may send ahead per stream.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same per connection.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS as u32;
/// Most connections per endpoint and worker; beyond them requests wait for a stream, at most as many as there are streams.
const CONNECTIONS: usize = 32;

/// Runs the library's tasks on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// The library's settings; heads of answers are at most `max_head` bytes.
pub(crate) fn builder(max_head: usize) -> http2::Builder<Local> {
    let mut builder = http2::Builder::new(Local);
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .initial_max_send_streams(STREAMS)
        .max_header_list_size(u32::try_from(max_head).unwrap_or(u32::MAX));
    builder
}

/// Why there is no place on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// No socket.
    Connect,
    /// Who took it does not speak HTTP/2, or is not who was meant.
    Peer,
    /// As many requests wait as may.
    Full,
}

/// What an endpoint's settings allow.
#[derive(Default)]
struct Allowed {
    /// Most requests at once.
    most: Cell<usize>,
    /// Extended CONNECT (RFC 8441 3).
    sockets: Cell<bool>,
}

/// One connection.
struct Connection {
    sender: http2::SendRequest<RequestBody>,
    /// Requests on it.
    open: Cell<usize>,
    allowed: Rc<Allowed>,
    /// The same by what it refused.
    refused: Cell<usize>,
    /// No further request goes here.
    retired: Cell<bool>,
    /// When the last request left.
    since: Cell<Instant>,
}

impl Connection {
    fn usable(&self) -> bool {
        !self.retired.get() && !self.sender.is_closed()
    }

    fn has_room(&self) -> bool {
        self.open.get() < self.most()
    }

    /// Most requests that the endpoint takes at once.
    fn most(&self) -> usize {
        self.allowed.most.get().min(self.refused.get())
    }
}

/// One request's place on a connection.
pub(crate) struct Stream(Rc<Connection>);

impl Stream {
    fn enter(connection: &Rc<Connection>) -> Self {
        connection.open.set(connection.open.get() + 1);
        Self(Rc::clone(connection))
    }

    pub(crate) fn sender(&self) -> http2::SendRequest<RequestBody> {
        self.0.sender.clone()
    }

    /// Whether the endpoint takes WebSockets.
    pub(crate) fn takes_sockets(&self) -> bool {
        self.0.allowed.sockets.get()
    }

    /// The endpoint does not take as many requests as there are.
    pub(crate) fn full(&self) {
        self.0.refused.set(self.0.open.get().saturating_sub(1).max(1));
    }

    /// No further request is sent on the connection; those that are there may finish.
    pub(crate) fn retire(&self) {
        self.0.retired.set(true);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.since.set(Instant::now());
    }
}

/// The connections to one endpoint.
#[derive(Default)]
struct Lines {
    open: RefCell<Vec<Rc<Connection>>>,
    /// Held by who connects, so that requests that come together share what they get.
    dialling: tokio::sync::Mutex<()>,
    /// Connects that failed, and why the last one did.
    failures: Cell<(u32, Option<Failed>)>,
}

impl Lines {
    /// A place on the connection with the most requests that still has one, so that the others may become idle.
    /// `None`: a new connection is needed.
    fn place(&self) -> Result<Option<Stream>, Failed> {
        let mut open = self.open.borrow_mut();
        open.retain(|c| c.usable());
        let free = open.iter().filter(|c| c.has_room());
        if let Some(best) = free.max_by_key(|c| c.open.get()) {
            return Ok(Some(Stream::enter(best)));
        }
        if open.len() < CONNECTIONS {
            return Ok(None);
        }
        let waiting = open.iter().filter(|c| c.open.get() < 2 * c.most());
        let best = waiting.min_by_key(|c| c.open.get()).ok_or(Failed::Full)?;
        Ok(Some(Stream::enter(best)))
    }
}

/// All connections of a worker.
#[derive(Default)]
pub(crate) struct Shared(RefCell<HashMap<u64, Rc<Lines>, ahash::RandomState>>);

impl Shared {
    /// A place on a connection to `endpoint` that is there already.
    pub(crate) fn place(&self, endpoint: u64) -> Result<Option<Stream>, Failed> {
        self.0.borrow().get(&endpoint).map_or(Ok(None), |lines| lines.place())
    }

    /// The same, or on a new connection; whether the connection was there already. `connect` makes a socket, `prove` says whether who
    /// took it is who was meant.
    pub(crate) async fn take(
        &self,
        endpoint: u64,
        builder: &http2::Builder<Local>,
        within: Duration,
        connect: impl Future<Output = Option<TcpStream>>,
        prove: impl AsyncFnOnce(http2::SendRequest<RequestBody>) -> bool,
    ) -> Result<(Stream, bool), Failed> {
        let lines = Rc::clone(self.0.borrow_mut().entry(endpoint).or_default());
        let before = lines.failures.get();
        let _dialling = lines.dialling.lock().await;
        if let Some(stream) = lines.place()? {
            return Ok((stream, true));
        }
        if let (n, Some(why)) = lines.failures.get()
            && n != before.0
        {
            return Err(why);
        }
        let opened = match connect.await {
            Some(stream) => {
                let opening = async {
                    let connection = open(builder, stream).await?;
                    prove(connection.sender.clone()).await.then_some(connection)
                };
                let opened = tokio::time::timeout(within, opening).await;
                opened.ok().flatten().ok_or(Failed::Peer)
            }
            None => Err(Failed::Connect),
        };
        let connection = opened.inspect_err(|why| lines.failures.set((before.0.wrapping_add(1), Some(*why))))?;
        let stream = Stream::enter(&connection);
        lines.open.borrow_mut().push(connection);
        Ok((stream, false))
    }

    /// Closes what has been unused for `keep`, and forgets what is closed.
    pub(crate) fn sweep(&self, now: Instant, keep: Duration) {
        self.0.borrow_mut().retain(|_, lines| {
            let mut open = lines.open.borrow_mut();
            open.retain(|c| c.usable() && (c.open.get() > 0 || now.saturating_duration_since(c.since.get()) < keep));
            !open.is_empty() || Rc::strong_count(lines) > 1
        });
    }
}

/// What a connection is asked through that no request will have.
pub(crate) async fn sender(
    builder: &http2::Builder<Local>,
    stream: TcpStream,
) -> Option<http2::SendRequest<RequestBody>> {
    open(builder, stream).await.map(|connection| connection.sender.clone())
}

/// Makes a connection of a socket: both sides have said that they speak HTTP/2, and how many streams there may be is known.
async fn open(builder: &http2::Builder<Local>, stream: TcpStream) -> Option<Rc<Connection>> {
    let (io, line) = LineIo::new(stream);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.ok()?;
    let mut connection = Box::pin(connection);
    poll_fn(|cx| {
        // Its end before the first frame means that this is no HTTP/2.
        if connection.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        line.poll_heard(cx).map(Some)
    })
    .await?;
    // A first frame that is none ends the connection as soon as the library's own task has looked at it.
    tokio::task::yield_now().await;
    if poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx).is_ready())).await {
        return None;
    }
    let allowed = Rc::<Allowed>::default();
    let known = Rc::clone(&allowed);
    known.most.set(STREAMS.min(connection.current_max_send_streams()));
    known.sockets.set(connection.is_extended_connect_protocol_enabled());
    tokio::task::spawn_local(async move {
        poll_fn(|cx| {
            let ended = connection.as_mut().poll(cx).is_ready();
            known.most.set(STREAMS.min(connection.current_max_send_streams()));
            known.sockets.set(connection.is_extended_connect_protocol_enabled());
            if ended { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    });
    Some(Rc::new(Connection {
        sender,
        open: Cell::new(0),
        allowed,
        refused: Cell::new(usize::MAX),
        retired: Cell::new(false),
        since: Cell::new(Instant::now()),
    }))
}
