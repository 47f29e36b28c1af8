//! What is known of a followed copy, in two files beside it.
//!
//! `NAME-txid` holds the TXID and nothing else, as Litestream writes it, for people, programs and Litestream. It is written after the copy has changed.
//!
//! `NAME-follow` is what a restart rests on. It is written *before* the copy changes and names two states: the one that the copy has and the one that it
//! is about to get, each with what the copy's own bytes look like then. The copy changes at once, so its bytes tell which of the two it is, whenever
//! a crash came; and if neither, something else has changed it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use litestream_storage::{ETag, FileInfo, Level};
use ltx::{Checksum, Commit, FileName, PageSize, Timestamp, Txid};

use crate::output::parent;
use crate::{Error, Result};

const EXPLANATION: &str = "# What this copy has of its replica; written by `litestream restore --follow`.";

/// What a copy's own bytes look like at some state. Whatever SQLite changes in a database, it changes the counter in page 1, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) page_size: PageSize,
    pub(crate) pages: Commit,
    /// The checksum of page 1 as it lies in the copy.
    pub(crate) page1: Checksum,
}

/// A state of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) txid: Txid,
    pub(crate) time: Timestamp,
    pub(crate) stamp: Stamp,
    pub(crate) last: LastFile,
}

/// The file that led to a state: as long as the replica has it, it goes on from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LastFile {
    pub(crate) level: Level,
    pub(crate) name: FileName,
    pub(crate) size: u64,
    pub(crate) checksum: Checksum,
    pub(crate) etag: Option<ETag>,
}

impl LastFile {
    pub(crate) fn new((file, checksum): &(FileInfo, Checksum)) -> Self {
        let FileInfo { level, name, object } = file;
        Self { level: *level, name: *name, size: object.size, checksum: *checksum, etag: object.etag.clone() }
    }
}

/// What `NAME-follow` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sidecar {
    /// The replica's address, without secrets.
    pub(crate) replica: String,
    /// What the copy has; nothing before the first restore.
    pub(crate) have: Option<State>,
    /// What it is about to get, or has got since.
    pub(crate) next: Option<State>,
}

impl Sidecar {
    /// Which of the states the copy is in. `None`: in neither.
    pub(crate) fn state(self, stamp: impl Fn(PageSize) -> Result<Stamp>) -> Result<Option<State>> {
        for state in [self.next, self.have].into_iter().flatten() {
            if stamp(state.stamp.page_size)? == state.stamp {
                return Ok(Some(state));
            }
        }
        Ok(None)
    }

    /// Reads the sidecar of a copy. `None` where there is none, or none that we wrote.
    pub(crate) fn read(copy: &Path) -> Result<Option<Self>> {
        let path = beside(copy, "-follow");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
        }
    }

    /// Writes it, durably.
    pub(crate) fn write(&self, copy: &Path) -> Result<()> {
        let path = beside(copy, "-follow");
        let replace = || {
            replace(&path, &self.print())?;
            File::open(parent(&path))?.sync_all()
        };
        replace().map_err(Error::io("write", &path))
    }

    fn print(&self) -> String {
        let mut text = format!("{EXPLANATION}\nreplica {}\n", self.replica);
        for (name, state) in [("have", &self.have), ("next", &self.next)] {
            if let Some(state) = state {
                text += &format!("{name} {}\n", print(state));
            }
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let line = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(found, _)| *found == name).map(|(_, rest)| rest)
        };
        let state = |name: &str| line(name).map_or(Some(None), |line| parse(line).map(Some));
        Some(Self { replica: line("replica")?.to_owned(), have: state("have")?, next: state("next")? })
    }
}

/// Writes `NAME-txid`.
pub(crate) fn write_txid(copy: &Path, txid: Txid) -> Result<()> {
    let path = beside(copy, "-txid");
    replace(&path, &format!("{txid}\n")).map_err(Error::io("write", path))
}

fn print(state: &State) -> String {
    let State { txid, time, stamp, last } = state;
    let Stamp { page_size, pages, page1 } = stamp;
    let LastFile { level, name, size, checksum, etag } = last;
    let etag = etag.as_ref().map_or("", ETag::as_str);
    format!("{txid} {} {page_size} {pages} {page1} {level} {name} {size} {checksum} {etag}", time.0)
}

fn parse(line: &str) -> Option<State> {
    let mut fields = line.splitn(10, ' ');
    let mut field = || fields.next();
    let checksum = |text: &str| u64::from_str_radix(text, 16).ok().map(Checksum);
    let txid = field()?.parse().ok()?;
    let time = Timestamp(field()?.parse().ok()?);
    let stamp = Stamp {
        page_size: PageSize::new(field()?.parse().ok()?)?,
        pages: Commit(field()?.parse().ok()?),
        page1: checksum(field()?)?,
    };
    let last = LastFile {
        level: Level::new(field()?.parse().ok()?)?,
        name: field()?.parse().ok()?,
        size: field()?.parse().ok()?,
        checksum: checksum(field()?)?,
        etag: field().filter(|tag| !tag.is_empty()).map(ETag::new),
    };
    Some(State { txid, time, stamp, last })
}

fn beside(copy: &Path, suffix: &str) -> PathBuf {
    let mut name = copy.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Gives a file new content at once.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = beside(path, ".tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(txid: u64, etag: Option<&str>) -> State {
        State {
            txid: Txid(txid),
            time: Timestamp(-5),
            stamp: Stamp { page_size: PageSize::MAX, pages: Commit(7), page1: Checksum(Checksum::FLAG | txid) },
            last: LastFile {
                level: Level::SNAPSHOT,
                name: FileName::new(Txid(1), Txid(txid)),
                size: 99,
                checksum: Checksum(u64::MAX),
                etag: etag.map(ETag::new),
            },
        }
    }

    #[test]
    fn what_is_written_is_read_and_tells_the_states_apart() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("db");
        assert_eq!(Sidecar::read(&copy).unwrap(), None);
        let (have, next) = (state(4, None), state(9, Some("a b\"c")));
        for (have, next) in [(None, Some(next.clone())), (Some(have.clone()), None), (Some(have), Some(next))] {
            let sidecar = Sidecar { replica: "s3://bkt/a b".into(), have, next };
            sidecar.write(&copy).unwrap();
            let read = Sidecar::read(&copy).unwrap().unwrap();
            assert_eq!(read, sidecar);
            for state in [&sidecar.have, &sidecar.next].into_iter().flatten() {
                assert_eq!(read.clone().state(|_| Ok(state.stamp)).unwrap().as_ref(), Some(state));
            }
            let other = Stamp { pages: Commit(8), ..state(4, None).stamp };
            assert_eq!(read.state(|_| Ok(other)).unwrap(), None);
        }
        for damaged in ["", "replica x\nhave 1", "have 0000000000000004", "\u{0}\u{0}"] {
            fs::write(folder.path().join("db-follow"), damaged).unwrap();
            assert_eq!(Sidecar::read(&copy).unwrap(), None, "{damaged:?}");
        }
        write_txid(&copy, Txid(42)).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("db-txid")).unwrap(), "000000000000002a\n");
    }
}
