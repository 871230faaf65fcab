//! What registry-sync counts.

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::{Counter, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

use crate::probe::Proof;

/// The role's counters, and whether it is ready.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Instances with a probing task.
    pub(crate) watched: IntGauge,
    /// Endpoints published.
    pub(crate) published: IntGauge,
    /// 1 while this process is the registry's writer.
    pub(crate) leader: IntGauge,
    /// 1 while unhealthy instances are kept published because most fail at once.
    pub(crate) braked: IntGauge,
    /// Changes written to the registry.
    pub(crate) changes: IntCounter,
    /// Loads written to the registry.
    pub(crate) loads: IntCounter,
    /// Certificates written to the registry, or removed.
    pub(crate) certificates: IntCounter,
    /// Passes that failed.
    pub(crate) failed_passes: IntCounter,
    /// Duration of full passes.
    pub(crate) passes: Histogram,
    /// Published entries that belonged to no instance.
    pub(crate) ghosts: Counter,
    alive: IntCounter,
    assumed: IntCounter,
    dead: IntCounter,
    ready: AtomicBool,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect("a literal, valid metric name");
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect("a literal, valid metric name");
        let probes = IntCounterVec::new(
            Opts::new("caas_registry_sync_probes_total", "Probes by result"),
            &["result"],
        )
        .expect("a literal, valid metric name");
        let passes = Histogram::with_opts(
            HistogramOpts::new("caas_registry_sync_pass_seconds", "Duration of full passes")
                .buckets(vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0]),
        )
        .expect("a literal, valid metric name");
        let metrics = Self {
            watched: gauge("caas_registry_sync_watched_instances", "Instances with a probing task"),
            published: gauge("caas_registry_sync_published_endpoints", "Endpoints published"),
            leader: gauge(
                "caas_registry_sync_leader",
                "1 while this process is the registry's writer",
            ),
            braked: gauge(
                "caas_registry_sync_braked",
                "1 while unhealthy instances are kept published",
            ),
            changes: counter("caas_registry_sync_changes_total", "Changes written to the registry"),
            loads: counter("caas_registry_sync_loads_total", "Loads written to the registry"),
            certificates: counter(
                "caas_registry_sync_certificates_total",
                "Certificates written to the registry, or removed",
            ),
            failed_passes: counter("caas_registry_sync_failed_passes_total", "Passes that failed"),
            ghosts: Counter::new(
                "caas_registry_sync_ghosts_total",
                "Published entries without an instance",
            )
            .expect("a literal, valid metric name"),
            passes,
            alive: probes.with_label_values(&["alive"]),
            assumed: probes.with_label_values(&["assumed"]),
            dead: probes.with_label_values(&["dead"]),
            ready: AtomicBool::new(false),
            registry,
        };
        let all: [Box<dyn prometheus::core::Collector>; 11] = [
            Box::new(metrics.watched.clone()),
            Box::new(metrics.published.clone()),
            Box::new(metrics.leader.clone()),
            Box::new(metrics.braked.clone()),
            Box::new(metrics.changes.clone()),
            Box::new(metrics.loads.clone()),
            Box::new(metrics.certificates.clone()),
            Box::new(metrics.failed_passes.clone()),
            Box::new(metrics.passes.clone()),
            Box::new(metrics.ghosts.clone()),
            Box::new(probes),
        ];
        for collector in all {
            metrics
                .registry
                .register(collector)
                .expect("each name is registered once, on a fresh registry");
        }
        metrics
    }

    /// Counts a probe.
    pub(crate) fn probed(&self, proof: &Proof) {
        match proof {
            Proof::Alive => self.alive.inc(),
            Proof::Assumed => self.assumed.inc(),
            Proof::Dead(_) => self.dead.inc(),
        }
    }

    /// Says whether the last turn did its work (as leader or as stand-by).
    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Whether the last turn did its work.
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
