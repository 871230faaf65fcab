//! The task that follows the registry: takes what it tells, lets the follower make tables of it, opens ports, acknowledges, and keeps
//! the snapshot file.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::channel::mpsc;
use futures::{FutureExt as _, StreamExt as _};
use model::registry::{Acknowledgement, RegistryEvent, RegistryReader};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Follower;
use crate::shared::Shared;
use crate::{snapshot_file, tcp};

/// Between acknowledgements, and between looks at what drains.
const PACE: Duration = Duration::from_millis(20);
/// How long to wait for the registry before the snapshot file is used.
const FILE_AFTER: Duration = Duration::from_secs(1);

impl Follower {
    /// Takes an event and those that are there already, which become one table: nothing waits for more. When the first of them was heard.
    fn take(&mut self, event: RegistryEvent, events: &mut mpsc::Receiver<RegistryEvent>, now: Instant) -> Instant {
        let mut heard = heard_at(&event, now);
        self.hear(event, now);
        for _ in 0..10_000 {
            let Some(Some(event)) = events.next().now_or_never() else {
                break;
            };
            heard = heard.min(heard_at(&event, now));
            self.hear(event, now);
        }
        self.publish();
        heard
    }
}

/// When the reader heard of what it tells; a whole registry is as old as its arrival here.
fn heard_at(event: &RegistryEvent, now: Instant) -> Instant {
    match event {
        RegistryEvent::Changes { heard, .. } => now.min(*heard),
        RegistryEvent::Snapshot(_) | RegistryEvent::Disconnected(_) => now,
    }
}

/// Follows the registry until `stop`. If that fails for a reason that nobody thought of, requests are served by the routes as they are,
/// and what tells how old these are says so.
pub(crate) async fn run(
    shared: Arc<Shared>,
    registry: Arc<dyn RegistryReader>,
    id: String,
    ports: tcp::Ports,
    stop: CancellationToken,
) {
    let following = follow(Arc::clone(&shared), registry, id, ports, stop);
    if AssertUnwindSafe(following).catch_unwind().await.is_err() {
        tracing::error!("the registry is not followed any more: the routes stay as they are; start this gateway again");
        let now = shared.clock.millis(Instant::now());
        for since in [&shared.registry.stale_since, &shared.registry.outdated_since] {
            let _ = since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

async fn follow(
    shared: Arc<Shared>,
    registry: Arc<dyn RegistryReader>,
    id: String,
    mut ports: tcp::Ports,
    stop: CancellationToken,
) {
    let mut follower = Follower::new(Arc::clone(&shared));
    let (tell, told) = watch::channel(None);
    let acknowledging = tokio::spawn(acknowledge(Arc::clone(&registry), id, told));
    let mut events = registry.follow();
    let mut file = shared.config.snapshot_file.clone().map(snapshot_file::Keeper::new);
    let mut file_at = Some(Instant::now() + FILE_AFTER);
    let mut busy = false;
    loop {
        let pause = if busy { PACE } else { Duration::from_millis(500) };
        tokio::select! {
            () = stop.cancelled() => break,
            event = events.next() => match event {
                Some(event) => {
                    let now = Instant::now();
                    let gone = matches!(event, RegistryEvent::Disconnected(_));
                    let heard = follower.take(event, &mut events, now);
                    if !gone {
                        shared.registry.propagation.observe(heard.elapsed());
                    }
                    let differences = registry.resync_differences();
                    shared.registry.differences.store(differences, Ordering::Relaxed);
                    if gone && file_at.is_some() {
                        file_at = Some(now);
                    }
                }
                None => {
                    follower.hear(RegistryEvent::Disconnected("the registry's reader has ended".into()), Instant::now());
                    follower.publish();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    events = registry.follow();
                }
            },
            () = tokio::time::sleep(pause) => {}
        }
        let now = Instant::now();
        if follower.heard {
            file_at = None;
        } else if file_at.is_some_and(|at| at <= now) {
            file_at = None;
            if let Some(snapshot) = snapshot_file::read(shared.config.snapshot_file.as_deref()).await {
                tracing::warn!(
                    revision = snapshot.revision.0,
                    "the registry is not there; serving the snapshot file"
                );
                follower.load(snapshot, now);
                follower.publish();
            }
        }
        busy = follower.tidy(now);
        // Before the acknowledgement: who is told that an app is routed finds its port open.
        if let Some(wanted) = follower.ports.take_change() {
            ports.want(wanted);
        }
        ports.tend(now);
        let ack = follower.acknowledgement();
        let resynced = std::mem::take(&mut follower.changed);
        tell.send_if_modified(|told| {
            let new = *told != ack || (resynced && ack.is_some());
            told.clone_from(&ack);
            new
        });
        if let Some(file) = &mut file {
            file.keep(&shared, resynced && follower.heard, now);
        }
    }
    acknowledging.abort();
    if let Some(file) = file {
        file.finish(&shared).await;
    }
}

/// Tells the writer, at most every 20 ms, and again until it has heard.
async fn acknowledge(
    registry: Arc<dyn RegistryReader>,
    id: String,
    mut told: watch::Receiver<Option<Acknowledgement>>,
) {
    let mut pause = PACE;
    while told.changed().await.is_ok() {
        loop {
            let ack = told.borrow_and_update().clone();
            let Some(ack) = ack else { break };
            let limit = Duration::from_secs(5);
            match tokio::time::timeout(limit, registry.acknowledge(&id, &ack)).await {
                Ok(Ok(())) => {
                    pause = PACE;
                    break;
                }
                Ok(Err(error)) => tracing::debug!(%error, "the acknowledgement did not get through"),
                Err(_) => tracing::debug!("the acknowledgement did not get through in time"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        tokio::time::sleep(PACE).await;
    }
}
