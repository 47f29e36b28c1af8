//! Rules 17 to 20: the database is pulled into a local file while it is read, and nobody can tell but by the time it takes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use litestream_fixtures::db::{DbOptions, content_sha256};
use litestream_fixtures::s3::Operation;
use litestream_storage::Level;
use rusqlite::Connection;

use super::common::{BUCKET, World, eventually, open_uri, text};

const TEMPORARY: &str = "&hydration_enabled=1&poll_interval=20ms";

/// A database of so many megabytes as a snapshot.
fn world(megabytes: u64) -> World {
    let mut world = World::built(&DbOptions { bytes: megabytes << 20, tables: 2, ..DbOptions::default() });
    world.put(Level::SNAPSHOT);
    world
}

fn stat(connection: &Connection, name: &str) -> u64 {
    let stats = text(connection, "PRAGMA litestream_stats").unwrap();
    let value = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {stats}")).parse().unwrap()
}

fn progress(connection: &Connection) -> u64 {
    text(connection, "PRAGMA litestream_hydration_progress").unwrap().parse().unwrap()
}

/// Waits until all of the newest state is in the file.
#[track_caller]
fn hydrated(world: &World, connection: &Connection) {
    let keys = world.server.keys(BUCKET);
    let newest = keys.iter().filter_map(|key| Some(key.strip_suffix(".ltx")?.rsplit_once('-')?.1)).max().unwrap();
    eventually("the newest state is hydrated", || {
        let txid = text(connection, "PRAGMA litestream_txid").unwrap();
        *txid >= *newest && progress(connection) == 100 && stat(connection, "hydration_complete") == 1
    });
}

fn content(connection: &Connection) -> String {
    content_sha256(connection).unwrap()
}

fn gets(world: &World) -> u64 {
    world.server.stats().count(Operation::GetObject)
}

/// Why a database with a file under this path is not opened. Other tests of the process may have the last word, so it is asked more than once.
#[track_caller]
fn refused(world: &World, path: &Path, says: &str) -> String {
    let mut why = String::new();
    eventually(says, || {
        world.open(&at(path)).unwrap_err();
        why = text(&Connection::open_in_memory().unwrap(), "SELECT litestream_error()").unwrap();
        why.contains(path.to_str().unwrap()) && why.contains(says)
    });
    why
}

/// Changes rows all over the database.
const CHANGE: &str = "UPDATE t0 SET number = number + 1, body = randomblob(length(body)) WHERE id % 3 = 0;
    UPDATE t1 SET number = number + 1 WHERE id % 5 = 0";
/// Changes few.
const TOUCH: &str = "UPDATE t0 SET number = number + 1 WHERE id % 400 = 0";

fn at(path: &Path) -> String {
    format!("&hydration_path={}&poll_interval=20ms", path.display())
}

fn meta(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.meta", path.display()))
}

#[test]
fn rule_17_reads_are_served_at_once_and_from_the_file_once_it_is_there() {
    let world = world(12);
    world.server.set_bandwidth(Some(2 << 20));
    let connection = world.open("&hydration_enabled=1&poll_interval=1h&cache_size=65536").unwrap();
    let sql = "SELECT key || number FROM t1 WHERE id = 77";
    assert_eq!(text(&connection, sql).unwrap(), text(&world.source, sql).unwrap());
    assert!(progress(&connection) < 100, "a row was there before the whole database was");
    assert_eq!(stat(&connection, "hydration_complete"), 0);
    world.server.set_bandwidth(None);
    eventually("all is there", || progress(&connection) == 100);
    // Whatever was being fetched ahead has come.
    let mut before = 0;
    eventually("nothing is fetched any more", || {
        std::thread::park_timeout(Duration::from_millis(200));
        let now = gets(&world);
        std::mem::replace(&mut before, now) == now
    });
    assert_eq!(content(&connection), content(&world.source));
    assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
    assert_eq!(gets(&world), before, "all came from the file");
    let (reads, local) = (stat(&connection, "reads"), stat(&connection, "local_reads"));
    assert!(local > 3000 && reads - local < 600, "{local} of {reads} reads");
    assert_eq!(text(&connection, "PRAGMA litestream_hydration_file").unwrap(), "");
}

#[test]
fn rule_17_what_reads_fetch_is_not_fetched_again() {
    // Ranges as large as only hydration asks for are not answered.
    let world = world(6);
    let large = |range: &str| {
        let bounds: Vec<u64> = range.trim_start_matches("bytes=").split('-').filter_map(|at| at.parse().ok()).collect();
        matches!(bounds[..], [first, last] if last - first > 600 << 10)
    };
    world.server.set_faults(litestream_fixtures::s3::Faults {
        rate_503: 1.0,
        only: Some(std::sync::Arc::new(move |request| request.range.as_deref().is_some_and(large))),
        ..litestream_fixtures::s3::Faults::default()
    });
    let connection = world.open("&hydration_enabled=1&poll_interval=1h").unwrap();
    assert_eq!(content(&connection), content(&world.source));
    eventually("what was read is in the file", || progress(&connection) > 80);
    assert_eq!(stat(&connection, "hydration_bytes"), 0, "hydration itself has read nothing");
    world.server.set_faults(litestream_fixtures::s3::Faults::default());
    eventually("the rest comes", || progress(&connection) == 100);
}

#[test]
fn rule_18_a_reader_in_the_middle_of_a_transaction_keeps_its_view_at_every_page() {
    let mut world = world(4);
    for wait_before in [false, true] {
        let reader = world.open(TEMPORARY).unwrap();
        if wait_before {
            hydrated(&world, &reader);
        }
        reader.execute_batch("BEGIN").unwrap();
        text(&reader, "SELECT count(*) FROM sqlite_schema").unwrap();
        let (txid, then) = (text(&reader, "PRAGMA litestream_txid").unwrap(), content(&world.source));
        let other = world.open(TEMPORARY).unwrap();
        for step in ["DELETE FROM t0 WHERE id % 4 = 1", CHANGE, "VACUUM", CHANGE] {
            world.commit(step);
            hydrated(&world, &other);
        }
        assert_eq!(content(&other), content(&world.source));
        assert_eq!(content(&reader), then, "the file holds something else by now");
        assert_eq!(text(&reader, "PRAGMA integrity_check").unwrap(), "ok");
        assert_eq!(text(&reader, "PRAGMA litestream_txid").unwrap(), txid);
        reader.execute_batch("COMMIT").unwrap();
        assert_eq!(content(&reader), content(&world.source));
    }
}

#[test]
fn rule_18_what_is_read_while_everything_moves_is_always_one_state() {
    let mut world = World::empty();
    world.commit(
        "CREATE TABLE account(id INTEGER PRIMARY KEY, amount INTEGER, note BLOB);
         WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
         INSERT INTO account SELECT i, 2, randomblob(900) FROM n",
    );
    world.compact(9);
    let uri = world.uri("&hydration_enabled=1&poll_interval=10ms&cache_size=65536");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let connection = open_uri(&uri).unwrap();
                    connection.execute_batch("PRAGMA cache_size = 10").unwrap();
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        connection.execute_batch("BEGIN").unwrap();
                        let sum = "SELECT sum(amount) || ' ' || count(DISTINCT note) FROM account";
                        assert_eq!(text(&connection, sum).unwrap(), "4000 2000");
                        assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
                        assert_eq!(text(&connection, sum).unwrap(), "4000 2000");
                        connection.execute_batch("COMMIT").unwrap();
                    }
                    stat(&connection, "local_reads")
                })
            })
            .collect();
        for round in 1..=40 {
            world.commit(
                "BEGIN; UPDATE account SET amount = amount + 1, note = randomblob(900) WHERE id % 40 = abs(random() % 40);
                 UPDATE account SET amount = amount + 4000 - (SELECT sum(amount) FROM account) WHERE id = 1; COMMIT",
            );
            if round % 10 == 0 {
                world.compact(1);
            }
            if round % 20 == 0 {
                world.compact(9);
            }
            std::thread::park_timeout(Duration::from_millis(30));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 100, "much was read from the file");
        }
    });
}

#[test]
fn rule_18_growth_shrinking_and_vacuum_are_followed_to_the_end() {
    let mut world = world(2);
    let connection = world.open(TEMPORARY).unwrap();
    let steps = [
        "CREATE TABLE more(a, b); WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 3000) INSERT INTO more SELECT i, randomblob(500) FROM n",
        TOUCH,
        "DELETE FROM t0 WHERE id % 2 = 0",
        "VACUUM",
        "DROP TABLE t1",
        "VACUUM",
        "INSERT INTO more SELECT a, b FROM more",
        TOUCH,
        "DELETE FROM more",
        "VACUUM",
        "INSERT INTO more VALUES(1, zeroblob(300000))",
    ];
    for step in steps {
        world.commit(step);
        hydrated(&world, &connection);
        let before = gets(&world);
        assert_eq!(content(&connection), content(&world.source), "{step}");
        assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok", "{step}");
        assert_eq!(gets(&world), before, "{step}: all came from the file");
    }
}

#[test]
fn rule_18_following_costs_what_has_changed() {
    let mut world = world(10);
    let connection = world.open(TEMPORARY).unwrap();
    hydrated(&world, &connection);
    let whole = stat(&connection, "bytes_read");
    for round in 0..30 {
        world.commit(TOUCH);
        if round % 10 == 9 {
            hydrated(&world, &connection);
            world.compact(1);
        }
    }
    hydrated(&world, &connection);
    let asked = |connection: &Connection| stat(connection, "reads") - stat(connection, "local_reads");
    let before = asked(&connection);
    assert_eq!(content(&connection), content(&world.source));
    let elsewhere = asked(&connection) - before;
    assert!(elsewhere < 20, "{elsewhere} reads were not answered by the file");
    let further = stat(&connection, "bytes_read") - whole;
    println!("{further} further bytes, {whole} before");
    assert!(further < whole / 2, "{further} further bytes, {whole} before");
    assert_eq!(stat(&connection, "hydration_failures"), 0);
}

#[test]
fn rule_09_travelling_during_hydration_and_back_is_right_at_each_step() {
    let mut world = world(6);
    let mut states = vec![(text(&world.open("").unwrap(), "PRAGMA litestream_txid").unwrap(), content(&world.source))];
    for _ in 0..3 {
        let txid = world.commit(CHANGE);
        states.push((txid.to_string(), content(&world.source)));
    }
    world.server.set_bandwidth(Some(4 << 20));
    let connection = world.open(TEMPORARY).unwrap();
    assert!(progress(&connection) < 100);
    for round in 0..2 {
        for (txid, then) in &states {
            text(&connection, &format!("PRAGMA litestream_time = '{txid}'")).unwrap();
            assert_eq!(content(&connection), *then, "at {txid}");
            text(&connection, "PRAGMA litestream_time = latest").unwrap();
            assert_eq!(content(&connection), states[3].1);
        }
        if round == 0 {
            world.server.set_bandwidth(None);
            hydrated(&world, &connection);
        }
    }
    // One that stays in the past has no file.
    let past = world.open(&format!("{TEMPORARY}&at={}", states[1].0)).unwrap();
    assert_eq!(content(&past), states[1].1);
    assert_eq!(stat(&past, "local_reads"), 0);
}

#[test]
fn rule_19_a_file_under_a_path_is_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("local.db");
    let mut world = world(10);
    let connection = world.open(&at(&path)).unwrap();
    assert_eq!(text(&connection, "PRAGMA litestream_hydration_file").unwrap(), path.to_str().unwrap());
    hydrated(&world, &connection);
    let whole = stat(&connection, "bytes_read");
    drop(connection);
    // What it holds is the database.
    let copy = litestream_fixtures::db::open_immutable(&path).unwrap();
    assert_eq!(text(&copy, "PRAGMA page_count").unwrap(), text(&world.source, "PRAGMA page_count").unwrap());
    drop(copy);
    let reopened = |world: &mut World, what: &str| {
        let connection = world.open(&at(&path)).unwrap();
        hydrated(world, &connection);
        let further = stat(&connection, "bytes_read");
        println!("{what}: {further} bytes, {whole} the first time");
        assert!(further < whole / 3, "{what}: {further} bytes, {whole} the first time");
        assert_eq!(content(&connection), content(&world.source));
        assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
        connection
    };
    for _ in 0..3 {
        world.commit(TOUCH);
    }
    reopened(&mut world, "after a few transactions");
    // The file that was the newest is gone; most pages are still the snapshot's.
    for _ in 0..3 {
        world.commit(TOUCH);
    }
    world.compact(1);
    let connection = reopened(&mut world, "after a compaction");
    // Most pages are another snapshot's, but what was changed since is known.
    world.compact(9);
    world.commit(TOUCH);
    hydrated(&world, &connection);
    drop(connection);
    world.commit(TOUCH);
    reopened(&mut world, "after a snapshot");
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// Opens, and says whether the file was gone on with; all must be right in any case.
fn resumes(world: &World, path: &Path) -> bool {
    let connection = world.open(&at(path)).unwrap();
    hydrated(world, &connection);
    assert_eq!(content(&connection), content(&world.source));
    assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
    let snapshot: usize =
        world.server.keys(BUCKET).iter().map(|key| world.server.object(BUCKET, key).unwrap().len()).sum();
    stat(&connection, "hydration_bytes") < snapshot as u64 / 3
}

#[test]
fn rule_19_what_cannot_be_proven_is_hydrated_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("local.db");
    let mut world = world(6);
    assert!(!resumes(&world, &path) && resumes(&world, &path));
    // Damaged notes.
    let noted = fs::read(meta(&path)).unwrap();
    let mut damaged = noted.clone();
    damaged[noted.len() / 2] ^= 1;
    fs::write(meta(&path), damaged).unwrap();
    assert!(!resumes(&world, &path) && resumes(&world, &path));
    // A file that was cut.
    let len = fs::metadata(&path).unwrap().len();
    fs::File::options().write(true).open(&path).unwrap().set_len(len - 1).unwrap();
    assert!(!resumes(&world, &path) && resumes(&world, &path));
    // Notes that lie: they are about a later state than the file.
    let old = fs::read(&path).unwrap();
    world.commit(CHANGE);
    assert!(resumes(&world, &path) || resumes(&world, &path));
    fs::write(&path, old).unwrap();
    assert!(!resumes(&world, &path), "page 1 tells");
    // Notes about another replica.
    let mut other = World::built(&DbOptions { bytes: 6 << 20, tables: 2, seed: 5, ..DbOptions::default() });
    other.put(Level::SNAPSHOT);
    assert!(!resumes(&other, &path) && resumes(&other, &path));
    // The file's notes are gone: it may be anybody's.
    fs::remove_file(meta(&path)).unwrap();
    refused(&world, &path, "remove it");
}

#[test]
fn rule_19_a_history_that_was_rewritten_is_never_mixed_with_what_the_file_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("local.db");
    // Two sources that are the same up to a point.
    let (mut one, mut other) = (world(4), world(4));
    other.server.set_latency(Duration::ZERO);
    let base: Vec<String> = one.server.keys(BUCKET);
    for key in &base {
        other.server.put_object(BUCKET, key, one.server.object(BUCKET, key).unwrap(), &[]);
    }
    // Far from the pages at the front, which are in memory and would be compared.
    one.commit("UPDATE t1 SET number = number + 1 WHERE id > (SELECT max(id) FROM t1) - 50");
    assert!(!resumes(&one, &path));
    // Beyond what was noted last, the file gets pages of a history that then never was.
    {
        let connection = one.open(&at(&path)).unwrap();
        hydrated(&one, &connection);
        let noted = fs::read(meta(&path)).unwrap();
        one.commit("UPDATE t1 SET body = randomblob(length(body)) WHERE id > (SELECT max(id) FROM t1) - 200");
        hydrated(&one, &connection);
        let after = fs::read(meta(&path)).unwrap();
        assert_ne!(noted, after, "it is noted which pages may be there");
        drop(connection);
        fs::write(meta(&path), after).unwrap();
    }
    for key in one.server.keys(BUCKET) {
        assert!(one.server.remove_object(BUCKET, &key));
    }
    for _ in 0..3 {
        other.commit("UPDATE t1 SET number = number + 9 WHERE id % 300 = 0");
    }
    for key in other.server.keys(BUCKET) {
        one.server.put_object(BUCKET, &key, other.server.object(BUCKET, &key).unwrap(), &[]);
    }
    let connection = one.open(&at(&path)).unwrap();
    eventually("all is there", || progress(&connection) == 100);
    assert_eq!(content(&connection), content(&other.source));
    assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
}

/// What a process of its own does: see [`child`].
fn spawn(uri: &str, task: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hydration::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("HYDRATION_TEST_URI", uri)
        .env("HYDRATION_TEST_TASK", task)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

/// The next thing that a child says.
fn said(output: &mut BufReader<std::process::ChildStdout>) -> String {
    loop {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "the child has ended");
        if let Some((_, said)) = line.split_once("child: ") {
            return said.trim().to_owned();
        }
    }
}

#[test]
#[ignore = "runs as a process of its own, started by others"]
fn child() {
    let (Ok(uri), Ok(task)) = (std::env::var("HYDRATION_TEST_URI"), std::env::var("HYDRATION_TEST_TASK")) else {
        return;
    };
    super::common::register();
    if task == "cycles" {
        let count = |folder: &str| fs::read_dir(folder).unwrap().count();
        let counts = || (count("/proc/self/fd"), count("/proc/self/task"));
        let cycle = || {
            let connection = open_uri(&uri).unwrap();
            text(&connection, "SELECT sum(length(body)) FROM t0").unwrap();
            eventually("all is there", || progress(&connection) == 100);
        };
        cycle();
        let (fds, threads) = counts();
        println!("child: {fds} {threads}");
        (0..50).for_each(|_| cycle());
        let mut last = (0, 0);
        for _ in 0..100 {
            last = counts();
            if last.0 <= fds && last.1 <= threads {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        println!("child: {} {}", last.0, last.1);
        return;
    }
    let connection = open_uri(&uri).unwrap();
    println!("child: open");
    if task == "full" {
        eventually("the failure shows", || stat(&connection, "hydration_failures") > 0);
        println!("child: {} {}", progress(&connection), content(&connection));
        return;
    }
    loop {
        text(&connection, "SELECT sum(number) + sum(length(body)) FROM t0").unwrap();
        println!("child: {} {}", progress(&connection), text(&connection, "PRAGMA litestream_hydration_file").unwrap());
    }
}

#[test]
fn rule_19_a_process_killed_at_any_instant_leaves_no_stale_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("local.db");
    let mut world = world(4);
    let mut random = 12345_u64;
    let mut random = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random >> 33
    };
    let mut resumed = 0;
    for round in 0..12 {
        let (mut process, mut output) = spawn(&world.uri(&at(&path)), "read");
        assert_eq!(said(&mut output), "open");
        if round % 3 > 0 {
            while !said(&mut output).starts_with("100 ") {}
        }
        for _ in 0..random() % 4 {
            world.commit(if random() % 2 == 0 { CHANGE } else { TOUCH });
            if random() % 3 == 0 {
                world.commit("VACUUM");
            }
            std::thread::park_timeout(Duration::from_millis(random() % 120));
        }
        process.kill().unwrap();
        process.wait().unwrap();
        if random() % 3 == 0 {
            world.commit(TOUCH);
        }
        if random() % 4 == 0 {
            world.compact(1);
        }
        if round % 2 == 0 {
            continue;
        }
        // Right while it is hydrated, and after.
        let connection = world.open(&at(&path)).unwrap();
        assert_eq!(content(&connection), content(&world.source), "round {round}");
        drop(connection);
        resumed += u32::from(resumes(&world, &path));
    }
    println!("gone on with {resumed} times");
    assert!(resumed > 1, "gone on with {resumed} times");
}

#[test]
fn rule_19_the_second_process_on_one_path_gets_an_error_and_harms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("local.db");
    let world = world(2);
    let (mut process, mut output) = spawn(&world.uri(&at(&path)), "read");
    assert_eq!(said(&mut output), "open");
    while !said(&mut output).starts_with("100 ") {}
    let before = fs::metadata(&path).unwrap().len();
    let why = refused(&world, &path, "another process");
    assert!(why.contains("directory"), "{why}");
    assert_eq!(fs::metadata(&path).unwrap().len(), before);
    assert_eq!(said(&mut output), format!("100 {}", path.display()));
    process.kill().unwrap();
    process.wait().unwrap();
    // In one process it is the same, and a directory is the remedy.
    let connection = world.open(&at(&path)).unwrap();
    let other = self::world(2);
    refused(&other, &path, "another database of this process");
    hydrated(&world, &connection);
    let many = folder.path().join("many");
    let both = [&world, &other].map(|world| world.open(&at(&many.join(""))).unwrap());
    for (world, connection) in [&world, &other].into_iter().zip(&both) {
        hydrated(world, connection);
        assert_eq!(content(connection), content(&world.source));
    }
    // Each has a note beside it, which may just be replaced by a newer one.
    eventually("two files with their notes", || fs::read_dir(&many).unwrap().count() == 4);
}

#[test]
fn rule_21_no_thread_descriptor_or_temporary_file_is_left() {
    let world = world(1);
    let folder = tempfile::tempdir().unwrap();
    for more in [TEMPORARY.to_owned(), at(&folder.path().join("local.db"))] {
        let (mut process, mut output) = spawn(&world.uri(&more), "cycles");
        let (first, last) = (said(&mut output), said(&mut output));
        let numbers = |said: &str| said.split(' ').map(|number| number.parse().unwrap()).collect::<Vec<u32>>();
        let (first, last) = (numbers(&first), numbers(&last));
        assert!(last[0] <= first[0] && last[1] <= first[1], "{more}: {first:?} and then {last:?}");
        assert!(process.wait().unwrap().success());
    }
    // The temporary file has no name, even while it is in use.
    let temporary = tempfile::tempdir().unwrap();
    let uri = world.uri(TEMPORARY);
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hydration::child", "--ignored", "--nocapture"])
        .envs([("HYDRATION_TEST_URI", uri.as_str()), ("HYDRATION_TEST_TASK", "read")])
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap());
    while said(&mut output) != "100" {}
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn rule_20_damage_shows_and_reads_go_on() {
    let world = world(4);
    let key = world.server.keys(BUCKET).into_iter().find(|key| key.starts_with("db/0009/")).unwrap();
    let good = world.server.object(BUCKET, &key).unwrap();
    // A bit of a page's literal bytes: only the checksum of the whole file tells.
    let mut bad = good.to_vec();
    let body: Vec<u8> =
        world.source.query_row("SELECT CAST(body AS BLOB) FROM t0 WHERE id = 500", [], |row| row.get(0)).unwrap();
    let literal = body.windows(16).find_map(|part| good.windows(16).position(|window| window == part)).unwrap();
    bad[literal + 8] ^= 1;
    world.server.put_object(BUCKET, &key, bad, &[]);
    let connection = world.open(TEMPORARY).unwrap();
    eventually("the failure shows", || stat(&connection, "hydration_failures") > 0);
    assert_eq!(stat(&connection, "hydration_complete"), 0);
    assert!(progress(&connection) < 100);
    let sql = "SELECT sum(number) || ' ' || sum(length(body)) FROM t0";
    assert_eq!(text(&connection, sql).unwrap(), text(&world.source, sql).unwrap());
    assert_eq!(stat(&connection, "local_reads"), 0, "nothing of that file is believed");
    // Repaired, it is tried again.
    world.server.put_object(BUCKET, &key, good, &[]);
    eventually("all is there", || {
        let _ = text(&connection, "SELECT count(*) FROM t1");
        progress(&connection) == 100
    });
    drop(connection);
    let connection = world.open(TEMPORARY).unwrap();
    assert_eq!(content(&connection), content(&world.source));
}

#[test]
fn rule_20_a_full_disk_shows_and_reads_go_on() {
    let world = world(4);
    // No file may become longer than a megabyte.
    let mut process = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" --exact hydration::child --ignored --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .envs([("HYDRATION_TEST_URI", world.uri(TEMPORARY).as_str()), ("HYDRATION_TEST_TASK", "full")])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap());
    assert_eq!(said(&mut output), "open");
    let said = said(&mut output);
    let (progress, content) = said.split_once(' ').unwrap();
    assert!(progress.parse::<u32>().unwrap() < 100, "{progress}");
    assert_eq!(content, self::content(&world.source));
    assert!(process.wait().unwrap().success());
}

#[test]
fn rule_20_a_file_that_cannot_be_read_any_more_is_done_without() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("local.db");
    let world = world(2);
    let connection = world.open(&at(&path)).unwrap();
    hydrated(&world, &connection);
    // Somebody cuts it. What is missing then is fetched, and written once more.
    fs::File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
    assert_eq!(content(&connection), content(&world.source));
    assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
    assert!(stat(&connection, "hydration_failures") > 0);
    hydrated(&world, &connection);
    assert_eq!(content(&connection), content(&world.source));
}

#[test]
fn rule_20_five_faults_in_a_hundred_delay_and_spoil_nothing() {
    let mut world = world(4);
    world.server.set_faults(super::faults(0.05, 23));
    let connection = loop {
        if let Ok(connection) = world.open(TEMPORARY) {
            break connection;
        }
    };
    for _ in 0..6 {
        world.commit(TOUCH);
        match content_sha256(&connection) {
            Ok(_) => {}
            Err(error) => assert!(error.to_string().contains("disk I/O error"), "{error}"),
        }
    }
    eventually("all is there", || {
        let newest = text(&connection, "PRAGMA litestream_txid").is_ok_and(|txid| txid == "0000000000000007");
        newest && progress(&connection) == 100
    });
    assert_eq!(content(&connection), content(&world.source));
}
