//! One replica of a database: what it holds, what waits to go there, and bringing it there in order.
//!
//! Files go up one after the other, each the next TXID, so that a TXID can be seen only when all below it can. What is captured meanwhile waits in its
//! folder; capturing never waits for uploading. A replica that lacks what comes before a file gets a base first: all of the database, as a
//! snapshot.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use litestream_pageindex::fence::{self, Next, Put};
use litestream_pageindex::upkeep::{Kept, Schedule, Upkeep};
use litestream_pageindex::{Listing, open_file};
use litestream_storage::{Body, FileInfo, GetRange, Kind, Level, Scope};
use ltx::{Checksum, Decoder, Encoder, FileName, HEADER_LEN, Header, PageSize, Timestamp, Txid};
use tokio::sync::Notify;

use super::Shared;
use super::spec::{Options, Target};
use super::status::{ReplicaCounters, ReplicaStatus};
use crate::Left;
use crate::stage::{Had, Stage, Staged};

/// Longer files are sent from where they lie.
const IN_MEMORY: u64 = 8 << 20;
/// The shortest and the longest pause after a failed upload; in between a quarter of the time for which uploads have failed.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// For how long the worst lag is remembered.
const WORST_FOR: Duration = Duration::from_secs(60);
/// How long what it answered counts for a database that could not be captured then.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Nothing is due.
const NEVER: i64 = i64::MAX;

/// A replica and its queue.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) target: Target,
    state: Mutex<State>,
    /// Wakes whoever waits until a failed upload may be tried again.
    pub(crate) hurry: Notify,
    upkeep: tokio::sync::Mutex<Option<Box<Upkeep>>>,
    /// When there is something to compact or to delete.
    due: AtomicI64,
}

#[derive(Debug, Default)]
struct State {
    /// Up to where all is there. Not known before it was asked.
    reached: Option<Txid>,
    /// Whether that is ours: put there by us, or proven. Otherwise nothing may be put on top of it but all of the database.
    ours: bool,
    /// Of what is there, as far as that is known.
    page_size: Option<PageSize>,
    /// What it answered last, and when: a database that cannot be captured is tried again more often than the replica need be asked.
    asked: Option<(Instant, Option<Left>, Found)>,
    queue: VecDeque<Job>,
    /// Up to which TXID everything was queued.
    queued: Txid,
    /// Whether nothing is to be uploaded for now.
    closed: bool,
    /// Whether somebody works on the queue.
    busy: bool,
    /// The store's time when we were last known to be the only writer.
    proof: Option<Timestamp>,
    failing: Option<Failing>,
    fenced: Option<String>,
    /// Whether it holds something else than was supposed, so that it is to be asked anew.
    mistaken: bool,
    /// What will tell whether what it holds is ours, where it did not answer yet.
    evidence: Option<Box<Evidence>>,
    /// One that waits, and is not there any more.
    gone: Option<Txid>,
    /// Whether it lacks what comes before the queue.
    needs_base: bool,
    /// Since when it gets nothing, because it was fenced or lacks what comes before.
    stuck: Option<Instant>,
    /// Whether a snapshot is wanted beside the next file that holds all.
    wants_base: bool,
    /// What was put since the last look at what is to be compacted.
    put: Vec<FileInfo>,
    last_sync: Option<Timestamp>,
    uploads: u64,
    bytes: u64,
    errors: u64,
    worst: (Duration, Option<Instant>),
}

#[derive(Clone, Debug)]
struct Job {
    staged: Staged,
    /// When its first commit was noticed.
    since: Instant,
}

#[derive(Clone, Debug)]
struct Failing {
    since: Instant,
    why: String,
    until: Instant,
}

/// What a replica holds last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// 0 where it is empty.
    pub(crate) txid: Txid,
    /// Of the file, where it is that of a single TXID.
    pub(crate) checksum: Option<Checksum>,
    /// Who wrote the file, where it is not.
    writer: Option<u64>,
    /// How large its pages are, where the file was asked.
    page_size: Option<PageSize>,
    /// Whether that is known to be ours, so that it was not asked.
    known: bool,
}

impl Found {
    pub(crate) const NOTHING: Self =
        Self { txid: Txid::ZERO, checksum: None, writer: None, page_size: None, known: false };
}

/// What is known here of what was captured, to tell whether what a replica holds is that.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    left: Option<Left>,
    /// Where captured files wait.
    folder: PathBuf,
}

impl Evidence {
    pub(crate) fn new(left: Option<Left>, meta: &Path) -> Self {
        Self { left, folder: meta.join("ltx").join("0") }
    }

    /// Whether that is certainly ours. Nothing is not another's.
    pub(crate) fn knows(&self, found: &Found) -> bool {
        if found.known || found.txid == Txid::ZERO {
            return true;
        }
        let Some(left) = self.left.filter(|left| found.txid <= left.txid) else { return false };
        match found.checksum {
            None => found.writer == Some(left.node_id),
            Some(theirs) => self.checksum(&left, found.txid) == Some(theirs),
        }
    }

    fn checksum(&self, left: &Left, txid: Txid) -> Option<Checksum> {
        if left.txid == txid {
            return Some(left.checksum);
        }
        let had = Had::find(&self.folder).filter(|had| had.txid == txid).map(|had| had.checksum);
        had.or_else(|| Stage::read_in(&self.folder, txid).ok().map(|staged| staged.checksum))
    }
}

/// What the queue's next file needs.
enum Way {
    /// It is the next one.
    Next,
    /// It is all of the database, and can stand for everything before.
    Base,
    /// Something is missing before it.
    Missing,
}

/// Why a file is not there.
enum Trouble {
    /// It may pass.
    Failed(String),
    Fenced(String),
    /// It holds something else than was supposed.
    Mistaken(String),
    /// It lacks what comes before.
    Missing,
    /// The file that was to go there is not here any more.
    Gone(String),
}

impl<E: std::error::Error> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

impl State {
    /// Whether there is something to do: to upload, or to ask what could not be asked before.
    fn has_work(&self) -> bool {
        !self.is_stuck() && (!self.queue.is_empty() || self.reached.is_none())
    }

    /// A file is there; put just now, or before.
    fn sent(&mut self, job: &Job, file: Option<FileInfo>) {
        let txid = job.staged.txid;
        self.reached = self.reached.max(Some(txid));
        self.ours = true;
        if self.queue.front().is_some_and(|front| front.staged.txid == txid) {
            self.queue.pop_front();
        }
        if let Some(file) = file {
            tracing::debug!(key = file.key(), bytes = file.size(), "uploaded");
            self.uploads += 1;
            self.bytes += file.size();
            self.put.push(file);
        }
        let lag = job.since.elapsed();
        let old = self.worst.1.is_none_or(|when| when.elapsed() > WORST_FOR);
        if old || lag > self.worst.0 {
            self.worst = (lag, Some(Instant::now()));
        }
    }

    /// Sees that the queue goes on from what the replica holds, if that is `ours`; otherwise it begins with all of the database.
    fn fit(&mut self, ours: bool) {
        self.ours = ours;
        let Some(reached) = self.reached else { return };
        // Whatever that stands on, nothing of it is needed once a snapshot lies beside it.
        self.wants_base |= !ours && reached > Txid::ZERO;
        self.queue.retain(|job| job.staged.txid > reached);
        let fits = match self.queue.front() {
            Some(front) => front.staged.complete || ours && front.staged.txid == reached.next(),
            None => ours && reached >= self.queued,
        };
        if fits {
            self.needs_base = false;
        } else if let Some(base) = self.queue.iter().position(|job| job.staged.complete) {
            self.queue.drain(..base);
            self.needs_base = false;
        } else {
            self.needs_base = true;
        }
    }

    /// Notes since when it gets nothing.
    fn note_stuck(&mut self) {
        let stuck = self.fenced.is_some() || self.needs_base;
        self.stuck = stuck.then(|| self.stuck.unwrap_or_else(Instant::now));
    }

    /// Whether nothing can be uploaded before something else has happened.
    fn is_stuck(&self) -> bool {
        self.fenced.is_some() || self.needs_base || self.closed
    }
}

impl Line {
    pub(crate) fn new(target: Target) -> Self {
        Self {
            target,
            state: Mutex::default(),
            hurry: Notify::new(),
            upkeep: tokio::sync::Mutex::default(),
            due: AtomicI64::new(NEVER),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it holds last, asked where it is not known. `left` is what an earlier process left behind: then one request is enough, as a rule.
    pub(crate) async fn newest(&self, left: Option<Left>) -> litestream_pageindex::Result<Found> {
        {
            let state = self.state();
            if let Some(txid) = state.reached.filter(|_| state.ours) {
                return Ok(Found { txid, known: true, ..Found::NOTHING });
            }
        }
        let asked = self.state().asked.filter(|(when, then, _)| when.elapsed() < REMEMBERED && *then == left);
        let found = match asked {
            Some((.., found)) => found,
            None => self.ask(left.map_or(Txid::ZERO, |left| left.txid)).await?,
        };
        let same = left.filter(|left| found.txid == left.txid && found.checksum == Some(left.checksum));
        let mut state = self.state();
        state.reached = Some(found.txid);
        state.page_size = found.page_size.or(same.map(|left| left.page_size));
        state.asked = asked.or_else(|| Some((Instant::now(), left, found)));
        Ok(found)
    }

    /// Asks what it holds last. Where we have captured up to `ours`, one request tells that it holds the same, and another one that it is the same.
    async fn ask(&self, ours: Txid) -> litestream_pageindex::Result<Found> {
        let replica = &self.target.replica;
        let (mut at, mut newest) = (None, None);
        if ours > Txid::ZERO {
            // Level 0 keeps its newest file, and nobody but us puts a snapshot beyond it.
            let page = replica.list(Scope::Level(Level::ZERO), ours).await?;
            at = page.at;
            newest = page.files.into_iter().max_by_key(|file| file.name.max);
        }
        if newest.is_none() {
            let listing = Listing::newest(replica).await?;
            at = listing.at();
            newest = listing.into_files().max_by_key(|file| (file.name.max, Reverse(file.level)));
        }
        self.state().proof = at;
        let Some(file) = newest else { return Ok(Found::NOTHING) };
        let mut found = Found { txid: file.name.max, ..Found::NOTHING };
        // Its checksum, or who wrote it, tells whether it is ours.
        if file.name == FileName::new(file.name.max, file.name.max) {
            let (_, last) = replica.get(file.key(), Some(&file.object), GetRange::Last(8)).await?;
            found.checksum = <[u8; 8]>::try_from(&last[..]).ok().map(|last| Checksum(u64::from_be_bytes(last)));
        }
        // How large its pages are, nothing here says of another file than that which was captured last.
        if found.txid != ours || found.checksum.is_none() {
            let (_, head) = replica.get(file.key(), Some(&file.object), GetRange::Span(0..HEADER_LEN as u64)).await?;
            let header =
                Header::parse(&head).map_err(|error| litestream_pageindex::Error::format(file.key(), error))?;
            found.writer = Some(header.node_id).filter(|writer| *writer != 0);
            found.page_size = Some(header.page_size);
        }
        Ok(found)
    }

    /// The file of this TXID in level 0, where it is small: what the log may show that it was made of.
    pub(crate) async fn file_of(&self, txid: Txid) -> Option<Vec<u8>> {
        let files = fence::level_0(&self.target.replica, txid).await.ok()?;
        let file = files.into_iter().find(|file| file.name == FileName::new(txid, txid))?;
        if file.size() > IN_MEMORY {
            return None;
        }
        self.target.replica.get_file(&file).await.ok().map(|bytes| bytes.to_vec())
    }

    /// Asks it what it holds where it could not be asked when the others were.
    async fn catch_up(&self) -> Result<(), Trouble> {
        let found = self.ask(Txid::ZERO).await?;
        let evidence = self.state().evidence.clone();
        let proven = match evidence {
            Some(evidence) => tokio::task::spawn_blocking(move || evidence.knows(&found))
                .await
                .map_err(|error| Trouble::Failed(error.to_string()))?,
            None => found.txid == Txid::ZERO,
        };
        let mut state = self.state();
        let txid = found.txid;
        if txid > state.queued {
            return Err(Trouble::Mistaken(format!("it holds transaction {txid}, of which nothing is known here")));
        }
        let queued = state.queue.iter().find(|job| job.staged.txid == txid).map(|job| job.staged.checksum);
        let ours = proven || queued.is_some() && queued == found.checksum;
        if !ours {
            self.say_foreign(txid);
        }
        state.reached = Some(txid);
        state.page_size = found.page_size;
        state.evidence = None;
        if let Some(gone) = state.gone.take() {
            state.queue.retain(|job| job.staged.txid != gone);
        }
        state.fit(ours);
        state.note_stuck();
        Ok(())
    }

    /// Says that what the replica holds is not known to be ours.
    pub(crate) fn say_foreign(&self, txid: Txid) {
        let url = self.target.replica.url();
        tracing::warn!(%url, "the replica's transaction {txid} is another one than ours, or cannot be compared: it gets a snapshot of the whole database");
    }

    /// Forgets what is known of the replica, and that another writer was there: it is asked again.
    pub(crate) fn forget(&self) {
        let mut state = self.state();
        (state.reached, state.fenced, state.failing) = (None, None, None);
        (state.needs_base, state.mistaken, state.ours, state.gone) = (false, false, false, None);
        (state.evidence, state.page_size, state.asked) = (None, None, None);
        state.note_stuck();
        // Another writer may have put files.
        state.put = Vec::new();
        drop(state);
        if let Ok(mut upkeep) = self.upkeep.try_lock() {
            *upkeep = None;
        }
    }

    /// Goes on without knowing what it holds: it does not answer, and is asked again before anything is uploaded.
    pub(crate) fn suppose(&self, why: &str, evidence: Evidence) {
        let (mut state, since) = (self.state(), Instant::now());
        state.evidence = Some(Box::new(evidence));
        state.failing = Some(Failing { since, why: why.to_owned(), until: since + PAUSE.0 });
    }

    /// Empties the queue, and fills it with what is still to go there of what was captured up to a TXID. `ours` says whether what is there is known
    /// to be ours.
    pub(crate) fn refill(&self, staged: &[Staged], captured: Txid, since: Instant, ours: bool) {
        let mut state = self.state();
        state.closed = false;
        state.queue = staged.iter().map(|staged| Job { staged: staged.clone(), since }).collect();
        state.queued = captured;
        state.asked = None;
        state.fit(ours);
        state.note_stuck();
        if state.queue.is_empty() && !state.needs_base && state.proof.is_some() {
            state.last_sync = state.proof;
        }
    }

    /// Adds to the queue. Hands out what need not go there any more, because all of the database follows.
    pub(crate) fn push(&self, staged: &[Staged], since: Instant) -> Vec<Staged> {
        let mut state = self.state();
        let Some(last) = staged.last() else { return Vec::new() };
        state.queued = last.txid;
        if state.fenced.is_some() {
            return Vec::new();
        }
        state.queue.extend(staged.iter().map(|staged| Job { staged: staged.clone(), since }));
        let mut dropped = Vec::new();
        if state.needs_base
            && let Some(base) = state.queue.iter().position(|job| job.staged.complete)
        {
            state.needs_base = false;
            dropped.extend(state.queue.drain(..base).map(|job| job.staged));
            state.note_stuck();
        }
        dropped
    }

    /// Ends with what is being uploaded.
    pub(crate) fn close(&self) {
        // What waits stays here, for the next time.
        self.state().closed = true;
        self.hurry.notify_one();
    }

    /// Takes the queue to work on it, where nobody does.
    pub(crate) fn take(&self) -> bool {
        let mut state = self.state();
        let idle = !state.busy && state.has_work();
        state.busy |= idle;
        idle
    }

    /// Whether it has no need of a TXID's file any more. Nothing, where it will never have any: another writer went on.
    pub(crate) fn is_past(&self, txid: Txid) -> Option<bool> {
        let state = self.state();
        let first = state.queue.front().map(|job| job.staged.txid);
        state.fenced.is_none().then_some(state.queued >= txid && first.is_none_or(|first| first > txid))
    }

    /// Whether it holds all up to a TXID; an error where it never will by itself.
    pub(crate) fn holds(&self, txid: Txid) -> Result<bool, String> {
        let state = self.state();
        match &state.fenced {
            Some(why) => Err(why.clone()),
            None => Ok(!state.needs_base && state.reached.is_some_and(|reached| reached >= txid)),
        }
    }

    pub(crate) fn reached(&self) -> Option<Txid> {
        self.state().reached
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.state().fenced.is_some()
    }

    /// Whether it is to be asked anew and gone on with, although another writer has been there.
    pub(crate) fn wants_anew(&self) -> bool {
        let state = self.state();
        state.fenced.is_some() && (self.target.auto_recover || state.mistaken)
    }

    /// Whether it lacks what comes before what is captured. One that is fenced gets nothing at all.
    pub(crate) fn needs_base(&self) -> bool {
        let state = self.state();
        state.needs_base && state.fenced.is_none()
    }

    pub(crate) fn want_base(&self) {
        self.state().wants_base = true;
    }

    /// How many files wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state().queue.len()
    }

    /// Why uploading fails, if it does.
    pub(crate) fn error(&self) -> Option<String> {
        let state = self.state();
        state.fenced.clone().or_else(|| state.failing.as_ref().map(|failing| failing.why.clone()))
    }

    /// How often uploading has failed.
    pub(crate) fn errors(&self) -> u64 {
        self.state().errors
    }

    /// Works on the queue until it is empty. `done` is told of each file that is there.
    pub(crate) async fn run(&self, shared: &Shared, done: impl Fn(&Staged)) {
        loop {
            let (job, until) = {
                let mut state = self.state();
                state.busy = state.has_work();
                if !state.busy {
                    return;
                }
                // Where it is not known what the replica holds, that comes first.
                let job = state.reached.and_then(|_| state.queue.front().cloned());
                (job, state.failing.as_ref().map(|failing| failing.until))
            };
            if let Some(until) = until.filter(|until| *until > Instant::now()) {
                tokio::select! {
                    () = tokio::time::sleep_until(until.into()) => {}
                    () = self.hurry.notified() => {}
                }
                if self.state().is_stuck() {
                    continue;
                }
            }
            let permits = if until.is_some() { &shared.retries } else { &shared.uploads };
            let Ok(permit) = permits.acquire().await else { return };
            let sent = match &job {
                Some(job) => Box::pin(self.send(&job.staged, &shared.options)).await,
                None => Box::pin(self.catch_up()).await.map(|()| None),
            };
            drop(permit);
            let there = sent.is_ok();
            // Those of a queue that was given up may be what others have had already.
            let given_up = self.note(job.as_ref(), sent, &shared.options);
            for job in job.iter().filter(|_| there).chain(&given_up) {
                done(&job.staged);
            }
        }
    }

    fn note(&self, job: Option<&Job>, sent: Result<Option<FileInfo>, Trouble>, options: &Options) -> VecDeque<Job> {
        let url = self.target.replica.url();
        let mut state = self.state();
        match sent {
            Ok(file) => {
                if state.failing.take().is_some() {
                    tracing::info!(%url, "the replica answers again");
                }
                if let Some(job) = job {
                    state.sent(job, file);
                }
                if state.queue.is_empty() && !state.needs_base {
                    state.last_sync = Some((options.clock)());
                }
            }
            Err(Trouble::Missing) => {
                state.needs_base = true;
                state.note_stuck();
            }
            Err(Trouble::Gone(why)) => {
                // Uploaded by another one of ours, which has deleted it; otherwise all of the database comes in its place.
                tracing::warn!(%url, why, "a file that was to be uploaded is gone; the replica is asked what it holds");
                (state.reached, state.ours) = (None, false);
                state.gone = job.map(|job| job.staged.txid);
            }
            Err(Trouble::Fenced(why)) => {
                tracing::error!(%url, why, "another writer went on: uploading has stopped");
                state.errors += 1;
                state.failing = None;
                state.fenced = Some(why);
                state.note_stuck();
                return std::mem::take(&mut state.queue);
            }
            Err(Trouble::Mistaken(why)) => {
                tracing::warn!(%url, "the replica answers again: {why}; it is gone on with behind that");
                state.failing = None;
                (state.fenced, state.mistaken) = (Some(why), true);
                state.note_stuck();
                return std::mem::take(&mut state.queue);
            }
            Err(Trouble::Failed(why)) => {
                state.errors += 1;
                let since = state.failing.as_ref().map_or_else(Instant::now, |failing| failing.since);
                if state.failing.as_ref().is_none_or(|failing| failing.why != why) {
                    tracing::warn!(%url, why, "cannot upload; what is committed is kept here, and tried again");
                }
                let pause = (since.elapsed() / 4).clamp(PAUSE.0, PAUSE.1);
                // Somewhat apart from others who fail with the same store.
                let random = job.map_or(0, |job| job.staged.checksum.0 as u16);
                let apart = 0.75 + f64::from(random) / f64::from(u16::MAX) / 2.0;
                state.failing = Some(Failing { since, why, until: Instant::now() + pause.mul_f64(apart) });
            }
        }
        VecDeque::new()
    }

    /// Brings one file there. Nothing, where it was there.
    async fn send(&self, staged: &Staged, options: &Options) -> Result<Option<FileInfo>, Trouble> {
        if self.state().reached >= Some(staged.txid) {
            return Ok(None);
        }
        let header = read_header(&staged.path)?;
        let way = {
            let state = self.state();
            let reached = state.reached.unwrap_or_default();
            let same = reached == Txid::ZERO || state.page_size == Some(header.page_size);
            // On what is not ours only all of the database is put.
            let fits = state.ours || staged.complete || reached == Txid::ZERO;
            match () {
                () if reached.next() == staged.txid && same && fits => Way::Next,
                () if staged.complete => Way::Base,
                () => Way::Missing,
            }
        };
        let file = match way {
            Way::Missing => return Err(Trouble::Missing),
            Way::Next => self.put_next(staged, &header, options).await?,
            Way::Base => self.put_base(staged, &header, false).await?,
        };
        self.state().page_size = Some(header.page_size);
        let wanted = staged.complete && std::mem::take(&mut self.state().wants_base);
        if wanted && staged.txid > Txid::FIRST && file.level == Level::ZERO {
            match self.put_base(staged, &header, true).await {
                Ok(base) => self.state().put.push(base),
                Err(trouble) => {
                    self.want_base();
                    // The file itself is there, and will be found when this is tried again.
                    self.state().reached = Some(staged.txid.previous());
                    return Err(trouble);
                }
            }
        }
        Ok(Some(file))
    }

    async fn put_next(&self, staged: &Staged, header: &Header, options: &Options) -> Result<FileInfo, Trouble> {
        let next = Next {
            txid: staged.txid,
            body: body(&staged.path, staged.len).await?,
            time: staged.time,
            checksum: staged.checksum,
            writer: header.node_id,
            identity: &options.identity,
        };
        let mut proof = self.state().proof;
        let put = fence::put(&self.target.replica, next, &mut proof, options.fence_window).await?;
        self.state().proof = proof;
        match put {
            Put::Durable(file) => Ok(file),
            Put::Fenced { txid, by } => Err(Trouble::Fenced(format!(
                "transaction {txid} is by {by}: see that only one writes this replica, then start this one again: it will go on with a snapshot"
            ))),
        }
    }

    /// Puts all of the database as a snapshot that stands for everything before. With `proven` the transaction itself is known to be there, so that
    /// a snapshot of it that is there already, such as one that compaction made, is as good.
    async fn put_base(&self, staged: &Staged, header: &Header, proven: bool) -> Result<FileInfo, Trouble> {
        let replica = &self.target.replica;
        let header = Header { min_txid: Txid::FIRST, ..*header };
        let (from, to) = (staged.path.clone(), staged.path.with_file_name(base_name()));
        let scratch = Scratch(to.clone());
        let rewritten = tokio::task::spawn_blocking(move || rewrite(&from, &to, header)).await;
        let (len, checksum) = rewritten.map_err(|error| Trouble::Failed(error.to_string()))??;
        let name = FileName::new(Txid::FIRST, staged.txid);
        let body = body(&scratch.0, len).await?;
        match replica.put_file(Level::SNAPSHOT, name, body, staged.time).await {
            Err(error) if error.kind() == Kind::Conflict => {
                let files = replica.level(Level::SNAPSHOT, Txid::FIRST).await?;
                let Some(file) = files.into_iter().find(|file| file.name == name) else { return Err(error.into()) };
                if proven {
                    return Ok(file);
                }
                let theirs = open_file(replica, &file).await?;
                if theirs.trailer.file_checksum == checksum {
                    return Ok(file);
                }
                let by = fence::who(replica, &theirs).await;
                Err(Trouble::Fenced(format!("the snapshot of transaction {} is by {by}", staged.txid)))
            }
            put => {
                tracing::info!(url = %replica.url(), txid = %staged.txid, bytes = len, "snapshot uploaded");
                Ok(put?)
            }
        }
    }

    /// What is known of it.
    pub(crate) fn status(&self, changed: Option<Instant>) -> ReplicaStatus {
        let state = self.state();
        let oldest = state.queue.front().map(|job| job.since).into_iter().chain(changed).chain(state.stuck).min();
        let error = state.fenced.clone().or_else(|| state.failing.as_ref().map(|failing| failing.why.clone()));
        let fresh = state.worst.1.is_some_and(|when| when.elapsed() <= WORST_FOR);
        ReplicaStatus {
            url: self.target.replica.url().to_string(),
            kind: self.target.kind,
            txid: state.reached,
            lag: oldest.map_or(Duration::ZERO, |oldest| oldest.elapsed()),
            last_sync: state.last_sync,
            waiting: state.queue.len(),
            error,
            fenced: state.fenced.is_some(),
            needs_snapshot: state.needs_base,
            counters: ReplicaCounters {
                uploads: state.uploads,
                bytes: state.bytes,
                errors: state.errors,
                worst_lag: if fresh { state.worst.0 } else { Duration::ZERO },
                requests: self.target.replica.stats(),
            },
        }
    }
}

/// Keeping the replica small.
impl Line {
    /// Says that something was put, so that something will be due; `schedule` is the database's. Tells when, where that is news.
    pub(crate) fn schedule(&self, schedule: &Schedule, now: Timestamp, jitter: u64) -> Option<i64> {
        // What is due already may be another level's, in an hour: that level 1 had everything when it was made last does not put off the next one.
        let shortest = schedule.levels.iter().copied().chain([schedule.snapshots]).min().unwrap_or(Duration::MAX);
        let wait = shortest.mul_f64(1.0 + (jitter % 256) as f64 / 1024.0).as_millis();
        let due = i64::try_from(wait).map_or(NEVER, |wait| now.0.saturating_add(wait));
        let before = self.due.fetch_min(due, Ordering::Relaxed);
        (due < before).then_some(due)
    }

    /// When something is due.
    pub(crate) fn due(&self) -> i64 {
        self.due.load(Ordering::Relaxed)
    }

    /// Whether something is due.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        // A store that is in trouble is not asked for more than uploads.
        let well = |state: &State| state.fenced.is_none() && state.failing.is_none();
        self.due.load(Ordering::Relaxed) <= now.0 && well(&self.state())
    }

    /// Does what is due; with `all`, whatever is not due as well.
    pub(crate) async fn keep(
        &self,
        schedule: &Schedule,
        clock: &super::SharedClock,
        all: bool,
        scratch: &Path,
    ) -> litestream_pageindex::Result<Kept> {
        let mut upkeep = self.upkeep.lock().await;
        let Some(reached) = self.reached() else { return Ok(Kept::default()) };
        self.due.store(NEVER, Ordering::Relaxed);
        let now = clock();
        let put = std::mem::take(&mut self.state().put);
        let mut taken = match upkeep.take() {
            Some(upkeep) if !all => upkeep,
            _ => Box::new(Upkeep::alone(
                schedule.clone(),
                if all { Timestamp(0) } else { Timestamp(now.0 - shortest(schedule)) },
            )),
        };
        for file in put {
            taken.put(file);
        }
        let kept = taken.step(&self.target.replica, reached, &**clock, scratch).await;
        if let Some(due) = taken.due(self.reached().unwrap_or(reached)) {
            self.due.fetch_min(due.0.max(now.0.saturating_add(1_000)), Ordering::Relaxed);
        }
        *upkeep = Some(taken);
        kept
    }

    /// Forgets what files there are: a database that does not change needs no memory for them.
    pub(crate) fn forget_files(&self) {
        let due = self.due.load(Ordering::Relaxed) != NEVER;
        if !due && let Ok(mut upkeep) = self.upkeep.try_lock() {
            *upkeep = None;
            self.state().put = Vec::new();
        }
    }
}

fn shortest(schedule: &Schedule) -> i64 {
    let shortest = schedule.levels.iter().copied().min().unwrap_or_default();
    i64::try_from(shortest.as_millis()).unwrap_or(i64::MAX)
}

/// What a file that holds everything is made into for a replica that lacks what comes before it.
pub(super) const BASE: &str = "base-";

/// A name that nobody else in this process uses: several replicas of a database may need a base at once.
fn base_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{BASE}{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A file that goes with this.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn read_header(path: &Path) -> Result<Header, Trouble> {
    let failed = |error: &dyn std::fmt::Display| Trouble::Failed(format!("cannot read {}: {error}", path.display()));
    let mut head = [0; HEADER_LEN];
    let read = crate::files::open_own(path).and_then(|mut file: File| file.read_exact(&mut head));
    read.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Trouble::Gone(format!("{} is gone", path.display())),
        _ => failed(&error),
    })?;
    Header::parse(&head).map_err(|error| failed(&error))
}

async fn body(path: &Path, len: u64) -> Result<Body, Trouble> {
    if len > IN_MEMORY {
        return Ok(Body::File { path: path.to_owned(), len });
    }
    let failed = |error: std::io::Error| Trouble::Failed(format!("cannot read {}: {error}", path.display()));
    let bytes = crate::files::read_own(path).map_err(failed)?;
    let bytes = bytes.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
    Ok(Body::Bytes(Bytes::from(bytes)))
}

/// Copies the frames of a file under another header. Tells length and checksum.
fn rewrite(from: &Path, to: &Path, header: Header) -> Result<(u64, Checksum), Trouble> {
    let failed = |error: &dyn std::fmt::Display| Trouble::Failed(format!("cannot make {}: {error}", to.display()));
    let source = crate::files::open_own(from).map_err(|error| failed(&error))?;
    let target = crate::files::create(to).map_err(|error| failed(&error))?;
    let mut decoder = Decoder::new(BufReader::with_capacity(256 << 10, source)).map_err(|error| failed(&error))?;
    let mut encoder =
        Encoder::new(BufWriter::with_capacity(256 << 10, target), header).map_err(|error| failed(&error))?;
    let mut page = vec![0; header.page_size.bytes()];
    while let Some(frame) = decoder.next_frame(&mut page).map_err(|error| failed(&error))? {
        encoder.frame(&frame, &page).map_err(|error| failed(&error))?;
    }
    let (mut writer, trailer) = encoder.finish().map_err(|error| failed(&error))?;
    writer.flush().map_err(|error| failed(&error))?;
    let len = writer.get_ref().metadata().map_err(|error| failed(&error))?.len();
    Ok((len, trailer.file_checksum))
}
