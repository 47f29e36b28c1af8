//! What the shell must do with a real store: find it with the configuration's credentials, never show them, stop when told.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use litestream_fixtures::golden::golden_dir;
use litestream_fixtures::s3::{Down, S3Options, S3Server};

const BUCKET: &str = "bkt";
const ENDLESS: &str = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c";

/// A server with a golden replica under a key prefix.
fn server(prefix: &str) -> S3Server {
    let server = S3Server::start(S3Options::default()).unwrap();
    server.create_bucket(BUCKET);
    for level in [0, 1, 2, 3, 9] {
        let folder = golden_dir().join(format!("levels/replica/ltx/{level}"));
        server.load_dir(BUCKET, &format!("{prefix}/{level:04x}"), folder).unwrap();
    }
    server
}

/// A configuration that knows `my.db` at that server.
fn config(folder: &Path, server: &S3Server, path: &str) {
    let (endpoint, id, secret) = (server.endpoint(), server.access_key(), server.secret_key());
    let text = format!(
        "dbs:\n  - path: {}/my.db\n    replica:\n      type: s3\n      bucket: {BUCKET}\n      path: {path}\n      endpoint: {endpoint}\n      \
         access-key-id: {id}\n      secret-access-key: {secret}\n",
        folder.display()
    );
    std::fs::write(folder.join("litestream.yml"), text).unwrap();
}

fn shell(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_litestream"));
    command.current_dir(folder).args(["vfs-shell", "-config", "litestream.yml"]);
    for name in ["LITESTREAM_CONFIG", "LITESTREAM_REPLICA_URL", "LITESTREAM_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"] {
        command.env_remove(name);
    }
    command
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_configuration_s_endpoint_and_credentials_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let server = server("a b/my.db");
    config(folder.path(), &server, "a b/my.db");
    for source in [Some("my.db"), None] {
        let output = shell(folder.path()).args(source).args(source.map(|_| "SELECT count(*) FROM t")).output().unwrap();
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stdout, source.map_or("", |_| "32\n"));
    }
}

#[test]
fn a_path_is_found_as_litestream_itself_spells_it() {
    let folder = tempfile::tempdir().unwrap();
    let server = server("/my.db");
    config(folder.path(), &server, "/my.db");
    let output = shell(folder.path()).args(["my.db", ".txid"]).output().unwrap();
    assert_eq!(texts(&output), ("0000000000000028\n".to_owned(), String::new()));
}

#[test]
fn a_failure_is_told_with_its_cause_and_without_the_credentials() {
    let folder = tempfile::tempdir().unwrap();
    let server = server("my.db");
    config(folder.path(), &server, "elsewhere");
    let output = shell(folder.path()).args(["my.db", "SELECT 1"]).output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!((output.status.code(), stdout.as_str(), stderr.lines().count()), (Some(1), "", 1), "{stderr}");
    assert!(stderr.contains("s3://bkt/elsewhere") && stderr.contains("the replica is empty"), "{stderr}");
    assert!(!stderr.contains(server.secret_key()), "{stderr}");
}

fn interrupt(child: &Child) {
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
}

#[test]
fn an_interrupt_ends_a_wait_for_a_store_that_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let server = server("my.db");
    config(folder.path(), &server, "my.db");
    let mut command = shell(folder.path());
    let command = command.arg("my.db").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "SELECT 1;").unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "1\n");

    server.set_down(Some(Down::Silent)).unwrap();
    writeln!(stdin, ".time 0000000000000002\n.txid").unwrap();
    drop(stdin);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let said = texts(&output).1;
    // The signal may come before the line that waits has been read.
    let lines = [1, 2].map(|line| format!("litestream: stdin, line {line}: interrupted\n"));
    assert!(output.status.code() == Some(1) && lines.contains(&said), "{:?}: {said}", output.status);
    line.clear();
    assert_eq!(stdout.read_line(&mut line).unwrap(), 0, "{line}");
    server.set_down(None).unwrap();
}

#[test]
fn a_local_database_can_be_attached_and_filled() {
    let folder = tempfile::tempdir().unwrap();
    let server = server("my.db");
    config(folder.path(), &server, "my.db");
    let attach = format!("ATTACH 'file:{}/copy.db?vfs=unix' AS copy", folder.path().display());
    let output =
        shell(folder.path()).args(["my.db", &attach, "CREATE TABLE copy.t AS SELECT * FROM t"]).output().unwrap();
    assert_eq!(texts(&output), (String::new(), String::new()));
    let copy = rusqlite::Connection::open(folder.path().join("copy.db")).unwrap();
    assert_eq!(copy.query_row("SELECT count(*) FROM t", [], |row| row.get(0)), Ok(32));
}

#[test]
fn output_goes_to_files_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let server = server("my.db");
    config(folder.path(), &server, "my.db");
    let script = ".once one.csv\n.mode csv\nSELECT 1, 'to stdout';\n.once one.csv\nSELECT 2, 'a,b';\nSELECT 3;\n\
                  .output many.txt\n.mode list\nSELECT 4;\n.txid\n.output\nSELECT 5;\n.output no/such/folder\n";
    std::fs::write(folder.path().join("script.sql"), script).unwrap();
    let script = std::fs::File::open(folder.path().join("script.sql")).unwrap();
    let output = shell(folder.path()).arg("my.db").stdin(script).output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!(stdout, "1,to stdout\r\n3\r\n5\n");
    assert!(stderr.starts_with("litestream: stdin, line 13: cannot write to no/such/folder: "), "{stderr}");
    let written = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(written("one.csv"), "2,\"a,b\"\r\n");
    assert_eq!(written("many.txt"), "4\n0000000000000028\n");
}

#[test]
fn an_interrupt_stops_the_query_and_what_would_follow() {
    let folder = tempfile::tempdir().unwrap();
    let server = server("my.db");
    config(folder.path(), &server, "my.db");
    let mut child = shell(folder.path())
        .arg("my.db")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.as_mut().unwrap(), "{ENDLESS};\nSELECT 'what would follow';").unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    interrupt(&child);
    while !line.is_empty() {
        assert!(!line.contains("follow"));
        line.clear();
        stdout.read_line(&mut line).unwrap();
    }
    let (_, stderr) = texts(&child.wait_with_output().unwrap());
    assert_eq!(stderr, "litestream: stdin, line 1: interrupted\n");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let server = server("my.db");
    config(folder.path(), &server, "my.db");
    for mode in ["list", "csv", "json", "tabs", "table"] {
        let mut child = shell(folder.path())
            .args(["my.db", &format!(".mode {mode}"), ENDLESS])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), texts(&output).1.as_str()), (Some(0), ""), "{mode}");
    }
}

#[test]
fn a_dump_reads_back_as_the_same_database() {
    let folder = tempfile::tempdir().unwrap();
    let server = server("my.db");
    config(folder.path(), &server, "my.db");
    let output = shell(folder.path()).args(["my.db", ".dump"]).output().unwrap();
    let copy = rusqlite::Connection::open_in_memory().unwrap();
    copy.execute_batch(&texts(&output).0).unwrap();
    let sum = "SELECT group_concat(id || name || coalesce(hex(body), '')) FROM (SELECT * FROM t ORDER BY id)";
    let expected = shell(folder.path()).args(["my.db", sum]).output().unwrap();
    let found: String = copy.query_row(sum, [], |row| row.get(0)).unwrap();
    assert_eq!(found + "\n", texts(&expected).0);
}
