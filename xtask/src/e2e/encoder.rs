//! Replicas that our encoder wrote, and what our compaction makes of them, at every page size: real Litestream must
//! restore them to the byte.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use litestream_fixtures::db::{DbOptions, build_database, random_transactions, sha256_file};
use litestream_fixtures::golden::set_mtime_ms;
use litestream_fixtures::recorder::Recorder;
use rusqlite::Connection;

use super::world::World;
use super::{Checked, compact};
use crate::litestream::{Target, file_url};

/// Every page size that SQLite knows.
pub(super) fn page_sizes() -> impl Iterator<Item = u32> {
    (9..=16).map(|shift| 1 << shift)
}

/// Small, but always of enough pages to grow and to shrink.
pub(super) fn options(page_size: u32) -> DbOptions {
    let bytes = u64::from(page_size) * 16 + (100 << 10);
    DbOptions { page_size, bytes, incompressible: 0.5, ..DbOptions::default() }
}

/// One state of the source.
#[derive(Debug)]
struct Written {
    txid: u64,
    time_ms: u64,
    sha256: String,
}

/// Real Litestream restores every TXID, and every time, of a replica that it did not write.
pub(super) fn our_encoder(world: &mut World) -> Checked {
    let mut count = 0;
    for page_size in page_sizes() {
        let folder = world.folder(&format!("encoder-{page_size}"))?;
        let (replica, written) = write(&folder, page_size)?;
        let url = file_url(&replica);
        for state in &written {
            check(world, &url, &Target::Txid(state.txid), state).with_context(|| format!("page size {page_size}"))?;
        }
        // Strictly before the fourth is the third.
        if let [_, _, third, fourth, ..] = written.as_slice() {
            check(world, &url, &Target::Time(fourth.time_ms), third)
                .with_context(|| format!("page size {page_size}"))?;
        }
        count += written.len() + 1;
    }
    Ok(format!("8 page sizes, growth and shrinking: litestream restores {count} states to the byte"))
}

fn check(world: &World, url: &str, target: &Target, state: &Written) -> Result<()> {
    let restored = world.restore_both(url, target)?;
    ensure!(restored.database.bytes == state.sha256, "{target:?} restores to other bytes than the source had");
    Ok(())
}

/// Our compaction of what our encoder wrote.
pub(super) fn our_compaction(world: &mut World) -> Checked {
    let mut count = 0;
    for page_size in page_sizes() {
        let what = || format!("page size {page_size}");
        let folder = world.folder(&format!("compaction-{page_size}"))?;
        let (replica, written) = write(&folder, page_size)?;
        let before = folder.join("before");
        compact::copy_files(&replica, &before, &world.list(&file_url(&replica))?)?;
        let done = compact::compact_and_restore(world, &file_url(&replica)).with_context(what)?;
        compact::each_alone(world, &before, &replica, &done).with_context(what)?;
        let restored = world.restore_both(&file_url(&replica), &Target::Latest).with_context(what)?;
        let last = written.last().context("nothing was written")?;
        ensure!(restored.database.bytes == last.sha256, "page size {page_size}: not the bytes of the source");
        count += done.made.len();
    }
    Ok(format!("8 page sizes: litestream restores {count} compacted files, each alone too, to the byte"))
}

/// Changes a database and writes each state as LTX files into `folder/replica`.
fn write(folder: &Path, page_size: u32) -> Result<(PathBuf, Vec<Written>)> {
    let (database, replica) = (folder.join("db"), folder.join("replica"));
    let options = options(page_size);
    build_database(&database, &options)?;
    let mut connection = Connection::open(&database)?;
    let mut recorder = Recorder::new();
    let mut written = Vec::new();
    // In the past, or restoring to these times would be refused.
    let start = Timestamp::now().as_millisecond() - 60_000;
    for step in 0..6 {
        match step {
            0 => {}
            1 | 5 => random_transactions(&mut connection, step, 12, &options).map(drop)?,
            2 => connection.execute_batch("UPDATE t0 SET number = number + 1 WHERE id = 1")?,
            3 => {
                connection
                    .execute_batch("DELETE FROM t0 WHERE id % 4 <> 0; DELETE FROM t1 WHERE id % 3 = 0; VACUUM")?;
            }
            // Larger than ever, with the new pages behind where the old end was.
            _ => connection
                .execute_batch("INSERT INTO t0(key, number, body) SELECT key, number, randomblob(5000) FROM t1")?,
        }
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        let time = start + i64::try_from(step)? * 1000;
        let file = recorder.record(&database, time)?;
        let time_ms = u64::try_from(time)?;
        let levels: &[u8] = if step == 0 { &[0, 9] } else { &[0] };
        for level in levels {
            let path = replica.join("ltx").join(level.to_string()).join(file.name.to_string());
            fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
            fs::write(&path, &file.bytes)?;
            set_mtime_ms(&path, time_ms)?;
        }
        written.push(Written { txid: file.name.max.0, time_ms, sha256: sha256_file(&database)? });
    }
    Ok((replica, written))
}
