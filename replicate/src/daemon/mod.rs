//! Many databases, replicated by one process.

mod spec;
mod status;

use std::path::{Path, PathBuf};
use std::time::Duration;

use ltx::Txid;

pub use spec::{Options, SharedClock, Spec, Target};
pub use status::{Counters, Phase, ReplicaCounters, ReplicaStatus, Status};

/// What asking for a sync has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// The last TXID that was captured.
    pub txid: Txid,
    /// Up to which TXID every replica holds everything.
    pub durable: Txid,
}

/// Why a database does not do what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Nobody has registered it.
    #[error("{} is not replicated by this process; register it, or see `litestream list`", .0.display())]
    Unknown(PathBuf),
    /// It was stopped.
    #[error("{} is stopped; start it first", .0.display())]
    Stopped(PathBuf),
    /// It took too long. Work on it goes on.
    #[error("{}: not done within {}: {why}", path.display(), humantime(*.patience))]
    Timeout {
        /// The database.
        path: PathBuf,
        /// How long was waited.
        patience: Duration,
        /// What is still missing, or what is wrong.
        why: String,
    },
    /// It cannot be done.
    #[error("{}: {why}", path.display())]
    Failed {
        /// The database.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

fn humantime(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Replicates databases, each for itself. Cheap to clone; clones are the same. All methods belong into a tokio runtime with several threads.
#[derive(Clone, Debug)]
pub struct Daemon(std::sync::Arc<Options>);

impl Daemon {
    /// Nothing is replicated yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self(std::sync::Arc::new(options))
    }

    /// Begins to replicate a database, which need not exist yet. Says no where it is replicated already.
    pub fn register(&self, spec: Spec) -> bool {
        drop(spec);
        true
    }

    /// Ends replicating a database: captures and uploads what is left, as long as `patience` lasts, and lets go of it.
    ///
    /// # Errors
    /// [`ControlError::Unknown`]; otherwise what could not be uploaded in time. It is let go all the same.
    pub async fn unregister(&self, path: &Path, patience: Duration) -> Result<Synced, ControlError> {
        self.stop(path, patience).await
    }

    /// Goes on with a database that was stopped. Says no where it was not.
    ///
    /// # Errors
    /// [`ControlError::Unknown`].
    pub fn start(&self, path: &Path) -> Result<bool, ControlError> {
        Err(ControlError::Unknown(path.to_owned()))
    }

    /// Stops a database, as [`Daemon::unregister`] does, but keeps its place.
    ///
    /// # Errors
    /// As [`Daemon::unregister`].
    pub async fn stop(&self, path: &Path, _patience: Duration) -> Result<Synced, ControlError> {
        Err(ControlError::Unknown(path.to_owned()))
    }

    /// Captures what is committed now; with `durable`, also waits until all replicas have it.
    ///
    /// # Errors
    /// Why that is not so in time.
    pub async fn sync(&self, path: &Path, _durable: bool, _patience: Duration) -> Result<Synced, ControlError> {
        Err(ControlError::Unknown(path.to_owned()))
    }

    /// Captures all of a database anew and makes a snapshot (level 9) of it in every replica, durably.
    ///
    /// # Errors
    /// Why that is not so in time.
    pub async fn snapshot(&self, path: &Path, why: &str, _patience: Duration) -> Result<Synced, ControlError> {
        drop(why.to_owned());
        Err(ControlError::Unknown(path.to_owned()))
    }

    /// Compacts and applies retention now, whatever is due or not.
    ///
    /// # Errors
    /// Why that cannot be done.
    pub async fn enforce_retention(&self, path: &Path) -> Result<(), ControlError> {
        Err(ControlError::Unknown(path.to_owned()))
    }

    /// All databases, by path.
    #[must_use]
    pub fn status(&self) -> Vec<Status> {
        Vec::new()
    }

    /// One database.
    #[must_use]
    pub fn status_of(&self, _path: &Path) -> Option<Status> {
        None
    }

    /// Captures and uploads what is left of all databases, as long as `patience` lasts, trying again after each `pause`, and lets go of them.
    /// Tells which could not be brought up to date, and why.
    pub async fn shutdown(&self, _patience: Duration, _pause: Duration) -> Vec<ControlError> {
        Vec::new()
    }
}
