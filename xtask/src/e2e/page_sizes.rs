//! Real Litestream's replicas of every page size, restored by ours.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use litestream_fixtures::db::{build_database, content_sha256, random_transactions};
use rusqlite::Connection;

use super::Checked;
use super::encoder::{options, page_sizes};
use super::world::{Backend, World};
use crate::litestream::Target;

/// Every TXID of every page size, compared with litestream's restore, the last with the database.
pub(super) fn page_sizes_by_litestream(world: &mut World) -> Checked {
    let mut count = 0;
    for page_size in page_sizes() {
        count += one(world, page_size).with_context(|| format!("page size {page_size}"))?;
    }
    Ok(format!("8 page sizes, growth and VACUUM: ours restores {count} TXIDs to litestream's bytes"))
}

fn one(world: &mut World, page_size: u32) -> Result<usize> {
    let name = format!("page-size-{page_size}");
    let url = world.new_replica(Backend::File, &name);
    let database = world.folder(&name)?.join("db");
    let options = options(page_size);
    build_database(&database, &options)?;
    let mut connection = Connection::open(&database)?;
    for round in 0..4 {
        match round {
            0 => {}
            2 => connection.execute_batch("DELETE FROM t0 WHERE id % 4 <> 0; VACUUM")?,
            _ => random_transactions(&mut connection, round, 12, &options).map(drop)?,
        }
        world.replicate_once(&database, &url)?;
        let restored = world.restore_both(&url, &Target::Latest)?;
        ensure!(
            restored.database.content == content_sha256(&connection)?,
            "round {round}: not what the database holds"
        );
    }
    let txids = world.list(&url)?.iter().map(|file| file.end()).collect::<Result<BTreeSet<u64>>>()?;
    for &txid in &txids {
        world.restore_both(&url, &Target::Txid(txid))?;
    }
    Ok(txids.len())
}
