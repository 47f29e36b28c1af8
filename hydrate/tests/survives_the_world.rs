//! A restore gives the right bytes or a clear error and nothing at the output path: damage, vanishing files, faults; and it asks for little.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use litestream_fixtures::db::sha256_file;
use litestream_fixtures::golden::{self, Golden};
use litestream_fixtures::s3::{Faults, Operation, S3Options, S3Server};
use litestream_hydrate::{Overwrite, RestoreOptions, restore};
use litestream_pageindex::Target;
use litestream_storage::config::ReplicaConfig;
use litestream_storage::faults::{Fault, FaultyBackend};
use litestream_storage::file::FileBackend;
use litestream_storage::memory::MemoryBackend;
use litestream_storage::{Backend, Body, Level, PutOptions, Replica, RetryPolicy};
use ltx::{Commit, Encoder, FileName, Header, PageSize, Pgno, Timestamp, Txid};

fn files(folder: &Path) -> Replica {
    Replica::new(FileBackend::new(folder).into(), RetryPolicy::default())
}

fn latest_hash(golden: &Golden) -> String {
    golden.expected.latest().unwrap().sha256.clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_noticed_and_nothing_is_left() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let (mut noticed, mut harmless) = (0, 0);
    for name in ["page-size-512", "page-size-4096", "legacy-frames", "levels"] {
        let golden = golden::golden(name);
        let replica = work.path().join(name);
        golden.copy_replica(&replica).unwrap();
        let plan = litestream_pageindex::find(&files(&replica), Target::Latest).await.unwrap().0;
        for file in &plan.files {
            let path = replica.join(file.key());
            let bytes = std::fs::read(&path).unwrap();
            for number in 0..52 {
                let at = random.usize(0..bytes.len());
                let flip = (number >= 12).then(|| 1u8 << random.u8(0..8));
                let mut damaged = bytes.clone();
                match flip {
                    Some(bit) => damaged[at] ^= bit,
                    None => damaged.truncate(at),
                }
                std::fs::write(&path, &damaged).unwrap();
                match restore(&files(&replica), &out.join("db"), &RestoreOptions::default()).await {
                    Err(error) => {
                        noticed += 1;
                        let text = error.to_string();
                        assert!(text.contains(".ltx") || text.contains("missing"), "{text}");
                    }
                    Ok(_) => {
                        harmless += 1;
                        assert_eq!(
                            sha256_file(&out.join("db")).unwrap(),
                            latest_hash(&golden),
                            "{name}: byte {at} {flip:?}"
                        );
                        std::fs::remove_file(out.join("db")).unwrap();
                    }
                }
                assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0, "something is left at the output path");
            }
            std::fs::write(&path, &bytes).unwrap();
        }
    }
    assert!(noticed > 20 * harmless.max(1) && noticed > 500, "{noticed} noticed, {harmless} harmless");
}

/// A database of `commit` pages whose first TXID is a snapshot and whose later ones change one page each.
fn history(txids: u64, commit: u32) -> Vec<(FileName, Vec<u8>)> {
    let page_size = PageSize::new(4096).unwrap();
    let page = |seed: u64| {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..page_size.bytes()).map(|at| if at % 2 == 0 { 7 } else { random.u8(..) }).collect::<Vec<u8>>()
    };
    let file = |txid: u64| {
        let header =
            Header::new(page_size, Commit(commit), Txid(txid), Txid(txid), Timestamp(1_000 * txid.cast_signed()));
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        let pages = if txid == 1 { 1..=commit } else { (txid as u32 % commit + 1)..=(txid as u32 % commit + 1) };
        for number in pages {
            encoder.page(Pgno::new(number).unwrap(), &page(txid << 32 | u64::from(number))).unwrap();
        }
        (header.name(), encoder.finish().unwrap().0)
    };
    (1..=txids).map(file).collect()
}

async fn s3(server: &S3Server, policy: RetryPolicy) -> Replica {
    let mut config = ReplicaConfig::from_url(&format!("s3://bkt/db?endpoint={}", server.endpoint())).unwrap();
    config.set("access-key-id", server.access_key()).unwrap();
    config.set("secret-access-key", server.secret_key()).unwrap();
    litestream_storage::open(&config, policy).await.unwrap()
}

fn load(server: &S3Server, files: &[(FileName, Vec<u8>)]) {
    for (name, bytes) in files {
        server.put_object("bkt", &format!("db/0000/{name}"), bytes.clone(), &[]);
    }
    let (name, bytes) = &files[0];
    server.put_object("bkt", &format!("db/0009/{name}"), bytes.clone(), &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn few_requests_and_few_round_trips_suffice() {
    let server = S3Server::start(S3Options { latency: Duration::from_millis(2_000), ..S3Options::default() }).unwrap();
    load(&server, &history(302, 3_000));
    let folder = tempfile::tempdir().unwrap();
    let replica = s3(&server, RetryPolicy::default()).await;
    let options = RestoreOptions { parallelism: 512, ..RestoreOptions::default() };
    let restored = restore(&replica, &folder.path().join("db"), &options).await.unwrap();
    assert_eq!((restored.txid, restored.files), (Txid(302), 302));
    // Latency this high keeps a slow machine's late starts from looking like requests that waited for an answer.
    let stats = server.stats();
    assert!(stats.count(Operation::ListObjectsV2) <= 12, "{stats:?}");
    // The snapshot takes its head, its tail and a range for every 2 MiB; every other file one request.
    assert!(stats.count(Operation::GetObject) <= 301 + 9, "{stats:?}");
    assert_eq!(stats.total, stats.count(Operation::ListObjectsV2) + stats.count(Operation::GetObject));
    // LISTs; all files' heads and tails; the snapshot's ranges.
    assert!(stats.depth <= 4, "{} round trips", stats.depth);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_is_found_in_few_requests() {
    let server = S3Server::start(S3Options { latency: Duration::from_millis(20), ..S3Options::default() }).unwrap();
    load(&server, &history(302, 50));
    let folder = tempfile::tempdir().unwrap();
    for (moment, txid) in [(1_001, 1), (2_000, 1), (150_500, 150), (302_001, 302), (9_999_999, 302)] {
        let replica = s3(&server, RetryPolicy::default()).await;
        server.reset_stats();
        let options = RestoreOptions {
            target: Target::Before(Timestamp(moment)),
            overwrite: Overwrite::Replace,
            ..RestoreOptions::default()
        };
        let restored = restore(&replica, &folder.path().join("db"), &options).await.unwrap();
        assert_eq!(restored.txid, Txid(txid), "before {moment}");
        let extra = server.stats().count(Operation::GetObject) - restored.files as u64;
        assert!(extra <= 60, "{extra} requests to resolve a time among 302 files");
    }
    let options = RestoreOptions { target: Target::Before(Timestamp(1_000)), ..RestoreOptions::default() };
    let error =
        restore(&s3(&server, RetryPolicy::default()).await, &folder.path().join("none"), &options).await.unwrap_err();
    assert!(error.to_string().contains("just after 1970-01-01T00:00:01Z"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_every_kind_are_survived() {
    let faults = Faults {
        rate_503: 0.05,
        rate_cut: 0.05,
        rate_stall: 0.02,
        stall_for: Duration::from_secs(60),
        seed: 11,
        ..Faults::default()
    };
    let server = S3Server::start(S3Options { faults, ..S3Options::default() }).unwrap();
    let files = history(200, 2_000);
    load(&server, &files);
    let folder = tempfile::tempdir().unwrap();
    let policy = RetryPolicy {
        first_byte: Duration::from_millis(400),
        stall: Duration::from_millis(400),
        ..RetryPolicy::default()
    };
    let (good, bad) = (folder.path().join("good"), folder.path().join("db"));
    server.set_faults(Faults::default());
    restore(&s3(&server, policy.clone()).await, &good, &RestoreOptions::default()).await.unwrap();
    for seed in 1..=3 {
        server.set_faults(Faults { rate_503: 0.05, rate_cut: 0.05, rate_stall: 0.02, seed, ..Faults::default() });
        let replica = s3(&server, policy.clone()).await;
        let options = RestoreOptions { overwrite: Overwrite::Replace, ..RestoreOptions::default() };
        restore(&replica, &bad, &options).await.unwrap();
        assert_eq!(sha256_file(&bad).unwrap(), sha256_file(&good).unwrap());
        assert!(replica.stats().retries > 5, "the faults did not bite: {:?}", replica.stats());
    }
}

#[tokio::test]
async fn files_that_vanish_lead_to_a_new_plan_for_the_same_txid() {
    let store: Arc<dyn Backend> = MemoryBackend::new("vanish").into();
    let plain = Replica::new(store.clone(), RetryPolicy::default());
    let files = history(6, 20);
    for (name, bytes) in &files {
        store
            .put(&store.key(Level::ZERO, *name), &Body::Bytes(bytes.clone().into()), &PutOptions::default())
            .await
            .unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    restore(&plain, &folder.path().join("good"), &RestoreOptions::default()).await.unwrap();
    // At the first read of TXID 4, compaction has just replaced 2–5 and a seventh transaction has arrived.
    let (name, bytes) = (FileName::new(Txid(2), Txid(5)), merged(&files[1..5]));
    store.put(&store.key(Level::ONE, name), &Body::Bytes(bytes.into()), &PutOptions::default()).await.unwrap();
    let seventh = history(7, 20).pop().unwrap();
    let late = (store.key(Level::ZERO, seventh.0), seventh.1);
    let gone = Mutex::new(3u32);
    let inner = store.clone();
    let faulty = FaultyBackend::new(store.clone(), move |operation, key| {
        let mut gone = gone.lock().unwrap();
        if operation == "read" && *gone > 0 && key.contains("0001/") {
            *gone -= 1;
            return Fault::NotFound;
        }
        Fault::Pass
    });
    inner.put(&late.0, &Body::Bytes(late.1.into()), &PutOptions::default()).await.unwrap();
    let replica = Replica::new(Arc::new(faulty), RetryPolicy::default());
    let options = RestoreOptions { target: Target::Txid(Txid(6)), ..RestoreOptions::default() };
    let restored = restore(&replica, &folder.path().join("db"), &options).await.unwrap();
    assert_eq!(restored.txid, Txid(6));
    let same = |name: &str| sha256_file(&folder.path().join(name)).unwrap();
    assert_eq!(same("db"), same("good"));

    // A file that stays away is an error that says so, after a bounded number of tries.
    let forever = FaultyBackend::new(store, |operation, key| {
        if operation == "read" && key.contains("0001/") { Fault::NotFound } else { Fault::Pass }
    });
    let replica = Replica::new(Arc::new(forever), RetryPolicy::default());
    let error = restore(&replica, &folder.path().join("none"), &options).await.unwrap_err();
    assert!(error.to_string().contains("keep vanishing"), "{error}");
    assert!(!folder.path().join("none").exists());
}

/// The naive merge: the newest version of each page.
fn merged(files: &[(FileName, Vec<u8>)]) -> Vec<u8> {
    let mut pages = std::collections::BTreeMap::new();
    let mut last = None;
    for (_, bytes) in files {
        let mut decoder = ltx::Decoder::new(bytes.as_slice()).unwrap();
        let mut page = vec![0; decoder.header().page_size.bytes()];
        while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
            pages.insert(pgno, page.clone());
        }
        last = Some(*decoder.header());
    }
    let header = Header { min_txid: files[0].0.min, ..last.unwrap() };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (pgno, page) in pages {
        encoder.page(pgno, &page).unwrap();
    }
    encoder.finish().unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_at_the_output_path_stays_until_the_end() {
    let golden = golden::golden("page-size-4096");
    let replica = files(&golden.replica());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    std::fs::write(&path, "old").unwrap();
    let error = restore(&replica, &path, &RestoreOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("exists already"), "{error}");
    let refuse = RestoreOptions {
        overwrite: Overwrite::Replace,
        check: Some(Arc::new(|_| Err("no good".into()))),
        ..RestoreOptions::default()
    };
    assert_eq!(restore(&replica, &path, &refuse).await.unwrap_err().to_string(), "no good");
    let broken =
        RestoreOptions { overwrite: Overwrite::Replace, target: Target::Txid(Txid(999)), ..RestoreOptions::default() };
    restore(&replica, &path, &broken).await.unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    for sidecar in ["db-wal", "db-shm", "db-journal"] {
        std::fs::write(folder.path().join(sidecar), "old").unwrap();
    }
    let replace = RestoreOptions { overwrite: Overwrite::Replace, ..RestoreOptions::default() };
    restore(&replica, &path, &replace).await.unwrap();
    assert_eq!(sha256_file(&path).unwrap(), latest_hash(&golden));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the old database's sidecars are gone");

    std::fs::remove_file(&path).unwrap();
    std::fs::write(folder.path().join("db-wal"), "left over").unwrap();
    let error = restore(&replica, &path, &RestoreOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("db-wal") && error.to_string().contains("left over"), "{error}");
    let error = restore(&replica, folder.path(), &replace).await.unwrap_err();
    assert!(error.to_string().contains("is a directory"), "{error}");
}
