//! Operations and events.

use model::store::{Outcome, Revision, StoreError};
use model::{AppId, Event, EventKind, NewEvent, Operation, OperationId, OperationState, Timestamp};
use tokio::time::{Instant, sleep_until};

use super::database::{Connector, Fault, Row, values};
use super::revision::{Look, POLL, Revisions};
use super::rows::{self, failure, json};
use super::transaction::{End, Transactions, Tx};

/// Most events that one call returns.
const EVENTS: u32 = 10_000;

/// How far below the newest number a gap is looked for: more than is committed while one can be young.
const YOUNG: i64 = 20_000;

pub(super) async fn fetch(at: &Transactions, id: &OperationId) -> Result<Option<Operation>, StoreError> {
    at.read(|tx| Box::pin(async move { rows::operation(tx, id).await }))
        .await
}

pub(super) async fn list(at: &Transactions, app: Option<&AppId>, limit: u32) -> Result<Vec<Operation>, StoreError> {
    at.read(|tx| {
        Box::pin(async move {
            match app {
                Some(app) => {
                    let rest = "FROM operations WHERE app = ? ORDER BY created_at DESC, id DESC LIMIT ?";
                    tx.list(rest, &values![app, limit]).await
                }
                None => {
                    let rest = "FROM operations ORDER BY created_at DESC, id DESC LIMIT ?";
                    tx.list(rest, &values![limit]).await
                }
            }
        })
    })
    .await
}

pub(super) async fn open(at: &Transactions) -> Result<Vec<Operation>, StoreError> {
    at.read(|tx| {
        Box::pin(async move {
            let rest = "FROM operations WHERE state IN ('running', 'blocked') ORDER BY created_at, id";
            tx.list(rest, &[]).await
        })
    })
    .await
}

pub(super) async fn update(
    at: &Transactions,
    wanted: &Operation,
    now: Timestamp,
) -> Result<Outcome<Operation>, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let rest = format!("FROM operations WHERE id = ?{}", tx.for_update());
            let Some(row) = tx.fetch::<Operation>(&rest, &values![&wanted.id]).await? else {
                return Ok(End::Abandon(Outcome::NotFound));
            };
            let next = Operation {
                updated_at: now,
                generation: wanted.generation.next(),
                ..wanted.clone()
            };
            if row.generation != wanted.generation {
                let done = tx.perhaps_done && row == next;
                return Ok(End::Abandon(if done {
                    Outcome::Updated(row)
                } else {
                    Outcome::Conflict(row)
                }));
            }
            let sql = "UPDATE operations SET kind = ?, app = ?, host = ?, release_no = ?, state = ?, message = ?, \
                failure = ?, steps = ?, reasons = ?, created_at = ?, updated_at = ?, generation = ? \
                WHERE id = ? AND generation = ?";
            let values = values![
                next.kind.as_str(),
                next.app.as_ref(),
                next.host.as_ref(),
                next.release,
                next.state.as_str(),
                &next.message,
            ]
            .into_iter()
            .chain([
                failure(next.failure.as_ref())?,
                json(&next.steps)?,
                json(&next.reasons)?,
            ])
            .chain(values![
                next.created_at,
                next.updated_at,
                next.generation.0,
                &next.id,
                row.generation.0
            ])
            .collect::<Vec<_>>();
            if tx.execute(sql, &values).await?.rows == 0 {
                return Err(Fault::Contended(format!(
                    "operation {} changed under its lock",
                    next.id
                )));
            }
            if let Some(event) = event(&row, &next) {
                tx.record(event, now);
            }
            Ok(End::Commit(Outcome::Updated(next)))
        })
    })
    .await
}

/// What is recorded of an operation's move: only that it, or a step of it, came to another state.
fn event(before: &Operation, after: &Operation) -> Option<NewEvent> {
    let states = |o: &Operation| -> Vec<_> { o.steps.iter().map(|s| (s.name.clone(), s.state)).collect() };
    if before.state == after.state && states(before) == states(after) {
        return None;
    }
    let step = after
        .steps
        .iter()
        .filter(|step| {
            !before
                .steps
                .iter()
                .any(|s| s.name == step.name && s.state == step.state)
        })
        .map(|step| step.name.as_str())
        .next_back();
    let what = match (after.state, step) {
        (OperationState::Running, Some(step)) => format!("{} ({step})", after.state.as_str()),
        _ => after.state.as_str().to_owned(),
    };
    let message = if after.message.is_empty() {
        format!("{} {what}", after.kind.as_str())
    } else {
        format!("{} {what}: {}", after.kind.as_str(), after.message)
    };
    let mut event = NewEvent::new(EventKind::Operation, "scheduler", message).in_operation(&after.id);
    event.app.clone_from(&after.app);
    event.host.clone_from(&after.host);
    Some(event)
}

pub(super) async fn record(at: &Transactions, event: &NewEvent, now: Timestamp) -> Result<(), StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            tx.record(event.clone(), now);
            Ok(End::Commit(()))
        })
    })
    .await
}

pub(super) async fn events(
    at: &Transactions,
    after: u64,
    app: Option<&AppId>,
    limit: u32,
) -> Result<Vec<Event>, StoreError> {
    at.read(|tx| {
        Box::pin(async move {
            // Looked up before the events are read: what is missing now and below this never comes.
            let settled = settled(tx, at, after).await?;
            let limit = limit.min(EVENTS);
            match app {
                Some(app) => {
                    let rest = "FROM events WHERE app = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?";
                    tx.list(rest, &values![app, after, settled, limit]).await
                }
                None => {
                    let rest = "FROM events WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?";
                    tx.list(rest, &values![after, settled, limit]).await
                }
            }
        })
    })
    .await
}

/// The highest number below which no event can still appear. MySQL gives numbers out when rows are inserted, which
/// is not the order in which their transactions are committed: a reader that went past a gap would miss what
/// fills it. So it stops at a gap as long as the event behind it is younger than [`super::revision::SETTLE`] by the
/// database's own clock; a gap that stays longer was left by a transaction that was rolled back.
async fn settled(tx: &mut Tx<'_>, at: &Transactions, after: u64) -> Result<i64, Fault> {
    let newest = newest_seq(tx).await?;
    if !matches!(*at.readers.connector, Connector::MySql(_)) {
        return Ok(newest);
    }
    let from = i64::try_from(after).unwrap_or(i64::MAX).max(newest - YOUNG);
    let gap = "SELECT MIN(seq) FROM (SELECT seq, recorded_at, LAG(seq) OVER (ORDER BY seq) AS before_it FROM events \
        WHERE seq >= ? AND seq <= ?) AS near WHERE seq > before_it + 1 \
        AND recorded_at > CURRENT_TIMESTAMP(3) - INTERVAL 2 SECOND";
    Ok(match tx.number(gap, &values![from, newest]).await? {
        Some(behind) => behind - 1,
        None => newest,
    })
}

async fn newest_seq(tx: &mut Tx<'_>) -> Result<i64, Fault> {
    Ok(tx.number("SELECT MAX(seq) FROM events", &[]).await?.unwrap_or(0))
}

pub(super) async fn newest(at: &Transactions) -> Result<u64, StoreError> {
    let newest = at.read(|tx| Box::pin(async move { newest_seq(tx).await })).await?;
    Ok(u64::try_from(newest).unwrap_or(0))
}

/// See [`model::store::InstanceStore::revision_wait`]: of those that wait, one polls for all.
pub(super) async fn wait(at: &Transactions, after: Revision, deadline: Instant) -> Result<Revision, StoreError> {
    let revisions = &at.revisions;
    if !revisions.known() {
        look(at, true).await?;
    }
    let mut changes = revisions.watch();
    loop {
        let newest = *changes.borrow_and_update();
        if newest > after.0 || Instant::now() >= deadline {
            return Ok(Revision(newest));
        }
        let poll = async {
            let mut due = revisions.poller.lock().await;
            sleep_until(Instant::from_std(*due)).await;
            // While the database does not answer, the waiting end at their deadline, and others say why.
            if let Err(error) = look(at, false).await {
                tracing::debug!(%error, "can't look for changes");
            }
            *due = std::time::Instant::now() + POLL;
        };
        tokio::select! {
            _ = changes.changed() => {}
            () = poll => {}
            () = sleep_until(deadline) => {}
        }
    }
}

async fn look(at: &Transactions, first: bool) -> Result<(), StoreError> {
    let seen = at
        .read(|tx| {
            Box::pin(async move {
                let (floor, next_floor) = if first {
                    let floor = Revisions::first_floor(newest_seq(tx).await?);
                    (floor, floor)
                } else {
                    at.revisions.floors(std::time::Instant::now())
                };
                let sql = "SELECT COUNT(*), MAX(seq), COUNT(CASE WHEN seq > ? THEN 1 END) FROM events WHERE seq > ?";
                let rows = tx.rows(sql, &values![next_floor, floor]).await?;
                let number = |row: &Row, at| Ok::<_, Fault>(row.int(at)?.unwrap_or(0));
                rows.first()
                    .map(|row| {
                        Ok(Look {
                            floor,
                            count: number(row, 0)?,
                            newest: number(row, 1)?.max(floor),
                            next_floor,
                            next_count: number(row, 2)?,
                        })
                    })
                    .transpose()
            })
        })
        .await?;
    if let Some(look) = seen {
        at.revisions.looked(look, std::time::Instant::now());
    }
    Ok(())
}
