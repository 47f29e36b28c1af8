//! What a writer has committed is never lost: `litestream vfs-buffer` shows what a killed one left, uploads it, or saves it as a database.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use litestream_fixtures::s3::{Down, S3Options, S3Server};
use rusqlite::Connection;

const SUM: &str = "SELECT count(*) || ' ' || total(length(body)) || ' ' || total(id) FROM t";
const FIRST: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB); \
                     INSERT INTO t(body) VALUES(zeroblob(9000)), ('one'), (randomblob(30000));";

/// A replica, and a folder to work in.
struct Bench {
    folder: tempfile::TempDir,
    server: Option<S3Server>,
    url: String,
}

impl Bench {
    fn file() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}/replica", folder.path().display());
        Self { folder, server: None, url }
    }

    fn s3() -> Self {
        let server = S3Server::start(S3Options::default()).unwrap();
        server.create_bucket("bkt");
        let url = format!("s3://bkt/a%20b/my.db?endpoint={}", server.endpoint());
        Self { folder: tempfile::tempdir().unwrap(), server: Some(server), url }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_litestream"));
        command.current_dir(self.folder.path()).args(arguments).env("LITESTREAM_CONFIG", "");
        for name in ["LITESTREAM_REPLICA_URL", "LITESTREAM_BUFFER_PATH", "LITESTREAM_SYNC_INTERVAL"] {
            command.env_remove(name);
        }
        if let Some(server) = &self.server {
            command.env("LITESTREAM_ACCESS_KEY_ID", server.access_key());
            command.env("LITESTREAM_SECRET_ACCESS_KEY", server.secret_key());
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs what must succeed, and gives what it prints.
    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs what must fail, and gives what it says.
    #[track_caller]
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""), "{arguments:?}: {said}");
        said
    }

    /// A shell that writes, and uploads only when told.
    fn writer(&self, buffer: &str) -> Shell {
        let arguments = ["vfs-shell", "--write", "--buffer", buffer, "--sync-interval", "1h", &self.url];
        let mut child = self.command(&arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Shell { child, stdin, stdout }
    }

    /// A buffer of a writer that was killed, after what it uploaded and what it did not. Gives the database's sum.
    fn left_over(&self, buffer: &str, uploaded: &str, pending: &[&str]) -> String {
        let mut shell = self.writer(buffer);
        if !uploaded.is_empty() {
            shell.say(uploaded);
            shell.ask(".sync");
        }
        pending.iter().for_each(|sql| shell.say(sql));
        let sum = shell.ask(&format!("{SUM};"));
        shell.kill();
        sum
    }

    fn shown(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.ok(&["vfs-buffer", "--json", path])).unwrap()
    }

    /// The sum of a restored database.
    fn restored(&self, name: &str) -> String {
        self.ok(&["restore", "-o", name, "--force", "--integrity-check", "full", &self.url]);
        sum(&self.path(name))
    }
}

/// A shell that takes commands.
struct Shell {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Shell {
    fn say(&mut self, text: &str) {
        writeln!(self.stdin, "{text}").unwrap();
    }

    /// Says something that is answered in one line; all that was said before has been done then.
    fn ask(&mut self, text: &str) -> String {
        self.say(text);
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// As the power would end it, but for the machine's own memory.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn sum(path: &Path) -> String {
    let database = Connection::open(path).unwrap();
    assert_eq!(database.query_row("PRAGMA integrity_check", [], |row| row.get(0)), Ok("ok".to_owned()));
    database.query_row(SUM, [], |row| row.get(0)).unwrap()
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[test]
fn what_a_killed_writer_left_is_shown_exported_and_pushed() {
    for bench in [Bench::file(), Bench::s3()] {
        let pending = ["UPDATE t SET body = 'two' WHERE id = 2;", "INSERT INTO t(body) VALUES(randomblob(50000));"];
        let expected = bench.left_over("b/buffer", FIRST, &pending);

        let shown = &bench.shown("b")[0];
        assert_eq!((&shown["buffer"], &shown["in_use"]), (&"b/buffer".into(), &false.into()), "{shown}");
        assert_eq!(shown["replica"], bench.url, "the address has no credentials");
        // The last proof is noted with the upload after it.
        assert_eq!((&shown["upload_txid"], &shown["upload_transactions"]), (&"0000000000000001".into(), &2.into()));
        assert_eq!((&shown["pending_transactions"], &shown["base_txid"]), (&4.into(), &"0000000000000000".into()));
        let people = bench.ok(&["vfs-buffer", "b/buffer"]);
        assert!(
            people.contains(" pending: 4 transactions, 2") && people.contains("the replica may hold it"),
            "{people}"
        );

        let said = bench.ok(&["vfs-buffer", "--export", "out.db", "b"]);
        assert!(said.starts_with("exported out.db: "), "{said}");
        assert_eq!(sum(&bench.path("out.db")), expected);
        let said = bench.fails(&["vfs-buffer", "--export", "out.db", "b"]);
        assert_eq!(said, "litestream: out.db: exists already; give another path, or --force to replace it\n");
        let said = bench.ok(&["vfs-buffer", "--export", "out.db", "--force", "--json", "b"]);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&said).unwrap()["transactions"], 4);

        assert_eq!(bench.ok(&["vfs-buffer", "--push", "b"]), "0000000000000002\n");
        assert_eq!(bench.restored("restored.db"), expected);
        assert_eq!(bench.shown("b")[0]["pending_transactions"], 0);
        let said = bench.fails(&["vfs-buffer", "--export", "none.db", "b"]);
        assert!(said.contains("it holds nothing that the replica does not"), "{said}");
        assert_eq!(bench.ok(&["vfs-buffer", "--push", "b"]), "0000000000000002\n", "there is nothing to do");
    }
}

#[test]
fn what_shrank_and_grew_again_is_exported_as_it_was() {
    let bench = Bench::file();
    bench.left_over("first", "", &[FIRST]);
    bench.ok(&["vfs-buffer", "--push", "first"]);
    let pending = [
        "INSERT INTO t(body) SELECT randomblob(20000) FROM t AS a, t AS b;",
        "DELETE FROM t WHERE id > 1; VACUUM;",
        "BEGIN; DELETE FROM t; ROLLBACK;",
        "INSERT INTO t(body) SELECT randomblob(7000) FROM sqlite_schema AS a, pragma_table_info('t') AS b;",
    ];
    let expected = bench.left_over("second", "", &pending);
    let shown = &bench.shown("second")[0];
    assert_eq!((&shown["base_txid"], &shown["upload_txid"]), (&"0000000000000001".into(), &().into()), "{shown}");
    let said = bench.ok(&["vfs-buffer", "--export", "out.db", "second"]);
    assert!(said.contains("at 0000000000000001 and 4 transactions of the buffer"), "{said}");
    assert_eq!(sum(&bench.path("out.db")), expected);
}

#[test]
fn a_fenced_buffer_is_not_pushed_but_exported() {
    for bench in [Bench::file(), Bench::s3()] {
        bench.left_over("first", "", &[FIRST]);
        bench.ok(&["vfs-buffer", "--push", "first"]);
        let expected = bench.left_over("mine", "", &["INSERT INTO t(body) VALUES('mine');"]);
        let theirs = ["vfs-shell", "--write", "--buffer", "theirs", &bench.url, "INSERT INTO t(body) VALUES('theirs')"];
        bench.ok(&theirs);

        let before = bench.shown("mine");
        let said = bench.fails(&["vfs-buffer", "--push", "mine"]);
        assert!(said.starts_with("litestream: fenced: transaction 0000000000000002 was written by writer "), "{said}");
        assert!(said.ends_with("; save it with --export\n") && said.lines().count() == 1, "{said}");
        assert_eq!(bench.shown("mine"), before);
        // The shell says it before the first command, and goes on reading; but what is kept makes it fail.
        let shell = ["vfs-shell", "--write", "--buffer", "mine", &bench.url, "SELECT count(*) FROM t"];
        let output = bench.run(&shell);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), "4\n"));
        assert!(text(&output.stderr).contains("opened, but not for writing: fenced"), "{}", text(&output.stderr));
        assert_eq!(bench.shown("mine"), before);

        bench.ok(&["vfs-buffer", "--export", "mine.db", "mine"]);
        assert_eq!(sum(&bench.path("mine.db")), expected);
        assert_ne!(bench.restored("theirs.db"), expected);
        let said = bench.fails(&["vfs-buffer", "--discard", "mine"]);
        assert_eq!(said, "litestream: mine: what it holds would be lost: say so with --yes\n");
        assert_eq!(bench.ok(&["vfs-buffer", "--discard", "--yes", "mine"]), "discarded mine\n");
        let left: Vec<_> =
            std::fs::read_dir(bench.folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("mine") && name != "mine.db"), "{left:?}");
    }
}

#[test]
fn an_uploaded_transaction_is_the_base_where_the_one_before_was_merged() {
    let bench = Bench::file();
    bench.left_over("first", "", &[FIRST]);
    bench.ok(&["vfs-buffer", "--push", "first"]);
    let expected =
        bench.left_over("mine", "INSERT INTO t(body) VALUES('gone up');", &["INSERT INTO t(body) VALUES('kept');"]);
    // What compaction does: a snapshot of both, and only the newest single transaction stays.
    let level = |level: u8| bench.path(&format!("replica/ltx/{level}"));
    bench.ok(&["compact", &bench.url]);
    std::fs::remove_file(level(0).join("0000000000000001-0000000000000001.ltx")).unwrap();
    if level(1).exists() {
        std::fs::remove_dir_all(level(1)).unwrap();
    }
    let said = bench.ok(&["vfs-buffer", "--export", "out.db", "mine"]);
    assert!(said.contains("at 0000000000000002 and 1 transaction of the buffer"), "{said}");
    assert_eq!(sum(&bench.path("out.db")), expected);

    // And where that proof has gone, too, nothing is guessed.
    bench.ok(&["vfs-shell", "--write", "--buffer", "theirs", &bench.url, "INSERT INTO t(body) VALUES('theirs')"]);
    bench.ok(&["compact", &bench.url]);
    std::fs::remove_file(level(0).join("0000000000000002-0000000000000002.ltx")).unwrap();
    if level(1).exists() {
        std::fs::remove_dir_all(level(1)).unwrap();
    }
    for file in std::fs::read_dir(level(9)).unwrap() {
        let file = file.unwrap().path();
        if file.to_string_lossy().ends_with("-0000000000000002.ltx") {
            std::fs::remove_file(file).unwrap();
        }
    }
    let said = bench.fails(&["vfs-buffer", "--export", "none.db", "mine"]);
    assert!(said.contains("merged into later transactions; the buffer stays"), "{said}");
    assert!(!bench.path("none.db").exists());
}

#[test]
fn a_buffer_on_another_history_is_not_mixed_with_it() {
    let bench = Bench::file();
    bench.left_over("first", "", &[FIRST]);
    bench.ok(&["vfs-buffer", "--push", "first"]);
    bench.left_over("mine", "", &["INSERT INTO t(body) VALUES('mine');"]);
    std::fs::remove_dir_all(bench.path("replica")).unwrap();
    bench.ok(&["vfs-shell", "--write", "--buffer", "anew", &bench.url, "CREATE TABLE other(x)"]);
    let said = bench.fails(&["vfs-buffer", "--export", "out.db", "mine"]);
    assert!(said.contains("transaction 0000000000000001 is another one than the buffer rests on"), "{said}");
    assert!(!bench.path("out.db").exists());
}

#[test]
fn a_buffer_in_use_is_shown_and_otherwise_left_alone() {
    let bench = Bench::file();
    let mut shell = bench.writer("buffer");
    shell.say(FIRST);
    assert_eq!(shell.ask("SELECT 'ready';"), "ready");
    let shown = &bench.shown("buffer")[0];
    assert_eq!((&shown["in_use"], &shown["pid"]), (&true.into(), &shell.child.id().into()), "{shown}");
    assert_eq!(shown["pending_transactions"], 2);
    let people = bench.ok(&["vfs-buffer", "buffer"]);
    assert!(people.contains(&format!("buffer (in use by process {})", shell.child.id())), "{people}");
    for action in [&["--export", "out.db"][..], &["--push"], &["--discard", "--yes"]] {
        let said = bench.fails(&[&["vfs-buffer", "buffer"], action].concat());
        let expected =
            format!("litestream: buffer: process {} is writing with it: end that first, then ", shell.child.id());
        assert!(said.starts_with(&expected), "{said}");
    }
    // Looking on took nothing from the writer.
    shell.say("INSERT INTO t(body) VALUES('more');");
    assert_eq!(shell.ask(".sync"), "0000000000000001");
    drop(shell.stdin);
    assert!(shell.child.wait().unwrap().success());
    assert_eq!(bench.shown("buffer")[0]["pending_transactions"], 0);
}

#[test]
fn damage_is_told_and_a_torn_end_is_cut() {
    let bench = Bench::file();
    let expected = bench.left_over("b/buffer", FIRST, &[]);
    let segment = bench.path("b/buffer-0000000000000001");
    let whole = std::fs::read(&segment).unwrap();
    let mut torn = whole.clone();
    torn.extend_from_slice(&[7; 5000]);
    std::fs::write(&segment, &torn).unwrap();
    bench.ok(&["vfs-buffer", "--export", "out.db", "b"]);
    assert_eq!(sum(&bench.path("out.db")), expected);

    // A header that cannot be trusted, and one segment more behind it.
    let mut damaged = whole.clone();
    damaged[20] ^= 1;
    std::fs::write(&segment, &damaged).unwrap();
    std::fs::write(bench.path("b/buffer-0000000000000002"), &whole).unwrap();
    for action in [&[][..], &["--export", "none.db"], &["--push"]] {
        let said = bench.fails(&[&["vfs-buffer", "b"], action].concat());
        assert!(said.contains("buffer-0000000000000001: its header is torn"), "{action:?}: {said}");
    }
    copy_files(&bench.path("b"), &bench.path("c"));
    std::fs::remove_file(bench.path("c/buffer")).unwrap();
    let said = bench.fails(&["vfs-buffer", "c"]);
    assert!(said.contains("c/buffer"), "{said}");
    assert_eq!(bench.ok(&["vfs-buffer", "--discard", "--yes", "b"]), "discarded b/buffer\n");
    assert_eq!(std::fs::read_dir(bench.path("b")).unwrap().count(), 0);
}

#[test]
fn a_folder_may_hold_several_and_a_database_names_its_own() {
    let bench = Bench::file();
    bench.left_over("b/one", FIRST, &[]);
    let second = Bench { url: format!("{}-2", bench.url), ..bench };
    second.left_over("b/two", FIRST, &[]);
    assert_eq!(second.shown("b").as_array().unwrap().len(), 2);
    let said = second.fails(&["vfs-buffer", "--push", "b"]);
    assert_eq!(said, "litestream: b: there are several write buffers: name one of b/one, b/two\n");
    // By its default place.
    let mut shell = second.command(&["vfs-shell", "--write", "--sync-interval", "1h", &second.url]);
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(shell.stdin.as_mut().unwrap(), "CREATE TABLE u(a);\nSELECT 'x';").unwrap();
    let mut line = String::new();
    BufReader::new(shell.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    shell.kill().unwrap();
    shell.wait().unwrap();
    let shown = second.shown("replica-2");
    assert_eq!(shown[0]["buffer"], ".replica-2-litestream/buffer", "{shown}");
}

#[test]
fn a_shell_that_cannot_upload_says_so_and_keeps_the_buffer() {
    let bench = Bench::s3();
    let mut shell = bench.command(&["vfs-shell", "--write", "--buffer", "buffer", &bench.url]);
    shell.env("LITESTREAM_SHUTDOWN_SYNC_TIMEOUT", "200ms").env("LITESTREAM_SYNC_INTERVAL", "1h");
    let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    writeln!(stdin, "{FIRST}\nSELECT 'committed';").unwrap();
    stdout.read_line(&mut line).unwrap();
    let server = bench.server.as_ref().unwrap();
    server.set_down(Some(Down::Silent)).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("2 transactions are kept in "), "{said}");
    server.set_down(None).unwrap();
    assert_eq!(bench.ok(&["vfs-buffer", "--push", "buffer"]), "0000000000000001\n");
    assert!(bench.restored("restored.db").starts_with("3 "));
}

#[test]
fn the_next_shell_uploads_what_the_one_before_left() {
    let bench = Bench::file();
    let expected = bench.left_over("buffer", "", &[FIRST]);
    let shell = ["vfs-shell", "--write", "--buffer", "buffer", "--hydrate", &bench.url, ".sync", ".stats", ".show"];
    let output = bench.run(&shell);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && stdout.starts_with("0000000000000001\n"), "{stdout}{stderr}");
    assert!(stderr.contains("2 transactions were left in the write buffer "), "{stderr}");
    for counter in ["transactions_committed", "transactions_pending", "uploads", "buffer_bytes", "hydration_pages"] {
        assert!(stdout.contains(counter), "{stdout}");
    }
    assert!(stdout.contains(&format!("buffer: {}", bench.path("buffer").display())), "{stdout}");
    assert_eq!(bench.restored("restored.db"), expected);
}

#[test]
fn a_shell_that_was_not_told_to_does_not_write() {
    let bench = Bench::file();
    bench.left_over("buffer", "", &[FIRST]);
    bench.ok(&["vfs-buffer", "--push", "buffer"]);
    let mut command = bench.command(&["vfs-shell", &bench.url, "DELETE FROM t"]);
    let output = command.env("LITESTREAM_WRITE_ENABLED", "true").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("readonly"), "{}", text(&output.stderr));
}
