//! From real Litestream's daemon to ours and back, several times, one at a time, beside a writer that never stops.
//!
//! What is seen: both keep what is theirs in `.NAME-litestream`, and nothing of the other's. But the headers of LTX files say which stretch of the
//! log they were made of. Litestream 0.5.17 takes that at its word and goes on behind ours. Ours reads the stretch, compares it with the file, and goes
//! on behind Litestream where they are the same; where the log was begun anew meanwhile, it goes on with all of the database, at the next
//! TXID, and nobody else notices. Started again after itself, ours goes on where it was.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use litestream_fixtures::db::open_immutable;
use rusqlite::Connection;

use super::ours::{Ours, config};
use super::replicate_commands::{make, same};
use super::world::{Backend, World};
use super::{Checked, DEADLINE};
use crate::litestream::Target;
use crate::process::{tail, wait_until};

/// Nothing that both restores may ask for goes.
const GLOBAL: &str = "l0-retention: 1h";
/// How often each of them has its turn.
const TURNS: u32 = 3;
/// So many transactions are written at least in each.
const TRANSACTIONS: u64 = 40;
/// Time between two.
const PACE: Duration = Duration::from_millis(10);

/// See the module.
pub(super) fn replicate_switch(world: &mut World) -> Checked {
    let url = world.new_replica(Backend::S3, "replicate-switch");
    let folder = world.folder("replicate-switch")?;
    let database = folder.join("db");
    let connection = make(&database)?;
    let (written, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| -> Checked {
        let (written, done) = (&written, &done);
        let writer = scope.spawn(move || write(connection, written, done));
        let turns = turns(world, &folder, &database, &url, written);
        done.store(true, Ordering::SeqCst);
        let connection = writer.join().map_err(|_| anyhow!("the writer panicked"))??;
        let turns = turns?;
        // With nobody writing any more, to the last row.
        world.replicate_once(&database, &url)?;
        same(world, &url, &connection).context("litestream at the end")?;
        let daemon = Ours::start(world, &folder.join("ours.yml"))?;
        daemon.sync(&database)?;
        same(world, &url, &connection).context("ours at the end")?;
        Ok(turns)
    })
}

fn turns(world: &World, folder: &Path, database: &Path, url: &str, written: &AtomicU64) -> Checked {
    let config = config(folder, GLOBAL, &[(database, url)])?;
    let (mut handovers, mut again) = (0, 0);
    for turn in 0..TURNS {
        let daemon = world.replicate(database, url, GLOBAL)?;
        some_more(written)?;
        // It uploads what is there when it ends.
        let before = written.load(Ordering::SeqCst);
        let status = daemon.terminate(DEADLINE)?;
        ensure!(status.success(), "litestream ended with {status}");
        judge(world, url, before).with_context(|| format!("after litestream's turn {turn}"))?;

        handovers += ours(world, &config, database, url, written).with_context(|| format!("our turn {turn}"))?;
        again += ours(world, &config, database, url, written).with_context(|| format!("our turn {turn}, again"))?;
    }
    ensure!(handovers <= TURNS as usize, "{handovers} snapshots in {TURNS} handovers to ours");
    ensure!(again == 0, "{again} snapshots although ours followed on itself");
    Ok(format!(
        "{TURNS} times to ours and back beside {} transactions: after each both restores have all; {handovers} snapshots by ours after litestream's turns, {again} after its own",
        written.load(Ordering::SeqCst)
    ))
}

/// A turn of ours. Returns how many snapshots it needed.
fn ours(world: &World, config: &Path, database: &Path, url: &str, written: &AtomicU64) -> Result<usize> {
    let daemon = Ours::start(world, config)?;
    let before = written.load(Ordering::SeqCst);
    daemon.sync(database)?;
    judge(world, url, before).context("after a sync")?;
    some_more(written)?;
    let before = written.load(Ordering::SeqCst);
    let (status, log) = daemon.terminate()?;
    ensure!(status.success(), "ours ended with {status}:\n{}", tail(&log, 15));
    judge(world, url, before).context("after its end")?;
    Ok(log.lines().filter(|line| line.contains("new snapshot")).count())
}

/// All that was written up to then must be there, in the order in which it was written, and by both the same.
fn judge(world: &World, url: &str, before: u64) -> Result<()> {
    let output = world.output();
    let (txid, _) = world.restore_ours_to(url, &Target::Latest, &output)?;
    // More may come meanwhile.
    world.restore_both(url, &Target::Txid(txid))?;
    let restored = open_immutable(&output)?;
    let (count, last): (i64, Option<i64>) =
        restored.query_row("SELECT count(*), max(n) FROM numbers", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    ensure!(count == last.unwrap_or(0), "{count} rows up to {last:?}");
    ensure!(count.unsigned_abs() >= before, "{count} transactions are there, {before} were committed");
    drop(restored);
    Ok(std::fs::remove_file(&output)?)
}

fn some_more(written: &AtomicU64) -> Result<()> {
    let until = written.load(Ordering::SeqCst) + TRANSACTIONS;
    wait_until("the writer to go on", DEADLINE, || Ok((written.load(Ordering::SeqCst) >= until).then_some(())))
}

fn write(connection: Connection, written: &AtomicU64, done: &AtomicBool) -> Result<Connection> {
    connection.execute_batch("CREATE TABLE numbers(n INTEGER PRIMARY KEY, body)")?;
    for number in 1_u32.. {
        if done.load(Ordering::SeqCst) {
            break;
        }
        connection.execute("INSERT INTO numbers VALUES (?1, randomblob(300))", [number])?;
        written.store(number.into(), Ordering::SeqCst);
        std::thread::park_timeout(PACE);
    }
    Ok(connection)
}
