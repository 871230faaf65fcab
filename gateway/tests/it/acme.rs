//! Proof to authorities that a domain is one's own: answered from the moment of the acknowledgement, before everything that an
//! app may want, and by nobody else than those who were asked.

use std::sync::Arc;

use certificates::SealingKeys;
use gateway::Config;
use model::config::{Limits, Protocol};
use model::order::about_challenge;
use model::registry::RegistryChange;
use model::{AppConfig, CertificateName, SealedCertificate};
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::*;
use crate::tls_support::Authority;

const PATH: &str = "/.well-known/acme-challenge/token";
const DOMAIN: &str = "shop.example.com";

/// Settings of a gateway, with and without TLS, and the keys by which a scheduler seals.
fn settings(tls: bool) -> (Config, SealingKeys, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("certificates.key");
    SealingKeys::ensure(&path).unwrap();
    let keys = SealingKeys::load(&path).unwrap();
    let config = Config {
        tls_listen: tls.then(|| "127.0.0.1:0".parse().unwrap()),
        certificates_key_file: Some(path),
        ..config()
    };
    (config, keys, dir)
}

/// The domain's challenge beside `certificate`.
pub(crate) fn challenge(
    keys: &SealingKeys,
    domain: &str,
    text: &str,
    certificate: SealedCertificate,
) -> RegistryChange {
    let name: CertificateName = domain.parse().unwrap();
    let sealed = keys.seal(&about_challenge(&name), text.as_bytes()).unwrap();
    let challenge = Some(sealed.into());
    RegistryChange::Certificate(
        name,
        SealedCertificate {
            challenge,
            ..certificate
        },
    )
}

pub(crate) fn none() -> SealedCertificate {
    SealedCertificate::new("", "")
}

fn gone() -> RegistryChange {
    RegistryChange::CertificateRemove(DOMAIN.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn http_01_is_answered_at_once_for_any_app_and_none() {
    let (config, keys, _dir) = settings(false);
    let app = Recorder::start("one").await;
    // An app that refuses everybody and would send them elsewhere.
    let strict = AppConfig {
        domains: vec![DOMAIN.into()],
        redirect_https: true,
        limits: Limits {
            deny: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            ..Limits::default()
        },
        ..AppConfig::default()
    };
    let config = Config {
        deny: vec!["127.0.0.0/8".parse().unwrap()],
        ..config
    };
    let gateway = Gateway::hello_with(config, &[app.at], strict).await;
    assert_eq!(gateway.get(DOMAIN, PATH).await.status, 403);
    for (revision, domain) in [(2, DOMAIN), (3, "nobodys.example.com")] {
        let change = challenge(&keys, domain, "token.thumb", none());
        gateway.tell(changes(revision, vec![change]), revision).await;
        let answer = gateway.get(domain, PATH).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "token.thumb"));
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        assert_eq!(answer.reason(), "acme_challenge");
        let upper = gateway.get(&format!("{}:80", domain.to_uppercase()), PATH).await;
        assert_eq!(upper.body, "token.thumb");
    }
    for (host, path) in [
        (DOMAIN, "/.well-known/acme-challenge/other"),
        (DOMAIN, "/"),
        ("hello.localhost", PATH),
    ] {
        assert_eq!(gateway.get(host, path).await.status, 403, "{host} {path}");
    }
    assert_eq!(app.count(), 0);
    gateway.tell(changes(4, vec![gone()]), 4).await;
    assert_eq!(gateway.get(DOMAIN, PATH).await.status, 403);
    assert_eq!(gateway.get("nobodys.example.com", PATH).await.body, "token.thumb");
    // A resync that holds none ends all.
    gateway.tell(snapshot(5, &[], &[]), 5).await;
    assert_eq!(gateway.get("nobodys.example.com", PATH).await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_answers_its_own_challenges_where_the_platform_has_none() {
    let (config, keys, _dir) = settings(false);
    let app = Recorder::start("one").await;
    let gateway = Gateway::hello_with(config, &[app.at], AppConfig::default()).await;
    assert_eq!(gateway.get("hello.localhost", PATH).await.body, "one");
    // Sealed by nobody whom this gateway knows, or about another domain.
    let stranger = SealingKeys::parse(&"7".repeat(64)).unwrap();
    let other = keys
        .seal(&about_challenge(&"a.test".parse().unwrap()), b"token.thumb")
        .unwrap();
    let moved = SealedCertificate {
        challenge: Some(other.into()),
        ..none()
    };
    let host: CertificateName = "hello.localhost".parse().unwrap();
    for (revision, bad) in (2..).zip([
        challenge(&stranger, host.as_str(), "token.thumb", none()),
        RegistryChange::Certificate(host.clone(), moved),
        challenge(&keys, host.as_str(), "no authorization", none()),
    ]) {
        gateway.tell(changes(revision, vec![bad]), revision).await;
        assert_eq!(gateway.get("hello.localhost", PATH).await.body, "one");
    }
}

/// A client that looks at what it is shown, as an authority does.
#[derive(Debug)]
struct Anything(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // The library reads no certificate with a critical extension that it does not know.
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // The library reads no certificate with a critical extension that it does not know.
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificate that a client with these protocols is shown; what is said after the handshake is waited for.
async fn shown(gateway: &Gateway, domain: &str, alpn: &[&str]) -> std::io::Result<CertificateDer<'static>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything(provider)))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(gateway.https.unwrap()).await?;
    let name = ServerName::try_from(domain.to_owned()).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let connection = stream.get_ref().1;
    assert_eq!(connection.alpn_protocol(), alpn.first().map(|p| p.as_bytes()));
    let certificate = connection.peer_certificates().unwrap()[0].clone();
    if alpn == ["acme-tls/1"] {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await?;
        assert!(rest.is_empty(), "the handshake is the answer");
    }
    Ok(certificate)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_alpn_01_is_answered_by_the_handshake_and_browsers_get_their_certificate() {
    let (config, keys, _dir) = settings(true);
    let app = Recorder::start("one").await;
    let own = AppConfig {
        domains: vec![DOMAIN.into()],
        protocol: Protocol::Http,
        ..AppConfig::default()
    };
    let gateway = Gateway::hello_with(config, &[app.at], own).await;
    assert!(shown(&gateway, DOMAIN, &["acme-tls/1"]).await.is_err());
    let change = challenge(&keys, DOMAIN, "token.thumb", none());
    gateway.tell(changes(2, vec![change]), 2).await;
    let proof = shown(&gateway, DOMAIN, &["acme-tls/1"]).await.unwrap();
    let wanted = [&[4, 32][..], &Sha256::digest(b"token.thumb")].concat();
    assert!(proof.windows(34).any(|w| w == wanted), "the extension of RFC 8737");
    // By http-01 too, and nobody else is shown it.
    assert_eq!(gateway.get(DOMAIN, PATH).await.body, "token.thumb");
    assert!(shown(&gateway, DOMAIN, &["http/1.1"]).await.is_err());
    assert!(shown(&gateway, "other.example.com", &["acme-tls/1"]).await.is_err());

    // Beside a certificate, which serves on.
    let authority = Authority::new();
    let (chain, key) = authority.issue(&[DOMAIN]);
    let name: CertificateName = DOMAIN.parse().unwrap();
    let key = keys
        .seal(&model::certificate::about_key(&name), key.as_bytes())
        .unwrap();
    let certificate = SealedCertificate::new(chain.as_str(), key);
    let change = challenge(&keys, DOMAIN, "token.thumb2", certificate.clone());
    gateway.tell(changes(3, vec![change]), 3).await;
    let proof = shown(&gateway, DOMAIN, &["acme-tls/1"]).await.unwrap();
    let serving = crate::tls_support::der(&chain);
    assert_ne!(proof, serving);
    let deadline = std::time::Instant::now() + LIMIT;
    while shown(&gateway, DOMAIN, &["http/1.1"]).await.ok().as_ref() != Some(&serving) {
        assert!(std::time::Instant::now() < deadline, "the certificate serves");
    }
    // Who offers more than the one protocol is no authority (RFC 8737 section 3).
    assert_eq!(
        shown(&gateway, DOMAIN, &["http/1.1", "acme-tls/1"]).await.unwrap(),
        serving
    );
    gateway
        .tell(changes(4, vec![RegistryChange::Certificate(name, certificate)]), 4)
        .await;
    assert!(shown(&gateway, DOMAIN, &["acme-tls/1"]).await.is_err());
    assert_eq!(shown(&gateway, DOMAIN, &["http/1.1"]).await.unwrap(), serving);
}
