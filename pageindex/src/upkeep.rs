//! Keeping a replica small while it grows: which level is merged when, when a snapshot is due, what may go then.
//!
//! How files are merged is `merge.rs`'s business, which may go is `retention.rs`'s. Whoever writes a replica calls [`Upkeep::step`] now and then;
//! a replica that has not changed costs no request.

use std::path::Path;
use std::time::Duration;

use litestream_storage::{Level, Replica};
use ltx::{Timestamp, Txid};

use crate::compact::{MergeOptions, compact_into, snapshot};
use crate::retention::{RetentionPolicy, expired};
use crate::{Listing, MAX_REPLANS, Result};

/// How often what is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// How often files are merged into level 1, into level 2 and so on. Default 30 s, 5 min, 1 h.
    pub levels: Vec<Duration>,
    /// How often a snapshot is made. Default 24 h.
    pub snapshots: Duration,
    /// What is kept.
    pub retention: RetentionPolicy,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            levels: [30, 5 * 60, 60 * 60].map(Duration::from_secs).to_vec(),
            snapshots: Duration::from_secs(24 * 60 * 60),
            retention: RetentionPolicy::default(),
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
    /// For each level that is made: when that was done last, and how far the replica reached then.
    done: Vec<(Level, Timestamp, Txid)>,
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
        Self { schedule, done }
    }

    /// The shortest interval.
    #[must_use]
    pub fn shortest(&self) -> Duration {
        let intervals = self.done.iter().filter_map(|(level, ..)| self.schedule.interval(*level));
        intervals.min().unwrap_or(Duration::MAX)
    }

    /// Does what is due at `now`, for a replica that reaches up to `newest`. Files are made in `scratch_dir` first.
    ///
    /// # Errors
    /// As merging and the store say. What failed is due again after its interval.
    pub async fn step(&mut self, replica: &Replica, newest: Txid, now: Timestamp, scratch_dir: &Path) -> Result<Kept> {
        let mut due = Vec::new();
        for (level, last, reached) in &mut self.done {
            let interval = self.schedule.interval(*level).map_or(i64::MAX, millis);
            if now.0 - last.0 >= interval {
                *last = now;
                if *reached < newest {
                    *reached = newest;
                    due.push(*level);
                }
            }
        }
        let mut kept = Kept::default();
        if due.is_empty() {
            return Ok(kept);
        }
        let mut listing = Listing::full(replica).await?;
        for level in due {
            for attempt in 0.. {
                let options = MergeOptions::default();
                let made = match level {
                    Level::SNAPSHOT => Box::pin(snapshot(replica, &listing, scratch_dir, &options)).await,
                    level => Box::pin(compact_into(replica, &listing, level, scratch_dir, &options)).await,
                };
                match made {
                    Err(error) if error.wants_new_plan() && attempt < MAX_REPLANS => {
                        listing = Listing::full(replica).await?;
                    }
                    Err(error) => return Err(error),
                    Ok(made) => {
                        kept.made += usize::from(made.is_some());
                        listing = Listing::of(listing.files().cloned().chain(made));
                        break;
                    }
                }
            }
        }
        let files = expired(&listing, &self.schedule.retention, now);
        replica.delete(&files).await?;
        kept.deleted = files.len();
        Ok(kept)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
