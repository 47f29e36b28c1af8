//! Going on behind another program: where the replica's newest file shows which stretch of the log it was made of, and that stretch is still there,
//! nothing is missing between the two.
//!
//! The file's header names the stretch and the log's salts. What proves it is the content: every page that was written in the stretch is in the
//! file as the stretch has it last, the frames' checksums lead up to it from the log's beginning, and it ends with the transaction that
//! gives the file its size. What was in the replica before is that program's word, as it is when the replica is restored.

use std::collections::BTreeMap;
use std::fs::File;

use ltx::{Decoder, PageSize, Pgno};

use crate::state::State;
use crate::wal::{FrameRef, HEADER_LEN, Index, Log};

/// What the state would be if the file were ours. Nothing, where the log does not show it. A hold must have begun.
pub(crate) fn inherit(
    file: &[u8],
    log: &File,
    now: &Index,
    page_size: PageSize,
    inode: u64,
    node_id: u64,
) -> Option<State> {
    let mut decoder = Decoder::new(file).ok()?;
    let header = *decoder.header();
    // Of our own files we know what they were made of, or do not believe it: a machine that was set back would find a stretch that is the same, and
    // not what lies before it. Litestream leaves the writer out.
    let foreign = header.node_id == 0;
    let same = foreign && header.min_txid == header.max_txid && header.page_size == page_size;
    if !same || now.frames == 0 || header.wal_salt != now.salts.words() {
        return None;
    }
    let log = Log::open(log).ok()?;
    let frame = log.header.frame_len() as u64;
    let before = header.wal_offset.checked_sub(HEADER_LEN as u64).filter(|bytes| bytes % frame == 0)? / frame;
    let count = Some(header.wal_size).filter(|bytes| *bytes > 0 && bytes % frame == 0)? / frame;
    let (first, last) = (u32::try_from(before).ok()?.checked_add(1)?, u32::try_from(before.checked_add(count)?).ok()?);
    if last > now.frames {
        return None;
    }
    let mut pages: BTreeMap<Pgno, FrameRef> = BTreeMap::new();
    let mut commit = 0;
    let place = log
        .walk(log.start(), last, |frame| {
            if frame.place.number >= first {
                pages.insert(frame.pgno, frame.place);
                commit = frame.commit;
            }
        })
        .ok()?;
    if place.frame != last || commit != header.commit.0 {
        return None;
    }
    let lock_page = page_size.lock_page();
    pages.retain(|pgno, _| pgno.get() <= commit && *pgno != lock_page);
    let (mut theirs, mut ours) = (vec![0; page_size.bytes()], Vec::new());
    while let Some(pgno) = decoder.next_page(&mut theirs).ok()? {
        // Whatever else it holds, growth has added.
        if let Some(frame) = pages.remove(&pgno) {
            log.page(pgno, frame, &mut ours).ok()?;
            if ours != theirs {
                return None;
            }
        }
    }
    let checksum = decoder.trailer()?.file_checksum;
    pages.is_empty().then_some(State {
        txid: header.max_txid,
        checksum,
        time: header.timestamp,
        page_size,
        commit: header.commit,
        salts: now.salts,
        place,
        inode,
        node_id,
        file: None,
    })
}
