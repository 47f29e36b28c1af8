//! Pulling the whole database into a local file while it is read.
//!
//! One task for each database that is so configured, from its first connection to its last: it brings the file to the newest view, again and
//! again, and tries anew after failures. Nobody waits for it. How the file is filled and what of it may be believed is `litestream_hydrate`'s to
//! know.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use litestream_hydrate::{Background, Counters, Local};
use litestream_pageindex::{Replannable, View};
use ltx::Pgno;
use tokio::sync::{Notify, watch};

use crate::Result;
use crate::database::Database;
use crate::flight::Flight;
use crate::settings::HydrationPlace;

/// How long after a failure it is tried again; twice as long after each further one, up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// How long a close waits for the task's end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A database's file while connections use it.
pub(crate) struct Hydration {
    pub(crate) local: Arc<Local>,
    counters: Arc<Counters>,
    path: String,
    views: watch::Sender<Arc<View>>,
    failures: Arc<AtomicU64>,
    stop: Arc<Notify>,
    ended: Arc<Flight<()>>,
}

/// One database's hydration over time: there while there are connections.
pub(crate) struct Sessions {
    place: HydrationPlace,
    /// How many connections there are. Held while a file is opened and closed, so never taken by a task.
    users: Mutex<usize>,
    now: Mutex<Option<Arc<Hydration>>>,
}

/// A connection's part in it.
pub(crate) struct Attached {
    pub(crate) hydration: Arc<Hydration>,
    database: Arc<Database>,
}

impl Sessions {
    pub(crate) fn new(place: HydrationPlace) -> Self {
        Self { place, users: Mutex::default(), now: Mutex::default() }
    }

    fn now(&self) -> MutexGuard<'_, Option<Arc<Hydration>>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn users(&self) -> MutexGuard<'_, usize> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes part. The first one begins it. `None` where the database is not to be hydrated.
    ///
    /// # Errors
    /// Why there is no file for it.
    pub(crate) fn attach(database: &Arc<Database>) -> Result<Option<Attached>> {
        let this = &database.hydration;
        if this.place == HydrationPlace::Nowhere {
            return Ok(None);
        }
        let mut users = this.users();
        let known = this.now().clone();
        let hydration = match known {
            Some(hydration) => hydration,
            None => {
                let begun = Arc::new(Hydration::begin(database, &this.place)?);
                *this.now() = Some(begun.clone());
                begun
            }
        };
        *users += 1;
        drop(users);
        let attached = Attached { hydration, database: database.clone() };
        // What was published before the task could be told.
        this.tell(&database.latest()?.view);
        Ok(Some(attached))
    }

    /// Tells the task of a newer view.
    pub(crate) fn tell(&self, view: &Arc<View>) {
        if let Some(hydration) = &*self.now() {
            hydration.tell(view);
        }
    }

    /// How much of the newest view is there, in percent.
    pub(crate) fn progress(&self) -> u64 {
        self.now().as_ref().map_or(0, |hydration| hydration.progress())
    }

    /// Where the file lies; empty where there is none, or none with a name.
    pub(crate) fn path(&self) -> String {
        self.now().as_ref().map_or_else(String::new, |hydration| hydration.path.clone())
    }

    /// Counters by name.
    pub(crate) fn stats(&self) -> Vec<(&'static str, u64)> {
        let now = self.now();
        let Some(hydration) = &*now else { return Vec::new() };
        vec![
            ("hydration_pages", hydration.local.progress().map_or(0, |(there, _)| there)),
            ("hydration_bytes", hydration.counters.bytes.load(Ordering::Relaxed)),
            ("hydration_failures", hydration.failures.load(Ordering::Relaxed)),
            ("hydration_complete", u64::from(hydration.is_complete())),
        ]
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if !self.database.process.is_this() {
            // After a fork: the parent's lock may be held by a thread that is not here, and its file is not ours to end.
            return;
        }
        let mut users = self.database.hydration.users();
        *users -= 1;
        if *users == 0 {
            let ended = self.database.hydration.now().take();
            if let Some(hydration) = ended {
                // Whoever opens the database again meanwhile waits for that, and then finds the file free.
                hydration.end();
            }
        }
    }
}

impl Hydration {
    fn begin(database: &Arc<Database>, place: &HydrationPlace) -> Result<Self> {
        let replica = &database.replica;
        let background = match place {
            HydrationPlace::Path(path) => Background::at(replica, path, &database.process.places)?,
            _ => Background::temporary(replica)?,
        };
        let (views, newest) = watch::channel(database.latest()?.view.clone());
        let hydration = Self {
            local: background.local().clone(),
            counters: background.counters().clone(),
            path: background.path().map_or_else(String::new, |path| path.display().to_string()),
            views,
            failures: Arc::default(),
            stop: Arc::default(),
            ended: Arc::default(),
        };
        let ended = Ended(hydration.ended.clone());
        let (stop, failures) = (hydration.stop.clone(), hydration.failures.clone());
        let mut task = Task { background, newest, database: Arc::downgrade(database), failures, wait: FIRST_WAIT };
        database.process.spawn(async move {
            tokio::select! {
                () = stop.notified() => {}
                () = task.run() => {}
            }
            let closed = tokio::task::spawn_blocking(move || task.background.close()).await;
            if let Ok(Err(error)) = closed {
                tracing::warn!(%error, "cannot note how far a database was hydrated");
            }
            drop(ended);
        });
        Ok(hydration)
    }

    /// Ends the task and waits for its end, for a bounded time.
    fn end(&self) {
        self.stop.notify_one();
        if self.ended.wait(Some(Instant::now() + PATIENCE), &|| false).is_none() {
            tracing::error!(path = self.path, "hydration does not end");
        }
    }

    fn tell(&self, view: &Arc<View>) {
        self.views.send_if_modified(|known| {
            let newer = !Arc::ptr_eq(known, view) && view.txid() >= known.txid();
            if newer {
                known.clone_from(view);
            }
            newer
        });
    }

    fn is_complete(&self) -> bool {
        let newest = self.views.borrow().clone();
        self.local.is_complete(&newest)
    }

    fn progress(&self) -> u64 {
        match self.local.progress() {
            _ if self.is_complete() => 100,
            // All is there of a view that is no longer the newest.
            Some((there, all)) if all > 0 => (there * 100 / all).min(99),
            _ => 0,
        }
    }

    /// Reads a page of a view. False where it is not there.
    pub(crate) fn read(&self, view: &View, pgno: Pgno, into: &mut [u8]) -> bool {
        view.holder(pgno).is_some_and(|(file, _)| self.local.read(&view.files()[file], pgno, into))
    }

    /// A page of a view, where it is there.
    pub(crate) fn page(&self, view: &View, pgno: Pgno) -> Option<Bytes> {
        let (file, _) = view.holder(pgno)?;
        let file = &view.files()[file];
        if !self.local.holds(file, pgno) {
            return None;
        }
        let mut page = vec![0; view.page_size().bytes()];
        self.local.read(file, pgno, &mut page).then(|| page.into())
    }
}

/// Says that the task has ended, whatever ended it.
struct Ended(Arc<Flight<()>>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.land(());
    }
}

struct Task {
    background: Background,
    newest: watch::Receiver<Arc<View>>,
    database: Weak<Database>,
    failures: Arc<AtomicU64>,
    wait: Duration,
}

impl Task {
    async fn run(&mut self) {
        loop {
            let view = self.newest.borrow_and_update().clone();
            if let Err(error) = self.step(&view).await {
                self.failed(&error).await;
                continue;
            }
            tokio::select! {
                changed = self.newest.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.wait = FIRST_WAIT;
                }
                () = self.background.lost() => {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    self.pause().await;
                }
                () = at(self.background.checkpoint_due()) => {}
            }
        }
    }

    async fn step(&mut self, view: &Arc<View>) -> litestream_hydrate::Result<()> {
        if !self.background.local().is_complete(view) {
            self.background.bring(view).await?;
            tracing::debug!(txid = %view.txid(), "hydrated");
        }
        if self.background.checkpoint_due().is_some_and(|due| due <= Instant::now()) {
            self.background.checkpoint().await?;
        }
        Ok(())
    }

    async fn failed(&mut self, error: &litestream_hydrate::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let wait = self.wait.as_secs();
        tracing::warn!(%error, "hydration failed: reading from the replica, and trying again in {wait} s");
        if error.wants_new_plan()
            && let Some(database) = self.database.upgrade()
            && let Err(error) = Box::pin(database.renew()).await
        {
            tracing::debug!(%error, "there is no other view yet");
        }
        self.pause().await;
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }
}

/// Waits until a moment; for ever where there is none.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
