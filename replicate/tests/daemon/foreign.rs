//! A replica that holds another one's transaction under a number of ours: nothing of ours may ever be put on top of it but all of the database.

use std::path::PathBuf;

use litestream_fixtures::s3::Down;
use litestream_replicate::daemon::{ControlError, Daemon, Spec};
use ltx::Txid;
use rusqlite::Connection;

use crate::site::{BUCKET, PATIENCE, Site, held, insert, options, status, synced, until};

fn key(place: &str, txid: Txid) -> String {
    format!("{place}/0000/{txid}-{txid}.ltx")
}

/// Ours has many more pages than the other one: what is put on top of a transaction of his does not cover the pages that he wrote.
const ROWS: u32 = 200;

/// Puts another database's transaction of that number into a replica.
async fn put_foreign(site: &Site, place: &str, txid: Txid) {
    let other = site.database("other.db");
    insert(&other, ROWS / 10);
    let spec = site.spec("other.db", &["other"]).await;
    let (daemon, path) = (Daemon::new(options()), spec.path().clone());
    daemon.register(spec);
    while synced(&daemon, &path).await < txid {
        insert(&other, 1);
    }
    daemon.unregister(&path, PATIENCE).await.unwrap();
    let foreign = site.server.object(BUCKET, &key("other", txid)).unwrap();
    site.server.put_object(BUCKET, &key(place, txid), foreign, &[]);
}

/// Captures what was inserted, without a store.
async fn capture(daemon: &Daemon, database: &Connection, path: &std::path::Path) -> Txid {
    insert(database, 1);
    daemon.sync(path, false, PATIENCE).await.unwrap().txid
}

struct Fenced {
    database: Connection,
    spec: Spec,
    daemon: Daemon,
    path: PathBuf,
    /// The last TXID that is ours in all replicas.
    before: Txid,
    /// As long as it is there, the log goes on: a start finds no other reason for a snapshot.
    reader: Connection,
}

/// A database that was replicated until another one's transaction took the number of its last one, in the replica `a`.
async fn fenced(site: &Site, places: &[&str]) -> Fenced {
    let database = site.database("a.db");
    let reader = site.reader("a.db");
    let spec = site.spec("a.db", places).await;
    let path = spec.path().clone();
    let daemon = Daemon::new(options());
    daemon.register(spec.clone());
    insert(&database, ROWS);
    let before = synced(&daemon, &path).await;
    put_foreign(site, "a", before.next()).await;
    insert(&database, 1);
    until("it is told", || status(&daemon, &path).replicas.iter().any(|replica| replica.fenced)).await;
    Fenced { database, spec, daemon, path, before, reader }
}

#[tokio::test(flavor = "multi_thread")]
async fn though_more_of_ours_waits_behind_it() {
    for restarted in [false, true] {
        let site = Site::new();
        let database = site.database("a.db");
        let spec = site.spec("a.db", &["a"]).await;
        let path = spec.path().clone();
        let _reader = site.reader("a.db");
        let mut daemon = Daemon::new(options());
        daemon.register(spec.clone());
        insert(&database, ROWS);
        let before = synced(&daemon, &path).await;
        put_foreign(&site, "x", before.next()).await;
        let foreign = site.server.object(BUCKET, &key("x", before.next())).unwrap();
        site.server.set_down(Some(Down::Refuse)).unwrap();
        for _ in 0..3 {
            capture(&daemon, &database, &path).await;
        }
        site.server.put_object(BUCKET, &key("a", before.next()), foreign, &[]);
        site.server.set_down(None).unwrap();
        until("it is told", || status(&daemon, &path).replicas[0].fenced).await;
        assert!(status(&daemon, &path).lag() > std::time::Duration::ZERO, "it gets nothing");
        let refused = daemon.sync(&path, true, PATIENCE).await.unwrap_err();
        assert!(matches!(refused, ControlError::Failed { .. }), "{refused}");
        if restarted {
            daemon.unregister(&path, PATIENCE).await.unwrap_err();
            daemon = Daemon::new(options());
            daemon.register(spec);
        } else {
            daemon.stop(&path, PATIENCE).await.unwrap_err();
            daemon.start(&path).unwrap();
        }
        synced(&daemon, &path).await;
        site.check("a.db", "a").await;
        insert(&database, 1);
        synced(&daemon, &path).await;
        site.check("a.db", "a").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn though_another_replica_holds_what_is_ours() {
    for places in [["a", "b"], ["b", "a"]] {
        let site = Site::new();
        let Fenced { database, spec, daemon, path, reader: _reader, .. } = fenced(&site, &places).await;
        daemon.unregister(&path, PATIENCE).await.unwrap_err();
        let daemon = Daemon::new(options());
        daemon.register(spec);
        for _ in 0..2 {
            synced(&daemon, &path).await;
            for place in places {
                site.check("a.db", place).await;
            }
            insert(&database, 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn though_it_did_not_answer_at_the_start() {
    let site = Site::new();
    let Fenced { database, spec, daemon, path, reader: _reader, .. } = fenced(&site, &["a"]).await;
    daemon.unregister(&path, PATIENCE).await.unwrap_err();
    site.server.set_down(Some(Down::Refuse)).unwrap();
    let daemon = Daemon::new(options());
    daemon.register(spec);
    held(&daemon, &path).await;
    for _ in 0..2 {
        capture(&daemon, &database, &path).await;
    }
    site.server.set_down(None).unwrap();
    for _ in 0..2 {
        synced(&daemon, &path).await;
        site.check("a.db", "a").await;
        insert(&database, 1);
    }
}

/// Nothing was captured since, so nothing shows that it lacks something but that it holds another one's transaction.
#[tokio::test(flavor = "multi_thread")]
async fn though_it_did_not_answer_at_the_start_and_nothing_came_since() {
    let site = Site::new();
    let Fenced { spec, daemon, path, reader: _reader, .. } = fenced(&site, &["a"]).await;
    daemon.unregister(&path, PATIENCE).await.unwrap_err();
    site.server.set_down(Some(Down::Refuse)).unwrap();
    let daemon = Daemon::new(options());
    daemon.register(spec);
    held(&daemon, &path).await;
    site.server.set_down(None).unwrap();
    daemon.unregister(&path, PATIENCE).await.unwrap();
    site.check("a.db", "a").await;
}

/// What it holds was seen, and then something else went wrong: it is no better known for that.
#[expect(clippy::disallowed_methods, reason = "what is opened is no database")]
#[tokio::test(flavor = "multi_thread")]
async fn though_the_database_could_not_be_captured_at_first() {
    let site = Site::new();
    let Fenced { database, spec, daemon, path, reader: _reader, .. } = fenced(&site, &["a"]).await;
    daemon.unregister(&path, PATIENCE).await.unwrap_err();
    // Nothing can be put into a folder that is none.
    let (waiting, away) = (site.path(".a.db-litestream/ltx"), site.path("away"));
    std::fs::rename(&waiting, &away).unwrap();
    std::fs::write(&waiting, "").unwrap();
    let daemon = Daemon::new(options());
    daemon.register(spec);
    until("it says what is wrong", || status(&daemon, &path).error.is_some()).await;
    std::fs::remove_file(&waiting).unwrap();
    std::fs::rename(&away, &waiting).unwrap();
    insert(&database, 1);
    for _ in 0..2 {
        synced(&daemon, &path).await;
        site.check("a.db", "a").await;
        insert(&database, 1);
    }
}

/// One that is given up asks for nothing, whatever becomes of the database.
#[tokio::test(flavor = "multi_thread")]
async fn and_the_database_is_taken_up_anew() {
    let site = Site::new();
    let Fenced { database, daemon, path, before, reader, .. } = fenced(&site, &["a", "b"]).await;
    drop(reader);
    drop(database);
    let database = site.replace("a.db", 7);
    insert(&database, 1);
    until("it is taken up", || status(&daemon, &path).counters.snapshots > 1).await;
    let holds = |found: &litestream_replicate::daemon::Status| found.replicas[1].txid == Some(found.txid);
    for _ in 0..3 {
        insert(&database, 1);
        let txid = daemon.sync(&path, false, PATIENCE).await.unwrap().txid;
        until("the other one holds it", || status(&daemon, &path).replicas[1].txid >= Some(txid)).await;
    }
    until("all is there", || holds(&status(&daemon, &path))).await;
    site.check("a.db", "b").await;
    let found = status(&daemon, &path);
    assert!(found.replicas[0].fenced && found.counters.snapshots == 2 && found.txid <= Txid(before.0 + 8), "{found:?}");
}

/// Nobody need write for a replica that was emptied to be filled again. TXIDs do not go back.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_emptied_gets_all_of_the_database_at_the_next_start() {
    for offline in [false, true] {
        let site = Site::new();
        let database = site.database("a.db");
        let spec = site.spec("a.db", &["a"]).await;
        let path = spec.path().clone();
        let daemon = Daemon::new(options());
        daemon.register(spec.clone());
        insert(&database, 3);
        let before = synced(&daemon, &path).await;
        daemon.unregister(&path, PATIENCE).await.unwrap();
        for key in site.server.keys(BUCKET) {
            assert!(site.server.remove_object(BUCKET, &key));
        }
        site.server.set_down(offline.then_some(Down::Refuse)).unwrap();
        let daemon = Daemon::new(options());
        daemon.register(spec);
        held(&daemon, &path).await;
        site.server.set_down(None).unwrap();
        until("it is filled", || status(&daemon, &path).replicas[0].txid > Some(before)).await;
        site.check("a.db", "a").await;
    }
}

/// What is there cannot be restored any more; what is put there next can.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lacks_something_and_is_not_known_here_gets_a_snapshot_that_needs_nothing() {
    let site = Site::new();
    let database = site.database("a.db");
    let spec = site.spec("a.db", &["a"]).await;
    let path = spec.path().clone();
    let daemon = Daemon::new(options());
    daemon.register(spec.clone());
    for _ in 0..3 {
        insert(&database, 3);
        synced(&daemon, &path).await;
    }
    daemon.unregister(&path, PATIENCE).await.unwrap();
    let mut keys: Vec<String> = site.server.keys(BUCKET).into_iter().filter(|key| key.ends_with(".ltx")).collect();
    keys.sort();
    keys.pop();
    assert!(keys.iter().all(|key| site.server.remove_object(BUCKET, key)) && !keys.is_empty());
    std::fs::remove_dir_all(site.path(".a.db-litestream")).unwrap();
    // Otherwise the log would prove that what is there is ours.
    database.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let daemon = Daemon::new(options());
    daemon.register(spec);
    for _ in 0..2 {
        insert(&database, 1);
        synced(&daemon, &path).await;
        site.check("a.db", "a").await;
    }
}
