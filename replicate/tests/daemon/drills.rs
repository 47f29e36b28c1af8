//! Drills: a replica that is right is found right, and what is wrong is found, said, and mended.

use std::process::Command;
use std::time::Duration;

use litestream_replicate::daemon::Daemon;

use crate::site::{BUCKET, Site, insert, options, status, synced, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_passes_where_all_is_well_and_alarms_where_it_is_not() {
    let site = Site::new();
    let database = site.database("a.db");
    let mut spec = site.spec("a.db", &["a"]).await;
    spec.replicas[0].validation_interval = Some(Duration::from_millis(700));
    let path = spec.path().clone();
    let daemon = Daemon::new(options());
    daemon.register(spec);
    insert(&database, 50);
    synced(&daemon, &path).await;
    until("a drill has passed", || status(&daemon, &path).counters.drills_passed > 0).await;
    // Nothing has changed: no drill.
    until("it rests", || status(&daemon, &path).phase == litestream_replicate::daemon::Phase::Idle).await;
    let passed = status(&daemon, &path).counters.drills_passed;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(status(&daemon, &path).counters.drills_passed, passed);
    insert(&database, 1);
    until("another drill has passed", || status(&daemon, &path).counters.drills_passed > passed).await;
    assert_eq!(status(&daemon, &path).counters.drills_failed, 0);
    assert_eq!(status(&daemon, &path).concern, None);
    until("it rests", || status(&daemon, &path).phase == litestream_replicate::daemon::Phase::Idle).await;
    // Somebody writes into the file, past SQLite, and covers his tracks. By another process: whoever closes a descriptor here takes our locks away.
    let script = "touch -r \"$0\" \"$0.time\" && printf X | dd of=\"$0\" bs=1 seek=12200 conv=notrunc status=none && touch -r \"$0.time\" \"$0\"";
    assert!(Command::new("sh").args(["-c", script]).arg(&path).status().unwrap().success());
    database.execute("INSERT INTO t (id, body) VALUES (1000, 'x')", []).unwrap();
    until("the alarm is raised", || status(&daemon, &path).counters.drills_failed == 1).await;
    let concern = status(&daemon, &path).concern;
    assert!(concern.as_ref().is_none_or(|concern| concern.contains("1 pages differ (3)")), "{concern:?}");
    // All of it was captured anew, and is right again.
    let passed = status(&daemon, &path).counters.drills_passed;
    until("a drill has passed", || status(&daemon, &path).counters.drills_passed > passed).await;
    assert_eq!(status(&daemon, &path).concern, None);
    // The application may still have the page in its memory as it was.
    drop(database);
    site.check("a.db", "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_damaged_is_found_and_mended() {
    let site = Site::new();
    let database = site.database("a.db");
    let mut spec = site.spec("a.db", &["a"]).await;
    let path = spec.path().clone();
    let daemon = Daemon::new(options());
    spec.replicas[0].validation_interval = Some(Duration::from_millis(300));
    insert(&database, 50);
    daemon.register(spec);
    synced(&daemon, &path).await;
    let key = "a/0000/0000000000000001-0000000000000001.ltx";
    let mut bytes = site.server.object(BUCKET, key).unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    site.server.put_object(BUCKET, key, bytes, &[]);
    insert(&database, 1);
    until("the alarm is raised", || status(&daemon, &path).counters.drills_failed > 0).await;
    until("a drill has passed", || {
        let counters = status(&daemon, &path).counters;
        counters.drills_passed > 0
    })
    .await;
    site.check("a.db", "a").await;
}
