//! The HTTP API as the client verbs see it. The client knows nothing but the API: no verb ever reads the store, the
//! registry or an engine.

pub(crate) mod context;
pub(crate) mod problem;
pub(crate) mod stream;
pub(crate) mod wait;

use std::time::Duration;

use reqwest::{Method, StatusCode, header};
use serde_json::Value;

pub(crate) use self::context::Target;
pub(crate) use self::problem::ApiError;
use crate::exit::Failure;

/// Longest that a plain call may take. Calls that wait on purpose pass their own.
const CALL_DEADLINE: Duration = Duration::from_secs(40);
/// Longest that a connection may take to come about.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// The API sends something at least every 15 s, even on a quiet stream; so long without a byte and the line is dead.
const SILENCE: Duration = Duration::from_secs(40);
/// Calls that may be repeated are tried this often before the error is shown.
const TRIES: u32 = 4;
/// Largest answer that is read.
const ANSWER_LIMIT: usize = 64 << 20;

/// A client of one installation's API.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    target: Target,
    /// What stands before each path.
    root: &'static str,
}

impl Client {
    /// A client for `target`; does not connect.
    pub(crate) fn new(target: Target) -> Result<Self, Failure> {
        Self::below(target, "/api/v1")
    }

    /// A client for a gateway's admin server, which speaks as the API does, without a prefix.
    pub(crate) fn of_gateway(target: Target) -> Result<Self, Failure> {
        Self::below(target, "")
    }

    fn below(target: Target, root: &'static str) -> Result<Self, Failure> {
        // Only https:// needs it; installing it twice is no error worth showing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder();
        if !target.address.starts_with("https://") {
            // The machine's certificates are not needed, and a small container has none: then nothing could be set up.
            builder = builder.tls_certs_only([]);
        }
        let http = builder
            .connect_timeout(CONNECT_DEADLINE)
            .read_timeout(SILENCE)
            .user_agent(concat!("caas/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Failure::error(format!("the HTTP client can't be set up: {e}")))?;
        Ok(Self { http, target, root })
    }

    /// Where the API is, without a final slash.
    pub(crate) fn address(&self) -> &str {
        &self.target.address
    }

    /// Whether it sends a token.
    pub(crate) fn has_token(&self) -> bool {
        self.target.token.is_some()
    }

    /// Reads `path` (below `/api/v1`, with its query).
    pub(crate) async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.call(Method::GET, path, None, &[]).await
    }

    /// Reads the list at `path`, page after page.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<Value>, ApiError> {
        let mut all = Vec::new();
        let mut next = Some(path.to_owned());
        while let Some(path) = next {
            let page = self.call_paged(Method::GET, &path, None, &[]).await?;
            let Value::Array(items) = page.body else {
                return Err(ApiError::Unexpected("the API's answer is no list".into()));
            };
            all.extend(items);
            next = page.next;
        }
        Ok(all)
    }

    /// Posts `body`. Carries an `Idempotency-Key`, so that it may be repeated when an answer was lost.
    pub(crate) async fn post(&self, path: &str, body: Option<&Value>) -> Result<Value, ApiError> {
        let key = idempotency_key();
        self.call(Method::POST, path, body, &[("idempotency-key", &key)]).await
    }

    /// Puts `body`.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.call(Method::PUT, path, Some(body), &[]).await
    }

    /// Puts `body` in the place of what was seen in that generation.
    pub(crate) async fn put_seen(&self, path: &str, body: &Value, generation: u64) -> Result<Value, ApiError> {
        let etag = format!("\"{generation}\"");
        self.call(Method::PUT, path, Some(body), &[("if-match", &etag)]).await
    }

    /// Changes some fields of the resource in the generation that was seen.
    pub(crate) async fn patch(&self, path: &str, body: &Value, generation: u64) -> Result<Value, ApiError> {
        let etag = format!("\"{generation}\"");
        self.call(Method::PATCH, path, Some(body), &[("if-match", &etag)]).await
    }

    /// Deletes the resource.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value, ApiError> {
        self.call(Method::DELETE, path, None, &[]).await
    }

    /// `GET` of an absolute URL outside the API; its status.
    pub(crate) async fn probe(&self, url: &str) -> Result<(StatusCode, String), ApiError> {
        let answer = self
            .http
            .get(url)
            .timeout(CONNECT_DEADLINE)
            .send()
            .await
            .map_err(|e| ApiError::unreachable(url, &e))?;
        let status = answer.status();
        let text = answer.text().await.unwrap_or_default();
        Ok((status, text.chars().take(400).collect()))
    }

    /// A JSON document at an absolute URL outside the API.
    pub(crate) async fn document(&self, url: &str) -> Result<Value, ApiError> {
        let answer = self.http.get(url).timeout(CONNECT_DEADLINE).send().await;
        self.read(answer.map_err(|e| ApiError::unreachable(url, &e))?).await
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let mut request = self
            .http
            .request(method, format!("{}{}{path}", self.target.address, self.root));
        if let Some(token) = &self.target.token {
            request = request.bearer_auth(token);
        }
        request
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Result<Value, ApiError> {
        Ok(self.call_paged(method, path, body, headers).await?.body)
    }

    /// Every call here may be repeated: reads, writes of a whole resource, and posts by their key.
    async fn call_paged(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Result<Answer, ApiError> {
        let mut tried = 0;
        loop {
            let mut request = self.request(method.clone(), path).timeout(CALL_DEADLINE);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some(body) = body {
                request = request.json(body);
            }
            let error = match request.send().await {
                Ok(answer) => {
                    let next = next_page(answer.headers());
                    match self.read(answer).await {
                        Ok(body) => return Ok(Answer { body, next }),
                        Err(error) => error,
                    }
                }
                Err(e) => ApiError::unreachable(&self.target.address, &e),
            };
            tried += 1;
            if tried >= TRIES || !error.is_transient() {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(200 << tried)).await;
        }
    }

    async fn read(&self, mut answer: reqwest::Response) -> Result<Value, ApiError> {
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(chunk) = answer
            .chunk()
            .await
            .map_err(|e| ApiError::unreachable(&self.target.address, &e))?
        {
            if body.len() + chunk.len() > ANSWER_LIMIT {
                return Err(ApiError::Unexpected(format!(
                    "the API's answer is larger than {ANSWER_LIMIT} bytes"
                )));
            }
            body.extend_from_slice(&chunk);
        }
        if !status.is_success() {
            return Err(ApiError::from_answer(status, &body, &self.target));
        }
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|_| {
            ApiError::Unexpected(format!(
                "{} does not answer like a caas API: is the address right?",
                self.target.address
            ))
        })
    }

    /// Opens an event stream.
    async fn open_stream(&self, path: &str, last_event: Option<&str>) -> Result<reqwest::Response, ApiError> {
        let mut request = self
            .request(Method::GET, path)
            .header(header::ACCEPT, "text/event-stream");
        if let Some(id) = last_event {
            request = request.header("last-event-id", id);
        }
        let answer = request
            .send()
            .await
            .map_err(|e| ApiError::unreachable(&self.target.address, &e))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        match self.read(answer).await {
            Err(error) => Err(error),
            Ok(_) => Err(ApiError::Unexpected("the API sent no event stream".into())),
        }
    }
}

fn idempotency_key() -> String {
    format!("cli-{:032x}", rand::random::<u128>())
}

/// A call's result.
#[derive(Debug)]
struct Answer {
    body: Value,
    /// Path of the next page, below `/api/v1`.
    next: Option<String>,
}

/// The next page that a `Link` header (RFC 8288) names.
fn next_page(headers: &header::HeaderMap) -> Option<String> {
    let link = headers.get(header::LINK)?.to_str().ok()?;
    let (target, parameters) = link.split_once('>')?;
    let path = target.strip_prefix("</api/v1")?;
    parameters.contains("rel=\"next\"").then(|| path.to_owned())
}

/// An answer (or a part of it) as one of the model's types.
pub(crate) fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, ApiError> {
    T::deserialize(value).map_err(|e| ApiError::Unexpected(format!("the API's answer can't be read: {e}")))
}

/// `text` as one segment of a path.
pub(crate) fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_segments_are_escaped() {
        assert_eq!(segment("127.0.0.1:5000"), "127.0.0.1:5000");
        assert_eq!(segment("a/../b?c#d e"), "a%2F..%2Fb%3Fc%23d%20e");
    }

    #[test]
    fn the_next_page_is_found() {
        let page = |link: &str| {
            let mut headers = header::HeaderMap::new();
            headers.insert(header::LINK, link.parse().expect("a header"));
            next_page(&headers)
        };
        assert_eq!(
            page("</api/v1/apps?limit=2&cursor=c>; rel=\"next\"").as_deref(),
            Some("/apps?limit=2&cursor=c")
        );
        assert_eq!(page("</api/v1/apps>; rel=\"prev\""), None);
        assert_eq!(page("<http://elsewhere/api/v1/apps>; rel=\"next\""), None);
    }
}
