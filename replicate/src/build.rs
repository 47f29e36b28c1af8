//! What of the log goes into which LTX file.
//!
//! A file holds the newest version of each page in its stretch of the log, and every page that growth added, written or not: SQLite leaves out
//! of the log what a page on the free list held. Where a stretch shrinks the database and grows it again, what counts is the smallest size in
//! between, since a checkpoint may have cut the file there.

use std::collections::BTreeMap;
use std::fs::File;

use ltx::{PageSize, Pgno};

use crate::wal::{Frame, FrameRef, Index, Log, Place, Unproven};

/// A stretch of the log that becomes one file. It ends with a commit.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Its first frame.
    pub(crate) first: u32,
    /// Behind its last frame.
    pub(crate) end: Place,
    /// The database's size after it, and the smallest one since before it.
    pub(crate) commit: u32,
    low: u32,
    pages: BTreeMap<Pgno, FrameRef>,
}

/// What was found between two places of the log.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) segments: Vec<Segment>,
    /// How many transactions there are. Where sectors may be torn, SQLite repeats the frame that commits, which cannot be told from another
    /// transaction that writes the same again.
    pub(crate) least: u32,
    pub(crate) most: u32,
}

/// Reads what the index counts behind `from`, where the database had `commit` pages. A segment ends with the first commit behind `cut` bytes.
pub(crate) fn scan(log: &Log<'_, File>, from: Place, commit: u32, to: &Index, cut: u64) -> Result<Scan, Unproven> {
    let mut scan = Scan::default();
    let mut open: Option<Segment> = None;
    let mut before = commit;
    let mut repeated: Option<(Pgno, u32, Vec<u8>)> = None;
    log.read(from, to, |frame| {
        let segment = open.get_or_insert_with(|| Segment {
            first: frame.place.number,
            end: from,
            commit: before,
            low: before,
            pages: BTreeMap::new(),
        });
        segment.pages.insert(frame.pgno, frame.place);
        if frame.commit == 0 {
            repeated = None;
            return;
        }
        scan.most += 1;
        match &mut repeated {
            Some((pgno, commit, page)) if *pgno == frame.pgno && *commit == frame.commit && page == frame.page => {}
            Some((pgno, commit, page)) => {
                scan.least += 1;
                (*pgno, *commit) = (frame.pgno, frame.commit);
                page.copy_from_slice(frame.page);
            }
            None => {
                scan.least += 1;
                repeated = Some((frame.pgno, frame.commit, frame.page.to_vec()));
            }
        }
        segment.commit = frame.commit;
        segment.low = segment.low.min(frame.commit);
        segment.end = Place { frame: frame.place.number, sum: frame.place.after };
        before = frame.commit;
        let frames = u64::from(segment.end.frame - segment.first) + 1;
        if frames * log.header.frame_len() as u64 >= cut {
            scan.segments.extend(open.take());
        }
    })?;
    scan.segments.extend(open);
    Ok(scan)
}

/// The newest frame of each page in the whole log, up to the index's last one.
pub(crate) fn newest(log: &Log<'_, File>, to: &Index) -> Result<BTreeMap<Pgno, FrameRef>, Unproven> {
    let mut pages = BTreeMap::new();
    log.read(log.start(), to, |frame| note(&mut pages, frame))?;
    Ok(pages)
}

/// The newest frame of each page up to a place that was captured before.
pub(crate) fn newest_before(log: &Log<'_, File>, place: Place) -> Result<BTreeMap<Pgno, FrameRef>, Unproven> {
    let mut pages = BTreeMap::new();
    let reached = log.walk(log.start(), place.frame, |frame| note(&mut pages, frame))?;
    if reached == place { Ok(pages) } else { Err(Unproven::Different(place.frame)) }
}

fn note(pages: &mut BTreeMap<Pgno, FrameRef>, frame: &Frame<'_>) {
    pages.insert(frame.pgno, frame.place);
}

/// All pages of a segment's file, ascending, and where they are: in a frame, or in the database file. `older` gives the newest frames of the log
/// before the scan, and is asked only where growth makes that necessary.
pub(crate) fn pages(
    segments: &[Segment],
    number: usize,
    page_size: PageSize,
    older: impl FnOnce() -> Result<BTreeMap<Pgno, FrameRef>, Unproven>,
) -> Result<BTreeMap<Pgno, Option<FrameRef>>, Unproven> {
    let Some(segment) = segments.get(number) else { return Ok(BTreeMap::new()) };
    let lock_page = page_size.lock_page();
    let stored = |pgno: &Pgno| *pgno != lock_page && pgno.get() <= segment.commit;
    let mut pages: BTreeMap<_, _> =
        segment.pages.iter().filter(|(pgno, _)| stored(pgno)).map(|(pgno, place)| (*pgno, Some(*place))).collect();
    let grown = (segment.low.saturating_add(1)..=segment.commit).filter_map(Pgno::new);
    let missing: Vec<_> = grown.filter(|pgno| stored(pgno) && !pages.contains_key(pgno)).collect();
    if missing.is_empty() {
        return Ok(pages);
    }
    let older = older()?;
    for pgno in missing {
        let earlier = segments[..number].iter().rev().find_map(|segment| segment.pages.get(&pgno));
        pages.insert(pgno, earlier.or_else(|| older.get(&pgno)).copied());
    }
    Ok(pages)
}
