//! When the log is copied into the database file, and when it is emptied.
//!
//! A checkpoint of ours is one like the application's own: it takes no lock that writers need. Only to empty a log that has grown very long are
//! they kept waiting, for as long as it takes to copy what came in the last moment.

use std::time::{Duration, Instant};

use ltx::Timestamp;

use crate::capture::Look;
use crate::concern::Pinned;
use crate::stage::Staged;
use crate::sys::Attached;
use crate::wal::Salts;
use crate::{Capture, Result};

/// What is known of checkpoints so far.
#[derive(Debug)]
pub(crate) struct Upkeep {
    /// How much of the log was in the file, and since when that has not changed.
    seen: (Salts, u32),
    since: Timestamp,
    /// The last time that we tried: how long the log was then.
    tried: Option<(Salts, u32, Timestamp)>,
    /// How many were made since somebody asked: those that copy what they can, and those that empty the log.
    made: (u64, u64),
    /// That it could not be copied as far as it should.
    pub(crate) pinned: Option<Pinned>,
}

impl Upkeep {
    pub(crate) const fn new(now: &Look, time: Timestamp) -> Self {
        Self { seen: (now.index.salts, now.done), since: time, tried: None, made: (0, 0), pinned: None }
    }
}

impl Capture {
    /// Copies the log into the database file where that is due, and empties it where it has become too long. Captures before it does.
    ///
    /// Where a reader keeps that from being done, it is tried again only when the log has grown much longer, or after a while.
    ///
    /// # Errors
    /// Why it cannot be done just now. The database is captured all the same by the next [`Capture::pass`].
    pub fn checkpoint_if_due(&mut self) -> Result<Vec<Staged>> {
        let time = (self.clock)();
        self.time = time;
        let now = self.look()?;
        let Look { index, done, .. } = now;
        if self.upkeep.seen != (index.salts, done) {
            self.upkeep.seen = (index.salts, done);
            self.upkeep.since = time;
        }
        let settings = &self.settings;
        let interval = i64::try_from(settings.checkpoint_interval.as_millis()).unwrap_or(i64::MAX);
        let old = |since: Timestamp| interval > 0 && time.0.saturating_sub(since.0) >= interval;
        let tried = self.upkeep.tried.is_some_and(|(salts, frames, when)| {
            salts == index.salts && index.frames < frames.saturating_add(settings.checkpoint_pages) && !old(when)
        });
        if index.frames == 0 || tried {
            return Ok(self.take_ready());
        }
        let long = settings.truncate_pages > 0 && index.frames >= settings.truncate_pages;
        if long || settings.truncate_when_alone && !self.locks.in_use() {
            self.upkeep.tried = Some((index.salts, index.frames, time));
            self.truncate()?;
        } else if !now.is_full() && (index.frames >= settings.checkpoint_pages || old(self.upkeep.since)) {
            self.upkeep.tried = Some((index.salts, index.frames, time));
            self.checkpoint()?;
            if self.upkeep.pinned.is_none() {
                // What a writer has slipped in meanwhile is little, and quickly copied. As long as the log cannot begin anew, the application's own
                // checkpoints copy what each of our passes lets them, in the middle of its commits.
                if !self.look()?.is_full() {
                    self.checkpoint()?;
                }
                if self.upkeep.pinned.is_none() {
                    self.upkeep.tried = None;
                }
            }
        }
        Ok(self.take_ready())
    }

    /// Captures, and copies what it can of the log into the database file, whether that is due or not.
    ///
    /// # Errors
    /// As [`Capture::checkpoint_if_due`].
    pub fn checkpoint_now(&mut self) -> Result<Vec<Staged>> {
        if self.look()?.is_full() {
            self.catch_up()?;
        } else {
            self.checkpoint()?;
        }
        Ok(self.take_ready())
    }

    /// Captures, copies what it can, and holds anew: if no writer comes meanwhile, the next one begins the log anew.
    fn checkpoint(&mut self) -> Result<()> {
        self.catch_up()?;
        let wanted = self.hold.index;
        self.copy()?;
        let now = self.look()?;
        self.note_checkpoint(&wanted, &now);
        self.upkeep.made.0 += 1;
        self.renew()
    }

    /// How many checkpoints were made since this was asked last: those that copy what they can, and those that empty the log.
    pub fn take_checkpoints(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.upkeep.made)
    }

    /// Copies what it can of the log into the database file.
    fn copy(&self) -> Result<()> {
        self.connections[1 - self.holder].checkpoint(false)
    }

    /// Copies all of the log while writers wait, and empties it. Tells whether it is empty.
    fn truncate(&mut self) -> Result<bool> {
        self.checkpoint()?;
        let writer = Attached::open(&self.path, Duration::ZERO)?;
        // Between two transactions of a busy writer there is less time than SQLite sleeps before it tries again.
        let (began, patience) = (Instant::now(), self.settings.patience);
        while let Err(error) = writer.lock_writes() {
            if !error.is_busy() {
                return Err(error);
            }
            if began.elapsed() >= patience {
                return Ok(false);
            }
            std::thread::yield_now();
        }
        // The first is not long, and the rest is little.
        let sealed = self.renew().and_then(|()| self.copy()).and_then(|()| self.renew());
        writer.release();
        drop(writer);
        sealed?;
        if !self.look()?.is_full() {
            return Ok(false);
        }
        // Whatever a writer commits from here on cannot be copied, as long as the hold is one on the file: then the log is not emptied.
        let free = &self.connections[1 - self.holder];
        free.set_patience(Duration::ZERO)?;
        let emptied = free.checkpoint(true);
        free.set_patience(patience)?;
        match emptied {
            Err(error) if error.is_busy() => {}
            emptied => emptied?,
        }
        self.catch_up()?;
        let empty = self.look()?.index.frames == 0;
        self.upkeep.made.1 += u64::from(empty);
        Ok(empty)
    }
}
