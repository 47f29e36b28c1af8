//! An application that knows nothing of being replicated: it writes at full speed, checkpoints as it likes, opens and closes its database, and is
//! killed at any instant. It runs in a process of its own, this program again ([`live()`]).
//!
//! Every transaction counts itself twice, in the row of its writer in `ledger` and as a row of `journal`; a block map counts its own
//! transactions. So whoever looks at a database knows whether one is missing, or was never made.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use litestream_fixtures::blockmap::{
    BlockMapError, BlockMapOptions, Client, build_block_map, check_block_map, transactions,
};
use rusqlite::{Connection, ErrorCode, params};

/// So many transactions an application makes at most before it opens its database anew.
const SESSION: std::ops::Range<u32> = 20..2_000;
/// Above so many pages half of the rows go.
const PAGES: u32 = 5_000;
/// So many rows of `archive` each writer keeps: pages that are written once, so that nothing which is lost is made good by what comes later.
const ARCHIVED: i64 = 300;
/// So many rows of `journal` each writer keeps.
const KEPT: u64 = 500;
/// How long the longest reader looks at one state.
const LONGEST_READ: u64 = 3_000;

/// What an application does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Plain tables: growth, updates, deletes, `VACUUM`, transactions that are rolled back.
    Tables,
    /// The transactions of JuiceFS.
    BlockMap,
}

/// What an application is told.
#[derive(Debug, Args)]
pub(crate) struct App {
    database: PathBuf,
    #[arg(value_enum)]
    kind: Kind,
    /// Which of the database's writers it is
    writer: u32,
    seed: u64,
}

/// Makes a database, closed and in WAL mode.
pub(super) fn make(database: &Path, kind: Kind, page_size: u32, writers: u32, seed: u64) -> Result<()> {
    if kind == Kind::BlockMap {
        return Ok(build_block_map(database, &BlockMapOptions { seed, ..BlockMapOptions::default() })?);
    }
    let connection = Connection::open(database)?;
    connection.execute_batch(&format!(
        "PRAGMA page_size = {page_size};
         PRAGMA journal_mode = WAL;
         CREATE TABLE ledger(writer INTEGER PRIMARY KEY, count INTEGER NOT NULL);
         CREATE TABLE journal(writer INTEGER, number INTEGER, PRIMARY KEY (writer, number)) WITHOUT ROWID;
         CREATE TABLE rows(id INTEGER PRIMARY KEY, writer INTEGER, key TEXT, body BLOB);
         CREATE INDEX rows_by_key ON rows(key);
         CREATE TABLE archive(writer INTEGER, number INTEGER, body BLOB, PRIMARY KEY (writer, number));"
    ))?;
    for writer in 0..writers {
        connection.execute("INSERT INTO ledger VALUES (?1, 0)", [writer])?;
    }
    Ok(())
}

/// How many transactions each writer has committed, and whether the database says so everywhere.
///
/// # Errors
/// It contradicts itself.
pub(super) fn counts(connection: &Connection, kind: Kind) -> Result<Vec<u64>> {
    if kind == Kind::BlockMap {
        check_block_map(connection)?;
        return Ok(vec![transactions(connection)?]);
    }
    let view = connection.unchecked_transaction()?;
    let mut statement = view.prepare("SELECT writer, count FROM ledger ORDER BY writer")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, u32>(0)?, row.get::<_, i64>(1)?)))?;
    let rows: Vec<(u32, i64)> = rows.collect::<rusqlite::Result<_>>()?;
    for (writer, count) in &rows {
        let sql = "SELECT count(*), coalesce(min(number), 1), coalesce(max(number), 0) FROM journal WHERE writer = ?1";
        let (there, first, last): (i64, i64, i64) =
            view.query_row(sql, [writer], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        ensure!(
            last == *count && there == last - first + 1,
            "writer {writer} counts {count} transactions, and its journal has {there} from {first} to {last}"
        );
    }
    Ok(rows.iter().map(|(_, count)| count.unsigned_abs()).collect())
}

/// Works until it is killed. Whoever has started it says `pause` and `go`.
///
/// # Errors
/// What no application should see.
pub(crate) fn live(arguments: &App) -> Result<()> {
    static PAUSED: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            PAUSED.store(line == "pause", Ordering::SeqCst);
        }
        // Nobody is interested any more.
        std::process::exit(0);
    });
    let mut random = fastrand::Rng::with_seed(arguments.seed);
    let (mut sessions, mut sound) = (0_u64, 0);
    loop {
        match session(arguments, &PAUSED, &mut random) {
            Ok(()) => sound += 1,
            Err(error) if is_busy(&error) => {}
            Err(error) => {
                say(&format!("broken {error:#}"))?;
                bail!(error);
            }
        }
        sessions += 1;
        ensure!(sound > 0 || sessions < 1_000, "the database is always busy");
    }
}

fn say(what: &str) -> std::io::Result<()> {
    println!("{what}");
    std::io::stdout().flush()
}

fn is_busy(error: &anyhow::Error) -> bool {
    if let Some(error) = error.downcast_ref::<BlockMapError>() {
        return error.is_busy();
    }
    let code = error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
    let busy = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked, ErrorCode::FileLockingProtocolFailed];
    code.is_some_and(|code| busy.contains(&code))
}

/// From opening the database to closing it.
fn session(arguments: &App, paused: &AtomicBool, random: &mut fastrand::Rng) -> Result<()> {
    let connection = Connection::open(&arguments.database)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    let synchronous = random.choice(["OFF", "NORMAL", "NORMAL", "FULL"]).unwrap_or("NORMAL");
    connection.pragma_update(None, "synchronous", synchronous)?;
    let automatic = random.choice([0, 50, 1_000, 1_000]).unwrap_or(1_000);
    connection.pragma_update(None, "wal_autocheckpoint", automatic)?;
    // With next to no cache what is not committed goes to the log as well.
    connection.pragma_update(None, "cache_size", random.choice([10, -2_000]).unwrap_or(10))?;
    let client = Client::new(u64::from(u32::MAX));
    let mut reader: Option<(Connection, Instant)> = None;
    for _ in 0..random.u32(SESSION) {
        if paused.load(Ordering::SeqCst) {
            reader = None;
            let stays = random.bool();
            say(&format!("paused {}", if stays { "open" } else { "closed" }))?;
            if !stays {
                drop(connection);
                wait(paused);
                return Ok(());
            }
            wait(paused);
            say("going")?;
        }
        if reader.as_ref().is_some_and(|(_, until)| *until < Instant::now()) {
            reader = None;
        }
        match random.u32(0..20_000) {
            0..=199 => checkpoint(&connection, random)?,
            // It writes every page anew, and so would hide what was lost before.
            200 => connection.execute_batch("VACUUM")?,
            210..=249 if reader.is_none() => {
                let other = Connection::open(&arguments.database)?;
                other.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema")?;
                reader = Some((other, Instant::now() + Duration::from_millis(random.u64(..LONGEST_READ))));
            }
            250..=410 => roll_back(&connection, arguments.kind, random)?,
            _ => {
                let number = match arguments.kind {
                    Kind::BlockMap => client.step(&connection)?.number,
                    Kind::Tables => transaction(&connection, arguments.writer, random)?,
                };
                say(&format!("committed {number}"))?;
            }
        }
    }
    Ok(())
}

fn wait(paused: &AtomicBool) {
    while paused.load(Ordering::SeqCst) {
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

fn checkpoint(connection: &Connection, random: &mut fastrand::Rng) -> Result<()> {
    let mode = random.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"]).unwrap_or("PASSIVE");
    // Others may be in its way for longer than it waits; then it tells so in its row.
    connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))?;
    Ok(())
}

/// Writes a lot that is never committed.
fn roll_back(connection: &Connection, kind: Kind, random: &mut fastrand::Rng) -> Result<()> {
    let into = match kind {
        Kind::Tables => "rows(body)",
        Kind::BlockMap => "jfs_symlink(inode, target)",
    };
    let values = match kind {
        Kind::Tables => "randomblob(3000)",
        Kind::BlockMap => "1000000000 + n, randomblob(1000)",
    };
    let count = random.u32(1..300);
    let rows = format!("WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {count})");
    let outcome =
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {rows} INSERT INTO {into} SELECT {values} FROM s;"));
    if !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK")?;
    }
    Ok(outcome?)
}

/// One transaction. Returns its number.
fn transaction(connection: &Connection, writer: u32, random: &mut fastrand::Rng) -> Result<u64> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let outcome = change(connection, writer, random).and_then(|number| {
        connection.execute_batch("COMMIT")?;
        Ok(number)
    });
    if !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK")?;
    }
    outcome
}

/// A row of several pages, in place of the oldest.
fn archive(connection: &Connection, writer: u32) -> Result<()> {
    let sql = "SELECT coalesce(max(number), 0) + 1 FROM archive WHERE writer = ?1";
    let number: i64 = connection.prepare_cached(sql)?.query_row([writer], |row| row.get(0))?;
    let sql = "DELETE FROM archive WHERE writer = ?1 AND number <= ?2";
    connection.prepare_cached(sql)?.execute(params![writer, number - ARCHIVED])?;
    let sql = "INSERT INTO archive VALUES (?1, ?2, randomblob(20000))";
    connection.prepare_cached(sql)?.execute(params![writer, number])?;
    Ok(())
}

fn change(connection: &Connection, writer: u32, random: &mut fastrand::Rng) -> Result<u64> {
    let insert = |random: &mut fastrand::Rng, length: u32| -> Result<()> {
        let key = format!("{:08x}", random.u32(..));
        let sql = "INSERT INTO rows(writer, key, body) VALUES (?1, ?2, randomblob(?3))";
        connection.prepare_cached(sql)?.execute(params![writer, key, length])?;
        Ok(())
    };
    let last: u32 = connection.query_row("SELECT coalesce(max(id), 0) FROM rows", [], |row| row.get(0))?;
    let pages: u32 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    match random.u32(0..1_000) {
        _ if pages > PAGES => {
            connection.execute("DELETE FROM rows WHERE id % 2 = ?1", [random.u32(0..2)])?;
        }
        0..=1 => {
            for _ in 0..100 {
                insert(random, 9_000)?;
            }
        }
        2 => connection
            .execute_batch("CREATE TABLE extra(x); INSERT INTO extra SELECT body FROM rows; DROP TABLE extra")?,
        3..=59 => archive(connection, writer)?,
        60..=599 => {
            for _ in 0..random.u32(1..8) {
                let length = random.u32(1..900);
                insert(random, length)?;
            }
        }
        600..=849 => {
            let from = random.u32(0..=last);
            let sql =
                "UPDATE rows SET body = randomblob(length(body)), key = key || 'u' WHERE id BETWEEN ?1 AND ?1 + 3";
            connection.prepare_cached(sql)?.execute([from])?;
        }
        _ => {
            let from = random.u32(0..=last);
            connection.prepare_cached("DELETE FROM rows WHERE id BETWEEN ?1 AND ?1 + 15")?.execute([from])?;
        }
    }
    let sql = "UPDATE ledger SET count = count + 1 WHERE writer = ?1 RETURNING count";
    let number: i64 = connection.prepare_cached(sql)?.query_row([writer], |row| row.get(0))?;
    let number = u64::try_from(number).context("the ledger counts backwards")?;
    connection.prepare_cached("INSERT INTO journal VALUES (?1, ?2)")?.execute(params![writer, number as i64])?;
    if number.is_multiple_of(KEPT) {
        let sql = "DELETE FROM journal WHERE writer = ?1 AND number <= ?2";
        connection.execute(sql, params![writer, number.saturating_sub(KEPT) as i64])?;
    }
    Ok(number)
}
