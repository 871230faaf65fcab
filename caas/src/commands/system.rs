//! About the program itself: versions, completions, and a health check for containers without curl.

use std::time::Duration;

use clap::{Args, CommandFactory as _};
use serde_json::{Value, json};

use crate::cli::{Cli, Session};
use crate::client::{Client, Target};
use crate::exit::Failure;
use crate::render::{self, Output};

/// `caas completion`.
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// Which shell
    shell: clap_complete::Shell,
}

/// `caas healthcheck`.
#[derive(Debug, Args)]
pub(crate) struct HealthcheckArgs {
    /// Such as http://127.0.0.1:9090/ready
    url: String,
}

/// `caas completion`.
pub(crate) fn completion(args: &CompletionArgs) {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "caas", &mut script);
    render::print(String::from_utf8_lossy(&script).trim_end());
}

/// `caas healthcheck`.
pub(crate) async fn healthcheck(args: &HealthcheckArgs) -> Result<(), Failure> {
    let client = Client::new(Target {
        address: args.url.clone(),
        token: None,
        token_source: String::new(),
    })?;
    let (status, text) = client.probe(&args.url).await?;
    if status.is_success() {
        Ok(())
    } else {
        Err(Failure::error(format!(
            "{} answered {status}: {}",
            args.url,
            text.trim()
        )))
    }
}

/// `caas version`.
pub(crate) async fn version(session: &Session) -> Result<(), Failure> {
    let own = env!("CARGO_PKG_VERSION");
    let url = format!("{}/openapi.json", session.client.address());
    // An API that can't be reached is no error here: this program's version is known all the same.
    let asked = tokio::time::timeout(Duration::from_secs(2), session.client.document(&url)).await;
    let server = asked.ok().and_then(Result::ok).and_then(|document| {
        document
            .pointer("/info/version")
            .and_then(Value::as_str)
            .map(ToOwned::to_owned)
    });
    match session.output {
        Output::Json => render::print_json(&json!({ "client": own, "server": server })),
        Output::Table => {
            render::print(&format!("client  {own}"));
            match server {
                Some(version) => render::print(&format!("server  {version} at {}", session.client.address())),
                None => render::print(&format!("server  - ({} does not answer)", session.client.address())),
            }
        }
    }
    Ok(())
}
