//! The loop: hears of changes, waits a moment for more, renders, applies, acknowledges.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt as _, StreamExt as _};
use model::ContainerId;
use model::registry::{Acknowledgement, RegistryEvent, RegistryReader, RegistryRevision};
use tokio_util::sync::CancellationToken;

use crate::apply;
use crate::config::Config;
use crate::copy::Copy;
use crate::metrics::Metrics;
use crate::render::{Rendered, render};

/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(50);
/// Between two tries after a failure.
const AGAIN: Duration = Duration::from_secs(5);
/// Longest time that an acknowledgement may take.
const TELLING: Duration = Duration::from_secs(5);
/// Between two tries to acknowledge.
const TELL_AGAIN: Duration = Duration::from_millis(200);

/// What HAProxy serves by.
#[derive(Default)]
struct Served {
    rendered: Option<Rendered>,
    /// A reload failed since: the file is another than `rendered`, and HAProxy may have taken it up or not.
    unsure: bool,
    /// Containers that HAProxy may serve by.
    containers: BTreeSet<ContainerId>,
    revision: RegistryRevision,
    /// Left out by a reload, and until when HAProxy's processes from before may have requests there.
    lingering: BTreeMap<ContainerId, Instant>,
}

/// When the next configuration is to be written.
struct Pace {
    debounce: Duration,
    every: Duration,
    /// The first change that is not written.
    changed: Option<Instant>,
    /// Nothing is written before.
    not_before: Option<Instant>,
}

impl Pace {
    fn due(&self, now: Instant) -> bool {
        self.changed.is_some_and(|at| now >= at + self.debounce) && self.not_before.is_none_or(|at| now >= at)
    }
}

/// Runs until `stop`.
pub(crate) async fn run(
    config: &Config,
    preamble: &str,
    registry: Arc<dyn RegistryReader>,
    metrics: &Metrics,
    stop: &CancellationToken,
) {
    let id = match config.id.as_str() {
        "" => format!("haproxy-{:012x}", rand::random::<u64>() & 0xffff_ffff_ffff),
        id => id.to_owned(),
    };
    let hold = Duration::from_secs(config.hold_s);
    let mut copy = Copy::default();
    let mut served = Served::default();
    let mut pace = Pace {
        debounce: Duration::from_millis(config.debounce_ms),
        every: Duration::from_millis(config.reload_every_ms),
        changed: None,
        not_before: None,
    };
    let mut told: Option<Acknowledgement> = None;
    let mut tell_at = Instant::now();
    let mut events = registry.follow();
    tracing::info!(haproxy = %id, out = %config.out.display(), "the HAProxy adapter follows the registry");
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => {
                let now = Instant::now();
                let Some(event) = event else {
                    copy.hear(RegistryEvent::Disconnected("the registry's reader has ended".into()), hold, now);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    events = registry.follow();
                    continue;
                };
                copy.hear(event, hold, now);
                while let Some(Some(event)) = events.next().now_or_never() {
                    copy.hear(event, hold, now);
                }
                if copy.heard {
                    pace.changed.get_or_insert(now);
                }
            }
            () = tokio::time::sleep(TICK) => {}
        }
        let now = Instant::now();
        if copy.tidy(now) {
            pace.changed.get_or_insert(now);
        }
        metrics.stale.set(copy.stale.into());
        if copy.heard && pace.due(now) {
            bring(config, preamble, &copy, &mut served, &mut pace, metrics).await;
        }
        served.lingering.retain(|_, until| *until > Instant::now());
        if served.rendered.is_none() || Instant::now() < tell_at {
            continue;
        }
        let draining: BTreeSet<&ContainerId> = served.lingering.keys().chain(copy.held()).collect();
        let ack = Acknowledgement {
            applied: served.revision,
            draining: draining.into_iter().cloned().collect(),
        };
        if told.as_ref() != Some(&ack) {
            match tokio::time::timeout(TELLING, registry.acknowledge(&id, &ack)).await {
                Ok(Ok(())) => told = Some(ack),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the acknowledgement did not get through");
                    tell_at = Instant::now() + TELL_AGAIN;
                }
                Err(_) => tracing::debug!("the acknowledgement did not get through in time"),
            }
        }
    }
}

/// Makes HAProxy serve by the copy.
async fn bring(config: &Config, preamble: &str, copy: &Copy, served: &mut Served, pace: &mut Pace, metrics: &Metrics) {
    let rendered = render(&copy.snapshot, config, preamble);
    metrics
        .endpoints_refused
        .set(i64::try_from(rendered.refused).unwrap_or(i64::MAX));
    let revision = copy.revision();
    if served.unsure || served.rendered.as_ref() != Some(&rendered) {
        if let Err(error) = apply::put(config, &rendered).await {
            match error {
                apply::Failed::Refused(_) => metrics.refused.inc(),
                _ => metrics.failed.inc(),
            }
            tracing::error!(%error, revision = revision.0, "HAProxy keeps its old configuration");
            return later(pace, metrics);
        }
        if let Err(error) = apply::reload(config, &rendered).await {
            served.unsure = true;
            served.containers.extend(copy.containers());
            metrics.failed.inc();
            tracing::error!(%error, revision = revision.0, "HAProxy serves by an old configuration");
            return later(pace, metrics);
        }
        metrics.reloads.inc();
        let containers = copy.containers();
        tracing::info!(revision = revision.0, endpoints = containers.len(), "HAProxy reloaded");
        let until = Instant::now() + Duration::from_secs(config.linger_s);
        for gone in served.containers.difference(&containers) {
            served.lingering.insert(gone.clone(), until);
        }
        served.lingering.retain(|c, _| !containers.contains(c));
        metrics
            .endpoints
            .set(i64::try_from(containers.len()).unwrap_or(i64::MAX));
        served.containers = containers;
        served.rendered = Some(rendered);
        served.unsure = false;
        pace.not_before = Some(Instant::now() + pace.every);
    }
    served.revision = revision;
    metrics.revision.set(revision.0);
    pace.changed = None;
    metrics.meters.set_ready(true);
}

/// The change stays due and is tried again after a while, together with what has come by then.
fn later(pace: &mut Pace, metrics: &Metrics) {
    metrics.meters.set_ready(false);
    pace.not_before = Some(Instant::now() + AGAIN);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_gathered_and_reloads_apart() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let mut pace = Pace {
            debounce: Duration::from_millis(500),
            every: Duration::from_secs(2),
            changed: None,
            not_before: None,
        };
        assert!(!pace.due(at(10_000)), "nothing has changed");
        pace.changed = Some(now);
        assert!(!pace.due(at(499)) && pace.due(at(500)));
        pace.not_before = Some(at(2_000));
        assert!(!pace.due(at(1_999)) && pace.due(at(2_000)));
    }
}
