//! Problems: every answer that is not a success, as RFC 9457 `application/problem+json`. The only place that chooses
//! statuses. A problem never carries text of the database or of this program's inside; the log has it, under the same
//! request id.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::engine::EngineError;
use model::store::StoreError;
use model::{AppId, InvalidId, SpecError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::image::ResolveError;
use crate::intent::Refusal;

/// The kinds of problem; stable words of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Code {
    InvalidSpec,
    InvalidRequest,
    Unauthenticated,
    NotFound,
    MethodNotAllowed,
    NoCapacity,
    AppBusy,
    Conflict,
    VersionConflict,
    PayloadTooLarge,
    ImageNotFound,
    RegistryDenied,
    IdempotencyKeyReused,
    RegistryUnreachable,
    EngineUnreachable,
    StoreUnavailable,
    Overloaded,
    Timeout,
    Internal,
}

impl Code {
    /// Status, title, and whether the same request may succeed later.
    fn row(self) -> (StatusCode, &'static str, bool) {
        use StatusCode as S;
        match self {
            Self::InvalidSpec => (S::BAD_REQUEST, "a field can't be accepted", false),
            Self::InvalidRequest => (S::BAD_REQUEST, "the request can't be understood", false),
            Self::Unauthenticated => (S::UNAUTHORIZED, "a valid token is needed", false),
            Self::NotFound => (S::NOT_FOUND, "not found", false),
            Self::MethodNotAllowed => (S::METHOD_NOT_ALLOWED, "method not allowed", false),
            Self::NoCapacity => (S::CONFLICT, "no host fits", true),
            Self::AppBusy => (S::CONFLICT, "the app is busy", true),
            Self::Conflict => (S::CONFLICT, "not possible as things are", false),
            Self::VersionConflict => (S::PRECONDITION_FAILED, "changed meanwhile", false),
            Self::PayloadTooLarge => (S::PAYLOAD_TOO_LARGE, "the request is too large", false),
            Self::ImageNotFound => (S::UNPROCESSABLE_ENTITY, "no such image", false),
            Self::RegistryDenied => (S::UNPROCESSABLE_ENTITY, "the registry refused the credentials", false),
            Self::IdempotencyKeyReused => (S::UNPROCESSABLE_ENTITY, "idempotency key used before", false),
            Self::RegistryUnreachable => (S::SERVICE_UNAVAILABLE, "the image registry can't be reached", true),
            Self::EngineUnreachable => (S::SERVICE_UNAVAILABLE, "the container engine can't be reached", true),
            Self::StoreUnavailable => (S::SERVICE_UNAVAILABLE, "the database can't be reached", true),
            Self::Overloaded => (S::SERVICE_UNAVAILABLE, "too many requests under way", true),
            Self::Timeout => (S::SERVICE_UNAVAILABLE, "the request took too long", true),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "internal error", false),
        }
    }
}

/// A request that did not succeed, and why.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    code: Code,
    detail: String,
    reasons: Vec<String>,
    field: Option<String>,
}

impl ApiError {
    /// A problem of kind `code`; `detail` is one sentence: what was wrong and what to do.
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            reasons: Vec::new(),
            field: None,
        }
    }

    /// The same, about the field at `pointer` (JSON pointer).
    pub(crate) fn at(mut self, pointer: impl Into<String>) -> Self {
        self.field = Some(pointer.into());
        self
    }

    /// The same, because of `reasons`.
    pub(crate) fn because(mut self, reasons: Vec<String>) -> Self {
        self.reasons = reasons;
        self
    }

    /// There is no `what` of that name.
    pub(crate) fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        Self::new(Code::NotFound, format!("there is no {what} {name}"))
    }

    /// The row is not in the generation that the request named.
    pub(crate) fn stale(what: &str, current: model::Generation) -> Self {
        Self::new(
            Code::VersionConflict,
            format!("{what} is at generation {current} by now: read it again, then repeat with its ETag"),
        )
    }

    /// A fault of this program, or of what it stands on, whose `cause` only the log shall tell.
    pub(crate) fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "request failed by an internal error");
        Self::new(
            Code::Internal,
            "the scheduler failed at this; its log tells more under the request id",
        )
    }

    /// Its kind.
    #[cfg(test)]
    pub(crate) fn code(&self) -> Code {
        self.code
    }

    /// One sentence.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// The body, once the request's id is known.
    pub(crate) fn problem(&self, request_id: &str) -> Problem {
        let (status, title, retryable) = self.code.row();
        let word = serde_json::to_value(self.code).ok();
        let word = word.as_ref().and_then(|w| w.as_str()).unwrap_or_default();
        Problem {
            kind: format!("urn:caas:problem:{}", word.to_ascii_lowercase().replace('_', "-")),
            title: title.to_owned(),
            status: status.as_u16(),
            code: self.code,
            detail: self.detail.clone(),
            request_id: request_id.to_owned(),
            retryable,
            reasons: self.reasons.clone(),
            field: self.field.clone(),
        }
    }
}

/// The body of an answer that is not a success (RFC 9457).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// URN of the kind.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The kind in words.
    pub(crate) title: String,
    /// The HTTP status.
    pub(crate) status: u16,
    /// The kind as a stable word.
    pub(crate) code: Code,
    /// What was wrong with this request and what to do.
    pub(crate) detail: String,
    /// The request's id, as in the header `X-Request-Id` and in the log.
    pub(crate) request_id: String,
    /// Whether the same request may succeed later.
    pub(crate) retryable: bool,
    /// Each single reason: a line per filter that refused hosts, per bad field, per instance in the way.
    pub(crate) reasons: Vec<String>,
    /// JSON pointer to the bad field, or the name of the bad parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
}

impl IntoResponse for ApiError {
    /// Status and headers; the outermost layer writes the body, because it knows the request's id.
    fn into_response(self) -> Response {
        let (status, _, _) = self.code.row();
        let mut response = status.into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::Busy(_) => {
                tracing::warn!(%error, "store not available");
                let detail = "the database does not answer; what runs goes on running; repeat the request";
                Self::new(Code::StoreUnavailable, detail)
            }
            StoreError::Invalid(transition) => Self::new(Code::Conflict, transition.to_string()),
            StoreError::Corrupt(_) | StoreError::Schema(_) => Self::internal(&error),
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let code = match &error {
            EngineError::ImageNotFound(_) => Code::ImageNotFound,
            EngineError::RegistryDenied { .. } => Code::RegistryDenied,
            EngineError::RegistryUnreachable { .. } => Code::RegistryUnreachable,
            EngineError::NoSuchContainer(_) => Code::NotFound,
            EngineError::Unreachable { .. }
            | EngineError::PortTaken(_)
            | EngineError::DiskFull(_)
            | EngineError::Refused(_)
            | EngineError::Other(_) => Code::EngineUnreachable,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ResolveError> for ApiError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::Store(error) => error.into(),
            ResolveError::Engine(error) => error.into(),
            ResolveError::NoHost => Self::new(Code::NoCapacity, error.to_string()).because(vec![
                "no host is up: add one, or see what became of those there are".into(),
            ]),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NoSuchApp(app) => Self::no_app(&app),
            Refusal::Removing(_) => Self::new(Code::AppBusy, text),
            Refusal::Stopped(_)
            | Refusal::AlreadyAt(..)
            | Refusal::HasCanary(..)
            | Refusal::NoCanary(_)
            | Refusal::NothingBeside(_)
            | Refusal::SameVersion(..) => Self::new(Code::Conflict, text),
            Refusal::SpeaksOtherwise(..) => Self::new(Code::Conflict, text),
            Refusal::CanaryOfAnotherKind(..) => Self::new(Code::InvalidSpec, text).at("/config/protocol"),
            Refusal::ProtocolOfRelease(..) => Self::new(Code::InvalidSpec, text).at("/protocol"),
            Refusal::Share(_) => Self::new(Code::InvalidSpec, text).at("/percent"),
            Refusal::TooMany(_) => Self::new(Code::InvalidSpec, text).at("/instances"),
        }
    }
}

impl From<InvalidId> for ApiError {
    fn from(error: InvalidId) -> Self {
        Self::new(Code::InvalidRequest, error.to_string())
    }
}

impl From<SpecError> for ApiError {
    fn from(error: SpecError) -> Self {
        Self::new(Code::InvalidSpec, error.to_string()).at(error.field)
    }
}

impl ApiError {
    /// There is no app of that id.
    pub(crate) fn no_app(app: &AppId) -> Self {
        Self::not_found("app", app)
    }

    /// Bad fields: the first is named, all are among the reasons. `root` is where they stand in the request.
    pub(crate) fn bad_fields(root: &str, errors: &[SpecError]) -> Result<(), Self> {
        let Some(first) = errors.first() else {
            return Ok(());
        };
        let field = format!("{root}{}", first.field);
        let reasons = errors.iter().map(|e| format!("{root}{e}")).collect();
        Err(Self::new(Code::InvalidSpec, format!("{root}{first}"))
            .at(field)
            .because(reasons))
    }
}
