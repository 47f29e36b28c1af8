//! `cargo xtask bench`: our speed, side by side with real Litestream's and with `cp`, in one run on one machine.
//!
//! This file knows what there is to measure and how it is told: a table of measurements, a table of the project's targets, and JSON.
//! What is measured lies below: `restore` (many small files, far away), `files` (one large database, close by), `vfs` (queries without a restore),
//! `coldstart` (a process's first read and write), `compact`, `codec` and `replicate` (the sidecar).
//! Times depend on the machine; ratios, requests, bytes and depth hardly do.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tabled::settings::Style;
use tabled::{Table, Tabled};

pub(crate) mod child;
mod codec;
mod coldstart;
mod compact;
mod files;
mod replicate;
mod restore;
pub(crate) mod subject;
mod vfs;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only these
    #[arg(value_enum)]
    only: Vec<Bench>,
    /// Write the results there, too, as JSON
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Also restore, and query, a database of 1 GB, for the memory, and start on databases of all sizes
    #[arg(long)]
    large: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Restore 302 files from S3 at 30 ms a request
    Restore,
    /// Restore a database of 500 MB from files
    Files,
    /// Compact 300 files into one
    Compact,
    /// Encode and decode
    Codec,
    /// Query replicas that have not been downloaded
    Vfs,
    /// Query what is in memory, beside plain SQLite
    Warm,
    /// Start a process, read and write, hydrate
    #[value(name = "coldstart")]
    ColdStart,
    /// Replicate live databases: all of the following
    Replicate,
    /// An application's commits beside a replicator
    Commits,
    /// Until commits are durable
    Lag,
    /// Databases of which few change
    Idle,
}

/// One contestant in one discipline.
#[derive(Debug, Default, Serialize)]
struct Measurement {
    bench: &'static str,
    subject: String,
    /// Median, in seconds.
    seconds: Option<f64>,
    /// Of database pages.
    mb_per_second: Option<f64>,
    lists: Option<u64>,
    gets: Option<u64>,
    /// Requests that change something.
    writes: Option<u64>,
    /// The most GETs of any one small file.
    gets_per_small_file: Option<u64>,
    bytes: Option<u64>,
    /// How many requests had to wait for one another.
    depth: Option<u64>,
    peak_memory: Option<u64>,
}

/// What the project wants to reach, and whether it does.
#[derive(Debug, Serialize)]
struct Target {
    bench: &'static str,
    what: String,
    measured: f64,
    limit: f64,
    met: bool,
}

/// All results.
#[derive(Debug, Default, Serialize)]
struct Report {
    conditions: Vec<String>,
    measurements: Vec<Measurement>,
    targets: Vec<Target>,
}

impl Report {
    fn measured(&mut self, measurement: Measurement) {
        self.measurements.push(measurement);
    }

    /// A target that is met by being no more than the limit.
    fn at_most(&mut self, bench: &'static str, what: &str, measured: f64, limit: f64) {
        self.targets.push(Target { bench, what: what.to_owned(), measured, limit, met: measured <= limit });
    }

    /// A target that is met by being no less than the limit.
    fn at_least(&mut self, bench: &'static str, what: &str, measured: f64, limit: f64) {
        self.targets.push(Target { bench, what: what.to_owned(), measured, limit, met: measured >= limit });
    }
}

/// Measures, prints, and writes the JSON; where something goes wrong, what was measured until then.
///
/// # Errors
/// Something does not work, gives wrong results, or misses its target.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if cfg!(debug_assertions) {
        return run_released();
    }
    let mut report = Report { conditions: conditions(), ..Report::default() };
    let outcome = measure(arguments, &mut report);
    print(&report);
    if let Some(path) = &arguments.json {
        fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    outcome?;
    let missed = report.targets.iter().filter(|target| !target.met).count();
    ensure!(missed == 0, "{missed} of {} targets are not met", report.targets.len());
    Ok(())
}

fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let wanted = |bench| arguments.only.is_empty() || arguments.only.contains(&bench);
    if wanted(Bench::Codec) {
        codec::run(report)?;
    }
    if wanted(Bench::Vfs) {
        vfs::run(report, arguments.large)?;
    }
    if wanted(Bench::Warm) {
        vfs::warm(report)?;
    }
    if wanted(Bench::ColdStart) {
        coldstart::run(report, arguments.large)?;
    }
    if wanted(Bench::Compact) {
        compact::run(report)?;
    }
    if wanted(Bench::Files) {
        files::run(report, arguments.large)?;
    }
    if wanted(Bench::Restore) {
        restore::run(report)?;
    }
    let wanted = |bench| wanted(bench) || arguments.only.contains(&Bench::Replicate);
    if wanted(Bench::Commits) {
        replicate::commits(report)?;
    }
    if wanted(Bench::Lag) {
        replicate::lag(report)?;
    }
    if wanted(Bench::Idle) {
        replicate::idle(report, arguments.large)?;
    }
    Ok(())
}

/// Runs this again as a release build.
fn run_released() -> Result<()> {
    eprintln!("xtask: this is a debug build; measuring with: cargo run --release --package xtask");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "--quiet", "--release", "--package", "xtask", "--"])
        .args(std::env::args_os().skip(1))
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the release build's run failed ({status})");
    Ok(())
}

fn conditions() -> Vec<String> {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    vec![
        format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        format!("{} cores, {}", cores(), name.map_or("unknown CPU", |(_, name)| name.trim())),
        format!("load before: {}", load.split(' ').next().unwrap_or("unknown")),
    ]
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn print(report: &Report) {
    #[derive(Tabled)]
    #[tabled(rename_all = "lower")]
    struct Row {
        bench: &'static str,
        what: String,
        seconds: String,
        #[tabled(rename = "MB/s")]
        speed: String,
        lists: String,
        gets: String,
        writes: String,
        #[tabled(rename = "gets/small file")]
        per_file: String,
        #[tabled(rename = "MB out")]
        bytes: String,
        depth: String,
        #[tabled(rename = "peak MB")]
        memory: String,
    }
    #[derive(Tabled)]
    #[tabled(rename_all = "lower")]
    struct Goal<'a> {
        bench: &'a str,
        target: &'a str,
        measured: String,
        limit: String,
        result: &'a str,
    }
    let rows = report.measurements.iter().map(|m| Row {
        bench: m.bench,
        what: m.subject.clone(),
        seconds: cell(m.seconds, 3),
        speed: cell(m.mb_per_second, 0),
        lists: whole(m.lists),
        gets: whole(m.gets),
        writes: whole(m.writes),
        per_file: whole(m.gets_per_small_file),
        bytes: cell(m.bytes.map(megabytes), 2),
        depth: whole(m.depth),
        memory: cell(m.peak_memory.map(megabytes), 0),
    });
    println!("\n{}", report.conditions.join("; "));
    println!("{}", Table::new(rows).with(Style::sharp()));
    let goals = report.targets.iter().map(|target| Goal {
        bench: target.bench,
        target: &target.what,
        measured: format!("{:.3}", target.measured),
        limit: format!("{:.3}", target.limit),
        result: if target.met { "met" } else { "NOT met" },
    });
    if !report.targets.is_empty() {
        println!("{}", Table::new(goals).with(Style::sharp()));
    }
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map(|value| format!("{value:.digits$}")).unwrap_or_default()
}

fn whole(value: Option<u64>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The middle one; of an even number the upper middle.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
}
