//! What a view has fetched of small files stays readable as long as the view lives, wherever it is kept.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use litestream_pageindex::{Listing, OpenFile, Plan, Spill, Target, View, find, open_file};
use litestream_storage::memory::MemoryBackend;
use litestream_storage::{Body, FileInfo, Level, Replica, RetryPolicy};
use ltx::{Commit, Encoder, FileName, Header, PageSize, Pgno, Timestamp, Txid};

const PAGES: u32 = 64;
const FILES: u64 = 60;
/// How many pages each transaction but the first one writes.
const WRITES: u64 = 5;

/// A page that does not compress, as a transaction wrote it.
fn page(pgno: u32, txid: u64) -> Vec<u8> {
    let mut state = u64::from(pgno) << 32 | txid;
    let noise = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..size().bytes()).map(noise).collect()
}

fn size() -> PageSize {
    PageSize::new(4096).unwrap()
}

fn writes(pgno: u32, txid: u64) -> bool {
    txid == 1 || (0..WRITES).any(|n| (txid * 13 + n * 7) % u64::from(PAGES) + 1 == u64::from(pgno))
}

/// The naive model: a page as the last transaction left it that wrote it.
fn newest(pgno: u32, txid: u64) -> Vec<u8> {
    let by = (1..=txid).rev().find(|txid| writes(pgno, *txid)).unwrap();
    page(pgno, by)
}

async fn put(replica: &Replica, txid: u64) -> FileInfo {
    let name = FileName::new(Txid(txid), Txid(txid));
    let time = Timestamp(1_700_000_000_000);
    let header = Header::new(size(), Commit(PAGES), name.min, name.max, time);
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for pgno in (1..=PAGES).filter(|pgno| writes(*pgno, txid)) {
        encoder.page(Pgno::new(pgno).unwrap(), &page(pgno, txid)).unwrap();
    }
    let bytes = encoder.finish().unwrap().0;
    replica.put_file(Level::ZERO, name, Body::Bytes(bytes.into()), time).await.unwrap()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

/// A replica of so many transactions, and the plan to its end.
async fn replica(files: u64) -> (Replica, Plan) {
    let replica = Replica::new(MemoryBackend::new("test").into(), RetryPolicy::default());
    for txid in 1..=files {
        put(&replica, txid).await;
    }
    let (plan, _) = find(&replica, Target::Latest).await.unwrap();
    (replica, plan)
}

async fn delete_all(replica: &Replica) {
    let files: Vec<FileInfo> = Listing::full(replica).await.unwrap().files().cloned().collect();
    replica.delete(&files).await.unwrap();
}

/// How many of the view's pages are at hand. Those that are must be right.
fn check(view: &View) -> u32 {
    let mut at_hand = 0;
    for pgno in 1..=PAGES {
        let place = view.locate(Pgno::new(pgno).unwrap()).unwrap();
        let bytes = place.file.at_hand(&place.frame);
        assert_eq!(bytes.is_some(), place.file.has_at_hand(&place.frame));
        if let Some(bytes) = bytes {
            let mut page = vec![0; size().bytes()];
            place.file.decompress(&place.frame, &bytes, &mut page).unwrap();
            assert_eq!(page, newest(pgno, view.txid().0), "page {pgno} at {}", view.txid());
            at_hand += 1;
        }
    }
    at_hand
}

fn in_memory(files: &[Arc<OpenFile>]) -> u64 {
    files.iter().map(|file| file.front.len() as u64).sum()
}

/// How many files without a name this process has open, where the system tells. (Only one test here makes any.)
fn temporary_files() -> usize {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return 0 };
    let links = open.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().ends_with(" (deleted)")).count()
}

#[test]
fn small_files_that_are_deleted_stay_readable_while_a_view_names_them() {
    const MEMORY: u64 = 64 << 10;
    run(async {
        let spill = Arc::new(Spill::new(MEMORY, 64 << 20));
        let (replica, plan) = replica(FILES).await;
        let opened = View::open(&replica, &plan, &[], &spill).await.unwrap();
        let mut further = Vec::new();
        for txid in FILES + 1..=FILES + 20 {
            let info = put(&replica, txid).await;
            further.push(Arc::new(open_file(&replica, &info).await.unwrap()));
        }
        delete_all(&replica).await;
        // As the follower does, one after the other, while a reader keeps the first one.
        let mut derived = opened.clone();
        for file in further {
            derived = derived.derive(&[file], &spill).await.unwrap();
        }
        for view in [&opened, &derived] {
            assert!(in_memory(view.files()) <= MEMORY);
            assert!(view.spilled_bytes() > MEMORY, "{} bytes", view.spilled_bytes());
            assert_eq!(check(view), PAGES, "at {}", view.txid());
        }
        if cfg!(target_os = "linux") {
            assert!(temporary_files() > 0);
        }
        drop(opened);
        assert_eq!(check(&derived), PAGES);
        drop(derived);
        assert_eq!(temporary_files(), 0);
    });
}

#[test]
fn what_is_beyond_memory_and_disk_is_dropped_the_oldest_first() {
    run(async {
        let (replica, plan) = replica(FILES).await;
        let spill = Arc::new(Spill::new(256 << 10, 0));
        let view = View::open(&replica, &plan, &[], &spill).await.unwrap();
        assert!(in_memory(view.files()) <= 256 << 10);
        assert_eq!(view.spilled_bytes(), 0);
        assert!((1..PAGES).contains(&check(&view)), "{} pages", check(&view));
        let kept: Vec<bool> = view.files().iter().map(|file| file.is_whole()).collect();
        assert!(kept.is_sorted(), "{kept:?}");
    });
}
