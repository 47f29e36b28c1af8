//! The log is kept short, and nobody is kept waiting.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::common::{World, checkpoint, frames, insert, read};

/// How much of the log is in the file, by the way of SQLite's own count.
fn backfilled(world: &World) -> (i64, i64) {
    let (_, frames, copied) = checkpoint(&world.connect(), "NOOP");
    (frames, copied)
}

#[test]
fn a_log_of_a_thousand_pages_is_copied_and_begins_anew() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    let mut logs = std::collections::HashSet::new();
    for _ in 0..12 {
        insert(&database, 300, 3000);
        logs.insert(world.salts());
        world.replica.take(capture.checkpoint_if_due().unwrap());
        world.pass(&mut capture, &database);
    }
    assert!(logs.len() > 2, "{} logs", logs.len());
    assert!(frames(&world.wal()) < 3_000);
    assert_eq!(capture.snapshots(), 1);
}

#[test]
fn a_short_log_is_copied_after_a_minute() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    insert(&database, 3, 100);
    world.pass(&mut capture, &database);
    let (frames, _) = backfilled(&world);
    assert_eq!(capture.checkpoint_if_due().unwrap(), []);
    assert_eq!(backfilled(&world), (frames, 0));
    world.time.fetch_add(61_000, Ordering::Relaxed);
    assert_eq!(capture.checkpoint_if_due().unwrap(), []);
    assert_eq!(backfilled(&world), (frames, frames));
    // The next writer begins the log anew, without being asked to.
    let before = world.salts();
    insert(&database, 1, 1);
    assert_ne!(world.salts(), before);
    world.pass(&mut capture, &database);
}

/// A reader that stays keeps the log from being copied. That makes neither a file nor a checkpoint a tick.
#[test]
fn a_reader_that_stays_costs_nothing() {
    let (mut world, database) = World::with_database(4096);
    let mut settings = world.settings();
    settings.checkpoint_pages = 50;
    let mut capture = world.start_with(settings);
    let reader = world.connect();
    reader.execute_batch("BEGIN").unwrap();
    reader.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
    insert(&database, 100, 3000);
    world.pass(&mut capture, &database);
    let (frames, _) = backfilled(&world);
    for _ in 0..20 {
        assert_eq!(capture.checkpoint_if_due().unwrap(), []);
        assert_eq!(capture.pass().unwrap(), []);
    }
    let (_, copied) = backfilled(&world);
    assert!(copied < frames, "the reader keeps it: {copied} of {frames}");
    reader.execute_batch("COMMIT").unwrap();
    // Not tried again before there is more, or a minute has passed.
    assert_eq!(capture.checkpoint_if_due().unwrap(), []);
    assert!(backfilled(&world).1 < frames);
    insert(&database, 100, 3000);
    world.replica.take(capture.checkpoint_if_due().unwrap());
    let (frames, copied) = backfilled(&world);
    assert_eq!(frames, copied);
    world.pass(&mut capture, &database);
}

/// A writer that never pauses: its log is emptied all the same, and every transaction is captured.
#[test]
fn a_log_that_grows_too_long_is_emptied_under_a_writer() {
    let (mut world, database) = World::with_database(4096);
    let mut settings = world.settings();
    (settings.checkpoint_pages, settings.truncate_pages) = (200, 400);
    settings.patience = Duration::from_secs(5);
    insert(&database, 100, 3000);
    let mut capture = world.start_with(settings);
    let (stop, emptied) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let path = &world.path;
        let writer = scope.spawn(|| {
            let database = crate::common::connect(path);
            while !stop.load(Ordering::Relaxed) {
                let sql = "UPDATE t SET body = randomblob(3000) WHERE id % 20 = abs(random()) % 20";
                database.execute(sql, []).unwrap();
            }
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut last = world.salts();
        while emptied.load(Ordering::Relaxed) < 5 && Instant::now() < deadline && !writer.is_finished() {
            world.replica.take(capture.pass().unwrap());
            world.replica.take(capture.checkpoint_if_due().unwrap());
            let now = world.salts();
            if now != last {
                emptied.fetch_add(1, Ordering::Relaxed);
                last = now;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(emptied.load(Ordering::Relaxed) >= 5);
    world.pass(&mut capture, &database);
    assert_eq!(capture.snapshots(), 1);
}

/// Nobody else has the database open: the log is emptied, so that it does not shadow a file that is put there by hand.
#[test]
fn when_the_application_has_gone_the_log_is_emptied() {
    let (mut world, database) = World::with_database(4096);
    let mut settings = world.settings();
    settings.truncate_when_alone = true;
    let mut capture = world.start_with(settings);
    insert(&database, 3, 100);
    world.pass(&mut capture, &database);
    drop(database);
    assert!(!read(&world.wal()).is_empty());
    world.replica.take(capture.checkpoint_if_due().unwrap());
    assert!(read(&world.wal()).is_empty());
    let database = world.connect();
    world.pass(&mut capture, &database);
    insert(&database, 3, 100);
    world.pass(&mut capture, &database);
    assert_eq!(capture.snapshots(), 1);
}

/// An application's checkpoint waits for readers with the write lock in its hand. We are never what it waits for, for long.
#[test]
fn a_checkpoint_that_waits_is_let_through() {
    for kind in ["FULL", "RESTART", "TRUNCATE"] {
        let (mut world, database) = World::with_database(4096);
        let mut capture = world.start();
        std::thread::scope(|scope| {
            let path = &world.path;
            let application = scope.spawn(move || {
                let database = crate::common::connect(path);
                let sql = format!("PRAGMA wal_checkpoint({kind})");
                for round in 0..25 {
                    insert(&database, 1 + round % 3, 2000);
                    let busy: i64 = database.query_row(&sql, [], |row| row.get(0)).unwrap();
                    assert_eq!(busy, 0, "{kind} waited in vain");
                }
            });
            while !application.is_finished() {
                world.replica.take(capture.pass().unwrap());
                std::thread::yield_now();
            }
        });
        world.pass(&mut capture, &database);
        assert_eq!(capture.snapshots(), 1);
    }
}
