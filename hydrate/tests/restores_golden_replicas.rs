//! Every replica that real Litestream wrote restores to the bytes that real Litestream restores it to.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use litestream_fixtures::db::sha256_file;
use litestream_fixtures::golden::{self, Golden};
use litestream_hydrate::{RestoreOptions, restore};
use litestream_pageindex::Target;
use litestream_storage::file::FileBackend;
use litestream_storage::{Replica, RetryPolicy};
use ltx::{Timestamp, Txid};

fn ltx_fixtures() -> Vec<Golden> {
    let fixtures: Vec<_> = golden::all().into_iter().filter(|golden| golden.replica().join("ltx").is_dir()).collect();
    assert!(fixtures.len() >= 10, "fixtures are missing: {}", fixtures.len());
    fixtures
}

fn replica(golden: &Golden) -> Replica {
    Replica::new(FileBackend::new(golden.replica()).into(), RetryPolicy::default())
}

async fn restored(golden: &Golden, target: Target, folder: &Path) -> (Txid, String) {
    let path = folder.join("db");
    let _ = std::fs::remove_file(&path);
    let options = RestoreOptions { target, ..RestoreOptions::default() };
    let restored = restore(&replica(golden), &path, &options).await;
    let restored = restored.unwrap_or_else(|error| panic!("{} at {target:?}: {error}", golden.name));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), restored.commit.bytes(restored.page_size));
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1, "only the database is left");
    (restored.txid, sha256_file(&path).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn at_every_txid() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    for golden in ltx_fixtures() {
        for expected in golden.expected.restorable() {
            let txid = Txid(expected.txid);
            let (reached, hash) = restored(&golden, Target::Txid(txid), folder.path()).await;
            assert_eq!(
                (reached, hash.as_str()),
                (txid, expected.sha256.as_deref().unwrap_or_default()),
                "{}",
                golden.name
            );
            count += 1;
        }
    }
    assert!(count > 100, "{count} restores");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_latest_state_and_at_times() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    for golden in ltx_fixtures() {
        let latest = golden.expected.latest().unwrap();
        let (_, hash) = restored(&golden, Target::Latest, folder.path()).await;
        assert_eq!(Some(&hash), latest.sha256.as_ref(), "{}", golden.name);
        for time in &golden.expected.times {
            let target = Target::Before(Timestamp(time.at_ms.cast_signed()));
            let Some(txid) = &time.txid else {
                let options = RestoreOptions { target, ..RestoreOptions::default() };
                let error = restore(&replica(&golden), &folder.path().join("none"), &options).await.unwrap_err();
                assert!(error.to_string().contains("oldest moment"), "{}: {error}", golden.name);
                continue;
            };
            let expected = golden.expected.txids.iter().find(|entry| entry.txid == *txid).unwrap();
            let (reached, hash) = restored(&golden, target, folder.path()).await;
            assert_eq!(
                (reached, Some(&hash)),
                (Txid(*txid), expected.sha256.as_ref()),
                "{} at {}",
                golden.name,
                time.at_ms
            );
            count += 1;
        }
    }
    assert!(count > 100, "{count} restores");
}
