//! A real client: the block map of JuiceFS under real Litestream while JuiceFS writes, restored by ours, opened by
//! JuiceFS.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::world::{Backend, World};
use super::{Checked, DEADLINE};
use crate::litestream::Target;
use crate::process::{Process, run};

/// Level 1 and snapshots come up while mdtest runs.
const LEVELS: &str = "
levels:
  - interval: 1s
snapshot:
  interval: 2s
  retention: 24h
l0-retention: 24h";

/// JuiceFS fills a block map, ours restores it.
pub(super) fn juicefs(world: &mut World) -> Checked {
    let url = world.new_replica(Backend::S3, "juicefs");
    let folder = world.folder("juicefs")?;
    let bucket = folder.join("bucket");
    std::fs::create_dir(&bucket)?;
    let original = Volume { program: world.tools.juicefs()?, database: folder.join("meta.db") };
    original.format(&bucket)?;

    let mut daemon = world.replicate(&original.database, &url, LEVELS)?;
    daemon.wait_until("the first TXID", DEADLINE, || Ok((!world.list(&url)?.is_empty()).then_some(())))?;
    let mut mdtest = Process::spawn("juicefs mdtest", &mut original.mdtest("/live"))?;
    let status = mdtest.wait(DEADLINE)?;
    ensure!(status.success(), "juicefs mdtest failed ({status}):\n{}", mdtest.log());
    daemon.terminate(DEADLINE)?;

    let restored = Volume { program: original.program.clone(), database: folder.join("restored.db") };
    let (txid, _) = world.restore_ours_to(&url, &Target::Latest, &restored.database)?;
    world.restore_both(&url, &Target::Latest)?;
    let dump = original.dump(&folder.join("original.json"))?;
    let files = dump.to_string().matches("\"type\":\"regular\"").count();
    ensure!(files > 0, "mdtest made no files");
    ensure!(restored.dump(&folder.join("restored.json"))? == dump, "the restored block map dumps as something else");
    run("juicefs status", restored.command("status").arg(restored.url()))?;
    run("juicefs mdtest on the restored block map", &mut restored.mdtest("/restored"))?;
    let bytes = restored.database.metadata()?.len();
    Ok(format!(
        "{files} files in a block map of {} KiB, TXID {txid:x}; same dump, status, a further mdtest",
        bytes >> 10
    ))
}

/// A file system whose block map is a database.
struct Volume {
    program: PathBuf,
    database: PathBuf,
}

impl Volume {
    fn url(&self) -> String {
        format!("sqlite3://{}", self.database.display())
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(name);
        command
    }

    fn format(&self, bucket: &Path) -> Result<()> {
        let mut format = self.command("format");
        format.args(["--storage", "file", "--bucket"]).arg(bucket).args([&self.url(), "e2e"]);
        run("juicefs format", &mut format).map(drop)
    }

    fn mdtest(&self, directory: &str) -> Command {
        let mut mdtest = self.command("mdtest");
        mdtest.args(["--no-usage-report", &self.url(), directory]);
        mdtest.args(["--dirs", "3", "--depth", "2", "--files", "20", "--write", "4096"]);
        // Its default lies outside our folder.
        mdtest.arg("--cache-dir").arg(self.database.with_file_name("cache"));
        mdtest
    }

    fn dump(&self, path: &Path) -> Result<Value> {
        run("juicefs dump", self.command("dump").arg(self.url()).arg(path))?;
        serde_json::from_slice(&std::fs::read(path)?).context("juicefs dump wrote no JSON")
    }
}
