//! What every registry must do. `reader` and `writer` are two sides of the same, empty registry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::channel::mpsc::Receiver;

use crate::config::Protocol;
use crate::registry::{
    Acknowledgement, Endpoint, EntryKey, RegistryChange, RegistryEvent, RegistryReader, RegistryRevision,
    RegistrySnapshot, RegistryWriter,
};
use crate::{AppConfig, CertificateName, Figures, Load, SealedCertificate, Timestamp};

/// How long anything may take before the suite calls it missing.
const DEADLINE: Duration = Duration::from_secs(20);

/// The key of a container.
pub fn key(app: &str, version: &str, container: &str) -> EntryKey {
    EntryKey {
        app: app.parse().expect("a valid app id"),
        version: version.parse().expect("a valid version"),
        container: container.parse().expect("a valid container id"),
    }
}

/// An endpoint at 10.0.0.1.
pub fn endpoint(port: u16) -> Endpoint {
    Endpoint::new([10, 0, 0, 1].into(), port)
}

/// A configuration with one domain, of an app whose version 2 speaks something else.
pub fn config(domain: &str) -> AppConfig {
    AppConfig {
        domains: vec![domain.into()],
        protocols: BTreeMap::from([("2".parse().expect("a valid version"), Protocol::H2c)]),
        ..AppConfig::default()
    }
}

/// The load of an instance on host h1 in `region`.
pub fn load(region: &str, cpu_milli: Option<u32>) -> Load {
    Load {
        host: "h1".parse().expect("a valid host name"),
        region: region.into(),
        figures: cpu_milli.map(|cpu_milli| Figures {
            cpu_milli,
            memory_bytes: 1 << 20,
            memory_limit_bytes: 1 << 28,
            at: Timestamp::from_millis(1_700_000_000_000),
        }),
    }
}

/// What a follower makes of the events it hears: the same fold that a gateway does.
#[derive(Debug)]
pub struct Mirror {
    events: Receiver<RegistryEvent>,
    /// The content as heard.
    pub content: RegistrySnapshot,
    /// Snapshots heard.
    pub snapshots: usize,
    /// Times that the registry was told to be unreachable.
    pub disconnects: usize,
    /// Events heard.
    pub heard: usize,
    /// Whether the last thing heard was content.
    pub connected: bool,
}

impl Mirror {
    /// Starts following.
    pub fn new(reader: &dyn RegistryReader) -> Self {
        Self {
            events: reader.follow(),
            content: RegistrySnapshot::default(),
            snapshots: 0,
            disconnects: 0,
            heard: 0,
            connected: false,
        }
    }

    /// Hears one event.
    pub async fn hear(&mut self) {
        let event = self.events.next().await.expect("the registry goes on telling");
        self.heard += 1;
        match event {
            RegistryEvent::Snapshot(snapshot) => {
                self.snapshots += 1;
                self.connected = true;
                self.content = snapshot;
            }
            RegistryEvent::Changes { changes, revision, .. } => {
                assert!(self.connected, "changes without a snapshot before them");
                assert!(
                    revision >= self.content.revision,
                    "revision {revision:?} after {:?}",
                    self.content.revision
                );
                self.content.revision = revision;
                for change in changes {
                    self.content.fold(change);
                }
            }
            RegistryEvent::Disconnected(_) => {
                self.disconnects += 1;
                self.connected = false;
            }
        }
    }

    /// Hears events until `enough`.
    ///
    /// # Panics
    /// When that is not so within 20 s; `what` says what was awaited.
    pub async fn until(&mut self, what: &str, mut enough: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !enough(self) {
            let left = end.saturating_duration_since(Instant::now());
            let heard = tokio::time::timeout(left, self.hear()).await;
            assert!(
                heard.is_ok(),
                "waited {DEADLINE:?} for: {what}; heard {:?}",
                self.summary()
            );
        }
    }

    /// Hears events until everything up to `revision` is in.
    pub async fn reach(&mut self, revision: RegistryRevision) {
        self.until("the revision", |m| m.connected && m.content.revision >= revision)
            .await;
    }

    fn summary(&self) -> String {
        format!(
            "{} events, {} snapshots, {} disconnects, revision {:?}, {} endpoints, {} configs",
            self.heard,
            self.snapshots,
            self.disconnects,
            self.content.revision,
            self.content.endpoints.len(),
            self.content.configs.len()
        )
    }
}

async fn lead(writer: &dyn RegistryWriter) {
    assert!(writer.lead(DEADLINE).await.expect("a registry"), "nobody else leads");
}

/// Puts, removals and configurations are seen, and when a revision is reached everything up to it is in.
pub async fn changes_are_seen(reader: Arc<dyn RegistryReader>, writer: Arc<dyn RegistryWriter>) {
    lead(&*writer).await;
    let mut mirror = Mirror::new(&*reader);
    mirror.until("a first snapshot", |m| m.snapshots == 1).await;
    assert!(mirror.content.endpoints.is_empty() && mirror.content.configs.is_empty());

    let (a, b) = (key("hello", "1", "c1"), key("hello", "1", "c2"));
    let r1 = writer
        .apply(&[
            RegistryChange::Put(a.clone(), endpoint(20_000)),
            RegistryChange::Put(b.clone(), endpoint(20_001)),
            RegistryChange::Config(a.app.clone(), config("hello.example.com")),
        ])
        .await
        .expect("written");
    mirror.reach(r1).await;
    assert_eq!(
        mirror.content.endpoints,
        BTreeMap::from([(a.clone(), endpoint(20_000)), (b.clone(), endpoint(20_001))])
    );
    assert_eq!(mirror.content.configs.get(&a.app), Some(&config("hello.example.com")));

    let r2 = writer
        .apply(&[
            RegistryChange::Remove(a.clone()),
            RegistryChange::Put(b.clone(), endpoint(20_002)),
        ])
        .await
        .expect("written");
    assert!(r2 > r1);
    mirror.reach(r2).await;
    assert_eq!(
        mirror.content.endpoints,
        BTreeMap::from([(b.clone(), endpoint(20_002))])
    );

    // One key several times in one call: the last word counts.
    let r3 = writer
        .apply(&[
            RegistryChange::Put(a.clone(), endpoint(20_000)),
            RegistryChange::Remove(a.clone()),
            RegistryChange::Remove(b.clone()),
            RegistryChange::Put(b.clone(), endpoint(20_003)),
            RegistryChange::ConfigRemove(a.app.clone()),
        ])
        .await
        .expect("written");
    mirror.reach(r3).await;
    assert_eq!(mirror.content.endpoints, BTreeMap::from([(b, endpoint(20_003))]));
    assert!(mirror.content.configs.is_empty());
    assert_eq!(mirror.snapshots, 1, "all of this came as changes");
}

/// Loads come with, after and without their endpoints' changes; they go by themselves, and one key may have several.
pub async fn loads_are_seen(reader: Arc<dyn RegistryReader>, writer: Arc<dyn RegistryWriter>) {
    lead(&*writer).await;
    let mut mirror = Mirror::new(&*reader);
    mirror.until("a first snapshot", |m| m.snapshots == 1).await;
    let (a, b) = (key("hello", "1", "c1"), key("hello", "2", "c2"));
    writer
        .apply(&[
            RegistryChange::Put(a.clone(), endpoint(20_000)),
            RegistryChange::Put(b.clone(), endpoint(20_001)),
            RegistryChange::Load(a.load_key(), load("eu", None)),
        ])
        .await
        .expect("written");
    let r = writer
        .apply(&[
            RegistryChange::Load(b.load_key(), load("us", Some(7))),
            RegistryChange::Load(a.load_key(), load("eu", Some(1))),
            RegistryChange::Load(a.load_key(), load("eu", Some(250))),
            RegistryChange::LoadRemove(key("gone", "1", "c9").load_key()),
        ])
        .await
        .expect("written");
    mirror.reach(r).await;
    let both = BTreeMap::from([
        (a.load_key(), load("eu", Some(250))),
        (b.load_key(), load("us", Some(7))),
    ]);
    assert_eq!(mirror.content.loads, both);
    assert_eq!(mirror.content.endpoints.len(), 2, "loads are no endpoints");
    assert_eq!(mirror.snapshots, 1, "all of this came as changes");
    assert_eq!(writer.loads().await.expect("read"), both);
    // Who comes later has them with its snapshot, or soon after.
    let mut later = Mirror::new(&*reader);
    later.until("the loads", |m| m.content.loads == both).await;

    // A load that outlived its endpoint is there again with it.
    writer.apply(&[RegistryChange::Remove(b.clone())]).await.expect("gone");
    let mut third = Mirror::new(&*reader);
    third.until("a snapshot", |m| m.snapshots == 1).await;
    let r = writer.apply(&[RegistryChange::Put(b.clone(), endpoint(20_001))]).await;
    third.reach(r.expect("written")).await;
    third.until("the loads", |m| m.content.loads == both).await;

    let r = writer
        .apply(&[
            RegistryChange::Remove(b.clone()),
            RegistryChange::LoadRemove(b.load_key()),
            RegistryChange::LoadRemove(a.load_key()),
        ])
        .await
        .expect("written");
    for mirror in [&mut mirror, &mut later, &mut third] {
        mirror.reach(r).await;
        assert!(mirror.content.loads.is_empty());
        assert_eq!(
            mirror.content.endpoints,
            BTreeMap::from([(a.clone(), endpoint(20_000))])
        );
    }
    assert!(writer.loads().await.expect("read").is_empty());
}

/// A certificate that is told from others by `mark`, as large as they may be.
pub fn certificate(mark: char) -> SealedCertificate {
    SealedCertificate {
        challenge: Some(String::from(mark).repeat(crate::order::MAX_SEALED_CHALLENGE).into()),
        ..SealedCertificate::new(
            String::from(mark).repeat(crate::certificate::MAX_CHAIN),
            String::from(mark).repeat(crate::certificate::MAX_SEALED_KEY),
        )
    }
}

/// Certificates of the largest size, more than fit into one message, are heard as changes and with a snapshot; they are
/// replaced and go, and nothing else moves with them.
pub async fn certificates_are_seen(reader: Arc<dyn RegistryReader>, writer: Arc<dyn RegistryWriter>) {
    lead(&*writer).await;
    let mut mirror = Mirror::new(&*reader);
    mirror.until("a first snapshot", |m| m.snapshots == 1).await;
    let name = |n: usize| -> CertificateName { format!("shop-{n}.example.com").parse().expect("a valid name") };
    let all: BTreeMap<_, _> = (0..40).map(|n| (name(n), certificate('a'))).collect();
    let mut changes: Vec<RegistryChange> = all
        .iter()
        .map(|(name, sealed)| RegistryChange::Certificate(name.clone(), sealed.clone()))
        .collect();
    changes.push(RegistryChange::Put(key("hello", "1", "c1"), endpoint(20_000)));
    changes.push(RegistryChange::CertificateRemove(name(99)));
    let r = writer.apply(&changes).await.expect("written");
    mirror.reach(r).await;
    assert_eq!(mirror.content.certificates, all);
    assert_eq!(mirror.content.endpoints.len(), 1);
    assert_eq!(mirror.snapshots, 1, "all of this came as changes");
    assert_eq!(writer.certificates().await.expect("read"), all);
    assert!(writer.published().await.expect("read").certificates.is_empty());

    let mut later = Mirror::new(&*reader);
    later.until("a snapshot", |m| m.snapshots == 1).await;
    assert_eq!(later.content.certificates, all);
    let mut changes: Vec<RegistryChange> = (1..40).map(|n| RegistryChange::CertificateRemove(name(n))).collect();
    changes.push(RegistryChange::Certificate(name(0), certificate('b')));
    let r = writer.apply(&changes).await.expect("written");
    for mirror in [&mut mirror, &mut later] {
        mirror.reach(r).await;
        assert_eq!(
            mirror.content.certificates,
            BTreeMap::from([(name(0), certificate('b'))])
        );
        assert_eq!(mirror.content.endpoints.len(), 1);
    }
}

/// Who starts to follow hears everything that is there, in one snapshot.
pub async fn a_follower_starts_with_a_snapshot(reader: Arc<dyn RegistryReader>, writer: Arc<dyn RegistryWriter>) {
    lead(&*writer).await;
    let mut changes = Vec::new();
    for app in 0..40 {
        for container in 0..3_u16 {
            let key = key(&format!("app{app}"), "1", &format!("c{container}"));
            changes.push(RegistryChange::Put(key, endpoint(20_000 + container)));
        }
        let app = format!("app{app}").parse().expect("valid");
        changes.push(RegistryChange::Config(app, config("a.example.com")));
    }
    let revision = writer.apply(&changes).await.expect("written");
    for _ in 0..2 {
        let mut mirror = Mirror::new(&*reader);
        mirror.until("a snapshot", |m| m.snapshots == 1).await;
        assert!(mirror.content.revision >= revision);
        assert_eq!(mirror.content.endpoints.len(), 120);
        assert_eq!(mirror.content.configs.len(), 40);
    }
}

/// Writing the same again changes nothing; removing what is not there is no error; an empty write is none.
pub async fn apply_is_idempotent(reader: Arc<dyn RegistryReader>, writer: Arc<dyn RegistryWriter>) {
    lead(&*writer).await;
    let mut mirror = Mirror::new(&*reader);
    let a = key("hello", "1", "c1");
    let changes = [
        RegistryChange::Put(a.clone(), endpoint(20_000)),
        RegistryChange::Remove(key("other", "2", "nothere")),
        RegistryChange::Config(a.app.clone(), config("hello.example.com")),
        RegistryChange::ConfigRemove("nothere".parse().expect("valid")),
    ];
    let first = writer.apply(&changes).await.expect("written");
    let second = writer.apply(&changes).await.expect("written again");
    assert!(second >= first);
    assert!(writer.apply(&[]).await.expect("nothing to write") >= second);
    mirror.reach(second).await;
    let published = writer.published().await.expect("read");
    assert_eq!(published.endpoints, BTreeMap::from([(a.clone(), endpoint(20_000))]));
    assert_eq!(mirror.content.endpoints, published.endpoints);
    assert_eq!(mirror.content.configs, published.configs);
    // A withdrawal that was already done is acknowledged like one that was not.
    writer.apply(&[RegistryChange::Remove(a.clone())]).await.expect("gone");
    let again = writer.apply(&[RegistryChange::Remove(a)]).await.expect("gone already");
    mirror.reach(again).await;
    assert!(mirror.content.endpoints.is_empty());
}

/// An acknowledgement is seen by the writer, the newest one counts, and it goes when the gateway goes.
pub async fn acknowledgements_come_and_go(reader: Arc<dyn RegistryReader>, writer: Arc<dyn RegistryWriter>) {
    lead(&*writer).await;
    assert!(writer.acknowledgements().await.expect("read").is_empty());
    let mut mirror = Mirror::new(&*reader);
    mirror.until("a snapshot", |m| m.snapshots == 1).await;
    let change = RegistryChange::Remove(key("hello", "1", "c1"));
    let revision = writer.apply(&[change]).await.expect("written");
    mirror.reach(revision).await;
    for draining in [vec!["c1".parse().expect("valid")], vec![]] {
        let ack = Acknowledgement {
            applied: mirror.content.revision,
            draining,
        };
        reader.acknowledge("gateway-1", &ack).await.expect("acknowledged");
        let seen = writer.acknowledgements().await.expect("read");
        assert_eq!(seen, BTreeMap::from([("gateway-1".to_owned(), ack)]));
        assert!(seen["gateway-1"].applied >= revision);
    }
    for bad in ["", "a/b", "..", "a b"] {
        let ack = Acknowledgement::default();
        assert!(reader.acknowledge(bad, &ack).await.is_err(), "{bad:?}");
    }
    drop(mirror);
    drop(reader);
    let end = Instant::now() + DEADLINE;
    while !writer.acknowledgements().await.expect("read").is_empty() {
        assert!(
            Instant::now() < end,
            "the gateway has gone, its acknowledgement has not"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A reader that does not listen hears the state when it does, not the history.
pub async fn a_lagging_reader_hears_the_state(reader: Arc<dyn RegistryReader>, writer: Arc<dyn RegistryWriter>) {
    lead(&*writer).await;
    let mut mirror = Mirror::new(&*reader);
    mirror.until("a snapshot", |m| m.snapshots == 1).await;
    let mut last = RegistryRevision::default();
    for round in 0..120_u16 {
        let changes: Vec<RegistryChange> = (0..100)
            .map(|i| RegistryChange::Put(key("hello", "1", &format!("c{i}")), endpoint(20_000 + round)))
            .collect();
        last = writer.apply(&changes).await.expect("written");
    }
    let before = mirror.heard;
    mirror.reach(last).await;
    assert!(mirror.heard - before <= 40, "{} events", mirror.heard - before);
    assert_eq!(mirror.content.endpoints.len(), 100);
    assert!(mirror.content.endpoints.values().all(|e| *e == endpoint(20_119)));
}

/// Replacing an endpoint in one call never shows the app without one, whatever the order in the call.
pub async fn a_replacement_leaves_no_gap(reader: Arc<dyn RegistryReader>, writer: Arc<dyn RegistryWriter>) {
    lead(&*writer).await;
    let container = |i: u16| key("hello", if i.is_multiple_of(2) { "1" } else { "2" }, &format!("c{i}"));
    let put = |i: u16| RegistryChange::Put(container(i), endpoint(20_000 + i));
    writer.apply(&[put(0)]).await.expect("written");
    let mut mirror = Mirror::new(&*reader);
    mirror.until("a snapshot", |m| m.snapshots == 1).await;
    let mut last = RegistryRevision::default();
    for i in 1..=200 {
        let (new, old) = (put(i), RegistryChange::Remove(container(i - 1)));
        let changes = if i.is_multiple_of(3) { [old, new] } else { [new, old] };
        last = writer.apply(&changes).await.expect("written");
        if i.is_multiple_of(5) {
            // Let the reader fall behind now and then, and catch up.
            mirror
                .until("anything", |m| m.content.revision > RegistryRevision(0))
                .await;
            tokio::task::yield_now().await;
        }
    }
    mirror
        .until("the last replacement", |m| {
            // Within one event the order of the changes does not show; between events it does.
            assert!(!m.content.endpoints.is_empty(), "a moment without an endpoint");
            m.content.revision >= last
        })
        .await;
    assert_eq!(
        mirror.content.endpoints,
        BTreeMap::from([(container(200), endpoint(20_200))])
    );
}

/// Whatever a reader has heard when it hears revision R: everything that was written up to R is in it.
pub async fn a_revision_is_complete(reader: Arc<dyn RegistryReader>, writer: Arc<dyn RegistryWriter>) {
    const WRITES: u16 = 1_500;
    lead(&*writer).await;
    let mut mirror = Mirror::new(&*reader);
    mirror.until("a snapshot", |m| m.snapshots == 1).await;
    let writing = tokio::spawn(async move {
        let mut written = Vec::new();
        for i in 1..=WRITES {
            let key = key("hello", "1", &format!("c{}", i * 7 % 20));
            // Every third write withdraws, and no port is written twice.
            let port = (!i.is_multiple_of(3)).then(|| endpoint(i));
            let change = match port {
                Some(endpoint) => RegistryChange::Put(key.clone(), endpoint),
                None => RegistryChange::Remove(key.clone()),
            };
            let revision = writer.apply(&[change]).await.expect("written");
            written.push((revision, key, port));
        }
        written
    });
    let mut heard = Vec::new();
    let end = Instant::now() + 3 * DEADLINE;
    while !writing.is_finished() || heard.is_empty() {
        if tokio::time::timeout(Duration::from_millis(50), mirror.hear())
            .await
            .is_ok()
        {
            heard.push(mirror.content.clone());
        }
        assert!(Instant::now() < end, "the writer is too slow");
    }
    let written = writing.await.expect("the writer did not panic");
    mirror.reach(written[written.len() - 1].0).await;
    heard.push(mirror.content.clone());
    for content in &heard {
        for n in 0..20 {
            let key = key("hello", "1", &format!("c{n}"));
            let history: Vec<_> = written.iter().filter(|(_, k, _)| *k == key).collect();
            let done = history
                .iter()
                .filter(|(revision, ..)| *revision <= content.revision)
                .count();
            let seen = content.endpoints.get(&key).copied();
            let before_all = done == 0 && seen.is_none();
            let allowed = history[done.saturating_sub(1)..]
                .iter()
                .any(|(.., endpoint)| *endpoint == seen);
            assert!(
                before_all || allowed,
                "at {:?} {key:?} is still {seen:?}: older than {:?}",
                content.revision,
                history[done.saturating_sub(1)]
            );
        }
    }
    assert_eq!(mirror.content.revision, written[written.len() - 1].0);
}
