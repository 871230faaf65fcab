//! Credentials of image registries: set and forgotten; passwords go in and never come out.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Json;
use model::store::RegistryCredentials;
use model::{EventKind, NewEvent, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::auth::Actor;
use super::error::{ApiError, Code};
use super::extract::{self, Name};

/// A registry whose credentials are known.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Registry {
    /// `host[:port]` as it stands in image references.
    registry: String,
    /// User.
    username: String,
}

/// Credentials.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialsRequest {
    /// User, 1-255 characters.
    username: String,
    /// Password, 1-4,096 characters; never shown again.
    password: String,
}

/// List registries
#[utoipa::path(get, path = "/api/v1/registries", tag = "registries", responses((status = 200, body = [Registry])))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<Registry>>, ApiError> {
    let mut registries: Vec<Registry> = api.store.credentials_list().await?.into_iter().map(shown).collect();
    registries.sort_by(|a, b| a.registry.cmp(&b.registry));
    Ok(Json(registries))
}

fn shown(credentials: RegistryCredentials) -> Registry {
    Registry {
        registry: credentials.registry,
        username: credentials.username,
    }
}

/// Show a registry
#[utoipa::path(get, path = "/api/v1/registries/{registry}", tag = "registries",
    responses((status = 200, body = Registry)))]
pub(super) async fn info(State(api): State<Api>, Name(registry): Name) -> Result<Json<Registry>, ApiError> {
    let all = api.store.credentials_list().await?;
    let found = all.into_iter().find(|c| c.registry == registry);
    let found = found.ok_or_else(|| no_credentials(&registry))?;
    Ok(Json(shown(found)))
}

fn no_credentials(registry: &str) -> ApiError {
    let shown: String = registry.chars().take(80).collect();
    ApiError::new(
        Code::NotFound,
        format!("there are no credentials of registry {shown:?}"),
    )
}

/// Set a registry's credentials
///
/// Used from the next deploy on, and for every pull.
#[utoipa::path(put, path = "/api/v1/registries/{registry}", tag = "registries", request_body = CredentialsRequest,
    responses((status = 200, body = Registry)))]
pub(super) async fn set(
    State(api): State<Api>,
    Name(registry): Name,
    actor: Actor,
    extract::Json(request): extract::Json<CredentialsRequest>,
) -> Result<Json<Registry>, ApiError> {
    let sound = (1..=255).contains(&registry.len())
        && registry
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
        && registry
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'[');
    if !sound {
        return Err(ApiError::new(
            Code::InvalidRequest,
            "registry must be host[:port] as in image references, such as registry.example.com:5000",
        )
        .at("/registry"));
    }
    for (field, value, most) in [
        ("username", &request.username, 255),
        ("password", &request.password, 4_096),
    ] {
        if value.is_empty() || value.len() > most || value.chars().any(char::is_control) {
            return Err(ApiError::new(
                Code::InvalidRequest,
                format!("{field} must have 1 to {most} characters, none of them a control character"),
            )
            .at(format!("/{field}")));
        }
    }
    let credentials = RegistryCredentials {
        registry,
        username: request.username,
        password: request.password,
    };
    let message = format!("set the credentials of registry {}", credentials.registry);
    let event = NewEvent::new(EventKind::Admin, &actor.name, message);
    api.store
        .credentials_put(&credentials, &event, Timestamp::now())
        .await?;
    Ok(Json(shown(credentials)))
}

/// Forget a registry's credentials
#[utoipa::path(delete, path = "/api/v1/registries/{registry}", tag = "registries",
    responses((status = 204, description = "forgotten")))]
pub(super) async fn remove(State(api): State<Api>, Name(registry): Name, actor: Actor) -> Result<StatusCode, ApiError> {
    if registry.len() > 255 || registry.contains('\0') {
        return Err(no_credentials(&registry));
    }
    let message = format!("forget the credentials of registry {registry}");
    let event = NewEvent::new(EventKind::Admin, &actor.name, message);
    if api
        .store
        .credentials_remove(&registry, &event, Timestamp::now())
        .await?
    {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(no_credentials(&registry))
    }
}
