//! `caas deploy`: flags and a file become the request; the operation is followed to its end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use model::config::Protocol;
use model::spec::parse_app_version;
use model::{AppConfig, AppId, ReleaseSpec, Version};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::WaitArgs;
use super::apps::{AppDetail, announce};
use crate::cli::Session;
use crate::client::typed;
use crate::exit::Failure;
use crate::parse::{self, Health};
use crate::render::{self, Output};

/// `caas deploy`.
#[derive(Debug, Default, Args)]
pub(crate) struct DeployArgs {
    /// What to deploy; may stand in the file instead
    #[arg(value_name = "APP:VERSION", value_parser = app_version)]
    target: Option<(AppId, Version)>,
    /// Read app, version and settings from a TOML file; flags go before it
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Image; else {registry}/{app}:{version} with the scheduler's default registry
    #[arg(long)]
    image: Option<String>,
    /// Port on which the app listens in its container [default at first: 8080]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Wanted number of instances [default at first: 1]
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    instances: Option<u32>,
    /// Run it beside the present release with this share of the requests (per cent), until `caas promote` or `caas abort`;
    /// --instances is then the canary's number [default: 1]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    canary: Option<u32>,
    /// Memory limit of an instance, such as 512M or 2G [default at first: 256M]
    #[arg(short, long, value_name = "SIZE", value_parser = parse::memory_mib)]
    memory: Option<u32>,
    /// CPU weight of an instance [default at first: 1024, one share of a core]
    #[arg(long, value_name = "WEIGHT")]
    cpu: Option<u32>,
    /// Set a variable; those of the last release stay (repeatable)
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = parse::key_value)]
    env: Vec<(String, String)>,
    /// Take a variable of the last release away (repeatable)
    #[arg(long, value_name = "NAME")]
    unset_env: Vec<String>,
    /// How an instance proves to be alive: a path, tcp, heartbeat or none [default at first: /_ping]
    #[arg(long, value_name = "PATH|tcp|heartbeat|none", value_parser = parse::health)]
    health: Option<Health>,
    /// Custom domain beside {app}.{gateway-domain}; all of them are given anew (repeatable)
    #[arg(long, value_name = "DOMAIN")]
    domain: Vec<String>,
    /// The paths of its domains are taken off before the app is asked
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    strip_prefix: Option<bool>,
    /// The app answers GET of this path with the header X-Caas-App: {app}, by which gateways that have lost the registry know its
    /// instances; '' takes it back
    #[arg(long, value_name = "PATH")]
    identity_path: Option<String>,
    /// What the app speaks: http, h2c (gRPC) or tcp [default at first: http]
    #[arg(long, value_name = "PROTOCOL", value_parser = parse::protocol)]
    protocol: Option<Protocol>,
    /// Port at the gateways that leads to the app, with protocol tcp; else one is chosen
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    tcp_port: Option<u16>,
    /// The app has a TLS certificate of its own, with protocol tcp: the gateways' TLS port gives it the connections that name one
    /// of its hosts, untouched
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tls_passthrough: Option<bool>,
    /// Only hosts with this label; all of them are given anew (repeatable)
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse::key_value)]
    label: Vec<(String, String)>,
    /// When no host fits now, keep the deploy and place it as soon as one does
    #[arg(long)]
    queue: bool,
    /// Show where instances would be placed; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

fn app_version(text: &str) -> Result<(AppId, Version), String> {
    parse_app_version(text).map_err(|e| e.message)
}

/// The file after `-f`. Beside the keys named here it holds every key of a release's spec at its top level.
#[derive(Debug, Default, Deserialize)]
struct AppFile {
    app: Option<AppId>,
    version: Option<Version>,
    image: Option<String>,
    instances: Option<u32>,
    memory: Option<String>,
    #[serde(default)]
    config: Map<String, Value>,
    #[serde(flatten)]
    spec: Map<String, Value>,
}

/// What is sent.
#[derive(Debug, PartialEq)]
struct Request {
    app: AppId,
    body: Value,
    /// Variables to be laid over those of the last release; `None`: the spec says it all.
    env: Option<BTreeMap<String, Option<String>>>,
}

/// `caas deploy`.
pub(crate) async fn run(session: &Session, args: &DeployArgs) -> Result<(), Failure> {
    let file = args.file.as_deref().map(read_file).transpose()?;
    let mut request = request(args, file)?;
    if let Some(changes) = request.env.take() {
        let env = merged_env(previous_env(session, &request.app).await?, changes);
        request.body["spec"]["env"] = json!(env);
    }
    let mut query = Vec::new();
    if args.dry_run {
        query.push("dry_run=true");
    }
    if args.queue {
        query.push("queue=true");
    }
    let question = if query.is_empty() { "" } else { "?" };
    let path = format!("/apps/{}/deploy{question}{}", request.app, query.join("&"));
    if args.dry_run {
        let answer = session.client.post(&path, Some(&request.body)).await?;
        match session.output {
            Output::Json => render::print_json(&answer),
            Output::Table => render::print(&plan_text(&typed(answer.get("plan").unwrap_or(&answer))?)),
        }
        return Ok(());
    }
    if session.change(&path, Some(&request.body), &args.wait).await?.is_some() {
        announce(session, &request.app).await?;
    }
    Ok(())
}

/// What a deploy would do, as `?dry_run=true` answers.
#[derive(Debug, Deserialize)]
struct Plan {
    summary: String,
    #[serde(default)]
    instances: Option<u32>,
    #[serde(default)]
    would_place: Vec<String>,
    #[serde(default)]
    reasons: Vec<String>,
}

fn plan_text(plan: &Plan) -> String {
    let mut lines = vec![plan.summary.clone()];
    let mut per_host: BTreeMap<&str, usize> = BTreeMap::new();
    for host in &plan.would_place {
        *per_host.entry(host).or_default() += 1;
    }
    lines.extend(per_host.iter().map(|(host, count)| format!("  {count} on {host}")));
    let missing = plan
        .instances
        .map_or(0, |n| (n as usize).saturating_sub(plan.would_place.len()));
    if !plan.reasons.is_empty() {
        lines.push(format!("{missing} would find no host:"));
        lines.extend(plan.reasons.iter().map(|r| format!("  {r}")));
    }
    let safe: Vec<String> = lines.iter().map(|l| render::safe(l)).collect();
    safe.join("\n")
}

fn read_file(path: &Path) -> Result<AppFile, Failure> {
    let text =
        std::fs::read_to_string(path).map_err(|e| Failure::usage(format!("{} can't be read: {e}", path.display())))?;
    parse_file(&text).map_err(|message| Failure::usage(format!("{}: {message}", path.display())))
}

/// `[config]` of an app's file.
pub(super) fn read_config(path: &Path) -> Result<Map<String, Value>, Failure> {
    let config = read_file(path)?.config;
    if config.is_empty() {
        return Err(Failure::usage(format!("{} has no [config]", path.display())));
    }
    Ok(config)
}

/// Reads the file and checks every key, so that a slip of the pen is told before anything is sent.
fn parse_file(text: &str) -> Result<AppFile, String> {
    let file: AppFile = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        format!("line {line}: {}", e.message())
    })?;
    for (key, value) in &file.spec {
        let alone = Map::from_iter([(key.clone(), value.clone())]);
        ReleaseSpec::deserialize(Value::Object(alone)).map_err(|e| format!("{key}: {e}"))?;
    }
    let config: AppConfig =
        serde_json::from_value(Value::Object(file.config.clone())).map_err(|e| format!("[config]: {e}"))?;
    // The type ignores unknown keys for older readers' sake; a person's file should not.
    let known = serde_json::to_value(config).unwrap_or_default();
    if let Some(key) = file.config.keys().find(|key| known.get(key.as_str()).is_none()) {
        return Err(format!("[config]: there is no key `{key}`"));
    }
    Ok(file)
}

/// Flags over file.
fn request(args: &DeployArgs, file: Option<AppFile>) -> Result<Request, Failure> {
    let file = file.unwrap_or_default();
    let (app, version) = match &args.target {
        Some((app, version)) => (Some(app.clone()), Some(version.clone())),
        None => (file.app, file.version),
    };
    let (Some(app), Some(version)) = (app, version) else {
        return Err(Failure::usage(
            "what shall be deployed? give APP:VERSION, such as hello:1, or -f FILE with `app` and `version`",
        ));
    };
    let mut spec = file.spec;
    let mut config = file.config;
    if let Some(memory) = &file.memory {
        let mib = parse::memory_mib(memory).map_err(|e| Failure::usage(format!("memory: {e}")))?;
        spec.insert("memory_mb".into(), json!(mib));
    }
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            spec.insert(key.to_owned(), value);
        }
    };
    set("port", args.port.map(|v| json!(v)));
    set("memory_mb", args.memory.map(|v| json!(v)));
    set("cpu_weight", args.cpu.map(|v| json!(v)));
    if let Some(health) = &args.health {
        let old = spec.remove("health");
        let mut fields = old.and_then(|v| v.as_object().cloned()).unwrap_or_default();
        let kind = match health {
            Health::Path(path) => {
                fields.insert("path".into(), json!(path));
                "http"
            }
            Health::Tcp => "tcp",
            Health::Heartbeat => "heartbeat",
            Health::None => "none",
        };
        fields.insert("kind".into(), json!(kind));
        spec.insert("health".into(), Value::Object(fields));
    }
    if !args.label.is_empty() {
        let labels: BTreeMap<&str, &str> = args.label.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let placement = spec.entry("placement").or_insert_with(|| json!({}));
        placement["labels"] = json!(labels);
    }
    let tcp = [
        ("port", args.tcp_port.map(|port| json!(port))),
        ("passthrough", args.tls_passthrough.map(|on| json!(on))),
    ];
    let names_tcp = args.tcp_port.is_some() || args.tls_passthrough == Some(true);
    let configures = !args.domain.is_empty()
        || args.strip_prefix.is_some()
        || args.identity_path.is_some()
        || tcp.iter().any(|(_, v)| v.is_some());
    if configures && args.canary.is_some() {
        let why = "a canary shares the app's configuration: leave --domain, --strip-prefix, --identity-path, --tcp-port and --tls-passthrough out";
        return Err(Failure::usage(why));
    }
    if !args.domain.is_empty() {
        config.insert("domains".into(), json!(args.domain));
    }
    if let Some(strip) = args.strip_prefix {
        config.insert("strip_prefix".into(), json!(strip));
    }
    if let Some(path) = &args.identity_path {
        config.insert("identity_path".into(), json!(path));
    }
    // Who names the port says what is spoken there.
    if let Some(protocol) = args.protocol.or(names_tcp.then_some(Protocol::Tcp)) {
        config.insert("protocol".into(), json!(protocol));
    }
    for (key, value) in tcp {
        if let Some(value) = value
            && let Value::Object(tcp) = config.entry("tcp").or_insert_with(|| json!({}))
        {
            tcp.insert(key.into(), value);
        }
    }
    let env = env_changes(args, &mut spec);
    let mut body = json!({ "version": version });
    if let Some(image) = args.image.clone().or(file.image) {
        body["image"] = json!(image);
    }
    if let Some(percent) = args.canary {
        // What the file says of the app as a whole is not the canary's; what it speaks is.
        body["canary"] = json!(percent);
        config.retain(|key, _| key == "protocol");
        if let Some(instances) = args.instances {
            body["instances"] = json!(instances);
        }
    } else if let Some(instances) = args.instances.or(file.instances) {
        body["instances"] = json!(instances);
    }
    if !spec.is_empty() || env.is_some() {
        body["spec"] = Value::Object(spec);
    }
    if !config.is_empty() {
        body["config"] = Value::Object(config);
    }
    Ok(Request { app, body, env })
}

/// The flags' variables: laid over the file's if it has any (the file says it all), else over the last release's.
fn env_changes(args: &DeployArgs, spec: &mut Map<String, Value>) -> Option<BTreeMap<String, Option<String>>> {
    if args.env.is_empty() && args.unset_env.is_empty() {
        return None;
    }
    let unset = args.unset_env.iter().map(|name| (name.clone(), None));
    let set = args.env.iter().map(|(name, value)| (name.clone(), Some(value.clone())));
    let changes: BTreeMap<String, Option<String>> = unset.chain(set).collect();
    let Some(Value::Object(of_file)) = spec.get_mut("env") else {
        return Some(changes);
    };
    for (name, value) in changes {
        match value {
            Some(value) => of_file.insert(name, json!(value)),
            None => of_file.remove(&name),
        };
    }
    None
}

async fn previous_env(session: &Session, app: &AppId) -> Result<BTreeMap<String, String>, Failure> {
    match session.client.get(&format!("/apps/{app}")).await {
        Ok(answer) => {
            let detail: AppDetail = typed(&answer)?;
            Ok(detail.release.map(|release| release.spec.env).unwrap_or_default())
        }
        Err(e) if e.is_not_found() => Ok(BTreeMap::new()),
        Err(e) => Err(e.into()),
    }
}

fn merged_env(
    mut env: BTreeMap<String, String>,
    changes: BTreeMap<String, Option<String>>,
) -> BTreeMap<String, String> {
    for (name, value) in changes {
        match value {
            Some(value) => env.insert(name, value),
            None => env.remove(&name),
        };
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> DeployArgs {
        DeployArgs {
            target: Some(app_version("hello:1").expect("valid")),
            ..DeployArgs::default()
        }
    }

    #[test]
    fn a_port_at_the_gateways_means_tcp() {
        let args = DeployArgs {
            tcp_port: Some(15_432),
            ..hello()
        };
        let file = parse_file("[config.tcp]\nproxy_protocol = \"v2\"").expect("sound");
        assert_eq!(
            request(&args, Some(file)).expect("sound").body["config"],
            json!({"protocol": "tcp", "tcp": {"port": 15_432, "proxy_protocol": "v2"}})
        );
        let args = DeployArgs {
            tls_passthrough: Some(true),
            ..hello()
        };
        assert_eq!(
            request(&args, None).expect("sound").body["config"],
            json!({"protocol": "tcp", "tcp": {"passthrough": true}})
        );
        let args = DeployArgs {
            protocol: Some(Protocol::H2c),
            ..hello()
        };
        assert_eq!(
            request(&args, None).expect("sound").body["config"],
            json!({"protocol": "h2c"})
        );
    }

    #[test]
    fn a_canary_takes_only_its_own_from_the_file() {
        let file = "instances = 4\nport = 3000\n[config]\ndomains = [\"a.example\"]";
        let args = DeployArgs {
            canary: Some(5),
            ..hello()
        };
        let sent = request(&args, Some(parse_file(file).expect("sound"))).expect("sound");
        assert_eq!(sent.body, json!({"version": "1", "canary": 5, "spec": {"port": 3000}}));
        let speaks = "[config]\ndomains = [\"a.example\"]\nprotocol = \"h2c\"";
        let sent = request(&args, Some(parse_file(speaks).expect("sound"))).expect("sound");
        assert_eq!(sent.body["config"], json!({"protocol": "h2c"}));
        let wrong = DeployArgs {
            domain: vec!["a.example".into()],
            ..args
        };
        assert!(request(&wrong, None).is_err());
    }

    #[test]
    fn only_what_is_given_is_sent() {
        let plain = request(&hello(), None).expect("sound");
        assert_eq!(plain.body, json!({ "version": "1" }));
        let args = DeployArgs {
            port: Some(3000),
            instances: Some(2),
            memory: Some(512),
            health: Some(Health::Path("/up".into())),
            domain: vec!["a.example".into()],
            strip_prefix: Some(true),
            identity_path: Some("/_ping".into()),
            label: vec![("disk".into(), "ssd".into())],
            ..hello()
        };
        assert_eq!(
            request(&args, None).expect("sound").body,
            json!({
                "version": "1", "instances": 2,
                "spec": {
                    "port": 3000, "memory_mb": 512, "health": {"kind": "http", "path": "/up"},
                    "placement": {"labels": {"disk": "ssd"}}
                },
                "config": {"domains": ["a.example"], "strip_prefix": true, "identity_path": "/_ping"}
            })
        );
    }

    #[test]
    fn a_plan_counts_per_host() {
        let plan: Plan = serde_json::from_value(json!({
            "summary": "deploy hello:1", "release": 1, "instances": 4,
            "would_place": ["h1", "h2", "h1"], "reasons": ["memory: 1 host"]
        }))
        .expect("a plan");
        assert_eq!(
            plan_text(&plan),
            "deploy hello:1\n  2 on h1\n  1 on h2\n1 would find no host:\n  memory: 1 host"
        );
    }

    #[test]
    fn flags_go_before_the_file() {
        let file = r#"
            app = "other"
            version = "9"
            instances = 3
            memory = "1G"
            port = 1000
            [env]
            A = "file"
            B = "file"
            [health]
            interval_ms = 500
            [config.limits]
            requests_per_second = 5
        "#;
        let from_file = request(&DeployArgs::default(), Some(parse_file(file).expect("sound"))).expect("sound");
        assert_eq!(from_file.app.as_str(), "other");
        let args = DeployArgs {
            port: Some(2000),
            env: vec![("A".into(), "flag".into())],
            unset_env: vec!["B".into()],
            health: Some(Health::Tcp),
            ..hello()
        };
        let both = request(&args, Some(parse_file(file).expect("sound"))).expect("sound");
        assert_eq!((both.app.as_str(), &both.env), ("hello", &None));
        assert_eq!(
            both.body,
            json!({
                "version": "1", "instances": 3,
                "spec": {
                    "port": 2000, "memory_mb": 1024, "env": {"A": "flag"},
                    "health": {"kind": "tcp", "interval_ms": 500}
                },
                "config": {"limits": {"requests_per_second": 5}}
            })
        );
    }

    #[test]
    fn variables_are_laid_over_the_last_releases() {
        let args = DeployArgs {
            env: vec![("A".into(), "1".into())],
            unset_env: vec!["B".into()],
            ..hello()
        };
        let changes = request(&args, None).expect("sound").env.expect("changes");
        let before: BTreeMap<String, String> = [("B", "x"), ("C", "y")].map(|(k, v)| (k.into(), v.into())).into();
        let after = merged_env(before, changes);
        assert_eq!(json!(after), json!({"A": "1", "C": "y"}));
    }

    #[test]
    fn the_example_file_is_sound_and_the_document_names_every_key() {
        let file = parse_file(include_str!("../../../examples/hello/app.toml")).expect("sound");
        let sent = request(&DeployArgs::default(), Some(file)).expect("sound");
        assert_eq!((sent.app.as_str(), &sent.body["version"]), ("hello", &json!("1")));
        let document = include_str!("../../../docs/app.md");
        let mut keys = vec!["app".to_owned(), "version".into(), "instances".into(), "memory".into()];
        let everything = [json!(ReleaseSpec::default()), json!(AppConfig::default())];
        let mut left: Vec<&Value> = everything.iter().collect();
        while let Some(value) = left.pop() {
            for (key, inner) in value.as_object().into_iter().flatten() {
                keys.push(key.clone());
                left.push(inner);
            }
        }
        for key in keys {
            let named = [format!("| `{key}` |"), format!("[{key}]"), format!("[config.{key}]")];
            assert!(named.iter().any(|n| document.contains(n)), "docs/app.md lacks {key}");
        }
    }

    #[test]
    fn slips_of_the_pen_are_told() {
        for (text, word) in [
            ("memroy_mb = 5", "memroy_mb"),
            ("port = \"x\"", "port"),
            ("app = \"No\"", "app id"),
            ("[config]\ndomain = []", "domain"),
            ("a = ", "line 1"),
        ] {
            let message = parse_file(text).expect_err(text);
            assert!(message.contains(word), "{text}: {message}");
        }
        let failure = request(&DeployArgs::default(), None).expect_err("nothing to deploy");
        assert_eq!(failure.code, crate::exit::USAGE);
    }
}
