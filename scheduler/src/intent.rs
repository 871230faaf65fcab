//! Intent: what a request makes of an app. Pure: the app as it is and the change in, the app to be, its release and
//! the operation by which it can be followed out. It never asks the store, an engine or the clock.

use model::config::Protocol;
use model::{
    App, AppConfig, AppId, AppStatus, Generation, InstanceId, Operation, OperationId, OperationKind, OperationState,
    Release, ReleaseSpec, Step, StepState, TenantId, Timestamp, Version,
};

use crate::canary;

/// Most instances of one app.
pub(crate) const MAX_INSTANCES: u32 = 1_000;

/// A wanted change of an app.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// A new release; makes the app when there is none, starts it when it is stopped.
    Deploy {
        /// The image's tag.
        version: Version,
        /// The digest to which it resolved.
        digest: String,
        /// What the containers are made from.
        spec: Box<ReleaseSpec>,
        /// How traffic reaches them.
        config: Box<AppConfig>,
        /// Another number of instances; `None`: as many as before, 1 for a new app.
        instances: Option<u32>,
    },
    /// Another number of instances.
    Scale(u32),
    /// All instances replaced by fresh ones.
    Restart,
    /// One instance, already draining, replaced by a fresh one.
    Replace(InstanceId),
    /// All instances stopped.
    Stop,
    /// Started again.
    Start,
    /// An earlier release.
    Rollback(Box<Release>),
    /// Taken away.
    Remove,
    /// Another way for traffic to reach it.
    Configure(Box<AppConfig>),
    /// A new release beside the present one.
    Canary(Box<canary::NewCanary>),
    /// Another share of the requests for the canary, per cent.
    Share(u32),
    /// The canary, whose release speaks this, takes over.
    Promote(Option<Protocol>),
    /// The canary is taken away.
    Abort,
}

/// What a decision is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation<'a> {
    /// The app's id.
    pub(crate) id: &'a AppId,
    /// The app, if there is one.
    pub(crate) app: Option<&'a App>,
    /// The version of the release that it is at.
    pub(crate) version: Option<&'a Version>,
    /// Its operation that is not final, if there is one.
    pub(crate) open: Option<&'a Operation>,
    /// The present.
    pub(crate) now: Timestamp,
}

/// A decided change, ready to be committed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Draft {
    /// The app to be.
    pub(crate) app: App,
    /// The new release.
    pub(crate) release: Option<Release>,
    /// The operation by which it can be followed.
    pub(crate) operation: Operation,
    /// One sentence for the audit.
    pub(crate) message: String,
}

/// Why a change is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// There is no such app.
    #[error("there is no app {0}")]
    NoSuchApp(AppId),
    /// It is being removed.
    #[error("app {0} is being removed: wait until it has gone")]
    Removing(AppId),
    /// It is stopped.
    #[error("app {0} is stopped: start it first")]
    Stopped(AppId),
    /// It runs that release already.
    #[error("app {0} is at release {1} already")]
    AlreadyAt(AppId, u32),
    /// It has a canary, which has to be promoted or aborted first.
    #[error("app {0} has a canary, release {1}: promote or abort it first")]
    HasCanary(AppId, u32),
    /// It has none.
    #[error("app {0} has no canary")]
    NoCanary(AppId),
    /// A canary needs a release beside which it runs.
    #[error("app {0} has no release that is fully routed, beside which a canary could run: deploy one first")]
    NothingBeside(AppId),
    /// The canary would not be told from what it runs beside.
    #[error("app {0} runs version {1} already: gateways tell a canary by its version")]
    SameVersion(AppId, Version),
    /// Instances of one version would speak two kinds of HTTP.
    #[error(
        "version {1} of app {0} runs and speaks {2}: gateways tell what an instance speaks by its version, so deploy what \
         speaks {3} as another version, or stop the app first"
    )]
    SpeaksOtherwise(AppId, Version, &'static str, &'static str),
    /// A protocol is a release's.
    #[error("app {0} speaks {1}, which belongs to its release: deploy one that speaks {2}")]
    ProtocolOfRelease(AppId, &'static str, &'static str),
    /// A canary beside an app, of which one speaks bytes.
    #[error("app {0} speaks {1}, and its canary can't speak {2}: bytes have a port of their own")]
    CanaryOfAnotherKind(AppId, &'static str, &'static str),
    /// The share is out of range.
    #[error("{0} %: a canary's share must be 0 to 100")]
    Share(u32),
    /// The number of instances is out of range.
    #[error("{0} instances: it must be 0 to {MAX_INSTANCES}")]
    TooMany(u32),
}

/// What `change` makes of the app in this situation.
pub(crate) fn decide(situation: &Situation<'_>, change: &Change) -> Result<Draft, Refusal> {
    let Situation { id, now, .. } = *situation;
    if let Change::Deploy {
        version,
        digest,
        spec,
        config,
        instances,
    } = change
    {
        let mut app = match situation.app {
            Some(app) if app.status == AppStatus::Removing => return Err(Refusal::Removing(id.clone())),
            Some(app) => {
                canary::none(app)?;
                speaks_alike(situation, app, version, config.protocol)?;
                app.clone()
            }
            None => new_app(id, now),
        };
        let number = app.last_release + 1;
        let mut config = (**config).clone();
        if app.canary.take().is_some() {
            app.config.weights.clear();
            config.weights.clear();
        }
        app.turn_to(number, None);
        app.last_release = number;
        let instances = checked(instances.unwrap_or(app.instances))?;
        // Of several deploys in a row that did not come through, the first one found what is given back.
        if let Some(back) = &mut app.way_back {
            if back.config.is_none() && config != app.config {
                back.config = Some(app.config.clone());
            }
            if back.instances.is_none() && instances != app.instances {
                back.instances = Some(app.instances);
            }
        }
        app.config = config;
        app.instances = instances;
        app.status = AppStatus::Running;
        let release = Release {
            app: id.clone(),
            number,
            version: version.clone(),
            digest: digest.clone(),
            spec: (**spec).clone(),
            protocol: Some(app.config.protocol),
            created_at: now,
        };
        let message = format!("deploy {id}:{version} as release {number}, {} instances", app.instances);
        let operation = operation(id, OperationKind::Deploy, Some(number), now);
        return Ok(draft(app, Some(release), operation, message, now));
    }

    let Some(current) = situation.app else {
        return Err(Refusal::NoSuchApp(id.clone()));
    };
    if current.status == AppStatus::Removing {
        return Err(Refusal::Removing(id.clone()));
    }
    let mut app = current.clone();
    let new = |kind| operation(id, kind, None, now);
    let (operation, message) = match change {
        Change::Deploy { .. } => unreachable!("answered above"),
        Change::Scale(instances) => {
            app.instances = checked(*instances)?;
            if let Some(back) = &mut app.way_back {
                back.instances = None;
            }
            let from = current.instances;
            // A deploy on its way goes on with the new number: it must not lose its way back.
            let operation = going_on(situation, OperationKind::Scale, false);
            (operation, format!("scale {id} from {from} to {instances} instances"))
        }
        Change::Restart => {
            running(current)?;
            app.restart_before = Some(now);
            (
                going_on(situation, OperationKind::Restart, false),
                format!("restart {id}"),
            )
        }
        Change::Replace(instance) => {
            running(current)?;
            let operation = going_on(situation, OperationKind::Restart, true);
            (operation, format!("replace instance {instance} of {id} by a fresh one"))
        }
        Change::Stop => {
            app.status = AppStatus::Stopped;
            (new(OperationKind::Stop), format!("stop {id}"))
        }
        Change::Start => {
            app.status = AppStatus::Running;
            (going_on(situation, OperationKind::Start, false), format!("start {id}"))
        }
        Change::Rollback(release) => {
            canary::none(current)?;
            let to = release.number;
            if to == current.release && current.status == AppStatus::Running {
                return Err(Refusal::AlreadyAt(id.clone(), to));
            }
            let speaks = current.config.protocol.of_instance(release.protocol);
            speaks_alike(situation, current, &release.version, speaks)?;
            // What has not proved itself is left with all that it brought.
            if app.release != to && !app.is_settled() && app.previous_release != 0 {
                app.turn_back();
            }
            if app.release != to {
                app.turn_to(to, release.protocol);
            }
            app.status = AppStatus::Running;
            let operation = operation(id, OperationKind::Rollback, Some(to), now);
            let from = current.release;
            (operation, format!("roll {id} back from release {from} to {to}"))
        }
        Change::Remove => {
            app.status = AppStatus::Removing;
            (new(OperationKind::Remove), format!("remove {id}"))
        }
        Change::Configure(config) => {
            let (speaks, asked) = (app.config.protocol, config.protocol);
            if speaks != asked && speaks.is_http() && asked.is_http() {
                let id = id.clone();
                return Err(Refusal::ProtocolOfRelease(id, speaks.as_str(), asked.as_str()));
            }
            app.config = (**config).clone();
            if let Some(back) = &mut app.way_back {
                back.config = None;
            }
            // Its shares are the canary's own.
            if let Some(canary) = &app.canary {
                app.config.weights = canary.weights();
            }
            let mut operation = going_on(situation, OperationKind::Configure, true);
            if operation.kind == OperationKind::Configure {
                operation.state = OperationState::Succeeded;
                operation.message = "recorded; gateways follow".into();
            }
            (operation, format!("configure {id}"))
        }
        Change::Canary(new) => {
            let (release, message) = canary::begin(&mut app, situation, new)?;
            let operation = operation(id, OperationKind::Canary, Some(release.number), now);
            return Ok(draft(app, Some(release), operation, message, now));
        }
        Change::Share(percent) => {
            let message = canary::share(&mut app, *percent)?;
            let mut operation = going_on(situation, OperationKind::Configure, true);
            if operation.kind == OperationKind::Configure {
                operation.state = OperationState::Succeeded;
                operation.message = "recorded; gateways follow".into();
            }
            (operation, message)
        }
        Change::Promote(protocol) => {
            let message = canary::promote(&mut app, *protocol)?;
            let operation = operation(id, OperationKind::Promote, Some(app.release), now);
            (operation, message)
        }
        Change::Abort => {
            let message = canary::abort(&mut app)?;
            (new(OperationKind::Abort), message)
        }
    };
    Ok(draft(app, None, operation, message, now))
}

fn draft(mut app: App, release: Option<Release>, operation: Operation, message: String, now: Timestamp) -> Draft {
    app.operation = Some(operation.id.clone());
    app.updated_at = now;
    Draft {
        app,
        release,
        operation,
        message,
    }
}

/// Refuses what would make instances of one version speak two kinds of HTTP: gateways could not tell them apart. What never came
/// through may be corrected under its version.
fn speaks_alike(situation: &Situation<'_>, app: &App, version: &Version, protocol: Protocol) -> Result<(), Refusal> {
    let speaks = app.config.protocol;
    let live = app.status == AppStatus::Running && app.is_settled();
    if !live || situation.version != Some(version) || protocol.of_instance(Some(speaks)) == protocol {
        return Ok(());
    }
    let (id, version) = (app.id.clone(), version.clone());
    Err(Refusal::SpeaksOtherwise(
        id,
        version,
        speaks.as_str(),
        protocol.as_str(),
    ))
}

pub(crate) fn checked(instances: u32) -> Result<u32, Refusal> {
    if instances > MAX_INSTANCES {
        return Err(Refusal::TooMany(instances));
    }
    Ok(instances)
}

pub(crate) fn running(app: &App) -> Result<(), Refusal> {
    match app.status {
        AppStatus::Stopped => Err(Refusal::Stopped(app.id.clone())),
        _ => Ok(()),
    }
}

fn new_app(id: &AppId, now: Timestamp) -> App {
    App {
        id: id.clone(),
        tenant: TenantId::default_tenant(),
        status: AppStatus::Running,
        instances: 1,
        release: 0,
        previous_release: 0,
        last_release: 0,
        restart_before: None,
        canary: None,
        way_back: None,
        config: AppConfig::default(),
        operation: None,
        placements: 0,
        created_at: now,
        updated_at: now,
        generation: Generation::FIRST,
    }
}

/// The operation of a change that leaves an open deploy, rollback, canary or promotion as it is: that one under a new id, so that it
/// still can fail and return; otherwise a new one of `kind`. Changes beside the instances leave every operation as it is.
fn going_on(situation: &Situation<'_>, kind: OperationKind, beside: bool) -> Operation {
    let brings_release = |open: &Operation| {
        let taking_over = matches!(
            open.kind,
            OperationKind::Deploy | OperationKind::Rollback | OperationKind::Promote
        );
        situation.app.is_some_and(|app| {
            let beside = app.canary.as_ref().map(|c| c.release);
            (taking_over && open.release == Some(app.release))
                || (open.kind == OperationKind::Canary && open.release == beside)
        })
    };
    match situation.open {
        Some(open) if beside || brings_release(open) => Operation {
            id: OperationId::random(),
            updated_at: situation.now,
            generation: Generation::FIRST,
            ..open.clone()
        },
        _ => operation(situation.id, kind, None, situation.now),
    }
}

/// A new operation with its steps still to come.
fn operation(app: &AppId, kind: OperationKind, release: Option<u32>, now: Timestamp) -> Operation {
    Operation {
        app: Some(app.clone()),
        release,
        ..blank_operation(kind, now)
    }
}

/// A new operation about nothing yet.
pub(crate) fn blank_operation(kind: OperationKind, now: Timestamp) -> Operation {
    let names: &[&str] = match kind {
        OperationKind::Stop | OperationKind::Remove | OperationKind::Abort | OperationKind::DrainHost => {
            &["drain", "stop"]
        }
        OperationKind::Configure => &[],
        _ => &["pull", "create", "start", "probe", "route"],
    };
    Operation {
        id: OperationId::random(),
        kind,
        app: None,
        host: None,
        release: None,
        state: OperationState::Running,
        message: String::new(),
        failure: None,
        steps: names
            .iter()
            .map(|name| Step {
                name: (*name).to_owned(),
                state: StepState::Pending,
                detail: String::new(),
                at: now,
            })
            .collect(),
        reasons: Vec::new(),
        created_at: now,
        updated_at: now,
        generation: Generation::FIRST,
    }
}

#[cfg(test)]
pub(crate) mod tests;
