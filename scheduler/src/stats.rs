//! Figures of use: every few seconds each engine is asked what its running containers use. They feed the API, the
//! figures of the process, `most_idle_cpu`, and (through the store and registry-sync) the registry; nothing fails
//! without them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use model::engine::ContainerStats;
use model::store::InstanceFilter;
use model::{ContainerId, Figures, Host, HostChange, HostName, InstanceId, InstanceState, Timestamp};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::converge::{ConvergeConfig, Fleet};
use crate::metrics::Metrics;

/// Questions to one engine at once.
const AT_ONCE: usize = 4;
/// Hosts that are asked at once.
const HOSTS_AT_ONCE: usize = 32;
/// Deadline of one answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// A host's row is written when its use moved by more than this share of its CPUs (per cent).
const WORTH_WRITING: u32 = 5;

/// An instance's figures are stored when they moved by this share (per cent) of a core, of its memory limit or of what they
/// were, whichever of them is most.
const FIGURES_WORTH_STORING: u64 = 5;
/// Figures that did not move are stored again after this time, so that what still stands can be told from what was left.
const FIGURES_STORED_AGAIN: Duration = Duration::from_secs(300);

/// The last reading of a container's CPU time.
type Readings = HashMap<InstanceId, (Instant, u64)>;

/// One container's figures and when they were read.
type Reading = (InstanceId, Instant, ContainerStats);

/// Reads figures until `shutdown`.
pub(crate) async fn run(
    config: Arc<ConvergeConfig>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) {
    let mut tick = interval(config.stats_interval());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut readings = Readings::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let read = tokio::select! {
            read = round(&fleet, &mut readings) => read,
            () = shutdown.cancelled() => return,
        };
        let outcome = if read { "ok" } else { "error" };
        metrics.passes.with_label_values(&["stats", outcome]).inc();
    }
}

/// One reading of everything; `false` when the store could not be read.
async fn round(fleet: &Arc<Fleet>, readings: &mut Readings) -> bool {
    let (Ok(hosts), Ok(instances)) = (
        fleet.store.host_list().await,
        fleet.store.instance_list(&InstanceFilter::held()).await,
    ) else {
        return false;
    };
    let mut of_host: HashMap<HostName, Vec<(InstanceId, ContainerId)>> = HashMap::new();
    for instance in instances {
        let runs = matches!(
            instance.state,
            InstanceState::Starting | InstanceState::Running | InstanceState::Unhealthy | InstanceState::Draining
        );
        if let (true, Some(container)) = (runs, instance.container) {
            of_host.entry(instance.host).or_default().push((instance.id, container));
        }
    }
    let up = hosts.iter().filter(|h| h.down_since.is_none());
    let asked = up.map(|host| {
        let containers = of_host.remove(&host.name).unwrap_or_default();
        let expected = containers.len();
        async move { (host, expected, read_host(fleet, host, containers).await) }
    });
    let asked: Vec<_> = asked.collect();
    let answers: Vec<(&Host, usize, Vec<Reading>)> = futures::stream::iter(asked)
        .buffer_unordered(HOSTS_AT_ONCE)
        .collect()
        .await;
    let mut latest = HashMap::new();
    let mut next = Readings::new();
    let mut measured = Vec::new();
    for (host, expected, stats) in answers {
        let (mut used, mut known) = (0.0, 0);
        for (id, at, stats) in stats {
            if let Some((before, cpu)) = readings.get(&id) {
                let cpu = cpu_millis(*before, *cpu, at, stats.cpu_total_ns);
                used += cpu;
                known += 1;
                measured.push((id.clone(), figures(cpu, &stats)));
            }
            next.insert(id.clone(), (at, stats.cpu_total_ns));
            latest.insert(id, stats);
        }
        note_use(
            fleet,
            host,
            use_of(host.used_cpu_millis, whole(used), known == expected),
        )
        .await;
    }
    *readings = next;
    fleet.set_stats(latest);
    store_figures(fleet, measured).await
}

/// Stores the figures that are worth it, together; `false` when the store did not answer. Several schedulers measure the
/// same instances: whoever comes second finds them just stored.
async fn store_figures(fleet: &Fleet, mut measured: Vec<(InstanceId, Figures)>) -> bool {
    let Ok(stored) = fleet.store.figures_list().await else {
        return false;
    };
    let stored: HashMap<InstanceId, Figures> = stored.into_iter().collect();
    measured.retain(|(id, figures)| stored.get(id).is_none_or(|before| worth_storing(before, figures)));
    measured.is_empty() || fleet.store.figures_put(&measured).await.is_ok()
}

/// Whether figures moved far enough, or are old enough, to be stored.
fn worth_storing(before: &Figures, now: &Figures) -> bool {
    let moved = |before: u64, now: u64, whole: u64| {
        before.abs_diff(now).saturating_mul(100) >= FIGURES_WORTH_STORING * before.max(whole).max(1)
    };
    now.at.since(before.at) >= FIGURES_STORED_AGAIN
        || now.memory_limit_bytes != before.memory_limit_bytes
        || moved(before.cpu_milli.into(), now.cpu_milli.into(), 1_000)
        || moved(before.memory_bytes, now.memory_bytes, before.memory_limit_bytes)
}

fn figures(cpu_milli: f64, stats: &ContainerStats) -> Figures {
    Figures {
        cpu_milli: whole(cpu_milli),
        memory_bytes: stats.memory_bytes,
        memory_limit_bytes: stats.memory_limit_bytes,
        at: Timestamp::now(),
    }
}

async fn read_host(fleet: &Fleet, host: &Host, containers: Vec<(InstanceId, ContainerId)>) -> Vec<Reading> {
    let Ok(engine) = fleet.engine(host) else {
        return Vec::new();
    };
    let engine = &engine;
    futures::stream::iter(containers)
        .map(|(id, container)| async move {
            let stats = timeout(DEADLINE, engine.stats(&container)).await.ok()?.ok()?;
            Some((id, Instant::now(), stats))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(|read| async move { read })
        .collect()
        .await
}

/// CPU used between two readings, thousandths of a core. A counter that went back was a restart: unknown.
fn cpu_millis(before: Instant, cpu_before: u64, at: Instant, cpu: u64) -> f64 {
    let elapsed = at.saturating_duration_since(before).as_secs_f64();
    if elapsed <= 0.0 || cpu < cpu_before {
        return 0.0;
    }
    Duration::from_nanos(cpu - cpu_before).as_secs_f64() / elapsed * 1000.0
}

/// Whether a host's use has moved far enough to be written.
fn worth_writing(host: &Host, used: u32) -> bool {
    host.used_cpu_millis.abs_diff(used) > host.cpu_millis.max(1) / 100 * WORTH_WRITING
}

/// A sum of finite shares as a whole number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the range first"
)]
fn whole(millis: f64) -> u32 {
    millis.clamp(0.0, f64::from(u32::MAX)) as u32
}

/// What is known of a host's use: a sum of which parts are missing (no answer, or no reading before) is only the least
/// that it can be, and a host that does not answer must not look idle.
fn use_of(before: u32, sum: u32, complete: bool) -> u32 {
    if complete { sum } else { sum.max(before) }
}

async fn note_use(fleet: &Fleet, host: &Host, used: u32) {
    if worth_writing(host, used) {
        // A conflict or an error costs nothing: the next round measures anew.
        let _ = fleet
            .store
            .host_update(host, &HostChange::UsedCpu(used), None, Timestamp::now())
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_share_is_the_difference_of_two_readings() {
        let start = Instant::now();
        let later = start + Duration::from_secs(10);
        assert!((cpu_millis(start, 0, later, 5_000_000_000) - 500.0).abs() < 0.001);
        assert!(cpu_millis(start, 9, later, 3).abs() < f64::EPSILON, "restarted");
        assert!(cpu_millis(start, 0, start, 3).abs() < f64::EPSILON);
    }

    #[test]
    fn a_host_that_does_not_answer_does_not_look_idle() {
        assert_eq!(use_of(900, 100, true), 100);
        assert_eq!(use_of(900, 100, false), 900);
        assert_eq!(use_of(100, 900, false), 900);
    }

    #[test]
    fn figures_are_stored_when_they_moved_or_are_old() {
        let at = |s: i64| Timestamp::from_millis(s * 1_000);
        let before = Figures {
            cpu_milli: 100,
            memory_bytes: 50 << 20,
            memory_limit_bytes: 512 << 20,
            at: at(0),
        };
        let with = |change: fn(&mut Figures)| {
            let mut now = Figures { at: at(10), ..before };
            change(&mut now);
            worth_storing(&before, &now)
        };
        assert!(!with(|_| {}));
        assert!(!with(|f| f.cpu_milli = 149));
        assert!(with(|f| f.cpu_milli = 150));
        assert!(with(|f| f.cpu_milli = 50));
        assert!(!with(|f| f.memory_bytes += 25 << 20));
        assert!(with(|f| f.memory_bytes += 26 << 20));
        assert!(with(|f| f.memory_limit_bytes += 1));
        assert!(!with(|f| f.at = Timestamp::from_millis(299_999)));
        assert!(with(|f| f.at = Timestamp::from_millis(300_000)));
        // Of four cores in use a twentieth is a fifth of a core.
        let busy = Figures {
            cpu_milli: 4_000,
            ..before
        };
        assert!(!worth_storing(
            &busy,
            &Figures {
                cpu_milli: 4_199,
                ..busy
            }
        ));
        assert!(worth_storing(
            &busy,
            &Figures {
                cpu_milli: 4_200,
                ..busy
            }
        ));
    }
}
