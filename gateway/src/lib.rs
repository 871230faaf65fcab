//! The gateway: a request comes in, the answer of one of its app's instances goes out.
//!
//! The life of a request, each step in its own module:
//!
//! 1. [`worker`] has its own thread, runtime and [`door`]s, which accept connections: [`proxy_protocol`] and [`tls`] come before the
//!    first request. Nothing is shared on the way of a request but what is read, and counters.
//! 2. [`connection`] reads heads with time limits, one request after the other, and parks what is idle.
//!    HTTP/2 connections are served by [`http2`], each of their streams by a task of its own.
//!    [`client`] is who asks, [`exchange`] how far the current request has come.
//! 3. [`forward`] asks [`route`] what the host names, looks the app up in the [`table`], and applies [`limit`]s.
//! 4. [`headers`] makes the request's headers safe to send on; [`prefix`] takes off the path by which the app was found, if it
//!    wants that.
//! 5. [`table`] picks an endpoint that [`eject`] does not leave out, unless [`reach`] knows that there is no way to any; [`upstream`]
//!    asks it once: [`pool`] or [`h2c`] has a connection to it, or one is made on a [`line`].
//! 6. [`body`] streams both ways, counting; [`retry`] says what may be sent again when an endpoint fails.
//! 7. [`upgrade`] takes over when both sides agree on another protocol.
//! 8. [`flight`] writes down how it ended: [`metrics`], [`access_log`].
//!
//! Apps that do not speak HTTP have a port of their own: [`tcp`].
//!
//! Beside it [`follow`] turns registry events into route tables and acknowledges them, and [`admin`] answers operators.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access_log;
mod acme;
mod admin;
mod answer;
mod balance;
mod behind;
mod body;
mod client;
mod config;
mod connection;
mod departure;
mod door;
mod ear;
mod eject;
mod exchange;
mod flight;
mod follow;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod h2c;
mod headers;
mod hints;
mod http1;
mod http2;
mod identity;
mod idle;
mod limit;
mod line;
mod metrics;
mod outcome;
mod owed;
mod pipe;
mod pool;
mod prefix;
mod proxy_protocol;
mod rate;
mod reach;
mod redirect;
mod retry;
mod route;
mod shared;
mod snapshot_file;
mod stream;
mod succession;
mod table;
mod tcp;
mod tls;
mod trace;
mod upgrade;
mod upstream;
mod websocket;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::registry::RegistryReader;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use config::{Config, ID};
pub use model::PortRange;
pub use succession::{OpenPorts, Succession};

use shared::Shared;

/// Connections that may wait to be accepted, per listener; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;

/// What the gateway needs from others.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Where apps and their endpoints are read.
    pub registry: Arc<dyn RegistryReader>,
    /// Notified when certificates are to be read again at once.
    pub reload: Arc<Notify>,
}

/// The sockets, bound by the caller.
#[derive(Debug)]
pub struct Listeners {
    /// For clients: one per worker thread, `SO_REUSEPORT`, non-blocking; see [`bind`].
    pub http: Vec<std::net::TcpListener>,
    /// For clients that speak TLS, as many as for plain ones; none when TLS is off.
    pub tls: Vec<std::net::TcpListener>,
    /// Ports of TCP apps that came from a process before: each is used for the app that has the port, and closed if none has.
    pub tcp: Vec<std::net::TcpListener>,
    /// For operators.
    pub admin: std::net::TcpListener,
    /// Where they come from and when they go.
    pub succession: Succession,
}

/// Why the gateway could not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that can't be; the text says which, and what would do.
    #[error("{0}")]
    Config(String),
    /// A thread, runtime or socket that could not be set up.
    #[error("the gateway could not start: {0}")]
    Start(String),
    /// A worker ended although it was not told to.
    #[error("a gateway worker stopped: {0}")]
    Worker(String),
}

/// Binds `workers` listeners to one address, among which the kernel spreads connections. With port 0 all get the same
/// free port.
///
/// # Errors
/// When the address can't be bound.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let mut address = address;
    let mut listeners = Vec::with_capacity(workers);
    for _ in 0..workers.max(1) {
        let listener = listen(address, true)?;
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// A non-blocking listener at this address; `share`: other listeners may have the same one (`SO_REUSEPORT`).
///
/// # Errors
/// When the address can't be bound.
pub fn listen(address: SocketAddr, share: bool) -> io::Result<std::net::TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    // Connections of a listener before it may still be open.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// How long a gateway that has just been started waits for its first copy of the registry, or the snapshot file, before it serves.
const FIRST_COPY: Duration = Duration::from_secs(2);

/// Serves until `shutdown`, then drains: `/ready` answers 503 at once, connections are accepted for `drain_delay_s` more, open
/// requests and tunnels have `drain_timeout_s` to finish. After a hand-over of the sockets it drains without delay.
///
/// # Errors
/// [`Error`] when the settings are wrong, something can't be set up, or a worker ends by itself.
pub async fn run(config: Config, deps: Deps, listeners: Listeners, shutdown: CancellationToken) -> Result<(), Error> {
    if listeners.http.is_empty() {
        return Err(Error::Config("the gateway needs at least one listener".into()));
    }
    let https_port = match listeners.tls.first() {
        Some(listener) if listeners.tls.len() == listeners.http.len() => {
            Some(listener.local_addr().map_err(|e| Error::Start(e.to_string()))?.port())
        }
        Some(_) => {
            return Err(Error::Config(
                "the gateway needs as many TLS listeners as plain ones, or none".into(),
            ));
        }
        None => None,
    };
    let shared = Arc::new(Shared::new(config, listeners.http.len(), https_port)?);
    let sources = open_certificates(&shared).await?;
    let id = match shared.config.id.as_str() {
        "" => format!("gw-{:012x}", rand::random::<u64>() & 0xffff_ffff_ffff),
        id => id.to_owned(),
    };
    listeners
        .admin
        .set_nonblocking(true)
        .map_err(|e| Error::Start(e.to_string()))?;
    let admin = tokio::net::TcpListener::from_std(listeners.admin).map_err(|e| Error::Start(e.to_string()))?;

    // Dropped with this future: whatever ends it ends the workers too.
    let stop = CancellationToken::new();
    let control = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let _control = control.clone().drop_guard();

    let Succession {
        inherited,
        ports,
        serving,
        handed_over,
    } = listeners.succession;
    let (hands, arrivals): (Vec<_>, Vec<_>) = listeners.http.iter().map(|_| tcp::handover()).unzip();
    let ports = tcp::Ports::new(Arc::clone(&shared), hands, listeners.tcp, ports, stop.clone());
    if let (Some(sources), Some(tls)) = (sources, &shared.tls) {
        tokio::spawn(tls::keep(Arc::clone(tls), sources, deps.reload, control.clone()));
    }
    let following = follow::run(Arc::clone(&shared), deps.registry, id.clone(), ports, control.clone());
    let following = tokio::spawn(following);
    // Its socket goes to a successor too, before the rest of the drain.
    let asked = control.child_token();
    // Who comes before the apps are known waits in the sockets. Those that another process still serves, the admin server's too,
    // have no hurry.
    if inherited {
        tokio::select! {
            () = shared.loaded() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
    let administering = tokio::spawn(admin::run(Arc::clone(&shared), admin, asked.clone()));
    tokio::select! {
        _ = tokio::time::timeout(FIRST_COPY, shared.loaded()) => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    let mut workers = Vec::new();
    let mut tls = listeners.tls.into_iter();
    for (index, (plain, arrivals)) in listeners.http.into_iter().zip(arrivals).enumerate() {
        workers.push(start(index, &shared, plain, tls.next(), arrivals, &stop)?);
    }
    tracing::info!(gateway = %id, domain = %shared.config.domain, workers = workers.len(), "gateway serves");
    let mut workers = futures::future::join_all(workers);
    serving.cancel();

    let early = tokio::select! {
        () = shutdown.cancelled() => {
            shared.stopping.store(true, Ordering::Relaxed);
            tracing::info!("gateway drains");
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(shared.config.drain_delay_s)) => {}
                () = handed_over.cancelled() => {}
            }
            None
        }
        () = handed_over.cancelled() => {
            tracing::info!("gateway drains: another process has its sockets");
            asked.cancel();
            None
        }
        ended = &mut workers => Some(ended),
    };
    let ended = match early {
        Some(ended) => ended,
        None => {
            stop.cancel();
            let ended = workers.await;
            control.cancel();
            // Both end by the token; the limit is for what can't.
            let both = async { tokio::join!(following, administering) };
            let _ = tokio::time::timeout(Duration::from_secs(2), both).await;
            ended
        }
    };
    if let Some(log) = &shared.log {
        log.finish().await;
    }
    for result in ended {
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Error::Worker(error.to_string())),
            Err(_) => return Err(Error::Worker("its thread panicked".into())),
        }
    }
    Ok(())
}

/// Reads the certificates' folder before the first handshake.
async fn open_certificates(shared: &Arc<Shared>) -> Result<Option<tls::Sources>, Error> {
    if shared.tls.is_none() {
        return Ok(None);
    }
    let shared = Arc::clone(shared);
    let opened = tokio::task::spawn_blocking(move || {
        let tls = shared.tls.as_ref()?;
        Some(tls::Sources::open(&shared.config, shared.keys.clone(), tls))
    });
    let opened = opened
        .await
        .map_err(|e| Error::Start(format!("the certificates: {e}")))?;
    opened.transpose()
}

/// Starts a worker's thread; the receiver hears how it ended.
fn start(
    index: usize,
    shared: &Arc<Shared>,
    plain: std::net::TcpListener,
    tls: Option<std::net::TcpListener>,
    arrivals: mpsc::Receiver<tcp::Arrival>,
    stop: &CancellationToken,
) -> Result<oneshot::Receiver<io::Result<()>>, Error> {
    let (tell, told) = oneshot::channel();
    let (shared, stop) = (Arc::clone(shared), stop.clone());
    std::thread::Builder::new()
        .name(format!("gateway-{index}"))
        .spawn(move || {
            // However a worker ends, also by a panic, the others end with it: half a gateway is worse than none.
            let _all = stop.clone().drop_guard();
            // Nobody listens any more when the caller has given up.
            let _ = tell.send(worker::run(index, shared, plain, tls, arrivals, &stop));
        })
        .map_err(|e| Error::Start(format!("a worker's thread: {e}")))?;
    Ok(told)
}
