//! What must hold after every scenario: exactly the wanted instances, containers, routes, reservations and ports; nothing
//! twice, nothing lost, nothing left over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use sqlx::mysql::MySqlPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use crate::load;
use crate::platform::{Mode, Platform};
use crate::wait;
use crate::zk::Zk;

/// The platform's database, read from beside it.
#[derive(Clone, Debug)]
pub enum Db {
    /// MariaDB
    MySql(sqlx::MySqlPool),
    /// The file of `caas up`.
    Sqlite(sqlx::SqlitePool),
}

impl Db {
    /// Opens a MySQL URL.
    pub async fn mysql(url: &str) -> Result<Self> {
        let options = MySqlPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(Duration::from_secs(5));
        Ok(Self::MySql(options.connect_lazy(url)?))
    }

    /// Opens a SQLite file, for reading only.
    pub async fn sqlite(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .busy_timeout(Duration::from_secs(5));
        Ok(Self::Sqlite(
            SqlitePoolOptions::new().max_connections(2).connect_lazy_with(options),
        ))
    }

    /// The rows of a query with one text column. Both dialects know `concat_ws` and `coalesce`.
    pub async fn lines(&self, query: &'static str) -> Result<Vec<String>> {
        match self {
            Self::MySql(pool) => sqlx::query_scalar::<_, String>(query).fetch_all(pool).await,
            Self::Sqlite(pool) => sqlx::query_scalar::<_, String>(query).fetch_all(pool).await,
        }
        .context(query)
    }
}

/// An instance row: id, app, version, host, port, state, container, routed.
#[derive(Clone, Debug)]
struct Row {
    id: String,
    app: String,
    version: String,
    host: String,
    port: u16,
    state: String,
    container: String,
    routed: bool,
}

const INSTANCES: &str = "SELECT concat_ws('|', id, app, version, host, port, state, coalesce(container, ''), \
                         coalesce(routed_at, 0)) FROM instances WHERE released_at IS NULL";
const WANTED: &str = "SELECT concat_ws('|', id, CASE WHEN status = 'running' THEN instances ELSE 0 END) FROM apps";
const HOSTS: &str =
    "SELECT concat_ws('|', name, memory_mb, reserved_memory_mb, instances, reserved_cpu_weight) FROM hosts";
const HELD: &str = "SELECT concat_ws('|', h.name, coalesce(sum(i.memory_mb), 0), count(i.id), coalesce(sum(i.cpu_weight), 0)) \
                    FROM hosts h LEFT JOIN instances i ON i.host = h.name AND i.released_at IS NULL GROUP BY h.name";
const LEASES: &str = "SELECT concat_ws('|', host, port, instance) FROM host_ports WHERE instance IS NOT NULL";
const PLATFORM: &str = "SELECT value FROM settings WHERE name LIKE '%platform%'";
const OPEN: &str =
    "SELECT concat_ws(' ', kind, app, state, message) FROM operations WHERE state IN ('running', 'blocked')";

fn fields(line: &str) -> Vec<&str> {
    line.split('|').collect()
}

fn rows(lines: &[String]) -> Result<Vec<Row>> {
    lines
        .iter()
        .map(|line| {
            let [id, app, version, host, port, state, container, routed] = fields(line)[..] else {
                bail!("{line}")
            };
            let text = str::to_owned;
            Ok(Row {
                id: text(id),
                app: text(app),
                version: text(version),
                host: text(host),
                port: port.parse()?,
                state: text(state),
                container: text(container),
                routed: routed != "0",
            })
        })
        .collect()
}

impl Db {
    /// What the store must always satisfy, even in the middle of work: no host above its capacity, reservations equal to what
    /// its instances hold, one lease for each instance, no port leased twice.
    pub async fn consistent(&self) -> Result<()> {
        // Two reads can't be one snapshot from here: a difference must be seen twice in a row to count.
        let (mut last, mut again) = (String::new(), 0);
        while again < 5 {
            let problem = self.inconsistency().await?;
            if problem.is_empty() {
                return Ok(());
            }
            again = if problem == last { again + 1 } else { 0 };
            last = problem;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the store contradicts itself: {last}")
    }

    async fn inconsistency(&self) -> Result<String> {
        let mut problems = Vec::new();
        let held: BTreeMap<String, String> = self
            .lines(HELD)
            .await?
            .iter()
            .filter_map(|line| {
                line.split_once('|')
                    .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
            })
            .collect();
        for line in self.lines(HOSTS).await? {
            let [name, memory, reserved, instances, cpu] = fields(&line)[..] else {
                bail!("{line}")
            };
            if reserved.parse::<u64>()? > memory.parse::<u64>()? {
                problems.push(format!(
                    "host {name} is above its capacity: {reserved} of {memory} MiB reserved"
                ));
            }
            let (says, holds) = (
                format!("{reserved}|{instances}|{cpu}"),
                held.get(name).cloned().unwrap_or_default(),
            );
            if says != holds {
                problems.push(format!(
                    "host {name} says memory|instances|cpu {says}, its instances hold {holds}"
                ));
            }
        }
        let leases: BTreeSet<String> = self.lines(LEASES).await?.into_iter().collect();
        let instances = rows(&self.lines(INSTANCES).await?)?;
        let wanted: BTreeSet<String> = instances
            .iter()
            .map(|i| format!("{}|{}|{}", i.host, i.port, i.id))
            .collect();
        let ports: BTreeSet<_> = instances.iter().map(|i| (&i.host, i.port)).collect();
        if ports.len() != instances.len() {
            problems.push("two instances hold the same port".into());
        }
        if leases != wanted {
            let lost: Vec<_> = wanted.difference(&leases).take(3).collect();
            let extra: Vec<_> = leases.difference(&wanted).take(3).collect();
            problems.push(format!("leases: missing {lost:?}, left over {extra:?}"));
        }
        Ok(problems.join("; "))
    }
}

impl Platform {
    /// Waits until everything is as wanted and nothing else is there: in the store, on the hosts, in the registry.
    pub async fn settled(&self) -> Result<()> {
        self.settled_within(Duration::from_secs(45)).await
    }

    /// The same with a limit.
    pub async fn settled_within(&self, limit: Duration) -> Result<()> {
        wait::until("everything as wanted", limit, async || match self.disorder().await {
            Ok(problems) if problems.is_empty() => Ok(()),
            Ok(problems) => Err(problems.join("\n")),
            Err(error) => Err(format!("{error:#}")),
        })
        .await?;
        self.db.consistent().await
    }

    /// What is not as wanted.
    async fn disorder(&self) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        let instances = rows(&self.db.lines(INSTANCES).await?)?;
        let platform = self.db.lines(PLATFORM).await?;
        let platform = platform.first().context("no platform id")?;
        for line in self.db.lines(WANTED).await? {
            let [app, wanted] = fields(&line)[..] else {
                bail!("{line}")
            };
            let there = instances.iter().filter(|i| i.app == app).count();
            if there != wanted.parse::<usize>()? {
                problems.push(format!("{app}: {wanted} instances are wanted, {there} are there"));
            }
        }
        problems.extend(self.db.lines(OPEN).await?.iter().map(|o| format!("still open: {o}")));
        for i in instances.iter().filter(|i| i.state != "running" || !i.routed) {
            problems.push(format!("{} {} is {} (routed: {})", i.app, i.id, i.state, i.routed));
        }
        // Containers: exactly those, all running, at their own ports.
        let mut expected: BTreeSet<String> = instances
            .iter()
            .map(|i| format!("{} {} {} {}", i.host, i.id, i.container, i.port))
            .collect();
        for host in &self.fleet.hosts {
            for c in host.containers().await?.into_iter().filter(|c| c.platform == *platform) {
                let key = format!(
                    "{} {} {} {}",
                    host.name,
                    c.instance,
                    c.id,
                    c.ports.first().copied().unwrap_or(0)
                );
                if c.state != "running" || !expected.remove(&key) {
                    problems.push(format!("a container too many: {key} ({}, app {})", c.state, c.app));
                }
            }
        }
        problems.extend(expected.into_iter().map(|key| format!("no container: {key}")));
        // Registry: exactly the running instances, at their hosts' addresses.
        let address = |host: &str| self.fleet.host(host).address.clone();
        let routes: BTreeMap<String, String> = instances
            .iter()
            .map(|i| {
                (
                    format!("{}/{}/{}", i.app, i.version, i.container),
                    format!("{}:{}", address(&i.host), i.port),
                )
            })
            .collect();
        if self.mode == Mode::Separate {
            let published = Zk::connect(self.fleet.zookeeper.ports[0]).await?.addresses().await?;
            if published != routes {
                problems.push(format!("ZooKeeper holds {published:?}, running are {routes:?}"));
            }
        }
        // Gateways: their route tables hold exactly those.
        let expected: BTreeSet<&String> = routes.values().collect();
        for admin in &self.admins {
            let table = load::get(&self.http, *admin, "localhost", "/routes")
                .await
                .map_err(anyhow::Error::msg)?;
            let table: Value = serde_json::from_str(&table.body)?;
            let listed = table["routes"].as_array().into_iter().flatten();
            let endpoints = listed.flat_map(|route| route["endpoints"].as_array().cloned().unwrap_or_default());
            let routed: BTreeSet<String> = endpoints
                .filter_map(|e| Some(e["address"].as_str()?.to_owned()))
                .collect();
            if routed.iter().collect::<BTreeSet<_>>() != expected {
                problems.push(format!("gateway {admin} routes to {routed:?}, running are {routes:?}"));
            }
        }
        Ok(problems)
    }

    /// Containers of this installation for `app` over all hosts: host and container.
    pub async fn containers(&self, app: &str) -> Result<Vec<(String, crate::docker::Container)>> {
        self.containers_on(app, &["h1", "h2", "h3"]).await
    }

    /// The same on some of the hosts (an engine that hangs must not be asked).
    pub async fn containers_on(&self, app: &str, hosts: &[&str]) -> Result<Vec<(String, crate::docker::Container)>> {
        let platform = self.db.lines(PLATFORM).await?;
        let mut found = Vec::new();
        for host in hosts.iter().map(|name| self.fleet.host(name)) {
            for container in host.containers().await? {
                if container.app == app && platform.contains(&container.platform) {
                    found.push((host.name.clone(), container));
                }
            }
        }
        Ok(found)
    }
}
