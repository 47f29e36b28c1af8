//! Databases that come and go in watched folders.
//!
//! A look at the folders every few seconds is the truth; hints only make it come sooner.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use litestream_config::{DbConfig, DbEntry, DirConfig, is_database};
use litestream_replicate::daemon::{Phase, Status};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Running;
use super::hints::Hints;

/// How often is looked.
const RESCAN: Duration = Duration::from_secs(10);
/// How long the end of a database may take that has gone, at least.
const LEAVES: Duration = Duration::from_secs(30);
/// How long after a hint: what is being created or renamed is soon as it should be.
const SETTLE: Duration = Duration::from_millis(200);
/// However many hints there are, a look takes at most one part in so many of the time.
const SHARE: u32 = 20;

/// The watched folders.
pub(super) struct Watch {
    running: Arc<Running>,
    folders: Vec<Folder>,
    hints: Hints,
    /// Databases that have gone, and are being let go of.
    leaving: JoinSet<PathBuf>,
}

struct Folder {
    config: Arc<DirConfig>,
    /// What was registered, and is there still. If somebody unregisters one of them by hand, that is respected.
    seen: HashSet<PathBuf>,
    /// What could not be registered, so that it is said once.
    refused: HashMap<PathBuf, String>,
    /// Why the folder could not be searched the last time.
    failure: Option<String>,
}

/// What a look has found.
struct Looked {
    new: Vec<DbConfig>,
    gone: Vec<PathBuf>,
    dirs: Vec<PathBuf>,
    failure: Option<String>,
}

impl Watch {
    /// `None` where no folder is to be watched.
    pub(super) fn new(running: &Arc<Running>, registered: &[PathBuf]) -> Option<Self> {
        let folders: Vec<Folder> = running.config.dbs.iter().filter_map(|entry| folder(entry, registered)).collect();
        if folders.is_empty() {
            return None;
        }
        Some(Self { running: running.clone(), folders, hints: Hints::new(), leaving: JoinSet::new() })
    }

    /// Never ends by itself.
    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            self.look().await;
            let pause = (began.elapsed() * SHARE).clamp(SETTLE, RESCAN);
            tokio::select! {
                () = self.hints.next() => sleep(pause).await,
                () = sleep(RESCAN) => {}
            }
        }
    }

    async fn look(&mut self) {
        while self.leaving.try_join_next().is_some() {}
        let running = self.running.clone();
        let _ = tokio::task::spawn_blocking(move || running.look_at_files()).await;
        for at in 0..self.folders.len() {
            let folder = &self.folders[at];
            let (running, config, seen) = (self.running.clone(), folder.config.clone(), folder.seen.clone());
            let looked = tokio::task::spawn_blocking(move || look_into(&running, &config, seen)).await;
            // It panics only where this program is broken, and says so itself.
            let Ok(looked) = looked else { continue };
            for dir in &looked.dirs {
                self.hints.watch(dir);
            }
            self.tell_failure(at, looked.failure);
            for path in looked.gone {
                self.let_go(at, path);
            }
            for database in looked.new {
                self.take_up(at, database).await;
            }
        }
    }

    fn tell_failure(&mut self, at: usize, failure: Option<String>) {
        let folder = &mut self.folders[at];
        let dir = folder.config.dir.display();
        match &failure {
            Some(why) if folder.failure.as_ref() != Some(why) => tracing::warn!("{why}; looking again and again"),
            None if folder.failure.is_some() => tracing::info!(%dir, "can be searched again"),
            _ => {}
        }
        folder.failure = failure;
    }

    async fn take_up(&mut self, at: usize, database: DbConfig) {
        let (path, running) = (database.path.clone(), &self.running);
        let folder = &mut self.folders[at];
        let registered = match running.spec_for(&database).await {
            Ok(spec) => running.register_beside(database, spec),
            Err(error) => Err(format!("{error:#}")),
        };
        match registered {
            Ok(true) => {
                tracing::info!(db = %path.display(), "a new database: replicating");
                folder.refused.remove(&path);
                folder.seen.insert(path);
            }
            // Where it is still being let go of, the next look finds it again.
            Ok(false) => {}
            Err(why) => {
                if folder.refused.get(&path) != Some(&why) {
                    tracing::error!(error = why, "a new database cannot be replicated");
                    folder.refused.insert(path, why);
                }
            }
        }
    }

    fn let_go(&mut self, at: usize, path: PathBuf) {
        let running = self.running.clone();
        if running.daemon.status_of(&path).is_some_and(|status| is_needed(&status)) {
            return;
        }
        self.folders[at].seen.remove(&path);
        if running.database(&path).is_none() {
            return;
        }
        tracing::info!(db = %path.display(), "the database has gone: no longer replicated");
        self.leaving.spawn(async move {
            if let Err(error) = running.unregister(&path, running.config.shutdown_sync_timeout.max(LEAVES)).await {
                tracing::warn!(%error, "its replicas are not up to date");
            }
            path
        });
    }
}

/// Whether something may still go up of a database that is gone: as long as it is registered, that happens once the store answers.
fn is_needed(status: &Status) -> bool {
    match status.phase {
        Phase::Stopped => false,
        Phase::Waiting => {
            status.replicas.iter().any(|replica| replica.waiting > 0 && !replica.fenced && !replica.needs_snapshot)
        }
        // That it is gone was not noticed yet, and what was committed last may not be captured.
        _ => true,
    }
}

fn folder(entry: &DbEntry, registered: &[PathBuf]) -> Option<Folder> {
    let DbEntry::Directory(config) = entry else { return None };
    if !config.watch {
        return None;
    }
    let seen = registered.iter().filter(|path| config.database(path).is_some()).cloned().collect();
    Some(Folder { config: Arc::new(config.clone()), seen, refused: HashMap::new(), failure: None })
}

fn look_into(running: &Running, config: &DirConfig, seen: HashSet<PathBuf>) -> Looked {
    let is_new =
        |path: &Path| !seen.contains(path) && running.unless_replicated(path, || is_database(path)).unwrap_or_default();
    let (scan, failure) = match config.scan_with(&is_new) {
        Ok(mut scan) => {
            let unreadable = scan.unreadable.pop();
            (scan, unreadable)
        }
        Err(error) => (litestream_config::Scan::default(), Some(error.to_string())),
    };
    // A folder that cannot be read is no sign that its databases have gone.
    let gone = seen.into_iter().filter(|path| path.try_exists().is_ok_and(|exists| !exists)).collect();
    Looked { new: scan.databases, gone, dirs: scan.dirs, failure }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use litestream_config::Config;
    use litestream_storage::RetryPolicy;

    use super::*;

    const HEADER: &[u8] = b"SQLite format 3\0";

    fn watch(dir: &Path, registered: &[PathBuf]) -> (Arc<Running>, Watch) {
        let text = format!(
            "dbs: [{{dir: {}, pattern: '*.db', recursive: true, watch: true, replica: {{path: /backup}}}}]",
            dir.display()
        );
        let config = Config::parse(&text, Path::new("c.yml"), false, &|_| None).unwrap();
        let running = Arc::new(Running::new(config, &RetryPolicy::default()));
        let watch = Watch::new(&running, registered).unwrap();
        (running, watch)
    }

    #[tokio::test]
    async fn databases_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (running, mut watch) = watch(folder.path(), &[]);
        let is_known = |name: &str| running.database(&at(name)).is_some();
        fs::write(at("empty.db"), "").unwrap();
        fs::write(at("a.db"), HEADER).unwrap();
        fs::write(at("a.txt"), HEADER).unwrap();
        watch.look().await;
        assert_eq!(["a.db", "empty.db", "a.txt"].map(is_known), [true, false, false]);
        fs::create_dir(at("below")).unwrap();
        fs::write(at("below/b.db"), HEADER).unwrap();
        fs::write(at("empty.db"), HEADER).unwrap();
        fs::hard_link(at("a.db"), at("twin.db")).unwrap();
        fs::remove_file(at("a.db")).unwrap();
        watch.look().await;
        assert_eq!(["empty.db", "below/b.db"].map(is_known), [true, true]);
        while is_known("a.db") {
            // It is let go of once the daemon has seen that it is gone.
            sleep(Duration::from_millis(20)).await;
            watch.look().await;
        }
        watch.look().await;
        assert!(is_known("twin.db"), "its other name has gone");
    }

    #[tokio::test]
    async fn what_was_unregistered_by_hand_stays_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        fs::write(&path, HEADER).unwrap();
        let (running, mut watch) = watch(folder.path(), std::slice::from_ref(&path));
        watch.look().await;
        assert!(running.database(&path).is_none());
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_searched_does_not_end_anything() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x/a.db");
        fs::create_dir(folder.path().join("x")).unwrap();
        fs::write(&path, HEADER).unwrap();
        let (running, mut watch) = watch(&folder.path().join("x"), &[]);
        watch.look().await;
        fs::rename(folder.path().join("x"), folder.path().join("y")).unwrap();
        watch.look().await;
        assert!(watch.folders[0].failure.as_ref().unwrap().contains("cannot search"));
        while running.database(&path).is_some() {
            sleep(Duration::from_millis(20)).await;
            watch.look().await;
        }
        fs::rename(folder.path().join("y"), folder.path().join("x")).unwrap();
        watch.look().await;
        assert!(watch.folders[0].failure.is_none() && running.database(&path).is_some());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_file_that_comes_is_hinted_at() {
        let folder = tempfile::tempdir().unwrap();
        let mut hints = Hints::new();
        hints.watch(folder.path());
        fs::write(folder.path().join("a.db"), HEADER).unwrap();
        tokio::time::timeout(Duration::from_secs(30), hints.next()).await.unwrap();
    }
}
