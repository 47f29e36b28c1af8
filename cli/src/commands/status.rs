//! `litestream status`: the databases as they lie on the disk, and as the daemon sees them where one answers.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use litestream_config::{Config, DbConfig, DbSettings, SocketConfig};
use serde::Serialize;
use tabled::Tabled;

use super::local;
use crate::args::Common;
use crate::control::args::StatusArgs;
use crate::control::client::{Client, Unanswered, absolute};
use crate::control::wire::{Database, List, Replica, seconds};
use crate::{output, place};

/// How long to wait for a daemon that is not known to be there.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default, Serialize, Tabled)]
struct Row {
    database: String,
    /// Litestream's words, `ok`, `not initialized`, `no database`, `error`; or the daemon's phase.
    status: String,
    #[tabled(rename = "local txid", display = "or_dash")]
    local_txid: Option<String>,
    #[tabled(rename = "wal size", display = "size")]
    wal_size: Option<u64>,
    /// Files that wait to be uploaded.
    #[tabled(rename = "waiting", display = "waiting")]
    staged_files: Option<u64>,
    #[tabled(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    staged_bytes: Option<u64>,
    #[tabled(rename = "lag", display = "lag")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_seconds: Option<f64>,
    /// Whether a daemon has said this.
    #[tabled(skip)]
    live: bool,
    #[tabled(rename = "problem", display = "plain")]
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[tabled(skip)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    replicas: Vec<Replica>,
}

fn or_dash(text: &Option<String>) -> String {
    text.clone().unwrap_or_else(|| "-".to_owned())
}

fn plain(text: &Option<String>) -> String {
    text.clone().unwrap_or_default()
}

fn size(bytes: &Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), output::size)
}

fn waiting(files: &Option<u64>) -> String {
    files.map_or_else(|| "-".to_owned(), |files| files.to_string())
}

fn lag(lag: &Option<f64>) -> String {
    lag.map_or_else(|| "-".to_owned(), seconds)
}

impl Row {
    /// From the disk.
    fn offline(database: &DbConfig) -> Self {
        let name = database.path.display().to_string();
        let local = match local::look(database) {
            Ok(local) => local,
            Err(error) => {
                let problem = Some(error.to_string());
                return Self { database: name, status: "error".to_owned(), problem, ..Self::default() };
            }
        };
        let status = match local.txid {
            _ if !local.exists => "no database",
            None => "not initialized",
            Some(_) => "ok",
        };
        Self {
            database: name,
            status: status.to_owned(),
            local_txid: local.txid.map(|txid| txid.to_string()),
            wal_size: local.wal_size,
            staged_files: Some(local.staged),
            staged_bytes: Some(local.staged_bytes),
            ..Self::default()
        }
    }

    /// What a daemon says goes before what lies on the disk.
    fn live(self, daemon: &Database) -> Self {
        let problem = Some(daemon.problem()).filter(|problem| !problem.is_empty());
        Self {
            database: daemon.path.clone(),
            status: daemon.phase.clone().unwrap_or_else(|| daemon.status.clone()),
            local_txid: daemon.txid.clone().or(self.local_txid),
            wal_size: daemon.wal_size.or(self.wal_size),
            lag_seconds: daemon.lag_seconds,
            live: true,
            problem: problem.or(self.problem),
            replicas: daemon.replicas.clone(),
            ..self
        }
    }
}

pub(crate) async fn run(common: &Common, args: &StatusArgs) -> anyhow::Result<()> {
    let (path, config) = place::load_config(common)?;
    let live = match ask(args, config.as_ref()).await {
        Ok(live) => live,
        Err(error) if args.socket.is_some() => return Err(error),
        Err(error) if config.is_none() => {
            bail!("there is no configuration file {}, and {error:#}", path.display());
        }
        Err(error) => {
            output::note(&format!("this is what lies on the disk: {error:#}"));
            Vec::new()
        }
    };
    let rows = match &args.db {
        None => all(config.map(|config| config.databases()).transpose()?.unwrap_or_default(), &live),
        Some(db) => {
            let name = absolute(db)?;
            let daemon = live.iter().find(|daemon| daemon.path == name);
            let known = config.and_then(|config| config.find_db(name.as_ref()));
            let Some(known) = known.or_else(|| daemon.map(registered)) else {
                bail!("{name}: neither the configuration file {} nor a daemon knows it", path.display());
            };
            all(vec![known], daemon.map_or(&[], std::slice::from_ref))
        }
    };
    if args.json { output::json(&rows) } else { output::table(&rows) }
}

/// What the daemon says. Nothing where there is none, and nobody said that there is one.
async fn ask(args: &StatusArgs, config: Option<&Config>) -> anyhow::Result<Vec<Database>> {
    let configured = config.map_or_else(SocketConfig::default, |config| config.socket.clone());
    let socket = args.socket.as_ref().unwrap_or(&configured.path);
    match Client::at(socket, PATIENCE).get::<List>("/list").await {
        Ok(list) => Ok(list.databases),
        Err(Unanswered::NoDaemon(_)) if args.socket.is_none() && config.is_some() => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// The configuration's databases, then those that only the daemon knows.
fn all(mut known: Vec<DbConfig>, live: &[Database]) -> Vec<Row> {
    let by_path: HashMap<&Path, &Database> = live.iter().map(|daemon| (Path::new(&daemon.path), daemon)).collect();
    let in_file: HashSet<PathBuf> = known.iter().map(|database| database.path.clone()).collect();
    known.extend(live.iter().filter(|daemon| !in_file.contains(Path::new(&daemon.path))).map(registered));
    let row = |database: &DbConfig| {
        let offline = Row::offline(database);
        match by_path.get(database.path.as_path()) {
            Some(daemon) => offline.live(daemon),
            None => offline,
        }
    };
    known.iter().map(row).collect()
}

/// A database that was registered with the daemon.
fn registered(daemon: &Database) -> DbConfig {
    let path = PathBuf::from(&daemon.path);
    let meta_path = litestream_config::default_meta_path(&path);
    DbConfig { path, meta_path, settings: DbSettings::default(), replicas: Vec::new() }
}
