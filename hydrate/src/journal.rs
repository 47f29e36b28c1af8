//! SQLite's rollback journal (fileformat2.html, section 3), written so that any SQLite can roll back what we leave half done.
//!
//! One header, in a sector of its own, then the original of each page that will change. The number of records stays 0 until they are all on the disk:
//! up to then there is nothing to roll back, and nobody has written into the database.

use std::fs::{self, File, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use ltx::{Commit, PageSize, Pgno};

use crate::output::parent;
use crate::{Error, Result};

const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// The header has all of it, so that writing the number of records again cannot harm a record.
const SECTOR: usize = 4096;
/// Where the number of records stands.
const RECORDS_AT: u64 = 8;
/// In the header's unused part, where SQLite does not look: only what we wrote ourselves do we roll back ourselves.
const OURS: &[u8] = b"litestream restore --follow";
const OURS_AT: usize = 28;
/// How many bytes are gathered for one write.
const BUFFER: usize = 1 << 20;

/// Where a database's journal lies.
pub(crate) fn path(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-journal");
    name.into()
}

/// A journal in the making.
pub(crate) struct JournalWriter {
    file: BufWriter<File>,
    path: PathBuf,
    nonce: u32,
    records: u32,
}

impl JournalWriter {
    /// Begins the journal at `path` of the database `of`, which has `original` pages. RESERVED must be held. What lies there must not be hot.
    pub(crate) fn begin(path: &Path, of: &File, page_size: PageSize, original: Commit) -> Result<Self> {
        let nonce = RandomState::new().hash_one(std::process::id()) as u32;
        let mut header = vec![0; SECTOR];
        header[..8].copy_from_slice(&MAGIC);
        for (at, field) in [(12, nonce), (16, original.0), (20, SECTOR as u32), (24, page_size.get())] {
            header[at..at + 4].copy_from_slice(&field.to_be_bytes());
        }
        header[OURS_AT..OURS_AT + OURS.len()].copy_from_slice(OURS);
        let create = || {
            let file = File::options().write(true).create(true).truncate(true).open(path)?;
            like(&file, of)?;
            let mut file = BufWriter::with_capacity(BUFFER, file);
            file.write_all(&header)?;
            Ok(file)
        };
        let file = create().map_err(Error::io("write", path))?;
        Ok(Self { file, path: path.into(), nonce, records: 0 })
    }

    /// Adds the original of a page, each one once.
    pub(crate) fn record(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        let mut write = || {
            self.file.write_all(&pgno.get().to_be_bytes())?;
            self.file.write_all(page)?;
            self.file.write_all(&checksum(self.nonce, page).to_be_bytes())
        };
        write().map_err(Error::io("write", &self.path))?;
        self.records += 1;
        Ok(())
    }

    /// Makes the journal durable, then valid. From then on the database may be written.
    pub(crate) fn finish(mut self) -> Result<()> {
        let mut finish = || {
            self.file.flush()?;
            let file = self.file.get_ref();
            file.sync_all()?;
            file.write_all_at(&self.records.to_be_bytes(), RECORDS_AT)?;
            file.sync_all()?;
            sync_folder(&self.path)
        };
        finish().map_err(Error::io("write", &self.path))
    }
}

/// Gives the journal the mode and the owner of its database: whoever may write that must be able to roll it back.
fn like(file: &File, of: &File) -> io::Result<()> {
    let (own, model) = (file.metadata()?, of.metadata()?);
    if (own.uid(), own.gid()) != (model.uid(), model.gid()) {
        // As SQLite does: only root can, and nobody else needs to.
        let _ = fchown(file, Some(model.uid()), Some(model.gid()));
    }
    file.set_permissions(Permissions::from_mode(model.mode() & 0o777))
}

/// As `pager_cksum` computes it: every 200th byte, from the end.
fn checksum(nonce: u32, page: &[u8]) -> u32 {
    let sampled = (1..page.len() - 199).rev().step_by(200);
    sampled.fold(nonce, |sum, at| sum.wrapping_add(u32::from(page[at])))
}

/// What lies where a database's journal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing that SQLite would look at.
    Nothing,
    /// One whose writer had not come to change the database: neither we nor SQLite do before the number of records is on the disk.
    Unfinished,
    /// A journal of ours.
    Ours,
    /// Another program's.
    Foreign,
}

/// Looks for a journal. It is hot if nobody holds RESERVED.
pub(crate) fn find(path: &Path) -> Result<Found> {
    let mut head = [0; OURS_AT + OURS.len()];
    let mut file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        file => file.map_err(Error::io("open", path))?,
    };
    let mut len = 0;
    while len < head.len() {
        match file.read(&mut head[len..]).map_err(Error::io("read", path))? {
            0 => break,
            more => len += more,
        }
    }
    Ok(match &head[..] {
        // As `hasHotJournal` decides.
        [0, ..] => Found::Nothing,
        // As `readJournalHdr`: no journal after all, and it goes.
        head if len < head.len() || head[..8] != MAGIC || head[8..12] == [0; 4] => Found::Unfinished,
        head if head[OURS_AT..] == *OURS => Found::Ours,
        _ => Found::Foreign,
    })
}

/// Puts the originals back from a journal of ours, and removes it. EXCLUSIVE must be held.
pub(crate) fn roll_back(path: &Path, database: &File) -> Result<()> {
    let put_back = || {
        let mut file = BufReader::with_capacity(BUFFER, File::open(path)?);
        let mut header = [0; OURS_AT];
        file.read_exact(&mut header)?;
        let field = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let [records, nonce, original, sector] = [8, 12, 16, 20].map(field);
        let page_size = PageSize::new(field(24)).filter(|_| header[..8] == MAGIC);
        let page_size = page_size.ok_or_else(|| damaged("its header is no journal's"))?;
        file.seek(SeekFrom::Start(sector.into()))?;
        database.set_len(Commit(original).bytes(page_size))?;
        let mut record = vec![0; 8 + page_size.bytes()];
        for _ in 0..records {
            file.read_exact(&mut record)?;
            let [a, b, c, d, page @ .., e, f, g, h] = record.as_slice() else { return Err(damaged("a short record")) };
            let pgno = Pgno::new(u32::from_be_bytes([*a, *b, *c, *d]));
            let pgno = pgno.filter(|_| u32::from_be_bytes([*e, *f, *g, *h]) == checksum(nonce, page));
            let pgno = pgno.ok_or_else(|| damaged("a record's checksum is wrong"))?;
            database.write_all_at(page, pgno.offset(page_size))?;
        }
        database.sync_all()
    };
    put_back().map_err(Error::io("roll back from", path))?;
    remove(path)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_owned())
}

/// Removes a journal for good. After changes to the database this commits them.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => sync_folder(path),
    }
    .map_err(Error::io("remove", path))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_sqlite() {
        // pager.c: `i = pageSize - 200; while (i > 0) { cksum += aData[i]; i -= 200; }`
        for size in PageSize::ALL {
            let page: Vec<u8> = (0..size.bytes()).map(|at| (at * 7 % 251) as u8).collect();
            let (mut expected, mut at) = (77u32, size.bytes() - 200);
            loop {
                expected += u32::from(page[at]);
                if at <= 200 {
                    break;
                }
                at -= 200;
            }
            assert_eq!(checksum(77, &page), expected, "{size}");
        }
    }

    #[test]
    fn an_unfinished_journal_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let [path, database] = ["db-journal", "db"].map(|name| folder.path().join(name));
        let size = PageSize::new(512).unwrap();
        fs::write(&database, [7; 1024]).unwrap();
        let database = File::options().read(true).write(true).open(database).unwrap();
        assert_eq!(find(&path).unwrap(), Found::Nothing);
        let mut journal = JournalWriter::begin(&path, &database, size, Commit(2)).unwrap();
        journal.record(Pgno::new(2).unwrap(), &[7; 512]).unwrap();
        journal.file.flush().unwrap();
        assert_eq!(find(&path).unwrap(), Found::Unfinished);
        journal.finish().unwrap();
        assert_eq!(find(&path).unwrap(), Found::Ours);
        database.write_all_at(&[9; 2048], 512).unwrap();
        roll_back(&path, &database).unwrap();
        assert_eq!(find(&path).unwrap(), Found::Nothing);
        let mut bytes = Vec::new();
        (&database).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [7; 1024]);
        let foreign = [&MAGIC[..], &[0, 0, 0, 1], &[0; 600]].concat();
        for (bytes, found) in [
            (&[0; 600][..], Found::Nothing),
            (b"", Found::Nothing),
            (&MAGIC, Found::Unfinished),
            (&[1; 600], Found::Unfinished),
            (&foreign, Found::Foreign),
        ] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(find(&path).unwrap(), found);
        }
    }
}
