//! What proves to an authority that a domain is one's own (RFC 8555 section 8), and the request for a certificate.

use std::sync::Arc;

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use ring::digest::{SHA256, digest};
use rustls::crypto::ring as provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

/// The protocol by whose name an authority asks for [`Proof::certificate`] (RFC 8737 section 6.2).
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// Longest key authorization: a token of 128 bits takes 22 characters and a thumbprint 43, so this is ample.
const LONGEST: usize = 512;

/// What gateways answer to an authority about one domain.
#[derive(Debug)]
pub struct Proof {
    /// The last segment of the path that the authority fetches by http-01.
    pub token: String,
    /// The body that it expects.
    pub authorization: String,
    /// What it expects by tls-alpn-01.
    pub certificate: Arc<CertifiedKey>,
}

impl Proof {
    /// From a key authorization, `{token}.{thumbprint of the account's key}`.
    ///
    /// # Errors
    /// One sentence.
    pub fn new(domain: &str, authorization: &str) -> Result<Self, String> {
        let base64url = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        let token = match authorization.split_once('.') {
            Some((token, thumb)) if authorization.len() <= LONGEST && base64url(token) && base64url(thumb) => token,
            _ => return Err("it is no key authorization".into()),
        };
        let failed = |e: rcgen::Error| format!("the challenge's certificate can't be made: {e}");
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(vec![domain.to_owned()]).map_err(failed)?;
        let hash = digest(&SHA256, authorization.as_bytes());
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(hash.as_ref())];
        let chain = vec![CertificateDer::from(params.self_signed(&key).map_err(failed)?)];
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // Not compared with the certificate, which no client but an authority would take: its extension is critical.
        let key = provider::default_provider().key_provider.load_private_key(private);
        let key = key.map_err(|e| format!("the challenge's key can't be used: {e}"))?;
        Ok(Self {
            token: token.to_owned(),
            authorization: authorization.to_owned(),
            certificate: Arc::new(CertifiedKey::new(chain, key)),
        })
    }
}

/// A new key for a certificate (ECDSA P-256), as PEM.
///
/// # Errors
/// When the machine gives no random numbers.
pub fn new_key() -> Result<String, String> {
    let key = KeyPair::generate().map_err(|e| format!("no key can be made: {e}"))?;
    Ok(key.serialize_pem())
}

/// The request for a certificate for `domain` with this key (PKCS #10, DER).
///
/// # Errors
/// One sentence.
pub fn request(domain: &str, key: &str) -> Result<Vec<u8>, String> {
    let failed = |e: rcgen::Error| format!("the request for a certificate can't be made: {e}");
    let key = KeyPair::from_pem(key).map_err(failed)?;
    let mut params = CertificateParams::new(vec![domain.to_owned()]).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key).map_err(failed)?.der().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer as _, X509Certificate, X509CertificationRequest};

    #[test]
    fn a_proof_is_what_the_authority_expects() {
        let proof = Proof::new("shop.example.com", "tok-en_1.thumb").unwrap();
        assert_eq!(
            (proof.token.as_str(), proof.authorization.as_str()),
            ("tok-en_1", "tok-en_1.thumb")
        );
        let (_, certificate) = X509Certificate::from_der(&proof.certificate.cert[0]).unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        // id-pe-acmeIdentifier (RFC 8737 section 6.1), critical: an OCTET STRING with the SHA-256 of the authorization.
        let acme = certificate
            .extensions()
            .iter()
            .find(|e| e.oid.to_id_string() == "1.3.6.1.5.5.7.1.31")
            .unwrap();
        let hash = digest(&SHA256, b"tok-en_1.thumb");
        assert!(acme.critical);
        assert_eq!(acme.value, [&[4, 32], hash.as_ref()].concat());
        let long = format!("{}.b", "a".repeat(LONGEST));
        for bad in ["", "a", ".b", "a.", "a.b.c", "a/../b.c", "a\r\n.b", &long] {
            assert!(Proof::new("a.test", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_request_names_the_domain_and_fits_the_key() {
        let key = new_key().unwrap();
        let der = request("shop.example.com", &key).unwrap();
        let (_, parsed) = X509CertificationRequest::from_der(&der).unwrap();
        let text = format!("{:?}", parsed.requested_extensions().unwrap().collect::<Vec<_>>());
        assert!(text.contains("shop.example.com"), "{text}");
        assert!(request("a.test", "no key").is_err());
    }
}
