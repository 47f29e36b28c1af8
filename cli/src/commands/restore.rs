//! `litestream restore`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use jiff::Zoned;
use litestream_hydrate::legacy::{self, Legacy, LegacyPlan, LtxTimes, RestoredLegacy, prefers_legacy};
use litestream_hydrate::{Check, Error, Output, Overwrite, Publishing, RestoreOptions, Restored, restore_plan};
use litestream_pageindex::{Error as PlanError, Listing, Plan, Target, find, time_of};
use litestream_storage::{ObjectInfo, Replica, format_time};
use ltx::Timestamp;
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;
use tabled::Tabled;

use crate::args::{Common, IntegrityCheck, RestoreArgs};
use crate::commands::follow;
use crate::output;
use crate::place::{self, Place};

#[derive(Serialize)]
struct Report {
    db: String,
    replica: String,
    txid: String,
    timestamp: String,
    page_size: u32,
    pages: u32,
    files: usize,
    bytes: u64,
    restored: bool,
}

#[derive(Serialize)]
struct DryRun {
    db: String,
    replica: String,
    txid: String,
    bytes: u64,
    files: Vec<PlannedFile>,
}

#[derive(Serialize, Tabled)]
struct PlannedFile {
    level: u8,
    min_txid: String,
    max_txid: String,
    size: u64,
}

pub(crate) async fn run(common: &Common, args: &RestoreArgs, publishing: &Publishing) -> anyhow::Result<()> {
    let target = target(args)?;
    let place = place::find(common, &args.source).await?;
    let path = output_path(args, &place)?;
    if args.follow {
        return follow::run(args, &place.replicas, &path, publishing).await;
    }
    if args.if_db_not_exists && path.exists() {
        output::note(&format!("{} exists already: nothing to do", path.display()));
        return Ok(());
    }
    let overwrite = if args.force { Overwrite::Replace } else { Overwrite::Never };
    if !args.dry_run {
        Output::check(&path, overwrite)?;
    }
    let (replica, source) = match choose(&place.replicas, target).await {
        Err(Error::Plan(PlanError::NoBackup { url })) if args.if_replica_exists => {
            output::note(&format!("{url}: no backup found: nothing to do"));
            return Ok(());
        }
        chosen => chosen?,
    };
    let bar = output::progress("restoring");
    let options = RestoreOptions { publishing: publishing.clone(), ..options(args, target, overwrite, &bar) };
    let moment = if let Target::Before(moment) = target { Some(moment) } else { None };
    match source {
        Source::Ltx(plan, _) if args.dry_run => describe(args, &path, replica, &plan),
        Source::Ltx(plan, listing) => {
            let restored = restore_plan(replica, plan, *listing, &path, &options).await;
            bar.finish_and_clear();
            report(args, &path, replica, &restored?)
        }
        Source::Legacy(found) if args.dry_run => describe_legacy(args, &path, replica, &legacy::plan(&found, moment)?),
        Source::Legacy(found) => {
            let restored = legacy::restore(replica, &found, moment, &path, &options).await;
            bar.finish_and_clear();
            report_legacy(args, &path, replica, &restored?)
        }
    }
}

/// What was restored without being asked what for.
pub(super) struct Latest {
    /// The replica.
    pub(super) url: Arc<str>,
    /// The TXID, or what Litestream 0.3 had instead.
    pub(super) state: String,
    /// The database's size in bytes.
    pub(super) size: u64,
}

/// Restores the newest state that there is. `None` where there is no backup.
pub(super) async fn latest(
    replicas: &[Replica],
    path: &Path,
    options: &RestoreOptions,
) -> Result<Option<Latest>, Error> {
    Output::check(path, options.overwrite)?;
    let (replica, source) = match choose(replicas, Target::Latest).await {
        Err(error) if is_no_backup(&error) => return Ok(None),
        chosen => chosen?,
    };
    let url = replica.url().clone();
    Ok(Some(match source {
        Source::Ltx(plan, listing) => {
            let restored = restore_plan(replica, plan, *listing, path, options).await?;
            Latest { url, state: restored.txid.to_string(), size: restored.commit.bytes(restored.page_size) }
        }
        Source::Legacy(found) => {
            let RestoredLegacy { generation, index, size, .. } =
                legacy::restore(replica, &found, None, path, options).await?;
            Latest { url, state: format!("{generation}/{index:08x}"), size }
        }
    }))
}

/// Where the database comes from.
pub(super) enum Source {
    /// LTX files.
    Ltx(Plan, Box<Listing>),
    /// What Litestream 0.3 left.
    Legacy(Legacy),
}

impl Source {
    /// How far it reaches, for comparison with other replicas'.
    fn reach(&self) -> Option<ltx::Txid> {
        if let Self::Ltx(plan, _) = self { Some(plan.txid) } else { None }
    }
}

fn target(args: &RestoreArgs) -> anyhow::Result<Target> {
    match (args.txid, &args.timestamp) {
        (Some(txid), _) => Ok(Target::Txid(txid)),
        (None, Some(text)) => {
            let millis =
                litestream_config::when::parse(text, &Zoned::now()).with_context(|| format!("--timestamp {text:?}"))?;
            Ok(Target::Before(Timestamp(millis)))
        }
        (None, None) => Ok(Target::Latest),
    }
}

fn output_path(args: &RestoreArgs, place: &Place) -> anyhow::Result<PathBuf> {
    match (&args.output, &place.database) {
        (Some(path), _) => Ok(path.clone()),
        (None, Some(database)) => Ok(database.path.clone()),
        (None, None) => bail!("a replica URL does not say where the database should go: give its path with -o"),
    }
}

/// The replica that reaches furthest within the target. One that fails is passed over as long as another does not, but not silently.
pub(super) async fn choose(replicas: &[Replica], target: Target) -> Result<(&Replica, Source), Error> {
    let sources = futures::future::join_all(replicas.iter().map(|replica| source(replica, target))).await;
    let mut best: Option<(&Replica, Source)> = None;
    let mut failure: Option<Error> = None;
    for (replica, source) in replicas.iter().zip(sources) {
        match source {
            Ok(source) if best.as_ref().is_none_or(|(_, best)| source.reach() > best.reach()) => {
                best = Some((replica, source));
            }
            Ok(_) => {}
            Err(error) => {
                if replicas.len() > 1 {
                    output::note(&format!("passing over a replica: {error}"));
                }
                // There is no backup only where every replica says so; any other reason goes first.
                if failure.as_ref().is_none_or(|first| is_no_backup(first) && !is_no_backup(&error)) {
                    failure = Some(error);
                }
            }
        }
    }
    match (best, failure) {
        (Some(best), _) => Ok(best),
        (None, Some(error)) => Err(error),
        (None, None) => Err(PlanError::NoBackup { url: "configuration".into() }.into()),
    }
}

pub(super) fn is_no_backup(error: &Error) -> bool {
    matches!(error, Error::Plan(PlanError::NoBackup { .. }))
}

/// LTX files, or what Litestream 0.3 left where that is newer or all there is.
async fn source(replica: &Replica, target: Target) -> Result<Source, Error> {
    let found = find(replica, target).await;
    let ltx = match &found {
        Ok((plan, listing)) if seems_to_hold_legacy(listing) => ltx_times(replica, plan, listing).await?,
        Err(PlanError::NoBackup { .. }) => LtxTimes::default(),
        // There are LTX files, but none as old as that.
        Err(PlanError::TooEarly { oldest, .. }) => LtxTimes { newest_file: Some(*oldest), snapshot: None },
        _ => return Ok(found.map(planned)?),
    };
    let legacy = legacy::listing(replica).await?;
    if let (Target::Txid(txid), Err(PlanError::NoBackup { .. }), false) = (target, &found, legacy.is_empty()) {
        let problem = format!(
            "holds what Litestream 0.3 wrote, which has no TXIDs such as {txid}: restore the latest state, or one by --timestamp"
        );
        return Err(Error::Legacy { key: format!("{}: generations", replica.url()), problem });
    }
    if prefers_legacy(&legacy, ltx, target) { Ok(Source::Legacy(legacy)) } else { Ok(found.map(planned)?) }
}

fn planned((plan, listing): (Plan, Listing)) -> Source {
    Source::Ltx(plan, Box::new(listing))
}

/// A listing of the levels shows in passing whether there is anything else.
fn seems_to_hold_legacy(listing: &Listing) -> bool {
    listing.others().iter().any(|object| object.key.split('/').any(|part| part == "generations"))
}

async fn ltx_times(replica: &Replica, plan: &Plan, listing: &Listing) -> Result<LtxTimes, Error> {
    let mut times = LtxTimes::default();
    if let Some(newest) = listing.files().max_by_key(|file| file.name.max) {
        times.newest_file = Some(time_of(replica, newest).await?);
    }
    if let Some(first) = plan.files.first() {
        times.snapshot = Some(time_of(replica, first).await?);
    }
    Ok(times)
}

pub(super) fn options(args: &RestoreArgs, target: Target, overwrite: Overwrite, bar: &ProgressBar) -> RestoreOptions {
    let shown = bar.clone();
    RestoreOptions {
        target,
        overwrite,
        parallelism: usize::from(args.parallelism),
        check: check(args.integrity_check),
        progress: Arc::new(move |progress| {
            shown.set_length(progress.total);
            shown.set_position(progress.done);
        }),
        ..RestoreOptions::default()
    }
}

fn check(how: IntegrityCheck) -> Option<Arc<Check>> {
    let pragma = match how {
        IntegrityCheck::None => return None,
        IntegrityCheck::Quick => "quick_check",
        IntegrityCheck::Full => "integrity_check",
    };
    Some(Arc::new(move |path| {
        let found = problems(path, pragma).map_err(|error| format!("cannot check the restored database: {error}"))?;
        if found == ["ok"] {
            return Ok(());
        }
        Err(format!("the restored database fails PRAGMA {pragma}: {}; try an earlier --txid", found.join("; ")))
    }))
}

/// Nobody else knows the file yet, so SQLite needs no locks and must leave no sidecars beside it.
pub(super) fn problems(path: &Path, pragma: &str) -> rusqlite::Result<Vec<String>> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => uri.push(char::from(*byte)),
            byte => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    let mut statement = connection.prepare(&format!("PRAGMA {pragma}(10)"))?;
    statement.query_map([], |row| row.get(0))?.collect()
}

fn describe(args: &RestoreArgs, path: &Path, replica: &Replica, plan: &Plan) -> anyhow::Result<()> {
    let files: Vec<PlannedFile> = plan
        .files
        .iter()
        .map(|file| PlannedFile {
            level: file.level.get(),
            min_txid: file.name.min.to_string(),
            max_txid: file.name.max.to_string(),
            size: file.size(),
        })
        .collect();
    let (db, url, txid) = (path.display().to_string(), replica.url().to_string(), plan.txid.to_string());
    if args.json {
        return output::json(&DryRun { db, replica: url, txid, bytes: plan.size(), files });
    }
    output::table(&files)?;
    let size = output::size(plan.size());
    output::line(&format!("would restore {url} at {txid} to {db}: {} files, {size}", plan.files.len()))
}

fn report(args: &RestoreArgs, path: &Path, replica: &Replica, restored: &Restored) -> anyhow::Result<()> {
    let db = path.display().to_string();
    let report = Report {
        db: db.clone(),
        replica: replica.url().to_string(),
        txid: restored.txid.to_string(),
        timestamp: format_time(restored.time),
        page_size: restored.page_size.get(),
        pages: restored.commit.0,
        files: restored.files,
        bytes: restored.bytes,
        restored: true,
    };
    if args.json {
        return output::json(&report);
    }
    let size = output::size(restored.commit.bytes(restored.page_size));
    output::line(&format!("restored {db} at {} ({}), {size}", report.txid, report.timestamp))
}

#[derive(Serialize)]
struct LegacyDryRun {
    db: String,
    replica: String,
    generation: String,
    index: String,
    timestamp: String,
    bytes: u64,
    files: Vec<LegacyFile>,
}

#[derive(Serialize)]
struct LegacyFile {
    key: String,
    size: u64,
}

fn describe_legacy(args: &RestoreArgs, path: &Path, replica: &Replica, plan: &LegacyPlan) -> anyhow::Result<()> {
    let file = |object: &ObjectInfo| LegacyFile { key: object.key.to_string(), size: object.size };
    let report = LegacyDryRun {
        db: path.display().to_string(),
        replica: replica.url().to_string(),
        generation: plan.generation.to_string(),
        index: format!("{:08x}", plan.index),
        timestamp: format_time(plan.time),
        bytes: plan.size(),
        files: plan.objects.iter().map(file).collect(),
    };
    if args.json {
        return output::json(&report);
    }
    let LegacyDryRun { db, replica, generation, index, timestamp, bytes, files } = report;
    let (files, size) = (files.len(), output::size(bytes));
    output::line(&format!(
        "would restore {replica} from generation {generation} of Litestream 0.3 at index {index} ({timestamp}) to {db}: {files} files, {size}"
    ))
}

#[derive(Serialize)]
struct LegacyReport {
    db: String,
    replica: String,
    generation: String,
    index: String,
    timestamp: String,
    page_size: u32,
    pages: u64,
    files: usize,
    bytes: u64,
    restored: bool,
}

fn report_legacy(args: &RestoreArgs, path: &Path, replica: &Replica, restored: &RestoredLegacy) -> anyhow::Result<()> {
    let report = LegacyReport {
        db: path.display().to_string(),
        replica: replica.url().to_string(),
        generation: restored.generation.to_string(),
        index: format!("{:08x}", restored.index),
        timestamp: format_time(restored.time),
        page_size: restored.page_size.get(),
        pages: restored.size / u64::from(restored.page_size.get()),
        files: restored.files,
        bytes: restored.bytes,
        restored: true,
    };
    if args.json {
        return output::json(&report);
    }
    let LegacyReport { db, generation, index, timestamp, .. } = report;
    let size = output::size(restored.size);
    output::line(&format!(
        "restored {db} from generation {generation} of Litestream 0.3 at index {index} ({timestamp}), {size}"
    ))
}

#[cfg(test)]
mod tests {
    use litestream_storage::faults::{Fault, FaultyBackend};
    use litestream_storage::memory::MemoryBackend;
    use litestream_storage::{Backend, RetryPolicy};

    use super::*;

    fn empty(name: &str) -> Replica {
        Replica::new(MemoryBackend::new(name).into(), RetryPolicy::default())
    }

    fn broken(name: &str) -> Replica {
        let inner: Arc<dyn Backend> = MemoryBackend::new(name).into();
        let broken = FaultyBackend::new(inner, |_, _| Fault::Fail);
        let policy = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
        Replica::new(Arc::new(broken), policy)
    }

    async fn failure(replicas: &[Replica]) -> Error {
        choose(replicas, Target::Latest).await.err().unwrap()
    }

    #[tokio::test]
    async fn there_is_no_backup_only_where_every_replica_says_so() {
        assert!(is_no_backup(&failure(&[empty("a"), empty("b")]).await));
        for replicas in [[empty("a"), broken("b")], [broken("a"), empty("b")]] {
            let error = failure(&replicas).await;
            assert!(!is_no_backup(&error), "the other replica may hold the backup: {error}");
        }
    }
}
