//! From real Litestream's daemon to ours and back, several times, one at a time, beside a writer that never stops.
//!
//! What is seen: both keep what is theirs in `.NAME-litestream`, and nothing of the other's. But the headers of LTX files say which stretch of the
//! log they were made of. Litestream 0.5.17 takes that at its word and goes on behind ours. Ours reads the stretch, compares it with the file, and goes
//! on behind Litestream where they are the same; where the log was begun anew meanwhile, it goes on with all of the database, at the next
//! TXID, and nobody else notices. Started again after itself, ours goes on where it was. Litestream takes a log that was begun anew for one of which
//! it has missed nothing: what was committed between our end and its start, and is in the file only, it never uploads (about one run in six lost
//! transactions so, before the application kept the log there).
//!
//! So it must make no snapshot where the log was kept from Litestream's end until its own start, and one where it was begun anew. The application
//! checkpoints as SQLite does by itself, but keeps the log while it changes hands.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use litestream_fixtures::db::open_immutable;
use rusqlite::Connection;

use super::ours::{Ours, config};
use super::replicate_commands::{make, same};
use super::world::{Backend, File, World};
use super::{Checked, DEADLINE};
use crate::litestream::Target;
use crate::metrics;
use crate::process::{tail, wait_until};

/// Nothing that both restores may ask for goes.
const GLOBAL: &str = "l0-retention: 1h";
/// How often each of them has its turn.
const TURNS: u32 = 3;
/// So many transactions are written at least in each.
const TRANSACTIONS: u64 = 40;
/// Time between two.
const PACE: Duration = Duration::from_millis(10);
/// After so many pages SQLite checkpoints by itself (<https://www.sqlite.org/c3ref/wal_autocheckpoint.html>).
const AUTOMATIC: u32 = 1_000;

/// The application, as others see it.
#[derive(Debug, Default)]
struct Writer {
    /// How many transactions it has committed.
    written: AtomicU64,
    /// Whether it leaves the log alone.
    keeps_log: AtomicBool,
    done: AtomicBool,
}

/// See the module.
pub(super) fn replicate_switch(world: &mut World) -> Checked {
    let url = world.new_replica(Backend::S3, "replicate-switch");
    let folder = world.folder("replicate-switch")?;
    let database = folder.join("db");
    let connection = make(&database)?;
    let writer = Writer::default();
    std::thread::scope(|scope| -> Checked {
        let writer = &writer;
        let thread = scope.spawn(move || writer.write(connection));
        let turns = turns(world, &folder, &database, &url, writer);
        writer.done.store(true, Ordering::SeqCst);
        let connection = thread.join().map_err(|_| anyhow!("the writer panicked"))??;
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

fn turns(world: &World, folder: &Path, database: &Path, url: &str, writer: &Writer) -> Checked {
    let scene = Scene { world, database, url, writer, address: metrics::free_address()? };
    let config = config(folder, &format!("{GLOBAL}\naddr: '{}'", scene.address), &[(database, url)])?;
    for turn in 0..TURNS {
        scene.litestream().with_context(|| format!("litestream's turn {turn}"))?;
        // The next one is ours, too.
        scene.ours(&config, 0, true).with_context(|| format!("our turn {turn}, after litestream's"))?;
        // Litestream would not notice what it misses if the log grew and was begun anew in between.
        scene.ours(&config, 0, true).with_context(|| format!("our turn {turn}, after our own"))?;
    }
    scene.litestream().context("litestream's last turn")?;
    scene.begin_log_anew()?;
    scene.ours(&config, 1, false).context("our last turn, with a log that was begun anew")?;
    Ok(format!(
        "{TURNS} times to ours and back beside {} transactions: after each both restores have all; no snapshot by ours after litestream's turns, nor after its own; one where the log was begun anew",
        writer.written()
    ))
}

struct Scene<'a> {
    world: &'a World,
    database: &'a Path,
    url: &'a str,
    writer: &'a Writer,
    /// Where our metrics are.
    address: String,
}

impl Scene<'_> {
    /// A turn of Litestream's. The log is kept until it goes on with it, and again from before its end on.
    fn litestream(&self) -> Result<()> {
        let newest = || -> Result<Option<u64>> {
            let ends: Result<Vec<u64>> = self.world.our_list(self.url)?.iter().map(File::end).collect();
            Ok(ends?.into_iter().max())
        };
        let ours = newest()?;
        let daemon = self.world.replicate(self.database, self.url, GLOBAL)?;
        // From then on the log goes on beside it.
        wait_until("litestream to upload something", DEADLINE, || Ok((newest()? > ours).then_some(())))?;
        self.writer.keeps_log.store(false, Ordering::SeqCst);
        self.writer.some_more()?;
        self.writer.keeps_log.store(true, Ordering::SeqCst);
        self.writer.some_more()?;
        // It uploads what is there when it ends.
        let before = self.writer.written();
        let status = daemon.terminate(DEADLINE)?;
        ensure!(status.success(), "litestream ended with {status}");
        judge(self.world, self.url, before).context("after its end")
    }

    /// All that is in the log goes to the database file, and what comes next stands where it stood.
    fn begin_log_anew(&self) -> Result<()> {
        let connection = Connection::open(self.database)?;
        connection.busy_timeout(DEADLINE)?;
        wait_until("the log to be emptied", DEADLINE, || {
            let busy: bool = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
            Ok((!busy).then_some(()))
        })?;
        self.writer.some_more()
    }

    /// A turn of ours, in which so many snapshots are made. Once it has begun, the log is not kept any more, unless from before its end on.
    fn ours(&self, config: &Path, expected: usize, keeps_log: bool) -> Result<()> {
        let daemon = Ours::start(self.world, config)?;
        let before = self.writer.written();
        daemon.sync(self.database)?;
        self.writer.keeps_log.store(false, Ordering::SeqCst);
        judge(self.world, self.url, before).context("after a sync")?;
        self.writer.keeps_log.store(keeps_log, Ordering::SeqCst);
        self.writer.some_more()?;
        let before = self.writer.written();
        let told = metrics::get(&self.address)?;
        let counted: Vec<f64> = metrics::samples(&told, "litestream_snapshot_count{").collect();
        let (status, log) = daemon.terminate()?;
        ensure!(status.success(), "ours ended with {status}:\n{}", tail(&log, 15));
        let logged = log.lines().filter(|line| line.contains("new snapshot")).count();
        ensure!(
            logged == expected && counted == [expected as f64],
            "{expected} snapshots were to be made, it tells of {logged} and counts {counted:?}:\n{}",
            tail(&log, 15)
        );
        judge(self.world, self.url, before).context("after its end")
    }
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

impl Writer {
    fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    fn some_more(&self) -> Result<()> {
        let until = self.written() + TRANSACTIONS;
        wait_until("the writer to go on", DEADLINE, || Ok((self.written() >= until).then_some(())))
    }

    fn write(&self, connection: Connection) -> Result<Connection> {
        connection.execute_batch("CREATE TABLE numbers(n INTEGER PRIMARY KEY, body)")?;
        for number in 1_u32.. {
            if self.done.load(Ordering::SeqCst) {
                break;
            }
            let automatic = if self.keeps_log.load(Ordering::SeqCst) { 0 } else { AUTOMATIC };
            connection.pragma_update(None, "wal_autocheckpoint", automatic)?;
            connection.execute("INSERT INTO numbers VALUES (?1, randomblob(300))", [number])?;
            self.written.store(number.into(), Ordering::SeqCst);
            std::thread::park_timeout(PACE);
        }
        Ok(connection)
    }
}
