//! One file of the write buffer: page images in the order in which they were committed.
//!
//! | bytes | what |
//! |---|---|
//! | 0–7 | `LSBUFSEG` |
//! | 8–11 | version, 1 |
//! | 12–15 | page size |
//! | 16–23 | number of the segment, from 1 |
//! | 24–31 | random salt |
//! | 32–39 | checksum that the segment before ended with (0 for the first) |
//! | 40–47 | checksum of the 40 bytes before |
//!
//! Frames follow: a head of 32 bytes (page number, or 0 for a commit; for a commit: database size in pages, the smallest size that it had
//! during the transaction, number of page frames; time in ms; 8 bytes checksum) and, for a page, its image. Numbers are big-endian. A frame's
//! checksum covers the one before it, so a frame counts only behind all others, and a page only once its commit stands behind it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ltx::{ContentHash, PageSize, Timestamp};

use crate::{Error, Result};

pub(super) const HEADER: u64 = 48;
pub(super) const FRAME: usize = 32;
const MAGIC: &[u8; 8] = b"LSBUFSEG";
const VERSION: u32 = 1;

/// A file of the buffer, as it is read by whoever sees its pages.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) number: u64,
    pub(super) page_size: PageSize,
    /// The checksum that its first frame goes on from.
    pub(super) start: u64,
}

/// A transaction in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    /// Where the next one begins.
    pub(super) end: u64,
    /// The checksum there.
    pub(super) checksum: u64,
    /// The database's size in pages after it, and the smallest one during it.
    pub(super) size: u32,
    pub(super) low: u32,
    pub(super) time: Timestamp,
    /// Its pages, and where their images lie.
    pub(super) pages: Vec<(u32, u64)>,
}

pub(super) fn checksum(parts: &[&[u8]]) -> u64 {
    let mut hash = ContentHash::default();
    for part in parts {
        hash.update(part);
    }
    hash.checksum().0
}

/// The head of a page's frame, and the checksum after it.
pub(super) fn page_frame(before: u64, page: u32, image: &[u8]) -> ([u8; FRAME], u64) {
    let mut head = [0; FRAME];
    head[..4].copy_from_slice(&page.to_be_bytes());
    let after = checksum(&[&before.to_be_bytes(), &head[..24], image]);
    head[24..].copy_from_slice(&after.to_be_bytes());
    (head, after)
}

/// The frame that commits, and the checksum after it.
pub(super) fn commit_frame(before: u64, size: u32, low: u32, pages: u32, time: Timestamp) -> ([u8; FRAME], u64) {
    let mut head = [0; FRAME];
    head[4..8].copy_from_slice(&size.to_be_bytes());
    head[8..12].copy_from_slice(&low.to_be_bytes());
    head[12..16].copy_from_slice(&pages.to_be_bytes());
    head[16..24].copy_from_slice(&time.0.to_be_bytes());
    let after = checksum(&[&before.to_be_bytes(), &head[..24]]);
    head[24..].copy_from_slice(&after.to_be_bytes());
    (head, after)
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

pub(super) fn be64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

impl Segment {
    /// Creates a segment; its name is not durable yet.
    pub(super) fn create(path: &Path, number: u64, page_size: PageSize, salt: u64, before: u64) -> Result<Self> {
        let io = |error| Error::buffer("create", path, error);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(io)?;
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_be_bytes());
        header[12..16].copy_from_slice(&page_size.get().to_be_bytes());
        header[16..24].copy_from_slice(&number.to_be_bytes());
        header[24..32].copy_from_slice(&salt.to_be_bytes());
        header[32..40].copy_from_slice(&before.to_be_bytes());
        let start = checksum(&[&header[..40]]);
        header[40..].copy_from_slice(&start.to_be_bytes());
        file.write_all_at(&header, 0).map_err(io)?;
        Ok(Self { file, path: path.to_owned(), number, page_size, start })
    }

    /// Opens a segment that was left over. `None` where not even its header was completed, so that nothing can be in it.
    pub(super) fn open(path: &Path, number: u64, writable: bool) -> Result<Option<(Self, u64)>> {
        let io = |error| Error::buffer("open", path, error);
        let file = OpenOptions::new().read(true).write(writable).open(path).map_err(io)?;
        let mut header = [0; HEADER as usize];
        if file.metadata().map_err(io)?.len() < HEADER {
            return Ok(None);
        }
        file.read_exact_at(&mut header, 0).map_err(io)?;
        let start = checksum(&[&header[..40]]);
        if start != be64(&header[40..]) {
            return Ok(None);
        }
        let damaged = |why: &str| Error::BufferDamaged { path: path.to_owned(), why: why.to_owned() };
        if header[..8] != *MAGIC || be32(&header[8..]) != VERSION {
            return Err(damaged("another version of this program wrote it"));
        }
        if be64(&header[16..]) != number {
            return Err(damaged("it was renamed"));
        }
        let page_size = PageSize::new(be32(&header[12..])).ok_or_else(|| damaged("its page size is none"))?;
        let before = be64(&header[32..]);
        Ok(Some((Self { file, path: path.to_owned(), number, page_size, start }, before)))
    }

    /// All whole transactions, and whether anything was left behind the last one.
    pub(super) fn commits(&self) -> Result<(Vec<Commit>, bool)> {
        let io = |error| Error::buffer("read", &self.path, error);
        let len = self.file.metadata().map_err(io)?.len();
        let (mut commits, mut pages) = (Vec::new(), Vec::new());
        let (mut at, mut before) = (HEADER, self.start);
        let mut buffer = vec![0; FRAME + self.page_size.bytes()];
        while at + FRAME as u64 <= len {
            let frame = &mut buffer[..(FRAME as u64 + self.page_size.bytes() as u64).min(len - at) as usize];
            self.file.read_exact_at(frame, at).map_err(io)?;
            let page = be32(frame);
            let image = if page == 0 { &[][..] } else { &frame[FRAME..] };
            if page != 0 && image.len() < self.page_size.bytes() {
                break;
            }
            let after = checksum(&[&before.to_be_bytes(), &frame[..24], image]);
            if after != be64(&frame[24..]) {
                break;
            }
            if page != 0 {
                pages.push((page, at + FRAME as u64));
                at += (FRAME + image.len()) as u64;
            } else {
                at += FRAME as u64;
                commits.push(Commit {
                    end: at,
                    checksum: after,
                    size: be32(&frame[4..]),
                    low: be32(&frame[8..]),
                    time: Timestamp(i64::from_be_bytes(be64(&frame[16..]).to_be_bytes())),
                    pages: std::mem::take(&mut pages),
                });
            }
            before = after;
        }
        let end = commits.last().map_or(HEADER, |last: &Commit| last.end);
        Ok((commits, end < len))
    }

    /// Reads an image.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(into, offset).map_err(|error| Error::buffer("read", &self.path, error))
    }
}
