//! A database, an application's connections to it, and a replica that applies what was captured.

use std::error::Error;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use litestream_replicate::wal::Log;
use litestream_replicate::{Capture, Clock, Newest, Remote, Settings, Staged};
use ltx::{Decoder, PageSize, Timestamp, Txid};
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tempfile::TempDir;

/// A folder with a database in it.
pub(crate) struct World {
    _folder: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) replica: Replica,
    pub(crate) time: Arc<AtomicI64>,
    /// From which size on snapshots let the log begin anew.
    pub(crate) large: u64,
}

/// What a replica would hold.
#[derive(Default)]
pub(crate) struct Replica {
    pub(crate) newest: Option<Newest>,
    pub(crate) page_size: Option<PageSize>,
    pub(crate) image: Vec<u8>,
    beyond: Vec<u8>,
    /// How many of the files held everything.
    pub(crate) complete: u32,
    pub(crate) files: u32,
}

impl Remote for Replica {
    fn newest(&mut self) -> Result<Option<Newest>, Box<dyn Error + Send + Sync>> {
        Ok(self.newest)
    }
}

impl Replica {
    /// One that has nothing, and is to have what comes behind a TXID.
    pub(crate) fn behind(newest: Newest) -> Self {
        Self { newest: Some(newest), ..Self::default() }
    }

    /// Applies files, each of which must be the next one.
    pub(crate) fn take(&mut self, staged: Vec<Staged>) {
        for staged in staged {
            let before = self.newest.map_or(Txid::ZERO, |newest| newest.txid);
            assert_eq!(staged.txid, before.next(), "no transaction is left out");
            assert!(self.newest.is_none_or(|newest| newest.time < Some(staged.time)), "time goes on");
            self.apply(&staged);
        }
    }

    fn apply(&mut self, staged: &Staged) {
        let bytes = read(&staged.path);
        assert_eq!(bytes.len() as u64, staged.len);
        let mut decoder = Decoder::new(bytes.as_slice()).unwrap();
        let header = *decoder.header();
        assert_eq!((header.min_txid, header.max_txid), (staged.txid, staged.txid));
        assert_eq!((header.commit, header.timestamp), (staged.commit, staged.time));
        assert!(header.node_id != 0);
        assert!(self.page_size.is_none_or(|size| size == header.page_size) || staged.complete);
        self.page_size = Some(header.page_size);
        // What was cut off stays, as it does in a merged file, and what was never written is no page of anybody's.
        let len = header.commit.bytes(header.page_size) as usize;
        self.image.append(&mut self.beyond);
        let known = self.image.len();
        self.image.resize(len.max(known), 0xee);
        self.beyond = self.image.split_off(len);
        let mut page = vec![0; header.page_size.bytes()];
        let mut count = 0;
        while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
            let at = pgno.offset(header.page_size) as usize;
            self.image[at..at + page.len()].copy_from_slice(&page);
            count += 1;
        }
        assert_eq!((count, decoder.trailer().unwrap().file_checksum), (staged.pages, staged.checksum));
        self.files += 1;
        self.complete += u32::from(staged.complete);
        self.newest = Some(Newest { txid: staged.txid, checksum: Some(staged.checksum), time: Some(staged.time) });
    }

    /// Whether the replica is the database, byte for byte.
    pub(crate) fn check(&self, database: &Connection) {
        self.compare(database);
        let check: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
    }

    /// The same for a database that was made by hand, and is not in order.
    pub(crate) fn compare(&self, database: &Connection) {
        let expected = content(database);
        let size = self.page_size.unwrap().bytes();
        assert_eq!(self.image.len() / size, expected.len() / size, "pages");
        let different: Vec<_> = (self.image.chunks(size).zip(expected.chunks(size)).enumerate())
            .filter(|(_, (ours, theirs))| ours != theirs)
            .map(|(slot, _)| slot + 1)
            .collect();
        assert!(different.is_empty(), "pages that differ: {different:?}");
    }
}

/// Says that the running test is left out, and why. Where `LITESTREAM_TESTS_SKIP_NOTHING` is 1 nothing may be left out, and it fails.
pub(crate) fn left_out(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let must = std::env::var_os("LITESTREAM_TESTS_SKIP_NOTHING").is_some_and(|value| value == "1");
    assert!(!must, "{test} may not be left out: {why}");
    println!("{test} is left out: {why}");
}

/// Tells other threads to stop, however its scope is left.
pub(crate) struct Raised<'a>(pub(crate) &'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All pages of a database as a transaction sees them. It is not read through another descriptor: closing that would drop SQLite's locks.
pub(crate) fn content(database: &Connection) -> Vec<u8> {
    let mut database = connect(Path::new(database.path().unwrap()));
    database.execute_batch("BEGIN").unwrap();
    database.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(())).unwrap();
    let content = database.serialize("main").unwrap().to_vec();
    database.execute_batch("COMMIT").unwrap();
    content
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("db");
        Self {
            _folder: folder,
            path,
            replica: Replica::default(),
            time: Arc::new(AtomicI64::new(1_000_000)),
            large: 1 << 30,
        }
    }

    /// A world with a database in WAL mode that has a table, and the application's connection to it.
    pub(crate) fn with_database(page_size: u32) -> (Self, Connection) {
        Self::with(page_size, "NONE")
    }

    pub(crate) fn with(page_size: u32, auto_vacuum: &str) -> (Self, Connection) {
        let world = Self::new();
        let database = Connection::open(&world.path).unwrap();
        database.pragma_update(None, "page_size", page_size).unwrap();
        database.pragma_update(None, "auto_vacuum", auto_vacuum).unwrap();
        database.pragma_update(None, "journal_mode", "wal").unwrap();
        drop(database);
        let database = world.connect();
        database.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)").unwrap();
        (world, database)
    }

    /// Another connection of the application, which never checkpoints unless told to.
    pub(crate) fn connect(&self) -> Connection {
        connect(&self.path)
    }

    pub(crate) fn clock(&self) -> Clock {
        let time = self.time.clone();
        Box::new(move || Timestamp(time.fetch_add(1, Ordering::Relaxed)))
    }

    pub(crate) fn settings(&self) -> Settings {
        let mut settings = settings(&self.path);
        settings.large = self.large;
        settings
    }

    pub(crate) fn start(&mut self) -> Capture {
        self.start_with(self.settings())
    }

    pub(crate) fn start_with(&mut self, settings: Settings) -> Capture {
        let (capture, staged) = Capture::start(settings, self.clock(), &mut self.replica).unwrap();
        self.replica.take(staged);
        capture
    }

    /// A pass, after which the replica must be the database.
    pub(crate) fn pass(&mut self, capture: &mut Capture, database: &Connection) {
        self.replica.take(capture.pass().unwrap());
        self.replica.check(database);
    }

    pub(crate) fn wal(&self) -> PathBuf {
        beside(&self.path, "-wal")
    }

    pub(crate) fn own(&self, name: &str) -> PathBuf {
        self.path.with_file_name(".db-litestream").join(name)
    }

    /// The salts that the log's file begins with.
    #[expect(clippy::disallowed_methods, reason = "a log has no locks")]
    pub(crate) fn salts(&self) -> Vec<u8> {
        let mut head = Vec::new();
        std::fs::File::open(self.wal()).unwrap().take(24).read_to_end(&mut head).unwrap();
        head.split_off(head.len().min(16))
    }
}

pub(crate) fn settings(path: &Path) -> Settings {
    let mut settings = Settings::new(path);
    // The application is in this process, where it does not show.
    settings.truncate_when_alone = false;
    settings
}

pub(crate) fn connect(path: &Path) -> Connection {
    let database = Connection::open(path).unwrap();
    database.busy_timeout(Duration::from_secs(20)).unwrap();
    database.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    database.pragma_update(None, "synchronous", "OFF").unwrap();
    // So that a log survives its application, as it does a crash.
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    database
}

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(crate) fn insert(database: &Connection, rows: u32, bytes: u32) {
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
               INSERT INTO t (body) SELECT randomblob(?2) FROM n";
    database.execute(sql, [rows, bytes]).unwrap();
}

/// Runs a checkpoint of a kind, without waiting for anybody; tells whether it was done, how many frames there were, and how many are in the
/// file.
pub(crate) fn checkpoint(database: &Connection, kind: &str) -> (bool, i64, i64) {
    let sql = format!("PRAGMA wal_checkpoint({kind})");
    database.busy_timeout(Duration::ZERO).unwrap();
    let done = database.query_row(&sql, [], |row| Ok((row.get::<_, i64>(0)? == 0, row.get(1)?, row.get(2)?))).unwrap();
    database.busy_timeout(Duration::from_secs(20)).unwrap();
    done
}

#[expect(clippy::disallowed_methods, reason = "no database, and no index")]
pub(crate) fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "no database, and no index, or nobody has it open")]
pub(crate) fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

/// Writes into a file without cutting it.
#[expect(clippy::disallowed_methods, reason = "a log has no locks")]
pub(crate) fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(bytes).unwrap();
}

/// Frames that continue the log as it is up to `frames`: a transaction as it stands in the file before it is committed.
pub(crate) fn phantom(wal: &Path, frames: u32, pages: &[(u32, u8)], commit: u32) {
    let last = pages.len() as u32;
    for (number, (page, fill)) in (1..).zip(pages) {
        let content = [*fill; 4096];
        phantom_page(wal, frames + number - 1, *page, &content, if number == last { commit } else { 0 });
    }
}

/// One such frame.
pub(crate) fn phantom_page(wal: &Path, frames: u32, page: u32, content: &[u8], commit: u32) {
    let bytes = read(wal);
    let log = Log::open(bytes.as_slice()).unwrap();
    let at = log.walk(log.start(), frames, |_| {}).unwrap();
    assert_eq!(at.frame, frames);
    let mut head = Vec::from(page.to_be_bytes());
    head.extend(commit.to_be_bytes());
    let sum = at.sum.update(log.header.order, &head).update(log.header.order, content);
    head.extend(log.header.salts.0);
    head.extend(sum.0.to_be_bytes());
    head.extend(sum.1.to_be_bytes());
    write_at(wal, log.header.offset(frames + 1), &[&head, content].concat());
}

/// How many frames of a log's file are whole.
pub(crate) fn frames(wal: &Path) -> u32 {
    let bytes = read(wal);
    let Ok(log) = Log::open(bytes.as_slice()) else { return 0 };
    log.walk(log.start(), u32::MAX, |_| {}).unwrap().frame
}
