//! Operations: how far long work is.

use std::time::Duration;

use axum::extract::State;
use axum::response::{Json, Response};
use model::{AppId, Operation, OperationId};
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use super::extract::{Call, Id, Query};
use super::{Api, answer, commit, schema};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct OperationQuery {
    /// Only of this app.
    #[param(value_type = Option<String>)]
    app: Option<AppId>,
    /// Most operations, 1-1,000; default 100.
    limit: Option<u32>,
}

/// List operations, newest first
#[utoipa::path(get, path = "/api/v1/operations", tag = "operations", params(OperationQuery),
    responses((status = 200, body = [schema::Operation])))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<OperationQuery>,
) -> Result<Json<Vec<Operation>>, ApiError> {
    let limit = answer::limit(query.limit, 100)?;
    Ok(Json(api.store.operation_list(query.app.as_ref(), limit).await?))
}

#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only documents what `Call` reads")]
pub(super) struct WaitParams {
    /// Wait so long for its end, such as `30s`; at most 300 s.
    wait: Option<String>,
}

/// Show an operation
#[utoipa::path(get, path = "/api/v1/operations/{operation}", tag = "operations", params(WaitParams),
    responses((status = 200, body = schema::Operation)))]
pub(super) async fn info(State(api): State<Api>, Id(id): Id<OperationId>, call: Call) -> Result<Response, ApiError> {
    let found = api.store.operation_fetch(&id).await?;
    let operation = found.ok_or_else(|| commit::no_operation(&id))?;
    let operation = commit::wait_for(&api, operation, call.wait.unwrap_or(Duration::ZERO)).await?;
    Ok(answer::tagged(operation.generation, operation))
}
