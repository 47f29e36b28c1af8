//! The database at one TXID: which frame of which file holds each page.

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use litestream_storage::{FileInfo, Replica};
use ltx::{Commit, IndexEntry, PageSize, Pgno, Timestamp, Txid};

use crate::{Error, OpenFile, Plan, Result, Spill, open_file};

/// How many files are opened at once: all, where level 0 holds the five minutes that it is kept for, with a file a second.
const OPEN_AT_ONCE: usize = 384;

/// A database at one TXID. Immutable; meant to be shared as `Arc<View>`.
#[derive(Clone, Debug)]
pub struct View {
    /// Newest last, as in the plan.
    files: Vec<Arc<OpenFile>>,
    /// For each page that the oldest file does not hold in its newest version: the file that does. Ascending by page.
    overlay: Box<[(u32, u32)]>,
    txid: Txid,
    commit: Commit,
    page_size: PageSize,
    time: Timestamp,
}

/// Where a page lies.
#[derive(Clone, Debug)]
pub struct Location<'a> {
    /// The file.
    pub file: &'a Arc<OpenFile>,
    /// The frame in it.
    pub frame: IndexEntry,
}

impl View {
    /// Opens all files of a plan, side by side, but for those that are among `known`. What came along of small ones is kept as `spill` allows.
    ///
    /// # Errors
    /// As the store says, [`Error::Format`], [`Error::PageSizeChanged`], [`Error::Deleted`].
    pub async fn open(replica: &Replica, plan: &Plan, known: &[Arc<OpenFile>], spill: &Arc<Spill>) -> Result<Self> {
        Self::open_showing(replica, plan, known, spill, |_| ()).await
    }

    /// As [`View::open`]. The oldest file, which most pages lie in, is asked for first, and if it is not known it is shown once it has come, while
    /// the others may still be on their way.
    ///
    /// # Errors
    /// As [`View::open`].
    pub async fn open_showing(
        replica: &Replica,
        plan: &Plan,
        known: &[Arc<OpenFile>],
        spill: &Arc<Spill>,
        oldest: impl FnOnce(&Arc<OpenFile>),
    ) -> Result<Self> {
        let known: HashMap<&str, &Arc<OpenFile>> = known.iter().map(|file| (file.info.key(), file)).collect();
        let find = |file: &FileInfo| known.get(file.key()).filter(|known| is_same(&known.info, file)).copied().cloned();
        let Some((base, newer)) = plan.files.split_first() else { return Self::of(Vec::new()) };
        let base = async {
            if let Some(file) = find(base) {
                return Ok(file);
            }
            let file = Arc::new(open_file(replica, base).await?);
            oldest(&file);
            Ok::<_, Error>(file)
        };
        // Newest first, so that what goes from memory again, once its share is used up, is the oldest.
        let newest_first = newer.iter().rev().cloned().map(|file| {
            let (known, replica) = (find(&file), replica.clone());
            async move {
                match known {
                    Some(known) => Ok(known),
                    None => open_file(&replica, &file).await.map(Arc::new),
                }
            }
        });
        let newer = async {
            let mut opens = stream::iter(newest_first.collect::<Vec<_>>()).buffered(OPEN_AT_ONCE);
            let (mut files, mut share) = (Vec::with_capacity(plan.files.len()), spill.share());
            while let Some(file) = opens.next().await {
                let mut file = file?;
                spill.keep(&mut share, &mut file).await;
                files.push(file);
            }
            Ok((files, share))
        };
        let (mut base, (mut files, mut share)) = futures::try_join!(base, newer)?;
        spill.keep(&mut share, &mut base).await;
        files.push(base);
        files.reverse();
        Self::of(files)
    }

    /// A view over opened files, oldest first. They must follow one another as a plan's files do.
    fn of(files: Vec<Arc<OpenFile>>) -> Result<Self> {
        let (Some(first), Some(last)) = (files.first(), files.last()) else { panic!("a plan has at least one file") };
        let Timestamp(time) = last.header.timestamp;
        let (commit, page_size, txid) = (last.header.commit, first.header.page_size, last.header.max_txid);
        if commit == Commit(0) {
            return Err(Error::Deleted { key: last.key().clone() });
        }
        for file in &files {
            same_page_size(page_size, file)?;
        }
        let mut newer: Vec<(u32, u32)> = Vec::new();
        for (number, file) in files.iter().enumerate().skip(1).rev() {
            newer.extend(file.index.entries().map(|entry| (entry.pgno.get(), number as u32)));
        }
        newer.retain(|(pgno, _)| *pgno <= commit.0);
        // Stable: of one page's entries the newest file's stays in front.
        newer.sort_by_key(|(pgno, _)| *pgno);
        newer.dedup_by_key(|(pgno, _)| *pgno);
        Ok(Self { overlay: newer.into(), txid, commit, page_size, time: Timestamp(time), files })
    }

    /// Before the first transaction: no page, no file. The page size is only a guess, until the first file tells it.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            files: Vec::new(),
            overlay: Box::default(),
            txid: Txid::ZERO,
            commit: Commit(0),
            page_size: PageSize::DEFAULT,
            time: Timestamp(0),
        }
    }

    /// The view after further files, oldest first, which must follow on this view's TXID. What is kept of all files is as `spill` allows.
    ///
    /// # Errors
    /// [`Error::PageSizeChanged`], [`Error::Deleted`].
    pub async fn derive(&self, further: &[Arc<OpenFile>], spill: &Arc<Spill>) -> Result<Self> {
        let Some(last) = further.last() else { return Ok(self.clone()) };
        if self.files.is_empty() {
            return Self::of(further.to_vec());
        }
        let (commit, txid, time) = (last.header.commit, last.header.max_txid, last.header.timestamp);
        if commit == Commit(0) {
            return Err(Error::Deleted { key: last.key().clone() });
        }
        let mut newer: Vec<(u32, u32)> = Vec::new();
        for (number, file) in (self.files.len() as u32..).zip(further) {
            same_page_size(self.page_size, file)?;
            newer.extend(file.index.entries().map(|entry| (entry.pgno.get(), number)));
        }
        newer.reverse();
        newer.extend_from_slice(&self.overlay);
        newer.sort_by_key(|(pgno, _)| *pgno);
        newer.dedup_by_key(|(pgno, _)| *pgno);
        newer.retain(|(pgno, _)| *pgno <= commit.0);
        let mut files = [self.files.as_slice(), further].concat();
        let mut share = spill.share();
        for file in files.iter_mut().rev() {
            spill.keep(&mut share, file).await;
        }
        Ok(Self { files, overlay: newer.into(), txid, commit, page_size: self.page_size, time })
    }

    /// Where a page lies. `None` for the lock page, for pages beyond the end, and for pages that no file holds (which reads as zeros).
    #[must_use]
    pub fn locate(&self, pgno: Pgno) -> Option<Location<'_>> {
        let (file, at) = self.holder(pgno)?;
        let file = &self.files[file];
        Some(Location { file, frame: file.index.entry(at) })
    }

    /// Which of the files holds a page, and the page's place in that file's index. `None` as [`View::locate`].
    #[must_use]
    pub fn holder(&self, pgno: Pgno) -> Option<(usize, usize)> {
        if !self.commit.contains(pgno) {
            return None;
        }
        let at = self.overlay.binary_search_by_key(&pgno.get(), |(pgno, _)| *pgno);
        let file = at.map_or(0, |at| self.overlay[at].1 as usize);
        self.files[file].index.position(pgno).map(|at| (file, at))
    }

    /// The pages that the oldest file does not hold in their newest version, ascending.
    pub fn overlaid(&self) -> impl Iterator<Item = Pgno> + '_ {
        self.overlay.iter().filter_map(|(pgno, _)| Pgno::new(*pgno))
    }

    /// The TXID.
    #[must_use]
    pub const fn txid(&self) -> Txid {
        self.txid
    }

    /// The database's size in pages.
    #[must_use]
    pub const fn commit(&self) -> Commit {
        self.commit
    }

    /// The size of its pages.
    #[must_use]
    pub const fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// When its last transaction was captured.
    #[must_use]
    pub const fn time(&self) -> Timestamp {
        self.time
    }

    /// The files, oldest first.
    #[must_use]
    pub fn files(&self) -> &[Arc<OpenFile>] {
        &self.files
    }

    /// Bytes of its files that are in temporary files.
    #[must_use]
    pub fn spilled_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.spilled_bytes()).sum()
    }

    /// Bytes of memory that the index takes, the files' fronts left out.
    #[must_use]
    pub fn index_memory(&self) -> usize {
        size_of_val(&*self.overlay) + self.files.iter().map(|file| file.index.memory()).sum::<usize>()
    }
}

/// Whether a listed file is the one that was opened.
fn is_same(known: &FileInfo, listed: &FileInfo) -> bool {
    let (known, listed) = (&known.object, &listed.object);
    known.size == listed.size && known.etag.is_some() && known.etag == listed.etag
}

pub(crate) fn same_page_size(before: PageSize, file: &OpenFile) -> Result<()> {
    let after = file.header.page_size;
    if before == after { Ok(()) } else { Err(Error::PageSizeChanged { key: file.key().clone(), before, after }) }
}
