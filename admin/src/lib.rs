//! The admin port of a role that has no other HTTP of its own: `/live`, `/ready`, `/metrics`.
//!
//! A role keeps its [`Meters`], registers what it counts, says whether it is ready, and gives them to [`serve`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus::core::Collector;
use prometheus::{IntCounter, IntGauge, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A role's metrics, and whether it is ready: not before [`Self::set_ready`] says so.
#[derive(Debug, Default)]
pub struct Meters {
    registry: Registry,
    ready: AtomicBool,
}

impl Meters {
    /// Shows `meter` from now on.
    ///
    /// # Panics
    /// When one of its name is shown already.
    pub fn show<M: Collector + Clone + 'static>(&self, meter: M) -> M {
        let shown = self.registry.register(Box::new(meter.clone()));
        shown.expect("each name is registered once");
        meter
    }

    /// A counter.
    ///
    /// # Panics
    /// When `name` is no metric's name, or taken.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.show(IntCounter::new(name, help).expect("a literal, valid metric name"))
    }

    /// A gauge.
    ///
    /// # Panics
    /// When `name` is no metric's name, or taken.
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.show(IntGauge::new(name, help).expect("a literal, valid metric name"))
    }

    /// Says whether the role did its work the last time it tried.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// All metrics in Prometheus' text format.
    fn text(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }
}

/// Serves until `shutdown`; `why_not` is what `/ready` says while the role is not.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    meters: Arc<Meters>,
    why_not: &'static str,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let ready = async move |State(meters): State<Arc<Meters>>| {
        if meters.ready.load(Ordering::Relaxed) {
            (StatusCode::OK, "ready\n".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{why_not}\n"))
        }
    };
    let router = Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(async |State(meters): State<Arc<Meters>>| meters.text()))
        .with_state(meters);
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}
