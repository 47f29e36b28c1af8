//! What could be restored inside the window still can be after files have gone, and the newest state always can.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use litestream_pageindex::compact::next_inputs;
use litestream_pageindex::retention::{RetentionPolicy, expired};
use litestream_pageindex::{Cutoff, Listing, Plan, Target};
use litestream_storage::memory::MemoryBackend;
use litestream_storage::{FileInfo, Level, ObjectInfo, Replica, RetryPolicy};
use ltx::{FileName, Timestamp, Txid};
use proptest::prelude::*;

const SECOND: i64 = 1_000;
const HOUR: i64 = 3_600 * SECOND;

fn level(number: u8) -> Level {
    Level::new(number).unwrap()
}

/// A file as a listing shows it. In this model the time in a file is its `time`, and the store got it then or later.
fn file(number: u8, min: u64, max: u64, time: i64, modified: i64) -> FileInfo {
    let name = FileName::new(Txid(min), Txid(max));
    let object = ObjectInfo {
        key: format!("{number:04x}/{name}").into(),
        size: 1,
        etag: None,
        modified: Timestamp(modified),
        time: Some(Timestamp(time)),
    };
    FileInfo { level: level(number), name, object }
}

fn replica() -> Replica {
    Replica::new(MemoryBackend::new("test").into(), RetryPolicy::default())
}

fn without(listing: &Listing, gone: &[FileInfo]) -> Listing {
    Listing::of(listing.files().filter(|file| !gone.contains(file)).cloned())
}

/// How far a restore to just before `moment` gets.
fn reach_before(replica: &Replica, listing: &Listing, moment: i64) -> Option<Txid> {
    let before = |file: &&FileInfo| file.object.time.unwrap() < Timestamp(moment);
    let admitted = Listing::of(listing.files().filter(before).cloned());
    // The files after the moment are gone from this listing, so that a gap at its end shows as the newest state's.
    let all = admitted.files().map(|file| file.name.max).collect::<BTreeSet<_>>();
    let possible = |txid: &&Txid| Plan::new(replica, &admitted, Target::Txid(**txid), Cutoff::NONE).is_ok();
    all.iter().rev().find(possible).copied()
}

fn restorable(replica: &Replica, listing: &Listing, txid: Txid) -> bool {
    Plan::new(replica, listing, Target::Txid(txid), Cutoff::NONE).is_ok()
}

fn newest(replica: &Replica, listing: &Listing) -> Option<Plan> {
    Plan::new(replica, listing, Target::Latest, Cutoff::NONE).ok()
}

fn names(files: &[FileInfo]) -> Vec<(u8, u64, u64)> {
    files.iter().map(|file| (file.level.get(), file.name.min.0, file.name.max.0)).collect()
}

fn expire(files: &[FileInfo], now: i64) -> Vec<(u8, u64, u64)> {
    names(&expired(&Listing::of(files.to_vec()), &RetentionPolicy::default(), Timestamp(now)))
}

/// A replica's life: a writer that syncs, compacts, takes snapshots and applies retention, each at its own odd times.
#[derive(Clone, Debug)]
enum Step {
    Sync(u8),
    Wait(i64),
    Compact(u8),
    Snapshot,
    Retain,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1u8..6).prop_map(Step::Sync),
        4 => (1i64..1_500).prop_map(|seconds| Step::Wait(seconds * SECOND)),
        2 => (1i64..14).prop_map(|hours| Step::Wait(hours * HOUR)),
        5 => Just(Step::Compact(1)),
        2 => Just(Step::Compact(2)),
        1 => Just(Step::Compact(3)),
        2 => Just(Step::Snapshot),
        2 => Just(Step::Retain),
    ];
    proptest::collection::vec(step, 1..60)
}

#[derive(Debug)]
struct Life {
    replica: Replica,
    now: i64,
    txid: u64,
    /// How much later than the time in it the store dates a file.
    late: i64,
    listing: Listing,
    /// What restores of the newest state read, and when each was planned.
    plans: Vec<(i64, Vec<FileInfo>)>,
}

impl Life {
    fn new(late: i64) -> Self {
        Self {
            replica: replica(),
            now: 1_700_000_000_000,
            txid: 0,
            late,
            listing: Listing::default(),
            plans: Vec::new(),
        }
    }

    fn add(&mut self, number: u8, min: u64, max: u64, time: i64) {
        let new = file(number, min, max, time, self.now + self.late);
        self.listing = Listing::of(self.listing.files().cloned().chain([new]));
    }

    fn step(&mut self, step: &Step) {
        self.now += 1;
        match step {
            Step::Sync(count) => {
                for _ in 0..*count {
                    self.now += 7;
                    self.txid += 1;
                    self.add(0, self.txid, self.txid, self.now);
                }
            }
            Step::Wait(millis) => self.now += millis,
            Step::Compact(number) => {
                let inputs = next_inputs(&self.listing, level(*number));
                if let (Some(first), Some(last)) = (inputs.first(), inputs.last()) {
                    let time = last.object.time.unwrap().0;
                    self.add(*number, first.name.min.0, last.name.max.0, time);
                }
            }
            Step::Snapshot => {
                if self.listing.reach(Level::SNAPSHOT).unwrap_or_default() < Txid(self.txid) {
                    // Made by Litestream: it carries the time when it was taken.
                    self.add(9, 1, self.txid, self.now);
                }
            }
            Step::Retain => self.retain(),
        }
        self.plans.extend(newest(&self.replica, &self.listing).map(|plan| (self.now, plan.files)));
    }

    /// Applies the rules and checks the promise.
    fn retain(&mut self) {
        let policy = RetentionPolicy::default();
        let gone = expired(&self.listing, &policy, Timestamp(self.now));
        let after = without(&self.listing, &gone);
        self.check(&after, &policy);
        let start = self.now - policy.l0.as_millis() as i64;
        self.plans.retain(|(planned, _)| *planned >= start);
        for (planned, files) in &self.plans {
            assert!(!files.iter().any(|file| gone.contains(file)), "it was planned {} ms ago", self.now - planned);
        }
        // A deletion that breaks off half way keeps the promise as well.
        self.check(&without(&self.listing, &gone[..gone.len() / 2]), &policy);
        assert_eq!(self.listing.newest_txid(), after.newest_txid());
        for level in Level::all() {
            assert_eq!(self.listing.reach(level), after.reach(level), "level {level} keeps its newest file");
        }
        self.listing = after;
    }

    fn check(&self, after: &Listing, policy: &RetentionPolicy) {
        let before = &self.listing;
        if before.is_empty() {
            return;
        }
        assert_eq!(newest(&self.replica, before).unwrap().txid, newest(&self.replica, after).unwrap().txid);
        // The promise at the grain of level 1: what levels 1 to 9 gave is still given. Level 0 may only add to it.
        let coarse = Listing::of(before.files().filter(|file| file.level > Level::ZERO).cloned());
        let start = self.now - policy.snapshots.as_millis() as i64;
        let times = before.files().flat_map(|file| [0, 1].map(|add| file.object.time.unwrap().0 + add));
        for moment in times.chain([start]).filter(|moment| (start..=self.now).contains(moment)) {
            let least = reach_before(&self.replica, &coarse, moment);
            let has = reach_before(&self.replica, after, moment);
            assert!(has >= least, "{moment}: want {least:?}, has {has:?}");
        }
        for file in coarse.files().filter(|file| file.object.time.unwrap().0 >= start) {
            if restorable(&self.replica, &coarse, file.name.max) {
                assert!(restorable(&self.replica, after, file.name.max), "{file} could be restored");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_lies_in_the_window_stays_restorable(steps in steps(), late in prop_oneof![Just(0), 1..20_000i64]) {
        let mut life = Life::new(late);
        for step in &steps {
            life.step(step);
        }
        life.retain();
    }

    /// Whatever lies in a replica: nothing that is needed for the newest state goes.
    #[test]
    fn the_newest_state_survives_any_listing(
        raw in proptest::collection::vec((0u8..10, 1u64..20, 0u64..8, 0i64..100), 0..40),
        now in 0i64..130,
    ) {
        let files = raw.into_iter().map(|(number, min, len, hours)| {
            let min = if number == 9 { 1 } else { min };
            file(number, min, min + len, hours * HOUR, hours * HOUR)
        });
        let listing = Listing::of(files);
        let now = Timestamp(now * HOUR);
        let after = without(&listing, &expired(&listing, &RetentionPolicy::default(), now));
        let plan = |listing| newest(&replica(), listing).map(|plan| plan.txid);
        prop_assert_eq!(plan(&listing), plan(&after));
        let again = expired(&after, &RetentionPolicy::default(), now);
        prop_assert!(!again.iter().any(|file| file.level == Level::SNAPSHOT), "one pass suffices: {again:?}");
    }
}

#[test]
fn without_a_snapshot_nothing_goes() {
    let files =
        [file(0, 5, 5, 0, 0), file(0, 6, 6, 0, 0), file(0, 7, 7, 0, 0), file(1, 5, 6, 0, 0), file(1, 7, 7, 0, 0)];
    assert_eq!(expire(&files, 1_000 * HOUR), []);
    assert_eq!(expire(&[], 0), []);
}

#[test]
fn level_0_goes_once_it_is_covered_and_old() {
    let minutes = |minutes: i64| minutes * 60 * SECOND;
    let zero: Vec<_> = (1..=6).map(|txid| file(0, txid, txid, 0, minutes(txid as i64))).collect();
    let with = |more: &[FileInfo]| [&zero[..], more].concat();
    let one = file(1, 1, 4, 0, minutes(4));
    assert_eq!(expire(&zero, HOUR), [], "not covered");
    assert_eq!(expire(&with(std::slice::from_ref(&one)), HOUR), [(0, 1, 1), (0, 2, 2), (0, 3, 3), (0, 4, 4)]);
    assert_eq!(expire(&with(&[file(1, 1, 4, 0, 0)]), minutes(7) - 1), [(0, 1, 1)], "2 is nearly old enough");
    let all = file(1, 5, 6, 0, minutes(6));
    let kept = expire(&with(&[one, all]), HOUR);
    assert_eq!(kept.last(), Some(&(0, 5, 5)), "the newest stays");
    let hole = [file(1, 1, 2, 0, 0), file(1, 4, 6, 0, 0)];
    assert_eq!(expire(&with(&hole), HOUR), [(0, 1, 1), (0, 2, 2), (0, 4, 4), (0, 5, 5)], "3 is in no file of level 1");

    let mut young = zero.clone();
    young[1].object.modified = Timestamp(HOUR);
    young.push(file(1, 1, 6, 0, 0));
    assert_eq!(expire(&young, HOUR), [(0, 1, 1)], "stops at the first that is too young");
}

#[test]
fn snapshots_go_when_a_newer_one_is_older_than_the_window() {
    let snapshot = |max, hours: i64| file(9, 1, max, hours * HOUR, hours * HOUR);
    let three = [snapshot(10, 0), snapshot(20, 24), snapshot(30, 48)];
    assert_eq!(expire(&three, 24 * HOUR), []);
    assert_eq!(expire(&three, 48 * HOUR), [], "20 is exactly as old as the window");
    assert_eq!(expire(&three, 48 * HOUR + 1), [(9, 1, 10)]);
    assert_eq!(expire(&three, 1_000 * HOUR), [(9, 1, 10), (9, 1, 20)], "the newest stays, however old");

    let levels =
        [file(1, 1, 9, 0, 0), file(1, 10, 19, 0, 0), file(1, 20, 20, 0, 0), file(1, 21, 30, 0, 0), file(2, 1, 9, 0, 0)];
    let files = [&three[..], &levels].concat();
    assert_eq!(expire(&files, 24 * HOUR), [], "the window may still rest on what was before the first snapshot");
    assert_eq!(
        expire(&files, 48 * HOUR + 1),
        [(1, 1, 9), (1, 10, 19), (9, 1, 10)],
        "what ends with the snapshot stays; so does a level's only file"
    );
}

#[test]
fn a_snapshot_whose_date_contradicts_its_txid_stays() {
    let files = [file(9, 1, 10, 0, 90 * HOUR), file(9, 1, 20, 0, 0), file(1, 11, 15, 0, 0), file(1, 16, 30, 0, 0)];
    assert_eq!(expire(&files, 100 * HOUR), []);
}

#[test]
fn endless_windows_keep_everything() {
    let policy = RetentionPolicy { l0: Duration::MAX, snapshots: Duration::MAX };
    let listing = Listing::of([file(9, 1, 1, 0, 0), file(9, 1, 2, 0, 0), file(0, 1, 1, 0, 0), file(1, 1, 2, 0, 0)]);
    assert_eq!(expired(&listing, &policy, Timestamp(i64::MAX)), []);
}

#[test]
fn level_0_stays_as_long_after_it_was_merged() {
    let minute = 60 * SECOND;
    // The store was away: all is old when it is merged.
    let zero: Vec<_> = (1..=4).map(|txid| file(0, txid, txid, 0, 0)).collect();
    let files = [&zero[..], &[file(1, 1, 1, 0, 28 * minute), file(1, 2, 3, 0, 30 * minute)]].concat();
    assert_eq!(expire(&files, 33 * minute - 1), []);
    assert_eq!(expire(&files, 33 * minute), [(0, 1, 1)]);
    assert_eq!(expire(&files, 35 * minute - 1), [(0, 1, 1)]);
    assert_eq!(expire(&files, 35 * minute), [(0, 1, 1), (0, 2, 2), (0, 3, 3)]);

    // One that lies in two, one in a file inside another, and one that reaches beyond.
    let zero = [file(0, 1, 4, 0, 0), file(0, 5, 5, 0, 0), file(0, 6, 8, 0, 0), file(0, 9, 9, 0, 0)];
    let one = [file(1, 1, 2, 0, 10 * minute), file(1, 3, 7, 0, 20 * minute), file(1, 4, 4, 0, 30 * minute)];
    let files = [&zero[..], &one].concat();
    assert_eq!(expire(&files, 34 * minute), [], "1-4 is in the youngest, too");
    assert_eq!(expire(&files, 35 * minute), [(0, 1, 4), (0, 5, 5)]);
}
