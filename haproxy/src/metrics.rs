//! What the adapter counts.

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::{IntCounter, IntGauge, Registry, TextEncoder};

/// The role's counters, and whether it is ready.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
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
    ready: AtomicBool,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a literal, valid metric name");
            let collector = Box::new(counter.clone());
            registry.register(collector).expect("each name is registered once");
            counter
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("a literal, valid metric name");
            let collector = Box::new(gauge.clone());
            registry.register(collector).expect("each name is registered once");
            gauge
        };
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
            ready: AtomicBool::new(false),
            registry,
        }
    }

    /// Says whether HAProxy serves by what was last heard.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// All metrics in Prometheus' text format.
    pub(crate) fn text(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }
}
