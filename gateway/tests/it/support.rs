//! A gateway on free ports and a registry that tests feed by hand.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::channel::mpsc;
use gateway::{Config, Deps, Listeners};
use model::AppConfig;
use model::registry::{
    Acknowledgement, EntryKey, RegistryChange, RegistryError, RegistryEvent, RegistryReader, RegistryRevision,
    RegistrySnapshot,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use crate::peers::*;

/// A registry that says what the test says.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    followers: Mutex<Vec<mpsc::Sender<RegistryEvent>>>,
    pub(crate) acks: Mutex<Vec<Acknowledgement>>,
    pub(crate) differences: AtomicU64,
}

#[async_trait]
impl RegistryReader for Feed {
    fn follow(&self) -> mpsc::Receiver<RegistryEvent> {
        let (sender, receiver) = mpsc::channel(4_096);
        self.followers.lock().unwrap().push(sender);
        receiver
    }

    fn resync_differences(&self) -> u64 {
        let differences = self.differences.load(Ordering::Relaxed);
        assert_ne!(differences, u64::MAX, "the test wants a panic");
        differences
    }

    async fn acknowledge(&self, _gateway: &str, ack: &Acknowledgement) -> Result<(), RegistryError> {
        self.acks.lock().unwrap().push(ack.clone());
        Ok(())
    }
}

impl Feed {
    pub(crate) fn say(&self, event: &RegistryEvent) {
        for follower in self.followers.lock().unwrap().iter_mut() {
            follower.try_send(event.clone()).expect("the gateway listens");
        }
    }

    pub(crate) fn is_followed(&self) -> bool {
        !self.followers.lock().unwrap().is_empty()
    }

    pub(crate) fn last_ack(&self) -> Option<Acknowledgement> {
        self.acks.lock().unwrap().last().cloned()
    }
}

pub(crate) fn key(app: &str, version: &str, container: &str) -> EntryKey {
    EntryKey {
        app: app.parse().unwrap(),
        version: version.parse().unwrap(),
        container: container.parse().unwrap(),
    }
}

pub(crate) fn snapshot(
    revision: i64,
    entries: &[(&str, &str, &str, SocketAddr)],
    configs: &[(&str, AppConfig)],
) -> RegistryEvent {
    RegistryEvent::Snapshot(RegistrySnapshot {
        revision: RegistryRevision(revision),
        endpoints: entries
            .iter()
            .map(|(a, v, c, at)| (key(a, v, c), model::Endpoint(*at)))
            .collect(),
        configs: configs.iter().map(|(a, c)| (a.parse().unwrap(), c.clone())).collect(),
        ..RegistrySnapshot::default()
    })
}

pub(crate) fn changes(revision: i64, changes: Vec<RegistryChange>) -> RegistryEvent {
    RegistryEvent::Changes {
        changes,
        revision: RegistryRevision(revision),
        heard: Instant::now(),
    }
}

pub(crate) fn put(app: &str, version: &str, container: &str, at: SocketAddr) -> RegistryChange {
    RegistryChange::Put(key(app, version, container), model::Endpoint(at))
}

pub(crate) fn remove(app: &str, version: &str, container: &str) -> RegistryChange {
    RegistryChange::Remove(key(app, version, container))
}

/// A running gateway.
pub(crate) struct Gateway {
    pub(crate) http: SocketAddr,
    /// Where TLS is spoken, when it is on.
    pub(crate) https: Option<SocketAddr>,
    pub(crate) reload: Arc<Notify>,
    pub(crate) admin: SocketAddr,
    pub(crate) feed: Arc<Feed>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), gateway::Error>>,
}

pub(crate) fn config() -> Config {
    Config {
        drain_delay_s: 0,
        drain_timeout_s: 5,
        // All clients of a test have one address.
        requests_per_second_per_client: 1_000_000,
        request_burst_per_client: 1_000_000,
        ..Config::default()
    }
}

impl Gateway {
    /// With one worker and no word from the registry yet.
    pub(crate) async fn silent(config: Config) -> Self {
        let http = gateway::bind("127.0.0.1:0".parse().unwrap(), config.workers.max(1)).unwrap();
        let tls = match config.tls_listen {
            Some(address) => gateway::bind(address, http.len()).unwrap(),
            None => Vec::new(),
        };
        let https = tls.first().map(|l| l.local_addr().unwrap());
        let reload: Arc<Notify> = Arc::default();
        let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let feed = Arc::new(Feed::default());
        let shutdown = CancellationToken::new();
        let (http_at, admin_at) = (http[0].local_addr().unwrap(), admin.local_addr().unwrap());
        let deps = Deps {
            registry: Arc::clone(&feed) as Arc<dyn RegistryReader>,
            reload: Arc::clone(&reload),
        };
        let listeners = Listeners {
            http,
            tls,
            tcp: Vec::new(),
            admin,
            succession: gateway::Succession::default(),
        };
        let task = tokio::spawn(gateway::run(config, deps, listeners, shutdown.clone()));
        let gateway = Self {
            http: http_at,
            https,
            reload,
            admin: admin_at,
            feed,
            shutdown,
            task,
        };
        until("the gateway follows", || gateway.feed.is_followed()).await;
        gateway
    }

    /// Which has taken these entries and configurations.
    pub(crate) async fn with(
        config: Config,
        entries: &[(&str, &str, &str, SocketAddr)],
        configs: &[(&str, AppConfig)],
    ) -> Self {
        let gateway = Self::silent(config).await;
        gateway.tell(snapshot(1, entries, configs), 1).await;
        gateway
    }

    /// App `hello` at these addresses.
    pub(crate) async fn hello(addresses: &[SocketAddr]) -> Self {
        Self::hello_with(config(), addresses, AppConfig::default()).await
    }

    pub(crate) async fn hello_with(config: Config, addresses: &[SocketAddr], app: AppConfig) -> Self {
        let names: Vec<String> = (0..addresses.len()).map(|i| format!("c{i}")).collect();
        let entries: Vec<_> = addresses
            .iter()
            .zip(&names)
            .map(|(at, c)| ("hello", "1", c.as_str(), *at))
            .collect();
        Self::with(config, &entries, &[("hello", app)]).await
    }

    /// Says `event` and waits until it is acknowledged.
    pub(crate) async fn tell(&self, event: RegistryEvent, revision: i64) {
        self.feed.say(&event);
        until("the gateway acknowledges", || {
            self.feed.last_ack().is_some_and(|a| a.applied.0 >= revision)
        })
        .await;
    }

    /// One request on a connection of its own.
    pub(crate) async fn get(&self, host: &str, path: &str) -> Answer {
        get_from(self.http, host, path).await
    }

    /// Sends the text and reads everything until the gateway closes. Interim answers are left out.
    pub(crate) async fn send(&self, text: &str) -> Answer {
        send_to(self.http, text).await
    }

    pub(crate) async fn admin(&self, path: &str) -> Answer {
        get_from(self.admin, "a", path).await
    }

    /// The value of the metric with exactly these labels.
    pub(crate) async fn metric(&self, line: &str) -> f64 {
        metric_at(self.admin, line).await
    }

    /// Polls until the metric is this.
    pub(crate) async fn reaches(&self, metric: &str, value: f64) {
        let deadline = Instant::now() + LIMIT;
        while self.metric(metric).await != value {
            assert!(Instant::now() < deadline, "{metric} is {value}");
        }
    }
}

/// Polls until `done`, failing after [`LIMIT`].
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// An upstream that answers every request with these bytes and keeps the connection open.
pub(crate) async fn answers(bytes: &'static [u8]) -> (SocketAddr, Arc<AtomicUsize>) {
    upstream(move |mut stream, _| async move {
        let mut buffer = Vec::new();
        while let Ok(Some(_)) = read_request(&mut stream, &mut buffer).await {
            if stream.write_all(bytes).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// A port at which nobody listens.
pub(crate) async fn refusing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}
