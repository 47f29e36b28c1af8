//! `litestream replicate`, as a process: its child, its signals, and what it does before and beside replicating.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

/// A daemon whose lines are read as they come.
struct Daemon {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new("env");
        // Whatever these tests were started by, such as `nohup`.
        command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_litestream")]);
        Self::spawn(command, arguments)
    }

    /// The same by a command that becomes the daemon.
    fn spawn(mut command: Command, arguments: &[&str]) -> Self {
        let mut child = command
            .arg("replicate")
            .args(arguments)
            .env("LITESTREAM_CONFIG", "")
            .env_remove("LOG_LEVEL")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let err = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in err.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// The next line that says this.
    #[track_caller]
    fn line(&self, part: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line.contains(part) {
                return line;
            }
            seen.push(line);
        }
        panic!("no line says {part:?}: {seen:#?}");
    }

    /// All lines that are left, once it has ended.
    #[track_caller]
    fn rest(&self) -> Vec<String> {
        let deadline = Instant::now() + DEADLINE;
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => rest.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => return rest,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("somebody still has its output: {rest:#?}"),
            }
        }
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    #[track_caller]
    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

fn config(folder: &Path, text: &str) -> String {
    let path = folder.join("litestream.yml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fixtures/golden/levels/replica")
}

#[test]
fn a_signal_brings_replicas_up_to_date_and_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "dbs: []");
    for signal in ["-TERM", "-INT", "-HUP"] {
        let mut daemon = Daemon::start(&["-config", &config]);
        daemon.line("msg=litestream");
        daemon.signal(signal);
        daemon.line("up to date");
        assert_eq!(daemon.end().code(), Some(0), "{signal}");
    }
}

#[test]
fn what_nohup_ignores_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "dbs: []");
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_litestream")]);
    let mut daemon = Daemon::spawn(command, &["-config", &config]);
    daemon.line("msg=litestream");
    daemon.signal("-HUP");
    daemon.signal("-TERM");
    assert_eq!(daemon.end().code(), Some(0));
    let rest = daemon.rest();
    let said = |part: &str| rest.iter().filter(|line| line.contains(part)).count();
    assert_eq!((said("hung up"), said("terminated")), (0, 1), "{rest:#?}");
}

#[test]
fn signals_are_the_childs_and_its_code_is_ours() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "dbs: []");
    // It ends by itself, should nobody end it.
    let script = "sh -c 'trap \"echo hup >&2\" HUP; trap \"exit 9\" TERM; echo ready >&2
        i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); sleep 0.02; done'";
    let mut daemon = Daemon::start(&["-config", &config, "-exec", script]);
    daemon.line("ready");
    daemon.signal("-HUP");
    daemon.line("hup");
    daemon.signal("-TERM");
    daemon.line("up to date");
    assert_eq!(daemon.end().code(), Some(9));
}

#[test]
fn the_end_of_the_child_is_the_end() {
    let folder = tempfile::tempdir().unwrap();
    for (exec, code) in [("true", 0), ("false", 1), ("sh -c 'kill -KILL $$'", 137)] {
        let config = config(folder.path(), &format!("dbs: []\nexec: \"{exec}\""));
        assert_eq!(Daemon::start(&["-config", &config, "-no-expand-env"]).end().code(), Some(code), "{exec}");
    }
    // The command line goes first, and `--once` needs nobody.
    let config = config(folder.path(), "dbs: []\nexec: \"false\"");
    assert_eq!(Daemon::start(&["-config", &config, "-exec", "true"]).end().code(), Some(0));
    assert_eq!(Daemon::start(&["-config", &config, "-once"]).end().code(), Some(0));
}

#[test]
fn a_missing_database_is_restored_before_the_child_starts() {
    let folder = tempfile::tempdir().unwrap();
    let (db, copy) = (folder.path().join("sub/a.db"), folder.path().join("copy.db"));
    // What is replicated goes there: not into the golden one.
    let place = folder.path().join("replica");
    let copied = Command::new("cp").arg("-r").arg(golden()).arg(&place).status().unwrap();
    assert!(copied.success());
    let replica = format!("file://{}", place.display());
    let arguments = |exec: &str| {
        let arguments = ["-restore-if-db-not-exists", "-exec", exec, db.to_str().unwrap(), &replica];
        Daemon::start(&arguments)
    };
    let mut daemon = arguments(&format!("cp {} {}", db.display(), copy.display()));
    daemon.line("msg=restored");
    assert_eq!(daemon.end().code(), Some(0));
    let rows = |path: &Path| {
        let connection = rusqlite::Connection::open(path).unwrap();
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert!(rows(&copy) > 0);
    // It is left alone where it is there, even where that is no database, and so cannot be replicated.
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(folder.path().join(format!("sub/a.db{suffix}")));
    }
    std::fs::write(&db, "mine").unwrap();
    assert_eq!(arguments("true").end().code(), Some(1));
    assert_eq!(std::fs::read(&db).unwrap(), b"mine");
}

#[test]
fn no_backup_is_no_failure_but_a_broken_one_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let start = |db: &str, replica: &str| {
        Daemon::start(&["-restore-if-db-not-exists", "-exec", "true", &at(db), &format!("file://{}", at(replica))])
    };
    let mut daemon = start("a.db", "nowhere");
    daemon.line("has no backup");
    assert_eq!(daemon.end().code(), Some(0));
    let level = folder.path().join("broken/ltx/9");
    std::fs::create_dir_all(&level).unwrap();
    std::fs::write(level.join("0000000000000001-0000000000000001.ltx"), "not a file of the format").unwrap();
    let mut daemon = start("b.db", "broken");
    daemon.line("cannot restore ");
    assert_eq!(daemon.end().code(), Some(1));
    assert!(!folder.path().join("b.db").exists());
}

#[test]
fn databases_in_a_watched_folder_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("many");
    std::fs::create_dir(&dir).unwrap();
    let text = format!(
        "dbs: [{{dir: {}, pattern: '*.db', watch: true, replica: {{path: {}/backup}}}}]",
        dir.display(),
        folder.path().display()
    );
    let mut daemon = Daemon::start(&["-config", &config(folder.path(), &text)]);
    daemon.line("msg=litestream");
    let path = dir.join("a.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(x)").unwrap();
    assert!(daemon.line("a new database").contains("a.db"));
    std::fs::remove_file(&path).unwrap();
    assert!(daemon.line("has gone").contains("a.db"));
    daemon.signal("-TERM");
    assert_eq!(daemon.end().code(), Some(0));
}

#[test]
fn the_command_line_says_first_what_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "dbs: []\nlogging: {level: error}");
    let logged = |arguments: &[&str], variable: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_litestream"));
        command.args(["replicate", "-config", &config, "-once"]).args(arguments).env_remove("LOG_LEVEL");
        if let Some(level) = variable {
            command.env("LOG_LEVEL", level);
        }
        String::from_utf8(command.output().unwrap().stderr).unwrap().lines().count()
    };
    assert_eq!(logged(&[], None), 0);
    assert_eq!(logged(&[], Some("warn")), 1);
    assert_eq!(logged(&["-log-level", "error"], Some("info")), 0);
    assert!(logged(&["-log-level", "info"], None) > 1);
}
