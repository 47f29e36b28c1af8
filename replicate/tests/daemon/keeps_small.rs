//! Compaction and retention beside replication.

use std::sync::Arc;
use std::time::Duration;

use litestream_pageindex::retention::RetentionPolicy;
use litestream_pageindex::upkeep::Schedule;
use litestream_replicate::daemon::Daemon;
use ltx::Txid;

use crate::site::{BUCKET, PATIENCE, Site, insert, options, status, synced, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_stays_small_and_is_listed_once() {
    let site = Site::new();
    let database = site.database("a.db");
    let mut spec = site.spec("a.db", &["a"]).await;
    spec.schedule = Some(Arc::new(Schedule {
        levels: vec![Duration::from_millis(300), Duration::from_millis(900)],
        snapshots: Duration::from_secs(3),
        retention: RetentionPolicy { l0: Duration::from_millis(100), snapshots: Duration::from_secs(3) },
        deletes: true,
    }));
    let path = spec.path().clone();
    let daemon = Daemon::new(options());
    daemon.register(spec);
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
    use litestream_fixtures::s3::Operation;
    let lists = site.server.stats().count(Operation::ListObjectsV2);
    assert!(lists <= 12, "{lists} lists");
    // Once nothing changes, all but the newest of level 0 goes, and then nothing is asked any more.
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
