//! What a row of proofs means for an instance, and when the next proof is due. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use model::spec::OnFailure;
use model::{Failure, FailureCode, HealthCheck, Instance, InstanceChange, InstanceState, Listening, Timestamp};

use crate::probe::Proof;

/// Probe results kept for the person who asks why an instance failed.
const KEPT: usize = 5;

/// First probes of a new instance, then each second: most apps listen within a few hundred milliseconds, and what a
/// deploy waits for is the first good probe.
const STARTING_MS: [u64; 5] = [20, 50, 100, 200, 400];

/// Pace of starting instances after the first probes, and of running ones whose last probe failed.
const QUICK: Duration = Duration::from_secs(1);

/// What one look at an instance found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// `None`: nothing can be said, and all stays as it is.
    pub(crate) proof: Option<Proof>,
    /// How long it has had to come up since its start.
    pub(crate) waited: Duration,
}

/// When the container of `instance` started.
pub(crate) fn started(instance: &Instance) -> Timestamp {
    instance.started_at.unwrap_or(instance.placed_at)
}

/// What the last beat of an app that reports by itself says. Only the time in which a scheduler could receive beats and
/// keep them counts: an app is not silent because nobody listens. All times are the schedulers' own.
pub(crate) fn heartbeat(instance: &Instance, listening: Option<Listening>, timeout: Duration) -> Found {
    let started = started(instance);
    let beat = instance.heartbeat_at.filter(|at| *at >= started);
    let Some(listening) = listening else {
        return Found {
            proof: beat.map(|_| Proof::Alive),
            waited: Duration::ZERO,
        };
    };
    let silence = listening.silence(beat.unwrap_or(started));
    let proof = match beat {
        Some(at) if listening.until.since(at) <= timeout => Some(Proof::Alive),
        Some(at) if silence > timeout => {
            let why = format!("last heartbeat at {at}, more than {} s ago", timeout.as_secs());
            Some(Proof::Dead(why))
        }
        None if silence > timeout || instance.state == InstanceState::Starting => {
            Some(Proof::Dead("no heartbeat yet".into()))
        }
        _ => None,
    };
    Found { proof, waited: silence }
}

/// The proofs since the instance's container started.
#[derive(Debug, Default)]
pub(crate) struct History {
    proofs: u32,
    good_in_a_row: u32,
    bad_in_a_row: u32,
    assumed: bool,
    last: VecDeque<String>,
}

impl History {
    /// Adds what was found at `now`.
    pub(crate) fn push(&mut self, proof: &Proof, now: Timestamp) {
        self.proofs += 1;
        let text = match proof {
            Proof::Alive => "alive",
            Proof::Assumed => "assumed alive: it answers, but 404",
            Proof::Dead(why) => why,
        };
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(format!("{now} {text}"));
        if matches!(proof, Proof::Dead(_)) {
            self.good_in_a_row = 0;
            self.bad_in_a_row += 1;
        } else {
            self.bad_in_a_row = 0;
            self.good_in_a_row += 1;
            self.assumed = *proof == Proof::Assumed;
        }
    }

    fn failure(&self, code: FailureCode, message: String) -> Failure {
        Failure {
            probes: self.last.iter().cloned().collect(),
            ..Failure::new(code, message)
        }
    }
}

/// How long until the next proof is due. `jitter` is a random number from 0 to 1.
pub(crate) fn pace(state: InstanceState, check: &HealthCheck, history: &History, jitter: f64) -> Duration {
    let interval = Duration::from_millis(check.interval_ms.into());
    if state == InstanceState::Starting {
        let first = STARTING_MS
            .get(history.proofs as usize)
            .copied()
            .map(Duration::from_millis);
        return first.unwrap_or(QUICK);
    }
    if history.bad_in_a_row > 0 {
        return QUICK.min(interval);
    }
    interval.mul_f64(0.9 + 0.2 * jitter)
}

/// What the proofs so far make of the instance; `None`: it stays as it is. `withdrawn`: no gateway is told of it any more.
/// `waited`: how long it has had to come up.
pub(crate) fn judge(
    instance: &Instance,
    check: &HealthCheck,
    on_failure: OnFailure,
    withdrawn: bool,
    history: &History,
    waited: Duration,
) -> Option<InstanceChange> {
    let good = history.good_in_a_row;
    let bad = history.bad_in_a_row;
    match instance.state {
        InstanceState::Starting if good > 0 => Some(InstanceChange::Healthy {
            assumed: history.assumed,
        }),
        InstanceState::Starting => (waited >= Duration::from_secs(check.grace_s.into())).then(|| {
            let message = format!("not healthy within {} s of its start", check.grace_s);
            InstanceChange::Failed(history.failure(FailureCode::NeverReady, message))
        }),
        InstanceState::Running if bad >= check.unhealthy_after => {
            let message = format!("{bad} probes in a row failed");
            Some(InstanceChange::Unhealthy(
                history.failure(FailureCode::Unhealthy, message),
            ))
        }
        // The assumption may turn out either way later, when the app gets (or loses) its health route.
        InstanceState::Running if good > 0 && history.assumed != instance.assumed_healthy => {
            Some(InstanceChange::Healthy {
                assumed: history.assumed,
            })
        }
        InstanceState::Unhealthy if good >= check.healthy_after => Some(InstanceChange::Healthy {
            assumed: history.assumed,
        }),
        InstanceState::Unhealthy if bad > 0 && withdrawn && on_failure != OnFailure::None => {
            let message = format!("{bad} probes in a row failed");
            Some(InstanceChange::Failed(history.failure(FailureCode::Unhealthy, message)))
        }
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use model::{Generation, InstanceId};

    /// An instance of `hello` on host `h1` in `state`.
    pub(crate) fn instance(state: InstanceState) -> Instance {
        Instance {
            id: InstanceId::random(),
            app: "hello".parse().unwrap(),
            release: 1,
            version: "1".parse().unwrap(),
            host: "h1".parse().unwrap(),
            port: 20_000,
            container: Some("c1".parse().unwrap()),
            state,
            routed_at: None,
            assumed_healthy: false,
            failure: None,
            restarts: 0,
            memory_mb: 64,
            cpu_weight: 1024,
            placed_at: Timestamp::from_millis(0),
            started_at: Some(Timestamp::from_millis(0)),
            heartbeat_at: None,
            changed_at: Timestamp::from_millis(0),
            released_at: None,
            generation: Generation::FIRST,
        }
    }

    fn history(proofs: &[Proof]) -> History {
        let mut history = History::default();
        for proof in proofs {
            history.push(proof, Timestamp::from_millis(0));
        }
        history
    }

    fn dead() -> Proof {
        Proof::Dead("connect: refused".into())
    }

    fn verdict(
        state: InstanceState,
        policy: OnFailure,
        withdrawn: bool,
        proofs: &[Proof],
        waited_s: u64,
    ) -> Option<InstanceChange> {
        judge(
            &instance(state),
            &HealthCheck::default(),
            policy,
            withdrawn,
            &history(proofs),
            Duration::from_secs(waited_s),
        )
    }

    #[test]
    fn a_starting_instance_runs_at_its_first_good_proof_and_fails_after_its_grace() {
        use InstanceState::Starting;
        let bad = vec![dead(); 10];
        assert_eq!(verdict(Starting, OnFailure::Replace, true, &bad, 59), None);
        let Some(InstanceChange::Failed(failure)) = verdict(Starting, OnFailure::Replace, true, &bad, 60) else {
            panic!("its grace is over");
        };
        assert_eq!(failure.code, FailureCode::NeverReady);
        assert_eq!(failure.probes.len(), KEPT);
        assert_eq!(
            verdict(Starting, OnFailure::Replace, true, &[dead(), Proof::Assumed], 1),
            Some(InstanceChange::Healthy { assumed: true })
        );
    }

    #[test]
    fn a_running_instance_turns_unhealthy_at_the_threshold_only() {
        use InstanceState::Running;
        assert_eq!(verdict(Running, OnFailure::Replace, false, &[dead(), dead()], 1), None);
        assert_eq!(
            verdict(
                Running,
                OnFailure::Replace,
                false,
                &[dead(), dead(), Proof::Alive, dead()],
                1
            ),
            None
        );
        let turned = verdict(Running, OnFailure::Replace, false, &vec![dead(); 3], 1);
        assert!(matches!(turned, Some(InstanceChange::Unhealthy(_))), "{turned:?}");
    }

    #[test]
    fn an_unhealthy_instance_fails_by_policy_after_its_withdrawal_or_recovers() {
        use InstanceState::Unhealthy;
        assert_eq!(verdict(Unhealthy, OnFailure::Replace, false, &vec![dead(); 4], 1), None);
        assert_eq!(verdict(Unhealthy, OnFailure::None, true, &vec![dead(); 4], 1), None);
        for policy in [OnFailure::Replace, OnFailure::Restart] {
            let failed = verdict(Unhealthy, policy, true, &vec![dead(); 4], 1);
            assert!(matches!(failed, Some(InstanceChange::Failed(_))), "{failed:?}");
        }
        let recovered = verdict(Unhealthy, OnFailure::None, true, &[dead(), Proof::Alive], 1);
        assert_eq!(recovered, Some(InstanceChange::Healthy { assumed: false }));
    }

    #[test]
    fn a_beat_that_nobody_could_receive_is_not_missed() {
        let at = |s: i64| Timestamp::from_millis(s * 1_000);
        let look = |state, beat: Option<i64>, listening: Option<(i64, i64)>| {
            let mut instance = instance(state);
            instance.heartbeat_at = beat.map(at);
            let listening = listening.map(|(since, until)| Listening {
                since: at(since),
                until: at(until),
            });
            heartbeat(&instance, listening, Duration::from_secs(15))
        };
        let dead = |found: &Found| matches!(found.proof, Some(Proof::Dead(_)));
        use InstanceState::{Running, Starting, Unhealthy};
        // While somebody listens.
        assert_eq!(look(Running, Some(90), Some((0, 100))).proof, Some(Proof::Alive));
        assert!(dead(&look(Running, Some(84), Some((0, 100)))));
        // Nobody has listened since 100, whatever the time is now.
        assert_eq!(look(Running, Some(95), Some((0, 100))).proof, Some(Proof::Alive));
        // Back since 200: the old beat is no sign of life, and no sign of death before the time-out has passed anew.
        for state in [Running, Unhealthy] {
            assert_eq!(look(state, Some(95), Some((200, 215))).proof, None);
            assert!(dead(&look(state, Some(95), Some((200, 216)))));
            assert_eq!(look(state, Some(201), Some((200, 216))).proof, Some(Proof::Alive));
        }
        // One that comes up has its whole grace while somebody listens.
        let starting = look(Starting, None, Some((200, 210)));
        assert!(dead(&starting));
        assert_eq!(starting.waited, Duration::from_secs(10));
        assert_eq!(look(Starting, None, None).waited, Duration::ZERO);
        assert_eq!(look(Starting, Some(5), None).proof, Some(Proof::Alive));
        assert_eq!(look(Running, None, Some((0, 10))).proof, None);
    }

    #[test]
    fn first_probes_are_quick_and_later_ones_spread() {
        let check = HealthCheck::default();
        let starting = |n| pace(InstanceState::Starting, &check, &history(&vec![dead(); n]), 0.5);
        assert_eq!(starting(0), Duration::from_millis(20));
        assert_eq!(starting(4), Duration::from_millis(400));
        assert_eq!(starting(9), QUICK);
        let running = |proof, jitter| pace(InstanceState::Running, &check, &history(&[proof]), jitter);
        assert_eq!(running(dead(), 0.5), QUICK);
        assert_eq!(running(Proof::Alive, 0.0), Duration::from_millis(4_500));
        assert_eq!(running(Proof::Alive, 1.0), Duration::from_millis(5_500));
    }
}
