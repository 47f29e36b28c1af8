//! The block map of the fixtures under our client's transactions, judged by whom it imitates: JuiceFS opens what it wrote.

use anyhow::ensure;
use litestream_fixtures::blockmap::{BlockMapOptions, Client, Model, build_block_map, check_block_map};
use rusqlite::Connection;

use super::Checked;
use super::volume::juicefs_accepts;
use super::world::World;

/// Transactions of our client.
const TRANSACTIONS: u64 = 2_000;

/// A block map of 1 MB, two thousand transactions, then real JuiceFS.
pub(super) fn blockmap_juicefs(world: &mut World) -> Checked {
    let database = world.folder("blockmap-juicefs")?.join("meta.db");
    build_block_map(&database, &BlockMapOptions::default())?;
    let connection = Connection::open(&database)?;
    let client = Client::new(1);
    let mut model = Model::new(&connection, client)?;
    client.run_to(&connection, TRANSACTIONS)?;
    let number = client.settle(&connection)?;
    ensure!(model.judge(&connection, number)? == number, "there are other transactions than ours");
    check_block_map(&connection)?;
    drop(connection);
    let accepted = juicefs_accepts(world, &database)?;
    Ok(format!("{number} transactions of ours; {accepted}"))
}
