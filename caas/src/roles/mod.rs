//! The roles as commands: read the configuration, open what stands behind the ports, bind, run. No role knows whether
//! others run in the same process.

pub(crate) mod gateway;
pub(crate) mod haproxy;
pub(crate) mod migrate;
pub(crate) mod registry_sync;
pub(crate) mod scheduler;
