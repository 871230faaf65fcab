//! What registry-sync counts.

use std::sync::Arc;

use admin::Meters;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts};

use crate::probe::Proof;

/// The role's counters.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Where they are shown, and whether the last turn did its work (as leader or as stand-by).
    pub(crate) meters: Arc<Meters>,
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
    pub(crate) ghosts: IntCounter,
    alive: IntCounter,
    assumed: IntCounter,
    dead: IntCounter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let meters = Arc::new(Meters::default());
        let (counter, gauge) = (
            |name: &str, help: &str| meters.counter(name, help),
            |name: &str, help: &str| meters.gauge(name, help),
        );
        let probes = Opts::new("caas_registry_sync_probes_total", "Probes by result");
        let probes = IntCounterVec::new(probes, &["result"]).expect("a literal, valid metric name");
        let probes = meters.show(probes);
        let passes = HistogramOpts::new("caas_registry_sync_pass_seconds", "Duration of full passes")
            .buckets(vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0]);
        let passes = Histogram::with_opts(passes).expect("a literal, valid metric name");
        Self {
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
            ghosts: counter(
                "caas_registry_sync_ghosts_total",
                "Published entries without an instance",
            ),
            passes: meters.show(passes),
            alive: probes.with_label_values(&["alive"]),
            assumed: probes.with_label_values(&["assumed"]),
            dead: probes.with_label_values(&["dead"]),
            meters,
        }
    }

    /// Counts a probe.
    pub(crate) fn probed(&self, proof: &Proof) {
        match proof {
            Proof::Alive => self.alive.inc(),
            Proof::Assumed => self.assumed.inc(),
            Proof::Dead(_) => self.dead.inc(),
        }
    }
}
