//! The platform's HTTP API as a client sees it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use serde_json::{Value, json};

use crate::load::{self, Http};
use crate::wait;

/// A client with a token; with several schedulers it asks the next one when one can't be reached.
#[derive(Clone, Debug)]
pub struct Api {
    /// Where the schedulers answer.
    pub addresses: Vec<SocketAddr>,
    /// Bearer token.
    pub token: String,
    client: Http,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// `ETag`
    pub etag: String,
    /// The body; a string when it is no JSON.
    pub body: Value,
}

impl Reply {
    /// The body if the status is 2xx.
    pub fn ok(self) -> Result<Value> {
        if (200..300).contains(&self.status) {
            Ok(self.body)
        } else {
            bail!("{} {}", self.status, self.body)
        }
    }

    /// The problem's `code`.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

impl Api {
    /// A client of the schedulers at `addresses`.
    pub fn new(addresses: Vec<SocketAddr>, token: &str) -> Self {
        Self {
            addresses,
            token: token.into(),
            client: load::http(),
        }
    }

    /// The same API with another token.
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            token: token.into(),
            ..self.clone()
        }
    }

    /// One call of `/api/v1{path}`.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Reply> {
        self.call_with(method, path, body, &[]).await
    }

    /// One call with further headers. Every address is tried until one can be reached.
    pub async fn call_with(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Result<Reply> {
        let mut last = None;
        for address in &self.addresses {
            let url = format!("http://{address}/api/v1{path}");
            let mut request = Request::builder().method(method).uri(&url);
            request = request.header("authorization", format!("Bearer {}", self.token));
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let body = match body {
                Some(body) => {
                    request = request.header("content-type", "application/json");
                    body.to_string()
                }
                None => String::new(),
            };
            let request = request.body(Full::from(body))?;
            let answer = tokio::time::timeout(Duration::from_secs(90), self.client.request(request)).await;
            match answer.with_context(|| format!("{method} {path}: no answer within 90 s"))? {
                Ok(response) => {
                    let status = response.status().as_u16();
                    let etag = response
                        .headers()
                        .get("etag")
                        .and_then(|v| v.to_str().ok())
                        .unwrap_or_default()
                        .to_owned();
                    let text = response.into_body().collect().await?.to_bytes();
                    let text = String::from_utf8_lossy(&text).into_owned();
                    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
                    return Ok(Reply { status, etag, body });
                }
                Err(error) if error.is_connect() => last = Some(error),
                Err(error) => return Err(error).context(format!("{method} {path}")),
            }
        }
        Err(last.context("no address")?).context(format!("{method} {path}"))
    }

    /// `GET`, with a body that must be there.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call("GET", path, None).await?.ok()
    }

    /// Asks for long work and waits until it is final; the final operation.
    pub async fn work(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self
            .call(method, path, body)
            .await?
            .ok()
            .with_context(|| format!("{method} {path}"))?;
        let operation = &answer["operation"];
        let id = operation["id"]
            .as_str()
            .with_context(|| format!("no operation in {answer}"))?
            .to_owned();
        self.finished(&id, Duration::from_secs(90)).await
    }

    /// The same, and it must have succeeded.
    pub async fn done(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let operation = self.work(method, path, body).await?;
        if operation["state"] != "succeeded" {
            bail!("{method} {path}: {operation:#}");
        }
        Ok(operation)
    }

    /// Waits until an operation is final, asking a scheduler that lives.
    pub async fn finished(&self, id: &str, limit: Duration) -> Result<Value> {
        self.finished_every(Duration::from_millis(50), id, limit).await
    }

    /// The same, asking only so often.
    pub async fn finished_every(&self, poll: Duration, id: &str, limit: Duration) -> Result<Value> {
        let path = format!("/operations/{id}");
        let (operation, _) = wait::until_every(poll, &format!("end of operation {id}"), limit, async || {
            let operation = self.get(&path).await.map_err(|e| format!("{e:#}"))?;
            match operation["state"].as_str() {
                Some("succeeded" | "failed" | "superseded") => Ok(operation),
                _ => Err(format!("{operation}")),
            }
        })
        .await?;
        Ok(operation)
    }

    /// Deploys `app:version` of `image` and waits; the final operation.
    pub async fn deploy(&self, app: &str, version: &str, image: &str, instances: u32, spec: Value) -> Result<Value> {
        let body = deploy_body(version, image, instances, spec);
        self.work("POST", &format!("/apps/{app}/deploy"), Some(&body)).await
    }

    /// The same, and it must have succeeded.
    pub async fn deployed(&self, app: &str, version: &str, image: &str, instances: u32, spec: Value) -> Result<Value> {
        let operation = self.deploy(app, version, image, instances, spec).await?;
        if operation["state"] != "succeeded" {
            bail!("deploy of {app}:{version}: {operation:#}");
        }
        Ok(operation)
    }

    /// Instances of an app that are not released.
    pub async fn instances(&self, app: &str) -> Result<Vec<Value>> {
        let answer = self.get(&format!("/apps/{app}/instances")).await?;
        let list = answer
            .as_array()
            .or_else(|| answer["instances"].as_array())
            .or_else(|| answer["items"].as_array());
        let list = list.with_context(|| format!("no list of instances: {answer}"))?;
        Ok(list.iter().filter(|i| i["released_at"].is_null()).cloned().collect())
    }
}

/// The body of a deploy with everything given.
pub fn deploy_body(version: &str, image: &str, instances: u32, spec: Value) -> Value {
    let mut body = json!({"version": version, "image": image, "instances": instances});
    if !spec.is_null() {
        body["spec"] = spec;
    }
    body
}
