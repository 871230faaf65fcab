//! Apps: what is wanted of them, seen and changed.

use axum::extract::State;
use axum::http::Uri;
use axum::response::{Json, Response};
use model::store::InstanceFilter;
use model::{App, AppConfig, AppId, AppStatus, Instance, Operation, Release, Timestamp, Version};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::answer::{self, Page};
use super::commit::{self, Look, Plan};
use super::error::{ApiError, Code};
use super::extract::{Call, Id, Query};
use super::schema::{self, ChangeHeaders, ChangeQuery};
use super::{Api, capacity, deploy, merge};
use crate::converge::next_try;
use crate::intent::{Change, MAX_INSTANCES, Refusal};
use crate::placement::{self, Explanation};

/// An app in a list.
#[derive(Debug, Serialize)]
struct Summary {
    #[serde(flatten)]
    app: App,
    /// The version of its release.
    version: Option<Version>,
    /// Instances that serve or are on their way to.
    live: usize,
    /// Instances that gateways send requests to.
    routed: usize,
    /// Where it is reached.
    url: Option<String>,
}

/// List apps
#[utoipa::path(get, path = "/api/v1/apps", tag = "apps", params(Page),
    responses((status = 200, body = [schema::AppSummary])))]
pub(super) async fn list(State(api): State<Api>, uri: Uri, Query(page): Query<Page>) -> Result<Response, ApiError> {
    let mut apps = api.store.app_list().await?;
    apps.sort_by(|a, b| a.id.cmp(&b.id));
    let instances = api.store.instance_list(&InstanceFilter::held()).await?;
    let mut summaries = Vec::with_capacity(apps.len());
    for app in apps {
        // Its canary is counted by itself.
        let beside = app.canary.as_ref().map(|c| c.release);
        let own = || {
            let all = instances.iter().filter(|i| i.app == app.id);
            all.filter(move |i| beside != Some(i.release))
        };
        // The release's version stands on its instances; only an app without any is looked up.
        let version = match own().find(|i| i.release == app.release) {
            Some(instance) => Some(instance.version.clone()),
            None => api.store.release_fetch(&app.id, app.release).await?.map(|r| r.version),
        };
        summaries.push(Summary {
            version,
            live: own().filter(|i| i.state.is_live()).count(),
            routed: own().filter(|i| i.routed_at.is_some()).count(),
            url: api.url_of(&app),
            app,
        });
    }
    page.of(&uri, summaries, |s| s.app.id.to_string())
}

/// An app with all that is known of it now.
#[derive(Debug, Serialize)]
struct Info {
    app: App,
    release: Option<Release>,
    instances: Vec<Instance>,
    operation: Option<Operation>,
    url: Option<String>,
    /// Until when the next instance waits, since so many failed.
    next_try_at: Option<Timestamp>,
}

/// Show an app
///
/// The app, the release that should run, its instances and the operation that last changed it.
#[utoipa::path(get, path = "/api/v1/apps/{app}", tag = "apps", responses((status = 200, body = schema::AppInfo)))]
pub(super) async fn info(State(api): State<Api>, Id(id): Id<AppId>) -> Result<Response, ApiError> {
    let app = fetch(&api, &id).await?;
    let operation = match &app.operation {
        Some(operation) => api.store.operation_fetch(operation).await?,
        None => None,
    };
    let history = history(&api, &id).await?;
    let info = Info {
        release: api.store.release_fetch(&id, app.release).await?,
        next_try_at: next_try(&app, operation.as_ref(), &history, Timestamp::now()),
        instances: history.into_iter().filter(|i| i.released_at.is_none()).collect(),
        operation,
        url: api.url_of(&app),
        app,
    };
    Ok(answer::tagged(info.app.generation, info))
}

/// All instances of an app, those that are gone too, oldest first.
async fn history(api: &Api, id: &AppId) -> Result<Vec<Instance>, ApiError> {
    let filter = InstanceFilter {
        released_too: true,
        ..InstanceFilter::held_of(id)
    };
    Ok(api.store.instance_list(&filter).await?)
}

pub(super) async fn fetch(api: &Api, id: &AppId) -> Result<App, ApiError> {
    api.store.app_fetch(id).await?.ok_or_else(|| ApiError::no_app(id))
}

/// Remove an app
///
/// Its instances are drained and stopped, then the app goes, with its releases and history.
#[utoipa::path(delete, path = "/api/v1/apps/{app}", tag = "apps", params(ChangeQuery, ChangeHeaders),
    responses((status = 202, body = schema::Accepted), (status = 200, body = schema::AcceptedOrPlan)))]
pub(super) async fn remove(State(api): State<Api>, Id(id): Id<AppId>, call: Call) -> Result<Response, ApiError> {
    // First of all: the app may be gone by the first request that bore this key.
    if let Some(operation) = commit::replayed(&api, &call).await? {
        return commit::answer(&api, &call, operation, None).await;
    }
    let app = fetch(&api, &id).await?;
    if app.status == AppStatus::Removing
        && let Some(operation) = &app.operation
        && let Some(operation) = api.store.operation_fetch(operation).await?
    {
        // Asked for twice is asked for once.
        return commit::answer(&api, &call, operation, Some(app.generation)).await;
    }
    commit::change(&api, &call, &id, &Change::Remove).await
}

/// Replace the configuration
///
/// How traffic reaches the app; gateways follow while they run. The whole configuration: what is not given is default, but for
/// `protocol`: which HTTP is spoken belongs to the release, and stays; another one is deployed.
#[utoipa::path(put, path = "/api/v1/apps/{app}/config", tag = "apps", params(ChangeQuery, ChangeHeaders), request_body = schema::AppConfig,
    responses((status = 202, body = schema::Accepted), (status = 200, body = schema::AcceptedOrPlan)))]
pub(super) async fn configure(State(api): State<Api>, Id(id): Id<AppId>, call: Call) -> Result<Response, ApiError> {
    let given: Map<String, Value> = call.json()?;
    let current = api.store.app_fetch(&id).await?;
    let mut before = AppConfig::default();
    if let Some(app) = &current {
        before.protocol = before.protocol.of_instance(Some(app.config.protocol));
    }
    let config = merge::app_config(&before, Some(&given), "")?;
    ApiError::bad_fields("", &config.check())?;
    deploy::domains_are_free(&api, &id, &config, "").await?;
    deploy::port_is_in_range(&api, current.as_ref(), &config, "")?;
    commit::change(&api, &call, &id, &Change::Configure(Box::new(config))).await
}

/// Another number of instances.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScaleRequest {
    /// Wanted number of instances, 0-1,000.
    #[schema(minimum = 0, maximum = 1000)]
    instances: u32,
}

/// Scale
#[utoipa::path(post, path = "/api/v1/apps/{app}/scale", tag = "apps", params(ChangeQuery, ChangeHeaders), request_body = ScaleRequest,
    responses((status = 202, body = schema::Accepted), (status = 200, body = schema::AcceptedOrPlan)))]
pub(super) async fn scale(State(api): State<Api>, Id(id): Id<AppId>, call: Call) -> Result<Response, ApiError> {
    let wanted = call.json::<ScaleRequest>()?.instances;
    if wanted > MAX_INSTANCES {
        return Err(Refusal::TooMany(wanted).into());
    }
    if let Some(operation) = commit::replayed(&api, &call).await? {
        return commit::answer(&api, &call, operation, None).await;
    }
    let look = Look::at(&api, &call, &id).await?;
    let draft = look.decide(&id, &Change::Scale(wanted), model::Timestamp::now())?;
    let release = api.store.release_fetch(&id, draft.app.release).await?;
    // A stopped app only notes the number; one per host follows the hosts.
    if let Some(release) = release
        && draft.app.status == AppStatus::Running
        && !release.spec.placement.one_per_host
    {
        let room = capacity::room(&api, &id, &release.spec, &capacity::Ask::UpTo(wanted)).await?;
        if call.dry_run {
            let mut plan = Plan::of(&draft);
            plan.would_place = room.would_place;
            plan.reasons = room.reasons;
            return Ok(plan.answer());
        }
        if wanted > room.live && room.would_place.is_empty() && !call.queue {
            return Err(capacity::none("change", room.reasons));
        }
    }
    commit::change(&api, &call, &id, &Change::Scale(wanted)).await
}

/// Restart
///
/// Replaces every instance by a fresh one of the same release, as a deploy would.
#[utoipa::path(post, path = "/api/v1/apps/{app}/restart", tag = "apps", params(ChangeQuery, ChangeHeaders),
    responses((status = 202, body = schema::Accepted), (status = 200, body = schema::AcceptedOrPlan)))]
pub(super) async fn restart(State(api): State<Api>, Id(id): Id<AppId>, call: Call) -> Result<Response, ApiError> {
    commit::change(&api, &call, &id, &Change::Restart).await
}

/// Stop
///
/// Drains and stops every instance; domain, configuration and releases are kept.
#[utoipa::path(post, path = "/api/v1/apps/{app}/stop", tag = "apps", params(ChangeQuery, ChangeHeaders),
    responses((status = 202, body = schema::Accepted), (status = 200, body = schema::AcceptedOrPlan)))]
pub(super) async fn stop(State(api): State<Api>, Id(id): Id<AppId>, call: Call) -> Result<Response, ApiError> {
    commit::change(&api, &call, &id, &Change::Stop).await
}

/// Start a stopped app
#[utoipa::path(post, path = "/api/v1/apps/{app}/start", tag = "apps", params(ChangeQuery, ChangeHeaders),
    responses((status = 202, body = schema::Accepted), (status = 200, body = schema::AcceptedOrPlan)))]
pub(super) async fn start(State(api): State<Api>, Id(id): Id<AppId>, call: Call) -> Result<Response, ApiError> {
    commit::change(&api, &call, &id, &Change::Start).await
}

/// Where to roll back to.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RollbackRequest {
    /// The release; the last one that was fully routed before the present one when not given.
    release: Option<u32>,
}

/// Roll back
#[utoipa::path(post, path = "/api/v1/apps/{app}/rollback", tag = "apps", params(ChangeQuery, ChangeHeaders), request_body = RollbackRequest,
    responses((status = 202, body = schema::Accepted), (status = 200, body = schema::AcceptedOrPlan)))]
pub(super) async fn rollback(State(api): State<Api>, Id(id): Id<AppId>, call: Call) -> Result<Response, ApiError> {
    let request: RollbackRequest = call.json_or_default()?;
    if let Some(operation) = commit::replayed(&api, &call).await? {
        return commit::answer(&api, &call, operation, None).await;
    }
    let app = fetch(&api, &id).await?;
    let target = match request.release {
        Some(release) => release,
        None if app.previous_release != 0 && app.previous_release != app.release => app.previous_release,
        None => commit::succeeded(&api, &app)
            .await?
            .into_iter()
            .find(|release| *release != app.release)
            .ok_or_else(|| {
                ApiError::new(
                    Code::Conflict,
                    format!("app {id} has no earlier release that ever worked: name the one you want"),
                )
            })?,
    };
    let Some(release) = api.store.release_fetch(&id, target).await? else {
        return Err(ApiError::not_found("release", format!("{target} of app {id}")).at("/release"));
    };
    commit::change(&api, &call, &id, &Change::Rollback(Box::new(release))).await
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ReleasesQuery {
    /// Most releases, 1-1,000; default 50.
    limit: Option<u32>,
}

/// List releases, newest first
#[utoipa::path(get, path = "/api/v1/apps/{app}/releases", tag = "apps", params(ReleasesQuery),
    responses((status = 200, body = [schema::Release])))]
pub(super) async fn releases(
    State(api): State<Api>,
    Id(id): Id<AppId>,
    Query(query): Query<ReleasesQuery>,
) -> Result<Json<Vec<Release>>, ApiError> {
    fetch(&api, &id).await?;
    let limit = answer::limit(query.limit, 50)?;
    Ok(Json(api.store.release_list(&id, limit).await?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct HistoryQuery {
    /// Also those that are gone.
    #[serde(default)]
    all: bool,
}

/// List an app's instances
#[utoipa::path(get, path = "/api/v1/apps/{app}/instances", tag = "apps", params(HistoryQuery),
    responses((status = 200, body = [schema::Instance])))]
pub(super) async fn instances(
    State(api): State<Api>,
    Id(id): Id<AppId>,
    Query(query): Query<HistoryQuery>,
) -> Result<Json<Vec<Instance>>, ApiError> {
    fetch(&api, &id).await?;
    let filter = InstanceFilter {
        released_too: query.all,
        ..InstanceFilter::held_of(&id)
    };
    Ok(Json(api.store.instance_list(&filter).await?))
}

/// List an app's events
#[utoipa::path(get, path = "/api/v1/apps/{app}/events", tag = "apps", params(super::events::EventQuery),
    responses((status = 200, content((Vec<schema::Event> = "application/json"), (schema::Event = "text/event-stream")))))]
pub(super) async fn events(
    State(api): State<Api>,
    Id(id): Id<AppId>,
    headers: axum::http::HeaderMap,
    Query(query): Query<super::events::EventQuery>,
) -> Result<Response, ApiError> {
    fetch(&api, &id).await?;
    super::events::answer(&api, &headers, query, Some(id)).await
}

/// Why an app is placed as it is.
#[derive(Debug, Serialize)]
struct Why {
    explanation: Option<Explanation>,
    operation: Option<Operation>,
    failed: Vec<Instance>,
    next_try_at: Option<Timestamp>,
}

/// Explain placement
///
/// Which hosts fit a further instance, which do not and why; the open operation with what it waits for; the
/// instances that failed last.
#[utoipa::path(get, path = "/api/v1/apps/{app}/why", tag = "apps", responses((status = 200, body = schema::Why)))]
pub(super) async fn why(State(api): State<Api>, Id(id): Id<AppId>) -> Result<Response, ApiError> {
    let app = fetch(&api, &id).await?;
    let held = api.store.instance_list(&InstanceFilter::held()).await?;
    let explanation = match api.store.release_fetch(&id, app.release).await? {
        Some(release) => {
            let hosts = api.store.host_list().await?;
            let census = api.fleet.census(&held, Timestamp::now());
            Some(placement::explain(&release.spec, &id, &hosts, &held, &census))
        }
        None => None,
    };
    let operation = match &app.operation {
        Some(operation) => api.store.operation_fetch(operation).await?,
        None => None,
    };
    let mut failed = history(&api, &id).await?;
    let next_try_at = next_try(&app, operation.as_ref(), &failed, Timestamp::now());
    failed.retain(|i| i.failure.is_some());
    failed.reverse();
    failed.truncate(5);
    let why = Why {
        explanation,
        operation,
        failed,
        next_try_at,
    };
    Ok(answer::tagged(app.generation, why))
}
