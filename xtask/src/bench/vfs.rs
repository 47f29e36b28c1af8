//! Queries over a replica that has not been downloaded, side by side with Litestream's own extension, both loaded into Debian's `sqlite3`.
//!
//! The replica lies on the embedded S3 server at 30 ms a request. What is timed is from the statement's first byte into `sqlite3` to the
//! answer's line out of it. Warm reads are compared with plain SQLite on the same database, in this process.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use litestream_fixtures::s3::{Operation, S3Options, S3Server};
use rusqlite::{Connection, OpenFlags};

use super::subject::{self, SMALL_DATABASE, Subject, Work};
use super::{Measurement, Report, median};
use crate::tools::{LITESTREAM, Tools};

const LATENCY: Duration = Duration::from_millis(30);
pub(super) const ROUNDS: usize = 3;
/// What ends an answer.
const END: &str = "-- end of answer --";
const LARGE_DATABASE: u64 = 1_000_000_000;
/// The most memory of a process that has opened a database, in MB: 30, and the index of 1 GB at 4 bytes a page of 4 KiB.
const RSS: f64 = 31.0;
/// The same where 300 small files are kept whole, so that what deletes them does not matter.
const RSS_WITH_FILES: f64 = 36.0;
const THREADS: u32 = 16;
/// How many point reads a warm run makes.
pub(super) const WARM_READS: u32 = 200_000;

pub(super) fn run(report: &mut Report, large: bool) -> Result<()> {
    let ours = build_extension()?;
    let theirs = Tools::new()?.litestream_vfs()?;
    let size = std::fs::metadata(&ours)?.len();
    report.at_most("vfs", "size of the extension, MB", size as f64 / 1e6, 15.0);
    remote(report, "vfs-3", 3, &ours, Some(&theirs))?;
    remote(report, "vfs-302", 302, &ours, Some(&theirs))?;
    if large {
        remote(report, "vfs-1GB", 1, &ours, None)?;
    }
    Ok(())
}

/// Builds the extension in the profile that this program was built in.
pub(super) fn build_extension() -> Result<PathBuf> {
    subject::build("release")?;
    Ok(subject::target_dir()?.join("release/liblitestream_vfs.so"))
}

/// A statement and what it may cost.
struct Query {
    name: &'static str,
    sql: String,
    /// Whether it is asked of Litestream's extension too: it fetches a page at a time.
    of_both: bool,
}

fn remote(report: &mut Report, bench: &'static str, files: u32, ours: &Path, theirs: Option<&Path>) -> Result<()> {
    eprintln!("xtask: {bench}");
    let server = S3Server::start(S3Options::default()).context("cannot start the embedded S3 server")?;
    let folder = subject::scratch()?;
    let source = folder.path().join("source.db");
    let bytes = if files == 1 { LARGE_DATABASE } else { SMALL_DATABASE };
    tokio::runtime::Runtime::new()?.block_on(async {
        let replica = subject::replica_on(&server).await?;
        let mut subject = Subject::new(&source, bytes, Work::Anywhere(8))?;
        subject.execute(
            "CREATE TABLE parts(id INTEGER PRIMARY KEY, whole INTEGER);
             CREATE INDEX parts_whole ON parts(whole);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
             INSERT INTO parts SELECT i, i % 500 FROM n",
        )?;
        subject.put_snapshot(&replica).await?;
        subject.put_transactions(&replica, files - 1).await
    })?;
    let truth = Connection::open(&source)?;
    let rows: u32 = truth.query_row("SELECT max(id) FROM t0", [], |row| row.get(0))?;
    let point = rows / 3;
    let queries = [
        Query {
            name: "open + point lookup",
            sql: format!("SELECT key || number FROM t0 WHERE id = {point}"),
            of_both: true,
        },
        Query {
            name: "point lookup",
            sql: format!("SELECT key || number FROM t0 WHERE id = {}", point * 2),
            of_both: true,
        },
        Query {
            name: "20 rows by index",
            sql: "SELECT sum(number) || min(key) FROM (SELECT number, key FROM t0 INDEXED BY t0_key WHERE key > '7' ORDER BY key LIMIT 20)".to_owned(),
            of_both: true,
        },
        Query {
            name: "join of 20 rows",
            sql: "SELECT sum(t0.number) || count(*) FROM parts JOIN t0 USING (id) WHERE whole = 321".to_owned(),
            of_both: true,
        },
        Query {
            name: "scan",
            sql: "SELECT count(*) || sum(length(body)) FROM t0 NOT INDEXED".to_owned(),
            of_both: files == 3,
        },
    ];
    let answers: Vec<String> =
        queries.iter().map(|query| truth.query_row(&query.sql, [], |row| row.get(0))).collect::<Result<_, _>>()?;
    drop(truth);
    server.set_latency(LATENCY);

    let mut medians: [Vec<Option<f64>>; 2] = Default::default();
    for (contestant, extension) in [Some(ours), theirs].into_iter().enumerate() {
        let Some(extension) = extension else { continue };
        let rounds = if contestant == 0 { ROUNDS } else { 1 };
        let mut runs: Vec<Vec<Cost>> = Vec::new();
        for _ in 0..rounds {
            let mut host = Host::start(Some(extension), &server, &[])?;
            let mut costs = Vec::new();
            for (number, (query, answer)) in queries.iter().zip(&answers).enumerate() {
                if contestant == 1 && !query.of_both {
                    continue;
                }
                let open = if number == 0 { ".open file:my.db?vfs=litestream\n" } else { "" };
                let cost = host.cost(&server, &format!("{open}{};", query.sql), answer).with_context(|| query.name)?;
                costs.push(cost);
            }
            runs.push(costs);
        }
        let subject = if contestant == 0 { "ours".to_owned() } else { format!("Litestream {LITESTREAM}") };
        let asked = queries.iter().filter(|query| contestant == 0 || query.of_both);
        for (number, query) in asked.enumerate() {
            let of = |pick: fn(&Cost) -> u64| runs.iter().map(|run| pick(&run[number])).max();
            let seconds = median(runs.iter().map(|run| run[number].time).collect());
            medians[contestant].push(Some(seconds));
            report.measured(Measurement {
                bench,
                subject: format!("{subject}: {}", query.name),
                seconds: Some(seconds),
                lists: of(|cost| cost.lists),
                gets: of(|cost| cost.gets),
                bytes: of(|cost| cost.bytes),
                depth: of(|cost| cost.depth),
                peak_memory: of(|cost| cost.memory),
                ..Measurement::default()
            });
            if contestant == 0 && number == 0 {
                let memory = of(|cost| cost.memory).unwrap_or(0) as f64 / 1e6;
                report.at_most(
                    bench,
                    "RSS of sqlite3 after open, MB (with the index)",
                    memory,
                    if files == 302 { RSS_WITH_FILES } else { RSS },
                );
            }
        }
    }
    report.conditions.push(format!(
        "{bench}: database of {} MB in {files} file(s), embedded S3 server, {} ms a request, median of {ROUNDS} (Litestream: once), Debian's sqlite3 in a process of its own",
        bytes / 1_000_000,
        LATENCY.as_millis()
    ));
    let limits: [Option<f64>; 5] = match files {
        3 => [Some(0.25), None, None, None, Some(1.0 / 200.0)],
        302 => [Some(1.0 / 80.0), None, None, None, None],
        _ => [None; 5],
    };
    let [mine, others] = &medians;
    for (number, limit) in limits.into_iter().enumerate() {
        if let (Some(limit), Some(Some(mine)), Some(Some(other))) = (limit, mine.get(number), others.get(number)) {
            report.at_most(bench, &format!("{}: time, ours / Litestream's", queries[number].name), mine / other, limit);
        }
    }
    Ok(())
}

/// What an answer cost.
struct Cost {
    time: Duration,
    lists: u64,
    gets: u64,
    bytes: u64,
    depth: u64,
    memory: u64,
}

/// A running `sqlite3`, perhaps with an extension loaded.
pub(super) struct Host {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    errors: std::fs::File,
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Host {
    /// Starts it, with further variables in its environment.
    pub(super) fn start(extension: Option<&Path>, server: &S3Server, env: &[(&str, &OsStr)]) -> Result<Self> {
        let errors = tempfile::tempfile().context("cannot make a log file")?;
        let mut command = Command::new("sqlite3");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LITESTREAM_")) {
            command.env_remove(name);
        }
        subject::authorize(&mut command, server);
        command.env("LITESTREAM_REPLICA_URL", subject::s3_url(server)).env_remove("AWS_CA_BUNDLE");
        command.envs(env.iter().copied());
        command.args(["-batch", ":memory:"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors.try_clone()?);
        let mut child = command.spawn().context("cannot start sqlite3: install it (apt-get install sqlite3)")?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (input, output) = input.zip(output).context("sqlite3 has no pipes")?;
        let mut host = Self { child, input, output: BufReader::new(output), errors };
        let load = extension.map_or_else(String::new, |extension| format!(".load {}\n", extension.display()));
        host.ask(&format!("{load}SELECT 'ready';"))?;
        Ok(host)
    }

    /// Has something done, and gives the answer.
    pub(super) fn ask(&mut self, script: &str) -> Result<String> {
        writeln!(self.input, "{script}\nSELECT '{END}';")?;
        self.input.flush()?;
        let mut answer = String::new();
        loop {
            let mut line = String::new();
            ensure!(self.output.read_line(&mut line)? > 0, "sqlite3 has ended");
            if line.trim_end() == END {
                return Ok(answer.trim_end().to_owned());
            }
            answer.push_str(&line);
        }
    }

    fn cost(&mut self, server: &S3Server, script: &str, answer: &str) -> Result<Cost> {
        server.reset_stats();
        let start = Instant::now();
        let found = self.ask(script)?;
        let time = start.elapsed();
        ensure!(found == answer, "{found:?} instead of {answer:?}");
        let stats = server.stats();
        Ok(Cost {
            time,
            lists: stats.count(Operation::ListObjectsV2),
            gets: stats.count(Operation::GetObject),
            bytes: stats.bytes_out,
            depth: stats.depth,
            memory: self.memory()?,
        })
    }

    /// The memory that it has now, in bytes.
    pub(super) fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(memory.trim().trim_end_matches(" kB").trim().parse::<u64>()? << 10)
    }

    /// What it has said besides its answers.
    pub(super) fn errors(&mut self) -> Result<String> {
        let mut said = String::new();
        self.errors.rewind()?;
        self.errors.read_to_string(&mut said)?;
        Ok(crate::process::tail(said.trim(), 5))
    }
}

/// Reads of pages that are in memory, beside plain SQLite.
pub(super) fn warm(report: &mut Report) -> Result<()> {
    const BENCH: &str = "vfs-warm";
    eprintln!("xtask: {BENCH}");
    register()?;
    let folder = subject::scratch()?;
    let (source, root) = (folder.path().join("source.db"), folder.path().join("replica"));
    tokio::runtime::Runtime::new()?.block_on(async {
        let replica = subject::replica_in(&root).await?;
        let mut subject = Subject::new(&source, SMALL_DATABASE, Work::Anywhere(8))?;
        subject.put_snapshot(&replica).await?;
        subject.put_transactions(&replica, 2).await
    })?;
    // Without a WAL, plain SQLite takes locks as we do.
    Connection::open(&source)?.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    let ours = format!("file:my.db?vfs=litestream&replica_url=file://{}", root.display());
    let plain = format!("file:{}?mode=ro", source.display());
    let (mut points, mut scans): ([Vec<Duration>; 2], [Vec<Duration>; 2]) = Default::default();
    for _ in 0..ROUNDS {
        for (number, uri) in [&ours, &plain].into_iter().enumerate() {
            let connection = open(uri)?;
            scan(&connection)?;
            points[number].push(point_reads(&connection, WARM_READS)?);
            scans[number].push(scan(&connection)?);
        }
    }
    // So many reads by each of 16 threads, and as many by one: what scales takes 16 times as long, divided by the cores.
    let each = WARM_READS / 4;
    let (mut scaling, mut all) = ([0.0; 2], [0.0; 2]);
    for (number, uri) in [&ours, &plain].into_iter().enumerate() {
        let connections = (0..THREADS).map(|_| open(uri)).collect::<Result<Vec<_>>>()?;
        connections.iter().try_for_each(|connection| scan(connection).map(drop))?;
        let one = point_reads(&connections[0], each)?;
        let start = Instant::now();
        std::thread::scope(|scope| {
            let readers: Vec<_> =
                connections.into_iter().map(|connection| scope.spawn(move || point_reads(&connection, each))).collect();
            readers
                .into_iter()
                .try_for_each(|reader| reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?.map(drop))
        })?;
        all[number] = start.elapsed().as_secs_f64();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        scaling[number] = one.as_secs_f64() * f64::from(THREADS) / all[number] / cores;
    }
    report.conditions.push(format!(
        "{BENCH}: {} MB in memory; {WARM_READS} point reads, each a transaction, and a scan; SQLite's own page cache at its default of 2 MB; median of {ROUNDS}; plain SQLite without WAL",
        SMALL_DATABASE >> 20
    ));
    let [mine, other] = points.map(median);
    let [my_scan, other_scan] = scans.map(median);
    for (subject, seconds) in [
        ("ours: point reads", mine),
        ("plain SQLite: point reads", other),
        ("ours: scan", my_scan),
        ("plain SQLite: scan", other_scan),
        ("ours: point reads by 16 threads", all[0]),
        ("plain SQLite: point reads by 16 threads", all[1]),
    ] {
        report.measured(Measurement {
            bench: BENCH,
            subject: subject.to_owned(),
            seconds: Some(seconds),
            ..Measurement::default()
        });
    }
    report.at_least(BENCH, "speed of point reads, ours / plain SQLite", other / mine, 0.9);
    report.at_least(BENCH, "speed of a scan, ours / plain SQLite", other_scan / my_scan, 0.9);
    report.at_least(BENCH, "16 threads: share of the cores' speed", scaling[0], 0.7);
    report.at_least(BENCH, "16 threads: speed, ours / plain SQLite", all[1] / all[0], 0.9);
    Ok(())
}

/// Makes the VFS known to the SQLite in this process.
pub(super) fn register() -> Result<()> {
    ensure!(litestream_vfs::register(rusqlite::ffi::sqlite3_auto_extension), "cannot register the VFS");
    drop(Connection::open_in_memory()?);
    Ok(())
}

pub(super) fn open(uri: &str) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Ok(Connection::open_with_flags(uri, flags)?)
}

pub(super) fn point_reads(connection: &Connection, count: u32) -> Result<Duration> {
    let rows: u32 = connection.query_row("SELECT max(id) FROM t0", [], |row| row.get(0))?;
    let mut random = fastrand::Rng::with_seed(5);
    let mut statement = connection.prepare("SELECT number FROM t0 WHERE id = ?1")?;
    let start = Instant::now();
    let mut sum = 0;
    for _ in 0..count {
        sum += statement.query_row([random.u32(1..=rows)], |row| row.get::<_, i64>(0))?;
    }
    std::hint::black_box(sum);
    Ok(start.elapsed())
}

pub(super) fn scan(connection: &Connection) -> Result<Duration> {
    let start = Instant::now();
    connection.query_row("SELECT sum(length(body)) FROM t0 NOT INDEXED", [], |row| row.get::<_, i64>(0))?;
    Ok(start.elapsed())
}
