//! The page as Prometheus sees it, and what dashboards may name.

use std::collections::BTreeSet;
use std::time::Duration;

use litestream_replicate::daemon::{Counters, Phase, ReplicaCounters, ReplicaStatus, Status};
use litestream_storage::config::ReplicaConfig;
use litestream_storage::{Body, Level, Stores};
use ltx::{FileName, Timestamp, Txid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::page::{DATABASES, Page};
use super::server::{Server, bind};
use super::{families, operations, process};
use crate::control::tests::Process;

fn database(path: &str, phase: Phase) -> Status {
    let replica = ReplicaStatus {
        url: "s3://bucket/a".to_owned(),
        kind: "s3",
        txid: Some(Txid(41)),
        lag: Duration::ZERO,
        last_sync: Some(Timestamp(1_700_000_000_500)),
        waiting: 0,
        error: None,
        fenced: false,
        needs_snapshot: false,
        counters: ReplicaCounters { uploads: 4, ..ReplicaCounters::default() },
    };
    Status {
        path: path.into(),
        phase,
        txid: Txid(42),
        size: 8192,
        wal_size: 4152,
        error: None,
        concern: None,
        disk_full: false,
        replicas: vec![replica],
        counters: Counters { truncate_checkpoints: 3, drills_failed: 1, ..Counters::default() },
    }
}

/// Stores that were asked for something.
async fn stores() -> Stores {
    let folder = tempfile::tempdir().unwrap();
    let stores = Stores::default();
    let config = ReplicaConfig::from_url(&format!("file://{}", folder.path().join("r").display())).unwrap();
    let replica = stores.open(&config).await.unwrap();
    for (txid, conflicts) in [(Txid(1), false), (Txid(2), false), (Txid(2), true)] {
        let (body, name) = (Body::Bytes(vec![7; 500].into()), FileName::new(txid, txid));
        assert_eq!(replica.put_file(Level::ZERO, name, body, Timestamp(0)).await.is_err(), conflicts);
    }
    // What was counted outlives the replica.
    stores
}

fn page(all: &[Status], stores: &Stores, idle: bool) -> String {
    let page = Page::new(jiff::Timestamp::UNIX_EPOCH, all.to_vec(), stores, idle);
    page.flat_map(|chunk| chunk.to_vec()).map(char::from).collect()
}

#[tokio::test]
async fn a_page_has_litestreams_series_and_ours() {
    let text = page(&[database("/data/a.db", Phase::Live)], &stores().await, true);
    let replica = "db=\"/data/a.db\",replica=\"s3://bucket/a\"";
    for line in [
        "# HELP litestream_db_size The current size of the real DB",
        "# TYPE litestream_db_size gauge",
        "litestream_db_size{db=\"/data/a.db\"} 8192",
        "litestream_txid{db=\"/data/a.db\"} 42",
        "# TYPE litestream_sync_count counter",
        "litestream_checkpoint_count{db=\"/data/a.db\",mode=\"TRUNCATE\"} 3",
        "litestream_replica_operation_total{operation=\"PUT\",replica_type=\"file\"} 3",
        "litestream_replica_operation_total{operation=\"HEAD\",replica_type=\"file\"} 0",
        "litestream_replica_operation_bytes{operation=\"PUT\",replica_type=\"file\"} 1000",
        "# TYPE litestream_replica_operation_duration_seconds histogram",
        "litestream_replica_operation_duration_seconds_bucket{operation=\"PUT\",replica_type=\"file\",le=\"+Inf\"} 3",
        "litestream_replica_operation_duration_seconds_bucket{operation=\"LIST\",replica_type=\"file\",le=\"0.005\"} 0",
        "litestream_replica_operation_duration_seconds_count{operation=\"PUT\",replica_type=\"file\"} 3",
        "litestream_replica_operation_errors_total{operation=\"PUT\",replica_type=\"file\",code=\"already_exists\"} 1",
        "litestream_replica_operation_errors_total{operation=\"PUT\",replica_type=\"file\",code=\"transient\"} 0",
        "litestream_replica_operation_retries_total{operation=\"PUT\",replica_type=\"file\"} 0",
        "litestream_drill_count{db=\"/data/a.db\",result=\"failed\"} 1",
        "litestream_databases{phase=\"live\"} 1",
        "litestream_build_info{version=\"0.1.0\"} 1",
        &format!("litestream_replica_lag_seconds{{{replica}}} 0"),
        &format!("litestream_last_sync_timestamp_seconds{{{replica}}} 1700000000.5"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("replica_type=\"s3\""), "nothing was asked of one");
}

#[tokio::test]
async fn each_metric_stands_together_however_many_databases_there_are() {
    let all: Vec<Status> = (0..2000).map(|number| database(&format!("/data/{number}.db"), Phase::Live)).collect();
    let stores = stores().await;
    let chunks: Vec<_> = Page::new(jiff::Timestamp::UNIX_EPOCH, all, &stores, true).collect();
    assert!(chunks.len() > 10 && chunks.iter().all(|chunk| chunk.len() < 70 << 10));
    let text = String::from_utf8(chunks.concat()).unwrap();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# HELP ") {
            current = head.split(' ').next().unwrap();
            assert!(done.insert(current), "{current} comes twice");
        }
        assert!(line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ").starts_with(current), "{line}");
    }
    assert_eq!(text.matches("\nlitestream_txid{").count(), 2000);
}

#[test]
fn idle_databases_can_be_left_out_but_not_those_in_trouble() {
    let mut all = vec![database("/live.db", Phase::Live), database("/idle.db", Phase::Idle)];
    all.push(Status { concern: Some("a reader".to_owned()), ..database("/odd.db", Phase::Idle) });
    let text = page(&all, &Stores::default(), false);
    assert!(text.contains("\"/live.db\"") && text.contains("\"/odd.db\"") && !text.contains("\"/idle.db\""));
    assert!(text.contains("litestream_databases{phase=\"idle\"} 2"));
    assert!(!text.contains("litestream_replica_operation"));
}

/// All names that a page can have.
fn exposed() -> BTreeSet<String> {
    let mut names: BTreeSet<String> = families::FAMILIES.iter().map(|family| family.name.to_owned()).collect();
    let process = [process::BUILD, process::STARTED, process::MEMORY, process::CPU, process::OPEN, process::MOST];
    let operations =
        [operations::TOTAL, operations::BYTES, operations::DURATION, operations::ERRORS, operations::RETRIES];
    names.extend(process.into_iter().chain(operations).chain([DATABASES]).map(str::to_owned));
    names.extend(["_sum", "_count", "_bucket"].map(|end| format!("{}{end}", operations::DURATION)));
    names
}

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("litestream_") || word.starts_with("process_")).collect()
}

#[test]
fn the_board_and_the_rules_name_only_what_there_is() {
    let exposed = exposed();
    let board: serde_json::Value = serde_json::from_str(include_str!("../../../docs/grafana.json")).unwrap();
    let mut texts = vec![include_str!("../../../docs/operations.md")];
    for panel in board["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{panel}");
        texts.extend(targets.iter().map(|target| target["expr"].as_str().unwrap()));
    }
    let variables = board["templating"]["list"].as_array().unwrap();
    texts.extend(variables.iter().filter_map(|variable| variable["definition"].as_str()));
    assert!(texts.len() > 25, "{}", texts.len());
    for name in texts.iter().flat_map(|text| named(text)) {
        assert!(exposed.contains(name), "{name}");
    }
}

#[tokio::test]
async fn the_page_has_what_we_say_it_has() {
    let text = page(&[database("/a.db", Phase::Live)], &stores().await, true);
    let heads: BTreeSet<String> =
        text.lines().filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned())).collect();
    let mut expected = exposed();
    expected.retain(|name| !["_sum", "_bucket"].iter().any(|end| name.ends_with(end)));
    expected.remove(&format!("{}_count", operations::DURATION));
    assert_eq!(heads, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_served_until_the_end() {
    let listener = bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::start(listener, Process::new());
    let ask = async |request: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let page = ask("GET /metrics").await;
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("version=0.0.4"), "{page}");
    assert!(page.contains("litestream_databases{phase=\"live\"} 0") && page.contains("process_open_fds "), "{page}");
    assert!(ask("GET /healthz").await.contains("ok\ndatabases 0\n"));
    assert!(ask("GET /").await.contains("/metrics"));
    assert!(ask("GET /nothing").await.starts_with("HTTP/1.1 404"));
    assert!(ask("POST /metrics").await.starts_with("HTTP/1.1 405"));
    server.close().await;
    assert!(TcpStream::connect(address).await.is_err());
}
