//! Restoring a large database from files, beside the least that could be done: copying it.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use litestream_fixtures::db::sha256_file;

use super::child::{self, Finished};
use super::subject::{self, Subject, Work};
use super::{Measurement, Report, median, megabytes};
use crate::litestream::{Litestream, file_url};
use crate::tools::{LITESTREAM, Tools};

const ROUNDS: usize = 3;
const TRANSACTIONS: u32 = 3;
const DEADLINE: Duration = Duration::from_secs(600);

pub(super) fn run(report: &mut Report, large: bool) -> Result<()> {
    let ours = subject::build_ours()?;
    let litestream = Tools::new()?.litestream(LITESTREAM)?;
    measure(report, &ours, &litestream, "files-500", 500_000_000)?;
    if large {
        measure(report, &ours, &litestream, "files-1000", 1_000_000_000)?;
    }
    Ok(())
}

/// Restores a database of so many bytes with all contestants in turn.
fn measure(report: &mut Report, ours: &Path, litestream: &Litestream, bench: &'static str, bytes: u64) -> Result<()> {
    eprintln!("xtask: {bench}");
    let folder = subject::scratch()?;
    let replica = folder.path().join("replica");
    let source = folder.path().join("source.db");
    let output = folder.path().join("restored.db");
    let expected = tokio::runtime::Runtime::new()?.block_on(async {
        let files = subject::replica_in(&replica).await?;
        let mut subject = Subject::new(&source, bytes, Work::Anywhere(50))?;
        subject.put_snapshot(&files).await?;
        subject.put_transactions(&files, TRANSACTIONS).await?;
        subject.sha256()
    })?;
    // What was written just now must not be written out while the first contestant runs.
    File::open(&source)?.sync_all()?;
    let size = source.metadata()?.len();
    let url = file_url(&replica);

    let names = ["ours".to_owned(), format!("Litestream {LITESTREAM}"), "cp + fsync".to_owned()];
    let mut runs: [Vec<(Duration, u64)>; 3] = Default::default();
    for _ in 0..ROUNDS {
        for (number, runs) in runs.iter_mut().enumerate() {
            let run = match number {
                0 => restore(subject::our_restore(ours).arg("-o").arg(&output).arg(&url))?,
                1 => restore(litestream.command().args(["restore", "-o"]).arg(&output).arg(&url))?,
                _ => (copy(&source, &output)?, 0),
            };
            runs.push(run);
            ensure!(sha256_file(&output)? == expected, "{}: not the original", names[number]);
            fs::remove_file(&output)?;
        }
    }
    let peak_memory = runs[0].iter().map(|(_, memory)| *memory).max().unwrap_or(0);
    let mut seconds = Vec::new();
    for (subject, runs) in names.into_iter().zip(runs) {
        let peak = runs.iter().map(|(_, memory)| *memory).max().filter(|peak| *peak > 0);
        let time = median(runs.into_iter().map(|(time, _)| time).collect());
        seconds.push(time);
        report.measured(Measurement {
            bench,
            subject,
            seconds: Some(time),
            mb_per_second: Some(megabytes(size) / time),
            peak_memory: peak,
            ..Measurement::default()
        });
    }
    report.conditions.push(format!(
        "{bench}: database of {:.0} MB, snapshot and {TRANSACTIONS} files, all in the page cache, outputs synced, median of {ROUNDS}",
        megabytes(size)
    ));
    report.at_most(bench, "time, ours / Litestream's", seconds[0] / seconds[1], 0.25);
    report.at_most(bench, "time, ours / cp + fsync", seconds[0] / seconds[2], 1.5);
    report.at_most(bench, "peak memory, MB", megabytes(peak_memory), 200.0);
    Ok(())
}

fn restore(command: &mut std::process::Command) -> Result<(Duration, u64)> {
    let Finished { wall, peak_memory, .. } = child::run(command, DEADLINE)?.succeeded("restore")?;
    Ok((wall, peak_memory))
}

/// What `cp` does, and an fsync. The kernel copies.
fn copy(from: &Path, to: &Path) -> Result<Duration> {
    let start = Instant::now();
    let mut output = File::create_new(to)?;
    std::io::copy(&mut File::open(from)?, &mut output)?;
    output.sync_all()?;
    Ok(start.elapsed())
}
