//! An upload in parts ends: completed, or aborted, whatever happens to it and to whoever waits for it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use litestream_fixtures::s3::{FaultKind, Faults, Operation, S3Options, S3Server};
use litestream_storage::config::ReplicaConfig;
use litestream_storage::{Body, Error, FileInfo, Level, Replica, Result, RetryPolicy, settle};
use ltx::{FileName, Timestamp, Txid};

const NAME: FileName = FileName::new(Txid(1), Txid(1));
const STALL: FaultKind = FaultKind::Stall { after: None };

fn server(stall_for: Duration) -> S3Server {
    let faults = Faults { stall_for, ..Faults::default() };
    let server = S3Server::start(S3Options { faults, ..S3Options::default() }).unwrap();
    server.create_bucket("bkt");
    server
}

async fn open(server: &S3Server) -> Replica {
    let mut config = ReplicaConfig::from_url(&format!("s3://bkt/db?endpoint={}", server.endpoint())).unwrap();
    config.set("access-key-id", server.access_key()).unwrap();
    config.set("secret-access-key", server.secret_key()).unwrap();
    config.set("part-size", "5MiB").unwrap();
    let policy = RetryPolicy { first_byte: Duration::from_millis(500), ..RetryPolicy::default() };
    litestream_storage::open(&config, policy).await.unwrap()
}

fn body() -> Vec<u8> {
    (0..12u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

async fn put(replica: &Replica) -> Result<FileInfo> {
    replica.put_file(Level::ZERO, NAME, Body::Bytes(body().into()), Timestamp(7)).await
}

fn fault(server: &S3Server, kind: FaultKind, operation: Operation) {
    server.fault_next(1, kind, move |request| request.operation == operation);
}

async fn wait_for(server: &S3Server, operation: Operation) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.stats().count(operation) == 0 {
        assert!(Instant::now() < deadline, "{operation} never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Puts, gives that up when a request of this kind is under way, and ends the program.
fn cancel_at(server: &S3Server, operation: Operation) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let replica = open(server).await;
        tokio::select! {
            outcome = put(&replica) => panic!("{outcome:?}"),
            () = wait_for(server, operation) => {}
        }
    });
    runtime.block_on(settle(Duration::from_secs(20)));
    runtime.shutdown_timeout(Duration::ZERO);
}

#[test]
fn a_cancelled_upload_is_aborted_before_the_program_ends() {
    let server = server(Duration::from_secs(60));
    fault(&server, STALL, Operation::UploadPart);
    cancel_at(&server, Operation::UploadPart);
    assert_eq!(server.stats().count(Operation::AbortMultipartUpload), 1);
    assert!(server.uploads_in_progress("bkt").is_empty());
}

#[test]
fn an_upload_that_is_cancelled_while_it_is_begun_is_aborted() {
    let server = server(Duration::from_millis(200));
    fault(&server, STALL.after_apply(), Operation::CreateMultipartUpload);
    cancel_at(&server, Operation::CreateMultipartUpload);
    assert!(server.uploads_in_progress("bkt").is_empty(), "the upload whose id came too late");
}

#[test]
fn an_upload_that_is_cancelled_while_it_is_aborted_is_aborted_all_the_same() {
    let server = server(Duration::from_secs(60));
    server.put_object("bkt", &format!("db/0000/{NAME}"), "theirs", &[]);
    fault(&server, STALL, Operation::AbortMultipartUpload);
    cancel_at(&server, Operation::AbortMultipartUpload);
    assert!(server.uploads_in_progress("bkt").is_empty());
}

#[test]
fn settling_is_bounded() {
    let server = server(Duration::from_secs(60));
    fault(&server, STALL, Operation::UploadPart);
    server.fault_next(99, STALL, |request| request.operation == Operation::AbortMultipartUpload);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let replica = open(&server).await;
        tokio::select! {
            outcome = put(&replica) => panic!("{outcome:?}"),
            () = wait_for(&server, Operation::UploadPart) => {}
        }
        // Far less than the abort would be tried for.
        tokio::time::timeout(Duration::from_secs(20), settle(Duration::from_millis(300))).await.unwrap();
    });
    runtime.shutdown_background();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_whose_answer_is_lost_counts_when_the_bytes_are_there() {
    for fault_kind in [FaultKind::Hangup.after_apply(), FaultKind::Cut { after: 10 }] {
        let server = server(Duration::from_secs(60));
        let replica = open(&server).await;
        fault(&server, fault_kind, Operation::CompleteMultipartUpload);
        let file = put(&replica).await.unwrap();
        assert!(replica.get_file(&file).await.unwrap() == body());
        let stats = server.stats();
        assert_eq!(stats.count(Operation::CreateMultipartUpload), 1, "nothing is uploaded twice");
        assert_eq!(stats.count(Operation::UploadPart), 3);
        assert!(server.uploads_in_progress("bkt").is_empty());
        let theirs = put(&replica).await.unwrap_err();
        assert!(matches!(theirs, Error::AlreadyExists { .. }), "{theirs}");
        assert!(server.uploads_in_progress("bkt").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beginnings_ends_and_aborts_are_repeated_by_themselves() {
    let server = server(Duration::from_secs(600));
    let replica = open(&server).await;
    fault(&server, STALL, Operation::CreateMultipartUpload);
    fault(&server, FaultKind::Status(503), Operation::CompleteMultipartUpload);
    let within = Duration::from_secs(60);
    tokio::time::timeout(within, put(&replica)).await.expect("a silent store is asked again soon").unwrap();
    assert_eq!(server.stats().count(Operation::UploadPart), 3, "nothing is uploaded twice");

    fault(&server, FaultKind::Status(503), Operation::AbortMultipartUpload);
    fault(&server, STALL, Operation::AbortMultipartUpload);
    let theirs = tokio::time::timeout(within, put(&replica)).await.unwrap().unwrap_err();
    assert!(matches!(theirs, Error::AlreadyExists { .. }), "{theirs}");
    assert_eq!(server.stats().count(Operation::AbortMultipartUpload), 3);
    assert!(server.uploads_in_progress("bkt").is_empty());
}
