//! Real processes, stopped and killed: an application that we capture, and ourselves.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use litestream_replicate::{Capture, Error};
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Replica, World, connect, insert, left_out, settings};

const ROLE: &str = "LITESTREAM_REPLICATE_TEST_ROLE";
const DATABASE: &str = "LITESTREAM_REPLICATE_TEST_DATABASE";

/// A child that plays a role on a database until it is killed.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(role: &str, path: &Path) -> Self {
        Self::run(Command::new(std::env::current_exe().unwrap()), role, path, Stdio::null())
    }

    /// One that is told what to do, and answers.
    pub(crate) fn start_to_talk(role: &str, path: &Path) -> (Self, ChildStdin, ChildStdout) {
        let mut process = Self::run(Command::new(std::env::current_exe().unwrap()), role, path, Stdio::piped());
        let (stdin, stdout) = (process.0.stdin.take(), process.0.stdout.take());
        (process, stdin.unwrap(), stdout.unwrap())
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Stops it wherever it is, every thread of it.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.0.id());
        wait_for("to stop", || {
            // It needs the processor for that, which it may have to share with us.
            std::thread::park_timeout(Duration::from_micros(200));
            std::fs::read_dir(&tasks).unwrap().all(|task| {
                let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
                stat.rsplit_once(") ").unwrap().1.starts_with('T')
            })
        });
    }

    pub(crate) fn kill(self) {
        drop(self);
    }

    /// The same where nobody else sees what it mounts; `None` where that is not permitted.
    pub(crate) fn start_with_mounts(role: &str, path: &Path) -> Option<Self> {
        let permitted = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
        if !permitted.is_ok_and(|status| status.success()) {
            left_out("mounting is not permitted (`unshare -m`)");
            return None;
        }
        let mut command = Command::new("unshare");
        command.arg("-m").arg(std::env::current_exe().unwrap());
        Some(Self::run(command, role, path, Stdio::null()))
    }

    /// The same with more in its environment.
    pub(crate) fn start_under(role: &str, path: &Path, environment: &[(&str, &PathBuf)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.envs(environment.iter().copied());
        Self::run(command, role, path, Stdio::null())
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Waits until it has done what it had to, and has found nothing wrong.
    pub(crate) fn succeeds(mut self) {
        let mut status = None;
        wait_for("a child to end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success());
    }

    fn run(mut command: Command, role: &str, path: &Path, stdout: Stdio) -> Self {
        command.args(["--exact", "processes::what_a_child_does", "--nocapture"]);
        command.env(ROLE, role).env(DATABASE, path).stdin(Stdio::piped()).stdout(stdout);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Waits for something that is sure to come.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Not a test by itself: what the others start.
#[test]
fn what_a_child_does() {
    let (Ok(role), Some(path)) = (std::env::var(ROLE), std::env::var_os(DATABASE)) else { return };
    if role == "frugal" {
        return crate::resting::hold_many();
    }
    // Whoever started this is gone when its end of the pipe is.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let path = PathBuf::from(path);
    let seed = u64::from(std::process::id());
    match role.as_str() {
        "application" => application(&path, seed),
        "capture" => capture(&path, seed),
        "leisurely" => crate::application::write_now_and_then(&path, seed),
        "mounted alone" => crate::table::mounted_alone(&path),
        "obeys" => crate::disk::obey(&path),
        "our fsyncs fail" => crate::disk::our_fsyncs_fail(),
        "captures" => crate::untouched::capture_until_done(&path, false),
        "captures and checkpoints" => crate::untouched::capture_until_done(&path, true),
        "hasty" => crate::untouched::hasty(&path, Duration::ZERO),
        "patient for a second" => crate::untouched::hasty(&path, Duration::from_secs(1)),
        "disk full" => crate::disk::disk_full(),
        role => crate::table::application(role, &path),
    }
}

/// An ordinary program: it writes, checkpoints as it likes, and minds nobody.
fn application(path: &Path, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let database = connect(path);
    database.busy_timeout(Duration::from_secs(60)).unwrap();
    if random.bool() {
        database.pragma_update(None, "synchronous", "FULL").unwrap();
    }
    loop {
        write_something(&database, &mut random);
        if random.u8(0..30) == 0 {
            let kind = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][random.usize(0..4)];
            let sql = format!("PRAGMA wal_checkpoint({kind})");
            database.query_row(&sql, [], |_| Ok(())).unwrap();
        }
    }
}

/// One transaction; the database stays small, so that it is soon compared.
pub(crate) fn write_something(database: &Connection, random: &mut fastrand::Rng) {
    let rows: i64 = database.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    let sql = match random.u32(0..40) {
        0 => "VACUUM".to_owned(),
        1 => "CREATE TABLE IF NOT EXISTS u AS SELECT * FROM t".to_owned(),
        2 => "DROP TABLE IF EXISTS u".to_owned(),
        3 => "PRAGMA incremental_vacuum(9)".to_owned(),
        _ if rows > 150 => format!("DELETE FROM t WHERE id % 2 = {}", random.u8(0..2)),
        4..15 => format!("UPDATE t SET body = randomblob({}) WHERE id % 7 = 3", random.u32(1..3000)),
        _ => format!("INSERT INTO t (body) VALUES (randomblob({}))", random.u32(1..9000)),
    };
    database.execute_batch(&sql).unwrap();
}

/// We, as a daemon that never uploads, so that all that was ever captured lies in the folder.
fn capture(path: &Path, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut settings = settings(path);
    (settings.checkpoint_pages, settings.truncate_pages, settings.cut) = (40, 200, 100_000);
    settings.large = random.u64(0..2);
    let mut time = 0;
    let clock = Box::new(move || {
        time += 1;
        ltx::Timestamp(time)
    });
    let (mut capture, _) = Capture::start(settings, clock, &mut Replica::default()).unwrap();
    loop {
        let result = match random.u8(0..8) {
            0 => capture.checkpoint_if_due(),
            _ => capture.pass(),
        };
        if let Err(error) = result {
            assert!(error.is_busy(), "{error}");
        }
    }
}

/// Starts, however often a lock is in the way.
pub(crate) fn start(world: &mut World) -> Capture {
    let mut started = None;
    wait_for("to start", || match Capture::start(world.settings(), world.clock(), &mut world.replica) {
        Ok((capture, staged)) => {
            world.replica.take(staged);
            started = Some(capture);
            true
        }
        Err(error) => {
            assert!(error.is_busy() || matches!(error, Error::Unsettled { .. }), "{error}");
            false
        }
    });
    started.unwrap()
}

/// An application in another process is stopped in the middle of whatever it does, and killed and started again. At each pause the replica
/// is its database, and no snapshot was ever needed.
#[test]
fn an_application_that_is_stopped_and_killed() {
    let (mut world, database) = World::with(4096, "INCREMENTAL");
    let mut capture = world.start();
    let mut random = fastrand::Rng::with_seed(7);
    let mut compared = 0;
    while compared < 15 {
        let application = Process::start("application", &world.path);
        for _ in 0..random.u32(1..8) {
            for _ in 0..random.u32(1..12) {
                let files = world.replica.files;
                // Nothing can come while it stands still over a lock.
                wait_for("something to capture", || {
                    world.time.fetch_add(200, Ordering::Relaxed);
                    let staged = if random.u8(0..9) == 0 { capture.checkpoint_if_due() } else { capture.pass() };
                    world.replica.take(staged.unwrap());
                    world.replica.files > files
                });
            }
            world.time.fetch_add(1_000, Ordering::Relaxed);
            application.pause();
            // It may have stopped while it publishes a transaction: then nobody can read.
            match capture.pass() {
                Ok(staged) => {
                    world.replica.take(staged);
                    world.replica.check(&database);
                    compared += 1;
                }
                Err(error) => assert!(error.is_busy() || matches!(error, Error::Unsettled { .. }), "{error}"),
            }
            application.signal(Signal::CONT);
        }
        application.kill();
        // Whatever it left in the log stands still.
        for _ in 0..5 {
            world.time.fetch_add(1_000, Ordering::Relaxed);
            world.pass(&mut capture, &database);
        }
    }
    assert_eq!(capture.snapshots(), 1);
}

/// We are killed between any two steps, beside an application that never stops: each time we go on, and all that ever lay in the folder is
/// the database.
#[test]
fn we_are_killed_again_and_again() {
    let (mut world, database) = World::with_database(4096);
    let mut random = fastrand::Rng::with_seed(11);
    let folder = world.own("ltx/0");
    let files = || std::fs::read_dir(&folder).map_or(0, Iterator::count);
    let mut kept = 0;
    for round in 0..25 {
        let application = (round % 3 > 0).then(|| Process::start("application", &world.path));
        let ourselves = Process::start("capture", &world.path);
        let enough = files() + random.usize(1..12);
        if application.is_none() {
            wait_for("the first pass", || {
                write_something(&database, &mut random);
                files() >= enough
            });
        } else {
            wait_for("files", || files() >= enough);
        }
        for _ in 0..random.u32(0..30_000) {
            std::hint::spin_loop();
        }
        ourselves.kill();
        if let Some(application) = application {
            application.kill();
        }
        if random.bool() {
            write_something(&database, &mut random);
        }
        // All that is in the folder, from the first transaction on.
        world.replica = Replica::default();
        let mut capture = start(&mut world);
        kept += u32::from(capture.snapshots() == 0);
        world.pass(&mut capture, &database);
        if random.bool() {
            insert(&database, 1, 100);
            world.replica.take(capture.stop().unwrap());
            world.replica.check(&database);
        }
    }
    assert!(kept > 5, "gone on with {kept} times");
}
