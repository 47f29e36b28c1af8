//! The bytes of a write-ahead log, and of the index in shared memory that says how much of it counts. No I/O of its own, no SQLite.
//!
//! A transaction is committed when the index says so, not when its commit frame stands in the file: under `synchronous=FULL` it lies there before
//! it is synced, and if that fails, or the writer dies, its place is written again. So frames are read up to the index's last one, and the chain of
//! checksums must end exactly where the index says it does.
//!
//! Sources: "WAL-mode File Format" (<https://www.sqlite.org/walformat.html>) and "The WAL File Format"
//! (<https://www.sqlite.org/fileformat2.html#walformat>).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ltx::{PageSize, Pgno};

/// Length of the log's header in bytes.
pub const HEADER_LEN: usize = 32;
/// Length of a frame's header in bytes.
pub const FRAME_HEADER_LEN: usize = 24;
/// What of the index is looked at, in 32-bit words: two copies of its header, and what checkpoints say of themselves.
pub const INDEX_WORDS: usize = 33;
/// Words in one copy of the index's header.
const COPY: usize = 12;
/// Where in a copy it says what is committed, and in how many words.
pub(crate) const INDEX_SAYS_FROM: usize = 2;
/// How many words of the index say what is committed.
pub const INDEX_SAYS: usize = 8;
/// The version of both formats, the only one there is.
const VERSION: u32 = 3_007_000;
const MAGIC: u32 = 0x377f_0682;
/// How much of a log is read at once.
const CHUNK: usize = 256 << 10;

/// The two salts of a log, as their bytes stand in it: they are compared, never counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Salts(pub [u8; 8]);

impl Salts {
    /// As they stand in an LTX header.
    #[must_use]
    pub fn words(self) -> [u32; 2] {
        [be32(&self.0), be32(&self.0[4..])]
    }
}

/// The order in which a log's checksums take the bytes of a word: that of the machine which began the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

/// The cumulative checksum of a log up to some frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sum(pub u32, pub u32);

impl Sum {
    /// The checksum behind further bytes, of which only whole pairs of words count.
    #[must_use]
    pub fn update(self, order: ByteOrder, bytes: &[u8]) -> Self {
        let (pairs, _) = bytes.as_chunks::<8>();
        let fold = |word: fn([u8; 4]) -> u32| {
            pairs.iter().fold(self, |sum, &[a, b, c, d, e, f, g, h]| sum.pair(word([a, b, c, d]), word([e, f, g, h])))
        };
        match order {
            ByteOrder::Little => fold(u32::from_le_bytes),
            ByteOrder::Big => fold(u32::from_be_bytes),
        }
    }

    const fn pair(self, first: u32, second: u32) -> Self {
        let a = self.0.wrapping_add(first).wrapping_add(self.1);
        Self(a, self.1.wrapping_add(second).wrapping_add(a))
    }
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// The header of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How its checksums are made.
    pub order: ByteOrder,
    /// Size of the pages.
    pub page_size: PageSize,
    /// What every frame of this log carries.
    pub salts: Salts,
    /// What the chain of checksums starts from.
    pub sum: Sum,
}

impl Header {
    /// Reads a log's first bytes. `None` where they are not the header of a log: SQLite takes such a file for an empty log.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<HEADER_LEN>()?;
        let magic = be32(bytes);
        if magic & !1 != MAGIC || be32(&bytes[4..]) != VERSION {
            return None;
        }
        let order = if magic & 1 == 0 { ByteOrder::Little } else { ByteOrder::Big };
        let page_size = PageSize::new(be32(&bytes[8..]))?;
        let mut salts = Salts::default();
        salts.0.copy_from_slice(&bytes[16..24]);
        let sum = Sum::default().update(order, &bytes[..24]);
        (sum == Sum(be32(&bytes[24..]), be32(&bytes[28..]))).then_some(Self { order, page_size, salts, sum })
    }

    /// Length of a frame, its header included.
    #[must_use]
    pub const fn frame_len(&self) -> usize {
        FRAME_HEADER_LEN + self.page_size.bytes()
    }

    /// Where a frame begins, in bytes. Frames are numbered from 1.
    #[must_use]
    pub const fn offset(&self, frame: u32) -> u64 {
        HEADER_LEN as u64 + (frame as u64).saturating_sub(1) * self.frame_len() as u64
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The page; 0 in no frame that is valid.
    pub page: u32,
    /// The database's size in pages where the frame commits a transaction, otherwise 0.
    pub commit: u32,
    /// The log that it belongs to.
    pub salts: Salts,
    /// The checksum up to and with this frame.
    pub sum: Sum,
}

impl FrameHeader {
    /// Reads a frame's first bytes. Nothing is checked: a frame is proven by the chain alone.
    #[must_use]
    pub fn parse(bytes: &[u8; FRAME_HEADER_LEN]) -> Self {
        let mut salts = Salts::default();
        salts.0.copy_from_slice(&bytes[8..16]);
        let sum = Sum(be32(&bytes[16..]), be32(&bytes[20..]));
        Self { page: be32(bytes), commit: be32(&bytes[4..]), salts, sum }
    }
}

/// Why an index cannot be read just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsettled {
    /// It is being written, or its writer died over it.
    #[error("its two headers differ")]
    Differ,
    /// Nobody has filled it yet.
    #[error("it has not been initialised")]
    Empty,
    /// Both copies are wrong alike.
    #[error("its checksum is wrong")]
    Checksum,
    /// It is of a format that we do not know.
    #[error("it has version {0}")]
    Version(u32),
}

/// What the index in shared memory says of the log: what is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// Counts transactions; begins anew when the index is recovered.
    pub change: u32,
    /// How the log's checksums are made.
    pub order: ByteOrder,
    /// Size of the pages; `None` before the first transaction.
    pub page_size: Option<PageSize>,
    /// The last frame that counts; 0 where there is none.
    pub frames: u32,
    /// The database's size in pages; 0 where the file's own size tells it.
    pub pages: u32,
    /// The checksum behind the last frame. Means nothing where there is none.
    pub sum: Sum,
    /// The log's salts.
    pub salts: Salts,
}

impl Index {
    /// Reads the two copies of the header. SQLite writes the second one first, so the first must have been read first.
    ///
    /// # Errors
    /// Why they say nothing. To try again may help.
    pub fn parse(words: &[u32; INDEX_WORDS]) -> Result<Self, Unsettled> {
        let (copy, second) = (&words[..COPY], &words[COPY..2 * COPY]);
        if copy != second {
            return Err(Unsettled::Differ);
        }
        let [initialised, big_endian, size @ ..] = raw(copy[3]);
        if initialised == 0 {
            return Err(Unsettled::Empty);
        }
        let sum = copy[..10].as_chunks::<2>().0.iter().fold(Sum::default(), |sum, [a, b]| sum.pair(*a, *b));
        if sum != Sum(copy[10], copy[11]) {
            return Err(Unsettled::Checksum);
        }
        if copy[0] != VERSION {
            return Err(Unsettled::Version(copy[0]));
        }
        let size = u32::from(half(size));
        let mut salts = Salts::default();
        salts.0[..4].copy_from_slice(&raw(copy[8]));
        salts.0[4..].copy_from_slice(&raw(copy[9]));
        Ok(Self {
            change: copy[2],
            order: if big_endian == 0 { ByteOrder::Little } else { ByteOrder::Big },
            page_size: PageSize::new((size & 0xfe00) | (size & 1) << 16),
            frames: copy[4],
            pages: copy[5],
            sum: Sum(copy[6], copy[7]),
            salts,
        })
    }
    /// The words of each copy that say all this, from the third one on. The others follow from them.
    #[must_use]
    pub fn words(&self) -> [u32; INDEX_SAYS] {
        let big_endian = u8::from(self.order == ByteOrder::Big);
        // 65,536 is written as 1.
        let [low, high] = halves(self.page_size.map_or(0, |size| (size.get() & 0xfe00 | size.get() >> 16) as u16));
        let [a, b, c, d, e, f, g, h] = self.salts.0;
        [
            self.change,
            word([1, big_endian, low, high]),
            self.frames,
            self.pages,
            self.sum.0,
            self.sum.1,
            word([a, b, c, d]),
            word([e, f, g, h]),
        ]
    }
}

/// What checkpoints say of themselves, behind the index's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backfill {
    /// Frames that are in the database file for certain.
    pub done: u32,
    /// Frames that may be.
    pub attempted: u32,
    /// Up to which frame each reader may read.
    pub read_marks: [u32; 5],
}

impl Backfill {
    /// Reads them.
    #[must_use]
    pub const fn parse(words: &[u32; INDEX_WORDS]) -> Self {
        let read_marks = [words[25], words[26], words[27], words[28], words[29]];
        Self { done: words[24], attempted: words[32], read_marks }
    }
}

/// A word's bytes as they lie in memory, which the index is mapped from.
#[expect(
    clippy::host_endian_bytes,
    reason = "the index is in the machine's own order, but for the salts, which are bytes"
)]
const fn raw(word: u32) -> [u8; 4] {
    word.to_ne_bytes()
}

#[expect(clippy::host_endian_bytes, reason = "the index is in the machine's own order")]
pub(crate) const fn word(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

#[expect(clippy::host_endian_bytes, reason = "the index is in the machine's own order")]
const fn halves(half: u16) -> [u8; 2] {
    half.to_ne_bytes()
}

#[expect(clippy::host_endian_bytes, reason = "the index is in the machine's own order")]
const fn half(bytes: [u8; 2]) -> u16 {
    u16::from_ne_bytes(bytes)
}

/// Something that is read at any place.
pub trait ReadAt {
    /// Fills `into` from `offset` on, as far as there is something; tells how far.
    ///
    /// # Errors
    /// Whatever the reader finds; an end is none.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            match FileExt::read_at(self, &mut into[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let len = rest.len().min(into.len());
        into[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

/// Why what the index counts cannot be read from the log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unproven {
    /// The log could not be read at all.
    #[error("cannot read the log: {0}")]
    Io(#[from] io::Error),
    /// The log's header is none.
    #[error("the log has no valid header")]
    Header,
    /// The log is another one than the index tells of.
    #[error("the log is not the one that its index tells of")]
    Foreign,
    /// The chain of checksums ends before the index says it does.
    #[error("the log ends behind frame {reached}, its index counts {expected}")]
    Short {
        /// The last frame of the chain.
        reached: u32,
        /// What should be there.
        expected: u32,
    },
    /// The chain does not end with what the index says.
    #[error("frame {0} is another one than the index tells of")]
    Different(u32),
    /// The log holds fewer frames than before.
    #[error("the log holds {now} frames, and once held {before}")]
    Shrunk {
        /// What was seen.
        before: u32,
        /// What is there.
        now: u32,
    },
}

/// A place in a log: behind a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The frame; 0 for the beginning.
    pub frame: u32,
    /// The checksum there.
    pub sum: Sum,
}

/// Where a frame stands, and what proves it without reading all those before it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRef {
    /// The frame's number, from 1.
    pub number: u32,
    /// The checksum before it.
    pub before: Sum,
    /// The checksum behind it.
    pub after: Sum,
}

/// A frame whose checksum is right.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Where it stands.
    pub place: FrameRef,
    /// The page.
    pub pgno: Pgno,
    /// The database's size in pages where the frame commits, otherwise 0.
    pub commit: u32,
    /// The page's content.
    pub page: &'a [u8],
}

/// A log with a valid header.
#[derive(Debug)]
pub struct Log<'a, R: ?Sized> {
    file: &'a R,
    /// The header.
    pub header: Header,
}

impl<'a, R: ReadAt + ?Sized> Log<'a, R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Unproven::Header`], or the reader's.
    pub fn open(file: &'a R) -> Result<Self, Unproven> {
        let mut bytes = [0; HEADER_LEN];
        let len = file.read_at(0, &mut bytes)?;
        let header = Header::parse(&bytes[..len]).ok_or(Unproven::Header)?;
        Ok(Self { file, header })
    }

    /// The beginning.
    #[must_use]
    pub const fn start(&self) -> Place {
        Place { frame: 0, sum: self.header.sum }
    }

    /// Hands out the frames behind `from`, up to `last` or to the end of the chain, whichever comes first. A frame that does not fit is
    /// the end, not an error.
    ///
    /// # Errors
    /// The reader's.
    pub fn walk(&self, from: Place, last: u32, mut each: impl FnMut(&Frame<'_>)) -> io::Result<Place> {
        let len = self.header.frame_len();
        let mut buffer = vec![0; len * (CHUNK / len).max(1).min(last.saturating_sub(from.frame) as usize)];
        let mut at = from;
        while at.frame < last {
            let wanted = (last - at.frame) as usize * len;
            let wanted = wanted.min(buffer.len());
            let read = self.file.read_at(self.header.offset(at.frame + 1), &mut buffer[..wanted])?;
            for bytes in buffer[..read].chunks_exact(len) {
                let Some(frame) = self.frame(at, bytes) else { return Ok(at) };
                each(&frame);
                at = Place { frame: frame.place.number, sum: frame.place.after };
            }
            if read < wanted {
                break;
            }
        }
        Ok(at)
    }

    fn frame<'b>(&self, at: Place, bytes: &'b [u8]) -> Option<Frame<'b>> {
        let (head, page) = bytes.split_first_chunk::<FRAME_HEADER_LEN>()?;
        let FrameHeader { page: pgno, commit, salts, sum } = FrameHeader::parse(head);
        let after = at.sum.update(self.header.order, &head[..8]).update(self.header.order, page);
        if salts != self.header.salts || sum != after {
            return None;
        }
        let place = FrameRef { number: at.frame.checked_add(1)?, before: at.sum, after };
        Some(Frame { place, pgno: Pgno::new(pgno)?, commit, page })
    }

    /// Hands out the frames behind `from` that the index counts. They are proven only when this has returned: the chain has ended exactly
    /// where the index says it does.
    ///
    /// # Errors
    /// Why they are not proven.
    pub fn read(&self, from: Place, to: &Index, mut each: impl FnMut(&Frame<'_>)) -> Result<(), Unproven> {
        let Header { order, page_size, salts, .. } = self.header;
        if salts != to.salts || order != to.order || to.page_size != Some(page_size) {
            return Err(Unproven::Foreign);
        }
        if to.frames < from.frame {
            return Err(Unproven::Shrunk { before: from.frame, now: to.frames });
        }
        let mut commit = to.pages;
        let reached = self.walk(from, to.frames, |frame| {
            commit = frame.commit;
            each(frame);
        })?;
        if reached.frame < to.frames {
            return Err(Unproven::Short { reached: reached.frame, expected: to.frames });
        }
        // The checksum of an empty log is stale. No frame but one that commits is ever the last.
        if to.frames > 0 && (reached.sum != to.sum || commit != to.pages || commit == 0) {
            return Err(Unproven::Different(to.frames));
        }
        Ok(())
    }

    /// Reads a page from a frame that was proven before, and proves it again.
    ///
    /// # Errors
    /// [`Unproven::Different`] where it is not the same any more, or the reader's.
    pub fn page(&self, pgno: Pgno, place: FrameRef, into: &mut Vec<u8>) -> Result<(), Unproven> {
        into.resize(self.header.frame_len(), 0);
        let read = self.file.read_at(self.header.offset(place.number), into)?;
        let before = Place { frame: place.number.saturating_sub(1), sum: place.before };
        let same = self.frame(before, &into[..read]).is_some_and(|frame| frame.pgno == pgno && frame.place == place);
        if !same || read < self.header.frame_len() {
            return Err(Unproven::Different(place.number));
        }
        into.drain(..FRAME_HEADER_LEN);
        Ok(())
    }

    /// What stands in a frame's header. Nothing is proven by that.
    ///
    /// # Errors
    /// The reader's.
    pub fn frame_header(&self, frame: u32) -> io::Result<Option<FrameHeader>> {
        let mut bytes = [0; FRAME_HEADER_LEN];
        let read = self.file.read_at(self.header.offset(frame), &mut bytes)?;
        Ok((frame > 0 && read == bytes.len()).then(|| FrameHeader::parse(&bytes)))
    }
}
