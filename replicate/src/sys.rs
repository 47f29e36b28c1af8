//! Below SQLite's statements: a connection's file and its part of the shared memory. The only code that may be `unsafe`.
//!
//! The database is read, and its index is seen, through the connection's own descriptors; see `files` for why there may be no others. Who has no
//! connection sees the index through a mapping of his own, which no lock depends on.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, ffi};

use crate::wal::{INDEX_SAYS, INDEX_SAYS_FROM, INDEX_WORDS};
use crate::{Error, Result};

/// The size of a piece of a `-shm` file, as SQLite maps it.
const REGION: c_int = 32 << 10;

/// The lock of readers that rely on the database file alone, among those of the index.
const READ_0: c_int = 3;

/// A connection to the database that writes nothing, and leaves the log alone when it closes.
#[derive(Debug)]
pub(crate) struct Attached {
    // Nothing but this type's own statements runs on it, none of which leaves WAL mode: so its file and its mapping stay.
    connection: Connection,
    file: NonNull<ffi::sqlite3_file>,
    index: Cell<Option<NonNull<u32>>>,
    pinned: Cell<bool>,
    path: PathBuf,
}

// SAFETY: a connection may be used by any thread, one at a time, and so may what hangs off it. `Attached` is not `Sync`.
unsafe impl Send for Attached {}

impl Attached {
    /// Opens a database that exists.
    pub(crate) fn open(path: &Path, patience: Duration) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let refused = Error::sqlite("open it", path);
        let connection = Connection::open_with_flags(path, flags).map_err(&refused)?;
        let code = |what, code| match code {
            ffi::SQLITE_OK => Ok(()),
            code => Err(Error::Code { what, path: path.to_owned(), code }),
        };
        // SAFETY: the connection is open; with neither buffer nor size this takes the lookaside memory away, before anything uses it.
        let rc = unsafe {
            let none = std::ptr::null_mut::<c_void>();
            ffi::sqlite3_db_config(connection.handle(), ffi::SQLITE_DBCONFIG_LOOKASIDE, none, 0, 0)
        };
        code("do without lookaside memory", rc)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(&refused)?;
        connection.busy_timeout(patience).map_err(&refused)?;
        connection.query_row("PRAGMA wal_autocheckpoint=0", [], |_| Ok(())).map_err(&refused)?;
        connection.execute_batch("PRAGMA mmap_size=0").map_err(&refused)?;
        let mut yes: c_int = 1;
        // SAFETY: the connection is open, and the operation reads and writes one `int`.
        let rc = unsafe {
            let yes = (&raw mut yes).cast();
            ffi::sqlite3_file_control(connection.handle(), c"main".as_ptr(), ffi::SQLITE_FCNTL_PERSIST_WAL, yes)
        };
        code("keep the WAL when the last one leaves", rc)?;
        let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
        // SAFETY: the connection is open, and the operation writes one pointer.
        let rc = unsafe {
            let file = (&raw mut file).cast();
            ffi::sqlite3_file_control(connection.handle(), c"main".as_ptr(), ffi::SQLITE_FCNTL_FILE_POINTER, file)
        };
        code("find its file", rc)?;
        let file = NonNull::new(file).ok_or(Error::Code {
            what: "find its file",
            path: path.to_owned(),
            code: ffi::SQLITE_ERROR,
        })?;
        Ok(Self { connection, file, index: Cell::new(None), pinned: Cell::new(false), path: path.to_owned() })
    }

    /// Begins a hold: a read transaction, which keeps the log from being reset, or the database file from being written to.
    pub(crate) fn begin(&self) -> Result<()> {
        let refused = Error::sqlite("begin to read it", &self.path);
        self.connection.execute_batch("BEGIN").inspect_err(|_| self.release()).map_err(&refused)?;
        // It takes the read lock as any SELECT does, but neither parses the schema nor keeps it.
        let read = self.connection.prepare_cached("PRAGMA schema_version");
        match read.and_then(|mut read| read.query_row([], |_| Ok(()))) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.release();
                Err(refused(error))
            }
        }
    }

    /// Takes the write lock, and writes nothing.
    pub(crate) fn lock_writes(&self) -> Result<()> {
        self.connection.execute_batch("BEGIN IMMEDIATE").map_err(Error::sqlite("lock it for writing", &self.path))
    }

    /// Begins a hold that is no transaction: the lock of a reader that relies on the file alone, under which nothing is copied into the file.
    /// Says no where somebody is copying just now. Until it is released, no transaction may be begun on this connection.
    pub(crate) fn pin(&self) -> Result<bool> {
        let what = "keep its file from being written to";
        // The index must be mapped first.
        self.index()?;
        match self.lock_file(ffi::SQLITE_SHM_LOCK | ffi::SQLITE_SHM_SHARED) {
            ffi::SQLITE_OK => {
                self.pinned.set(true);
                Ok(true)
            }
            ffi::SQLITE_BUSY => Ok(false),
            code => Err(self.failed(what, code)),
        }
    }

    fn lock_file(&self, flags: c_int) -> c_int {
        let lock = self.methods().filter(|methods| methods.iVersion >= 2).and_then(|methods| methods.xShmLock);
        let Some(lock) = lock else { return ffi::SQLITE_IOERR_SHMLOCK };
        // SAFETY: the file is open and its index mapped. SQLite keeps account of the lock as of one of its own, and no transaction of this
        // connection, which might give it back, is open meanwhile.
        unsafe { lock(self.file.as_ptr(), READ_0, 1, flags) }
    }

    /// Ends a hold of either kind, if there is one.
    pub(crate) fn release(&self) {
        if self.pinned.take() {
            let code = self.lock_file(ffi::SQLITE_SHM_UNLOCK | ffi::SQLITE_SHM_SHARED);
            if code != ffi::SQLITE_OK {
                tracing::warn!(path = %self.path.display(), code, "cannot give back a lock");
            }
        }
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot end a read transaction");
        }
    }

    /// Copies what it can from the log into the database file; with `truncate`, empties the log if that was all.
    pub(crate) fn checkpoint(&self, truncate: bool) -> Result<()> {
        let sql = if truncate { "PRAGMA wal_checkpoint(TRUNCATE)" } else { "PRAGMA wal_checkpoint(PASSIVE)" };
        let failed = Error::sqlite("checkpoint it", &self.path);
        self.connection.query_row(sql, [], |_| Ok(())).map_err(failed)
    }

    /// How long to wait for other connections.
    pub(crate) fn set_patience(&self, patience: Duration) -> Result<()> {
        self.connection.busy_timeout(patience).map_err(Error::sqlite("set a timeout on it", &self.path))
    }

    fn methods(&self) -> Option<&ffi::sqlite3_io_methods> {
        // SAFETY: the file lives as long as the connection, and its methods for ever; they are null only before it is open.
        unsafe { (*self.file.as_ptr()).pMethods.as_ref() }
    }

    fn failed(&self, what: &'static str, code: c_int) -> Error {
        Error::Code { what, path: self.path.clone(), code }
    }

    /// Reads from the database file, as far as it reaches; zeros behind that. The log is not looked at.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let missing = || self.failed("read its file", ffi::SQLITE_IOERR);
        let read = self.methods().and_then(|methods| methods.xRead).ok_or_else(missing)?;
        let len = c_int::try_from(into.len()).map_err(|_| missing())?;
        // SAFETY: the file is open, and the buffer is as long as is said. No statement runs on the connection: this thread has it.
        match unsafe { read(self.file.as_ptr(), into.as_mut_ptr().cast(), len, offset.cast_signed()) } {
            // SQLite has filled what was missing with zeros.
            ffi::SQLITE_OK | ffi::SQLITE_IOERR_SHORT_READ => Ok(()),
            code => Err(self.failed("read its file", code)),
        }
    }

    /// Length of the database file in bytes.
    pub(crate) fn len(&self) -> Result<u64> {
        let mut len = 0;
        let size = self.methods().and_then(|methods| methods.xFileSize);
        // SAFETY: the file is open; one number is written.
        match size.map_or(ffi::SQLITE_IOERR, |size| unsafe { size(self.file.as_ptr(), &raw mut len) }) {
            ffi::SQLITE_OK => Ok(u64::try_from(len).unwrap_or(0)),
            code => Err(self.failed("find the length of its file", code)),
        }
    }

    /// Copies the beginning of the index. It is mapped once a transaction was begun on this connection.
    pub(crate) fn index(&self) -> Result<[u32; INDEX_WORDS]> {
        let index = match self.index.get() {
            Some(index) => index,
            None => self.map()?,
        };
        let mut words = [0; INDEX_WORDS];
        for (number, word) in words.iter_mut().enumerate() {
            // Between the two copies, and before what checkpoints say. SQLite has its barriers at the same places.
            if number.is_multiple_of(12) {
                fence(Ordering::SeqCst);
            }
            // SAFETY: a whole region is mapped, writable, page-aligned and longer than this, until the connection leaves WAL mode or is
            // closed. Other processes change it meanwhile, whole words at a time, as we read it.
            *word = unsafe { AtomicU32::from_ptr(index.as_ptr().add(number)) }.load(Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        Ok(words)
    }

    fn map(&self) -> Result<NonNull<u32>> {
        let what = "map the index of its WAL";
        let map = self.methods().filter(|methods| methods.iVersion >= 2).and_then(|methods| methods.xShmMap);
        let map = map.ok_or_else(|| self.failed(what, ffi::SQLITE_IOERR_SHMMAP))?;
        let mut region: *mut c_void = std::ptr::null_mut();
        // SAFETY: the file is open; region 0 exists already, or null is written. SQLite hands out the mapping that its own reads use.
        match unsafe { map(self.file.as_ptr(), 0, REGION, 0, &raw mut region) } {
            ffi::SQLITE_OK => {}
            code => return Err(self.failed(what, code)),
        }
        let region = NonNull::new(region.cast()).ok_or_else(|| self.failed(what, ffi::SQLITE_IOERR_SHMMAP))?;
        self.index.set(Some(region));
        Ok(region)
    }
}

/// Has SQLite ask for its page caches as they are needed, one page at a time. Works before anything else was asked of SQLite; says whether it did.
pub(crate) fn small_caches() -> bool {
    // SAFETY: without a buffer nothing is kept or freed; SQLite refuses this once it is initialised. It must not be called while another thread
    // does initialise it, which is what whoever calls this promises: nothing has used SQLite yet.
    let rc = unsafe {
        let none = std::ptr::null_mut::<c_void>();
        ffi::sqlite3_config(ffi::SQLITE_CONFIG_PAGECACHE, none, 0, 1)
    };
    rc == ffi::SQLITE_OK
}

/// Has the allocator give back what it does not need: few arenas, and large pieces each by itself. What many databases need at once, and only for a
/// moment, would stay with the process otherwise.
pub(crate) fn thrifty_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it only sets limits of the allocator, which guards itself.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 10);
    }
}

/// Gives back what the allocator has, and nobody needs.
pub(crate) fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it changes nothing that is in use, and the allocator guards itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The beginning of an index, to be looked at from any thread. No descriptor is needed for that.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    words: NonNull<u32>,
    _mapped: Arc<Mapped>,
}

#[derive(Debug)]
struct Mapped(NonNull<c_void>);

// SAFETY: it is memory that stays where it is until the last one drops it, and is only read, whole words at a time.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}
// SAFETY: any thread may unmap it, and only the last owner does.
unsafe impl Send for Mapped {}
// SAFETY: nothing can be done with a reference to it.
unsafe impl Sync for Mapped {}

impl Mapping {
    /// How much is mapped: what the operating system makes a whole page of.
    const LEN: usize = INDEX_WORDS * 4;

    pub(crate) fn new(index: &File) -> io::Result<Self> {
        if index.metadata()?.len() < Self::LEN as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a new mapping, readable only, of a file that is open; it stays when the file is closed.
        let mapped = unsafe {
            libc::mmap(std::ptr::null_mut(), Self::LEN, libc::PROT_READ, libc::MAP_SHARED, index.as_raw_fd(), 0)
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapped = NonNull::new(mapped).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { words: mapped.cast(), _mapped: Arc::new(Mapped(mapped)) })
    }

    /// Whether the first copy of the header, which is written last, says this. It lies in one line of the processor's cache.
    pub(crate) fn says(&self, expected: &[u32; INDEX_SAYS]) -> bool {
        let word = |number| {
            // SAFETY: it is mapped, page-aligned, and `number` within it. The file had these bytes, and SQLite never cuts it where
            // somebody has the database open, nor to nothing: so the page is there. Other processes change it whole words at a time.
            unsafe { AtomicU32::from_ptr(self.words.as_ptr().add(number)) }.load(Ordering::Relaxed)
        };
        (expected.iter().zip(INDEX_SAYS_FROM..)).all(|(expected, at)| word(at) == *expected)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nobody has it any more.
        unsafe { libc::munmap(self.0.as_ptr(), Mapping::LEN) };
    }
}
