//! A disk that is full, and one that does not keep what it was given: the application's, and ours.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use litestream_replicate::{Capture, Error};
use ltx::Txid;

use crate::common::{World, beside, checkpoint, frames, insert, left_out, read, write};
use crate::processes::{Process, wait_for};
use crate::table::step;

/// A library that lets a disk fail, for a child of ours; `None` where there is no C compiler.
pub(crate) fn failing_disk(folder: &Path) -> Option<PathBuf> {
    let (source, library) = (folder.join("disk.c"), folder.join("disk.so"));
    write(&source, include_bytes!("disk.c"));
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).status();
    if compiled.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        left_out("there is no C compiler (`cc`)");
        return None;
    }
    assert!(compiled.unwrap().success());
    Some(library)
}

/// What an application does that is told to, and what came of it.
pub(crate) fn obey(path: &Path) {
    let database = crate::common::connect(path);
    database.pragma_update(None, "synchronous", "FULL").unwrap();
    loop {
        let told = beside(path, "-step");
        wait_for("to be told something", || told.exists());
        let result = database.execute_batch(&String::from_utf8(read(&told)).unwrap());
        write(&beside(path, "-result"), result.err().map_or(String::new(), |error| error.to_string()).as_bytes());
        std::fs::remove_file(told).unwrap();
    }
}

/// Tells it, and says what came of it.
fn tell(path: &Path, sql: &str) -> String {
    step(path, sql);
    String::from_utf8(read(&beside(path, "-result"))).unwrap()
}

/// Its commit lies in the log, and was never one: its fsync failed. Its place is written again, and again.
#[test]
fn an_fsync_of_the_applications_log_that_fails() {
    let (mut world, database) = World::with_database(4096);
    let folder = world.path.parent().unwrap().to_owned();
    let Some(library) = failing_disk(&folder) else { return };
    insert(&database, 20, 3000);
    let fails = folder.join("fails");
    write(&fails, b"");
    let application = Process::start_under("obeys", &world.path, &[("LD_PRELOAD", &library), ("DISK_FAILS", &fails)]);
    let mut capture = world.start();
    let mut phantoms = 0;
    for round in 0..12 {
        let path = world.path.clone();
        assert_eq!(tell(&path, "INSERT INTO t (body) VALUES (randomblob(2000))"), "");
        world.pass(&mut capture, &database);
        // In the second half the log begins anew, and already its header's fsync fails.
        if round >= 6 {
            checkpoint(&database, "PASSIVE");
            world.pass(&mut capture, &database);
        }
        let before = (frames(&world.wal()), capture.txid());
        write(&fails, b"-wal");
        for attempt in 0..4 {
            // The same rows again, more of them, fewer, and others.
            let sql = ["UPDATE t SET body = randomblob(1900) WHERE id < ", "DELETE FROM t WHERE id > "][attempt / 2];
            assert_eq!(tell(&path, &format!("{sql}{}", 3 + (attempt + round) % 9)), "disk I/O error");
            phantoms += u32::from(frames(&world.wal()) > before.0);
            match attempt % 3 {
                0 => assert_eq!(capture.pass().unwrap(), [], "it is no commit"),
                1 => world.replica.take(capture.checkpoint_if_due().unwrap()),
                // After a log that begins anew without a transaction, nothing would prove to another start that there was none.
                _ if round >= 6 => {}
                _ => {
                    drop(capture);
                    capture = world.start();
                    assert_eq!(capture.snapshots(), 0);
                }
            }
            assert_eq!(capture.txid(), before.1);
            world.replica.check(&database);
        }
        write(&fails, b"");
        assert_eq!(tell(&path, "UPDATE t SET body = randomblob(1000) WHERE id < 7"), "");
        world.pass(&mut capture, &database);
        assert_eq!(capture.txid(), before.1.next());
    }
    assert_eq!(phantoms, 24);
    // Nobody is left who knows that it was none: SQLite takes it for one, and so do we.
    write(&fails, b"-wal");
    assert_eq!(tell(&world.path, "UPDATE t SET body = 'phantom' WHERE id = 5"), "disk I/O error");
    drop((capture, database, application));
    let database = world.connect();
    let found: u32 = database.query_row("SELECT count(*) FROM t WHERE body = 'phantom'", [], |row| row.get(0)).unwrap();
    assert_eq!(found, 1);
    let capture = world.start();
    world.replica.check(&database);
    assert_eq!(capture.snapshots(), 0);
}

#[test]
fn an_fsync_of_ours_that_fails() {
    let (world, _database) = World::with_database(4096);
    let folder = world.path.parent().unwrap().to_owned();
    let Some(library) = failing_disk(&folder) else { return };
    let fails = folder.join("fails");
    write(&fails, b"");
    Process::start_under("our fsyncs fail", &world.path, &[("LD_PRELOAD", &library), ("DISK_FAILS", &fails)])
        .succeeds();
}

/// In a child, with an application and a capture of its own.
pub(crate) fn our_fsyncs_fail() {
    let fails = PathBuf::from(std::env::var_os("DISK_FAILS").unwrap());
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    for round in 0..4 {
        // What was staged, its folder, the state, its folder.
        let next = format!("{}.tmp", capture.txid().next());
        for name in [next.as_str(), "/ltx/0", "/state.tmp", ".db-litestream"] {
            let (before, state) = (capture.txid(), read(&world.own("state")));
            write(&fails, name.as_bytes());
            for _ in 0..3 {
                insert(&database, 2, 500);
                let error = capture.pass().unwrap_err();
                assert!(matches!(error, Error::Io { .. }), "{name}: {error}");
                assert!(!error.is_disk_full());
                assert_eq!(capture.txid(), before, "{name}: nothing counts as captured");
            }
            if name != ".db-litestream" {
                assert_eq!(read(&world.own("state")), state, "{name}");
            }
            // A writer may begin the log anew only when it is captured.
            checkpoint(&database, "PASSIVE");
            insert(&database, 2, 500);
            assert!(capture.pass().is_err());
            write(&fails, b"");
            if round % 2 > 0 {
                drop(capture);
                capture = world.start();
                world.replica.check(&database);
                assert_eq!(capture.snapshots(), 0, "{name}");
            } else {
                world.pass(&mut capture, &database);
            }
            assert_eq!(capture.txid(), before.next(), "{name} in round {round}");
        }
    }
}

/// What takes nothing more, in the place of a file of ours: nothing is lost, and it goes on once there is room.
#[test]
fn a_full_disk_is_recognised_and_gone_on_from() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    for round in 0..3_u64 {
        let temporary = world.own("ltx/0").join(format!("{0:016x}-{0:016x}.tmp", capture.txid().0 + 1));
        for path in [temporary, world.own("state.tmp")] {
            // The first is deleted when it fails, as what is half written is.
            insert(&database, 5, 2000 * (1 + round as u32));
            std::os::unix::fs::symlink("/dev/full", &path).unwrap();
            let error = capture.pass().unwrap_err();
            assert!(error.is_disk_full(), "{error}");
            let _ = std::fs::remove_file(&path);
            insert(&database, 5, 1000);
            world.pass(&mut capture, &database);
        }
    }
    assert_eq!(capture.snapshots(), 1);
}

#[test]
fn a_full_file_system_is_recognised_and_gone_on_from() {
    let (world, _database) = World::with_database(4096);
    if let Some(child) = Process::start_with_mounts("disk full", &world.path) {
        child.succeeds();
    }
}

/// In a child whose mounts nobody else sees.
pub(crate) fn disk_full() {
    let (mut world, database) = World::with_database(4096);
    insert(&database, 50, 3000);
    let mut settings = world.settings();
    settings.meta_path = world.path.with_file_name("small");
    std::fs::create_dir(&settings.meta_path).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=400k", "tmpfs"]).arg(&settings.meta_path);
    assert!(mount.status().unwrap().success());
    let filler = settings.meta_path.join("filler");
    // Already at the start.
    fill(&filler);
    let error = Capture::start(settings.clone(), world.clock(), &mut world.replica).unwrap_err();
    assert!(error.is_disk_full(), "{error}");
    std::fs::remove_file(&filler).unwrap();
    let mut capture = world.start_with(settings.clone());
    capture.uploaded(Txid(1)).unwrap();
    for round in 0..4 {
        // The disk fills with what we stage; what a replica has makes room.
        let mut full = 0;
        while full < 3 {
            insert(&database, 10, 3000);
            match capture.pass() {
                Ok(staged) => world.replica.take(staged),
                Err(error) => {
                    assert!(error.is_disk_full(), "{error}");
                    full += 1;
                    checkpoint(&database, ["PASSIVE", "RESTART"][round % 2]);
                }
            }
        }
        if round == 3 {
            // Stopped and started meanwhile, which deletes what the replica has.
            drop(capture);
            capture = world.start_with(settings.clone());
            assert_eq!(capture.snapshots(), 0);
            world.replica.check(&database);
            return;
        }
        capture.uploaded(world.replica.newest.unwrap().txid).unwrap();
        world.pass(&mut capture, &database);
        capture.uploaded(world.replica.newest.unwrap().txid).unwrap();
        assert_eq!(capture.snapshots(), 1);
    }
}

/// Writes until there is no more room.
#[expect(clippy::disallowed_methods, reason = "no database is near")]
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
}
