//! Operations: the long work that verbs ask for.

use std::time::Duration;

use clap::{Args, Subcommand};
use model::{AppId, Operation, OperationId};

use serde_json::Value;

use super::cell;
use crate::cli::Session;
use crate::client::typed;
use crate::exit::Failure;
use crate::parse;
use crate::render::{self, Output, age};

/// `caas op …`.
#[derive(Debug, Subcommand)]
pub(crate) enum OpCommand {
    /// List operations, newest first
    Ls {
        /// Only of this app
        #[arg(long)]
        app: Option<AppId>,
    },
    /// Show one operation
    Show {
        /// Its id
        id: OperationId,
    },
    /// Follow an operation to its end; exits as the verb would have
    Watch(WatchArgs),
}

/// `caas op watch`.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Its id
    id: OperationId,
    /// How long to wait until it is done
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse::duration)]
    timeout: Duration,
}

/// `caas op …`.
pub(crate) async fn run(session: &Session, command: &OpCommand) -> Result<(), Failure> {
    match command {
        OpCommand::Ls { app } => {
            let query = app.as_ref().map_or_else(String::new, |app| format!("?app={app}"));
            let answer = session.client.list(&format!("/operations{query}")).await?;
            if session.output == Output::Json {
                render::print_json(&Value::Array(answer));
                return Ok(());
            }
            let operations: Vec<Operation> = answer.iter().map(typed).collect::<Result<_, _>>()?;
            let rows = operations.iter().map(row).collect();
            let headers = ["OPERATION", "KIND", "ABOUT", "RELEASE", "STATE", "AGE", "MESSAGE"];
            render::print(&render::table(&headers, rows));
        }
        OpCommand::Show { id } => {
            let (operation, json) = session.client.operation(id).await?;
            match session.output {
                Output::Json => render::print_json(&json),
                Output::Table => show(&operation),
            }
        }
        OpCommand::Watch(args) => {
            let (operation, _) = session.client.operation(&args.id).await?;
            let (operation, _) = session.watch(operation, args.timeout).await?;
            session.say(&format!("{} {}", operation.kind.as_str(), operation.state.as_str()));
        }
    }
    Ok(())
}

fn about(operation: &Operation) -> String {
    let app = operation.app.as_ref().map(ToString::to_string);
    cell(app.or_else(|| operation.host.as_ref().map(|h| format!("@{h}"))))
}

fn row(operation: &Operation) -> Vec<String> {
    vec![
        operation.id.to_string(),
        operation.kind.as_str().to_owned(),
        about(operation),
        cell(operation.release),
        operation.state.as_str().to_owned(),
        age(operation.created_at),
        operation.message.clone(),
    ]
}

fn show(operation: &Operation) {
    render::print(&format!(
        "{} {} {}: {} {}",
        operation.id,
        operation.kind.as_str(),
        about(operation),
        operation.state.as_str(),
        render::safe(&operation.message)
    ));
    for line in render::step_lines(operation) {
        render::print(&line);
    }
    for line in crate::client::wait::failure_lines(operation) {
        render::print(&format!("  {line}"));
    }
}
