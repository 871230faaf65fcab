//! `caas gateway`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use gateway::{Deps, Listeners, Succession};
use model::registry::RegistryReader;

use crate::commands::gateway::GatewayCommand;
use crate::config::{ConfigArgs, Overrides};
use crate::exit::Failure;
use crate::handover::{self, Handover, Inherited};
use crate::{listen, process};

/// `caas gateway`: the role, or a question to one that runs.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub(crate) struct GatewayArgs {
    #[command(subcommand)]
    pub(crate) command: Option<GatewayCommand>,
    #[command(flatten)]
    role: RoleArgs,
}

/// Flags of the role.
#[derive(Debug, Args)]
struct RoleArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Registry to follow: zk://host:2181,host:2181[/chroot] or file:PATH
    #[arg(long, value_name = "URL")]
    registry: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
    /// Where /live, /ready, /metrics and the operators' paths are served [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Name of this gateway in the registry; else a random one
    #[arg(long)]
    id: Option<String>,
    /// Region in which this gateway stands: apps with prefer_region are asked there first
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// File with the keys that open the registry's certificates, the scheduler's too
    #[arg(long, value_name = "FILE")]
    certificates_key_file: Option<PathBuf>,
    /// File that keeps the last registry copy for a start without the registry
    #[arg(long, value_name = "FILE")]
    snapshot_file: Option<PathBuf>,
    /// File that holds the process id; `caas gateway upgrade` with it hands the sockets to a new process without losing a connection
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
}

/// Flags that `caas gateway` and `caas up` share.
#[derive(Debug, Args)]
pub(crate) struct CommonArgs {
    /// Where clients connect [default: 0.0.0.0:8080; caas up: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
    /// Where clients connect with TLS; off without it
    #[arg(long, value_name = "ADDRESS")]
    tls_listen: Option<SocketAddr>,
    /// Folder with certificates, NAME.crt and NAME.key or both in NAME.pem [default with caas up: DATA/certificates]
    #[arg(long, value_name = "DIR")]
    certificates_dir: Option<PathBuf>,
    /// Apps answer at {app}.DOMAIN [default: localhost]
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// Network in which endpoints may lie (repeatable) [default: private and loopback networks]
    #[arg(long, value_name = "CIDR")]
    endpoint_cidr: Vec<String>,
    /// Ports that endpoints may have [default: 1024-65535]
    #[arg(long, value_name = "FIRST-LAST")]
    endpoint_ports: Option<String>,
    /// Worker threads; 0: one per core [default: 0]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Access log: off, stdout or a file [default: off]
    #[arg(long, value_name = "WHERE")]
    access_log: Option<String>,
}

impl CommonArgs {
    /// These flags as settings.
    pub(crate) fn overrides(&self, overrides: &mut Overrides) {
        let cidrs = Some(&self.endpoint_cidr).filter(|list| !list.is_empty());
        overrides
            .set("gateway.listen", self.listen)
            .set("gateway.tls_listen", self.tls_listen)
            .set("gateway.certificates_dir", self.certificates_dir.as_ref())
            .set("gateway.domain", self.domain.as_ref())
            .set("gateway.endpoint_cidrs", cidrs)
            .set("gateway.endpoint_ports", self.endpoint_ports.as_ref())
            .set("gateway.workers", self.workers)
            .set("gateway.access_log", self.access_log.as_ref());
    }
}

/// Runs a gateway until a signal.
pub(crate) fn run(args: &GatewayArgs) -> Result<(), Failure> {
    let args = &args.role;
    let mut flags = Overrides::default();
    args.common.overrides(&mut flags);
    flags
        .set("registry.url", args.registry.as_ref())
        .set("gateway.admin", args.admin)
        .set("gateway.id", args.id.as_ref())
        .set("gateway.certificates_key_file", args.certificates_key_file.as_ref())
        .set("gateway.region", args.region.as_ref())
        .set("gateway.snapshot_file", args.snapshot_file.as_ref())
        .set("gateway.pid_file", args.pid_file.as_ref());
    let config = args.config.load(&Overrides::default(), &flags)?;
    let url = config.registry_url(&["zk://", "file:"])?.to_owned();
    let settings = config.gateway()?;
    process::start_log(&config.log)?;
    let mut settings = settings;
    let listeners = bind(&settings, "--admin (gateway.admin)", Inherited::take()?)?;
    if listeners.succession.inherited && !settings.id.is_empty() {
        // Until the old process is gone, both are known to registry-sync.
        let own = format!("-{}", std::process::id());
        settings.id = settings
            .id
            .chars()
            .take(gateway::ID - own.len())
            .chain(own.chars())
            .collect();
    }
    let succession = listeners.succession.clone();
    let handover = Handover::of(sockets(&listeners), succession.ports.clone(), settings.pid_file.clone())?;
    process::run_role(|shutdown| async move {
        let registry = backends::registry::open_reader(&url).map_err(|e| Failure::usage(e.to_string()))?;
        tracing::info!(listen = %settings.listen, admin = %settings.admin, domain = %settings.domain, registry = %url, "gateway");
        let handing_over = tokio::spawn(handover.run(succession.handed_over.clone(), shutdown.clone()));
        let pid_file = settings.pid_file.clone();
        let handed_over = succession.handed_over.clone();
        let announcing = tokio::spawn(async move {
            succession.serving.cancelled().await;
            handover::serves(pid_file.as_deref());
        });
        let deps = deps(registry, &settings)?;
        let result = gateway::run(settings, deps, listeners, shutdown.clone()).await;
        announcing.abort();
        handing_over.abort();
        if handed_over.is_cancelled() && result.is_ok() {
            return Ok(());
        }
        process::ended("gateway", result, &shutdown)
    })
}

/// The sockets of a gateway by the names under which they are handed over.
fn sockets(listeners: &Listeners) -> impl Iterator<Item = (&'static str, &std::net::TcpListener)> {
    listeners
        .http
        .iter()
        .map(|l| ("http", l))
        .chain(listeners.tls.iter().map(|l| ("https", l)))
        .chain([("admin", &listeners.admin)])
}

/// A gateway's sockets: those that were `inherited`, else newly bound: one listener per worker, as many for TLS if it is on, and the admin's, which
/// `admin_setting` changes.
pub(crate) fn bind(
    settings: &gateway::Config,
    admin_setting: &str,
    mut inherited: Inherited,
) -> Result<Listeners, Failure> {
    let http = inherited.named("http");
    let mut succession = Succession::default();
    let http = if http.is_empty() {
        listen::many(settings.listen, settings.worker_count(), "--listen (gateway.listen)")?
    } else {
        // One worker each, however many are configured: connections that wait in a socket that nobody serves would be lost.
        succession.inherited = true;
        http
    };
    let tls = match (settings.tls_listen, inherited.named("https")) {
        (Some(_), tls) if tls.len() == http.len() => tls,
        (Some(address), _) => listen::many(address, http.len(), "--tls-listen (gateway.tls_listen)")?,
        (None, _) => Vec::new(),
    };
    let admin = match inherited.named("admin").pop() {
        Some(admin) => admin,
        None => listen::one(settings.admin, admin_setting)?,
    };
    Ok(Listeners {
        http,
        tls,
        tcp: inherited.named(handover::TCP),
        admin,
        succession,
    })
}

/// What a gateway needs; with certificates, SIGHUP makes it read them again.
pub(crate) fn deps(registry: Arc<dyn RegistryReader>, settings: &gateway::Config) -> Result<Deps, Failure> {
    let reload = Arc::default();
    if settings.certificates_dir.is_some() {
        process::reload_on_hangup(Arc::clone(&reload))?;
    }
    Ok(Deps { registry, reload })
}
