//! One TCP connection's way through the gateway: limits, the endpoint, further endpoints when one does not take it, the
//! bytes, and what is written down when it ends.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use model::config::{Protocol, ProxyProtocol};
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::Arrival;
use super::greeting::greeting;
use super::metrics::{Outcome, Stripe};
use super::splice::{End, splice};
use crate::balance::{Ask, Tried, Unpicked};
use crate::config::plain;
use crate::door::Open;
use crate::eject::{Endpoint, Entered};
use crate::limit::OneConnection;
use crate::table::App;
use crate::worker::Worker;

/// How long both sides of a connection may be silent before the kernel asks whether the other is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// A connection as the access log has it. Times in microseconds, sizes in bytes.
#[derive(Debug, Serialize)]
struct Line<'a> {
    ts: model::Timestamp,
    protocol: &'static str,
    port: u16,
    app: &'a str,
    version: &'a str,
    container: &'a str,
    endpoint: String,
    attempts: u32,
    duration_us: u64,
    connect_us: u64,
    bytes_in: u64,
    bytes_out: u64,
    client: IpAddr,
    reason: &'static str,
}

/// A connection under way. It ends exactly once, however it ends: what it holds is given back and what became of it is counted when
/// this is dropped.
struct Passage {
    worker: Rc<Worker>,
    app: Arc<App>,
    port: u16,
    ip: IpAddr,
    started: Instant,
    entered: Option<Entered>,
    attempts: u32,
    /// From the start until an endpoint had taken it.
    connect: Duration,
    bytes_in: u64,
    bytes_out: u64,
    outcome: Outcome,
}

impl Passage {
    fn stripe(&self) -> &Stripe {
        self.app.shared.tcp().of(self.worker.index)
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let stripe = self.stripe();
        stripe.open.sub(1);
        stripe.ended[self.outcome as usize].add(1);
        self.app.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        let Some(log) = &self.worker.shared.log else { return };
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let at = self.entered.as_ref().map(Entered::endpoint);
        let line = Line {
            ts: model::Timestamp::now(),
            protocol: "tcp",
            port: self.port,
            app: self.app.shared.id.as_str(),
            version: at.map_or("", |e| e.key.version.as_str()),
            container: at.map_or("", |e| e.key.container.as_str()),
            endpoint: at.map(|e| e.address.to_string()).unwrap_or_default(),
            attempts: self.attempts,
            duration_us: micros(self.started.elapsed()),
            connect_us: micros(self.connect),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            client: self.ip,
            reason: match self.outcome {
                Outcome::Closed => "",
                other => other.as_str(),
            },
        };
        if !log.send(&line) {
            self.worker.stats().log_dropped.add(1);
        }
    }
}

/// Takes a connection to its app and stays with it to the end. `before` is what was read of it already.
pub(crate) async fn serve(worker: &Rc<Worker>, arrival: Arrival, before: Bytes) {
    worker.stats().connections.add(1);
    let _open = Open::new(Rc::clone(worker));
    let Ok(mut client) = TcpStream::from_std(arrival.stream) else {
        return;
    };
    let Some(app) = worker.app(arrival.app.as_str()) else {
        return;
    };
    let ip = plain(arrival.peer.ip());
    let under_way = app.shared.in_flight.fetch_add(1, Ordering::Relaxed);
    let stripe = app.shared.tcp().of(worker.index);
    stripe.opened.add(1);
    stripe.open.add(1);
    let mut passage = Passage {
        worker: Rc::clone(worker),
        app,
        port: arrival.port,
        ip,
        started: Instant::now(),
        entered: None,
        attempts: 0,
        connect: Duration::ZERO,
        bytes_in: 0,
        bytes_out: 0,
        outcome: Outcome::Stopped,
    };
    let _slot = match admit(&passage, under_way) {
        Ok(slot) => slot,
        Err(outcome) => {
            passage.outcome = outcome;
            return;
        }
    };
    prepare(&client);
    let taken = take(&mut passage, &client, arrival.peer, !before.is_empty()).await;
    let mut endpoint = match taken {
        Ok(endpoint) => endpoint,
        Err(outcome) => {
            passage.outcome = outcome;
            return;
        }
    };
    passage.connect = passage.started.elapsed();
    let idle = passage.app.settings.tunnel_idle;
    let end = {
        let Passage {
            app,
            bytes_in,
            bytes_out,
            ..
        } = &mut passage;
        let stripe = app.shared.tcp().of(worker.index);
        splice(worker, &mut client, &mut endpoint, before, idle, |up, down| {
            stripe.bytes_in.add(up);
            stripe.bytes_out.add(down);
            *bytes_in += up;
            *bytes_out += down;
        })
        .await
    };
    passage.outcome = match end {
        End::Closed => Outcome::Closed,
        End::Idle => Outcome::Idle,
        End::Client => Outcome::ClientGone,
        End::Endpoint => Outcome::EndpointGone,
    };
}

/// Everything that is decided before an endpoint is asked. `under_way`: connections of the app before this one.
fn admit(passage: &Passage, under_way: u32) -> Result<Option<OneConnection>, Outcome> {
    let (worker, app, ip) = (&passage.worker, &passage.app, passage.ip);
    let (shared, settings) = (&worker.shared, &passage.app.settings);
    if app.settings.config.protocol != Protocol::Tcp {
        return Err(Outcome::NoEndpoints);
    }
    if shared.deny.contains(ip) || settings.deny.contains(ip) {
        return Err(Outcome::Denied);
    }
    let most = shared.config.max_connections.div_ceil(shared.workers.len()) as u64;
    if under_way >= settings.max_in_flight || worker.stats().connections_open.get() > most {
        return Err(Outcome::Overloaded);
    }
    let slot = if shared.trusted.contains(ip) {
        None
    } else {
        Some(shared.connections.open(ip).ok_or(Outcome::Overloaded)?)
    };
    if let Some(limiter) = &settings.limiter
        && limiter.check(ip).is_err()
    {
        return Err(Outcome::RateLimited);
    }
    Ok(slot)
}

/// Small messages go out at once; a peer that has vanished without a word is found out.
fn prepare(stream: &TcpStream) {
    // Both fail only on a dead connection, which shows soon enough.
    let _ = stream.set_nodelay(true);
    let keep_alive = socket2::TcpKeepalive::new().with_time(KEEP_ALIVE);
    let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&keep_alive);
}

/// Asks one endpoint after the other until one takes the connection, or it would be wrong to go on. No byte of the client's is
/// sent here, so nothing is lost by asking another. `spoken`: the client has said something already.
async fn take(passage: &mut Passage, client: &TcpStream, peer: SocketAddr, spoken: bool) -> Result<TcpStream, Outcome> {
    let worker = Rc::clone(&passage.worker);
    let clock = worker.shared.clock;
    let budget = Duration::from_millis(worker.shared.config.retry_time_ms);
    let mut tried = Tried::default();
    let mut failure = Outcome::NoEndpoints;
    loop {
        let now = Instant::now();
        let app = Arc::clone(&passage.app);
        let probe = |endpoint: &Arc<Endpoint>| crate::forward::probe(&worker, endpoint, app.settings.connect);
        let mut ask = Ask::default();
        if let Some(plan) = &app.plan {
            plan.read_address(&mut ask, passage.ip);
        }
        let entered = match app.pick(&ask, &tried, clock, now, probe) {
            Ok(entered) => entered,
            Err(Unpicked::Full) => return Err(Outcome::Overloaded),
            // Withdrawn since the table was read? Then there is a newer one.
            Err(Unpicked::None) => match worker.app(app.shared.id.as_str()) {
                Some(newer) if !Arc::ptr_eq(&newer, &app) => {
                    passage.app = newer;
                    continue;
                }
                _ => return Err(failure),
            },
        };
        if !tried.is_empty() {
            let in_time = now.saturating_duration_since(passage.started) < budget;
            if !in_time || !app.shared.budget.take(app.shared.tcp().connections(), now) {
                return Err(failure);
            }
            worker.stats().retries.add(1);
        }
        passage.attempts += 1;
        let endpoint = Arc::clone(entered.endpoint());
        passage.entered = Some(entered);
        match connect(&worker, &app, &endpoint, client, peer, spoken).await {
            Ok(stream) => {
                endpoint.worked();
                return Ok(stream);
            }
            Err(Refused::ByClient) => return Err(Outcome::ClientGone),
            Err(Refused::ByEndpoint) => {}
        }
        failure = Outcome::ConnectFailed;
        passage.entered = None;
        tried.add(endpoint.id, false);
        crate::forward::left_out(&worker, &app, &endpoint, failure.as_str(), Instant::now());
    }
}

/// Why there is no connection to an endpoint.
enum Refused {
    ByEndpoint,
    ByClient,
}

/// A connection to the endpoint, which knows by then who the client is if it wants to.
async fn connect(
    worker: &Worker,
    app: &App,
    endpoint: &Endpoint,
    client: &TcpStream,
    peer: SocketAddr,
    spoken: bool,
) -> Result<TcpStream, Refused> {
    let within = app.settings.connect;
    worker.stats().connects.add(1);
    let connecting = tokio::time::timeout(within, TcpStream::connect(endpoint.address));
    let Ok(Ok(mut stream)) = connecting.await else {
        worker.stats().connect_failures.add(1);
        return Err(Refused::ByEndpoint);
    };
    prepare(&stream);
    let version = app.settings.config.tcp.proxy_protocol;
    if version != ProxyProtocol::None {
        let gateway = client.local_addr().map_err(|_| Refused::ByClient)?;
        let header = greeting(version, peer, gateway);
        // It fits every socket buffer.
        let written = tokio::time::timeout(within, stream.write_all(&header)).await;
        if !matches!(written, Ok(Ok(()))) {
            return Err(Refused::ByEndpoint);
        }
    }
    if !spoken {
        first_word(client, &stream, within).await?;
    }
    Ok(stream)
}

/// Waits a moment for whoever speaks first. An accepted connection proves nothing (Docker's port proxy accepts for dead apps, then
/// closes): an endpoint that closes before either side has said a word has not taken the connection.
async fn first_word(client: &TcpStream, endpoint: &TcpStream, within: Duration) -> Result<(), Refused> {
    let mut byte = [0];
    let mut other = [0];
    tokio::select! {
        biased;
        peeked = endpoint.peek(&mut byte) => match peeked {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => Err(Refused::ByEndpoint),
        },
        peeked = client.peek(&mut other) => match peeked {
            // An end without a word is the endpoint's to answer.
            Ok(_) => Ok(()),
            Err(_) => Err(Refused::ByClient),
        },
        () = tokio::time::sleep(within) => Ok(()),
    }
}
