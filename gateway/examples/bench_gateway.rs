//! The gateway in front of fixed backends, for load tests: no registry.
//!
//! Environment: `LISTEN` (port, default 18080), `BACKEND_ADDRS` (host:port list), `HOSTS_FILE` (one host name per line, all
//! under one domain; default `app.gateway.example`), `THREADS` (default 1), `GATEWAY_CONFIG` (JSON, optional), `APPS` (1: each
//! host is an app with endpoints and connections of its own; else all are custom domains of one app, as other proxies map
//! them to one backend), `CHANGES` (default 0: so many endpoints of the second half of the apps go or come back per second).

extern crate caas_gateway as gateway;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::SinkExt as _;
use futures::channel::mpsc;
use gateway::{Config, Deps, Listeners};
use model::AppConfig;
use model::registry::{
    Acknowledgement, EntryKey, RegistryChange, RegistryError, RegistryEvent, RegistryReader, RegistryRevision,
    RegistrySnapshot,
};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often changes come: a registry hands them on in batches.
const BATCH: Duration = Duration::from_millis(10);

/// A registry in which only so many endpoints per second change.
#[derive(Debug)]
struct Fixed {
    snapshot: RegistrySnapshot,
    changes: usize,
}

#[async_trait]
impl RegistryReader for Fixed {
    fn follow(&self) -> mpsc::Receiver<RegistryEvent> {
        let (mut sender, receiver) = mpsc::channel(64);
        let snapshot = self.snapshot.clone();
        let each = self.changes * BATCH.as_millis() as usize / 1_000;
        tokio::spawn(async move {
            let _ = sender.send(RegistryEvent::Snapshot(snapshot.clone())).await;
            if each == 0 {
                // Open for ever: nothing changes.
                return std::future::pending().await;
            }
            let moving: Vec<_> = snapshot.endpoints.iter().skip(snapshot.endpoints.len() / 2).collect();
            // What goes comes back some batches later.
            let back = moving.iter().cycle().skip(moving.len() - moving.len().min(100));
            let changes = moving.iter().zip(back).flat_map(|((gone, _), (back, endpoint))| {
                [
                    RegistryChange::Remove((*gone).clone()),
                    RegistryChange::Put((*back).clone(), **endpoint),
                ]
            });
            let mut changes = changes.cycle();
            let mut revision = snapshot.revision;
            let mut pace = tokio::time::interval(BATCH);
            loop {
                pace.tick().await;
                let changes: Vec<_> = changes.by_ref().take(each).collect();
                revision.0 += i64::try_from(changes.len()).unwrap_or_default();
                if sender
                    .send(RegistryEvent::Changes {
                        changes,
                        revision,
                        heard: std::time::Instant::now(),
                    })
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        receiver
    }

    async fn acknowledge(&self, _gateway: &str, _ack: &Acknowledgement) -> Result<(), RegistryError> {
        Ok(())
    }
}

fn var(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backends = var("BACKEND_ADDRS", "127.0.0.1:19001");
    let hosts = match std::env::var("HOSTS_FILE") {
        Ok(path) => std::fs::read_to_string(path)?,
        Err(_) => "app.gateway.example".to_owned(),
    };
    let own = var("APPS", "0") == "1";
    let mut domain = "bench.internal".to_owned();
    let mut apps = Vec::new();
    let mut all = AppConfig::default();
    for host in hosts.split_whitespace() {
        if own {
            let (app, rest) = host.split_once('.').ok_or("a host without a domain")?;
            domain = rest.to_owned();
            apps.push(app);
        } else {
            all.domains.push(host.to_owned());
        }
    }
    let mut configs = BTreeMap::new();
    if !own {
        apps.push("bench");
        configs.insert("bench".parse()?, all);
    }
    let mut endpoints = BTreeMap::new();
    for app in apps {
        for (i, backend) in backends.split(',').enumerate() {
            let key = EntryKey {
                app: app.parse()?,
                version: "1".parse()?,
                container: format!("c{i}").parse()?,
            };
            endpoints.insert(key, backend.parse()?);
        }
    }
    let mut config: Config = serde_json::from_str(&var("GATEWAY_CONFIG", "{}"))?;
    config.domain = domain;
    // All load comes from one address and is more than one client's should be: limited as clients are, but with a higher number.
    config.requests_per_second_per_client = 1_000_000;
    config.request_burst_per_client = 1_000_000;
    config.workers = var("THREADS", "1").parse()?;
    config.drain_delay_s = 0;
    config.drain_timeout_s = 1;
    let listen = format!("127.0.0.1:{}", var("LISTEN", "18080")).parse()?;
    let listeners = Listeners {
        http: gateway::bind(listen, config.worker_count())?,
        tls: match config.tls_listen {
            Some(address) => gateway::bind(address, config.worker_count())?,
            None => Vec::new(),
        },
        tcp: Vec::new(),
        admin: std::net::TcpListener::bind(var("ADMIN", "127.0.0.1:0"))?,
        succession: gateway::Succession::default(),
    };
    let snapshot = RegistrySnapshot {
        revision: RegistryRevision(1),
        endpoints,
        configs,
        ..RegistrySnapshot::default()
    };
    let deps = Deps {
        registry: Arc::new(Fixed {
            snapshot,
            changes: var("CHANGES", "0").parse()?,
        }),
        reload: Arc::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let signalled = shutdown.clone();
        tokio::spawn(async move {
            use tokio::signal::unix::{SignalKind, signal};
            if let Ok(mut terminate) = signal(SignalKind::terminate()) {
                terminate.recv().await;
            }
            signalled.cancel();
        });
        gateway::run(config, deps, listeners, shutdown).await
    })?;
    Ok(())
}
