//! Settings of the loops that make the fleet what the store says (`[scheduler.converge]` in `caas.toml`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of the convergence loops. Every duration is in whole seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConvergeConfig {
    /// Name of this scheduler among several; should be the same after a restart, so that it goes on with its own
    /// work at once instead of waiting until its claims have run out (15 s). Empty (the default): the name of the
    /// machine with the port of the API.
    pub scheduler_id: String,
    /// The API's URL as containers reach it, given to them as `CAAS_API`. Default: none, and no app can be deployed
    /// whose health check is `heartbeat`.
    pub api_url: Option<String>,
    /// Most seconds between two looks at everything, changes or not. 1-300, default 10.
    pub full_pass_s: u64,
    /// Seconds without an answer after which a host counts as down: nothing new is placed there. 3-300, default 10.
    pub host_down_after_s: u64,
    /// Seconds without an answer after which instances of a down host that do not serve are replaced elsewhere.
    /// Default 15.
    pub lost_after_s: u64,
    /// Seconds without an answer after which even those instances of a down host are replaced that still pass their
    /// probes. Default 300.
    pub lost_though_healthy_after_s: u64,
    /// Most seconds that an image may take to be pulled. Default 300.
    pub pull_deadline_s: u64,
    /// Apps that are worked on at once. Default 64.
    pub apps_at_once: usize,
    /// Containers that are launched or restarted at once on one host, and images that it pulls at once from one registry.
    /// Default 8.
    pub launches_per_host: usize,
    /// Seconds between two readings of what containers use. Default 10.
    pub stats_interval_s: u64,
    /// Released instances that are kept per app as history. Default 20.
    pub history_keep: u32,
    /// Days that events are kept. Default 30.
    pub events_keep_days: u32,
}

impl Default for ConvergeConfig {
    fn default() -> Self {
        Self {
            scheduler_id: String::new(),
            api_url: None,
            full_pass_s: 10,
            host_down_after_s: 10,
            lost_after_s: 15,
            lost_though_healthy_after_s: 300,
            pull_deadline_s: 300,
            apps_at_once: 64,
            launches_per_host: 8,
            stats_interval_s: 10,
            history_keep: 20,
            events_keep_days: 30,
        }
    }
}

impl ConvergeConfig {
    pub(crate) fn full_pass(&self) -> Duration {
        Duration::from_secs(self.full_pass_s.clamp(1, 300))
    }

    pub(crate) fn host_down_after(&self) -> Duration {
        Duration::from_secs(self.host_down_after_s.max(1))
    }

    pub(crate) fn lost_after(&self) -> Duration {
        Duration::from_secs(self.lost_after_s.max(self.host_down_after_s))
    }

    pub(crate) fn lost_though_healthy_after(&self) -> Duration {
        Duration::from_secs(self.lost_though_healthy_after_s.max(self.lost_after_s))
    }

    pub(crate) fn pull_deadline(&self) -> Duration {
        Duration::from_secs(self.pull_deadline_s.max(1))
    }

    pub(crate) fn stats_interval(&self) -> Duration {
        Duration::from_secs(self.stats_interval_s.max(1))
    }

    pub(crate) fn events_keep(&self) -> Duration {
        Duration::from_secs(u64::from(self.events_keep_days.max(1)) * 86_400)
    }
}
