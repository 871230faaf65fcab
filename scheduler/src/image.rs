//! Images: how the image of a release is named, and to which digest its tag resolves. Nothing here pulls.

use std::time::{Duration, Instant};

use model::engine::EngineError;
use model::store::{RegistryCredentials, Store, StoreError};
use model::{AppId, Host, Schedulability, Version};

use crate::converge::Fleet;

/// Most hosts that are asked for a digest before the answer is "can't be reached".
const HOSTS_ASKED: usize = 3;
/// After this time no further host is asked: what hangs through one host hangs through the others, and the caller's
/// request ends after 30 s.
const ENOUGH: Duration = Duration::from_secs(10);

/// The image of `version` of `app`: the one given, else the previous release's repository with the new tag, else
/// `{default_registry}/{app}:{version}`. An image without tag and digest gets the version as its tag.
pub(crate) fn reference(
    default_registry: &str,
    app: &AppId,
    version: &Version,
    given: Option<&str>,
    previous: Option<&str>,
) -> String {
    if let Some(given) = given {
        let (repository, tag) = split_tag(given);
        return if given.contains('@') || tag.is_some() {
            given.to_owned()
        } else {
            format!("{repository}:{version}")
        };
    }
    match previous {
        // A previous image by digest says nothing about where its tags are.
        Some(previous) if !previous.is_empty() && !previous.contains('@') => {
            format!("{}:{version}", split_tag(previous).0)
        }
        _ => format!("{default_registry}/{app}:{version}"),
    }
}

/// Splits `repository[:tag]`; a colon before a slash belongs to the registry's port.
fn split_tag(image: &str) -> (&str, Option<&str>) {
    match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (image, None),
    }
}

/// The registry of an image as it stands in it, `docker.io` when it names none.
pub(crate) fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

/// The credentials for the registry of `image`, if there are any.
pub(crate) async fn credentials_for(store: &dyn Store, image: &str) -> Result<Option<RegistryCredentials>, StoreError> {
    let registry = registry_of(image);
    Ok(store
        .credentials_list()
        .await?
        .into_iter()
        .find(|c| c.registry == registry))
}

/// Why a digest could not be found out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The last asked engine's answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No host is up.
    #[error("no host is up: an image can't be looked up in its registry")]
    NoHost,
}

/// The digest to which `image` resolves now, asked through the engines of hosts that are up: each host is a witness
/// that instances could pull it.
pub(crate) async fn resolve(store: &dyn Store, fleet: &Fleet, image: &str) -> Result<String, ResolveError> {
    if let Some((_, digest)) = image.split_once('@') {
        return Ok(digest.to_owned());
    }
    let mut hosts: Vec<Host> = store.host_list().await?;
    hosts.retain(|h| h.down_since.is_none());
    hosts.sort_by_key(|h| h.schedulability != Schedulability::Schedulable);
    let credentials = credentials_for(store, image).await?;
    let began = Instant::now();
    let mut last = ResolveError::NoHost;
    for host in hosts.iter().take(HOSTS_ASKED) {
        if began.elapsed() > ENOUGH {
            break;
        }
        let answer = match fleet.engine(host) {
            Ok(engine) => engine.image_digest(image, credentials.as_ref()).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(digest) => return Ok(digest),
            // Another host may have a better way to the registry.
            Err(error @ (EngineError::Unreachable { .. } | EngineError::RegistryUnreachable { .. })) => {
                tracing::info!(host = %host.name, image, %error, "image not resolved through this host");
                last = error.into();
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_after_registry_app_and_version() {
        let app: AppId = "hello".parse().unwrap();
        let version: Version = "2".parse().unwrap();
        let name = |given, previous| reference("127.0.0.1:5000", &app, &version, given, previous);
        assert_eq!(name(None, None), "127.0.0.1:5000/hello:2");
        assert_eq!(name(None, Some("")), "127.0.0.1:5000/hello:2");
        assert_eq!(name(None, Some("r:5000/team/hello:1")), "r:5000/team/hello:2");
        assert_eq!(name(None, Some("r:5000/hello")), "r:5000/hello:2");
        assert_eq!(name(None, Some("r/x@sha256:00")), "127.0.0.1:5000/hello:2");
        assert_eq!(name(Some("r:5000/other"), None), "r:5000/other:2");
        assert_eq!(name(Some("r:5000/other:9"), None), "r:5000/other:9");
        assert_eq!(name(Some("other@sha256:00"), None), "other@sha256:00");
    }

    #[test]
    fn the_registry_is_the_part_that_looks_like_a_host() {
        for (image, registry) in [
            ("127.0.0.1:5000/hello:1", "127.0.0.1:5000"),
            ("registry.example.com/a/b", "registry.example.com"),
            ("localhost/x", "localhost"),
            ("library/nginx:1", "docker.io"),
            ("nginx", "docker.io"),
        ] {
            assert_eq!(registry_of(image), registry, "{image}");
        }
    }
}
