//! The buffer's first file: whose it is, what of it the replica holds, and what was about to be put there.
//!
//! Two slots of a page each are written in turn, so that one is whole whatever happens. An `fcntl` lock on the file keeps other processes
//! away; it goes when the process does, and with *any* descriptor of the file that the process closes: there is one only.

use std::collections::HashSet;
use std::fs::{self, File, Metadata, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ltx::{Timestamp, Txid};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::{FlockType, fcntl_getlk};

use super::segment::{be64, checksum};
use crate::{Error, Result};

const SLOT: usize = 4096;
const MAGIC: &[u8; 8] = b"LSBUFCTL";
/// What stands before the address.
const FIXED: usize = 120;
const LONGEST_URL: usize = SLOT - FIXED - 8;

/// A place in the buffer, behind a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The segment's number.
    pub segment: u64,
    /// The offset in it.
    pub offset: u64,
}

/// Up to where the buffer is in the replica, and as what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uploaded {
    /// The transaction.
    pub txid: Txid,
    /// The checksum of its LTX file; 0 where that is not known.
    pub checksum: u64,
    /// What it holds of the buffer.
    pub up_to: Position,
    /// The time that the file carries: with it, the same file can be made again.
    pub time: Timestamp,
}

/// What the control file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The replica's address, without secrets.
    pub url: String,
    /// Who writes: a random number, as long as the buffer lives, that is also the node id in the LTX files.
    pub writer: u64,
    /// What the buffer's transactions rest on.
    pub base: Uploaded,
    /// What was put, or was about to be.
    pub intent: Option<Uploaded>,
}

/// The control files that this process has open. To open one again, even to find it locked, would give its lock away.
#[derive(Clone, Debug, Default)]
pub struct Open(Arc<Mutex<HashSet<(u64, u64)>>>);

impl Open {
    fn files(&self) -> MutexGuard<'_, HashSet<(u64, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Control {
    file: File,
    path: PathBuf,
    generation: u64,
    open: Open,
    inode: (u64, u64),
}

impl Control {
    /// Opens or creates the file and locks it. `None` for the state where it is new.
    pub(super) fn open(path: &Path, open: &Open) -> Result<(Self, Option<State>)> {
        let io = |error| Error::buffer("open", path, error);
        let inode = |file: &Metadata| (file.dev(), file.ino());
        let mut files = open.files();
        if fs::metadata(path).is_ok_and(|file| files.contains(&inode(&file))) {
            return Err(Error::BufferBusy { path: path.to_owned() });
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
                return Err(Error::BufferBusy { path: path.to_owned() });
            }
            Err(error) => return Err(Error::buffer("lock", path, error.into())),
        }
        let (generation, state) = read(&file, path)?;
        let inode = inode(&file.metadata().map_err(io)?);
        files.insert(inode);
        drop(files);
        Ok((Self { file, path: path.to_owned(), generation, open: open.clone(), inode }, state))
    }

    /// Writes a state and syncs it. Always both: the slot that the next state overwrites must not be the only one that is on disk.
    pub(super) fn write(&mut self, state: &State) -> Result<()> {
        let io = |error| Error::buffer("write", &self.path, error);
        if state.url.len() > LONGEST_URL {
            return Err(Error::Setting { name: "replica_url".to_owned(), why: "it is too long".to_owned() });
        }
        let generation = self.generation + 1;
        let slot = (generation % 2) * SLOT as u64;
        self.file.write_all_at(&encode(state, generation), slot).map_err(io)?;
        self.file.sync_data().map_err(io)?;
        self.generation = generation;
        Ok(())
    }
}

impl Control {
    /// Gives the lock back.
    pub(super) fn release(&self) {
        let _ = fcntl_lock(&self.file, FlockOperation::Unlock);
        self.open.files().remove(&self.inode);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.release();
    }
}

/// The process that has a buffer, if any does but this one: its id, or 0 where that cannot be seen from here. Takes no lock, but see the module:
/// not for a process that has it itself.
///
/// # Errors
/// [`Error::Buffer`].
pub fn holder(path: &Path) -> Result<Option<i32>> {
    let file = File::open(path).map_err(|error| Error::buffer("open", path, error))?;
    let found = fcntl_getlk(&file, &FlockType::WriteLock.into());
    let found = found.map_err(|error| Error::buffer("ask for the lock of", path, error.into()))?;
    Ok(found.map(|lock| lock.pid.map_or(0, |pid| pid.as_raw_pid())))
}

/// What a control file says, without locking it.
pub(super) fn peek(path: &Path) -> Result<Option<State>> {
    let file = File::open(path).map_err(|error| Error::buffer("open", path, error))?;
    Ok(read(&file, path)?.1)
}

fn read(file: &File, path: &Path) -> Result<(u64, Option<State>)> {
    let io = |error| Error::buffer("read", path, error);
    let mut bytes = vec![0; 2 * SLOT];
    let len = usize::try_from(file.metadata().map_err(io)?.len()).unwrap_or(usize::MAX);
    let have = len.min(bytes.len());
    file.read_exact_at(&mut bytes[..have], 0).map_err(io)?;
    let slots = bytes.chunks(SLOT).filter_map(decode);
    match slots.max_by_key(|(generation, _)| *generation) {
        Some((generation, state)) => Ok((generation, Some(state))),
        // Created, but nothing was ever written: no transaction can be in the buffer, since the first write goes before all.
        None if bytes.iter().all(|byte| *byte == 0) => Ok((0, None)),
        None => {
            let why = "it is not the control file of a write buffer: point buffer_path to another place".to_owned();
            Err(Error::BufferDamaged { path: path.to_owned(), why })
        }
    }
}

fn encode(state: &State, generation: u64) -> Vec<u8> {
    let mut slot = Vec::with_capacity(SLOT);
    slot.extend_from_slice(MAGIC);
    let intent = state.intent.unwrap_or_default();
    let numbers = [generation, state.writer, u64::from(state.intent.is_some())];
    let places = [state.base, intent];
    let places =
        places.map(|at| [at.txid.0, at.checksum, at.up_to.segment, at.up_to.offset, at.time.0.cast_unsigned()]);
    for number in numbers.iter().chain(places.iter().flatten()) {
        slot.extend_from_slice(&number.to_be_bytes());
    }
    slot.extend_from_slice(&(state.url.len() as u64).to_be_bytes());
    slot.extend_from_slice(state.url.as_bytes());
    slot.resize(SLOT - 8, 0);
    let sum = checksum(&[&slot]);
    slot.extend_from_slice(&sum.to_be_bytes());
    slot
}

fn decode(slot: &[u8]) -> Option<(u64, State)> {
    let number = |at: usize| be64(&slot[8 + 8 * at..]);
    if slot.len() < SLOT || slot[..8] != *MAGIC || checksum(&[&slot[..SLOT - 8]]) != be64(&slot[SLOT - 8..]) {
        return None;
    }
    let uploaded = |at: usize| Uploaded {
        txid: Txid(number(at)),
        checksum: number(at + 1),
        up_to: Position { segment: number(at + 2), offset: number(at + 3) },
        time: Timestamp(number(at + 4).cast_signed()),
    };
    let len = usize::try_from(number(13)).ok().filter(|len| *len <= LONGEST_URL)?;
    let url = String::from_utf8(slot[FIXED..FIXED + len].to_vec()).ok()?;
    let state = State { url, writer: number(1), base: uploaded(3), intent: (number(2) != 0).then(|| uploaded(8)) };
    Some((number(0), state))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(number: u64) -> State {
        let at = |number| Uploaded {
            txid: Txid(number),
            checksum: number << 40,
            up_to: Position { segment: number + 1, offset: number + 2 },
            time: Timestamp(-(number as i64)),
        };
        let intent = number.is_multiple_of(2).then(|| at(number + 7));
        State { url: format!("s3://bucket/{number}"), writer: !number, base: at(number), intent }
    }

    #[test]
    fn the_last_state_that_was_written_whole_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("buffer");
        let (mut control, none) = Control::open(&path, &Open::default()).unwrap();
        assert_eq!(none, None);
        for number in 1..6 {
            control.write(&state(number)).unwrap();
            assert_eq!(peek(&path).unwrap(), Some(state(number)));
        }
        // The last one is torn, at each byte of it.
        let whole = std::fs::read(&path).unwrap();
        let slot = if whole[SLOT + 15] == 5 { SLOT } else { 0 };
        for at in (slot..slot + FIXED).chain([slot + SLOT - 1]) {
            let mut torn = whole.clone();
            torn[at] ^= 0x20;
            std::fs::write(&path, &torn).unwrap();
            assert_eq!(peek(&path).unwrap(), Some(state(4)), "byte {at}");
        }
        std::fs::write(&path, "something else").unwrap();
        assert!(peek(&path).is_err());
        std::fs::write(&path, "").unwrap();
        assert_eq!(peek(&path).unwrap(), None);
    }
}
