//! `cargo xtask demo`: the main job in a few seconds. A database, a replica of it on an S3 server inside this process, and the database again, twice.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use litestream_fixtures::recorder::{Recorded, Recorder};
use litestream_fixtures::s3::{S3Options, S3Server};
use litestream_hydrate::{RestoreOptions, restore};
use litestream_pageindex::Target;
use litestream_storage::config::ReplicaConfig;
use litestream_storage::{Body, Level, Replica, RetryPolicy};
use ltx::{Timestamp, Txid};
use rusqlite::Connection;

/// When the demo's first transaction happened; each later one a minute after the one before.
const START: i64 = 1_767_225_600_000;
const MINUTE: i64 = 60_000;

pub(crate) fn run() -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(demo())
}

async fn demo() -> Result<()> {
    let server = S3Server::start(S3Options::default()).context("cannot start the embedded S3 server")?;
    server.create_bucket("demo");
    println!("1. an S3 server in this process: {}", server.endpoint());
    let url = format!("s3://demo/sandwiches?endpoint={}", server.endpoint());
    let mut config = ReplicaConfig::from_url(&url)?;
    config.set("access-key-id", server.access_key())?;
    config.set("secret-access-key", server.secret_key())?;
    let replica = litestream_storage::open(&config, RetryPolicy::default()).await?;

    let folder = tempfile::tempdir()?;
    let path = folder.path().join("sandwiches.db");
    let transactions = fill(&path, &replica).await?;
    println!("2. a database, and its replica: {transactions} transactions at {}", replica.url());

    let latest = folder.path().join("latest.db");
    let restored = restore(&replica, &latest, &RestoreOptions::default()).await?;
    println!(
        "3. restored to {} (TXID {}): {}",
        litestream_storage::format_time(restored.time),
        restored.txid,
        ratings(&latest)?
    );
    ensure!(std::fs::read(&path)? == std::fs::read(&latest)?, "the restored database differs from the original");
    println!("   byte for byte the original");

    let earlier = folder.path().join("earlier.db");
    let moment = Timestamp(START + 2 * MINUTE + 1);
    let options = RestoreOptions { target: Target::Before(moment), ..RestoreOptions::default() };
    let restored = restore(&replica, &earlier, &options).await?;
    let asked = litestream_storage::format_time(moment);
    println!("4. restored as it was before {asked} (TXID {}): {}", restored.txid, ratings(&earlier)?);
    ensure!(restored.txid == Txid(3), "the moment belongs to another transaction");
    let stats = server.stats();
    println!("   the server answered {} requests in all, {} bytes", stats.total, stats.bytes_out);
    Ok(())
}

/// Writes some transactions, each of which goes into the replica as the sync that `litestream replicate` would make of it.
async fn fill(path: &Path, replica: &Replica) -> Result<u64> {
    let database = Connection::open(path)?;
    let mut recorder = Recorder::new();
    database.execute_batch("CREATE TABLE sandwich_ratings (sandwich TEXT, stars INTEGER)")?;
    put(replica, recorder.record(path, START)?, START).await?;
    for (minute, sandwich) in (1..).zip(["reuben", "banh mi", "croque monsieur", "falafel", "club"]) {
        for stars in 1..=20 {
            database.execute("INSERT INTO sandwich_ratings VALUES (?1, ?2)", (sandwich, stars % 5 + 1))?;
        }
        let time = START + minute * MINUTE;
        put(replica, recorder.record(path, time)?, time).await?;
    }
    Ok(6)
}

async fn put(replica: &Replica, file: Recorded, time: i64) -> Result<()> {
    replica.put_file(Level::ZERO, file.name, Body::Bytes(file.bytes.into()), Timestamp(time)).await?;
    Ok(())
}

fn ratings(path: &Path) -> Result<String> {
    let sql = "SELECT count(*), count(DISTINCT sandwich) FROM sandwich_ratings";
    let (ratings, kinds): (i64, i64) =
        Connection::open(path)?.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(format!("{ratings} ratings of {kinds} sandwiches"))
}
