//! What databases must not share: each would take the other's files for its own.
//!
//! The configuration file is checked when it is read; this is about what shows only once folders have been searched.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use litestream_config::DbConfig;
use litestream_storage::config::{Location, ReplicaConfig};

use crate::place;

/// Databases whose local state would lie in one folder.
pub(super) fn shared_state(databases: &[DbConfig]) -> Vec<String> {
    let mut owners: HashMap<&Path, &Path> = HashMap::new();
    let problem = |database: &DbConfig, other: &Path| {
        format!(
            "{}: its local state would lie in {}, as that of {} does: give each its own `meta-path`",
            database.path.display(),
            database.meta_path.display(),
            other.display()
        )
    };
    databases
        .iter()
        .filter_map(|database| {
            let other = owners.insert(&database.meta_path, &database.path)?;
            Some(problem(database, other))
        })
        .collect()
}

/// Where a replica lies, so that what lies within it is sorted right behind it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Spot<'a> {
    store: String,
    parts: Vec<String>,
    database: &'a Path,
    url: String,
    /// Whether it is no replica, but what a database keeps beside it.
    local: bool,
}

impl<'a> Spot<'a> {
    fn new(database: &'a Path, replica: &ReplicaConfig) -> Self {
        let (store, path) = match &replica.location {
            Location::S3(bucket) => {
                (format!("{} {}", bucket.endpoint.as_deref().unwrap_or_default(), bucket.bucket), bucket.path.clone())
            }
            Location::File(folder) => (String::new(), place::real(&folder.path).to_string_lossy().into_owned()),
            _ => (replica.type_name().to_owned(), replica.url()),
        };
        let parts = path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        Self { store, parts, database, url: replica.url(), local: false }
    }

    /// Where a database's local state lies.
    fn local(database: &'a DbConfig) -> Self {
        let folder = place::real(&database.meta_path).to_string_lossy().into_owned();
        let parts = folder.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let url = database.meta_path.display().to_string();
        Self { store: String::new(), parts, database: &database.path, url, local: true }
    }

    /// Of the place itself, and of the folders around it.
    fn hashes(&self) -> (u64, Vec<u64>) {
        let hash = |parts: &[String]| {
            let mut hasher = DefaultHasher::new();
            (&self.store, parts).hash(&mut hasher);
            hasher.finish()
        };
        let around = (0..self.parts.len()).map(|len| hash(self.parts.get(..len).unwrap_or_default())).collect();
        (hash(&self.parts), around)
    }

    fn holds(&self, other: &Self) -> bool {
        self.store == other.store && other.parts.starts_with(&self.parts)
    }

    fn problem(&self, other: &Self) -> String {
        let (this, that) = (self.database.display(), other.database.display());
        if self.local || other.local {
            return format!(
                "{this} and {that}: {} and {} lie in one another, a replica and the folder of local state: give the replica a path of its own",
                self.url, other.url
            );
        }
        if self.parts != other.parts {
            let (inside, outside) = (&other.url, &self.url);
            return format!(
                "{that}: its replica {inside} lies inside {outside}, the replica of {this}: give it a path of its own"
            );
        }
        if this.to_string() == that.to_string() {
            return format!("{this}: the replica {} is listed twice: remove one of them", self.url);
        }
        format!("{this} and {that} have the same replica {}: give each a path of its own", self.url)
    }
}

/// A database's replicas and its local state.
fn spots_of(database: &DbConfig) -> impl Iterator<Item = Spot<'_>> {
    let replicas = database.replicas.iter().map(|replica| Spot::new(&database.path, &replica.config));
    replicas.chain([Spot::local(database)])
}

/// Replicas that would take each other's files for their own, or the local state of a database: what is captured waits in a folder that looks as a
/// replica does, and is deleted there.
pub(super) fn shared_replicas(databases: &[DbConfig]) -> Vec<String> {
    let mut spots: Vec<Spot<'_>> = databases.iter().flat_map(spots_of).collect();
    spots.sort();
    let (mut around, mut problems) = (Vec::<&Spot<'_>>::new(), Vec::new());
    for spot in &spots {
        while around.pop_if(|outer| !outer.holds(spot)).is_some() {}
        // Two folders of local state are `shared_state`'s business.
        if let Some(outer) = around.iter().rev().find(|outer| !(outer.local && spot.local)) {
            problems.push(outer.problem(spot));
        }
        around.push(spot);
    }
    problems
}

/// Where replicas and local state lie, for those that come one by one. Only hashes are kept: there may be very many.
#[derive(Debug, Default)]
pub(super) struct Spots {
    /// What lies there itself, and the folders around it; how often.
    taken: HashMap<u64, u32>,
    around: HashMap<u64, u32>,
}

impl Spots {
    pub(super) fn add(&mut self, database: &DbConfig) {
        for spot in spots_of(database) {
            let (itself, around) = spot.hashes();
            *self.taken.entry(itself).or_default() += 1;
            around.into_iter().for_each(|outer| *self.around.entry(outer).or_default() += 1);
        }
    }

    pub(super) fn remove(&mut self, database: &DbConfig) {
        let forget = |counts: &mut HashMap<u64, u32>, hash| {
            if let Some(count) = counts.get_mut(&hash) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&hash);
                }
            }
        };
        for spot in spots_of(database) {
            let (itself, around) = spot.hashes();
            forget(&mut self.taken, itself);
            around.into_iter().for_each(|outer| forget(&mut self.around, outer));
        }
    }

    /// Why a database cannot be one more.
    pub(super) fn problem(&self, database: &DbConfig) -> Option<String> {
        if let Some(problem) = shared_replicas(std::slice::from_ref(database)).into_iter().next() {
            return Some(problem);
        }
        let clash = spots_of(database).find(|spot| {
            let (itself, around) = spot.hashes();
            self.around.contains_key(&itself)
                || around.iter().chain([&itself]).any(|hash| self.taken.contains_key(hash))
        })?;
        Some(format!("{}: another database's replica or local state lies there: give it a path of its own", clash.url))
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::replicate::plan::tests::plan;

    #[test]
    fn databases_share_neither_replicas_nor_state() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["x", "y"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("a.db"), b"SQLite format 3\0").unwrap();
        }
        let text = "
dbs:
  - {path: /a.db, replica: {url: 's3://bucket/x'}}
  - {path: /b.db, replica: {url: 's3://bucket/x?region=elsewhere'}}
  - {path: /c.db, replicas: [{url: 's3://bucket/x/c'}, {url: 's3://other/x'}, {url: 's3://bucket/xy'}]}
  - {path: /d.db, replica: {url: 's3://bucket/x?endpoint=http://127.0.0.1:9000'}}
  - {dir: DIR/x, pattern: '*.db', meta-path: /state, replica: {path: /backup/x}}
  - {dir: DIR/y, pattern: '*.db', meta-path: /state, replica: {path: /backup/y}}
  - {dir: /no/such/folder, pattern: '*.db', replica: {path: /backup/many}}
";
        let (_, problems) = plan(&text.replace("DIR", folder.path().to_str().unwrap())).databases();
        let expected = [
            "/no/such/folder",
            "/y/a.db: its local state would lie in /state/.a.db-litestream, as that of ",
            "/a.db and /b.db have the same replica s3://bucket/x",
            "/c.db: its replica s3://bucket/x/c lies inside s3://bucket/x",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, part) in problems.iter().zip(expected) {
            assert!(problem.contains(part), "{part}: {problem}");
        }
    }
}
