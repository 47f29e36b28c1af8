//! A start while no replica answers: the log is held all the same, and what was supposed of the replica proves right or wrong later.

use std::time::Duration;

use litestream_fixtures::s3::Down;
use litestream_pageindex::Target as Moment;
use litestream_replicate::daemon::Daemon;
use rusqlite::Connection;

use crate::site::{PATIENCE, Site, held, insert, options, rows, status, synced, until};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missed_and_no_snapshot_is_needed() {
    let site = Site::new();
    let database = site.database("a.db");
    let spec = site.spec("a.db", &["a"]).await;
    let path = spec.path().clone();
    // Where all of the log is in the file, what comes next begins the log anew, and nothing proves what is missing: so a reader stays.
    let reader = site.reader("a.db");
    let daemon = Daemon::new(options());
    daemon.register(spec.clone());
    insert(&database, 5);
    synced(&daemon, &path).await;
    insert(&database, 1);
    daemon.unregister(&path, PATIENCE).await.unwrap();
    site.server.set_down(Some(Down::Refuse)).unwrap();
    insert(&database, 1);

    let daemon = Daemon::new(options());
    daemon.register(spec);
    held(&daemon, &path).await;
    drop(reader);
    let mut counts = Vec::new();
    for _ in 0..3 {
        insert(&database, 1);
        // The log begins anew again and again: who does not hold it cannot follow.
        database.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
        let txid = daemon.sync(&path, false, PATIENCE).await.unwrap().txid;
        counts.push((txid, rows(&database)));
    }
    assert!(status(&daemon, &path).replicas[0].error.is_some());
    site.server.set_down(None).unwrap();
    synced(&daemon, &path).await;
    assert_eq!(
        (status(&daemon, &path).counters.snapshots, status(&daemon, &path).replicas[0].error.clone()),
        (0, None)
    );
    for (txid, expected) in counts {
        assert_eq!(rows(&site.restored("a", Moment::Txid(txid)).await), expected);
    }
    site.check("a.db", "a").await;
}

/// The machine is an older copy of itself.
#[expect(clippy::disallowed_methods, reason = "what is opened is no database")]
#[tokio::test(flavor = "multi_thread")]
async fn what_was_supposed_wrongly_leads_to_a_snapshot_behind_what_is_there() {
    let site = Site::new();
    let database = site.database("a.db");
    let spec = site.spec("a.db", &["a"]).await;
    let path = spec.path().clone();
    let daemon = Daemon::new(options());
    daemon.register(spec.clone());
    insert(&database, 5);
    synced(&daemon, &path).await;
    daemon.unregister(&path, PATIENCE).await.unwrap();
    let state = site.path(".a.db-litestream/state");
    let older = std::fs::read(&state).unwrap();
    let daemon = Daemon::new(options());
    daemon.register(spec.clone());
    for _ in 0..3 {
        insert(&database, 1);
        synced(&daemon, &path).await;
    }
    let newest = daemon.unregister(&path, PATIENCE).await.unwrap().txid;
    std::fs::write(&state, older).unwrap();

    site.server.set_down(Some(Down::Refuse)).unwrap();
    let daemon = Daemon::new(options());
    daemon.register(spec);
    held(&daemon, &path).await;
    insert(&database, 1);
    site.server.set_down(None).unwrap();
    until("it has gone on", || status(&daemon, &path).replicas[0].txid.is_some_and(|txid| txid > newest)).await;
    synced(&daemon, &path).await;
    // One, or two where the log was begun anew since.
    assert_ne!(status(&daemon, &path).counters.snapshots, 0);
    site.check("a.db", "a").await;
}

/// What waits has other pages than the replica does: it is known only here how large those of the replica are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_size_that_changed_while_nothing_answered_is_a_snapshot_of_its_own() {
    let site = Site::new();
    let database = site.database("a.db");
    let spec = site.spec("a.db", &["a"]).await;
    let path = spec.path().clone();
    let daemon = Daemon::new(options());
    daemon.register(spec.clone());
    insert(&database, 5);
    let before = synced(&daemon, &path).await;
    daemon.unregister(&path, PATIENCE).await.unwrap();
    let sizes = "PRAGMA journal_mode=DELETE; PRAGMA page_size=8192; VACUUM; PRAGMA journal_mode=WAL";
    database.execute_batch(sizes).unwrap();
    site.server.set_down(Some(Down::Refuse)).unwrap();
    let daemon = Daemon::new(options());
    daemon.register(spec.clone());
    until("it is captured", || status(&daemon, &path).txid > before).await;
    assert_eq!(daemon.shutdown(Duration::from_millis(100), Duration::from_millis(50)).await.len(), 1);
    site.server.set_down(None).unwrap();
    let daemon = Daemon::new(options());
    daemon.register(spec);
    for _ in 0..3 {
        synced(&daemon, &path).await;
        site.check("a.db", "a").await;
        insert(&database, 5);
    }
    let page_size =
        |restored: &Connection| restored.query_row("PRAGMA page_size", [], |row| row.get::<_, u32>(0)).unwrap();
    assert_eq!(page_size(&site.restored("a", Moment::Latest).await), 8192);
    assert_eq!(page_size(&site.restored("a", Moment::Txid(before)).await), 4096);
}

/// Somebody tidies up.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_waits_and_is_deleted_is_missed_and_made_up_for() {
    for complete in [false, true] {
        is_made_up_for(complete).await;
    }
}

async fn is_made_up_for(complete: bool) {
    let site = Site::new();
    let (database, daemon, path) = site.replicating("a.db", &["a"]).await;
    insert(&database, 50);
    synced(&daemon, &path).await;
    site.server.set_down(Some(Down::Refuse)).unwrap();
    if complete {
        daemon.snapshot(&path, "the test wants one", Duration::from_millis(500)).await.unwrap_err();
    }
    for _ in 0..3 {
        insert(&database, 1);
        daemon.sync(&path, false, PATIENCE).await.unwrap();
    }
    let folder = site.path(".a.db-litestream/ltx/0");
    for entry in std::fs::read_dir(folder).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    site.server.set_down(None).unwrap();
    until("it is made up for", || status(&daemon, &path).replicas[0].txid == Some(status(&daemon, &path).txid)).await;
    site.check("a.db", "a").await;
    insert(&database, 1);
    synced(&daemon, &path).await;
    site.check("a.db", "a").await;
}

/// What a replica holds matters only once the database can be captured.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_captured_asks_its_replica_once() {
    let site = Site::new();
    let database = site.database("a.db");
    database.execute_batch("PRAGMA journal_mode=DELETE").unwrap();
    let spec = site.spec("a.db", &["a"]).await;
    let path = spec.path().clone();
    let daemon = Daemon::new(options());
    daemon.register(spec);
    until("it says what is wrong", || status(&daemon, &path).counters.sync_errors > 0).await;
    let asked = site.server.requests().len();
    until("it was tried again", || status(&daemon, &path).counters.sync_errors > 3).await;
    assert_eq!(site.server.requests().len(), asked);
    database.execute_batch("PRAGMA journal_mode=WAL").unwrap();
    insert(&database, 5);
    synced(&daemon, &path).await;
    site.check("a.db", "a").await;
}
