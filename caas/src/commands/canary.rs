//! The canary of an app: its share, and its two ways out. `caas deploy --canary` begins it.

use clap::Args;
use model::AppId;
use serde_json::json;

use super::WaitArgs;
use super::apps::{VerbArgs, announce};
use crate::cli::Session;
use crate::exit::Failure;

/// `caas canary`.
#[derive(Debug, Args)]
pub(crate) struct CanaryArgs {
    /// The app
    app: AppId,
    /// The canary's share of the requests, per cent
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100))]
    percent: u32,
    #[command(flatten)]
    wait: WaitArgs,
}

/// `caas canary`.
pub(crate) async fn share(session: &Session, args: &CanaryArgs) -> Result<(), Failure> {
    let path = format!("/apps/{}/canary", args.app);
    let body = json!({ "percent": args.percent });
    if session.change(&path, Some(&body), &args.wait).await?.is_some() {
        session.say(&format!(
            "the canary of {} has {} % of the requests",
            args.app, args.percent
        ));
    }
    Ok(())
}

/// `caas promote`.
pub(crate) async fn promote(session: &Session, args: &VerbArgs) -> Result<(), Failure> {
    let path = format!("/apps/{}/promote", args.app);
    if session.change(&path, None, &args.wait).await?.is_some() {
        announce(session, &args.app).await?;
    }
    Ok(())
}

/// `caas abort`.
pub(crate) async fn abort(session: &Session, args: &VerbArgs) -> Result<(), Failure> {
    let path = format!("/apps/{}/abort", args.app);
    if session.change(&path, None, &args.wait).await?.is_some() {
        session.say(&format!("the canary of {} is gone", args.app));
    }
    Ok(())
}
