//! registry-sync's side: one leader, and every write of it in a transaction that checks that it still leads.
//!
//! Unlike a reader, a writer keeps its session over a short disconnection: it holds no watch that could be
//! lost, its lock must not be given up with every restart of a server, and requests of one session are served in
//! order, so what was written before can't overtake what is read after. When the session is gone, so is the lock node,
//! and with it every write that is still on its way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use model::registry::{
    Acknowledgement, LoadKey, RegistryChange, RegistryError, RegistryRevision, RegistrySnapshot, RegistryWriter,
};
use zookeeper_client::{
    Acls, CheckWriteError, Client, CreateMode, CreateOptions, Error, MultiWriteResult, SessionState,
};

use super::client::{
    PERSISTENT, connect, load, load_certificates, load_loads, mkdir, read_data, revision_of, timed, told,
};
use super::plan::{Node, Op, batches, needed, plan};
use super::tree::Tree;
use super::view::{Noise, View};
use super::{Address, Options};

/// How often a transaction is planned anew because somebody else changed a node in between.
const ATTEMPTS: usize = 5;
const CONTENDER: CreateOptions<'static> = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());

/// Writes a registry in ZooKeeper.
#[derive(Debug)]
pub struct ZooKeeperWriter {
    address: Address,
    tree: Tree,
    options: Options,
    session: Mutex<Option<Arc<WriterSession>>>,
    /// Held while connecting or waiting to lead.
    contending: tokio::sync::Mutex<()>,
    connecting: tokio::sync::Mutex<()>,
    /// Held while writing: two calls at once must not mix.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct WriterSession {
    client: Client,
    /// The path of the lock node by which this session leads.
    lock: Mutex<Option<String>>,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WriterSession {
    fn lock(&self) -> Option<String> {
        let ended = self.client.state().is_terminated();
        guard(&self.lock).clone().filter(|_| !ended)
    }
}

impl ZooKeeperWriter {
    /// A writer of the registry at `address`; connects when it is used.
    #[must_use]
    pub fn new(address: Address, options: Options) -> Self {
        let tree = Tree::new(&address.chroot);
        Self {
            address,
            tree,
            options,
            session: Mutex::default(),
            contending: tokio::sync::Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            writing: tokio::sync::Mutex::default(),
        }
    }

    fn living(&self) -> Option<Arc<WriterSession>> {
        let session = guard(&self.session);
        session.as_ref().filter(|s| !s.client.state().is_terminated()).cloned()
    }

    /// The session, a new one when there is none.
    async fn session(&self) -> Result<Arc<WriterSession>, RegistryError> {
        let _one = self.connecting.lock().await;
        if let Some(session) = self.living() {
            return Ok(session);
        }
        let client = connect(&self.address, &self.options).await;
        let client = client.map_err(|error| told(&format!("connecting to {}", self.address.servers), &error))?;
        let session = Arc::new(WriterSession {
            client,
            lock: Mutex::default(),
        });
        *guard(&self.session) = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Waits until this session leads.
    async fn contend(&self) -> Result<(), RegistryError> {
        let _one = self.contending.lock().await;
        let session = self.session().await?;
        let mut states = session.client.state_watcher();
        while session.client.state() == SessionState::Disconnected {
            states.changed().await;
        }
        if session.lock().is_some() {
            return Ok(());
        }
        let lock = self.queue(&session.client).await;
        let lock = lock.map_err(|error| told("becoming the registry's writer", &error))?;
        tracing::info!(lock = %lock, "this is the registry's writer now");
        *guard(&session.lock) = Some(lock);
        Ok(())
    }

    /// Joins the queue, if it is not in there, and waits to be its head. The place is kept when this is given up.
    async fn queue(&self, client: &Client) -> Result<String, Error> {
        let limit = self.options.call_timeout;
        self.make_roots(client).await?;
        let ours = format!("{:x}-", client.session_id().0);
        loop {
            let names = timed(limit, client.list_children(&self.tree.locks)).await?;
            match place(names, &ours) {
                // Asked before each attempt, so that a reply that was lost never leaves two places to one session.
                Place::Nowhere => {
                    let path = format!("{}/{ours}", self.tree.locks);
                    timed(limit, client.create(&path, b"", &CONTENDER)).await?;
                }
                Place::Head(name) => {
                    // What the writers before have written must be seen from here on.
                    timed(limit, client.sync("/")).await?;
                    return Ok(format!("{}/{name}", self.tree.locks));
                }
                Place::Behind(name) => {
                    let path = format!("{}/{name}", self.tree.locks);
                    match timed(limit, client.get_and_watch_data(&path)).await {
                        Ok((_, _, watcher)) => {
                            watcher.changed().await;
                        }
                        Err(Error::NoNode) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    async fn make_roots(&self, client: &Client) -> Result<(), Error> {
        let tree = &self.tree;
        let roots = [
            &tree.address,
            &tree.config,
            &tree.load,
            &tree.certificate,
            &tree.revision,
            &tree.gateways,
            &tree.locks,
        ];
        for path in roots {
            mkdir(client, self.options.call_timeout, path).await?;
        }
        Ok(())
    }

    /// Writes one batch in one transaction.
    async fn write(
        &self,
        client: &Client,
        lock: &str,
        changes: &[RegistryChange],
    ) -> Result<RegistryRevision, CheckWriteError> {
        let limit = self.options.call_timeout;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let paths = needed(&self.tree, changes);
            let replies = read_data(client, limit, &paths).await?;
            let nodes = paths.into_iter().zip(replies).filter_map(|(path, reply)| {
                let (data, stat) = reply?;
                let children = stat.num_children;
                Some((path, Node { data, children }))
            });
            let ops = plan(&self.tree, changes, &nodes.collect());
            let mut writer = client.new_check_writer(lock, None)?;
            for op in &ops {
                match op {
                    Op::Create(path, data) => writer.add_create(path, data, &PERSISTENT)?,
                    Op::Set(path, data) => writer.add_set_data(path, data, None)?,
                    Op::Delete(path) => writer.add_delete(path, None)?,
                }
            }
            // Last, so that its event comes after those of what it stands for.
            writer.add_set_data(&self.tree.revision, b"", None)?;
            match timed(limit, writer.commit()).await {
                Ok(results) => match results.last() {
                    Some(MultiWriteResult::SetData { stat }) => return Ok(RegistryRevision(stat.mzxid)),
                    _ => return Err(Error::UnexpectedError("a transaction without its revision".into()).into()),
                },
                Err(CheckWriteError::OperationFailed {
                    source: source @ (Error::NoNode | Error::NodeExists | Error::NotEmpty),
                    ..
                }) => {
                    // Somebody else wrote in between, or removed the roots: look again.
                    last = Some(source);
                    self.make_roots(client).await?;
                    timed(limit, client.sync("/")).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or(Error::RuntimeInconsistent).into())
    }
}

/// A session's place in the queue for the lock.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Head(String),
    /// Behind the one named.
    Behind(String),
}

/// Where the session whose nodes begin with `ours` stands among `names` (`{session}-{sequence}`).
fn place(names: Vec<String>, ours: &str) -> Place {
    let numbered = names.into_iter().filter_map(|name| {
        let sequence: u64 = name.rsplit_once('-')?.1.parse().ok()?;
        Some((sequence, name))
    });
    let mut queue: Vec<(u64, String)> = numbered.collect();
    queue.sort_unstable();
    match queue.iter().position(|(_, name)| name.starts_with(ours)) {
        None => Place::Nowhere,
        Some(0) => Place::Head(queue.swap_remove(0).1),
        Some(at) => Place::Behind(queue.swap_remove(at - 1).1),
    }
}

#[async_trait]
impl RegistryWriter for ZooKeeperWriter {
    async fn lead(&self, timeout: Duration) -> Result<bool, RegistryError> {
        let leads = |session: &Arc<WriterSession>| {
            session.client.state() == SessionState::SyncConnected && session.lock().is_some()
        };
        if self.living().as_ref().is_some_and(leads) {
            return Ok(true);
        }
        match tokio::time::timeout(timeout, self.contend()).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) => Err(error),
            Err(_) => match self.living() {
                Some(session) if session.client.state() == SessionState::SyncConnected => Ok(false),
                _ => Err(RegistryError::Unavailable(format!(
                    "no connection to {} within {timeout:?}",
                    self.address.servers
                ))),
            },
        }
    }

    async fn published(&self) -> Result<RegistrySnapshot, RegistryError> {
        let session = self.session().await?;
        let limit = self.options.call_timeout;
        let read = async {
            timed(limit, session.client.sync("/")).await?;
            load(&session.client, limit, &self.tree).await
        };
        let loaded = read.await.map_err(|error| told("reading what is published", &error))?;
        let view = View::default().rebuilt(loaded.entries, &mut Noise::default());
        Ok(view.into_snapshot(loaded.revision))
    }

    async fn loads(&self) -> Result<BTreeMap<LoadKey, model::Load>, RegistryError> {
        let session = self.session().await?;
        let loaded = load_loads(&session.client, self.options.call_timeout, &self.tree).await;
        let loaded = loaded.map_err(|error| told("reading the loads", &error))?;
        let view = View::default().rebuilt(loaded.entries, &mut Noise::default());
        Ok(view.into_snapshot(loaded.revision).loads)
    }

    async fn certificates(&self) -> Result<BTreeMap<model::CertificateName, model::SealedCertificate>, RegistryError> {
        let session = self.session().await?;
        let loaded = load_certificates(&session.client, self.options.call_timeout, &self.tree).await;
        let loaded = loaded.map_err(|error| told("reading the certificates", &error))?;
        let view = View::default().rebuilt(loaded.entries, &mut Noise::default());
        Ok(view.into_snapshot(loaded.revision).certificates)
    }

    /// After [`RegistryError::Unavailable`] it is not known whether the batch under way was written: read
    /// [`published`](RegistryWriter::published) and apply what is missing. It can't be written later than that
    /// read, for one session's requests keep their order, and another session's are refused with the lock gone.
    async fn apply(&self, changes: &[RegistryChange]) -> Result<RegistryRevision, RegistryError> {
        let _one = self.writing.lock().await;
        let session = self.living().ok_or(RegistryError::NotLeader)?;
        let lock = session.lock().ok_or(RegistryError::NotLeader)?;
        if changes.is_empty() {
            let node = std::slice::from_ref(&self.tree.revision);
            let replies = read_data(&session.client, self.options.call_timeout, node).await;
            let replies = replies.map_err(|error| told("reading the revision", &error))?;
            return Ok(revision_of(replies.first().and_then(Option::as_ref)));
        }
        let mut revision = RegistryRevision::default();
        for batch in batches(changes) {
            revision = match self.write(&session.client, &lock, batch).await {
                Ok(revision) => revision,
                Err(CheckWriteError::CheckFailed {
                    source: Error::NoNode | Error::BadVersion,
                }) => {
                    *guard(&session.lock) = None;
                    tracing::warn!("another registry-sync leads now, nothing was written");
                    return Err(RegistryError::NotLeader);
                }
                Err(error) => return Err(told("writing", &error.into())),
            };
        }
        Ok(revision)
    }

    async fn acknowledgements(&self) -> Result<BTreeMap<String, Acknowledgement>, RegistryError> {
        let session = self.session().await?;
        let (client, limit) = (&session.client, self.options.call_timeout);
        let reading = |error: Error| told("reading the acknowledgements", &error);
        let names = match timed(limit, client.list_children(&self.tree.gateways)).await {
            Ok(names) => names,
            Err(Error::NoNode) => return Ok(BTreeMap::new()),
            Err(error) => return Err(reading(error)),
        };
        let paths: Vec<String> = names
            .iter()
            .map(|name| format!("{}/{name}", self.tree.gateways))
            .collect();
        let replies = read_data(client, limit, &paths).await.map_err(reading)?;
        let mut acknowledgements = BTreeMap::new();
        for (name, reply) in names.into_iter().zip(replies) {
            // Only a live session's node counts: one that stays for ever would hold up every withdrawal.
            if let Some((data, stat)) = reply
                && stat.ephemeral_owner != 0
            {
                // A gateway that says nothing readable has acknowledged nothing.
                let ack = serde_json::from_slice(&data).unwrap_or_default();
                acknowledgements.insert(name, ack);
            }
        }
        Ok(acknowledgements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_queue_is_by_sequence_not_by_name() {
        let names = || {
            vec![
                "ff-0000000002".into(),
                "aa-0000000003".into(),
                "b-0000000001".into(),
                "x".into(),
            ]
        };
        assert_eq!(place(names(), "b-"), Place::Head("b-0000000001".into()));
        assert_eq!(place(names(), "ff-"), Place::Behind("b-0000000001".into()));
        assert_eq!(place(names(), "aa-"), Place::Behind("ff-0000000002".into()));
        assert_eq!(place(names(), "c-"), Place::Nowhere);
    }
}
