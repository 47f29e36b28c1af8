//! Any bytes as a frame: refused, or a page of exactly the right size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ltx::{Frame, PageSize, max_frame_len};

fuzz_target!(|data: &[u8]| {
    let Some((size, data)) = data.split_first() else { return };
    let page_size = PageSize::ALL[usize::from(size % 8)];
    let Ok(frame) = Frame::parse(data, page_size) else { return };
    assert!(frame.bytes().len() <= data.len() && frame.bytes().len() <= max_frame_len(page_size));
    let mut page = vec![0; page_size.bytes()];
    let _ = frame.decompress_into(&mut page);
});
