//! A followed copy is, for every reader and after every mishap, one of the replica's states; and it goes on, or says clearly why it cannot.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use litestream_fixtures::golden;
use litestream_fixtures::recorder::{Recorded, Recorder};
use litestream_hydrate::{Event, FollowOptions, Follower, Overwrite, RestoreOptions, restore};
use litestream_pageindex::{Target, compact, find};
use litestream_storage::file::FileBackend;
use litestream_storage::{Body, Level, Replica, RetryPolicy};
use ltx::{FileName, Timestamp, Txid};
use rusqlite::{Connection, params};

const ACCOUNTS: i64 = 400;
/// What all accounts hold together, in every state.
const TOTAL: i64 = ACCOUNTS * 100;

/// A database whose transactions become files of a replica, and what it looked like after each.
struct Source {
    path: PathBuf,
    sqlite: Connection,
    recorder: Recorder,
    replica: Replica,
    random: fastrand::Rng,
    page_size: u32,
    txid: u64,
    states: HashMap<Txid, Vec<u8>>,
}

impl Source {
    async fn new(folder: &Path, page_size: u32, mode: &str) -> Self {
        let path = folder.join("source");
        let sqlite = Connection::open(&path).unwrap();
        sqlite.execute_batch(&format!("PRAGMA page_size = {page_size}; PRAGMA synchronous = OFF; VACUUM;")).unwrap();
        sqlite.pragma_update(None, "journal_mode", mode).unwrap();
        sqlite
            .execute_batch(
                "CREATE TABLE seq(number INTEGER); INSERT INTO seq VALUES (0);
                 CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER, pad BLOB);
                 CREATE TABLE body(id INTEGER PRIMARY KEY, text BLOB); CREATE INDEX by_text ON body(text);",
            )
            .unwrap();
        for id in 0..ACCOUNTS {
            sqlite.execute("INSERT INTO account VALUES (?1, 100, randomblob(120))", [id]).unwrap();
        }
        let replica = folder.join("replica");
        std::fs::create_dir(&replica).unwrap();
        let mut source = Self {
            path,
            sqlite,
            recorder: Recorder::new(),
            replica: replica_in(&replica),
            random: fastrand::Rng::with_seed(5),
            page_size,
            txid: 0,
            states: HashMap::new(),
        };
        source.record().await;
        source
    }

    /// Moves money about, adds and removes rows; and sometimes more.
    async fn transact(&mut self) -> Txid {
        let transaction = self.sqlite.transaction().unwrap();
        for _ in 0..30 {
            let (from, to, sum) = (self.random.i64(0..ACCOUNTS), self.random.i64(0..ACCOUNTS), self.random.i64(1..9));
            transaction.execute("UPDATE account SET balance = balance - ?1 WHERE id = ?2", [sum, from]).unwrap();
            transaction.execute("UPDATE account SET balance = balance + ?1 WHERE id = ?2", [sum, to]).unwrap();
        }
        transaction.execute("UPDATE seq SET number = number + 1", []).unwrap();
        let longest = i64::from(self.page_size.max(4096) / 4);
        for _ in 0..20 {
            let len = self.random.i64(1..longest);
            transaction.execute("INSERT INTO body(text) VALUES (randomblob(?1))", [len]).unwrap();
        }
        if self.random.u8(..) < 40 {
            transaction.execute("DELETE FROM body WHERE id % 3 <> 0", params![]).unwrap();
        }
        transaction.commit().unwrap();
        self.record().await
    }

    async fn vacuum(&mut self) -> Txid {
        self.sqlite.execute_batch("DELETE FROM body WHERE id % 5 <> 0; VACUUM").unwrap();
        self.record().await
    }

    async fn record(&mut self) -> Txid {
        let Recorded { name, bytes } = self.encode();
        let time = Timestamp(self.txid.cast_signed() * 1_000);
        self.replica.put_file(Level::ZERO, name, Body::Bytes(bytes.into()), time).await.unwrap();
        name.max
    }

    /// The next transaction's file, which is not put.
    fn encode(&mut self) -> Recorded {
        self.sqlite.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        self.txid += 1;
        let recorded = self.recorder.record(&self.path, self.txid.cast_signed() * 1_000).unwrap();
        self.states.insert(Txid(self.txid), comparable(&self.path));
        recorded
    }

    /// Whether a copy has just the content of a TXID.
    #[track_caller]
    fn assert_same(&self, copy: &Path, txid: Txid) {
        assert!(comparable(copy) == self.states[&txid], "the copy is not what transaction {txid} left");
        assert_eq!(std::fs::read(copy).unwrap()[18..20], [1, 1], "readers would open it in WAL mode");
        let sidecar = copy.with_file_name(format!("{}-txid", copy.file_name().unwrap().display()));
        assert_eq!(std::fs::read_to_string(sidecar).unwrap(), format!("{txid}\n"));
    }
}

/// A database's bytes, but for what a copy has of its own: rollback mode and the change counter.
fn comparable(path: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    for own in [18..20, 24..28, 92..96] {
        bytes[own].fill(0);
    }
    bytes
}

fn replica_in(folder: &Path) -> Replica {
    Replica::new(FileBackend::new(folder).into(), RetryPolicy { attempts: 2, ..RetryPolicy::default() })
}

fn options() -> FollowOptions {
    FollowOptions { interval: Duration::from_millis(10), ..FollowOptions::default() }
}

async fn follow(replica: &Replica, copy: &Path) -> Follower {
    let (plan, listing) = find(replica, Target::Latest).await.unwrap();
    Follower::restore(replica, plan, listing, copy, &options()).await.unwrap().0
}

async fn resume(replica: &Replica, copy: &Path) -> litestream_hydrate::Result<Follower> {
    Follower::resume(std::slice::from_ref(replica), copy, &options()).await
}

async fn catch_up(follower: &mut Follower) -> Txid {
    while follower.step().await.unwrap().is_some() {}
    follower.txid()
}

fn counter(copy: &Path) -> u32 {
    let bytes = std::fs::read(copy).unwrap();
    u32::from_be_bytes([bytes[24], bytes[25], bytes[26], bytes[27]])
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// One look of a reader: everything in one transaction. Returns the number of the state that it saw.
fn look(sqlite: &Connection, thorough: bool) -> rusqlite::Result<i64> {
    sqlite.execute_batch("BEGIN")?;
    let number = sqlite.query_row("SELECT number FROM seq", [], |row| row.get(0))?;
    let total: i64 = sqlite.query_row("SELECT sum(balance) FROM account", [], |row| row.get(0))?;
    assert_eq!(total, TOTAL, "a torn state");
    if thorough {
        let check: String = sqlite.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        assert_eq!(check, "ok");
    }
    sqlite.execute_batch("COMMIT")?;
    Ok(number)
}

/// The part of another process; see [`Reader`].
#[test]
#[ignore = "run by other tests, as a process of its own"]
fn reader_process() {
    let Some(copy) = std::env::var_os("FOLLOWED_COPY").map(PathBuf::from) else { return };
    let stays_open = std::env::var_os("FOLLOWED_STAYS_OPEN").is_some();
    let open = || {
        let sqlite = Connection::open(&copy).unwrap();
        sqlite.busy_timeout(Duration::from_secs(20)).unwrap();
        sqlite
    };
    let (mut sqlite, mut last, mut looks) = (open(), 0, 0u32);
    let stop = copy.with_file_name("stop");
    let mut stopped = false;
    // Once more after it is told to stop, so that it has seen the last state.
    while !std::mem::replace(&mut stopped, stop.exists()) {
        if !stays_open {
            sqlite = open();
        }
        let number = look(&sqlite, looks.is_multiple_of(4)).unwrap();
        assert!(number >= last, "a step back from {last} to {number}");
        (last, looks) = (number, looks + 1);
    }
    println!("looks={looks} last={last}");
}

/// A process that reads a copy over and over.
struct Reader(Child);

impl Reader {
    fn start(copy: &Path, stays_open: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "reader_process", "--ignored", "--nocapture"]).env("FOLLOWED_COPY", copy);
        if stays_open {
            command.env("FOLLOWED_STAYS_OPEN", "1");
        }
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// How often it looked and what it saw last.
    fn end(self) -> (u32, i64) {
        let output = self.0.wait_with_output().unwrap();
        let (out, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "a reader failed: {out}{log}");
        let field = |name: &str| out.split(name).nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        (field("looks=").parse().unwrap(), field("last=").parse().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_in_other_processes_see_whole_states_one_after_another() {
    for mode in ["WAL", "DELETE"] {
        let folder = tempfile::tempdir().unwrap();
        let mut source = Source::new(folder.path(), 4096, mode).await;
        let copy = folder.path().join("copy");
        let applied: Arc<Mutex<Vec<(Txid, Txid)>>> = Arc::default();
        let seen = applied.clone();
        let tell = move |event: &Event| {
            if let Event::Applied(applied) = event {
                seen.lock().unwrap().push((applied.from, applied.txid));
            }
        };
        let options = FollowOptions { tell: Arc::new(tell), ..options() };
        let (plan, listing) = find(&source.replica, Target::Latest).await.unwrap();
        let (mut follower, restored) =
            Follower::restore(&source.replica, plan, listing, &copy, &options).await.unwrap();
        assert_eq!(restored.txid, Txid(1));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let following = tokio::spawn(async move {
            let outcome = follower.run(async { drop(stopped.await) }).await;
            (follower.txid(), outcome)
        });
        let readers = [true, true, false].map(|stays_open| Reader::start(&copy, stays_open));
        for number in 1..=120 {
            if number % 25 == 0 {
                source.vacuum().await
            } else {
                source.transact().await
            };
        }
        let last = source.transact().await;
        let deadline = Instant::now() + Duration::from_secs(60);
        while applied.lock().unwrap().last().is_none_or(|(_, txid)| *txid < last) {
            assert!(Instant::now() < deadline, "the copy does not catch up: {:?}", applied.lock().unwrap().last());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        source.assert_same(&copy, last);
        std::fs::write(folder.path().join("stop"), "").unwrap();
        let number: i64 = source.sqlite.query_row("SELECT number FROM seq", [], |row| row.get(0)).unwrap();
        for reader in readers {
            let (looks, saw) = tokio::task::block_in_place(|| reader.end());
            assert!(looks > 10 && saw == number, "{mode}: {looks} looks, saw {saw} of {number}");
        }
        stop.send(()).unwrap();
        let (txid, outcome) = following.await.unwrap();
        outcome.unwrap();
        assert_eq!(txid, last);
        let applied = applied.lock().unwrap();
        assert!(applied.len() > 10, "{mode}: {} steps", applied.len());
        assert!(applied.windows(2).all(|two| two[0].1 == two[1].0 && two[0].1 < two[1].1));
    }
}

#[tokio::test]
async fn the_copy_is_the_source_at_each_step_and_its_counter_never_repeats() {
    for (page_size, mode) in [(512, "WAL"), (4096, "DELETE"), (65536, "WAL")] {
        let folder = tempfile::tempdir().unwrap();
        let mut source = Source::new(folder.path(), page_size, mode).await;
        let copy = folder.path().join("copy");
        let mut follower = follow(&source.replica, &copy).await;
        source.assert_same(&copy, Txid(1));
        let (mut before, mut shrunk, mut grown) = (counter(&copy), 0, 0);
        for number in 1..=20 {
            let len = copy.metadata().unwrap().len();
            let txid = if number % 6 == 0 { source.vacuum().await } else { source.transact().await };
            let applied = follower.step().await.unwrap().unwrap();
            assert_eq!((applied.from, applied.txid, applied.files), (txid.previous(), txid, 1));
            source.assert_same(&copy, txid);
            let after = counter(&copy);
            assert!(after > before, "{page_size} {mode}: the counter went from {before} to {after}");
            before = after;
            let now = copy.metadata().unwrap().len();
            shrunk += u32::from(now < len);
            grown += u32::from(now > len);
            assert_eq!(follower.step().await.unwrap(), None);
        }
        assert!(shrunk >= 2 && grown >= 5, "{shrunk} times shrunk, {grown} times grown");
        let beside = names(folder.path()).into_iter().filter(|name| name.contains("copy")).collect::<Vec<_>>();
        assert_eq!(beside, ["copy", "copy-follow", "copy-txid"]);
        // A transaction that changes nothing moves the TXID alone.
        let unchanged = counter(&copy);
        let txid = source.record().await;
        assert_eq!(follower.step().await.unwrap().unwrap().pages, 0);
        source.assert_same(&copy, txid);
        assert_eq!(counter(&copy), unchanged);
    }
}

#[tokio::test]
async fn a_restart_goes_on_where_it_was_and_asks_for_little() {
    let folder = tempfile::tempdir().unwrap();
    let mut source = Source::new(folder.path(), 4096, "WAL").await;
    let copy = folder.path().join("copy");
    let mut follower = follow(&source.replica, &copy).await;
    for _ in 0..5 {
        source.transact().await;
    }
    // Several at once are one step.
    let applied = follower.step().await.unwrap().unwrap();
    assert_eq!((applied.from, applied.txid, applied.files), (Txid(1), Txid(6), 5));
    let error = resume(&source.replica, &copy).await.unwrap_err();
    assert!(error.to_string().contains("another process follows"), "{error}");
    drop(follower);
    for missing in [false, true] {
        let txid = source.transact().await;
        if missing {
            std::fs::remove_file(folder.path().join("copy-txid")).unwrap();
        }
        let fresh = replica_in(&folder.path().join("replica"));
        let mut follower = resume(&fresh, &copy).await.unwrap();
        source.assert_same(&copy, txid.previous());
        assert_eq!(catch_up(&mut follower).await, txid);
        source.assert_same(&copy, txid);
        let stats = fresh.stats();
        // A LIST that finds one file, its one read, and a LIST that finds nothing.
        assert_eq!((stats.lists, stats.gets), (2, 1), "{stats:?}");
    }
}

#[tokio::test]
async fn a_long_reader_delays_the_copy_but_neither_breaks_nor_shuts_out_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut source = Source::new(folder.path(), 4096, "WAL").await;
    let copy = folder.path().join("copy");
    drop(follow(&source.replica, &copy).await);
    let options = FollowOptions { patience: Duration::from_millis(900), ..options() };
    let mut follower = Follower::resume(&[source.replica.clone()], &copy, &options).await.unwrap();
    let long = Connection::open(&copy).unwrap();
    long.execute_batch("BEGIN; SELECT * FROM seq").unwrap();
    let txid = source.transact().await;
    for _ in 0..2 {
        let error = follower.step().await.unwrap_err();
        assert!(error.to_string().contains("in use: waited"), "{error}");
        assert!(!folder.path().join("copy-journal").exists());
        assert_eq!(look(&Connection::open(&copy).unwrap(), true).unwrap(), 0);
    }
    // Others come and go while the follower waits.
    let other = {
        let copy = copy.clone();
        std::thread::spawn(move || {
            let sqlite = Connection::open(&copy).unwrap();
            sqlite.busy_timeout(Duration::from_secs(20)).unwrap();
            (0..50).map(|_| look(&sqlite, false).unwrap()).max()
        })
    };
    follower.step().await.unwrap_err();
    let seen: i64 = long.query_row("SELECT number FROM seq", [], |row| row.get(0)).unwrap();
    assert_eq!((seen, other.join().unwrap()), (0, Some(0)));
    long.execute_batch("COMMIT").unwrap();
    let applied = follower.step().await.unwrap().unwrap();
    assert_eq!(applied.txid, txid);
    assert_eq!(look(&long, true).unwrap(), 1);
    source.assert_same(&copy, txid);
}

/// Merges the files of level 0 that end within `span` into one of another level, and deletes those that end within `gone`.
async fn compacted(replica: &Replica, level: Level, span: Span, gone: Span) {
    let files = replica.level(Level::ZERO, Txid::ZERO).await.unwrap();
    let within = |span: &Span| files.iter().filter(|file| span.contains(&file.name.max.0)).cloned().collect::<Vec<_>>();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("merged");
    let merged = compact::merge(replica, &within(&span), &output, &compact::MergeOptions::default()).await.unwrap();
    let body = Body::Bytes(std::fs::read(output).unwrap().into());
    replica.put_file(level, merged.header.name(), body, merged.header.timestamp).await.unwrap();
    replica.delete(&within(&gone)).await.unwrap();
}

type Span = std::ops::RangeInclusive<u64>;

#[tokio::test]
async fn what_was_compacted_away_is_found_on_higher_levels() {
    let folder = tempfile::tempdir().unwrap();
    let mut source = Source::new(folder.path(), 4096, "WAL").await;
    let copy = folder.path().join("copy");
    let mut follower = follow(&source.replica, &copy).await;
    let (level_1, level_2) = (Level::ONE, Level::new(2).unwrap());
    for _ in 2..=5 {
        source.transact().await;
    }
    assert_eq!(catch_up(&mut follower).await, Txid(5));
    for _ in 6..=20 {
        source.transact().await;
    }
    // A file that straddles what the copy has, one above it, and the newest of level 0.
    compacted(&source.replica, level_1, 4..=9, 2..=3).await;
    compacted(&source.replica, level_2, 10..=15, 1..=18).await;
    compacted(&source.replica, level_1, 19..=19, 0..=0).await;
    let missing = follower.step().await.unwrap().unwrap();
    assert_eq!((missing.from, missing.txid), (Txid(5), Txid(15)), "16 to 18 are missing");
    source.assert_same(&copy, Txid(15));
    let error = follower.step().await.unwrap_err();
    assert!(error.to_string().contains("0000000000000010 to 0000000000000012 are missing"), "{error}");
    source.assert_same(&copy, Txid(15));

    // Now nothing but a snapshot goes on. It is applied as a whole, shrunk database and all.
    for _ in 0..3 {
        source.vacuum().await;
    }
    let len = copy.metadata().unwrap().len();
    let mut whole = Recorder::new();
    let bytes = whole.record(&source.path, 0).unwrap().bytes;
    let txid = Txid(source.txid);
    source
        .replica
        .put_file(Level::SNAPSHOT, FileName::new(Txid(1), txid), Body::Bytes(as_snapshot(&bytes, txid)), Timestamp(9))
        .await
        .unwrap();
    compacted(&source.replica, level_2, 23..=23, 0..=22).await;
    let sqlite = Connection::open(&copy).unwrap();
    let before = look(&sqlite, false).unwrap();
    let applied = follower.step().await.unwrap().unwrap();
    assert_eq!((applied.from, applied.txid, applied.files), (Txid(15), txid, 1));
    source.assert_same(&copy, txid);
    assert!(look(&sqlite, true).unwrap() > before && copy.metadata().unwrap().len() < len);
    let next = source.transact().await;
    assert_eq!(catch_up(&mut follower).await, next);
    source.assert_same(&copy, next);
}

/// The same pages, as a snapshot that ends with a TXID.
fn as_snapshot(bytes: &[u8], txid: Txid) -> bytes::Bytes {
    let mut decoder = ltx::Decoder::new(bytes).unwrap();
    let header = ltx::Header { min_txid: Txid(1), max_txid: txid, ..*decoder.header() };
    let mut encoder = ltx::Encoder::new(Vec::new(), header).unwrap();
    let mut page = vec![0; header.page_size.bytes()];
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        encoder.page(pgno, &page).unwrap();
    }
    encoder.finish().unwrap().0.into()
}

#[tokio::test]
async fn a_damaged_file_is_not_applied() {
    let folder = tempfile::tempdir().unwrap();
    let mut source = Source::new(folder.path(), 4096, "WAL").await;
    let copy = folder.path().join("copy");
    let mut follower = follow(&source.replica, &copy).await;
    let txid = source.transact().await;
    let file = folder.path().join(format!("replica/ltx/0/{txid}-{txid}.ltx"));
    let good = std::fs::read(&file).unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..40 {
        let mut bad = good.clone();
        bad[random.usize(100..good.len())] ^= 1 << random.u8(0..8);
        std::fs::write(&file, bad).unwrap();
        let error = follower.step().await.unwrap_err();
        assert!(error.to_string().contains(".ltx"), "{error}");
        source.assert_same(&copy, Txid(1));
    }
    std::fs::write(&file, good).unwrap();
    assert_eq!(catch_up(&mut follower).await, txid);
    source.assert_same(&copy, txid);
}

#[tokio::test]
async fn what_it_cannot_go_on_from_is_said_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut source = Source::new(folder.path(), 4096, "WAL").await;
    let copy = folder.path().join("copy");
    let replica = source.replica.clone();
    let follow_file = folder.path().join("copy-follow");
    async fn refusal(replica: &Replica, copy: &Path) -> String {
        let before = std::fs::read(copy).unwrap();
        let error = match resume(replica, copy).await {
            Err(error) => error,
            Ok(mut follower) => follower.step().await.unwrap_err(),
        };
        assert_eq!(std::fs::read(copy).unwrap(), before);
        let text = error.to_string();
        assert!(text.contains("--force"), "no remedy in: {text}");
        text
    }
    let mut follower = follow(&replica, &copy).await;
    source.transact().await;
    catch_up(&mut follower).await;
    drop(follower);
    let [good, sidecar] = [&copy, &follow_file].map(|path| std::fs::read(path).unwrap());

    // Nothing beside it, or nonsense.
    std::fs::remove_file(&follow_file).unwrap();
    assert!(refusal(&replica, &copy).await.contains("nothing tells what it is a copy of"));
    std::fs::write(&follow_file, "replica x\nhave nonsense\n").unwrap();
    assert!(refusal(&replica, &copy).await.contains("nothing tells what it is a copy of"));
    // It claims what the file does not have: an older copy came back.
    source.transact().await;
    std::fs::write(&follow_file, &sidecar).unwrap();
    let mut follower = resume(&replica, &copy).await.unwrap();
    catch_up(&mut follower).await;
    source.transact().await;
    catch_up(&mut follower).await;
    drop(follower);
    let newer = std::fs::read(&copy).unwrap();
    std::fs::write(&copy, &good).unwrap();
    assert!(refusal(&replica, &copy).await.contains("it is not as it was left"));
    std::fs::write(&copy, &newer).unwrap();
    // Another replica.
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let text = refusal(&replica_in(&other), &copy).await;
    assert!(text.contains("is a copy of") && text.contains("other"), "{text}");
    // Another program wrote: while nobody follows, and under the follower.
    for under in [false, true] {
        let txid = source.transact().await;
        let mut follower = Some(resume(&replica, &copy).await.unwrap()).filter(|_| under);
        let kept = std::fs::read(&copy).unwrap();
        Connection::open(&copy).unwrap().execute_batch("UPDATE account SET balance = 0 WHERE id = 1").unwrap();
        let text = match &mut follower {
            Some(follower) => follower.step().await.unwrap_err().to_string(),
            None => refusal(&replica, &copy).await,
        };
        assert!(text.contains("another program has written to it"), "{text}");
        drop(follower);
        std::fs::write(&copy, kept).unwrap();
        assert_eq!(catch_up(&mut resume(&replica, &copy).await.unwrap()).await, txid);
    }
    // Another file took its place.
    source.transact().await;
    let mut follower = resume(&replica, &copy).await.unwrap();
    let aside = folder.path().join("aside");
    std::fs::copy(&copy, &aside).unwrap();
    std::fs::rename(&aside, &copy).unwrap();
    assert!(follower.step().await.unwrap_err().to_string().contains("another file took its place"));
    drop(follower);
    catch_up(&mut resume(&replica, &copy).await.unwrap()).await;

    // The replica holds another transaction of the same number; then the same one again.
    let last = Txid(source.txid);
    let file = folder.path().join(format!("replica/ltx/0/{last}-{last}.ltx"));
    let kept = std::fs::read(&file).unwrap();
    let (mut decoder, mut page) = (ltx::Decoder::new(kept.as_slice()).unwrap(), vec![0; 4096]);
    let mut encoder = ltx::Encoder::new(Vec::new(), *decoder.header()).unwrap();
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        page[4000] ^= 1;
        encoder.page(pgno, &page).unwrap();
    }
    std::fs::write(&file, encoder.finish().unwrap().0).unwrap();
    let text = refusal(&replica, &copy).await;
    assert!(text.contains("holds another transaction") && text.contains(&last.to_string()), "{text}");
    std::fs::write(&file, kept).unwrap();
    assert_eq!(resume(&replica, &copy).await.unwrap().step().await.unwrap(), None);
    // It has gone back.
    let files = replica.level(Level::ZERO, last.previous()).await.unwrap();
    let bytes: Vec<_> =
        files.iter().map(|file| std::fs::read(folder.path().join("replica").join(file.key())).unwrap()).collect();
    replica.delete(&files).await.unwrap();
    let text = refusal(&replica, &copy).await;
    let found = Txid(last.0 - 2);
    assert!(
        text.contains("has gone back") && text.contains(&last.to_string()) && text.contains(&found.to_string()),
        "{text}"
    );
    for (file, bytes) in files.iter().zip(bytes) {
        replica.put_file(Level::ZERO, file.name, Body::Bytes(bytes.into()), Timestamp(0)).await.unwrap();
    }
    // The pages have another size.
    source.sqlite.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA page_size = 8192; VACUUM").unwrap();
    source.recorder = Recorder::new();
    let bytes = source.recorder.record(&source.path, 0).unwrap().bytes;
    let name = FileName::new(Txid(1), last.next());
    replica.put_file(Level::SNAPSHOT, name, Body::Bytes(as_snapshot(&bytes, last.next())), Timestamp(0)).await.unwrap();
    replica.delete(&replica.level(Level::ZERO, Txid::ZERO).await.unwrap()).await.unwrap();
    let text = refusal(&replica, &copy).await;
    assert!(text.contains("from 4096 to 8192"), "{text}");
    // The remedy that all of them name.
    let (plan, listing) = find(&replica, Target::Latest).await.unwrap();
    let restore = RestoreOptions { overwrite: Overwrite::Replace, ..RestoreOptions::default() };
    let options = FollowOptions { restore, ..options() };
    let (follower, _) = Follower::restore(&replica, plan, listing, &copy, &options).await.unwrap();
    assert_eq!((follower.txid(), follower.page_size().get()), (last.next(), 8192));
    assert!(comparable(&copy) == comparable(&source.path));
}

#[tokio::test]
async fn replicas_that_litestream_wrote_are_followed_to_what_they_restore_to() {
    let mut steps = 0;
    for golden in golden::all().into_iter().filter(|golden| golden.replica().join("ltx").is_dir()) {
        let folder = tempfile::tempdir().unwrap();
        let [restored, copy] = ["restored", "copy"].map(|name| folder.path().join(name));
        let replica = replica_in(&golden.replica());
        restore(&replica, &restored, &RestoreOptions::default()).await.unwrap();
        // From the oldest state that there is.
        let listing = litestream_pageindex::Listing::full(&replica).await.unwrap();
        let mut states: Vec<Txid> =
            listing.files().filter(|file| file.name.is_snapshot()).map(|file| file.name.max).collect();
        states.sort_unstable();
        let (plan, listing) = find(&replica, Target::Txid(states[0])).await.unwrap();
        let (mut follower, _) = Follower::restore(&replica, plan, listing, &copy, &options()).await.unwrap();
        while follower.step().await.unwrap().is_some() {
            steps += 1;
        }
        assert!(comparable(&copy) == comparable(&restored), "{}", golden.name);
    }
    assert!(steps > 3, "{steps}");
}
