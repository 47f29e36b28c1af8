//! When to read all that lies around a page: what a query asks for and no tree foretells.
//!
//! [`crate::btree`] knows what comes next as long as trees are walked. Long values (chains of pages), the free list, joins in an order of their
//! own and `integrity_check` are beyond it, and cost a round trip a page. Where one transaction has missed often, and in one *block* of the
//! database several times, the block is read whole; where pages that came like that were then read, so is more beside it. A few lookups never
//! get there, nor do many that lie far apart: what is read in vain stays a small multiple of what was of use.

use std::collections::HashMap;

/// How many pages a block has at most: as many as a block's marks have bits.
const MOST_PAGES: u32 = 128;
/// How many bytes of pages a block holds at most.
const BLOCK_BYTES: u32 = 512 << 10;
/// A transaction that has missed less often than this reads what it asks for.
const MISSES: u32 = 8;
/// How many misses in a block make it worth reading whole. Twice as many each time that what came has gone again before it was read.
const MISSES_IN_BLOCK: u32 = 4;
/// How many pages beside a block may be read for each one that has proven of use.
const TRUST: u32 = 2;
/// How many further blocks are read at once at most.
const MOST_BLOCKS: u32 = 64;

/// What bounds the reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) page_size: u32,
    /// How many pages the database has.
    pub(crate) pages: u32,
    /// How many pages may be read at once without driving out too much else.
    pub(crate) room: u32,
}

/// What one transaction has missed.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    blocks: HashMap<u32, Block>,
    misses: u32,
    last: u32,
    /// How many pages have come with others and were read, less what trust in more was spent already.
    proven: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    misses: u32,
    /// How often it was read whole.
    whole: u32,
    /// The pages that came with it and were not read yet.
    unread: u128,
}

impl Neighbours {
    /// A transaction has ended: what it was like says little of the next one.
    pub(crate) fn forget(&mut self) {
        if self.misses > 0 {
            *self = Self::default();
        }
    }

    /// A page had to be fetched that nobody had foreseen. Which others to fetch with it.
    pub(crate) fn missed(&mut self, pgno: u32, shape: Shape) -> Vec<u32> {
        let len = block_len(shape.page_size);
        let (at, backwards) = (pgno.saturating_sub(1) / len, pgno < self.last);
        self.last = pgno;
        self.misses = self.misses.saturating_add(1);
        let cost = len.div_ceil(TRUST);
        let is_whole =
            |block: Option<u32>| block.and_then(|at| self.blocks.get(&at)).is_some_and(|block| block.whole > 0);
        // The query goes on where what was read whole has ended.
        let goes_on =
            self.proven >= cost && !is_whole(Some(at)) && is_whole(at.checked_sub(1)) | is_whole(Some(at + 1));
        let block = self.blocks.entry(at).or_default();
        block.misses += 1;
        let due = goes_on || block.misses >= MISSES_IN_BLOCK << block.whole.min(8);
        if self.misses < MISSES || !due || shape.room < len {
            return Vec::new();
        }
        let mut wanted = self.take(at, len, shape.pages);
        let most = (self.proven / cost).min(MOST_BLOCKS).min(shape.room / len - 1);
        for block in self.beside(at, backwards, shape.pages.div_ceil(len), most as usize) {
            self.proven -= cost;
            wanted.extend(self.take(block, len, shape.pages));
        }
        wanted.retain(|page| *page != pgno);
        wanted
    }

    /// The blocks next to one that were not read whole yet: on the side that the query goes to, and then on the other one.
    fn beside(&self, at: u32, backwards: bool, all: u32, most: usize) -> Vec<u32> {
        let fresh = |block: &u32| self.blocks.get(block).is_none_or(|block| block.whole == 0);
        let (before, behind) = ((0..at).rev().filter(fresh), (at + 1..all).filter(fresh));
        if backwards { before.chain(behind).take(most).collect() } else { behind.chain(before).take(most).collect() }
    }

    /// Takes note of a page that was read from memory.
    pub(crate) fn read(&mut self, pgno: u32, page_size: u32) {
        if self.misses < MISSES {
            return;
        }
        let len = block_len(page_size);
        let (at, bit) = ((pgno.saturating_sub(1)) / len, 1 << (pgno.saturating_sub(1) % len));
        if let Some(block) = self.blocks.get_mut(&at).filter(|block| block.unread & bit != 0) {
            block.unread &= !bit;
            self.proven = self.proven.saturating_add(1);
        }
    }

    /// A block's pages, which are on their way from now on.
    fn take(&mut self, at: u32, len: u32, pages: u32) -> Vec<u32> {
        let first = at * len + 1;
        let wanted: Vec<u32> = (first..first.saturating_add(len)).take_while(|page| *page <= pages).collect();
        let block = self.blocks.entry(at).or_default();
        block.misses = 0;
        block.whole += 1;
        block.unread = u128::MAX >> (MOST_PAGES - len);
        wanted
    }
}

/// How many pages a block has.
fn block_len(page_size: u32) -> u32 {
    (BLOCK_BYTES / page_size.max(512)).clamp(1, MOST_PAGES)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database of 100,000 pages.
    const SHAPE: Shape = Shape { page_size: 4_096, pages: 100_000, room: 100_000 };

    /// Runs through pages, and counts those that had to be waited for and those that came in all.
    fn cost(pages: impl Iterator<Item = u32>) -> (u32, usize) {
        let (mut neighbours, mut memory, mut waits) = (Neighbours::default(), std::collections::HashSet::new(), 0);
        for page in pages {
            if memory.contains(&page) {
                neighbours.read(page, SHAPE.page_size);
                continue;
            }
            waits += 1;
            memory.insert(page);
            memory.extend(neighbours.missed(page, SHAPE));
        }
        (waits, memory.len())
    }

    #[test]
    fn a_few_pages_come_alone_wherever_they_lie() {
        assert_eq!(cost(1..8), (7, 7));
        assert_eq!(cost((0..500).map(|number| 1 + number * 199)), (500, 500));
    }

    #[test]
    fn a_broad_query_soon_reads_everything_in_either_direction() {
        for backwards in [false, true] {
            let page = |at: u32| if backwards { 50_000 - at } else { 30_000 + at };
            let (waits, came) = cost((0..20_000).map(page));
            assert!(waits < 30, "{waits}");
            assert!(came < 20_000 + 64 * 128 + 256, "{came}");
        }
        // In no order at all, as joins ask.
        let (waits, came) = cost((0..50_000).map(|at| 1 + (at * 7_919) % 10_000));
        assert!(waits < 1_000, "{waits}");
        assert!(came < 10_000 + 64 * 128, "{came}");
    }

    #[test]
    fn what_is_read_in_vain_stays_a_small_multiple() {
        // Four pages of each block: the worst that there is.
        let (_, came) = cost((0..700).flat_map(|block| [5, 60, 80, 100].map(|page| block * 128 + page)));
        assert!(came <= 700 * 128, "{came}");
        // Three.
        let (waits, came) = cost((0..700).flat_map(|block| [5, 60, 100].map(|page| block * 128 + page)));
        assert_eq!((waits, came), (2_100, 2_100));
        // Each tenth page: what came is read, but for the most part not.
        let (_, came) = cost((0..3_000).map(|number| 1 + number * 10));
        assert!(came <= 30_000 + 256, "{came}");
    }

    #[test]
    fn what_is_gone_before_it_was_read_is_not_read_whole_each_time() {
        let mut neighbours = Neighbours::default();
        let came: usize = (0..1_000).map(|at| neighbours.missed(1 + at % 128, SHAPE).len()).sum();
        assert!(came <= 10 * 128, "{came}");
    }

    #[test]
    fn a_small_cache_is_not_overrun() {
        let most = |room| {
            let mut neighbours = Neighbours::default();
            (0..5_000)
                .map(|page| {
                    neighbours.read(1 + page, SHAPE.page_size);
                    neighbours.missed(1 + page, Shape { room, ..SHAPE }).len()
                })
                .max()
        };
        assert_eq!(most(127), Some(0));
        assert!(most(1_000) > Some(128) && most(1_000) <= Some(1_000));
    }

    #[test]
    fn pages_of_every_size_and_the_last_ones_fit() {
        for page_size in [512, 1_024, 4_096, 65_536] {
            let mut neighbours = Neighbours::default();
            for page in (1..=9).chain(1..=9).chain([u32::MAX, u32::MAX, u32::MAX]) {
                let came = neighbours.missed(page, Shape { page_size, pages: 9, room: 1_000 });
                assert!(came.iter().all(|page| (1..=9).contains(page)), "{came:?}");
                neighbours.read(page, page_size);
            }
        }
    }
}
