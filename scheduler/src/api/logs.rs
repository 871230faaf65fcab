//! Logs: what instances write, of one or of a whole app, as server-sent events or as plain text. Lines come from the
//! engines and are never kept here; of an instance that is gone the last lines in its failure are served.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::stream::{self, BoxStream, FuturesUnordered, SelectAll, Stream, StreamExt as _};
use model::engine::{EngineError, LogLine, LogQuery};
use model::store::{InstanceFilter, Revision};
use model::{AppId, HostName, Instance, InstanceId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::IntoParams;

use super::error::{ApiError, Code};
use super::events::{KEEP_ALIVE, wants};
use super::extract::{Id, Query};
use super::{Api, apps, instances, schema};

/// Most lines of the past per instance.
const MAX_TAIL: u32 = 10_000;
/// Most instances of one app whose logs are read at once: the newest.
const MAX_INSTANCES: usize = 100;
/// How long a host may take to open a log, and keep its lines waiting when an app's log is read without following it.
const ASKED: Duration = Duration::from_secs(5);
/// Shortest time between two looks for new instances.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest wait for one hint.
const HINT: Duration = Duration::from_secs(5);

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsQuery {
    /// Go on with new lines.
    #[serde(default)]
    follow: bool,
    /// Only the last lines of the past (of each instance), 0-10,000; default 100.
    tail: Option<u32>,
    /// Only lines from this instant on (RFC 3339).
    #[param(value_type = Option<String>)]
    since: Option<Timestamp>,
}

impl LogsQuery {
    fn checked(&self) -> Result<LogQuery, ApiError> {
        let tail = self.tail.unwrap_or(100);
        if tail > MAX_TAIL {
            return Err(ApiError::new(Code::InvalidRequest, "tail must be 0 to 10000").at("tail"));
        }
        Ok(LogQuery {
            tail,
            follow: self.follow,
            since: self.since,
        })
    }
}

/// A line of an app's log.
#[derive(Clone, Debug, Serialize)]
struct AppLine {
    instance: InstanceId,
    line: LogLine,
    /// The host that could not be asked for the lines of this instance, or did not send them all; `line` says why.
    #[serde(skip_serializing_if = "Option::is_none")]
    unasked: Option<HostName>,
}

impl AppLine {
    /// In place of lines that could not be had.
    fn unasked(instance: &InstanceId, host: &HostName, why: &str) -> Self {
        Self {
            instance: instance.clone(),
            line: LogLine {
                at: None,
                stderr: true,
                text: format!("[host {host} could not be asked: {}]", one_line(why)),
            },
            unasked: Some(host.clone()),
        }
    }
}

type Lines = BoxStream<'static, Result<LogLine, EngineError>>;
type AppLines = BoxStream<'static, Result<AppLine, EngineError>>;

/// Read an instance's log
///
/// Each event's data is one line as JSON; with `Accept: text/plain` the bare lines.
#[utoipa::path(get, path = "/api/v1/instances/{instance}/logs", tag = "instances", params(LogsQuery),
    responses((status = 200, content((schema::LogLine = "text/event-stream"), (String = "text/plain")))))]
pub(super) async fn of_instance(
    State(api): State<Api>,
    Id(id): Id<InstanceId>,
    headers: HeaderMap,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let query = query.checked()?;
    let instance = instances::fetch(&api, &id).await?;
    let lines = lines(&api, &instance, query).await?;
    Ok(answer(&api, &headers, lines, |line| line.text.clone()))
}

/// Read an app's log
///
/// The lines of all its instances, each with the instance's id; when following, also those of instances that come
/// later. Without `follow` ordered by time; where a host can't be asked, one line with `unasked` says so in place of its
/// lines.
#[utoipa::path(get, path = "/api/v1/apps/{app}/logs", tag = "apps", params(LogsQuery),
    responses((status = 200, content((schema::AppLogLine = "text/event-stream"), (String = "text/plain")))))]
pub(super) async fn of_app(
    State(api): State<Api>,
    Id(id): Id<AppId>,
    headers: HeaderMap,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let query = query.checked()?;
    apps::fetch(&api, &id).await?;
    let lines = if query.follow {
        follow(api.clone(), id, query).boxed()
    } else {
        // All at once, each within its time: one silent host delays the others' lines only so long, and hides only its own.
        let asked = newest(&api, &id).await?.into_iter().map(|instance| {
            let api = api.clone();
            async move { readable(&api, &instance, query).await }
        });
        merged(futures::future::join_all(asked).await).boxed()
    };
    let text = |line: &AppLine| format!("{} {}", line.instance, line.line.text);
    Ok(answer(&api, &headers, lines, text))
}

/// Instances of an app that have or had a container, at most [`MAX_INSTANCES`].
async fn newest(api: &Api, id: &AppId) -> Result<Vec<Instance>, ApiError> {
    let mut instances = api.store.instance_list(&InstanceFilter::held_of(id)).await?;
    instances.retain(|i| i.container.is_some() || i.failure.is_some());
    let surplus = instances.len().saturating_sub(MAX_INSTANCES);
    instances.drain(..surplus);
    Ok(instances)
}

/// An instance's lines: from its engine, or what is left of them.
async fn lines(api: &Api, instance: &Instance, query: LogQuery) -> Result<Lines, ApiError> {
    let left = || {
        let tail = instance.failure.as_ref().map_or(&[][..], |f| &f.log_tail[..]);
        let skipped = tail.len().saturating_sub(query.tail as usize);
        let lines: Vec<Result<LogLine, EngineError>> = tail[skipped..]
            .iter()
            .map(|text| {
                Ok(LogLine {
                    at: None,
                    stderr: false,
                    text: text.clone(),
                })
            })
            .collect();
        stream::iter(lines).boxed()
    };
    let Some(container) = instance.container.as_ref().filter(|_| instance.released_at.is_none()) else {
        return Ok(left());
    };
    let Some(host) = api.store.host_fetch(&instance.host).await? else {
        return Ok(left());
    };
    let engine = api.fleet.engine(&host)?;
    match engine.logs(container, query).await {
        Ok(lines) => Ok(lines),
        Err(EngineError::NoSuchContainer(_)) => Ok(left()),
        Err(error) => Err(error.into()),
    }
}

async fn app_lines(api: &Api, instance: &Instance, query: LogQuery) -> Result<AppLines, ApiError> {
    let id = instance.id.clone();
    let lines = lines(api, instance, query).await?;
    Ok(lines
        .map(move |line| {
            line.map(|line| AppLine {
                instance: id.clone(),
                line,
                unasked: None,
            })
        })
        .boxed())
}

/// An instance's lines as far as they can be had, and then a line that says which host could not be asked for the rest.
async fn readable(api: &Api, instance: &Instance, query: LogQuery) -> AppLines {
    let (id, host) = (instance.id.clone(), instance.host.clone());
    let silent = format!("it did not answer within {} s", ASKED.as_secs());
    let opened = match timeout(ASKED, app_lines(api, instance, query)).await {
        Ok(Ok(lines)) => Ok(lines),
        Ok(Err(error)) => Err(error.detail().to_owned()),
        Err(_) => Err(silent.clone()),
    };
    let mut lines = match opened {
        Ok(lines) => lines,
        Err(why) => {
            let line = AppLine::unasked(&id, &host, &why);
            return stream::iter([Ok(line)]).boxed();
        }
    };
    async_stream::stream! {
        loop {
            let why = match timeout(ASKED, lines.next()).await {
                Ok(Some(Ok(line))) => {
                    yield Ok(line);
                    continue;
                }
                Ok(None) => return,
                Ok(Some(Err(error))) => error.to_string(),
                Err(_) => silent.clone(),
            };
            yield Ok(AppLine::unasked(&id, &host, &why));
            return;
        }
    }
    .boxed()
}

/// Streams that each are in order as one that is, holding one line of each.
fn merged(streams: Vec<AppLines>) -> impl Stream<Item = Result<AppLine, EngineError>> {
    async_stream::stream! {
        let mut heads: Vec<(Option<AppLine>, AppLines)> = Vec::with_capacity(streams.len());
        for stream in streams {
            heads.push((None, stream));
        }
        loop {
            for (head, stream) in &mut heads {
                while head.is_none() {
                    match stream.next().await {
                        Some(Ok(line)) => *head = Some(line),
                        Some(Err(error)) => yield Err(error),
                        None => break,
                    }
                }
            }
            heads.retain(|(head, _)| head.is_some());
            // Lines without a time stand before all others.
            let first = heads.iter_mut().min_by_key(|(head, _)| head.as_ref().and_then(|l| l.line.at));
            match first.and_then(|(head, _)| head.take()) {
                Some(line) => yield Ok(line),
                None => return,
            }
        }
    }
}

/// One run of an instance: a restart in place is a new container and a new log.
type Run = (InstanceId, Option<Timestamp>);

/// What comes of a log that is followed.
enum Followed {
    Line(Run, AppLine),
    /// It has ended: with its container, its engine, or the connection to it.
    Ended(Run),
}

/// How far the log of a run was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It is open, or being opened.
    Open,
    /// It has ended, and may go on: its engine may have been started anew.
    Ended,
}

/// Opens the log of `run`, `again` when it was read before; fails by ending at once.
async fn opened(api: Api, instance: Instance, run: Run, query: LogQuery, again: bool) -> BoxStream<'static, Followed> {
    let ended = stream::iter([Followed::Ended(run.clone())]);
    match timeout(ASKED, app_lines(&api, &instance, query)).await {
        Ok(Ok(lines)) => {
            let lines = lines.filter_map(move |line| {
                let followed = match line {
                    // What is left of a container that is gone has no times, and was told then.
                    Ok(line) if again && line.line.at.is_none() => None,
                    Ok(line) => Some(Followed::Line(run.clone(), line)),
                    // One host's end is not the end of the others' lines.
                    Err(error) => {
                        tracing::debug!(instance = %run.0, %error, "log ended");
                        None
                    }
                };
                std::future::ready(followed)
            });
            lines.chain(ended).boxed()
        }
        Ok(Err(error)) => {
            tracing::debug!(instance = %instance.id, error = error.detail(), "log not opened");
            ended.boxed()
        }
        Err(_) => ended.boxed(),
    }
}

/// Lines of all instances as they come, those of instances that appear later too. A log that ends while its instance runs is opened
/// again after its last line.
fn follow(api: Api, id: AppId, query: LogQuery) -> impl Stream<Item = Result<AppLine, EngineError>> {
    async_stream::stream! {
        let mut open: SelectAll<BoxStream<'static, Followed>> = SelectAll::new();
        // Beside the lines: a host that does not answer holds up nobody else's.
        let mut opening = FuturesUnordered::new();
        let mut places: HashMap<Run, Place> = HashMap::new();
        let mut last: HashMap<Run, Timestamp> = HashMap::new();
        let mut revision = Revision(0);
        let mut first = true;
        loop {
            match newest(&api, &id).await {
                Ok(instances) => {
                    let lives = |(id, _): &Run| instances.iter().any(|i| i.id == *id);
                    places.retain(|run, _| lives(run));
                    last.retain(|run, _| lives(run));
                    for instance in instances {
                        let run = (instance.id.clone(), instance.started_at);
                        let (wanted, again) = match places.get(&run) {
                            None => (true, false),
                            Some(Place::Ended) => (instance.state.is_live(), true),
                            Some(Place::Open) => (false, true),
                        };
                        if !wanted || open.len() + opening.len() >= MAX_INSTANCES {
                            continue;
                        }
                        // What came later is wanted from its first line on.
                        let query = match last.get(&run) {
                            Some(at) => LogQuery { tail: MAX_TAIL, since: Some(Timestamp::from_millis(at.as_millis() + 1)), ..query },
                            None if first => query,
                            None => LogQuery { tail: MAX_TAIL, since: instance.started_at, ..query },
                        };
                        places.insert(run.clone(), Place::Open);
                        opening.push(opened(api.clone(), instance, run, query, again));
                    }
                    first = false;
                }
                Err(error) => tracing::debug!(app = %id, error = error.detail(), "instances not listed"),
            }
            let again = tokio::time::sleep(LOOK_AGAIN);
            tokio::pin!(again);
            let mut rested = false;
            let hint = api.store.revision_wait(revision, HINT);
            tokio::pin!(hint);
            let mut hinted = None;
            while !(rested && hinted.is_some()) {
                tokio::select! {
                    Some(lines) = opening.next(), if !opening.is_empty() => open.push(lines),
                    Some(followed) = open.next(), if !open.is_empty() => match followed {
                        Followed::Line(run, line) => {
                            if let Some(at) = line.line.at {
                                last.insert(run, at);
                            }
                            yield Ok(line);
                        }
                        Followed::Ended(run) => {
                            places.insert(run, Place::Ended);
                        }
                    },
                    newer = &mut hint, if hinted.is_none() => hinted = Some(newer.unwrap_or(revision)),
                    () = &mut again, if !rested => rested = true,
                    () = api.shutdown.cancelled() => return,
                }
            }
            revision = hinted.unwrap_or(revision);
        }
    }
}

/// Lines as the client wants them; a stream ends at shutdown. A failure in the middle is the last thing told.
fn answer<T: Serialize + Send + 'static>(
    api: &Api,
    headers: &HeaderMap,
    lines: BoxStream<'static, Result<T, EngineError>>,
    text: impl Fn(&T) -> String + Send + 'static,
) -> Response {
    let shutdown = api.shutdown.clone();
    let lines = lines.take_until(async move { shutdown.cancelled().await });
    if wants(headers, "text/plain") {
        let body = lines.map(move |line| {
            let text = match line {
                Ok(line) => format!("{}\n", text(&line)),
                Err(error) => format!("[log ended: {error}]\n"),
            };
            Ok::<_, Infallible>(text)
        });
        let head = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
        return (head, Body::from_stream(body)).into_response();
    }
    let events = lines.map(|line| match line {
        Ok(line) => SseEvent::default().json_data(&line),
        Err(error) => Ok(SseEvent::default().event("error").data(one_line(&error.to_string()))),
    });
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

/// Text of others as one line.
fn one_line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn logs_of_several_instances_are_merged_by_time() {
        let stream = |id: &str, times: &[i64]| {
            let instance: InstanceId = id.parse().unwrap();
            let lines: Vec<_> = times
                .iter()
                .map(|t| {
                    Ok(AppLine {
                        instance: instance.clone(),
                        line: LogLine {
                            at: Some(Timestamp::from_millis(*t)),
                            stderr: false,
                            text: t.to_string(),
                        },
                        unasked: None,
                    })
                })
                .collect();
            stream::iter(lines).boxed()
        };
        let all = merged(vec![
            stream("aaaa", &[1, 4, 5]),
            stream("bbbb", &[2, 3, 9]),
            stream("cccc", &[]),
        ]);
        let times: Vec<String> = all.map(|l| l.unwrap().line.text).collect().await;
        assert_eq!(times, ["1", "2", "3", "4", "5", "9"]);
    }
}
