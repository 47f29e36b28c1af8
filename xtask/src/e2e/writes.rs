//! Databases written through the VFS: what we and real Litestream restore of them, and a machine that dies and boots again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use litestream_fixtures::db::{DbOptions, build_database, content_sha256};
use ltx::Txid;
use rusqlite::{Connection, OpenFlags};

use super::world::{Backend, World};
use super::{Checked, DEADLINE, encoder, hosts, sandwiches};
use crate::litestream::Target;
use crate::process::{Said, converse};

/// How many transactions the random client makes, and after how many it syncs.
const RANDOM: u32 = 10_000;
const SYNC_EVERY: u32 = 500;

/// A database on the VFS and, beside it, the same on an ordinary file: what is done is done to both.
struct Twins {
    written: Connection,
    plain: Connection,
    /// What each transaction of the replica holds.
    states: BTreeMap<u64, String>,
}

impl Twins {
    fn open(world: &World, url: &str, folder: &Path, begin: &str) -> Result<Self> {
        let uri = format!(
            "{}&write_enabled=true&sync_interval=1h&buffer_path={}",
            world.vfs_uri(url),
            folder.join("buffer").display()
        );
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let written = Connection::open_with_flags(uri, flags).context("opening the replica for writing")?;
        let plain = Connection::open(folder.join("plain.db"))?;
        plain.execute_batch("PRAGMA synchronous = OFF")?;
        let twins = Self { written, plain, states: BTreeMap::new() };
        twins.run(begin)?;
        Ok(twins)
    }

    fn run(&self, sql: &str) -> Result<()> {
        for connection in [&self.written, &self.plain] {
            let done = connection.execute_batch(sql);
            if let Err(error) = done {
                let why: String = connection.query_row("SELECT litestream_error()", [], |row| row.get(0))?;
                return Err(error).with_context(|| format!("{sql}: {why}"));
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<u64> {
        let txid: String = self.written.query_row("PRAGMA litestream_sync", [], |row| row.get(0))?;
        let txid = txid.parse::<Txid>().ok().with_context(|| format!("{txid} is no TXID"))?.0;
        let (here, there) = (content_sha256(&self.written)?, content_sha256(&self.plain)?);
        ensure!(here == there, "at TXID {txid:x} the VFS holds something else than an ordinary file");
        self.states.insert(txid, there);
        Ok(txid)
    }

    /// Closes, and has both programs restore every transaction.
    fn judge(self, world: &World, url: &str) -> Result<usize> {
        let Self { written, states, .. } = self;
        let checked: String = written.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        ensure!(checked == "ok", "integrity_check: {checked}");
        written.close().map_err(|(_, error)| error)?;
        for (txid, content) in &states {
            let restored = world.restore_both(url, &Target::Txid(*txid))?;
            ensure!(restored.database.content == *content, "TXID {txid:x} restores to something else");
        }
        Ok(states.len())
    }
}

/// Everything that SQLite does to a file, at every page size and in every vacuum mode, and a long random history.
pub(super) fn vfs_writes(world: &mut World) -> Checked {
    ensure!(litestream_vfs::register(rusqlite::ffi::sqlite3_auto_extension), "cannot register the VFS");
    drop(Connection::open_in_memory()?);
    let mut restored = 0;
    for (number, page_size) in encoder::page_sizes().enumerate() {
        let name = format!("written-{page_size}");
        let (folder, url) = (world.folder(&name)?, world.new_replica(Backend::S3, &name));
        let mut twins = everything(world, &url, &folder, page_size, number % 3)
            .with_context(|| format!("page size {page_size}"))?;
        twins.sync()?;
        restored += twins.judge(world, &url).with_context(|| format!("page size {page_size}"))?;
    }
    let (folder, url) = (world.folder("written-random")?, world.new_replica(Backend::S3, "written-random"));
    let twins = random(world, &url, &folder)?;
    restored += twins.judge(world, &url)?;
    Ok(format!("8 page sizes and {RANDOM} random transactions: both restore {restored} TXIDs to the byte"))
}

fn everything(world: &World, url: &str, folder: &Path, page_size: u32, vacuum: usize) -> Result<Twins> {
    let begin = format!(
        "PRAGMA page_size = {page_size}; PRAGMA auto_vacuum = {vacuum}; PRAGMA secure_delete = 0;
         CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, body BLOB); CREATE INDEX by_n ON t (n)"
    );
    let mut twins = Twins::open(world, url, folder, &begin)?;
    let rows = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 300)";
    let steps = [
        // Growth, incompressible and sparse: pages that are freed in the transaction that made them are never written.
        format!("{rows} INSERT INTO t SELECT i, i % 7, zeroblob(i * 11) FROM s"),
        "BEGIN; CREATE TABLE big (body); INSERT INTO big VALUES (zeroblob(3000000)); DROP TABLE big; COMMIT".to_owned(),
        "INSERT INTO t VALUES (1000, 1, zeroblob(2500000)); UPDATE t SET n = n + 1 WHERE id % 3 = 0".to_owned(),
        "DELETE FROM t WHERE id BETWEEN 100 AND 200".to_owned(),
        "PRAGMA incremental_vacuum(9)".to_owned(),
        "BEGIN; DELETE FROM t; SAVEPOINT a; UPDATE t SET n = 0; ROLLBACK TO a; ROLLBACK".to_owned(),
        "DELETE FROM t WHERE id = 1000".to_owned(),
        "VACUUM".to_owned(),
        format!("{rows} INSERT INTO t SELECT i + 2000, i, zeroblob(900) FROM s"),
        "BEGIN; SAVEPOINT a; DELETE FROM t WHERE n = 2; RELEASE a; INSERT INTO t (n, body) VALUES (5, 'end'); COMMIT"
            .to_owned(),
    ];
    for step in steps {
        twins.run(&step)?;
        twins.sync()?;
    }
    Ok(twins)
}

fn random(world: &World, url: &str, folder: &Path) -> Result<Twins> {
    let begin = "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, body BLOB); CREATE INDEX by_n ON t (n)";
    let mut twins = Twins::open(world, url, folder, begin)?;
    twins.written.execute_batch("PRAGMA synchronous = OFF")?;
    let mut random = fastrand::Rng::with_seed(7);
    for number in 1..=RANDOM {
        let (id, n, len) = (random.u32(..2_000), random.u32(..100), random.u32(..3_000));
        let sql = match random.u32(..10) {
            0..5 => format!("INSERT OR REPLACE INTO t VALUES ({id}, {n}, substr(hex(zeroblob({len})) || {n}, -{len}))"),
            5..7 => format!("UPDATE t SET n = n + {n} WHERE id BETWEEN {id} AND {id} + 5"),
            7 => format!("DELETE FROM t WHERE id BETWEEN {id} AND {id} + {}", n / 4),
            8 => format!("BEGIN; UPDATE t SET body = 'x' WHERE n = {n}; ROLLBACK"),
            _ => format!("BEGIN; DELETE FROM t WHERE id = {id}; INSERT INTO t VALUES ({id}, {n}, 'new'); COMMIT"),
        };
        twins.run(&sql)?;
        if number % 3_000 == 0 {
            twins.run("VACUUM")?;
        }
        if number % SYNC_EVERY == 0 {
            twins.sync()?;
        }
    }
    Ok(twins)
}

/// A machine boots without its database, writes at once, dies, and boots again: here, and elsewhere.
pub(super) fn vfs_story(world: &mut World) -> Checked {
    let url = world.new_replica(Backend::S3, "story");
    let folder = world.folder("story")?;
    let source = folder.join("source.db");
    build_database(&source, &DbOptions { bytes: 20 << 20, ..DbOptions::default() })?;
    world.replicate_once(&source, &url)?;
    let size = fs::metadata(&source)?.len();

    let story = Story { world, url: &url, folder: &folder };
    // The first boot: a row is read and one written before the database is here; then the power goes.
    let first = story.boot(
        "here",
        "SELECT 'first row', count(*) FROM (SELECT * FROM t0 LIMIT 1);
         CREATE TABLE story (n INTEGER PRIMARY KEY, what);
         INSERT INTO story VALUES (1, 'synced');
         PRAGMA litestream_stats;
         PRAGMA litestream_sync;
         INSERT INTO story VALUES (2, 'committed');
         SELECT 'committed', count(*) FROM story;
         .shell kill -9 $PPID",
    )?;
    ensure!(first.stdout.contains("first row|1"), "no first row: {}\n{}", first.stdout, first.stderr);
    ensure!(!first.status.success(), "the machine did not die");
    ensure!(first.stdout.contains("committed|2"), "no commit: {}\n{}", first.stdout, first.stderr);
    let read: u64 = after(&first.stdout, "bytes_read ")?.parse()?;
    ensure!(read < size / 4, "{read} bytes of {size} were read before the first commit");

    // Elsewhere: what was durable is there, and no more; by name of its TXID, too.
    let durable = first.stdout.lines().find(|line| line.parse::<Txid>().is_ok()).context("no durable TXID")?;
    let look = "SELECT group_concat(what) FROM story; PRAGMA integrity_check; PRAGMA litestream_txid;";
    let elsewhere = story.look("elsewhere", look)?;
    ensure!(
        elsewhere.stdout == format!("synced\nok\n{durable}\n"),
        "elsewhere: {}\n{}",
        elsewhere.stdout,
        elsewhere.stderr
    );

    // Here: everything that was committed, and it goes up.
    let again = story.boot(
        "here",
        "SELECT group_concat(what) FROM story;
         INSERT INTO story VALUES (3, 'again');
         PRAGMA integrity_check;",
    )?;
    ensure!(again.stdout == "synced,committed\nok\n", "here again: {}\n{}", again.stdout, again.stderr);
    let restored = world.restore_both(&url, &Target::Latest)?;
    let elsewhere = story.look("elsewhere-again", look)?;
    ensure!(elsewhere.stdout.starts_with("synced,committed,again\nok\n"), "at last: {}", elsewhere.stdout);
    Ok(format!(
        "a row and a commit after {} KB of {} MB; kill -9; elsewhere the durable, here all; restored as TXID {:x} by both",
        read >> 10,
        size >> 20,
        restored.txid
    ))
}

fn after<'a>(text: &'a str, what: &str) -> Result<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(what)).with_context(|| format!("no `{what}` in {text}"))
}

struct Story<'a> {
    world: &'a World,
    url: &'a str,
    folder: &'a Path,
}

impl Story<'_> {
    /// The system's sqlite3, writing, with its buffer in a folder of this machine.
    fn boot(&self, machine: &str, sql: &str) -> Result<Said> {
        self.sqlite3(machine, sql, true)
    }

    fn look(&self, machine: &str, sql: &str) -> Result<Said> {
        self.sqlite3(machine, sql, false)
    }

    fn sqlite3(&self, machine: &str, sql: &str, writes: bool) -> Result<Said> {
        let folder = self.folder.join(machine);
        fs::create_dir_all(&folder)?;
        let mut command: Command = sandwiches::client(self.world, &self.world.tools.sqlite3()?);
        command.env("LITESTREAM_REPLICA_URL", self.url).current_dir(&folder);
        if writes {
            command.env("LITESTREAM_WRITE_ENABLED", "true").env("LITESTREAM_SYNC_INTERVAL", "1h");
        }
        let extension = hosts::extension()?;
        // Dot commands begin their line.
        let sql: Vec<&str> = sql.lines().map(str::trim).collect();
        let input = format!(".load {}\n.open 'file:my.db?vfs=litestream'\n{}\n", extension.display(), sql.join("\n"));
        converse("sqlite3", &mut command, &input, DEADLINE)
    }
}
