//! The HTTP API, `/api/v1`: requests in, intent out. It decides nothing about placement or convergence, and never
//! starts or stops a container; what it writes is what loops then bring about.

mod answer;
mod apps;
pub(crate) mod auth;
mod canary;
mod capacity;
mod certificates;
mod commit;
mod deploy;
mod error;
mod events;
mod extract;
mod health;
mod hosts;
mod instances;
mod logs;
mod merge;
mod openapi;
mod operations;
mod registries;
mod schema;
pub(crate) mod serve;
mod stack;
#[cfg(test)]
mod tests;

use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use model::App;
use model::config::Protocol;
use model::engine::EngineOpener;
use model::store::Store;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Config;
use crate::converge::Fleet;
use crate::metrics::Metrics;
use error::{ApiError, Code};

/// What handlers share.
#[derive(Clone)]
pub(crate) struct Api(Arc<Shared>);

/// See [`Api`].
pub(crate) struct Shared {
    store: Arc<dyn Store>,
    engines: EngineOpener,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    default_registry: String,
    allow_fake_engines: bool,
    port_range: (u16, u16),
    gateway_tcp_ports: model::PortRange,
    app_url: Option<String>,
    api_url: Option<String>,
    sealing: Option<Arc<::certificates::SealingKeys>>,
    tokens: auth::TokenCache,
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Deref for Api {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Api {
    /// Puts together what handlers share; streams end at `shutdown`.
    pub(crate) fn new(
        config: &Config,
        store: Arc<dyn Store>,
        engines: EngineOpener,
        fleet: Arc<Fleet>,
        metrics: Arc<Metrics>,
        sealing: Option<Arc<::certificates::SealingKeys>>,
        shutdown: CancellationToken,
    ) -> Self {
        Self(Arc::new(Shared {
            store,
            engines,
            fleet,
            metrics,
            default_registry: config.default_registry.clone(),
            allow_fake_engines: config.allow_fake_engines,
            port_range: config.port_range,
            gateway_tcp_ports: config.gateway_tcp_ports,
            app_url: config.app_url.clone(),
            api_url: config.converge.api_url.clone(),
            sealing,
            tokens: auth::TokenCache::default(),
            requests: Arc::new(Semaphore::new(stack::MAX_REQUESTS)),
            streams: Arc::new(Semaphore::new(stack::MAX_STREAMS)),
            shutdown,
        }))
    }

    /// Where an app is reached, if that is configured.
    fn url_of(&self, app: &App) -> Option<String> {
        let url = self.app_url.as_ref()?.replace("{app}", app.id.as_str());
        if app.config.protocol != Protocol::Tcp {
            return Some(url);
        }
        // The same name leads to the gateways, whatever is spoken there.
        let host = url.split("://").nth(1)?.split(['/', ':']).next()?;
        match app.config.tcp.port {
            0 if app.config.tcp.passthrough => Some(format!("tls://{host}")),
            0 => None,
            port => Some(format!("tcp://{host}:{port}")),
        }
    }
}

/// Every route, each documented where it is handled.
pub(crate) fn router(api: Api) -> Router {
    let with_token = OpenApiRouter::new()
        .routes(routes!(apps::list))
        .routes(routes!(apps::info, apps::remove))
        .routes(routes!(deploy::deploy))
        .routes(routes!(apps::configure))
        .routes(routes!(apps::scale))
        .routes(routes!(apps::restart))
        .routes(routes!(apps::stop))
        .routes(routes!(apps::start))
        .routes(routes!(apps::rollback))
        .routes(routes!(canary::share))
        .routes(routes!(canary::promote))
        .routes(routes!(canary::abort))
        .routes(routes!(apps::releases))
        .routes(routes!(apps::instances))
        .routes(routes!(apps::events))
        .routes(routes!(apps::why))
        .routes(routes!(logs::of_app))
        .routes(routes!(instances::list))
        .routes(routes!(instances::info))
        .routes(routes!(instances::restart))
        .routes(routes!(instances::stats))
        .routes(routes!(logs::of_instance))
        .routes(routes!(hosts::list, hosts::create))
        .routes(routes!(hosts::info, hosts::change, hosts::remove))
        .routes(routes!(hosts::cordon))
        .routes(routes!(hosts::uncordon))
        .routes(routes!(hosts::drain))
        .routes(routes!(operations::list))
        .routes(routes!(operations::info))
        .routes(routes!(events::list))
        .routes(routes!(certificates::list))
        .routes(routes!(certificates::info, certificates::set, certificates::remove))
        .routes(routes!(registries::list))
        .routes(routes!(registries::info, registries::set, registries::remove))
        .route_layer(from_fn_with_state(api.clone(), auth::authenticate));
    let open = OpenApiRouter::new()
        // Bears the instance's own token, not a person's.
        .routes(routes!(instances::heartbeat))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
        .routes(routes!(openapi::document));
    let (router, document) = OpenApiRouter::with_openapi(openapi::frame())
        .merge(with_token)
        .merge(open)
        .split_for_parts();
    openapi::publish(document);
    router
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        // From the outside in: what stands first sees a request first and its answer last.
        .layer(
            ServiceBuilder::new()
                // Outermost, so that every answer, whoever gave it, bears an id and is counted.
                .layer(from_fn_with_state(api.clone(), stack::finish))
                // Before any work is done for a request that can't be admitted.
                .layer(from_fn_with_state(api.clone(), stack::limit))
                // Innermost, so that a panic gives its place back like any other answer.
                .layer(from_fn(stack::catch_panic)),
        )
        .with_state(api)
}

async fn no_such_route() -> ApiError {
    ApiError::new(Code::NotFound, "there is no such route; /openapi.json lists all")
}

async fn no_such_method() -> ApiError {
    ApiError::new(
        Code::MethodNotAllowed,
        "this route does not know that method; /openapi.json lists all",
    )
}
