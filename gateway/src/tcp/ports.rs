//! The listeners of TCP apps. What is to be open follows from the registry; a port that can't be opened is tried again and
//! harms nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use model::AppId;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Arrival, OnTheWay};
use crate::shared::Shared;
use crate::succession::OpenPorts;

/// Between two tries at ports that can't be opened.
const AGAIN: Duration = Duration::from_secs(1);

/// The open ports. Dropping it closes them; connections go on.
pub(crate) struct Ports {
    shared: Arc<Shared>,
    /// A way to each worker.
    hands: Arc<[mpsc::Sender<Arrival>]>,
    /// From a process before, until it is known which ports are wanted.
    inherited: BTreeMap<u16, TcpListener>,
    /// Open ones, for a process after.
    known: OpenPorts,
    stop: CancellationToken,
    wanted: BTreeMap<u16, AppId>,
    open: BTreeMap<u16, Open>,
    /// Told as not to be opened, so that it is told once.
    failed: BTreeSet<u16>,
    tried: Instant,
}

/// One of them. Dropping it closes the port.
struct Open {
    /// Whose it is: the listener stays the same when that changes.
    owner: watch::Sender<AppId>,
    _close: DropGuard,
}

impl Ports {
    /// No port yet; all close at `stop`. `inherited`: open already; `known` hears of all that are.
    pub(crate) fn new(
        shared: Arc<Shared>,
        hands: Vec<mpsc::Sender<Arrival>>,
        inherited: Vec<std::net::TcpListener>,
        known: OpenPorts,
        stop: CancellationToken,
    ) -> Self {
        // One that can't be used is opened anew.
        let listener = |socket| {
            let listener = TcpListener::from_std(socket).ok()?;
            Some((listener.local_addr().ok()?.port(), listener))
        };
        let inherited = inherited.into_iter().filter_map(listener).collect();
        Self {
            shared,
            hands: hands.into(),
            inherited,
            known,
            stop,
            wanted: BTreeMap::new(),
            open: BTreeMap::new(),
            failed: BTreeSet::new(),
            tried: Instant::now(),
        }
    }

    /// Opens what `wanted` has more than before and closes what it has no more.
    pub(crate) fn want(&mut self, wanted: BTreeMap<u16, AppId>) {
        let allowed = self.shared.config.tcp_ports;
        self.wanted = wanted;
        self.wanted.retain(|port, app| {
            let may = allowed.contains(*port);
            if !may {
                tracing::warn!(%app, port, %allowed, "port outside gateway.tcp_ports is never opened");
            }
            may
        });
        self.open.retain(|port, open| {
            let app = self.wanted.get(port);
            if let Some(app) = app.filter(|app| *open.owner.borrow() != **app) {
                tracing::info!(%app, port, "port is another app's now");
                open.owner.send_replace(app.clone());
            }
            app.is_some()
        });
        self.failed.retain(|port| self.wanted.contains_key(port));
        self.look();
    }

    /// Tries what could not be opened once more, now and then.
    pub(crate) fn tend(&mut self, now: Instant) {
        if self.shared.registry.loaded.is_cancelled() {
            // Those that are left are nobody's.
            self.inherited.clear();
        }
        if !self.failed.is_empty() && now.saturating_duration_since(self.tried) >= AGAIN {
            self.tried = now;
            self.look();
        }
    }

    fn look(&mut self) {
        if self.stop.is_cancelled() {
            return;
        }
        let ip = self
            .shared
            .config
            .tcp_listen_ip
            .unwrap_or(self.shared.config.listen.ip());
        for (port, app) in &self.wanted {
            if self.open.contains_key(port) {
                continue;
            }
            let address = SocketAddr::new(ip, *port);
            let inherited = self.inherited.remove(port);
            let inherited = inherited.filter(|l| l.local_addr().is_ok_and(|at| at == address));
            match inherited.map_or_else(|| listen(address), Ok) {
                Ok(listener) => {
                    let listener = Arc::new(listener);
                    self.known.add(*port, &listener);
                    tracing::info!(%app, port, "port opened");
                    self.failed.remove(port);
                    let close = self.stop.child_token();
                    let (owner, app) = watch::channel(app.clone());
                    let accepting = Accepting {
                        shared: Arc::clone(&self.shared),
                        hands: Arc::clone(&self.hands),
                        app,
                        port: *port,
                        turn: 0,
                        _coming: OnTheWay::new(&self.shared),
                    };
                    tokio::spawn(accepting.run(listener, close.clone()));
                    let open = Open {
                        owner,
                        _close: close.drop_guard(),
                    };
                    self.open.insert(*port, open);
                }
                Err(error) => {
                    if self.failed.insert(*port) {
                        tracing::error!(%app, port, %ip, %error, "port can't be opened; it is tried again every second");
                    }
                }
            }
        }
        let status = &self.shared.tcp;
        status.open.store(self.open.len() as u64, Ordering::Relaxed);
        status.failed.store(self.failed.len() as u64, Ordering::Relaxed);
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::from_std(crate::listen(address, false)?)
}

/// One open port.
struct Accepting {
    shared: Arc<Shared>,
    hands: Arc<[mpsc::Sender<Arrival>]>,
    app: watch::Receiver<AppId>,
    port: u16,
    turn: usize,
    _coming: OnTheWay,
}

impl Accepting {
    async fn run(mut self, listener: Arc<TcpListener>, close: CancellationToken) {
        let mut pause = Duration::ZERO;
        loop {
            let accepted = tokio::select! {
                () = close.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let error = match accepted.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) {
                Ok((stream, peer)) => {
                    pause = Duration::ZERO;
                    self.hand_over(stream, peer);
                    continue;
                }
                Err(error) => error,
            };
            self.shared.tcp.accept_errors.fetch_add(1, Ordering::Relaxed);
            // Out of descriptors or memory: whoever waits is served when some are free; until then don't spin.
            pause = (pause * 2).clamp(Duration::from_millis(5), Duration::from_secs(1));
            tracing::warn!(port = self.port, %error, "a connection could not be accepted");
            tokio::time::sleep(pause).await;
        }
        // Who has been let in by the kernel already must not be thrown out. The runtime may not know of all of them yet.
        while let Ok((stream, peer)) = socket2::SockRef::from(&*listener).accept() {
            if let (Ok(()), Some(peer)) = (stream.set_nonblocking(true), peer.as_socket()) {
                self.hand_over(stream.into(), peer);
            }
        }
        tracing::info!(app = %*self.app.borrow(), port = self.port, "port closed");
    }

    /// To the worker with the fewest connections; among equals in turn. Without room there the connection is closed: a worker that is a thousand
    /// connections behind would not serve it in time.
    fn hand_over(&mut self, stream: std::net::TcpStream, peer: SocketAddr) {
        let n = self.hands.len();
        self.turn = self.turn.wrapping_add(1);
        let in_turn = (0..n).map(|i| (self.turn % n + i) % n);
        let Some(worker) = in_turn.min_by_key(|i| self.shared.workers[*i].connections_open.get()) else {
            return;
        };
        let arrival = Arrival {
            stream,
            peer,
            port: self.port,
            app: self.app.borrow().clone(),
            coming: OnTheWay::new(&self.shared),
        };
        if self.hands[worker].try_send(arrival).is_err() {
            self.shared.tcp.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
