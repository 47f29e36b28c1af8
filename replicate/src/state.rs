//! `.NAME-litestream/state`: up to where the database was captured, and as what. It outlives us, and says where to go on.
//!
//! It is never durable before the LTX file that it names. What it says of the log proves something only together with the log itself.

use std::io::Write;
use std::path::Path;

use ltx::{Checksum, Commit, PageSize, Timestamp, Txid};
use serde::{Deserialize, Serialize};

use crate::files::{Boot, Stamp};
use crate::wal::{Place, Salts, Sum};
use crate::{Error, Result, files};

/// What was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// The last LTX file, its checksum and its time.
    pub(crate) txid: Txid,
    pub(crate) checksum: Checksum,
    pub(crate) time: Timestamp,
    /// The database after it.
    pub(crate) page_size: PageSize,
    pub(crate) commit: Commit,
    /// The last frame in it; 0 where the log was empty, which proves nothing later.
    pub(crate) salts: Salts,
    pub(crate) place: Place,
    /// The database file: a log that goes on proves nothing where the file beneath it is another one.
    pub(crate) inode: u64,
    /// Who writes these files.
    pub(crate) node_id: u64,
    /// What the file was when all that was captured was in it, and nothing else. Where it still is that, the log proves nothing more: what is in it
    /// goes over the file, whatever log it is.
    pub(crate) file: Option<(Stamp, Boot)>,
}

/// What an earlier process has left behind: what it captured last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// The TXID.
    pub txid: Txid,
    /// Checksum of its file.
    pub checksum: Checksum,
    /// Who writes these files.
    pub node_id: u64,
    /// The database's page size.
    pub page_size: PageSize,
    /// When.
    pub time: Timestamp,
}

impl Left {
    /// Looks into the folder where what is ours of a database lies. `None` where nothing was captured yet, or it cannot be read.
    #[must_use]
    pub fn read(folder: &Path) -> Option<Self> {
        let state = State::read(&folder.join("state")).ok()??;
        let State { txid, checksum, node_id, page_size, time, .. } = state;
        Some(Self { txid, checksum, node_id, page_size, time })
    }
}

/// As it is written. Numbers that JSON would round are text.
#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    txid: String,
    checksum: String,
    time: i64,
    page_size: u32,
    commit: u32,
    salts: [u8; 8],
    frame: u32,
    frame_checksum: [u32; 2],
    inode: String,
    node_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<WrittenFile>,
}

/// The database file, and the start of the machine for which that counts.
#[derive(Serialize, Deserialize)]
struct WrittenFile {
    boot: String,
    #[serde(flatten)]
    stamp: Stamp,
}

impl State {
    /// Reads what was left. `None` where there is nothing, or nothing that can be understood: then there is no proof of anything.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        let Some(bytes) = files::read_own(path).map_err(Error::io("read", path))? else { return Ok(None) };
        let state = serde_json::from_slice::<Written>(&bytes).ok().and_then(|written| written.parse());
        if state.is_none() {
            tracing::warn!(path = %path.display(), "it says nothing that this program understands; ignored");
        }
        Ok(state)
    }

    /// Adds what the database file is, if its times will tell that it has changed, and it is what it was `held` as. It must hold all that was
    /// captured, and be kept from being written to.
    ///
    /// It counts until the machine starts again: a loss of power may set a file's times back, and not its content.
    pub(crate) fn remember(mut self, held: &Stamp, database: &Path, path: &Path) -> Result<Self> {
        let now = Stamp::at(database).map_err(Error::io("look at", database))?;
        self.file =
            now.filter(|now| now.is_unwritten_since(held) && now.is_older_than(Stamp::OLD)).zip(Boot::current());
        if self.file.is_some() {
            // Should the note itself be lost, it costs a snapshot.
            self.replace(path, false)?;
        }
        Ok(self)
    }

    /// The same where the database file became another one: neither it nor the log tells what came after.
    pub(crate) const fn prove_nothing(mut self) -> Self {
        (self.place.frame, self.file) = (0, None);
        self
    }

    /// Whether the database file is still what was noted.
    pub(crate) fn is_as_remembered(&self, database: &Path) -> Result<bool> {
        let Some((file, boot)) = self.file else { return Ok(false) };
        let now = Stamp::at(database).map_err(Error::io("look at", database))?;
        Ok(now == Some(file) && Boot::current() == Some(boot))
    }

    /// Replaces what was left, durably.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        self.replace(path, true)
    }

    fn replace(&self, path: &Path, durably: bool) -> Result<()> {
        let written = Written {
            version: 1,
            txid: self.txid.to_string(),
            checksum: self.checksum.to_string(),
            time: self.time.0,
            page_size: self.page_size.get(),
            commit: self.commit.0,
            salts: self.salts.0,
            frame: self.place.frame,
            frame_checksum: [self.place.sum.0, self.place.sum.1],
            inode: format!("{:016x}", self.inode),
            node_id: format!("{:016x}", self.node_id),
            file: self.file.map(|(stamp, boot)| WrittenFile { boot: format!("{:032x}", boot.0), stamp }),
        };
        let failed = Error::io("write", path);
        let bytes = serde_json::to_vec_pretty(&written).map_err(|error| failed(error.into()))?;
        let temporary = path.with_extension("tmp");
        let mut file = files::create(&temporary).map_err(&failed)?;
        file.write_all(&bytes).map_err(&failed)?;
        if !durably {
            return std::fs::rename(&temporary, path).map_err(&failed);
        }
        file.sync_all().map_err(&failed)?;
        std::fs::rename(&temporary, path).map_err(&failed)?;
        files::sync_folder(path.parent().unwrap_or(Path::new("."))).map_err(&failed)
    }
}

impl Written {
    fn parse(self) -> Option<State> {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        (self.version == 1).then_some(())?;
        let txid: Txid = self.txid.parse().ok()?;
        (txid != Txid::ZERO).then_some(State {
            txid,
            checksum: Checksum(hex(&self.checksum)?),
            time: Timestamp(self.time),
            page_size: PageSize::new(self.page_size)?,
            commit: Commit(self.commit),
            salts: Salts(self.salts),
            place: Place { frame: self.frame, sum: Sum(self.frame_checksum[0], self.frame_checksum[1]) },
            inode: hex(&self.inode)?,
            node_id: hex(&self.node_id)?,
            file: match self.file {
                Some(file) => Some((file.stamp, Boot(u128::from_str_radix(&file.boot, 16).ok()?))),
                None => None,
            },
        })
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "no database is near")]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_not_understood_proves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert_eq!(State::read(&path).unwrap(), None);
        let state = State {
            txid: Txid(u64::MAX - 3),
            checksum: Checksum(u64::MAX - 9),
            time: Timestamp(1_700_000_000_001),
            page_size: PageSize::MAX,
            commit: Commit(u32::MAX),
            salts: Salts([1, 255, 3, 4, 5, 6, 7, 8]),
            place: Place { frame: 77, sum: Sum(u32::MAX, 2) },
            inode: u64::MAX - 2,
            node_id: u64::MAX - 1,
            file: Stamp::at(folder.path()).unwrap().zip(Boot::current()),
        };
        state.write(&path).unwrap();
        assert_eq!(State::read(&path).unwrap(), Some(state));
        let whole = std::fs::read(&path).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(State::read(&path).unwrap(), None, "{len} bytes");
        }
        let newer = String::from_utf8(whole).unwrap().replace("\"version\": 1", "\"version\": 2");
        std::fs::write(&path, newer).unwrap();
        assert_eq!(State::read(&path).unwrap(), None);
    }
}
