//! The layers around every handler. Their order stands in [`super::router`].

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::Semaphore;

use super::Api;
use super::error::{ApiError, Code};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How long an ordinary request may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Most ordinary requests under way.
pub(super) const MAX_REQUESTS: usize = 256;
/// Most streams and waits under way.
pub(super) const MAX_STREAMS: usize = 512;

/// Gives the request its id, writes the body of a problem, counts and logs the answer.
pub(super) async fn finish(State(api): State<Api>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = request_id(&request);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |m| m.as_str().to_owned());
    let mut response = next.run(request).await;
    let problem = response.extensions_mut().remove::<ApiError>();
    if let Some(error) = &problem {
        let body = serde_json::to_vec(&error.problem(&id)).unwrap_or_default();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = Body::from(body);
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    let status = response.status();
    let took = begun.elapsed();
    api.metrics
        .api_requests
        .with_label_values(&[method_label(&method), route.as_str(), status.as_str()])
        .inc();
    api.metrics
        .api_seconds
        .with_label_values(&[route.as_str()])
        .observe(took.as_secs_f64());
    tracing::debug!(
        request_id = id,
        %method,
        path,
        status = status.as_u16(),
        duration_ms = took.as_millis(),
        problem = problem.as_ref().map(ApiError::detail),
        "request answered"
    );
    response
}

/// The client's own id when it is sane, else a new one.
fn request_id(request: &Request) -> String {
    let sane = |id: &&str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let given = request.headers().get(REQUEST_ID).and_then(|v| v.to_str().ok());
    given
        .filter(sane)
        .map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned)
}

/// Methods are the client's words: only the known ones become labels.
fn method_label(method: &axum::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// Admits a bounded number of requests and refuses the rest at once; ordinary ones must end within 30 s, streams
/// and waits hold their place until their body ends.
pub(super) async fn limit(State(api): State<Api>, request: Request, next: Next) -> Response {
    let lasting = is_lasting(&request);
    let (pool, name) = if lasting {
        (&api.streams, "streams")
    } else {
        (&api.requests, "requests")
    };
    let Ok(permit) = Arc::<Semaphore>::clone(pool).try_acquire_owned() else {
        api.metrics.api_shed.with_label_values(&[name]).inc();
        return ApiError::new(Code::Overloaded, "too many requests are under way: repeat in a moment").into_response();
    };
    if !lasting {
        return match tokio::time::timeout(DEADLINE, next.run(request)).await {
            Ok(response) => response,
            Err(_) => ApiError::new(
                Code::Timeout,
                "the request took longer than 30 s; what it asked for may or may not have happened",
            )
            .into_response(),
        };
    }
    let response = next.run(request).await;
    if response.extensions().get::<ApiError>().is_some() {
        return response;
    }
    let (parts, body) = response.into_parts();
    let held = body.into_data_stream().map(move |chunk| {
        let _until_the_body_ends = &permit;
        chunk
    });
    Response::from_parts(parts, Body::from_stream(held))
}

/// Streams, and requests that wait for an operation.
fn is_lasting(request: &Request) -> bool {
    let waits = request
        .uri()
        .query()
        .is_some_and(|q| q.split('&').any(|pair| pair.starts_with("wait=")));
    let accepts_events = request
        .headers()
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.contains("text/event-stream"));
    waits || accepts_events || request.uri().path().ends_with("/logs")
}

/// A handler's panic is an internal error of that request alone.
pub(super) async fn catch_panic(request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => ApiError::internal(&"the handler panicked").into_response(),
    }
}
