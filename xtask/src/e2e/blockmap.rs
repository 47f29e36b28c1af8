//! The block map of the fixtures under its workloads, our client's and that of a Go program with JuiceFS's SQLite, judged
//! by whom they imitate: JuiceFS opens what they wrote.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use litestream_fixtures::blockmap::{BlockMapOptions, Client, Model, build_block_map, check_block_map};
use rusqlite::Connection;

use super::hosts::{build_go_program, extension, root};
use super::volume::juicefs_accepts;
use super::world::World;
use super::{Checked, DEADLINE};
use crate::process::converse;

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

/// A block map in a plain file, written by Go's goroutines with and without a shared cache, then real JuiceFS.
pub(super) fn blockmap_go(world: &mut World) -> Checked {
    let database = world.folder("blockmap-go")?.join("meta.db");
    build_block_map(&database, &BlockMapOptions::default())?;
    let name = database.to_str().context("a path that is no UTF-8")?;
    let mut reports = Vec::new();
    for flags in [&["-cache", "shared"][..], &["-cache", "shared", "-serial"], &["-cache", "private"]] {
        let report = go_workload(world, name, None, flags)?;
        reports.push(report.split(',').next().unwrap_or_default().to_owned());
        check_block_map(&Connection::open(&database)?).with_context(|| format!("after {}", flags.join(" ")))?;
    }
    let accepted = juicefs_accepts(world, &database)?;
    Ok(format!("{}; {accepted}", reports.join("; ")))
}

/// Runs `fixtures/go-blockmap` on a database for as long as this run's scenarios read: on the file of that name, or, given
/// further URI parameters, on the database of that name that our VFS opens with them. The program itself compares what was
/// acknowledged with what is there. Returns its report.
pub(super) fn go_workload(world: &World, name: &str, parameters: Option<&str>, flags: &[&str]) -> Result<String> {
    let program = build_go_program(world, &root().join("fixtures").join("go-blockmap"), "go-blockmap")?;
    let mut command = Command::new(program);
    command.args(["-for", &format!("{}s", world.reading.as_secs())]).args(flags).current_dir(world.work());
    if let Some(parameters) = parameters {
        command.arg("-extension").arg(extension()?).args(["-parameters", parameters]);
    }
    world.authorize(&mut command);
    let said = converse("go-blockmap", command.arg(name), "", world.reading + DEADLINE)?;
    ensure!(said.status.success(), "go-blockmap {}: {}:\n{}", flags.join(" "), said.status, said.stderr);
    let report = said.stdout.trim().strip_prefix("blockmap ").context("go-blockmap reported nothing")?;
    Ok(report.to_owned())
}
