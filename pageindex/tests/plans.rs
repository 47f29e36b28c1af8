//! A plan is found wherever there is one, reaches what was asked for, and is refused in words that help where there is none.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use litestream_pageindex::{Cutoff, Error, Listing, MAX_REPLANS, Plan, Target, find, replan};
use litestream_storage::memory::MemoryBackend;
use litestream_storage::{Body, FileInfo, Level, ObjectInfo, Replica, RetryPolicy};
use ltx::{Commit, Encoder, FileName, Header, PageSize, Pgno, Timestamp, Txid};
use proptest::prelude::*;

fn level(number: u8) -> Level {
    Level::new(number).unwrap()
}

fn file(number: u8, min: u64, max: u64) -> FileInfo {
    let name = FileName::new(Txid(min), Txid(max));
    let key = format!("{number:04x}/{name}").into();
    let object = ObjectInfo { key, size: 1, etag: None, modified: Timestamp(0), time: None };
    FileInfo { level: level(number), name, object }
}

fn listing(files: &[(u8, u64, u64)]) -> Listing {
    Listing::of(files.iter().map(|(number, min, max)| file(*number, *min, *max)))
}

fn replica() -> Replica {
    Replica::new(MemoryBackend::new("test").into(), RetryPolicy::default())
}

fn plan(files: &[(u8, u64, u64)], target: Target) -> Result<Vec<(u8, u64, u64)>, Error> {
    Ok(names(&Plan::new(&replica(), &listing(files), target, Cutoff::NONE)?))
}

fn names(plan: &Plan) -> Vec<(u8, u64, u64)> {
    plan.files.iter().map(|file| (file.level.get(), file.name.min.0, file.name.max.0)).collect()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// The naive model: every TXID that some chain of files from TXID 1 on ends with, none of them beyond `limit`.
fn reachable(files: &[(u8, u64, u64)], limit: u64) -> BTreeSet<u64> {
    let mut reached = BTreeSet::from([0]);
    loop {
        let goes_on = |min: u64, max: u64| reached.iter().any(|have| min <= have + 1 && max > *have);
        let found: Vec<u64> = files
            .iter()
            .filter(|(_, min, max)| *max <= limit && !reached.contains(max) && goes_on(*min, *max))
            .map(|(_, _, max)| *max)
            .collect();
        if found.is_empty() {
            return reached;
        }
        reached.extend(found);
    }
}

fn check_chain(files: &[(u8, u64, u64)], target: u64) {
    assert_eq!(files[0].1, 1, "begins with a snapshot");
    assert!(files[1..].iter().all(|(_, min, _)| *min != 1), "what comes before a snapshot is dropped: {files:?}");
    for pair in files.windows(2) {
        assert!(pair[1].1 <= pair[0].2 + 1 && pair[1].2 > pair[0].2, "{pair:?}");
    }
    assert_eq!(files[files.len() - 1].2, target);
}

fn listings() -> impl Strategy<Value = Vec<(u8, u64, u64)>> {
    let file = prop_oneof![
        6 => (1u64..24).prop_map(|txid| (0, txid, txid)),
        4 => (1u8..9, 1u64..24, 0u64..9).prop_map(|(level, min, len)| (level, min, min + len)),
        1 => (1u64..24).prop_map(|max| (9, 1, max)),
    ];
    proptest::collection::vec(file, 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_for_a_txid_is_found_wherever_a_chain_exists(files in listings(), txid in 1u64..34) {
        let reachable = reachable(&files, txid);
        match plan(&files, Target::Txid(Txid(txid))) {
            Ok(chain) => {
                prop_assert!(reachable.contains(&txid), "{chain:?}");
                check_chain(&chain, txid);
                prop_assert!(chain.iter().all(|file| files.contains(file)));
            }
            Err(Error::NoBackup { .. }) => prop_assert!(files.is_empty()),
            Err(Error::TransactionNotAvailable { below, above, .. }) => {
                prop_assert!(!reachable.contains(&txid));
                let nearest = reachable.last().copied().filter(|below| *below != 0);
                prop_assert_eq!(below, nearest.map(Txid));
                prop_assert_eq!(above, files.iter().map(|file| Txid(file.2)).filter(|max| max.0 > txid).min());
            }
            Err(error) => prop_assert!(false, "{error}"),
        }
    }

    #[test]
    fn the_newest_state_is_all_there_is_or_a_gap(files in listings()) {
        let reached = reachable(&files, u64::MAX).last().copied().unwrap();
        let next = files.iter().filter(|file| file.2 > reached).map(|file| file.1).min();
        match plan(&files, Target::Latest) {
            Ok(chain) => {
                prop_assert_eq!(next, None);
                check_chain(&chain, reached);
            }
            Err(Error::NoBackup { .. }) => prop_assert!(files.is_empty()),
            Err(Error::NonContiguous { have, next: found, .. }) => {
                prop_assert_eq!((have, Some(found)), (Txid(reached), next.map(Txid)));
            }
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}

#[test]
fn each_way_to_have_no_plan_is_named() {
    assert!(matches!(plan(&[], Target::Latest), Err(Error::NoBackup { .. })));
    assert!(matches!(plan(&[], Target::Txid(Txid(1))), Err(Error::NoBackup { .. })));

    let headless = [(0, 4, 4), (1, 3, 4)];
    let error = plan(&headless, Target::Latest).unwrap_err();
    assert!(matches!(error, Error::NonContiguous { have: Txid::ZERO, next: Txid(3), .. }), "{error}");

    let gap = [(9, 1, 5), (0, 6, 6), (0, 8, 8), (1, 9, 12)];
    let error = plan(&gap, Target::Latest).unwrap_err();
    assert!(matches!(error, Error::NonContiguous { have: Txid(6), next: Txid(8), .. }), "{error}");
    assert!(error.to_string().contains("transactions 0000000000000007 to 0000000000000007 are missing"), "{error}");

    let error = plan(&gap, Target::Txid(Txid(7))).unwrap_err();
    let (below, above) = (Some(Txid(6)), Some(Txid(8)));
    assert!(matches!(&error, Error::TransactionNotAvailable { below: b, above: a, .. } if (*b, *a) == (below, above)));
    assert!(error.to_string().contains("0000000000000006 and 0000000000000008"), "{error}");
    let error = plan(&gap, Target::Txid(Txid(3))).unwrap_err();
    assert!(matches!(error, Error::TransactionNotAvailable { below: None, above: Some(Txid(5)), .. }), "{error}");
    let error = plan(&[(0, 1, 1)], Target::Txid(Txid(2))).unwrap_err();
    assert!(matches!(error, Error::TransactionNotAvailable { below: Some(Txid(1)), above: None, .. }), "{error}");
}

#[test]
fn the_fewest_and_highest_files_are_taken() {
    let files = [(9, 1, 10), (9, 1, 20), (0, 21, 21), (0, 22, 22), (1, 21, 22), (2, 21, 22), (1, 15, 24), (0, 25, 25)];
    assert_eq!(plan(&files, Target::Latest).unwrap(), [(9, 1, 20), (1, 15, 24), (0, 25, 25)]);
    assert_eq!(plan(&files, Target::Txid(Txid(22))).unwrap(), [(9, 1, 20), (2, 21, 22)], "of equals the highest level");
    assert_eq!(plan(&files, Target::Txid(Txid(21))).unwrap(), [(9, 1, 20), (0, 21, 21)]);
    assert_eq!(plan(&files, Target::Txid(Txid(10))).unwrap(), [(9, 1, 10)]);
}

#[test]
fn a_file_from_txid_1_replaces_what_was_chosen_before_it() {
    let files = [(9, 1, 1), (3, 1, 6), (0, 7, 7)];
    assert_eq!(plan(&files, Target::Latest).unwrap(), [(3, 1, 6), (0, 7, 7)]);
    let without_snapshot = [(0, 1, 1), (0, 2, 2), (1, 1, 4), (0, 5, 5)];
    assert_eq!(plan(&without_snapshot, Target::Latest).unwrap(), [(1, 1, 4), (0, 5, 5)]);
}

#[test]
fn another_plan_for_a_lone_snapshot_ends_with_other_files() {
    let all = listing(&[(9, 1, 3), (9, 1, 5), (0, 4, 4), (0, 5, 5)]);
    let replica = replica();
    let plan = Plan::new(&replica, &all, Target::Latest, Cutoff::NONE).unwrap();
    assert_eq!(names(&plan), [(9, 1, 5)]);
    let other = plan.without_lone_snapshot(&replica, &all).unwrap();
    assert_eq!(names(&other), [(9, 1, 3), (0, 4, 4), (0, 5, 5)]);
    assert_eq!(other.without_lone_snapshot(&replica, &all), None, "it is not alone");
}

/// Puts a real file whose header has this time.
async fn put(replica: &Replica, number: u8, min: u64, max: u64, time: i64) -> FileInfo {
    let page_size = PageSize::ALL[0];
    let header = Header::new(page_size, Commit(1), Txid(min), Txid(max), Timestamp(time));
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    encoder.page(Pgno::ONE, &vec![0; page_size.bytes()]).unwrap();
    let body = Body::Bytes(encoder.finish().unwrap().0.into());
    replica.put_file(level(number), FileName::new(Txid(min), Txid(max)), body, Timestamp(time)).await.unwrap()
}

/// How far off the store's own dates are.
type Dates = fn(usize, i64) -> i64;

#[test]
fn times_are_found_in_few_requests_however_wrong_the_dates_are() {
    const FILES: usize = 700;
    let dates: [(&str, u64, Dates); 5] = [
        ("exact", 16, |_, time| time),
        ("a little late", 16, |_, time| time + 40),
        ("far too late", 64, |_, time| time + 50_000),
        ("all alike, as after a copy", 64, |_, _| 0),
        ("without any order", 64, |at, _| (at as i64 * 7_919) % 70_000),
    ];
    run(async {
        for (what, limit, date) in dates {
            let replica = replica();
            let mut files = Vec::new();
            for at in 0..FILES {
                // Every fifth comes at the same time as the one before.
                let time = (at - usize::from(at % 5 == 4)) as i64 * 100;
                let mut info = put(&replica, 0, at as u64 + 1, at as u64 + 1, time).await;
                info.object.modified = Timestamp(date(at, time));
                files.push((info, time));
            }
            let listing = Listing::of(files.iter().map(|(info, _)| info.clone()));
            for moment in (-50..FILES as i64 * 100 + 200).step_by(1_050).chain([0, 1, 300, 301, 69_800, 69_801]) {
                let before = replica.stats().gets;
                let cutoff = Cutoff::before(&replica, &listing, Timestamp(moment)).await.unwrap();
                let gets = replica.stats().gets - before;
                let expected = files.iter().filter(|(_, time)| *time < moment).count();
                let admitted = listing.level(Level::ZERO).iter().filter(|file| cutoff.admits(file)).count();
                assert_eq!(admitted, expected, "{what}: {moment}");
                assert!(gets <= limit, "{what}: {gets} requests for {moment}");
            }
        }
    });
}

#[test]
fn a_moment_gives_the_newest_state_strictly_before_it() {
    run(async {
        let replica = replica();
        put(&replica, 9, 1, 10, 1_000).await;
        for txid in 14..=20 {
            put(&replica, 0, txid, txid, 1_000 + 100 * (txid as i64 - 10)).await;
        }
        put(&replica, 1, 11, 18, 1_800).await;
        let reached = async |moment| find(&replica, Target::Before(Timestamp(moment))).await.map(|(plan, _)| plan.txid);

        let error = reached(1_000).await.unwrap_err();
        let (moment, first) = (Timestamp(1_000), Timestamp(1_000));
        assert!(
            matches!(error, Error::TooEarly { target, oldest, .. } if (target, oldest) == (moment, first)),
            "{error}"
        );
        assert_eq!(reached(1_001).await.unwrap(), Txid(10));
        // 14 to 17 lie before the moment, but the file that leads to them does not: no gap, and no way.
        assert_eq!(reached(1_750).await.unwrap(), Txid(10));
        assert_eq!(reached(1_800).await.unwrap(), Txid(10));
        assert_eq!(reached(1_801).await.unwrap(), Txid(18));
        assert_eq!(reached(1_901).await.unwrap(), Txid(19));
        assert_eq!(reached(9_999).await.unwrap(), Txid(20), "after the newest file: the newest state");

        // A real gap: nothing at all leads on from 20.
        put(&replica, 0, 22, 22, 2_200).await;
        let error = reached(2_500).await.unwrap_err();
        assert!(matches!(error, Error::NonContiguous { have: Txid(20), next: Txid(22), .. }), "{error}");
    });
}

#[test]
fn an_empty_replica_has_no_backup_at_any_time() {
    run(async {
        for target in [Target::Latest, Target::Txid(Txid(1)), Target::Before(Timestamp(5))] {
            let error = find(&replica(), target).await.unwrap_err();
            assert!(matches!(error, Error::NoBackup { .. }), "{target:?}: {error}");
        }
    });
}

#[test]
fn a_plan_whose_files_vanish_is_made_again_for_the_same_txid() {
    run(async {
        let replica = replica();
        put(&replica, 9, 1, 2, 0).await;
        let three = put(&replica, 0, 3, 3, 0).await;
        let mut plans = Vec::new();
        let done = replan(&replica, Target::Latest, |plan, _| {
            plans.push(names(&plan));
            let (replica, three, first) = (replica.clone(), three.clone(), plans.len() == 1);
            async move {
                if first {
                    // Compaction, retention and a new transaction while the plan is being used.
                    put(&replica, 1, 3, 3, 0).await;
                    put(&replica, 0, 4, 4, 0).await;
                    replica.delete(std::slice::from_ref(&three)).await?;
                    replica.get_file(&three).await?;
                }
                Ok::<_, Error>(plan.txid)
            }
        });
        assert_eq!(done.await.unwrap(), Txid(3));
        assert_eq!(plans, [vec![(9, 1, 2), (0, 3, 3)], vec![(9, 1, 2), (1, 3, 3)]]);

        let mut tries = 0;
        let endless = replan(&replica, Target::Latest, |_, _| {
            tries += 1;
            let (replica, three) = (replica.clone(), three.clone());
            async move { Ok::<_, Error>(replica.get_file(&three).await?) }
        });
        let error = endless.await.unwrap_err();
        assert!(matches!(error, Error::Vanishing { txid: Txid(4), .. }), "{error}");
        assert_eq!(tries, MAX_REPLANS + 1);
    });
}

#[test]
fn a_time_is_kept_where_files_overlap() {
    run(async {
        let replica = replica();
        let times = [(1, 3, 300), (4, 4, 400), (4, 9, 900), (5, 8, 800)];
        let mut files = Vec::new();
        for (min, max, time) in times {
            files.push(put(&replica, 1, min, max, time).await);
        }
        let listing = Listing::of(files);
        for (moment, last) in [(300, 0), (301, 3), (401, 4), (850, 8), (900, 8), (901, 9)] {
            let cutoff = Cutoff::before(&replica, &listing, Timestamp(moment)).await.unwrap();
            let plan = Plan::new(&replica, &listing, Target::Before(Timestamp(moment)), cutoff);
            let reached = plan.map_or(0, |plan| plan.txid.0);
            assert_eq!(reached, last, "before {moment}");
        }
    });
}

#[test]
fn a_damaged_file_that_no_plan_needs_does_not_hide_a_time() {
    run(async {
        let replica = replica();
        let mut files = Vec::new();
        for txid in 1..=20 {
            files.push(put(&replica, 0, txid, txid, txid as i64 * 1_000).await);
        }
        // Its header cannot be read any more.
        let key = files[15].key().to_owned();
        replica.delete(&files[15..16]).await.unwrap();
        replica.put(&key, Body::Bytes("damaged".into()), &Default::default()).await.unwrap();
        let listing = Listing::full(&replica).await.unwrap();
        let cutoff = Cutoff::before(&replica, &listing, Timestamp(10_500)).await.unwrap();
        let plan = Plan::new(&replica, &listing, Target::Before(Timestamp(10_500)), cutoff).unwrap();
        assert_eq!(plan.txid, Txid(10));
    });
}
