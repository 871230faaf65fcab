//! The platform under test in one of its two shapes, on the fleet's three Docker hosts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tokio::io::AsyncBufReadExt as _;

use crate::api::Api;
use crate::check::Db;
use crate::load::{self, Answer, Http, Load};
use crate::roles::{self, Role};
use crate::{Fleet, pebble, process, wait};

/// The domain under which apps answer.
pub const DOMAIN: &str = "e2e.test";
/// The file with the keys of certificates, in the platform's folder, where `caas up` makes it by itself.
const KEY_FILE: &str = "certificates.key";
/// Memory that each host offers to instances, MiB.
pub const HOST_MEMORY_MB: u32 = 4096;

/// How the platform runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `caas up`: one process, SQLite, registry in memory.
    AllInOne,
    /// Two schedulers, two gateways and a registry-sync on MariaDB and ZooKeeper.
    Separate,
}

/// A running platform.
#[derive(Debug)]
pub struct Platform {
    /// Its shape.
    pub mode: Mode,
    /// What it runs on.
    pub fleet: Arc<Fleet>,
    /// Its API, with the admin token.
    pub api: Api,
    /// registry-sync's admin port.
    pub sync_admin: SocketAddr,
    /// Where its gateways answer.
    pub gateways: Vec<SocketAddr>,
    /// Where they speak TLS.
    pub tls: Vec<SocketAddr>,
    /// Where its schedulers look for an authority that gives certificates.
    pub authority: SocketAddr,
    /// The gateways' admin ports.
    pub admins: Vec<SocketAddr>,
    /// Its processes.
    pub roles: Vec<Role>,
    /// Its database, to look at.
    pub db: Db,
    /// A client for single requests.
    pub http: Http,
    /// Its folder: configuration, logs, data.
    pub dir: PathBuf,
}

/// A free port of an address of this side.
fn port_of(address: &str) -> Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse()?, process::free_port(address)?))
}

impl Platform {
    /// Starts it, adds the three hosts and the registry's credentials, and waits until all is ready.
    pub async fn start(fleet: Arc<Fleet>, mode: Mode) -> Result<Self> {
        let name = match mode {
            Mode::AllInOne => "all-in-one",
            Mode::Separate => "separate",
        };
        let dir = fleet.keeper.dir.join(name);
        std::fs::create_dir_all(dir.join("home"))?;
        let token = "caas_e2eadmin_0123456789abcdefghij0123456789abcdefghij";
        let platform = match mode {
            Mode::AllInOne => Self::all_in_one(fleet, dir, token).await?,
            Mode::Separate => Self::separate(fleet, dir, token).await?,
        };
        platform.join_hosts().await?;
        Ok(platform)
    }

    async fn all_in_one(fleet: Arc<Fleet>, dir: PathBuf, token: &str) -> Result<Self> {
        let settings = Settings::pick(&fleet)?;
        let authority = port_of("127.0.0.1")?;
        let store = format!("sqlite://{}/caas.db", dir.display());
        let config = settings.write(&fleet, &dir, "up", (&store, "memory:"), authority)?;
        let args = format!("up --config {config} --data {} --no-host --no-context", dir.display());
        let role = role(&fleet, &dir, "up", &args, token, (settings.api, "/healthz/ready"));
        role.up().await?;
        Ok(Self {
            mode: Mode::AllInOne,
            api: Api::new(vec![settings.api], token),
            sync_admin: settings.sync_admin,
            gateways: vec![settings.listen],
            tls: vec![settings.tls],
            authority,
            admins: vec![settings.admin],
            db: Db::sqlite(&dir.join("caas.db")).await?,
            roles: vec![role],
            http: load::http(),
            fleet,
            dir,
        })
    }

    async fn separate(fleet: Arc<Fleet>, dir: PathBuf, token: &str) -> Result<Self> {
        let store = fleet.mariadb.database("caas").await?;
        let registry = fleet.zookeeper.url();
        let mut roles = Vec::new();
        let (mut apis, mut syncs, mut gateways, mut admins) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut tls = Vec::new();
        let authority = port_of("127.0.0.1")?;
        std::fs::write(dir.join(KEY_FILE), "0123456789abcdef".repeat(4))?;
        for (kind, number) in [
            ("scheduler", 1),
            ("scheduler", 2),
            ("registry-sync", 1),
            ("gateway", 1),
            ("gateway", 2),
        ] {
            let settings = Settings::pick(&fleet)?;
            let name = format!("{kind}-{number}");
            let config = settings.write(&fleet, &dir, &name, (&store, &registry), authority)?;
            let ready = match kind {
                "scheduler" => {
                    apis.push(settings.api);
                    (settings.api, "/healthz/ready")
                }
                "registry-sync" => {
                    syncs.push(settings.sync_admin);
                    (settings.sync_admin, "/ready")
                }
                _ => {
                    gateways.push(settings.listen);
                    tls.push(settings.tls);
                    admins.push(settings.admin);
                    (settings.admin, "/ready")
                }
            };
            roles.push(role(
                &fleet,
                &dir,
                &name,
                &format!("{kind} --config {config}"),
                token,
                ready,
            ));
        }
        let mut migrate = tokio::process::Command::new(roles::binary()?);
        migrate
            .args(["migrate", "--store", &store])
            .env("HOME", dir.join("home"));
        process::output(migrate).await?;
        futures::future::try_join_all(roles.iter().map(Role::up)).await?;
        Ok(Self {
            mode: Mode::Separate,
            api: Api::new(apis, token),
            sync_admin: syncs[0],
            gateways,
            tls,
            authority,
            admins,
            db: Db::mysql(&store).await?,
            roles,
            http: load::http(),
            fleet,
            dir,
        })
    }

    /// Adds the fleet's hosts and tells the registry's password.
    async fn join_hosts(&self) -> Result<()> {
        // Ready to serve comes a moment before the first token is known.
        let known = async || self.api.get("/apps").await.map(drop);
        wait::until("the admin token", Duration::from_secs(10), known).await?;
        let registry = &self.fleet.registry;
        let credentials = json!({"username": registry.user, "password": registry.password});
        self.api
            .call("PUT", &format!("/registries/{}", registry.address), Some(&credentials))
            .await?
            .ok()?;
        let (first, last) = self.ports();
        for host in &self.fleet.hosts {
            let body = json!({
                "name": host.name, "address": host.address, "engine": host.engine, "memory_mb": HOST_MEMORY_MB,
                "labels": {"number": &host.name[1..]}, "region": "test", "port_range": [first, last],
            });
            self.api
                .call("POST", "/hosts", Some(&body))
                .await?
                .ok()
                .with_context(|| host.name.clone())?;
        }
        self.hosts_up().await
    }

    /// First and last host port. Both shapes run on the same hosts: each has numbers of its own.
    pub fn ports(&self) -> (u16, u16) {
        match self.mode {
            Mode::AllInOne => (20_000, 20_499),
            Mode::Separate => (25_000, 25_499),
        }
    }

    /// Waits until all three hosts are up and may take instances.
    pub async fn hosts_up(&self) -> Result<()> {
        wait::until("three hosts ready", Duration::from_secs(40), async || {
            let hosts = self.api.get("/hosts").await.map_err(|e| format!("{e:#}"))?;
            let list = list(&hosts);
            let ready =
                |host: &&serde_json::Value| host["down_since"].is_null() && host["schedulability"] == "schedulable";
            if list.iter().filter(ready).count() == 3 {
                Ok(())
            } else {
                Err(hosts.to_string())
            }
        })
        .await?;
        Ok(())
    }

    /// The role of that name.
    pub fn role(&self, name: &str) -> &Role {
        self.roles
            .iter()
            .find(|role| role.name == name)
            .expect("a role of this mode")
    }

    /// Where an app answers.
    pub fn domain(&self, app: &str) -> String {
        format!("{app}.{DOMAIN}")
    }

    /// The sample app's image.
    pub fn hello(&self, version: &str) -> String {
        self.fleet.registry.image("hello", version)
    }

    /// Load on an app over all gateways in turn.
    pub fn load(&self, app: &str, rps: u32) -> Load {
        Load::start(&self.gateways, &self.domain(app), rps)
    }

    /// One request to an app through the first gateway.
    pub async fn visit(&self, app: &str, path: &str) -> Result<Answer, String> {
        load::get(&self.http, self.gateways[0], &self.domain(app), path).await
    }

    /// Waits until requests to the app come back with 200 from `instances` different instances, all of `version`.
    pub async fn answers(&self, app: &str, version: &str, instances: usize) -> Result<Duration> {
        let ((), took) = wait::until(
            &format!("{instances} answering instances of {app}"),
            Duration::from_secs(20),
            async || {
                let mut seen = std::collections::BTreeSet::new();
                for gateway in &self.gateways {
                    for _ in 0..instances.max(1) * 2 {
                        let answer = load::get(&self.http, *gateway, &self.domain(app), "/").await?;
                        if answer.status != 200 || answer.version != version {
                            return Err(format!("{} {} {}", answer.status, answer.version, answer.body));
                        }
                        seen.insert(answer.instance);
                    }
                }
                if seen.len() == instances {
                    Ok(())
                } else {
                    Err(format!("{seen:?}"))
                }
            },
        )
        .await?;
        Ok(took)
    }

    /// Waits until one gateway sends requests to the app to `instances` different instances.
    pub async fn answers_at(&self, gateway: SocketAddr, app: &str, instances: usize) -> Result<()> {
        wait::until(
            &format!("{app} through {gateway}"),
            Duration::from_secs(20),
            async || {
                let mut seen = std::collections::BTreeSet::new();
                for _ in 0..instances * 2 {
                    let answer = load::get(&self.http, gateway, &self.domain(app), "/").await?;
                    if answer.status != 200 {
                        return Err(format!("{} {}", answer.status, answer.body));
                    }
                    seen.insert(answer.instance);
                }
                if seen.len() == instances {
                    Ok(())
                } else {
                    Err(format!("{seen:?}"))
                }
            },
        )
        .await?;
        Ok(())
    }

    /// Deploys the sample app as `app` and waits until all instances answer.
    pub async fn deploy_hello(&self, app: &str, version: &str, instances: u32, spec: serde_json::Value) -> Result<()> {
        self.api
            .deployed(app, version, &self.hello(version), instances, spec)
            .await?;
        self.answers(app, version, instances as usize).await?;
        Ok(())
    }

    /// Takes an app away and waits until it is gone.
    pub async fn remove(&self, app: &str) -> Result<()> {
        let reply = self.api.call("DELETE", &format!("/apps/{app}"), None).await?;
        if reply.status == 404 {
            return Ok(());
        }
        reply.ok()?;
        wait::until(
            &format!("removal of {app}"),
            Duration::from_secs(60),
            async || match self.api.call("GET", &format!("/apps/{app}"), None).await {
                Ok(reply) if reply.status == 404 => Ok(()),
                other => Err(format!("{other:?}")),
            },
        )
        .await?;
        Ok(())
    }

    /// The command line as a user would call it, not yet run.
    pub fn command(&self, args: &[&str]) -> Result<tokio::process::Command> {
        let mut command = tokio::process::Command::new(roles::binary()?);
        command
            .args(args)
            .env("HOME", self.dir.join("home"))
            .env_remove("XDG_CONFIG_HOME")
            .env("CAAS_ADDR", format!("http://{}", self.api.addresses[0]))
            .env("CAAS_TOKEN", &self.api.token)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }

    /// Runs it; exit code, standard output and standard error.
    pub async fn cli(&self, args: &[&str]) -> Result<(i32, String, String)> {
        let mut command = self.command(args)?;
        let done = tokio::time::timeout(Duration::from_secs(90), command.output())
            .await
            .with_context(|| format!("caas {args:?}: not done within 90 s"))??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((done.status.code().unwrap_or(-1), text(&done.stdout), text(&done.stderr)))
    }

    /// Runs one that does not end by itself (`-f`) until a line of its standard output contains `wanted`, while `meanwhile`
    /// happens; that line.
    pub async fn cli_until(
        &self,
        args: &[&str],
        wanted: &str,
        meanwhile: impl Future<Output = Result<()>>,
    ) -> Result<String> {
        let mut child = self
            .command(args)?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = tokio::io::BufReader::new(child.stdout.take().context("its output")?).lines();
        let read = async {
            while let Some(line) = lines.next_line().await? {
                if line.contains(wanted) {
                    return Ok(line);
                }
            }
            bail!("caas {args:?} ended without {wanted:?}")
        };
        let read = async {
            tokio::time::timeout(Duration::from_secs(30), read)
                .await
                .with_context(|| format!("caas {args:?} did not show {wanted:?} within 30 s"))?
        };
        let (line, ()) = futures::try_join!(read, meanwhile)?;
        Ok(line)
    }

    /// The same; it must end with 0.
    pub async fn cli_ok(&self, args: &[&str]) -> Result<String> {
        let (code, out, err) = self.cli(args).await?;
        if code != 0 {
            bail!("caas {}: exit code {code}\n{out}{err}", args.join(" "));
        }
        Ok(out)
    }

    /// Starts whatever does not run: roles, hosts, engines, registry, ZooKeeper, database.
    pub async fn heal(&self) -> Result<()> {
        self.fleet.heal().await?;
        for role in &self.roles {
            role.up().await?;
        }
        self.hosts_up().await
    }

    /// The ends of all roles' logs, for a failure's report.
    pub fn logs(&self) -> String {
        self.roles
            .iter()
            .map(|role| process::tail(role.log()))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// The list in an answer, bare or wrapped.
pub fn list(answer: &serde_json::Value) -> Vec<serde_json::Value> {
    let wrapped = || answer.as_object().and_then(|o| o.values().find_map(|v| v.as_array()));
    answer.as_array().or_else(wrapped).cloned().unwrap_or_default()
}

/// Where one process listens.
struct Settings {
    listen: SocketAddr,
    tls: SocketAddr,
    admin: SocketAddr,
    api: SocketAddr,
    sync_admin: SocketAddr,
}

impl Settings {
    /// Free ports; the API's where containers reach it, the others on loopback.
    fn pick(fleet: &Fleet) -> Result<Self> {
        Ok(Self {
            listen: port_of("127.0.0.1")?,
            tls: port_of("127.0.0.1")?,
            admin: port_of("127.0.0.1")?,
            api: port_of(&format!("{}.1", fleet.net))?,
            sync_admin: port_of("127.0.0.1")?,
        })
    }

    /// Writes `{name}.toml`; its path. `kept`: where the store and the registry are.
    fn write(
        &self,
        fleet: &Fleet,
        dir: &Path,
        name: &str,
        kept: (&str, &str),
        authority: SocketAddr,
    ) -> Result<String> {
        let (store, registry) = kept;
        let path = dir.join(format!("{name}.toml"));
        let text = format!(
            "[store]\nurl = {store:?}\n\n[registry]\nurl = {registry:?}\n\n[engine]\ntls_dir = {tls:?}\n\n\
             [gateway]\nlisten = \"{listen}\"\ntls_listen = \"{tls_listen}\"\ncertificates_key_file = {key:?}\nadmin = \"{admin}\"\ndomain = {DOMAIN:?}\nid = {name:?}\nsnapshot_file = {snapshot:?}\ndrain_delay_s = 0\n\n\
             [scheduler]\nlisten = \"{api}\"\ndefault_registry = {images:?}\ncertificates_key_file = {key:?}\nallow_fake_engines = true\n\n\
             [scheduler.converge]\nscheduler_id = {name:?}\napi_url = \"http://{api}\"\nstats_interval_s = 4\n\n\
             {acme}[registry_sync]\nadmin = \"{sync}\"\n",
            acme = pebble::setting(authority, &fleet.pki.dir.join("ca.crt").to_string_lossy()),
            tls = fleet.pki.client().to_string_lossy(),
            listen = self.listen,
            tls_listen = self.tls,
            key = dir.join(KEY_FILE),
            admin = self.admin,
            api = self.api,
            images = fleet.registry.address,
            sync = self.sync_admin,
            snapshot = dir.join(format!("{name}-snapshot.json")),
        );
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }
}

fn role(fleet: &Fleet, dir: &Path, name: &str, args: &str, token: &str, ready: (SocketAddr, &'static str)) -> Role {
    let env = vec![
        ("HOME".into(), dir.join("home").to_string_lossy().into_owned()),
        ("CAAS_ADMIN_TOKEN".into(), token.into()),
        ("RUST_BACKTRACE".into(), "1".into()),
    ];
    let args = args.split_ascii_whitespace().map(str::to_owned).collect();
    Role::new(name, args, env, ready, dir, fleet.keeper.init)
}
