//! What was left is gone on with, where the log proves that nothing is missing; otherwise everything is captured anew.

use litestream_replicate::{Capture, Newest, Remote};
use ltx::{Checksum, Decoder, Encoder, Header, Txid};
use rusqlite::Connection;

use crate::common::{World, checkpoint, insert, read, write};

/// Starts again; says whether everything had to be captured.
fn again(world: &mut World, database: &Connection) -> (Capture, bool) {
    let capture = world.start();
    world.replica.check(database);
    let anew = capture.snapshots() > 0;
    (capture, anew)
}

#[test]
fn a_log_that_only_grew_is_gone_on_with() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    for round in 0..6 {
        insert(&database, 5, 1000);
        if round % 2 == 0 {
            world.replica.take(capture.stop().unwrap());
        } else {
            // Killed: what was not captured will be.
            drop(capture);
        }
        insert(&database, 5, 1000);
        let anew;
        (capture, anew) = again(&mut world, &database);
        assert!(!anew, "round {round}");
    }
    let time = world.replica.newest.unwrap().time;
    drop(capture);
    // Not a page has changed: no file.
    let (_capture, anew) = again(&mut world, &database);
    assert!(!anew);
    assert_eq!(world.replica.newest.unwrap().time, time);
}

#[test]
fn nothing_proves_that_an_empty_log_is_the_same_one() {
    let (mut world, database) = World::with_database(4096);
    checkpoint(&database, "TRUNCATE");
    drop(world.start());
    let (_capture, anew) = again(&mut world, &database);
    assert!(anew);
}

#[test]
fn a_state_that_is_gone_or_damaged_proves_nothing() {
    let (mut world, database) = World::with_database(4096);
    drop(world.start());
    let state = world.own("state");
    write(&state, b"{");
    insert(&database, 1, 1);
    let (capture, anew) = again(&mut world, &database);
    assert!(anew);
    drop(capture);
    std::fs::remove_file(&state).unwrap();
    insert(&database, 1, 1);
    let (capture, anew) = again(&mut world, &database);
    assert!(anew);
    assert_eq!(capture.txid(), Txid(3));
    drop(capture);
    assert!(!again(&mut world, &database).1);
}

/// Killed when the file was durable, and what names it was not: the same TXID is captured again, with all that came since.
#[test]
fn killed_between_the_file_and_the_state() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    insert(&database, 5, 1000);
    world.pass(&mut capture, &database);
    let state = read(&world.own("state"));
    insert(&database, 5, 1000);
    let lost = capture.pass().unwrap();
    assert_eq!(lost[0].txid, Txid(3));
    drop(capture);
    write(&world.own("state"), &state);
    write(&lost[0].path.with_extension("tmp"), b"half a file");
    insert(&database, 5, 1000);
    let (capture, anew) = again(&mut world, &database);
    assert!(!anew);
    assert_eq!(capture.txid(), Txid(3));
    assert!(!lost[0].path.with_extension("tmp").exists());
}

/// The disk is full, or the folder cannot be written to: nothing is lost, and it goes on by itself.
#[test]
fn a_file_that_cannot_be_written_is_written_later() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    for gone in ["ltx/0", ""] {
        let (folder, aside) = (world.own(gone), world.path.with_file_name("aside"));
        std::fs::rename(&folder, &aside).unwrap();
        for _ in 0..3 {
            insert(&database, 5, 1000);
            assert!(capture.pass().is_err());
        }
        checkpoint(&database, "RESTART");
        insert(&database, 5, 1000);
        assert!(capture.pass().is_err());
        std::fs::rename(&aside, &folder).unwrap();
        world.pass(&mut capture, &database);
    }
    assert_eq!(capture.snapshots(), 1);
    // The file could be written, but not what names it: it is made again, with more in it.
    let state = world.own("state.tmp");
    std::fs::create_dir(&state).unwrap();
    insert(&database, 5, 1000);
    assert!(capture.pass().is_err());
    insert(&database, 5, 1000);
    assert!(capture.pass().is_err());
    std::fs::remove_dir(&state).unwrap();
    world.pass(&mut capture, &database);
    assert_eq!(capture.snapshots(), 1);
}

/// A pass that makes several files fails behind the first of them.
#[test]
fn what_a_pass_had_captured_before_it_failed_stays_captured() {
    let (mut world, database) = World::with_database(4096);
    let mut settings = world.settings();
    settings.cut = 3 * 4096;
    // So that no file holds everything by chance.
    insert(&database, 50, 3000);
    let mut capture = world.start_with(settings);
    world.pass(&mut capture, &database);
    let next = world.replica.newest.unwrap().txid.next().next();
    let obstacle = world.own(&format!("ltx/0/{next}-{next}.tmp"));
    std::fs::create_dir(&obstacle).unwrap();
    for _ in 0..9 {
        insert(&database, 2, 3000);
    }
    for _ in 0..3 {
        assert!(capture.pass().is_err());
        insert(&database, 1, 10);
    }
    std::fs::remove_dir(&obstacle).unwrap();
    let before = world.replica.files;
    world.pass(&mut capture, &database);
    assert!(world.replica.files > before + 1);
    assert_eq!((capture.snapshots(), world.replica.complete), (1, 1));
}

#[test]
fn files_wait_until_the_replica_has_them() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    let mut missed = Vec::new();
    for _ in 0..3 {
        insert(&database, 5, 1000);
        missed.extend(capture.pass().unwrap());
    }
    drop(capture);
    insert(&database, 5, 1000);
    let (capture, waiting) = Capture::start(world.settings(), world.clock(), &mut world.replica).unwrap();
    assert_eq!(waiting[..3], missed[..]);
    assert_eq!((waiting.len(), capture.snapshots()), (4, 0));
    world.replica.take(waiting);
    world.replica.check(&database);
    let mut capture = capture;
    capture.uploaded(Txid(4)).unwrap();
    let left = std::fs::read_dir(world.own("ltx/0")).unwrap().count();
    assert_eq!(left, 1);
    drop(capture);
    assert!(!again(&mut world, &database).1);
}

/// The replica is further than we are, or ends with a file that is not ours: a rolled-back machine, or another writer.
#[test]
fn a_replica_that_went_on_without_us_gets_a_snapshot_behind_what_it_has() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    insert(&database, 5, 1000);
    world.pass(&mut capture, &database);
    drop(capture);
    let ours = world.replica.newest.unwrap();
    let later = Newest { txid: Txid(9), checksum: None, time: ours.time.map(|time| ltx::Timestamp(time.0 + 50_000)) };
    for theirs in [Newest { checksum: Some(Checksum(ours.checksum.unwrap().0 ^ 1)), ..ours }, later] {
        world.replica.newest = Some(theirs);
        insert(&database, 1, 10);
        let (capture, anew) = again(&mut world, &database);
        assert!(anew);
        assert_eq!(capture.txid(), theirs.txid.next());
        assert!(world.replica.newest.unwrap().time > theirs.time);
        drop(capture);
        assert!(!again(&mut world, &database).1, "from there on it is ours");
    }
}

/// The replica has lost what it had, and here it is no more.
#[test]
fn a_replica_that_is_behind_what_is_left_gets_a_snapshot() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    let first = world.replica.newest;
    for _ in 0..3 {
        insert(&database, 5, 1000);
        world.pass(&mut capture, &database);
    }
    capture.uploaded(Txid(3)).unwrap();
    drop(capture);
    world.replica.newest = first;
    let (capture, anew) = again(&mut world, &database);
    assert!(anew);
    assert_eq!(capture.txid(), Txid(2));
    drop(capture);
    world.replica.newest = None;
    let (capture, anew) = again(&mut world, &database);
    assert!(anew);
    assert_eq!(capture.txid(), Txid(1));
}

#[test]
fn a_page_size_that_changed_is_a_snapshot() {
    let (mut world, database) = World::with_database(4096);
    drop(world.start());
    database
        .execute_batch("PRAGMA journal_mode=DELETE; PRAGMA page_size=8192; VACUUM; PRAGMA journal_mode=WAL")
        .unwrap();
    insert(&database, 5, 1000);
    let (_capture, anew) = again(&mut world, &database);
    assert!(anew);
    assert_eq!(world.replica.page_size.unwrap().get(), 8192);
}

/// A file that waits is damaged: it is as if it were not there.
#[test]
fn a_damaged_file_that_waits_is_taken_for_gone() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    for _ in 0..3 {
        insert(&database, 5, 1000);
        world.pass(&mut capture, &database);
    }
    for (round, damage) in ["cut", "empty", "garbage"].into_iter().enumerate() {
        insert(&database, 5, 1000);
        let staged = capture.pass().unwrap().remove(0);
        drop(capture);
        let mut bytes = read(&staged.path);
        match damage {
            "cut" => bytes.truncate(bytes.len() / 2),
            "empty" => bytes.clear(),
            _ => bytes.fill(0x5a),
        }
        write(&staged.path, &bytes);
        let anew;
        (capture, anew) = again(&mut world, &database);
        assert!(anew, "{damage}");
        assert_eq!(capture.txid(), Txid(5 + round as u64));
    }
}

/// A replica whose newest file another program has put.
struct Foreign<'a>(&'a mut crate::common::Replica, Vec<u8>);

impl Remote for Foreign<'_> {
    fn newest(&mut self) -> Result<Option<Newest>, Box<dyn std::error::Error + Send + Sync>> {
        self.0.newest()
    }

    fn newest_file(&mut self) -> Option<Vec<u8>> {
        Some(self.1.clone())
    }
}

/// The same file as Litestream would write it, which says nothing of who it is.
fn anonymous(file: &[u8]) -> (Vec<u8>, Checksum) {
    let mut decoder = Decoder::new(file).unwrap();
    let header = Header { node_id: 0, ..*decoder.header() };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    let mut page = vec![0; header.page_size.bytes()];
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        encoder.page(pgno, &page).unwrap();
    }
    let (file, trailer) = encoder.finish().unwrap();
    (file, trailer.file_checksum)
}

#[test]
fn what_another_program_has_captured_is_gone_on_with_where_the_log_shows_it() {
    for (change, expected) in [
        ("nothing", false),
        ("more was written", false),
        ("the log was begun anew", true),
        ("the file is another database's", true),
        ("the replica holds more", true),
        // A machine that was set back would find what is the same in this stretch, and not what lies before it.
        ("it is ours", true),
    ] {
        let (mut world, database) = World::with_database(4096);
        let mut capture = world.start();
        insert(&database, 5, 1000);
        world.pass(&mut capture, &database);
        insert(&database, 5, 3000);
        let staged = capture.stop().unwrap();
        let mut file = read(&staged.last().unwrap().path);
        world.replica.take(staged);
        // As if it had never been ours.
        std::fs::remove_dir_all(world.own("")).unwrap();
        match change {
            "more was written" => insert(&database, 7, 2000),
            "the log was begun anew" => {
                checkpoint(&database, "RESTART");
                insert(&database, 9, 3000);
            }
            "the file is another database's" => {
                let (mut other, database) = World::with_database(4096);
                let mut capture = other.start();
                insert(&database, 5, 1000);
                other.pass(&mut capture, &database);
                insert(&database, 5, 3000);
                file = read(&capture.stop().unwrap().last().unwrap().path);
            }
            "it is ours" => {}
            "the replica holds more" => {
                let newest = world.replica.newest.as_mut().unwrap();
                newest.txid = newest.txid.next();
            }
            _ => {}
        }
        if change != "it is ours" {
            let checksum;
            (file, checksum) = anonymous(&file);
            world.replica.newest.as_mut().unwrap().checksum = Some(checksum);
        }
        let clock = world.clock();
        let started = Capture::start(world.settings(), clock, &mut Foreign(&mut world.replica, file)).unwrap();
        let (mut capture, staged) = started;
        assert_eq!(capture.snapshots() > 0, expected, "{change}");
        if change != "the replica holds more" {
            world.replica.take(staged);
            world.pass(&mut capture, &database);
            insert(&database, 3, 1000);
            world.pass(&mut capture, &database);
        }
    }
}
