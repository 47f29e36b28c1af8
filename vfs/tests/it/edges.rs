//! Rules 6, 21, 23, 25 and 27: opening, closing, and what SQLite does at its edges.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use litestream_fixtures::db::DbOptions;
use litestream_fixtures::s3::Down;
use litestream_storage::Level;
use rusqlite::{Connection, ErrorCode};

use super::common::{World, eventually, open_uri, register, text, url_encode};

/// How long something may take that must not wait for the store: a request alone may take 5 s, and is tried for 30.
const SOON: Duration = Duration::from_secs(4);

/// A table of 100 rows in few pages.
fn small() -> World {
    let mut world = World::empty();
    world.commit(
        "CREATE TABLE t(n INTEGER PRIMARY KEY, text);
         WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 100)
         INSERT INTO t SELECT n, hex(randomblob(100)) FROM s",
    );
    world
}

/// Far more than comes along at open.
fn large() -> World {
    let mut world = World::built(&DbOptions { bytes: 4 << 20, tables: 1, ..DbOptions::default() });
    world.put(Level::SNAPSHOT);
    world
}

fn count(connection: &Connection) -> String {
    text(connection, "SELECT count(*) FROM t").unwrap()
}

fn last_error() -> String {
    text(&Connection::open_in_memory().unwrap(), "SELECT litestream_error()").unwrap()
}

fn buffer(path: &Path) -> String {
    format!("&write_enabled=1&sync_interval=1h&buffer_path={}", url_encode(path.to_str().unwrap()))
}

/// How an open fails that gets so far: nothing there, nothing at that time, somebody else's files.
fn failures(world: &World, folder: &Path) -> Vec<String> {
    let foreign = folder.join("foreign.db");
    fs::write(&foreign, "somebody's database").unwrap();
    let elsewhere = |from: &str, to: &str| world.uri("&open_timeout=0s").replace(&url_encode(from), &url_encode(to));
    vec![
        elsewhere("/db?", "/nothing?"),
        elsewhere("s3://bkt/", "s3://no-such-bucket/"),
        world.uri("&at=00000000000000ff"),
        world.uri(&format!("&hydration_path={}", foreign.display())),
        world.uri(&buffer(Path::new("/proc/nowhere/buffer"))),
        world.uri("&at=never"),
    ]
}

#[test]
fn rule_06_failed_opens_leave_no_thread_and_no_descriptor() {
    let world = small();
    let folder = tempfile::tempdir().unwrap();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "edges::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("EDGES_TEST_URI", world.uri(""))
        .env("EDGES_TEST_FAILURES", failures(&world, folder.path()).join("\n"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    let said: Vec<String> =
        output.lines().filter_map(|line| Some(line.unwrap().split_once("child: ")?.1.to_owned())).collect();
    assert!(process.wait().unwrap().success(), "{said:?}");
    assert_eq!(said.last().map(String::as_str), Some("done"), "{said:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only what was there before");
}

#[test]
#[ignore = "runs as a process of its own, started by others"]
fn child() {
    let (Ok(uri), Ok(failures)) = (std::env::var("EDGES_TEST_URI"), std::env::var("EDGES_TEST_FAILURES")) else {
        return;
    };
    register();
    let number = |folder: &str| fs::read_dir(folder).unwrap().count();
    let counts = || (number("/proc/self/fd"), number("/proc/self/task"));
    // What is wrong with the settings is known before anything is started.
    let before = counts();
    open_uri("file:x.db?vfs=litestream&replica_url=s3://").unwrap_err();
    open_uri("file:x.db?vfs=litestream&replica_url=file:///tmp&poll_interval=soon").unwrap_err();
    assert_eq!(counts(), before);
    // As it is once something was open and is closed again.
    drop(open_uri(&uri).map(|connection| count(&connection)).unwrap());
    let mut same = 0;
    let mut calm = counts();
    eventually("the process is calm", || {
        let now = counts();
        same = if now == calm { same + 1 } else { 0 };
        calm = now;
        same > 300
    });
    let other = open_uri(&uri).unwrap();
    for round in 0..10 {
        for uri in failures.lines() {
            assert!(open_uri(uri).is_err(), "{uri}");
        }
        assert_eq!(count(&other), "100", "round {round}");
    }
    drop(other);
    eventually("no more threads and descriptors than before", || {
        let now = counts();
        now.0 <= calm.0 && now.1 <= calm.1
    });
    println!("child: done");
}

#[test]
fn rule_06_failed_opens_leave_what_is_open_alone() {
    let mut world = small();
    let folder = tempfile::tempdir().unwrap();
    let connection = world.open("&poll_interval=20ms").unwrap();
    connection.execute_batch("BEGIN").unwrap();
    assert_eq!(count(&connection), "100");
    for uri in failures(&world, folder.path()) {
        assert!(open_uri(&uri).is_err(), "{uri}");
        // As another database of the same connection, too.
        let error = connection.execute_batch(&format!("ATTACH '{uri}' AS other")).unwrap_err();
        assert!(error.to_string().contains("unable to open"), "{error}");
    }
    world.commit("DELETE FROM t WHERE n > 50");
    assert_eq!(count(&connection), "100");
    connection.execute_batch("COMMIT").unwrap();
    eventually("it is followed", || count(&connection) == "50");
    // What could not be opened for writing can be once the reason is gone.
    let writer = world.open(&buffer(&folder.path().join("buffer"))).unwrap();
    writer.execute_batch("DELETE FROM t").unwrap();
    assert_eq!(text(&writer, "PRAGMA litestream_sync").unwrap(), "0000000000000003");
}

/// Interrupts what waits, and returns the error and how long it went on.
fn interrupted(connection: Connection, sql: &str) -> (Connection, rusqlite::Error, Duration) {
    let handle = connection.get_interrupt_handle();
    std::thread::scope(|scope| {
        let query = scope.spawn(move || {
            let result = text(&connection, sql);
            (connection, result, Instant::now())
        });
        // Surely not before the statement has begun: SQLite forgets what comes before.
        let begun = Instant::now() + Duration::from_millis(600);
        while let Some(left) = begun.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            std::thread::park_timeout(left);
        }
        assert!(!query.is_finished(), "{sql} does not wait");
        let told = Instant::now();
        handle.interrupt();
        let (connection, result, ended) = query.join().unwrap();
        (connection, result.unwrap_err(), ended - told)
    })
}

#[test]
fn rule_06_waiting_for_a_first_transaction_can_be_interrupted() {
    let mut world = World::empty();
    let connection = world.open("&open_timeout=1h&poll_interval=50ms").unwrap();
    let (connection, error, took) = interrupted(connection, "SELECT count(*) FROM t");
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::OperationInterrupted), "{error}");
    assert!(took < SOON, "{took:?}");
    // And for another database of a connection, of which the schema is read at once.
    let main = Connection::open_in_memory().unwrap();
    let attach = format!("ATTACH '{}' AS replica", world.uri("&open_timeout=1h&poll_interval=60ms"));
    let (main, error, took) = interrupted(main, &attach);
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::OperationInterrupted), "{error}");
    assert!(took < SOON, "{took:?}");
    // What comes then is seen, whatever its page size.
    world.commit("PRAGMA journal_mode = DELETE; PRAGMA page_size = 8192; VACUUM; CREATE TABLE t(n); INSERT INTO t VALUES(1), (2)");
    for sql in ["SELECT count(*) FROM t", "PRAGMA page_count"] {
        assert_eq!(text(&connection, sql).unwrap(), "2");
    }
    assert_eq!(text(&connection, "PRAGMA page_size").unwrap(), "8192");
    assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
    main.execute_batch(&attach).unwrap();
    assert_eq!(text(&main, "SELECT count(*) FROM replica.t").unwrap(), "2");
}

/// How long a close takes.
fn close(connection: Connection) -> Duration {
    let started = Instant::now();
    drop(connection);
    started.elapsed()
}

#[test]
fn rule_21_a_reader_closes_at_once_whatever_the_store_does() {
    for (down, more) in [Down::Silent, Down::Refuse]
        .into_iter()
        .flat_map(|down| ["", "&hydration_enabled=1", "&poll_interval=10ms", "&immutable=1"].map(|more| (down, more)))
    {
        let world = large();
        let connection = world.open(more).unwrap();
        text(&connection, "SELECT count(*) FROM sqlite_schema").unwrap();
        world.server.set_down(Some(down)).unwrap();
        // With reads under way that nobody waits for any more.
        let connection = match down {
            Down::Silent => {
                let (connection, error, _) = interrupted(connection, "SELECT sum(length(body)) FROM t0");
                assert_eq!(error.sqlite_error_code(), Some(ErrorCode::OperationInterrupted), "{error}");
                connection
            }
            _ => connection,
        };
        let took = close(connection);
        assert!(took < SOON, "{more}: {took:?}");
    }
}

#[test]
fn rule_21_a_writer_closes_in_time_whatever_the_store_does_and_loses_nothing() {
    for down in [Down::Silent, Down::Refuse] {
        for more in ["", "&lease=1", "&compaction_enabled=1&compaction_levels=10ms,20ms", "&hydration_enabled=1"] {
            let world = small();
            let folder = tempfile::tempdir().unwrap();
            let buffer = buffer(&folder.path().join("buffer"));
            let writing = format!("{buffer}&shutdown_sync_timeout=300ms{more}");
            let writer = world.open(&writing).unwrap();
            writer.execute_batch("INSERT INTO t VALUES(1000, 'kept')").unwrap();
            world.server.set_down(Some(down)).unwrap();
            let took = close(writer);
            assert!(took < SOON, "{more}: {took:?}");
            assert!(fs::read_dir(folder.path()).unwrap().count() > 0, "{more}: the buffer is kept");
            world.server.set_down(None).unwrap();
            let again = world.open(&buffer).unwrap();
            assert_eq!(count(&again), "101", "{more}");
            text(&again, "PRAGMA litestream_sync").unwrap();
            drop(again);
            assert_eq!(count(&world.open("").unwrap()), "101", "{more}");
        }
    }
}

#[test]
fn rule_23_a_file_that_is_never_locked_cannot_be_written() {
    let world = small();
    let folder = tempfile::tempdir().unwrap();
    for parameter in ["&immutable=1", "&nolock=1"] {
        for more in [String::new(), buffer(&folder.path().join("buffer"))] {
            let connection = world.open(&format!("{parameter}{more}")).unwrap();
            for sql in ["DELETE FROM t", "CREATE TABLE u(x)", "PRAGMA user_version = 7", "VACUUM"] {
                let Err(error) = connection.execute_batch(sql) else { panic!("{parameter}: {sql} was done") };
                assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly), "{parameter} {sql}: {error}");
                assert!(error.to_string().contains("readonly database"), "{error}");
                let _ = connection.execute_batch("ROLLBACK");
            }
            let error = text(&connection, "PRAGMA litestream_write_enabled = on").unwrap_err();
            assert!(error.to_string().contains("cannot be written"), "{error}");
            assert_eq!(text(&connection, "PRAGMA litestream_write_enabled").unwrap(), "0");
            let error = text(&connection, "PRAGMA litestream_time = 'latest'").unwrap_err();
            assert!(error.to_string().contains("opened for one moment"), "{error}");
            // What is no part of the database can be written.
            connection
                .execute_batch("CREATE TEMP TABLE copy AS SELECT * FROM t; DELETE FROM copy WHERE n > 7")
                .unwrap();
            assert_eq!(text(&connection, "SELECT count(*) FROM t JOIN copy USING(n)").unwrap(), "7");
            assert_eq!(count(&connection), "100");
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "no buffer");
    assert_eq!(count(&world.open("").unwrap()), "100");
}

#[test]
fn rule_25_with_a_shared_cache_one_file_is_attached_once() {
    let mut world = small();
    let first = text(&world.open("").unwrap(), "PRAGMA litestream_txid").unwrap();
    world.commit("DELETE FROM t WHERE n > 10");
    let shared = world.open("&cache=shared&poll_interval=20ms").unwrap();
    eventually("the newest state is seen", || count(&shared) == "10");
    let attach = |more: &str, name: &str| {
        shared.execute_batch(&format!(
            "ATTACH '{}' AS {name}",
            world.uri(&format!("&cache=shared&poll_interval=20ms{more}"))
        ))
    };
    let error = attach("", "again").unwrap_err();
    assert!(error.to_string().contains("already attached"), "{error}");
    attach(&format!("&at={first}"), "earlier").unwrap();
    let error = attach(&format!("&at={first}"), "earlier_again").unwrap_err();
    assert!(error.to_string().contains("already attached"), "{error}");
    assert_eq!(
        text(&shared, "SELECT (SELECT count(*) FROM main.t) || ' ' || (SELECT count(*) FROM earlier.t)").unwrap(),
        "10 100"
    );
    // A cache of its own makes it another file.
    shared.execute_batch(&format!("ATTACH '{}' AS own", world.uri("&cache=private&poll_interval=20ms"))).unwrap();
    assert_eq!(text(&shared, "SELECT count(*) FROM own.t").unwrap(), "10");
}

#[test]
fn rule_25_with_a_shared_cache_tables_are_locked_one_by_one() {
    let mut world = small();
    world.commit("CREATE TABLE u AS SELECT * FROM t");
    let folder = tempfile::tempdir().unwrap();
    let more = format!("&cache=shared{}", buffer(&folder.path().join("buffer")));
    let (writer, reader) = (world.open(&more).unwrap(), world.open(&more).unwrap());
    assert_eq!(count(&reader), "100");
    writer.execute_batch("BEGIN; DELETE FROM t WHERE n > 10").unwrap();
    assert_eq!(text(&reader, "SELECT count(*) FROM u").unwrap(), "100");
    let error = text(&reader, "SELECT count(*) FROM t").unwrap_err();
    assert!(error.to_string().contains("locked"), "{error}");
    writer.execute_batch("COMMIT").unwrap();
    assert_eq!(count(&reader), "10");
    assert_eq!(text(&writer, "PRAGMA litestream_sync").unwrap(), "0000000000000003");
}

#[test]
fn rule_27_a_folder_holds_one_file_for_each_replica() {
    let (one, other) = (small(), small());
    // One that is there, and one that is not yet and says by its end that it is a folder.
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("there")).unwrap();
    for name in ["there", "new/"] {
        let place = folder.path().join(name);
        let place = place.to_str().unwrap();
        let more = format!("&write_enabled=1&sync_interval=1h&buffer_path={place}&hydration_path={place}");
        let writers = [&one, &other].map(|world| world.open(&more).unwrap());
        let paths = writers.each_ref().map(|writer| text(writer, "PRAGMA litestream_buffer_path").unwrap());
        let locals = writers.each_ref().map(|writer| text(writer, "PRAGMA litestream_hydration_file").unwrap());
        let mut all = [&paths[..], &locals[..]].concat();
        assert!(all.iter().all(|path| Path::new(path).parent() == Some(Path::new(place))), "{all:?}");
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 4, "{all:?}");
        for (number, writer) in writers.iter().enumerate() {
            writer.execute_batch(&format!("INSERT INTO t VALUES(1000, 'from {number} in {name}')")).unwrap();
        }
        for (number, writer) in writers.iter().enumerate() {
            text(writer, "PRAGMA litestream_sync").unwrap();
            let kept = text(writer, "SELECT text FROM t WHERE n = 1000").unwrap();
            assert_eq!(kept, format!("from {number} in {name}"));
            writer.execute_batch("DELETE FROM t WHERE n = 1000").unwrap();
        }
        drop(writers);
        // The next one finds them under the same names.
        let again = one.open(&more).unwrap();
        assert_eq!(text(&again, "PRAGMA litestream_buffer_path").unwrap(), paths[0]);
        assert_eq!(text(&again, "PRAGMA litestream_hydration_file").unwrap(), locals[0]);
        assert_eq!(count(&again), "100");
    }
}

#[test]
fn rule_27_two_databases_on_one_file_are_an_error_that_names_it() {
    let (one, other) = (small(), small());
    let folder = tempfile::tempdir().unwrap();
    let (path, local) = (folder.path().join("buffer"), folder.path().join("local.db"));
    let hydrated = format!("&hydration_path={}", local.display());
    for (more, path) in [(buffer(&path), &path), (hydrated, &local)] {
        let first = one.open(&more).unwrap();
        assert_eq!(count(&first), "100");
        eventually("the other one is refused", || {
            other.open(&more).unwrap_err();
            last_error().contains(path.to_str().unwrap())
        });
        // Connections of one database share the file.
        let second = one.open(&more).unwrap();
        assert_eq!(count(&second), "100");
    }
}
