//! A door: a listening socket, and what comes before the first request of a connection: limits, the PROXY header of a
//! balancer, the TLS handshake.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use tokio::net::{TcpListener, TcpStream};

use crate::answer::Reason;
use crate::client::Client;
use crate::config::plain;
use crate::limit::OneConnection;
use crate::stream::Stream;
use crate::table::App;
use crate::tcp::passthrough;
use crate::tls::{self, Failure, Tls};
use crate::worker::Worker;
use crate::{answer, connection, proxy_protocol, tcp};

/// How long a connection that has sent too little for a request may go on once the worker drains.
const DRAINING: Duration = Duration::from_secs(1);

/// A listening socket of one worker.
pub(crate) struct Door {
    listener: TcpListener,
    side: Rc<Side>,
}

/// What connections through one door have in common.
struct Side {
    /// The port, and as a header value.
    number: u16,
    port: Rc<HeaderValue>,
    tls: Option<Arc<Tls>>,
}

impl Door {
    /// For HTTP.
    pub(crate) fn plain(listener: std::net::TcpListener) -> io::Result<Self> {
        Self::new(listener, None)
    }

    /// For HTTP inside TLS.
    pub(crate) fn tls(listener: std::net::TcpListener, tls: Arc<Tls>) -> io::Result<Self> {
        Self::new(listener, Some(tls))
    }

    fn new(listener: std::net::TcpListener, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        let number = listener.local_addr()?.port();
        let port = Rc::new(HeaderValue::from(number));
        Ok(Self {
            listener: TcpListener::from_std(listener)?,
            side: Rc::new(Side { number, port, tls }),
        })
    }

    /// Accepts connections for ever.
    pub(crate) async fn accept(&self, worker: &Rc<Worker>) {
        let mut pause = Duration::ZERO;
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    pause = Duration::ZERO;
                    open(worker, stream, peer, &self.side);
                }
                Err(error) => {
                    worker.stats().accept_errors.add(1);
                    // Out of descriptors or memory: whoever waits is served when some are free; until then don't spin.
                    pause = (pause * 2).clamp(Duration::from_millis(5), Duration::from_secs(1));
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Takes in who has been let in by the kernel already, then closes.
    pub(crate) fn close(self, worker: &Rc<Worker>) {
        let Ok(listener) = self.listener.into_std() else {
            return;
        };
        for _ in 0..crate::BACKLOG {
            let (stream, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                // It has left while it waited.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(_) => break,
            };
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                open(worker, stream, peer, &self.side);
            }
        }
    }
}

fn open(worker: &Rc<Worker>, stream: TcpStream, peer: SocketAddr, side: &Rc<Side>) {
    let shared = &worker.shared;
    let stats = worker.stats();
    stats.connections.add(1);
    let most = shared.config.max_connections.div_ceil(shared.workers.len()) as u64;
    if stats.connections_open.get() >= most {
        // Best effort: the answer fits every socket buffer, and nobody waits for it.
        let _ = stream.try_write(answer::TOO_MANY);
        worker.refused(Reason::TooManyConnections);
        return;
    }
    // Fails only on a dead connection, which shows soon enough.
    let _ = stream.set_nodelay(true);
    let ip = plain(peer.ip());
    let open = Open::new(Rc::clone(worker));
    if side.tls.is_some() || shared.balancers.contains(ip) {
        let side = Rc::clone(side);
        tokio::task::spawn_local(async move {
            // Boxed, so that a connection that is being served does not keep the space that this needs.
            match Box::pin(prepare(&open.0, stream, peer, &side)).await {
                Some(Prepared::Http(ready)) => {
                    connection::run(open, ready.slot, ready.client, ready.stream, ready.before).await;
                }
                Some(Prepared::Untouched(app, call, stream, slot)) => {
                    Box::pin(tcp::carry(&open.0, app, stream, call)).await;
                    drop((slot, open));
                }
                None => drop(open),
            }
        });
        return;
    }
    let Some((client, slot)) = admit(worker, ip, Rc::clone(&side.port), false) else {
        let _ = stream.try_write(answer::TOO_MANY);
        worker.refused(Reason::TooManyConnections);
        return;
    };
    let stream = Stream::Plain(stream);
    tokio::task::spawn_local(connection::run(open, slot, client, stream, Bytes::new()));
}

/// The client at this address, and its place among its connections (none for trusted proxies); `None`: it has too many.
fn admit(
    worker: &Worker,
    ip: IpAddr,
    port: Rc<HeaderValue>,
    https: bool,
) -> Option<(Rc<Client>, Option<OneConnection>)> {
    let shared = &worker.shared;
    let trusted = shared.trusted.contains(ip);
    let slot = if trusted {
        None
    } else {
        Some(shared.connections.open(ip)?)
    };
    let address = HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
    Some((Rc::new(Client::new(ip, address, port, https, trusted)), slot))
}

/// What a connection has turned out to be.
enum Prepared {
    Http(Ready),
    /// An app has it as it is.
    Untouched(Arc<App>, tcp::Call, TcpStream, Option<OneConnection>),
}

/// A connection that may begin with requests.
struct Ready {
    client: Rc<Client>,
    slot: Option<OneConnection>,
    stream: Stream,
    /// Read already.
    before: Bytes,
}

/// PROXY header and handshake; `None` when the connection is over.
async fn prepare(worker: &Rc<Worker>, mut stream: TcpStream, peer: SocketAddr, side: &Side) -> Option<Prepared> {
    let (mut port, mut before) = (Rc::clone(&side.port), Vec::new());
    let mut call = tcp::Call {
        from: peer,
        to: None,
        port: side.number,
        version: None,
        first: Vec::new(),
        tls: side.tls.is_some(),
    };
    if worker.shared.balancers.contains(plain(peer.ip())) {
        let header = within(worker, worker.limits.head, proxy_protocol::read(&mut stream)).await?;
        match header {
            Ok((header, rest)) => {
                before = rest;
                if let Some((from, to)) = header.addresses {
                    (call.from, call.to) = (from, Some(to));
                    port = Rc::new(HeaderValue::from(to.port()));
                }
            }
            Err(error) => {
                // A balancer that only looks whether the port is open sends nothing.
                if error.kind() == io::ErrorKind::InvalidData {
                    worker.stats().proxy_headers_bad.add(1);
                    if side.tls.is_none() {
                        let _ = stream.try_write(answer::NO_PROXY_HEADER);
                        worker.refused(Reason::BadProxyHeader);
                    }
                    connection::linger(worker, Stream::Plain(stream), connection::SHORT).await;
                }
                return None;
            }
        }
    }
    let Some((client, slot)) = admit(worker, plain(call.from.ip()), port, side.tls.is_some()) else {
        if side.tls.is_none() {
            let _ = stream.try_write(answer::TOO_MANY);
            worker.refused(Reason::TooManyConnections);
        }
        return None;
    };
    let Some(tls) = &side.tls else {
        return Some(Prepared::Http(Ready {
            client,
            slot,
            stream: Stream::Plain(stream),
            before: before.into(),
        }));
    };
    let begun = std::time::Instant::now();
    let failed = |failure: Failure| worker.stats().tls_failures[failure as usize].add(1);
    let first = within(worker, worker.handshake, tls::first(&mut stream, before)).await;
    match first.unwrap_or(Err(Failure::Timeout)) {
        Ok(hello) => {
            if let Some((app, version)) = passthrough::wanted(worker, &hello) {
                (call.version, call.first) = (version, hello.raw);
                return Some(Prepared::Untouched(app, call, stream, slot));
            }
            let left = worker.handshake.saturating_sub(begun.elapsed());
            let challenges = &worker.shared.challenges;
            if challenges.any()
                && let Some(certificate) = challenges.certificate(&hello)
            {
                let prove = tls::prove(stream, hello, &certificate);
                let proved = tokio::time::timeout(left, prove).await;
                if let Err(failure) = proved.unwrap_or(Err(Failure::Timeout)) {
                    failed(failure);
                }
                return None;
            }
            let finish = tls::finish(tls, worker.stats(), stream, hello);
            let finished = tokio::time::timeout(left, finish).await;
            match finished.unwrap_or(Err(Failure::Timeout)) {
                Ok((stream, shown)) => {
                    // A proxy that is trusted may bring any host along.
                    if let Some(shown) = shown.filter(|_| !client.trusted) {
                        // It is empty: nobody else sets it.
                        let _ = client.shown.set(Box::new(shown));
                    }
                    Some(Prepared::Http(Ready {
                        client,
                        slot,
                        stream: Stream::Tls(stream),
                        before: Bytes::new(),
                    }))
                }
                Err(failure) => {
                    failed(failure);
                    None
                }
            }
        }
        Err(failure) => {
            failed(failure);
            if failure == Failure::PlainHttp {
                let _ = stream.try_write(answer::PLAIN_HTTP);
                worker.refused(Reason::PlainHttp);
            }
            if !matches!(failure, Failure::Closed | Failure::Timeout) {
                connection::linger(worker, Stream::Plain(stream), connection::SHORT).await;
            }
            None
        }
    }
}

/// Waits at most so long, and only shortly once the worker drains.
pub(crate) async fn within<T>(worker: &Worker, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = tokio::time::sleep(limit) => None,
        () = drained(worker) => None,
    }
}

/// When who has sent too little for a request must go because the worker drains.
pub(crate) async fn drained(worker: &Worker) {
    worker.drain.cancelled().await;
    tokio::time::sleep(DRAINING).await;
}

/// Counts an open connection, also when its task panics.
pub(crate) struct Open(pub(crate) Rc<Worker>);

impl Open {
    pub(crate) fn new(worker: Rc<Worker>) -> Self {
        worker.stats().connections_open.add(1);
        Self(worker)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.stats().connections_open.sub(1);
    }
}
