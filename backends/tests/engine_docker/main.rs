//! Docker as an engine, on real daemons: the port's contract and each of Docker's surprising answers.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig, PortBinding};
use bollard::query_parameters::CreateContainerOptions;
use model::contract::engine as contract;
use model::engine::{ContainerStatus, Engine, LaunchSpec};
use model::{ContainerId, PlatformId};
use tokio::sync::OnceCell;

mod daemon;
#[path = "../support/dockerhost.rs"]
mod dockerhost;
mod launch;
mod life;
use dockerhost::{DockerHost, fixture, with_image};

const PATIENCE: Duration = Duration::from_secs(20);

/// The host that all tests share which do not harm it. `None`: Docker can't be run here.
async fn shared() -> Option<&'static DockerHost> {
    static HOST: OnceCell<Option<DockerHost>> = OnceCell::const_new();
    let boot = || async {
        if dockerhost::missing().is_some() {
            return None;
        }
        let host = tokio::task::spawn_blocking(DockerHost::start).await.unwrap();
        Some(with_image(host).await)
    };
    HOST.get_or_init(boot).await.as_ref()
}

async fn ended(engine: &dyn Engine, id: &ContainerId) -> ContainerStatus {
    let since = Instant::now();
    loop {
        match engine.inspect(id).await.unwrap().status {
            ended @ ContainerStatus::Exited { .. } => return ended,
            other => assert!(since.elapsed() < PATIENCE, "still {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn http_status(host: &DockerHost, port: u16) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect((host.address, port)).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

async fn served(host: &DockerHost, port: u16) {
    let since = Instant::now();
    while !matches!(http_status(host, port).await.as_deref(), Ok("HTTP/1.1 200 OK")) {
        assert!(since.elapsed() < PATIENCE, "port {port} does not answer");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn clean(engine: &dyn Engine, platform: &PlatformId) {
    for container in engine.list(platform).await.unwrap() {
        engine.remove(&container.id).await.unwrap();
    }
}

fn labels(spec: &LaunchSpec) -> HashMap<String, String> {
    [
        ("caas.platform", spec.platform.to_string()),
        ("caas.app", spec.app.to_string()),
        ("caas.version", spec.version.to_string()),
        ("caas.instance", spec.instance.to_string()),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into()
}

fn name(spec: &LaunchSpec) -> String {
    format!("caas-{}-{}", spec.app, spec.instance)
}

async fn raw_create(docker: &Docker, spec: &LaunchSpec, labels: HashMap<String, String>) -> String {
    let binding = PortBinding {
        host_ip: Some(spec.host_ip.to_string()),
        host_port: Some(spec.host_port.to_string()),
    };
    let body = ContainerCreateBody {
        image: Some(spec.image.clone()),
        cmd: Some(spec.command.clone()),
        labels: Some(labels),
        // Docker publishes only what is exposed, whatever is bound.
        exposed_ports: Some(vec!["8080/tcp".to_owned()]),
        host_config: Some(HostConfig {
            port_bindings: Some(HashMap::from([("8080/tcp".to_owned(), Some(vec![binding]))])),
            ..Default::default()
        }),
        ..Default::default()
    };
    let options = CreateContainerOptions {
        name: Some(name(spec)),
        ..Default::default()
    };
    docker.create_container(Some(options), body).await.unwrap().id
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_contract() {
    let Some(host) = shared().await else { return };
    contract::all(&fixture(host, 20_000)).await;
}
