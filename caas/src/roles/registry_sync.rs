//! `caas registry-sync`.

use std::net::SocketAddr;

use clap::Args;
use registry_sync::Deps;

use crate::config::{ConfigArgs, Overrides, without_password};
use crate::exit::Failure;
use crate::{listen, process};

/// `caas registry-sync`.
#[derive(Debug, Args)]
pub(crate) struct RegistrySyncArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Database: mysql://user@host/db or sqlite:///path; a password is safer in CAAS_STORE__URL
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Registry to write: zk://host:2181,host:2181[/chroot]
    #[arg(long, value_name = "URL")]
    registry: Option<String>,
    /// Where /live, /ready and /metrics are served [default: 127.0.0.1:9091]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
}

/// Runs a registry-sync until a signal.
pub(crate) fn run(args: &RegistrySyncArgs) -> Result<(), Failure> {
    let mut flags = Overrides::default();
    flags
        .set("store.url", args.store.as_ref())
        .set("registry.url", args.registry.as_ref())
        .set("registry_sync.admin", args.admin);
    let config = args.config.load(&Overrides::default(), &flags)?;
    let store_url = config.store_url()?.to_owned();
    let registry_url = config.registry_url(&["zk://"])?.to_owned();
    process::start_log(&config.log)?;
    let admin = listen::one(config.registry_sync.admin, "--admin (registry_sync.admin)")?;
    process::run_role(|shutdown| async move {
        let opened = backends::store::open(&store_url).await;
        let store = opened.map_err(|e| Failure::error(e.to_string()))?;
        let registry = backends::registry::open_writer(&registry_url).map_err(|e| Failure::usage(e.to_string()))?;
        tracing::info!(admin = %config.registry_sync.admin, store = %without_password(&store_url), registry = %registry_url, "registry-sync");
        let admin = listen::for_tokio(admin)?;
        let deps = Deps { store, registry };
        let result = registry_sync::run(config.registry_sync, deps, admin, shutdown.clone()).await;
        process::ended("registry-sync", result, &shutdown)
    })
}
