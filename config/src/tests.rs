use litestream_storage::config::{Location, Secret};

use super::*;

fn env(name: &str) -> Option<String> {
    match name {
        "HOME" => Some("/home/me".into()),
        "BUCKET" => Some("bkt".into()),
        _ => None,
    }
}

fn load(text: &str) -> Result<Config, LoadError> {
    Config::parse(text, Path::new("test.yml"), true, &env)
}

#[track_caller]
fn good(text: &str) -> Config {
    let config = load(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.warnings, Vec::<String>::new());
    config
}

#[track_caller]
fn warnings(text: &str) -> Vec<String> {
    load(text).unwrap_or_else(|error| panic!("{error}")).warnings
}

#[track_caller]
fn problems(text: &str) -> Vec<String> {
    match load(text) {
        Err(LoadError::Invalid { problems, .. }) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

/// The only problem is the expected one.
#[track_caller]
fn problem(text: &str, expected: &str) {
    let found = problems(text);
    assert!(found.len() == 1 && found[0].contains(expected), "{text}\n{found:#?}");
}

fn database(config: &Config) -> &DbConfig {
    match &config.dbs[..] {
        [DbEntry::Database(config)] => config,
        other => panic!("{other:?}"),
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn nothing_means_the_defaults() {
    for text in
        ["", "# nothing\n", "{}", "dbs:\n", "snapshot:\nlevels:\nlogging: {}\naddr: ''\nexec: $UNSET # $UNSET\n"]
    {
        let mut config = load(text).unwrap();
        config.home = None;
        config.warnings.clear();
        assert_eq!(config, Config::default(), "{text}");
    }
    let config = Config::default();
    assert_eq!(config.levels, [secs(30), secs(300), secs(3600)]);
    assert_eq!((config.snapshot.interval, config.snapshot.retention), (secs(86400), secs(86400)));
    assert_eq!((config.l0_retention, config.l0_retention_check_interval), (secs(300), secs(15)));
    assert_eq!((config.shutdown_sync_timeout, config.shutdown_sync_interval), (secs(30), Duration::from_millis(500)));
    assert!(config.retention_enabled && !config.verify_compaction && !config.socket.enabled);
}

#[test]
fn every_global_key() {
    let config = good(
        "
addr: ':9090'
exec: ./run --it
socket: {enabled: yes, path: ~/x/../ls.sock, permissions: 0660}
levels: [{interval: 10s}, {interval: 1h30m}]
snapshot: {interval: 12h, retention: 7d}
l0-retention: 10m
l0-retention-check-interval: 1m
validation: {interval: 6h}
verify-compaction: off
retention: {enabled: off}
heartbeat-url: https://example.com/ping
heartbeat-interval: 2m
shutdown-sync-timeout: 0
shutdown-sync-interval: 1s
logging: {level: WARNING, type: json, stderr: true, source: y}
",
    );
    assert_eq!(config.addr.as_deref(), Some(":9090"));
    assert_eq!(config.exec.as_deref(), Some("./run --it"));
    assert_eq!(config.socket, SocketConfig { enabled: true, path: "/home/me/ls.sock".into(), permissions: 0o660 });
    assert_eq!(config.levels, [secs(10), secs(5400)]);
    assert_eq!(config.snapshot, SnapshotConfig { interval: secs(43200), retention: secs(7 * 86400) });
    assert_eq!((config.l0_retention, config.l0_retention_check_interval), (secs(600), secs(60)));
    assert_eq!(config.validation_interval, Some(secs(21600)));
    assert!(!config.verify_compaction && !config.retention_enabled);
    assert!(load("verify-compaction: on").unwrap().verify_compaction);
    assert_eq!(config.heartbeat_url.as_deref(), Some("https://example.com/ping"));
    assert_eq!(config.heartbeat_interval, secs(120));
    assert_eq!((config.shutdown_sync_timeout, config.shutdown_sync_interval), (secs(0), secs(1)));
    assert_eq!(
        config.logging,
        LoggingConfig { level: LogLevel::Warn, format: LogFormat::Json, stderr: true, source: true }
    );
}

#[test]
fn every_database_key() {
    let config = good(
        "
dbs:
  - path: sqlite://~/data/../app.db
    meta-path: /var/meta
    monitor-interval: 2s
    checkpoint-interval: 0
    min-checkpoint-page-count: 500
    truncate-page-n: 0
    busy-timeout: 5s
    max-sync-wal-bytes: 8MiB
    restore-if-db-not-exists: true
    snapshot: {retention: 3d}
    replica: {url: 's3://bkt/app'}
",
    );
    let db = database(&config);
    assert_eq!((db.path.as_path(), db.meta_path.as_path()), (Path::new("/home/me/app.db"), Path::new("/var/meta")));
    assert_eq!(
        db.settings,
        DbSettings {
            monitor_interval: secs(2),
            checkpoint_interval: secs(0),
            min_checkpoint_page_count: 500,
            truncate_page_n: 0,
            busy_timeout: secs(5),
            max_sync_wal_bytes: 8 << 20,
            restore_if_db_not_exists: true,
            snapshot: SnapshotConfig { interval: secs(86400), retention: secs(3 * 86400) },
        }
    );
    let config = good("snapshot: {interval: 1h}\ndbs: [{path: /d/a.db, replica: {path: /r}}]");
    let db = database(&config);
    assert_eq!(db.meta_path, Path::new("/d/.a.db-litestream"));
    let snapshot = SnapshotConfig { interval: secs(3600), retention: secs(86400) };
    assert_eq!(db.settings, DbSettings { snapshot, ..DbSettings::default() });
}

#[test]
fn every_replica_key() {
    let config = good(
        "
dbs:
  - path: /d/a.db
    replicas:
      - name: first
        type: s3
        bucket: $BUCKET
        path: a
        region: eu
        endpoint: minio:9000
        force-path-style: yes
        skip-verify: true
        sign-payload: false
        require-content-md5: false
        sign-accept-encoding: no
        storage-class: COLD
        part-size: 8MiB
        concurrency: 3
        sse-customer-algorithm: AES256
        sse-customer-key-path: ~/key
        access-key-id: 0123
        secret-access-key: 1e3
        sync-interval: 5s
        max-sync-ltx-files: 0
        auto-recover: true
        validation-interval: 1h
      - url: s3://bkt/b?concurrency=2
        sse-kms-key-id: kms
      - url: s3://bkt/c
        sse-customer-key: abc
      - path: ../r
      - s3://bkt/d
",
    );
    let replicas = &database(&config).replicas;
    let Location::S3(s3) = &replicas[0].config.location else { panic!() };
    assert_eq!((s3.bucket.as_str(), s3.path.as_str(), s3.region.as_deref()), ("bkt", "a", Some("eu")));
    assert_eq!((s3.endpoint.as_deref(), s3.force_path_style), (Some("http://minio:9000"), Some(true)));
    assert_eq!((s3.skip_verify, s3.sign_payload, s3.require_content_md5), (Some(true), Some(false), Some(false)));
    assert_eq!((s3.sign_accept_encoding, s3.storage_class.as_deref()), (Some(false), Some("COLD")));
    assert_eq!((s3.part_size, s3.concurrency), (Some(8 << 20), Some(3)));
    assert_eq!(s3.sse_customer_key_path.as_deref(), Some(Path::new("/home/me/key")));
    // Neither is a number here.
    assert_eq!((s3.access_key_id.as_deref(), s3.secret_access_key.clone()), (Some("0123"), Some(Secret::new("1e3"))));
    assert_eq!((replicas[0].name.as_deref(), replicas[0].sync_interval), (Some("first"), secs(5)));
    assert_eq!((replicas[0].max_sync_ltx_files, replicas[0].auto_recover), (0, true));
    assert_eq!(replicas[0].validation_interval, Some(secs(3600)));
    let urls: Vec<_> = replicas[1..].iter().map(|replica| replica.config.url()).collect();
    let up = std::env::current_dir().unwrap().parent().unwrap().join("r");
    assert_eq!(urls, ["s3://bkt/b", "s3://bkt/c", &format!("file://{}", up.display()), "s3://bkt/d"]);
    assert_eq!(replicas[4], Replica::new("s3://bkt/d".parse().unwrap()));
}

#[test]
fn global_replica_keys_are_defaults() {
    let config = good(
        "
access-key-id: id
secret-access-key: secret
region: global
endpoint: https://store.example
bucket: shared
sync-interval: 9s
max-sync-ltx-files: 7
auto-recover: yes
validation-interval: 2h
account-key: x
dbs:
  - path: /d/a.db
    replica: {type: s3, path: a}
  - path: /d/b.db
    replica: {url: 's3://own/b?region=query', sync-interval: 1m, auto-recover: no, validation-interval: 0}
  - path: /d/c.db
    replica: {path: /r/c}
",
    );
    let replica = |at: usize| match &config.dbs[at] {
        DbEntry::Database(db) => &db.replicas[0],
        DbEntry::Directory(_) => panic!(),
    };
    assert_eq!(replica(0).config.url(), "s3://shared/a?endpoint=https://store.example&region=global");
    assert_eq!(replica(1).config.url(), "s3://own/b?endpoint=https://store.example&region=query");
    assert_eq!(replica(2).config.url(), "file:///r/c");
    let Location::S3(s3) = &replica(1).config.location else { panic!() };
    assert_eq!(s3.secret_access_key, Some(Secret::new("secret")));
    assert_eq!((replica(0).sync_interval, replica(1).sync_interval), (secs(9), secs(60)));
    assert_eq!((replica(0).max_sync_ltx_files, replica(2).auto_recover, replica(1).auto_recover), (7, true, false));
    assert_eq!((replica(0).validation_interval, replica(1).validation_interval), (Some(secs(7200)), None));
    // A bad default is one problem, not one for each replica.
    problem(
        "part-size: 1\ndbs: [{path: /a, replica: s3://b/a}, {path: /b, replica: s3://b/b}]",
        "part-size (line 1): invalid value for `part-size`: `1` is outside what S3 takes",
    );
}

#[test]
fn all_problems_at_once_with_place_and_line() {
    let text = "\
addr: nine
levels:
  - interval: 0s
dbs:
  - path: /a
    monitor-interval: 5
    replica:
      url: s3://bkt/a
      part-size: big
  - dir: /b
    replica: {url: 'gs://bkt/b'}
  - path: /c
    replicas:
      - type: s3
        endpoint: ftp://x
";
    assert_eq!(
        problems(text),
        [
            "addr (line 1): `nine` is not an address to listen at: write :PORT or HOST:PORT, like :9090",
            "levels[0].interval (line 3): `0s` is too short: it must be longer than zero",
            "dbs[0].monitor-interval (line 6): `5` is not a duration: `5` has no unit; write 5s, 5m, 5h or 5d",
            "dbs[0].replica.part-size (line 9): invalid value for `part-size`: `big` is not a size: write a number of \
             bytes, or one with a unit, like 64MiB or 5MB",
            "dbs[1] (line 10): no `pattern`: write which files of `dir` are databases, like \"*.db\"",
            "dbs[1].replica.url (line 11): unsupported replica type `gs` (a later version will have it): supported are \
             `s3` and `file`",
            "dbs[2].replicas[0].endpoint (line 15): invalid value for `endpoint`: `ftp://x` does not begin with http:// \
             or https://",
        ]
    );
    let error = load(text).unwrap_err().to_string();
    assert!(error.starts_with("invalid configuration `test.yml`, 7 problems:\n  addr (line 1): "), "{error}");
    let one = load("addr: x").unwrap_err().to_string();
    assert!(one.starts_with("invalid configuration `test.yml`: addr (line 1): `x` is not an address"), "{one}");
}

#[test]
fn what_the_file_may_not_say() {
    let replica = "replica: {url: 's3://b/p'}";
    for (text, expected) in [
        ("- a", "(line 1): this is a list: write keys with values"),
        ("dbs: x", "dbs (line 1): this is a single value: write a list"),
        ("dbs: [x]", "dbs[0] (line 1): this is a single value: write keys"),
        ("addr: [x]", "addr (line 1): this is a list: write a single value"),
        ("addr: :1\nexec: a\naddr: :2", "addr (line 3): the key is given twice"),
        ("socket: yes", "socket (line 1): this is a single value"),
        ("socket: {permissions: 600}", "write them in octal, with a leading zero, like 0600"),
        ("socket: {permissions: 01000}", "socket.permissions"),
        ("socket: {enabled: maybe}", "`maybe` is neither true nor false: write true or false"),
        ("levels: [{}]", "levels[0] (line 1): no `interval`"),
        ("levels: [{interval: x}]", "levels[0].interval (line 1): `x` is not a duration"),
        ("snapshot: {interval: 0}", "snapshot.interval"),
        ("snapshot: {retention: -1h}", "it is negative"),
        ("l0-retention: 0", "l0-retention"),
        ("l0-retention-check-interval: 0", "l0-retention-check-interval"),
        ("validation: {interval: 1}", "validation.interval"),
        ("verify-compaction: 7", "verify-compaction"),
        ("retention: {enabled: 2}", "retention.enabled"),
        ("heartbeat-url: example.com", "begins with http:// or https://"),
        ("heartbeat-interval: 59s", "it must be 1m at least"),
        ("shutdown-sync-interval: 0s", "longer than zero"),
        ("shutdown-sync-timeout: -1s", "it is negative"),
        ("logging: {level: loud}", "write trace, debug, info, warn or error"),
        ("logging: {type: xml}", "write text or json"),
        ("age: {recipients: [x]}", "encryption with age ended"),
        ("sync-interval: 0", "sync-interval"),
        ("region: a b", "white space"),
        ("dbs: [{replica: s3://b}]", "neither `path` nor `dir`"),
        ("dbs: [{path: a, dir: b, pattern: c, replica: s3://b}]", "`path` and `dir` exclude"),
        ("dbs: [{path: a}]", "dbs[0] (line 1): no replica"),
        ("dbs: [{path: a, replicas: []}]", "no replica"),
        ("dbs: [{path: a, replicas: x}]", "dbs[0].replicas (line 1): this is a single value"),
        ("dbs: [{path: a, replica: s3://b, replicas: [s3://c]}]", "exclude each other: write all below `replicas`"),
        ("dbs: [{path: a, replicas: [s3://b/x, s3://b/x/]}]", "two replicas at `s3://b/x`"),
        ("dbs: [{path: a, replica: {path: 's3://b'}}]", "dbs[0].replica.path (line 1): invalid value"),
        ("dbs: [{path: a, replica: {url: 's3://b', path: x}}]", "`url` and `path` exclude each other"),
        (
            "dbs: [{path: a, replica: {age: {identities: [x]}, url: 's3://b'}}]",
            "dbs[0].replica.age (line 1): encryption",
        ),
        (
            "dbs: [{path: a, replica: {url: 's3://b', access-key-id: x}}]",
            "dbs[0].replica (line 1): no `secret-access-key`",
        ),
        ("dbs: [{path: a, replica: {url: 's3://b', max-sync-ltx-files: -1}}]", "not a whole number from 0"),
    ] {
        problem(text, expected);
    }
    for (keys, expected) in [
        ("pattern: x", "`pattern` needs `dir`"),
        ("recursive: yes", "`recursive` needs `dir`"),
        ("watch: yes", "`watch` needs `dir`"),
        ("meta-dir: /x", "`meta-dir` needs `dir`"),
        ("monitor-interval: 0", "monitor-interval"),
        ("checkpoint-interval: 1", "checkpoint-interval"),
        ("min-checkpoint-page-count: 0", "not a whole number from 1"),
        ("truncate-page-n: -1", "not a whole number from 0"),
        ("busy-timeout: x", "busy-timeout"),
        ("max-sync-wal-bytes: -1", "max-sync-wal-bytes"),
        ("restore-if-db-not-exists: x", "restore-if-db-not-exists"),
        ("snapshot: {interval: x}", "dbs[0].snapshot.interval (line 3)"),
    ] {
        problem(&format!("dbs:\n  - path: a\n    {keys}\n    {replica}"), expected);
    }
    for (keys, expected) in [("pattern: '['", "its `[` is never closed"), ("pattern: a/*", "patterns match names")] {
        problem(&format!("dbs:\n  - dir: a\n    {keys}\n    {replica}"), expected);
    }
    problem("dbs: [{dir: a, pattern: b, meta-path: x, meta-dir: y, replica: s3://b}]", "`meta-path` and `meta-dir`");
    let levels: String = (0..9).map(|_| "\n  - interval: 1m").collect();
    problem(&format!("levels:{levels}"), "9 levels are too many: there can be 8");
    assert!(matches!(load("a: ["), Err(LoadError::Syntax { .. })));
}

#[test]
fn databases_share_nothing() {
    problem(
        "dbs:\n  - {path: /a, replica: s3://b/a}\n  - {path: /x/../a, replica: s3://b/c}",
        "dbs[1] (line 3): the database `/a` is listed twice",
    );
    problem(
        "dbs:\n  - {path: /a, meta-path: /m, replica: s3://b/a}\n  - {path: /b, meta-path: /m, replica: s3://b/b}",
        "the databases `/a` and `/b` have the same meta-path `/m`",
    );
    problem(
        "dbs:\n  - {path: /a, replica: s3://b/a}\n  - {path: /b, replica: {type: s3, bucket: b, path: /a/}}",
        "the databases `/a` and `/b` have the same replica `s3://b/a`",
    );
}

#[test]
fn unknown_keys_are_warnings_that_name_the_nearest() {
    assert_eq!(
        warnings(
            "\
sinc-interval: 1s
levels: [{intervall: 1s, interval: 1s}]
snapshot: {retenton: 1h}
dbs:
  - path: /a
    monitor_interval: 1s
    frobnicate: 1
    max-checkpoint-page-count: 9
    replica:
      url: s3://bkt/a
      forcePathStyle: true
      retention: 1h
      account-name: x
  - path: /b
    replica: {path: /r, region: eu}
mcp-addr: :1
"
        ),
        [
            "sinc-interval (line 1): unknown key in the configuration: did you mean `sync-interval`?",
            "levels[0].intervall (line 2): unknown key in a level: did you mean `interval`?",
            "snapshot.retenton (line 3): unknown key in `snapshot`: did you mean `retention`?",
            "dbs[0].monitor_interval (line 6): unknown key in a database: did you mean `monitor-interval`?",
            "dbs[0].frobnicate (line 7): unknown key in a database: it has no effect",
            "dbs[0].max-checkpoint-page-count (line 8): Litestream 0.3 had this key, it has no effect now: use \
             `truncate-page-n`",
            "dbs[0].replica.forcePathStyle (line 11): unknown key in a replica: did you mean `force-path-style`?",
            "dbs[0].replica.retention (line 12): Litestream 0.3 had this key, it has no effect now: use `snapshot: \
             retention:`, for all databases or for one",
            "dbs[0].replica.account-name (line 13): the key has no effect on a replica of type s3: remove it",
            "dbs[1].replica.region (line 15): `region` has no meaning for a file replica: remove it, or use a replica of \
             another type",
            "mcp-addr (line 16): there is no MCP server in this program: the key has no effect",
        ]
    );
}

#[test]
fn keys_that_do_nothing_where_they_are_say_so() {
    for (text, expected) in [
        (
            "logging: {stderr: no}",
            "logging.stderr: the log always goes to standard error here; `2>FILE` sends it elsewhere",
        ),
        ("verify-compaction: on", "verify-compaction: every compaction is verified here; the key has no effect"),
        (
            "dbs: [{dir: /d, pattern: '*', restore-if-db-not-exists: true, replica: {path: /r}}]",
            "dbs[0] (line 1): `restore-if-db-not-exists` has no effect here: a folder's databases are those that are there; \
             restore the others with `litestream restore`, or list them by `path`",
        ),
    ] {
        assert_eq!(warnings(text), [expected]);
    }
    assert!(warnings("dbs: [{path: /d, restore-if-db-not-exists: true, replica: {path: /r}}]").is_empty());
}

#[test]
fn the_environment() {
    let text = "dbs: [{path: $HOME/a.db, replica: '${HOME}/r'}]";
    assert_eq!(database(&good(text)).path, Path::new("/home/me/a.db"));
    let plain = Config::parse(text, Path::new("x"), false, &env).unwrap();
    assert!(database(&plain).path.ends_with("$HOME/a.db"));
    let unset = warnings("exec: $NOPE");
    assert!(unset.len() == 1 && unset[0].contains("`NOPE` is not set"), "{unset:?}");

    let env = |name: &str| match name {
        "LITESTREAM_ACCESS_KEY_ID" => Some("id".into()),
        "LITESTREAM_SECRET_ACCESS_KEY" => Some("hunter2".into()),
        "LOG_LEVEL" => Some("debug".into()),
        _ => None,
    };
    let config =
        Config::parse("logging: {level: error}\ndbs: [{path: /a, replica: s3://b}]", Path::new("x"), true, &env);
    let config = config.unwrap();
    assert_eq!(config.logging.level, LogLevel::Debug);
    let Location::S3(s3) = &database(&config).replicas[0].config.location else { panic!() };
    assert_eq!((s3.access_key_id.as_deref(), s3.secret_access_key.clone()), (Some("id"), Some(Secret::new("hunter2"))));
    assert!(!format!("{config:?}").contains("hunter2"));

    let half = |name: &str| (name == "LITESTREAM_ACCESS_KEY_ID").then(|| "id".to_owned());
    let error =
        Config::parse("dbs: [{path: /a, replica: s3://b}]", Path::new("x"), true, &half).unwrap_err().to_string();
    assert!(error.contains("dbs[0].replica (line 1): no `LITESTREAM_SECRET_ACCESS_KEY`"), "{error}");
    let loud = |name: &str| (name == "LOG_LEVEL").then(|| "loud".to_owned());
    let config = Config::parse("", Path::new("x"), true, &loud).unwrap();
    assert!(config.warnings[0].starts_with("LOG_LEVEL: `loud` is not a level"), "{:?}", config.warnings);
}

#[test]
fn anchors_and_merge_keys() {
    let config = good(
        "
x-replica: &common
  type: s3
  bucket: bkt
dbs:
  - path: /a
    replica: {<<: *common, path: a}
  - path: /b
    replica: {<<: *common, path: b}
",
    );
    let urls: Vec<_> = config.databases().unwrap().iter().map(|db| db.replicas[0].config.url()).collect();
    assert_eq!(urls, ["s3://bkt/a", "s3://bkt/b"]);
}

#[test]
fn where_the_file_is() {
    let env = |name: &str| match name {
        "LITESTREAM_CONFIG" => Some("~/from-env.yml".into()),
        "HOME" => Some("/home/me".into()),
        _ => None,
    };
    assert_eq!(locate(Some(Path::new("/x.yml")), &env), ("/x.yml".into(), true));
    assert_eq!(locate(None, &env), ("/home/me/from-env.yml".into(), true));
    assert_eq!(locate(None, &|_| None), (DEFAULT_PATH.into(), false));
    assert_eq!(locate(None, &|_| Some(String::new())), (DEFAULT_PATH.into(), false));

    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no.yml");
    let error = Config::load(&missing, true, &|_| None).unwrap_err();
    assert!(
        matches!(error, LoadError::NotFound(_))
            && error.to_string().contains("create it, or name another with -config")
    );
    assert!(matches!(Config::load(dir.path(), true, &|_| None), Err(LoadError::Read { .. })));
    std::fs::write(&missing, "addr: ':1'").unwrap();
    assert_eq!(Config::load(&missing, true, &|_| None).unwrap().addr.as_deref(), Some(":1"));
    std::fs::write(&missing, b"addr: \xff").unwrap();
    assert!(matches!(Config::load(&missing, true, &|_| None), Err(LoadError::Read { .. })));
}

/// The directories that the tests of `dir:` entries look at.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let database = b"SQLite format 3\0 and more";
    for (path, bytes) in [
        ("a.db", &database[..]),
        ("b.db", database),
        ("c.sqlite", database),
        ("text.db", b"SQLite format 2\0 no"),
        ("empty.db", b""),
        ("sub/d.db", database),
        ("sub/deep/e.db", database),
        (".a.db-litestream/f.db", database),
    ] {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    dir
}

#[test]
fn databases_in_a_directory() {
    let dir = tree();
    let at = dir.path().display();
    let show = |config: &Config| -> Vec<String> {
        let relative = |path: &Path| path.strip_prefix(dir.path()).unwrap_or(path).display().to_string();
        let all = config.databases().unwrap();
        all.iter()
            .map(|db| format!("{} {} {}", relative(&db.path), relative(&db.meta_path), db.replicas[0].config))
            .collect()
    };
    let flat = good(&format!("dbs: [{{dir: {at}, pattern: '*.db', replica: s3://b/x}}]"));
    assert_eq!(show(&flat), ["a.db .a.db-litestream s3://b/x/a.db", "b.db .b.db-litestream s3://b/x/b.db"]);

    let deep =
        format!("dbs: [{{dir: {at}/, pattern: '[bde].db', recursive: yes, watch: yes, KEYS replica: {{path: /r}}}}]");
    assert_eq!(
        show(&good(&deep.replace("KEYS", ""))),
        [
            "b.db .b.db-litestream file:///r/b.db",
            "sub/d.db sub/.d.db-litestream file:///r/sub/d.db",
            "sub/deep/e.db sub/deep/.e.db-litestream file:///r/sub/deep/e.db",
        ]
    );
    assert_eq!(
        show(&good(&deep.replace("KEYS", "meta-path: /m,")))[1],
        "sub/d.db /m/sub/.d.db-litestream file:///r/sub/d.db"
    );
    assert_eq!(
        show(&good(&deep.replace("KEYS", "meta-dir: /m,")))[1],
        "sub/d.db /m/sub/d.db-litestream file:///r/sub/d.db"
    );

    // The own entry wins, wherever it stands.
    let both = good(&format!(
        "dbs:\n  - {{dir: {at}, pattern: '*.db', replica: s3://b/x}}\n  - {{path: {at}/a.db, replica: s3://b/own}}"
    ));
    assert_eq!(show(&both), ["b.db .b.db-litestream s3://b/x/b.db", "a.db .a.db-litestream s3://b/own"]);
    assert_eq!(both.find_db(&dir.path().join("a.db")).unwrap().replicas[0].config.url(), "s3://b/own");
    assert_eq!(both.find_db(&dir.path().join("sub/../b.db")).unwrap().replicas[0].config.url(), "s3://b/x/b.db");
    // It need not exist to be restored.
    let gone = PathBuf::from(format!("sqlite://{at}/gone.db"));
    assert_eq!(both.find_db(&gone).unwrap().replicas[0].config.url(), "s3://b/x/gone.db");
    for outside in ["sub/d.db", "a.sqlite", "", "../x.db"] {
        assert_eq!(both.find_db(&dir.path().join(outside)), None, "{outside}");
    }
    assert_eq!(both.find_db(Path::new("a.db")), None);

    let missing = good(&format!("dbs: [{{dir: {at}/missing, pattern: '*', replica: s3://b/x}}]"));
    assert!(missing.databases().unwrap_err().to_string().contains("for databases: No such file"));
}

#[test]
fn paths_on_the_command_line() {
    let config = good("dbs: [{path: ~/a.db, replica: s3://b}, {path: rel/b.db, replica: s3://c}]");
    for path in ["~/a.db", "/home/me/a.db", "sqlite:///home/me/a.db", "SQLite3:///home/me/./x/../a.db"] {
        assert!(config.find_db(Path::new(path)).is_some(), "{path}");
    }
    assert!(config.find_db(Path::new("rel/b.db")).is_some());
    assert!(config.find_db(Path::new("b.db")).is_none());
}
