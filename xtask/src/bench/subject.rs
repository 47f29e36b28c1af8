//! What is measured: a database, the LTX files of its transactions, and the programs that restore it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use litestream_fixtures::db::{DbOptions, build_database, sha256_file};
use litestream_fixtures::recorder::Recorder;
use litestream_fixtures::s3::S3Server;
use litestream_storage::config::ReplicaConfig;
use litestream_storage::{Body, Level, Replica, RetryPolicy};
use ltx::Timestamp;
use rusqlite::{Connection, params};

/// When the first transaction happened; each later one a second after the one before.
const START: i64 = 1_767_225_600_000;
/// Where a replica lies on a server.
pub(crate) const BUCKET: &str = "bkt";
/// The database of the replica of 302 files, in bytes.
pub(crate) const SMALL_DATABASE: u64 = 15 << 20;
/// How many transactions come after its snapshot.
pub(crate) const SMALL_TRANSACTIONS: u32 = 301;

/// What transactions do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Up to so many rows each, half updated and half inserted, with an index that scatters them all over the file.
    Anywhere(u32),
    /// So many rows each, inserted at the end of a table without an index: hardly a page is written twice.
    AtEnd(u32),
}

/// A database that becomes a replica, transaction by transaction: the first is a snapshot, each later one a small file on level 0.
#[derive(Debug)]
pub(crate) struct Subject {
    path: PathBuf,
    connection: Connection,
    recorder: Recorder,
    random: fastrand::Rng,
    work: Work,
    rows: u32,
    time: i64,
}

impl Subject {
    /// Builds a database of about `bytes` at `path`: text that LZ4 halves, and a fifth of it random.
    pub(crate) fn new(path: &Path, bytes: u64, work: Work) -> Result<Subject> {
        let index = matches!(work, Work::Anywhere(_));
        let options = DbOptions { bytes, tables: 1, index, ..DbOptions::default() };
        build_database(path, &options).with_context(|| format!("cannot build {}", path.display()))?;
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "synchronous", "OFF")?;
        let rows = connection.query_row("SELECT max(id) FROM t0", [], |row| row.get(0))?;
        let random = fastrand::Rng::with_seed(options.seed);
        Ok(Subject { path: path.to_owned(), connection, recorder: Recorder::new(), random, work, rows, time: START })
    }

    /// Adds to the database what else is to be measured.
    pub(crate) fn execute(&mut self, sql: &str) -> Result<()> {
        self.connection.execute_batch(sql)?;
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// SHA-256 of the database, which is what a restore must give.
    pub(crate) fn sha256(&self) -> Result<String> {
        Ok(sha256_file(&self.path)?)
    }

    /// Puts a snapshot of the present state.
    pub(crate) async fn put_snapshot(&mut self, replica: &Replica) -> Result<()> {
        self.put(replica, Level::SNAPSHOT).await
    }

    /// Runs so many transactions and puts a file of each.
    pub(crate) async fn put_transactions(&mut self, replica: &Replica, count: u32) -> Result<()> {
        for _ in 0..count {
            self.transaction()?;
            self.put(replica, Level::ZERO).await?;
        }
        Ok(())
    }

    fn transaction(&mut self) -> Result<()> {
        let (rows, at_end) = match self.work {
            Work::Anywhere(most) => (self.random.u32(1..=most), false),
            Work::AtEnd(rows) => (rows, true),
        };
        let transaction = self.connection.transaction()?;
        for _ in 0..rows {
            let old = self.random.u32(1..=self.rows);
            if !at_end && self.random.bool() {
                let sql = "UPDATE t0 SET number = number + 1 WHERE id = ?1";
                transaction.prepare_cached(sql)?.execute([old])?;
            } else {
                let key = format!("{:012x}", self.random.u64(..1 << 48));
                let sql = "INSERT INTO t0(key, number, body) SELECT ?1, ?2, body FROM t0 WHERE id = ?3";
                transaction.prepare_cached(sql)?.execute(params![key, self.random.u32(..), old])?;
                self.rows += 1;
            }
        }
        transaction.commit()?;
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    async fn put(&mut self, replica: &Replica, level: Level) -> Result<()> {
        let file = self.recorder.record(&self.path, self.time)?;
        replica.put_file(level, file.name, Body::Bytes(file.bytes.into()), Timestamp(self.time)).await?;
        self.time += 1_000;
        Ok(())
    }
}

/// Makes a replica of 302 files: a snapshot of about 15 MB, and 301 transactions of a few pages each. The database is put at `source`.
pub(crate) async fn small_files(source: &Path, replica: &Replica) -> Result<Subject> {
    let mut subject = Subject::new(source, SMALL_DATABASE, Work::Anywhere(8))?;
    subject.put_snapshot(replica).await?;
    subject.put_transactions(replica, SMALL_TRANSACTIONS).await?;
    Ok(subject)
}

/// The replica in a folder.
pub(crate) async fn replica_in(folder: &Path) -> Result<Replica> {
    let config = ReplicaConfig::from_url(&crate::litestream::file_url(folder))?;
    Ok(litestream_storage::open(&config, RetryPolicy::default()).await?)
}

/// The replica on a server.
pub(crate) async fn replica_on(server: &S3Server) -> Result<Replica> {
    server.create_bucket(BUCKET);
    let mut config = ReplicaConfig::from_url(&s3_url(server))?;
    config.set("access-key-id", server.access_key())?;
    config.set("secret-access-key", server.secret_key())?;
    Ok(litestream_storage::open(&config, RetryPolicy::default()).await?)
}

/// The address of that replica, as both Litestreams take it.
pub(crate) fn s3_url(server: &S3Server) -> String {
    format!("s3://{BUCKET}/db?endpoint={}&forcePathStyle=true", server.endpoint())
}

/// Gives a command the server's keys.
pub(crate) fn authorize(command: &mut Command, server: &S3Server) {
    command.env("LITESTREAM_ACCESS_KEY_ID", server.access_key());
    command.env("LITESTREAM_SECRET_ACCESS_KEY", server.secret_key());
}

/// The workspace's `target` folder: a real disk, unlike perhaps `/tmp`.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in no workspace")?;
    Ok(env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder)))
}

/// An empty folder there, which goes when dropped.
pub(crate) fn scratch() -> Result<tempfile::TempDir> {
    let target = target_dir()?;
    std::fs::create_dir_all(&target)?;
    tempfile::Builder::new().prefix("xtask-").tempdir_in(target).context("cannot make a folder under target")
}

/// Builds our `litestream`, in the profile that this program was built in.
pub(crate) fn build_ours() -> Result<PathBuf> {
    let (profile, folder) = if cfg!(debug_assertions) { ("dev", "debug") } else { ("release", "release") };
    build(profile)?;
    Ok(target_dir()?.join(folder).join("litestream"))
}

/// Builds what we ship, all of it: built one by one, the same libraries would be built again for each.
pub(super) fn build(profile: &str) -> Result<()> {
    eprintln!("xtask: building litestream and its extension ({profile})");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    build.args(["build", "--quiet", "--package", "litestream", "--package", "litestream-vfs", "--profile", profile]);
    crate::process::run("cargo build", &mut build)?;
    Ok(())
}

/// `litestream restore`, ours, none of the caller's settings in its environment. `-o` and the URL are still to be given.
pub(crate) fn our_restore(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    for name in ["LITESTREAM_CONFIG", "LITESTREAM_ACCESS_KEY_ID", "LITESTREAM_SECRET_ACCESS_KEY", "LOG_LEVEL"] {
        command.env_remove(name);
    }
    command.arg("restore");
    command
}
