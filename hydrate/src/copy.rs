//! The local copy that a follower keeps: how it changes from one TXID to the next, at once for whoever reads it with SQLite, and for every crash.
//!
//! It changes as SQLite changes a database in rollback mode (atomiccommit.html): SHARED, RESERVED, the originals into a journal, EXCLUSIVE, the pages,
//! and then the journal goes: that is the commit.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ltx::{Commit, PageSize, Pgno, Timestamp, page_checksum};

use crate::decode::Bits;
use crate::journal::{self, Found, JournalWriter};
use crate::lock::{self, Locks, Patience};
use crate::restore::{Fetched, blocking};
use crate::sidecar::{LastFile, Sidecar, Stamp, State};
use crate::{Error, Output, Result};

/// Where page 1 says that the database is in WAL mode: the file format's write and read version.
const VERSIONS: std::ops::Range<usize> = 18..20;
/// Where page 1 counts changes. SQLite keeps what it has in its cache as long as this stands still.
const COUNTER: std::ops::Range<usize> = 24..28;
/// Where page 1 says for which counter the database's size in it is right.
const VALID_FOR: std::ops::Range<usize> = 92..96;

const WRITTEN: &str = "it is not as it was left: another program has written to it";

/// A followed database file.
#[derive(Clone, Debug)]
pub(crate) struct LocalCopy {
    /// Open as long as the copy is followed.
    file: Arc<File>,
    /// Never a symbolic link: SQLite looks for the journal where that leads.
    path: Arc<Path>,
}

/// What the copy will be.
#[derive(Debug)]
pub(crate) struct Change {
    output: Output,
    /// The pages that there are. Of a whole database all others are zeros.
    pages: Bits,
    is_whole: bool,
    page_size: PageSize,
    commit: Commit,
    time: Timestamp,
    txid: ltx::Txid,
    last: LastFile,
}

impl Change {
    pub(crate) fn new(fetched: Fetched, is_whole: bool) -> Self {
        let Fetched { output, restored, pages, last, .. } = fetched;
        let (page_size, commit, time, txid) = (restored.page_size, restored.commit, restored.time, restored.txid);
        Self { output, pages, is_whole, page_size, commit, time, txid, last: LastFile::new(&last) }
    }

    pub(crate) const fn page_size(&self) -> PageSize {
        self.page_size
    }

    pub(crate) const fn txid(&self) -> ltx::Txid {
        self.txid
    }

    fn holds(&self, pgno: Pgno) -> bool {
        self.commit.contains(pgno)
            && pgno != self.page_size.lock_page()
            && (self.is_whole || self.pages.contains(pgno.slot()))
    }

    fn read(&self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        self.output.read_at(page, pgno.offset(self.page_size))
    }

    fn state(&self, page1: &[u8]) -> State {
        let stamp = Stamp { page_size: self.page_size, pages: self.commit, page1: page_checksum(Pgno::ONE, page1) };
        State { txid: self.txid, time: self.time, stamp, last: self.last.clone() }
    }
}

/// Makes a whole database, not published yet, one to be followed: readers shall open it in rollback mode.
pub(crate) fn make_ready(fetched: &Fetched) -> Result<State> {
    let Fetched { output, restored, last, .. } = fetched;
    let mut page1 = vec![0; restored.page_size.bytes()];
    output.read_at(&mut page1, 0)?;
    leave_wal_mode(&mut page1);
    output.write_at(&page1, 0)?;
    let stamp =
        Stamp { page_size: restored.page_size, pages: restored.commit, page1: page_checksum(Pgno::ONE, &page1) };
    Ok(State { txid: restored.txid, time: restored.time, stamp, last: LastFile::new(last) })
}

fn leave_wal_mode(page1: &mut [u8]) {
    if page1[VERSIONS] == [2, 2] {
        page1[VERSIONS].fill(1);
    }
}

/// What comes of an attempt to change the copy.
pub(crate) enum Attempt {
    /// It has that content already.
    Same(State),
    Prepared(Box<Prepared>),
}

/// A change of which nobody sees anything yet, though all is at hand: the locks, the journal. Dropped, it leaves the copy as it was.
pub(crate) struct Prepared {
    copy: LocalCopy,
    change: Arc<Change>,
    differences: Differences,
    next: State,
    unused: UnusedJournal,
    /// After the journal: without it nobody may see that.
    locks: Locks,
}

/// In what the copy differs from what it will be.
struct Differences {
    /// Ascending, page 1 not among them.
    pages: Vec<Pgno>,
    page1: Vec<u8>,
    /// The copy's size as it is.
    before: Commit,
}

/// Removes a journal of which nothing has come.
struct UnusedJournal(Option<PathBuf>);

impl Drop for UnusedJournal {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = journal::remove(path)
        {
            tracing::warn!(%error, "a journal remains that holds what its database holds as well");
        }
    }
}

impl Prepared {
    /// The state that the copy will be in.
    pub(crate) const fn next(&self) -> &State {
        &self.next
    }

    /// How many pages change.
    pub(crate) const fn pages(&self) -> usize {
        self.differences.pages.len() + 1
    }

    /// Makes the change. Whoever reads the copy from then on sees it all. Carried to its end even if it is dropped.
    ///
    /// # Errors
    /// [`Error::Io`]. The copy is as it was then, or, where that fails as well, the next SQLite that opens it brings it back.
    pub(crate) async fn commit(mut self) -> Result<()> {
        blocking(move || {
            let journal = self.copy.journal();
            self.unused.0 = None;
            if let Err(error) = self.write() {
                if let Err(failed) = journal::roll_back(&journal, &self.copy.file) {
                    tracing::error!(%failed, "the copy is left to its journal: the next SQLite that opens it rolls it back");
                }
                return Err(error);
            }
            journal::remove(&journal)
        })
        .await
    }

    fn write(&self) -> Result<()> {
        let Self { copy, change, differences, .. } = self;
        let mut page = vec![0; change.page_size.bytes()];
        for pgno in &differences.pages {
            change.read(*pgno, &mut page)?;
            let offset = pgno.offset(change.page_size);
            copy.file.write_all_at(&page, offset).map_err(Error::io("write", &*copy.path))?;
        }
        let finish = || {
            copy.file.write_all_at(&differences.page1, 0)?;
            if differences.before != change.commit {
                copy.file.set_len(change.commit.bytes(change.page_size))?;
            }
            copy.file.sync_all()
        };
        finish().map_err(Error::io("write", &*copy.path))
    }
}

impl LocalCopy {
    /// Opens a copy, for this process alone to follow with.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::FollowedAlready`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let path = fs::canonicalize(path).map_err(Error::io("open", path))?;
        let file = File::options().read(true).write(true).open(&path).map_err(Error::io("open", &path))?;
        if !lock::claim(&file).map_err(Error::io("lock", &path))? {
            return Err(Error::FollowedAlready { path });
        }
        Ok(Self { file: Arc::new(file), path: path.into() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn journal(&self) -> PathBuf {
        journal::path(&self.path)
    }

    /// Rolls back what a killed follower has left half done.
    ///
    /// # Errors
    /// [`Error::Busy`] as long as others read, [`Error::CopyChanged`] where another program has left something half done.
    pub(crate) async fn recover(&self, patience: Patience) -> Result<()> {
        let journal = self.journal();
        if journal::find(&journal)? == Found::Nothing {
            return Ok(());
        }
        // Never RESERVED: readers would take the journal for a living writer's, and read what it would roll back.
        let locks = Locks::share(&self.file, &self.path, patience).await?;
        if locks.is_reserved()? {
            return Err(self.busy());
        }
        locks.exclude(patience).await?;
        let this = self.clone();
        blocking(move || {
            let _locks = locks;
            // Another reader may have been faster.
            match journal::find(&journal)? {
                Found::Nothing => Ok(()),
                Found::Unfinished => journal::remove(&journal),
                Found::Ours => journal::roll_back(&journal, &this.file),
                Found::Foreign => Err(this.left_half_done()),
            }
        })
        .await
    }

    /// In which state the copy is, after [`LocalCopy::recover`].
    ///
    /// # Errors
    /// [`Error::Busy`] while others use it, [`Error::CopyChanged`] where it is in none that is known.
    pub(crate) async fn state(&self, sidecar: Sidecar, patience: Patience) -> Result<State> {
        self.recover(patience).await?;
        let _locks = Locks::share(&self.file, &self.path, patience).await?;
        let state = sidecar.state(|page_size| self.look(page_size).map(|(stamp, _)| stamp))?;
        state.ok_or_else(|| self.changed(WRITTEN))
    }

    /// The stamp and page 1. SHARED must be held.
    fn look(&self, page_size: PageSize) -> Result<(Stamp, Vec<u8>)> {
        let read = || {
            let len = self.file.metadata()?.len();
            let mut page1 = vec![0; page_size.bytes()];
            // A file that is too short is not the one we know: zeros will do.
            let whole = len >= page1.len() as u64 && len.is_multiple_of(page1.len() as u64);
            if whole {
                self.file.read_exact_at(&mut page1, 0)?;
            }
            let pages = if whole { u32::try_from(len / page1.len() as u64).unwrap_or(0) } else { 0 };
            Ok((Stamp { page_size, pages: Commit(pages), page1: page_checksum(Pgno::ONE, &page1) }, page1))
        };
        read().map_err(Error::io("read", &*self.path))
    }

    /// Gets all ready to change the copy, which must be in the state `known`.
    ///
    /// # Errors
    /// [`Error::Busy`] as long as others use it, [`Error::CopyChanged`] where it is not in that state.
    pub(crate) async fn prepare(&self, change: &Arc<Change>, known: &Stamp, patience: Patience) -> Result<Attempt> {
        let locks = Locks::share(&self.file, &self.path, patience).await?;
        match journal::find(&self.journal())? {
            Found::Ours | Found::Foreign if !locks.is_reserved()? => return Err(self.left_half_done()),
            _ => {}
        }
        // Not waited for: a writer that has it waits for our SHARED to go.
        if !locks.try_reserve()? {
            return Err(self.busy());
        }
        let (this, change, known) = (self.clone(), change.clone(), *known);
        let attempt = blocking(move || this.write_journal(change, &known, locks)).await?;
        if let Attempt::Prepared(prepared) = &attempt {
            prepared.locks.exclude(patience.again()).await?;
        }
        Ok(attempt)
    }

    fn write_journal(self, change: Arc<Change>, known: &Stamp, locks: Locks) -> Result<Attempt> {
        self.is_in_place()?;
        let page_size = change.page_size;
        let (found, old_page1) = self.look(page_size)?;
        if found != *known {
            return Err(self.changed(WRITTEN));
        }
        let before = found.pages;
        let pages = self.differences(&change, before)?;
        let mut page1 = old_page1.clone();
        if change.holds(Pgno::ONE) {
            change.read(Pgno::ONE, &mut page1)?;
            leave_wal_mode(&mut page1);
        }
        let source = Some(counter(&page1)).filter(|_| change.holds(Pgno::ONE));
        set_counter(&mut page1, counter(&old_page1));
        if pages.is_empty() && before == change.commit && page1 == old_page1 {
            return Ok(Attempt::Same(change.state(&old_page1)));
        }
        count_on(&mut page1, counter(&old_page1), source);

        let path = self.journal();
        let unused = UnusedJournal(Some(path.clone()));
        let mut journal = JournalWriter::begin(&path, &self.file, page_size, before)?;
        journal.record(Pgno::ONE, &old_page1)?;
        let cut_off = (change.commit.0 + 1..=before.0).filter_map(Pgno::new);
        let cut_off = cut_off.filter(|pgno| *pgno != page_size.lock_page());
        let mut page = vec![0; page_size.bytes()];
        for pgno in pages.iter().copied().filter(|pgno| before.contains(*pgno)).chain(cut_off) {
            self.read(pgno, &mut page)?;
            journal.record(pgno, &page)?;
        }
        journal.finish()?;
        let next = change.state(&page1);
        let differences = Differences { pages, page1, before };
        Ok(Attempt::Prepared(Box::new(Prepared { copy: self, change, differences, next, unused, locks })))
    }

    /// The pages after the first that will differ.
    fn differences(&self, change: &Change, before: Commit) -> Result<Vec<Pgno>> {
        let (mut old, mut new) = (vec![0; change.page_size.bytes()], vec![0; change.page_size.bytes()]);
        let mut pages = Vec::new();
        for pgno in (2..=change.commit.0).filter_map(Pgno::new).filter(|pgno| change.holds(*pgno)) {
            if before.contains(pgno) {
                self.read(pgno, &mut old)?;
                change.read(pgno, &mut new)?;
                if old == new {
                    continue;
                }
            }
            pages.push(pgno);
        }
        Ok(pages)
    }

    fn read(&self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(page, page.len() as u64 * pgno.slot() as u64).map_err(Error::io("read", &*self.path))
    }

    /// Whether the file still has its name.
    fn is_in_place(&self) -> Result<()> {
        let look = || -> io::Result<bool> {
            let own = self.file.metadata()?;
            Ok(fs::metadata(&self.path).is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())))
        };
        match look().map_err(Error::io("look at", &*self.path))? {
            true => Ok(()),
            false => Err(self.changed("it was removed, or another file took its place")),
        }
    }

    fn changed(&self, why: &'static str) -> Error {
        Error::CopyChanged { path: (*self.path).into(), why }
    }

    fn busy(&self) -> Error {
        Error::Busy { path: (*self.path).into(), waited: std::time::Duration::ZERO }
    }

    fn left_half_done(&self) -> Error {
        self.changed("another program has left a transaction of its own half done, and its -journal beside it")
    }
}

fn counter(page1: &[u8]) -> u32 {
    number(&page1[COUNTER])
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// Sets the counter. Where it said that the size in page 1 is right, it still does.
fn set_counter(page1: &mut [u8], counter: u32) {
    if page1[COUNTER] == page1[VALID_FOR] {
        page1[VALID_FOR].copy_from_slice(&counter.to_be_bytes());
    }
    page1[COUNTER].copy_from_slice(&counter.to_be_bytes());
}

/// Sets the counter to one that no reader of the copy has seen: the source's where that is ahead of ours, else our own next one. It never goes back:
/// SQLite would take what it cached long ago for what is there.
fn count_on(page1: &mut [u8], old: u32, source: Option<u32>) {
    let ahead = source.filter(|source| source.wrapping_sub(old).cast_signed() > 0);
    let mut next = ahead.unwrap_or(old.wrapping_add(1));
    // By accident it must not say that a size is right which is not.
    if page1[COUNTER] != page1[VALID_FOR] && number(&page1[VALID_FOR]) == next {
        next = next.wrapping_add(1);
    }
    set_counter(page1, next);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use litestream_storage::Level;
    use ltx::{Checksum, FileName, Txid};
    use rusqlite::Connection;

    use super::*;
    use crate::Overwrite;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A change to `commit` pages, some of which are given.
    fn change(path: &Path, page_size: PageSize, commit: u32, pages: &[(u32, Vec<u8>)]) -> Arc<Change> {
        let output = Output::create(path, Overwrite::Replace).unwrap();
        output.set_len(Commit(commit).bytes(page_size)).unwrap();
        let mut bits = Bits::new(commit as usize);
        for (number, page) in pages {
            let pgno = Pgno::new(*number).unwrap();
            bits.insert(pgno.slot());
            output.write_at(page, pgno.offset(page_size)).unwrap();
        }
        let (level, name) = (Level::ZERO, FileName::new(Txid(2), Txid(2)));
        let last = LastFile { level, name, size: 0, checksum: Checksum(0), etag: None };
        let (commit, time, txid) = (Commit(commit), Timestamp(0), Txid(2));
        Arc::new(Change { output, pages: bits, is_whole: false, page_size, commit, time, txid, last })
    }

    fn all_pages(path: &Path, page_size: PageSize) -> Vec<(u32, Vec<u8>)> {
        let bytes = fs::read(path).unwrap();
        (1..).zip(bytes.chunks(page_size.bytes()).map(<[u8]>::to_vec)).collect()
    }

    fn patience() -> Patience {
        Patience::new(PATIENCE)
    }

    async fn prepare(copy: &LocalCopy, change: &Arc<Change>) -> Prepared {
        let stamp = copy.look(change.page_size).unwrap().0;
        match copy.prepare(change, &stamp, patience()).await.unwrap() {
            Attempt::Prepared(prepared) => *prepared,
            Attempt::Same(_) => panic!("nothing differs"),
        }
    }

    fn rows(path: &Path) -> (i64, String) {
        let sqlite = Connection::open(path).unwrap();
        let rows = sqlite.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        (rows, sqlite.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap())
    }

    /// Whatever had reached the disk when the machine stopped, SQLite finds the state before, and after the commit the one after.
    #[tokio::test]
    async fn a_crash_at_any_point_is_rolled_back_by_sqlite_and_by_us() {
        let page_size = PageSize::new(1024).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let [small, large] = ["small", "large"].map(|name| folder.path().join(name));
        for (path, count) in [(&small, 40), (&large, 90)] {
            let sqlite = Connection::open(path).unwrap();
            sqlite.execute_batch("PRAGMA page_size = 1024; CREATE TABLE t(a); BEGIN").unwrap();
            for _ in 0..count {
                sqlite.execute("INSERT INTO t VALUES (randomblob(700))", []).unwrap();
            }
            sqlite.execute_batch("COMMIT").unwrap();
        }
        for (from, to, had, gets) in [(&small, &large, 40, 90), (&large, &small, 90, 40)] {
            let place = folder.path().join("copy");
            fs::copy(from, &place).unwrap();
            let original = fs::read(from).unwrap();
            let pages = all_pages(to, page_size);
            let change = change(&place, page_size, pages.len() as u32, &pages);
            let copy = LocalCopy::open(&place).unwrap();
            let images = folder.path().join("images");
            fs::create_dir(&images).unwrap();
            let mut count = 0;
            // The two files as they are now, or the journal cut short; found by SQLite, or by a follower.
            let mut crash = async |keep: Option<u64>| {
                for by_us in [false, true] {
                    count += 1;
                    let image = images.join(count.to_string());
                    fs::copy(&place, &image).unwrap();
                    if let Ok(bytes) = fs::read(copy.journal()) {
                        let keep = keep.map_or(bytes.len(), |keep| keep as usize);
                        fs::write(journal::path(&image), &bytes[..keep]).unwrap();
                    }
                    if by_us {
                        let copy = LocalCopy::open(&image).unwrap();
                        copy.recover(patience()).await.unwrap();
                        assert_eq!(fs::read(&image).unwrap(), original);
                        // An empty one says nothing to anybody.
                        assert!(keep == Some(0) || !journal::path(&image).exists());
                    }
                    assert_eq!(rows(&image), (had, "ok".into()), "image {count}");
                }
            };
            let mut prepared = prepare(&copy, &change).await;
            crash(None).await;
            let len = copy.journal().metadata().unwrap().len();
            for keep in [0, 1, 100, len] {
                // While the number of records is not on the disk, the rest may be whatever it likes.
                let journal = File::options().write(true).open(copy.journal()).unwrap();
                let mut records = [0; 4];
                File::open(copy.journal()).unwrap().read_exact_at(&mut records, 8).unwrap();
                journal.write_all_at(&[0; 4], 8).unwrap();
                crash(Some(keep)).await;
                journal.write_all_at(&records, 8).unwrap();
            }
            for (number, pgno) in prepared.differences.pages.clone().into_iter().enumerate() {
                let mut page = vec![0; page_size.bytes()];
                change.read(pgno, &mut page).unwrap();
                copy.file.write_all_at(&page, pgno.offset(page_size)).unwrap();
                if number % 9 == 0 {
                    crash(None).await;
                }
            }
            prepared.write().unwrap();
            crash(None).await;
            // What fails half way is undone at once, by the journal.
            prepared.unused.0 = None;
            journal::roll_back(&copy.journal(), &copy.file).unwrap();
            assert_eq!(fs::read(&place).unwrap(), original);
            drop(prepared);
            prepare(&copy, &change).await.commit().await.unwrap();
            assert!(!copy.journal().exists());
            assert_eq!(rows(&place), (gets, "ok".into()));
            assert!(count > 20);
            drop((copy, change));
            fs::remove_dir_all(images).unwrap();
            fs::remove_file(place).unwrap();
        }
    }

    #[tokio::test]
    async fn a_change_that_is_given_up_leaves_no_trace() {
        let page_size = PageSize::new(4096).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("copy");
        Connection::open(&place).unwrap().execute_batch("CREATE TABLE t(a)").unwrap();
        let original = fs::read(&place).unwrap();
        let copy = LocalCopy::open(&place).unwrap();
        let change = change(&place, page_size, 3, &[(3, vec![1; 4096])]);
        let prepared = prepare(&copy, &change).await;
        assert!(copy.journal().exists());
        drop(prepared);
        assert!(!copy.journal().exists());
        assert_eq!(fs::read(&place).unwrap(), original);
        // Nothing is locked.
        Connection::open(&place).unwrap().execute_batch("BEGIN EXCLUSIVE; INSERT INTO t VALUES (1); COMMIT").unwrap();
    }

    /// Beyond 1 GiB: the page with the lock bytes is nobody's, in no direction, and it would end SQLite's rollback.
    #[tokio::test]
    async fn the_lock_page_is_left_out() {
        let page_size = PageSize::new(65536).unwrap();
        let lock_page = page_size.lock_page().get();
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("copy");
        let sqlite = Connection::open(&place).unwrap();
        sqlite.execute_batch("PRAGMA page_size = 65536; CREATE TABLE t(a); INSERT INTO t VALUES (7)").unwrap();
        drop(sqlite);
        let (small, large) = (lock_page - 3, lock_page + 4);
        // Sparse, and SQLite is told so.
        let mut page1 = vec![0; 65536];
        let copy = LocalCopy::open(&place).unwrap();
        copy.file.read_exact_at(&mut page1, 0).unwrap();
        let sized = |pages: u32| {
            let mut page1 = page1.clone();
            page1[28..32].copy_from_slice(&pages.to_be_bytes());
            (1, page1)
        };
        copy.file.write_all_at(&sized(small).1, 0).unwrap();
        copy.file.set_len(Commit(small).bytes(page_size)).unwrap();
        let pages = (small + 1..=large).filter(|number| *number != lock_page).map(|number| (number, vec![5; 65536]));
        let grow = change(&place, page_size, large, &std::iter::once(sized(large)).chain(pages).collect::<Vec<_>>());
        prepare(&copy, &grow).await.commit().await.unwrap();
        let read = |number: u32| {
            let mut page = vec![1; 65536];
            copy.read(Pgno::new(number).unwrap(), &mut page).unwrap();
            page
        };
        assert_eq!(
            (read(lock_page), read(lock_page - 1), read(large)),
            (vec![0; 65536], vec![5; 65536], vec![5; 65536])
        );
        let shrink = change(&place, page_size, small, &[sized(small)]);
        let mut prepared = prepare(&copy, &shrink).await;
        prepared.write().unwrap();
        assert_eq!(copy.look(page_size).unwrap().0.pages, Commit(small));
        // Killed here.
        prepared.unused.0 = None;
        drop(prepared);
        let sqlite = Connection::open(&place).unwrap();
        let pages: u32 = sqlite.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        let seven: i64 = sqlite.query_row("SELECT a FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!((pages, seven, copy.journal().exists()), (large, 7, false));
        for number in (small + 1..=large).filter(|number| *number != lock_page) {
            assert!(read(number) == vec![5; 65536], "page {number} was not rolled back");
        }
    }

    #[test]
    fn the_counter_goes_on_and_says_of_the_size_what_it_said() {
        let page1 = |counter: u32, valid_for: u32| {
            let mut page1 = vec![0; 512];
            page1[COUNTER].copy_from_slice(&counter.to_be_bytes());
            page1[VALID_FOR].copy_from_slice(&valid_for.to_be_bytes());
            page1
        };
        // Theirs, valid for, ours before: ours, valid for.
        for (theirs, valid, old, expected) in [
            (9, 9, 5, (9, 9)),
            (5, 5, 5, (6, 6)),
            (3, 3, 5, (6, 6)),
            (3, 2, 5, (6, 2)),
            (3, 6, 5, (7, 6)),
            (0, 0, u32::MAX, (0, 0)),
        ] {
            let mut page = page1(theirs, valid);
            count_on(&mut page, old, Some(theirs));
            assert_eq!((counter(&page), number(&page[VALID_FOR])), expected, "{theirs} {valid} {old}");
        }
    }
}
