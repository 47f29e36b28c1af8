//! Following: a local copy of a replica that goes on as the replica does.
//!
//! A poll is one LIST of level 0 from the copy's TXID on. What is new is read and verified whole, and then the copy changes at once to the newest TXID: all
//! that its readers ever see are states of the replica. Only where level 0 does not go on are the other levels looked at.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use litestream_pageindex::{
    Error as PlanError, Listing, MAX_REPLANS, Plan, Replannable, exact, open_file, replan_from,
};
use litestream_storage::{FileInfo, Level, Replica, Scope};
use ltx::{Commit, PageSize, Timestamp, Txid};

use crate::copy::{Attempt, Change, LocalCopy, Prepared, make_ready};
use crate::finish::finish;
use crate::lock::Patience;
use crate::restore::{Fetched, blocking, fetch};
use crate::sidecar::{LastFile, Sidecar, State, write_txid};
use crate::{Check, Error, Output, Overwrite, RestoreOptions, Restored, Result};

/// The longest wait between two tries while something fails.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Where level 0 has nothing, not even the file that the copy ends with, only every so many polls looks further.
const LOOK_FURTHER_EVERY: u32 = 10;

/// How to follow.
#[derive(Clone)]
pub struct FollowOptions {
    /// How to restore at first, and how many requests may run at once later. Its target is not looked at.
    pub restore: RestoreOptions,
    /// How long from one look for new transactions to the next. Default: 1 s.
    pub interval: Duration,
    /// How long to wait for readers of the copy to end, before that is told and tried again later. Default: 5 s.
    pub patience: Duration,
    /// Told what happens, from whatever thread.
    pub tell: Arc<dyn Fn(&Event) + Send + Sync>,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self {
            restore: RestoreOptions::default(),
            interval: Duration::from_secs(1),
            patience: Duration::from_secs(5),
            tell: Arc::new(|_| {}),
        }
    }
}

impl std::fmt::Debug for FollowOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FollowOptions")
            .field("restore", &self.restore)
            .field("interval", &self.interval)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// What happens while following.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The copy has gone on.
    Applied(Applied),
    /// Something stands in the way; it is tried again for ever. Told once, until it is over.
    Failing(Error),
    /// It works again.
    Recovered,
}

/// A step of the copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What the copy had before.
    pub from: Txid,
    /// What it has now.
    pub txid: Txid,
    /// When that transaction was captured.
    pub time: Timestamp,
    /// How many files were read.
    pub files: usize,
    /// How many bytes they have.
    pub bytes: u64,
    /// How many pages of the copy have changed.
    pub pages: usize,
    /// The copy's size in pages.
    pub commit: Commit,
}

/// A local copy and the replica that it follows.
#[derive(Debug)]
pub struct Follower {
    replica: Replica,
    copy: LocalCopy,
    state: State,
    options: FollowOptions,
    /// What has been read, but could not be applied yet.
    read: Option<Step>,
    /// How many polls in a row have found nothing at all on level 0.
    silent: u32,
}

/// Where the copy goes next.
#[derive(Debug)]
struct Step {
    change: Arc<Change>,
    files: usize,
    bytes: u64,
}

/// A step of which only the last part is to be done, the one that is not given up.
struct Ready {
    attempt: Attempt,
    files: usize,
    bytes: u64,
}

impl Follower {
    /// Restores a replica to `path`, as a copy to be followed: as [`restore_plan`](crate::restore_plan) does, but page 1 says that the database is in
    /// rollback mode.
    ///
    /// # Errors
    /// As [`restore_plan`](crate::restore_plan), and [`Error::FollowedAlready`].
    pub async fn restore(
        replica: &Replica,
        plan: Plan,
        listing: Listing,
        path: &Path,
        options: &FollowOptions,
    ) -> Result<(Self, Restored)> {
        Output::check(path, options.restore.overwrite)?;
        // As long as this is open, no other follower takes up what is to be replaced.
        let _replaced = match LocalCopy::open(path) {
            Err(error @ Error::FollowedAlready { .. }) => return Err(error),
            replaced => replaced.ok(),
        };
        let (state, restored) = replan_from(replica, plan, listing, |plan, listing| async move {
            let plan = exact(replica, plan, listing).await?;
            first_restore(replica, &plan, path, &options.restore).await
        })
        .await?;
        let copy = LocalCopy::open(path)?;
        write_txid(copy.path(), state.txid)?;
        Ok((Self::new(replica, copy, state, options), restored))
    }

    /// Takes up a copy that was followed before, where it was left; the replica is the one among `replicas` that it is a copy of. What a killed follower
    /// has left half done is rolled back, which waits for readers of the copy for as long as they take.
    ///
    /// # Errors
    /// [`Error::NotFollowed`], [`Error::OtherReplica`], [`Error::FollowedAlready`], [`Error::CopyChanged`].
    pub async fn resume(replicas: &[Replica], path: &Path, options: &FollowOptions) -> Result<Self> {
        let place = std::fs::canonicalize(path).map_err(Error::io("open", path))?;
        let Some(sidecar) = Sidecar::read(&place)? else {
            let why = "nothing tells what it is a copy of: no -follow that can be read lies beside it";
            return Err(Error::NotFollowed { path: place, why });
        };
        let Some(replica) = replicas.iter().find(|replica| **replica.url() == *sidecar.replica) else {
            let ours = replicas.iter().map(|replica| replica.url().to_string()).collect::<Vec<_>>().join(", ");
            return Err(Error::OtherReplica { path: place, theirs: sidecar.replica, ours });
        };
        let copy = LocalCopy::open(&place)?;
        // Again: another follower may have ended meanwhile.
        let sidecar = Sidecar::read(&place)?.unwrap_or(sidecar);
        let mut failing = false;
        let state = loop {
            match copy.state(sidecar.clone(), Patience::new(options.patience)).await {
                Err(error @ Error::Busy { .. }) => {
                    if !failing {
                        (options.tell)(&Event::Failing(error));
                    }
                    failing = true;
                    tokio::time::sleep(options.interval).await;
                }
                state => break state?,
            }
        };
        if failing {
            (options.tell)(&Event::Recovered);
        }
        write_txid(copy.path(), state.txid)?;
        Ok(Self::new(replica, copy, state, options))
    }

    fn new(replica: &Replica, copy: LocalCopy, state: State, options: &FollowOptions) -> Self {
        let options = options.clone();
        Self { replica: replica.clone(), copy, state, options, read: None, silent: 0 }
    }

    /// The TXID that the copy has.
    #[must_use]
    pub const fn txid(&self) -> Txid {
        self.state.txid
    }

    /// When its last transaction was captured.
    #[must_use]
    pub const fn time(&self) -> Timestamp {
        self.state.time
    }

    /// The size of its pages.
    #[must_use]
    pub const fn page_size(&self) -> PageSize {
        self.state.stamp.page_size
    }

    /// The replica's address, without secrets.
    #[must_use]
    pub fn url(&self) -> &str {
        self.replica.url()
    }

    /// Follows until `stop` is ready, or something fails that will not pass. A change that has begun is carried to its end.
    ///
    /// # Errors
    /// [`Error::CopyChanged`], [`Error::Rewound`], [`Error::Rewritten`], [`Error::PageSize`], [`Error::Io`]. The copy stays as it is then.
    pub async fn run(&mut self, stop: impl Future<Output = ()>) -> Result<()> {
        let mut stop = pin!(stop);
        let mut failures = 0u32;
        loop {
            let ready = tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                ready = Box::pin(self.next()) => ready,
            };
            match ready {
                Err(error) if error.may_pass() => {
                    if failures == 0 {
                        (self.options.tell)(&Event::Failing(error));
                    }
                    failures += 1;
                }
                ready => {
                    let ready = ready?;
                    if failures > 0 {
                        (self.options.tell)(&Event::Recovered);
                    }
                    failures = 0;
                    if let Some(ready) = ready {
                        let applied = self.finish(ready).await?;
                        (self.options.tell)(&Event::Applied(applied));
                    }
                }
            }
            tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                () = tokio::time::sleep(self.wait(failures)) => {}
            }
        }
    }

    /// Looks once and goes on to the newest TXID. `None` where there is nothing new.
    ///
    /// # Errors
    /// As [`Follower::run`], and what would be tried again there.
    pub async fn step(&mut self) -> Result<Option<Applied>> {
        match self.next().await? {
            Some(ready) => self.finish(ready).await.map(Some),
            None => Ok(None),
        }
    }

    fn wait(&self, failures: u32) -> Duration {
        let interval = self.options.interval;
        interval.saturating_mul(1 << failures.min(16)).min(LONGEST_WAIT.max(interval))
    }

    /// Reads what is new and gets it ready. May be given up at any moment.
    async fn next(&mut self) -> Result<Option<Ready>> {
        if self.read.is_none() {
            let Some(plan) = self.look().await? else { return Ok(None) };
            self.read = self.read_files(plan).await?;
        }
        let Some(Step { change, files, bytes }) = &self.read else { return Ok(None) };
        let (before, after) = (self.page_size(), change.page_size());
        if before != after {
            return Err(Error::PageSize { url: self.replica.url().clone(), before, after, txid: change.txid() });
        }
        let patience = Patience::new(self.options.patience);
        let attempt = self.copy.prepare(change, &self.state.stamp, patience).await?;
        Ok(Some(Ready { attempt, files: *files, bytes: *bytes }))
    }

    /// Makes the change.
    async fn finish(&mut self, ready: Ready) -> Result<Applied> {
        let Ready { attempt, files, bytes } = ready;
        let (next, pages) = match attempt {
            Attempt::Same(next) => {
                self.write_sidecar(next.clone(), None).await?;
                (next, 0)
            }
            Attempt::Prepared(prepared) => self.commit(*prepared).await?,
        };
        let from = std::mem::replace(&mut self.state, next).txid;
        self.read = None;
        let State { txid, time, stamp, .. } = self.state;
        let path = self.copy.path().to_owned();
        blocking(move || write_txid(&path, txid)).await?;
        Ok(Applied { from, txid, time, files, bytes, pages, commit: stamp.pages })
    }

    async fn commit(&self, prepared: Prepared) -> Result<(State, usize)> {
        let (next, pages) = (prepared.next().clone(), prepared.pages());
        // First, so that whatever the copy is found with, it is known.
        self.write_sidecar(self.state.clone(), Some(next.clone())).await?;
        prepared.commit().await?;
        Ok((next, pages))
    }

    async fn write_sidecar(&self, have: State, next: Option<State>) -> Result<()> {
        let sidecar = Sidecar { replica: self.replica.url().to_string(), have: Some(have), next };
        let path = self.copy.path().to_owned();
        blocking(move || sidecar.write(&path)).await
    }

    /// Looks for files that go on from what the copy has: in level 0, and only where that does not go on, everywhere.
    async fn look(&mut self) -> Result<Option<Plan>> {
        let have = self.state.txid;
        let page = self.replica.list_page(Scope::Level(Level::ZERO), have, None).await?;
        let (known, new): (Vec<FileInfo>, Vec<FileInfo>) =
            page.files.into_iter().partition(|file| file.name.max <= have);
        let known = known.into_iter().find(|file| file.name.max == have);
        if let Some(known) = &known {
            self.is_same_history(known).await?;
        }
        let Some(last) = new.last() else {
            // The newest file of level 0 is never deleted. Where it is not there, something is odd, or nobody writes level 0.
            let is_silent = known.is_none();
            let look = is_silent && self.silent.is_multiple_of(LOOK_FURTHER_EVERY);
            self.silent = if is_silent { self.silent + 1 } else { 0 };
            return if look { self.look_everywhere().await } else { Ok(None) };
        };
        let txid = last.name.max;
        let mut reached = have;
        let follows = |file: &FileInfo| {
            let follows = file.name.min == reached.next();
            reached = file.name.max;
            follows
        };
        if page.next.is_none() && new.iter().all(follows) {
            return Ok(Some(Plan { files: new, txid }));
        }
        self.look_everywhere().await
    }

    /// Whether the replica's file of the copy's TXID is the one that the copy has.
    async fn is_same_history(&mut self, file: &FileInfo) -> Result<()> {
        let last = &self.state.last;
        let is_listed_so = last.etag.is_some() && last.etag == file.object.etag && last.size == file.size();
        if is_listed_so && last.level == file.level && last.name == file.name {
            return Ok(());
        }
        // A file may be put again with the same content. And where the copy's is one of a higher level, this one is at least known from now on.
        let opened = open_file(&self.replica, file).await?;
        let found = LastFile::new(&(file.clone(), opened.trailer.file_checksum));
        if last.level == file.level && last.name == file.name && last.checksum != found.checksum {
            return Err(Error::Rewritten { key: file.key().to_owned(), txid: self.state.txid });
        }
        self.state.last = found;
        Ok(())
    }

    /// Looks at all levels. What is missing is looked for again before it is believed: LISTs are not one snapshot.
    async fn look_everywhere(&self) -> Result<Option<Plan>> {
        let have = self.state.txid;
        let newest = Listing::newest(&self.replica).await?;
        let listing = match Plan::onward(&newest, have) {
            Some(plan) => return Ok(Some(exact(&self.replica, plan, newest).await?)),
            None if newest.newest_txid() == Some(have) => return Ok(None),
            None => Listing::full(&self.replica).await?,
        };
        if let Some(plan) = Plan::onward(&listing, have) {
            return Ok(Some(exact(&self.replica, plan, listing).await?));
        }
        let url = self.replica.url().clone();
        match listing.newest_txid() {
            None => Err(PlanError::NoBackup { url }.into()),
            Some(found) if found < have => Err(Error::Rewound { url, have, found }),
            Some(found) if found == have => Ok(None),
            Some(found) => {
                let beyond = listing.files().filter(|file| file.name.max > have).map(|file| file.name.min);
                Err(PlanError::NonContiguous { url, have, next: beyond.min().unwrap_or(found) }.into())
            }
        }
    }

    /// Reads the files of a plan; where they vanish meanwhile, those that have taken their place.
    async fn read_files(&self, mut plan: Plan) -> Result<Option<Step>> {
        let mut tries = 0;
        loop {
            match fetch(&self.replica, &plan, self.copy.path(), &self.reading()).await {
                Ok(fetched) => {
                    let Restored { files, bytes, .. } = fetched.restored;
                    let is_whole = plan.files.first().is_some_and(|first| first.name.is_snapshot());
                    return Ok(Some(Step { change: Arc::new(Change::new(fetched, is_whole)), files, bytes }));
                }
                Err(error) if error.wants_new_plan() && tries < MAX_REPLANS => {
                    tracing::info!(%error, "a new file is gone: looking again");
                    tries += 1;
                }
                Err(Error::Plan(PlanError::PageSizeChanged { before, after, .. })) => {
                    return Err(Error::PageSize { url: self.replica.url().clone(), before, after, txid: plan.txid });
                }
                Err(error) => return Err(error),
            }
            match self.look_everywhere().await? {
                Some(other) => plan = other,
                None => return Ok(None),
            }
        }
    }

    /// The files go to a temporary file beside the copy, which is there already.
    fn reading(&self) -> RestoreOptions {
        RestoreOptions {
            overwrite: Overwrite::Replace,
            progress: Arc::new(|_| {}),
            check: None,
            ..self.options.restore.clone()
        }
    }
}

/// Restores a plan as a copy that will be followed.
async fn first_restore(
    replica: &Replica,
    plan: &Plan,
    path: &Path,
    options: &RestoreOptions,
) -> Result<(State, Restored)> {
    let fetched = fetch(replica, plan, path, options).await?;
    let state = make_ready(&fetched)?;
    let Fetched { output, unlink, restored, .. } = fetched;
    let place = output.path().to_owned();
    let sidecar = Sidecar { replica: replica.url().to_string(), have: None, next: Some(state.clone()) };
    let inner = options.check.clone();
    // Last before the copy appears: a crash leaves no copy of which nothing is known.
    let check: Arc<Check> = Arc::new(move |temporary| {
        if let Some(inner) = &inner {
            inner(temporary)?;
        }
        sidecar.write(&place).map_err(|error| error.to_string())
    });
    finish(output, unlink, &RestoreOptions { check: Some(check), ..options.clone() }).await?;
    Ok((state, restored))
}
