//! Rules 10 to 16 and 22: writing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{PoisonError, RwLockReadGuard};
use std::time::{Duration, Instant};

use litestream_fixtures::s3::{Down, FaultKind, Operation, S3Options, S3Server, ScriptedFault};
use litestream_hydrate::{RestoreOptions, restore};
use litestream_pageindex::Target;
use litestream_storage::RetryPolicy;
use litestream_storage::config::ReplicaConfig;
use ltx::Txid;
use proptest::prelude::*;
use rusqlite::{Connection, OpenFlags};

use crate::common::{BUCKET, QUIET, eventually, open_uri, register, text, url_encode};

/// Nothing goes up by itself.
const BY_HAND: &str = "&write_enabled=1&sync_interval=1h";

/// A store, and a folder for buffers and restored databases.
pub(crate) struct Desk {
    _busy: RwLockReadGuard<'static, ()>,
    pub(crate) server: S3Server,
    pub(crate) folder: tempfile::TempDir,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self::with(S3Options::default())
    }

    fn with(options: S3Options) -> Self {
        register();
        let server = S3Server::start(options).unwrap();
        server.create_bucket(BUCKET);
        let busy = QUIET.read().unwrap_or_else(PoisonError::into_inner);
        Self { _busy: busy, server, folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn uri(&self, buffer: &str, more: &str) -> String {
        let (server, path) = (&self.server, self.folder.path().join(buffer));
        let keys = format!("&accessKeyId={}&secretAccessKey={}", server.access_key(), server.secret_key());
        let url = url_encode(&format!("s3://{BUCKET}/db?endpoint={}&forcePathStyle=true{keys}", server.endpoint()));
        format!("file:my.db?vfs=litestream&replica_url={url}&buffer_path={}{more}", url_encode(path.to_str().unwrap()))
    }

    fn open(&self, buffer: &str, more: &str) -> Connection {
        open_uri(&self.uri(buffer, more)).unwrap()
    }

    fn writer(&self) -> Connection {
        self.open("buffer", BY_HAND)
    }

    /// What a restore gives, of the newest or another transaction.
    pub(crate) fn restored(&self, txid: Option<&str>) -> Connection {
        let server = &self.server;
        let url = format!("s3://{BUCKET}/db?endpoint={}&forcePathStyle=true", server.endpoint());
        let mut config = ReplicaConfig::from_url(&url).unwrap();
        config.set("access-key-id", server.access_key()).unwrap();
        config.set("secret-access-key", server.secret_key()).unwrap();
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        let path = folder.join("restored.db");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let replica = litestream_storage::open(&config, RetryPolicy::default()).await.unwrap();
            let target = txid.map_or(Target::Latest, |txid| Target::Txid(txid.parse::<Txid>().unwrap()));
            restore(&replica, &path, &RestoreOptions { target, ..RestoreOptions::default() }).await.unwrap();
        });
        let restored = Connection::open(&path).unwrap();
        assert_eq!(text(&restored, "PRAGMA integrity_check").unwrap(), "ok");
        restored
    }

    fn buffer_files(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name.starts_with("buffer"));
        names.sort();
        names
    }
}

fn sync(connection: &Connection) -> String {
    text(connection, "PRAGMA litestream_sync").unwrap()
}

fn stat(connection: &Connection, name: &str) -> u64 {
    let stats = text(connection, "PRAGMA litestream_stats").unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {stats}")).parse().unwrap()
}

/// Everything that a database says, schema and rows.
fn dump(connection: &Connection) -> String {
    let mut all = String::new();
    let mut tables =
        connection.prepare("SELECT name, coalesce(sql, '') FROM sqlite_master ORDER BY name, type").unwrap();
    let rows = tables.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))).unwrap();
    for (name, sql) in rows.map(Result::unwrap) {
        all += &format!("{name}: {sql}\n");
        if sql.starts_with("CREATE TABLE") {
            let select =
                format!("SELECT quote(rowid) || ' ' || quote(n) || ' ' || quote(text) FROM \"{name}\" ORDER BY rowid");
            let mut rows = connection.prepare(&select).unwrap();
            let rows = rows.query_map([], |row| row.get::<_, String>(0)).unwrap();
            rows.map(Result::unwrap).for_each(|row| all += &(row + "\n"));
        }
    }
    all
}

const TABLE: &str = "CREATE TABLE t (n INTEGER PRIMARY KEY, text)";

fn fill(connection: &Connection, from: u32, to: u32) {
    let sql = format!(
        "WITH RECURSIVE s(n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM s WHERE n < {to})
         INSERT INTO t SELECT n, hex(randomblob(100)) FROM s"
    );
    connection.execute_batch(&sql).unwrap();
}

#[test]
fn rule_10_a_new_database_is_written_and_restored() {
    let desk = Desk::new();
    let writer = desk.writer();
    writer.execute_batch(TABLE).unwrap();
    assert_eq!(text(&writer, "PRAGMA litestream_txid").unwrap(), "0000000000000000");
    fill(&writer, 1, 1000);
    assert_eq!(text(&writer, "SELECT count(*) FROM t").unwrap(), "1000");
    assert_eq!(sync(&writer), "0000000000000001");
    let first = dump(&writer);
    writer.execute_batch("BEGIN; DELETE FROM t WHERE n % 2; ROLLBACK; UPDATE t SET text = 'new' WHERE n < 10").unwrap();
    assert_eq!(sync(&writer), "0000000000000002");
    let second = dump(&writer);
    // Nothing new, no upload; empty transactions are nothing new.
    writer.execute_batch("BEGIN IMMEDIATE; COMMIT; BEGIN; SELECT 1; COMMIT").unwrap();
    assert_eq!(sync(&writer), "0000000000000002");
    writer.execute_batch("DELETE FROM t WHERE n > 500").unwrap();
    let third = dump(&writer);
    assert_eq!(text(&writer, "PRAGMA integrity_check").unwrap(), "ok");
    writer.close().unwrap();
    for (txid, content) in [(1, first), (2, second), (3, third)] {
        assert!(dump(&desk.restored(Some(&format!("{txid:016x}")))) == content, "transaction {txid} differs");
    }
    assert_eq!(desk.buffer_files(), ["buffer"], "all is uploaded");
}

#[test]
fn rule_10_committed_transactions_go_up_by_themselves_and_a_writer_does_not_poll() {
    let desk = Desk::new();
    let writer = desk.open("buffer", "&write_enabled=1&sync_interval=100ms&poll_interval=50ms");
    writer.execute_batch(TABLE).unwrap();
    eventually("the first upload", || text(&writer, "PRAGMA litestream_txid").unwrap() != "0000000000000000");
    let lists = desk.server.stats().count(Operation::ListObjectsV2);
    for n in 0..20 {
        writer.execute("INSERT INTO t VALUES (?, 'x')", [n]).unwrap();
        let started = Instant::now();
        eventually("time to pass", || started.elapsed() > Duration::from_millis(30));
    }
    eventually("all uploads", || stat(&writer, "transactions_pending") == 0);
    assert_eq!(desk.server.stats().count(Operation::ListObjectsV2), lists);
    let uploads = stat(&writer, "uploads");
    assert!((3..=15).contains(&uploads), "{uploads} uploads in 0.6 s with one each 0.1 s");
    assert_eq!(dump(&desk.restored(None)), dump(&writer));
}

#[test]
fn rule_10_a_first_write_needs_only_the_pages_it_touches() {
    let desk = Desk::new();
    {
        let writer = desk.writer();
        writer.execute_batch(TABLE).unwrap();
        fill(&writer, 1, 60_000);
        sync(&writer);
        writer.close().unwrap();
    }
    let whole: u64 =
        desk.server.keys(BUCKET).iter().map(|key| desk.server.object(BUCKET, key).unwrap().len() as u64).sum();
    let before = desk.server.stats();
    let writer = desk.open("elsewhere", &format!("{BY_HAND}&poll_interval=7s"));
    writer.execute_batch("INSERT INTO t VALUES (100000, 'first')").unwrap();
    let read = desk.server.stats().bytes_out - before.bytes_out;
    assert!(read < whole / 4, "{read} of {whole} bytes were read for one insert");
    writer.close().unwrap();
    assert_eq!(text(&desk.restored(None), "SELECT text FROM t WHERE n = 100000").unwrap(), "first");
}

#[test]
fn rule_10_journals_of_every_kind_stay_in_memory_and_roll_back() {
    let desk = Desk::new();
    let writer = desk.writer();
    writer.execute_batch(TABLE).unwrap();
    fill(&writer, 1, 3000);
    let before = dump(&writer);
    for mode in ["delete", "truncate", "persist", "memory"] {
        assert_eq!(text(&writer, &format!("PRAGMA journal_mode = {mode}")).unwrap(), mode);
        // So many pages that they spill out of the cache before the end.
        writer.execute_batch("PRAGMA cache_size = 10; BEGIN; UPDATE t SET text = hex(randomblob(200))").unwrap();
        writer.execute_batch("SAVEPOINT a; DELETE FROM t WHERE n % 3 = 0; ROLLBACK TO a; RELEASE a; ROLLBACK").unwrap();
        assert!(dump(&writer) == before, "{mode}");
        writer.execute_batch("BEGIN; UPDATE t SET text = 'kept' WHERE n = 7; SAVEPOINT a; UPDATE t SET text = hex(randomblob(300)); ROLLBACK TO a; COMMIT").unwrap();
        assert_eq!(text(&writer, "SELECT count(*) FROM t WHERE text = 'kept'").unwrap(), "1", "{mode}");
        writer.execute_batch("UPDATE t SET text = (SELECT text FROM t WHERE n = 8) WHERE n = 7").unwrap();
        writer.execute_batch("DELETE FROM t; INSERT INTO t VALUES (1, 'x')").unwrap();
        writer.execute_batch("DELETE FROM t").unwrap();
        fill(&writer, 1, 3000);
        sync(&writer);
        assert!(dump(&desk.restored(None)) == dump(&writer), "{mode}");
        writer.execute_batch("DELETE FROM t").unwrap();
        before.lines().filter_map(|line| line.split_once(" ")).filter(|(n, _)| n.parse::<u32>().is_ok()).for_each(
            |(_, rest)| {
                writer.execute_batch(&format!("INSERT INTO t VALUES ({})", rest.replacen(' ', ", ", 1))).unwrap();
            },
        );
        assert!(dump(&writer) == before, "{mode}");
    }
    assert!(desk.buffer_files().iter().all(|name| !name.contains("journal")));
    assert!(!Path::new("my.db-journal").exists());
}

#[test]
fn rule_14_page_sizes_cannot_change_and_the_error_says_so() {
    let desk = Desk::new();
    let writer = desk.writer();
    writer.execute_batch(TABLE).unwrap();
    fill(&writer, 1, 100);
    let before = dump(&writer);
    let error = writer.execute_batch("PRAGMA page_size = 8192; VACUUM").unwrap_err();
    assert!(error.to_string().contains("disk I/O error"), "{error}");
    let why = text(&writer, "PRAGMA litestream_error").unwrap();
    assert!(why.contains("cannot change from 4096 to 8192"), "{why}");
    assert!(dump(&writer) == before);
    writer.execute_batch("PRAGMA page_size = 4096; VACUUM").unwrap();
    sync(&writer);
    assert!(dump(&desk.restored(None)) == before);
}

#[test]
fn rule_11_what_is_not_uploaded_is_there_after_a_restart_and_goes_up() {
    let desk = Desk::new();
    let writer = desk.writer();
    writer.execute_batch(TABLE).unwrap();
    fill(&writer, 1, 200);
    sync(&writer);
    desk.server.set_down(Some(Down::Refuse)).unwrap();
    writer.execute_batch("INSERT INTO t VALUES (1000, 'offline')").unwrap();
    writer.execute_batch("UPDATE t SET text = 'changed' WHERE n < 50").unwrap();
    let content = dump(&writer);
    drop(writer);
    desk.server.set_down(None).unwrap();
    let other = desk.open("other", "&poll_interval=3s");
    assert_eq!(text(&other, "SELECT count(*) FROM t WHERE n = 1000").unwrap(), "0", "it cannot be there yet");
    let writer = desk.writer();
    assert!(dump(&writer) == content, "what was committed is there at once");
    assert_eq!(sync(&writer), "0000000000000002");
    assert!(dump(&desk.restored(None)) == content);
    writer.close().unwrap();
    assert_eq!(desk.buffer_files(), ["buffer"]);
}

#[test]
fn rule_11_one_buffer_has_one_writer_and_one_replica() {
    let desk = Desk::new();
    let writer = desk.writer();
    writer.execute_batch(TABLE).unwrap();
    let error = open_uri(&desk.uri("else", BY_HAND)).unwrap_err();
    assert!(error.to_string().contains("unable to open"), "{error}");
    assert!(
        text(&writer, "PRAGMA litestream_error").unwrap().contains("writes the database with another buffer already")
    );
    let elsewhere = desk.uri("buffer", BY_HAND).replace(&url_encode("/db?"), &url_encode("/db2?"));
    open_uri(&elsewhere).unwrap_err();
    let why = text(&writer, "PRAGMA litestream_error").unwrap();
    assert!(why.contains("the write buffer") && why.contains("used by another"), "{why}");
    desk.server.set_down(Some(Down::Refuse)).unwrap();
    drop(writer);
    desk.server.set_down(None).unwrap();
    open_uri(&elsewhere).unwrap_err();
    let why = text(&Connection::open_in_memory().unwrap(), "SELECT litestream_error()").unwrap();
    assert!(why.contains("holds writes to s3://bkt/db"), "{why}");
}

#[test]
fn rule_12_of_two_writers_one_goes_on_and_the_other_learns_by_whom() {
    let desk = Desk::new();
    let first = desk.writer();
    first.execute_batch(TABLE).unwrap();
    sync(&first);
    let second = desk.open("second", &format!("{BY_HAND}&poll_interval=2s"));
    first.execute_batch("INSERT INTO t VALUES (1, 'first')").unwrap();
    second.execute_batch("INSERT INTO t VALUES (1, 'second')").unwrap();
    assert_eq!(sync(&second), "0000000000000002");
    let error = text(&first, "PRAGMA litestream_sync").unwrap_err().to_string();
    assert!(error.contains("fenced: transaction 0000000000000002 was written by writer "), "{error}");
    assert!(error.contains(&std::process::id().to_string()) && error.contains("buffer"), "{error}");
    let error = first.execute_batch("INSERT INTO t VALUES (2, 'first')").unwrap_err().to_string();
    assert!(error.contains("disk I/O error"), "{error}");
    // It still reads what it has, and keeps it.
    assert_eq!(text(&first, "SELECT text FROM t").unwrap(), "first");
    assert!(text(&first, "PRAGMA litestream_error").unwrap().contains("fenced"));
    drop(first);
    assert!(desk.buffer_files().len() > 1, "the buffer is kept");
    second.execute_batch("INSERT INTO t VALUES (3, 'second')").unwrap();
    sync(&second);
    let again = desk.writer();
    assert_eq!(text(&again, "SELECT group_concat(text) FROM t").unwrap(), "second,second");
    let error = again.execute_batch("INSERT INTO t VALUES (9, 'no')").unwrap_err().to_string();
    assert!(error.contains("disk I/O error"), "{error}");
    assert_eq!(text(&desk.restored(None), "SELECT group_concat(text) FROM t").unwrap(), "second,second");
}

#[test]
fn rule_12_a_lost_answer_is_no_other_writer() {
    let desk = Desk::new();
    let writer = desk.writer();
    writer.execute_batch(TABLE).unwrap();
    sync(&writer);
    for n in 0..5 {
        writer.execute("INSERT INTO t VALUES (?, 'x')", [n]).unwrap();
        // The object is stored, and the answer cut.
        let fault = ScriptedFault { times: 1, kind: FaultKind::Status(503).after_apply(), filter: None };
        desk.server.set_faults(litestream_fixtures::s3::Faults {
            script: vec![ScriptedFault {
                filter: Some(std::sync::Arc::new(|info: &litestream_fixtures::s3::RequestInfo| {
                    info.operation == Operation::PutObject
                })),
                ..fault
            }],
            ..Default::default()
        });
        assert_eq!(sync(&writer), format!("{:016x}", n + 2));
    }
    assert!(dump(&desk.restored(None)) == dump(&writer));
}

#[test]
fn rule_13_trouble_shows_and_commits_go_on_until_the_deadline() {
    let desk = Desk::new();
    let writer = desk.open("buffer", "&write_enabled=1&sync_interval=50ms&sync_deadline=3s&shutdown_sync_timeout=10ms");
    writer.execute_batch(TABLE).unwrap();
    sync(&writer);
    desk.server.set_down(Some(Down::Refuse)).unwrap();
    let started = Instant::now();
    let mut commits = 0;
    let refused = loop {
        match writer.execute("INSERT INTO t VALUES (?, 'x')", [commits]) {
            Ok(_) => commits += 1,
            Err(error) => break error,
        }
        if commits == 20 {
            eventually("lag", || text(&writer, "PRAGMA litestream_lag").unwrap().parse::<f64>().unwrap() > 0.5);
            assert_eq!(stat(&writer, "transactions_pending"), 20);
        }
        std::thread::park_timeout(Duration::from_millis(5));
        assert!(started.elapsed() < Duration::from_secs(30), "the deadline has no effect");
    };
    assert!(started.elapsed() > Duration::from_millis(2_500) && commits > 20);
    assert!(refused.to_string().contains("disk I/O error"), "{refused}");
    assert!(text(&writer, "PRAGMA litestream_error").unwrap().contains("sync_deadline"));
    desk.server.set_down(None).unwrap();
    eventually("everything to go up", || stat(&writer, "transactions_pending") == 0);
    writer.execute_batch("INSERT INTO t VALUES (100000, 'again')").unwrap();
    sync(&writer);
    assert!(dump(&desk.restored(None)) == dump(&writer));
}

#[test]
fn rule_15_connections_share_view_and_buffer() {
    let desk = Desk::new();
    let (one, two) = (desk.writer(), desk.writer());
    one.execute_batch(TABLE).unwrap();
    assert_eq!(text(&two, "SELECT count(*) FROM t").unwrap(), "0");
    // A reader keeps what it sees, and does not hold up the writer.
    two.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    one.execute_batch("INSERT INTO t VALUES (1, 'one')").unwrap();
    sync(&one);
    assert_eq!(text(&two, "SELECT count(*) FROM t").unwrap(), "0");
    let error = two.execute_batch("INSERT INTO t VALUES (2, 'two')").unwrap_err();
    assert_eq!(error.sqlite_error().unwrap().extended_code, rusqlite::ffi::SQLITE_BUSY_SNAPSHOT, "{error}");
    two.execute_batch("ROLLBACK; INSERT INTO t VALUES (2, 'two')").unwrap();
    // One writes at a time.
    one.execute_batch("BEGIN IMMEDIATE").unwrap();
    two.busy_timeout(Duration::ZERO).unwrap();
    let error = two.execute_batch("INSERT INTO t VALUES (3, 'two')").unwrap_err();
    assert_eq!(error.sqlite_error().unwrap().extended_code, rusqlite::ffi::SQLITE_BUSY, "{error}");
    assert_eq!(text(&two, "SELECT count(*) FROM t").unwrap(), "2");
    one.execute_batch("COMMIT").unwrap();
    // A writer that goes away in the middle leaves nothing.
    one.execute_batch("BEGIN; DELETE FROM t").unwrap();
    one.close().unwrap();
    assert_eq!(text(&two, "SELECT group_concat(text) FROM t").unwrap(), "one,two");
    two.execute_batch("INSERT INTO t VALUES (3, 'two')").unwrap();
}

#[test]
fn rule_15_no_update_is_lost_among_threads() {
    let desk = Desk::new();
    let writer = desk.open("buffer", "&write_enabled=1&sync_interval=20ms");
    writer.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, text); INSERT INTO t VALUES (1, 0)").unwrap();
    let uri = desk.uri("buffer", "&write_enabled=1&sync_interval=20ms");
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let uri = &uri;
            scope.spawn(move || {
                let connection = open_uri(uri).unwrap();
                connection.busy_timeout(Duration::from_secs(30)).unwrap();
                for n in 0..50 {
                    let begin = if (thread + n) % 2 == 0 { "BEGIN IMMEDIATE" } else { "BEGIN" };
                    loop {
                        let done = connection
                            .execute_batch(&format!("{begin}; UPDATE t SET text = text + 1 WHERE n = 1; COMMIT"));
                        match done {
                            Ok(()) => break,
                            Err(error) => {
                                assert!(error.to_string().contains("locked"), "{error}");
                                let _ = connection.execute_batch("ROLLBACK");
                            }
                        }
                    }
                }
            });
        }
    });
    assert_eq!(text(&writer, "SELECT text FROM t").unwrap(), "300");
    sync(&writer);
    assert_eq!(text(&desk.restored(None), "SELECT text FROM t").unwrap(), "300");
}

#[test]
fn rule_16_writing_is_switched_on_and_off_at_run_time() {
    let desk = Desk::new();
    let writer = desk.writer();
    writer.execute_batch(TABLE).unwrap();
    sync(&writer);
    writer.close().unwrap();
    let connection = desk.open("buffer", "&sync_interval=1h");
    let refused = |connection: &Connection| {
        let error = connection.execute_batch("INSERT INTO t VALUES (1, 'no')").unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::ReadOnly), "{error}");
    };
    refused(&connection);
    assert_eq!(text(&connection, "PRAGMA litestream_write_enabled").unwrap(), "0");
    assert_eq!(text(&connection, "PRAGMA litestream_write_enabled = on").unwrap(), "1");
    connection.execute_batch("BEGIN; INSERT INTO t VALUES (1, 'yes')").unwrap();
    for value in ["on", "off"] {
        let error = text(&connection, &format!("PRAGMA litestream_write_enabled = {value}")).unwrap_err().to_string();
        assert!(error.contains("inside a transaction"), "{error}");
    }
    connection.execute_batch("COMMIT").unwrap();
    assert_eq!(text(&connection, "PRAGMA litestream_write_enabled = off").unwrap(), "0");
    refused(&connection);
    assert_eq!(text(&connection, "SELECT text FROM t").unwrap(), "yes");
    assert_eq!(text(&desk.restored(None), "SELECT text FROM t").unwrap(), "yes", "it was uploaded");
    // Another writes meanwhile; what it wrote is seen before this one writes again.
    let other = desk.open("other", &format!("{BY_HAND}&poll_interval=3s"));
    other.execute_batch("INSERT INTO t VALUES (2, 'other')").unwrap();
    other.close().unwrap();
    assert_eq!(text(&connection, "PRAGMA litestream_write_enabled = on").unwrap(), "1");
    connection.execute_batch("INSERT INTO t VALUES (3, 'again')").unwrap();
    sync(&connection);
    assert_eq!(text(&desk.restored(None), "SELECT group_concat(text) FROM t").unwrap(), "yes,other,again");
    // The past is not written.
    text(&connection, "PRAGMA litestream_time = 0000000000000001").unwrap();
    refused(&connection);
    text(&connection, "PRAGMA litestream_time = latest").unwrap();
    connection.execute_batch("INSERT INTO t VALUES (4, 'now')").unwrap();
    let at = desk.open("buffer", "&write_enabled=1&at=0000000000000001");
    refused(&at);
    let readonly = Connection::open_with_flags(
        desk.uri("buffer", BY_HAND),
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI,
    );
    refused(&readonly.unwrap());
}

#[test]
fn rule_22_exclusive_wal_mode_does_not_wedge_the_connection() {
    let desk = Desk::new();
    let writer = desk.writer();
    assert_eq!(text(&writer, "PRAGMA locking_mode = EXCLUSIVE").unwrap(), "exclusive");
    assert_eq!(text(&writer, "PRAGMA journal_mode = WAL").unwrap(), "delete");
    writer.execute_batch(TABLE).unwrap();
    for n in 0..5 {
        writer.execute("INSERT INTO t VALUES (?, 'x')", [n]).unwrap();
    }
    let reader = desk.open("buffer", "&sync_interval=1h");
    assert_eq!(text(&reader, "SELECT count(*) FROM t").unwrap(), "5");
    writer.execute("INSERT INTO t VALUES (?, 'x')", [5]).unwrap();
    assert_eq!(text(&reader, "SELECT count(*) FROM t").unwrap(), "6", "the counter must have moved");
    sync(&writer);
    assert!(dump(&desk.restored(None)) == dump(&writer));
    let page_1 = desk.restored(None);
    assert_eq!(text(&page_1, "PRAGMA journal_mode").unwrap(), "delete");
}

/// What a random client does.
#[derive(Clone, Debug)]
enum Step {
    Insert(u16, u16),
    Delete(u16),
    Update(u16, u16),
    RolledBack(u16),
    Vacuum,
    IncrementalVacuum,
    Grow,
    Sync,
    Reopen,
    Index,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<u16>(), 0..9_000u16).prop_map(|(n, len)| Step::Insert(n % 400, len)),
        3 => any::<u16>().prop_map(|n| Step::Delete(n % 400)),
        4 => (any::<u16>(), 0..3_000u16).prop_map(|(n, len)| Step::Update(n % 400, len)),
        1 => any::<u16>().prop_map(|n| Step::RolledBack(n % 400)),
        1 => Just(Step::Vacuum),
        2 => Just(Step::IncrementalVacuum),
        1 => Just(Step::Grow),
        4 => Just(Step::Sync),
        1 => Just(Step::Reopen),
        1 => Just(Step::Index),
    ]
}

impl Step {
    fn sql(&self) -> String {
        let blob = |len: &u16, n: &u16| format!("substr(hex(zeroblob({len})) || {n}, 1, {len})");
        match self {
            Self::Insert(n, len) => format!("INSERT OR REPLACE INTO t VALUES ({n}, {})", blob(len, n)),
            Self::Delete(n) => format!("DELETE FROM t WHERE n BETWEEN {n} AND {}", n + 40),
            Self::Update(n, len) => format!("UPDATE t SET text = {} WHERE n >= {n}", blob(len, n)),
            Self::RolledBack(n) => format!(
                "BEGIN; DELETE FROM t WHERE n < {n}; SAVEPOINT a; UPDATE t SET text = 'gone'; ROLLBACK TO a; ROLLBACK"
            ),
            Self::Vacuum => "VACUUM".to_owned(),
            Self::IncrementalVacuum => "PRAGMA incremental_vacuum(7)".to_owned(),
            // Pages that are freed in the transaction that made them are never written.
            Self::Grow => "PRAGMA secure_delete = 0; BEGIN; CREATE TABLE big (n, text); INSERT INTO big VALUES (1, zeroblob(200000)); DROP TABLE big; COMMIT".to_owned(),
            Self::Index => "DROP INDEX IF EXISTS i; CREATE INDEX i ON t (text, n)".to_owned(),
            Self::Sync | Self::Reopen => String::new(),
        }
    }
}

/// Does the steps through the VFS and on an ordinary database, and compares the two at the end and at every transaction that was uploaded.
fn same_as_an_ordinary_database(page_size: u32, auto_vacuum: u8, steps: &[Step]) {
    let desk = Desk::new();
    let plain = Connection::open(desk.folder.path().join("plain.db")).unwrap();
    let mut writer = desk.writer();
    let begin = format!("PRAGMA page_size = {page_size}; PRAGMA auto_vacuum = {auto_vacuum}; {TABLE}");
    let mut known = BTreeMap::new();
    for connection in [&writer, &plain] {
        connection.execute_batch(&format!("{begin}; PRAGMA cache_size = 20")).unwrap();
    }
    for step in steps {
        match step {
            Step::Sync => {
                known.insert(sync(&writer), dump(&plain));
            }
            Step::Reopen => {
                writer.close().unwrap();
                writer = desk.writer();
                writer.execute_batch("PRAGMA cache_size = 20").unwrap();
                known.insert(text(&writer, "PRAGMA litestream_txid").unwrap(), dump(&plain));
            }
            step => {
                for connection in [&writer, &plain] {
                    connection.execute_batch(&step.sql()).unwrap_or_else(|error| panic!("{step:?}: {error}"));
                }
            }
        }
    }
    assert!(dump(&writer) == dump(&plain), "the databases differ");
    assert_eq!(text(&writer, "PRAGMA integrity_check").unwrap(), "ok");
    assert_eq!(text(&writer, "PRAGMA page_size").unwrap(), page_size.to_string());
    known.insert(sync(&writer), dump(&plain));
    for (txid, content) in known {
        let restored = desk.restored(Some(&txid));
        assert!(dump(&restored) == content, "transaction {txid} differs");
        assert_eq!(text(&restored, "PRAGMA page_size").unwrap(), page_size.to_string());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn rule_14_it_is_as_an_ordinary_database(
        page_size in prop::sample::select(vec![512u32, 1024, 4096, 8192, 65536]),
        auto_vacuum in 0..3u8,
        steps in prop::collection::vec(step(), 5..60),
    ) {
        same_as_an_ordinary_database(page_size, auto_vacuum, &steps);
    }
}

#[test]
fn rule_14_every_page_size_with_every_kind_of_step() {
    let steps = [
        Step::Insert(1, 9_000),
        Step::Insert(2, 40),
        Step::Grow,
        Step::Sync,
        Step::Insert(3, 8_000),
        Step::Index,
        Step::Update(0, 2_000),
        Step::Sync,
        Step::Delete(1),
        Step::IncrementalVacuum,
        Step::Sync,
        Step::Insert(9, 9_000),
        Step::Vacuum,
        Step::Reopen,
        Step::RolledBack(300),
        Step::Insert(100, 3),
        Step::Grow,
        Step::Vacuum,
        Step::Insert(5, 5_000),
    ];
    for page_size in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        for auto_vacuum in 0..3 {
            same_as_an_ordinary_database(page_size, auto_vacuum, &steps);
        }
    }
}

/// What a process of its own does, for those who kill it: it inserts rows for ever, and says of each when it was committed.
#[test]
#[ignore = "runs as a process of its own, started by others"]
fn child() {
    let Ok(uri) = std::env::var("WRITING_TEST_URI") else { return };
    register();
    let writer = open_uri(&uri).unwrap();
    writer.execute_batch("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, text)").unwrap();
    loop {
        let n: i64 = text(&writer, "SELECT coalesce(max(n), 0) + 1 FROM t").unwrap().parse().unwrap();
        writer.execute("INSERT INTO t VALUES (?, hex(randomblob(300)))", [n]).unwrap();
        println!("child: committed {n}");
        if n % 40 == 0 {
            println!("child: durable {n} {}", sync(&writer));
        }
    }
}

/// Writes, has that uploaded, and is idle from then on.
#[test]
#[ignore = "runs as a process of its own, started by others"]
fn idle_child() {
    let Ok(uri) = std::env::var("WRITING_TEST_URI") else { return };
    register();
    let writer = open_uri(&uri).unwrap();
    writer.execute_batch(TABLE).unwrap();
    sync(&writer);
    writer.execute_batch("INSERT INTO t VALUES (1, 'idle')").unwrap();
    println!("child: durable {}", sync(&writer));
    loop {
        std::thread::park();
    }
}

#[test]
fn rule_11_what_is_uploaded_is_not_missed_after_kill_9_when_others_have_gone_on() {
    use std::io::{BufRead, BufReader};
    let desk = Desk::new();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writing::idle_child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("WRITING_TEST_URI", desk.uri("buffer", BY_HAND))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(output.any(|line| line.contains("child: durable 0000000000000002")));
    let buffer = desk.folder.path().join("buffer");
    eventually("the buffer to say that all is uploaded", || {
        litestream_vfs::write::buffer::inspect(&buffer).unwrap().pending.is_empty()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    // Another takes over, and what would prove that the last file was ours is merged into others.
    let last = format!("db/0000/{0:016x}-{0:016x}.ltx", 2);
    let more = "&write_enabled=1&sync_interval=10ms&compaction_enabled=true&compaction_levels=100ms,1s&l0_retention=200ms&poll_interval=2s";
    let other = desk.open("other", more);
    let mut n = 1;
    eventually("the file to be merged away", || {
        n += 1;
        other.execute("INSERT INTO t VALUES (?, 'other')", [n]).unwrap();
        sync(&other);
        !desk.server.keys(BUCKET).contains(&last)
    });
    other.close().unwrap();
    let again = desk.writer();
    again.execute_batch("INSERT INTO t VALUES (0, 'again')").unwrap();
    sync(&again);
    assert_eq!(text(&desk.restored(None), "SELECT count(*) FROM t").unwrap(), (n + 1).to_string());
}

/// Lets a child write for a while, kills it, and returns the last rows that were committed and durable.
fn write_and_die(uri: &str, after: Duration) -> (i64, i64) {
    use std::io::{BufRead, BufReader};
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writing::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("WRITING_TEST_URI", uri)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let killer = std::thread::spawn(move || {
        std::thread::park_timeout(after);
        child.kill().unwrap();
        child.wait().unwrap();
    });
    let (mut committed, mut durable) = (0, 0);
    for line in output.lines().map_while(Result::ok) {
        let words: Vec<&str> = line.rsplit("child: ").next().unwrap().split(' ').collect();
        match words[..] {
            ["committed", n] => committed = n.parse().unwrap_or(committed),
            ["durable", n, _] => durable = n.parse().unwrap_or(durable),
            _ => {}
        }
    }
    killer.join().unwrap();
    (committed, durable)
}

#[test]
fn rule_11_a_commit_survives_kill_9_here_and_a_synced_one_everywhere() {
    let desk = Desk::new();
    let uri = desk.uri("buffer", "&write_enabled=1&sync_interval=30ms");
    let (mut committed, mut durable) = (0, 0);
    for round in 0..12 {
        let elsewhere = format!("elsewhere-{round}");
        let (last, synced) = write_and_die(&uri, Duration::from_millis(250 + 67 * round));
        (committed, durable) = (last.max(committed), synced.max(durable));
        // Another machine has what was synced, and no half of anything.
        let other = desk.open(&elsewhere, &format!("&poll_interval={}ms", 100 + round));
        let there: i64 = text(&other, "SELECT coalesce(max(n), 0) FROM t").unwrap_or("0".to_owned()).parse().unwrap();
        assert!(there >= durable, "round {round}: {durable} was durable, {there} is there");
        other.close().unwrap();
        // This machine has all that was committed; perhaps the one, too, whose word did not get out any more.
        let here = desk.open("buffer", "&write_enabled=1&sync_interval=1h");
        let count: i64 = text(&here, "SELECT count(*) FROM t").unwrap_or("0".to_owned()).parse().unwrap();
        assert!(
            count >= committed && count <= committed + 1,
            "round {round}: {committed} were committed, {count} are there"
        );
        assert_eq!(text(&here, "PRAGMA integrity_check").unwrap(), "ok");
        if round % 2 == 0 {
            sync(&here);
            assert_eq!(text(&desk.restored(None), "SELECT count(*) FROM t").unwrap(), count.to_string());
        }
        here.close().unwrap();
    }
    assert!(committed > 100 && durable > 0, "{committed} {durable}");
}

/// Another writer goes on, and its first file is merged and deleted, so that a sleeper's next number is free again; and more than
/// a second passes by the store's clock. Returns the writer, and the key that is free.
fn another_goes_on(desk: &Desk, more: &str) -> (Connection, String) {
    let other = desk.open("other", &format!("{BY_HAND}{more}"));
    for n in 0..4 {
        other.execute("INSERT INTO t VALUES (?, 'other')", [n]).unwrap();
        sync(&other);
    }
    let gone = format!("db/0000/{0:016x}-{0:016x}.ltx", 2);
    let merged = desk.server.object(BUCKET, &gone).unwrap();
    desk.server.put_object(BUCKET, &gone.replace("/0000/", "/0001/"), merged, &[]);
    assert!(desk.server.remove_object(BUCKET, &gone));
    let started = Instant::now();
    eventually("the window to pass", || started.elapsed() > Duration::from_millis(2_500));
    (other, gone)
}

#[test]
fn rule_12_a_writer_that_slept_too_long_finds_out() {
    let desk = Desk::new();
    let sleeper = desk.open("sleeper", "&write_enabled=1&sync_interval=1h&fence_window=1s");
    sleeper.execute_batch(TABLE).unwrap();
    assert_eq!(sync(&sleeper), "0000000000000001");
    let (_other, gone) = another_goes_on(&desk, "&poll_interval=2s");
    sleeper.execute_batch("INSERT INTO t VALUES (100, 'sleeper')").unwrap();
    let error = text(&sleeper, "PRAGMA litestream_sync").unwrap_err().to_string();
    assert!(error.contains("fenced: transaction"), "{error}");
    assert!(!desk.server.keys(BUCKET).contains(&gone), "what was put too late is deleted");
    sleeper.execute_batch("INSERT INTO t VALUES (101, 'sleeper')").unwrap_err();
}

#[test]
fn rule_12_a_writer_that_slept_since_it_was_opened_finds_out() {
    let desk = Desk::new();
    let writer = desk.writer();
    writer.execute_batch(TABLE).unwrap();
    writer.close().unwrap();
    let sleeper = desk.open("sleeper", &format!("{BY_HAND}&poll_interval=2s&fence_window=1s"));
    sleeper.execute_batch("INSERT INTO t VALUES (100, 'sleeper')").unwrap();
    let (_other, gone) = another_goes_on(&desk, "&poll_interval=3s");
    let error = text(&sleeper, "PRAGMA litestream_sync").unwrap_err().to_string();
    assert!(error.contains("fenced: transaction 0000000000000003 was written by writer "), "{error}");
    assert!(!desk.server.keys(BUCKET).contains(&gone), "what was put too late is deleted");
}

#[test]
fn rule_12_a_store_that_ignores_conditions_is_refused() {
    let desk = Desk::with(S3Options { ignore_preconditions: true, ..S3Options::default() });
    // Left behind when the store was another one.
    desk.server.put_object(BUCKET, "db/litestream-probe", "first", &[]);
    let writer = desk.writer();
    // Committed or refused, as the answer comes.
    let early = writer.execute_batch(TABLE).is_ok();
    let error = text(&writer, "PRAGMA litestream_sync").unwrap_err().to_string();
    assert!(error.contains("ignores If-None-Match") && error.contains("unfenced=true"), "{error}");
    drop(writer);
    assert_eq!(desk.server.keys(BUCKET), [""; 0], "nothing may be put where another's file could be overwritten");
    let writer = desk.open("buffer", &format!("{BY_HAND}&unfenced=true&poll_interval=2s"));
    if !early {
        writer.execute_batch(TABLE).unwrap();
    }
    assert_eq!(sync(&writer), "0000000000000001");
    assert!(desk.server.keys(BUCKET).iter().all(|key| !key.contains("probe")));
}

#[test]
fn rule_12_a_lease_refuses_a_second_writer_at_open() {
    let desk = Desk::new();
    let first = desk.open("first", &format!("{BY_HAND}&lease=true"));
    first.execute_batch(TABLE).unwrap();
    let second = || open_uri(&desk.uri("second", &format!("{BY_HAND}&lease=true&poll_interval=2s")));
    second().unwrap_err();
    let why = text(&first, "PRAGMA litestream_error").unwrap();
    assert!(why.contains("holds the lease on this replica until"), "{why}");
    assert!(desk.server.object(BUCKET, "db/lock.json").is_some());
    first.close().unwrap();
    let mut opened = None;
    eventually("the lease to be given back", || {
        opened = second().ok();
        opened.is_some()
    });
    opened.unwrap().execute_batch("INSERT INTO t VALUES (1, 'second')").unwrap();
    // One that nobody renews runs out; one that cannot be read keeps nobody out.
    desk.server.put_object(BUCKET, "db/lock.json", "garbage", &[]);
    drop(desk.open("third", &format!("{BY_HAND}&lease=true&poll_interval=3s")));
    let lock = r#"{"generation":7,"expires_at":"2001-01-01T00:00:00Z","owner":"old:1"}"#;
    desk.server.put_object(BUCKET, "db/lock.json", lock, &[]);
    drop(desk.open("fourth", &format!("{BY_HAND}&lease=true&poll_interval=4s")));
}

#[test]
fn a_writer_keeps_its_replica_small_where_it_is_told_to() {
    let desk = Desk::new();
    let more = "&write_enabled=1&sync_interval=10ms&compaction_enabled=true&compaction_levels=300ms,1s&snapshot_interval=2s&l0_retention=500ms&snapshot_retention=1s";
    let writer = desk.open("buffer", more);
    writer.execute_batch(TABLE).unwrap();
    let started = Instant::now();
    let mut n = 0;
    while started.elapsed() < Duration::from_secs(6) {
        n += 1;
        writer.execute("INSERT INTO t VALUES (?, hex(randomblob(200)))", [n]).unwrap();
        std::thread::park_timeout(Duration::from_millis(10));
    }
    sync(&writer);
    let uploads = stat(&writer, "uploads");
    let files =
        |level: u32| desk.server.keys(BUCKET).iter().filter(|key| key.starts_with(&format!("db/{level:04x}/"))).count();
    assert!(uploads > 50, "{uploads}");
    assert!(files(1) > 0 && files(9) > 0, "{:?}", desk.server.keys(BUCKET));
    assert!((files(0) as u64) < uploads / 2, "{} of {uploads}", files(0));
    assert!(dump(&desk.restored(None)) == dump(&writer));
    let reader = desk.open("x", "&poll_interval=123ms");
    assert!(dump(&reader) == dump(&writer));
}
