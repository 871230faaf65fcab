//! Events: what happened, as a list or as a stream that can be resumed (`Last-Event-ID`).

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Json, Response};
use futures::stream::Stream;
use model::store::Revision;
use model::{AppId, Event};
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::{ApiError, Code};
use super::extract::Query;
use super::{Api, answer as answers, schema};

/// Comment lines keep a quiet stream from being cut by what stands between.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events read from the store at a time.
const BATCH: u32 = 200;
/// Longest wait for one hint.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Pause after the store did not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// Most batches that are looked through backwards for an app's newest events.
const MOST_BATCHES: u32 = 50;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventQuery {
    /// Only events after this number, oldest first. Without it: the newest (list), or those to come (stream).
    after: Option<u64>,
    /// Only events of this app.
    #[param(value_type = Option<String>)]
    app: Option<AppId>,
    /// Most events of a list, 1-1,000; default 100.
    limit: Option<u32>,
}

/// List or follow events
///
/// A JSON list; with `Accept: text/event-stream` a stream of events, each with its number as id. A stream goes on
/// after the number in the header `Last-Event-ID`.
#[utoipa::path(get, path = "/api/v1/events", tag = "events", params(EventQuery),
    responses((status = 200, content((Vec<schema::Event> = "application/json"), (schema::Event = "text/event-stream")))))]
pub(super) async fn list(
    State(api): State<Api>,
    headers: HeaderMap,
    Query(mut query): Query<EventQuery>,
) -> Result<Response, ApiError> {
    let app = query.app.take();
    answer(&api, &headers, query, app).await
}

/// Whether the client wants a stream of events.
pub(super) fn wants(headers: &HeaderMap, media_type: &str) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.contains(media_type))
}

/// Answers with events of `app`, or of all.
pub(super) async fn answer(
    api: &Api,
    headers: &HeaderMap,
    query: EventQuery,
    app: Option<AppId>,
) -> Result<Response, ApiError> {
    let limit = answers::limit(query.limit, 100)?;
    if !wants(headers, "text/event-stream") {
        let events = match query.after {
            Some(after) => api.store.event_list(after, app.as_ref(), limit).await?,
            None => newest(api, app.as_ref(), limit).await?,
        };
        return Ok(Json(events).into_response());
    }
    let resumed = match headers.get("last-event-id") {
        None => None,
        Some(id) => Some(id.to_str().ok().and_then(|id| id.parse().ok()).ok_or_else(|| {
            ApiError::new(Code::InvalidRequest, "Last-Event-ID must be the number of an event").at("Last-Event-ID")
        })?),
    };
    let after = match resumed.or(query.after) {
        Some(after) => after,
        None => api.store.event_newest().await?,
    };
    let stream = follow(api.clone(), after, app);
    Ok(Sse::new(stream)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

/// The newest `limit` events, oldest first.
async fn newest(api: &Api, app: Option<&AppId>, limit: u32) -> Result<Vec<Event>, ApiError> {
    let end = api.store.event_newest().await?;
    let mut span = u64::from(limit);
    let mut found: Vec<Event> = Vec::new();
    let mut begun = end;
    for _ in 0..MOST_BATCHES {
        let after = end.saturating_sub(span);
        // What lies between here and where the last look began.
        let mut older = Vec::new();
        let mut at = after;
        while at < begun {
            let batch = api.store.event_list(at, app, 1_000).await?;
            let Some(last) = batch.last() else { break };
            at = last.seq;
            older.extend(batch.into_iter().filter(|e| e.seq <= begun));
        }
        older.append(&mut found);
        found = older;
        begun = after;
        if found.len() >= limit as usize || after == 0 {
            break;
        }
        span = span.saturating_mul(4);
    }
    found.drain(..found.len().saturating_sub(limit as usize));
    Ok(found)
}

fn follow(api: Api, after: u64, app: Option<AppId>) -> impl Stream<Item = Result<SseEvent, axum::Error>> {
    async_stream::stream! {
        let mut after = after;
        let mut revision = Revision(0);
        loop {
            let batch = match api.store.event_list(after, app.as_ref(), BATCH).await {
                Ok(batch) => batch,
                Err(error) => {
                    tracing::debug!(%error, "event stream waits for the store");
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE) => continue,
                        () = api.shutdown.cancelled() => return,
                    }
                }
            };
            let more = batch.len() == BATCH as usize;
            for event in batch {
                after = event.seq;
                yield SseEvent::default().id(event.seq.to_string()).json_data(&event);
            }
            if more {
                continue;
            }
            tokio::select! {
                newer = api.store.revision_wait(revision, LOOK_AGAIN) => match newer {
                    Ok(newer) => revision = newer,
                    Err(_) => tokio::time::sleep(PAUSE).await,
                },
                () = api.shutdown.cancelled() => return,
            }
        }
    }
}
