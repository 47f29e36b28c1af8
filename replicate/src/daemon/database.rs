//! One database, from when it is registered until it is let go: taken up, captured as it changes, left to rest, taken up again.
//!
//! As long as there is something to do a *driver* does it, a task of the database's own (`driver`). Where nothing is to be done there is no task:
//! whoever notices a change, or wants something, says so on the database's [`Face`] and sees that there is a driver.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use litestream_pageindex::upkeep::Schedule;
use ltx::{Timestamp, Txid};
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::driver::{NotTaken, Seat, drive};
use super::line::{BASE, Line};
use super::spec::Spec;
use super::status::{Counters, Phase, Status};
use super::sweep::Place;
use super::{ControlError, Shared, Synced};
use crate::stage::Had;
use crate::{Capture, Parked, Resting, Settings, Staged};

/// How long the end waits for a database that cannot be captured as it is.
const HOPELESS: Duration = Duration::from_secs(2);
/// The longest that trying once may take.
const ONCE: Duration = Duration::from_secs(30);

/// How long the end of a database may take.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// Until everything was tried once.
    Once,
    Lasts(Duration),
}

/// A database.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) settings: Arc<Settings>,
    schedule: Option<Arc<Schedule>>,
    pub(super) sync_interval: Duration,
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
    pub(super) cleaned: AtomicBool,
    /// What was deleted last.
    had: Mutex<Option<Had>>,
}

/// What is wanted, and what has come of it.
#[derive(Debug)]
pub(crate) struct Face {
    pub(super) phase: Phase,
    /// Whether there is a driver.
    pub(super) driven: bool,
    /// When a commit was noticed that is not captured yet.
    pub(super) changed: Option<Instant>,
    /// How often a pass was asked for, and up to which of these it was made.
    pub(super) asked: u64,
    pub(super) answered: u64,
    /// Why a snapshot is wanted.
    pub(super) snapshot: Option<String>,
    /// Whether a drill is wanted, whether one is being made, up to which TXID one was made, and what is to be said of the last one.
    pub(super) drill: bool,
    pub(super) drilling: bool,
    pub(super) drilled: Txid,
    pub(super) alarm: Option<String>,
    /// Whether it shall be let go, and whether that is about to come: then its log stays as it is, which proves what comes after.
    pub(super) ending: bool,
    pub(super) closing: bool,
    /// Whether it is stopped until somebody starts it.
    pub(super) stopped: bool,
    pub(super) txid: Txid,
    pub(super) size: u64,
    pub(super) wal_size: u64,
    pub(super) error: Option<String>,
    pub(super) concern: Option<String>,
    pub(super) disk_full: bool,
    pub(super) counters: Counters,
    /// Whether there is no such file, or one that cannot be captured as it is.
    pub(super) missing: bool,
    pub(super) hopeless: bool,
    /// Whether what was captured and is not uploaded waits in the queues.
    pub(super) queued: bool,
    /// A checkpoint of the application waits for us.
    pub(super) urgent: bool,
    /// What is held while there is no driver.
    pub(super) held: Held,
    /// Its place among those that are looked at.
    pub(super) place: Option<Arc<Place>>,
}

/// What holds the database.
#[derive(Debug, Default)]
pub(super) enum Held {
    #[default]
    Nothing,
    Live(Box<Capture>, Seat),
    Resting(Box<Resting>, Seat),
    Parked(Arc<Parked>),
}

impl Face {
    /// Whether it is to be let go of, and nothing can be captured any more of what is not there.
    const fn is_gone(&self) -> bool {
        self.closing && self.missing
    }
}

impl Database {
    pub(crate) fn new(spec: Spec) -> Self {
        let sync_interval = spec.sync_interval();
        let Spec { mut settings, replicas, schedule } = spec;
        let mut lines: Vec<_> = replicas.into_iter().map(|target| Arc::new(Line::new(target))).collect();
        // Collected in place, it would keep as much as the targets needed.
        lines.shrink_to_fit();
        settings.shrink();
        let face = Face {
            phase: Phase::Starting,
            driven: false,
            changed: None,
            asked: 0,
            answered: 0,
            snapshot: None,
            drill: false,
            drilling: false,
            drilled: Txid::ZERO,
            alarm: None,
            ending: false,
            closing: false,
            stopped: false,
            txid: Txid::ZERO,
            size: 0,
            wal_size: 0,
            error: None,
            concern: None,
            disk_full: false,
            counters: Counters::default(),
            missing: false,
            queued: false,
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
            had: Mutex::default(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.settings.database
    }

    pub(crate) fn face(&self) -> MutexGuard<'_, Face> {
        self.face.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where what is ours lies.
    pub(super) fn folder(&self) -> PathBuf {
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
        if face.stopped && !face.ending {
            // It was let go of, whatever is still to be said of it.
            face.driven = false;
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
                resting.is_left_alone() || resting.is_overwritten() || resting.check_files().is_err()
            }
            Held::Parked(parked) => parked.changed().unwrap_or(true),
            Held::Nothing | Held::Live(..) => false,
        }
    }

    /// Lets go of a database that rests, where that can be done safely. Says whether.
    pub(crate) fn park(&self) -> bool {
        let mut face = self.face();
        let (mut resting, permit) = match std::mem::take(&mut face.held) {
            Held::Resting(resting, permit) => (resting, permit),
            held => {
                face.held = held;
                return false;
            }
        };
        if let Err(error) = resting.remember() {
            tracing::debug!(path = %self.path().display(), %error, "cannot note what the database file is");
        }
        match resting.park() {
            Ok(parked) => {
                drop(permit);
                face.held = Held::Parked(Arc::new(parked));
                // Whoever takes it up again comes after that.
                if let Some(place) = &face.place {
                    place.parked();
                }
                true
            }
            Err(refused) => {
                face.held = Held::Resting(Box::new(refused.unharmed), permit);
                false
            }
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
                line.run(&shared, |staged| this.uploaded(staged, &shared)).await;
                this.progress.notify_waiters();
                if line.needs_base() || line.wants_anew() {
                    this.rouse(&shared);
                }
            });
        }
    }

    /// Deletes a file here that all replicas have. As long as another writer has gone on in all of them, it stays: it tells his from ours.
    pub(super) fn uploaded(&self, staged: &Staged, shared: &Shared) {
        let past: Vec<bool> = self.lines.iter().filter_map(|line| line.is_past(staged.txid)).collect();
        if !past.is_empty() && past.iter().all(|past| *past) {
            self.note_had(staged);
            self.discard(staged);
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

    /// Notes what is about to be deleted.
    fn note_had(&self, staged: &Staged) {
        let Some(folder) = staged.path.parent() else { return };
        let had = Had { txid: staged.txid, checksum: staged.checksum };
        let mut noted = self.had.lock().unwrap_or_else(PoisonError::into_inner);
        let before = noted.or_else(|| Had::find(folder));
        if before.is_none_or(|before| before.txid < had.txid) {
            match had.put(folder, before) {
                Ok(()) => *noted = Some(had),
                // It costs a snapshot where the next start needs it.
                Err(error) => tracing::debug!(path = %folder.display(), %error, "cannot note what was deleted"),
            }
        }
    }

    /// Deletes a file.
    pub(super) fn discard(&self, staged: &Staged) {
        if let Err(error) = std::fs::remove_file(&staged.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %staged.path.display(), %error, "cannot delete a file that was uploaded");
        }
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
                Err(Err(why)) => return Err(self.failed(why)),
            };
            if tokio::time::timeout_at(deadline, progress).await.is_err() {
                return Err(ControlError::Timeout { path: self.path().to_owned(), patience, why });
            }
        }
    }

    /// Waits until it is captured and everywhere, or until each part of that which is not was tried once and has failed.
    async fn wait_once(&self, asked: u64, longest: Duration) -> Result<Synced, ControlError> {
        const STEP: Duration = Duration::from_millis(50);
        let deadline = Instant::now() + longest;
        let errors = self.face().counters.sync_errors;
        let failed: Vec<_> = self.lines.iter().map(|line| line.errors()).collect();
        loop {
            match self.wait_until(asked, true, STEP).await {
                Err(ControlError::Timeout { path, why, .. }) => {
                    let (captured, tried) = {
                        let face = self.face();
                        let captured = face.answered >= asked || face.is_gone();
                        (captured.then_some(face.txid), face.counters.sync_errors > errors)
                    };
                    let mut lines = self.lines.iter().zip(&failed);
                    let all =
                        |txid| lines.all(|(line, failed)| line.holds(txid) != Ok(false) || line.errors() > *failed);
                    if captured.map_or(tried, all) || Instant::now() >= deadline {
                        return Err(ControlError::Failed { path, why: format!("tried once: {why}") });
                    }
                }
                ended => return ended,
            }
        }
    }

    /// What was reached, or what is missing yet, or what will never come.
    fn reached(&self, asked: u64, mut durable: bool) -> Result<Synced, Result<String, String>> {
        let gone;
        let (txid, error) = {
            let face = self.face();
            if face.answered < asked && !face.is_gone() {
                return Err(match &face.error {
                    Some(error) if face.phase == Phase::Stopped => Err(error.clone()),
                    Some(error) => Ok(error.clone()),
                    None => Ok("it is still being captured".to_owned()),
                });
            }
            gone = face.missing;
            // Of what is not there, what is not in the queues is not here either.
            durable &= !gone || face.queued;
            (face.txid, face.error.clone())
        };
        let (mut held, mut never) = (txid, None);
        for line in &self.lines {
            let reached = line.reached().unwrap_or_default();
            held = held.min(reached);
            if !durable || reached >= txid && !line.needs_base() {
                continue;
            }
            let url = line.target.replica.url();
            let lacks = format!("{url} holds transactions up to {reached} of {txid}");
            match line.holds(txid) {
                // The others may still get there.
                Err(why) => never = never.or(Some(format!("{url}: {why}"))),
                Ok(_) if gone && line.needs_base() => {
                    never = never.or(Some(format!("{lacks}, and the database is not there to make a snapshot of")));
                }
                Ok(_) => {
                    let why = line.error().or_else(|| error.clone());
                    return Err(Ok(why.map_or(lacks.clone(), |why| format!("{lacks}: {why}"))));
                }
            }
        }
        never.map_or(Ok(Synced { txid, durable: held }), |why| Err(Err(why)))
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
        face.drill = face.txid > face.drilled && !face.stopped && !face.drilling;
        face.drill
    }

    /// Notes what came of a drill.
    pub(crate) fn drilled(&self, passed: bool, alarm: Option<String>) {
        let mut face = self.face();
        face.counters.drills_passed += u64::from(passed);
        face.counters.drills_failed += u64::from(!passed);
        face.alarm = alarm;
    }

    /// Asks for the last pass. Returns the number with which [`Self::stop_asked`] waits for it.
    pub(crate) fn ask_to_end(self: &Arc<Self>, shared: &Arc<Shared>) -> u64 {
        let (asked, wanted) = {
            let mut face = self.face();
            face.closing = true;
            face.asked += 1;
            if face.phase != Phase::Stopped {
                // It may be there by now: that is looked at again.
                face.missing = false;
            }
            if self.is_at_rest(&face) {
                face.answered = face.asked;
            }
            (face.asked, face.phase != Phase::Stopped && face.answered < face.asked)
        };
        if wanted {
            self.rouse(shared);
        }
        self.hurry();
        asked
    }

    /// Lets go of it, once all is captured and uploaded, or patience ends.
    pub(crate) async fn stop(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        patience: Duration,
    ) -> Result<Synced, ControlError> {
        let asked = self.ask_to_end(shared);
        self.stop_asked(shared, asked, Patience::Lasts(patience)).await
    }

    /// The same, where it was asked for the last pass.
    pub(crate) async fn stop_asked(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        asked: u64,
        patience: Patience,
    ) -> Result<Synced, ControlError> {
        let (patience, once) = match patience {
            Patience::Once => (ONCE, true),
            Patience::Lasts(patience) => (patience, false),
        };
        let deadline = Instant::now() + patience;
        let (fresh, hopeless) = {
            let face = self.face();
            (face.phase != Phase::Stopped, face.hopeless)
        };
        let patience = if hopeless { patience.min(HOPELESS) } else { patience };
        let synced = match () {
            () if !fresh => self.reached(0, true).map_err(|(Ok(why) | Err(why))| self.failed(why)),
            () if once => self.wait_once(asked, patience).await,
            () => self.wait_until(asked, true, patience).await,
        };
        {
            // Both at once: a driver that ends goes on where nobody has stopped it.
            let mut face = self.face();
            (face.ending, face.stopped) = (true, true);
        }
        if fresh {
            self.rouse(shared);
        }
        // What is being captured is captured whole; this does not take long.
        let grace = deadline.max(Instant::now() + Duration::from_secs(5));
        loop {
            let progress = self.progress.notified();
            let mut progress = std::pin::pin!(progress);
            progress.as_mut().enable();
            {
                let face = self.face();
                // Or somebody has started it again.
                if face.phase == Phase::Stopped || !face.stopped {
                    break;
                }
            }
            if tokio::time::timeout_at(grace.into(), progress).await.is_err() {
                self.close();
                let why = "work on it does not end".to_owned();
                return Err(ControlError::Timeout { path: self.path().to_owned(), patience, why });
            }
        }
        // What was committed while it was being let go was captured as well.
        let error = {
            let face = self.face();
            face.error.clone().filter(|_| !face.missing)
        };
        let synced = match (synced, error) {
            (Ok(_), Some(why)) if fresh => Err(self.failed(why)),
            (Ok(_), None) if fresh => {
                self.wait_until(0, true, deadline.saturating_duration_since(Instant::now())).await
            }
            (synced, _) => synced,
        };
        self.close();
        synced
    }

    fn failed(&self, why: String) -> ControlError {
        ControlError::Failed { path: self.path().to_owned(), why }
    }

    /// Uploads nothing more, unless somebody has started it again.
    fn close(&self) {
        let face = self.face();
        if face.stopped {
            self.lines.iter().for_each(|line| line.close());
        }
        drop(face);
    }

    /// Whether it goes on after it was stopped.
    pub(crate) fn start(self: &Arc<Self>, shared: &Arc<Shared>) -> bool {
        {
            let mut face = self.face();
            if !face.stopped {
                return false;
            }
            (face.stopped, face.ending, face.closing) = (false, false, false);
            face.phase = Phase::Starting;
            face.error = None;
            // What waited then is looked for anew.
            (face.queued, face.missing) = (false, false);
        }
        self.progress.notify_waiters();
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

    /// Removes what merges, drills and bases have left that were killed. Nobody else works here, and we have not begun to.
    pub(super) fn clean(&self) {
        let meta = &self.settings.meta_path;
        for folder in [meta, &meta.join("ltx").join("0")] {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let (name, path) = (entry.file_name(), entry.path());
                let name = name.to_string_lossy();
                let removed = match () {
                    () if name.starts_with(".merge-") || name == "drill" => std::fs::remove_dir_all(&path),
                    () if name.starts_with(BASE) => std::fs::remove_file(&path),
                    () => continue,
                };
                if let Err(error) = removed {
                    tracing::warn!(path = %path.display(), %error, "cannot remove what was left unfinished");
                }
            }
        }
    }

    /// Notes what is wrong, and says so where it was not known.
    pub(super) fn refuse(&self, refused: &NotTaken, disk_full: bool) {
        let (why, quiet) = match refused {
            NotTaken::Missing => ("there is no such file; replication begins when it is there".to_owned(), true),
            NotTaken::Capture(error) => (error.to_string(), false),
            NotTaken::Other(why) => (why.clone(), false),
            NotTaken::Ending => return,
        };
        let mut face = self.face();
        let news = face.error.as_ref() != Some(&why);
        face.disk_full = disk_full;
        face.missing = quiet;
        if quiet {
            // Of what is not there, nothing is left to be captured.
            face.changed = None;
        }
        // Who was live and failed is held still, unless nobody can hold that any more.
        let is_held =
            face.phase == Phase::Live && !quiet && !matches!(refused, NotTaken::Capture(error) if error.is_final());
        face.hopeless = matches!(refused, NotTaken::Capture(_)) && !is_held && !disk_full;
        face.counters.sync_errors += u64::from(!quiet);
        face.error = Some(why.clone());
        if !is_held {
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
