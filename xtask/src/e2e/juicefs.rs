//! A real client: the block map of JuiceFS under real Litestream while JuiceFS writes, restored by ours, opened by
//! JuiceFS.

use anyhow::ensure;

use super::volume::{Volume, regular_files};
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
    let original = Volume::of(world, &folder.join("meta.db"))?;
    original.format(&bucket)?;

    let mut daemon = world.replicate(&original.database, &url, LEVELS)?;
    daemon.wait_until("the first TXID", DEADLINE, || Ok((!world.list(&url)?.is_empty()).then_some(())))?;
    let mut mdtest = Process::spawn("juicefs mdtest", &mut original.mdtest("/live"))?;
    let status = mdtest.wait(DEADLINE)?;
    ensure!(status.success(), "juicefs mdtest failed ({status}):\n{}", mdtest.log());
    daemon.terminate(DEADLINE)?;

    let restored = Volume::of(world, &folder.join("restored.db"))?;
    let (txid, _) = world.restore_ours_to(&url, &Target::Latest, &restored.database)?;
    world.restore_both(&url, &Target::Latest)?;
    let dump = original.dump(&folder.join("original.json"))?;
    let files = regular_files(&dump);
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
