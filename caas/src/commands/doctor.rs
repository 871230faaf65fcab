//! `caas doctor`: does everything work, and what is to be done if not. It changes nothing.

use clap::Args;
use model::Host;
use serde_json::{Value, json};

use crate::cli::Session;
use crate::client::{ApiError, typed};
use crate::exit::Failure;
use crate::render::{self, Output};

/// `caas doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The gateway's admin address; else the context file's, else http://127.0.0.1:9090
    #[arg(long, value_name = "URL")]
    gateway_admin: Option<String>,
    /// registry-sync's admin address; else the context file's, else http://127.0.0.1:9091
    #[arg(long, value_name = "URL")]
    registry_sync_admin: Option<String>,
    /// Image registry to be tried from here, such as 127.0.0.1:5000
    #[arg(long, value_name = "HOST[:PORT]")]
    registry: Option<String>,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    name: String,
    /// `None`: it could not be checked from here, which is no fault.
    ok: Option<bool>,
    detail: String,
    advice: Option<String>,
}

impl Check {
    fn good(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ok: Some(true),
            detail: detail.into(),
            advice: None,
        }
    }

    fn bad(name: impl Into<String>, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ok: Some(false),
            detail: detail.into(),
            advice: Some(advice.into()),
        }
    }

    fn unknown(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ok: None,
            detail: detail.into(),
            advice: None,
        }
    }

    fn line(&self) -> String {
        let mark = match self.ok {
            Some(true) => "✓",
            Some(false) => "✗",
            None => "-",
        };
        let advice = self
            .advice
            .as_ref()
            .map_or_else(String::new, |a| format!("\n    → {a}"));
        format!("{mark} {}: {}{advice}", self.name, render::safe(&self.detail))
    }
}

/// `caas doctor`.
pub(crate) async fn run(session: &Session, args: &DoctorArgs) -> Result<(), Failure> {
    let checks = examine(session, args).await;
    match session.output {
        Output::Table => checks.iter().for_each(|check| render::print(&check.line())),
        Output::Json => {
            let list: Vec<Value> = checks
                .iter()
                .map(|c| json!({ "check": c.name, "ok": c.ok, "detail": c.detail, "advice": c.advice }))
                .collect();
            render::print_json(&Value::Array(list));
        }
    }
    match checks.iter().filter(|c| c.ok == Some(false)).count() {
        0 => Ok(()),
        1 => Err(Failure::error("1 check failed")),
        n => Err(Failure::error(format!("{n} checks failed"))),
    }
}

async fn examine(session: &Session, args: &DoctorArgs) -> Vec<Check> {
    let client = &session.client;
    let address = client.address();
    let mut checks = Vec::new();
    match client.probe(&format!("{address}/healthz/live")).await {
        Ok((status, _)) if status.is_success() => checks.push(Check::good("API", format!("{address} answers"))),
        Ok((status, _)) => checks.push(Check::bad(
            "API",
            format!("{address} answered {status}"),
            "is this address a caas scheduler's? --addr or CAAS_ADDR names another",
        )),
        Err(error) => {
            let advice = "start it with `caas up` (or `caas scheduler`), or name another with --addr or CAAS_ADDR";
            checks.push(Check::bad("API", Failure::from(error).message, advice));
            // Without it nothing else can be asked; what listens here still can.
            checks.extend(local_parts(session, args).await);
            return checks;
        }
    }
    checks.push(match client.probe(&format!("{address}/healthz/ready")).await {
        Ok((status, _)) if status.is_success() => Check::good("store", "the scheduler is ready"),
        Ok((_, text)) => Check::bad(
            "store",
            format!("the scheduler is not ready: {}", text.trim()),
            "is the database running and migrated (`caas migrate`)? the scheduler's log tells more",
        ),
        Err(error) => Check::bad("store", Failure::from(error).message, "the scheduler's log tells more"),
    });
    match client.list("/hosts").await {
        Ok(answer) => {
            checks.push(Check::good("token", "accepted"));
            checks.extend(hosts(&answer));
        }
        Err(ApiError::NotAllowed(message)) => checks.push(Check::bad(
            "token",
            message,
            "set CAAS_TOKEN or --token-file; `caas up` keeps the admin token in DIR/admin.token",
        )),
        Err(error) => checks.push(Check::bad(
            "hosts",
            Failure::from(error).message,
            "the scheduler's log tells more",
        )),
    }
    checks.extend(local_parts(session, args).await);
    checks
}

fn hosts(answer: &[Value]) -> Vec<Check> {
    let hosts: Vec<Host> = answer.iter().filter_map(|h| typed(h).ok()).collect();
    if hosts.is_empty() {
        return vec![Check::bad(
            "hosts",
            "there are none",
            "`caas host add NAME --address IP --engine URL` adds a Docker host",
        )];
    }
    hosts
        .iter()
        .map(|host| match host.down_since {
            Some(since) => Check::bad(
                format!("host {}", host.name),
                format!("its engine {} has not answered for {}", host.engine, render::age(since)),
                "is Docker running there, and reachable from the scheduler?",
            ),
            None => Check::good(
                format!("host {}", host.name),
                format!("up, {}, {} instances", host.schedulability.as_str(), host.instances),
            ),
        })
        .collect()
}

/// Gateway, registry-sync and image registry, as far as they can be reached from here.
async fn local_parts(session: &Session, args: &DoctorArgs) -> Vec<Check> {
    let context = &session.context;
    let gateway = args.gateway_admin.clone().or_else(|| context.gateway_admin.clone());
    let sync = args
        .registry_sync_admin
        .clone()
        .or_else(|| context.registry_sync_admin.clone());
    let mut checks = vec![
        ready(session, "gateway", gateway, "http://127.0.0.1:9090").await,
        ready(session, "registry-sync", sync, "http://127.0.0.1:9091").await,
    ];
    if let Some(registry) = &args.registry {
        checks.push(registry_answers(session, registry).await);
    }
    checks
}

async fn ready(session: &Session, name: &str, given: Option<String>, default: &str) -> Check {
    let known = given.is_some();
    let address = given.unwrap_or_else(|| default.to_owned());
    let address = address.trim_end_matches('/');
    match session.client.probe(&format!("{address}/ready")).await {
        Ok((status, _)) if status.is_success() => Check::good(name, format!("ready at {address}")),
        Ok((status, text)) => Check::bad(
            name,
            format!("{address}/ready answered {status}: {}", text.trim()),
            format!("the {name}'s log tells more"),
        ),
        Err(error) if known => Check::bad(name, Failure::from(error).message, format!("is the {name} running?")),
        Err(_) => Check::unknown(name, format!("nothing at {address}; name it with --{name}-admin")),
    }
}

async fn registry_answers(session: &Session, registry: &str) -> Check {
    let name = format!("registry {registry}");
    let mut last = String::new();
    for scheme in ["https", "http"] {
        match session.client.probe(&format!("{scheme}://{registry}/v2/")).await {
            Ok((status, _)) if status.is_success() => return Check::good(name, format!("answers over {scheme}")),
            Ok((status, _)) if status == 401 => {
                return Check::good(name, format!("answers over {scheme} and wants credentials"));
            }
            Ok((status, _)) => last = format!("{scheme}://{registry}/v2/ answered {status}"),
            Err(error) => last = Failure::from(error).message,
        }
    }
    Check::bad(
        name,
        last,
        "is it running, and is the address the one in your image names?",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_one_line_and_what_to_do() {
        assert_eq!(Check::good("API", "answers").line(), "✓ API: answers");
        assert_eq!(
            Check::bad("hosts", "there are none", "add one").line(),
            "✗ hosts: there are none\n    → add one"
        );
        assert_eq!(Check::unknown("gateway", "nothing").line(), "- gateway: nothing");
    }

    #[test]
    fn an_empty_fleet_is_a_fault() {
        assert_eq!(hosts(&[])[0].ok, Some(false));
    }
}
