//! Placement: reservations, port leases and instance rows in one transaction.
//!
//! The app's row is changed first (its `placements` counter lets only one of two placements decided from the same
//! state through), then the hosts are locked in the order of their names, so that placements never wait for each
//! other in a circle. While a host's row is locked nobody else leases its ports.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use model::store::{PORT_SPARED, Pick, PlaceOutcome, Placing, RefusedBecause, StoreError};
use model::{EventKind, Generation, Host, HostName, Instance, InstanceId, InstanceState, NewEvent, Timestamp};
use rand::RngExt as _;
use rand::seq::SliceRandom as _;

use super::database::{Fault, Value, values};
use super::rows::{HostPort, instance_insert, placeholders, runs};
use super::transaction::{End, Transactions, Tx};

/// How often ports are drawn at random before the whole range is looked at.
const DRAWS: usize = 3;

/// A pick that fits its host by memory; its port is found next.
struct Fitting<'a> {
    pick: &'a Pick,
    port: Option<u16>,
}

pub(super) async fn place(at: &Transactions, placing: &Placing, now: Timestamp) -> Result<PlaceOutcome, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let sql = "UPDATE apps SET placements = placements + 1 \
                WHERE id = ? AND placements = ? AND generation = ? AND status = 'running'";
            let values = values![&placing.app, placing.expected_placements, placing.expected_generation.0];
            if tx.execute(sql, &values).await?.rows == 0 {
                return Ok(End::Abandon(PlaceOutcome::Conflict));
            }
            let hosts = lock_hosts(tx, &placing.picks).await?;
            let (mut by_host, mut refused) = fit(&hosts, &placing.picks);
            lease_ports(tx, &hosts, &mut by_host, now).await?;
            for fitting in by_host.values_mut() {
                fitting.retain(|f| {
                    if f.port.is_none() {
                        refused.push((f.pick.instance.clone(), RefusedBecause::NoPort));
                    }
                    f.port.is_some()
                });
            }
            let placed: Vec<(Instance, &Pick)> = by_host
                .values()
                .flatten()
                .filter_map(|f| Some((instance(placing, f.pick, f.port?, now), f.pick)))
                .collect();
            if placed.is_empty() {
                // Nothing came of it: the counter stays, so that others' decisions stay good.
                return Ok(End::Abandon(PlaceOutcome::Placed {
                    placed: Vec::new(),
                    refused,
                }));
            }
            reserve(tx, &by_host).await?;
            insert(tx, &placed).await?;
            let placed: Vec<Instance> = placed.into_iter().map(|(instance, _)| instance).collect();
            for instance in &placed {
                tx.record(event(instance), now);
            }
            Ok(End::Commit(PlaceOutcome::Placed { placed, refused }))
        })
    })
    .await
}

/// The hosts of the picks, each locked until the transaction ends.
async fn lock_hosts(tx: &mut Tx<'_>, picks: &[Pick]) -> Result<BTreeMap<HostName, Host>, Fault> {
    let names: BTreeSet<&HostName> = picks.iter().map(|pick| &pick.host).collect();
    let names: Vec<&HostName> = names.into_iter().collect();
    let mut hosts = BTreeMap::new();
    for run in runs(&names) {
        let values: Vec<Value<'_>> = run.iter().map(|name| Value::from(*name)).collect();
        let rest = format!(
            "FROM hosts WHERE name IN {} ORDER BY name{}",
            placeholders(1, run.len()),
            tx.for_update()
        );
        for host in tx.list::<Host>(&rest, &values).await? {
            hosts.insert(host.name.clone(), host);
        }
    }
    Ok(hosts)
}

type Refused = Vec<(InstanceId, RefusedBecause)>;

/// Which picks fit their host, in the order in which they were given.
fn fit<'a>(hosts: &BTreeMap<HostName, Host>, picks: &'a [Pick]) -> (BTreeMap<&'a HostName, Vec<Fitting<'a>>>, Refused) {
    let mut left: BTreeMap<&HostName, (u32, u32)> = BTreeMap::new();
    let mut fitting: BTreeMap<&HostName, Vec<Fitting<'a>>> = BTreeMap::new();
    let mut refused = Vec::new();
    for pick in picks {
        let Some(host) = hosts.get(&pick.host).filter(|host| host.accepts_instances()) else {
            refused.push((pick.instance.clone(), RefusedBecause::HostClosed));
            continue;
        };
        let (free, weight) = left
            .entry(&pick.host)
            .or_insert_with(|| (host.free_memory_mb(), u32::MAX - host.reserved_cpu_weight));
        // More weight than its column's readers can hold would make the host unreadable for everybody.
        match free
            .checked_sub(pick.memory_mb)
            .zip(weight.checked_sub(pick.cpu_weight))
        {
            Some(rest) => {
                (*free, *weight) = rest;
                fitting
                    .entry(&pick.host)
                    .or_default()
                    .push(Fitting { pick, port: None });
            }
            None => refused.push((pick.instance.clone(), RefusedBecause::HostFull)),
        }
    }
    (fitting, refused)
}

/// Finds a free port for each, as far as there are any: drawn at random and looked up; where that keeps failing
/// (a nearly full range) from what is left of the whole range, spared ports last.
async fn lease_ports(
    tx: &mut Tx<'_>,
    hosts: &BTreeMap<HostName, Host>,
    by_host: &mut BTreeMap<&HostName, Vec<Fitting<'_>>>,
    now: Timestamp,
) -> Result<(), Fault> {
    let names: Vec<&HostName> = by_host.keys().copied().collect();
    for run in runs(&names) {
        let sql = format!(
            "DELETE FROM host_ports WHERE host IN {} AND instance IS NULL AND rest_until <= ?",
            placeholders(1, run.len())
        );
        let mut values: Vec<Value<'_>> = run.iter().map(|name| Value::from(*name)).collect();
        values.push(now.minus(PORT_SPARED).into());
        tx.execute(sql, &values).await?;
    }
    for _ in 0..DRAWS {
        let mut drawn: HashSet<(HostName, u16)> = HashSet::new();
        for (name, fitting) in by_host.iter_mut() {
            let range = hosts.get(*name).map_or((1, 0), |host| host.port_range);
            let own: HashSet<u16> = fitting.iter().filter_map(|f| f.port).collect();
            for f in fitting.iter_mut().filter(|f| f.port.is_none()) {
                if let Some(port) = draw(range)
                    && !own.contains(&port)
                    && drawn.insert(((*name).clone(), port))
                {
                    f.port = Some(port);
                }
            }
        }
        let drawn: Vec<(HostName, u16)> = drawn.into_iter().collect();
        let mut taken: HashSet<(HostName, u16)> = HashSet::new();
        for run in runs(&drawn) {
            let either = vec!["(host = ? AND port = ?)"; run.len()].join(" OR ");
            let values: Vec<Value<'_>> = run.iter().flat_map(|(host, port)| values![host, *port]).collect();
            for row in tx
                .list::<HostPort>(&format!("FROM host_ports WHERE {either}"), &values)
                .await?
            {
                taken.insert((row.host, row.port));
            }
        }
        let mut missing = false;
        for (name, fitting) in by_host.iter_mut() {
            for f in fitting.iter_mut() {
                f.port = f.port.filter(|port| !taken.contains(&((*name).clone(), *port)));
                missing |= f.port.is_none();
            }
        }
        if !missing {
            return Ok(());
        }
    }
    for (name, fitting) in by_host.iter_mut() {
        if fitting.iter().all(|f| f.port.is_some()) {
            continue;
        }
        let known = tx
            .list::<HostPort>("FROM host_ports WHERE host = ?", &values![*name])
            .await?;
        let mut taken: HashSet<u16> = known.iter().map(|row| row.port).collect();
        taken.extend(fitting.iter().filter_map(|f| f.port));
        let (first, last) = hosts.get(*name).map_or((1, 0), |host| host.port_range);
        let mut free: Vec<u16> = (first..=last).filter(|port| !taken.contains(port)).collect();
        free.shuffle(&mut rand::rng());
        let mut spared: Vec<HostPort> = known;
        spared.retain(|row| !row.leased && row.rest_until <= now && (first..=last).contains(&row.port));
        spared.sort_unstable_by_key(|row| Reverse(row.rest_until));
        for f in fitting.iter_mut().filter(|f| f.port.is_none()) {
            f.port = free.pop();
            if f.port.is_none()
                && let Some(HostPort { host, port, .. }) = spared.pop()
            {
                let sql = "DELETE FROM host_ports WHERE host = ? AND port = ?";
                tx.execute(sql, &values![&host, port]).await?;
                f.port = Some(port);
            }
        }
    }
    Ok(())
}

fn draw((first, last): (u16, u16)) -> Option<u16> {
    (first <= last).then(|| rand::rng().random_range(first..=last))
}

/// Reserves memory and weight on each host for its picks, never above its capacity: the guard in the statement holds
/// whatever this program believes.
async fn reserve(tx: &mut Tx<'_>, by_host: &BTreeMap<&HostName, Vec<Fitting<'_>>>) -> Result<(), Fault> {
    let hosts: Vec<_> = by_host.iter().filter(|(_, fitting)| !fitting.is_empty()).collect();
    for run in runs(&hosts) {
        let each = format!("CASE name{} END", " WHEN ? THEN ?".repeat(run.len()));
        let sql = format!(
            "UPDATE hosts SET reserved_memory_mb = reserved_memory_mb + {each}, \
            reserved_cpu_weight = reserved_cpu_weight + {each}, instances = instances + {each} \
            WHERE name IN {} AND schedulability = 'schedulable' AND down_since IS NULL \
            AND reserved_memory_mb + {each} <= memory_mb",
            placeholders(1, run.len())
        );
        let memory = |f: &Fitting<'_>| u64::from(f.pick.memory_mb);
        let weight = |f: &Fitting<'_>| u64::from(f.pick.cpu_weight);
        let mut values: Vec<Value<'_>> = Vec::with_capacity(run.len() * 9);
        values.extend(sums(run, memory));
        values.extend(sums(run, weight));
        values.extend(sums(run, |_| 1));
        values.extend(run.iter().map(|(name, _)| Value::from(**name)));
        values.extend(sums(run, memory));
        if tx.execute(sql, &values).await?.rows != run.len() as u64 {
            return Err(Fault::Contended("a host changed under its lock".into()));
        }
    }
    Ok(())
}

/// For each host its name and the sum over its picks.
fn sums<'a>(
    hosts: &'a [(&'a &'a HostName, &'a Vec<Fitting<'a>>)],
    of: impl Fn(&Fitting<'_>) -> u64 + 'a,
) -> impl Iterator<Item = Value<'a>> {
    hosts
        .iter()
        .flat_map(move |(name, fitting)| values![**name, fitting.iter().map(&of).sum::<u64>()])
}

/// Writes the leases and the instances.
async fn insert(tx: &mut Tx<'_>, placed: &[(Instance, &Pick)]) -> Result<(), Fault> {
    for run in runs(placed) {
        let sql = format!(
            "INSERT INTO host_ports (host, port, instance, rest_until) VALUES {}",
            placeholders(run.len(), 4)
        );
        let values: Vec<Value<'_>> = run
            .iter()
            .flat_map(|(i, _)| values![&i.host, i.port, &i.id, 0_i64])
            .collect();
        tx.execute(sql, &values).await?;
    }
    for run in runs(placed) {
        let mut values = Vec::with_capacity(run.len() * 21);
        for (instance, pick) in run {
            values.extend(instance_insert(instance, &pick.token_hash)?);
        }
        let sql = format!(
            "INSERT INTO instances ({}, token_hash) VALUES {}",
            <Instance as super::rows::Stored>::COLUMNS,
            placeholders(run.len(), 21)
        );
        tx.execute(sql, &values).await?;
    }
    Ok(())
}

fn instance(placing: &Placing, pick: &Pick, port: u16, now: Timestamp) -> Instance {
    Instance {
        id: pick.instance.clone(),
        app: placing.app.clone(),
        release: pick.release,
        version: pick.version.clone(),
        host: pick.host.clone(),
        port,
        container: None,
        state: InstanceState::Placed,
        routed_at: None,
        assumed_healthy: false,
        failure: None,
        restarts: 0,
        memory_mb: pick.memory_mb,
        cpu_weight: pick.cpu_weight,
        placed_at: placing.not_before.map_or(now, |at| at.max(now)),
        started_at: None,
        heartbeat_at: None,
        changed_at: now,
        released_at: None,
        generation: Generation::FIRST,
    }
}

fn event(instance: &Instance) -> NewEvent {
    let message = format!(
        "instance {}: placed on {} port {}",
        instance.id, instance.host, instance.port
    );
    let mut event = NewEvent::new(EventKind::Instance, "scheduler", message)
        .about_app(&instance.app)
        .about_host(&instance.host);
    event.instance = Some(instance.id.clone());
    event
}

/// Keeps `port` of `host` from being leased until `until`, leased to somebody or not.
pub(super) async fn quarantine(
    at: &Transactions,
    host: &HostName,
    port: u16,
    until: Timestamp,
) -> Result<(), StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let lock = format!("SELECT port_first FROM hosts WHERE name = ?{}", tx.for_update());
            if tx.number(lock, &values![host]).await?.is_none() {
                return Ok(End::Abandon(()));
            }
            let sql = "UPDATE host_ports SET rest_until = CASE WHEN rest_until > ? THEN rest_until ELSE ? END \
                WHERE host = ? AND port = ?";
            if tx.execute(sql, &values![until, until, host, port]).await?.rows == 0 {
                let sql = "INSERT INTO host_ports (host, port, instance, rest_until) VALUES (?, ?, NULL, ?)";
                tx.execute(sql, &values![host, port, until]).await?;
            }
            Ok(End::Commit(()))
        })
    })
    .await
}
