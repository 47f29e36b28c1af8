//! Whose content each page of a local file holds: a table that is read without a lock while it is written.
//!
//! A word for each page: the opened file whose frame the page was written from, and a count of the writes. A reader takes the word before and
//! after it reads the page; where both are the same and name the file that it wants, what it read is that file's page and nothing else. A writer
//! claims the page first, so that nobody believes in it while it changes, and two never write it at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use ltx::Pgno;

/// How many pages the first bucket has; each has twice as many as the one before, so a table grows without moving.
const FIRST: usize = 4096;
const BUCKETS: usize = 21;
/// How many bits count the writes. Only a reader that slept through all of them in one read could be deceived.
const COUNT_BITS: u32 = 16;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
/// What stands in place of a file while a page is written.
const CLAIMED: u64 = u64::MAX >> COUNT_BITS;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Owners([OnceLock<Box<[AtomicU64]>>; BUCKETS]);

/// A page's word, as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(u64);

impl Word {
    const fn of(id: u64, count: u64) -> Self {
        Self(id << COUNT_BITS | count & COUNT)
    }

    const fn id(self) -> u64 {
        self.0 >> COUNT_BITS
    }

    const fn count(self) -> u64 {
        self.0 & COUNT
    }

    /// Whether the page is that of the file with this number.
    const fn is(self, file: u64) -> bool {
        self.id() == owner(file)
    }
}

/// Files are numbered from 0, which stands for none here.
const fn owner(file: u64) -> u64 {
    file + 1
}

/// The bucket of a page, and its place there.
fn place(pgno: Pgno) -> (usize, usize) {
    let shifted = pgno.slot() + FIRST;
    let bucket = (shifted / FIRST).ilog2();
    (bucket as usize, shifted - (FIRST << bucket))
}

impl Owners {
    fn cell(&self, pgno: Pgno) -> Option<&AtomicU64> {
        let (bucket, at) = place(pgno);
        self.0[bucket].get().map(|cells| &cells[at])
    }

    fn made(&self, pgno: Pgno) -> &AtomicU64 {
        let (bucket, at) = place(pgno);
        &self.0[bucket].get_or_init(|| (0..FIRST << bucket).map(|_| AtomicU64::new(0)).collect())[at]
    }

    /// Whether a page is the file's.
    pub(crate) fn is(&self, pgno: Pgno, file: u64) -> bool {
        self.cell(pgno).is_some_and(|cell| Word(cell.load(Ordering::Relaxed)).is(file))
    }

    /// Before a page is read: its word, where it is the file's.
    pub(crate) fn before(&self, pgno: Pgno, file: u64) -> Option<Word> {
        let word = Word(self.cell(pgno)?.load(Ordering::Acquire));
        word.is(file).then_some(word)
    }

    /// After it was read: whether it was that file's all the time.
    pub(crate) fn still(&self, pgno: Pgno, word: Word) -> bool {
        // The page is read before the word is read again.
        fence(Ordering::Acquire);
        self.cell(pgno).is_some_and(|cell| cell.load(Ordering::Relaxed) == word.0)
    }

    /// Claims a page for writing the file's. False where it is that already, or somebody else writes it. Whoever is given it ends with
    /// [`Owners::publish`] or [`Owners::release`].
    pub(crate) fn claim(&self, pgno: Pgno, file: u64) -> bool {
        let cell = self.made(pgno);
        let claim = |word: u64| {
            let word = Word(word);
            let free = !word.is(file) && word.id() != CLAIMED;
            free.then(|| Word::of(CLAIMED, word.count() + 1).0)
        };
        let claimed = cell.fetch_update(Ordering::AcqRel, Ordering::Relaxed, claim).is_ok();
        // The page is written after it is claimed.
        fence(Ordering::SeqCst);
        claimed
    }

    /// A page that was claimed has been written.
    pub(crate) fn publish(&self, pgno: Pgno, file: u64) {
        self.end(pgno, owner(file));
    }

    /// A page that was claimed could not be written: it is nobody's.
    pub(crate) fn release(&self, pgno: Pgno) {
        self.end(pgno, 0);
    }

    fn end(&self, pgno: Pgno, id: u64) {
        let cell = self.made(pgno);
        let count = Word(cell.load(Ordering::Relaxed)).count();
        cell.store(Word::of(id, count).0, Ordering::Release);
    }

    /// Makes a page nobody's if it is the file's; tells whether it was.
    pub(crate) fn forget(&self, pgno: Pgno, file: u64) -> bool {
        let forget = |word: u64| Word(word).is(file).then(|| Word::of(0, Word(word).count()).0);
        self.cell(pgno).is_some_and(|cell| cell.fetch_update(Ordering::AcqRel, Ordering::Relaxed, forget).is_ok())
    }

    /// Says that a page is the file's, whose content it has. Only while nobody writes.
    pub(crate) fn adopt(&self, pgno: Pgno, file: u64) {
        self.end(pgno, owner(file));
    }

    /// Makes all pages nobody's. Only while nobody writes.
    pub(crate) fn clear(&self) {
        for cell in self.0.iter().filter_map(OnceLock::get).flatten() {
            let count = Word(cell.load(Ordering::Relaxed)).count();
            cell.store(Word::of(0, count).0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn pgno(number: u32) -> Pgno {
        Pgno::new(number).unwrap()
    }

    #[test]
    fn every_page_has_a_place_of_its_own() {
        let mut before = (0, 0);
        for number in 2..300_000 {
            let next = place(pgno(number));
            let after = if before.1 + 1 == FIRST << before.0 { (before.0 + 1, 0) } else { (before.0, before.1 + 1) };
            assert_eq!(next, after, "{number}");
            before = next;
        }
        assert!(place(pgno(u32::MAX - 1)).0 < BUCKETS);
    }

    #[test]
    fn a_page_is_claimed_once_and_never_twice_for_one_file() {
        let owners = Owners::default();
        assert!(!owners.is(pgno(7), 0) && owners.before(pgno(7), 0).is_none());
        assert!(owners.claim(pgno(7), 0));
        assert!(!owners.claim(pgno(7), 1), "it is being written");
        owners.publish(pgno(7), 0);
        assert!(owners.is(pgno(7), 0) && !owners.claim(pgno(7), 0));
        let word = owners.before(pgno(7), 0).unwrap();
        assert!(owners.claim(pgno(7), 1) && !owners.still(pgno(7), word));
        owners.release(pgno(7));
        assert!(!owners.is(pgno(7), 0) && !owners.is(pgno(7), 1));
        // The same file's page once more is another word: it was written in between.
        assert!(owners.claim(pgno(7), 0));
        owners.publish(pgno(7), 0);
        assert!(!owners.still(pgno(7), word));
        assert!(owners.forget(pgno(7), 0) && !owners.forget(pgno(7), 0));
    }

    /// Readers and writers at random on few pages of a real file: whatever is believed is whole, and the right file's.
    #[test]
    fn rule_18_what_readers_believe_is_never_torn_nor_another_files() {
        const PAGE: usize = 4096;
        const PAGES: u32 = 4;
        const FILES: u64 = 3;
        let file = tempfile::tempfile().unwrap();
        let owners = Owners::default();
        let done = AtomicBool::new(false);
        let believed = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2)
                .map(|seed| {
                    let (file, owners) = (&file, &owners);
                    scope.spawn(move || {
                        let mut random = fastrand::Rng::with_seed(seed);
                        for _ in 0..20_000 {
                            let (page, id) = (random.u32(1..=PAGES), random.u64(0..FILES));
                            if owners.claim(pgno(page), id) {
                                let content = [page as u8 * 16 + id as u8; PAGE];
                                file.write_all_at(&content, u64::from(page) * PAGE as u64).unwrap();
                                if random.u8(..) < 8 {
                                    owners.release(pgno(page));
                                } else {
                                    owners.publish(pgno(page), id);
                                }
                            } else if random.u8(..) < 8 {
                                owners.forget(pgno(page), id);
                            }
                        }
                    })
                })
                .collect();
            let readers: Vec<_> = (10..12)
                .map(|seed| {
                    let (file, owners, done) = (&file, &owners, &done);
                    scope.spawn(move || {
                        let mut random = fastrand::Rng::with_seed(seed);
                        let (mut believed, mut content) = (0, [0; PAGE]);
                        while !done.load(Ordering::Relaxed) {
                            let (page, id) = (random.u32(1..=PAGES), random.u64(0..FILES));
                            let Some(word) = owners.before(pgno(page), id) else { continue };
                            if file.read_exact_at(&mut content, u64::from(page) * PAGE as u64).is_ok()
                                && owners.still(pgno(page), word)
                            {
                                believed += 1;
                                let right = page as u8 * 16 + id as u8;
                                assert!(content.iter().all(|byte| *byte == right), "page {page} of {id}");
                            }
                        }
                        believed
                    })
                })
                .collect();
            for writer in writers {
                writer.join().unwrap();
            }
            done.store(true, Ordering::Relaxed);
            readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u64>()
        });
        assert!(believed > 1_000, "{believed} reads were believed");
    }
}
