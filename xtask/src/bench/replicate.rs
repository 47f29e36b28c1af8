//! `bench replicate`: the sidecar beside Litestream's: many databases that are idle, a few that are not, an application's commits, and how long
//! they take until they are durable.
//!
//! `idle` knows the many, `commits` the one. Here is how both programs are started on the embedded server, and what is seen of them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use litestream_fixtures::s3::{S3Options, S3Server};

use super::subject::{BUCKET, authorize, build_ours};
use super::{Measurement, Report};
use crate::litestream::Litestream;
use crate::process::Process;
use crate::tools::{LITESTREAM, Tools};

mod commits;
mod idle;

/// How far away the store is.
const LATENCY: Duration = Duration::from_millis(30);

/// Measures; with `large` ten thousand databases too, and for as long as the target says.
///
/// # Errors
/// Something does not work.
pub(super) fn run(report: &mut Report, large: bool) -> Result<()> {
    commits::run(report)?;
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

    /// Starts it on all databases of a folder.
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

/// What a process has used so far.
#[derive(Clone, Copy, Debug)]
struct Usage {
    /// Of one core.
    cpu: Duration,
    resident: u64,
    descriptors: u64,
}

impl Usage {
    fn of(process: &Process) -> Result<Self> {
        let folder = PathBuf::from(format!("/proc/{}", process.id()));
        let stat = fs::read_to_string(folder.join("stat"))?;
        // The name, in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat is not as it should be")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        let status = fs::read_to_string(folder.join("status"))?;
        let kib =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
        Ok(Self {
            cpu: Duration::from_millis(1_000 / TICKS * (ticks(11) + ticks(12))),
            resident: kib.unwrap_or(0) * 1_024,
            descriptors: fs::read_dir(folder.join("fd"))?.count() as u64,
        })
    }
}
