//! Instances: seen, replaced one by one, and their own sign of life.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{Json, Response};
use model::engine::ContainerStats;
use model::store::{InstanceFilter, Outcome};
use model::{AppId, HostName, Instance, InstanceChange, InstanceId, InstanceState, Timestamp};
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{self, Page};
use super::error::{ApiError, Code};
use super::extract::{Call, Id, Query};
use super::schema::{self, ChangeHeaders, ChangeQuery};
use super::{Api, auth, commit};
use crate::intent::Change;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct InstanceQuery {
    /// Only of this app.
    #[param(value_type = Option<String>)]
    app: Option<AppId>,
    /// Only on this host.
    #[param(value_type = Option<String>)]
    host: Option<HostName>,
    /// Also those that are gone.
    #[serde(default)]
    all: bool,
    /// Most items, 1-1,000; default 1,000.
    limit: Option<u32>,
    /// Where the page begins: from the `Link` header of the page before.
    cursor: Option<String>,
}

/// List instances, oldest first
#[utoipa::path(get, path = "/api/v1/instances", tag = "instances", params(InstanceQuery),
    responses((status = 200, body = [schema::Instance])))]
pub(super) async fn list(
    State(api): State<Api>,
    uri: Uri,
    Query(query): Query<InstanceQuery>,
) -> Result<Response, ApiError> {
    let filter = InstanceFilter {
        app: query.app,
        host: query.host,
        released_too: query.all,
    };
    let instances = api.store.instance_list(&filter).await?;
    Page::new(query.limit, query.cursor).of(&uri, instances, |i| i.id.to_string())
}

/// Show an instance
#[utoipa::path(get, path = "/api/v1/instances/{instance}", tag = "instances",
    responses((status = 200, body = schema::Instance)))]
pub(super) async fn info(State(api): State<Api>, Id(id): Id<InstanceId>) -> Result<Response, ApiError> {
    let instance = fetch(&api, &id).await?;
    Ok(answer::tagged(instance.generation, instance))
}

pub(super) async fn fetch(api: &Api, id: &InstanceId) -> Result<Instance, ApiError> {
    let found = api.store.instance_fetch(id).await?;
    found.ok_or_else(|| ApiError::not_found("instance", id))
}

/// Replace an instance by a fresh one
///
/// It is drained, so that no request is lost, while a new instance of the same release takes its place. Where no other instance
/// of the app serves, the app is restarted as by a deploy: the new instance serves before this one is drained.
#[utoipa::path(post, path = "/api/v1/instances/{instance}/restart", tag = "instances", params(ChangeQuery, ChangeHeaders),
    responses((status = 202, body = schema::Accepted), (status = 200, body = schema::AcceptedOrPlan)))]
pub(super) async fn restart(
    State(api): State<Api>,
    Id(id): Id<InstanceId>,
    mut call: Call,
) -> Result<Response, ApiError> {
    // First of all: the first request that bore this key has changed the instance, which may be long gone by now.
    if let Some(operation) = commit::replayed(&api, &call).await? {
        return commit::answer(&api, &call, operation, None).await;
    }
    let mut instance = fetch(&api, &id).await?;
    let app = instance.app.clone();
    if call.if_match.is_some_and(|wanted| wanted != instance.generation) {
        return Err(ApiError::stale(&format!("instance {id}"), instance.generation));
    }
    // The condition was on the instance; the app is only told.
    call.if_match = None;
    if instance.state == InstanceState::Running {
        let held = api.store.instance_list(&InstanceFilter::held_of(&app)).await?;
        let serves = |other: &Instance| other.id != id && other.state == InstanceState::Running;
        if !held.iter().any(serves) {
            return commit::change(&api, &call, &app, &Change::Restart).await;
        }
    }
    if call.dry_run {
        return commit::change(&api, &call, &app, &Change::Replace(id)).await;
    }
    for _ in 0..commit::ATTEMPTS {
        let now = Timestamp::now();
        let leaving = matches!(instance.state, InstanceState::Draining | InstanceState::Drained);
        if leaving {
            break;
        }
        match api
            .store
            .instance_update(&instance, &InstanceChange::Drain, now)
            .await?
        {
            Outcome::Updated(next) => {
                instance = next;
                break;
            }
            Outcome::Conflict(current) => instance = current,
            Outcome::NotFound => return Err(ApiError::not_found("instance", &id)),
        }
    }
    if !matches!(instance.state, InstanceState::Draining | InstanceState::Drained) {
        return Err(ApiError::new(
            Code::VersionConflict,
            format!("instance {id} is being changed by others all the time: repeat the request"),
        ));
    }
    commit::change(&api, &call, &app, &Change::Replace(id)).await
}

/// Show what an instance uses
#[utoipa::path(get, path = "/api/v1/instances/{instance}/stats", tag = "instances",
    responses((status = 200, body = schema::ContainerStats)))]
pub(super) async fn stats(State(api): State<Api>, Id(id): Id<InstanceId>) -> Result<Json<ContainerStats>, ApiError> {
    if let Some(stats) = api.fleet.stats(&id) {
        return Ok(Json(stats));
    }
    let instance = fetch(&api, &id).await?;
    let gone = || ApiError::new(Code::NotFound, format!("instance {id} has no running container"));
    let container = instance
        .container
        .filter(|_| instance.released_at.is_none())
        .ok_or_else(gone)?;
    let host = api.store.host_fetch(&instance.host).await?.ok_or_else(gone)?;
    Ok(Json(api.fleet.engine(&host)?.stats(&container).await?))
}

/// Report an instance's own heartbeat
///
/// Sent by the app itself, with the token that its environment holds as `CAAS_INSTANCE_TOKEN`.
#[utoipa::path(put, path = "/api/v1/instances/{instance}/heartbeat", tag = "instances",
    security(("instance_token" = [])), responses((status = 204, description = "noted")))]
pub(super) async fn heartbeat(
    State(api): State<Api>,
    Id(id): Id<InstanceId>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let denied = || {
        ApiError::new(
            Code::Unauthenticated,
            "send the instance's own token (CAAS_INSTANCE_TOKEN) in the header Authorization: Bearer",
        )
    };
    let token = auth::bearer(&headers).ok_or_else(denied)?;
    let stored = api.store.instance_token_hash(&id).await?;
    if !auth::fits(token, stored.as_deref()) {
        return Err(denied());
    }
    let mut instance = fetch(&api, &id).await?;
    for _ in 0..commit::ATTEMPTS {
        let beat = api
            .store
            .instance_update(&instance, &InstanceChange::Heartbeat, Timestamp::now())
            .await?;
        match beat {
            Outcome::Updated(_) => return Ok(StatusCode::NO_CONTENT),
            Outcome::Conflict(current) => instance = current,
            Outcome::NotFound => return Err(ApiError::not_found("instance", &id)),
        }
    }
    Err(ApiError::new(
        Code::Overloaded,
        format!("instance {id} is changing all the time: send the next heartbeat"),
    ))
}
