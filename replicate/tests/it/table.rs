//! What keeps a database from being captured is noticed, and said. Each test is named for its row of the table of what breaks capturing; two
//! rows need what only the crate's own tests can make: `place::tests::nfs_cifs_9p_fuse_are_refused_by_name`, and
//! `files::tests::ofd_locks_that_are_missing`.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use litestream_replicate::{Capture, Error, Settings};
use rusqlite::{Connection, OpenFlags};
use tracing::field::{Field, Visit};

use crate::common::{Replica, World, beside, checkpoint, connect, content, frames, insert, phantom, write};
use crate::processes::{Process, wait_for};

const ONE: &str = "INSERT INTO t (body) VALUES (randomblob(3000))";

/// An application in another process, which takes a step whenever it is told to by a file.
pub(crate) fn application(role: &str, path: &Path) {
    let one = ONE;
    let next = || {
        let told = beside(path, "-step");
        while !told.exists() {
            std::thread::yield_now();
        }
        String::from_utf8(crate::common::read(&told)).unwrap()
    };
    let done = || std::fs::remove_file(beside(path, "-step")).unwrap();
    match role {
        // Its index is in its own memory, and it cannot become NORMAL before it has ended.
        "exclusive" => {
            let database = connect(path);
            database.execute_batch(&format!("PRAGMA locking_mode=EXCLUSIVE; {one}")).unwrap();
            next();
        }
        "exclusive for a while" => {
            let database = connect(path);
            database.execute_batch(&format!("{one}; PRAGMA locking_mode=EXCLUSIVE; {one}")).unwrap();
            next();
            database.execute_batch(&format!("PRAGMA locking_mode=NORMAL; {one}")).unwrap();
            done();
            next();
        }
        vfs => {
            let (flags, vfs) = (OpenFlags::default(), std::ffi::CString::new(vfs).unwrap());
            let database = Connection::open_with_flags_and_vfs(path, flags, vfs.as_c_str()).unwrap();
            let sql = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=OFF";
            database.execute_batch(&format!("{sql}; {one}")).unwrap();
            loop {
                database.execute_batch(&next()).unwrap();
                done();
            }
        }
    }
}

/// Tells it to take a step, and waits until it has.
pub(crate) fn step(path: &Path, sql: &str) {
    let told = beside(path, "-step");
    write(&beside(path, "-next"), sql.as_bytes());
    std::fs::rename(beside(path, "-next"), &told).unwrap();
    wait_for("a step", || !told.exists());
}

/// What went to the log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<String>>);

impl Lines {
    /// What is said while something is done.
    fn of(act: impl FnOnce()) -> String {
        let lines = Self::default();
        tracing::subscriber::with_default(lines.clone(), act);
        let lines = lines.0.lock().unwrap();
        lines.clone()
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Message<'a>(&'a mut String);
        impl Visit for Message<'_> {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    writeln!(self.0, "{value:?}").unwrap();
                }
            }
        }
        event.record(&mut Message(&mut self.0.lock().unwrap()));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// A pass that looks at the files.
fn later(world: &mut World, capture: &mut Capture) -> Result<(), Error> {
    world.time.fetch_add(1_000, Ordering::Relaxed);
    capture.pass().map(|staged| world.replica.take(staged))
}

/// Tries to start until somebody has taken the database for himself.
fn refused(world: &mut World, mut settings: Settings) -> String {
    settings.patience = std::time::Duration::ZERO;
    let mut said = None;
    wait_for("it to take the database", || {
        match Capture::start(settings.clone(), world.clock(), &mut world.replica) {
            Err(error @ Error::Exclusive { .. }) => said = Some(error.to_string()),
            Err(error) => assert!(error.is_busy() || matches!(error, Error::Unsettled { .. }), "{error}"),
            Ok(_) => std::fs::remove_dir_all(world.own("")).unwrap(),
        }
        said.is_some()
    });
    said.unwrap()
}

#[test]
fn exclusive_locking() {
    for role in ["exclusive", "exclusive for a while"] {
        let (mut world, database) = World::with_database(4096);
        insert(&database, 1, 1);
        drop(database);
        let application = Process::start(role, &world.path);
        let (pid, path) = (application.id(), world.path.display().to_string());
        let settings = world.settings();
        assert_eq!(
            refused(&mut world, settings),
            format!(
                "PID {pid} holds {path} exclusively (locking_mode=EXCLUSIVE); replication waits until it is NORMAL"
            )
        );
        let ended = if role == "exclusive" {
            drop(application);
            None
        } else {
            step(&world.path, "");
            Some(application)
        };
        let mut capture = crate::processes::start(&mut world);
        let database = world.connect();
        insert(&database, 1, 1);
        world.pass(&mut capture, &database);
        drop(ended);
    }
}

#[test]
fn not_wal_nolock_and_dotfile_locking_end_here_too() {
    let mut world = World::new();
    let database = Connection::open(&world.path).unwrap();
    database.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)").unwrap();
    let refuse = |world: &mut World, when: &str| {
        let error = Capture::start(world.settings(), world.clock(), &mut world.replica).unwrap_err();
        let path = world.path.display();
        assert_eq!(error.to_string(), format!("{path} is not in WAL mode; run PRAGMA journal_mode=WAL"), "{when}");
        assert!(!beside(&world.path, "-wal").exists() && !beside(&world.path, "-shm").exists());
    };
    refuse(&mut world, "DELETE");
    database.execute_batch("INSERT INTO t VALUES (1, 1)").unwrap();
    drop(database);
    // Without locks there is no WAL mode, nor with those of `unix-dotfile`, unless it is EXCLUSIVE.
    for (uri, vfs) in [("?nolock=1", c"unix"), ("", c"unix-none"), ("", c"unix-dotfile")] {
        let uri = format!("file:{}{uri}", world.path.display());
        let database = Connection::open_with_flags_and_vfs(uri, OpenFlags::default(), vfs).unwrap();
        let mode: String = database.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "delete", "{vfs:?}");
        database.execute_batch("INSERT INTO t (body) VALUES (1)").unwrap();
        refuse(&mut world, vfs.to_str().unwrap());
        drop(database);
    }
    let database = world.connect();
    database.pragma_update(None, "journal_mode", "wal").unwrap();
    // Where it is, that shows.
    drop(database);
    let application = Process::start("unix-dotfile", &world.path);
    let lock = beside(&world.path, ".lock");
    wait_for("its lock", || lock.is_dir());
    let settings = world.settings();
    let said = refused(&mut world, settings);
    assert!(said.ends_with("exclusively (locking_mode=EXCLUSIVE); replication waits until it is NORMAL"), "{said}");
    drop(application);
    std::fs::remove_dir(lock).unwrap();
    let database = world.connect();
    let mut capture = world.start();
    world.pass(&mut capture, &database);
}

#[test]
fn page_size_changed() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    // While we are attached it cannot be: WAL mode and NORMAL locking cannot be left.
    database.busy_timeout(std::time::Duration::ZERO).unwrap();
    for sql in ["PRAGMA journal_mode=DELETE", "PRAGMA locking_mode=EXCLUSIVE; INSERT INTO t (body) VALUES (1)"] {
        let error = database.execute_batch(sql).unwrap_err();
        assert_eq!(error.to_string(), "database is locked", "{sql}");
        database.execute_batch("PRAGMA locking_mode=NORMAL").unwrap();
    }
    database.execute_batch("PRAGMA page_size=8192; VACUUM").unwrap();
    world.pass(&mut capture, &database);
    assert_eq!((world.replica.page_size.unwrap().get(), capture.snapshots()), (4096, 1));
    drop(capture);
    database
        .execute_batch("PRAGMA journal_mode=DELETE; PRAGMA page_size=8192; VACUUM; PRAGMA journal_mode=WAL")
        .unwrap();
    insert(&database, 5, 1000);
    let said = Lines::of(|| {
        let capture = world.start();
        assert_eq!(capture.snapshots(), 1);
    });
    assert_eq!(said, "page size changed 4096→8192: new snapshot\n");
    world.replica.check(&database);
    assert_eq!(world.replica.page_size.unwrap().get(), 8192);
}

#[test]
fn a_reader_pins_the_log() {
    let (mut world, database) = World::with_database(4096);
    let mut settings = world.settings();
    settings.checkpoint_pages = 50;
    let mut capture = world.start_with(settings);
    let reader = world.connect();
    let read = || {
        reader.execute_batch("BEGIN").unwrap();
        reader.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
    };
    read();
    insert(&database, 300, 3000);
    assert_eq!(capture.concern(), None, "nothing was tried yet");
    world.replica.take(capture.checkpoint_if_due().unwrap());
    for minutes in [0, 12, 70] {
        world.time.fetch_add(minutes * 60_000, Ordering::Relaxed);
        insert(&database, 100, 3000);
        world.replica.take(capture.checkpoint_if_due().unwrap());
        world.pass(&mut capture, &database);
        let bytes = 32 + u64::from(frames(&world.wal())) * (4096 + 24);
        let lasting = ["0 s", "12 min", "82 min"][usize::try_from(minutes / 12).unwrap().min(2)];
        assert!(bytes > 1_000_000);
        let expected = format!("{:.1} MB", bytes as f64 / 1e6);
        let said = capture.concern().unwrap().to_string();
        assert_eq!(said, format!("a reader has kept the WAL from restarting for {lasting} ({expected})"));
    }
    // Another reader that comes before the first one goes is no end of it; who comes later pins nothing that we want copied.
    let second = world.connect();
    second.execute_batch("BEGIN").unwrap();
    second.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
    reader.execute_batch("COMMIT").unwrap();
    insert(&database, 100, 3000);
    world.replica.take(capture.checkpoint_if_due().unwrap());
    assert!(capture.concern().unwrap().to_string().contains(" for 82 min ("));
    second.execute_batch("COMMIT").unwrap();
    // Whoever copies it, we or the application.
    checkpoint(&database, "PASSIVE");
    assert_eq!(capture.concern(), None);
    world.pass(&mut capture, &database);
    insert(&database, 100, 3000);
    world.replica.take(capture.checkpoint_if_due().unwrap());
    assert_eq!(capture.concern(), None);
}

#[test]
fn a_reader_pins_the_log_in_words() {
    let said = |seconds, bytes| {
        let lasting = std::time::Duration::from_secs(seconds);
        let said = litestream_replicate::Concern::pinned(lasting, bytes).to_string();
        said.strip_prefix("a reader has kept the WAL from restarting for ").unwrap().to_owned()
    };
    assert_eq!(said(12 * 60 + 59, 1_200_000_000), "12 min (1.2 GB)");
    assert_eq!(said(119, 999_999), "119 s (1000 kB)");
    assert_eq!(said(7_200, 5_000_000), "2 h (5.0 MB)");
    assert_eq!(said(200_000, 20_000_000_000), "2 days (20.0 GB)");
}

/// In a child whose mounts nobody else sees.
pub(crate) fn mounted_alone(path: &Path) {
    let inside = path.with_file_name("in a container").join("the db");
    std::fs::create_dir(inside.parent().unwrap()).unwrap();
    write(&inside, b"");
    let mounted = Command::new("mount").arg("--bind").args([path, &inside]).status().unwrap();
    assert!(mounted.success());
    let clock = || Box::new(|| ltx::Timestamp(1));
    let error = Capture::start(Settings::new(&inside), clock(), &mut Replica::default()).unwrap_err();
    assert!(matches!(error, Error::NotShared(_)));
    let inside = inside.display();
    let expected =
        format!("{inside}'s -wal/-shm are not shared with the application; mount the whole directory. Refusing");
    assert_eq!(error.to_string(), expected);
    let (_capture, staged) = Capture::start(Settings::new(path), clock(), &mut Replica::default()).unwrap();
    assert!(staged[0].complete, "there it is as it should be");
}

#[test]
fn file_mounted_alone() {
    let (world, database) = World::with_database(4096);
    insert(&database, 3, 300);
    if let Some(child) = Process::start_with_mounts("mounted alone", &world.path) {
        child.succeeds();
    }
}

/// As in a virtual machine's share: the log is the same, the index is another one.
#[test]
fn vm_share_where_the_log_grows_while_the_header_stands_still() {
    let (mut world, database) = World::with_database(4096);
    insert(&database, 3, 300);
    drop(database);
    let application = Process::start("unix-none", &world.path);
    wait_for("its first transaction", || frames(&world.wal()) > 3);
    let mut capture = world.start();
    let mut said = None;
    for round in 0..20 {
        step(&world.path, ONE);
        match later(&mut world, &mut capture) {
            Ok(()) => {}
            Err(error @ Error::NotShared(_)) => {
                said = Some(error.to_string());
                assert!(round >= 3, "not before it has lasted for three seconds");
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let path = world.path.display().to_string();
    assert_eq!(
        said.unwrap(),
        format!("{path}'s -wal/-shm are not shared with the application; mount the whole directory. Refusing")
    );
    assert!(matches!(later(&mut world, &mut capture), Err(Error::NotShared(_))), "it stays so");
    drop(capture);
    drop(application);
}

/// The same where the application has begun its log anew, and pauses.
#[test]
fn vm_share_where_the_log_is_another_one_than_the_header_tells_of() {
    let (mut world, database) = World::with_database(4096);
    insert(&database, 3, 300);
    drop(database);
    let _application = Process::start("unix-none", &world.path);
    wait_for("its first transaction", || frames(&world.wal()) > 3);
    let mut capture = world.start();
    step(&world.path, &format!("PRAGMA wal_checkpoint(RESTART); {ONE}"));
    let mut result = Ok(());
    for _ in 0..6 {
        result = result.and_then(|()| later(&mut world, &mut capture));
    }
    assert!(matches!(result, Err(Error::NotShared(_))), "{result:?}");
}

/// What fails again and again in the same place, a transaction that is not committed yet, and one that is rolled back: all of it lies in the
/// log, and none of it in the index.
#[test]
fn vm_share_is_not_what_an_ordinary_application_looks_like() {
    let (mut world, database) = World::with_database(4096);
    insert(&database, 3, 300);
    let mut capture = world.start();
    let count = frames(&world.wal());
    let pages = content(&database).len() as u32 / 4096;
    for round in 0..12_u8 {
        // One frame more each time, and the first ones the same twice in a row.
        let failed: Vec<_> = (0..=round / 2).map(|frame| (2, frame + round / 4 * 50)).collect();
        phantom(&world.wal(), count, &failed, pages);
        later(&mut world, &mut capture).unwrap();
    }
    let other = world.connect();
    database.execute_batch("PRAGMA cache_size=2; BEGIN").unwrap();
    for _ in 0..8 {
        insert(&database, 50, 4000);
        later(&mut world, &mut capture).unwrap();
    }
    world.replica.check(&other);
    database.execute_batch("ROLLBACK").unwrap();
    for kind in ["PASSIVE", "TRUNCATE", "RESTART"] {
        for _ in 0..8 {
            insert(&database, 3, 4000);
            later(&mut world, &mut capture).unwrap();
            checkpoint(&database, kind);
            later(&mut world, &mut capture).unwrap();
        }
    }
    world.replica.check(&database);
    assert_eq!(capture.snapshots(), 1);
}

#[test]
fn database_replaced_and_wal_or_shm_deleted() {
    for name in ["", "-wal", "-shm"] {
        for replaced in [false, true] {
            let (mut world, database) = World::with_database(4096);
            let mut capture = world.start();
            insert(&database, 1, 1);
            world.pass(&mut capture, &database);
            let path = beside(&world.path, name);
            let aside = beside(&path, "-aside");
            std::fs::rename(&path, &aside).unwrap();
            if replaced {
                write(&path, b"");
            }
            assert_eq!(capture.pass().unwrap(), [], "it is looked at once a second");
            world.time.fetch_add(1_000, Ordering::Relaxed);
            for _ in 0..2 {
                let error = capture.pass().unwrap_err();
                let path = path.display();
                let expected = match error {
                    Error::Replaced(_) if name.is_empty() => {
                        format!("{path}: database file was replaced (changed outside SQLite); new snapshot")
                    }
                    Error::Deleted(_) if !name.is_empty() => format!(
                        "{path} was deleted while in use; committed data may be lost. Restart the application; new snapshot"
                    ),
                    error => panic!("{error}"),
                };
                assert_eq!(error.to_string(), expected);
            }
            // Put back as it was, it is as it was.
            std::fs::rename(&aside, &path).unwrap();
            world.pass(&mut capture, &database);
        }
    }
}

/// Runs a program on files, in a process of its own: ours must not open the database.
fn run(program: &str, arguments: &[&Path]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success());
}

#[test]
fn database_overwritten_in_place() {
    let (mut world, database) = World::with_database(4096);
    insert(&database, 20, 3000);
    checkpoint(&database, "TRUNCATE");
    let mut capture = world.start();
    let (newer, path) = (beside(&world.path, "-newer"), world.path.clone());
    run("cp", &[&path, &newer]);
    let mut other = crate::common::read(&newer);
    let last = 5 * 4096 - 1;
    for round in 0..3 {
        // What is in the log by then is SQLite's, and goes on to be.
        if round == 1 {
            insert(&database, 1, 10);
        }
        world.pass(&mut capture, &database);
        later(&mut world, &mut capture).unwrap();
        assert_eq!(capture.snapshots(), 1 + round);
        other[last] ^= 1;
        write(&newer, &other);
        let said = Lines::of(|| {
            run("cp", &[&newer, &path]);
            // It may not be finished: only when nothing has changed any more.
            later(&mut world, &mut capture).unwrap();
            assert_eq!(capture.snapshots(), 1 + round);
            run("cp", &[&newer, &path]);
            later(&mut world, &mut capture).unwrap();
            assert_eq!(capture.snapshots(), 1 + round);
            later(&mut world, &mut capture).unwrap();
        });
        assert_eq!(said, "database file was replaced (changed outside SQLite); new snapshot\n");
        assert_eq!(capture.snapshots(), 2 + round);
        world.replica.compare(&world.connect());
        assert_eq!(world.replica.image[last], other[last]);
    }
    later(&mut world, &mut capture).unwrap();
    assert_eq!(capture.snapshots(), 4);
}

/// Checkpoints, ours and the application's, those that did not get to the end, backups and VACUUMs go through SQLite.
#[test]
fn database_overwritten_is_not_what_checkpoints_look_like() {
    let (mut world, database) = World::with(4096, "INCREMENTAL");
    let mut settings = world.settings();
    (settings.checkpoint_pages, settings.truncate_pages) = (20, 100);
    let mut capture = world.start_with(settings);
    let mut random = fastrand::Rng::with_seed(1);
    let reader = world.connect();
    let source = Connection::open_in_memory().unwrap();
    source.execute_batch("PRAGMA page_size=4096; CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)").unwrap();
    for round in 0..150 {
        if round % 20 == 3 {
            reader.execute_batch("BEGIN").unwrap();
            reader.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
        } else if round % 20 == 9 {
            reader.execute_batch("COMMIT").unwrap();
        }
        crate::processes::write_something(&database, &mut random);
        if round % 10 == 5 {
            insert(&source, 3, 3000);
            let mut target = world.connect();
            rusqlite::backup::Backup::new(&source, &mut target)
                .unwrap()
                .run_to_completion(100, std::time::Duration::ZERO, None)
                .unwrap();
        }
        if random.bool() {
            checkpoint(&database, ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][random.usize(0..4)]);
        }
        if random.bool() {
            world.replica.take(capture.checkpoint_if_due().unwrap());
        }
        later(&mut world, &mut capture).unwrap();
    }
    world.pass(&mut capture, &database);
    assert_eq!(capture.snapshots(), 1);
}
