//! `litestream restore`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use jiff::Zoned;
use litestream_hydrate::{Check, Output, Overwrite, RestoreOptions, Restored, restore};
use litestream_pageindex::{Error as PlanError, Plan, Target, find};
use litestream_storage::{Replica, format_time};
use ltx::Timestamp;
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;
use tabled::Tabled;

use crate::args::{Common, IntegrityCheck, RestoreArgs};
use crate::place::{self, Place};
use crate::{output, when};

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

pub(crate) async fn run(common: &Common, args: &RestoreArgs) -> anyhow::Result<()> {
    let target = target(args)?;
    let place = place::find(common, &args.source).await?;
    let path = output_path(args, &place)?;
    if args.if_db_not_exists && path.exists() {
        output::note(&format!("{} exists already: nothing to do", path.display()));
        return Ok(());
    }
    let overwrite = if args.force { Overwrite::Replace } else { Overwrite::Never };
    if !args.dry_run {
        Output::check(&path, overwrite)?;
    }
    let (replica, plan) = match choose(&place.replicas, target).await {
        Err(PlanError::NoBackup { url }) if args.if_replica_exists => {
            output::note(&format!("{url}: no backup found: nothing to do"));
            return Ok(());
        }
        chosen => chosen?,
    };
    if args.dry_run {
        return describe(args, &path, replica, &plan);
    }
    // What was planned is what is restored, even when newer transactions arrive meanwhile.
    let restored = carry_out(args, &path, replica, Target::Txid(plan.txid), overwrite).await?;
    report(args, &path, replica, &restored)
}

fn target(args: &RestoreArgs) -> anyhow::Result<Target> {
    match (args.txid, &args.timestamp) {
        (Some(txid), _) => Ok(Target::Txid(txid)),
        (None, Some(text)) => {
            let millis = when::parse(text, &Zoned::now()).with_context(|| format!("--timestamp {text:?}"))?;
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
async fn choose(replicas: &[Replica], target: Target) -> Result<(&Replica, Plan), PlanError> {
    let plans = futures::future::join_all(replicas.iter().map(|replica| find(replica, target))).await;
    let mut best: Option<(&Replica, Plan)> = None;
    let mut failure = None;
    for (replica, plan) in replicas.iter().zip(plans) {
        match plan {
            Ok((plan, _)) if best.as_ref().is_none_or(|(_, best)| plan.txid > best.txid) => {
                best = Some((replica, plan))
            }
            Ok(_) => {}
            Err(error) => {
                if replicas.len() > 1 {
                    output::note(&format!("passing over a replica: {error}"));
                }
                failure.get_or_insert(error);
            }
        }
    }
    match (best, failure) {
        (Some(best), _) => Ok(best),
        (None, Some(error)) => Err(error),
        (None, None) => Err(PlanError::NoBackup { url: "configuration".into() }),
    }
}

async fn carry_out(
    args: &RestoreArgs,
    path: &Path,
    replica: &Replica,
    target: Target,
    overwrite: Overwrite,
) -> anyhow::Result<Restored> {
    let bar = output::progress("restoring");
    let shown = bar.clone();
    let options = RestoreOptions {
        target,
        overwrite,
        parallelism: usize::from(args.parallelism),
        check: check(args.integrity_check),
        progress: Arc::new(move |progress| {
            shown.set_length(progress.total);
            shown.set_position(progress.done);
        }),
    };
    let restored = restore(replica, path, &options).await;
    bar.finish_and_clear();
    Ok(restored?)
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
fn problems(path: &Path, pragma: &str) -> rusqlite::Result<Vec<String>> {
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
