//! One database, from when it is registered until it is let go: taken up, captured as it changes, left to rest, taken up again.
//!
//! As long as there is something to do a *driver* does it, a task of the database's own. Where nothing is to be done there is no task: whoever notices a
//! change, or wants something, says so on the database's [`Face`] and sees that there is a driver.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ltx::{Timestamp, Txid};
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::line::Line;
use super::spec::Spec;
use super::status::{Counters, Phase, Status};
use super::{ControlError, Shared, Synced};
use crate::{Capture, Error, Left, Newest, Remote, Staged};

/// The pauses after which a database is tried again that cannot be captured.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The longest pause between two passes where uploads do not keep up.
const LONGEST_PACE: u32 = 60;

/// A database.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) spec: Spec,
    pub(crate) lines: Vec<Arc<Line>>,
    face: Mutex<Face>,
    /// Wakes the driver.
    pub(crate) wake: Notify,
    /// Says that something has come of it.
    progress: Notify,
    /// Whether its replicas are being compacted.
    keeping: AtomicBool,
}

/// What is wanted, and what has come of it.
#[derive(Debug)]
pub(crate) struct Face {
    pub(crate) phase: Phase,
    /// Whether there is a driver.
    driven: bool,
    /// When a commit was noticed that is not captured yet.
    pub(crate) changed: Option<Instant>,
    /// How often a pass was asked for, and up to which of these it was made.
    asked: u64,
    answered: u64,
    /// Why a snapshot is wanted.
    snapshot: Option<String>,
    /// Whether it shall be let go.
    ending: bool,
    /// Whether it is stopped until somebody starts it.
    pub(crate) stopped: bool,
    txid: Txid,
    size: u64,
    wal_size: u64,
    pub(crate) error: Option<String>,
    concern: Option<String>,
    disk_full: bool,
    counters: Counters,
    /// What is held while there is no driver.
    held: Held,
}

/// What holds the database.
#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    Live(Box<Capture>),
}

/// What the replicas hold, asked before.
struct Known {
    newest: Option<Newest>,
    /// Up to where all of them hold everything.
    floor: Txid,
}

impl Remote for Known {
    fn newest(&mut self) -> Result<Option<Newest>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.newest)
    }

    fn floor(&mut self) -> Txid {
        self.floor
    }
}

/// Why a database is not captured.
enum Refused {
    /// There is none yet.
    Missing,
    /// No replica could be asked.
    Remote(String),
    Capture(Error),
}

impl Database {
    pub(crate) fn new(spec: Spec) -> Self {
        let lines = spec.replicas.iter().map(|target| Arc::new(Line::new(target.clone()))).collect();
        let face = Face {
            phase: Phase::Starting,
            driven: false,
            changed: None,
            asked: 0,
            answered: 0,
            snapshot: None,
            ending: false,
            stopped: false,
            txid: Txid::ZERO,
            size: 0,
            wal_size: 0,
            error: None,
            concern: None,
            disk_full: false,
            counters: Counters::default(),
            held: Held::Nothing,
        };
        Self {
            spec,
            lines,
            face: Mutex::new(face),
            wake: Notify::new(),
            progress: Notify::new(),
            keeping: AtomicBool::new(false),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.spec.path()
    }

    pub(crate) fn face(&self) -> MutexGuard<'_, Face> {
        self.face.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where what is ours lies.
    fn folder(&self) -> PathBuf {
        self.spec.settings.meta_path.clone()
    }

    /// Sees that there is a driver.
    pub(crate) fn rouse(self: &Arc<Self>, shared: &Arc<Shared>) {
        let mut face = self.face();
        if std::mem::replace(&mut face.driven, true) {
            drop(face);
            self.wake.notify_one();
            return;
        }
        let held = std::mem::take(&mut face.held);
        drop(face);
        tokio::spawn(Box::pin(drive(self.clone(), shared.clone(), held, None)));
    }

    /// Takes it up for the first time.
    pub(crate) fn begin(self: &Arc<Self>, shared: &Arc<Shared>, permit: OwnedSemaphorePermit) {
        let mut face = self.face();
        // Somebody wanted something of it already, or nothing any more.
        if face.stopped || std::mem::replace(&mut face.driven, true) {
            return;
        }
        drop(face);
        tokio::spawn(Box::pin(drive(self.clone(), shared.clone(), Held::Nothing, Some(permit))));
    }

    /// Whether something is to be compacted, and nobody is at it. Whoever is told so must end it.
    pub(crate) fn claim_upkeep(&self, now: Timestamp) -> bool {
        self.lines.iter().any(|line| line.is_due(now)) && !self.keeping.swap(true, Ordering::SeqCst)
    }

    pub(crate) fn end_upkeep(&self) {
        self.keeping.store(false, Ordering::SeqCst);
    }

    /// How far it has come.
    pub(crate) fn synced(&self) -> Synced {
        let txid = self.face().txid;
        let durable = self.lines.iter().map(|line| line.reached().unwrap_or_default()).min().unwrap_or_default();
        Synced { txid, durable: durable.min(txid) }
    }

    /// Sees that what waits is uploaded.
    pub(crate) fn upload(self: &Arc<Self>, shared: &Arc<Shared>) {
        for line in &self.lines {
            if !line.take() {
                continue;
            }
            let (this, shared, line) = (self.clone(), shared.clone(), line.clone());
            tokio::spawn(async move {
                line.run(&shared.options, &shared.uploads, |staged| this.uploaded(staged, &shared)).await;
                this.progress.notify_waiters();
                this.wake.notify_one();
            });
        }
    }

    /// Deletes a file here that all replicas have.
    fn uploaded(&self, staged: &Staged, shared: &Shared) {
        if self.lines.iter().all(|line| line.is_past(staged.txid))
            && let Err(error) = std::fs::remove_file(&staged.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %staged.path.display(), %error, "cannot delete a file that was uploaded");
        }
        if let Some(schedule) = &self.spec.schedule {
            let now = (shared.options.clock)();
            for line in &self.lines {
                line.schedule(schedule, now, staged.checksum.0);
            }
        }
        self.progress.notify_waiters();
    }

    /// Asks for a pass, and waits for it; with `durable`, for the replicas as well.
    pub(crate) async fn sync(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        durable: bool,
        patience: Duration,
    ) -> Result<Synced, ControlError> {
        let asked = {
            let mut face = self.face();
            if face.stopped {
                return Err(ControlError::Stopped(self.path().to_owned()));
            }
            face.asked += 1;
            face.asked
        };
        self.rouse(shared);
        self.hurry();
        self.wait_until(asked, durable, patience).await
    }

    pub(crate) fn hurry(&self) {
        for line in &self.lines {
            line.hurry.notify_one();
        }
    }

    async fn wait_until(&self, asked: u64, durable: bool, patience: Duration) -> Result<Synced, ControlError> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let progress = self.progress.notified();
            let mut progress = std::pin::pin!(progress);
            progress.as_mut().enable();
            let why = match self.reached(asked, durable) {
                Ok(synced) => return Ok(synced),
                Err(Ok(why)) => why,
                Err(Err(why)) => return Err(ControlError::Failed { path: self.path().to_owned(), why }),
            };
            if tokio::time::timeout_at(deadline, progress).await.is_err() {
                return Err(ControlError::Timeout { path: self.path().to_owned(), patience, why });
            }
        }
    }

    /// What was reached, or what is missing yet, or what will never come.
    fn reached(&self, asked: u64, durable: bool) -> Result<Synced, Result<String, String>> {
        let (txid, error) = {
            let face = self.face();
            if face.answered < asked {
                return Err(match &face.error {
                    Some(error) if face.phase == Phase::Stopped => Err(error.clone()),
                    Some(error) => Ok(error.clone()),
                    None => Ok("it is still being captured".to_owned()),
                });
            }
            (face.txid, face.error.clone())
        };
        let mut held = txid;
        for line in &self.lines {
            let reached = line.reached().unwrap_or_default();
            held = held.min(reached);
            if durable && reached < txid {
                let url = line.target.replica.url();
                return Err(match line.holds(txid) {
                    Err(why) => Err(format!("{url}: {why}")),
                    Ok(_) => {
                        let why = line.error().or_else(|| error.clone());
                        Ok(format!(
                            "{url} holds transactions up to {reached} of {txid}{}",
                            why.map_or_else(String::new, |why| format!(": {why}"))
                        ))
                    }
                });
            }
        }
        Ok(Synced { txid, durable: held })
    }

    /// Asks for a snapshot in every replica.
    pub(crate) fn want_snapshot(&self, why: &str) {
        for line in &self.lines {
            line.want_base();
        }
        self.face().snapshot = Some(why.to_owned());
    }

    /// Lets go of it, once all is captured and uploaded, or patience ends.
    pub(crate) async fn stop(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        patience: Duration,
    ) -> Result<Synced, ControlError> {
        let deadline = Instant::now() + patience;
        let asked = {
            let mut face = self.face();
            face.asked += 1;
            face.asked
        };
        let fresh = self.face().phase != Phase::Stopped;
        if fresh {
            self.rouse(shared);
        }
        self.hurry();
        let synced = if fresh {
            self.wait_until(asked, true, patience).await
        } else {
            self.reached(0, false).map_err(|_| ControlError::Stopped(self.path().to_owned()))
        };
        self.face().ending = true;
        self.face().stopped = true;
        if fresh {
            self.rouse(shared);
        }
        // What is being captured is captured whole; this does not take long.
        let grace = deadline.max(Instant::now() + Duration::from_secs(5));
        loop {
            let progress = self.progress.notified();
            let mut progress = std::pin::pin!(progress);
            progress.as_mut().enable();
            if self.face().phase == Phase::Stopped {
                for line in &self.lines {
                    line.close();
                }
                return synced;
            }
            if tokio::time::timeout_at(grace.into(), progress).await.is_err() {
                let why = "work on it does not end".to_owned();
                return Err(ControlError::Timeout { path: self.path().to_owned(), patience, why });
            }
        }
    }

    /// Whether it goes on after it was stopped.
    pub(crate) fn start(self: &Arc<Self>, shared: &Arc<Shared>) -> bool {
        {
            let mut face = self.face();
            if !face.stopped {
                return false;
            }
            (face.stopped, face.ending) = (false, false);
            face.phase = Phase::Starting;
            face.error = None;
        }
        for line in &self.lines {
            line.forget();
        }
        self.rouse(shared);
        true
    }

    pub(crate) fn status(&self) -> Status {
        let face = self.face();
        let changed = face.changed;
        let status = Status {
            path: self.path().to_owned(),
            phase: face.phase,
            txid: face.txid,
            size: face.size,
            wal_size: face.wal_size,
            error: face.error.clone(),
            concern: face.concern.clone(),
            disk_full: face.disk_full,
            replicas: Vec::new(),
            counters: face.counters,
        };
        drop(face);
        Status { replicas: self.lines.iter().map(|line| line.status(changed)).collect(), ..status }
    }

    /// Compacts and deletes what is due; with `all`, whatever is not due as well.
    pub(crate) async fn keep(&self, shared: &Shared, all: bool) -> Result<(), String> {
        let Some(schedule) = &self.spec.schedule else { return Ok(()) };
        let mut failed = Vec::new();
        for line in &self.lines {
            if !all && !line.is_due((shared.options.clock)()) {
                continue;
            }
            match Box::pin(line.keep(schedule, &shared.options.clock, all, &self.folder())).await {
                Ok(kept) => {
                    let mut face = self.face();
                    face.counters.compacted += kept.made as u64;
                    face.counters.l0_deleted += kept.deleted as u64;
                }
                Err(error) => {
                    let url = line.target.replica.url();
                    tracing::warn!(%url, %error, "cannot compact; trying again later");
                    failed.push(format!("{url}: {error}"));
                }
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    /// Notes what is wrong, and says so where it was not known.
    fn refuse(&self, refused: &Refused, disk_full: bool) {
        let (why, quiet) = match refused {
            Refused::Missing => ("there is no such file yet; replication begins when it is there".to_owned(), true),
            Refused::Remote(why) => (format!("cannot ask the replica what it holds: {why}"), false),
            Refused::Capture(error) => (error.to_string(), false),
        };
        let mut face = self.face();
        let news = face.error.as_ref() != Some(&why);
        face.disk_full = disk_full;
        face.counters.sync_errors += u64::from(!quiet);
        face.error = Some(why.clone());
        if face.phase != Phase::Live {
            face.phase = Phase::Waiting;
        }
        drop(face);
        let path = self.path().display();
        match news {
            true if quiet => tracing::info!(%path, why, "waiting"),
            true => tracing::warn!(%path, why, "not replicated; trying again"),
            false => {}
        }
        self.progress.notify_waiters();
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

/// What the driver of a database knows.
struct Driver {
    database: Arc<Database>,
    shared: Arc<Shared>,
    held: Held,
    /// To take it up.
    permit: Option<OwnedSemaphorePermit>,
    failures: u32,
    /// When the last pass began that may have captured something.
    last: Option<Instant>,
    /// Since when nothing has changed.
    quiet: Instant,
}

async fn drive(database: Arc<Database>, shared: Arc<Shared>, held: Held, permit: Option<OwnedSemaphorePermit>) {
    let mut driver = Driver { database, shared, held, permit, failures: 0, last: None, quiet: Instant::now() };
    while let Some(until) = Box::pin(driver.step()).await {
        tokio::select! {
            () = tokio::time::sleep_until(until.into()) => {}
            () = driver.database.wake.notified() => {}
        }
    }
}

impl Driver {
    /// Does what is to be done now. Tells when there will be something again, or nothing where the driver has ended.
    async fn step(&mut self) -> Option<Instant> {
        if self.database.face().ending {
            return self.finish().await;
        }
        let capture = match std::mem::take(&mut self.held) {
            Held::Live(capture) => capture,
            Held::Nothing => match self.take_up().await {
                Ok(capture) => capture,
                Err(refused) => return Some(self.refused(&refused)),
            },
        };
        self.tick(capture).await
    }

    fn refused(&mut self, refused: &Refused) -> Instant {
        let disk_full = matches!(refused, Refused::Capture(error) if error.is_disk_full());
        self.database.refuse(refused, disk_full);
        self.failures += 1;
        let pause = match refused {
            // It costs next to nothing to look.
            Refused::Missing => PAUSE.0,
            _ => (PAUSE.0 * 2_u32.pow(self.failures.min(6) - 1)).min(PAUSE.1),
        };
        Instant::now() + pause
    }

    /// Takes up the database: asks the replicas what they hold, then begins to hold it.
    async fn take_up(&mut self) -> Result<Box<Capture>, Refused> {
        let database = &self.database;
        let _permit = match self.permit.take() {
            Some(permit) => permit,
            None => match self.shared.starts.clone().acquire_owned().await {
                Ok(permit) => permit,
                Err(_) => return Err(Refused::Missing),
            },
        };
        if !database.path().exists() {
            return Err(Refused::Missing);
        }
        let left = Left::read(&database.folder());
        for line in &database.lines {
            if line.is_fenced() && line.target.auto_recover || line.needs_base() {
                line.forget();
            }
        }
        let asked = database.lines.iter().filter(|line| !line.is_fenced()).map(|line| line.newest(left));
        let answers = futures::future::join_all(asked).await;
        let mut newest: Option<Newest> = None;
        let (mut reachable, mut why, mut floor) = (0, String::new(), Txid(u64::MAX));
        for answer in answers {
            match answer {
                Ok(found) => {
                    reachable += 1;
                    floor = floor.min(found.map_or(Txid::ZERO, |found| found.txid));
                    if found.is_some_and(|found| newest.is_none_or(|newest| newest.txid < found.txid)) {
                        newest = found;
                    }
                }
                Err(error) => (why, floor) = (error.to_string(), Txid::ZERO),
            }
        }
        if reachable == 0 {
            return Err(Refused::Remote(if why.is_empty() { "another writer went on".to_owned() } else { why }));
        }
        let (settings, clock) = (database.spec.settings.clone(), self.shared.options.clock.clone());
        let started = Instant::now();
        let capture =
            blocking(move || Capture::start(settings, Box::new(move || clock()), &mut Known { newest, floor })).await;
        let (capture, staged) = match capture {
            Some(Ok(started)) => started,
            Some(Err(error)) => return Err(Refused::Capture(error)),
            None => return Err(Refused::Remote("it could not be asked".to_owned())),
        };
        for line in &database.lines {
            line.refill(&staged, started);
        }
        {
            let mut face = database.face();
            face.phase = Phase::Live;
            face.error = None;
            face.disk_full = false;
            face.changed = None;
            face.txid = capture.txid();
            face.counters.snapshots += u64::from(capture.snapshots());
        }
        tracing::debug!(path = %database.path().display(), txid = %capture.txid(), "replicating");
        (self.failures, self.last, self.quiet) = (0, Some(Instant::now()), Instant::now());
        database.upload(&self.shared);
        database.progress.notify_waiters();
        Ok(Box::new(capture))
    }

    /// How long to wait between two passes: longer, where uploads do not keep up.
    fn pace(&self) -> Duration {
        let backlog = self.database.lines.iter().filter(|line| !line.is_fenced()).map(|line| line.waiting()).min();
        let interval = self.database.spec.sync_interval();
        match backlog.unwrap_or(0) {
            0 | 1 => interval,
            more => {
                interval.max(Duration::from_millis(100)) * u32::try_from(more).unwrap_or(u32::MAX).min(LONGEST_PACE)
            }
        }
    }

    /// Captures where that is due. Tells when it will be.
    async fn tick(&mut self, mut capture: Box<Capture>) -> Option<Instant> {
        let now = Instant::now();
        let (asked, answered, snapshot) = {
            let mut face = self.database.face();
            (face.asked, face.answered, face.snapshot.take())
        };
        let due = self.last.map_or(now, |last| last + self.pace());
        let based = self.database.lines.iter().any(|line| line.needs_base());
        let snapshot = snapshot.or_else(|| based.then(|| "a replica lacks what comes before".to_owned()));
        if now < due && asked == answered && snapshot.is_none() {
            self.held = Held::Live(capture);
            return Some(due);
        }
        let started = Instant::now();
        self.last = Some(started);
        let before = capture.snapshots();
        let Ok(permit) = self.shared.captures.acquire().await else { return None };
        let done = blocking(move || {
            let mut staged = Vec::new();
            let mut outcome = capture.pass().map(|more| staged.extend(more));
            if let (Ok(()), Some(why)) = (&outcome, snapshot) {
                outcome = capture.snapshot_now(&why).map(|more| staged.extend(more));
            }
            if outcome.is_ok() {
                outcome = capture.checkpoint_if_due().map(|more| staged.extend(more));
            }
            (capture, staged, outcome)
        })
        .await;
        drop(permit);
        let Some((capture, staged, outcome)) = done else {
            return Some(self.refused(&Refused::Remote("it could not be captured".to_owned())));
        };
        let since = self.database.face().changed.take().unwrap_or(started);
        self.queue(&staged, since);
        self.note(&capture, &staged, started, capture.snapshots() - before);
        self.database.upload(&self.shared);
        match outcome {
            Ok(()) => {
                let mut face = self.database.face();
                face.answered = face.answered.max(asked);
                face.error = None;
                face.disk_full = false;
                face.phase = Phase::Live;
                drop(face);
                self.failures = 0;
                self.database.progress.notify_waiters();
                self.held = Held::Live(capture);
                Some(self.last.map_or(now, |last| last + self.pace()))
            }
            Err(error @ (Error::Replaced(_) | Error::Deleted(_))) => {
                // What was held is nobody's any more.
                let anew = self.failures == 0;
                let later = self.refused(&Refused::Capture(error));
                Some(if anew { Instant::now() } else { later })
            }
            Err(error) => {
                self.held = Held::Live(capture);
                Some(self.refused(&Refused::Capture(error)))
            }
        }
    }

    /// Hands out what was captured.
    fn queue(&self, staged: &[Staged], since: Instant) {
        let lines = &self.database.lines;
        let dropped: Vec<_> = lines.iter().flat_map(|line| line.push(staged, since)).collect();
        for staged in dropped {
            self.database.uploaded(&staged, &self.shared);
        }
    }

    fn note(&mut self, capture: &Capture, staged: &[Staged], started: Instant, snapshots: u32) {
        let mut face = self.database.face();
        face.txid = capture.txid();
        face.counters.snapshots += u64::from(snapshots);
        if let Some(last) = staged.last() {
            self.quiet = started;
            face.size = last.commit.bytes(last.page_size);
            face.counters.syncs += 1;
            face.counters.sync_time += started.elapsed();
            face.counters.wal_bytes += staged.iter().map(|staged| staged.wal_bytes).sum::<u64>();
        }
    }

    /// Captures what is left, and lets go.
    async fn finish(&mut self) -> Option<Instant> {
        if let Held::Live(capture) = std::mem::take(&mut self.held) {
            let outcome = blocking(move || capture.stop()).await;
            match outcome {
                Some(Ok(staged)) => {
                    let now = Instant::now();
                    self.queue(&staged, now);
                    if let Some(last) = staged.last() {
                        self.database.face().txid = last.txid;
                    }
                    self.database.upload(&self.shared);
                }
                Some(Err(error)) => self.database.refuse(&Refused::Capture(error), false),
                None => {}
            }
        }
        let mut face = self.database.face();
        let again = !face.stopped;
        face.ending = false;
        if !again {
            face.phase = Phase::Stopped;
            face.driven = false;
        }
        drop(face);
        self.database.progress.notify_waiters();
        // Somebody may have started it meanwhile.
        again.then(Instant::now)
    }
}
