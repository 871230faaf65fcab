//! Waiting for an operation: every change is shown, the end becomes an exit code.

use std::time::Duration;

use model::{Operation, OperationId, OperationState};
use serde_json::Value;
use tokio::time::Instant;

use super::{ApiError, Client, typed};
use crate::exit::{self, Failure};

/// How a wait ended.
#[derive(Debug)]
pub(crate) enum Waited {
    /// The operation is final.
    Final(Box<Operation>, Value),
    /// It goes on, the time is over.
    TimedOut(Box<Operation>),
}

impl Client {
    /// One operation, and the same as JSON.
    pub(crate) async fn operation(&self, id: &OperationId) -> Result<(Operation, Value), ApiError> {
        let value = self.get(&format!("/operations/{id}")).await?;
        let inner = value.get("operation").unwrap_or(&value).clone();
        Ok((typed(&inner)?, inner))
    }

    /// Follows `operation` until it is final or `timeout` has passed; `show` sees each state of it.
    pub(crate) async fn wait(
        &self,
        operation: Operation,
        timeout: Duration,
        mut show: impl FnMut(&Operation),
    ) -> Result<Waited, ApiError> {
        let started = Instant::now();
        let mut json = serde_json::to_value(&operation).unwrap_or_default();
        let mut now = operation;
        loop {
            show(&now);
            if now.state.is_final() {
                return Ok(Waited::Final(Box::new(now), json));
            }
            let waited = started.elapsed();
            if waited >= timeout {
                return Ok(Waited::TimedOut(Box::new(now)));
            }
            // Short steps are worth seeing at once; long work is not asked for ten times a second.
            let pause = match waited.as_secs() {
                0..=4 => 60,
                5..=29 => 200,
                _ => 500,
            };
            tokio::time::sleep(Duration::from_millis(pause).min(timeout - waited)).await;
            (now, json) = self.operation(&now.id).await?;
        }
    }
}

/// What a wait's end means for the run: nothing, or why it failed.
pub(crate) fn verdict(waited: &Waited, timeout: Duration) -> Result<(), Failure> {
    let operation = match waited {
        Waited::Final(operation, _) => operation,
        Waited::TimedOut(operation) => {
            let mut failure = Failure::new(
                exit::TIMED_OUT,
                format!(
                    "{} is not done after {} s; it goes on: `caas op watch {}`",
                    operation.kind.as_str(),
                    timeout.as_secs(),
                    operation.id
                ),
            );
            if !operation.message.is_empty() {
                failure.lines.push(operation.message.clone());
            }
            failure.lines.extend(operation.reasons.iter().cloned());
            return Err(failure);
        }
    };
    match operation.state {
        OperationState::Succeeded => Ok(()),
        OperationState::Superseded => Err(Failure::error(format!(
            "a later change took the place of this {}",
            operation.kind.as_str()
        ))),
        _ => {
            let message = if operation.message.is_empty() {
                format!("{} failed", operation.kind.as_str())
            } else {
                format!("{} failed: {}", operation.kind.as_str(), operation.message)
            };
            let mut failure = Failure::new(exit::NOT_PLACED, message);
            failure.lines = failure_lines(operation);
            Err(failure)
        }
    }
}

/// Why the first instance failed: sentence, exit code, last probes, last log lines.
pub(crate) fn failure_lines(operation: &Operation) -> Vec<String> {
    let mut lines = operation.reasons.clone();
    let Some(failure) = &operation.failure else {
        return lines;
    };
    if !operation.message.contains(&failure.message) {
        lines.push(failure.message.clone());
    }
    if let Some(code) = failure.exit_code {
        lines.push(format!("exit code: {code}{}", meaning(code)));
    }
    if !failure.probes.is_empty() {
        lines.push("last probes:".into());
        lines.extend(failure.probes.iter().map(|p| format!("  {p}")));
    }
    if failure.log_tail.is_empty() {
        lines.push("the container wrote no log".into());
    } else {
        lines.push("last log lines:".into());
        lines.extend(failure.log_tail.iter().map(|l| format!("  {}", crate::render::safe(l))));
    }
    lines
}

/// What the well-known exit codes say.
fn meaning(code: i64) -> &'static str {
    match code {
        0 => " (it ended by itself: a service has to keep running)",
        126 => " (the command can't be executed)",
        127 => " (the command was not found in the image)",
        137 => " (SIGKILL, often the memory limit)",
        139 => " (segmentation fault)",
        143 => " (SIGTERM)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Failure as InstanceFailure, FailureCode, OperationKind};

    fn operation(state: OperationState) -> Operation {
        Operation {
            id: "op-1234".parse().expect("valid"),
            kind: OperationKind::Deploy,
            app: Some("hello".parse().expect("valid")),
            host: None,
            release: Some(1),
            state,
            message: String::new(),
            failure: None,
            steps: Vec::new(),
            reasons: Vec::new(),
            created_at: model::Timestamp::default(),
            updated_at: model::Timestamp::default(),
            generation: model::Generation::FIRST,
        }
    }

    fn ended(operation: Operation) -> Waited {
        Waited::Final(Box::new(operation), Value::Null)
    }

    #[test]
    fn ends_become_exit_codes() {
        let t = Duration::from_secs(9);
        assert_eq!(verdict(&ended(operation(OperationState::Succeeded)), t), Ok(()));
        let code = |w: &Waited| verdict(w, t).expect_err("a failure").code;
        assert_eq!(code(&ended(operation(OperationState::Failed))), exit::NOT_PLACED);
        assert_eq!(code(&ended(operation(OperationState::Superseded))), exit::ERROR);
        let waited = Waited::TimedOut(Box::new(operation(OperationState::Running)));
        assert_eq!(code(&waited), exit::TIMED_OUT);
    }

    #[test]
    fn a_failed_deploy_shows_exit_code_probes_and_log() {
        let mut failed = operation(OperationState::Failed);
        failed.message = "instance abcd exited".into();
        failed.failure = Some(InstanceFailure {
            code: FailureCode::Exited,
            message: "it exited".into(),
            exit_code: Some(127),
            log_tail: vec!["boom\u{1b}[2J".into()],
            probes: vec!["connection refused".into()],
        });
        let text = verdict(&ended(failed), Duration::ZERO).expect_err("failed").to_string();
        assert_eq!(
            text,
            "caas: deploy failed: instance abcd exited\n  it exited\n  exit code: 127 (the command was not found in the \
             image)\n  last probes:\n    connection refused\n  last log lines:\n    boom\\u{1b}[2J"
        );
    }
}
