//! A parked database: nothing is held, no descriptor is open. For when descriptors run short.
//!
//! # What waking can prove
//! A log that was left proves by itself that it goes on, as with any start. Where it does not – it was empty, or has been begun anew – the
//! database file can: when the database was parked, all that was captured was in that file, whole, and nothing else. If the file has not been
//! written to since, then what the database holds now is what was captured, with the frames of the log as it is now laid over it, whatever else became
//! of the log in between: a frame that is neither in the log nor in the file is in nobody's database. So the log is captured from its
//! beginning. That the file was not written to is looked at *after* the new hold has begun: from then on no frame leaves the log before it is read.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ltx::{Checksum, Txid};

use super::rest::{NotNow, Refused, Resting};
use super::{Capture, Clock, Remote, Settings};
use crate::files::Stamp;
use crate::stage::Staged;
use crate::state::State;
use crate::{Error, Result};

/// A database that is parked: its files, as they were.
pub struct Parked {
    settings: Arc<Settings>,
    database: Stamp,
    log: Stamp,
    /// The last file that was captured.
    last: (Txid, Checksum),
}

impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { settings, database, log, last } = self;
        f.debug_struct("Parked")
            .field("path", &settings.database)
            .field("database", database)
            .field("log", log)
            .field("last", last)
            .finish()
    }
}

impl Resting {
    /// Lets go of everything. What is committed from now on may cost a snapshot; it is not lost.
    ///
    /// # Errors
    /// Why it cannot be done just now, and the database, which rests on.
    pub fn park(self) -> Result<Parked, Box<Refused<Self, NotNow>>> {
        match self.stamps() {
            Ok((database, log, last)) => Ok(Parked { settings: self.settings, database, log, last }),
            Err(why) => Err(Box::new(Refused { unharmed: self, why })),
        }
    }

    /// The files as they are while the locks keep the database file from being written to.
    fn stamps(&self) -> Result<(Stamp, Stamp, (Txid, Checksum)), NotNow> {
        self.check_files()?;
        let (Some(database), Some(log)) = stamps(self.path())? else { return Err(NotNow::Uncaptured) };
        if !database.is_unwritten_since(&self.file) {
            return Err(NotNow::Uncaptured);
        }
        if !database.is_older_than(Stamp::OLD) || !log.is_older_than(Stamp::OLD) {
            return Err(NotNow::Recent);
        }
        let Some(State { txid, checksum, .. }) = self.state else { return Err(NotNow::Uncaptured) };
        if !self.is_quiet()? {
            return Err(NotNow::Uncaptured);
        }
        Ok((database, log, (txid, checksum)))
    }
}

impl Parked {
    /// Whether the database or its log has been written to, or replaced. Two system calls.
    ///
    /// # Errors
    /// The files cannot be looked at.
    pub fn changed(&self) -> Result<bool> {
        Ok(stamps(self.path())? != (Some(self.database), Some(self.log)))
    }

    /// Starts again as [`Capture::start`] does, but knows what the database file was when everything in it was captured.
    ///
    /// # Errors
    /// As [`Capture::start`]. It stays parked, and the files that wait to be uploaded stay where they are.
    pub fn wake(&self, clock: Clock, remote: &mut dyn Remote) -> Result<(Capture, Vec<Staged>)> {
        Capture::start_from(self.settings.clone(), clock, remote, Some(self))
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

    /// Whether the database holds what `state` says was captured last, but for the log. A hold must have begun.
    pub(super) fn proves(&self, state: &State) -> Result<bool> {
        if self.last != (state.txid, state.checksum) {
            return Ok(false);
        }
        let (database, _) = stamps(self.path())?;
        Ok(database == Some(self.database))
    }
}

/// The database file and its log.
fn stamps(path: &Path) -> Result<(Option<Stamp>, Option<Stamp>)> {
    let at = |path: &Path| Stamp::at(path).map_err(Error::io("look at", path));
    Ok((at(path)?, at(&super::beside(path, "-wal"))?))
}
