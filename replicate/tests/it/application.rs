//! An application in a process of its own, and a database that rests beside it.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use litestream_replicate::{Capture, Error, Resting};
use rusqlite::Connection;

use crate::common::{World, insert};
use crate::processes::wait_for;

/// An application that is idle most of the time.
pub(crate) fn write_now_and_then(path: &Path, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let database = Connection::open(path).unwrap();
    database.busy_timeout(Duration::from_secs(60)).unwrap();
    database.pragma_update(None, "synchronous", "OFF").unwrap();
    loop {
        for _ in 0..random.u32(1..4) {
            let sql = match random.u8(0..60) {
                0 => "VACUUM",
                1..8 => "DELETE FROM t WHERE random() % 3 = 0",
                8..30 => "UPDATE t SET body = randomblob(700) WHERE id % 5 = 2",
                _ => "INSERT INTO t (body) VALUES (randomblob(3000))",
            };
            database.execute_batch(sql).unwrap();
        }
        if random.u8(0..4) == 0 {
            let kind = ["PASSIVE", "TRUNCATE", "RESTART"][random.usize(0..3)];
            database.busy_timeout(Duration::ZERO).unwrap();
            let sql = format!("PRAGMA wal_checkpoint({kind})");
            database.query_row(&sql, [], |_| Ok(())).unwrap();
            database.busy_timeout(Duration::from_secs(60)).unwrap();
        }
        std::thread::park_timeout(Duration::from_micros(random.u64(0..20_000)));
    }
}

/// A world with a database that no connection in this process has open.
pub(crate) fn world() -> World {
    let (world, database) = World::with_database(4096);
    insert(&database, 5, 2000);
    drop(database);
    world
}

impl World {
    /// Captures all, copies it, and rests.
    pub(crate) fn rest(&mut self, mut capture: Capture) -> Resting {
        for _ in 0..2 {
            self.replica.take(capture.pass().unwrap());
            self.replica.take(capture.checkpoint_if_due().unwrap());
            self.time.fetch_add(61_000, Ordering::Relaxed);
        }
        self.replica.take(capture.pass().unwrap());
        capture.rest().map_err(|refused| refused.why).unwrap()
    }

    /// Wakes, and captures what came meanwhile: the replica is the database then, and no snapshot was needed.
    pub(crate) fn wake(&mut self, resting: Resting) -> Capture {
        let before = resting.snapshots();
        let mut capture = resting.wake(self.clock()).map_err(|refused| refused.why).unwrap();
        let database = self.connect();
        self.pass(&mut capture, &database);
        assert_eq!(capture.snapshots(), before, "there was always a hold");
        capture
    }
}

/// Wakes, however often a lock is in the way.
pub(crate) fn wake(resting: Resting, world: &World) -> Capture {
    let mut woken = Some(resting.wake(world.clock()));
    wait_for("to wake", || {
        if let Some(Err(refused)) = woken.take_if(|woken| woken.is_err()) {
            let why = refused.why;
            assert!(why.is_busy() || matches!(why, Error::Unsettled { .. }), "{why}");
            woken = Some(refused.unharmed.wake(world.clock()));
        }
        woken.as_ref().is_some_and(Result::is_ok)
    });
    woken.unwrap().unwrap()
}

/// What of a folder this process has open, by name.
pub(crate) fn open_files(world: &World) -> Vec<String> {
    let folder = world.path.parent().unwrap();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let paths = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let mut names: Vec<_> =
        paths.filter_map(|path| Some(path.strip_prefix(folder).ok()?.to_str()?.to_owned())).collect();
    names.sort();
    names
}
