//! Hosts: a monitor per host that keeps asking its engine whether it is there and what runs on it. Monitors only
//! observe, and note whether a host is up or down; they never touch a container.

mod monitor;

pub(crate) use monitor::watch_all;
