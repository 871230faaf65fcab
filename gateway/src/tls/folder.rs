//! Certificates from a folder: pairs `NAME.crt` and `NAME.key`, or both in one `NAME.pem`. Looked at again and again; a pair that
//! is bad or half written leaves the one that served before, and a pair must be gone twice to be gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::certificates::{Certificate, Source};

/// Largest file that is read.
const LARGEST_FILE: u64 = 1024 * 1024;
/// Most pairs of a folder.
const MOST_PAIRS: usize = 100_000;

/// By what a file is known to be the same: device, inode, size, and when contents and state changed.
type Print = (u64, u64, u64, i64, i64, i64, i64);

/// The folder, as it was seen last.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    pairs: BTreeMap<String, Pair>,
}

/// One pair.
#[derive(Debug, Default)]
struct Pair {
    /// Of the files that were read last, whether they were sound or not.
    prints: Vec<Print>,
    /// The last sound one.
    certificate: Option<Arc<Certificate>>,
    /// It was not there at the last look.
    missing: bool,
}

/// What a look found.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// There is something else to serve than before.
    pub(crate) changed: bool,
    /// Pairs that are new or changed and can't be used, and why; each is told once.
    pub(crate) bad: Vec<(String, String)>,
}

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            pairs: BTreeMap::new(),
        }
    }

    /// Every certificate that serves.
    pub(crate) fn certificates(&self) -> Vec<Arc<Certificate>> {
        self.pairs.values().filter_map(|p| p.certificate.clone()).collect()
    }

    /// Looks at the folder; reads only what has changed.
    ///
    /// # Errors
    /// The folder can't be read; everything stays as it was.
    pub(crate) fn look(&mut self) -> io::Result<Look> {
        let mut look = Look::default();
        let mut there = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let Some((stem, "crt" | "key" | "pem")) = name.to_str().and_then(|n| n.rsplit_once('.')) else {
                continue;
            };
            // Editors and copying programs keep unfinished files under hidden names.
            if !stem.is_empty() && !stem.starts_with('.') && there.len() < MOST_PAIRS {
                there.insert(stem.to_owned());
            }
        }
        let path = self.path.clone();
        self.pairs.retain(|name, pair| {
            if there.contains(name) {
                pair.missing = false;
                return true;
            }
            // Who replaces files by removing and writing them again is never without a certificate.
            let keep = !std::mem::replace(&mut pair.missing, true);
            look.changed |= !keep && pair.certificate.is_some();
            keep
        });
        for name in there {
            let pair = self.pairs.entry(name.clone()).or_default();
            let (prints, parsed) = match read(&path, &name, &pair.prints) {
                Read::Same => continue,
                Read::New(prints, parsed) => (prints, parsed),
            };
            pair.prints = prints;
            match parsed {
                Ok(certificate) => {
                    pair.certificate = Some(Arc::new(certificate));
                    look.changed = true;
                }
                Err(why) => look.bad.push((name, why)),
            }
        }
        Ok(look)
    }
}

/// What became of reading a pair.
enum Read {
    /// Its files are those that were read before.
    Same,
    New(Vec<Print>, Result<Certificate, String>),
}

fn read(folder: &Path, name: &str, before: &[Print]) -> Read {
    let file = |extension: &str| folder.join(format!("{name}.{extension}"));
    let both = file("pem");
    let (chain, key) = if both.exists() {
        (both.clone(), both)
    } else {
        (file("crt"), file("key"))
    };
    let print = |path: &Path| fs::metadata(path).map(|m| (print(&m), m));
    let (prints, large) = match (print(&chain), print(&key)) {
        (Ok((chain, a)), Ok((key, b))) => (vec![chain, key], a.len().max(b.len()) > LARGEST_FILE),
        (Ok((one, _)), Err(_)) | (Err(_), Ok((one, _))) => (vec![one], false),
        (Err(_), Err(_)) => return Read::Same,
    };
    if prints == before {
        return Read::Same;
    }
    if prints.len() == 1 {
        return Read::New(prints, Err(format!("{name}.crt and {name}.key must both be there")));
    }
    if large {
        return Read::New(prints, Err(format!("a file is larger than {LARGEST_FILE} bytes")));
    }
    let contents = |path: &Path| fs::read(path).map_err(|e| format!("{} can't be read: {e}", path.display()));
    let parsed = contents(&chain)
        .and_then(|chain| Ok((chain, contents(&key)?)))
        .and_then(|(chain, key)| Certificate::parse(Source::Folder, name, &chain, &key));
    Read::New(prints, parsed)
}

fn print(m: &Metadata) -> Print {
    (
        m.dev(),
        m.ino(),
        m.size(),
        m.mtime(),
        m.mtime_nsec(),
        m.ctime(),
        m.ctime_nsec(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::certificates::tests::made;
    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = Folder::new(dir.path().to_owned());
        (dir, folder)
    }

    fn write(dir: &tempfile::TempDir, name: &str, text: &str) {
        fs::write(dir.path().join(name), text).expect("written");
    }

    fn serving(folder: &Folder) -> Vec<String> {
        folder.certificates().iter().flat_map(|c| c.names.clone()).collect()
    }

    #[test]
    fn pairs_come_change_and_go() {
        let (dir, mut folder) = folder();
        let (chain, key) = made(&["a.test"]);
        write(&dir, "a.crt", &chain);
        write(&dir, "a.key", &key);
        write(&dir, ".b.crt", "unfinished");
        write(&dir, "notes.txt", "nothing");
        let (chain, key) = made(&["p.test"]);
        write(&dir, "p.pem", &format!("{chain}{key}"));
        let look = folder.look().expect("read");
        assert!(look.changed && look.bad.is_empty(), "{look:?}");
        assert_eq!(serving(&folder), ["a.test", "p.test"]);
        assert!(!folder.look().expect("read").changed);

        // Half of a new pair: the old one serves, and it is told once.
        let (chain, key) = made(&["a2.test"]);
        write(&dir, "a.crt", &chain);
        let look = folder.look().expect("read");
        assert!(!look.changed && look.bad.len() == 1 && look.bad[0].0 == "a", "{look:?}");
        assert_eq!(serving(&folder), ["a.test", "p.test"]);
        assert!(folder.look().expect("read").bad.is_empty());
        write(&dir, "a.key", &key);
        assert!(folder.look().expect("read").changed);
        assert_eq!(serving(&folder), ["a2.test", "p.test"]);

        // One file of a pair gone is half a pair; both gone twice is gone.
        fs::remove_file(dir.path().join("a.key")).expect("removed");
        assert_eq!(folder.look().expect("read").bad.len(), 1);
        fs::remove_file(dir.path().join("a.crt")).expect("removed");
        assert!(!folder.look().expect("read").changed);
        assert_eq!(serving(&folder), ["a2.test", "p.test"]);
        assert!(folder.look().expect("read").changed);
        assert_eq!(serving(&folder), ["p.test"]);
    }

    #[test]
    fn a_folder_that_vanishes_changes_nothing() {
        let (dir, mut folder) = folder();
        let (chain, key) = made(&["a.test"]);
        write(&dir, "a.pem", &format!("{key}{chain}"));
        assert!(folder.look().expect("read").changed);
        drop(dir);
        assert!(folder.look().is_err());
        assert_eq!(serving(&folder), ["a.test"]);
    }

    #[test]
    fn large_and_strange_files_are_refused() {
        let (dir, mut folder) = folder();
        write(&dir, "big.pem", &"x".repeat(LARGEST_FILE as usize + 1));
        write(&dir, "alone.key", "x");
        fs::create_dir(dir.path().join("folder.pem")).expect("made");
        let look = folder.look().expect("read");
        let names: Vec<&str> = look.bad.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["alone", "big", "folder"]);
        assert!(!look.changed && folder.certificates().is_empty());
    }
}
