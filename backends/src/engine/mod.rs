//! What stands behind [`model::engine::Engine`]: Docker hosts and in-memory fakes, opened by URL.
//!
//! - `unix:///var/run/docker.sock`, `tcp://10.0.0.5:2375`: Docker, in the clear;
//! - `https://10.0.0.5:2376`: Docker over TLS with a client certificate;
//! - `fake://name`: the in-memory engine of that name ([`FakeEngine`]), for tests and for scale.
//!
//! An engine keeps no state of its own about containers: what the host says is true.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use model::engine::{Engine, EngineError, EngineOpener};

mod docker;
mod fake;

pub use fake::{FakeEngine, FakeImage};

/// How engines are opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// Folder with `ca.pem` (who signs the hosts' certificates), `cert.pem` and `key.pem` (ours), for `https://` hosts.
    pub tls_dir: Option<PathBuf>,
}

/// Opens engines by URL, without connecting. The same URL gives the same engine, so that there is one client per host.
///
/// # Errors
/// The opener answers [`EngineError::Other`] when the URL is not one of the kinds above, or when the TLS files of
/// `options` are missing or unreadable.
pub fn opener(options: EngineOptions) -> EngineOpener {
    let opened: Mutex<HashMap<String, Arc<dyn Engine>>> = Mutex::new(HashMap::new());
    Arc::new(move |url| {
        let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = opened.get(url) {
            return Ok(Arc::clone(engine));
        }
        let engine = open(url, &options)?;
        opened.insert(url.to_owned(), Arc::clone(&engine));
        Ok(engine)
    })
}

fn open(url: &str, options: &EngineOptions) -> Result<Arc<dyn Engine>, EngineError> {
    if url.starts_with("fake://") {
        return Ok(FakeEngine::open(url)?);
    }
    let target = docker::Target::parse(url, options)?;
    Ok(Arc::new(docker::DockerEngine::new(url, target)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_engine_per_url() {
        let open = opener(EngineOptions::default());
        let a = open("fake://one-engine-a").expect("a fake");
        let b = open("fake://one-engine-b").expect("a fake");
        let unix = open("unix:///nowhere/docker.sock").expect("opening does not connect");
        assert!(Arc::ptr_eq(&a, &open("fake://one-engine-a").expect("again")));
        assert!(Arc::ptr_eq(&unix, &open("unix:///nowhere/docker.sock").expect("again")));
        assert!(!Arc::ptr_eq(&a, &b));
    }

    #[test]
    fn bad_urls_are_explained() {
        let open = opener(EngineOptions::default());
        for (url, words) in [
            ("", "unix://"),
            ("http://h:1", "unix://"),
            ("unix://", "path"),
            ("unix://relative/docker.sock", "path"),
            ("tcp://", "host"),
            ("tcp://10.0.0.1", "port"),
            ("tcp://10.0.0.1:2375/path", "nothing after"),
            ("https://10.0.0.1:2376", "tls_dir"),
            ("fake://", "name"),
            ("fake://x?launch_ms=abc", "launch_ms"),
            ("fake://x?other=1", "other"),
        ] {
            let error = open(url).expect_err(url).to_string();
            assert!(error.contains(words), "{url}: {error}");
        }
    }

    #[test]
    fn missing_tls_files_are_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let open = opener(EngineOptions {
            tls_dir: Some(dir.path().to_owned()),
        });
        let error = open("https://10.0.0.1:2376").expect_err("no files").to_string();
        assert!(error.contains("ca.pem"), "{error}");
        std::fs::write(dir.path().join("ca.pem"), "rubbish").expect("a file");
        let error = open("https://10.0.0.1:2376")
            .expect_err("no certificate in it")
            .to_string();
        assert!(error.contains("ca.pem"), "{error}");
    }
}
