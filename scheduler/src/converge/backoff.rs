//! Back-off: how long new instances of a release that keeps failing have to wait. Pure.

use std::time::Duration;

use model::store::FAILURES_KEPT;
use model::{App, AppStatus, FailureCode, Instance, InstanceState, Operation, Timestamp};

/// An instance that ran this long was sound: its failure does not count towards the back-off (Diego's rule).
const SOUND_AFTER: Duration = Duration::from_secs(300);
/// Replacements that follow at once; after them 30 s, 60 s, … up to 16 min (Diego's figures).
const AT_ONCE: u32 = 3;
/// So many instances in a row may find their port taken by another program before the next one has to wait, and before an
/// operation is given up: each draws another port, and the taken ones rest.
pub(super) const PORTS_AT_ONCE: u32 = 10;
const BACKOFF_FIRST: Duration = Duration::from_secs(30);
const BACKOFF_MOST: Duration = Duration::from_secs(960);
/// A registry that was away is back for all at once, and nothing is wrong with the app.
const REGISTRY_PAUSE: Duration = Duration::from_secs(30);

/// Delay before the try that follows `tries` failed ones.
pub(super) fn backoff(tries: u32) -> Duration {
    match tries.checked_sub(AT_ONCE) {
        None => Duration::ZERO,
        Some(n) => BACKOFF_FIRST.saturating_mul(1 << n.min(10)).min(BACKOFF_MOST),
    }
}

/// Whether a failure says something about the release (and not about a port or a host).
pub(super) fn counts_as_failure(instance: &Instance) -> bool {
    instance.state == InstanceState::Failed
        && !instance
            .failure
            .as_ref()
            .is_some_and(|f| matches!(f.code, FailureCode::PortTaken | FailureCode::HostLost))
}

/// Whether it failed for that reason.
fn failed_by(instance: &Instance, code: FailureCode) -> bool {
    instance.state == InstanceState::Failed && instance.failure.as_ref().is_some_and(|f| f.code == code)
}

/// Whether it found its port taken by something that is not ours.
pub(super) fn met_a_taken_port(instance: &Instance) -> bool {
    failed_by(instance, FailureCode::PortTaken)
}

/// Whether the registry of its image could not be reached.
fn missed_the_registry(instance: &Instance) -> bool {
    failed_by(instance, FailureCode::RegistryUnreachable)
}

/// Whether it was the image or the container that failed.
fn is_the_apps_own(instance: &Instance) -> bool {
    counts_as_failure(instance) && !missed_the_registry(instance)
}

/// Whether it ran long enough before it failed that the failure says nothing against its release.
pub(super) fn was_sound(instance: &Instance) -> bool {
    instance
        .started_at
        .is_some_and(|at| instance.changed_at.since(at) >= SOUND_AFTER)
}

/// Until when new instances of `release` have to wait, given all of the app's instances. Failures are counted per
/// wanted instance, so that a host's restart, which ends many at once, holds nothing up.
pub(super) fn backoff_until(
    history: &[Instance],
    release: u32,
    desired: u32,
    since: Timestamp,
    now: Timestamp,
) -> Option<Timestamp> {
    let until = |counts: fn(&Instance) -> bool, at_once: u32, most: Duration| {
        let mut failed: Vec<&Instance> = history
            .iter()
            .filter(|i| i.release == release && counts(i))
            .filter(|i| i.changed_at >= since && now.since(i.changed_at) < FAILURES_KEPT)
            .collect();
        failed.sort_by_key(|i| std::cmp::Reverse(i.changed_at));
        let newest = failed.first()?.changed_at;
        let n = failed.iter().take_while(|i| !was_sound(i)).count();
        let rounds = u32::try_from(n).unwrap_or(u32::MAX) / desired.max(1);
        let delay = backoff(rounds.checked_sub(1 + at_once - AT_ONCE)?).min(most);
        (!delay.is_zero()).then(|| newest.plus(delay))
    };
    until(is_the_apps_own, AT_ONCE, BACKOFF_MOST)
        .max(until(missed_the_registry, AT_ONCE, REGISTRY_PAUSE))
        .max(until(met_a_taken_port, PORTS_AT_ONCE, BACKOFF_MOST))
}

/// Until when the next instance of `app` waits for its turn, if some are missing: what [`backoff_until`] says as long as
/// the user has not asked anew.
pub(crate) fn next_try(
    app: &App,
    operation: Option<&Operation>,
    history: &[Instance],
    now: Timestamp,
) -> Option<Timestamp> {
    let own = history.iter().filter(|i| i.release == app.release && i.state.is_live());
    if app.status != AppStatus::Running || own.count() >= app.instances as usize {
        return None;
    }
    let since = operation
        .filter(|o| !o.state.is_final())
        .map_or(Timestamp::default(), |o| o.created_at);
    backoff_until(history, app.release, app.instances, since, now).filter(|until| *until > now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Failure;

    const NOW: Timestamp = Timestamp::from_millis(10_000_000);

    fn failed(code: FailureCode, seconds_ago: u64) -> Instance {
        Instance {
            id: model::InstanceId::random(),
            app: "shop".parse().expect("valid"),
            release: 1,
            version: "1".parse().expect("valid"),
            host: "h1".parse().expect("valid"),
            port: 20_000,
            container: None,
            state: InstanceState::Failed,
            routed_at: None,
            assumed_healthy: false,
            failure: Some(Failure::new(code, "why")),
            restarts: 0,
            memory_mb: 64,
            cpu_weight: 100,
            placed_at: NOW,
            started_at: None,
            heartbeat_at: None,
            changed_at: NOW.minus(Duration::from_secs(seconds_ago)),
            released_at: Some(NOW),
            generation: model::Generation::FIRST,
        }
    }

    #[test]
    fn taken_ports_are_tried_elsewhere_at_once_but_not_for_ever() {
        let until = |n: u32, desired| {
            let history: Vec<Instance> = (0..n).map(|i| failed(FailureCode::PortTaken, u64::from(i))).collect();
            backoff_until(&history, 1, desired, Timestamp::default(), NOW)
        };
        assert_eq!(until(PORTS_AT_ONCE, 1), None);
        assert_eq!(until(PORTS_AT_ONCE + 1, 1), Some(NOW.plus(BACKOFF_FIRST)));
        assert_eq!(until(PORTS_AT_ONCE + 2, 1), Some(NOW.plus(2 * BACKOFF_FIRST)));
        assert_eq!(until(100, 1), Some(NOW.plus(BACKOFF_MOST)));
        assert_eq!(until(2 * PORTS_AT_ONCE + 1, 2), None, "per wanted instance");
        assert_eq!(until(0, 0), None);
    }

    #[test]
    fn a_registry_that_is_back_is_asked_soon() {
        let until = |code, n: u64| {
            let history: Vec<Instance> = (0..n).map(|i| failed(code, i)).collect();
            backoff_until(&history, 1, 1, Timestamp::default(), NOW)
        };
        assert_eq!(until(FailureCode::RegistryUnreachable, 3), None);
        assert_eq!(
            until(FailureCode::RegistryUnreachable, 100),
            Some(NOW.plus(REGISTRY_PAUSE))
        );
        // An image that is not there is another thing.
        assert_eq!(until(FailureCode::PullFailed, 100), Some(NOW.plus(BACKOFF_MOST)));
    }

    #[test]
    fn the_longer_of_two_pauses_counts() {
        let mut history: Vec<Instance> = (0..4).map(|_| failed(FailureCode::Exited, 5)).collect();
        let exits = backoff_until(&history, 1, 1, Timestamp::default(), NOW);
        assert_eq!(exits, Some(NOW.minus(Duration::from_secs(5)).plus(BACKOFF_FIRST)));
        history.push(failed(FailureCode::PortTaken, 0));
        assert_eq!(backoff_until(&history, 1, 1, Timestamp::default(), NOW), exits);
        history.extend((0..PORTS_AT_ONCE).map(|_| failed(FailureCode::PortTaken, 0)));
        let both = backoff_until(&history, 1, 1, Timestamp::default(), NOW);
        assert_eq!(both, Some(NOW.plus(BACKOFF_FIRST)));
    }
}
