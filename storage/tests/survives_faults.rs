//! What a replica does when the store does not answer, answers half, or loses its answer.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use litestream_storage::faults::Fault::{self, Cut, Fail, Hang, LoseAnswer, Pass, Stall};
use litestream_storage::faults::FaultyBackend;
use litestream_storage::memory::MemoryBackend;
use litestream_storage::{Backend, Body, Error, FileInfo, Level, PutOptions, Replica, RetryPolicy, Scope};
use ltx::{FileName, Timestamp, Txid};

const NAME: FileName = FileName::new(Txid(1), Txid(1));

async fn store() -> Arc<dyn Backend> {
    let store: Arc<dyn Backend> = MemoryBackend::new("faults").into();
    let key = store.key(Level::ZERO, NAME);
    store.put(&key, &Body::Bytes("0123456789".into()), &PutOptions::default()).await.unwrap();
    store
}

async fn faulty(operation: &'static str, faults: Vec<Fault>) -> (Replica, FileInfo) {
    faulty_with(RetryPolicy::default(), operation, faults).await
}

async fn faulty_with(policy: RetryPolicy, operation: &'static str, faults: Vec<Fault>) -> (Replica, FileInfo) {
    let store = store().await;
    let plain = Replica::new(store.clone(), RetryPolicy::default());
    let file = plain.level(Level::ZERO, Txid::ZERO).await.unwrap().remove(0);
    (Replica::new(Arc::new(FaultyBackend::first(store, operation, faults)), policy), file)
}

#[tokio::test(start_paused = true)]
async fn a_broken_read_goes_on_where_it_stopped() {
    let (replica, file) = faulty("read", vec![Fail, Cut(3), Hang, Stall(4), Cut(0), Pass]).await;
    assert_eq!(replica.get_file(&file).await.unwrap(), "0123456789");
    let stats = replica.stats();
    assert_eq!((stats.gets, stats.retries), (6, 5));
    assert_eq!(stats.bytes_read, 10, "no byte is read twice");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_gets_on_is_never_given_up() {
    // Each of these takes five seconds: far more attempts and time than a read that stands still would get.
    let policy = RetryPolicy { attempts: 3, total: Duration::from_secs(12), ..RetryPolicy::default() };
    let (replica, file) = faulty_with(policy, "read", vec![Stall(1); 9]).await;
    assert_eq!(replica.get_file(&file).await.unwrap(), "0123456789");
    assert_eq!(replica.stats().gets, 10);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_does_not_get_on_any_more_is_given_up() {
    let (replica, file) = faulty("read", [vec![Cut(1); 5], vec![Cut(0); 99]].concat()).await;
    let error = replica.get_file(&file).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { attempts: 16, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_store_ends_in_a_clear_error_within_the_bound() {
    let (replica, file) = faulty("read", vec![Hang; 99]).await;
    let started = tokio::time::Instant::now();
    let error = replica.get_file(&file).await.unwrap_err();
    assert!(started.elapsed() <= Duration::from_secs(61), "{:?}", started.elapsed());
    let text = error.to_string();
    assert!(matches!(error, Error::Unavailable { .. }), "{text}");
    for part in ["memory:faults", "0000/0000000000000001-0000000000000001.ltx", "first byte", "check the endpoint"] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_byte_is_waited_for_five_seconds() {
    let (replica, file) = faulty("read", vec![Hang]).await;
    let started = tokio::time::Instant::now();
    replica.get_file(&file).await.unwrap();
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(5) && waited < Duration::from_millis(5_200), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn errors_that_will_not_pass_are_not_retried() {
    let (replica, file) = faulty("read", vec![Fault::NotFound]).await;
    assert!(matches!(replica.get_file(&file).await.unwrap_err(), Error::NotFound { .. }));
    assert_eq!(replica.stats().gets, 1);
}

#[tokio::test(start_paused = true)]
async fn a_put_whose_answer_is_lost_counts_when_its_bytes_are_there() {
    let (replica, _) = faulty("write", vec![LoseAnswer]).await;
    let name = FileName::new(Txid(2), Txid(2));
    let put = |text: &'static str| replica.put_file(Level::ZERO, name, Body::Bytes(text.into()), Timestamp(5));
    let file = put("mine").await.unwrap();
    assert_eq!(replica.get_file(&file).await.unwrap(), "mine");
    let theirs = put("late").await.unwrap_err();
    assert!(matches!(theirs, Error::AlreadyExists { .. }), "{theirs}");
}

#[tokio::test(start_paused = true)]
async fn a_put_whose_answer_is_lost_fails_when_another_writer_was_first() {
    let (replica, _) = faulty("write", vec![Fail]).await;
    let theirs = replica.put_file(Level::ZERO, NAME, Body::Bytes("9876543210".into()), Timestamp(5)).await;
    assert!(matches!(theirs.unwrap_err(), Error::AlreadyExists { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_replaced_object_is_noticed_even_between_two_attempts() {
    let store = store().await;
    let plain = Replica::new(store.clone(), RetryPolicy::default());
    let file = plain.level(Level::ZERO, Txid::ZERO).await.unwrap().remove(0);
    store.put(file.key(), &Body::Bytes("abcdefghij".into()), &PutOptions::default()).await.unwrap();
    let error = plain.get_file(&file).await.unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn listings_and_deletes_are_retried() {
    let (replica, file) = faulty("list", vec![Fail, Hang, LoseAnswer]).await;
    assert_eq!(replica.list(Scope::Level(Level::ZERO), Txid::ZERO).await.unwrap().files, std::slice::from_ref(&file));
    let (replica, file) = faulty("delete", vec![LoseAnswer, Fail]).await;
    replica.delete(&[file]).await.unwrap();
    assert_eq!(replica.stats().deletes, 3);
}
