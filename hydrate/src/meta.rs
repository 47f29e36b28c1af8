//! What is known of a hydrated database's file, beside it: `PATH.meta`.
//!
//! Lines of text, the last one a checksum of those before. It names the replica (without secrets), the TXID at which the file was complete, and
//! the newest files of the newest view from which pages *may* have been written. Those prove, when the replica still holds the same, that
//! whatever was changed since that TXID is known. Where they are gone, as small files soon are, most pages are still known by the snapshot that
//! they came from.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use litestream_pageindex::{OpenFile, View, open_file};
use litestream_storage::{FileInfo, Level, Replica, Scope};
use ltx::{Commit, FileName, PageSize, Pgno, Txid, page_checksum};

use crate::{Error, Result};

const FIRST_LINE: &str = "litestream hydration 1";
/// How many files are named: the newest.
const FILES: usize = 64;
/// How many stretches of pages are noted that may not be the snapshot's; beyond that, the snapshot is not worth noting.
const MOST_RUNS: usize = 16_384;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) url: String,
    pub(crate) complete: Option<Complete>,
}

/// A file that was complete once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complete {
    pub(crate) page_size: u32,
    /// All pages were there as they were at this TXID, of a database of so many pages. Zero where only the base is sure.
    pub(crate) txid: Txid,
    pub(crate) commit: Commit,
    /// Newer pages may be there too, as far as these go. Oldest first.
    pub(crate) reach: Vec<Known>,
    pub(crate) base: Option<Base>,
}

/// The file that most pages came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) file: Known,
    /// The pages that may not be as this file has them: first and last of each stretch, ascending.
    pub(crate) other: Vec<(u32, u32)>,
}

impl Base {
    /// A view's.
    pub(crate) fn of(view: &View) -> Option<Self> {
        let (file, other) = (view.files().first()?, runs(view.overlaid().map(Pgno::get)));
        (other.len() <= MOST_RUNS).then(|| Self { file: Known::of(file), other })
    }

    /// The same, where pages of another view may be written.
    pub(crate) fn and(&self, view: &View) -> Option<Self> {
        let Self { file, other } = Self::of(view).filter(|base| base.file == self.file)?;
        let mut all: Vec<(u32, u32)> = self.other.iter().chain(&other).copied().collect();
        all.sort_unstable();
        let other = runs(all.into_iter().flat_map(|(first, last)| first..=last));
        (other.len() <= MOST_RUNS).then_some(Self { file, other })
    }

    pub(crate) fn is_sure_of(&self, pgno: Pgno) -> bool {
        let at = self.other.partition_point(|(_, last)| *last < pgno.get());
        self.other.get(at).is_none_or(|(first, _)| *first > pgno.get())
    }
}

/// Ascending numbers as stretches.
fn runs(numbers: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if number <= last.saturating_add(1) => *last = number.max(*last),
            _ => runs.push((number, number)),
        }
    }
    runs
}

/// What tells a file of a replica from any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    level: Level,
    name: FileName,
    size: u64,
    etag: Option<String>,
    checksum: u64,
}

impl Known {
    pub(crate) fn of(file: &OpenFile) -> Self {
        let object = &file.info.object;
        Self {
            level: file.info.level,
            name: file.info.name,
            size: object.size,
            etag: object.etag.as_ref().map(|etag| etag.as_str().to_owned()),
            checksum: file.trailer.file_checksum.0,
        }
    }

    /// The newest files of a view.
    pub(crate) fn newest(view: &View) -> Vec<Self> {
        let files = view.files();
        files[files.len().saturating_sub(FILES)..].iter().map(|file| Self::of(file)).collect()
    }

    fn is_listed_as(&self, info: &FileInfo) -> bool {
        let etag = info.object.etag.as_ref().map(litestream_storage::ETag::as_str);
        self.name == info.name && self.size == info.size() && self.etag.as_deref() == etag
    }
}

/// Whether a view continues the history in which these files, oldest first, were the newest ones. What cannot be proven is not so.
///
/// # Errors
/// As the store says.
pub(crate) async fn continues(replica: &Replica, reach: &[Known], view: &View) -> Result<bool> {
    let Some(last) = reach.last() else { return Ok(false) };
    if view.txid() < last.name.max {
        return Ok(false);
    }
    for file in view.files() {
        let twin = reach.iter().find(|known| known.level == file.info.level && known.name == file.info.name);
        if twin.is_some_and(|twin| *twin != Known::of(file)) {
            return Ok(false);
        }
    }
    if view.files().iter().any(|file| *last == Known::of(file)) {
        return Ok(true);
    }
    // Compaction has put others in its place in the plan; for a while it is there all the same.
    let page = replica.list_page(Scope::Level(last.level), last.name.min, None).await?;
    let Some(info) = page.files.iter().find(|info| last.is_listed_as(info)) else { return Ok(false) };
    match open_file(replica, info).await {
        Ok(file) => Ok(*last == Known::of(&file)),
        Err(error) if error.wants_new_plan() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Meta {
    /// What stands beside a file. `None` where nothing does; what cannot be understood says nothing about the file.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => {
                let meta = std::str::from_utf8(&bytes).ok().and_then(Self::parse);
                if meta.is_none() {
                    tracing::warn!(path = %path.display(), "this file is damaged: hydrating anew");
                }
                Ok(Some(meta.unwrap_or(Self { url: String::new(), complete: None })))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
        }
    }

    /// Writes it, so that a crash leaves either what was there or this. Durable when it returns.
    pub(crate) fn store(&self, path: &Path) -> Result<()> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let written = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
        let written = written.and_then(|mut file| {
            file.write_all(self.text().as_bytes())?;
            file.sync_all()
        });
        written.map_err(Error::io("write", &temporary))?;
        fs::rename(&temporary, path).map_err(Error::io("replace", path))?;
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", folder))
    }

    fn text(&self) -> String {
        let mut lines = vec![FIRST_LINE.to_owned(), format!("url {}", self.url)];
        if let Some(Complete { page_size, txid, commit, reach, base }) = &self.complete {
            lines.push(format!("complete {txid} {} {page_size}", commit.0));
            lines.extend(reach.iter().map(|known| format!("file {}", known.text())));
            if let Some(Base { file, other }) = base {
                lines.push(format!("base {}", file.text()));
                lines.extend(other.iter().map(|(first, last)| format!("{first} {last}")));
            }
        }
        let text = lines.join("\n") + "\n";
        let sum = sum(&text);
        format!("{text}checksum {sum:016x}\n")
    }

    fn parse(text: &str) -> Option<Self> {
        let end = text.rfind("checksum ")?;
        let (text, stored) = text.split_at(end);
        if u64::from_str_radix(stored.strip_prefix("checksum ")?.strip_suffix('\n')?, 16).ok()? != sum(text) {
            return None;
        }
        let mut lines = text.lines();
        if lines.next()? != FIRST_LINE {
            return None;
        }
        let url = lines.next()?.strip_prefix("url ")?.to_owned();
        let Some(complete) = lines.next() else { return Some(Self { url, complete: None }) };
        let mut words = complete.strip_prefix("complete ")?.split(' ');
        let txid = words.next()?.parse().ok()?;
        let commit = Commit(words.next()?.parse().ok()?);
        let page_size = words.next()?.parse().ok().filter(|size| PageSize::new(*size).is_some())?;
        let (mut reach, mut base) = (Vec::new(), None);
        for line in lines {
            match (line.split_once(' ')?, &mut base) {
                (("file", file), None) => reach.push(Known::parse(file)?),
                (("base", file), None) => base = Some(Base { file: Known::parse(file)?, other: Vec::new() }),
                ((first, last), Some(base)) => base.other.push((first.parse().ok()?, last.parse().ok()?)),
                _ => return None,
            }
        }
        Some(Self { url, complete: Some(Complete { page_size, txid, commit, reach, base }) })
    }
}

impl Known {
    fn text(&self) -> String {
        let Self { level, name, size, etag, checksum } = self;
        // The tag comes last: it may hold anything but the end of a line.
        let etag = etag.as_ref().map_or_else(|| "-".to_owned(), |etag| format!("={etag}"));
        format!("{level} {name} {size} {checksum:016x} {etag}")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.splitn(5, ' ');
        Some(Self {
            level: Level::new(words.next()?.parse().ok()?)?,
            name: words.next()?.parse().ok()?,
            size: words.next()?.parse().ok()?,
            checksum: u64::from_str_radix(words.next()?, 16).ok()?,
            etag: match words.next()? {
                "-" => None,
                etag => Some(etag.strip_prefix('=')?.to_owned()),
            },
        })
    }
}

/// A checksum of text, the same for ever. Also good for making a file's name of a URL.
pub(crate) fn sum(text: &str) -> u64 {
    page_checksum(Pgno::ONE, text.as_bytes()).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        let file = |min, max, etag: Option<&str>| Known {
            level: Level::ZERO,
            name: FileName::new(Txid(min), Txid(max)),
            size: 12345,
            etag: etag.map(str::to_owned),
            checksum: 0xfeed_beef,
        };
        let reach = vec![file(1, 7, None), file(8, 8, Some("a tag - with =")), file(9, 9, Some(""))];
        let base = Some(Base { file: reach[0].clone(), other: vec![(1, 1), (7, 20)] });
        let complete = Complete { page_size: 4096, txid: Txid(8), commit: Commit(77), reach, base };
        Meta { url: "s3://bucket/a b?x=y".to_owned(), complete: Some(complete) }
    }

    #[test]
    fn rule_19_what_was_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.meta");
        assert_eq!(Meta::load(&path).unwrap(), None);
        for meta in [meta(), Meta { complete: None, ..meta() }] {
            meta.store(&path).unwrap();
            assert_eq!(Meta::load(&path).unwrap(), Some(meta));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn rule_19_stretches_hold_what_went_into_them_and_nothing_else() {
        let numbers = [1, 2, 2, 3, 9, 11, 12, 30];
        let other = runs(numbers.into_iter());
        assert_eq!(other, [(1, 3), (9, 9), (11, 12), (30, 30)]);
        let base = Base { other, ..meta().complete.unwrap().base.unwrap() };
        for number in 1..40 {
            assert_eq!(base.is_sure_of(Pgno::new(number).unwrap()), !numbers.contains(&number), "{number}");
        }
    }

    #[test]
    fn rule_19_whatever_bit_flips_nothing_is_believed() {
        let text = meta().text();
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let parsed = std::str::from_utf8(&bytes).ok().and_then(Meta::parse);
                // A hexadecimal digit's case says nothing.
                assert!(parsed.is_none() || parsed == Some(meta()), "byte {at}, bit {bit}");
            }
            assert!(Meta::parse(&text[..at]).is_none(), "cut at {at}");
        }
    }
}
