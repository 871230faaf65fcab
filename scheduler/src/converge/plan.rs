//! The plan: what has to be done for one app, decided purely from one look at the store and the engines. A plan takes
//! no memory along: whoever computes it again after a crash arrives at the same work.
//!
//! Words used here: a *current* instance is one that should stay (wanted release, placed after the last `restart`, host
//! not being emptied); every other live one is *old* and leaves as soon as the current ones serve. *Serving* means
//! that gateways send it requests.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use model::engine::ContainerStatus;
use model::spec::OnFailure;
use model::{
    App, AppStatus, Host, HostName, Instance, InstanceId, InstanceState, ReleaseSpec, Schedulability, Timestamp,
};

use super::backoff::{backoff, was_sound};
use super::config::ConvergeConfig;
use super::fleet::Observation;
use super::rollout::{found, lost, one_per_host, retire, several};

/// All that a plan is made from.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// What is wanted.
    pub app: &'a App,
    /// The spec of the wanted release; `None` before the first deploy.
    pub spec: Option<&'a ReleaseSpec>,
    /// The app's instances that hold resources.
    pub instances: &'a [Instance],
    /// All of the app's instances, released ones too; `None`: not read yet.
    pub history: Option<&'a [Instance]>,
    /// Failures before this don't count: the user has asked anew since.
    pub failures_since: Timestamp,
    /// Hosts by name.
    pub hosts: &'a HashMap<HostName, Host>,
    /// What the engines said; hosts that don't answer are missing.
    pub observations: &'a HashMap<HostName, Arc<Observation>>,
    /// With `one_per_host`: the hosts on which the app belongs, whatever their state.
    pub belongs_on: &'a HashSet<HostName>,
    /// Instances that a task is working on, or that wait for the next try.
    pub in_hand: &'a HashSet<InstanceId>,
    /// Placed instances whose heartbeat token this process knows.
    pub tokens: &'a HashSet<InstanceId>,
    /// So many hosts are down that the fault is more likely here: nothing is given up for lost, except on hosts that the
    /// operator drains.
    pub frozen: bool,
    /// Since when this process has been able to see the hosts.
    pub began: Timestamp,
    /// Limits.
    pub config: &'a ConvergeConfig,
    /// The present.
    pub now: Timestamp,
}

/// One thing to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Place `count` new instances of the wanted release, on one of `only` if given.
    Place { count: usize, only: Option<Vec<HostName>> },
    /// Pull, create, start.
    Launch(InstanceId),
    /// Give a placed instance back that can't be launched any more; another one takes its place.
    Abandon(InstanceId),
    /// Ask the engine what became of the container; if it ended, the instance has failed.
    Check(InstanceId),
    /// Start a failed container anew where it is.
    Restart(InstanceId),
    /// Take it out of the registry, to be stopped.
    Drain(InstanceId),
    /// Stop and remove the container of a drained instance.
    Stop(InstanceId),
    /// Remove what is left of a failed or lost instance and release it.
    Clean(InstanceId),
    /// Its host is gone.
    Lose(InstanceId),
    /// Its host is back, and it still runs.
    Find(InstanceId),
    /// Give back what an instance held on a host that is gone; its container goes when the host returns.
    Release(InstanceId),
    /// The app is to go and holds nothing: delete it.
    Delete,
}

/// How many instances stand where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Wanted.
    pub desired: u32,
    /// Current ones that count towards it.
    pub current: u32,
    /// Of them: their container has been made.
    pub launched: u32,
    /// Of them: alive.
    pub healthy: u32,
    /// Of them: serving.
    pub serving: u32,
    /// Current ones above the wanted number.
    pub surplus: u32,
    /// Old ones that are still live.
    pub old: u32,
    /// Live or draining, of any kind.
    pub routable: u32,
    /// Holding resources on hosts that are not given up.
    pub held: u32,
    /// In-place restarts of current ones.
    pub restarts: u32,
    /// Current ones that failed and stay so (`on_failure = none`).
    pub kept_failed: u32,
}

/// What is to be done, and when to look again if nothing happens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decision {
    /// In this order.
    pub actions: Vec<Action>,
    /// When time alone changes the plan.
    pub wake_at: Option<Timestamp>,
    /// Instances are missing and the history must be read before it can be said when to place them.
    pub needs_history: bool,
    /// New instances wait until then, since so many failed.
    pub backoff_until: Option<Timestamp>,
    /// Where the instances stand.
    pub shape: Shape,
    /// How many live instances will leave each host.
    pub leaving: HashMap<HostName, u32>,
}

impl Decision {
    pub(super) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// Whether gateways send it requests.
pub(crate) fn is_serving(instance: &Instance) -> bool {
    instance.state == InstanceState::Running && instance.routed_at.is_some()
}

/// Instances above the wanted number while an update is under way.
pub(crate) fn surge(spec: &ReleaseSpec, desired: u32) -> u32 {
    match spec.update.max_surge {
        0 => 0,
        n => n.max(desired.div_ceil(4)),
    }
}

/// The wanted number; `None`: the app should not run at all.
fn wanted<'a>(facts: &Facts<'a>) -> Option<&'a ReleaseSpec> {
    (facts.app.status == AppStatus::Running && facts.app.release != 0)
        .then_some(facts.spec)
        .flatten()
}

/// Whether `instance` should stay, its own health aside.
pub(crate) fn is_current(facts: &Facts<'_>, instance: &Instance) -> bool {
    let Some(spec) = wanted(facts) else { return false };
    let Some(host) = facts.hosts.get(&instance.host) else {
        return false;
    };
    instance.release == facts.app.release
        && facts.app.restart_before.is_none_or(|t| instance.placed_at >= t)
        && host.schedulability != Schedulability::Draining
        && (!spec.placement.one_per_host || facts.belongs_on.contains(&host.name))
}

/// Whether a failed instance is brought back, or left, where it is instead of being replaced.
fn stays_failed(facts: &Facts<'_>, instance: &Instance) -> Option<OnFailure> {
    let spec = wanted(facts)?;
    let stays = is_current(facts, instance)
        && match spec.on_failure {
            OnFailure::Replace => false,
            OnFailure::Restart => instance.container.is_some(),
            OnFailure::None => true,
        };
    stays.then_some(spec.on_failure)
}

/// Whether the host of `instance` has been silent so long that the instance is given up.
fn host_is_gone(facts: &Facts<'_>, instance: &Instance, decision: &mut Decision) -> bool {
    let Some(host) = facts.hosts.get(&instance.host) else {
        return true;
    };
    let Some(since) = host.down_since else { return false };
    // The row is stale: it answers this process, which will say so.
    if facts.observations.get(&host.name).is_some_and(|o| o.begun_at > since) {
        return false;
    }
    // Its probes still succeed: only the way to its engine is cut. It must not be replaced blindly.
    let patience = if instance.state == InstanceState::Running {
        facts.config.lost_though_healthy_after()
    } else {
        facts.config.lost_after()
    };
    // However old the row is, this process must have waited itself: the host may be back since, and unnoticed.
    let at = since.max(facts.began).plus(patience);
    if facts.now < at {
        decision.wake(at);
        return false;
    }
    // A host that is being drained is gone by the operator's own word.
    !facts.frozen || host.schedulability == Schedulability::Draining
}

/// Decides what has to be done.
pub(crate) fn plan(facts: &Facts<'_>) -> Decision {
    let mut decision = Decision::default();
    let mut lost_now = HashSet::new();
    for instance in facts.instances {
        one(facts, instance, &mut decision, &mut lost_now);
    }
    let counted: Vec<&Instance> = facts
        .instances
        .iter()
        .filter(|i| !lost_now.contains(&i.id))
        .filter(|i| i.state.is_live() || (i.state == InstanceState::Failed && stays_failed(facts, i).is_some()))
        .collect();
    let (mut current, old): (Vec<&Instance>, Vec<&Instance>) = counted.iter().partition(|i| is_current(facts, i));
    let old: Vec<&Instance> = old.into_iter().filter(|i| i.state.is_live()).collect();
    match wanted(facts) {
        None => {
            let live = facts
                .instances
                .iter()
                .filter(|i| i.state.is_live() && !lost_now.contains(&i.id));
            live.for_each(|i| retire(i, &mut decision));
            if facts.app.status == AppStatus::Removing && facts.instances.is_empty() {
                decision.actions.push(Action::Delete);
            }
        }
        Some(spec) if spec.placement.one_per_host => one_per_host(facts, spec, &current, &old, &mut decision),
        Some(spec) => {
            decision.shape.desired = facts.app.instances;
            found(facts, &mut current, facts.app.instances, &mut decision);
            several(facts, spec, &current, &old, &mut decision);
        }
    }
    lost(facts, current.len(), &mut decision);
    let count =
        |f: &dyn Fn(&Instance) -> bool| u32::try_from(current.iter().filter(|i| f(i)).count()).unwrap_or(u32::MAX);
    let shape = Shape {
        desired: decision.shape.desired,
        current: count(&|_| true),
        launched: count(&|i| i.container.is_some() && i.state.is_live() && i.state != InstanceState::Placed),
        healthy: count(&|i| i.state == InstanceState::Running),
        serving: count(&is_serving),
        surplus: u32::try_from(current.len())
            .unwrap_or(u32::MAX)
            .saturating_sub(decision.shape.desired),
        old: u32::try_from(old.len()).unwrap_or(u32::MAX),
        routable: u32::try_from(
            facts
                .instances
                .iter()
                .filter(|i| i.state.is_live() || i.state == InstanceState::Draining)
                .count(),
        )
        .unwrap_or(u32::MAX),
        held: u32::try_from(
            facts
                .instances
                .iter()
                .filter(|i| i.state != InstanceState::Lost)
                .count(),
        )
        .unwrap_or(u32::MAX),
        restarts: current.iter().map(|i| i.restarts).sum(),
        kept_failed: count(&|i| i.state == InstanceState::Failed),
    };
    decision.shape = shape;
    for instance in facts.instances.iter().filter(|i| i.state.is_live()) {
        if !is_current(facts, instance) {
            *decision.leaving.entry(instance.host.clone()).or_default() += 1;
        }
    }
    decision
}

/// What one instance needs, whatever the others do.
fn one(facts: &Facts<'_>, instance: &Instance, decision: &mut Decision, lost_now: &mut HashSet<InstanceId>) {
    use InstanceState as S;
    let id = || instance.id.clone();
    let busy = facts.in_hand.contains(&instance.id);
    let observation = facts.observations.get(&instance.host);
    match instance.state {
        S::Stopped | S::Lost => {}
        S::Failed => match stays_failed(facts, instance) {
            _ if host_is_gone(facts, instance, decision) => {
                decision.actions.push(Action::Release(id()));
                lost_now.insert(id());
            }
            Some(OnFailure::Restart) => {
                let tries = if was_sound(instance) { 0 } else { instance.restarts };
                let due = instance.changed_at.plus(backoff(tries));
                if facts.now < due {
                    decision.wake(due);
                } else if !busy && observation.is_some() {
                    decision.actions.push(Action::Restart(id()));
                }
            }
            Some(_) => {}
            None if !busy && observation.is_some() => decision.actions.push(Action::Clean(id())),
            None => {}
        },
        _ if host_is_gone(facts, instance, decision) => {
            decision.actions.push(Action::Lose(id()));
            lost_now.insert(id());
        }
        S::Drained => {
            if !busy && observation.is_some() {
                decision.actions.push(Action::Stop(id()));
            }
        }
        S::Draining => {}
        S::Placed => {
            if busy || !is_current(facts, instance) {
                return;
            }
            // The token is known only to the process that placed it; a container that was made carries it.
            let made = observation.is_some_and(|o| o.containers.contains_key(&instance.id));
            let looked = observation.is_some_and(|o| o.begun_at > instance.placed_at);
            if facts.tokens.contains(&instance.id) || made {
                decision.actions.push(Action::Launch(id()));
            } else if looked {
                decision.actions.push(Action::Abandon(id()));
                lost_now.insert(id());
            }
        }
        S::Starting | S::Running | S::Unhealthy => {
            let Some(observation) = observation else { return };
            if busy || instance.started_at.is_none_or(|at| observation.begun_at <= at) {
                return;
            }
            let runs = observation
                .containers
                .get(&instance.id)
                .is_some_and(|c| matches!(c.status, ContainerStatus::Running { .. }));
            if !runs {
                decision.actions.push(Action::Check(id()));
            }
        }
    }
}
