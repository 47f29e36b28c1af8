//! `.NAME-litestream/ltx/0`: captured transactions that wait to be uploaded, one LTX file for each TXID.
//!
//! A file is there whole or not at all: it is written under another name, synced, renamed, and its folder synced.

use std::fs;
use std::io::{BufWriter, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ltx::{Checksum, Commit, Encoder, FileName, HEADER_LEN, Header, PageSize, Tail, TailLength, Timestamp, Txid};

use crate::{Error, Result, files};

const TEMPORARY: &str = "tmp";
/// What the name of the empty file ends with that tells which file was deleted last.
const HAD: &str = "had";
/// After how many bytes of pages what was written so far is made durable.
const SYNC_EVERY: usize = 128 << 20;

/// A file that waits to be uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    /// Where it lies.
    pub path: PathBuf,
    /// The transaction.
    pub txid: Txid,
    /// When it was captured; ascending.
    pub time: Timestamp,
    /// The database's size after it.
    pub commit: Commit,
    /// The database's page size.
    pub page_size: PageSize,
    /// How many pages are in it.
    pub pages: u32,
    /// How many bytes of the log were captured.
    pub wal_bytes: u64,
    /// The file's length in bytes.
    pub len: u64,
    /// Checksum of the file's content.
    pub checksum: Checksum,
    /// Whether it holds every page of the database, so that nothing before it is needed.
    pub complete: bool,
}

/// The file that was deleted last because all replicas had it: its checksum tells later whether what a replica holds is ours. It is an empty
/// file's name, so that replacing it is one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Had {
    pub(crate) txid: Txid,
    pub(crate) checksum: Checksum,
}

impl Had {
    fn name(&self) -> String {
        format!("{}-{}.{HAD}", self.txid, self.checksum)
    }

    /// What the folder says.
    pub(crate) fn find(folder: &Path) -> Option<Self> {
        let names = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name());
        let parse = |name: std::ffi::OsString| {
            let (txid, checksum) = name.to_str()?.strip_suffix(HAD)?.strip_suffix('.')?.split_once('-')?;
            let checksum = Checksum(u64::from_str_radix(checksum, 16).ok()?);
            Some(Self { txid: txid.parse().ok()?, checksum })
        };
        names.filter_map(parse).max_by_key(|had| had.txid)
    }

    /// Puts this into the folder, in place of what was there.
    pub(crate) fn put(&self, folder: &Path, before: Option<Self>) -> std::io::Result<()> {
        let path = folder.join(self.name());
        match before.map(|before| fs::rename(folder.join(before.name()), &path)) {
            Some(Ok(())) => Ok(()),
            _ => files::create(&path).map(drop),
        }
    }
}

/// The folder.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    folder: PathBuf,
}

impl Stage {
    /// Makes the folder, and removes what was never finished.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let failed = Error::io("prepare", folder);
        files::create_folder(folder).map_err(&failed)?;
        for entry in fs::read_dir(folder).map_err(&failed)? {
            let path = entry.map_err(&failed)?.path();
            if path.extension().is_some_and(|extension| extension == TEMPORARY) {
                fs::remove_file(&path).map_err(Error::io("delete", &path))?;
            }
        }
        Ok(Self { folder: folder.to_owned() })
    }

    fn path(&self, txid: Txid) -> PathBuf {
        self.folder.join(FileName::new(txid, txid).to_string())
    }

    /// Writes a file with what `pages` encodes, and makes it durable.
    pub(crate) fn write(
        &self,
        header: Header,
        pages: impl FnOnce(&mut dyn FnMut(ltx::Pgno, &[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<Staged> {
        let path = self.path(header.max_txid);
        let temporary = path.with_extension(TEMPORARY);
        let staged = self.encode(header, pages, &temporary, &path);
        if staged.is_err() {
            // Above all where the disk is full.
            let _ = fs::remove_file(&temporary);
        }
        staged
    }

    fn encode(
        &self,
        header: Header,
        pages: impl FnOnce(&mut dyn FnMut(ltx::Pgno, &[u8]) -> Result<()>) -> Result<()>,
        temporary: &Path,
        path: &Path,
    ) -> Result<Staged> {
        let failed = Error::io("write", temporary);
        let wrong = |source| Error::Ltx { path: temporary.to_owned(), source };
        let file = files::create(temporary).map_err(&failed)?;
        let syncing = file.try_clone().map_err(&failed)?;
        let mut encoder = Encoder::new(BufWriter::with_capacity(64 << 10, file), header).map_err(wrong)?;
        let (mut count, mut unsynced) = (0, 0);
        pages(&mut |pgno, page| {
            count += 1;
            unsynced += page.len();
            // So that the last sync, during which nothing else is captured, is short.
            if unsynced >= SYNC_EVERY {
                unsynced = 0;
                syncing.sync_data().map_err(&failed)?;
            }
            encoder.page(pgno, page).map_err(wrong)
        })?;
        drop(syncing);
        let (writer, trailer) = encoder.finish().map_err(wrong)?;
        let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
        let len = file.metadata().map_err(&failed)?.len();
        file.sync_all().map_err(&failed)?;
        fs::rename(temporary, path).map_err(&failed)?;
        files::sync_folder(&self.folder).map_err(&failed)?;
        Ok(Staged {
            path: path.to_owned(),
            txid: header.max_txid,
            time: header.timestamp,
            commit: header.commit,
            page_size: header.page_size,
            pages: count,
            wal_bytes: header.wal_size,
            len,
            checksum: trailer.file_checksum,
            complete: count == header.commit.stored_pages(header.page_size),
        })
    }

    /// All that is there, ascending.
    pub(crate) fn txids(&self) -> Result<Vec<Txid>> {
        let failed = Error::io("list", &self.folder);
        let mut txids = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(&failed)? {
            let name = entry.map_err(&failed)?.file_name();
            if let Some(name) = name.to_str().and_then(|name| name.parse::<FileName>().ok())
                && name.min == name.max
            {
                txids.push(name.max);
            }
        }
        txids.sort_unstable();
        Ok(txids)
    }

    /// What a file that was left says of itself at both ends. Its pages are not looked at.
    pub(crate) fn read(&self, txid: Txid) -> Result<Staged> {
        Self::read_in(&self.folder, txid)
    }

    /// The same, of a folder that was not prepared.
    pub(crate) fn read_in(folder: &Path, txid: Txid) -> Result<Staged> {
        let path = folder.join(FileName::new(txid, txid).to_string());
        let failed = Error::io("read", &path);
        let wrong = |source| Error::Ltx { path: path.clone(), source };
        let mut file = files::open_own(&path).map_err(&failed)?;
        let len = file.metadata().map_err(&failed)?.len();
        let mut head = [0; HEADER_LEN];
        file.read_exact(&mut head).map_err(&failed)?;
        let header = Header::parse(&head).map_err(wrong)?;
        header.expect_name(FileName::new(txid, txid)).map_err(wrong)?;
        let mut bytes = Vec::new();
        while let TailLength::Need(need) = TailLength::measure(&bytes, len).map_err(wrong)? {
            bytes.resize(need as usize, 0);
            file.read_exact_at(&mut bytes, len - need).map_err(&failed)?;
        }
        let tail = Tail::parse(&bytes, len, &header).map_err(wrong)?;
        let mut pages = 0;
        for entry in tail.entries() {
            entry.map_err(wrong)?;
            pages += 1;
        }
        Ok(Staged {
            path: path.clone(),
            txid,
            time: header.timestamp,
            commit: header.commit,
            page_size: header.page_size,
            pages,
            wal_bytes: header.wal_size,
            len,
            checksum: tail.trailer().file_checksum,
            complete: pages == header.commit.stored_pages(header.page_size),
        })
    }

    /// Deletes what is there up to a TXID, or all above it.
    pub(crate) fn delete(&self, which: impl Fn(Txid) -> bool) -> Result<()> {
        for txid in self.txids()?.into_iter().filter(|txid| which(*txid)) {
            let path = self.path(txid);
            fs::remove_file(&path).map_err(Error::io("delete", &path))?;
        }
        Ok(())
    }
}
