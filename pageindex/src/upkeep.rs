//! Keeping a replica small while it grows: which level is merged when, when a snapshot is due, what may go then.
//!
//! How files are merged is `merge.rs`'s business, which may go is `retention.rs`'s. Whoever writes a replica calls [`Upkeep::step`] now and then;
//! a replica that has not changed costs no request.

use std::path::Path;
use std::time::Duration;

use litestream_storage::{FileInfo, Level, Replica};
use ltx::{Timestamp, Txid};

use crate::compact::{MergeOptions, compact_into, next_inputs, snapshot};
use crate::retention::{RetentionPolicy, expired, level_0_ripens};
use crate::{Listing, MAX_REPLANS, Result};

/// After how long at most what failed is tried again.
const RETRY: Duration = Duration::from_secs(5 * 60);

/// What tells the time.
pub type Clock<'a> = dyn Fn() -> Timestamp + Sync + 'a;

/// How often what is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// How often files are merged into level 1, into level 2 and so on. Default 30 s, 5 min, 1 h.
    pub levels: Vec<Duration>,
    /// How often a snapshot is made. Default 24 h.
    pub snapshots: Duration,
    /// What is kept.
    pub retention: RetentionPolicy,
    /// Whether what need not be kept is deleted, rather than left to the bucket's own rules. Default: yes.
    pub deletes: bool,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            levels: [30, 5 * 60, 60 * 60].map(Duration::from_secs).to_vec(),
            snapshots: Duration::from_secs(24 * 60 * 60),
            retention: RetentionPolicy::default(),
            deletes: true,
        }
    }
}

impl Schedule {
    fn interval(&self, level: Level) -> Option<Duration> {
        match level {
            Level::SNAPSHOT => Some(self.snapshots),
            level => self.levels.get(usize::from(level.get()).checked_sub(1)?).copied(),
        }
    }
}

/// What is due when, for one replica.
#[derive(Clone, Debug)]
pub struct Upkeep {
    schedule: Schedule,
    /// For each level that is made: when that was done last, and how far the level reached then.
    done: Vec<(Level, Timestamp, Txid)>,
    /// Whether it was looked what the levels held at first.
    looked: bool,
    /// All files, where nobody else puts or deletes any.
    files: Option<Listing>,
    alone: bool,
    /// When files that were too young to go will not be any more, or those that could not be deleted are tried again.
    ripe: Option<Timestamp>,
}

/// What a step has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// How many files were made.
    pub made: usize,
    /// How many were deleted.
    pub deleted: usize,
}

impl Upkeep {
    /// Nothing is due before an interval has passed from `now`.
    #[must_use]
    pub fn new(schedule: Schedule, now: Timestamp) -> Self {
        let levels = Level::all().filter(|level| schedule.interval(*level).is_some());
        let done = levels.map(|level| (level, now, Txid::ZERO)).collect();
        Self { schedule, done, looked: false, files: None, alone: false, ripe: None }
    }

    /// The same for whoever alone writes the replica and says of each file that he put ([`Upkeep::put`]): it is listed once.
    #[must_use]
    pub fn alone(schedule: Schedule, now: Timestamp) -> Self {
        Self { alone: true, ..Self::new(schedule, now) }
    }

    /// Says of a file that was put.
    pub fn put(&mut self, file: FileInfo) {
        if let Some(files) = self.files.take() {
            self.files = Some(Listing::of(files.into_files().chain([file])));
        }
    }

    /// When something will be due, for a replica that reaches up to `newest`. Never, where it does not change.
    #[must_use]
    pub fn due(&self, newest: Txid) -> Option<Timestamp> {
        let next = |(level, last, reached): &(Level, Timestamp, Txid)| {
            (*reached < newest).then(|| after(*last, self.schedule.interval(*level)?)).flatten()
        };
        self.done.iter().filter_map(next).chain(self.ripe).min()
    }

    /// The shortest interval.
    #[must_use]
    pub fn shortest(&self) -> Duration {
        let intervals = self.done.iter().filter_map(|(level, ..)| self.schedule.interval(*level));
        intervals.min().unwrap_or(Duration::MAX)
    }

    /// Does what is due now, by `clock`, for a replica that reaches up to `newest`. Files are made in `scratch_dir` first.
    ///
    /// # Errors
    /// As merging and the store say. What failed is due again after its interval, or five minutes where that is longer.
    pub async fn step(
        &mut self,
        replica: &Replica,
        newest: Txid,
        clock: &Clock<'_>,
        scratch_dir: &Path,
    ) -> Result<Kept> {
        let now = clock();
        let before = self.done.clone();
        let due = self.take_due(newest, now);
        let ripe = self.ripe.is_some_and(|ripe| ripe <= now);
        let mut kept = Kept::default();
        if due.is_empty() && !ripe {
            return Ok(kept);
        }
        if ripe {
            self.ripe = after(now, self.shortest());
        }
        let mut left = due;
        let outcome = Box::pin(self.work(replica, newest, (now, clock), scratch_dir, &mut left, &mut kept)).await;
        for (done, before) in self.done.iter_mut().zip(before) {
            if left.contains(&done.0) {
                // It was not made after all.
                done.2 = before.2;
                let early = self.schedule.interval(done.0).and_then(|interval| interval.checked_sub(RETRY));
                let early = early.and_then(|early| i64::try_from(early.as_millis()).ok());
                done.1 = Timestamp(now.0.saturating_sub(early.unwrap_or(0)));
            }
        }
        if outcome.is_err() && left.is_empty() {
            // All was made, but what has to go is still there; a level's turn may never come again.
            self.ripe = after(now, self.shortest());
        }
        outcome.map(|()| kept)
    }

    /// Makes the levels that are `left`, each of which is taken off when it is made, and deletes what need not be kept.
    async fn work(
        &mut self,
        replica: &Replica,
        newest: Txid,
        (now, clock): (Timestamp, &Clock<'_>),
        scratch_dir: &Path,
        left: &mut Vec<Level>,
        kept: &mut Kept,
    ) -> Result<()> {
        // Whatever fails below may have changed what is there.
        let mut listing = match self.files.take() {
            Some(files) => files,
            None => Listing::full(replica).await?,
        };
        if !std::mem::replace(&mut self.looked, true) {
            self.look(&listing);
            left.extend(self.take_due(newest, now));
            left.sort_unstable();
        }
        while let Some(level) = left.first().copied() {
            if !is_alone(&listing, level) {
                let made = make(replica, &mut listing, level, scratch_dir).await?.map(|file| dated(file, clock()));
                kept.made += usize::from(made.is_some());
                listing = Listing::of(listing.into_files().chain(made));
            }
            left.remove(0);
        }
        if self.schedule.deletes {
            let files = expired(&listing, &self.schedule.retention, now);
            replica.delete(&files).await?;
            kept.deleted = files.len();
            listing = Listing::of(listing.into_files().filter(|file| !files.contains(file)));
        }
        self.ripe = self.ripens(&listing, now);
        self.files = self.alone.then_some(listing);
        Ok(())
    }

    /// The levels that are due; they count as done.
    fn take_due(&mut self, newest: Txid, now: Timestamp) -> Vec<Level> {
        let mut due = Vec::new();
        for (level, last, reached) in &mut self.done {
            let interval = self.schedule.interval(*level).unwrap_or(Duration::MAX);
            if *reached < newest && after(*last, interval).is_some_and(|when| when <= now) {
                *reached = newest;
                *last = now;
                due.push(*level);
            }
        }
        due
    }

    /// Goes on from what others, or an earlier process, have done: a snapshot is not put off for ever by those who start anew each day.
    fn look(&mut self, listing: &Listing) {
        for (level, last, reached) in &mut self.done {
            let files = listing.level(*level);
            // What was just found due is not done yet.
            if let Some(modified) = files.iter().map(|file| file.object.modified).max()
                && *reached == Txid::ZERO
            {
                *last = (*last).min(modified);
                *reached = listing.reach(*level).unwrap_or_default();
            } else if *reached == Txid::ZERO && *level == Level::SNAPSHOT {
                // There never was one: as old as the replica is, it is due.
                let oldest = listing.files().map(|file| file.object.modified).min();
                *last = oldest.map_or(*last, |oldest| oldest.min(*last));
            }
        }
    }

    /// When the oldest file of level 0 that has to go some time may go.
    fn ripens(&self, listing: &Listing, now: Timestamp) -> Option<Timestamp> {
        let first = level_0_ripens(listing, &self.schedule.retention)?;
        // Where something else keeps it, it is looked again with whatever is due next.
        (self.schedule.deletes && first > now).then_some(first)
    }
}

/// Makes the next file of a level; the replica is listed again where inputs have vanished.
async fn make(replica: &Replica, listing: &mut Listing, level: Level, scratch_dir: &Path) -> Result<Option<FileInfo>> {
    let options = MergeOptions::default();
    for attempt in 0.. {
        let made = match level {
            Level::SNAPSHOT => Box::pin(snapshot(replica, listing, scratch_dir, &options)).await,
            level => Box::pin(compact_into(replica, listing, level, scratch_dir, &options)).await,
        };
        match made {
            Err(error) if error.wants_new_plan() && attempt < MAX_REPLANS => *listing = Listing::full(replica).await?,
            made => return made,
        }
    }
    Ok(None)
}

/// A file that has just been put has the time of its last transaction, which may be long past.
fn dated(mut file: FileInfo, now: Timestamp) -> FileInfo {
    file.object.modified = file.object.modified.max(now);
    file
}

/// Whether all that a level would be made of is one file that holds the whole database: merged with nothing it would be that file once more.
fn is_alone(listing: &Listing, level: Level) -> bool {
    level != Level::SNAPSHOT && matches!(next_inputs(listing, level).as_slice(), [file] if file.name.is_snapshot())
}

/// `None` where that is never.
fn after(moment: Timestamp, time: Duration) -> Option<Timestamp> {
    i64::try_from(time.as_millis()).ok().and_then(|time| moment.0.checked_add(time)).map(Timestamp)
}
