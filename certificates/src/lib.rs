//! What is known of certificates and their keys outside of any role: how a chain and its key are read and proved to fit
//! ([`Pair`]), what proves a domain to an authority ([`Proof`]), and how keys are sealed, so that neither the database nor the registry ever holds one that can be read
//! ([`SealingKeys`]).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod pair;
mod proof;
mod seal;

pub use pair::{BadPair, Pair};
pub use proof::{ACME_TLS, Proof, new_key, request};
pub use seal::SealingKeys;
