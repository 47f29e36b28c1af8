//! The whole database as it is at what the index said: for a snapshot, or to compare with.
//!
//! The newest frame of a page that the index counts, else the page in the database file. The hold keeps both as they are: what is copied into the
//! file meanwhile are frames that are looked at first.

use std::collections::BTreeMap;
use std::fs::File;

use ltx::{PageSize, Pgno};

use crate::build;
use crate::capture::Look;
use crate::stage::Staged;
use crate::wal::{FrameRef, Log};
use crate::{Capture, Error, Result};

/// Where all pages are.
#[derive(Debug)]
pub(crate) struct Whole<'a> {
    /// Nothing where all of the log is in the file.
    log: Option<Log<'a, File>>,
    newest: BTreeMap<Pgno, FrameRef>,
    page_size: PageSize,
    /// The database's size.
    pub(crate) pages: u32,
}

impl Whole<'_> {
    /// Hands out every page but the lock page, ascending.
    pub(crate) fn each(&self, capture: &Capture, page: &mut dyn FnMut(Pgno, &[u8]) -> Result<()>) -> Result<()> {
        let lock_page = self.page_size.lock_page();
        let mut buffer = Vec::new();
        for pgno in (1..=self.pages).filter_map(Pgno::new).filter(|pgno| *pgno != lock_page) {
            let frame = self.log.as_ref().and_then(|log| Some((log, *self.newest.get(&pgno)?)));
            capture.read_page(pgno, frame, &mut buffer)?;
            page(pgno, &buffer)?;
        }
        Ok(())
    }
}

impl Capture {
    /// Captures all of the database once more, as a file that needs none before it: for a replica that has no base, or where what was captured
    /// before is no longer trusted.
    ///
    /// # Errors
    /// Why that cannot be done just now. What was captured before the error is handed out by the next call.
    pub fn snapshot_now(&mut self, why: &str) -> Result<Vec<Staged>> {
        // A fresh hold, as it lasts for long.
        self.catch_up()?;
        let now = self.look()?;
        tracing::info!(path = %self.path.display(), why, "taking a snapshot");
        self.snapshot(&now)?;
        Ok(self.take_ready())
    }

    /// Finds all pages as they are at what the index said. It must have been read after the hold began.
    pub(crate) fn whole<'a>(&self, now: &Look, log: &'a File) -> Result<Whole<'a>> {
        let to = &now.index;
        let unproven = |why| Error::Unproven { path: self.path.clone(), why };
        // Where all of the log is in the file, the log may be overwritten while we read: the hold is one on the file.
        let log = (!now.is_full() && to.frames > 0).then(|| Log::open(log)).transpose().map_err(unproven)?;
        let newest = log.as_ref().map(|log| build::newest(log, to)).transpose().map_err(unproven)?;
        let pages = match to.pages {
            0 => {
                let len = self.connections[self.holder].len()?;
                u32::try_from(len.div_ceil(self.page_size.bytes() as u64)).unwrap_or(u32::MAX)
            }
            pages => pages,
        };
        Ok(Whole { log, newest: newest.unwrap_or_default(), page_size: self.page_size, pages })
    }
}
