//! What the scheduler is told of the authority from which it gets certificates.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[acme]` in `caas.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AcmeConfig {
    /// URL of the authority's directory (RFC 8555 section 7.1.1), such as `https://acme-v02.api.letsencrypt.org/directory`.
    /// Default none: no certificate is had by itself.
    pub directory: Option<String>,
    /// E-mail addresses that the authority may write to. At most 10, default none.
    pub contacts: Vec<String>,
    /// The authority's terms of service are agreed to; nothing is asked of it before. Default false.
    pub terms_agreed: bool,
    /// PEM file with the root certificates of a private authority: only these are trusted for `directory`, and names that only
    /// exist inside are asked for too. Default none: the machine's, and public names only.
    pub root_certificate_file: Option<PathBuf>,
    /// How domains are proved. Default `auto`.
    pub challenges: Challenges,
    /// With it, apps' own names `{app}.{domain}` get certificates as custom domains do; the gateways' `domain`, where no wildcard
    /// certificate serves it. Default none.
    pub domain: Option<String>,
    /// The key id of an external account that the authority asks for (RFC 8555 section 7.3.4). Default none.
    pub external_account_id: Option<String>,
    /// File with that account's HMAC key in base64url. Default none.
    pub external_account_key_file: Option<PathBuf>,
}

/// How domains are proved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Challenges {
    /// By http-01 first, and by tls-alpn-01 and http-01 in turn after each failure.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// The authority fetches a path at port 80.
    #[serde(rename = "http-01")]
    Http,
    /// The authority shakes hands at port 443 (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    Tls,
}

impl AcmeConfig {
    /// Whether certificates are to be had at all.
    pub fn is_on(&self) -> bool {
        self.directory.is_some()
    }

    /// Checks what can be checked without asking anybody; `sealing`: there is a key file.
    ///
    /// # Errors
    /// One sentence that names the setting.
    pub fn check(&self, sealing: bool) -> Result<(), String> {
        let Some(directory) = &self.directory else {
            return match *self == Self::default() {
                true => Ok(()),
                false => Err(
                    "acme.directory is not set, so that the other settings of [acme] mean nothing: set it to \
                    the URL of the authority's directory"
                        .into(),
                ),
            };
        };
        if !directory.starts_with("https://") || directory.len() > 500 {
            return Err(format!(
                "acme.directory = {directory:?} must be a URL that starts with https://, of at most 500 bytes"
            ));
        }
        if !self.terms_agreed {
            return Err("acme.terms_agreed must be true: read the authority's terms of service first".into());
        }
        if !sealing {
            return Err(
                "acme needs scheduler.certificates_key_file, and the gateways the same file: the keys of certificates \
                 are kept sealed only"
                    .into(),
            );
        }
        if let Some(bad) = self.contacts.iter().find(|c| !is_address(c)) {
            return Err(format!(
                "acme.contacts: {bad:?} must be an e-mail address such as ops@example.com"
            ));
        }
        if self.contacts.len() > 10 {
            return Err("acme.contacts may have at most 10 addresses".into());
        }
        if self.external_account_id.is_some() != self.external_account_key_file.is_some() {
            return Err(
                "acme.external_account_id and acme.external_account_key_file go together: set both or none".into(),
            );
        }
        Ok(())
    }
}

fn is_address(text: &str) -> bool {
    let sound = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic() && b != b',' && b != b'?');
    text.len() <= 254 && text.split_once('@').is_some_and(|(a, b)| sound(a) && sound(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_work_is_said() {
        let sound = AcmeConfig {
            directory: Some("https://acme.example.com/dir".into()),
            contacts: vec!["ops@example.com".into()],
            terms_agreed: true,
            ..AcmeConfig::default()
        };
        assert_eq!(sound.check(true), Ok(()));
        assert_eq!(AcmeConfig::default().check(false), Ok(()));
        let with = |change: fn(&mut AcmeConfig)| {
            let mut config = sound.clone();
            change(&mut config);
            config.check(true).unwrap_err()
        };
        assert!(sound.check(false).unwrap_err().contains("certificates_key_file"));
        for (error, says) in [
            (with(|c| c.directory = None), "acme.directory"),
            (with(|c| c.directory = Some("http://a.test/".into())), "https://"),
            (with(|c| c.terms_agreed = false), "acme.terms_agreed"),
            (with(|c| c.contacts = vec!["ops".into()]), "\"ops\""),
            (with(|c| c.contacts = vec!["a@b.test".into(); 11]), "at most 10"),
            (with(|c| c.external_account_id = Some("x".into())), "go together"),
        ] {
            assert!(error.contains(says), "{error}");
        }
    }
}
