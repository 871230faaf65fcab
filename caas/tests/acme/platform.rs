//! Gateway, registry-sync and scheduler in this process, on SQLite and a registry in memory; each can be stopped like a process
//! that is killed.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backends::engine::EngineOptions;
use backends::registry::MemoryRegistry;
use certificates::SealingKeys;
use gateway::{Listeners, Succession};
use model::store::{IntentOutcome, Store};
use model::{Certificate, CertificateOrder, Timestamp};
use scheduler::AcmeConfig;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::pebble::Pebble;

/// Longest wait for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Platform {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) registry: Arc<MemoryRegistry>,
    pub(crate) http: SocketAddr,
    pub(crate) tls: SocketAddr,
    pub(crate) keys: SealingKeys,
    pub(crate) dir: TempDir,
    key_file: PathBuf,
    stop: CancellationToken,
    scheduler: Option<JoinHandle<()>>,
}

impl Platform {
    /// A store and a gateway; no scheduler and no registry-sync yet.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("certificates.key");
        SealingKeys::ensure(&key_file).unwrap();
        let url = format!("sqlite://{}", dir.path().join("caas.db").display());
        backends::store::migrate(&url).await.unwrap();
        let store = backends::store::open(&url).await.unwrap();
        let registry = MemoryRegistry::new();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (http, tls) = (gateway::bind(any, 1).unwrap(), gateway::bind(any, 1).unwrap());
        let stop = CancellationToken::new();
        let mut this = Self {
            store,
            registry: Arc::clone(&registry),
            http: http[0].local_addr().unwrap(),
            tls: tls[0].local_addr().unwrap(),
            keys: SealingKeys::load(&key_file).unwrap(),
            key_file: key_file.clone(),
            dir,
            stop: stop.clone(),
            scheduler: None,
        };
        let config = gateway::Config {
            tls_listen: Some(this.tls),
            certificates_key_file: Some(key_file),
            drain_delay_s: 0,
            ..gateway::Config::default()
        };
        let deps = gateway::Deps {
            registry,
            reload: Arc::default(),
        };
        let listeners = Listeners {
            http,
            tls,
            tcp: Vec::new(),
            admin: std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
            succession: Succession::default(),
        };
        tokio::spawn(async move { gateway::run(config, deps, listeners, stop).await.unwrap() });
        this.scheduler = None;
        this
    }

    pub(crate) async fn sync(&self) {
        let deps = registry_sync::Deps {
            store: Arc::clone(&self.store) as _,
            registry: Arc::clone(&self.registry) as _,
        };
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let config = registry_sync::Config::default();
            registry_sync::run(config, deps, admin, stop).await.unwrap();
        });
    }

    /// Starts the scheduler.
    pub(crate) async fn schedule(&mut self, acme: AcmeConfig) {
        let mut config = scheduler::Config {
            certificates_key_file: Some(self.key_file.clone()),
            admin_token_file: Some(self.dir.path().join("admin.token")),
            acme,
            ..scheduler::Config::default()
        };
        config.converge.scheduler_id = "the-one".into();
        let deps = scheduler::Deps {
            store: Arc::clone(&self.store),
            engines: backends::engine::opener(EngineOptions::default()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stop = self.stop.clone();
        self.scheduler = Some(tokio::spawn(async move {
            scheduler::run(config, deps, listener, stop).await.unwrap();
        }));
    }

    /// Ends the scheduler as a kill does: in the middle of whatever it does.
    pub(crate) async fn kill_scheduler(&mut self) {
        let scheduler = self.scheduler.take().unwrap();
        scheduler.abort();
        let _ = scheduler.await;
    }

    /// An app with this domain.
    pub(crate) async fn app(&self, id: &str, domain: &str) {
        let mut intent = model::contract::store::deploy(id);
        intent.app.config.domains = vec![domain.to_owned()];
        intent.app.instances = 0;
        let done = self.store.intent_commit(&intent, Timestamp::now()).await.unwrap();
        assert!(matches!(done, IntentOutcome::Committed(..)), "{done:?}");
    }

    /// Waits for a certificate that `wanted` takes.
    pub(crate) async fn certificate(&self, pebble: &Pebble, wanted: impl Fn(&Certificate) -> bool) -> Certificate {
        self.until(pebble, "the certificate", async || {
            let all = self.store.certificate_list().await.unwrap();
            all.into_iter().find(|c| wanted(c))
        })
        .await
    }

    /// Waits for an order that `wanted` takes.
    pub(crate) async fn order(&self, pebble: &Pebble, wanted: impl Fn(&CertificateOrder) -> bool) -> CertificateOrder {
        self.until(pebble, "the order", async || {
            let all = self.store.order_list().await.unwrap();
            all.into_iter().find(|o| wanted(o))
        })
        .await
    }

    async fn until<T>(&self, pebble: &Pebble, what: &str, look: impl AsyncFn() -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(found) = look().await {
                return found;
            }
            if Instant::now() >= deadline {
                let state: Vec<Box<dyn Debug>> = vec![
                    Box::new(self.store.order_list().await),
                    Box::new(self.store.certificate_list().await),
                ];
                panic!("{what} does not come: {state:#?}\n{}", pebble.log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the gateway answers by https at this host, to a client that trusts only this root.
    pub(crate) async fn https(&self, host: &str, root: &[u8]) -> Result<u16, reqwest::Error> {
        let root = reqwest::Certificate::from_pem(root)?;
        let client = reqwest::Client::builder()
            .tls_certs_only([root])
            .resolve(host, self.tls)
            .build()?;
        let url = format!("https://{host}:{}/", self.tls.port());
        Ok(client.get(url).send().await?.status().as_u16())
    }

    /// Waits until https is served at this host with a certificate of this root.
    pub(crate) async fn serves(&self, pebble: &Pebble, host: &str) {
        let root = pebble.root().await;
        let served = self.until(pebble, "https", async || self.https(host, &root).await.ok());
        assert_eq!(served.await, 503, "it has no instance");
    }

    /// The newest events' sentences.
    pub(crate) async fn told(&self) -> String {
        let events = self.store.event_list(0, None, 1_000).await.unwrap();
        let all: Vec<String> = events.into_iter().map(|e| e.event.message).collect();
        all.join("\n")
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
