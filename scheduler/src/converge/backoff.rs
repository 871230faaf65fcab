//! Back-off: how long new instances of a release that keeps failing have to wait. Pure.

use std::time::Duration;

use model::{FailureCode, Instance, InstanceState, Timestamp};

/// An instance that ran this long was sound: its failure does not count towards the back-off (Diego's rule).
const SOUND_AFTER: Duration = Duration::from_secs(300);
/// Replacements that follow at once; after them 30 s, 60 s, … up to 16 min (Diego's figures).
const AT_ONCE: u32 = 3;
const BACKOFF_FIRST: Duration = Duration::from_secs(30);
const BACKOFF_MOST: Duration = Duration::from_secs(960);
/// Failures older than this are forgotten.
const FAILURES_KEPT: Duration = Duration::from_secs(3_600);

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
    let mut failed: Vec<&Instance> = history
        .iter()
        .filter(|i| i.release == release && counts_as_failure(i))
        .filter(|i| i.changed_at >= since && now.since(i.changed_at) < FAILURES_KEPT)
        .collect();
    failed.sort_by_key(|i| std::cmp::Reverse(i.changed_at));
    let newest = failed.first()?.changed_at;
    let n = failed.iter().take_while(|i| !was_sound(i)).count();
    let rounds = u32::try_from(n).unwrap_or(u32::MAX) / desired.max(1);
    let delay = backoff(rounds.checked_sub(1)?);
    (!delay.is_zero()).then(|| newest.plus(delay))
}
