//! Databases that do not change, and a hundred of them that do.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use litestream_fixtures::s3::{Operation, S3Server, Stats};
use rusqlite::Connection;

use super::{BUCKET, Measurement, Report, Requests, Subject, TURN, Usage, server};
use crate::process::{Process, wait_until};

/// How many databases both have, and how many only ours.
const FEW: usize = 300;
const MANY: usize = 10_000;
/// How many of them are written to, once a second each.
const ACTIVE: usize = 100;
/// How long is watched.
const WINDOW: Duration = TURN;
const LONG_WINDOW: Duration = Duration::from_secs(600);
/// For how long nothing is asked of the store when a start is over.
const QUIET: Duration = Duration::from_secs(2);
/// For how long when nothing is left to do.
const REST: Duration = Duration::from_secs(30);
/// How long is waited for either: Litestream may never be quiet.
const SETTLE: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(300);

pub(super) fn run(report: &mut Report, large: bool) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("litestream-bench-").tempdir()?;
    let few = databases(&folder.path().join("few"), FEW)?;
    let (ours, theirs) = (Subject::ours()?, Subject::theirs()?);
    let mine = watch(report, &ours, &copies(&few, &folder.path().join("ours"))?, WINDOW)?;
    let other = watch(report, &theirs, &copies(&few, &folder.path().join("theirs"))?, WINDOW)?;
    report.at_least("replicate", "300 idle: Litestream's CPU time / ours", ratio(other.cpu, mine.cpu), 20.0);
    let memory = other.resident as f64 / mine.resident as f64;
    report.at_least("replicate", "300 idle: Litestream's memory / ours", memory, 5.0);
    if large {
        let many = databases(&folder.path().join("many"), MANY)?;
        let seen = watch(report, &ours, &many, LONG_WINDOW)?;
        report.at_most("replicate", "10,000 idle: MiB resident", seen.resident as f64 / f64::from(1 << 20), 80.0);
        report.at_most("replicate", "10,000 idle: % of a core", 100.0 * seen.share, 0.5);
        report.at_most("replicate", "10,000 idle: requests in 10 minutes", seen.requests as f64, 0.0);
        let what = "10,000 idle: seconds to start again, until the last request of the start";
        report.at_most("replicate", what, seen.start.as_secs_f64(), 30.0);
    }
    Ok(())
}

/// What was seen of a subject.
struct Seen {
    cpu: Duration,
    share: f64,
    resident: u64,
    requests: u64,
    /// How long a second start takes.
    start: Duration,
}

fn ratio(a: Duration, b: Duration) -> f64 {
    // The clock ticks a hundred times a second.
    a.as_secs_f64() / b.as_secs_f64().max(0.01)
}

/// Small databases, each as its application left it.
fn databases(folder: &Path, count: usize) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder)?;
    let mut paths = Vec::new();
    for number in 0..count {
        let path = folder.join(format!("{number:05}.db"));
        let database = Connection::open(&path)?;
        database.execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB);
             INSERT INTO t (body) VALUES (randomblob(2000))",
        )?;
        database.close().map_err(|(_, error)| error)?;
        paths.push(path);
    }
    Ok(paths)
}

/// The same databases for one subject alone: each leaves files beside them, and tables in them, that the other would find.
fn copies(databases: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder)?;
    let copy = |path: &PathBuf| {
        let copy = folder.join(path.file_name().context("a database without a name")?);
        std::fs::copy(path, &copy)?;
        Ok(copy)
    };
    databases.iter().map(copy).collect()
}

/// What a start took.
struct Start {
    time: Duration,
    requests: Requests,
    resident: u64,
}

impl Start {
    fn measurement(&self, subject: &str) -> Measurement {
        Measurement {
            seconds: Some(self.time.as_secs_f64()),
            peak_memory: Some(self.resident),
            ..self.requests.measurement(subject)
        }
    }
}

/// Starts a subject, and waits until that is over: each replica was asked by a LIST what it holds, each holds something, and nothing more is asked of
/// the store. The time is that until the last answer. A store that is never left alone is one whose start takes as long as was waited.
fn start(subject: &Subject, server: &S3Server, databases: &[PathBuf]) -> Result<(Process, Start)> {
    let folder = databases.first().and_then(|path| path.parent()).context("no databases")?;
    server.reset_stats();
    let begun = Instant::now();
    let mut process = subject.start(server, databases, folder)?.context("nobody replicates")?;
    let (mut last, mut looked) = ((Stats::default(), begun), begun);
    let over = process.wait_until("all databases to be taken up", DEADLINE, || {
        let stats = server.stats();
        if stats != last.0 {
            last = (stats, Instant::now());
        }
        let quiet = last.1.elapsed() >= QUIET;
        // A look costs time that whoever is measured could need.
        if !quiet && begun.elapsed() < SETTLE || looked.elapsed() < QUIET {
            return Ok(None);
        }
        looked = Instant::now();
        Ok(are_taken_up(subject, server, databases).then_some(if quiet { last.1 } else { looked }))
    })?;
    let (requests, resident) = (Requests::of(server), Usage::of(&mut process)?.resident);
    Ok((process, Start { time: over - begun, requests, resident }))
}

/// Whether each database's replica was listed since the server counts, and holds something.
fn are_taken_up(subject: &Subject, server: &S3Server, databases: &[PathBuf]) -> bool {
    let (requests, keys) = (server.requests(), server.keys(BUCKET));
    let lists = requests.iter().filter(|request| request.operation == Operation::ListObjectsV2);
    let answered = lists.filter(|request| request.status == Some(200)).map(|request| request.key_or_prefix.as_str());
    let listed: HashSet<&str> = answered.filter_map(|prefix| database_of(prefix, subject.name())).collect();
    let held: HashSet<&str> = keys.iter().filter_map(|key| database_of(key, subject.name())).collect();
    let names = databases.iter().map(|path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default());
    names.into_iter().all(|name| listed.contains(name) && held.contains(name))
}

/// The database whose replica a key, or the prefix of a listing, belongs to.
fn database_of<'a>(key: &'a str, subject: &str) -> Option<&'a str> {
    key.strip_prefix(subject)?.strip_prefix('/')?.split('/').next()
}

/// Has a subject replicate the databases, starts it again, and watches it while nothing happens, and while a little does.
fn watch(report: &mut Report, subject: &Subject, databases: &[PathBuf], window: Duration) -> Result<Seen> {
    let server = server()?;
    let count = databases.len();
    let name = |what: &str| format!("{}: {count} databases, {what}", subject.name());
    // The first time everything is uploaded.
    let (mut process, first) = start(subject, &server, databases)?;
    report.measured(first.measurement(&name("first start")));
    // What the files are can be noted once their times are old enough; what is due after the first start must not be counted to the second.
    settle(&server, &mut process, window.max(SETTLE))?;
    process.ensure_alive("after its first start")?;
    process.terminate(DEADLINE)?;
    let (mut process, second) = start(subject, &server, databases)?;
    report.measured(second.measurement(&name("second start")));
    settle(&server, &mut process, window.max(SETTLE))?;
    let (before, requests) = (Usage::of(&mut process)?, Requests::of(&server));
    idle_for(&mut process, window)?;
    let after = Usage::of(&mut process)?;
    let requests = Requests::of(&server).since(requests);
    let cpu = after.cpu.saturating_sub(before.cpu);
    let what = format!(
        "idle for {} s, {:.2} % of a core, {} descriptors",
        window.as_secs(),
        100.0 * ratio(cpu, window),
        after.descriptors
    );
    report.measured(Measurement {
        seconds: Some(cpu.as_secs_f64()),
        peak_memory: Some(after.resident),
        ..requests.measurement(&name(&what))
    });
    active(report, subject, &server, &mut process, databases)?;
    let (share, requests) = (ratio(cpu, window), requests.total());
    Ok(Seen { cpu, share, resident: after.resident, requests, start: second.time })
}

/// Waits until no requests come any more, or for as long as is given.
fn settle(server: &S3Server, process: &mut Process, most: Duration) -> Result<()> {
    let begun = Instant::now();
    let mut last = (server.stats().total, Instant::now());
    process.wait_until("the store to be left alone", most + DEADLINE, || {
        let total = server.stats().total;
        if total != last.0 {
            last = (total, Instant::now());
        }
        Ok((last.1.elapsed() > REST || begun.elapsed() > most).then_some(()))
    })
}

fn idle_for(process: &mut Process, time: Duration) -> Result<()> {
    let begun = Instant::now();
    process.wait_until("time to pass", time + DEADLINE, || Ok((begun.elapsed() >= time).then_some(())))
}

/// A hundred databases, each written to once a second.
fn active(
    report: &mut Report,
    subject: &Subject,
    server: &S3Server,
    process: &mut Process,
    databases: &[PathBuf],
) -> Result<()> {
    let mut open = Vec::new();
    for path in databases.iter().take(ACTIVE) {
        let database = Connection::open(path)?;
        database.busy_timeout(Duration::from_secs(10))?;
        database.execute_batch("PRAGMA synchronous=NORMAL")?;
        open.push(database);
    }
    let write = |number: usize| open[number].execute("INSERT INTO t (body) VALUES (randomblob(200))", []);
    let round = |rounds: u32| -> Result<()> {
        let begun = Instant::now();
        for round in 0..rounds {
            for number in 0..open.len() {
                let due =
                    Duration::from_secs(u64::from(round)) + Duration::from_secs(1) * number as u32 / ACTIVE as u32;
                wait_until("the next commit", DEADLINE, || Ok((begun.elapsed() >= due).then_some(())))?;
                write(number)?;
            }
        }
        Ok(())
    };
    round(5)?;
    let (before, requests) = (Usage::of(process)?, Requests::of(server));
    let begun = Instant::now();
    round(u32::try_from(TURN.as_secs())?)?;
    let (after, time) = (Usage::of(process)?, begun.elapsed());
    let requests = Requests::of(server).since(requests);
    let cpu = after.cpu.saturating_sub(before.cpu);
    let what = format!(
        "{}: {} databases, {ACTIVE} active for {:.0} s, {:.1} % of a core, {} descriptors",
        subject.name(),
        databases.len(),
        time.as_secs_f64(),
        100.0 * ratio(cpu, time),
        after.descriptors
    );
    report.measured(Measurement {
        seconds: Some(cpu.as_secs_f64()),
        peak_memory: Some(after.resident),
        ..requests.measurement(&what)
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_prefixes_tell_their_database() {
        assert_eq!(database_of("ours/00017.db/0000/0000000000000001-0000000000000001.ltx", "ours"), Some("00017.db"));
        assert_eq!(database_of("Litestream/00017.db/0000/", "Litestream"), Some("00017.db"));
        assert_eq!(database_of("Litestream/00017.db/0000/", "ours"), None);
    }
}
