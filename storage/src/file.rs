//! A replica as files in a folder: `PATH/ltx/LEVEL/MIN-MAX.ltx`, the level in decimal, a file's time as its mtime.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use ltx::{FileName, Timestamp, Txid};

use crate::backend::{
    self, Backend, Body, GetRequest, GetResponse, ListPage, ListRequest, Precondition, PutOptions, Scope,
};
use crate::replica::blocking;
use crate::{ETag, Error, FileInfo, Level, ObjectInfo, Result};

/// A replica in a local folder (or a mounted one).
///
/// Reads and writes are done on threads that may block. A put writes a temporary file, syncs it, and links it into place; the folder is
/// synced before the put counts as done.
#[derive(Debug)]
pub struct FileBackend {
    root: Arc<Path>,
    url: Arc<str>,
}

impl FileBackend {
    /// The replica in `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root: PathBuf = root.into();
        Self { url: format!("file://{}", root.display()).into(), root: root.into() }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }
}

impl From<FileBackend> for Arc<dyn Backend> {
    fn from(backend: FileBackend) -> Self {
        Arc::new(backend)
    }
}

fn level_folder(level: Level) -> String {
    format!("ltx/{level}")
}

#[async_trait]
impl Backend for FileBackend {
    fn url(&self) -> &Arc<str> {
        &self.url
    }

    fn key(&self, level: Level, name: FileName) -> String {
        format!("{}/{name}", level_folder(level))
    }

    fn side_key(&self, name: &str) -> String {
        name.to_owned()
    }

    fn clock(&self) -> Option<Timestamp> {
        Some(Timestamp(jiff::Timestamp::now().as_millisecond()))
    }

    fn honours_conditions(&self) -> bool {
        true
    }

    async fn list(&self, request: &ListRequest<'_>) -> Result<ListPage> {
        let root = self.root.clone();
        let ListRequest { scope, from, .. } = *request;
        let at = self.clock();
        blocking(move || {
            let mut page = ListPage { at, ..ListPage::default() };
            match scope {
                Scope::Level(level) => list_level(&root, level, from, &mut page)?,
                Scope::Above(level) => {
                    for level in Level::all().filter(|above| *above > level) {
                        list_level(&root, level, Txid::ZERO, &mut page)?;
                    }
                    list_others(&root, &mut page)?;
                }
                Scope::Generations => list_tree(&root, "generations", &mut page.others)?,
            }
            Ok(page)
        })
        .await
    }

    async fn get(&self, request: &GetRequest<'_>) -> Result<GetResponse> {
        let (path, key, url, range) =
            (self.path(request.key), Arc::<str>::from(request.key), self.url.clone(), request.range.clone());
        blocking(move || {
            let file = File::open(&path).map_err(|error| not_found(&url, &key, &path, "open", error))?;
            let metadata = file.metadata().map_err(|error| Error::io("look at", &path, error))?;
            let object = describe(key.clone(), &metadata);
            // The span is what the caller asked for, cut to what the file really has.
            let range = backend::resolve(&url, &key, &range, object.size)?;
            let mut pieces = Pieces { file, path, rest: range.clone() };
            let first = pieces.read()?;
            let rest = futures::stream::try_unfold(pieces, |mut pieces| async {
                if pieces.rest.is_empty() {
                    return Ok(None);
                }
                blocking(move || Ok(Some((pieces.read()?, pieces)))).await
            });
            let body = futures::stream::iter([Ok(first)]).chain(rest).boxed();
            Ok(GetResponse { object, range, body })
        })
        .await
    }

    fn spans_at_once(&self) -> usize {
        // A hop to another thread costs more than reading a small file: each should be worth it, and there should be enough for every core.
        32
    }

    async fn get_spans(&self, spans: &[(&ObjectInfo, Range<u64>)]) -> Vec<Option<(ObjectInfo, Bytes)>> {
        let wanted: Vec<_> = spans
            .iter()
            .map(|(object, span)| (self.path(&object.key), object.key.clone(), object.size, span.clone()))
            .collect();
        let read = |(path, key, size, rest): (PathBuf, Arc<str>, u64, Range<u64>)| {
            let file = File::open(&path).ok()?;
            let object = describe(key, &file.metadata().ok()?);
            let fits = object.size == size && rest.end <= size && rest.end - rest.start <= Buffer::LARGEST as u64;
            let bytes = fits.then(|| Pieces { file, path, rest }.read());
            Some((object, bytes?.ok()?))
        };
        let answers = blocking(move || Ok(wanted.into_iter().map(read).collect())).await;
        answers.unwrap_or_else(|_| spans.iter().map(|_| None).collect())
    }

    async fn head(&self, key: &str, _: u32) -> Result<ObjectInfo> {
        let (path, key, url) = (self.path(key), Arc::<str>::from(key), self.url.clone());
        blocking(move || {
            let metadata = fs::metadata(&path).map_err(|error| not_found(&url, &key, &path, "look at", error))?;
            Ok(describe(key, &metadata))
        })
        .await
    }

    async fn put(&self, key: &str, body: &Body, options: &PutOptions<'_>) -> Result<ObjectInfo> {
        let (path, key, url, body) = (self.path(key), Arc::<str>::from(key), self.url.clone(), body.clone());
        let (precondition, time) = (options.precondition.clone(), options.time);
        blocking(move || put(&path, &key, &url, &body, &precondition, time)).await
    }

    async fn delete(&self, keys: &[&str], _: u32) -> Result<()> {
        let paths: Vec<PathBuf> = keys.iter().map(|key| self.path(key)).collect();
        blocking(move || {
            for path in paths {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(Error::io("delete", path, error));
                    }
                    _ => {}
                }
            }
            Ok(())
        })
        .await
    }
}

/// A span of a file that is read piece by piece, so that a slow disk is seen to get on.
struct Pieces {
    file: File,
    path: PathBuf,
    /// What has not been read yet.
    rest: Range<u64>,
}

impl Pieces {
    /// The next piece: all of it where that is not too large to be kept in memory that is used again.
    fn read(&mut self) -> Result<Bytes> {
        let len = (self.rest.end - self.rest.start).min(Buffer::LARGEST as u64);
        let mut buffer = Buffer::take(len as usize);
        let read = self.file.read_exact_at(buffer.as_mut(), self.rest.start);
        read.map_err(|error| Error::io("read", &self.path, error))?;
        self.rest.start += len;
        Ok(Bytes::from_owner(buffer))
    }
}

/// Memory that a file is read into. Large pieces are used again, since fresh memory costs as much as reading into it.
struct Buffer {
    memory: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// From here on up memory is kept.
    const LARGE: usize = 128 << 10;
    /// Larger pieces are not kept.
    const LARGEST: usize = 4 << 20;
    /// How many bytes are kept: as many pieces of usual size as are under way at once.
    const KEPT: usize = 32 << 20;

    fn pool() -> std::sync::MutexGuard<'static, Vec<Vec<u8>>> {
        static POOL: std::sync::Mutex<Vec<Vec<u8>>> = std::sync::Mutex::new(Vec::new());
        POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// So many bytes of whatever content.
    fn take(len: usize) -> Self {
        let fits = |memory: &Vec<u8>| memory.len() >= len && memory.len() / 4 <= len;
        let kept = if len < Self::LARGE { None } else { Some(Self::pool()) };
        let kept = kept.and_then(|mut pool| pool.iter().rposition(fits).map(|at| pool.swap_remove(at)));
        Self { memory: kept.unwrap_or_else(|| vec![0; len]), len }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if (Self::LARGE..=Self::LARGEST).contains(&self.memory.len()) {
            let mut pool = Self::pool();
            if pool.iter().map(Vec::len).sum::<usize>() + self.memory.len() <= Self::KEPT {
                pool.push(std::mem::take(&mut self.memory));
            }
        }
    }
}

fn list_level(root: &Path, level: Level, from: Txid, page: &mut ListPage) -> Result<()> {
    let folder = root.join(level_folder(level));
    let start = page.files.len();
    for_each_entry(&folder, |name, entry| {
        let Ok(name) = name.parse::<FileName>() else { return Ok(()) };
        if name.min < from {
            return Ok(());
        }
        let Some(metadata) = metadata(entry)?.filter(fs::Metadata::is_file) else { return Ok(()) };
        let object = describe(format!("{}/{name}", level_folder(level)).into(), &metadata);
        page.files.push(FileInfo { level, name, object });
        Ok(())
    })?;
    page.files[start..].sort_unstable_by_key(|file| file.name);
    Ok(())
}

/// What lies beside `ltx/`: the lock, our side objects, a v0.3 replica's folder (only by name).
fn list_others(root: &Path, page: &mut ListPage) -> Result<()> {
    for_each_entry(root, |name, entry| {
        if name != "ltx"
            && let Some(metadata) = metadata(entry)?
        {
            page.others.push(describe(name.into(), &metadata));
        }
        Ok(())
    })?;
    page.others.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(())
}

fn list_tree(root: &Path, folder: &str, found: &mut Vec<ObjectInfo>) -> Result<()> {
    let mut folders = Vec::new();
    let start = found.len();
    for_each_entry(&root.join(folder), |name, entry| {
        let Some(metadata) = metadata(entry)? else { return Ok(()) };
        let key = format!("{folder}/{name}");
        if metadata.is_dir() {
            folders.push(key);
        } else {
            found.push(describe(key.into(), &metadata));
        }
        Ok(())
    })?;
    for folder in folders {
        list_tree(root, &folder, found)?;
    }
    found[start..].sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(())
}

/// Calls `each` for every entry whose name is text; a folder that is not there is empty.
fn for_each_entry(folder: &Path, mut each: impl FnMut(&str, &fs::DirEntry) -> Result<()>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        entries => entries.map_err(|error| Error::io("list", folder, error))?,
    };
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("list", folder, error))?;
        if let Some(name) = entry.file_name().to_str() {
            each(name, &entry)?;
        }
    }
    Ok(())
}

/// An entry's metadata, or `None` where it has gone meanwhile.
fn metadata(entry: &fs::DirEntry) -> Result<Option<fs::Metadata>> {
    match fs::metadata(entry.path()) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        found => found.map(Some).map_err(|error| Error::io("look at", entry.path(), error)),
    }
}

fn describe(key: Arc<str>, metadata: &fs::Metadata) -> ObjectInfo {
    let millis = metadata.mtime() * 1_000 + metadata.mtime_nsec() / 1_000_000;
    ObjectInfo {
        key,
        size: metadata.len(),
        // A file that is replaced is another inode; one that is rewritten has another ctime.
        etag: Some(ETag::new(&format!("{:x}-{:x}.{:x}", metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))),
        modified: Timestamp(millis),
        time: Some(Timestamp(millis)),
    }
}

fn not_found(url: &Arc<str>, key: &Arc<str>, path: &Path, operation: &'static str, error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Error::NotFound { url: url.clone(), key: key.clone() },
        _ => Error::io(operation, path, error),
    }
}

/// A file that goes away unless it is kept.
struct Temporary(PathBuf);

impl Temporary {
    /// Creates a file of a name that nobody has. One that was left over by a process with our id stays: who knows whether it has ended.
    fn create(folder: &Path, name: &str) -> Result<(File, Self)> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!(".{name}.{}-{number}.tmp", std::process::id()));
            match File::create_new(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => {
                    return created.map_err(|error| Error::io("create", &path, error)).map(|file| (file, Self(path)));
                }
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Best effort: what is left over is not an LTX name and harms nobody.
        let _ = fs::remove_file(&self.0);
    }
}

fn put(
    path: &Path,
    key: &Arc<str>,
    url: &Arc<str>,
    body: &Body,
    precondition: &Precondition,
    time: Option<Timestamp>,
) -> Result<ObjectInfo> {
    let folder = path.parent().unwrap_or(path);
    create_folders(folder)?;
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or("object");
    let (mut file, temporary) = Temporary::create(folder, name)?;
    let fail = |operation| {
        let path = temporary.0.clone();
        move |error| Error::io(operation, path.clone(), error)
    };
    match body {
        Body::Bytes(bytes) => file.write_all(bytes).map_err(fail("write"))?,
        Body::File { path, .. } => {
            let mut source = File::open(path).map_err(|error| Error::io("open", path, error))?;
            std::io::copy(&mut source, &mut file).map_err(fail("write"))?;
        }
    }
    if let Some(time) = time {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(time.0).unwrap_or(0));
        file.set_modified(time).map_err(fail("set the time of"))?;
    }
    file.sync_all().map_err(fail("sync"))?;
    let placed = match precondition {
        // A link fails where the name is taken: exactly one of several writers gets it.
        Precondition::NotExists => fs::hard_link(&temporary.0, path),
        Precondition::None => fs::rename(&temporary.0, path),
        Precondition::Matches(tag) => {
            let there = fs::metadata(path).ok().and_then(|metadata| describe(key.clone(), &metadata).etag);
            if there.as_ref() != Some(tag) {
                let found = there.map_or("nothing".into(), |tag| format!("ETag {tag}"));
                let expected = format!("ETag {tag}");
                return Err(Error::Changed { url: url.clone(), key: key.clone(), expected, found });
            }
            fs::rename(&temporary.0, path)
        }
    };
    match placed {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Error::AlreadyExists { url: url.clone(), key: key.clone() });
        }
        placed => placed.map_err(|error| Error::io("create", path, error))?,
    }
    drop(temporary);
    sync_folder(folder)?;
    let metadata = file.metadata().map_err(|error| Error::io("look at", path, error))?;
    Ok(describe(key.clone(), &metadata))
}

/// Creates folders and makes their names durable.
fn create_folders(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        // The parent of a bare name is the empty path, which stands for the working directory.
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        create_folders(parent)?;
        match fs::create_dir(folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(Error::io("create", folder, error));
            }
            _ => {}
        }
        sync_folder(parent)?;
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| Error::io("sync", folder, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GetRange, Replica, RetryPolicy};

    async fn pieces(backend: &FileBackend, range: GetRange) -> Vec<Bytes> {
        let response = backend.get(&GetRequest { key: "file", range, attempt: 0 }).await.unwrap();
        response.body.map(Result::unwrap).collect().await
    }

    #[test]
    fn a_temporary_file_of_another_process_with_our_id_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let (_, first) = Temporary::create(folder.path(), "file").unwrap();
        let number = |path: &Path| -> u64 {
            let name = path.file_name().unwrap().to_str().unwrap().strip_suffix(".tmp").unwrap();
            name.rsplit_once('-').unwrap().1.parse().unwrap()
        };
        // Other tests take numbers, too.
        let taken: Vec<PathBuf> = (number(&first.0) + 1..=number(&first.0) + 99)
            .map(|number| folder.path().join(format!(".file.{}-{number}.tmp", std::process::id())))
            .collect();
        taken.iter().for_each(|path| fs::write(path, "theirs").unwrap());
        let (_, next) = Temporary::create(folder.path(), "file").unwrap();
        assert!(next.0.exists() && !taken.contains(&next.0));
        drop(next);
        assert!(taken.iter().all(|path| fs::read(path).unwrap() == b"theirs"));
    }

    #[tokio::test]
    async fn spans_that_cannot_be_read_are_left_out_and_then_say_why() {
        let folder = tempfile::tempdir().unwrap();
        let replica = Replica::new(FileBackend::new(folder.path()).into(), RetryPolicy::default());
        let mut files = Vec::new();
        for txid in (1..=4).map(Txid) {
            let body = Body::Bytes(format!("file {txid}").into());
            files.push(replica.put_file(Level::ZERO, FileName::new(txid, txid), body, Timestamp(0)).await.unwrap());
        }
        let before = replica.stats();
        let spans: Vec<_> = files.iter().map(|file| (file, 5..file.size())).collect();
        let read = replica.get_spans(&spans).await.unwrap();
        assert!(read.iter().zip(1..).all(|(bytes, txid)| *bytes == Txid(txid).to_string()));
        let stats = replica.stats();
        assert_eq!((stats.gets - before.gets, stats.bytes_read - before.bytes_read), (4, 4 * 16));

        fs::write(folder.path().join(files[1].key()), "longer than before, whoever wrote it").unwrap();
        let backend = FileBackend::new(folder.path());
        let wanted: Vec<_> = files.iter().map(|file| (&file.object, 0..4)).collect();
        let found = backend.get_spans(&wanted).await;
        assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true, true]);
        let error = replica.get_spans(&spans).await.unwrap_err();
        assert!(matches!(&error, Error::Changed { key, .. } if **key == *files[1].key()), "{error}");

        fs::write(folder.path().join(files[1].key()), "file 0000000000000009").unwrap();
        let error = replica.get_spans(&spans).await.unwrap_err();
        assert!(matches!(&error, Error::Changed { .. }), "as long as before, but another: {error}");
        fs::remove_file(folder.path().join(files[1].key())).unwrap();
        let error = replica.get_spans(&spans).await.unwrap_err();
        assert!(matches!(&error, Error::NotFound { key, .. } if **key == *files[1].key()), "{error}");
    }

    #[tokio::test]
    async fn large_spans_come_in_pieces_and_others_in_one() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..(9 << 20) + 5u32).map(|at| (at >> 7) as u8).collect();
        fs::write(folder.path().join("file"), &bytes).unwrap();
        let backend = FileBackend::new(folder.path());
        let whole = pieces(&backend, GetRange::Whole).await;
        assert!(whole.concat() == bytes, "the pieces differ from the file");
        assert_eq!(whole.iter().map(Bytes::len).collect::<Vec<_>>(), [4 << 20, 4 << 20, (1 << 20) + 5]);
        let one = pieces(&backend, GetRange::Span(7..7 + (4 << 20))).await;
        assert!(one == [&bytes[7..7 + (4 << 20)]], "a span of 4 MiB comes in one piece");
    }
}
