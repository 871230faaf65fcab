//! What is known of certificates and their keys outside of any role: how a chain and its key are read and proved to fit
//! ([`Pair`]), and how keys are sealed, so that neither the database nor the registry ever holds one that can be read
//! ([`SealingKeys`]).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod pair;
mod seal;

pub use pair::{BadPair, Pair};
pub use seal::SealingKeys;
