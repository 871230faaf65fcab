//! A chain of certificates with the key of its first.

use std::sync::Arc;

use pem::{EncodeConfig, LineEnding, Pem};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Most names of one certificate; authorities issue 100.
const MOST_NAMES: usize = 1_000;
/// Most certificates of one chain.
const LONGEST_CHAIN: usize = 10;

/// Which of the two is wrong, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum BadPair {
    /// The chain.
    #[error("{0}")]
    Chain(String),
    /// The key, or that it is not the chain's.
    #[error("{0}")]
    Key(String),
}

/// A chain with its key, proved to fit.
#[derive(Debug)]
pub struct Pair {
    /// DNS names that it is for, in lower case; wildcards as `*.example.com`.
    pub names: Vec<String>,
    /// Who issued it, as it says so (`CN=…, O=…`); at most 200 characters.
    pub issuer: String,
    /// From when it holds, in seconds since 1970.
    pub not_before: i64,
    /// When it expires, in seconds since 1970.
    pub expires: i64,
    /// For handshakes.
    pub certified: Arc<CertifiedKey>,
    private: PrivateKeyDer<'static>,
}

impl Pair {
    /// Reads a chain (the server's own certificate first) and its key, both PEM. Other blocks in either are passed over.
    ///
    /// # Errors
    /// One sentence: what is wrong with which of them.
    pub fn parse(chain: &[u8], key: &[u8]) -> Result<Self, BadPair> {
        let bad = |why: String| BadPair::Chain(why);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .take(LONGEST_CHAIN + 1)
            .collect::<Result<_, _>>()
            .map_err(|e| bad(format!("the certificate is no sound PEM: {e}")))?;
        if chain.len() > LONGEST_CHAIN {
            return Err(bad(format!("the chain has more than {LONGEST_CHAIN} certificates")));
        }
        let own = chain
            .first()
            .ok_or_else(|| bad("there is no certificate in it".into()))?;
        let private =
            PrivateKeyDer::from_pem_slice(key).map_err(|e| BadPair::Key(format!("the key is no sound PEM: {e}")))?;
        let (_, parsed) =
            X509Certificate::from_der(own).map_err(|e| bad(format!("the certificate can't be read: {e}")))?;
        let validity = parsed.validity();
        let (not_before, expires) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let issuer = parsed.issuer().to_string().chars().take(200).collect();
        let alternative = parsed
            .subject_alternative_name()
            .map_err(|e| bad(format!("the certificate's names can't be read: {e}")))?;
        let names: Vec<String> = alternative
            .iter()
            .flat_map(|list| &list.value.general_names)
            .filter_map(|n| match n {
                GeneralName::DNSName(dns) => Some(dns.trim_end_matches('.').to_ascii_lowercase()),
                _ => None,
            })
            .take(MOST_NAMES + 1)
            .collect();
        if names.len() > MOST_NAMES {
            return Err(bad(format!("the certificate has more than {MOST_NAMES} names")));
        }
        let provider = ring::default_provider();
        let certified = CertifiedKey::from_der(chain, private.clone_key(), &provider).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => BadPair::Key("the key is not the certificate's".into()),
            other => BadPair::Key(format!("the key can't be used: {other}")),
        })?;
        Ok(Self {
            names,
            issuer,
            not_before,
            expires,
            certified: Arc::new(certified),
            private,
        })
    }

    /// The chain as PEM, and nothing else that may have stood beside it.
    pub fn chain_pem(&self) -> String {
        self.certified.cert.iter().map(|c| pem("CERTIFICATE", c)).collect()
    }

    /// The key as PEM.
    pub fn key_pem(&self) -> String {
        let label = match &self.private {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        pem(label, self.private.secret_der())
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let form = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new(label, der), form)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_file_with_both_gives_a_chain_without_the_key() {
        let (chain, key) = made(&["Shop.Example.com.", "*.shop.example.com"]);
        let both = format!("text before\n{key}{chain}");
        let pair = Pair::parse(both.as_bytes(), both.as_bytes()).unwrap();
        assert_eq!(pair.names, ["shop.example.com", "*.shop.example.com"]);
        assert!(
            pair.not_before < pair.expires && pair.issuer.contains("CN="),
            "{pair:?}"
        );
        assert!(!pair.chain_pem().contains("PRIVATE"));
        let again = Pair::parse(pair.chain_pem().as_bytes(), pair.key_pem().as_bytes()).unwrap();
        assert_eq!(again.certified.cert, pair.certified.cert);
        assert_eq!(again.key_pem(), pair.key_pem());
        assert_eq!(pair.chain_pem().replace("\r\n", "\n"), chain.replace("\r\n", "\n"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let (chain, key) = made(&["a.test"]);
        let (_, other_key) = made(&["b.test"]);
        for (chain, key, of_key, says) in [
            ("", key.as_str(), false, "no certificate"),
            (&chain[..chain.len() / 2], &key, false, "PEM"),
            (&chain, &chain, true, "the key"),
            (&chain, &other_key, true, "not the certificate's"),
            (&chain.repeat(11), &key, false, "more than 10"),
        ] {
            let error = Pair::parse(chain.as_bytes(), key.as_bytes()).unwrap_err();
            assert_eq!(matches!(error, BadPair::Key(_)), of_key, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
