//! A kitchen: a database of sandwich ratings that is written all the time while real Litestream replicates it, and the
//! truth about it, transaction by transaction.
//!
//! Every transaction moves one point from one sandwich to another, so the sum stays; notes its number on both; and keeps
//! the notes of the last tastings, so that pages are freed and used again.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use jiff::Timestamp;
use rusqlite::{Connection, params};

use super::DEADLINE;
use super::world::{Backend, World};
use crate::litestream::Target;
use crate::process::{Process, wait_until};

const SANDWICHES: [&str; 8] =
    ["BLT", "club", "Cubano", "falafel", "grilled cheese", "muffuletta", "Reuben", "tuna melt"];
/// What each has at first.
const RATING: i64 = 50;
/// How many tastings keep their notes. The Go example counts on it.
const KEPT: i64 = 200;
/// How long each takes.
const PACE: Duration = Duration::from_millis(100);
/// How much older Litestream's stamp may be than what the file holds.
const STAMP_SLACK_MS: u64 = 1000;

/// Everything that was ever written can be restored for ever, while levels come up.
pub(super) const KEEPS_ALL: &str = "
levels:
  - interval: 1s
  - interval: 2s
  - interval: 4s
snapshot:
  interval: 5s
  retention: 24h
l0-retention: 24h";

/// What was compacted goes at once: readers lose files all the time.
pub(super) const DELETES: &str = "
levels:
  - interval: 1s
  - interval: 2s
  - interval: 4s
snapshot:
  interval: 5s
  retention: 10s
l0-retention: 2s
l0-retention-check-interval: 1s";

/// What an example prints: the TXID of a view, when it is from (where the view has travelled), and the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) moment: Option<Timestamp>,
    pub(super) txid: u64,
    pub(super) rows: Vec<String>,
}

/// The table after a transaction.
#[derive(Debug)]
struct State {
    /// Milliseconds since the epoch, before the transaction began.
    began_ms: u64,
    rows: Vec<String>,
}

/// See the module. Dropping it stops everything.
#[derive(Debug)]
pub(super) struct Kitchen {
    pub(super) url: String,
    states: Arc<Mutex<Vec<State>>>,
    stop: Option<Sender<()>>,
    cook: Option<JoinHandle<Result<()>>>,
    daemon: Process,
}

impl Kitchen {
    /// Opens one, with the intervals of `global`, and waits until the replica is so old that one can look back in it.
    pub(super) fn open(world: &mut World, name: &str, global: &str, age: Duration) -> Result<Kitchen> {
        let url = world.new_replica(Backend::S3, name);
        let database = world.folder(name)?.join("sandwiches.db");
        let mut connection = Connection::open(&database)?;
        // Litestream takes locks for moments; so may we wait for moments.
        connection.busy_timeout(DEADLINE)?;
        let states: Arc<Mutex<Vec<State>>> = Arc::default();
        lock(&states).push(prepare(&mut connection)?);
        let daemon = world.replicate(&database, &url, global)?;
        let (stop, stopped) = mpsc::channel::<()>();
        let written = states.clone();
        let cook = std::thread::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(PACE) {
                let number = i64::try_from(lock(&written).len())?;
                let state = taste(&mut connection, number)?;
                lock(&written).push(state);
            }
            Ok(())
        });
        let mut kitchen = Kitchen { url, states, stop: Some(stop), cook: Some(cook), daemon };
        let url = &kitchen.url;
        kitchen.daemon.wait_until("the first TXID", DEADLINE, || {
            Ok(world.list(url).ok().and_then(|files| (!files.is_empty()).then_some(())))
        })?;
        let until = Timestamp::now().checked_add(age)?;
        wait_until("the replica to be old enough", DEADLINE, || Ok((Timestamp::now() > until).then_some(())))?;
        Ok(kitchen)
    }

    /// The number of the transaction that real Litestream can restore by now.
    pub(super) fn durable(&self, world: &World) -> Result<usize> {
        wait_until("litestream to restore the latest state", DEADLINE, || {
            // A refusal may be a compaction's doing; the next try will do.
            Ok(restored(world, &self.url, &Target::Latest).ok())
        })
        .and_then(|rows| self.number(&rows))
    }

    /// Compares an answer with what the database held after some transaction and, where real Litestream can still restore
    /// that TXID, with that. Returns the number of the transaction.
    pub(super) fn judge(&self, world: &World, answer: &Answer) -> Result<usize> {
        let number = self.number(&answer.rows)?;
        let real = restored(world, &self.url, &Target::Txid(answer.txid))
            .with_context(|| format!("litestream's own restore of TXID {:x}", answer.txid))?;
        ensure!(answer.rows == real, "at TXID {:x} litestream restored {real:?}, not {:?}", answer.txid, answer.rows);
        if let Some(moment) = answer.moment {
            self.judge_moment(number, moment)?;
        }
        Ok(number)
    }

    /// A view of a moment must not show what was written later.
    pub(super) fn judge_moment(&self, number: usize, moment: Timestamp) -> Result<()> {
        let began = lock(&self.states)[number].began_ms;
        let moment_ms = u64::try_from(moment.as_millisecond())?;
        ensure!(began <= moment_ms + STAMP_SLACK_MS, "transaction {number} began at {began}, after {moment_ms}");
        Ok(())
    }

    /// The rows that real Litestream restores for exactly the file of that moment.
    pub(super) fn restored_at(&self, world: &World, moment: Timestamp) -> Result<Vec<String>> {
        // Both take the newest state strictly before a time.
        restored(world, &self.url, &Target::Time(u64::try_from(moment.as_millisecond())? + 1))
    }

    /// Which transaction these rows are from.
    fn number(&self, rows: &[String]) -> Result<usize> {
        let states = lock(&self.states);
        // Each note of a transaction's number is in the table until two others overwrite it: the newest tells.
        let newest = rows.iter().filter_map(|row| row.rsplit('|').next()?.parse().ok()).max();
        let number: usize = newest.with_context(|| format!("no rows of the table: {rows:?}"))?;
        let state = states.get(number).with_context(|| format!("transaction {number} has not been written yet"))?;
        ensure!(state.rows == rows, "after transaction {number} the table was {:?}, not {rows:?}", state.rows);
        Ok(number)
    }

    /// Stops the writer and Litestream, and says how many transactions there were.
    pub(super) fn close(mut self) -> Result<usize> {
        self.stop_cooking()?;
        let written = lock(&self.states).len();
        Ok(written)
    }

    fn stop_cooking(&mut self) -> Result<()> {
        drop(self.stop.take());
        match self.cook.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(result) => result.map_err(|_| anyhow!("the writer panicked"))?,
        }
    }
}

impl Drop for Kitchen {
    fn drop(&mut self) {
        // Whoever wants to know calls `close`.
        let _ = self.stop_cooking();
    }
}

impl Answer {
    /// Reads what an example prints: `latest TXID` or `at TIME TXID`, each with the rows below it.
    ///
    /// # Errors
    /// Anything else was printed.
    pub(super) fn parse_all(printed: &str) -> Result<Vec<Answer>> {
        let mut answers: Vec<Answer> = Vec::new();
        for line in printed.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let txid = |text: &str| text.parse::<ltx::Txid>().map(|txid| txid.0).context("no TXID");
            match words.as_slice() {
                ["latest", last] => answers.push(Answer { moment: None, txid: txid(last)?, rows: Vec::new() }),
                ["at", moment, last] => {
                    let moment = Some(moment.parse().with_context(|| format!("{moment} is no time"))?);
                    answers.push(Answer { moment, txid: txid(last)?, rows: Vec::new() });
                }
                _ if line.contains('|') => {
                    let answer = answers.last_mut().with_context(|| format!("a row without a title: {line}"))?;
                    answer.rows.push(line.to_owned());
                }
                _ => bail!("this is neither a title nor a row: {line}"),
            }
        }
        Ok(answers)
    }
}

/// The command with which anything is started that reads the kitchen's replica.
pub(super) fn client(world: &World, program: &Path) -> Command {
    let mut command = Command::new(program);
    world.authorize(&mut command);
    for name in ["LITESTREAM_REPLICA_URL", "LITESTREAM_LOG_LEVEL", "LITESTREAM_LOG_FILE", "LITESTREAM_POLL_INTERVAL"] {
        command.env_remove(name);
    }
    command
}

fn lock(states: &Mutex<Vec<State>>) -> MutexGuard<'_, Vec<State>> {
    states.lock().unwrap_or_else(PoisonError::into_inner)
}

fn prepare(connection: &mut Connection) -> Result<State> {
    let began_ms = now_ms()?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE sandwich_ratings (
             id INTEGER PRIMARY KEY, sandwich TEXT NOT NULL, rating INTEGER NOT NULL, tasted INTEGER NOT NULL);
         CREATE TABLE tastings (n INTEGER PRIMARY KEY, notes BLOB NOT NULL);",
    )?;
    let transaction = connection.transaction()?;
    for sandwich in SANDWICHES {
        transaction.execute(
            "INSERT INTO sandwich_ratings (sandwich, rating, tasted) VALUES (?, ?, 0)",
            params![sandwich, RATING],
        )?;
    }
    let rows = table(&transaction)?;
    transaction.commit()?;
    Ok(State { began_ms, rows })
}

/// One transaction.
fn taste(connection: &mut Connection, number: i64) -> Result<State> {
    let began_ms = now_ms()?;
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let count = i64::try_from(SANDWICHES.len())?;
    let better = number % count;
    let worse = (better + 1 + number / count % (count - 1)) % count;
    for (change, sandwich) in [(1, better), (-1, worse)] {
        transaction.execute(
            "UPDATE sandwich_ratings SET rating = rating + ?, tasted = ? WHERE id = ?",
            params![change, number, sandwich + 1],
        )?;
    }
    // Some notes are longer than a page.
    let len = if number % 7 == 0 { 9_000 } else { 700 };
    transaction.execute("INSERT INTO tastings VALUES (?, randomblob(?))", params![number, len])?;
    transaction.execute("DELETE FROM tastings WHERE n <= ?", [number - KEPT])?;
    let rows = table(&transaction)?;
    transaction.commit()?;
    Ok(State { began_ms, rows })
}

/// The table, as the examples print it.
fn table(connection: &Connection) -> Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT id, sandwich, rating, tasted FROM sandwich_ratings ORDER BY id")?;
    let rows = statement.query_map([], |row| {
        let (id, sandwich, rating, tasted): (i64, String, i64, i64) = row.try_into()?;
        Ok(format!("{id}|{sandwich}|{rating}|{tasted}"))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The table as real Litestream restores it.
fn restored(world: &World, url: &str, target: &Target) -> Result<Vec<String>> {
    let output = world.output();
    world.restore_real_to(url, target, &output)?;
    let rows = table(&Connection::open(&output)?)?;
    std::fs::remove_file(&output)?;
    Ok(rows)
}

fn now_ms() -> Result<u64> {
    Ok(u64::try_from(Timestamp::now().as_millisecond())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_titles_with_rows_and_nothing_else() {
        let printed = "latest 000000000000002a\n1|BLT|50|3\nat 2026-01-01T00:00:00.000Z 0000000000000001\n1|BLT|49|1\n";
        let answers = Answer::parse_all(printed).unwrap();
        assert_eq!((answers[0].txid, answers[1].txid), (0x2a, 1));
        assert_eq!(answers[1].moment.unwrap().as_second(), 1_767_225_600);
        assert_eq!(answers[1].rows, ["1|BLT|49|1"]);
        assert!(Answer::parse_all("hello\n").is_err());
        assert!(Answer::parse_all("1|BLT|50|3\n").is_err());
    }

    #[test]
    fn tasting_keeps_the_sum_and_notes_itself_on_two_sandwiches() {
        let mut connection = Connection::open_in_memory().unwrap();
        prepare(&mut connection).unwrap();
        for number in 1..=300 {
            let state = taste(&mut connection, number).unwrap();
            let noted = state.rows.iter().filter(|row| row.ends_with(&format!("|{number}"))).count();
            assert_eq!(noted, 2, "transaction {number}: {:?}", state.rows);
        }
        let sum: i64 = connection.query_row("SELECT sum(rating) FROM sandwich_ratings", [], |row| row.get(0)).unwrap();
        assert_eq!(sum, RATING * 8);
    }
}
