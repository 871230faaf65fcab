//! Which installation the client verbs talk to: flag, environment, or the context file that `caas up` writes.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::exit::Failure;

/// Where the API is when nobody says otherwise.
pub(crate) const DEFAULT_ADDRESS: &str = "http://127.0.0.1:8090";

/// An API and the token for it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Base URL without a final slash.
    pub(crate) address: String,
    /// Bearer token.
    pub(crate) token: Option<String>,
    /// Where the token came from, for error messages.
    pub(crate) token_source: String,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("address", &self.address)
            .field("token_source", &self.token_source)
            .finish_non_exhaustive()
    }
}

/// The context file, `~/.config/caas/context.toml`: the installation that was last started here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Context {
    /// Base URL of the API.
    pub(crate) addr: Option<String>,
    /// File that holds the token.
    pub(crate) token_file: Option<PathBuf>,
    /// The gateway's admin address, for `caas doctor`.
    pub(crate) gateway_admin: Option<String>,
    /// registry-sync's admin address, for `caas doctor`.
    pub(crate) registry_sync_admin: Option<String>,
}

impl Context {
    /// `$XDG_CONFIG_HOME/caas/context.toml`, else `~/.config/caas/context.toml`; `None` without a home.
    pub(crate) fn path() -> Option<PathBuf> {
        let base = std::env::var_os("XDG_CONFIG_HOME")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
            .or_else(|| std::env::home_dir().map(|home| home.join(".config")))?;
        Some(base.join("caas").join("context.toml"))
    }

    /// What the file says; empty when there is none.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|e| {
                Failure::usage(format!(
                    "the context file {} can't be read: {}",
                    path.display(),
                    e.message()
                ))
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Failure::usage(format!(
                "the context file {} can't be read: {e}",
                path.display()
            ))),
        }
    }

    /// Writes the file (0600) in one step, with its folder.
    pub(crate) fn save(&self, path: &Path) -> std::io::Result<()> {
        let text = toml::to_string(self).map_err(std::io::Error::other)?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        write_private(path, &text)
    }
}

/// Replaces `path` by a file that only its owner can read.
pub(crate) fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let scratch = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&scratch)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&scratch, path)
}

/// What the flags and the environment say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes {
    /// `--addr` or `CAAS_ADDR`.
    pub(crate) addr: Option<String>,
    /// `--token-file`.
    pub(crate) token_file: Option<PathBuf>,
    /// `CAAS_TOKEN`.
    pub(crate) token: Option<String>,
}

/// Decides where to go: a flag goes before the environment, the environment before the context file. The context's
/// token is only sent to the context's address (or when no address was given), never to another one.
pub(crate) fn resolve(wishes: &Wishes, context: &Context) -> Result<Target, Failure> {
    let context_address = context.addr.as_deref().map(|a| a.trim_end_matches('/'));
    let address = wishes
        .addr
        .as_deref()
        .map(|a| a.trim_end_matches('/'))
        .or(context_address)
        .unwrap_or(DEFAULT_ADDRESS)
        .to_owned();
    if !(address.starts_with("http://") || address.starts_with("https://")) {
        return Err(Failure::usage(format!(
            "the API address {address:?} must start with http:// or https://"
        )));
    }
    let from_file = |path: &Path| -> Result<String, Failure> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(e) => Err(Failure::usage(format!(
                "the token file {} can't be read: {e}",
                path.display()
            ))),
        }
    };
    let (token, token_source) = if let Some(path) = &wishes.token_file {
        (Some(from_file(path)?), format!("token from {}", path.display()))
    } else if let Some(token) = wishes.token.as_deref().filter(|t| !t.trim().is_empty()) {
        (Some(token.trim().to_owned()), "token from CAAS_TOKEN".to_owned())
    } else if let Some(path) = context
        .token_file
        .as_deref()
        .filter(|_| wishes.addr.is_none() || context_address == Some(address.as_str()))
    {
        match from_file(path) {
            Ok(token) => (Some(token), format!("token from {}", path.display())),
            Err(failure) => (None, failure.message),
        }
    } else {
        (None, "no token was sent".to_owned())
    };
    if token
        .as_deref()
        .is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err(Failure::usage(format!("{token_source}: it is not a token")));
    }
    Ok(Target {
        address,
        token,
        token_source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(dir: &Path) -> Context {
        let token_file = dir.join("token");
        std::fs::write(&token_file, "caas_ctx\n").expect("written");
        Context {
            addr: Some("http://10.0.0.1:8090/".into()),
            token_file: Some(token_file),
            ..Context::default()
        }
    }

    #[test]
    fn flags_go_before_environment_before_context() {
        let dir = tempfile::tempdir().expect("a folder");
        let context = context(dir.path());
        let target = resolve(&Wishes::default(), &Context::default()).expect("defaults");
        assert_eq!((target.address.as_str(), target.token), (DEFAULT_ADDRESS, None));
        let target = resolve(&Wishes::default(), &context).expect("context");
        assert_eq!(target.address, "http://10.0.0.1:8090");
        assert_eq!(target.token.as_deref(), Some("caas_ctx"));
        let wishes = Wishes {
            token: Some("caas_env".into()),
            ..Wishes::default()
        };
        assert_eq!(
            resolve(&wishes, &context).expect("env").token.as_deref(),
            Some("caas_env")
        );
        let file = dir.path().join("flag");
        std::fs::write(&file, "caas_flag").expect("written");
        let wishes = Wishes {
            token_file: Some(file),
            ..wishes
        };
        assert_eq!(
            resolve(&wishes, &context).expect("flag").token.as_deref(),
            Some("caas_flag")
        );
    }

    #[test]
    fn the_contexts_token_stays_with_its_address() {
        let dir = tempfile::tempdir().expect("a folder");
        let context = context(dir.path());
        let elsewhere = Wishes {
            addr: Some("http://evil.example".into()),
            ..Wishes::default()
        };
        assert_eq!(resolve(&elsewhere, &context).expect("no token").token, None);
        let same = Wishes {
            addr: Some("http://10.0.0.1:8090".into()),
            ..Wishes::default()
        };
        assert!(resolve(&same, &context).expect("token").token.is_some());
    }

    #[test]
    fn bad_addresses_and_tokens_are_usage_errors() {
        let wishes = Wishes {
            addr: Some("127.0.0.1:8090".into()),
            ..Wishes::default()
        };
        let failure = resolve(&wishes, &Context::default()).expect_err("no scheme");
        assert_eq!(failure.code, crate::exit::USAGE);
        let wishes = Wishes {
            token: Some("two words".into()),
            ..Wishes::default()
        };
        assert!(resolve(&wishes, &Context::default()).is_err());
    }

    #[test]
    fn the_context_file_is_private_and_round_trips() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("caas/context.toml");
        let context = context(dir.path());
        context.save(&path).expect("saved");
        assert_eq!(Context::load(Some(&path)).expect("loaded"), context);
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
