//! One open database file of SQLite's: which view it sees, and how its reads are answered.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use jiff::Zoned;
use litestream_pageindex::Target;
use ltx::{Commit, Pgno, Timestamp, Txid};

use crate::btree::Predictor;
use crate::database::{Database, Shown};
use crate::fetch::{Keep, Wanted, decode};
use crate::hydration::{Attached, Hydration, Sessions};
use crate::neighbours::{Neighbours, Shape};
use crate::process::{self, Process};
use crate::settings::{Parameters, Settings, WriteSettings};
use crate::write::writer::{Transaction, Writer};
use crate::{Error, Result};

/// How often one read tries anew after a file has vanished under it.
const REPAIRS: u32 = 5;
/// Offsets in page 1 (<https://www.sqlite.org/fileformat2.html#the_database_header>).
const JOURNAL_MODE: std::ops::Range<usize> = 18..20;
pub(crate) const CHANGE_COUNTER: std::ops::Range<usize> = 24..28;
const VALID_FOR: std::ops::Range<usize> = 92..96;

/// See the module.
pub(crate) struct Connection {
    /// The local file that the database is pulled into; not for a connection that stays at one moment.
    hydration: Option<Attached>,
    keep: Keep,
    database: Arc<Database>,
    /// What the transaction that is going on sees.
    pinned: Option<Arc<Shown>>,
    /// Where the connection has travelled to.
    travelled: Option<Arc<Shown>>,
    /// What is written with, while the connection may write.
    writer: Option<Arc<Writer>>,
    /// What the transaction that is going on has written.
    transaction: Option<Transaction>,
    settings: WriteSettings,
    /// Whether it can never leave there: opened with `at=`, or a file that SQLite will not lock.
    fixed: Option<Fixed>,
    predictor: Predictor,
    neighbours: Neighbours,
    page_1: Option<(u32, Bytes)>,
    /// How often SQLite has asked for bytes.
    reads: u64,
    /// How many of them the hydrated file has answered.
    local_reads: u64,
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
    pub(crate) fn open(parameters: &Parameters<'_>, read_only: bool) -> Result<Self> {
        let mut settings = Settings::read(parameters)?;
        settings.write_enabled &= !read_only;
        let process = Process::current()?;
        let (database, is_new) = Database::open(process, &settings)?;
        let never = || false;
        let travelled = match &settings.at {
            Some(at) => {
                database.begun(&never)?;
                Some(travel(&database, at, &never)?)
            }
            None if settings.unlocked => Some(database.current(&never)?),
            None => None,
        };
        let fixed = match settings.at {
            Some(_) => Some(Fixed::At),
            None => settings.unlocked.then_some(Fixed::Unlocked),
        };
        let hydration = if fixed == Some(Fixed::At) { None } else { Sessions::attach(&database)? };
        let writer = match settings.write_enabled {
            true => Some(database.begin_writing(&settings.write, is_new, &never)?),
            false => None,
        };
        Ok(Self {
            writer,
            transaction: None,
            settings: settings.write,
            keep: hydration.as_ref().map(|attached| Arc::downgrade(&attached.hydration.local)),
            hydration,
            database,
            pinned: None,
            travelled,
            fixed,
            predictor: Predictor::default(),
            neighbours: Neighbours::default(),
            page_1: None,
            reads: 0,
            local_reads: 0,
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
    /// [`Error::Interrupted`], [`Error::Forked`], [`Error::Empty`].
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
    /// [`Error::ReadOnly`], [`Error::Busy`], [`Error::BusySnapshot`], [`Error::Fenced`], [`Error::Deadline`].
    pub(crate) fn begin_write(&mut self) -> Result<()> {
        if self.is_inherited() {
            return Err(Error::Forked);
        }
        if self.transaction.is_some() {
            return Ok(());
        }
        if self.travelled.is_some() {
            return Err(Error::ReadOnly(
                "the past cannot be written: PRAGMA litestream_time = latest returns to the present",
            ));
        }
        let Some(writer) = &self.writer else {
            return Err(Error::ReadOnly(
                "the database is opened for reading only: add write_enabled=true to the file: URI, or PRAGMA litestream_write_enabled = on",
            ));
        };
        let pinned = self.shown()?;
        self.transaction = Some(writer.begin(&self.database, &pinned)?);
        Ok(())
    }

    /// Writes bytes into the transaction.
    ///
    /// # Errors
    /// What is wrong with the write buffer; [`Error::Unwritable`].
    pub(crate) fn write(&mut self, bytes: &[u8], offset: u64, stop: &dyn Fn() -> bool) -> Result<()> {
        let Some(mut transaction) = self.transaction.take() else {
            return Err(Error::ReadOnly("written outside a transaction"));
        };
        let Some(writer) = self.writer.clone() else { return Err(Error::Forked) };
        let mut before = |pgno, into: &mut [u8]| {
            let mut shown = self.shown()?;
            match self.page(&mut shown, pgno, stop)? {
                Some(page) => into.copy_from_slice(&page),
                None => into.fill(0),
            }
            Ok(())
        };
        let written = writer.write(&mut transaction, bytes, offset, &mut before);
        self.transaction = Some(transaction);
        written
    }

    /// Cuts the database.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub(crate) fn truncate(&mut self, bytes: u64) -> Result<()> {
        let Some(transaction) = &mut self.transaction else {
            return Err(Error::ReadOnly("cut outside a transaction"));
        };
        Writer::truncate(transaction, bytes)
    }

    /// SQLite wants what it has written to last.
    pub(crate) fn sync(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.sync = true;
        }
    }

    /// Whether the transaction may commit: raised where SQLite can still roll back.
    ///
    /// # Errors
    /// As [`Connection::begin_write`].
    pub(crate) fn may_commit(&self) -> Result<()> {
        match &self.writer {
            Some(writer) if self.transaction.is_some() => writer.check(),
            _ => Ok(()),
        }
    }

    /// The transaction commits.
    ///
    /// # Errors
    /// What is wrong with the write buffer: nothing is committed then.
    pub(crate) fn commit(&mut self) -> Result<()> {
        if let (Some(transaction), Some(writer)) = (&mut self.transaction, &self.writer)
            && let Some(shown) = writer.commit(&self.database, transaction)?
        {
            self.pinned = Some(shown);
        }
        Ok(())
    }

    /// The transaction writes no longer. What it has not committed is gone.
    pub(crate) fn end_write(&mut self) {
        if self.transaction.take().is_some()
            && let Some(writer) = self.writer.as_ref().filter(|_| self.database.process.is_this())
        {
            writer.end();
        }
    }

    /// Whether any connection of the process is writing.
    pub(crate) fn is_being_written(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| !self.is_inherited() && writer.is_held())
    }

    /// The transaction has ended.
    pub(crate) fn end(&mut self) {
        self.end_write();
        self.pinned = None;
        self.neighbours.forget();
    }

    /// The file is closed: what was committed goes up, if it is the last one that writes.
    pub(crate) fn close(&mut self) {
        self.end();
        self.stop_writing();
    }

    fn stop_writing(&mut self) {
        if self.is_inherited() {
            return;
        }
        if self.writer.take().is_some() {
            self.database.end_writing();
        }
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
        if let Some(transaction) = &self.transaction {
            return transaction.page_size().map_or(0, |size| Commit(transaction.size()).bytes(size));
        }
        self.shown().map_or(0, |shown| shown.commit().bytes(shown.page_size()))
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
        if self.whole_page(into, offset) {
            return Ok(into.len());
        }
        let mut shown = self.shown()?;
        let (page_size, commit) = match &self.transaction {
            Some(transaction) => (transaction.page_size().unwrap_or(shown.page_size()), Commit(transaction.size())),
            None => (shown.page_size(), shown.commit()),
        };
        let (size, len) = (u64::from(page_size.get()), commit.bytes(page_size));
        let have = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX).min(into.len());
        let mut done = 0;
        while done < have {
            let at = offset + done as u64;
            let number = u32::try_from(at / size + 1).unwrap_or(u32::MAX);
            let Some(pgno) = Pgno::new(number) else { break };
            let within = (at % size) as usize;
            let count = (size as usize - within).min(have - done);
            let target = &mut into[done..done + count];
            if self.written(&shown, pgno, within, target)? {
                done += count;
                continue;
            }
            match self.page(&mut shown, pgno, stop)? {
                Some(page) => target.copy_from_slice(&page[within..within + count]),
                // The lock page, or a page that no file holds.
                None => target.fill(0),
            }
            done += count;
        }
        Ok(have)
    }

    /// Reads part of a page that was written here. False where it was not.
    fn written(&mut self, shown: &Shown, pgno: Pgno, within: usize, into: &mut [u8]) -> Result<bool> {
        let in_transaction = self.transaction.as_ref().map(Transaction::page_size);
        if shown.local.is_none() && in_transaction.is_none() {
            return Ok(false);
        }
        let size = in_transaction.flatten().unwrap_or(shown.page_size()).bytes();
        let whole = into.len() == size;
        let mut memory = if whole && pgno != Pgno::ONE { Vec::new() } else { vec![0; size] };
        let page = if memory.is_empty() { &mut *into } else { &mut memory[..] };
        let own = match &self.transaction {
            Some(transaction) => transaction.read(pgno, page)?,
            None => false,
        };
        let found = own || shown.local.as_ref().map_or(Ok(false), |local| local.read(pgno, page))?;
        if found && !memory.is_empty() {
            if pgno == Pgno::ONE && !own {
                memory = first_page(&memory, shown.counter).into();
            }
            into.copy_from_slice(&memory[within..within + into.len()]);
        }
        Ok(found)
    }

    /// Reads one whole page from the hydrated file, straight to where SQLite wants it: this is what nearly every read is, so it does as little as
    /// plain SQLite does. False where that file does not hold the page.
    fn whole_page(&mut self, into: &mut [u8], offset: u64) -> bool {
        let (Some(Attached { hydration, .. }), Some(shown)) = (&self.hydration, &self.pinned) else { return false };
        if self.transaction.is_some() {
            return false;
        }
        let size = shown.view.page_size();
        let number = (offset >> size.get().trailing_zeros()) + 1;
        let Some(pgno) = u32::try_from(number).ok().and_then(Pgno::new) else { return false };
        // Page 1 is not shown as it is stored.
        if pgno == Pgno::ONE || into.len() != size.bytes() || pgno.offset(size) != offset {
            return false;
        }
        if shown.local.as_ref().is_some_and(|local| local.find(pgno).is_some()) {
            return false;
        }
        let read = hydration.read(&shown.view, pgno, into);
        self.local_reads += u64::from(read);
        read
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
        if self.guesses == 0 {
            self.neighbours.forget();
            if self.predictor.leaf_in_passing(pgno.get(), page) {
                return;
            }
        }
        let (database, process) = (&self.database, self.database.process);
        let hydration = self.hydration.as_ref().map(|attached| &*attached.hydration);
        let ahead = self.predictor.after(pgno.get(), page, &|page| in_memory(database, hydration, shown, page));
        if !ahead.is_empty()
            && process.is_this()
            && process.fetcher.prefetch(
                process,
                (&database.replica, &self.keep),
                wanted_pages(hydration, shown, &ahead),
            )
        {
            self.guesses = GUESSES;
        }
    }

    fn stored_page(&mut self, shown: &Shown, pgno: Pgno, stop: &dyn Fn() -> bool) -> Result<Option<Bytes>> {
        let Some(place) = shown.view.locate(pgno) else { return Ok(None) };
        let hydration = self.hydration.as_ref().map(|attached| &*attached.hydration);
        if let Some(page) = hydration.and_then(|hydration| hydration.page(&shown.view, pgno)) {
            return Ok(Some(page));
        }
        if let Some(bytes) = place.file.at_hand(&place.frame) {
            return decode(place.file, &place.frame, &bytes).map(Some);
        }
        let wanted = Wanted { file: place.file.clone(), entry: place.frame };
        let fetcher = &self.database.process.fetcher;
        let page_size = shown.view.page_size().get();
        if let Some(page) = fetcher.cached(&wanted) {
            fetcher.counters.hits.fetch_add(1, Ordering::Relaxed);
            self.neighbours.read(pgno.get(), page_size);
            return Ok(Some(page));
        }
        self.guesses = GUESSES;
        let (database, predictor, neighbours) = (&self.database, &mut self.predictor, &mut self.neighbours);
        let in_memory = |page| in_memory(database, hydration, shown, page);
        let mut foreseen = true;
        let ahead = || {
            foreseen = false;
            let mut pages = predictor.before(pgno.get(), &in_memory);
            let room = (fetcher.room() / u64::from(page_size)).try_into().unwrap_or(u32::MAX);
            pages.extend(neighbours.missed(pgno.get(), Shape { page_size, pages: shown.view.commit().0, room }));
            wanted_pages(hydration, shown, &pages)
        };
        let page = fetcher.get(database.process, (&database.replica, &self.keep), &wanted, ahead, stop)?;
        if foreseen {
            self.neighbours.read(pgno.get(), page_size);
        }
        Ok(Some(page))
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
                let own = [("reads", self.reads), ("local_reads", self.local_reads)];
                let stats = own.into_iter().chain(self.database.stats());
                let lines: Vec<String> = stats.map(|(name, value)| format!("{name} {value}")).collect();
                Ok(lines.join("\n"))
            }
            ("litestream_write_enabled", None) => Ok(u8::from(self.writer.is_some()).to_string()),
            ("litestream_buffer_path", None) => {
                let path = self.writer.as_ref().map(|writer| writer.buffer_path().display().to_string());
                Ok(path.unwrap_or_default())
            }
            ("litestream_write_enabled", Some(value)) => self.set_write_enabled(value, stop),
            ("litestream_sync", None) => match &self.writer {
                Some(_) if self.transaction.as_ref().is_some_and(Transaction::is_dirty) => {
                    Err(Error::InTransaction("litestream_sync"))
                }
                Some(writer) => writer.sync(&self.database, None, stop).map(|txid| txid.to_string()),
                // Without a writer all there is is durable.
                None => self.fresh(stop).map(|shown| shown.view.txid().to_string()),
            },
            ("litestream_hydration_progress", None) => Ok(self.database.hydration.progress().to_string()),
            ("litestream_hydration_file", None) => Ok(self.database.hydration.path()),
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

    fn set_write_enabled(&mut self, value: &str, stop: &dyn Fn() -> bool) -> Result<String> {
        let name = "litestream_write_enabled";
        let on = match value.trim().to_ascii_lowercase().as_str() {
            "1" | "on" | "true" | "yes" => true,
            "0" | "off" | "false" | "no" => false,
            _ => {
                let why = format!("`{value}` is neither on nor off");
                return Err(Error::Setting { name: name.to_owned(), why });
            }
        };
        if self.pinned.is_some() || self.transaction.is_some() {
            return Err(Error::InTransaction(name));
        }
        if on && self.fixed.is_some() {
            return Err(Error::ReadOnly("this database was opened for one moment, which cannot be written"));
        }
        if on && self.writer.is_none() {
            self.writer = Some(self.database.begin_writing(&self.settings, false, stop)?);
        } else if !on {
            self.stop_writing();
        }
        Ok(u8::from(on).to_string())
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
fn in_memory(database: &Database, hydration: Option<&Hydration>, shown: &Shown, page: u32) -> Option<Bytes> {
    let pgno = Pgno::new(page)?;
    if let Some(page) = hydration.and_then(|hydration| hydration.page(&shown.view, pgno)) {
        return Some(page);
    }
    let place = shown.view.locate(pgno)?;
    if let Some(bytes) = place.file.at_hand(&place.frame) {
        return decode(place.file, &place.frame, &bytes).ok();
    }
    database.process.fetcher.cached(&Wanted { file: place.file.clone(), entry: place.frame })
}

fn wanted_pages(hydration: Option<&Hydration>, shown: &Shown, pages: &[u32]) -> Vec<Wanted> {
    let places = pages.iter().filter_map(|page| shown.view.locate(Pgno::new(*page)?));
    let places = places.filter(|place| hydration.is_none_or(|file| !file.local.holds(place.file, place.frame.pgno)));
    places.map(|place| Wanted { file: place.file.clone(), entry: place.frame }).collect()
}

/// Page 1 as SQLite shall see it: not in WAL mode, since there is no WAL to look into, and with a change counter that says whether the content
/// may have changed.
fn first_page(stored: &[u8], counter: u32) -> Bytes {
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
