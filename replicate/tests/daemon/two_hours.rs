//! Every moment of the window can be restored, after compaction and retention have run all along.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use litestream_hydrate::{RestoreOptions, restore};
use litestream_pageindex::Target as Moment;
use litestream_pageindex::retention::RetentionPolicy;
use litestream_pageindex::upkeep::Schedule;
use litestream_replicate::Settings;
use litestream_replicate::daemon::{Daemon, SharedClock, Spec, Target};
use litestream_storage::config::ReplicaConfig;
use litestream_storage::{Level, Replica, RetryPolicy};
use ltx::{Timestamp, Txid};
use rusqlite::Connection;

use crate::site::{insert, options, synced};

/// How much faster time goes.
const SPEED: u32 = 240;
const HOUR: i64 = 3_600_000;

async fn replica(folder: &Path) -> Replica {
    let url = format!("file://{}", folder.display());
    litestream_storage::open(&ReplicaConfig::from_url(&url).unwrap(), RetryPolicy::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_ten_seconds_of_the_last_hour_of_two_can_be_restored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap().join("a.db");
    let database = Connection::open(&path).unwrap();
    database.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)").unwrap();
    let begin = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64 - 3 * HOUR;
    let first = Instant::now();
    let clock: SharedClock = Arc::new(move || Timestamp(begin + (first.elapsed() * SPEED).as_millis() as i64));
    let mut options = options();
    options.clock = clock.clone();
    options.upkeep_every = Duration::from_millis(20);
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let schedule = Schedule {
        levels: vec![Duration::from_secs(30), minutes(5), minutes(60)],
        snapshots: minutes(15),
        retention: RetentionPolicy { l0: minutes(5), snapshots: minutes(60) },
        deletes: true,
    };
    let store = folder.path().join("store");
    let mut target = Target::new(replica(&store).await, "file");
    target.sync_interval = Duration::from_millis(5);
    let spec = Spec { settings: Settings::new(&path), replicas: vec![target], schedule: Some(Arc::new(schedule)) };
    let daemon = Daemon::new(options);
    daemon.register(spec);
    synced(&daemon, &path).await;
    // Between which moments each row was committed and became durable.
    let mut rows: Vec<(Timestamp, Timestamp)> = Vec::new();
    while clock().0 < begin + 2 * HOUR {
        let before = clock();
        insert(&database, 1);
        synced(&daemon, &path).await;
        rows.push((before, clock()));
    }
    let counters = daemon.status_of(&path).unwrap().counters;
    daemon.shutdown(Duration::from_secs(30), Duration::from_millis(100)).await;
    drop(daemon);
    // Retention goes on until nothing does.
    let end = clock();
    assert!(rows.len() > 100, "{} rows", rows.len());
    assert!(counters.compacted > 50 && counters.l0_deleted as usize > rows.len() / 2, "{counters:?}");
    let replica = replica(&store).await;
    let snapshots = replica.level(Level::SNAPSHOT, Txid::ZERO).await.unwrap();
    assert!((4..=7).contains(&snapshots.len()), "{} snapshots", snapshots.len());
    for seconds in (0..3_600).step_by(10) {
        let moment = Timestamp(end.0 - 1_000 * seconds);
        let output = folder.path().join("restored.db");
        let restoring = RestoreOptions { target: Moment::Before(moment), ..RestoreOptions::default() };
        restore(&replica, &output, &restoring).await.unwrap_or_else(|error| panic!("{seconds} s ago: {error}"));
        let restored = Connection::open(&output).unwrap();
        let count: u32 = restored.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        let count = count as usize;
        let check: String = restored.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        let durable = rows.iter().filter(|(_, durable)| *durable < moment).count();
        let begun = rows.iter().filter(|(before, _)| *before < moment).count();
        // What was merged is restored to the end of what it was merged into, at most that of the first level.
        assert!(
            (durable..=begun).contains(&count) || is_merged(&rows, count, moment),
            "{seconds} s ago: {count} rows of {durable} to {begun}"
        );
        drop(restored);
        std::fs::remove_file(&output).unwrap();
    }
}

/// Whether a state is the last one before a moment that is still kept by itself: levels keep states half a minute, five minutes, an hour apart.
fn is_merged(rows: &[(Timestamp, Timestamp)], count: usize, moment: Timestamp) -> bool {
    let at = count.checked_sub(1).and_then(|last| rows.get(last)).map_or(Timestamp(0), |(_, durable)| *durable);
    at < moment && moment.0 - at.0 < HOUR
}
