//! The command line: what can be said. Each verb's flags stand with the verb, in `commands`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::client::context::{self, Context, Wishes};
use crate::client::{Client, Target};
use crate::commands::{
    apps, canary, certificate, config, deploy, doctor, events, host, instances, logs, operation, registry, system,
};
use crate::exit::Failure;
use crate::render::Output;
use crate::{roles, up};

/// Turns plain Docker hosts into a container platform.
#[derive(Debug, Parser)]
#[command(
    name = "caas",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    max_term_width = 110,
    after_help = "Exit codes: 0 done, 1 error, 2 not placed or deploy failed, 3 time-out, 4 not allowed, 64 bad usage \
                  or configuration.\nFirst steps: `caas up`, then `caas deploy hello:1` in another terminal."
)]
pub(crate) struct Cli {
    /// Which API, and how results are written.
    #[command(flatten)]
    pub(crate) api: ApiArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which API, and how results are written.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "API")]
pub(crate) struct ApiArgs {
    /// The API's address; else the context file's, else http://127.0.0.1:8090
    #[arg(long, global = true, env = "CAAS_ADDR", value_name = "URL")]
    addr: Option<String>,
    /// File that holds the API token; else CAAS_TOKEN, else the context file's
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How results are written
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
}

/// A client of the chosen API, and how its results are written.
#[derive(Debug)]
pub(crate) struct Session {
    /// The API.
    pub(crate) client: Client,
    /// The format of results.
    pub(crate) output: Output,
    /// What the context file says.
    pub(crate) context: Context,
}

impl ApiArgs {
    /// Connects nothing yet; decides which API and which token.
    pub(crate) fn session(&self) -> Result<Session, Failure> {
        let context = Context::load(Context::path().as_deref())?;
        let wishes = Wishes {
            addr: self.addr.clone(),
            token_file: self.token_file.clone(),
            token: std::env::var("CAAS_TOKEN").ok(),
        };
        let target: Target = context::resolve(&wishes, &context)?;
        Ok(Session {
            client: Client::new(target)?,
            output: self.output,
            context,
        })
    }
}

/// Roles, then client verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything in one process on this machine's Docker
    Up(Box<up::UpArgs>),
    /// Run a gateway: requests in, to the instances and back; or ask one that runs
    Gateway(Box<roles::gateway::GatewayArgs>),
    /// Keep an HAProxy configuration true to the registry
    Haproxy(roles::haproxy::HaproxyArgs),
    /// Run a scheduler: HTTP API, placement, convergence
    Scheduler(roles::scheduler::SchedulerArgs),
    /// Run a registry-sync: probes, and what is published to the gateways
    RegistrySync(roles::registry_sync::RegistrySyncArgs),
    /// Create or update the database's schema
    Migrate(roles::migrate::MigrateArgs),
    /// Client verbs.
    #[command(flatten)]
    Client(ClientCommand),
    /// Write a shell's completion script to standard output
    Completion(system::CompletionArgs),
    /// Exit 0 when a URL answers 2xx (for health checks of containers without curl)
    #[command(hide = true)]
    Healthcheck(system::HealthcheckArgs),
}

/// Verbs that only speak to the API.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// Deploy APP:VERSION; creates the app at first use
    Deploy(deploy::DeployArgs),
    /// List apps
    Apps,
    /// List instances
    Ps(instances::PsArgs),
    /// Show an app with its release, instances and addresses
    Info(apps::InfoArgs),
    /// Set the number of instances
    Scale(apps::ScaleArgs),
    /// Show how requests reach an app, or change it while its instances run: balancing, domains, limits, time-outs
    Config(config::ConfigArgs),
    /// Show what an app or an instance writes
    Logs(logs::LogsArgs),
    /// Show what happened
    Events(events::EventsArgs),
    /// Replace an app's instances by fresh ones, or drain one instance and start a fresh one for it
    Restart(apps::RestartArgs),
    /// Stop all instances of an app; its releases and domains stay
    Stop(apps::VerbArgs),
    /// Start a stopped app again
    Start(apps::VerbArgs),
    /// Return to an earlier release
    Rollback(apps::RollbackArgs),
    /// Give an app's canary another share of the requests (`deploy --canary` begins one)
    Canary(canary::CanaryArgs),
    /// Let an app's canary take over
    Promote(apps::VerbArgs),
    /// Take an app's canary away
    Abort(apps::VerbArgs),
    /// Take an app away with everything that belongs to it
    Rm(apps::VerbArgs),
    /// Docker hosts of the fleet
    #[command(subcommand)]
    Host(host::HostCommand),
    /// Credentials of image registries
    #[command(subcommand)]
    Registry(registry::RegistryCommand),
    /// Certificates that all gateways serve
    #[command(subcommand, visible_alias = "certificates")]
    Certificate(certificate::CertificateCommand),
    /// Explain why an app's instances are where they are, or nowhere
    Why(apps::WhyArgs),
    /// Operations: the long work that verbs ask for
    #[command(subcommand)]
    Op(operation::OpCommand),
    /// Check that everything works, and say what to do if not
    Doctor(doctor::DoctorArgs),
    /// Show this program's version and the API's
    Version,
}

impl ClientCommand {
    /// Does it.
    pub(crate) async fn run(&self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::Deploy(args) => deploy::run(session, args).await,
            Self::Apps => apps::list(session).await,
            Self::Ps(args) => instances::list(session, args).await,
            Self::Info(args) => apps::info(session, args).await,
            Self::Scale(args) => apps::scale(session, args).await,
            Self::Config(args) => config::run(session, args).await,
            Self::Logs(args) => logs::run(session, args).await,
            Self::Events(args) => events::run(session, args).await,
            Self::Restart(args) => apps::restart(session, args).await,
            Self::Stop(args) => apps::stop(session, args).await,
            Self::Start(args) => apps::start(session, args).await,
            Self::Rollback(args) => apps::rollback(session, args).await,
            Self::Canary(args) => canary::share(session, args).await,
            Self::Promote(args) => canary::promote(session, args).await,
            Self::Abort(args) => canary::abort(session, args).await,
            Self::Rm(args) => apps::remove(session, args).await,
            Self::Host(command) => host::run(session, command).await,
            Self::Registry(command) => registry::run(session, command).await,
            Self::Certificate(command) => certificate::run(session, command).await,
            Self::Why(args) => apps::why(session, args).await,
            Self::Op(command) => operation::run(session, command).await,
            Self::Doctor(args) => doctor::run(session, args).await,
            Self::Version => system::version(session).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("caas").chain(args.iter().copied()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn everyday_verbs_are_understood() {
        for line in [
            "up --data /tmp/x --listen 127.0.0.1:8080 --api-listen 127.0.0.1:8090 --domain localhost",
            "up --engine unix:///var/run/docker.sock --default-registry 127.0.0.1:5000",
            "gateway --registry zk://127.0.0.1:2181 --domain test --listen 127.0.0.1:8080 --admin 127.0.0.1:9090 \
             --endpoint-cidr 127.0.0.0/8 --endpoint-cidr 10.0.0.0/8 --endpoint-ports 1024-65535",
            "gateway --registry file:/tmp/x.json --workers 2 --access-log stdout",
            "gateway routes",
            "gateway endpoints hello --admin http://127.0.0.1:9090 -o json",
            "gateway explain hello.example.com /path --client 203.0.113.7 --cookie a=b",
            "gateway explain hello.example.com --method POST --https --server-name example.com --header a:b --header c:d",
            "gateway eject hello 0a1b2c --for 1h",
            "gateway uneject hello 10.0.0.1:20000",
            "gateway drain",
            "gateway --registry zk://z:2181 --tls-listen 0.0.0.0:8443 --certificates-dir /etc/caas/certificates",
            "up --tls-listen 127.0.0.1:8443",
            "up --api-listen 172.17.0.1:8090 --api-url http://172.17.0.1:8090",
            "scheduler --config caas.toml --api-url http://10.0.0.1:8090",
            "registry-sync --store mysql://x --registry zk://y",
            "migrate --store sqlite:///tmp/x.db",
            "deploy hello:1 --port 8080 --instances 2 --memory 512M --cpu 512 --env A=1 --env B=2 --health tcp",
            "deploy -f app.toml --dry-run",
            "deploy hello:2 --domain shop.example.com --label disk=ssd --no-wait",
            "ps hello -o json",
            "-o json apps",
            "scale hello 4 --timeout 10s",
            "config hello",
            "config hello --set balance=least_request --set weights.2=5 --unset hash -f app.toml --no-wait",
            "logs hello -f --tail 10",
            "rollback hello 2",
            "deploy hello:2 --canary 5 --instances 2",
            "canary hello 50",
            "canary hello 0",
            "promote hello",
            "abort hello",
            "rm hello",
            "host add h1 --address 10.0.0.1 --engine tcp://10.0.0.1:2375 --label a=b --memory 4G",
            "host label h1 a=c b-",
            "registry login 127.0.0.1:5000 --username me --password-stdin",
            "certificate add shop --cert shop.crt --key shop.key",
            "certificates ls",
            "certificate rm shop.example.com",
            "gateway --registry zk://z:2181 --tls-listen 0.0.0.0:8443 --certificates-key-file /etc/caas/certificates.key",
            "scheduler --certificates-key-file /etc/caas/certificates.key",
            "op watch op-1234",
            "completion bash",
            "why hello",
        ] {
            let args: Vec<&str> = line.split_whitespace().collect();
            if let Err(e) = parse(&args) {
                panic!("{line}: {e}");
            }
        }
    }

    #[test]
    fn mistakes_are_refused_with_a_hint() {
        let error = parse(&["deplay", "hello:1"]).expect_err("a typo").to_string();
        assert!(error.contains("deploy"), "{error}");
        for line in [
            "deploy hello",
            "deploy Hello:1",
            "scale hello many",
            "config hello --set balance",
            "canary hello 101",
            "deploy hello:2 --canary 101",
            "deploy hello:1 --memory lots",
            "host add h1 --address nowhere",
            "rm",
        ] {
            let args: Vec<&str> = line.split_whitespace().collect();
            assert!(parse(&args).is_err(), "{line}");
        }
    }
}
