//! A merged file gives just what its inputs give one after the other; a damaged input is never merged.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use litestream_pageindex::compact::{
    MergeOptions, Merged, compact_into, merge, next_inputs, snapshot, snapshot_inputs,
};
use litestream_pageindex::{Error, Listing, Plan, SMALL_FILE};
use litestream_storage::file::FileBackend;
use litestream_storage::memory::MemoryBackend;
use litestream_storage::{Body, FileInfo, Kind, Level, Replica, RetryPolicy};
use ltx::{Commit, Decoder, Encoder, FileName, Header, PageSize, Pgno, Timestamp, Txid};
use proptest::prelude::*;

/// A database or a file's content: pages by number.
type Pages = BTreeMap<u32, Vec<u8>>;

/// What one transaction does.
#[derive(Clone, Debug)]
struct Transaction {
    commit: u32,
    /// The first byte of each page that it writes stands for all of it.
    writes: Vec<(u32, u8)>,
}

/// Transactions as a writer captures them: every page that growth adds is among the writes.
#[derive(Clone, Debug)]
struct History {
    page_size: PageSize,
    transactions: Vec<Transaction>,
}

impl History {
    fn new(page_size: PageSize, raw: &[(u32, Vec<(u32, u8)>)]) -> Self {
        let mut before = 0;
        let complete = |(commit, writes): &(u32, Vec<(u32, u8)>)| {
            let mut pages: BTreeMap<u32, u8> = (before + 1..=*commit).map(|number| (number, number as u8)).collect();
            pages.extend(writes.iter().map(|(number, fill)| (number % commit + 1, *fill)));
            before = *commit;
            Transaction { commit: *commit, writes: pages.into_iter().collect() }
        };
        Self { page_size, transactions: raw.iter().map(complete).collect() }
    }

    /// The naive model: the transactions of a span, one after the other.
    fn content(&self, name: FileName) -> (Commit, Pages) {
        let mut pages = Pages::new();
        let mut commit = 0;
        for txid in name.min.0..=name.max.0 {
            let transaction = &self.transactions[txid as usize - 1];
            for (number, fill) in &transaction.writes {
                pages.insert(*number, page(self.page_size, *number, *fill));
            }
            commit = transaction.commit;
            pages.retain(|number, _| *number <= commit);
        }
        (Commit(commit), pages)
    }

    fn encode(&self, name: FileName) -> Vec<u8> {
        let (commit, pages) = self.content(name);
        encode(self.page_size, name, commit, &pages)
    }

    async fn put(&self, replica: &Replica, level: Level, name: FileName) -> FileInfo {
        put(replica, level, name, self.encode(name)).await
    }
}

/// Half of the pages compress well, the others not at all.
fn page(page_size: PageSize, number: u32, fill: u8) -> Vec<u8> {
    let mut state = u64::from(number) << 8 | u64::from(fill) | 1 << 40;
    let noise = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    if fill.is_multiple_of(2) { vec![fill; page_size.bytes()] } else { (0..page_size.bytes()).map(noise).collect() }
}

fn time(txid: Txid) -> Timestamp {
    Timestamp(1_700_000_000_000 + txid.0.cast_signed() * 1_000)
}

fn encode(page_size: PageSize, name: FileName, commit: Commit, pages: &Pages) -> Vec<u8> {
    let header = Header {
        wal_offset: 32,
        wal_size: 4_120,
        wal_salt: [7, 8],
        node_id: 9,
        ..Header::new(page_size, commit, name.min, name.max, time(name.max))
    };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (number, page) in pages {
        encoder.page(Pgno::new(*number).unwrap(), page).unwrap();
    }
    encoder.finish().unwrap().0
}

fn decode(bytes: &[u8]) -> (Header, Pages) {
    let mut decoder = Decoder::new(bytes).unwrap();
    let mut page = vec![0; decoder.header().page_size.bytes()];
    let mut pages = Pages::new();
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        pages.insert(pgno.get(), page.clone());
    }
    (*decoder.header(), pages)
}

fn name(min: u64, max: u64) -> FileName {
    FileName::new(Txid(min), Txid(max))
}

fn level(number: u8) -> Level {
    Level::new(number).unwrap()
}

fn memory() -> Replica {
    Replica::new(MemoryBackend::new("test").into(), RetryPolicy::default())
}

async fn put(replica: &Replica, level: Level, name: FileName, bytes: Vec<u8>) -> FileInfo {
    replica.put_file(level, name, Body::Bytes(bytes.into()), time(name.max)).await.unwrap()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

/// Merges into a new folder. Where that fails the folder must be empty.
async fn merged(replica: &Replica, files: &[FileInfo], options: &MergeOptions) -> Result<(Merged, Vec<u8>), Error> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.ltx");
    match merge(replica, files, &output, options).await {
        Ok(merged) => Ok((merged, std::fs::read(&output).unwrap())),
        Err(error) => {
            assert_eq!(entries(folder.path()), 0, "{error}: something was left behind");
            Err(error)
        }
    }
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

fn small_segments() -> MergeOptions {
    MergeOptions { segment: 1_500, ..MergeOptions::default() }
}

/// Spans that follow one another by the rules, overlaps and straddles included.
fn spans(first: u64, count: u64, steps: &[(u64, u64)]) -> Vec<FileName> {
    let mut spans = Vec::new();
    let mut reached = first.clamp(1, count) - 1;
    for (back, forth) in steps {
        let min = if spans.is_empty() { reached + 1 } else { (reached + 1).saturating_sub(*back).max(1) };
        let max = (reached + forth).min(count);
        if max > reached {
            spans.push(name(min, max));
            reached = max;
        }
    }
    spans
}

fn histories() -> impl Strategy<Value = History> {
    let writes = proptest::collection::vec((0u32..64, any::<u8>()), 0..8);
    let transactions = proptest::collection::vec((1u32..40, writes), 1..14);
    let sizes = prop_oneof![8 => 0usize..2, 1 => 2usize..8];
    (sizes, transactions).prop_map(|(size, raw)| History::new(PageSize::ALL[size], &raw))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_merged_file_is_its_transactions_one_after_the_other(
        history in histories(),
        first in 1u64..4,
        steps in proptest::collection::vec((0u64..4, 1u64..4), 1..9),
        segment in prop_oneof![Just(1u64), 500u64..20_000, Just(2 << 20)],
    ) {
        let files = spans(first, history.transactions.len() as u64, &steps);
        run(async {
            let replica = memory();
            let mut infos = Vec::new();
            for name in &files {
                infos.push(history.put(&replica, Level::ZERO, *name).await);
            }
            let seen = Arc::new(Mutex::new(Vec::new()));
            let sink = seen.clone();
            let progress: litestream_pageindex::compact::Progress = Arc::new(move |done| sink.lock().unwrap().push(done));
            let options = MergeOptions { segment, progress: Some(progress) };
            let (merged, bytes) = merged(&replica, &infos, &options).await.unwrap();
            let span = name(files[0].min.0, files[files.len() - 1].max.0);
            let (header, pages) = decode(&bytes);
            let (commit, expected) = expected(&history, &files);
            assert_eq!(header, Header::new(history.page_size, commit, span.min, span.max, time(span.max)));
            assert_eq!(pages, expected);
            let input_bytes = infos.iter().map(FileInfo::size).sum::<u64>();
            let pages = expected.len() as u64;
            assert_eq!(merged, Merged { header, size: bytes.len() as u64, input_bytes, pages });
            let seen = seen.lock().unwrap();
            assert!(seen.is_sorted() && seen.last() == Some(&input_bytes), "{seen:?}");
        });
    }

    #[test]
    fn one_flipped_bit_anywhere_is_refused(which in 0usize..3, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        // Odd fills do not compress: a block is one token, its length, and the page as it is.
        let raw: Vec<_> = (0..3).map(|_| (6, (0..6).map(|number| (number, 2 * number as u8 + 1)).collect())).collect();
        let history = History::new(PageSize::ALL[0], &raw);
        run(async {
            let replica = memory();
            let mut infos = Vec::new();
            let mut flipped = (0, 0);
            for txid in 1..=3 {
                let mut bytes = history.encode(name(txid, txid));
                if txid as usize == which + 1 {
                    flipped = (at.index(bytes.len()), bit);
                    bytes[flipped.0] ^= 1 << bit;
                }
                infos.push(put(&replica, Level::ZERO, name(txid, txid), bytes).await);
            }
            let outcome = merged(&replica, &infos, &small_segments()).await;
            if is_unused(flipped.0, flipped.1) {
                let (_, bytes) = outcome.unwrap();
                assert_eq!(decode(&bytes).1, history.content(name(1, 3)).1);
                return;
            }
            let error = outcome.map(|(merged, _)| merged).unwrap_err();
            let key = infos[which].key();
            assert!(
                matches!(&error, Error::Format { key: named, .. } if **named == *key)
                    || matches!(error, Error::PageSizeChanged { .. } | Error::Deleted { .. }),
                "{error}"
            );
        });
    }
}

/// The only bits of a file that mean nothing, so that no checksum covers them: the match length in the token of a block's last sequence,
/// which has no match. Here each block is one sequence, and each frame 10 bytes of header and 515 of block.
fn is_unused(at: usize, bit: u8) -> bool {
    let frames = ltx::HEADER_LEN..ltx::HEADER_LEN + 6 * 525;
    frames.contains(&at) && (at - frames.start) % 525 == 10 && bit < 4
}

#[test]
fn the_bits_that_mean_nothing_are_just_those() {
    let raw = [(6, (0..6).map(|number| (number, 2 * number as u8 + 1)).collect())];
    let bytes = History::new(PageSize::ALL[0], &raw).encode(name(1, 1));
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            assert_eq!(ltx::verify(flipped.as_slice()).is_ok(), is_unused(at, bit), "byte {at}, bit {bit}");
        }
    }
}

/// Files one after the other, as a restore applies them.
fn expected(history: &History, files: &[FileName]) -> (Commit, Pages) {
    let mut pages = Pages::new();
    let mut commit = Commit(0);
    for name in files {
        let (now, content) = history.content(*name);
        pages.extend(content);
        pages.retain(|number, _| *number <= now.0);
        commit = now;
    }
    (commit, pages)
}

#[test]
fn large_inputs_are_read_in_spans() {
    // Noise, so that files are larger than what is fetched whole.
    let raw: Vec<_> =
        (0..3).map(|k: u8| (200, (0..200).map(|n| (n, 2 * (k * 20 + n as u8 % 50) + 1)).collect())).collect();
    let history = History::new(PageSize::ALL[3], &raw);
    run(async {
        let replica = memory();
        let mut infos = Vec::new();
        for txid in 1..=3 {
            infos.push(history.put(&replica, Level::ZERO, name(txid, txid)).await);
        }
        assert!(infos.iter().all(|info| info.size() > 2 * SMALL_FILE));
        let (_, bytes) = merged(&replica, &infos, &MergeOptions { segment: 100_000, progress: None }).await.unwrap();
        assert_eq!(decode(&bytes).1, history.content(name(1, 3)).1);

        // The oldest version of a page in the middle is superseded twice; its damage is found all the same.
        let mut damaged = history.encode(name(1, 1));
        let middle = damaged.len() / 2;
        damaged[middle] ^= 4;
        let replica = memory();
        let mut infos = vec![put(&replica, Level::ZERO, name(1, 1), damaged).await];
        for txid in 2..=3 {
            infos.push(history.put(&replica, Level::ZERO, name(txid, txid)).await);
        }
        let error = merged(&replica, &infos, &MergeOptions::default()).await.unwrap_err();
        assert!(matches!(&error, Error::Format { key, .. } if **key == *infos[0].key()), "{error}");
    });
}

#[test]
fn files_that_do_not_go_together_are_refused() {
    let raw: Vec<_> = (0..6).map(|fill| (4, vec![(1, fill)])).collect();
    let history = History::new(PageSize::ALL[0], &raw);
    let other = History::new(PageSize::ALL[1], &raw);
    run(async {
        let replica = memory();
        let options = MergeOptions::default();
        let one = history.put(&replica, Level::ZERO, name(1, 1)).await;
        let three = history.put(&replica, Level::ZERO, name(3, 3)).await;
        let error = merged(&replica, &[one.clone(), three.clone()], &options).await.unwrap_err();
        assert!(matches!(error, Error::NonContiguous { have: Txid(1), next: Txid(3), .. }), "{error}");
        let error = merged(&replica, &[three, one.clone()], &options).await.unwrap_err();
        assert!(matches!(error, Error::OutOfOrder { .. }), "{error}");
        let error = merged(&replica, &[one.clone(), one.clone()], &options).await.unwrap_err();
        assert!(matches!(error, Error::OutOfOrder { .. }), "{error}");
        let error = merged(&replica, &[], &options).await.unwrap_err();
        assert!(matches!(error, Error::NothingToMerge { .. }), "{error}");
        let two = other.put(&replica, Level::ZERO, name(2, 2)).await;
        let error = merged(&replica, &[one.clone(), two], &options).await.unwrap_err();
        assert!(matches!(error, Error::PageSizeChanged { .. }), "{error}");

        // A writer that grew the database and left a page out.
        let hole = Pages::from([(1, page(history.page_size, 1, 0))]);
        let bytes = encode(history.page_size, name(2, 3), Commit(6), &hole);
        let hole = put(&replica, level(1), name(2, 3), bytes).await;
        let error = merged(&replica, &[one.clone(), hole], &options).await.unwrap_err();
        assert!(matches!(error, Error::Merge { .. }), "{error}");

        // A database that was deleted.
        let header = Header { flags: 0, ..Header::new(history.page_size, Commit(0), Txid(1), Txid(2), Timestamp(5)) };
        let bytes = Encoder::new(Vec::new(), header).unwrap().finish().unwrap().0;
        let gone = put(&replica, level(2), name(1, 2), bytes).await;
        let error = merged(&replica, &[one.clone(), gone], &options).await.unwrap_err();
        assert!(matches!(error, Error::Deleted { .. }), "{error}");

        replica.delete(std::slice::from_ref(&one)).await.unwrap();
        let error = merged(&replica, &[one], &options).await.unwrap_err();
        assert!(error.wants_new_plan(), "{error}");
    });
}

#[test]
fn what_was_there_is_not_overwritten() {
    let history = History::new(PageSize::ALL[0], &[(1, vec![])]);
    run(async {
        let replica = memory();
        let one = history.put(&replica, Level::ZERO, name(1, 1)).await;
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("precious");
        std::fs::write(&output, "precious").unwrap();
        let error = merge(&replica, &[one], &output, &MergeOptions::default()).await.unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert_eq!(std::fs::read(&output).unwrap(), b"precious");
    });
}

#[test]
fn a_level_takes_what_reaches_beyond_it_up_to_the_first_gap() {
    let listing = |files: &[(u8, u64, u64)]| {
        run(async {
            let replica = memory();
            for (number, min, max) in files {
                put(&replica, level(*number), name(*min, *max), b"-".to_vec()).await;
            }
            Listing::full(&replica).await.unwrap()
        })
    };
    let inputs = |files: &[(u8, u64, u64)], number| -> Vec<(u64, u64)> {
        let names = next_inputs(&listing(files), level(number)).into_iter().map(|file| file.name);
        names.map(|name| (name.min.0, name.max.0)).collect()
    };
    let zero = [(0, 3, 3), (0, 4, 4), (0, 5, 5), (0, 7, 7)];
    assert_eq!(inputs(&[], 1), []);
    assert_eq!(inputs(&zero, 1), [(3, 3), (4, 4), (5, 5)]);
    assert_eq!(inputs(&[&zero[..], &[(1, 1, 4)]].concat(), 1), [(5, 5)]);
    assert_eq!(inputs(&[&zero[..], &[(1, 1, 1)]].concat(), 1), [], "a gap before the first");
    assert_eq!(
        inputs(&[&zero[..], &[(1, 1, 1), (9, 1, 2)]].concat(), 1),
        [(3, 3), (4, 4), (5, 5)],
        "a snapshot spans it"
    );
    assert_eq!(inputs(&[&zero[..], &[(1, 1, 5), (9, 1, 5)]].concat(), 1), [], "a snapshot spans less than it");
    assert_eq!(inputs(&[&zero[..], &[(1, 1, 7)]].concat(), 1), []);
    assert_eq!(inputs(&[(1, 1, 3), (1, 3, 6), (1, 7, 9), (2, 1, 5)], 2), [(3, 6), (7, 9)], "the first straddles");
    assert_eq!(inputs(&[(8, 1, 3)], 9), []);
    assert_eq!(inputs(&zero, 0), []);
}

#[test]
fn compacted_levels_and_snapshots_give_the_same_database() {
    let raw: Vec<_> =
        (0..9u8).map(|k| (3 + u32::from(k % 4), vec![(u32::from(k), k), (u32::from(k) / 2, 2 * k)])).collect();
    let history = History::new(PageSize::ALL[0], &raw);
    run(async {
        let replica = memory();
        let scratch = tempfile::tempdir().unwrap();
        let options = small_segments();
        for txid in 1..=6 {
            history.put(&replica, Level::ZERO, name(txid, txid)).await;
        }
        let listing = Listing::full(&replica).await.unwrap();
        let stale = listing.clone();
        let one = compact_into(&replica, &listing, Level::ONE, scratch.path(), &options).await.unwrap().unwrap();
        assert_eq!((one.level, one.name), (Level::ONE, name(1, 6)));
        assert_eq!(one.object.time, Some(time(Txid(6))));
        let late = compact_into(&replica, &stale, Level::ONE, scratch.path(), &options).await.unwrap();
        assert_eq!(late, None, "another compactor was faster");

        for txid in 7..=9 {
            history.put(&replica, Level::ZERO, name(txid, txid)).await;
        }
        let listing = Listing::full(&replica).await.unwrap();
        let made = snapshot(&replica, &listing, scratch.path(), &options).await.unwrap().unwrap();
        assert_eq!((made.level, made.name), (Level::SNAPSHOT, name(1, 9)));
        let (header, pages) = decode(&replica.get_file(&made).await.unwrap());
        assert_eq!((header.commit, pages), history.content(name(1, 9)));
        let listing = Listing::full(&replica).await.unwrap();
        assert_eq!(snapshot_inputs(&replica, &listing).unwrap(), None);
        assert_eq!(snapshot(&replica, &listing, scratch.path(), &options).await.unwrap(), None);
        let two = compact_into(&replica, &listing, Level::ONE, scratch.path(), &options).await.unwrap().unwrap();
        assert_eq!(two.name, name(7, 9));
        assert_eq!(decode(&replica.get_file(&two).await.unwrap()).1, history.content(name(7, 9)).1);
        assert_eq!(entries(scratch.path()), 0, "scratch is empty again");

        // An input that vanishes between the listing and the merge.
        replica.delete(listing.level(Level::ONE)).await.unwrap();
        let error = compact_into(&replica, &listing, level(2), scratch.path(), &options).await.unwrap_err();
        assert!(matches!(&error, Error::Storage(error) if error.kind() == Kind::NotFound), "{error}");
        assert_eq!(entries(scratch.path()), 0, "scratch is empty again");
    });
}

#[test]
fn an_empty_replica_has_no_snapshot_to_make() {
    run(async {
        let replica = memory();
        let error = snapshot_inputs(&replica, &Listing::default()).unwrap_err();
        assert!(matches!(error, Error::NoBackup { .. }), "{error}");
    });
}

#[test]
fn replicas_by_real_litestream_merge_to_what_their_files_hold() {
    let mut merges = 0;
    for golden in litestream_fixtures::golden::all() {
        run(async {
            let replica = Replica::new(Arc::new(FileBackend::new(golden.replica())), RetryPolicy::default());
            let listing = Listing::full(&replica).await.unwrap();
            if listing.is_empty() {
                return; // v0.3
            }
            let plan =
                Plan::new(&replica, &listing, litestream_pageindex::Target::Latest, litestream_pageindex::Cutoff::NONE);
            let plan = plan.unwrap_or_else(|error| panic!("{}: {error}", golden.name));
            let mut pages = Pages::new();
            for file in &plan.files {
                let (header, content) = decode(&replica.get_file(file).await.unwrap());
                pages.extend(content);
                pages.retain(|number, _| header.commit.contains(Pgno::new(*number).unwrap()));
            }
            let (_, bytes) = merged(&replica, &plan.files, &small_segments()).await.unwrap();
            assert_eq!(decode(&bytes).1, pages, "{}", golden.name);
            merges += 1;
        });
    }
    assert!(merges >= 10, "only {merges} golden replicas were merged");
}

#[test]
fn a_damaged_end_mark_is_refused() {
    // A bug once: the hash of a file's tail takes the end mark for granted, so that no checksum notices.
    let raw: Vec<_> = (0..2).map(|k| (130, (0..130).map(|n| (n, 2 * (n as u8 % 50 + k) + 1)).collect())).collect();
    let (small, large) = (History::new(PageSize::ALL[0], &raw), History::new(PageSize::ALL[3], &raw));
    let no_pages = encode(PageSize::ALL[0], name(2, 2), Commit(130), &Pages::new());
    for (what, first, second) in [
        ("small", small.encode(name(1, 1)), small.encode(name(2, 2))),
        ("large", large.encode(name(1, 1)), large.encode(name(2, 2))),
        ("without pages", small.encode(name(1, 1)), no_pages),
    ] {
        let length = u64::from_be_bytes(*second[second.len() - 24..].first_chunk().unwrap()) as usize;
        let mark = second.len() - 24 - length - 6;
        assert_eq!(second[mark..mark + 6], [0; 6]);
        for at in mark..mark + 6 {
            run(async {
                let mut damaged = second.clone();
                damaged[at] ^= 1;
                let replica = memory();
                let one = put(&replica, Level::ZERO, name(1, 1), first.clone()).await;
                let two = put(&replica, Level::ZERO, name(2, 2), damaged).await;
                let whole = put(&replica, Level::ONE, name(2, 2), second.clone()).await;
                assert_eq!(what == "large", two.size() > SMALL_FILE);
                let outcome = merged(&replica, &[one.clone(), two.clone()], &small_segments()).await;
                let error = outcome.map(|(merged, _)| merged).unwrap_err();
                assert!(matches!(&error, Error::Format { key, .. } if **key == *two.key()), "{what}: {error}");
                assert!(merged(&replica, &[one, whole], &small_segments()).await.is_ok(), "{what}");
            });
        }
    }
}

/// Exhaustive, where the property above takes samples: a merge refuses just what a decoder refuses.
#[test]
fn a_merge_refuses_what_a_decoder_refuses() {
    let raw = [(2, (0..2).map(|number| (number, 2 * number as u8 + 1)).collect())];
    let bytes = History::new(PageSize::ALL[0], &raw).encode(name(1, 1));
    run(async {
        for at in 0..bytes.len() {
            for bit in [0, 3, 7] {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let sound = ltx::verify(flipped.as_slice()).is_ok();
                let replica = memory();
                let info = put(&replica, Level::ZERO, name(1, 1), flipped).await;
                let outcome = merged(&replica, &[info], &MergeOptions::default()).await;
                assert_eq!(outcome.is_ok(), sound, "byte {at}, bit {bit}");
            }
        }
    });
}

#[test]
fn a_snapshot_with_another_databases_checksum_is_refused() {
    let page_size = PageSize::new(512).unwrap();
    for right in [true, false] {
        let header = Header { flags: 0, ..Header::new(page_size, Commit(3), Txid(1), Txid(2), Timestamp(5)) };
        let mut encoder = ltx::Encoder::new(Vec::new(), header).unwrap();
        for number in 1..=3 {
            encoder.page(Pgno::new(number).unwrap(), &page(page_size, number, 7)).unwrap();
        }
        let (bytes, _) = if right {
            encoder.finish().unwrap()
        } else {
            encoder.finish_with(ltx::Checksum(ltx::Checksum::FLAG | 5)).unwrap()
        };
        run(async {
            let replica = memory();
            let info = put(&replica, Level::ZERO, name(1, 2), bytes).await;
            let outcome = merged(&replica, &[info], &MergeOptions::default()).await;
            assert_eq!(outcome.is_ok(), right, "{outcome:?}");
        });
    }
}
