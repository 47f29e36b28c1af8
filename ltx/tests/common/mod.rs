//! Files and pages for the tests, made the slow and obvious way.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "each test binary uses its own part"
)]

use ltx::{Commit, Encoder, Header, PageSize, Pgno, Timestamp, Txid};

/// What a page is filled with.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    Zero,
    Text,
    Random,
}

pub fn page(page_size: PageSize, fill: Fill, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    match fill {
        Fill::Zero => vec![0; page_size.bytes()],
        Fill::Text => (0..page_size.bytes()).map(|at| b"the quick brown fox "[(at + seed as usize) % 20]).collect(),
        Fill::Random => (0..page_size.bytes()).map(|_| random()).collect(),
    }
}

pub fn header(page_size: PageSize, commit: u32, min: u64, max: u64) -> Header {
    Header::new(page_size, Commit(commit), Txid(min), Txid(max), Timestamp(1_700_000_000_000))
}

/// Encodes pages, which must be in order.
pub fn file(header: Header, pages: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (pgno, page) in pages {
        encoder.page(Pgno::new(*pgno).unwrap(), page).unwrap();
    }
    encoder.finish().unwrap().0
}

/// Decodes all pages from front to back.
pub fn pages(file: &[u8]) -> ltx::Result<Vec<(u32, Vec<u8>)>> {
    let mut decoder = ltx::Decoder::new(file)?;
    let mut page = vec![0; decoder.header().page_size.bytes()];
    let mut pages = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        pages.push((pgno.get(), page.clone()));
    }
    Ok(pages)
}

/// Decodes all pages through the index at the end, as a VFS would, and verifies the checksum from joined parts.
pub fn pages_by_index(file: &[u8]) -> ltx::Result<Vec<(u32, Vec<u8>)>> {
    use ltx::{ContentHash, Frame, HEADER_LEN, Layout, Tail};
    let header = Header::parse(file)?;
    let tail = Tail::parse(file, file.len() as u64, &header)?;
    let mut pages = Vec::new();
    let mut frames = ContentHash::default();
    for entry in tail.entries() {
        let entry = entry?;
        let bytes = &file[entry.offset as usize..entry.end() as usize];
        let frame = Frame::parse(bytes, header.page_size)?;
        if frame.pgno() != entry.pgno || frame.bytes().len() != bytes.len() {
            return Err(ltx::Error::Index("a frame differs"));
        }
        let mut page = vec![0; header.page_size.bytes()];
        frame.decompress_into(&mut page)?;
        let mut hash = ContentHash::default();
        frame.hash_into(&page, &mut hash);
        frames.append(&hash);
        pages.push((entry.pgno.get(), page));
    }
    let raw: &[u8; HEADER_LEN] = file.first_chunk().unwrap();
    Layout::checksum(raw, &frames, &tail.content_hash(), &tail.trailer())?;
    Ok(pages)
}
