//! Names and counters as types, so that a bare string or number is never taken for another.
//!
//! Every textual id is checked when it is made, from whatever side it comes; each is safe as a path
//! segment of ZooKeeper, a label of Docker and a part of a URL.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a valid id: which kind it should have been, the text, and the rule it breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}: it must be {rule}")]
pub struct InvalidId {
    /// What it should have been, such as `app id`.
    pub kind: &'static str,
    /// The text as given, cut to 80 characters.
    pub text: String,
    /// The rule in words.
    pub rule: &'static str,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId { kind: $kind, text: text.chars().take(80).collect(), rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

fn all(text: &str, extra: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || extra.as_bytes().contains(&b))
}

fn all_cases(text: &str, extra: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || extra.as_bytes().contains(&b))
}

fn starts_alphanumeric(text: &str) -> bool {
    text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

fn dns_label(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && !text.ends_with('-')
        && !text.contains("--")
        && all(text, "-")
}

text_id!(
    /// The name of an app: the first label of its domain, and the repository name of its images.
    AppId,
    "app id",
    "1 to 40 characters of a-z, 0-9 and '-', starting with a letter, without '--' and not ending with '-'",
    |t| dns_label(t, 40)
);
text_id!(
    /// The version of an app: the tag of its image (Docker's tag grammar, at most 64 characters).
    Version,
    "version",
    "1 to 64 characters of A-Z, a-z, 0-9, '_', '.' and '-', starting with a letter, a digit or '_', without '--'",
    |t| (1..=64).contains(&t.len())
        && !t.starts_with(['.', '-'])
        && !t.contains("--")
        && all_cases(t, "_.-")
);
text_id!(
    /// One instance (one container) of an app: 12 random characters.
    InstanceId,
    "instance id",
    "4 to 32 characters of a-z and 0-9, starting with a letter",
    |t| (4..=32).contains(&t.len()) && t.as_bytes()[0].is_ascii_lowercase() && all(t, "")
);
text_id!(
    /// The container engine's own id of a container (64 hexadecimal digits with Docker).
    ContainerId,
    "container id",
    "1 to 128 characters of A-Z, a-z, 0-9, '_', '.' and '-', starting with a letter or a digit",
    |t| (1..=128).contains(&t.len()) && starts_alphanumeric(t) && all_cases(t, "_.-")
);
text_id!(
    /// The name of a Docker host within the platform.
    HostName,
    "host name",
    "1 to 63 characters of a-z, 0-9, '.' and '-', starting with a letter or a digit",
    |t| (1..=63).contains(&t.len()) && starts_alphanumeric(t) && all(t, ".-")
);
text_id!(
    /// What a certificate is called; those that the platform gets by itself bear their domain's name.
    CertificateName,
    "certificate name",
    "1 to 200 characters of a-z, 0-9, '.', '-' and '_', starting with a letter or a digit",
    |t| (1..=200).contains(&t.len()) && starts_alphanumeric(t) && all(t, ".-_")
);
text_id!(
    /// A piece of long work asked for over the API.
    OperationId,
    "operation id",
    "4 to 40 characters of a-z, 0-9 and '-'",
    |t| (4..=40).contains(&t.len()) && starts_alphanumeric(t) && all(t, "-")
);
text_id!(
    /// One installation of the platform; containers carry it so that two installations on one Docker
    /// host never touch each other's.
    PlatformId,
    "platform id",
    "4 to 40 characters of a-z, 0-9 and '-'",
    |t| (4..=40).contains(&t.len()) && starts_alphanumeric(t) && all(t, "-")
);
text_id!(
    /// The owner of apps.
    TenantId,
    "tenant id",
    "1 to 40 characters of a-z, 0-9 and '-', starting with a letter, without '--' and not ending with '-'",
    |t| dns_label(t, 40)
);

/// `n` random characters of a-z and 0-9, the first of them a letter.
fn random_text(n: usize) -> String {
    use rand::RngExt as _;
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    (0..n)
        .map(|i| ALPHABET[rng.random_range(0..if i == 0 { 26 } else { 36 })] as char)
        .collect()
}

impl InstanceId {
    /// A new random id (61 bits).
    pub fn random() -> Self {
        Self(random_text(12).into())
    }
}

impl OperationId {
    /// A new random id, such as `op-k3v9…`.
    pub fn random() -> Self {
        Self(format!("op-{}", random_text(12)).into())
    }
}

impl PlatformId {
    /// A new random id.
    pub fn random() -> Self {
        Self(random_text(10).into())
    }
}

impl TenantId {
    /// The tenant that owns everything until tenants are created.
    pub fn default_tenant() -> Self {
        Self("default".into())
    }
}

/// The optimistic lock of a row: it grows by one with each change, and a change names the one it saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The first generation of a new row.
    pub const FIRST: Self = Self(1);

    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_ids() {
        for good in ["a", "hello", "my-app-2", &"a".repeat(40)] {
            assert!(good.parse::<AppId>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "a--b",
            "A",
            "1a",
            "a.b",
            "a/b",
            "..",
            "a_b",
            "é",
            &"a".repeat(41),
            "a\0",
            "a\n",
        ] {
            assert!(bad.parse::<AppId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn versions() {
        for good in ["1", "v1.2.3", "_x", "2024-01-02.RC1", "latest"] {
            assert!(good.parse::<Version>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-1", "a/b", "a:b", "1--2", " ", &"1".repeat(65)] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn random_ids_are_valid() {
        for _ in 0..200 {
            assert!(InstanceId::random().as_str().parse::<InstanceId>().is_ok());
            assert!(OperationId::random().as_str().parse::<OperationId>().is_ok());
            assert!(PlatformId::random().as_str().parse::<PlatformId>().is_ok());
        }
    }

    #[test]
    fn json_is_checked() {
        assert!(serde_json::from_str::<AppId>("\"hello\"").is_ok());
        let error = serde_json::from_str::<AppId>("\"no/good\"")
            .expect_err("a slash")
            .to_string();
        assert!(error.contains("not a valid app id"), "{error}");
    }
}
