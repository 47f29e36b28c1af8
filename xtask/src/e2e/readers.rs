//! Six readers of a replica that moves under them: real Litestream writes it, compacts every second and deletes what it has compacted.
//!
//! In every transaction the sum of all ratings must be what it always is, `integrity_check` must be content, two looks must see the same, and
//! nothing may be older than what the reader has seen before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rusqlite::{Connection, OpenFlags};

use super::Checked;
use super::sandwiches::{DELETES, Kitchen};
use super::world::World;
use crate::process::wait_until;

const READERS: usize = 6;
/// The sum of all ratings.
const SUM: i64 = 400;

/// See the module.
pub(super) fn vfs_readers(world: &mut World) -> Checked {
    register()?;
    let kitchen = Kitchen::open(world, "vfs-readers", DELETES, Duration::from_secs(3))?;
    let uri = world.vfs_uri(&kitchen.url);
    let (reading, done) = (world.reading, AtomicBool::new(false));
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(|| read(&uri, &done))).collect();
        // A reader that fails ends all.
        let ended = wait_until("the time to be over", reading + Duration::from_secs(1), || {
            Ok(readers.iter().any(std::thread::ScopedJoinHandle::is_finished).then_some(()))
        });
        done.store(true, Ordering::SeqCst);
        let joined = readers.into_iter().map(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?);
        let seen = joined.collect::<Result<Vec<_>>>()?;
        ensure!(ended.is_err(), "a reader ended early");
        Ok(seen)
    })?;
    let written = kitchen.close()?;
    let transactions: u64 = seen.iter().map(|seen| seen.transactions).sum();
    let moves = seen.iter().map(|seen| seen.moves).min().unwrap_or(0);
    ensure!(moves >= reading.as_secs() / 2, "a reader saw only {moves} states in {} s", reading.as_secs());
    Ok(format!(
        "{READERS} readers, {transactions} transactions in {} s, each sound and none older than the one before; at least {moves} states each, of {written} written",
        reading.as_secs()
    ))
}

/// Puts our VFS into this process, once.
pub(super) fn register() -> Result<()> {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.swap(true, Ordering::SeqCst) {
        ensure!(litestream_vfs::register(rusqlite::ffi::sqlite3_auto_extension), "cannot register the VFS");
        drop(Connection::open_in_memory()?);
    }
    Ok(())
}

struct Seen {
    transactions: u64,
    moves: u64,
}

fn read(uri: &str, done: &AtomicBool) -> Result<Seen> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    let (mut seen, mut last) = (Seen { transactions: 0, moves: 0 }, -1);
    while !done.load(Ordering::SeqCst) {
        let now = transaction(&connection).or_else(|error| {
            let why: String = connection.query_row("SELECT litestream_error()", [], |row| row.get(0))?;
            Err(error).context(why)
        })?;
        ensure!(now >= last, "from transaction {last} back to {now}");
        seen.moves += u64::from(now > last);
        seen.transactions += 1;
        last = now;
    }
    Ok(seen)
}

/// The number of the newest transaction that is to be seen.
fn transaction(connection: &Connection) -> Result<i64> {
    let transaction = connection.unchecked_transaction()?;
    let look = || {
        let sql = "SELECT sum(rating), max(tasted) FROM sandwich_ratings";
        connection.query_row(sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
    };
    let (sum, number) = look()?;
    ensure!(sum == SUM, "at {number} the sum is {sum}");
    let integrity: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(integrity == "ok", "at {number}: {integrity}");
    ensure!(look()? == (sum, number), "two looks in one transaction saw different things");
    transaction.finish()?;
    Ok(number)
}
