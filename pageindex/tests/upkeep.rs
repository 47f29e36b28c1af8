//! A replica is kept small on time, for no request more than that needs, and nothing that a restore may ask for is lost by it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime};

use litestream_fixtures::s3::{FaultKind, Faults, Operation, S3Options, S3Server};
use litestream_pageindex::compact::{MergeOptions, merge};
use litestream_pageindex::retention::RetentionPolicy;
use litestream_pageindex::upkeep::{Kept, Schedule, Upkeep};
use litestream_pageindex::{Cutoff, Error, Listing, Plan, Target, find};
use litestream_storage::config::ReplicaConfig;
use litestream_storage::{Body, FileInfo, Level, Replica, RetryPolicy};
use ltx::{Commit, Decoder, Encoder, FileName, Header, PageSize, Pgno, Timestamp, Txid};

const BUCKET: &str = "bkt";
const PAGES: u32 = 3;
const START: i64 = 1_700_000_000_000;
const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

/// A store, a database's replica in it, and a clock that both go by.
struct Site {
    server: S3Server,
    replica: Replica,
    scratch: tempfile::TempDir,
    now: i64,
    txid: u64,
    /// Keys whose date has been set.
    dated: HashSet<String>,
}

impl Site {
    async fn new() -> Self {
        let server = S3Server::start(S3Options::default()).unwrap();
        server.create_bucket(BUCKET);
        let mut config = ReplicaConfig::from_url(&format!("s3://{BUCKET}/db?endpoint={}", server.endpoint())).unwrap();
        config.set("access-key-id", server.access_key()).unwrap();
        config.set("secret-access-key", server.secret_key()).unwrap();
        // What fails, fails at once.
        let policy = RetryPolicy { attempts: 1, first_byte: seconds(30), ..RetryPolicy::default() };
        let replica = litestream_storage::open(&config, policy).await.unwrap();
        let scratch = tempfile::tempdir().unwrap();
        Self { server, replica, scratch, now: START, txid: 0, dated: HashSet::new() }
    }

    fn newest(&self) -> Txid {
        Txid(self.txid)
    }

    /// Writes the next transaction to the replica.
    async fn write(&mut self) -> FileInfo {
        self.txid += 1;
        let (txid, time) = (self.newest(), Timestamp(self.now));
        let header = Header::new(PageSize::new(512).unwrap(), Commit(PAGES), txid, txid, time);
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for pgno in (1..=PAGES).filter(|pgno| is_written(*pgno, self.txid)) {
            encoder.page(Pgno::new(pgno).unwrap(), &page(self.txid)).unwrap();
        }
        let body = Body::Bytes(encoder.finish().unwrap().0.into());
        let file = self.replica.put_file(Level::ZERO, FileName::new(txid, txid), body, time).await.unwrap();
        self.date();
        file
    }

    async fn write_many(&mut self, count: u64, upkeep: &mut Upkeep) {
        for _ in 0..count {
            upkeep.put(self.write().await);
        }
    }

    /// What is new in the store came now.
    fn date(&mut self) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(self.now.unsigned_abs());
        for key in self.server.keys(BUCKET) {
            if !self.dated.contains(&key) {
                self.server.set_last_modified(BUCKET, &key, now);
                self.dated.insert(key);
            }
        }
    }

    async fn try_step(&mut self, upkeep: &mut Upkeep) -> Result<Kept, Error> {
        let now = self.now;
        let outcome = upkeep.step(&self.replica, self.newest(), &|| Timestamp(now), self.scratch.path()).await;
        self.date();
        assert_eq!(std::fs::read_dir(self.scratch.path()).unwrap().count(), 0, "scratch is empty again");
        outcome
    }

    async fn step(&mut self, upkeep: &mut Upkeep) -> Kept {
        self.try_step(upkeep).await.unwrap()
    }

    /// Nothing happens at this moment, and nothing is asked.
    async fn rests(&mut self, upkeep: &mut Upkeep) {
        self.server.reset_stats();
        assert_eq!(self.step(upkeep).await, Kept::default());
        assert_eq!(self.server.stats().total, 0, "at {} s", (self.now - START) / SECOND);
    }

    /// The TXIDs of a level's files.
    fn level(&self, level: u8) -> Vec<(u64, u64)> {
        let prefix = format!("db/{level:04x}/");
        let keys = self.server.keys(BUCKET);
        let names = keys.iter().filter_map(|key| key.strip_prefix(&prefix)?.parse::<FileName>().ok());
        names.map(|name| (name.min.0, name.max.0)).collect()
    }

    fn key(&self, level: u8, min: u64, max: u64) -> String {
        self.replica.key(Level::new(level).unwrap(), FileName::new(Txid(min), Txid(max)))
    }

    /// Goes on to when something is due.
    fn wait_for(&mut self, upkeep: &Upkeep) {
        self.now = upkeep.due(self.newest()).unwrap().0;
    }

    async fn check_newest(&self) {
        let (plan, _) = find(&self.replica, Target::Latest).await.unwrap();
        assert_eq!(plan.txid, self.newest());
        self.check(&plan).await;
    }

    /// That a plan gives just what its transactions wrote.
    async fn check(&self, plan: &Plan) {
        let output = tempfile::tempdir().unwrap();
        let output = output.path().join("out.ltx");
        merge(&self.replica, &plan.files, &output, &MergeOptions::default()).await.unwrap();
        let bytes = std::fs::read(&output).unwrap();
        let mut decoder = Decoder::new(bytes.as_slice()).unwrap();
        let (mut found, mut page_) = (BTreeMap::new(), vec![0; 512]);
        while let Some(pgno) = decoder.next_page(&mut page_).unwrap() {
            found.insert(pgno.get(), page_.clone());
        }
        let by = |pgno: u32| (1..=plan.txid.0).rev().find(|txid| is_written(pgno, *txid)).unwrap();
        let expected: BTreeMap<u32, Vec<u8>> = (1..=PAGES).map(|pgno| (pgno, page(by(pgno)))).collect();
        assert!(found == expected, "{}", plan.txid);
    }
}

fn is_written(pgno: u32, txid: u64) -> bool {
    txid == 1 || txid % u64::from(PAGES) + 1 == u64::from(pgno)
}

fn page(txid: u64) -> Vec<u8> {
    txid.to_be_bytes().repeat(64)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Three levels and snapshots; nothing is ever old enough to go.
fn schedule() -> Schedule {
    Schedule {
        levels: [30, 90, 270].map(seconds).to_vec(),
        snapshots: seconds(900),
        retention: RetentionPolicy { l0: Duration::MAX, snapshots: Duration::MAX },
        deletes: true,
    }
}

/// One level, and level 0 goes as soon as it may.
fn eager() -> Schedule {
    let retention = RetentionPolicy { l0: Duration::ZERO, snapshots: seconds(24 * 3_600) };
    Schedule { levels: vec![seconds(30)], retention, ..Schedule::default() }
}

fn fail(server: &S3Server, operation: Operation) {
    let only = move |request: &litestream_fixtures::s3::RequestInfo| request.operation == operation;
    let faults = Faults { rate_503: 1.0, only: Some(std::sync::Arc::new(only)), ..Faults::default() };
    server.set_faults(faults);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_level_is_made_at_its_own_interval_out_of_the_one_below() {
    for alone in [false, true] {
        let mut site = Site::new().await;
        let mut upkeep =
            if alone { Upkeep::alone(schedule(), Timestamp(START)) } else { Upkeep::new(schedule(), Timestamp(START)) };
        assert_eq!(upkeep.shortest(), seconds(30));
        let mut made: BTreeMap<u8, Vec<i64>> = BTreeMap::new();
        while site.now < START + 930 * SECOND {
            site.write_many(2, &mut upkeep).await;
            let before: Vec<_> = (1..=9).map(|level| site.level(level)).collect();
            site.wait_for(&upkeep);
            site.now -= 1;
            site.rests(&mut upkeep).await;
            site.now += 1;
            let kept = site.step(&mut upkeep).await;
            let mut files = 0;
            for level in 1..=9 {
                let new = site.level(level).len() - before[usize::from(level) - 1].len();
                if new > 0 {
                    files += new;
                    made.entry(level).or_default().push((site.now - START) / SECOND);
                    assert_eq!(site.level(level).last().unwrap().1, site.txid, "level {level} has all there is");
                }
            }
            assert_eq!(kept, Kept { made: files, deleted: 0 });
            site.check_newest().await;
        }
        let every = |interval: i64| (1..).map(|n| n * interval).take_while(|at| *at <= 930).collect::<Vec<_>>();
        let expected = [(1, every(30)), (2, every(90)), (3, every(270)), (9, every(900))];
        assert_eq!(made, BTreeMap::from(expected));
        assert_eq!(site.level(2)[..2], [(1, 6), (7, 12)]);
        assert_eq!(site.level(3)[..2], [(1, 18), (19, 36)]);
        assert_eq!(site.level(9), [(1, 60)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_is_done_at_once_and_once() {
    let mut site = Site::new().await;
    let mut upkeep = Upkeep::new(schedule(), Timestamp(START));
    site.write().await;
    site.write().await;
    site.now += 10_000 * SECOND;
    assert_eq!(upkeep.due(site.newest()), Some(Timestamp(START + 30 * SECOND)), "long ago");
    assert_eq!(site.step(&mut upkeep).await.made, 2);
    assert_eq!((site.level(1), site.level(9)), (vec![(1, 2)], vec![(1, 2)]), "further levels would be level 1 again");
    site.rests(&mut upkeep).await;
    assert_eq!(upkeep.due(site.newest()), None);
    site.write().await;
    assert_eq!(upkeep.due(site.newest()), Some(Timestamp(site.now + 30 * SECOND)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_change_costs_no_request() {
    for alone in [false, true] {
        let mut site = Site::new().await;
        let retention = RetentionPolicy { l0: seconds(300), snapshots: seconds(3_600) };
        let schedule = Schedule { retention, ..schedule() };
        let mut upkeep =
            if alone { Upkeep::alone(schedule, Timestamp(START)) } else { Upkeep::new(schedule, Timestamp(START)) };
        site.write_many(4, &mut upkeep).await;
        let mut steps = 0;
        while upkeep.due(site.newest()).is_some() {
            site.wait_for(&upkeep);
            site.step(&mut upkeep).await;
            steps += 1;
        }
        assert_eq!(steps, 5, "three levels, a snapshot, and level 0 once it is old");
        assert_eq!(site.level(0), [(4, 4)], "all that may go has gone");
        assert_eq!(site.level(1), [(1, 4)]);
        for _ in 0..50 {
            site.now += HOUR;
            site.rests(&mut upkeep).await;
        }
        site.check_newest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_alone_lists_once() {
    let mut site = Site::new().await;
    let mut upkeep = Upkeep::alone(eager(), Timestamp(START));
    let mut lists = Vec::new();
    for round in 0..10 {
        site.write_many(3, &mut upkeep).await;
        site.wait_for(&upkeep);
        site.server.reset_stats();
        let kept = site.step(&mut upkeep).await;
        assert_eq!(kept, Kept { made: 1, deleted: if round == 0 { 2 } else { 3 } });
        lists.push(site.server.stats().count(Operation::ListObjectsV2));
    }
    assert!(lists[0] > 0 && lists[1..].iter().all(|count| *count == 0), "{lists:?}");
    assert_eq!(site.level(0).len(), 1, "level 0 goes though nothing is listed");
    assert_eq!(site.level(1).len(), 10);
    site.check_newest().await;

    // A failure may have changed what is there: that is looked at again.
    site.write_many(1, &mut upkeep).await;
    site.wait_for(&upkeep);
    fail(&site.server, Operation::PutObject);
    site.try_step(&mut upkeep).await.unwrap_err();
    site.server.set_faults(Faults::default());
    site.wait_for(&upkeep);
    site.server.reset_stats();
    assert_eq!(site.step(&mut upkeep).await.made, 1);
    assert_eq!(site.server.stats().count(Operation::ListObjectsV2), lists[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_due_again_after_its_interval_and_not_at_once() {
    for operation in [Operation::ListObjectsV2, Operation::GetObject, Operation::PutObject] {
        for alone in [false, true] {
            let mut site = Site::new().await;
            let mut upkeep =
                if alone { Upkeep::alone(eager(), Timestamp(START)) } else { Upkeep::new(eager(), Timestamp(START)) };
            site.write_many(3, &mut upkeep).await;
            fail(&site.server, operation);
            for _ in 0..3 {
                let failed = upkeep.due(site.newest()).unwrap().0;
                site.now = failed;
                site.server.reset_stats();
                site.try_step(&mut upkeep).await.unwrap_err();
                assert!(site.server.stats().count(operation) > 0);
                for later in [0, 1, SECOND, 30 * SECOND - 1] {
                    site.now = failed + later;
                    site.rests(&mut upkeep).await;
                }
                assert_eq!(upkeep.due(site.newest()), Some(Timestamp(failed + 30 * SECOND)), "{operation}");
            }
            assert_eq!(site.level(1), []);
            site.server.set_faults(Faults::default());
            site.wait_for(&upkeep);
            assert_eq!(site.step(&mut upkeep).await, Kept { made: 1, deleted: 2 }, "{operation}");
            site.check_newest().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_failed_is_not_put_off_for_a_day() {
    let mut site = Site::new().await;
    let daily = Schedule { levels: Vec::new(), snapshots: Duration::from_secs(24 * 60 * 60), ..eager() };
    let mut upkeep = Upkeep::new(daily, Timestamp(START));
    site.write_many(3, &mut upkeep).await;
    fail(&site.server, Operation::PutObject);
    for _ in 0..3 {
        site.wait_for(&upkeep);
        site.try_step(&mut upkeep).await.unwrap_err();
        assert_eq!(upkeep.due(site.newest()), Some(Timestamp(site.now + 5 * MINUTE)));
    }
    assert_eq!(site.now, START + 24 * HOUR + 10 * MINUTE);
    site.server.set_faults(Faults::default());
    site.wait_for(&upkeep);
    assert_eq!(site.step(&mut upkeep).await.made, 1);
    site.write_many(1, &mut upkeep).await;
    assert_eq!(upkeep.due(site.newest()), Some(Timestamp(site.now + 24 * HOUR)));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_files_do_not_hurry_what_failed() {
    let mut site = Site::new().await;
    let retention = RetentionPolicy { l0: seconds(30), ..eager().retention };
    let mut upkeep = Upkeep::new(Schedule { retention, ..eager() }, Timestamp(START));
    site.write_many(2, &mut upkeep).await;
    site.wait_for(&upkeep);
    assert_eq!(site.step(&mut upkeep).await, Kept { made: 1, deleted: 0 }, "too young to go");
    site.write_many(2, &mut upkeep).await;
    // The first one may go now, but what comes before that fails.
    site.now = START + 61 * SECOND;
    fail(&site.server, Operation::PutObject);
    site.try_step(&mut upkeep).await.unwrap_err();
    for later in [0, 1, 30 * SECOND - 1] {
        site.now = START + 61 * SECOND + later;
        site.rests(&mut upkeep).await;
    }
    site.server.set_faults(Faults::default());
    site.wait_for(&upkeep);
    assert_eq!(site.now, START + 91 * SECOND);
    assert_eq!(site.step(&mut upkeep).await, Kept { made: 1, deleted: 2 }, "the third has just been merged");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_merged_late_stays_as_long_as_any_other() {
    for alone in [false, true] {
        let mut site = Site::new().await;
        let retention = RetentionPolicy { l0: seconds(300), ..eager().retention };
        let schedule = Schedule { retention, ..eager() };
        let mut upkeep =
            if alone { Upkeep::alone(schedule, Timestamp(START)) } else { Upkeep::new(schedule, Timestamp(START)) };
        site.write_many(3, &mut upkeep).await;
        // Nobody merged for an hour.
        site.now += HOUR;
        assert_eq!(site.step(&mut upkeep).await, Kept { made: 1, deleted: 0 });
        let merged = site.now;
        site.wait_for(&upkeep);
        assert_eq!(site.now, merged + 300 * SECOND);
        site.now -= 1;
        site.rests(&mut upkeep).await;
        site.now += 1;
        assert_eq!(site.step(&mut upkeep).await, Kept { made: 0, deleted: 2 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_snapshot_holds_any_more_goes_though_nothing_changes() {
    let mut site = Site::new().await;
    let retention = RetentionPolicy { l0: seconds(600), snapshots: seconds(100) };
    let schedule = Schedule { retention, snapshots: seconds(60), ..eager() };
    let mut upkeep = Upkeep::new(schedule.clone(), Timestamp(START));
    for count in [3, 1] {
        site.write_many(count, &mut upkeep).await;
        site.now += 30 * SECOND;
        site.step(&mut upkeep).await;
    }
    assert_eq!((site.level(1), site.level(9)), (vec![(1, 3), (4, 4)], vec![(1, 4)]));
    // As it goes once it ends before a snapshot that stays.
    let listing = Listing::full(&site.replica).await.unwrap();
    site.replica.delete(&listing.level(Level::ONE)[..1]).await.unwrap();
    site.now += 200 * SECOND;
    let mut upkeep = Upkeep::new(schedule, Timestamp(site.now));
    site.now += 60 * SECOND;
    assert_eq!(site.step(&mut upkeep).await, Kept::default(), "too young");
    site.wait_for(&upkeep);
    assert_eq!(site.now, START + 600 * SECOND);
    assert_eq!(site.step(&mut upkeep).await, Kept { made: 0, deleted: 3 });
    assert_eq!(site.level(0), [(4, 4)]);
    site.check_newest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_go_for_another_reason_is_not_looked_at_again_and_again() {
    let mut site = Site::new().await;
    let mut upkeep = Upkeep::new(eager(), Timestamp(START));
    // No file begins with the first transaction: nothing goes.
    site.txid = 4;
    for _ in 0..3 {
        site.write().await;
    }
    site.wait_for(&upkeep);
    assert_eq!(site.step(&mut upkeep).await, Kept { made: 1, deleted: 0 });
    for _ in 0..5 {
        site.now += HOUR;
        site.rests(&mut upkeep).await;
    }
    assert_eq!(site.level(0).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_level_that_was_made_before_another_failed_is_not_made_again() {
    let mut site = Site::new().await;
    let mut upkeep = Upkeep::new(schedule(), Timestamp(START));
    for _ in 0..2 {
        site.write().await;
        site.write().await;
        site.now += 45 * SECOND;
        if site.now < START + 90 * SECOND {
            site.step(&mut upkeep).await;
        }
    }
    site.server.fault_next(1, FaultKind::Status(503), |request| {
        request.operation == Operation::PutObject && request.key.starts_with("db/0002/")
    });
    site.try_step(&mut upkeep).await.unwrap_err();
    assert_eq!((site.level(1), site.level(2)), (vec![(1, 2), (3, 4)], vec![]));
    assert_eq!(upkeep.due(site.newest()), Some(Timestamp(site.now + 90 * SECOND)), "level 2's interval, not level 1's");
    site.wait_for(&upkeep);
    site.step(&mut upkeep).await;
    assert_eq!((site.level(1), site.level(2)), (vec![(1, 2), (3, 4)], vec![(1, 4)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_failed_is_tried_again_though_nothing_changes() {
    for alone in [false, true] {
        let mut site = Site::new().await;
        let mut upkeep =
            if alone { Upkeep::alone(eager(), Timestamp(START)) } else { Upkeep::new(eager(), Timestamp(START)) };
        site.write_many(3, &mut upkeep).await;
        site.wait_for(&upkeep);
        fail(&site.server, Operation::DeleteObjects);
        for _ in 0..3 {
            site.try_step(&mut upkeep).await.unwrap_err();
            assert_eq!((site.level(0).len(), site.level(1)), (3, vec![(1, 3)]), "made, but nothing has gone");
            site.rests(&mut upkeep).await;
            let failed = site.now;
            site.wait_for(&upkeep);
            assert_eq!(site.now, failed + 30 * SECOND);
        }
        site.server.set_faults(Faults::default());
        assert_eq!(site.step(&mut upkeep).await, Kept { made: 0, deleted: 2 });
        assert_eq!(site.level(0), [(3, 3)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_of_the_whole_database_is_not_copied_from_level_to_level() {
    let mut site = Site::new().await;
    let mut upkeep = Upkeep::new(schedule(), Timestamp(START));
    site.write().await;
    site.now = START + 899 * SECOND;
    assert_eq!(site.step(&mut upkeep).await.made, 0);
    site.rests(&mut upkeep).await;
    site.wait_for(&upkeep);
    assert_eq!(site.step(&mut upkeep).await.made, 1, "a snapshot it is");
    assert_eq!(site.level(9), [(1, 1)]);
    site.write().await;
    site.wait_for(&upkeep);
    site.step(&mut upkeep).await;
    assert_eq!(site.level(1), [(1, 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_starts_anew_each_day_does_not_put_snapshots_off() {
    let mut site = Site::new().await;
    let anew = |site: &Site| Upkeep::new(Schedule::default(), Timestamp(site.now));
    site.write().await;
    site.write().await;
    // It never had a snapshot, and is older than a day: there is one as soon as it is looked.
    site.now += 25 * HOUR;
    let mut upkeep = anew(&site);
    site.rests(&mut upkeep).await;
    site.wait_for(&upkeep);
    site.step(&mut upkeep).await;
    assert_eq!(site.level(9), [(1, 2)]);
    let last = site.now;
    // Several processes later it is the last snapshot's date that counts: no sooner, no later.
    for hours in [5, 12, 23] {
        site.now = last + hours * HOUR;
        upkeep = anew(&site);
        site.write().await;
        site.wait_for(&upkeep);
        site.step(&mut upkeep).await;
        assert_eq!(site.level(9), [(1, 2)], "after {hours} hours");
    }
    site.now = last + 24 * HOUR - 1;
    site.step(&mut upkeep).await;
    assert_eq!(site.level(9), [(1, 2)]);
    site.now += 1;
    site.step(&mut upkeep).await;
    assert_eq!(site.level(9), [(1, 2), (1, 5)]);
    site.check_newest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_to_the_buckets_own_rules_is_not_deleted() {
    let mut site = Site::new().await;
    let mut upkeep = Upkeep::new(Schedule { deletes: false, ..eager() }, Timestamp(START));
    for _ in 0..60 {
        site.now += HOUR;
        site.write().await;
        site.step(&mut upkeep).await;
    }
    assert_eq!(site.server.stats().count(Operation::DeleteObjects), 0);
    assert_eq!((site.level(0).len(), site.level(1).len()), (60, 59));
    assert_eq!(upkeep.due(site.newest()).map(|due| due.0 > site.now), Some(true), "only the next snapshot");
}

/// Hours of a database that is written at odd times. Level 1's grain is what is promised, see `retention.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_restore_inside_the_window_needs_stays_and_the_rest_goes() {
    const WINDOW: i64 = 30 * MINUTE;
    for alone in [false, true] {
        let mut site = Site::new().await;
        let schedule = Schedule {
            levels: [30, 5 * 60].map(seconds).to_vec(),
            snapshots: seconds(10 * 60),
            retention: RetentionPolicy { l0: seconds(60), snapshots: seconds(WINDOW.unsigned_abs() / 1_000) },
            deletes: true,
        };
        let mut upkeep =
            if alone { Upkeep::alone(schedule, Timestamp(START)) } else { Upkeep::new(schedule, Timestamp(START)) };
        // When each transaction was written, and the last ones of the files of level 1.
        let (mut written, mut ends) = (vec![START], vec![]);
        let mut rounds = 0;
        let mut deleted = 0;
        while site.now < START + 2 * HOUR {
            rounds += 1;
            site.now += [7, 13, 29, 61, 19][rounds % 5] * SECOND;
            upkeep.put(site.write().await);
            written.push(site.now);
            let kept = site.step(&mut upkeep).await;
            deleted += kept.deleted;
            if let Some((_, end)) = site.level(1).last()
                && ends.last() != Some(end)
            {
                ends.push(*end);
            }
            if kept.deleted == 0 {
                continue;
            }
            let listing = Listing::full(&site.replica).await.unwrap();
            let inside: Vec<_> =
                ends.iter().filter(|end| written[**end as usize] >= site.now - WINDOW).copied().collect();
            for end in &inside {
                let plan = Plan::new(&site.replica, &listing, Target::Txid(Txid(*end)), Cutoff::NONE);
                assert!(plan.is_ok(), "{end} of {} is gone: {}", site.txid, plan.unwrap_err());
            }
            if rounds % 40 == 0 {
                site.check_newest().await;
                let oldest = Plan::new(&site.replica, &listing, Target::Txid(Txid(inside[0])), Cutoff::NONE).unwrap();
                site.check(&oldest).await;
            }
            let start = Timestamp(site.now - WINDOW);
            if let Some(end) = ends.iter().rev().find(|end| written[**end as usize] < start.0) {
                let (plan, _) = find(&site.replica, Target::Before(start)).await.unwrap();
                assert!(plan.txid.0 >= *end, "{} instead of {end} at the window's start", plan.txid);
            }
        }
        let count = |level| site.level(level).len();
        assert!(deleted > 250 && site.txid > 270, "{deleted} of {}", site.txid);
        // A minute and half; the window, a snapshot's interval, and a little.
        assert!(count(0) < 8 && count(1) < 90 && count(2) < 10 && count(9) < 6, "{:?}", [0, 1, 2, 9].map(count));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_another_has_merged_and_deleted_are_planned_anew() {
    let mut site = Site::new().await;
    let mut stale = Upkeep::alone(Schedule { levels: [30, 60].map(seconds).to_vec(), ..eager() }, Timestamp(START));
    let mut other = Upkeep::new(eager(), Timestamp(START));
    site.write_many(3, &mut stale).await;
    site.now = START + 30 * SECOND;
    assert_eq!(site.step(&mut stale).await, Kept { made: 1, deleted: 2 });
    site.write_many(3, &mut stale).await;
    site.now = START + 60 * SECOND;
    assert_eq!(site.step(&mut other).await, Kept { made: 1, deleted: 3 }, "this one lists, and merges first");
    assert_eq!((site.level(0), site.level(1)), (vec![(6, 6)], vec![(1, 3), (4, 6)]));

    // The first one believes that they are all there still.
    site.server.reset_stats();
    assert_eq!(site.step(&mut stale).await.made, 1, "of level 2");
    let vanished = site.server.requests().into_iter().filter(|request| request.status == Some(404));
    assert!(vanished.count() > 0, "what it wanted to merge was gone");
    assert_eq!((site.level(0), site.level(1)), (vec![(6, 6)], vec![(1, 3), (4, 6)]));
    assert_eq!(site.level(2), [(1, 6)]);
    site.check_newest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_on_one_replica_do_each_other_no_harm() {
    let mut site = Site::new().await;
    let schedule = Schedule { levels: [10, 20, 40].map(seconds).to_vec(), snapshots: seconds(50), ..eager() };
    let mut one = Upkeep::new(schedule.clone(), Timestamp(START));
    let mut two = Upkeep::new(schedule, Timestamp(START));
    let mut deleted = 0;
    for _ in 0..40 {
        for _ in 0..3 {
            site.write().await;
        }
        site.now += 10 * SECOND;
        let (newest, now, scratch) = (site.newest(), Timestamp(site.now), site.scratch.path());
        let clock = || now;
        let (first, second) = tokio::join!(
            one.step(&site.replica, newest, &clock, scratch),
            two.step(&site.replica, newest, &clock, scratch)
        );
        deleted += first.unwrap().deleted + second.unwrap().deleted;
        site.date();
        site.check_newest().await;
    }
    assert!(deleted >= 117, "{deleted}");
    let key = site.key(0, site.txid, site.txid);
    assert!(site.server.object(BUCKET, &key).is_some(), "the newest of level 0 stays");
    // Nothing is there twice: neither did what the other had done already.
    let ends: Vec<_> = site.level(1).into_iter().map(|(_, max)| max).collect();
    let expected: Vec<_> = (1..=40).map(|round| round * 3).collect();
    assert_eq!(ends, expected);
}

#[test]
fn what_is_never_to_be_done_is_never_due() {
    let schedule = Schedule { levels: vec![], snapshots: Duration::MAX, ..Schedule::default() };
    let upkeep = Upkeep::new(schedule, Timestamp(START));
    assert_eq!(upkeep.due(Txid(7)), None);
    assert_eq!(upkeep.shortest(), Duration::MAX);
    let upkeep = Upkeep::new(Schedule::default(), Timestamp(START));
    assert_eq!(upkeep.due(Txid(7)), Some(Timestamp(START + 30 * SECOND)));
    assert_eq!(upkeep.due(Txid::ZERO), None, "an empty replica");
    assert_eq!(upkeep.shortest(), seconds(30));
}
