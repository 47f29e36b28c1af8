//! Writing an LTX file, from pages or from frames of other files.

use std::io::Write;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::checksum::{Checksum, ContentHash, DatabaseChecksum};
use crate::frame::{END_MARK, block_header};
use crate::index::{IndexBuilder, IndexEntry, check_page, check_snapshot};
use crate::{Error, Frame, HEADER_LEN, Header, PageProblem, Pgno, Result, TRAILER_LEN, Trailer};

/// Writes one LTX file, front to back.
///
/// The encoder holds one page's worth of scratch space and the index (a few bytes a page). It refuses what a [`crate::Decoder`] would refuse:
/// pages out of order, the lock page, pages beyond the commit, a snapshot with a hole. Nothing is flushed or synced: that is the writer's
/// business.
pub struct Encoder<W> {
    writer: W,
    header: Header,
    hash: ContentHash,
    /// Only a snapshot with checksums needs its pages' sum: elsewhere the caller states it.
    database: Option<DatabaseChecksum>,
    index: IndexBuilder,
    offset: u64,
    last: u32,
    count: u32,
    table: CompressTable,
    block: Vec<u8>,
}

impl<W: Write> Encoder<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// A rule of the format that the header breaks, a commit of 0 without database checksums (such a file cannot exist), or the writer's.
    pub fn new(mut writer: W, header: Header) -> Result<Self> {
        header.validate()?;
        if header.commit.0 == 0 && !header.has_checksums() {
            let rule = "a file that deletes the database must carry database checksums";
            return Err(Error::ChecksumField { field: "post-apply checksum", value: Checksum::NONE, rule });
        }
        let bytes = header.to_bytes();
        let mut hash = ContentHash::default();
        hash.update(&bytes);
        writer.write_all(&bytes)?;
        Ok(Self {
            writer,
            header,
            hash,
            database: (header.has_checksums() && header.is_snapshot()).then(DatabaseChecksum::default),
            index: IndexBuilder::default(),
            offset: HEADER_LEN as u64,
            last: 0,
            count: 0,
            table: CompressTable::small(),
            block: vec![0; get_maximum_output_size(header.page_size.bytes())],
        })
    }

    /// Compresses and writes a page.
    ///
    /// # Errors
    /// [`Error::Page`] where the page does not belong here or has another size, or the writer's.
    pub fn page(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        let mut block = std::mem::take(&mut self.block);
        let result = compress_into_with_table(page, &mut block, &mut self.table)
            .map_err(|_| PageProblem::DataLength(page.len()).at(pgno.get()))
            .and_then(|len| self.block(pgno, &block[..len], page));
        self.block = block;
        result
    }

    /// Writes a page by copying its frame from another file, without compressing it again. `page` is what the frame decompresses to:
    /// [`Frame::decompress_into`] has checked that, and the file's checksum covers it. Legacy frames are rewrapped.
    ///
    /// # Errors
    /// [`Error::Page`] where the page does not belong here or has another size, or the writer's.
    pub fn frame(&mut self, frame: &Frame<'_>, page: &[u8]) -> Result<()> {
        match frame.block() {
            Some(block) => self.block(frame.pgno(), block, page),
            None => self.page(frame.pgno(), page),
        }
    }

    fn block(&mut self, pgno: Pgno, block: &[u8], page: &[u8]) -> Result<()> {
        let Header { page_size, commit, .. } = self.header;
        check_page(pgno, self.last, commit, page_size, self.header.is_snapshot())?;
        if page.len() != page_size.bytes() {
            return Err(PageProblem::DataLength(page.len()).at(pgno.get()));
        }
        let header = block_header(pgno, block.len());
        self.hash.update(&header);
        self.hash.update(page);
        if let Some(database) = &mut self.database {
            database.toggle(pgno, page);
        }
        self.writer.write_all(&header)?;
        self.writer.write_all(block)?;
        let size = (header.len() + block.len()) as u32;
        self.index.push(IndexEntry { pgno, offset: self.offset, size });
        self.offset += u64::from(size);
        self.last = pgno.get();
        self.count += 1;
        Ok(())
    }

    /// Bytes written so far.
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.offset
    }

    /// Ends the file and hands the writer back. A file with database checksums that is no snapshot needs
    /// [`Encoder::finish_with`].
    ///
    /// # Errors
    /// [`Error::SnapshotIncomplete`], [`Error::ChecksumField`], or the writer's.
    pub fn finish(self) -> Result<(W, Trailer)> {
        let post_apply = match self.database {
            Some(_) if self.header.commit.0 == 0 => Checksum(Checksum::FLAG),
            Some(database) => database.get(),
            None => Checksum::NONE,
        };
        self.finish_with(post_apply)
    }

    /// Ends the file with a database checksum of the caller's.
    ///
    /// # Errors
    /// As [`Encoder::finish`].
    pub fn finish_with(mut self, post_apply_checksum: Checksum) -> Result<(W, Trailer)> {
        check_snapshot(self.count, self.header.commit, self.header.page_size, self.header.is_snapshot())?;
        let index = self.index.finish();
        self.hash.update(&END_MARK);
        self.hash.update(&index);
        self.hash.update(&post_apply_checksum.0.to_be_bytes());
        let trailer = Trailer { post_apply_checksum, file_checksum: self.hash.checksum() };
        let bytes: [u8; TRAILER_LEN] = trailer.to_bytes();
        Trailer::parse(&bytes, &self.header)?;
        self.writer.write_all(&END_MARK)?;
        self.writer.write_all(&index)?;
        self.writer.write_all(&bytes)?;
        Ok((self.writer, trailer))
    }
}
