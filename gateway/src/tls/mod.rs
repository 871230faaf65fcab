//! TLS towards clients: the handshake by the certificate that the client's server name finds, and certificates that change
//! while connections are open. A change concerns new handshakes only.

mod certificates;
mod folder;
pub(crate) mod hello;
mod keeper;
mod registered;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ::certificates::ACME_TLS;
use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{HandshakeKind, PeerIncompatible, ProtocolVersion, ServerConfig};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

pub(crate) use certificates::{Certificate, Certificates};
pub(crate) use keeper::{Sources, keep};
use registered::Sealed;

use crate::Error;
use crate::client::Shown;
use crate::metrics::WorkerStats;
use hello::{Hello, NoHello};

/// Sessions remembered for clients of TLS 1.2 that take no tickets; a session takes about 300 bytes.
const SESSIONS: usize = 10_000;

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
    /// Certificates found that could not be used.
    pub(crate) bad_pairs: AtomicU64,
    /// All certificates of the registry; `None`: nothing was heard yet.
    heard: watch::Sender<Option<Sealed>>,
    /// Cancelled once what was heard first serves.
    pub(crate) taken: CancellationToken,
}

/// Gives each handshake the certificate of its server name.
#[derive(Debug)]
struct Resolver(Arc<ArcSwap<Certificates>>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        self.0.load().find(name.as_deref()).map(|found| Arc::clone(found.key()))
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
            heard: watch::Sender::new(None),
            taken: CancellationToken::new(),
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

    /// Takes all certificates of the registry, to be served soon.
    pub(crate) fn hear(&self, sealed: Sealed) {
        self.heard.send_replace(Some(sealed));
    }

    /// All certificates of the registry, as heard last.
    pub(crate) fn heard(&self) -> Option<Sealed> {
        self.heard.borrow().clone()
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

/// Goes on with the handshake after the first message. Also whom the client takes the gateway for, if it has named somebody.
pub(crate) async fn finish(
    tls: &Tls,
    stats: &WorkerStats,
    stream: TcpStream,
    hello: Hello,
) -> Result<(Box<TlsStream<TcpStream>>, Option<Shown>), Failure> {
    let name = hello.server_name();
    let Some(certificate) = tls.certificates.load().find(name.as_deref()).cloned() else {
        let _ = stream.try_write(UNKNOWN_NAME);
        return Err(Failure::UnknownName);
    };
    let Hello { raw, accepted } = hello;
    drop(raw);
    let handshake = StartHandshake::from_parts(accepted, stream).into_stream(Arc::clone(&tls.config));
    let stream = handshake.await.map_err(|e| failure(&e))?;
    let connection = stream.get_ref().1;
    let newest = connection.protocol_version() == Some(ProtocolVersion::TLSv1_3);
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    stats.tls_handshakes[usize::from(newest) * 2 + usize::from(resumed)].add(1);
    Ok((Box::new(stream), name.map(|name| Shown { name, certificate })))
}

/// Shakes hands with an authority that wants to see this certificate; the handshake is all it wants (RFC 8737 section 3).
pub(crate) async fn prove(stream: TcpStream, hello: Hello, certificate: &CertifiedKey) -> Result<(), Failure> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| reason(&e))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate.clone())));
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    let handshake = StartHandshake::from_parts(hello.accepted, stream).into_stream(Arc::new(config));
    let mut stream = handshake.await.map_err(|e| failure(&e))?;
    // It has seen what it wanted; whether it hears the end does not matter.
    let _ = stream.shutdown().await;
    Ok(())
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
