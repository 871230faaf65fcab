//! What all workers, the follower and the admin server share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use certificates::SealingKeys;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::access_log::AccessLog;
use crate::acme::Challenges;
use crate::config::Config;
use crate::eject::Clock;
use crate::limit::{Connections, Networks};
use crate::metrics::{AppStats, Histogram, WorkerStats};
use crate::rate::Clients;
use crate::table::Table;
use crate::tls::Tls;

/// The gateway's common state. Requests only read it, but for counters.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) table: Arc<ArcSwap<Table>>,
    pub(crate) workers: Box<[WorkerStats]>,
    /// Requests for hosts that are no app's.
    pub(crate) unknown: AppStats,
    pub(crate) clock: Clock,
    pub(crate) log: Option<AccessLog>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) clients: Clients,
    pub(crate) deny: Networks,
    pub(crate) trusted: Networks,
    /// Peers that begin connections with a PROXY header.
    pub(crate) balancers: Networks,
    pub(crate) tls: Option<Arc<Tls>>,
    /// By which the registry's secrets are opened.
    pub(crate) keys: Option<Arc<SealingKeys>>,
    /// What authorities are answered.
    pub(crate) challenges: Challenges,
    /// The port of https URLs that clients are sent to.
    pub(crate) https_port: u16,
    pub(crate) registry: RegistryStatus,
    pub(crate) tcp: TcpStatus,
    /// The shutdown has begun.
    pub(crate) stopping: AtomicBool,
    /// An operator wants no new traffic here: `/ready` answers 503.
    pub(crate) drained: AtomicBool,
}

/// How the ports of TCP apps are.
#[derive(Debug, Default)]
pub(crate) struct TcpStatus {
    pub(crate) open: AtomicU64,
    /// Wanted, and not to be opened.
    pub(crate) failed: AtomicU64,
    pub(crate) accept_errors: AtomicU64,
    /// Connections closed because no worker took them in time.
    pub(crate) dropped: AtomicU64,
    /// Open ports, and connections that no worker counts yet.
    pub(crate) coming: AtomicU64,
}

/// The copy is the snapshot file's.
pub(crate) const OF_A_FILE: u64 = u64::MAX;

/// How the registry copy is.
#[derive(Debug, Default)]
pub(crate) struct RegistryStatus {
    /// Cancelled once there is a snapshot or a snapshot file.
    pub(crate) loaded: CancellationToken,
    /// [`Clock::millis`] since which the registry is out of reach; 0: it is in reach.
    pub(crate) stale_since: AtomicU64,
    /// [`Clock::millis`] since which what requests obey is not kept true; 0: it is; [`OF_A_FILE`]: nobody knows. Follows
    /// `stale_since`, but becomes 0 only after requests obey what the registry says.
    pub(crate) outdated_since: AtomicU64,
    /// Newest revision applied.
    pub(crate) revision: AtomicI64,
    pub(crate) changes: AtomicU64,
    pub(crate) snapshots: AtomicU64,
    /// Entries in which resyncs found the copy wrong.
    pub(crate) differences: AtomicU64,
    /// Endpoints outside the allowed addresses and ports, never dialled.
    pub(crate) refused: AtomicU64,
    /// Endpoints held by the mass-vanish guard.
    pub(crate) held: AtomicU64,
    /// Time from the registry's word that something has changed, reading what it is included, until requests obey it.
    pub(crate) propagation: Histogram,
}

impl Shared {
    /// Waits until the first copy of the registry, or the snapshot file, is what requests and handshakes obey.
    pub(crate) async fn loaded(&self) {
        self.registry.loaded.cancelled().await;
        if let Some(tls) = &self.tls {
            tls.taken.cancelled().await;
        }
    }

    /// Whether it is.
    pub(crate) fn is_loaded(&self) -> bool {
        self.registry.loaded.is_cancelled() && self.tls.as_ref().is_none_or(|tls| tls.taken.is_cancelled())
    }

    /// Whether the copy of the registry is so old that a port in it may be another app's by now.
    pub(crate) fn is_outdated(&self, now: Instant) -> bool {
        let after = self.config.identity_after_ms;
        match self.registry.outdated_since.load(Ordering::Acquire) {
            0 => after == 0,
            OF_A_FILE => true,
            since => self.clock.millis(now).saturating_sub(since) >= after,
        }
    }

    /// `https_port`: where TLS is listened, if it is.
    pub(crate) fn new(config: Config, workers: usize, https_port: Option<u16>) -> Result<Self, Error> {
        config.check()?;
        let tls = https_port.map(|_| Tls::new().map(Arc::new)).transpose()?;
        let keys = config
            .certificates_key_file
            .as_deref()
            .map(SealingKeys::load)
            .transpose();
        let keys = keys.map_err(|e| Error::Config(format!("gateway.certificates_key_file: {e}")))?;
        let https_port = match config.https_port {
            0 => https_port.unwrap_or_default(),
            port => port,
        };
        Ok(Self {
            table: Arc::default(),
            workers: (0..workers).map(|_| WorkerStats::default()).collect(),
            unknown: AppStats::new(workers),
            clock: Clock::new(),
            log: AccessLog::open(&config.access_log)?,
            connections: Arc::new(Connections::new(config.max_connections_per_client)),
            clients: Clients::new(config.clients_tracked),
            deny: Networks::new(&config.deny),
            trusted: Networks::new(&config.trusted_proxies),
            balancers: Networks::new(&config.proxy_protocol_from),
            tls,
            keys: keys.map(Arc::new),
            challenges: Challenges::default(),
            https_port,
            registry: RegistryStatus::default(),
            tcp: TcpStatus::default(),
            stopping: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            config,
        })
    }
}
