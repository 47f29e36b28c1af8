//! A snapshot of a large database, during which the log may begin anew as often as it likes.
//!
//! A copy of the file is made while checkpoints write to it, and all that is committed goes over it: what the log held when the copy began, and
//! what was captured since. A page that none of this touched was not written to either. So the copy is the database as it is at the position.
//! When it is complete, an LTX file is made of it. What is captured meanwhile comes behind that file, and counts when it does.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use ltx::{PageSize, Pgno};

use crate::capture::{Look, Position};
use crate::wal::{FrameRef, Index, Log, Place, ReadAt};
use crate::{Capture, Error, Result, files};

/// How much is copied, or encoded, until it is looked whether there is something to capture.
const CHUNK: usize = 256 << 10;

/// A copy of a database that is being made.
#[derive(Debug)]
pub(crate) struct Image {
    file: File,
    page_size: PageSize,
    /// A bit for each page that is newer than the database file.
    newer: Vec<u64>,
}

impl Image {
    fn is_newer(&self, slot: usize) -> bool {
        self.newer.get(slot / 64).is_some_and(|bits| bits >> (slot % 64) & 1 > 0)
    }

    /// A page as it was committed.
    fn put(&mut self, pgno: Pgno, page: &[u8]) -> std::io::Result<()> {
        let slot = pgno.get() as usize - 1;
        self.newer.resize(self.newer.len().max(slot / 64 + 1), 0);
        if let Some(bits) = self.newer.get_mut(slot / 64) {
            *bits |= 1 << (slot % 64);
        }
        self.file.write_all_at(page, pgno.offset(self.page_size))
    }

    /// Pages of the database file, of which it may be that only a part was written yet: but then they were put, or will be.
    fn fill(&self, first: usize, pages: &[u8]) -> std::io::Result<()> {
        let size = self.page_size.bytes();
        for (slot, page) in (first..).zip(pages.chunks_exact(size)) {
            if !self.is_newer(slot) {
                self.file.write_all_at(page, slot as u64 * size as u64)?;
            }
        }
        Ok(())
    }

    /// A page, of zeros where nothing was written.
    fn read(&self, pgno: Pgno, into: &mut [u8]) -> std::io::Result<()> {
        let read = ReadAt::read_at(&self.file, pgno.offset(self.page_size), into)?;
        into[read..].fill(0);
        Ok(())
    }
}

impl Capture {
    /// Whether a snapshot takes so long that the log must not be kept from beginning anew meanwhile.
    pub(crate) fn is_large(&self, now: &Look) -> bool {
        let bytes = u64::from(now.index.pages) * self.page_size.bytes() as u64;
        self.settings.large > 0 && bytes >= self.settings.large
    }

    /// Takes the snapshot that is owed.
    pub(crate) fn pay(&mut self) -> Result<()> {
        if self.owed.is_none() {
            return Ok(());
        }
        let now = self.look()?;
        self.snapshot(&now)
    }

    /// Captures the whole database. Where a snapshot is not owed, what comes meanwhile is captured as ever. No connection but that of the hold may
    /// be in use.
    pub(crate) fn snapshot_large(&mut self, now: &Look) -> Result<()> {
        let copied = self.copy_all(now);
        let image = self.image.take();
        match copied {
            Err(error) if error.is_disk_full() => {
                tracing::warn!(path = %self.path.display(), "no room to copy the database; the WAL cannot restart during the snapshot");
                drop(image);
                let now = self.look()?;
                self.snapshot_held(&now)
            }
            Err(error) => {
                if self.owed.is_some() {
                    self.captured = None;
                }
                Err(error)
            }
            // It could not be followed.
            Ok(()) => image.map_or(Ok(()), |image| self.encode(&image)),
        }
    }

    /// Makes the copy.
    fn copy_all(&mut self, now: &Look) -> Result<()> {
        self.capture(now)?;
        if self.owed.is_some() {
            let Index { salts, frames, sum, pages, change, .. } = now.index;
            self.position =
                Position { salts, place: Place { frame: frames, sum }, commit: pages, change: Some(change) };
            self.captured = Some(now.index);
        }
        self.image = Some(self.first_image(now)?);
        let size = self.page_size.bytes();
        let mut buffer = vec![0; (CHUNK / size).max(1) * size];
        let mut slot = 0;
        while slot < now.index.pages.min(self.position.commit) as usize {
            self.connections[self.holder].read(slot as u64 * size as u64, &mut buffer)?;
            let Some(image) = &self.image else { return Ok(()) };
            image.fill(slot, &buffer).map_err(Error::io("copy", &self.path))?;
            slot += buffer.len() / size;
            self.meanwhile();
        }
        // The copy may be ahead of the position where something could not be captured.
        let now = self.look()?;
        self.capture(&now)
    }

    /// Captures what has come, in the middle of something else. What cannot be done now will be later.
    fn meanwhile(&mut self) {
        if let Err(error) = self.look_after() {
            tracing::debug!(path = %self.path.display(), %error, "not captured yet");
        }
    }

    /// An image that holds what the log does.
    fn first_image(&self, now: &Look) -> Result<Image> {
        let unproven = |why| Error::Unproven { path: self.path.clone(), why };
        let failed = Error::io("copy", &self.path);
        let file = files::create_nameless(&self.settings.meta_path).map_err(&failed)?;
        let mut image = Image { file, page_size: self.page_size, newer: Vec::new() };
        if now.is_full() || now.index.frames == 0 {
            return Ok(image);
        }
        let log = Log::open(&self.log).map_err(unproven)?;
        let (mut pages, mut low) = (BTreeMap::new(), now.index.pages);
        let note = |frame: &crate::wal::Frame<'_>| {
            pages.insert(frame.pgno, Some(frame.place));
            if frame.commit > 0 {
                low = low.min(frame.commit);
            }
        };
        log.read(log.start(), &now.index, note).map_err(unproven)?;
        // What was cut off and grew again without a frame: a checkpoint may be about to cut the file.
        for pgno in (low.saturating_add(1)..=now.index.pages).filter_map(Pgno::new) {
            pages.entry(pgno).or_insert(None);
        }
        self.put_all(&mut image, &log, &pages)?;
        Ok(image)
    }

    fn put_all(&self, image: &mut Image, log: &Log<'_, File>, pages: &BTreeMap<Pgno, Option<FrameRef>>) -> Result<()> {
        let mut buffer = Vec::new();
        for (pgno, place) in pages {
            self.read_page(*pgno, place.map(|place| (log, place)), &mut buffer)?;
            image.put(*pgno, &buffer).map_err(Error::io("copy", &self.path))?;
        }
        Ok(())
    }

    /// Copies what a segment holds, if a copy is being made.
    pub(crate) fn copy_segment(&mut self, log: &Log<'_, File>, pages: &BTreeMap<Pgno, Option<FrameRef>>) -> Result<()> {
        let Some(mut image) = self.image.take() else { return Ok(()) };
        self.put_all(&mut image, log, pages)?;
        // One that is not as it should be is no use.
        self.image = Some(image);
        Ok(())
    }

    /// Makes the file, which is the database at the position.
    fn encode(&mut self, image: &Image) -> Result<()> {
        let (last, state, position) = (self.last, self.state, self.position);
        let why = self.owed.take();
        let header = self.next_header(position.commit);
        self.last = (header.max_txid, header.timestamp);
        self.behind = Some(Vec::new());
        let lock_page = self.page_size.lock_page();
        let encoded = self.stage.clone().write(header, |page| {
            let mut buffer = vec![0; self.page_size.bytes()];
            let mut encoded = 0;
            for pgno in (1..=position.commit).filter_map(Pgno::new).filter(|pgno| *pgno != lock_page) {
                image.read(pgno, &mut buffer).map_err(Error::io("read a copy of", &self.path))?;
                page(pgno, &buffer)?;
                encoded += buffer.len();
                if encoded >= CHUNK {
                    encoded = 0;
                    self.meanwhile();
                }
            }
            Ok(())
        });
        let behind = self.behind.take().unwrap_or_default();
        let settled = encoded.and_then(|staged| {
            // What came behind it was named already.
            let state = self.state.filter(|_| !behind.is_empty());
            let state = state.unwrap_or_else(|| self.state_of(&staged, position));
            state.write(&self.state_path)?;
            Ok((staged, state))
        });
        match settled {
            Ok((staged, state)) => {
                self.state = Some(state);
                self.ready.push(staged);
                self.ready.extend(behind);
                Ok(())
            }
            Err(error) => {
                // What came behind it stands on nothing.
                self.owed = self.owed.take().or(why).or_else(|| Some("a snapshot could not be written".to_owned()));
                self.captured = None;
                (self.last, self.state) = (last, state);
                self.stage.delete(|txid| txid > last.0)?;
                Err(error)
            }
        }
    }
}
