//! Real JuiceFS on a block map: how its commands are called, and whether it takes a database for its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use litestream_fixtures::blockmap::check_block_map;
use rusqlite::Connection;
use serde_json::Value;

use super::DEADLINE;
use super::world::World;
use crate::process::{converse, run};

/// Files of one [`Volume::mdtest`]: 20 in each of 13 directories.
const MDTEST_FILES: usize = 260;

/// A file system whose block map is a database.
#[derive(Debug)]
pub(super) struct Volume {
    program: PathBuf,
    pub(super) database: PathBuf,
}

impl Volume {
    /// The one that `database` is, or will be.
    pub(super) fn of(world: &World, database: &Path) -> Result<Volume> {
        Ok(Volume { program: world.tools.juicefs()?, database: database.to_owned() })
    }

    pub(super) fn url(&self) -> String {
        format!("sqlite3://{}", self.database.display())
    }

    pub(super) fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(name);
        command
    }

    /// Makes it anew, with its data in `bucket`.
    pub(super) fn format(&self, bucket: &Path) -> Result<()> {
        let mut format = self.command("format");
        format.args(["--storage", "file", "--bucket"]).arg(bucket).args([&self.url(), "e2e"]);
        run("juicefs format", &mut format).map(drop)
    }

    /// Writes a few hundred files below `directory`, which must not be there.
    pub(super) fn mdtest(&self, directory: &str) -> Command {
        let mut mdtest = self.command("mdtest");
        mdtest.args(["--no-usage-report", &self.url(), directory]);
        mdtest.args(["--dirs", "3", "--depth", "2", "--files", "20", "--write", "4096"]);
        // Its default lies outside our folder.
        mdtest.arg("--cache-dir").arg(self.database.with_file_name("cache"));
        mdtest
    }

    /// All of it as JSON.
    pub(super) fn dump(&self, path: &Path) -> Result<Value> {
        run("juicefs dump", self.command("dump").arg(self.url()).arg(path))?;
        serde_json::from_slice(&std::fs::read(path)?).context("juicefs dump wrote no JSON")
    }

    /// Has its data elsewhere from now on: that of a fixture lay on another machine.
    fn move_bucket(&self, bucket: &Path) -> Result<()> {
        let mut config = self.command("config");
        config.arg(self.url()).arg("--bucket").arg(bucket).arg("--yes");
        run("juicefs config", &mut config).map(drop)
    }

    /// Has JuiceFS walk through the tree. Behind that it misses the data, of which there is none.
    fn check_tree(&self) -> Result<()> {
        let mut fsck = self.command("fsck");
        fsck.arg(self.url()).args(["--path", "/", "--recursive"]);
        let said = converse("juicefs fsck", &mut fsck, "", DEADLINE)?.stderr;
        let (tree, _) = said.split_once("Data use ").with_context(|| format!("juicefs fsck gave up:\n{said}"))?;
        let complaints = ["<WARNING>", "<ERROR>", "<FATAL>"];
        let mut bad = tree.lines().filter(|line| complaints.iter().any(|level| line.contains(level)));
        // It has no tiers on any file system.
        match bad.find(|line| !line.contains("Set storage tier: not supported")) {
            Some(line) => bail!("juicefs fsck: {line}"),
            None => Ok(()),
        }
    }
}

/// How many names of files a dump holds.
pub(super) fn regular_files(dump: &Value) -> usize {
    dump.to_string().matches("\"type\":\"regular\"").count()
}

/// Whether real JuiceFS takes a database for its own: it dumps it, and counts the same when it loads the dump; it finds
/// nothing wrong with the tree; it tells the status; it writes further files below `/further`, after which all of
/// [`check_block_map`] holds still. Nobody else may have the database open, and its client must have settled
/// ([`litestream_fixtures::blockmap::Client::settle`]). Returns what was seen, in a few words.
pub(super) fn juicefs_accepts(world: &World, database: &Path) -> Result<String> {
    let volume = Volume::of(world, database)?;
    let folder = world.output().with_extension("volume");
    let bucket = folder.join("bucket");
    std::fs::create_dir_all(&bucket)?;
    volume.move_bucket(&bucket)?;

    let before = volume.dump(&folder.join("before.json"))?;
    let names: i64 =
        Connection::open(database)?.query_row("SELECT count(*) FROM jfs_edge WHERE type = 1", [], |row| row.get(0))?;
    let files = regular_files(&before);
    ensure!(i64::try_from(files)? == names, "the dump holds {files} files of {names}");
    recount(world, &volume, &folder, &before)?;
    volume.check_tree()?;
    run("juicefs status", volume.command("status").arg(volume.url()))?;

    run("juicefs mdtest", &mut volume.mdtest("/further"))?;
    let after = regular_files(&volume.dump(&folder.join("after.json"))?);
    ensure!(after == files + MDTEST_FILES, "{files} files, {MDTEST_FILES} further ones, but {after} in the dump");
    let summary = check_block_map(&Connection::open(database)?).context("after JuiceFS wrote to it")?;
    Ok(format!(
        "dumped, counted again, walked, and {MDTEST_FILES} files written to {files} files and {} directories",
        summary.directories
    ))
}

/// JuiceFS makes a database of its dump, counts what it puts there, and must count what ours says.
fn recount(world: &World, volume: &Volume, folder: &Path, dump: &Value) -> Result<()> {
    const COUNTED: &str = "SELECT (SELECT value FROM jfs_counter WHERE name = 'totalInodes'),
        (SELECT value FROM jfs_counter WHERE name = 'usedSpace')";
    // Files that were deleted while they were open are in no dump.
    const OPEN: &str =
        "SELECT count(*), coalesce(sum((max(length, 1) + 4095) & ~4095), 0) FROM jfs_node WHERE nlink = 0";
    let pair = |connection: &Connection, sql: &str| -> Result<(i64, i64)> {
        Ok(connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
    };
    let loaded = Volume::of(world, &folder.join("loaded.db"))?;
    let file = folder.join("before.json");
    run("juicefs load", loaded.command("load").arg(loaded.url()).arg(&file))?;
    ensure!(
        loaded.dump(&folder.join("loaded.json"))?["FSTree"] == dump["FSTree"],
        "the tree is another once it was dumped and loaded"
    );
    let ours = Connection::open(&volume.database)?;
    let (counted, open) = (pair(&ours, COUNTED)?, pair(&ours, OPEN)?);
    // JuiceFS may leave some of it in the WAL.
    let expected = pair(&Connection::open(&loaded.database)?, COUNTED)?;
    let ours = (counted.0 - open.0, counted.1 - open.1);
    ensure!(ours == expected, "JuiceFS counts {expected:?} inodes and bytes, ours says {ours:?}");
    Ok(())
}
