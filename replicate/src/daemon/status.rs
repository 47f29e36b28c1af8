//! What can be known of a database that is replicated, at every moment.

use std::path::PathBuf;
use std::time::Duration;

use ltx::{Timestamp, Txid};

/// What is being done with a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing: it was stopped.
    Stopped,
    /// It waits until what is wrong is right again; [`Status::error`] says what.
    Waiting,
    /// It is being taken up.
    Starting,
    /// It is captured as it changes.
    Live,
    /// It does not change. It is held, and watched.
    Idle,
}

impl Phase {
    /// A word for people and programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Live => "live",
            Self::Idle => "idle",
        }
    }
}

/// One database.
#[derive(Clone, Debug)]
pub struct Status {
    /// The database file.
    pub path: PathBuf,
    /// What is being done with it.
    pub phase: Phase,
    /// The last TXID that was captured; zero before the first.
    pub txid: Txid,
    /// The database's size in bytes after it.
    pub size: u64,
    /// The log's length in bytes, as it was last seen.
    pub wal_size: u64,
    /// What is wrong, in a sentence. `None` where nothing is.
    pub error: Option<String>,
    /// What is odd, but does no harm yet: a reader that keeps the log from restarting.
    pub concern: Option<String>,
    /// Whether there is no room for captured files.
    pub disk_full: bool,
    /// The replicas.
    pub replicas: Vec<ReplicaStatus>,
    /// What was counted.
    pub counters: Counters,
}

impl Status {
    /// The age of the oldest commit that some replica still lacks: zero where all have all.
    #[must_use]
    pub fn lag(&self) -> Duration {
        self.replicas.iter().map(|replica| replica.lag).max().unwrap_or_default()
    }
}

/// One replica of a database.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    /// Its address, without secrets.
    pub url: String,
    /// The kind of store.
    pub kind: &'static str,
    /// Up to which TXID it is known to hold everything; `None` before it could be asked.
    pub txid: Option<Txid>,
    /// The age of the oldest commit that it lacks, from when we noticed it; zero where it has all.
    pub lag: Duration,
    /// When something was last uploaded, or everything was last known to be there.
    pub last_sync: Option<Timestamp>,
    /// Files that wait to be uploaded.
    pub waiting: usize,
    /// Why uploading fails just now, or has stopped. `None` where nothing is wrong.
    pub error: Option<String>,
    /// Whether another writer went on, so that uploading has stopped.
    pub fenced: bool,
    /// Whether what waits cannot be uploaded, nor what comes next, before all of the database was.
    pub needs_snapshot: bool,
    /// What was counted.
    pub counters: ReplicaCounters,
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of the log that were captured.
    pub wal_bytes: u64,
    /// Passes that captured something.
    pub syncs: u64,
    /// Passes that failed.
    pub sync_errors: u64,
    /// The time that passes took.
    pub sync_time: Duration,
    /// Checkpoints that copied what they could.
    pub passive_checkpoints: u64,
    /// Checkpoints that emptied the log.
    pub truncate_checkpoints: u64,
    /// Snapshots that were needed, the first one included.
    pub snapshots: u64,
    /// Drills that found replica and database equal.
    pub drills_passed: u64,
    /// Drills that found a difference: an alarm.
    pub drills_failed: u64,
    /// Files of level 0 that retention deleted.
    pub l0_deleted: u64,
    /// Files that compaction made.
    pub compacted: u64,
}

/// What was counted of one replica since the start. Its requests are in [`litestream_storage::Stats`].
#[derive(Clone, Debug, Default)]
pub struct ReplicaCounters {
    /// Files uploaded.
    pub uploads: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Uploads that failed.
    pub errors: u64,
    /// The longest that a commit waited, from when it was noticed until it was durable, in the last minute or since the start.
    pub worst_lag: Duration,
    /// All requests.
    pub requests: litestream_storage::Stats,
}
