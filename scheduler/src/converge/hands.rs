//! What this process is working on, by key, so that no two tasks work on the same thing and no plan is made from a look
//! that is older than the end of a task.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use super::fleet::lock;

/// Keys of work under way.
#[derive(Debug)]
pub(crate) struct Hands<K>(Arc<Mutex<State<K>>>);

#[derive(Debug)]
struct State<K> {
    busy: HashSet<K>,
    /// Ended, but a look at the store that began before the end may still be in use.
    ended: Vec<K>,
}

impl<K> Default for Hands<K> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            busy: HashSet::new(),
            ended: Vec::new(),
        })))
    }
}

/// Work under way; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Hold<K: Eq + Hash + Clone> {
    state: Arc<Mutex<State<K>>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Drop for Hold<K> {
    fn drop(&mut self) {
        lock(&self.state).ended.push(self.key.clone());
    }
}

impl<K: Eq + Hash + Clone> Hands<K> {
    /// Takes `key` in hand; `None` when it already is.
    pub(crate) fn take(&self, key: &K) -> Option<Hold<K>> {
        lock(&self.0).busy.insert(key.clone()).then(|| Hold {
            state: Arc::clone(&self.0),
            key: key.clone(),
        })
    }

    /// Whether work on `key` has ended since the last look began.
    pub(crate) fn has_ended(&self, key: &K) -> bool {
        lock(&self.0).ended.contains(key)
    }

    /// To be called before each look at the store: what ended before it is free again. What is still in hand.
    pub(crate) fn before_look(&self) -> HashSet<K> {
        let mut state = lock(&self.0);
        for key in std::mem::take(&mut state.ended) {
            state.busy.remove(&key);
        }
        state.busy.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_during_a_look_stays_in_hand_until_the_next_one() {
        let hands = Hands::<u32>::default();
        let hold = hands.take(&1).expect("it is free");
        assert!(hands.take(&1).is_none());
        assert_eq!(hands.before_look(), HashSet::from([1]));
        drop(hold);
        assert!(hands.take(&1).is_none(), "a look may have begun before the end");
        assert!(hands.before_look().is_empty());
        assert!(hands.take(&1).is_some());
    }
}
