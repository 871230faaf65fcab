//! Hosts: the operator's fields. Reservations belong to placement and release.

use model::store::{Outcome, StoreError};
use model::{Host, HostChange, HostName, NewEvent, Timestamp};

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

pub(super) async fn create(at: &Transactions, host: &Host, event: &NewEvent) -> Result<Outcome<Host>, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let sql = format!(
                "INSERT INTO hosts ({}) VALUES {}",
                <Host as rows::Stored>::COLUMNS,
                placeholders(1, 17)
            );
            let inserted = tx.execute(sql, &host_insert(host)?).await;
            let row = match (&inserted, rows::host(tx, &host.name).await?) {
                (_, Some(row)) => row,
                (Err(_), None) => return Err(Fault::Contended(format!("host {} was just removed", host.name))),
                (Ok(_), None) => {
                    let why = format!("host {} is not there after it was added", host.name);
                    return Err(StoreError::Corrupt(why).into());
                }
            };
            match inserted {
                Ok(_) => {
                    go_on_resting(tx, host).await?;
                    tx.record(event.clone(), host.created_at);
                    Ok(End::Commit(Outcome::Updated(row)))
                }
                Err(Fault::Duplicate(_)) => Ok(End::Abandon(Outcome::Conflict(row))),
                Err(fault) => Err(fault),
            }
        })
    })
    .await
}

/// Ports of the address of `host` that have not rested long enough since another host left them.
async fn go_on_resting(tx: &mut Tx<'_>, host: &Host) -> Result<(), Fault> {
    let address = host.address.to_string();
    let (first, last) = host.port_range;
    let sql = "INSERT INTO host_ports (host, port, instance, rest_until) SELECT ?, port, NULL, rest_until \
        FROM resting_ports WHERE address = ? AND port BETWEEN ? AND ? AND rest_until > ?";
    tx.execute(sql, &values![&host.name, &address, first, last, host.created_at])
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
            let changed = tx.execute(sql, &values).await?.rows == 1;
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

pub(super) async fn remove(
    at: &Transactions,
    name: &HostName,
    event: &NewEvent,
    now: Timestamp,
) -> Result<Outcome<Host>, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let rest = format!("FROM hosts WHERE name = ?{}", tx.for_update());
            let Some(host) = tx.fetch::<Host>(&rest, &values![name]).await? else {
                return Ok(End::Abandon(Outcome::NotFound));
            };
            if host.instances > 0 {
                return Ok(End::Abandon(Outcome::Conflict(host)));
            }
            // A gateway that is cut off may still lead to them, whatever the host's name is next time.
            let sql = "REPLACE INTO resting_ports (address, port, rest_until) \
                SELECT ?, port, rest_until FROM host_ports WHERE host = ? AND rest_until > ?";
            tx.execute(sql, &values![host.address.to_string(), name, now]).await?;
            tx.execute("DELETE FROM host_ports WHERE host = ?", &values![name])
                .await?;
            tx.execute("DELETE FROM hosts WHERE name = ?", &values![name]).await?;
            tx.record(event.clone(), now);
            Ok(End::Commit(Outcome::Updated(host)))
        })
    })
    .await
}
