//! Any bytes as the end of a file: the index is refused, or its entries ascend, touch one another and stay inside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ltx::{HEADER_LEN, Header, Tail, TailLength};

fuzz_target!(|data: &[u8]| {
    let Some((extra, data)) = data.split_first_chunk::<2>() else { return };
    let Ok(header) = Header::parse(data) else { return };
    // The file may be longer than the bytes that were fetched of it.
    let file_len = data.len() as u64 + u64::from(u16::from_be_bytes(*extra));
    let _ = TailLength::measure(data, file_len);
    let Ok(tail) = Tail::parse(data, file_len, &header) else { return };
    let (mut last, mut end) = (0, HEADER_LEN as u64);
    for entry in tail.entries() {
        let Ok(entry) = entry else { return };
        assert!(entry.pgno.get() > last && entry.offset == end && entry.end() <= file_len);
        assert!(header.commit.contains(entry.pgno) && entry.pgno != header.page_size.lock_page());
        (last, end) = (entry.pgno.get(), entry.end());
    }
    assert_eq!(end, tail.layout().frames_end());
});
