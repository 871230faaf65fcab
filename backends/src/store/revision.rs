//! Waiting for changes: at once for those of this process, within a poll's period for those of others.
//!
//! Every change worth waking for records an event, so the events are what is watched. In MySQL a lower number can be
//! committed after a higher one, which the highest number alone would not show; so the rows are counted as well.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// How often others' changes are looked for while somebody waits.
pub(super) const POLL: Duration = Duration::from_millis(100);

/// How long after a higher number a lower one may still be committed.
pub(super) const SETTLE: Duration = Duration::from_secs(2);

/// How far below the newest number the first look begins, for what was about to be committed then.
const BACKLOG: i64 = 1_000;

/// What one look at the events saw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// The floor that was asked about.
    pub(super) floor: i64,
    /// Rows above it.
    pub(super) count: i64,
    /// The highest number of all.
    pub(super) newest: i64,
    /// The floor of the next look.
    pub(super) next_floor: i64,
    /// Rows above that.
    pub(super) next_count: i64,
}

#[derive(Debug, Default)]
struct Tally {
    /// Whether the database was looked at yet.
    known: bool,
    floor: i64,
    count: i64,
    /// The highest number seen at earlier times, oldest first.
    seen: VecDeque<(Instant, i64)>,
}

/// What is known of the events, and who waits for more.
#[derive(Debug)]
pub(super) struct Revisions {
    newest: watch::Sender<u64>,
    tally: Mutex<Tally>,
    /// The one that waits and polls for all; when the next poll is due.
    pub(super) poller: tokio::sync::Mutex<Instant>,
}

impl Revisions {
    pub(super) fn new() -> Self {
        Self {
            newest: watch::Sender::new(0),
            tally: Mutex::new(Tally::default()),
            poller: tokio::sync::Mutex::new(Instant::now()),
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    #[cfg(test)]
    fn newest(&self) -> u64 {
        *self.newest.borrow()
    }

    pub(super) fn known(&self) -> bool {
        self.tally().known
    }

    /// The first look begins here when `newest` is the highest number.
    pub(super) fn first_floor(newest: i64) -> i64 {
        (newest - BACKLOG).max(0)
    }

    /// This process committed events up to number `last`. They are not added to the tally: a look that runs between
    /// the database's commit and this call has counted them already, and one counted twice would hide the next foreign event.
    /// The price is that the next look wakes the waiting once more.
    pub(super) fn committed(&self, last: u64) {
        self.newest.send_modify(|newest| *newest = last.max(*newest + 1));
    }

    /// What to ask for in the next look: the floor, and the one after it.
    pub(super) fn floors(&self, now: Instant) -> (i64, i64) {
        let mut tally = self.tally();
        let mut next = tally.floor;
        while let Some((at, newest)) = tally.seen.front().copied()
            && now.duration_since(at) >= SETTLE
        {
            next = next.max(newest);
            tally.seen.pop_front();
        }
        (tally.floor, next)
    }

    /// Takes in what a look saw; wakes the waiting if there is more than was known.
    pub(super) fn looked(&self, look: Look, now: Instant) {
        let mut tally = self.tally();
        let newest = u64::try_from(look.newest).unwrap_or(0);
        if tally.known {
            if look.floor != tally.floor {
                return;
            }
            if look.count > tally.count {
                tally.count = look.count;
                self.newest.send_modify(|n| *n = newest.max(*n + 1));
            }
            // What lies between the floors is settled.
            tally.count -= look.count - look.next_count;
            tally.floor = look.next_floor;
        } else {
            *tally = Tally {
                known: true,
                floor: look.next_floor,
                count: look.next_count,
                seen: VecDeque::new(),
            };
            self.newest.send_modify(|n| *n = newest.max(*n));
        }
        tally.seen.push_back((now, look.newest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(revisions: &Revisions, rows: &[i64], now: Instant) {
        let (floor, next_floor) = revisions.floors(now);
        let above = |floor: i64| i64::try_from(rows.iter().filter(|seq| **seq > floor).count()).expect("few");
        let look = Look {
            floor,
            count: above(floor),
            newest: rows.iter().copied().max().unwrap_or(0),
            next_floor,
            next_count: above(next_floor),
        };
        revisions.looked(look, now);
    }

    #[test]
    fn late_lower_numbers_and_what_others_commit_are_always_seen() {
        let revisions = Revisions::new();
        let start = Instant::now();
        look(&revisions, &[1, 2], start);
        assert_eq!(revisions.newest(), 2);
        look(&revisions, &[1, 2, 4], start + POLL);
        assert_eq!(revisions.newest(), 4);
        look(&revisions, &[1, 2, 3, 4], start + POLL * 2);
        assert_eq!(revisions.newest(), 5, "3 came after 4");
        revisions.committed(5);
        look(&revisions, &[1, 2, 3, 4, 5], start + POLL * 3);
        let own = revisions.newest();
        for rows in [vec![1, 2, 3, 4, 5], vec![1, 2, 3, 4, 5, 6]] {
            look(&revisions, &rows, start + SETTLE * 3);
        }
        assert_eq!(revisions.newest(), own + 1);
        look(&revisions, &[1, 2, 3, 4, 5, 6], start + SETTLE * 9);
        look(&revisions, &[1, 2, 3, 4, 5, 6], start + SETTLE * 10);
        assert_eq!(revisions.newest(), own + 1, "moving the floor is no change");
        look(&revisions, &[3, 4, 5, 6, 7], start + SETTLE * 11);
        assert_eq!(revisions.newest(), own + 2, "pruning below the floor hides nothing");
    }
}
