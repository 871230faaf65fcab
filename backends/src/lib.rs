//! What stands behind the model's ports, opened by URL.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod engine;

pub mod registry;
pub mod store;
