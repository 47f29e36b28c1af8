//! Our daemon beside applications that write at full speed, checkpoint as they like and are killed at any instant, while it is killed itself every
//! few seconds and started again. At each pause the restores, ours and real Litestream's, must be the databases, to the byte. In the end each database
//! must have passed a drill, nothing in all the daemon's logs may be an alarm, and enough must have happened.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use litestream_fixtures::db::{content_sha256, sha256_file};
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::Tally;
use crate::bench::subject;
use crate::process::wait_until;
use crate::tools::Tools;
use actor::Actor;
use app::Kind;
use daemon::Daemon;
use happened::Happened;
use store::{Restorers, Store};

mod actor;
mod app;
mod daemon;
mod happened;
mod outage;
mod store;

pub(crate) use app::{App, live};

/// How long whatever is asked for at a pause may take.
const GRACE: Duration = Duration::from_secs(60);
/// Something happens about so often, in milliseconds.
const TICK: std::ops::Range<u64> = 50..500;
/// The share of requests that go wrong, where any do.
const FAULTY: f64 = 0.05;
/// How long the last drills may take: a replica has two minutes to hold what it is compared with.
const LAST_DRILLS: Duration = Duration::from_secs(150);
/// For how long nobody may replicate, in milliseconds.
const DOWN: std::ops::Range<u64> = 0..1_500;

/// How it is run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) seed: u64,
    /// How long.
    pub(super) time: Duration,
    /// How often there is a pause.
    pub(super) every: Duration,
    /// For how long the store is away before each of them. Then it is one that has requests go wrong at other times, too; otherwise MinIO.
    pub(super) outage: Option<Duration>,
}

/// One database and who writes to it.
struct Subject {
    path: PathBuf,
    url: String,
    kind: Kind,
    actors: Vec<Actor>,
}

/// Runs it.
pub(super) fn replicate(ours: &Path, options: Options, tally: &mut Tally) -> Result<()> {
    let mut scene = Scene::new(ours, options)?;
    let start = Instant::now();
    let mut failed = false;
    for number in 1_u32.. {
        let outcome = scene.round(number);
        failed = outcome.is_err();
        scene.happened.pauses += u32::from(!failed);
        tally.add(&format!("replicate, pause {number}"), outcome);
        if failed || start.elapsed() >= options.time {
            break;
        }
    }
    let outcome = scene.judge_whole(failed);
    failed |= outcome.is_err();
    tally.add("replicate, all of it", outcome);
    scene.leave(failed);
    Ok(())
}

struct Scene {
    options: Options,
    store: Store,
    restorers: Restorers,
    daemon: Daemon,
    subjects: Vec<Subject>,
    random: fastrand::Rng,
    /// When a daemon that is down is to be started.
    due: Instant,
    happened: Happened,
    // Dropped after those who write there.
    folder: tempfile::TempDir,
}

impl Scene {
    fn new(ours: &Path, options: Options) -> Result<Self> {
        let tools = Tools::new()?;
        let folder = subject::scratch()?;
        let store = Store::start(&tools, options.outage.is_some())?;
        let restorers = Restorers::new(ours, &tools)?;
        let mut random = fastrand::Rng::with_seed(options.seed);
        let mut subjects = Vec::new();
        let cast = [
            ("three", Kind::Tables, 4_096, 3),
            ("blockmap", Kind::BlockMap, 4_096, 1),
            ("small", Kind::Tables, 1_024, 1),
        ];
        for (name, kind, page_size, writers) in cast {
            let path = folder.path().join(format!("{name}.db"));
            app::make(&path, kind, page_size, writers, options.seed)?;
            let actors = (0..writers).map(|writer| Actor::start(&path, kind, writer, random.u64(..)));
            let actors = actors.collect::<Result<_>>()?;
            subjects.push(Subject { url: store.url(name), path, kind, actors });
        }
        let databases: Vec<_> = subjects.iter().map(|subject| (subject.path.clone(), subject.url.clone())).collect();
        let daemon = Daemon::new(
            ours,
            folder.path(),
            &databases,
            options.outage.map(|_| crate::metrics::free_address()).transpose()?,
        )?;
        let (due, happened) = (Instant::now(), Happened::default());
        Ok(Self { options, folder, store, restorers, daemon, subjects, random, due, happened })
    }

    /// From one pause to the next, and that one.
    fn round(&mut self, number: u32) -> Result<()> {
        let (start, every) = (Instant::now(), self.options.every);
        let mut looked = false;
        self.store.fail(FAULTY, self.random.u64(..));
        while start.elapsed() < every {
            self.happen(true)?;
            if !looked && start.elapsed() > every / 2 && number > 1 {
                self.look_meanwhile().context("while everything goes on")?;
                looked = true;
            }
        }
        self.store.fail(0.0, 0);
        if let Some(time) = self.options.outage {
            self.outage(time, number).context("without a store")?;
        }
        let worked = start.elapsed();
        let outcome = self.pause(number);
        let (committed, pause) = (self.committed(), (start.elapsed() - worked).as_secs_f64());
        println!("replicate, pause {number}: {committed} transactions so far; {pause:.1} s");
        outcome
    }

    fn committed(&self) -> u64 {
        self.subjects.iter().flat_map(|subject| &subject.actors).map(Actor::committed).sum()
    }

    /// Something happens to the applications, and to the daemon.
    fn happen(&mut self, daemon_too: bool) -> Result<()> {
        std::thread::park_timeout(Duration::from_millis(self.random.u64(TICK)));
        self.daemon.check()?;
        if !self.daemon.is_running() {
            if Instant::now() >= self.due {
                self.daemon.start(&self.store)?;
            }
        } else if daemon_too && self.random.u32(..100) < 10 {
            if self.random.u32(..4) == 0 {
                self.daemon.terminate()?;
            } else {
                self.daemon.kill();
            }
            let down = if self.random.bool() { 0 } else { self.random.u64(DOWN) };
            self.due = Instant::now() + Duration::from_millis(down);
        }
        let kill = self.random.u32(..100) < 20;
        let (which, seed) = (self.random.usize(..self.subjects.len()), self.random.u64(..));
        let actors = &mut self.subjects[which].actors;
        let which = self.random.usize(..actors.len());
        for (number, actor) in actors.iter_mut().enumerate() {
            if kill && number == which {
                actor.kill()?;
                actor.again(seed)?;
                self.happened.app_kills += 1;
            }
        }
        self.subjects.iter_mut().flat_map(|subject| &mut subject.actors).try_for_each(Actor::check)
    }

    /// What can be restored at any time is a state that was: whole, with all that was ever known to be durable.
    fn look_meanwhile(&mut self) -> Result<()> {
        for subject in &mut self.subjects {
            let durable: Vec<u64> = subject.actors.iter().map(|actor| actor.durable).collect();
            let output = self.folder.path().join("meanwhile.db");
            self.restorers.ours(&self.store, &subject.url, &output)?;
            self.happened.restores += 1;
            let found = app::counts(&Connection::open(&output)?, subject.kind)?;
            std::fs::remove_file(&output)?;
            let name = subject.path.display();
            for ((actor, found), durable) in subject.actors.iter().zip(&found).zip(&durable) {
                // What is being committed now may be there before its writer can say so.
                let most = actor.committed() + 1;
                ensure!(
                    (*durable..=most).contains(found),
                    "{name}: {found} transactions of a writer were restored, {durable} were durable, {most} may have been committed"
                );
            }
        }
        Ok(())
    }

    /// Nobody writes; all that is committed goes up; restores are compared.
    fn pause(&mut self, number: u32) -> Result<()> {
        let Self { subjects, daemon, store, .. } = self;
        let mut actors: Vec<&mut Actor> = subjects.iter_mut().flat_map(|subject| &mut subject.actors).collect();
        actors.iter_mut().try_for_each(|actor| actor.pause())?;
        wait_until("the writers to pause", GRACE, || {
            actors.iter_mut().try_for_each(|actor| actor.check())?;
            Ok(actors.iter().all(|actor| actor.is_paused()).then_some(()))
        })?;
        drop(actors);
        daemon.start(store)?;
        if self.options.outage.is_some() {
            outage::wait_for_the_rest(daemon)?;
        }
        let mut txids = Vec::new();
        for subject in subjects.iter_mut() {
            txids.push(daemon.sync(&subject.path).with_context(|| subject.path.display().to_string())?);
        }
        let places: Vec<PathBuf> = ["ours", "real", "page-by-page"].map(|name| self.folder.path().join(name)).into();
        for (subject, txid) in self.subjects.iter_mut().zip(txids) {
            let name = subject.path.display().to_string();
            let counts = subject.judge(&self.restorers, &self.store, &places, &txid).with_context(|| name)?;
            self.happened.restores += 2;
            for (actor, count) in subject.actors.iter_mut().zip(counts) {
                actor.durable = count;
            }
        }
        if number.is_multiple_of(2) {
            self.start_again().context("nothing was committed, and the daemon was killed")?;
        }
        ensure!(self.daemon.told.alarms.is_empty(), "the daemon says: {}", self.daemon.told.alarms.join("\n"));
        self.subjects.iter_mut().flat_map(|subject| &mut subject.actors).try_for_each(Actor::go)
    }

    /// Where nothing has been committed meanwhile, whoever comes next goes on. Only what was in an empty log nobody knows.
    fn start_again(&mut self) -> Result<()> {
        let mut before = Vec::new();
        for subject in &self.subjects {
            before.push(self.daemon.sync(&subject.path)?);
        }
        self.daemon.kill();
        let is_empty = |subject: &Subject| -> Result<bool> {
            let mut log = subject.path.clone().into_os_string();
            log.push("-wal");
            Ok(std::fs::metadata(log)?.len() == 0)
        };
        let empty = self.subjects.iter().map(is_empty).collect::<Result<Vec<_>>>()?;
        self.daemon.start(&self.store)?;
        for ((subject, before), empty) in self.subjects.iter().zip(before).zip(empty) {
            let after = self.daemon.sync(&subject.path)?;
            ensure!(empty || after == before, "{}: TXID {before} became {after}", subject.path.display());
            self.happened.quiet_starts += u32::from(!empty);
        }
        Ok(())
    }

    /// What can be judged only in the end. Of a soak that has failed, which ended early, it is not asked whether enough has happened.
    fn judge_whole(&mut self, failed: bool) -> Result<()> {
        let drilled = if failed { Ok(()) } else { self.last_drills().context("in the end") };
        self.daemon.end()?;
        self.happened.transactions = self.committed();
        println!("replicate: {}; the daemon: {}", self.happened, self.daemon.told);
        drilled?;
        let alarms = &self.daemon.told.alarms;
        ensure!(alarms.is_empty(), "the daemon says: {}", alarms.join("\n"));
        if failed { Ok(()) } else { self.happened.judge(&self.options, &self.daemon.told) }
    }

    /// Each database is drilled while the applications go on and nobody kills the daemon.
    fn last_drills(&mut self) -> Result<()> {
        self.daemon.start(&self.store)?;
        self.subjects.iter().try_for_each(|subject| self.daemon.wait_for_drill(&subject.path, LAST_DRILLS))
    }

    fn leave(mut self, failed: bool) {
        if failed {
            println!("replicate: what was left is in {}", self.folder.path().display());
            self.folder.disable_cleanup(true);
        }
    }
}

impl Subject {
    /// Compares both restores with the database. Returns what each writer has committed.
    fn judge(&self, restorers: &Restorers, store: &Store, places: &[PathBuf], txid: &str) -> Result<Vec<u64>> {
        let [ours, real, pages] = places else { return Ok(Vec::new()) };
        let (said, other) = std::thread::scope(|scope| {
            let other = scope.spawn(|| restorers.real(store, &self.url, real));
            (restorers.ours(store, &self.url, ours), other.join())
        });
        let said = said?;
        other.ok().context("the restoring thread panicked")??;
        ensure!(said["txid"] == txid, "at TXID {txid} our restore is one of {}", said["txid"]);
        ensure!(sha256_file(ours)? == sha256_file(real)?, "ours and litestream restored different bytes");
        let truth = Connection::open(&self.path)?;
        let restored = Connection::open(ours)?;
        let counts = app::counts(&truth, self.kind)?;
        // Each writer has said of all that it has committed, but perhaps of the last before a kill.
        for (actor, count) in self.actors.iter().zip(&counts) {
            let said = actor.committed();
            ensure!(
                *count == said || *count == said + 1,
                "a writer has committed {said} transactions, {count} are there"
            );
        }
        let same = page_by_page(&truth, pages)? == page_by_page(&restored, pages)?;
        ensure!(
            same,
            "at TXID {txid} the restored database is another one; equal content: {}; live {counts:?}, restored {:?}",
            content_sha256(&truth)? == content_sha256(&restored)?,
            app::counts(&restored, self.kind)
        );
        drop(restored);
        for path in [ours, real] {
            std::fs::remove_file(path)?;
        }
        Ok(counts)
    }
}

/// A hash of all pages as SQLite sees them. Two that are equal differ at most in what a backup writes anew: the change counter and the schema's
/// version.
fn page_by_page(connection: &Connection, scratch: &Path) -> Result<String> {
    let mut copy = Connection::open(scratch)?;
    let done = Backup::new(connection, &mut copy)?.step(-1)?;
    ensure!(done == StepResult::Done, "the database is locked");
    copy.close().map_err(|(_, error)| error)?;
    let hash = sha256_file(scratch)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut path = scratch.as_os_str().to_owned();
        path.push(suffix);
        let _ = std::fs::remove_file(path);
    }
    Ok(hash)
}
