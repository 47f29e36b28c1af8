//! From what the user names – a database or a URL – to replicas.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use litestream_config::{self as config, Config, DbConfig, DbEntry, DirConfig, LoadError};
use litestream_storage::config::{ConfigError, Location, ReplicaConfig, is_url};
use litestream_storage::{Replica, RetryPolicy};

use crate::args::Common;
use crate::output;

/// What a user named.
pub(crate) struct Place {
    /// The database as the configuration has it, where it comes from there.
    pub(crate) database: Option<DbConfig>,
    /// The replica's address, where that was named.
    address: Option<ReplicaConfig>,
    /// Its replicas, opened; at least one.
    pub(crate) replicas: Vec<Replica>,
    /// The configuration file's settings, where there is one.
    pub(crate) config: Option<Config>,
}

/// A variable of the environment.
pub(crate) fn env(name: &str) -> Option<String> {
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
    let address = if database.is_some() { None } else { replicas.into_iter().next() };
    Ok(Place { database, address, replicas: opened, config })
}

/// The replica that a URL and the environment describe.
pub(crate) fn address(url: &str) -> Result<ReplicaConfig, ConfigError> {
    let mut config = ReplicaConfig::from_url(url)?;
    config.apply_env(env)?;
    Ok(config)
}

/// A URL as it may be shown: without what says who we are.
pub(crate) fn without_secrets(url: &str) -> String {
    let config = ReplicaConfig::from_url(url).map(|config| config.url());
    config.unwrap_or_else(|_| {
        let (place, _) = url.split_once('?').unwrap_or((url, ""));
        match place.rsplit_once('@') {
            Some((before, place)) => match before.split_once("://") {
                Some((scheme, _)) => format!("{scheme}://{place}"),
                None => place.to_owned(),
            },
            None => place.to_owned(),
        }
    })
}

/// Finds what `source` names: a URL, or a database of the configuration file.
pub(crate) fn resolve(common: &Common, source: &str) -> anyhow::Result<Named> {
    if is_url(source) {
        return Ok(Named { database: None, replicas: vec![address(source)?], config: None });
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
        let replica = address(&url).context("LITESTREAM_REPLICA_URL")?;
        return Ok(Named { database: None, replicas: vec![replica], config: None });
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

/// The replica that has this address, with credentials and all: as the configuration knows it, or as its URL and the environment say.
pub(crate) fn at_address(common: &Common, url: &str) -> anyhow::Result<ReplicaConfig> {
    let (_, config) = load_config(common)?;
    Ok(known_at(&config.unwrap_or_default(), url)?)
}

/// The same, of a configuration that was read.
pub(crate) fn known_at(config: &Config, url: &str) -> Result<ReplicaConfig, ConfigError> {
    let mut address = ReplicaConfig::from_url(url)?;
    if let Some(database) = owner(config, &address)
        && let Some(known) = database.replicas.into_iter().find(|known| lies_at(&known.config, &address))
    {
        return Ok(known.config);
    }
    address.apply_env(env)?;
    Ok(address)
}

/// A path from here on to wherever a program may be, as text.
pub(crate) fn text(path: &Path) -> anyhow::Result<String> {
    let absolute = std::path::absolute(path).with_context(|| format!("{path:?}"))?;
    // What a slash at the end says gets lost otherwise.
    let slash = if path.to_string_lossy().ends_with('/') { "/" } else { "" };
    let text = absolute.to_str().with_context(|| format!("{path:?}: this path is no UTF-8 text"))?;
    Ok(format!("{}{slash}", text.trim_end_matches('/')))
}

/// As [`find`]; and where `source` is a URL, with the settings of the database whose replica lies there, if the configuration knows one.
pub(crate) async fn find_with_settings(common: &Common, source: &str) -> anyhow::Result<Place> {
    let mut place = find(common, source).await?;
    if let Some(address) = &place.address
        && let (_, Some(config)) = load_config(common)?
        && let Some(database) = owner(&config, address)
    {
        place.database = Some(database);
        place.config = Some(config);
    }
    Ok(place)
}

/// The database of the configuration that has this replica. Its own entry goes before a directory's.
fn owner(config: &Config, address: &ReplicaConfig) -> Option<DbConfig> {
    let own = config.dbs.iter().find_map(|entry| match entry {
        DbEntry::Database(database) => {
            database.replicas.iter().any(|replica| lies_at(&replica.config, address)).then(|| database.clone())
        }
        DbEntry::Directory(_) => None,
    });
    own.or_else(|| {
        config.dbs.iter().find_map(|entry| match entry {
            DbEntry::Database(_) => None,
            DbEntry::Directory(folder) => owner_in(folder, address),
        })
    })
}

/// Replicas of a folder's databases lie at their relative paths.
fn owner_in(folder: &DirConfig, address: &ReplicaConfig) -> Option<DbConfig> {
    folder.replicas.iter().find_map(|replica| {
        let relative = below(&replica.config, address).filter(|rest| !rest.is_empty())?;
        folder.database(&folder.dir.join(relative))
    })
}

fn lies_at(replica: &ReplicaConfig, address: &ReplicaConfig) -> bool {
    below(replica, address).is_some_and(|rest| rest.is_empty())
}

/// Where `address` lies below `base`, empty where it is the same place. Only what says *where* counts.
fn below(base: &ReplicaConfig, address: &ReplicaConfig) -> Option<String> {
    match (&base.location, &address.location) {
        (Location::S3(base), Location::S3(address)) => {
            let same_store = (&base.bucket, &base.endpoint) == (&address.bucket, &address.endpoint);
            let rest = address.path.strip_prefix(&base.path).filter(|_| same_store)?;
            match rest.strip_prefix('/') {
                Some(rest) => Some(rest.to_owned()),
                None if rest.is_empty() || base.path.is_empty() => Some(rest.to_owned()),
                None => None,
            }
        }
        (Location::File(base), Location::File(address)) => {
            let rest = real(&address.path);
            Some(rest.strip_prefix(real(&base.path)).ok()?.to_str()?.to_owned())
        }
        _ => None,
    }
}

/// The place behind a path, which may be relative, or a symbolic link.
pub(crate) fn real(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| config::database_path(path, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_of_a_replica_is_found_by_its_address() {
        let text = "
dbs:
  - path: /data/a.db
    snapshot: {retention: 48h}
    replica: {url: 's3://bucket/a?endpoint=http://127.0.0.1:9000&region=here'}
  - path: /data/b.db
    replicas: [{url: 's3://other/b'}, {type: file, path: /backup/x/../b}]
  - dir: /data/many
    pattern: '*.db'
    recursive: true
    replica: {url: 's3://bucket/many'}
";
        let config = Config::parse(text, Path::new("litestream.yml"), false, &|_| None).unwrap();
        let found = |url: &str| owner(&config, &ReplicaConfig::from_url(url).unwrap()).map(|database| database.path);
        assert_eq!(found("s3://bucket/a?endpoint=http://127.0.0.1:9000"), Some("/data/a.db".into()));
        assert_eq!(found("s3://other/b/"), Some("/data/b.db".into()));
        assert_eq!(found("file:///backup/b"), Some("/data/b.db".into()));
        assert_eq!(found("s3://bucket/many/x/c.db"), Some("/data/many/x/c.db".into()));
        for elsewhere in ["s3://bucket/a", "s3://other/bb", "s3://other/b/c", "s3://bucket/many", "s3://bucket/many/c"]
        {
            assert_eq!(found(elsewhere), None, "{elsewhere}");
        }
    }
}
