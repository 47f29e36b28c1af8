//! What is done to the files outside SQLite, or by one that shares nothing with ours.
//!
//! Looked at once a second, and cheap: a file's name, length and time. What they raise as a suspicion is proven by what the index and the
//! log say, so that nothing an application does through SQLite is taken for it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ltx::{Checksum, Pgno, Timestamp, page_checksum};

use crate::capture::Look;
use crate::files::Identity;
use crate::wal::{Index, Log, Place, Salts, Sum};
use crate::{Capture, Error, Result};

/// For how many milliseconds a log must have been another one's before that is believed.
const UNSHARED_FOR: i64 = 3_000;

/// What is said where the database file itself was overwritten.
pub(crate) const OVERWRITTEN: &str = "database file was replaced (changed outside SQLite); new snapshot";

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    /// The database file, while nobody copies into it.
    file: Option<Still>,
    /// That it has changed all the same.
    changed: bool,
    /// The log, and what the index said.
    log: Option<(Index, Touched)>,
    grown: Option<Grown>,
    /// That somebody else writes to it.
    unshared: bool,
}

/// A database file, and what the index says of checkpoints: one that writes anything changes that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Still {
    salts: Salts,
    done: u32,
    file: Touched,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Touched {
    len: u64,
    /// Seconds and nanoseconds.
    time: (i64, i64),
}

impl Touched {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self { len: metadata.len(), time: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

/// Transactions in the log's file that the index knows nothing of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grown {
    since: Timestamp,
    salts: Salts,
    /// The last of them.
    last: Option<Transaction>,
}

/// What a log holds behind what the index counts.
struct Beyond {
    salts: Salts,
    last: Option<Transaction>,
    /// Whether that lies behind what was found there before.
    behind: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Transaction {
    frame: u32,
    sum: Sum,
    /// SQLite may repeat the frame that commits: that is no other transaction.
    what: (Pgno, u32, Checksum),
}

impl Capture {
    /// Makes sure that the files which we have open are still those that everybody else will open, and that nobody changes them but through the
    /// index that we see. A pass does so once a second.
    ///
    /// A database file that was overwritten where it lies is captured anew, as soon as it stands still.
    ///
    /// # Errors
    /// [`Error::Replaced`], [`Error::Deleted`] and [`Error::NotShared`], after which the database must be started anew; and why a snapshot
    /// cannot be made just now.
    pub fn check_files(&mut self) -> Result<()> {
        self.check_names()?;
        if self.is_overwritten()? {
            self.renew()?;
            let now = self.look()?;
            self.begin_anew(&now, OVERWRITTEN)?;
            self.outside.changed = false;
        }
        self.check_log()
    }

    /// Whether the database file has changed past SQLite, and does not stand still yet.
    pub(crate) const fn is_disturbed(&self) -> bool {
        self.outside.changed
    }

    /// Makes sure that the files which we have open are still those that everybody else will open.
    pub(crate) fn check_names(&self) -> Result<()> {
        for (path, identity) in &self.files {
            if Identity::at(path).map_err(Error::io("look at", path))? != *identity {
                let path = path.clone();
                return Err(if path == self.path { Error::Replaced(path) } else { Error::Deleted(path) });
            }
        }
        Ok(())
    }

    /// Notes how the files are, before they are read.
    pub(crate) fn note_files(&mut self) -> Result<()> {
        self.is_overwritten()?;
        self.check_log()
    }

    /// Whether the database file has changed although nobody has copied anything into it, and stands still again.
    ///
    /// Before a checkpoint writes, it says in the index how far it will get, and when it is done, how far it has got: where these are the same as
    /// before, and equal, nothing was written. One that failed half way leaves them different, and may do the same again: then the file may change.
    fn is_overwritten(&mut self) -> Result<bool> {
        let Some(now) = self.still()? else { return Ok(false) };
        let before = self.outside.file.replace(now);
        let moved = before
            .is_some_and(|before| (before.salts, before.done) == (now.salts, now.done) && before.file != now.file);
        if moved {
            self.outside.changed = true;
            return Ok(false);
        }
        // Whoever overwrites it may need a while.
        Ok(self.outside.changed)
    }

    /// The database file, if nobody is copying into it, nor has begun to.
    fn still(&self) -> Result<Option<Still>> {
        let quiet = |now: &Look| now.attempted == now.done && !self.locks.checkpointing();
        let before = self.look()?;
        let file = std::fs::metadata(&self.path).map_err(Error::io("look at", &self.path))?;
        let after = self.look()?;
        let same = |a: &Look, b: &Look| (a.index.salts, a.done, a.attempted) == (b.index.salts, b.done, b.attempted);
        let still = quiet(&before) && quiet(&after) && same(&before, &after);
        Ok(still.then(|| Still { salts: after.index.salts, done: after.done, file: Touched::of(&file) }))
    }

    /// Makes sure that whoever writes to the log says so in our index.
    ///
    /// A transaction that was written and failed lies in the log, and the index knows nothing of it: but the next one begins in its place. So
    /// nobody who shares the index ever writes one *behind* it, or a log with other salts than those of an index that counts frames.
    fn check_log(&mut self) -> Result<()> {
        if self.outside.unshared {
            return Err(Error::NotShared(self.path.clone()));
        }
        let now = self.look()?;
        let touched = Touched::of(&self.log.metadata().map_err(Error::io("look at the WAL of", &self.path))?);
        let foreign = self.outside.grown.is_some_and(|grown| grown.salts != now.index.salts);
        match self.outside.log {
            Some((index, before)) if index == now.index => {
                if before == touched && !foreign {
                    return Ok(());
                }
            }
            _ => {
                self.outside.log = Some((now.index, touched));
                self.outside.grown = None;
                return Ok(());
            }
        }
        if self.locks.writing() {
            return Ok(());
        }
        let beyond = self.beyond(&now.index)?;
        // What was written meanwhile may be somebody's who is about to publish it.
        if self.look()?.index != now.index || self.locks.writing() {
            return Ok(());
        }
        self.outside.log = Some((now.index, touched));
        let Some(Beyond { salts, last, behind }) = beyond else { return Ok(()) };
        let since = (self.clock)();
        let before = self.outside.grown.get_or_insert(Grown { since, salts, last });
        let another = salts != now.index.salts && now.index.frames > 0;
        if behind || another {
            self.outside.unshared = since.0.saturating_sub(before.since.0) >= UNSHARED_FOR;
        } else if (before.salts, before.last) != (salts, last) {
            // Something else in its place.
            *before = Grown { since, salts, last };
        }
        if self.outside.unshared { Err(Error::NotShared(self.path.clone())) } else { Ok(()) }
    }

    /// What the log holds that the index does not count. Nothing where it has no header.
    fn beyond(&self, index: &Index) -> Result<Option<Beyond>> {
        let Ok(log) = Log::open(&self.log) else { return Ok(None) };
        let salts = log.header.salts;
        let from = match index.frames {
            frames if frames > 0 && salts == index.salts => Place { frame: frames, sum: index.sum },
            _ => log.start(),
        };
        let before = self.outside.grown.filter(|before| before.salts == salts).and_then(|before| before.last);
        let mut beyond = Beyond { salts, last: None, behind: false };
        let mut passed = false;
        let walked = log.walk(from, u32::MAX, |frame| {
            if frame.commit > 0 {
                let what = (frame.pgno, frame.commit, page_checksum(frame.pgno, frame.page));
                let found = Transaction { frame: frame.place.number, sum: frame.place.after, what };
                beyond.behind |= passed && before.is_some_and(|before| before.what != what);
                passed |= before == Some(found);
                beyond.last = Some(found);
            }
        });
        walked.map_err(Error::io("read the WAL of", &self.path))?;
        Ok(Some(beyond))
    }
}

/// Whether a file is locked in the way of SQLite's `unix-dotfile`: with a log that is possible only for whoever keeps everybody else out.
pub(crate) fn is_locked_by_dotfile(path: &Path) -> bool {
    crate::capture::beside(path, ".lock").is_dir()
}
