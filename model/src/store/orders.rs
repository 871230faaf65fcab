//! What the store keeps of certificates that the platform gets by itself: orders, and accounts at authorities.

use async_trait::async_trait;

use super::{Outcome, StoreError};
use crate::{Certificate, CertificateName, CertificateOrder, NewEvent, SealedCertificate, Timestamp};

/// What came of a certificate that an authority has issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issued {
    /// It is in its place.
    Kept,
    /// Somebody gave one of the same name meanwhile, which stays.
    Uploaded,
    /// The order is in another generation by now; nothing was changed.
    Conflict,
    /// There are [`MOST`](crate::certificate::MOST) others; nothing was changed.
    TooMany,
}

/// What a scheduler reads and writes of orders.
#[async_trait]
pub trait OrderStore: Send + Sync + std::fmt::Debug {
    /// The order of this domain.
    async fn order_fetch(&self, domain: &CertificateName) -> Result<Option<CertificateOrder>, StoreError>;

    /// Writes an order, its `presented` left as it is: a compare-and-set on its generation, 0 for a new row. No event unless
    /// one is given, no waking.
    async fn order_put(
        &self,
        order: &CertificateOrder,
        event: Option<&NewEvent>,
        now: Timestamp,
    ) -> Result<Outcome<CertificateOrder>, StoreError>;

    /// Writes an order that has come to its end, and its certificate in the place of the one of the same name, in one
    /// transaction.
    async fn order_issued(
        &self,
        order: &CertificateOrder,
        certificate: &Certificate,
        sealed: &SealedCertificate,
        event: &NewEvent,
        now: Timestamp,
    ) -> Result<Issued, StoreError>;

    /// Forgets an order; `false` if it is gone or another generation by now.
    async fn order_remove(&self, order: &CertificateOrder) -> Result<bool, StoreError>;

    /// The sealed account at the authority with this directory.
    async fn acme_account(&self, directory: &str) -> Result<Option<String>, StoreError>;

    /// Keeps a sealed account; `false` if there is one already, which stays.
    async fn acme_account_put(
        &self,
        directory: &str,
        account: &str,
        event: &NewEvent,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Forgets the account if it still is this one: the authority does not know it any more.
    async fn acme_account_forget(&self, directory: &str, account: &str) -> Result<(), StoreError>;
}
