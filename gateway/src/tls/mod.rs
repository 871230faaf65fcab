//! TLS towards clients: the handshake by the certificate that the client's server name finds, and certificates that change
//! while connections are open. A change concerns new handshakes only.

mod certificates;
mod folder;
pub(crate) mod hello;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::{HandshakeKind, PeerIncompatible, ProtocolVersion, ServerConfig};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

pub(crate) use certificates::Certificates;
pub(crate) use folder::Folder;

use crate::Error;
use crate::metrics::WorkerStats;
use hello::{Hello, NoHello};

/// How often the folder is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Sessions remembered for clients of TLS 1.2 that take no tickets; a session takes about 300 bytes.
const SESSIONS: usize = 10_000;
/// Certificates that expire within this are warned of.
const SOON_S: i64 = 14 * 86_400;
/// How often they are warned of.
const WARN_EVERY: Duration = Duration::from_secs(86_400);
/// Most warnings at once.
const WARNINGS: usize = 20;

/// HTTP/2 by its name in the handshake (RFC 9113 3.2).
pub(crate) const HTTP2: &[u8] = b"h2";

macro_rules! failures {
    ($($(#[$doc:meta])* $name:ident = $code:literal),+ $(,)?) => {
        /// Why a handshake failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Failure { $($(#[$doc])* $name),+ }

        impl Failure {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),+];

            /// Stable name: the metric's label.
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code),+ }
            }
        }
    };
}

failures! {
    /// What came is no TLS, or wrong.
    Bad = "bad_message",
    /// HTTP without TLS.
    PlainHttp = "plain_http",
    /// No certificate has the client's server name.
    UnknownName = "unknown_name",
    /// The client speaks no version from 1.2 on.
    Version = "version",
    /// No cipher, key exchange, signature or application protocol in common.
    Incompatible = "incompatible",
    /// The client refused by an alert, such as for a certificate that it does not trust.
    Refused = "refused_by_client",
    /// The client left.
    Closed = "closed",
    Timeout = "timeout",
}

/// The kinds of finished handshakes: version, and whether a session was taken up again.
pub(crate) const KINDS: [(&str, &str); 4] = [("1.2", "false"), ("1.2", "true"), ("1.3", "false"), ("1.3", "true")];

/// What all workers share of TLS.
#[derive(Debug)]
pub(crate) struct Tls {
    config: Arc<ServerConfig>,
    certificates: Arc<ArcSwap<Certificates>>,
    /// Pairs found that could not be used.
    pub(crate) bad_pairs: AtomicU64,
}

/// Gives each handshake the certificate of its server name.
#[derive(Debug)]
struct Resolver(Arc<ArcSwap<Certificates>>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        self.0.load().find(name.as_deref()).cloned()
    }
}

impl Tls {
    pub(crate) fn new() -> Result<Self, Error> {
        let broken = |e: rustls::Error| Error::Start(format!("TLS: {e}"));
        let certificates = Arc::new(ArcSwap::default());
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(broken)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Resolver(Arc::clone(&certificates))));
        config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
        // Its keys are made here, never leave memory, and change every 6 hours.
        config.ticketer = ring::Ticketer::new().map_err(broken)?;
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        Ok(Self {
            config: Arc::new(config),
            certificates,
            bad_pairs: AtomicU64::new(0),
        })
    }

    /// The certificates that serve.
    pub(crate) fn certificates(&self) -> Arc<Certificates> {
        self.certificates.load_full()
    }

    /// Whether a certificate names this host, in lower case.
    pub(crate) fn names(&self, host: &str) -> bool {
        self.certificates.load().names(host)
    }

    /// Looks at the folder and serves what it holds.
    fn look(&self, folder: &mut Folder) -> io::Result<bool> {
        let look = folder.look(&ring_provider())?;
        for (name, why) in &look.bad {
            self.bad_pairs.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(certificate = %name, folder = %folder.path().display(), reason = %why,
                "certificate can't be used; what served before goes on");
        }
        if look.changed {
            let table = Certificates::new(folder.certificates());
            tracing::info!(certificates = table.all().len(), "certificates loaded");
            self.certificates.store(Arc::new(table));
        }
        Ok(look.changed)
    }

    /// Loads the folder for the first time.
    ///
    /// # Errors
    /// [`Error::Config`] when it can't be read; bad pairs in it are no error.
    pub(crate) fn load(&self, path: &Path) -> Result<Folder, Error> {
        let mut folder = Folder::new(path.to_owned());
        self.look(&mut folder)
            .map_err(|e| Error::Config(format!("gateway.certificates_dir = {path:?} can't be read: {e}")))?;
        if self.certificates.load().all().is_empty() {
            tracing::warn!(folder = %path.display(), "no certificate yet: every TLS handshake is refused");
        }
        Ok(folder)
    }
}

fn ring_provider() -> CryptoProvider {
    ring::default_provider()
}

/// Keeps the certificates those of the folder: looks every 2 seconds, and at once when `reload` is notified; until `stop`.
pub(crate) async fn keep(tls: Arc<Tls>, mut folder: Folder, reload: Arc<Notify>, stop: CancellationToken) {
    let mut warned: Option<Instant> = None;
    let mut readable = true;
    loop {
        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            warned = Some(Instant::now());
            warn_of_expiry(&tls.certificates());
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = reload.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let looking = Arc::clone(&tls);
        let looked = tokio::task::spawn_blocking(move || {
            let result = looking.look(&mut folder);
            (folder, result)
        });
        let Ok((back, result)) = looked.await else {
            tracing::error!("the certificates' folder is not looked at any more");
            return;
        };
        folder = back;
        match result {
            Ok(changed) => {
                readable = true;
                if changed {
                    warned = None;
                }
            }
            Err(error) if readable => {
                readable = false;
                tracing::warn!(%error, folder = %folder.path().display(), "the certificates' folder can't be read; those loaded go on");
            }
            Err(_) => {}
        }
    }
}

fn warn_of_expiry(certificates: &Certificates) {
    let soon = certificates.all().iter().take_while(|c| c.seconds_left() < SOON_S);
    for certificate in soon.take(WARNINGS) {
        let left = certificate.seconds_left();
        let name = &certificate.name;
        if left < 0 {
            tracing::warn!(certificate = %name, days_ago = -left / 86_400, "certificate has expired");
        } else {
            tracing::warn!(certificate = %name, days_left = left / 86_400, "certificate expires soon");
        }
    }
}

/// Reads the client's first message. On failure the client has been told what there is to tell.
pub(crate) async fn first(stream: &mut TcpStream, before: Vec<u8>) -> Result<Hello, Failure> {
    hello::read(stream, before).await.map_err(|no| match no {
        NoHello::Closed => Failure::Closed,
        NoHello::PlainHttp => Failure::PlainHttp,
        NoHello::Bad => Failure::Bad,
        NoHello::Refused(error, alert) => {
            let failure = reason(&error);
            let alert = if failure == Failure::Version {
                OLD_VERSION
            } else {
                &alert
            };
            // Best effort: whoever sends such things may not listen.
            let _ = stream.try_write(alert);
            failure
        }
    })
}

/// The fatal alert `unrecognized_name` (RFC 6066 3) in a record of its own.
const UNKNOWN_NAME: &[u8] = &[0x15, 3, 3, 0, 2, 2, 112];

/// The fatal alert `protocol_version`.
const OLD_VERSION: &[u8] = &[0x15, 3, 1, 0, 2, 2, 70];

/// Goes on with the handshake after the first message.
pub(crate) async fn finish(
    tls: &Tls,
    stats: &WorkerStats,
    stream: TcpStream,
    hello: Hello,
) -> Result<Box<TlsStream<TcpStream>>, Failure> {
    let name = hello.server_name();
    if tls.certificates.load().find(name.as_deref()).is_none() {
        let _ = stream.try_write(UNKNOWN_NAME);
        return Err(Failure::UnknownName);
    }
    let Hello { raw, accepted } = hello;
    drop(raw);
    let handshake = StartHandshake::from_parts(accepted, stream).into_stream(Arc::clone(&tls.config));
    let stream = handshake.await.map_err(|e| failure(&e))?;
    let connection = stream.get_ref().1;
    let newest = connection.protocol_version() == Some(ProtocolVersion::TLSv1_3);
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    stats.tls_handshakes[usize::from(newest) * 2 + usize::from(resumed)].add(1);
    Ok(Box::new(stream))
}

/// What made a handshake fail.
fn failure(error: &io::Error) -> Failure {
    match error.get_ref().and_then(|e| e.downcast_ref()) {
        Some(error) => reason(error),
        None => Failure::Closed,
    }
}

fn reason(error: &rustls::Error) -> Failure {
    use rustls::Error as E;
    match error {
        E::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired
            // Every client of 1.2 sends it (RFC 5246 7.4.1.4.1), none of those before.
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired,
        ) => Failure::Version,
        E::PeerIncompatible(_) | E::NoApplicationProtocol => Failure::Incompatible,
        E::AlertReceived(_) => Failure::Refused,
        _ => Failure::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_its_own_name() {
        let names: std::collections::BTreeSet<_> = Failure::ALL.iter().map(|f| f.as_str()).collect();
        assert_eq!(names.len(), Failure::ALL.len());
        for (i, failure) in Failure::ALL.iter().enumerate() {
            assert_eq!(*failure as usize, i);
        }
    }

    #[test]
    fn failures_are_told_apart() {
        let of = |e: rustls::Error| failure(&io::Error::new(io::ErrorKind::InvalidData, e));
        assert_eq!(of(PeerIncompatible::Tls12NotOfferedOrEnabled.into()), Failure::Version);
        assert_eq!(
            of(PeerIncompatible::NoCipherSuitesInCommon.into()),
            Failure::Incompatible
        );
        assert_eq!(of(rustls::Error::NoApplicationProtocol), Failure::Incompatible);
        assert_eq!(
            of(rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA)),
            Failure::Refused
        );
        assert_eq!(of(rustls::Error::DecryptError), Failure::Bad);
        assert_eq!(failure(&io::ErrorKind::ConnectionReset.into()), Failure::Closed);
    }
}
