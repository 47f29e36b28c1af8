//! Why a database cannot be opened or read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ltx::Txid;

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a database cannot be opened or read. Shared by all who waited for the same request.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting cannot be used.
    #[error("{name}: {why}")]
    Setting {
        /// The URI parameter or environment variable.
        name: String,
        /// What is wrong with its value.
        why: String,
    },
    /// Nothing says where the replica is.
    #[error(
        "{path}: no replica is known for it: add &replica_url=s3://BUCKET/PATH to the file: URI, set LITESTREAM_REPLICA_URL, or list the database in the configuration file ({config})"
    )]
    NoReplica {
        /// The database's name.
        path: String,
        /// Where a configuration was looked for.
        config: String,
    },
    /// The replica stayed empty.
    #[error("{url}: the replica is empty{}: check its path, or replicate a database to it first", stayed(*.waited))]
    Empty {
        /// The replica.
        url: Arc<str>,
        /// How long that was waited for.
        waited: Duration,
    },
    /// The replica cannot give what was asked for.
    #[error(transparent)]
    Replica(Arc<litestream_pageindex::Error>),
    /// The database cannot be pulled into a local file.
    #[error(transparent)]
    Hydration(Arc<litestream_hydrate::Error>),
    /// A moment could not be understood or reached.
    #[error("{0}")]
    Time(String),
    /// A page's file has been replaced by another one.
    #[error(
        "{key}: another object has taken its place, with other content: the replica was changed by hand, or by two writers"
    )]
    Replaced {
        /// The object.
        key: Arc<str>,
    },
    /// The replica ends before what was read from it.
    #[error(
        "{url}: the replica ends with transaction {found}, and {have} was read from it before: it was put back to an older state, or made anew"
    )]
    Rewound {
        /// The replica.
        url: Arc<str>,
        /// The last transaction that was read.
        have: Txid,
        /// The last one that there is.
        found: Txid,
    },
    /// Not while a transaction runs.
    #[error("{0} cannot change inside a transaction: COMMIT or ROLLBACK first")]
    InTransaction(&'static str),
    /// The database cannot be written.
    #[error("{0}")]
    ReadOnly(&'static str),
    /// The write buffer's files cannot be read or written.
    #[error("the write buffer: cannot {operation} {}: {source}", path.display())]
    Buffer {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: Arc<std::io::Error>,
    },
    /// Another process, or another database of this one, has the write buffer.
    #[error(
        "the write buffer {} is used by another process or database: one writer per buffer; set buffer_path to another place, or end the other",
        path.display()
    )]
    BufferBusy {
        /// The buffer.
        path: PathBuf,
    },
    /// The write buffer belongs to another replica.
    #[error(
        "the write buffer {} holds writes to {theirs}, not to {ours}: open that one to upload them, or set buffer_path to another place",
        path.display()
    )]
    BufferForeign {
        /// The buffer.
        path: PathBuf,
        /// Whose it is.
        theirs: String,
        /// What was opened.
        ours: String,
    },
    /// The write buffer cannot be trusted.
    #[error("the write buffer's file {}: {why}", path.display())]
    BufferDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another writer has gone on.
    #[error(
        "fenced: transaction {txid} was written by {by}, so this writer must stop; what it had not uploaded is kept in {} (look at it with `litestream vfs-buffer`)",
        buffer.display()
    )]
    Fenced {
        /// The transaction that this writer wanted to write, or found beyond its own.
        txid: Txid,
        /// Who wrote it, as far as that is known.
        by: String,
        /// Where this writer's own transactions are.
        buffer: PathBuf,
    },
    /// Another writer holds the lease.
    #[error(
        "{url}: {owner} holds the lease on this replica{until}: end that writer, or wait until its lease has run out"
    )]
    Leased {
        /// The replica.
        url: Arc<str>,
        /// Who holds it.
        owner: String,
        /// Until when, as far as that is known.
        until: String,
    },
    /// Uploading has failed for too long.
    #[error("nothing could be uploaded for {:.0} s, longer than sync_deadline allows: {why}", behind.as_secs_f64())]
    Deadline {
        /// How old the oldest transaction is that is not in the replica.
        behind: Duration,
        /// What the last upload failed with.
        why: String,
    },
    /// Another connection writes.
    #[error("database is locked")]
    Busy,
    /// Another connection has written since this one's transaction began.
    #[error("database is locked: another connection has committed since this transaction began")]
    BusySnapshot,
    /// What SQLite wants to write does not go together with a replica.
    #[error("{0}")]
    Unwritable(String),
    /// The host told the query to stop.
    #[error("interrupted")]
    Interrupted,
    /// The runtime behind all this is gone or cannot be made.
    #[error("{0}")]
    Worker(String),
    /// The connection was opened before a fork.
    #[error("this connection was opened by the parent process: open a new one after fork")]
    Forked,
}

fn stayed(waited: Duration) -> String {
    if waited.is_zero() {
        return String::new();
    }
    format!(", and stayed so for open_timeout, {} s", waited.as_secs_f64())
}

impl From<litestream_pageindex::Error> for Error {
    fn from(error: litestream_pageindex::Error) -> Self {
        Self::Replica(Arc::new(error))
    }
}

impl From<litestream_hydrate::Error> for Error {
    fn from(error: litestream_hydrate::Error) -> Self {
        Self::Hydration(Arc::new(error))
    }
}

impl From<litestream_storage::Error> for Error {
    fn from(error: litestream_storage::Error) -> Self {
        litestream_pageindex::Error::from(error).into()
    }
}

impl Error {
    pub(crate) fn buffer(operation: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Buffer { operation, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Whether files are gone or others than listed, so that a new plan for the same TXID may help.
    pub(crate) fn wants_new_plan(&self) -> bool {
        matches!(self, Self::Replica(error) if error.wants_new_plan())
    }
}
