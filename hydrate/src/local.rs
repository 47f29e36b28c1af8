//! A database's pages in a local file, filled in while they are read.
//!
//! Each page is kept with the file of the replica that it came from, and a reader asks for a page *of a file*: so nothing here is ever stale,
//! whatever view asks, and a reader of an older view simply does not find the pages that have been overtaken.
//!
//! Written is only what the newest view that was accepted says: an older page never takes a newer one's place.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use litestream_pageindex::{OpenFile, View};
use ltx::{Commit, Pgno, Txid};
use tokio::sync::Notify;

use crate::decode::{Bits, Pages};
use crate::meta::Base;
use crate::owners::Owners;
use crate::place::Registered;
use crate::{Error, Result};

/// See the module.
#[derive(Debug)]
pub struct Local {
    // Closed before its path is given up.
    file: File,
    _registered: Option<Registered>,
    owners: Owners,
    /// Whoever writes pages holds this for reading; who changes what may be written, for writing.
    gate: RwLock<Gate>,
    /// How many pages of the accepted view are not there.
    missing: AtomicU64,
    read_failures: AtomicU64,
    /// Told when pages have been lost.
    lost: Notify,
}

#[derive(Debug, Default)]
struct Gate {
    view: Option<Arc<View>>,
    closed: bool,
    /// Files whose checksum was wrong: of these only what is read whole is written.
    distrusted: HashSet<u64>,
}

/// Pages of a file that are to be there and are not, by their place in its index.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) file: Arc<OpenFile>,
    pub(crate) frames: Bits,
    pub(crate) count: usize,
    pub(crate) distrusted: bool,
}

/// What of the pages that are there already is known to be right in a new view, though other files hold it now.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    /// Only what the same files still hold.
    Same,
    /// The new view continues the accepted one's history.
    Continued,
    /// All pages of the file are as they were at this TXID, but for what was changed since, and the new view continues that history.
    Since(Txid, Commit),
    /// The view's oldest file is this one, and most pages came from there.
    Base(Base, Commit),
}

impl Kept {
    /// Whether the file is known to hold a page as a view has it, which has it from one of its files.
    pub(crate) fn is_sure_of(&self, file: (usize, &OpenFile), pgno: Pgno) -> bool {
        match self {
            Self::Same | Self::Continued => false,
            Self::Since(txid, commit) => file.1.info.name.max <= *txid && commit.contains(pgno),
            Self::Base(base, commit) => file.0 == 0 && base.is_sure_of(pgno) && commit.contains(pgno),
        }
    }
}

impl Local {
    pub(crate) fn new(file: File, registered: Option<Registered>) -> Self {
        Self {
            file,
            _registered: registered,
            owners: Owners::default(),
            gate: RwLock::default(),
            missing: AtomicU64::new(0),
            read_failures: AtomicU64::new(0),
            lost: Notify::new(),
        }
    }

    /// Reads a page as a file of the replica holds it. False where that is not there.
    pub fn read(&self, file: &OpenFile, pgno: Pgno, into: &mut [u8]) -> bool {
        let Some(word) = self.owners.before(pgno, file.id) else { return false };
        match self.file.read_exact_at(into, pgno.offset(file.header.page_size)) {
            Ok(()) => self.owners.still(pgno, word),
            Err(error) => {
                if self.read_failures.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::error!(%error, pgno = pgno.get(), "cannot read the hydrated database: reading from the replica instead");
                }
                if error.kind() == std::io::ErrorKind::UnexpectedEof {
                    // Somebody has cut the file. What is written now would make zeros of what is missing.
                    self.forget_all();
                    self.lost.notify_one();
                } else {
                    self.lose(file, pgno);
                }
                false
            }
        }
    }

    /// Whether a page of a file is there.
    #[must_use]
    pub fn holds(&self, file: &OpenFile, pgno: Pgno) -> bool {
        self.owners.is(pgno, file.id)
    }

    /// Takes pages that somebody has read from the replica, in ascending order, as far as they are wanted. Where the file is just being given
    /// another view, they are let go.
    pub fn offer<'a>(&self, file: &OpenFile, pages: impl IntoIterator<Item = (Pgno, &'a [u8])>) {
        let Ok(gate) = self.gate.try_read() else { return };
        if gate.distrusted.contains(&file.id) {
            return;
        }
        for (pgno, page) in pages {
            if let Err(error) = self.store(&gate, file, pgno, page) {
                // The task that fills the file will meet the same, and say so.
                tracing::debug!(%error, "cannot keep a page");
                return;
            }
        }
    }

    /// How many pages of the accepted view are there, and how many there are. `None` before there is one.
    #[must_use]
    pub fn progress(&self) -> Option<(u64, u64)> {
        let gate = self.reading();
        let view = gate.view.as_ref()?;
        let all = u64::from(view.commit().stored_pages(view.page_size()));
        Some((all.saturating_sub(self.missing()), all))
    }

    /// Whether this is the accepted view, and all its pages are there.
    #[must_use]
    pub fn is_complete(&self, view: &Arc<View>) -> bool {
        self.missing() == 0 && self.reading().view.as_ref().is_some_and(|accepted| Arc::ptr_eq(accepted, view))
    }

    /// How many pages of the accepted view are not there.
    pub(crate) fn missing(&self) -> u64 {
        self.missing.load(Ordering::Acquire)
    }

    /// How often the file could not be read.
    #[must_use]
    pub fn read_failures(&self) -> u64 {
        self.read_failures.load(Ordering::Relaxed)
    }

    /// Waits until pages are lost.
    pub(crate) async fn lost(&self) {
        self.lost.notified().await;
    }

    /// The accepted view.
    pub(crate) fn view(&self) -> Option<Arc<View>> {
        self.reading().view.clone()
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    fn reading(&self) -> RwLockReadGuard<'_, Gate> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> RwLockWriteGuard<'_, Gate> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on to another view, and tells what it lacks.
    pub(crate) fn accept(&self, view: &Arc<View>, kept: &Kept) -> std::io::Result<Vec<Wanted>> {
        let mut gate = self.writing();
        if gate.closed {
            return Ok(Vec::new());
        }
        let len = view.commit().bytes(view.page_size());
        if self.file.metadata()?.len() < len {
            self.file.set_len(len)?;
        }
        let before = gate.view.replace(view.clone());
        gate.distrusted.retain(|id| view.files().iter().any(|file| file.id == *id));
        let changed = before.as_ref().filter(|_| self.missing() == 0).and_then(|before| changed(before, view));
        let wanted = match changed {
            Some(changed) => self.wanted(&gate, view, changed.into_iter()),
            None => {
                let all = (1..=view.commit().0).filter_map(Pgno::new);
                self.wanted(&gate, view, all.filter(|pgno| !self.keep(before.as_deref(), view, kept, *pgno)))
            }
        };
        self.missing.store(wanted.iter().map(|wanted| wanted.count as u64).sum(), Ordering::Release);
        Ok(wanted)
    }

    /// What the accepted view still lacks.
    pub(crate) fn lacks(&self) -> Vec<Wanted> {
        let gate = self.writing();
        let Some(view) = &gate.view else { return Vec::new() };
        self.wanted(&gate, view, (1..=view.commit().0).filter_map(Pgno::new))
    }

    /// Whether a page is there, once what is known about the history has been made use of.
    fn keep(&self, before: Option<&View>, view: &View, kept: &Kept, pgno: Pgno) -> bool {
        let Some((number, at)) = view.holder(pgno) else { return true };
        let file = &view.files()[number];
        let unchanged = match (kept, before) {
            (Kept::Continued, Some(before)) => {
                file.info.name.max <= before.txid()
                    && before.holder(pgno).is_some_and(|(old, _)| self.owners.is(pgno, before.files()[old].id))
            }
            // What is at hand is written again from memory.
            (kept, _) => kept.is_sure_of((number, file), pgno) && !file.has_at_hand(&file.index.entry(at)),
        };
        if unchanged && !self.owners.is(pgno, file.id) {
            self.owners.adopt(pgno, file.id);
        }
        unchanged
    }

    /// Which of some pages are not there, by file, the newest file first.
    fn wanted(&self, gate: &Gate, view: &View, pages: impl Iterator<Item = Pgno>) -> Vec<Wanted> {
        let mut wanted: Vec<Option<Wanted>> = view.files().iter().map(|_| None).collect();
        for pgno in pages {
            let Some((number, at)) = view.holder(pgno) else { continue };
            let file = &view.files()[number];
            if self.owners.is(pgno, file.id) {
                continue;
            }
            let wanted = wanted[number].get_or_insert_with(|| Wanted {
                file: file.clone(),
                frames: Bits::new(file.index.len()),
                count: 0,
                distrusted: gate.distrusted.contains(&file.id),
            });
            wanted.count += usize::from(wanted.frames.insert(at));
        }
        wanted.into_iter().flatten().rev().collect()
    }

    /// Writes neighbouring pages of a file, those that the view has from there and that are not there.
    fn store(&self, gate: &Gate, file: &OpenFile, first: Pgno, pages: &[u8]) -> std::io::Result<()> {
        let Some(view) = gate.view.as_ref().filter(|_| !gate.closed) else { return Ok(()) };
        let size = file.header.page_size;
        let count = (pages.len() / size.bytes()) as u32;
        let mut run = first.get()..first.get();
        for number in first.get()..first.get() + count {
            let claimed = Pgno::new(number).is_some_and(|pgno| {
                let holder = view.holder(pgno);
                holder.is_some_and(|(at, _)| view.files()[at].id == file.id) && self.owners.claim(pgno, file.id)
            });
            if claimed {
                run.end = number + 1;
                continue;
            }
            self.write(file, first, pages, run)?;
            run = number + 1..number + 1;
        }
        self.write(file, first, pages, run)
    }

    /// Writes pages that have been claimed.
    fn write(&self, file: &OpenFile, first: Pgno, pages: &[u8], run: std::ops::Range<u32>) -> std::io::Result<()> {
        let Some(start) = Pgno::new(run.start).filter(|_| !run.is_empty()) else { return Ok(()) };
        let size = file.header.page_size;
        let bytes = |number: u32| (number - first.get()) as usize * size.bytes();
        let written = self.file.write_all_at(&pages[bytes(run.start)..bytes(run.end)], start.offset(size));
        let count = u64::from(run.end - run.start);
        for pgno in run.filter_map(Pgno::new) {
            match &written {
                Ok(()) => self.owners.publish(pgno, file.id),
                Err(_) => self.owners.release(pgno),
            }
        }
        if written.is_ok() {
            self.missing.fetch_sub(count, Ordering::AcqRel);
        }
        written
    }

    /// A page could not be read.
    fn lose(&self, file: &OpenFile, pgno: Pgno) {
        let gate = self.reading();
        let Some(view) = &gate.view else { return };
        let here = view.holder(pgno).is_some_and(|(at, _)| view.files()[at].id == file.id);
        // Counted first: as soon as it is nobody's, somebody may write it again and count it off.
        self.missing.fetch_add(u64::from(here), Ordering::AcqRel);
        if self.owners.forget(pgno, file.id) {
            self.lost.notify_one();
        } else {
            self.missing.fetch_sub(u64::from(here), Ordering::AcqRel);
        }
    }

    /// A file's checksum is wrong: what came from it is not to be believed, until it is read whole and right.
    pub(crate) fn distrust(&self, file: &OpenFile) {
        let mut gate = self.writing();
        gate.distrusted.insert(file.id);
        let Some(view) = gate.view.clone() else { return };
        for entry in file.index.entries() {
            let here = view.holder(entry.pgno).is_some_and(|(at, _)| view.files()[at].id == file.id);
            if self.owners.forget(entry.pgno, file.id) && here {
                self.missing.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// A file's checksum is right.
    pub(crate) fn trust(&self, file: &OpenFile) {
        if self.reading().distrusted.contains(&file.id) {
            self.writing().distrusted.remove(&file.id);
        }
    }

    /// Nothing that was written is to be believed any more.
    pub(crate) fn forget_all(&self) {
        let mut gate = self.writing();
        gate.view = None;
        self.owners.clear();
        self.missing.store(0, Ordering::Release);
    }

    /// From here on nothing is written.
    pub(crate) fn close(&self) {
        self.writing().closed = true;
        if let Some(registered) = &self._registered {
            registered.closing();
        }
    }
}

impl Pages for Local {
    fn take(&self, file: &OpenFile, pages: &[u8], offset: u64) -> Result<()> {
        let first = u32::try_from(offset / u64::from(file.header.page_size.get()) + 1).ok().and_then(Pgno::new);
        let Some(first) = first else { return Ok(()) };
        self.store(&self.reading(), file, first, pages).map_err(Error::io("write", "the hydrated database"))
    }
}

/// Which pages may lie elsewhere in a view that only adds files to the one before. `None` where it does not only do that.
fn changed(before: &View, view: &View) -> Option<Vec<Pgno>> {
    let (old, new) = view.files().split_at_checked(before.files().len())?;
    let same = old.iter().zip(before.files()).all(|(new, old)| new.id == old.id);
    same.then(|| {
        let changed = new.iter().flat_map(|file| file.index.entries().map(|entry| entry.pgno));
        let grown = (before.commit().0 + 1..=view.commit().0).filter_map(Pgno::new);
        changed.chain(grown).collect()
    })
}
