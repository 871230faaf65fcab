//! registry-sync: finds out which instances are alive and keeps the registry true to it.
//!
//! It is the registry's only writer. One loop ([`sync`]) reads the store, compares and acts; beside it one small
//! task per instance ([`watch`]) probes and moves the instance's health state. Each can be killed at
//! any line: the next pass starts from the store and the registry again.
//!
//! - [`probe`]: one proof of life over the network
//! - [`health`]: what a row of proofs means, and when the next is due (pure)
//! - [`plan`]: what to write so that the registry fits the store (pure)
//! - [`versions`]: what gateways are told of an app's versions (pure)
//! - [`loads`]: what to write of instances' loads (pure)
//! - [`certificates`]: certificates on their way from the store to the registry
//! - [`confirm`]: which instances the gateways have taken up or let go (pure)

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod certificates;
mod confirm;
mod health;
mod loads;
mod metrics;
mod plan;
mod probe;
mod sync;
mod versions;
mod watch;

use std::sync::Arc;

use model::registry::RegistryWriter;
use model::store::InstanceStore;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Settings of the role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where `/live`, `/ready` and `/metrics` are served. Default `127.0.0.1:9091`.
    pub admin: std::net::SocketAddr,
    /// Most probes under way at once. Default 1,000.
    pub max_concurrent_probes: usize,
    /// Seconds between full passes when nothing happens. Default 10.
    pub full_pass_s: u64,
    /// Seconds after which what is published is read again from the registry. Default 60.
    pub reread_s: u64,
    /// Milliseconds that a gateway has to acknowledge a change before it is passed over. Default 2,000; about 5,000 where
    /// `caas haproxy` runs, since HAProxy is reloaded at most every 2 s.
    pub acknowledge_timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            admin: ([127, 0, 0, 1], 9091).into(),
            max_concurrent_probes: 1_000,
            full_pass_s: 10,
            reread_s: 60,
            acknowledge_timeout_ms: 2_000,
        }
    }
}

/// What the role works with.
#[derive(Clone, Debug)]
pub struct Deps {
    /// The part of the store that it may see and move.
    pub store: Arc<dyn InstanceStore>,
    /// The registry that it owns.
    pub registry: Arc<dyn RegistryWriter>,
}

/// Why the role ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The admin listener failed.
    #[error("the admin listener failed: {0}")]
    Admin(#[source] std::io::Error),
}

/// What `/ready` says while it is not.
const NOT_READY: &str = "the store or the registry can't be reached";

/// Runs the role until `shutdown`. Trouble with the store or the registry does not end it: it goes on when they are back.
pub async fn run(config: Config, deps: Deps, admin: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
    let metrics = Arc::new(Metrics::new());
    let served = ::admin::serve(admin, Arc::clone(&metrics.meters), NOT_READY, shutdown.clone());
    let synced = sync::run(&config, &deps, &metrics, &shutdown);
    let (served, ()) = tokio::join!(served, synced);
    served.map_err(Error::Admin)
}
