//! How reads from a hydrated file compare with plain SQLite's: not a test, since no test asserts a speed, but here it can be run where it matters:
//! `cargo test --release -p litestream-vfs --test it speed -- --ignored --nocapture`.

use std::path::Path;
use std::time::Instant;

use litestream_fixtures::db::DbOptions;
use litestream_storage::Level;
use rusqlite::{Connection, OpenFlags};

use super::common::{World, eventually, text};

#[test]
#[ignore = "measures"]
fn hydrated_reads_against_plain_sqlite() {
    let mut world = World::built(&DbOptions { bytes: 64 << 20, tables: 1, ..DbOptions::default() });
    world.put(Level::SNAPSHOT);
    for id in 0..50 {
        world.commit(&format!("UPDATE t0 SET number = number + 1 WHERE id % 5000 = {id}"));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("local.db");
    let hydrated = world.open(&format!("&hydration_path={}&poll_interval=1h", path.display())).unwrap();
    eventually("all is there", || text(&hydrated, "PRAGMA litestream_hydration_progress").unwrap() == "100");
    let plain = folder.path().join("plain.db");
    world.source.execute_batch(&format!("VACUUM INTO '{}'", plain.display())).unwrap();
    let plain = open_plain(&plain);
    let rows: i64 = world.source.query_row("SELECT max(id) FROM t0", [], |row| row.get(0)).unwrap();
    for connection in [&plain, &hydrated] {
        connection.execute_batch("PRAGMA cache_size = 10; PRAGMA mmap_size = 0").unwrap();
    }
    for (name, work) in [
        ("point reads, a transaction each", points as fn(&Connection, i64) -> u64),
        ("point reads in one transaction", points_together),
        ("scans", scans),
    ] {
        let mut ratios = Vec::new();
        for _ in 0..9 {
            let (plain_rate, rate) = (per_second(&plain, rows, work), per_second(&hydrated, rows, work));
            ratios.push((rate / plain_rate, plain_rate, rate));
        }
        ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ratio, plain, rate) = ratios[ratios.len() / 2];
        println!("{name}: {ratio:.2} x plain SQLite ({rate:.0}/s against {plain:.0}/s)");
    }
    println!("{}", text(&hydrated, "PRAGMA litestream_stats").unwrap());
}

fn open_plain(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX).unwrap()
}

fn per_second(connection: &Connection, rows: i64, work: fn(&Connection, i64) -> u64) -> f64 {
    work(connection, rows);
    let started = Instant::now();
    let done = work(connection, rows);
    done as f64 / started.elapsed().as_secs_f64()
}

fn points(connection: &Connection, rows: i64) -> u64 {
    let mut statement = connection.prepare_cached("SELECT number FROM t0 WHERE id = ?1").unwrap();
    let mut id = 1;
    for _ in 0..20_000 {
        id = (id * 48_271) % 2_147_483_647;
        let _: i64 = statement.query_row([id % rows + 1], |row| row.get(0)).unwrap();
    }
    20_000
}

fn points_together(connection: &Connection, rows: i64) -> u64 {
    connection.execute_batch("BEGIN").unwrap();
    let done = points(connection, rows);
    connection.execute_batch("COMMIT").unwrap();
    done
}

fn scans(connection: &Connection, _: i64) -> u64 {
    let mut statement = connection.prepare_cached("SELECT sum(length(body)) FROM t0 NOT INDEXED").unwrap();
    let _: i64 = statement.query_row([], |row| row.get(0)).unwrap();
    1
}
