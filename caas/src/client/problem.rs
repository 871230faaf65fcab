//! What went wrong with a call, as one sentence and an exit code.

use reqwest::StatusCode;
use serde::Deserialize;

use super::Target;
use crate::exit::{self, Failure};

/// An RFC 9457 problem, as the API answers.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Problem {
    /// HTTP status.
    pub(crate) status: u16,
    /// Stable code, such as `NO_CAPACITY`.
    pub(crate) code: String,
    /// Short name of the kind of problem.
    pub(crate) title: String,
    /// One sentence.
    pub(crate) detail: String,
    /// Why, line by line.
    pub(crate) reasons: Vec<String>,
    /// JSON pointer to the field in question.
    pub(crate) field: Option<String>,
    /// The same request may succeed later.
    pub(crate) retryable: bool,
    /// By which the server's log can be searched.
    pub(crate) request_id: Option<String>,
}

/// Why a call gave no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ApiError {
    /// No answer.
    Unreachable {
        /// Where it was tried.
        address: String,
        /// What happened.
        message: String,
    },
    /// The API said no.
    Problem(Box<Problem>),
    /// The token was not accepted; the sentence says which one was sent.
    NotAllowed(String),
    /// An answer that a caas API does not give.
    Unexpected(String),
}

impl ApiError {
    /// No answer came.
    pub(crate) fn unreachable(address: &str, error: &reqwest::Error) -> Self {
        let message = if error.is_timeout() {
            "it did not answer in time".to_owned()
        } else {
            // The innermost cause is the one that a person can act on ("connection refused").
            let mut cause: &dyn std::error::Error = error;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            cause.to_string().to_lowercase()
        };
        Self::Unreachable {
            address: address.to_owned(),
            message,
        }
    }

    /// The API answered with an error.
    pub(crate) fn from_answer(status: StatusCode, body: &[u8], target: &Target) -> Self {
        let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let why = if problem.detail.is_empty() {
                "the API refused the request"
            } else {
                &problem.detail
            };
            return Self::NotAllowed(format!("{why} ({})", target.token_source));
        }
        if problem.code.is_empty() {
            return Self::Unexpected(format!(
                "{} answered {status}, not like a caas API: is the address right?",
                target.address
            ));
        }
        Self::Problem(Box::new(Problem {
            status: status.as_u16(),
            ..problem
        }))
    }

    /// The same call may succeed in a moment.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Problem(p) => p.code == "STORE_UNAVAILABLE",
            Self::NotAllowed(_) | Self::Unexpected(_) => false,
        }
    }

    /// Somebody else has changed it since it was read.
    pub(crate) fn is_stale(&self) -> bool {
        matches!(self, Self::Problem(p) if p.code == "VERSION_CONFLICT")
    }

    /// There is no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Problem(p) if p.status == 404)
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Unreachable { address, message } => Failure::error(format!(
                "{address} can't be reached: {message}"
            ))
            .line("is it running? `caas up` starts everything on this machine; --addr or CAAS_ADDR names another API"),
            ApiError::NotAllowed(message) => Failure::new(exit::NOT_ALLOWED, message)
                .line("CAAS_TOKEN or --token-file gives the token; `caas up` keeps it in DIR/admin.token"),
            ApiError::Unexpected(message) => Failure::error(message),
            ApiError::Problem(p) => {
                let code = match p.code.as_str() {
                    "NO_CAPACITY" | "IMAGE_NOT_FOUND" | "REGISTRY_DENIED" | "REGISTRY_UNREACHABLE" => exit::NOT_PLACED,
                    "INVALID_SPEC" | "INVALID_REQUEST" => exit::USAGE,
                    _ => exit::ERROR,
                };
                let sentence = if p.detail.is_empty() { &p.title } else { &p.detail };
                let sentence = match &p.field {
                    Some(field) if !sentence.contains(field.as_str()) => format!("{field}: {sentence}"),
                    _ => sentence.clone(),
                };
                let mut failure = Failure::new(code, sentence);
                failure.lines = p.reasons;
                failure.lines.retain(|reason| *reason != failure.message);
                if let (true, Some(id)) = (p.status >= 500, p.request_id) {
                    failure.lines.push(format!("request {id}"));
                }
                failure
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            address: "http://127.0.0.1:1".into(),
            token: None,
            token_source: "no token was sent".into(),
        }
    }

    fn failure(status: u16, body: &str) -> Failure {
        let status = StatusCode::from_u16(status).expect("a status");
        ApiError::from_answer(status, body.as_bytes(), &target()).into()
    }

    #[test]
    fn problems_become_one_sentence_with_reasons() {
        let f = failure(
            409,
            r#"{"type":"about:blank","title":"no capacity","status":409,"code":"NO_CAPACITY","detail":"no host fits","reasons":["memory: 3 hosts"],"retryable":true,"request_id":"r1"}"#,
        );
        assert_eq!(f.code, exit::NOT_PLACED);
        assert_eq!(f.to_string(), "caas: no host fits\n  memory: 3 hosts");
        let f = failure(
            400,
            r#"{"code":"INVALID_SPEC","detail":"5 must be between 6 and 9","field":"/memory_mb"}"#,
        );
        assert_eq!(
            (f.code, f.message.as_str()),
            (exit::USAGE, "/memory_mb: 5 must be between 6 and 9")
        );
    }

    #[test]
    fn refused_tokens_say_which_one() {
        let f = failure(401, r#"{"code":"UNAUTHENTICATED","detail":"a bearer token is needed"}"#);
        assert_eq!(f.code, exit::NOT_ALLOWED);
        assert_eq!(f.message, "a bearer token is needed (no token was sent)");
        assert_eq!(failure(403, "").code, exit::NOT_ALLOWED);
    }

    #[test]
    fn strangers_are_recognised() {
        let f = failure(502, "<html>");
        assert_eq!(f.code, exit::ERROR);
        assert!(f.message.contains("not like a caas API"), "{f}");
    }
}
