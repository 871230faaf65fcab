//! What there is: routes, and endpoints with all that is known of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use model::config::{Balance, Protocol, Sticky};
use serde::Serialize;

use super::stale_s;
use crate::eject::{Endpoint, State};
use crate::shared::Shared;
use crate::table::App;

/// Most apps in one listing.
const LISTED: usize = 10_000;

#[derive(Serialize)]
struct Routes<'a> {
    revision: i64,
    stale_s: f64,
    total: usize,
    routes: Vec<Route<'a>>,
}

#[derive(Serialize)]
struct Route<'a> {
    host: String,
    app: &'a str,
    in_flight: u32,
    endpoints: Vec<View<'a>>,
}

/// One endpoint.
#[derive(Serialize)]
pub(super) struct View<'a> {
    version: &'a str,
    container: &'a str,
    address: String,
    /// What it is spoken to in.
    protocol: Protocol,
    /// `ready`, `left_out` (after failures), `ejected` (by an operator), `probing` (its time is over; a connect decides).
    state: &'static str,
    /// Milliseconds for which it is still out.
    left_out_ms: u64,
    /// Failed connects in a row.
    failures: u32,
    /// Requests and tunnels under way.
    in_flight: u32,
    /// Seconds since it came; absent: it was there when the gateway started.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_s: Option<u64>,
    /// What peak EWMA says of its answers' heads; absent: not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<ErrorView>,
    /// Its host, the host's region and what it uses, as the registry says; absent: not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<Arc<model::Load>>,
}

#[derive(Serialize)]
struct ErrorView {
    reason: &'static str,
    ago_s: u64,
}

pub(super) fn state(shared: &Shared, e: &Endpoint, now: Instant) -> &'static str {
    match e.state(shared.clock, now) {
        State::Ready => "ready",
        State::LeftOut if e.ejected_by_operator() => "ejected",
        State::LeftOut => "left_out",
        State::Probe => "probing",
    }
}

pub(super) fn view<'a>(shared: &Shared, app: &App, e: &'a Endpoint, now: Instant) -> View<'a> {
    let clock = shared.clock;
    let now_ms = clock.millis(now);
    let seconds_since = |ms: u64| now_ms.saturating_sub(ms) / 1_000;
    View {
        version: e.key.version.as_str(),
        container: e.key.container.as_str(),
        address: e.address.to_string(),
        protocol: app.settings.config.protocol_of(&e.key.version),
        state: state(shared, e, now),
        left_out_ms: e.left_out_ms(clock, now),
        failures: e.failures(),
        in_flight: e.in_flight(),
        age_s: (e.since_ms() > 0).then(|| seconds_since(e.since_ms())),
        latency_us: e.latency().now(now_ms).map(|us| us as u64),
        last_error: e.last_error().map(|error| ErrorView {
            reason: error.what,
            ago_s: seconds_since(error.at_ms),
        }),
        load: e.load(),
    }
}

/// The host that a key of the table stands for.
fn host(shared: &Shared, key: &str) -> String {
    if key.starts_with('.') {
        format!("*{key}")
    } else if key.contains('.') {
        key.to_owned()
    } else {
        format!("{key}.{}", shared.config.domain)
    }
}

pub(super) fn routes(shared: &Shared, only: Option<&str>) -> String {
    let table = shared.table.load();
    let now = Instant::now();
    let mut routes: Vec<Route<'_>> = table
        .iter()
        .filter(|(_, a)| only.is_none_or(|app| a.shared.id.as_str() == app))
        .take(LISTED)
        .map(|(key, app)| Route {
            host: host(shared, key),
            app: app.shared.id.as_str(),
            in_flight: app.shared.in_flight.load(Ordering::Relaxed),
            endpoints: app.endpoints.iter().map(|e| view(shared, app, e, now)).collect(),
        })
        .collect();
    routes.sort_unstable_by(|a, b| a.host.cmp(&b.host));
    let all = Routes {
        revision: shared.registry.revision.load(Ordering::Relaxed),
        stale_s: stale_s(shared),
        total: table.len(),
        routes,
    };
    serde_json::to_string(&all).unwrap_or_default()
}

#[derive(Serialize)]
struct AppView<'a> {
    app: &'a str,
    balance: Balance,
    sticky: Sticky,
    /// Percent by version; empty: no version has a share of its own.
    shares: std::collections::BTreeMap<&'a str, f64>,
    in_flight: u32,
    endpoints: Vec<View<'a>>,
}

fn app_view<'a>(shared: &Shared, app: &'a Arc<App>, now: Instant) -> AppView<'a> {
    let config = &app.settings.config;
    AppView {
        app: app.shared.id.as_str(),
        balance: config.balance,
        sticky: config.sticky,
        shares: shares(app).into_iter().collect(),
        in_flight: app.shared.in_flight.load(Ordering::Relaxed),
        endpoints: app.endpoints.iter().map(|e| view(shared, app, e, now)).collect(),
    }
}

/// Percent of the requests by version.
pub(super) fn shares(app: &App) -> Vec<(&str, f64)> {
    let plan = app.plan.as_ref();
    plan.map_or_else(Vec::new, |p| p.shares(&app.endpoints))
}

/// The endpoints of one app, or of all; `None`: there is no such app.
pub(super) fn endpoints(shared: &Shared, only: Option<&str>) -> Option<String> {
    let table = shared.table.load();
    let now = Instant::now();
    let apps: Vec<AppView<'_>> = match only {
        Some(name) => vec![app_view(shared, table.get(name).filter(|_| !name.contains('.'))?, now)],
        None => {
            let mut apps: Vec<_> = table
                .iter()
                .filter(|(key, _)| !key.contains('.'))
                .take(LISTED)
                .collect();
            apps.sort_unstable_by_key(|(key, _)| *key);
            apps.into_iter().map(|(_, app)| app_view(shared, app, now)).collect()
        }
    };
    Some(serde_json::to_string(&serde_json::json!({ "apps": apps })).unwrap_or_default())
}
