//! Ctrl-C leaves nothing behind, in the store neither.
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use litestream_fixtures::s3::{FaultKind, Operation, S3Options, S3Server};
use ltx::{Commit, Encoder, Header, PageSize, Pgno, Timestamp, Txid};

/// One file with the first transaction: about 8 MiB that do not compress.
fn first_file() -> Vec<u8> {
    let page_size = PageSize::new(65_536).unwrap();
    let header = Header::new(page_size, Commit(128), Txid(1), Txid(1), Timestamp(1_000));
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    let mut state = 1u64;
    for number in 1..=128 {
        let page: Vec<u8> = (0..page_size.bytes())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        encoder.page(Pgno::new(number).unwrap(), &page).unwrap();
    }
    encoder.finish().unwrap().0
}

fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn an_interrupted_upload_is_aborted() {
    let server = S3Server::start(S3Options::default()).unwrap();
    server.put_object("bkt", "db/0000/0000000000000001-0000000000000001.ltx", first_file(), &[]);
    server.fault_next(9, FaultKind::Stall { after: None }, |request| request.operation == Operation::UploadPart);
    // Whoever does not wait for the abort will not see that it must be sent again.
    server.fault_next(1, FaultKind::Status(503), |request| request.operation == Operation::AbortMultipartUpload);
    let mut child = Command::new(env!("CARGO_BIN_EXE_litestream"))
        .arg("compact")
        .arg(format!("s3://bkt/db?endpoint={}&partSize=5MiB", server.endpoint()))
        .env("LITESTREAM_ACCESS_KEY_ID", server.access_key())
        .env("LITESTREAM_SECRET_ACCESS_KEY", server.secret_key())
        .env("LITESTREAM_CONFIG", "")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("an upload begins", || (server.stats().count(Operation::UploadPart) > 0).then_some(()));
    assert_eq!(server.uploads_in_progress("bkt").len(), 1);
    interrupt(&child);
    wait_for("the command ends", || child.try_wait().unwrap());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && text.contains("interrupted"), "{text}");
    assert!(server.uploads_in_progress("bkt").is_empty(), "an upload was left behind");
}
