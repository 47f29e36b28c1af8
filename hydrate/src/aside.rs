//! The old database and its sidecars, kept under second names while a new database takes the first.
//!
//! This file alone knows these names, and how everything gets back to its place when the replacement fails half way.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::output::{remove, sidecars};
use crate::{Error, Result};

/// How many names are tried. Whoever has so many half-replaced databases side by side should look at them first.
const NAMES: u32 = 100;

/// How a file gets a second name.
pub(crate) type Link = fn(&Path, &Path) -> io::Result<()>;
/// As everywhere but in tests.
pub(crate) const HARD_LINK: Link = |original, second| fs::hard_link(original, second);

/// What has been set aside.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    /// The database first, where there is one.
    files: Vec<Kept>,
}

#[derive(Debug)]
struct Kept {
    original: PathBuf,
    second: PathBuf,
}

impl Kept {
    /// Whether the original still has its name, too.
    fn is_in_place(&self) -> bool {
        match (fs::symlink_metadata(&self.original), fs::symlink_metadata(&self.second)) {
            (Ok(original), Ok(second)) => (original.dev(), original.ino()) == (second.dev(), second.ino()),
            _ => false,
        }
    }
}

impl Aside {
    /// Gives the database at `path` and its sidecars second names, all of one kind: `NAME.replaced`, `NAME.replaced-wal`…, or with a number where
    /// anything has such a name already. Where a file system has no hard links, the second name is the only one.
    ///
    /// Without sidecars nothing is done: a rename replaces a lone database at once.
    ///
    /// # Errors
    /// [`Error::Io`]; everything is where it was then.
    pub(crate) fn take(path: &Path, link: Link) -> Result<Self> {
        let mut aside = Self::default();
        if !sidecars(path).any(|sidecar| is_there(&sidecar)) {
            return Ok(aside);
        }
        let base = free_name(path)?;
        let pairs = sidecars(path).zip(sidecars(&base));
        for (original, second) in std::iter::once((path.to_owned(), base.clone())).chain(pairs) {
            if !is_there(&original) {
                continue;
            }
            match set_aside(&original, &second, link) {
                Ok(()) => aside.files.push(Kept { original, second }),
                // A sidecar goes when its database's last user does.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(aside.put_back(Error::io("keep the old database as", second)(error))),
            }
        }
        Ok(aside)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Puts everything back, after `error`, which is returned; with the names of what could not be put back, where there is such.
    pub(crate) fn put_back(self, error: Error) -> Error {
        let (in_place, gone): (Vec<Kept>, Vec<Kept>) = self.files.into_iter().partition(Kept::is_in_place);
        let mut names = Vec::new();
        // The database first. Without it, its sidecars would be applied to whatever has its name now.
        for Kept { original, second } in gone {
            if !names.is_empty() || fs::rename(&second, original).is_err() {
                names.push(second);
            }
        }
        // As long as anything is missing, the second names are the only complete set.
        for Kept { second, .. } in in_place {
            if !names.is_empty() || fs::remove_file(&second).is_err() {
                names.push(second);
            }
        }
        if names.is_empty() { error } else { Error::NotPutBack { error: Box::new(error), names } }
    }

    /// Lets go of what was replaced. The sidecars' second names go last: without them the database's would be incomplete.
    pub(crate) fn discard(self) {
        for Kept { second, .. } in self.files {
            if let Err(error) = remove(&second) {
                tracing::warn!(%error, "the database is restored, but a file of the one it replaced remains");
            }
        }
    }
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// A name under which nothing is kept, neither a database nor a sidecar. What is there may be the only copy of a database whose replacement was cut short.
fn free_name(path: &Path) -> Result<PathBuf> {
    let name = |number| {
        let mut name = path.as_os_str().to_owned();
        name.push(".replaced");
        if number > 1 {
            name.push(format!("-{number}"));
        }
        PathBuf::from(name)
    };
    let is_free = |name: &PathBuf| !is_there(name) && !sidecars(name).any(|sidecar| is_there(&sidecar));
    let free = (1..=NAMES).map(name).find(is_free);
    if free.as_ref() != Some(&name(1)) {
        tracing::warn!(path = %name(1).display(), "a database is left over from a replacement that was cut short; remove it when it is not needed");
    }
    free.ok_or_else(|| Error::OutputTaken {
        path: name(1),
        why: "the old database would be kept under such a name, but a hundred of them are taken",
    })
}

fn set_aside(original: &Path, second: &Path, link: Link) -> io::Result<()> {
    match link(original, second) {
        Err(error) if !matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => {
            // A file system without hard links, or a file of somebody else's that may not be linked.
            fs::rename(original, second)
        }
        linked => linked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_LINKS: Link = |_, _| Err(ErrorKind::Unsupported.into());

    fn folder_with(names: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let path = folder.path().join("db");
        (folder, path)
    }

    fn names(folder: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn failure() -> Error {
        Error::Check("no good".into())
    }

    #[test]
    fn all_is_put_back_with_links_and_without() {
        for link in [HARD_LINK, NO_LINKS] {
            let (folder, path) = folder_with(&["db", "db-wal", "db-shm"]);
            let aside = Aside::take(&path, link).unwrap();
            for second in ["db.replaced", "db.replaced-wal", "db.replaced-shm"] {
                assert!(folder.path().join(second).exists(), "{second}");
            }
            sidecars(&path).for_each(|sidecar| remove(&sidecar).unwrap());
            assert_eq!(aside.put_back(failure()).to_string(), "no good");
            assert_eq!(names(&folder), ["db", "db-shm", "db-wal"]);
            for name in names(&folder) {
                assert_eq!(fs::read_to_string(folder.path().join(&name)).unwrap(), name);
            }
        }
    }

    #[test]
    fn a_failure_half_way_puts_back_what_was_set_aside_before() {
        let links: [Link; 2] = [
            |original, second| fail_on_wal(original, second, HARD_LINK),
            |original, second| fail_on_wal(original, second, |original, second| fs::rename(original, second)),
        ];
        for link in links {
            let (folder, path) = folder_with(&["db", "db-wal"]);
            Aside::take(&path, link).unwrap_err();
            assert_eq!(names(&folder), ["db", "db-wal"]);
            assert_eq!(fs::read_to_string(&path).unwrap(), "db");
        }
    }

    fn fail_on_wal(from: &Path, to: &Path, link: Link) -> io::Result<()> {
        if from.to_string_lossy().ends_with("-wal") { Err(ErrorKind::AlreadyExists.into()) } else { link(from, to) }
    }

    #[test]
    fn what_is_kept_under_such_a_name_already_stays() {
        for taken in ["db.replaced", "db.replaced-journal"] {
            let (folder, path) = folder_with(&["db", "db-wal", taken]);
            let aside = Aside::take(&path, HARD_LINK).unwrap();
            assert!(folder.path().join("db.replaced-2").exists() && folder.path().join("db.replaced-2-wal").exists());
            aside.discard();
            assert_eq!(names(&folder), ["db", "db-wal", taken]);
            assert_eq!(fs::read_to_string(folder.path().join(taken)).unwrap(), taken);
        }
    }

    #[test]
    fn what_cannot_be_put_back_is_named_and_kept_complete() {
        let (folder, path) = folder_with(&["db", "db-wal", "db-journal"]);
        let aside = Aside::take(&path, NO_LINKS).unwrap();
        fs::create_dir(&path).unwrap();
        let error = aside.put_back(failure());
        let text = error.to_string();
        for part in ["no good", "db.replaced,", "db.replaced-wal", "db.replaced-journal"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
        assert_eq!(names(&folder), ["db", "db.replaced", "db.replaced-journal", "db.replaced-wal"]);
    }
}
