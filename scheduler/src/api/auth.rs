//! Tokens: who asks. A token is `caas_<id>_<secret>`; the store holds the SHA-256 of the secret only. No secret is
//! ever logged, and none is ever shown after it was made.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header, request::Parts};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use model::Timestamp;
use model::store::{Store, StoreError, Token};
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::Api;
use super::error::{ApiError, Code};
use crate::Error;

/// How long a token that was found is taken as still valid without asking the store.
const CACHED: Duration = Duration::from_secs(3);
/// Most tokens in the cache.
const CACHE_SIZE: usize = 1_024;
/// Length of a token's public part.
const ID_LEN: usize = 8;
/// Length of a token's secret part: 206 bits.
const SECRET_LEN: usize = 40;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Actor {
    /// Public part of the token.
    pub(crate) token: String,
    /// Whose it is.
    pub(crate) name: String,
}

impl Actor {
    /// The actor that [`authenticate`] found.
    pub(super) fn of(parts: &Parts) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(unauthenticated)
    }
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Actor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::of(parts)
    }
}

/// Tokens that were found a moment ago.
#[derive(Debug, Default)]
pub(super) struct TokenCache(Mutex<HashMap<String, (Instant, Token)>>);

impl TokenCache {
    fn get(&self, id: &str) -> Option<Token> {
        let cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cache
            .get(id)
            .filter(|(at, _)| at.elapsed() < CACHED)
            .map(|(_, token)| token.clone())
    }

    fn put(&self, token: &Token) {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_SIZE {
            cache.clear();
        }
        cache.insert(token.id.clone(), (Instant::now(), token.clone()));
    }
}

/// Layer: lets only requests with a valid token pass, and notes whose it is.
pub(super) async fn authenticate(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    match actor(&api, request.headers()).await {
        Ok(actor) => {
            request.extensions_mut().insert(actor);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

fn unauthenticated() -> ApiError {
    ApiError::new(
        Code::Unauthenticated,
        "send a valid token in the header Authorization: Bearer caas_...",
    )
}

async fn actor(api: &Api, headers: &HeaderMap) -> Result<Actor, ApiError> {
    let presented = bearer(headers).ok_or_else(unauthenticated)?;
    let (id, secret) = split(presented).ok_or_else(unauthenticated)?;
    let found = match api.tokens.get(id) {
        Some(token) => Some(token),
        None => api.store.token_fetch(id).await?,
    };
    if !fits(secret, found.as_ref().map(|t| t.secret_hash.as_str())) {
        return Err(unauthenticated());
    }
    let token = found.ok_or_else(unauthenticated)?;
    api.tokens.put(&token);
    Ok(Actor {
        token: token.id,
        name: token.name,
    })
}

/// The bearer token of a request.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// SHA-256 of a secret, hexadecimal.
fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret))
}

/// Whether `secret` hashes to `stored`; without a stored hash the same work is done, for nothing.
pub(super) fn fits(secret: &str, stored: Option<&str>) -> bool {
    const NOBODY: &str = "0000000000000000000000000000000000000000000000000000000000000000";
    let same: bool = hash(secret)
        .as_bytes()
        .ct_eq(stored.unwrap_or(NOBODY).as_bytes())
        .into();
    same && stored.is_some()
}

/// Splits a token's text into id and secret.
fn split(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.strip_prefix("caas_")?.split_once('_')?;
    let alphanumeric = |t: &str| t.bytes().all(|b| b.is_ascii_alphanumeric());
    (id.len() == ID_LEN && secret.len() == SECRET_LEN && alphanumeric(id) && alphanumeric(secret))
        .then_some((id, secret))
}

/// A new token's text.
fn new_token() -> String {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    let mut random = |n: usize| -> String {
        (0..n)
            .map(|_| ALPHABET[rng.random_range(0..ALPHABET.len())] as char)
            .collect()
    };
    format!("caas_{}_{}", random(ID_LEN), random(SECRET_LEN))
}

/// Makes the first admin token when the store has none: from `CAAS_ADMIN_TOKEN`, else a random one written to `file`.
/// Waits for a store that does not answer yet.
pub(crate) async fn ensure_admin_token(store: &dyn Store, file: Option<&Path>) -> Result<(), Error> {
    let given = std::env::var("CAAS_ADMIN_TOKEN").ok().filter(|t| !t.is_empty());
    let mut pause = Duration::from_millis(200);
    loop {
        match first_token(store, given.as_deref(), file).await {
            Err(Error::Store(error @ (StoreError::Unavailable(_) | StoreError::Busy(_)))) => {
                tracing::warn!(%error, "waiting for the store");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            done => return done,
        }
    }
}

async fn first_token(store: &dyn Store, given: Option<&str>, file: Option<&Path>) -> Result<(), Error> {
    if store.token_count().await? > 0 {
        return Ok(());
    }
    let text = match (given, file) {
        (Some(given), _) => given.to_owned(),
        (None, Some(_)) => new_token(),
        (None, None) => {
            return Err(Error::AdminToken(
                "set CAAS_ADMIN_TOKEN, or admin_token_file in [scheduler]".into(),
            ));
        }
    };
    let (id, secret) = split(&text).ok_or_else(|| {
        Error::AdminToken(
            "CAAS_ADMIN_TOKEN must be caas_<id>_<secret> with 8 and 40 characters of A-Z, a-z and 0-9".into(),
        )
    })?;
    if let Some(file) = file {
        // First the file: a stored token that nobody knows could never be used.
        write_secret(file, &text).map_err(|e| Error::AdminToken(format!("{}: {e}", file.display())))?;
        tracing::info!(file = %file.display(), token = id, "admin token written");
    }
    let token = Token {
        id: id.to_owned(),
        name: "admin".into(),
        secret_hash: hash(secret),
        created_at: Timestamp::now(),
    };
    Ok(store.token_put(&token).await?)
}

/// Writes `text` to `path` so that only its owner can read it, whole or not at all.
fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    // A file left by a killed process may have another mode: it goes first.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_made_split_and_compared() {
        let text = new_token();
        let (id, secret) = split(&text).unwrap();
        assert_eq!((id.len(), secret.len()), (8, 40));
        assert!(fits(secret, Some(&hash(secret))));
        assert!(!fits(secret, Some(&hash("other"))));
        assert!(!fits(secret, None));
        for bad in [
            "",
            "caas_",
            "caas_a_b",
            &text[1..],
            &format!("{text}0"),
            &text.replace('_', "-"),
        ] {
            assert!(split(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_token_file_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/admin.token");
        write_secret(&path, "first").unwrap();
        write_secret(&path, "second").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "second\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
