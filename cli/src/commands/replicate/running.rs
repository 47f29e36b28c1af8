//! The daemon at work, as the control socket, the metrics and whatever watches folders see it.
//!
//! This alone knows how a database of the configuration becomes one of the daemon's, and which files must not be opened because they are replicated.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use litestream_config::{self as config, Config, DbConfig, DbEntry, DbSettings};
use litestream_pageindex::retention::RetentionPolicy;
use litestream_pageindex::upkeep::Schedule;
use litestream_replicate::Settings;
use litestream_replicate::daemon::{ControlError, Daemon, Options, Spec, Synced, Target};
use litestream_storage::config::{ReplicaConfig, is_url};
use litestream_storage::{Replica, RetryPolicy, Stores};

use super::sharing::Spots;
use crate::control::Host;
use crate::place;

/// How long one request to a store is tried.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many descriptors are left for connections, files that are uploaded, and whatever else the process has open.
const OTHERS: u64 = 768;

/// The daemon at work.
#[derive(Debug)]
pub(crate) struct Running {
    /// Replicates.
    pub(crate) daemon: Daemon,
    /// What the user wants.
    pub(crate) config: Arc<Config>,
    /// Since when.
    pub(crate) started: Timestamp,
    /// Where replicas lie.
    stores: Stores,
    /// Where the configuration has each database that it names, by a hash of its path.
    named: HashMap<u64, usize>,
    known: Mutex<Known>,
}

/// The databases that are registered.
#[derive(Debug, Default)]
struct Known {
    /// How each is configured, where the configuration file does not say.
    databases: BTreeMap<PathBuf, Option<Box<DbConfig>>>,
    schedule: Option<Arc<Schedule>>,
    /// Their files, device and inode, as they were last looked at.
    files: HashSet<(u64, u64)>,
    /// Where their replicas lie, once somebody has registered one by the socket.
    spots: Option<Spots>,
}

impl Known {
    fn look_at_files(&mut self) {
        self.files = self.databases.keys().filter_map(|path| file_at(path)).collect();
    }
}

impl Running {
    /// Nothing is replicated yet.
    pub(crate) fn new(config: Config, policy: &RetryPolicy) -> Self {
        let clock = Arc::new(|| ltx::Timestamp(Timestamp::now().as_millisecond()));
        let mut options = Options::new(clock, &identity());
        options.descriptors = descriptors();
        // The daemon tries again by itself, for ever; what is wrong should show before long.
        let policy = RetryPolicy { total: policy.total.min(PATIENCE), ..policy.clone() };
        let named = config.dbs.iter().enumerate().filter_map(|(at, entry)| match entry {
            DbEntry::Database(database) => Some((hash(&database.path), at)),
            DbEntry::Directory(_) => None,
        });
        Self {
            named: named.collect(),
            daemon: Daemon::new(options),
            config: Arc::new(config),
            started: Timestamp::now(),
            stores: Stores::new(policy),
            known: Mutex::default(),
        }
    }

    /// How a database is replicated. Nothing is asked of its stores yet.
    ///
    /// # Errors
    /// Why a replica cannot be used.
    pub(crate) async fn spec_for(&self, database: &DbConfig) -> anyhow::Result<Spec> {
        let mut replicas = Vec::new();
        for wanted in &database.replicas {
            let replica = self
                .open(&wanted.config)
                .await
                .with_context(|| format!("{}: replica {}", database.path.display(), wanted.config))?;
            replicas.push(Target {
                sync_interval: wanted.sync_interval,
                auto_recover: wanted.auto_recover,
                validation_interval: wanted.validation_interval,
                ..Target::new(replica, wanted.config.type_name())
            });
        }
        Ok(Spec { settings: settings(database), replicas, schedule: Some(self.schedule(&database.settings)) })
    }

    /// How a database's replicas are kept small: most often as those of the last one that was asked for.
    fn schedule(&self, settings: &DbSettings) -> Arc<Schedule> {
        let wanted = schedule(&self.config, settings);
        let mut known = self.known();
        match &known.schedule {
            Some(schedule) if **schedule == wanted => schedule.clone(),
            _ => known.schedule.insert(Arc::new(wanted)).clone(),
        }
    }

    /// The one place where replicas are opened.
    async fn open(&self, replica: &ReplicaConfig) -> litestream_storage::Result<Replica> {
        self.stores.open(replica).await
    }

    /// The configuration of a database that somebody wants to have registered: the file's, or with this replica the defaults.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn database_at(&self, path: &Path, url: Option<&str>) -> anyhow::Result<DbConfig> {
        let home = place::env("HOME").map(PathBuf::from);
        let path = config::database_path(path, home.as_deref());
        let configured = self.config.find_db(&path);
        match (configured, url) {
            (Some(database), None) => Ok(database),
            (None, None) => bail!("{}: not in the configuration file: give a replica URL, too", path.display()),
            (configured, Some(url)) => {
                if !is_url(url) {
                    bail!(
                        "{:?} is not a replica URL such as s3://BUCKET/PATH or file:///PATH",
                        place::without_secrets(url)
                    );
                }
                let replicas = vec![config::Replica::new(place::known_at(&self.config, url)?)];
                let settings = configured.as_ref().map(|database| database.settings.clone());
                let meta_path =
                    configured.map_or_else(|| config::default_meta_path(&path), |database| database.meta_path);
                let settings = settings
                    .unwrap_or_else(|| DbSettings { snapshot: self.config.snapshot.clone(), ..DbSettings::default() });
                Ok(DbConfig { path, meta_path, settings, replicas })
            }
        }
    }

    /// Begins to replicate a database. Says no where it is replicated already.
    pub(crate) fn register(&self, database: DbConfig, spec: Spec) -> bool {
        self.register_as(&mut self.known(), database, spec)
    }

    fn register_as(&self, known: &mut Known, database: DbConfig, spec: Spec) -> bool {
        let file = file_at(&database.path);
        if !self.daemon.register(spec) {
            return false;
        }
        known.files.extend(file);
        if let Some(spots) = &mut known.spots {
            spots.add(&database);
        }
        let path = database.path.clone();
        let configured = self.is_named(&database) || self.config.is_configured(&database);
        known.databases.insert(path, (!configured).then(|| Box::new(database)));
        true
    }

    /// Begins to replicate a database that somebody has named, unless that would harm another one.
    ///
    /// # Errors
    /// What would be harmed.
    pub(crate) fn register_beside(&self, database: DbConfig, spec: Spec) -> Result<bool, String> {
        let mut known = self.known();
        if known.databases.contains_key(&database.path) {
            return Ok(false);
        }
        let file = file_at(&database.path);
        let taken = |known: &Known| file.is_some_and(|file| known.files.contains(&file));
        if taken(&known) {
            // It may be one of a database that is no longer replicated.
            known.look_at_files();
        }
        if taken(&known) {
            return Err(format!("{}: the same file is replicated by another name already", database.path.display()));
        }
        if known.spots.is_none() {
            let mut spots = Spots::default();
            let all = known.databases.iter().filter_map(|(path, own)| self.configuration(path, own.as_deref()));
            all.for_each(|database| spots.add(&database));
            known.spots = Some(spots);
        }
        match known.spots.as_ref().and_then(|spots| spots.problem(&database)) {
            Some(problem) => Err(problem),
            None => Ok(self.register_as(&mut known, database, spec)),
        }
    }

    /// Ends replicating a database, as [`Daemon::unregister`] does.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn unregister(&self, path: &Path, patience: Duration) -> Result<Synced, ControlError> {
        let outcome = self.daemon.unregister(path, patience).await;
        let mut known = self.known();
        if self.daemon.status_of(path).is_some() {
            // Somebody has started it again.
            return outcome;
        }
        if let Some(own) = known.databases.remove(path)
            && let Some(spots) = &mut known.spots
            && let Some(database) = self.configuration(path, own.as_deref())
        {
            spots.remove(&database);
        }
        outcome
    }

    /// The configuration of a database that is registered.
    pub(crate) fn database(&self, path: &Path) -> Option<DbConfig> {
        let own = self.known().databases.get(path)?.clone();
        self.configuration(path, own.as_deref())
    }

    /// Whether the configuration names a database, and this is just what it says: it need not be remembered then.
    fn is_named(&self, database: &DbConfig) -> bool {
        let entry = self.named.get(&hash(&database.path)).and_then(|at| self.config.dbs.get(*at));
        matches!(entry, Some(DbEntry::Database(named)) if named == database)
    }

    /// The database's own configuration, or the file's.
    fn configuration(&self, path: &Path, own: Option<&DbConfig>) -> Option<DbConfig> {
        own.cloned().or_else(|| self.config.find_db(path))
    }

    /// Looks again which files are replicated.
    pub(crate) fn look_at_files(&self) {
        self.known().look_at_files();
    }

    /// Looks into a file, unless that is replicated: whoever closes a descriptor of such a file takes SQLite's locks away from it.
    pub(crate) fn unless_replicated<T>(&self, path: &Path, look: impl FnOnce() -> T) -> Option<T> {
        // As long as this is held, nothing is registered.
        let known = self.known();
        let replicated =
            known.databases.contains_key(path) || file_at(path).is_some_and(|file| known.files.contains(&file));
        (!replicated).then(look)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Each change is one insertion or removal.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for Running {
    fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    fn stores(&self) -> &Stores {
        &self.stores
    }

    fn started(&self) -> Timestamp {
        self.started
    }

    async fn spec(&self, path: &Path, replica_url: Option<&str>) -> anyhow::Result<(DbConfig, Spec)> {
        let database = self.database_at(path, replica_url)?;
        let spec = self.spec_for(&database).await?;
        Ok((database, spec))
    }

    fn register(&self, database: DbConfig, spec: Spec) -> Result<bool, String> {
        self.register_beside(database, spec)
    }

    async fn unregister(&self, path: &Path, patience: Duration) -> Result<Synced, ControlError> {
        Self::unregister(self, path, patience).await
    }
}

fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|there| (there.dev(), there.ino()))
}

/// How a database is captured.
fn settings(database: &DbConfig) -> Settings {
    let DbSettings {
        checkpoint_interval,
        min_checkpoint_page_count,
        truncate_page_n,
        busy_timeout,
        max_sync_wal_bytes,
        ..
    } = database.settings;
    let mut settings = Settings::new(&database.path);
    settings.meta_path.clone_from(&database.meta_path);
    // This process opens what it replicates by no other way.
    settings.alone_in_process = true;
    settings.cut = max_sync_wal_bytes;
    settings.checkpoint_pages = min_checkpoint_page_count;
    settings.truncate_pages = truncate_page_n;
    settings.checkpoint_interval = checkpoint_interval;
    settings.patience = busy_timeout;
    settings
}

/// How a database's replicas are kept small.
fn schedule(config: &Config, settings: &DbSettings) -> Schedule {
    Schedule {
        levels: config.levels.clone(),
        snapshots: settings.snapshot.interval,
        retention: RetentionPolicy { l0: config.l0_retention, snapshots: settings.snapshot.retention },
        deletes: config.retention_enabled,
    }
}

/// How many descriptors databases may use.
fn descriptors() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    limit.saturating_sub(OTHERS).max(limit / 2)
}

/// This process, as others may know it.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.or_else(|| place::env("HOSTNAME")).unwrap_or_else(|| "localhost".to_owned());
    let start = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    format!("{}:{}:{start}", host.trim(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(text: &str) -> Running {
        Running::new(Config::parse(text, Path::new("c.yml"), false, &|_| None).unwrap(), &RetryPolicy::default())
    }

    const CONFIG: &str = "
levels: [{interval: 10s}, {interval: 2m}]
snapshot: {interval: 12h, retention: 48h}
l0-retention: 3m
retention: {enabled: false}
dbs:
  - path: /data/a.db
    busy-timeout: 3s
    truncate-page-n: 0
    checkpoint-interval: 0s
    max-sync-wal-bytes: 0
    snapshot: {retention: 7d}
    replicas: [{path: /backup/a, sync-interval: 5s, auto-recover: true}, {url: 's3://bucket/a'}]
";

    #[tokio::test]
    async fn what_is_configured_is_what_is_done() {
        let running = running(CONFIG);
        let database = running.config.find_db(Path::new("/data/a.db")).unwrap();
        let spec = running.spec_for(&database).await.unwrap();
        let settings = &spec.settings;
        assert_eq!((settings.cut, settings.truncate_pages, settings.checkpoint_pages), (0, 0, 1000));
        assert_eq!((settings.checkpoint_interval, settings.patience), (Duration::ZERO, Duration::from_secs(3)));
        let kinds: Vec<_> = spec.replicas.iter().map(|target| (target.kind, target.sync_interval.as_secs())).collect();
        assert_eq!(kinds, [("file", 5), ("s3", 1)]);
        assert!(spec.replicas[0].auto_recover && !spec.replicas[1].auto_recover);
        let expected = Schedule {
            levels: vec![Duration::from_secs(10), Duration::from_secs(120)],
            snapshots: Duration::from_secs(12 * 3600),
            retention: RetentionPolicy { l0: Duration::from_secs(180), snapshots: Duration::from_secs(7 * 86_400) },
            deletes: false,
        };
        assert_eq!(spec.schedule.as_deref(), Some(&expected));
    }

    #[tokio::test]
    async fn what_is_registered_later_is_configured_or_has_a_url() {
        let running = running(CONFIG);
        let at = |path: &str, url| running.database_at(Path::new(path), url);
        assert_eq!(at("/data/a.db", None).unwrap().replicas.len(), 2);
        assert!(at("/data/b.db", None).unwrap_err().to_string().contains("give a replica URL"));
        assert!(at("/data/b.db", Some("nowhere")).is_err());
        let database = at("/data/b.db", Some("file:///backup/b")).unwrap();
        assert_eq!(database.replicas[0].config.url(), "file:///backup/b");
        assert_eq!(database.settings.snapshot.retention, Duration::from_secs(48 * 3600));
    }

    #[tokio::test]
    async fn what_is_registered_by_the_socket_shares_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a", "b"] {
            std::fs::write(at(name), "").unwrap();
        }
        std::fs::hard_link(at("a"), at("link")).unwrap();
        let text = format!("dbs: [{{path: {}, replica: {{url: 's3://bucket/x/a'}}}}]", at("a").display());
        let running = running(&text);
        let database = running.config.find_db(&at("a")).unwrap();
        let spec = running.spec_for(&database).await.unwrap();
        assert!(running.register(database, spec));
        let register = async |name: &str, url: &str| {
            let database = running.database_at(&at(name), Some(url)).unwrap();
            let spec = running.spec_for(&database).await.unwrap();
            running.register_beside(database, spec)
        };
        for url in ["s3://bucket/x/a", "s3://bucket/x/a/b", "s3://bucket/x", "s3://bucket"] {
            let problem = register("b", url).await.unwrap_err();
            assert_eq!(
                problem,
                format!("{url}: another database's replica or local state lies there: give it a path of its own")
            );
        }
        let inside = format!("file://{}", litestream_config::default_meta_path(&at("a")).join("backup").display());
        assert!(register("b", &inside).await.unwrap_err().contains("local state lies there"));
        assert!(register("link", "s3://bucket/link").await.unwrap_err().contains("the same file"));
        assert_eq!(register("b", "s3://bucket/x/b").await, Ok(true));
        assert_eq!(register("b", "s3://bucket/x/c").await, Ok(false));
        assert!(register("c", "s3://bucket/x/b").await.is_err());
        running.unregister(&at("b"), Duration::ZERO).await.unwrap_err();
        assert_eq!(register("b", "s3://bucket/x/b").await, Ok(true));
        running.unregister(&at("b"), Duration::ZERO).await.unwrap_err();
        assert_eq!(register("c", "s3://bucket/x/b").await, Ok(true));
    }

    #[tokio::test]
    async fn a_replicated_file_is_not_opened_by_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link, other) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
        std::fs::write(&file, "").unwrap();
        std::fs::write(&other, "").unwrap();
        std::fs::hard_link(&file, &link).unwrap();
        let running = running("dbs: []");
        let database = running.database_at(&file, Some("file:///backup/a")).unwrap();
        let spec = running.spec_for(&database).await.unwrap();
        assert!(running.register(database, spec));
        let looked = |path: &Path| running.unless_replicated(path, || ()).is_some();
        assert_eq!([&file, &link, &other].map(|path| looked(path)), [false, false, true]);
        // A database that is replaced by another file.
        std::fs::rename(&other, &file).unwrap();
        running.look_at_files();
        assert_eq!([&file, &link].map(|path| looked(path)), [false, true]);
    }
}
