//! Drills: now and then a replica is restored, and compared with the database that it is a replica of.
//!
//! The database is summed up from its own files, page by page, at a moment when a TXID was captured; the replica is then restored to that TXID, beside
//! what is ours of the database. Where they differ, something is wrong that nothing else has noticed: that is an alarm, and all of the
//! database is captured anew.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use litestream_hydrate::{RestoreOptions, restore};
use litestream_pageindex::Target as Moment;
use litestream_storage::Kind;
use ltx::{Pgno, Timestamp};

use super::database::Database;
use super::line::Line;
use super::{Shared, blocking};
use crate::Digest;

/// How long a replica has to hold what it is to be compared with.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often, and after what pause, a replica is restored until it counts as damaged.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// How many pages are named that differ.
const NAMED: usize = 8;

/// What came of a drill.
enum Outcome {
    Same,
    Different(Vec<Pgno>),
    /// It is damaged.
    Unrestorable(String),
}

/// Whether an error of a restore says something of the replica, rather than of the way to it or of this machine.
fn is_damage(error: &litestream_hydrate::Error) -> bool {
    use litestream_hydrate::Error as Restore;
    use litestream_pageindex::Error as Plan;
    let of_store = |error: &litestream_storage::Error| error.kind() == Kind::NotFound;
    match error {
        Restore::Storage(error) | Restore::Plan(Plan::Storage(error)) => of_store(error),
        // It was merged away before it could be restored: with a very short retention.
        Restore::Plan(Plan::TransactionNotAvailable { .. }) => false,
        Restore::Plan(error) => !matches!(error, Plan::Io { .. }),
        _ => false,
    }
}

impl Database {
    /// How often it is drilled, if it is.
    fn drill_interval(&self) -> Option<Duration> {
        let intervals = self.lines.iter().filter_map(|line| line.target.validation_interval);
        intervals.filter(|interval| !interval.is_zero()).min()
    }

    /// Puts the next drill off until an interval has passed, from now.
    pub(crate) fn put_off_drill(&self, shared: &Shared, now: Timestamp) {
        let due = self.drill_interval().map_or(i64::MAX, |interval| {
            i64::try_from(interval.as_millis()).map_or(i64::MAX, |interval| now.0.saturating_add(interval))
        });
        self.drill_due.store(due, Ordering::Relaxed);
        shared.due(due);
    }

    /// Whether a drill is due, of something that no drill has seen yet. Whoever is told so must ask for it.
    pub(crate) fn claim_drill(&self, shared: &Shared, now: Timestamp) -> bool {
        if self.drill_due.load(Ordering::Relaxed) > now.0 {
            return false;
        }
        self.put_off_drill(shared, now);
        self.wants_drill()
    }

    /// Restores what each replica holds at the digest's TXID, and compares.
    pub(crate) async fn drill(self: Arc<Self>, shared: Arc<Shared>, digest: Arc<Digest>) {
        let lines = self.lines.iter().filter(|line| line.target.validation_interval.is_some() && !line.is_fenced());
        for line in lines {
            let (path, url, txid) = (self.path().display(), line.target.replica.url(), digest.txid());
            match self.compare(&shared, line, &digest).await {
                Ok(Outcome::Same) => {
                    tracing::info!(%path, %url, %txid, pages = digest.commit().0, "drill passed: restored, and the same");
                    self.drilled(true, None);
                }
                Ok(Outcome::Different(pages)) => {
                    let named: Vec<String> = pages.iter().take(NAMED).map(ToString::to_string).collect();
                    let (count, named) = (pages.len(), named.join(", "));
                    self.alarm(&shared, line, &format!("it restores to another database than the live one at transaction {txid}: {count} pages differ ({named})"));
                }
                Ok(Outcome::Unrestorable(why)) => {
                    self.alarm(&shared, line, &format!("it cannot be restored to transaction {txid}: {why}"));
                }
                Err(why) => {
                    tracing::warn!(%path, %url, %txid, why, "a drill could not be made; the next one is tried in time");
                }
            }
        }
        self.face().drilling = false;
    }

    fn alarm(self: &Arc<Self>, shared: &Arc<Shared>, line: &Line, what: &str) {
        let (path, url) = (self.path().display(), line.target.replica.url());
        tracing::error!(%path, %url, what, "DRILL FAILED; taking a new snapshot");
        self.drilled(false, Some(format!("a drill of {url} failed: {what}; a new snapshot follows")));
        self.want_snapshot("a drill has failed");
        self.rouse(shared);
    }

    async fn compare(&self, shared: &Shared, line: &Line, digest: &Arc<Digest>) -> Result<Outcome, String> {
        let txid = digest.txid();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !line.holds(txid)? {
            let progress = self.progress.notified();
            if line.holds(txid)? {
                break;
            }
            if tokio::time::timeout_at(deadline, progress).await.is_err() {
                return Err(line.error().unwrap_or_else(|| "it is not uploaded yet".to_owned()));
            }
        }
        let Ok(_permit) = shared.merges.acquire().await else { return Err("the daemon ends".to_owned()) };
        let folder = self.settings.meta_path.join("drill");
        let path = folder.join("restored.db");
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        remove(&folder).map_err(failed)?;
        crate::files::create_folder(&folder).map_err(failed)?;
        let options = RestoreOptions { target: Moment::Txid(txid), ..RestoreOptions::default() };
        let mut restored = Box::pin(restore(&line.target.replica, &path, &options)).await;
        for _ in 1..TRIES {
            if !restored.as_ref().is_err_and(is_damage) {
                break;
            }
            // What is really damaged stays so; what was merged and deleted just then does not.
            tokio::time::sleep(PAUSE).await;
            restored = Box::pin(restore(&line.target.replica, &path, &options)).await;
        }
        let outcome = match restored {
            Ok(_) => {
                let digest = digest.clone();
                let compared = blocking(move || {
                    let file = crate::files::open_own(&path)?;
                    digest.compare(std::io::BufReader::with_capacity(1 << 20, file))
                });
                compared.await.unwrap_or_else(|| Err(std::io::Error::other("it could not be read"))).map_err(failed)
            }
            Err(error) if is_damage(&error) => {
                remove(&folder).map_err(failed)?;
                return Ok(Outcome::Unrestorable(error.to_string()));
            }
            Err(error) => Err(error.to_string()),
        };
        remove(&folder).map_err(failed)?;
        Ok(match outcome? {
            pages if pages.is_empty() => Outcome::Same,
            pages => Outcome::Different(pages),
        })
    }
}

fn remove(folder: &std::path::Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
