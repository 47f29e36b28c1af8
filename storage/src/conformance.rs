//! What every store must do, as one suite of checks that each implementation's tests run.
//!
//! Public so that a store outside of this crate can be held to the same rules.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test suite: a failed check is a panic")]

use std::sync::Arc;

use futures::TryStreamExt;
use futures::future::join_all;
use ltx::{FileName, Timestamp, Txid};

use crate::backend::{Backend, Body, GetRange, GetRequest, ListRequest, Precondition, PutOptions, Scope};
use crate::{Error, Kind, Level};

/// Runs all checks against an empty replica.
///
/// # Panics
/// Where the store breaks a rule, saying which.
pub async fn check(backend: Arc<dyn Backend>) {
    missing_levels_are_empty(&backend).await;
    a_put_file_is_listed_and_read_back(&backend).await;
    ranges_are_exact(&backend).await;
    a_missing_object_is_not_found(&backend).await;
    of_many_writers_one_wins(&backend).await;
    conditions_are_kept(&backend).await;
    listings_are_sorted_and_start_where_asked(&backend).await;
    higher_levels_come_together(&backend).await;
    deleting_is_idempotent(&backend).await;
    large_bodies_from_files_arrive_whole(&backend).await;
}

fn name(min: u64, max: u64) -> FileName {
    FileName::new(Txid(min), Txid(max))
}

fn level(number: u8) -> Level {
    Level::new(number).unwrap()
}

async fn put(backend: &Arc<dyn Backend>, level: Level, name: FileName, text: &'static str) {
    let options = PutOptions {
        precondition: Precondition::NotExists,
        time: Some(Timestamp(1_700_000_000_123)),
        ..PutOptions::default()
    };
    backend.put(&backend.key(level, name), &Body::Bytes(text.into()), &options).await.unwrap();
}

async fn read(backend: &Arc<dyn Backend>, key: &str, range: GetRange) -> Result<Vec<u8>, Error> {
    let response = backend.get(&GetRequest { key, range, attempt: 0 }).await?;
    let body: Vec<_> = response.body.try_collect().await?;
    let body = body.concat();
    assert_eq!(body.len() as u64, response.range.end - response.range.start, "{key}: length and range differ");
    Ok(body)
}

async fn list(backend: &Arc<dyn Backend>, scope: Scope, from: u64) -> (Vec<(u8, FileName)>, Vec<String>) {
    let (mut files, mut others, mut token) = (Vec::new(), Vec::new(), None::<String>);
    loop {
        let request = ListRequest { scope, from: Txid(from), token: token.as_deref(), attempt: 0 };
        let page = backend.list(&request).await.unwrap();
        files.extend(page.files.iter().map(|file| (file.level.get(), file.name)));
        others.extend(page.others.iter().map(|object| object.key.to_string()));
        token = page.next;
        if token.is_none() {
            return (files, others);
        }
    }
}

async fn missing_levels_are_empty(backend: &Arc<dyn Backend>) {
    for level in Level::all() {
        assert_eq!(list(backend, Scope::Level(level), 0).await, (vec![], vec![]), "level {level}");
    }
    assert_eq!(list(backend, Scope::Above(Level::ZERO), 0).await.0, vec![]);
    assert_eq!(list(backend, Scope::Generations, 0).await, (vec![], vec![]));
}

async fn a_put_file_is_listed_and_read_back(backend: &Arc<dyn Backend>) {
    put(backend, level(0), name(1, 1), "one").await;
    let request = ListRequest { scope: Scope::Level(level(0)), from: Txid::ZERO, token: None, attempt: 0 };
    let page = backend.list(&request).await.unwrap();
    let [file] = page.files.as_slice() else { panic!("{page:?}") };
    assert_eq!((file.level, file.name, file.size()), (level(0), name(1, 1), 3));
    let head = backend.head(file.key(), 0).await.unwrap();
    assert_eq!(head.time, Some(Timestamp(1_700_000_000_123)), "the time is kept");
    assert_eq!(head.size, 3);
    assert_eq!(head.etag, file.object.etag, "LIST and HEAD agree on the tag");
    let response = backend.get(&GetRequest { key: file.key(), range: GetRange::Whole, attempt: 0 }).await.unwrap();
    assert_eq!(response.object.etag, file.object.etag, "LIST and GET agree on the tag");
    assert_eq!(response.object.time, head.time, "GET brings the time");
    assert_eq!(read(backend, file.key(), GetRange::Whole).await.unwrap(), b"one");
}

async fn ranges_are_exact(backend: &Arc<dyn Backend>) {
    put(backend, level(0), name(2, 2), "0123456789").await;
    let key = backend.key(level(0), name(2, 2));
    for (range, expected) in [
        (GetRange::Span(0..10), "0123456789"),
        (GetRange::Span(3..4), "3"),
        (GetRange::Span(8..99), "89"),
        (GetRange::Last(3), "789"),
        (GetRange::Last(99), "0123456789"),
    ] {
        assert_eq!(read(backend, &key, range.clone()).await.unwrap(), expected.as_bytes(), "{range:?}");
    }
    let beyond = read(backend, &key, GetRange::Span(10..11)).await.unwrap_err();
    assert_eq!(beyond.kind(), Kind::Conflict, "{beyond}");
}

async fn a_missing_object_is_not_found(backend: &Arc<dyn Backend>) {
    let key = backend.key(level(5), name(7, 7));
    assert_eq!(read(backend, &key, GetRange::Whole).await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(read(backend, &key, GetRange::Span(0..1)).await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(backend.head(&key, 0).await.unwrap_err().kind(), Kind::NotFound);
}

async fn of_many_writers_one_wins(backend: &Arc<dyn Backend>) {
    let key = backend.key(level(0), name(3, 3));
    let options = PutOptions { precondition: Precondition::NotExists, ..PutOptions::default() };
    let bodies: Vec<Body> = (0..16).map(|n| Body::Bytes(format!("writer {n}").into())).collect();
    let outcomes = join_all(bodies.iter().map(|body| backend.put(&key, body, &options))).await;
    let winners: Vec<usize> =
        outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_ok()).map(|(number, _)| number).collect();
    assert_eq!(winners.len(), 1, "{outcomes:?}");
    for outcome in outcomes {
        if let Err(error) = outcome {
            assert!(matches!(error, Error::AlreadyExists { .. } | Error::Transient { .. }), "{error:?}");
        }
    }
    let text = format!("writer {}", winners[0]);
    assert_eq!(read(backend, &key, GetRange::Whole).await.unwrap(), text.as_bytes());
}

async fn conditions_are_kept(backend: &Arc<dyn Backend>) {
    let key = backend.key(level(0), name(4, 4));
    let (first, second) = (Body::Bytes("first".into()), Body::Bytes("second".into()));
    let written = backend.put(&key, &first, &PutOptions::default()).await.unwrap();
    let head = backend.head(&key, 0).await.unwrap();
    assert_eq!(written.etag, head.etag, "PUT and HEAD agree on the tag");
    let matches = |tag| PutOptions { precondition: Precondition::Matches(tag), ..PutOptions::default() };
    let Some(tag) = head.etag else { return };
    backend.put(&key, &second, &matches(tag.clone())).await.unwrap();
    let refused = backend.put(&key, &first, &matches(tag)).await.unwrap_err();
    assert!(matches!(refused, Error::Changed { .. }), "{refused:?}");
    assert_eq!(read(backend, &key, GetRange::Whole).await.unwrap(), b"second");
}

async fn listings_are_sorted_and_start_where_asked(backend: &Arc<dyn Backend>) {
    for txid in [9u64, 16, 10, 11, 15, 12, 14, 13] {
        put(backend, level(1), name(txid, txid), "x").await;
    }
    let all: Vec<_> = (9..=16).map(|txid| (1, name(txid, txid))).collect();
    assert_eq!(list(backend, Scope::Level(level(1)), 0).await.0, all);
    assert_eq!(list(backend, Scope::Level(level(1)), 1).await.0, all);
    assert_eq!(list(backend, Scope::Level(level(1)), 12).await.0, all[3..]);
    assert_eq!(list(backend, Scope::Level(level(1)), 17).await.0, []);
}

async fn higher_levels_come_together(backend: &Arc<dyn Backend>) {
    put(backend, level(2), name(1, 8), "x").await;
    put(backend, level(3), name(1, 4), "x").await;
    put(backend, level(9), name(1, 2), "x").await;
    put(backend, level(9), name(1, 6), "x").await;
    let expected = [(2, name(1, 8)), (3, name(1, 4)), (9, name(1, 2)), (9, name(1, 6))];
    assert_eq!(list(backend, Scope::Above(level(1)), 0).await.0, expected);
    assert_eq!(list(backend, Scope::Above(level(2)), 0).await.0, expected[1..]);
}

async fn deleting_is_idempotent(backend: &Arc<dyn Backend>) {
    let keys: Vec<String> = (9..=16).map(|txid| backend.key(level(1), name(txid, txid))).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    backend.delete(&keys[..3], 0).await.unwrap();
    backend.delete(&keys, 0).await.unwrap();
    assert_eq!(list(backend, Scope::Level(level(1)), 0).await.0, []);
}

async fn large_bodies_from_files_arrive_whole(backend: &Arc<dyn Backend>) {
    let bytes: Vec<u8> = (0..20u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let folder = std::env::temp_dir().join(format!("conformance-{}-{:p}", std::process::id(), &bytes));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("body");
    std::fs::write(&path, &bytes).unwrap();
    let body = Body::File { path, len: bytes.len() as u64 };
    let key = backend.key(level(9), name(1, 99));
    let options = PutOptions { precondition: Precondition::NotExists, ..PutOptions::default() };
    backend.put(&key, &body, &options).await.unwrap();
    let refused = backend.put(&key, &body, &options).await.unwrap_err();
    assert!(matches!(refused, Error::AlreadyExists { .. }), "{refused:?}");
    assert!(read(backend, &key, GetRange::Whole).await.unwrap() == bytes, "the object differs from the file");
    std::fs::remove_dir_all(&folder).unwrap();
}
