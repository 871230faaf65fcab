//! The end-to-end tests' harness: a fleet of real Docker hosts in namespaces, with an image registry, ZooKeeper and
//! MariaDB; the platform's real binary on top of it in both modes; load, faults and the invariants that must hold.
//!
//! Everything that it starts lives in one PID namespace whose first process ends when the test process does, however
//! that ends: nothing outlives a run. It never touches a Docker that already runs on the machine.
#![allow(clippy::missing_panics_doc)]

pub mod api;
pub mod check;
pub mod docker;
pub mod fleet;
pub mod host;
pub mod keeper;
pub mod load;
pub mod mariadb;
pub mod pebble;
pub mod pki;
pub mod platform;
pub mod process;
pub mod proxy;
pub mod registry;
pub mod roles;
pub mod wait;
pub mod ws;
pub mod zk;
pub mod zookeeper;

pub use fleet::Fleet;
pub use platform::{Mode, Platform};
