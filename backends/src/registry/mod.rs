//! The registry: which instance answers where, kept where every gateway can follow it.
//!
//! [`zookeeper`] is for many machines, [`MemoryRegistry`] for all roles in one process, [`FileReader`] for static
//! set-ups. Nothing in here decides what is registered; it only carries it.

mod file;
mod memory;
pub mod zookeeper;

use std::sync::Arc;

use model::registry::{RegistryError, RegistryReader, RegistryWriter};

pub use file::FileReader;
pub use memory::MemoryRegistry;

/// The registry behind `url`, to follow: `zk://host:port,host:port[/chroot]` or `file:PATH`. Does no I/O.
///
/// # Errors
/// [`RegistryError::Refused`] when the URL is not one of these.
pub fn open_reader(url: &str) -> Result<Arc<dyn RegistryReader>, RegistryError> {
    if let Some(path) = url.strip_prefix("file:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() {
            return Err(RegistryError::Refused(format!(
                "the registry URL {url:?} names no file: write file:PATH"
            )));
        }
        return Ok(Arc::new(FileReader::new(path)));
    }
    let address = zookeeper::Address::parse(url)?;
    Ok(Arc::new(zookeeper::ZooKeeperReader::new(
        address,
        zookeeper::Options::default(),
    )))
}

/// The registry behind `url`, to write: `zk://host:port,host:port[/chroot]`. Does no I/O.
///
/// # Errors
/// [`RegistryError::Refused`] when the URL is not one of these; a file can't be written through.
pub fn open_writer(url: &str) -> Result<Arc<dyn RegistryWriter>, RegistryError> {
    if url.starts_with("file:") {
        return Err(RegistryError::Refused(format!(
            "the registry {url:?} can only be read: a writer needs zk://host:port"
        )));
    }
    let address = zookeeper::Address::parse(url)?;
    Ok(Arc::new(zookeeper::ZooKeeperWriter::new(
        address,
        zookeeper::Options::default(),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_urls_are_told_apart() {
        assert!(open_reader("zk://a:1,b:2/x").is_ok());
        assert!(open_reader("file:/tmp/x.json").is_ok());
        assert!(open_writer("zk://a").is_ok());
        for (url, said) in [
            ("", "must be zk://"),
            ("etcd://a:1", "must be zk://"),
            ("memory:", "must be zk://"),
            ("file:", "names no file"),
            ("zk://", "names no host"),
        ] {
            let error = open_reader(url).expect_err(url).to_string();
            assert!(error.contains(said), "{url}: {error}");
        }
        let error = open_writer("file:/tmp/x").expect_err("a file").to_string();
        assert!(error.contains("can only be read"), "{error}");
    }
}
