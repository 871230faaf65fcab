//! Scores: which of the fitting hosts is the best. Every term lies in [-1, 1]; the sum decides, and equal sums are
//! decided by chance. Schedulers that decide at the same moment are kept apart by the store, not by the score.

use model::{Host, Strategy};
use serde::Serialize;

use super::filters::free_memory;
use super::{Request, Tally};

/// A host's score and what it is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Score {
    /// The sum.
    pub total: f64,
    /// The strategy's term: memory left after the placement as a share of the largest host, or the idle share of
    /// its CPUs. 0 to 1.
    pub strategy: f64,
    /// Instances of the same app that are there already: -(n + 1) / wanted, at least -1.
    pub spread: f64,
    /// Instances that are just being launched there: -0.25 each, at least -1, so that an empty host is not stampeded.
    pub starting: f64,
    /// -1 when an instance of the app failed there in the last five minutes.
    pub failed: f64,
}

/// The score of `host`, which fits. `largest_mb`: the memory of the largest host, so that terms of hosts of different
/// sizes compare by absolute memory.
pub(super) fn score(host: &Host, tally: &Tally, request: &Request<'_>, largest_mb: u32) -> Score {
    let strategy = match request.spec.placement.strategy {
        Strategy::MostFreeMemory => {
            let after = free_memory(host, tally).saturating_sub(request.spec.memory_mb);
            f64::from(after) / f64::from(largest_mb.max(1))
        }
        Strategy::MostIdleCpu => {
            let idle = host.cpu_millis.saturating_sub(host.used_cpu_millis);
            f64::from(idle) / f64::from(host.cpu_millis.max(1))
        }
    };
    let own = request.own(&host.name, tally);
    let spread = if own == 0 {
        0.0
    } else {
        -(f64::from(own + 1) / f64::from(request.desired.max(1))).min(1.0)
    };
    let starting = -(0.25 * f64::from(tally.starting)).min(1.0);
    let failed = if request.failed_on.contains(&host.name) {
        -1.0
    } else {
        0.0
    };
    Score {
        total: strategy + spread + starting + failed,
        strategy,
        spread,
        starting,
        failed,
    }
}
