//! Credentials of image registries. A password comes from standard input or the environment, never from the command
//! line, where other users could see it.

use std::io::{BufRead as _, IsTerminal as _};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::cell;
use crate::cli::Session;
use crate::client::segment;
use crate::exit::Failure;
use crate::render::{self, Output};

/// `caas registry …`.
#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    /// Keep a registry's user and password with the scheduler
    Login(LoginArgs),
    /// List registries with credentials
    Ls,
    /// Forget a registry's credentials
    Logout {
        /// host[:port] as it stands in image names
        registry: String,
    },
}

/// `caas registry login`.
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// host[:port] as it stands in image names
    registry: String,
    /// User
    #[arg(short, long)]
    username: String,
    /// Read the password from standard input (otherwise CAAS_REGISTRY_PASSWORD, otherwise it is asked for)
    #[arg(long)]
    password_stdin: bool,
}

/// `caas registry …`.
pub(crate) async fn run(session: &Session, command: &RegistryCommand) -> Result<(), Failure> {
    match command {
        RegistryCommand::Login(args) => {
            let body = json!({ "username": args.username, "password": password(args)? });
            let path = format!("/registries/{}", segment(&args.registry));
            session.client.put(&path, &body).await?;
            session.say(&format!("credentials for {} are kept", args.registry));
        }
        RegistryCommand::Ls => {
            let answer = session.client.list("/registries").await?;
            if session.output == Output::Json {
                render::print_json(&Value::Array(answer));
                return Ok(());
            }
            let text = |entry: &Value, key: &str| cell(entry.get(key).and_then(Value::as_str));
            let rows = answer
                .iter()
                .map(|entry| vec![text(entry, "registry"), text(entry, "username")])
                .collect();
            render::print(&render::table(&["REGISTRY", "USER"], rows));
        }
        RegistryCommand::Logout { registry } => {
            session
                .client
                .delete(&format!("/registries/{}", segment(registry)))
                .await?;
            session.say(&format!("credentials for {registry} are forgotten"));
        }
    }
    Ok(())
}

fn password(args: &LoginArgs) -> Result<String, Failure> {
    let unreadable = |e: std::io::Error| Failure::usage(format!("the password can't be read: {e}"));
    let password = if args.password_stdin {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map_err(unreadable)?;
        line
    } else if let Ok(password) = std::env::var("CAAS_REGISTRY_PASSWORD") {
        password
    } else if std::io::stdin().is_terminal() {
        rpassword::prompt_password("password: ").map_err(unreadable)?
    } else {
        return Err(Failure::usage(
            "no password: use --password-stdin, or set CAAS_REGISTRY_PASSWORD",
        ));
    };
    let password = password.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(Failure::usage("the password is empty"));
    }
    Ok(password.to_owned())
}
