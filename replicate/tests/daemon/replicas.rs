//! What goes into replicas: everything, in order, into each of them.

use std::time::Duration;

use litestream_fixtures::s3::{Down, Operation};
use litestream_pageindex::Target as Moment;
use litestream_replicate::daemon::{ControlError, Daemon, Phase};

use crate::site::{BUCKET, PATIENCE, Site, insert, options, rows, status, synced, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_in_the_replica_a_moment_later() {
    let site = Site::new();
    let database = site.database("a.db");
    let daemon = Daemon::new(options());
    let spec = site.spec("a.db", &["a"]).await;
    let path = spec.path().clone();
    assert!(daemon.register(spec.clone()));
    assert!(!daemon.register(spec));
    for _ in 0..20 {
        insert(&database, 3);
        let txid = synced(&daemon, &path).await;
        let restored = site.restored("a", Moment::Txid(txid)).await;
        assert_eq!(rows(&restored), rows(&database));
    }
    // Without being asked as well.
    insert(&database, 1);
    let before = status(&daemon, &path).txid;
    until("it is captured", || status(&daemon, &path).txid > before).await;
    until("it is uploaded", || status(&daemon, &path).replicas[0].txid == Some(before.next())).await;
    site.check("a.db", "a").await;
    until("nothing is left here", || site.staged("a.db") == 0).await;
    let found = status(&daemon, &path);
    assert_eq!((found.error.clone(), found.counters.snapshots, found.lag()), (None, 1, Duration::ZERO));
    assert!(daemon.shutdown(PATIENCE, Duration::from_millis(100)).await.is_empty());
    assert_eq!(status(&daemon, &path).phase, Phase::Stopped);
    assert!(matches!(daemon.start(&path), Err(ControlError::Ending)));
    assert!(!daemon.register(site.spec("b.db", &["b"]).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stopped_goes_on_where_it_was() {
    let site = Site::new();
    let database = site.database("a.db");
    let spec = site.spec("a.db", &["a"]).await;
    let path = spec.path().clone();
    // Where all of the log is in the file, what comes after the end begins the log anew, and only a snapshot shows it: so a reader stays.
    let reader = site.reader("a.db");
    for round in 0..4 {
        let daemon = Daemon::new(options());
        daemon.register(spec.clone());
        insert(&database, 5);
        synced(&daemon, &path).await;
        assert_eq!(status(&daemon, &path).counters.snapshots, u64::from(round == 0), "in round {round}");
        insert(&database, 5);
        let stopped = daemon.unregister(&path, PATIENCE).await.unwrap();
        assert_eq!(stopped.durable, stopped.txid);
        assert!(matches!(daemon.sync(&path, true, PATIENCE).await, Err(ControlError::Unknown(_))));
        site.check("a.db", "a").await;
    }
    let daemon = Daemon::new(options());
    daemon.register(spec);
    synced(&daemon, &path).await;
    assert_eq!(status(&daemon, &path).counters.snapshots, 0);
    let before = synced(&daemon, &path).await;
    insert(&database, 5);
    let stopped = daemon.stop(&path, PATIENCE).await.unwrap();
    assert!(stopped.txid > before && stopped.durable == stopped.txid, "{stopped:?} behind {before}");
    assert_eq!((status(&daemon, &path).txid, status(&daemon, &path).phase), (stopped.txid, Phase::Stopped));
    site.check("a.db", "a").await;
    assert!(matches!(daemon.sync(&path, true, PATIENCE).await, Err(ControlError::Stopped(_))));
    insert(&database, 5);
    assert!(daemon.start(&path).unwrap());
    assert!(!daemon.start(&path).unwrap());
    synced(&daemon, &path).await;
    drop(reader);
    site.check("a.db", "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_down_holds_up_no_other_and_catches_up() {
    let (site, other) = (Site::new(), Site::new());
    let database = site.database("a.db");
    let mut spec = site.spec("a.db", &["a"]).await;
    spec.replicas.push(other.target("b").await);
    let path = spec.path().clone();
    let daemon = Daemon::new(options());
    daemon.register(spec.clone());
    insert(&database, 5);
    synced(&daemon, &path).await;
    other.server.set_down(Some(Down::Refuse)).unwrap();
    for _ in 0..10 {
        insert(&database, 1);
        let asked = daemon.sync(&path, false, PATIENCE).await.unwrap();
        until("one has it", || status(&daemon, &path).replicas[0].txid == Some(asked.txid)).await;
    }
    until("it is said", || status(&daemon, &path).replicas[1].error.is_some()).await;
    assert!(status(&daemon, &path).lag() > Duration::ZERO);
    assert_eq!(site.staged("a.db"), 10);
    // A process that begins while it is down goes on all the same.
    daemon.shutdown(Duration::from_millis(1), Duration::from_millis(100)).await;
    drop(daemon);
    let daemon = Daemon::new(options());
    daemon.register(spec);
    daemon.sync(&path, false, PATIENCE).await.unwrap();
    insert(&database, 1);
    let asked = daemon.sync(&path, false, PATIENCE).await.unwrap();
    until("one has it", || status(&daemon, &path).replicas[0].txid == Some(asked.txid)).await;
    other.server.set_down(None).unwrap();
    synced(&daemon, &path).await;
    site.check("a.db", "a").await;
    let restored = other.restored("b", Moment::Latest).await;
    assert_eq!(rows(&restored), rows(&database));
    assert_eq!(status(&daemon, &path).counters.snapshots, 0);
    until("nothing is left here", || site.staged("a.db") == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_comes_later_gets_all_of_the_database_first() {
    let site = Site::new();
    let database = site.database("a.db");
    let mut spec = site.spec("a.db", &["a"]).await;
    let path = spec.path().clone();
    let daemon = Daemon::new(options());
    daemon.register(spec.clone());
    for _ in 0..3 {
        insert(&database, 5);
        synced(&daemon, &path).await;
    }
    daemon.unregister(&path, PATIENCE).await.unwrap();
    spec.replicas.push(site.target("b").await);
    daemon.register(spec);
    insert(&database, 5);
    synced(&daemon, &path).await;
    insert(&database, 5);
    synced(&daemon, &path).await;
    for place in ["a", "b"] {
        site.check("a.db", place).await;
    }
    let snapshots = site.server.keys(BUCKET).into_iter().filter(|key| key.starts_with("b/0009/"));
    assert_eq!(snapshots.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_one_goes_on_and_the_other_says_so() {
    let (site, mut specs) = (Site::new(), Vec::new());
    for name in ["a.db", "b.db"] {
        specs.push((site.database(name), site.spec(name, &["a"]).await));
    }
    let [first, second] = [Daemon::new(options()), Daemon::new(options())];
    let [(one, one_spec), (other, other_spec)] = &specs[..] else { unreachable!() };
    let [path, other_path] = [one_spec.path(), other_spec.path()];
    first.register(one_spec.clone());
    insert(one, 5);
    synced(&first, path).await;
    // Who begins where somebody else has been goes on behind him, with a snapshot.
    second.register(other_spec.clone());
    insert(other, 3);
    synced(&second, other_path).await;
    site.check("b.db", "a").await;
    insert(one, 1);
    let refused = first.sync(path, true, PATIENCE).await.unwrap_err().to_string();
    assert!(refused.contains("is by writer") && refused.contains("test:1"), "{refused}");
    assert!(status(&first, path).replicas[0].fenced);
    // Nothing of what the other has written is lost, and he goes on.
    insert(other, 3);
    synced(&second, other_path).await;
    site.check("b.db", "a").await;
    second.unregister(other_path, PATIENCE).await.unwrap();
    // Whoever is sure starts the first one again.
    assert!(matches!(first.stop(path, PATIENCE).await, Err(ControlError::Failed { .. })));
    first.start(path).unwrap();
    insert(one, 1);
    synced(&first, path).await;
    site.check("a.db", "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_recover_goes_on_behind_the_other_one() {
    let site = Site::new();
    let (one, other) = (site.database("a.db"), site.database("b.db"));
    let (mut spec, other_spec) = (site.spec("a.db", &["a"]).await, site.spec("b.db", &["a"]).await);
    spec.replicas[0].auto_recover = true;
    let (path, other_path) = (spec.path().clone(), other_spec.path().clone());
    let [first, second] = [Daemon::new(options()), Daemon::new(options())];
    first.register(spec);
    insert(&one, 5);
    let before = synced(&first, &path).await;
    second.register(other_spec);
    insert(&other, 3);
    synced(&second, &other_path).await;
    second.unregister(&other_path, PATIENCE).await.unwrap();
    insert(&one, 1);
    until("it has recovered", || {
        let found = status(&first, &path);
        found.txid > before.next() && found.replicas[0].txid == Some(found.txid)
    })
    .await;
    synced(&first, &path).await;
    site.check("a.db", "a").await;
}

/// There are fewer descriptors than databases need.
#[tokio::test(flavor = "multi_thread")]
async fn where_descriptors_run_short_databases_are_parked_and_lose_nothing() {
    const DATABASES: usize = 24;
    let site = Site::new();
    let mut options = options();
    options.starts = 2;
    options.descriptors = 50;
    let daemon = Daemon::new(options);
    // Their applications stay: whoever leaves last copies the log into the file, which then proves nothing of what was parked.
    let (mut paths, mut databases) = (Vec::new(), Vec::new());
    for number in 0..DATABASES {
        let name = format!("{number}.db");
        let database = site.database(&name);
        insert(&database, 1);
        database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        databases.push(database);
        let spec = site.spec(&name, &[&name]).await;
        paths.push(spec.path().clone());
        daemon.register(spec);
    }
    for round in 0..3 {
        for path in &paths {
            until("it is held", || status(&daemon, path).phase == Phase::Idle).await;
        }
        for (number, database) in databases.iter().enumerate() {
            if round == 0 || number % 5 == round {
                insert(database, 2);
            }
        }
        for path in &paths {
            synced(&daemon, path).await;
        }
    }
    for (number, path) in paths.iter().enumerate() {
        let name = format!("{number}.db");
        site.check(&name, &name).await;
        assert_eq!(status(&daemon, path).counters.snapshots, 1, "{name}");
    }
}

/// As many rest as there is room for, and then all change: none may wait for what others keep who wait as well.
#[tokio::test(flavor = "multi_thread")]
async fn where_all_that_rest_change_at_once_each_gets_its_turn() {
    let site = Site::new();
    let mut options = options();
    options.starts = 1;
    options.descriptors = 20;
    let daemon = Daemon::new(options);
    let databases: Vec<_> = (0..6).map(|number| site.database(&format!("{number}.db"))).collect();
    let mut paths = Vec::new();
    for number in 0..6 {
        let spec = site.spec(&format!("{number}.db"), &[&format!("{number}")]).await;
        paths.push(spec.path().clone());
        daemon.register(spec);
    }
    for _ in 0..3 {
        for path in &paths {
            until("it rests", || status(&daemon, path).phase == Phase::Idle).await;
        }
        databases.iter().for_each(|database| insert(database, 1));
        for path in &paths {
            synced(&daemon, path).await;
        }
    }
    for number in 0..6 {
        site.check(&format!("{number}.db"), &format!("{number}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_page_size_is_a_new_snapshot() {
    let site = Site::new();
    let (database, daemon, path) = site.replicating("a.db", &["a"]).await;
    insert(&database, 50);
    let before = synced(&daemon, &path).await;
    let rows_before = rows(&database);
    daemon.stop(&path, PATIENCE).await.unwrap();
    database
        .execute_batch("PRAGMA journal_mode=DELETE; PRAGMA page_size=8192; VACUUM; PRAGMA journal_mode=WAL")
        .unwrap();
    insert(&database, 5);
    daemon.start(&path).unwrap();
    synced(&daemon, &path).await;
    site.check("a.db", "a").await;
    insert(&database, 5);
    synced(&daemon, &path).await;
    site.check("a.db", "a").await;
    assert_eq!(rows(&site.restored("a", Moment::Txid(before)).await), rows_before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_change_costs_no_request() {
    let site = Site::new();
    let mut paths = Vec::new();
    let daemon = Daemon::new(options());
    for number in 0..8 {
        let name = format!("{number}.db");
        let database = site.database(&name);
        let spec = site.spec(&name, &[&name]).await;
        paths.push(spec.path().clone());
        daemon.register(spec);
        insert(&database, 1);
    }
    for path in &paths {
        synced(&daemon, path).await;
    }
    for path in &paths {
        until("it rests", || status(&daemon, path).phase == Phase::Idle).await;
    }
    site.server.reset_stats();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(site.server.stats().total, 0);
    // And wakes.
    let database = site.database("3.db");
    insert(&database, 1);
    until("it is uploaded", || site.server.stats().count(Operation::PutObject) == 1).await;
    site.check("3.db", "3.db").await;
}
