//! Docker hosts of the fleet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::{Args, Subcommand};
use model::{Host, HostName, Schedulability};
use serde_json::{Value, json};

use super::WaitArgs;
use crate::cli::Session;
use crate::client::typed;
use crate::exit::Failure;
use crate::parse;
use crate::render::{self, Output, age, mib};

/// `caas host …`.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Add a Docker host
    Add(AddArgs),
    /// List hosts
    Ls,
    /// Set labels, or take them away
    Label(LabelArgs),
    /// No new instances; those present stay
    Cordon {
        /// The host
        host: HostName,
    },
    /// New instances may come again
    Uncordon {
        /// The host
        host: HostName,
    },
    /// No new instances; those present are moved elsewhere
    Drain {
        /// The host
        host: HostName,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Remove a host that carries no instance
    Rm {
        /// The host
        host: HostName,
    },
}

/// `caas host add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// Its name within the platform
    name: HostName,
    /// Address on which its containers' ports are published and reached
    #[arg(long, value_name = "IP")]
    address: IpAddr,
    /// Its Docker Engine: unix:///var/run/docker.sock, tcp://10.0.0.5:2375 or https://10.0.0.5:2376
    #[arg(long, value_name = "URL")]
    engine: String,
    /// A label that placements may ask for (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::key_value)]
    label: Vec<(String, String)>,
    /// Region, given to containers as CAAS_REGION
    #[arg(long)]
    region: Option<String>,
    /// Memory that instances may reserve, such as 8G; else what the scheduler finds sound
    #[arg(long, value_name = "SIZE", value_parser = parse::memory_mib)]
    memory: Option<u32>,
    /// Host ports for instances, such as 20000-29999; else the scheduler's default
    #[arg(long, value_name = "FIRST-LAST", value_parser = parse::port_range)]
    ports: Option<(u16, u16)>,
}

impl AddArgs {
    fn body(&self) -> Value {
        let labels: BTreeMap<&str, &str> = self.label.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let mut body = json!({
            "name": self.name, "address": self.address, "engine": self.engine, "labels": labels,
        });
        if let Some(region) = &self.region {
            body["region"] = json!(region);
        }
        if let Some(memory) = self.memory {
            body["memory_mb"] = json!(memory);
        }
        if let Some(ports) = self.ports {
            body["port_range"] = json!(ports);
        }
        body
    }
}

/// `caas host label`.
#[derive(Debug, Args)]
pub(crate) struct LabelArgs {
    /// The host
    host: HostName,
    /// KEY=VALUE sets, KEY- takes away
    #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = parse::label_change)]
    changes: Vec<(String, Option<String>)>,
}

/// `caas host …`.
pub(crate) async fn run(session: &Session, command: &HostCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        HostCommand::Add(args) => {
            let answer = client.post("/hosts", Some(&args.body())).await?;
            let host: Host = typed(&answer)?;
            let sentence = format!(
                "host {} joined: {} of memory, {} cores",
                host.name,
                mib(host.memory_mb),
                f64::from(host.cpu_millis) / 1000.0
            );
            done(session, &answer, &sentence);
        }
        HostCommand::Ls => {
            let answer = client.list("/hosts").await?;
            if session.output == Output::Json {
                render::print_json(&Value::Array(answer));
                return Ok(());
            }
            let hosts: Vec<Host> = answer.iter().map(typed).collect::<Result<_, _>>()?;
            if hosts.is_empty() {
                render::print("no hosts yet: `caas host add NAME --address IP --engine URL` adds one");
            } else {
                render::print(&table_of(&hosts));
            }
        }
        HostCommand::Label(args) => {
            let path = format!("/hosts/{}", args.host);
            let host: Host = typed(&client.get(&path).await?)?;
            let labels = changed_labels(host.labels, &args.changes);
            let answer = client
                .patch(&path, &json!({ "labels": labels }), host.generation.0)
                .await?;
            done(session, &answer, &format!("host {} is labelled", args.host));
        }
        HostCommand::Cordon { host } => {
            let answer = client.post(&format!("/hosts/{host}/cordon"), None).await?;
            done(session, &answer, &format!("host {host} gets no new instances"));
        }
        HostCommand::Uncordon { host } => {
            let answer = client.post(&format!("/hosts/{host}/uncordon"), None).await?;
            done(session, &answer, &format!("host {host} gets new instances again"));
        }
        HostCommand::Drain { host, wait } => {
            if session
                .change(&format!("/hosts/{host}/drain"), None, wait)
                .await?
                .is_some()
            {
                session.say(&format!("host {host} is empty"));
            }
        }
        HostCommand::Rm { host } => {
            client.delete(&format!("/hosts/{host}")).await?;
            session.say(&format!("host {host} is gone"));
        }
    }
    Ok(())
}

fn done(session: &Session, answer: &Value, sentence: &str) {
    match session.output {
        Output::Json => render::print_json(answer),
        Output::Table => render::print(sentence),
    }
}

fn changed_labels(
    mut labels: BTreeMap<String, String>,
    changes: &[(String, Option<String>)],
) -> BTreeMap<String, String> {
    for (key, value) in changes {
        match value {
            Some(value) => labels.insert(key.clone(), value.clone()),
            None => labels.remove(key),
        };
    }
    labels
}

fn table_of(hosts: &[Host]) -> String {
    let rows = hosts
        .iter()
        .map(|h| {
            let labels: Vec<String> = h.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            vec![
                h.name.to_string(),
                h.address.to_string(),
                state(h),
                h.instances.to_string(),
                format!("{}/{}", mib(h.reserved_memory_mb), mib(h.memory_mb)),
                format!(
                    "{:.1}/{:.1}",
                    f64::from(h.used_cpu_millis) / 1000.0,
                    f64::from(h.cpu_millis) / 1000.0
                ),
                labels.join(" "),
                h.engine.clone(),
            ]
        })
        .collect();
    let headers = [
        "HOST",
        "ADDRESS",
        "STATE",
        "INSTANCES",
        "MEMORY",
        "CPU",
        "LABELS",
        "ENGINE",
    ];
    render::table(&headers, rows)
}

fn state(host: &Host) -> String {
    let up = match host.down_since {
        Some(since) => format!("down {}", age(since)),
        None => "up".to_owned(),
    };
    match host.schedulability {
        Schedulability::Schedulable => up,
        other => format!("{up}, {}", other.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_taken_away() {
        let before = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let changes = [("a".to_owned(), None), ("c".to_owned(), Some("3".to_owned()))];
        assert_eq!(json!(changed_labels(before, &changes)), json!({"b": "2", "c": "3"}));
    }
}
