//! How one database is to be opened: from the URI, else from the environment, else the default.

use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use litestream_config::units::parse_duration;
use litestream_config::{Config, LoadError};
use litestream_pageindex::upkeep::Schedule;
use litestream_storage::config::{Location, ReplicaConfig, is_url, parse_size};

use crate::{Error, Result};

/// What SQLite says about a database that is opened: its name and the parameters behind it.
pub(crate) struct Parameters<'a> {
    path: String,
    lookup: Lookup<'a>,
    env: fn(&str) -> Option<String>,
}

/// What a parameter of the URI says.
type Lookup<'a> = Box<dyn Fn(&str) -> Option<String> + 'a>;

/// Where a value was found, for messages, and the value.
type Found = (String, String);

impl<'a> Parameters<'a> {
    /// `uri` looks a parameter up.
    pub(crate) fn new(path: String, uri: impl Fn(&str) -> Option<String> + 'a) -> Self {
        Self { path, lookup: Box::new(uri), env }
    }

    /// A value from the URI.
    fn uri(&self, key: &str) -> Option<Found> {
        (self.lookup)(key).filter(|value| !value.is_empty()).map(|value| (key.to_owned(), value))
    }

    /// A value from the URI, else from the environment.
    fn find(&self, key: &str) -> Option<Found> {
        self.uri(key).or_else(|| {
            let name = format!("LITESTREAM_{}", key.to_ascii_uppercase());
            (self.env)(&name).filter(|value| !value.is_empty()).map(|value| (name, value))
        })
    }

    fn duration(&self, key: &str, default: Duration) -> Result<Duration> {
        let Some((name, value)) = self.find(key) else { return Ok(default) };
        parse_duration(&value).map_err(|error| Error::Setting { name, why: error.to_string() })
    }

    /// A switch that is off unless it is said to be on.
    fn switch(&self, key: &str) -> Result<bool> {
        let Some((name, value)) = self.find(key) else { return Ok(false) };
        match value.to_ascii_lowercase().as_str() {
            "1" | "yes" | "true" | "on" => Ok(true),
            "0" | "no" | "false" | "off" => Ok(false),
            _ => Err(Error::Setting { name, why: format!("`{value}` is neither true nor false") }),
        }
    }

    fn write(&self, replica: &ReplicaConfig) -> Result<WriteSettings> {
        let second = Duration::from_secs(1);
        let deadline = self.duration("sync_deadline", Duration::ZERO)?;
        Ok(WriteSettings {
            sync_interval: self.duration("sync_interval", second)?.max(Duration::from_millis(10)),
            buffer_path: self.buffer_path(replica),
            sync_deadline: (!deadline.is_zero()).then_some(deadline),
            shutdown_sync_timeout: self.duration("shutdown_sync_timeout", 30 * second)?,
            fence_window: self.duration("fence_window", 60 * second)?,
            unfenced: self.switch("unfenced")?,
            lease: self.switch("lease")?,
            upkeep: self.upkeep()?,
            identity: identity(),
        })
    }

    fn upkeep(&self) -> Result<Option<Schedule>> {
        let mut schedule = Schedule::default();
        if let Some((name, value)) = self.find("compaction_levels") {
            let levels: std::result::Result<Vec<_>, _> =
                value.split(',').map(|level| parse_duration(level.trim())).collect();
            schedule.levels = levels.map_err(|error| Error::Setting { name, why: error.to_string() })?;
            schedule.levels.truncate(litestream_config::MAX_LEVELS);
        }
        schedule.snapshots = self.duration("snapshot_interval", schedule.snapshots)?;
        schedule.retention.snapshots = self.duration("snapshot_retention", schedule.retention.snapshots)?;
        schedule.retention.l0 = self.duration("l0_retention", schedule.retention.l0)?;
        Ok(self.switch("compaction_enabled")?.then_some(schedule))
    }

    /// Where what was written lies until it is uploaded: as said, or beside where the database would be.
    fn buffer_path(&self, replica: &ReplicaConfig) -> PathBuf {
        let mut hasher = std::hash::DefaultHasher::new();
        replica.url().hash(&mut hasher);
        let hashed = format!("litestream-{:016x}", hasher.finish());
        if let Some((_, path)) = self.find("buffer_path") {
            let path = absolute(Path::new(&path));
            return if path.is_dir() || path.as_os_str().as_bytes().ends_with(b"/") { path.join(hashed) } else { path };
        }
        let database = Path::new(&self.path);
        match database.file_name().filter(|_| !is_url(&self.path)) {
            Some(name) => {
                let folder = format!(".{}-litestream", name.to_string_lossy());
                absolute(&database.with_file_name(folder)).join("buffer")
            }
            None => std::env::temp_dir().join(hashed),
        }
    }

    fn hydration(&self) -> Result<HydrationPlace> {
        let path = self.find("hydration_path").map(|(_, path)| HydrationPlace::Path(path.into()));
        let Some((name, value)) = self.find("hydration_enabled") else { return Ok(path.unwrap_or_default()) };
        match value.to_ascii_lowercase().as_str() {
            "1" | "yes" | "true" | "on" => Ok(path.unwrap_or(HydrationPlace::Temporary)),
            "0" | "no" | "false" | "off" => Ok(HydrationPlace::Nowhere),
            _ => Err(Error::Setting { name, why: format!("`{value}` is neither true nor false") }),
        }
    }

    /// A switch of SQLite's own URI language.
    fn flag(&self, key: &str) -> bool {
        self.uri(key).is_some_and(|(_, value)| {
            matches!(value.to_ascii_lowercase().as_str(), "1" | "yes" | "true" | "on")
                || value.parse::<i64>().is_ok_and(|number| number != 0)
        })
    }
}

/// This process, as others may know it.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_else(|| "localhost".to_owned());
    let start = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    format!("{}:{}:{start}", host.trim(), std::process::id())
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// How one database is to be opened.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Where its replica is.
    pub(crate) replica: ReplicaConfig,
    /// How often to look for new transactions while somebody reads. Default 1 s.
    pub(crate) poll_interval: Duration,
    /// How long to wait for an empty replica's first transaction. Default 10 s.
    pub(crate) open_timeout: Duration,
    /// How many bytes of pages the process keeps in memory. Default 64 MiB.
    pub(crate) cache_size: u64,
    /// The moment or TXID to stay at, as written.
    pub(crate) at: Option<String>,
    /// Whether SQLite will never lock the file (`immutable=1`, `nolock=1`): the view is then taken once.
    pub(crate) unlocked: bool,
    /// Whether the database is pulled into a local file, and where that is.
    pub(crate) hydration: HydrationPlace,
    /// Whether the connection may write. Default: no.
    pub(crate) write_enabled: bool,
    /// How it writes then.
    pub(crate) write: WriteSettings,
}

/// How a database is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WriteSettings {
    /// How often committed transactions go up. Default 1 s.
    pub(crate) sync_interval: Duration,
    /// The write buffer's first file.
    pub(crate) buffer_path: PathBuf,
    /// After how long without a successful upload commits fail. Default: never.
    pub(crate) sync_deadline: Option<Duration>,
    /// How long the last close waits for the last upload. Default 30 s.
    pub(crate) shutdown_sync_timeout: Duration,
    /// How long the store's clock may have gone on since the last upload before it is looked for other writers. Default 60 s.
    pub(crate) fence_window: Duration,
    /// Whether to write although the store does not keep two writers apart. Default: no.
    pub(crate) unfenced: bool,
    /// Whether to take the replica's lease, so that a second writer is refused at open. Default: no.
    pub(crate) lease: bool,
    /// How the replica is kept small, unless somebody else does that. Default: not at all.
    pub(crate) upkeep: Option<Schedule>,
    /// Who writes, for people: host, process and when it began to.
    pub(crate) identity: String,
}

/// Where a database is pulled to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum HydrationPlace {
    /// It is not.
    #[default]
    Nowhere,
    /// To a temporary file without a name.
    Temporary,
    /// To this file, or into this folder.
    Path(PathBuf),
}

impl Settings {
    /// Reads all settings.
    ///
    /// # Errors
    /// [`Error::Setting`], which names the parameter or variable, and [`Error::NoReplica`].
    pub(crate) fn read(parameters: &Parameters<'_>) -> Result<Self> {
        let cache_size = match parameters.find("cache_size") {
            None => 64 << 20,
            // Litestream's own is a number of bytes, with or without a unit.
            Some((name, value)) => parse_size(&value).map_err(|why| Error::Setting { name, why })?,
        };
        let replica = replica(parameters)?;
        let at = parameters.uri("at").map(|(_, value)| value);
        let unlocked = parameters.flag("immutable") || parameters.flag("nolock");
        Ok(Self {
            write_enabled: parameters.switch("write_enabled")? && at.is_none() && !unlocked,
            write: parameters.write(&replica)?,
            replica,
            poll_interval: parameters.duration("poll_interval", Duration::from_secs(1))?.max(Duration::from_millis(10)),
            open_timeout: parameters.duration("open_timeout", Duration::from_secs(10))?,
            cache_size,
            at,
            unlocked,
            hydration: parameters.hydration()?,
        })
    }

    /// What makes this database another one than others of the process.
    pub(crate) fn key(&self) -> String {
        let secret = match &self.replica.location {
            Location::S3(s3) => format!(
                "{:?} {:?} {:?}",
                s3.access_key_id,
                s3.secret_access_key.as_ref().map(litestream_storage::config::Secret::expose),
                s3.region
            ),
            _ => String::new(),
        };
        let Self { poll_interval, open_timeout, hydration, .. } = self;
        format!("{}\n{secret}\n{poll_interval:?} {open_timeout:?} {hydration:?}", self.replica.url())
    }
}

/// Where the replica is: `replica_url`, `LITESTREAM_REPLICA_URL`, a name that is itself a URL, or the configuration file.
fn replica(parameters: &Parameters<'_>) -> Result<ReplicaConfig> {
    let written = parameters.find("replica_url");
    let written =
        written.or_else(|| is_url(&parameters.path).then(|| ("file name".to_owned(), parameters.path.clone())));
    if let Some((name, value)) = written {
        let wrong = |error: litestream_storage::config::ConfigError| Error::Setting {
            name: name.clone(),
            why: error.to_string(),
        };
        let mut config = ReplicaConfig::from_url(&value).map_err(wrong)?;
        config.apply_env(parameters.env).map_err(wrong)?;
        config.validate().map_err(wrong)?;
        return Ok(config);
    }
    let (path, named) = litestream_config::locate(None, &parameters.env);
    let unknown = || Error::NoReplica { path: parameters.path.clone(), config: path.display().to_string() };
    let config = match Config::load(&path, true, &parameters.env) {
        Ok(config) => config,
        Err(LoadError::NotFound(_)) if !named => return Err(unknown()),
        Err(error) => return Err(Error::Setting { name: "LITESTREAM_CONFIG".to_owned(), why: error.to_string() }),
    };
    let database = absolute(Path::new(&parameters.path));
    let found = config.find_db(&database).and_then(|database| database.replicas.into_iter().next());
    found.map(|replica| replica.config).ok_or_else(unknown)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(uri: &[(&str, &str)], env: fn(&str) -> Option<String>) -> Result<Settings> {
        let uri = |key: &str| uri.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned());
        let mut parameters = Parameters::new("/data/my.db".to_owned(), uri);
        parameters.env = env;
        Settings::read(&parameters)
    }

    #[test]
    fn rule_27_the_uri_goes_before_the_environment() {
        let env: fn(&str) -> Option<String> = |name| match name {
            "LITESTREAM_REPLICA_URL" => Some("file:///from/env".into()),
            "LITESTREAM_POLL_INTERVAL" => Some("5s".into()),
            _ => None,
        };
        let settings = read(&[], env).unwrap();
        assert_eq!(settings.replica.url(), "file:///from/env");
        assert_eq!(settings.poll_interval, Duration::from_secs(5));
        let settings = read(&[("replica_url", "file:///from/uri"), ("poll_interval", "2s")], env).unwrap();
        assert_eq!(settings.replica.url(), "file:///from/uri");
        assert_eq!(settings.poll_interval, Duration::from_secs(2));
        assert_ne!(read(&[], env).unwrap().key(), settings.key(), "two replicas are two databases");
    }

    #[test]
    fn rule_27_a_bad_value_names_the_variable() {
        let somewhere = ("replica_url", "file:///somewhere");
        let error = read(&[somewhere], |name| (name == "LITESTREAM_POLL_INTERVAL").then(|| "soon".into())).unwrap_err();
        assert!(error.to_string().starts_with("LITESTREAM_POLL_INTERVAL: "), "{error}");
        let error = read(&[("cache_size", "lots")], |_| None).unwrap_err();
        assert!(error.to_string().starts_with("cache_size: "), "{error}");
        let error = read(&[], |_| None).unwrap_err();
        assert!(error.to_string().contains("/data/my.db: no replica is known"), "{error}");
    }

    #[test]
    fn rule_19_a_path_alone_enables_hydration() {
        let somewhere = ("replica_url", "file:///somewhere");
        let place = |uri: &[(&str, &str)], env| read(&[uri, &[somewhere]].concat(), env).map(|found| found.hydration);
        let path: fn(&str) -> Option<String> = |name| (name == "LITESTREAM_HYDRATION_PATH").then(|| "/a".to_owned());
        assert_eq!(place(&[], |_| None).unwrap(), HydrationPlace::Nowhere);
        assert_eq!(place(&[], path).unwrap(), HydrationPlace::Path("/a".into()));
        assert_eq!(place(&[("hydration_path", "b/")], path).unwrap(), HydrationPlace::Path("b/".into()));
        assert_eq!(place(&[("hydration_enabled", "0")], path).unwrap(), HydrationPlace::Nowhere);
        assert_eq!(place(&[("hydration_enabled", "on")], |_| None).unwrap(), HydrationPlace::Temporary);
        let error = place(&[("hydration_enabled", "perhaps")], path).unwrap_err();
        assert!(error.to_string().starts_with("hydration_enabled: `perhaps`"), "{error}");
        assert_ne!(
            read(&[somewhere], path).unwrap().key(),
            read(&[somewhere], |_| None).unwrap().key(),
            "two files are two databases"
        );
    }

    #[test]
    fn rule_27_a_plain_name_is_found_in_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("litestream.yml");
        let text = "dbs:\n  - path: /data/my.db\n    replica:\n      url: file:///where/it/is\n";
        std::fs::write(&path, text).unwrap();
        // A function pointer holds nothing, so the path goes by a static.
        static PATH: std::sync::OnceLock<String> = std::sync::OnceLock::new();
        PATH.set(path.to_str().unwrap().to_owned()).unwrap();
        let settings = read(&[], |name| (name == "LITESTREAM_CONFIG").then(|| PATH.get().unwrap().clone())).unwrap();
        assert_eq!(settings.replica.url(), "file:///where/it/is");
    }
}
