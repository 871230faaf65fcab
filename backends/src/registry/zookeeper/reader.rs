//! A gateway's side: follow the registry over any number of disconnections, and acknowledge.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::channel::mpsc::{self, Receiver, Sender};
use model::registry::{Acknowledgement, RegistryError, RegistryEvent, RegistryReader};
use rand::RngExt as _;
use tokio::sync::Mutex;
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions, Error};

use super::client::{connect, mkdir, timed, told};
use super::outbox::Outbox;
use super::session::{Follower, Session};
use super::tree::Tree;
use super::view::{Noise, View};
use super::{Address, Options, check_gateway_id};

/// Events that wait in a follower's channel.
const CHANNEL: usize = 16;
/// The first and the longest pause between attempts to connect, before jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
const EPHEMERAL: CreateOptions<'static> = CreateMode::Ephemeral.with_acls(Acls::anyone_all());

/// Follows a registry in ZooKeeper. One reader is one gateway: it acknowledges over the connection by which it follows.
#[derive(Debug)]
pub struct ZooKeeperReader {
    shared: Arc<Shared>,
}

impl ZooKeeperReader {
    /// A reader of the registry at `address`; connects when it is followed.
    #[must_use]
    pub fn new(address: Address, options: Options) -> Self {
        let tree = Tree::new(&address.chroot);
        Self {
            shared: Arc::new(Shared {
                address,
                tree,
                options,
                gateway: Mutex::default(),
                differences: AtomicU64::new(0),
            }),
        }
    }
}

#[derive(Debug)]
struct Shared {
    address: Address,
    tree: Tree,
    options: Options,
    gateway: Mutex<Gateway>,
    differences: AtomicU64,
}

/// What this gateway acknowledges, and over what.
#[derive(Debug, Default)]
struct Gateway {
    client: Option<Client>,
    /// The last acknowledgement, by gateway id; it is written again in each new session.
    last: Option<(String, Acknowledgement)>,
    /// Whether this session owns the node of `last`.
    owned: bool,
}

impl Shared {
    /// From now on acknowledgements go over `client`; the last one is written at once, so that the gateway is known before it
    /// takes its picture.
    async fn connected(&self, client: &Client) -> Result<(), Error> {
        let mut gateway = self.gateway.lock().await;
        gateway.client = Some(client.clone());
        gateway.owned = false;
        self.write(&mut gateway).await
    }

    async fn disconnected(&self) {
        self.gateway.lock().await.client = None;
    }

    /// Writes the last acknowledgement.
    async fn write(&self, gateway: &mut Gateway) -> Result<(), Error> {
        let (Some(client), Some((id, ack))) = (&gateway.client, &gateway.last) else {
            return Ok(());
        };
        let limit = self.options.call_timeout;
        let path = format!("{}/{id}", self.tree.gateways);
        let data = serde_json::to_vec(ack).map_err(|e| Error::UnexpectedError(e.to_string()))?;
        if gateway.owned {
            match timed(limit, client.set_data(&path, &data, None)).await {
                // Somebody deleted it: it is made anew.
                Err(Error::NoNode) => gateway.owned = false,
                other => return other.map(|_| ()),
            }
        }
        // A node that is there may be of this gateway's session before, and go with it: it is replaced, in one step.
        for _ in 0..4 {
            match timed(limit, client.create(&path, &data, &EPHEMERAL)).await {
                Ok(_) => {
                    gateway.owned = true;
                    return Ok(());
                }
                Err(Error::NoNode) => mkdir(client, limit, &self.tree.gateways).await?,
                Err(Error::NodeExists) => {
                    let mut replace = client.new_multi_writer();
                    replace.add_delete(&path, None)?;
                    replace.add_create(&path, &data, &EPHEMERAL)?;
                    match timed(limit, replace.commit()).await.map_err(Error::from) {
                        Ok(_) => {
                            gateway.owned = true;
                            return Ok(());
                        }
                        Err(Error::NoNode | Error::NodeExists) => {}
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::NodeExists)
    }

    fn differed(&self, entries: usize) {
        if entries > 0 {
            self.differences.fetch_add(entries as u64, Ordering::Relaxed);
            tracing::error!(
                entries,
                "a resync found the copy of the registry wrong, it is right again"
            );
        }
    }
}

/// Follows until nobody listens.
async fn follow(shared: Arc<Shared>, to: Sender<RegistryEvent>) {
    let (mut view, mut noise, mut outbox) = (View::default(), Noise::default(), Outbox::new(to));
    let mut pause = BACKOFF.0;
    while !outbox.is_closed() {
        let result = match connect(&shared.address, &shared.options).await {
            Ok(client) => {
                let result = stay(&shared, &client, &mut view, &mut noise, &mut outbox, &mut pause).await;
                shared.disconnected().await;
                result
            }
            Err(error) => Err(error),
        };
        let Err(error) = result else { return };
        tracing::warn!(servers = %shared.address.servers, %error, "the registry can't be reached, trying again");
        outbox.disconnected(format!("ZooKeeper at {}: {error}", shared.address.servers));
        let end = tokio::time::Instant::now() + pause.mul_f64(rand::rng().random_range(0.5..1.0));
        pause = (pause * 2).min(BACKOFF.1);
        loop {
            outbox.flush(&view);
            tokio::select! {
                () = tokio::time::sleep_until(end) => break,
                room = outbox.room(), if !outbox.is_empty() => if room.is_err() { return },
            }
        }
    }
}

async fn stay(
    shared: &Shared,
    client: &Client,
    view: &mut View,
    noise: &mut Noise,
    outbox: &mut Outbox,
    pause: &mut Duration,
) -> Result<(), Error> {
    shared.connected(client).await?;
    let session = Session::new(client, &shared.tree, &shared.options, noise).await?;
    *pause = BACKOFF.0;
    let mut follower = Follower {
        view,
        outbox,
        differed: &|entries| shared.differed(entries),
    };
    session.follow(&mut follower).await
}

#[async_trait]
impl RegistryReader for ZooKeeperReader {
    fn follow(&self) -> Receiver<RegistryEvent> {
        let (to, receiver) = mpsc::channel(CHANNEL);
        tokio::spawn(follow(Arc::clone(&self.shared), to));
        receiver
    }

    fn resync_differences(&self) -> u64 {
        self.shared.differences.load(Ordering::Relaxed)
    }

    /// While there is no connection the acknowledgement is kept and [`RegistryError::Unavailable`] returned: it is written when
    /// there is one again, before the next snapshot.
    async fn acknowledge(&self, id: &str, ack: &Acknowledgement) -> Result<(), RegistryError> {
        check_gateway_id(id)?;
        let mut gateway = self.shared.gateway.lock().await;
        if gateway.last.as_ref().is_none_or(|(last, _)| last != id) {
            gateway.owned = false;
        }
        gateway.last = Some((id.to_owned(), ack.clone()));
        if gateway.client.is_none() {
            return Err(RegistryError::Unavailable("not connected to ZooKeeper".into()));
        }
        let written = self.shared.write(&mut gateway).await;
        written.map_err(|error| told("acknowledging", &error))
    }
}
