//! No damaged file decodes to other pages: it is refused with an error, and nothing panics.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Fill, file, header, page, pages, pages_by_index};
use ltx::{Error, Frame, PageProblem, PageSize};
use proptest::prelude::*;

fn sample(min: u64) -> (Vec<u8>, Vec<(u32, Vec<u8>)>) {
    let page_size = PageSize::ALL[0];
    let fills = [Fill::Text, Fill::Zero, Fill::Random, Fill::Text];
    let model: Vec<_> = (1..).zip(fills).map(|(n, fill)| (n, page(page_size, fill, n))).collect();
    (file(header(page_size, 4, min, 7), &model), model)
}

fn must_not_lie(bytes: &[u8], model: &[(u32, Vec<u8>)], what: &str) {
    for found in [pages(bytes), pages_by_index(bytes)].into_iter().flatten() {
        assert_eq!(found, model, "{what}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let (bytes, _) = sample(1);
    for len in 0..bytes.len() {
        assert!(pages(&bytes[..len]).is_err(), "cut to {len} bytes");
        let by_index = bytes.len().min(len) >= 100 && pages_by_index(&bytes[..len]).is_ok();
        assert!(!by_index, "cut to {len} bytes, read by index");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(matches!(pages(&longer), Err(Error::TrailingBytes)));
    assert!(pages_by_index(&longer).is_err());
}

#[test]
fn every_flipped_bit_is_refused_or_harmless() {
    for min in [1, 2] {
        let (bytes, model) = sample(min);
        let mut refused = 0;
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                refused += usize::from(pages(&damaged).is_err());
                must_not_lie(&damaged, &model, &format!("bit {bit} of byte {at}"));
            }
        }
        // Some flips in an LZ4 block give the same page; they are few.
        assert!(refused > bytes.len() * 8 * 98 / 100, "{refused} of {}", bytes.len() * 8);
    }
}

#[test]
fn every_field_of_the_index_is_checked() {
    let page_size = PageSize::ALL[0];
    let model: Vec<_> = (2..=4).map(|n| (n, page(page_size, Fill::Text, n))).collect();
    let bytes = file(header(page_size, 9, 2, 2), &model);
    let end = bytes.len() - 24;
    let length = u64::from_be_bytes(bytes[end..end + 8].try_into().unwrap()) as usize;
    let entries = |bytes: &[u8]| {
        let header = ltx::Header::parse(bytes)?;
        ltx::Tail::parse(bytes, bytes.len() as u64, &header)?.entries().collect::<ltx::Result<Vec<_>>>()
    };
    assert_eq!(entries(&bytes).unwrap().len(), 3);
    for at in end - length..end + 8 {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        // Page numbers may stay in order by chance; then the frames disagree.
        assert!(entries(&damaged).is_err() || pages_by_index(&damaged).is_err(), "byte {at}");
        assert!(pages(&damaged).is_err(), "byte {at}");
    }
    let mut endless = bytes[..end - length].to_vec();
    endless.extend([0xff; 12]);
    endless.extend(12u64.to_be_bytes());
    endless.extend(&bytes[end + 8..]);
    assert!(matches!(entries(&endless), Err(Error::Index("a number is too long"))));
    let mut huge = bytes.clone();
    huge[end..end + 8].copy_from_slice(&u64::MAX.to_be_bytes());
    assert!(matches!(entries(&huge), Err(Error::Index("its length does not fit the file"))));
}

/// A legacy frame as Litestream before 0.5.16 wrote it.
#[allow(clippy::little_endian_bytes, reason = "the LZ4 frame format is little-endian")]
fn legacy(pgno: u32, page: &[u8], stored: bool) -> Vec<u8> {
    let mut frame = pgno.to_be_bytes().to_vec();
    frame.extend([0, 0, 0x04, 0x22, 0x4d, 0x18, 0x64, 0x40, 0xa7]);
    let block = if stored { page.to_vec() } else { lz4_flex::block::compress(page) };
    let size = block.len() as u32 | if stored { 1 << 31 } else { 0 };
    frame.extend(size.to_le_bytes());
    frame.extend(block);
    frame.extend([0; 4]);
    frame.extend(twox_hash::XxHash32::oneshot(0, page).to_le_bytes());
    frame
}

#[test]
fn legacy_frames_are_read_and_checked() {
    let page_size = PageSize::ALL[3];
    for (fill, stored) in [(Fill::Text, false), (Fill::Zero, false), (Fill::Random, true)] {
        let data = page(page_size, fill, 3);
        let bytes = legacy(9, &data, stored);
        assert!(bytes.len() <= page_size.bytes() + 25);
        let mut found = vec![0; page_size.bytes()];
        let frame = Frame::parse(&bytes, page_size).unwrap();
        frame.decompress_into(&mut found).unwrap();
        assert!(frame.is_legacy() && frame.pgno().get() == 9 && frame.bytes() == bytes);
        assert_eq!(found, data);
        for len in 0..bytes.len() {
            assert!(matches!(Frame::parse(&bytes[..len], page_size), Err(Error::Truncated { .. })), "{len}");
        }
        for at in 6..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let outcome = Frame::parse(&damaged, page_size).and_then(|frame| frame.decompress_into(&mut found));
            assert!(outcome.is_err() || found == data, "byte {at}");
        }
    }
}

#[test]
fn oversized_frames_are_refused_before_they_are_read() {
    let page_size = PageSize::ALL[0];
    let mut bytes = vec![0, 0, 0, 1, 0, 1];
    bytes.extend((512u32 + 2 + 16 + 1).to_be_bytes());
    let refused = Frame::parse(&bytes, page_size);
    assert!(matches!(refused, Err(Error::Page { problem: PageProblem::TooLarge(531), .. })));
    let mut bytes = vec![0, 0, 0, 1, 0x80, 1];
    bytes.extend([0; 4]);
    let refused = Frame::parse(&bytes, page_size);
    assert!(matches!(refused, Err(Error::Page { problem: PageProblem::Flags(0x8001), .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let _ = pages(&bytes);
        if bytes.len() >= 100 {
            let _ = pages_by_index(&bytes);
        }
        for page_size in PageSize::ALL {
            if let Ok(frame) = Frame::parse(&bytes, page_size) {
                let _ = frame.decompress_into(&mut vec![0; page_size.bytes()]);
            }
        }
    }
}
