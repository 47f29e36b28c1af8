//! The rules of the VFS, by number. (Those that need a host of their own – 8's fork, 21's count, 27's environment – have tests in `process.rs` and
//! with the examples, which are run in real hosts.)

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use litestream_fixtures::db::DbOptions;
use litestream_fixtures::golden;
use litestream_fixtures::s3::{Down, Operation};
use litestream_storage::Level;
use rusqlite::Connection;

use super::common::{BUCKET, World, eventually, open_uri, text};

/// A bank of 1,000 in all, whatever is moved; `n` counts the transactions.
fn bank() -> World {
    let mut world = World::empty();
    world.commit(
        "CREATE TABLE account(id INTEGER PRIMARY KEY, amount INTEGER, note BLOB);
         CREATE TABLE counter(n INTEGER);
         INSERT INTO counter VALUES(0);
         WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 500)
         INSERT INTO account SELECT i, 2, randomblob(900) FROM n",
    );
    // As Litestream does when it begins.
    world.compact(9);
    world
}

const MOVE: &str = "BEGIN;
    UPDATE account SET amount = amount - 1, note = randomblob(900) WHERE id = abs(random() % 500) + 1;
    UPDATE account SET amount = amount + 1 WHERE id = abs(random() % 500) + 1;
    UPDATE account SET amount = amount + 1000 - (SELECT sum(amount) FROM account) WHERE id = 1;
    UPDATE counter SET n = n + 1;
    COMMIT";

/// The counter, after checking in the same transaction that all is consistent.
fn check_bank(connection: &Connection) -> rusqlite::Result<i64> {
    connection.execute_batch("BEGIN")?;
    let checked = (|| {
        let first: i64 = connection.query_row("SELECT n FROM counter", [], |row| row.get(0))?;
        let sum: i64 = connection.query_row("SELECT sum(amount) FROM account", [], |row| row.get(0))?;
        assert_eq!(sum, 1000, "at {first}");
        assert_eq!(text(connection, "PRAGMA integrity_check")?, "ok", "at {first}");
        let last: i64 = connection.query_row("SELECT n FROM counter", [], |row| row.get(0))?;
        assert_eq!(first, last, "one transaction, one state");
        Ok(first)
    })();
    connection.execute_batch("ROLLBACK")?;
    checked
}

#[test]
fn rule_01_a_transaction_sees_one_state_and_later_ones_never_an_older_one() {
    let mut world = bank();
    let done = AtomicBool::new(false);
    let uris: Vec<String> = (0..4).map(|_| world.uri("&poll_interval=20ms&cache_size=65536")).collect();
    std::thread::scope(|scope| {
        let readers: Vec<_> = uris
            .iter()
            .map(|uri| {
                scope.spawn(|| {
                    let connection = open_uri(uri).unwrap();
                    let (mut last, mut seen) = (0, 0);
                    while !done.load(Ordering::Relaxed) {
                        let now = check_bank(&connection).unwrap();
                        assert!(now >= last, "back from {last} to {now}");
                        seen += u32::from(now > last);
                        last = now;
                    }
                    seen
                })
            })
            .collect();
        for round in 1..=60 {
            world.commit(MOVE);
            if round % 5 == 0 {
                world.compact(1);
            }
            if round % 15 == 0 {
                world.compact(2);
            }
            if round % 30 == 0 {
                world.compact(9);
            }
            std::thread::park_timeout(Duration::from_millis(30));
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            let seen = reader.join().unwrap();
            assert!(seen >= 5, "a reader saw only {seen} states");
        }
    });
}

#[test]
fn rule_01_an_open_transaction_keeps_its_state_while_everything_moves() {
    let mut world = bank();
    let connection = world.open("&poll_interval=20ms").unwrap();
    connection.execute_batch("BEGIN").unwrap();
    assert_eq!(text(&connection, "SELECT n FROM counter").unwrap(), "0");
    for _ in 0..12 {
        world.commit(MOVE);
    }
    world.compact(1);
    world.compact(9);
    let other = world.open("&poll_interval=20ms").unwrap();
    eventually("another connection is up to date", || check_bank(&other).unwrap() == 12);
    assert_eq!(text(&connection, "SELECT n FROM counter").unwrap(), "0");
    assert_eq!(text(&connection, "SELECT sum(amount) FROM account").unwrap(), "1000");
    assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
    connection.execute_batch("COMMIT").unwrap();
    eventually("the next transaction is up to date", || check_bank(&connection).unwrap() == 12);
}

#[test]
fn rule_02_growth_vacuum_and_incremental_vacuum_are_followed() {
    let mut world = World::with(|path| {
        let source = Connection::open(path).unwrap();
        source
            .execute_batch("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; CREATE TABLE t(a, b)")
            .unwrap();
    });
    world.put(Level::ZERO);
    let connection = world.open("&poll_interval=10ms").unwrap();
    let steps = [
        "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 3000) INSERT INTO t SELECT i, randomblob(500) FROM n",
        "DELETE FROM t WHERE a % 3 = 0",
        "PRAGMA incremental_vacuum(100)",
        "VACUUM",
        "INSERT INTO t SELECT a, b FROM t",
        "DELETE FROM t",
        "PRAGMA incremental_vacuum",
        "INSERT INTO t VALUES(1, zeroblob(100000))",
    ];
    for step in steps {
        let txid = world.commit(step);
        eventually(step, || text(&connection, "PRAGMA litestream_txid").unwrap() == txid.to_string());
        let sql = "SELECT count(*) || ' ' || coalesce(sum(a), 0) || ' ' || coalesce(sum(length(b)), 0) FROM t";
        assert_eq!(text(&connection, sql).unwrap(), text(&world.source, sql).unwrap(), "{step}");
        for pragma in ["PRAGMA page_count", "PRAGMA freelist_count", "PRAGMA integrity_check"] {
            assert_eq!(text(&connection, pragma).unwrap(), text(&world.source, pragma).unwrap(), "{step}: {pragma}");
        }
    }
}

/// A bank whose files of level 0 have all gone into level 1, and so are deleted but for the newest.
fn drop_level_0(world: &World) {
    world.compact(1);
    let keys: Vec<String> = world.server.keys(BUCKET).into_iter().filter(|key| key.starts_with("db/0000/")).collect();
    assert_eq!(keys.len(), 1, "{keys:?}");
}

#[test]
fn rule_03_files_that_vanish_lead_to_the_same_transaction_by_other_files() {
    let mut world = World::built(&DbOptions { bytes: 4 << 20, ..DbOptions::default() });
    world.put(Level::ZERO);
    let connection = world.open("&poll_interval=20ms").unwrap();
    // Pages of the first file, far more than came along at open, are not there yet when it vanishes.
    connection.execute_batch("BEGIN").unwrap();
    let txid = text(&connection, "PRAGMA litestream_txid").unwrap();
    assert_eq!(
        text(&connection, "SELECT count(*) FROM sqlite_schema").unwrap(),
        text(&world.source, "SELECT count(*) FROM sqlite_schema").unwrap()
    );
    world.compact(9);
    let gone: Vec<String> = world.server.keys(BUCKET).into_iter().filter(|key| key.starts_with("db/0000/")).collect();
    for key in gone {
        assert!(world.server.remove_object(BUCKET, &key));
    }
    assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
    assert_eq!(text(&connection, "PRAGMA litestream_txid").unwrap(), txid);
    connection.execute_batch("COMMIT").unwrap();
}

#[test]
fn rule_03_a_gap_is_bridged_by_higher_levels() {
    let mut world = bank();
    let connection = world.open("&poll_interval=20ms").unwrap();
    assert_eq!(check_bank(&connection).unwrap(), 0);
    // Nothing is looked at while nobody reads.
    for _ in 0..20 {
        world.commit(MOVE);
    }
    drop_level_0(&world);
    eventually("the reader is past the gap", || check_bank(&connection).unwrap() == 20);
}

#[test]
fn rule_03_a_transaction_that_is_gone_for_good_is_an_error_and_the_next_one_works() {
    let mut world = World::built(&DbOptions { bytes: 4 << 20, ..DbOptions::default() });
    world.put(Level::ZERO);
    let connection = world.open("&poll_interval=20ms").unwrap();
    connection.execute_batch("BEGIN").unwrap();
    assert_eq!(
        text(&connection, "SELECT count(*) FROM sqlite_schema").unwrap(),
        text(&world.source, "SELECT count(*) FROM sqlite_schema").unwrap()
    );
    world.commit("CREATE TABLE more(x); INSERT INTO more VALUES(1)");
    world.compact(9);
    let gone: Vec<String> = world.server.keys(BUCKET).into_iter().filter(|key| key.starts_with("db/0000/")).collect();
    for key in gone {
        assert!(world.server.remove_object(BUCKET, &key));
    }
    let error = text(&connection, "PRAGMA integrity_check").map(|text| assert_ne!(text, "ok"));
    let error = error.and_then(|()| text(&connection, "SELECT sum(length(body)) FROM t0")).unwrap_err();
    assert!(error.to_string().contains("disk I/O error"), "{error}");
    let why = text(&connection, "SELECT litestream_error()").unwrap();
    assert!(why.contains("0000000000000001") && why.contains("not available"), "{why}");
    // SQLite has rolled back already.
    assert!(connection.is_autocommit());
    assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
    assert_eq!(text(&connection, "SELECT x FROM more").unwrap(), "1");
}

#[test]
fn rule_03_small_files_that_vanish_are_read_on_beyond_what_memory_holds() {
    let mut world = World::empty();
    world.commit("CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)");
    // Each file is a small one, and all together are more than stays in memory.
    let add = "INSERT INTO t(body) VALUES(randomblob(230000))";
    for _ in 0..300 {
        world.commit(add);
    }
    let connection = world.open("&poll_interval=20ms").unwrap();
    for _ in 0..5 {
        world.commit(add);
    }
    eventually("the newest is seen", || text(&connection, "SELECT count(*) FROM t").unwrap() == "305");
    connection.execute_batch("BEGIN").unwrap();
    assert_eq!(text(&connection, "SELECT count(*) FROM t").unwrap(), "305");
    for key in world.server.keys(BUCKET) {
        assert!(world.server.remove_object(BUCKET, &key));
    }
    assert!(stat(&connection, "spilled_bytes") > 1 << 20);
    let body = |connection: &Connection, id: u32| -> Vec<u8> {
        connection.query_row("SELECT body FROM t WHERE id = ?1", [id], |row| row.get(0)).unwrap()
    };
    for id in 1..=305 {
        assert!(body(&connection, id) == body(&world.source, id), "row {id}");
    }
    assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
    connection.execute_batch("COMMIT").unwrap();
}

#[test]
fn rule_04_every_page_size_is_read_and_reads_past_the_end_are_short() {
    super::common::register();
    for golden in golden::all().iter().filter(|golden| golden.name != "v03") {
        let url = format!("file://{}", golden.replica().display());
        let connection = open_uri(&format!("file:g.db?vfs=litestream&replica_url={url}")).unwrap();
        assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok", "{}", golden.name);
        let latest = golden.expected.latest().unwrap();
        assert_eq!(
            text(&connection, "PRAGMA litestream_txid").unwrap(),
            format!("{:016x}", latest.txid),
            "{}",
            golden.name
        );
    }
}

#[test]
fn rule_04_the_lock_page_reads_as_zeros_in_a_database_over_one_gibibyte() {
    let mut world = World::with(|path| {
        let source = Connection::open(path).unwrap();
        source.execute_batch("PRAGMA page_size = 65536; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, body)").unwrap();
        source.execute_batch("BEGIN").unwrap();
        for id in 0..540 {
            source.execute("INSERT INTO t VALUES(?1, zeroblob(2000000))", [id]).unwrap();
        }
        source.execute_batch("COMMIT").unwrap();
    });
    world.put(Level::SNAPSHOT);
    let connection = world.open("").unwrap();
    let pages: u32 = text(&connection, "PRAGMA page_count").unwrap().parse().unwrap();
    assert!(pages > 16_385, "{pages} pages");
    assert_eq!(text(&connection, "SELECT sum(length(body)) FROM t").unwrap(), "1080000000");
    assert_eq!(text(&connection, "PRAGMA quick_check").unwrap(), "ok");
}

/// One of the connection's numbers.
fn stat(connection: &Connection, name: &str) -> u64 {
    let stats = text(connection, "PRAGMA litestream_stats").unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap().parse().unwrap()
}

/// How often the connection has asked us for a page.
fn reads(connection: &Connection) -> u64 {
    stat(connection, "reads")
}

#[test]
fn rule_05_sqlite_keeps_its_page_cache_exactly_while_the_view_stands_still() {
    let mut world = bank();
    let connection = world.open("&poll_interval=20ms").unwrap();
    let all = "SELECT sum(amount), sum(length(note)) FROM account";
    text(&connection, all).unwrap();
    let before = reads(&connection);
    for _ in 0..10 {
        text(&connection, all).unwrap();
    }
    // Each transaction looks at the change counter once, and at nothing else.
    assert!(reads(&connection) - before <= 10, "{} reads", reads(&connection) - before);
    let txid = world.commit("UPDATE account SET amount = amount + 7 WHERE id = 1");
    eventually("the change is seen", || text(&connection, "PRAGMA litestream_txid").unwrap() == txid.to_string());
    assert_eq!(text(&connection, "SELECT sum(amount) FROM account").unwrap(), "1007");
}

#[test]
fn rule_05_equal_counters_never_stand_over_different_content() {
    let mut world = bank();
    // Many of SQLite's commits in one TXID, and one in each: SQLite's own counters say little.
    let mut sums = vec![(world.commit("SELECT 1; UPDATE counter SET n = 100"), 100)];
    for n in 101..110 {
        sums.push((world.commit(&format!("UPDATE counter SET n = {n}")), n));
    }
    let connection = world.open("&poll_interval=1h").unwrap();
    let random = &mut fastrand_like(7);
    for _ in 0..60 {
        let (txid, n) = sums[random() as usize % sums.len()];
        text(&connection, &format!("PRAGMA litestream_time = '{txid}'")).unwrap();
        assert_eq!(text(&connection, "SELECT n FROM counter").unwrap(), n.to_string(), "at {txid}");
        if random().is_multiple_of(3) {
            text(&connection, "PRAGMA litestream_time = 'latest'").unwrap();
            assert_eq!(text(&connection, "SELECT n FROM counter").unwrap(), "109");
        }
    }
    assert_eq!(text(&connection, "PRAGMA journal_mode").unwrap(), "delete");
}

/// A small generator of numbers.
fn fastrand_like(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}

#[test]
fn rule_06_an_empty_replica_is_waited_for_as_long_as_told() {
    let mut world = World::empty();
    let started = Instant::now();
    let empty = world.open("&open_timeout=300ms&poll_interval=50ms").unwrap();
    let error = text(&empty, "SELECT 1 FROM sqlite_schema").unwrap_err();
    assert!(error.to_string().contains("unable to open"), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(200) && started.elapsed() < Duration::from_secs(8));
    let why = text(&Connection::open_in_memory().unwrap(), "SELECT litestream_error()").unwrap();
    assert!(why.contains("empty") && why.contains("0.3 s"), "{why}");
    // Who cannot wait, or would have to look at what is not there, is told at once or when the time is up.
    for more in [
        "&open_timeout=0s",
        "&open_timeout=200ms&poll_interval=50ms&at=latest",
        "&open_timeout=200ms&poll_interval=50ms&immutable=1",
    ] {
        let error = world.open(more).unwrap_err();
        assert!(error.to_string().contains("unable to open"), "{more}: {error}");
    }
    // What comes meanwhile is found.
    let uri = world.uri("&open_timeout=20s&poll_interval=50ms");
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| {
            let connection = open_uri(&uri).unwrap();
            text(&connection, "SELECT x FROM t").unwrap()
        });
        std::thread::park_timeout(Duration::from_millis(200));
        world.commit("CREATE TABLE t(x); INSERT INTO t VALUES(42)");
        assert_eq!(opened.join().unwrap(), "42");
    });
}

#[test]
fn rule_06_a_failed_open_says_why_and_leaves_nothing() {
    super::common::register();
    let cases = [
        ("file:x.db?vfs=litestream&replica_url=s3://", "replica_url"),
        ("file:x.db?vfs=litestream&replica_url=file:///tmp&poll_interval=soon", "poll_interval"),
        ("file:x.db?vfs=litestream&replica_url=file:///tmp&cache_size=lots", "cache_size"),
        ("file:x.db?vfs=litestream&replica_url=file:///nowhere/at/all&open_timeout=50ms", "nowhere"),
    ];
    for (uri, named) in cases {
        let error = open_uri(uri).and_then(|connection| text(&connection, "SELECT 1 FROM sqlite_schema")).unwrap_err();
        assert!(error.to_string().contains("unable to open"), "{uri}: {error}");
        let why = text(&Connection::open_in_memory().unwrap(), "SELECT litestream_error()").unwrap();
        assert!(why.contains(named), "{uri}: {why}");
    }
    let world = bank();
    let connection = world.open("").unwrap();
    assert_eq!(check_bank(&connection).unwrap(), 0);
}

#[test]
fn rule_07_an_object_that_was_replaced_is_an_error_that_names_it() {
    for cut in [true, false] {
        let mut world = World::built(&DbOptions { bytes: 2 << 20, ..DbOptions::default() });
        world.put(Level::ZERO);
        let connection = world.open("&poll_interval=1h").unwrap();
        text(&connection, "SELECT count(*) FROM sqlite_schema").unwrap();
        let key = world.server.keys(BUCKET).into_iter().find(|key| key.starts_with("db/0000/")).unwrap();
        let bytes = world.server.object(BUCKET, &key).unwrap();
        let other = if cut {
            bytes.slice(..bytes.len() - 1)
        } else {
            // Another database altogether, under the same name.
            let mut other = World::built(&DbOptions { bytes: 2 << 20, seed: 9, ..DbOptions::default() });
            other.put(Level::ZERO);
            other.server.object(BUCKET, &key).unwrap()
        };
        world.server.put_object(BUCKET, &key, other, &[]);
        let error = text(&connection, "SELECT sum(length(body)) || sum(number) FROM t0").unwrap_err();
        assert!(error.to_string().contains("disk I/O error"), "{error}");
        let why = text(&connection, "PRAGMA litestream_error").unwrap();
        assert!(why.contains("0000000000000001-0000000000000001.ltx"), "{why}");
        // Put back, all is well again.
        world.server.put_object(BUCKET, &key, bytes, &[]);
        assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
    }
}

#[test]
fn rule_07_an_object_cut_short_before_the_open_is_an_error_that_names_it() {
    let mut world = bank();
    world.commit(MOVE);
    let key = world.server.keys(BUCKET).into_iter().find(|key| key.starts_with("db/0009/")).unwrap();
    let bytes = world.server.object(BUCKET, &key).unwrap();
    world.server.put_object(BUCKET, &key, bytes.slice(..bytes.len() / 2), &[]);
    world.open("").unwrap_err();
    let why = text(&Connection::open_in_memory().unwrap(), "SELECT litestream_error()").unwrap();
    assert!(why.contains(&key[3..]), "{key}: {why}");
}

#[test]
fn rule_07_a_rewritten_history_is_never_mixed_with_the_old_one() {
    // Two daemons that put without asking: one wrote 2, the other one, which had seen only 1, writes 2 again, and then 3.
    let (mut one, mut other) = (bank(), bank());
    let connection = one.open("&poll_interval=20ms").unwrap();
    one.commit("UPDATE counter SET n = 77; UPDATE account SET note = zeroblob(900)");
    eventually("the first history is seen", || text(&connection, "SELECT n FROM counter").unwrap() == "77");
    // The same first transaction, so that the second history continues it.
    let base = one.server.keys(BUCKET);
    for key in &base {
        assert!(one.server.remove_object(BUCKET, key));
    }
    other.commit("UPDATE counter SET n = 5");
    other.commit("UPDATE account SET amount = amount + 1 WHERE id = 2");
    for key in other.server.keys(BUCKET) {
        one.server.put_object(BUCKET, &key, other.server.object(BUCKET, &key).unwrap(), &[]);
    }
    let all = "SELECT sum(amount) || ' ' || (SELECT n FROM counter) || ' ' || hex(max(note)) FROM account";
    let truth = text(&other.source, all).unwrap();
    eventually("the second history is seen, whole", || text(&connection, all).is_ok_and(|found| found == truth));
    assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
}

/// A bank after three further transactions, all of them in one file of level 1, and the newest in one of level 0, too.
fn compacted_bank() -> World {
    let mut world = bank();
    for n in 1..=3 {
        world.commit(&format!("UPDATE counter SET n = {n}; UPDATE account SET note = randomblob(900) WHERE id = {n}"));
    }
    drop_level_0(&world);
    world
}

fn lag(connection: &Connection) -> f64 {
    text(connection, "PRAGMA litestream_lag").unwrap().parse().unwrap()
}

#[test]
fn rule_07_a_history_rewritten_where_a_compacted_file_ends_is_not_mixed_with_the_old_one() {
    // Two daemons again, and the first one had compacted its 4 before the other one wrote another 4.
    let (one, mut other) = (compacted_bank(), compacted_bank());
    let connection = one.open("&poll_interval=20ms").unwrap();
    assert_eq!(check_bank(&connection).unwrap(), 3);
    // What the connection reads ends with the file of level 1.
    let newest = "db/0000/0000000000000004-0000000000000004.ltx";
    let kept = one.server.object(BUCKET, newest).unwrap();
    let put = |one: &World, other: &World| {
        for key in other.server.keys(BUCKET).into_iter().filter(|key| key.starts_with("db/0000/")) {
            one.server.put_object(BUCKET, &key, other.server.object(BUCKET, &key).unwrap(), &[]);
        }
    };
    put(&one, &other);
    eventually("the lag tells", || check_bank(&connection).unwrap() == 3 && lag(&connection) > 0.05);
    // Put back, all is well again.
    one.server.put_object(BUCKET, newest, kept, &[]);
    eventually("the lag is gone", || check_bank(&connection).unwrap() == 3 && lag(&connection) == 0.0);
    // That history goes on.
    other.commit("UPDATE counter SET n = 77");
    put(&one, &other);
    let polls = stat(&connection, "polls");
    eventually("there are some polls", || {
        check_bank(&connection).unwrap() == 3 && stat(&connection, "polls") > polls + 3
    });
    assert_eq!(text(&connection, "PRAGMA litestream_txid").unwrap(), "0000000000000004");
    assert!(lag(&connection) > 0.05);
    // A snapshot of the other history stands for itself.
    other.compact(9);
    let snapshot = "db/0009/0000000000000001-0000000000000005.ltx";
    one.server.put_object(BUCKET, snapshot, other.server.object(BUCKET, snapshot).unwrap(), &[]);
    let all = "SELECT sum(amount) || ' ' || (SELECT n FROM counter) || ' ' || hex(max(note)) FROM account";
    let truth = text(&other.source, all).unwrap();
    eventually("the other history is seen, whole", || text(&connection, all).unwrap() == truth);
    assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
}

#[test]
fn rule_07_what_retention_removes_is_no_rewritten_history() {
    let mut world = compacted_bank();
    let connection = world.open("&poll_interval=20ms").unwrap();
    assert_eq!(check_bank(&connection).unwrap(), 3);
    let polls = |connection: &Connection| {
        let before = stat(connection, "polls");
        eventually("there are some polls", || check_bank(connection).is_ok() && stat(connection, "polls") > before + 3);
        assert!(lag(connection) == 0.0, "a false alarm: {}", lag(connection));
    };
    // The newest of level 0 goes once it is not the newest any more.
    world.commit("UPDATE counter SET n = 4");
    assert!(world.server.remove_object(BUCKET, "db/0000/0000000000000004-0000000000000004.ltx"));
    eventually("it is followed", || check_bank(&connection).unwrap() == 4);
    polls(&connection);
    // The transaction that is seen is compacted, and its file of level 0 stays, is put again as it was, and even goes.
    world.compact(1);
    let newest = "db/0000/0000000000000005-0000000000000005.ltx";
    let kept = world.server.object(BUCKET, newest).unwrap();
    let other = world.open("&poll_interval=30ms").unwrap();
    for connection in [&connection, &other] {
        polls(connection);
    }
    world.server.put_object(BUCKET, newest, kept, &[]);
    for connection in [&connection, &other] {
        polls(connection);
    }
    assert!(world.server.remove_object(BUCKET, newest));
    for connection in [&connection, &other] {
        polls(connection);
        assert_eq!(check_bank(connection).unwrap(), 4);
    }
    world.commit("UPDATE counter SET n = 5");
    for connection in [&connection, &other] {
        eventually("it is followed", || check_bank(connection).unwrap() == 5);
        polls(connection);
    }
}

#[test]
fn rule_07_a_replica_that_was_made_anew_is_not_taken_for_the_old_one() {
    let mut old = bank();
    for _ in 0..5 {
        old.commit(MOVE);
    }
    let connection = old.open("&poll_interval=20ms").unwrap();
    assert_eq!(check_bank(&connection).unwrap(), 5);
    for key in old.server.keys(BUCKET) {
        assert!(old.server.remove_object(BUCKET, &key));
    }
    let mut anew = bank();
    anew.commit(MOVE);
    for key in anew.server.keys(BUCKET) {
        old.server.put_object(BUCKET, &key, anew.server.object(BUCKET, &key).unwrap(), &[]);
    }
    // It ends before what was read: nothing moves, and the lag says that something is wrong.
    eventually("the lag tells", || text(&connection, "PRAGMA litestream_lag").unwrap().parse::<f64>().unwrap() > 0.05);
    assert_eq!(text(&connection, "PRAGMA litestream_txid").unwrap(), "0000000000000006");
}

#[test]
fn rule_08_an_interrupt_ends_a_wait_for_the_network() {
    let mut world = World::built(&DbOptions { bytes: 2 << 20, ..DbOptions::default() });
    world.put(Level::ZERO);
    let connection = world.open("&poll_interval=1h").unwrap();
    text(&connection, "SELECT count(*) FROM sqlite_schema").unwrap();
    world.server.set_down(Some(Down::Silent)).unwrap();
    let handle = connection.get_interrupt_handle();
    let (took, error) = std::thread::scope(|scope| {
        let query = scope.spawn(move || {
            text(&connection, "SELECT sum(length(body)) FROM t0")
                .map(|_| Instant::now())
                .map_err(|error| (error, Instant::now()))
        });
        std::thread::park_timeout(Duration::from_millis(300));
        let interrupted = Instant::now();
        handle.interrupt();
        let (error, ended) = query.join().unwrap().unwrap_err();
        (ended - interrupted, error)
    });
    assert!(error.to_string().contains("interrupted"), "{error}");
    // A request's own limit is 5 s and its patience 30 s.
    assert!(took < Duration::from_secs(3), "{took:?}");
    world.server.set_down(None).unwrap();
    let connection = world.open("&poll_interval=1h").unwrap();
    assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
}

#[test]
fn rule_09_time_travel_is_each_connections_own() {
    let mut world = bank();
    let first = world.commit(MOVE);
    let between = world.time() + 500;
    world.commit(MOVE);
    let past = world.open("&poll_interval=20ms").unwrap();
    let present = world.open("&poll_interval=20ms").unwrap();
    let between = litestream_storage::format_time(ltx::Timestamp(between));
    text(&past, &format!("PRAGMA litestream_time = '{between}'")).unwrap();
    assert_eq!(text(&past, "PRAGMA litestream_txid").unwrap(), first.to_string());
    world.commit(MOVE);
    eventually("the other one follows", || check_bank(&present).unwrap() == 3);
    assert_eq!(check_bank(&past).unwrap(), 1);
    // Not while a transaction runs, and then nothing changes.
    past.execute_batch("BEGIN").unwrap();
    assert_eq!(text(&past, "SELECT n FROM counter").unwrap(), "1");
    let error = text(&past, "PRAGMA litestream_time = 'latest'").unwrap_err();
    assert!(error.to_string().contains("inside a transaction"), "{error}");
    past.execute_batch("COMMIT").unwrap();
    let error = past.execute_batch("DELETE FROM counter").unwrap_err();
    assert!(error.to_string().contains("readonly"), "{error}");
    // An impossible time is an error that says what there is, and leaves everything as it was.
    for (time, says) in
        [("2001-01-01T00:00:00Z", "oldest"), ("tomorrow", "not a time"), ("00000000000000ff", "not available")]
    {
        let error = text(&past, &format!("PRAGMA litestream_time = '{time}'")).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!(check_bank(&past).unwrap(), 1);
    text(&past, "SELECT litestream_set_time('latest')").unwrap();
    eventually("back in the present", || check_bank(&past).unwrap() == 3);
    // Two times side by side in one connection, and one fixed at open.
    let both = world.open(&format!("&at={first}")).unwrap();
    both.execute_batch(&format!("ATTACH '{}' AS now", world.uri(""))).unwrap();
    assert_eq!(text(&both, "SELECT main.counter.n || now.counter.n FROM main.counter, now.counter").unwrap(), "13");
    assert!(text(&both, "PRAGMA main.litestream_time = 'latest'").is_err());
    assert_eq!(text(&both, "SELECT litestream_txid('now') > litestream_txid('main')").unwrap(), "1");
}

#[test]
fn rule_22_wal_is_declined_quietly_in_exclusive_mode_too() {
    let world = bank();
    let connection = world.open("").unwrap();
    assert_eq!(text(&connection, "PRAGMA locking_mode = EXCLUSIVE").unwrap(), "exclusive");
    assert_eq!(text(&connection, "PRAGMA journal_mode = WAL").unwrap(), "delete");
    assert_eq!(check_bank(&connection).unwrap(), 0);
    assert_eq!(check_bank(&connection).unwrap(), 0);
}

#[test]
fn rule_23_files_that_are_never_locked_are_pinned_at_open() {
    let mut world = bank();
    for parameter in ["&immutable=1", "&nolock=1"] {
        let connection = world.open(&format!("&poll_interval=10ms{parameter}")).unwrap();
        let before = text(&connection, "SELECT n FROM counter").unwrap();
        world.commit(MOVE);
        let other = world.open("&poll_interval=10ms").unwrap();
        eventually("another one follows", || text(&other, "SELECT n FROM counter").unwrap() != before);
        assert_eq!(text(&connection, "SELECT n FROM counter").unwrap(), before, "{parameter}");
        assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
    }
}

#[test]
fn rule_25_a_shared_cache_works() {
    let mut world = bank();
    let connections: Vec<Connection> =
        (0..3).map(|_| world.open("&cache=shared&poll_interval=20ms").unwrap()).collect();
    for _ in 0..3 {
        world.commit(MOVE);
    }
    for connection in &connections {
        eventually("all follow", || check_bank(connection).unwrap() == 3);
    }
    std::thread::scope(|scope| {
        for connection in connections {
            scope.spawn(move || assert_eq!(check_bank(&connection).unwrap(), 3));
        }
    });
}

#[test]
fn rule_25_a_shared_cache_is_shared_by_the_same_database_only() {
    let mut world = bank();
    let first = world.commit(MOVE);
    world.commit(MOVE);
    let mut other = bank();
    for _ in 0..5 {
        other.commit(MOVE);
    }
    let latest = world.open("&cache=shared").unwrap();
    assert_eq!(check_bank(&latest).unwrap(), 2);
    let past = world.open(&format!("&cache=shared&at={first}")).unwrap();
    assert_eq!(check_bank(&past).unwrap(), 1);
    let elsewhere = other.open("&cache=shared").unwrap();
    assert_eq!(check_bank(&elsewhere).unwrap(), 5);
    assert_eq!(check_bank(&latest).unwrap(), 2);
    // Sharing by a flag says nothing in the URI.
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE
        | rusqlite::OpenFlags::SQLITE_OPEN_URI
        | rusqlite::OpenFlags::SQLITE_OPEN_SHARED_CACHE;
    let open = |uri: String| Connection::open_with_flags(uri, flags).unwrap();
    let (latest, past) = (open(world.uri("")), open(world.uri(&format!("&at={first}"))));
    assert_eq!((check_bank(&latest).unwrap(), check_bank(&past).unwrap()), (2, 1));
}

#[test]
fn rule_26_nobody_reads_nobody_polls() {
    let mut world = bank();
    let connection = world.open("&poll_interval=50ms").unwrap();
    assert_eq!(check_bank(&connection).unwrap(), 0);
    let server = &world.server;
    let lists = || server.stats().count(Operation::ListObjectsV2);
    eventually("polling goes on for a while", || lists() > 6);
    let mut before = lists();
    eventually("and ends", || {
        std::thread::park_timeout(Duration::from_millis(500));
        let now = lists();
        std::mem::replace(&mut before, now) == now
    });
    // After idleness the first reader waits for a fresh look.
    world.commit(MOVE);
    assert_eq!(check_bank(&connection).unwrap(), 1);
}

#[test]
fn faults_never_give_wrong_rows() {
    let mut world = bank();
    for _ in 0..40 {
        world.commit(MOVE);
    }
    world.compact(9);
    let truth: Vec<String> = (1..=500)
        .map(|id| text(&world.source, &format!("SELECT hex(note) FROM account WHERE id = {id}")).unwrap())
        .collect();
    world.server.set_faults(super::faults(0.05, 11));
    let random = &mut fastrand_like(3);
    let (mut right, mut errors) = (0, 0);
    for round in 0..10 {
        let Ok(reader) = world.open(&format!("&poll_interval=50ms&cache_size={}", 64 + round)) else {
            errors += 1;
            continue;
        };
        for _ in 0..20 {
            let id = random() as usize % 500;
            match text(&reader, &format!("SELECT hex(note) FROM account WHERE id = {}", id + 1)) {
                Ok(found) => {
                    assert_eq!(found, truth[id]);
                    right += 1;
                }
                Err(error) => {
                    assert!(error.to_string().contains("disk I/O error"), "{error}");
                    errors += 1;
                }
            }
        }
    }
    assert!(right > 150, "{right} right, {errors} errors");
}

#[test]
fn a_store_that_is_down_is_served_from_what_is_known_and_the_lag_tells() {
    let world = bank();
    let connection = world.open("&poll_interval=20ms").unwrap();
    assert_eq!(check_bank(&connection).unwrap(), 0);
    assert_eq!(text(&connection, "PRAGMA litestream_lag").unwrap(), "0.000");
    world.server.set_down(Some(Down::Refuse)).unwrap();
    eventually("the lag grows", || {
        let _ = check_bank(&connection).unwrap();
        text(&connection, "PRAGMA litestream_lag").unwrap().parse::<f64>().unwrap() > 0.1
    });
    world.server.set_down(None).unwrap();
    eventually("and is gone", || {
        let _ = check_bank(&connection).unwrap();
        text(&connection, "PRAGMA litestream_lag").unwrap() == "0.000"
    });
}

#[test]
fn sixteen_threads_share_one_cache() {
    let mut world = World::built(&DbOptions { bytes: 2 << 20, ..DbOptions::default() });
    world.put(Level::ZERO);
    let connection = world.open("&poll_interval=1h").unwrap();
    let sql = "SELECT sum(length(body)) || sum(number) FROM t0";
    let expected = text(&world.source, sql).unwrap();
    assert_eq!(text(&connection, sql).unwrap(), expected);
    let gets = world.server.stats().count(Operation::GetObject);
    let uri = world.uri("&poll_interval=1h");
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(text(&open_uri(&uri).unwrap(), sql).unwrap(), expected));
        }
    });
    // What they read was there already; a guess or two at what might come next may not have been.
    let further = world.server.stats().count(Operation::GetObject) - gets;
    assert!(further <= 3, "{further} further requests");
}
