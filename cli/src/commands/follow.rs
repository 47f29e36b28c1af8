//! `litestream restore --follow`.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use anyhow::bail;
use litestream_hydrate::{
    Applied, Error, Event, FollowOptions, Follower, Overwrite, Publishing, RestoreOptions, Restored,
};
use litestream_pageindex::{Error as PlanError, Target};
use litestream_storage::{Replica, format_time};
use serde::Serialize;

use crate::args::RestoreArgs;
use crate::commands::restore::{Source, choose, options};
use crate::output;

/// What is told with `--json`, a line each.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Told<'a> {
    Restored { db: &'a str, replica: &'a str, txid: String, timestamp: String, files: usize, bytes: u64 },
    Resumed { db: &'a str, replica: &'a str, txid: String, timestamp: String },
    Applied { from_txid: String, txid: String, timestamp: String, files: usize, bytes: u64, changed: usize, pages: u32 },
    Failing { error: String },
    Recovered,
    Stopped { txid: String },
}

impl Told<'_> {
    /// Without `--json` all this is beside the point of the command: it goes to stderr.
    fn tell(&self, as_json: bool) -> anyhow::Result<()> {
        if as_json {
            return output::json_line(self);
        }
        output::note(&match self {
            Self::Restored { db, txid, timestamp, .. } => format!("restored {db} at {txid} ({timestamp}); following"),
            Self::Resumed { db, txid, timestamp, .. } => format!("{db} is at {txid} ({timestamp}); following"),
            Self::Applied { txid, timestamp, files, changed, .. } => {
                format!("applied {txid} ({timestamp}): {changed} pages from {files} files")
            }
            Self::Failing { error } => format!("{error}; trying again"),
            Self::Recovered => "following again".to_owned(),
            Self::Stopped { txid } => format!("stopped at {txid}"),
        });
        Ok(())
    }
}

pub(crate) async fn run(
    args: &RestoreArgs,
    replicas: &[Replica],
    path: &Path,
    publishing: &Publishing,
) -> anyhow::Result<()> {
    // From the beginning, so that no signal is missed between the first restore and what follows.
    let stop = tokio::spawn(crate::interrupted());
    let as_json = args.json;
    let overwrite = if args.force { Overwrite::Replace } else { Overwrite::Never };
    let bar = output::progress("restoring");
    let restore = RestoreOptions { publishing: publishing.clone(), ..options(args, Target::Latest, overwrite, &bar) };
    let options = FollowOptions {
        restore,
        interval: args.follow_interval,
        tell: Arc::new(move |event| {
            let told = match event {
                Event::Applied(applied) => applied_told(applied),
                Event::Failing(error) => Told::Failing { error: error.to_string() },
                Event::Recovered => Told::Recovered,
                _ => return,
            };
            // Whoever listened has gone; the copy is of use without.
            let _ = told.tell(as_json);
        }),
        ..FollowOptions::default()
    };
    let db = path.display().to_string();
    let mut stop = pin!(async {
        let _ = stop.await;
    });
    let is_there = path.metadata().is_ok_and(|there| there.len() > 0);
    let mut follower = if is_there && !args.force {
        // Nothing is half done from here on that a signal might end.
        publishing.begin();
        let resumed = tokio::select! {
            () = &mut stop => return Ok(()),
            resumed = Follower::resume(replicas, path, &options) => resumed?,
        };
        let (txid, timestamp) = (resumed.txid().to_string(), format_time(resumed.time()));
        Told::Resumed { db: &db, replica: resumed.url(), txid, timestamp }.tell(as_json)?;
        resumed
    } else {
        let (replica, source) = match choose(replicas, Target::Latest).await {
            Err(Error::Plan(PlanError::NoBackup { url })) if args.if_replica_exists => {
                output::note(&format!("{url}: no backup found: nothing to do"));
                return Ok(());
            }
            chosen => chosen?,
        };
        let Source::Ltx(plan, listing) = source else {
            bail!(
                "{}: holds what Litestream 0.3 wrote, which cannot be followed: restore it without --follow",
                replica.url()
            );
        };
        let restored = Follower::restore(replica, plan, *listing, path, &options).await;
        bar.finish_and_clear();
        let (follower, Restored { txid, time, files, bytes, .. }) = restored?;
        let (txid, timestamp) = (txid.to_string(), format_time(time));
        Told::Restored { db: &db, replica: replica.url(), txid, timestamp, files, bytes }.tell(as_json)?;
        follower
    };
    follower.run(stop).await?;
    Told::Stopped { txid: follower.txid().to_string() }.tell(as_json)
}

fn applied_told(applied: &Applied) -> Told<'static> {
    let Applied { from, txid, time, files, bytes, pages, commit } = applied;
    Told::Applied {
        from_txid: from.to_string(),
        txid: txid.to_string(),
        timestamp: format_time(*time),
        files: *files,
        bytes: *bytes,
        changed: *pages,
        pages: commit.0,
    }
}
