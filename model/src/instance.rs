//! An instance: one container of an app, from the decision to place it until its resources are free again.
//!
//! ```text
//! placed → starting → running ⇄ unhealthy → draining → drained → stopped
//!    └────────┴──────────┴─────────┴───────────┴→ failed → stopped      any → lost → stopped
//! ```
//! Who moves it: the scheduler places, starts, drains, stops and sees exits and lost hosts;
//! registry-sync sees health (`running`, `unhealthy`, never ready) and confirms withdrawal (`drained`).
//! Each move is a compare-and-set on `generation`.

use serde::{Deserialize, Serialize};

use crate::{AppId, ContainerId, Generation, HostName, InstanceId, Timestamp, Version};

/// One container of an app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id; the container is named `caas-{app}-{id}`.
    pub id: InstanceId,
    /// The app.
    pub app: AppId,
    /// Its release.
    pub release: u32,
    /// The release's version.
    pub version: Version,
    /// Where it runs.
    pub host: HostName,
    /// The leased host port.
    pub port: u16,
    /// The engine's id, once launched.
    pub container: Option<ContainerId>,
    /// Where it stands.
    pub state: InstanceState,
    /// Since when gateways send it requests; `None` while they don't.
    pub routed_at: Option<Timestamp>,
    /// It answers but has no health route (HTTP 404 at the default path): alive by assumption.
    pub assumed_healthy: bool,
    /// Why it failed or is unhealthy.
    pub failure: Option<Failure>,
    /// In-place restarts so far.
    pub restarts: u32,
    /// Reserved memory, MiB.
    pub memory_mb: u32,
    /// Reserved CPU weight.
    pub cpu_weight: u32,
    /// When it was placed.
    pub placed_at: Timestamp,
    /// When its container last started.
    pub started_at: Option<Timestamp>,
    /// When the app last reported its own heartbeat.
    pub heartbeat_at: Option<Timestamp>,
    /// When its state last changed.
    pub changed_at: Timestamp,
    /// When its container was gone and its memory and port were given back; `None` while it holds them.
    pub released_at: Option<Timestamp>,
    /// Optimistic lock.
    pub generation: Generation,
}

/// Where an instance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Host, memory and port are reserved; no container yet (or it is being pulled and made).
    Placed,
    /// Its container runs and has not proved to be alive yet.
    Starting,
    /// Alive: in the registry or about to be.
    Running,
    /// Failed its probes: out of the registry or about to be.
    Unhealthy,
    /// To be stopped: registry-sync withdraws it and waits for open requests.
    Draining,
    /// Withdrawn everywhere: its container may be stopped.
    Drained,
    /// It exited, never became ready or could not be launched; see `failure`.
    Failed,
    /// Its host is gone; if the host returns, its container is removed.
    Lost,
    /// Its container is gone and its resources are free.
    Stopped,
}

impl InstanceState {
    /// The word in the store and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Stopped => "stopped",
        }
    }

    /// All states, in the order of a life.
    pub const ALL: [Self; 9] = [
        Self::Placed,
        Self::Starting,
        Self::Running,
        Self::Unhealthy,
        Self::Draining,
        Self::Drained,
        Self::Failed,
        Self::Lost,
        Self::Stopped,
    ];

    /// It counts towards the wanted number (it serves, or is on its way to).
    pub fn is_live(self) -> bool {
        matches!(self, Self::Placed | Self::Starting | Self::Running | Self::Unhealthy)
    }
}

/// Why an instance failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its kind.
    pub code: FailureCode,
    /// One sentence for a person.
    pub message: String,
    /// The exit code, if it exited.
    pub exit_code: Option<i64>,
    /// The last lines that it wrote (at most 50 lines, 8 KiB).
    pub log_tail: Vec<String>,
    /// Its last probe results, oldest first (at most 5).
    pub probes: Vec<String>,
}

impl Failure {
    /// A failure with nothing but its kind and a sentence.
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            exit_code: None,
            log_tail: Vec::new(),
            probes: Vec::new(),
        }
    }
}

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The image could not be pulled: it does not exist, or the registry denies it.
    PullFailed,
    /// The registry of the image could not be reached from the host.
    RegistryUnreachable,
    /// The engine refused to create or start the container.
    LaunchFailed,
    /// The leased host port was taken by something else.
    PortTaken,
    /// The container exited.
    Exited,
    /// The kernel killed it at its memory limit.
    OutOfMemory,
    /// It did not become healthy within its grace.
    NeverReady,
    /// A running instance failed its probes.
    Unhealthy,
    /// Its container was removed by somebody else.
    Removed,
    /// Its host does not answer.
    HostLost,
}

/// A move in an instance's life; [`Instance::apply`] says which are legal when.
#[derive(Clone, Debug, PartialEq)]
pub enum InstanceChange {
    /// The container runs. Legal when placed; also when starting, running, unhealthy or failed: a restart in
    /// place (`restart` true counts it).
    Started {
        /// The engine's id.
        container: ContainerId,
        /// This is an in-place restart.
        restart: bool,
    },
    /// It proved to be alive. Legal when starting, unhealthy, running.
    Healthy {
        /// Alive by assumption (no health route).
        assumed: bool,
    },
    /// All gateways send it requests. Legal when running.
    Routed,
    /// It failed its probes while running; it is taken out of the registry. Legal when running.
    Unhealthy(Failure),
    /// It failed for good. Legal before it is drained; also when draining; and, until its resources are given back, when
    /// failed: a fuller report (its last log lines are read before the container goes).
    Failed(Failure),
    /// It shall go. Legal when placed, starting, running, unhealthy.
    Drain,
    /// Withdrawn from the registry, acknowledged, no open requests. Legal when draining.
    Drained,
    /// Its host is gone. Legal in any state that is not stopped, before its resources are given back.
    Lost(Failure),
    /// A lost instance's host is back, its container still runs and it was not replaced yet. Legal when lost.
    Found,
    /// Its container is gone: memory and port are given back. Legal once, when placed, drained, failed, lost.
    Stopped,
    /// The app reported its own heartbeat. Legal while it has a container.
    Heartbeat,
}

/// A change that the state does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("instance {id} is {state}: it can't become {wanted}", state = .state.as_str())]
pub struct InvalidTransition {
    /// Which instance.
    pub id: InstanceId,
    /// Where it stands.
    pub state: InstanceState,
    /// What was wanted.
    pub wanted: &'static str,
}

impl Instance {
    /// The name of its container.
    pub fn container_name(&self) -> String {
        format!("caas-{}-{}", self.app, self.id)
    }

    /// This instance after `change` at `now`, one generation later (the same one after a heartbeat); or why that can't be.
    pub fn apply(&self, change: &InstanceChange, now: Timestamp) -> Result<Self, InvalidTransition> {
        use InstanceState as S;
        let refuse = |wanted| {
            Err(InvalidTransition {
                id: self.id.clone(),
                state: self.state,
                wanted,
            })
        };
        let mut next = self.clone();
        match change {
            InstanceChange::Started { container, restart } => {
                if !matches!(
                    self.state,
                    S::Placed | S::Starting | S::Running | S::Unhealthy | S::Failed
                ) || self.released_at.is_some()
                {
                    return refuse("starting");
                }
                next.state = S::Starting;
                next.container = Some(container.clone());
                next.started_at = Some(now);
                next.routed_at = None;
                next.assumed_healthy = false;
                if *restart {
                    next.restarts += 1;
                } else {
                    next.failure = None;
                }
            }
            InstanceChange::Healthy { assumed } => {
                if !matches!(self.state, S::Starting | S::Unhealthy | S::Running) {
                    return refuse("running");
                }
                next.state = S::Running;
                next.assumed_healthy = *assumed;
                next.failure = None;
            }
            InstanceChange::Routed => {
                if self.state != S::Running {
                    return refuse("routed");
                }
                next.routed_at = Some(now);
            }
            InstanceChange::Unhealthy(failure) => {
                if self.state != S::Running {
                    return refuse("unhealthy");
                }
                next.state = S::Unhealthy;
                next.routed_at = None;
                next.failure = Some(failure.clone());
            }
            InstanceChange::Failed(failure) => {
                if !matches!(
                    self.state,
                    S::Placed | S::Starting | S::Running | S::Unhealthy | S::Draining | S::Failed
                ) || self.released_at.is_some()
                {
                    return refuse("failed");
                }
                next.state = S::Failed;
                next.routed_at = None;
                next.failure = Some(failure.clone());
            }
            InstanceChange::Drain => {
                if !self.state.is_live() {
                    return refuse("draining");
                }
                next.state = S::Draining;
            }
            InstanceChange::Drained => {
                if self.state != S::Draining {
                    return refuse("drained");
                }
                next.state = S::Drained;
                next.routed_at = None;
            }
            InstanceChange::Lost(failure) => {
                if matches!(self.state, S::Stopped | S::Lost) || self.released_at.is_some() {
                    return refuse("lost");
                }
                next.state = S::Lost;
                next.routed_at = None;
                next.failure = Some(failure.clone());
            }
            InstanceChange::Found => {
                if self.state != S::Lost || self.container.is_none() {
                    return refuse("starting");
                }
                next.state = S::Starting;
                next.started_at = Some(now);
                next.failure = None;
            }
            InstanceChange::Stopped => {
                // What was given back once is not given back again.
                if !matches!(self.state, S::Placed | S::Drained | S::Failed | S::Lost) || self.released_at.is_some() {
                    return refuse("stopped");
                }
                // A failed instance keeps its state: what it died of stays to be read.
                if self.state != S::Failed {
                    next.state = S::Stopped;
                }
                next.released_at = Some(now);
            }
            InstanceChange::Heartbeat => {
                if self.container.is_none() || self.released_at.is_some() {
                    return refuse("beating");
                }
                next.heartbeat_at = Some(now);
            }
        }
        if next.state != self.state {
            next.changed_at = now;
        }
        // Beats come often and say nothing about the state: they must not make other moves fail. One that is overtaken by a
        // move is lost, and the next one counts.
        if *change != InstanceChange::Heartbeat {
            next.generation = self.generation.next();
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn instance() -> Instance {
        Instance {
            id: InstanceId::random(),
            app: "hello".parse().expect("valid"),
            release: 1,
            version: "1".parse().expect("valid"),
            host: "h1".parse().expect("valid"),
            port: 20_000,
            container: None,
            state: InstanceState::Placed,
            routed_at: None,
            assumed_healthy: false,
            failure: None,
            restarts: 0,
            memory_mb: 64,
            cpu_weight: 1024,
            placed_at: Timestamp::from_millis(0),
            started_at: None,
            heartbeat_at: None,
            changed_at: Timestamp::from_millis(0),
            released_at: None,
            generation: Generation::FIRST,
        }
    }

    fn started(restart: bool) -> InstanceChange {
        InstanceChange::Started {
            container: "c1".parse().expect("valid"),
            restart,
        }
    }

    fn failure() -> Failure {
        Failure::new(FailureCode::Exited, "exited with code 1")
    }

    fn changes() -> Vec<InstanceChange> {
        vec![
            started(false),
            started(true),
            InstanceChange::Healthy { assumed: false },
            InstanceChange::Routed,
            InstanceChange::Unhealthy(failure()),
            InstanceChange::Failed(failure()),
            InstanceChange::Drain,
            InstanceChange::Drained,
            InstanceChange::Lost(failure()),
            InstanceChange::Found,
            InstanceChange::Stopped,
            InstanceChange::Heartbeat,
        ]
    }

    /// Every state with every change: to which state it leads, or `-`. All have a container and are not released.
    #[test]
    fn every_move_from_every_state() {
        use InstanceState as S;
        let p = |word: &str| S::ALL.into_iter().find(|s| s.as_str().starts_with(word));
        // In the order of `changes()`: start, restart, healthy, routed, unhealthy, failed, drain, drained, lost,
        // found, stopped, heartbeat.
        let table = [
            (S::Placed, "star star - - - fail draining - lost - stop plac"),
            (S::Starting, "star star runn - - fail draining - lost - - star"),
            (S::Running, "star star runn runn unhe fail draining - lost - - runn"),
            (S::Unhealthy, "star star runn - - fail draining - lost - - unhe"),
            (S::Draining, "- - - - - fail - drained lost - - draining"),
            (S::Drained, "- - - - - - - - lost - stop drained"),
            (S::Failed, "star star - - - fail - - lost - fail fail"),
            (S::Lost, "- - - - - - - - - star stop lost"),
            (S::Stopped, "- - - - - - - - - - - stop"),
        ];
        for (state, row) in table {
            let mut from = instance();
            from.state = state;
            from.container = "c0".parse().ok();
            let words: Vec<&str> = row.split(' ').collect();
            assert_eq!(words.len(), changes().len());
            for (change, word) in changes().into_iter().zip(words) {
                let to = from.apply(&change, Timestamp::from_millis(5)).ok();
                let expected = if word == "-" { None } else { p(word) };
                assert_eq!(to.map(|i| i.state), expected, "{} by {change:?}", state.as_str());
            }
        }
    }

    #[test]
    fn without_a_container_there_is_nothing_to_find_or_to_beat() {
        let placed = instance();
        assert!(
            placed
                .apply(&InstanceChange::Heartbeat, Timestamp::from_millis(1))
                .is_err()
        );
        let lost = placed
            .apply(&InstanceChange::Lost(failure()), Timestamp::from_millis(1))
            .expect("legal");
        assert!(lost.apply(&InstanceChange::Found, Timestamp::from_millis(2)).is_err());
    }

    fn any_change() -> impl Strategy<Value = InstanceChange> {
        prop::sample::select(changes())
    }

    proptest! {
        /// Whatever moves are tried in whatever order, an instance stays sound.
        #[test]
        fn any_life_is_sound(moves in prop::collection::vec(any_change(), 0..40)) {
            let mut current = instance();
            let mut restarts = 0;
            for (n, change) in moves.into_iter().enumerate() {
                let now = Timestamp::from_millis(n as i64 + 1);
                let Ok(next) = current.apply(&change, now) else { continue };
                let step = u64::from(change != InstanceChange::Heartbeat);
                prop_assert_eq!(next.generation.0, current.generation.0 + step);
                prop_assert_eq!((&next.id, &next.host, next.port), (&current.id, &current.host, current.port));
                prop_assert_eq!(next.changed_at == now, next.state != current.state);
                restarts += u32::from(matches!(change, InstanceChange::Started { restart: true, .. }));
                prop_assert_eq!(next.restarts, restarts);
                if current.released_at.is_some() {
                    prop_assert_eq!(next.released_at, current.released_at, "released once, and for ever");
                    prop_assert!(!next.state.is_live(), "the released never live again");
                }
                if next.routed_at.is_some() {
                    prop_assert!(matches!(next.state, InstanceState::Running | InstanceState::Draining));
                }
                if next.state == InstanceState::Running {
                    prop_assert!(next.container.is_some() && next.failure.is_none());
                }
                if matches!(next.state, InstanceState::Failed | InstanceState::Lost) {
                    prop_assert!(next.failure.is_some());
                }
                if next.state == InstanceState::Stopped {
                    prop_assert!(next.released_at.is_some());
                }
                current = next;
            }
        }
    }
}
