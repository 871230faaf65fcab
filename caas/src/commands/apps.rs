//! Apps: list, show, scale, restart, stop, start, roll back, remove, explain.

use std::collections::BTreeMap;

use clap::Args;
use model::config::Protocol;
use model::{App, AppId, Instance, InstanceId, Operation, Release, Timestamp, Version};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{WaitArgs, cell, config, instances};
use crate::cli::Session;
use crate::client::{ApiError, typed};
use crate::exit::Failure;
use crate::render::{self, Output, age, mib};

/// An app with what belongs to it, as `GET /apps/{app}` answers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AppDetail {
    /// The app.
    pub(crate) app: App,
    /// The release that should run.
    #[serde(default)]
    pub(crate) release: Option<Release>,
    /// Its instances.
    #[serde(default)]
    pub(crate) instances: Vec<Instance>,
    /// Where it can be reached.
    #[serde(default)]
    pub(crate) url: Option<String>,
    /// Until when the next instance waits, since so many failed.
    #[serde(default)]
    pub(crate) next_try_at: Option<Timestamp>,
}

/// An app in the list of `GET /apps`.
#[derive(Clone, Debug, Deserialize)]
struct AppSummary {
    #[serde(flatten)]
    app: App,
    version: Option<Version>,
    routed: u32,
    url: Option<String>,
}

impl AppDetail {
    /// Every address at which it can be reached.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let config = &self.app.config;
        let domains = config.domains.iter().map(|d| match config.protocol {
            Protocol::Tcp if config.tcp.passthrough => format!("tls://{d}"),
            Protocol::Tcp => format!("tcp://{d}:{}", config.tcp.port),
            Protocol::Http | Protocol::H2c => format!("http://{d}/"),
        });
        self.url.iter().cloned().chain(domains).collect()
    }

    /// `2 of 2 instances`: routed and wanted. Those on their way out still get requests, but are no longer meant.
    pub(crate) fn routed(&self) -> String {
        let beside = self.app.canary.as_ref().map(|c| c.release);
        let routed = self.count(|i| beside != Some(i.release));
        format!("{routed} of {} instances routed", self.app.instances)
    }

    fn count(&self, which: impl Fn(&Instance) -> bool) -> usize {
        let stays = |i: &&Instance| i.routed_at.is_some() && i.state.is_live();
        self.instances.iter().filter(stays).filter(|i| which(i)).count()
    }

    /// What is to be said of the canary.
    fn canary(&self) -> Option<String> {
        let canary = self.app.canary.as_ref()?;
        if canary.leaves() {
            return Some(format!("canary     release {} is on its way out", canary.release));
        }
        Some(format!(
            "canary     release {} (version {}): {} % of the requests, {} of {} instances routed",
            canary.release,
            canary.version,
            canary.percent,
            self.count(|i| i.release == canary.release),
            canary.instances
        ))
    }
}

/// `caas info`.
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// The app
    app: AppId,
}

/// `caas scale`.
#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// The app
    app: AppId,
    /// Wanted number of instances
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1_000))]
    instances: u32,
    /// When no host fits now, keep the change and place instances as soon as one does
    #[arg(long)]
    queue: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// `caas stop`, `start`, `promote`, `abort`, `rm`.
#[derive(Debug, Args)]
pub(crate) struct VerbArgs {
    /// The app
    pub(super) app: AppId,
    #[command(flatten)]
    pub(super) wait: WaitArgs,
}

/// `caas restart`.
#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    /// An app (all instances are replaced in turn) or one instance (replaced alone)
    #[arg(value_name = "APP|INSTANCE")]
    name: String,
    #[command(flatten)]
    wait: WaitArgs,
}

/// `caas rollback`.
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The app
    app: AppId,
    /// The release's number; else the one that ran before
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    release: Option<u32>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// `caas why`.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The app
    app: AppId,
}

/// What a name on the command line means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// An app.
    App(AppId),
    /// An instance.
    Instance(InstanceId),
}

/// Whether `name` is an app or an instance; apps go first.
pub(crate) async fn named(session: &Session, name: &str) -> Result<Named, Failure> {
    let mut refused: Option<ApiError> = None;
    if let Ok(app) = name.parse::<AppId>() {
        match session.client.get(&format!("/apps/{app}")).await {
            Ok(_) => return Ok(Named::App(app)),
            Err(e) if e.is_not_found() => refused = Some(e),
            Err(e) => return Err(e.into()),
        }
    }
    if let Ok(instance) = name.parse::<InstanceId>() {
        match session.client.get(&format!("/instances/{instance}")).await {
            Ok(_) => return Ok(Named::Instance(instance)),
            Err(e) if e.is_not_found() => refused = Some(e),
            Err(e) => return Err(e.into()),
        }
    }
    match refused {
        Some(_) => Err(Failure::error(format!("there is no app and no instance {name:?}"))),
        None => Err(Failure::usage(format!(
            "{name:?} can't be the name of an app or an instance"
        ))),
    }
}

/// `caas apps`.
pub(crate) async fn list(session: &Session) -> Result<(), Failure> {
    let answer = session.client.list("/apps").await?;
    if session.output == Output::Json {
        render::print_json(&Value::Array(answer));
        return Ok(());
    }
    if answer.is_empty() {
        render::print("no apps yet: `caas deploy APP:VERSION` makes one");
        return Ok(());
    }
    let mut rows = Vec::new();
    for entry in &answer {
        let AppSummary {
            app,
            version,
            routed,
            url,
        } = typed(entry)?;
        rows.push(vec![
            app.id.to_string(),
            app.status.as_str().to_owned(),
            cell(version),
            app.release.to_string(),
            format!("{routed}/{}", app.instances),
            age(app.updated_at),
            cell(url.as_ref().or(app.config.domains.first())),
        ]);
    }
    let headers = ["APP", "STATUS", "VERSION", "RELEASE", "ROUTED", "CHANGED", "URL"];
    render::print(&render::table(&headers, rows));
    Ok(())
}

/// `caas info`.
pub(crate) async fn info(session: &Session, args: &InfoArgs) -> Result<(), Failure> {
    let answer = session.client.get(&format!("/apps/{}", args.app)).await?;
    if session.output == Output::Json {
        render::print_json(&answer);
        return Ok(());
    }
    let detail: AppDetail = typed(&answer)?;
    render::print(&info_text(&detail));
    let operation = answer.get("operation").filter(|o| o.is_object());
    if let Some(operation) = operation {
        let operation: Operation = typed(operation)?;
        if !operation.state.is_final() || operation.state == model::OperationState::Failed {
            let line = format!(
                "{} {}: {}",
                operation.kind.as_str(),
                operation.state.as_str(),
                operation.message
            );
            render::print(&format!("\n{}", render::safe(line.trim_end_matches([':', ' ']))));
            for reason in &operation.reasons {
                render::print(&format!("  {}", render::safe(reason)));
            }
        }
    }
    if let Some(at) = detail.next_try_at {
        render::print(&format!("\n{}", waits_text(at)));
        render::print(&format!("  `caas why {}` tells what they died of", detail.app.id));
    }
    if !detail.instances.is_empty() {
        render::print(&format!("\n{}", instances::table_of(&detail.instances)));
    }
    Ok(())
}

fn waits_text(at: Timestamp) -> String {
    format!("so many instances failed that the next one waits until {at}")
}

fn info_text(detail: &AppDetail) -> String {
    let app = &detail.app;
    let mut lines = vec![
        format!("app        {}", app.id),
        format!("status     {} ({})", app.status.as_str(), detail.routed()),
    ];
    lines.extend(detail.canary());
    for address in detail.addresses() {
        lines.push(format!("url        {address}"));
    }
    if let Some(release) = &detail.release {
        let spec = &release.spec;
        lines.push(format!(
            "release    {} (version {}, {} ago)",
            release.number,
            release.version,
            age(release.created_at)
        ));
        lines.push(format!("image      {}", spec.image));
        lines.push(format!("digest     {}", release.digest));
        lines.push(format!(
            "resources  port {}, memory {}, CPU weight {}",
            spec.port,
            mib(spec.memory_mb),
            spec.cpu_weight
        ));
        let health = match spec.health.kind {
            model::spec::ProbeKind::Http => format!("GET {}", spec.health.path),
            model::spec::ProbeKind::Tcp => "TCP connect".to_owned(),
            model::spec::ProbeKind::Heartbeat => "the app's own heartbeat".to_owned(),
            model::spec::ProbeKind::None => "none".to_owned(),
        };
        lines.push(format!("health     {health}"));
        let protocol = app.config.protocol.of_instance(release.protocol);
        lines.push(format!("protocol   {}", protocol.as_str()));
        // Values may be secrets: only names are shown.
        let names: Vec<&str> = spec.env.keys().map(String::as_str).collect();
        if !names.is_empty() {
            lines.push(format!("env        {}", names.join(" ")));
        }
    }
    lines.extend(
        config::own_settings(app)
            .iter()
            .map(|setting| format!("config     {setting}")),
    );
    lines.join("\n")
}

/// `caas scale`.
pub(crate) async fn scale(session: &Session, args: &ScaleArgs) -> Result<(), Failure> {
    let body = json!({ "instances": args.instances });
    let queue = if args.queue { "?queue=true" } else { "" };
    let path = format!("/apps/{}/scale{queue}", args.app);
    if session.change(&path, Some(&body), &args.wait).await?.is_some() {
        session.say(&format!("{} has {} instances", args.app, args.instances));
    }
    Ok(())
}

/// `caas restart`.
pub(crate) async fn restart(session: &Session, args: &RestartArgs) -> Result<(), Failure> {
    match named(session, &args.name).await? {
        Named::App(app) => {
            let path = format!("/apps/{app}/restart");
            if session.change(&path, None, &args.wait).await?.is_some() {
                session.say(&format!("{app}: every instance was replaced"));
            }
        }
        Named::Instance(id) => {
            let path = format!("/instances/{id}/restart");
            if session.change(&path, None, &args.wait).await?.is_some() {
                session.say(&format!("instance {id} was replaced by a fresh one"));
            }
        }
    }
    Ok(())
}

/// `caas stop`.
pub(crate) async fn stop(session: &Session, args: &VerbArgs) -> Result<(), Failure> {
    let path = format!("/apps/{}/stop", args.app);
    if session.change(&path, None, &args.wait).await?.is_some() {
        session.say(&format!(
            "{} is stopped; `caas start {}` brings it back",
            args.app, args.app
        ));
    }
    Ok(())
}

/// `caas start`.
pub(crate) async fn start(session: &Session, args: &VerbArgs) -> Result<(), Failure> {
    let path = format!("/apps/{}/start", args.app);
    if session.change(&path, None, &args.wait).await?.is_some() {
        announce(session, &args.app).await?;
    }
    Ok(())
}

/// `caas rollback`.
pub(crate) async fn rollback(session: &Session, args: &RollbackArgs) -> Result<(), Failure> {
    let body = args
        .release
        .map_or_else(|| json!({}), |release| json!({ "release": release }));
    let path = format!("/apps/{}/rollback", args.app);
    if session.change(&path, Some(&body), &args.wait).await?.is_some() {
        announce(session, &args.app).await?;
    }
    Ok(())
}

/// `caas rm`.
pub(crate) async fn remove(session: &Session, args: &VerbArgs) -> Result<(), Failure> {
    let answer = session.client.delete(&format!("/apps/{}", args.app)).await?;
    if session.follow_change(&answer, &args.wait).await?.is_some() {
        session.say(&format!("{} is gone", args.app));
    }
    Ok(())
}

/// What runs now and where it can be reached.
pub(crate) async fn announce(session: &Session, app: &AppId) -> Result<(), Failure> {
    if session.output == Output::Json {
        return Ok(());
    }
    let detail: AppDetail = typed(&session.client.get(&format!("/apps/{app}")).await?)?;
    let version = detail
        .release
        .as_ref()
        .map_or_else(String::new, |r| format!(":{}", r.version));
    render::print(&format!("{app}{version} is running, {}", detail.routed()));
    for address in detail.addresses() {
        render::print(&address);
    }
    Ok(())
}

/// `caas why`.
pub(crate) async fn why(session: &Session, args: &WhyArgs) -> Result<(), Failure> {
    let answer = session.client.get(&format!("/apps/{}/why", args.app)).await?;
    if session.output == Output::Json {
        render::print_json(&answer);
        return Ok(());
    }
    render::print(&why_text(&args.app, &typed(&answer)?));
    Ok(())
}

/// Why an app is placed as it is, as `GET /apps/{app}/why` answers.
#[derive(Clone, Debug, Deserialize)]
struct Why {
    explanation: Option<Explanation>,
    operation: Option<Operation>,
    #[serde(default)]
    failed: Vec<Instance>,
    #[serde(default)]
    next_try_at: Option<Timestamp>,
}

#[derive(Clone, Debug, Deserialize)]
struct Explanation {
    hosts: usize,
    fitting: Vec<Fit>,
    refused: Vec<Refused>,
}

#[derive(Clone, Debug, Deserialize)]
struct Fit {
    host: String,
    score: BTreeMap<String, f64>,
}

#[derive(Clone, Debug, Deserialize)]
struct Refused {
    hosts: Vec<String>,
    reason: String,
}

fn why_text(app: &AppId, why: &Why) -> String {
    let mut lines = Vec::new();
    match &why.explanation {
        None => lines.push(format!("{app} has no release yet")),
        Some(e) => {
            let fits = e.fitting.len();
            lines.push(format!(
                "a further instance of {app} would fit on {fits} of {} hosts{}",
                e.hosts,
                if fits == 0 { "" } else { ", the best first:" }
            ));
            for fit in &e.fitting {
                lines.push(
                    format!("  ✓ {:<16}{}", fit.host, score_text(&fit.score))
                        .trim_end()
                        .to_owned(),
                );
            }
            for refused in &e.refused {
                lines.push(format!("  ✗ {:<16}{}", refused.hosts.join(" "), refused.reason));
            }
        }
    }
    if let Some(operation) = &why.operation {
        lines.push(format!(
            "last change: {} {} {}",
            operation.kind.as_str(),
            operation.state.as_str(),
            operation.message
        ));
        lines.extend(operation.reasons.iter().map(|r| format!("  {r}")));
    }
    lines.extend(why.next_try_at.map(waits_text));
    if !why.failed.is_empty() {
        lines.push("instances that failed last:".into());
    }
    for instance in &why.failed {
        let message = instance.failure.as_ref().map_or("", |f| f.message.as_str());
        lines.push(format!(
            "  {} on {}, {} ago: {message}",
            instance.id,
            instance.host,
            age(instance.changed_at)
        ));
    }
    let safe: Vec<String> = lines.iter().map(|l| render::safe(l.trim_end())).collect();
    safe.join("\n")
}

/// A score, as its sum and the parts that are not zero.
fn score_text(score: &BTreeMap<String, f64>) -> String {
    let Some(total) = score.get("total") else {
        return String::new();
    };
    let parts: Vec<String> = score
        .iter()
        .filter(|(name, value)| *name != "total" && **value != 0.0)
        .map(|(name, value)| format!("{name} {value:+.2}"))
        .collect();
    format!("score {total:.2} ({})", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_is_explained() {
        let why: Why = serde_json::from_value(json!({
            "explanation": {
                "hosts": 3,
                "fitting": [{"host": "h1", "score": {"total": 0.5, "strategy": 0.75, "spread": -0.25, "failed": 0.0}}],
                "refused": [{"filter": "memory", "hosts": ["h2", "h3"], "reason": "too little memory"}]
            },
            "operation": null,
            "failed": [],
            "next_try_at": "2026-11-21T12:00:30.000Z"
        }))
        .expect("as the API answers");
        assert_eq!(
            why_text(&"hello".parse().expect("valid"), &why),
            "a further instance of hello would fit on 1 of 3 hosts, the best first:\n  \
             ✓ h1              score 0.50 (spread -0.25, strategy +0.75)\n  ✗ h2 h3           too little memory\n\
             so many instances failed that the next one waits until 2026-11-21T12:00:30.000Z"
        );
    }
}
