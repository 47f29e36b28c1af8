//! Restoring 302 files from S3 at 30 ms a request: what counts is how many requests wait for one another.

use std::collections::HashMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use litestream_fixtures::db::sha256_file;
use litestream_fixtures::s3::{Operation, S3Options, S3Server};
use litestream_pageindex::SMALL_FILE;

use super::child::{self, Finished};
use super::subject::{self, SMALL_TRANSACTIONS};
use super::{Measurement, Report, median};
use crate::tools::{LITESTREAM, Tools};

const BENCH: &str = "restore-302";
const LATENCY: Duration = Duration::from_millis(30);
const ROUNDS: usize = 3;
const DEADLINE: Duration = Duration::from_secs(300);

pub(super) fn run(report: &mut Report) -> Result<()> {
    let ours = subject::build_ours()?;
    let litestream = Tools::new()?.litestream(LITESTREAM)?;
    eprintln!("xtask: {BENCH}");
    let server = S3Server::start(S3Options::default()).context("cannot start the embedded S3 server")?;
    let folder = subject::scratch()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let subject = runtime.block_on(async {
        let replica = subject::replica_on(&server).await?;
        subject::small_files(&folder.path().join("source.db"), &replica).await
    })?;
    server.set_latency(LATENCY);
    let expected = subject.sha256()?;
    let url = subject::s3_url(&server);

    let mut contestants = [Contestant::default(), Contestant::default()];
    for _ in 0..ROUNDS {
        for (contestant, mine) in contestants.iter_mut().zip([true, false]) {
            let output = folder.path().join("restored.db");
            let mut command = if mine { subject::our_restore(&ours) } else { litestream.command() };
            if !mine {
                command.arg("restore");
            }
            subject::authorize(&mut command, &server);
            contestant.run(command.arg("-o").arg(&output).arg(&url), &server)?;
            ensure!(sha256_file(&output)? == expected, "the restored database is not the original");
            std::fs::remove_file(&output)?;
        }
    }
    report.conditions.push(format!(
        "{BENCH}: snapshot of a {} MiB database and {SMALL_TRANSACTIONS} small files, embedded S3 server, {} ms a request, median of {ROUNDS}",
        subject::SMALL_DATABASE >> 20,
        LATENCY.as_millis()
    ));
    let [mine, other] = contestants.map(|contestant| contestant.measurement());
    let (mine, other) = (mine?, other?);
    let ratio = mine.seconds.unwrap_or(f64::NAN) / other.seconds.unwrap_or(f64::NAN);
    report.at_most(BENCH, "LIST requests", count(mine.lists), 12.0);
    report.at_most(BENCH, "GETs of any one small file", count(mine.gets_per_small_file), 1.0);
    report.at_most(BENCH, "time, ours / Litestream's", ratio, 1.0 / 20.0);
    report.measured(Measurement { subject: "ours".to_owned(), ..mine });
    report.measured(Measurement { subject: format!("Litestream {LITESTREAM}"), ..other });
    Ok(())
}

/// A program and its runs; of what is counted, the most of any run.
#[derive(Default)]
struct Contestant {
    times: Vec<Duration>,
    lists: u64,
    gets: u64,
    gets_per_small_file: u64,
    bytes: u64,
    depth: u64,
    peak_memory: u64,
}

impl Contestant {
    fn run(&mut self, command: &mut Command, server: &S3Server) -> Result<()> {
        server.reset_stats();
        let Finished { wall, peak_memory, .. } = child::run(command, DEADLINE)?.succeeded("restore")?;
        let stats = server.stats();
        let mut gets_of: HashMap<String, u64> = HashMap::new();
        for request in server.requests().iter().filter(|request| request.operation == Operation::GetObject) {
            let size = server.object(&request.bucket, &request.key_or_prefix).map_or(0, |object| object.len());
            if size as u64 <= SMALL_FILE {
                *gets_of.entry(request.key_or_prefix.clone()).or_default() += 1;
            }
        }
        self.times.push(wall);
        self.lists = self.lists.max(stats.count(Operation::ListObjectsV2));
        self.gets = self.gets.max(stats.count(Operation::GetObject));
        self.gets_per_small_file = self.gets_per_small_file.max(gets_of.into_values().max().unwrap_or(0));
        self.bytes = self.bytes.max(stats.bytes_out);
        self.depth = self.depth.max(stats.depth);
        self.peak_memory = self.peak_memory.max(peak_memory);
        Ok(())
    }

    fn measurement(self) -> Result<Measurement> {
        ensure!(!self.times.is_empty(), "nothing was measured");
        Ok(Measurement {
            bench: BENCH,
            seconds: Some(median(self.times)),
            lists: Some(self.lists),
            gets: Some(self.gets),
            gets_per_small_file: Some(self.gets_per_small_file),
            bytes: Some(self.bytes),
            depth: Some(self.depth),
            peak_memory: Some(self.peak_memory),
            ..Measurement::default()
        })
    }
}

fn count(value: Option<u64>) -> f64 {
    value.map_or(f64::NAN, |value| value as f64)
}
