//! Merging files that follow one another into one.
//!
//! A merge never compresses anything again: it copies frames, the newest of each page. It does decompress and hash every frame of every
//! input, those that it leaves out too, so that damage is found where it lies and is not carried into a file with a good checksum.
//!
//! The inputs' indexes tell which frames are kept and, by their sizes, where each of them will lie in the output. So inputs are read once, in
//! large pieces, several side by side and in no particular order of pages; each kept frame goes straight to its place. Its CRC is
//! noted, and the output's checksum is combined from these at the end. What lies in memory is the indexes, some 20 bytes for each page of the
//! output, small inputs as they are and frames that wait for their neighbours (up to [`KEPT_WHOLE`] together), and the pieces under way.

use std::cmp::Reverse;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use litestream_storage::{FileInfo, Replica};
use ltx::{Assembly, Commit, FRAME_HEADER_LEN, FrameHash, HEADER_LEN, Header, IndexEntry, PageProblem, Pgno};
use tokio::sync::Semaphore;

use crate::view::same_page_size;
use crate::{Error, FramesHash, OpenFile, PackedIndex, PackedIndexBuilder, Result, Span, open_files};

/// How many inputs are opened at once.
const OPEN_AT_ONCE: usize = 256;
/// How many jobs are being fetched, checked or waited for at once.
const JOBS_AT_ONCE: usize = 16;
/// How many pieces of one job are fetched at once.
const READ_AT_ONCE: usize = 32;
/// Less than this many bytes are not worth a job of their own.
const SMALLEST_JOB: u64 = 64 << 10;
/// How many bytes of small inputs stay in memory between reading their indexes and copying their frames; the others are read again. What they
/// leave of it, the output may take while it is gathered.
const KEPT_WHOLE: u64 = 64 << 20;

/// How many bytes of the output are gathered before they are written.
const CHUNK: u64 = 256 << 10;
/// From here on up bytes are written as they come.
const LONG_WRITE: usize = 64 << 10;

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
    let (inputs, held) = open(replica, files).await?;
    let inputs: Arc<[Input]> = inputs.into();
    let header = merged_header(replica, &inputs)?;
    let input_bytes = files.iter().map(FileInfo::size).sum();
    let failed = |source| Error::merge(files, output, source);
    let mut assembly = Assembly::new(header).map_err(failed)?;

    let planned = inputs.clone();
    let kept = Arc::new(blocking(move || Ok(Kept::new(&planned, header))).await?);
    let (file, guard) = OutputGuard::create(output)?;
    let output = Arc::new(Output::new(file, output, kept.end(), KEPT_WHOLE - held));
    let mut hashes: Vec<FramesHash> = inputs.iter().map(|input| input.file.hash()).collect();
    let frame_bytes = |input: &Input| input.file.layout.frames_end() - input.file.layout.frames_start();
    let mut done: u64 = input_bytes - inputs.iter().map(frame_bytes).sum::<u64>();
    let tell = |done| {
        if let Some(progress) = &options.progress {
            progress(done);
        }
    };
    tell(done);

    // Twice as many as there are cores: while one job ends and the next is woken, its core has another to go on with.
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let cores = Arc::new(Semaphore::new(2 * cores));
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
        output.write_now(&tail, end)?;
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

async fn open(replica: &Replica, files: &[FileInfo]) -> Result<(Vec<Input>, u64)> {
    let together = replica.spans_at_once().min(OPEN_AT_ONCE);
    let opened = files.chunks(together).map(|files| open_files(replica, files));
    let mut opened = stream::iter(opened.collect::<Vec<_>>()).buffered(OPEN_AT_ONCE / together);
    let (mut inputs, mut held) = (Vec::with_capacity(files.len()), 0);
    while let Some(files) = opened.try_next().await? {
        for mut file in files {
            let legacy = file.starts_with_legacy_frame();
            let len = file.front.len() as u64;
            if file.is_whole() && held + len <= KEPT_WHOLE {
                held += len;
            } else {
                file.front = Bytes::new();
            }
            inputs.push(Input { file, legacy });
        }
    }
    Ok((inputs, held))
}

/// The output's frames.
struct Kept {
    /// Where they will lie.
    index: PackedIndex,
    /// Their places in the index, input by input, ascending in each.
    places: Box<[u32]>,
    /// Where each input's places begin, and where the last one's end.
    starts: Box<[u32]>,
    /// The CRC of each, once it has been copied.
    hashes: Box<[AtomicU64]>,
}

impl Kept {
    /// Merges the indexes of all inputs: of each page the newest frame.
    fn new(inputs: &[Input], header: Header) -> Self {
        let mut index = PackedIndexBuilder::new(header.page_size);
        let mut owners = Vec::new();
        let mut starts = vec![0u32; inputs.len() + 1];
        newest(inputs, header, |pgno, owner, size| {
            index.push(IndexEntry { pgno, offset: 0, size });
            owners.push(owner);
            starts[owner as usize + 1] += 1;
        });
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let mut places = vec![0; owners.len()].into_boxed_slice();
        for (place, owner) in (0..).zip(&owners) {
            let next = &mut next[*owner as usize];
            places[*next as usize] = place;
            *next += 1;
        }
        let hashes = owners.iter().map(|_| AtomicU64::new(0)).collect();
        Self { index: index.finish(), places, starts: starts.into(), hashes }
    }

    /// The places of an input's frames that are kept, from a page on.
    fn places(&self, input: usize, from: Pgno) -> &[u32] {
        let places = &self.places[self.starts[input] as usize..self.starts[input + 1] as usize];
        &places[places.partition_point(|at| self.index.pgno(*at as usize) < from)..]
    }

    /// Where the frames end.
    fn end(&self) -> u64 {
        self.index.len().checked_sub(1).map_or(HEADER_LEN as u64, |last| self.index.entry(last).end())
    }
}

/// Tells of every page that is kept, in order: its number, the newest input that holds it, and how long the copy of its frame there will be.
fn newest(inputs: &[Input], header: Header, mut tell: impl FnMut(Pgno, u32, u32)) {
    let frames = |number: u32| {
        let input = &inputs[number as usize];
        let entries = input.file.index.entries().filter(|entry| header.commit.contains(entry.pgno));
        entries.map(move |entry| (entry.pgno, ltx::copied_len(&entry, input.legacy, header.page_size)))
    };
    let numbers = 0..inputs.len() as u32;
    let count: usize = inputs.iter().map(|input| input.file.index.len()).sum();
    if header.commit.0 as usize <= 2 * count {
        // A slot for each page of the database takes no more memory than sorting, and far less time. No frame is of length 0.
        let mut slots = vec![(0, 0); header.commit.0 as usize];
        for number in numbers {
            frames(number).for_each(|(pgno, size)| slots[pgno.slot()] = (number, size));
        }
        for (at, (number, size)) in (1..).zip(slots) {
            if let Some(pgno) = Pgno::new(at).filter(|_| size > 0) {
                tell(pgno, number, size);
            }
        }
        return;
    }
    // Of one page's frames the newest input's comes first. Inputs are sorted already, which the sort makes use of.
    let mut all: Vec<(Pgno, Reverse<u32>, u32)> = Vec::with_capacity(count);
    for number in numbers {
        all.extend(frames(number).map(|(pgno, size)| (pgno, Reverse(number), size)));
    }
    all.sort();
    all.dedup_by_key(|(pgno, ..)| *pgno);
    all.into_iter().for_each(|(pgno, Reverse(number), size)| tell(pgno, number, size));
}

/// Some frames of one input.
struct Piece {
    input: usize,
    span: Span,
}

/// Cuts the inputs into pieces of about `size` bytes, and gathers small ones into jobs of about that size, or smaller where all of them are not
/// much: so that every core gets some.
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
    let all: u64 = inputs.iter().map(|input| input.file.info.size()).sum();
    let size = size.min(all / JOBS_AT_ONCE as u64).max(SMALLEST_JOB);
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
        let fetched = self.fetch(replica, &job).await?;
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

    /// The pieces' frames, from memory where they came along with the header.
    async fn fetch(&self, replica: &Replica, job: &[Piece]) -> Result<Vec<Bytes>> {
        let file = |piece: &Piece| &self.inputs[piece.input].file;
        let wanted = job.iter().map(|piece| (file(piece), with_mark(file(piece), &piece.span.bytes)));
        let wanted: Vec<_> = wanted.collect();
        let at_hand = |(file, span): &(&OpenFile, Range<u64>)| span.end <= file.front.len() as u64;
        let missing = wanted.iter().filter(|wanted| !at_hand(wanted));
        let missing: Vec<_> = missing.map(|(file, span)| (&file.info, span.clone())).collect();
        let together = replica.spans_at_once().min(READ_AT_ONCE);
        let reads: Vec<_> = missing.chunks(together).map(|missing| replica.get_spans(missing)).collect();
        let fetched: Vec<_> = stream::iter(reads).buffered(READ_AT_ONCE / together).try_collect().await?;
        let mut fetched = fetched.into_iter().flatten();
        let mut pieces = Vec::with_capacity(job.len());
        for (wanted, piece) in wanted.iter().zip(job) {
            let (file, span) = wanted;
            let bytes = if at_hand(wanted) {
                file.front.slice(span.start as usize..span.end as usize)
            } else {
                fetched.next().unwrap_or_default()
            };
            check_mark(file, &piece.span.bytes, span, &bytes)?;
            pieces.push(bytes);
        }
        Ok(pieces)
    }

    fn copy(&self, piece: &Piece, bytes: &[u8], page: &mut [u8]) -> Result<FramesHash> {
        let input = &self.inputs[piece.input];
        let wrong = |source| Error::format(input.file.key(), source);
        let mut hash = input.file.hash();
        let mut run = Run { source: bytes, range: 0..0, offset: 0 };
        let mut start = 0;
        let from = piece.span.frames.start;
        let mut places: &[u32] = match piece.span.frames.is_empty() {
            true => &[],
            false => self.kept.places(piece.input, input.file.index.pgno(from)),
        };
        let entries = input.file.index.entries_from(from).take(piece.span.frames.len());
        for entry in entries {
            let frame = input.file.frame(&entry, &bytes[start..])?;
            let range = start..start + frame.bytes().len();
            start = range.end;
            frame.decompress_into(page).map_err(wrong)?;
            hash.add(&frame, page);
            let Some((at, rest)) = places.split_first() else { continue };
            let at = *at as usize;
            if self.kept.index.pgno(at) != entry.pgno {
                continue;
            }
            places = rest;
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

/// With the last frames comes the end mark behind them.
fn with_mark(file: &OpenFile, span: &Range<u64>) -> Range<u64> {
    let mark = if span.end == file.layout.frames_end() { END_MARK.len() as u64 } else { 0 };
    span.start..span.end + mark
}

/// Whether what lies behind the frames of a span is the end mark: [`OpenFile::verify`] hashes what it must be, and never sees what it is.
fn check_mark(file: &OpenFile, span: &Range<u64>, with_mark: &Range<u64>, bytes: &[u8]) -> Result<()> {
    let behind = bytes.get((span.end - span.start) as usize..).unwrap_or_default();
    if behind != &END_MARK[..(with_mark.end - span.end) as usize] {
        return Err(Error::format(file.key(), ltx::Error::Index("the frames do not end where it says")));
    }
    Ok(())
}

/// The file in the making. Short writes, which come in any order, are gathered chunk by chunk: a file lets in one writer at a time.
struct Output {
    file: File,
    path: PathBuf,
    chunks: Box<[Mutex<Chunk>]>,
    spare: Mutex<Spare>,
}

/// [`CHUNK`] bytes of the output, of the last one what is left.
struct Chunk {
    /// What is gathered, at its place. Empty before and after.
    memory: Vec<u8>,
    /// Which parts of it.
    parts: Vec<Range<usize>>,
    /// How many bytes have neither been gathered nor written.
    missing: usize,
}

/// Memory for chunks.
struct Spare {
    used: Vec<Vec<u8>>,
    /// How many more may be allocated.
    left: u64,
}

impl Output {
    /// An output whose frames end at `end`, and which may take so much memory.
    fn new(file: File, path: &Path, end: u64, memory: u64) -> Self {
        let len = |start: u64| (end - start).min(CHUNK) as usize;
        let starts = (0..end).step_by(CHUNK as usize);
        let chunk = |start| Mutex::new(Chunk { memory: Vec::new(), parts: Vec::new(), missing: len(start) });
        let spare = Mutex::new(Spare { used: Vec::new(), left: memory / CHUNK });
        Self { file, path: path.to_owned(), chunks: starts.map(chunk).collect(), spare }
    }

    /// Writes a part of the header and the frames, each of which must be written once.
    fn write(&self, mut bytes: &[u8], mut offset: u64) -> Result<()> {
        let at_once = bytes.len() >= LONG_WRITE;
        if at_once {
            self.write_now(bytes, offset)?;
        }
        while !bytes.is_empty() {
            let (at, start) = ((offset / CHUNK) as usize, (offset % CHUNK) as usize);
            let (part, rest) = bytes.split_at(bytes.len().min(CHUNK as usize - start));
            let mut chunk = lock(&self.chunks[at]);
            if !at_once && !self.gather(&mut chunk, part, start) {
                self.write_now(part, offset)?;
            }
            chunk.missing -= part.len();
            if chunk.missing == 0 {
                let (memory, parts) = (std::mem::take(&mut chunk.memory), std::mem::take(&mut chunk.parts));
                drop(chunk);
                self.write_gathered(memory, parts, at as u64 * CHUNK)?;
            }
            (bytes, offset) = (rest, offset + part.len() as u64);
        }
        Ok(())
    }

    /// Puts a part where it waits for its chunk to be full. `false` where there is no memory for that.
    fn gather(&self, chunk: &mut Chunk, part: &[u8], start: usize) -> bool {
        if chunk.memory.is_empty() {
            let Some(memory) = lock(&self.spare).take() else { return false };
            chunk.memory = memory;
        }
        let range = start..start + part.len();
        chunk.memory[range.clone()].copy_from_slice(part);
        match chunk.parts.last_mut() {
            Some(last) if last.end == start => last.end = range.end,
            _ => chunk.parts.push(range),
        }
        true
    }

    fn write_gathered(&self, memory: Vec<u8>, mut parts: Vec<Range<usize>>, offset: u64) -> Result<()> {
        parts.sort_unstable_by_key(|part| part.start);
        for run in parts.chunk_by(|part, next| part.end == next.start) {
            let [Range { start, .. }, ..] = *run else { continue };
            let end = run.last().map_or(start, |last| last.end);
            self.write_now(&memory[start..end], offset + start as u64)?;
        }
        if !memory.is_empty() {
            lock(&self.spare).used.push(memory);
        }
        Ok(())
    }

    fn write_now(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|error| Error::io("write", &self.path, error))
    }
}

impl Spare {
    fn take(&mut self) -> Option<Vec<u8>> {
        if let Some(memory) = self.used.pop() {
            return Some(memory);
        }
        self.left = self.left.checked_sub(1)?;
        Some(vec![0; CHUNK as usize])
    }
}

/// A job that panics ends the merge: nobody uses what it left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_any_order_lies_at_its_place_however_little_memory_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let expected: Vec<u8> = (0..3 * CHUNK as u32 + 77_777).map(|at| (at % 251) as u8).collect();
        // Longer ones are written as they come; those of 90,000 bytes and some others lie across two chunks.
        let lengths = [3, 2_500, 70, 90_000, 4_096, 65_535, 65_536, 1];
        let (mut writes, mut start) = (Vec::new(), 0);
        for len in lengths.into_iter().cycle() {
            let end = expected.len().min(start + len);
            writes.push(start..end);
            start = end;
            if start == expected.len() {
                break;
            }
        }
        for (number, memory) in [0, CHUNK, 2 * CHUNK, 8 * CHUNK].into_iter().enumerate() {
            let path = folder.path().join(number.to_string());
            let output = Output::new(File::create_new(&path).unwrap(), &path, expected.len() as u64, memory);
            let (even, odd): (Vec<_>, Vec<_>) = writes.iter().cloned().enumerate().partition(|(at, _)| at % 2 == 0);
            for (_, range) in even.into_iter().rev().chain(odd) {
                output.write(&expected[range.clone()], range.start as u64).unwrap();
            }
            assert!(output.chunks.iter().all(|chunk| lock(chunk).missing == 0));
            assert!(std::fs::read(&path).unwrap() == expected, "with {memory} bytes of memory");
        }
    }
}
