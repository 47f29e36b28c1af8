//! Real Litestream, as an oracle and as a partner: its configuration, its daemon and its restores.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use jiff::Timestamp;

use crate::process::Process;

/// One version of real Litestream.
#[derive(Debug, Clone)]
pub(crate) struct Litestream {
    version: String,
    binary: PathBuf,
}

/// What a restore is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// The newest state.
    Latest,
    /// Exactly that TXID.
    Txid(u64),
    /// Milliseconds since the epoch.
    Time(u64),
    /// 0.3 only: one generation up to a WAL index, inclusive.
    Index { generation: String, index: u32 },
}

impl Litestream {
    pub(crate) fn new(version: &str, binary: PathBuf) -> Litestream {
        Litestream { version: version.to_owned(), binary }
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// A command with none of the caller's `AWS_CA_BUNDLE`, on some of which Litestream fails.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.env_remove("AWS_CA_BUNDLE");
        command
    }

    /// Starts the daemon.
    pub(crate) fn replicate(&self, config: &Path) -> Result<Process> {
        let name = format!("litestream {} replicate", self.version);
        Process::spawn(&name, self.command().arg("replicate").arg("-config").arg(config))
    }

    /// Restores `replica`, a URL, to `output`, which must not exist. The inner error is Litestream's own refusal.
    pub(crate) fn restore(&self, replica: &str, output: &Path, target: &Target) -> Result<Result<(), String>> {
        let mut command = self.command();
        command.arg("restore").arg("-o").arg(output);
        match target {
            Target::Latest => {}
            Target::Txid(txid) => {
                command.arg("-txid").arg(format!("{txid:016x}"));
            }
            Target::Time(at_ms) => {
                command.arg("-timestamp").arg(rfc3339(*at_ms)?);
            }
            Target::Index { generation, index } => {
                command.arg("-generation").arg(generation).arg("-index").arg(format!("{index:08x}"));
            }
        }
        let result = command.arg(replica).output().context("cannot start litestream restore")?;
        let said = String::from_utf8_lossy(&result.stderr).trim().to_owned();
        Ok(if result.status.success() { Ok(()) } else { Err(said) })
    }
}

/// The URL of a replica folder.
pub(crate) fn file_url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

/// A configuration for one database and one file replica.
#[derive(Debug, Clone)]
pub(crate) struct FileConfig<'a> {
    pub(crate) database: &'a Path,
    pub(crate) replica: &'a Path,
    /// Further lines at the top, such as `l0-retention: 1s`.
    pub(crate) global: &'a str,
    /// Further settings of the database, one to a line.
    pub(crate) database_settings: &'a [&'a str],
    /// 0.3 wants `replicas`, a list.
    pub(crate) v03: bool,
}

impl FileConfig<'_> {
    /// The YAML. Litestream looks every 20 ms, so that each transaction of a slow writer becomes a TXID.
    pub(crate) fn yaml(&self) -> String {
        let (database, replica) = (self.database.display(), self.replica.display());
        let mut yaml = format!("{}\ndbs:\n  - path: {database}\n    monitor-interval: 20ms\n", self.global.trim_end());
        for setting in self.database_settings {
            let _ = writeln!(yaml, "    {setting}");
        }
        yaml.push_str(if self.v03 { "    replicas:\n      - " } else { "    replica:\n        " });
        let _ = write!(yaml, "type: file\n        path: {replica}\n        sync-interval: 20ms\n");
        yaml
    }
}

/// A time as Litestream's `-timestamp` takes it, with milliseconds.
pub(crate) fn rfc3339(at_ms: u64) -> Result<String> {
    let time = Timestamp::from_millisecond(i64::try_from(at_ms)?)?;
    Ok(format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_carry_their_milliseconds() {
        assert_eq!(rfc3339(1_700_000_000_007).unwrap(), "2023-11-14T22:13:20.007Z");
        assert_eq!(rfc3339(1_700_000_000_000).unwrap(), "2023-11-14T22:13:20.000Z");
    }
}
