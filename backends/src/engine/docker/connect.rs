//! The connection to one Docker host: where it is, and a client made when it is first needed.
//!
//! Never waits without a deadline: callers bound every future made here.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use model::engine::EngineError;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use url::Url;

use super::answer::Fault;
use crate::engine::EngineOptions;

/// bollard's own time limit covers only the wait for an answer's head and counts whole seconds. Ours cover whole
/// calls, so that its limit is only the backstop for streams, where we set none on the head.
const HEAD_TIMEOUT_S: u64 = 3600;
/// How long a TCP connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a Docker engine listens.
#[derive(Clone)]
pub(crate) enum Target {
    /// The path of a unix socket.
    Unix(String),
    /// `host:port`, in the clear.
    Tcp(String),
    /// `host:port`, TLS with our client certificate. Only the given CA is trusted, not the system's: a Docker host
    /// gives root, so that a certificate from just any public CA must not do.
    Tls(String, Arc<rustls::ClientConfig>),
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => f.debug_tuple("Unix").field(path).finish(),
            Self::Tcp(address) => f.debug_tuple("Tcp").field(address).finish(),
            Self::Tls(address, _) => f.debug_tuple("Tls").field(address).finish(),
        }
    }
}

impl Target {
    /// Reads an engine URL, and for `https://` the TLS files.
    pub(crate) fn parse(url: &str, options: &EngineOptions) -> Result<Self, EngineError> {
        let bad = |rule: &str| Err(EngineError::Other(format!("engine URL {url:?} is not valid: {rule}")));
        if let Some(path) = url.strip_prefix("unix://") {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.to_owned()))
            } else {
                bad("after unix:// there must be the absolute path of a socket")
            };
        }
        if !url.starts_with("tcp://") && !url.starts_with("https://") {
            return bad("it must begin with unix://, tcp://, https:// or fake://");
        }
        // As https, so that the rules for hosts are the same for both.
        let Ok(parsed) = Url::parse(&url.replacen("tcp://", "https://", 1)) else {
            return bad("there must be a host and a port, such as tcp://10.0.0.5:2375");
        };
        // `Url` drops the scheme's default port, so that the port is looked for in the text.
        let explicit_port = url
            .trim_end_matches('/')
            .rsplit(':')
            .next()
            .and_then(|p| p.parse::<u16>().ok());
        let (Some(host), Some(port)) = (parsed.host_str().filter(|h| !h.is_empty()), explicit_port) else {
            return bad("there must be a host and a port, such as tcp://10.0.0.5:2375 (nothing after the port)");
        };
        if parsed.path() != "/"
            || parsed.query().is_some()
            || parsed.fragment().is_some()
            || !parsed.username().is_empty()
        {
            return bad("there must be nothing after the port and no user");
        }
        let address = format!("{host}:{port}");
        if url.starts_with("tcp://") {
            return Ok(Self::Tcp(address));
        }
        let Some(dir) = &options.tls_dir else {
            return bad("https:// needs the setting [engine] tls_dir, a folder with ca.pem, cert.pem and key.pem");
        };
        Ok(Self::Tls(address, Arc::new(tls_config(dir)?)))
    }

    fn connect(&self) -> Result<Docker, bollard::errors::Error> {
        let docker = match self {
            Self::Unix(path) => Docker::connect_with_unix(path, HEAD_TIMEOUT_S, API_DEFAULT_VERSION)?,
            Self::Tcp(address) => {
                let client = Client::builder(TokioExecutor::new())
                    .pool_max_idle_per_host(0)
                    .build(tcp_connector());
                Docker::connect_with_custom_transport(
                    move |request: BollardRequest| {
                        let answer = client.request(request);
                        async move { answer.await.map_err(bollard::errors::Error::from) }
                    },
                    Some(format!("http://{address}")),
                    HEAD_TIMEOUT_S,
                    API_DEFAULT_VERSION,
                )?
            }
            Self::Tls(address, config) => {
                let connector = hyper_rustls::HttpsConnectorBuilder::new()
                    .with_tls_config(rustls::ClientConfig::clone(config))
                    .https_only()
                    .enable_http1()
                    .wrap_connector(tcp_connector());
                let client = Client::builder(TokioExecutor::new())
                    .pool_max_idle_per_host(0)
                    .build(connector);
                Docker::connect_with_custom_transport(
                    move |request: BollardRequest| {
                        let answer = client.request(request);
                        async move { answer.await.map_err(bollard::errors::Error::from) }
                    },
                    Some(format!("https://{address}")),
                    HEAD_TIMEOUT_S,
                    API_DEFAULT_VERSION,
                )?
            }
        };
        Ok(docker.with_request_modifier(url_safe_credentials))
    }
}

fn tcp_connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector
}

/// bollard encodes credentials in the standard base64 alphabet, Docker reads the URL-safe one and takes what it can't
/// read for no credentials at all: some passwords would be refused as if they were wrong.
fn url_safe_credentials(mut request: BollardRequest) -> BollardRequest {
    const HEADER: &str = "x-registry-auth";
    let safe = request
        .headers()
        .get(HEADER)
        .and_then(|value| value.to_str().ok())
        .map(|value| value.replace('+', "-").replace('/', "_"));
    if let Some(mut value) = safe.and_then(|s| http::HeaderValue::from_str(&s).ok()) {
        value.set_sensitive(true);
        request.headers_mut().insert(HEADER, value);
    }
    request
}

fn tls_config(dir: &Path) -> Result<rustls::ClientConfig, EngineError> {
    let bad = |file: &str, why: String| {
        EngineError::Other(format!("TLS file {} can't be used: {why}", dir.join(file).display()))
    };
    let certificates = |file: &str| -> Result<Vec<CertificateDer<'static>>, EngineError> {
        let found = CertificateDer::pem_file_iter(dir.join(file))
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|e| bad(file, e.to_string()))?;
        if found.is_empty() {
            return Err(bad(file, "there is no certificate in it".into()));
        }
        Ok(found)
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca.pem")? {
        roots.add(certificate).map_err(|e| bad("ca.pem", e.to_string()))?;
    }
    let chain = certificates("cert.pem")?;
    let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).map_err(|e| bad("key.pem", e.to_string()))?;
    // The provider is named here: no default of the process is needed, and none is changed.
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| EngineError::Other(format!("TLS can't be set up: {e}")))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|e| bad("cert.pem", e.to_string()))
}

/// Makes the client when it is first needed, and again after the host did not answer (it may have come back as
/// another version).
#[derive(Debug)]
pub(super) struct Connection {
    target: Target,
    client: Mutex<Option<Docker>>,
}

impl Connection {
    pub(super) fn new(target: Target) -> Self {
        Self {
            target,
            client: Mutex::new(None),
        }
    }

    /// The client, its API version agreed with the host. No lock is held while the host is asked: a silent host
    /// makes each caller wait for its own deadline only.
    pub(super) async fn client(&self) -> Result<Docker, Fault> {
        let made = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(docker) = made {
            return Ok(docker);
        }
        let docker = self.target.connect()?.negotiate_version().await?;
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(docker.clone());
        Ok(docker)
    }

    pub(super) fn forget(&self) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
