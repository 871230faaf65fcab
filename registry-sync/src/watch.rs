//! One task per watched instance: waits, probes, judges, and moves the instance by compare-and-set.
//! A task holds nothing that matters: whoever kills it loses only the row of proofs so far.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::config::Protocol;
use model::spec::{OnFailure, ProbeKind};
use model::store::{InstanceStore, Outcome};
use model::{HealthCheck, Instance, InstanceId, InstanceState, Timestamp};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::health::{self, Found, History};
use crate::metrics::Metrics;
use crate::probe;

/// What a task watches; sent anew whenever the store or the registry says something else of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    /// The row as last read.
    pub(crate) instance: Instance,
    /// Where it answers.
    pub(crate) address: SocketAddr,
    /// How it is probed.
    pub(crate) check: HealthCheck,
    /// What it speaks.
    pub(crate) protocol: Protocol,
    /// What follows when it stays unhealthy.
    pub(crate) on_failure: OnFailure,
    /// It is not in the registry, so that acting on it can't fail a request.
    pub(crate) withdrawn: bool,
}

/// All tasks.
#[derive(Debug)]
pub(crate) struct Watchers {
    store: Arc<dyn InstanceStore>,
    metrics: Arc<Metrics>,
    probes: Arc<Semaphore>,
    senders: HashMap<InstanceId, watch::Sender<Target>>,
    tasks: JoinSet<()>,
}

impl Watchers {
    /// No tasks yet; at most `max_concurrent` probes at once.
    pub(crate) fn new(store: Arc<dyn InstanceStore>, metrics: Arc<Metrics>, max_concurrent: usize) -> Self {
        let probes = Arc::new(Semaphore::new(max_concurrent.max(1)));
        Self {
            store,
            metrics,
            probes,
            senders: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Watches exactly `targets` from now on.
    pub(crate) fn set(&mut self, targets: HashMap<InstanceId, Target>) {
        // A task ends when its sender is dropped.
        self.senders.retain(|id, _| targets.contains_key(id));
        while self.tasks.try_join_next().is_some() {}
        for (id, target) in targets {
            match self.senders.get(&id) {
                Some(sender) => {
                    sender.send_if_modified(|known| {
                        let newer = target.instance.generation >= known.instance.generation && *known != target;
                        if newer {
                            *known = target;
                        }
                        newer
                    });
                }
                None => {
                    let (sender, receiver) = watch::channel(target);
                    let task = Task {
                        store: Arc::clone(&self.store),
                        metrics: Arc::clone(&self.metrics),
                        probes: Arc::clone(&self.probes),
                        receiver,
                    };
                    self.tasks.spawn(task.run());
                    self.senders.insert(id, sender);
                }
            }
        }
        self.metrics
            .watched
            .set(i64::try_from(self.senders.len()).unwrap_or(i64::MAX));
    }
}

struct Task {
    store: Arc<dyn InstanceStore>,
    metrics: Arc<Metrics>,
    probes: Arc<Semaphore>,
    receiver: watch::Receiver<Target>,
}

impl Task {
    async fn run(mut self) {
        let mut history = History::default();
        let mut target = self.receiver.borrow_and_update().clone();
        let mut proved = Instant::now();
        loop {
            let pace = health::pace(target.instance.state, &target.check, &history, rand::random());
            tokio::select! {
                changed = self.receiver.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let next = self.receiver.borrow_and_update().clone();
                    if next.instance.generation >= target.instance.generation {
                        if next.instance.started_at != target.instance.started_at {
                            history = History::default();
                            proved = Instant::now();
                        }
                        target = next;
                    }
                    // Another pace may apply, counted from the last proof: whoever changes often (an app that beats) does
                    // not put off the next one.
                    continue;
                }
                () = tokio::time::sleep_until(proved + pace) => {}
            }
            let found = self.prove(&mut target).await;
            proved = Instant::now();
            let Some(proof) = found.proof else { continue };
            let now = Timestamp::now();
            history.push(&proof, now);
            self.metrics.probed(&proof);
            let verdict = health::judge(
                &target.instance,
                &target.check,
                target.on_failure,
                target.withdrawn,
                &history,
                found.waited,
            );
            let Some(change) = verdict else { continue };
            match self.store.instance_update(&target.instance, &change, now).await {
                Ok(Outcome::Updated(row)) => {
                    tracing::info!(app = %row.app, instance = %row.id, state = row.state.as_str(), "instance moved");
                    target.instance = row;
                }
                Ok(Outcome::Conflict(row)) => target.instance = row,
                Ok(Outcome::NotFound) => return,
                Err(error) => {
                    tracing::warn!(instance = %target.instance.id, %error, "instance could not be moved");
                }
            }
            if !is_watched(target.instance.state) {
                // Nothing to do until the next pass takes this task away or brings the instance back.
                if self.receiver.changed().await.is_err() {
                    return;
                }
                self.receiver.mark_changed();
            }
        }
    }

    async fn prove(&self, target: &mut Target) -> Found {
        if target.check.kind == ProbeKind::Heartbeat {
            return self.heartbeat(target).await;
        }
        // The semaphore is never closed.
        let _permit = self.probes.acquire().await;
        let proof = probe::probe(&target.check, target.protocol, target.address).await;
        Found {
            proof: Some(proof),
            waited: Timestamp::now().since(health::started(&target.instance)),
        }
    }

    /// The app reports by itself: its last beat stands in the store.
    async fn heartbeat(&self, target: &mut Target) -> Found {
        let timeout = Duration::from_secs(target.check.heartbeat_timeout_s.into());
        // Before the row: what comes between the two is then no silence.
        let listening = self.store.listening().await;
        let row = self.store.instance_fetch(&target.instance.id).await;
        match (listening, row) {
            (Ok(listening), Ok(Some(row))) => {
                target.instance = row;
                health::heartbeat(&target.instance, listening, timeout)
            }
            // Gone, as the next write says; and not knowing is no proof of anything: what was known last stays.
            _ => Found {
                proof: None,
                waited: Duration::ZERO,
            },
        }
    }
}

/// Instances whose health is this role's business.
pub(crate) fn is_watched(state: InstanceState) -> bool {
    matches!(
        state,
        InstanceState::Starting | InstanceState::Running | InstanceState::Unhealthy
    )
}
