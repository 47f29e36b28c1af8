//! `litestream compact`: what the daemon does by and by, now. Level after level, a snapshot, then retention.

use std::collections::HashSet;
use std::sync::Arc;

use litestream_pageindex::compact::{MergeOptions, compact_into, next_inputs, snapshot, snapshot_inputs};
use litestream_pageindex::retention::{RetentionPolicy, expired};
use litestream_pageindex::{Error as PlanError, Listing, MAX_REPLANS};
use litestream_storage::{FileInfo, Level, ObjectInfo, Replica};
use ltx::{FileName, Timestamp};
use serde::Serialize;
use tabled::Tabled;

use crate::args::{Common, CompactArgs};
use crate::output;
use crate::place::{self, Place};

#[derive(Serialize, Tabled)]
struct Step {
    #[tabled(skip)]
    replica: String,
    action: &'static str,
    level: u8,
    min_txid: String,
    max_txid: String,
    /// How many files went into it.
    inputs: usize,
    size: u64,
}

impl Step {
    fn new(replica: &Replica, action: &'static str, file: &FileInfo, inputs: usize) -> Self {
        Self {
            replica: replica.url().to_string(),
            action,
            level: file.level.get(),
            min_txid: file.name.min.to_string(),
            max_txid: file.name.max.to_string(),
            inputs,
            size: file.size(),
        }
    }
}

pub(crate) async fn run(common: &Common, args: &CompactArgs) -> anyhow::Result<()> {
    let place = place::find_with_settings(common, &args.source).await?;
    let mut steps = Vec::new();
    for replica in &place.replicas {
        let work = Work { replica, args, place: &place };
        work.run(&mut steps).await?;
    }
    if args.json {
        return output::json(&steps);
    }
    if steps.is_empty() {
        return output::line("nothing to do");
    }
    output::table(&steps)?;
    if args.dry_run { output::line("nothing was changed (--dry-run)") } else { Ok(()) }
}

/// What to delete.
enum Retention {
    /// What this policy does not need.
    Apply(RetentionPolicy),
    /// Nothing: so it was said.
    Off,
    /// Nothing: nobody has said how far back the replica must reach.
    Unknown,
}

struct Work<'a> {
    replica: &'a Replica,
    args: &'a CompactArgs,
    place: &'a Place,
}

impl Work<'_> {
    async fn run(&self, steps: &mut Vec<Step>) -> anyhow::Result<()> {
        let mut listing = Listing::full(self.replica).await?;
        if listing.is_empty() {
            return Err(PlanError::NoBackup { url: self.replica.url().clone() }.into());
        }
        let found: HashSet<_> = listing.files().map(|file| file.object.key.clone()).collect();
        let levels =
            self.place.config.as_ref().map_or(3, |config| config.levels.len().min(litestream_config::MAX_LEVELS));
        for level in Level::all().skip(1).take(levels) {
            listing = self.level(level, listing, steps).await?;
        }
        if !self.args.no_snapshot {
            listing = self.snapshot(listing, steps).await?;
        }
        match self.retention() {
            Retention::Apply(policy) => self.retain(listing, &found, &policy, steps).await?,
            Retention::Off => {}
            Retention::Unknown => output::note(&format!(
                "{}: nothing is deleted by retention: no database of a configuration file has this replica, so how far back it must reach is not known; \
                 say it with --retention, such as --retention 24h",
                self.replica.url()
            )),
        }
        Ok(())
    }

    /// What the command line asks for, or else the replica's owner.
    fn retention(&self) -> Retention {
        let owner = self.place.config.as_ref().zip(self.place.database.as_ref());
        let configured = owner.map(|(config, database)| RetentionPolicy {
            l0: config.l0_retention,
            snapshots: database.settings.snapshot.retention,
        });
        match (self.args.retention, configured) {
            _ if self.args.no_retention => Retention::Off,
            (Some(snapshots), configured) => {
                Retention::Apply(RetentionPolicy { snapshots, ..configured.unwrap_or_default() })
            }
            (None, Some(_)) if owner.is_some_and(|(config, _)| !config.retention_enabled) => Retention::Off,
            (None, Some(policy)) => Retention::Apply(policy),
            (None, None) => Retention::Unknown,
        }
    }

    /// Compacts into one level. Returns the listing as it is then.
    async fn level(&self, level: Level, mut listing: Listing, steps: &mut Vec<Step>) -> anyhow::Result<Listing> {
        for attempt in 0.. {
            let inputs = next_inputs(&listing, level);
            let Some(name) = span(&inputs) else { return Ok(listing) };
            if self.args.dry_run {
                return Ok(self.pretend("compact", level, name, &inputs, &listing, steps));
            }
            let size = inputs.iter().map(FileInfo::size).sum();
            let what = format!("level {level}");
            let done = self.with_progress(&what, size, |scratch, options| {
                let listing = &listing;
                async move { compact_into(self.replica, listing, level, scratch.path(), &options).await }
            });
            match done.await {
                Err(error) if error.wants_new_plan() && attempt < MAX_REPLANS => {}
                Err(error) => return Err(error.into()),
                Ok(Some(file)) => {
                    steps.push(Step::new(self.replica, "compact", &file, inputs.len()));
                    return Ok(Listing::full(self.replica).await?);
                }
                Ok(None) => return Ok(Listing::full(self.replica).await?),
            }
            listing = Listing::full(self.replica).await?;
        }
        Ok(listing)
    }

    async fn snapshot(&self, mut listing: Listing, steps: &mut Vec<Step>) -> anyhow::Result<Listing> {
        for attempt in 0.. {
            let Some(plan) = snapshot_inputs(self.replica, &listing)? else { return Ok(listing) };
            if self.args.dry_run {
                let Some(name) = span(&plan.files) else { return Ok(listing) };
                return Ok(self.pretend("snapshot", Level::SNAPSHOT, name, &plan.files, &listing, steps));
            }
            let done = self.with_progress("snapshot", plan.size(), |scratch, options| {
                let listing = &listing;
                async move { snapshot(self.replica, listing, scratch.path(), &options).await }
            });
            match done.await {
                Err(error) if error.wants_new_plan() && attempt < MAX_REPLANS => {}
                Err(error) => return Err(error.into()),
                Ok(made) => {
                    steps.extend(made.map(|file| Step::new(self.replica, "snapshot", &file, plan.files.len())));
                    return Ok(Listing::full(self.replica).await?);
                }
            }
            listing = Listing::full(self.replica).await?;
        }
        Ok(listing)
    }

    /// What was not `found` at the start has just been made, whatever its date: what was merged into it stays for a while.
    async fn retain(
        &self,
        listing: Listing,
        found: &HashSet<Arc<str>>,
        policy: &RetentionPolicy,
        steps: &mut Vec<Step>,
    ) -> anyhow::Result<()> {
        let now = Timestamp(jiff::Timestamp::now().as_millisecond());
        let dated = listing.into_files().map(|mut file| {
            if !found.contains(&file.object.key) {
                file.object.modified = now;
            }
            file
        });
        let files = expired(&Listing::of(dated), policy, now);
        if !self.args.dry_run {
            self.replica.delete(&files).await?;
        }
        steps.extend(files.iter().map(|file| Step::new(self.replica, "delete", file, 0)));
        Ok(())
    }

    /// What the listing would be.
    fn pretend(
        &self,
        action: &'static str,
        level: Level,
        name: FileName,
        inputs: &[FileInfo],
        listing: &Listing,
        steps: &mut Vec<Step>,
    ) -> Listing {
        let size = inputs.iter().map(FileInfo::size).sum();
        // As of everything that is made, retention says when.
        let object = ObjectInfo { key: "".into(), size, etag: None, modified: Timestamp(0), time: None };
        let file = FileInfo { level, name, object };
        steps.push(Step::new(self.replica, action, &file, inputs.len()));
        Listing::of(listing.files().cloned().chain([file]))
    }

    /// Runs a merge with a progress bar and a folder for what it makes.
    async fn with_progress<F>(
        &self,
        what: &str,
        size: u64,
        merge: impl FnOnce(Arc<tempfile::TempDir>, MergeOptions) -> F,
    ) -> litestream_pageindex::Result<Option<FileInfo>>
    where
        F: Future<Output = litestream_pageindex::Result<Option<FileInfo>>>,
    {
        let scratch = tempfile::Builder::new().prefix("litestream-compact-").tempdir();
        let scratch = scratch.map_err(|source| PlanError::Io {
            operation: format!("create a temporary folder in {}", std::env::temp_dir().display()),
            source,
        })?;
        let bar = output::progress(what);
        bar.set_length(size);
        let shown = bar.clone();
        let progress = move |bytes| shown.set_position(bytes);
        let options = MergeOptions { progress: Some(Arc::new(progress)), ..MergeOptions::default() };
        let merged = merge(Arc::new(scratch), options).await;
        bar.finish_and_clear();
        merged
    }
}

/// The TXIDs that files cover together.
fn span(files: &[FileInfo]) -> Option<FileName> {
    Some(FileName::new(files.first()?.name.min, files.last()?.name.max))
}
