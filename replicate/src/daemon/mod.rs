//! Many databases, replicated by one process.
//!
//! [`Daemon`] is what a program has in its hands. What is done with one database `database` says, what with one of its replicas `line`; here is what
//! they share: how much is done at once, and when replicas are compacted.

mod database;
mod drill;
mod driver;
mod line;
mod spec;
mod status;
mod sweep;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use database::{Database, Patience};
use futures::StreamExt;
use tokio::sync::Semaphore;

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
    /// The whole process ends.
    #[error("this process is ending: it takes up nothing more")]
    Ending,
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

/// How long after many databases were taken up what that has led to is over.
const TRIM: Duration = Duration::from_secs(20);

/// What all databases share.
#[derive(Debug)]
struct Shared {
    options: Options,
    /// How much is done at once.
    captures: Semaphore,
    /// The same for what goes through whole databases: no pass waits for that.
    long: Semaphore,
    starts: Arc<Semaphore>,
    uploads: Semaphore,
    /// The same for replicas where uploading fails: a store that is down keeps nobody else's uploads waiting.
    retries: Semaphore,
    merges: Arc<Semaphore>,
    /// When the next replica is to be compacted, or database drilled: before that nobody need look.
    next_due: AtomicI64,
    databases: Mutex<BTreeMap<PathBuf, Arc<Database>>>,
    /// Those that are to be taken up, one after the other.
    queue: Mutex<VecDeque<Arc<Database>>>,
    starting: AtomicBool,
    /// Whether all is being let go of.
    ending: AtomicBool,
    /// One for each descriptor that databases may use, and how many are few, and enough.
    descriptors: Arc<Semaphore>,
    room: (usize, usize),
    /// One for each database that may be held, and the same.
    places: Arc<Semaphore>,
    free: (usize, usize),
    sweep: sweep::Sweep,
    runtime: tokio::runtime::Handle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.sweep.end();
    }
}

impl Shared {
    /// Runs what blocks, when it is its turn. `None` where it panicked.
    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let _turn = self.captures.acquire().await.ok()?;
        blocking(work).await
    }

    /// The same for what may go through a whole database.
    async fn long_work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let _turn = self.long.acquire().await.ok()?;
        blocking(work).await
    }

    /// Says when something will be due.
    fn due(&self, when: i64) {
        self.next_due.fetch_min(when, Ordering::Relaxed);
    }

    fn databases(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<Database>>> {
        self.databases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Arc<Database>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replicates databases, each for itself. Cheap to clone; clones are the same. All methods belong into a tokio runtime with several threads.
///
/// To drop it ends nothing: [`Daemon::shutdown`] does, and so does the end of the runtime, which is what a crash is.
#[derive(Clone, Debug)]
pub struct Daemon(Arc<Shared>);

impl Daemon {
    /// Nothing is replicated yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let descriptors = usize::try_from(options.descriptors).unwrap_or(usize::MAX);
        let descriptors = descriptors.clamp(2 * driver::LIVE as usize, Semaphore::MAX_PERMITS);
        let starts = options.starts.max(1);
        let some = starts * driver::LIVE as usize;
        let (live, resting) = (driver::LIVE as usize, driver::RESTING as usize);
        // However many rest, a few can be taken up.
        let places = (descriptors - (live - resting) * (descriptors / 80).clamp(1, 16)) / resting;
        let shared = Arc::new(Shared {
            captures: Semaphore::new(options.captures.max(1)),
            long: Semaphore::new(options.captures.max(1)),
            starts: Arc::new(Semaphore::new(options.starts.max(1))),
            uploads: Semaphore::new(options.uploads.max(1)),
            retries: Semaphore::new(options.uploads.max(1)),
            merges: Arc::new(Semaphore::new(options.merges.max(1))),
            next_due: AtomicI64::new(i64::MAX),
            databases: Mutex::default(),
            queue: Mutex::default(),
            starting: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            descriptors: Arc::new(Semaphore::new(descriptors)),
            room: (some.min(descriptors / 4), (2 * some).min(descriptors / 2)),
            places: Arc::new(Semaphore::new(places)),
            free: (starts.min(places / 4).max(1), (2 * starts).min(places / 2).max(1)),
            sweep: sweep::Sweep::default(),
            runtime: tokio::runtime::Handle::current(),
            options,
        });
        tokio::spawn(keep(Arc::downgrade(&shared), shared.options.upkeep_every));
        let swept = Arc::downgrade(&shared);
        let thread = std::thread::Builder::new().name("litestream-sweep".to_owned()).spawn(move || sweep::run(&swept));
        if let Err(error) = thread {
            tracing::error!(%error, "cannot start a thread: changes are noticed late");
        }
        Self(shared)
    }

    /// Begins to replicate a database, which need not exist yet. Says no where it is replicated already, and once [`Self::shutdown`] has begun.
    pub fn register(&self, spec: Spec) -> bool {
        let path = spec.path().clone();
        let database = {
            let mut databases = self.0.databases();
            if databases.contains_key(&path) || self.is_ending() {
                return false;
            }
            let database = Arc::new(Database::new(spec));
            database.put_off_drill(&self.0, (self.0.options.clock)());
            databases.insert(path, database.clone());
            database
        };
        self.0.queue().push_back(database);
        if !self.0.starting.swap(true, Ordering::SeqCst) {
            tokio::spawn(take_up(self.0.clone()));
        }
        true
    }

    fn find(&self, path: &Path) -> Result<Arc<Database>, ControlError> {
        self.0.databases().get(path).cloned().ok_or_else(|| ControlError::Unknown(path.to_owned()))
    }

    /// Ends replicating a database: captures and uploads what is left, as long as `patience` lasts, and lets go of it.
    ///
    /// # Errors
    /// [`ControlError::Unknown`]; otherwise what could not be uploaded in time. It is let go all the same.
    pub async fn unregister(&self, path: &Path, patience: Duration) -> Result<Synced, ControlError> {
        let database = self.find(path)?;
        let stopped = database.stop(&self.0, patience).await;
        let mut databases = self.0.databases();
        if !database.face().stopped {
            let why = "it was started again meanwhile".to_owned();
            return Err(ControlError::Failed { path: path.to_owned(), why });
        }
        // Whoever was faster may have registered another one by now.
        if databases.get(path).is_some_and(|there| Arc::ptr_eq(there, &database)) {
            databases.remove(path);
        }
        stopped
    }

    /// Goes on with a database that was stopped. Says no where it was not.
    ///
    /// # Errors
    /// [`ControlError::Unknown`], and [`ControlError::Ending`].
    pub fn start(&self, path: &Path) -> Result<bool, ControlError> {
        // Until it has begun, it is not forgotten, and the end does not begin.
        let databases = self.0.databases();
        let database = databases.get(path).ok_or_else(|| ControlError::Unknown(path.to_owned()))?;
        if self.is_ending() { Err(ControlError::Ending) } else { Ok(database.start(&self.0)) }
    }

    /// Whether [`Self::shutdown`] has begun.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.0.ending.load(Ordering::SeqCst)
    }

    /// Stops a database, as [`Daemon::unregister`] does, but keeps its place.
    ///
    /// # Errors
    /// As [`Daemon::unregister`].
    pub async fn stop(&self, path: &Path, patience: Duration) -> Result<Synced, ControlError> {
        self.find(path)?.stop(&self.0, patience).await
    }

    /// Captures what is committed now; with `durable`, also waits until all replicas have it.
    ///
    /// # Errors
    /// Why that is not so in time.
    pub async fn sync(&self, path: &Path, durable: bool, patience: Duration) -> Result<Synced, ControlError> {
        self.find(path)?.sync(&self.0, durable, patience).await
    }

    /// Captures all of a database anew and makes a snapshot (level 9) of it in every replica, durably.
    ///
    /// # Errors
    /// Why that is not so in time.
    pub async fn snapshot(&self, path: &Path, why: &str, patience: Duration) -> Result<Synced, ControlError> {
        let database = self.find(path)?;
        database.want_snapshot(why);
        database.sync(&self.0, true, patience).await
    }

    /// Compacts and applies retention now, whatever is due or not.
    ///
    /// # Errors
    /// Why that cannot be done.
    pub async fn enforce_retention(&self, path: &Path) -> Result<(), ControlError> {
        let database = self.find(path)?;
        let Ok(_permit) = self.0.merges.acquire().await else { return Ok(()) };
        database.keep(&self.0, true).await.map_err(|why| ControlError::Failed { path: path.to_owned(), why })
    }

    /// All databases, by path.
    #[must_use]
    pub fn status(&self) -> Vec<Status> {
        let databases: Vec<_> = self.0.databases().values().cloned().collect();
        databases.iter().map(|database| database.status()).collect()
    }

    /// One database.
    #[must_use]
    pub fn status_of(&self, path: &Path) -> Option<Status> {
        self.find(path).ok().map(|database| database.status())
    }

    /// Captures and uploads what is left of all databases, as long as `patience` lasts, trying again after each `pause`, and lets go of them. Where
    /// `patience` is zero, everything is tried once.
    /// Tells which could not be brought up to date, and why.
    pub async fn shutdown(&self, patience: Duration, pause: Duration) -> Vec<ControlError> {
        let databases: Vec<_> = {
            let databases = self.0.databases();
            self.0.ending.store(true, Ordering::SeqCst);
            databases.values().cloned().collect()
        };
        let deadline = tokio::time::Instant::now() + patience;
        let hurry = async {
            loop {
                tokio::time::sleep(pause.max(Duration::from_millis(50))).await;
                for database in &databases {
                    database.hurry();
                }
            }
        };
        // All are asked before any is waited for: those that cannot be brought up to date keep nobody else from it.
        let asked: Vec<_> = databases.iter().map(|database| (database, database.ask_to_end(&self.0))).collect();
        let stopping = futures::stream::iter(asked).map(|(database, asked)| async move {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let patience = if patience.is_zero() { Patience::Once } else { Patience::Lasts(left) };
            database.stop_asked(&self.0, asked, patience).await
        });
        let stopped = stopping.buffer_unordered(256).collect::<Vec<_>>();
        let outcomes = tokio::select! {
            outcomes = stopped => outcomes,
            () = hurry => Vec::new(),
        };
        outcomes.into_iter().filter_map(Result::err).collect()
    }
}

/// Runs what blocks on a thread where it may. `None` where it panicked: then it was as if we had crashed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(error) => {
            tracing::error!(%error, "a part of the program failed; the database is taken up anew");
            None
        }
    }
}

/// Takes up databases, a few at once, until none is left.
async fn take_up(shared: Arc<Shared>) {
    loop {
        let Ok(permit) = shared.starts.clone().acquire_owned().await else { return };
        let Some(database) = shared.queue().pop_front() else {
            shared.starting.store(false, Ordering::SeqCst);
            // What was needed to take up many at once need not stay, nor what it led to a moment later.
            crate::sys::trim_heap();
            tokio::spawn(async {
                tokio::time::sleep(TRIM).await;
                crate::sys::trim_heap();
            });
            // Somebody may have come just before.
            if shared.queue().is_empty() || shared.starting.swap(true, Ordering::SeqCst) {
                return;
            }
            continue;
        };
        database.begin(&shared, permit);
    }
}

/// Compacts replicas when that is due, until nobody has the daemon any more.
async fn keep(shared: Weak<Shared>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(shared) = shared.upgrade() else { return };
        let now = (shared.options.clock)();
        if shared.next_due.load(Ordering::Relaxed) > now.0 {
            continue;
        }
        shared.next_due.store(i64::MAX, Ordering::Relaxed);
        for database in shared.databases().values() {
            shared.due(database.due());
        }
        let due: Vec<_> = shared.databases().values().filter(|database| database.claim_upkeep(now)).cloned().collect();
        let drills: Vec<_> =
            shared.databases().values().filter(|database| database.claim_drill(&shared, now)).cloned().collect();
        for database in drills {
            database.rouse(&shared);
        }
        for database in due {
            let Ok(permit) = shared.merges.clone().acquire_owned().await else { return };
            let shared = shared.clone();
            tokio::spawn(async move {
                // What went wrong was said, and is tried again.
                let _ = database.keep(&shared, false).await;
                database.end_upkeep();
                drop(permit);
            });
        }
    }
}
