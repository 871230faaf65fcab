//! Calls to ZooKeeper, each with a deadline.

use std::future::Future;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use model::registry::{RegistryError, RegistryRevision};
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions, Error, MultiReadResult, Stat};

use super::tree::{Leaf, Tree};
use super::{Address, Options};

/// Reads per request: 30,000 endpoints take about 1,200 requests instead of 50,000.
const BATCH: usize = 50;
/// Reads of certificates per request: their answer stays below the 1 MiB that a message may have.
const CERTIFICATES: usize = 8;
/// Requests under way at once.
const IN_FLIGHT: usize = 8;

/// What new nodes are: for everyone, and there to stay.
pub(super) const PERSISTENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());

/// `call`, or [`Error::Timeout`] after `limit`. A write that timed out may still happen.
pub(super) async fn timed<T, E: From<Error>>(
    limit: Duration,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout.into()),
    }
}

/// A new session; it ends when the last clone of the client is dropped.
pub(super) async fn connect(address: &Address, options: &Options) -> Result<Client, Error> {
    let connector = Client::connector()
        .with_session_timeout(options.session_timeout)
        .with_fail_eagerly();
    timed(options.session_timeout, connector.connect(&address.servers)).await
}

/// What the rest of the platform is told of `error`.
pub(super) fn told(doing: &str, error: &Error) -> RegistryError {
    let text = format!("{doing}: {error}");
    match error {
        Error::NoAuth
        | Error::AuthFailed
        | Error::InvalidAcl
        | Error::BadArguments(_)
        | Error::QuotaExceeded
        | Error::Unimplemented
        | Error::MarshallingError
        | Error::UnmarshalError { .. }
        | Error::NoNode
        | Error::NodeExists
        | Error::NotEmpty
        | Error::BadVersion
        | Error::NoChildrenForEphemerals => RegistryError::Refused(text),
        _ => RegistryError::Unavailable(text),
    }
}

/// Makes `path` and what is above it; being there already is fine.
pub(super) async fn mkdir(client: &Client, limit: Duration, path: &str) -> Result<(), Error> {
    timed(limit, client.mkdir(path, &PERSISTENT)).await
}

/// The data of `paths`, none of which is a certificate's, in order, read in order; `None`: not there, or not for us to read.
pub(super) async fn read_data(
    client: &Client,
    limit: Duration,
    paths: &[String],
) -> Result<Vec<Option<(Vec<u8>, Stat)>>, Error> {
    read(client, limit, paths, BATCH, false, data_of).await
}

/// As [`read_data`], of certificates.
async fn read_certificates(
    client: &Client,
    limit: Duration,
    paths: &[String],
) -> Result<Vec<Option<(Vec<u8>, Stat)>>, Error> {
    read(client, limit, paths, CERTIFICATES, false, data_of).await
}

fn data_of(result: MultiReadResult) -> Option<(Vec<u8>, Stat)> {
    match result {
        MultiReadResult::Data { data, stat } => Some((data, stat)),
        _ => None,
    }
}

/// What `leaves` hold, in order.
pub(super) async fn read_entries(
    client: &Client,
    limit: Duration,
    tree: &Tree,
    leaves: &[Leaf],
) -> Result<Vec<Option<Vec<u8>>>, Error> {
    let paths = |certificates: bool| -> Vec<String> {
        let of_kind = leaves.iter().filter(|leaf| leaf.is_certificate() == certificates);
        of_kind.map(|leaf| tree.leaf(leaf)).collect()
    };
    let mut others = read_data(client, limit, &paths(false)).await?.into_iter();
    let mut certificates = read_certificates(client, limit, &paths(true)).await?.into_iter();
    let next = |leaf: &Leaf| {
        let replies = if leaf.is_certificate() {
            &mut certificates
        } else {
            &mut others
        };
        replies.next().flatten().map(|(data, _)| data)
    };
    Ok(leaves.iter().map(next).collect())
}

/// The names of the children of `paths`, in order; of a node that is not there: none.
async fn read_children(client: &Client, limit: Duration, paths: &[String]) -> Result<Vec<Vec<String>>, Error> {
    read(client, limit, paths, BATCH, true, |result| match result {
        MultiReadResult::Children { children } => children,
        _ => Vec::new(),
    })
    .await
}

async fn read<T>(
    client: &Client,
    limit: Duration,
    paths: &[String],
    batch: usize,
    children: bool,
    each: impl Fn(MultiReadResult) -> T,
) -> Result<Vec<T>, Error> {
    let mut found = Vec::with_capacity(paths.len());
    let mut chunks = paths.chunks(batch);
    let mut under_way = FuturesOrdered::new();
    loop {
        while under_way.len() < IN_FLIGHT
            && let Some(chunk) = chunks.next()
        {
            under_way.push_back(timed(limit, request(client, chunk, children)?));
        }
        let Some(results) = under_way.next().await else {
            break;
        };
        for result in results? {
            match result {
                MultiReadResult::Error { err } if !matches!(err, Error::NoNode | Error::NoAuth) => return Err(err),
                result => found.push(each(result)),
            }
        }
    }
    if found.len() != paths.len() {
        let text = format!("{} answers to {} reads", found.len(), paths.len());
        return Err(Error::UnexpectedError(text));
    }
    Ok(found)
}

/// One request. It is sent here, not when the future is polled: so requests go out in the order of these calls.
fn request<'a>(
    client: &'a Client,
    paths: &[String],
    children: bool,
) -> Result<impl Future<Output = Result<Vec<MultiReadResult>, Error>> + Send + use<'a>, Error> {
    let mut reader = client.new_multi_reader();
    for path in paths {
        if children {
            reader.add_get_children(path)?;
        } else {
            reader.add_get_data(path)?;
        }
    }
    Ok(reader.commit())
}

/// The revision in the reply to reading its node: the transaction that last set it.
pub(super) fn revision_of(reply: Option<&(Vec<u8>, Stat)>) -> RegistryRevision {
    RegistryRevision(reply.map_or(0, |(_, stat)| stat.mzxid))
}

/// Everything that is there.
pub(super) struct Loaded {
    /// Everything up to it is in `entries`; they may hold later changes too.
    pub(super) revision: RegistryRevision,
    /// The entries with their data.
    pub(super) entries: Vec<(Leaf, Vec<u8>)>,
    /// Paths whose names are none of ours.
    pub(super) foreign: Vec<String>,
}

/// Reads the whole tree but for the loads and the certificates.
pub(super) async fn load(client: &Client, limit: Duration, tree: &Tree) -> Result<Loaded, Error> {
    let revision = read_data(client, limit, std::slice::from_ref(&tree.revision)).await?;
    let revision = revision_of(revision.first().and_then(Option::as_ref));
    let mut paths = vec![tree.address.clone()];
    for _ in 0..3 {
        paths = descend(client, limit, &paths).await?;
    }
    paths.append(&mut descend(client, limit, std::slice::from_ref(&tree.config)).await?);
    let mut loaded = read_leaves(client, limit, tree, paths).await?;
    loaded.revision = revision;
    Ok(loaded)
}

/// All loads that are there, those without an endpoint too.
pub(super) async fn load_loads(client: &Client, limit: Duration, tree: &Tree) -> Result<Loaded, Error> {
    let apps = descend(client, limit, std::slice::from_ref(&tree.load)).await?;
    let paths = descend(client, limit, &apps).await?;
    read_leaves(client, limit, tree, paths).await
}

/// All certificates that are there.
pub(super) async fn load_certificates(client: &Client, limit: Duration, tree: &Tree) -> Result<Loaded, Error> {
    let paths = descend(client, limit, std::slice::from_ref(&tree.certificate)).await?;
    read_leaves(client, limit, tree, paths).await
}

async fn read_leaves(client: &Client, limit: Duration, tree: &Tree, paths: Vec<String>) -> Result<Loaded, Error> {
    let mut leaves = Vec::with_capacity(paths.len());
    let mut foreign = Vec::new();
    for path in paths {
        match tree.parse(&path) {
            Some(Ok(leaf)) => leaves.push(leaf),
            _ => foreign.push(path),
        }
    }
    let data = read_entries(client, limit, tree, &leaves).await?;
    let entries = leaves.into_iter().zip(data);
    Ok(Loaded {
        revision: RegistryRevision::default(),
        // What vanished between the listing and the read is not there.
        entries: entries.filter_map(|(leaf, reply)| Some((leaf, reply?))).collect(),
        foreign,
    })
}

async fn descend(client: &Client, limit: Duration, parents: &[String]) -> Result<Vec<String>, Error> {
    let names = read_children(client, limit, parents).await?;
    let mut paths = Vec::with_capacity(names.len());
    for (parent, names) in parents.iter().zip(names) {
        paths.extend(names.into_iter().map(|name| format!("{parent}/{name}")));
    }
    Ok(paths)
}
