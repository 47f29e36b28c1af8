//! What the disk tells of a database, and how it is made to forget: `litestream status` and `reset`, without a daemon and beside a stale socket.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn litestream(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_litestream"));
    command.current_dir(folder).env("LITESTREAM_CONFIG", folder.join("litestream.yml")).args(arguments);
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A database of which two transactions were captured, the second of them not uploaded; and a write buffer that belongs to somebody else.
fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let meta = folder.path().join(".my.db-litestream");
    fs::create_dir_all(meta.join("ltx/0")).unwrap();
    fs::write(folder.path().join("my.db"), "").unwrap();
    fs::write(folder.path().join("my.db-wal"), [0; 4152]).unwrap();
    fs::write(meta.join("state"), r#"{"version": 1, "txid": "0000000000000002"}"#).unwrap();
    fs::write(meta.join("ltx/0/0000000000000002-0000000000000002.ltx"), [0; 300]).unwrap();
    fs::write(meta.join("buffer"), "precious").unwrap();
    let (path, socket) = (folder.path().join("my.db"), folder.path().join("control.sock"));
    let text = format!(
        "socket: {{path: {}}}\ndbs:\n  - path: {}\n    replica: {{url: 'file:///no/such/replica'}}\n",
        socket.display(),
        path.display()
    );
    fs::write(folder.path().join("litestream.yml"), text).unwrap();
    (folder, meta)
}

#[test]
fn status_tells_what_lies_on_the_disk() {
    let (folder, _) = place();
    let text = said(&litestream(folder.path(), &["status"]));
    let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().skip(1).collect();
    assert_eq!(row, ["ok", "0000000000000002", "4.1", "KiB", "1", "-"], "{text}");
    let json = said(&litestream(folder.path(), &["status", "--json", "my.db"]));
    for expected in ["\"staged_files\": 1", "\"staged_bytes\": 300", "\"wal_size\": 4152", "\"live\": false"] {
        assert!(json.contains(expected), "{json}");
    }
}

#[test]
fn reset_deletes_what_it_names_and_nothing_else() {
    let (folder, meta) = place();
    let dry = said(&litestream(folder.path(), &["reset", "-dry-run", "my.db"]));
    assert!(dry.contains("would delete ") && dry.ends_with("nothing was changed (--dry-run)\n"), "{dry}");
    assert!(meta.join("state").exists());
    let text = said(&litestream(folder.path(), &["reset", "my.db"]));
    for name in ["state", "ltx/0/0000000000000002-0000000000000002.ltx"] {
        assert!(text.contains(&format!("deleted {}", meta.join(name).display())), "{text}");
        assert!(!meta.join(name).exists());
    }
    assert_eq!(fs::read(meta.join("buffer")).unwrap(), b"precious");
    assert!(said(&litestream(folder.path(), &["status"])).contains("not initialized"));
    assert!(said(&litestream(folder.path(), &["reset", "my.db"])).contains("nothing to do"));
}

#[test]
fn a_socket_that_a_dead_process_left_is_told_from_a_daemon() {
    let (folder, meta) = place();
    drop(UnixListener::bind(folder.path().join("control.sock")).unwrap());
    let output = litestream(folder.path(), &["info"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("which a dead process left"), "{text}");
    assert!(said(&litestream(folder.path(), &["status"])).contains(" ok "));
    said(&litestream(folder.path(), &["reset", "my.db"]));
    assert!(!meta.join("state").exists());
}
