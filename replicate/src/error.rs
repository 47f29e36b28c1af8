//! What can go wrong while a database is captured.

use std::io;
use std::path::{Path, PathBuf};

use crate::wal::{Unproven, Unsettled};

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a database cannot be captured, or not just now. [`crate::Capture::pass`] may be called again after any of them, and goes on once what
/// is wrong is right again; only after [`Error::Replaced`], [`Error::Deleted`] and [`Error::NotShared`] it never is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder of ours, or the log.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// SQLite refuses.
    #[error("{}: cannot {what}: {source}", path.display())]
    Sqlite {
        /// What was tried.
        what: &'static str,
        /// The database.
        path: PathBuf,
        /// Why not.
        source: rusqlite::Error,
    },
    /// A call below SQLite's statements failed.
    #[error("{}: cannot {what}: SQLite's code {code}", path.display())]
    Code {
        /// What was tried.
        what: &'static str,
        /// The database.
        path: PathBuf,
        /// SQLite's extended result code.
        code: i32,
    },
    /// There is nothing to capture.
    #[error("{} is not in WAL mode; run PRAGMA journal_mode=WAL", .0.display())]
    NotWal(PathBuf),
    /// Somebody keeps everybody else out.
    #[error(
        "{} holds {} exclusively (locking_mode=EXCLUSIVE); replication waits until it is NORMAL",
        pid.map_or_else(|| "a process of another container".to_owned(), |pid| format!("PID {pid}")),
        path.display()
    )]
    Exclusive {
        /// The database.
        path: PathBuf,
        /// The process, where it can be seen from here.
        pid: Option<i32>,
    },
    /// What lies beside the database is not what the application has beside it.
    #[error("{}'s -wal/-shm are not shared with the application; mount the whole directory. Refusing", .0.display())]
    NotShared(PathBuf),
    /// A file system without the memory and the locks that a log needs; see [`crate::Settings::any_file_system`].
    #[error("{} is on {kind}: WAL needs local shared memory and locks. Refusing", path.display())]
    FileSystem {
        /// The database.
        path: PathBuf,
        /// The file system's name.
        kind: &'static str,
    },
    /// Somebody else replicates it.
    #[error("{} is replicated by another process; stop that one, and this one goes on", .0.display())]
    Replicated(PathBuf),
    /// Another file has the database's name now, or none. The capture must be started again.
    #[error("{}: database file was replaced (changed outside SQLite); new snapshot", .0.display())]
    Replaced(PathBuf),
    /// A file beside the database has gone. The capture must be started again.
    #[error(
        "{} was deleted while in use; committed data may be lost. Restart the application; new snapshot",
        .0.display()
    )]
    Deleted(PathBuf),
    /// The index stays as it is, and says nothing.
    #[error("{}: the index of the WAL cannot be read: {why}", path.display())]
    Unsettled {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        why: Unsettled,
    },
    /// Not even a snapshot can be made: what is committed cannot be read.
    #[error("{}: cannot read what is committed: {why}", path.display())]
    Unproven {
        /// The database.
        path: PathBuf,
        /// Why not.
        why: Unproven,
    },
    /// An LTX file could not be made.
    #[error("{}: cannot encode: {source}", path.display())]
    Ltx {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: ltx::Error,
    },
    /// The replica could not be asked what it holds.
    #[error("cannot ask the replica what it holds: {0}")]
    Remote(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }

    pub(crate) fn sqlite(what: &'static str, path: &Path) -> impl Fn(rusqlite::Error) -> Self {
        move |source| Self::Sqlite { what, path: path.to_owned(), source }
    }

    /// Whether the disk is full: nothing is lost, and the next pass goes on once there is room again.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let full =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match self {
            Self::Io { source, .. } | Self::Ltx { source: ltx::Error::Io(source), .. } => full(source),
            _ => false,
        }
    }

    /// Whether a file of ours holds something else than what was written.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Ltx { source: ltx::Error::Io(source), .. } | Self::Io { source, .. } => {
                source.kind() == io::ErrorKind::UnexpectedEof
            }
            Self::Ltx { .. } => true,
            _ => false,
        }
    }

    /// Whether what was held of the database is nobody's any more, so that it must be started anew.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Replaced(_) | Self::Deleted(_) | Self::NotShared(_))
    }

    /// Whether somebody holds a lock that we need, so that trying again will help.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Sqlite { source: rusqlite::Error::SqliteFailure(error, _), .. }
            if matches!(error.code, rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked))
    }
}
