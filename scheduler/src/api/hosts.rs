//! Hosts: joined, looked at, closed, emptied and taken away.

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse as _, Json, Response};
use model::engine::EngineInfo;
use model::spec::check_labels;
use model::store::{HostIntent, HostOutcome, HostWish, InstanceFilter};
use model::{
    EventKind, Generation, Host, HostChange, HostClash, HostName, NewEvent, Operation, OperationKind, OperationState,
    Schedulability, Timestamp,
};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::Api;
use super::answer::{self, Page};
use super::commit::{self, Plan};
use super::error::{ApiError, Code};
use super::extract::{Call, Id, Query};
use super::schema::{self, ChangeHeaders, ChangeQuery};
use crate::intent;

/// Most lines that say what is in the way.
const MOST_REASONS: usize = 20;

/// List hosts
#[utoipa::path(get, path = "/api/v1/hosts", tag = "hosts", params(Page), responses((status = 200, body = [schema::Host])))]
pub(super) async fn list(State(api): State<Api>, uri: Uri, Query(page): Query<Page>) -> Result<Response, ApiError> {
    let hosts = api.store.host_list().await?;
    page.of(&uri, hosts, |h| h.name.to_string())
}

/// Show a host
#[utoipa::path(get, path = "/api/v1/hosts/{host}", tag = "hosts", responses((status = 200, body = schema::Host)))]
pub(super) async fn info(State(api): State<Api>, Id(name): Id<HostName>) -> Result<Response, ApiError> {
    let host = fetch(&api, &name).await?;
    Ok(answer::tagged(host.generation, host))
}

async fn fetch(api: &Api, name: &HostName) -> Result<Host, ApiError> {
    let found = api.store.host_fetch(name).await?;
    found.ok_or_else(|| ApiError::not_found("host", name))
}

/// A host that shall join.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HostRequest {
    /// Its name within the platform.
    #[schema(value_type = String, example = "host-1")]
    name: HostName,
    /// The address on which container ports are published and reached by gateways and probes.
    #[schema(value_type = String, example = "10.0.0.5")]
    address: IpAddr,
    /// Its Docker Engine: `unix:///var/run/docker.sock`, `https://10.0.0.5:2376`, `tcp://10.0.0.5:2375`.
    #[schema(example = "https://10.0.0.5:2376")]
    engine: String,
    /// Memory that instances may reserve together, MiB; nine tenths of the engine's when not given.
    memory_mb: Option<u32>,
    /// Labels that placements may ask for.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Region, given to containers as `CAAS_REGION`.
    #[serde(default)]
    region: String,
    /// First and last host port for instances; the scheduler's default when not given.
    #[schema(value_type = Option<Vec<u16>>, min_items = 2, max_items = 2, example = json!([20000, 29999]))]
    port_range: Option<(u16, u16)>,
}

/// Add a host
///
/// Its engine must answer: what it says of CPU and memory is noted.
#[utoipa::path(post, path = "/api/v1/hosts", tag = "hosts", params(schema::OnceHeader), request_body = HostRequest,
    responses((status = 201, body = schema::Host)))]
pub(super) async fn create(State(api): State<Api>, call: Call) -> Result<Response, ApiError> {
    let request: HostRequest = call.json()?;
    if commit::used(&api, &call).await?.is_some() {
        return Ok(created(&fetch(&api, &request.name).await?));
    }
    let port_range = request.port_range.unwrap_or(api.port_range);
    check(&request, port_range, api.allow_fake_engines)?;
    let hosts = api.store.host_list().await?;
    let clash = |host| no_clash(&request.name, &request.engine, request.address, port_range, host);
    if let Err(clash) = hosts.iter().try_for_each(clash) {
        // It may clash with itself: the same request has been sent twice, and the other was done meanwhile.
        if commit::used(&api, &call).await?.is_some() {
            return Ok(created(&fetch(&api, &request.name).await?));
        }
        return Err(clash);
    }
    let engine = (api.engines)(&request.engine).map_err(|e| bad_engine(&e))?;
    let info: EngineInfo = engine.info().await.map_err(|e| bad_engine(&e))?;
    let now = Timestamp::now();
    let host = Host {
        memory_mb: request.memory_mb.unwrap_or_else(|| most_of(info.memory_mb)),
        cpu_millis: info.cpu_millis,
        name: request.name,
        address: request.address,
        engine: request.engine,
        labels: request.labels,
        region: request.region,
        port_range,
        schedulability: Schedulability::Schedulable,
        down_since: None,
        reserved_memory_mb: 0,
        reserved_cpu_weight: 0,
        instances: 0,
        used_cpu_millis: 0,
        created_at: now,
        generation: Generation::FIRST,
    };
    let message = format!(
        "host {} joined: {} MiB, {} CPUs",
        host.name,
        host.memory_mb,
        f64::from(host.cpu_millis) / 1000.0
    );
    let intent = intent(&call, &host.name, HostWish::Join(host.clone()), message);
    match api.store.host_commit(&intent, now).await? {
        HostOutcome::Committed(host) => Ok(created(&host)),
        HostOutcome::Replayed(_) => Ok(created(&fetch(&api, &host.name).await?)),
        HostOutcome::KeyReused => Err(commit::key_reused()),
        HostOutcome::Conflict(other) => {
            no_clash(&host.name, &host.engine, host.address, host.port_range, &other)?;
            Err(taken(&host.name))
        }
        HostOutcome::NotFound => Err(ApiError::internal(&"a host that joined was not found")),
    }
}

fn created(host: &Host) -> Response {
    let mut response = (StatusCode::CREATED, Json(host)).into_response();
    answer::tag(&mut response, host.generation);
    response
}

/// What `call` asks of the host `name`.
fn intent(call: &Call, name: &HostName, wish: HostWish, message: String) -> HostIntent {
    HostIntent {
        wish,
        operation: None,
        event: NewEvent::new(EventKind::Host, &call.actor.name, message).about_host(name),
        idempotency: call.idempotency.clone(),
    }
}

fn taken(name: &HostName) -> ApiError {
    ApiError::new(
        Code::Conflict,
        format!("there is a host {name} already: choose another name"),
    )
    .at("/name")
}

fn bad_engine(error: &model::engine::EngineError) -> ApiError {
    ApiError::new(Code::EngineUnreachable, error.to_string()).at("/engine")
}

/// Nine tenths: the rest is left to the engine and its machine.
fn most_of(memory_mb: u32) -> u32 {
    memory_mb - memory_mb / 10
}

/// Refuses what can't be a host.
fn check(request: &HostRequest, port_range: (u16, u16), allow_fake: bool) -> Result<(), ApiError> {
    let refuse = |field: &str, message: String| Err(ApiError::new(Code::InvalidSpec, message).at(field));
    let link_local = match request.address.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if request.address.is_unspecified() || request.address.is_multicast() || link_local {
        return refuse(
            "/address",
            format!(
                "{} is no address of one host: name the one that gateways reach",
                request.address
            ),
        );
    }
    let scheme = request.engine.split_once("://").map(|(scheme, _)| scheme);
    let known = match scheme {
        Some("unix" | "tcp" | "https") => true,
        Some("fake") => allow_fake,
        _ => false,
    };
    let sound = request.engine.len() <= 255 && request.engine.bytes().all(|b| b.is_ascii_graphic());
    if !known || !sound {
        return refuse(
            "/engine",
            "engine must be unix:///path, https://host:port or tcp://host:port".into(),
        );
    }
    check_memory(request.memory_mb)?;
    if let Err(message) = check_labels(&request.labels) {
        return refuse("/labels", message);
    }
    let region_ok = request.region.len() <= 63
        && request
            .region
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
    if !region_ok {
        return refuse(
            "/region",
            "region must have at most 63 letters, digits, '.', '_', '-', '/'".into(),
        );
    }
    let (first, last) = port_range;
    if first < 1_024 || first > last {
        return refuse(
            "/port_range",
            format!("[{first}, {last}] must be two ports from 1024 to 65535, the smaller first"),
        );
    }
    Ok(())
}

fn check_memory(memory_mb: Option<u32>) -> Result<(), ApiError> {
    if memory_mb.is_some_and(|mb| !(6..=16_777_216).contains(&mb)) {
        return Err(ApiError::new(Code::InvalidSpec, "memory_mb must be 6 to 16777216").at("/memory_mb"));
    }
    Ok(())
}

/// Refuses a host that is `other` under another name: its memory and ports would be given away twice.
fn no_clash(name: &HostName, engine: &str, address: IpAddr, ports: (u16, u16), other: &Host) -> Result<(), ApiError> {
    match other.clash(name, engine, address, ports) {
        None => Ok(()),
        Some(HostClash::Name) => Err(taken(name)),
        Some(HostClash::Engine) => Err(ApiError::new(
            Code::Conflict,
            format!("engine {engine} is that of host {} already", other.name),
        )
        .at("/engine")),
        Some(HostClash::Ports) => Err(ApiError::new(
            Code::Conflict,
            format!(
                "host {} leases ports {}-{} of address {} already: choose others",
                other.name, other.port_range.0, other.port_range.1, other.address
            ),
        )
        .at("/port_range")),
    }
}

/// What shall change.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HostPatch {
    /// The whole set of labels.
    #[serde(default, deserialize_with = "some")]
    labels: Option<BTreeMap<String, String>>,
    /// Memory that instances may reserve together, MiB.
    #[serde(default, deserialize_with = "some")]
    memory_mb: Option<u32>,
}

/// A field that may be left out, but not be `null`.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Change a host's labels or memory
#[utoipa::path(patch, path = "/api/v1/hosts/{host}", tag = "hosts", params(ChangeHeaders), request_body = HostPatch,
    responses((status = 200, body = schema::Host)))]
pub(super) async fn change(State(api): State<Api>, Id(name): Id<HostName>, call: Call) -> Result<Response, ApiError> {
    let patch: HostPatch = call.json()?;
    check_memory(patch.memory_mb)?;
    let mut changes = Vec::new();
    let mut what = Vec::new();
    if let Some(labels) = patch.labels {
        check_labels(&labels).map_err(|message| ApiError::new(Code::InvalidSpec, message).at("/labels"))?;
        changes.push(HostChange::Labels(labels));
        what.push("new labels".to_owned());
    }
    if let Some(mb) = patch.memory_mb {
        changes.push(HostChange::MemoryMb(mb));
        what.push(format!("{mb} MiB for instances"));
    }
    let (host, _) = update(&api, &call, &name, |host| {
        let message = format!("host {name}: {}", what.join(", "));
        (!changes.is_empty()).then(|| intent(&call, &name, changed(host, &changes), message))
    })
    .await?;
    Ok(answer::tagged(host.generation, host))
}

fn changed(current: &Host, changes: &[HostChange]) -> HostWish {
    HostWish::Change {
        current: current.clone(),
        changes: changes.to_vec(),
    }
}

/// Commits what `decide` makes of the host, decided anew when somebody else was faster, unless the caller named the
/// generation; `None` from it: the host is as it should be. The host as it is then, and the operation of a repeated
/// request.
async fn update(
    api: &Api,
    call: &Call,
    name: &HostName,
    decide: impl Fn(&Host) -> Option<HostIntent>,
) -> Result<(Host, Option<Operation>), ApiError> {
    if let Some(operation) = commit::used(api, call).await? {
        return Ok((fetch(api, name).await?, operation));
    }
    let mut host = fetch(api, name).await?;
    for _ in 0..commit::ATTEMPTS {
        if call.if_match.is_some_and(|wanted| wanted != host.generation) {
            return Err(ApiError::stale(&format!("host {name}"), host.generation));
        }
        let Some(intent) = decide(&host) else {
            return Ok((host, None));
        };
        match api.store.host_commit(&intent, Timestamp::now()).await? {
            HostOutcome::Committed(host) => return Ok((host, intent.operation)),
            HostOutcome::Replayed(operation) => return Ok((fetch(api, name).await?, operation)),
            HostOutcome::KeyReused => return Err(commit::key_reused()),
            HostOutcome::Conflict(current) => host = current,
            HostOutcome::NotFound => return Err(ApiError::not_found("host", name)),
        }
    }
    Err(ApiError::new(
        Code::VersionConflict,
        format!("host {name} is being changed by others all the time: repeat the request"),
    ))
}

/// Close a host for new instances
#[utoipa::path(post, path = "/api/v1/hosts/{host}/cordon", tag = "hosts", params(ChangeHeaders),
    responses((status = 200, body = schema::Host)))]
pub(super) async fn cordon(State(api): State<Api>, Id(name): Id<HostName>, call: Call) -> Result<Response, ApiError> {
    set(&api, &name, &call, Schedulability::Cordoned).await
}

/// Open a host for new instances
#[utoipa::path(post, path = "/api/v1/hosts/{host}/uncordon", tag = "hosts", params(ChangeHeaders),
    responses((status = 200, body = schema::Host)))]
pub(super) async fn uncordon(State(api): State<Api>, Id(name): Id<HostName>, call: Call) -> Result<Response, ApiError> {
    set(&api, &name, &call, Schedulability::Schedulable).await
}

async fn set(api: &Api, name: &HostName, call: &Call, to: Schedulability) -> Result<Response, ApiError> {
    let (host, _) = update(api, call, name, |host| {
        let message = format!("host {name} is {}", to.as_str());
        let wish = changed(host, &[HostChange::Schedulability(to)]);
        (host.schedulability != to).then(|| intent(call, name, wish, message))
    })
    .await?;
    // A repeated request must not undo what was asked for since.
    if host.schedulability == to {
        for operation in open_drains(api, name).await? {
            let ended = Operation {
                state: OperationState::Superseded,
                message: format!("host {name} is {} again", to.as_str()),
                ..operation
            };
            // On a conflict the operation has just moved by itself: the host's state is what counts.
            api.store.operation_update(&ended, Timestamp::now()).await?;
        }
    }
    Ok(answer::tagged(host.generation, host))
}

async fn open_drains(api: &Api, name: &HostName) -> Result<Vec<Operation>, ApiError> {
    let mut open = api.store.operation_open().await?;
    open.retain(|o| o.kind == OperationKind::DrainHost && o.host.as_ref() == Some(name));
    Ok(open)
}

/// Empty a host
///
/// No new instances come, and those present move elsewhere without losing a request.
#[utoipa::path(post, path = "/api/v1/hosts/{host}/drain", tag = "hosts", params(ChangeQuery, ChangeHeaders),
    responses((status = 202, body = schema::Accepted), (status = 200, body = schema::AcceptedOrPlan)))]
pub(super) async fn drain(State(api): State<Api>, Id(name): Id<HostName>, call: Call) -> Result<Response, ApiError> {
    if call.dry_run {
        let host = fetch(&api, &name).await?;
        if call.if_match.is_some_and(|wanted| wanted != host.generation) {
            return Err(ApiError::stale(&format!("host {name}"), host.generation));
        }
        let reasons = on_host(&api, &name).await?;
        let plan = Plan {
            summary: format!("drain host {name}: {} instances move elsewhere", host.instances),
            release: None,
            instances: None,
            would_place: Vec::new(),
            reasons,
        };
        return Ok(plan.answer());
    }
    let open = open_drains(&api, &name).await?.pop();
    let (host, operation) = update(&api, &call, &name, |host| {
        let drains = host.schedulability == Schedulability::Draining;
        // Asked for twice is asked for once.
        if drains && open.is_some() {
            return None;
        }
        let operation = Operation {
            host: Some(name.clone()),
            ..intent::blank_operation(OperationKind::DrainHost, Timestamp::now())
        };
        let change = HostChange::Schedulability(Schedulability::Draining);
        let changes = if drains { Vec::new() } else { vec![change] };
        let mut intent = intent(&call, &name, changed(host, &changes), format!("drain host {name}"));
        intent.event = intent.event.in_operation(&operation.id);
        intent.operation = Some(operation);
        Some(intent)
    })
    .await?;
    let operation = operation
        .or(open)
        .ok_or_else(|| ApiError::internal(&"a drained host has no operation"))?;
    commit::answer(&api, &call, operation, Some(host.generation)).await
}

/// Take a host away
///
/// Only an empty one goes: drain it first.
#[utoipa::path(delete, path = "/api/v1/hosts/{host}", tag = "hosts", params(ChangeHeaders),
    responses((status = 204, description = "gone")))]
pub(super) async fn remove(State(api): State<Api>, Id(name): Id<HostName>, call: Call) -> Result<StatusCode, ApiError> {
    if commit::used(&api, &call).await?.is_some() {
        return Ok(StatusCode::NO_CONTENT);
    }
    if let Some(wanted) = call.if_match {
        let host = fetch(&api, &name).await?;
        if wanted != host.generation {
            return Err(ApiError::stale(&format!("host {name}"), host.generation));
        }
    }
    let intent = intent(&call, &name, HostWish::Leave(name.clone()), format!("host {name} left"));
    match api.store.host_commit(&intent, Timestamp::now()).await? {
        HostOutcome::Committed(_) | HostOutcome::Replayed(_) => Ok(StatusCode::NO_CONTENT),
        HostOutcome::KeyReused => Err(commit::key_reused()),
        HostOutcome::NotFound => Err(ApiError::not_found("host", &name)),
        HostOutcome::Conflict(host) => Err(ApiError::new(
            Code::Conflict,
            format!("host {name} still carries {} instances: drain it first", host.instances),
        )
        .because(on_host(&api, &name).await?)),
    }
}

/// A line per instance on a host.
async fn on_host(api: &Api, name: &HostName) -> Result<Vec<String>, ApiError> {
    let held = api.store.instance_list(&InstanceFilter::held_on(name)).await?;
    let mut lines: Vec<String> = held
        .iter()
        .take(MOST_REASONS)
        .map(|i| format!("instance {} of {} is {}", i.id, i.app, i.state.as_str()))
        .collect();
    if held.len() > MOST_REASONS {
        lines.push(format!("and {} more", held.len() - MOST_REASONS));
    }
    Ok(lines)
}
