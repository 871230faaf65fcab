//! The router over a real store (SQLite) and fake engines; no loop runs beside it.

mod apps;
mod bad_input;
mod canary;
mod certificates;
mod document;
mod hosts;
mod streams;
mod tcp;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use backends::engine::{EngineOptions, FakeEngine};
use http_body_util::BodyExt as _;
use model::Timestamp;
use model::store::{Store, Token};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{Api, router};
use crate::Config;
use crate::converge::Fleet;
use crate::metrics::Metrics;

const TOKEN: &str = "caas_testtest_0123456789012345678901234567890123456789";
static WORLDS: AtomicUsize = AtomicUsize::new(0);

struct World {
    store: Arc<dyn Store>,
    router: Router,
    name: String,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

/// An answer, read whole.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{:#}", self.body);
        self
    }

    /// A problem of that code, complete.
    #[track_caller]
    fn problem(self, status: u16, code: &str) -> Self {
        let this = self.is(status);
        assert_eq!(this.body["code"], code, "{:#}", this.body);
        assert_eq!(this.headers["content-type"], "application/problem+json");
        assert_eq!(this.body["status"], status);
        assert_eq!(this.body["request_id"], this.headers["x-request-id"].to_str().unwrap());
        assert!(!this.body["detail"].as_str().unwrap().is_empty());
        this
    }

    #[track_caller]
    fn field(self, field: &str) -> Self {
        assert_eq!(self.body["field"], field, "{:#}", self.body);
        self
    }

    fn etag(&self) -> String {
        self.headers["etag"].to_str().unwrap().to_owned()
    }
}

impl World {
    async fn new() -> Self {
        Self::with(Config {
            allow_fake_engines: true,
            app_url: Some("http://{app}.test/".into()),
            ..Config::default()
        })
        .await
    }

    async fn with(config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("store.db").display());
        backends::store::migrate(&url).await.unwrap();
        let store = backends::store::open(&url).await.unwrap();
        let token = Token {
            id: "testtest".into(),
            name: "tester".into(),
            secret_hash: hex::encode(Sha256::digest(&TOKEN[14..])),
            created_at: Timestamp::now(),
        };
        store.token_put(&token).await.unwrap();
        let load = |path: &std::path::PathBuf| Arc::new(::certificates::SealingKeys::load(path).unwrap());
        let sealing = config.certificates_key_file.as_ref().map(load);
        let engines = backends::engine::opener(EngineOptions::default());
        let fleet = Fleet::new(Arc::clone(&store), Arc::clone(&engines));
        let stop = CancellationToken::new();
        let api = Api::new(
            &config,
            Arc::clone(&store),
            engines,
            fleet,
            Arc::new(Metrics::new()),
            sealing,
            stop.clone(),
        );
        let n = WORLDS.fetch_add(1, Ordering::Relaxed);
        Self {
            store,
            router: router(api),
            name: format!("api-{}-{n}", std::process::id()),
            stop,
            _dir: dir,
        }
    }

    /// A world with one host.
    async fn with_host() -> Self {
        let world = Self::new().await;
        world.post("/hosts", &world.host("h1")).await.is(201);
        world
    }

    fn host(&self, name: &str) -> Value {
        json!({"name": name, "address": "127.0.0.1", "engine": format!("fake://{}-{name}", self.name), "memory_mb": 1000})
    }

    fn fake(&self, host: &str) -> Arc<FakeEngine> {
        FakeEngine::named(&format!("{}-{host}", self.name))
    }

    async fn raw(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let path = if path.starts_with("/healthz") || path.starts_with("/metrics") || path.starts_with("/openapi") {
            path.to_owned()
        } else {
            format!("/api/v1{path}")
        };
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", format!("Bearer {TOKEN}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.raw(request.body(body.into()).unwrap()).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[], body.to_string()).await
    }

    async fn deploy(&self, app: &str, body: Value) -> Answer {
        self.post(&format!("/apps/{app}/deploy"), &body).await
    }
}
