//! `caas migrate`: the database's schema. Safe to run again and from several places at once.

use std::time::Duration;

use clap::Args;
use model::store::StoreError;
use tokio::time::Instant;

use crate::config::{ConfigArgs, Overrides, without_password};
use crate::exit::{self, Failure};
use crate::{parse, process};

/// `caas migrate`.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Database: mysql://user@host/db or sqlite:///path; a password is safer in CAAS_STORE__URL
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// How long to wait for a database that does not answer yet
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse::duration)]
    wait: Duration,
}

/// Brings the schema up to date.
pub(crate) fn run(args: &MigrateArgs) -> Result<(), Failure> {
    let mut flags = Overrides::default();
    flags.set("store.url", args.store.as_ref());
    let config = args.config.load(&Overrides::default(), &flags)?;
    let url = config.store_url()?.to_owned();
    process::start_log(&config.log)?;
    let until = args.wait;
    process::run_role(|shutdown| async move {
        tokio::select! {
            done = migrate(&url, until) => done,
            () = shutdown.cancelled() => Err(Failure::error("interrupted")),
        }
    })
}

async fn migrate(url: &str, wait: Duration) -> Result<(), Failure> {
    let until = Instant::now() + wait;
    loop {
        match backends::store::migrate(url).await {
            Ok(()) => {
                tracing::info!(store = %without_password(url), "the schema is up to date");
                return Ok(());
            }
            Err(error @ StoreError::Unavailable(_)) => {
                if Instant::now() >= until {
                    return Err(Failure::new(exit::TIMED_OUT, error.to_string()));
                }
                tracing::warn!(%error, "waiting for the database");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(Failure::error(error.to_string())),
        }
    }
}
