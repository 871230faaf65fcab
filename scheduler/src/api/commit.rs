//! Committing a change of an app, and answering with its operation: bounded compare-and-set, replay of a repeated
//! request, waiting for the end.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Json, Response};
use model::store::{Expected, Intent, IntentOutcome, KeyUse, Revision};
use model::{
    App, AppId, EventKind, Generation, HostName, NewEvent, Operation, OperationId, OperationKind, OperationState,
    Release, Timestamp,
};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::Api;
use super::answer::tag;
use super::error::{ApiError, Code};
use super::extract::Call;
use crate::intent::{self, Change, Draft, Situation};

/// How often a change is decided anew because somebody else was faster.
pub(super) const ATTEMPTS: u32 = 5;
/// Longest wait for one hint while an operation is waited for.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Operations looked through for the fate of a release.
const OPERATIONS_READ: u32 = 100;

/// An app as a change finds it.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) app: Option<App>,
    /// The release that it is at.
    pub(super) release: Option<Release>,
    open: Option<Operation>,
}

impl Look {
    /// Reads the app; refuses when it is not in the generation that the caller named.
    pub(super) async fn at(api: &Api, call: &Call, id: &AppId) -> Result<Self, ApiError> {
        let app = api.store.app_fetch(id).await?;
        match (&app, call.if_match) {
            (Some(app), Some(wanted)) if app.generation != wanted => {
                return Err(ApiError::stale(&format!("app {id}"), app.generation));
            }
            (None, Some(_)) => {
                return Err(ApiError::new(
                    Code::VersionConflict,
                    format!("there is no app {id} any more"),
                ));
            }
            _ => {}
        }
        let mut open = None;
        if let Some(operation) = app.as_ref().and_then(|app| app.operation.as_ref()) {
            let operation = api.store.operation_fetch(operation).await?;
            open = operation.filter(|o| !o.state.is_final());
        }
        let release = match &app {
            Some(app) => api.store.release_fetch(id, app.release).await?,
            None => None,
        };
        Ok(Self { app, release, open })
    }

    /// What `change` makes of it.
    pub(super) fn decide(&self, id: &AppId, change: &Change, now: Timestamp) -> Result<Draft, ApiError> {
        let situation = Situation {
            id,
            app: self.app.as_ref(),
            version: self.release.as_ref().map(|r| &r.version),
            open: self.open.as_ref(),
            now,
        };
        Ok(intent::decide(&situation, change)?)
    }
}

/// Releases of `app` that were fully routed once, the latest first.
pub(super) async fn succeeded(api: &Api, app: &App) -> Result<Vec<u32>, ApiError> {
    let operations = api.store.operation_list(Some(&app.id), OPERATIONS_READ).await?;
    Ok(operations
        .into_iter()
        // Older ones are those of a removed app of the same name.
        .filter(|o| o.state == OperationState::Succeeded && o.created_at >= app.created_at)
        // That a canary came up does not say that it was ever meant to take over.
        .filter(|o| o.kind != OperationKind::Canary)
        .filter_map(|o| o.release)
        .collect())
}

/// Decides `change` of an app, commits it and answers with the operation.
pub(super) async fn change(api: &Api, call: &Call, id: &AppId, change: &Change) -> Result<Response, ApiError> {
    if let Some(operation) = replayed(api, call).await? {
        return answer(api, call, operation, None).await;
    }
    for _ in 0..ATTEMPTS {
        let look = Look::at(api, call, id).await?;
        let now = Timestamp::now();
        let draft = look.decide(id, change, now)?;
        if call.dry_run {
            return Ok(Plan::of(&draft).answer());
        }
        if let Some((operation, generation)) = commit(api, call, look.app.as_ref(), draft, now).await? {
            return answer(api, call, operation, Some(generation)).await;
        }
    }
    Err(contended(id))
}

/// Somebody else was faster, again and again.
pub(super) fn contended(id: &AppId) -> ApiError {
    ApiError::new(
        Code::VersionConflict,
        format!("app {id} is being changed by others all the time: repeat the request"),
    )
}

/// Commits a draft that was decided from `seen`; `None` when somebody else was faster and it must be decided anew.
pub(super) async fn commit(
    api: &Api,
    call: &Call,
    seen: Option<&App>,
    draft: Draft,
    now: Timestamp,
) -> Result<Option<(Operation, Generation)>, ApiError> {
    let id = draft.app.id.clone();
    let event = NewEvent::new(EventKind::App, &call.actor.name, draft.message)
        .about_app(&id)
        .in_operation(&draft.operation.id);
    let intent = Intent {
        expected: seen.map_or(Expected::Absent, |app| Expected::Generation(app.generation)),
        app: draft.app,
        release: draft.release,
        operation: draft.operation,
        event,
        tcp_ports: api.gateway_tcp_ports,
        idempotency: call.idempotency.clone(),
    };
    match api.store.intent_commit(&intent, now).await? {
        IntentOutcome::Committed(app, operation) => Ok(Some((operation, app.generation))),
        IntentOutcome::Replayed(operation) => {
            let generation = seen.map_or(Generation::FIRST, |app| app.generation);
            Ok(Some((operation, generation)))
        }
        IntentOutcome::KeyReused => Err(key_reused()),
        IntentOutcome::DomainTaken { domain, owner } => Err(domain_taken(&domain, &owner)),
        // With If-Match the next look answers 412.
        IntentOutcome::Conflict(_) | IntentOutcome::NotFound => Ok(None),
        IntentOutcome::PortTaken { port, by } => Err(ApiError::new(
            Code::Conflict,
            format!("port {port} at the gateways belongs to app {by}: choose another, or none and one is chosen"),
        )
        .at("/config/tcp/port")),
        IntentOutcome::NoPort => Err(ApiError::new(
            Code::Conflict,
            format!(
                "every port of {} at the gateways is taken or rests for ten minutes: remove an app, or widen \
                 scheduler.gateway_tcp_ports and gateway.tcp_ports",
                api.gateway_tcp_ports
            ),
        )),
    }
}

/// A custom domain is another app's.
pub(super) fn domain_taken(domain: &str, owner: &AppId) -> ApiError {
    ApiError::new(
        Code::Conflict,
        format!("domain {domain} belongs to app {owner}: take it away there first"),
    )
}

pub(super) fn key_reused() -> ApiError {
    ApiError::new(
        Code::IdempotencyKeyReused,
        "this Idempotency-Key was used for another request: use a new one",
    )
    .at("Idempotency-Key")
}

/// What the same request with the same `Idempotency-Key` made when it was made before: its operation, if it was one that
/// takes time. Asked before anything else, because the first request may have changed what the second would be refused
/// for.
pub(super) async fn used(api: &Api, call: &Call) -> Result<Option<Option<Operation>>, ApiError> {
    let Some(key) = call.idempotency.as_ref().filter(|_| !call.dry_run) else {
        return Ok(None);
    };
    match api.store.idempotency_fetch(key, Timestamp::now()).await? {
        KeyUse::New => Ok(None),
        KeyUse::Same(operation) => Ok(Some(operation)),
        KeyUse::Other => Err(key_reused()),
    }
}

/// See [`used`], of requests that always make an operation.
pub(super) async fn replayed(api: &Api, call: &Call) -> Result<Option<Operation>, ApiError> {
    Ok(used(api, call).await?.flatten())
}

/// What `?dry_run=true` answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Plan {
    /// What would be done, in one sentence.
    pub(super) summary: String,
    /// The release that would run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) release: Option<u32>,
    /// The wanted number of instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) instances: Option<u32>,
    /// Hosts that new instances would be placed on, one entry per instance, at most 100.
    #[schema(value_type = Vec<String>)]
    pub(super) would_place: Vec<HostName>,
    /// Why the rest fits nowhere: a line per filter; or what stands in the way.
    pub(super) reasons: Vec<String>,
}

impl Plan {
    /// The plan of a draft that places nothing new, or that leaves it open where.
    pub(super) fn of(draft: &Draft) -> Self {
        Self {
            summary: draft.message.clone(),
            release: Some(draft.release.as_ref().map_or(draft.app.release, |r| r.number)),
            instances: Some(draft.app.instances),
            would_place: Vec::new(),
            reasons: Vec::new(),
        }
    }

    /// The answer.
    pub(super) fn answer(self) -> Response {
        Json(json!({ "plan": self })).into_response()
    }
}

/// 202 with the operation; with `?wait=`, 200 once it is final in time.
pub(super) async fn answer(
    api: &Api,
    call: &Call,
    operation: Operation,
    generation: Option<Generation>,
) -> Result<Response, ApiError> {
    let operation = match call.wait {
        Some(wait) => wait_for(api, operation, wait).await?,
        None => operation,
    };
    let status = if call.wait.is_some() && operation.state.is_final() {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let location = format!("/api/v1/operations/{}", operation.id);
    let mut response = (status, Json(json!({ "operation": operation }))).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    if let Some(generation) = generation {
        tag(&mut response, generation);
    }
    Ok(response)
}

/// The operation once it is final, or as it is after `wait`.
pub(super) async fn wait_for(api: &Api, operation: Operation, wait: Duration) -> Result<Operation, ApiError> {
    let deadline = Instant::now() + wait;
    // Known before the first look, so that no change between look and wait is missed.
    let mut revision = api.store.revision_wait(Revision(0), Duration::ZERO).await?;
    let mut operation = operation;
    loop {
        match api.store.operation_fetch(&operation.id).await? {
            Some(now) => operation = now,
            None => return Err(no_operation(&operation.id)),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if operation.state.is_final() || left.is_zero() {
            return Ok(operation);
        }
        tokio::select! {
            newer = api.store.revision_wait(revision, left.min(LOOK_AGAIN)) => revision = newer?,
            () = api.shutdown.cancelled() => return Ok(operation),
        }
    }
}

/// There is no such operation.
pub(super) fn no_operation(id: &OperationId) -> ApiError {
    ApiError::not_found("operation", id)
}
