//! A snapshot of a large database keeps neither the writer waiting nor the log from beginning anew, and is the database as it was at its TXID.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use litestream_replicate::{Capture, Newest};
use ltx::Txid;
use rusqlite::Connection;

use crate::common::{Raised, Replica, World, checkpoint, connect, insert, read};
use crate::processes::wait_for;

/// A world in which every database is large.
fn large(page_size: u32) -> (World, Connection) {
    let (mut world, database) = World::with(page_size, "INCREMENTAL");
    world.large = 1;
    database.pragma_update(None, "secure_delete", "OFF").unwrap();
    insert(&database, 800, 3_000);
    (world, database)
}

/// One transaction, and often a checkpoint; tells whether the log was begun anew by it.
fn change(database: &Connection, random: &mut fastrand::Rng) -> bool {
    let rows: u32 = database.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    let from = random.u32(0..rows + 1);
    let sql = match random.u32(0..40) {
        _ if rows > 1_200 => "DELETE FROM t WHERE id % 3 = 1".to_owned(),
        0 => "VACUUM".to_owned(),
        1 => format!("DELETE FROM t WHERE id > {from}"),
        2 => format!("PRAGMA incremental_vacuum({})", random.u32(1..300)),
        3..6 => {
            // Grown and freed at once: pages without a frame.
            let some = "INSERT INTO t (body) SELECT zeroblob(3000) FROM t LIMIT 200";
            format!("BEGIN; {some}; DELETE FROM t WHERE length(body) = 3000 AND body = zeroblob(3000); COMMIT")
        }
        6..20 => format!("UPDATE t SET body = randomblob(2900) WHERE id BETWEEN {from} AND {from} + 15"),
        _ => "INSERT INTO t (body) SELECT randomblob(3000) FROM t LIMIT 25".to_owned(),
    };
    database.execute_batch(&sql).unwrap();
    // It waits for us, if it must.
    let kind = ["PASSIVE", "RESTART", "TRUNCATE", "NOOP"][random.usize(0..4)];
    let sql = format!("PRAGMA wal_checkpoint({kind})");
    let done: bool = database.query_row(&sql, [], |row| Ok(row.get::<_, i64>(0)? == 0)).unwrap();
    done && matches!(kind, "RESTART" | "TRUNCATE")
}

/// A writer that never pauses, and what is done beside it.
fn beside_a_writer(world: &mut World, seed: u64, act: impl FnOnce(&mut World, &AtomicU32) -> Capture) -> Capture {
    let (stop, begun, path) = (AtomicBool::new(false), AtomicU32::new(0), world.path.clone());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (database, mut random) = (connect(&path), fastrand::Rng::with_seed(seed));
            database.pragma_update(None, "secure_delete", "OFF").unwrap();
            while !stop.load(Ordering::Relaxed) {
                begun.fetch_add(u32::from(change(&database, &mut random)), Ordering::Relaxed);
            }
        });
        let stopped = Raised(&stop);
        let mut capture = act(world, &begun);
        drop(stopped);
        // It may be waiting for us.
        wait_for("the writer to end", || {
            world.replica.take(capture.pass().unwrap());
            writer.is_finished()
        });
        capture
    })
}

/// The first one, where nothing was captured before.
#[test]
fn the_first_snapshot_beside_a_writer_that_vacuums_and_truncates() {
    let mut during = 0;
    for seed in 0..50 {
        let (mut world, database) = large([4096, 1024][seed as usize % 2]);
        let mut capture = beside_a_writer(&mut world, seed, |world, begun| {
            wait_for("the writer", || begun.load(Ordering::Relaxed) > 0);
            let before = begun.load(Ordering::Relaxed);
            let capture = world.start();
            during += begun.load(Ordering::Relaxed) - before;
            capture
        });
        assert_eq!(capture.snapshots(), 1);
        world.pass(&mut capture, &database);
        insert(&database, 1, 10);
        world.pass(&mut capture, &database);
        drop(capture);
        assert_eq!(world.start().snapshots(), 0, "it is gone on with");
        // Until the log has begun anew meanwhile, too.
        if seed > 3 && during > 2 {
            return;
        }
    }
    panic!("the log began anew {during} times meanwhile");
}

/// Beside one that has all that was captured, a snapshot is the same, byte for byte.
#[test]
fn a_snapshot_is_what_all_files_before_it_are() {
    for seed in 0..2 {
        let (mut world, database) = large([1024, 4096][seed as usize]);
        let mut capture = world.start();
        let mut capture = beside_a_writer(&mut world, seed, |world, begun| {
            for _ in 0..8 {
                let before = begun.load(Ordering::Relaxed);
                wait_for("the writer", || {
                    world.replica.take(capture.pass().unwrap());
                    begun.load(Ordering::Relaxed) > before
                });
                let mut same = 0;
                for staged in capture.snapshot_now("it was asked for").unwrap() {
                    // After a VACUUM what is captured is complete, too, but holds something new.
                    if staged.complete {
                        let newest = Newest { txid: Txid(staged.txid.0 - 1), checksum: None, time: None };
                        let mut fresh = Replica::behind(newest);
                        fresh.take(vec![staged.clone()]);
                        same += u32::from(fresh.image == world.replica.image);
                    }
                    world.replica.take(vec![staged]);
                }
                assert_eq!(same, 1);
                let state = String::from_utf8(read(&world.own("state"))).unwrap();
                assert!(state.contains(&format!("\"{}\"", capture.txid())), "what came behind it is known, too");
            }
            capture
        });
        world.pass(&mut capture, &database);
        assert_eq!(capture.snapshots(), 1, "none was for want of a proof");
    }
}

/// It fails in the middle, where it is copied and where it is written: it is made again, and nothing is lost.
#[test]
fn a_snapshot_that_fails_is_made_again() {
    let (mut world, database) = large(4096);
    let mut capture = world.start();
    for round in 0..2 {
        for name in ["copy.tmp", "ltx/0/next.tmp", "state.tmp"] {
            insert(&database, 5, 500);
            world.pass(&mut capture, &database);
            let state = read(&world.own("state"));
            let next = format!("ltx/0/{0}-{0}.tmp", capture.txid().next());
            let path = world.own(&name.replace("ltx/0/next.tmp", &next));
            // A folder is in its place.
            std::fs::create_dir(&path).unwrap();
            assert!(capture.snapshot_now("it was asked for").is_err(), "{name}");
            for _ in 0..2 {
                insert(&database, 5, 500);
                world.replica.take(capture.pass().unwrap_or_default());
                checkpoint(&database, "RESTART");
            }
            if path.exists() {
                std::fs::remove_dir(&path).unwrap();
            }
            if name == "ltx/0/next.tmp" {
                assert_eq!(read(&world.own("state")), state, "{name}: nothing counts as captured");
            }
            if round == 1 {
                drop(capture);
                insert(&database, 5, 500);
                capture = world.start();
            }
            world.pass(&mut capture, &database);
        }
    }
}

/// The rooms for a copy and for a snapshot are two.
#[test]
fn without_room_for_a_copy_there_is_a_snapshot_all_the_same() {
    let (mut world, database) = large(4096);
    let mut capture = world.start();
    for _ in 0..2 {
        insert(&database, 5, 500);
        std::os::unix::fs::symlink("/dev/full", world.own("copy.tmp")).unwrap();
        let staged = capture.snapshot_now("it was asked for").unwrap();
        assert!(staged.last().unwrap().complete);
        world.replica.take(staged);
        world.replica.check(&database);
    }
}
