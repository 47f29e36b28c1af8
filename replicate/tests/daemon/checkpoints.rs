//! The application's own checkpoints, those which wait until nobody reads what they want to overwrite: we are somebody who reads.

use std::time::Duration;

use litestream_replicate::daemon::{Phase, Spec};

use crate::obedient::Application;
use crate::site::{PATIENCE, Site, awake, insert, options, status, synced, until};

/// Nothing is due meanwhile.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_waits_for_us_beside_a_live_database_gets_through() {
    gets_through(Phase::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_waits_for_us_beside_a_database_that_rests_gets_through() {
    gets_through(Phase::Idle).await;
}

/// It waits with the write lock in its hand, for as long as its connection is patient. Nothing but that makes us do something: beside a live database
/// no pass is due for a day, and for one that rests there is nobody who would make one.
async fn gets_through(phase: Phase) {
    let (site, mut options) = (Site::new(), options());
    let live = phase == Phase::Live;
    if live {
        options.rest_after = LONG;
    }
    let change = |spec: &mut Spec| {
        if live {
            spec.replicas[0].sync_interval = LONG;
        }
    };
    let (database, daemon, path) = site.replicating_with(options, "a.db", &["a"], change).await;
    let mut application = Application::open(&path);
    application.run(&format!("PRAGMA busy_timeout={}", PATIENCE.as_millis()));
    for kind in ["RESTART", "TRUNCATE", "FULL", "TRUNCATE", "RESTART"] {
        if live {
            awake(&daemon, &path, || application.insert(3)).await;
        } else {
            application.insert(3);
            synced(&daemon, &path).await;
            until("it rests", || status(&daemon, &path).phase == Phase::Idle).await;
        }
        // What our hold is behind of.
        application.insert(2);
        // Where it collides with one of ours, SQLite does not wait, so it is tried again; where it waited in vain, there is no time left for that.
        until(&format!("{kind} beside {}", phase.as_str()), || application.checkpoint(kind)).await;
        insert(&database, 1);
    }
    synced(&daemon, &path).await;
    site.check("a.db", "a").await;
    assert_eq!(status(&daemon, &path).counters.snapshots, 1);
}
