//! What people write: the configuration file ([`Config`]), durations and sizes ([`units`]), moments ([`when`]).
//!
//! The configuration file: what it may say, what it means, and all that is wrong with it at once.
//!
//! The file is Litestream's own (`/etc/litestream.yml`). Its text is expanded (`expand`), parsed into a tree of texts
//! (`tree`), and walked by hand (`read`), so that every problem has its place and line, none hides another, and an unknown
//! key gets the nearest known one. What replicas are is left to `litestream_storage::config`.

use std::{
    collections::HashSet,
    fmt, io,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use litestream_storage::config::ReplicaConfig;

mod dirs;
mod expand;
mod read;
mod tree;
pub mod units;
pub mod when;

pub use dirs::{Scan, ScanError, is_database};

/// Where the configuration is when nothing says otherwise.
pub const DEFAULT_PATH: &str = "/etc/litestream.yml";
/// Levels of compaction there can be: 1 to 8.
pub const MAX_LEVELS: usize = 8;

/// All that the configuration file says, with the defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The address for metrics, `HOST:PORT` or `:PORT`. Default: no metrics.
    pub addr: Option<String>,
    /// The command to run while replicating. Default: none.
    pub exec: Option<String>,
    /// The control socket.
    pub socket: SocketConfig,
    /// The intervals of the levels of compaction, from level 1 on. Default: 30 s, 5 min, 1 h.
    pub levels: Vec<Duration>,
    /// Snapshots, for databases that say nothing of their own.
    pub snapshot: SnapshotConfig,
    /// How long level-0 files stay once level 1 covers them. Default: 5 min.
    pub l0_retention: Duration,
    /// How often that is looked at. Default: 15 s.
    pub l0_retention_check_interval: Duration,
    /// How often replicas are validated. Default: never.
    pub validation_interval: Option<Duration>,
    /// Check the TXIDs of a level after each compaction into it. Default: no.
    pub verify_compaction: bool,
    /// Delete what retention no longer needs, rather than leave it to the bucket's own rules. Default: yes.
    pub retention_enabled: bool,
    /// What is asked for as long as replication is well. Default: nothing.
    pub heartbeat_url: Option<String>,
    /// How often. Default: 5 min.
    pub heartbeat_interval: Duration,
    /// How long the last sync at shutdown is tried; zero means once. Default: 30 s.
    pub shutdown_sync_timeout: Duration,
    /// The pause between these tries. Default: 500 ms.
    pub shutdown_sync_interval: Duration,
    /// Logging.
    pub logging: LoggingConfig,
    /// The databases, in the order of the file.
    pub dbs: Vec<DbEntry>,
    /// What is odd but does no harm, each with its place.
    pub warnings: Vec<String>,
    /// For `~/` in paths of the command line.
    home: Option<PathBuf>,
}

/// The control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// Whether there is one. Default: no.
    pub enabled: bool,
    /// Where. Default: `/var/run/litestream.sock`.
    pub path: PathBuf,
    /// Its permissions. Default: 0600.
    pub permissions: u32,
}

/// Snapshots of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotConfig {
    /// How often one is made. Default: 24 h.
    pub interval: Duration,
    /// For how long the database can be restored to any instant. Default: 24 h.
    pub retention: Duration,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggingConfig {
    /// What is logged; `LOG_LEVEL` in the environment goes first. Default: info.
    pub level: LogLevel,
    /// How. Default: text.
    pub format: LogFormat,
    /// To standard error rather than standard output. Default: no (Litestream's; the caller may always use stderr).
    pub stderr: bool,
    /// With the place in the program's source. Default: no.
    pub source: bool,
}

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// Also what only developers want.
    Debug,
    /// Also what goes well.
    Info,
    /// What may need attention.
    Warn,
    /// What went wrong.
    Error,
}

/// How is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// One item of `dbs`.
#[derive(Debug, Clone, PartialEq)]
pub enum DbEntry {
    /// `path:`, one database.
    Database(DbConfig),
    /// `dir:`, all databases in a directory.
    Directory(DirConfig),
}

/// One database.
#[derive(Debug, Clone, PartialEq)]
pub struct DbConfig {
    /// The database file; absolute, without `.` and `..`.
    pub path: PathBuf,
    /// The directory of our local state. Default: `.NAME-litestream` beside the database.
    pub meta_path: PathBuf,
    /// How it is replicated.
    pub settings: DbSettings,
    /// Where to; never empty.
    pub replicas: Vec<Replica>,
}

/// All databases in a directory.
#[derive(Debug, Clone, PartialEq)]
pub struct DirConfig {
    /// The directory; absolute, without `.` and `..`.
    pub dir: PathBuf,
    /// What the names of databases look like, as in Go's `filepath.Match`.
    pub pattern: String,
    /// Search directories below, too. Default: no.
    pub recursive: bool,
    /// Notice databases that come and go. Default: no.
    pub watch: bool,
    /// Where the local state of the databases is.
    pub meta: MetaBase,
    /// How they are replicated.
    pub settings: DbSettings,
    /// Where to; each database's relative path is added.
    pub replicas: Vec<Replica>,
}

/// Where the local state of the databases of a directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaBase {
    /// Beside each database.
    Beside,
    /// `meta-path`: `BASE/SUB/.NAME-litestream`.
    Path(PathBuf),
    /// `meta-dir`: `BASE/SUB/NAME-litestream`.
    Dir(PathBuf),
}

/// How a database is replicated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DbSettings {
    /// How often the WAL is looked at. Default: 1 s.
    pub monitor_interval: Duration,
    /// How often a checkpoint is tried; zero means never for time's sake. Default: 1 min.
    pub checkpoint_interval: Duration,
    /// The pages in the WAL that make a checkpoint worth trying. Default: 1000.
    pub min_checkpoint_page_count: u32,
    /// The pages in the WAL that make a blocking checkpoint necessary; zero means never. Default: 121359.
    pub truncate_page_n: u32,
    /// How long to wait for a lock. Default: 1 s.
    pub busy_timeout: Duration,
    /// The most of the WAL that one sync takes, in bytes; zero means all. Default: 64 MiB.
    pub max_sync_wal_bytes: u64,
    /// Restore the database first where it does not exist. Default: no.
    pub restore_if_db_not_exists: bool,
    /// Its snapshots. Default: the global ones.
    pub snapshot: SnapshotConfig,
}

/// One replica of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Where it lies.
    pub config: ReplicaConfig,
    /// Its name in Litestream 0.3. Only shown.
    pub name: Option<String>,
    /// How often files are uploaded. Default: 1 s.
    pub sync_interval: Duration,
    /// The most level-0 files that one sync uploads; zero means all. Default: 256.
    pub max_sync_ltx_files: u64,
    /// Reset the local state when it does not fit the replica. Default: no.
    pub auto_recover: bool,
    /// How often this replica is validated. Default: the global interval.
    pub validation_interval: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            addr: None,
            exec: None,
            socket: SocketConfig::default(),
            levels: [30, 300, 3600].map(Duration::from_secs).to_vec(),
            snapshot: SnapshotConfig::default(),
            l0_retention: Duration::from_secs(300),
            l0_retention_check_interval: Duration::from_secs(15),
            validation_interval: None,
            verify_compaction: false,
            retention_enabled: true,
            heartbeat_url: None,
            heartbeat_interval: Duration::from_secs(300),
            shutdown_sync_timeout: Duration::from_secs(30),
            shutdown_sync_interval: Duration::from_millis(500),
            logging: LoggingConfig::default(),
            dbs: Vec::new(),
            warnings: Vec::new(),
            home: None,
        }
    }
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self { enabled: false, path: PathBuf::from("/var/run/litestream.sock"), permissions: 0o600 }
    }
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(86_400), retention: Duration::from_secs(86_400) }
    }
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Text, stderr: false, source: false }
    }
}

impl Default for DbSettings {
    fn default() -> Self {
        Self {
            monitor_interval: Duration::from_secs(1),
            checkpoint_interval: Duration::from_secs(60),
            min_checkpoint_page_count: 1000,
            truncate_page_n: 121_359,
            busy_timeout: Duration::from_secs(1),
            max_sync_wal_bytes: 64 << 20,
            restore_if_db_not_exists: false,
            snapshot: SnapshotConfig::default(),
        }
    }
}

impl Replica {
    /// A replica with the defaults.
    pub fn new(config: ReplicaConfig) -> Self {
        Self {
            config,
            name: None,
            sync_interval: Duration::from_secs(1),
            max_sync_ltx_files: 256,
            auto_recover: false,
            validation_interval: None,
        }
    }
}

impl LogLevel {
    /// Parses `trace`, `debug`, `info`, `warn` (or `warning`) and `error`, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.trim().to_ascii_lowercase().as_str() {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" | "warning" => Self::Warn,
            "error" => Self::Error,
            _ => return None,
        })
    }

    /// As `tracing` names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is no such file.
    #[error("no configuration file `{}`: create it, or name another with -config or LITESTREAM_CONFIG", .0.display())]
    NotFound(PathBuf),
    /// The file cannot be read.
    #[error("cannot read the configuration file `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not YAML.
    #[error("the configuration file `{}` is not YAML: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// The file says what it cannot mean.
    #[error("{}", Problems(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All problems, in the order of the file; never none.
        problems: Vec<Problem>,
    },
}

/// A problem at a place of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Such as `dbs[2].replica.url`; empty for the file as a whole.
    pub place: String,
    /// The line, from 1.
    pub line: u64,
    /// What is wrong, why, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            f.write_str(&self.place)?;
            f.write_str(" ")?;
        }
        write!(f, "(line {}): {}", self.line, self.message)
    }
}

struct Problems<'a>(&'a Path, &'a [Problem]);

impl fmt::Display for Problems<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.display();
        match self.1 {
            [problem] => write!(f, "invalid configuration `{path}`: {problem}"),
            problems => {
                write!(f, "invalid configuration `{path}`, {} problems:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// The configuration file to use: the one of `-config`, else of `LITESTREAM_CONFIG`, else [`DEFAULT_PATH`]. Also says
/// whether someone named it, so that a missing default can be passed over where no configuration is needed.
pub fn locate(option: Option<&Path>, env: &dyn Fn(&str) -> Option<String>) -> (PathBuf, bool) {
    match option
        .map(Path::to_owned)
        .or_else(|| env("LITESTREAM_CONFIG").filter(|path| !path.is_empty()).map(Into::into))
    {
        Some(path) => (resolve(&path, home(env).as_deref()), true),
        None => (PathBuf::from(DEFAULT_PATH), false),
    }
}

impl Config {
    /// Reads the configuration file. `expand` replaces `$VAR` and `${VAR}` first; `env` looks up the environment.
    ///
    /// # Errors
    /// See [`LoadError`]; all problems together.
    pub fn load(path: &Path, expand: bool, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, LoadError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path, expand, env),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Err(LoadError::NotFound(path.into())),
            Err(source) => Err(LoadError::Read { path: path.into(), source }),
        }
    }

    /// Understands the text of a configuration file; `path` is for messages.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(
        text: &str,
        path: &Path,
        expand: bool,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, LoadError> {
        let (text, mut warnings) = if expand { expand::expand(text, env) } else { (text.to_owned(), Vec::new()) };
        let tree = tree::parse(&text).map_err(|reason| LoadError::Syntax { path: path.into(), reason })?;
        match read::read(tree, env) {
            Ok(mut config) => {
                warnings.append(&mut config.warnings);
                config.warnings = warnings;
                config.home = home(env);
                Ok(config)
            }
            Err(problems) => Err(LoadError::Invalid { path: path.into(), problems }),
        }
    }

    /// The configuration of the database at this path, which may be relative and begin with `~/` or `sqlite://`. The
    /// database need not exist. Its own entry goes before a directory's, and the first before later ones.
    pub fn find_db(&self, path: &Path) -> Option<DbConfig> {
        let path = database_path(path, self.home.as_deref());
        let own = self.dbs.iter().find_map(|entry| match entry {
            DbEntry::Database(config) if config.path == path => Some(config.clone()),
            _ => None,
        });
        own.or_else(|| {
            self.dbs.iter().find_map(|entry| match entry {
                DbEntry::Directory(config) => config.database(&path),
                DbEntry::Database(_) => None,
            })
        })
    }

    /// Whether a database lies in a configured directory, and is just what that makes of it: it need not be remembered then.
    pub fn is_configured(&self, database: &DbConfig) -> bool {
        self.dbs.iter().any(|entry| match entry {
            DbEntry::Directory(config) => config.database(&database.path).as_ref() == Some(database),
            DbEntry::Database(_) => false,
        })
    }

    /// All databases: the entries' own, and those that the directories hold now. None twice.
    ///
    /// # Errors
    /// A directory that cannot be searched.
    pub fn databases(&self) -> Result<Vec<DbConfig>, ScanError> {
        let mut taken: HashSet<PathBuf> = self
            .dbs
            .iter()
            .filter_map(|entry| if let DbEntry::Database(config) = entry { Some(config.path.clone()) } else { None })
            .collect();
        let mut all: Vec<DbConfig> = Vec::new();
        for entry in &self.dbs {
            match entry {
                DbEntry::Database(config) => all.push(config.clone()),
                DbEntry::Directory(config) => {
                    all.extend(config.scan()?.into_iter().filter(|found| taken.insert(found.path.clone())));
                }
            }
        }
        Ok(all)
    }
}

/// The directory of our local state for a database: `.NAME-litestream` beside it.
pub fn default_meta_path(database: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(database.file_name().unwrap_or_default());
    name.push("-litestream");
    database.with_file_name(name)
}

/// A database's path as it is written: with `sqlite://` (or `sqlite3://`) taken off, `~/` put in, made absolute.
pub fn database_path(path: &Path, home: Option<&Path>) -> PathBuf {
    let stripped = path.to_str().and_then(|text| {
        let prefix = |prefix: &str| text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        ["sqlite://", "sqlite3://"].into_iter().find(|start| prefix(start)).map(|start| &text[start.len()..])
    });
    resolve(stripped.map_or(path, Path::new), home)
}

/// The path with `~/` put in, made absolute, without `.` and with `..` taken back by name, as Go's `filepath.Abs` does.
fn resolve(path: &Path, home: Option<&Path>) -> PathBuf {
    let path = match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    };
    let absolute = std::path::absolute(&path).unwrap_or(path);
    let mut clean = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            _ => clean.push(part),
        }
    }
    clean
}

fn home(env: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    env("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests;
