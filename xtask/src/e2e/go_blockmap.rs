//! Go's goroutines writing a block map through our VFS, as JuiceFS would: all that was acknowledged is there, also after both
//! programs restored it, and JuiceFS takes it for its own.
//!
//! What is written, and what must be there then, only `vfs/tests/go-blockmap` knows.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use litestream_fixtures::blockmap::{BlockMapOptions, build_block_map, check_block_map, golden_folder};
use litestream_fixtures::db::{open_immutable, sha256_file};

use super::hosts::{build_go_program, extension, root};
use super::sandwiches::client;
use super::volume::juicefs_accepts;
use super::world::{Backend, World};
use super::{Checked, DEADLINE};
use crate::litestream::Target;
use crate::process::converse;

/// The machines that write one after the other, and SQLite's cache on each.
const RUNS: [(&str, &str); 3] = [("here", "shared"), ("here", "private"), ("elsewhere", "shared")];

/// A replica that is not there yet, then one that real Litestream made of a block map of 1 MB.
pub(super) fn vfs_go_blockmap(world: &mut World) -> Checked {
    let mut reports = Vec::new();
    for name in ["go-new", "go-made"] {
        let (folder, url) = (world.folder(name)?, world.new_replica(Backend::S3, name));
        let writer = Writer { program: build_go(world)?, world, url: &url, folder: &folder };
        if name == "go-made" {
            let source = folder.join("source.db");
            build_block_map(&source, &BlockMapOptions::default())?;
            world.replicate_once(&source, &url)?;
        }
        let mut transactions = 0;
        for (machine, cache) in RUNS {
            let report = writer.run(machine, cache).with_context(|| format!("{name}, {machine}, {cache} cache"))?;
            let (began, ended) = range(&report)?;
            ensure!(began == transactions, "{transactions} transactions were there, {began} are found: {report}");
            transactions = ended;
            reports.push(report);
        }
        let ours = writer.restored(transactions).with_context(|| format!("{name}, restored"))?;
        // The format that Go wrote into the new one says too little for JuiceFS.
        if name == "go-made" {
            reports.push(juicefs_accepts(world, &ours)?);
        }
    }
    Ok(reports.join("; "))
}

struct Writer<'a> {
    program: PathBuf,
    world: &'a World,
    url: &'a str,
    folder: &'a Path,
}

impl Writer<'_> {
    /// Writes for as long as this run's scenarios read. The program itself compares what was acknowledged with what is there.
    fn run(&self, machine: &str, cache: &str) -> Result<String> {
        let mut command = client(self.world, &self.program);
        command.args(["-for", &format!("{}s", self.world.reading.as_secs()), "-cache", cache, "-replica", self.url]);
        command.arg("-extension").arg(extension()?).arg("-buffer").arg(self.folder.join(machine));
        command.arg("-schema").arg(golden_folder().join("schema.sql")).current_dir(self.folder);
        let said = converse("go-blockmap", &mut command, "", self.world.reading + DEADLINE)?;
        ensure!(said.status.success(), "{}:\n{}", said.status, said.stderr);
        let report = said.stdout.trim().strip_prefix("blockmap ").context("go-blockmap reported nothing")?;
        Ok(report.to_owned())
    }

    /// Both restores, which are equal to the byte, keep JuiceFS's rules and hold so many transactions. Returns ours.
    fn restored(&self, transactions: u64) -> Result<PathBuf> {
        let (ours, real) = (self.folder.join("ours.db"), self.folder.join("real.db"));
        self.world.restore_ours_to(self.url, &Target::Latest, &ours)?;
        self.world.restore_real_to(self.url, &Target::Latest, &real)?;
        ensure!(sha256_file(&ours)? == sha256_file(&real)?, "ours and litestream restored different bytes");
        check_block_map(&open_immutable(&ours)?)?;
        let mut command = client(self.world, &self.program);
        command.args(["-expect", &transactions.to_string(), "-file"]).arg(&real);
        let said = converse("go-blockmap", &mut command, "", DEADLINE)?;
        ensure!(said.status.success(), "{}:\n{}", said.status, said.stderr);
        Ok(ours)
    }
}

fn build_go(world: &World) -> Result<PathBuf> {
    build_go_program(world, &root().join("vfs").join("tests").join("go-blockmap"), "vfs-go-blockmap")
}

/// How many transactions there were before and after: `(12 to 345)` in the program's report.
fn range(report: &str) -> Result<(u64, u64)> {
    let number = |text: Option<&str>| text.and_then(|text| text.parse().ok());
    let inside = report.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map(|(inside, _)| inside);
    let (began, ended) = inside.and_then(|inside| inside.split_once(" to ")).unzip();
    number(began).zip(number(ended)).with_context(|| format!("no range in: {report}"))
}
