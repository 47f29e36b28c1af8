//! Doing what is to be done with one database: taking it up from wherever it was left, passes when they are due, letting it rest, letting it go.
//!
//! A driver is a task that lives as long as there is something to do. It holds the database while it runs; when it ends it leaves that on the
//! database's [`Face`](super::database::Face).

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ltx::Txid;
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use super::database::{Database, Held};
use super::line::{Evidence, Found};
use super::status::Phase;
use super::sweep::Place;
use crate::stage::Stage;
use crate::{Capture, Concern, Error, Left, Newest, Parked, Refused, Remote, Staged};

/// The pauses after which a database is tried again that cannot be captured.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The longest of them where it costs next to nothing to look.
const LOCAL_PAUSE: Duration = Duration::from_secs(4);
/// The longest pause between two takeovers from another writer.
const LONGEST_RECOVERY: Duration = Duration::from_secs(300);
/// How long to wait for descriptors without saying so.
const CROWDED: Duration = Duration::from_secs(10);
/// How long a file that was changed a moment ago is waited for until its times tell later changes, before it is let go.
const SETTLES: Duration = Duration::from_millis(2_200);
/// The longest pause between two passes where uploads do not keep up.
const LONGEST_PACE: u32 = 60;
/// How many files may wait without that uploads count as late.
const FEW: usize = 3;
/// How often a database that does not change is looked at all the same, as long as it does not rest.
const LOOK: Duration = Duration::from_secs(1);
/// How many descriptors a database uses while it is captured, and while it rests.
pub(super) const LIVE: u32 = 10;
pub(super) const RESTING: u32 = 2;

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
pub(super) enum NotTaken {
    /// There is none yet.
    Missing,
    Capture(Error),
    /// Something else, in a sentence.
    Other(String),
    /// It is to be let go before that.
    Ending,
}

/// What a database holds of the descriptors that this process may have open.
#[derive(Debug)]
pub(super) struct Seat {
    /// Its place among those that are held. There are fewer of these than descriptors for them: what is left over nobody can keep.
    _place: OwnedSemaphorePermit,
    descriptors: OwnedSemaphorePermit,
}

impl NotTaken {
    fn panicked() -> Self {
        Self::Other("a part of the program failed; it is taken up anew".to_owned())
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
    /// How often it was gone on with behind another writer: two who both do so must not wear each other out.
    recoveries: u32,
    /// When the last pass began, and the last one that captured something.
    looked: Option<Instant>,
    last: Option<Instant>,
    /// Since when nothing has changed.
    quiet: Instant,
    /// Whether nothing was seen to change since it was taken up for the first time.
    fresh: bool,
    /// When it may be taken up again.
    not_before: Option<Instant>,
    /// Whether what was left of a database that is gone was looked at.
    left_sent: bool,
}

pub(super) async fn drive(
    database: Arc<Database>,
    shared: Arc<Shared>,
    held: Held,
    permit: Option<OwnedSemaphorePermit>,
) {
    let mut driver = Driver {
        database,
        shared,
        held,
        permit,
        failures: 0,
        recoveries: 0,
        looked: None,
        last: None,
        quiet: Instant::now(),
        fresh: false,
        not_before: None,
        left_sent: false,
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
        if let Some(until) = self.not_before.filter(|until| *until > Instant::now())
            && !self.is_asked()
        {
            return Some(until);
        }
        self.not_before = None;
        let (capture, permit) = match std::mem::take(&mut self.held) {
            Held::Live(capture, permit) => (capture, permit),
            held => match self.take_up(held).await {
                Ok(taken) => taken,
                Err(NotTaken::Ending) => return Some(Instant::now()),
                Err(refused) => return Some(self.refused(&refused)),
            },
        };
        self.tick(capture, permit).await
    }

    /// Whether somebody waits for what is captured.
    fn is_asked(&self) -> bool {
        let face = self.database.face();
        face.closing || face.asked > face.answered
    }

    fn refused(&mut self, refused: &NotTaken) -> Instant {
        let disk_full = matches!(refused, NotTaken::Capture(error) if error.is_disk_full());
        self.database.refuse(refused, disk_full);
        self.failures += 1;
        let pause = match refused {
            // It costs next to nothing to look.
            NotTaken::Missing | NotTaken::Ending => PAUSE.0,
            // Another process does: it asks the replicas each time.
            NotTaken::Capture(Error::Replicated(_)) => (PAUSE.0 * 2_u32.pow(self.failures.min(6) - 1)).min(PAUSE.1),
            NotTaken::Capture(_) => (PAUSE.0 * self.failures).min(LOCAL_PAUSE),
            NotTaken::Other(_) => (PAUSE.0 * 2_u32.pow(self.failures.min(6) - 1)).min(PAUSE.1),
        };
        Instant::now() + pause
    }

    /// Waits for the descriptors that are needed. Who has some already needs that many fewer. Nothing, where the database is to be let go meanwhile.
    async fn room(&mut self, rests: bool) -> Option<(Option<OwnedSemaphorePermit>, OwnedSemaphorePermit)> {
        let (shared, mut permit) = (self.shared.clone(), self.permit.take());
        let room = async move {
            if rests {
                let more = shared.descriptors.clone().acquire_many_owned(LIVE - RESTING).await.ok()?;
                return Some((None, None, more));
            }
            // In this order for all.
            if permit.is_none() {
                permit = Some(shared.starts.clone().acquire_owned().await.ok()?);
            }
            let place = shared.places.clone().acquire_owned().await.ok()?;
            let more = shared.descriptors.clone().acquire_many_owned(LIVE).await.ok()?;
            Some((permit, Some(place), more))
        };
        let mut room = std::pin::pin!(room);
        let mut told = false;
        loop {
            tokio::select! {
                room = &mut room => {
                    let (permit, place, more) = room?;
                    self.permit = permit;
                    return Some((place, more));
                }
                () = self.database.wake.notified() => {
                    if self.database.face().ending {
                        return None;
                    }
                }
                () = tokio::time::sleep(CROWDED), if !told => {
                    told = true;
                    let why = "too many databases change at once for the files that this process may have open; it waits for its turn. Raise the limit (LimitNOFILE, ulimit -n)";
                    self.database.refuse(&NotTaken::Other(why.to_owned()), false);
                }
            }
        }
    }

    /// Takes up the database, from wherever it was left.
    async fn take_up(&mut self, held: Held) -> Result<(Box<Capture>, Seat), NotTaken> {
        let clock = self.shared.options.clock.clone();
        let rests = matches!(held, Held::Resting(..));
        if matches!(held, Held::Nothing | Held::Parked(_)) && !self.database.path().exists() {
            // For that nobody need wait for his turn, nor keep it.
            self.held = held;
            self.permit = None;
            self.send_left().await;
            return Err(NotTaken::Missing);
        }
        let Some((place, more)) = self.room(rests).await else {
            self.held = held;
            return Err(NotTaken::Ending);
        };
        let capture = match held {
            Held::Live(capture, seat) => return Ok((capture, seat)),
            Held::Resting(resting, mut seat) => {
                let woken = self.shared.work(move || resting.wake(Box::new(move || clock()))).await;
                let capture = match woken {
                    Some(Ok(capture)) => Box::new(capture),
                    Some(Err(refused)) => {
                        let Refused { unharmed, why } = *refused;
                        if !why.is_final() {
                            self.held = Held::Resting(Box::new(unharmed), seat);
                        }
                        return Err(NotTaken::Capture(why));
                    }
                    None => return Err(NotTaken::panicked()),
                };
                seat.descriptors.merge(more);
                self.live(&capture);
                return Ok((capture, seat));
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
        let place = place.ok_or_else(NotTaken::panicked)?;
        Ok((capture, Seat { _place: place, descriptors: more }))
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
        let evidence = Evidence::new(left, &database.folder());
        let lines: Vec<_> = database.lines.iter().filter(|line| !line.is_fenced()).collect();
        let answers = futures::future::join_all(lines.iter().map(|line| line.newest(left))).await;
        let (mut answered, mut why) = (Vec::new(), None);
        // Where replicas are ahead of what is known here, that counts, otherwise what is known here.
        let mut ahead = Found::NOTHING;
        for (line, answer) in lines.iter().zip(answers) {
            match answer {
                Ok(found) => {
                    answered.push((*line, found));
                    if found.txid > ahead.txid && left.is_none_or(|left| left.txid < found.txid) {
                        ahead = found;
                    }
                }
                Err(error) => {
                    let why = why.insert(error.to_string());
                    line.suppose(why, evidence.clone());
                }
            }
        }
        if answered.is_empty() {
            match (why, left) {
                (None, _) => {
                    let why =
                        "another writer went on in every replica; see that only one writes them, then start it again";
                    return Err(NotTaken::Other(why.to_owned()));
                }
                (Some(why), None) => {
                    return Err(NotTaken::Other(format!("cannot ask the replica what it holds: {why}")));
                }
                // Rather than to leave the log to its fate until one of them answers: what is known here is gone on from.
                (Some(why), Some(_)) => {
                    tracing::warn!(path = %database.path().display(), why, "no replica answers; what is committed is kept here");
                }
            }
        }
        let mut source = None;
        if ahead.txid > Txid::ZERO {
            for (line, _) in answered.iter().filter(|(_, found)| found.txid == ahead.txid) {
                if source.is_none() {
                    source = line.file_of(ahead.txid).await.map(|file| (*line, file));
                }
            }
        }
        let newest = match left {
            Some(left) if ahead.txid == Txid::ZERO => Some(Newest { txid: left.txid, checksum: None, time: None }),
            _ if ahead.txid == Txid::ZERO => None,
            _ => Some(Newest { txid: ahead.txid, checksum: ahead.checksum, time: None }),
        };
        let known = |found: &Found| ahead.txid == Txid::ZERO && evidence.knows(found);
        let unanswered = answered.len() < lines.len();
        let floors = answered.iter().filter(|(_, found)| known(found)).map(|(_, found)| found.txid);
        let floor =
            if unanswered { Txid::ZERO } else { floors.min().or(newest.map(|newest| newest.txid)).unwrap_or_default() };
        let (source, file) = source.unzip();
        let (settings, clock) = (database.settings.clone(), self.shared.options.clock.clone());
        let started = Instant::now();
        let capture = self
            .shared
            .long_work(move || {
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
            None => return Err(NotTaken::panicked()),
        };
        for line in &database.lines {
            let found = answered.iter().find(|(answered, _)| Arc::ptr_eq(answered, line)).map(|(_, found)| found);
            // Or the log has shown it.
            let shown = source.filter(|_| capture.snapshots() == 0);
            let ours = found.is_some_and(known) || shown.is_some_and(|source| Arc::ptr_eq(source, line));
            if let Some(found) = found.filter(|_| !ours && ahead.txid == Txid::ZERO) {
                line.say_foreign(found.txid);
            }
            line.refill(&staged, capture.txid(), started, ours);
        }
        if !database.cleaned.swap(true, Ordering::Relaxed) {
            database.clean();
        }
        {
            let mut face = database.face();
            (face.txid, face.queued) = (capture.txid(), true);
            face.counters.snapshots += u64::from(capture.snapshots());
        }
        tracing::debug!(path = %database.path().display(), txid = %capture.txid(), "replicating");
        // Where nothing is going on, it rests at once.
        (self.looked, self.last, self.fresh) = (None, None, true);
        database.upload(&self.shared);
        Ok(Box::new(capture))
    }

    /// Sees that what an earlier process has captured of a database that is gone by now goes up all the same: there is no other copy of it.
    async fn send_left(&mut self) {
        let database = &self.database;
        // What this process has captured is in the queues.
        if std::mem::replace(&mut self.left_sent, true) || database.face().queued {
            return;
        }
        let meta = database.folder();
        let Some(left) = Left::read(&meta) else { return };
        let (evidence, folder) = (Evidence::new(Some(left), &meta), meta.join("ltx").join("0"));
        let waiting = self.shared.work(move || {
            let mut waiting = VecDeque::new();
            let mut next = left.txid;
            while let Ok(staged) = Stage::read_in(&folder, next) {
                waiting.push_front(staged);
                next = next.previous();
            }
            Vec::from(waiting)
        });
        let waiting = waiting.await.unwrap_or_default();
        if waiting.is_empty() {
            return;
        }
        let started = Instant::now();
        for line in &database.lines {
            let ours = match line.newest(Some(left)).await {
                Ok(found) => evidence.knows(&found),
                Err(error) => {
                    line.suppose(&error.to_string(), evidence.clone());
                    false
                }
            };
            line.refill(&waiting, left.txid, started, ours);
        }
        {
            let mut face = database.face();
            (face.txid, face.queued) = (left.txid, true);
        }
        let (path, files) = (database.path().display(), waiting.len());
        tracing::info!(%path, files, "the database is gone; what was captured of it before goes up where it is not yet");
        database.upload(&self.shared);
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
    async fn tick(&mut self, mut capture: Box<Capture>, permit: Seat) -> Option<Instant> {
        let now = Instant::now();
        if self.database.lines.iter().any(|line| line.wants_anew()) {
            // Another writer has been there. What was captured and not uploaded will be in the snapshot.
            drop((capture, permit));
            let pause = PAUSE.0 * 2_u32.pow(self.recoveries.min(16));
            self.recoveries += 1;
            // Whatever is committed meanwhile.
            let later = now + pause.min(LONGEST_RECOVERY);
            self.not_before = Some(later);
            return Some(if self.is_asked() { now } else { later });
        }
        let (asked, changed, snapshot, drill, closing) = {
            let mut face = self.database.face();
            let now = face.urgent || face.asked > face.answered;
            face.urgent = false;
            (
                now.then_some(face.asked),
                face.changed,
                face.snapshot.take(),
                std::mem::take(&mut face.drill),
                face.closing,
            )
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
        // It counts as captured only when it is.
        let since = self.database.face().changed;
        let again = snapshot.clone();
        let before = capture.snapshots();
        let long = snapshot.is_some() || drill;
        let work = move || {
            let mut staged = Vec::new();
            let mut outcome = capture.pass().map(|more| staged.extend(more));
            if let (Ok(()), Some(why)) = (&outcome, snapshot) {
                outcome = capture.snapshot_now(&why).map(|more| staged.extend(more));
            }
            if outcome.is_ok() && !closing {
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
            if outcome.is_err() {
                // What was captured before that is captured.
                staged.extend(capture.take_ready());
            }
            (capture, staged, outcome, digest)
        };
        let done = if long { self.shared.long_work(work).await } else { self.shared.work(work).await };
        let Some((mut capture, staged, outcome, digest)) = done else {
            return Some(self.refused(&NotTaken::panicked()));
        };
        self.queue(&staged, since.unwrap_or(started));
        self.note(&mut capture, &staged, started, before);
        self.database.upload(&self.shared);
        if let Some(digest) = digest {
            {
                let mut face = self.database.face();
                (face.drilled, face.drilling) = (digest.txid(), true);
            }
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
                    // All that was noticed up to now is captured; what is not will be noticed again.
                    face.changed = None;
                }
                self.failures = 0;
                self.database.progress.notify_waiters();
                self.rest(capture, permit).await
            }
            Err(error) if error.is_final() => {
                // What was held is nobody's any more.
                let anew = self.failures == 0;
                let later = self.refused(&self.gone(error));
                Some(if anew { Instant::now() } else { later })
            }
            Err(error) => {
                self.held = Held::Live(capture, permit);
                let mut face = self.database.face();
                face.snapshot = face.snapshot.take().or(again);
                drop(face);
                Some(self.refused(&NotTaken::Capture(error)))
            }
        }
    }

    /// Lets the database rest where nothing has changed for long, and the driver end. Otherwise tells when there is something to do.
    async fn rest(&mut self, mut capture: Box<Capture>, mut permit: Seat) -> Option<Instant> {
        let now = Instant::now();
        let place = self.database.face().place.clone();
        if let Some(place) = &place {
            place.hot(None, capture.seen());
        }
        let lines = &self.database.lines;
        // Where others wait for their turn, nobody keeps his place for longer than he needs it.
        let crowded = self.shared.descriptors.available_permits() < LIVE as usize;
        let long = crowded || now >= self.quiet + self.shared.options.rest_after;
        let closing = self.database.face().closing;
        if closing || !long && !std::mem::take(&mut self.fresh) || lines.iter().any(|line| line.needs_base()) {
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
            return Some(self.refused(&NotTaken::panicked()));
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
        let (Some(kept), Some(place)) = (permit.descriptors.split(RESTING as usize), place) else { return Some(now) };
        // The others are given back.
        permit.descriptors = kept;
        for line in lines {
            line.forget_files();
        }
        let watch = resting.watch();
        let mut face = self.database.face();
        // Whoever wants something from here on finds no driver, and begins one.
        let wanted = face.ending
            || face.asked > face.answered
            || face.snapshot.is_some()
            || face.drill
            || lines.iter().any(|line| line.needs_base() || line.wants_anew());
        let held = Held::Resting(Box::new(resting), permit);
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
        // What has changed by now shows when it is looked at. Whoever takes the database up again comes after that.
        place.cold(watch, seen);
        drop(face);
        self.database.progress.notify_waiters();
        None
    }

    /// Why nothing more can be captured of a file that nobody can get at any more.
    fn gone(&self, error: Error) -> NotTaken {
        let path = self.database.path();
        if !error.is_final() || path.exists() {
            return NotTaken::Capture(error);
        }
        tracing::warn!(path = %path.display(), "the database was deleted: what was captured of it is uploaded");
        NotTaken::Missing
    }

    /// Hands out what was captured.
    fn queue(&self, staged: &[Staged], since: Instant) {
        let lines = &self.database.lines;
        let dropped: Vec<_> = lines.iter().flat_map(|line| line.push(staged, since)).collect();
        // Where nobody takes them any more, what comes next begins with a snapshot.
        let useless = if lines.iter().all(|line| line.is_fenced()) { staged } else { &[] };
        useless.iter().for_each(|staged| self.database.discard(staged));
        for staged in &dropped {
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
            Held::Live(capture, _seat) => {
                let began = Instant::now();
                while began.elapsed() < SETTLES && !capture.proves_itself() {
                    tokio::time::sleep(SETTLES / 10).await;
                }
                self.shared.work(move || capture.stop()).await
            }
            Held::Resting(resting, _seat) => self.shared.work(move || resting.stop(Box::new(move || clock()))).await,
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
            Some(Err(error)) => self.database.refuse(&self.gone(error), false),
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
