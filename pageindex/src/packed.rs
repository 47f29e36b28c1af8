//! A file's page index in little memory: two bytes and a bit for each page of a snapshot.
//!
//! Frames lie one behind the other, so an offset is the sum of the sizes before it. Sizes are kept as 16 bits wherever a frame cannot be
//! longer (pages up to 32 KiB), with the sum noted every 64 frames. A snapshot's page numbers need not be kept at all.

use ltx::{HEADER_LEN, IndexEntry, PageSize, Pgno, max_frame_len};

/// After how many frames the offset is noted.
const STRIDE: usize = 64;

/// An immutable index of one file.
#[derive(Clone, Debug)]
pub struct PackedIndex {
    /// `None` where the file holds every page from 1 on, but for the lock page.
    pgnos: Option<Box<[u32]>>,
    sizes: Sizes,
    /// The offset of every [`STRIDE`]-th frame.
    offsets: Box<[u64]>,
    lock_page: u32,
    len: usize,
}

#[derive(Clone, Debug)]
enum Sizes {
    Narrow(Box<[u16]>),
    Wide(Box<[u32]>),
}

/// Collects the entries of a [`PackedIndex`], which must come in the file's order.
#[derive(Debug)]
pub struct PackedIndexBuilder {
    pgnos: Option<Vec<u32>>,
    narrow: Vec<u16>,
    wide: Vec<u32>,
    is_wide: bool,
    offsets: Vec<u64>,
    next_offset: u64,
    lock_page: u32,
    len: usize,
}

impl PackedIndexBuilder {
    /// An empty index of a file with pages of this size.
    #[must_use]
    pub fn new(page_size: PageSize) -> Self {
        Self {
            pgnos: None,
            narrow: Vec::new(),
            wide: Vec::new(),
            is_wide: max_frame_len(page_size) > usize::from(u16::MAX),
            offsets: Vec::new(),
            next_offset: HEADER_LEN as u64,
            lock_page: page_size.lock_page().get(),
            len: 0,
        }
    }

    /// Adds the next frame.
    pub fn push(&mut self, entry: IndexEntry) {
        let number = entry.pgno.get();
        if self.pgnos.is_none() && number != nth_dense(self.len, self.lock_page) {
            self.pgnos = Some((0..self.len).map(|at| nth_dense(at, self.lock_page)).collect());
        }
        if let Some(pgnos) = &mut self.pgnos {
            pgnos.push(number);
        }
        if self.len.is_multiple_of(STRIDE) {
            self.offsets.push(self.next_offset);
        }
        if self.is_wide {
            self.wide.push(entry.size);
        } else {
            // `ltx` refuses frames longer than `max_frame_len`, which fits here.
            self.narrow.push(entry.size as u16);
        }
        self.next_offset += u64::from(entry.size);
        self.len += 1;
    }

    /// The finished index.
    #[must_use]
    pub fn finish(self) -> PackedIndex {
        PackedIndex {
            pgnos: self.pgnos.map(Vec::into_boxed_slice),
            sizes: if self.is_wide { Sizes::Wide(self.wide.into()) } else { Sizes::Narrow(self.narrow.into()) },
            offsets: self.offsets.into(),
            lock_page: self.lock_page,
            len: self.len,
        }
    }
}

/// The page number at a place of an index that holds every page but the lock page.
fn nth_dense(at: usize, lock_page: u32) -> u32 {
    let number = at as u32 + 1;
    if number >= lock_page { number + 1 } else { number }
}

impl PackedIndex {
    /// How many pages the file holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the file holds no pages.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The place of a page in the file's order.
    #[must_use]
    pub fn position(&self, pgno: Pgno) -> Option<usize> {
        let number = pgno.get();
        match &self.pgnos {
            Some(pgnos) => pgnos.binary_search(&number).ok(),
            None if number == self.lock_page => None,
            None => {
                let at = pgno.slot() - usize::from(number > self.lock_page);
                (at < self.len).then_some(at)
            }
        }
    }

    /// The entry at a place.
    ///
    /// # Panics
    /// Where there is no such place.
    #[must_use]
    pub fn entry(&self, at: usize) -> IndexEntry {
        let stride = at / STRIDE;
        let skipped: u64 = (stride * STRIDE..at).map(|at| u64::from(self.size(at))).sum();
        IndexEntry { pgno: self.pgno(at), offset: self.offsets[stride] + skipped, size: self.size(at) }
    }

    /// Where a page's frame lies.
    #[must_use]
    pub fn find(&self, pgno: Pgno) -> Option<IndexEntry> {
        self.position(pgno).map(|at| self.entry(at))
    }

    /// The entries from a place on, in the file's order.
    pub fn entries_from(&self, start: usize) -> impl Iterator<Item = IndexEntry> + '_ {
        let mut offset = if start < self.len { self.entry(start).offset } else { 0 };
        (start..self.len).map(move |at| {
            let entry = IndexEntry { pgno: self.pgno(at), offset, size: self.size(at) };
            offset = entry.end();
            entry
        })
    }

    /// All entries in the file's order.
    pub fn entries(&self) -> impl Iterator<Item = IndexEntry> + '_ {
        self.entries_from(0)
    }

    /// Bytes of memory that the index takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let sizes = match &self.sizes {
            Sizes::Narrow(sizes) => size_of_val(&**sizes),
            Sizes::Wide(sizes) => size_of_val(&**sizes),
        };
        size_of::<Self>() + sizes + size_of_val(&*self.offsets) + self.pgnos.as_deref().map_or(0, size_of_val)
    }

    fn size(&self, at: usize) -> u32 {
        match &self.sizes {
            Sizes::Narrow(sizes) => u32::from(sizes[at]),
            Sizes::Wide(sizes) => sizes[at],
        }
    }

    /// The page at a place.
    ///
    /// # Panics
    /// Where there is no such place.
    #[must_use]
    pub fn pgno(&self, at: usize) -> Pgno {
        let number = self.pgnos.as_deref().map_or_else(|| nth_dense(at, self.lock_page), |pgnos| pgnos[at]);
        // Only page numbers were ever pushed.
        Pgno::new(number).unwrap_or(Pgno::ONE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn build(page_size: PageSize, pages: &[(u32, u32)]) -> (PackedIndex, Vec<IndexEntry>) {
        let mut builder = PackedIndexBuilder::new(page_size);
        let mut offset = HEADER_LEN as u64;
        let mut model = Vec::new();
        for &(number, size) in pages {
            let entry = IndexEntry { pgno: Pgno::new(number).unwrap(), offset, size };
            builder.push(entry);
            model.push(entry);
            offset = entry.end();
        }
        (builder.finish(), model)
    }

    #[test]
    fn a_snapshot_of_one_gibibyte_takes_less_than_four_bytes_a_page() {
        let page_size = PageSize::new(4096).unwrap();
        let pages: Vec<_> = (1..=262_144u32).map(|n| (n, 1_000 + n % 3_000)).collect();
        let (index, _) = build(page_size, &pages);
        let per_page = index.memory() as f64 / 262_144.0;
        assert!(per_page < 4.0, "{per_page} bytes a page");
        assert!(per_page < 2.2, "{per_page} bytes a page: more than the module promises");
    }

    #[test]
    fn the_lock_page_is_skipped() {
        let page_size = PageSize::MAX;
        let pages: Vec<_> = (1..=16_390u32).filter(|n| *n != 16_385).map(|n| (n, 300 + n % 60_000)).collect();
        let (index, model) = build(page_size, &pages);
        assert!(index.pgnos.is_none());
        assert_eq!(index.find(page_size.lock_page()), None);
        assert_eq!(index.find(Pgno::new(16_391).unwrap()), None);
        for entry in &model {
            assert_eq!(index.find(entry.pgno), Some(*entry));
        }
        assert!(index.entries().eq(model.iter().copied()));
    }

    proptest! {
        #[test]
        fn finds_exactly_what_was_pushed(
            pages in proptest::collection::btree_map(1u32..500, 16u32..4000, 0..300),
            size in 0usize..8,
        ) {
            let pages: Vec<_> = pages.into_iter().collect();
            let (index, model) = build(PageSize::ALL[size], &pages);
            prop_assert_eq!(index.len(), model.len());
            for number in 1..520 {
                let pgno = Pgno::new(number).unwrap();
                let expected = model.iter().find(|entry| entry.pgno == pgno).copied();
                prop_assert_eq!(index.find(pgno), expected);
            }
            for start in [0, 1, 63, 64, 65, 200] {
                let expected: Vec<_> = model.iter().skip(start).copied().collect();
                prop_assert_eq!(index.entries_from(start).collect::<Vec<_>>(), expected);
            }
        }
    }
}
