//! `bench replicate`: the sidecar beside Litestream's: many databases that are idle, a few that are not, an application's commits, and how long
//! they take until they are durable.
//!
//! `idle` knows the many, `commits` the one. Here is how both programs are started on the embedded server, and what is seen of them.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use litestream_fixtures::s3::{Operation, S3Options, S3Server};

use super::subject::{BUCKET, authorize, build_ours};
use super::{Measurement, Report};
use crate::litestream::Litestream;
use crate::process::Process;
use crate::tools::{LITESTREAM, Tools};

mod commits;
mod idle;

/// How far away the store is.
const LATENCY: Duration = Duration::from_millis(30);
/// How often both programs checkpoint where little is written: their default.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
/// How long anything is measured at least: a checkpoint must be in it.
const TURN: Duration = Duration::from_secs(75);
const _: () = assert!(TURN.as_secs() >= CHECKPOINT_INTERVAL.as_secs() + 10, "a turn without a checkpoint");

/// Times an application's commits.
///
/// # Errors
/// Something does not work.
pub(super) fn commits(report: &mut Report) -> Result<()> {
    commits::run(report)
}

/// Times how long commits take until they are durable.
///
/// # Errors
/// Something does not work.
pub(super) fn lag(report: &mut Report) -> Result<()> {
    commits::lags(report)
}

/// Watches databases that are idle; with `large` ten thousand too, and for as long as the target says.
///
/// # Errors
/// Something does not work.
pub(super) fn idle(report: &mut Report, large: bool) -> Result<()> {
    idle::run(report, large)
}

/// How often the clock ticks in a second that /proc tells CPU time by.
const TICKS: u64 = 100;

/// Who replicates.
#[derive(Clone, Debug)]
enum Subject {
    Nobody,
    Ours(PathBuf),
    Litestream(Litestream),
}

impl Subject {
    fn ours() -> Result<Self> {
        Ok(Self::Ours(build_ours()?))
    }

    fn theirs() -> Result<Self> {
        Ok(Self::Litestream(Tools::new()?.litestream(LITESTREAM)?))
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Nobody => "alone",
            Self::Ours(_) => "ours",
            Self::Litestream(_) => "Litestream",
        }
    }

    /// Starts it on databases that nobody else has replicated. Its configuration goes to the folder.
    fn start(&self, server: &S3Server, databases: &[PathBuf], folder: &Path) -> Result<Option<Process>> {
        let config = folder.join(format!("{}.yml", self.name()));
        fs::write(&config, configuration(server, databases, self.name()))?;
        let mut command = match self {
            Self::Nobody => return Ok(None),
            Self::Ours(binary) => Command::new(binary),
            Self::Litestream(litestream) => litestream.command(),
        };
        command.arg("replicate").arg("-config").arg(&config);
        authorize(&mut command, server);
        Process::spawn(self.name(), &mut command).map(Some)
    }
}

fn server() -> Result<S3Server> {
    let server = S3Server::start(S3Options { latency: LATENCY, ..S3Options::default() })?;
    server.create_bucket(BUCKET);
    Ok(server)
}

/// Every database by its name, each with a replica under the subject's.
fn configuration(server: &S3Server, databases: &[PathBuf], subject: &str) -> String {
    let mut text = String::from("dbs:\n");
    for database in databases {
        let name = database.file_name().unwrap_or_default().to_string_lossy();
        let (path, endpoint) = (database.display(), server.endpoint());
        let _ = writeln!(
            text,
            "  - path: {path}\n    replica:\n      type: s3\n      bucket: {BUCKET}\n      path: {subject}/{name}\n      endpoint: {endpoint}\n      force-path-style: true"
        );
    }
    text
}

/// What was asked of the store, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Requests {
    lists: u64,
    gets: u64,
    puts: u64,
    deletes: u64,
    others: u64,
}

impl Requests {
    /// All since the server counts.
    fn of(server: &S3Server) -> Self {
        let mut requests = Self::default();
        for (operation, count) in server.stats().requests {
            let kind = match operation {
                Operation::ListObjectsV2 => &mut requests.lists,
                Operation::GetObject => &mut requests.gets,
                Operation::DeleteObject | Operation::DeleteObjects => &mut requests.deletes,
                operation if operation.is_write() => &mut requests.puts,
                _ => &mut requests.others,
            };
            *kind += count;
        }
        requests
    }

    /// What has come since then.
    const fn since(self, before: Self) -> Self {
        Self {
            lists: self.lists - before.lists,
            gets: self.gets - before.gets,
            puts: self.puts - before.puts,
            deletes: self.deletes - before.deletes,
            others: self.others - before.others,
        }
    }

    const fn total(self) -> u64 {
        self.lists + self.gets + self.puts + self.deletes + self.others
    }

    /// A measurement with these requests; they are told by kind.
    fn measurement(self, subject: &str) -> Measurement {
        Measurement {
            bench: "replicate",
            subject: format!("{subject} ({self})"),
            lists: Some(self.lists),
            gets: Some(self.gets),
            writes: Some(self.puts + self.deletes),
            ..Measurement::default()
        }
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lists, gets, puts, deletes, others } = self;
        write!(f, "{lists} LIST, {gets} GET, {puts} PUT, {deletes} DELETE, {others} others")
    }
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug)]
struct Usage {
    /// Of one core.
    cpu: Duration,
    resident: u64,
    descriptors: u64,
}

impl Usage {
    /// # Errors
    /// It has ended: then it has used nothing that would tell anything. The error carries the end of its log.
    fn of(process: &mut Process) -> Result<Self> {
        let usage = Self::read(process.id());
        process.ensure_alive("while it was measured")?;
        usage
    }

    fn read(id: u32) -> Result<Self> {
        let folder = PathBuf::from(format!("/proc/{id}"));
        let stat = fs::read_to_string(folder.join("stat"))?;
        // The name, in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat is not as it should be")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        let (user, system) = ticks(11).zip(ticks(12)).context("/proc/PID/stat tells no CPU time")?;
        let status = fs::read_to_string(folder.join("status"))?;
        let kib =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
        Ok(Self {
            cpu: Duration::from_millis(1_000 / TICKS * (user + system)),
            resident: kib.context("/proc/PID/status tells no memory: the process has ended")? * 1_024,
            descriptors: fs::read_dir(folder.join("fd"))?.count() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_ended_has_used_nothing() {
        let mut process = Process::spawn("sh", Command::new("sh").args(["-c", "echo oh no >&2; exit 3"])).unwrap();
        process.wait(Duration::from_secs(10)).unwrap();
        let text = format!("{:#}", Usage::of(&mut process).unwrap_err());
        assert!(text.contains("oh no") && text.contains("has ended"), "{text}");
        let mut process = Process::spawn("sleep", Command::new("sleep").arg("600")).unwrap();
        assert!(Usage::of(&mut process).unwrap().resident > 0);
    }
}
