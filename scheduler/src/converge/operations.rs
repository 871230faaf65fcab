//! Operations: how far the work that somebody asked for is, told purely from where the instances stand, so that it
//! survives restarts. Nothing decides by the steps; they are for people.

use std::collections::HashMap;
use std::time::Duration;

use model::spec::OnFailure;
use model::store::AppSettle;
use model::{
    App, Failure, FailureCode, Instance, InstanceId, InstanceState, Operation, OperationKind, OperationState,
    ReleaseSpec, Schedulability, Step, StepState, Timestamp,
};

use super::backoff::{PORTS_AT_ONCE, counts_as_failure, met_a_taken_port};
use super::plan::{Decision, Shape};
use super::pulls::Pull;

/// So many failures of the new release, and none that ever served, end an operation.
const FAILURES_MOST: usize = 3;

/// What an app's operation is judged by; of a canary's operation the app is as if it were at the canary's release alone.
#[derive(Clone, Copy)]
pub(crate) struct Evidence<'a> {
    pub operation: &'a Operation,
    pub app: &'a App,
    pub spec: Option<&'a ReleaseSpec>,
    pub decision: &'a Decision,
    /// What was decided for the canary, if there is one.
    pub canary: Option<&'a Decision>,
    /// The app's held instances.
    pub instances: &'a [Instance],
    /// All of its instances, if they were read.
    pub history: Option<&'a [Instance]>,
    /// Why no host fits, if that is what stands in the way.
    pub blocked: Option<&'a [String]>,
    /// How far the images of instances are, as far as this process knows.
    pub pulls: &'a HashMap<InstanceId, Pull>,
    pub now: Timestamp,
}

/// What follows for the operation and its app.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Verdict {
    /// To be written on the app first.
    pub settle: Option<AppSettle>,
    /// The operation as it should be, if that is another than it is.
    pub next: Option<Operation>,
    /// When time alone changes the verdict.
    pub wake_at: Option<Timestamp>,
}

fn step(name: &str, state: StepState, detail: String) -> Step {
    Step {
        name: name.into(),
        state,
        detail,
        at: Timestamp::default(),
    }
}

/// Steps of an operation that brings instances up.
fn steps_up(evidence: &Evidence<'_>) -> Vec<Step> {
    let shape = &evidence.decision.shape;
    let release = evidence.app.release;
    let of_release = |i: &&Instance| i.release == release && i.state.is_live();
    let pulled = evidence
        .instances
        .iter()
        .filter(of_release)
        .filter(|i| i.container.is_some() || evidence.pulls.get(&i.id) == Some(&Pull::Done))
        .count();
    let pulled = u32::try_from(pulled).unwrap_or(u32::MAX).min(shape.current);
    let mut steps = Vec::new();
    let mut before = shape.current;
    for (name, n) in [
        ("pull", pulled),
        ("create", shape.launched),
        ("start", shape.launched),
        ("probe", shape.healthy),
        ("route", shape.serving),
    ] {
        let state = if n >= shape.desired {
            StepState::Done
        } else if before > 0 {
            StepState::Running
        } else {
            StepState::Pending
        };
        steps.push(step(
            name,
            state,
            format!("{} of {} instances", n.min(shape.desired), shape.desired),
        ));
        before = n;
    }
    let leaving = shape.old + shape.surplus;
    if leaving > 0 || evidence.operation.steps.iter().any(|s| s.name == "drain") {
        let state = match (leaving, shape.serving) {
            (0, _) => StepState::Done,
            (_, 0) => StepState::Pending,
            _ => StepState::Running,
        };
        steps.push(step("drain", state, format!("{leaving} left")));
    }
    steps
}

/// Steps of an operation that takes instances away.
fn steps_down(routable: u32, held: u32) -> Vec<Step> {
    let state = |left| if left == 0 { StepState::Done } else { StepState::Running };
    vec![
        step("drain", state(routable), format!("{routable} left")),
        step("stop", state(held), format!("{held} left")),
    ]
}

/// Gives `next`'s steps their times; whether anything but times differs from `current`.
fn differs(current: &Operation, next: &mut Operation, now: Timestamp) -> bool {
    for new in &mut next.steps {
        let old = current.steps.iter().find(|s| s.name == new.name);
        new.at = match old {
            Some(old) if old.state == new.state => old.at,
            _ => now,
        };
    }
    let same = current.state == next.state
        && current.message == next.message
        && current.failure == next.failure
        && current.reasons == next.reasons
        && current.steps == next.steps;
    if !same {
        next.updated_at = now;
    }
    !same
}

fn finish(operation: &Operation, mut next: Operation, now: Timestamp) -> Option<Operation> {
    differs(operation, &mut next, now).then_some(next)
}

fn plural(n: u32) -> String {
    if n == 1 {
        "1 instance".into()
    } else {
        format!("{n} instances")
    }
}

/// Judges the operation of an app from where its instances stand.
pub(crate) fn judge(evidence: &Evidence<'_>) -> Verdict {
    let operation = evidence.operation;
    if operation.state.is_final() || evidence.app.operation.as_ref() != Some(&operation.id) {
        return Verdict::default();
    }
    match operation.kind {
        OperationKind::Deploy
        | OperationKind::Scale
        | OperationKind::Restart
        | OperationKind::Start
        | OperationKind::Rollback
        | OperationKind::Canary
        | OperationKind::Promote => judge_up(evidence),
        OperationKind::Abort => judge_abort(evidence),
        OperationKind::Stop => judge_stop(evidence),
        // They end when the app, or the last instance on the host, is gone.
        OperationKind::Remove => {
            let shape = &evidence.decision.shape;
            let mut next = operation.clone();
            next.steps = steps_down(shape.routable, shape.held);
            Verdict {
                next: finish(operation, next, evidence.now),
                ..Verdict::default()
            }
        }
        _ => Verdict::default(),
    }
}

fn judge_stop(evidence: &Evidence<'_>) -> Verdict {
    let shape = &evidence.decision.shape;
    let mut next = evidence.operation.clone();
    next.steps = steps_down(shape.routable, shape.held);
    if shape.held == 0 {
        next.state = OperationState::Succeeded;
        next.message = "all instances are stopped".into();
    }
    Verdict {
        next: finish(evidence.operation, next, evidence.now),
        ..Verdict::default()
    }
}

/// It ends when the app has forgotten its canary.
fn judge_abort(evidence: &Evidence<'_>) -> Verdict {
    let mut next = evidence.operation.clone();
    let left = evidence.canary.map(|d| (d.shape.routable, d.shape.held));
    let (routable, held) = left.unwrap_or_default();
    next.steps = steps_down(routable, held);
    if evidence.app.canary.is_none() {
        next.state = OperationState::Succeeded;
        next.message = format!("the canary is gone; release {} goes on alone", evidence.app.release);
    }
    Verdict {
        next: finish(evidence.operation, next, evidence.now),
        ..Verdict::default()
    }
}

fn judge_up(evidence: &Evidence<'_>) -> Verdict {
    let (operation, app, shape, now) = (evidence.operation, evidence.app, &evidence.decision.shape, evidence.now);
    let mut next = operation.clone();
    if operation.release.is_some_and(|r| r != app.release) {
        // The settlement was written, the operation was not: a crash came between.
        next.state = OperationState::Failed;
        let from = operation.release.unwrap_or(0);
        next.message = match operation.kind {
            OperationKind::Canary => taken_away(from, app.release),
            _ => rolled_back(from, app.release),
        };
        return Verdict {
            next: finish(operation, next, now),
            ..Verdict::default()
        };
    }
    next.steps = steps_up(evidence);
    next.reasons = Vec::new();
    let complete =
        shape.serving >= shape.desired && shape.current == shape.desired && shape.old == 0 && app.release != 0;
    if complete {
        next.state = OperationState::Succeeded;
        next.message = format!("{} routed", plural(shape.desired));
        // Only what has served can be returned to.
        let serves = shape.desired > 0 && operation.kind != OperationKind::Canary;
        let settle = serves.then_some(AppSettle::Routed { release: app.release });
        return Verdict {
            settle,
            next: finish(operation, next, now),
            wake_at: None,
        };
    }
    if let Some(why) = given_up(evidence) {
        return fail(evidence, next, &why);
    }
    if let Some(reasons) = evidence.blocked {
        next.state = OperationState::Blocked;
        next.message = "no host fits; it goes on by itself when there is room".into();
        next.reasons = reasons.to_vec();
        return Verdict {
            next: finish(operation, next, now),
            ..Verdict::default()
        };
    }
    next.state = OperationState::Running;
    next.message = match evidence.decision.backoff_until {
        Some(until) => format!("so many instances failed that the next one waits until {until}"),
        None => waiting_for(shape),
    };
    let changed = finish(operation, next, now);
    let deadline = deadline(evidence.spec);
    let since = if changed.is_some() { now } else { operation.updated_at };
    let since = since.max(last_pull(evidence));
    if operation.state == OperationState::Running && changed.is_none() && now.since(since) >= deadline {
        let why = format!("no progress for {} s: {}", deadline.as_secs(), waiting_for(shape));
        return fail(evidence, operation.clone(), &why);
    }
    Verdict {
        wake_at: Some(since.plus(deadline)),
        next: changed,
        settle: None,
    }
}

fn deadline(spec: Option<&ReleaseSpec>) -> Duration {
    Duration::from_secs(u64::from(spec.map_or(120, |s| s.update.deadline_s)))
}

/// When an image of the wanted release was last being pulled: that alone is progress, however long it takes (each pull has a
/// deadline of its own).
fn last_pull(evidence: &Evidence<'_>) -> Timestamp {
    let own = |i: &&Instance| i.release == evidence.app.release;
    let held = evidence.instances.iter().filter(own);
    let known = held.filter_map(|i| match evidence.pulls.get(&i.id)? {
        Pull::InHand => Some(evidence.now),
        Pull::Broken(at) => Some(*at),
        Pull::Done => None,
    });
    let failed = failures(evidence, |i| {
        let code = i.failure.as_ref().map(|f| f.code);
        matches!(code, Some(FailureCode::PullFailed | FailureCode::RegistryUnreachable))
    });
    known
        .chain(failed.iter().map(|i| i.changed_at))
        .max()
        .unwrap_or_default()
}

fn waiting_for(shape: &Shape) -> String {
    let missing = shape.desired.saturating_sub(shape.serving);
    if shape.current < shape.desired && shape.launched == shape.current && shape.serving == shape.current {
        format!("placing {}", plural(shape.desired - shape.current))
    } else if missing > 0 {
        format!("{} of {} routed", shape.serving, plural(shape.desired))
    } else {
        format!("{} of the old ones left", shape.old + shape.surplus)
    }
}

/// Failures of the wanted release since the operation began that count, oldest first.
fn failures<'a>(evidence: &Evidence<'a>, counts: fn(&Instance) -> bool) -> Vec<&'a Instance> {
    let mut failures: Vec<&Instance> = evidence
        .history
        .unwrap_or(evidence.instances)
        .iter()
        .filter(|i| i.release == evidence.app.release && counts(i))
        .filter(|i| i.placed_at >= evidence.operation.created_at)
        .collect();
    failures.sort_by_key(|i| i.changed_at);
    failures
}

/// Why the operation is hopeless, if it is: the release failed again and again and never served.
fn given_up(evidence: &Evidence<'_>) -> Option<String> {
    let shape = &evidence.decision.shape;
    if shape.serving > 0 {
        return None;
    }
    let restarts = usize::try_from(shape.restarts).unwrap_or(usize::MAX);
    let ports = failures(evidence, met_a_taken_port);
    if let Some(last) = ports.last()
        && ports.len() >= (PORTS_AT_ONCE as usize).saturating_mul(shape.desired.max(1) as usize)
    {
        return Some(format!(
            "{} ports in a row were taken by other programs, the last one {} of host {}: give the hosts a port range of \
             their own",
            ports.len(),
            last.port,
            last.host
        ));
    }
    let failures = failures(evidence, counts_as_failure);
    let left_failed = evidence.spec.is_some_and(|s| s.on_failure == OnFailure::None);
    let all_failed = left_failed && shape.desired > 0 && shape.kept_failed >= shape.desired;
    let n = failures.len().saturating_add(restarts);
    let first = failures.first().and_then(|i| i.failure.as_ref());
    (n >= FAILURES_MOST || all_failed).then(|| {
        let because = first.map_or(String::new(), |f| format!(": {}", f.message));
        format!("{n} instances failed and none was ever routed{because}")
    })
}

fn taken_away(canary: u32, beside: u32) -> String {
    format!("the canary of release {canary} was taken away; release {beside} goes on alone")
}

fn rolled_back(from: u32, to: u32) -> String {
    format!("release {from} failed; the app returned to release {to}")
}

fn fail(evidence: &Evidence<'_>, mut next: Operation, why: &str) -> Verdict {
    let app = evidence.app;
    let kind = evidence.operation.kind;
    let brings_release = matches!(
        kind,
        OperationKind::Deploy | OperationKind::Rollback | OperationKind::Promote
    );
    let back = brings_release && !app.is_settled() && app.previous_release != 0;
    next.state = OperationState::Failed;
    next.message = if kind == OperationKind::Canary {
        format!("{why}; the canary is taken away")
    } else if back {
        format!("{why}; the app returned to release {}", app.previous_release)
    } else {
        format!(
            "{why}; it is tried on, ever more rarely: deploy a version that works, or `caas stop {}`",
            app.id
        )
    };
    next.failure = first_failure(evidence);
    next.reasons = Vec::new();
    mark_failed(&mut next.steps, next.failure.as_ref());
    let settle = if kind == OperationKind::Canary {
        Some(AppSettle::CanaryFailed { release: app.release })
    } else {
        back.then_some(AppSettle::RolledBack {
            to: app.previous_release,
        })
    };
    Verdict {
        settle,
        next: finish(evidence.operation, next, evidence.now),
        wake_at: None,
    }
}

/// Marks the step that failed: the one that `failure` tells of, though the failed instances are gone and no longer
/// count; else the first one that is not done.
fn mark_failed(steps: &mut [Step], failure: Option<&Failure>) {
    let name = failure.and_then(|failure| match failure.code {
        FailureCode::PullFailed | FailureCode::RegistryUnreachable => Some("pull"),
        FailureCode::LaunchFailed | FailureCode::PortTaken => Some("start"),
        FailureCode::Exited
        | FailureCode::OutOfMemory
        | FailureCode::NeverReady
        | FailureCode::Unhealthy
        | FailureCode::Removed => Some("probe"),
        FailureCode::HostLost => None,
    });
    let at = name
        .and_then(|name| steps.iter().position(|s| s.name == name))
        .or_else(|| steps.iter().position(|s| s.state != StepState::Done));
    let Some(at) = at else { return };
    for (n, step) in steps.iter_mut().enumerate() {
        if n == at {
            step.state = StepState::Failed;
        } else if n < at && step.state != StepState::Done {
            step.state = StepState::Done;
            "done by those that failed".clone_into(&mut step.detail);
        } else if n > at && step.state == StepState::Running {
            step.state = StepState::Pending;
        }
    }
}

/// The failure that tells a person the most: the first one that counts, or else what ails an instance that is still
/// there, or the last taken port.
fn first_failure(evidence: &Evidence<'_>) -> Option<Failure> {
    let counted = failures(evidence, counts_as_failure);
    let held = || {
        let mut own = evidence.instances.iter().filter(|i| i.release == evidence.app.release);
        own.find_map(|i| i.failure.clone())
    };
    let port = || {
        failures(evidence, met_a_taken_port)
            .last()
            .and_then(|i| i.failure.clone())
    };
    counted
        .first()
        .and_then(|i| i.failure.clone())
        .or_else(held)
        .or_else(port)
}

/// Judges the emptying of a host from the instances that it holds.
pub(crate) fn judge_drain_host(
    operation: &Operation,
    schedulability: Option<Schedulability>,
    instances: &[&Instance],
    now: Timestamp,
) -> Option<Operation> {
    let count = |f: &dyn Fn(&&&Instance) -> bool| u32::try_from(instances.iter().filter(f).count()).unwrap_or(u32::MAX);
    let routable = count(&|i| i.state.is_live() || i.state == InstanceState::Draining);
    let held = u32::try_from(instances.len()).unwrap_or(u32::MAX);
    let mut next = operation.clone();
    next.steps = steps_down(routable, held);
    match schedulability {
        None => {
            next.state = OperationState::Succeeded;
            next.message = "the host was removed".into();
        }
        Some(Schedulability::Draining) if held == 0 => {
            next.state = OperationState::Succeeded;
            next.message = "no instance is left on the host".into();
        }
        Some(Schedulability::Draining) => {
            next.state = OperationState::Running;
            next.message = format!("{} left on the host", plural(held));
        }
        Some(_) => {
            next.state = OperationState::Superseded;
            next.message = "the host takes instances again".into();
        }
    }
    finish(operation, next, now)
}

/// The end of an operation whose app is gone.
pub(crate) fn judge_gone(operation: &Operation, now: Timestamp) -> Option<Operation> {
    let mut next = operation.clone();
    if operation.kind == OperationKind::Remove {
        next.state = OperationState::Succeeded;
        next.message = "the app is gone".into();
        for step in &mut next.steps {
            step.state = StepState::Done;
            step.detail = "0 left".into();
        }
    } else {
        next.state = OperationState::Superseded;
        next.message = "the app was removed".into();
    }
    finish(operation, next, now)
}
