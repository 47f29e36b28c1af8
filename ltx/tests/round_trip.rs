//! What the encoder writes, the decoder and the index give back, for every page size and kind of page.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Fill, file, header, page, pages, pages_by_index};
use ltx::{Checksum, DatabaseChecksum, Encoder, Error, Frame, Header, PageProblem, PageSize, Pgno};
use proptest::prelude::*;

#[test]
fn every_page_size_and_fill_survives() {
    for page_size in PageSize::ALL {
        for fill in [Fill::Zero, Fill::Text, Fill::Random] {
            let model: Vec<_> = (1..=5).map(|n| (n, page(page_size, fill, n))).collect();
            let bytes = file(header(page_size, 5, 1, 3), &model);
            assert_eq!(pages(&bytes).unwrap(), model);
            assert_eq!(pages_by_index(&bytes).unwrap(), model);
        }
    }
}

#[test]
fn a_file_without_pages_is_legal_unless_it_is_a_snapshot() {
    let bytes = file(header(PageSize::ALL[3], 9, 2, 2), &[]);
    assert_eq!(pages(&bytes).unwrap(), []);
    assert_eq!(pages_by_index(&bytes).unwrap(), []);
    let encoder = Encoder::new(Vec::new(), header(PageSize::ALL[3], 9, 1, 2)).unwrap();
    assert!(matches!(encoder.finish(), Err(Error::SnapshotIncomplete { have: 0, want: 9 })));
}

#[test]
fn the_lock_page_is_left_out_of_a_snapshot() {
    // At 64 KiB a page the lock page is number 16385: the smallest database that has one.
    let page_size = PageSize::MAX;
    let lock = page_size.lock_page();
    assert_eq!(lock.get(), 16385);
    let commit = lock.get() + 1;
    let zero = page(page_size, Fill::Zero, 0);
    let mut encoder = Encoder::new(Vec::new(), header(page_size, commit, 1, 1)).unwrap();
    for number in 1..lock.get() {
        encoder.page(Pgno::new(number).unwrap(), &zero).unwrap();
    }
    let refused = encoder.page(lock, &zero);
    assert!(matches!(refused, Err(Error::Page { problem: PageProblem::LockPage, .. })));
    encoder.page(Pgno::new(commit).unwrap(), &zero).unwrap();
    let (bytes, _) = encoder.finish().unwrap();
    let found = pages(&bytes).unwrap();
    assert_eq!(found.len() as u32, commit - 1);
    assert!(found.iter().all(|(number, _)| *number != lock.get()));
    assert_eq!(pages_by_index(&bytes).unwrap(), found);
}

#[test]
fn a_snapshot_with_checksums_proves_its_pages() {
    let page_size = PageSize::ALL[0];
    let with_checksums = Header { flags: 0, ..header(page_size, 3, 1, 1) };
    let model: Vec<_> = (1..=3u32).map(|n| (n, page(page_size, Fill::Text, n))).collect();
    let mut sum = DatabaseChecksum::default();
    let mut encoder = Encoder::new(Vec::new(), with_checksums).unwrap();
    for (number, data) in &model {
        let pgno = Pgno::new(*number).unwrap();
        encoder.page(pgno, data).unwrap();
        sum.toggle(pgno, data);
    }
    let (bytes, trailer) = encoder.finish().unwrap();
    assert_eq!(trailer.post_apply_checksum, sum.get());
    assert_eq!(pages(&bytes).unwrap(), model);

    let mut encoder = Encoder::new(Vec::new(), with_checksums).unwrap();
    for (number, data) in &model {
        encoder.page(Pgno::new(*number).unwrap(), data).unwrap();
    }
    let (bytes, _) = encoder.finish_with(Checksum(sum.get().0 ^ 1)).unwrap();
    assert!(matches!(pages(&bytes), Err(Error::DatabaseChecksum { .. })));
}

#[test]
fn the_encoder_refuses_what_the_decoder_would() {
    let page_size = PageSize::ALL[0];
    let data = page(page_size, Fill::Zero, 0);
    let at = |number| Pgno::new(number).unwrap();
    let problem = |result: ltx::Result<()>| match result {
        Err(Error::Page { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    let mut encoder = Encoder::new(Vec::new(), header(page_size, 9, 2, 2)).unwrap();
    encoder.page(at(4), &data).unwrap();
    assert_eq!(problem(encoder.page(at(4), &data)), PageProblem::OutOfOrder);
    assert_eq!(problem(encoder.page(at(3), &data)), PageProblem::OutOfOrder);
    assert_eq!(problem(encoder.page(at(10), &data)), PageProblem::BeyondCommit);
    assert_eq!(problem(encoder.page(at(5), &data[1..])), PageProblem::DataLength(511));
    let mut encoder = Encoder::new(Vec::new(), header(page_size, 9, 1, 2)).unwrap();
    assert_eq!(problem(encoder.page(at(2), &data)), PageProblem::Hole);
    assert!(Encoder::new(Vec::new(), header(page_size, 0, 2, 2)).is_err());
}

#[test]
fn frames_are_copied_without_a_new_compression() {
    let page_size = PageSize::ALL[3];
    let model: Vec<_> = (1..=4).map(|n| (n, page(page_size, Fill::Text, n))).collect();
    let bytes = file(header(page_size, 4, 1, 3), &model);
    let mut decoder = ltx::Decoder::new(bytes.as_slice()).unwrap();
    let mut encoder = Encoder::new(Vec::new(), *decoder.header()).unwrap();
    let mut buffer = vec![0; page_size.bytes()];
    while let Some(frame) = decoder.next_frame(&mut buffer).unwrap().map(|frame| frame.bytes().to_vec()) {
        encoder.frame(&Frame::parse(&frame, page_size).unwrap(), &buffer).unwrap();
    }
    assert_eq!(encoder.finish().unwrap().0, bytes);
}

fn arbitrary_page() -> impl Strategy<Value = Fill> {
    prop_oneof![Just(Fill::Zero), Just(Fill::Text), Just(Fill::Random)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_set_of_pages_survives(
        size in 0usize..8,
        commit in 1u32..200,
        min in 1u64..5,
        span in 0u64..5,
        picks in proptest::collection::btree_map(1u32..200, arbitrary_page(), 0..40),
    ) {
        let page_size = PageSize::ALL[size];
        let model: Vec<_> = if min == 1 {
            (1..=commit.min(30)).map(|n| (n, page(page_size, picks.get(&n).copied().unwrap_or(Fill::Zero), n))).collect()
        } else {
            picks.iter().filter(|(n, _)| **n <= commit).map(|(n, fill)| (*n, page(page_size, *fill, *n))).collect()
        };
        let commit = if min == 1 { commit.min(30) } else { commit };
        let bytes = file(header(page_size, commit, min, min + span), &model);
        prop_assert_eq!(pages(&bytes).unwrap(), model.clone());
        prop_assert_eq!(pages_by_index(&bytes).unwrap(), model);
    }
}
