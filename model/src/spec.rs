//! What an app asks for: [`ReleaseSpec`] is what its containers are made from (fixed per release).
//! How traffic reaches them is [`crate::AppConfig`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::Protocol;
use crate::{AppId, Version};

/// One field that can't be accepted: where it is (JSON pointer) and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{field}: {message}")]
pub struct SpecError {
    /// JSON pointer to the field, such as `/memory_mb`.
    pub field: String,
    /// One sentence: what is wrong and what would be right.
    pub message: String,
}

impl SpecError {
    /// An error at `field` (a JSON pointer).
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

/// What the containers of a release are made from. Immutable once released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReleaseSpec {
    /// Full image reference `{registry}/{appId}:{version}`; the scheduler fills in the default registry.
    pub image: String,
    /// The port on which the app listens inside its container. 1-65535, default 8080.
    pub port: u16,
    /// Memory limit in MiB, also the limit of memory + swap. 6-1,048,576, default 256.
    pub memory_mb: u32,
    /// Docker's relative CPU weight (`--cpu-shares`). 2-262,144, default 1024 (one share of a core).
    pub cpu_weight: u32,
    /// Most processes and threads in the container. 1-100,000, default 512.
    pub pids_limit: u32,
    /// Environment of the container; names `[A-Za-z_][A-Za-z0-9_]*`, not beginning with `CAAS_`.
    pub env: BTreeMap<String, String>,
    /// Arguments in place of the image's command; empty: the image's own.
    pub command: Vec<String>,
    /// How registry-sync finds out whether an instance is alive.
    pub health: HealthCheck,
    /// What happens to an instance that exits or stays unhealthy.
    pub on_failure: OnFailure,
    /// On which hosts instances may be placed.
    pub placement: Placement,
    /// How a new release takes over from the old one.
    pub update: Update,
    /// Seconds between SIGTERM and SIGKILL. 0-3,600, default 10.
    pub stop_grace_s: u32,
    /// Most seconds that a withdrawn instance may finish its open requests before SIGTERM. 0-3,600, default 30.
    pub drain_timeout_s: u32,
}

impl Default for ReleaseSpec {
    fn default() -> Self {
        Self {
            image: String::new(),
            port: 8080,
            memory_mb: 256,
            cpu_weight: 1024,
            pids_limit: 512,
            env: BTreeMap::new(),
            command: Vec::new(),
            health: HealthCheck::default(),
            on_failure: OnFailure::default(),
            placement: Placement::default(),
            update: Update::default(),
            stop_grace_s: 10,
            drain_timeout_s: 30,
        }
    }
}

/// How an instance proves that it is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthCheck {
    /// What is tried. Default `http`; of an app with protocol TCP `tcp`, unless `path` is another than the default.
    pub kind: ProbeKind,
    /// Path of the HTTP probe. Default `/_ping`.
    pub path: String,
    /// Milliseconds between probes of a running instance. 200-3,600,000, default 5,000.
    pub interval_ms: u32,
    /// Milliseconds until a probe without an answer has failed. 50-60,000, default 2,000.
    pub timeout_ms: u32,
    /// Failed probes in a row that make a running instance unhealthy. 1-100, default 3.
    pub unhealthy_after: u32,
    /// Good probes in a row that make an unhealthy instance healthy again. 1-100, default 1.
    pub healthy_after: u32,
    /// Seconds that a new instance has to become healthy. 1-3,600, default 60.
    pub grace_s: u32,
    /// With `kind = "heartbeat"`: seconds without a beat that count as one failed probe. 1-3,600, default 15.
    pub heartbeat_timeout_s: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            kind: ProbeKind::Http,
            path: "/_ping".into(),
            interval_ms: 5_000,
            timeout_ms: 2_000,
            unhealthy_after: 3,
            healthy_after: 1,
            grace_s: 60,
            heartbeat_timeout_s: 15,
        }
    }
}

impl HealthCheck {
    /// What is tried of an app that speaks `protocol`: one that speaks TCP has no `/_ping`, so where nothing else was said a
    /// connection is proof enough.
    pub fn suited_to(&self, protocol: Protocol) -> Self {
        let mut suited = self.clone();
        if protocol == Protocol::Tcp && self.kind == ProbeKind::Http && self.path == Self::default().path {
            suited.kind = ProbeKind::Tcp;
        }
        suited
    }
}

/// The kinds of proof of life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    /// `GET path` answers 2xx. Without a route at the default path (404) it counts as alive and is shown as assumed.
    #[default]
    Http,
    /// The port accepts a connection.
    Tcp,
    /// The app itself reports over the API (`PUT /api/v1/instances/{id}/heartbeat`).
    Heartbeat,
    /// A running container is enough.
    None,
}

/// What follows when an instance exits or stays unhealthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// A new instance is started, possibly elsewhere; the failed one is removed.
    #[default]
    Replace,
    /// The same container is restarted where it is.
    Restart,
    /// Nothing is done; it is shown as failed.
    None,
}

/// Which of the fitting hosts is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The host with the most memory neither reserved nor asked for.
    #[default]
    MostFreeMemory,
    /// The host whose CPUs are the most idle.
    MostIdleCpu,
}

/// On which hosts instances may be placed, and which is preferred.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Placement {
    /// The score that decides between fitting hosts.
    pub strategy: Strategy,
    /// Labels a host must have: `key = value`.
    pub labels: BTreeMap<String, String>,
    /// Labels a host must not have with that value.
    pub not_labels: BTreeMap<String, String>,
    /// Most instances of this app on one host; 0: any number.
    pub max_per_host: u32,
    /// Exactly one instance on every fitting host, present and future; `instances` is then ignored.
    pub one_per_host: bool,
    /// Only hosts that already run an instance of this app.
    pub together_with: Option<AppId>,
    /// Only hosts that run no instance of this app; another one than in `together_with`.
    pub apart_from: Option<AppId>,
}

/// How a new release takes over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Update {
    /// Instances above the wanted number while updating. 0-1,000, default 1; the larger of this and
    /// a quarter of the instances is used. With 0, `max_unavailable` must be at least 1 (stop first).
    pub max_surge: u32,
    /// Instances that may be missing while updating. 0-1,000, default 0.
    pub max_unavailable: u32,
    /// Seconds until a deploy that makes no progress is given up and rolled back. 5-86,400, default 120.
    pub deadline_s: u32,
}

impl Default for Update {
    fn default() -> Self {
        Self {
            max_surge: 1,
            max_unavailable: 0,
            deadline_s: 120,
        }
    }
}

/// Splits `APP:VERSION`; used by the API and the command line alike.
pub fn parse_app_version(text: &str) -> Result<(AppId, Version), SpecError> {
    let (app, version) = text
        .split_once(':')
        .ok_or_else(|| SpecError::new("", format!("{text:?} must be APP:VERSION, such as hello:1")))?;
    let app = app
        .parse()
        .map_err(|e: crate::InvalidId| SpecError::new("/app", e.to_string()))?;
    let version = version
        .parse()
        .map_err(|e: crate::InvalidId| SpecError::new("/version", e.to_string()))?;
    Ok((app, version))
}

/// Notes a `value` outside `least..=most`.
pub(crate) fn within(errors: &mut Vec<SpecError>, field: &str, value: impl Into<u64>, least: u64, most: u64) {
    let value = value.into();
    if !(least..=most).contains(&value) {
        errors.push(SpecError::new(
            field,
            format!("{value} must be between {least} and {most}"),
        ));
    }
}

impl ReleaseSpec {
    /// Every field that can't be accepted; empty when the spec is sound.
    pub fn check(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        let e = &mut errors;
        if self.image.len() > 512 || !image_reference(&self.image) {
            e.push(SpecError::new(
                "/image",
                format!(
                    "{:?} must be an image reference such as registry:5000/hello:1",
                    self.image
                ),
            ));
        }
        within(e, "/port", self.port, 1, 65_535);
        within(e, "/memory_mb", self.memory_mb, 6, 1_048_576);
        within(e, "/cpu_weight", self.cpu_weight, 2, 262_144);
        within(e, "/pids_limit", self.pids_limit, 1, 100_000);
        within(e, "/stop_grace_s", self.stop_grace_s, 0, 3_600);
        within(e, "/drain_timeout_s", self.drain_timeout_s, 0, 3_600);
        if self.env.len() > 256 {
            e.push(SpecError::new("/env", "at most 256 variables"));
        }
        for (name, value) in &self.env {
            let field = || format!("/env/{}", name.replace('~', "~0").replace('/', "~1"));
            let sound = name
                .bytes()
                .next()
                .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && name.len() <= 128;
            if !sound {
                e.push(SpecError::new(
                    field(),
                    "a name must be 1 to 128 of A-Z, a-z, 0-9 and '_', not starting with a digit",
                ));
            } else if name.starts_with("CAAS_") || name == "PORT" {
                e.push(SpecError::new(
                    field(),
                    "names beginning with CAAS_, and PORT, are set by the platform",
                ));
            }
            if value.len() > 32_768 || value.contains('\0') {
                e.push(SpecError::new(
                    field(),
                    "a value must be at most 32,768 bytes without NUL",
                ));
            }
        }
        if self.command.len() > 128 || self.command.iter().any(|a| a.len() > 4_096 || a.contains('\0')) {
            e.push(SpecError::new(
                "/command",
                "at most 128 arguments of at most 4,096 bytes without NUL",
            ));
        }
        let h = &self.health;
        within(e, "/health/interval_ms", h.interval_ms, 200, 3_600_000);
        within(e, "/health/timeout_ms", h.timeout_ms, 50, 60_000);
        within(e, "/health/unhealthy_after", h.unhealthy_after, 1, 100);
        within(e, "/health/healthy_after", h.healthy_after, 1, 100);
        within(e, "/health/grace_s", h.grace_s, 1, 3_600);
        within(e, "/health/heartbeat_timeout_s", h.heartbeat_timeout_s, 1, 3_600);
        let path_ok = h.path.starts_with('/') && h.path.len() <= 1_024 && h.path.bytes().all(|b| b.is_ascii_graphic());
        if !path_ok {
            e.push(SpecError::new(
                "/health/path",
                "must start with '/' and be at most 1,024 visible ASCII characters",
            ));
        }
        let u = &self.update;
        within(e, "/update/max_surge", u.max_surge, 0, 1_000);
        within(e, "/update/max_unavailable", u.max_unavailable, 0, 1_000);
        within(e, "/update/deadline_s", u.deadline_s, 5, 86_400);
        if u.max_surge == 0 && u.max_unavailable == 0 {
            e.push(SpecError::new(
                "/update",
                "max_surge and max_unavailable can't both be 0: no instance could ever be replaced",
            ));
        }
        let p = &self.placement;
        for (field, labels) in [
            ("/placement/labels", &p.labels),
            ("/placement/not_labels", &p.not_labels),
        ] {
            if let Err(message) = check_labels(labels) {
                e.push(SpecError::new(field, message));
            }
        }
        if let Some(app) = p
            .together_with
            .as_ref()
            .filter(|app| p.apart_from.as_ref() == Some(*app))
        {
            e.push(SpecError::new(
                "/placement/apart_from",
                format!("{app} is also in together_with: no host could ever fit, so leave one of them out"),
            ));
        }
        errors
    }
}

/// Label keys and values of hosts: 1-63 / 0-63 characters of letters, digits, `.`, `_`, `-`, `/`.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), String> {
    if labels.len() > 64 {
        return Err("at most 64 labels".into());
    }
    let sound = |t: &str| t.len() <= 63 && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
    for (key, value) in labels {
        if key.is_empty() || !sound(key) || !sound(value) {
            return Err(format!(
                "label {key:?}={value:?}: keys (1-63) and values (0-63) are letters, digits, '.', '_', '-', '/'"
            ));
        }
    }
    Ok(())
}

/// `[host[:port]/]path[:tag][@sha256:…]`, roughly Docker's reference grammar.
fn image_reference(text: &str) -> bool {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:").unwrap_or("");
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return false;
        }
    }
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    if tag.is_some_and(|t| t.parse::<Version>().is_err()) {
        return false;
    }
    let mut segments = path.split('/').peekable();
    let host_like = |s: &str| s.contains('.') || s.contains(':') || s == "localhost";
    if path.contains('/') && segments.peek().is_some_and(|s| host_like(s)) {
        let host = segments.next().unwrap_or("");
        let sound = host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
        if !sound {
            return false;
        }
    }
    let mut any = false;
    for segment in segments {
        any = true;
        let sound = segment
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            && segment
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        if !sound {
            return false;
        }
    }
    any
}

#[cfg(test)]
mod tests;
