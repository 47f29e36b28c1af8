//! The log and its index are read as SQLite reads them: against a naive model, against logs that SQLite wrote, and against garbage.
#![allow(clippy::unwrap_used)]
#![expect(clippy::disallowed_methods, reason = "no other connection depends on the locks of these databases")]

use std::path::Path;

use litestream_replicate::wal::{
    Backfill, ByteOrder, FRAME_HEADER_LEN, HEADER_LEN, INDEX_WORDS, Index, Log, Salts, Sum, Unproven, Unsettled,
};
use ltx::PageSize;
use proptest::prelude::*;
use rusqlite::Connection;

/// A log as a writer makes it, one frame at a time.
struct Writer {
    bytes: Vec<u8>,
    order: ByteOrder,
    salts: [u8; 8],
    sum: (u32, u32),
}

/// The checksum as the format's description tells it: word by word.
fn sum(order: ByteOrder, (mut a, mut b): (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let word = |at: usize| {
        let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        match order {
            ByteOrder::Big => u32::from_be_bytes(word),
            ByteOrder::Little => u32::from_le_bytes(word),
        }
    };
    for at in (0..bytes.len()).step_by(8) {
        a = a.wrapping_add(word(at)).wrapping_add(b);
        b = b.wrapping_add(word(at + 4)).wrapping_add(a);
    }
    (a, b)
}

impl Writer {
    fn new(order: ByteOrder, page_size: u32, salts: [u8; 8]) -> Self {
        let magic = 0x377f_0682_u32 | u32::from(order == ByteOrder::Big);
        let mut bytes = Vec::new();
        for field in [magic, 3_007_000, page_size, 7] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.extend(salts);
        let sum = sum(order, (0, 0), &bytes);
        bytes.extend(sum.0.to_be_bytes());
        bytes.extend(sum.1.to_be_bytes());
        Self { bytes, order, salts, sum }
    }

    fn frame(&mut self, page: u32, commit: u32, content: &[u8]) {
        let mut head = Vec::from(page.to_be_bytes());
        head.extend(commit.to_be_bytes());
        self.sum = sum(self.order, sum(self.order, self.sum, &head), content);
        head.extend(self.salts);
        head.extend(self.sum.0.to_be_bytes());
        head.extend(self.sum.1.to_be_bytes());
        self.bytes.extend(head);
        self.bytes.extend(content);
    }
}

/// What SQLite's own recovery would find: all frames of the chain, as (page, commit, content, checksum).
type Found = Vec<(u32, u32, Vec<u8>, (u32, u32))>;

fn naive(log: &[u8]) -> Option<Found> {
    let be = |at: usize| u32::from_be_bytes([log[at], log[at + 1], log[at + 2], log[at + 3]]);
    if log.len() < HEADER_LEN || be(0) >> 1 != 0x377f_0682 >> 1 || be(4) != 3_007_000 {
        return None;
    }
    let order = if be(0) & 1 == 1 { ByteOrder::Big } else { ByteOrder::Little };
    let page_size = be(8);
    if !(512..=65536).contains(&page_size) || page_size.count_ones() != 1 {
        return None;
    }
    let mut chain = sum(order, (0, 0), &log[..24]);
    if chain != (be(24), be(28)) {
        return None;
    }
    let mut found = Vec::new();
    let mut at = HEADER_LEN;
    while at + FRAME_HEADER_LEN + page_size as usize <= log.len() {
        let content = &log[at + 24..at + 24 + page_size as usize];
        let next = sum(order, sum(order, chain, &log[at..at + 8]), content);
        if log[at + 8..at + 16] != log[16..24] || be(at) == 0 || next != (be(at + 16), be(at + 20)) {
            break;
        }
        chain = next;
        found.push((be(at), be(at + 4), content.to_vec(), chain));
        at += 24 + page_size as usize;
    }
    Some(found)
}

/// An index that counts `frames` frames of a log.
fn index(log: &[u8], frames: usize) -> [u32; INDEX_WORDS] {
    let found = naive(log).unwrap();
    let last = frames.checked_sub(1).map(|last| &found[last]);
    let raw = |at: usize| u32::from_le_bytes([log[at], log[at + 1], log[at + 2], log[at + 3]]);
    let page_size = u32::from_be_bytes([log[8], log[9], log[10], log[11]]);
    let size = if page_size == 65536 { 1 } else { page_size };
    // As it lies in the memory of a little-endian machine, which all of our tests run on.
    let flags = 1 | u32::from(log[3] & 1) << 8 | size << 16;
    let (a, b) = last.map_or((77, 88), |last| last.3);
    let mut words = vec![3_007_000, 0, 5, flags, frames as u32, last.map_or(0, |last| last.1), a, b, raw(16), raw(20)];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (a, b) = sum(ByteOrder::Little, (0, 0), &bytes);
    words.extend([a, b]);
    let mut all = [0; INDEX_WORDS];
    all[..12].copy_from_slice(&words);
    all[12..24].copy_from_slice(&words);
    all
}

fn walk(log: &[u8], last: u32) -> Option<Found> {
    let log = Log::open(log).ok()?;
    let mut found = Vec::new();
    log.walk(log.start(), last, |frame| {
        let Sum(a, b) = frame.place.after;
        assert_eq!(frame.place.number as usize, found.len() + 1);
        found.push((frame.pgno.get(), frame.commit, frame.page.to_vec(), (a, b)));
    })
    .unwrap();
    Some(found)
}

fn order() -> impl Strategy<Value = ByteOrder> {
    prop_oneof![Just(ByteOrder::Little), Just(ByteOrder::Big)]
}

prop_compose! {
    fn log()(
        order in order(),
        page_size in prop_oneof![Just(512_u32), Just(1024)],
        salts: [u8; 8],
        frames in prop::collection::vec((1_u32..9, 0_u32..4, any::<u8>()), 0..12),
    ) -> Vec<u8> {
        let mut writer = Writer::new(order, page_size, salts);
        for (page, commit, fill) in frames {
            let content: Vec<u8> = (0..page_size).map(|at| fill.wrapping_add(at as u8)).collect();
            writer.frame(page, commit, &content);
        }
        writer.bytes
    }
}

proptest! {
    #[test]
    fn a_log_ends_where_the_model_says(mut log in log(), damage in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 0..3), cut: Option<prop::sample::Index>) {
        for (at, flip) in damage {
            let at = at.index(log.len());
            log[at] ^= flip;
        }
        if let Some(cut) = cut {
            log.truncate(cut.index(log.len()));
        }
        prop_assert_eq!(walk(&log, u32::MAX), naive(&log));
    }

    #[test]
    fn only_what_the_index_counts_is_read_and_all_of_it(log in log(), counted: prop::sample::Index, from: prop::sample::Index) {
        let all = naive(&log).unwrap();
        let counted = counted.index(all.len() + 1);
        let words = index(&log, counted);
        let to = Index::parse(&words).unwrap();
        let open = Log::open(log.as_slice()).unwrap();
        let from = from.index(counted + 1);
        let start = open.walk(open.start(), from as u32, |_| {}).unwrap();
        let mut pages = Vec::new();
        let mut places = Vec::new();
        let read = open.read(start, &to, |frame| {
            pages.push((frame.pgno.get(), frame.commit, frame.page.to_vec(), (frame.place.after.0, frame.place.after.1)));
            places.push((frame.pgno, frame.place));
        });
        if counted > 0 && all[counted - 1].1 == 0 {
            prop_assert!(matches!(read, Err(Unproven::Different(_))), "no transaction ends there");
            return Ok(());
        }
        prop_assert!(read.is_ok(), "{:?}", read);
        prop_assert_eq!(&pages, &all[from..counted]);
        let mut page = Vec::new();
        for ((pgno, place), expected) in places.into_iter().zip(&pages) {
            open.page(pgno, place, &mut page).unwrap();
            prop_assert_eq!(&page, &expected.2);
        }
    }

    #[test]
    fn what_the_index_does_not_vouch_for_is_refused(log in log(), word in 0_usize..10, flip in 1_u32.., counted: prop::sample::Index) {
        let all = naive(&log).unwrap();
        prop_assume!(!all.is_empty());
        let counted = 1 + counted.index(all.len());
        let mut words = index(&log, counted);
        // A torn header, and one that is whole but wrong.
        words[word] ^= flip;
        prop_assert_eq!(Index::parse(&words), Err(Unsettled::Differ));
        words[12 + word] ^= flip;
        let refused = matches!(Index::parse(&words), Err(Unsettled::Checksum | Unsettled::Empty));
        prop_assert!(refused);
        // An index that is valid, but of another log, or further than the log.
        let true_index = Index::parse(&index(&log, counted)).unwrap();
        let open = Log::open(log.as_slice()).unwrap();
        let read = |to: &Index| open.read(open.start(), to, |_| {});
        let foreign = Index { salts: Salts(true_index.salts.0.map(|byte| !byte)), ..true_index };
        prop_assert!(matches!(read(&foreign), Err(Unproven::Foreign)));
        let other = Index { sum: Sum(true_index.sum.0 ^ flip, true_index.sum.1), ..true_index };
        prop_assert!(matches!(read(&other), Err(Unproven::Different(_))));
        let size = Index { pages: true_index.pages ^ flip, ..true_index };
        prop_assert!(matches!(read(&size), Err(Unproven::Different(_))));
        let longer = Index { frames: all.len() as u32 + 1 + flip % 1000, ..true_index };
        let short = matches!(read(&longer), Err(Unproven::Short { reached, .. }) if reached as usize == all.len());
        prop_assert!(short);
    }

    #[test]
    fn a_frame_that_changes_after_it_was_read_is_noticed(mut log in log(), at: prop::sample::Index, flip in 1_u8..) {
        let all = naive(&log).unwrap();
        prop_assume!(!all.is_empty());
        let before = log.clone();
        let open = Log::open(before.as_slice()).unwrap();
        let number = at.index(all.len());
        let mut place = None;
        open.walk(open.start(), number as u32 + 1, |frame| place = Some((frame.pgno, frame.place))).unwrap();
        let (pgno, place) = place.unwrap();
        let len = open.header.frame_len();
        let at = HEADER_LEN + number * len + at.index(len);
        log[at] ^= flip;
        let mut page = Vec::new();
        let changed = Log::open(log.as_slice()).unwrap();
        prop_assert!(matches!(changed.page(pgno, place, &mut page), Err(Unproven::Different(_))));
    }

    #[test]
    fn garbage_is_refused_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000), words: [u32; INDEX_WORDS], last: u32) {
        prop_assert_eq!(walk(&bytes, last), naive(&bytes).map(|mut all| { all.truncate(last as usize); all }));
        let _ = Backfill::parse(&words);
        prop_assert!(Index::parse(&words).is_err());
        // With a header that is right, so that garbage comes further.
        let mut writer = Writer::new(ByteOrder::Big, 512, [1; 8]);
        writer.bytes.extend(&bytes);
        prop_assert_eq!(walk(&writer.bytes, last), naive(&writer.bytes).map(|mut all| { all.truncate(last as usize); all }));
        let mut copied = words;
        copied.copy_within(..12, 12);
        prop_assert!(Index::parse(&copied).is_err());
    }
}

fn beside(path: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The log and the index of a database that SQLite has just written to.
fn sqlite_writes(path: &Path, page_size: u32) -> (Connection, Vec<u8>, [u32; INDEX_WORDS]) {
    let database = Connection::open(path).unwrap();
    database.pragma_update(None, "page_size", page_size).unwrap();
    database.pragma_update(None, "journal_mode", "wal").unwrap();
    database.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    database.execute_batch("CREATE TABLE t (a, b); BEGIN").unwrap();
    for row in 0..40 {
        database.execute("INSERT INTO t VALUES (?1, randomblob(700))", [row]).unwrap();
        if row % 7 == 0 {
            database.execute_batch("COMMIT; BEGIN").unwrap();
        }
    }
    // What is spilled is in the log, and not committed.
    database
        .execute_batch("COMMIT; PRAGMA cache_size=2; BEGIN; INSERT INTO t SELECT a, randomblob(9000) FROM t")
        .unwrap();
    let log = std::fs::read(beside(path, "-wal")).unwrap();
    let shared = std::fs::read(beside(path, "-shm")).unwrap();
    let mut words = [0; INDEX_WORDS];
    for (word, bytes) in words.iter_mut().zip(shared.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    (database, log, words)
}

#[test]
fn what_sqlite_commits_is_what_is_read_in_all_page_sizes() {
    for page_size in PageSize::ALL {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let (database, log, words) = sqlite_writes(&path, page_size.get());
        let index = Index::parse(&words).unwrap();
        assert_eq!((index.page_size, index.order), (Some(page_size), ByteOrder::Little));
        let open = Log::open(log.as_slice()).unwrap();
        assert_eq!((open.header.page_size, open.header.salts), (page_size, index.salts));
        let (mut last, mut commits) = (0, 0);
        open.read(open.start(), &index, |frame| {
            last = frame.place.number;
            commits += u32::from(frame.commit > 0);
        })
        .unwrap();
        assert_eq!(last, index.frames);
        assert_eq!(commits, index.change, "each transaction is counted once");
        let spilled = walk(&log, u32::MAX).unwrap().len() as u32;
        assert!(spilled > index.frames, "{page_size}: the open transaction is in the log");
        assert_eq!(Backfill::parse(&words).done, 0);
        database.execute_batch("ROLLBACK; PRAGMA wal_checkpoint(PASSIVE)").unwrap();
        let shared = std::fs::read(beside(&path, "-shm")).unwrap();
        let mut words = [0; INDEX_WORDS];
        for (word, bytes) in words.iter_mut().zip(shared.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let backfill = Backfill::parse(&words);
        assert_eq!((backfill.done, backfill.attempted), (index.frames, index.frames));
        assert!(backfill.read_marks.contains(&index.frames));
    }
}

/// SQLite itself is the judge: it recovers a log that we wrote in the other byte order.
#[test]
fn a_log_from_a_machine_of_the_other_byte_order_is_read_as_sqlite_reads_it() {
    for page_size in [512, 4096, 65536] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let (database, log, words) = sqlite_writes(&path, page_size);
        let committed = Index::parse(&words).unwrap().frames;
        let rows: i64 = database.query_row("SELECT count(*) / 2 FROM t", [], |row| row.get(0)).unwrap();
        let mut salts = [0; 8];
        salts.copy_from_slice(&log[16..24]);
        let mut writer = Writer::new(ByteOrder::Big, page_size, salts);
        for (page, commit, content, _) in walk(&log, committed).unwrap() {
            writer.frame(page, commit, &content);
        }
        let copy = folder.path().join("copy");
        std::fs::copy(&path, &copy).unwrap();
        std::fs::write(beside(&copy, "-wal"), &writer.bytes).unwrap();
        let copied = Connection::open(&copy).unwrap();
        let read: i64 = copied.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(read, rows, "SQLite reads what we wrote");
        let shared = std::fs::read(beside(&copy, "-shm")).unwrap();
        let mut words = [0; INDEX_WORDS];
        for (word, bytes) in words.iter_mut().zip(shared.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let index = Index::parse(&words).unwrap();
        assert_eq!((index.order, index.frames), (ByteOrder::Big, committed));
        let open = Log::open(writer.bytes.as_slice()).unwrap();
        open.read(open.start(), &index, |_| {}).unwrap();
    }
}
