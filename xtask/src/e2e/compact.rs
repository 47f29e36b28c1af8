//! Our compaction of a replica by real Litestream, and what real Litestream restores from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Checked;
use super::live::record;
use super::world::{Backend, File, Restored, World};
use crate::litestream::{Target, file_url};

/// Compacts what the live scenario left, with the default levels.
pub(super) fn compact(world: &mut World, backend: Backend) -> Checked {
    record(world, backend)?;
    let live = &world.live[&backend];
    let url = &live.url;
    let latest = world.restore_real(url, &Target::Latest)?;
    ensure!(latest.content == live.last()?, "litestream's own latest state is not the database's last");

    let folder = url.strip_prefix("file://").map(PathBuf::from);
    let before = world.folder(match backend {
        Backend::S3 => "compact-s3",
        Backend::File => "compact-file",
    })?;
    if let Some(folder) = &folder {
        copy_files(folder, &before, &world.list(url)?)?;
    }
    let done = compact_and_restore(world, url)?;
    ensure!(world.restore_real(url, &Target::Latest)? == latest, "the compaction changed the latest state");
    ensure!(world.restore_ours(url, &Target::Latest)?.database == latest, "ours restores another latest state");

    let mut what = format!("{}, litestream restores each", done.describe());
    if let Some(folder) = &folder {
        each_alone(world, &before, folder, &done)?;
        let from_zero = from_level_zero(world, &before)?;
        what.push_str(&format!(", each alone too; from level 0 alone {from_zero}"));
    }
    Ok(what)
}

/// What a compaction made.
#[derive(Debug)]
pub(super) struct Compacted {
    pub(super) made: Vec<File>,
    /// What litestream restored, before the compaction, for the last TXID of each.
    expected: BTreeMap<u64, Restored>,
}

impl Compacted {
    pub(super) fn describe(&self) -> String {
        let levels: Vec<String> = self.made.iter().map(|file| file.level.to_string()).collect();
        format!("levels {} made", levels.join(", "))
    }
}

/// Runs our compaction; real Litestream must list what it announced and restore what it restored before.
pub(super) fn compact_and_restore(world: &World, url: &str) -> Result<Compacted> {
    let before: BTreeSet<File> = world.list(url)?.into_iter().collect();
    let mut expected = BTreeMap::new();
    for file in world.compact(url, &["--dry-run"])? {
        let txid = file.end()?;
        if let std::collections::btree_map::Entry::Vacant(entry) = expected.entry(txid) {
            entry.insert(world.restore_real(url, &Target::Txid(txid))?);
        }
    }
    ensure!(world.list(url)?.iter().eq(&before), "a dry run changed the replica");

    let announced = world.compact(url, &[])?;
    let made: Vec<File> = world.list(url)?.into_iter().filter(|file| !before.contains(file)).collect();
    ensure!(made == announced, "our compact says it made {announced:?}, litestream lists {made:?}");
    ensure!(made.iter().any(|file| file.level == 9), "our compact made no snapshot, but {made:?}");
    for file in &made {
        let txid = file.end()?;
        let restored = world.restore_real(url, &Target::Txid(txid))?;
        ensure!(expected.get(&txid) == Some(&restored), "litestream restores something else at {txid:x} now");
    }
    let more = world.compact(url, &[])?;
    ensure!(more.is_empty(), "a second compaction found something to do: {more:?}");
    Ok(Compacted { made, expected })
}

/// Each file that the compaction made, behind nothing but level 0 up to where it begins: litestream must read it.
///
/// `before` and `after` are the replica's folder.
pub(super) fn each_alone(world: &World, before: &Path, after: &Path, done: &Compacted) -> Result<()> {
    let zero: Vec<File> = world.list(&file_url(before))?.into_iter().filter(|file| file.level == 0).collect();
    for file in &done.made {
        let (begin, end) = (file.begin()?, file.end()?);
        let folder = tempfile::tempdir()?;
        for input in &zero {
            if input.end()? < begin {
                copy_files(before, folder.path(), std::slice::from_ref(input))?;
            }
        }
        copy_files(after, folder.path(), std::slice::from_ref(file))?;
        let restored = world
            .restore_real(&file_url(folder.path()), &Target::Latest)
            .with_context(|| format!("level {}, {begin:x} to {end:x}, alone", file.level))?;
        ensure!(done.expected.get(&end) == Some(&restored), "{} alone restores to something else", file.path());
    }
    Ok(())
}

/// Our compaction where Litestream never made one. Returns what it made.
fn from_level_zero(world: &World, replica: &Path) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let zero: Vec<File> = world.list(&file_url(replica))?.into_iter().filter(|file| file.level == 0).collect();
    copy_files(replica, folder.path(), &zero)?;
    let done = compact_and_restore(world, &file_url(folder.path()))?;
    ensure!(done.made.len() == 4, "not a file in each of levels 1, 2, 3 and 9, but {:?}", done.made);
    each_alone(world, replica, folder.path(), &done)?;
    Ok(done.describe())
}

/// Copies some files of a replica from folder to folder, their times too.
pub(super) fn copy_files(from: &Path, to: &Path, files: &[File]) -> Result<()> {
    for file in files {
        let (source, target) = (from.join(file.path()), to.join(file.path()));
        fs::create_dir_all(target.parent().context("a file lies in a folder")?)?;
        fs::copy(&source, &target).with_context(|| format!("cannot copy {}", source.display()))?;
        let times = fs::FileTimes::new().set_modified(source.metadata()?.modified()?);
        fs::File::options().write(true).open(&target)?.set_times(times)?;
    }
    Ok(())
}
