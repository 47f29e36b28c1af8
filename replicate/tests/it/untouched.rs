//! Nothing of the user's is ever written to by us, but for what a checkpoint copies; and nobody who does not wait is ever kept waiting.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use litestream_replicate::wal::Log;
use litestream_replicate::{Capture, Settings};
use rusqlite::Connection;

use crate::common::{Replica, World, beside, connect, insert, read, write};
use crate::disk::failing_disk;
use crate::processes::{Process, wait_for, write_something};

/// Settings that never checkpoint.
fn only_passes(path: &Path) -> Settings {
    let mut settings = crate::common::settings(path);
    (settings.checkpoint_pages, settings.truncate_pages, settings.checkpoint_interval) = (u32::MAX, 0, Duration::ZERO);
    settings
}

/// What a process of its own reads: ours must not open the database.
fn bytes(path: &Path) -> Vec<u8> {
    let read = Command::new("cat").arg(path).output().unwrap();
    assert!(read.status.success());
    read.stdout
}

#[test]
fn nothing_changes_beside_an_idle_application() {
    for copied in [false, true] {
        let (mut world, database) = World::with_database(4096);
        insert(&database, 50, 3000);
        if copied {
            crate::common::checkpoint(&database, "PASSIVE");
        }
        // Whoever reads marks how far: behind the two headers.
        let path = world.path.clone();
        let all = || (bytes(&path), bytes(&beside(&path, "-wal")), bytes(&beside(&path, "-shm"))[..96].to_vec());
        let times = || ["", "-wal"].map(|name| std::fs::metadata(beside(&path, name)).unwrap().modified().unwrap());
        let before = (all(), times());
        for _ in 0..2 {
            let mut capture = world.start_with(only_passes(&path));
            for _ in 0..100 {
                world.time.fetch_add(1_000, std::sync::atomic::Ordering::Relaxed);
                world.replica.take(capture.pass().unwrap());
                world.replica.take(capture.checkpoint_if_due().unwrap());
            }
            world.replica.take(capture.snapshot_now("it was asked for").unwrap());
            capture.digest().unwrap();
            assert!((all(), times()) == before);
            world.replica.take(capture.stop().unwrap());
            assert!((all(), times()) == before);
        }
        world.replica.check(&database);
    }
}

/// The frames of a log without what is random in them.
fn written(wal: &Path) -> Vec<(u32, u32, Vec<u8>)> {
    let bytes = read(wal);
    let log = Log::open(bytes.as_slice()).unwrap();
    let mut written = Vec::new();
    log.walk(log.start(), u32::MAX, |frame| written.push((frame.pgno.get(), frame.commit, frame.page.to_vec())))
        .unwrap();
    written
}

#[test]
fn an_application_writes_the_same_beside_us_and_alone() {
    let sequence = |world: &mut World, database: &Connection, beside_us: bool| {
        let mut capture = beside_us.then(|| world.start_with(only_passes(&world.path)));
        for round in 0..120 {
            let sql = match round % 6 {
                0 => "DELETE FROM t WHERE id % 3 = 1".to_owned(),
                1 => "UPDATE t SET body = zeroblob(1200) WHERE id % 2 = 1".to_owned(),
                5 if round % 30 == 5 => "VACUUM".to_owned(),
                _ => format!("INSERT INTO t (body) SELECT zeroblob({}) FROM t LIMIT 40", 900 + round * 13),
            };
            database.execute_batch(&sql).unwrap();
            database.execute_batch("INSERT INTO t (body) VALUES (zeroblob(50))").unwrap();
            if let Some(capture) = &mut capture {
                world.pass(capture, database);
            }
            if beside_us && round % 40 == 20 {
                drop(capture);
                capture = Some(world.start_with(only_passes(&world.path)));
            }
        }
        written(&world.wal())
    };
    let [alone, beside_us] = [false, true].map(|beside_us| {
        let (mut world, database) = World::with_database(1024);
        sequence(&mut world, &database, beside_us)
    });
    assert!(alone.len() > 1_000 && alone == beside_us, "{} frames, {}", alone.len(), beside_us.len());
}

/// Captures, in a child whose writes are noted, until it is told that it was enough.
pub(crate) fn capture_until_done(path: &Path, checkpoints: bool) {
    let mut settings = only_passes(path);
    if checkpoints {
        (settings.checkpoint_pages, settings.truncate_pages) = (20, 100);
    }
    let mut time = 0;
    let clock = Box::new(move || {
        time += 1;
        ltx::Timestamp(time)
    });
    let (mut capture, _) = Capture::start(settings, clock, &mut Replica::default()).unwrap();
    write(&beside(path, "-started"), b"");
    while !beside(path, "-done").exists() {
        capture.pass().unwrap();
        capture.checkpoint_if_due().unwrap();
    }
    capture.snapshot_now("it was asked for").unwrap();
    capture.digest().unwrap();
    capture.stop().unwrap();
}

#[test]
fn what_we_write_to_by_the_kernels_account() {
    for (role, checkpoints) in [("captures", false), ("captures and checkpoints", true)] {
        let (world, database) = World::with(4096, "INCREMENTAL");
        let folder = world.path.parent().unwrap().to_owned();
        let Some(library) = failing_disk(&folder) else { return };
        let log = folder.join("written");
        let ourselves = Process::start_under(role, &world.path, &[("LD_PRELOAD", &library), ("DISK_LOG", &log)]);
        wait_for("it to start", || beside(&world.path, "-started").exists());
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..1_500 {
            write_something(&database, &mut random);
        }
        // Whatever became of the log so far, it is long enough to be emptied now, and nobody writes any more.
        insert(&database, 150, 3000);
        wait_for("a long log to be emptied", || {
            !checkpoints || std::fs::metadata(world.wal()).is_ok_and(|metadata| metadata.len() == 0)
        });
        write(&beside(&world.path, "-done"), b"");
        ourselves.succeeds();
        let text = String::from_utf8(read(&log)).unwrap();
        let written = |what: &str, name: &str| {
            let line = format!("{what} {}", beside(&world.path, name).display());
            text.lines().filter(|found| *found == line).count()
        };
        assert!(text.lines().filter(|line| line.contains("/.db-litestream/ltx/0/")).count() > 10, "it is noted at all");
        for (what, name) in
            [("write", ""), ("write", "-wal"), ("pwrite", "-wal"), ("write", "-shm"), ("pwrite", "-shm")]
        {
            assert_eq!(written(what, name), 0, "{what} {name}");
        }
        // A checkpoint copies into the file, and empties a log that has grown long.
        assert_eq!(written("pwrite", "") > 0, checkpoints);
        assert_eq!(written("ftruncate", "") > 0, checkpoints);
        assert_eq!(written("ftruncate", "-wal") > 0, checkpoints);
        assert_eq!(written("ftruncate", "-shm"), 0);
    }
}

/// A writer in another process that never waits, or for a second at most.
pub(crate) fn hasty(path: &Path, patience: Duration) {
    let database = connect(path);
    // Its own checkpoints too.
    database.pragma_update(None, "wal_autocheckpoint", 150).unwrap();
    database.busy_timeout(patience).unwrap();
    for round in 0.. {
        if round % 50 == 0 && beside(path, "-done").exists() {
            break;
        }
        let sql = "INSERT OR REPLACE INTO t (id, body) VALUES (?1 % 100, randomblob(?1 % 3000))";
        let written = database.execute(sql, [round]);
        assert!(written.is_ok(), "transaction {round}: {written:?}");
    }
}

#[test]
fn a_writer_that_does_not_wait_need_not() {
    for (role, truncate_pages) in [("hasty", 0), ("patient for a second", 200)] {
        let (mut world, database) = World::with_database(4096);
        let mut settings = world.settings();
        (settings.checkpoint_pages, settings.truncate_pages) = (40, truncate_pages);
        let mut capture = world.start_with(settings);
        let mut writer = Process::start(role, &world.path);
        let mut logs = std::collections::HashSet::new();
        wait_for("many passes", || {
            world.replica.take(capture.pass().unwrap());
            world.replica.take(capture.checkpoint_if_due().unwrap());
            logs.insert(world.salts());
            world.replica.files > 60 && (truncate_pages == 0 || logs.len() > 5) || writer.has_ended()
        });
        write(&beside(&world.path, "-done"), b"");
        writer.succeeds();
        world.pass(&mut capture, &database);
        assert_eq!(capture.snapshots(), 1);
    }
}
