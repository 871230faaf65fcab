//! Deploy: a new release of an app, made from its version, its image's digest and the fields that are given.

use std::collections::HashMap;

use axum::extract::State;
use axum::response::Response;
use model::spec::ProbeKind;
use model::{App, AppConfig, AppId, AppStatus, ReleaseSpec, Timestamp, Version};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::commit::{self, Look, Plan};
use super::error::{ApiError, Code};
use super::extract::{Call, Id};
use super::schema::{self, ChangeHeaders, ChangeQuery};
use super::{Api, capacity, merge};
use crate::canary::NewCanary;
use crate::image;
use crate::intent::{Change, MAX_INSTANCES, Refusal};

/// What is to be deployed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeployRequest {
    /// The version: the tag of the image.
    #[schema(value_type = String, example = "1")]
    version: Version,
    /// The image, when it is not `{registry}/{app}:{version}` of the previous release's or the default registry.
    image: Option<String>,
    /// Wanted number of instances, 0-1,000; as before when not given, 1 for a new app. With `canary`: the canary's,
    /// 1-1,000; 1 when not given.
    #[schema(minimum = 0, maximum = 1000)]
    instances: Option<u32>,
    /// Only as a canary: a second release beside the present one, with that share of the requests in per cent, 0-100.
    #[schema(minimum = 0, maximum = 100)]
    canary: Option<u32>,
    /// Fields that are other than in the previous release; `null` brings a default back.
    #[schema(value_type = Option<schema::ReleaseSpec>)]
    spec: Option<Map<String, Value>>,
    /// Fields of the app's configuration that shall change. Its protocol is that of the new release: the present instances are spoken
    /// to in theirs until they have gone. With `canary` only the protocol may be given, which is the canary's own.
    #[schema(value_type = Option<schema::AppConfig>)]
    config: Option<Map<String, Value>>,
}

/// Deploy a version
///
/// Makes a new release and has it take over from the present one, instance by instance. Makes the app at its first
/// deploy; starts a stopped app. The tag is resolved to its digest once, here. The same version again is a new release.
/// With `canary` the new release runs beside the present one until it is promoted or aborted; meanwhile nothing else is
/// deployed (409).
#[utoipa::path(post, path = "/api/v1/apps/{app}/deploy", tag = "apps", params(ChangeQuery, ChangeHeaders), request_body = DeployRequest,
    responses((status = 202, body = schema::Accepted), (status = 200, body = schema::AcceptedOrPlan)))]
pub(super) async fn deploy(State(api): State<Api>, Id(app): Id<AppId>, call: Call) -> Result<Response, ApiError> {
    let request: DeployRequest = call.json()?;
    if let Some(operation) = commit::replayed(&api, &call).await? {
        return commit::answer(&api, &call, operation, None).await;
    }
    // A digest is asked for once, however often the change is decided anew.
    let mut digests: HashMap<String, String> = HashMap::new();
    for _ in 0..commit::ATTEMPTS {
        let look = Look::at(&api, &call, &app).await?;
        let (spec, config) = wanted(&api, &app, &request, &look).await?;
        let digest = match digests.get(&spec.image) {
            Some(digest) => digest.clone(),
            None => {
                let digest = image::resolve(&*api.store, &api.fleet, &spec.image).await?;
                digests.insert(spec.image.clone(), digest.clone());
                digest
            }
        };
        let now = Timestamp::now();
        let change = match request.canary {
            Some(percent) => Change::Canary(Box::new(NewCanary {
                version: request.version.clone(),
                digest,
                spec: spec.clone(),
                protocol: config.protocol,
                instances: request.instances.unwrap_or(1),
                percent,
            })),
            None => Change::Deploy {
                version: request.version.clone(),
                digest,
                spec: Box::new(spec.clone()),
                config: Box::new(config),
                instances: request.instances,
            },
        };
        let draft = look.decide(&app, &change, now)?;
        let ask = match draft.app.canary.as_ref().filter(|_| request.canary.is_some()) {
            Some(canary) => capacity::Ask::Beside(canary.instances),
            None => capacity::Ask::Replacing(draft.app.instances),
        };
        let room = capacity::room(&api, &app, &spec, &ask).await?;
        if call.dry_run {
            let mut plan = Plan::of(&draft);
            plan.would_place = room.would_place;
            plan.reasons = room.reasons;
            return Ok(plan.answer());
        }
        // Where old instances may stop first, they make the room themselves.
        let stops_first = spec.update.max_unavailable > 0 && room.live > 0 && request.canary.is_none();
        let wants_room = draft.app.instances > 0 || spec.placement.one_per_host || request.canary.is_some();
        if room.would_place.is_empty() && wants_room && !stops_first && !call.queue {
            return Err(capacity::none("deploy", room.reasons));
        }
        if let Some((operation, generation)) = commit::commit(&api, &call, look.app.as_ref(), draft, now).await? {
            return commit::answer(&api, &call, operation, Some(generation)).await;
        }
    }
    Err(commit::contended(&app))
}

/// The spec and the configuration that the request makes of the previous ones, checked.
async fn wanted(
    api: &Api,
    id: &AppId,
    request: &DeployRequest,
    look: &Look,
) -> Result<(ReleaseSpec, AppConfig), ApiError> {
    let whole = |config: &Map<String, Value>| config.keys().any(|key| key != "protocol");
    if request.canary.is_some() && request.config.as_ref().is_some_and(whole) {
        let why = "a canary shares the app's configuration, but for its protocol: change it by itself";
        return Err(ApiError::new(Code::InvalidSpec, why).at("/config"));
    }
    if request.canary.is_some() && request.instances == Some(0) {
        return Err(ApiError::new(Code::InvalidSpec, "a canary has at least 1 instance").at("/instances"));
    }
    if let Some(instances) = request.instances.filter(|n| *n > MAX_INSTANCES) {
        return Err(Refusal::TooMany(instances).into());
    }
    let mut before = ReleaseSpec::default();
    let mut config = AppConfig::default();
    if let Some(app) = &look.app {
        if app.status == AppStatus::Removing {
            return Err(Refusal::Removing(id.clone()).into());
        }
        config = app.config.clone();
        if let Some(release) = &look.release {
            before = release.spec.clone();
        }
    }
    let mut spec = merge::release_spec(&before, request.spec.as_ref())?;
    let named = request
        .spec
        .as_ref()
        .and_then(|s| s.get("image"))
        .and_then(Value::as_str);
    spec.image = image::reference(
        &api.default_registry,
        id,
        &request.version,
        request.image.as_deref().or(named),
        Some(&before.image),
    );
    let at = if request.image.is_some() { "" } else { "/spec" };
    let (image, rest): (Vec<_>, Vec<_>) = spec.check().into_iter().partition(|e| e.field == "/image");
    ApiError::bad_fields(at, &image)?;
    ApiError::bad_fields("/spec", &rest)?;
    if spec.health.kind == ProbeKind::Heartbeat && api.api_url.is_none() {
        return Err(ApiError::new(
            Code::InvalidSpec,
            "heartbeats need an API address that containers reach: set scheduler.converge.api_url (flag --api-url of \
             the scheduler), or choose another kind of health check",
        )
        .at("/spec/health/kind"));
    }
    let config = merge::app_config(&config, request.config.as_ref(), "/config")?;
    ApiError::bad_fields("/config", &config.check())?;
    domains_are_free(api, id, &config, "/config").await?;
    port_is_in_range(api, look.app.as_ref(), &config, "/config")?;
    Ok((spec, config))
}

/// Refuses a wished port at the gateways that they would never open; the one that the app has it may keep.
pub(super) fn port_is_in_range(api: &Api, app: Option<&App>, config: &AppConfig, root: &str) -> Result<(), ApiError> {
    let (port, range) = (config.tcp.port, api.gateway_tcp_ports);
    if port == 0 || range.contains(port) || app.is_some_and(|app| app.config.tcp.port == port) {
        return Ok(());
    }
    Err(ApiError::new(
        Code::InvalidSpec,
        format!("port {port} is none of the gateways' ports {range} (scheduler.gateway_tcp_ports)"),
    )
    .at(format!("{root}/tcp/port")))
}

/// Refuses domains that another app has, naming the field; the commit has the last word.
pub(super) async fn domains_are_free(api: &Api, id: &AppId, config: &AppConfig, root: &str) -> Result<(), ApiError> {
    if config.domains.is_empty() {
        return Ok(());
    }
    for app in api.store.app_list().await?.iter().filter(|a| a.id != *id) {
        for (i, domain) in config.domains.iter().enumerate() {
            if app.config.domains.contains(domain) {
                return Err(commit::domain_taken(domain, &app.id).at(format!("{root}/domains/{i}")));
            }
        }
    }
    Ok(())
}
