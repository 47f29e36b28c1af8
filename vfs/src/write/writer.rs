//! One database's writer: who may write, what was committed, and up to where it is in the replica.
//!
//! There is one for each database of the process, as long as any connection may write. A transaction's pages go straight to the end of the
//! buffer's segment, behind what was committed; the commit is one more frame behind them and one `fdatasync`. What is shown then is the view
//! with one more layer in front. Nothing here waits for the network.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use litestream_pageindex::View;
use ltx::{PageSize, Pgno, Timestamp, Txid};
use tokio::sync::{Notify, watch};

use super::buffer::{Buffer, Found as Left, Position, Uploaded};
use super::layer::{Layer, Local};
use super::pages::PageMap;
use super::segment::{Segment, commit_frame, page_frame};
use crate::database::{Database, Shown};
use crate::flight::Flight;
use crate::settings::WriteSettings;
use crate::{Error, Result, ffi};

/// A segment that is longer than this gets no further transaction.
const FULL: u64 = 4 << 20;
/// Where page 1 has the size of pages, and what it says of WAL mode (<https://www.sqlite.org/fileformat2.html#the_database_header>).
const PAGE_SIZE: std::ops::Range<usize> = 16..18;
const JOURNAL_MODE: std::ops::Range<usize> = 18..20;
/// How many bytes of a transaction are kept in memory before they are written to the segment.
const STAGED: usize = 1 << 20;

/// See the module.
pub(crate) struct Writer {
    pub(super) settings: WriteSettings,
    inner: Mutex<Inner>,
    /// Tells the uploader that there is something to do.
    pub(super) wake: Notify,
    /// Says that it has ended.
    pub(super) ended: watch::Sender<bool>,
    pub(super) counters: Counters,
}

/// What the uploader has done.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(super) uploads: AtomicU64,
    pub(super) failures: AtomicU64,
}

pub(super) struct Inner {
    pub(super) buffer: Buffer,
    /// Up to where the replica holds what is in the buffer.
    pub(super) base: Uploaded,
    /// Whether a connection is writing.
    held: bool,
    /// Why nobody may write any more.
    pub(super) refused: Option<Error>,
    /// Transactions committed here, and how many of them the replica holds.
    pub(super) commits: u64,
    pub(super) uploaded: u64,
    /// How many layers, from the oldest on, belong to the upload that is under way, and since when.
    sealed: usize,
    sealed_at: Option<Instant>,
    /// When the oldest transaction was committed that the replica does not hold.
    pub(super) oldest: Option<Instant>,
    /// What the last upload failed with.
    pub(super) trouble: Option<Error>,
    waiting: Vec<(u64, Arc<Flight<Result<Txid>>>)>,
    /// Somebody waits: no pause before the next upload.
    pub(super) urgent: bool,
    /// The last connection is closing: upload what there is, and end.
    pub(super) ending: bool,
    /// It has ended: the buffer is not ours any more.
    pub(super) closed: bool,
}

/// What the next upload is made of.
pub(super) struct Sealed {
    /// What it is to follow.
    pub(super) base: Arc<Shown>,
    pub(super) proven: Uploaded,
    pub(super) layers: Vec<Arc<Layer>>,
    pub(super) page_size: PageSize,
    /// What was tried before, to be tried again as it was.
    pub(super) again: Option<Uploaded>,
    pub(super) writer: u64,
}

impl Sealed {
    /// The last of its layers.
    pub(super) fn last(&self) -> Option<&Layer> {
        self.layers.last().map(|layer| &**layer)
    }
}

/// One transaction's pages, until it commits.
#[derive(Debug)]
pub(crate) struct Transaction {
    segment: Option<Arc<Segment>>,
    page_size: Option<PageSize>,
    own: PageMap,
    size: u32,
    low: u32,
    frames: u32,
    /// What has not been written to the segment yet, and where it will lie.
    staged: Vec<u8>,
    at: u64,
    checksum: u64,
    /// Whether SQLite has asked for it to be durable.
    pub(crate) sync: bool,
    dirty: bool,
    /// Whether pages were written that were cut off again.
    holes: bool,
}

impl Transaction {
    fn new(shown: &Shown) -> Self {
        let size = shown.commit().0;
        let page_size = (size > 0).then(|| shown.page_size());
        Self {
            segment: None,
            page_size,
            own: PageMap::default(),
            size,
            low: size,
            frames: 0,
            staged: Vec::new(),
            at: 0,
            checksum: 0,
            sync: false,
            dirty: false,
            holes: false,
        }
    }

    /// The database's size in pages, as the transaction has it.
    pub(crate) const fn size(&self) -> u32 {
        self.size
    }

    /// Whether it has written anything.
    pub(crate) const fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// The size of its pages, as soon as that is decided.
    pub(crate) const fn page_size(&self) -> Option<PageSize> {
        self.page_size
    }

    /// Reads a page that the transaction has written, or that it has made zero.
    pub(crate) fn read(&self, pgno: Pgno, into: &mut [u8]) -> Result<bool> {
        let (Some(offset), Some(segment)) = (self.own.get(pgno.get()), &self.segment) else {
            if pgno.get() > self.low {
                into.fill(0);
                return Ok(true);
            }
            return Ok(false);
        };
        match offset.checked_sub(self.at) {
            Some(staged) => into.copy_from_slice(&self.staged[staged as usize..staged as usize + into.len()]),
            None => segment.read(offset, into)?,
        }
        Ok(true)
    }

    /// Finds out where to write.
    fn begin(&mut self, inner: &mut Inner, page_size: PageSize) -> Result<Arc<Segment>> {
        let segment = inner.buffer.segment(page_size, FULL)?;
        (self.at, self.checksum) = (inner.buffer.end.offset, inner.buffer.checksum);
        Ok(self.segment.insert(segment).clone())
    }

    fn flush(&mut self, segment: &Segment) -> Result<()> {
        let written = segment.file.write_all_at(&self.staged, self.at);
        written.map_err(|error| Error::buffer("write", &segment.path, error))?;
        self.at += self.staged.len() as u64;
        self.staged.clear();
        Ok(())
    }
}

impl Writer {
    /// A writer over an opened buffer, of which the replica holds what is up to `base`.
    pub(super) fn new(settings: WriteSettings, buffer: Buffer, base: Uploaded, refused: Option<Error>) -> Self {
        Self {
            settings,
            inner: Mutex::new(Inner {
                buffer,
                base,
                held: false,
                refused,
                commits: 0,
                uploaded: 0,
                sealed: 0,
                sealed_at: None,
                oldest: None,
                trouble: None,
                waiting: Vec::new(),
                urgent: false,
                ending: false,
                closed: false,
            }),
            wake: Notify::new(),
            ended: watch::Sender::new(false),
            counters: Counters::default(),
        }
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what the buffer held, in front of the newest view.
    pub(super) fn adopt(&self, database: &Database, left: &Left) -> Result<()> {
        let mut inner = self.inner();
        let shown = database.latest()?;
        let (base, intent) = (inner.base, inner.buffer.state.intent);
        let mut local: Option<Local> = None;
        for (segment, commit) in left.after(base.up_to) {
            let known = local.as_ref().map(|local| local.page_size).or_else(|| shown.decided_page_size());
            if known.is_some_and(|known| known != segment.page_size) {
                let why = "its pages have another size than the replica's".to_owned();
                return Err(Error::BufferDamaged { path: segment.path.clone(), why });
            }
            let below = local.as_ref().map_or_else(|| shown.commit(), Local::commit).0;
            let mut pages = PageMap::default();
            for (page, offset) in commit.pages.iter().filter(|(page, _)| *page <= commit.size) {
                pages.set(*page, *offset);
            }
            inner.commits += 1;
            let transaction = Layer {
                segment: segment.clone(),
                pages,
                low: below.min(commit.low),
                size: commit.size,
                commits: inner.commits,
                end: Position { segment: segment.number, offset: commit.end },
            };
            let end = transaction.end;
            let layers = local.map_or_else(Vec::new, |local| local.layers);
            let more = Local::with(layers, inner.sealed, transaction, segment.page_size);
            if intent.is_some_and(|intent| intent.up_to == end) {
                // It may be on its way still, so it is to be tried again just as it was.
                inner.sealed = more.layers.len();
            }
            local = Some(more);
        }
        let Some(local) = local else { return Ok(()) };
        tracing::warn!(
            path = %inner.buffer.path().display(), transactions = inner.commits, url = %database.replica.url(),
            "the write buffer holds transactions that were not uploaded: uploading them now"
        );
        inner.oldest = Some(Instant::now());
        database.show(shown.view.clone(), Some(local))?;
        Ok(())
    }

    /// Lets one connection write, which has seen `pinned`.
    pub(crate) fn begin(&self, database: &Database, pinned: &Shown) -> Result<Transaction> {
        let mut inner = self.inner();
        self.may_write(&inner)?;
        if inner.held {
            return Err(Error::Busy);
        }
        let latest = database.latest()?;
        if latest.counter != pinned.counter || latest.commit() != pinned.commit() {
            return Err(Error::BusySnapshot);
        }
        inner.held = true;
        Ok(Transaction::new(&latest))
    }

    /// Whether a transaction could go on: raised where SQLite can still roll back cleanly.
    pub(crate) fn check(&self) -> Result<()> {
        self.may_write(&self.inner())
    }

    fn may_write(&self, inner: &Inner) -> Result<()> {
        if let Some(error) = &inner.refused {
            return Err(error.clone());
        }
        if let (Some(deadline), Some(oldest)) = (self.settings.sync_deadline, inner.oldest)
            && oldest.elapsed() > deadline
        {
            let why =
                inner.trouble.as_ref().map_or_else(|| "the store has not answered yet".to_owned(), ToString::to_string);
            return Err(Error::Deadline { behind: oldest.elapsed(), why });
        }
        Ok(())
    }

    /// Whether any connection is writing.
    pub(crate) fn is_held(&self) -> bool {
        self.inner().held
    }

    /// Writes bytes into a transaction.
    pub(crate) fn write(
        &self,
        transaction: &mut Transaction,
        bytes: &[u8],
        offset: u64,
        read: &mut Reader<'_>,
    ) -> Result<()> {
        let size = match transaction.page_size {
            Some(size) => size,
            None => {
                let size = u32::try_from(bytes.len()).ok().and_then(PageSize::new).filter(|_| offset == 0);
                let size = size.ok_or_else(|| Error::Unwritable("the first write is not page 1".to_owned()))?;
                *transaction.page_size.insert(size)
            }
        };
        if bytes.len() > size.bytes() {
            return Err(other_page_size(size, bytes.len()));
        }
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = (at % u64::from(size.get())) as usize;
            let count = (size.bytes() - within).min(bytes.len() - done);
            let pgno = u32::try_from(at / u64::from(size.get()) + 1).ok().and_then(Pgno::new);
            let pgno = pgno.ok_or_else(|| Error::Unwritable("the database is too large".to_owned()))?;
            let some = &bytes[done..done + count];
            if count == size.bytes() {
                self.page(transaction, pgno, some, size)?;
            } else {
                let mut page = vec![0; size.bytes()];
                if pgno.get() <= transaction.size && !transaction.read(pgno, &mut page)? {
                    read(pgno, &mut page)?;
                }
                page[within..within + count].copy_from_slice(some);
                self.page(transaction, pgno, &page, size)?;
            }
            done += count;
        }
        Ok(())
    }

    fn page(&self, transaction: &mut Transaction, pgno: Pgno, image: &[u8], size: PageSize) -> Result<()> {
        if pgno == size.lock_page() {
            // SQLite never uses it; some of its code fills files to their end.
            transaction.size = transaction.size.max(pgno.get());
            return Ok(());
        }
        let segment = match &transaction.segment {
            Some(segment) => segment.clone(),
            None => transaction.begin(&mut self.inner(), size)?,
        };
        // VACUUM with another size writes in pages of the old one still; only the header tells.
        if let (Pgno::ONE, Some([high, low])) = (pgno, image.get(PAGE_SIZE)) {
            let said = match u16::from_be_bytes([*high, *low]) {
                1 => 65_536,
                said => usize::from(said),
            };
            if said != size.bytes() {
                return Err(other_page_size(size, said));
            }
        }
        let mut stored;
        let image = if pgno == Pgno::ONE && image.get(JOURNAL_MODE).is_some_and(|modes| modes != [1, 1]) {
            // An exclusive connection may believe that it is in WAL mode.
            stored = image.to_vec();
            stored[JOURNAL_MODE].fill(1);
            &stored
        } else {
            image
        };
        let (head, checksum) = page_frame(transaction.checksum, pgno.get(), image);
        transaction.staged.extend_from_slice(&head);
        let offset = transaction.at + transaction.staged.len() as u64;
        transaction.staged.extend_from_slice(image);
        transaction.checksum = checksum;
        transaction.frames += 1;
        transaction.own.set(pgno.get(), offset);
        transaction.size = transaction.size.max(pgno.get());
        transaction.dirty = true;
        if transaction.staged.len() >= STAGED {
            transaction.flush(&segment)?;
        }
        Ok(())
    }

    /// Cuts the database to a size.
    pub(crate) fn truncate(transaction: &mut Transaction, bytes: u64) -> Result<()> {
        let Some(size) = transaction.page_size else { return Ok(()) };
        let pages = u32::try_from(bytes.div_ceil(u64::from(size.get())));
        let pages = pages.map_err(|_| Error::Unwritable("the database is too large".to_owned()))?;
        if pages < transaction.size {
            transaction.low = transaction.low.min(pages);
            let before = transaction.own.len();
            transaction.own.truncate(pages);
            transaction.holes |= transaction.own.len() < before;
        }
        transaction.dirty |= pages != transaction.size;
        transaction.size = pages;
        Ok(())
    }

    /// Commits, and shows the result, which is returned; `None` where nothing was written.
    pub(crate) fn commit(&self, database: &Database, transaction: &mut Transaction) -> Result<Option<Arc<Shown>>> {
        let Some(page_size) = transaction.page_size.filter(|_| transaction.dirty) else { return Ok(None) };
        if std::mem::take(&mut transaction.holes) {
            // Images of pages that were cut off lie in the segment. Where the database has grown over them again, zeros must follow.
            let zeros = vec![0; page_size.bytes()];
            for page in transaction.low + 1..=transaction.size {
                if let Some(pgno) = Pgno::new(page).filter(|_| transaction.own.get(page).is_none()) {
                    self.page(transaction, pgno, &zeros, page_size)?;
                }
            }
        }
        let now = Timestamp(jiff::Timestamp::now().as_millisecond());
        let mut inner = self.inner();
        if let Some(error) = &inner.refused {
            return Err(error.clone());
        }
        let segment = match &transaction.segment {
            Some(segment) => segment.clone(),
            // It only made the database shorter.
            None => transaction.begin(&mut inner, page_size)?,
        };
        let (frame, checksum) =
            commit_frame(transaction.checksum, transaction.size, transaction.low, transaction.frames, now);
        transaction.staged.extend_from_slice(&frame);
        let kept = transaction.flush(&segment).and_then(|()| {
            let synced = if transaction.sync { segment.file.sync_data() } else { Ok(()) };
            synced.map_err(|error| Error::buffer("sync", &segment.path, error))
        });
        if let Err(error) = kept {
            // Nobody knows what is on disk now, so nothing may follow it.
            let _ = segment.file.set_len(inner.buffer.end.offset);
            inner.refused = Some(error.clone());
            return Err(error);
        }
        let end = Position { segment: segment.number, offset: transaction.at };
        (inner.buffer.end, inner.buffer.checksum) = (end, checksum);
        inner.commits += 1;
        inner.oldest.get_or_insert_with(Instant::now);
        let latest = database.latest()?;
        let layer = Layer {
            segment,
            pages: std::mem::take(&mut transaction.own),
            low: transaction.low,
            size: transaction.size,
            commits: inner.commits,
            end,
        };
        let layers = latest.local.as_ref().map_or_else(Vec::new, |local| local.layers.clone());
        let local = Local::with(layers, inner.sealed, layer, page_size);
        let shown = database.show(latest.view.clone(), Some(local))?;
        // In exclusive mode the next transaction follows without asking.
        *transaction = Transaction::new(&shown);
        drop(inner);
        self.wake.notify_one();
        Ok(Some(shown))
    }

    /// The connection that wrote does so no longer. What it has not committed is forgotten.
    pub(crate) fn end(&self) {
        self.inner().held = false;
    }

    /// Takes what was committed for an upload. `None` where nothing was, or nothing may be uploaded.
    pub(super) fn seal(&self, database: &Database) -> Result<Option<Sealed>> {
        let mut inner = self.inner();
        let base = database.latest()?;
        let Some(local) = base.local.clone().filter(|_| inner.refused.is_none() && !inner.closed) else {
            return Ok(None);
        };
        if inner.sealed == 0 {
            inner.sealed = local.layers.len();
        }
        inner.sealed_at = Some(Instant::now());
        let layers = local.layers[..inner.sealed].to_vec();
        let end = layers.last().map(|layer| layer.end);
        let again = inner.buffer.state.intent.filter(|intent| Some(intent.up_to) == end);
        let (proven, writer) = (inner.base, inner.buffer.state.writer);
        Ok(Some(Sealed { base, proven, layers, page_size: local.page_size, again, writer }))
    }

    /// Notes durably what is about to be put.
    pub(super) fn intend(&self, sealed: &Sealed, intent: Uploaded) -> Result<()> {
        let mut inner = self.inner();
        if inner.closed {
            return Err(Error::Worker("the database was closed".to_owned()));
        }
        inner.buffer.intend(sealed.proven, Some(intent))
    }

    /// What was sealed is in the replica, as a file that this view ends with: it takes the place of the layers.
    pub(super) fn proven(&self, database: &Database, sealed: &Sealed, view: Arc<View>, proof: Uploaded) -> Result<()> {
        let mut inner = self.inner();
        if inner.closed {
            // Others may be followed again by now; this file is found like theirs.
            return Ok(());
        }
        let latest = database.latest()?;
        let local = latest.local.as_ref().and_then(|local| {
            let layers = local.layers.get(sealed.layers.len()..).unwrap_or_default().to_vec();
            (!layers.is_empty()).then_some(Local { layers, page_size: local.page_size })
        });
        let txid = view.txid();
        database.rebase(view, local, &latest);
        inner.sealed = 0;
        inner.base = proof;
        inner.uploaded = sealed.last().map_or(inner.uploaded, |last| last.commits);
        inner.oldest = if inner.uploaded == inner.commits { None } else { inner.sealed_at };
        inner.trouble = None;
        inner.buffer.forget(proof.up_to, false);
        let uploaded = inner.uploaded;
        let (done, waiting) =
            std::mem::take(&mut inner.waiting).into_iter().partition(|(commits, _)| *commits <= uploaded);
        inner.waiting = waiting;
        inner.urgent = !inner.waiting.is_empty();
        drop(inner);
        self.counters.uploads.fetch_add(1, Ordering::Relaxed);
        done.iter().for_each(|(_, flight): &(u64, Arc<Flight<Result<Txid>>>)| flight.land(Ok(txid)));
        Ok(())
    }

    /// Notes durably that the replica holds all that was committed. Without that only the last file's presence would tell, once this process is
    /// gone, and when others have written since, it may have been merged away.
    pub(super) fn note(&self) -> Result<()> {
        let mut inner = self.inner();
        if inner.closed || inner.refused.is_some() || inner.uploaded < inner.commits {
            return Ok(());
        }
        let base = inner.base;
        inner.buffer.intend(base, None)
    }

    /// An upload has failed: who waits is told.
    pub(super) fn failed(&self, error: &Error, for_good: bool) {
        let mut inner = self.inner();
        if for_good {
            inner.refused = Some(error.clone());
        }
        inner.trouble = Some(error.clone());
        inner.urgent = false;
        let waiting = std::mem::take(&mut inner.waiting);
        drop(inner);
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        waiting.iter().for_each(|(_, flight)| flight.land(Err(error.clone())));
    }

    /// Waits until all that was committed so far is in the replica, and returns its TXID.
    ///
    /// # Errors
    /// What the next upload fails with; [`Error::Interrupted`].
    pub(crate) fn sync(&self, database: &Database, deadline: Option<Instant>, stop: &dyn Fn() -> bool) -> Result<Txid> {
        let flight = {
            let mut inner = self.inner();
            if let Some(error) = &inner.refused {
                return Err(error.clone());
            }
            if inner.uploaded == inner.commits {
                return database.latest().map(|shown| shown.view.txid());
            }
            let flight: Arc<Flight<Result<Txid>>> = Arc::default();
            let commits = inner.commits;
            inner.waiting.push((commits, flight.clone()));
            inner.urgent = true;
            flight
        };
        self.wake.notify_one();
        flight.wait(deadline, stop).unwrap_or(Err(Error::Interrupted))
    }

    /// Uploads what there is, as long as that is worth waiting for, and lets go of the buffer.
    pub(crate) fn close(&self, database: &Database) {
        self.inner().ending = true;
        let deadline = Instant::now() + self.settings.shutdown_sync_timeout;
        let outcome = loop {
            match self.sync(database, Some(deadline), &|| false) {
                Err(Error::Interrupted) => {
                    let trouble = self.inner().trouble.clone();
                    break Err(trouble.unwrap_or_else(|| Error::Worker("the time was up".to_owned())));
                }
                // The uploader tries again.
                Err(_) if self.inner().refused.is_none() && Instant::now() < deadline => {}
                outcome => break outcome,
            }
        };
        let mut inner = self.inner();
        inner.closed = true;
        let path = inner.buffer.path().to_owned();
        match outcome {
            Ok(_) if inner.refused.is_none() => {
                let base = Uploaded { up_to: inner.buffer.end, ..inner.base };
                match inner.buffer.intend(base, None) {
                    Ok(()) => inner.buffer.forget(base.up_to, true),
                    Err(error) => tracing::warn!(%error, "the write buffer's files stay, though all is uploaded"),
                }
            }
            Err(error) if inner.uploaded < inner.commits => {
                ffi::tell(&format!(
                    "{}: closed before all was uploaded ({error}); {} transactions are kept in {}, and go up when the database is opened for writing again",
                    database.replica.url(),
                    inner.commits - inner.uploaded,
                    path.display()
                ));
            }
            _ => {}
        }
        inner.buffer.release();
        drop(inner);
        self.ended.send_replace(true);
        self.wake.notify_one();
    }

    /// Where the buffer is.
    pub(crate) fn buffer_path(&self) -> &Path {
        &self.settings.buffer_path
    }

    /// How long ago the oldest transaction was committed that the replica does not hold.
    pub(crate) fn behind(&self) -> Option<Duration> {
        self.inner().oldest.map(|oldest| oldest.elapsed())
    }

    /// Counters by name.
    pub(crate) fn stats(&self) -> [(&'static str, u64); 6] {
        let inner = self.inner();
        [
            ("transactions_committed", inner.commits),
            ("transactions_pending", inner.commits - inner.uploaded),
            ("uploads", self.counters.uploads.load(Ordering::Relaxed)),
            ("upload_failures", self.counters.failures.load(Ordering::Relaxed)),
            ("buffer_bytes", if inner.closed { 0 } else { inner.buffer.bytes() }),
            ("write_refused", u64::from(inner.refused.is_some())),
        ]
    }
}

fn other_page_size(size: PageSize, other: usize) -> Error {
    Error::Unwritable(format!(
        "the size of pages cannot change from {size} to {other}: a replica keeps the one it began with; write a new database with VACUUM INTO, and replicate that one"
    ))
}

/// Reads a page as it was before the transaction.
pub(crate) type Reader<'a> = dyn FnMut(Pgno, &mut [u8]) -> Result<()> + 'a;
