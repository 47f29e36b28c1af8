//! Drills: a replica that is right is found right, and what is wrong is found, said, and mended.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use litestream_replicate::daemon::{Daemon, Options, Phase, Spec};
use ltx::Txid;

use crate::site::{BUCKET, Site, awake, insert, status, synced, until};
use crate::time::Time;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A drill a day, of days that pass when they are told to.
fn daily(spec: &mut Spec) {
    spec.replicas[0].validation_interval = Some(DAY);
}

/// Where nothing is left to rest, nobody looks at the files but in a pass, and in that only when time has gone on.
fn never_resting(time: &Time) -> Options {
    let mut options = time.options();
    options.rest_after = DAY;
    options
}

/// Drills that passed, and that failed.
fn drills(daemon: &Daemon, path: &Path) -> (u64, u64) {
    let counters = status(daemon, path).counters;
    (counters.drills_passed, counters.drills_failed)
}

/// A day passes, and with it comes a drill.
async fn until_drilled(time: &Time, daemon: &Daemon, path: &Path, count: u64) {
    time.go_on(DAY);
    until("there is a drill", || {
        let (passed, failed) = drills(daemon, path);
        passed + failed == count
    })
    .await;
}

/// Days pass until a drill has passed: on the first of them the one before may not be quite over.
async fn until_passed(time: &Time, daemon: &Daemon, path: &Path) {
    until("a drill has passed", || {
        time.go_on(DAY);
        drills(daemon, path).0 > 0
    })
    .await;
    assert_eq!((drills(daemon, path).1, status(daemon, path).concern), (1, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_passes_where_all_is_well_and_none_is_made_of_what_has_not_changed() {
    let (site, time) = (Site::new(), Time::new());
    let (database, daemon, path) = site.replicating_with(time.options(), "a.db", &["a"], daily).await;
    for round in 1..=3 {
        insert(&database, 20);
        synced(&daemon, &path).await;
        assert_eq!(drills(&daemon, &path), (round - 1, 0), "none is due yet");
        until_drilled(&time, &daemon, &path, round).await;
        until("it rests", || status(&daemon, &path).phase == Phase::Idle).await;
        for _ in 0..5 {
            time.go_on(DAY);
            time.looked(1).await;
            assert_eq!(drills(&daemon, &path), (round, 0), "nothing has changed");
            assert_eq!(status(&daemon, &path).phase, Phase::Idle, "nobody need wake it");
        }
    }
    assert_eq!(status(&daemon, &path).concern, None);
    assert_eq!(status(&daemon, &path).counters.snapshots, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_past_sqlite_is_found_and_captured() {
    let (site, time) = (Site::new(), Time::new());
    let (database, daemon, path) = site.replicating_with(never_resting(&time), "a.db", &["a"], daily).await;
    awake(&daemon, &path, || insert(&database, 25)).await;
    // All of it is in the file, and nothing in the log hides that.
    let busy: u32 = database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
    assert_eq!(busy, 0);
    synced(&daemon, &path).await;
    assert_eq!(status(&daemon, &path).phase, Phase::Live);
    // Somebody writes into the file, past SQLite, and covers his tracks. By another process: whoever closes a descriptor here takes our locks away.
    let script = "touch -r \"$0\" \"$0.time\" && printf XXXXXXXX | dd of=\"$0\" bs=1 seek=12200 conv=notrunc status=none && touch -r \"$0.time\" \"$0\"";
    assert!(Command::new("sh").args(["-c", script]).arg(&path).status().unwrap().success());
    database.execute("INSERT INTO t (id, body) VALUES (1000, 'x')", []).unwrap();
    let txid = synced(&daemon, &path).await;
    assert_eq!((drills(&daemon, &path), status(&daemon, &path).concern), ((0, 0), None), "nobody has noticed");
    until_drilled(&time, &daemon, &path, 1).await;
    assert_eq!(drills(&daemon, &path), (0, 1));
    let url = status(&daemon, &path).replicas[0].url.clone();
    let alarm = format!(
        "a drill of {url} failed: it restores to another database than the live one at transaction {txid}: 1 pages differ (3); a new snapshot follows"
    );
    assert_eq!(status(&daemon, &path).concern, Some(alarm));
    // All of it is captured anew, and is right again.
    let anew = format!("a/0009/{}-{}.ltx", Txid::FIRST, txid.next());
    until("it is captured anew", || site.server.object(BUCKET, &anew).is_some()).await;
    synced(&daemon, &path).await;
    until_passed(&time, &daemon, &path).await;
    // The application may still have the page in its memory as it was.
    drop(database);
    site.check("a.db", "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_damaged_is_found_and_mended() {
    let (site, time) = (Site::new(), Time::new());
    let (database, daemon, path) = site.replicating_with(never_resting(&time), "a.db", &["a"], daily).await;
    awake(&daemon, &path, || insert(&database, 25)).await;
    let key = "a/0000/0000000000000001-0000000000000001.ltx";
    let mut bytes = site.server.object(BUCKET, key).unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    site.server.put_object(BUCKET, key, bytes, &[]);
    insert(&database, 1);
    let txid = synced(&daemon, &path).await;
    assert_eq!((drills(&daemon, &path), status(&daemon, &path).concern), ((0, 0), None), "nobody has noticed");
    until_drilled(&time, &daemon, &path, 1).await;
    assert_eq!(drills(&daemon, &path), (0, 1));
    let (url, concern) = (status(&daemon, &path).replicas[0].url.clone(), status(&daemon, &path).concern.unwrap());
    let alarm = format!("a drill of {url} failed: it cannot be restored to transaction {txid}: ");
    assert!(concern.starts_with(&alarm) && concern.ends_with("; a new snapshot follows"), "{concern}");
    let anew = format!("a/0009/{}-{}.ltx", Txid::FIRST, txid.next());
    until("it is captured anew", || site.server.object(BUCKET, &anew).is_some()).await;
    synced(&daemon, &path).await;
    until_passed(&time, &daemon, &path).await;
    site.check("a.db", "a").await;
}
