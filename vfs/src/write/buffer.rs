//! The write buffer on disk: transactions that were committed here, until the replica holds them.
//!
//! `PATH` is the control file; `PATH-0000000000000001` and on are segments. What a commit has acknowledged under `synchronous=FULL` is in a
//! segment, synced. A segment goes once the replica is proven to hold all that is in it.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ltx::{PageSize, Timestamp};

pub use super::control::{Open, Position, State, Uploaded};

use super::control::{self, Control};
use super::segment::{Commit, HEADER, Segment};
use crate::{Error, Result};

/// A number that nobody else will have.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(std::process::id()).max(1)
}

/// The buffer of one database, for the process that holds its lock.
#[derive(Debug)]
pub(super) struct Buffer {
    path: PathBuf,
    control: Control,
    pub(super) state: State,
    /// All that exist, oldest first. The last one is written to.
    segments: Vec<Arc<Segment>>,
    next: u64,
    /// Behind the last transaction, and the checksum there.
    pub(super) end: Position,
    pub(super) checksum: u64,
}

/// What a buffer held when it was opened.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) segments: Vec<(Arc<Segment>, Vec<Commit>)>,
}

impl Found {
    /// The transactions behind a place.
    pub(super) fn after(&self, place: Position) -> impl Iterator<Item = (&Arc<Segment>, &Commit)> {
        let all =
            self.segments.iter().flat_map(|(segment, commits)| commits.iter().map(move |commit| (segment, commit)));
        all.filter(move |(segment, commit)| Position { segment: segment.number, offset: commit.end } > place)
    }
}

impl Buffer {
    /// Opens or creates a buffer, and locks it.
    pub(super) fn open(path: &Path, url: &str, open: &Open) -> Result<(Self, Found)> {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|error| Error::buffer("create the folder of", path, error))?;
        let (mut control, state) = Control::open(path, open)?;
        let is_new = state.is_none();
        let state = state.unwrap_or_else(|| State { url: url.to_owned(), writer: random(), ..State::default() });
        if state.url != url {
            let (path, theirs, ours) = (path.to_owned(), state.url, url.to_owned());
            return Err(Error::BufferForeign { path, theirs, ours });
        }
        let segments = segments(path, true)?;
        if is_new && !segments.is_empty() {
            let why = "its control file is empty or gone, its segments are not".to_owned();
            return Err(Error::BufferDamaged { path: path.to_owned(), why });
        }
        if is_new {
            control.write(&state)?;
            sync_folder(path)?;
        }
        let last = segments.last();
        // Never a number that a place which was noted may name.
        let noted = state.intent.map_or(0, |intent| intent.up_to.segment).max(state.base.up_to.segment);
        let next = last.map_or(0, |(segment, _)| segment.number).max(noted) + 1;
        let (end, checksum) = last.map_or((HEADER, 0), |(segment, commits)| {
            commits.last().map_or((HEADER, segment.start), |last| (last.end, last.checksum))
        });
        let end = last.map_or(Position::default(), |(segment, _)| Position { segment: segment.number, offset: end });
        let open = segments.iter().map(|(segment, _)| segment.clone()).collect();
        let path = path.to_owned();
        Ok((Self { path, control, state, segments: open, next, end, checksum }, Found { segments }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The segment to write to, made where there is none, or the one before is full. To be called where nothing is written just now.
    pub(super) fn segment(&mut self, page_size: PageSize, full: u64) -> Result<Arc<Segment>> {
        if let Some(last) = self.segments.last()
            && last.page_size == page_size
            && self.end.offset < full
        {
            return Ok(last.clone());
        }
        if let Some(last) = self.segments.last() {
            // What follows counts only behind what is here.
            last.file.sync_data().map_err(|error| Error::buffer("sync", &last.path, error))?;
        }
        let path = segment_path(&self.path, self.next);
        let segment = Arc::new(Segment::create(&path, self.next, page_size, random(), self.checksum)?);
        sync_folder(&self.path)?;
        self.end = Position { segment: self.next, offset: HEADER };
        self.checksum = segment.start;
        self.next += 1;
        self.segments.push(segment.clone());
        Ok(segment)
    }

    /// Notes durably what is about to be put, on top of what.
    pub(super) fn intend(&mut self, base: Uploaded, intent: Option<Uploaded>) -> Result<()> {
        let state = State { base, intent, ..self.state.clone() };
        self.control.write(&state)?;
        self.state = state;
        Ok(())
    }

    /// Deletes the segments that hold nothing behind a place; the one that is written to only where `all` is said.
    pub(super) fn forget(&mut self, up_to: Position, all: bool) {
        let last = self.segments.last().map(|last| last.number);
        self.segments.retain(|segment| {
            let is_last = Some(segment.number) == last;
            let done = segment.number < up_to.segment || segment.number == up_to.segment && all && is_last;
            if done && let Err(error) = fs::remove_file(&segment.path) {
                tracing::warn!(path = %segment.path.display(), %error, "cannot delete a segment of the write buffer");
            }
            !done
        });
    }

    /// Lets other processes have it.
    pub(super) fn release(&self) {
        self.control.release();
    }

    /// How many bytes lie on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().filter_map(|segment| segment.file.metadata().ok()).map(|metadata| metadata.len()).sum()
    }
}

fn segment_path(path: &Path, number: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("-{number:016x}"));
    name.into()
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| Error::buffer("sync the folder of", path, error))
}

/// The segments that exist, oldest first, each with its transactions.
fn segments(path: &Path, writable: bool) -> Result<Vec<(Arc<Segment>, Vec<Commit>)>> {
    let io = |error| Error::buffer("look for", path, error);
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(Vec::new()) };
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?.file_name();
        let number = entry.to_str().and_then(|entry| entry.strip_prefix(name)?.strip_prefix('-'));
        if let Some(number) = number.filter(|number| number.len() == 16)
            && let Ok(number) = u64::from_str_radix(number, 16)
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    let (mut found, mut before) = (Vec::new(), None::<u64>);
    for (at, number) in numbers.iter().enumerate() {
        let file = segment_path(path, *number);
        let damaged = |why: &str| Error::BufferDamaged { path: file.clone(), why: why.to_owned() };
        let Some((segment, after)) = Segment::open(&file, *number, writable)? else {
            if at + 1 < numbers.len() {
                return Err(damaged("its header is torn, and another segment follows"));
            }
            if writable {
                // Made just before a crash: nothing was written to it.
                fs::remove_file(&file).map_err(|error| Error::buffer("delete", &file, error))?;
            }
            break;
        };
        if before.is_some_and(|before| before != after) || at > 0 && numbers[at - 1] + 1 != *number {
            return Err(damaged("it does not go on where the segment before ends"));
        }
        let (commits, torn) = segment.commits()?;
        if torn {
            tracing::info!(path = %file.display(), "an unfinished transaction is dropped from the write buffer");
        }
        before = Some(commits.last().map_or(segment.start, |last| last.checksum));
        found.push((Arc::new(segment), commits));
    }
    Ok(found)
}

/// What a buffer holds.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the control file says.
    pub state: State,
    /// How many bytes its files have.
    pub bytes: u64,
    /// The transactions that the replica is not known to hold.
    pub pending: Vec<Pending>,
}

/// A transaction that the replica is not known to hold.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    /// When it was committed.
    pub time: Timestamp,
    /// How many pages it wrote.
    pub pages: usize,
    /// The database's size after it, in pages.
    pub size: u32,
    /// Whether an upload that holds it had begun.
    pub intended: bool,
}

/// Looks into a buffer without locking or changing it.
///
/// # Errors
/// [`Error::Buffer`], [`Error::BufferDamaged`].
pub fn inspect(path: &Path) -> Result<Report> {
    let state = control::peek(path)?.unwrap_or_default();
    let found = Found { segments: segments(path, false)? };
    let intended = state.intent.map_or(Position::default(), |intent| intent.up_to);
    let pending = found.after(state.base.up_to).map(|(segment, commit)| Pending {
        time: commit.time,
        pages: commit.pages.len(),
        size: commit.size,
        intended: Position { segment: segment.number, offset: commit.end } <= intended,
    });
    let bytes = found.segments.iter().filter_map(|(segment, _)| segment.file.metadata().ok()).map(|file| file.len());
    Ok(Report { pending: pending.collect(), bytes: bytes.sum(), state })
}
