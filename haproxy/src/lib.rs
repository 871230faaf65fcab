//! The adapter to HAProxy: keeps an HAProxy configuration true to the registry, for those who run HAProxy instead of, or
//! beside, the gateway.
//!
//! - [`copy`]: the registry as last heard, and what is held of it (pure)
//! - [`render`]: that copy as HAProxy's configuration (pure)
//! - [`apply`]: the configuration checked, put in place, and HAProxy told
//! - [`keep`]: the loop: hears, waits a moment, renders, applies, acknowledges
//!
//! It acknowledges as a gateway does, and only what HAProxy serves by: deploys and drains wait for it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod apply;
mod config;
mod copy;
mod keep;
mod metrics;
mod render;

use std::sync::Arc;

use model::registry::RegistryReader;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;

use crate::metrics::Metrics;

/// What the role works with.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Where apps and their endpoints are read.
    pub registry: Arc<dyn RegistryReader>,
}

/// Why the role could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that can't be; the text says which, and what would do.
    #[error("{0}")]
    Config(String),
    /// The admin listener failed.
    #[error("the admin listener failed: {0}")]
    Admin(#[source] std::io::Error),
}

/// What `/ready` says while it is not.
const NOT_READY: &str = "HAProxy does not serve by the registry yet, or not by its last change";

/// Runs the role until `shutdown`. Trouble with the registry, the file or HAProxy does not end it: what HAProxy has stays,
/// and it is tried again.
///
/// # Errors
/// [`Error`] when the settings are wrong or the admin listener fails.
pub async fn run(config: Config, deps: Deps, admin: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
    config.check()?;
    let preamble = match &config.template {
        Some(path) => tokio::fs::read_to_string(path)
            .await
            .map_err(|e| Error::Config(format!("haproxy.template = {}: {e}", path.display())))?,
        None => render::PREAMBLE.to_owned(),
    };
    let metrics = Arc::new(Metrics::new());
    let served = ::admin::serve(admin, Arc::clone(&metrics.meters), NOT_READY, shutdown.clone());
    let kept = keep::run(&config, &preamble, deps.registry, &metrics, &shutdown);
    let (served, ()) = tokio::join!(served, kept);
    served.map_err(Error::Admin)
}
