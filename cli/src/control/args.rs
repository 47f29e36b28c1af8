//! The command line of what talks to the daemon.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// How to reach the daemon.
#[derive(Debug, Args)]
pub(crate) struct SocketArgs {
    /// The daemon's control socket [default: `socket.path` of the configuration file, or /var/run/litestream.sock].
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// How long to wait, such as 1m; a number alone is seconds [default: 30s; 10s for info and list].
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(crate) timeout: Option<Duration>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  litestream info
  litestream info --json --socket /tmp/litestream.sock")]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  litestream list
  litestream list --json")]
pub(crate) struct ListedArgs {
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  litestream start /var/lib/my.db")]
pub(crate) struct StartArgs {
    /// The database.
    #[arg(value_name = "DB")]
    pub(crate) db: PathBuf,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  # the last changes are uploaded first
  litestream stop /var/lib/my.db
  litestream stop --timeout 2m /var/lib/my.db")]
pub(crate) struct StopArgs {
    /// The database.
    #[arg(value_name = "DB")]
    pub(crate) db: PathBuf,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  # capture what is committed now
  litestream sync /var/lib/my.db
  # and return when every replica has it
  litestream sync --wait --timeout 2m /var/lib/my.db")]
pub(crate) struct SyncArgs {
    /// The database.
    #[arg(value_name = "DB")]
    pub(crate) db: PathBuf,
    /// Wait until every replica has it.
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  litestream register --replica s3://bucket/my.db /var/lib/my.db
  # one that the daemon's configuration knows, after it was unregistered
  litestream register /var/lib/my.db

The daemon forgets it when it ends: what should stay belongs in its configuration file.")]
pub(crate) struct RegisterArgs {
    /// The database.
    #[arg(value_name = "DB")]
    pub(crate) db: PathBuf,
    /// Where to replicate it to [default: as the daemon's configuration says].
    #[arg(long, value_name = "URL")]
    pub(crate) replica: Option<String>,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  # the last changes are uploaded first
  litestream unregister /var/lib/my.db
  litestream unregister --dry-run /var/lib/my.db")]
pub(crate) struct UnregisterArgs {
    /// The database.
    #[arg(value_name = "DB")]
    pub(crate) db: PathBuf,
    /// Only say what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  litestream status
  litestream status --json /var/lib/my.db

Without a daemon that answers at the control socket, it is what lies on the disk.")]
pub(crate) struct StatusArgs {
    /// A database [default: all of the configuration file, and all that the daemon replicates].
    #[arg(value_name = "DB")]
    pub(crate) db: Option<PathBuf>,
    /// The daemon's control socket [default: `socket.path` of the configuration file, or /var/run/litestream.sock].
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Print the list as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  # what would go
  litestream reset --dry-run /var/lib/my.db
  litestream stop /var/lib/my.db
  litestream reset /var/lib/my.db
  litestream start /var/lib/my.db

The database and its replicas stay as they are. Changes that were captured and not uploaded are in the snapshot that comes next; only the
moments between them are lost.")]
pub(crate) struct ResetArgs {
    /// The database.
    #[arg(value_name = "DB")]
    pub(crate) db: PathBuf,
    /// Only say what would be deleted.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask at the terminal.
    #[arg(long)]
    pub(crate) yes: bool,
    /// The daemon's control socket [default: `socket.path` of the configuration file, or /var/run/litestream.sock].
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Litestream takes a number of seconds.
fn timeout(text: &str) -> Result<Duration, String> {
    let time = match text.parse::<u32>() {
        Ok(seconds) => Duration::from_secs(seconds.into()),
        Err(_) => litestream_config::units::parse_duration(text).map_err(|error| error.to_string())?,
    };
    if time.is_zero() { Err("nothing is done in no time: give at least a second".to_owned()) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_a_duration_or_litestreams_seconds() {
        assert_eq!(timeout("90"), Ok(Duration::from_secs(90)));
        assert_eq!(timeout("1m30s"), Ok(Duration::from_secs(90)));
        for wrong in ["0", "0s", "-1", "soon"] {
            assert!(timeout(wrong).is_err(), "{wrong}");
        }
    }
}
