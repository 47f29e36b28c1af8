//! Any bytes: the decoder refuses them or reads a file that survives being written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ltx::{Decoder, Encoder};

fuzz_target!(|data: &[u8]| {
    let Ok(mut decoder) = Decoder::new(data) else { return };
    let header = *decoder.header();
    let mut page = vec![0; header.page_size.bytes()];
    let mut pages = Vec::new();
    loop {
        match decoder.next_page(&mut page) {
            Ok(Some(pgno)) => pages.push((pgno, page.clone())),
            Ok(None) => break,
            Err(_) => return,
        }
    }
    let trailer = decoder.trailer().expect("a file that has ended has a trailer");
    let Ok(mut encoder) = Encoder::new(Vec::new(), header) else { return };
    for (pgno, page) in &pages {
        encoder.page(*pgno, page).expect("what was decoded can be encoded");
    }
    let (file, _) = encoder.finish_with(trailer.post_apply_checksum).expect("what was decoded can be finished");
    let mut decoder = Decoder::new(file.as_slice()).expect("what was encoded has a header");
    for (pgno, expected) in pages {
        assert_eq!(decoder.next_page(&mut page).expect("what was encoded decodes"), Some(pgno));
        assert_eq!(page, expected);
    }
    assert_eq!(decoder.next_page(&mut page).expect("what was encoded is verified"), None);
});
