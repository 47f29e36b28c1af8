//! `litestream restore` on what Litestream 0.3 wrote says what it would do, and what it cannot.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use litestream_fixtures::golden;

fn restore(folder: &Path, arguments: &[&str]) -> Output {
    let replica = folder.join("replica");
    if !replica.exists() {
        golden::golden("v03").copy_replica(&replica).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_litestream"));
    command.current_dir(folder).args(["restore", "-o", "my.db"]).args(arguments);
    command.arg(format!("file://{}", replica.display())).output().unwrap()
}

#[test]
fn a_dry_run_lists_what_would_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let output = restore(folder.path(), &["--dry-run", "--json"]);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["generation"], "a96a1987f6e3f8d6");
    assert_eq!((&plan["index"], &plan["db"]), (&"00000004".into(), &"my.db".into()));
    let files = plan["files"].as_array().unwrap();
    assert_eq!(files.len(), 9);
    assert!(files[0]["key"].as_str().unwrap().ends_with("/snapshots/00000002.snapshot.lz4"), "{}", files[0]);
    assert_eq!(plan["bytes"], files.iter().map(|file| file["size"].as_u64().unwrap()).sum::<u64>());
    let text = String::from_utf8(restore(folder.path(), &["--dry-run"]).stdout).unwrap();
    assert!(text.contains("would restore") && text.contains("9 files"), "{text}");
    assert!(!folder.path().join("my.db").exists());
}

#[test]
fn a_txid_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    for more in [&[][..], &["--if-replica-exists"]] {
        let output = restore(folder.path(), &[&["--txid", "000000000000002a"], more].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("Litestream 0.3") && text.contains("no TXIDs"), "{text}");
    }
}
