//! The command line. Litestream's single-dash long flags (`-o`, `-timestamp`, `-config`…) are accepted anywhere.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::control::args;

/// SQLite kept in step with S3-style object storage, and queried straight from it.
#[derive(Debug, Parser)]
#[command(name = "litestream", version, propagate_version = true, disable_help_subcommand = true)]
#[command(after_help = "Examples:
  litestream replicate /var/lib/my.db s3://bucket/my.db
  litestream restore -o my.db s3://bucket/my.db
  litestream restore --timestamp '5 minutes ago' -o before.db s3://bucket/my.db
  litestream ltx s3://bucket/my.db
  litestream compact /var/lib/my.db
  litestream vfs-shell s3://bucket/my.db
  litestream vfs-buffer /var/lib/.my.db-litestream")]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// What to log: error, warn, info, debug or trace [default: $LOG_LEVEL or warn; for replicate, $LOG_LEVEL, the configuration or info].
    #[arg(long, global = true, value_name = "LEVEL", value_parser = log_level)]
    pub(crate) log_level: Option<tracing::Level>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
/// Arguments that do not go together, which only the command itself knows.
#[derive(Debug)]
pub(crate) struct Misused(pub(crate) String);

impl std::error::Error for Misused {}

impl std::fmt::Display for Misused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Common {
    /// The configuration file [default: $LITESTREAM_CONFIG or /etc/litestream.yml].
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// Leave $VAR and ${VAR} in the configuration file as they are.
    #[arg(long, global = true)]
    pub(crate) no_expand_env: bool,
    /// How long to go on trying when a store does not answer.
    #[arg(long, global = true, value_name = "DURATION", default_value = "1m", value_parser = some_time)]
    pub(crate) retry_timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Keep replicas in step with databases, as long as it runs.
    Replicate(ReplicateArgs),
    /// Rebuild a database from its replica, to any moment.
    Restore(RestoreArgs),
    /// Compact a replica's levels, make a snapshot and apply retention, now.
    Compact(CompactArgs),
    /// List a replica's LTX files.
    #[command(visible_alias = "wal")]
    Ltx(LtxArgs),
    /// List the databases of the configuration file.
    Databases(ListArgs),
    /// Query a replica with SQL, without downloading the database.
    VfsShell(VfsShellArgs),
    /// Look into the write buffer that a writer left behind, and save what is in it.
    VfsBuffer(VfsBufferArgs),
    /// Print the version.
    Version(VersionArgs),
    /// Print a completion script for a shell.
    Completions(CompletionArgs),
    /// Write the manual pages into a folder.
    Man(ManArgs),
    /// Show databases: up to where they are captured, what waits, and what the daemon says of them.
    Status(args::StatusArgs),
    /// Forget what was captured of a database, so that the daemon begins with a snapshot.
    Reset(args::ResetArgs),
    /// Show the running daemon.
    Info(args::InfoArgs),
    /// List the databases of the running daemon.
    List(args::ListedArgs),
    /// Have the daemon go on with a database.
    Start(args::StartArgs),
    /// Have the daemon stop a database, after a last sync.
    Stop(args::StopArgs),
    /// Have the daemon capture a database now, and wait until its replicas have it.
    Sync(args::SyncArgs),
    /// Have the daemon replicate one more database.
    Register(args::RegisterArgs),
    /// Have the daemon let go of a database, after a last sync.
    Unregister(args::UnregisterArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  # all databases of the configuration file
  litestream replicate
  litestream replicate --config /etc/litestream.yml
  # one database, without a configuration file, to one place or to several
  litestream replicate /var/lib/my.db s3://bucket/my.db
  litestream replicate /var/lib/my.db s3://bucket/my.db file:///mnt/backup/my.db
  # in a container: restore what is not there yet, run the application, and end with it, when all is up to date
  litestream replicate --restore-if-db-not-exists --exec 'myapp --port 8080'
  # before maintenance: bring the replicas up to date, with a snapshot, and end
  litestream replicate --once --force-snapshot

SIGTERM and SIGINT bring all replicas up to date before the end; a second one ends at once. While a program of --exec runs, all
signals are its own: it is brought to its end, and the replicas up to date after that.")]
pub(crate) struct ReplicateArgs {
    /// A database to replicate [default: those of the configuration file, which is not read where a database is named].
    #[arg(value_name = "DB")]
    pub(crate) database: Option<PathBuf>,
    /// Where it goes; several are several replicas.
    #[arg(value_name = "URL")]
    pub(crate) urls: Vec<String>,
    /// Run this program meanwhile, and end with it: with its exit code, after the replicas are up to date.
    #[arg(long, value_name = "CMD", conflicts_with = "once")]
    pub(crate) exec: Option<String>,
    /// Bring all replicas up to date, and end.
    #[arg(long)]
    pub(crate) once: bool,
    /// Make a snapshot of every database, too.
    #[arg(long, requires = "once")]
    pub(crate) force_snapshot: bool,
    /// Compact and apply retention to every replica, too.
    #[arg(long, requires = "once")]
    pub(crate) enforce_retention: bool,
    /// Restore databases that do not exist, first. Where there is no backup either, they are replicated as soon as somebody creates them.
    #[arg(long)]
    pub(crate) restore_if_db_not_exists: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  # the latest state of a database named in the configuration file, to its own place
  litestream restore /var/lib/my.db
  # a replica by its address
  litestream restore -o my.db s3://bucket/my.db
  litestream restore -o my.db 's3://bucket/my.db?endpoint=http://127.0.0.1:9000'
  litestream restore -o my.db file:///mnt/backup/my.db
  # as it was
  litestream restore -o before.db --timestamp '2 hours ago' s3://bucket/my.db
  litestream restore -o before.db --timestamp 2026-01-31T12:00:00Z s3://bucket/my.db
  litestream restore -o before.db --txid 000000000000002a s3://bucket/my.db
  # a read-only copy that goes on as the replica does, for any SQLite beside; again after a restart, from where it was
  litestream restore -f -o copy.db s3://bucket/my.db
  litestream restore -f --follow-interval 5s --json -o copy.db s3://bucket/my.db")]
pub(crate) struct RestoreArgs {
    /// A database of the configuration file, or a replica's URL.
    #[arg(value_name = "DB|URL")]
    pub(crate) source: String,
    /// Where to put the database [default: its own path, for a database of the configuration file].
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// Restore the state after this transaction: 16 hexadecimal digits.
    #[arg(long, value_name = "TXID", conflicts_with = "timestamp")]
    pub(crate) txid: Option<ltx::Txid>,
    /// Restore the newest state strictly before this moment: RFC 3339, or such as '5 minutes ago' or 'yesterday 12:00'.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) timestamp: Option<String>,
    /// How many requests may run at once.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) parallelism: u16,
    /// Do nothing, successfully, where the database exists already.
    #[arg(long)]
    pub(crate) if_db_not_exists: bool,
    /// Do nothing, successfully, where there is no backup.
    #[arg(long)]
    pub(crate) if_replica_exists: bool,
    /// Replace a database that is there, once the new one is complete and verified.
    #[arg(long)]
    pub(crate) force: bool,
    /// Only say what would be restored.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How thoroughly SQLite checks the database before it is put in place. Every file's checksum is verified in any case.
    #[arg(long, value_name = "HOW", default_value = "none")]
    pub(crate) integrity_check: IntegrityCheck,
    /// Keep the database current: apply new transactions as they arrive, until interrupted. Other programs may read it meanwhile, but not write. What is
    /// known of it lies beside it, in PATH-txid and PATH-follow; with them it is taken up again where it was left.
    #[arg(short, long, conflicts_with_all = ["txid", "timestamp", "dry_run", "if_db_not_exists"])]
    pub(crate) follow: bool,
    /// How often to look for new transactions.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval, requires = "follow")]
    pub(crate) follow_interval: Duration,
    /// Print the result as JSON; with --follow a line for each thing that happens.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IntegrityCheck {
    /// Not at all.
    None,
    /// PRAGMA quick_check.
    Quick,
    /// PRAGMA integrity_check.
    Full,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  litestream compact /var/lib/my.db
  litestream compact --dry-run s3://bucket/my.db
  # a replica that no configuration file knows: its snapshots are kept unless you say for how long
  litestream compact --retention 7d s3://bucket/my.db")]
pub(crate) struct CompactArgs {
    /// A database of the configuration file, or a replica's URL.
    #[arg(value_name = "DB|URL")]
    pub(crate) source: String,
    /// Only say what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not make a snapshot.
    #[arg(long)]
    pub(crate) no_snapshot: bool,
    /// Do not delete files that retention no longer needs.
    #[arg(long)]
    pub(crate) no_retention: bool,
    /// Delete what is not needed to restore any moment within this time [default: as configured for the database that has this replica; nothing is
    /// deleted where none is known].
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "no_retention")]
    pub(crate) retention: Option<Duration>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  litestream ltx s3://bucket/my.db
  litestream ltx --level 9 --json /var/lib/my.db")]
pub(crate) struct LtxArgs {
    /// A database of the configuration file, or a replica's URL.
    #[arg(value_name = "DB|URL")]
    pub(crate) source: String,
    /// Only one level, 0 to 9, or all.
    #[arg(long, value_name = "N|all", default_value = "all", value_parser = level)]
    pub(crate) level: LevelFilter,
    /// Print the list as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  # at the keyboard; .help lists commands, .time '5 minutes ago' travels
  litestream vfs-shell s3://bucket/my.db
  # a database named in the configuration file, or in LITESTREAM_REPLICA_URL
  litestream vfs-shell /var/lib/my.db
  litestream vfs-shell
  # one query, as it was
  litestream vfs-shell --at '2 hours ago' s3://bucket/my.db 'SELECT count(*) FROM orders'
  litestream vfs-shell --at 000000000000002a file:///mnt/backup/my.db .tables
  # for programs
  litestream vfs-shell s3://bucket/my.db '.mode json' 'SELECT * FROM orders'
  litestream vfs-shell s3://bucket/my.db .dump | sqlite3 copy.db
  litestream vfs-shell s3://bucket/my.db < report.sql
  # writing: what is committed goes up every second, on .sync and on leaving
  litestream vfs-shell --write s3://bucket/my.db
  litestream vfs-shell --write --buffer /var/lib/litestream/my.db s3://bucket/my.db 'DELETE FROM orders WHERE paid'
  # many queries: pull the database into a local file meanwhile, which stays and is gone on from next time
  litestream vfs-shell --hydrate=/var/cache/my.db s3://bucket/my.db")]
pub(crate) struct VfsShellArgs {
    /// A database of the configuration file, or a replica's URL [default: $LITESTREAM_REPLICA_URL, or the only database of the configuration
    /// file].
    #[arg(value_name = "DB|URL")]
    pub(crate) source: Option<String>,
    /// SQL and dot-commands to run, until one fails [default: those from the terminal or from stdin].
    #[arg(value_name = "SQL")]
    pub(crate) sql: Vec<String>,
    /// Stay at this moment, or at this transaction: RFC 3339, such as '5 minutes ago', or 16 hexadecimal digits.
    #[arg(long, value_name = "TIME|TXID", allow_hyphen_values = true)]
    pub(crate) at: Option<String>,
    /// Write, too. There may be one writer: another one is told by the next upload, and what it has committed stays in its write buffer.
    #[arg(long, conflicts_with = "at")]
    pub(crate) write: bool,
    /// Where what is committed lies until it is uploaded [default: $LITESTREAM_BUFFER_PATH, or .NAME-litestream/buffer beside the database; for a
    /// URL, in this folder].
    #[arg(long, value_name = "PATH", requires = "write")]
    pub(crate) buffer: Option<PathBuf>,
    /// How often what is committed is uploaded [default: $LITESTREAM_SYNC_INTERVAL or 1s].
    #[arg(long, value_name = "DURATION", requires = "write", value_parser = duration)]
    pub(crate) sync_interval: Option<Duration>,
    /// Pull the whole database into a local file while it is queried: a temporary one, or this one, which stays.
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true, conflicts_with = "at")]
    pub(crate) hydrate: Option<Option<PathBuf>>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("action").args(["export", "push", "discard"]))]
#[command(after_help = "Examples:
  # what is in it
  litestream vfs-buffer /var/lib/.my.db-litestream/buffer
  # upload it, where nobody else has written meanwhile
  litestream vfs-buffer --push /var/lib/.my.db-litestream/buffer
  # somebody has: what this writer saw, as a database of its own
  litestream vfs-buffer --export mine.db /var/lib/.my.db-litestream/buffer
  # done with it
  litestream vfs-buffer --discard /var/lib/.my.db-litestream/buffer")]
pub(crate) struct VfsBufferArgs {
    /// The write buffer: its control file, the folder that it lies in, or the database whose it is.
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// Build a database: the replica where the buffer begins, and the buffer's transactions.
    #[arg(long, value_name = "OUT")]
    pub(crate) export: Option<PathBuf>,
    /// Replace a database that is there, once the new one is complete and verified.
    #[arg(long, requires = "export")]
    pub(crate) force: bool,
    /// Upload the buffer's transactions, wait for it, and print the TXID. Where another writer has gone on, nothing is changed.
    #[arg(long)]
    pub(crate) push: bool,
    /// The replica, as a URL or as a database of the configuration file [default: the address in the buffer].
    #[arg(long, value_name = "DB|URL", conflicts_with = "discard")]
    pub(crate) replica: Option<String>,
    /// Delete the buffer, and with it what was never uploaded.
    #[arg(long)]
    pub(crate) discard: bool,
    /// Do not ask before that.
    #[arg(long, requires = "discard")]
    pub(crate) yes: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which levels to list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LevelFilter(pub(crate) Option<litestream_storage::Level>);

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Print the list as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// Print the SQLite version and the file formats, too.
    #[arg(long)]
    pub(crate) verbose: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell.
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The folder.
    pub(crate) folder: PathBuf,
}

/// What the environment's `LOG_LEVEL` says, and what is odd about it. Other programs read that, too: a value that only they know must not stop a command.
pub(crate) fn log_level_of(variable: Option<&std::ffi::OsStr>) -> (Option<tracing::Level>, Option<String>) {
    let Some(text) = variable.map(|text| text.to_string_lossy()).filter(|text| !text.trim().is_empty()) else {
        return (None, None);
    };
    match log_level(&text) {
        Ok(level) => (Some(level), None),
        Err(error) => (None, Some(format!("LOG_LEVEL {text:?} in the environment is ignored: {error}"))),
    }
}

/// As `tracing` knows it.
pub(crate) const fn tracing_level(level: litestream_config::LogLevel) -> tracing::Level {
    use litestream_config::LogLevel;
    match level {
        LogLevel::Trace => tracing::Level::TRACE,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Error => tracing::Level::ERROR,
    }
}

fn log_level(text: &str) -> Result<tracing::Level, String> {
    let level = litestream_config::LogLevel::parse(text);
    level.map(tracing_level).ok_or_else(|| "a level is error, warn, info, debug or trace".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    litestream_config::units::parse_duration(text).map_err(|error| error.to_string())
}

fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("not even one try fits into that: give at least a few seconds".to_owned()),
        time => Ok(time),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_millis(10);
    match duration(text)? {
        time if time < SHORTEST => Err("every look is a request: give at least 10ms".to_owned()),
        time => Ok(time),
    }
}

fn level(text: &str) -> Result<LevelFilter, String> {
    match text.parse().ok().and_then(litestream_storage::Level::new) {
        Some(level) => Ok(LevelFilter(Some(level))),
        None if text == "all" => Ok(LevelFilter(None)),
        None => Err("a level is a number from 0 to 9, or all".to_owned()),
    }
}

/// Gives Litestream's single-dash long flags their second dash. Only names that some command really has are touched, so values such as `-1h` pass.
pub(crate) fn normalize(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let command = Arguments::command();
    let mut names: Vec<String> = vec!["help".into(), "version".into()];
    for command in std::iter::once(&command).chain(command.get_subcommands()) {
        names.extend(command.get_arguments().filter_map(|arg| arg.get_long()).map(str::to_owned));
    }
    let mut after_separator = false;
    let fix = |argument: OsString| {
        let Some(text) = argument.to_str() else { return argument };
        after_separator |= text == "--";
        let long = text.strip_prefix('-').filter(|rest| rest.len() > 1 && !rest.starts_with('-'));
        match long {
            Some(rest) if !after_separator && names.iter().any(|name| rest.split('=').next() == Some(name)) => {
                format!("--{rest}").into()
            }
            _ => argument,
        }
    };
    arguments.into_iter().map(fix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(arguments: &[&str]) -> Vec<String> {
        let fixed = normalize(arguments.iter().map(OsString::from));
        fixed.into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_log_level_of_other_programs_is_passed_over() {
        let level = |text: &str| log_level_of(Some(text.as_ref()));
        assert_eq!(log_level_of(None), (None, None));
        for text in ["", " "] {
            assert_eq!(level(text), (None, None), "{text:?}");
        }
        for text in ["warning", "WARN"] {
            assert_eq!(level(text), (Some(tracing::Level::WARN), None), "{text:?}");
        }
        assert_eq!(level("Info"), (Some(tracing::Level::INFO), None));
        let (used, note) = level("notice");
        assert_eq!(used, None);
        assert!(note.unwrap().contains("\"notice\""));
    }

    #[test]
    fn single_dashes_are_accepted_and_values_are_left_alone() {
        let given =
            ["litestream", "restore", "-o", "x", "-timestamp", "-1h", "-config=a", "db", "-json", "--", "-json"];
        let expected =
            ["litestream", "restore", "-o", "x", "--timestamp", "-1h", "--config=a", "db", "--json", "--", "-json"];
        assert_eq!(fixed(&given), expected);
        let parsed = Arguments::try_parse_from(normalize(given[..9].iter().map(OsString::from))).unwrap();
        let Command::Restore(args) = parsed.command else { panic!("{parsed:?}") };
        assert_eq!((args.timestamp.as_deref(), args.json), (Some("-1h"), true));
        assert_eq!(parsed.common.config, Some("a".into()));
    }
}
