//! When apps' heartbeats could be received: [`Listening`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// How often a scheduler notes that it receives heartbeats.
pub const NOTED_EVERY: Duration = Duration::from_secs(1);

/// Without a note for longer than this, nobody was there to receive beats (or the store was away, so that they could not be
/// kept): silence counts anew from the next note. Short enough that an app that beats three times per time-out does not
/// reach it by the beat that it lost meanwhile.
const GAP: Duration = Duration::from_secs(3);

/// A note this far ahead was given by a clock that has been set right since.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// The time in which schedulers have been receiving heartbeats without a gap, by their own clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// Its begin.
    pub since: Timestamp,
    /// The newest note.
    pub until: Timestamp,
}

impl Listening {
    /// What follows from `before` when a scheduler notes at `now` that it receives heartbeats.
    #[must_use]
    pub fn noted(before: Option<Self>, now: Timestamp) -> Self {
        match before {
            Some(before) if now.since(before.until) <= GAP && before.until.since(now) <= CLOCKS_APART => Self {
                // Another scheduler's clock may be ahead.
                until: before.until.max(now),
                ..before
            },
            _ => Self { since: now, until: now },
        }
    }

    /// How long an app has been silent whose last sign of life came at `last`: only while it could have been heard.
    pub fn silence(&self, last: Timestamp) -> Duration {
        self.until.since(last.max(self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn noted(seconds: impl IntoIterator<Item = i64>) -> Listening {
        let notes = seconds.into_iter().map(at);
        let all = notes.fold(None, |before, now| Some(Listening::noted(before, now)));
        all.expect("a note")
    }

    #[test]
    fn silence_counts_only_while_somebody_listens() {
        let listening = noted(0..=20);
        assert_eq!(listening.silence(at(4)), Duration::from_secs(16));
        // Nobody notes anything any more: whatever the time is, nothing is added.
        assert_eq!(listening, noted(0..=20));
        // Back after a gap: it begins anew.
        let back = noted((0..=20).chain([60, 61, 62]));
        assert_eq!(back.silence(at(4)), Duration::from_secs(2));
        assert_eq!(back.silence(at(61)), Duration::from_secs(1));
        assert_eq!(back.silence(at(99)), Duration::ZERO);
        // A scheduler that is replaced at once leaves no gap.
        assert_eq!(noted((0..=20).chain([23])).since, at(0));
    }

    #[test]
    fn clocks_that_differ_neither_stop_nor_begin_the_count() {
        let two = noted([0, 5, 1, 6, 2, 7, 3, 8]);
        assert_eq!((two.since, two.until), (at(5), at(8)));
        // Set back by an hour.
        let back = noted([10_000, 6_400, 6_401]);
        assert_eq!((back.since, back.until), (at(6_400), at(6_401)));
    }
}
