//! Every moment of the window can be restored, after compaction and retention have run all along.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use litestream_hydrate::{RestoreOptions, restore};
use litestream_pageindex::Target as Moment;
use litestream_pageindex::retention::RetentionPolicy;
use litestream_pageindex::upkeep::Schedule;
use litestream_replicate::Settings;
use litestream_replicate::daemon::{Daemon, Spec, Target};
use litestream_storage::config::ReplicaConfig;
use litestream_storage::{FileInfo, Level, Replica, RetryPolicy};
use ltx::{Timestamp, Txid};
use rusqlite::Connection;

use crate::site::{PATIENCE, insert, synced};
use crate::time::Time;

/// Between two transactions.
const STEP: Duration = Duration::from_secs(10);
const HOUR: usize = 360;
/// So many transactions after one that one is in level 1: which is made half a minute and up to a quarter of that after something was put that it
/// lacks, and then perhaps without what is put just now.
const BEHIND: usize = 5;
/// For how many transactions level 0 stays, though level 1 has them.
const KEPT: usize = 30;

async fn replica(folder: &Path) -> Replica {
    let url = format!("file://{}/store", folder.display());
    litestream_storage::open(&ReplicaConfig::from_url(&url).unwrap(), RetryPolicy::default()).await.unwrap()
}

/// All files from a level on.
async fn files(replica: &Replica, from: Level) -> Vec<FileInfo> {
    let mut files = Vec::new();
    for level in Level::all().filter(|level| *level >= from) {
        files.extend(replica.level(level, Txid::ZERO).await.unwrap());
    }
    files
}

/// How far files from before a moment lead, tried one by one. A file's time in a folder is that of its last transaction.
fn reach(files: &[FileInfo], moment: Timestamp) -> Txid {
    let mut reached = Txid::ZERO;
    let leads_on = |file: &&FileInfo, reached: Txid| file.name.min <= reached.next() && file.name.max > reached;
    let before = || files.iter().filter(|file| file.object.modified < moment);
    while let Some(file) = before().find(|file| leads_on(file, reached)) {
        reached = file.name.max;
    }
    reached
}

#[test]
fn every_ten_seconds_of_the_last_hour_of_two_can_be_restored() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    // Whatever is being merged or deleted ends with its runtime, wherever it is.
    let (rows, merged) = runtime().block_on(two_hours(folder.path()));
    runtime().block_on(restore_each(folder.path(), &rows, &merged));
}

/// When each row was committed, and up to which TXID everything was durable before the next one.
type Rows = Vec<(Timestamp, Txid)>;
/// Where files of level 1 and above ended, all that there ever were, and when.
type Merged = BTreeMap<Txid, Timestamp>;

/// Writes a row every ten seconds, beside compaction and retention.
async fn two_hours(folder: &Path) -> (Rows, Merged) {
    let path = folder.canonicalize().unwrap().join("a.db");
    let database = Connection::open(&path).unwrap();
    database.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)").unwrap();
    let time = Time::new();
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let schedule = Schedule {
        levels: vec![Duration::from_secs(30), minutes(5), minutes(60)],
        snapshots: minutes(15),
        retention: RetentionPolicy { l0: minutes(5), snapshots: minutes(60) },
        deletes: true,
    };
    let replica = replica(folder).await;
    let mut target = Target::new(replica.clone(), "file");
    target.sync_interval = Duration::from_millis(5);
    let spec = Spec { settings: Settings::new(&path), replicas: vec![target], schedule: Some(Arc::new(schedule)) };
    let daemon = Daemon::new(time.options());
    daemon.register(spec);
    synced(&daemon, &path).await;
    let (mut rows, mut merged) = (Rows::new(), Merged::new());
    while rows.len() < 2 * HOUR {
        time.go_on(STEP);
        insert(&database, 1);
        rows.push((time.now(), synced(&daemon, &path).await));
        let behind = rows.len().checked_sub(1 + BEHIND).map_or(Txid::ZERO, |row| rows[row].1);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let made = files(&replica, Level::ONE).await;
            merged.extend(made.iter().map(|file| (file.name.max, file.object.modified)));
            if made.iter().any(|file| file.level == Level::ONE && file.name.max >= behind) || behind == Txid::ZERO {
                break;
            }
            assert!(Instant::now() < deadline, "level 1 does not follow to {behind}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    daemon.shutdown(PATIENCE, Duration::from_millis(100)).await;
    (rows, merged)
}

/// Restores what there was between any two rows of the last hour.
async fn restore_each(folder: &Path, rows: &[(Timestamp, Txid)], merged: &Merged) {
    let replica = replica(folder).await;
    let left = files(&replica, Level::ZERO).await;
    let count = |level| left.iter().filter(|file| file.level == level).count();
    assert!((5..=7).contains(&count(Level::SNAPSHOT)), "{} snapshots", count(Level::SNAPSHOT));
    assert!((KEPT..=KEPT + 3 * BEHIND).contains(&count(Level::ZERO)), "{} in level 0", count(Level::ZERO));
    let mut exact = 0;
    for ago in 0..HOUR {
        let committed = rows.len() - ago;
        let moment = Timestamp(rows[committed - 1].0.0 + STEP.as_millis() as i64 / 2);
        let output = folder.join("restored.db");
        let restoring = RestoreOptions { target: Moment::Before(moment), ..RestoreOptions::default() };
        let restored = restore(&replica, &output, &restoring).await;
        let restored = restored.unwrap_or_else(|error| panic!("{ago} transactions ago: {error}"));
        let found = Connection::open(&output).unwrap();
        let rows_found: u32 = found.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        let rows_found = rows_found as usize;
        let check: String = found.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        let what = format!("{ago} transactions ago: transaction {}, {rows_found} rows of {committed}", restored.txid);
        assert_eq!(rows_found, rows.partition_point(|(_, txid)| *txid <= restored.txid), "{what}");
        // All that is there is used; and of what ever was merged, nothing has gone that led further.
        assert_eq!(restored.txid, reach(&left, moment), "{what}");
        let must = merged.iter().filter(|(_, time)| **time < moment).map(|(txid, _)| *txid).max().unwrap();
        assert!(restored.txid >= must, "{what}, merged up to {must}");
        assert!((committed - BEHIND..=committed).contains(&rows_found), "{what}");
        // Where level 0 is still there, it is the newest transaction.
        exact += usize::from(rows_found == committed);
        assert!(ago >= KEPT - BEHIND || rows_found == committed, "{what}");
        drop(found);
        std::fs::remove_file(&output).unwrap();
    }
    // Elsewhere single transactions have been merged away: this is about what was compacted.
    assert!(exact < HOUR / 2, "{exact} of {HOUR} were exact");
}
