//! The ports at the gateways that lead to TCP apps. Each belongs to at most one app: the table's keys say so, whatever this
//! program believes.

use std::collections::HashSet;

use model::config::Protocol;
use model::store::{IntentOutcome, PORT_REST};
use model::{App, AppId, PortRange, Timestamp};

use super::database::{Fault, values};
use super::rows::{GatewayPort, json};
use super::transaction::Tx;

/// How many ports are tried that others take at the same moment, before the transaction starts anew.
const TRIES: usize = 64;

/// Gives the app, whose row this transaction has written, the port that it is to have, one of `ports` where it asks for none;
/// or what is answered instead.
pub(super) async fn settle(
    tx: &mut Tx<'_>,
    app: &mut App,
    ports: PortRange,
    now: Timestamp,
) -> Result<Option<IntentOutcome>, Fault> {
    let own = of(tx, &app.id).await?;
    // Who has the name that clients say needs no port, unless it asks for one.
    let by_name = app.config.tcp.passthrough && app.config.tcp.port == 0;
    if app.config.protocol != Protocol::Tcp || by_name {
        if own.is_some() {
            release(tx, &app.id, now).await?;
        }
        return Ok(None);
    }
    let port = match (app.config.tcp.port, own) {
        (0, Some(own)) => own,
        (wish, Some(own)) if wish == own => return Ok(None),
        (0, None) => match choose(tx, &app.id, ports, now).await? {
            Some(port) => port,
            None => return Ok(Some(IntentOutcome::NoPort)),
        },
        (wish, own) => {
            if own.is_some() {
                release(tx, &app.id, now).await?;
            }
            let holder = take(tx, wish, &app.id).await?;
            return Ok(holder.map(|by| IntentOutcome::PortTaken { port: wish, by }));
        }
    };
    app.config.tcp.port = port;
    let sql = "UPDATE apps SET config = ? WHERE id = ?";
    tx.execute(sql, &values![json(&app.config)?, &app.id]).await?;
    Ok(None)
}

/// The app's port. Read without a lock: it only changes under the lock of the app's row.
async fn of(tx: &mut Tx<'_>, app: &AppId) -> Result<Option<u16>, Fault> {
    let rest = "FROM gateway_ports WHERE app = ?";
    Ok(tx.fetch::<GatewayPort>(rest, &values![app]).await?.map(|row| row.port))
}

/// Takes the lowest port that is nobody's and does not rest.
async fn choose(tx: &mut Tx<'_>, app: &AppId, ports: PortRange, now: Timestamp) -> Result<Option<u16>, Fault> {
    let rest = "FROM gateway_ports WHERE app IS NOT NULL OR rest_until > ?";
    let rows = tx.list::<GatewayPort>(rest, &values![now]).await?;
    let taken: HashSet<u16> = rows.into_iter().map(|row| row.port).collect();
    let free = (ports.first..=ports.last).filter(|port| !taken.contains(port));
    let mut tried = 0;
    for port in free.take(TRIES) {
        if take(tx, port, app).await?.is_none() {
            return Ok(Some(port));
        }
        tried += 1;
    }
    if tried == TRIES {
        return Err(Fault::Contended("others take the gateways' ports all the time".into()));
    }
    Ok(None)
}

/// Makes the port the app's; or says whose it is.
async fn take(tx: &mut Tx<'_>, port: u16, app: &AppId) -> Result<Option<AppId>, Fault> {
    let sql = "INSERT INTO gateway_ports (port, app, rest_until) VALUES (?, ?, 0)";
    match tx.execute(sql, &values![port, app]).await {
        Ok(_) => return Ok(None),
        Err(Fault::Duplicate(_)) => {}
        Err(fault) => return Err(fault),
    }
    let sql = "UPDATE gateway_ports SET app = ?, rest_until = 0 WHERE port = ? AND app IS NULL";
    if tx.execute(sql, &values![app, port]).await?.rows == 1 {
        return Ok(None);
    }
    let rest = format!("FROM gateway_ports WHERE port = ?{}", tx.for_update());
    match tx.fetch::<GatewayPort>(&rest, &values![port]).await? {
        Some(GatewayPort { app: Some(by), .. }) => Ok(Some(by)),
        _ => Err(Fault::Contended(format!("port {port} changed hands"))),
    }
}

/// Lets the app's port rest, if it has one.
pub(super) async fn release(tx: &mut Tx<'_>, app: &AppId, now: Timestamp) -> Result<(), Fault> {
    // Looked up by its key: a search for an app that has none would lock the gap in which others insert.
    let Some(port) = of(tx, app).await? else {
        return Ok(());
    };
    let sql = "UPDATE gateway_ports SET app = NULL, rest_until = ? WHERE port = ?";
    tx.execute(sql, &values![now.plus(PORT_REST), port]).await?;
    Ok(())
}
