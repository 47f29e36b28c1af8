//! Rebuilding a database from LTX files.
//!
//! Files are opened newest first, many at once. As soon as a file's index is known, it claims the pages that no newer file has claimed, and its frames
//! are decoded while older files still arrive: each file is read once, each page written once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use litestream_pageindex::{
    FramesHash, Listing, OpenFile, Plan, SMALL_FILE, Span, Target, exact, find, open_file, replan_from,
};
use litestream_storage::{FileInfo, Replica};
use ltx::{Checksum, Commit, PageSize, Timestamp, Txid};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::decode::{Bits, decode};
use crate::finish::{Publishing, Unlink, finish};
use crate::{Error, Output, Overwrite, Result};

/// About how many bytes one request for part of a large file reads.
const SPAN: u64 = 2 << 20;
/// How many bytes may be on their way or being decoded at once.
const BUDGET: u64 = 32 << 20;
/// The unit in which the budget is counted, so that it fits a semaphore.
const UNIT: u64 = 4 << 10;

/// A look at a database before it is published. What it returns as an error fails the restore.
pub type Check = dyn Fn(&Path) -> Result<(), String> + Send + Sync;

/// How to restore.
#[derive(Clone)]
pub struct RestoreOptions {
    /// To when. Default: the latest.
    pub target: Target,
    /// What to do with a database that is there already. Default: refuse.
    pub overwrite: Overwrite,
    /// How many requests may run at once. Default: 128.
    pub parallelism: usize,
    /// A last look at the database, under a temporary name, before it is published.
    pub check: Option<Arc<Check>>,
    /// Told how far the restore is, from whatever thread.
    pub progress: Arc<dyn Fn(Progress) + Send + Sync>,
    /// Told when it is too late to give the restore up.
    pub publishing: Publishing,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            target: Target::Latest,
            overwrite: Overwrite::Never,
            parallelism: 128,
            check: None,
            progress: Arc::new(|_| {}),
            publishing: Publishing::default(),
        }
    }
}

impl std::fmt::Debug for RestoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestoreOptions")
            .field("target", &self.target)
            .field("overwrite", &self.overwrite)
            .field("parallelism", &self.parallelism)
            .finish_non_exhaustive()
    }
}

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of files that have been decoded and checked.
    pub done: u64,
    /// Bytes of all files of the plan.
    pub total: u64,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The TXID.
    pub txid: Txid,
    /// When its last transaction was captured.
    pub time: Timestamp,
    /// The size of the database's pages.
    pub page_size: PageSize,
    /// The database's size in pages.
    pub commit: Commit,
    /// How many files were read.
    pub files: usize,
    /// How many bytes they have.
    pub bytes: u64,
}

/// Rebuilds the database of a replica at `path`.
///
/// Nothing but a temporary file beside `path` exists until the database is complete, every file's checksum has been verified, the check has passed and
/// everything is synced; then it appears at once. Files that vanish meanwhile lead to a new plan for the same TXID.
///
/// A restore that is dropped ends the same way, unless [`RestoreOptions::publishing`] says that it has begun to put the database in place.
///
/// Memory stays within about 100 MiB and a few bytes a page, whatever the database's size.
///
/// # Errors
/// Whatever stands in the way; nothing is left at `path` then, and what was there still is.
pub async fn restore(replica: &Replica, path: &Path, options: &RestoreOptions) -> Result<Restored> {
    Output::check(path, options.overwrite)?;
    let (plan, listing) = find(replica, options.target).await?;
    restore_plan(replica, plan, listing, path, options).await
}

/// Like [`restore`], for a plan that has been made already; the options' target is not looked at.
///
/// # Errors
/// As [`restore`].
pub async fn restore_plan(
    replica: &Replica,
    plan: Plan,
    listing: Listing,
    path: &Path,
    options: &RestoreOptions,
) -> Result<Restored> {
    Output::check(path, options.overwrite)?;
    replan_from(replica, plan, listing, |plan, listing| async move {
        let plan = exact(replica, plan, listing).await?;
        let Fetched { output, unlink, restored, .. } = fetch(replica, &plan, path, options).await?;
        finish(output, unlink, options).await?;
        Ok(restored)
    })
    .await
}

/// What the files of a plan hold together, under a temporary name beside the path that it is for: every file verified, every page in its newest version.
pub(crate) struct Fetched {
    pub(crate) output: Output,
    pub(crate) unlink: Unlink,
    pub(crate) restored: Restored,
    /// The pages that there are, by slot.
    pub(crate) pages: Bits,
    /// The last file and its checksum.
    pub(crate) last: (FileInfo, Checksum),
}

/// Reads the files of a plan, or of part of one.
pub(crate) async fn fetch(replica: &Replica, plan: &Plan, path: &Path, options: &RestoreOptions) -> Result<Fetched> {
    Restore::new(replica, path, plan, options)?.run(plan).await
}

/// One attempt to carry out a plan.
struct Restore {
    replica: Replica,
    output: Arc<Output>,
    budget: Arc<Semaphore>,
    meter: Arc<Meter>,
    options: RestoreOptions,
}

struct Meter {
    done: AtomicU64,
    total: u64,
    tell: Arc<dyn Fn(Progress) + Send + Sync>,
}

impl Meter {
    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.tell)(Progress { done, total: self.total });
    }
}

/// A file whose pages are known, with the memory it takes while its bytes are held.
struct Opened {
    file: OpenFile,
    permit: OwnedSemaphorePermit,
}

/// What is known once the newest file is open, and the pages that have been found so far.
struct Begun {
    restored: Restored,
    claimed: Bits,
    last: (FileInfo, Checksum),
}

impl Restore {
    fn new(replica: &Replica, path: &Path, plan: &Plan, options: &RestoreOptions) -> Result<Self> {
        let meter = Meter { done: AtomicU64::new(0), total: plan.size(), tell: options.progress.clone() };
        meter.add(0);
        Ok(Self {
            replica: replica.clone(),
            output: Arc::new(Output::create(path, options.overwrite)?),
            budget: Arc::new(Semaphore::new((BUDGET / UNIT) as usize)),
            meter: Arc::new(meter),
            options: options.clone(),
        })
    }

    async fn run(self, plan: &Plan) -> Result<Fetched> {
        let this = Arc::new(self);
        let unlink = Unlink::new(&this.output);
        let mut workers: JoinSet<Result<()>> = JoinSet::new();
        let Begun { restored, claimed, last } = this.clone().read_files(plan, &mut workers).await?;
        while let Some(done) = workers.join_next().await {
            joined(done)??;
        }
        let Some(Self { output, .. }) = Arc::into_inner(this) else {
            return Err(Error::Worker("a worker outlived its work".into()));
        };
        let Some(output) = Arc::into_inner(output) else {
            return Err(Error::Worker("a worker still writes".into()));
        };
        Ok(Fetched { output, unlink, restored, pages: claimed, last })
    }

    /// Opens all files, newest first, and sets workers to decode them.
    async fn read_files(self: Arc<Self>, plan: &Plan, workers: &mut JoinSet<Result<()>>) -> Result<Begun> {
        let newest_first = stream::iter(plan.files.iter().rev().cloned());
        let opened = newest_first.map(|info| self.open(info)).buffered(self.options.parallelism.max(1));
        let mut opened = std::pin::pin!(opened);
        let mut state: Option<Begun> = None;
        while let Some(Opened { file, permit }) = opened.try_next().await? {
            let Begun { restored, claimed, .. } = match &mut state {
                Some(state) => state,
                None => state.insert(self.begin(plan, &file)?),
            };
            if file.header.page_size != restored.page_size {
                return Err(Error::Plan(litestream_pageindex::Error::PageSizeChanged {
                    key: file.key().clone(),
                    before: file.header.page_size,
                    after: restored.page_size,
                }));
            }
            let mut owned = Bits::new(file.index.len());
            for (at, entry) in file.index.entries().enumerate() {
                if restored.commit.contains(entry.pgno) && claimed.insert(entry.pgno.slot()) {
                    owned.insert(at);
                }
            }
            let this = self.clone();
            workers.spawn(async move {
                if file.is_whole() {
                    this.decode_whole(file, owned, permit).await
                } else {
                    this.decode_spans(file, owned, permit).await
                }
            });
            // A worker that has failed should not be found out about only at the end.
            while let Some(done) = workers.try_join_next() {
                joined(done)??;
            }
        }
        let Some(begun) = state else {
            return Err(Error::Worker("the plan has no files".into()));
        };
        let Begun { restored, claimed, .. } = &begun;
        let missing = restored.commit.stored_pages(restored.page_size) as usize - claimed.count();
        // Files that go on from a state hold only what has changed since.
        if missing > 0 && plan.files.first().is_some_and(|first| first.name.is_snapshot()) {
            tracing::warn!(missing, txid = %restored.txid, "no file of the replica holds some pages; they are filled with zeros");
        }
        Ok(begun)
    }

    /// The newest file tells how large the database is.
    fn begin(&self, plan: &Plan, newest: &OpenFile) -> Result<Begun> {
        let (page_size, commit) = (newest.header.page_size, newest.header.commit);
        if commit == Commit(0) {
            return Err(Error::Plan(litestream_pageindex::Error::Deleted { key: newest.key().clone() }));
        }
        self.output.set_len(commit.bytes(page_size))?;
        let restored = Restored {
            txid: plan.txid,
            time: newest.header.timestamp,
            page_size,
            commit,
            files: plan.files.len(),
            bytes: plan.size(),
        };
        let last = (newest.info.clone(), newest.trailer.file_checksum);
        Ok(Begun { restored, claimed: Bits::new(commit.0 as usize), last })
    }

    async fn open(&self, info: FileInfo) -> Result<Opened> {
        let permit = self.reserve(info.size().min(SMALL_FILE)).await?;
        Ok(Opened { file: open_file(&self.replica, &info).await?, permit })
    }

    /// Waits until so many more bytes may be held. Requests are served in order, so the file that is needed next always gets its share.
    async fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit> {
        let units = bytes.div_ceil(UNIT).clamp(1, BUDGET / UNIT) as u32;
        self.budget.clone().acquire_many_owned(units).await.map_err(|closed| Error::Worker(closed.to_string()))
    }

    async fn decode_whole(
        self: Arc<Self>,
        mut file: OpenFile,
        owned: Bits,
        permit: OwnedSemaphorePermit,
    ) -> Result<()> {
        blocking(move || {
            let frames = file.layout.frames_start()..file.layout.frames_end();
            let span = Span { frames: 0..file.index.len(), bytes: frames.clone() };
            let front = std::mem::take(&mut file.front);
            let hash = decode(&file, &span, &front[frames.start as usize..frames.end as usize], &owned, &*self.output)?;
            file.verify(&hash)?;
            self.meter.add(file.info.size());
            drop(permit);
            Ok(())
        })
        .await
    }

    async fn decode_spans(
        self: Arc<Self>,
        mut file: OpenFile,
        owned: Bits,
        permit: OwnedSemaphorePermit,
    ) -> Result<()> {
        file.front = Bytes::new();
        drop(permit);
        let (file, owned) = (Arc::new(file), Arc::new(owned));
        let spans = file.spans(SPAN);
        let hashes = stream::iter(spans)
            .map(|span| self.clone().decode_span(file.clone(), owned.clone(), span))
            .buffered(self.options.parallelism.max(1));
        let hash = hashes.try_fold(file.hash(), |mut hash, part| async move {
            hash.append(&part);
            Ok(hash)
        });
        file.verify(&hash.await?)?;
        let frames = file.layout.frames_end() - file.layout.frames_start();
        self.meter.add(file.info.size() - frames);
        Ok(())
    }

    async fn decode_span(self: Arc<Self>, file: Arc<OpenFile>, owned: Arc<Bits>, span: Span) -> Result<FramesHash> {
        let permit = self.reserve(span.bytes.end - span.bytes.start).await?;
        let bytes = self.replica.get_span(&file.info, span.bytes.clone()).await?;
        blocking(move || {
            let hash = decode(&file, &span, &bytes, &owned, &*self.output)?;
            self.meter.add(bytes.len() as u64);
            drop((bytes, permit));
            Ok(hash)
        })
        .await
    }
}

fn joined<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T> {
    outcome.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => Error::Worker(error.to_string()),
    })
}

/// Runs what blocks on a thread where it may.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    joined(tokio::task::spawn_blocking(work).await)?
}
