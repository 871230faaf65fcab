//! The store: what is wanted, what was decided, and what became of it.
//!
//! Traits over one database, so that the type says who may write what: [`InstanceStore`] is all that
//! registry-sync sees; [`Store`], with [`OrderStore`], is the scheduler's. Rules that every implementation keeps:
//!
//! - a change names the generation it saw; a conflict is an answer ([`Outcome::Conflict`]), not an error;
//! - each verb is one transaction, its event included; deadlock, lock wait, snapshot conflict and busy are
//!   retried inside with a bound; a connection lost during commit is re-read, never assumed;
//! - verbs are safe to repeat.

mod orders;

use std::time::Duration;

use async_trait::async_trait;
pub use orders::{Issued, OrderStore};
use serde::{Deserialize, Serialize};

use crate::{
    App, AppId, Certificate, CertificateName, CertificateOrder, Event, Figures, Generation, Host, HostChange, HostName,
    Instance, InstanceChange, InstanceId, InvalidTransition, Listening, NewEvent, Operation, OperationId, PlatformId,
    PortRange, Release, SealedCertificate, Timestamp,
};

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It can't be reached, or did not answer in time; the change may or may not have happened.
    #[error("the database can't be reached: {0}")]
    Unavailable(String),
    /// Contention outlasted the bounded retries; nothing was changed.
    #[error("the database is too busy: {0}")]
    Busy(String),
    /// The state machine forbids the change.
    #[error(transparent)]
    Invalid(#[from] InvalidTransition),
    /// A row holds what this version can't read, or a statement was refused: a bug or a foreign hand.
    #[error("the database answered with something unexpected: {0}")]
    Corrupt(String),
    /// The schema is older or newer than this program.
    #[error("the database schema does not fit this program: {0}; run `caas migrate`")]
    Schema(String),
}

/// What came of a compare-and-set.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome<T> {
    /// Done; the row as it is now.
    Updated(T),
    /// Somebody else was faster; the row as it is now.
    Conflict(T),
    /// There is no such row.
    NotFound,
}

impl<T> Outcome<T> {
    /// The row, if the change was made.
    pub fn updated(self) -> Option<T> {
        match self {
            Self::Updated(row) => Some(row),
            _ => None,
        }
    }
}

/// A position in the order of changes. Only good for comparing and waiting: it grows whenever something
/// changed, possibly by more than one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// Which instances are asked for.
#[derive(Clone, Debug, Default)]
pub struct InstanceFilter {
    /// Only of this app.
    pub app: Option<AppId>,
    /// Only on this host.
    pub host: Option<HostName>,
    /// Also those whose resources are released (history); otherwise only those that hold them.
    pub released_too: bool,
}

impl InstanceFilter {
    /// All that hold resources.
    pub fn held() -> Self {
        Self::default()
    }

    /// Those of `app` that hold resources.
    pub fn held_of(app: &AppId) -> Self {
        Self {
            app: Some(app.clone()),
            ..Self::default()
        }
    }

    /// Those on `host` that hold resources.
    pub fn held_on(host: &HostName) -> Self {
        Self {
            host: Some(host.clone()),
            ..Self::default()
        }
    }
}

/// What registry-sync reads and the moves that it makes.
#[async_trait]
pub trait InstanceStore: Send + Sync + std::fmt::Debug {
    /// Waits until something changed after `after`, at most `timeout`; the newest revision either way.
    /// A hint only: loops must also run without it.
    async fn revision_wait(&self, after: Revision, timeout: Duration) -> Result<Revision, StoreError>;

    /// Instances by filter, oldest first.
    async fn instance_list(&self, filter: &InstanceFilter) -> Result<Vec<Instance>, StoreError>;

    /// One instance.
    async fn instance_fetch(&self, id: &InstanceId) -> Result<Option<Instance>, StoreError>;

    /// Moves `current` by [`Instance::apply`]: a compare-and-set on its generation. With
    /// [`InstanceChange::Stopped`] the same transaction gives back the host's memory and lets the port rest until
    /// `now` + [`PORT_REST`]. An event is recorded for each change of state and for `Routed` (not for heartbeats).
    async fn instance_update(
        &self,
        current: &Instance,
        change: &InstanceChange,
        now: Timestamp,
    ) -> Result<Outcome<Instance>, StoreError>;

    /// All apps.
    async fn app_list(&self) -> Result<Vec<App>, StoreError>;

    /// One release; releases never change, so callers may keep it.
    async fn release_fetch(&self, app: &AppId, number: u32) -> Result<Option<Release>, StoreError>;

    /// When heartbeats could be received; `None` before the first note of it.
    async fn listening(&self) -> Result<Option<Listening>, StoreError>;

    /// The newest figures of use of each instance that has any; also of some that hold nothing any more.
    async fn figures_list(&self) -> Result<Vec<(InstanceId, Figures)>, StoreError>;

    /// What is known of all certificates, by name.
    async fn certificate_list(&self) -> Result<Vec<Certificate>, StoreError>;

    /// The certificate of this name itself, and the mark of the row that it was read from.
    async fn certificate_sealed(&self, name: &CertificateName) -> Result<Option<(i64, SealedCertificate)>, StoreError>;

    /// All orders of certificates, by domain.
    async fn order_list(&self) -> Result<Vec<CertificateOrder>, StoreError>;

    /// Notes that every live gateway answers the challenge with this mark; nothing happens when it is another by now.
    async fn order_presented(&self, domain: &CertificateName, mark: i64) -> Result<(), StoreError>;

    /// All hosts, by name.
    async fn host_list(&self) -> Result<Vec<Host>, StoreError>;
}

/// How long a released host port rests before it is leased again, so that a stale route can never
/// reach another app (gateways resync every 5 minutes; twice that).
pub const PORT_REST: Duration = Duration::from_secs(600);

/// For this long after its rest a port is leased again only where its host has no other one, and then the one that was
/// released first: a gateway may be cut off from the registry for longer than the rest.
pub const PORT_SPARED: Duration = Duration::from_secs(24 * 3_600);

/// Failures younger than this hold up the next try, so that failed instances are not forgotten before, as long as an app has no
/// more than [`FAILURES_MOST`] of them.
pub const FAILURES_KEPT: Duration = Duration::from_secs(3_600);

/// See [`FAILURES_KEPT`]: with 1,000 instances the longest pause is reached after 16,000 failures.
pub const FAILURES_MOST: u32 = 20_000;

/// Whether an app row is expected, and in which generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// There must be no such app.
    Absent,
    /// It must be in this generation.
    Generation(Generation),
}

/// A change of what is wanted of an app, committed whole or not at all.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The row to be; its `generation` is ignored (the store writes the next one), `placements` is kept as stored. A new
    /// `restart_before` is moved behind the newest held instance's `placed_at`, which another machine's clock may have
    /// given.
    pub app: App,
    /// What the decision was made from.
    pub expected: Expected,
    /// A new release (deploy).
    pub release: Option<Release>,
    /// The operation by which it can be followed; a running one of the same app becomes superseded.
    pub operation: Operation,
    /// The audit's entry.
    pub event: NewEvent,
    /// Where the store chooses the app's port at the gateways when it speaks TCP and has none yet.
    pub tcp_ports: PortRange,
    /// The caller's `Idempotency-Key` with a hash of the request, if given.
    pub idempotency: Option<IdempotencyKey>,
}

/// An `Idempotency-Key` as kept for 24 hours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key, prefixed by the token's id (1-200 characters).
    pub key: String,
    /// Hash of method, path and body: the same key with another request is refused.
    pub request_hash: String,
}

/// What came of an [`Intent`].
#[derive(Clone, Debug, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "one is made per API call; boxing would only burden its readers"
)]
pub enum IntentOutcome {
    /// Committed.
    Committed(App, Operation),
    /// The app changed meanwhile (or exists although expected absent).
    Conflict(App),
    /// No such app.
    NotFound,
    /// The same key was used before for the same request: its operation.
    Replayed(Operation),
    /// The same key was used before for another request.
    KeyReused,
    /// A custom domain that it newly names belongs to another app; nothing was changed.
    DomainTaken {
        /// The domain.
        domain: String,
        /// Whose it is.
        owner: AppId,
    },
    /// The port at the gateways that the app asks for is another app's.
    PortTaken {
        /// The port.
        port: u16,
        /// Whose it is.
        by: AppId,
    },
    /// Every port of [`Intent::tcp_ports`] is taken or rests.
    NoPort,
}

/// How an `Idempotency-Key` was used before.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "one is made per API call; boxing would only burden its readers"
)]
pub enum KeyUse {
    /// Not in the last 24 hours.
    New,
    /// For the same request; its operation, if it made one.
    Same(Option<Operation>),
    /// For another request.
    Other,
}

/// A change of hosts that somebody asked for, committed whole or not at all.
#[derive(Clone, Debug)]
pub struct HostIntent {
    /// What shall be.
    pub wish: HostWish,
    /// The operation by which it can be followed, if it takes time.
    pub operation: Option<Operation>,
    /// The audit's entry.
    pub event: NewEvent,
    /// The caller's `Idempotency-Key` with a hash of the request, if given.
    pub idempotency: Option<IdempotencyKey>,
}

impl HostIntent {
    /// `host` shall join, without any key.
    pub fn join(host: Host, event: NewEvent) -> Self {
        Self {
            wish: HostWish::Join(host),
            operation: None,
            event,
            idempotency: None,
        }
    }
}

/// What shall be of a host.
#[derive(Clone, Debug)]
pub enum HostWish {
    /// It joins. Ports of its address that rest since another host left go on resting.
    Join(Host),
    /// It changes: a compare-and-set on its generation; no change at all leaves it as it is.
    Change {
        /// The row as it was seen.
        current: Host,
        /// One after the other.
        changes: Vec<HostChange>,
    },
    /// It goes, if it carries no instance. Ports that rest go on resting for their address.
    Leave(HostName),
}

/// What came of a [`HostIntent`].
#[derive(Clone, Debug, PartialEq)]
pub enum HostOutcome {
    /// Done; the row as it is now, or was last.
    Committed(Host),
    /// The row that stands in the way: one that clashes with it ([`Host::clash`]), the changed one, or the one that
    /// carries instances. Nothing was changed.
    Conflict(Host),
    /// There is no such host.
    NotFound,
    /// The same key was used before for the same request: its operation, if it made one.
    Replayed(Option<Operation>),
    /// The same key was used before for another request.
    KeyReused,
}

/// Instances of one app to be placed, as decided from one look at the store.
#[derive(Clone, Debug)]
pub struct Placing {
    /// The app, and its `placements` counter when the decision was made.
    pub app: AppId,
    /// See [`App::placements`].
    pub expected_placements: u64,
    /// The app's generation when the decision was made.
    pub expected_generation: Generation,
    /// The app's `restart_before`: no instance is noted as placed earlier, whatever the placing machine's clock says, since
    /// it would be replaced at once.
    pub not_before: Option<Timestamp>,
    /// The instances, each with its chosen host.
    pub picks: Vec<Pick>,
}

/// One instance to be placed.
#[derive(Clone, Debug)]
pub struct Pick {
    /// The new instance's id.
    pub instance: InstanceId,
    /// The chosen host.
    pub host: HostName,
    /// Its release.
    pub release: u32,
    /// The release's version.
    pub version: crate::Version,
    /// Memory to be reserved, MiB.
    pub memory_mb: u32,
    /// CPU weight to be reserved.
    pub cpu_weight: u32,
    /// SHA-256 (hex) of the token with which the instance reports its own heartbeat.
    pub token_hash: String,
}

/// What came of a [`Placing`].
#[derive(Clone, Debug, PartialEq)]
pub enum PlaceOutcome {
    /// Committed: those that fitted, and those that did not (host full, gone, cordoned, or out of ports).
    Placed {
        /// The new instances, state `placed`, each with its leased port.
        placed: Vec<Instance>,
        /// Which picks were refused, and why.
        refused: Vec<(InstanceId, RefusedBecause)>,
    },
    /// The app changed, or another scheduler placed, since the decision; nothing was placed.
    Conflict,
}

/// Why a pick was refused by the transaction although the decision found it fitting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedBecause {
    /// Its memory is taken by now.
    HostFull,
    /// It is gone, down, cordoned or draining by now.
    HostClosed,
    /// Every port of its range is leased or resting.
    NoPort,
}

/// A bearer token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Public part, by which it is found.
    pub id: String,
    /// Whose it is; the actor in events.
    pub name: String,
    /// SHA-256 (hex) of the secret part.
    pub secret_hash: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Credentials of an image registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryCredentials {
    /// `host[:port]` as it stands in image references.
    pub registry: String,
    /// User.
    pub username: String,
    /// Password; never shown or logged.
    pub password: String,
}

impl std::fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryCredentials")
            .field("registry", &self.registry)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Everything that the scheduler reads and writes.
#[async_trait]
pub trait Store: InstanceStore + OrderStore {
    /// Proves that the database answers and its schema fits.
    async fn check(&self) -> Result<(), StoreError>;

    /// This installation's id; made at first use, the same ever after.
    async fn platform_id(&self) -> Result<PlatformId, StoreError>;

    // --- apps and releases ---

    /// One app.
    async fn app_fetch(&self, id: &AppId) -> Result<Option<App>, StoreError>;

    /// Commits a change of what is wanted, in one transaction. An app with protocol TCP has a port at the gateways from then on,
    /// written in its configuration: the one it asks for, the one it has, or one of [`Intent::tcp_ports`]. With `tcp.passthrough` it
    /// has only one that it asks for. It keeps the port until it speaks something else, passes TLS through without one, or is
    /// deleted; then the port rests until `now` + [`PORT_REST`], unless it is asked for by number.
    async fn intent_commit(&self, intent: &Intent, now: Timestamp) -> Result<IntentOutcome, StoreError>;

    /// Notes that `release` of `app` is fully routed: the release to which a later failed deploy returns.
    /// Compare-and-set on the app's generation.
    async fn app_settle(&self, app: &App, change: &AppSettle, now: Timestamp) -> Result<Outcome<App>, StoreError>;

    /// Deletes a `removing` app that holds no instance any more, with its releases and history.
    /// `true` when it is gone.
    async fn app_delete(&self, id: &AppId, now: Timestamp) -> Result<bool, StoreError>;

    /// Releases of an app, newest first, at most `limit`.
    async fn release_list(&self, app: &AppId, limit: u32) -> Result<Vec<Release>, StoreError>;

    /// Claims the work on `app` for `holder` until `now + ttl`; renews when already held. `false`: somebody
    /// else holds it. An economy, not a lock: correctness rests on generations.
    async fn app_claim(&self, app: &AppId, holder: &str, now: Timestamp, ttl: Duration) -> Result<bool, StoreError>;

    // --- placement ---

    /// Commits placements in one transaction: guarded reservation on each host row (never above capacity), one
    /// port lease each, one instance row each.
    async fn instance_place(&self, placing: &Placing, now: Timestamp) -> Result<PlaceOutcome, StoreError>;

    /// Docker says that `port` of `host` is taken by something else: it rests until `until`.
    async fn port_quarantine(&self, host: &HostName, port: u16, until: Timestamp) -> Result<(), StoreError>;

    /// The hash of an instance's own heartbeat token.
    async fn instance_token_hash(&self, id: &InstanceId) -> Result<Option<String>, StoreError>;

    /// Notes that this scheduler receives heartbeats at `now` ([`Listening::noted`]). No event, no waking.
    async fn listening_note(&self, now: Timestamp) -> Result<(), StoreError>;

    /// Keeps the newest figures of use of instances, all in one transaction. No event, no waking, no generation: it is
    /// no change of the instance.
    async fn figures_put(&self, figures: &[(InstanceId, Figures)]) -> Result<(), StoreError>;

    /// Deletes released instances beyond the newest `keep` of each app (failed ones: see [`FAILURES_KEPT`]), figures of instances that hold nothing, events
    /// and final operations older than `events_before` (not the last one of an app), idempotency keys older than 24 h,
    /// claims that have run out and rests that have ended; a bounded number at a time. How many rows went; 0: nothing is
    /// left to do.
    async fn history_prune(&self, keep: u32, events_before: Timestamp, now: Timestamp) -> Result<u64, StoreError>;

    /// How `key` was used before. An answer for the impatient: the intent that bears the key has the last word.
    async fn idempotency_fetch(&self, key: &IdempotencyKey, now: Timestamp) -> Result<KeyUse, StoreError>;

    // --- hosts ---

    /// Commits a change of hosts that somebody asked for, in one transaction.
    async fn host_commit(&self, intent: &HostIntent, now: Timestamp) -> Result<HostOutcome, StoreError>;

    /// One host.
    async fn host_fetch(&self, name: &HostName) -> Result<Option<Host>, StoreError>;

    /// Notes what was seen of a host: a compare-and-set on its generation. No event, no waking for `UsedCpu`.
    async fn host_update(
        &self,
        current: &Host,
        change: &HostChange,
        event: Option<&NewEvent>,
        now: Timestamp,
    ) -> Result<Outcome<Host>, StoreError>;

    // --- operations and events ---

    /// One operation.
    async fn operation_fetch(&self, id: &OperationId) -> Result<Option<Operation>, StoreError>;

    /// Operations, newest first, at most `limit`, optionally of one app.
    async fn operation_list(&self, app: Option<&AppId>, limit: u32) -> Result<Vec<Operation>, StoreError>;

    /// Operations that are not final.
    async fn operation_open(&self) -> Result<Vec<Operation>, StoreError>;

    /// Writes `next` (same id) if the stored generation still is `next.generation`; the stored row gets the
    /// next one. An event is recorded when the state or a step's state changes.
    async fn operation_update(&self, next: &Operation, now: Timestamp) -> Result<Outcome<Operation>, StoreError>;

    /// Events after `after`, oldest first, at most `limit`, optionally of one app.
    async fn event_list(&self, after: u64, app: Option<&AppId>, limit: u32) -> Result<Vec<Event>, StoreError>;

    /// The number of the newest event; 0 if there is none.
    async fn event_newest(&self) -> Result<u64, StoreError>;

    /// Records an event that goes with no other change.
    async fn event_record(&self, event: &NewEvent, now: Timestamp) -> Result<(), StoreError>;

    // --- tokens and credentials ---

    /// How many tokens there are.
    async fn token_count(&self) -> Result<u64, StoreError>;

    /// Adds a token; replaces one with the same id.
    async fn token_put(&self, token: &Token) -> Result<(), StoreError>;

    /// The token with this id.
    async fn token_fetch(&self, id: &str) -> Result<Option<Token>, StoreError>;

    /// Sets a registry's credentials.
    async fn credentials_put(
        &self,
        credentials: &RegistryCredentials,
        event: &NewEvent,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// All registries' credentials.
    async fn credentials_list(&self) -> Result<Vec<RegistryCredentials>, StoreError>;

    /// Forgets a registry's credentials; `false` if there were none.
    async fn credentials_remove(&self, registry: &str, event: &NewEvent, now: Timestamp) -> Result<bool, StoreError>;

    // --- certificates ---

    /// Puts a certificate in the place of the one of the same name. `false`: there are
    /// [`MOST`](crate::certificate::MOST) others, nothing was changed.
    async fn certificate_put(
        &self,
        certificate: &Certificate,
        sealed: &SealedCertificate,
        event: &NewEvent,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Forgets a certificate, and the order of the domain of this name with its pause; `false` if there is neither.
    async fn certificate_remove(
        &self,
        name: &CertificateName,
        event: &NewEvent,
        now: Timestamp,
    ) -> Result<bool, StoreError>;
}

/// What the converger writes on an app's row (the intent stays the API's).
#[derive(Clone, Debug, PartialEq)]
pub enum AppSettle {
    /// A deploy succeeded: `release` is proven, and nothing is given back any more.
    Routed {
        /// The release that is fully routed.
        release: u32,
    },
    /// A deploy failed: the app returns to this release and what it had then ([`App::turn_back`]). Domains and the port at the
    /// gateways that others have taken meanwhile stay theirs.
    RolledBack {
        /// The release to which it returns.
        to: u32,
    },
    /// The canary of this release failed: it is on its way out from now on.
    CanaryFailed {
        /// The canary's release.
        release: u32,
    },
    /// The canary of this release was on its way out and has gone: it is forgotten, and no version has a share of its own any more.
    CanaryGone {
        /// The canary's release.
        release: u32,
    },
}
