//! Filling a local file from one view after another, while it is read already.
//!
//! What is wanted is read in large ranges, a few at a time, with a budget of its own: reads that somebody waits for have nothing to wait for
//! here. Small files come from memory. Files that are read whole are verified against their checksum; every frame is checked anyway.
//!
//! A file under a path outlives the process. What makes it safe to go on with:
//! - It is noted as complete at a TXID only when all of that view's pages are there, and synced.
//! - Before a page of a newer view is written, it is noted which view that is. So whatever was written since, by whatever crash it was ended, was
//!   changed between the TXID and that view.
//! - It is gone on with only where the replica still holds the file with which that view ended: then all that was changed since is known, and is
//!   read anew. Or where it still holds the snapshot that most pages came from: those are good then, and the others are read anew. Otherwise it is
//!   noted that the file is worth nothing, and only then is it emptied.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use litestream_pageindex::{FramesHash, OpenFile, Span, View};
use litestream_storage::Replica;
use ltx::{Commit, Pgno, Txid};

use crate::decode::{Bits, decode};
use crate::local::{Kept, Local, Wanted};
use crate::meta::{Base, Complete, Known, Meta, continues};
use crate::place::{Place, Places};
use crate::restore::blocking;
use crate::{Error, Result};

/// About how many bytes one request reads.
const SPAN: u64 = 2 << 20;
/// How many requests, or pieces of memory to decode, are under way at once; together with [`SPAN`] that bounds the memory.
const AT_ONCE: usize = 12;
/// Up to so many bytes are read and thrown away rather than asking twice.
const GAP: u64 = 64 << 10;
/// How often at most it is noted that the file is complete at a newer TXID.
const CHECKPOINT: Duration = Duration::from_secs(30);
/// How often what is missing is looked for, before that is called a failure.
const ROUNDS: u32 = 10;
/// How many pages are compared with what is in memory before a file is gone on with.
const SAMPLES: usize = 256;

/// What has been read for a file.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes read from the replica.
    pub bytes: AtomicU64,
}

/// See the module.
#[derive(Debug)]
pub struct Background {
    replica: Replica,
    local: Arc<Local>,
    counters: Arc<Counters>,
    place: Option<Arc<Place>>,
    /// What stands beside the file, where that says that it was complete.
    noted: Option<Complete>,
    checked: Option<Instant>,
    /// Whether it is decided what the file that was found is worth.
    judged: bool,
}

/// Some frames of a file, to be read and decoded together.
struct Part {
    job: Arc<Job>,
    span: Span,
    /// Whether it is the file's last.
    last: bool,
}

/// What is wanted of a file.
struct Job {
    file: Arc<OpenFile>,
    frames: Bits,
    /// Whether all its frames are read, so that its checksum can be verified.
    whole: bool,
    failed: AtomicBool,
}

impl Background {
    /// A file without a name, which goes with the process at the latest.
    ///
    /// # Errors
    /// [`Error::Io`], which names the folder.
    pub fn temporary(replica: &Replica) -> Result<Self> {
        let file = tempfile::tempfile().map_err(Error::io("create a temporary file in", std::env::temp_dir()))?;
        Ok(Self::new(replica, Local::new(file, None), None))
    }

    /// A file under a path, or in a folder under a name that belongs to the replica. It is gone on with where possible.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::NotHydrated`], [`Error::OutputUnusable`], [`Error::Io`].
    pub fn at(replica: &Replica, path: &Path, places: &Places) -> Result<Self> {
        let (file, registered, place) = places.open(path, replica.url())?;
        Ok(Self::new(replica, Local::new(file, Some(registered)), Some(place)))
    }

    fn new(replica: &Replica, local: Local, place: Option<Place>) -> Self {
        Self {
            replica: replica.clone(),
            local: Arc::new(local),
            counters: Arc::default(),
            place: place.map(Arc::new),
            noted: None,
            checked: None,
            judged: false,
        }
    }

    /// The file, for reading.
    #[must_use]
    pub fn local(&self) -> &Arc<Local> {
        &self.local
    }

    /// What is counted.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Where the file lies; `None` where it has no name.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        self.place.as_ref().map(|place| place.path.clone())
    }

    /// Brings the file to a view: when this returns, all its pages are there. May be given up at any point, and begun again.
    ///
    /// # Errors
    /// What stands in the way. What is there already stays good; a view whose files have vanished must be replaced by another one.
    pub async fn bring(&mut self, view: &Arc<View>) -> Result<()> {
        let kept = self.kept(view).await?;
        self.note_reach(view).await?;
        let (local, accepted) = (self.local.clone(), view.clone());
        let accept = move || local.accept(&accepted, &kept).map_err(Error::io("grow", "the hydrated database"));
        let mut wanted = blocking(accept).await?;
        for _ in 0..ROUNDS {
            self.fetch(wanted).await?;
            if self.local.is_complete(view) {
                return Ok(());
            }
            // Somebody else was just writing what is missing, or it was lost meanwhile.
            tokio::task::yield_now().await;
            let local = self.local.clone();
            wanted = blocking(move || Ok(local.lacks())).await?;
        }
        Err(Error::Worker(format!("{} hydrated pages were lost again and again", self.local.missing())))
    }

    /// Waits until pages are lost that were there.
    pub async fn lost(&self) {
        self.local.lost().await;
    }

    /// When it will be time for a [`Background::checkpoint`]. `None` where there is nothing to note.
    #[must_use]
    pub fn checkpoint_due(&self) -> Option<Instant> {
        let view = self.local.view()?;
        self.place.as_ref().filter(|_| self.noted.as_ref().is_none_or(|noted| noted.txid != view.txid()))?;
        Some(self.checked.map_or_else(Instant::now, |checked| checked + CHECKPOINT))
    }

    /// Notes that the file is complete at the view to which it was brought, if it is and has a name.
    ///
    /// # Errors
    /// [`Error::Io`]. Where the file could not be synced, nothing in it is believed any more.
    pub async fn checkpoint(&mut self) -> Result<()> {
        let Some(work) = self.completed() else { return Ok(()) };
        self.checked = Some(Instant::now());
        self.noted = blocking(work).await?;
        Ok(())
    }

    /// Ends it: from here on nothing is written, and a file that is complete is noted to be so. On a thread that may block.
    ///
    /// # Errors
    /// As [`Background::checkpoint`].
    pub fn close(self) -> Result<()> {
        self.local.close();
        self.completed().map_or(Ok(()), |work| work().map(|_| ()))
    }

    /// The work of noting that the file is complete. `None` where it is not, or where that is noted already.
    fn completed(&self) -> Option<impl FnOnce() -> Result<Option<Complete>> + Send + 'static> {
        let (place, view) = (self.place.clone()?, self.local.view()?);
        let complete = Complete {
            page_size: view.page_size().get(),
            txid: view.txid(),
            commit: view.commit(),
            reach: Known::newest(&view),
            base: Base::of(&view),
        };
        if self.local.missing() > 0 || self.noted.as_ref() == Some(&complete) {
            return None;
        }
        let local = self.local.clone();
        Some(move || {
            if let Err(error) = local.file().sync_data() {
                // What the disk did not take may be gone from memory, too, and be asked for as if nothing had happened.
                local.forget_all();
                place.note(&Meta { url: place.url.clone(), complete: None })?;
                return Err(Error::io("sync", &place.path)(error));
            }
            place.note(&Meta { url: place.url.clone(), complete: Some(complete.clone()) })?;
            Ok(Some(complete))
        })
    }

    /// What of the pages that are there is right in a new view.
    async fn kept(&mut self, view: &Arc<View>) -> Result<Kept> {
        if let Some(found) = self.place.as_ref().and_then(|place| place.found.clone()).filter(|_| !self.judged) {
            return self.resumed(found, view).await;
        }
        let Some(before) = self.local.view() else {
            self.note_nothing().await?;
            return Ok(Kept::Same);
        };
        let last = before.files().last().map(|file| file.id);
        if view.files().iter().any(|file| Some(file.id) == last)
            || continues(&self.replica, &Known::newest(&before), view).await?
        {
            return Ok(Kept::Continued);
        }
        tracing::info!(url = %self.replica.url(), "the replica may have been rewritten: hydrating anew what other files hold now");
        self.note_nothing().await?;
        Ok(Kept::Same)
    }

    /// Whether a file that was found can be gone on with. Otherwise it is emptied.
    async fn resumed(&mut self, found: Meta, view: &Arc<View>) -> Result<Kept> {
        let same = found.url == **self.replica.url();
        if let Some(complete) = found.complete.filter(|complete| same && complete.page_size == view.page_size().get())
            && let Some((kept, txid)) = self.worth(&complete, view).await?
        {
            let (local, sampled, sample) = (self.local.clone(), view.clone(), kept.clone());
            if blocking(move || is_as_noted(&local, complete.commit, &sample, &sampled)).await? {
                let path = self.path().unwrap_or_default();
                tracing::info!(path = %path.display(), %txid, "going on with a hydrated database");
                let complete = Complete { txid, ..complete };
                self.note(Some(complete.clone())).await?;
                (self.noted, self.checked, self.judged) = (Some(complete), Some(Instant::now()), true);
                return Ok(kept);
            }
        }
        self.note(None).await?;
        let (local, path) = (self.local.clone(), self.path().unwrap_or_default());
        blocking(move || local.file().set_len(0).map_err(Error::io("empty", path))).await?;
        self.judged = true;
        Ok(Kept::Same)
    }

    /// What of a file that was complete is good for a view, and at which TXID it may still be called complete.
    async fn worth(&self, complete: &Complete, view: &View) -> Result<Option<(Kept, Txid)>> {
        let (txid, commit) = (complete.txid, complete.commit);
        if txid != Txid::ZERO && continues(&self.replica, &complete.reach, view).await? {
            return Ok(Some((Kept::Since(txid, commit), txid)));
        }
        let base = complete.base.as_ref().filter(|base| base.file == Known::of(&view.files()[0]));
        Ok(base.map(|base| (Kept::Base(base.clone(), commit), Txid::ZERO)))
    }

    /// Notes that pages of this view may be there from now on.
    async fn note_reach(&mut self, view: &Arc<View>) -> Result<()> {
        let Some(noted) = &self.noted else { return Ok(()) };
        let reach = Known::newest(view);
        if noted.reach == reach {
            return Ok(());
        }
        let base = noted.base.as_ref().and_then(|base| base.and(view));
        let complete = Complete { reach, base, ..noted.clone() };
        self.note(Some(complete.clone())).await?;
        self.noted = Some(complete);
        Ok(())
    }

    /// Notes that nothing is known about the file.
    async fn note_nothing(&mut self) -> Result<()> {
        if self.noted.is_some() {
            self.note(None).await?;
            self.noted = None;
        }
        Ok(())
    }

    async fn note(&self, complete: Option<Complete>) -> Result<()> {
        let Some(place) = self.place.clone() else { return Ok(()) };
        blocking(move || place.note(&Meta { url: place.url.clone(), complete })).await
    }

    /// Reads what is wanted. What is wrong with one file does not keep the others away.
    async fn fetch(&self, wanted: Vec<Wanted>) -> Result<()> {
        let parts = wanted.into_iter().flat_map(parts);
        let parts = stream::iter(parts).map(|part| async move {
            let hash = self.part(&part).await;
            (part, hash)
        });
        let mut parts = std::pin::pin!(parts.buffered(AT_ONCE));
        let mut whole: Option<FramesHash> = None;
        let mut wrong = None;
        while let Some((Part { job, last, .. }, hash)) = parts.next().await {
            let file = &job.file;
            let checked = hash.and_then(|hash| {
                let so_far = whole.get_or_insert_with(|| file.hash());
                so_far.append(&hash);
                if last && job.whole { file.verify(so_far).map_err(Error::from) } else { Ok(()) }
            });
            if last {
                whole = None;
            }
            match checked {
                Err(_) if job.failed.load(Ordering::Relaxed) => {}
                Ok(()) if last && job.whole => self.local.trust(file),
                Ok(()) => {}
                Err(error @ Error::Plan(litestream_pageindex::Error::Format { .. })) => {
                    job.failed.store(true, Ordering::Relaxed);
                    let (local, file) = (self.local.clone(), file.clone());
                    blocking(move || {
                        local.distrust(&file);
                        Ok(())
                    })
                    .await?;
                    wrong = wrong.or(Some(error));
                }
                Err(error) => return Err(error),
            }
        }
        wrong.map_or(Ok(()), Err)
    }

    async fn part(&self, part: &Part) -> Result<FramesHash> {
        let Part { job, span, .. } = part;
        if job.failed.load(Ordering::Relaxed) {
            return Ok(job.file.hash());
        }
        let front = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = match job.file.front.get(front(span.bytes.start)..front(span.bytes.end)) {
            Some(bytes) => job.file.front.slice_ref(bytes),
            None => {
                let bytes = self.replica.get_span(&job.file.info, span.bytes.clone()).await?;
                self.counters.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                bytes
            }
        };
        let (job, span, local) = (job.clone(), span.clone(), self.local.clone());
        blocking(move || decode(&job.file, &span, &bytes, &job.frames, &*local)).await
    }
}

/// Cuts what is wanted of a file into parts. Where that is most of it, or where it has been wrong before, all of it is read.
fn parts(wanted: Wanted) -> impl Iterator<Item = Part> {
    let Wanted { file, frames, count, distrusted } = wanted;
    let whole = distrusted || count >= file.index.len() / 4 * 3;
    let spans = if whole { file.spans(SPAN) } else { some_spans(&file, &frames) };
    let job = Arc::new(Job { file, frames, whole, failed: AtomicBool::new(false) });
    let count = spans.len();
    spans.into_iter().enumerate().map(move |(at, span)| Part { job: job.clone(), span, last: at + 1 == count })
}

/// Spans that hold the wanted frames, neighbours together.
fn some_spans(file: &OpenFile, frames: &Bits) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (at, entry) in file.index.entries().enumerate().filter(|(at, _)| frames.contains(*at)) {
        match spans.last_mut() {
            Some(span) if entry.offset <= span.bytes.end + GAP && entry.end() - span.bytes.start <= SPAN => {
                span.frames.end = at + 1;
                span.bytes.end = entry.end();
            }
            _ => spans.push(Span { frames: at..at + 1, bytes: entry.offset..entry.end() }),
        }
    }
    spans
}

/// Whether the file is long enough, and holds what it should where that is known without asking anybody.
fn is_as_noted(local: &Local, commit: Commit, kept: &Kept, view: &View) -> Result<bool> {
    let wrong = |error| Error::io("read", "the hydrated database")(error);
    let file = local.file();
    if file.metadata().map_err(wrong)?.len() < commit.bytes(view.page_size()) {
        return Ok(false);
    }
    let mut sampled = 0;
    let (mut expected, mut found) = (vec![0; view.page_size().bytes()], vec![0; view.page_size().bytes()]);
    for pgno in (1..=commit.0).filter_map(Pgno::new) {
        let Some((number, at)) = view.holder(pgno) else { continue };
        let from = &view.files()[number];
        let frame = from.index.entry(at);
        let Some(bytes) = from.at_hand(&frame).filter(|_| kept.is_sure_of((number, from), pgno)) else { continue };
        from.decompress(&frame, &bytes, &mut expected)?;
        std::os::unix::fs::FileExt::read_exact_at(file, &mut found, pgno.offset(view.page_size())).map_err(wrong)?;
        if expected != found {
            tracing::warn!(pgno = pgno.get(), "the hydrated database is not what is noted about it: hydrating anew");
            return Ok(false);
        }
        sampled += 1;
        if sampled == SAMPLES {
            break;
        }
    }
    Ok(true)
}
