//! Our daemon as it is killed and started again, and what its logs tell over all its lives.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::store::Store;
use crate::process::{Process, run, tail, wait_until};

/// How long it may take to answer, and to bring a replica up to date.
const ANSWER: Duration = Duration::from_secs(60);
/// So long after a signal it is killed.
const LONGEST_END: Duration = Duration::from_secs(15);
/// How often each database is drilled: restored by the daemon, and compared.
const DRILLS: Duration = Duration::from_secs(3);
/// The end of so many lives is kept for whoever looks for the cause of a failure.
const REMEMBERED: usize = 4;

/// What a line says that must never be.
const ALARMS: [&str; 6] = [
    "panicked",
    "a part of the program failed",
    "cannot follow",
    "another writer went on",
    "DRILL FAILED",
    "cannot start a thread",
];
/// What a line says of a drill that has passed.
const DRILLED: &str = "drill passed";

/// The daemon: running, ending after a signal, or dead.
pub(super) struct Daemon {
    ours: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    metrics: Option<String>,
    running: Option<Process>,
    ending: Option<(Process, Instant)>,
    pub(super) told: Told,
    seen: Vec<String>,
}

/// What its lives were like.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) starts: u32,
    pub(super) kills: u32,
    pub(super) signals: u32,
    /// Why all of a database was captured, and how often.
    pub(super) snapshots: BTreeMap<String, u32>,
    /// How many drills have passed.
    pub(super) drills: u32,
    /// Lines that must never be. Nothing that the soak does makes a replica another database than the live one, so no drill may fail either.
    pub(super) alarms: Vec<String>,
}

impl Told {
    /// How often all of a database was captured.
    pub(super) fn snapshots(&self) -> u32 {
        self.snapshots.values().sum()
    }

    fn read(&mut self, log: &str) {
        for line in log.lines() {
            if line.contains("new snapshot") {
                *self.snapshots.entry(reason(line)).or_default() += 1;
            }
            self.drills += u32::from(line.contains(DRILLED));
            if ALARMS.iter().any(|alarm| line.contains(alarm)) {
                self.alarms.push(line.to_owned());
            }
        }
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { starts, kills, signals, .. } = self;
        let (drills, snapshots) = (self.drills, self.snapshots());
        write!(f, "{starts} starts, {kills} kills, {signals} signals, {drills} drills, {snapshots} snapshots")?;
        self.snapshots.iter().try_for_each(|(why, times)| write!(f, "\n  {times:>5} × {why}"))
    }
}

/// Why, with every number left out.
fn reason(line: &str) -> String {
    let said = line.split_once("msg=").map_or(line, |(_, said)| said).trim_matches('"');
    let said = said.split_once(" path=").map_or(said, |(said, _)| said).trim_end_matches('"');
    let mut why = String::new();
    for word in said.split(' ') {
        let plain = word.trim_end_matches([',', ';', ':']);
        let number = plain.len() >= 16 && plain.bytes().all(|byte| byte.is_ascii_hexdigit());
        let word: String = word.chars().filter(|c| !c.is_ascii_digit()).collect();
        let _ = write!(why, "{}{}", if why.is_empty() { "" } else { " " }, if number { "N" } else { &word });
    }
    why
}

impl Daemon {
    /// Writes its configuration; nothing runs yet.
    pub(super) fn new(
        ours: &Path,
        folder: &Path,
        databases: &[(PathBuf, String)],
        addr: Option<String>,
    ) -> Result<Self> {
        let (config, socket) = (folder.join("litestream.yml"), folder.join("control.sock"));
        // Litestream plans a restore once: for `l0-retention` what it wants to read has to be there.
        let mut yaml = format!(
            "socket: {{enabled: true, path: {}}}
levels: [{{interval: 2s}}, {{interval: 10s}}]
snapshot: {{interval: 20s, retention: 60s}}
l0-retention: 10s
l0-retention-check-interval: 2s
shutdown-sync-timeout: 10s
",
            socket.display()
        );
        if let Some(addr) = &addr {
            let _ = writeln!(yaml, "addr: '{addr}'");
        }
        yaml.push_str("dbs:\n");
        for (database, url) in databases {
            let _ = writeln!(
                yaml,
                "  - path: {}
    checkpoint-interval: 5s
    min-checkpoint-page-count: 300
    truncate-page-n: 3000
    replica: {{url: '{url}', sync-interval: 100ms, validation-interval: {}s}}",
                database.display(),
                DRILLS.as_secs()
            );
        }
        std::fs::write(&config, yaml)?;
        let (log, ours) = (folder.join("litestream.log"), ours.to_owned());
        let (running, ending, told, seen) = (None, None, Told::default(), Vec::new());
        Ok(Self { ours, config, socket, log, metrics: addr, running, ending, told, seen })
    }

    pub(super) fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.ours);
        command.arg(name).env_remove("LITESTREAM_CONFIG").env_remove("LOG_LEVEL");
        command
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Starts it, once the one before has ended.
    pub(super) fn start(&mut self, store: &Store) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        if let Some((mut process, since)) = self.ending.take() {
            let left = LONGEST_END.saturating_sub(since.elapsed());
            // However it ends, the next one goes on.
            let _ = process.wait(left);
            self.bury(process);
        }
        let mut command = self.command("replicate");
        command.arg("--config").arg(&self.config);
        store.authorize(&mut command);
        self.running = Some(Process::spawn("our litestream replicate", &mut command)?);
        self.told.starts += 1;
        Ok(())
    }

    /// An error, where it has ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        let Some(process) = &mut self.running else { return Ok(()) };
        if let Some(status) = process.ended()? {
            let log = process.log();
            ensure!(false, "the daemon has ended by itself ({status}):\n{}", tail(&log, 30));
        }
        Ok(())
    }

    pub(super) fn kill(&mut self) {
        if let Some(process) = self.running.take() {
            self.told.kills += 1;
            self.bury(process);
        }
    }

    /// Sends SIGTERM. It ends when it has.
    pub(super) fn terminate(&mut self) -> Result<()> {
        if let Some(process) = self.running.take() {
            self.told.signals += 1;
            process.signal(rustix::process::Signal::TERM)?;
            self.ending = Some((process, Instant::now()));
        }
        Ok(())
    }

    fn bury(&mut self, process: Process) {
        let log = process.kill();
        self.told.read(&log);
        self.seen.push(log);
        if self.seen.len() > REMEMBERED {
            self.seen.remove(0);
        }
    }

    /// Brings a database's replica up to date. Returns its TXID.
    pub(super) fn sync(&mut self, database: &Path) -> Result<String> {
        let (start, mut last) = (Instant::now(), String::new());
        loop {
            self.check()?;
            let mut command = self.command("sync");
            command.args(["--wait", "--json", "--timeout", "60s", "--socket"]).arg(&self.socket).arg(database);
            match run("litestream sync --wait", &mut command) {
                Ok(said) => {
                    let said: Value = serde_json::from_str(&said).context("litestream sync printed no JSON")?;
                    ensure!(said["txid"] == said["replica_txid"], "a sync that is none: {said}");
                    return Ok(said["txid"].as_str().context("a sync without a TXID")?.to_owned());
                }
                // It may have begun a moment ago.
                Err(error) => last = format!("{error:#}; before: {}", tail(&last, 1)),
            }
            ensure!(start.elapsed() < ANSWER, "no sync within {} s: {last}", ANSWER.as_secs());
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    /// What it says of each database.
    pub(super) fn status(&mut self) -> Result<Vec<Value>> {
        let mut command = self.command("status");
        command.arg("--json").arg("--config").arg(&self.config).arg("--socket").arg(&self.socket);
        let said =
            wait_until("the daemon to tell its status", ANSWER, || Ok(run("litestream status", &mut command).ok()))?;
        serde_json::from_str(&said).context("litestream status printed no JSON")
    }

    /// What it tells of itself in numbers.
    pub(super) fn metrics(&self) -> Result<String> {
        crate::metrics::get(self.metrics.as_deref().context("there are no metrics")?)
    }

    /// Waits until the daemon, which nobody kills meanwhile, has drilled a database and found its replica to be the same.
    pub(super) fn wait_for_drill(&mut self, database: &Path, most: Duration) -> Result<()> {
        let path = database.to_str().context("the path is no text")?;
        let process = self.running.as_mut().context("no daemon runs")?;
        let said = |log: &str, what: &str| log.lines().any(|line| line.contains(what) && line.contains(path));
        wait_until(&format!("{path} to be drilled"), most, || {
            let (ended, log) = (process.ended()?, process.log());
            ensure!(ended.is_none(), "the daemon has ended by itself ({})", ended.unwrap_or_default());
            // Whether one has failed is judged with the other alarms.
            Ok((said(&log, DRILLED) || said(&log, "DRILL FAILED")).then_some(()))
        })
        .with_context(|| format!("the daemon's log ends with:\n{}", tail(&process.log(), 30)))
    }

    /// Ends it for good, and keeps its last logs in the folder.
    pub(super) fn end(&mut self) -> Result<()> {
        self.kill();
        if let Some((process, _)) = self.ending.take() {
            self.bury(process);
        }
        Ok(std::fs::write(&self.log, self.seen.join("\n=== the next life\n"))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: &str = "time=2026-11-28T13:37:13.369Z level=INFO msg=\"drill passed: restored, and the same\" path=/a/a.db url=file:///r txid=000000000000001f pages=6855";
    const FAILED: &str = "time=2026-11-28T13:37:14.369Z level=ERROR msg=\"DRILL FAILED; taking a new snapshot\" path=/a/b.db url=file:///r what=\"it is another\"";

    #[test]
    fn drills_are_counted_and_their_alarms_heard() {
        let mut told = Told::default();
        told.read(&format!("{PASSED}\n{FAILED}\n"));
        assert_eq!((told.drills, told.alarms, told.snapshots.len()), (1, vec![FAILED.to_owned()], 1));
    }

    #[test]
    fn a_drill_is_waited_for_by_the_databases_path_while_the_daemon_lives() {
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::new(Path::new("sh"), folder.path(), &[], None).unwrap();
        let mut wait = |script: &str, path: &str, most: Duration| {
            daemon.running = Some(Process::spawn("sh", Command::new("sh").args(["-c", script])).unwrap());
            daemon.wait_for_drill(Path::new(path), most).map_err(|error| format!("{error:#}"))
        };
        let lives = format!("printf '%s\\n' '{PASSED}' '{FAILED}'; exec sleep 600");
        assert_eq!((wait(&lives, "/a/a.db", ANSWER), wait(&lives, "/a/b.db", ANSWER)), (Ok(()), Ok(())));
        let never = wait(&lives, "/a/c.db", Duration::ZERO).unwrap_err();
        assert!(never.contains("in vain for: /a/c.db to be drilled"), "{never}");
        let dead = wait("echo oh no; exit 3", "/a/a.db", ANSWER).unwrap_err();
        assert!(dead.contains("has ended by itself (exit status: 3)") && dead.contains("oh no"), "{dead}");
    }

    #[test]
    fn reasons_are_the_same_whatever_the_numbers() {
        let line = |txid: &str| {
            format!(
                "time=2026-11-28T10:00:00.123Z level=WARN msg=\"the replica holds transaction {txid}, of which nothing is known here; new snapshot\" path=/a/b1.db"
            )
        };
        assert_eq!(reason(&line("0000000000000017")), reason(&line("0000000000abcdef")));
    }
}
