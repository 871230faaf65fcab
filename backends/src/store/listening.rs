//! When heartbeats could be received, kept as a setting.

use model::store::StoreError;
use model::{Listening, Timestamp};

use super::database::{Fault, Row, values};
use super::rows::json;
use super::transaction::{End, Transactions, Tx};

/// The setting that holds it.
const SETTING: &str = "listening";

pub(super) async fn fetch(at: &Transactions) -> Result<Option<Listening>, StoreError> {
    at.read(|tx| Box::pin(async move { stored(tx, "").await })).await
}

async fn stored(tx: &mut Tx<'_>, lock: &str) -> Result<Option<Listening>, Fault> {
    let sql = format!("SELECT value FROM settings WHERE name = ?{lock}");
    let rows = tx.rows(sql, &values![SETTING]).await?;
    let Some(text) = rows.first().map_or(Ok(None), |row: &Row| row.text(0))? else {
        return Ok(None);
    };
    let read = serde_json::from_str(&text).map_err(|e| StoreError::Corrupt(e.to_string()))?;
    Ok(Some(read))
}

pub(super) async fn note(at: &Transactions, now: Timestamp) -> Result<(), StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let lock = tx.for_update();
            let before = stored(tx, lock).await?;
            let next = Listening::noted(before, now);
            if before == Some(next) {
                return Ok(End::Abandon(()));
            }
            if before.is_some() {
                let sql = "UPDATE settings SET value = ? WHERE name = ?";
                tx.execute(sql, &values![json(&next)?, SETTING]).await?;
                return Ok(End::Commit(()));
            }
            let sql = "INSERT INTO settings (name, value) VALUES (?, ?)";
            match tx.execute(sql, &values![SETTING, json(&next)?]).await {
                Ok(_) => Ok(End::Commit(())),
                Err(Fault::Duplicate(why)) => Err(Fault::Contended(why)),
                Err(fault) => Err(fault),
            }
        })
    })
    .await
}
