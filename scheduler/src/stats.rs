//! Figures of use: every few seconds each engine is asked what its running containers use. They feed the API, the
//! figures of the process, and `most_idle_cpu`; nothing fails without them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use model::engine::ContainerStats;
use model::store::InstanceFilter;
use model::{ContainerId, Host, HostChange, HostName, InstanceId, InstanceState, Timestamp};
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
        async move { (host, read_host(fleet, host, containers).await) }
    });
    let asked: Vec<_> = asked.collect();
    let answers: Vec<(&Host, Vec<Reading>)> = futures::stream::iter(asked)
        .buffer_unordered(HOSTS_AT_ONCE)
        .collect()
        .await;
    let mut latest = HashMap::new();
    let mut next = Readings::new();
    for (host, stats) in answers {
        let mut used = 0.0;
        for (id, at, stats) in stats {
            used += readings
                .get(&id)
                .map_or(0.0, |(before, cpu)| cpu_millis(*before, *cpu, at, stats.cpu_total_ns));
            next.insert(id.clone(), (at, stats.cpu_total_ns));
            latest.insert(id, stats);
        }
        note_use(fleet, host, used).await;
    }
    *readings = next;
    fleet.set_stats(latest);
    true
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

async fn note_use(fleet: &Fleet, host: &Host, used: f64) {
    // A sum of finite shares, far below the range's end.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the range first"
    )]
    let used = used.clamp(0.0, f64::from(u32::MAX)) as u32;
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
}
