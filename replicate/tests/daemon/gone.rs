//! Databases that are deleted, and the end of those that cannot be brought up to date: neither takes anything along that was committed.

use std::time::Duration;

use litestream_fixtures::s3::{Down, FaultKind};
use litestream_pageindex::Target as Moment;
use litestream_replicate::daemon::{Daemon, Phase};

use crate::site::{BUCKET, PATIENCE, Site, awake, insert, options, rows, status, synced, until};

fn delete(site: &Site, name: &str) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(site.path(&format!("{name}{suffix}")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_right_before_a_database_was_deleted_is_uploaded() {
    for ended in [false, true] {
        let (site, mut options) = (Site::new(), options());
        options.rest_after = Duration::from_secs(24 * 60 * 60);
        let (database, daemon, path) = site.replicating_with(options, "a.db", &["a"], |_| {}).await;
        awake(&daemon, &path, || insert(&database, 5)).await;
        site.server.set_down(Some(Down::Refuse)).unwrap();
        insert(&database, 1);
        daemon.sync(&path, false, PATIENCE).await.unwrap();
        insert(&database, 1);
        let expected = rows(&database);
        delete(&site, "a.db");
        let no_such_file = |error: Option<String>| error.is_some_and(|error| error.contains("no such file"));
        until("it is missed", || no_such_file(status(&daemon, &path).error)).await;
        assert_eq!(status(&daemon, &path).phase, Phase::Waiting);
        // There is no hurry, as long as it lasts.
        let error = daemon.sync(&path, true, Duration::from_millis(300)).await.unwrap_err().to_string();
        assert!(error.contains("no such file"), "{error}");
        if ended {
            let (daemon, path) = (daemon.clone(), path.clone());
            let unregistered = tokio::spawn(async move { daemon.unregister(&path, PATIENCE).await });
            tokio::time::sleep(Duration::from_millis(300)).await;
            site.server.set_down(None).unwrap();
            let synced = unregistered.await.unwrap().unwrap();
            assert_eq!(synced.txid, synced.durable);
        } else {
            site.server.set_down(None).unwrap();
            until("all is there", || site.staged("a.db") == 0).await;
        }
        assert_eq!(rows(&site.restored("a", Moment::Latest).await), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_process_captured_of_a_database_that_is_gone_is_uploaded() {
    let site = Site::new();
    let database = site.database("a.db");
    let spec = site.spec("a.db", &["a", "b"]).await;
    let path = spec.path().clone();
    let daemon = Daemon::new(options());
    daemon.register(spec.clone());
    insert(&database, 5);
    synced(&daemon, &path).await;
    site.server.set_down(Some(Down::Refuse)).unwrap();
    for _ in 0..3 {
        insert(&database, 1);
        daemon.sync(&path, false, PATIENCE).await.unwrap();
    }
    assert_eq!(daemon.shutdown(Duration::from_millis(100), Duration::from_millis(50)).await.len(), 1);
    let expected = rows(&database);
    drop(database);
    delete(&site, "a.db");
    assert_eq!(site.staged("a.db"), 3);

    // First while nothing answers.
    for down in [Some(Down::Refuse), None] {
        let daemon = Daemon::new(options());
        daemon.register(spec.clone());
        until("it waits", || status(&daemon, &path).phase == Phase::Waiting).await;
        if down.is_some() {
            until("it is tried", || status(&daemon, &path).replicas.iter().all(|replica| replica.error.is_some()))
                .await;
            assert_eq!(daemon.shutdown(Duration::from_millis(100), Duration::from_millis(50)).await.len(), 1);
            assert_eq!(site.staged("a.db"), 3);
            site.server.set_down(None).unwrap();
            continue;
        }
        until("all is there", || site.staged("a.db") == 0).await;
        // Another one that comes in its place is gone on with behind it.
        for place in ["a", "b"] {
            assert_eq!(rows(&site.restored(place, Moment::Latest).await), expected);
        }
        let before = status(&daemon, &path).txid;
        let database = site.database("a.db");
        insert(&database, 2);
        until("it is taken up", || status(&daemon, &path).txid > before).await;
        synced(&daemon, &path).await;
        for place in ["a", "b"] {
            site.check("a.db", place).await;
            assert_eq!(rows(&site.restored(place, Moment::Txid(before)).await), expected);
        }
    }
}

/// What was captured and not uploaded is gone as well, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_deleted_with_all_that_is_beside_it_is_missed() {
    let (site, mut options) = (Site::new(), options());
    options.rest_after = Duration::from_secs(24 * 60 * 60);
    let (database, daemon, path) = site.replicating_with(options, "a.db", &["a"], |_| {}).await;
    awake(&daemon, &path, || insert(&database, 5)).await;
    std::fs::remove_dir_all(site.path(".a.db-litestream")).unwrap();
    insert(&database, 1);
    delete(&site, "a.db");
    until("it is missed", || status(&daemon, &path).phase == Phase::Waiting).await;
    daemon.unregister(&path, PATIENCE).await.unwrap();
}

/// It was missing when it was looked for last.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_came_a_moment_before_the_end_is_captured() {
    let site = Site::new();
    let spec = site.spec("a.db", &["a"]).await;
    let (daemon, path) = (Daemon::new(options()), spec.path().clone());
    daemon.register(spec);
    until("it is missed", || status(&daemon, &path).phase == Phase::Waiting).await;
    let database = site.database("a.db");
    insert(&database, 5);
    daemon.unregister(&path, PATIENCE).await.unwrap();
    site.check("a.db", "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stopped_with_something_left_is_not_up_to_date_at_the_end() {
    let site = Site::new();
    let (database, daemon, path) = site.replicating("a.db", &["a"]).await;
    insert(&database, 5);
    synced(&daemon, &path).await;
    site.server.set_down(Some(Down::Refuse)).unwrap();
    insert(&database, 5);
    daemon.stop(&path, Duration::from_millis(200)).await.unwrap_err();
    let left = daemon.shutdown(Duration::from_millis(200), Duration::from_millis(50)).await;
    assert!(left.len() == 1 && left[0].to_string().contains("holds transactions up to"), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn to_delete_a_database_that_rests_and_let_go_of_it_is_no_failure() {
    let site = Site::new();
    let (database, daemon, path) = site.replicating("a.db", &["a"]).await;
    insert(&database, 5);
    synced(&daemon, &path).await;
    let expected = rows(&database);
    drop(database);
    until("it rests", || status(&daemon, &path).phase == Phase::Idle).await;
    delete(&site, "a.db");
    let synced = daemon.unregister(&path, PATIENCE).await.unwrap();
    assert_eq!(synced.txid, synced.durable);
    assert_eq!(rows(&site.restored("a", Moment::Latest).await), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn to_delete_a_live_database_and_let_go_of_it_is_no_failure() {
    let (site, mut options) = (Site::new(), options());
    options.rest_after = Duration::from_secs(24 * 60 * 60);
    let (database, daemon, path) = site.replicating_with(options, "a.db", &["a"], |_| {}).await;
    awake(&daemon, &path, || insert(&database, 5)).await;
    insert(&database, 1);
    let expected = rows(&database);
    delete(&site, "a.db");
    let synced = daemon.unregister(&path, PATIENCE).await.unwrap();
    assert_eq!(synced.txid, synced.durable);
    assert_eq!(rows(&site.restored("a", Moment::Latest).await), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_of_a_database_that_was_stopped_and_deleted_goes_up_once_it_is_started() {
    for waits in [false, true] {
        let site = Site::new();
        let (database, daemon, path) = site.replicating("a.db", &["a"]).await;
        insert(&database, 5);
        synced(&daemon, &path).await;
        site.server.set_down(waits.then_some(Down::Refuse)).unwrap();
        insert(&database, 5);
        let stopped = daemon.stop(&path, Duration::from_millis(200)).await;
        assert_eq!(stopped.is_err(), waits);
        let expected = rows(&database);
        delete(&site, "a.db");
        site.server.set_down(None).unwrap();
        assert!(daemon.start(&path).unwrap());
        until("it waits", || status(&daemon, &path).phase == Phase::Waiting).await;
        until("all is there", || site.staged("a.db") == 0).await;
        daemon.unregister(&path, PATIENCE).await.unwrap();
        assert_eq!(rows(&site.restored("a", Moment::Latest).await), expected);
    }
}

/// The one that is fenced is told of; the other one gets everything first.
#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_replica_does_not_end_the_wait_for_the_others() {
    let site = Site::new();
    let (database, daemon, path) = site.replicating_with(options(), "a.db", &["a", "b"], slowly).await;
    insert(&database, 5);
    let before = synced(&daemon, &path).await;
    let key = |place: &str, txid: ltx::Txid| format!("{place}/0000/{txid}-{txid}.ltx");
    let other = site.server.object(BUCKET, &key("a", before)).unwrap();
    site.server.put_object(BUCKET, &key("a", before.next()), other, &[]);
    // The one that is not fenced is the slower one.
    site.server.fault_next(2, FaultKind::Status(500), |request| request.key.starts_with("b/0000/"));
    insert(&database, 5);
    let left = daemon.shutdown(PATIENCE, Duration::from_millis(100)).await;
    assert_eq!(left.len(), 1, "{left:?}");
    site.check("a.db", "b").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_time_for_the_end_means_that_everything_is_tried_once() {
    for down in [None, Some(Down::Refuse)] {
        let site = Site::new();
        let (database, daemon, path) = site.replicating_with(options(), "a.db", &["a"], slowly).await;
        insert(&database, 5);
        synced(&daemon, &path).await;
        site.server.set_down(down).unwrap();
        insert(&database, 5);
        let left = daemon.shutdown(Duration::ZERO, Duration::from_millis(500)).await;
        let left: Vec<String> = left.iter().map(ToString::to_string).collect();
        site.server.set_down(None).unwrap();
        if down.is_some() {
            assert!(left.len() == 1 && left[0].contains("tried once"), "{left:?}");
            assert_ne!(site.staged("a.db"), 0);
        } else {
            assert_eq!(left, Vec::<String>::new());
            site.check("a.db", "a").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_cannot_be_brought_up_to_date_keep_no_other_from_it() {
    let (site, down) = (Site::new(), Site::new());
    let (database, daemon, path) = site.replicating_with(options(), "z.db", &["z"], slowly).await;
    insert(&database, 5);
    synced(&daemon, &path).await;
    down.server.set_down(Some(Down::Refuse)).unwrap();
    // More than are let go of at once.
    for number in 0..300 {
        let name = format!("a{number}.db");
        drop(site.database(&name));
        let mut spec = site.spec(&name, &[]).await;
        spec.replicas.push(down.target(&name).await);
        assert!(daemon.register(spec));
    }
    insert(&database, 5);
    let left = daemon.shutdown(Duration::from_secs(3), Duration::from_millis(100)).await;
    assert_eq!(left.len(), 300);
    site.check("z.db", "z").await;
}

/// Nothing is captured in time unless it is asked for.
fn slowly(spec: &mut litestream_replicate::daemon::Spec) {
    for replica in &mut spec.replicas {
        replica.sync_interval = Duration::from_secs(24 * 60 * 60);
    }
}
