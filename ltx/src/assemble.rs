//! Joining frames of other files into a new one, in any order and from many threads.
//!
//! Where every frame will lie follows from the sizes that the other files' indexes name ([`copied_len`]), so frames can be copied to their
//! places as they come. An [`Assembly`] then makes all that lies around them out of each frame's number, size and hash.

use crate::checksum::{Checksum, ContentHash, combine};
use crate::frame::{END_MARK, block_header, literal_block, literal_block_len};
use crate::index::{IndexBuilder, IndexEntry, check_page, check_snapshot};
use crate::{Error, Frame, HEADER_LEN, Header, PageSize, Pgno, Result, TRAILER_LEN, Trailer};

/// The CRC of one frame as it is hashed in a new file: its header there and the decompressed page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameHash(pub u64);

/// How long the copy of a frame will be, by the file's index. `legacy` tells whether the file holds legacy frames, which are rewrapped: one
/// whose page is stored plainly becomes a block of literals.
#[must_use]
pub fn copied_len(entry: &IndexEntry, legacy: bool, page_size: PageSize) -> u32 {
    if !legacy {
        return entry.size;
    }
    let block = entry.size.saturating_sub(crate::frame::LEGACY_OVERHEAD as u32);
    let block = if block >= page_size.get() { literal_block_len(page_size.bytes()) as u32 } else { block };
    block_header(entry.pgno, 0).len() as u32 + block
}

impl Frame<'_> {
    /// The hash of this frame's copy, whose decompressed page is given, and, where the copy is not simply [`Frame::bytes`], the copy itself.
    /// It is as long as [`copied_len`] says.
    #[must_use]
    pub fn copy(&self, page: &[u8]) -> (FrameHash, Option<Vec<u8>>) {
        let mut hash = ContentHash::default();
        if !self.is_legacy() {
            self.hash_into(page, &mut hash);
            return (FrameHash(hash.crc()), None);
        }
        let literals;
        let block = match self.block() {
            Some(block) if block.len() < page.len() => block,
            _ => {
                literals = literal_block(page);
                &literals
            }
        };
        let header = block_header(self.pgno(), block.len());
        hash.update(&header);
        hash.update(page);
        (FrameHash(hash.crc()), Some([&header[..], block].concat()))
    }
}

/// Everything of a new file but its frames.
pub struct Assembly {
    header: Header,
    crc: u64,
    step: Step,
    index: IndexBuilder,
    offset: u64,
    last: u32,
    count: u32,
}

impl Assembly {
    /// Begins a file, which carries no database checksums.
    ///
    /// # Errors
    /// A rule of the format that the header breaks, or [`Error::ChecksumField`] for one with database checksums or a commit of 0.
    pub fn new(header: Header) -> Result<Self> {
        header.validate()?;
        if header.has_checksums() || header.commit.0 == 0 {
            let rule = "a file that is joined from frames carries no database checksums and deletes no database";
            return Err(Error::ChecksumField { field: "post-apply checksum", value: Checksum::NONE, rule });
        }
        let mut hash = ContentHash::default();
        hash.update(&header.to_bytes());
        let frame = block_header(Pgno::ONE, 0).len() + header.page_size.bytes();
        Ok(Self {
            header,
            crc: hash.crc(),
            step: Step::over(frame as u64),
            index: IndexBuilder::default(),
            offset: HEADER_LEN as u64,
            last: 0,
            count: 0,
        })
    }

    /// Adds the next frame, which lies where the one before ends.
    ///
    /// # Errors
    /// [`Error::Page`] where the page does not belong here.
    pub fn frame(&mut self, pgno: Pgno, size: u32, hash: FrameHash) -> Result<()> {
        let Header { page_size, commit, .. } = self.header;
        check_page(pgno, self.last, commit, page_size, self.header.is_snapshot())?;
        self.index.push(IndexEntry { pgno, offset: self.offset, size });
        self.crc = self.step.take(self.crc) ^ hash.0;
        self.offset += u64::from(size);
        self.last = pgno.get();
        self.count += 1;
        Ok(())
    }

    /// What lies before the frames, where they end, and what lies behind them.
    ///
    /// # Errors
    /// [`Error::SnapshotIncomplete`].
    pub fn finish(self) -> Result<([u8; HEADER_LEN], u64, Vec<u8>)> {
        check_snapshot(self.count, self.header.commit, self.header.page_size, self.header.is_snapshot())?;
        let mut tail = END_MARK.to_vec();
        tail.extend_from_slice(&self.index.finish());
        let mut hash = ContentHash::default();
        hash.update(&tail);
        hash.update(&Checksum::NONE.0.to_be_bytes());
        let len = (tail.len() + TRAILER_LEN / 2) as u64;
        let crc = combine(self.crc, hash.crc(), len);
        let file_checksum = Checksum(crc | Checksum::FLAG);
        tail.extend_from_slice(&Trailer { post_apply_checksum: Checksum::NONE, file_checksum }.to_bytes());
        Ok((self.header.to_bytes(), self.offset, tail))
    }
}

/// What so many bytes behind it do to a CRC, as a table: combining is linear, and all frames of a file are hashed over the same length.
struct Step(Box<[[u64; 256]; 8]>);

impl Step {
    fn over(len: u64) -> Self {
        let mut table = Box::new([[0; 256]; 8]);
        for (place, row) in table.iter_mut().enumerate() {
            for bit in 0..8 {
                let moved = combine(1 << (place * 8 + bit), 0, len);
                for byte in (0..256).filter(|byte| byte & (1 << bit) != 0) {
                    row[byte] ^= moved;
                }
            }
        }
        Self(table)
    }

    #[inline]
    fn take(&self, crc: u64) -> u64 {
        self.0.iter().enumerate().fold(0, |sum, (place, row)| sum ^ row[(crc >> (place * 8)) as usize & 0xff])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Commit, Decoder, Encoder, Timestamp, Txid};

    #[test]
    fn a_step_is_what_combining_does() {
        for len in [522, 4106, 65_546] {
            let step = Step::over(len);
            for crc in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
                assert_eq!(step.take(crc), combine(crc, 0, len));
            }
        }
    }

    #[test]
    fn frames_that_are_joined_make_the_file_that_the_encoder_makes() {
        for page_size in PageSize::ALL {
            let header = Header::new(page_size, Commit(9), Txid(1), Txid(7), Timestamp(1));
            let mut encoder = Encoder::new(Vec::new(), header).unwrap();
            let page = |number: u32| vec![number as u8; page_size.bytes()];
            for number in 1..=9 {
                encoder.page(Pgno::new(number).unwrap(), &page(number)).unwrap();
            }
            let (whole, _) = encoder.finish().unwrap();
            let mut assembly = Assembly::new(header).unwrap();
            let mut at = HEADER_LEN;
            for number in 1..=9 {
                let frame = Frame::parse(&whole[at..], page_size).unwrap();
                let (hash, copy) = frame.copy(&page(number));
                assert!(copy.is_none());
                assembly.frame(frame.pgno(), frame.bytes().len() as u32, hash).unwrap();
                at += frame.bytes().len();
            }
            let (front, end, tail) = assembly.finish().unwrap();
            assert_eq!(end, at as u64);
            assert_eq!([&front[..], &whole[HEADER_LEN..at], &tail].concat(), whole);
        }
    }

    #[test]
    fn literals_decompress_to_the_page() {
        for page_size in PageSize::ALL {
            let page: Vec<u8> = (0..page_size.bytes()).map(|at| (at * 7 % 251) as u8).collect();
            let block = literal_block(&page);
            assert_eq!(block.len(), literal_block_len(page.len()));
            let bytes = [&block_header(Pgno::ONE, block.len())[..], &block].concat();
            let mut out = vec![0; page.len()];
            Frame::parse(&bytes, page_size).unwrap().decompress_into(&mut out).unwrap();
            assert_eq!(out, page);
        }
    }

    #[test]
    fn a_hole_in_a_snapshot_is_refused() {
        let header = Header::new(PageSize::MAX, Commit(2), Txid(1), Txid(1), Timestamp(1));
        let mut assembly = Assembly::new(header).unwrap();
        assert!(assembly.frame(Pgno::new(2).unwrap(), 30, FrameHash(1)).is_err());
        assert!(matches!(assembly.finish(), Err(Error::SnapshotIncomplete { have: 0, want: 2 })));
        assert!(Decoder::new(&[][..]).is_err());
    }
}
