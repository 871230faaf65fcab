//! Which instances the gateways have taken up, or let go. Pure.
//!
//! The registry orders all changes; each gateway tells the newest that it has applied, and which withdrawn
//! containers still have requests open. An instance counts as routed, or as drained, when every live gateway says so.

use std::collections::BTreeMap;
use std::time::Duration;

use model::ContainerId;
use model::registry::{Acknowledgement, RegistryRevision};

/// What gateways have beyond an app's drain time-out to tell its WebSockets to go elsewhere, which they do when it is over.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// All gateways know the endpoint.
    Routed,
    /// All gateways have forgotten the endpoint and finished its requests, the latter within `timeout` and a moment.
    Drained {
        /// Whose requests.
        container: ContainerId,
        /// The app's drain time-out.
        timeout: Duration,
    },
}

/// Whether what is awaited since `waited` has come: every gateway has applied `revision`, or has had
/// `acknowledge_timeout` for it (one that hangs must not stop deploys; its connects to a stopped
/// container are refused and retried).
pub(crate) fn confirmed(
    awaited: &Awaited,
    revision: RegistryRevision,
    waited: Duration,
    acknowledgements: &BTreeMap<String, Acknowledgement>,
    acknowledge_timeout: Duration,
) -> bool {
    let applied = acknowledgements.values().all(|ack| ack.applied >= revision);
    if !applied && waited < acknowledge_timeout {
        return false;
    }
    match awaited {
        Awaited::Routed => true,
        Awaited::Drained { container, timeout } => {
            let busy = acknowledgements.values().any(|ack| ack.draining.contains(container));
            !busy || waited >= *timeout + FAREWELL
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(list: &[(i64, &[&str])]) -> BTreeMap<String, Acknowledgement> {
        let ack = |(applied, draining): &(i64, &[&str])| Acknowledgement {
            applied: RegistryRevision(*applied),
            draining: draining.iter().map(|c| c.parse().unwrap()).collect(),
        };
        list.iter()
            .enumerate()
            .map(|(n, a)| (format!("g{n}"), ack(a)))
            .collect()
    }

    fn ask(awaited: &Awaited, waited_ms: u64, list: &[(i64, &[&str])]) -> bool {
        let limit = Duration::from_secs(2);
        confirmed(
            awaited,
            RegistryRevision(5),
            Duration::from_millis(waited_ms),
            &acks(list),
            limit,
        )
    }

    #[test]
    fn every_live_gateway_must_have_applied_it() {
        assert!(ask(&Awaited::Routed, 0, &[]));
        assert!(ask(&Awaited::Routed, 0, &[(5, &[]), (9, &[])]));
        assert!(!ask(&Awaited::Routed, 1_999, &[(5, &[]), (4, &[])]));
        assert!(ask(&Awaited::Routed, 2_000, &[(5, &[]), (4, &[])]));
    }

    #[test]
    fn drained_means_no_open_requests_within_the_time_out() {
        let drained = Awaited::Drained {
            container: "c1".parse().unwrap(),
            timeout: Duration::from_secs(30),
        };
        assert!(ask(&drained, 0, &[(5, &["c2"])]));
        assert!(!ask(&drained, 0, &[(4, &[])]));
        assert!(!ask(&drained, 29_999, &[(5, &["c1"]), (6, &[])]));
        assert!(!ask(&drained, 30_999, &[(5, &["c1"])]));
        assert!(ask(&drained, 31_000, &[(5, &["c1"])]));
    }
}
