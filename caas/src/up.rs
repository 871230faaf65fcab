//! `caas up`: every role in one process, on embedded parts: a SQLite file, a registry in memory, this machine's
//! Docker. The same role code as in separate processes; only the wiring differs. Containers keep running when it ends.

use std::fs::{File, TryLockError};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backends::engine::EngineOptions;
use backends::registry::MemoryRegistry;
use certificates::SealingKeys;
use clap::Args;
use model::registry::{RegistryReader, RegistryWriter};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::context::Context;
use crate::client::{ApiError, Client, Target};
use crate::config::{Config, ConfigArgs, Overrides};
use crate::exit::Failure;
use crate::handover::Inherited;
use crate::roles::gateway::{self as gateway_role, CommonArgs};
use crate::roles::scheduler::AcmeArgs;
use crate::{listen, process, render};

/// `caas up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Folder of the database, the admin token and the registry's last copy [default: ~/.local/share/caas]
    #[arg(long, env = "CAAS_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
    /// Where the API is served [default: 127.0.0.1:8090]
    #[arg(long, value_name = "ADDRESS")]
    api_listen: Option<SocketAddr>,
    /// Where the gateway's /ready, /metrics and /routes are served [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS")]
    gateway_admin: Option<SocketAddr>,
    /// Where registry-sync's /ready and /metrics are served [default: 127.0.0.1:9091]
    #[arg(long, value_name = "ADDRESS")]
    registry_sync_admin: Option<SocketAddr>,
    /// Docker Engine that is registered as host `local` when there is no host yet
    #[arg(long, value_name = "URL", default_value = "unix:///var/run/docker.sock")]
    engine: String,
    /// Address on which that host's containers publish their ports
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    host_address: IpAddr,
    /// Register no host
    #[arg(long)]
    no_host: bool,
    /// host[:port] of the registry that is meant when a deploy names no image [default: 127.0.0.1:5000]
    #[arg(long, value_name = "HOST[:PORT]")]
    default_registry: Option<String>,
    #[command(flatten)]
    acme: AcmeArgs,
    /// API address as containers reach it; given to them as CAAS_API, needed for heartbeats
    #[arg(long, value_name = "URL")]
    api_url: Option<String>,
    /// Do not write the context file, by which client verbs find this installation
    #[arg(long)]
    no_context: bool,
}

/// The certificates' key file in the data folder.
const KEY_FILE: &str = "certificates.key";

/// Runs everything until a signal.
pub(crate) fn run(args: &UpArgs) -> Result<(), Failure> {
    let data = data_folder(args.data.as_deref())?;
    let config = configuration(args, &data)?;
    process::start_log(&config.log)?;
    let _lock = lock(&data)?;
    SealingKeys::ensure(&data.join(KEY_FILE)).map_err(Failure::error)?;
    process::run_role(|shutdown| serve(args, config, data, shutdown))
}

/// Embedded parts unless the file, the environment or a flag says otherwise: any of them may be a shared one.
fn configuration(args: &UpArgs, data: &Path) -> Result<Config, Failure> {
    let mut defaults = Overrides::default();
    defaults
        .set(
            "store.url",
            Some(format!("sqlite://{}", data.join("caas.db").display())),
        )
        .set("registry.url", Some("memory:"))
        .set("gateway.listen", Some("127.0.0.1:8080"))
        .set("gateway.snapshot_file", Some(data.join("registry-snapshot.json")))
        // Nobody else balances between gateways here: there is nobody to wait for.
        .set("gateway.drain_delay_s", Some(0))
        .set("scheduler.admin_token_file", Some(data.join("admin.token")))
        .set("scheduler.certificates_key_file", Some(data.join(KEY_FILE)))
        .set("gateway.certificates_key_file", Some(data.join(KEY_FILE)));
    let mut flags = Overrides::default();
    args.common.overrides(&mut flags);
    args.acme.overrides(&mut flags);
    flags
        .set("scheduler.listen", args.api_listen)
        .set("scheduler.default_registry", args.default_registry.as_ref())
        .set("scheduler.converge.api_url", args.api_url.as_ref())
        .set("gateway.admin", args.gateway_admin)
        .set("registry_sync.admin", args.registry_sync_admin);
    let mut config = args.config.load(&defaults, &flags)?;
    if config.gateway.tls_listen.is_some() && config.gateway.certificates_dir.is_none() {
        config.gateway.certificates_dir = Some(data_folder(Some(&data.join("certificates")))?);
    }
    Ok(config)
}

fn data_folder(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let folder = match given {
        Some(given) => given.to_owned(),
        None => std::env::var_os("XDG_DATA_HOME")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
            .or_else(|| std::env::home_dir().map(|home| home.join(".local/share")))
            .ok_or_else(|| Failure::usage("no home folder: say with --data where the data shall lie"))?
            .join("caas"),
    };
    // Database, token and snapshot are nobody else's business.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .and_then(|()| std::path::absolute(&folder))
        .map_err(|e| Failure::error(format!("the data folder {} can't be used: {e}", folder.display())))
}

/// Two processes on one data folder would be two memory registries: the second is refused.
fn lock(data: &Path) -> Result<File, Failure> {
    let path = data.join("lock");
    let broken = |e: std::io::Error| Failure::error(format!("{} can't be locked: {e}", path.display()));
    let file = File::create(&path).map_err(broken)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::error(format!(
            "another `caas up` runs on {}: stop it, or choose another folder with --data",
            data.display()
        ))),
        Err(TryLockError::Error(e)) => Err(broken(e)),
    }
}

/// Makes the database file before SQLite does, so that only its owner can read the credentials in it, wherever it lies;
/// SQLite gives its side files the same mode.
fn make_private(store_url: &str) -> Result<(), Failure> {
    let Some(path) = store_url.strip_prefix("sqlite://") else {
        return Ok(());
    };
    let path = path.split('?').next().unwrap_or(path);
    let mut options = File::options();
    match options.append(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(Failure::error(format!("the database {path} can't be made: {e}"))),
    }
}

/// The registry's two sides.
type RegistrySides = (Arc<dyn RegistryReader>, Arc<dyn RegistryWriter>);

fn open_registry(url: &str) -> Result<RegistrySides, Failure> {
    if url.starts_with("memory:") {
        // Until registry-sync has published what runs, the gateway goes by its snapshot file.
        let registry = MemoryRegistry::unwritten();
        return Ok((Arc::clone(&registry) as _, registry as _));
    }
    let wrong = |e: model::registry::RegistryError| Failure::usage(e.to_string());
    let reader = backends::registry::open_reader(url).map_err(wrong)?;
    Ok((reader, backends::registry::open_writer(url).map_err(wrong)?))
}

async fn serve(args: &UpArgs, mut config: Config, data: PathBuf, shutdown: CancellationToken) -> Result<(), Failure> {
    let store_url = config.store_url()?.to_owned();
    let (reader, writer) = open_registry(config.registry_url(&["memory:", "zk://"])?)?;
    let gateway_settings = config.gateway()?;
    config.scheduler()?;
    let engines = backends::engine::opener(EngineOptions {
        tls_dir: config.tls_dir()?,
    });
    // Sockets first: a taken port is told before anything is changed.
    let listeners = gateway_role::bind(
        &gateway_settings,
        "--gateway-admin (gateway.admin)",
        Inherited::default(),
    )?;
    let api = listen::one(config.api_listen.0, "--api-listen (scheduler.listen)")?;
    let sync_admin = listen::one(
        config.registry_sync.admin,
        "--registry-sync-admin (registry_sync.admin)",
    )?;
    let places = Places {
        gateway: match listeners.http.first() {
            Some(listener) => listen::address_of(listener)?,
            None => gateway_settings.listen,
        },
        gateway_tls: listeners.tls.first().map(listen::address_of).transpose()?,
        gateway_admin: listen::address_of(&listeners.admin)?,
        api: listen::address_of(&api)?,
        sync_admin: listen::address_of(&sync_admin)?,
        domain: gateway_settings.domain.clone(),
        token_file: config.scheduler.admin_token_file.clone(),
        data,
    };
    if config.scheduler.app_url.is_none() {
        config.scheduler.app_url = Some(places.app_url());
    }
    let api = listen::for_tokio(api)?;
    let sync_admin = listen::for_tokio(sync_admin)?;
    let store_error = |e: model::store::StoreError| Failure::error(e.to_string());
    make_private(&store_url)?;
    backends::store::migrate(&store_url).await.map_err(store_error)?;
    let store = backends::store::open(&store_url).await.map_err(store_error)?;

    // The gateway drains while the others still work: what it asks of them must be there until it has ended.
    let gateway_stop = shutdown.child_token();
    let others_stop = CancellationToken::new();
    let mut roles = JoinSet::new();
    let mut gateway_task = tokio::spawn({
        let deps = gateway_role::deps(reader, &gateway_settings)?;
        let stop = gateway_stop.clone();
        async move {
            let result = gateway::run(gateway_settings, deps, listeners, stop.clone()).await;
            process::ended("gateway", result, &stop)
        }
    });
    roles.spawn({
        let deps = registry_sync::Deps {
            store: Arc::clone(&store) as _,
            registry: writer,
        };
        let (settings, stop) = (config.registry_sync.clone(), others_stop.clone());
        async move {
            let result = registry_sync::run(settings, deps, sync_admin, stop.clone()).await;
            process::ended("registry-sync", result, &stop)
        }
    });
    roles.spawn({
        let deps = scheduler::Deps { store, engines };
        let (settings, stop) = (config.scheduler()?, others_stop.clone());
        async move {
            let result = scheduler::run(settings, deps, api, stop.clone()).await;
            process::ended("scheduler", result, &stop)
        }
    });
    let welcome = tokio::spawn(welcome(Welcome::new(args), places, shutdown.child_token()));

    // The first that ends ends all: the gateway at a signal, any other only by an error.
    let mut outcome = tokio::select! {
        gateway = &mut gateway_task => {
            others_stop.cancel();
            flat(gateway)
        }
        Some(role) = roles.join_next() => {
            gateway_stop.cancel();
            let first = flat(role);
            let gateway = flat((&mut gateway_task).await);
            others_stop.cancel();
            first.and(gateway)
        }
    };
    while let Some(role) = roles.join_next().await {
        outcome = outcome.and(flat(role));
    }
    welcome.abort();
    tracing::info!("stopped; containers keep running");
    outcome
}

/// A role's end; its panic is an error like any other.
fn flat(joined: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    joined.unwrap_or_else(|e| Err(Failure::error(format!("a role failed: {e}"))))
}

/// Where everything is.
#[derive(Clone, Debug)]
struct Places {
    gateway: SocketAddr,
    gateway_tls: Option<SocketAddr>,
    gateway_admin: SocketAddr,
    api: SocketAddr,
    sync_admin: SocketAddr,
    domain: String,
    token_file: Option<PathBuf>,
    data: PathBuf,
}

impl Places {
    fn app_url(&self) -> String {
        match self.gateway.port() {
            80 => format!("http://{{app}}.{}/", self.domain),
            port => format!("http://{{app}}.{}:{port}/", self.domain),
        }
    }

    /// What the banner says of TLS.
    fn tls(&self) -> String {
        match self.gateway_tls.map(|address| address.port()) {
            None => String::new(),
            Some(443) => format!("  TLS    https://{{app}}.{}/\n", self.domain),
            Some(port) => format!("  TLS    https://{{app}}.{}:{port}/\n", self.domain),
        }
    }

    fn api_url(&self) -> String {
        format!("http://{}", reachable(self.api))
    }

    fn context(&self) -> Context {
        Context {
            addr: Some(self.api_url()),
            token_file: self.token_file.clone(),
            gateway_admin: Some(format!("http://{}", reachable(self.gateway_admin))),
            registry_sync_admin: Some(format!("http://{}", reachable(self.sync_admin))),
        }
    }

    fn banner(&self) -> String {
        let token = self
            .token_file
            .as_ref()
            .map_or_else(|| "-".into(), |t| t.display().to_string());
        format!(
            "caas is up\n  apps   {}\n{}  API    {}\n  token  {token}\n  data   {}\nnext: `caas deploy APP:VERSION`, \
             `caas ps`, `caas doctor`; containers keep running when this ends",
            self.app_url(),
            self.tls(),
            self.api_url(),
            self.data.display()
        )
    }
}

/// A listener on all addresses is reached at the loopback one.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// What is done once the API answers.
#[derive(Clone, Debug)]
struct Welcome {
    engine: Option<String>,
    address: IpAddr,
    context: bool,
}

impl Welcome {
    fn new(args: &UpArgs) -> Self {
        Self {
            engine: (!args.no_host).then(|| args.engine.clone()),
            address: args.host_address,
            context: !args.no_context,
        }
    }
}

/// Waits for the API, writes the context file, says where everything is, and registers this machine's Docker.
async fn welcome(what: Welcome, places: Places, stop: CancellationToken) {
    let work = async {
        let client = wait_for_api(&places).await?;
        if let (true, Some(path)) = (what.context, Context::path())
            && let Err(error) = places.context().save(&path)
        {
            tracing::warn!(%error, file = %path.display(), "the context file can't be written: set CAAS_ADDR and CAAS_TOKEN");
        }
        render::print(&places.banner());
        if let Some(engine) = &what.engine {
            register_host(&client, engine, what.address).await;
        }
        Ok::<(), Failure>(())
    };
    tokio::select! {
        result = work => if let Err(failure) = result {
            tracing::error!(error = %failure.message, "the API did not come up");
        },
        () = stop.cancelled() => {}
    }
}

/// How often the API is asked while it starts.
const STARTING: Duration = Duration::from_millis(30);
/// The token is written before the API is ready: without it by then, it will not come.
const TOKEN_PATIENCE: Duration = Duration::from_secs(5);

async fn wait_for_api(places: &Places) -> Result<Client, Failure> {
    let address = places.api_url();
    let ready = format!("{address}/healthz/ready");
    let token_file = places.token_file.clone();
    let mut ready_since = None;
    loop {
        let token = token_file
            .as_deref()
            .and_then(|path| std::fs::read_to_string(path).ok())
            .map(|text| text.trim().to_owned());
        let client = Client::new(Target {
            address: address.clone(),
            token_source: token_file
                .as_ref()
                .map_or_else(String::new, |t| format!("token from {}", t.display())),
            token,
        })?;
        if matches!(client.probe(&ready).await, Ok((status, _)) if status.is_success()) {
            if client.has_token() {
                return Ok(client);
            }
            let since = *ready_since.get_or_insert_with(tokio::time::Instant::now);
            if since.elapsed() > TOKEN_PATIENCE {
                let file = token_file
                    .as_deref()
                    .unwrap_or_else(|| std::path::Path::new("admin.token"));
                return Err(Failure::error(format!(
                    "the API is ready, but {} holds no token: put the admin token there, or give it as CAAS_TOKEN",
                    file.display()
                )));
            }
        }
        tokio::time::sleep(STARTING).await;
    }
}

/// Registers `engine` as host `local` unless there is a host already; goes on until Docker, and the API, have answered.
async fn register_host(client: &Client, engine: &str, address: IpAddr) {
    let body = json!({ "name": "local", "address": address, "engine": engine });
    let mut told = false;
    loop {
        let registered = async {
            if client.list("/hosts").await?.is_empty() {
                client.post("/hosts", Some(&body)).await?;
                tracing::info!(host = "local", %engine, "this machine's Docker is registered");
            }
            Ok::<(), ApiError>(())
        };
        match registered.await {
            Ok(()) => return,
            Err(error) if !told => {
                told = true;
                let failure = Failure::from(error);
                tracing::warn!(
                    %engine, error = %failure.message,
                    "Docker can't be registered yet: is it running? it is tried again; --engine names another"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        Places {
            gateway: SocketAddr::from(([0, 0, 0, 0], 8080)),
            gateway_tls: None,
            gateway_admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
            api: SocketAddr::from(([0, 0, 0, 0], 8090)),
            sync_admin: SocketAddr::from(([127, 0, 0, 1], 9091)),
            domain: "localhost".into(),
            token_file: Some("/data/admin.token".into()),
            data: "/data".into(),
        }
    }

    #[test]
    fn addresses_are_told_so_that_they_can_be_used() {
        let mut places = places();
        assert_eq!(places.app_url(), "http://{app}.localhost:8080/");
        assert_eq!(places.api_url(), "http://127.0.0.1:8090");
        assert_eq!(places.context().addr.as_deref(), Some("http://127.0.0.1:8090"));
        assert!(places.banner().contains("/data/admin.token"));
        assert!(!places.banner().contains("https"));
        places.gateway_tls = Some(SocketAddr::from(([0, 0, 0, 0], 8443)));
        assert!(
            places.banner().contains("https://{app}.localhost:8443/\n  API"),
            "{}",
            places.banner()
        );
        places.gateway.set_port(80);
        assert_eq!(places.app_url(), "http://{app}.localhost/");
    }

    #[test]
    fn one_data_folder_serves_one_process() {
        let dir = tempfile::tempdir().expect("a folder");
        let data = data_folder(Some(&dir.path().join("deep/er"))).expect("made");
        assert!(data.is_absolute() && data.is_dir());
        let first = lock(&data).expect("free");
        let failure = lock(&data).expect_err("held");
        assert!(failure.message.contains("another `caas up`"), "{failure}");
        drop(first);
        assert!(lock(&data).is_ok());
        assert_eq!(mode(&data), 0o700);
        let database = data.join("caas.db");
        for _ in 0..2 {
            make_private(&format!("sqlite://{}", database.display())).expect("made");
        }
        assert_eq!(mode(&database), 0o600);
    }

    fn mode(path: &Path) -> u32 {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(path).expect("there").permissions().mode() & 0o777
    }
}
