//! Holds on the log, and what is read under them.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::hash::BuildHasher;
use std::hint::spin_loop;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ltx::{Checksum, Commit, Header, PageSize, Pgno, Timestamp, Txid};

use crate::build::{self, Segment};
use crate::checkpoint::Upkeep;
use crate::files::{self, Identity, Locks, Reign, Stamp};
use crate::inherit::inherit;
use crate::large::Image;
use crate::outside::{self, OVERWRITTEN, Outside};
use crate::stage::{Stage, Staged};
use crate::standing::Standing;
use crate::state::State;
use crate::sys::Attached;
use crate::wal::{Backfill, INDEX_WORDS, Index, Log, Place, Salts, Unproven, Unsettled};
use crate::{Error, Result, place};

mod park;
mod rest;

pub use park::Parked;
pub use rest::{NotNow, Refused, Resting};

/// How often an index that is being written is looked at again before it counts as left behind.
const TRIES: u32 = 2000;
/// And how often after that, with a millisecond in between, as long as somebody is writing: where cores are scarce, a writer may be off them between
/// the index's two copies.
const SLOW_TRIES: u32 = 2000;
/// After how many milliseconds it is looked again whether the files are still the same.
const CHECK_EVERY: i64 = 1_000;

/// What is captured, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// The database file.
    pub database: PathBuf,
    /// The folder where what is ours lies; made where it is missing. Default: `.NAME-litestream` beside the database.
    pub meta_path: PathBuf,
    /// After how much of the log, in bytes, an LTX file ends at the next commit; 0 for no limit. Default: 64 MiB.
    pub cut: u64,
    /// From how many pages in the log on it is copied into the database file. Default: 1,000.
    pub checkpoint_pages: u32,
    /// From how many pages on the log is emptied, even if writers must be kept waiting for a moment; 0 for never. Default: 121,359.
    pub truncate_pages: u32,
    /// After how long a shorter log is copied into the database file; 0 for never. Default: 1 minute.
    pub checkpoint_interval: Duration,
    /// Whether the log is emptied when no other process has the database open. Connections in our own process do not show. Default: yes.
    pub truncate_when_alone: bool,
    /// Whether this process has no connections to the database but ours. Descriptors may be closed then once the database is let go; otherwise
    /// they stay open, since closing them would take SQLite's locks away. Default: no.
    pub alone_in_process: bool,
    /// Whether a database is captured on whatever file system it lies, even one that is known to have no memory or locks to share. Default: no.
    pub any_file_system: bool,
    /// From which size of the database on, in bytes, the log may begin anew while a snapshot is made, for which there must be room for a copy of
    /// the database beside what is captured; 0 for never. Default: 256 MiB.
    pub large: u64,
    /// How long to wait for a lock. Default: 500 ms.
    pub patience: Duration,
}

impl Settings {
    /// The defaults.
    #[must_use]
    pub fn new(database: impl Into<PathBuf>) -> Self {
        let database = database.into();
        Self {
            meta_path: own_folder(&database),
            database,
            cut: 64 << 20,
            checkpoint_pages: 1_000,
            truncate_pages: 121_359,
            checkpoint_interval: Duration::from_secs(60),
            truncate_when_alone: true,
            alone_in_process: false,
            any_file_system: false,
            large: 256 << 20,
            patience: Duration::from_millis(500),
        }
    }

    /// Takes no more memory than it needs.
    pub(crate) fn shrink(&mut self) {
        self.database.shrink_to_fit();
        self.meta_path.shrink_to_fit();
    }
}

/// Tells the time.
pub type Clock = Box<dyn FnMut() -> Timestamp + Send>;

/// The newest file that a replica holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    /// Its last TXID.
    pub txid: Txid,
    /// Its checksum, where the file is that of a single TXID and that is known.
    pub checksum: Option<Checksum>,
    /// Its time, where that is known.
    pub time: Option<Timestamp>,
}

/// The replica, as far as capturing must know it.
pub trait Remote {
    /// What it holds last, over all levels; `None` where it is empty. Asked at the start. Of several replicas, the most advanced one answers.
    ///
    /// # Errors
    /// Why it cannot be told. Without an answer nothing is captured.
    fn newest(&mut self) -> Result<Option<Newest>, Box<dyn std::error::Error + Send + Sync>>;

    /// Up to which TXID every replica holds everything, where there are several; 0 where one of them is empty. Asked at the start, after
    /// [`Self::newest`], whose TXID it is unless this is overridden. Files above it are kept and handed out, for whoever lacks them.
    fn floor(&mut self) -> Txid {
        self.newest().ok().flatten().map_or(Txid::ZERO, |newest| newest.txid)
    }

    /// The newest file itself, where that is one of a single TXID which is not ours: the log may show that we can go on behind it. Asked at the
    /// start, and only where nothing that is known here is what the replica holds last. Default: it cannot be had.
    fn newest_file(&mut self) -> Option<Vec<u8>> {
        None
    }
}

/// A database that is being captured.
///
/// All methods are to be called by one thread at a time. Dropping it is what a crash is: nothing is lost, the next start goes on where the last
/// pass ended, if the log still proves it.
pub struct Capture {
    // Connections go before other descriptors.
    pub(crate) connections: [Attached; 2],
    /// Which of them holds.
    pub(crate) holder: usize,
    pub(crate) hold: Hold,
    pub(crate) log: File,
    pub(crate) locks: Locks,
    /// The same for the database file.
    database: Locks,
    /// What keeps other replicators out.
    reign: Reign,
    /// The database, its log and its index, as they were found, and when they were last looked at.
    pub(crate) files: Vec<(PathBuf, Option<Identity>)>,
    checked: Timestamp,
    pub(crate) outside: Outside,
    /// When we were last called.
    pub(crate) time: Timestamp,
    pub(crate) settings: Arc<Settings>,
    pub(crate) path: PathBuf,
    pub(crate) clock: Clock,
    pub(crate) stage: Stage,
    pub(crate) state_path: PathBuf,
    pub(crate) page_size: PageSize,
    node_id: u64,
    /// What the last file holds, as it is known to whoever comes after us.
    pub(crate) state: Option<State>,
    /// TXID and time that the next file must exceed.
    pub(crate) last: (Txid, Timestamp),
    /// Up to where all is captured.
    pub(crate) position: Position,
    /// What the index said when all was captured.
    pub(crate) captured: Option<Index>,
    pub(crate) ready: Vec<Staged>,
    /// Why there must be a snapshot before anything else is captured.
    pub(crate) owed: Option<String>,
    /// The copy that a snapshot is made from, while it is being made.
    pub(crate) image: Option<Image>,
    /// What was captured behind a snapshot that is not complete yet.
    pub(crate) behind: Option<Vec<Staged>>,
    snapshots: u32,
    /// Whether somebody's checkpoint was waiting at the last pass.
    waiting: bool,
    pub(crate) upkeep: Upkeep,
}

/// A read transaction that keeps the log readable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    /// What the index said once it had begun.
    pub(crate) index: Index,
    /// Whether all of the log was in the file before and after, so that the hold lets a writer begin the log anew.
    full: bool,
    /// Whether it is a lock on the file, and no transaction.
    pinned: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    pub(crate) salts: Salts,
    pub(crate) place: Place,
    pub(crate) commit: u32,
    /// The count of transactions there; not known where it was inherited.
    pub(crate) change: Option<u32>,
}

/// What the index says, and how much of it is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) index: Index,
    pub(crate) done: u32,
    /// How far a checkpoint has tried to get.
    pub(crate) attempted: u32,
}

impl Look {
    /// What the beginning of an index says, of which `index` was understood.
    pub(crate) fn of(index: Index, words: &[u32; INDEX_WORDS]) -> Self {
        let Backfill { done, attempted, .. } = Backfill::parse(words);
        Self { index, done, attempted }
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.done == self.index.frames
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, hold, last, position, captured, .. } = self;
        f.debug_struct("Capture")
            .field("path", path)
            .field("hold", hold)
            .field("last", last)
            .field("position", position)
            .field("captured", captured)
            .finish_non_exhaustive()
    }
}

impl Capture {
    /// Takes a hold on the database, and captures what is there: what came since the last time, where the log proves that nothing is
    /// missing in between, otherwise all of it.
    ///
    /// Hands out the files that wait to be uploaded, those of an earlier time included.
    ///
    /// # Errors
    /// Why the database cannot be captured. Nothing is held then.
    pub fn start(
        settings: impl Into<Arc<Settings>>,
        clock: Clock,
        remote: &mut dyn Remote,
    ) -> Result<(Self, Vec<Staged>)> {
        Self::start_from(settings.into(), clock, remote, None)
    }

    fn start_from(
        settings: Arc<Settings>,
        mut clock: Clock,
        remote: &mut dyn Remote,
        parked: Option<&Parked>,
    ) -> Result<(Self, Vec<Staged>)> {
        let given = &settings.database;
        let path = given.canonicalize().map_err(Error::io("find", given))?;
        place::check(&path, settings.any_file_system)?;
        let open = |path: &Path| {
            let locks = Locks::open(path)?;
            if settings.alone_in_process {
                locks.0.may_close();
            }
            Ok(locks)
        };
        // These are closed after the connections, whatever happens. An index that is there already may be another capture's, which must not
        // close it while we begin.
        let database = open(&path).map_err(Error::io("open", &path))?;
        let index_path = beside(&path, "-shm");
        let _index = open(&index_path).ok();
        let locks;
        let first = Attached::open(&path, settings.patience)?;
        let page_size = wal_mode(&first, &path)?;
        if outside::is_locked_by_dotfile(&path) {
            return Err(Error::Exclusive { path, pid: None });
        }
        first.begin().map_err(|error| match database.exclusive() {
            Some(pid) if error.is_busy() => Error::Exclusive { path: path.clone(), pid },
            _ => error,
        })?;
        let second = Attached::open(&path, settings.patience)?;
        let log_path = beside(&path, "-wal");
        let log = files::open_log(&log_path).map_err(Error::io("open", &log_path))?;
        locks = open(&index_path).map_err(Error::io("open", &index_path))?;
        let reign = Reign::begin(&locks).map_err(Error::io("lock", &index_path))?;
        let Some(reign) = reign else { return Err(Error::Replicated(path)) };
        let mut files = Vec::new();
        for path in [&path, &log_path, &index_path] {
            files.push((path.clone(), Identity::at(path).map_err(Error::io("look at", path))?));
        }
        let now = look(&first, &locks, &path)?;
        let folder = &settings.meta_path;
        let stage = Stage::open(&folder.join("ltx").join("0"))?;
        let state_path = folder.join("state");
        let state = State::read(&state_path)?;
        let newest = remote.newest().map_err(Error::Remote)?;
        let Standing { last, waiting, mut state, mut doubt } = Standing::find(&stage, state, newest, remote.floor())?;
        if (doubt.is_some() || state.is_none())
            && let Some(file) = remote.newest_file()
        {
            let inode = files.first().and_then(|(_, identity)| *identity).map_or(0, |identity| identity.inode);
            let node_id = state.map_or_else(random, |state| state.node_id);
            let inherited = inherit(&file, &log, &now.index, page_size, inode, node_id);
            if let Some(inherited) = inherited.filter(|inherited| inherited.txid == last.0) {
                tracing::info!(path = %path.display(), txid = %inherited.txid, "going on behind another program: the WAL shows what it captured last");
                (state, doubt) = (Some(inherited), None);
            }
        }
        let position = Position {
            salts: state.map_or_else(Salts::default, |state| state.salts),
            place: state.map_or(Place { frame: 0, sum: now.index.sum }, |state| state.place),
            commit: state.map_or(0, |state| state.commit.0),
            change: None,
        };
        let mut capture = Self {
            connections: [first, second],
            holder: 0,
            hold: Hold { index: now.index, full: false, pinned: false },
            log,
            locks,
            database,
            reign,
            files,
            checked: clock(),
            outside: Outside::default(),
            time: clock(),
            path,
            stage,
            state_path,
            page_size,
            node_id: state.map_or_else(random, |state| state.node_id),
            state,
            last,
            position,
            captured: None,
            ready: Vec::new(),
            owed: None,
            image: None,
            behind: None,
            snapshots: 0,
            waiting: false,
            upkeep: Upkeep::new(&now, clock()),
            clock,
            settings,
        };
        if doubt.is_none() {
            doubt = capture.doubt_of_file();
        }
        if doubt.is_none() {
            doubt = capture.doubt_of_log(&now.index)?;
            if doubt.is_some() && (capture.is_as_parked(parked)? || capture.is_as_remembered()?) {
                // From the beginning of the log, whatever log it is.
                let place = Place { frame: 0, sum: now.index.sum };
                capture.position = Position { salts: Salts::default(), place, ..capture.position };
                doubt = None;
            }
        }
        capture.note_files()?;
        match doubt {
            None => capture.capture(&now)?,
            Some(why) => capture.begin_anew(&now, &why)?,
        }
        let mut staged = waiting;
        staged.append(&mut capture.ready);
        Ok((capture, staged))
    }

    /// Captures what was committed since the last time, and renews the hold where that lets the application go on. Costs next to nothing
    /// where nothing has changed.
    ///
    /// # Errors
    /// Why that cannot be done just now. What was captured before the error is handed out by the next call.
    pub fn pass(&mut self) -> Result<Vec<Staged>> {
        if let Err(error) = self.catch_up() {
            // Whoever deletes the database with all that is beside it had better not be told that a folder is missing.
            return Err(self.check_files().err().filter(Error::is_final).unwrap_or(error));
        }
        self.time = (self.clock)();
        if self.time.0.saturating_sub(self.checked.0) >= CHECK_EVERY {
            self.check_files()?;
            self.checked = self.time;
        }
        Ok(std::mem::take(&mut self.ready))
    }

    /// Captures what was committed up to now, and lets go of the database.
    ///
    /// # Errors
    /// Why the last of it could not be captured. It is let go all the same; what is still in the log will be captured by the next start.
    pub fn stop(mut self) -> Result<Vec<Staged>> {
        let now = self.look()?;
        self.capture(&now)?;
        if self.owed.is_some() {
            self.snapshot_held(&now)?;
        }
        // Our hold keeps the file as it is, where all of the log is in it.
        let sound = self.check_files().is_ok();
        let Some(state) = self.state else { return Ok(std::mem::take(&mut self.ready)) };
        if self.is_disturbed() {
            tracing::warn!(path = %self.path.display(), "{OVERWRITTEN} with the next start");
            state.prove_nothing().write(&self.state_path)?;
        } else if sound && self.look()?.is_full() {
            let held = Stamp::of(self.database.0.as_ref()).map_err(Error::io("look at", &self.path))?;
            state.remember(&held, &self.path, &self.state_path)?;
        }
        Ok(std::mem::take(&mut self.ready))
    }

    /// Whether what [`Self::stop`] leaves would prove what comes after: a log of which a part is not in the file yet, or a file whose times tell that it
    /// was changed. A moment after all of the log was copied neither is there.
    #[must_use]
    pub fn proves_itself(&self) -> bool {
        let Ok(now) = self.look() else { return true };
        !now.is_full() || Stamp::of(self.database.0.as_ref()).map_or(true, |file| file.is_older_than(Stamp::OLD))
    }

    /// The database's size as of the last pass, and that of the valid part of its log, in bytes.
    #[must_use]
    pub fn sizes(&self) -> (u64, u64) {
        let frame = (crate::wal::FRAME_HEADER_LEN + self.page_size.bytes()) as u64;
        let frames = self.captured.map_or(0, |index| u64::from(index.frames));
        let log = if frames == 0 { 0 } else { crate::wal::HEADER_LEN as u64 + frames * frame };
        (Commit(self.position.commit).bytes(self.page_size), log)
    }

    /// The last TXID that was captured.
    #[must_use]
    pub const fn txid(&self) -> Txid {
        self.last.0
    }

    /// How often all of the database had to be captured, for want of a proof that a part of it is enough.
    #[must_use]
    pub const fn snapshots(&self) -> u32 {
        self.snapshots
    }

    /// Deletes the files that the replica holds by now. Where there are several, all of them must.
    ///
    /// # Errors
    /// The file that cannot be deleted.
    pub fn uploaded(&mut self, up_to: Txid) -> Result<()> {
        self.stage.delete(|txid| txid <= up_to)
    }

    pub(crate) fn take_ready(&mut self) -> Vec<Staged> {
        std::mem::take(&mut self.ready)
    }

    /// What the index says now.
    pub(crate) fn look(&self) -> Result<Look> {
        look(&self.connections[self.holder], &self.locks, &self.path)
    }

    /// Captures and renews where there is a reason to.
    pub(crate) fn catch_up(&mut self) -> Result<()> {
        self.look_after()?;
        self.pay()
    }

    /// The same, but for a snapshot of a large database, in the middle of which this is called.
    pub(crate) fn look_after(&mut self) -> Result<()> {
        let now = match self.look() {
            Ok(now) => now,
            // Its writer may have died over it: whoever begins to read repairs it.
            Err(Error::Unsettled { .. }) => return self.renew(),
            Err(error) => return Err(error),
        };
        let new = self.captured != Some(now.index) || self.hold.index != now.index;
        let waiting = !self.hold.full && self.locks.checkpointing();
        let still = std::mem::replace(&mut self.waiting, waiting) && waiting;
        if still && !new && !now.is_full() && !self.hold.pinned {
            return self.make_way();
        }
        if new || waiting || self.hold.pinned || !self.hold.full && now.is_full() { self.renew() } else { Ok(()) }
    }

    /// Lets a checkpoint go on that waits for our place among the readers.
    ///
    /// It waits for the one place that it found to be behind, even if whoever has that place is not behind any more; and who begins to read
    /// shares the place that is not behind. So one hold after the other would have the same place, and the checkpoint would wait for ever, with
    /// the write lock in its hand. For one pass the hold is a lock on the file: that needs no place, and keeps the log as it is even better.
    fn make_way(&mut self) -> Result<()> {
        let free = 1 - self.holder;
        if !self.connections[free].pin()? {
            // It is copying already, so it does not wait.
            return Ok(());
        }
        let taken = self.look().and_then(|now| self.capture(&now).map(|()| now));
        match taken {
            Ok(now) => {
                self.connections[self.holder].release();
                self.holder = free;
                self.hold = Hold { index: now.index, full: false, pinned: true };
                Ok(())
            }
            Err(error) => {
                self.connections[free].release();
                Err(error)
            }
        }
    }

    /// Begins a new hold, captures under the old one all that was committed when the new one had begun, and ends the old one.
    pub(crate) fn renew(&mut self) -> Result<()> {
        let before = self.look().ok();
        // A checkpoint says that all is in the file a moment before it lets readers rely on that: who begins to read then reads the log.
        let quiet = !self.locks.checkpointing();
        let free = 1 - self.holder;
        if let Err(error) = self.connections[free].begin() {
            if !error.is_busy() {
                return Err(error);
            }
            let now = self.look()?;
            return self.capture(&now);
        }
        let taken = self.look().and_then(|now| self.capture(&now).map(|()| now));
        match taken {
            Ok(now) => {
                self.connections[self.holder].release();
                self.holder = free;
                self.hold =
                    Hold { index: now.index, full: quiet && before == Some(now) && now.is_full(), pinned: false };
                Ok(())
            }
            Err(error) => {
                self.connections[free].release();
                Err(error)
            }
        }
    }

    /// Captures everything up to what the index said. It must have been read after the hold began.
    pub(crate) fn capture(&mut self, now: &Look) -> Result<()> {
        // What comes now will be in the snapshot that is owed.
        if self.captured == Some(now.index) || self.owed.is_some() && self.image.is_none() {
            return Ok(());
        }
        if let Some(why) = self.follow(&now.index)? {
            tracing::error!(path = %self.path.display(), "cannot follow the database's WAL: {why}; new snapshot");
            self.snapshots += 1;
            self.image = None;
            if self.is_large(now) {
                // That is not done in the middle of a renewal.
                (self.owed, self.captured) = (Some(why), None);
                return Ok(());
            }
            self.snapshot_held(now)?;
        }
        self.captured = Some(now.index);
        Ok(())
    }

    /// Captures what follows the position. Says why where that cannot be proven to be all.
    fn follow(&mut self, to: &Index) -> Result<Option<String>> {
        let from = self.position;
        let file = self.log.try_clone().map_err(Error::io("read the WAL of", &self.path))?;
        let scanned = match self.scan(&file, to) {
            Ok(scanned) => scanned,
            Err(Unproven::Io(error)) => return Err(Error::io("read the WAL of", &self.path)(error)),
            Err(why) => return Ok(Some(why.to_string())),
        };
        let (log, start, scan) = match scanned {
            Some(scanned) => scanned,
            None if from.change.is_some_and(|change| to.change > change) => {
                return Ok(Some("the WAL was emptied with transactions in it that were not captured".to_owned()));
            }
            None => {
                let place = Place { frame: 0, sum: to.sum };
                self.position = Position { salts: to.salts, place, commit: from.commit, change: Some(to.change) };
                return Ok(None);
            }
        };
        if let Some(expected) = from.change.and_then(|change| to.change.checked_sub(change))
            && !(scan.least..=scan.most).contains(&expected)
        {
            let found = scan.most;
            return Ok(Some(format!("the WAL holds {found} transactions, {expected} were committed")));
        }
        for (number, segment) in scan.segments.iter().enumerate() {
            let older = || build::newest_before(&log, start);
            let pages = match build::pages(&scan.segments, number, self.page_size, older) {
                Ok(pages) => pages,
                Err(Unproven::Io(error)) => return Err(Error::io("read the WAL of", &self.path)(error)),
                Err(why) => return Ok(Some(why.to_string())),
            };
            self.write_segment(&log, to, segment, &pages)?;
        }
        self.position.change = Some(to.change);
        Ok(None)
    }

    /// What the index counts behind the position. Nothing where the log is empty.
    fn scan<'a>(&self, file: &'a File, to: &Index) -> Result<Option<(Log<'a, File>, Place, build::Scan)>, Unproven> {
        let from = self.position;
        let continues = from.salts == to.salts && from.place.frame > 0;
        if to.frames == 0 {
            return if continues { Err(Unproven::Shrunk { before: from.place.frame, now: 0 }) } else { Ok(None) };
        }
        let log = Log::open(file)?;
        let start = if continues { from.place } else { log.start() };
        let cut = if self.settings.cut == 0 { u64::MAX } else { self.settings.cut };
        let scan = build::scan(&log, start, from.commit, to, cut)?;
        Ok(Some((log, start, scan)))
    }

    fn write_segment(
        &mut self,
        log: &Log<'_, File>,
        to: &Index,
        segment: &Segment,
        pages: &BTreeMap<Pgno, Option<crate::wal::FrameRef>>,
    ) -> Result<()> {
        self.copy_segment(log, pages)?;
        let frames = u64::from(segment.end.frame - segment.first) + 1;
        let header = Header {
            wal_offset: log.header.offset(segment.first),
            wal_size: frames * log.header.frame_len() as u64,
            wal_salt: to.salts.words(),
            ..self.next_header(segment.commit)
        };
        // How many transactions there are up to here, nobody says, but for the last one.
        let position = Position { salts: to.salts, place: segment.end, commit: segment.commit, change: None };
        if self.owed.is_some() {
            self.position = position;
            return Ok(());
        }
        self.write(header, position, |capture, page| {
            let mut buffer = Vec::new();
            for (pgno, place) in pages {
                capture.read_page(*pgno, place.map(|place| (log, place)), &mut buffer)?;
                page(*pgno, &buffer)?;
            }
            Ok(())
        })
    }

    /// Captures the whole database, as it was at what the index said or later.
    pub(crate) fn snapshot(&mut self, now: &Look) -> Result<()> {
        if self.is_large(now) { self.snapshot_large(now) } else { self.snapshot_held(now) }
    }

    /// Captures the whole database as it was at what the index said, under one hold.
    pub(crate) fn snapshot_held(&mut self, now: &Look) -> Result<()> {
        let to = &now.index;
        let file = self.log.try_clone().map_err(Error::io("read the WAL of", &self.path))?;
        let whole = self.whole(now, &file)?;
        let mut header = self.next_header(whole.pages);
        if to.frames > 0 {
            header.wal_offset = crate::wal::HEADER_LEN as u64;
            header.wal_size = u64::from(to.frames) * (crate::wal::FRAME_HEADER_LEN + self.page_size.bytes()) as u64;
            header.wal_salt = to.salts.words();
        }
        let place = Place { frame: to.frames, sum: to.sum };
        let position = Position { salts: to.salts, place, commit: whole.pages, change: Some(to.change) };
        self.write(header, position, |capture, page| whole.each(capture, page))?;
        (self.captured, self.owed) = (Some(now.index), None);
        Ok(())
    }

    pub(crate) fn next_header(&mut self, commit: u32) -> Header {
        let (txid, before) = self.last;
        let time = Timestamp((self.clock)().0.max(before.0.saturating_add(1)));
        let txid = txid.next();
        Header { node_id: self.node_id, ..Header::new(self.page_size, Commit(commit), txid, txid, time) }
    }

    /// Makes a file durable, then that it is there, and only then moves on.
    fn write(
        &mut self,
        header: Header,
        position: Position,
        pages: impl FnOnce(&Self, &mut dyn FnMut(Pgno, &[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let staged = self.stage.write(header, |page| pages(self, page))?;
        let state = self.state_of(&staged, position);
        if self.behind.is_none() {
            state.write(&self.state_path)?;
        }
        self.state = Some(state);
        self.last = (staged.txid, staged.time);
        self.position = position;
        self.behind.as_mut().unwrap_or(&mut self.ready).push(staged);
        Ok(())
    }

    /// What is to be known to whoever comes after us, once a file is durable.
    pub(crate) fn state_of(&self, staged: &Staged, position: Position) -> State {
        State {
            txid: staged.txid,
            checksum: staged.checksum,
            time: staged.time,
            page_size: self.page_size,
            commit: staged.commit,
            salts: position.salts,
            place: position.place,
            inode: self.inode(),
            node_id: self.node_id,
            file: None,
        }
    }

    /// Reads a page from its frame, proving it again, or from the database file.
    pub(crate) fn read_page(
        &self,
        pgno: Pgno,
        frame: Option<(&Log<'_, File>, crate::wal::FrameRef)>,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        match frame {
            Some((log, place)) => {
                log.page(pgno, place, into).map_err(|why| Error::Unproven { path: self.path.clone(), why })
            }
            None => {
                into.resize(self.page_size.bytes(), 0);
                self.connections[self.holder].read(pgno.offset(self.page_size), into)
            }
        }
    }

    /// The database file's, as it was found at the start.
    fn inode(&self) -> u64 {
        self.files.first().and_then(|(_, identity)| *identity).map_or(0, |identity| identity.inode)
    }

    /// Captures all of the database, for a reason that goes to the log as it is.
    pub(crate) fn begin_anew(&mut self, now: &Look, line: &str) -> Result<()> {
        tracing::warn!(path = %self.path.display(), "{line}");
        self.snapshots += 1;
        if self.is_large(now) {
            self.owed = Some(line.to_owned());
        }
        self.snapshot(now)
    }

    /// Whether the database file shows that nothing is missing, where the log does not.
    fn is_as_parked(&self, parked: Option<&Parked>) -> Result<bool> {
        parked.zip(self.state.as_ref()).map_or(Ok(false), |(parked, state)| parked.proves(state))
    }

    /// The same by what an earlier process has noted.
    fn is_as_remembered(&self) -> Result<bool> {
        self.state.map_or(Ok(false), |state| state.is_as_remembered(&self.path))
    }

    /// Why the database is another one than that which was captured, so that nothing that was left proves anything of it.
    fn doubt_of_file(&self) -> Option<String> {
        let Some(state) = self.state else { return Some("nothing was captured before; new snapshot".to_owned()) };
        if state.page_size != self.page_size {
            return Some(format!("page size changed {}→{}: new snapshot", state.page_size, self.page_size));
        }
        (state.inode != self.inode()).then(|| OVERWRITTEN.to_owned())
    }

    /// Why the log is not proven to go on where it was left.
    fn doubt_of_log(&self, now: &Index) -> Result<Option<String>> {
        let because = |why: &str| Ok(Some(format!("{why}; new snapshot")));
        let Some(state) = self.state else { return Ok(None) };
        let Place { frame, sum } = state.place;
        if frame == 0 {
            return because("the WAL was empty when it was last seen, so nothing shows what came since");
        }
        if state.salts != now.salts {
            return because("the WAL was begun anew since it was last seen");
        }
        if now.frames < frame {
            return because("the WAL is shorter than when it was last seen");
        }
        let log = match Log::open(&self.log) {
            Ok(log) if log.header.salts == now.salts => log,
            Ok(_) => return because("the WAL is another one than its index tells of"),
            Err(Unproven::Io(error)) => return Err(Error::io("read the WAL of", &self.path)(error)),
            Err(why) => return because(&why.to_string()),
        };
        let stored = log.frame_header(frame).map_err(Error::io("read the WAL of", &self.path))?;
        if stored.is_none_or(|stored| stored.sum != sum) {
            return because("the WAL holds other transactions than when it was last seen");
        }
        Ok(None)
    }
}

/// Reads the index until it stands still for a moment.
fn look(connection: &Attached, locks: &Locks, path: &Path) -> Result<Look> {
    const HALF: u32 = TRIES / 2;
    let mut why = Unsettled::Differ;
    for tries in 0..TRIES + SLOW_TRIES {
        // Whoever is about to change it has this lock until it is as it should be.
        let writing = tries < TRIES || locks.writing();
        let words = connection.index()?;
        match Index::parse(&words) {
            Ok(index) => {
                if Index::parse(&connection.index()?) == Ok(index) {
                    return Ok(Look::of(index, &words));
                }
            }
            Err(unsettled) => why = unsettled,
        }
        if !writing {
            break;
        }
        match tries {
            0..HALF => spin_loop(),
            HALF..TRIES => std::thread::yield_now(),
            _ => std::thread::park_timeout(Duration::from_millis(1)),
        }
    }
    Err(Error::Unsettled { path: path.to_owned(), why })
}

/// Makes sure that the database is in WAL mode, and tells its page size.
fn wal_mode(connection: &Attached, path: &Path) -> Result<PageSize> {
    let mut header = [0; 20];
    connection.read(0, &mut header)?;
    let page_size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => Some(PageSize::MAX),
        size => PageSize::new(size.into()),
    };
    // https://www.sqlite.org/fileformat2.html#file_format_version_numbers
    page_size.filter(|_| header[18..] == [2, 2]).ok_or_else(|| Error::NotWal(path.to_owned()))
}

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The folder where what is ours lies: `.NAME-litestream` beside the database.
fn own_folder(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push("-litestream");
    path.with_file_name(name)
}

/// A number that nobody else will have.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id()).max(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    struct Nothing;

    impl Remote for Nothing {
        fn newest(&mut self) -> Result<Option<Newest>, Box<dyn std::error::Error + Send + Sync>> {
            Ok(None)
        }
    }

    /// A database with a table, the application's connection to it, and a capture.
    pub(super) fn captured() -> (tempfile::TempDir, rusqlite::Connection, Capture) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let database = rusqlite::Connection::open(&path).unwrap();
        database.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (a)").unwrap();
        let mut settings = Settings::new(&path);
        settings.truncate_when_alone = false;
        let (capture, _) = Capture::start(settings, Box::new(|| Timestamp(1)), &mut Nothing).unwrap();
        (folder, database, capture)
    }

    /// No way is known in which a transaction could be missed. If there is one, this is how it is noticed.
    #[test]
    fn a_count_that_is_not_the_databases_own_leads_to_a_snapshot() {
        let (_folder, database, mut capture) = captured();
        let write = || database.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        write();
        assert_eq!((capture.pass().unwrap().len(), capture.snapshots()), (1, 1));
        for (missed, snapshots) in [(1, 2), (u32::MAX, 3)] {
            let change = capture.position.change.as_mut().unwrap();
            *change = change.wrapping_sub(missed);
            write();
            let staged = capture.pass().unwrap();
            assert_eq!((staged.len(), capture.snapshots()), (1, snapshots));
            assert!(staged[0].complete);
            write();
            assert_eq!((capture.pass().unwrap().len(), capture.snapshots()), (1, snapshots));
        }
        // An index that was recovered counts anew.
        *capture.position.change.as_mut().unwrap() = 1_000;
        write();
        assert_eq!((capture.pass().unwrap().len(), capture.snapshots()), (1, 3));
    }
}
