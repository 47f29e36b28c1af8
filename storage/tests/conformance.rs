//! Every store keeps the same promises.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use litestream_fixtures::s3::{Down, FaultKind, Operation, S3Options, S3Server};
use litestream_storage::config::{Location, ReplicaConfig};
use litestream_storage::conformance::check;
use litestream_storage::file::FileBackend;
use litestream_storage::memory::MemoryBackend;
use litestream_storage::s3::S3Backend;
use litestream_storage::{Body, Error, Level, Replica, RetryPolicy};
use ltx::{FileName, Timestamp, Txid};

#[tokio::test]
async fn memory_conforms() {
    check(MemoryBackend::new("conformance").into()).await;
}

#[tokio::test]
async fn memory_with_tiny_pages_conforms() {
    check(MemoryBackend::with_page("conformance", 2).into()).await;
}

#[tokio::test]
async fn files_conform() {
    let folder = tempfile::tempdir().unwrap();
    check(FileBackend::new(folder.path().join("a/b")).into()).await;
    let left: Vec<_> = std::fs::read_dir(folder.path().join("a/b/ltx/0")).unwrap().collect();
    assert!(left.iter().flatten().all(|entry| !entry.file_name().to_string_lossy().contains("tmp")), "{left:?}");
}

/// A bucket on the embedded server, and a replica in it.
async fn s3(path: &str, policy: RetryPolicy) -> (S3Server, Replica) {
    let server = S3Server::start(S3Options::default()).unwrap();
    server.create_bucket("bkt");
    let mut config = ReplicaConfig::from_url(&format!("s3://bkt{path}?endpoint={}", server.endpoint())).unwrap();
    config.set("access-key-id", server.access_key()).unwrap();
    config.set("secret-access-key", server.secret_key()).unwrap();
    config.set("part-size", "5MiB").unwrap();
    let replica = litestream_storage::open(&config, policy).await.unwrap();
    (server, replica)
}

async fn s3_backend(server: &S3Server, path: &str) -> S3Backend {
    let mut config = ReplicaConfig::from_url(&format!("s3://bkt{path}?endpoint={}", server.endpoint())).unwrap();
    config.set("access-key-id", server.access_key()).unwrap();
    config.set("secret-access-key", server.secret_key()).unwrap();
    config.set("part-size", "5MiB").unwrap();
    let Location::S3(config) = config.location else { panic!("not S3") };
    S3Backend::new(&config, &RetryPolicy::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_conforms() {
    let server = S3Server::start(S3Options::default()).unwrap();
    server.create_bucket("bkt");
    check(Arc::new(s3_backend(&server, "/some/db").await)).await;
    assert!(server.uploads_in_progress("bkt").is_empty(), "an upload was left behind");
    assert!(server.stats().count(Operation::UploadPart) >= 4, "the large body went up in parts");
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_at_the_root_of_a_bucket_conforms() {
    let server = S3Server::start(S3Options::default()).unwrap();
    server.create_bucket("bkt");
    check(Arc::new(s3_backend(&server, "").await)).await;
    assert!(server.keys("bkt").iter().all(|key| key.starts_with("000")), "{:?}", server.keys("bkt"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_spellings_of_a_buckets_root_are_read() {
    let (server, replica) = s3("", RetryPolicy::default()).await;
    let name = |txid| FileName::new(Txid(txid), Txid(txid));
    for (prefix, txid) in [("", 1), ("./", 2), ("/", 3)] {
        server.put_object("bkt", &format!("{prefix}0000/{}", name(txid)), format!("file {txid}"), &[]);
    }
    let files = replica.level(Level::ZERO, Txid::ZERO).await.unwrap();
    assert_eq!(files.iter().map(|file| file.name).collect::<Vec<_>>(), [name(1), name(2), name(3)]);
    for (file, txid) in files.iter().zip(1..) {
        assert_eq!(replica.get_file(file).await.unwrap(), format!("file {txid}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_of_thousands_of_keys_are_complete() {
    let (server, replica) = s3("/db", RetryPolicy::default()).await;
    for txid in 1..=2_500 {
        let name = FileName::new(Txid(txid), Txid(txid));
        server.put_object("bkt", &format!("db/0000/{name}"), "x", &[]);
    }
    assert_eq!(replica.level(Level::ZERO, Txid::ZERO).await.unwrap().len(), 2_500);
    assert_eq!(replica.stats().lists, 3);
    assert_eq!(replica.level(Level::ZERO, Txid(2_400)).await.unwrap().len(), 101);
    assert_eq!(replica.stats().lists, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_on_the_wire_are_survived() {
    let policy = RetryPolicy {
        first_byte: Duration::from_millis(300),
        stall: Duration::from_millis(300),
        ..RetryPolicy::default()
    };
    let (server, replica) = s3("/db", policy).await;
    let body: Vec<u8> = (0..3_000_000u32).map(|at| (at >> 3) as u8).collect();
    let name = FileName::new(Txid(1), Txid(1));
    let lost = FaultKind::Hangup.after_apply();
    server.fault_next(1, lost, |request| request.operation == Operation::PutObject);
    let put = replica.put_file(Level::ZERO, name, Body::Bytes(body.clone().into()), Timestamp(7)).await;
    put.expect("the answer was lost, but the bytes are ours");
    let file = replica.level(Level::ZERO, Txid::ZERO).await.unwrap().remove(0);
    for fault in [
        FaultKind::Status(503),
        FaultKind::Hangup,
        FaultKind::Cut { after: 1_000_000 },
        FaultKind::Stall { after: None },
        FaultKind::Stall { after: Some(500_000) },
    ] {
        server.fault_next(1, fault.clone(), |request| request.operation == Operation::GetObject);
        let before = replica.stats().retries;
        assert!(replica.get_file(&file).await.unwrap() == body, "{fault:?}");
        assert_eq!(replica.stats().retries, before + 1, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_to_check() {
    let (server, _) = s3("/db", RetryPolicy::default()).await;
    let with = |bucket: &str, secret: &str| {
        let mut config = ReplicaConfig::from_url(&format!("s3://{bucket}/db?endpoint={}", server.endpoint())).unwrap();
        config.set("access-key-id", server.access_key()).unwrap();
        config.set("secret-access-key", secret).unwrap();
        config
    };
    let fail = async |config: ReplicaConfig| {
        let replica = litestream_storage::open(&config, RetryPolicy::default()).await.unwrap();
        replica.level(Level::ZERO, Txid::ZERO).await.unwrap_err().to_string()
    };
    let text = fail(with("nowhere", server.secret_key())).await;
    assert!(text.contains("the bucket does not exist") && text.contains("s3://nowhere/db"), "{text}");
    let text = fail(with("bkt", "wrong")).await;
    assert!(text.contains("access denied") && text.contains("check the access key"), "{text}");
    assert!(!text.contains("wrong"), "a secret is in: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_is_an_error_in_bounded_time() {
    for down in [Down::Refuse, Down::Silent] {
        let policy = RetryPolicy { total: Duration::from_secs(2), ..RetryPolicy::default() };
        let (server, replica) = s3("/db", policy).await;
        server.set_down(Some(down)).unwrap();
        let error = replica.level(Level::ZERO, Txid::ZERO).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("check the endpoint and the network"), "{error}");
        server.set_down(None).unwrap();
        assert_eq!(replica.level(Level::ZERO, Txid::ZERO).await.unwrap(), []);
    }
}
