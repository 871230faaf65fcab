//! What every [`Store`] must do.
//!
//! [`run_all`] is given a maker of fresh, empty stores; each property gets its own. Two handles of one store stand
//! for two processes.

mod apps;
mod certificates;
mod hosts;
mod instances;
mod operations;
mod placement;
mod ports;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Protocol;
use crate::ports::GATEWAY_TCP;
use crate::store::{
    Expected, HostIntent, HostOutcome, HostWish, IdempotencyKey, Intent, IntentOutcome, Outcome, Pick, PlaceOutcome,
    Placing, Store,
};
use crate::{
    App, AppConfig, AppId, AppStatus, Canary, EventKind, Generation, Host, HostChange, HostName, Instance,
    InstanceChange, InstanceId, NewEvent, Operation, OperationId, OperationKind, OperationState, Release, ReleaseSpec,
    Schedulability, TenantId, Timestamp,
};

/// Two handles, as of two processes, on one fresh and empty store.
pub type Handles = (Arc<dyn Store>, Arc<dyn Store>);

/// Longest time that one property may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs every property, each on a store of its own made by `make`.
///
/// # Panics
/// With the name of the property that does not hold, and why.
pub async fn run_all(make: impl AsyncFn() -> Handles) {
    macro_rules! all {
        ($($module:ident :: $property:ident),* $(,)?) => {$(
            within(stringify!($property), $module::$property(make().await)).await;
        )*};
    }
    all!(
        apps::an_app_comes_changes_and_goes,
        apps::intents_conflict,
        apps::of_eight_writers_each_generation_has_one,
        apps::a_key_is_used_once,
        apps::a_later_operation_supersedes,
        apps::settling_moves_the_way_back,
        apps::a_failed_release_gives_back_what_was_there,
        apps::a_protocol_comes_back_with_its_release,
        apps::claims_are_held_renewed_and_lost,
        apps::a_domain_has_one_app,
        apps::a_canary_is_kept_and_settled,
        apps::a_restart_replaces_what_was_there_whatever_the_clocks_say,
        ports::a_tcp_app_has_a_port_of_its_own,
        ports::an_app_found_by_its_name_has_only_the_port_that_it_asks_for,
        ports::a_wished_port_is_honoured_or_its_holder_named,
        ports::eight_writers_never_share_a_port,
        instances::a_life_is_kept,
        instances::moves_are_compare_and_set,
        instances::illegal_moves_are_refused,
        instances::filters_select,
        instances::history_is_pruned,
        instances::failures_are_kept_as_long_as_they_count,
        instances::pruning_goes_on_until_nothing_is_left,
        instances::figures_are_kept_quietly,
        instances::when_beats_are_received_is_kept_quietly,
        placement::placed_instances_hold_host_and_port,
        placement::refusals_have_reasons,
        placement::a_changed_app_is_a_conflict,
        placement::eight_placers_never_overbook,
        placement::ports_rest,
        placement::ports_are_spared,
        placement::ports_rest_though_their_host_goes_and_comes_back,
        placement::weights_never_outgrow_their_column,
        placement::a_nearly_full_range_is_used_up,
        hosts::hosts_come_change_and_go,
        hosts::host_changes_are_compare_and_set,
        hosts::what_is_asked_of_hosts_is_whole,
        hosts::of_twins_that_join_at_once_one_does,
        hosts::keys_are_used_once_on_hosts_too,
        operations::operations_are_followed,
        operations::events_are_in_order_and_paged,
        operations::waiting_ends_with_a_change,
        operations::tokens_and_credentials_are_kept,
        certificates::certificates_are_kept,
        certificates::orders_are_compare_and_set,
        certificates::what_is_issued_never_replaces_what_was_given,
        certificates::accounts_are_made_once,
        operations::the_platform_id_stays,
    );
}

async fn within(property: &str, work: impl Future<Output = ()>) {
    eprintln!("  store: {property}");
    assert!(
        tokio::time::timeout(PATIENCE, work).await.is_ok(),
        "{property} did not end within {PATIENCE:?}"
    );
}

/// A fixed point in time, so that nothing depends on the clock.
const T: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn seconds(n: u64) -> Timestamp {
    T.plus(Duration::from_secs(n))
}

fn app_id(text: &str) -> AppId {
    text.parse().expect("a valid app id")
}

fn host_name(text: &str) -> HostName {
    text.parse().expect("a valid host name")
}

fn event(kind: EventKind) -> NewEvent {
    NewEvent::new(kind, "contract", "something happened")
}

fn host(name: &str, memory_mb: u32) -> Host {
    Host {
        name: host_name(name),
        address: "10.0.0.1".parse().expect("an address"),
        engine: format!("fake://{name}"),
        labels: BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]),
        region: "eu".into(),
        memory_mb,
        cpu_millis: 4_000,
        port_range: (20_000, 29_999),
        schedulability: Schedulability::Schedulable,
        down_since: None,
        reserved_memory_mb: 0,
        reserved_cpu_weight: 0,
        instances: 0,
        used_cpu_millis: 0,
        created_at: T,
        generation: Generation::FIRST,
    }
}

fn joining(host: Host) -> HostIntent {
    HostIntent::join(host, event(EventKind::Host))
}

fn leaving(name: &HostName) -> HostIntent {
    HostIntent {
        wish: HostWish::Leave(name.clone()),
        operation: None,
        event: event(EventKind::Host).about_host(name),
        idempotency: None,
    }
}

fn changing(current: &Host, changes: Vec<HostChange>) -> HostIntent {
    HostIntent {
        wish: HostWish::Change {
            current: current.clone(),
            changes,
        },
        ..leaving(&current.name)
    }
}

async fn add_host(store: &dyn Store, host: Host) -> Host {
    match store.host_commit(&joining(host), T).await.expect("an answer") {
        HostOutcome::Committed(row) => row,
        other => panic!("not added: {other:?}"),
    }
}

fn operation(app: &AppId, kind: OperationKind) -> Operation {
    Operation {
        id: OperationId::random(),
        kind,
        app: Some(app.clone()),
        host: None,
        release: None,
        state: OperationState::Running,
        message: String::new(),
        failure: None,
        steps: Vec::new(),
        reasons: Vec::new(),
        created_at: T,
        updated_at: T,
        generation: Generation::FIRST,
    }
}

fn release(app: &AppId, number: u32) -> Release {
    Release {
        app: app.clone(),
        number,
        version: format!("v{number}").parse().expect("a valid version"),
        digest: format!("sha256:{number:064}"),
        spec: ReleaseSpec {
            image: format!("127.0.0.1:5000/{app}:v{number}"),
            env: BTreeMap::from([("GREETING".to_owned(), "grüß Gott \u{1f980} '\"\\".to_owned())]),
            ..ReleaseSpec::default()
        },
        protocol: Some(Protocol::H2c),
        created_at: T,
    }
}

/// A first deploy of app `id` with a domain of its own, for tests of a single implementation too.
pub fn deploy(id: &str) -> Intent {
    let id = app_id(id);
    Intent {
        app: App {
            id: id.clone(),
            tenant: TenantId::default_tenant(),
            status: AppStatus::Running,
            instances: 2,
            release: 1,
            previous_release: 0,
            last_release: 1,
            restart_before: None,
            canary: None,
            way_back: None,
            config: AppConfig {
                domains: vec![format!("{id}.example.com")],
                ..AppConfig::default()
            },
            operation: None,
            placements: 0,
            created_at: T,
            updated_at: T,
            generation: Generation::FIRST,
        },
        expected: Expected::Absent,
        release: Some(release(&id, 1)),
        operation: Operation {
            release: Some(1),
            ..operation(&id, OperationKind::Deploy)
        },
        event: event(EventKind::App).about_app(&id),
        tcp_ports: GATEWAY_TCP,
        idempotency: None,
    }
}

/// A change of an existing app.
fn change(app: &App, kind: OperationKind) -> Intent {
    Intent {
        app: app.clone(),
        expected: Expected::Generation(app.generation),
        release: None,
        operation: operation(&app.id, kind),
        event: event(EventKind::App).about_app(&app.id),
        tcp_ports: GATEWAY_TCP,
        idempotency: None,
    }
}

fn key(key: &str, request: &str) -> Option<IdempotencyKey> {
    Some(IdempotencyKey {
        key: key.into(),
        request_hash: request.into(),
    })
}

async fn committed(store: &dyn Store, intent: &Intent) -> (App, Operation) {
    match store.intent_commit(intent, T).await.expect("an answer") {
        IntentOutcome::Committed(app, operation) => (app, operation),
        other => panic!("not committed: {other:?}"),
    }
}

fn pick(host: &str, memory_mb: u32) -> Pick {
    let instance = InstanceId::random();
    Pick {
        token_hash: format!("hash of {instance}"),
        instance,
        host: host_name(host),
        release: 1,
        version: "v1".parse().expect("a valid version"),
        memory_mb,
        cpu_weight: 100,
    }
}

fn placing(app: &App, picks: Vec<Pick>) -> Placing {
    Placing {
        app: app.id.clone(),
        expected_placements: app.placements,
        expected_generation: app.generation,
        not_before: app.restart_before,
        picks,
    }
}

/// Places `picks` for the app as it stands; those that came to be.
async fn placed(store: &dyn Store, app: &AppId, picks: Vec<Pick>, now: Timestamp) -> Vec<Instance> {
    let row = store.app_fetch(app).await.expect("an answer").expect("the app");
    match store
        .instance_place(&placing(&row, picks), now)
        .await
        .expect("an answer")
    {
        PlaceOutcome::Placed { placed, refused } => {
            assert!(refused.is_empty(), "refused: {refused:?}");
            placed
        }
        PlaceOutcome::Conflict => panic!("conflict on {}", app),
    }
}

async fn moved(store: &dyn Store, instance: &Instance, change: InstanceChange, now: Timestamp) -> Instance {
    let outcome = store.instance_update(instance, &change, now).await;
    match outcome.expect("an answer") {
        Outcome::Updated(next) => next,
        other => panic!("{change:?} of {instance:?}: {other:?}"),
    }
}

fn started() -> InstanceChange {
    InstanceChange::Started {
        container: "abcdef0123456789".parse().expect("a valid container id"),
        restart: false,
    }
}
