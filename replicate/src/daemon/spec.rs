//! What is replicated, and how.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use litestream_pageindex::upkeep::Schedule;
use litestream_storage::Replica;
use ltx::Timestamp;

use crate::Settings;

/// Tells the time to all.
pub type SharedClock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How the whole process does its work.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// Tells the time that goes into files.
    pub clock: SharedClock,
    /// Who we are, for other writers: host, process.
    pub identity: Arc<str>,
    /// How many databases are captured at once. Default: 8.
    pub captures: usize,
    /// How many databases are taken up at once at the start. Default: 64.
    pub starts: usize,
    /// How many files are uploaded at once. Default: 64.
    pub uploads: usize,
    /// How many replicas are compacted at once. Default: 2.
    pub merges: usize,
    /// For how long nothing must have changed before a database is left to rest. Default: 10 s.
    pub rest_after: Duration,
    /// How often it is looked whether something is to be compacted, or drilled. Default: 1 s.
    pub upkeep_every: Duration,
    /// How many descriptors may be used for databases. Default: what the process may have, less a few.
    pub descriptors: u64,
    /// After how much of the store's time since the last proof it is looked whether another writer went on. Default: 60 s.
    pub fence_window: Duration,
}

impl Options {
    /// The defaults, with this clock.
    #[must_use]
    pub fn new(clock: SharedClock, identity: &str) -> Self {
        Self {
            clock,
            identity: identity.into(),
            captures: 8,
            starts: 64,
            uploads: 64,
            merges: 2,
            rest_after: Duration::from_secs(10),
            upkeep_every: Duration::from_secs(1),
            descriptors: u64::MAX,
            fence_window: litestream_pageindex::fence::WINDOW,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// One database, and where it goes.
#[derive(Clone, Debug)]
pub struct Spec {
    /// How it is captured.
    pub settings: Settings,
    /// Where it goes; never empty.
    pub replicas: Vec<Target>,
    /// How its replicas are kept small; not at all, where that is left to others. Shared, as it is most often
    /// the same for many.
    pub schedule: Option<Arc<Schedule>>,
}

impl Spec {
    /// The database file.
    #[must_use]
    pub fn path(&self) -> &PathBuf {
        &self.settings.database
    }

    /// How often is captured: as often as the most eager of its replicas wants it.
    pub(crate) fn sync_interval(&self) -> Duration {
        self.replicas.iter().map(|target| target.sync_interval).min().unwrap_or(Duration::from_secs(1))
    }
}

/// One replica of a database.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where.
    pub replica: Replica,
    /// The kind of store, for metrics: `s3`, `file`.
    pub kind: &'static str,
    /// How often what was committed is uploaded. Default 1 s.
    pub sync_interval: Duration,
    /// Whether to go on with a snapshot where another writer has been there, rather than stop. Default: no.
    pub auto_recover: bool,
    /// How often the replica is restored and compared with the database. Default: never.
    pub validation_interval: Option<Duration>,
}

impl Target {
    /// A replica with the defaults.
    #[must_use]
    pub const fn new(replica: Replica, kind: &'static str) -> Self {
        Self { replica, kind, sync_interval: Duration::from_secs(1), auto_recover: false, validation_interval: None }
    }
}
