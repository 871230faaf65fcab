//! Health and figures of the scheduler itself; open to anyone who reaches the port.

use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Json};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::error::{ApiError, Code};

/// How long the store may take to prove that it answers.
const STORE_DEADLINE: Duration = Duration::from_secs(2);

/// It is well.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`.
    status: &'static str,
}

/// Whether the process lives
#[utoipa::path(get, path = "/healthz/live", tag = "health", security(()), responses((status = 200, body = Health)))]
pub(super) async fn live() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether requests can be served
#[utoipa::path(get, path = "/healthz/ready", tag = "health", security(()), responses((status = 200, body = Health)))]
pub(super) async fn ready(State(api): State<Api>) -> Result<Json<Health>, ApiError> {
    let late = || ApiError::new(Code::StoreUnavailable, "the database did not answer within 2 s");
    if api.shutdown.is_cancelled() {
        return Err(ApiError::new(Code::Overloaded, "the scheduler is shutting down"));
    }
    tokio::time::timeout(STORE_DEADLINE, api.store.check())
        .await
        .map_err(|_| late())??;
    Ok(Json(Health { status: "ok" }))
}

/// Figures as Prometheus text
#[utoipa::path(get, path = "/metrics", tag = "health", security(()),
    responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        api.metrics.render(),
    )
}
