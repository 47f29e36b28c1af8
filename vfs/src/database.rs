//! One replica as all connections of a process see it: the newest view, and who looks for newer ones.
//!
//! - Connections take the newest view at the start of a transaction; a view never changes once it is published.
//! - While somebody reads, a task asks for new files once an interval: one LIST of level 0 from the TXID after the newest. The next view comes
//!   from the new files alone. A gap, or many new files, lead to a full look. After idleness the next reader waits for one fresh poll.
//! - A file that has vanished leads to a new plan for the *same* TXID.
//! - The file of level 0 that ends with the TXID that is seen is remembered and compared at each poll, whatever file the view reads that
//!   transaction from: there shows whether what follows continues the same history.
//! - The number that page 1 carries as its change counter comes from here: one for each TXID's content, never used again for another.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt, TryStreamExt};
use litestream_pageindex::{Listing, OpenFile, Plan, Target, View, exact, find, open_file, replan_from};
use litestream_storage::{FileInfo, Level, Replica, RetryPolicy, Scope};
use ltx::{Commit, PageSize, Pgno, Timestamp, Txid};

use crate::btree::below_roots;
use crate::connection::CHANGE_COUNTER;
use crate::fetch::{Wanted, decode};
use crate::flight::Flight;
use crate::hydration::Sessions;
use crate::process::Process;
use crate::settings::{Settings, WriteSettings};
use crate::write::layer::Local;
use crate::write::probe::Probe;
use crate::write::writer::Writer;
use crate::{Error, Result, write};

/// How long after the last transaction polling goes on, in intervals, and at least.
const LINGER: u32 = 5;
const SHORTEST_LINGER: Duration = Duration::from_secs(3);
/// How many pages below the roots of trees are fetched before anybody asks.
const FORESEEN: usize = 24;
/// From so many files on, a view is planned anew: compaction will have merged most of them.
const MANY_FILES: usize = 512;
/// From so many new files on, planning anew is cheaper than reading them all.
const MANY_NEW: usize = 64;
/// For how many TXIDs the change counter is remembered; a TXID that is met again after that gets a fresh one.
const COUNTERS: usize = 1 << 14;
/// How long one request may be tried.
const PATIENCE: Duration = Duration::from_secs(30);

/// A view as it is shown to SQLite.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) view: Arc<View>,
    /// What was committed here in front of it.
    pub(crate) local: Option<Local>,
    /// What stands as the change counter in page 1.
    pub(crate) counter: u32,
    /// The file of level 0 that ends with the view's TXID, as it was when it was first listed. The view may read that transaction from a
    /// compacted file instead, but it is here that a history shows which was written again.
    tip: OnceLock<FileInfo>,
}

/// A view as it was opened from the replica, and the [`Shown::tip`] where it was listed then.
#[derive(Clone)]
struct Opened {
    view: View,
    tip: Option<FileInfo>,
}

impl Shown {
    /// The database's size in pages.
    pub(crate) fn commit(&self) -> Commit {
        self.local.as_ref().map_or_else(|| self.view.commit(), Local::commit)
    }

    /// The size of its pages.
    pub(crate) fn page_size(&self) -> PageSize {
        self.local.as_ref().map_or_else(|| self.view.page_size(), |local| local.page_size)
    }

    /// The size of its pages, unless there is none yet.
    pub(crate) fn decided_page_size(&self) -> Option<PageSize> {
        (self.commit().0 > 0).then(|| self.page_size())
    }
}

/// See the module.
pub(crate) struct Database {
    pub(crate) process: &'static Process,
    pub(crate) replica: Replica,
    settings: Settings,
    pub(crate) hydration: Sessions,
    latest: Mutex<Option<Arc<Shown>>>,
    polling: Mutex<Polling>,
    counters: Mutex<ChangeCounters>,
    polls: AtomicU64,
    /// With which transaction level 0 was last seen to end, and when, by the store's clock.
    end: Mutex<Option<(Txid, Timestamp)>>,
    pub(crate) probe: Probe,
    /// How many connections may write. Held while the first one begins and the last one ends, which asks the replica: for nobody else to take.
    writers: Mutex<usize>,
    /// What they write with.
    writer: Mutex<Option<Arc<Writer>>>,
    /// Whether anybody may write: then nobody looks for what others have written.
    is_written: AtomicBool,
}

#[derive(Default)]
struct Polling {
    running: bool,
    last_use: Option<Instant>,
    last_success: Option<Instant>,
    /// The newest TXID that the replica is known to hold, and its time.
    newest: Option<(Txid, Timestamp)>,
    failing: bool,
    /// The first poll after idleness, while it is under way.
    first: Option<Arc<Flight<()>>>,
}

/// See [`Shown::counter`].
///
/// What is shown as the newest state counts up from what the replica's own page 1 says, as SQLite's own commits do: each adds one to what it
/// has read. Other moments count down from the largest number, so that the two never meet.
struct ChangeCounters {
    up: u32,
    down: u32,
    by_content: HashMap<Content, u32>,
    order: VecDeque<Content>,
}

/// A TXID, and the checksum of the file that ends with it: where a file was replaced, the TXID alone would not tell.
type Content = (Txid, u64);

impl ChangeCounters {
    fn new(stored: Option<u32>) -> Self {
        let up = stored.unwrap_or(1).wrapping_sub(1);
        Self { up, down: u32::MAX, by_content: HashMap::new(), order: VecDeque::new() }
    }

    /// The number of a state that is not the newest.
    fn of(&mut self, content: Content) -> u32 {
        if let Some(counter) = self.by_content.get(&content) {
            return *counter;
        }
        self.down = self.down.wrapping_sub(1);
        self.note(content, self.down);
        self.down
    }

    /// The number of the newest state.
    fn of_newest(&mut self, content: Content) -> u32 {
        if let Some(counter) = self.by_content.get(&content) {
            return *counter;
        }
        let counter = self.after(None);
        self.note(content, counter);
        counter
    }

    /// The number that follows all that were shown as the newest: the one that SQLite has written, where it does.
    fn after(&mut self, written: Option<u32>) -> u32 {
        let follows = |written: &u32| (1..1 << 31).contains(&written.wrapping_sub(self.up));
        self.up = written.filter(follows).unwrap_or_else(|| self.up.wrapping_add(1));
        self.up
    }

    fn note(&mut self, content: Content, counter: u32) {
        if self.by_content.insert(content, counter).is_none() {
            self.order.push_back(content);
        }
        if self.order.len() > COUNTERS
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_content.remove(&oldest);
        }
    }
}

fn content(view: &View) -> Content {
    (view.txid(), view.files().last().map_or(0, |file| file.trailer.file_checksum.0))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Database {
    /// The process's one database for these settings, opened.
    ///
    /// # Errors
    /// Why it cannot be opened. Nothing is left behind then.
    ///
    /// Says, too, whether it was opened just now, so that it is known to show the newest state.
    pub(crate) fn open(process: &'static Process, settings: &Settings) -> Result<(Arc<Self>, bool)> {
        let key = settings.key();
        process.fetcher.allow(settings.cache_size);
        let known = process.databases().get(&key).and_then(Weak::upgrade);
        if let Some(database) = known {
            return Ok((database, false));
        }
        let flight: Arc<Flight<Result<Arc<Self>>>> = Arc::default();
        let (landing, settings) = (flight.clone(), settings.clone());
        process.spawn(async move {
            let mut guard = LandOnDrop { flight: landing, value: None };
            guard.value = Some(Self::load(process, settings).await);
        });
        // Every request has its own bound.
        let opened = flight.wait(None, &|| false).unwrap_or(Err(Error::Interrupted))?;
        let mut databases = process.databases();
        databases.retain(|_, database| database.strong_count() > 0);
        if let Some(database) = databases.get(&key).and_then(Weak::upgrade) {
            // Another thread was faster; what it shows is as good.
            return Ok((database, false));
        }
        databases.insert(key, Arc::downgrade(&opened));
        Ok((opened, true))
    }

    async fn load(process: &'static Process, settings: Settings) -> Result<Arc<Self>> {
        let policy = RetryPolicy { total: PATIENCE, ..RetryPolicy::default() };
        let replica = litestream_storage::open(&settings.replica, policy).await?;
        let probe = Probe::default();
        if settings.write_enabled && !settings.write.unfenced {
            // Before the first upload the answer is waited for; by then it will be there.
            let (probe, replica) = (probe.clone(), replica.clone());
            process.spawn(async move {
                if let Err(error) = probe.honoured(&replica).await {
                    tracing::debug!(%error, "cannot try the store yet");
                }
            });
        }
        let found = match find(&replica, Target::Latest).await {
            // Who may write begins the database. Who only reads waits for that, where it can be interrupted: in the first transaction.
            Err(litestream_pageindex::Error::NoBackup { .. })
                if settings.write_enabled || !settings.open_timeout.is_zero() =>
            {
                None
            }
            Err(litestream_pageindex::Error::NoBackup { url }) => {
                return Err(Error::Empty { url, waited: Duration::ZERO });
            }
            found => Some(found?),
        };
        let database = Arc::new(Self {
            process,
            replica,
            hydration: Sessions::new(settings.hydration.clone()),
            settings,
            latest: Mutex::default(),
            polling: Mutex::default(),
            counters: Mutex::new(ChangeCounters::new(None)),
            polls: AtomicU64::new(0),
            end: Mutex::default(),
            probe,
            writers: Mutex::default(),
            writer: Mutex::default(),
            is_written: AtomicBool::new(false),
        });
        let opened = match found {
            Some((plan, listing)) => {
                database.note_end(&listing);
                database.view_of(plan, listing, &[]).await?
            }
            None => Opened { view: View::empty(), tip: None },
        };
        let (txid, time) = (opened.view.txid(), opened.view.time());
        *lock(&database.counters) = ChangeCounters::new(stored_counter(&opened.view));
        *lock(&database.latest) = Some(database.shown(opened, true));
        let mut polling = lock(&database.polling);
        polling.last_success = Some(Instant::now());
        polling.newest = Some((txid, time));
        drop(polling);
        Ok(database)
    }

    /// Opens the files of a plan, those that are known already from there. Files that vanish lead to a new plan for the same TXID.
    async fn view_of(&self, plan: Plan, listing: Listing, known: &[Arc<OpenFile>]) -> Result<Opened> {
        let (replica, spill) = (&self.replica, &self.process.spill);
        let opened = replan_from(replica, plan, listing, |plan, listing| async move {
            let tip = at_level_0(listing.level(Level::ZERO), plan.txid).cloned();
            let view = View::open_showing(replica, &plan, known, spill, |oldest| self.foresee(oldest));
            let view = Box::pin(view).await?;
            if view.files().len() != 1 || !view.files()[0].starts_with_legacy_frame() {
                return Ok(Opened { view, tip });
            }
            let other = Box::pin(exact(replica, plan.clone(), listing)).await?;
            let view = if other == plan { view } else { Box::pin(View::open(replica, &other, known, spill)).await? };
            Ok::<_, litestream_pageindex::Error>(Opened { view, tip })
        });
        Ok(Box::pin(opened).await?)
    }

    /// Fetches what almost every query begins with, while other files are still on their way: a round trip less for the first one.
    fn foresee(&self, file: &Arc<OpenFile>) {
        let frame = |page| file.index.position(Pgno::new(page)?).map(|at| file.index.entry(at));
        let at_hand = |page| {
            let entry = frame(page)?;
            let bytes = file.at_hand(&entry)?;
            decode(file, &entry, &bytes).ok()
        };
        let ahead = below_roots(&at_hand, FORESEEN).into_iter().filter_map(frame);
        let ahead = ahead.map(|entry| Wanted { file: file.clone(), entry }).collect();
        self.process.fetcher.prefetch(self.process, (&self.replica, &None), ahead);
    }

    /// Remembers what a listing tells of the end of level 0.
    fn note_end(&self, listing: &Listing) {
        let reach = Level::all().filter_map(|level| listing.reach(level)).max().unwrap_or_default();
        *lock(&self.end) = listing.at().map(|at| (reach, at));
    }

    /// When, by the store's clock, there was certainly nothing beyond a transaction: when level 0 was last listed, if that is where it ended.
    pub(crate) fn ended(&self, txid: Txid) -> Option<Timestamp> {
        lock(&self.end).filter(|(end, _)| *end == txid).map(|(_, at)| at)
    }

    fn shown(&self, Opened { view, tip }: Opened, newest: bool) -> Arc<Shown> {
        let mut counters = lock(&self.counters);
        let counter = if newest { counters.of_newest(content(&view)) } else { counters.of(content(&view)) };
        Arc::new(Shown { tip: tip_of(&view, tip), view: Arc::new(view), local: None, counter })
    }

    /// Shows what was just committed here.
    ///
    /// # Errors
    /// That it cannot be read again.
    pub(crate) fn show(&self, view: Arc<View>, local: Option<Local>) -> Result<Arc<Shown>> {
        let written = match &local {
            Some(local) => written_counter(local)?,
            None => None,
        };
        // In exclusive mode SQLite counts only once: then what it has written does not follow.
        let counter = lock(&self.counters).after(written);
        let shown = Arc::new(Shown { tip: tip_of(&view, None), view, local, counter });
        *lock(&self.latest) = Some(shown.clone());
        Ok(shown)
    }

    /// Shows the same content from other files: what was committed here is in the replica now.
    pub(crate) fn rebase(&self, view: Arc<View>, local: Option<Local>, before: &Shown) {
        let counter = before.counter;
        if local.is_none() {
            lock(&self.counters).note(content(&view), counter);
        }
        {
            let mut polling = lock(&self.polling);
            polling.newest = polling.newest.max(Some((view.txid(), view.time())));
            polling.last_success = Some(Instant::now());
        }
        self.hydration.tell(&view);
        *lock(&self.latest) = Some(Arc::new(Shown { tip: tip_of(&view, None), view, local, counter }));
    }

    /// Lets a connection write. The first one opens the write buffer.
    ///
    /// # Errors
    /// Why that cannot be opened.
    pub(crate) fn begin_writing(
        self: &Arc<Self>,
        settings: &WriteSettings,
        is_new: bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<Arc<Writer>> {
        let mut connections = lock(&self.writers);
        if let Some(writer) = self.writer() {
            if writer.buffer_path() != settings.buffer_path {
                let why = format!(
                    "this process writes the database with another buffer already: {}",
                    writer.buffer_path().display()
                );
                return Err(Error::Setting { name: "buffer_path".to_owned(), why });
            }
            *connections += 1;
            return Ok(writer);
        }
        // What others have written last is known before they are shut out.
        if !is_new {
            let this = self.clone();
            self.wait_for(stop, async move { this.look().await })?;
        }
        self.is_written.store(true, Ordering::SeqCst);
        let opened = write::upload::open(self, settings.clone());
        if opened.is_err() {
            self.is_written.store(false, Ordering::SeqCst);
        }
        let writer = opened?;
        *lock(&self.writer) = Some(writer.clone());
        *connections = 1;
        Ok(writer)
    }

    /// A connection writes no longer. With the last one everything is uploaded, and others' transactions are followed again.
    pub(crate) fn end_writing(&self) {
        let mut connections = lock(&self.writers);
        *connections = connections.saturating_sub(1);
        if *connections == 0
            && let Some(writer) = self.writer()
        {
            writer.close(self);
            *lock(&self.writer) = None;
            self.is_written.store(false, Ordering::SeqCst);
        }
    }

    /// The writer, where there is one.
    pub(crate) fn writer(&self) -> Option<Arc<Writer>> {
        lock(&self.writer).clone()
    }

    /// The newest view, as far as it is known.
    pub(crate) fn latest(&self) -> Result<Arc<Shown>> {
        lock(&self.latest).clone().ok_or_else(|| Error::Worker("the database is not open".to_owned()))
    }

    /// The newest view for a transaction that begins now; after idleness, once the replica has been looked at again.
    ///
    /// # Errors
    /// [`Error::Interrupted`]. Where the replica cannot be looked at, the view is what was known before, and the lag tells.
    pub(crate) fn current(self: &Arc<Self>, stop: &dyn Fn() -> bool) -> Result<Arc<Shown>> {
        if self.is_written.load(Ordering::SeqCst) {
            return self.latest();
        }
        self.begun(stop)?;
        let now = Instant::now();
        let wait = {
            let mut polling = lock(&self.polling);
            polling.last_use = Some(now);
            let fresh = polling.last_success.is_some_and(|last| now - last <= self.settings.poll_interval);
            if polling.running {
                polling.first.clone()
            } else {
                polling.running = true;
                let flight: Arc<Flight<()>> = Arc::default();
                polling.first = (!fresh).then(|| flight.clone());
                let (database, landing) = (Arc::downgrade(self), flight.clone());
                let interval = self.settings.poll_interval;
                self.process.spawn(async move {
                    let landing = LandOnDrop { flight: landing, value: Some(()) };
                    Self::follow(database, interval, fresh, landing).await;
                });
                polling.first.clone()
            }
        };
        if let Some(flight) = wait {
            let deadline = now + self.settings.open_timeout;
            if flight.wait(Some(deadline), stop).is_none() && stop() {
                return Err(Error::Interrupted);
            }
        }
        self.latest()
    }

    /// Waits until the replica holds something, at the longest for `open_timeout`.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Interrupted`]; why it cannot be looked at or opened.
    pub(crate) fn begun(self: &Arc<Self>, stop: &dyn Fn() -> bool) -> Result<()> {
        if self.latest()?.view.txid() != Txid::ZERO {
            return Ok(());
        }
        // Who is interrupted, or closed, waits no longer.
        let waiting = Arc::new(());
        let (database, waited_for) = (Arc::downgrade(self), Arc::downgrade(&waiting));
        let (interval, most) = (self.settings.poll_interval, self.settings.open_timeout);
        self.wait_for(stop, async move {
            let started = Instant::now();
            while waited_for.strong_count() > 0
                && let Some(this) = database.upgrade()
                && this.latest()?.view.txid() == Txid::ZERO
                && !this.is_written.load(Ordering::SeqCst)
            {
                match find(&this.replica, Target::Latest).await {
                    Err(litestream_pageindex::Error::NoBackup { url }) if started.elapsed() + interval > most => {
                        return Err(Error::Empty { url, waited: most });
                    }
                    Err(litestream_pageindex::Error::NoBackup { .. }) => {}
                    found => {
                        let (plan, listing) = found?;
                        this.publish(this.view_of(plan, listing, &[]).await?)?;
                        lock(&this.polling).last_success = Some(Instant::now());
                        break;
                    }
                }
                drop(this);
                tokio::time::sleep(interval).await;
            }
            Ok(())
        })
    }

    /// Polls once an interval, as long as somebody reads.
    async fn follow(database: Weak<Self>, interval: Duration, mut skip: bool, first: LandOnDrop<()>) {
        let mut first = Some(first);
        let _running = Running(database.clone());
        loop {
            let Some(this) = database.upgrade() else { return };
            if !skip && !this.is_written.load(Ordering::SeqCst) {
                this.poll().await;
            }
            skip = false;
            {
                let mut polling = lock(&this.polling);
                polling.first = None;
                let linger = (interval * LINGER).max(SHORTEST_LINGER);
                if polling.last_use.is_none_or(|last| last.elapsed() > linger) {
                    polling.running = false;
                    return;
                }
            }
            drop(this);
            drop(first.take());
            tokio::time::sleep(interval).await;
        }
    }

    /// Looks for newer files once. What goes wrong is noted and tried again with the next poll: the view before stays as good as it was.
    async fn poll(&self) {
        self.polls.fetch_add(1, Ordering::Relaxed);
        let outcome = Box::pin(self.look()).await;
        let mut polling = lock(&self.polling);
        match outcome {
            Ok(()) => {
                polling.last_success = Some(Instant::now());
                if polling.failing {
                    tracing::warn!(url = %self.replica.url(), "following again");
                }
                polling.failing = false;
            }
            Err(error) => {
                if !polling.failing {
                    tracing::warn!(url = %self.replica.url(), %error, "cannot look for new transactions; trying again");
                }
                polling.failing = true;
            }
        }
    }

    async fn look(&self) -> Result<()> {
        let before = self.latest()?;
        let reached = before.view.txid();
        // The last file that is known comes along: that what follows continues the same history is proven by its still being there.
        let mut page = self.replica.list_page(Scope::Level(Level::ZERO), reached, None).await?;
        if page.next.is_none() {
            let end = page.files.last().map_or(reached, |last| last.name.max.max(reached));
            *lock(&self.end) = page.at.map(|at| (end, at));
        }
        let there = page.files.iter().position(|file| file.name.min == reached && file.name.max == reached);
        let there = there.map(|at| page.files.remove(at));
        let proven = match (before.tip.get(), there) {
            (Some(known), Some(there)) => is_same(known, &there),
            (Some(_), None) => false,
            (None, Some(there)) => before.tip.set(there).is_ok(),
            // The newest file of level 0 is never removed: what goes on without this one may be anything.
            (None, None) => page.files.is_empty(),
        };
        let Some(last) = page.files.last() else {
            if proven {
                return Ok(());
            }
            let (plan, listing) = find(&self.replica, Target::Latest).await?;
            self.note_end(&listing);
            if plan.txid < reached {
                return Err(Error::Rewound { url: self.replica.url().clone(), have: reached, found: plan.txid });
            }
            goes_on(&before, &plan, &listing)?;
            return self.publish(self.view_of(plan, listing, before.view.files()).await?);
        };
        {
            let mut polling = lock(&self.polling);
            let time = last.object.time.unwrap_or(last.object.modified);
            polling.newest = polling.newest.max(Some((last.name.max, time)));
        }
        let mut next = reached.next();
        let contiguous = page.files.iter().all(|file| {
            let follows = file.name.min == next;
            next = file.name.max.next();
            follows
        });
        let few = page.next.is_none() && page.files.len() <= MANY_NEW;
        if proven && contiguous && few && before.view.files().len() + page.files.len() < MANY_FILES {
            let opens = page.files.iter().cloned().map(|file| {
                let replica = self.replica.clone();
                async move { open_file(&replica, &file).await.map(Arc::new) }
            });
            let opened = stream::iter(opens.collect::<Vec<_>>()).buffered(MANY_NEW);
            match opened.try_collect::<Vec<_>>().await {
                Ok(files) => {
                    let view = before.view.derive(&files, &self.process.spill).await?;
                    return self.publish(Opened { view, tip: None });
                }
                // Compaction was faster: the full look below will find what took their place.
                Err(error) if error.wants_new_plan() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (plan, listing) = find(&self.replica, Target::Latest).await?;
        self.note_end(&listing);
        if plan.txid <= reached && before.view.files().len() < MANY_FILES {
            return Ok(());
        }
        goes_on(&before, &plan, &listing)?;
        self.publish(self.view_of(plan, listing, before.view.files()).await?)
    }

    /// Shows a view, unless a newer one is shown already.
    fn publish(&self, opened: Opened) -> Result<()> {
        let (before, view) = (self.latest()?, &opened.view);
        if let Err(error) = same_files(before.view.files(), view) {
            if view.txid() <= before.view.txid() {
                return Err(error);
            }
            // What a transaction has seen was rewritten. Those that are going on keep what they have, or fail; later ones see what there is.
            tracing::error!(%error, txid = %view.txid(), "the replica's history was rewritten: going on with the new one");
        }
        let shown = self.shown(opened, true);
        let mut latest = lock(&self.latest);
        if self.is_written.load(Ordering::SeqCst) {
            // The newest state is what is written here.
            return Ok(());
        }
        let known = latest.as_ref().map_or(Txid::ZERO, |known| known.view.txid());
        if shown.view.txid() >= known {
            let mut polling = lock(&self.polling);
            polling.newest = polling.newest.max(Some((shown.view.txid(), shown.view.time())));
            self.hydration.tell(&shown.view);
            *latest = Some(shown);
        }
        Ok(())
    }

    /// Another view of the newest state, after a file of the one that is shown vanished.
    pub(crate) async fn renew(&self) -> Result<()> {
        let shown = self.latest()?;
        let known = shown.view.files().to_vec();
        if self.is_written.load(Ordering::SeqCst) {
            // What others might have put is not followed: the same transaction, from the files that hold it now.
            let txid = shown.view.txid();
            let (plan, listing) = find(&self.replica, Target::Txid(txid)).await?;
            let Opened { view, tip } = self.view_of(plan, listing, &known).await?;
            let (tip, view) = (tip_of(&view, tip), Arc::new(view));
            let mut latest = lock(&self.latest);
            if let Some(current) = latest.as_ref().filter(|current| current.view.txid() == txid) {
                self.hydration.tell(&view);
                let (local, counter) = (current.local.clone(), current.counter);
                *latest = Some(Arc::new(Shown { tip, view, local, counter }));
            }
            return Ok(());
        }
        let (plan, listing) = find(&self.replica, Target::Latest).await?;
        self.publish(self.view_of(plan, listing, &known).await?)
    }

    /// Another view of the same TXID, after a file of the one that is given vanished or was replaced.
    ///
    /// # Errors
    /// [`Error::Replaced`] where other content has taken the place of what was there; that the TXID is gone for good.
    pub(crate) fn repair(self: &Arc<Self>, broken: &Shown, stop: &dyn Fn() -> bool) -> Result<Arc<Shown>> {
        let (this, txid) = (self.clone(), broken.view.txid());
        let known: Vec<Arc<OpenFile>> = broken.view.files().to_vec();
        let (commit, page_size, counter) = (broken.view.commit(), broken.view.page_size(), broken.counter);
        let Opened { view, tip } = self.wait_for(stop, async move {
            let again = async {
                let (plan, listing) = find(&this.replica, Target::Txid(txid)).await?;
                let opened = this.view_of(plan, listing, &known).await?;
                let view = &opened.view;
                same_files(&known, view)?;
                match view.files().last() {
                    Some(last) if (view.commit(), view.page_size()) != (commit, page_size) => {
                        Err(Error::Replaced { key: last.key().clone() })
                    }
                    _ => Ok(opened),
                }
            };
            let again = Box::pin(again).await;
            if again.is_err() {
                // This transaction is lost, but the next one shall find what there is now.
                if let Ok((plan, listing)) = find(&this.replica, Target::Latest).await
                    && plan.txid > txid
                    && goes_on(&*this.latest()?, &plan, &listing).is_ok()
                    && let Ok(opened) = this.view_of(plan, listing, &known).await
                {
                    this.publish(opened)?;
                }
            }
            again
        })?;
        tracing::info!(%txid, "a file had vanished: reading the same transaction from others");
        // What was seen first says more than what is there now.
        let tip = broken.tip.get().cloned().or(tip);
        let (tip, view) = (tip_of(&view, tip), Arc::new(view));
        let shown = Arc::new(Shown { tip: tip.clone(), view: view.clone(), local: broken.local.clone(), counter });
        let mut latest = lock(&self.latest);
        if let Some(current) = latest.as_ref().filter(|latest| latest.view.txid() == txid) {
            self.hydration.tell(&view);
            // What was committed meanwhile stays in front.
            let (local, counter) = (current.local.clone(), current.counter);
            *latest = Some(Arc::new(Shown { tip, view, local, counter }));
        }
        Ok(shown)
    }

    /// The view of a moment or TXID.
    ///
    /// # Errors
    /// That it does not exist, with what does.
    pub(crate) fn at(self: &Arc<Self>, target: Target, stop: &dyn Fn() -> bool) -> Result<Arc<Shown>> {
        let this = self.clone();
        let known = self.latest()?.view.files().to_vec();
        let opened = self.wait_for(stop, async move {
            let (plan, listing) = find(&this.replica, target).await?;
            let opened = this.view_of(plan, listing, &known).await?;
            same_files(&known, &opened.view)?;
            Ok(opened)
        })?;
        Ok(self.shown(opened, false))
    }

    /// Runs something on the runtime and waits for it here.
    pub(crate) fn wait_for<T: Clone + Send + 'static>(
        &self,
        stop: &dyn Fn() -> bool,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let flight: Arc<Flight<Result<T>>> = Arc::default();
        let landing = flight.clone();
        let work = Box::pin(work);
        self.process.spawn(async move {
            let mut guard = LandOnDrop { flight: landing, value: None };
            guard.value = Some(work.await);
        });
        flight.wait(None, stop).unwrap_or(Err(Error::Interrupted))
    }

    /// How many seconds a view is behind what the replica is known to hold; -1 before the replica has been looked at.
    pub(crate) fn lag(&self, shown: &Shown) -> f64 {
        if let Some(behind) = self.writer().and_then(|writer| writer.behind()) {
            // The replica is behind this view.
            return behind.as_secs_f64();
        }
        let polling = lock(&self.polling);
        let Some((newest, time)) = polling.newest else { return -1.0 };
        let behind = if newest > shown.view.txid() { (time.0 - shown.view.time().0).max(1) as f64 / 1e3 } else { 0.0 };
        // While nobody can look, the replica may hold anything.
        let unseen = polling.last_success.filter(|_| polling.running).map_or(Duration::ZERO, |last| last.elapsed());
        let usual = (self.settings.poll_interval * 2).max(Duration::from_secs(1));
        let blind = if polling.failing || unseen > usual { unseen.as_secs_f64() } else { 0.0 };
        behind.max(blind)
    }

    /// Counters by name.
    pub(crate) fn stats(&self) -> Vec<(&'static str, u64)> {
        let stats = self.replica.stats();
        let fetcher = &self.process.fetcher;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let latest = lock(&self.latest).clone();
        let (files, index, spilled) = latest.map_or((0, 0, 0), |shown| {
            (shown.view.files().len() as u64, shown.view.index_memory() as u64, shown.view.spilled_bytes())
        });
        let mut stats = vec![
            ("lists", stats.lists),
            ("gets", stats.gets),
            ("heads", stats.heads),
            ("puts", stats.puts),
            ("retries", stats.retries),
            ("bytes_read", stats.bytes_read),
            ("bytes_written", stats.bytes_written),
            ("polls", count(&self.polls)),
            ("cache_hits", count(&fetcher.counters.hits)),
            ("cache_misses", count(&fetcher.counters.misses)),
            ("cache_bytes", fetcher.cached_bytes()),
            ("pages_prefetched", count(&fetcher.counters.prefetched)),
            ("requests_hedged", count(&fetcher.counters.hedged)),
            ("files", files),
            ("index_bytes", index),
            ("spilled_bytes", spilled),
        ];
        stats.extend(self.hydration.stats());
        stats.extend(self.writer().iter().flat_map(|writer| writer.stats()));
        stats
    }
}

/// The change counter that a view's page 1 has in the replica, where that can be told without a request.
fn stored_counter(view: &View) -> Option<u32> {
    let place = view.locate(Pgno::ONE)?;
    let bytes = place.file.at_hand(&place.frame)?;
    let page = decode(place.file, &place.frame, &bytes).ok()?;
    page.get(CHANGE_COUNTER)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// The change counter that was written here last.
fn written_counter(local: &Local) -> Result<Option<u32>> {
    let mut page = vec![0; local.page_size.bytes()];
    let found = local.read(Pgno::ONE, &mut page)?;
    Ok(page.get(CHANGE_COUNTER).filter(|_| found).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_be_bytes(*bytes)))
}

/// Whether a view's files hold what files of the same names held before: a TXID never gets other content.
fn same_files(before: &[Arc<OpenFile>], view: &View) -> Result<()> {
    for file in view.files() {
        let same = |known: &&Arc<OpenFile>| known.info.level == file.info.level && known.info.name == file.info.name;
        let twin = before.iter().find(same);
        if twin.is_some_and(|twin| twin.trailer.file_checksum != file.trailer.file_checksum) {
            return Err(Error::Replaced { key: file.key().clone() });
        }
    }
    Ok(())
}

/// Whether a listed file is the very object that was listed before.
fn is_same(before: &FileInfo, now: &FileInfo) -> bool {
    (before.level, before.name, before.size(), &before.object.etag)
        == (now.level, now.name, now.size(), &now.object.etag)
}

/// The file of level 0 that is this transaction.
fn at_level_0(files: &[FileInfo], txid: Txid) -> Option<&FileInfo> {
    files.iter().find(|file| file.level == Level::ZERO && file.name.min == txid && file.name.max == txid)
}

/// See [`Shown::tip`]: where the view reads its last transaction from level 0, that is the file, else what was listed.
fn tip_of(view: &View, listed: Option<FileInfo>) -> OnceLock<FileInfo> {
    let last = view.files().last().map(|file| &file.info).filter(|last| last.level == Level::ZERO);
    last.cloned().or(listed).map_or_else(OnceLock::new, OnceLock::from)
}

/// Whether a plan goes on from a view. It does not where the view's last transaction was written again, and the plan would still read the old
/// one, from a file that was compacted before, and what follows the new one after it.
fn goes_on(before: &Shown, plan: &Plan, listing: &Listing) -> Result<()> {
    let txid = before.view.txid();
    let (known, now) = (before.tip.get(), at_level_0(listing.level(Level::ZERO), txid));
    let Some((_, now)) = known.zip(now).filter(|(known, now)| !is_same(known, now)) else { return Ok(()) };
    let compacted =
        plan.files.iter().filter(|file| file.level != Level::ZERO && file.name.min <= txid && file.name.max >= txid);
    for file in compacted {
        if before.view.files().iter().any(|old| is_same(&old.info, file)) {
            return Err(Error::Replaced { key: now.object.key.clone() });
        }
    }
    Ok(())
}

/// Lets another follower begin where this one ends by a panic.
struct Running(Weak<Database>);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(database) = self.0.upgrade()
        {
            let mut polling = lock(&database.polling);
            (polling.running, polling.first) = (false, None);
        }
    }
}

/// Brings a value when it goes, whatever the reason; without one, those who wait are told that nothing will come.
struct LandOnDrop<T: Gone + Clone> {
    flight: Arc<Flight<T>>,
    value: Option<T>,
}

/// What stands for "nothing will come".
trait Gone {
    fn gone() -> Self;
}

impl Gone for () {
    fn gone() -> Self {}
}

impl<T> Gone for Result<T> {
    fn gone() -> Self {
        Err(Error::Worker("a task was given up: this is a bug, please report it".to_owned()))
    }
}

impl<T: Gone + Clone> Drop for LandOnDrop<T> {
    fn drop(&mut self) {
        self.flight.land(self.value.take().unwrap_or_else(T::gone));
    }
}
