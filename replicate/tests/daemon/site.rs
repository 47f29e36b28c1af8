//! Databases in a folder, a store, and a daemon between them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use litestream_fixtures::s3::{S3Options, S3Server};
use litestream_hydrate::{RestoreOptions, restore};
use litestream_pageindex::Target as Moment;
use litestream_replicate::Settings;
use litestream_replicate::daemon::{Daemon, Options, Phase, SharedClock, Spec, Status, Target};
use litestream_storage::config::ReplicaConfig;
use litestream_storage::{Replica, RetryPolicy, Stores};
use ltx::{Timestamp, Txid};
use rusqlite::Connection;

pub(crate) const BUCKET: &str = "bucket";
/// Long enough for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Site {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) server: S3Server,
    stores: Stores,
}

/// Real time.
pub(crate) fn clock() -> SharedClock {
    let (start, first) = (std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap(), Instant::now());
    Arc::new(move || Timestamp((start + first.elapsed()).as_millis() as i64))
}

pub(crate) fn options() -> Options {
    let mut options = Options::new(clock(), "test:1");
    options.rest_after = Duration::from_millis(300);
    options
}

impl Site {
    pub(crate) fn new() -> Self {
        let server = S3Server::start(S3Options::default()).unwrap();
        server.create_bucket(BUCKET);
        let policy =
            RetryPolicy { total: Duration::from_secs(2), first_byte: Duration::from_secs(1), ..RetryPolicy::default() };
        Self { folder: tempfile::tempdir().unwrap(), server, stores: Stores::new(policy) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    /// A new database with a table, and a connection to it.
    pub(crate) fn database(&self, name: &str) -> Connection {
        let database = Connection::open(self.path(name)).unwrap();
        database.busy_timeout(PATIENCE).unwrap();
        database
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
                 CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body BLOB)",
            )
            .unwrap();
        database
    }

    pub(crate) async fn replica(&self, place: &str) -> Replica {
        let url = format!("s3://{BUCKET}/{place}?endpoint={}&forcePathStyle=true", self.server.endpoint());
        let mut config = ReplicaConfig::from_url(&url).unwrap();
        config.set("access-key-id", self.server.access_key()).unwrap();
        config.set("secret-access-key", self.server.secret_key()).unwrap();
        self.stores.open(&config).await.unwrap()
    }

    pub(crate) async fn target(&self, place: &str) -> Target {
        let mut target = Target::new(self.replica(place).await, "s3");
        target.sync_interval = Duration::from_millis(20);
        target
    }

    /// Somebody who reads, and for as long keeps the log from being copied whole into the file.
    pub(crate) fn reader(&self, name: &str) -> Connection {
        let reader = Connection::open(self.path(name)).unwrap();
        reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
        reader
    }

    /// A database and its replicas.
    pub(crate) async fn spec(&self, name: &str, places: &[&str]) -> Spec {
        let mut settings = Settings::new(self.path(name));
        settings.truncate_when_alone = false;
        let mut replicas = Vec::new();
        for place in places {
            replicas.push(self.target(place).await);
        }
        Spec { settings, replicas, schedule: None }
    }

    /// A database that is replicated from now on, with a connection to it.
    pub(crate) async fn replicating(&self, name: &str, places: &[&str]) -> (Connection, Daemon, PathBuf) {
        self.replicating_with(options(), name, places, |_| {}).await
    }

    /// The same, with something changed.
    pub(crate) async fn replicating_with(
        &self,
        options: Options,
        name: &str,
        places: &[&str],
        change: impl FnOnce(&mut Spec),
    ) -> (Connection, Daemon, PathBuf) {
        let database = self.database(name);
        let mut spec = self.spec(name, places).await;
        change(&mut spec);
        let path = spec.path().clone();
        let daemon = Daemon::new(options);
        assert!(daemon.register(spec));
        (database, daemon, path)
    }

    /// What a restore gives.
    pub(crate) async fn restored(&self, place: &str, target: Moment) -> Connection {
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        let path = folder.join("restored.db");
        let replica = self.replica(place).await;
        restore(&replica, &path, &RestoreOptions { target, ..RestoreOptions::default() }).await.unwrap();
        let restored = Connection::open(&path).unwrap();
        let check: String = restored.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        restored
    }

    /// The replica is the database.
    pub(crate) async fn check(&self, name: &str, place: &str) {
        let database = Connection::open(self.path(name)).unwrap();
        let restored = self.restored(place, Moment::Latest).await;
        assert_eq!(rows(&restored), rows(&database), "{name} in {place}");
    }

    /// Puts another database in the place of this one, which nobody here has open, as somebody does who copies files by hand.
    pub(crate) fn replace(&self, name: &str, rows: u32) -> Connection {
        let other = self.database("other-in-its-place.db");
        insert(&other, rows);
        other.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        drop(other);
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(self.path(&format!("{name}{suffix}")));
        }
        std::fs::rename(self.path("other-in-its-place.db"), self.path(name)).unwrap();
        self.database(name)
    }

    pub(crate) fn staged(&self, name: &str) -> usize {
        let folder = self.path(&format!(".{name}-litestream")).join("ltx/0");
        let is_file = |entry: &std::fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "ltx");
        std::fs::read_dir(folder).map_or(0, |entries| entries.flatten().filter(is_file).count())
    }
}

pub(crate) fn insert(database: &Connection, rows: u32) {
    for _ in 0..rows {
        database.execute("INSERT INTO t (body) VALUES (randomblob(300))", []).unwrap();
    }
}

/// How many rows there are, and a hash of them all.
pub(crate) fn rows(database: &Connection) -> (usize, u64) {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut select = database.prepare("SELECT id, body FROM t ORDER BY id").unwrap();
    let mut rows = select.query([]).unwrap();
    let (mut count, mut hash) = (0, DefaultHasher::new());
    while let Some(row) = rows.next().unwrap() {
        count += 1;
        (row.get::<_, i64>(0).unwrap(), format!("{:?}", row.get_ref(1).unwrap())).hash(&mut hash);
    }
    (count, hash.finish())
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it never came to this: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a database is held.
pub(crate) async fn held(daemon: &Daemon, path: &Path) {
    until("it is held", || matches!(status(daemon, path).phase, Phase::Live | Phase::Idle)).await;
}

pub(crate) fn status(daemon: &Daemon, path: &Path) -> Status {
    daemon.status_of(path).unwrap()
}

/// Keeps a database awake that is left to rest after a long time only. The first time it rests at once, where nothing goes on: only what is captured
/// after the first pass is seen to go on.
pub(crate) async fn awake(daemon: &Daemon, path: &Path, mut write: impl FnMut()) {
    for _ in 0..2 {
        write();
        synced(daemon, path).await;
    }
    assert_eq!(status(daemon, path).phase, Phase::Live);
}

pub(crate) async fn synced(daemon: &Daemon, path: &Path) -> Txid {
    let synced = daemon.sync(path, true, PATIENCE).await.unwrap();
    assert_eq!(synced.txid, synced.durable);
    synced.txid
}
