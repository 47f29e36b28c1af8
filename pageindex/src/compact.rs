//! Merging files: many small ones into one, and all of them into a snapshot.
//!
//! A merge never compresses anything again: it copies frames, the newest of each page. It does decompress and hash every frame of every
//! input, those that it leaves out too, so that damage is found where it lies and is not carried into a file with a good checksum.
//!
//! The indexes of all inputs, merged by page number, cut the work into segments of a few MiB. Segments are fetched, checked and encoded side
//! by side, and joined in order; the CRCs of an input's stretches are combined. What lies in memory is the indexes, small inputs as they are
//! (up to [`crate::SMALL_FILE`] each), and the segments under way.
//!
//! This module also knows *what* to merge: [`next_inputs`], [`snapshot_inputs`]. When to do so is the caller's business.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use litestream_storage::{Body, FileInfo, Level, Replica};
use ltx::{Commit, ContentHash, Encoder, Frame, Header, PageProblem, Part};

use crate::view::same_page_size;
use crate::{Cutoff, Error, Listing, OpenFile, Plan, Result, Target, open_file};

/// How many inputs are opened at once.
const OPEN_AT_ONCE: usize = 256;
/// How many inputs one segment reads from at once.
const READ_AT_ONCE: usize = 16;
/// What a segment should read from each large input on average, so that a request is worth its round trip.
const WORTH_A_REQUEST: u64 = 64 * 1024;
/// Up to where segments grow for that.
const MAX_SEGMENT: u64 = 8 << 20;

/// What follows the last frame of a file.
const END_MARK: [u8; ltx::FRAME_HEADER_LEN] = [0; ltx::FRAME_HEADER_LEN];

/// Called with the bytes of input that are done so far; at the end these are all.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// How to merge.
#[derive(Clone)]
pub struct MergeOptions {
    /// Told how far the merge is. Default: nobody.
    pub progress: Option<Progress>,
    /// Bytes of input in one piece of work. Default 2 MiB; more where many large inputs are merged.
    pub segment: u64,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self { progress: None, segment: 2 << 20 }
    }
}

impl fmt::Debug for MergeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MergeOptions").field("segment", &self.segment).finish_non_exhaustive()
    }
}

/// What a merge has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The new file's header.
    pub header: Header,
    /// The new file's length in bytes.
    pub size: u64,
    /// Bytes of all inputs together.
    pub input_bytes: u64,
    /// How many pages the new file holds.
    pub pages: u64,
}

/// The files of the level below that belong into the next file of `level`, oldest first: all that reach beyond what `level` has, up to the
/// first gap. None, where there is nothing new, and for levels 0 and 9, which are not made this way.
///
/// The first one may begin before the level's end: files may straddle. Where `level` is still empty, it begins with the oldest file below.
/// Give it a whole listing ([`Listing::full`]): where files were left out of it, it stops as at a gap.
#[must_use]
pub fn next_inputs(listing: &Listing, level: Level) -> Vec<FileInfo> {
    let below = level.get().checked_sub(1).and_then(Level::new).filter(|_| level != Level::SNAPSHOT);
    let files = below.map_or(&[][..], |below| listing.level(below));
    let Some(first) = files.first() else { return Vec::new() };
    let mut reached = listing.reach(level).unwrap_or_else(|| first.name.min.previous());
    let mut inputs = Vec::new();
    for file in files {
        if file.name.max <= reached {
            continue;
        }
        if file.name.min > reached.next() {
            tracing::debug!(level = level.get(), %reached, next = %file.name.min, "compaction stops at a gap");
            break;
        }
        reached = file.name.max;
        inputs.push(file.clone());
    }
    inputs
}

/// The plan to merge into a new snapshot, or `None` where the newest snapshot holds all there is.
///
/// # Errors
/// As [`Plan::new`] for the newest state.
pub fn snapshot_inputs(replica: &Replica, listing: &Listing) -> Result<Option<Plan>> {
    let plan = Plan::new(replica, listing, Target::Latest, Cutoff::NONE)?;
    let snapshots = listing.level(Level::SNAPSHOT).iter().filter(|file| file.name.is_snapshot());
    let newest = snapshots.map(|file| file.name.max).max();
    Ok((newest < Some(plan.txid)).then_some(plan))
}

/// Makes the next file of `level` and puts it into the replica. `None` where there is nothing to do, or another compactor was faster.
///
/// # Errors
/// As [`merge`], and as the store says. Where [`Error::wants_new_plan`], an input has vanished: list again.
pub async fn compact_into(
    replica: &Replica,
    listing: &Listing,
    level: Level,
    scratch_dir: &Path,
    options: &MergeOptions,
) -> Result<Option<FileInfo>> {
    let inputs = next_inputs(listing, level);
    if inputs.is_empty() {
        return Ok(None);
    }
    merge_into(replica, &inputs, level, scratch_dir, options).await
}

/// Makes a snapshot of the newest state out of the replica's own files and puts it into the replica. `None` where the newest snapshot holds
/// all there is, or another compactor was faster.
///
/// # Errors
/// As [`snapshot_inputs`], as [`merge`], and as the store says. Where [`Error::wants_new_plan`], an input has vanished: list again.
pub async fn snapshot(
    replica: &Replica,
    listing: &Listing,
    scratch_dir: &Path,
    options: &MergeOptions,
) -> Result<Option<FileInfo>> {
    match snapshot_inputs(replica, listing)? {
        Some(plan) => merge_into(replica, &plan.files, Level::SNAPSHOT, scratch_dir, options).await,
        None => Ok(None),
    }
}

async fn merge_into(
    replica: &Replica,
    inputs: &[FileInfo],
    level: Level,
    scratch_dir: &Path,
    options: &MergeOptions,
) -> Result<Option<FileInfo>> {
    // The folder and what is in it go when this ends, however it ends.
    let scratch = tempfile::Builder::new().prefix(".merge-").tempdir_in(scratch_dir);
    let scratch = scratch.map_err(|error| Error::io("create a folder in", scratch_dir, error))?;
    let path = scratch.path().join("merged.ltx");
    let merged = Box::pin(merge(replica, inputs, &path, options)).await?;
    let name = merged.header.name();
    let body = Body::File { path, len: merged.size };
    match replica.put_file(level, name, body, merged.header.timestamp).await {
        Ok(file) => {
            let Merged { size, input_bytes, pages, .. } = merged;
            tracing::info!(key = file.key(), inputs = inputs.len(), input_bytes, size, pages, "compacted");
            Ok(Some(file))
        }
        Err(litestream_storage::Error::AlreadyExists { key, .. }) => {
            tracing::info!(%key, "another compactor was faster");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Merges files that follow one another, oldest first, into one new local file at `output`, which must not exist yet. It has been synced to
/// disk when this returns.
///
/// Of each page the newest frame is taken; pages beyond the last file's commit are dropped. The new file begins with the first TXID of the
/// first file, and has the last TXID, commit and time of the last one; it carries no database checksums, WAL fields or node id. Every frame
/// of every input has been decompressed, and every input's checksum compared.
///
/// # Errors
/// [`Error::NothingToMerge`], [`Error::NonContiguous`], [`Error::OutOfOrder`], [`Error::PageSizeChanged`], [`Error::Deleted`] for files that
/// do not go together; [`Error::Format`] for a damaged one; [`Error::Merge`] where the result would not be a valid file; [`Error::Io`], and as
/// the store says. There is no output file then, nor where the future is dropped.
pub async fn merge(replica: &Replica, files: &[FileInfo], output: &Path, options: &MergeOptions) -> Result<Merged> {
    check_order(replica, files)?;
    let opened = files.iter().cloned().map(|file| {
        let replica = replica.clone();
        async move { open_file(&replica, &file).await }
    });
    let inputs: Arc<[OpenFile]> = stream::iter(opened).buffered(OPEN_AT_ONCE).try_collect::<Vec<_>>().await?.into();
    let header = merged_header(replica, &inputs)?;
    let input_bytes = files.iter().map(FileInfo::size).sum();
    let failed = |source| Error::merge(files, output, source);

    let (file, guard) = OutputGuard::create(output)?;
    let mut encoder = Encoder::new(file, header).map_err(failed)?;
    let mut hashes = vec![ContentHash::default(); inputs.len()];
    let frame_bytes = |input: &OpenFile| input.layout.frames_end() - input.layout.frames_start();
    let mut done: u64 = input_bytes - inputs.iter().map(frame_bytes).sum::<u64>();
    let mut pages = 0;

    let work = Segments::new(inputs.clone(), header.commit, options.segment).map(|segment| {
        let (replica, inputs) = (replica.clone(), inputs.clone());
        async move { segment.run(&replica, inputs).await }
    });
    let mut work = stream::iter(work).buffered(concurrency());
    while let Some(checked) = work.try_next().await? {
        for (input, hash) in &checked.hashes {
            hashes[*input].append(hash);
        }
        pages += checked.pages;
        done += checked.bytes;
        let part = checked.part;
        let (returned, outcome) = blocking(move || {
            let outcome = encoder.append(&part);
            Ok((encoder, outcome))
        })
        .await?;
        outcome.map_err(failed)?;
        encoder = returned;
        if let Some(progress) = &options.progress {
            progress(done);
        }
    }
    drop(work);
    for (input, hash) in inputs.iter().zip(&hashes) {
        if input.index.is_empty() {
            // No segment has read it; where there are no frames, this reads the end mark.
            read(replica, input, input.layout.frames_start()..input.layout.frames_end()).await?;
        }
        input.verify(hash)?;
    }
    let path = output.to_owned();
    let finished = blocking(move || {
        let io = |error| Error::io("write", &path, error);
        match encoder.finish() {
            Ok((file, _)) => {
                file.sync_all().map_err(io)?;
                Ok(Ok(file.metadata().map_err(io)?.len()))
            }
            Err(error) => Ok(Err(error)),
        }
    });
    let size = finished.await?.map_err(failed)?;
    guard.keep();
    if let (0, Some(progress)) = (pages, &options.progress) {
        progress(done);
    }
    Ok(Merged { header, size, input_bytes, pages })
}

/// Each file must go on where the one before ends, or before that, and reach further.
fn check_order(replica: &Replica, files: &[FileInfo]) -> Result<()> {
    if files.is_empty() {
        return Err(Error::NothingToMerge { url: replica.url().clone() });
    }
    for pair in files.windows(2) {
        let [before, file] = pair else { continue };
        if file.name.min > before.name.max.next() {
            let (have, next) = (before.name.max, file.name.min);
            return Err(Error::NonContiguous { url: replica.url().clone(), have, next });
        }
        if file.name.max <= before.name.max {
            let (key, before) = (file.object.key.clone(), before.object.key.clone());
            return Err(Error::OutOfOrder { key, before });
        }
    }
    Ok(())
}

fn merged_header(replica: &Replica, inputs: &[OpenFile]) -> Result<Header> {
    let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else {
        return Err(Error::NothingToMerge { url: replica.url().clone() });
    };
    for input in inputs {
        same_page_size(first.header.page_size, input)?;
    }
    let Header { commit, max_txid, timestamp, page_size, .. } = last.header;
    if commit == Commit(0) {
        return Err(Error::Deleted { key: last.key().clone() });
    }
    Ok(Header::new(page_size, commit, first.header.min_txid, max_txid, timestamp))
}

/// A little more than there are cores: some segments wait for the network.
fn concurrency() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get) + 2
}

/// Frames of all inputs, ascending by page: one piece of work.
struct Segment {
    frames: Vec<Indexed>,
    /// What is needed of which input: its frames of a segment lie one behind the other.
    spans: Vec<(usize, Range<u64>)>,
}

/// A frame as the index has it.
struct Indexed {
    pgno: u32,
    /// Which span it lies in.
    span: usize,
    /// Where in the span.
    at: Range<usize>,
    /// Whether it goes into the output.
    newest: bool,
}

/// A segment whose frames are what the indexes say.
struct Checked {
    part: Part,
    /// The hash of each input's frames.
    hashes: Vec<(usize, ContentHash)>,
    pages: u64,
    bytes: u64,
}

/// Merges the indexes of all inputs into segments.
struct Segments {
    inputs: Arc<[OpenFile]>,
    commit: Commit,
    budget: u64,
    /// Each input's next page; of one page's frames the newest comes first.
    heads: BinaryHeap<Reverse<(u32, Reverse<usize>)>>,
    /// Each input's next place.
    places: Vec<usize>,
    /// The page before.
    last: u32,
}

impl Segments {
    fn new(inputs: Arc<[OpenFile]>, commit: Commit, segment: u64) -> Self {
        let large = inputs.iter().filter(|input| !input.is_whole()).count() as u64;
        let budget = segment.max((large * WORTH_A_REQUEST).min(MAX_SEGMENT));
        let mut segments =
            Self { commit, budget, heads: BinaryHeap::new(), places: vec![0; inputs.len()], last: 0, inputs };
        for input in 0..segments.inputs.len() {
            segments.push_head(input);
        }
        segments
    }

    fn push_head(&mut self, input: usize) {
        let (index, place) = (&self.inputs[input].index, self.places[input]);
        if place < index.len() {
            self.heads.push(Reverse((index.entry(place).pgno.get(), Reverse(input))));
        }
    }
}

impl Iterator for Segments {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        let mut segment = Segment { frames: Vec::new(), spans: Vec::new() };
        let mut span_of = HashMap::new();
        let mut bytes = 0;
        while bytes < self.budget
            && let Some(Reverse((pgno, Reverse(input)))) = self.heads.pop()
        {
            let entry = self.inputs[input].index.entry(self.places[input]);
            let span = *span_of.entry(input).or_insert_with(|| {
                segment.spans.push((input, entry.offset..entry.offset));
                segment.spans.len() - 1
            });
            let range = &mut segment.spans[span].1;
            let start = (entry.offset - range.start) as usize;
            range.end = entry.end();
            let newest = pgno != self.last && self.commit.contains(entry.pgno);
            segment.frames.push(Indexed { pgno, span, at: start..start + entry.size as usize, newest });
            self.last = pgno;
            bytes += u64::from(entry.size);
            self.places[input] += 1;
            self.push_head(input);
        }
        (!segment.frames.is_empty()).then_some(segment)
    }
}

impl Segment {
    /// Fetches, checks and encodes.
    async fn run(self, replica: &Replica, inputs: Arc<[OpenFile]>) -> Result<Checked> {
        let reads = self.spans.clone().into_iter().map(|(input, span)| {
            let inputs = inputs.clone();
            async move { read(replica, &inputs[input], span).await }
        });
        let spans: Vec<Bytes> = stream::iter(reads).buffered(READ_AT_ONCE).try_collect().await?;
        blocking(move || self.check(&inputs, &spans)).await
    }

    fn check(&self, inputs: &[OpenFile], spans: &[Bytes]) -> Result<Checked> {
        let mut hashes: Vec<_> = self.spans.iter().map(|(input, _)| (*input, ContentHash::default())).collect();
        let mut checked = Checked { part: Part::default(), hashes: Vec::new(), pages: 0, bytes: 0 };
        let mut page = Vec::new();
        for indexed in &self.frames {
            let (input, hash) = &mut hashes[indexed.span];
            let input = &inputs[*input];
            page.resize(input.header.page_size.bytes(), 0);
            let bytes = spans[indexed.span].get(indexed.at.clone()).unwrap_or_default();
            let copied = indexed.check(input, bytes, &mut page).and_then(|frame| {
                frame.hash_into(&page, hash);
                if indexed.newest { checked.part.frame(&frame, &page) } else { Ok(()) }
            });
            copied.map_err(|source| Error::format(input.key(), source))?;
            checked.pages += u64::from(indexed.newest);
            checked.bytes += indexed.at.len() as u64;
        }
        checked.hashes = hashes;
        Ok(checked)
    }
}

impl Indexed {
    /// The frame must be just the one that the index names.
    fn check<'a>(&self, input: &OpenFile, bytes: &'a [u8], page: &mut [u8]) -> ltx::Result<Frame<'a>> {
        let frame = Frame::parse(bytes, input.header.page_size)?;
        if frame.pgno().get() != self.pgno || frame.bytes().len() != self.at.len() {
            return Err(ltx::Error::Page { pgno: self.pgno, problem: PageProblem::NotIndexed });
        }
        frame.decompress_into(page)?;
        Ok(frame)
    }
}

/// A span of an input's frames, from memory where it came along with the header.
///
/// With the last frames comes the end mark behind them: [`OpenFile::verify`] hashes what it must be, and never sees what it is.
async fn read(replica: &Replica, input: &OpenFile, span: Range<u64>) -> Result<Bytes> {
    let frames = (span.end - span.start) as usize;
    let mark = if span.end == input.layout.frames_end() { END_MARK.len() as u64 } else { 0 };
    let span = span.start..span.end + mark;
    let bytes = if span.end <= input.front.len() as u64 {
        input.front.slice(span.start as usize..span.end as usize)
    } else {
        replica.get_span(&input.info, span).await?
    };
    let behind = bytes.get(frames..).unwrap_or_default();
    if behind != &END_MARK[..mark as usize] {
        return Err(Error::format(input.key(), ltx::Error::Index("the frames do not end where it says")));
    }
    Ok(bytes)
}

/// Removes the output unless told to keep it.
struct OutputGuard(Option<PathBuf>);

impl OutputGuard {
    fn create(path: &Path) -> Result<(File, Self)> {
        let file = File::create_new(path).map_err(|error| Error::io("create", path, error))?;
        Ok((file, Self(Some(path.to_owned()))))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for OutputGuard {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove an unfinished file");
        }
    }
}

/// Runs what computes or blocks on a thread where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => {
                Err(Error::Io { operation: "finish merging".to_owned(), source: std::io::Error::other(error) })
            }
        },
    }
}
