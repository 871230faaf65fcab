//! Certificates of a test authority, and clients that trust it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use gateway::Config;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::*;

/// An authority, and the folder of what it has issued.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(crate) dir: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// PEM of a new certificate for these names, and of its key.
    pub(crate) fn issue(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer);
        (certificate.unwrap().pem(), key.serialize_pem())
    }

    /// Issues one into the folder.
    pub(crate) fn put(&self, file: &str, names: &[&str]) {
        let (chain, key) = self.issue(names);
        self.write(&format!("{file}.crt"), &chain);
        self.write(&format!("{file}.key"), &key);
    }

    /// Writes beside and renames, as one should.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let beside = self.dir.path().join(format!(".{file}"));
        fs::write(&beside, text).unwrap();
        fs::rename(beside, self.dir.path().join(file)).unwrap();
    }

    /// Settings of a gateway with this folder.
    pub(crate) fn config(&self) -> Config {
        Config {
            tls_listen: Some("127.0.0.1:0".parse().unwrap()),
            certificates_dir: Some(Path::new(self.dir.path()).to_owned()),
            ..config()
        }
    }

    /// A client that trusts this authority.
    pub(crate) fn client(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        Client(Arc::new(config))
    }

    /// With the versions and protocols that a browser has.
    pub(crate) fn browser(&self) -> Client {
        self.client(rustls::ALL_VERSIONS, &["http/1.1"])
    }
}

/// A TLS client; remembers sessions.
#[derive(Clone)]
pub(crate) struct Client(Arc<ClientConfig>);

impl Client {
    pub(crate) async fn connect(&self, at: SocketAddr, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(at).await?;
        self.over(stream, name).await
    }

    /// A handshake over this stream.
    pub(crate) async fn over(&self, stream: TcpStream, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let handshake = TlsConnector::from(Arc::clone(&self.0)).connect(name, stream);
        tokio::time::timeout(LIMIT, handshake).await.unwrap()
    }

    /// One GET on a connection of its own.
    pub(crate) async fn get(&self, at: SocketAddr, name: &str, path: &str) -> Answer {
        let mut stream = self.connect(at, name).await.unwrap();
        get(&mut stream, name, path).await
    }

    /// Which certificate the name gets.
    pub(crate) async fn certificate(&self, at: SocketAddr, name: &str) -> io::Result<CertificateDer<'static>> {
        let stream = self.connect(at, name).await?;
        Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone())
    }
}

/// One GET on an open connection; an answer of status 0 when it broke.
pub(crate) async fn get(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), host: &str, path: &str) -> Answer {
    let text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut got = Vec::new();
    let exchange = async {
        stream.write_all(text.as_bytes()).await?;
        stream.flush().await?;
        loop {
            let answer = Answer::parse(&got);
            let length = answer.header("content-length").and_then(|l| l.parse().ok());
            if got.windows(4).any(|w| w == b"\r\n\r\n") && length == Some(answer.body.len()) {
                return io::Result::Ok(answer);
            }
            if stream.read_buf(&mut got).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    };
    match tokio::time::timeout(LIMIT, exchange).await {
        Ok(Ok(answer)) => answer,
        _ => Answer::parse(b""),
    }
}

/// DER of the first certificate of a PEM file's text.
pub(crate) fn der(pem: &str) -> CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject as _;
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

impl Client {
    /// What it sends first to reach this name.
    pub(crate) fn hello(&self, name: &str) -> Vec<u8> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(&self.0), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }
}
