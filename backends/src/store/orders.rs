//! Orders of certificates, and the accounts at authorities.

use async_trait::async_trait;
use model::certificate::MOST;
use model::store::{Issued, OrderStore, Outcome, StoreError};
use model::{Certificate, CertificateName, CertificateOrder, Generation, NewEvent, SealedCertificate, Timestamp};

use super::SqlStore;
use super::certificates::write_certificate;
use super::database::{Fault, Value, values};
use super::transaction::{End, Transactions, Tx};

#[async_trait]
impl OrderStore for SqlStore {
    async fn order_fetch(&self, domain: &CertificateName) -> Result<Option<CertificateOrder>, StoreError> {
        fetch(&self.at, domain).await
    }

    async fn order_put(
        &self,
        order: &CertificateOrder,
        event: Option<&NewEvent>,
        now: Timestamp,
    ) -> Result<Outcome<CertificateOrder>, StoreError> {
        put(&self.at, order, event, now).await
    }

    async fn order_issued(
        &self,
        order: &CertificateOrder,
        certificate: &Certificate,
        sealed: &SealedCertificate,
        event: &NewEvent,
        now: Timestamp,
    ) -> Result<Issued, StoreError> {
        issued(&self.at, order, certificate, sealed, event, now).await
    }

    async fn order_remove(&self, order: &CertificateOrder) -> Result<bool, StoreError> {
        remove(&self.at, order).await
    }

    async fn acme_account(&self, directory: &str) -> Result<Option<String>, StoreError> {
        account(&self.at, directory).await
    }

    async fn acme_account_put(
        &self,
        directory: &str,
        account: &str,
        event: &NewEvent,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        account_put(&self.at, directory, account, event, now).await
    }

    async fn acme_account_forget(&self, directory: &str, account: &str) -> Result<(), StoreError> {
        account_forget(&self.at, directory, account).await
    }
}

pub(super) async fn list(at: &Transactions) -> Result<Vec<CertificateOrder>, StoreError> {
    at.read(|tx| Box::pin(async move { tx.list("FROM certificate_orders ORDER BY domain", &[]).await }))
        .await
}

async fn fetch(at: &Transactions, domain: &CertificateName) -> Result<Option<CertificateOrder>, StoreError> {
    at.read(|tx| Box::pin(row(tx, domain))).await
}

async fn row(tx: &mut Tx<'_>, domain: &CertificateName) -> Result<Option<CertificateOrder>, Fault> {
    let rest = "FROM certificate_orders WHERE domain = ?";
    tx.fetch(rest, &values![domain.as_str()]).await
}

/// Writes `order` if the stored generation is still its own (0: there is no row); `None` when it is not.
async fn swap(tx: &mut Tx<'_>, order: &CertificateOrder) -> Result<Option<CertificateOrder>, Fault> {
    let next = CertificateOrder {
        generation: order.generation.next(),
        ..order.clone()
    };
    let new = order.generation == Generation::default();
    let values = values![
        &next.app,
        next.failures,
        next.next_try,
        next.error.as_ref(),
        &next.holder,
        next.held_until,
        next.url.as_ref(),
        next.key.as_deref(),
        next.challenge.as_deref(),
        next.mark,
        next.generation.0,
        next.domain.as_str(),
        if new {
            Value::from(next.presented)
        } else {
            Value::from(order.generation.0)
        },
    ];
    let sql = if new {
        "INSERT INTO certificate_orders (app, failures, next_try, error, holder, held_until, url, sealed_key, \
            challenge, mark, generation, domain, presented) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    } else {
        // Whether the challenge is presented is written by another hand: it stays, unless there is another challenge.
        "UPDATE certificate_orders SET app = ?, failures = ?, next_try = ?, error = ?, holder = ?, \
            held_until = ?, url = ?, sealed_key = ?, challenge = ?, mark = ?, generation = ? \
            WHERE domain = ? AND generation = ?"
    };
    let written = match tx.execute(sql, &values).await {
        Ok(done) => done.rows,
        Err(Fault::Duplicate(_)) => 0,
        Err(fault) => return Err(fault),
    };
    Ok((written == 1).then_some(next))
}

async fn put(
    at: &Transactions,
    order: &CertificateOrder,
    event: Option<&NewEvent>,
    now: Timestamp,
) -> Result<Outcome<CertificateOrder>, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            if let Some(next) = swap(tx, order).await? {
                if let Some(event) = event {
                    tx.record(event.clone(), now);
                }
                return Ok(End::Commit(Outcome::Updated(next)));
            }
            Ok(End::Abandon(match row(tx, &order.domain).await? {
                Some(other) => Outcome::Conflict(other),
                None => Outcome::NotFound,
            }))
        })
    })
    .await
}

pub(super) async fn presented(at: &Transactions, domain: &CertificateName, mark: i64) -> Result<(), StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let sql = "UPDATE certificate_orders SET presented = ? WHERE domain = ? AND mark = ?";
            tx.execute(sql, &values![mark, domain.as_str(), mark]).await?;
            Ok(End::Commit(()))
        })
    })
    .await
}

async fn issued(
    at: &Transactions,
    order: &CertificateOrder,
    certificate: &Certificate,
    sealed: &SealedCertificate,
    event: &NewEvent,
    now: Timestamp,
) -> Result<Issued, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            if swap(tx, order).await?.is_none() {
                return Ok(End::Abandon(Issued::Conflict));
            }
            let name = certificate.name.as_str();
            let rest = format!("FROM certificates WHERE name = ?{}", tx.for_update());
            let there: Option<Certificate> = tx.fetch(&rest, &values![name]).await?;
            match there {
                Some(there) if there.source != certificate.source => {
                    return Ok(End::Commit(Issued::Uploaded));
                }
                Some(_) => {}
                None => {
                    let all = tx.number("SELECT COUNT(*) FROM certificates", &[]).await?;
                    if all.is_some_and(|n| u64::try_from(n).is_ok_and(|n| n >= MOST)) {
                        return Ok(End::Abandon(Issued::TooMany));
                    }
                }
            }
            write_certificate(tx, certificate, sealed).await?;
            tx.record(event.clone(), now);
            Ok(End::Commit(Issued::Kept))
        })
    })
    .await
}

async fn remove(at: &Transactions, order: &CertificateOrder) -> Result<bool, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let sql = "DELETE FROM certificate_orders WHERE domain = ? AND generation = ?";
            let values = values![order.domain.as_str(), order.generation.0];
            let gone = tx.execute(sql, &values).await?.rows == 1;
            Ok(End::Commit(gone))
        })
    })
    .await
}

async fn account(at: &Transactions, directory: &str) -> Result<Option<String>, StoreError> {
    let row: Option<super::rows::Account> = at
        .read(|tx| {
            Box::pin(async move {
                let rest = "FROM acme_accounts WHERE directory = ?";
                tx.fetch(rest, &values![directory]).await
            })
        })
        .await?;
    Ok(row.map(|row| row.0))
}

async fn account_put(
    at: &Transactions,
    directory: &str,
    account: &str,
    event: &NewEvent,
    now: Timestamp,
) -> Result<bool, StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let sql = "INSERT INTO acme_accounts (directory, account, created_at) VALUES (?, ?, ?)";
            match tx.execute(sql, &values![directory, account, now]).await {
                Ok(_) => {
                    tx.record(event.clone(), now);
                    Ok(End::Commit(true))
                }
                Err(Fault::Duplicate(_)) => Ok(End::Abandon(false)),
                Err(fault) => Err(fault),
            }
        })
    })
    .await
}

async fn account_forget(at: &Transactions, directory: &str, account: &str) -> Result<(), StoreError> {
    at.write(|tx| {
        Box::pin(async move {
            let sql = "DELETE FROM acme_accounts WHERE directory = ? AND account = ?";
            tx.execute(sql, &values![directory, account]).await?;
            Ok(End::Commit(()))
        })
    })
    .await
}
