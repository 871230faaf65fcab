//! What an operator may change by hand: take an endpoint out for a while or put it back, and take this gateway out of its load
//! balancer's turn.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde::Deserialize;

use super::{JSON, problem, text, view};
use crate::eject::Endpoint;
use crate::shared::Shared;

/// Longest body of a change in bytes, and longest time for it to come.
const BODY: (usize, Duration) = (4_096, Duration::from_secs(5));
/// How long an endpoint is ejected unless said otherwise, and at most, in seconds.
const EJECTION_S: (u64, u64) = (300, 86_400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Eject,
    Uneject,
    Drain,
    Undrain,
}

/// The change at that path.
pub(super) fn of(path: &str) -> Option<Change> {
    Some(match path {
        "/eject" => Change::Eject,
        "/uneject" => Change::Uneject,
        "/drain" => Change::Drain,
        "/undrain" => Change::Undrain,
        _ => return None,
    })
}

/// Which endpoint, and for how long.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    app: String,
    /// A container id, its beginning, or an address.
    endpoint: String,
    seconds: Option<u64>,
}

/// Whether the request can't come from a web page of elsewhere.
fn by_an_operator(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(|v| v.as_bytes());
    let json = kind.is_some_and(|k| k.split(|b| *b == b';').next().unwrap_or(k).trim_ascii() == JSON.as_bytes());
    json && !headers.contains_key(header::ORIGIN) && !headers.contains_key("sec-fetch-site")
}

pub(super) async fn make(shared: &Shared, change: Change, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if !by_an_operator(request.headers()) {
        return problem(
            StatusCode::FORBIDDEN,
            "forbidden",
            "a change needs content-type: application/json and must not come from a web page",
        );
    }
    match change {
        Change::Drain | Change::Undrain => {
            let drained = change == Change::Drain;
            shared.drained.store(drained, Ordering::Relaxed);
            tracing::warn!(drained, "an operator changes whether this gateway is ready");
            text(StatusCode::OK, JSON, format!("{{\"drained\":{drained}}}"))
        }
        Change::Eject | Change::Uneject => {
            let body = tokio::time::timeout(BODY.1, Limited::new(request.into_body(), BODY.0).collect()).await;
            let Ok(Ok(body)) = body else {
                return problem(
                    StatusCode::BAD_REQUEST,
                    "bad_request",
                    "the body did not come, or is too long",
                );
            };
            match serde_json::from_slice::<Which>(&body.to_bytes()) {
                Ok(which) => one(shared, change, &which),
                Err(error) => {
                    let detail =
                        format!("the body must be like {{\"app\":\"hello\",\"endpoint\":\"0a1b2c\"}}: {error}");
                    problem(StatusCode::BAD_REQUEST, "bad_request", &detail)
                }
            }
        }
    }
}

fn one(shared: &Shared, change: Change, which: &Which) -> Response<Full<Bytes>> {
    let seconds = which.seconds.unwrap_or(EJECTION_S.0);
    if seconds == 0 || seconds > EJECTION_S.1 {
        let detail = format!("seconds must be from 1 to {}", EJECTION_S.1);
        return problem(StatusCode::BAD_REQUEST, "bad_request", &detail);
    }
    let table = shared.table.load();
    let Some(app) = table.get(&which.app).filter(|_| !which.app.contains('.')) else {
        return problem(
            StatusCode::NOT_FOUND,
            "unknown_app",
            "there is no app of this name here",
        );
    };
    let is = |e: &&Arc<Endpoint>| {
        let container = e.key.container.as_str();
        !which.endpoint.is_empty() && container.starts_with(&which.endpoint) || e.address.to_string() == which.endpoint
    };
    let mut found = app.endpoints.iter().filter(is);
    let (Some(endpoint), None) = (found.next(), found.next()) else {
        let detail = format!(
            "{:?} is not the beginning of exactly one container of the app",
            which.endpoint
        );
        return problem(StatusCode::NOT_FOUND, "unknown_endpoint", &detail);
    };
    let now = Instant::now();
    if change == Change::Eject {
        endpoint.eject(shared.clock, now, Duration::from_secs(seconds));
    } else {
        endpoint.uneject();
    }
    tracing::warn!(app = %endpoint.key.app, container = %endpoint.key.container, endpoint = %endpoint.address,
        ejected = change == Change::Eject, seconds, "an operator changes an endpoint");
    let body = serde_json::to_string(&view::view(shared, app, endpoint, now)).unwrap_or_default();
    text(StatusCode::OK, JSON, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_elsewhere_changes_nothing() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs
                .iter()
                .map(|(n, v)| {
                    let value = header::HeaderValue::from_static(v);
                    (header::HeaderName::from_static(n), value)
                })
                .collect::<HeaderMap>()
        };
        let json = ("content-type", "application/json");
        assert!(by_an_operator(&headers(&[json])));
        assert!(by_an_operator(&headers(&[(
            "content-type",
            "application/json; charset=utf-8"
        )])));
        for bad in [
            &[][..],
            &[("content-type", "text/plain")],
            &[("content-type", "text/plain; application/json")],
            &[json, ("origin", "http://127.0.0.1:9090")],
            &[json, ("sec-fetch-site", "same-origin")],
        ] {
            assert!(!by_an_operator(&headers(bad)), "{bad:?}");
        }
    }
}
