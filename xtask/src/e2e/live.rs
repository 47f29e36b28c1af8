//! A live database under real Litestream, and our restores of it: of every TXID and of moments, against Litestream's
//! own restores and against
//! what the database really held.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::Checked;
use super::world::{Backend, World};
use super::writer::{State, Writer};
use crate::litestream::Target;

/// Intervals so short that several levels and snapshots exist after some seconds; nothing is deleted.
const LEVELS: &str = "
levels:
  - interval: 1s
  - interval: 2s
  - interval: 4s
snapshot:
  interval: 3s
  retention: 24h
l0-retention: 24h";

/// Enough for levels 1, 2 and 9, each overtaken by later transactions.
const STAGES: u32 = 4;
const BURSTS: u32 = 10;
/// How many moments are asked for, besides the quiet ones.
const MOMENTS: usize = 8;
/// How much older Litestream's stamp may be than what the file holds. Seen: 5 ms before a transaction in it began.
const STAMP_SLACK_MS: u64 = 1000;

/// A replica by real Litestream, and the truth about it.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) url: String,
    /// After each transaction, in order; the first is from before any.
    states: Vec<State>,
    /// Moments in which nothing was written and everything written had arrived.
    quiet: Vec<State>,
}

impl Live {
    /// What the database held at its end.
    pub(super) fn last(&self) -> Result<&str> {
        Ok(&self.states.last().context("nothing was recorded")?.content)
    }

    /// Which state this content is, not looking further back than `from`.
    pub(super) fn position(&self, content: &str, from: usize) -> Result<usize> {
        let later = self.states[from..].iter().position(|state| state.content == content);
        later
            .map(|further| from + further)
            .context("the database never held this, or held it before what an earlier TXID holds")
    }
}

/// Restores a live recording at its end, at every TXID and at moments.
pub(super) fn live(world: &mut World, backend: Backend) -> Checked {
    record(world, backend)?;
    let live = &world.live[&backend];
    let (url, files) = (&live.url, world.list(&live.url)?);
    ensure!(world.our_list(url)? == files, "our ltx lists other files than litestream does");
    let levels: BTreeSet<u8> = files.iter().map(|file| file.level).collect();
    ensure!([0, 1, 2, 9].iter().all(|level| levels.contains(level)), "only levels {levels:?} came up");

    let latest = world.restore_both(url, &Target::Latest)?;
    ensure!(latest.database.content == live.last()?, "the latest restored state is not the database's last");

    let txids = files.iter().map(|file| file.end()).collect::<Result<BTreeSet<u64>>>()?;
    let mut at = 0;
    let mut times = Vec::new();
    for &txid in &txids {
        let restored = world.restore_both(url, &Target::Txid(txid))?;
        at = live.position(&restored.database.content, at).with_context(|| format!("TXID {txid:x}"))?;
        times.push(restored.time_ms);
    }
    let moments = moments(world, live, &times)?;
    Ok(format!("latest, {} TXIDs and {moments} moments; {} files in levels {levels:?}", txids.len(), files.len()))
}

/// Restores at moments between the TXIDs and at the very milliseconds of some. Returns how many.
fn moments(world: &World, live: &Live, times: &[u64]) -> Result<usize> {
    for quiet in &live.quiet {
        let restored = world.restore_ours(&live.url, &Target::Time(quiet.time_ms))?;
        ensure!(restored.database.content == quiet.content, "at {} the database held something else", quiet.time_ms);
    }
    let newest = *times.iter().max().context("there is no TXID")?;
    let first = times.first().map_or(0, |first| first + 1);
    // Litestream refuses what lies behind the newest file, where ours restores the latest.
    let known = first..=newest;
    let written = live.states.iter().map(|state| state.time_ms).filter(|time| known.contains(time));
    let some = |times: Vec<u64>| -> Vec<u64> {
        let step = times.len().div_ceil(MOMENTS / 2).max(1);
        times.into_iter().step_by(step).collect()
    };
    let mut targets = some(written.collect());
    // A file counts only from the millisecond after its own.
    targets.extend(some(times.to_vec()).iter().flat_map(|time| [*time, time + 1]).filter(|time| known.contains(time)));
    targets.sort_unstable();
    targets.dedup();
    let (mut at, mut both) = (0, 0);
    for &target in &targets {
        let restored = world.restore_ours(&live.url, &Target::Time(target))?;
        ensure!(restored.time_ms < target, "a state from {} was restored for {target}", restored.time_ms);
        at = live.position(&restored.database.content, at).with_context(|| format!("at {target}"))?;
        match world.restore_real(&live.url, &Target::Time(target)) {
            Ok(real) => {
                ensure!(real == restored.database, "at {target} ours and litestream restored different bytes");
                both += 1;
            }
            // It takes the bounds from the times of the uploads, which come later.
            Err(error) if format!("{error:#}").contains("timestamp does not exist") => {}
            Err(error) => return Err(error),
        }
        let began = live.states[at].began_ms;
        ensure!(began <= target + STAMP_SLACK_MS, "what was restored for {target} was written only at {began}");
    }
    ensure!(both * 2 > targets.len(), "litestream restored only {both} of {} moments", targets.len());
    Ok(targets.len() + live.quiet.len())
}

/// A bucket that is a replica from its root on, by either name.
///
/// Real Litestream writes to MinIO under `s3://BUCKET/` but finds nothing there again: it lists the prefix `/0000/`,
/// and MinIO drops the leading
/// slash of keys. So here ours is compared with what the database held only.
pub(super) fn bucket_root(world: &mut World) -> Checked {
    let Some((with_slash, without)) = world.bucket_root() else {
        return Ok("left out: the bucket is not ours".to_owned());
    };
    let database = world.folder("root")?.join("db");
    let mut writer = Writer::start(world, &database, &with_slash, LEVELS)?;
    for _ in 0..BURSTS {
        writer.burst()?;
    }
    let states = writer.finish()?;
    let live = Live { url: with_slash, states, quiet: Vec::new() };
    let latest = world.restore_ours(&live.url, &Target::Latest)?;
    ensure!(latest.database.content == live.last()?, "the latest restored state is not the database's last");
    let files = world.our_list(&live.url)?;
    ensure!(world.our_list(&without)? == files, "s3://BUCKET lists other files than s3://BUCKET/");
    let txids = files.iter().map(|file| file.end()).collect::<Result<BTreeSet<u64>>>()?;
    let mut at = 0;
    for &txid in &txids {
        let restored = world.restore_ours(&without, &Target::Txid(txid))?;
        at = live.position(&restored.database.content, at).with_context(|| format!("TXID {txid:x}"))?;
    }
    Ok(format!("latest, {} TXIDs; s3://BUCKET and s3://BUCKET/ are the same", txids.len()))
}

/// Makes the recording of a backend, if there is none yet.
pub(super) fn record(world: &mut World, backend: Backend) -> Result<()> {
    if world.live.contains_key(&backend) {
        return Ok(());
    }
    let name = match backend {
        Backend::S3 => "live-s3",
        Backend::File => "live-file",
    };
    let url = world.new_replica(backend, name);
    let database = world.folder(name)?.join("db");
    let mut writer = Writer::start(world, &database, &url, LEVELS)?;
    let mut quiet = Vec::new();
    for stage in 1..=STAGES {
        for _ in 0..BURSTS {
            writer.burst()?;
        }
        match stage {
            1 | 3 => writer.wait_for(world, &url, &[1])?,
            2 => writer.wait_for(world, &url, &[1, 2, 9])?,
            // What no level holds yet but level 0.
            _ => continue,
        }
        quiet.push(writer.now()?);
    }
    let states = writer.finish()?;
    world.live.insert(backend, Live { url, states, quiet });
    Ok(())
}
