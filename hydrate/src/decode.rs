//! From the bytes of a file's frames to pages in the output: decoded once, on whatever core is free, straight to their place.

use litestream_pageindex::{FramesHash, OpenFile, Span};
use ltx::Pgno;

use crate::{Error, Output, Result};

/// Where decoded pages go.
pub(crate) trait Pages {
    /// Takes neighbouring pages of a file, of which the first one lies at an offset of the database.
    fn take(&self, file: &OpenFile, pages: &[u8], offset: u64) -> Result<()>;
}

impl Pages for Output {
    fn take(&self, _: &OpenFile, pages: &[u8], offset: u64) -> Result<()> {
        self.write_at(pages, offset)
    }
}

/// How many bytes of neighbouring pages are gathered before they are written.
const RUN: usize = 1 << 20;

/// A set of numbers below some bound, one bit each.
#[derive(Clone, Debug)]
pub(crate) struct Bits(Box<[u64]>);

impl Bits {
    pub(crate) fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)].into())
    }

    pub(crate) fn contains(&self, at: usize) -> bool {
        self.0[at / 64] & 1 << (at % 64) != 0
    }

    /// Adds a number; tells whether it is new.
    pub(crate) fn insert(&mut self, at: usize) -> bool {
        let (word, bit) = (&mut self.0[at / 64], 1 << (at % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
}

/// Decodes a span: checks every frame against the index, hashes it, and writes the pages that `owned` names by their place.
pub(crate) fn decode(
    file: &OpenFile,
    span: &Span,
    mut bytes: &[u8],
    owned: &Bits,
    output: &dyn Pages,
) -> Result<FramesHash> {
    let page_size = file.header.page_size;
    let wrong = |source| Error::Plan(litestream_pageindex::Error::format(file.info.key(), source));
    let mut hash = file.hash();
    let mut scratch = vec![0; page_size.bytes()];
    let mut run = Run { pages: Vec::with_capacity(RUN + page_size.bytes()), offset: 0 };
    for (at, entry) in (span.frames.start..).zip(file.index.entries_from(span.frames.start).take(span.frames.len())) {
        let frame = file.frame(&entry, bytes)?;
        bytes = &bytes[frame.bytes().len()..];
        let page: &mut [u8] = if owned.contains(at) { run.next(entry.pgno, file, output)? } else { &mut scratch };
        frame.decompress_into(page).map_err(wrong)?;
        hash.add(&frame, page);
    }
    run.write(file, output)?;
    Ok(hash)
}

/// Neighbouring pages that are written together.
struct Run {
    pages: Vec<u8>,
    offset: u64,
}

impl Run {
    /// Room for the next page.
    fn next(&mut self, pgno: Pgno, file: &OpenFile, output: &dyn Pages) -> Result<&mut [u8]> {
        let page_size = file.header.page_size;
        let offset = pgno.offset(page_size);
        if offset != self.offset + self.pages.len() as u64 || self.pages.len() >= RUN {
            self.write(file, output)?;
            self.offset = offset;
        }
        let at = self.pages.len();
        self.pages.resize(at + page_size.bytes(), 0);
        Ok(&mut self.pages[at..])
    }

    fn write(&mut self, file: &OpenFile, output: &dyn Pages) -> Result<()> {
        if !self.pages.is_empty() {
            output.take(file, &self.pages, self.offset)?;
            self.pages.clear();
        }
        Ok(())
    }
}
