//! From what the user names – a database or a URL – to replicas.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use litestream_config::{self as config, Config, DbConfig, LoadError};
use litestream_storage::config::{ReplicaConfig, is_url};
use litestream_storage::{Replica, RetryPolicy};

use crate::args::Common;
use crate::output;

/// What a user named.
pub(crate) struct Place {
    /// The database's own path, where it comes from the configuration.
    pub(crate) database: Option<DbConfig>,
    /// Its replicas, opened; at least one.
    pub(crate) replicas: Vec<Replica>,
    /// The configuration file's settings, where there is one.
    pub(crate) config: Option<Config>,
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// How patient to be with stores.
pub(crate) fn policy(common: &Common) -> RetryPolicy {
    RetryPolicy { total: common.retry_timeout, ..RetryPolicy::default() }
}

/// Reads the configuration file and shows its warnings. `None` where there is none and nobody asked for one.
pub(crate) fn load_config(common: &Common) -> anyhow::Result<(PathBuf, Option<Config>)> {
    let (path, named) = config::locate(common.config.as_deref(), &env);
    match Config::load(&path, !common.no_expand_env, &env) {
        Ok(config) => {
            for warning in &config.warnings {
                output::note(&format!("{}: {warning}", path.display()));
            }
            Ok((path, Some(config)))
        }
        Err(LoadError::NotFound(_)) if !named => Ok((path, None)),
        Err(error) => Err(error.into()),
    }
}

/// What a user named, not yet opened.
pub(crate) struct Named {
    /// The database, where it comes from the configuration.
    pub(crate) database: Option<DbConfig>,
    /// Its replicas; at least one.
    pub(crate) replicas: Vec<ReplicaConfig>,
    /// The configuration file's settings, where there is one.
    pub(crate) config: Option<Config>,
}

impl Named {
    fn database(database: DbConfig, config: Option<Config>) -> Self {
        let replicas = database.replicas.iter().map(|replica| replica.config.clone()).collect();
        Self { database: Some(database), replicas, config }
    }
}

/// Finds what `source` names – a URL, a database of the configuration file – and opens its replicas.
pub(crate) async fn find(common: &Common, source: &str) -> anyhow::Result<Place> {
    let Named { database, replicas, config } = resolve(common, source)?;
    let mut opened = Vec::new();
    for replica in &replicas {
        let result = litestream_storage::open(replica, policy(common)).await;
        opened.push(if database.is_some() { result.with_context(|| format!("replica {replica}"))? } else { result? });
    }
    Ok(Place { database, replicas: opened, config })
}

/// Finds what `source` names: a URL, or a database of the configuration file.
pub(crate) fn resolve(common: &Common, source: &str) -> anyhow::Result<Named> {
    if is_url(source) {
        let mut config = ReplicaConfig::from_url(source)?;
        config.apply_env(env)?;
        return Ok(Named { database: None, replicas: vec![config], config: None });
    }
    let (config_path, loaded) = load_config(common)?;
    let path = config::database_path(Path::new(source), env("HOME").map(PathBuf::from).as_deref());
    if let Some(database) = loaded.as_ref().and_then(|config| config.find_db(&path)) {
        return Ok(Named::database(database, loaded));
    }
    if path.join("ltx").is_dir() || path.join("generations").is_dir() {
        bail!("{source} is a folder with a replica: name it as file://{}", path.display());
    }
    match loaded {
        None => bail!(
            "{source}: no replica is known for it, as there is no configuration file {}: give a replica URL such as s3://BUCKET/PATH or file:///PATH, or a configuration with --config",
            config_path.display()
        ),
        Some(_) => bail!(
            "{source}: not in the configuration file {}: add it under `dbs`, or give a replica URL such as s3://BUCKET/PATH",
            config_path.display()
        ),
    }
}

/// What is meant where nothing was named: `LITESTREAM_REPLICA_URL`, or the only database of the configuration file.
pub(crate) fn only(common: &Common) -> anyhow::Result<Named> {
    if let Some(url) = env("LITESTREAM_REPLICA_URL").filter(|url| !url.is_empty()) {
        let mut config = ReplicaConfig::from_url(&url).context("LITESTREAM_REPLICA_URL")?;
        config.apply_env(env)?;
        return Ok(Named { database: None, replicas: vec![config], config: None });
    }
    let (path, loaded) = load_config(common)?;
    let Some(config) = loaded else {
        bail!(
            "name a replica such as s3://BUCKET/PATH or file:///PATH, set LITESTREAM_REPLICA_URL, or write a configuration file {}",
            path.display()
        );
    };
    let mut databases = config.databases()?;
    match databases.len() {
        1 => Ok(Named::database(databases.swap_remove(0), Some(config))),
        0 => bail!("{} lists no database: name a replica such as s3://BUCKET/PATH or file:///PATH", path.display()),
        _ => {
            let names: Vec<String> = databases.iter().map(|database| database.path.display().to_string()).collect();
            bail!("{} lists several databases: name one of {}", path.display(), names.join(", "))
        }
    }
}
