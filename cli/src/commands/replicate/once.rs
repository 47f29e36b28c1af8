//! `--once`: all databases up to date, and whatever else was asked for, now.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use futures::stream::{self, StreamExt};
use litestream_replicate::daemon::{ControlError, Status};
use tokio::time::Instant;

use super::Running;
use crate::args::{Common, ReplicateArgs};

/// How many databases are asked for at once.
const AT_ONCE: usize = 256;
/// As long as something is done, nobody is impatient.
const PATIENCE: Duration = Duration::from_secs(30 * 86_400);
/// How often it is looked whether something is wrong.
const LOOK: Duration = Duration::from_millis(100);
/// For how long something may be wrong with a database itself: a lock that is held, a file that is about to be created.
const TROUBLE: Duration = Duration::from_secs(5);

/// Says which databases have failed, and why.
pub(super) async fn run(
    running: &Running,
    common: &Common,
    args: &ReplicateArgs,
    paths: &[PathBuf],
) -> anyhow::Result<ExitCode> {
    let all = stream::iter(paths).map(|path| async move { (path, one(running, common, args, path).await) });
    let mut all = all.buffer_unordered(AT_ONCE);
    let mut failed = 0;
    while let Some((path, outcome)) = all.next().await {
        let db = path.display();
        match outcome {
            Ok(txid) => tracing::info!(%db, %txid, "up to date"),
            Err(error) => {
                failed += 1;
                tracing::error!(%db, error = format!("{error:#}"), "failed");
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} databases failed", paths.len());
    }
    Ok(ExitCode::SUCCESS)
}

async fn one(running: &Running, common: &Common, args: &ReplicateArgs, path: &Path) -> anyhow::Result<ltx::Txid> {
    if !path.exists() {
        bail!("does not exist");
    }
    let (daemon, patience) = (&running.daemon, common.retry_timeout);
    let mut synced = unless_stuck(running, path, patience, daemon.sync(path, true, PATIENCE)).await?;
    if args.force_snapshot {
        synced = unless_stuck(running, path, patience, daemon.snapshot(path, "asked for", PATIENCE)).await?;
    }
    if args.enforce_retention {
        unless_stuck(running, path, patience, daemon.enforce_retention(path)).await?;
    }
    Ok(synced.durable)
}

/// Waits for `work` as long as nothing is wrong for too long.
async fn unless_stuck<T>(
    running: &Running,
    path: &Path,
    patience: Duration,
    work: impl Future<Output = Result<T, ControlError>>,
) -> anyhow::Result<T> {
    let stuck = async {
        let mut watch = Watch::default();
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some(status) = running.daemon.status_of(path)
                && let Some(why) = watch.look(&status, Instant::now(), patience)
            {
                return anyhow!(why);
            }
        }
    };
    tokio::select! {
        outcome = work => outcome.map_err(why),
        error = stuck => Err(error),
    }
}

/// The log says which database it is.
fn why(error: ControlError) -> anyhow::Error {
    match error {
        ControlError::Failed { why, .. } => anyhow!(why),
        error => error.into(),
    }
}

/// Since when what has been wrong.
#[derive(Default)]
struct Watch {
    database: Option<Instant>,
    replica: Option<Instant>,
}

impl Watch {
    /// What has been wrong for too long.
    fn look(&mut self, status: &Status, now: Instant, patience: Duration) -> Option<String> {
        let replica = status.replicas.iter().find(|replica| replica.error.is_some());
        if let Some(replica) = replica.filter(|replica| replica.fenced) {
            return replica.error.as_ref().map(|error| format!("replica {}: {error}", replica.url));
        }
        if is_long(&mut self.database, status.error.is_some(), now, TROUBLE) {
            return status.error.clone();
        }
        let long = is_long(&mut self.replica, replica.is_some(), now, patience);
        replica
            .filter(|_| long)
            .map(|replica| format!("replica {}: {}", replica.url, replica.error.as_deref().unwrap_or_default()))
    }
}

fn is_long(since: &mut Option<Instant>, is_wrong: bool, now: Instant, patience: Duration) -> bool {
    if !is_wrong {
        *since = None;
        return false;
    }
    now.duration_since(*since.get_or_insert(now)) >= patience
}

#[cfg(test)]
mod tests {
    use litestream_replicate::daemon::{Counters, Phase, ReplicaCounters, ReplicaStatus};

    use super::*;

    fn status(database: Option<&str>, replica: Option<&str>, fenced: bool) -> Status {
        let replica = ReplicaStatus {
            url: "file:///backup".into(),
            kind: "file",
            txid: None,
            lag: Duration::ZERO,
            last_sync: None,
            waiting: 1,
            error: replica.map(str::to_owned),
            fenced,
            needs_snapshot: false,
            counters: ReplicaCounters::default(),
        };
        Status {
            path: "/a.db".into(),
            phase: Phase::Live,
            txid: ltx::Txid(1),
            size: 0,
            wal_size: 0,
            error: database.map(str::to_owned),
            concern: None,
            disk_full: false,
            replicas: vec![replica],
            counters: Counters::default(),
        }
    }

    #[test]
    fn what_is_wrong_for_long_is_a_failure() {
        let (start, patience) = (Instant::now(), Duration::from_secs(60));
        let mut watch = Watch::default();
        let mut look = |status: &Status, seconds| watch.look(status, start + Duration::from_secs(seconds), patience);
        let (well, locked, gone) =
            (status(None, None, false), status(Some("locked"), None, false), status(None, Some("gone"), false));
        assert_eq!([look(&locked, 0), look(&locked, 4), look(&well, 5), look(&locked, 6)], [const { None }; 4]);
        assert_eq!(look(&locked, 11).as_deref(), Some("locked"));
        assert_eq!([look(&gone, 20), look(&gone, 79)], [const { None }; 2]);
        assert_eq!(look(&gone, 80).as_deref(), Some("replica file:///backup: gone"));
        assert!(look(&status(None, Some("another writer"), true), 81).unwrap().contains("another writer"));
    }
}
