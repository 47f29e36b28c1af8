//! What is to be replicated, and how: from the command line or the configuration file, with all that is wrong with it at once.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::bail;
use litestream_config::{self as config, Config, DbConfig, DbEntry, DbSettings, Replica};
use litestream_storage::config::{Location, is_url};

use super::sharing;
use crate::args::{Common, Misused, ReplicateArgs};
use crate::place;

/// All that is known before anything starts.
#[derive(Debug)]
pub(super) struct Plan {
    /// The settings; the command line's go first.
    pub(super) config: Config,
    /// The configuration file, where there is one.
    pub(super) origin: Option<PathBuf>,
}

impl Plan {
    /// Reads the configuration file, or the command line where that names a database.
    ///
    /// # Errors
    /// All that is wrong with either.
    pub(super) fn new(common: &Common, args: &ReplicateArgs) -> anyhow::Result<Self> {
        let mut plan = match &args.database {
            Some(database) => Self::of_command_line(common, database, &args.urls)?,
            None => {
                let (path, config) = place::load_config(common)?;
                let Some(config) = config else {
                    bail!(
                        "there is no configuration file {}: write one, name another with --config, or name a database and a replica URL",
                        path.display()
                    );
                };
                Self { config, origin: Some(path) }
            }
        };
        let config = &mut plan.config;
        if args.once {
            config.exec = None;
        } else if args.exec.is_some() {
            config.exec.clone_from(&args.exec);
        }
        if args.restore_if_db_not_exists {
            for entry in &mut config.dbs {
                match entry {
                    DbEntry::Database(database) => database.settings.restore_if_db_not_exists = true,
                    DbEntry::Directory(folder) => folder.settings.restore_if_db_not_exists = true,
                }
            }
        }
        Ok(plan)
    }

    fn of_command_line(common: &Common, database: &Path, urls: &[String]) -> anyhow::Result<Self> {
        let name = database.display();
        if database.to_str().is_some_and(|text| is_url(text) && !text.starts_with("sqlite")) {
            // Not quoted: an address may carry credentials.
            bail!(Misused(
                "name the database file first, and then where it goes, as in `litestream replicate my.db s3://BUCKET/PATH`"
                    .to_owned()
            ));
        }
        if urls.is_empty() {
            bail!(Misused(format!(
                "{name}: where should it go? Give a replica URL, too, such as s3://BUCKET/PATH or file:///PATH"
            )));
        }
        if common.config.is_some() {
            bail!(Misused(format!("{name}: it is either a database with its replica URLs or --config, not both")));
        }
        let home = place::env("HOME").map(PathBuf::from);
        let path = config::database_path(database, home.as_deref());
        let (mut replicas, mut problems) = (Vec::new(), Vec::new());
        for url in urls {
            match place::address(url) {
                Ok(replica) => replicas.push(Replica::new(replica)),
                Err(error) => problems.push(format!("{error}")),
            }
        }
        Problems::none(None, problems)?;
        let meta_path = config::default_meta_path(&path);
        let database = DbConfig { path, meta_path, settings: DbSettings::default(), replicas };
        let mut config = Config::default();
        config.dbs.push(DbEntry::Database(database));
        Ok(Self { config, origin: None })
    }

    /// The databases that there are now, each once, and all that is wrong with them. What is only odd is logged.
    pub(super) fn databases(&self) -> (Vec<DbConfig>, Vec<String>) {
        let mut found = Found::default();
        for entry in &self.config.dbs {
            if let DbEntry::Database(database) = entry {
                found.named(database);
            }
        }
        for entry in &self.config.dbs {
            if let DbEntry::Directory(folder) = entry {
                match folder.scan_with(&config::is_database) {
                    Ok(scan) => {
                        scan.unreadable.iter().for_each(|why| tracing::warn!("{why}; passed over"));
                        scan.databases.into_iter().for_each(|database| found.below_folder(database));
                    }
                    Err(error) => found.problems.push(error.to_string()),
                }
            }
        }
        let mut problems = found.problems;
        problems.extend(sharing::shared_state(&found.all));
        problems.extend(sharing::shared_replicas(&found.all));
        (found.all, problems)
    }
}

/// Several things that are wrong with a configuration, none hiding another.
#[derive(Debug)]
pub(super) struct Problems {
    origin: Option<PathBuf>,
    all: Vec<String>,
}

impl Problems {
    /// Fails unless there is none.
    pub(super) fn none(origin: Option<&Path>, all: Vec<String>) -> Result<(), Self> {
        if all.is_empty() { Ok(()) } else { Err(Self { origin: origin.map(Path::to_owned), all }) }
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.origin, self.all.as_slice()) {
            (None, [problem]) => return f.write_str(problem),
            (None, _) => f.write_str("this cannot be replicated")?,
            (Some(path), _) => write!(f, "invalid configuration `{}`", path.display())?,
        }
        match self.all.as_slice() {
            [problem] => write!(f, ": {problem}"),
            problems => {
                write!(f, ", {} problems:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// Databases as they are found, by path and by file.
#[derive(Default)]
struct Found {
    all: Vec<DbConfig>,
    paths: HashSet<PathBuf>,
    files: HashMap<(u64, u64), PathBuf>,
    problems: Vec<String>,
}

impl Found {
    /// Another name that its file has already; else the file is this path's.
    fn twin(&mut self, path: &Path) -> Option<PathBuf> {
        let there = path.metadata().ok()?;
        let file = (there.dev(), there.ino());
        let first = self.files.get(&file).cloned();
        self.files.entry(file).or_insert_with(|| path.to_owned());
        first
    }

    fn named(&mut self, database: &DbConfig) {
        let name = database.path.display();
        if database.path.is_dir() {
            self.problems.push(format!("{name}: is a folder: name a database file, or write `dir` instead of `path`"));
        }
        for replica in &database.replicas {
            if let Location::File(folder) = &replica.config.location
                && folder.path.is_file()
            {
                let path = folder.path.display();
                self.problems
                    .push(format!("{name}: its replica {path} is a file: a replica lies in a folder of its own"));
            }
        }
        if let Some(first) = self.twin(&database.path) {
            let first = first.display();
            self.problems.push(format!("{name}: is the same file as {first}: remove one of the entries"));
        }
        self.paths.insert(database.path.clone());
        self.all.push(database.clone());
    }

    /// What has an entry of its own goes before.
    fn below_folder(&mut self, database: DbConfig) {
        if self.paths.contains(&database.path) {
            return;
        }
        if let Some(first) = self.twin(&database.path) {
            tracing::warn!(db = %database.path.display(), same = %first.display(), "passing over a second name of a database");
            return;
        }
        self.paths.insert(database.path.clone());
        self.all.push(database);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn plan(text: &str) -> Plan {
        let origin = Path::new("litestream.yml");
        let config = Config::parse(text, origin, false, &|_| None).unwrap();
        Plan { config, origin: Some(origin.into()) }
    }

    #[test]
    fn a_file_with_two_names_is_one_database() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.db");
        std::fs::write(&file, b"SQLite format 3\0").unwrap();
        std::os::unix::fs::symlink(&file, folder.path().join("b.db")).unwrap();
        let dir = folder.path().display();
        let text = format!("dbs: [{{dir: {dir}, pattern: '*.db', replica: {{path: /backup}}}}]");
        let (databases, problems) = plan(&text).databases();
        let paths: Vec<PathBuf> = databases.into_iter().map(|database| database.path).collect();
        assert_eq!((paths, problems.len()), (vec![file], 0));
        let both = format!(
            "dbs: [{{path: {dir}/a.db, replica: {{path: /backup/a}}}}, {{path: {dir}/b.db, replica: {{path: /backup/b}}}}]"
        );
        let (_, problems) = plan(&both).databases();
        assert!(problems.len() == 1 && problems[0].contains("is the same file as"), "{problems:?}");
    }
}
