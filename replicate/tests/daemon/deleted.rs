//! A log, or its index, that somebody deletes beside a database that is in use.

use std::time::Duration;

use litestream_replicate::daemon::Phase;

use crate::obedient::Application;
use crate::said::{listen, said};
use crate::site::{PATIENCE, Site, awake, options, status, synced, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_deleted_beside_a_live_database() {
    is_said_and_gone_on_from("-wal", Phase::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_deleted_beside_a_database_that_rests() {
    is_said_and_gone_on_from("-wal", Phase::Idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_deleted_beside_a_live_database() {
    is_said_and_gone_on_from("-shm", Phase::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_deleted_beside_a_database_that_rests() {
    is_said_and_gone_on_from("-shm", Phase::Idle).await;
}

/// It is said as the table of what breaks capturing has it. Once the application has begun anew, as it was told to, the replica is its database.
async fn is_said_and_gone_on_from(suffix: &str, phase: Phase) {
    listen();
    // A program that ends in order, and one that does not.
    for killed in [false, true] {
        let (site, mut options) = (Site::new(), options());
        if phase == Phase::Live {
            options.rest_after = Duration::from_secs(24 * 60 * 60);
        }
        let (database, daemon, path) = site.replicating_with(options, "a.db", &["a"], |_| {}).await;
        let mut application = Application::open(&path);
        drop(database);
        // Its table is in the file, whatever is lost of what comes now.
        application.run(&format!("PRAGMA busy_timeout={}", PATIENCE.as_millis()));
        // While another one is being made, ours, SQLite does not wait.
        until("the log is emptied", || application.checkpoint("TRUNCATE")).await;
        application.insert(20);
        if phase == Phase::Live {
            awake(&daemon, &path, || application.insert(1)).await;
        } else {
            synced(&daemon, &path).await;
            until("it rests", || status(&daemon, &path).phase == Phase::Idle).await;
        }
        assert_eq!(said(&path), Vec::<String>::new());
        let deleted = site.path(&format!("a.db{suffix}"));
        std::fs::remove_file(&deleted).unwrap();
        until("it is said", || !said(&path).is_empty()).await;
        assert_eq!(
            said(&path)[0],
            format!(
                "{} was deleted while in use; committed data may be lost. Restart the application; new snapshot",
                deleted.display()
            )
        );
        if killed {
            application.kill();
        } else {
            application.close();
        }
        let mut application = Application::open(&path);
        for _ in 0..3 {
            application.insert(2);
            synced(&daemon, &path).await;
            site.check("a.db", "a").await;
        }
        assert_eq!(status(&daemon, &path).error, None);
    }
}
