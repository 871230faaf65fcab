//! `caas.toml`: what the roles are told. Read in two stages: raw (file, then environment, then flags, every key known),
//! then validated per role, so that a role never starts with settings that can't work.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use figment::Figment;
use figment::error::Kind;
use figment::providers::{Env, Format as _, Serialized, Toml};
use figment::value::{Dict, Value};
use serde::{Deserialize, Serialize};

use crate::exit::Failure;

/// Where the configuration comes from; every role has these flags.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Configuration")]
pub(crate) struct ConfigArgs {
    /// Configuration file; environment variables CAAS_SECTION__KEY and flags go before it
    #[arg(long, env = "CAAS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// error, warn, info, debug, trace, or a RUST_LOG filter
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

/// Everything that can be configured, unchecked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The program's own log.
    pub(crate) log: Log,
    /// The database.
    pub(crate) store: Store,
    /// The service registry.
    pub(crate) registry: Registry,
    /// The Docker hosts.
    pub(crate) engine: Engine,
    /// The gateway.
    pub(crate) gateway: gateway::Config,
    /// The adapter to HAProxy.
    pub(crate) haproxy: haproxy::Config,
    /// The API's listener: `listen` in `[scheduler]`.
    #[serde(skip)]
    pub(crate) api_listen: ApiListen,
    /// The scheduler.
    pub(crate) scheduler: scheduler::Config,
    /// registry-sync.
    pub(crate) registry_sync: registry_sync::Config,
    /// Certificates that the scheduler gets by itself.
    pub(crate) acme: scheduler::AcmeConfig,
}

/// `listen` in `[scheduler]`; the binary binds it, so the role's own settings do not hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ApiListen(pub(crate) SocketAddr);

impl Default for ApiListen {
    fn default() -> Self {
        Self(SocketAddr::from(([127, 0, 0, 1], 8090)))
    }
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter as RUST_LOG has it. RUST_LOG goes before it.
    pub(crate) level: String,
    /// How lines are written to standard error.
    pub(crate) format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// `[store]`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Store {
    /// `mysql://user:password@host:3306/database` or `sqlite:///path/caas.db`.
    pub(crate) url: String,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("url", &without_password(&self.url))
            .finish()
    }
}

/// `[registry]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Registry {
    /// `zk://host:2181,host:2181[/chroot]`; for a gateway also `file:PATH`; with `caas up` also `memory:`.
    pub(crate) url: String,
}

/// `[engine]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Engine {
    /// Folder with `ca.pem`, `cert.pem` and `key.pem` for `https://` engines.
    pub(crate) tls_dir: Option<PathBuf>,
}

/// Settings that go before the file and the environment: `(key, value)` with dotted keys.
#[derive(Debug, Default)]
pub(crate) struct Overrides(Vec<(&'static str, Value)>);

impl Overrides {
    /// Sets `key` when there is a value.
    pub(crate) fn set(&mut self, key: &'static str, value: Option<impl Serialize>) -> &mut Self {
        // A flag that can't be told as a value would be a bug of ours; it is left out and the check finds it missing.
        if let Some(value) = value.and_then(|v| Value::serialize(v).ok()) {
            self.0.push((key, value));
        }
        self
    }
}

impl ConfigArgs {
    /// Reads what there is: `defaults`, the file, the environment, `flags`, each before the last.
    pub(crate) fn load(&self, defaults: &Overrides, flags: &Overrides) -> Result<Config, Failure> {
        let mut own = Overrides::default();
        own.set("log.level", self.log_level.as_ref())
            .set("log.format", self.log_format.as_ref());
        // CAAS_ADDR, CAAS_TOKEN and the like belong to others: only names with a section are settings.
        let environment = Env::prefixed("CAAS_")
            .filter(|name| name.as_str().contains("__"))
            .split("__");
        load(self.config.as_deref(), environment, defaults, &[flags, &own])
    }
}

fn load(file: Option<&Path>, environment: Env, defaults: &Overrides, flags: &[&Overrides]) -> Result<Config, Failure> {
    let mut figment = Figment::new();
    for (key, value) in &defaults.0 {
        figment = figment.merge(Serialized::default(key, value));
    }
    if let Some(file) = file {
        if !file.is_file() {
            return Err(Failure::usage(format!(
                "the configuration file {} does not exist",
                file.display()
            )));
        }
        figment = figment.merge(Toml::file_exact(file));
    }
    figment = figment.merge(environment);
    for (key, value) in flags.iter().flat_map(|f| &f.0) {
        figment = figment.merge(Serialized::default(key, value));
    }
    let mut merged: Dict = figment.extract().map_err(|e| sentence(e, &figment))?;
    let mut api_listen = ApiListen::default();
    if let Some(Value::Dict(_, scheduler)) = merged.get_mut("scheduler")
        && let Some(listen) = scheduler.remove("listen")
    {
        let address = listen.deserialize::<SocketAddr>();
        api_listen.0 = address.map_err(|e| sentence(e.with_path("scheduler.listen"), &figment))?;
    }
    let config: Config = Figment::from(Serialized::defaults(merged))
        .extract()
        .map_err(|e| sentence(e, &figment))?;
    Ok(Config { api_listen, ..config })
}

/// One sentence: which key, from where, what is wrong, what may have been meant.
fn sentence(error: figment::Error, figment: &Figment) -> Failure {
    let Some(error) = error.into_iter().next() else {
        return Failure::usage("the configuration can't be read");
    };
    let mut path = error.path.clone();
    let what = match &error.kind {
        Kind::UnknownField(field, known) => {
            if path.last() != Some(field) {
                path.push(field.clone());
            }
            let hint =
                nearest(field, known.iter().copied()).map_or_else(String::new, |k| format!("; did you mean `{k}`?"));
            format!("there is no such key{hint}")
        }
        Kind::InvalidType(found, wanted) => format!("{found} is not {wanted}"),
        Kind::InvalidValue(found, wanted) => format!("{found} is not {wanted}"),
        other => other.to_string(),
    };
    let key = path.join(".");
    let source = figment
        .find_metadata(&key)
        .or(error.metadata.as_ref())
        .map(|m| match &m.source {
            Some(source) => format!(" ({source})"),
            None => format!(" ({})", m.name),
        })
        .unwrap_or_default();
    let key = if key.is_empty() { "configuration" } else { &key };
    Failure::usage(format!("{key}{source}: {what}"))
}

/// The known name that is at most two slips away.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |other: &str| -> usize {
        let other: Vec<char> = other.chars().collect();
        let mut row: Vec<usize> = (0..=other.len()).collect();
        for (i, a) in word.chars().enumerate() {
            let mut diagonal = row[0];
            row[0] = i + 1;
            for (j, b) in other.iter().enumerate() {
                let replaced = diagonal + usize::from(a != *b);
                diagonal = row[j + 1];
                row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
            }
        }
        row[other.len()]
    };
    known
        .into_iter()
        .map(|name| (distance(name), name))
        .filter(|(d, _)| *d <= 2)
        .min()
        .map(|(_, name)| name)
}

impl Config {
    /// The database's URL, checked for its scheme.
    pub(crate) fn store_url(&self) -> Result<&str, Failure> {
        let url = self.store.url.as_str();
        if url.is_empty() {
            return Err(Failure::usage(
                "no database: set store.url (or CAAS_STORE__URL, or --store) to mysql://… or sqlite:///…",
            ));
        }
        if !(url.starts_with("mysql://") || url.starts_with("sqlite://")) {
            return Err(Failure::usage(format!(
                "store.url = {:?} must start with mysql:// or sqlite://",
                without_password(url)
            )));
        }
        Ok(url)
    }

    /// The registry's URL, one of `schemes`.
    pub(crate) fn registry_url(&self, schemes: &[&str]) -> Result<&str, Failure> {
        let url = self.registry.url.as_str();
        if url.is_empty() {
            return Err(Failure::usage(format!(
                "no registry: set registry.url (or CAAS_REGISTRY__URL, or --registry) to {}…",
                schemes.join("… or ")
            )));
        }
        if url.starts_with("memory:") && !schemes.contains(&"memory:") {
            return Err(Failure::usage(
                "registry.url = \"memory:\" needs all roles in one process: use `caas up`, or zk://host:2181",
            ));
        }
        if !schemes.iter().any(|scheme| url.starts_with(scheme)) {
            return Err(Failure::usage(format!(
                "registry.url = {url:?} must start with {}",
                schemes.join(" or ")
            )));
        }
        Ok(url)
    }

    /// The gateway's settings, checked.
    pub(crate) fn gateway(&self) -> Result<gateway::Config, Failure> {
        self.gateway.check().map_err(|e| Failure::usage(e.to_string()))?;
        Ok(self.gateway.clone())
    }

    /// The scheduler's settings, checked.
    pub(crate) fn scheduler(&self) -> Result<scheduler::Config, Failure> {
        self.acme
            .check(self.scheduler.certificates_key_file.is_some())
            .map_err(Failure::usage)?;
        Ok(scheduler::Config {
            acme: self.acme.clone(),
            ..self.scheduler.clone()
        })
    }

    /// The folder with the client certificate for `https://` engines, if there is one.
    pub(crate) fn tls_dir(&self) -> Result<Option<PathBuf>, Failure> {
        let Some(dir) = &self.engine.tls_dir else {
            return Ok(None);
        };
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            if !dir.join(name).is_file() {
                return Err(Failure::usage(format!(
                    "engine.tls_dir = {}: there is no {name} in it",
                    dir.display()
                )));
            }
        }
        Ok(Some(dir.clone()))
    }
}

/// `url` with its password hidden, for logs and messages.
pub(crate) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    match rest.rsplit_once('@') {
        Some((user, place)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:***@{place}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests;
