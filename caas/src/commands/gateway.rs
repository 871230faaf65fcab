//! One gateway, asked at its admin port: what it knows, what it would do, and what an operator changes by hand.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::cell;
use super::upgrade::{self, UpgradeArgs};
use crate::client::context::Context;
use crate::client::{ApiError, Client, Target};
use crate::exit::{self, Failure};
use crate::parse;
use crate::render::{self, Output};

/// Where a gateway's admin server is when nobody says otherwise.
const DEFAULT: &str = "http://127.0.0.1:9090";

/// `caas gateway …`.
#[derive(Debug, Subcommand)]
pub(crate) enum GatewayCommand {
    /// List the hosts that the gateway routes
    Routes(ListArgs),
    /// List endpoints with their state, load and last error
    Endpoints(ListArgs),
    /// Explain what would become of a request, without sending one; exit 1 when the gateway would refuse it
    Explain(ExplainArgs),
    /// Take an endpoint out of the gateway's turn for a while
    Eject(EjectArgs),
    /// Put an endpoint back
    Uneject(EndpointArgs),
    /// Make /ready answer 503, so that load balancers leave the gateway; it goes on serving
    Drain(AdminArgs),
    /// Make /ready answer 200 again
    Undrain(AdminArgs),
    /// Have a gateway of this machine hand its sockets to a new process of its program file, and wait until that serves
    Upgrade(UpgradeArgs),
}

/// Which gateway.
#[derive(Debug, Args)]
pub(crate) struct AdminArgs {
    /// The gateway's admin address; else that of `caas up` on this machine, else http://127.0.0.1:9090
    #[arg(long, env = "CAAS_GATEWAY_ADMIN", value_name = "URL")]
    admin: Option<String>,
}

/// Which apps.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Only this app's
    app: Option<String>,
}

/// `caas gateway explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// The request's host, such as hello.example.com
    host: String,
    /// Its path
    #[arg(default_value = "/")]
    path: String,
    /// Its method
    #[arg(long, default_value = "GET")]
    method: String,
    /// It comes to the port for TLS
    #[arg(long)]
    https: bool,
    /// The server that the TLS handshake names, if it is another than the host
    #[arg(long, value_name = "NAME", requires = "https")]
    server_name: Option<String>,
    /// The client's address
    #[arg(long, value_name = "IP")]
    client: Option<std::net::IpAddr>,
    /// Its Cookie header
    #[arg(long)]
    cookie: Option<String>,
    /// A further header, as NAME:VALUE; may be given several times
    #[arg(long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
}

/// An endpoint of an app.
#[derive(Debug, Args)]
pub(crate) struct EndpointArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// The app
    app: String,
    /// The container's id or its beginning, or the endpoint's address
    endpoint: String,
}

/// `caas gateway eject`.
#[derive(Debug, Args)]
pub(crate) struct EjectArgs {
    #[command(flatten)]
    which: EndpointArgs,
    /// For how long
    #[arg(long = "for", value_name = "DURATION", default_value = "5m", value_parser = parse::duration)]
    time: Duration,
}

/// Does it.
pub(crate) async fn run(command: &GatewayCommand, output: Output) -> Result<(), Failure> {
    match command {
        GatewayCommand::Routes(args) => {
            let answer = admin(&args.admin)?
                .get(&query("/routes", &[("app", args.app.as_deref())]))
                .await?;
            show(output, &answer, routes_table);
        }
        GatewayCommand::Endpoints(args) => {
            let answer = admin(&args.admin)?
                .get(&query("/endpoints", &[("app", args.app.as_deref())]))
                .await?;
            show(output, &answer, endpoints_table);
        }
        GatewayCommand::Explain(args) => {
            let client = args.client.map(|c| c.to_string());
            let mut asked = vec![
                ("host", Some(args.host.as_str())),
                ("path", Some(args.path.as_str())),
                ("method", Some(args.method.as_str())),
                ("https", args.https.then_some("1")),
                ("server_name", args.server_name.as_deref()),
                ("client", client.as_deref()),
                ("cookie", args.cookie.as_deref()),
            ];
            asked.extend(args.headers.iter().map(|field| ("header", Some(field.as_str()))));
            let answer = admin(&args.admin)?.get(&query("/explain", &asked)).await?;
            show(output, &answer, explanation);
            if let Some(message) = refused(&answer) {
                return Err(Failure::new(exit::ERROR, message));
            }
        }
        GatewayCommand::Eject(args) => {
            let which = &args.which;
            let body = json!({ "app": which.app, "endpoint": which.endpoint, "seconds": args.time.as_secs() });
            let answer = admin(&which.admin)?.post("/eject", &body).await?;
            show(output, &answer, |_| {
                format!("{} is out for {}", which.endpoint, render::span(args.time))
            });
        }
        GatewayCommand::Uneject(args) => {
            let body = json!({ "app": args.app, "endpoint": args.endpoint });
            let answer = admin(&args.admin)?.post("/uneject", &body).await?;
            show(output, &answer, |_| format!("{} is back", args.endpoint));
        }
        GatewayCommand::Drain(args) => {
            let answer = admin(args)?.post("/drain", &json!({})).await?;
            show(output, &answer, |_| {
                "the gateway is not ready any more; it goes on serving".into()
            });
        }
        GatewayCommand::Undrain(args) => {
            let answer = admin(args)?.post("/undrain", &json!({})).await?;
            show(output, &answer, |_| "the gateway is ready again".into());
        }
        GatewayCommand::Upgrade(args) => {
            let answer = upgrade::run(args).await?;
            show(output, &answer, |answer| {
                format!("process {} serves, {} drains", answer["pid"], answer["predecessor"])
            });
        }
    }
    Ok(())
}

fn show(output: Output, answer: &Value, table: impl FnOnce(&Value) -> String) {
    match output {
        Output::Json => render::print_json(answer),
        Output::Table => render::print(&table(answer)),
    }
}

fn query(path: &str, pairs: &[(&str, Option<&str>)]) -> String {
    let mut separator = '?';
    let mut out = path.to_owned();
    for (name, value) in pairs {
        if let Some(value) = value {
            out.push(separator);
            out.push_str(&format!("{name}={}", crate::client::segment(value)));
            separator = '&';
        }
    }
    out
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn routes_table(answer: &Value) -> String {
    let rows = list(answer, "routes").map(|route| {
        let all = list(route, "endpoints").count();
        let ready = list(route, "endpoints").filter(|e| e["state"] == "ready").count();
        vec![
            text(route, "host"),
            text(route, "app"),
            format!("{ready}/{all}"),
            text(route, "in_flight"),
        ]
    });
    render::table(&["HOST", "APP", "READY", "UNDER WAY"], rows.collect())
}

/// Beginning of a container's id, as Docker shows it.
fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

fn endpoint_cells(endpoint: &Value) -> Vec<String> {
    let span = |value: &Value, unit: u64| value.as_u64().map(|n| render::span(Duration::from_millis(n * unit)));
    let state = match span(&endpoint["left_out_ms"], 1).filter(|_| endpoint["left_out_ms"] != 0) {
        Some(left) => format!("{} ({left})", text(endpoint, "state")),
        None => text(endpoint, "state"),
    };
    let latency = endpoint["latency_us"]
        .as_f64()
        .map(|us| format!("{:.1}ms", us / 1_000.0));
    let error = &endpoint["last_error"];
    let error = error["reason"].as_str().map(|reason| {
        let ago = span(&error["ago_s"], 1_000).unwrap_or_default();
        format!("{reason} {ago} ago")
    });
    vec![
        text(endpoint, "version"),
        short(&text(endpoint, "container")),
        text(endpoint, "address"),
        text(endpoint, "protocol"),
        state,
        text(endpoint, "in_flight"),
        cell(latency),
        cell(span(&endpoint["age_s"], 1_000)),
        cell(error),
    ]
}

const ENDPOINT: [&str; 9] = [
    "VERSION",
    "CONTAINER",
    "ADDRESS",
    "SPEAKS",
    "STATE",
    "UNDER WAY",
    "LATENCY",
    "AGE",
    "LAST ERROR",
];

fn endpoints_table(answer: &Value) -> String {
    let rows = list(answer, "apps").flat_map(|app| {
        list(app, "endpoints").map(|endpoint| {
            let mut row = vec![text(app, "app")];
            row.extend(endpoint_cells(endpoint));
            row
        })
    });
    let headers: Vec<&str> = std::iter::once("APP").chain(ENDPOINT).collect();
    render::table(&headers, rows.collect())
}

/// That the request would reach no app, if it would not.
fn refused(answer: &Value) -> Option<String> {
    let outcome = answer["outcome"].as_str().unwrap_or("unknown");
    if matches!(outcome, "forward" | "passthrough") {
        None
    } else if answer["status"].is_null() {
        Some(format!("the gateway would close the connection: {outcome}"))
    } else {
        Some(format!("the gateway would answer by itself: {outcome}"))
    }
}

fn explanation(answer: &Value) -> String {
    let mut lines = vec![format!(
        "outcome  {} {}",
        text(answer, "outcome"),
        answer["status"].as_u64().map_or_else(String::new, |s| s.to_string())
    )];
    if !answer["location"].is_null() {
        lines.push(format!("location {}", text(answer, "location")));
    }
    lines.push(format!("rule     {}", text(answer, "rule")));
    if answer["app"] != "" {
        lines.push(format!(
            "app      {} ({})",
            text(answer, "app"),
            text(answer, "balance")
        ));
    }
    if !answer["version"].is_null() {
        lines.push(format!("version  {}", text(answer, "version")));
    }
    let shares = answer["shares"].as_object().into_iter().flatten();
    let shares: Vec<String> = shares.map(|(v, percent)| format!("{v} {percent}%")).collect();
    if !shares.is_empty() {
        lines.push(format!("shares   {}", shares.join(", ")));
    }
    let rows: Vec<Vec<String>> = list(answer, "endpoints")
        .map(|endpoint| {
            let mut row = vec![text(endpoint, "why")];
            row.extend(endpoint_cells(endpoint));
            row
        })
        .collect();
    if !rows.is_empty() {
        let headers: Vec<&str> = std::iter::once("STANDING").chain(ENDPOINT).collect();
        lines.push(render::table(&headers, rows));
    }
    lines.join("\n").replace(" \n", "\n")
}

/// The gateway that is meant: the flag's, else the one that `caas up` wrote down.
struct Admin(Client);

fn admin(args: &AdminArgs) -> Result<Admin, Failure> {
    let said = match &args.admin {
        Some(address) => Some(address.clone()),
        None => Context::load(Context::path().as_deref())?.gateway_admin,
    };
    let address = said.unwrap_or_else(|| DEFAULT.to_owned());
    let address = address.trim_end_matches('/');
    let address = match address.contains("://") {
        true => address.to_owned(),
        false => format!("http://{address}"),
    };
    let target = Target {
        address,
        token: None,
        token_source: "no token is sent to gateways".into(),
    };
    Client::of_gateway(target).map(Admin)
}

impl Admin {
    async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.0.get(path).await.map_err(failure)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.0.post(path, Some(body)).await.map_err(failure)
    }
}

fn failure(error: ApiError) -> Failure {
    match error {
        ApiError::Unreachable { address, message } => Failure::error(format!(
            "the gateway at {address} can't be reached: {message}"
        ))
        .line(
            "--admin or CAAS_GATEWAY_ADMIN names its admin address, which is on the gateway's own machine by default",
        ),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_escaped() {
        let asked = [("host", Some("a b&c")), ("client", None), ("cookie", Some("x=1; y"))];
        assert_eq!(query("/explain", &asked), "/explain?host=a%20b%26c&cookie=x%3D1%3B%20y");
        assert_eq!(query("/routes", &[("app", None)]), "/routes");
    }

    #[test]
    fn tables_of_what_a_gateway_says() {
        let endpoint = json!({
            "version": "1", "container": "0123456789abcdef", "address": "10.0.0.1:20000", "protocol": "h2c", "state": "left_out",
            "left_out_ms": 2_000, "failures": 1, "in_flight": 3, "age_s": 90, "latency_us": 1_500,
            "last_error": { "reason": "connect_failed", "ago_s": 4 }, "why": "left_out", "candidate": false,
        });
        let table = endpoints_table(&json!({ "apps": [{ "app": "hello", "endpoints": [endpoint] }] }));
        for part in [
            "0123456789ab ",
            " h2c ",
            "left_out (2s)",
            "1.5ms",
            "connect_failed 4s ago",
        ] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
        let told = explanation(&json!({
            "outcome": "forward", "status": null, "rule": "app", "app": "hello", "balance": "round_robin",
            "shares": { "1": 95.0, "2": 5.0 }, "endpoints": [endpoint],
        }));
        assert!(
            told.starts_with("outcome  forward\nrule     app\napp      hello (round_robin)\n"),
            "{told}"
        );
        assert!(told.contains("shares   1 95.0%, 2 5.0%"), "{told}");
        for (outcome, status, message) in [
            ("forward", Value::Null, None),
            ("passthrough", Value::Null, None),
            (
                "unknown_app",
                404.into(),
                Some("the gateway would answer by itself: unknown_app"),
            ),
            (
                "unknown_name",
                Value::Null,
                Some("the gateway would close the connection: unknown_name"),
            ),
        ] {
            let told = json!({ "outcome": outcome, "status": status });
            assert_eq!(refused(&told).as_deref(), message);
        }
        let routes =
            routes_table(&json!({ "routes": [{ "host": "h", "app": "a", "in_flight": 1, "endpoints": [endpoint] }] }));
        assert!(routes.contains("0/1"), "{routes}");
    }
}
