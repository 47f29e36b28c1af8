//! Why a database could not be rebuilt.

use std::path::PathBuf;
use std::sync::Arc;

use ltx::{PageSize, Txid};

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a database could not be rebuilt or followed. Whatever it is but [`Error::NotPutBack`], nothing was left at the output path, and what was there
/// still is: a followed copy in one of its replica's states.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no way to what was asked for.
    #[error(transparent)]
    Plan(#[from] litestream_pageindex::Error),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] litestream_storage::Error),
    /// The output path is taken.
    #[error("{}: {why}; give another path with -o, or --force to replace it", path.display())]
    OutputTaken {
        /// What is in the way.
        path: PathBuf,
        /// Why that is a reason.
        why: &'static str,
    },
    /// The output path can never be a database file.
    #[error("{}: {why}", path.display())]
    OutputUnusable {
        /// The path.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// The local file system failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The replacement of a database failed half way, and so did the way back.
    #[error("{error}; the database that was there could not be put back: it is kept as {}", list(names))]
    NotPutBack {
        /// Why it was not replaced.
        error: Box<Error>,
        /// Where its files are.
        names: Vec<PathBuf>,
    },
    /// A file to hydrate into has another user.
    #[error("{}: {by} hydrates into this file: give each its own hydration_path, or name a directory, where each replica has one", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who.
        by: &'static str,
    },
    /// A file to hydrate into is not known to have been made for that.
    #[error("{0}: is not empty, and there is no {0}.meta that says it was hydrated: remove it, or give another hydration_path", path.display())]
    NotHydrated {
        /// The file.
        path: PathBuf,
    },
    /// The restored database failed the caller's check.
    #[error("{0}")]
    Check(String),
    /// A v0.3 replica is incomplete or damaged.
    #[error("{key}: {problem}")]
    Legacy {
        /// The object.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// Others use the copy; later it may work.
    #[error("{} is in use: waited {:.1} s for its readers and writers to end", path.display(), waited.as_secs_f64())]
    Busy {
        /// The copy.
        path: PathBuf,
        /// How long was waited.
        waited: std::time::Duration,
    },
    /// Another process follows with this copy.
    #[error("{}: another process follows the replica with this copy already", path.display())]
    FollowedAlready {
        /// The copy.
        path: PathBuf,
    },
    /// Nothing is known of the database that is there.
    #[error("{}: exists already, but {why}; give another path with -o, or --force to replace it", path.display())]
    NotFollowed {
        /// The database.
        path: PathBuf,
        /// What is missing.
        why: &'static str,
    },
    /// The copy follows something else.
    #[error("{}: is a copy of {theirs}, not of {ours}; give another path with -o, or --force to replace it", path.display())]
    OtherReplica {
        /// The copy.
        path: PathBuf,
        /// What it is a copy of.
        theirs: String,
        /// What was asked for.
        ours: String,
    },
    /// Something else than the follower has changed the copy.
    #[error("{}: cannot go on from this copy: {why}; only read it, and begin again with --force", path.display())]
    CopyChanged {
        /// The copy.
        path: PathBuf,
        /// What was seen.
        why: &'static str,
    },
    /// The replica has gone back behind the copy.
    #[error(
        "{url}: the replica has gone back to {found}, but the copy has {have} already: was another database replicated to it? \
         If it is what you want, begin again with --force"
    )]
    Rewound {
        /// The replica.
        url: Arc<str>,
        /// What the copy has.
        have: Txid,
        /// What the replica has.
        found: Txid,
    },
    /// The replica's history is another one than the copy's.
    #[error(
        "{key}: holds another transaction {txid} than the copy: the replica was written anew, perhaps by two programs at once; \
         if it is what you want, begin again with --force"
    )]
    Rewritten {
        /// The file.
        key: String,
        /// The transaction.
        txid: Txid,
    },
    /// The source's pages have another size from now on.
    #[error("{url}: the page size has changed from {before} to {after} with {txid}: begin again with --force")]
    PageSize {
        /// The replica.
        url: Arc<str>,
        /// The copy's.
        before: PageSize,
        /// The replica's.
        after: PageSize,
        /// What the replica has.
        txid: Txid,
    },
    /// A thread of ours died.
    #[error("a worker failed: {0}")]
    Worker(String),
}

fn list(names: &[PathBuf]) -> String {
    names.iter().map(|name| name.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// Whether a follower may go on as if nothing had happened, a little later.
    pub(crate) fn may_pass(&self) -> bool {
        use litestream_pageindex::Error as Plan;
        match self {
            Self::Busy { .. } | Self::Storage(_) => true,
            Self::Plan(error) => {
                !matches!(error, Plan::PageSizeChanged { .. } | Plan::Deleted { .. } | Plan::Io { .. })
            }
            _ => false,
        }
    }

    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}

impl litestream_pageindex::Replannable for Error {
    fn wants_new_plan(&self) -> bool {
        match self {
            Self::Plan(error) => error.wants_new_plan(),
            Self::Storage(error) => {
                matches!(error.kind(), litestream_storage::Kind::NotFound | litestream_storage::Kind::Conflict)
            }
            _ => false,
        }
    }
}
