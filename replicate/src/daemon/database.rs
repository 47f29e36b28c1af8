//! One database, from when it is registered until it is let go: taken up, captured as it changes, left to rest, taken up again.
//!
//! As long as there is something to do a *driver* does it, a task of the database's own. Where nothing is to be done there is no task: whoever notices a
//! change, or wants something, says so on the database's [`Face`] and sees that there is a driver.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ltx::{Timestamp, Txid};
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::line::Line;
use super::spec::Spec;
use super::status::{Counters, Phase, Status};
use super::sweep::Place;
use super::{ControlError, Shared, Synced};
use crate::{Capture, Concern, Error, Left, Newest, Parked, Refused, Remote, Resting, Settings, Staged};
use litestream_pageindex::upkeep::Schedule;

/// The pauses after which a database is tried again that cannot be captured.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long the end waits for a database that cannot be captured as it is.
const HOPELESS: Duration = Duration::from_secs(2);
/// The longest pause between two passes where uploads do not keep up.
const LONGEST_PACE: u32 = 60;
/// How many files may wait without that uploads count as late.
const FEW: usize = 3;
/// How often a database that does not change is looked at all the same, as long as it does not rest.
const LOOK: Duration = Duration::from_secs(1);
/// How many descriptors a database uses while it is captured, and while it rests.
pub(crate) const LIVE: u32 = 10;
pub(crate) const RESTING: u32 = 2;

/// A database.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) settings: Arc<Settings>,
    schedule: Option<Arc<Schedule>>,
    sync_interval: Duration,
    pub(crate) lines: Vec<Arc<Line>>,
    face: Mutex<Face>,
    /// Wakes the driver.
    pub(crate) wake: Notify,
    /// Says that something has come of it.
    pub(crate) progress: Notify,
    /// When it is to be drilled again.
    pub(crate) drill_due: AtomicI64,
    /// Whether its replicas are being compacted.
    keeping: AtomicBool,
    /// Whether what an earlier process left unfinished has been removed.
    cleaned: AtomicBool,
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
    /// Whether a drill is wanted, up to which TXID one was made, and what is to be said of the last one.
    drill: bool,
    drilled: Txid,
    alarm: Option<String>,
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
    /// Whether there is no such file, or one that cannot be captured as it is.
    missing: bool,
    hopeless: bool,
    /// A checkpoint of the application waits for us.
    urgent: bool,
    /// What is held while there is no driver.
    held: Held,
    /// Its place among those that are looked at.
    place: Option<Arc<Place>>,
}

/// What holds the database.
#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    Live(Box<Capture>, OwnedSemaphorePermit),
    Resting(Box<Resting>, OwnedSemaphorePermit),
    Parked(Arc<Parked>),
}

/// What the replicas hold, asked before.
struct Known {
    newest: Option<Newest>,
    /// Up to where all of them hold everything.
    floor: Txid,
    /// What lay in the folder when they were asked.
    left: Option<Left>,
    folder: PathBuf,
    /// The newest file, where it is not what was captured here last.
    file: Option<Vec<u8>>,
}

impl Remote for Known {
    fn newest(&mut self) -> Result<Option<Newest>, Box<dyn std::error::Error + Send + Sync>> {
        // Nobody else can go on from here on; but whoever did until a moment ago may have uploaded something since they were asked.
        if Left::read(&self.folder) != self.left {
            return Err("another process has gone on since the replica was asked".into());
        }
        Ok(self.newest)
    }

    fn floor(&mut self) -> Txid {
        self.floor
    }

    fn newest_file(&mut self) -> Option<Vec<u8>> {
        self.file.take()
    }
}

/// Why a database is not captured.
enum NotTaken {
    /// There is none yet.
    Missing,
    /// No replica could be asked.
    Remote(String),
    Capture(Error),
}

impl Database {
    pub(crate) fn new(spec: Spec) -> Self {
        let sync_interval = spec.sync_interval();
        let Spec { mut settings, replicas, schedule } = spec;
        let lines = replicas.into_iter().map(|target| Arc::new(Line::new(target))).collect();
        settings.shrink();
        let face = Face {
            phase: Phase::Starting,
            driven: false,
            changed: None,
            asked: 0,
            answered: 0,
            snapshot: None,
            drill: false,
            drilled: Txid::ZERO,
            alarm: None,
            ending: false,
            stopped: false,
            txid: Txid::ZERO,
            size: 0,
            wal_size: 0,
            error: None,
            concern: None,
            disk_full: false,
            counters: Counters::default(),
            missing: false,
            hopeless: false,
            urgent: false,
            held: Held::Nothing,
            place: None,
        };
        Self {
            settings: Arc::new(settings),
            schedule,
            sync_interval,
            lines,
            face: Mutex::new(face),
            wake: Notify::new(),
            progress: Notify::new(),
            drill_due: AtomicI64::new(i64::MAX),
            keeping: AtomicBool::new(false),
            cleaned: AtomicBool::new(false),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.settings.database
    }

    pub(crate) fn face(&self) -> MutexGuard<'_, Face> {
        self.face.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where what is ours lies.
    fn folder(&self) -> PathBuf {
        self.settings.meta_path.clone()
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
        shared.runtime.spawn(Box::pin(drive(self.clone(), shared.clone(), held, None)));
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
        self.lines.iter().any(|line| line.is_due(now))
            && !self.face().stopped
            && !self.keeping.swap(true, Ordering::SeqCst)
    }

    /// When something is to be compacted, or it is to be drilled.
    pub(crate) fn due(&self) -> i64 {
        let due = self.lines.iter().map(|line| line.due()).min().unwrap_or(i64::MAX);
        due.min(self.drill_due.load(Ordering::Relaxed))
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

    /// Says that something has happened to the files.
    pub(crate) fn notice(self: &Arc<Self>, shared: &Arc<Shared>, urgent: bool) {
        {
            let mut face = self.face();
            if urgent {
                face.urgent = true;
            } else {
                face.changed.get_or_insert_with(Instant::now);
            }
        }
        self.rouse(shared);
    }

    /// Whether a database that rests or is parked has to be taken up, for another reason than that the index has changed. What is parked may
    /// have changed as well.
    pub(crate) fn is_odd(&self) -> bool {
        match &mut self.face().held {
            // What is wrong, the driver will find.
            Held::Resting(resting, _) => {
                if !resting.is_remembered()
                    && let Err(error) = resting.remember()
                {
                    tracing::debug!(path = %self.path().display(), %error, "cannot note what the database file is");
                }
                resting.is_left_alone() || resting.check_files().is_err()
            }
            Held::Parked(parked) => parked.changed().unwrap_or(true),
            Held::Nothing | Held::Live(..) => false,
        }
    }

    /// Lets go of a database that rests, where that can be done safely.
    pub(crate) fn park(&self) {
        let mut face = self.face();
        let (mut resting, permit) = match std::mem::take(&mut face.held) {
            Held::Resting(resting, permit) => (resting, permit),
            held => {
                face.held = held;
                return;
            }
        };
        if let Err(error) = resting.remember() {
            tracing::debug!(path = %self.path().display(), %error, "cannot note what the database file is");
        }
        match resting.park() {
            Ok(parked) => {
                drop(permit);
                face.held = Held::Parked(Arc::new(parked));
                let place = face.place.clone();
                drop(face);
                if let Some(place) = place {
                    place.parked();
                }
            }
            Err(refused) => face.held = Held::Resting(Box::new(refused.unharmed), permit),
        }
    }

    /// Whether it rests, and nothing was committed since.
    fn is_at_rest(&self, face: &Face) -> bool {
        match &face.held {
            Held::Resting(resting, _) => !face.driven && resting.changed().is_ok_and(|changed| !changed),
            Held::Parked(parked) => !face.driven && parked.changed().is_ok_and(|changed| !changed),
            Held::Nothing | Held::Live(..) => false,
        }
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
                if line.needs_base() || line.wants_anew() {
                    this.rouse(&shared);
                }
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
        if let Some(schedule) = &self.schedule {
            let now = (shared.options.clock)();
            for line in &self.lines {
                if let Some(due) = line.schedule(schedule, now, staged.checksum.0) {
                    shared.due(due);
                }
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
            if face.snapshot.is_none() && self.is_at_rest(&face) {
                face.answered = face.asked;
            }
            face.asked
        };
        if self.face().answered < asked {
            self.rouse(shared);
        }
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

    /// Asks for a drill, where anything was captured since the last one. Says whether.
    pub(crate) fn wants_drill(&self) -> bool {
        let mut face = self.face();
        face.drill = face.txid > face.drilled && !face.stopped;
        face.drill
    }

    /// Notes what came of a drill.
    pub(crate) fn drilled(&self, passed: bool, alarm: Option<String>) {
        let mut face = self.face();
        face.counters.drills_passed += u64::from(passed);
        face.counters.drills_failed += u64::from(!passed);
        face.alarm = alarm;
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
            if self.is_at_rest(&face) {
                face.answered = face.asked;
            }
            face.asked
        };
        let fresh = self.face().phase != Phase::Stopped;
        // Of what is not there, nothing can be captured.
        let patience = match &*self.face() {
            face if face.missing => Duration::ZERO,
            face if face.hopeless => patience.min(HOPELESS),
            _ => patience,
        };
        if fresh && self.face().answered < asked {
            self.rouse(shared);
        }
        self.hurry();
        let missing = self.face().missing;
        let synced = if missing {
            Ok(self.synced())
        } else if fresh {
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
            concern: face.alarm.clone().or_else(|| face.concern.clone()),
            disk_full: face.disk_full,
            replicas: Vec::new(),
            counters: face.counters,
        };
        drop(face);
        Status { replicas: self.lines.iter().map(|line| line.status(changed)).collect(), ..status }
    }

    /// Compacts and deletes what is due; with `all`, whatever is not due as well.
    pub(crate) async fn keep(&self, shared: &Shared, all: bool) -> Result<(), String> {
        let Some(schedule) = &self.schedule else { return Ok(()) };
        let mut failed = Vec::new();
        for line in &self.lines {
            if !all && !line.is_due((shared.options.clock)()) {
                continue;
            }
            match Box::pin(line.keep(schedule, &shared.options.clock, all, &self.folder())).await {
                Ok(kept) => {
                    shared.due(line.due());
                    let mut face = self.face();
                    face.counters.compacted += kept.made as u64;
                    face.counters.l0_deleted += kept.deleted as u64;
                }
                Err(error) => {
                    let url = line.target.replica.url();
                    tracing::warn!(%url, %error, "cannot compact; trying again later");
                    shared.due(line.due());
                    failed.push(format!("{url}: {error}"));
                }
            }
        }
        // One that rests has no need to know what files it has.
        if self.face().phase == Phase::Idle {
            for line in &self.lines {
                line.forget_files();
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    /// Removes the folders of merges and drills that were killed. Nobody else works here, and we have not begun to.
    fn clean(&self) {
        let Ok(entries) = std::fs::read_dir(&self.settings.meta_path) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let left = name.to_string_lossy();
            if (left.starts_with(".merge-") || left == "drill")
                && let Err(error) = std::fs::remove_dir_all(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove what was left unfinished");
            }
        }
    }

    /// Notes what is wrong, and says so where it was not known.
    fn refuse(&self, refused: &NotTaken, disk_full: bool) {
        let (why, quiet) = match refused {
            NotTaken::Missing => ("there is no such file yet; replication begins when it is there".to_owned(), true),
            NotTaken::Remote(why) => (format!("cannot ask the replica what it holds: {why}"), false),
            NotTaken::Capture(error) => (error.to_string(), false),
        };
        let mut face = self.face();
        let news = face.error.as_ref() != Some(&why);
        face.disk_full = disk_full;
        face.missing = quiet;
        face.hopeless = matches!(refused, NotTaken::Capture(_)) && face.phase != Phase::Live && !disk_full;
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
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
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
    /// When the last pass began, and the last one that captured something.
    looked: Option<Instant>,
    last: Option<Instant>,
    /// Since when nothing has changed.
    quiet: Instant,
    /// Whether nothing was seen to change since it was taken up for the first time.
    fresh: bool,
}

async fn drive(database: Arc<Database>, shared: Arc<Shared>, held: Held, permit: Option<OwnedSemaphorePermit>) {
    let mut driver = Driver {
        database,
        shared,
        held,
        permit,
        failures: 0,
        looked: None,
        last: None,
        quiet: Instant::now(),
        fresh: false,
    };
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
        let (capture, permit) = match std::mem::take(&mut self.held) {
            Held::Live(capture, permit) => (capture, permit),
            held => match self.take_up(held).await {
                Ok(taken) => taken,
                Err(refused) => return Some(self.refused(&refused)),
            },
        };
        self.tick(capture, permit).await
    }

    fn refused(&mut self, refused: &NotTaken) -> Instant {
        let disk_full = matches!(refused, NotTaken::Capture(error) if error.is_disk_full());
        self.database.refuse(refused, disk_full);
        self.failures += 1;
        let pause = match refused {
            // It costs next to nothing to look.
            NotTaken::Missing => PAUSE.0,
            NotTaken::Capture(_) => (PAUSE.0 * self.failures).min(HOPELESS * 2),
            NotTaken::Remote(_) => (PAUSE.0 * 2_u32.pow(self.failures.min(6) - 1)).min(PAUSE.1),
        };
        Instant::now() + pause
    }

    /// Takes up the database, from wherever it was left.
    async fn take_up(&mut self, held: Held) -> Result<(Box<Capture>, OwnedSemaphorePermit), NotTaken> {
        let clock = self.shared.options.clock.clone();
        let Ok(room) = self.shared.descriptors.clone().acquire_many_owned(LIVE).await else {
            return Err(NotTaken::Missing);
        };
        let capture = match held {
            Held::Live(capture, permit) => return Ok((capture, permit)),
            Held::Resting(resting, permit) => {
                let woken = self.shared.work(move || resting.wake(Box::new(move || clock()))).await;
                match woken {
                    Some(Ok(capture)) => {
                        drop(permit);
                        Box::new(capture)
                    }
                    Some(Err(refused)) => {
                        let Refused { unharmed, why } = *refused;
                        if !why.is_final() {
                            self.held = Held::Resting(Box::new(unharmed), permit);
                        }
                        return Err(NotTaken::Capture(why));
                    }
                    None => return Err(NotTaken::Remote("it could not be taken up".to_owned())),
                }
            }
            Held::Parked(parked) => {
                self.held = Held::Parked(parked.clone());
                let capture = self.begin(Some(parked)).await?;
                self.held = Held::Nothing;
                capture
            }
            Held::Nothing => self.begin(None).await?,
        };
        self.live(&capture);
        Ok((capture, room))
    }

    /// It is being captured from now on.
    fn live(&mut self, capture: &Capture) {
        let place = {
            let mut face = self.database.face();
            (face.phase, face.error) = (Phase::Live, None);
            (face.disk_full, face.missing, face.hopeless) = (false, false, false);
            face.txid = capture.txid();
            (face.size, face.wal_size) = capture.sizes();
            face.place.get_or_insert_with(|| Arc::new(Place::new(&self.shared, &self.database))).clone()
        };
        match capture.watch() {
            Ok(watch) => place.hot(Some(watch), capture.seen()),
            Err(error) => {
                tracing::warn!(path = %self.database.path().display(), %error, "changes are noticed late");
                place.blind();
            }
        }
        (self.failures, self.quiet) = (0, Instant::now());
        self.database.progress.notify_waiters();
    }

    /// Asks the replicas what they hold, then begins to hold the database.
    async fn begin(&mut self, parked: Option<Arc<Parked>>) -> Result<Box<Capture>, NotTaken> {
        let database = &self.database;
        let _permit = match self.permit.take() {
            Some(permit) => permit,
            None => match self.shared.starts.clone().acquire_owned().await {
                Ok(permit) => permit,
                Err(_) => return Err(NotTaken::Missing),
            },
        };
        if !database.path().exists() {
            return Err(NotTaken::Missing);
        }
        let left = Left::read(&database.folder());
        for line in &database.lines {
            if line.wants_anew() || line.needs_base() {
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
            return Err(NotTaken::Remote(if why.is_empty() { "another writer went on".to_owned() } else { why }));
        }
        let mut file = None;
        if let Some(newest) = newest.filter(|newest| left.is_none_or(|left| left.txid < newest.txid)) {
            for line in database.lines.iter().filter(|line| line.reached() == Some(newest.txid)) {
                file = line.file_of(newest.txid).await;
            }
        }
        let (settings, clock) = (database.settings.clone(), self.shared.options.clock.clone());
        let started = Instant::now();
        let capture = self
            .shared
            .work(move || {
                let folder = settings.meta_path.clone();
                let (clock, mut known) = (Box::new(move || clock()), Known { newest, floor, left, folder, file });
                match parked {
                    Some(parked) => parked.wake(clock, &mut known),
                    None => Capture::start(settings, clock, &mut known),
                }
            })
            .await;
        let (capture, staged) = match capture {
            Some(Ok(started)) => started,
            Some(Err(error)) => {
                if matches!(error, Error::Replicated(_) | Error::Remote(_)) {
                    // Another process uploads meanwhile: the next try asks again.
                    database.lines.iter().filter(|line| !line.is_fenced()).for_each(|line| line.forget());
                }
                return Err(NotTaken::Capture(error));
            }
            None => return Err(NotTaken::Remote("it could not be asked".to_owned())),
        };
        for line in &database.lines {
            line.refill(&staged, started);
        }
        if !database.cleaned.swap(true, Ordering::Relaxed) {
            database.clean();
        }
        {
            let mut face = database.face();
            face.txid = capture.txid();
            face.counters.snapshots += u64::from(capture.snapshots());
        }
        tracing::debug!(path = %database.path().display(), txid = %capture.txid(), "replicating");
        // Where nothing is going on, it rests at once.
        (self.looked, self.last, self.fresh) = (None, None, true);
        database.upload(&self.shared);
        Ok(Box::new(capture))
    }

    /// How long to wait between two passes: longer, where uploads do not keep up. A pass may make several files.
    fn pace(&self) -> Duration {
        let backlog = self.database.lines.iter().filter(|line| !line.is_fenced()).map(|line| line.waiting()).min();
        let interval = self.database.sync_interval;
        match backlog.unwrap_or(0) {
            0..=FEW => interval,
            more => {
                interval.max(Duration::from_millis(100)) * u32::try_from(more).unwrap_or(u32::MAX).min(LONGEST_PACE)
            }
        }
    }

    /// Captures where that is due. Tells when it will be.
    async fn tick(&mut self, mut capture: Box<Capture>, permit: OwnedSemaphorePermit) -> Option<Instant> {
        let now = Instant::now();
        if self.database.lines.iter().any(|line| line.wants_anew()) {
            // Another writer has been there. What was captured and not uploaded will be in the snapshot.
            drop((capture, permit));
            self.failures += 1;
            return Some(now + PAUSE.0 * self.failures.min(30));
        }
        let (asked, changed, snapshot, drill) = {
            let mut face = self.database.face();
            let now = face.urgent || face.asked > face.answered;
            face.urgent = false;
            (now.then_some(face.asked), face.changed, face.snapshot.take(), std::mem::take(&mut face.drill))
        };
        let based = self.database.lines.iter().any(|line| line.needs_base());
        let snapshot = snapshot.or_else(|| based.then(|| "a replica lacks what comes before".to_owned()));
        let look = self.looked.map_or(now, |looked| looked + LOOK);
        let due = if changed.is_some() { self.last.map_or(now, |last| last + self.pace()) } else { look };
        if now < due && asked.is_none() && snapshot.is_none() && !drill {
            self.held = Held::Live(capture, permit);
            // By then uploads may have caught up.
            return Some(due.min(now + self.database.sync_interval.max(Duration::from_millis(10))));
        }
        let started = Instant::now();
        self.looked = Some(started);
        let since = self.database.face().changed.take();
        let again = snapshot.clone();
        let before = capture.snapshots();
        let done = self
            .shared
            .work(move || {
                let mut staged = Vec::new();
                let mut outcome = capture.pass().map(|more| staged.extend(more));
                if let (Ok(()), Some(why)) = (&outcome, snapshot) {
                    outcome = capture.snapshot_now(&why).map(|more| staged.extend(more));
                }
                if outcome.is_ok() {
                    outcome = capture.checkpoint_if_due().map(|more| staged.extend(more));
                }
                let mut digest = None;
                if outcome.is_ok() && drill {
                    match capture.digest() {
                        Ok(found) => digest = Some(found),
                        Err(error) => outcome = Err(error),
                    }
                    if outcome.is_ok() {
                        outcome = capture.pass().map(|more| staged.extend(more));
                    }
                }
                (capture, staged, outcome, digest)
            })
            .await;
        let Some((mut capture, staged, outcome, digest)) = done else {
            return Some(self.refused(&NotTaken::Remote("it could not be captured".to_owned())));
        };
        self.queue(&staged, since.unwrap_or(started));
        self.note(&mut capture, &staged, started, before);
        self.database.upload(&self.shared);
        if let Some(digest) = digest {
            self.database.face().drilled = digest.txid();
            self.shared.runtime.spawn(self.database.clone().drill(self.shared.clone(), Arc::new(digest)));
        }
        match outcome {
            Ok(()) => {
                {
                    let mut face = self.database.face();
                    if let Some(asked) = asked {
                        face.answered = face.answered.max(asked);
                    }
                    (face.error, face.disk_full, face.phase) = (None, false, Phase::Live);
                }
                self.failures = 0;
                self.database.progress.notify_waiters();
                self.rest(capture, permit).await
            }
            Err(error) if error.is_final() => {
                // What was held is nobody's any more.
                let anew = self.failures == 0;
                let later = self.refused(&NotTaken::Capture(error));
                Some(if anew { Instant::now() } else { later })
            }
            Err(error) => {
                self.held = Held::Live(capture, permit);
                let mut face = self.database.face();
                face.changed = [face.changed, since].into_iter().flatten().min();
                face.snapshot = face.snapshot.take().or(again);
                drop(face);
                Some(self.refused(&NotTaken::Capture(error)))
            }
        }
    }

    /// Lets the database rest where nothing has changed for long, and the driver end. Otherwise tells when there is something to do.
    async fn rest(&mut self, mut capture: Box<Capture>, mut permit: OwnedSemaphorePermit) -> Option<Instant> {
        let now = Instant::now();
        let place = self.database.face().place.clone();
        if let Some(place) = &place {
            place.hot(None, capture.seen());
        }
        let lines = &self.database.lines;
        let long = now >= self.quiet + self.shared.options.rest_after;
        if !long && !std::mem::take(&mut self.fresh) || lines.iter().any(|line| line.needs_base()) {
            self.held = Held::Live(capture, permit);
            return Some(now + LOOK);
        }
        // Whatever comes of it, it is tried again only after a while.
        self.quiet = now;
        let done = self
            .shared
            .work(move || match capture.checkpoint_now() {
                Ok(staged) if staged.is_empty() => (capture.rest().map_err(|refused| refused.unharmed), staged),
                Ok(staged) => (Err(*capture), staged),
                Err(error) => {
                    tracing::debug!(%error, "cannot checkpoint");
                    (Err(*capture), Vec::new())
                }
            })
            .await;
        let Some((rested, staged)) = done else {
            return Some(self.refused(&NotTaken::Remote("it could not be left to rest".to_owned())));
        };
        self.queue(&staged, now);
        let resting = match rested {
            Ok(resting) => resting,
            Err(capture) => {
                if let Some(place) = &place {
                    place.hot(None, capture.seen());
                }
                self.database.upload(&self.shared);
                self.held = Held::Live(Box::new(capture), permit);
                return Some(now + LOOK);
            }
        };
        let kept = permit.split(RESTING as usize);
        drop(permit);
        let (Some(kept), Some(place)) = (kept, place) else { return Some(now) };
        for line in lines {
            line.forget_files();
        }
        let watch = resting.watch();
        let mut face = self.database.face();
        let wanted = face.ending || face.asked > face.answered || face.snapshot.is_some() || face.drill;
        let held = Held::Resting(Box::new(resting), kept);
        let Ok(watch) = watch else {
            self.held = held;
            return Some(now);
        };
        if wanted {
            self.held = held;
            return Some(now);
        }
        let Held::Resting(resting, _) = &held else { return Some(now) };
        let seen = resting.seen();
        face.held = held;
        face.phase = Phase::Idle;
        face.driven = false;
        face.changed = None;
        drop(face);
        // What has changed by now shows when it is looked at.
        place.cold(watch, seen);
        self.database.progress.notify_waiters();
        None
    }

    /// Hands out what was captured.
    fn queue(&self, staged: &[Staged], since: Instant) {
        let lines = &self.database.lines;
        let dropped: Vec<_> = lines.iter().flat_map(|line| line.push(staged, since)).collect();
        // Where nobody takes them any more, what comes next begins with a snapshot.
        let useless = if lines.iter().all(|line| line.is_fenced()) { staged } else { &[] };
        for staged in dropped.iter().chain(useless) {
            self.database.uploaded(staged, &self.shared);
        }
    }

    fn note(&mut self, capture: &mut Capture, staged: &[Staged], started: Instant, before: u32) {
        let snapshots = capture.snapshots() - before;
        let (passive, truncate) = capture.take_checkpoints();
        let mut face = self.database.face();
        face.counters.passive_checkpoints += passive;
        face.counters.truncate_checkpoints += truncate;
        face.txid = capture.txid();
        face.counters.snapshots += u64::from(snapshots);
        let (size, wal_size) = capture.sizes();
        (face.size, face.wal_size) = (size, wal_size);
        let concern = capture.concern().filter(Concern::is_lasting).map(|concern| concern.to_string());
        if let (Some(concern), None) = (&concern, &face.concern) {
            tracing::warn!(path = %self.database.path().display(), "{concern}");
        }
        face.concern = concern;
        if !staged.is_empty() {
            (self.last, self.quiet, self.fresh) = (Some(started), started, false);
            face.counters.syncs += 1;
            face.counters.sync_time += started.elapsed();
            face.counters.wal_bytes += staged.iter().map(|staged| staged.wal_bytes).sum::<u64>();
        }
    }

    /// Captures what is left, and lets go.
    async fn finish(&mut self) -> Option<Instant> {
        let clock = self.shared.options.clock.clone();
        let outcome = match std::mem::take(&mut self.held) {
            Held::Live(capture, _permit) => self.shared.work(move || capture.stop()).await,
            Held::Resting(resting, _permit) => self.shared.work(move || resting.stop(Box::new(move || clock()))).await,
            Held::Nothing | Held::Parked(_) => None,
        };
        match outcome {
            Some(Ok(staged)) => {
                self.queue(&staged, Instant::now());
                if let Some(last) = staged.last() {
                    self.database.face().txid = last.txid;
                }
                self.database.upload(&self.shared);
            }
            Some(Err(error)) => self.database.refuse(&NotTaken::Capture(error), false),
            None => {}
        }
        self.database.face().place = None;
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
