//! What to merge, and putting it into the replica: the next file of a level ([`next_inputs`], [`compact_into`]), a snapshot
//! ([`snapshot_inputs`], [`snapshot`]). When to do so is the caller's business; how it is done is `merge.rs`'s.

use std::path::Path;

use litestream_storage::{Body, FileInfo, Level, Replica};

use crate::{Cutoff, Error, Listing, Plan, Result, Target};

pub use crate::merge::{MergeOptions, Merged, Progress, merge};

/// The files of the level below that belong into the next file of `level`, oldest first: all that reach beyond what `level` has, up to the
/// first gap that no snapshot spans. None, where there is nothing new, and for levels 0 and 9, which are not made this way.
///
/// The first one may begin before the level's end: files may straddle. Where `level` is still empty, it begins with the oldest file below.
/// Give it a whole listing ([`Listing::full`]): where files were left out of it, it stops as at a gap.
#[must_use]
pub fn next_inputs(listing: &Listing, level: Level) -> Vec<FileInfo> {
    let below = level.get().checked_sub(1).and_then(Level::new).filter(|_| level != Level::SNAPSHOT);
    let files = below.map_or(&[][..], |below| listing.level(below));
    let Some(first) = files.first() else { return Vec::new() };
    let mut reached = listing.reach(level).unwrap_or_else(|| first.name.min.previous());
    let snapshots = listing.reach(Level::SNAPSHOT);
    let mut inputs = Vec::new();
    for file in files {
        if file.name.max <= reached {
            continue;
        }
        if inputs.is_empty() && file.name.min > reached.next() && Some(file.name.min.previous()) <= snapshots {
            // A snapshot holds what is missing: retention has taken it from below before this level had it. There is nothing to wait for.
            reached = file.name.min.previous();
        }
        if file.name.min > reached.next() {
            tracing::debug!(level = level.get(), %reached, next = %file.name.min, "compaction stops at a gap");
            break;
        }
        reached = file.name.max;
        inputs.push(file.clone());
    }
    inputs
}

/// The plan to merge into a new snapshot, or `None` where the newest snapshot holds all there is.
///
/// # Errors
/// As [`Plan::new`] for the newest state.
pub fn snapshot_inputs(replica: &Replica, listing: &Listing) -> Result<Option<Plan>> {
    let plan = Plan::new(replica, listing, Target::Latest, Cutoff::NONE)?;
    let snapshots = listing.level(Level::SNAPSHOT).iter().filter(|file| file.name.is_snapshot());
    let newest = snapshots.map(|file| file.name.max).max();
    Ok((newest < Some(plan.txid)).then_some(plan))
}

/// Makes the next file of `level` and puts it into the replica. `None` where there is nothing to do, or another compactor was faster.
///
/// # Errors
/// As [`merge`], and as the store says. Where [`Error::wants_new_plan`], an input has vanished: list again.
pub async fn compact_into(
    replica: &Replica,
    listing: &Listing,
    level: Level,
    scratch_dir: &Path,
    options: &MergeOptions,
) -> Result<Option<FileInfo>> {
    let inputs = next_inputs(listing, level);
    if inputs.is_empty() {
        return Ok(None);
    }
    merge_into(replica, &inputs, level, scratch_dir, options).await
}

/// Makes a snapshot of the newest state out of the replica's own files and puts it into the replica. `None` where the newest snapshot holds
/// all there is, or another compactor was faster.
///
/// # Errors
/// As [`snapshot_inputs`], as [`merge`], and as the store says. Where [`Error::wants_new_plan`], an input has vanished: list again.
pub async fn snapshot(
    replica: &Replica,
    listing: &Listing,
    scratch_dir: &Path,
    options: &MergeOptions,
) -> Result<Option<FileInfo>> {
    match snapshot_inputs(replica, listing)? {
        Some(plan) => merge_into(replica, &plan.files, Level::SNAPSHOT, scratch_dir, options).await,
        None => Ok(None),
    }
}

async fn merge_into(
    replica: &Replica,
    inputs: &[FileInfo],
    level: Level,
    scratch_dir: &Path,
    options: &MergeOptions,
) -> Result<Option<FileInfo>> {
    // The folder and what is in it go when this ends, however it ends.
    let scratch = tempfile::Builder::new().prefix(".merge-").tempdir_in(scratch_dir);
    let scratch = scratch.map_err(|error| Error::io("create a folder in", scratch_dir, error))?;
    let path = scratch.path().join("merged.ltx");
    let merged = Box::pin(merge(replica, inputs, &path, options)).await?;
    let name = merged.header.name();
    let body = Body::File { path, len: merged.size };
    match replica.put_file(level, name, body, merged.header.timestamp).await {
        Ok(file) => {
            let Merged { size, input_bytes, pages, .. } = merged;
            tracing::info!(key = file.key(), inputs = inputs.len(), input_bytes, size, pages, "compacted");
            Ok(Some(file))
        }
        Err(litestream_storage::Error::AlreadyExists { key, .. }) => {
            tracing::info!(%key, "another compactor was faster");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
