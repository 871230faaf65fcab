//! Tokens, registry credentials, settings; the schema's check; and what is thrown away in time.

use model::store::{FAILURES_KEPT, FAILURES_MOST, PORT_SPARED, RegistryCredentials, StoreError, Token};
use model::{NewEvent, PlatformId, Timestamp};

use super::apps::KEY_LIFE;
use super::database::{Fault, Row, Value, values};
use super::rows::{placeholders, runs};
use super::transaction::{End, Transactions, Tx};

/// Most rows of one kind that one pruning deletes.
const PRUNED: u32 = 1_000;

/// The setting that holds the installation's id.
const PLATFORM: &str = "platform";

/// The newest migration, which the database must have and must not be beyond.
pub(super) async fn check(at: &Transactions, newest: i64) -> Result<(), StoreError> {
    let has = at
        .read(|tx| {
            Box::pin(async move {
                let sql = "SELECT MAX(version) FROM _sqlx_migrations WHERE success = TRUE";
                tx.number(sql, &[]).await
            })
        })
        .await?
        .unwrap_or(0);
    if has == newest {
        Ok(())
    } else {
        Err(StoreError::Schema(format!(
            "it is at number {has}, this program needs {newest}"
        )))
    }
}

pub(super) async fn platform_id(at: &Transactions) -> Result<PlatformId, StoreError> {
    async fn stored(tx: &mut Tx<'_>) -> Result<Option<PlatformId>, Fault> {
        let rows = tx
            .rows("SELECT value FROM settings WHERE name = ?", &values![PLATFORM])
            .await?;
        let Some(text) = rows.first().map_or(Ok(None), |row: &Row| row.text(0))? else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|e: model::InvalidId| StoreError::Corrupt(e.to_string()).into())
    }
    if let Some(id) = at.read(|tx| Box::pin(async move { stored(tx).await })).await? {
        return Ok(id);
    }
    let new = &PlatformId::random();
    at.write(|tx| {
        Box::pin(async move {
            let sql = "INSERT INTO settings (name, value) VALUES (?, ?)";
            match tx.execute(sql, &values![PLATFORM, new.as_str()]).await {
                Ok(_) => Ok(End::Commit(new.clone())),
                Err(Fault::Duplicate(why)) => match stored(tx).await? {
                    Some(id) => Ok(End::Abandon(id)),
                    None => Err(Fault::Contended(why)),
                },
                Err(fault) => Err(fault),
            }
        })
    })
    .await
}

pub(super) async fn token_count(at: &Transactions) -> Result<u64, StoreError> {
    let count = at
        .read(|tx| Box::pin(async move { tx.number("SELECT COUNT(*) FROM tokens", &[]).await }))
        .await?;
    Ok(count.and_then(|n| u64::try_from(n).ok()).unwrap_or(0))
}

pub(super) async fn token_put(at: &Transactions, token: &Token) -> Result<(), StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let sql = "REPLACE INTO tokens (id, name, secret_hash, created_at) VALUES (?, ?, ?, ?)";
            let values = values![&token.id, &token.name, &token.secret_hash, token.created_at];
            tx.execute(sql, &values).await?;
            Ok(End::Commit(()))
        })
    })
    .await
}

pub(super) async fn token_fetch(at: &Transactions, id: &str) -> Result<Option<Token>, StoreError> {
    at.read(|tx| Box::pin(async move { tx.fetch("FROM tokens WHERE id = ?", &values![id]).await }))
        .await
}

pub(super) async fn credentials_put(
    at: &Transactions,
    credentials: &RegistryCredentials,
    event: &NewEvent,
    now: Timestamp,
) -> Result<(), StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let sql = "REPLACE INTO credentials (registry, username, password) VALUES (?, ?, ?)";
            let values = values![&credentials.registry, &credentials.username, &credentials.password];
            tx.execute(sql, &values).await?;
            tx.record(event.clone(), now);
            Ok(End::Commit(()))
        })
    })
    .await
}

pub(super) async fn credentials_list(at: &Transactions) -> Result<Vec<RegistryCredentials>, StoreError> {
    at.read(|tx| Box::pin(async move { tx.list("FROM credentials ORDER BY registry", &[]).await }))
        .await
}

pub(super) async fn credentials_remove(
    at: &Transactions,
    registry: &str,
    event: &NewEvent,
    now: Timestamp,
) -> Result<bool, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let sql = "DELETE FROM credentials WHERE registry = ?";
            if tx.execute(sql, &values![registry]).await?.rows == 0 {
                return Ok(End::Abandon(false));
            }
            tx.record(event.clone(), now);
            Ok(End::Commit(true))
        })
    })
    .await
}

pub(super) async fn prune(
    at: &Transactions,
    keep: u32,
    events_before: Timestamp,
    now: Timestamp,
) -> Result<u64, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let released = "SELECT id FROM (SELECT id, state, changed_at, ROW_NUMBER() OVER (PARTITION BY app \
                ORDER BY released_at DESC, id DESC) AS place FROM instances WHERE released_at IS NOT NULL) AS ranked \
                WHERE place > ? AND (state <> 'failed' OR changed_at <= ? OR place > ?) LIMIT ?";
            let values = values![keep, now.minus(FAILURES_KEPT), keep.max(FAILURES_MOST), PRUNED];
            let mut gone = delete_each(tx, "instances", released, &values).await?;
            let idle = "SELECT id FROM instance_figures WHERE id NOT IN \
                (SELECT id FROM instances WHERE released_at IS NULL) LIMIT ?";
            gone += delete_each(tx, "instance_figures", idle, &values![PRUNED]).await?;
            // From the head up to the first that is kept: numbers grow with time, and no gap is left behind.
            let head = "SELECT COALESCE(MIN(CASE WHEN at >= ? THEN seq END), MAX(seq) + 1) \
                FROM (SELECT seq, at FROM events ORDER BY seq LIMIT ?) AS head";
            if let Some(first) = tx.number(head, &values![events_before, PRUNED]).await? {
                gone += tx
                    .execute("DELETE FROM events WHERE seq < ?", &values![first])
                    .await?
                    .rows;
            }
            let operations = "SELECT id FROM operations WHERE created_at < ? AND updated_at < ? \
                AND state NOT IN ('running', 'blocked') AND id NOT IN (SELECT operation FROM apps WHERE operation IS \
                NOT NULL) AND id NOT IN (SELECT operation FROM idempotency) ORDER BY created_at LIMIT ?";
            let values = values![events_before, events_before, PRUNED];
            gone += delete_each(tx, "operations", operations, &values).await?;
            let keys = "SELECT id FROM idempotency WHERE created_at <= ? LIMIT ?";
            gone += delete_each(tx, "idempotency", keys, &values![now.minus(KEY_LIFE), PRUNED]).await?;
            let sql = "DELETE FROM app_claims WHERE until_at <= ?";
            gone += tx.execute(sql, &values![now]).await?.rows;
            let sql = "DELETE FROM resting_ports WHERE rest_until <= ?";
            gone += tx.execute(sql, &values![now.minus(PORT_SPARED)]).await?.rows;
            Ok(End::Commit(gone))
        })
    })
    .await
}

/// Deletes the rows of `table` whose ids `select` finds.
async fn delete_each(
    tx: &mut Tx<'_>,
    table: &'static str,
    select: &'static str,
    values: &[Value<'_>],
) -> Result<u64, Fault> {
    let mut ids = Vec::new();
    for row in tx.rows(select, values).await? {
        ids.extend(row.text(0)?);
    }
    let mut gone = 0;
    for run in runs(&ids) {
        let sql = format!("DELETE FROM {table} WHERE id IN {}", placeholders(1, run.len()));
        let values: Vec<Value<'_>> = run.iter().map(Value::from).collect();
        gone += tx.execute(sql, &values).await?.rows;
    }
    Ok(gone)
}
