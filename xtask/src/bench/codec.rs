//! What one core encodes and decodes, in MB of database pages a second.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use litestream_fixtures::db::{DbOptions, build_database};
use ltx::{Commit, ContentHash, Decoder, Encoder, Frame, Header, PageSize, Pgno, Tail, Timestamp, Txid};

use super::{Measurement, Report, median, megabytes, subject};

const BENCH: &str = "codec";
const DATABASE: u64 = 64 << 20;
const ROUNDS: usize = 7;

pub(super) fn run(report: &mut Report) -> Result<()> {
    eprintln!("xtask: codec");
    let folder = subject::scratch()?;
    let path = folder.path().join("db");
    build_database(&path, &DbOptions { bytes: DATABASE, tables: 1, ..DbOptions::default() })?;
    let database = std::fs::read(&path)?;
    let page_size = PageSize::new(4096).context("4096 is a page size")?;
    let mut file = Vec::new();
    let mut page = vec![0; page_size.bytes()];

    // In turn, so that a slow moment of the machine hits all alike.
    let mut times: [Vec<Duration>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let buffer = std::mem::take(&mut file);
        let (encoded, time) = timed(|| encode(&database, page_size, buffer))?;
        file = encoded;
        times[0].push(time);
        let (pages, time) = timed(|| decode(&file, &mut page))?;
        ensure!(pages * page_size.bytes() == database.len(), "decoded {pages} pages");
        times[1].push(time);
        let (frames, time) = timed(|| decompress(&file, page_size, &mut page))?;
        ensure!(frames == pages, "decompressed {frames} pages of {pages}");
        times[2].push(time);
        let ((), time) = timed(|| {
            let mut hash = ContentHash::default();
            database.chunks_exact(page_size.bytes()).for_each(|page| hash.update(page));
            black_box(hash.checksum());
            Ok(())
        })?;
        times[3].push(time);
    }
    let size = database.len() as u64;
    report.conditions.push(format!(
        "codec: {:.0} MB of 4 KiB pages in memory, LZ4 leaves {:.0} %, one core, median of {ROUNDS}",
        megabytes(size),
        100.0 * file.len() as f64 / size as f64
    ));
    for (subject, times) in ["encode", "decode, verified", "decompress frames", "CRC-64"].into_iter().zip(times) {
        let seconds = median(times);
        let mb_per_second = Some(megabytes(size) / seconds);
        let subject = subject.to_owned();
        report.measured(Measurement {
            bench: BENCH,
            subject,
            seconds: Some(seconds),
            mb_per_second,
            ..Measurement::default()
        });
    }
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let start = Instant::now();
    let done = work()?;
    Ok((done, start.elapsed()))
}

fn encode(database: &[u8], page_size: PageSize, mut buffer: Vec<u8>) -> Result<Vec<u8>> {
    buffer.clear();
    let pages = u32::try_from(database.len() / page_size.bytes())?;
    let header = Header::new(page_size, Commit(pages), Txid(1), Txid(1), Timestamp(0));
    let mut encoder = Encoder::new(buffer, header)?;
    for (number, page) in (1..).zip(database.chunks_exact(page_size.bytes())) {
        encoder.page(Pgno::new(number).context("pages count from 1")?, page)?;
    }
    Ok(encoder.finish()?.0)
}

fn decode(file: &[u8], page: &mut [u8]) -> Result<usize> {
    let mut decoder = Decoder::new(file)?;
    let mut pages = 0;
    while decoder.next_page(page)?.is_some() {
        black_box(&*page);
        pages += 1;
    }
    Ok(pages)
}

fn decompress(file: &[u8], page_size: PageSize, page: &mut [u8]) -> Result<usize> {
    let header = Header::parse(file)?;
    let layout = Tail::parse(file, file.len() as u64, &header)?.layout();
    let end = usize::try_from(layout.frames_end())?;
    let mut at = usize::try_from(layout.frames_start())?;
    let mut pages = 0;
    while at < end {
        let frame = Frame::parse(&file[at..end], page_size)?;
        frame.decompress_into(page)?;
        black_box(&*page);
        at += frame.bytes().len();
        pages += 1;
    }
    Ok(pages)
}
