//! From frames to pages in memory: one cache and one set of requests under way for the whole process.
//!
//! - A page is kept under *file and frame*, so nothing here ever goes stale, whatever view asks.
//! - One request per frame, however many ask for it.
//! - Frames that lie close together come in one ranged request; what is asked for now never waits for what may be asked for later:
//!   prefetching has its own, bounded number of requests, and a demanded page is only joined with its nearest neighbours.
//! - What lies between such frames comes along, and is kept while there is room: rows that go on in pages of their own have them there.
//! - What has been fetched is offered to the local file that the database is pulled into, where there is one.
//! - A demanded read that takes longer than most (an adaptive 95th percentile) is asked a second time, within a budget of one request in
//!   twenty.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{Either, select};
use litestream_hydrate::Local;
use litestream_pageindex::OpenFile;
use litestream_storage::Replica;
use ltx::IndexEntry;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::sync::Semaphore;

use crate::flight::Flight;
use crate::process::Process;
use crate::{Error, Result};

/// How many requests may prefetch at once.
const PREFETCHING: usize = 48;
/// Up to so many bytes are read that nobody has asked for, rather than asking twice.
const GAP: u64 = 16 << 10;
/// How much one request prefetches at most.
const RANGE: u64 = 512 << 10;
/// How much a demanded page's request may hold in all.
const DEMAND_RANGE: u64 = 128 << 10;
/// What one page costs in memory beside its bytes.
const OVERHEAD: u64 = 128;
/// How many pages the cache is laid out for.
const EXPECTED: usize = 16_384;
/// No second request is sent before this time has passed.
const SOONEST_HEDGE: Duration = Duration::from_millis(20);

/// A frame of a file.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) file: Arc<OpenFile>,
    pub(crate) entry: IndexEntry,
}

/// What identifies a frame in this process.
type Key = (u64, u64);

impl Wanted {
    fn key(&self) -> Key {
        (self.file.id, self.entry.offset)
    }
}

/// A page, or why there is none.
pub(crate) type Landed = Result<Bytes>;

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Bytes> for ByBytes {
    fn weight(&self, _: &Key, page: &Bytes) -> u64 {
        page.len() as u64 + OVERHEAD
    }
}

/// Counters of what was asked of the fetcher.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) prefetched: AtomicU64,
    pub(crate) hedged: AtomicU64,
}

/// See the module.
pub(crate) struct Fetcher {
    cache: Cache<Key, Bytes, ByBytes>,
    flights: Mutex<HashMap<Key, Arc<Flight<Landed>>>>,
    /// How many bytes the cache may hold; 0 before the first database has said so.
    allowed: AtomicU64,
    prefetching: Semaphore,
    pace: Pace,
    pub(crate) counters: Counters,
}

impl Default for Fetcher {
    fn default() -> Self {
        // Pages that were fetched ahead are read once, if at all, before they have proven anything: they need half of the room.
        let options = OptionsBuilder::new()
            .estimated_items_capacity(EXPECTED)
            .weight_capacity(64 << 20)
            .hot_allocation(0.5)
            .build();
        let cache = match options {
            Ok(options) => {
                Cache::with_options(options, ByBytes, DefaultHashBuilder::default(), DefaultLifecycle::default())
            }
            Err(_) => Cache::with_weighter(EXPECTED, 64 << 20, ByBytes),
        };
        Self {
            cache,
            flights: Mutex::default(),
            allowed: AtomicU64::new(0),
            prefetching: Semaphore::new(PREFETCHING),
            pace: Pace::default(),
            counters: Counters::default(),
        }
    }
}

/// Frames of one file that are fetched together.
struct Batch {
    file: Arc<OpenFile>,
    span: Range<u64>,
    frames: Vec<(IndexEntry, Arc<Flight<Landed>>)>,
    demanded: bool,
}

/// The local file that what is fetched is offered to. It may be closed meanwhile.
pub(crate) type Keep = Option<Weak<Local>>;

impl Fetcher {
    /// Gives the cache the size that the most generous database asks for.
    pub(crate) fn allow(&self, bytes: u64) {
        if bytes > self.allowed.fetch_max(bytes, Ordering::Relaxed) {
            self.cache.set_capacity(bytes);
        }
    }

    /// A page from memory.
    pub(crate) fn cached(&self, wanted: &Wanted) -> Option<Bytes> {
        self.cache.get(&wanted.key())
    }

    /// Bytes of pages in the cache.
    pub(crate) fn cached_bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// How many bytes of pages may be fetched at once on a mere guess.
    pub(crate) fn room(&self) -> u64 {
        self.cache.capacity() / 4
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Key, Arc<Flight<Landed>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page, from memory or from the replica. Where a request is needed, `ahead` is asked what else to fetch; that is not waited for.
    ///
    /// # Errors
    /// As the replica says; [`Error::Interrupted`].
    pub(crate) fn get(
        self: &Arc<Self>,
        process: &'static Process,
        (replica, keep): (&Replica, &Keep),
        wanted: &Wanted,
        ahead: impl FnOnce() -> Vec<Wanted>,
        stop: &dyn Fn() -> bool,
    ) -> Landed {
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        let under_way = self.flights().contains_key(&wanted.key());
        if !under_way && let Some(page) = self.cached(wanted) {
            // It has landed just now.
            return Ok(page);
        }
        let ahead = if under_way { Vec::new() } else { ahead() };
        let (flight, ours) = self.start(process, (replica, keep), Some(wanted), ahead);
        match flight.wait(None, stop) {
            Some(Err(error)) if !ours && !matches!(error, Error::Interrupted) => {
                // What failed was somebody else's try, perhaps a prefetch; a demand has one of its own.
                let (flight, _) = self.start(process, (replica, keep), Some(wanted), Vec::new());
                flight.wait(None, stop).unwrap_or(Err(Error::Interrupted))
            }
            Some(landed) => landed,
            None => Err(Error::Interrupted),
        }
    }

    /// Fetches what is not there yet, and waits for none of it. Says whether anything was not.
    pub(crate) fn prefetch(
        self: &Arc<Self>,
        process: &'static Process,
        from: (&Replica, &Keep),
        ahead: Vec<Wanted>,
    ) -> bool {
        !ahead.is_empty() && self.start(process, from, None, ahead).1
    }

    /// Starts requests. Returns the flight of the demanded page, which has landed where the page is in memory by now, and whether it (without
    /// a demand: any) was started here.
    fn start(
        self: &Arc<Self>,
        process: &'static Process,
        (replica, keep): (&Replica, &Keep),
        demand: Option<&Wanted>,
        ahead: Vec<Wanted>,
    ) -> (Arc<Flight<Landed>>, bool) {
        let mut new: Vec<(Wanted, Arc<Flight<Landed>>)> = Vec::new();
        let (mut demanded, mut ours) = (Arc::<Flight<Landed>>::default(), false);
        {
            let mut flights = self.flights();
            if let Some(wanted) = demand {
                // A flight leaves the table only once its page is in the cache.
                match flights.entry(wanted.key()) {
                    Entry::Occupied(under_way) => demanded = under_way.get().clone(),
                    Entry::Vacant(place) => match self.cached(wanted) {
                        Some(page) => demanded.land(Ok(page)),
                        None => {
                            place.insert(demanded.clone());
                            new.push((wanted.clone(), demanded.clone()));
                            ours = true;
                        }
                    },
                }
            }
            for wanted in ahead {
                if self.cache.contains_key(&wanted.key()) || wanted.file.has_at_hand(&wanted.entry) {
                    continue;
                }
                if let Entry::Vacant(place) = flights.entry(wanted.key()) {
                    let flight = place.insert(Arc::default()).clone();
                    new.push((wanted, flight));
                    self.counters.prefetched.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        ours |= demand.is_none() && !new.is_empty();
        let key = demand.filter(|_| ours).map(Wanted::key);
        for mut batch in batches(new, key) {
            self.take_along(&mut batch);
            let (this, replica, keep) = (self.clone(), replica.clone(), keep.clone());
            process.spawn(async move { this.run(&replica, batch, keep).await });
        }
        (demanded, ours)
    }

    /// Adds the frames that lie between those of a batch and so come with them: to ask for them again, each on its own, would be a pity.
    /// Not where they would drive out what was asked for.
    fn take_along(&self, batch: &mut Batch) {
        if self.cache.weight() > self.cache.capacity() / 2 {
            return;
        }
        let file = &batch.file;
        let mut between = Vec::new();
        for pair in batch.frames.windows(2) {
            let ((before, _), (next, _)) = (&pair[0], &pair[1]);
            if before.end() < next.offset
                && let Some(at) = file.index.position(before.pgno)
            {
                between.extend(file.index.entries_from(at + 1).take_while(|entry| entry.offset < next.offset));
            }
        }
        if between.is_empty() {
            return;
        }
        let mut flights = self.flights();
        for entry in between {
            let wanted = Wanted { file: file.clone(), entry };
            if self.cache.contains_key(&wanted.key()) || file.has_at_hand(&entry) {
                continue;
            }
            if let Entry::Vacant(place) = flights.entry(wanted.key()) {
                batch.frames.push((entry, place.insert(Arc::default()).clone()));
                self.counters.prefetched.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(flights);
        batch.frames.sort_unstable_by_key(|(entry, _)| entry.offset);
    }

    async fn run(self: Arc<Self>, replica: &Replica, batch: Batch, keep: Keep) {
        // Whatever becomes of this task, who waits for it is told.
        let batch = Landing { fetcher: &self, batch };
        let Batch { file, span, frames, demanded } = &batch.batch;
        let permit = if *demanded { None } else { self.prefetching.acquire().await.ok() };
        let bytes = if *demanded {
            self.hedged(replica, file, span).await
        } else {
            replica.get_span(&file.info, span.clone()).await.map_err(Error::from)
        };
        drop(permit);
        let mut pages = Vec::new();
        for (entry, flight) in frames {
            let landed = bytes.as_ref().map_err(Clone::clone).and_then(|bytes| {
                let at = (entry.offset - span.start) as usize;
                decode(file, entry, bytes.get(at..).unwrap_or_default())
            });
            if keep.is_some()
                && let Ok(page) = &landed
            {
                pages.push((entry.pgno, page.clone()));
            }
            batch.land(entry, flight, landed);
        }
        if let Some(keep) = keep {
            let file = file.clone();
            tokio::task::spawn_blocking(move || {
                let Some(local) = keep.upgrade() else { return };
                local.offer(&file, pages.iter().map(|(pgno, page)| (*pgno, &page[..])));
            });
        }
    }

    /// Asks a second time where the first answer takes unusually long.
    async fn hedged(&self, replica: &Replica, file: &OpenFile, span: &Range<u64>) -> Result<Bytes> {
        let started = Instant::now();
        let first = Box::pin(replica.get_span(&file.info, span.clone()));
        let late = tokio::time::sleep(self.pace.late());
        let first = match select(first, Box::pin(late)).await {
            Either::Left((done, _)) => {
                self.pace.took(started.elapsed());
                return done.map_err(Error::from);
            }
            Either::Right(((), first)) => first,
        };
        if !self.pace.may_hedge() {
            let done = first.await;
            self.pace.took(started.elapsed());
            return done.map_err(Error::from);
        }
        self.counters.hedged.fetch_add(1, Ordering::Relaxed);
        let second = Box::pin(replica.get_span(&file.info, span.clone()));
        let done = match select(first, second).await {
            Either::Left((Err(_), other)) | Either::Right((Err(_), other)) => other.await,
            Either::Left((done, _)) | Either::Right((done, _)) => done,
        };
        self.pace.took(started.elapsed());
        done.map_err(Error::from)
    }
}

/// Tells those who wait for a batch that nothing will come, unless something has.
struct Landing<'a> {
    fetcher: &'a Fetcher,
    batch: Batch,
}

impl Landing<'_> {
    fn land(&self, entry: &IndexEntry, flight: &Flight<Landed>, landed: Landed) {
        let key = (self.batch.file.id, entry.offset);
        if let Ok(page) = &landed {
            self.fetcher.cache.insert(key, page.clone());
        }
        self.fetcher.flights().remove(&key);
        flight.land(landed);
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        for (entry, flight) in &self.batch.frames {
            if flight.wait(Some(Instant::now()), &|| false).is_none() {
                self.land(entry, flight, Err(lost()));
            }
        }
    }
}

fn lost() -> Error {
    Error::Worker("a read was given up: this is a bug, please report it".to_owned())
}

/// A frame's page.
pub(crate) fn decode(file: &OpenFile, entry: &IndexEntry, bytes: &[u8]) -> Landed {
    let mut page = vec![0; file.header.page_size.bytes()];
    file.decompress(entry, bytes, &mut page)?;
    Ok(page.into())
}

/// Cuts frames into requests: neighbours together. The demanded one's request is kept small.
fn batches(mut new: Vec<(Wanted, Arc<Flight<Landed>>)>, demanded: Option<Key>) -> Vec<Batch> {
    new.sort_by_key(|(wanted, _)| wanted.key());
    new.dedup_by(|(a, _), (b, _)| a.key() == b.key());
    let mut batches: Vec<Batch> = Vec::new();
    for (wanted, flight) in new {
        let this = demanded == Some(wanted.key());
        let Wanted { file, entry } = wanted;
        let joined = batches.last_mut().filter(|batch| {
            let limit = if batch.demanded || this { DEMAND_RANGE } else { RANGE };
            batch.file.id == file.id && entry.offset <= batch.span.end + GAP && entry.end() - batch.span.start <= limit
        });
        match joined {
            Some(batch) => {
                batch.span.end = entry.end();
                batch.demanded |= this;
                batch.frames.push((entry, flight));
            }
            None => batches.push(Batch {
                span: entry.offset..entry.end(),
                file,
                frames: vec![(entry, flight)],
                demanded: this,
            }),
        }
    }
    // The demanded one goes first.
    batches.sort_by_key(|batch| !batch.demanded);
    batches
}

/// How long demanded reads take, and how often one may be asked twice.
#[derive(Debug)]
struct Pace {
    /// An estimate of the 95th percentile, in microseconds.
    p95: AtomicU64,
    /// Twentieths of a second request that are saved up.
    budget: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { p95: AtomicU64::new(1_000_000), budget: AtomicU64::new(40) }
    }
}

impl Pace {
    /// The most that is saved up: ten requests.
    const SAVED: u64 = 200;

    fn took(&self, time: Duration) {
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let p95 = self.p95.load(Ordering::Relaxed);
        // The estimate rests where nineteen small steps down balance one large step up. Losing an update does no harm.
        let step = (p95 / 64).max(50);
        let next = if time > p95 { p95.saturating_add(step * 19 / 4) } else { p95 - step.min(p95) / 4 };
        self.p95.store(next, Ordering::Relaxed);
        let saved = self.budget.load(Ordering::Relaxed);
        self.budget.store((saved + 1).min(Self::SAVED), Ordering::Relaxed);
    }

    fn late(&self) -> Duration {
        Duration::from_micros(self.p95.load(Ordering::Relaxed)).max(SOONEST_HEDGE)
    }

    fn may_hedge(&self) -> bool {
        let spend = |saved: u64| saved.checked_sub(20);
        self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}
