//! Compaction and retention beside replication.

use std::sync::Arc;
use std::time::Duration;

use litestream_fixtures::s3::{FaultKind, Faults, Operation};
use litestream_pageindex::retention::RetentionPolicy;
use litestream_pageindex::upkeep::Schedule;
use litestream_replicate::daemon::{Phase, Spec};
use ltx::{Timestamp, Txid};

use crate::site::{BUCKET, PATIENCE, Site, insert, options, status, synced, until};
use crate::time::Time;

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_stays_small_and_is_listed_once() {
    let site = Site::new();
    let schedule = Schedule {
        levels: vec![Duration::from_millis(300), Duration::from_millis(900)],
        snapshots: Duration::from_secs(3),
        retention: RetentionPolicy { l0: Duration::from_millis(100), snapshots: Duration::from_secs(3) },
        deletes: true,
    };
    let change = |spec: &mut Spec| spec.schedule = Some(Arc::new(schedule));
    let (database, daemon, path) = site.replicating_with(options(), "a.db", &["a"], change).await;
    let keys = |level: &str| site.server.keys(BUCKET).into_iter().filter(|key| key.contains(level)).count();
    let mut made = 0;
    until("there are snapshots, and old ones have gone", || {
        insert(&database, 1);
        made += 1;
        status(&daemon, &path).counters.l0_deleted > 10 && keys("/0009/") > 0
    })
    .await;
    synced(&daemon, &path).await;
    assert!(made > 10 && keys("/0000/") < 400, "{made} {}", keys("/0000/"));
    site.check("a.db", "a").await;
    let lists = site.server.stats().count(Operation::ListObjectsV2);
    assert!(lists <= 12, "{lists} lists");
    // Once nothing changes, all but the newest of level 0 goes.
    until("level 0 is empty but for its newest", || keys("/0000/") == 1).await;
    site.check("a.db", "a").await;
    daemon.enforce_retention(&path).await.unwrap();
    site.check("a.db", "a").await;
    let synced = daemon.snapshot(&path, "the test wants one", PATIENCE).await.unwrap();
    assert!(synced.txid > Txid(1));
    let snapshot = format!("a/0009/0000000000000001-{}.ltx", synced.txid);
    assert!(site.server.object(BUCKET, &snapshot).is_some());
    site.check("a.db", "a").await;
}

/// The snapshot that is asked for is put right behind the transaction it is of. Should compaction make it in between, it is none of another writer's.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_compaction_made_meanwhile_is_as_good() {
    let site = Site::new();
    let change = |spec: &mut Spec| spec.schedule = Some(Arc::default());
    let (database, daemon, path) = site.replicating_with(options(), "a.db", &["a"], change).await;
    insert(&database, 5);
    synced(&daemon, &path).await;
    site.server.fault_next(u64::MAX, FaultKind::Status(500), |request| {
        request.operation == Operation::PutObject && request.key.contains("/0009/")
    });
    let asked = tokio::spawn({
        let (daemon, path) = (daemon.clone(), path.clone());
        async move { daemon.snapshot(&path, "the test wants one", PATIENCE).await }
    });
    until("it fails", || status(&daemon, &path).replicas[0].error.is_some()).await;
    site.server.set_faults(Faults::default());
    daemon.enforce_retention(&path).await.unwrap();
    let reached = asked.await.unwrap().unwrap();
    let snapshot = format!("a/0009/0000000000000001-{}.ltx", reached.txid);
    assert!(site.server.object(BUCKET, &snapshot).is_some());
    insert(&database, 5);
    synced(&daemon, &path).await;
    assert_eq!(status(&daemon, &path).replicas[0].error, None);
    site.check("a.db", "a").await;
}

/// What was written last has to be merged, and merged again, and made a snapshot of, and what need not be kept has to go. After that there is nothing to
/// do, however long it takes until something changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_rests_costs_no_request_once_all_is_merged_that_will_be() {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    let (site, time) = (Site::new(), Time::new());
    let change = |spec: &mut Spec| spec.schedule = Some(Arc::default());
    let (database, daemon, path) = site.replicating_with(time.options(), "a.db", &["a"], change).await;
    let stats = || site.server.stats();
    for round in 0..3 {
        for _ in 0..5 {
            time.go_on(Duration::from_secs(20));
            insert(&database, 2);
            synced(&daemon, &path).await;
        }
        let txid = status(&daemon, &path).txid;
        until("it rests", || status(&daemon, &path).phase == Phase::Idle).await;
        // Hours pass whenever it is looked whether something is due.
        time.go_on_when_asked(HOUR);
        let keys = |level: &str| {
            let keys = site.server.keys(BUCKET).into_iter();
            keys.filter(|key| key.starts_with(&format!("a/{level}/"))).collect::<Vec<_>>()
        };
        let reaches = |level| keys(level).last().is_some_and(|key| key.ends_with(&format!("-{txid}.ltx")));
        until("all is merged", || reaches("0001") && reaches("0009") && keys("0000").len() == 1).await;
        let mut asked = stats().total + 1;
        while asked != stats().total {
            asked = stats().total;
            time.looked(300).await;
        }
        site.server.reset_stats();
        let later = Timestamp(time.now().0 + 50 * 24 * 3_600_000);
        until("fifty days have passed", || time.now() >= later).await;
        assert_eq!(stats().total, 0, "in round {round}");
        assert_eq!(status(&daemon, &path).phase, Phase::Idle);
        time.go_on_when_asked(Duration::ZERO);
        site.check("a.db", "a").await;
    }
    // It was compacted each time: the requests of all rounds were some.
    let counters = status(&daemon, &path).counters;
    assert!(counters.compacted >= 6 && counters.l0_deleted >= 12, "{counters:?}");
}
