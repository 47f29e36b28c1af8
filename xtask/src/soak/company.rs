//! A writer that is not alone: readers in other processes that hydrate, a store that goes away for a minute, and a writer that sleeps while
//! another goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use litestream_fixtures::blockmap::{Client, check_block_map, transactions};
use litestream_fixtures::db::content_sha256;
use litestream_fixtures::s3::Down;
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};

use super::Tally;
use super::writes::{Said, Stage, listen, open, register};
use crate::process::wait_until;

/// How many read, each in a process of its own.
const READERS: u32 = 6;
/// Size of the block map that they hydrate.
const BYTES: u64 = 4 << 20;
/// Time between two transactions.
const PACE: Duration = Duration::from_millis(50);
/// How many of the states that readers saw are compared with what the database held then.
const COMPARED: usize = 200;
/// How long a program may take longer than it was told to.
const GRACE: Duration = Duration::from_secs(120);
/// The most requests a second while the store is down.
const REQUESTS_A_SECOND: u64 = 2;

/// What a reader is told.
#[derive(Debug, Args)]
pub(crate) struct Reader {
    uri: String,
    /// It ends when it sees so many transactions
    until: u64,
    /// Or so many seconds have passed
    seconds: u64,
}

/// Says of every state what it holds: its number of transactions, and a hash.
///
/// # Errors
/// A torn read, a step back, or anything that SQLite reports.
pub(crate) fn read(arguments: &Reader) -> Result<()> {
    register()?;
    let connection = open(&arguments.uri)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    let (start, mut last, mut hydrated) = (Instant::now(), 0, false);
    for round in 0_u32.. {
        let look = look(&connection, round).or_else(|error| {
            let why: String = connection.query_row("SELECT litestream_error()", [], |row| row.get(0))?;
            Err(error).context(why)
        });
        let (number, content) = look?;
        ensure!(number >= last, "from transaction {last} back to {number}");
        if number > last || round == 0 {
            println!("saw {number} {content}");
        }
        last = number;
        if !hydrated && progress(&connection)? >= 100.0 {
            hydrated = true;
            println!("hydrated {number}");
        }
        std::io::stdout().flush()?;
        if hydrated && number >= arguments.until {
            // Whoever is up to date reads what lies here.
            let remote = stat(&connection, "cache_misses")?;
            look_twice(&connection)?;
            println!("fetched {}", stat(&connection, "cache_misses")? - remote);
            break;
        }
        ensure!(
            start.elapsed() < Duration::from_secs(arguments.seconds),
            "after {} s at transaction {number} of {}, {}hydrated",
            arguments.seconds,
            arguments.until,
            if hydrated { "" } else { "not " }
        );
        std::thread::park_timeout(PACE);
    }
    Ok(())
}

/// One transaction.
fn look(connection: &Connection, round: u32) -> Result<(u64, String)> {
    if round.is_multiple_of(20) {
        check_block_map(connection)?;
    }
    let view = connection.unchecked_transaction()?;
    let seen = look_twice(&view)?;
    view.finish()?;
    Ok(seen)
}

fn look_twice(connection: &Connection) -> Result<(u64, String)> {
    let seen = (transactions(connection)?, content_sha256(connection)?);
    ensure!(transactions(connection)? == seen.0, "two looks in one transaction saw different things");
    Ok(seen)
}

fn progress(connection: &Connection) -> Result<f64> {
    let text: String = connection.query_row("PRAGMA litestream_hydration_progress", [], |row| row.get(0))?;
    text.parse().with_context(|| format!("the progress is {text:?}"))
}

fn stat(connection: &Connection, name: &str) -> Result<u64> {
    let mut statement = connection.prepare("PRAGMA litestream_stats")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let line: String = row.get(0)?;
        for line in line.lines() {
            if let Some(value) = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')) {
                return value.parse().with_context(|| format!("{name} is {value:?}"));
            }
        }
    }
    Ok(0)
}

/// Ends with its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Already ended: both are harmless.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One writer that also merges and deletes, and readers that hydrate.
pub(super) fn readers(seconds: u64, seed: u64, tally: &mut Tally) -> Result<()> {
    register()?;
    let mut stage = Stage::new(seed, BYTES)?;
    tally.add("a writer and readers that hydrate", watch(&mut stage, seconds));
    Ok(())
}

fn watch(stage: &mut Stage, seconds: u64) -> Result<()> {
    let count = seconds * 1_000 / u64::try_from(PACE.as_millis())?;
    let until = stage.model.number()? + count;
    let upkeep =
        "&compaction_enabled=true&compaction_levels=1s,4s&snapshot_interval=20s&snapshot_retention=30s&l0_retention=3s";
    let uri = stage.uri("buffer", &format!("&write_enabled=1&sync_interval=500ms&fence_window=1s{upkeep}"));
    let mut writer = Killed(stage.writer(&uri, Some(count), Some(PACE))?);
    let mut readers = Vec::new();
    for number in 0..READERS {
        let path = stage.folder.path().join(format!("hydrated-{number}"));
        let place =
            if number.is_multiple_of(2) { String::new() } else { format!("&hydration_path={}", path.display()) };
        let uri = stage.uri("none", &format!("&poll_interval=500ms&hydration_enabled=true{place}"));
        let mut command = Command::new(std::env::current_exe()?);
        let limit = 2 * seconds + GRACE.as_secs();
        command.arg("soak-reader").arg(uri).arg(until.to_string()).arg(limit.to_string());
        let log = stage.folder.path().join(format!("reader-{number}.log"));
        command.stdout(std::fs::File::create(&log)?).stderr(Stdio::piped());
        readers.push((Killed(command.spawn().context("cannot start a reader")?), log));
    }
    let said = listen(&mut writer.0)?;
    ensure!(said.refused.is_none(), "the writer was refused: {said:?}");
    ensure!(said.durable == until, "the writer ended at {said:?}, not at {until}");

    let mut states: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    let mut fewest = u64::MAX;
    for (number, (reader, log)) in readers.iter_mut().enumerate() {
        let status = wait_until("a reader to see everything", 2 * GRACE, || Ok(reader.0.try_wait()?))?;
        let mut why = String::new();
        if let Some(mut stderr) = reader.0.stderr.take() {
            std::io::Read::read_to_string(&mut stderr, &mut why)?;
        }
        let text = std::fs::read_to_string(log)?;
        ensure!(status.success(), "reader {number}: {why}");
        let mut moves = 0;
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["saw", number, content] => {
                    moves += 1;
                    states.entry(number.parse()?).or_default().insert(content.to_owned());
                }
                ["fetched", pages] => ensure!(pages == "0", "reader {number} is hydrated, and fetched {pages} pages"),
                _ => {}
            }
        }
        ensure!(text.contains("\nhydrated "), "reader {number} did not hydrate: {text}");
        fewest = fewest.min(moves);
    }
    ensure!(fewest >= seconds / 2, "a reader saw only {fewest} states in {seconds} s");
    let all = states.len();
    let step = all.div_ceil(COMPARED);
    let mut compared = 0;
    for (place, (number, contents)) in states.into_iter().enumerate() {
        ensure!(contents.len() == 1, "after {number} transactions readers saw {} different states", contents.len());
        if place.is_multiple_of(step) || place + 1 == all {
            let expected = stage.model.content(number)?;
            ensure!(contents.contains(&expected), "after {number} transactions readers saw what never was");
            compared += 1;
        }
    }
    println!(
        "company: {READERS} readers hydrated while {count} transactions were written in {seconds} s; {all} states seen, at least {fewest} by each, {compared} compared: all as written"
    );
    Ok(())
}

/// The store goes away while a block map is written.
pub(super) fn outage(seconds: u64, seed: u64, tally: &mut Tally) -> Result<()> {
    register()?;
    let mut stage = Stage::new(seed, 1 << 20)?;
    for (name, down) in [("refuses connections", Down::Refuse), ("is silent", Down::Silent)] {
        tally.add(&format!("writing while the store {name}"), write_on(&mut stage, down, seconds));
        stage.server.set_down(None)?;
        tally.add(&format!("sync_deadline while the store {name}"), give_up(&mut stage, down));
        stage.server.set_down(None)?;
    }
    Ok(())
}

/// A writer that has the whole database.
fn hydrated(stage: &Stage, more: &str) -> Result<Connection> {
    let connection = open(&stage.uri("buffer", &format!("&write_enabled=1&hydration_enabled=true{more}")))?;
    transactions(&connection)?;
    wait_until("the database to be here", GRACE, || Ok((progress(&connection)? >= 100.0).then_some(())))?;
    Ok(connection)
}

fn text(connection: &Connection, sql: &str) -> Result<String> {
    Ok(connection.query_row(sql, [], |row| row.get(0))?)
}

fn requests(connection: &Connection) -> Result<u64> {
    ["lists", "gets", "heads", "puts", "retries"].into_iter().map(|name| stat(connection, name)).sum()
}

/// Commits go on, everything shows it, and everything goes up afterwards.
fn write_on(stage: &mut Stage, down: Down, seconds: u64) -> Result<()> {
    let client = Client::new(stage.seed);
    let connection = hydrated(stage, "&sync_interval=1s")?;
    client.step(&connection)?;
    text(&connection, "PRAGMA litestream_sync")?;
    let (before, start) = (requests(&connection)?, Instant::now());
    stage.server.set_down(Some(down))?;
    let mut steps = 0;
    while start.elapsed() < Duration::from_secs(seconds) {
        client.step(&connection).with_context(|| format!("after {:.1} s", start.elapsed().as_secs_f64()))?;
        steps += 1;
        std::thread::park_timeout(PACE);
    }
    let lag: f64 = text(&connection, "PRAGMA litestream_lag")?.parse()?;
    let (asked, pending) = (requests(&connection)? - before, stat(&connection, "transactions_pending")?);
    let failures = stat(&connection, "upload_failures")?;
    ensure!(lag >= seconds as f64 - 3.0, "after {seconds} s the lag is {lag}");
    ensure!(pending >= steps, "{pending} transactions are pending, {steps} were committed");
    ensure!(failures > 0 || seconds < 30, "no upload failed");
    ensure!(asked <= REQUESTS_A_SECOND * seconds + 5, "{asked} requests in {seconds} s");
    stage.server.set_down(None)?;
    // By itself, within the longest pause.
    let back = Instant::now();
    wait_until("the rest to go up", GRACE, || Ok((stat(&connection, "transactions_pending")? == 0).then_some(())))?;
    let took = back.elapsed();
    let number = transactions(&connection)?;
    let other = stage.elsewhere()?;
    let there = stage.model.judge(&other, number).context("elsewhere")?;
    ensure!(there == number, "{there} of {number} transactions went up");
    let lag: f64 = text(&connection, "PRAGMA litestream_lag")?.parse()?;
    ensure!(lag < 1.0, "everything is up, and the lag is {lag}");
    connection.close().map_err(|(_, error)| error)?;
    println!(
        "outage ({down:?}): {steps} commits in {seconds} s without the store, {asked} requests, {failures} failed uploads; up {:.1} s after it was back",
        took.as_secs_f64()
    );
    Ok(())
}

/// With a deadline, commits fail when it has passed, and go on when the store is back.
fn give_up(stage: &mut Stage, down: Down) -> Result<()> {
    let client = Client::new(stage.seed);
    let deadline = Duration::from_secs(3);
    let connection = hydrated(stage, "&sync_interval=200ms&sync_deadline=3s&shutdown_sync_timeout=1s")?;
    client.step(&connection)?;
    text(&connection, "PRAGMA litestream_sync")?;
    stage.server.set_down(Some(down))?;
    let start = Instant::now();
    let refused = loop {
        if let Err(error) = client.step(&connection) {
            break error;
        }
        ensure!(start.elapsed() < GRACE, "commits go on {} s after the deadline", GRACE.as_secs());
        std::thread::park_timeout(PACE);
    };
    let after = start.elapsed();
    ensure!(after >= deadline, "refused after {after:?}");
    let why = text(&connection, "SELECT litestream_error()")?;
    ensure!(why.contains("sync_deadline"), "{refused}: {why}");
    let number = transactions(&connection)?;
    stage.server.set_down(None)?;
    wait_until("a commit to pass", GRACE, || Ok(client.step(&connection).is_ok().then_some(())))?;
    ensure!(transactions(&connection)? > number, "the commit did not count");
    connection.close().map_err(|(_, error)| error)?;
    println!("outage ({down:?}): with a deadline of 3 s, commits were refused after {:.1} s", after.as_secs_f64());
    Ok(())
}

/// A writer is stopped for longer than level 0 is kept, while another goes on.
pub(super) fn sleepers(tries: u32, seed: u64, tally: &mut Tally) -> Result<()> {
    register()?;
    let mut stage = Stage::new(seed, 1 << 20)?;
    for number in 0..tries {
        tally.add(&format!("sleeper {number}"), sleep(&mut stage, number));
    }
    println!("sleepers: {tries} writers were stopped for longer than level 0 is kept, and fenced when they woke");
    Ok(())
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(child.id().cast_signed()).context("the writer has no process id")?;
    Ok(kill_process(pid, signal)?)
}

fn sleep(stage: &mut Stage, number: u32) -> Result<()> {
    let before = stage.model.number()?;
    let sleeper = format!("sleeper-{number}");
    // With all pages here: else it may miss one first that is gone, and reports that.
    let more = "&write_enabled=1&hydration_enabled=true&sync_interval=100ms&fence_window=1s&shutdown_sync_timeout=1s";
    let uri = stage.uri(&sleeper, more);
    let mut first = Killed(stage.writer(&uri, Some(10_000), Some(PACE))?);
    let watched = stage.elsewhere()?;
    wait_until("the first writer's transactions", GRACE, || Ok((transactions(&watched)? >= before + 5).then_some(())))?;
    signal(&first.0, Signal::STOP)?;
    drop(watched);

    // The other merges what both wrote, and deletes it.
    let upkeep = "&compaction_enabled=true&compaction_levels=1s&l0_retention=2s";
    let more = format!("&write_enabled=1&sync_interval=100ms&fence_window=1s{upkeep}");
    let other = open(&stage.uri(&format!("awake-{number}"), &more))?;
    let client = Client::new(stage.seed);
    let began = stage.keys_of_level_0();
    let newest = began.last().cloned().context("level 0 is empty")?;
    let start = Instant::now();
    // Until the TXID that the sleeper would put next has come and gone.
    wait_until("level 0 to move on", GRACE, || {
        client.step(&other)?;
        std::thread::park_timeout(PACE);
        let now = stage.keys_of_level_0();
        let gone = now.first().is_some_and(|first| *first > newest) && now.len() >= 2;
        Ok((gone && start.elapsed() > Duration::from_secs(5)).then_some(()))
    })?;
    text(&other, "PRAGMA litestream_sync")?;
    let durable = transactions(&other)?;
    signal(&first.0, Signal::CONT)?;
    let said: Said = listen(&mut first.0)?;
    let why = said.refused.as_deref().unwrap_or_default();
    ensure!(why.contains("fenced"), "the sleeper was not told: {said:?}");
    ensure!(why.contains(&sleeper), "the sleeper was not told where its buffer is: {why}");
    drop(first);
    // The other goes on as if nothing had been.
    client.step(&other)?;
    text(&other, "PRAGMA litestream_sync")?;
    let number = transactions(&other)?;
    ensure!(number == durable + 1, "{number} transactions after {durable} and one more");
    let there = stage.model.judge(&stage.elsewhere()?, number).context("elsewhere")?;
    ensure!(there == number, "{there} transactions, {number} are durable");
    other.close().map_err(|(_, error)| error)?;
    Ok(())
}
