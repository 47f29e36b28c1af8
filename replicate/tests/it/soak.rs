//! Everything at once, for a few seconds: writers, checkpoints of every kind, and a capture that is stopped, killed and started again.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::common::{World, checkpoint, connect};
use crate::processes::{start, write_something};

fn soak(seed: u64, seconds: u64, large: u64) {
    let (mut world, database) = World::with(1024, "INCREMENTAL");
    world.large = large;
    let (stop, commits, logs) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    // Whoever writes holds it shared; who compares holds it alone.
    let pause = RwLock::new(());
    let (mut compared, mut rested) = (0, 0);
    let path = world.path.clone();
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (path, stop, commits, pause) = (&path, &stop, &commits, &pause);
            scope.spawn(move || {
                let database = connect(path);
                let mut random = fastrand::Rng::with_seed(seed ^ writer);
                while !stop.load(Ordering::Relaxed) {
                    let _writing = pause.read().unwrap();
                    write_something(&database, &mut random);
                    commits.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (path, stopped, begun, paused) = (&path, &stop, &logs, &pause);
        scope.spawn(move || {
            let database = connect(path);
            let mut random = fastrand::Rng::with_seed(seed ^ 99);
            while !stopped.load(Ordering::Relaxed) {
                let _writing = paused.read().unwrap();
                let (done, ..) = checkpoint(&database, ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][random.usize(0..4)]);
                begun.fetch_add(u32::from(done), Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
        let mut random = fastrand::Rng::with_seed(seed ^ 1234);
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut capture = start(&mut world);
        let check = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while Instant::now() < deadline {
                // The files are looked at as well.
                world.time.fetch_add(random.i64(0..400), Ordering::Relaxed);
                match random.u32(0..100) {
                    0..3 => {
                        world.replica.take(capture.stop().unwrap());
                        let quiet = random.bool().then(|| pause.write().unwrap());
                        capture = start(&mut world);
                        drop(quiet);
                    }
                    3..6 => {
                        drop(capture);
                        capture = start(&mut world);
                    }
                    6..12 => {
                        let _quiet = pause.write().unwrap();
                        let before = capture.snapshots();
                        world.pass(&mut capture, &database);
                        assert_eq!(capture.snapshots(), before);
                        compared += 1;
                    }
                    12..20 => {
                        let before = capture.snapshots();
                        world.replica.take(capture.checkpoint_if_due().unwrap());
                        capture = match capture.rest() {
                            Ok(resting) => {
                                rested += 1;
                                std::thread::park_timeout(Duration::from_micros(random.u64(0..3_000)));
                                crate::application::wake(resting, &world)
                            }
                            Err(refused) => refused.unharmed,
                        };
                        world.replica.take(capture.pass().unwrap());
                        assert_eq!(capture.snapshots(), before, "a snapshot although it only rested");
                    }
                    20..30 => world.replica.take(capture.checkpoint_if_due().unwrap()),
                    _ => {
                        let before = capture.snapshots();
                        world.replica.take(capture.pass().unwrap());
                        assert_eq!(capture.snapshots(), before, "a snapshot while a hold lasted");
                    }
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = check {
            std::panic::resume_unwind(panic);
        }
    });
    let (commits, logs) = (commits.into_inner(), logs.into_inner());
    assert!(compared > 3 && commits > 100, "compared {compared} times, {commits} commits");
    println!(
        "seed {seed}: {commits} commits, {logs} checkpoints done, {} files, compared {compared} times, rested {rested} times",
        world.replica.files
    );
}

fn run(large: u64) {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    soak(std::env::var("SOAK_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(3), seconds, large);
}

/// The same, with every snapshot made as that of a large database is.
#[test]
fn writers_checkpoints_and_snapshots_that_let_the_log_begin_anew() {
    run(1);
}

#[test]
fn writers_checkpoints_and_a_capture_that_is_stopped_and_killed() {
    run(0);
}
