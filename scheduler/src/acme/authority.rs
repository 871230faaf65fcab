//! The authority: the platform's account there, and how it is talked to. Every answer has a deadline and a largest size; when it
//! asks for patience it gets it.

use std::error::Error as StdError;
use std::fs;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use certificates::SealingKeys;
use http_body_util::{BodyExt as _, Full};
use instant_acme::{
    Account, AccountCredentials, BodyWrapper, BytesResponse, Error, ExternalAccountKey, HttpClient, NewAccount, Problem,
};
use model::order::about_account;
use model::store::{Store, StoreError};
use model::{EventKind, NewEvent, Timestamp};
use tokio::sync::Mutex;

use super::config::AcmeConfig;

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Largest answer that is read; a chain has some KiB.
const LARGEST: usize = 1 << 20;
/// Longest time for which an authority that asks for patience is left alone.
const LONGEST_REST: Duration = Duration::from_secs(86_400);
/// Largest file of roots or of a key that is read.
const LARGEST_FILE: u64 = 1 << 20;

/// Why the authority was of no use.
#[derive(Debug)]
pub(super) enum Failed {
    /// It has refused: this order has come to its end.
    Refused(String),
    /// It, or something on the way, is out of order: the order may go on later.
    Trouble(String),
    /// The store did not answer.
    Store(StoreError),
    /// Somebody else has the order, or has forgotten it.
    Lost,
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(problem) => Self::Refused(said(&problem)),
            other => Self::Trouble(causes(&other)),
        }
    }
}

/// What an authority says, and by which name it is known (RFC 8555 section 6.7).
pub(super) fn said(problem: &Problem) -> String {
    let text = |detail: &Option<String>, kind: &Option<String>| {
        let detail = detail.as_deref().unwrap_or("no reason given");
        let kind = kind.as_ref().map_or_else(String::new, |kind| format!(" ({kind})"));
        format!("{detail}{kind}")
    };
    let parts = problem.subproblems.iter().map(|p| text(&p.detail, &p.r#type));
    let all: Vec<String> = std::iter::once(text(&problem.detail, &problem.r#type))
        .chain(parts)
        .collect();
    all.join("; ")
}

/// An error with all that lies behind it.
fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// The authority of the configuration.
#[derive(Debug)]
pub(super) struct Authority {
    directory: String,
    contacts: Vec<String>,
    external: Option<(String, Vec<u8>)>,
    http: Http,
    store: Arc<dyn Store>,
    keys: Arc<SealingKeys>,
    /// The account as it is stored, and opened.
    account: Mutex<Option<Opened>>,
}

/// An account, and the sealed text that is stored of it.
struct Opened {
    sealed: String,
    account: Account,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("id", &self.account.id())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes ready to talk to it; asks nothing yet.
    ///
    /// # Errors
    /// One sentence that names the setting.
    pub(super) fn new(config: &AcmeConfig, store: Arc<dyn Store>, keys: Arc<SealingKeys>) -> Result<Self, String> {
        // Installing it twice is no error: there is only this one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none());
        if let Some(path) = &config.root_certificate_file {
            let pem = read(path).map_err(|e| format!("acme.root_certificate_file: {e}"))?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default();
            if roots.is_empty() {
                let path = path.display();
                return Err(format!(
                    "acme.root_certificate_file: {path} holds no certificate as PEM"
                ));
            }
            client = client.tls_certs_only(roots);
        }
        let client = client
            .build()
            .map_err(|e| format!("acme: the HTTP client can't be set up: {}", causes(&e)))?;
        let external = match (&config.external_account_id, &config.external_account_key_file) {
            (Some(id), Some(path)) => {
                let text = read(path).map_err(|e| format!("acme.external_account_key_file: {e}"))?;
                let text = String::from_utf8_lossy(&text);
                let key = URL_SAFE_NO_PAD.decode(text.trim().trim_end_matches('='));
                let key =
                    key.map_err(|_| format!("acme.external_account_key_file: {} is no base64url", path.display()))?;
                Some((id.clone(), key))
            }
            _ => None,
        };
        Ok(Self {
            directory: config.directory.clone().unwrap_or_default(),
            contacts: config.contacts.iter().map(|c| format!("mailto:{c}")).collect(),
            external,
            http: Http {
                client,
                rest: Arc::default(),
            },
            store,
            keys,
            account: Mutex::default(),
        })
    }

    /// Until when it wants to be left alone.
    pub(super) fn rests_until(&self) -> Timestamp {
        Timestamp::from_millis(self.http.rest.load(Ordering::Relaxed))
    }

    /// The platform's account, made at first use.
    pub(super) async fn account(&self) -> Result<Account, Failed> {
        let mut known = self.account.lock().await;
        if let Some(opened) = &*known {
            return Ok(opened.account.clone());
        }
        let opened = match self.store.acme_account(&self.directory).await? {
            Some(sealed) => self.open(sealed).await?,
            None => self.make().await?,
        };
        Ok(known.insert(opened).account.clone())
    }

    /// What was learned of it is learned anew next time: its addresses may have changed.
    pub(super) async fn forget(&self, failed: &Failed) {
        let Some(opened) = self.account.lock().await.take() else {
            return;
        };
        // It has lost the account: another is made.
        if matches!(failed, Failed::Refused(why) if why.contains("urn:ietf:params:acme:error:accountDoesNotExist")) {
            let gone = self.store.acme_account_forget(&self.directory, &opened.sealed).await;
            if let Err(error) = gone {
                tracing::warn!(%error, "an account that the authority does not know can't be forgotten");
            }
        }
    }

    async fn open(&self, sealed: String) -> Result<Opened, Failed> {
        let unreadable = |e: String| Failed::Trouble(format!("the account's key can't be opened: {e}"));
        let about = about_account(&self.directory);
        let text = self.keys.open(&about, &sealed).map_err(unreadable)?;
        let credentials: AccountCredentials = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
        let builder = Account::builder_with_http(Box::new(self.http.clone()));
        let account = builder.from_credentials(credentials).await?;
        Ok(Opened { sealed, account })
    }

    async fn make(&self) -> Result<Opened, Failed> {
        let contacts: Vec<&str> = self.contacts.iter().map(String::as_str).collect();
        let new = NewAccount {
            contact: &contacts,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let external = self.external.as_ref();
        let external = external.map(|(id, key)| ExternalAccountKey::new(id.clone(), key));
        let builder = Account::builder_with_http(Box::new(self.http.clone()));
        let made = builder.create(&new, self.directory.clone(), external.as_ref()).await;
        let (account, credentials) = made?;
        let text = serde_json::to_vec(&credentials).map_err(|e| Failed::Trouble(e.to_string()))?;
        let about = about_account(&self.directory);
        let sealed = self.keys.seal(&about, &text).map_err(Failed::Trouble)?;
        let message = format!("made an account at {}", self.directory);
        let event = NewEvent::new(EventKind::Admin, "scheduler", message);
        let put = self
            .store
            .acme_account_put(&self.directory, &sealed, &event, Timestamp::now());
        if put.await? {
            return Ok(Opened { sealed, account });
        }
        // Another scheduler was faster; this one's is never used.
        match self.store.acme_account(&self.directory).await? {
            Some(sealed) => self.open(sealed).await,
            None => Err(Failed::Trouble("the account was forgotten at once".into())),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |e: std::io::Error| format!("{} can't be read: {e}", path.display());
    if fs::metadata(path).map_err(failed)?.len() > LARGEST_FILE {
        return Err(format!("{} is larger than {LARGEST_FILE} bytes", path.display()));
    }
    fs::read(path).map_err(failed)
}

/// How requests are sent.
#[derive(Clone, Debug)]
struct Http {
    client: reqwest::Client,
    /// Until when the authority wants to be left alone, in milliseconds since 1970.
    rest: Arc<AtomicI64>,
}

impl HttpClient for Http {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let this = self.clone();
        Box::pin(async move { this.send(request).await })
    }
}

impl Http {
    async fn send(&self, request: http::Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        let other = |text: String| Error::Other(text.into());
        let (parts, body) = request.into_parts();
        let Ok(body) = body.collect().await;
        let sent = self
            .client
            .request(parts.method, parts.uri.to_string())
            .headers(parts.headers)
            .body(body.to_bytes());
        let mut response = sent.send().await.map_err(|e| other(causes(&e)))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| other(causes(&e)))? {
            if body.len() + chunk.len() > LARGEST {
                return Err(other(format!("the authority's answer has more than {LARGEST} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        if status.as_u16() == 429 || status.as_u16() == 503 {
            self.leave_alone(headers.get(http::header::RETRY_AFTER));
        }
        // Every refusal of an authority is a problem document (RFC 8555 section 6.7); what is none comes from something else.
        let is_json = serde_json::from_slice::<serde_json::Value>(&body).is_ok_and(|v| v.is_object());
        if status.as_u16() >= 400 && !is_json {
            return Err(other(format!("{} answers {status}", parts.uri)));
        }
        let mut answer = http::Response::new(Full::new(Bytes::from(body)));
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        Ok(BytesResponse::from(answer))
    }

    fn leave_alone(&self, after: Option<&http::HeaderValue>) {
        let seconds = after.and_then(|v| v.to_str().ok()?.trim().parse().ok());
        let Some(rest) = seconds.map(Duration::from_secs) else {
            return;
        };
        let until = Timestamp::now().plus(rest.min(LONGEST_REST));
        self.rest.fetch_max(until.as_millis(), Ordering::Relaxed);
    }
}
