//! Certificates that the platform keeps for its gateways. Their keys are sealed wherever they lie: only the scheduler, which
//! takes them in, and the gateways can open them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::order::MAX_SEALED_CHALLENGE;
use crate::{CertificateName, Timestamp};

/// Longest chain, in bytes of PEM: ten certificates of a usual size.
pub const MAX_CHAIN: usize = 32 * 1024;
/// Longest key, in bytes of PEM: an RSA key of 8,192 bits takes 6.4 KiB.
pub const MAX_KEY: usize = 8 * 1024;
/// Longest sealed key that is read, in bytes.
pub const MAX_SEALED_KEY: usize = 12 * 1024;
/// Most certificates of one platform.
pub const MOST: u64 = 10_000;
/// The certificate of this name serves clients whose server name no other has, and those that say none.
pub const DEFAULT: &str = "default";

/// Where a certificate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateSource {
    /// Somebody gave it over the API.
    Uploaded,
    /// The platform got it from an authority by ACME (RFC 8555).
    Acme,
}

impl CertificateSource {
    /// As stored and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uploaded => "uploaded",
            Self::Acme => "acme",
        }
    }
}

/// What is known of a certificate without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// What it is called.
    pub name: CertificateName,
    /// Where it comes from.
    pub source: CertificateSource,
    /// DNS names that it is for, in lower case; wildcards as `*.example.com`.
    pub names: Vec<String>,
    /// Who issued it, as it says.
    pub issuer: String,
    /// From when it holds.
    pub not_before: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
    /// When it was put in its place.
    pub updated_at: Timestamp,
    /// Random: tells it from any other that has borne the same name.
    pub mark: i64,
}

/// A chain with its sealed key, as it lies in the store and in the registry. As JSON:
/// `{"chain":"-----BEGIN CERTIFICATE-----…","key":"v1.…"}`; unknown fields are passed over. While a certificate of this name is
/// being had from an authority there is a `challenge` too, the first time without a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedCertificate {
    /// PEM, the server's own certificate first.
    pub chain: Arc<str>,
    /// The sealed PEM of the key; sealed about [`about_key`].
    pub key: Arc<str>,
    /// What gateways answer to an authority that asks for proof of the domain of this name; sealed about
    /// [`about_challenge`](crate::order::about_challenge).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenge: Option<Arc<str>>,
}

impl SealedCertificate {
    /// A certificate, without a challenge.
    pub fn new(chain: impl Into<Arc<str>>, key: impl Into<Arc<str>>) -> Self {
        Self {
            chain: chain.into(),
            key: key.into(),
            challenge: None,
        }
    }

    /// Whether there is a certificate, not only a challenge.
    pub fn has_chain(&self) -> bool {
        !self.chain.is_empty()
    }

    /// Reads what a registry holds.
    ///
    /// # Errors
    /// One sentence.
    pub fn parse(data: &[u8]) -> Result<Self, String> {
        let sealed: Self = serde_json::from_slice(data).map_err(|e| e.to_string())?;
        if sealed.chain.len() > MAX_CHAIN || sealed.key.len() > MAX_SEALED_KEY {
            return Err(format!(
                "its chain has more than {MAX_CHAIN} bytes, or its key more than {MAX_SEALED_KEY}"
            ));
        }
        if sealed
            .challenge
            .as_ref()
            .is_some_and(|c| c.len() > MAX_SEALED_CHALLENGE)
        {
            return Err(format!("its challenge has more than {MAX_SEALED_CHALLENGE} bytes"));
        }
        Ok(sealed)
    }
}

/// What the key of the certificate of this name is sealed about.
pub fn about_key(name: &CertificateName) -> String {
    format!("caas certificate key {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_or_no_certificate_is_refused() {
        let text = |chain: usize, key: usize| {
            let sealed = SealedCertificate::new("c".repeat(chain), "k".repeat(key));
            serde_json::to_vec(&sealed).expect("json")
        };
        let whole = SealedCertificate::parse(&text(MAX_CHAIN, MAX_SEALED_KEY)).expect("at the limit");
        assert_eq!((whole.chain.len(), whole.key.len()), (MAX_CHAIN, MAX_SEALED_KEY));
        assert!(text(MAX_CHAIN, MAX_SEALED_KEY).len() < 64 * 1024);
        for bad in [
            text(MAX_CHAIN + 1, 1),
            text(1, MAX_SEALED_KEY + 1),
            b"{}".to_vec(),
            Vec::new(),
        ] {
            assert!(SealedCertificate::parse(&bad).is_err());
        }
        let plain = SealedCertificate::parse(br#"{"chain":"c","key":"k","more":1}"#).expect("more is passed over");
        assert_eq!(plain, SealedCertificate::new("c", "k"));
        assert_eq!(
            serde_json::to_string(&plain).expect("json"),
            r#"{"chain":"c","key":"k"}"#
        );
        let only = SealedCertificate::parse(br#"{"chain":"","key":"","challenge":"v1.x"}"#).expect("a challenge");
        assert!(!only.has_chain() && only.challenge.as_deref() == Some("v1.x"));
        let long = format!(
            r#"{{"chain":"","key":"","challenge":"{}"}}"#,
            "x".repeat(MAX_SEALED_CHALLENGE + 1)
        );
        assert!(SealedCertificate::parse(long.as_bytes()).is_err());
    }
}
