//! One test-suite per port: what every implementation must do, whatever stands behind it.
//!
//! Each function takes a fresh, empty implementation and panics with what went wrong.

pub mod engine;

pub mod registry;
pub mod store;
