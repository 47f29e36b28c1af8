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

/// Finds what `source` names: a URL, a database of the configuration file, or a folder that is a replica.
pub(crate) async fn find(common: &Common, source: &str) -> anyhow::Result<Place> {
    if is_url(source) {
        let mut config = ReplicaConfig::from_url(source)?;
        config.apply_env(env)?;
        let replicas = vec![litestream_storage::open(&config, policy(common)).await?];
        return Ok(Place { database: None, replicas, config: None });
    }
    let (config_path, loaded) = load_config(common)?;
    let path = config::database_path(Path::new(source), env("HOME").map(PathBuf::from).as_deref());
    let Some(database) = loaded.as_ref().and_then(|config| config.find_db(&path)) else {
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
    };
    let mut replicas = Vec::new();
    for replica in &database.replicas {
        let opened = litestream_storage::open(&replica.config, policy(common)).await;
        replicas.push(opened.with_context(|| format!("replica {}", replica.config))?);
    }
    Ok(Place { database: Some(database), replicas, config: loaded })
}
