//! `caas scheduler`.

use std::net::SocketAddr;
use std::path::PathBuf;

use backends::engine::EngineOptions;
use clap::Args;
use scheduler::Deps;

use crate::config::{ConfigArgs, Overrides, without_password};
use crate::exit::Failure;
use crate::{listen, process};

/// `caas scheduler`.
#[derive(Debug, Args)]
pub(crate) struct SchedulerArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Database: mysql://user@host/db or sqlite:///path; a password is safer in CAAS_STORE__URL
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Where the API is served [default: 127.0.0.1:8090]
    #[arg(long, visible_alias = "api-listen", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// host[:port] of the registry that is meant when a deploy names no image [default: 127.0.0.1:5000]
    #[arg(long, value_name = "HOST[:PORT]")]
    default_registry: Option<String>,
    /// How an app is reached, such as http://{app}.apps.example.com/
    #[arg(long, value_name = "URL")]
    app_url: Option<String>,
    /// API address as containers reach it; given to them as CAAS_API, needed for heartbeats
    #[arg(long, value_name = "URL")]
    api_url: Option<String>,
    /// Where the first admin token is written; else CAAS_ADMIN_TOKEN gives it
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// File with the keys that seal certificates' keys, 64 hexadecimal digits a line; the gateways need it too
    #[arg(long, value_name = "FILE")]
    certificates_key_file: Option<PathBuf>,
    #[command(flatten)]
    acme: AcmeArgs,
    /// Folder with ca.pem, cert.pem and key.pem for https:// engines
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<PathBuf>,
}

/// Flags about certificates that are had by themselves; `caas scheduler` and `caas up` share them.
#[derive(Debug, Args)]
pub(crate) struct AcmeArgs {
    /// ACME directory of the authority that gives custom domains their certificates; off without it
    #[arg(long, value_name = "URL")]
    acme_directory: Option<String>,
    /// E-mail address that the authority may write to (repeatable)
    #[arg(long, value_name = "ADDRESS")]
    acme_contact: Vec<String>,
    /// The authority's terms of service are agreed to
    #[arg(long)]
    acme_terms_agreed: bool,
    /// PEM file with the root certificates of a private authority
    #[arg(long, value_name = "FILE")]
    acme_root: Option<PathBuf>,
}

impl AcmeArgs {
    /// These flags as settings.
    pub(crate) fn overrides(&self, overrides: &mut Overrides) {
        let contacts = Some(&self.acme_contact).filter(|list| !list.is_empty());
        overrides
            .set("acme.directory", self.acme_directory.as_ref())
            .set("acme.contacts", contacts)
            .set("acme.terms_agreed", self.acme_terms_agreed.then_some(true))
            .set("acme.root_certificate_file", self.acme_root.as_ref());
    }
}

/// Runs a scheduler until a signal.
pub(crate) fn run(args: &SchedulerArgs) -> Result<(), Failure> {
    let mut flags = Overrides::default();
    args.acme.overrides(&mut flags);
    flags
        .set("store.url", args.store.as_ref())
        .set("scheduler.listen", args.listen)
        .set("scheduler.default_registry", args.default_registry.as_ref())
        .set("scheduler.app_url", args.app_url.as_ref())
        .set("scheduler.converge.api_url", args.api_url.as_ref())
        .set("scheduler.admin_token_file", args.admin_token_file.as_ref())
        .set("scheduler.certificates_key_file", args.certificates_key_file.as_ref())
        .set("engine.tls_dir", args.tls_dir.as_ref());
    let config = args.config.load(&Overrides::default(), &flags)?;
    let url = config.store_url()?.to_owned();
    let settings = config.scheduler()?;
    let engines = backends::engine::opener(EngineOptions {
        tls_dir: config.tls_dir()?,
    });
    process::start_log(&config.log)?;
    let listener = listen::one(config.api_listen.0, "--listen (scheduler.listen)")?;
    process::run_role(|shutdown| async move {
        let store = backends::store::open(&url)
            .await
            .map_err(|e| Failure::error(e.to_string()))?;
        tracing::info!(listen = %config.api_listen.0, store = %without_password(&url), "scheduler");
        let listener = listen::for_tokio(listener)?;
        let deps = Deps { store, engines };
        let result = scheduler::run(settings, deps, listener, shutdown.clone()).await;
        process::ended("scheduler", result, &shutdown)
    })
}
