//! Certificates that come with the registry, their keys sealed.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use certificates::SealingKeys;
use gateway::Config;
use model::certificate::about_key;
use model::registry::{RegistryChange, RegistryEvent};
use model::{AppConfig, CertificateName, SealedCertificate};
use rustls::pki_types::CertificateDer;
use rustls::version::TLS13;

use crate::support::*;
use crate::tls_support::*;

/// Settings of a gateway that has certificates from the registry only, and its keys.
fn config_with_keys(dir: &Path) -> (Config, SealingKeys) {
    let path = dir.join("certificates.key");
    SealingKeys::ensure(&path).unwrap();
    let keys = SealingKeys::load(&path).unwrap();
    let config = Config {
        tls_listen: Some("127.0.0.1:0".parse().unwrap()),
        certificates_key_file: Some(path),
        ..config()
    };
    (config, keys)
}

/// As the scheduler seals it.
fn sealed(keys: &SealingKeys, name: &str, chain: &str, key: &str) -> RegistryChange {
    let name: CertificateName = name.parse().unwrap();
    let key = keys.seal(&about_key(&name), key.as_bytes()).unwrap();
    RegistryChange::Certificate(name, SealedCertificate::new(chain, key))
}

/// Waits until `name` gets this one.
async fn served(client: &Client, at: SocketAddr, name: &str, wanted: &CertificateDer<'static>) {
    let deadline = Instant::now() + LIMIT;
    while client.certificate(at, name).await.ok().as_ref() != Some(wanted) {
        assert!(Instant::now() < deadline, "{name} does not get its certificate");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_served_swapped_without_a_lost_request_and_go() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let (config, keys) = config_with_keys(dir.path());
    let app = Recorder::start("one").await;
    let gateway = Gateway::hello_with(config, &[app.at], AppConfig::default()).await;
    let at = gateway.https.unwrap();
    let client = authority.browser();
    assert!(
        client.certificate(at, "hello.localhost").await.is_err(),
        "nothing serves yet"
    );
    let (chain, key) = authority.issue(&["hello.localhost"]);
    gateway
        .tell(changes(2, vec![sealed(&keys, "shop", &chain, &key)]), 2)
        .await;
    served(&client, at, "hello.localhost", &der(&chain)).await;
    let line = "caas_gateway_certificate_expires_seconds{certificate=\"registry/shop\"}";
    assert!(gateway.metric(line).await > 1e9);

    let (stop, done, failed) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut tasks = Vec::new();
    for kept in [true, false] {
        let (client, stop, done, failed) = (client.clone(), stop.clone(), done.clone(), failed.clone());
        tasks.push(tokio::spawn(async move {
            let mut stream = client.connect(at, "hello.localhost").await.unwrap();
            while !stop.load(Ordering::Relaxed) {
                if !kept {
                    match client.connect(at, "hello.localhost").await {
                        Ok(new) => stream = new,
                        Err(_) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                    }
                }
                let answer = get(&mut stream, "hello.localhost", "/").await;
                let counter = if answer.status == 200 { &done } else { &failed };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let fresh = || authority.client(&[&TLS13], &[]);
    let mut last = der(&chain);
    for n in 0..5 {
        // One that nobody here can open leaves the one that serves.
        let (chain, key) = authority.issue(&["hello.localhost"]);
        let stranger = SealingKeys::parse(&"7".repeat(64)).unwrap();
        let bad = gateway.metric("caas_gateway_certificates_bad_total").await;
        gateway
            .tell(
                changes(10 * n + 3, vec![sealed(&stranger, "shop", &chain, &key)]),
                10 * n + 3,
            )
            .await;
        let deadline = Instant::now() + LIMIT;
        while gateway.metric("caas_gateway_certificates_bad_total").await == bad {
            assert!(Instant::now() < deadline, "the bad one is counted");
        }
        assert_eq!(fresh().certificate(at, "hello.localhost").await.unwrap(), last);
        last = der(&chain);
        gateway
            .tell(
                changes(10 * n + 4, vec![sealed(&keys, "shop", &chain, &key)]),
                10 * n + 4,
            )
            .await;
        served(&fresh(), at, "hello.localhost", &last).await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let (done, failed) = (done.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    assert!(failed == 0 && done > 20, "{failed} of {done} failed");

    let gone = RegistryChange::CertificateRemove("shop".parse().unwrap());
    gateway.tell(changes(99, vec![gone]), 99).await;
    let deadline = Instant::now() + LIMIT;
    while fresh().certificate(at, "hello.localhost").await.is_ok() {
        assert!(Instant::now() < deadline, "it is gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_goes_first_and_the_registry_fills_the_rest() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let (with_keys, keys) = config_with_keys(dir.path());
    authority.put("mine", &["hello.localhost"]);
    let config = Config {
        certificates_key_file: with_keys.certificates_key_file,
        ..authority.config()
    };
    let app = Recorder::start("one").await;
    let gateway = Gateway::hello_with(config, &[app.at], AppConfig::default()).await;
    let at = gateway.https.unwrap();
    let (chain, key) = authority.issue(&["hello.localhost", "shop.test"]);
    gateway
        .tell(changes(2, vec![sealed(&keys, "shop", &chain, &key)]), 2)
        .await;
    let client = authority.browser();
    served(&client, at, "shop.test", &der(&chain)).await;
    let mine = std::fs::read_to_string(authority.dir.path().join("mine.crt")).unwrap();
    assert_eq!(client.certificate(at, "hello.localhost").await.unwrap(), der(&mine));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_registry_serves_those_of_the_snapshot_file() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let (config, keys) = config_with_keys(dir.path());
    let file = dir.path().join("registry.json");
    let config = Config {
        snapshot_file: Some(file.clone()),
        ..config
    };
    let app = Recorder::start("one").await;
    let gateway = Gateway::hello_with(config.clone(), &[app.at], AppConfig::default()).await;
    let (chain, key) = authority.issue(&["hello.localhost"]);
    gateway
        .tell(changes(2, vec![sealed(&keys, "shop", &chain, &key)]), 2)
        .await;
    let written = || std::fs::read_to_string(&file).unwrap_or_default();
    until("the file is written", || written().contains("BEGIN CERTIFICATE")).await;
    let text = written();
    assert!(
        !text.contains("PRIVATE KEY") && text.contains("\"key\":\"v1."),
        "the key is sealed there too"
    );
    drop(gateway);

    let gateway = Gateway::silent(config.clone()).await;
    assert_eq!(gateway.admin("/ready").await.status, 503);
    gateway.feed.say(&RegistryEvent::Disconnected("not there".into()));
    let deadline = Instant::now() + LIMIT;
    while gateway.admin("/ready").await.status != 200 {
        assert!(Instant::now() < deadline);
    }
    // Ready means that the first handshake succeeds.
    let answer = authority
        .browser()
        .get(gateway.https.unwrap(), "hello.localhost", "/")
        .await;
    assert_eq!(answer.status, 200);

    let bad = Config {
        certificates_key_file: Some(dir.path().join("none")),
        ..config
    };
    let listeners = gateway::Listeners {
        http: gateway::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap(),
        tls: gateway::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap(),
        tcp: Vec::new(),
        admin: std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
        succession: gateway::Succession::default(),
    };
    let deps = gateway::Deps {
        registry: gateway.feed.clone(),
        reload: Arc::default(),
    };
    let error = gateway::run(bad, deps, listeners, tokio_util::sync::CancellationToken::new()).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("gateway.certificates_key_file"), "{error}");
}
