//! Where a hydrated database lies: in a temporary file without a name, or under a path that one process at a time has.
//!
//! A path is locked with `fcntl`, which a forked child does not inherit. Such a lock goes when *any* descriptor of the file is closed, so within a
//! process no file is opened twice: it is looked up among those in use first.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use crate::meta::{Meta, sum};
use crate::{Error, Result};

/// How long a path is waited for whose user is just closing it.
const CLOSING: Duration = Duration::from_secs(30);

/// The files that a process has open here, of which there should be one list in each process.
#[derive(Clone, Debug, Default)]
pub struct Places(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    used: Mutex<HashMap<Inode, Use>>,
    freed: Condvar,
}

type Inode = (u64, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Open,
    Closing,
}

/// A file that is on the list as long as this lives.
#[derive(Debug)]
pub(crate) struct Registered {
    places: Places,
    inode: Inode,
}

/// A file under a path, with what stands beside it.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) url: String,
    /// What was found, until something is made of it.
    pub(crate) found: Option<Meta>,
    meta: PathBuf,
    /// Held while it is written, so that two do not write it at once.
    writing: Mutex<()>,
}

impl Places {
    fn used(&self) -> MutexGuard<'_, HashMap<Inode, Use>> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file for a replica, locked. What is in it is looked at later.
    pub(crate) fn open(&self, path: &Path, url: &str) -> Result<(File, Registered, Place)> {
        let path = resolve(path, url)?;
        let mut meta = path.as_os_str().to_owned();
        meta.push(".meta");
        let meta = PathBuf::from(meta);
        let mut used = self.used();
        let deadline = Instant::now() + CLOSING;
        while let Ok(there) = fs::metadata(&path) {
            if !there.is_file() {
                return Err(Error::OutputUnusable { path, why: "is not a regular file" });
            }
            match used.get(&inode(&there)) {
                None => break,
                Some(Use::Closing) if Instant::now() < deadline => {
                    let wait = deadline.saturating_duration_since(Instant::now());
                    used = self.0.freed.wait_timeout(used, wait).unwrap_or_else(PoisonError::into_inner).0;
                }
                Some(_) => return Err(Error::InUse { path, by: "another database of this process" }),
            }
        }
        let options = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = options.map_err(Error::io("open", &path))?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => return Err(Error::InUse { path, by: "another process" }),
            Err(error) => return Err(Error::io("lock", &path)(error.into())),
        }
        let there = file.metadata().map_err(Error::io("look at", &path))?;
        let found = Meta::load(&meta)?;
        if found.is_none() && there.len() > 0 {
            return Err(Error::NotHydrated { path });
        }
        let place = Place { path, url: url.to_owned(), found, meta, writing: Mutex::new(()) };
        if place.found.is_none() {
            // Before anything is written: what lies at the path is known to be ours from here on.
            place.note(&Meta { url: place.url.clone(), complete: None })?;
        }
        used.insert(inode(&there), Use::Open);
        Ok((file, Registered { places: self.clone(), inode: inode(&there) }, place))
    }
}

impl Place {
    /// Writes what stands beside the file.
    pub(crate) fn note(&self, meta: &Meta) -> Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        meta.store(&self.meta)
    }
}

impl Registered {
    /// It will be gone soon.
    pub(crate) fn closing(&self) {
        self.places.used().insert(self.inode, Use::Closing);
        self.places.0.freed.notify_all();
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.places.used().remove(&self.inode);
        self.places.0.freed.notify_all();
    }
}

fn inode(there: &fs::Metadata) -> Inode {
    (there.dev(), there.ino())
}

/// The file that a path means: in a folder, one named after the replica. Folders on the way are made.
fn resolve(path: &Path, url: &str) -> Result<PathBuf> {
    let is_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.is_dir();
    let folder = if is_folder { Some(path) } else { path.parent().filter(|parent| !parent.as_os_str().is_empty()) };
    if let Some(folder) = folder {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let path = if is_folder { path.join(format!("{:016x}.db", sum(url))) } else { path.to_owned() };
    // What stands beside the file lies where the file does, whatever link leads there.
    let absolute = fs::canonicalize(&path).or_else(|_| std::path::absolute(&path));
    absolute.map_err(Error::io("find", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_27_a_folder_means_one_file_for_each_replica() {
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("new");
        let slash = PathBuf::from(format!("{}/", new.display()));
        let (one, other) = (resolve(&slash, "s3://a").unwrap(), resolve(&new, "s3://b").unwrap());
        assert!(new.is_dir() && one.parent() == Some(&new) && other.parent() == Some(&new) && one != other);
        assert_eq!(resolve(&new, "s3://a").unwrap(), one);
        assert_eq!(resolve(&new.join("file"), "s3://a").unwrap(), new.join("file"));
    }

    #[test]
    fn rule_19_one_file_is_one_databases_and_no_other_file_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let (path, places) = (folder.path().join("db"), Places::default());
        let opened = places.open(&path, "s3://a").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for path in [&path, &link] {
            let error = places.open(path, "s3://b").unwrap_err();
            assert!(error.to_string().contains("another database of this process"), "{error}");
        }
        // Whoever is closing is waited for.
        opened.1.closing();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| places.open(&path, "s3://b").map(drop));
            drop(opened);
            waiting.join().unwrap().unwrap();
        });
        let precious = folder.path().join("precious.db");
        fs::write(&precious, "a database of somebody's").unwrap();
        let error = places.open(&precious, "s3://a").unwrap_err();
        assert!(matches!(error, Error::NotHydrated { .. }), "{error}");
        assert_eq!(fs::read_to_string(&precious).unwrap(), "a database of somebody's");
    }
}
