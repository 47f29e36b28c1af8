//! Reading an LTX file from front to back.

use std::io::Read;

use crate::checksum::{ContentHash, DatabaseChecksum};
use crate::frame::{END_MARK, Scan};
use crate::index::{IndexBuilder, IndexEntry, check_page, check_snapshot};
use crate::{Error, Frame, HEADER_LEN, Header, PageProblem, Pgno, Result, TRAILER_LEN, Trailer, max_frame_len};

/// How many frames' room the decoder's buffer has; 64 KiB or so for the usual page size.
const BUFFERED_FRAMES: usize = 16;

/// Reads one LTX file, front to back, checking everything there is to check.
///
/// Memory stays within a few pages and the index of the pages really seen, whatever the file claims. Until [`Decoder::next_page`] has
/// returned `None`, the pages handed out are not yet proven: the file's checksum stands at its end.
pub struct Decoder<R> {
    reader: R,
    header: Header,
    hash: ContentHash,
    database: DatabaseChecksum,
    index: IndexBuilder,
    offset: u64,
    last: u32,
    count: u32,
    buffer: Vec<u8>,
    /// What of the buffer is filled and not yet consumed.
    filled: std::ops::Range<usize>,
    trailer: Option<Trailer>,
}

impl<R: Read> Decoder<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// What [`Header::parse`] says, or the reader's.
    pub fn new(reader: R) -> Result<Self> {
        let mut decoder = Self {
            reader,
            header: Header::new(
                crate::PageSize::MAX,
                crate::Commit(0),
                crate::Txid(1),
                crate::Txid(1),
                Default::default(),
            ),
            hash: ContentHash::default(),
            database: DatabaseChecksum::default(),
            index: IndexBuilder::default(),
            offset: HEADER_LEN as u64,
            last: 0,
            count: 0,
            buffer: vec![0; HEADER_LEN],
            filled: 0..0,
            trailer: None,
        };
        decoder.fill(HEADER_LEN, "the header")?;
        decoder.header = Header::parse(&decoder.buffer)?;
        decoder.hash.update(&decoder.buffer[..HEADER_LEN]);
        decoder.filled = 0..0;
        decoder.buffer = vec![0; BUFFERED_FRAMES * max_frame_len(decoder.header.page_size)];
        Ok(decoder)
    }

    /// The header.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The trailer, once all pages have been read.
    #[must_use]
    pub const fn trailer(&self) -> Option<Trailer> {
        self.trailer
    }

    /// Reads the next page into `page`, which must be one page long. `None` means that the file has ended and all of it was right.
    ///
    /// # Errors
    /// Whatever is wrong with the file, or the reader's. After an error the decoder must not be used further.
    pub fn next_page(&mut self, page: &mut [u8]) -> Result<Option<Pgno>> {
        Ok(self.next_frame(page)?.map(|frame| frame.pgno()))
    }

    /// Like [`Decoder::next_page`], but hands out the frame too, for [`crate::Encoder::frame`].
    ///
    /// # Errors
    /// As [`Decoder::next_page`].
    pub fn next_frame(&mut self, page: &mut [u8]) -> Result<Option<Frame<'_>>> {
        if self.trailer.is_some() {
            return Ok(None);
        }
        let page_size = self.header.page_size;
        let len = loop {
            match Frame::scan(&self.buffer[self.filled.clone()], page_size)? {
                Scan::Need(need) => self.fill(need, "a page's frame")?,
                Scan::Frame(frame) => break frame.bytes().len(),
                Scan::End => return self.finish().map(|()| None),
            }
        };
        let at = self.filled.start;
        self.filled.start += len;
        let frame = Frame::parse(&self.buffer[at..at + len], page_size)?;
        let pgno = frame.pgno();
        if page.len() != page_size.bytes() {
            return Err(PageProblem::DataLength(page.len()).at(pgno.get()));
        }
        check_page(pgno, self.last, self.header.commit, page_size, self.header.is_snapshot())?;
        frame.decompress_into(page)?;
        frame.hash_into(page, &mut self.hash);
        if self.checks_database() {
            self.database.toggle(pgno, page);
        }
        self.index.push(IndexEntry { pgno, offset: self.offset, size: len as u32 });
        self.offset += len as u64;
        self.last = pgno.get();
        self.count += 1;
        Ok(Some(frame))
    }

    fn checks_database(&self) -> bool {
        self.header.is_snapshot() && self.header.has_checksums() && self.header.commit.0 != 0
    }

    /// The index must be exactly the one that the frames give; then nothing but the trailer may follow.
    fn finish(&mut self) -> Result<()> {
        self.filled.start += END_MARK.len();
        let Header { commit, page_size, .. } = self.header;
        check_snapshot(self.count, commit, page_size, self.header.is_snapshot())?;
        let index = std::mem::take(&mut self.index).finish();
        self.hash.update(&END_MARK);
        for expected in index.chunks(BUFFERED_FRAMES * page_size.bytes()) {
            self.fill(expected.len(), "the page index")?;
            let found = &self.buffer[self.filled.start..][..expected.len()];
            if found != expected {
                return Err(Error::Index("it differs from the frames"));
            }
            self.hash.update(found);
            self.filled.start += expected.len();
        }
        self.fill(TRAILER_LEN, "the trailer")?;
        let bytes = &self.buffer[self.filled.start..][..TRAILER_LEN];
        let trailer = Trailer::parse(bytes, &self.header)?;
        self.hash.update(&bytes[..TRAILER_LEN / 2]);
        self.filled.start += TRAILER_LEN;
        let more = loop {
            match self.reader.read(&mut self.buffer[..1]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => break read? != 0,
            }
        };
        if more || !self.filled.is_empty() {
            return Err(Error::TrailingBytes);
        }
        let (stored, computed) = (trailer.file_checksum, self.hash.checksum());
        if stored != computed {
            return Err(Error::FileChecksum { stored, computed });
        }
        let (stored, computed) = (trailer.post_apply_checksum, self.database.get());
        if self.checks_database() && stored != computed {
            return Err(Error::DatabaseChecksum { stored, computed });
        }
        self.trailer = Some(trailer);
        Ok(())
    }

    /// Makes sure that `need` bytes are in the buffer. `need` never exceeds what the buffer was made for.
    fn fill(&mut self, need: usize, what: &'static str) -> Result<()> {
        if self.filled.len() >= need {
            return Ok(());
        }
        self.buffer.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        while self.filled.end < need {
            match self.reader.read(&mut self.buffer[self.filled.end..]) {
                Ok(0) => {
                    return Err(Error::Truncated { what, need: need as u64, have: self.filled.end as u64 });
                }
                Ok(len) => self.filled.end += len,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Reads a whole file and checks everything; returns its two ends.
///
/// # Errors
/// As [`Decoder::next_page`].
pub fn verify(reader: impl Read) -> Result<(Header, Trailer)> {
    let mut decoder = Decoder::new(reader)?;
    let mut page = vec![0; decoder.header().page_size.bytes()];
    while decoder.next_page(&mut page)?.is_some() {}
    // `next_page` returns `None` only after it has stored the trailer.
    decoder.trailer().map(|trailer| (*decoder.header(), trailer)).ok_or(Error::Index("the file did not end"))
}
