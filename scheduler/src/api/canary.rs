//! The canary of an app: its share of the requests, and its two ways out. It begins by a deploy.

use axum::extract::State;
use axum::response::Response;
use model::AppId;
use serde::Deserialize;
use utoipa::ToSchema;

use super::error::ApiError;
use super::extract::{Call, Id};
use super::schema::{self, ChangeHeaders, ChangeQuery};
use super::{Api, commit};
use crate::intent::Change;

/// Another share.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ShareRequest {
    /// The canary's share of the requests in per cent, 0-100; 0: only its own host, `{version}--{app}`, leads to it, as long as the other version has an instance.
    #[schema(minimum = 0, maximum = 100)]
    percent: u32,
}

/// Change the canary's share
#[utoipa::path(post, path = "/api/v1/apps/{app}/canary", tag = "apps", params(ChangeQuery, ChangeHeaders), request_body = ShareRequest,
    responses((status = 202, body = schema::Accepted), (status = 200, body = schema::AcceptedOrPlan)))]
pub(super) async fn share(State(api): State<Api>, Id(id): Id<AppId>, call: Call) -> Result<Response, ApiError> {
    let percent = call.json::<ShareRequest>()?.percent;
    commit::change(&api, &call, &id, &Change::Share(percent)).await
}

/// Promote the canary
///
/// Its release becomes what the app is at, and takes over from the one beside it, instance by instance. The shares of the
/// versions go at once: each instance then gets as many requests as any other.
#[utoipa::path(post, path = "/api/v1/apps/{app}/promote", tag = "apps", params(ChangeQuery, ChangeHeaders),
    responses((status = 202, body = schema::Accepted), (status = 200, body = schema::AcceptedOrPlan)))]
pub(super) async fn promote(State(api): State<Api>, Id(id): Id<AppId>, call: Call) -> Result<Response, ApiError> {
    let app = api.store.app_fetch(&id).await?;
    let canary = app.as_ref().and_then(|app| app.canary.as_ref());
    let protocol = match canary {
        Some(canary) => api
            .store
            .release_fetch(&id, canary.release)
            .await?
            .and_then(|r| r.protocol),
        None => None,
    };
    commit::change(&api, &call, &id, &Change::Promote(protocol)).await
}

/// Abort the canary
///
/// It is given no more requests, its instances are drained and stopped, and then the app forgets it.
#[utoipa::path(post, path = "/api/v1/apps/{app}/abort", tag = "apps", params(ChangeQuery, ChangeHeaders),
    responses((status = 202, body = schema::Accepted), (status = 200, body = schema::AcceptedOrPlan)))]
pub(super) async fn abort(State(api): State<Api>, Id(id): Id<AppId>, call: Call) -> Result<Response, ApiError> {
    commit::change(&api, &call, &id, &Change::Abort).await
}
