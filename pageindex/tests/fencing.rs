//! Of two writers of one replica exactly one goes on, whatever gets lost on the way, and what the one that goes on rests on stays.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use litestream_fixtures::s3::{Down, FaultKind, Operation, S3Options, S3Server};
use litestream_pageindex::compact::{MergeOptions, compact_into, merge};
use litestream_pageindex::fence::{self, Next, Put, WINDOW};
use litestream_pageindex::{Error, Listing, Target, find};
use litestream_storage::config::ReplicaConfig;
use litestream_storage::memory::MemoryBackend;
use litestream_storage::{Body, FileInfo, Kind, Level, Replica, RetryPolicy};
use ltx::{Checksum, Commit, Decoder, Encoder, FileName, Header, PageSize, Pgno, Timestamp, Txid};

const BUCKET: &str = "bkt";
const PROBE: &str = "db/litestream-probe";

fn server() -> S3Server {
    started(S3Options::default())
}

fn started(options: S3Options) -> S3Server {
    let server = S3Server::start(options).unwrap();
    server.create_bucket(BUCKET);
    server
}

/// A replica on the server, asked so many times for everything.
async fn replica(server: &S3Server, attempts: u32) -> Replica {
    let mut config = ReplicaConfig::from_url(&format!("s3://{BUCKET}/db?endpoint={}", server.endpoint())).unwrap();
    config.set("access-key-id", server.access_key()).unwrap();
    config.set("secret-access-key", server.secret_key()).unwrap();
    let policy = RetryPolicy { attempts, first_byte: Duration::from_secs(30), ..RetryPolicy::default() };
    litestream_storage::open(&config, policy).await.unwrap()
}

fn name(min: u64, max: u64) -> FileName {
    FileName::new(Txid(min), Txid(max))
}

fn key(txid: u64) -> String {
    format!("db/0000/{}", name(txid, txid))
}

fn time(txid: u64) -> Timestamp {
    Timestamp(1_700_000_000_000 + txid.cast_signed())
}

/// A database of one page, all of it `fill`, as transaction `txid` left it.
fn encode(txid: u64, writer: u64, fill: u8) -> (Vec<u8>, Checksum) {
    let page_size = PageSize::new(512).unwrap();
    let header = Header { node_id: writer, ..Header::new(page_size, Commit(1), Txid(txid), Txid(txid), time(txid)) };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    encoder.page(Pgno::new(1).unwrap(), &[fill; 512]).unwrap();
    let (bytes, trailer) = encoder.finish().unwrap();
    (bytes, trailer.file_checksum)
}

struct Writer {
    replica: Replica,
    id: u64,
    identity: &'static str,
    proof: Option<Timestamp>,
}

impl Writer {
    /// One that gives up where the first attempt fails.
    async fn hasty(server: &S3Server, id: u64, identity: &'static str) -> Self {
        Self { replica: replica(server, 1).await, id, identity, proof: None }
    }

    async fn patient(server: &S3Server, id: u64, identity: &'static str) -> Self {
        Self { replica: replica(server, 5).await, id, identity, proof: None }
    }

    async fn put(&mut self, txid: u64) -> Result<Put, Error> {
        let (bytes, checksum) = encode(txid, self.id, self.id as u8);
        let body = Body::Bytes(bytes.into());
        let (txid, time) = (Txid(txid), time(txid));
        let next = Next { txid, body, time, checksum, writer: self.id, identity: self.identity };
        fence::put(&self.replica, next, &mut self.proof, WINDOW).await
    }

    async fn durable(&mut self, txid: u64) -> FileInfo {
        match self.put(txid).await.unwrap() {
            Put::Durable(file) => file,
            fenced @ Put::Fenced { .. } => panic!("transaction {txid}: {fenced:?}"),
        }
    }

    async fn fenced(&mut self, txid: u64) -> (u64, String) {
        match self.put(txid).await.unwrap() {
            Put::Fenced { txid, by } => (txid.0, by),
            durable @ Put::Durable(_) => panic!("transaction {txid}: {durable:?}"),
        }
    }

    /// Sleeps until the last proof is so old.
    fn sleep(&mut self, time: Duration) {
        let proof = self.proof.as_mut().expect("it was proven once");
        proof.0 -= i64::try_from(time.as_millis()).unwrap();
    }
}

fn fault(server: &S3Server, kind: FaultKind, operation: Operation) {
    server.fault_next(1, kind, move |request| request.operation == operation);
}

fn count(server: &S3Server, operation: Operation) -> u64 {
    server.stats().count(operation)
}

/// What the replica's newest state is: its TXID, and the fill of its page.
async fn newest(replica: &Replica) -> (u64, u8) {
    let (plan, _) = find(replica, Target::Latest).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.ltx");
    merge(replica, &plan.files, &output, &MergeOptions::default()).await.unwrap();
    (plan.txid.0, pages(&output)[&1])
}

fn pages(file: &Path) -> BTreeMap<u32, u8> {
    let bytes = std::fs::read(file).unwrap();
    let mut decoder = Decoder::new(bytes.as_slice()).unwrap();
    let mut page = vec![0; decoder.header().page_size.bytes()];
    let mut pages = BTreeMap::new();
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        pages.insert(pgno.get(), page[0]);
    }
    pages
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_of_two_writers_is_told_who_was_first() {
    let server = server();
    let mut a = Writer::hasty(&server, 0xa, "host-a, process 1").await;
    let mut b = Writer::hasty(&server, 0xb, "host-b, process 2").await;
    let file = a.durable(1).await;
    assert_eq!((file.level, file.name, file.key()), (Level::ZERO, name(1, 1), key(1).as_str()));
    let (txid, by) = b.fenced(1).await;
    assert_eq!((txid, by.as_str()), (1, "writer 000000000000000a (000000000000000a host-a, process 1)"));
    assert_eq!(server.object(BUCKET, &key(1)).unwrap(), encode(1, 0xa, 0xa).0, "the first one's file is untouched");
    a.durable(2).await;
    assert_eq!(b.fenced(2).await.0, 2, "and so on");
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_of_two_writers_at_once_goes_on() {
    let server = server();
    for txid in 1..=15 {
        let mut a = Writer::patient(&server, 0xa, "a").await;
        let mut b = Writer::patient(&server, 0xb, "b").await;
        if txid % 3 == 0 {
            // The answer of whoever is first is lost, so that he asks again.
            fault(&server, FaultKind::Hangup.after_apply(), Operation::PutObject);
        }
        let (first, second) = tokio::join!(a.put(txid), b.put(txid));
        let outcomes = [(0xa, first.unwrap()), (0xb, second.unwrap())];
        let durable: Vec<_> = outcomes.iter().filter(|(_, put)| matches!(put, Put::Durable(_))).collect();
        assert_eq!(durable.len(), 1, "{outcomes:?}");
        let id = durable[0].0;
        assert_eq!(server.object(BUCKET, &key(txid)).unwrap(), encode(txid, id, id as u8).0);
        for (_, put) in &outcomes {
            let by = format!("writer {id:016x} ");
            assert!(!matches!(put, Put::Fenced { by: named, .. } if !named.starts_with(&by)), "{outcomes:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_answer_was_lost_is_known_as_ours_when_it_is_put_again() {
    let server = server();
    let mut a = Writer::hasty(&server, 0xa, "a").await;
    a.durable(1).await;
    let proof = a.proof;
    fault(&server, FaultKind::Hangup.after_apply(), Operation::PutObject);
    let error = a.put(2).await.unwrap_err();
    assert!(matches!(&error, Error::Storage(error) if error.kind() == Kind::Permanent), "{error}");
    assert_eq!(a.proof, proof, "nothing is proven by that");
    assert!(server.object(BUCKET, &key(2)).is_some(), "the file had got there");
    assert_eq!(a.durable(2).await.key(), key(2));
    assert_eq!(a.durable(2).await.key(), key(2), "as often as one likes");
    a.durable(3).await;
    assert_eq!(newest(&a.replica).await, (3, 0xa));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_writers_file_is_not_taken_for_ours_where_our_own_request_was_lost() {
    let server = server();
    let mut a = Writer::hasty(&server, 0xa, "a").await;
    let mut b = Writer::hasty(&server, 0xb, "b").await;
    fault(&server, FaultKind::Hangup, Operation::PutObject);
    a.put(1).await.unwrap_err();
    assert!(server.keys(BUCKET).is_empty(), "the request was lost, not its answer");
    b.durable(1).await;
    assert_eq!(encode(1, 0xa, 0xa).0.len(), encode(1, 0xb, 0xb).0.len(), "not told apart by their length");
    let (txid, by) = a.fenced(1).await;
    assert!(txid == 1 && by.starts_with("writer 000000000000000b"), "{txid} {by}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_proves_nothing() {
    let server = server();
    let mut a = Writer::hasty(&server, 0xa, "a").await;
    a.durable(1).await;
    let proof = a.proof;
    server.set_down(Some(Down::Refuse)).unwrap();
    a.put(2).await.unwrap_err();
    assert_eq!(a.proof, proof);
    server.set_down(None).unwrap();
    // The put itself gets through, but not the look around that a long sleep asks for: nothing counts as durable then.
    a.sleep(WINDOW * 2);
    let proof = a.proof;
    fault(&server, FaultKind::Status(503), Operation::ListObjectsV2);
    a.put(2).await.unwrap_err();
    assert_eq!(a.proof, proof);
    a.durable(2).await;
    assert!(a.proof > proof);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_was_silent_for_longer_than_the_window_looks_around() {
    let server = server();
    let mut a = Writer::hasty(&server, 0xa, "a").await;
    let mut cost = async |txid: u64, slept: Duration| {
        if !slept.is_zero() {
            a.sleep(slept);
        }
        server.reset_stats();
        let before = a.proof;
        a.durable(txid).await;
        assert!(a.proof >= before && a.proof.is_some(), "the proof moves on");
        assert_eq!(count(&server, Operation::PutObject), 1);
        (server.stats().total - 1, count(&server, Operation::ListObjectsV2))
    };
    assert_eq!(cost(1, Duration::ZERO).await, (1, 1), "nothing was proven yet");
    assert_eq!(cost(2, Duration::ZERO).await, (0, 0));
    assert_eq!(cost(3, WINDOW / 2).await, (0, 0));
    assert_eq!(cost(4, WINDOW + Duration::from_secs(1)).await, (1, 1));
    assert_eq!(cost(5, Duration::ZERO).await, (0, 0));
}

/// A writer B went on from TXID 4 to 6 while A, which had written up to 3, slept; B's files but the newest were merged and are gone.
async fn merged_away(server: &S3Server) -> (Writer, Writer) {
    let mut a = Writer::hasty(server, 0xa, "host-a").await;
    let mut b = Writer::hasty(server, 0xb, "host-b").await;
    for txid in 1..=3 {
        a.durable(txid).await;
    }
    for txid in 4..=6 {
        b.durable(txid).await;
    }
    let scratch = tempfile::tempdir().unwrap();
    let listing = Listing::full(&b.replica).await.unwrap();
    compact_into(&b.replica, &listing, Level::ONE, scratch.path(), &MergeOptions::default()).await.unwrap().unwrap();
    b.replica.delete(&listing.level(Level::ZERO)[..5]).await.unwrap();
    (a, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_slept_while_others_files_were_merged_away_is_fenced_and_leaves_nothing() {
    let server = server();
    let (mut a, b) = merged_away(&server).await;
    let before = server.keys(BUCKET);
    a.sleep(WINDOW * 5);
    // No file of TXID 4 is left to be in the way: the put by itself succeeds.
    let (txid, by) = a.fenced(4).await;
    assert!(txid == 6 && by.starts_with("writer 000000000000000b (") && by.contains("host-b"), "{txid} {by}");
    assert_eq!(server.keys(BUCKET), before, "the file that came too late is gone again");
    assert_eq!(newest(&b.replica).await, (6, 0xb));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_file_that_cannot_be_deleted_does_not_hide_that_its_writer_is_fenced() {
    let server = server();
    let (mut a, b) = merged_away(&server).await;
    a.sleep(WINDOW * 5);
    server.fault_next(9, FaultKind::Status(403), |request| {
        matches!(request.operation, Operation::DeleteObjects | Operation::DeleteObject)
    });
    assert_eq!(a.fenced(4).await.0, 6);
    assert_eq!(newest(&b.replica).await, (6, 0xb));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_went_on_with_a_file_nobody_can_read_fences_all_the_same() {
    let server = server();
    let (mut a, _) = merged_away(&server).await;
    a.sleep(WINDOW * 5);
    server.put_object(BUCKET, &key(6), "not an LTX file", &[]);
    assert_eq!(a.fenced(4).await, (6, "another writer".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_writer_has_built_on_stays_when_its_own_writer_is_fenced() {
    let server = server();
    let mut a = Writer::hasty(&server, 0xa, "a").await;
    let mut b = Writer::hasty(&server, 0xb, "b").await;
    a.durable(1).await;
    fault(&server, FaultKind::Hangup.after_apply(), Operation::PutObject);
    a.put(2).await.unwrap_err();
    // B finds transaction 2 in the replica and goes on from there, while A sleeps.
    b.durable(3).await;
    a.sleep(WINDOW * 5);
    let (txid, by) = a.fenced(2).await;
    assert!(txid == 3 && by.starts_with("writer 000000000000000b"), "{txid} {by}");
    assert!(server.object(BUCKET, &key(2)).is_some(), "transaction 3 rests on it");
    assert_eq!(newest(&b.replica).await, (3, 0xb));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_in_the_way_and_then_gone_again_fences() {
    let server = server();
    let mut a = Writer::hasty(&server, 0xa, "a").await;
    fault(&server, FaultKind::Status(412), Operation::PutObject);
    let (txid, by) = a.fenced(1).await;
    assert!(txid == 1 && by.contains("gone again"), "{txid} {by}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wrote_a_transaction_is_told_as_far_as_it_is_known() {
    let server = server();
    let mut a = Writer::hasty(&server, 0xa, "host-a, process 1").await;
    a.durable(1).await;
    for (txid, node) in [(2, 0), (3, 0xc)] {
        let body = Body::Bytes(encode(txid, node, 1).0.into());
        a.replica.put_file(Level::ZERO, name(txid, txid), body, time(txid)).await.unwrap();
    }
    server.put_object(BUCKET, &key(4), "not an LTX file", &[]);
    let who = async |txid| fence::who_wrote(&a.replica, Txid(txid)).await;
    assert_eq!(who(1).await, "writer 000000000000000a (000000000000000a host-a, process 1)");
    assert_eq!(who(2).await, "another program");
    assert_eq!(who(3).await, "writer 000000000000000c");
    assert_eq!(who(4).await, "another writer");
    assert_eq!(who(5).await, "another writer");
    let files = fence::level_0(&a.replica, Txid(3)).await.unwrap();
    assert_eq!(files.iter().map(|file| file.name).collect::<Vec<_>>(), [name(3, 3), name(4, 4)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_honours_conditions_is_known_by_one_request_once_it_was_tried() {
    let server = server();
    let replica = replica(&server, 5).await;
    assert!(fence::honours_conditions(&replica).await.unwrap());
    assert_eq!(server.stats().total, 2, "the first one creates what the second one is refused for");
    assert_eq!(server.keys(BUCKET), [PROBE]);
    server.reset_stats();
    assert!(fence::honours_conditions(&replica).await.unwrap());
    assert_eq!(server.stats().total, 1);
    assert!(Listing::full(&replica).await.unwrap().is_empty(), "nobody takes it for a file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_ignores_conditions_is_found_out() {
    let server = started(S3Options { ignore_preconditions: true, ..S3Options::default() });
    let replica = replica(&server, 5).await;
    for left_over in [false, true] {
        if left_over {
            server.put_object(BUCKET, PROBE, "first", &[]);
        }
        assert!(!fence::honours_conditions(&replica).await.unwrap());
        assert!(server.keys(BUCKET).is_empty(), "what was put to try it is gone again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_does_not_mislead_who_tries_whether_conditions_are_honoured() {
    for honours in [true, false] {
        for which in [0, 1] {
            for lost in [FaultKind::Hangup, FaultKind::Hangup.after_apply(), FaultKind::Status(503)] {
                let server = started(S3Options { ignore_preconditions: !honours, ..S3Options::default() });
                let replica = replica(&server, 5).await;
                let seen = AtomicU64::new(0);
                server.fault_next(1, lost.clone(), move |request| {
                    request.operation == Operation::PutObject && seen.fetch_add(1, Ordering::Relaxed) == which
                });
                let found = fence::honours_conditions(&replica).await.unwrap();
                assert_eq!(found, honours, "{lost:?} at request {which}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_is_not_said_to_ignore_conditions() {
    let server = server();
    let replica = replica(&server, 1).await;
    server.set_down(Some(Down::Refuse)).unwrap();
    assert!(fence::honours_conditions(&replica).await.is_err());
}

#[tokio::test]
async fn a_store_that_is_known_to_honour_conditions_is_not_tried() {
    let replica = Replica::new(MemoryBackend::new("test").into(), RetryPolicy::default());
    assert!(fence::honours_conditions(&replica).await.unwrap());
    assert_eq!(replica.stats().puts, 0);
}
