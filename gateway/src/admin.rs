//! The admin server: `/live`, `/ready`, `/metrics`, `/routes`. On its own port, never on the clients'; read only.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::metrics::Page;
use crate::shared::Shared;
use crate::table::App;

/// Most connections at once.
const CONNECTIONS: usize = 64;
/// Most apps in one listing.
const LISTED: usize = 10_000;

/// Serves until `stop`.
pub(crate) async fn run(shared: Arc<Shared>, listener: TcpListener, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (Ok((stream, _)), Ok(slot)) = (accepted, Arc::clone(&slots).try_acquire_owned()) else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&shared, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(30))
                .max_header_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = connection => {}
                () = stop.cancelled() => {}
            }
            drop(slot);
        });
    }
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

const PLAIN: &str = "text/plain; charset=utf-8";

fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n".into());
    }
    match request.uri().path() {
        "/live" => text(StatusCode::OK, PLAIN, "live\n".into()),
        "/ready" => match ready(shared) {
            Ok(()) => text(StatusCode::OK, PLAIN, "ready\n".into()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{why}\n")),
        },
        "/metrics" => text(StatusCode::OK, "text/plain; version=0.0.4", metrics(shared)),
        "/routes" => {
            let app = request.uri().query().and_then(|q| q.strip_prefix("app="));
            text(StatusCode::OK, "application/json", routes(shared, app))
        }
        _ => text(
            StatusCode::NOT_FOUND,
            PLAIN,
            "/live /ready /metrics /routes[?app=NAME]\n".into(),
        ),
    }
}

fn ready(shared: &Shared) -> Result<(), &'static str> {
    if shared.stopping.load(Ordering::Relaxed) {
        Err("stopping")
    } else if !shared.registry.loaded.is_cancelled() {
        Err("no registry and no snapshot file yet")
    } else {
        Ok(())
    }
}

fn stale_s(shared: &Shared) -> f64 {
    match shared.registry.stale_since.load(Ordering::Relaxed) {
        0 => 0.0,
        since => shared.clock.millis(Instant::now()).saturating_sub(since) as f64 / 1e3,
    }
}

fn metrics(shared: &Shared) -> String {
    let table = shared.table.load();
    let mut page = Page::default();
    page.workers(&shared.workers);
    let mut apps = vec![("", &shared.unknown, 0)];
    let (mut names, mut endpoints) = (0, 0);
    for (key, app) in table.iter().filter(|(key, _)| !key.contains('.')) {
        names += 1;
        endpoints += app.endpoints.len();
        if let Some(stats) = app.shared.stats_if_any() {
            apps.push((key, stats, app.shared.in_flight.load(Ordering::Relaxed)));
        }
    }
    apps.sort_unstable_by_key(|(key, _, _)| *key);
    page.apps(&apps);
    let registry = &shared.registry;
    page.one("apps", "gauge", "Apps known", names);
    page.one("routes", "gauge", "Hosts routed: apps and custom domains", table.len());
    page.one("endpoints", "gauge", "Endpoints in the route table", endpoints);
    page.one(
        "endpoints_held",
        "gauge",
        "Endpoints held by the mass-vanish guard",
        registry.held.load(Ordering::Relaxed),
    );
    page.one(
        "endpoints_refused_total",
        "counter",
        "Endpoints outside the allowed addresses and ports",
        registry.refused.load(Ordering::Relaxed),
    );
    page.one(
        "registry_stale_seconds",
        "gauge",
        "Seconds since the registry was last in reach",
        stale_s(shared),
    );
    page.one(
        "registry_revision",
        "gauge",
        "Newest registry revision applied",
        registry.revision.load(Ordering::Relaxed),
    );
    page.one(
        "registry_changes_total",
        "counter",
        "Registry changes applied",
        registry.changes.load(Ordering::Relaxed),
    );
    page.one(
        "registry_snapshots_total",
        "counter",
        "Registry snapshots applied",
        registry.snapshots.load(Ordering::Relaxed),
    );
    page.one(
        "ready",
        "gauge",
        "1 when /ready answers 200",
        u8::from(ready(shared).is_ok()),
    );
    page.plain_histogram(
        "route_propagation_seconds",
        "Seconds from hearing of a registry change until requests obey it",
        &registry.propagation,
    );
    page.text()
}

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
    endpoints: Vec<EndpointView<'a>>,
}

#[derive(Serialize)]
struct EndpointView<'a> {
    version: &'a str,
    container: &'a str,
    address: String,
    /// `ready` or `left_out`.
    state: &'static str,
    left_out_ms: u64,
    failures: u32,
    in_flight: u32,
}

fn route<'a>(shared: &Shared, key: &str, app: &'a App, now: Instant) -> Route<'a> {
    let view = |e: &'a Arc<crate::eject::Endpoint>| {
        let left_out_ms = e.left_out_ms(shared.clock, now);
        EndpointView {
            version: e.key.version.as_str(),
            container: e.key.container.as_str(),
            address: e.address.to_string(),
            state: if left_out_ms > 0 { "left_out" } else { "ready" },
            left_out_ms,
            failures: e.failures(),
            in_flight: e.in_flight(),
        }
    };
    Route {
        host: if key.contains('.') {
            key.to_owned()
        } else {
            format!("{key}.{}", shared.config.domain)
        },
        app: app.shared.id.as_str(),
        in_flight: app.shared.in_flight.load(Ordering::Relaxed),
        endpoints: app.endpoints.iter().map(view).collect(),
    }
}

fn routes(shared: &Shared, only: Option<&str>) -> String {
    let table = shared.table.load();
    let now = Instant::now();
    let mut routes: Vec<Route<'_>> = match only {
        Some(app) => table
            .iter()
            .filter(|(_, a)| a.shared.id.as_str() == app)
            .map(|(key, a)| route(shared, key, a, now))
            .collect(),
        None => table
            .iter()
            .take(LISTED)
            .map(|(key, a)| route(shared, key, a, now))
            .collect(),
    };
    routes.sort_unstable_by(|a, b| a.host.cmp(&b.host));
    let all = Routes {
        revision: shared.registry.revision.load(Ordering::Relaxed),
        stale_s: stale_s(shared),
        total: table.len(),
        routes,
    };
    serde_json::to_string(&all).unwrap_or_default()
}
