//! `caas gateway`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use gateway::{Deps, Listeners};

use crate::config::{ConfigArgs, Overrides};
use crate::exit::Failure;
use crate::{listen, process};

/// `caas gateway`.
#[derive(Debug, Args)]
pub(crate) struct GatewayArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Registry to follow: zk://host:2181,host:2181[/chroot] or file:PATH
    #[arg(long, value_name = "URL")]
    registry: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
    /// Where /live, /ready, /metrics and /routes are served [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Name of this gateway in the registry; else a random one
    #[arg(long)]
    id: Option<String>,
    /// File that keeps the last registry copy for a start without the registry
    #[arg(long, value_name = "FILE")]
    snapshot_file: Option<PathBuf>,
}

/// Flags that `caas gateway` and `caas up` share.
#[derive(Debug, Args)]
pub(crate) struct CommonArgs {
    /// Where clients connect [default: 0.0.0.0:8080; caas up: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
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
            .set("gateway.domain", self.domain.as_ref())
            .set("gateway.endpoint_cidrs", cidrs)
            .set("gateway.endpoint_ports", self.endpoint_ports.as_ref())
            .set("gateway.workers", self.workers)
            .set("gateway.access_log", self.access_log.as_ref());
    }
}

/// Runs a gateway until a signal.
pub(crate) fn run(args: &GatewayArgs) -> Result<(), Failure> {
    let mut flags = Overrides::default();
    args.common.overrides(&mut flags);
    flags
        .set("registry.url", args.registry.as_ref())
        .set("gateway.admin", args.admin)
        .set("gateway.id", args.id.as_ref())
        .set("gateway.snapshot_file", args.snapshot_file.as_ref());
    let config = args.config.load(&Overrides::default(), &flags)?;
    let url = config.registry_url(&["zk://", "file:"])?.to_owned();
    let settings = config.gateway()?;
    process::start_log(&config.log)?;
    let listeners = bind(&settings, "--admin (gateway.admin)")?;
    process::run_role(|shutdown| async move {
        let registry = backends::registry::open_reader(&url).map_err(|e| Failure::usage(e.to_string()))?;
        tracing::info!(listen = %settings.listen, admin = %settings.admin, domain = %settings.domain, registry = %url, "gateway");
        let result = gateway::run(settings, Deps { registry }, listeners, shutdown.clone()).await;
        process::ended("gateway", result, &shutdown)
    })
}

/// Binds a gateway's sockets: one listener per worker, and the admin's, which `admin_setting` changes.
pub(crate) fn bind(settings: &gateway::Config, admin_setting: &str) -> Result<Listeners, Failure> {
    Ok(Listeners {
        http: listen::many(settings.listen, settings.worker_count(), "--listen (gateway.listen)")?,
        admin: listen::one(settings.admin, admin_setting)?,
    })
}
