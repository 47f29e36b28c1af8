//! Descriptors of databases and `-shm` files: each of these files is opened once, shared by all who need it, and closed when that harms nobody.
//!
//! Closing a descriptor drops the POSIX locks that SQLite in this process holds on the file. Whoever has a connection of ours has a
//! [`Descriptor`] as well, and keeps it longer; so nothing is closed while one is open. Connections that are not ours do not show. That there are
//! none must be said ([`Descriptor::may_close`]), otherwise the descriptor stays for as long as the file.
#![expect(clippy::disallowed_methods, reason = "this is the other place")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::files::Identity;

static OPEN: Mutex<Open> = Mutex::new(Open { files: BTreeMap::new(), idle: 0 });

struct Open {
    files: BTreeMap<Identity, Entry>,
    /// How many of them nobody uses.
    idle: usize,
}

struct Entry {
    file: Arc<File>,
    users: usize,
    closable: bool,
    /// Whether somebody holds locks of this descriptor: they are all one, and who gave back his own would give back another's.
    claimed: bool,
    /// Whether somebody replicates the database.
    reigned: bool,
}

fn open() -> MutexGuard<'static, Open> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file that is open for reading.
#[derive(Debug)]
pub(crate) struct Descriptor {
    /// Gone only while this is being dropped.
    file: Option<Arc<File>>,
    identity: Identity,
}

impl Descriptor {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut open = open();
        open.forget_deleted();
        let identity = Identity::of(&fs::metadata(path)?);
        if let Some(known) = open.share(identity) {
            return Ok(known);
        }
        // Some locks are only for those who may write. Nothing is ever written.
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => File::open(path)?,
            file => file?,
        };
        let identity = match file.metadata() {
            Ok(found) => Identity::of(&found),
            Err(error) => {
                // It may be a file whose locks are ours.
                std::mem::forget(file);
                return Err(error);
            }
        };
        if let Some(known) = open.share(identity) {
            // The name was given to a file that we know in this very moment. To close it again would be the harm.
            std::mem::forget(file);
            return Ok(known);
        }
        let file = Arc::new(file);
        let entry = Entry { file: file.clone(), users: 1, closable: false, claimed: false, reigned: false };
        open.files.insert(identity, entry);
        Ok(Self { file: Some(file), identity })
    }

    pub(crate) const fn identity(&self) -> Identity {
        self.identity
    }

    /// Says that this process has no connections to the file but ours: so it is closed with its last user.
    pub(crate) fn may_close(&self) {
        if let Some(entry) = open().files.get_mut(&self.identity) {
            entry.closable = true;
        }
    }

    /// Becomes the one who holds locks of this descriptor. Says no where somebody is that already.
    pub(crate) fn claim(&self) -> bool {
        let mut open = open();
        let entry = open.files.get_mut(&self.identity);
        entry.is_some_and(|entry| !std::mem::replace(&mut entry.claimed, true))
    }

    /// Becomes the one in this process who replicates the database. Says no where somebody is that already.
    pub(crate) fn reign(&self) -> bool {
        let mut open = open();
        let entry = open.files.get_mut(&self.identity);
        entry.is_some_and(|entry| !std::mem::replace(&mut entry.reigned, true))
    }

    /// Ends that, once the lock is given back.
    pub(crate) fn abdicate(&self) {
        if let Some(entry) = open().files.get_mut(&self.identity) {
            entry.reigned = false;
        }
    }

    /// Ends that, once the locks are given back.
    pub(crate) fn disclaim(&self) {
        if let Some(entry) = open().files.get_mut(&self.identity) {
            entry.claimed = false;
        }
    }
}

impl AsRef<File> for Descriptor {
    #[expect(clippy::expect_used, reason = "nobody has a reference to what is being dropped")]
    fn as_ref(&self) -> &File {
        self.file.as_deref().expect("it is there until it is dropped")
    }
}

impl Clone for Descriptor {
    fn clone(&self) -> Self {
        if let Some(entry) = open().files.get_mut(&self.identity) {
            entry.users += 1;
        }
        Self { file: self.file.clone(), identity: self.identity }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // Closed before anybody else can open the file, and then a connection to it.
        let mut open = open();
        self.file = None;
        let Some(entry) = open.files.get_mut(&self.identity) else { return };
        entry.users -= 1;
        match (entry.users, entry.closable) {
            (0, true) => drop(open.files.remove(&self.identity)),
            (0, false) => open.idle += 1,
            _ => {}
        }
    }
}

impl Open {
    fn share(&mut self, identity: Identity) -> Option<Descriptor> {
        let entry = self.files.get_mut(&identity)?;
        if entry.users == 0 {
            self.idle -= 1;
        }
        entry.users += 1;
        Some(Descriptor { file: Some(entry.file.clone()), identity })
    }

    /// A file that nobody finds any more protects nothing.
    fn forget_deleted(&mut self) {
        if self.idle == 0 {
            return;
        }
        let used = |entry: &Entry| entry.users > 0 || entry.file.metadata().is_ok_and(|file| file.nlink() > 0);
        self.files.retain(|_, entry| used(entry));
        self.idle = self.files.values().filter(|entry| entry.users == 0).count();
    }
}
