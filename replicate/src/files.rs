//! The one place that opens files.
//!
//! POSIX locks belong to a process and an inode: when the process closes *any* descriptor of a database or of its `-shm`, all the locks that its
//! SQLite holds there are gone, and others may recover the log or truncate the index beneath us. So a database's
//! pages are read through SQLite's own descriptor, and a descriptor that is needed to see who holds which lock, or to hold one, is kept as
//! `descriptors` says. The log itself carries no locks.
#![expect(clippy::disallowed_methods, reason = "this is the place")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};

use crate::descriptors::Descriptor;

/// SQLite's lock bytes in a `-shm` file.
const WRITE_LOCK: i64 = 120;
const CHECKPOINT_LOCK: i64 = 121;
pub(crate) const READ_0_LOCK: i64 = 123;
pub(crate) const ALIVE_LOCK: i64 = 128;
/// The first of those bytes of a database file that readers lock, and how many there are.
pub(crate) const SHARED_LOCK: (i64, i64) = (0x4000_0002, 510);

/// What tells one file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Identity {
    device: u64,
    pub(crate) inode: u64,
}

impl Identity {
    /// Of the file that is found under a name, if there is one.
    pub(crate) fn at(path: &Path) -> io::Result<Option<Self>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(Self::of(&metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// A file, and when it was changed. Who changes it more than a moment later leaves another one; but for that the times must not go back, as they
/// may when power is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    identity: Identity,
    len: u64,
    /// Seconds and nanoseconds: of its content, and of everything. The latter nobody can set back.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// How old a change must be, so that another one is sure to have another time: the coarsest file systems count in twos of seconds.
    pub(crate) const OLD: Duration = Duration::from_secs(2);

    /// Of an open file, whatever its name is now.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|file| Self::new(&file))
    }

    fn new(file: &fs::Metadata) -> Self {
        Self {
            identity: Identity::of(file),
            len: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    /// Of the file that is found under a name, if there is one.
    pub(crate) fn at(path: &Path) -> io::Result<Option<Self>> {
        match fs::metadata(path) {
            Ok(file) => Ok(Some(Self::new(&file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether it is the same file with the same content, as far as its times tell; who may read it, and by how many names, may have changed.
    pub(crate) fn is_unwritten_since(&self, before: &Self) -> bool {
        (self.identity, self.len, self.modified) == (before.identity, before.len, before.modified)
    }

    /// Whether it was changed longer ago than that, by the clock which gives files their times.
    pub(crate) fn is_older_than(&self, age: Duration) -> bool {
        let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else { return false };
        [self.modified, self.changed].into_iter().all(|(seconds, nanoseconds)| {
            let time = u64::try_from(seconds).ok().zip(u32::try_from(nanoseconds).ok());
            let time = time.map_or(Duration::ZERO, |(seconds, nanoseconds)| Duration::new(seconds, nanoseconds));
            now.checked_sub(time).is_some_and(|passed| passed > age)
        })
    }
}

/// What tells one start of the machine from the next. Between two of them a file's times may have gone back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Boot(pub(crate) u128);

impl Boot {
    /// This one. `None` where the system does not say.
    pub(crate) fn current() -> Option<Self> {
        static BOOT: OnceLock<Option<Boot>> = OnceLock::new();
        *BOOT.get_or_init(|| {
            let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
            u128::from_str_radix(&text.trim().replace('-', ""), 16).ok().map(Self)
        })
    }
}

/// Looks at the locks that others hold on a database or a `-shm` file. It never takes one.
#[derive(Clone, Debug)]
pub(crate) struct Locks(pub(crate) Descriptor);

impl Locks {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Descriptor::open(path).map(Self)
    }

    /// Whether somebody is checkpointing, in whatever process: he may be waiting for our hold, with the write lock in his hand.
    pub(crate) fn checkpointing(&self) -> bool {
        self.held(CHECKPOINT_LOCK, true)
    }

    /// Whether anybody at all has the database open, other than through this descriptor's own locks.
    pub(crate) fn in_use_by_any(&self) -> bool {
        self.held(ALIVE_LOCK, true)
    }

    /// Whether somebody is writing, in whatever process.
    pub(crate) fn writing(&self) -> bool {
        self.held(WRITE_LOCK, true)
    }

    /// Whether another process has the database open.
    pub(crate) fn in_use(&self) -> bool {
        self.held(ALIVE_LOCK, false)
    }

    /// Whether somebody holds a database so that nobody else can even read it; and who, unless it is no process that can be seen from here.
    pub(crate) fn exclusive(&self) -> Option<Option<i32>> {
        let lock = self.query(libc::F_RDLCK, SHARED_LOCK, true).ok()?;
        (i32::from(lock.l_type) != libc::F_UNLCK).then_some((lock.l_pid > 0).then_some(lock.l_pid))
    }

    /// Whether somebody else holds a lock on a byte. What the SQLite in our own process holds shows only where that is asked for.
    fn held(&self, byte: i64, our_own_too: bool) -> bool {
        let lock = self.query(libc::F_WRLCK, (byte, 1), our_own_too);
        // Where it cannot be told, yes is the answer that does less harm.
        lock.map_or(true, |lock| i32::from(lock.l_type) != libc::F_UNLCK)
    }

    /// What stands in the way of a lock on some bytes. To a lock of an open file description, those of our own process are others.
    fn query(&self, kind: libc::c_int, (start, len): (i64, i64), our_own_too: bool) -> Result<libc::flock, Errno> {
        let mut lock =
            libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 };
        if our_own_too {
            match self.query_ofd(&mut lock) {
                // A kernel without them.
                Err(Errno::EINVAL) => {}
                asked => return asked.map(|()| lock),
            }
        }
        fcntl(self.0.as_ref(), FcntlArg::F_GETLK(&mut lock)).map(|_| lock)
    }

    fn query_ofd(&self, lock: &mut libc::flock) -> Result<(), Errno> {
        #[cfg(test)]
        if crate::faults::NO_OFD_LOCKS.get() {
            return Err(Errno::EINVAL);
        }
        fcntl(self.0.as_ref(), FcntlArg::F_OFD_GETLK(lock)).map(|_| ())
    }
}

/// A byte of the `-shm` file, far beyond its end, that whoever replicates the database has locked: of two, one waits.
const REPLICATOR_LOCK: i64 = 1 << 40;

/// That lock. It is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Reign(Locks);

impl Reign {
    /// Says no where another process, or somebody else in ours, has it. Where the system has no such locks, only our own process is kept out.
    pub(crate) fn begin(index: &Locks) -> io::Result<Option<Self>> {
        if !index.0.reign() {
            return Ok(None);
        }
        match set_ofd(index.0.as_ref(), libc::F_WRLCK, (REPLICATOR_LOCK, 1)) {
            Ok(()) | Err(Errno::EINVAL) => Ok(Some(Self(index.clone()))),
            Err(error) => {
                index.0.abdicate();
                if matches!(error, Errno::EAGAIN | Errno::EACCES) { Ok(None) } else { Err(error.into()) }
            }
        }
    }
}

impl Drop for Reign {
    fn drop(&mut self) {
        // Not left to a close: the descriptor may be kept.
        match set_ofd(self.0.0.as_ref(), libc::F_UNLCK, (REPLICATOR_LOCK, 1)) {
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => tracing::warn!(%error, "cannot give back the lock of a replicator"),
        }
        self.0.0.abdicate();
    }
}

/// Whether another process replicates a database just now. For processes that have not opened the database: the `-shm` file is opened, and closed.
///
/// # Errors
/// It cannot be seen.
pub fn is_replicated(database: &Path) -> io::Result<bool> {
    let file = match File::open(crate::capture::beside(database, "-shm")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: REPLICATOR_LOCK,
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)) {
        Ok(_) => Ok(lock.l_type != libc::F_UNLCK as i16),
        // There are no such locks, so nobody can have one.
        Err(Errno::EINVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Sets or gives back a lock of an open file description: those are not lost with other descriptors.
pub(crate) fn set_ofd(file: &File, kind: libc::c_int, (start, len): (i64, i64)) -> Result<(), Errno> {
    let lock =
        libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 };
    #[cfg(test)]
    if crate::raw::tests::MISSING.get() {
        return Err(Errno::EINVAL);
    }
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}

/// Opens the log.
pub(crate) fn open_log(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// What is captured is nobody else's business, whoever may read the database.
const OURS_ALONE: u32 = 0o600;

/// Creates a file of ours, whatever was there before.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(OURS_ALONE).open(path)
}

/// Creates a file of ours that nobody else finds, and that is gone when it is closed.
pub(crate) fn create_nameless(folder: &Path) -> io::Result<File> {
    let path = folder.join("copy.tmp");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(OURS_ALONE).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Makes a folder of ours, and those above it.
pub(crate) fn create_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens a file of ours.
pub(crate) fn open_own(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// Reads a file of ours, if it is there.
pub(crate) fn read_own(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::NO_OFD_LOCKS;

    /// A kernel that does not know them answers all the same, but for what our own process holds.
    #[test]
    fn ofd_locks_that_are_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let database = rusqlite::Connection::open(&path).unwrap();
        database.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (a); BEGIN IMMEDIATE").unwrap();
        let locks = Locks::open(&folder.path().join("db-shm")).unwrap();
        let seen = || (locks.writing(), locks.checkpointing(), locks.in_use(), locks.exclusive());
        assert_eq!(seen(), (true, false, false, None));
        NO_OFD_LOCKS.set(true);
        assert_eq!(seen(), (false, false, false, None));
        // All goes on with them or without.
        database.execute_batch("COMMIT").unwrap();
        database.busy_timeout(std::time::Duration::ZERO).unwrap();
        let clock = Box::new(|| ltx::Timestamp(1));
        let settings = crate::Settings::new(&path);
        let (mut capture, _) = crate::Capture::start(settings, clock, &mut crate::place::tests::Nobody).unwrap();
        for _ in 0..5 {
            database.execute_batch("INSERT INTO t VALUES (1); PRAGMA wal_checkpoint(RESTART)").unwrap();
            assert_eq!(capture.pass().unwrap().len(), 1);
        }
        assert_eq!(capture.snapshots(), 1);
        NO_OFD_LOCKS.set(false);
    }

    #[test]
    fn who_looks_sees_that_somebody_replicates() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        assert!(!is_replicated(&path).unwrap());
        // There is no SQLite here whose locks would be lost.
        fs::write(folder.path().join("db-shm"), "").unwrap();
        assert!(!is_replicated(&path).unwrap());
        let locks = Locks::open(&folder.path().join("db-shm")).unwrap();
        let reign = Reign::begin(&locks).unwrap().unwrap();
        assert!(is_replicated(&path).unwrap());
        assert!(Reign::begin(&locks).unwrap().is_none());
        drop(reign);
        assert!(!is_replicated(&path).unwrap());
        assert!(Reign::begin(&locks).unwrap().is_some());
    }
}
