//! What SQLite sees of us, asked as SQLite asks: below its own page cache, which hides much of it.

use std::cell::Cell;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use litestream_fixtures::recorder::Recorder;
use rusqlite::{Connection, OpenFlags, ffi};

use super::*;
use crate::connection::CHANGE_COUNTER;

const JOURNAL_MODE: std::ops::Range<usize> = 18..20;
const SIZE: std::ops::Range<usize> = 28..32;
const VALID_FOR: std::ops::Range<usize> = 92..96;

thread_local! {
    static PANIC: Cell<bool> = const { Cell::new(false) };
}

/// Stands where a fault of ours could be.
pub(super) fn panic_if_told() {
    assert!(!PANIC.get(), "told to panic");
}

/// What SQLite was told for its log, by this process.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

extern "C" fn log(_: *mut c_void, _: c_int, text: *const c_char) {
    // SAFETY: SQLite passes a text.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    lock(&LOG).push(text);
}

fn logged(text: &str) -> bool {
    lock(&LOG).iter().any(|line| line.contains(text))
}

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        type Log = extern "C" fn(*mut c_void, c_int, *const c_char);
        // SAFETY: nothing uses SQLite yet; this option takes a function of that type and a pointer for it.
        let result = unsafe { ffi::sqlite3_config(ffi::SQLITE_CONFIG_LOG, log as Log, null_mut::<c_void>()) };
        assert_eq!(result, code::OK);
        assert!(crate::register(ffi::sqlite3_auto_extension));
        drop(Connection::open_in_memory().unwrap());
    });
}

/// A database in WAL mode, and a replica of it in a folder.
struct Source {
    folder: tempfile::TempDir,
    recorder: Recorder,
}

impl Source {
    fn new(page_size: u32) -> Self {
        register();
        let this = Self { folder: tempfile::tempdir().unwrap(), recorder: Recorder::new() };
        let sql = format!(
            "PRAGMA page_size = {page_size}; PRAGMA journal_mode = WAL; CREATE TABLE t(n INTEGER PRIMARY KEY, text);
             WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 300)
             INSERT INTO t SELECT n, hex(randomblob({page_size} / 50)) FROM s"
        );
        this.run(&sql);
        this
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("source.db")
    }

    fn run(&self, sql: &str) {
        Connection::open(self.path()).unwrap().execute_batch(sql).unwrap();
    }

    /// Puts what has changed as the next TXID.
    fn put(&mut self) {
        let file = self.recorder.record(&self.path(), 1_767_225_600_000).unwrap();
        let level = self.folder.path().join("replica/ltx/0");
        std::fs::create_dir_all(&level).unwrap();
        std::fs::write(level.join(file.name.to_string()), file.bytes).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    fn uri(&self, more: &str) -> String {
        uri(&self.folder.path().join("replica"), more)
    }

    /// What opens it for writing, with nothing uploaded unless it is asked for.
    fn writing(&self) -> String {
        format!("&write_enabled=1&sync_interval=1h&buffer_path={}", self.folder.path().join("buffer").display())
    }
}

fn uri(replica: &Path, more: &str) -> String {
    format!("file:test.db?vfs=litestream&replica_url=file://{}{more}", replica.display())
}

fn open(uri: &str) -> rusqlite::Result<Connection> {
    register();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri, flags)
}

fn text(connection: &Connection, sql: &str) -> rusqlite::Result<String> {
    connection.query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0)).map(|value| match value {
        rusqlite::types::Value::Integer(number) => number.to_string(),
        rusqlite::types::Value::Text(text) => text,
        other => format!("{other:?}"),
    })
}

/// Reads as SQLite does, into room that is full of something else.
fn read_at(connection: &Connection, offset: i64, len: usize) -> (c_int, Vec<u8>) {
    let mut file = null_mut::<SqliteFile>();
    let mut into = vec![0xAA; len];
    // SAFETY: the file control stores a pointer to the connection's file, which is ours and open; there is room for `len` bytes.
    let result = unsafe {
        let found = ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_FILE_POINTER,
            (&raw mut file).cast(),
        );
        assert_eq!(found, code::OK);
        ((*(*file).methods).read)(file, into.as_mut_ptr().cast(), c_int::try_from(len).unwrap(), offset)
    };
    (result, into)
}

fn whole(connection: &Connection, len: usize) -> Vec<u8> {
    let (result, bytes) = read_at(connection, 0, len);
    assert_eq!(result, code::OK);
    bytes
}

fn number(bytes: &[u8], at: std::ops::Range<usize>) -> u32 {
    u32::from_be_bytes(bytes[at].try_into().unwrap())
}

#[test]
fn rule_24_devices_are_powersafe_with_sectors_of_512_bytes() {
    // SAFETY: neither looks at the file.
    unsafe {
        assert_eq!(x_sector_size(null_mut()), 512);
        assert_eq!(x_device_characteristics(null_mut()), code::IOCAP_POWERSAFE_OVERWRITE);
    }
}

#[test]
fn rule_04_reads_past_the_end_are_short_and_filled_with_zeros() {
    for page_size in [512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536] {
        let mut source = Source::new(page_size);
        source.put();
        let (bytes, size) = (source.bytes(), page_size as usize);
        let connection = open(&source.uri("")).unwrap();
        let end = bytes.len();
        assert!(end > 3 * size);
        for (offset, len) in [
            (end - size, size),
            (end - size, 2 * size),
            (end - 1, 2),
            (end, size),
            (end + 7 * size, 16),
            (end - 24, 100),
        ] {
            let (result, read) = read_at(&connection, offset as i64, len);
            let there = end.saturating_sub(offset).min(len);
            assert_eq!(result, if there == len { code::OK } else { code::IOERR_SHORT_READ }, "{offset} {len}");
            assert_eq!(read[..there], bytes[offset.min(end)..offset.min(end) + there], "{offset} {len}");
            assert!(read[there..].iter().all(|byte| *byte == 0), "{offset} {len}");
        }
        let (result, read) = read_at(&connection, i64::MAX - 100, 100);
        assert_eq!((result, read), (code::IOERR_SHORT_READ, vec![0; 100]));
        assert_eq!(read_at(&connection, -1, 100).0, code::IOERR_READ);
        assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
    }
}

#[test]
fn rule_04_a_database_without_pages_is_read_as_an_empty_file() {
    register();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("replica")).unwrap();
    let more = format!("&write_enabled=1&sync_interval=1h&buffer_path={}", folder.path().join("buffer").display());
    let connection = open(&uri(&folder.path().join("replica"), &more)).unwrap();
    for (offset, len) in [(0, 100), (24, 16), (0, 4_096), (1 << 30, 65_536)] {
        assert_eq!(read_at(&connection, offset, len), (code::IOERR_SHORT_READ, vec![0; len]));
    }
    assert_eq!(text(&connection, "SELECT count(*) FROM sqlite_schema").unwrap(), "0");
    assert_eq!(text(&connection, "PRAGMA page_count").unwrap(), "0");
    assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
}

/// Looks at the file as a whole and in pieces, with and without a transaction, and returns it. But for page 1's journal mode and counters it must
/// be the source.
fn one_state_in_all_pieces(connection: &Connection, source: &[u8]) -> Vec<u8> {
    let shown = whole(connection, source.len());
    assert_eq!(shown[JOURNAL_MODE], [1, 1]);
    let mut expected = source.to_vec();
    for shown_otherwise in [JOURNAL_MODE, CHANGE_COUNTER, VALID_FOR] {
        expected[shown_otherwise.clone()].copy_from_slice(&shown[shown_otherwise]);
    }
    assert!(shown == expected, "all else is as it was stored");
    let in_pieces = || {
        for len in [1, 2, 3, 16, 24, 100, 511, 512, 513, 1_000, 5_000] {
            for offset in (0..130).chain([500, 511, 512, 1_023, 4_000, 4_095, 4_096, 4_097, 8_190]) {
                let (result, read) = read_at(connection, offset, len);
                let offset = offset as usize;
                if offset + len > shown.len() {
                    assert_eq!(result, code::IOERR_SHORT_READ);
                    continue;
                }
                assert_eq!(result, code::OK);
                assert!(read == shown[offset..offset + len], "{len} bytes from {offset}");
            }
        }
    };
    in_pieces();
    connection.execute_batch("BEGIN").unwrap();
    text(connection, "SELECT count(*) FROM t").unwrap();
    in_pieces();
    connection.execute_batch("COMMIT").unwrap();
    shown
}

#[test]
fn rule_05_page_1_is_one_and_the_same_in_every_path_and_piece() {
    for page_size in [512, 4_096] {
        let mut source = Source::new(page_size);
        source.put();
        let bytes = source.bytes();
        assert_eq!(bytes[JOURNAL_MODE], [2, 2], "the source is in WAL mode");
        // From the replica, from a local file, in the past, and never locked.
        let local = source.folder.path().join("local.db");
        let hydrated = format!("&hydration_path={}", local.display());
        for more in ["", &hydrated, "&at=0000000000000001", "&immutable=1", "&nolock=1"] {
            let connection = open(&source.uri(more)).unwrap();
            // What SQLite asks for before it locks anything.
            assert_eq!(read_at(&connection, 0, 100).0, code::OK);
            let waiting = Instant::now();
            while more == hydrated && text(&connection, "PRAGMA litestream_hydration_progress").unwrap() != "100" {
                assert!(waiting.elapsed() < Duration::from_secs(20), "not hydrated");
                std::thread::park_timeout(Duration::from_millis(10));
            }
            let shown = one_state_in_all_pieces(&connection, &bytes);
            assert_eq!(shown[CHANGE_COUNTER], shown[VALID_FOR], "what was equal stays so");
        }
    }
}

#[test]
fn rule_05_the_probe_at_offset_24_changes_exactly_with_the_content() {
    let mut source = Source::new(4_096);
    source.put();
    let connection = open(&source.uri("&poll_interval=10ms")).unwrap();
    let probe = || read_at(&connection, 24, 16).1;
    let mut seen = vec![probe()];
    for n in 2..8 {
        text(&connection, "SELECT count(*) FROM t").unwrap();
        assert_eq!(probe(), seen[seen.len() - 1], "nothing has changed");
        source.run(&format!("UPDATE t SET text = 'x' WHERE n = {n}"));
        source.put();
        let waiting = Instant::now();
        while text(&connection, "PRAGMA litestream_txid").unwrap() != format!("{n:016x}") {
            assert!(waiting.elapsed() < Duration::from_secs(20), "not followed");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        let now = probe();
        assert!(seen.iter().all(|before| before[..4] != now[..4]), "{now:?} among {seen:?}");
        seen.push(now);
    }
    // The same moment has the same number, and another moment never has.
    text(&connection, "PRAGMA litestream_time = '0000000000000003'").unwrap();
    let past = probe();
    text(&connection, "PRAGMA litestream_time = 'latest'").unwrap();
    assert_eq!(probe(), seen[seen.len() - 1]);
    assert!(past[..4] == seen[2][..4] && !seen[3..].iter().any(|other| other[..4] == past[..4]), "{past:?} {seen:?}");
}

#[test]
fn rule_05_counters_that_differ_stay_different_so_that_no_stale_size_is_trusted() {
    let mut source = Source::new(4_096);
    // As programs leave it that do not know of the size in the header: the other counter is an old one.
    let mut bytes = source.bytes();
    bytes[SIZE].copy_from_slice(&3u32.to_be_bytes());
    let stale = number(&bytes, CHANGE_COUNTER).wrapping_sub(1);
    bytes[VALID_FOR].copy_from_slice(&stale.to_be_bytes());
    std::fs::write(source.path(), &bytes).unwrap();
    source.put();
    let pages = bytes.len() / 4_096;
    assert!(pages > 3);
    let writing = source.writing();
    for more in ["", "&at=0000000000000001", &writing] {
        let connection = open(&source.uri(more)).unwrap();
        let shown = one_state_in_all_pieces(&connection, &bytes);
        assert_ne!(shown[CHANGE_COUNTER], shown[VALID_FOR]);
        assert_eq!(text(&connection, "PRAGMA page_count").unwrap(), pages.to_string());
        assert_eq!(text(&connection, "SELECT count(*) FROM t").unwrap(), "300");
        assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
    }
}

/// Two connections to one database of 300 rows, which may be written.
fn writer_and_reader() -> (Source, Connection, Connection) {
    let mut source = Source::new(4_096);
    source.put();
    let open = || open(&source.uri(&source.writing())).unwrap();
    let (writer, reader) = (open(), open());
    (source, writer, reader)
}

#[test]
fn rule_05_a_page_1_that_was_written_here_is_as_sqlite_wrote_it_uploaded_or_not() {
    let (_source, writer, reader) = writer_and_reader();
    let counter = |connection: &Connection| number(&read_at(connection, 0, 100).1, CHANGE_COUNTER);
    for n in 1..5 {
        let before = counter(&writer);
        writer.execute_batch(&format!("BEGIN; DELETE FROM t WHERE n = {n}; CREATE TABLE t{n}(x)")).unwrap();
        // SQLite counts when it commits; nobody else sees anything before.
        assert_eq!(counter(&reader), before);
        writer.execute_batch("COMMIT").unwrap();
        let written = read_at(&writer, 0, 4_096);
        assert_eq!(number(&written.1, CHANGE_COUNTER), before + 1, "as SQLite counts");
        assert_eq!(written.1[CHANGE_COUNTER], written.1[VALID_FOR]);
        assert_eq!(written.1[JOURNAL_MODE], [1, 1]);
        assert_eq!(read_at(&reader, 0, 4_096), written);
        text(&writer, "PRAGMA litestream_sync").unwrap();
        assert_eq!(read_at(&writer, 0, 4_096), written, "an upload changes nothing");
        assert_eq!(read_at(&reader, 0, 4_096), written);
    }
    assert_eq!(text(&reader, "SELECT count(*) FROM t").unwrap(), "296");
}

#[test]
fn rule_05_the_counter_counts_for_others_too_where_sqlite_counts_only_once() {
    let (_source, writer, reader) = writer_and_reader();
    text(&writer, "PRAGMA locking_mode = EXCLUSIVE").unwrap();
    let mut seen = Vec::new();
    for n in 1..6 {
        writer.execute_batch(&format!("DELETE FROM t WHERE n = {n}; CREATE TABLE t{n}(x)")).unwrap();
        let probe = read_at(&reader, 24, 16).1[..4].to_vec();
        assert!(!seen.contains(&probe), "{probe:?} among {seen:?}");
        seen.push(probe);
        assert_eq!(text(&reader, "SELECT count(*) FROM t").unwrap(), (300 - n).to_string());
    }
}

#[test]
fn rule_06_a_failed_open_leaves_no_file_behind() {
    register();
    let folder = tempfile::tempdir().unwrap();
    for more in ["&open_timeout=0s", "&open_timeout=0s&hydration_path=", "&poll_interval=soon&buffer_path="] {
        let own = folder.path().join("own");
        let more = if more.ends_with('=') { format!("{more}{}", own.display()) } else { more.to_owned() };
        open(&uri(&folder.path().join("nothing"), &more)).unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{more}");
    }
    let process = process::Process::current().unwrap();
    let here = folder.path().to_str().unwrap().to_owned();
    let registered = process.databases().keys().any(|key| key.contains(&here));
    assert!(!registered, "a database that was not opened");
}

#[test]
fn rule_08_what_goes_wrong_is_in_sqlites_log_word_for_word() {
    // `%` means nothing there.
    let error = open(&uri(Path::new("/nowhere/50%2525s%2525n%2525d"), "&open_timeout=0s")).unwrap_err();
    assert!(error.to_string().contains("unable to open"), "{error}");
    assert!(logged("litestream: file:///nowhere/50%s%n%d: the replica is empty"), "{:?}", lock(&LOG));
    let error = open(&uri(Path::new("/nowhere"), "&poll_interval=100%25s")).unwrap_err();
    assert!(error.to_string().contains("unable to open"), "{error}");
    assert!(logged("litestream: poll_interval: `100%s`"), "{:?}", lock(&LOG));

    let mut source = Source::new(4_096);
    source.put();
    let connection = open(&source.uri("")).unwrap();
    let error = text(&connection, "PRAGMA litestream_time = '%s%n never'").unwrap_err();
    assert!(error.to_string().contains("`%s%n never` is not a time"), "{error}");
    assert!(logged("litestream: `%s%n never` is not a time"), "{:?}", lock(&LOG));
    // xLock, by which SQLite shows only "attempt to write a readonly database".
    connection.execute_batch("DELETE FROM t").unwrap_err();
    assert!(logged("litestream: the database is opened for reading only: add write_enabled=true"), "{:?}", lock(&LOG));
    let error = text(&connection, "SELECT litestream_set_time('%d o''clock')").unwrap_err();
    assert!(error.to_string().contains("`%d o'clock` is not a time"), "{error}");
    assert!(logged("litestream: `%d o'clock` is not a time"), "{:?}", lock(&LOG));
}

#[test]
fn rule_08_what_a_close_has_to_say_is_in_sqlites_log() {
    let mut source = Source::new(4_096);
    source.put();
    let buffer = source.folder.path().join("buffer");
    let writer = open(&source.uri(&(source.writing() + "&shutdown_sync_timeout=50ms"))).unwrap();
    writer.execute_batch("DELETE FROM t").unwrap();
    // Another writer has gone on meanwhile.
    source.run("DELETE FROM t WHERE n < 100");
    source.put();
    drop(writer);
    assert!(logged("1 transactions are kept in") && logged(buffer.to_str().unwrap()), "{:?}", lock(&LOG));
}

#[test]
fn rule_08_a_panic_becomes_an_error_and_the_host_lives_on() {
    let mut source = Source::new(4_096);
    source.put();
    let connection = open(&source.uri(&source.writing())).unwrap();
    connection.execute_batch("PRAGMA cache_size = 1").unwrap();
    assert_eq!(text(&connection, "SELECT count(*) FROM t").unwrap(), "300");
    let panicking = |sql: &str| {
        PANIC.set(true);
        let result = text(&connection, sql);
        PANIC.set(false);
        result.unwrap_err().to_string()
    };
    for _ in 0..3 {
        // Locking, a PRAGMA and a function; SQLite shows its fixed texts for the first.
        let error = panicking("SELECT sum(length(text)) FROM t");
        assert!(error.contains("disk I/O error"), "{error}");
        panicking("PRAGMA litestream_txid");
        let error = panicking("SELECT litestream_txid()");
        assert!(error.contains("told to panic: this is a bug"), "{error}");
        // And an open.
        PANIC.set(true);
        let opened = open(&source.uri("&poll_interval=77ms"));
        PANIC.set(false);
        assert!(opened.unwrap_err().to_string().contains("unable to open"));
        assert!(text(&connection, "SELECT litestream_error()").unwrap().contains("told to panic"));
        // In the middle of a transaction that writes: it is rolled back.
        connection.execute_batch("BEGIN IMMEDIATE; DELETE FROM t WHERE n <= 100").unwrap();
        panicking("INSERT INTO t SELECT n + 1000, text FROM t");
        let _ = connection.execute_batch("ROLLBACK");
        assert_eq!(text(&connection, "SELECT count(*) || ' ' || max(n) FROM t").unwrap(), "300 300");
        assert_eq!(text(&connection, "PRAGMA integrity_check").unwrap(), "ok");
    }
    assert!(logged("litestream: a panic in the litestream VFS: told to panic"), "{:?}", lock(&LOG));
    // Writing goes on, and so does the process when a close panics.
    connection.execute_batch("DELETE FROM t WHERE n > 200").unwrap();
    let other = open(&source.uri("")).unwrap();
    PANIC.set(true);
    drop(other);
    PANIC.set(false);
    text(&connection, "PRAGMA litestream_sync").unwrap();
    assert_eq!(text(&connection, "SELECT count(*) FROM t").unwrap(), "200");
}

#[test]
fn rule_08_every_callback_catches_what_panics_in_it() {
    let mut source = Source::new(4_096);
    source.put();
    let connection = open(&source.uri("")).unwrap();
    let mut file = null_mut::<SqliteFile>();
    let (mut size, mut held, mut bytes) = (0i64, 0, [0u8; 16]);
    // SAFETY: the file control stores a pointer to the connection's file, which is ours and open, and each callback gets what it is for.
    let results = unsafe {
        let pointer = (&raw mut file).cast();
        ffi::sqlite3_file_control(connection.handle(), c"main".as_ptr(), ffi::SQLITE_FCNTL_FILE_POINTER, pointer);
        let methods = &*(*file).methods;
        PANIC.set(true);
        let mut arguments = [null_mut(), c"litestream_txid".as_ptr().cast_mut(), null_mut()];
        let results = [
            ((methods.read)(file, bytes.as_mut_ptr().cast(), 16, 0), code::IOERR_READ),
            ((methods.write)(file, bytes.as_ptr().cast(), 16, 0), code::IOERR_WRITE),
            ((methods.truncate)(file, 0), code::IOERR_TRUNCATE),
            ((methods.sync)(file, 0), code::IOERR_FSYNC),
            ((methods.file_size)(file, &raw mut size), code::IOERR_FSTAT),
            ((methods.lock)(file, code::LOCK_SHARED), code::IOERR_LOCK),
            ((methods.check_reserved_lock)(file, &raw mut held), code::IOERR_LOCK),
            ((methods.unlock)(file, code::LOCK_NONE), code::OK),
            ((methods.file_control)(file, code::FCNTL_SYNC, null_mut()), code::ERROR),
            ((methods.file_control)(file, code::FCNTL_COMMIT_PHASETWO, null_mut()), code::ERROR),
            ((methods.file_control)(file, code::FCNTL_PRAGMA, arguments.as_mut_ptr().cast()), code::ERROR),
        ];
        PANIC.set(false);
        results
    };
    for (at, (result, expected)) in results.into_iter().enumerate() {
        assert_eq!(result, expected, "callback {at}");
    }
    assert_eq!(text(&connection, "SELECT count(*) FROM t").unwrap(), "300");
    // Texts of every kind that a panic may carry.
    for panic in [Box::new("one") as Box<dyn Any + Send>, Box::new("two".to_owned()), Box::new(Arc::new(3))] {
        assert!(panicked(&*panic).ends_with("this is a bug, please report it"));
    }
}
