//! How an app gets from the instances it has to those it should have: which are placed, which old ones are drained as
//! the update's terms allow, which surplus ones go, and what becomes of lost ones. Pure; only [`plan`](super::plan) asks.

use std::collections::{HashMap, HashSet};

use model::engine::ContainerStatus;
use model::{Host, HostName, Instance, InstanceId, InstanceState, ReleaseSpec};

use super::backoff::backoff_until;
use super::plan::{Action, Decision, Facts, is_current, is_serving, surge};

/// Instances of hosts that are back: kept where they are still missing.
pub(super) fn found<'a>(facts: &Facts<'a>, current: &mut Vec<&'a Instance>, desired: u32, decision: &mut Decision) {
    for instance in facts.instances.iter().filter(|i| i.state == InstanceState::Lost) {
        if still_runs(facts, instance) && current.len() < desired as usize && is_current(facts, instance) {
            current.push(instance);
            if !facts.in_hand.contains(&instance.id) {
                decision.actions.push(Action::Find(instance.id.clone()));
            }
        }
    }
}

/// A lost instance whose container was seen running after it was lost. One whose start was never noted is not taken back:
/// its container goes, and another instance takes its place.
fn still_runs(facts: &Facts<'_>, instance: &Instance) -> bool {
    instance.container.is_some()
        && facts.observations.get(&instance.host).is_some_and(|o| {
            o.begun_at > instance.changed_at
                && o.containers
                    .get(&instance.id)
                    .is_some_and(|c| matches!(c.status, ContainerStatus::Running { .. }))
        })
}

/// Lost instances that nobody waits for any more.
pub(super) fn lost(facts: &Facts<'_>, current: usize, decision: &mut Decision) {
    let finding: HashSet<InstanceId> = decision
        .actions
        .iter()
        .filter_map(|a| match a {
            Action::Find(id) => Some(id.clone()),
            _ => None,
        })
        .collect();
    let enough = current >= decision.shape.desired as usize;
    for instance in facts.instances.iter().filter(|i| i.state == InstanceState::Lost) {
        if finding.contains(&instance.id) || facts.in_hand.contains(&instance.id) {
            continue;
        }
        let back = facts
            .observations
            .get(&instance.host)
            .is_some_and(|o| o.begun_at > instance.changed_at);
        if back {
            decision.actions.push(Action::Clean(instance.id.clone()));
        } else if enough || !is_current(facts, instance) {
            decision.actions.push(Action::Release(instance.id.clone()));
        }
    }
}

/// How many instances are missing and may be placed now.
fn placeable(facts: &Facts<'_>, missing: usize, decision: &mut Decision) -> bool {
    if missing == 0 {
        return false;
    }
    let Some(history) = facts.history else {
        decision.needs_history = true;
        return false;
    };
    let until = backoff_until(
        history,
        facts.app.release,
        decision.shape.desired,
        facts.failures_since,
        facts.now,
    );
    match until {
        Some(until) if facts.now < until => {
            decision.wake(until);
            decision.backoff_until = Some(until);
            false
        }
        _ => true,
    }
}

/// A number of instances, on any hosts.
pub(super) fn several(
    facts: &Facts<'_>,
    spec: &ReleaseSpec,
    current: &[&Instance],
    old: &[&Instance],
    decision: &mut Decision,
) {
    let desired = facts.app.instances as usize;
    let live = current.len() + old.len();
    let most = desired + surge(spec, facts.app.instances) as usize;
    let missing = desired.saturating_sub(current.len()).min(most.saturating_sub(live));
    if placeable(facts, missing, decision) {
        decision.actions.push(Action::Place {
            count: missing,
            only: None,
        });
    }
    drain_old(spec, current, old, desired, decision, |_| true);
    surplus(current, desired, decision);
}

/// Drains as many old instances as the update's terms allow: those that don't serve first, then the oldest.
fn drain_old(
    spec: &ReleaseSpec,
    current: &[&Instance],
    old: &[&Instance],
    desired: usize,
    decision: &mut Decision,
    mut may: impl FnMut(&Instance) -> bool,
) {
    let floor = desired.saturating_sub(spec.update.max_unavailable as usize);
    let mut live = current.iter().filter(|i| i.state.is_live()).count() + old.len();
    let mut serving = current.iter().chain(old).filter(|i| is_serving(i)).count();
    let mut order: Vec<&Instance> = old.to_vec();
    order.sort_by_key(|i| (is_serving(i), i.placed_at));
    for instance in order {
        let allowed = if is_serving(instance) {
            serving > floor
        } else {
            live > floor
        };
        if !allowed || !may(instance) {
            continue;
        }
        live -= 1;
        serving -= usize::from(is_serving(instance));
        retire(instance, decision);
    }
}

/// Which instances go when there are too many: first those that don't serve, then from the host that runs the most of
/// them, then the newest.
fn surplus(current: &[&Instance], desired: usize, decision: &mut Decision) {
    let mut left: Vec<&Instance> = current.to_vec();
    while left.len() > desired {
        let mut per_host: HashMap<&HostName, usize> = HashMap::new();
        for instance in &left {
            *per_host.entry(&instance.host).or_default() += 1;
        }
        let rank = |i: &Instance| {
            let state = match i.state {
                InstanceState::Failed => 0,
                InstanceState::Unhealthy => 1,
                InstanceState::Placed | InstanceState::Lost => 2,
                InstanceState::Starting => 3,
                _ if i.routed_at.is_none() => 4,
                _ => 5,
            };
            let crowd = per_host.get(&i.host).copied().unwrap_or(0);
            (
                state,
                std::cmp::Reverse(crowd),
                std::cmp::Reverse(i.placed_at),
                i.id.clone(),
            )
        };
        let Some(at) = (0..left.len()).min_by_key(|at| rank(left[*at])) else {
            return;
        };
        let instance = left.swap_remove(at);
        retire(instance, decision);
    }
}

/// Takes back what this plan had in store for `instance`, and lets it go.
pub(super) fn retire(instance: &Instance, decision: &mut Decision) {
    let id = &instance.id;
    decision.actions.retain(
        |a| !matches!(a, Action::Launch(x) | Action::Restart(x) | Action::Check(x) | Action::Find(x) if x == id),
    );
    match instance.state {
        InstanceState::Failed => decision.actions.push(Action::Clean(id.clone())),
        s if s.is_live() => decision.actions.push(Action::Drain(id.clone())),
        _ => {}
    }
}

/// Exactly one instance on every host on which the app belongs.
pub(super) fn one_per_host(
    facts: &Facts<'_>,
    spec: &ReleaseSpec,
    current: &[&Instance],
    old: &[&Instance],
    decision: &mut Decision,
) {
    let there: HashSet<&HostName> = current.iter().map(|i| &i.host).collect();
    let mut targets: Vec<&Host> = facts
        .hosts
        .values()
        .filter(|h| facts.belongs_on.contains(&h.name))
        .filter(|h| h.accepts_instances() || there.contains(&h.name))
        .collect();
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    let desired = targets.len();
    decision.shape.desired = u32::try_from(desired).unwrap_or(u32::MAX);
    let room = (desired + surge(spec, decision.shape.desired) as usize).saturating_sub(current.len() + old.len());
    let missing: Vec<HostName> = targets
        .iter()
        .filter(|h| !there.contains(&h.name))
        .map(|h| h.name.clone())
        .collect();
    let count = missing.len().min(room);
    if placeable(facts, count, decision) {
        decision.actions.push(Action::Place {
            count,
            only: Some(missing),
        });
    }
    let names: HashSet<&HostName> = targets.iter().map(|h| &h.name).collect();
    // Whatever serves on a host stays until something else serves there.
    let mut serving_on: HashMap<&HostName, usize> = HashMap::new();
    for instance in current.iter().chain(old).filter(|i| is_serving(i)) {
        *serving_on.entry(&instance.host).or_default() += 1;
    }
    let (aside, replaced): (Vec<&Instance>, Vec<&Instance>) = old.iter().partition(|i| !names.contains(&i.host));
    aside.iter().for_each(|i| retire(i, decision));
    drain_old(spec, current, &replaced, desired, decision, |instance| {
        if !is_serving(instance) || spec.update.max_unavailable > 0 {
            return true;
        }
        let others = serving_on.get_mut(&instance.host).filter(|n| **n > 1);
        others.map(|n| *n -= 1).is_some()
    });
    let mut seen = HashSet::new();
    let mut best: Vec<&Instance> = current.to_vec();
    best.sort_by_key(|i| (!is_serving(i), i.placed_at));
    for instance in best {
        if !seen.insert(&instance.host) {
            retire(instance, decision);
        }
    }
}
