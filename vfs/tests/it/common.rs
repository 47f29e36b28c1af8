//! A replica on the embedded S3 server, made transaction by transaction, and connections that read it through the VFS.

use std::path::PathBuf;
use std::sync::{Once, RwLock};
use std::time::{Duration, Instant};

use litestream_fixtures::db::{DbOptions, build_database};
use litestream_fixtures::recorder::Recorder;
use litestream_fixtures::s3::{S3Options, S3Server};
use litestream_pageindex::Listing;
use litestream_pageindex::compact::{MergeOptions, compact_into, snapshot};
use litestream_storage::config::ReplicaConfig;
use litestream_storage::{Level, Replica, RetryPolicy, format_time};
use ltx::{Timestamp, Txid};
use rusqlite::{Connection, OpenFlags};

pub(crate) const BUCKET: &str = "bkt";
const START: i64 = 1_767_225_600_000;

/// Tests that count what waits for what hold this alone, those that keep the machine busy together: a request that starves counts as a
/// further round trip.
pub(crate) static QUIET: RwLock<()> = RwLock::new(());

/// Registers the VFS with the linked SQLite.
pub(crate) fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        assert!(litestream_vfs::register(rusqlite::ffi::sqlite3_auto_extension));
        drop(Connection::open_in_memory().unwrap());
    });
}

/// A source database and its replica.
pub(crate) struct World {
    pub(crate) server: S3Server,
    pub(crate) source: Connection,
    path: PathBuf,
    recorder: Recorder,
    time: i64,
    _folder: tempfile::TempDir,
}

impl World {
    /// An empty source and an empty replica.
    pub(crate) fn empty() -> Self {
        Self::with(|path| {
            let source = Connection::open(path).unwrap();
            source.execute_batch("PRAGMA journal_mode = WAL").unwrap();
        })
    }

    /// A source that `build` makes at a path, and an empty replica.
    pub(crate) fn with(build: impl FnOnce(&std::path::Path)) -> Self {
        register();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("source.db");
        build(&path);
        let source = Connection::open(&path).unwrap();
        source.execute_batch("PRAGMA synchronous = OFF").unwrap();
        let server = S3Server::start(S3Options::default()).unwrap();
        server.create_bucket(BUCKET);
        Self { server, source, path, recorder: Recorder::new(), time: START, _folder: folder }
    }

    /// A source of about so many bytes, and an empty replica.
    pub(crate) fn built(options: &DbOptions) -> Self {
        Self::with(|path| build_database(path, options).unwrap())
    }

    /// Runs SQL on the source and puts what it changed as the next TXID.
    pub(crate) fn commit(&mut self, sql: &str) -> Txid {
        self.source.execute_batch(sql).unwrap();
        self.put(Level::ZERO)
    }

    /// Puts the source's changes as the next TXID, on a level.
    pub(crate) fn put(&mut self, level: Level) -> Txid {
        self.source.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        self.time += 1_000;
        let file = self.recorder.record(&self.path, self.time).unwrap();
        let key = format!("db/{:04x}/{}", level.get(), file.name);
        let time = format_time(Timestamp(self.time));
        self.server.put_object(BUCKET, &key, file.bytes, &[("litestream-timestamp", time.as_str())]);
        file.name.max
    }

    /// The time of the newest TXID, in milliseconds.
    pub(crate) fn time(&self) -> i64 {
        self.time
    }

    pub(crate) fn url(&self) -> String {
        format!("s3://{BUCKET}/db?endpoint={}&forcePathStyle=true", self.server.endpoint())
    }

    /// The replica, for compaction and the like.
    pub(crate) fn replica<T>(&self, work: impl AsyncFnOnce(Replica) -> T) -> T {
        let mut config = ReplicaConfig::from_url(&self.url()).unwrap();
        config.set("access-key-id", self.server.access_key()).unwrap();
        config.set("secret-access-key", self.server.secret_key()).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let replica = litestream_storage::open(&config, RetryPolicy::default()).await.unwrap();
            work(replica).await
        })
    }

    /// Compacts a level, deletes what went into it, and leaves the newest file below.
    pub(crate) fn compact(&self, level: u8) {
        self.replica(async |replica| {
            let folder = tempfile::tempdir().unwrap();
            let listing = Listing::full(&replica).await.unwrap();
            let level = Level::new(level).unwrap();
            let options = MergeOptions::default();
            if level == Level::SNAPSHOT {
                snapshot(&replica, &listing, folder.path(), &options).await.unwrap();
                return;
            }
            let Some(made) = compact_into(&replica, &listing, level, folder.path(), &options).await.unwrap() else {
                return;
            };
            let below = listing.level(Level::new(level.get() - 1).unwrap());
            let (_, old) = below.split_last().unwrap();
            let covered: Vec<_> = old.iter().filter(|file| file.name.max <= made.name.max).cloned().collect();
            replica.delete(&covered).await.unwrap();
        });
    }

    /// The URI of the replica as a database, with further parameters such as `&at=…`.
    pub(crate) fn uri(&self, more: &str) -> String {
        let keys = format!("&accessKeyId={}&secretAccessKey={}", self.server.access_key(), self.server.secret_key());
        let url = url_encode(&(self.url() + &keys));
        format!("file:test.db?vfs=litestream&replica_url={url}{more}")
    }

    /// A connection through the VFS.
    pub(crate) fn open(&self, more: &str) -> rusqlite::Result<Connection> {
        open_uri(&self.uri(more))
    }
}

pub(crate) fn open_uri(uri: &str) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags)
}

pub(crate) fn url_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b':' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// One value.
pub(crate) fn text(connection: &Connection, sql: &str) -> rusqlite::Result<String> {
    connection.query_row(sql, [], |row| {
        Ok(match row.get_ref(0)? {
            rusqlite::types::ValueRef::Null => String::new(),
            rusqlite::types::ValueRef::Integer(number) => number.to_string(),
            rusqlite::types::ValueRef::Real(number) => number.to_string(),
            rusqlite::types::ValueRef::Text(text) | rusqlite::types::ValueRef::Blob(text) => {
                String::from_utf8_lossy(text).into_owned()
            }
        })
    })
}

/// Waits for a condition, with a deadline.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}: not within 20 s");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
