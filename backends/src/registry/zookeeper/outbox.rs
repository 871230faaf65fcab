//! What a follower has still to hear: bounded, whatever the follower does.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::time::Instant;

use futures::FutureExt as _;
use futures::channel::mpsc::{SendError, Sender};
use model::registry::{RegistryChange, RegistryEvent, RegistryRevision};

use super::view::View;

/// Most changes that wait for a follower; beyond it hears a snapshot instead.
const MAX_WAITING: usize = 4_096;

#[derive(Debug)]
enum Item {
    /// And when the first of them was heard of.
    Changes(Vec<RegistryChange>, Instant),
    /// The picture as it is when it is sent.
    Snapshot,
    Disconnected(String),
}

/// The end of a follower's channel, and what waits for room in it.
#[derive(Debug)]
pub(super) struct Outbox {
    to: Sender<RegistryEvent>,
    waiting: VecDeque<Item>,
    /// Everything up to it is in what was put in here.
    revision: RegistryRevision,
    /// Whether the follower was told of the present disconnection.
    told_down: bool,
}

impl Outbox {
    pub(super) fn new(to: Sender<RegistryEvent>) -> Self {
        Self {
            to,
            waiting: VecDeque::new(),
            revision: RegistryRevision::default(),
            told_down: false,
        }
    }

    /// `changes`, heard of at `heard`, which are in the picture already; with them everything up to `revision` is.
    pub(super) fn changes(&mut self, mut changes: Vec<RegistryChange>, revision: RegistryRevision, heard: Instant) {
        if changes.is_empty() && revision == self.revision {
            return;
        }
        self.revision = revision;
        match self.waiting.back_mut() {
            Some(Item::Snapshot) => return,
            Some(Item::Changes(waiting, _)) => waiting.append(&mut changes),
            _ => self.waiting.push_back(Item::Changes(changes, heard)),
        }
        if let Some(last @ Item::Changes(..)) = self.waiting.back_mut()
            && matches!(last, Item::Changes(waiting, _) if waiting.len() > MAX_WAITING)
        {
            *last = Item::Snapshot;
        }
    }

    /// The picture is new and holds everything up to `revision`: it makes worthless what waits.
    pub(super) fn snapshot(&mut self, revision: RegistryRevision) {
        self.told_down = false;
        self.revision = revision;
        self.waiting.clear();
        self.waiting.push_back(Item::Snapshot);
    }

    /// The registry can't be reached; said once until the next snapshot.
    pub(super) fn disconnected(&mut self, why: String) {
        if !std::mem::replace(&mut self.told_down, true) {
            self.waiting.push_back(Item::Disconnected(why));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether nobody listens any more.
    pub(super) fn is_closed(&self) -> bool {
        self.to.is_closed()
    }

    /// Waits for room in the channel.
    pub(super) async fn room(&mut self) -> Result<(), SendError> {
        poll_fn(|cx| self.to.poll_ready(cx)).await
    }

    /// Sends what there is room for.
    pub(super) fn flush(&mut self, view: &View) {
        while !self.waiting.is_empty() {
            if !matches!(self.room().now_or_never(), Some(Ok(()))) {
                return;
            }
            let event = match self.waiting.pop_front() {
                None => return,
                Some(Item::Changes(changes, heard)) => RegistryEvent::Changes {
                    changes,
                    revision: self.revision,
                    heard,
                },
                Some(Item::Snapshot) => RegistryEvent::Snapshot(view.snapshot(self.revision)),
                Some(Item::Disconnected(why)) => RegistryEvent::Disconnected(why),
            };
            if self.to.start_send(event).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::mpsc;
    use model::contract::registry::{endpoint, key};

    fn put(i: u16) -> RegistryChange {
        RegistryChange::Put(key("hello", "1", &format!("c{i}")), endpoint(1_024 + i))
    }

    fn heard(events: &mut mpsc::Receiver<RegistryEvent>) -> Option<&'static str> {
        events.try_recv().ok().map(|event| match event {
            RegistryEvent::Snapshot(_) => "snapshot",
            RegistryEvent::Changes { .. } => "changes",
            RegistryEvent::Disconnected(_) => "disconnected",
        })
    }

    #[test]
    fn registry_outbox_tells_a_disconnection_once() {
        let (to, mut events) = mpsc::channel(8);
        let (mut outbox, view) = (Outbox::new(to), View::default());
        outbox.snapshot(RegistryRevision(1));
        outbox.flush(&view);
        outbox.changes(vec![put(1)], RegistryRevision(2), Instant::now());
        outbox.changes(vec![], RegistryRevision(2), Instant::now());
        outbox.disconnected("gone".into());
        outbox.disconnected("still gone".into());
        outbox.flush(&view);
        assert_eq!(heard(&mut events), Some("snapshot"));
        assert_eq!(heard(&mut events), Some("changes"));
        assert_eq!(heard(&mut events), Some("disconnected"));
        assert_eq!(heard(&mut events), None);
        outbox.snapshot(RegistryRevision(3));
        outbox.disconnected("gone again".into());
        outbox.flush(&view);
        assert_eq!(heard(&mut events), Some("snapshot"));
        assert_eq!(heard(&mut events), Some("disconnected"));
    }

    #[test]
    fn registry_outbox_tells_when_the_first_change_was_heard_of() {
        let (to, mut events) = mpsc::channel(0);
        let (mut outbox, view) = (Outbox::new(to), View::default());
        outbox.snapshot(RegistryRevision(1));
        outbox.flush(&view);
        let first = Instant::now();
        let later = first + std::time::Duration::from_secs(1);
        outbox.changes(vec![put(1)], RegistryRevision(2), first);
        outbox.changes(vec![put(2)], RegistryRevision(3), later);
        assert_eq!(heard(&mut events), Some("snapshot"));
        outbox.flush(&view);
        match events.try_recv().expect("an event") {
            RegistryEvent::Changes { changes, heard, .. } => assert_eq!((changes.len(), heard), (2, first)),
            other => panic!("{other:?}"),
        }
        outbox.changes(vec![put(3)], RegistryRevision(4), later);
        outbox.flush(&view);
        match events.try_recv().expect("an event") {
            RegistryEvent::Changes { heard, .. } => assert_eq!(heard, later),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn registry_outbox_turns_a_backlog_into_a_snapshot() {
        let (to, mut events) = mpsc::channel(0);
        let (mut outbox, view) = (Outbox::new(to), View::default());
        outbox.snapshot(RegistryRevision(1));
        outbox.flush(&view);
        for i in 0..=u16::try_from(MAX_WAITING).expect("small") {
            outbox.changes(vec![put(i)], RegistryRevision(i64::from(i) + 2), Instant::now());
            outbox.flush(&view);
        }
        outbox.changes(vec![put(0)], RegistryRevision(9_999), Instant::now());
        assert_eq!(outbox.waiting.len(), 1);
        assert_eq!(heard(&mut events), Some("snapshot"));
        outbox.flush(&view);
        let RegistryEvent::Snapshot(snapshot) = events.try_recv().expect("an event") else {
            panic!("not a snapshot")
        };
        assert_eq!(snapshot.revision, RegistryRevision(9_999));
        assert!(outbox.is_empty());
        drop(events);
        assert!(outbox.is_closed());
    }
}
