//! Secrets sealed for storage: who reads the database or the registry learns nothing of them, and can't put one in the place
//! of another. ChaCha20-Poly1305 (RFC 8439) with random nonces (good for 2^32 seals of one key by NIST SP 800-38D's
//! reckoning for 96 bits); what a secret is about is authenticated with it.

use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};

/// Most keys of one file.
const MOST_KEYS: usize = 10;
/// Largest file that is read.
const LARGEST_FILE: u64 = 16 * 1024;
/// The only form so far.
const FORM: &str = "v1";

/// The keys of a key file: 64 hexadecimal digits a line. The first seals, all open; so keys are changed by putting a new one
/// before the old ones.
pub struct SealingKeys(Vec<(String, LessSafeKey)>);

impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(id, _)| id)).finish()
    }
}

impl SealingKeys {
    /// Reads the text of a key file. Empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    /// One sentence, which never holds a part of a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys = Vec::new();
        let lines = text.lines().map(str::trim).enumerate();
        for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let wrong = || {
                format!(
                    "line {} must be 64 hexadecimal digits (`openssl rand -hex 32`)",
                    number + 1
                )
            };
            let bytes = hex::decode(line).map_err(|_| wrong())?;
            let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(|_| wrong())?;
            let id = hex::encode(&digest(&SHA256, &[b"caas sealing key", bytes.as_slice()].concat()).as_ref()[..4]);
            if keys.len() == MOST_KEYS {
                return Err(format!("there are more than {MOST_KEYS} keys"));
            }
            keys.push((id, LessSafeKey::new(key)));
        }
        if keys.is_empty() {
            return Err("there is no key in it: make one with `openssl rand -hex 32`".into());
        }
        Ok(Self(keys))
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// One sentence.
    pub fn load(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let unreadable = |e: std::io::Error| format!("the key file {shown} can't be read: {e}");
        if fs::metadata(path).map_err(unreadable)?.len() > LARGEST_FILE {
            return Err(format!("the key file {shown} is larger than {LARGEST_FILE} bytes"));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text).map_err(|e| format!("the key file {shown}: {e}"))
    }

    /// Makes a key file with a new key that only its owner may read, unless there is one.
    ///
    /// # Errors
    /// One sentence.
    pub fn ensure(path: &Path) -> Result<(), String> {
        let failed = |e: std::io::Error| format!("the key file {} can't be made: {e}", path.display());
        if path.exists() {
            return Ok(());
        }
        let mut key = [0; 32];
        SystemRandom::new()
            .fill(&mut key)
            .map_err(|_| "this machine gives no random numbers".to_owned())?;
        // Whole or not at all, and never over another's: a key that is lost makes everything sealed with it worthless.
        let beside = path.with_extension(format!("new-{}", std::process::id()));
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)
            .map_err(failed)?;
        writeln!(file, "{}", hex::encode(key)).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        let linked = fs::hard_link(&beside, path);
        let _ = fs::remove_file(&beside);
        match linked {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(failed(e)),
            _ => Ok(()),
        }
    }

    /// Seals `secret`, which is about `about`: text of the form `v1.{key id}.{base64}`.
    ///
    /// # Errors
    /// When the machine gives no random numbers.
    pub fn seal(&self, about: &str, secret: &[u8]) -> Result<String, String> {
        let (id, key) = self.0.first().ok_or("there is no sealing key")?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new()
            .fill(&mut nonce)
            .map_err(|_| "this machine gives no random numbers".to_owned())?;
        let mut bytes = secret.to_vec();
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(about.as_bytes()),
            &mut bytes,
        )
        .map_err(|_| "the secret is too long to be sealed".to_owned())?;
        Ok(format!(
            "{FORM}.{id}.{}",
            STANDARD_NO_PAD.encode([&nonce[..], &bytes].concat())
        ))
    }

    /// Opens what was sealed about the same.
    ///
    /// # Errors
    /// One sentence: another key, or a text that was changed or is about something else.
    pub fn open(&self, about: &str, sealed: &str) -> Result<Vec<u8>, String> {
        let mut parts = sealed.splitn(3, '.');
        let (Some(FORM), Some(id), Some(text)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("it is not sealed in a form that this version knows".into());
        };
        let Some((_, key)) = self.0.iter().find(|(known, _)| known == id) else {
            let known: Vec<&str> = self.0.iter().map(|(id, _)| id.as_str()).collect();
            let id: String = id.chars().take(16).collect();
            return Err(format!(
                "it is sealed with key {id:?}, the key file here holds {}",
                known.join(", ")
            ));
        };
        let broken = || "it was changed, or sealed for something else".to_owned();
        let mut bytes = STANDARD_NO_PAD.decode(text).map_err(|_| broken())?;
        if bytes.len() < NONCE_LEN {
            return Err(broken());
        }
        let mut secret = bytes.split_off(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(&bytes).map_err(|_| broken())?;
        let opened = key
            .open_in_place(nonce, Aad::from(about.as_bytes()), &mut secret)
            .map_err(|_| broken())?;
        let length = opened.len();
        secret.truncate(length);
        Ok(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const A: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const B: &str = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    #[test]
    fn what_is_sealed_opens_only_with_the_key_and_about_the_same() {
        let (a, b) = (SealingKeys::parse(A).unwrap(), SealingKeys::parse(B).unwrap());
        let sealed = a.seal("x", b"secret").unwrap();
        assert!(!sealed.contains("secret") && sealed != a.seal("x", b"secret").unwrap());
        assert_eq!(a.open("x", &sealed).unwrap(), b"secret");
        assert!(a.open("y", &sealed).unwrap_err().contains("something else"));
        assert!(b.open("x", &sealed).unwrap_err().contains("sealed with key"));
        // The new key before the old one: both open, the new one seals.
        let both = SealingKeys::parse(&format!("# new\n{B}\n\n{A}\n")).unwrap();
        assert_eq!(both.open("x", &sealed).unwrap(), b"secret");
        assert!(a.open("x", &both.seal("x", b"s").unwrap()).is_err());
        for at in 0..sealed.len() {
            let mut bad = sealed.clone().into_bytes();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            assert!(a.open("x", &String::from_utf8(bad).unwrap()).is_err(), "{at}");
        }
        for bad in ["", "v1", "v1..", "v1.a.b", &format!("{}.", &sealed[..11]), "v2.a.b"] {
            assert!(a.open("x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_file_is_made_once_and_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("certificates.key");
        assert!(SealingKeys::load(&path).unwrap_err().contains("can't be read"));
        SealingKeys::ensure(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        SealingKeys::ensure(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(SealingKeys::load(&path).is_ok());
    }

    #[test]
    fn bad_key_files_are_refused_without_telling_the_key() {
        for (text, says) in [
            ("", "no key"),
            ("# only\n", "no key"),
            (&A[1..], "line 1"),
            ("zz", "line 1"),
            (&format!("{A}\n{A}00"), "line 2"),
            (&format!("{A}\n").repeat(11), "more than 10"),
        ] {
            let error = SealingKeys::parse(text).unwrap_err();
            assert!(error.contains(says) && !error.contains(&A[..8]), "{error}");
        }
    }
}
