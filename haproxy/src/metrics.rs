//! What the adapter counts.

use std::sync::Arc;

use admin::Meters;
use prometheus::{IntCounter, IntGauge};

/// The role's counters.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Where they are shown, and whether HAProxy serves by what was last heard.
    pub(crate) meters: Arc<Meters>,
    /// Reloads that worked.
    pub(crate) reloads: IntCounter,
    /// Configurations that HAProxy refused.
    pub(crate) refused: IntCounter,
    /// Reloads, and writes, that failed.
    pub(crate) failed: IntCounter,
    /// Endpoints served by.
    pub(crate) endpoints: IntGauge,
    /// Endpoints left out: they may not be dialled.
    pub(crate) endpoints_refused: IntGauge,
    /// Newest revision that HAProxy serves by.
    pub(crate) revision: IntGauge,
    /// 1 while the registry is out of reach.
    pub(crate) stale: IntGauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let meters = Arc::new(Meters::default());
        let (counter, gauge) = (
            |name: &str, help: &str| meters.counter(name, help),
            |name: &str, help: &str| meters.gauge(name, help),
        );
        Self {
            reloads: counter("caas_haproxy_reloads_total", "Reloads that worked"),
            refused: counter("caas_haproxy_refused_total", "Configurations that HAProxy refused"),
            failed: counter("caas_haproxy_failures_total", "Writes and reloads that failed"),
            endpoints: gauge("caas_haproxy_endpoints", "Endpoints in the configuration"),
            endpoints_refused: gauge(
                "caas_haproxy_endpoints_refused",
                "Endpoints outside the allowed addresses and ports",
            ),
            revision: gauge(
                "caas_haproxy_revision",
                "Newest registry revision that HAProxy serves by",
            ),
            stale: gauge("caas_haproxy_registry_stale", "1 while the registry is out of reach"),
            meters,
        }
    }
}
