//! The client verbs, one file per noun. A verb asks the API and shows the answer; it decides nothing about the fleet.

pub(crate) mod apps;
pub(crate) mod canary;
pub(crate) mod certificate;
pub(crate) mod config;
pub(crate) mod deploy;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod gateway;
pub(crate) mod host;
pub(crate) mod instances;
pub(crate) mod logs;
pub(crate) mod operation;
pub(crate) mod registry;
pub(crate) mod system;
pub(crate) mod upgrade;

use std::time::Duration;

use clap::Args;
use model::Operation;
use serde_json::Value;

use crate::cli::Session;
use crate::client::wait::{Waited, verdict};
use crate::client::{ApiError, typed};
use crate::exit::Failure;
use crate::render::{self, Output, Progress};
use crate::{exit, parse};

/// How long a verb waits for what it asked for.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct WaitArgs {
    /// Return as soon as the change is accepted
    #[arg(long)]
    no_wait: bool,
    /// How long to wait until it is done
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse::duration)]
    timeout: Duration,
}

impl Default for WaitArgs {
    fn default() -> Self {
        Self {
            no_wait: false,
            timeout: Duration::from_secs(300),
        }
    }
}

impl Session {
    /// Posts a change and follows its operation to its end. `Some`: what the operation became; `None`: it was not
    /// waited for, and everything is shown already.
    pub(crate) async fn change(
        &self,
        path: &str,
        body: Option<&Value>,
        wait: &WaitArgs,
    ) -> Result<Option<(Operation, Value)>, Failure> {
        let answer = self.client.post(path, body).await?;
        self.follow_change(&answer, wait).await
    }

    /// Follows the operation of a mutation's answer to its end.
    pub(crate) async fn follow_change(
        &self,
        answer: &Value,
        wait: &WaitArgs,
    ) -> Result<Option<(Operation, Value)>, Failure> {
        let operation = operation_of(answer)?;
        if wait.no_wait {
            match self.output {
                Output::Json => render::print_json(answer),
                Output::Table => render::print(&format!("accepted; follow it with `caas op watch {}`", operation.id)),
            }
            return Ok(None);
        }
        self.watch(operation, wait.timeout).await.map(Some)
    }

    /// Shows an operation's steps until it is final; fails when it does.
    pub(crate) async fn watch(&self, operation: Operation, timeout: Duration) -> Result<(Operation, Value), Failure> {
        let mut progress = Progress::new();
        let waited = self
            .client
            .wait(operation, timeout, |operation| progress.show(operation))
            .await?;
        if let (Output::Json, Waited::Final(_, json)) = (self.output, &waited) {
            render::print_json(json);
        }
        verdict(&waited, timeout)?;
        match waited {
            Waited::Final(operation, json) => Ok((*operation, json)),
            // `verdict` has answered it already.
            Waited::TimedOut(operation) => Err(Failure::new(exit::TIMED_OUT, operation.message)),
        }
    }

    /// One sentence about what was done; nothing with `-o json`, where the operation is printed.
    pub(crate) fn say(&self, sentence: &str) {
        if self.output == Output::Table {
            render::print(sentence);
        }
    }
}

/// The operation in a mutation's answer.
pub(crate) fn operation_of(answer: &Value) -> Result<Operation, ApiError> {
    typed(answer.get("operation").unwrap_or(answer))
}

/// An optional value as a cell.
pub(crate) fn cell<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}
