//! A look at a Docker engine from beside the platform: over its unix socket, which works even when its network is cut.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// A container as the engine shows it.
#[derive(Clone, Debug)]
pub struct Container {
    /// The engine's id.
    pub id: String,
    /// `running`, `exited`, `created`, …
    pub state: String,
    /// `caas.app`
    pub app: String,
    /// `caas.instance`
    pub instance: String,
    /// `caas.platform`
    pub platform: String,
    /// Published host ports.
    pub ports: Vec<u16>,
}

/// One call of the engine's API.
pub async fn call(socket: &Path, method: &str, path: &str) -> Result<(u16, Value)> {
    let work = async {
        let stream = tokio::net::UnixStream::connect(socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "docker")
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        driver.abort();
        anyhow::Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    };
    tokio::time::timeout(Duration::from_secs(15), work)
        .await
        .map_err(|_| anyhow!("{method} {path}: no answer within 15 s"))?
        .with_context(|| format!("{method} {path} at {}", socket.display()))
}

/// All containers with our labels, running or not.
pub async fn containers(socket: &Path) -> Result<Vec<Container>> {
    let (status, list) = call(socket, "GET", "/containers/json?all=true").await?;
    if status != 200 {
        bail!("list of containers: {status} {list}");
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = list
        .as_array()
        .into_iter()
        .flatten()
        .filter(|c| c["Labels"]["caas.platform"].is_string());
    Ok(found
        .map(|c| Container {
            id: text(&c["Id"]),
            state: text(&c["State"]),
            app: text(&c["Labels"]["caas.app"]),
            instance: text(&c["Labels"]["caas.instance"]),
            platform: text(&c["Labels"]["caas.platform"]),
            ports: c["Ports"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|p| p["PublicPort"].as_u64()?.try_into().ok())
                .collect(),
        })
        .collect())
}

/// The pid of a container's first process, as seen from the engine.
pub async fn inspect(socket: &Path, id: &str) -> Result<Value> {
    let (status, container) = call(socket, "GET", &format!("/containers/{id}/json")).await?;
    if status != 200 {
        bail!("container {id}: {status} {container}");
    }
    Ok(container)
}
