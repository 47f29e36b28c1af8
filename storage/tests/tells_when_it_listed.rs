//! A listing tells when it was made by its own answer's date, whatever other answers have told before.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use litestream_storage::config::ReplicaConfig;
use litestream_storage::{Level, RetryPolicy, Scope};
use ltx::{Timestamp, Txid};

const EMPTY: &str = "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";

/// Answers one request after another, each with a date of its own.
fn serve(listener: &TcpListener, dates: &[&str]) {
    for date in dates {
        let (mut stream, _) = listener.accept().unwrap();
        let head = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        head.take_while(|line| !line.is_empty()).for_each(drop);
        let date = if date.is_empty() { String::new() } else { format!("Date: {date}\r\n") };
        let head = format!("HTTP/1.1 200 OK\r\n{date}Content-Length: {}\r\nConnection: close\r\n\r\n", EMPTY.len());
        stream.write_all((head + EMPTY).as_bytes()).unwrap();
    }
}

#[tokio::test]
async fn a_listing_tells_its_own_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("s3://bkt/db?endpoint=http://{}", listener.local_addr().unwrap());
    let dates = ["Fri, 02 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:00 GMT", ""];
    let server = std::thread::spawn(move || serve(&listener, &dates));
    let mut config = ReplicaConfig::from_url(&url).unwrap();
    config.set("access-key-id", "id").unwrap();
    config.set("secret-access-key", "key").unwrap();
    let replica = litestream_storage::open(&config, RetryPolicy::default()).await.unwrap();
    assert_eq!(replica.clock(), None);
    let (first, second) = (Timestamp(1_767_312_000_000), Timestamp(1_767_225_600_000));
    for told in [Some(first), Some(second), None] {
        let page = replica.list_page(Scope::Level(Level::ZERO), Txid::ZERO, None).await.unwrap();
        assert_eq!(page.at, told);
        assert_eq!(replica.clock(), Some(first), "the clock never goes back");
    }
    server.join().unwrap();
}
