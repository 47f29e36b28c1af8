//! An application's commits: what they cost it, and how long they take until they are durable.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use litestream_fixtures::s3::S3Server;
use ltx::Decoder;
use rusqlite::Connection;

use super::{BUCKET, Measurement, Report, Subject, TURN, server};
use crate::process::{tail, wait_until};

/// How often the application commits when its commits are timed, and in how many turns.
const RATE: u32 = 100;
const TURNS: usize = 3;
/// At which rates it is seen how long a commit takes until it is durable.
const RATES: [u32; 3] = [1, 100, 1_000];
/// How often is uploaded: both programs' default.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// What a transaction writes.
const PAYLOAD: u32 = 400;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let (ours, theirs) = (Subject::ours()?, Subject::theirs()?);
    for synchronous in ["NORMAL", "FULL"] {
        let subjects = [Subject::Nobody, ours.clone(), theirs.clone()];
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        let mut busy = [0, 0, 0];
        for turn in 0..TURNS {
            for at in 0..subjects.len() {
                // The order rotates: each is the first, the second and the last as often.
                let at = (at + turn) % subjects.len();
                let (more, refused) = commits(&subjects[at], synchronous)?;
                times[at].extend(more);
                busy[at] += refused;
            }
        }
        let mut p99 = [0.0; 3];
        for ((subject, times), (p99, busy)) in subjects.iter().zip(&mut times).zip(p99.iter_mut().zip(busy)) {
            times.sort_unstable();
            *p99 = at(times, 0.99);
            let name = format!("{}: a commit at {RATE}/s, synchronous={synchronous}", subject.name());
            let (p50, p999) = (at(times, 0.5) * 1e6, at(times, 0.999) * 1e6);
            report.measured(Measurement {
                bench: "replicate",
                subject: format!("{name} (p50 {p50:.0} µs, p99 {:.0} µs, p99.9 {p999:.0} µs, {busy} busy)", *p99 * 1e6),
                seconds: Some(*p99),
                ..Measurement::default()
            });
        }
        let what = format!("a commit's p99 beside ours / alone, synchronous={synchronous}");
        report.at_most("replicate", &what, p99[1] / p99[0], 1.1);
        let what = format!("SQLITE_BUSY beside ours, synchronous={synchronous}");
        report.at_most("replicate", &what, f64::from(busy[1]), 0.0);
    }
    Ok(())
}

pub(super) fn lags(report: &mut Report) -> Result<()> {
    let (ours, theirs) = (Subject::ours()?, Subject::theirs()?);
    for rate in RATES {
        for subject in [&ours, &theirs] {
            let lag = lag(report, subject, rate)?;
            if matches!(subject, Subject::Ours(_)) && rate == RATE {
                let limit = SYNC_INTERVAL.as_secs_f64() + 0.1;
                report.at_most("replicate", "seconds until a commit is durable at 100/s, p99", lag, limit);
            }
        }
    }
    Ok(())
}

/// A sorted list's value at a share of it.
fn at(times: &[Duration], share: f64) -> f64 {
    let last = times.len().saturating_sub(1);
    times.get((last as f64 * share).round() as usize).map_or(f64::NAN, Duration::as_secs_f64)
}

fn database(path: &Path, synchronous: &str) -> Result<Connection> {
    let database = Connection::open(path)?;
    database.execute_batch(&format!(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous};
         CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB); PRAGMA user_version=1"
    ))?;
    Ok(database)
}

/// Times commits, and counts how often the application is told to come again.
fn commits(subject: &Subject, synchronous: &str) -> Result<(Vec<Duration>, u32)> {
    let folder = tempfile::Builder::new().prefix("litestream-bench-").tempdir()?;
    let server = server()?;
    let path = folder.path().join("app.db");
    let database = database(&path, synchronous)?;
    database.busy_timeout(Duration::ZERO)?;
    let mut process = subject.start(&server, std::slice::from_ref(&path), folder.path())?;
    if let Some(process) = &mut process {
        process.wait_until("the first upload", Duration::from_secs(60), || {
            Ok(server.keys(BUCKET).iter().any(|key| key.contains("/0000/")).then_some(()))
        })?;
    }
    let (mut times, mut busy) = (Vec::new(), 0);
    let begun = Instant::now();
    for number in 0..RATE * u32::try_from(TURN.as_secs())? {
        let due = Duration::from_secs(1) * number / RATE;
        wait_until("the next commit", Duration::from_secs(60), || Ok((begun.elapsed() >= due).then_some(())))?;
        let started = Instant::now();
        match database.execute("INSERT INTO t (body) VALUES (randomblob(?1))", [PAYLOAD]) {
            Ok(_) => times.push(started.elapsed()),
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => busy += 1,
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(process) = &mut process {
        process.ensure_alive("while commits beside it were timed")?;
    }
    Ok((times, busy))
}

/// How long commits take until they are durable: the 99th of a hundred, in seconds.
fn lag(report: &mut Report, subject: &Subject, rate: u32) -> Result<f64> {
    let folder = tempfile::Builder::new().prefix("litestream-bench-").tempdir()?;
    let server = server()?;
    let path = folder.path().join("app.db");
    let database = database(&path, "NORMAL")?;
    database.busy_timeout(Duration::from_secs(10))?;
    let process = subject.start(&server, std::slice::from_ref(&path), folder.path())?;
    let mut process = process.context("nobody replicates")?;
    let mut seen = Seen { server: &server, prefix: format!("{}/app.db/0000", subject.name()), next: 1, reached: 0 };
    process.wait_until("the first upload", Duration::from_secs(60), || Ok((seen.look()? > 0).then_some(())))?;
    let count = rate * u32::try_from(TURN.as_secs())?;
    let mut committed = Vec::new();
    let mut lags = Vec::new();
    let begun = Instant::now();
    let deadline = 4 * TURN;
    let mut insert = database.prepare("INSERT INTO t (body) VALUES (randomblob(?1))")?;
    while lags.len() < count as usize {
        let number = committed.len() as u32;
        if number < count && begun.elapsed() >= Duration::from_secs(1) * number / rate {
            database.execute_batch("BEGIN IMMEDIATE")?;
            insert.execute([PAYLOAD])?;
            // It lies on the first page, which every file then holds.
            database.execute_batch(&format!("PRAGMA user_version={}; COMMIT", number + 2))?;
            committed.push(Instant::now());
            continue;
        }
        let reached = seen.look()?.saturating_sub(1) as usize;
        while lags.len() < reached.min(committed.len()) {
            lags.push(committed[lags.len()].elapsed());
        }
        process.ensure_alive("while it was waited until commits are durable")?;
        ensure!(
            begun.elapsed() < deadline,
            "{}: {} of {count} commits are durable; its log ends with:\n{}",
            subject.name(),
            lags.len(),
            tail(&process.log(), 15)
        );
        std::thread::yield_now();
    }
    process.ensure_alive("while it was waited until commits are durable")?;
    drop(process);
    let keys: Vec<_> = server.keys(BUCKET).into_iter().filter(|key| key.contains("/0000/")).collect();
    let bytes: usize = keys.iter().filter_map(|key| server.object(BUCKET, key)).map(|object| object.len()).sum();
    lags.sort_unstable();
    let (p50, p99) = (at(&lags, 0.5), at(&lags, 0.99));
    report.measured(Measurement {
        bench: "replicate",
        subject: format!(
            "{}: until durable at {rate}/s (p50 {p50:.3} s, p99 {p99:.3} s, {} files, {:.2} bytes uploaded per byte written)",
            subject.name(),
            keys.len(),
            bytes as f64 / f64::from(count * PAYLOAD)
        ),
        seconds: Some(p99),
        bytes: Some(bytes as u64),
        ..Measurement::default()
    });
    Ok(p99)
}

/// Which transactions are in the store.
struct Seen<'a> {
    server: &'a S3Server,
    prefix: String,
    next: u64,
    reached: u64,
}

impl Seen<'_> {
    /// The number that the newest transaction has written.
    fn look(&mut self) -> Result<u64> {
        while let Some(object) =
            self.server.object(BUCKET, &format!("{}/{:016x}-{:016x}.ltx", self.prefix, self.next, self.next))
        {
            let mut decoder = Decoder::new(object.as_ref())?;
            let mut page = vec![0; decoder.header().page_size.bytes()];
            if decoder.next_page(&mut page)?.is_some_and(|pgno| pgno.get() == 1) {
                // https://www.sqlite.org/fileformat2.html#database_header
                self.reached = u64::from(u32::from_be_bytes(page[60..64].try_into()?));
            }
            self.next += 1;
        }
        Ok(self.reached)
    }
}
