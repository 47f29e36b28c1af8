//! Merging files that follow one another into one.
//!
//! A merge never compresses anything again: it copies frames, the newest of each page. It does decompress and hash every frame of every
//! input, those that it leaves out too, so that damage is found where it lies and is not carried into a file with a good checksum.
//!
//! The inputs' indexes tell which frames are kept and, by their sizes, where each of them will lie in the output. So inputs are read once, in
//! large pieces, several side by side and in no particular order of pages; each kept frame is written straight to its place. Its CRC is
//! noted, and the output's checksum is combined from these at the end. What lies in memory is the indexes, some 20 bytes for each page of the
//! output, small inputs as they are (up to [`KEPT_WHOLE`] together), and the pieces under way.

use std::cmp::Reverse;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use litestream_storage::{FileInfo, Replica};
use ltx::{Assembly, Commit, FRAME_HEADER_LEN, FrameHash, Header, IndexEntry, PageProblem, Pgno};
use tokio::sync::Semaphore;

use crate::view::same_page_size;
use crate::{Error, FramesHash, OpenFile, PackedIndex, PackedIndexBuilder, Result, Span, open_file};

/// How many inputs are opened at once.
const OPEN_AT_ONCE: usize = 256;
/// How many jobs are being fetched, checked or waited for at once.
const JOBS_AT_ONCE: usize = 16;
/// How many pieces of one job are fetched at once.
const READ_AT_ONCE: usize = 32;
/// How many bytes of small inputs stay in memory between reading their indexes and copying their frames; the others are read again.
const KEPT_WHOLE: u64 = 64 << 20;

/// What follows the last frame of a file.
const END_MARK: [u8; FRAME_HEADER_LEN] = [0; FRAME_HEADER_LEN];

/// Called with the bytes of input that are done so far; at the end these are all.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// How to merge.
#[derive(Clone)]
pub struct MergeOptions {
    /// Told how far the merge is. Default: nobody.
    pub progress: Option<Progress>,
    /// About how many bytes of input make one piece of work. Default 2 MiB.
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

/// Merges files that follow one another, oldest first, into one new local file at `output`, which must not exist yet. It has not been
/// synced to disk: mostly it is about to be uploaded.
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
    let inputs: Arc<[Input]> = open(replica, files).await?.into();
    let header = merged_header(replica, &inputs)?;
    let input_bytes = files.iter().map(FileInfo::size).sum();
    let failed = |source| Error::merge(files, output, source);
    let mut assembly = Assembly::new(header).map_err(failed)?;

    let planned = inputs.clone();
    let kept = Arc::new(blocking(move || Ok(Kept::new(&planned, header))).await?);
    let (file, guard) = OutputGuard::create(output)?;
    let output = Arc::new(Output { file, path: output.to_owned() });
    let mut hashes: Vec<FramesHash> = inputs.iter().map(|input| input.file.hash()).collect();
    let frame_bytes = |input: &Input| input.file.layout.frames_end() - input.file.layout.frames_start();
    let mut done: u64 = input_bytes - inputs.iter().map(frame_bytes).sum::<u64>();
    let tell = |done| {
        if let Some(progress) = &options.progress {
            progress(done);
        }
    };
    tell(done);

    let cores = Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(2, std::num::NonZero::get)));
    let jobs = jobs(&inputs, options.segment).map(|job| {
        let work = Work { inputs: inputs.clone(), kept: kept.clone(), output: output.clone(), cores: cores.clone() };
        let replica = replica.clone();
        async move { work.run(&replica, job).await }
    });
    let mut jobs = stream::iter(jobs).buffered(JOBS_AT_ONCE);
    while let Some((pieces, bytes)) = jobs.try_next().await? {
        for (input, hash) in &pieces {
            hashes[*input].append(hash);
        }
        done += bytes;
        tell(done);
    }
    drop(jobs);
    for (input, hash) in inputs.iter().zip(&hashes) {
        input.file.verify(hash)?;
    }
    let finished = blocking(move || {
        for (at, entry) in kept.index.entries().enumerate() {
            let hash = FrameHash(kept.hashes[at].load(Ordering::Relaxed));
            if let Err(error) = assembly.frame(entry.pgno, entry.size, hash) {
                return Ok(Err(error));
            }
        }
        let (front, end, tail) = match assembly.finish() {
            Ok(parts) => parts,
            Err(error) => return Ok(Err(error)),
        };
        output.write(&front, 0)?;
        output.write(&tail, end)?;
        Ok(Ok((end + tail.len() as u64, kept.index.len() as u64)))
    });
    let (size, pages) = finished.await?.map_err(failed)?;
    guard.keep();
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

fn merged_header(replica: &Replica, inputs: &[Input]) -> Result<Header> {
    let (Some(Input { file: first, .. }), Some(Input { file: last, .. })) = (inputs.first(), inputs.last()) else {
        return Err(Error::NothingToMerge { url: replica.url().clone() });
    };
    for input in inputs {
        same_page_size(first.header.page_size, &input.file)?;
    }
    let Header { commit, max_txid, timestamp, page_size, .. } = last.header;
    if commit == Commit(0) {
        return Err(Error::Deleted { key: last.key().clone() });
    }
    Ok(Header::new(page_size, commit, first.header.min_txid, max_txid, timestamp))
}

/// A file to merge.
struct Input {
    file: OpenFile,
    /// Whether its frames are of the kind that only Litestream before 0.5.16 wrote.
    legacy: bool,
}

async fn open(replica: &Replica, files: &[FileInfo]) -> Result<Vec<Input>> {
    let opened = files.iter().cloned().map(|file| {
        let replica = replica.clone();
        async move { open_file(&replica, &file).await }
    });
    let mut opened = stream::iter(opened).buffered(OPEN_AT_ONCE);
    let (mut inputs, mut held) = (Vec::with_capacity(files.len()), 0);
    while let Some(mut file) = opened.try_next().await? {
        let legacy = file.starts_with_legacy_frame();
        held += file.front.len() as u64;
        if !file.is_whole() || held > KEPT_WHOLE {
            held -= file.front.len() as u64;
            file.front = Bytes::new();
        }
        inputs.push(Input { file, legacy });
    }
    Ok(inputs)
}

/// The output's frames.
struct Kept {
    /// Where they will lie.
    index: PackedIndex,
    /// Which input each comes from.
    owners: Box<[u32]>,
    /// The CRC of each, once it has been copied.
    hashes: Box<[AtomicU64]>,
}

impl Kept {
    /// Merges the indexes of all inputs: of each page the newest frame.
    fn new(inputs: &[Input], header: Header) -> Self {
        // Of one page's frames the newest input's comes first. Inputs are sorted already, which the sort makes use of.
        let mut frames: Vec<(u32, Reverse<u32>, u32)> = Vec::new();
        for (number, input) in (0..).zip(inputs) {
            let entries = input.file.index.entries().filter(|entry| header.commit.contains(entry.pgno));
            frames.extend(entries.map(|entry| {
                let size = ltx::copied_len(&entry, input.legacy, header.page_size);
                (entry.pgno.get(), Reverse(number), size)
            }));
        }
        frames.sort();
        frames.dedup_by_key(|(pgno, ..)| *pgno);
        let mut index = PackedIndexBuilder::new(header.page_size);
        let mut owners = Vec::with_capacity(frames.len());
        for (pgno, Reverse(number), size) in frames {
            let Some(pgno) = Pgno::new(pgno) else { continue };
            index.push(IndexEntry { pgno, offset: 0, size });
            owners.push(number);
        }
        let hashes = owners.iter().map(|_| AtomicU64::new(0)).collect();
        Self { index: index.finish(), owners: owners.into(), hashes }
    }

    /// The place in the output of a frame of this input, unless a newer input holds the page. `after` is the place of the frame before it:
    /// mostly the one behind that.
    fn place(&self, input: usize, pgno: Pgno, after: Option<usize>) -> Option<usize> {
        let guess = after.map(|at| at + 1).filter(|at| *at < self.index.len() && self.index.pgno(*at) == pgno);
        guess.or_else(|| self.index.position(pgno)).filter(|at| self.owners[*at] as usize == input)
    }
}

/// Some frames of one input.
struct Piece {
    input: usize,
    span: Span,
}

/// Cuts the inputs into pieces of about `size` bytes, and gathers small ones into jobs of about that size.
fn jobs(inputs: &[Input], size: u64) -> impl Iterator<Item = Vec<Piece>> + use<> {
    let pieces = inputs.iter().enumerate().flat_map(|(input, opened)| {
        let mut spans = opened.file.spans(size);
        if spans.is_empty() {
            // Where there are no frames, the end mark is still to be read.
            let start = opened.file.layout.frames_start();
            spans.push(Span { frames: 0..0, bytes: start..start });
        }
        spans.into_iter().map(move |span| Piece { input, span })
    });
    let (mut jobs, mut bytes) = (Vec::<Vec<Piece>>::new(), u64::MAX);
    for piece in pieces {
        let len = piece.span.bytes.end - piece.span.bytes.start;
        if bytes.saturating_add(len) > size {
            jobs.push(Vec::new());
            bytes = 0;
        }
        bytes += len;
        if let Some(job) = jobs.last_mut() {
            job.push(piece);
        }
    }
    jobs.into_iter()
}

/// What every job needs.
struct Work {
    inputs: Arc<[Input]>,
    kept: Arc<Kept>,
    output: Arc<Output>,
    cores: Arc<Semaphore>,
}

impl Work {
    /// Fetches the pieces of a job, checks every frame, and copies those that are kept. Returns the hashes of the pieces and the bytes of
    /// all frames.
    async fn run(self, replica: &Replica, job: Vec<Piece>) -> Result<(Vec<(usize, FramesHash)>, u64)> {
        let reads = job.iter().map(|piece| (&self.inputs[piece.input].file, piece.span.bytes.clone()));
        let reads: Vec<_> = reads.map(|(file, span)| read(replica, file, span)).collect();
        let fetched: Vec<Bytes> = stream::iter(reads).buffered(READ_AT_ONCE).try_collect().await?;
        let core = self.cores.clone().acquire_owned().await;
        blocking(move || {
            let (mut hashes, mut bytes) = (Vec::with_capacity(job.len()), 0);
            let mut page = vec![0; self.inputs.first().map_or(0, |input| input.file.header.page_size.bytes())];
            for (piece, fetched) in job.iter().zip(&fetched) {
                hashes.push((piece.input, self.copy(piece, fetched, &mut page)?));
                bytes += piece.span.bytes.end - piece.span.bytes.start;
            }
            drop(core);
            Ok((hashes, bytes))
        })
        .await
    }

    fn copy(&self, piece: &Piece, bytes: &[u8], page: &mut [u8]) -> Result<FramesHash> {
        let input = &self.inputs[piece.input];
        let wrong = |source| Error::format(input.file.key(), source);
        let mut hash = input.file.hash();
        let mut run = Run { source: bytes, range: 0..0, offset: 0 };
        let (mut start, mut last) = (0, None);
        let entries = input.file.index.entries_from(piece.span.frames.start).take(piece.span.frames.len());
        for entry in entries {
            let frame = input.file.frame(&entry, &bytes[start..])?;
            let range = start..start + frame.bytes().len();
            start = range.end;
            frame.decompress_into(page).map_err(wrong)?;
            hash.add(&frame, page);
            let Some(at) = self.kept.place(piece.input, entry.pgno, last) else { continue };
            last = Some(at);
            let (frame_hash, copy) = frame.copy(page);
            let place = self.kept.index.entry(at);
            let len = copy.as_ref().map_or(range.len(), Vec::len);
            if frame.is_legacy() != input.legacy || len != place.size as usize {
                let problem = PageProblem::Legacy("frames of both kinds in one file");
                return Err(wrong(ltx::Error::Page { pgno: entry.pgno.get(), problem }));
            }
            self.kept.hashes[at].store(frame_hash.0, Ordering::Relaxed);
            match copy {
                Some(copy) => self.output.write(&copy, place.offset)?,
                None => run.add(range, place.offset, &self.output)?,
            }
        }
        run.write(&self.output)?;
        Ok(hash)
    }
}

/// Frames that lie one behind the other in the input and in the output, to be written at once.
struct Run<'a> {
    source: &'a [u8],
    range: Range<usize>,
    offset: u64,
}

impl Run<'_> {
    fn add(&mut self, frame: Range<usize>, offset: u64, output: &Output) -> Result<()> {
        if frame.start != self.range.end || offset != self.offset + self.range.len() as u64 {
            self.write(output)?;
            (self.range.start, self.offset) = (frame.start, offset);
        }
        self.range.end = frame.end;
        Ok(())
    }

    fn write(&self, output: &Output) -> Result<()> {
        output.write(&self.source[self.range.clone()], self.offset)
    }
}

/// A span of an input's frames, from memory where it came along with the header.
///
/// With the last frames comes the end mark behind them: [`OpenFile::verify`] hashes what it must be, and never sees what it is.
async fn read(replica: &Replica, file: &OpenFile, span: Range<u64>) -> Result<Bytes> {
    let frames = (span.end - span.start) as usize;
    let mark = if span.end == file.layout.frames_end() { END_MARK.len() as u64 } else { 0 };
    let span = span.start..span.end + mark;
    let bytes = if span.end <= file.front.len() as u64 {
        file.front.slice(span.start as usize..span.end as usize)
    } else {
        replica.get_span(&file.info, span).await?
    };
    let behind = bytes.get(frames..).unwrap_or_default();
    if behind != &END_MARK[..mark as usize] {
        return Err(Error::format(file.key(), ltx::Error::Index("the frames do not end where it says")));
    }
    Ok(bytes)
}

/// The file in the making.
struct Output {
    file: File,
    path: PathBuf,
}

impl Output {
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|error| Error::io("write", &self.path, error))
    }
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
