//! The page index at the end of a file, and what can be told from it without the frames.
//!
//! Frames lie one behind the other from byte 100 up to the end mark, so the index's offsets follow from its sizes. Both are checked: an
//! index whose entries leave a gap, overlap, or point outside the file is refused.

use crate::checksum::ContentHash;
use crate::frame::END_MARK;
use crate::{Checksum, Commit, Error, HEADER_LEN, Header, PageSize, Pgno, Result, TRAILER_LEN, Trailer, max_frame_len};

/// The index's own length field.
const LENGTH_LEN: usize = 8;
/// The shortest index: the zero varint that ends it.
const MIN_VARINTS: u64 = 1;
/// The smallest file: header, end mark, empty index, trailer.
const MIN_FILE_LEN: u64 = (HEADER_LEN + END_MARK.len() + LENGTH_LEN + TRAILER_LEN) as u64 + MIN_VARINTS;

/// Where one page's frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The page.
    pub pgno: Pgno,
    /// Where its frame begins, in bytes from the start of the file.
    pub offset: u64,
    /// The frame's length in bytes, header included.
    pub size: u32,
}

impl IndexEntry {
    /// Where the frame ends.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset + self.size as u64
    }
}

/// Whether some bytes from a file's end suffice to read its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailLength {
    /// They do; this many of them are the tail.
    Enough(usize),
    /// Fetch this many bytes from the end of the file.
    Need(u64),
}

impl TailLength {
    /// Measures the tail – end mark, index and trailer – of a file of `file_len` bytes from its last bytes.
    ///
    /// # Errors
    /// [`Error::Truncated`] where no LTX file can be this short, [`Error::Index`] where the index claims to be longer than the file.
    pub fn measure(last: &[u8], file_len: u64) -> Result<Self> {
        if file_len < MIN_FILE_LEN {
            return Err(Error::Truncated { what: "an LTX file", need: MIN_FILE_LEN, have: file_len });
        }
        let fixed = LENGTH_LEN + TRAILER_LEN;
        let Some(length) = last.len().checked_sub(fixed).and_then(|at| last[at..].first_chunk::<LENGTH_LEN>()) else {
            return Ok(Self::Need(fixed as u64));
        };
        let varints = u64::from_be_bytes(*length);
        let room = file_len - (HEADER_LEN + END_MARK.len() + fixed) as u64;
        if varints < MIN_VARINTS || varints > room {
            return Err(Error::Index("its length does not fit the file"));
        }
        let need = END_MARK.len() as u64 + varints + fixed as u64;
        Ok(if need <= last.len() as u64 { Self::Enough(need as usize) } else { Self::Need(need) })
    }
}

/// A file's index and trailer, read from its end.
#[derive(Clone, Debug)]
pub struct Tail<'a> {
    header: Header,
    layout: Layout,
    varints: &'a [u8],
    bytes: &'a [u8],
    trailer: Trailer,
}

impl<'a> Tail<'a> {
    /// Reads the tail of a file of `file_len` bytes from its last bytes, of which there must be enough (see [`TailLength`]).
    ///
    /// # Errors
    /// [`Error::Truncated`] where `last` is too short, and whatever is wrong with the tail.
    pub fn parse(last: &'a [u8], file_len: u64, header: &Header) -> Result<Self> {
        let len = match TailLength::measure(last, file_len)? {
            TailLength::Enough(len) => len,
            TailLength::Need(need) => {
                return Err(Error::Truncated { what: "the page index", need, have: last.len() as u64 });
            }
        };
        let (end_mark, bytes) = last[last.len() - len..].split_at(END_MARK.len());
        if end_mark != END_MARK {
            return Err(Error::Index("no end mark stands before it"));
        }
        let len = bytes.len();
        let varints = &bytes[..len - LENGTH_LEN - TRAILER_LEN];
        let trailer = Trailer::parse(&bytes[len - TRAILER_LEN..], header)?;
        let layout = Layout { page_size: header.page_size, frames_end: file_len - (len + END_MARK.len()) as u64 };
        Ok(Self { header: *header, layout, varints, bytes, trailer })
    }

    /// The index's entries, ascending.
    #[must_use]
    pub fn entries(&self) -> IndexReader<'a> {
        IndexReader {
            varints: self.varints,
            layout: self.layout,
            commit: self.header.commit,
            snapshot: self.header.is_snapshot(),
            next_offset: HEADER_LEN as u64,
            last: 0,
            count: 0,
            done: false,
        }
    }

    /// Where the frames lie.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// The trailer.
    #[must_use]
    pub const fn trailer(&self) -> Trailer {
        self.trailer
    }

    /// The bytes that index and trailer take.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never true: a tail has at least an end mark and a trailer.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Everything that follows the frames, as it is hashed: end mark, index, first half of the trailer.
    #[must_use]
    pub fn content_hash(&self) -> ContentHash {
        let mut hash = ContentHash::default();
        hash.update(&END_MARK);
        hash.update(&self.bytes[..self.bytes.len() - TRAILER_LEN / 2]);
        hash
    }
}

/// Where a file's frames begin and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    page_size: PageSize,
    frames_end: u64,
}

impl Layout {
    /// Where the first frame begins.
    #[must_use]
    pub const fn frames_start(&self) -> u64 {
        HEADER_LEN as u64
    }

    /// Where the last frame ends: the offset of the end mark.
    #[must_use]
    pub const fn frames_end(&self) -> u64 {
        self.frames_end
    }

    /// Joins the hashes of a file's parts and compares them with its trailer: its first [`HEADER_LEN`] bytes, the hash of all frames
    /// in order, and the hash of the tail.
    ///
    /// # Errors
    /// [`Error::FileChecksum`].
    pub fn checksum(
        header: &[u8; HEADER_LEN],
        frames: &ContentHash,
        tail: &ContentHash,
        trailer: &Trailer,
    ) -> Result<Checksum> {
        let mut hash = ContentHash::default();
        hash.update(header);
        hash.append(frames);
        hash.append(tail);
        let (stored, computed) = (trailer.file_checksum, hash.checksum());
        if stored == computed { Ok(stored) } else { Err(Error::FileChecksum { stored, computed }) }
    }
}

/// Iterates over an index. Every entry is checked; after an error there are no more.
#[derive(Clone, Debug)]
pub struct IndexReader<'a> {
    varints: &'a [u8],
    layout: Layout,
    commit: Commit,
    snapshot: bool,
    next_offset: u64,
    last: u32,
    count: u32,
    done: bool,
}

impl IndexReader<'_> {
    fn entry(&mut self) -> Result<Option<IndexEntry>> {
        let Some(pgno) = Pgno::new(self.varint_u32()?) else {
            return self.end().map(|()| None);
        };
        let offset = self.varint()?;
        let size = self.varint_u32()?;
        let page_size = self.layout.page_size;
        check_page(pgno, self.last, self.commit, page_size, self.snapshot)?;
        if offset != self.next_offset {
            return Err(Error::Index("the frames do not lie one behind the other"));
        }
        let entry = IndexEntry { pgno, offset, size };
        if size as usize > max_frame_len(page_size) {
            return Err(Error::Index("a frame is too large for a page"));
        }
        if entry.end() > self.layout.frames_end {
            return Err(Error::Index("a frame lies outside the file"));
        }
        self.next_offset = entry.end();
        self.last = pgno.get();
        self.count += 1;
        Ok(Some(entry))
    }

    fn end(&self) -> Result<()> {
        if !self.varints.is_empty() {
            return Err(Error::Index("bytes follow its end"));
        }
        if self.next_offset != self.layout.frames_end {
            return Err(Error::Index("it does not cover all frames"));
        }
        check_snapshot(self.count, self.commit, self.layout.page_size, self.snapshot)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for (at, byte) in self.varints.iter().enumerate() {
            let bits = u64::from(byte & 0x7f);
            if at == 10 || (at == 9 && bits > 1) {
                return Err(Error::Index("a number is too long"));
            }
            value |= bits << (7 * at);
            if byte & 0x80 == 0 {
                self.varints = &self.varints[at + 1..];
                return Ok(value);
            }
        }
        Err(Error::Index("it ends in the middle of an entry"))
    }

    fn varint_u32(&mut self) -> Result<u32> {
        u32::try_from(self.varint()?).map_err(|_| Error::Index("a number is too large"))
    }
}

impl Iterator for IndexReader<'_> {
    type Item = Result<IndexEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let entry = self.entry();
        self.done = !matches!(entry, Ok(Some(_)));
        entry.transpose()
    }
}

/// The rules that page numbers keep, in the frames as in the index.
pub(crate) fn check_page(pgno: Pgno, last: u32, commit: Commit, page_size: PageSize, snapshot: bool) -> Result<()> {
    use crate::PageProblem::{BeyondCommit, Hole, LockPage, OutOfOrder};
    let lock_page = page_size.lock_page();
    let mut expected = last.saturating_add(1);
    if expected == lock_page.get() {
        expected += 1;
    }
    let problem = match pgno.get() {
        number if number <= last => OutOfOrder,
        _ if pgno == lock_page => LockPage,
        _ if !commit.contains(pgno) => BeyondCommit,
        number if snapshot && number != expected => Hole,
        _ => return Ok(()),
    };
    Err(problem.at(pgno.get()))
}

/// A snapshot must hold as many pages as its commit says.
pub(crate) fn check_snapshot(have: u32, commit: Commit, page_size: PageSize, snapshot: bool) -> Result<()> {
    let want = commit.stored_pages(page_size);
    if snapshot && have != want { Err(Error::SnapshotIncomplete { have, want }) } else { Ok(()) }
}

/// Collects the varints of an index.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder(Vec<u8>);

impl IndexBuilder {
    pub(crate) fn push(&mut self, entry: IndexEntry) {
        self.varint(u64::from(entry.pgno.get()));
        self.varint(entry.offset);
        self.varint(u64::from(entry.size));
    }

    /// The whole index: varints, the zero that ends them, their length.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.varint(0);
        let len = self.0.len() as u64;
        self.0.extend_from_slice(&len.to_be_bytes());
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}
