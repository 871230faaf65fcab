//! Apps and releases: what is wanted, committed whole or not at all.

use std::collections::BTreeSet;
use std::time::Duration;

use model::config::Protocol;
use model::store::{AppSettle, Expected, IdempotencyKey, Intent, IntentOutcome, KeyUse, Outcome, StoreError};
use model::{App, AppId, EventKind, Generation, NewEvent, Operation, OperationState, PortRange, Release, Timestamp};

use super::database::{Fault, Value, values};
use super::gateway_ports;
use super::rows::{self, UsedKey, json, json_or_null, operation_insert, placeholders, runs};
use super::transaction::{End, Transactions, Tx};

/// How long an `Idempotency-Key` is remembered.
pub(super) const KEY_LIFE: Duration = Duration::from_secs(24 * 3_600);

pub(super) async fn list(at: &Transactions) -> Result<Vec<App>, StoreError> {
    at.read(|tx| Box::pin(async move { tx.list("FROM apps ORDER BY id", &[]).await }))
        .await
}

pub(super) async fn fetch(at: &Transactions, id: &AppId) -> Result<Option<App>, StoreError> {
    at.read(|tx| Box::pin(async move { rows::app(tx, id).await })).await
}

pub(super) async fn release(at: &Transactions, app: &AppId, number: u32) -> Result<Option<Release>, StoreError> {
    at.read(|tx| {
        Box::pin(async move {
            tx.fetch("FROM releases WHERE app = ? AND number = ?", &values![app, number])
                .await
        })
    })
    .await
}

pub(super) async fn releases(at: &Transactions, app: &AppId, limit: u32) -> Result<Vec<Release>, StoreError> {
    at.read(|tx| {
        Box::pin(async move {
            let rest = "FROM releases WHERE app = ? ORDER BY number DESC LIMIT ?";
            tx.list(rest, &values![app, limit]).await
        })
    })
    .await
}

pub(super) async fn commit(at: &Transactions, intent: &Intent, now: Timestamp) -> Result<IntentOutcome, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            // The key comes first: of two same requests at once the second waits here for the first to end.
            if let Some(key) = &intent.idempotency
                && let Some(used) = use_key(tx, key, Some(&intent.operation), now).await?
            {
                return match used {
                    KeyUse::Same(Some(operation)) => Ok(End::Abandon(IntentOutcome::Replayed(operation))),
                    _ => Ok(End::Abandon(IntentOutcome::KeyReused)),
                };
            }
            let before = match intent.expected {
                Expected::Absent => None,
                Expected::Generation(_) => {
                    let rest = format!("FROM apps WHERE id = ?{}", tx.for_update());
                    tx.fetch::<App>(&rest, &values![&intent.app.id]).await?
                }
            };
            let wanted = App {
                restart_before: restart_before(tx, &intent.app, before.as_ref()).await?,
                ..intent.app.clone()
            };
            let mut app = match write_app(tx, &wanted, intent, now).await? {
                Outcome::Updated(app) => app,
                Outcome::Conflict(app) => return Ok(End::Abandon(IntentOutcome::Conflict(app))),
                Outcome::NotFound => return Ok(End::Abandon(IntentOutcome::NotFound)),
            };
            if let Some(taken) = take_domains(tx, &app, before.as_ref()).await? {
                return Ok(End::Abandon(taken));
            }
            if let Some(answer) = gateway_ports::settle(tx, &mut app, intent.tcp_ports, now).await? {
                return Ok(End::Abandon(answer));
            }
            if let Some(release) = &intent.release {
                insert_release(tx, release).await?;
            }
            supersede(tx, &app.id, &intent.operation, now).await?;
            let operation = Operation {
                generation: Generation::FIRST,
                ..intent.operation.clone()
            };
            insert_operation(tx, &operation).await?;
            tx.record(intent.event.clone(), now);
            Ok(End::Commit(IntentOutcome::Committed(app, operation)))
        })
    })
    .await
}

/// Takes the key for `operation`; or how it was taken before.
pub(super) async fn use_key(
    tx: &mut Tx<'_>,
    key: &IdempotencyKey,
    operation: Option<&Operation>,
    now: Timestamp,
) -> Result<Option<KeyUse>, Fault> {
    let operation = operation.map_or("", |o| o.id.as_str());
    let sql = "INSERT INTO idempotency (id, request_hash, operation, created_at) VALUES (?, ?, ?, ?)";
    let values = values![&key.key, &key.request_hash, operation, now];
    match tx.execute(sql, &values).await {
        Ok(_) => return Ok(None),
        Err(Fault::Duplicate(_)) => {}
        Err(fault) => return Err(fault),
    }
    let rest = format!("FROM idempotency WHERE id = ?{}", tx.for_update());
    let Some(used) = tx.fetch::<UsedKey>(&rest, &values![&key.key]).await? else {
        return Err(Fault::Contended("an idempotency key went away".into()));
    };
    if used.created_at <= now.minus(KEY_LIFE) {
        let sql = "UPDATE idempotency SET request_hash = ?, operation = ?, created_at = ? WHERE id = ?";
        let values = values![&key.request_hash, operation, now, &key.key];
        tx.execute(sql, &values).await?;
        return Ok(None);
    }
    how_used(tx, key, used).await.map(Some)
}

async fn how_used(tx: &mut Tx<'_>, key: &IdempotencyKey, used: UsedKey) -> Result<KeyUse, Fault> {
    if used.request_hash != key.request_hash {
        return Ok(KeyUse::Other);
    }
    let Some(id) = used.operation else {
        return Ok(KeyUse::Same(None));
    };
    match rows::operation(tx, &id).await? {
        Some(operation) => Ok(KeyUse::Same(Some(operation))),
        None => Err(Fault::Fatal(StoreError::Corrupt(format!(
            "idempotency key {} names operation {id}, which is gone",
            key.key
        )))),
    }
}

pub(super) async fn key_use(at: &Transactions, key: &IdempotencyKey, now: Timestamp) -> Result<KeyUse, StoreError> {
    at.read(|tx| {
        Box::pin(async move {
            let rest = "FROM idempotency WHERE id = ?";
            match tx.fetch::<UsedKey>(rest, &values![&key.key]).await? {
                Some(used) if used.created_at > now.minus(KEY_LIFE) => how_used(tx, key, used).await,
                _ => Ok(KeyUse::New),
            }
        })
    })
    .await
}

/// A new `restart_before` is later than every instance that was there, though a machine whose clock is ahead placed it.
async fn restart_before(tx: &mut Tx<'_>, wanted: &App, before: Option<&App>) -> Result<Option<Timestamp>, Fault> {
    let (Some(at), Some(before)) = (wanted.restart_before, before) else {
        return Ok(wanted.restart_before);
    };
    if before.restart_before == Some(at) {
        return Ok(Some(at));
    }
    let sql = "SELECT MAX(placed_at) FROM instances WHERE app = ? AND released_at IS NULL";
    let newest = tx.number(sql, &values![&wanted.id]).await?;
    let behind = newest.map(|newest| Timestamp::from_millis(newest).plus(Duration::from_millis(1)));
    Ok(Some(behind.map_or(at, |behind| behind.max(at))))
}

/// Makes the domains that `app` newly names its own and gives back those that it no longer names; or whose one of them is.
async fn take_domains(tx: &mut Tx<'_>, app: &App, before: Option<&App>) -> Result<Option<IntentOutcome>, Fault> {
    let had = before.map_or(&[][..], |before| &before.config.domains[..]);
    let has = &app.config.domains;
    let gone: Vec<&String> = had.iter().filter(|domain| !has.contains(domain)).collect();
    for run in runs(&gone) {
        let sql = format!(
            "DELETE FROM domains WHERE app = ? AND domain IN {}",
            placeholders(1, run.len())
        );
        let mut values = vec![Value::from(&app.id)];
        values.extend(run.iter().map(|domain| Value::from(*domain)));
        tx.execute(sql, &values).await?;
    }
    // In their own order, so that two apps that want the same ones never wait for each other in a circle.
    let new: BTreeSet<&String> = has.iter().filter(|domain| !had.contains(domain)).collect();
    for domain in new {
        let sql = "INSERT INTO domains (domain, app) VALUES (?, ?)";
        match tx.execute(sql, &values![domain, &app.id]).await {
            Ok(_) => continue,
            Err(Fault::Duplicate(_)) => {}
            Err(fault) => return Err(fault),
        }
        let sql = format!("SELECT app FROM domains WHERE domain = ?{}", tx.for_update());
        let owner = tx.rows(sql, &values![domain]).await?;
        let Some(owner) = owner.first().map_or(Ok(None), |row| row.text(0))? else {
            return Err(Fault::Contended(format!("domain {domain} was just given back")));
        };
        let owner: AppId = owner
            .parse()
            .map_err(|e: model::InvalidId| StoreError::Corrupt(e.to_string()))?;
        if owner != app.id {
            let domain = domain.clone();
            return Ok(Some(IntentOutcome::DomainTaken { domain, owner }));
        }
    }
    Ok(None)
}

/// Inserts or changes the app's row; the row as it is then.
async fn write_app(tx: &mut Tx<'_>, app: &App, intent: &Intent, now: Timestamp) -> Result<Outcome<App>, Fault> {
    let operation = &intent.operation.id;
    match intent.expected {
        Expected::Absent => {
            let new = App {
                operation: Some(operation.clone()),
                placements: 0,
                created_at: now,
                updated_at: now,
                generation: Generation::FIRST,
                ..app.clone()
            };
            let sql = format!(
                "INSERT INTO apps ({}) VALUES {}",
                <App as rows::Stored>::COLUMNS,
                placeholders(1, 16)
            );
            let values = values![
                &new.id,
                &new.tenant,
                new.status.as_str(),
                new.instances,
                new.release,
                new.previous_release,
                new.last_release,
                new.restart_before,
                json_or_null(new.canary.as_ref())?,
                json_or_null(new.way_back.as_ref())?,
                json(&new.config)?,
                operation,
                new.placements,
                new.created_at,
                new.updated_at,
                new.generation.0,
            ];
            match tx.execute(sql, &values).await {
                Ok(_) => return Ok(Outcome::Updated(new)),
                Err(Fault::Duplicate(_)) => {}
                Err(fault) => return Err(fault),
            }
        }
        Expected::Generation(generation) => {
            let sql = "UPDATE apps SET tenant = ?, status = ?, instances = ?, release_no = ?, previous_release = ?, \
                last_release = ?, restart_before = ?, canary = ?, way_back = ?, config = ?, operation = ?, updated_at = ?, \
                generation = generation + 1 WHERE id = ? AND generation = ?";
            let values = values![
                &app.tenant,
                app.status.as_str(),
                app.instances,
                app.release,
                app.previous_release,
                app.last_release,
                app.restart_before,
                json_or_null(app.canary.as_ref())?,
                json_or_null(app.way_back.as_ref())?,
                json(&app.config)?,
                operation,
                now,
                &app.id,
                generation.0,
            ];
            if tx.execute(sql, &values).await?.rows == 1 {
                let row = rows::app(tx, &app.id).await?;
                return Ok(row.map_or(Outcome::NotFound, Outcome::Updated));
            }
        }
    }
    match (rows::app(tx, &app.id).await?, intent.expected) {
        (Some(row), _) => Ok(Outcome::Conflict(row)),
        (None, Expected::Generation(_)) => Ok(Outcome::NotFound),
        (None, Expected::Absent) => Err(Fault::Contended(format!("app {} was just removed", app.id))),
    }
}

async fn insert_release(tx: &mut Tx<'_>, release: &Release) -> Result<(), Fault> {
    let sql = format!(
        "INSERT INTO releases ({}) VALUES {}",
        <Release as rows::Stored>::COLUMNS,
        placeholders(1, 7)
    );
    let values = values![
        &release.app,
        release.number,
        &release.version,
        &release.digest,
        json(&release.spec)?,
        release.protocol.map(Protocol::as_str),
        release.created_at,
    ];
    match tx.execute(sql, &values).await {
        Ok(_) => Ok(()),
        // The app's generation was right, so nobody else can have made it.
        Err(Fault::Duplicate(_)) => Err(Fault::Fatal(StoreError::Corrupt(format!(
            "release {} of {} exists already",
            release.number, release.app
        )))),
        Err(fault) => Err(fault),
    }
}

/// Ends the open operations of `app`: `by` takes their place.
async fn supersede(tx: &mut Tx<'_>, app: &AppId, by: &Operation, now: Timestamp) -> Result<(), Fault> {
    let rest = format!(
        "FROM operations WHERE app = ? AND state IN ('running', 'blocked') ORDER BY id{}",
        tx.for_update()
    );
    let message = format!("superseded by {}", by.id);
    for open in tx.list::<Operation>(&rest, &values![app]).await? {
        let sql = "UPDATE operations SET state = ?, message = ?, updated_at = ?, generation = generation + 1 \
            WHERE id = ?";
        let values = values![OperationState::Superseded.as_str(), &message, now, &open.id];
        tx.execute(sql, &values).await?;
        let event = NewEvent::new(EventKind::Operation, "scheduler", message.clone())
            .about_app(app)
            .in_operation(&open.id);
        tx.record(event, now);
    }
    Ok(())
}

pub(super) async fn insert_operation(tx: &mut Tx<'_>, operation: &Operation) -> Result<(), Fault> {
    let sql = format!(
        "INSERT INTO operations ({}) VALUES {}",
        <Operation as rows::Stored>::COLUMNS,
        placeholders(1, 13)
    );
    tx.execute(sql, &operation_insert(operation)?).await?;
    Ok(())
}

pub(super) async fn settle(
    at: &Transactions,
    current: &App,
    change: &AppSettle,
    now: Timestamp,
) -> Result<Outcome<App>, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let rest = format!("FROM apps WHERE id = ?{}", tx.for_update());
            let Some(mut app) = tx.fetch::<App>(&rest, &values![&current.id]).await? else {
                return Ok(End::Abandon(Outcome::NotFound));
            };
            if app.generation != current.generation {
                return Ok(End::Abandon(Outcome::Conflict(app)));
            }
            let before = app.clone();
            let message = match change {
                AppSettle::Routed { release } => {
                    app.way_back = None;
                    format!("release {release} is fully routed")
                }
                AppSettle::RolledBack { to } => {
                    let failed = app.release;
                    app.previous_release = *to;
                    app.turn_back();
                    let lost = retake(tx, &mut app, &before, now).await?;
                    format!("release {failed} failed: back to release {to}{lost}")
                }
                AppSettle::CanaryFailed { release } => {
                    if let Some(failed) = app.canary.as_mut().filter(|c| c.release == *release) {
                        *failed = failed.leaving();
                        app.config.weights = failed.weights();
                    }
                    format!("the canary of release {release} failed: it is taken away")
                }
                AppSettle::CanaryGone { release } => {
                    if app.canary.as_ref().is_some_and(|c| c.release == *release && c.leaves()) {
                        app.canary = None;
                        app.config.weights.clear();
                    }
                    format!("the canary of release {release} is gone")
                }
            };
            if before == app {
                return Ok(End::Abandon(Outcome::Updated(app)));
            }
            app.generation = app.generation.next();
            app.updated_at = now;
            let sql = "UPDATE apps SET instances = ?, release_no = ?, previous_release = ?, canary = ?, way_back = ?, \
                config = ?, updated_at = ?, generation = ? WHERE id = ? AND generation = ?";
            let values = values![
                app.instances,
                app.release,
                app.previous_release,
                json_or_null(app.canary.as_ref())?,
                json_or_null(app.way_back.as_ref())?,
                json(&app.config)?,
                app.updated_at,
                app.generation.0,
                &app.id,
                current.generation.0,
            ];
            if tx.execute(sql, &values).await?.rows == 0 {
                return Err(Fault::Contended(format!("app {} changed under its lock", app.id)));
            }
            let mut event = NewEvent::new(EventKind::App, "scheduler", message).about_app(&app.id);
            event.operation.clone_from(&app.operation);
            tx.record(event, now);
            Ok(End::Commit(Outcome::Updated(app)))
        })
    })
    .await
}

/// Takes again what the configuration names that `app` was given back; what others have taken meanwhile is left to them. What
/// was left, for the event.
async fn retake(tx: &mut Tx<'_>, app: &mut App, before: &App, now: Timestamp) -> Result<String, Fault> {
    let mut lost = String::new();
    if app.config == before.config {
        return Ok(lost);
    }
    while let Some(IntentOutcome::DomainTaken { domain, owner }) = take_domains(tx, app, Some(before)).await? {
        app.config.domains.retain(|own| *own != domain);
        lost.push_str(&format!("; {domain} belongs to app {owner} by now"));
    }
    let port = app.config.tcp.port;
    // No range: it asks for the one that it had.
    let none = PortRange { first: 1, last: 0 };
    if gateway_ports::settle(tx, app, none, now).await?.is_some() {
        app.config.tcp.port = 0;
        lost.push_str(&format!("; port {port} at the gateways is another app's by now"));
    }
    Ok(lost)
}

pub(super) async fn delete(at: &Transactions, id: &AppId, now: Timestamp) -> Result<bool, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let rest = format!("FROM apps WHERE id = ?{}", tx.for_update());
            let Some(app) = tx.fetch::<App>(&rest, &values![id]).await? else {
                return Ok(End::Abandon(true));
            };
            let held = "SELECT COUNT(*) FROM instances WHERE app = ? AND released_at IS NULL";
            if app.status != model::AppStatus::Removing || tx.number(held, &values![id]).await? != Some(0) {
                return Ok(End::Abandon(false));
            }
            gateway_ports::release(tx, id, now).await?;
            for sql in [
                "DELETE FROM instances WHERE app = ?",
                "DELETE FROM releases WHERE app = ?",
                "DELETE FROM app_claims WHERE app = ?",
                "DELETE FROM domains WHERE app = ?",
                "DELETE FROM apps WHERE id = ?",
            ] {
                tx.execute(sql, &values![id]).await?;
            }
            let mut event = NewEvent::new(EventKind::App, "scheduler", format!("app {id} is gone")).about_app(id);
            event.operation.clone_from(&app.operation);
            tx.record(event, now);
            Ok(End::Commit(true))
        })
    })
    .await
}

pub(super) async fn claim(
    at: &Transactions,
    app: &AppId,
    holder: &str,
    now: Timestamp,
    ttl: Duration,
) -> Result<bool, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let until = now.plus(ttl);
            let sql = "UPDATE app_claims SET holder = ?, until_at = ? WHERE app = ? AND (holder = ? OR until_at <= ?)";
            if tx.execute(sql, &values![holder, until, app, holder, now]).await?.rows == 1 {
                return Ok(End::Commit(true));
            }
            let sql = "INSERT INTO app_claims (app, holder, until_at) VALUES (?, ?, ?)";
            match tx.execute(sql, &values![app, holder, until]).await {
                Ok(_) => Ok(End::Commit(true)),
                Err(Fault::Duplicate(_)) => Ok(End::Abandon(false)),
                Err(fault) => Err(fault),
            }
        })
    })
    .await
}
