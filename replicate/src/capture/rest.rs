//! A database that rests: it has been idle for long, and all that is held are locks. No connection, two descriptors, about no memory.
//!
//! Resting begins where all that is committed is captured, and all of the log is in the file. The locks then keep everything from being copied into
//! the file: so whatever is committed later stays in the log, and waking finds it there. A writer may begin the log anew, once, as long as it
//! is empty or all in the file; that loses nothing.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ltx::{PageSize, Timestamp, Txid};

use super::{Capture, Clock, Hold, Look, Position, Settings, look};
use crate::checkpoint::Upkeep;
use crate::files::{self, Identity, Reign, Stamp};
use crate::outside::{OVERWRITTEN, Outside};
use crate::raw::{self, NotHeld, RawHold};
use crate::stage::{Stage, Staged};
use crate::state::State;
use crate::sys::{Attached, Mapping};
use crate::wal::Index;
use crate::watch::{Seen, Watch};
use crate::{Error, Result};

/// Something that could not be done, and what it should have been done with: that is as it was.
#[derive(Debug)]
pub struct Refused<T, W = Error> {
    /// As it was.
    pub unharmed: T,
    /// Why it could not be done.
    pub why: W,
}

/// Why a database cannot rest, or be let go of, just now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotNow {
    /// A pass must come first.
    #[error("something was committed that is not captured")]
    Uncaptured,
    /// A checkpoint must come first.
    #[error("a part of the WAL is not in the database file yet")]
    NotCopied,
    /// A checkpoint is being made; it may be tried again soon.
    #[error("somebody else has a lock that is needed")]
    Busy,
    /// It will never be possible on this system.
    #[error("the system has no locks of open file descriptions")]
    Unsupported,
    /// The files' times do not tell whether they will have changed; it may be tried again in two seconds.
    #[error("the database file or its WAL was changed less than two seconds ago")]
    Recent,
    /// Something else is wrong.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// A database that rests. Nothing that is committed meanwhile is lost, and nothing that the application does waits for us but a checkpoint of what
/// is new: so it is to be woken when [`Watch::changed`] or [`Watch::checkpointer_waiting`] says so.
///
/// Dropping it is what a crash is, as with [`Capture`].
pub struct Resting {
    pub(super) hold: RawHold,
    reign: Reign,
    /// The path in it is the database's own by now.
    pub(super) settings: Arc<Settings>,
    state_path: PathBuf,
    files: [Option<Identity>; 3],
    page_size: PageSize,
    node_id: u64,
    pub(super) state: Option<State>,
    last: (Txid, Timestamp),
    position: Position,
    captured: Index,
    /// The database file since the locks keep it from being written to: if it changes, that is nobody's doing who uses SQLite.
    pub(super) file: Stamp,
    snapshots: u32,
}

impl fmt::Debug for Resting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { settings, last, position, captured, .. } = self;
        f.debug_struct("Resting")
            .field("path", &settings.database)
            .field("last", last)
            .field("position", position)
            .field("captured", captured)
            .finish_non_exhaustive()
    }
}

impl Capture {
    /// Lets go of everything but the locks that keep the log readable. To be called after a pass that found nothing, and a checkpoint.
    ///
    /// # Errors
    /// Why it cannot be done just now, and the capture, which goes on.
    pub fn rest(mut self) -> Result<Resting, Box<Refused<Self, NotNow>>> {
        let (hold, captured, file) = match self.raw_hold() {
            Ok(held) => held,
            Err(why) => return Err(Box::new(Refused { unharmed: self, why })),
        };
        let Self { connections, log, files, reign, mut settings, mut path, state_path, .. } = self;
        // The locks are ours by now: so SQLite's may go.
        drop(connections);
        drop(log);
        if settings.database != path {
            path.shrink_to_fit();
            Arc::make_mut(&mut settings).database = path;
        }
        let mut identities = [None; 3];
        for (identity, (_, found)) in identities.iter_mut().zip(&files) {
            *identity = *found;
        }
        Ok(Resting {
            hold,
            reign,
            settings,
            state_path,
            files: identities,
            page_size: self.page_size,
            node_id: self.node_id,
            state: self.state,
            last: self.last,
            position: self.position,
            captured,
            file,
            snapshots: self.snapshots,
        })
    }

    /// Takes the locks while our transaction still lasts.
    fn raw_hold(&mut self) -> Result<(RawHold, Index, Stamp), NotNow> {
        // Nothing may have happened to the file since it was looked at last.
        self.check_files()?;
        if !self.ready.is_empty() || self.owed.is_some() || self.is_disturbed() {
            return Err(NotNow::Uncaptured);
        }
        let before = self.look()?;
        self.is_quiet(&before)?;
        let hold = RawHold::take(&self.database, &self.locks).map_err(|why| not_now(why, &self.path))?;
        let opened = [(0, hold.database()), (2, hold.index())];
        if opened
            .iter()
            .any(|(file, locks)| self.files.get(*file).is_none_or(|(_, found)| *found != Some(locks.0.identity())))
        {
            return Err(Error::Replaced(self.path.clone()).into());
        }
        // Whatever is committed from here on stays in the log. It is looked at as it will be from now on: through what has the locks.
        let now = peek(&hold, &self.path)?.ok_or(NotNow::Uncaptured)?;
        self.is_quiet(&now)?;
        let file = Stamp::of(hold.database().0.as_ref()).map_err(Error::io("look at", &self.path))?;
        Ok((hold, now.index, file))
    }

    fn is_quiet(&self, now: &Look) -> Result<(), NotNow> {
        match () {
            () if self.captured != Some(now.index) => Err(NotNow::Uncaptured),
            () if !now.is_full() => Err(NotNow::NotCopied),
            () => Ok(()),
        }
    }

    /// What tells cheaply whether a pass has something to do.
    ///
    /// # Errors
    /// The index cannot be mapped.
    pub fn watch(&self) -> Result<Watch> {
        watch(&self.locks, &self.path)
    }

    /// What was captured, to compare with. It changes with every pass that finds something.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.captured.as_ref().map_or(Seen::NOTHING, Seen::of)
    }
}

impl Resting {
    /// Takes a hold on the database again, and only then gives back the locks. What was committed meanwhile is captured by the next pass.
    ///
    /// # Errors
    /// Why it cannot be done just now. It rests on, unless the error is one after which the database must be started anew.
    pub fn wake(self, clock: Clock) -> Result<Capture, Box<Refused<Self>>> {
        match self.attach() {
            Ok(attached) => Ok(self.awake(attached, clock)),
            Err(why) => Err(Box::new(Refused { unharmed: self, why })),
        }
    }

    fn attach(&self) -> Result<Awake> {
        let path = &self.settings.database;
        self.check_files()?;
        let first = Attached::open(path, self.settings.patience)?;
        first.begin()?;
        let second = Attached::open(path, self.settings.patience)?;
        let log_path = super::beside(path, "-wal");
        let log = files::open_log(&log_path).map_err(Error::io("open", &log_path))?;
        // What was just opened under these names is what our locks are on.
        self.check_files()?;
        let now = look(&first, self.hold.index(), path)?;
        let stage = self.stage()?;
        // The locks are still ours.
        let file = Stamp::of(self.hold.database().0.as_ref()).map_err(Error::io("look at", path))?;
        Ok(Awake { connections: [first, second], log, stage, now, overwritten: !file.is_unwritten_since(&self.file) })
    }

    fn awake(self, attached: Awake, mut clock: Clock) -> Capture {
        let Awake { connections, log, stage, now, overwritten } = attached;
        let owed = overwritten.then(|| OVERWRITTEN.to_owned());
        if let Some(why) = &owed {
            tracing::warn!(path = %self.settings.database.display(), "{why}");
        }
        let path = self.settings.database.clone();
        let names = ["", "-wal", "-shm"].map(|suffix| super::beside(&path, suffix));
        Capture {
            connections,
            holder: 0,
            // No matter what came meanwhile: it lies in the log, and a transaction that reads from the log keeps it there. And where all of
            // the log is in the file, nothing came.
            hold: Hold { index: now.index, full: false, pinned: false },
            log,
            locks: self.hold.index().clone(),
            database: self.hold.database().clone(),
            reign: self.reign,
            files: names.into_iter().zip(self.files).collect(),
            checked: clock(),
            outside: Outside::default(),
            time: clock(),
            settings: self.settings,
            path,
            stage,
            state_path: self.state_path,
            page_size: self.page_size,
            node_id: self.node_id,
            state: self.state,
            last: self.last,
            position: self.position,
            captured: Some(self.captured).filter(|_| !overwritten),
            ready: Vec::new(),
            owed,
            image: None,
            behind: None,
            snapshots: self.snapshots + u32::from(overwritten),
            waiting: false,
            upkeep: Upkeep::new(&now, clock()),
            clock,
        }
    }

    /// Lets go of the database, and captures before that what was committed meanwhile.
    ///
    /// # Errors
    /// Why that could not be captured. It is let go all the same; what is still in the log will be captured by the next start.
    pub fn stop(mut self, clock: Clock) -> Result<Vec<Staged>> {
        if self.check_files().is_ok() && !self.changed()? {
            match self.state.filter(|_| self.is_overwritten()) {
                Some(state) => {
                    tracing::warn!(path = %self.path().display(), "{OVERWRITTEN} with the next start");
                    state.prove_nothing().write(&self.state_path)?;
                }
                None => drop(self.remember()?),
            }
            return Ok(Vec::new());
        }
        self.wake(clock).map_err(|refused| refused.why)?.stop()
    }

    /// Whether anything was committed, or done to the log, since it rests. [`Watch::changed`] tells the same without a system call.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn changed(&self) -> Result<bool> {
        Ok(peek(&self.hold, &self.settings.database)?.is_none_or(|now| now.index != self.captured))
    }

    /// Notes what the database file is while it holds all that was captured, so that whoever comes after us need not capture it anew where the log
    /// proves nothing. Says no as long as the file's times would not tell that it has changed; to be tried again later.
    ///
    /// # Errors
    /// The file cannot be looked at, or the note not be written.
    pub fn remember(&mut self) -> Result<bool> {
        if !self.is_quiet()? {
            return Ok(false);
        }
        if let Some(state) = self.state.filter(|state| state.file.is_none()) {
            self.state = Some(state.remember(&self.file, self.path(), &self.state_path)?);
        }
        Ok(self.state.is_some_and(|state| state.file.is_some()))
    }

    /// Whether the database file was changed past SQLite: our locks keep everybody else from writing to it. It should be woken then, and is captured anew.
    #[must_use]
    pub fn is_overwritten(&self) -> bool {
        Stamp::of(self.hold.database().0.as_ref()).is_ok_and(|now| !now.is_unwritten_since(&self.file))
    }

    /// Whether that was done.
    #[must_use]
    pub fn is_remembered(&self) -> bool {
        self.state.is_none_or(|state| state.file.is_some())
    }

    /// Whether nobody else has the database open, and a log is left that would shadow a file which is put in its place by hand. It should be woken
    /// then, so that [`Capture::checkpoint_if_due`] empties the log.
    #[must_use]
    pub fn is_left_alone(&self) -> bool {
        self.captured.frames > 0 && !self.hold.index().in_use_by_any()
    }

    /// Makes sure that the files which our locks are on are still those that everybody else will open.
    ///
    /// # Errors
    /// [`Error::Replaced`] and [`Error::Deleted`], after which the database must be started anew.
    pub fn check_files(&self) -> Result<()> {
        for (suffix, known) in ["", "-wal", "-shm"].iter().zip(self.files) {
            let path = super::beside(&self.settings.database, suffix);
            if Identity::at(&path).map_err(Error::io("look at", &path))? != known {
                return Err(if suffix.is_empty() { Error::Replaced(path) } else { Error::Deleted(path) });
            }
        }
        Ok(())
    }

    /// What tells cheaply whether it must be woken.
    ///
    /// # Errors
    /// The index cannot be mapped.
    pub fn watch(&self) -> Result<Watch> {
        watch(self.hold.index(), &self.settings.database)
    }

    /// What was captured, to compare with.
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen::of(&self.captured)
    }

    /// The database file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.settings.database
    }

    /// The last TXID that was captured.
    #[must_use]
    pub const fn txid(&self) -> Txid {
        self.last.0
    }

    /// As [`Capture::snapshots`].
    #[must_use]
    pub const fn snapshots(&self) -> u32 {
        self.snapshots
    }

    /// As [`Capture::uploaded`].
    ///
    /// # Errors
    /// The file that cannot be deleted.
    pub fn uploaded(&self, up_to: Txid) -> Result<()> {
        self.stage()?.delete(|txid| txid <= up_to)
    }

    fn stage(&self) -> Result<Stage> {
        let folder = self.state_path.parent().unwrap_or(Path::new("."));
        Stage::open(&folder.join("ltx").join("0"))
    }

    /// Whether all is still captured and in the file.
    pub(super) fn is_quiet(&self) -> Result<bool> {
        let now = peek(&self.hold, &self.settings.database)?;
        Ok(now.is_some_and(|now| now.index == self.captured && now.is_full()))
    }
}

/// What waking needs, all of which can fail.
struct Awake {
    // The hold is the first one's.
    connections: [Attached; 2],
    log: File,
    stage: Stage,
    now: Look,
    /// Whether the database file was changed past SQLite.
    overwritten: bool,
}

/// What the index says now; nothing where it is being written just now.
fn peek(hold: &RawHold, path: &Path) -> Result<Option<Look>> {
    let words = raw::read_index(hold.index()).map_err(Error::io("read the index of", path))?;
    Ok(Index::parse(&words).ok().map(|index| Look::of(index, &words)))
}

fn watch(index: &files::Locks, path: &Path) -> Result<Watch> {
    let mapping = Mapping::new(index.0.as_ref()).map_err(Error::io("map the index of", path))?;
    Ok(Watch::new(mapping, index.clone()))
}

fn not_now(why: NotHeld, path: &Path) -> NotNow {
    match why {
        NotHeld::Busy => NotNow::Busy,
        NotHeld::Unsupported => NotNow::Unsupported,
        NotHeld::Io(error) => NotNow::Failed(Error::io("lock", path)(error)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::super::tests::captured;
    use super::*;
    use crate::raw::tests::MISSING;

    #[test]
    fn where_the_system_has_no_such_locks_the_capture_goes_on() {
        let (_folder, database, mut capture) = captured();
        database.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
        capture.pass().unwrap();
        MISSING.set(true);
        let Refused { unharmed, why } = *capture.rest().unwrap_err();
        assert!(matches!(why, NotNow::Unsupported), "{why}");
        MISSING.set(false);
        let mut capture = unharmed;
        database.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        assert_eq!((capture.pass().unwrap().len(), capture.snapshots()), (1, 1));
        database.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
        capture.pass().unwrap();
        // What it tried does not keep it from trying again.
        drop(capture.rest().unwrap());
    }
}
