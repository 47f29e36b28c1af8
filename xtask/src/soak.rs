//! `cargo xtask soak`: what only many tries show. Restores, writers and our daemon that are killed at random instants, writers that race
//! or sleep, readers that hydrate meanwhile, and restores, queries and writes with a store that fails.
//!
//! Every case is a function of the seed, which is printed; only the instants at which the system does things are not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use litestream_fixtures::db::{DbOptions, build_database, content_sha256, sha256_file};
use litestream_fixtures::s3::{Down, Faults, S3Options, S3Server};
use rusqlite::Connection;

use crate::bench::{child, subject};
use crate::litestream::file_url;

mod company;
mod queries;
mod replicate;
mod writes;

pub(crate) use company::{Reader, read};
pub(crate) use replicate::{App, live};
pub(crate) use writes::{Writer, write};

/// How long a restore may take however it is hindered, before it is called hung.
const HUNG: Duration = Duration::from_secs(180);
/// How long a restore from a failing store may take.
const SLOWEST: Duration = Duration::from_secs(30);
/// The share of requests that go wrong.
const FAULTY: f64 = 0.05;
/// How long the command is told to go on trying when the store is down, and by when it must have ended.
const PATIENCE: Duration = Duration::from_secs(5);
const DOWN_LIMIT: Duration = Duration::from_secs(12);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only this
    #[arg(value_enum)]
    only: Option<Part>,
    /// A tenth of the tries
    #[arg(long)]
    short: bool,
    /// Repeats a run [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long our daemon is killed, in seconds [default: 600]
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Beside our daemon, requests to the store go wrong, and before each pause it is away for a minute
    #[arg(long)]
    faults: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Kill restores at random instants
    Kills,
    /// Restore from a store that answers 503, cuts, stalls, or is down
    Faults,
    /// Query a replica in such a store
    Queries,
    /// Kill writers of a block map at random instants
    Writes,
    /// Let two writers race for one replica
    Races,
    /// Write while others hydrate
    Company,
    /// Write while the store is down
    Outage,
    /// Stop a writer while another goes on
    Sleepers,
    /// Kill our daemon, and the applications beside it
    Replicate,
}

/// How many cases passed and failed.
#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    fn add(&mut self, case: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.passed += 1,
            Err(error) => {
                self.failed += 1;
                println!("FAILED {case}: {error:#}");
            }
        }
    }
}

/// Runs all cases, or one part.
///
/// # Errors
/// A case failed, or could not be set up.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("seed {seed}");
    let ours = subject::build_ours()?;
    let mut tally = Tally::default();
    let wanted = |part| arguments.only.is_none_or(|only| only == part);
    if wanted(Part::Kills) {
        kills(&ours, if arguments.short { 10 } else { 100 }, seed, &mut tally)?;
    }
    if wanted(Part::Faults) {
        faults(&ours, if arguments.short { 5 } else { 50 }, seed, &mut tally)?;
        store_down(&ours, &mut tally)?;
    }
    if wanted(Part::Queries) {
        queries::queries(if arguments.short { 100 } else { 1_000 }, seed, &mut tally)?;
    }
    if wanted(Part::Writes) {
        writes::kills(if arguments.short { 50 } else { 500 }, seed, &mut tally)?;
    }
    if wanted(Part::Races) {
        writes::races(if arguments.short { 20 } else { 200 }, seed, &mut tally)?;
    }
    if wanted(Part::Company) {
        company::readers(if arguments.short { 18 } else { 180 }, seed, &mut tally)?;
    }
    if wanted(Part::Outage) {
        company::outage(if arguments.short { 6 } else { 60 }, seed, &mut tally)?;
    }
    if wanted(Part::Sleepers) {
        company::sleepers(if arguments.short { 1 } else { 10 }, seed, &mut tally)?;
    }
    if wanted(Part::Replicate) {
        let (seconds, every) = if arguments.short { (30, 10) } else { (600, 20) };
        let time = Duration::from_secs(arguments.seconds.unwrap_or(seconds));
        let outage = arguments.faults.then_some(Duration::from_secs(if arguments.short { 15 } else { 60 }));
        let options = replicate::Options { seed, time, every: Duration::from_secs(every), outage };
        replicate::replicate(&ours, options, &mut tally)?;
    }
    let Tally { passed, failed } = tally;
    println!("{passed} passed, {failed} failed");
    ensure!(failed == 0, "{failed} of {} cases failed (seed {seed})", passed + failed);
    Ok(())
}

/// A way to restore.
struct Scene<'a> {
    name: &'static str,
    ours: &'a Path,
    url: String,
    server: Option<&'a S3Server>,
    /// The database that is replaced with `--force`.
    old: Option<&'a OldDatabase>,
    /// SHA-256 of what comes out.
    expected: &'a str,
}

/// When a restore is killed.
#[derive(Debug, Clone, Copy)]
enum Instant {
    After(Duration),
    /// So long after the old database got its second name.
    AfterSetAside(Duration),
}

/// What a killed restore has left where its output belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Nothing,
    OldDatabase,
    /// The old database, under its second name.
    OldSetAside,
    NewDatabase,
}

fn kills(ours: &Path, tries: u32, seed: u64, tally: &mut Tally) -> Result<()> {
    let folder = subject::scratch()?;
    // Slow enough that there is time to kill it in every phase.
    let server = S3Server::start(S3Options::default())?;
    let files = folder.path().join("replica");
    let source = folder.path().join("source.db");
    tokio::runtime::Runtime::new()?.block_on(async {
        let remote = subject::replica_on(&server).await?;
        subject::small_files(&folder.path().join("remote.db"), &remote).await?;
        subject::small_files(&source, &subject::replica_in(&files).await?).await
    })?;
    server.set_latency(Duration::from_millis(10));
    server.set_bandwidth(Some(20 << 20));
    let expected = sha256_file(&source)?;
    let old = OldDatabase::make(&folder.path().join("old"), seed)?;

    let mut scenes = Vec::new();
    for (name, from_server, old) in [
        ("from files", false, None),
        ("from S3", true, None),
        ("from files --force", false, Some(&old)),
        ("from S3 --force", true, Some(&old)),
    ] {
        let (url, server) =
            if from_server { (subject::s3_url(&server), Some(&server)) } else { (file_url(&files), None) };
        let scene = Scene { name, ours, url, server, old, expected: &expected };
        let whole = scene.undisturbed(folder.path())?;
        println!("kills {name}: undisturbed it takes {:.0} ms", whole.as_secs_f64() * 1e3);
        scenes.push((scene, whole));
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut found: BTreeMap<(&str, Found), u32> = BTreeMap::new();
    let mut leftovers = 0;
    for number in 0..tries {
        let (scene, whole) = &scenes[number as usize % scenes.len()];
        // Some that come too late are to be expected; they count only as what they are.
        for attempt in 0_i32.. {
            // Where it was measured on a busier machine, the instants move closer until one is in time.
            let whole = whole.mul_f64(0.85_f64.powi(attempt));
            let instant = random_instant(&mut random, number, whole, scene.old.is_some());
            let case = format!("kill {} {} {instant:?}", number + 1, scene.name);
            match scene.kill(folder.path(), instant) {
                Ok(Some((what, files))) => {
                    *found.entry((scene.name, what)).or_default() += 1;
                    leftovers += files;
                    tally.add(&case, Ok(()));
                }
                Ok(None) if attempt < 20 => continue,
                Ok(None) => tally.add(&case, Err(anyhow::anyhow!("always ended before it was killed"))),
                Err(error) => tally.add(&case, Err(error)),
            }
            break;
        }
    }
    for ((scene, what), times) in found {
        println!("kills {scene}: {times} × {what:?}");
    }
    println!("kills: {leftovers} temporary files were left over and hindered nobody");
    Ok(())
}

/// Two in three anywhere; one in three where the new database takes its place.
fn random_instant(random: &mut fastrand::Rng, number: u32, whole: Duration, force: bool) -> Instant {
    match (number / 4 % 3, force) {
        (2, true) => Instant::AfterSetAside(Duration::from_micros(random.u64(..1_500))),
        (2, false) => Instant::After(whole.mul_f64(0.7 + 0.3 * random.f64())),
        _ => Instant::After(whole.mul_f64(random.f64())),
    }
}

impl Scene<'_> {
    /// How long it takes when nobody kills it.
    fn undisturbed(&self, folder: &Path) -> Result<Duration> {
        let room = self.room(folder)?;
        let output = room.path().join("db");
        let finished = child::run(&mut self.command(&output), HUNG)?.succeeded("restore")?;
        ensure!(self.look(room.path())? == Found::NewDatabase, "no new database");
        Ok(finished.wall)
    }

    /// Kills a restore, judges what is there, and lets another one succeed. `None` where the first one was faster. Also says how many temporary files the killed one left.
    fn kill(&self, folder: &Path, instant: Instant) -> Result<Option<(Found, usize)>> {
        let room = self.room(folder)?;
        let output = room.path().join("db");
        let second_name = room.path().join("db.replaced");
        let mut set_aside = None;
        let finished = child::run_until(&mut self.command(&output), |elapsed| match instant {
            Instant::After(moment) => elapsed >= moment,
            Instant::AfterSetAside(more) => {
                if set_aside.is_none() && second_name.exists() {
                    set_aside = Some(elapsed);
                }
                set_aside.is_some_and(|since| elapsed >= since + more) || elapsed >= HUNG
            }
        })?;
        if finished.status.code().is_some() {
            finished.succeeded("restore")?;
            return Ok(None);
        }
        let found = self.look(room.path())?;
        let leftovers = names(room.path())?.iter().filter(|name| name.starts_with('.')).count();
        child::run(&mut self.command(&output), HUNG)?.succeeded("the next restore").or_else(|error| {
            // Without --force a database that is complete already is rightly refused.
            if found == Found::NewDatabase && self.old.is_none() && format!("{error:#}").contains("exists already") {
                return child::run(self.command(&output).arg("--force"), HUNG)?
                    .succeeded("the next restore, with --force");
            }
            Err(error)
        })?;
        let after = self.look(room.path())?;
        ensure!(after == Found::NewDatabase, "after {found:?} another restore gave {after:?}: {}", list(room.path()));
        Ok(Some((found, leftovers)))
    }

    fn command(&self, output: &Path) -> Command {
        let mut command = subject::our_restore(self.ours);
        if let Some(server) = self.server {
            subject::authorize(&mut command, server);
        }
        if self.old.is_some() {
            command.arg("--force");
        }
        command.arg("-o").arg(output).arg(&self.url);
        command
    }

    /// A folder to restore into, with the old database in it where one is to be replaced.
    fn room(&self, folder: &Path) -> Result<tempfile::TempDir> {
        let room = tempfile::Builder::new().prefix("room-").tempdir_in(folder)?;
        if let Some(old) = self.old {
            copy_files(&old.folder, room.path())?;
        }
        Ok(room)
    }

    /// What is there, without touching it.
    ///
    /// # Errors
    /// Something that must never be: neither the old nor the new database, whole.
    fn look(&self, room: &Path) -> Result<Found> {
        let output = room.join("db");
        let sidecars = ["db-wal", "db-shm", "db-journal"].iter().any(|name| room.join(name).exists());
        if output.exists() && !sidecars && sha256_file(&output)? == self.expected {
            return Ok(Found::NewDatabase);
        }
        let Some(old) = self.old else {
            ensure!(!output.exists() && !sidecars, "the output is there, but not complete: {}", list(room));
            return Ok(Found::Nothing);
        };
        // SQLite writes to what it opens.
        let copy = tempfile::tempdir_in(room.parent().context("a room lies in a folder")?)?;
        copy_files(room, copy.path())?;
        if content(&copy.path().join("db")).is_ok_and(|content| content == old.content) {
            return Ok(Found::OldDatabase);
        }
        let second_name = copy.path().join("db.replaced");
        if second_name.exists() && content(&second_name)? == old.content {
            return Ok(Found::OldSetAside);
        }
        bail!("neither the old database is there nor the new one: {}", list(room));
    }
}

/// A database whose last rows are committed but only in its `-wal`.
struct OldDatabase {
    /// Holds nothing but `db` and what SQLite keeps beside it.
    folder: PathBuf,
    content: String,
}

impl OldDatabase {
    fn make(folder: &Path, seed: u64) -> Result<OldDatabase> {
        let live = folder.join("live");
        let kept = folder.join("kept");
        fs::create_dir_all(&live)?;
        fs::create_dir_all(&kept)?;
        let path = live.join("db");
        build_database(&path, &DbOptions { bytes: 1 << 20, seed: seed ^ 1, ..DbOptions::default() })?;
        let connection = Connection::open(&path)?;
        let before = content_sha256(&connection)?;
        connection.query_row("PRAGMA wal_autocheckpoint=0", [], |_| Ok(()))?;
        for number in 0..100 {
            connection.execute("INSERT INTO t0(key, number, body) SELECT key, ?1, body FROM t1 LIMIT 10", [number])?;
        }
        let content_now = content_sha256(&connection)?;
        // As a crash would leave it: closing would checkpoint.
        copy_files(&live, &kept)?;
        drop(connection);

        let check = folder.join("check");
        fs::create_dir_all(&check)?;
        copy_files(&kept, &check)?;
        ensure!(content(&check.join("db"))? == content_now, "the old database cannot be opened from its files");
        let check = folder.join("without");
        fs::create_dir_all(&check)?;
        fs::copy(kept.join("db"), check.join("db"))?;
        ensure!(content(&check.join("db"))? == before, "the old database's last rows are not only in its -wal");
        Ok(OldDatabase { folder: kept, content: content_now })
    }
}

/// What SQLite finds in a database.
fn content(path: &Path) -> Result<String> {
    Ok(content_sha256(&Connection::open(path)?)?)
}

fn faults(ours: &Path, tries: u32, seed: u64, tally: &mut Tally) -> Result<()> {
    let folder = subject::scratch()?;
    let (server, expected) = served(folder.path())?;
    let url = subject::s3_url(&server);
    let output = folder.path().join("restored.db");
    let mut times = Vec::new();
    let (mut requests, mut faulty) = (0, 0);
    for number in 0..u64::from(tries) {
        let rate = FAULTY / 3.0;
        let seed = seed.wrapping_mul(1_000).wrapping_add(number);
        let stall_for = Duration::from_secs(60);
        let faults = Faults { rate_503: rate, rate_cut: rate, rate_stall: rate, stall_for, seed, ..Faults::default() };
        server.set_faults(faults);
        server.reset_stats();
        let case = format!("restore {} under faults (of seed {seed})", number + 1);
        let mut command = subject::our_restore(ours);
        subject::authorize(&mut command, &server);
        command.arg("-o").arg(&output).arg(&url);
        let outcome = child::run(&mut command, HUNG).and_then(|finished| finished.succeeded("restore"));
        let records = server.requests();
        let hit = records.iter().filter(|request| request.fault.is_some()).count();
        (requests, faulty) = (requests + records.len(), faulty + hit);
        tally.add(
            &case,
            outcome.and_then(|finished| {
                let wall = finished.wall;
                times.push(wall);
                ensure!(sha256_file(&output)? == expected, "wrong bytes");
                ensure!(
                    wall <= SLOWEST,
                    "took {:.1} s; {hit} of {} requests went wrong",
                    wall.as_secs_f64(),
                    records.len()
                );
                Ok(())
            }),
        );
        if output.exists() {
            fs::remove_file(&output)?;
        }
    }
    times.sort_unstable();
    let seconds = |time: Option<&Duration>| time.map_or(f64::NAN, Duration::as_secs_f64);
    println!(
        "faults: {faulty} of {requests} requests were answered 503, cut or stalled 60 s; slowest restore {:.1} s, median {:.1} s",
        seconds(times.last()),
        seconds(times.get(times.len() / 2))
    );
    Ok(())
}

fn store_down(ours: &Path, tally: &mut Tally) -> Result<()> {
    let folder = subject::scratch()?;
    let server = S3Server::start(S3Options::default())?;
    for (name, down) in [("refuses connections", Down::Refuse), ("is silent", Down::Silent)] {
        let room = tempfile::tempdir_in(folder.path())?;
        server.set_down(Some(down))?;
        let mut command = subject::our_restore(ours);
        subject::authorize(&mut command, &server);
        command.arg("--retry-timeout").arg(format!("{}s", PATIENCE.as_secs()));
        command.arg("-o").arg(room.path().join("db")).arg(subject::s3_url(&server));
        let outcome = child::run(&mut command, HUNG).and_then(|finished| {
            println!("store that {name}: after {:.1} s: {}", finished.wall.as_secs_f64(), finished.said.trim());
            ensure!(finished.status.code() == Some(1), "ended with {}", finished.status);
            ensure!(finished.wall <= DOWN_LIMIT, "took {:.1} s", finished.wall.as_secs_f64());
            ensure!(finished.said.starts_with("litestream: "), "does not say whose error it is");
            ensure!(finished.said.contains(&server.endpoint()), "does not name the endpoint");
            ensure!(names(room.path())?.is_empty(), "leaves files: {}", list(room.path()));
            Ok(())
        });
        server.set_down(None)?;
        tally.add(&format!("restore from a store that {name}"), outcome);
    }
    Ok(())
}

/// The replica of 302 files on a server with a little latency, and the database's SHA-256.
fn served(folder: &Path) -> Result<(S3Server, String)> {
    let server = S3Server::start(S3Options::default())?;
    let subject = tokio::runtime::Runtime::new()?.block_on(async {
        let replica = subject::replica_on(&server).await?;
        subject::small_files(&folder.join("source.db"), &replica).await
    })?;
    server.set_latency(Duration::from_millis(10));
    let expected = subject.sha256()?;
    Ok((server, expected))
}

/// Copies the files of a folder, temporary ones (`.NAME`) left out.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    for name in names(from)?.iter().filter(|name| !name.starts_with('.')) {
        fs::copy(from.join(name), to.join(name))?;
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn list(folder: &Path) -> String {
    names(folder).map_or_else(|error| error.to_string(), |names| names.join(" "))
}
