//! The scheduler's figures, `caas_scheduler_*`, as Prometheus text. Nothing decides by them.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

/// All figures; one per running scheduler.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Answered API requests by `method`, `route` (template) and `status`.
    pub(crate) api_requests: IntCounterVec,
    /// Seconds to the head of an answer, by `route`.
    pub(crate) api_seconds: HistogramVec,
    /// Requests refused because too many were under way, by `pool`.
    pub(crate) api_shed: IntCounterVec,
    /// Placements by `outcome`: `placed`, `refused`, `conflict`, `no_host`.
    pub(crate) placements: IntCounterVec,
    /// Commands to engines by `command` and `outcome` (`ok`, `error`).
    pub(crate) engine_commands: IntCounterVec,
    /// Passes of the loops by `name` and `outcome` (`ok`, `error`).
    pub(crate) passes: IntCounterVec,
    /// Operations that ended, by `kind` and `state`.
    pub(crate) operations: IntCounterVec,
    /// Tries to have a certificate, by `result`: `issued`, `renewed`, `failed`.
    pub(crate) acme_orders: IntCounterVec,
    /// Instances that hold resources, by `state`.
    pub(crate) instances: IntGaugeVec,
    /// Hosts by `state`: `up`, `down`.
    pub(crate) hosts: IntGaugeVec,
}

impl Metrics {
    /// Fresh figures, all zero.
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter =
                IntCounterVec::new(Opts::new(name, help), labels).expect("the name and labels are valid literals");
            registry
                .register(Box::new(counter.clone()))
                .expect("each name is registered once");
            counter
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let gauge =
                IntGaugeVec::new(Opts::new(name, help), labels).expect("the name and labels are valid literals");
            registry
                .register(Box::new(gauge.clone()))
                .expect("each name is registered once");
            gauge
        };
        let api_seconds = HistogramVec::new(
            HistogramOpts::new(
                "caas_scheduler_api_request_duration_seconds",
                "seconds to the head of an answer",
            )
            .buckets(vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0]),
            &["route"],
        )
        .expect("the name and labels are valid literals");
        registry
            .register(Box::new(api_seconds.clone()))
            .expect("each name is registered once");
        Self {
            api_requests: counter(
                "caas_scheduler_api_requests_total",
                "answered API requests",
                &["method", "route", "status"],
            ),
            api_seconds,
            api_shed: counter(
                "caas_scheduler_api_shed_total",
                "requests refused because too many were under way",
                &["pool"],
            ),
            placements: counter(
                "caas_scheduler_placements_total",
                "placements of instances",
                &["outcome"],
            ),
            engine_commands: counter(
                "caas_scheduler_engine_commands_total",
                "commands to engines",
                &["command", "outcome"],
            ),
            passes: counter(
                "caas_scheduler_passes_total",
                "passes of the loops",
                &["name", "outcome"],
            ),
            operations: counter(
                "caas_scheduler_operations_total",
                "operations that ended",
                &["kind", "state"],
            ),
            acme_orders: counter(
                "caas_scheduler_acme_orders_total",
                "tries to have a certificate from the authority",
                &["result"],
            ),
            instances: gauge("caas_scheduler_instances", "instances that hold resources", &["state"]),
            hosts: gauge("caas_scheduler_hosts", "hosts", &["state"]),
            registry,
        }
    }

    /// Everything in Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }
}
