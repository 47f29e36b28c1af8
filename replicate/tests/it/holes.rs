//! Ways to lose a transaction without noticing, each of which somebody has fallen into.

use std::sync::{Arc, Mutex};

use ltx::Timestamp;
use rusqlite::Connection;

use litestream_replicate::{Capture, Clock};

use crate::common::{World, beside, checkpoint, connect, content, frames, insert, phantom, read, write};

/// All of the log is in the file when we start, so that our hold is one on the file: while the snapshot is being made the log begins anew,
/// and its frames are overwritten.
#[test]
fn hole_a_a_log_that_is_overwritten_while_the_snapshot_is_made() {
    let (mut world, database) = World::with_database(4096);
    insert(&database, 100, 3000);
    checkpoint(&database, "PASSIVE");
    let (before, salts) = (content(&database), world.salts());
    let application = Arc::new(Mutex::new(Some(database)));
    let busy = application.clone();
    let mut time = world.clock();
    let mut calls = 0;
    // The clock is asked when a file is begun, after it was decided what goes into it.
    let clock: Clock = Box::new(move || {
        calls += 1;
        if let (2, Some(database)) = (calls, &*busy.lock().unwrap()) {
            database.execute_batch("UPDATE t SET body = randomblob(length(body))").unwrap();
            insert(database, 50, 3000);
            database.execute_batch("DELETE FROM t WHERE id % 2 = 0").unwrap();
        }
        Timestamp(time().0)
    });
    let (mut capture, staged) = Capture::start(world.settings(), clock, &mut world.replica).unwrap();
    let database = application.lock().unwrap().take().unwrap();
    assert_ne!(world.salts(), salts, "the log has begun anew");
    world.replica.take(staged);
    assert_eq!(world.replica.image, before, "the snapshot is what was there when it began");
    // It cannot be copied now: the hold is on the file.
    let (_, frames, copied) = checkpoint(&database, "PASSIVE");
    assert!(copied < frames);
    world.pass(&mut capture, &database);
    assert_eq!(capture.snapshots(), 1);
}

/// While we are down the log goes on to A frames, begins anew twice, and holds C frames again: fewer than A, but not fewer than the B that
/// we knew. To compare lengths, or to count salts, would find nothing missing.
#[test]
fn hole_b_a_log_that_began_anew_twice_while_we_were_down() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    insert(&database, 10, 3000);
    world.pass(&mut capture, &database);
    world.replica.take(capture.stop().unwrap());
    let b = frames(&world.wal());
    insert(&database, 60, 3000);
    let a = frames(&world.wal());
    for kind in ["RESTART", "RESTART"] {
        assert!(checkpoint(&database, kind).0);
        database.execute("DELETE FROM t WHERE id % 3 = 0", []).unwrap();
    }
    while frames(&world.wal()) < b + 2 {
        insert(&database, 1, 3000);
    }
    let c = frames(&world.wal());
    assert!(a > c && c >= b, "{a} > {c} ≥ {b}");
    begins_anew(&mut world, &database);
}

/// Starts, which takes a snapshot since nothing else is proven, and goes on from there.
fn begins_anew(world: &mut World, database: &Connection) {
    let mut capture = world.start();
    world.replica.check(database);
    assert_eq!(capture.snapshots(), 1);
    insert(database, 1, 1);
    world.pass(&mut capture, database);
}

/// In one process: what was known when we stopped must be forgotten.
#[test]
fn hole_c_stopped_truncated_and_started_again() {
    for with_frames in [false, true] {
        let (mut world, database) = World::with_database(4096);
        let mut capture = world.start();
        insert(&database, 10, 3000);
        world.pass(&mut capture, &database);
        world.replica.take(capture.stop().unwrap());
        database.execute("DELETE FROM t WHERE id % 3 = 0", []).unwrap();
        assert!(checkpoint(&database, "TRUNCATE").0);
        if with_frames {
            insert(&database, 10, 3000);
        }
        begins_anew(&mut world, &database);
    }
    // And emptied by ourselves, nothing having happened in between.
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    world.pass(&mut capture, &database);
    assert!(checkpoint(&database, "PASSIVE").0);
    world.pass(&mut capture, &database);
    assert!(checkpoint(&database, "TRUNCATE").0);
    world.replica.take(capture.stop().unwrap());
    database.execute_batch("CREATE TABLE u (a)").unwrap();
    assert!(checkpoint(&database, "TRUNCATE").0);
    let _capture = world.start();
    world.replica.check(&database);
}

/// The power fails: the end of the log is lost, and other transactions are written at the same offsets under the same salts.
#[test]
fn hole_d_other_frames_at_the_same_offsets_after_a_power_loss() {
    for fewer in [false, true] {
        let (mut world, database) = World::with_database(4096);
        insert(&database, 3, 3000);
        let durable = read(&world.wal());
        let mut capture = world.start();
        insert(&database, 10, 3000);
        world.pass(&mut capture, &database);
        let (salts, known) = (world.salts(), frames(&world.wal()));
        // Everything ends at once.
        drop(capture);
        drop(database);
        write(&world.wal(), &durable);
        std::fs::remove_file(beside(&world.path, "-shm")).unwrap();
        let database = world.connect();
        database.execute_batch("CREATE TABLE other (a)").unwrap();
        while !fewer && frames(&world.wal()) < known + 5 {
            insert(&database, 4, 3000);
        }
        assert_eq!(world.salts(), salts, "the log is still the same one");
        assert_eq!(frames(&world.wal()) < known, fewer);
        begins_anew(&mut world, &database);
    }
}

/// A commit frame stands in the log, its checksum right, and was never a commit: the writer died before its fsync returned, or that failed.
#[test]
fn hole_e_a_commit_frame_that_never_became_a_commit() {
    let (mut world, database) = World::with_database(4096);
    insert(&database, 10, 3000);
    let pages: u32 = database.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    let committed = frames(&world.wal());
    let phantom = |world: &World| {
        let committed = frames(&world.wal());
        phantom(&world.wal(), committed, &[(2, 0xaa), (3, 0xbb)], pages);
        assert_eq!(frames(&world.wal()), committed + 2, "it looks like a transaction");
    };
    // It is there when we start.
    phantom(&world);
    let mut capture = world.start();
    world.replica.check(&database);
    assert_eq!(world.replica.files, 1);
    assert_eq!(capture.pass().unwrap(), []);
    // Its place is written again.
    insert(&database, 1, 100);
    world.pass(&mut capture, &database);
    assert!(frames(&world.wal()) > committed);
    // It comes while we look.
    phantom(&world);
    assert_eq!(capture.pass().unwrap(), []);
    insert(&database, 1, 100);
    world.pass(&mut capture, &database);
    // It is there when we stop, and overwritten when we start again.
    phantom(&world);
    world.replica.take(capture.stop().unwrap());
    insert(&database, 1, 100);
    let capture = world.start();
    world.replica.check(&database);
    assert_eq!(capture.snapshots(), 0);
    drop(capture);
    // Everything ends, and a recovery finds a whole transaction: from now on it is one. It overwrote what is no table's page.
    drop(database);
    std::fs::remove_file(beside(&world.path, "-shm")).unwrap();
    let lost = frames(&world.wal());
    let pages = world.replica.image.len() as u32 / 4096;
    let last = &world.replica.image[world.replica.image.len() - 4096..];
    assert!(last.iter().any(|byte| *byte != 0));
    crate::common::phantom_page(&world.wal(), lost, pages, last, pages);
    let database = connect(&world.path);
    let mut capture = world.start();
    world.replica.check(&database);
    insert(&database, 1, 1);
    world.pass(&mut capture, &database);
    assert_eq!(capture.snapshots(), 0, "the log has only grown");
}
