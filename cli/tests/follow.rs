//! `litestream restore --follow`, as a process: killed at any instant, interrupted, its store gone and back.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use litestream_fixtures::recorder::Recorder;
use litestream_fixtures::s3::{Down, Operation, S3Options, S3Server};
use rusqlite::Connection;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

/// What a database looked like after each transaction, but for what a copy has of its own.
type States = Arc<Mutex<HashMap<u64, Vec<u8>>>>;

/// A database whose transactions are put on a server.
struct Source {
    path: PathBuf,
    sqlite: Connection,
    recorder: Recorder,
    server: Arc<S3Server>,
    states: States,
    txid: u64,
}

impl Source {
    fn new(folder: &Path, server: &Arc<S3Server>) -> Self {
        let path = folder.join("source");
        let sqlite = Connection::open(&path).unwrap();
        sqlite
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
                 CREATE TABLE t(id INTEGER PRIMARY KEY, number INTEGER, body BLOB); CREATE INDEX i ON t(body);
                 WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 800)
                 INSERT INTO t SELECT i, 0, randomblob(400) FROM n;",
            )
            .unwrap();
        let states = States::default();
        let mut source = Self { path, sqlite, recorder: Recorder::new(), server: server.clone(), states, txid: 0 };
        source.put();
        source
    }

    fn transact(&mut self) -> u64 {
        let shrink = if self.txid % 7 == 3 { "DELETE FROM t WHERE id > 800; VACUUM;" } else { "" };
        self.sqlite
            .execute_batch(&format!(
                "BEGIN; UPDATE t SET number = number + 1, body = randomblob(400) WHERE id % 9 = abs(random()) % 9;
                 INSERT INTO t(number, body) SELECT number, randomblob(900) FROM t WHERE id < 40; COMMIT; {shrink}"
            ))
            .unwrap();
        self.put()
    }

    fn put(&mut self) -> u64 {
        self.sqlite.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        self.txid += 1;
        let file = self.recorder.record(&self.path, 1_000 * self.txid.cast_signed()).unwrap();
        self.states.lock().unwrap().insert(self.txid, comparable(&self.path));
        self.server.put_object("bkt", &format!("db/0000/{}", file.name), file.bytes, &[]);
        self.txid
    }
}

fn comparable(path: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    for own in [18..20, 24..28, 92..96] {
        bytes[own].fill(0);
    }
    bytes
}

/// Which transaction a copy has.
fn state_of(copy: &Path, states: &States) -> Option<u64> {
    let bytes = comparable(copy);
    states.lock().unwrap().iter().find(|(_, state)| **state == bytes).map(|(txid, _)| *txid)
}

fn follow(server: &S3Server, copy: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_litestream"));
    command
        .args(["restore", "-f", "-follow-interval", "10ms", "--retry-timeout", "1s", "-o"])
        .arg(copy)
        .args(arguments)
        .arg(format!("s3://bkt/db?endpoint={}", server.endpoint()))
        .env("LITESTREAM_ACCESS_KEY_ID", server.access_key())
        .env("LITESTREAM_SECRET_ACCESS_KEY", server.secret_key())
        .env("LITESTREAM_CONFIG", "")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A follower whose JSON lines are read as they come.
struct Follower {
    child: Child,
    lines: mpsc::Receiver<Value>,
}

impl Follower {
    fn start(server: &S3Server, copy: &Path) -> Self {
        let mut child = follow(server, copy, &["--json"]).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, lines }
    }

    /// The next event that is one of this kind.
    #[track_caller]
    fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).expect("the follower says nothing of the kind");
            if wanted(&line) {
                return line;
            }
        }
    }

    #[track_caller]
    fn wait_for_txid(&self, txid: u64) {
        self.wait_for(|line| line["event"] == "applied" && line["txid"] == format!("{txid:016x}"));
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    fn end(self) -> Output {
        self.child.wait_with_output().unwrap()
    }
}

/// Whether there is a journal that would be rolled back.
fn counts_records(journal: &Path) -> bool {
    let mut head = [0; 12];
    std::fs::File::open(journal).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head[8..] != [0; 4]
}

fn is_named(line: &Value, name: &str) -> bool {
    line["event"] == name
}

#[test]
fn it_restores_follows_and_ends_when_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let server = Arc::new(S3Server::start(S3Options::default()).unwrap());
    let mut source = Source::new(folder.path(), &server);
    let copy = folder.path().join("copy");
    for (signal, first) in [("-TERM", "restored"), ("-INT", "resumed")] {
        let follower = Follower::start(&server, &copy);
        let begun = follower.wait_for(|_| true);
        assert!(is_named(&begun, first) && begun["txid"] == format!("{:016x}", source.txid), "{begun}");
        for _ in 0..3 {
            let txid = source.transact();
            follower.wait_for_txid(txid);
            assert_eq!(state_of(&copy, &source.states), Some(txid));
            let told = std::fs::read_to_string(folder.path().join("copy-txid")).unwrap();
            // What is told is written a moment before, so this waits for nothing.
            assert_eq!(told, format!("{txid:016x}\n"));
        }
        follower.signal(signal);
        let stopped = follower.wait_for(|line| is_named(line, "stopped"));
        assert_eq!(stopped["txid"], format!("{:016x}", source.txid));
        let output = follower.end();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    // For people the same goes to stderr.
    let mut child = follow(&server, &copy, &[]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.next().unwrap().contains("following"));
    let txid = source.transact();
    let line = lines.next().unwrap();
    assert!(line.starts_with(&format!("litestream: applied {txid:016x} (")), "{line}");
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert!(lines.next().unwrap().contains("stopped at"));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty());
}

#[test]
fn a_store_that_is_gone_for_a_while_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let server = Arc::new(S3Server::start(S3Options::default()).unwrap());
    let mut source = Source::new(folder.path(), &server);
    let copy = folder.path().join("copy");
    let follower = Follower::start(&server, &copy);
    follower.wait_for(|line| is_named(line, "restored"));
    server.set_down(Some(Down::Refuse)).unwrap();
    let failing = follower.wait_for(|line| is_named(line, "failing"));
    assert!(failing["error"].as_str().unwrap().contains("127.0.0.1"), "{failing}");
    let txid = source.transact();
    assert_eq!(state_of(&copy, &source.states), Some(1));
    server.set_down(None).unwrap();
    // Each is told once.
    let next = follower.wait_for(|_| true);
    assert!(is_named(&next, "recovered"), "{next}");
    follower.wait_for_txid(txid);
    follower.signal("-TERM");
    assert!(follower.end().status.success());
}

#[test]
fn killed_at_any_instant_it_leaves_a_state_and_goes_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let server = Arc::new(S3Server::start(S3Options::default()).unwrap());
    let mut source = Source::new(folder.path(), &server);
    let (copy, journal) = (folder.path().join("copy"), folder.path().join("copy-journal"));
    let states = source.states.clone();
    let follower = Follower::start(&server, &copy);
    follower.wait_for(|line| is_named(line, "restored"));
    server.reset_stats();
    let done = Arc::new(AtomicBool::new(false));
    let writer = {
        let done = done.clone();
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                source.transact();
                std::thread::park_timeout(Duration::from_millis(5));
            }
            source.transact()
        })
    };
    let mut random = fastrand::Rng::with_seed(11);
    let (mut last, mut journals, mut moved) = (1, 0, 0);
    let mut running = follower;
    for kill in 0..30 {
        // Every other time when it is about to change the copy, or at it; else at a random moment after it has gone on.
        let microseconds = if kill % 2 == 0 {
            let deadline = Instant::now() + DEADLINE;
            let is_there = || if kill % 4 == 0 { counts_records(&journal) } else { journal.exists() };
            while !is_there() && Instant::now() < deadline {
                std::hint::spin_loop();
            }
            2_000
        } else {
            running.wait_for(|line| is_named(line, "applied"));
            60_000
        };
        let until = Instant::now() + Duration::from_micros(random.u64(0..microseconds));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        running.signal("-KILL");
        let output = running.end();
        // It had not ended by itself.
        assert_eq!(output.status.signal(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
        journals += u32::from(counts_records(&journal));
        // Every third time the follower itself comes first.
        if kill % 3 != 0 {
            let sqlite = Connection::open(&copy).unwrap();
            let check: String = sqlite.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(check, "ok", "after kill {kill}");
            drop(sqlite);
            let state = state_of(&copy, &states).expect("the copy is no state of the replica");
            assert!(state >= last, "after kill {kill} a step back from {last} to {state}");
            let told = std::fs::read_to_string(folder.path().join("copy-txid")).unwrap();
            assert!(u64::from_str_radix(told.trim(), 16).unwrap() <= state, "it claims more than there is");
            moved += u32::from(state > last);
            last = state;
        }
        running = Follower::start(&server, &copy);
        let begun = running.wait_for(|_| true);
        assert!(is_named(&begun, "resumed"), "{begun}");
        assert!(u64::from_str_radix(begun["txid"].as_str().unwrap(), 16).unwrap() >= last);
    }
    done.store(true, Ordering::Relaxed);
    let newest = writer.join().unwrap();
    running.wait_for_txid(newest);
    assert_eq!(state_of(&copy, &states), Some(newest));
    running.signal("-TERM");
    assert!(running.end().status.success());
    assert!(journals >= 2 && moved >= 10, "{journals} kills left a journal to roll back, {moved} times it had gone on");
    // The first file, which holds the whole database, was never read again.
    let first = |record: &&litestream_fixtures::s3::RequestRecord| {
        record.operation == Operation::GetObject && record.key_or_prefix.contains("/0000000000000001-")
    };
    assert_eq!(server.requests().iter().filter(first).count(), 0);
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| name.contains("copy"));
    names.sort();
    assert_eq!(names, ["copy", "copy-follow", "copy-txid"], "kills have left something");
}

#[test]
fn what_cannot_be_followed_is_said_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let server = Arc::new(S3Server::start(S3Options::default()).unwrap());
    let source = Source::new(folder.path(), &server);
    let refused = |arguments: &[&str], path: &Path, code: i32, text: &str| {
        let output = follow(&server, path, arguments).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && log.contains(text), "{log}");
    };
    let copy = folder.path().join("copy");
    refused(&["--txid", "0000000000000001"], &copy, 2, "cannot be used with");
    refused(&["--dry-run"], &copy, 2, "cannot be used with");
    refused(&["--follow-interval", "0s"], &copy, 2, "");
    refused(&[], &source.path, 1, "nothing tells what it is a copy of");
    let follower = Follower::start(&server, &copy);
    follower.wait_for(|line| is_named(line, "restored"));
    refused(&[], &copy, 1, "another process follows");
    refused(&["--force"], &copy, 1, "another process follows");
    // A local program writes: the follower ends with the next transaction.
    let sqlite = Connection::open(&copy).unwrap();
    sqlite.busy_timeout(Duration::from_secs(5)).unwrap();
    sqlite.execute_batch("DELETE FROM t").unwrap();
    drop(sqlite);
    let mut source = source;
    source.transact();
    let output = follower.end();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && log.contains("another program has written to it"), "{log}");
    refused(&[], &copy, 1, "begin again with --force");
    // Which helps.
    let mut forced = follow(&server, &copy, &["--force"]).spawn().unwrap();
    let mut lines = BufReader::new(forced.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.next().unwrap().contains("restored"));
    assert_eq!(state_of(&copy, &source.states), Some(2));
    assert!(Command::new("kill").args(["-TERM", &forced.id().to_string()]).status().unwrap().success());
    assert!(forced.wait().unwrap().success());
}
