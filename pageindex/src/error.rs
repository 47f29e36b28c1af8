//! Why there is no way to a page, or to a database at some moment.

use std::path::Path;
use std::sync::Arc;

use litestream_storage::{FileInfo, Kind};
use ltx::{PageSize, Timestamp, Txid};

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a replica cannot give what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] litestream_storage::Error),
    /// A file in the replica is not what it should be.
    #[error("{key}: {source}")]
    Format {
        /// The file.
        key: Arc<str>,
        /// What is wrong with it.
        source: ltx::Error,
    },
    /// There are no files at all.
    #[error("{url}: no backup found: the replica is empty; check its path, or replicate a database to it first")]
    NoBackup {
        /// The replica.
        url: Arc<str>,
    },
    /// No file ends with this TXID.
    #[error("{url}: transaction {txid} is not available{}", around(*below, *above))]
    TransactionNotAvailable {
        /// The replica.
        url: Arc<str>,
        /// What was asked for.
        txid: Txid,
        /// The nearest one below that can be restored.
        below: Option<Txid>,
        /// The nearest one above that some file ends with.
        above: Option<Txid>,
    },
    /// Transactions are missing between two files.
    #[error(
        "{url}: transactions {} to {} are missing: files reach {have}, the next one begins with {next}; \
         restore an earlier TXID, or make a new snapshot",
        have.next(), next.previous()
    )]
    NonContiguous {
        /// The replica.
        url: Arc<str>,
        /// The last transaction that can be reached.
        have: Txid,
        /// The first one after the gap.
        next: Txid,
    },
    /// The moment asked for lies before the first backup.
    #[error("{url}: nothing was backed up yet at {}: the oldest moment that can be restored is just after {}", rfc3339(*target), rfc3339(*oldest))]
    TooEarly {
        /// The replica.
        url: Arc<str>,
        /// The moment asked for.
        target: Timestamp,
        /// The time of the oldest file that a restore can begin with.
        oldest: Timestamp,
    },
    /// Files were removed faster than they could be read.
    #[error("{url}: files of transaction {txid} keep vanishing while they are read ({last}): is retention too short?")]
    Vanishing {
        /// The replica.
        url: Arc<str>,
        /// The transaction.
        txid: Txid,
        /// The last failure.
        last: String,
    },
    /// Two files of one plan have different page sizes.
    #[error("{key}: page size changes from {before} to {after}: only a newer snapshot can be restored")]
    PageSizeChanged {
        /// The file that differs.
        key: Arc<str>,
        /// The files before it.
        before: PageSize,
        /// This file.
        after: PageSize,
    },
    /// The database was deleted at this TXID.
    #[error("{key}: the database was deleted by this transaction: restore an earlier one")]
    Deleted {
        /// The file that says so.
        key: Arc<str>,
    },
    /// A merge was asked for without any file.
    #[error("{url}: there is nothing to merge")]
    NothingToMerge {
        /// The replica.
        url: Arc<str>,
    },
    /// A file to merge does not reach beyond the one before it.
    #[error("{key}: does not reach beyond {before}: files are merged in the order of their last TXIDs, each one once")]
    OutOfOrder {
        /// The file.
        key: Arc<str>,
        /// The one before it.
        before: Arc<str>,
    },
    /// Files are right one by one but do not make a valid file together.
    #[error("{first} to {last} cannot be merged into one file: {source}")]
    Merge {
        /// The first file.
        first: Arc<str>,
        /// The last file.
        last: Arc<str>,
        /// What would be wrong with the result.
        source: ltx::Error,
    },
    /// A local file could not be written.
    #[error("cannot {operation}: {source}")]
    Io {
        /// What was tried.
        operation: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the files of a plan are gone or others than listed, so that a new plan may help.
    #[must_use]
    pub fn wants_new_plan(&self) -> bool {
        matches!(self, Self::Storage(error) if matches!(error.kind(), Kind::NotFound | Kind::Conflict))
    }

    /// A format error in a file.
    pub fn format(key: &str, source: ltx::Error) -> Self {
        Self::Format { key: key.into(), source }
    }

    /// What an encoder says while `files` are merged into `output`.
    pub(crate) fn merge(files: &[FileInfo], output: &Path, source: ltx::Error) -> Self {
        let key = |file: Option<&FileInfo>| file.map_or_else(|| "".into(), |file| file.object.key.clone());
        match source {
            ltx::Error::Io(source) => Self::io("write", output, source),
            source => Self::Merge { first: key(files.first()), last: key(files.last()), source },
        }
    }

    /// What the local file system says.
    pub(crate) fn io(operation: &str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { operation: format!("{operation} {}", path.display()), source }
    }
}

fn around(below: Option<Txid>, above: Option<Txid>) -> String {
    match (below, above) {
        (Some(below), Some(above)) => format!(": the nearest that can be restored are {below} and {above}"),
        (Some(below), None) => format!(": the newest that can be restored is {below}"),
        (None, Some(above)) => format!(": the oldest that can be restored is {above}"),
        (None, None) => ": none can be restored".to_owned(),
    }
}

/// A moment in UTC, as RFC 3339 with milliseconds.
fn rfc3339(time: Timestamp) -> String {
    litestream_storage::format_time(time)
}
