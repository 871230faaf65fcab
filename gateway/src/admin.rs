//! The admin server: what the gateway knows (`/live`, `/ready`, `/metrics`, `/routes`, `/endpoints`, `/explain`), and what an
//! operator may change (`/eject`, `/uneject`, `/drain`, `/undrain`). On its own port, never on the clients'.
//!
//! Nobody has to sign in, so the port belongs on the loopback interface. A web page that an operator looks at must not be able to
//! use it: changes are posts with `content-type: application/json`, which a page of elsewhere can't send without being asked first
//! (and nothing here answers that question), and whatever a browser sends for a page (`Origin`) is refused.

mod change;
mod explain;
mod view;

use std::collections::BTreeMap;
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
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::metrics::{AppLines, Page};
use crate::shared::Shared;
use crate::tcp;

/// Most connections at once.
const CONNECTIONS: usize = 64;
/// How long an answer may lie untaken.
const UNTAKEN: Duration = Duration::from_secs(30);

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
        // Who does not take its answer must not keep its place for ever (RFC 5482). Fails only on a dead connection.
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNTAKEN));
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(&shared, request).await) }
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

const JSON: &str = "application/json";
const HELP: &str = "GET /live /ready /metrics /routes[?app=NAME] /endpoints[?app=NAME] /explain?host=HOST[&path=&method=&client=&https=1&server_name=&cookie=&header=NAME:VALUE]\n\
                    POST /eject /uneject /drain /undrain\n";

/// An error as problem+json (RFC 9457).
fn problem(status: StatusCode, code: &str, detail: &str) -> Response<Full<Bytes>> {
    let body = serde_json::json!({
        "type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16(), "code": code, "detail": detail,
    });
    text(status, "application/problem+json", body.to_string())
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    if *request.method() == Method::POST {
        return match change::of(&path) {
            Some(change) => change::make(shared, change, request).await,
            None => problem(StatusCode::NOT_FOUND, "not_found", HELP),
        };
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) || change::of(&path).is_some() {
        return problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", HELP);
    }
    let query: Vec<(String, String)> = url::form_urlencoded::parse(request.uri().query().unwrap_or("").as_bytes())
        .into_owned()
        .collect();
    let said = |name: &str| query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    match path.as_str() {
        "/live" => text(StatusCode::OK, PLAIN, "live\n".into()),
        "/ready" => match ready(shared) {
            Ok(()) => text(StatusCode::OK, PLAIN, "ready\n".into()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{why}\n")),
        },
        "/metrics" => text(StatusCode::OK, "text/plain; version=0.0.4", metrics(shared)),
        "/routes" => text(StatusCode::OK, JSON, view::routes(shared, said("app"))),
        "/endpoints" => match view::endpoints(shared, said("app")) {
            Some(body) => text(StatusCode::OK, JSON, body),
            None => problem(
                StatusCode::NOT_FOUND,
                "unknown_app",
                "there is no app of this name here",
            ),
        },
        "/explain" => match explain::explain(shared, &query) {
            Ok(body) => text(StatusCode::OK, JSON, body),
            Err(detail) => problem(StatusCode::BAD_REQUEST, "bad_request", &detail),
        },
        _ => problem(StatusCode::NOT_FOUND, "not_found", HELP),
    }
}

fn ready(shared: &Shared) -> Result<(), &'static str> {
    if shared.stopping.load(Ordering::Relaxed) {
        Err("stopping")
    } else if shared.drained.load(Ordering::Relaxed) {
        Err("drained by an operator")
    } else if !shared.is_loaded() {
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
    if let Some(tls) = &shared.tls {
        page.tls(
            &shared.workers,
            &tls.certificates(),
            tls.bad_pairs.load(Ordering::Relaxed),
        );
    }
    let mut apps = vec![AppLines {
        app: "",
        stats: &shared.unknown,
        in_flight: 0,
        versions: Vec::new(),
    }];
    let now = Instant::now();
    let mut states = BTreeMap::new();
    let (mut names, mut endpoints) = (0, 0);
    for (key, app) in table.iter().filter(|(key, _)| !key.contains('.')) {
        names += 1;
        endpoints += app.endpoints.len();
        for endpoint in &app.endpoints {
            let state = view::state(shared, endpoint, now);
            *states.entry((key, endpoint.key.version.as_str(), state)).or_insert(0) += 1;
        }
        if let Some(stats) = app.shared.stats_if_any() {
            apps.push(AppLines {
                app: key,
                stats,
                in_flight: app.shared.in_flight.load(Ordering::Relaxed),
                versions: app.shared.versions(),
            });
        }
    }
    apps.sort_unstable_by_key(|a| a.app);
    page.apps(&apps);
    page.endpoints(states.into_iter());
    let mut tcp: Vec<_> = table
        .iter()
        .filter(|(key, _)| !key.contains('.'))
        .filter_map(|(key, app)| Some((key, app.shared.tcp_if_any()?)))
        .collect();
    tcp.sort_unstable_by_key(|(key, _)| *key);
    tcp::metrics::write(&mut page, &shared.tcp, &tcp);
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
        "registry_resync_differences_total",
        "counter",
        "Entries in which resyncs found the registry copy wrong",
        registry.differences.load(Ordering::Relaxed),
    );
    page.one(
        "ready",
        "gauge",
        "1 when /ready answers 200",
        u8::from(ready(shared).is_ok()),
    );
    page.plain_histogram(
        "route_propagation_seconds",
        "Seconds from the registry's notification of a change, reading it included, until requests obey it",
        &registry.propagation,
    );
    page.text()
}
