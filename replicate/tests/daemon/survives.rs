//! What a daemon survives: a store that is down, a database that goes and comes, a disk that is full, a second writer's silence.

use std::time::Duration;

use litestream_fixtures::s3::Down;
use litestream_pageindex::Target as Moment;
use litestream_replicate::daemon::{ControlError, Daemon, Phase};

use crate::obedient::Application;
use crate::site::{PATIENCE, Site, insert, options, rows, status, synced, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_is_not_pressed_and_gets_everything_afterwards() {
    let site = Site::new();
    let (database, daemon, path) = site.replicating("a.db", &["a"]).await;
    insert(&database, 5);
    synced(&daemon, &path).await;
    for down in [Down::Refuse, Down::Silent] {
        site.server.set_down(Some(down)).unwrap();
        insert(&database, 5);
        until("it is said", || status(&daemon, &path).replicas[0].error.is_some()).await;
        let refused = daemon.sync(&path, true, Duration::from_millis(100)).await.unwrap_err();
        assert!(
            matches!(&refused, ControlError::Timeout { why, .. } if why.contains("holds transactions up to")),
            "{refused}"
        );
        assert!(status(&daemon, &path).lag() > Duration::ZERO);
        site.server.set_down(None).unwrap();
        synced(&daemon, &path).await;
        assert_eq!(status(&daemon, &path).replicas[0].error, None);
        site.check("a.db", "a").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_there_yet_is_waited_for() {
    let site = Site::new();
    let spec = site.spec("a.db", &["a"]).await;
    let path = spec.path().clone();
    let daemon = Daemon::new(options());
    daemon.register(spec);
    until("it waits", || status(&daemon, &path).phase == Phase::Waiting).await;
    assert!(status(&daemon, &path).error.unwrap().contains("no such file"));
    let database = rusqlite::Connection::open(&path).unwrap();
    database.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)").unwrap();
    until("it says what is wrong", || {
        status(&daemon, &path).error.is_some_and(|error| error.contains("not in WAL mode"))
    })
    .await;
    database.execute_batch("PRAGMA journal_mode=WAL").unwrap();
    insert(&database, 5);
    synced(&daemon, &path).await;
    site.check("a.db", "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_replaced_is_taken_up_anew() {
    let site = Site::new();
    let (database, daemon, path) = site.replicating("a.db", &["a"]).await;
    insert(&database, 50);
    synced(&daemon, &path).await;
    let snapshots = status(&daemon, &path).counters.snapshots;
    assert_eq!(snapshots, 1);
    drop(database);
    let database = site.replace("a.db", 7);
    insert(&database, 1);
    until("it is noticed", || status(&daemon, &path).counters.snapshots > snapshots).await;
    synced(&daemon, &path).await;
    site.check("a.db", "a").await;
}

/// As where one program starts the other, or a machine ends both.
#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_ends_just_before_us_costs_no_snapshot() {
    let site = Site::new();
    drop(site.database("a.db"));
    let mut spec = site.spec("a.db", &["a"]).await;
    (spec.settings.truncate_when_alone, spec.settings.alone_in_process) = (true, true);
    let path = spec.path().clone();
    for round in 0..4 {
        // It is there first, and copies and begins the log anew as it likes.
        let mut application = Application::open(&path);
        application.insert(1);
        let daemon = Daemon::new(options());
        daemon.register(spec.clone());
        synced(&daemon, &path).await;
        assert_eq!(status(&daemon, &path).counters.snapshots, u64::from(round == 0), "in round {round}");
        application.insert(1);
        if round % 2 == 0 {
            // Or we empty it.
            synced(&daemon, &path).await;
        }
        application.close();
        let stopped = daemon.unregister(&path, PATIENCE).await.unwrap();
        assert_eq!(stopped.durable, stopped.txid);
        // Whoever opened the database here, and closed it, would copy its log.
        assert_eq!(rows(&site.restored("a", Moment::Latest).await).0, 2 * (round + 1));
    }
}
