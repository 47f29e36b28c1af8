//! Rebuilding a database from what Litestream 0.3 left: `generations/<16 hex>/snapshots/` and `…/wal/`.
//!
//! This file alone knows that layout, and how a write-ahead log is applied. A restore takes the newest snapshot of all generations, and then that
//! generation's logs from the snapshot's index on, each applied as a truncating checkpoint would. Objects are fetched side by side but inflated in
//! order, on one thread, piece by piece: neither a snapshot nor a log is ever held in memory as a whole.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::stream::{self, StreamExt, TryStreamExt};
use litestream_pageindex::Target;
use litestream_storage::{GetRange, ObjectInfo, Replica, Scope, format_time};
use ltx::{Commit, PageSize, Pgno, Timestamp, Txid};
use lz4_flex::frame::FrameDecoder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::finish::{Unlink, finish};
use crate::restore::blocking;
use crate::{Error, Output, Progress, RestoreOptions, Result};

/// About how many bytes one request for part of a large object reads.
const SPAN: u64 = 4 << 20;
/// How many bytes of objects may be on their way or waiting to be inflated at once.
const BUDGET: u64 = 64 << 20;
/// The unit in which the budget is counted, so that it fits a semaphore.
const UNIT: u64 = 4 << 10;
/// How many inflated bytes are handed on at once.
const PIECE: usize = 1 << 20;

/// A generation of Litestream 0.3: a time without interruption, begun by a snapshot. Prints as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What lies in a replica's `generations/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Legacy {
    /// Ascending by time, then generation and index.
    snapshots: Vec<Snapshot>,
    /// Ascending by generation, index and offset.
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Snapshot {
    generation: Generation,
    index: u32,
    object: ObjectInfo,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    generation: Generation,
    index: u32,
    offset: u64,
    object: ObjectInfo,
}

/// What was restored from a v0.3 replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredLegacy {
    /// The generation.
    pub generation: Generation,
    /// The index of the last write-ahead log that was applied; the snapshot's where there was none.
    pub index: u32,
    /// The time of the newest object that was applied.
    pub time: Timestamp,
    /// The size of the database's pages.
    pub page_size: PageSize,
    /// The database's length in bytes.
    pub size: u64,
    /// How many objects were read.
    pub files: usize,
    /// How many bytes they have.
    pub bytes: u64,
}

/// What a replica's LTX files have to offer for a target, as far as it matters to [`prefers_legacy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LtxTimes {
    /// The time of the newest LTX file of any level; `None` where there is none at all.
    pub newest_file: Option<Timestamp>,
    /// The time of the snapshot with which the plan for the target begins; `None` where there is no plan. Asked for only when the target is a time.
    pub snapshot: Option<Timestamp>,
}

/// Finds what Litestream 0.3 left in a replica. Objects whose names it would not have given are ignored.
///
/// # Errors
/// As the store says, after retries.
pub async fn listing(replica: &Replica) -> Result<Legacy> {
    let page = replica.list(Scope::Generations, Txid::ZERO).await?;
    let mut legacy = Legacy::default();
    for object in page.others {
        match parse_key(&object.key) {
            Some((generation, index, None)) => legacy.snapshots.push(Snapshot { generation, index, object }),
            Some((generation, index, Some(offset))) => {
                legacy.segments.push(Segment { generation, index, offset, object });
            }
            None => {}
        }
    }
    // Of snapshots of one moment (S3 counts in seconds), real Litestream takes the last in this order.
    legacy.snapshots.sort_by_key(|snapshot| (snapshot.object.modified, snapshot.generation, snapshot.index));
    legacy.segments.sort_by_key(|segment| (segment.generation, segment.index, segment.offset));
    Ok(legacy)
}

/// `[BASE/]generations/<16 hex>/snapshots/%08x.snapshot.lz4`, `…/wal/%08x_%08x.wal.lz4`: generation, index, and the offset of a WAL segment.
fn parse_key(key: &str) -> Option<(Generation, u32, Option<u64>)> {
    let mut parts = key.rsplit('/');
    let (name, kind, generation, folder) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if folder != "generations" {
        return None;
    }
    let generation = Generation(hex(generation, 16..=16)?);
    let index = |text| u32::try_from(hex(text, 8..=8)?).ok();
    match kind {
        "snapshots" => Some((generation, index(name.strip_suffix(".snapshot.lz4")?)?, None)),
        "wal" => {
            let (first, offset) = name.strip_suffix(".wal.lz4")?.split_once('_')?;
            Some((generation, index(first)?, Some(hex(offset, 8..=16)?)))
        }
        _ => None,
    }
}

fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u64> {
    let lower_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if lower_hex && digits.contains(&text.len()) { u64::from_str_radix(text, 16).ok() } else { None }
}

impl Legacy {
    /// Whether Litestream 0.3 left nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty() && self.segments.is_empty()
    }

    /// When the newest snapshot or WAL segment was written.
    #[must_use]
    pub fn newest_file_time(&self) -> Option<Timestamp> {
        let segments = self.segments.iter().map(|segment| segment.object.modified);
        self.snapshots.iter().map(|snapshot| snapshot.object.modified).chain(segments).max()
    }

    /// The newest snapshot of all generations at or before a moment: its generation, its index, its time. Without a moment, the newest of all.
    #[must_use]
    pub fn newest_snapshot_before(&self, moment: Option<Timestamp>) -> Option<(Generation, u32, Timestamp)> {
        self.snapshot(moment).map(|snapshot| (snapshot.generation, snapshot.index, snapshot.object.modified))
    }

    fn snapshot(&self, moment: Option<Timestamp>) -> Option<&Snapshot> {
        self.snapshots.iter().rev().find(|snapshot| within(&snapshot.object, moment))
    }
}

/// v0.3 times are inclusive, those of LTX files are not.
fn within(object: &ObjectInfo, moment: Option<Timestamp>) -> bool {
    moment.is_none_or(|moment| object.modified <= moment)
}

/// Whether a restore takes what Litestream 0.3 left rather than LTX files, as real Litestream decides.
///
/// It does when there is nothing else; for the latest state, when its newest file, WAL segments included, is newer than the newest LTX file; for a
/// time, when its newest snapshot at or before the target is newer than the one of the LTX plan. It never does for a TXID, which v0.3 knows nothing of,
/// nor where LTX files stand against WAL segments without any snapshot.
#[must_use]
pub fn prefers_legacy(legacy: &Legacy, ltx: LtxTimes, target: Target) -> bool {
    match target {
        Target::Txid(_) => false,
        _ if ltx.newest_file.is_none() => !legacy.is_empty(),
        Target::Latest => !legacy.snapshots.is_empty() && legacy.newest_file_time() > ltx.newest_file,
        Target::Before(moment) => legacy.snapshot(Some(moment)).map(|found| found.object.modified) > ltx.snapshot,
    }
}

/// Rebuilds the database of a v0.3 replica at `path`: the newest state, or the newest at or before `moment` (inclusive). The target in `options` is not
/// looked at.
///
/// Nothing but a temporary file beside `path` exists until the database is complete, every object's checksum has been verified, the check has passed
/// and everything is synced; then it appears at once. Memory stays within about 100 MiB and 4 bytes a frame of the longest log.
///
/// As in SQLite, a log ends where a frame's salts or checksum do not follow from those before. That v0.3 lost the *last* segments of a log in the
/// middle cannot be seen from its names; a check of the database's integrity shows it.
///
/// # Errors
/// [`Error::Legacy`] where no snapshot is that old, a segment is missing or an object is damaged; or whatever else stands in the way. Nothing is left
/// at `path` then, and what was there still is.
pub async fn restore(
    replica: &Replica,
    legacy: &Legacy,
    moment: Option<Timestamp>,
    path: &Path,
    options: &RestoreOptions,
) -> Result<RestoredLegacy> {
    Output::check(path, options.overwrite)?;
    let plan = Plan::new(legacy, moment)?;
    let objects: Vec<ObjectInfo> = plan.objects().cloned().collect();
    let meter =
        Meter { done: 0, total: objects.iter().map(|object| object.size).sum(), tell: options.progress.clone() };
    meter.tell();
    let output = Output::create(path, options.overwrite)?;
    let unlink = Unlink::new(&output);
    let (sender, receiver) = mpsc::unbounded_channel();
    let pipe = Pipe { receiver, meter };
    let rebuilt = blocking(move || rebuild(&plan, pipe, &output).map(|restored| (restored, output)));
    let (rebuilt, fed) = futures::join!(rebuilt, feed(replica, &objects, options.parallelism, sender));
    // Where a read has failed, that is why the rest went missing.
    fed?;
    let (restored, output) = rebuilt?;
    finish(output, unlink, options).await?;
    Ok(restored)
}

/// What a restore would read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyPlan {
    /// The generation.
    pub generation: Generation,
    /// The index of the snapshot.
    pub snapshot: u32,
    /// The index of the last write-ahead log; the snapshot's where there is none.
    pub index: u32,
    /// The time of the newest object.
    pub time: Timestamp,
    /// The snapshot, then the WAL segments as they are applied.
    pub objects: Vec<ObjectInfo>,
}

impl LegacyPlan {
    /// How many bytes the objects have.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.objects.iter().map(|object| object.size).sum()
    }
}

/// Says what [`restore`] would read, without reading it.
///
/// # Errors
/// As [`restore`], as far as names and times show it.
pub fn plan(legacy: &Legacy, moment: Option<Timestamp>) -> Result<LegacyPlan> {
    let plan = Plan::new(legacy, moment)?;
    Ok(LegacyPlan {
        generation: plan.snapshot.generation,
        snapshot: plan.snapshot.index,
        index: plan.segments.last().map_or(plan.snapshot.index, |segment| segment.index),
        time: plan.newest(),
        objects: plan.objects().cloned().collect(),
    })
}

/// What a restore reads, in the order in which it is applied.
#[derive(Debug)]
struct Plan {
    snapshot: Snapshot,
    segments: Vec<Segment>,
}

impl Plan {
    fn new(legacy: &Legacy, moment: Option<Timestamp>) -> Result<Self> {
        let Some(snapshot) = legacy.snapshot(moment) else {
            let problem = match (legacy.snapshots.first(), moment) {
                (Some(oldest), Some(moment)) => {
                    let (moment, oldest) = (format_time(moment), format_time(oldest.object.modified));
                    format!("no snapshot is as old as {moment}: the oldest moment that can be restored is {oldest}")
                }
                _ => "there is no snapshot, and nothing can be restored without one".to_owned(),
            };
            return Err(Error::Legacy { key: "generations".into(), problem });
        };
        let applies = |segment: &&Segment| {
            segment.generation == snapshot.generation
                && segment.index >= snapshot.index
                && within(&segment.object, moment)
        };
        let segments: Vec<Segment> = legacy.segments.iter().filter(applies).cloned().collect();
        for (expected, log) in (u64::from(snapshot.index)..).zip(segments.chunk_by(|a, b| a.index == b.index)) {
            let first = &log[0];
            if u64::from(first.index) != expected || first.offset != 0 {
                return Err(first.gap(expected, 0));
            }
        }
        Ok(Self { snapshot: snapshot.clone(), segments })
    }

    /// The time of the newest object.
    fn newest(&self) -> Timestamp {
        self.objects().map(|object| object.modified).max().unwrap_or(self.snapshot.object.modified)
    }

    fn objects(&self) -> impl Iterator<Item = &ObjectInfo> {
        std::iter::once(&self.snapshot.object).chain(self.segments.iter().map(|segment| &segment.object))
    }
}

impl Segment {
    /// This segment is there, but the one that should come before it is not.
    fn gap(&self, index: u64, offset: u64) -> Error {
        let problem = format!(
            "WAL segment {index:08x}_{offset:08x} of generation {} is missing: the next one that is there is {:08x}_{:08x}; restore to a time before the gap",
            self.generation, self.index, self.offset
        );
        Error::Legacy { key: self.object.key.to_string(), problem }
    }
}

fn damaged(object: &ObjectInfo, problem: impl fmt::Display) -> Error {
    Error::Legacy { key: object.key.to_string(), problem: problem.to_string() }
}

/// A piece of an object, with the memory it takes.
struct Piece {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

/// Fetches objects side by side and hands on their bytes in order.
async fn feed(
    replica: &Replica,
    objects: &[ObjectInfo],
    parallelism: usize,
    sender: mpsc::UnboundedSender<Piece>,
) -> Result<()> {
    let budget = Arc::new(Semaphore::new((BUDGET / UNIT) as usize));
    // Memory is granted in order, before a request begins, so that the piece which is needed next always has its share.
    let granted = stream::iter(objects.iter().flat_map(|object| spans(object.size).map(move |span| (object, span))))
        .then(|(object, span)| {
            let budget = budget.clone();
            async move {
                let units = (span.end - span.start).div_ceil(UNIT) as u32;
                let permit =
                    budget.acquire_many_owned(units).await.map_err(|closed| Error::Worker(closed.to_string()))?;
                Ok((object, span, permit))
            }
        });
    let pieces = granted
        .map_ok(|(object, span, permit)| async move {
            let (_, bytes) = replica.get(&object.key, Some(object), GetRange::Span(span)).await?;
            Ok::<_, Error>(Piece { bytes, _permit: permit })
        })
        .try_buffered(parallelism.max(1));
    let mut pieces = std::pin::pin!(pieces);
    loop {
        let piece = tokio::select! {
            // Whoever stopped listening says why.
            () = sender.closed() => return Ok(()),
            piece = pieces.try_next() => piece?,
        };
        let Some(piece) = piece else { return Ok(()) };
        // Never waits, so that the requests under way go on: the budget bounds what is queued.
        if sender.send(piece).is_err() {
            return Ok(());
        }
    }
}

fn spans(size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(SPAN)).map(move |at| at * SPAN..size.min((at + 1) * SPAN))
}

struct Meter {
    done: u64,
    total: u64,
    tell: Arc<dyn Fn(Progress) + Send + Sync>,
}

impl Meter {
    fn tell(&self) {
        (self.tell)(Progress { done: self.done, total: self.total });
    }
}

/// The objects' bytes, one object after the other, on the thread that inflates them.
struct Pipe {
    receiver: mpsc::UnboundedReceiver<Piece>,
    meter: Meter,
}

/// One object's bytes out of the pipe.
struct ObjectReader<'a> {
    pipe: &'a mut Pipe,
    /// What of the object has not come out of the pipe yet.
    coming: u64,
    piece: Option<Piece>,
    taken: u64,
    /// Whether a read has found the object's end.
    ended: bool,
}

impl ObjectReader<'_> {
    /// Lets go of a piece that has been read.
    fn finish_piece(&mut self) {
        self.piece = None;
        self.pipe.meter.done += std::mem::take(&mut self.taken);
        self.pipe.meter.tell();
    }

    fn left(&self) -> u64 {
        self.coming + self.piece.as_ref().map_or(0, |piece| piece.bytes.len() as u64)
    }
}

impl Read for ObjectReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(piece) = &mut self.piece {
                if !piece.bytes.is_empty() {
                    let len = buffer.len().min(piece.bytes.len());
                    piece.bytes.copy_to_slice(&mut buffer[..len]);
                    return Ok(len);
                }
                self.finish_piece();
            }
            if self.coming == 0 {
                self.ended = true;
                return Ok(0);
            }
            // Not `UnexpectedEof`, which the decoder would take for the end of a frame.
            let piece = self.pipe.receiver.blocking_recv().ok_or(io::ErrorKind::BrokenPipe)?;
            self.taken = piece.bytes.len() as u64;
            self.coming = self.coming.checked_sub(self.taken).ok_or(io::ErrorKind::InvalidData)?;
            self.piece = Some(piece);
        }
    }
}

/// Inflates the next object and hands on its bytes; returns how many there were.
fn inflate(pipe: &mut Pipe, object: &ObjectInfo, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
    let reader = ObjectReader { coming: object.size, pipe, piece: None, taken: 0, ended: false };
    let mut decoder = FrameDecoder::new(reader);
    let mut buffer = vec![0; PIECE];
    let mut len = 0;
    loop {
        let read = decoder.read(&mut buffer).map_err(|error| damaged(object, format!("is damaged: {error}")))?;
        if read == 0 {
            break;
        }
        each(&buffer[..read])?;
        len += read as u64;
    }
    let reader = decoder.get_mut();
    // The decoder takes an object that breaks off between two blocks for a complete one; but it looks for more only where no end mark has come.
    if reader.ended {
        return Err(damaged(object, format!("breaks off: its {} bytes are only part of an LZ4 frame", object.size)));
    }
    match reader.left() {
        0 => reader.finish_piece(),
        left => return Err(damaged(object, format!("is damaged: {left} bytes follow its LZ4 frame"))),
    }
    Ok(len)
}

/// Writes the snapshot, then applies the logs.
fn rebuild(plan: &Plan, mut pipe: Pipe, output: &Output) -> Result<RestoredLegacy> {
    let Snapshot { generation, index, object } = &plan.snapshot;
    let (mut head, mut at) = (Vec::with_capacity(DATABASE_HEADER), 0);
    let mut size = inflate(&mut pipe, object, |bytes| {
        head.extend_from_slice(&bytes[..bytes.len().min(DATABASE_HEADER - head.len())]);
        output.write_at(bytes, at)?;
        at += bytes.len() as u64;
        Ok(())
    })?;
    let page_size = database_page_size(&head).map_err(|problem| damaged(object, problem))?;
    let mut restored = RestoredLegacy {
        generation: *generation,
        index: *index,
        time: plan.newest(),
        page_size,
        size,
        files: plan.objects().count(),
        bytes: plan.objects().map(|object| object.size).sum(),
    };
    let spool = Spool::create(output)?;
    for segments in plan.segments.chunk_by(|a, b| a.index == b.index) {
        let mut log = Log::new(page_size, &spool);
        let mut offset = 0u64;
        for segment in segments {
            if segment.offset != offset {
                return Err(segment.gap(segment.index.into(), offset));
            }
            offset += inflate(&mut pipe, &segment.object, |bytes| log.push(bytes, &segment.object))?;
        }
        let first = &segments[0];
        if let Some(commit) = log.apply(output, &first.object, offset)? {
            size = commit.bytes(page_size);
        }
        restored.index = first.index;
    }
    restored.size = size;
    Ok(restored)
}

/// The length of a database's header (<https://sqlite.org/fileformat2.html#the_database_header>).
const DATABASE_HEADER: usize = 100;

fn database_page_size(header: &[u8]) -> Result<PageSize, &'static str> {
    if header.len() < DATABASE_HEADER || !header.starts_with(b"SQLite format 3\0") {
        return Err("is not a snapshot of an SQLite database");
    }
    let size = match u32::from(be_u16(header, 16)) {
        1 => 65536,
        size => size,
    };
    PageSize::new(size).ok_or("is not a snapshot of an SQLite database: its page size is invalid")
}

/// Where a log's pages wait until it is known whether they were committed: a file that has no name.
struct Spool {
    file: File,
    path: PathBuf,
}

impl Spool {
    fn create(output: &Output) -> Result<Self> {
        let mut path = output.temporary().as_os_str().to_owned();
        path.push("-wal");
        let path = PathBuf::from(path);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(Error::io("create", &path))?;
        std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        Ok(Self { file, path })
    }

    fn write(&self, page: &[u8], slot: usize) -> Result<()> {
        self.file.write_all_at(page, slot as u64 * page.len() as u64).map_err(Error::io("write", &self.path))
    }

    fn read(&self, page: &mut [u8], slot: usize) -> Result<()> {
        self.file.read_exact_at(page, slot as u64 * page.len() as u64).map_err(Error::io("read", &self.path))
    }
}

/// The length of a write-ahead log's header (<https://sqlite.org/fileformat2.html#the_write_ahead_log>).
const LOG_HEADER: usize = 32;
/// The length of the header of each of its frames.
const FRAME_HEADER: usize = 24;
/// What a log begins with, but for the last bit: set where its checksums take numbers in big-endian order.
const LOG_MAGIC: u32 = 0x377f_0682;
/// The only version of the format there has ever been.
const LOG_VERSION: u32 = 3_007_000;

/// One write-ahead log as its bytes arrive.
struct Log<'a> {
    page_size: PageSize,
    spool: &'a Spool,
    /// What has arrived of the log's header or of a frame that is not complete yet.
    partial: Vec<u8>,
    header: Option<LogHeader>,
    sums: Checksum,
    /// The page of every frame so far.
    pages: Vec<Pgno>,
    /// How many of the frames are committed, and the database's size after them.
    committed: Option<(usize, Commit)>,
    /// Whether a frame has been found that does not follow from those before.
    ended: bool,
}

#[derive(Clone, Copy)]
struct LogHeader {
    big_endian: bool,
    salts: [u8; 8],
}

impl<'a> Log<'a> {
    fn new(page_size: PageSize, spool: &'a Spool) -> Self {
        Self {
            page_size,
            spool,
            partial: Vec::new(),
            header: None,
            sums: Checksum::default(),
            pages: Vec::new(),
            committed: None,
            ended: false,
        }
    }

    /// Takes the next bytes of the log; `object` is where they come from.
    fn push(&mut self, mut bytes: &[u8], object: &ObjectInfo) -> Result<()> {
        while !self.ended && !bytes.is_empty() {
            let want = if self.header.is_none() { LOG_HEADER } else { FRAME_HEADER + self.page_size.bytes() };
            let (now, rest) = bytes.split_at(bytes.len().min(want - self.partial.len()));
            self.partial.extend_from_slice(now);
            bytes = rest;
            if self.partial.len() < want {
                return Ok(());
            }
            let whole = std::mem::take(&mut self.partial);
            match self.header {
                None => self.header = Some(self.begin(&whole).map_err(|problem| damaged(object, problem))?),
                Some(header) => self.frame(header, &whole)?,
            }
            self.partial = whole;
            self.partial.clear();
        }
        Ok(())
    }

    fn begin(&mut self, bytes: &[u8]) -> Result<LogHeader, &'static str> {
        let magic = be_u32(bytes, 0);
        if magic & !1 != LOG_MAGIC || be_u32(bytes, 4) != LOG_VERSION {
            return Err("does not begin with the header of a write-ahead log");
        }
        let big_endian = magic & 1 != 0;
        self.sums = Checksum::default().add(&bytes[..24], big_endian);
        if !self.sums.matches(&bytes[24..32]) {
            return Err("begins with a header whose checksum is wrong");
        }
        if PageSize::new(be_u32(bytes, 8)) != Some(self.page_size) {
            return Err("is the log of a database with another page size than the snapshot");
        }
        let mut salts = [0; 8];
        salts.copy_from_slice(&bytes[16..24]);
        Ok(LogHeader { big_endian, salts })
    }

    /// A frame counts where its salts are the log's and its checksum covers everything up to it; the first that does not ends the log.
    fn frame(&mut self, header: LogHeader, bytes: &[u8]) -> Result<()> {
        let (about, page) = bytes.split_at(FRAME_HEADER);
        let sums = self.sums.add(&about[..8], header.big_endian).add(page, header.big_endian);
        let (Some(pgno), true) =
            (Pgno::new(be_u32(about, 0)), about[8..16] == header.salts && sums.matches(&about[16..]))
        else {
            self.ended = true;
            return Ok(());
        };
        self.sums = sums;
        self.spool.write(page, self.pages.len())?;
        self.pages.push(pgno);
        match be_u32(about, 4) {
            0 => {}
            commit => self.committed = Some((self.pages.len(), Commit(commit))),
        }
        Ok(())
    }

    /// Writes the committed pages to the database and gives it the size of the last commit, which is returned. `len` is the log's length in bytes.
    fn apply(self, output: &Output, object: &ObjectInfo, len: u64) -> Result<Option<Commit>> {
        if self.header.is_none() {
            return Err(damaged(object, format!("is too short for a write-ahead log: {len} bytes")));
        }
        let frames = (len - LOG_HEADER as u64) / (FRAME_HEADER + self.page_size.bytes()) as u64;
        let (committed, commit) = self.committed.unzip();
        let committed = committed.unwrap_or(0);
        if self.ended || !self.partial.is_empty() || committed < self.pages.len() {
            tracing::warn!(key = %object.key, committed, frames, "a write-ahead log ends with frames that are not valid or not committed");
        }
        let Some(commit) = commit else { return Ok(None) };
        let mut page = vec![0; self.page_size.bytes()];
        for (slot, pgno) in self.pages.iter().take(committed).enumerate() {
            if commit.contains(*pgno) {
                self.spool.read(&mut page, slot)?;
                output.write_at(&page, pgno.offset(self.page_size))?;
            }
        }
        output.set_len(commit.bytes(self.page_size))?;
        Ok(Some(commit))
    }
}

/// The checksum of write-ahead logs, over whole pairs of 32-bit numbers.
#[derive(Clone, Copy, Default)]
struct Checksum(u32, u32);

impl Checksum {
    fn add(self, bytes: &[u8], big_endian: bool) -> Self {
        let Self(mut first, mut second) = self;
        for pair in bytes.chunks_exact(8) {
            let (mut a, mut b) = (be_u32(pair, 0), be_u32(pair, 4));
            if !big_endian {
                (a, b) = (a.swap_bytes(), b.swap_bytes());
            }
            first = first.wrapping_add(a).wrapping_add(second);
            second = second.wrapping_add(b).wrapping_add(first);
        }
        Self(first, second)
    }

    /// Whether a log holds this checksum; it is always stored in big-endian order.
    fn matches(self, stored: &[u8]) -> bool {
        (be_u32(stored, 0), be_u32(stored, 4)) == (self.0, self.1)
    }
}

fn be_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
