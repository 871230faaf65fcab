//! Which path means what. Pure.

use model::registry::{EntryKey, LoadKey};
use model::{AppId, CertificateName, InvalidId};

/// A node that holds an entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Leaf {
    /// Where an instance answers.
    Endpoint(EntryKey),
    /// An app's configuration.
    Config(AppId),
    /// What an instance uses.
    Load(LoadKey),
    /// A certificate.
    Certificate(CertificateName),
}

impl Leaf {
    /// Where the load of the instance stands whose endpoint this is.
    pub(super) fn load(&self) -> Option<Self> {
        match self {
            Self::Endpoint(key) => Some(Self::Load(key.load_key())),
            _ => None,
        }
    }

    /// Whether it is of the kind that has much data.
    pub(super) fn is_certificate(&self) -> bool {
        matches!(self, Self::Certificate(_))
    }
}

/// The paths of one registry.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// `…/caas/service/address`
    pub(super) address: String,
    /// `…/caas/service/config`
    pub(super) config: String,
    /// `…/caas/service/load`
    pub(super) load: String,
    /// `…/caas/service/certificate`
    pub(super) certificate: String,
    /// `…/caas/service/revision`
    pub(super) revision: String,
    /// `…/caas/gateways`
    pub(super) gateways: String,
    /// `…/caas/locks/registry-sync`
    pub(super) locks: String,
}

impl Tree {
    /// The tree under `chroot` (empty or `/…`).
    pub(super) fn new(chroot: &str) -> Self {
        Self {
            address: format!("{chroot}/caas/service/address"),
            config: format!("{chroot}/caas/service/config"),
            load: format!("{chroot}/caas/service/load"),
            certificate: format!("{chroot}/caas/service/certificate"),
            revision: format!("{chroot}/caas/service/revision"),
            gateways: format!("{chroot}/caas/gateways"),
            locks: format!("{chroot}/caas/locks/registry-sync"),
        }
    }

    /// The nodes above `leaf` that come and go with their children, the outermost first.
    pub(super) fn parents(&self, leaf: &Leaf) -> Vec<String> {
        match leaf {
            Leaf::Endpoint(key) => vec![
                format!("{}/{}", self.address, key.app),
                format!("{}/{}/{}", self.address, key.app, key.version),
            ],
            Leaf::Config(_) | Leaf::Certificate(_) => Vec::new(),
            Leaf::Load(key) => vec![format!("{}/{}", self.load, key.app)],
        }
    }

    pub(super) fn leaf(&self, leaf: &Leaf) -> String {
        match leaf {
            Leaf::Endpoint(key) => format!("{}/{}/{}/{}", self.address, key.app, key.version, key.container),
            Leaf::Config(app) => format!("{}/{app}", self.config),
            Leaf::Load(key) => format!("{}/{}/{}", self.load, key.app, key.container),
            Leaf::Certificate(name) => format!("{}/{name}", self.certificate),
        }
    }

    /// The entry at `path`: `None` when no entry can be there (a parent, or foreign), an error when its name is none
    /// of ours.
    pub(super) fn parse(&self, path: &str) -> Option<Result<Leaf, InvalidId>> {
        let below = |root: &str| path.strip_prefix(root).and_then(|rest| rest.strip_prefix('/'));
        if let Some(rest) = below(&self.address) {
            let mut parts = rest.split('/');
            let (Some(app), Some(version), Some(container), None) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                return None;
            };
            return Some(entry(app, version, container));
        }
        if let Some(rest) = below(&self.load) {
            let (app, container) = rest.split_once('/').filter(|(_, rest)| !rest.contains('/'))?;
            return Some(load_entry(app, container));
        }
        if let Some(name) = below(&self.certificate) {
            return (!name.contains('/')).then(|| name.parse().map(Leaf::Certificate));
        }
        let app = below(&self.config).filter(|rest| !rest.contains('/'))?;
        Some(app.parse().map(Leaf::Config))
    }
}

fn entry(app: &str, version: &str, container: &str) -> Result<Leaf, InvalidId> {
    Ok(Leaf::Endpoint(EntryKey {
        app: app.parse()?,
        version: version.parse()?,
        container: container.parse()?,
    }))
}

fn load_entry(app: &str, container: &str) -> Result<Leaf, InvalidId> {
    Ok(Leaf::Load(LoadKey {
        app: app.parse()?,
        container: container.parse()?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::contract::registry::key;

    #[test]
    fn registry_paths_go_there_and_back() {
        for chroot in ["", "/x/y"] {
            let tree = Tree::new(chroot);
            let leaf = Leaf::Endpoint(key("hello", "1.0", "c1"));
            assert_eq!(tree.leaf(&leaf), format!("{chroot}/caas/service/address/hello/1.0/c1"));
            assert_eq!(tree.parse(&tree.leaf(&leaf)), Some(Ok(leaf)));
            let leaf = Leaf::Config("hello".parse().expect("valid"));
            assert_eq!(tree.leaf(&leaf), format!("{chroot}/caas/service/config/hello"));
            assert_eq!(tree.parse(&tree.leaf(&leaf)), Some(Ok(leaf)));
            let leaf = Leaf::Load(key("hello", "1.0", "c1").load_key());
            assert_eq!(tree.leaf(&leaf), format!("{chroot}/caas/service/load/hello/c1"));
            assert_eq!(tree.parse(&tree.leaf(&leaf)), Some(Ok(leaf)));
            let leaf = Leaf::Certificate("shop.example.com".parse().expect("valid"));
            assert_eq!(
                tree.leaf(&leaf),
                format!("{chroot}/caas/service/certificate/shop.example.com")
            );
            assert_eq!(tree.parse(&tree.leaf(&leaf)), Some(Ok(leaf)));
            for inner in ["", "/a/b"] {
                assert_eq!(tree.parse(&format!("{}{inner}", tree.certificate)), None, "{inner}");
            }
            for inner in ["", "/hello", "/hello/c1/x"] {
                assert_eq!(tree.parse(&format!("{}{inner}", tree.load)), None, "{inner}");
            }
            for inner in ["", "/hello", "/hello/1.0", "/hello/1.0/c1/x"] {
                assert_eq!(tree.parse(&format!("{}{inner}", tree.address)), None, "{inner}");
            }
            assert_eq!(tree.parse(&tree.revision), None);
            assert_eq!(tree.parse(&format!("{}x/a/b/c", tree.address)), None);
            assert!(matches!(
                tree.parse(&format!("{}/UPPER/1/c", tree.address)),
                Some(Err(_))
            ));
            assert!(matches!(tree.parse(&format!("{}/a--b", tree.config)), Some(Err(_))));
        }
    }
}
