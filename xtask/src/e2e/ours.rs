//! Our daemon as the scenarios start it, and our commands that talk to it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::DEADLINE;
use super::world::World;
use crate::process::{Process, Said, converse, run};

/// A running daemon of ours, with a control socket.
pub(super) struct Ours<'a> {
    world: &'a World,
    config: PathBuf,
    socket: PathBuf,
    pub(super) process: Process,
}

/// A configuration beside its databases, with a control socket.
pub(super) fn config(folder: &Path, global: &str, databases: &[(&Path, &str)]) -> Result<PathBuf> {
    let config = folder.join("ours.yml");
    let mut yaml = format!("socket: {{enabled: true, path: {}}}\n", folder.join("ours.sock").display());
    let _ = writeln!(yaml, "{}", global.trim());
    yaml.push_str(if databases.is_empty() { "" } else { "dbs:\n" });
    for (database, url) in databases {
        let _ = writeln!(yaml, "  - path: {}\n    replica: {{url: '{url}', sync-interval: 50ms}}", database.display());
    }
    std::fs::write(&config, yaml)?;
    Ok(config)
}

impl<'a> Ours<'a> {
    /// Starts it, and waits until it answers.
    pub(super) fn start(world: &'a World, config: &Path) -> Result<Self> {
        let process =
            Process::spawn("our litestream replicate", world.our().arg("replicate").arg("--config").arg(config))?;
        let socket = config.with_extension("sock");
        let mut ours = Self { world, config: config.to_owned(), socket, process };
        let mut info = ours.command("info", &["--json"]);
        ours.process.wait_until("the control socket to answer", DEADLINE, || Ok(run("info", &mut info).ok()))?;
        Ok(ours)
    }

    /// One of the commands that talk to it.
    pub(super) fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.world.our();
        command.arg(name).arg("--config").arg(&self.config).arg("--socket").arg(&self.socket).args(arguments);
        command
    }

    /// The same, with what it says as JSON.
    pub(super) fn ask(&self, name: &str, arguments: &[&str]) -> Result<Value> {
        let said = run(&format!("litestream {name}"), self.command(name, arguments).arg("--json"))?;
        serde_json::from_str(&said).with_context(|| format!("litestream {name} printed no JSON: {said}"))
    }

    /// One that must fail. Returns what it says.
    pub(super) fn refused(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let said: Said = converse(name, &mut self.command(name, arguments), "", DEADLINE)?;
        ensure!(said.status.code() == Some(1), "litestream {name} {arguments:?} ended with {}", said.status);
        Ok(said.stderr)
    }

    /// Has the replica hold all that is committed now.
    pub(super) fn sync(&self, database: &Path) -> Result<Value> {
        let database = database.to_str().context("the path is no text")?;
        self.ask("sync", &["--wait", "--timeout", "60s", database])
    }

    /// What it says of a database; nothing, where it knows none there.
    pub(super) fn listed(&self, database: &Path) -> Result<Value> {
        let all = self.ask("list", &[])?;
        let found = all["databases"].as_array().into_iter().flatten();
        Ok(found.into_iter().find(|found| database.to_str() == found["path"].as_str()).cloned().unwrap_or_default())
    }

    /// SIGTERM; returns how it ended, and its log.
    pub(super) fn terminate(mut self) -> Result<(ExitStatus, String)> {
        self.process.signal(rustix::process::Signal::TERM)?;
        let status = self.process.wait(DEADLINE)?;
        Ok((status, self.process.kill()))
    }
}
