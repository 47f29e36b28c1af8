//! A program that writes to a database while real Litestream replicates it, and remembers what the database held when.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use litestream_fixtures::db::{DbOptions, Transactions, build_database, content_sha256};
use rusqlite::Connection;

use super::DEADLINE;
use super::world::World;
use crate::litestream::Target;
use crate::process::Process;

/// What a database held, and since when. Times are milliseconds since the epoch.
#[derive(Debug, Clone)]
pub(super) struct State {
    /// Before it was written: it cannot be older.
    pub(super) began_ms: u64,
    /// When it was surely there.
    pub(super) time_ms: u64,
    pub(super) content: String,
}

/// The writer, and Litestream beside it.
#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    transactions: Transactions,
    random: fastrand::Rng,
    daemon: Process,
    /// Where Litestream keeps level 0 before it uploads it.
    staged: PathBuf,
    states: Vec<State>,
}

impl Writer {
    /// Builds a database, starts Litestream with the intervals of `global` and waits for the first TXID.
    pub(super) fn start(world: &World, database: &Path, url: &str, global: &str) -> Result<Writer> {
        const SEED: u64 = 3;
        let options = DbOptions { bytes: 200 << 10, seed: SEED, ..DbOptions::default() };
        build_database(database, &options)?;
        let connection = Connection::open(database)?;
        // Litestream takes locks for moments; so may we wait for moments.
        connection.busy_timeout(DEADLINE)?;
        let daemon = world.replicate(database, url, global)?;
        let name = database.file_name().and_then(|name| name.to_str()).context("the database has no name")?;
        let staged = database.with_file_name(format!(".{name}-litestream")).join("ltx").join("0");
        let transactions = Transactions::new(SEED, &options);
        let random = fastrand::Rng::with_seed(SEED);
        let mut writer = Writer { connection, transactions, random, daemon, staged, states: Vec::new() };
        // As it was built before Litestream began.
        writer.states.push(State { began_ms: 0, ..writer.now()? });
        writer.wait_for_txid_after(0)?;
        Ok(writer)
    }

    /// Some transactions in a row, each committed whenever SQLite lets it, until Litestream has made a TXID of at
    /// least one.
    pub(super) fn burst(&mut self) -> Result<()> {
        let before = self.last_staged();
        for _ in 0..self.random.u32(1..=5) {
            // The moment before: nothing of this state can be in a backup from then.
            let time_ms = u64::try_from(Timestamp::now().as_millisecond())?;
            self.transactions.run(&mut self.connection)?;
            let state = State { time_ms, ..self.now()? };
            self.states.push(state);
        }
        self.wait_for_txid_after(before)
    }

    /// What the database holds now.
    pub(super) fn now(&self) -> Result<State> {
        let content = content_sha256(&self.connection)?;
        let now = now_ms()?;
        Ok(State { began_ms: now, time_ms: now, content })
    }

    /// Waits until all that was written can be restored, and these levels hold all of it, too.
    pub(super) fn wait_for(&mut self, world: &World, url: &str, levels: &[u8]) -> Result<()> {
        let content = self.now()?.content;
        self.daemon.wait_until("the last transaction to be uploaded", DEADLINE, || {
            // A refusal may be a compaction's doing; the next try will do.
            let restored = world.restore_real(url, &Target::Latest);
            Ok(restored.ok().and_then(|restored| (restored.content == content).then_some(())))
        })?;
        let reach = |level: u8| -> Result<u64> {
            let files = world.list(url)?;
            let reached = files.iter().filter(|file| file.level == level).map(|file| file.end());
            Ok(reached.collect::<Result<Vec<u64>>>()?.into_iter().max().unwrap_or(0))
        };
        let last = reach(0)?;
        for &level in levels {
            let what = format!("level {level} to reach TXID {last:x}");
            self.daemon.wait_until(&what, DEADLINE, || Ok((reach(level)? >= last).then_some(())))?;
        }
        Ok(())
    }

    /// Stops Litestream, which uploads what it has not yet, and returns everything that the database ever held.
    pub(super) fn finish(self) -> Result<Vec<State>> {
        self.daemon.terminate(DEADLINE)?;
        Ok(self.states)
    }

    fn wait_for_txid_after(&mut self, before: u64) -> Result<()> {
        let staged = &self.staged;
        self.daemon.wait_until("the next TXID", DEADLINE, || Ok((last_txid(staged) > before).then_some(())))
    }

    fn last_staged(&self) -> u64 {
        last_txid(&self.staged)
    }
}

fn now_ms() -> Result<u64> {
    Ok(u64::try_from(Timestamp::now().as_millisecond())?)
}

/// The newest TXID in a folder of LTX files; 0 for none.
fn last_txid(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| Some(name.parse::<ltx::FileName>().ok()?.max.0)).max().unwrap_or(0)
}
