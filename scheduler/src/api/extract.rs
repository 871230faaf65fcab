//! Extractors: what handlers take from a request, checked. Every refusal is a problem that names the field or the
//! parameter; nothing is read without a bound.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Query as AxumQuery, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use model::store::IdempotencyKey;
use model::{Generation, InvalidId};
use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::auth::Actor;
use super::error::{ApiError, Code};

/// Largest request body, bytes.
pub(super) const MAX_BODY: usize = 1024 * 1024;
/// How long a body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(15);
/// Longest `?wait=`.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(300);
/// Longest `Idempotency-Key`; with the token's id before it, it stays within the store's 200.
const MAX_KEY: usize = 128;

/// The only path parameter of a route, as a checked id.
#[derive(Debug)]
pub(super) struct Id<T>(pub(super) T);

impl<S, T> FromRequestParts<S> for Id<T>
where
    S: Send + Sync,
    T: FromStr<Err = InvalidId> + Send,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let (name, value) = path_param(parts, state).await?;
        value
            .parse()
            .map(Self)
            .map_err(|error| ApiError::from(error).at(format!("/{name}")))
    }
}

/// The only path parameter of a route, as text.
#[derive(Debug)]
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        path_param(parts, state).await.map(|(_, value)| Self(value))
    }
}

async fn path_param<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<(String, String), ApiError> {
    let bad = || ApiError::new(Code::InvalidRequest, "the path must be percent-encoded UTF-8");
    let params = RawPathParams::from_request_parts(parts, state)
        .await
        .map_err(|_| bad())?;
    params
        .iter()
        .next()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(bad)
}

/// The query, read into `T`.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<S, T> FromRequestParts<S> for Query<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        AxumQuery::try_from_uri(&parts.uri)
            .map(|AxumQuery(query)| Self(query))
            .map_err(|error| ApiError::new(Code::InvalidRequest, format!("query: {}", error.body_text())))
    }
}

/// A JSON body, read into `T`.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<S, T> FromRequest<S> for Json<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        json(&read(request.into_body()).await?).map(Self)
    }
}

/// A change that is asked for: who asks, on which conditions, and how the answer is wanted.
#[derive(Debug)]
pub(super) struct Call {
    /// Who asks.
    pub(super) actor: Actor,
    /// The generation that must still be the current one.
    pub(super) if_match: Option<Generation>,
    /// `Idempotency-Key` with the request's hash.
    pub(super) idempotency: Option<IdempotencyKey>,
    /// How long to wait for the operation's end.
    pub(super) wait: Option<Duration>,
    /// Only say what would happen.
    pub(super) dry_run: bool,
    /// Accept the change also when no host has room now.
    pub(super) queue: bool,
    body: Bytes,
}

#[derive(Deserialize)]
struct CallQuery {
    wait: Option<String>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    queue: bool,
}

impl<S: Send + Sync> FromRequest<S> for Call {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let Query(query) = Query::<CallQuery>::from_request_parts(&mut parts, state).await?;
        let wait = query.wait.as_deref().map(wait_time).transpose()?;
        let if_match = if_match(&parts.headers)?;
        let actor = Actor::of(&parts)?;
        let body = read(body).await?;
        let idempotency = idempotency_key(&parts, &actor, &body)?;
        Ok(Self {
            actor,
            if_match,
            idempotency,
            wait,
            dry_run: query.dry_run,
            queue: query.queue,
            body,
        })
    }
}

impl Call {
    /// The body as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        json(&self.body)
    }

    /// The body as JSON, `T`'s default when there is none.
    pub(super) fn json_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, ApiError> {
        if self.body.is_empty() {
            return Ok(T::default());
        }
        self.json()
    }
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(BODY_DEADLINE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::new(
            Code::PayloadTooLarge,
            format!("a request's body may have at most {MAX_BODY} bytes"),
        )),
        Ok(Err(_)) => Err(ApiError::new(
            Code::InvalidRequest,
            "the body ended before it was whole",
        )),
        Err(_) => Err(ApiError::new(Code::Timeout, "the body took longer than 15 s to arrive")),
    }
}

/// A text header that must be valid when it is there.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    value
        .to_str()
        .map(Some)
        .map_err(|_| ApiError::new(Code::InvalidRequest, format!("header {name} must be visible ASCII")).at(name))
}

fn if_match(headers: &HeaderMap) -> Result<Option<Generation>, ApiError> {
    let Some(value) = text(headers, header::IF_MATCH.as_str())? else {
        return Ok(None);
    };
    if value == "*" {
        return Ok(None);
    }
    let bare = value.strip_prefix("W/").unwrap_or(value);
    bare.strip_prefix('"')
        .and_then(|v| v.strip_suffix('"'))
        .and_then(|v| v.parse().ok())
        .map(|generation| Some(Generation(generation)))
        .ok_or_else(|| {
            ApiError::new(
                Code::InvalidRequest,
                "If-Match must be an ETag as it was answered, such as \"7\"",
            )
            .at("If-Match")
        })
}

fn idempotency_key(parts: &Parts, actor: &Actor, body: &[u8]) -> Result<Option<IdempotencyKey>, ApiError> {
    let Some(key) = text(&parts.headers, "Idempotency-Key")? else {
        return Ok(None);
    };
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(
            ApiError::new(Code::InvalidRequest, "Idempotency-Key must have 1 to 128 characters").at("Idempotency-Key"),
        );
    }
    let mut hash = Sha256::new();
    hash.update(parts.method.as_str());
    hash.update([0]);
    hash.update(parts.uri.path());
    // How long the caller waits for the answer is not part of what it asks for.
    let query = parts.uri.query().unwrap_or_default();
    for pair in query.split('&').filter(|pair| !pair.starts_with("wait=")) {
        hash.update([0]);
        hash.update(pair);
    }
    hash.update([0, 0]);
    hash.update(body);
    Ok(Some(IdempotencyKey {
        key: format!("{}:{key}", actor.token),
        request_hash: hex::encode(hash.finalize()),
    }))
}

/// `30s`, `500ms`, `2m` or plain seconds, at most [`MAX_WAIT`].
fn wait_time(value: &str) -> Result<Duration, ApiError> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: Option<u64> = digits.parse().ok().filter(|n| *n <= 1_000_000);
    let wait = number.and_then(|n| match &value[digits.len()..] {
        "ms" => Some(Duration::from_millis(n)),
        "s" | "" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_secs(n * 60)),
        _ => None,
    });
    wait.filter(|w| *w <= MAX_WAIT).ok_or_else(|| {
        ApiError::new(
            Code::InvalidRequest,
            "wait must be a time of at most 300s, such as 30s or 500ms",
        )
        .at("wait")
    })
}

/// Reads JSON into `T`, refusing what is ambiguous (a key twice) or hostile (NUL in a text).
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value: Strict = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = pointer(error.path());
        ApiError::new(
            Code::InvalidRequest,
            format!("the body is not sound JSON: {}", error.inner()),
        )
        .at(field)
    })?;
    reader
        .end()
        .map_err(|error| ApiError::new(Code::InvalidRequest, format!("the body is not sound JSON: {error}")))?;
    serde_path_to_error::deserialize(value.0).map_err(|error| {
        let field = pointer(error.path());
        ApiError::new(Code::InvalidSpec, format!("{field}: {}", error.inner())).at(field)
    })
}

/// The JSON pointer of a path.
pub(super) fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut pointer = String::new();
    for segment in path {
        let part = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => key.replace('~', "~0").replace('/', "~1"),
            Segment::Enum { .. } | Segment::Unknown => continue,
        };
        pointer.push('/');
        pointer.push_str(&part);
    }
    pointer
}

/// A JSON value without a key that stands twice and without NUL in any text.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StrictVisitor;

        fn sound<E: serde::de::Error>(text: &str) -> Result<(), E> {
            if text.contains('\0') {
                return Err(E::custom("a text can't contain NUL"));
            }
            Ok(())
        }

        impl<'de> Visitor<'de> for StrictVisitor {
            type Value = Strict;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Strict, E> {
                Ok(Strict(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Strict, E> {
                sound(value)?;
                Ok(Strict(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
                let mut items = Vec::new();
                while let Some(Strict(item)) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Strict(Value::Array(items)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Strict, A::Error> {
                let mut map = Map::new();
                while let Some(key) = entries.next_key::<String>()? {
                    sound(&key)?;
                    let Strict(value) = entries.next_value()?;
                    if map.insert(key, value).is_some() {
                        return Err(serde::de::Error::custom("a key stands twice in one object"));
                    }
                }
                Ok(Strict(Value::Object(map)))
            }
        }

        deserializer.deserialize_any(StrictVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_strictly() {
        let read = |text: &str| json::<Value>(text.as_bytes());
        assert!(read(r#"{"a":[1,-2,1.5,"x",null,true]}"#).is_ok());
        for (bad, field) in [
            (r#"{"a":1,"a":2}"#, Some("")),
            (r#"{"a":{"b":"\u0000"}}"#, Some("/a/b")),
            (r#"{"\u0000":1}"#, Some("")),
            (r#"{"a":NaN}"#, Some("/a")),
            ("{} x", None),
            ("", Some("")),
        ] {
            let error = read(bad).unwrap_err();
            assert_eq!(error.problem("").field.as_deref(), field, "{bad}");
            assert_eq!(error.code(), Code::InvalidRequest, "{bad}");
        }
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert_eq!(read(&deep).unwrap_err().code(), Code::InvalidRequest);
    }

    #[test]
    fn waits_are_bounded() {
        assert_eq!(wait_time("30s").unwrap(), Duration::from_secs(30));
        assert_eq!(wait_time("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(wait_time("5m").unwrap(), MAX_WAIT);
        assert_eq!(wait_time("7").unwrap(), Duration::from_secs(7));
        for bad in ["", "s", "301s", "-1s", "1h", "99999999999999999999s", "6m", "1.5s", "é"] {
            assert!(wait_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn etags_are_read() {
        let read = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_MATCH, axum::http::HeaderValue::from_static(value));
            if_match(&headers)
        };
        assert_eq!(read("\"7\"").unwrap(), Some(Generation(7)));
        assert_eq!(read("W/\"7\"").unwrap(), Some(Generation(7)));
        assert_eq!(read("*").unwrap(), None);
        for bad in ["7", "\"x\"", "\"1\", \"2\"", ""] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
