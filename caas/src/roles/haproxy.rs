//! `caas haproxy`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use haproxy::Deps;

use crate::config::{ConfigArgs, Overrides};
use crate::exit::Failure;
use crate::{listen, process};

/// `caas haproxy`.
#[derive(Debug, Args)]
pub(crate) struct HaproxyArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Registry to follow: zk://host:2181,host:2181[/chroot] or file:PATH
    #[arg(long, value_name = "URL")]
    registry: Option<String>,
    /// HAProxy's configuration file, which this role alone writes
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Command that makes HAProxy read the file anew, such as "systemctl reload haproxy"
    #[arg(long, value_name = "COMMAND")]
    reload: Option<String>,
    /// File whose text stands at the beginning in place of the built-in `global` and `defaults`
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// Where HAProxy listens for HTTP [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<SocketAddr>,
    /// Where HAProxy listens for apps with a TLS certificate of their own, passed on by their name [default: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    tls_passthrough: Option<SocketAddr>,
    /// Apps answer at {app}.DOMAIN [default: localhost]
    #[arg(long)]
    domain: Option<String>,
    /// Where /live, /ready and /metrics are served [default: 127.0.0.1:9092]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Name in the registry, under which it acknowledges; else a random one
    #[arg(long)]
    id: Option<String>,
    /// Network in which endpoints may lie (repeatable) [default: private and loopback networks]
    #[arg(long, value_name = "CIDR")]
    endpoint_cidr: Vec<String>,
    /// Ports that endpoints may have [default: 1024-65535]
    #[arg(long, value_name = "FIRST-LAST")]
    endpoint_ports: Option<String>,
}

/// Runs the adapter until a signal.
pub(crate) fn run(args: &HaproxyArgs) -> Result<(), Failure> {
    let mut flags = Overrides::default();
    flags
        .set("registry.url", args.registry.as_ref())
        .set("haproxy.out", args.out.as_ref())
        .set("haproxy.reload", args.reload.as_ref())
        .set("haproxy.template", args.template.as_ref())
        .set("haproxy.bind", args.bind)
        .set("haproxy.tls_passthrough", args.tls_passthrough)
        .set("haproxy.domain", args.domain.as_ref())
        .set("haproxy.admin", args.admin)
        .set("haproxy.id", args.id.as_ref())
        .set(
            "haproxy.endpoint_cidrs",
            Some(&args.endpoint_cidr).filter(|list| !list.is_empty()),
        )
        .set("haproxy.endpoint_ports", args.endpoint_ports.as_ref());
    let config = args.config.load(&Overrides::default(), &flags)?;
    let url = config.registry_url(&["zk://", "file:"])?.to_owned();
    let settings = config.haproxy;
    settings.check().map_err(|e| Failure::usage(e.to_string()))?;
    process::start_log(&config.log)?;
    let admin = listen::one(settings.admin, "--admin (haproxy.admin)")?;
    process::run_role(|shutdown| async move {
        let registry = backends::registry::open_reader(&url).map_err(|e| Failure::usage(e.to_string()))?;
        tracing::info!(out = %settings.out.display(), admin = %settings.admin, registry = %url, "haproxy adapter");
        let admin = listen::for_tokio(admin)?;
        let result = haproxy::run(settings, Deps { registry }, admin, shutdown.clone()).await;
        process::ended("haproxy", result, &shutdown)
    })
}
