//! What a daemon asks for: a snapshot, a digest to compare a restored database with, other settings, several replicas.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use litestream_replicate::{Capture, Newest, Remote};
use ltx::{PageSize, Txid};

use crate::common::{Raised, Replica, World, checkpoint, connect, frames, insert};
use crate::processes::{wait_for, write_something};

#[test]
fn a_snapshot_that_is_asked_for_holds_everything_and_is_the_next_txid() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    insert(&database, 20, 2000);
    for _ in 0..2 {
        // Of what was not captured yet there is a file of its own.
        let staged = capture.snapshot_now("it was asked for").unwrap();
        let last = staged.last().unwrap().clone();
        assert!(last.complete);
        // A replica that begins with it has everything, and so has one that had all before.
        let newest = Newest { txid: Txid(last.txid.0 - 1), checksum: None, time: None };
        let mut fresh = Replica::behind(newest);
        fresh.take(vec![last]);
        fresh.check(&database);
        world.replica.take(staged);
        world.replica.check(&database);
        assert_eq!(capture.pass().unwrap(), [], "nothing is new behind it");
        checkpoint(&database, "RESTART");
        world.pass(&mut capture, &database);
        insert(&database, 5, 500);
        world.pass(&mut capture, &database);
    }
    assert_eq!(capture.snapshots(), 1, "none of them was for want of a proof");
    world.replica.take(capture.stop().unwrap());
    let capture = world.start();
    assert_eq!(capture.snapshots(), 0);
}

/// An empty log, one that is in the file, one that is not: with a writer in between, and none.
#[test]
fn a_digest_is_that_of_the_last_txid() {
    for (number, page_size) in (0..).zip(PageSize::ALL) {
        let (mut world, database) = World::with(page_size.get(), "INCREMENTAL");
        let mut random = fastrand::Rng::with_seed(number);
        let mut capture = world.start();
        for round in 0..12 {
            for _ in 0..random.u32(0..6) {
                write_something(&database, &mut random);
            }
            if round % 3 > 0 {
                checkpoint(&database, ["PASSIVE", "TRUNCATE"][round % 3 - 1]);
            }
            if round % 2 > 0 {
                world.pass(&mut capture, &database);
            }
            let digest = capture.digest().unwrap();
            world.replica.take(capture.pass().unwrap());
            assert_eq!((digest.txid(), digest.page_size()), (world.replica.newest.unwrap().txid, page_size));
            assert_eq!(digest.commit().bytes(page_size) as usize, world.replica.image.len());
            assert_eq!(digest.compare(world.replica.image.as_slice()).unwrap(), []);
        }
    }
}

#[test]
fn a_digest_tells_which_pages_differ() {
    let (mut world, database) = World::with_database(512);
    insert(&database, 20, 2000);
    let mut capture = world.start();
    let digest = capture.digest().unwrap();
    let image = world.replica.image.clone();
    let pages = |image: &[u8]| digest.compare(image).unwrap().iter().map(|pgno| pgno.get()).collect::<Vec<_>>();
    assert_eq!(pages(&image), [0; 0]);
    let mut other = image.clone();
    (other[511], other[512 * 7]) = (other[511] ^ 1, other[512 * 7] ^ 128);
    assert_eq!(pages(&other), [1, 8]);
    let last = (image.len() / 512) as u32;
    assert_eq!(pages(&image[..image.len() - 1]), [last]);
    assert_eq!(pages(&image[..image.len() - 1024]), [last - 1, last]);
    assert_eq!(pages(&[image.as_slice(), &[0]].concat()), [last + 1]);
    let mut swapped = image.clone();
    swapped[1024..2048].copy_from_slice(&[&image[1536..2048], &image[1024..1536]].concat());
    assert_eq!(pages(&swapped), [3, 4], "a page counts in its place only");
    // The page at 1 GiB belongs to nobody.
    assert_eq!(digest, capture.digest().unwrap());
}

#[test]
fn digests_and_snapshots_beside_a_writer_that_never_pauses() {
    let (mut world, database) = World::with(1024, "INCREMENTAL");
    let mut settings = world.settings();
    (settings.checkpoint_pages, settings.truncate_pages) = (200, 400);
    let mut capture = world.start_with(settings);
    let (stop, path) = (AtomicBool::new(false), world.path.clone());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (database, mut random) = (connect(&path), fastrand::Rng::with_seed(5));
            while !stop.load(Ordering::Relaxed) {
                write_something(&database, &mut random);
                if random.u8(0..10) == 0 {
                    checkpoint(&database, ["PASSIVE", "RESTART", "TRUNCATE"][random.usize(0..3)]);
                }
            }
        });
        let _stopped = Raised(&stop);
        for round in 0..60 {
            let files = world.replica.files;
            wait_for("something new", || {
                world.replica.take(capture.pass().unwrap());
                world.replica.take(capture.checkpoint_if_due().unwrap());
                world.replica.files > files || writer.is_finished()
            });
            if round % 3 == 0 {
                world.replica.take(capture.snapshot_now("it was asked for").unwrap());
            }
            let digest = capture.digest().unwrap();
            let mut compared = false;
            let mut compare = |replica: &Replica| {
                if replica.newest.unwrap().txid == digest.txid() {
                    assert_eq!(digest.compare(replica.image.as_slice()).unwrap(), []);
                    compared = true;
                }
            };
            compare(&world.replica);
            // What came while it was made is in the files behind it.
            for staged in capture.pass().unwrap() {
                world.replica.take(vec![staged]);
                compare(&world.replica);
            }
            assert!(compared);
        }
    });
    world.pass(&mut capture, &database);
    assert_eq!(capture.snapshots(), 1);
}

#[test]
fn what_is_ours_lies_where_it_is_told_to() {
    let (mut world, database) = World::with_database(4096);
    assert_eq!(world.settings().meta_path, world.own("").parent().unwrap().join(".db-litestream"));
    let mut settings = world.settings();
    settings.meta_path = world.path.with_file_name("else/where/it is");
    let mut capture = world.start_with(settings.clone());
    insert(&database, 3, 300);
    world.pass(&mut capture, &database);
    assert!(!world.own("").exists());
    assert!(settings.meta_path.join("state").exists());
    drop(capture);
    assert_eq!(world.start_with(settings).snapshots(), 0);
}

#[test]
fn nothing_is_done_for_a_limit_of_zero() {
    let (mut world, database) = World::with_database(4096);
    let mut settings = world.settings();
    (settings.cut, settings.truncate_pages, settings.checkpoint_interval) = (0, 0, Duration::ZERO);
    let mut capture = world.start_with(settings);
    for _ in 0..5 {
        insert(&database, 20, 4000);
    }
    let files = world.replica.files;
    world.pass(&mut capture, &database);
    assert_eq!(world.replica.files, files + 1, "it is never cut");
    world.time.fetch_add(i64::MAX / 4, Ordering::Relaxed);
    assert_eq!(capture.checkpoint_if_due().unwrap(), []);
    assert_eq!(checkpoint(&world.connect(), "NOOP").2, 0, "it is not copied for time's sake");
    insert(&database, 1100, 4000);
    let salts = world.salts();
    world.replica.take(capture.checkpoint_if_due().unwrap());
    assert!(checkpoint(&world.connect(), "NOOP").2 > 1000, "it is copied for its length");
    assert!(frames(&world.wal()) > 1000 && world.salts() == salts, "but not emptied");
    world.pass(&mut capture, &database);
}

/// The most advanced of several replicas, and up to where all of them are.
struct Several(Option<Newest>, Txid);

impl Remote for Several {
    fn newest(&mut self) -> Result<Option<Newest>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0)
    }

    fn floor(&mut self) -> Txid {
        self.1
    }
}

#[test]
fn what_another_replica_lacks_is_kept_and_handed_out() {
    let (mut world, database) = World::with_database(4096);
    let mut capture = world.start();
    for _ in 0..6 {
        insert(&database, 3, 300);
        world.pass(&mut capture, &database);
    }
    let newest = world.replica.newest;
    assert_eq!(newest.unwrap().txid, Txid(7));
    drop(capture);
    let start = |newest, floor, expected: std::ops::Range<u64>| {
        let (capture, staged) =
            Capture::start(world.settings(), world.clock(), &mut Several(newest, Txid(floor))).unwrap();
        let txids: Vec<_> = staged.iter().map(|staged| staged.txid.0).collect();
        assert_eq!(txids, expected.collect::<Vec<_>>(), "floor {floor}");
        assert_eq!(capture.snapshots(), 0, "floor {floor}");
        let left = std::fs::read_dir(world.own("ltx/0")).unwrap().count();
        assert_eq!(left, txids.len());
        capture
    };
    // Another one is empty, or behind by a few.
    drop(start(newest, 0, 1..8));
    drop(start(newest, 3, 4..8));
    // A hole between it and what is here is no doubt of what is captured.
    drop(start(newest, 1, 4..8));
    let mut capture = start(newest, 5, 6..8);
    capture.uploaded(Txid(6)).unwrap();
    drop(capture);
    drop(start(newest, 6, 7..8));
    // None is further than the most advanced one.
    drop(start(Some(Newest { txid: Txid(6), checksum: None, time: None }), 9, 7..8));
    drop(start(newest, 7, 8..8));
    // Where nothing else is said, the floor is what the most advanced one holds.
    assert_eq!(world.replica.floor(), Txid(7));
    assert_eq!(Replica::default().floor(), Txid::ZERO);
}
