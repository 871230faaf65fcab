//! `caas`: one binary with all roles and all client verbs. The only place that opens, binds and wires.

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};
use crate::commands::system;
use crate::exit::{Failure, USAGE};

mod cli;
mod client;
mod commands;
mod config;
mod exit;
mod handover;
mod listen;
mod parse;
mod process;
mod render;
mod roles;
mod up;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too; when nobody reads them there is nothing left to do.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            render::print_error(&failure);
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Up(args) => up::run(args),
        Command::Gateway(args) => match &args.command {
            Some(command) => process::run_client(commands::gateway::run(command, cli.api.output)),
            None => roles::gateway::run(args),
        },
        Command::Haproxy(args) => roles::haproxy::run(args),
        Command::Scheduler(args) => roles::scheduler::run(args),
        Command::RegistrySync(args) => roles::registry_sync::run(args),
        Command::Migrate(args) => roles::migrate::run(args),
        Command::Completion(args) => {
            system::completion(args);
            Ok(())
        }
        Command::Healthcheck(args) => process::run_client(system::healthcheck(args)),
        Command::Client(verb) => {
            let session = cli.api.session()?;
            process::run_client(verb.run(&session))
        }
    }
}
