//! From the tree of texts to the configuration.
//!
//! Each section is taken apart key by key; what is left over at the end is unknown. Problems and warnings are gathered with
//! their places, and reading goes on after each, so that one run shows them all.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    time::Duration,
};

use litestream_storage::config::{self as storage, ConfigError, Location, ReplicaConfig, S3Config};

use super::{
    Config, DbConfig, DbEntry, DbSettings, DirConfig, LogFormat, LogLevel, LoggingConfig, MAX_LEVELS, MetaBase,
    Problem, Replica, SnapshotConfig, SocketConfig, database_path, default_meta_path, dirs, home, resolve,
    tree::{Node, Value},
};
use crate::units::{format_duration, parse_duration, parse_size};

/// Keys of backends that are yet to come: known, and without effect on those that are here.
const OTHER_BACKENDS: [&str; 25] = [
    "account-name",
    "account-key",
    "sas-token",
    "host",
    "user",
    "password",
    "key-path",
    "concurrent-writes",
    "host-key",
    "webdav-url",
    "webdav-username",
    "webdav-password",
    "jwt",
    "seed",
    "creds",
    "nkey",
    "username",
    "token",
    "tls",
    "root-cas",
    "client-cert",
    "client-key",
    "max-reconnects",
    "reconnect-wait",
    "timeout",
];

/// Keys of Litestream 0.3 that have gone, and what stands in their place.
const GONE: [(&str, &str); 6] = [
    ("retention", "use `snapshot: retention:`, for all databases or for one"),
    ("retention-check-interval", "retention is looked at after each compaction"),
    ("snapshot-interval", "use `snapshot: interval:`, for all databases or for one"),
    ("max-checkpoint-page-count", "use `truncate-page-n`"),
    ("shadow-retention-n", "there is no shadow WAL any more"),
    ("min-wal-sync-interval", "changes are noticed within milliseconds, and uploaded every `sync-interval`"),
];

/// Understands the tree of a configuration file.
pub(crate) fn read(tree: Node, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Vec<Problem>> {
    let mut reader = Reader { problems: Vec::new(), warnings: Vec::new(), places: Vec::new(), env, home: home(env) };
    let mut config = Config::default();
    if let Some(mut root) = reader.section(tree, String::new()) {
        reader.global(&mut root, &mut config);
        reader.finish(&root, "the configuration");
        reader.check_unique(&config.dbs);
    }
    reader.environment(&mut config);
    reader.problems.sort_by_key(|problem| problem.line);
    reader.warnings.sort_by_key(|(line, _)| *line);
    config.warnings = reader.warnings.into_iter().map(|(_, warning)| warning).collect();
    if reader.problems.is_empty() { Ok(config) } else { Err(reader.problems) }
}

struct Reader<'a> {
    problems: Vec<Problem>,
    /// With their lines, to be put in order.
    warnings: Vec<(u64, String)>,
    /// Place and line of each entry of `dbs` that was understood.
    places: Vec<(String, u64)>,
    env: &'a dyn Fn(&str) -> Option<String>,
    home: Option<PathBuf>,
}

/// A section that is being taken apart.
struct Section {
    place: String,
    line: u64,
    left: Vec<(String, Node)>,
    /// The keys that were asked for, which are the known ones.
    known: Vec<&'static str>,
}

/// A text at its place.
struct Text {
    text: String,
    place: String,
    line: u64,
}

/// The global keys that are defaults for every replica.
#[derive(Default)]
struct ReplicaDefaults {
    sync_interval: Option<Duration>,
    max_sync_ltx_files: Option<u64>,
    auto_recover: Option<bool>,
    validation_interval: Option<Duration>,
    /// The storage's own.
    keys: Vec<(String, String)>,
}

impl Section {
    /// The node of a key. A key with nothing behind it, or an empty text, is as good as absent.
    fn take(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        let at = self.left.iter().position(|(name, _)| name == key)?;
        let (_, node) = self.left.remove(at);
        match &node.value {
            Value::Null => None,
            Value::Text(text) if text.is_empty() => None,
            _ => Some(node),
        }
    }

    fn place(&self, key: &str) -> String {
        if self.place.is_empty() { key.into() } else { format!("{}.{key}", self.place) }
    }

    fn has(&self, key: &str) -> bool {
        self.left.iter().any(|(name, _)| name == key)
    }
}

impl Reader<'_> {
    fn problem(&mut self, place: &str, line: u64, message: impl Into<String>) {
        self.problems.push(Problem { place: place.into(), line, message: message.into() });
    }

    fn warn(&mut self, place: &str, line: u64, message: &str) {
        self.warnings.push((line, format!("{place} (line {line}): {message}")));
    }

    /// A section's keys, each once. Nothing at all is an empty section.
    fn section(&mut self, node: Node, place: String) -> Option<Section> {
        let line = node.line.max(1);
        let entries = match node.value {
            Value::Map(entries) => entries,
            Value::Null => Vec::new(),
            other => {
                self.problem(
                    &place,
                    line,
                    format!("this is {}: write keys with values, like `key: value`", other.kind()),
                );
                return None;
            }
        };
        let mut section = Section { place, line, left: Vec::new(), known: Vec::new() };
        for (key, node) in entries {
            if section.has(&key) {
                let place = section.place(&key);
                self.problem(&place, node.line, "the key is given twice: remove one of them");
            } else {
                section.left.push((key, node));
            }
        }
        Some(section)
    }

    fn subsection(&mut self, section: &mut Section, key: &'static str) -> Option<Section> {
        let place = section.place(key);
        let node = section.take(key)?;
        self.section(node, place)
    }

    fn list(&mut self, section: &mut Section, key: &'static str) -> Option<Vec<Node>> {
        let place = section.place(key);
        let node = section.take(key)?;
        match node.value {
            Value::List(items) => Some(items),
            other => {
                self.problem(
                    &place,
                    node.line,
                    format!("this is {}: write a list, each item after a `- `", other.kind()),
                );
                None
            }
        }
    }

    fn text(&mut self, section: &mut Section, key: &'static str) -> Option<Text> {
        let place = section.place(key);
        let node = section.take(key)?;
        match node.value {
            Value::Text(text) => Some(Text { text, place, line: node.line }),
            other => {
                self.problem(&place, node.line, format!("this is {}: write a single value", other.kind()));
                None
            }
        }
    }

    fn parsed<T>(
        &mut self,
        section: &mut Section,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(section, key)?;
        match parse(&text.text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problem(&text.place, text.line, message);
                None
            }
        }
    }

    fn boolean(&mut self, section: &mut Section, key: &'static str) -> Option<bool> {
        self.parsed(section, key, |text| {
            storage::parse_bool(text).map_err(|error| format!("{error}: write true or false"))
        })
    }

    /// A duration of at least `least`.
    fn duration(&mut self, section: &mut Section, key: &'static str, least: Duration) -> Option<Duration> {
        self.parsed(section, key, |text| {
            let duration = parse_duration(text).map_err(|error| error.to_string())?;
            if duration >= least {
                Ok(duration)
            } else if least <= NONZERO {
                Err(format!("`{text}` is too short: it must be longer than zero"))
            } else {
                Err(format!("`{text}` is too short: it must be {} at least", format_duration(least)))
            }
        })
    }

    fn number(&mut self, section: &mut Section, key: &'static str, least: u32) -> Option<u32> {
        self.parsed(section, key, |text| match parse_number(text).map(u32::try_from) {
            Some(Ok(number)) if number >= least => Ok(number),
            _ => Err(format!("`{text}` is not a whole number from {least} to {}", u32::MAX)),
        })
    }

    fn path(&mut self, section: &mut Section, key: &'static str) -> Option<PathBuf> {
        let text = self.text(section, key)?;
        Some(resolve(Path::new(&text.text), self.home.as_deref()))
    }

    /// Reports what no one asked for. Keys like `x-common` hold anchors and mean nothing by themselves.
    fn finish(&mut self, section: &Section, what: &str) {
        for (key, node) in section.left.iter().filter(|(key, _)| !key.starts_with("x-")) {
            let place = section.place(key);
            if let Some((_, instead)) = GONE.iter().find(|(gone, _)| gone == key) {
                self.warn(&place, node.line, &format!("Litestream 0.3 had this key, it has no effect now: {instead}"));
                continue;
            }
            let hint = match storage::nearest(key, section.known.iter().copied()) {
                Some(known) => format!("did you mean `{known}`?"),
                None => "it has no effect".into(),
            };
            self.warn(&place, node.line, &format!("unknown key in {what}: {hint}"));
        }
    }

    fn global(&mut self, root: &mut Section, config: &mut Config) {
        if let Some(text) = self.text(root, "addr") {
            match check_address(&text.text) {
                Ok(()) => config.addr = Some(text.text),
                Err(message) => self.problem(&text.place, text.line, message),
            }
        }
        config.exec = self.text(root, "exec").map(|text| text.text);
        if let Some(mut section) = self.subsection(root, "socket") {
            config.socket = self.socket(&mut section);
            self.finish(&section, "`socket`");
        }
        if let Some(levels) = self.levels(root) {
            config.levels = levels;
        }
        if let Some(mut section) = self.subsection(root, "snapshot") {
            config.snapshot = self.snapshot(&mut section, &config.snapshot);
            self.finish(&section, "`snapshot`");
        }
        let set = |field: &mut Duration, value: Option<Duration>| *field = value.unwrap_or(*field);
        set(&mut config.l0_retention, self.duration(root, "l0-retention", NONZERO));
        set(&mut config.l0_retention_check_interval, self.duration(root, "l0-retention-check-interval", NONZERO));
        if let Some(mut section) = self.subsection(root, "validation") {
            config.validation_interval =
                self.duration(&mut section, "interval", Duration::ZERO).filter(|i| !i.is_zero());
            self.finish(&section, "`validation`");
        }
        config.verify_compaction = self.boolean(root, "verify-compaction").unwrap_or(config.verify_compaction);
        if config.verify_compaction {
            self.warnings
                .push((0, "verify-compaction: every compaction is verified here; the key has no effect".to_owned()));
        }
        if let Some(mut section) = self.subsection(root, "retention") {
            config.retention_enabled = self.boolean(&mut section, "enabled").unwrap_or(config.retention_enabled);
            self.finish(&section, "`retention`");
        }
        config.heartbeat_url = self.parsed(root, "heartbeat-url", |text| {
            if text
                .split_once("://")
                .is_some_and(|(scheme, rest)| matches!(scheme, "http" | "https") && !rest.is_empty())
            {
                Ok(text.to_owned())
            } else {
                // Not quoted: such addresses often carry a token.
                Err("this is not an address: write one that begins with http:// or https://".into())
            }
        });
        set(&mut config.heartbeat_interval, self.duration(root, "heartbeat-interval", Duration::from_secs(60)));
        set(&mut config.shutdown_sync_timeout, self.duration(root, "shutdown-sync-timeout", Duration::ZERO));
        set(&mut config.shutdown_sync_interval, self.duration(root, "shutdown-sync-interval", NONZERO));
        if let Some(mut section) = self.subsection(root, "logging") {
            config.logging = self.logging(&mut section);
            self.finish(&section, "`logging`");
        }
        if let Some(text) = self.text(root, "mcp-addr") {
            self.warn(&text.place, text.line, "there is no MCP server in this program: the key has no effect");
        }
        let mut defaults = self.defaults(root);
        defaults.validation_interval = defaults.validation_interval.or(config.validation_interval);
        for (at, node) in self.list(root, "dbs").unwrap_or_default().into_iter().enumerate() {
            let (place, line) = (format!("dbs[{at}]"), node.line);
            if let Some(entry) = self.database(node, place.clone(), &config.snapshot, &defaults) {
                config.dbs.push(entry);
                self.places.push((place, line));
            }
        }
    }

    fn socket(&mut self, section: &mut Section) -> SocketConfig {
        let default = SocketConfig::default();
        SocketConfig {
            enabled: self.boolean(section, "enabled").unwrap_or(default.enabled),
            path: self.path(section, "path").unwrap_or(default.path),
            permissions: self
                .parsed(section, "permissions", |text| match parse_number(text) {
                    Some(mode @ 0..=0o777) => Ok(u32::try_from(mode).unwrap_or(default.permissions)),
                    _ => {
                        Err(format!("`{text}` are no permissions: write them in octal, with a leading zero, like 0600"))
                    }
                })
                .unwrap_or(default.permissions),
        }
    }

    fn levels(&mut self, root: &mut Section) -> Option<Vec<Duration>> {
        let line = root.left.iter().find(|(key, _)| key == "levels").map_or(root.line, |(_, node)| node.line);
        let items = self.list(root, "levels")?;
        if items.len() > MAX_LEVELS {
            let message = format!("{} levels are too many: there can be {MAX_LEVELS}", items.len());
            self.problem("levels", line, message);
        }
        let mut levels = Vec::new();
        for (at, node) in items.into_iter().enumerate() {
            let line = node.line;
            let Some(mut section) = self.section(node, format!("levels[{at}]")) else { continue };
            let given = section.left.iter().any(|(key, node)| key == "interval" && node.value != Value::Null);
            match self.duration(&mut section, "interval", NONZERO) {
                Some(interval) => levels.push(interval),
                None if given => {}
                None => {
                    self.problem(&section.place, line, "no `interval`: write how often this level is made, like 30s");
                }
            }
            self.finish(&section, "a level");
        }
        Some(levels)
    }

    fn snapshot(&mut self, section: &mut Section, default: &SnapshotConfig) -> SnapshotConfig {
        SnapshotConfig {
            interval: self.duration(section, "interval", NONZERO).unwrap_or(default.interval),
            retention: self.duration(section, "retention", NONZERO).unwrap_or(default.retention),
        }
    }

    fn logging(&mut self, section: &mut Section) -> LoggingConfig {
        let default = LoggingConfig::default();
        let level = self.parsed(section, "level", |text| LogLevel::parse(text).ok_or_else(|| wrong_level(text)));
        let format = self.parsed(section, "type", |text| match text.to_ascii_lowercase().as_str() {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(format!("`{text}` is not a type of log: write text or json")),
        });
        LoggingConfig {
            level: level.unwrap_or(default.level),
            format: format.unwrap_or(default.format),
            stderr: self.stderr(section).unwrap_or(default.stderr),
            source: self.boolean(section, "source").unwrap_or(default.source),
        }
    }

    fn stderr(&mut self, section: &mut Section) -> Option<bool> {
        let stderr = self.boolean(section, "stderr");
        if stderr == Some(false) {
            let text = "logging.stderr: the log always goes to standard error here; `2>FILE` sends it elsewhere";
            self.warnings.push((0, text.to_owned()));
        }
        stderr
    }

    /// What the environment says of the whole.
    fn environment(&mut self, config: &mut Config) {
        if let Some(text) = (self.env)("LOG_LEVEL").filter(|text| !text.is_empty()) {
            match LogLevel::parse(&text) {
                Some(level) => config.logging.level = level,
                None => self.warnings.push((0, format!("LOG_LEVEL: {}", wrong_level(&text)))),
            }
        }
    }

    /// The global keys that are defaults for replicas. They are checked here, once, and only good ones go further.
    fn defaults(&mut self, root: &mut Section) -> ReplicaDefaults {
        let mut defaults = ReplicaDefaults {
            sync_interval: self.duration(root, "sync-interval", NONZERO),
            max_sync_ltx_files: self.number(root, "max-sync-ltx-files", 0).map(u64::from),
            auto_recover: self.boolean(root, "auto-recover"),
            validation_interval: self.duration(root, "validation-interval", Duration::ZERO),
            keys: Vec::new(),
        };
        self.refuse_age(root);
        for key in OTHER_BACKENDS {
            root.take(key);
        }
        let names: Vec<_> = storage::key_names().filter(|key| !matches!(*key, "type" | "url" | "path")).collect();
        for key in names {
            let Some(text) = self.text(root, key) else { continue };
            let value = self.expand_key_path(key, text.text);
            let mut check = ReplicaConfig { location: Location::S3(S3Config::default()) };
            match check.set(key, &value) {
                Ok(()) => defaults.keys.push((key.into(), value)),
                Err(error) => self.problem(&text.place, text.line, error.to_string()),
            }
        }
        defaults
    }

    /// The one key of the storage, besides the place of a file replica, that is a path.
    fn expand_key_path(&self, key: &str, value: String) -> String {
        if key == "sse-customer-key-path" {
            return resolve(Path::new(&value), self.home.as_deref()).to_string_lossy().into_owned();
        }
        value
    }

    /// Litestream 0.3 encrypted with age. Going on without would store in the clear what was meant to be secret.
    fn refuse_age(&mut self, section: &mut Section) {
        let place = section.place("age");
        let Some(node) = section.take("age") else { return };
        let given = |node: &Node| match &node.value {
            Value::List(items) => !items.is_empty(),
            Value::Null => false,
            _ => true,
        };
        let empty = matches!(&node.value, Value::Map(entries) if !entries.iter().any(|(_, node)| given(node)));
        if !empty {
            let message = "encryption with age ended with Litestream 0.3, and the data would be stored in the clear: remove \
                           the section, and encrypt in the bucket (sse-kms-key-id, sse-customer-key)";
            self.problem(&place, node.line, message);
        }
    }

    fn database(
        &mut self,
        node: Node,
        place: String,
        snapshot: &SnapshotConfig,
        defaults: &ReplicaDefaults,
    ) -> Option<DbEntry> {
        let problems = self.problems.len();
        let mut section = self.section(node, place)?;
        let path = self.text(&mut section, "path");
        let dir = self.text(&mut section, "dir");
        let pattern = self.text(&mut section, "pattern");
        let recursive = self.boolean(&mut section, "recursive");
        let watch = self.boolean(&mut section, "watch");
        let meta_path = self.path(&mut section, "meta-path");
        let meta_dir = self.path(&mut section, "meta-dir");
        let settings = self.settings(&mut section, snapshot);
        let replicas = self.replicas(&mut section, defaults);

        let (place, line) = (section.place.clone(), section.line);
        self.finish(&section, "a database");
        if meta_path.is_some() && meta_dir.is_some() {
            self.problem(&place, line, "`meta-path` and `meta-dir` exclude each other: remove one");
        }
        let entry = match (path, dir) {
            (Some(_), Some(_)) => {
                self.problem(&place, line, "`path` and `dir` exclude each other: write two entries");
                return None;
            }
            (None, None) => {
                self.problem(&place, line, "neither `path` nor `dir`: write the path of the database");
                return None;
            }
            (Some(path), None) => {
                let only_dir = [
                    ("pattern", pattern.is_some()),
                    ("recursive", recursive == Some(true)),
                    ("watch", watch == Some(true)),
                    ("meta-dir", meta_dir.is_some()),
                ];
                for (key, _) in only_dir.into_iter().filter(|(_, given)| *given) {
                    self.problem(
                        &place,
                        line,
                        format!("`{key}` needs `dir`: remove it, or write `dir` instead of `path`"),
                    );
                }
                let path = database_path(Path::new(&path.text), self.home.as_deref());
                let meta_path = meta_path.unwrap_or_else(|| default_meta_path(&path));
                DbEntry::Database(DbConfig { path, meta_path, settings, replicas })
            }
            (None, Some(dir)) => {
                let Some(pattern) = pattern else {
                    self.problem(&place, line, "no `pattern`: write which files of `dir` are databases, like \"*.db\"");
                    return None;
                };
                if let Err(why) = dirs::check(&pattern.text) {
                    let message = format!("`{}` is not a pattern: {why}", pattern.text);
                    self.problem(&pattern.place, pattern.line, message);
                }
                if settings.restore_if_db_not_exists {
                    let message = "`restore-if-db-not-exists` has no effect here: a folder's databases are those that are there; restore the others with `litestream restore`, or list them by `path`";
                    self.warn(&place, line, message);
                }
                DbEntry::Directory(DirConfig {
                    dir: resolve(Path::new(&dir.text), self.home.as_deref()),
                    pattern: pattern.text,
                    recursive: recursive.unwrap_or(false),
                    watch: watch.unwrap_or(false),
                    meta: match (meta_path, meta_dir) {
                        (_, Some(base)) => MetaBase::Dir(base),
                        (Some(base), None) => MetaBase::Path(base),
                        (None, None) => MetaBase::Beside,
                    },
                    settings,
                    replicas,
                })
            }
        };
        (self.problems.len() == problems).then_some(entry)
    }

    fn settings(&mut self, section: &mut Section, snapshot: &SnapshotConfig) -> DbSettings {
        let default = DbSettings::default();
        let mut settings = DbSettings {
            monitor_interval: self.duration(section, "monitor-interval", NONZERO).unwrap_or(default.monitor_interval),
            checkpoint_interval: self
                .duration(section, "checkpoint-interval", Duration::ZERO)
                .unwrap_or(default.checkpoint_interval),
            min_checkpoint_page_count: self
                .number(section, "min-checkpoint-page-count", 1)
                .unwrap_or(default.min_checkpoint_page_count),
            truncate_page_n: self.number(section, "truncate-page-n", 0).unwrap_or(default.truncate_page_n),
            busy_timeout: self.duration(section, "busy-timeout", Duration::ZERO).unwrap_or(default.busy_timeout),
            max_sync_wal_bytes: self
                .parsed(section, "max-sync-wal-bytes", |text| parse_size(text).map_err(|error| error.to_string()))
                .unwrap_or(default.max_sync_wal_bytes),
            restore_if_db_not_exists: self
                .boolean(section, "restore-if-db-not-exists")
                .unwrap_or(default.restore_if_db_not_exists),
            snapshot: snapshot.clone(),
        };
        if let Some(mut section) = self.subsection(section, "snapshot") {
            settings.snapshot = self.snapshot(&mut section, snapshot);
            self.finish(&section, "`snapshot`");
        }
        settings
    }

    fn replicas(&mut self, section: &mut Section, defaults: &ReplicaDefaults) -> Vec<Replica> {
        let (place, line) = (section.place.clone(), section.line);
        let one = section.take("replica");
        let several = self.list(section, "replicas");
        let nodes: Vec<_> = match (one, several) {
            (Some(_), Some(items)) if !items.is_empty() => {
                self.problem(&place, line, "`replica` and `replicas` exclude each other: write all below `replicas`");
                return Vec::new();
            }
            (Some(node), _) => vec![(node, format!("{place}.replica"))],
            (None, Some(items)) => {
                items.into_iter().enumerate().map(|(at, node)| (node, format!("{place}.replicas[{at}]"))).collect()
            }
            (None, None) => Vec::new(),
        };
        if nodes.is_empty() && !self.problems.iter().any(|problem| problem.place == format!("{place}.replicas")) {
            self.problem(
                &place,
                line,
                "no replica: write where the data goes, like `replica: {url: s3://BUCKET/PATH}`",
            );
        }
        let mut replicas: Vec<_> =
            nodes.into_iter().filter_map(|(node, place)| self.replica(node, place, defaults)).collect();
        for (at, replica) in replicas.iter().enumerate() {
            if replicas[..at].iter().any(|other| other.config.url() == replica.config.url()) {
                let message = format!("two replicas at `{}`: remove one, or move it", replica.config.url());
                self.problem(&format!("{place}.replicas[{at}]"), line, message);
            }
        }
        // There may be very many databases.
        replicas.shrink_to_fit();
        replicas
    }

    fn replica(&mut self, node: Node, place: String, defaults: &ReplicaDefaults) -> Option<Replica> {
        // `replica: s3://bucket/path` says all there is to say.
        let node = match node.value {
            Value::Text(url) => {
                let line = node.line;
                Node { value: Value::Map(vec![("url".into(), Node { value: Value::Text(url), line })]), line }
            }
            _ => node,
        };
        let problems = self.problems.len();
        let mut section = self.section(node, place)?;
        let name = self.text(&mut section, "name").map(|text| text.text);
        let sync_interval = self.duration(&mut section, "sync-interval", NONZERO).or(defaults.sync_interval);
        let max_sync_ltx_files =
            self.number(&mut section, "max-sync-ltx-files", 0).map(u64::from).or(defaults.max_sync_ltx_files);
        let auto_recover = self.boolean(&mut section, "auto-recover").or(defaults.auto_recover);
        let validation_interval =
            self.duration(&mut section, "validation-interval", Duration::ZERO).or(defaults.validation_interval);
        self.refuse_age(&mut section);

        let mut others = Vec::new();
        for key in OTHER_BACKENDS {
            others.extend(section.take(key).map(|node| (key, node.line)));
        }
        // What the storage knows is checked there; what it does not is unknown here, and only a warning.
        let mut keys = Vec::new();
        let mut lines = BTreeMap::new();
        for key in storage::key_names() {
            let Some(text) = self.text(&mut section, key) else { continue };
            lines.insert(key.to_owned(), text.line);
            keys.push((key, self.expand_key_path(key, text.text)));
        }
        let (place, line) = (section.place.clone(), section.line);
        self.finish(&section, "a replica");

        let config = self.location(&place, line, keys, &lines, defaults)?;
        for (key, line) in others {
            let message = format!("the key has no effect on a replica of type {}: remove it", config.type_name());
            self.warn(&format!("{place}.{key}"), line, &message);
        }
        let mut replica = Replica::new(config);
        replica.name = name;
        replica.sync_interval = sync_interval.unwrap_or(replica.sync_interval);
        replica.max_sync_ltx_files = max_sync_ltx_files.unwrap_or(replica.max_sync_ltx_files);
        replica.auto_recover = auto_recover.unwrap_or(replica.auto_recover);
        replica.validation_interval = validation_interval.filter(|interval| !interval.is_zero());
        (self.problems.len() == problems).then_some(replica)
    }

    /// Where a replica lies, from its keys, the global ones and the environment.
    fn location(
        &mut self,
        place: &str,
        line: u64,
        mut keys: Vec<(&str, String)>,
        lines: &BTreeMap<String, u64>,
        defaults: &ReplicaDefaults,
    ) -> Option<ReplicaConfig> {
        let at = |key: &str| match lines.get(key) {
            Some(line) => (format!("{place}.{key}"), *line),
            None => (place.to_owned(), line),
        };
        let fallback: Vec<(&str, &str)> =
            defaults.keys.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        loop {
            let given: Vec<(&str, &str)> = keys.iter().map(|(key, value)| (*key, value.as_str())).collect();
            let problems = match ReplicaConfig::collect(&given, &fallback) {
                Ok(config) => return self.settle(place, line, config),
                Err(problems) => problems,
            };
            // Litestream passes over keys of another type of replica, so they are no reason to stop.
            let (foreign, real): (Vec<_>, Vec<_>) =
                problems.into_iter().partition(|problem| matches!(problem.error, ConfigError::NotForType { .. }));
            for problem in &foreign {
                let (place, line) = at(&problem.key);
                self.warn(&place, line, &problem.error.to_string());
            }
            for problem in &real {
                let (place, line) = at(&problem.key);
                self.problem(&place, line, problem.error.to_string());
            }
            if !real.is_empty() || foreign.is_empty() {
                return None;
            }
            keys.retain(|(key, _)| !foreign.iter().any(|problem| problem.key == *key));
        }
    }

    fn settle(&mut self, place: &str, line: u64, mut config: ReplicaConfig) -> Option<ReplicaConfig> {
        if let Location::File(file) = &mut config.location {
            file.path = resolve(&file.path, self.home.as_deref());
        }
        if let Err(error) = config.apply_env(self.env) {
            self.problem(place, line, error.to_string());
            return None;
        }
        Some(config)
    }

    /// Two databases must share neither file, nor local state, nor replica: each would destroy the other's.
    fn check_unique(&mut self, dbs: &[DbEntry]) {
        let databases: Vec<_> = dbs
            .iter()
            .zip(std::mem::take(&mut self.places))
            .filter_map(
                |(entry, place)| if let DbEntry::Database(config) = entry { Some((config, place)) } else { None },
            )
            .collect();
        let (mut paths, mut states, mut replicas) = (HashSet::new(), HashMap::new(), HashMap::<String, &Path>::new());
        for (config, (place, line)) in &databases {
            let path = config.path.as_path();
            if !paths.insert(path) {
                let message = format!("the database `{}` is listed twice: remove one of the entries", path.display());
                self.problem(place, *line, message);
                continue;
            }
            if let Some(other) = states.insert(config.meta_path.as_path(), path) {
                let message = format!(
                    "the databases `{}` and `{}` have the same meta-path `{}`: give each its own",
                    other.display(),
                    path.display(),
                    config.meta_path.display()
                );
                self.problem(place, *line, message);
                continue;
            }
            let urls: Vec<String> = config.replicas.iter().map(|replica| replica.config.url()).collect();
            if let Some((url, other)) = urls.iter().find_map(|url| Some((url, replicas.get(url)?))) {
                let message = format!(
                    "the databases `{}` and `{}` have the same replica `{url}`: give each its own path",
                    other.display(),
                    path.display()
                );
                self.problem(place, *line, message);
            }
            replicas.extend(urls.into_iter().map(|url| (url, path)));
        }
    }
}

const NONZERO: Duration = Duration::from_nanos(1);

fn wrong_level(text: &str) -> String {
    format!("`{text}` is not a level of logging: write trace, debug, info, warn or error")
}

/// `HOST:PORT` or `:PORT`.
fn check_address(text: &str) -> Result<(), String> {
    let port = text.rsplit_once(':').map(|(_, port)| port);
    if port.is_some_and(|port| port.parse::<u16>().is_ok()) && !text.contains("://") {
        Ok(())
    } else {
        Err(format!("`{text}` is not an address to listen at: write :PORT or HOST:PORT, like :9090"))
    }
}

/// A whole number as YAML 1.1 reads it: `010` and `0o10` are 8, `0x1F`, `0b11`, and `1_000`.
fn parse_number(text: &str) -> Option<u64> {
    let digits: String = text.trim().chars().filter(|c| *c != '_').collect();
    let parse = |digits: &str, radix| {
        let fine = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
        if fine { u64::from_str_radix(digits, radix).ok() } else { None }
    };
    match digits.as_bytes() {
        [b'0', b'o' | b'O', ..] => parse(&digits[2..], 8),
        [b'0', b'x' | b'X', ..] => parse(&digits[2..], 16),
        [b'0', b'b' | b'B', ..] => parse(&digits[2..], 2),
        [b'0', _, ..] => parse(&digits[1..], 8),
        _ => parse(&digits, 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_yaml_1_1() {
        for (text, number) in [
            ("0", Some(0)),
            ("42", Some(42)),
            ("0600", Some(0o600)),
            ("0o600", Some(0o600)),
            ("0x1F", Some(31)),
            ("0b11", Some(3)),
            ("1_000", Some(1000)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("08", None),
            ("0x", None),
            ("1.5", None),
            ("1e3", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(parse_number(text), number, "{text}");
        }
    }

    #[test]
    fn addresses() {
        assert!(check_address(":9090").is_ok() && check_address("[::1]:80").is_ok() && check_address("h:0").is_ok());
        for wrong in ["9090", "host", ":x", "http://h:1", ":70000"] {
            assert!(check_address(wrong).is_err(), "{wrong}");
        }
    }
}
