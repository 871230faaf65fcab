//! One TCP connection's way through the gateway: limits, the endpoint, further endpoints when one does not take it, the
//! bytes, and what is written down when it ends. It came to a port of the app's own, or named the app in its first message of TLS.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use model::config::{Protocol, ProxyProtocol};
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::Arrival;
use super::greeting::greeting;
use super::metrics::{Outcome, Stripe};
use super::splice::{End, splice};
use crate::access_log;
use crate::balance::{Ask, Tried, Unpicked};
use crate::config::plain;
use crate::door::Open;
use crate::eject::{Endpoint, Entered};
use crate::limit::OneConnection;
use crate::outcome;
use crate::rate::{Asking, Held};
use crate::reach;
use crate::shared::Shared;
use crate::table::App;
use crate::upstream;
use crate::worker::Worker;

/// How long both sides of a connection may be silent before the kernel asks whether the other is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// How soon a port proxy closes whose app is dead: it has tried to connect, on its own machine.
const CLOSES_WITHIN: Duration = Duration::from_millis(20);

/// How a connection came.
#[derive(Debug)]
pub(crate) struct Call {
    /// The client.
    pub(crate) from: SocketAddr,
    /// Where a balancer in front says that the client connected to; else it is asked of the socket.
    pub(crate) to: Option<SocketAddr>,
    /// The port at which it came.
    pub(crate) port: u16,
    /// The version that the client named, in lower case.
    pub(crate) version: Option<Box<str>>,
    /// What was read of it already: the first message of TLS. Empty: nothing, and perhaps the endpoint speaks first.
    pub(crate) first: Vec<u8>,
    /// It came to the TLS port, where the client was given its place among its connections.
    pub(crate) tls: bool,
}

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
    call: Call,
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
        if self.worker.shared.log.is_none() {
            return;
        }
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let at = self.entered.as_ref().map(Entered::endpoint);
        let line = Line {
            ts: model::Timestamp::now(),
            protocol: if self.call.tls { "tls" } else { "tcp" },
            port: self.call.port,
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
        self.worker.log(|out| access_log::any(out, &line));
    }
}

/// Takes a connection that came to an app's own port to it and stays with it to the end.
pub(crate) async fn serve(worker: &Rc<Worker>, arrival: Arrival) {
    worker.stats().connections.add(1);
    let _open = Open::new(Rc::clone(worker));
    drop(arrival.coming);
    let Ok(client) = TcpStream::from_std(arrival.stream) else {
        return;
    };
    let Some(app) = worker.app(arrival.app.as_str()) else {
        return;
    };
    let call = Call {
        from: arrival.peer,
        to: None,
        port: arrival.port,
        version: None,
        first: Vec::new(),
        tls: false,
    };
    carry(worker, app, client, call).await;
}

/// Takes a connection that counts as open already to this app and stays with it to the end.
pub(crate) async fn carry(worker: &Rc<Worker>, app: Arc<App>, mut client: TcpStream, call: Call) {
    let ip = plain(call.from.ip());
    let under_way = app.shared.in_flight.fetch_add(1, Ordering::Relaxed);
    let stripe = app.shared.tcp().of(worker.index);
    stripe.opened.add(1);
    stripe.open.add(1);
    let mut passage = Passage {
        worker: Rc::clone(worker),
        app,
        call,
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
    let taken = take(&mut passage, &client).await;
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
            call,
            bytes_in,
            bytes_out,
            ..
        } = &mut passage;
        let stripe = app.shared.tcp().of(worker.index);
        *bytes_in = std::mem::take(&mut call.first).len() as u64;
        stripe.bytes_in.add(*bytes_in);
        splice(worker, &mut client, &mut endpoint, idle, |up, down| {
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
        End::Unanswered => Outcome::Unanswered,
    };
    if let Some(endpoint) = passage.entered.as_ref().map(Entered::endpoint) {
        match passage.outcome {
            Outcome::Unanswered => outcome::unanswered(worker, &passage.app, endpoint, passage.outcome.as_str()),
            _ if passage.bytes_out > 0 => endpoint.worked(),
            _ => {}
        }
    }
}

/// What the app's configuration, and the gateway's deny list, refuse.
pub(crate) fn turned_away(shared: &Shared, app: &App, ip: IpAddr, under_way: u32) -> Result<(), Outcome> {
    if app.settings.config.protocol != Protocol::Tcp {
        return Err(Outcome::NoEndpoints);
    }
    if shared.deny.contains(ip) || app.settings.deny.contains(ip) {
        return Err(Outcome::Denied);
    }
    if under_way >= app.settings.max_in_flight {
        return Err(Outcome::Overloaded);
    }
    Ok(())
}

/// Everything that is decided before an endpoint is asked. `under_way`: connections of the app before this one.
fn admit(passage: &Passage, under_way: u32) -> Result<Option<OneConnection>, Outcome> {
    let (worker, app, ip) = (&passage.worker, &passage.app, passage.ip);
    let (shared, settings) = (&worker.shared, &passage.app.settings);
    turned_away(shared, app, ip, under_way)?;
    let most = shared.config.max_connections.div_ceil(shared.workers.len()) as u64;
    if worker.stats().connections_open.get() > most {
        return Err(Outcome::Overloaded);
    }
    let slot = if passage.call.tls || shared.trusted.contains(ip) {
        None
    } else {
        Some(shared.connections.open(ip).ok_or(Outcome::Overloaded)?)
    };
    if let Some(limiter) = &settings.limiter
        && let asking = Asking::new(shared, app, ip, Instant::now())
        && limiter.check(&shared.clients, &Held::default(), asking).is_err()
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
/// sent here but what can be said again to another: nothing is lost by asking one more.
async fn take(passage: &mut Passage, client: &TcpStream) -> Result<TcpStream, Outcome> {
    let worker = Rc::clone(&passage.worker);
    let clock = worker.shared.clock;
    let budget = Duration::from_millis(worker.shared.config.retry_time_ms);
    let mut tried = Tried::default();
    let mut failure = Outcome::NoEndpoints;
    // The passage counts at the one that it came to, whichever takes it.
    let mut app = Arc::clone(&passage.app);
    loop {
        let now = Instant::now();
        let probe = |endpoint: &Arc<Endpoint>| reach::probe(&worker, &app, endpoint);
        let mut ask = Ask {
            version: passage.call.version.clone(),
            ..Ask::default()
        };
        if let Some(plan) = &app.plan {
            plan.read_address(&mut ask, passage.ip);
        }
        let entered = match app.pick(&ask, &tried, clock, now, probe) {
            Ok(entered) => entered,
            Err(Unpicked::Full) => return Err(Outcome::Overloaded),
            // Withdrawn since the table was read? Then there is a newer one.
            Err(why) => match worker.newer(&app) {
                Some(newer) => {
                    app = newer;
                    continue;
                }
                None if why == Unpicked::Unreachable => {
                    reach::look_after(&worker, &app, now);
                    return Err(Outcome::Unreachable);
                }
                None => return Err(failure),
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
        failure = match connect(&worker, &app, &endpoint, client, &passage.call).await {
            Ok(stream) => {
                endpoint.reached();
                return Ok(stream);
            }
            Err(Refused::ByClient) => return Err(Outcome::ClientGone),
            Err(Refused::ByGateway) => Outcome::ConnectFailed,
            Err(Refused::ByEndpoint) => {
                let failure = Outcome::ConnectFailed;
                outcome::left_out(&worker, &app, &endpoint, failure.as_str(), Instant::now());
                failure
            }
            Err(Refused::Unanswered) => {
                let failure = Outcome::Unanswered;
                outcome::unanswered(&worker, &app, &endpoint, failure.as_str());
                failure
            }
        };
        passage.entered = None;
        tried.add(endpoint.id, false);
    }
}

/// Why there is no connection to an endpoint.
enum Refused {
    /// This machine lacks something.
    ByGateway,
    ByEndpoint,
    ByClient,
    /// It closed on the client's first message. The message may be to blame, so that alone leaves no endpoint out.
    Unanswered,
}

/// A connection to the endpoint, which knows by then who the client is if it wants to, and has the client's first message.
async fn connect(
    worker: &Worker,
    app: &App,
    endpoint: &Endpoint,
    client: &TcpStream,
    call: &Call,
) -> Result<TcpStream, Refused> {
    let within = app.settings.connect;
    worker.stats().connects.add(1);
    let connecting = tokio::time::timeout(within, TcpStream::connect(endpoint.address));
    let mut stream = match connecting.await {
        Ok(Ok(stream)) => stream,
        failed => {
            worker.stats().connect_failures.add(1);
            return Err(match failed {
                Ok(Err(error)) if upstream::is_own_fault(&error) => Refused::ByGateway,
                _ => {
                    endpoint.connect_failed();
                    Refused::ByEndpoint
                }
            });
        }
    };
    endpoint.reach.reached();
    prepare(&stream);
    let version = app.settings.config.tcp.proxy_protocol;
    let mut header = Vec::new();
    if version != ProxyProtocol::None {
        let to = match call.to {
            Some(to) => to,
            None => client.local_addr().map_err(|_| Refused::ByClient)?,
        };
        header = greeting(version, call.from, to);
    }
    for bytes in [&header, &call.first] {
        // Both fit every socket buffer.
        let written = tokio::time::timeout(within, stream.write_all(bytes)).await;
        if !matches!(written, Ok(Ok(()))) {
            return Err(Refused::ByEndpoint);
        }
    }
    if call.first.is_empty() {
        first_word(client, &stream, within).await?;
        if endpoint.troubled() {
            stays(&stream).await?;
        }
    } else {
        answered(&stream, within).await?;
    }
    Ok(stream)
}

/// Waits a moment for the answer to the client's first message. One that closes without a word has not taken the connection.
async fn answered(endpoint: &TcpStream, within: Duration) -> Result<(), Refused> {
    match tokio::time::timeout(within, endpoint.peek(&mut [0])).await {
        Ok(Ok(1..)) | Err(_) => Ok(()),
        Ok(Ok(0) | Err(_)) => Err(Refused::Unanswered),
    }
}

/// Looks for a moment whether the endpoint closes at once, as Docker's port proxy does in the place of a dead app. Only of one that
/// has failed before: what the client has said may not be said twice, so it is not sent to find out.
async fn stays(endpoint: &TcpStream) -> Result<(), Refused> {
    match tokio::time::timeout(CLOSES_WITHIN, endpoint.peek(&mut [0])).await {
        Ok(Ok(1..)) | Err(_) => Ok(()),
        Ok(Ok(0) | Err(_)) => Err(Refused::ByEndpoint),
    }
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
