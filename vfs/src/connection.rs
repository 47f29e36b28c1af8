//! One open database file of SQLite's: which view it sees, and how its reads are answered.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use jiff::Zoned;
use litestream_pageindex::Target;
use ltx::{Pgno, Timestamp, Txid};

use crate::btree::Predictor;
use crate::database::{Database, Shown};
use crate::fetch::{Wanted, decode};
use crate::process::{self, Process};
use crate::settings::{Parameters, Settings};
use crate::{Error, Result};

/// How often one read tries anew after a file has vanished under it.
const REPAIRS: u32 = 5;
/// Offsets in page 1 (<https://www.sqlite.org/fileformat2.html#the_database_header>).
const JOURNAL_MODE: std::ops::Range<usize> = 18..20;
const CHANGE_COUNTER: std::ops::Range<usize> = 24..28;
const VALID_FOR: std::ops::Range<usize> = 92..96;

/// See the module.
pub(crate) struct Connection {
    database: Arc<Database>,
    /// What the transaction that is going on sees.
    pinned: Option<Arc<Shown>>,
    /// Where the connection has travelled to.
    travelled: Option<Arc<Shown>>,
    /// Whether it can never leave there: opened with `at=`, or a file that SQLite will not lock.
    fixed: Option<Fixed>,
    predictor: Predictor,
    page_1: Option<(u32, Bytes)>,
    /// How often SQLite has asked for bytes.
    reads: u64,
    /// For how many more reads it is worth guessing what comes next; none are left once all has been in memory for so long.
    guesses: usize,
}

/// For how many reads guessing goes on after a page had to be fetched, or was fetched ahead.
const GUESSES: usize = 4_096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fixed {
    At,
    Unlocked,
}

/// What became of a PRAGMA.
pub(crate) enum Pragma {
    /// It is SQLite's.
    NotOurs,
    /// Its answer.
    Answer(String),
    /// Why there is none.
    Failed(Error),
}

impl Connection {
    /// Opens a database. Nothing is left behind where that fails.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub(crate) fn open(parameters: &Parameters<'_>, _read_only: bool) -> Result<Self> {
        let settings = Settings::read(parameters)?;
        let process = Process::current()?;
        let database = Database::open(process, &settings)?;
        let never = || false;
        let travelled = match &settings.at {
            Some(at) => Some(travel(&database, at, &never)?),
            None if settings.unlocked => Some(database.current(&never)?),
            None => None,
        };
        let fixed = match settings.at {
            Some(_) => Some(Fixed::At),
            None => settings.unlocked.then_some(Fixed::Unlocked),
        };
        Ok(Self {
            database,
            pinned: None,
            travelled,
            fixed,
            predictor: Predictor::default(),
            page_1: None,
            reads: 0,
            guesses: GUESSES,
        })
    }

    /// Whether the database can never be written, nor leave its moment.
    pub(crate) fn is_fixed(&self) -> bool {
        self.fixed.is_some()
    }

    /// Whether it was opened by the parent, before a fork: what it holds is shared with threads that are not here.
    pub(crate) fn is_inherited(&self) -> bool {
        !self.database.process.is_this()
    }

    /// A transaction begins: from here to [`Connection::end`] it sees one view.
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Forked`].
    pub(crate) fn begin(&mut self, stop: &dyn Fn() -> bool) -> Result<()> {
        if self.is_inherited() {
            return Err(Error::Forked);
        }
        if self.pinned.is_none() {
            self.pinned = Some(match &self.travelled {
                Some(shown) => shown.clone(),
                None => self.database.current(stop)?,
            });
        }
        Ok(())
    }

    /// A transaction wants to write.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    #[allow(clippy::unused_self, reason = "write mode will ask the connection")]
    pub(crate) fn begin_write(&mut self) -> Result<()> {
        Err(Error::ReadOnly("the replica is opened for reading only"))
    }

    /// The transaction has ended.
    pub(crate) fn end(&mut self) {
        self.pinned = None;
    }

    /// The file is closed.
    pub(crate) fn close(&mut self) {
        self.end();
    }

    /// What is to be seen now: outside a transaction the newest view.
    fn shown(&self) -> Result<Arc<Shown>> {
        match self.pinned.as_ref().or(self.travelled.as_ref()) {
            Some(shown) => Ok(shown.clone()),
            None => self.database.latest(),
        }
    }

    /// What a transaction that began now would see; to ask for that counts as reading.
    fn fresh(&self, stop: &dyn Fn() -> bool) -> Result<Arc<Shown>> {
        if self.pinned.is_some() || self.travelled.is_some() {
            return self.shown();
        }
        if !self.database.process.is_this() {
            return Err(Error::Forked);
        }
        self.database.current(stop)
    }

    /// The database's size in bytes.
    pub(crate) fn size(&self) -> u64 {
        if self.is_inherited() {
            return 0;
        }
        self.shown().map_or(0, |shown| shown.view.commit().bytes(shown.view.page_size()))
    }

    /// Reads bytes of the database from an offset, and tells how many there were.
    ///
    /// # Errors
    /// As the replica says; [`Error::Interrupted`], [`Error::Forked`].
    pub(crate) fn read(&mut self, into: &mut [u8], offset: u64, stop: &dyn Fn() -> bool) -> Result<usize> {
        if self.is_inherited() {
            // Before any lock: a thread of the parent may have held it at the fork, and nobody will ever give it back here.
            return Err(Error::Forked);
        }
        self.reads += 1;
        let mut shown = self.shown()?;
        let size = u64::from(shown.view.page_size().get());
        let len = shown.view.commit().bytes(shown.view.page_size());
        let have = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX).min(into.len());
        let mut done = 0;
        while done < have {
            let at = offset + done as u64;
            let number = u32::try_from(at / size + 1).unwrap_or(u32::MAX);
            let Some(pgno) = Pgno::new(number) else { break };
            let within = (at % size) as usize;
            let count = (size as usize - within).min(have - done);
            let target = &mut into[done..done + count];
            match self.page(&mut shown, pgno, stop)? {
                Some(page) => target.copy_from_slice(&page[within..within + count]),
                // The lock page, or a page that no file holds.
                None => target.fill(0),
            }
            done += count;
        }
        Ok(have)
    }

    /// A page as SQLite shall see it. Where a file of the view has vanished, `shown` becomes another view of the same TXID.
    fn page(&mut self, shown: &mut Arc<Shown>, pgno: Pgno, stop: &dyn Fn() -> bool) -> Result<Option<Bytes>> {
        if pgno == Pgno::ONE
            && let Some((counter, page)) = &self.page_1
            && *counter == shown.counter
        {
            return Ok(Some(page.clone()));
        }
        let mut repairs = 0;
        let page = loop {
            match self.stored_page(shown, pgno, stop) {
                Err(error) if error.wants_new_plan() && repairs < REPAIRS => {
                    tracing::info!(%error, pgno = pgno.get(), "a file of the view is gone");
                    repairs += 1;
                    let repaired = self.database.repair(shown, stop)?;
                    for held in [&mut self.pinned, &mut self.travelled].into_iter().flatten() {
                        if Arc::ptr_eq(held, shown) {
                            *held = repaired.clone();
                        }
                    }
                    *shown = repaired;
                }
                page => break page?,
            }
        };
        let Some(page) = page else { return Ok(None) };
        self.guess(shown, pgno, &page);
        if pgno == Pgno::ONE {
            let page = first_page(&page, shown.counter);
            self.page_1 = Some((shown.counter, page.clone()));
            return Ok(Some(page));
        }
        Ok(Some(page))
    }

    /// Fetches what will be asked for next.
    fn guess(&mut self, shown: &Shown, pgno: Pgno, page: &Bytes) {
        self.guesses = self.guesses.saturating_sub(1);
        if self.guesses == 0 && self.predictor.leaf_in_passing(pgno.get(), page) {
            return;
        }
        let (database, process) = (&self.database, self.database.process);
        let ahead = self.predictor.after(pgno.get(), page, &|page| in_memory(database, shown, page));
        if !ahead.is_empty()
            && process.is_this()
            && process.fetcher.prefetch(process, &database.replica, wanted_pages(shown, &ahead))
        {
            self.guesses = GUESSES;
        }
    }

    fn stored_page(&mut self, shown: &Shown, pgno: Pgno, stop: &dyn Fn() -> bool) -> Result<Option<Bytes>> {
        let Some(place) = shown.view.locate(pgno) else { return Ok(None) };
        if let Some(bytes) = place.file.at_hand(&place.frame) {
            return decode(place.file, &place.frame, &bytes).map(Some);
        }
        let wanted = Wanted { file: place.file.clone(), entry: place.frame };
        let fetcher = &self.database.process.fetcher;
        if let Some(page) = fetcher.cached(&wanted) {
            fetcher.counters.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Some(page));
        }
        self.guesses = GUESSES;
        let (database, predictor) = (&self.database, &mut self.predictor);
        let ahead = || wanted_pages(shown, &predictor.before(pgno.get(), &|page| in_memory(database, shown, page)));
        fetcher.get(self.database.process, &self.database.replica, &wanted, ahead, stop).map(Some)
    }

    /// Answers a PRAGMA.
    pub(crate) fn pragma(&mut self, name: &str, value: Option<&str>, stop: &dyn Fn() -> bool) -> Pragma {
        let name = name.to_ascii_lowercase();
        if name == "journal_mode" && value.is_some_and(|value| value.eq_ignore_ascii_case("wal")) {
            // WAL needs shared memory. In exclusive mode SQLite would go without, and never find out of it again.
            return Pragma::Answer("delete".to_owned());
        }
        if self.is_inherited() && name.starts_with("litestream_") && name != "litestream_error" {
            return Pragma::Failed(Error::Forked);
        }
        let answer = match (name.as_str(), value) {
            ("litestream_txid", None) => self.fresh(stop).map(|shown| shown.view.txid().to_string()),
            ("litestream_lag", None) => self.fresh(stop).map(|shown| format!("{:.3}", self.database.lag(&shown))),
            ("litestream_time", None) => self.time(),
            ("litestream_time", Some(value)) => self.set_time(value, stop),
            ("litestream_error", None) => Ok(process::last_error()),
            ("litestream_stats", None) => {
                let stats = std::iter::once(("reads", self.reads)).chain(self.database.stats());
                let lines: Vec<String> = stats.map(|(name, value)| format!("{name} {value}")).collect();
                Ok(lines.join("\n"))
            }
            ("litestream_write_enabled", None) => Ok("0".to_owned()),
            ("litestream_write_enabled", Some(value))
                if matches!(value.to_ascii_lowercase().as_str(), "0" | "off" | "false" | "no") =>
            {
                Ok("0".to_owned())
            }
            ("litestream_write_enabled" | "litestream_sync", _) => {
                Err(Error::ReadOnly("this version opens replicas for reading only"))
            }
            ("litestream_hydration_progress", None) => Ok("0".to_owned()),
            ("litestream_hydration_file", None) => Ok(String::new()),
            (name, Some(_)) if name.starts_with("litestream_") => {
                Err(Error::Setting { name: name.to_owned(), why: "it cannot be set".to_owned() })
            }
            _ => return Pragma::NotOurs,
        };
        match answer {
            Ok(text) => Pragma::Answer(text),
            Err(error) => Pragma::Failed(error),
        }
    }

    fn time(&self) -> Result<String> {
        match &self.travelled {
            Some(shown) => Ok(rfc3339(shown.view.time())),
            None => Ok("latest".to_owned()),
        }
    }

    fn set_time(&mut self, value: &str, stop: &dyn Fn() -> bool) -> Result<String> {
        if self.pinned.is_some() {
            return Err(Error::InTransaction("litestream_time"));
        }
        if self.fixed.is_some() {
            let why = "this database was opened for one moment: open it without at=, immutable and nolock to travel"
                .to_owned();
            return Err(Error::Setting { name: "litestream_time".to_owned(), why });
        }
        if self.is_inherited() {
            return Err(Error::Forked);
        }
        if value.trim().eq_ignore_ascii_case("latest") {
            self.travelled = None;
            return self.time();
        }
        self.travelled = Some(travel(&self.database, value, stop)?);
        self.time()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.database.process.is_this() {
            // After a fork the parent's tasks and connections are not ours to end.
            std::mem::forget(self.database.clone());
        }
    }
}

/// The view that a text means: a TXID of 16 hexadecimal digits, or a time.
fn travel(database: &Arc<Database>, text: &str, stop: &dyn Fn() -> bool) -> Result<Arc<Shown>> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("latest") {
        return database.current(stop);
    }
    let target = match text.parse::<Txid>() {
        Ok(txid) => Target::Txid(txid),
        Err(_) => {
            let millis = litestream_config::when::parse(text, &Zoned::now())
                .map_err(|error| Error::Time(format!("{error}; or a TXID of 16 hexadecimal digits, or `latest`")))?;
            Target::Before(Timestamp(millis))
        }
    };
    database.at(target, stop)
}

fn rfc3339(time: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(time.0).map_or_else(|_| time.to_string(), |time| format!("{time:.3}"))
}

/// A page that need not be fetched.
fn in_memory(database: &Database, shown: &Shown, page: u32) -> Option<Bytes> {
    let place = shown.view.locate(Pgno::new(page)?)?;
    if let Some(bytes) = place.file.at_hand(&place.frame) {
        return decode(place.file, &place.frame, &bytes).ok();
    }
    database.process.fetcher.cached(&Wanted { file: place.file.clone(), entry: place.frame })
}

fn wanted_pages(shown: &Shown, pages: &[u32]) -> Vec<Wanted> {
    let places = pages.iter().filter_map(|page| shown.view.locate(Pgno::new(*page)?));
    places.map(|place| Wanted { file: place.file.clone(), entry: place.frame }).collect()
}

/// Page 1 as SQLite shall see it: not in WAL mode, since there is no WAL to look into, and with a change counter that says whether the content
/// may have changed.
fn first_page(stored: &Bytes, counter: u32) -> Bytes {
    let mut page = stored.to_vec();
    let equal = page.get(CHANGE_COUNTER) == page.get(VALID_FOR);
    if let Some(mode) = page.get_mut(JOURNAL_MODE) {
        mode.copy_from_slice(&[1, 1]);
    }
    if let Some(place) = page.get_mut(CHANGE_COUNTER) {
        place.copy_from_slice(&counter.to_be_bytes());
    }
    if let Some(place) = page.get_mut(VALID_FOR) {
        // SQLite trusts the page count in the header where these are equal: what was unequal stays so.
        let valid_for = if equal { counter } else { counter.wrapping_sub(1) };
        place.copy_from_slice(&valid_for.to_be_bytes());
    }
    page.into()
}
