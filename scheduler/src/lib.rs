//! The scheduler: the HTTP API, what is wanted of apps and hosts, placement and convergence.
//!
//! - [`api`]: requests in, intent out; it never commands an engine to start or stop anything;
//! - [`intent`], [`canary`], [`image`]: what a request means for an app, decided purely, and which image that is;
//! - [`placement`]: which hosts fit and which of them is best, decided purely;
//! - [`converge`], [`hosts`], [`stats`]: loops that make the fleet what the store says;
//! - [`acme`]: the loop that gets certificates for custom domains.
//!
//! The scheduler is the only writer of the store's intent and the only commander of engines. It never writes
//! the registry.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod acme;
mod api;
mod canary;
mod converge;
mod hosts;
mod image;
mod intent;
mod metrics;
mod placement;
mod stats;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use certificates::SealingKeys;
use model::PortRange;
use model::engine::EngineOpener;
use model::store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use acme::{AcmeConfig, Challenges};
pub use converge::config::ConvergeConfig;

/// The scheduler's settings (`[scheduler]` in `caas.toml`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `host[:port]` of the registry whose images are meant when a deploy names none: `{default_registry}/{app}:{version}`.
    /// Default `127.0.0.1:5000`.
    pub default_registry: String,
    /// Where the admin token is written (mode 0600) when the store holds no token yet.
    pub admin_token_file: Option<PathBuf>,
    /// File with the keys by which certificates' keys are sealed, the gateways' too: 64 hexadecimal digits a line, the first
    /// seals. Without it no certificate is taken in. Default none.
    pub certificates_key_file: Option<PathBuf>,
    /// Hosts with `fake://` engines may be added (tests and trials of scale only). Default false.
    pub allow_fake_engines: bool,
    /// First and last host port that a new host leases to instances, when it names none. Default 20000-29999.
    pub port_range: (u16, u16),
    /// Ports at the gateways that are given to apps with protocol TCP; no gateway opens one outside its own `tcp_ports`.
    /// Default 15000-15999.
    pub gateway_tcp_ports: PortRange,
    /// How an app is reached, with `{app}` in place of its id, such as `http://{app}.localhost:8080/`; shown as `url`.
    pub app_url: Option<String>,
    /// The loops that make the fleet what the store says.
    pub converge: ConvergeConfig,
    /// Certificates that are had by themselves: `[acme]` in `caas.toml`, a section of its own.
    #[serde(skip)]
    pub acme: AcmeConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default_registry: "127.0.0.1:5000".into(),
            admin_token_file: None,
            certificates_key_file: None,
            allow_fake_engines: false,
            port_range: (20_000, 29_999),
            gateway_tcp_ports: model::ports::GATEWAY_TCP,
            app_url: None,
            converge: ConvergeConfig::default(),
            acme: AcmeConfig::default(),
        }
    }
}

/// What stands behind the scheduler's ports.
#[derive(Clone)]
pub struct Deps {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Opens a host's engine by its URL.
    pub engines: EngineOpener,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// Why the scheduler can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store refuses this program for good (schema, foreign rows); an absent store is waited for.
    #[error("the store can't be used: {0}")]
    Store(#[from] StoreError),
    /// A setting that can't be; the text says which.
    #[error("{0}")]
    Config(String),
    /// The first admin token could not be made.
    #[error("the admin token could not be made: {0}")]
    AdminToken(String),
}

/// How long open requests may finish after the shutdown signal.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// Runs the scheduler until `shutdown`: serves the API on `listener` and keeps the fleet converging.
///
/// # Errors
/// When the store's schema does not fit, the certificates' key file can't be read, or the first admin token can't be written.
pub async fn run(config: Config, deps: Deps, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
    let sealing = match &config.certificates_key_file {
        Some(path) => {
            let keys = SealingKeys::load(path);
            Some(Arc::new(keys.map_err(|e| {
                Error::Config(format!("scheduler.certificates_key_file: {e}"))
            })?))
        }
        None => None,
    };
    let local = listener.local_addr().ok();
    let metrics = Arc::new(metrics::Metrics::new());
    let converge = named(config.converge.clone(), local);
    let acme = acme::Acme::new(
        &config.acme,
        Arc::clone(&deps.store),
        sealing.clone(),
        Arc::clone(&metrics),
        &converge.scheduler_id,
    )
    .map_err(Error::Config)?;
    let fleet = converge::Fleet::new(Arc::clone(&deps.store), deps.engines.clone());
    let api = api::Api::new(
        &config,
        Arc::clone(&deps.store),
        deps.engines.clone(),
        Arc::clone(&fleet),
        Arc::clone(&metrics),
        sealing,
        shutdown.child_token(),
    );
    let stop = shutdown.child_token();
    let _stop_all = stop.clone().drop_guard();
    let mut serving = tokio::spawn(api::serve::serve(
        listener,
        api::router(api),
        stop.clone(),
        SHUTDOWN_GRACE,
    ));
    let first_token = tokio::select! {
        made = api::auth::ensure_admin_token(&*deps.store, config.admin_token_file.as_deref()) => made,
        () = stop.cancelled() => Ok(()),
    };
    if let Err(error) = first_token {
        stop.cancel();
        // The API answers nothing useful without a token; its end is bounded by the grace.
        let _ = serving.await;
        return Err(error);
    }
    if let Some(acme) = acme {
        // Should it panic, the rest goes on: traffic does not depend on it.
        tokio::spawn(acme.run(stop.clone()));
    }
    let mut converging = tokio::spawn(converge::run(
        converge,
        Arc::clone(&deps.store),
        fleet,
        metrics,
        stop.clone(),
    ));
    // Either one ends only at shutdown, or by a panic, which must not leave half a scheduler behind.
    let (ended, other) = tokio::select! {
        ended = &mut serving => (ended, converging),
        ended = &mut converging => (ended, serving),
    };
    stop.cancel();
    let other = other.await;
    for joined in [ended, other] {
        if let Err(error) = joined
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }
    Ok(())
}

/// Gives a scheduler without a name the one of its machine and port: the same after a restart, so that it goes on with
/// its own work at once.
fn named(mut converge: ConvergeConfig, local: Option<std::net::SocketAddr>) -> ConvergeConfig {
    if converge.scheduler_id.is_empty()
        && let (Ok(machine), Some(local)) = (std::fs::read_to_string("/proc/sys/kernel/hostname"), local)
    {
        let machine: String = machine.trim().chars().take(32).collect();
        converge.scheduler_id = format!("{machine}:{}", local.port());
    }
    converge
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// One request over a real socket; the whole answer.
    async fn ask(address: std::net::SocketAddr, path: &str, token: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_scheduler_serves_from_its_first_start_until_shutdown() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("store.db").display());
        backends::store::migrate(&url).await.unwrap();
        let file = dir.path().join("admin.token");
        let config = Config {
            admin_token_file: Some(file.clone()),
            ..Config::default()
        };
        let deps = Deps {
            store: backends::store::open(&url).await.unwrap(),
            engines: backends::engine::opener(backends::engine::EngineOptions::default()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(config, deps, listener, shutdown.clone()));
        let within = tokio::time::timeout(Duration::from_secs(30), async {
            while !file.exists() {
                tokio::task::yield_now().await;
            }
            let token = std::fs::read_to_string(&file).unwrap().trim().to_owned();
            // The file is written a moment before the store knows the token.
            while !ask(address, "/api/v1/apps", &token).await.starts_with("HTTP/1.1 200") {
                tokio::task::yield_now().await;
            }
            assert!(ask(address, "/api/v1/apps", "none").await.starts_with("HTTP/1.1 401"));
            assert!(ask(address, "/healthz/ready", "").await.starts_with("HTTP/1.1 200"));
            assert!(
                ask(address, "/metrics", "")
                    .await
                    .contains("caas_scheduler_api_requests_total")
            );
            // An idle connection does not hold up the end.
            let idle = tokio::net::TcpStream::connect(address).await.unwrap();
            shutdown.cancel();
            running.await.unwrap().unwrap();
            drop(idle);
        });
        within.await.expect("in time");
    }
}
