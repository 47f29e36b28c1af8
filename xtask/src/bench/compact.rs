//! Merging 300 files into one by copying frames, beside those who decode all and encode again: Litestream's own compactor, and ours of the
//! same kind, with our codec and everything in memory.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use litestream_pageindex::compact::{MergeOptions, merge};
use litestream_storage::{FileInfo, Level, Replica};
use ltx::{Decoder, Encoder, Header, Pgno, Txid, verify};
use tempfile::TempDir;

use super::subject::{self, Subject, Work};
use super::{Measurement, Report, median, megabytes};
use crate::process::run as run_program;
use crate::tools::{LITESTREAM, Tools};

const FILES: u32 = 300;

/// How much faster than Litestream's compactor.
const GOAL: f64 = 4.0;
// Beside the same way with our codec, it depends on how much is superseded: every frame is decompressed and hashed by either way, and only
// what is kept is compressed again by the slower one. Where all is kept, that is most of its work; where one page of seven is kept, little;
// where files hold a few pages each, either way mostly opens files.
const ALL_KEPT: f64 = 4.0;
const ONE_OF_SEVEN_KEPT: f64 = 2.0;
const FEW_PAGES: f64 = 1.2;
const ROUNDS: usize = 5;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let litestream = Compactor::build()?;
    let workloads = [
        ("compact-300 small", 15 << 20, Work::Anywhere(8), FEW_PAGES),
        ("compact-300 scattered", 60 << 20, Work::Anywhere(1_000), ONE_OF_SEVEN_KEPT),
        ("compact-300 appended", 15 << 20, Work::AtEnd(2_000), ALL_KEPT),
    ];
    for (bench, bytes, work, goal) in workloads {
        runtime.block_on(measure(report, &litestream, bench, bytes, work, goal)).context(bench)?;
    }
    Ok(())
}

/// Litestream's compactor, in a program of its own.
struct Compactor {
    program: PathBuf,
    _folder: TempDir,
}

impl Compactor {
    fn build() -> Result<Compactor> {
        let folder = subject::scratch()?;
        let program = folder.path().join("go-compact");
        Tools::new()?.build_go(&Path::new(env!("CARGO_MANIFEST_DIR")).join("go-compact"), &program)?;
        Ok(Compactor { program, _folder: folder })
    }

    /// How long it takes, without the program's start.
    fn merge(&self, inputs: &[PathBuf], output: &Path) -> Result<Duration> {
        let mut command = Command::new(&self.program);
        let said = run_program("go-compact", command.arg(output).args(inputs))?;
        Ok(Duration::from_nanos(said.trim().parse().with_context(|| format!("go-compact said {said:?}"))?))
    }
}

async fn measure(
    report: &mut Report,
    litestream: &Compactor,
    bench: &'static str,
    bytes: u64,
    work: Work,
    goal: f64,
) -> Result<()> {
    eprintln!("xtask: {bench}");
    let folder = subject::scratch()?;
    let root = folder.path().join("replica");
    let replica = subject::replica_in(&root).await?;
    let mut subject = Subject::new(&folder.path().join("source.db"), bytes, work)?;
    subject.put_snapshot(&replica).await?;
    subject.put_transactions(&replica, FILES).await?;
    let files = replica.level(Level::ZERO, Txid::ZERO).await?;
    ensure!(files.len() == FILES as usize, "{} files instead of {FILES}", files.len());
    let paths: Vec<PathBuf> = files.iter().map(|file| root.join(&*file.object.key)).collect();

    let mut times: [Vec<Duration>; 3] = Default::default();
    let (mut pages, mut size, mut kept) = (0, 0, 0);
    for _ in 0..ROUNDS {
        let [mine, theirs, peer] = ["mine.ltx", "theirs.ltx", "peer.ltx"].map(|name| folder.path().join(name));
        times[0].push(copy_frames(&replica, &files, &mine).await?);
        let (time, read) = encode_again(&paths, &theirs)?;
        times[1].push(time);
        times[2].push(litestream.merge(&paths, &peer)?);
        let (header, _) = verify(BufReader::new(File::open(&mine)?))?;
        size = u64::from(header.page_size.get());
        (pages, kept) = (read, same_pages(&mine, &theirs)?);
        same_pages(&mine, &peer).context("Litestream's")?;
        for output in [mine, theirs, peer] {
            fs::remove_file(output)?;
        }
    }
    report.conditions.push(format!(
        "{bench}: {FILES} files with {pages} pages, of which {kept} are kept; from files in the page cache to a file, not synced, median of {ROUNDS}"
    ));
    let [mine, theirs, peer] = times.map(median);
    let litestream = format!("Litestream {LITESTREAM}'s compactor");
    for (subject, seconds) in [("merge", mine), ("decode and encode again", theirs), (&litestream, peer)] {
        report.measured(Measurement {
            bench,
            subject: subject.to_owned(),
            seconds: Some(seconds),
            mb_per_second: Some(megabytes(pages * size) / seconds),
            ..Measurement::default()
        });
    }
    report.at_least(bench, "speed, merge / Litestream's", peer / mine, GOAL);
    report.at_least(bench, "speed, merge / decode and encode again", theirs / mine, goal);
    Ok(())
}

async fn copy_frames(replica: &Replica, files: &[FileInfo], output: &Path) -> Result<Duration> {
    let start = Instant::now();
    Box::pin(merge(replica, files, output, &MergeOptions::default())).await?;
    Ok(start.elapsed())
}

/// How long it takes, and how many pages were read.
fn encode_again(inputs: &[PathBuf], output: &Path) -> Result<(Duration, u64)> {
    let start = Instant::now();
    let mut newest: HashMap<Pgno, Vec<u8>> = HashMap::new();
    let mut first: Option<Header> = None;
    let mut last: Option<Header> = None;
    let mut pages = 0;
    for input in inputs {
        let mut decoder = Decoder::new(BufReader::with_capacity(64 << 10, File::open(input)?))?;
        let header = *decoder.header();
        let mut page = vec![0; header.page_size.bytes()];
        while let Some(pgno) = decoder.next_page(&mut page)? {
            newest.entry(pgno).or_default().clone_from(&page);
            pages += 1;
        }
        first.get_or_insert(header);
        last = Some(header);
    }
    let (first, last) = first.zip(last).context("nothing to merge")?;
    let header = Header::new(last.page_size, last.commit, first.min_txid, last.max_txid, last.timestamp);
    let mut pgnos: Vec<Pgno> = newest.keys().copied().filter(|pgno| last.commit.contains(*pgno)).collect();
    pgnos.sort_unstable();
    let mut encoder = Encoder::new(BufWriter::with_capacity(64 << 10, File::create_new(output)?), header)?;
    for pgno in pgnos {
        encoder.page(pgno, &newest[&pgno])?;
    }
    let (writer, _) = encoder.finish()?;
    writer.into_inner()?;
    Ok((start.elapsed(), pages))
}

/// Checks that two files hold the same pages, and counts them.
fn same_pages(one: &Path, other: &Path) -> Result<u64> {
    let mut decoders =
        [Decoder::new(BufReader::new(File::open(one)?))?, Decoder::new(BufReader::new(File::open(other)?))?];
    let size = decoders[0].header().page_size.bytes();
    let mut pages = [vec![0; size], vec![0; size]];
    let mut count = 0;
    loop {
        let [one, other] = &mut decoders;
        let pgno = one.next_page(&mut pages[0])?;
        ensure!(pgno == other.next_page(&mut pages[1])? && pages[0] == pages[1], "the merged files differ");
        if pgno.is_none() {
            return Ok(count);
        }
        count += 1;
    }
}
