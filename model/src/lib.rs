//! The words of the platform and the seams behind which its backends stand.
//!
//! - words: [`AppId`], [`Version`], [`Instance`], [`Host`], [`ReleaseSpec`], [`Endpoint`], …, with the
//!   instance state machine ([`Instance::apply`]) as pure code;
//! - ports: [`store::Store`], [`registry::RegistryReader`] / [`registry::RegistryWriter`] and
//!   [`engine::Engine`], each with its errors;
//! - `contract` (feature): one test-suite per port, which every implementation must pass.
//!
//! Nothing here does I/O.

pub mod app;
pub mod certificate;
pub mod config;
#[cfg(feature = "contract")]
pub mod contract;
pub mod engine;
pub mod event;
pub mod host;
pub mod id;
pub mod instance;
pub mod listening;
pub mod load;
pub mod operation;
pub mod order;
pub mod ports;
pub mod registry;
pub mod spec;
pub mod store;
pub mod time;
pub mod vanish;

pub use app::{App, AppStatus, Canary, Release, WayBack};
pub use certificate::{Certificate, CertificateSource, SealedCertificate};
pub use config::AppConfig;
pub use event::{Event, EventKind, NewEvent};
pub use host::{Host, HostChange, HostClash, Schedulability};
pub use id::{
    AppId, CertificateName, ContainerId, Generation, HostName, InstanceId, InvalidId, OperationId, PlatformId,
    TenantId, Version,
};
pub use instance::{Failure, FailureCode, Instance, InstanceChange, InstanceState, InvalidTransition};
pub use listening::Listening;
pub use load::{Figures, Load};
pub use operation::{Operation, OperationKind, OperationState, Step, StepState};
pub use order::{CertificateOrder, OrderState};
pub use ports::PortRange;
pub use registry::Endpoint;
pub use spec::{HealthCheck, Placement, ReleaseSpec, SpecError, Strategy};
pub use time::Timestamp;
pub use vanish::Vanished;
