//! Instances: reading them, moving them, giving back what they held.

use model::instance::FailureCode;
use model::store::{InstanceFilter, Outcome, PORT_REST, StoreError};
use model::{EventKind, Figures, Instance, InstanceChange, InstanceId, InstanceState, NewEvent, Timestamp};

use super::database::{Fault, Value, values};
use super::rows::{self, InstanceFigures, Stored as _, placeholders, runs};
use super::transaction::{End, Transactions, Tx};

pub(super) async fn list(at: &Transactions, filter: &InstanceFilter) -> Result<Vec<Instance>, StoreError> {
    at.read(|tx| {
        Box::pin(async move {
            let mut wanted = vec!["1 = 1"];
            let mut values: Vec<Value<'_>> = Vec::new();
            if let Some(app) = &filter.app {
                wanted.push("app = ?");
                values.push(app.into());
            }
            if let Some(host) = &filter.host {
                wanted.push("host = ?");
                values.push(host.into());
            }
            if !filter.released_too {
                wanted.push("released_at IS NULL");
            }
            let rest = format!("FROM instances WHERE {} ORDER BY placed_at, id", wanted.join(" AND "));
            tx.list(&rest, &values).await
        })
    })
    .await
}

pub(super) async fn fetch(at: &Transactions, id: &InstanceId) -> Result<Option<Instance>, StoreError> {
    at.read(|tx| Box::pin(async move { one(tx, id).await })).await
}

async fn one(tx: &mut Tx<'_>, id: &InstanceId) -> Result<Option<Instance>, Fault> {
    tx.fetch("FROM instances WHERE id = ?", &values![id]).await
}

pub(super) async fn token_hash(at: &Transactions, id: &InstanceId) -> Result<Option<String>, StoreError> {
    at.read(|tx| {
        Box::pin(async move {
            let sql = "SELECT token_hash FROM instances WHERE id = ? AND released_at IS NULL";
            let rows = tx.rows(sql, &values![id]).await?;
            rows.first().map_or(Ok(None), |row| row.text(0))
        })
    })
    .await
}

pub(super) async fn update(
    at: &Transactions,
    current: &Instance,
    change: &InstanceChange,
    now: Timestamp,
) -> Result<Outcome<Instance>, StoreError> {
    let next = &current.apply(change, now)?;
    at.write(|tx| {
        Box::pin(async move {
            let sql = "UPDATE instances SET container = ?, state = ?, routed_at = ?, assumed_healthy = ?, failure = ?, \
                restarts = ?, started_at = ?, heartbeat_at = ?, changed_at = ?, released_at = ?, generation = ? \
                WHERE id = ? AND generation = ?";
            let values = values![
                next.container.as_ref(),
                next.state.as_str(),
                next.routed_at,
                next.assumed_healthy,
                rows::failure(next.failure.as_ref())?,
                next.restarts,
                next.started_at,
                next.heartbeat_at,
                next.changed_at,
                next.released_at,
                next.generation.0,
                &next.id,
                current.generation.0,
            ];
            if tx.execute(sql, &values).await?.rows == 0 {
                return Ok(End::Abandon(match one(tx, &current.id).await? {
                    None => Outcome::NotFound,
                    Some(row) if tx.perhaps_done && row == *next => Outcome::Updated(row),
                    Some(row) => Outcome::Conflict(row),
                }));
            }
            if *change == InstanceChange::Stopped {
                release(tx, next, now).await?;
            }
            if let Some(event) = event(current, change, next) {
                tx.record(event, now);
            }
            Ok(End::Commit(Outcome::Updated(next.clone())))
        })
    })
    .await
}

/// The newest figures of all instances that have any.
pub(super) async fn figures(at: &Transactions) -> Result<Vec<(InstanceId, Figures)>, StoreError> {
    let rows: Vec<InstanceFigures> = at
        .read(|tx| Box::pin(async move { tx.list("FROM instance_figures", &[]).await }))
        .await?;
    Ok(rows.into_iter().map(|row| (row.0, row.1)).collect())
}

/// Replaces the figures of instances, always in the order of their ids: so that several schedulers that measure the
/// same instances wait for each other instead of standing in each other's way.
pub(super) async fn put_figures(at: &Transactions, figures: &[(InstanceId, Figures)]) -> Result<(), StoreError> {
    let mut sorted: Vec<&(InstanceId, Figures)> = figures.iter().collect();
    sorted.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let sorted = &sorted;
    at.write(|tx| {
        Box::pin(async move {
            for run in runs(sorted) {
                let mut all = Vec::with_capacity(run.len() * 5);
                for (id, f) in run {
                    all.extend(values![id, f.cpu_milli, f.memory_bytes, f.memory_limit_bytes, f.at]);
                }
                let sql = format!(
                    "REPLACE INTO instance_figures ({}) VALUES {}",
                    InstanceFigures::COLUMNS,
                    placeholders(run.len(), 5)
                );
                tx.execute(sql, &all).await?;
            }
            Ok(End::Commit(()))
        })
    })
    .await
}

/// Gives back the memory and weight of `instance`, and lets its port rest.
async fn release(tx: &mut Tx<'_>, instance: &Instance, now: Timestamp) -> Result<(), Fault> {
    let sql = "UPDATE hosts SET reserved_memory_mb = reserved_memory_mb - ?, \
        reserved_cpu_weight = reserved_cpu_weight - ?, instances = instances - 1 WHERE name = ?";
    let values = values![instance.memory_mb, instance.cpu_weight, &instance.host];
    tx.execute(sql, &values).await?;
    // A longer quarantine stands.
    let sql = "UPDATE host_ports SET instance = NULL, rest_until = CASE WHEN rest_until > ? THEN rest_until ELSE ? END \
        WHERE host = ? AND port = ? AND instance = ?";
    let rest = now.plus(PORT_REST);
    let values = values![rest, rest, &instance.host, instance.port, &instance.id];
    tx.execute(sql, &values).await?;
    Ok(())
}

/// What is recorded of a move; nothing of heartbeats and repeated good health.
fn event(current: &Instance, change: &InstanceChange, next: &Instance) -> Option<NewEvent> {
    let actor = match change {
        InstanceChange::Healthy { .. }
        | InstanceChange::Routed
        | InstanceChange::Unhealthy(_)
        | InstanceChange::Drained => "registry-sync",
        InstanceChange::Failed(failure) if matches!(failure.code, FailureCode::NeverReady | FailureCode::Unhealthy) => {
            "registry-sync"
        }
        _ => "scheduler",
    };
    let place = format!("on {} port {}", next.host, next.port);
    let what = match change {
        InstanceChange::Heartbeat => return None,
        InstanceChange::Healthy { .. } if current.state == InstanceState::Running => return None,
        InstanceChange::Started { restart: true, .. } => format!("restarted {place}, {} times so far", next.restarts),
        InstanceChange::Started { .. } => format!("started {place}"),
        InstanceChange::Healthy { assumed: true } => "alive (it has no health route)".to_owned(),
        InstanceChange::Healthy { assumed: false } => "healthy".to_owned(),
        InstanceChange::Routed => "routed by all gateways".to_owned(),
        InstanceChange::Unhealthy(failure) => format!("unhealthy: {}", failure.message),
        InstanceChange::Failed(failure) => format!("failed: {}", failure.message),
        InstanceChange::Drain => "draining".to_owned(),
        InstanceChange::Drained => "drained".to_owned(),
        InstanceChange::Lost(failure) => format!("lost: {}", failure.message),
        InstanceChange::Found => format!("found again {place}"),
        InstanceChange::Stopped => format!("gone from {}, its memory and port are given back", next.host),
    };
    let mut event = NewEvent::new(EventKind::Instance, actor, format!("instance {}: {what}", next.id))
        .about_app(&next.app)
        .about_host(&next.host);
    event.instance = Some(next.id.clone());
    Some(event)
}
