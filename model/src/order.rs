//! Orders: certificates that the platform gets by itself from an authority (ACME, RFC 8555), one per domain. A row says how far
//! the order has come, so that whoever works on it may be killed at any line.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{AppId, CertificateName, Generation, Timestamp};

/// Longest sealed challenge that is read, in bytes; a usual one has 180.
pub const MAX_SEALED_CHALLENGE: usize = 1024;
/// Most characters that are kept of why an order failed.
pub const MAX_ERROR: usize = 1_000;

/// What is known of the certificate that is to be had for a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateOrder {
    /// The domain; the certificate bears the same name.
    pub domain: CertificateName,
    /// Whose domain it is.
    pub app: AppId,
    /// Failed tries since the last certificate.
    pub failures: u32,
    /// Nothing is tried before.
    pub next_try: Timestamp,
    /// Why the last try failed.
    pub error: Option<String>,
    /// The scheduler that works on it; empty: nobody.
    pub holder: String,
    /// Until when nobody else takes it up.
    pub held_until: Timestamp,
    /// Where the authority keeps the order that is under way.
    pub url: Option<String>,
    /// The sealed key of the certificate to be; sealed about [`about_key`](crate::certificate::about_key).
    pub key: Option<Arc<str>>,
    /// What gateways answer to the authority, sealed about [`about_challenge`].
    pub challenge: Option<Arc<str>>,
    /// Random: tells the challenge from any other of the domain; 0 without one.
    pub mark: i64,
    /// The mark of the challenge that every live gateway answers by now.
    pub presented: i64,
    /// Optimistic lock; 0: not stored yet.
    pub generation: Generation,
}

/// How an order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// A scheduler works on it.
    UnderWay,
    /// The last try failed; the next one has its time.
    Failed,
    /// Nothing is to be done.
    Done,
}

impl OrderState {
    /// As shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnderWay => "under_way",
            Self::Failed => "failed",
            Self::Done => "done",
        }
    }
}

impl CertificateOrder {
    /// A first order, not stored yet.
    pub fn new(domain: CertificateName, app: AppId) -> Self {
        Self {
            domain,
            app,
            failures: 0,
            next_try: Timestamp::default(),
            error: None,
            holder: String::new(),
            held_until: Timestamp::default(),
            url: None,
            key: None,
            challenge: None,
            mark: 0,
            presented: 0,
            generation: Generation::default(),
        }
    }

    /// How it is at `now`.
    pub fn state(&self, now: Timestamp) -> OrderState {
        if self.held_until > now {
            OrderState::UnderWay
        } else if self.failures > 0 {
            OrderState::Failed
        } else {
            OrderState::Done
        }
    }

    /// Whether somebody other than `me` works on it.
    pub fn is_held_by_other(&self, me: &str, now: Timestamp) -> bool {
        self.held_until > now && self.holder != me
    }

    /// The row without anything of the order that was under way.
    #[must_use]
    pub fn at_rest(mut self) -> Self {
        self.holder = String::new();
        self.held_until = Timestamp::default();
        (self.url, self.key, self.challenge) = (None, None, None);
        (self.mark, self.presented) = (0, 0);
        self
    }
}

/// What the challenge of this domain is sealed about: so nobody who can write the registry makes gateways prove a domain to an
/// authority, or to the account, of his own.
pub fn about_challenge(domain: &CertificateName) -> String {
    format!("caas acme challenge {domain}")
}

/// What the account at this authority is sealed about.
pub fn about_account(directory: &str) -> String {
    format!("caas acme account {directory}")
}
