//! Where small files' bytes stay once memory's share is used up: in temporary files without a name.
//!
//! - Compaction deletes small files soon. What a view holds of them can be read for as long as the view lives.
//! - Bytes are appended to the newest temporary file, and nothing is ever written over: reading takes no lock.
//! - A temporary file goes with the last piece in it, by its descriptor alone. Letting go takes no lock either, and changes nothing that
//!   others see: in a forked child a lock may be held for ever, and the file is the parent's, too.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

use crate::OpenFile;

/// From so many bytes on, a temporary file is not appended to: one that always grew would never go.
const SEGMENT: u64 = 32 << 20;

/// How much of small files each view keeps, and the temporary files for what is too much for memory.
///
/// Not for use in a forked child: make another one there. What the parent kept can be dropped there.
#[derive(Debug)]
pub struct Spill {
    memory: u64,
    disk: u64,
    newest: Mutex<Newest>,
}

#[derive(Debug, Default)]
struct Newest {
    file: Weak<File>,
    end: u64,
}

/// Some bytes in a temporary file.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    file: Arc<File>,
    offset: u64,
    len: u64,
}

/// What is left of one view's share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    memory: u64,
    disk: u64,
}

impl Default for Spill {
    /// 64 MiB in memory and 512 MiB in temporary files.
    fn default() -> Self {
        Self::new(64 << 20, 512 << 20)
    }
}

impl Spill {
    /// So many bytes of each view's files, the newest first, stay in memory, and so many more of small files in temporary files. What is
    /// beyond both is read from the replica again.
    #[must_use]
    pub fn new(memory: u64, disk: u64) -> Self {
        Self { memory, disk, newest: Mutex::default() }
    }

    pub(crate) fn share(&self) -> Share {
        Share { memory: self.memory, disk: self.disk }
    }

    /// Leaves a file's bytes in memory, moves them to a temporary file, or drops them, as the share allows. Files come newest first.
    pub(crate) async fn keep(self: &Arc<Self>, share: &mut Share, file: &mut Arc<OpenFile>) {
        let len = file.front.len() as u64;
        if let Some(left) = share.memory.checked_sub(len) {
            share.memory = left;
        } else if !file.is_whole() {
            // The head of a large file is there for speed alone.
            Arc::make_mut(file).front = Bytes::new();
        } else {
            let piece = if share.disk >= len { self.write(file).await } else { None };
            let file = Arc::make_mut(file);
            (file.piece, file.front) = (piece, Bytes::new());
        }
        share.disk = share.disk.saturating_sub(file.spilled_bytes());
    }

    /// Writes where blocking is allowed. Without a place to write to, the bytes are as good as never fetched.
    async fn write(self: &Arc<Self>, file: &OpenFile) -> Option<Piece> {
        let (this, bytes) = (self.clone(), file.front.clone());
        let written = tokio::task::spawn_blocking(move || this.append(&bytes)).await;
        match written.map_err(io::Error::other).flatten() {
            Ok(piece) => Some(piece),
            Err(error) => {
                let folder = std::env::temp_dir();
                tracing::warn!(key = %file.key(), %error, folder = %folder.display(), "cannot keep a file's bytes");
                None
            }
        }
    }

    fn append(&self, bytes: &[u8]) -> io::Result<Piece> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match newest.file.upgrade().filter(|_| newest.end < SEGMENT) {
            Some(file) => file,
            None => {
                let file = Arc::new(tempfile::tempfile()?);
                *newest = Newest { file: Arc::downgrade(&file), end: 0 };
                file
            }
        };
        file.write_all_at(bytes, newest.end)?;
        let piece = Piece { file, offset: newest.end, len: bytes.len() as u64 };
        newest.end += piece.len;
        Ok(piece)
    }
}

impl Piece {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Reads some of the bytes, `None` where they are not all there. Blocks, as reading a file does.
    pub(crate) fn read(&self, range: Range<u64>) -> io::Result<Option<Vec<u8>>> {
        if range.end > self.len || range.start > range.end {
            return Ok(None);
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut bytes, self.offset + range.start)?;
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(spill: &Spill) -> Weak<File> {
        spill.newest.lock().unwrap().file.clone()
    }

    #[test]
    fn pieces_are_read_back_as_they_were_written() {
        let spill = Spill::default();
        let pieces: Vec<Piece> = (0..100_u8).map(|n| spill.append(&[n; 1000]).unwrap()).collect();
        for (n, piece) in (0..).zip(&pieces) {
            assert_eq!(piece.read(0..1000).unwrap().unwrap(), [n; 1000]);
            assert_eq!(piece.read(990..1000).unwrap().unwrap(), [n; 10]);
            assert_eq!(piece.read(990..1001).unwrap(), None, "never a neighbour's bytes");
        }
    }

    #[test]
    fn a_temporary_file_goes_with_its_last_piece() {
        let spill = Spill::default();
        let first = spill.append(&[1; 1000]).unwrap();
        let second = spill.append(&[2; 1000]).unwrap();
        let file = newest(&spill);
        drop(first);
        assert!(file.upgrade().is_some());
        drop(second);
        assert!(file.upgrade().is_none());
        let third = spill.append(&[3; 1000]).unwrap();
        assert_eq!(third.read(0..1000).unwrap().unwrap(), [3; 1000]);
        assert_eq!(third.file.metadata().unwrap().len(), 1000, "a new file, not the old one grown");
    }

    #[test]
    fn a_temporary_file_does_not_grow_for_ever() {
        let spill = Spill::default();
        let full = vec![7; SEGMENT as usize];
        let first = spill.append(&full).unwrap();
        let before = newest(&spill);
        let second = spill.append(&[8; 1000]).unwrap();
        drop(first);
        assert!(before.upgrade().is_none(), "the first one goes while the second one stays");
        assert_eq!(second.read(0..1000).unwrap().unwrap(), [8; 1000]);
    }
}
