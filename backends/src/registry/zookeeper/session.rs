//! One connection of a reader, from connecting to the first thing that goes wrong.
//!
//! See the [module](super) for why it works in rounds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use model::AppId;
use model::registry::RegistryRevision;
use rand::RngExt as _;
use zookeeper_client::{AddWatchMode, Client, Error, EventType, PersistentWatcher, WatchedEvent};

use super::Options;
use super::client::{load, load_certificates, read_data, read_entries, revision_of, timed};
use super::outbox::Outbox;
use super::tree::{Leaf, Tree};
use super::view::{Noise, View, sort};

/// How long a first event waits for others of the same burst.
const GATHER: Duration = Duration::from_millis(2);
/// Most rounds before what is known is told, while new events keep coming.
const MAX_ROUNDS: usize = 4;
/// Loads that are read at once after a snapshot: changes of endpoints that come meanwhile wait for no more than these.
const LOADS_AT_ONCE: usize = 500;
/// How often a follower is looked at for whether it still listens.
const LISTENING_CHECK: Duration = Duration::from_millis(250);

/// The watches: on endpoints, configurations, loads, certificates, and the revision.
struct Watches([PersistentWatcher; 5]);

impl Watches {
    async fn new(client: &Client, limit: Duration, tree: &Tree) -> Result<Self, Error> {
        Ok(Self([
            timed(limit, client.watch(&tree.address, AddWatchMode::PersistentRecursive)).await?,
            timed(limit, client.watch(&tree.config, AddWatchMode::PersistentRecursive)).await?,
            timed(limit, client.watch(&tree.load, AddWatchMode::PersistentRecursive)).await?,
            timed(
                limit,
                client.watch(&tree.certificate, AddWatchMode::PersistentRecursive),
            )
            .await?,
            timed(limit, client.watch(&tree.revision, AddWatchMode::Persistent)).await?,
        ]))
    }

    async fn next(&mut self) -> WatchedEvent {
        let [address, config, load, certificate, revision] = &mut self.0;
        tokio::select! {
            event = address.changed() => event,
            event = config.changed() => event,
            event = load.changed() => event,
            event = certificate.changed() => event,
            event = revision.changed() => event,
        }
    }

    /// An event that has arrived already.
    fn waiting(&mut self) -> Option<WatchedEvent> {
        self.0.iter_mut().find_map(|watcher| watcher.changed().now_or_never())
    }
}

/// What was read of each leaf; `None`: it is gone.
type Fresh = BTreeMap<Leaf, Option<Vec<u8>>>;

/// Takes out of `fresh` the endpoints that are gone of those apps that have `unread` ones. A read may be ahead of the
/// events: it shows an endpoint gone whose replacement, and that one's, were not read yet, and told alone it would leave an
/// app that always had an endpoint without one. They are read anew with the replacements.
fn hold_back(fresh: &mut Fresh, unread: &BTreeSet<Leaf>) -> Vec<Leaf> {
    let app = |leaf: &Leaf| match leaf {
        Leaf::Endpoint(key) => Some(key.app.clone()),
        _ => None,
    };
    let restless: BTreeSet<AppId> = unread.iter().filter_map(app).collect();
    let gone = |leaf: &Leaf, data: &mut Option<Vec<u8>>| {
        data.as_ref().is_none_or(Vec::is_empty) && app(leaf).is_some_and(|app| restless.contains(&app))
    };
    fresh.extract_if(.., gone).map(|(leaf, _)| leaf).collect()
}

/// A reader's connection.
pub(super) struct Session<'a> {
    client: &'a Client,
    tree: &'a Tree,
    options: &'a Options,
    watches: Watches,
    noise: &'a mut Noise,
    /// Changed since it was read last.
    dirty: BTreeSet<Leaf>,
    /// Loads that are still to be read: a snapshot is told without waiting for them.
    later: Vec<Leaf>,
    /// Whether an event came since the last round began.
    stirred: bool,
    /// When the first event came of which the follower was not told yet.
    heard: Option<Instant>,
    /// Everything up to it is in the view.
    revision: RegistryRevision,
}

/// How a follower's connection goes on.
pub(super) struct Follower<'a> {
    pub(super) view: &'a mut View,
    pub(super) outbox: &'a mut Outbox,
    /// Called with the number of entries in which a resync found the view wrong.
    pub(super) differed: &'a (dyn Fn(usize) + Send + Sync),
}

impl<'a> Session<'a> {
    /// Sets the watches and makes sure that the server is not behind what the leader knows now.
    pub(super) async fn new(
        client: &'a Client,
        tree: &'a Tree,
        options: &'a Options,
        noise: &'a mut Noise,
    ) -> Result<Self, Error> {
        let watches = Watches::new(client, options.call_timeout, tree).await?;
        timed(options.call_timeout, client.sync("/")).await?;
        Ok(Self {
            client,
            tree,
            options,
            watches,
            noise,
            dirty: BTreeSet::new(),
            later: Vec::new(),
            stirred: false,
            heard: None,
            revision: RegistryRevision::default(),
        })
    }

    /// Tells the follower a snapshot and then every change, until nobody listens (`Ok`) or something goes wrong.
    pub(super) async fn follow(mut self, follower: &mut Follower<'_>) -> Result<(), Error> {
        let (view, _) = self.snapshot(follower.view).await?;
        self.heard = None;
        *follower.view = view;
        follower.outbox.snapshot(self.revision);
        let mut resync = tokio::time::Instant::now() + self.until_resync();
        loop {
            follower.outbox.flush(follower.view);
            if follower.outbox.is_closed() {
                return Ok(());
            }
            if !self.later.is_empty() {
                let rest = self.later.len().saturating_sub(LOADS_AT_ONCE);
                self.dirty.extend(self.later.drain(rest..));
                self.stirred = true;
            }
            if !self.stirred {
                tokio::select! {
                    event = self.watches.next() => {
                        self.absorb(&event)?;
                        if self.stirred {
                            tokio::time::sleep(GATHER).await;
                        }
                    }
                    _ = follower.outbox.room(), if !follower.outbox.is_empty() => {}
                    () = tokio::time::sleep(LISTENING_CHECK) => {}
                    () = tokio::time::sleep_until(resync) => {
                        self.resync(follower).await?;
                        resync = tokio::time::Instant::now() + self.until_resync();
                    }
                }
            }
            if self.stirred {
                let fresh = self.settle().await?;
                let mut changes = Vec::new();
                for (leaf, data) in fresh {
                    changes.extend(follower.view.set(leaf, data.as_deref(), self.noise));
                }
                sort(&mut changes);
                let heard = self.heard.unwrap_or_else(Instant::now);
                // Whatever was held back is as old.
                if !self.stirred {
                    self.heard = None;
                }
                follower.outbox.changes(changes, self.revision, heard);
            }
        }
    }

    fn until_resync(&self) -> Duration {
        self.options.resync_every.mul_f64(rand::rng().random_range(0.9..1.1))
    }

    /// Notes what an event says: that a path changed, or that the connection is gone.
    fn absorb(&mut self, event: &WatchedEvent) -> Result<(), Error> {
        if event.event_type == EventType::Session {
            return Err(Error::ConnectionLoss);
        }
        if event.path == self.tree.revision {
            self.stir();
            return Ok(());
        }
        match self.tree.parse(&event.path) {
            Some(Ok(leaf)) => {
                self.stir();
                self.dirty.insert(leaf);
            }
            Some(Err(why)) => self.noise.unreadable(&event.path, &why.to_string()),
            None => {}
        }
        Ok(())
    }

    fn stir(&mut self) {
        self.stirred = true;
        self.heard.get_or_insert_with(Instant::now);
    }

    fn absorb_waiting(&mut self) -> Result<(), Error> {
        while let Some(event) = self.watches.waiting() {
            self.absorb(&event)?;
        }
        Ok(())
    }

    /// Reads what changed until no event is left, or for [`MAX_ROUNDS`]; sets `revision` to what is complete then.
    async fn settle(&mut self) -> Result<Fresh, Error> {
        let mut fresh = Fresh::new();
        let (start, mut before) = (self.revision, self.revision);
        self.absorb_waiting()?;
        for _ in 0..MAX_ROUNDS {
            self.stirred = false;
            let mut dirty = std::mem::take(&mut self.dirty);
            // The load of an instance may be older than its endpoint, and was not read then.
            let loads: Vec<Leaf> = dirty.iter().filter_map(Leaf::load).collect();
            dirty.extend(loads);
            let leaves: Vec<Leaf> = dirty.into_iter().collect();
            let (client, limit) = (self.client, self.options.call_timeout);
            let (large, leaves): (Vec<Leaf>, Vec<Leaf>) = leaves.into_iter().partition(Leaf::is_certificate);
            let mut paths = Vec::with_capacity(leaves.len() + 1);
            paths.push(self.tree.revision.clone());
            paths.extend(leaves.iter().map(|leaf| self.tree.leaf(leaf)));
            let mut replies = read_data(client, limit, &paths).await?.into_iter();
            let read = revision_of(replies.next().flatten().as_ref());
            fresh.extend(leaves.into_iter().zip(replies.map(|reply| reply.map(|(data, _)| data))));
            let replies = read_entries(client, limit, self.tree, &large).await?;
            fresh.extend(large.into_iter().zip(replies));
            self.absorb_waiting()?;
            if !self.stirred {
                self.revision = read;
                break;
            }
            self.revision = before;
            before = read;
        }
        if self.stirred {
            let held = hold_back(&mut fresh, &self.dirty);
            if !held.is_empty() {
                // What is held back may have gone at any moment since the last time.
                self.revision = start;
                self.dirty.extend(held);
            }
        }
        Ok(fresh)
    }

    /// A new picture, complete up to `revision`, and the entries that changed while it was taken.
    async fn snapshot(&mut self, last: &View) -> Result<(View, BTreeSet<Leaf>), Error> {
        let (client, limit) = (self.client, self.options.call_timeout);
        let mut loaded = load(client, limit, self.tree).await?;
        let mut certificates = load_certificates(client, limit, self.tree).await?;
        loaded.entries.append(&mut certificates.entries);
        loaded.foreign.append(&mut certificates.foreign);
        for path in &loaded.foreign {
            self.noise
                .unreadable(path, "its name is not of the form that the platform writes");
        }
        let mut view = last.rebuilt(loaded.entries, self.noise);
        self.revision = loaded.revision;
        // A listing of many requests is not of one moment: with what changed meanwhile it is.
        let fresh = self.settle().await?;
        let changing = fresh.keys().chain(&self.dirty).cloned().collect();
        for (leaf, data) in fresh {
            view.set(leaf, data.as_deref(), self.noise);
        }
        self.later = view.load_leaves().collect();
        Ok((view, changing))
    }

    async fn resync(&mut self, follower: &mut Follower<'_>) -> Result<(), Error> {
        timed(self.options.call_timeout, self.client.sync("/")).await?;
        let (view, changing) = self.snapshot(follower.view).await?;
        (follower.differed)(follower.view.differences(&view, &changing));
        self.heard = None;
        *follower.view = view;
        follower.outbox.snapshot(self.revision);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::contract::registry::key;

    #[test]
    fn registry_session_holds_back_what_goes_before_its_replacement_is_read() {
        let leaf = |app: &str, c: &str| Leaf::Endpoint(key(app, "1", c));
        let here = || Some(b"10.0.0.1:80".to_vec());
        let all = || {
            Fresh::from([
                (leaf("a", "gone"), None),
                (leaf("a", "emptied"), Some(Vec::new())),
                (leaf("a", "here"), here()),
                (leaf("b", "gone"), None),
                (leaf("a", "load").load().expect("an endpoint has a load"), None),
            ])
        };
        let mut fresh = all();
        let held = hold_back(&mut fresh, &BTreeSet::from([leaf("a", "next")]));
        assert_eq!(
            BTreeSet::from_iter(held),
            BTreeSet::from([leaf("a", "gone"), leaf("a", "emptied")])
        );
        assert_eq!(fresh.len(), 3);
        // Other apps' changes, and loads, hold up nothing.
        let mut fresh = all();
        let others = BTreeSet::from([leaf("c", "next"), leaf("b", "x").load().expect("as above")]);
        assert_eq!(hold_back(&mut fresh, &others), []);
        assert_eq!(fresh, all());
    }
}
