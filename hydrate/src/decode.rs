//! From the bytes of a file's frames to pages in the output: decoded once, on whatever core is free, straight to their place.

use litestream_pageindex::{FramesHash, OpenFile, Span};
use ltx::Pgno;

use crate::{Error, Output, Result};

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
    output: &Output,
) -> Result<FramesHash> {
    let page_size = file.header.page_size;
    let wrong = |source| Error::Plan(litestream_pageindex::Error::format(file.info.key(), source));
    let mut hash = file.hash();
    let mut scratch = vec![0; page_size.bytes()];
    let mut run = Run { pages: Vec::with_capacity(RUN + page_size.bytes()), offset: 0 };
    for (at, entry) in (span.frames.start..).zip(file.index.entries_from(span.frames.start).take(span.frames.len())) {
        let frame = file.frame(&entry, bytes)?;
        bytes = &bytes[frame.bytes().len()..];
        let page: &mut [u8] =
            if owned.contains(at) { run.next(entry.pgno, page_size.bytes(), output)? } else { &mut scratch };
        frame.decompress_into(page).map_err(wrong)?;
        hash.add(&frame, page);
    }
    run.write(output)?;
    Ok(hash)
}

/// Neighbouring pages that are written together.
struct Run {
    pages: Vec<u8>,
    offset: u64,
}

impl Run {
    /// Room for the next page.
    fn next(&mut self, pgno: Pgno, page_size: usize, output: &Output) -> Result<&mut [u8]> {
        let offset = pgno.slot() as u64 * page_size as u64;
        if offset != self.offset + self.pages.len() as u64 || self.pages.len() >= RUN {
            self.write(output)?;
            self.offset = offset;
        }
        let at = self.pages.len();
        self.pages.resize(at + page_size, 0);
        Ok(&mut self.pages[at..])
    }

    fn write(&mut self, output: &Output) -> Result<()> {
        if !self.pages.is_empty() {
            output.write_at(&self.pages, self.offset)?;
            self.pages.clear();
        }
        Ok(())
    }
}
