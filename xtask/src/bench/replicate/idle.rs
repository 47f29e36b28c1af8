//! Databases that do not change, and a hundred of them that do.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use litestream_fixtures::s3::S3Server;
use rusqlite::Connection;

use super::{BUCKET, Measurement, Report, Subject, Usage, server};
use crate::process::{Process, wait_until};

/// How many databases both have, and how many only ours.
const FEW: usize = 300;
const MANY: usize = 10_000;
/// How many of them are written to, once a second each.
const ACTIVE: usize = 100;
/// How long is watched.
const WINDOW: Duration = Duration::from_secs(60);
const LONG_WINDOW: Duration = Duration::from_secs(600);
/// How long is waited until nothing is left to do after the start.
const SETTLE: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(300);

pub(super) fn run(report: &mut Report, large: bool) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("litestream-bench-").tempdir()?;
    let few = databases(&folder.path().join("few"), FEW)?;
    let (ours, theirs) = (Subject::ours()?, Subject::theirs()?);
    let mine = watch(report, &ours, &few, folder.path(), WINDOW)?;
    let other = watch(report, &theirs, &few, folder.path(), WINDOW)?;
    report.at_least("replicate", "300 idle: Litestream's CPU time / ours", ratio(other.cpu, mine.cpu), 20.0);
    let memory = other.resident as f64 / mine.resident as f64;
    report.at_least("replicate", "300 idle: Litestream's memory / ours", memory, 5.0);
    if large {
        let many = databases(&folder.path().join("many"), MANY)?;
        let seen = watch(report, &ours, &many, folder.path(), LONG_WINDOW)?;
        report.at_most("replicate", "10,000 idle: MiB resident", seen.resident as f64 / f64::from(1 << 20), 80.0);
        report.at_most("replicate", "10,000 idle: % of a core", 100.0 * seen.share, 0.5);
        report.at_most("replicate", "10,000 idle: requests in 10 minutes", seen.requests as f64, 0.0);
        report.at_most("replicate", "10,000 idle: seconds to start", seen.start, 30.0);
    }
    Ok(())
}

/// What was seen of a subject.
struct Seen {
    cpu: Duration,
    share: f64,
    resident: u64,
    requests: u64,
    /// How long a second start takes, in seconds.
    start: f64,
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
        paths.push(path);
    }
    Ok(paths)
}

/// Has a subject replicate the databases, starts it again, and watches it while nothing happens, and while a little does.
fn watch(
    report: &mut Report,
    subject: &Subject,
    databases: &[PathBuf],
    folder: &Path,
    window: Duration,
) -> Result<Seen> {
    let server = server()?;
    let count = databases.len();
    let name = |what: &str| format!("{}: {count} databases, {what}", subject.name());
    // The first time everything is uploaded.
    let begun = Instant::now();
    let mut process = subject.start(&server, databases, folder)?.context("nobody replicates")?;
    process.wait_until("all databases to be uploaded", DEADLINE, || {
        Ok((server.keys(BUCKET).iter().filter(|key| key.contains("/0000/")).count() >= count).then_some(()))
    })?;
    report.measured(Measurement {
        bench: "replicate",
        subject: name("first start"),
        seconds: Some(begun.elapsed().as_secs_f64()),
        writes: Some(server.stats().total),
        peak_memory: Some(Usage::of(&process)?.resident),
        ..Measurement::default()
    });
    // What the files are can be noted once their times are old enough.
    settle(&server, &mut process, SETTLE)?;
    process.terminate(DEADLINE)?;
    server.reset_stats();
    let begun = Instant::now();
    let mut process = subject.start(&server, databases, folder)?.context("nobody replicates")?;
    // Each replica is asked what it holds.
    process.wait_until("all databases to be taken up", DEADLINE, || {
        Ok((server.stats().total >= count as u64).then_some(()))
    })?;
    let start = begun.elapsed().as_secs_f64();
    report.measured(Measurement {
        bench: "replicate",
        subject: name("second start"),
        seconds: Some(start),
        writes: Some(server.stats().total),
        ..Measurement::default()
    });
    settle(&server, &mut process, SETTLE)?;
    let (before, requests) = (Usage::of(&process)?, server.stats().total);
    idle_for(&mut process, window)?;
    let after = Usage::of(&process)?;
    let requests = server.stats().total - requests;
    let cpu = after.cpu.saturating_sub(before.cpu);
    report.measured(Measurement {
        bench: "replicate",
        subject: format!(
            "{} ({} s, {:.2} % of a core, {} descriptors)",
            name("idle"),
            window.as_secs(),
            100.0 * ratio(cpu, window),
            after.descriptors
        ),
        seconds: Some(cpu.as_secs_f64()),
        writes: Some(requests),
        peak_memory: Some(after.resident),
        ..Measurement::default()
    });
    active(report, subject, &server, &process, databases)?;
    Ok(Seen { cpu, share: ratio(cpu, window), resident: after.resident, requests, start })
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
        Ok((last.1.elapsed() > most / 2 || begun.elapsed() > most).then_some(()))
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
    process: &Process,
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
    let (before, requests) = (Usage::of(process)?, server.stats().total);
    let begun = Instant::now();
    round(20)?;
    let (after, time) = (Usage::of(process)?, begun.elapsed());
    let requests = server.stats().total - requests;
    let cpu = after.cpu.saturating_sub(before.cpu);
    report.measured(Measurement {
        bench: "replicate",
        subject: format!(
            "{}: {} databases, {ACTIVE} active ({:.0} s, {:.1} % of a core, {} descriptors)",
            subject.name(),
            databases.len(),
            time.as_secs_f64(),
            100.0 * ratio(cpu, time),
            after.descriptors
        ),
        seconds: Some(cpu.as_secs_f64()),
        writes: Some(requests),
        peak_memory: Some(after.resident),
        ..Measurement::default()
    });
    Ok(())
}
