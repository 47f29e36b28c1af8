//! The raw hold: what a read transaction on a log that is all in the file guarantees, without a connection.
//!
//! Three shared locks of open file descriptions, which no close of another descriptor takes away. On two bytes of the `-shm` file: that of whoever
//! has the database open, so that nobody begins the index anew, and that of readers which rely on the file alone, so that nothing is copied
//! into it, and what is committed stays in the log. And on those of the database that readers lock, so that the last one to leave does not
//! delete the log. See "Lock" in SQLite's "WAL-mode File Format" (<https://www.sqlite.org/walformat.html#wal_locks>).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use crate::files::{self, ALIVE_LOCK, Locks, READ_0_LOCK, SHARED_LOCK};
use crate::wal::{INDEX_SAYS, INDEX_SAYS_FROM, INDEX_WORDS};

/// Why there is no hold.
#[derive(Debug)]
pub(crate) enum NotHeld {
    /// Somebody is copying into the file, or keeps everybody out.
    Busy,
    /// The kernel does not know such locks.
    Unsupported,
    Io(io::Error),
}

/// The locks. They are given back when this is dropped.
#[derive(Debug)]
pub(crate) struct RawHold {
    database: Locks,
    index: Locks,
}

impl RawHold {
    pub(crate) fn take(database: &Locks, index: &Locks) -> Result<Self, NotHeld> {
        if !index.0.claim() {
            return Err(NotHeld::Busy);
        }
        let hold = Self { database: database.clone(), index: index.clone() };
        let (index, database) = (hold.index.0.as_ref(), hold.database.0.as_ref());
        set(index, libc::F_RDLCK, (ALIVE_LOCK, 1))?;
        set(index, libc::F_RDLCK, (READ_0_LOCK, 1))?;
        set(database, libc::F_RDLCK, SHARED_LOCK)?;
        Ok(hold)
    }

    pub(crate) const fn database(&self) -> &Locks {
        &self.database
    }

    pub(crate) const fn index(&self) -> &Locks {
        &self.index
    }
}

impl Drop for RawHold {
    fn drop(&mut self) {
        // Not left to a close: the descriptor may be shared, or kept.
        let (index, database) = (self.index.0.as_ref(), self.database.0.as_ref());
        for (file, bytes) in [(database, SHARED_LOCK), (index, (READ_0_LOCK, 1)), (index, (ALIVE_LOCK, 1))] {
            if let Err(error) = set(file, libc::F_UNLCK, bytes) {
                tracing::warn!(?error, "cannot give back a lock");
            }
        }
        self.index.0.disclaim();
    }
}

fn set(file: &File, kind: libc::c_int, bytes: (i64, i64)) -> Result<(), NotHeld> {
    match files::set_ofd(file, kind, bytes) {
        Ok(()) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(NotHeld::Busy),
        Err(Errno::EINVAL) if kind == libc::F_UNLCK => Ok(()),
        Err(Errno::EINVAL) => Err(NotHeld::Unsupported),
        Err(error) => Err(NotHeld::Io(error.into())),
    }
}

/// The beginning of the index, read from its file.
pub(crate) fn read_index(index: &Locks) -> io::Result<[u32; INDEX_WORDS]> {
    let mut bytes = [0; INDEX_WORDS * 4];
    index.0.as_ref().read_exact_at(&mut bytes, 0)?;
    let (words, _) = bytes.as_chunks::<4>();
    Ok(std::array::from_fn(|number| crate::wal::word(words[number])))
}

/// Whether the first copy of the header in the file says this. No, where it cannot be read: then whoever takes the database up says why.
pub(crate) fn says(index: &Locks, expected: &[u32; INDEX_SAYS]) -> bool {
    let mut bytes = [0; (INDEX_SAYS_FROM + INDEX_SAYS) * 4];
    if index.0.as_ref().read_exact_at(&mut bytes, 0).is_err() {
        return false;
    }
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().skip(INDEX_SAYS_FROM).zip(expected).all(|(word, expected)| crate::wal::word(*word) == *expected)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    thread_local! {
        /// As if this thread ran on a kernel without such locks.
        pub(crate) static MISSING: Cell<bool> = const { Cell::new(false) };
    }
}
