//! SQLite's locks on a database file, taken the way its unix VFS takes them (`os_unix.c`, "POSIX Advisory Locking"), so that every SQLite on the
//! machine waits for us, and we for it.
//!
//! They are open-file-description locks. Those conflict with the classic POSIX locks that SQLite takes just as two processes' do, but they belong to
//! our descriptor: closing another descriptor of the file does not drop them, and a SQLite in our own process is held off, too. (The reverse still
//! holds: closing a descriptor of ours drops the POSIX locks of a SQLite in this process. So a copy keeps its descriptor open.)

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use tokio::time::Instant;

use crate::{Error, Result};

/// How long between two tries.
const PAUSE: Duration = Duration::from_millis(5);
/// How long new readers are held off at first, to let those that read already end; then twice as long, and so on.
const FIRST_PUSH: Duration = Duration::from_millis(200);
/// The longest that new readers are held off at a time.
const LONGEST_PUSH: Duration = Duration::from_secs(2);
/// How long they are let in between.
const LET_IN: Duration = Duration::from_millis(100);

/// A range of bytes of the file; nobody cares what they hold.
#[derive(Clone, Copy)]
struct Bytes {
    start: libc::off_t,
    len: libc::off_t,
}

const PENDING: Bytes = Bytes { start: 0x4000_0000, len: 1 };
const RESERVED: Bytes = Bytes { start: PENDING.start + 1, len: 1 };
const SHARED: Bytes = Bytes { start: PENDING.start + 2, len: 510 };
const ALL: Bytes = Bytes { start: PENDING.start, len: 512 };
/// Ours alone, beyond SQLite's: held by the one process that follows with this file.
const FOLLOWER: Bytes = Bytes { start: PENDING.start + 1024, len: 1 };

#[derive(Clone, Copy)]
enum Mode {
    Read,
    Write,
    None,
}

fn describe(mode: Mode, bytes: Bytes) -> libc::flock {
    let mode = match mode {
        Mode::Read => libc::F_RDLCK,
        Mode::Write => libc::F_WRLCK,
        Mode::None => libc::F_UNLCK,
    };
    // Open-file-description locks want a process id of 0.
    libc::flock {
        l_type: mode as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: bytes.start,
        l_len: bytes.len,
        l_pid: 0,
    }
}

/// Changes a lock, where nobody else's is in the way.
fn set(file: &File, mode: Mode, bytes: Bytes) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&describe(mode, bytes))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Claims a copy for this process's follower, as long as `file` is open.
pub(crate) fn claim(file: &File) -> io::Result<bool> {
    set(file, Mode::Write, FOLLOWER)
}

/// Until when to wait for other users of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    began: Instant,
    time: Duration,
}

impl Patience {
    pub(crate) fn new(time: Duration) -> Self {
        Self { began: Instant::now(), time }
    }

    /// As much again, from now on.
    pub(crate) fn again(self) -> Self {
        Self::new(self.time)
    }

    /// A moment's rest, or the end of patience.
    async fn rest(&self, path: &Path, time: Duration) -> Result<()> {
        if self.began.elapsed() >= self.time {
            return Err(Error::Busy { path: path.into(), waited: self.began.elapsed() });
        }
        tokio::time::sleep(time).await;
        Ok(())
    }
}

/// Locks that are held; dropped, they go all at once.
#[derive(Debug)]
pub(crate) struct Locks {
    file: Arc<File>,
    path: Arc<Path>,
}

impl Locks {
    /// SHARED: nobody changes the file.
    pub(crate) async fn share(file: &Arc<File>, path: &Arc<Path>, patience: Patience) -> Result<Self> {
        let locks = Self { file: file.clone(), path: path.clone() };
        loop {
            // As `unixLock` does: whoever holds PENDING lets nobody in.
            if locks.set(Mode::Read, PENDING)? {
                let shared = locks.set(Mode::Read, SHARED)?;
                locks.set(Mode::None, PENDING)?;
                if shared {
                    return Ok(locks);
                }
            }
            patience.rest(path, PAUSE).await?;
        }
    }

    /// RESERVED, after SHARED: nobody else begins to write; readers come and go. `false` where another does write.
    ///
    /// Not while a hot journal lies there: readers take a journal for a living writer's as long as anybody holds this.
    pub(crate) fn try_reserve(&self) -> Result<bool> {
        self.set(Mode::Write, RESERVED)
    }

    /// Whether another holds RESERVED: its journal is not hot then.
    pub(crate) fn is_reserved(&self) -> Result<bool> {
        let mut lock = describe(Mode::Write, RESERVED);
        fcntl(&*self.file, FcntlArg::F_OFD_GETLK(&mut lock)).map_err(|error| self.failed(error.into()))?;
        Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
    }

    /// EXCLUSIVE, after SHARED: nobody else reads or writes.
    ///
    /// New readers are held off (PENDING) until those that read already have ended, but not for long: where one reads on and on, others are let in
    /// meanwhile.
    pub(crate) async fn exclude(&self, patience: Patience) -> Result<()> {
        let mut push = FIRST_PUSH;
        loop {
            if self.set(Mode::Write, PENDING)? {
                let until = Instant::now() + push;
                loop {
                    if self.set(Mode::Write, SHARED)? {
                        return Ok(());
                    }
                    if Instant::now() >= until {
                        break;
                    }
                    patience.rest(&self.path, PAUSE).await?;
                }
                self.set(Mode::None, PENDING)?;
                push = (push * 2).min(LONGEST_PUSH);
                patience.rest(&self.path, LET_IN).await?;
            } else {
                patience.rest(&self.path, PAUSE).await?;
            }
        }
    }

    fn set(&self, mode: Mode, bytes: Bytes) -> Result<bool> {
        set(&self.file, mode, bytes).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io("lock", &*self.path)(error)
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        // In one call, so that nobody sees RESERVED without the rest. What cannot be unlocked ends with the descriptor.
        let _ = set(&self.file, Mode::None, ALL);
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, ErrorCode};

    use super::*;

    const NOT_LONG: Duration = Duration::from_millis(300);

    fn database(folder: &Path) -> (Arc<File>, Arc<Path>, Connection) {
        let path: Arc<Path> = folder.join("db").into();
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)").unwrap();
        connection.busy_timeout(Duration::ZERO).unwrap();
        (Arc::new(File::options().read(true).write(true).open(&path).unwrap()), path, connection)
    }

    fn is_busy<T: std::fmt::Debug>(outcome: &rusqlite::Result<T>) -> bool {
        matches!(outcome, Err(rusqlite::Error::SqliteFailure(error, _)) if error.code == ErrorCode::DatabaseBusy)
    }

    #[tokio::test]
    async fn sqlite_and_we_hold_each_other_off() {
        let folder = tempfile::tempdir().unwrap();
        let (file, path, sqlite) = database(folder.path());
        let read = || sqlite.query_row("SELECT a FROM t", [], |row| row.get::<_, i64>(0));
        let write = || sqlite.execute("UPDATE t SET a = a", []);

        let locks = Locks::share(&file, &path, Patience::new(NOT_LONG)).await.unwrap();
        read().unwrap();
        assert!(is_busy(&write()), "it got past our SHARED");
        assert!(locks.try_reserve().unwrap());
        read().unwrap();
        assert!(is_busy(&write()), "it got past our RESERVED");
        locks.exclude(Patience::new(NOT_LONG)).await.unwrap();
        assert!(is_busy(&read()), "it got past our EXCLUSIVE");
        drop(locks);
        write().unwrap();

        sqlite.execute_batch("BEGIN; SELECT * FROM t").unwrap();
        read().unwrap();
        let locks = Locks::share(&file, &path, Patience::new(NOT_LONG)).await.unwrap();
        assert!(locks.try_reserve().unwrap());
        let refused = locks.exclude(Patience::new(NOT_LONG)).await;
        assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
        drop(locks);
        sqlite.execute_batch("COMMIT; BEGIN IMMEDIATE").unwrap();
        let locks = Locks::share(&file, &path, Patience::new(NOT_LONG)).await.unwrap();
        assert!(locks.is_reserved().unwrap() && !locks.try_reserve().unwrap());
        drop(locks);
        sqlite.execute_batch("COMMIT; BEGIN EXCLUSIVE").unwrap();
        let refused = Locks::share(&file, &path, Patience::new(NOT_LONG)).await;
        assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    }

    #[test]
    fn one_follower_has_a_copy_and_sqlite_does_not_mind() {
        let folder = tempfile::tempdir().unwrap();
        let (file, path, sqlite) = database(folder.path());
        let other = File::options().read(true).write(true).open(path).unwrap();
        assert!(claim(&file).unwrap() && !claim(&other).unwrap());
        sqlite.execute_batch("BEGIN EXCLUSIVE; UPDATE t SET a = 2; COMMIT").unwrap();
        drop(file);
        assert!(claim(&other).unwrap());
    }
}
