//! From a process's start to its first durable write, beside Litestream's extension and beside "restore, then open"; and hydration.
//!
//! Each round is a `sqlite3` of its own with a new write buffer, and finds the replica as the rounds before found it. It loads the extension and
//! opens the database, reads a row by its key, changes another row under `synchronous=FULL`, and has that uploaded. Both rows lie on pages of the
//! snapshot that no small file holds, and that are far from each other. What a step costs is what
//! came since the step before, as the server has counted it: what was fetched ahead meanwhile is in there. Litestream cannot be asked to
//! upload: it is told to do so every 10 ms, and what it commits counts as durable once the server has answered its PUT.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use litestream_fixtures::s3::{Operation, S3Options, S3Server, Stats};
use litestream_pageindex::{Target, View};
use litestream_storage::FileInfo;
use ltx::Pgno;
use rusqlite::Connection;

use super::child;
use super::subject::{self, Subject, Work};
use super::vfs::{self, Host, ROUNDS, WARM_READS};
use super::{Measurement, Report, median, megabytes};
use crate::litestream::Litestream;
use crate::tools::{LITESTREAM, Tools};

const BENCH: &str = "coldstart";
const HYDRATION: &str = "hydration";
const DEADLINE: Duration = Duration::from_secs(300);
/// The time between two looks at what is not told.
const LOOK: Duration = Duration::from_millis(1);
/// The hydrated database's size in MiB, and the line on which it comes, in bytes a second.
const HYDRATED: u64 = 30;
const LINE: u64 = 100_000_000;
/// The ranges of the raw transfer: so many bytes each, and so many at once.
const SPAN: u64 = 2 << 20;
const AT_ONCE: usize = 16;

pub(super) fn run(report: &mut Report, large: bool) -> Result<()> {
    let tools = Tools::new()?;
    let programs = Programs {
        extension: vfs::build_extension()?,
        their_extension: tools.litestream_vfs()?,
        ours: subject::build_ours()?,
        theirs: tools.litestream(LITESTREAM)?,
    };
    let (sizes, latencies): (&[u64], &[u64]) = if large { (&[1, 10, 30], &[5, 30]) } else { (&[10], &[30]) };
    for megabytes in sizes {
        for files in [3, 302] {
            let replica = Replicated::new(*megabytes, files)?;
            for latency in latencies {
                replica.measure(report, &programs, *latency)?;
            }
        }
    }
    report.conditions.push(format!(
        "{BENCH}: embedded S3 server, Debian's sqlite3 in a process of its own, a new write buffer each, median of {ROUNDS} (Litestream on 302 files: once); \
         Litestream uploads every 10 ms; a step's requests are the most of any round"
    ));
    hydration(report, &programs.extension)?;
    hydrated_reads(report)
}

/// What is started.
struct Programs {
    extension: PathBuf,
    their_extension: PathBuf,
    ours: PathBuf,
    theirs: Litestream,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contestant {
    Ours,
    OursHydrating,
    Theirs,
    OurRestore,
    TheirRestore,
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours => f.write_str("ours"),
            Self::OursHydrating => f.write_str("ours, hydrating"),
            Self::Theirs => write!(f, "Litestream {LITESTREAM}"),
            Self::OurRestore => f.write_str("our restore, then open"),
            Self::TheirRestore => f.write_str("Litestream's restore, then open"),
        }
    }
}

impl Contestant {
    const ALL: [Self; 5] = [Self::Ours, Self::OursHydrating, Self::Theirs, Self::OurRestore, Self::TheirRestore];

    fn is_theirs(self) -> bool {
        matches!(self, Self::Theirs | Self::TheirRestore)
    }
}

/// A replica, and what is to be asked of it.
struct Replicated {
    server: S3Server,
    folder: tempfile::TempDir,
    name: String,
    files: u32,
    keys: Vec<String>,
    read: (String, String),
    write: (String, String),
    /// How many pages lie between the root of the table and the row that is changed, with the row's own.
    pages: u32,
}

/// What has been reached, and what it took from the start.
struct Reached {
    step: &'static str,
    time: Duration,
    stats: Stats,
}

/// One round.
#[derive(Default)]
struct Run {
    reached: Vec<Reached>,
    memory: Option<u64>,
    /// Why it ended before the last step.
    failed: Option<String>,
}

/// All rounds of one contestant, and the median time from the start to each step.
struct Told {
    contestant: Contestant,
    times: Vec<(&'static str, f64)>,
    runs: Vec<Run>,
}

/// A round under way.
struct Clock<'a> {
    server: &'a S3Server,
    start: Instant,
    run: Run,
}

impl Clock<'_> {
    fn reached(&mut self, step: &'static str) {
        self.run.reached.push(Reached { step, time: self.start.elapsed(), stats: self.server.stats() });
    }
}

const OPEN: &str = "start and open";
const READ: &str = "first read";
const COMMIT: &str = "first committed write";
const DURABLE: &str = "durable";

impl Replicated {
    fn new(megabytes: u64, files: u32) -> Result<Self> {
        eprintln!("xtask: {BENCH}: {megabytes} MB in {files} files");
        let server = S3Server::start(S3Options::default()).context("cannot start the embedded S3 server")?;
        let folder = subject::scratch()?;
        let source = folder.path().join("source.db");
        let view = tokio::runtime::Runtime::new()?.block_on(async {
            let replica = subject::replica_on(&server).await?;
            let mut subject = Subject::new(&source, megabytes << 20, Work::Anywhere(8))?;
            subject.put_snapshot(&replica).await?;
            subject.put_transactions(&replica, files - 1).await?;
            let plan = litestream_pageindex::find(&replica, Target::Latest).await?.0;
            anyhow::Ok(View::open(&replica, &plan, &[], &Arc::default()).await?)
        })?;
        let truth = Connection::open(&source)?;
        let rows: u32 = truth.query_row("SELECT max(id) FROM t0", [], |row| row.get(0))?;
        let (point, other) = (far_row(&truth, &view, rows / 3)?, far_row(&truth, &view, rows / 3 * 2)?);
        ensure!(point < other, "no two rows lie apart from what comes with the open");
        let read = format!("SELECT key || number FROM t0 WHERE id = {point}");
        let answer = truth.query_row(&read, [], |row| row.get(0))?;
        let number: i64 = truth.query_row("SELECT number FROM t0 WHERE id = ?1", [other], |row| row.get(0))?;
        // A page's path is `/`, and four characters more for each page on the way from the root (<https://www.sqlite.org/dbstat.html>).
        let pages = truth.query_row(
            "SELECT (max(length(path)) - 1) / 4 FROM dbstat WHERE name = 't0' AND pagetype = 'leaf'",
            [],
            |row| row.get(0),
        )?;
        Ok(Self {
            keys: server.keys(subject::BUCKET),
            name: format!("{megabytes} MB, {files} files"),
            read: (read, answer),
            write: (
                format!("UPDATE t0 SET number = number + 1 WHERE id = {other} RETURNING number"),
                (number + 1).to_string(),
            ),
            server,
            folder,
            files,
            pages,
        })
    }

    fn measure(&self, report: &mut Report, programs: &Programs, latency: u64) -> Result<()> {
        self.server.set_latency(Duration::from_millis(latency));
        let mut told = Vec::new();
        for contestant in Contestant::ALL {
            let rounds = if contestant.is_theirs() && self.files > 3 { 1 } else { ROUNDS };
            let mut runs = Vec::new();
            for round in 0..rounds {
                let folder = self.folder.path().join(format!("{contestant:?}-{latency}-{round}"));
                std::fs::create_dir(&folder)?;
                let run = match contestant {
                    Contestant::OurRestore | Contestant::TheirRestore => self.restored(programs, contestant, &folder),
                    _ => self.extended(programs, contestant, &folder),
                };
                runs.push(run.with_context(|| format!("{}: {contestant}", self.name))?);
                self.tidy(&folder)?;
            }
            let what = format!("{}, {latency} ms, {contestant}", self.name);
            if let Some(why) = runs.iter().find_map(|run| run.failed.as_ref()) {
                report.conditions.push(format!("{what}: not to its end: {why}"));
            }
            told.push(Told { contestant, times: tell(report, &what, &runs), runs });
        }
        if latency == 30 {
            self.judge(report, &told);
        }
        Ok(())
    }

    /// Goals are for 30 ms.
    fn judge(&self, report: &mut Report, told: &[Told]) {
        let name = &self.name;
        let of = |contestant| told.iter().find(|told| told.contestant == contestant);
        let (Some(Told { times, runs, .. }), Some(theirs)) = (of(Contestant::Ours), of(Contestant::Theirs)) else {
            return;
        };
        let depth = |run: &Run, step| {
            run.reached.iter().find(|reached| reached.step == step).map_or(u64::MAX, |reached| reached.stats.depth)
        };
        let most = |of: &dyn Fn(&Run) -> u64| runs.iter().map(of).max().unwrap_or(u64::MAX) as f64;
        report.at_most(BENCH, &format!("{name}: round trips to the first read"), most(&|run| depth(run, READ)), 5.0);
        let further = most(&|run| depth(run, COMMIT) - depth(run, READ));
        let what = format!("{name}: further round trips to the first committed write (limit: pages it touches)");
        report.at_most(BENCH, &what, further, f64::from(self.pages));
        let limit = if self.files == 3 { 1.0 / 4.0 } else { 1.0 / 80.0 };
        for (step, time) in times {
            if let Some((_, other)) = theirs.times.iter().find(|(other, _)| other == step)
                && *step != OPEN
            {
                report.at_most(BENCH, &format!("{name}: time to {step}, ours / Litestream's"), time / other, limit);
            }
        }
    }

    /// With an extension.
    fn extended(&self, programs: &Programs, contestant: Contestant, folder: &Path) -> Result<Run> {
        let buffer = folder.join("buffer");
        let mut env =
            vec![("LITESTREAM_WRITE_ENABLED", OsStr::new("true")), ("LITESTREAM_BUFFER_PATH", buffer.as_os_str())];
        let extension = match contestant {
            Contestant::Theirs => {
                env.push(("LITESTREAM_SYNC_INTERVAL", OsStr::new("10ms")));
                &programs.their_extension
            }
            _ => &programs.extension,
        };
        if contestant == Contestant::OursHydrating {
            env.push(("LITESTREAM_HYDRATION_ENABLED", OsStr::new("true")));
        }
        let mut clock = self.start();
        let mut host = Host::start(Some(extension), &self.server, &env)?;
        if !self.opened(&mut clock, &mut host, "file:my.db?vfs=litestream")? {
            return Ok(clock.run);
        }
        if contestant == Contestant::Theirs {
            self.until_put()?;
        } else {
            host.ask("PRAGMA litestream_sync;")?;
        }
        clock.reached(DURABLE);
        let files = self.server.keys(subject::BUCKET).iter().filter(|key| key.ends_with(".ltx")).count();
        ensure!(files == self.files as usize + 1, "{files} files in the replica, of which {} were there", self.files);
        clock.run.memory = Some(host.memory()?);
        Ok(clock.run)
    }

    /// Restored first: what is written then stays here.
    fn restored(&self, programs: &Programs, contestant: Contestant, folder: &Path) -> Result<Run> {
        let output = folder.join("restored.db");
        let mut command = match contestant {
            Contestant::OurRestore => subject::our_restore(&programs.ours),
            _ => {
                let mut command: Command = programs.theirs.command();
                command.arg("restore");
                command
            }
        };
        subject::authorize(&mut command, &self.server);
        command.arg("-o").arg(&output).arg(subject::s3_url(&self.server));
        let mut clock = self.start();
        child::run(&mut command, DEADLINE)?.succeeded("restore")?;
        let mut host = Host::start(None, &self.server, &[])?;
        self.opened(&mut clock, &mut host, &output.display().to_string())?;
        Ok(clock.run)
    }

    fn start(&self) -> Clock<'_> {
        self.server.reset_stats();
        Clock { server: &self.server, start: Instant::now(), run: Run::default() }
    }

    /// Opens, reads and writes. False where that did not work to its end.
    fn opened(&self, clock: &mut Clock<'_>, host: &mut Host, name: &str) -> Result<bool> {
        host.ask(&format!(".open {name}"))?;
        clock.reached(OPEN);
        for ((sql, answer), step) in [(&self.read, READ), (&self.write, COMMIT)] {
            let found = host.ask(&format!("{sql};"))?;
            clock.reached(step);
            if found != *answer {
                clock.run.reached.pop();
                clock.run.failed = Some(format!("{step}: {found:?} instead of {answer:?}: {}", host.errors()?));
                return Ok(false);
            }
        }
        ensure!(host.ask("PRAGMA synchronous;")? == "2", "synchronous is not FULL");
        Ok(true)
    }

    /// Waits until a PUT has been answered.
    fn until_put(&self) -> Result<()> {
        let start = Instant::now();
        let put = || {
            let requests = self.server.requests();
            requests.iter().any(|request| {
                request.operation == Operation::PutObject && request.status == Some(200) && request.finished.is_some()
            })
        };
        while !put() {
            ensure!(start.elapsed() < Duration::from_secs(60), "nothing is uploaded");
            std::thread::park_timeout(LOOK);
        }
        Ok(())
    }

    /// Makes the replica what it was.
    fn tidy(&self, folder: &Path) -> Result<()> {
        for key in self.server.keys(subject::BUCKET) {
            if self.keys.binary_search(&key).is_err() {
                self.server.remove_object(subject::BUCKET, &key);
            }
        }
        Ok(std::fs::remove_dir_all(folder)?)
    }
}

/// A row from this one on that nobody gets for nothing: in its newest version its page lies in the snapshot, not in a small file that comes whole.
fn far_row(truth: &Connection, view: &View, from: u32) -> Result<u32> {
    let small: HashSet<u32> = view.overlaid().map(Pgno::get).collect();
    // In the order of the tree, which is that of the rows: none was ever deleted, so the first leaf has the first `ncell` ids, and so on.
    let mut leaves = truth
        .prepare("SELECT pageno, ncell FROM dbstat WHERE name = 't0' AND pagetype = 'leaf' ORDER BY path")
        .context("cannot ask for the table's pages")?;
    let mut last = 0;
    for leaf in leaves.query_map([], |row| Ok((row.get::<_, u32>(0)?, row.get::<_, u32>(1)?)))? {
        let (page, rows) = leaf?;
        last += rows;
        if last >= from && !small.contains(&page) {
            return Ok(last);
        }
    }
    anyhow::bail!("from row {from} on there is none whose page lies in the snapshot")
}

/// A row for each step, of what it took beyond the one before, and one for all. Gives the median time from the start to each step.
fn tell(report: &mut Report, what: &str, runs: &[Run]) -> Vec<(&'static str, f64)> {
    let steps = runs.iter().map(|run| run.reached.len()).min().unwrap_or(0);
    let mut times = Vec::new();
    for number in 0..steps {
        let step = runs[0].reached[number].step;
        let costs: Vec<Measurement> = runs
            .iter()
            .map(|run| cost(number.checked_sub(1).map(|before| &run.reached[before]), &run.reached[number]))
            .collect();
        report.measured(worst(format!("{what}: {step}"), &costs));
        times.push((step, median(runs.iter().map(|run| run.reached[number].time).collect())));
    }
    let costs: Vec<Measurement> = runs
        .iter()
        .filter_map(|run| {
            Some(Measurement { peak_memory: run.memory, ..cost(None, run.reached.get(steps.checked_sub(1)?)?) })
        })
        .collect();
    report.measured(worst(format!("{what}: all"), &costs));
    times
}

/// What it took from one step to another.
fn cost(before: Option<&Reached>, after: &Reached) -> Measurement {
    let none = Stats::default();
    let (then, now) = (before.map_or(&none, |before| &before.stats), &after.stats);
    let count = |operation| Some(now.count(operation) - then.count(operation));
    let writes = |stats: &Stats| {
        stats.requests.iter().filter(|(operation, _)| operation.is_write()).map(|(_, n)| n).sum::<u64>()
    };
    Measurement {
        seconds: Some((after.time - before.map_or(Duration::ZERO, |before| before.time)).as_secs_f64()),
        lists: count(Operation::ListObjectsV2),
        gets: count(Operation::GetObject),
        writes: Some(writes(now) - writes(then)),
        bytes: Some(now.bytes_out - then.bytes_out),
        depth: Some(now.depth - then.depth),
        ..Measurement::default()
    }
}

/// The median of the times, and the most of all else.
fn worst(subject: String, costs: &[Measurement]) -> Measurement {
    let of = |pick: fn(&Measurement) -> Option<u64>| costs.iter().filter_map(pick).max();
    let times = costs.iter().filter_map(|cost| cost.seconds.map(Duration::from_secs_f64)).collect();
    Measurement {
        bench: BENCH,
        subject,
        seconds: Some(median(times)),
        lists: of(|cost| cost.lists),
        gets: of(|cost| cost.gets),
        writes: of(|cost| cost.writes),
        bytes: of(|cost| cost.bytes),
        depth: of(|cost| cost.depth),
        peak_memory: of(|cost| cost.peak_memory),
        ..Measurement::default()
    }
}

/// Hydration beside the transfer of the same bytes.
fn hydration(report: &mut Report, extension: &Path) -> Result<()> {
    eprintln!("xtask: {HYDRATION}: {HYDRATED} MB");
    let server = S3Server::start(S3Options::default()).context("cannot start the embedded S3 server")?;
    let folder = subject::scratch()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let plan = runtime.block_on(async {
        let replica = subject::replica_on(&server).await?;
        let mut subject = Subject::new(&folder.path().join("source.db"), HYDRATED << 20, Work::Anywhere(8))?;
        subject.put_snapshot(&replica).await?;
        subject.put_transactions(&replica, 2).await?;
        anyhow::Ok(litestream_pageindex::find(&replica, Target::Latest).await?.0)
    })?;
    server.set_latency(Duration::from_millis(30));
    server.set_line(Some(LINE));
    let bytes: u64 = plan.files.iter().map(FileInfo::size).sum();
    let (mut opened, mut hydrated, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    let mut counted = Vec::new();
    for _ in 0..ROUNDS {
        raw.push(runtime.block_on(transfer(&server, &plan.files))?);
        let mut host = Host::start(Some(extension), &server, &[("LITESTREAM_HYDRATION_ENABLED", OsStr::new("true"))])?;
        server.reset_stats();
        let start = Instant::now();
        host.ask(".open file:my.db?vfs=litestream")?;
        opened.push(start.elapsed());
        while host.ask("PRAGMA litestream_hydration_progress;")? != "100" {
            ensure!(start.elapsed() < DEADLINE, "hydration does not end");
            std::thread::park_timeout(LOOK);
        }
        hydrated.push(start.elapsed());
        counted.push(server.stats());
    }
    report.conditions.push(format!(
        "{HYDRATION}: database of {HYDRATED} MB in 3 files of {:.1} MB, 30 ms a request, a line of {} MB/s that all answers share, median of {ROUNDS}; \
         raw: ranges of {} MiB, {AT_ONCE} at once",
        megabytes(bytes),
        LINE / 1_000_000,
        SPAN >> 20
    ));
    let [opened, hydrated, raw] = [opened, hydrated, raw].map(median);
    let most = |of: fn(&Stats) -> u64| counted.iter().map(of).max();
    for (subject, seconds) in [("raw transfer", raw), ("ours: open", opened)] {
        report.measured(Measurement {
            bench: HYDRATION,
            subject: subject.to_owned(),
            seconds: Some(seconds),
            ..Measurement::default()
        });
    }
    report.measured(Measurement {
        bench: HYDRATION,
        subject: "ours: open to hydrated".to_owned(),
        seconds: Some(hydrated),
        mb_per_second: Some(megabytes(HYDRATED << 20) / hydrated),
        lists: most(|stats| stats.count(Operation::ListObjectsV2)),
        gets: most(|stats| stats.count(Operation::GetObject)),
        bytes: most(|stats| stats.bytes_out),
        depth: most(|stats| stats.depth),
        ..Measurement::default()
    });
    report.at_most(HYDRATION, "time from open to hydrated / raw transfer", hydrated / raw, 1.5);
    Ok(())
}

/// Reads all bytes of files, and keeps none.
async fn transfer(server: &S3Server, files: &[FileInfo]) -> Result<Duration> {
    // A client of its own, which has no connections yet.
    let replica = subject::replica_on(server).await?;
    let start = Instant::now();
    let spans = files.iter().flat_map(|file| {
        let size = file.size();
        (0..size).step_by(SPAN as usize).map(move |from| (file, from..size.min(from + SPAN)))
    });
    stream::iter(spans)
        .map(|(file, span)| replica.get_span(file, span))
        .buffer_unordered(AT_ONCE)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(start.elapsed())
}

/// Reads from the hydrated file, beside plain SQLite on a copy.
fn hydrated_reads(report: &mut Report) -> Result<()> {
    vfs::register()?;
    let folder = subject::scratch()?;
    let (source, root) = (folder.path().join("source.db"), folder.path().join("replica"));
    tokio::runtime::Runtime::new()?.block_on(async {
        let replica = subject::replica_in(&root).await?;
        let mut subject = Subject::new(&source, HYDRATED << 20, Work::Anywhere(8))?;
        subject.put_snapshot(&replica).await?;
        subject.put_transactions(&replica, 2).await
    })?;
    // Without a WAL, plain SQLite takes locks as we do.
    Connection::open(&source)?.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    let ours = format!("file:my.db?vfs=litestream&hydration_enabled=1&replica_url=file://{}", root.display());
    let ours = vfs::open(&ours)?;
    let start = Instant::now();
    while ours.query_row("PRAGMA litestream_hydration_progress", [], |row| row.get::<_, String>(0))? != "100" {
        ensure!(start.elapsed() < DEADLINE, "hydration does not end");
        std::thread::park_timeout(LOOK);
    }
    let plain = vfs::open(&format!("file:{}?mode=ro", source.display()))?;
    let (mut points, mut scans): ([Vec<Duration>; 2], [Vec<Duration>; 2]) = Default::default();
    for _ in 0..ROUNDS {
        for (number, connection) in [&ours, &plain].into_iter().enumerate() {
            vfs::scan(connection)?;
            points[number].push(vfs::point_reads(connection, WARM_READS)?);
            scans[number].push(vfs::scan(connection)?);
        }
    }
    let stats: String = ours.query_row("PRAGMA litestream_stats", [], |row| row.get(0))?;
    let local = stats.lines().find_map(|line| line.strip_prefix("local_reads ")?.parse::<u32>().ok());
    ensure!(local.is_some_and(|local| local > WARM_READS), "not read from the hydrated file:\n{stats}");
    report.conditions.push(format!(
        "{HYDRATION}, reads: {WARM_READS} point reads, each a transaction, and a scan, of {HYDRATED} MB in files in the page cache; plain SQLite without WAL; median of {ROUNDS}"
    ));
    let [points, scans] = [points.map(median), scans.map(median)];
    for (what, [mine, other], ratio) in [
        ("point reads", points, "speed of point reads, ours / plain SQLite"),
        ("scan", scans, "speed of a scan, ours / plain SQLite"),
    ] {
        for (subject, seconds) in [("ours, hydrated", mine), ("plain SQLite", other)] {
            report.measured(Measurement {
                bench: HYDRATION,
                subject: format!("{subject}: {what}"),
                seconds: Some(seconds),
                ..Measurement::default()
            });
        }
        report.at_least(HYDRATION, ratio, other / mine, 0.9);
    }
    Ok(())
}
