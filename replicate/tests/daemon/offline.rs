//! A start while no replica answers: the log is held all the same, and what was supposed of the replica proves right or wrong later.

use litestream_fixtures::s3::Down;
use litestream_pageindex::Target as Moment;
use litestream_replicate::daemon::Daemon;

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
