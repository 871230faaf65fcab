//! Instances: the list.

use clap::Args;
use model::{AppId, HostName, Instance, InstanceState};

use serde_json::Value;

use super::cell;
use crate::cli::Session;
use crate::client::typed;
use crate::exit::Failure;
use crate::render::{self, Output, age};

/// `caas ps`.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Only of this app
    app: Option<AppId>,
    /// Only on this host
    #[arg(long)]
    host: Option<HostName>,
    /// Also those that are gone
    #[arg(short, long)]
    all: bool,
}

/// `caas ps`.
pub(crate) async fn list(session: &Session, args: &PsArgs) -> Result<(), Failure> {
    let mut query = Vec::new();
    if let Some(app) = &args.app {
        query.push(format!("app={app}"));
    }
    if let Some(host) = &args.host {
        query.push(format!("host={host}"));
    }
    if args.all {
        query.push("all=true".to_owned());
    }
    let question = if query.is_empty() { "" } else { "?" };
    let answer = session
        .client
        .list(&format!("/instances{question}{}", query.join("&")))
        .await?;
    if session.output == Output::Json {
        render::print_json(&Value::Array(answer));
        return Ok(());
    }
    let instances: Vec<Instance> = answer.iter().map(typed).collect::<Result<_, _>>()?;
    if instances.is_empty() {
        render::print("no instances");
    } else {
        render::print(&table_of(&instances));
    }
    Ok(())
}

/// Instances as a table.
pub(crate) fn table_of(instances: &[Instance]) -> String {
    let rows = instances
        .iter()
        .map(|i| {
            vec![
                i.id.to_string(),
                i.app.to_string(),
                i.version.to_string(),
                i.release.to_string(),
                format!("{}:{}", i.host, i.port),
                state(i),
                i.restarts.to_string(),
                cell(i.started_at.map(age)),
                i.failure.as_ref().map_or_else(String::new, |f| f.message.clone()),
            ]
        })
        .collect();
    let headers = [
        "INSTANCE",
        "APP",
        "VERSION",
        "RELEASE",
        "HOST:PORT",
        "STATE",
        "RESTARTS",
        "UP",
        "WHY",
    ];
    render::table(&headers, rows)
}

/// The state, with what it does not say by itself.
fn state(instance: &Instance) -> String {
    let word = instance.state.as_str();
    match instance.state {
        InstanceState::Running if instance.routed_at.is_none() => format!("{word} (not routed yet)"),
        InstanceState::Running if instance.assumed_healthy => format!("{word} (assumed)"),
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Failure as InstanceFailure, FailureCode, Generation, Timestamp};

    #[test]
    fn instances_are_listed_with_state_and_reason() {
        let running = Instance {
            id: "abcd1234".parse().expect("valid"),
            app: "hello".parse().expect("valid"),
            release: 1,
            version: "1".parse().expect("valid"),
            host: "h1".parse().expect("valid"),
            port: 20_000,
            container: None,
            state: InstanceState::Running,
            routed_at: Some(Timestamp::now()),
            assumed_healthy: true,
            failure: None,
            restarts: 0,
            memory_mb: 256,
            cpu_weight: 1024,
            placed_at: Timestamp::now(),
            started_at: Some(Timestamp::now()),
            heartbeat_at: None,
            changed_at: Timestamp::now(),
            released_at: None,
            generation: Generation::FIRST,
        };
        let failed = Instance {
            state: InstanceState::Failed,
            failure: Some(InstanceFailure::new(FailureCode::Exited, "it exited with 1")),
            started_at: None,
            ..running.clone()
        };
        let text = table_of(&[running, failed]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("INSTANCE  APP"), "{text}");
        assert!(lines[1].contains("h1:20000   running (assumed)"), "{text}");
        assert!(lines[2].ends_with("  it exited with 1"), "{text}");
    }
}
