//! Certificates with their sealed keys.

use model::certificate::MOST;
use model::store::StoreError;
use model::{Certificate, CertificateName, NewEvent, SealedCertificate, Timestamp};

use super::database::{Fault, values};
use super::rows::{Marked, json};
use super::transaction::{End, Transactions, Tx};

pub(super) async fn list(at: &Transactions) -> Result<Vec<Certificate>, StoreError> {
    at.read(|tx| Box::pin(async move { tx.list("FROM certificates ORDER BY name", &[]).await }))
        .await
}

pub(super) async fn sealed(
    at: &Transactions,
    name: &CertificateName,
) -> Result<Option<(i64, SealedCertificate)>, StoreError> {
    let row: Option<Marked> = at
        .read(|tx| {
            Box::pin(async move {
                let rest = "FROM certificates WHERE name = ?";
                tx.fetch(rest, &values![name.as_str()]).await
            })
        })
        .await?;
    Ok(row.map(|row| (row.0, row.1)))
}

pub(super) async fn put(
    at: &Transactions,
    certificate: &Certificate,
    sealed: &SealedCertificate,
    event: &NewEvent,
    now: Timestamp,
) -> Result<bool, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let sql = "SELECT COUNT(*) FROM certificates WHERE name <> ?";
            let others = tx.number(sql, &values![certificate.name.as_str()]).await?;
            if others.is_some_and(|n| u64::try_from(n).is_ok_and(|n| n >= MOST)) {
                return Ok(End::Abandon(false));
            }
            write_certificate(tx, certificate, sealed).await?;
            tx.record(event.clone(), now);
            Ok(End::Commit(true))
        })
    })
    .await
}

/// Writes the row in the place of the one of the same name.
pub(super) async fn write_certificate(
    tx: &mut Tx<'_>,
    certificate: &Certificate,
    sealed: &SealedCertificate,
) -> Result<(), Fault> {
    let sql = "REPLACE INTO certificates (name, source, names, issuer, not_before, expires_at, chain, \
        sealed_key, updated_at, mark) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let values = [
        certificate.name.as_str().into(),
        certificate.source.as_str().into(),
        json(&certificate.names)?,
        (&certificate.issuer).into(),
        certificate.not_before.into(),
        certificate.expires_at.into(),
        (&*sealed.chain).into(),
        (&*sealed.key).into(),
        certificate.updated_at.into(),
        certificate.mark.into(),
    ];
    tx.execute(sql, &values).await?;
    Ok(())
}

pub(super) async fn remove(
    at: &Transactions,
    name: &CertificateName,
    event: &NewEvent,
    now: Timestamp,
) -> Result<bool, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let sql = "DELETE FROM certificates WHERE name = ?";
            let certificates = tx.execute(sql, &values![name.as_str()]).await?.rows;
            let sql = "DELETE FROM certificate_orders WHERE domain = ?";
            let orders = tx.execute(sql, &values![name.as_str()]).await?.rows;
            if certificates + orders == 0 {
                return Ok(End::Abandon(false));
            }
            tx.record(event.clone(), now);
            Ok(End::Commit(true))
        })
    })
    .await
}
