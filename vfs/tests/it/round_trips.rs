//! How many requests have to wait for each other: the depth, not the time, so that a slow machine fails nothing.

use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use litestream_fixtures::db::DbOptions;
use litestream_fixtures::s3::Operation;
use litestream_storage::Level;
use rusqlite::Connection;

use super::common::{QUIET, World, text};

/// For how long nothing may have been asked before the store answers: what is sent together is answered together, however slow the machine is.
const QUIET_FOR: Duration = Duration::from_millis(300);

/// Nothing is polled, and the cache, which all tests share, has room for all of them.
const ROOM: &str = "&cache_size=4GiB&poll_interval=1h";

/// A database of 15 MB as a snapshot and so many transactions of a few rows.
fn world(transactions: u32) -> World {
    let mut world = World::built(&DbOptions { bytes: 15 << 20, tables: 1, ..DbOptions::default() });
    world
        .source
        .execute_batch(
            "CREATE TABLE parts(id INTEGER PRIMARY KEY, whole INTEGER); CREATE INDEX parts_whole ON parts(whole)",
        )
        .unwrap();
    // Each of the 20 parts of a whole lies on a page of its own.
    world
        .source
        .execute_batch(
            "
        WITH RECURSIVE n(i) AS (VALUES(0) UNION ALL SELECT i + 1 FROM n WHERE i < 19999)
        INSERT INTO parts SELECT i, i % 1000 FROM n",
        )
        .unwrap();
    world.put(Level::SNAPSHOT);
    for number in 0..transactions {
        let id = (u64::from(number) * 7919) % 5000;
        world.commit(&format!("UPDATE t0 SET number = number + 1 WHERE id IN ({id}, {id} + 1, {id} + 2)"));
    }
    world.server.set_quiet(QUIET_FOR);
    world.server.reset_stats();
    world
}

fn rows(world: &World) -> u32 {
    world.source.query_row("SELECT max(id) FROM t0", [], |row| row.get(0)).unwrap()
}

/// Depth and bytes of what a query asks for beyond what was asked for before it.
fn cost(world: &World, work: impl FnOnce()) -> (u64, u64) {
    world.server.reset_stats();
    work();
    let stats = world.server.stats();
    (stats.depth, stats.bytes_out)
}

fn opens_and_looks_up(files: u32, at_most: u64) {
    let world = world(files - 1);
    let id = rows(&world) / 2;
    let sql = format!("SELECT key || number FROM t0 WHERE id = {id}");
    let expected = text(&world.source, &sql).unwrap();
    let mut connection = None;
    let (depth, bytes) = cost(&world, || {
        let opened = world.open(ROOM).unwrap();
        assert_eq!(text(&opened, &sql).unwrap(), expected);
        connection = Some(opened);
    });
    println!("{files} files: open and point lookup: depth {depth}, {bytes} bytes");
    assert!(depth <= at_most, "{depth} round trips");
    // Once everything is open, what another lookup fetches.
    let connection = connection.unwrap();
    let (depth, bytes) = cost(&world, || {
        let sql = format!("SELECT key || number FROM t0 WHERE id = {}", id / 3);
        assert_eq!(text(&connection, &sql).unwrap(), text(&world.source, &sql).unwrap());
    });
    println!("{files} files: another point lookup: depth {depth}, {bytes} bytes");
    assert!(depth <= 3 && bytes <= 256 << 10, "depth {depth}, {bytes} bytes");
}

#[test]
fn opening_3_files_and_looking_up_a_row_takes_5_round_trips() {
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    opens_and_looks_up(3, 5);
}

#[test]
fn opening_302_files_and_looking_up_a_row_takes_5_round_trips() {
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    opens_and_looks_up(302, 5);
}

/// Opens for writing, reads a row, changes another one and has that uploaded. How deep the requests for that lie, how deep before the
/// upload, and what was put.
fn writes_and_syncs(world: &World, folder: &Path, id: u32) -> (u64, u64, Vec<String>) {
    let buffer = folder.join(format!("buffer-{id}"));
    // Another interval makes it another database than the one before, which may linger.
    let room = format!("&cache_size=4GiB&poll_interval={}s", 3_600 + id);
    let more = format!("{room}&write_enabled=1&sync_interval=1h&buffer_path={}", buffer.display());
    world.server.reset_stats();
    let connection = world.open(&more).unwrap();
    let sql = format!("SELECT key || number FROM t0 WHERE id = {id}");
    assert_eq!(text(&connection, &sql).unwrap(), text(&world.source, &sql).unwrap());
    connection.execute(&format!("UPDATE t0 SET number = number + 1 WHERE id = {id} / 3"), []).unwrap();
    let committed = world.server.stats().depth;
    let lists = world.server.stats().count(Operation::ListObjectsV2);
    text(&connection, "PRAGMA litestream_sync").unwrap();
    let stats = world.server.stats();
    assert_eq!(stats.count(Operation::ListObjectsV2), lists, "the open's own list is proof enough");
    let puts = world.server.requests().into_iter().filter(|request| request.operation == Operation::PutObject);
    (stats.depth, committed, puts.map(|request| request.key_or_prefix).collect())
}

fn opens_and_commits(files: u32, at_most: u64) {
    let world = world(files - 1);
    let folder = tempfile::tempdir().unwrap();
    let rows = rows(&world);
    for (round, puts) in [(1, 3), (2, 2)] {
        let (depth, committed, put) = writes_and_syncs(&world, folder.path(), rows / (1 + round));
        println!("{files} files: open to durable: depth {depth}, {committed} of it to the commit; {put:?}");
        assert!(depth <= at_most && depth <= committed + 1, "{depth} round trips, {committed} to the commit");
        // Who finds what the store is tried with only has to see that it cannot be put again.
        assert_eq!(put.len(), puts, "{put:?}");
        assert!(put[..puts - 1].iter().all(|key| key == "db/litestream-probe"), "{put:?}");
    }
}

#[test]
fn from_opening_3_files_to_the_first_durable_commit_it_takes_7_round_trips() {
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    opens_and_commits(3, 7);
}

#[test]
fn from_opening_302_files_to_the_first_durable_commit_it_takes_7_round_trips() {
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    opens_and_commits(302, 7);
}

fn index_lookup(connection: &Connection, whole: u32) -> String {
    text(connection, &format!("SELECT group_concat(id) FROM parts WHERE whole = {whole}")).unwrap()
}

#[test]
fn twenty_rows_by_index_take_4_further_round_trips() {
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    let world = world(2);
    let connection = world.open(ROOM).unwrap();
    text(&connection, "SELECT key FROM t0 WHERE id = 100").unwrap();
    let rows = "FROM t0 WHERE key BETWEEN '5' AND '502'";
    println!("{} rows", text(&world.source, &format!("SELECT count(*) {rows}")).unwrap());
    let (depth, bytes) = cost(&world, || {
        // Not a covering index: the rows are fetched from the table.
        let sql = format!("SELECT sum(number) || min(body) {rows}");
        assert_eq!(text(&connection, &sql).unwrap(), text(&world.source, &sql).unwrap());
    });
    println!("rows by a range of an index: depth {depth}, {bytes} bytes");
    assert!(depth <= 4, "{depth} round trips");
    let (depth, bytes) = cost(&world, || {
        assert_eq!(index_lookup(&connection, 500), index_lookup(&world.source, 500));
    });
    println!("20 rows with one key: depth {depth}, {bytes} bytes");
    assert!(depth <= 4, "{depth} round trips");
}

#[test]
fn a_scan_of_15_mb_takes_few_round_trips() {
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    let world = world(2);
    let connection = world.open(ROOM).unwrap();
    text(&connection, "SELECT key FROM t0 WHERE id = 1").unwrap();
    let sql = "SELECT count(*) || ' ' || sum(length(body)) FROM t0";
    let expected = text(&world.source, sql).unwrap();
    let (depth, bytes) = cost(&world, || assert_eq!(text(&connection, sql).unwrap(), expected));
    let stats = text(&connection, "PRAGMA litestream_stats").unwrap();
    println!("scan: depth {depth}, {bytes} bytes\n{stats}");
    assert!(depth <= 14, "{depth} round trips");
}

#[test]
fn scans_backwards_read_ahead_too() {
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    let world = world(2);
    let connection = world.open(ROOM).unwrap();
    world.server.reset_stats();
    let sql = "SELECT group_concat(id) FROM (SELECT id, body FROM t0 ORDER BY id DESC LIMIT 3000)";
    assert_eq!(text(&connection, sql).unwrap(), text(&world.source, sql).unwrap());
    let stats = world.server.stats();
    let gets = stats.count(Operation::GetObject);
    println!("backwards: depth {}, {gets} requests, {} bytes", stats.depth, stats.bytes_out);
    assert!(gets <= 40, "{gets} requests");
}

#[test]
fn a_scan_of_more_than_the_cache_holds_still_reads_ahead() {
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    let mut world =
        World::built(&DbOptions { bytes: 120 << 20, tables: 1, incompressible: 0.9, ..DbOptions::default() });
    world.put(Level::SNAPSHOT);
    let connection = world.open(ROOM).unwrap();
    let sql = "SELECT count(*) || ' ' || sum(length(body)) FROM t0 NOT INDEXED";
    let expected = text(&world.source, sql).unwrap();
    world.server.reset_stats();
    assert_eq!(text(&connection, sql).unwrap(), expected);
    let gets = world.server.stats().count(Operation::GetObject);
    println!("{gets} requests\n{}", text(&connection, "PRAGMA litestream_stats").unwrap());
    assert!(gets < 1_000, "{gets} requests");
}

/// Depth and requests of a check of everything, on a connection that has read nothing yet.
fn check(world: &World, pragma: &str, more: &str) -> (u64, u64) {
    let connection = world.open(&(ROOM.to_owned() + more)).unwrap();
    world.server.reset_stats();
    assert_eq!(text(&connection, &format!("PRAGMA {pragma}")).unwrap(), "ok");
    let stats = world.server.stats();
    let gets = stats.count(Operation::GetObject);
    println!("{pragma}: depth {}, {gets} requests, {} bytes", stats.depth, stats.bytes_out);
    (stats.depth, gets)
}

#[test]
fn a_check_of_15_mb_takes_few_round_trips() {
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    let world = world(2);
    // Each on a database of its own, of which nothing is in memory yet.
    for (pragma, own) in [("integrity_check", "&open_timeout=11s"), ("quick_check", "&open_timeout=12s")] {
        let (depth, gets) = check(&world, pragma, own);
        assert!(depth <= 40 && gets <= 200, "{pragma}: depth {depth}, {gets} requests");
    }
}

/// A database of 12 MB of values that are far longer than a page. They were written in turns, so none lies in one piece.
fn long_values() -> World {
    let mut world = World::with(|path| {
        let source = Connection::open(path).unwrap();
        source.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF").unwrap();
        for table in 0..2 {
            source.execute_batch(&format!("CREATE TABLE t{table}(id INTEGER PRIMARY KEY, body)")).unwrap();
        }
        for id in 0..60 {
            for table in 0..2 {
                let sql = format!("INSERT INTO t{table} VALUES({id}, randomblob(100000 + {id}))");
                source.execute_batch(&sql).unwrap();
            }
        }
    });
    world.put(Level::SNAPSHOT);
    world.server.set_quiet(QUIET_FOR);
    world
}

#[test]
fn long_values_take_no_round_trip_a_page() {
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    let world = long_values();
    let connection = world.open(&(ROOM.to_owned() + "&open_timeout=11s")).unwrap();
    let sql = "SELECT group_concat(hex(substr(body, -9))) FROM t0";
    let expected = text(&world.source, sql).unwrap();
    let (depth, bytes) = cost(&world, || assert_eq!(text(&connection, sql).unwrap(), expected));
    println!("60 values of 25 pages: depth {depth}, {bytes} bytes");
    assert!(depth <= 60, "{depth} round trips");
    let (depth, gets) = check(&world, "integrity_check", "&open_timeout=12s");
    assert!(depth <= 60 && gets <= 200, "depth {depth}, {gets} requests");
}

#[test]
fn lookups_that_lie_far_apart_fetch_little_else() {
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    let world = world(2);
    world.server.set_quiet(Duration::ZERO);
    let connection = world.open(ROOM).unwrap();
    text(&connection, "SELECT key FROM t0 WHERE id = 1").unwrap();
    let rows = rows(&world);
    connection.execute_batch("BEGIN").unwrap();
    let (_, bytes) = cost(&world, || {
        for part in 1..=20 {
            let sql = format!("SELECT key || number FROM t0 WHERE id = {}", rows * part / 21);
            assert_eq!(text(&connection, &sql).unwrap(), text(&world.source, &sql).unwrap());
        }
    });
    println!("20 lookups in one transaction: {bytes} bytes");
    assert!(bytes <= 256 << 10, "{bytes} bytes");
}
