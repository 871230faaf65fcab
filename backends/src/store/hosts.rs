//! Hosts: the operator's fields. Reservations belong to placement and release.

use model::store::{HostIntent, HostOutcome, HostWish, KeyUse, Outcome, PORT_SPARED, StoreError};
use model::{Generation, Host, HostChange, HostName, NewEvent, Operation, Timestamp};

use super::apps::{insert_operation, use_key};
use super::database::{Fault, values};
use super::rows::{self, host_insert, json, placeholders};
use super::transaction::{End, Transactions, Tx};

pub(super) async fn list(at: &Transactions) -> Result<Vec<Host>, StoreError> {
    at.read(|tx| Box::pin(async move { tx.list("FROM hosts ORDER BY name", &[]).await }))
        .await
}

pub(super) async fn fetch(at: &Transactions, name: &HostName) -> Result<Option<Host>, StoreError> {
    at.read(|tx| Box::pin(async move { rows::host(tx, name).await })).await
}

/// The row by which hosts that join wait for each other: what two of them clash by is no key of the table.
const JOINING: &str = "REPLACE INTO settings (name, value) VALUES ('hosts', '')";

pub(super) async fn commit(at: &Transactions, intent: &HostIntent, now: Timestamp) -> Result<HostOutcome, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            // The key comes first: of two same requests at once the second waits here for the first to end.
            if let Some(key) = &intent.idempotency
                && let Some(used) = use_key(tx, key, intent.operation.as_ref(), now).await?
            {
                return Ok(End::Abandon(match used {
                    KeyUse::Same(operation) => HostOutcome::Replayed(operation),
                    KeyUse::New | KeyUse::Other => HostOutcome::KeyReused,
                }));
            }
            let outcome = match &intent.wish {
                HostWish::Join(host) => join(tx, host).await?,
                HostWish::Change { current, changes } => change(tx, current, changes).await?,
                HostWish::Leave(name) => leave(tx, name, now).await?,
            };
            if !matches!(outcome, HostOutcome::Committed(_)) {
                return Ok(End::Abandon(outcome));
            }
            if let Some(operation) = &intent.operation {
                let operation = Operation {
                    generation: Generation::FIRST,
                    ..operation.clone()
                };
                insert_operation(tx, &operation).await?;
            }
            tx.record(intent.event.clone(), now);
            Ok(End::Commit(outcome))
        })
    })
    .await
}

async fn join(tx: &mut Tx<'_>, host: &Host) -> Result<HostOutcome, Fault> {
    tx.execute(JOINING, &[]).await?;
    for other in tx.list::<Host>("FROM hosts ORDER BY name", &[]).await? {
        let clash = other.clash(&host.name, &host.engine, host.address, host.port_range);
        if clash.is_some() {
            return Ok(HostOutcome::Conflict(other));
        }
    }
    let sql = format!(
        "INSERT INTO hosts ({}) VALUES {}",
        <Host as rows::Stored>::COLUMNS,
        placeholders(1, 17)
    );
    tx.execute(sql, &host_insert(host)?).await?;
    go_on_resting(tx, host).await?;
    match rows::host(tx, &host.name).await? {
        Some(row) => Ok(HostOutcome::Committed(row)),
        None => {
            let why = format!("host {} is not there after it was added", host.name);
            Err(StoreError::Corrupt(why).into())
        }
    }
}

async fn change(tx: &mut Tx<'_>, current: &Host, changes: &[HostChange]) -> Result<HostOutcome, Fault> {
    let rest = format!("FROM hosts WHERE name = ?{}", tx.for_update());
    let Some(row) = tx.fetch::<Host>(&rest, &values![&current.name]).await? else {
        return Ok(HostOutcome::NotFound);
    };
    if row.generation != current.generation {
        return Ok(HostOutcome::Conflict(row));
    }
    let next = changes.iter().fold(row, |host, change| host.changed(change));
    if !changes.is_empty() && !write(tx, current, &next).await? {
        return Err(Fault::Contended(format!("host {} changed under its lock", next.name)));
    }
    Ok(HostOutcome::Committed(next))
}

async fn leave(tx: &mut Tx<'_>, name: &HostName, now: Timestamp) -> Result<HostOutcome, Fault> {
    let rest = format!("FROM hosts WHERE name = ?{}", tx.for_update());
    let Some(host) = tx.fetch::<Host>(&rest, &values![name]).await? else {
        return Ok(HostOutcome::NotFound);
    };
    if host.instances > 0 {
        return Ok(HostOutcome::Conflict(host));
    }
    // A gateway that is cut off may still lead to them, whatever the host's name is next time.
    let sql = "REPLACE INTO resting_ports (address, port, rest_until) \
        SELECT ?, port, rest_until FROM host_ports WHERE host = ? AND rest_until > ?";
    let values = values![host.address.to_string(), name, now.minus(PORT_SPARED)];
    tx.execute(sql, &values).await?;
    tx.execute("DELETE FROM host_ports WHERE host = ?", &values![name])
        .await?;
    tx.execute("DELETE FROM hosts WHERE name = ?", &values![name]).await?;
    Ok(HostOutcome::Committed(host))
}

/// Writes the operator's fields of `next` over `current`; `false` when the row is no longer in that generation.
async fn write(tx: &mut Tx<'_>, current: &Host, next: &Host) -> Result<bool, Fault> {
    let sql = "UPDATE hosts SET labels = ?, memory_mb = ?, schedulability = ?, down_since = ?, \
        used_cpu_millis = ?, generation = ? WHERE name = ? AND generation = ?";
    let values = values![
        json(&next.labels)?,
        next.memory_mb,
        next.schedulability.as_str(),
        next.down_since,
        next.used_cpu_millis,
        next.generation.0,
        &next.name,
        current.generation.0,
    ];
    Ok(tx.execute(sql, &values).await?.rows == 1)
}

/// Ports of the address of `host` that rest or are spared since another host left them.
async fn go_on_resting(tx: &mut Tx<'_>, host: &Host) -> Result<(), Fault> {
    let address = host.address.to_string();
    let (first, last) = host.port_range;
    let sql = "INSERT INTO host_ports (host, port, instance, rest_until) SELECT ?, port, NULL, rest_until \
        FROM resting_ports WHERE address = ? AND port BETWEEN ? AND ? AND rest_until > ?";
    let spared = host.created_at.minus(PORT_SPARED);
    tx.execute(sql, &values![&host.name, &address, first, last, spared])
        .await?;
    let sql = "DELETE FROM resting_ports WHERE address = ? AND port BETWEEN ? AND ?";
    tx.execute(sql, &values![&address, first, last]).await?;
    Ok(())
}

pub(super) async fn update(
    at: &Transactions,
    current: &Host,
    change: &HostChange,
    event: Option<&NewEvent>,
    now: Timestamp,
) -> Result<Outcome<Host>, StoreError> {
    let next = &current.changed(change);
    at.write(|tx| {
        Box::pin(async move {
            let changed = write(tx, current, next).await?;
            let Some(row) = rows::host(tx, &current.name).await? else {
                return Ok(End::Abandon(Outcome::NotFound));
            };
            if !changed {
                // Reservations move on their own: whatever they are now, the rest tells whether it was this change.
                let reserved = Host {
                    reserved_memory_mb: row.reserved_memory_mb,
                    reserved_cpu_weight: row.reserved_cpu_weight,
                    instances: row.instances,
                    ..next.clone()
                };
                let done = tx.perhaps_done && row == reserved;
                return Ok(End::Abandon(if done {
                    Outcome::Updated(row)
                } else {
                    Outcome::Conflict(row)
                }));
            }
            if let Some(event) = event {
                tx.record(event.clone(), now);
            }
            Ok(End::Commit(Outcome::Updated(row)))
        })
    })
    .await
}
