//! What a database was at a TXID, page by page, to compare a restored one with.

use std::io::{self, Read};

use ltx::{Checksum, Commit, PageSize, Pgno, Txid, page_checksum};

use crate::{Capture, Error, Result};

/// A checksum of every page of a database, as it was when a TXID was captured: 8 bytes a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    txid: Txid,
    page_size: PageSize,
    /// None for the lock page.
    pages: Vec<Checksum>,
}

impl Capture {
    /// Captures what was committed up to now, and sums up what the database is then, from the database and its log: what was captured
    /// before has no part in it. What it captures is handed out by the next pass.
    ///
    /// All of the database is read, and the log cannot be begun anew meanwhile.
    ///
    /// # Errors
    /// Why that cannot be done just now.
    pub fn digest(&mut self) -> Result<Digest> {
        let now = loop {
            // A fresh hold, as it lasts for long.
            self.catch_up()?;
            let now = self.look()?;
            self.capture(&now)?;
            if self.owed.is_none() {
                break now;
            }
        };
        let log = self.log.try_clone().map_err(Error::io("read the WAL of", &self.path))?;
        let whole = self.whole(&now, &log)?;
        let mut pages = vec![Checksum::NONE; whole.pages as usize];
        whole.each(self, &mut |pgno, page| {
            if let Some(slot) = pages.get_mut(pgno.get() as usize - 1) {
                *slot = page_checksum(pgno, page);
            }
            Ok(())
        })?;
        Ok(Digest { txid: self.txid(), page_size: self.page_size, pages })
    }
}

impl Digest {
    /// The TXID that a database must be restored to, to be the same.
    #[must_use]
    pub const fn txid(&self) -> Txid {
        self.txid
    }

    /// The size of its pages.
    #[must_use]
    pub const fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The database's size in pages.
    #[must_use]
    pub const fn commit(&self) -> Commit {
        Commit(self.pages.len() as u32)
    }

    /// Reads a database file from front to back, and tells which pages differ, ascending: those that are missing, cut off or too many too.
    /// The lock page is never looked at.
    ///
    /// # Errors
    /// The reader's.
    pub fn compare(&self, mut database: impl Read) -> io::Result<Vec<Pgno>> {
        let lock_page = self.page_size.lock_page();
        let mut different = Vec::new();
        let mut page = vec![0; self.page_size.bytes()];
        for pgno in (1..=u32::MAX).filter_map(Pgno::new) {
            let read = fill(&mut database, &mut page)?;
            let expected = self.pages.get(pgno.get() as usize - 1);
            if read == 0 && expected.is_none() {
                break;
            }
            let same = read == page.len() && expected.is_some_and(|sum| *sum == page_checksum(pgno, &page));
            if !same && (pgno != lock_page || expected.is_none()) {
                different.push(pgno);
            }
        }
        Ok(different)
    }
}

/// Reads until the buffer is full, or there is no more.
fn fill(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match from.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
