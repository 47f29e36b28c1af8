//! A database that rests: no connection is open, nothing is lost, and it costs next to nothing.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use litestream_replicate::{Capture, Error, NotNow, Resting, Seen, Settings, Watch};
use nix::fcntl::{FcntlArg, fcntl};
use rustix::process::Signal;

use crate::application::{open_files, wake, world};
use crate::common::{Replica, World, beside, frames, read};
use crate::obedient::Application;
use crate::processes::{Process, wait_for};

/// Whatever an application does while its database rests, waking finds it.
#[test]
fn nothing_that_is_committed_while_a_database_rests_is_lost() {
    let mut world = world();
    let mut capture = world.start();
    let mut application = Application::open(&world.path);
    let path = world.path.clone();
    let restart = |application: Application| {
        application.kill();
        Application::open(&path)
    };
    for round in 0..20 {
        let resting = world.rest(capture);
        match round % 10 {
            // Nothing at all, or nothing that counts.
            0 => assert!(!resting.changed().unwrap()),
            1 => {
                application.run("BEGIN IMMEDIATE");
                application.insert(300);
                application = restart(application);
            }
            // The log begins anew with the first transaction.
            2 => application.insert(3),
            3 => {
                application.insert(400);
                application.run("DELETE FROM t WHERE id % 3 > 0");
                application.run("VACUUM");
            }
            // It is emptied, several times.
            4 => {
                for _ in 0..3 {
                    assert!(application.checkpoint("TRUNCATE"));
                }
                application.insert(2);
                assert!(!application.checkpoint("PASSIVE") || frames(&world.wal()) > 0);
            }
            5 => {
                assert!(application.checkpoint("TRUNCATE"));
                application = restart(application);
            }
            // Killed, opened and closed again and again.
            6 => {
                for _ in 0..4 {
                    application.insert(3);
                    application = restart(application);
                    application.insert(3);
                    application.close();
                    application = Application::open(&path);
                }
            }
            7 => {
                assert!(application.checkpoint("RESTART"));
                application.run("BEGIN IMMEDIATE");
                application.insert(300);
                application = restart(application);
                application.insert(1);
            }
            8 => {
                application.run("UPDATE t SET body = randomblob(10)");
                for kind in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
                    application.checkpoint(kind);
                    application.insert(1);
                }
            }
            _ => {
                application.close();
                application = Application::open(&path);
                application.run("CREATE TABLE IF NOT EXISTS other (a)");
            }
        }
        capture = world.wake(resting);
    }
    assert_eq!(capture.snapshots(), 1);
    application.insert(1);
    let database = world.connect();
    world.pass(&mut capture, &database);
}

#[test]
fn another_process_cannot_reset_a_log_that_has_something_new_in_it() {
    let mut world = world();
    let capture = world.start();
    let mut application = Application::open(&world.path);
    let resting = world.rest(capture);
    application.insert(3);
    let (salts, known) = (world.salts(), frames(&world.wal()));
    application.run("PRAGMA busy_timeout=0");
    for kind in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        let done = application.checkpoint(kind);
        assert!(!done || kind == "PASSIVE", "{kind}");
        application.insert(1);
        assert_eq!(world.salts(), salts, "{kind} began the log anew");
        assert!(frames(&world.wal()) > known);
    }
    assert!(resting.changed().unwrap());
    let mut capture = world.wake(resting);
    // Awake, it may go on as ever.
    wait_for("a checkpoint", || {
        world.replica.take(capture.pass().unwrap());
        application.checkpoint("TRUNCATE")
    });
    application.insert(1);
    let database = world.connect();
    world.pass(&mut capture, &database);
    assert_eq!(capture.snapshots(), 1);
}

/// The last connection that is closed copies the log and deletes it. While a database rests it is not the last.
#[test]
fn the_last_to_leave_does_not_take_the_log_with_it() {
    let mut world = world();
    let mut settings = world.settings();
    settings.truncate_when_alone = true;
    let capture = world.start_with(settings);
    let mut application = Application::open(&world.path);
    let resting = world.rest(capture);
    assert!(!resting.is_left_alone());
    application.insert(4);
    application.close();
    assert!(frames(&world.wal()) > 0, "the log is still there");
    resting.check_files().unwrap();
    assert!(resting.is_left_alone());
    let mut capture = world.wake(resting);
    // It would shadow a file that is put in its place by hand.
    world.replica.take(capture.checkpoint_if_due().unwrap());
    assert!(read(&world.wal()).is_empty());
    let resting = world.rest(capture);
    assert!(!resting.is_left_alone(), "nothing is left that could shadow it");
    Application::open(&world.path).insert(3);
    let capture = world.wake(resting);
    assert_eq!(capture.snapshots(), 1);
}

#[test]
fn rest_is_refused_where_it_would_lose_something() {
    let mut world = world();
    let mut capture = world.start();
    let mut application = Application::open(&world.path);
    let refused = |capture: Capture| {
        let refused = capture.rest().unwrap_err();
        (refused.unharmed, refused.why)
    };
    application.insert(1);
    let why;
    (capture, why) = refused(capture);
    assert!(matches!(why, NotNow::Uncaptured), "{why}");
    world.replica.take(capture.pass().unwrap());
    let why;
    (capture, why) = refused(capture);
    assert!(matches!(why, NotNow::NotCopied), "{why}");
    // A reader keeps the log from being copied.
    application.run("BEGIN");
    application.run("SELECT count(*) FROM t");
    let mut other = Application::open(&world.path);
    other.insert(1);
    other.checkpoint("PASSIVE");
    world.replica.take(capture.pass().unwrap());
    let why;
    (capture, why) = refused(capture);
    assert!(matches!(why, NotNow::NotCopied), "{why}");
    application.run("COMMIT");
    other.checkpoint("PASSIVE");
    // Somebody is copying just now. The descriptor stays open: to close it would take SQLite's locks.
    #[expect(clippy::disallowed_methods, reason = "it is never closed")]
    let index = std::fs::OpenOptions::new().read(true).write(true).open(beside(&world.path, "-shm")).unwrap();
    let index = std::mem::ManuallyDrop::new(index);
    let lock = |kind| {
        let lock = nix::libc::flock { l_type: kind as i16, l_whence: 0, l_start: 123, l_len: 1, l_pid: 0 };
        fcntl(&*index, FcntlArg::F_OFD_SETLK(&lock))
    };
    world.replica.take(capture.pass().unwrap());
    assert!(lock(nix::libc::F_WRLCK).is_err(), "our transaction relies on the file, and nobody can copy");
    // A transaction that reads from the log lets it be copied.
    application.insert(1);
    let database = world.connect();
    world.pass(&mut capture, &database);
    other.checkpoint("PASSIVE");
    lock(nix::libc::F_WRLCK).unwrap();
    let why;
    (capture, why) = refused(capture);
    assert!(matches!(why, NotNow::Busy), "{why}");
    // Unharmed, it goes on.
    application.insert(1);
    world.pass(&mut capture, &database);
    lock(nix::libc::F_UNLCK).unwrap();
    other.checkpoint("PASSIVE");
    world.pass(&mut capture, &database);
    // A writer that has committed nothing is in nobody's way.
    application.run("BEGIN IMMEDIATE");
    application.insert(1);
    let resting = capture.rest().unwrap();
    application.run("COMMIT");
    let capture = world.wake(resting);
    assert_eq!(capture.snapshots(), 1);
}

/// While it is awake no more than once a moment, an application writes now and then, and is stopped and killed.
#[test]
fn it_rests_and_wakes_two_hundred_times_beside_a_writer() {
    let (mut world, database) = World::with(4096, "INCREMENTAL");
    drop(database);
    let mut settings = world.settings();
    settings.checkpoint_pages = 1;
    let mut capture = world.start_with(settings);
    let mut random = fastrand::Rng::with_seed(5);
    let (mut rested, mut found, mut compared) = (0, 0, 0);
    let mut application = Process::start("leisurely", &world.path);
    while rested < 200 {
        world.replica.take(capture.pass().unwrap());
        world.replica.take(capture.checkpoint_if_due().unwrap());
        let resting = match capture.rest() {
            Ok(resting) => resting,
            Err(refused) => {
                let retry = matches!(refused.why, NotNow::Uncaptured | NotNow::NotCopied | NotNow::Busy);
                assert!(retry || matches!(refused.why, NotNow::Failed(Error::Unsettled { .. })), "{}", refused.why);
                capture = refused.unharmed;
                // A checkpoint that was not complete is tried again after a while.
                world.time.fetch_add(61_000, Ordering::Relaxed);
                std::thread::park_timeout(Duration::from_micros(200));
                continue;
            }
        };
        rested += 1;
        if random.u8(0..4) > 0 {
            wait_for("something to be written", || {
                std::thread::park_timeout(Duration::from_micros(200));
                resting.changed().unwrap()
            });
        }
        std::thread::park_timeout(Duration::from_micros(random.u64(0..6_000)));
        if random.u8(0..12) == 0 {
            application.kill();
            if random.bool() {
                world.connect().execute_batch("INSERT INTO t (body) VALUES (randomblob(9999))").unwrap();
            }
            application = Process::start("leisurely", &world.path);
        }
        found += u32::from(resting.changed().unwrap());
        capture = wake(resting, &world);
        if rested % 20 == 0 {
            application.pause();
            if let Ok(staged) = capture.pass() {
                world.replica.take(staged);
                world.replica.check(&world.connect());
                compared += 1;
            }
            application.signal(Signal::CONT);
        }
    }
    application.kill();
    let database = world.connect();
    world.pass(&mut capture, &database);
    assert_eq!(capture.snapshots(), 1);
    assert!(found > 100 && compared > 0, "{found} found something, {compared} compared");
}

#[test]
fn a_database_that_rests_has_two_descriptors_and_none_when_it_is_let_go() {
    for end in 0..3 {
        let mut world = world();
        let mut settings = world.settings();
        settings.alone_in_process = true;
        let capture = world.start_with(settings.clone());
        // Twice the database and its log, for our connections; once more all three, for us; and the index, which SQLite opens once.
        assert!(open_files(&world).len() <= 8);
        let resting = world.rest(capture);
        assert_eq!(open_files(&world), ["db", "db-shm"]);
        let watch = resting.watch().unwrap();
        assert_eq!(open_files(&world), ["db", "db-shm"]);
        drop(watch);
        match end {
            0 => drop(resting),
            1 => assert_eq!(resting.stop(world.clock()).unwrap(), []),
            _ => {
                Application::open(&world.path).insert(1);
                world.replica.take(resting.stop(world.clock()).unwrap());
                assert_eq!(open_files(&world), Vec::<String>::new());
                world.replica.check(&world.connect());
            }
        }
        assert_eq!(open_files(&world), Vec::<String>::new());
        // And so it is for one that was awake, and for one whose start failed.
        drop(world.start_with(settings.clone()));
        assert_eq!(open_files(&world), Vec::<String>::new());
        crate::common::write(&world.own("ltx/0/x"), b"");
        let database = world.connect();
        database.pragma_update(None, "journal_mode", "delete").unwrap();
        drop(database);
        let failed = Capture::start(settings, world.clock(), &mut world.replica).unwrap_err();
        assert!(matches!(failed, Error::NotWal(_)), "{failed}");
        assert_eq!(open_files(&world), Vec::<String>::new());
    }
}

/// A second capture of one database in one process, by whatever name: it is refused, and what it lets go of the first one keeps.
#[test]
fn two_of_one_process_do_not_take_each_others_locks() {
    let mut world = world();
    let mut settings = world.settings();
    settings.alone_in_process = true;
    let first = world.start_with(settings.clone());
    let first = world.rest(first);
    settings.database = world.path.with_file_name("link");
    std::os::unix::fs::symlink(&world.path, &settings.database).unwrap();
    let refused = Capture::start(settings, world.clock(), &mut world.replica).unwrap_err();
    assert!(matches!(refused, Error::Replicated(_)), "{refused}");
    assert_eq!(open_files(&world), ["db", "db-shm"]);
    let mut application = Application::open(&world.path);
    application.insert(2);
    application.checkpoint("PASSIVE");
    application.insert(2);
    application.close();
    world.wake(first);
}

#[test]
fn a_watch_sees_what_a_pass_would_find() {
    fn any_thread<T: Send + Sync + Clone>(_: &T) {}
    let mut world = world();
    let mut capture = world.start();
    let watch = capture.watch().unwrap();
    any_thread(&watch);
    assert!(size_of::<(Watch, Seen)>() <= 80, "{}", size_of::<(Watch, Seen)>());
    let mut application = Application::open(&world.path);
    let database = world.connect();
    for _ in 0..3 {
        assert!(!watch.changed(&capture.seen()));
        assert!(!watch.checkpointer_waiting());
        application.insert(1);
        assert!(watch.changed(&capture.seen()));
        world.pass(&mut capture, &database);
        assert!(!watch.changed(&capture.seen()));
        let resting = world.rest(capture);
        assert!(!watch.changed(&resting.seen()));
        assert!(!resting.watch().unwrap().changed(&resting.seen()));
        application.insert(1);
        assert!(watch.changed(&resting.seen()));
        capture = world.wake(resting);
        assert!(!watch.changed(&capture.seen()));
        let seen = capture.seen();
        assert!(application.checkpoint("TRUNCATE") || application.checkpoint("PASSIVE"));
        world.replica.take(capture.pass().unwrap());
        assert!(!watch.changed(&capture.seen()));
        assert!(!watch.changed(&seen) || seen != capture.seen());
    }
}

#[test]
fn files_that_were_deleted_or_replaced_while_it_rested_are_noticed() {
    for name in ["", "-wal", "-shm"] {
        let mut world = world();
        let capture = world.start();
        let resting = world.rest(capture);
        let path = beside(&world.path, name);
        let aside = beside(&path, "-aside");
        std::fs::rename(&path, &aside).unwrap();
        let refused = resting.wake(world.clock()).unwrap_err();
        assert!(matches!(refused.why, Error::Replaced(_) | Error::Deleted(_)), "{}", refused.why);
        refused.unharmed.check_files().unwrap_err();
        std::fs::rename(&aside, &path).unwrap();
        world.wake(refused.unharmed);
    }
}

/// The memory that a hundred live connections have.
pub(crate) fn hold_many() {
    assert!(litestream_replicate::frugal(), "nothing has used SQLite yet");
    let memory = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let databases: Vec<_> = (0..101).map(|_| world()).collect();
    assert!(!litestream_replicate::frugal(), "it is too late");
    let start = |world: &World| {
        let settings = Settings::new(&world.path);
        Capture::start(settings, world.clock(), &mut Replica::default()).unwrap().0
    };
    let mut captures = vec![start(&databases[0])];
    let before = memory();
    captures.extend(databases[1..].iter().map(start));
    println!("> ok {}", (memory() - before) / 200);
}

#[test]
fn a_live_connection_costs_little_memory() {
    let (_child, _orders, answers) = Process::start_to_talk("frugal", &PathBuf::from("/nowhere"));
    let lines = BufReader::new(answers).lines();
    let kib = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("> ok ")?.1.parse::<u64>().unwrap()));
    let kib = kib.unwrap();
    println!("{kib} KiB for a connection");
    assert!(kib <= 32, "{kib} KiB, and what goes with it");
}

#[test]
fn a_database_that_rests_costs_next_to_no_memory() {
    println!("{} bytes", size_of::<Resting>());
    assert!(size_of::<Resting>() <= 600, "{} bytes", size_of::<Resting>());
}
