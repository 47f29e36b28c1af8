//! After every pass, all files in order are the database.

use litestream_replicate::wal::Log;
use litestream_replicate::{Capture, Error};
use ltx::{Decoder, PageSize};
use rusqlite::Connection;

use crate::common::{World, beside, checkpoint, connect, content, frames, insert, phantom_page, read, write};

/// One change of an application. What is vacuumed, grown and shrunk matters more than what is written.
fn change(database: &Connection, random: &mut fastrand::Rng, page_size: u32) {
    let scale = (page_size / 4).clamp(200, 3000);
    match random.u32(0..14) {
        0..=4 => insert(database, random.u32(1..30), random.u32(1..scale)),
        5 => insert(database, 1, random.u32(1..20 * scale)),
        6 | 7 => {
            let sql = "UPDATE t SET body = randomblob(length(body) + 7) WHERE id % 5 = ?1";
            database.execute(sql, [random.u32(0..5)]).unwrap();
        }
        8 | 9 => {
            database.execute("DELETE FROM t WHERE id % 3 = ?1", [random.u32(0..3)]).unwrap();
        }
        10 => {
            database.execute("DELETE FROM t", []).unwrap();
        }
        11 => database.execute_batch("VACUUM").unwrap(),
        12 => database.execute_batch(&format!("PRAGMA incremental_vacuum({})", random.u32(1..20))).unwrap(),
        _ => database.execute_batch("CREATE TABLE u AS SELECT * FROM t; DROP TABLE u").unwrap(),
    }
}

#[test]
fn whatever_is_written_in_every_page_size() {
    for (number, page_size) in (0..).zip(PageSize::ALL) {
        for auto_vacuum in ["NONE", "FULL", "INCREMENTAL"] {
            let mut random = fastrand::Rng::with_seed(number);
            let (mut world, database) = World::with(page_size.get(), auto_vacuum);
            database.pragma_update(None, "secure_delete", "OFF").unwrap();
            insert(&database, 20, 2000);
            let mut capture = world.start();
            world.replica.check(&database);
            for _ in 0..25 {
                for _ in 0..random.u32(1..4) {
                    change(&database, &mut random, page_size.get());
                    if random.u8(0..4) == 0 {
                        world.replica.take(capture.pass().unwrap());
                        checkpoint(&database, ["PASSIVE", "PASSIVE", "RESTART", "TRUNCATE"][random.usize(0..4)]);
                    }
                }
                world.pass(&mut capture, &database);
            }
            assert_eq!(capture.snapshots(), 1, "{page_size} {auto_vacuum}: one snapshot, at the start");
            world.replica.take(capture.stop().unwrap());
            world.replica.check(&database);
        }
    }
}

/// The application's own checkpoints, of every kind, begin the log anew again and again, and wait for nobody.
#[test]
fn logs_that_begin_anew() {
    for kind in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        let (mut world, database) = World::with_database(4096);
        let mut capture = world.start();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..20 {
            insert(&database, 10, 1000);
            seen.insert(world.salts());
            world.pass(&mut capture, &database);
            let (_, frames, copied) = checkpoint(&database, kind);
            assert_eq!(frames, copied, "{kind}: a hold of ours keeps nothing out of the file");
            // Now all is in the file: the hold becomes one that lets the log begin anew.
            world.pass(&mut capture, &database);
            let (done, ..) = checkpoint(&database, kind);
            assert!(done, "{kind}");
            seen.insert(world.salts());
        }
        assert!(seen.len() >= 10, "{kind}: {} logs", seen.len());
        assert_eq!(capture.snapshots(), 1, "{kind}");
    }
}

/// Commits, by hand and with nobody there, what no more than resizes the database: page 1 with another size in it. A recovery finds it.
fn resize(world: &World, database: Connection, pages: u32) -> Connection {
    let mut first = content(&database)[..4096].to_vec();
    drop(database);
    first[28..32].copy_from_slice(&pages.to_be_bytes());
    phantom_page(&world.wal(), frames(&world.wal()), 1, &first, pages);
    std::fs::remove_file(beside(&world.path, "-shm")).unwrap();
    let database = world.connect();
    assert_eq!(content(&database).len() / 4096, pages as usize);
    database
}

/// A database whose log holds no page but the first ones, its size, and a capture that has been stopped.
fn resizable() -> (World, Connection, u32) {
    let (mut world, database) = World::with_database(4096);
    insert(&database, 40, 4000);
    checkpoint(&database, "TRUNCATE");
    database.execute_batch("PRAGMA user_version=5").unwrap();
    let pages = content(&database).len() / 4096;
    let capture = world.start();
    world.replica.take(capture.stop().unwrap());
    (world, database, pages as u32)
}

/// Starts again, which must go on where the last one stopped.
fn go_on(world: &mut World, database: &Connection) {
    let capture = world.start();
    world.replica.compare(database);
    assert_eq!(capture.snapshots(), 0);
    world.replica.take(capture.stop().unwrap());
}

/// What grew and was never written is captured all the same: as zeros, where there is nothing.
#[test]
fn growth_without_a_frame_is_a_hole() {
    let (mut world, database, pages) = resizable();
    let database = resize(&world, database, pages + 3);
    go_on(&mut world, &database);
    // Cut off and grown again, seen separately: what the file holds there.
    let database = resize(&world, database, pages - 2);
    go_on(&mut world, &database);
    let database = resize(&world, database, pages);
    go_on(&mut world, &database);
}

/// What grew again has a frame in the log from before it was cut off, which was captured then.
#[test]
fn growth_over_a_frame_that_was_captured_before() {
    let (mut world, database, pages) = resizable();
    insert(&database, 10, 3000);
    let grown = content(&database).len() as u32 / 4096;
    assert!(grown > pages + 2);
    go_on(&mut world, &database);
    let database = resize(&world, database, pages + 1);
    go_on(&mut world, &database);
    let database = resize(&world, database, grown);
    go_on(&mut world, &database);
}

/// Between two passes it is cut off, a checkpoint cuts the file, and it grows again over the hole.
#[test]
fn growth_over_a_hole_that_a_checkpoint_made() {
    let (mut world, database, pages) = resizable();
    let last = content(&database)[(pages as usize - 1) * 4096..].to_vec();
    assert!(last.iter().any(|byte| *byte != 0));
    let database = resize(&world, database, pages - 3);
    checkpoint(&database, "PASSIVE");
    let database = resize(&world, database, pages);
    assert!(content(&database)[(pages as usize - 1) * 4096..].iter().all(|byte| *byte == 0), "it is a hole now");
    go_on(&mut world, &database);
}

/// Another file is put in the database's place while nobody is there, beneath a log that goes on.
#[test]
fn a_file_that_was_replaced_beneath_its_log() {
    let (mut world, database, pages) = resizable();
    drop(database);
    let mut other = read(&world.path);
    let last = other.len() - 1;
    other[last] ^= 1;
    let aside = beside(&world.path, "-aside");
    write(&aside, &other);
    std::fs::rename(&aside, &world.path).unwrap();
    std::fs::remove_file(beside(&world.path, "-shm")).unwrap();
    let database = world.connect();
    assert_eq!(content(&database).len() / 4096, pages as usize);
    let capture = world.start();
    world.replica.compare(&database);
    assert_eq!(capture.snapshots(), 1);
    drop(capture);
    go_on(&mut world, &database);
}

/// Grown and freed again in one transaction, with nothing wiped.
#[test]
fn growth_that_is_freed_at_once() {
    let (mut world, database) = World::with_database(1024);
    database.pragma_update(None, "secure_delete", "OFF").unwrap();
    let mut capture = world.start();
    for _ in 0..5 {
        database.execute_batch("BEGIN").unwrap();
        insert(&database, 100, 3000);
        database.execute_batch("SAVEPOINT s").unwrap();
        insert(&database, 100, 3000);
        database.execute_batch("ROLLBACK TO s; DELETE FROM t; COMMIT").unwrap();
        world.pass(&mut capture, &database);
        database.execute_batch("VACUUM").unwrap();
        world.pass(&mut capture, &database);
    }
    assert_eq!(capture.snapshots(), 1);
}

/// Where sectors may be torn, SQLite repeats the frame that commits. That is no other transaction.
#[test]
fn padding_is_not_counted() {
    let (mut world, database) = World::with_database(512);
    drop(database);
    let database = Connection::open(format!("file:{}?psow=0", world.path.display())).unwrap();
    database.execute_batch("PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=FULL").unwrap();
    let mut capture = world.start();
    for round in 0..20 {
        for _ in 0..1 + round % 4 {
            insert(&database, 1, 700 * (1 + round % 3));
        }
        world.pass(&mut capture, &database);
    }
    let bytes = read(&world.wal());
    let log = Log::open(bytes.as_slice()).unwrap();
    let (mut last, mut twice) = (Vec::new(), 0);
    log.walk(log.start(), u32::MAX, |frame| {
        twice += u32::from(frame.commit > 0 && last == frame.page);
        last = frame.page.to_vec();
    })
    .unwrap();
    assert!(twice > 10, "{twice} frames are repeated");
    assert_eq!(capture.snapshots(), 1);
}

/// Between two passes a database shrinks, a checkpoint cuts its file, and it grows again over the hole.
#[test]
fn shrinking_and_growing_again_in_one_pass() {
    let (mut world, database) = World::with_database(1024);
    database.pragma_update(None, "secure_delete", "OFF").unwrap();
    insert(&database, 100, 3000);
    let mut capture = world.start();
    insert(&database, 10, 3000);
    world.pass(&mut capture, &database);
    checkpoint(&database, "PASSIVE");
    world.pass(&mut capture, &database);
    database.execute_batch("DELETE FROM t; VACUUM").unwrap();
    database.execute_batch("BEGIN").unwrap();
    insert(&database, 100, 3000);
    database.execute_batch("DELETE FROM t; COMMIT").unwrap();
    world.pass(&mut capture, &database);
    checkpoint(&database, "TRUNCATE");
    world.pass(&mut capture, &database);
    insert(&database, 300, 3000);
    world.pass(&mut capture, &database);
    assert_eq!(capture.snapshots(), 1);
}

/// The page at 1 GiB is in no file, and what lies beyond it is in its place.
#[test]
fn the_lock_page() {
    let page_size = 65536_u32;
    let lock_page = PageSize::MAX.lock_page().get();
    let (mut world, database) = World::with_database(page_size);
    checkpoint(&database, "TRUNCATE");
    drop(database);
    // A database that ends right before 1 GiB. Nobody has it open: its header is changed by hand, and the file grows by a hole.
    let _ = std::fs::remove_file(beside(&world.path, "-shm"));
    grow(&world.path, u64::from(page_size), lock_page - 2);
    let database = connect(&world.path);
    let (mut capture, staged) = Capture::start(world.settings(), world.clock(), &mut world.replica).unwrap();
    assert_eq!((staged[0].commit.0, staged[0].pages), (lock_page - 2, lock_page - 2));
    insert(&database, 1, page_size * 4);
    let staged = capture.pass().unwrap();
    let commit: u32 = database.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    assert!(commit > lock_page + 1);
    assert_eq!(staged[0].commit.0, commit);
    let bytes = read(&staged[0].path);
    let mut decoder = Decoder::new(bytes.as_slice()).unwrap();
    let mut page = vec![0; page_size as usize];
    let mut pages = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        pages.push(pgno.get());
    }
    assert!(!pages.contains(&lock_page));
    let grown: Vec<_> = (lock_page - 1..=commit).filter(|page| *page != lock_page).collect();
    assert_eq!(pages[pages.len() - grown.len()..], grown, "all that growth added");
    drop(capture);
    // And in a snapshot.
    std::fs::remove_dir_all(world.own("")).unwrap();
    let (_capture, staged) = Capture::start(world.settings(), world.clock(), &mut world.replica).unwrap();
    assert_eq!((staged[0].commit.0, staged[0].pages), (commit, commit - 1));
    assert!(staged[0].complete);
}

#[expect(clippy::disallowed_methods, reason = "nobody has it open")]
fn grow(path: &std::path::Path, page_size: u64, pages: u32) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&pages.to_be_bytes(), 28).unwrap();
    file.set_len(page_size * u64::from(pages)).unwrap();
}

/// A long stretch becomes several files, each of which ends with a transaction.
#[test]
fn a_pass_is_cut_where_transactions_end() {
    let (mut world, database) = World::with_database(4096);
    let mut settings = world.settings();
    settings.cut = 100_000;
    let mut capture = world.start_with(settings);
    for _ in 0..20 {
        insert(&database, 10, 4000);
    }
    insert(&database, 200, 4000);
    let before = world.replica.files;
    world.pass(&mut capture, &database);
    let files = world.replica.files - before;
    assert!((4..20).contains(&files), "{files} files");
    // A transaction is never cut.
    database.execute_batch("BEGIN").unwrap();
    for _ in 0..20 {
        insert(&database, 10, 4000);
    }
    database.execute_batch("COMMIT").unwrap();
    let before = world.replica.files;
    world.pass(&mut capture, &database);
    assert_eq!(world.replica.files - before, 1);
    // What is stopped in the middle goes on there.
    drop(capture);
    insert(&database, 1, 10);
    let capture = world.start();
    world.replica.check(&database);
    assert_eq!(capture.snapshots(), 0);
    drop(capture);
}

#[test]
fn nothing_new_is_no_file() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    for _ in 0..5 {
        assert_eq!(capture.pass().unwrap(), []);
    }
    database.execute_batch("BEGIN; INSERT INTO t (body) VALUES (1); ROLLBACK").unwrap();
    database.execute_batch("BEGIN IMMEDIATE; COMMIT").unwrap();
    assert_eq!(capture.pass().unwrap(), []);
    for kind in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        checkpoint(&database, kind);
        assert_eq!(capture.pass().unwrap(), [], "{kind}");
    }
    insert(&database, 1, 1);
    assert_eq!(capture.pass().unwrap().len(), 1);
}

/// An open transaction is in the log, and not in the file.
#[test]
fn what_is_not_committed_is_not_captured() {
    let (mut world, database) = World::with_database(512);
    let mut capture = world.start();
    let other = world.connect();
    database.execute_batch("PRAGMA cache_size=2; BEGIN").unwrap();
    insert(&database, 200, 400);
    assert!(read(&world.wal()).len() > 50_000, "it has spilled");
    world.pass(&mut capture, &other);
    database.execute_batch("ROLLBACK").unwrap();
    world.pass(&mut capture, &other);
    insert(&other, 3, 400);
    world.pass(&mut capture, &database);
    assert_eq!(capture.snapshots(), 1);
}

#[test]
fn a_database_that_is_not_in_wal_mode_is_refused() {
    let mut world = World::new();
    let database = Connection::open(&world.path).unwrap();
    database.execute_batch("CREATE TABLE t (a)").unwrap();
    let error = Capture::start(world.settings(), world.clock(), &mut world.replica).unwrap_err();
    assert!(matches!(error, Error::NotWal(_)), "{error}");
    assert!(error.to_string().ends_with("is not in WAL mode; run PRAGMA journal_mode=WAL"));
    // And it is left alone.
    database.execute_batch("INSERT INTO t VALUES (1); PRAGMA journal_mode=WAL; INSERT INTO t VALUES (2)").unwrap();
    let capture = world.start();
    world.replica.check(&database);
    drop(capture);
}
