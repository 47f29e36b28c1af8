//! One page's frame: a small header and the page, compressed with LZ4.

use twox_hash::XxHash32;

use crate::checksum::ContentHash;
use crate::{Error, PageProblem, PageSize, Pgno, Result};

/// Length of a frame's header, without the size field.
pub const FRAME_HEADER_LEN: usize = 6;
/// The end of the frames: a frame header of page 0.
pub(crate) const END_MARK: [u8; FRAME_HEADER_LEN] = [0; FRAME_HEADER_LEN];
/// The frame flag for "a size field follows".
const FLAG_SIZE: u16 = 0x1;
/// How every legacy LZ4 frame begins: version 1, independent blocks of 64 KiB, a content checksum, no content size.
const LEGACY_MAGIC: [u8; 7] = [0x04, 0x22, 0x4d, 0x18, 0x64, 0x40, 0xa7];
/// An LZ4 frame's bit for "this block is not compressed".
const LEGACY_STORED: u32 = 1 << 31;
/// Everything in a legacy frame but the block: page header, LZ4 header, block size, end mark, checksum.
pub(crate) const LEGACY_OVERHEAD: usize = FRAME_HEADER_LEN + LEGACY_MAGIC.len() + 4 + 8;

/// The largest LZ4 block that a page can need: all literals.
pub(crate) const fn max_block_len(page_size: PageSize) -> usize {
    page_size.bytes() + page_size.bytes() / 255 + 16
}

/// The largest frame that a page can need, header included. A longer one is refused before anything is read.
#[must_use]
pub const fn max_frame_len(page_size: PageSize) -> usize {
    FRAME_HEADER_LEN + 4 + max_block_len(page_size)
}

/// One page as it lies in a file, not yet decompressed.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pgno: Pgno,
    /// The whole frame.
    bytes: &'a [u8],
    /// Its LZ4 block, or the page itself where a legacy frame stores it plainly.
    block: &'a [u8],
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Block,
    Legacy { stored: bool, checksum: u32 },
}

/// What [`Frame::scan`] found at the front of some bytes.
pub(crate) enum Scan<'a> {
    /// A whole frame.
    Frame(Frame<'a>),
    /// The end mark.
    End,
    /// At least this many bytes are needed to go on.
    Need(usize),
}

impl<'a> Frame<'a> {
    /// Reads the frame at the front of `bytes`; further bytes are ignored.
    ///
    /// Only the frame's structure is checked here. Whether the page belongs into the file, the caller knows; whether the data is a page,
    /// [`Frame::decompress_into`] tells.
    ///
    /// # Errors
    /// [`Error::Truncated`] where the frame is longer than `bytes`, [`Error::Page`] where it is none.
    pub fn parse(bytes: &'a [u8], page_size: PageSize) -> Result<Self> {
        match Self::scan(bytes, page_size)? {
            Scan::Frame(frame) => Ok(frame),
            Scan::End => Err(PageProblem::NotIndexed.at(0)),
            Scan::Need(need) => {
                Err(Error::Truncated { what: "a page's frame", need: need as u64, have: bytes.len() as u64 })
            }
        }
    }

    /// Like [`Frame::parse`], but says how many bytes it still needs and knows the end mark: for streams.
    pub(crate) fn scan(bytes: &'a [u8], page_size: PageSize) -> Result<Scan<'a>> {
        let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>() else {
            return Ok(Scan::Need(FRAME_HEADER_LEN));
        };
        if *header == END_MARK {
            return Ok(Scan::End);
        }
        let [p0, p1, p2, p3, f0, f1] = *header;
        let number = u32::from_be_bytes([p0, p1, p2, p3]);
        let pgno = Pgno::new(number).ok_or_else(|| PageProblem::OutOfOrder.at(0))?;
        match u16::from_be_bytes([f0, f1]) {
            FLAG_SIZE => Self::scan_block(pgno, bytes, rest, page_size),
            0 => Self::scan_legacy(pgno, bytes, rest, page_size),
            flags => Err(PageProblem::Flags(flags).at(number)),
        }
    }

    fn scan_block(pgno: Pgno, bytes: &'a [u8], rest: &'a [u8], page_size: PageSize) -> Result<Scan<'a>> {
        let Some((size, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(Scan::Need(FRAME_HEADER_LEN + 4));
        };
        let size = u32::from_be_bytes(*size);
        if size as usize > max_block_len(page_size) {
            return Err(PageProblem::TooLarge(size).at(pgno.get()));
        }
        let len = FRAME_HEADER_LEN + 4 + size as usize;
        let (Some(bytes), Some(block)) = (bytes.get(..len), rest.get(..size as usize)) else {
            return Ok(Scan::Need(len));
        };
        Ok(Scan::Frame(Self { pgno, bytes, block, kind: Kind::Block }))
    }

    /// The format of Litestream before 0.5.16: an LZ4 *frame* with one block, and no size in front.
    #[allow(clippy::little_endian_bytes, reason = "the LZ4 frame format is little-endian")]
    fn scan_legacy(pgno: Pgno, bytes: &'a [u8], rest: &'a [u8], page_size: PageSize) -> Result<Scan<'a>> {
        let fail = |what| Err(PageProblem::Legacy(what).at(pgno.get()));
        let Some((magic, rest)) = rest.split_first_chunk::<7>() else {
            return Ok(Scan::Need(LEGACY_OVERHEAD));
        };
        if *magic != LEGACY_MAGIC {
            return fail("unexpected header");
        }
        let Some((size, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(Scan::Need(LEGACY_OVERHEAD));
        };
        let size = u32::from_le_bytes(*size);
        let stored = size & LEGACY_STORED != 0;
        let size = size & !LEGACY_STORED;
        if size as usize > page_size.bytes() {
            return Err(PageProblem::TooLarge(size).at(pgno.get()));
        }
        let len = LEGACY_OVERHEAD + size as usize;
        let (Some(bytes), Some((block, footer))) = (bytes.get(..len), rest.split_at_checked(size as usize)) else {
            return Ok(Scan::Need(len));
        };
        let [e0, e1, e2, e3, c0, c1, c2, c3, ..] = *footer else {
            return Ok(Scan::Need(len));
        };
        if [e0, e1, e2, e3] != [0; 4] {
            return fail("more than one block");
        }
        let kind = Kind::Legacy { stored, checksum: u32::from_le_bytes([c0, c1, c2, c3]) };
        Ok(Scan::Frame(Self { pgno, bytes, block, kind }))
    }

    /// The page's number.
    #[must_use]
    pub const fn pgno(&self) -> Pgno {
        self.pgno
    }

    /// The whole frame.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether the frame is of the kind that only Litestream before 0.5.16 wrote.
    #[must_use]
    pub fn is_legacy(&self) -> bool {
        self.kind != Kind::Block
    }

    /// The page's LZ4 block, where the frame holds one.
    pub(crate) fn block(&self) -> Option<&'a [u8]> {
        (!matches!(self.kind, Kind::Legacy { stored: true, .. })).then_some(self.block)
    }

    /// The part of the frame that goes into the file's checksum before the decompressed page.
    pub(crate) fn hashed_header(&self) -> &'a [u8] {
        &self.bytes[..if self.is_legacy() { FRAME_HEADER_LEN } else { FRAME_HEADER_LEN + 4 }]
    }

    /// Decompresses the page into `page`, which must be exactly one page long.
    ///
    /// # Errors
    /// [`Error::Page`] where the data is not exactly one page, or a legacy frame's own checksum differs. The content of `page` is then
    /// unspecified.
    pub fn decompress_into(&self, page: &mut [u8]) -> Result<()> {
        let pgno = self.pgno.get();
        let wrong = || PageProblem::Decompress.at(pgno);
        match self.block() {
            Some(block) => {
                let len = lz4_flex::block::decompress_into(block, page).map_err(|_| wrong())?;
                if len != page.len() {
                    return Err(wrong());
                }
            }
            None if self.block.len() == page.len() => page.copy_from_slice(self.block),
            None => return Err(wrong()),
        }
        if let Kind::Legacy { checksum, .. } = self.kind
            && XxHash32::oneshot(0, page) != checksum
        {
            return Err(PageProblem::Legacy("checksum differs").at(pgno));
        }
        Ok(())
    }

    /// Adds this frame, whose decompressed page is given, to a file's hash.
    pub fn hash_into(&self, page: &[u8], hash: &mut ContentHash) {
        hash.update(self.hashed_header());
        hash.update(page);
    }
}

/// Writes the header of a frame whose block has `size` bytes.
pub(crate) fn block_header(pgno: Pgno, size: usize) -> [u8; FRAME_HEADER_LEN + 4] {
    let [p0, p1, p2, p3] = pgno.get().to_be_bytes();
    let [f0, f1] = FLAG_SIZE.to_be_bytes();
    // A block is at most `max_block_len` bytes, far below 4 GiB.
    let [s0, s1, s2, s3] = (size as u32).to_be_bytes();
    [p0, p1, p2, p3, f0, f1, s0, s1, s2, s3]
}

/// How long the LZ4 block is that holds so many bytes, 15 or more, as literals only.
pub(crate) const fn literal_block_len(len: usize) -> usize {
    1 + (len - 15) / 255 + 1 + len
}

/// A page as an LZ4 block of literals: the form of a page that does not compress.
pub(crate) fn literal_block(page: &[u8]) -> Vec<u8> {
    let mut block = Vec::with_capacity(literal_block_len(page.len()));
    block.push(0xf0);
    let rest = page.len() - 15;
    block.resize(1 + rest / 255, 0xff);
    block.push((rest % 255) as u8);
    block.extend_from_slice(page);
    block
}
