//! One LTX file's frames, known after one request (a small file) or two side by side (a large one).

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use litestream_storage::{FileInfo, Replica};
use ltx::{
    ContentHash, DatabaseChecksum, FRAME_HEADER_LEN, Frame, HEADER_LEN, Header, IndexEntry, Layout, PageProblem, Tail,
    TailLength, Trailer,
};

use crate::spill::Piece;
use crate::{Error, PackedIndex, PackedIndexBuilder, Result};

/// Up to this many bytes a file is fetched whole.
pub const SMALL_FILE: u64 = 256 * 1024;
/// How much of a large file's end is fetched before it is known how long its tail is.
const LARGEST_GUESS: u64 = 4 << 20;
/// How many bytes an entry of the index takes at most, and what follows the entries.
const LONGEST_ENTRY: u64 = 20;
const AFTER_INDEX: u64 = 64;
/// How much of a large file's front is fetched with its tail: the header, page 1, usually the schema and the roots.
const HEAD: u64 = 64 * 1024;

/// A file of which everything but the frames' content is known.
#[derive(Clone, Debug)]
pub struct OpenFile {
    /// A number that no other opened file of this process has: what was read through it can be kept under this number.
    pub id: u64,
    /// The file.
    pub info: FileInfo,
    /// Its header.
    pub header: Header,
    /// Its header as it lies in the file.
    pub raw_header: [u8; HEADER_LEN],
    /// Where its frames lie.
    pub index: PackedIndex,
    /// Where the frames begin and end.
    pub layout: Layout,
    /// Its trailer.
    pub trailer: Trailer,
    /// The hash of all that follows the frames.
    pub tail_hash: ContentHash,
    /// The bytes from the front that came along and are in memory: all of a small file.
    pub front: Bytes,
    /// Where all of a small file's bytes are once they are not in memory.
    pub(crate) piece: Option<Piece>,
    legacy: bool,
}

/// The hash of some of a file's frames that follow one another, so that stretches hashed side by side can be joined.
#[derive(Clone, Debug)]
pub struct FramesHash {
    content: ContentHash,
    /// Only of a snapshot that carries a database checksum, which Litestream's do not.
    database: Option<DatabaseChecksum>,
}

impl FramesHash {
    /// Adds the next frame, whose decompressed page is given.
    pub fn add(&mut self, frame: &Frame<'_>, page: &[u8]) {
        frame.hash_into(page, &mut self.content);
        if let Some(database) = &mut self.database {
            database.toggle(frame.pgno(), page);
        }
    }

    /// Joins the stretch that follows this one.
    pub fn append(&mut self, next: &Self) {
        self.content.append(&next.content);
        if let (Some(database), Some(next)) = (&mut self.database, next.database) {
            database.join(next);
        }
    }
}

/// Some of a file's frames, by their place in its index, and where in the file they lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Places in the index.
    pub frames: Range<usize>,
    /// Offsets in the file.
    pub bytes: Range<u64>,
}

impl OpenFile {
    /// Reads what is to know of a file from its front and its last bytes.
    ///
    /// # Errors
    /// [`Error::Format`] for whatever is wrong with it.
    pub fn parse(info: FileInfo, front: Bytes, last: &[u8]) -> Result<Self> {
        let format = |source| Error::format(info.key(), source);
        let header = Header::parse(&front).map_err(format)?;
        header.expect_name(info.name).map_err(format)?;
        let mut raw_header = [0; HEADER_LEN];
        raw_header.copy_from_slice(&front[..HEADER_LEN]);
        let tail = Tail::parse(last, info.size(), &header).map_err(format)?;
        let mut index = PackedIndexBuilder::new(header.page_size);
        for entry in tail.entries() {
            index.push(entry.map_err(format)?);
        }
        // A frame's page number and its flags. The whole frame may be longer than what came along.
        let first = front.get(HEADER_LEN..HEADER_LEN + FRAME_HEADER_LEN).unwrap_or_default();
        let legacy = matches!(first, [pgno @ .., 0, 0] if pgno.iter().any(|byte| *byte != 0));
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            id: NUMBER.fetch_add(1, Ordering::Relaxed),
            header,
            raw_header,
            index: index.finish(),
            layout: tail.layout(),
            trailer: tail.trailer(),
            tail_hash: tail.content_hash(),
            front,
            piece: None,
            legacy,
            info,
        })
    }

    /// Whether all of the file is in memory.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.front.len() as u64 == self.info.size()
    }

    /// The frame's bytes, where they came along when the file was opened. May read a temporary file, and blocks then.
    #[must_use]
    pub fn at_hand(&self, entry: &IndexEntry) -> Option<Cow<'_, [u8]>> {
        let Some(piece) = &self.piece else {
            let range = usize::try_from(entry.offset).ok()?..usize::try_from(entry.end()).ok()?;
            return self.front.get(range).map(Cow::Borrowed);
        };
        match piece.read(entry.offset..entry.end()) {
            Ok(bytes) => bytes.map(Cow::Owned),
            Err(error) => {
                // The replica may have them still.
                tracing::warn!(key = %self.key(), %error, "cannot read the bytes that were kept in a temporary file");
                None
            }
        }
    }

    /// Whether the frame's bytes came along when the file was opened, and were kept.
    #[must_use]
    pub fn has_at_hand(&self, entry: &IndexEntry) -> bool {
        entry.end() <= self.piece.as_ref().map_or(self.front.len() as u64, Piece::len)
    }

    /// How many bytes are kept in a temporary file.
    #[must_use]
    pub fn spilled_bytes(&self) -> u64 {
        self.piece.as_ref().map_or(0, Piece::len)
    }

    /// Decompresses the frame at the front of `bytes`, which must be just the one that the index names, into `page`, which must be one page
    /// long.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub fn decompress(&self, entry: &IndexEntry, bytes: &[u8], page: &mut [u8]) -> Result<()> {
        let frame = self.frame(entry, bytes)?;
        frame.decompress_into(page).map_err(|source| Error::format(self.info.key(), source))
    }

    /// Cuts the file into spans of about `size` bytes at the borders of frames.
    #[must_use]
    pub fn spans(&self, size: u64) -> Vec<Span> {
        let mut spans = Vec::new();
        let (mut first, mut start, mut end) = (0, self.layout.frames_start(), self.layout.frames_start());
        for (at, entry) in self.index.entries().enumerate() {
            if entry.end() - start > size && at > first {
                spans.push(Span { frames: first..at, bytes: start..end });
                (first, start) = (at, entry.offset);
            }
            end = entry.end();
        }
        if first < self.index.len() {
            spans.push(Span { frames: first..self.index.len(), bytes: start..end });
        }
        spans
    }

    /// The frame at the front of `bytes`, which must be just the one that the index names.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub fn frame<'a>(&self, entry: &IndexEntry, bytes: &'a [u8]) -> Result<Frame<'a>> {
        let wrong = |source| Error::format(self.info.key(), source);
        let frame = Frame::parse(bytes, self.header.page_size).map_err(wrong)?;
        if frame.pgno() != entry.pgno || frame.bytes().len() != entry.size as usize {
            let pgno = entry.pgno.get();
            return Err(wrong(ltx::Error::Page { pgno, problem: PageProblem::NotIndexed }));
        }
        Ok(frame)
    }

    /// The hash of none of the file's frames yet.
    #[must_use]
    pub fn hash(&self) -> FramesHash {
        let checks_database = self.header.is_snapshot() && self.header.has_checksums();
        FramesHash { content: ContentHash::default(), database: checks_database.then(DatabaseChecksum::default) }
    }

    /// Compares the hash of all frames, in order, with the file's checksum, and of a snapshot that carries one with the database's.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub fn verify(&self, frames: &FramesHash) -> Result<()> {
        let format = |source| Error::format(self.info.key(), source);
        Layout::checksum(&self.raw_header, &frames.content, &self.tail_hash, &self.trailer).map_err(format)?;
        let stored = self.trailer.post_apply_checksum;
        match frames.database.map(DatabaseChecksum::get) {
            Some(computed) if computed != stored => Err(format(ltx::Error::DatabaseChecksum { stored, computed })),
            _ => Ok(()),
        }
    }

    /// Whether the file's first frame is of the kind that only Litestream before 0.5.16 wrote.
    #[must_use]
    pub fn starts_with_legacy_frame(&self) -> bool {
        self.legacy
    }

    /// The key, for messages.
    #[must_use]
    pub fn key(&self) -> &Arc<str> {
        &self.info.object.key
    }
}

/// How long a large file's tail may be, by its size: an index entry takes some 8 bytes of a frame of a thousand. Where pages compress far better
/// than usual, a second request fetches the rest.
fn tail_guess(size: u64) -> u64 {
    (size / 80 + 32 * 1024).min(LARGEST_GUESS).min(size)
}

/// Opens a file: a small one whole in one request, of a large one head and tail in two requests side by side.
///
/// # Errors
/// As the store says, and [`Error::Format`] for whatever is wrong with the file.
pub async fn open_file(replica: &Replica, info: &FileInfo) -> Result<OpenFile> {
    if info.size() <= SMALL_FILE {
        let bytes = replica.get_file(info).await?;
        return OpenFile::parse(info.clone(), bytes.clone(), &bytes);
    }
    let [head, last] = ends(info);
    let (head, last) = tokio::try_join!(replica.get_span(info, head), replica.get_span(info, last))?;
    open_large(replica, info, head, last).await
}

/// Opens files as [`open_file`] does, all side by side; their requests go together where that is cheaper.
///
/// # Errors
/// As [`open_file`].
pub async fn open_files(replica: &Replica, infos: &[FileInfo]) -> Result<Vec<OpenFile>> {
    let mut spans = Vec::with_capacity(infos.len());
    for info in infos {
        match info.size() {
            // Nothing to ask for. What it lacks, parsing tells.
            0 => {}
            1..=SMALL_FILE => spans.push((info, 0..info.size())),
            _ => spans.extend(ends(info).map(|span| (info, span))),
        }
    }
    let mut fetched = replica.get_spans(&spans).await?.into_iter();
    let mut next = || fetched.next().unwrap_or_default();
    let mut files = Vec::with_capacity(infos.len());
    for info in infos {
        files.push(match info.size() {
            0 => OpenFile::parse(info.clone(), Bytes::new(), &[])?,
            1..=SMALL_FILE => {
                let bytes = next();
                OpenFile::parse(info.clone(), bytes.clone(), &bytes)?
            }
            _ => open_large(replica, info, next(), next()).await?,
        });
    }
    Ok(files)
}

/// What is fetched first of a large file: its head, and its last bytes.
fn ends(info: &FileInfo) -> [Range<u64>; 2] {
    let size = info.size();
    [0..HEAD, size - tail_guess(size)..size]
}

async fn open_large(replica: &Replica, info: &FileInfo, head: Bytes, mut last: Bytes) -> Result<OpenFile> {
    let size = info.size();
    let format = |source| Error::format(info.key(), source);
    if let TailLength::Need(need) = TailLength::measure(&last, size).map_err(format)? {
        // A damaged length must not decide how much is read: no page has more than one entry.
        let pages = Header::parse(&head).map_err(format)?.commit.0;
        if need > u64::from(pages) * LONGEST_ENTRY + AFTER_INDEX {
            return Err(format(ltx::Error::Index("it is longer than all pages of the database need")));
        }
        // `measure` has checked that the file is at least this long.
        let rest = replica.get_span(info, size - need..size - last.len() as u64).await?;
        last = [rest, last].concat().into();
    }
    OpenFile::parse(info.clone(), head, &last)
}
