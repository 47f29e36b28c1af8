//! The place where the database will be: checked before anything is read, filled under a temporary name, replaced at once and only at the end.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// How many databases this process has begun.
static NUMBER: AtomicU64 = AtomicU64::new(0);
/// What SQLite keeps beside a database.
const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// What to do with a file that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// Refuse.
    #[default]
    Never,
    /// Replace it, once the new one is complete and verified.
    Replace,
}

/// A database file in the making. Unless [`Output::publish`] is reached, it goes away without a trace.
#[derive(Debug)]
pub struct Output {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    published: bool,
}

impl Output {
    /// Checks whether a database may be put at `path`.
    ///
    /// # Errors
    /// [`Error::OutputTaken`] and [`Error::OutputUnusable`].
    pub fn check(path: &Path, overwrite: Overwrite) -> Result<()> {
        let unusable = |why| Err(Error::OutputUnusable { path: path.into(), why });
        if path.file_name().is_none() {
            return unusable("this is not a file name: name the database file to write");
        }
        let parent = parent(path);
        if !parent.is_dir() && parent.exists() {
            return unusable("the folder it should lie in is a file");
        }
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => return unusable("is a directory: name the database file to write"),
            Ok(found) if !found.is_file() => return unusable("is not a regular file"),
            Ok(found) if found.len() > 0 && overwrite == Overwrite::Never => {
                return Err(Error::OutputTaken { path: path.into(), why: "exists already" });
            }
            _ => {}
        }
        for sidecar in sidecars(path) {
            if sidecar.exists() && overwrite == Overwrite::Never {
                let why = "is left over from another database, and SQLite would apply it to the restored one";
                return Err(Error::OutputTaken { path: sidecar, why });
            }
        }
        Ok(())
    }

    /// Begins a database that will lie at `path`. Folders on the way are made.
    ///
    /// # Errors
    /// As [`Output::check`], and [`Error::Io`].
    pub fn create(path: &Path, overwrite: Overwrite) -> Result<Self> {
        Self::check(path, overwrite)?;
        let parent = parent(path);
        fs::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
        remove_left_over(&parent, path)?;
        let (file, temporary) = loop {
            // Never the same name twice in a process: an attempt that is still dying must not remove its successor's file.
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let mut name = OsString::from(".");
            name.push(path.file_name().unwrap_or_default());
            name.push(format!(".restore-{}-{number}.tmp", std::process::id()));
            let temporary = parent.join(name);
            match File::options().read(true).write(true).create_new(true).open(&temporary) {
                // Left over from a killed process that had the same id.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", &temporary)(error)),
                // Locked as long as this process uses it, where the file system has locks. Another process may just have taken it for
                // left over.
                Ok(file) => match file.try_lock() {
                    Err(TryLockError::WouldBlock) => {}
                    _ if !temporary.exists() => {}
                    _ => break (file, temporary),
                },
            }
        };
        Ok(Self { file, temporary, path: path.into(), published: false })
    }

    /// Sets the file's length; what is not written reads as zeros.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_len(&self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(Error::io("resize", &self.temporary))
    }

    /// Writes bytes at an offset. May be called from several threads.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(Error::io("write", &self.temporary))
    }

    /// Makes what was written durable. Worth calling now and then while more is written, so that the disk works meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("sync", &self.temporary))
    }

    /// Where the file lies until it is published.
    #[must_use]
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Syncs the file and gives it its name, replacing what was there together with its `-wal`, `-shm` and `-journal`.
    ///
    /// A `-wal` cannot be replaced in the same instant as its database, and SQLite would apply it to whatever database it finds. So the old database
    /// and its sidecars first get second names (`NAME.replaced`, `NAME.replaced-wal`…), then the sidecars go, then the new database takes the name, and
    /// only then the second names go: a crash in between leaves the old database complete under `NAME.replaced`, where SQLite opens it.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::OutputTaken`] where something has appeared at the path meanwhile.
    pub fn publish(mut self, overwrite: Overwrite) -> Result<()> {
        self.file.sync_all().map_err(Error::io("sync", &self.temporary))?;
        Self::check(&self.path, overwrite)?;
        let folder = parent(&self.path);
        let sync_folder =
            || File::open(&folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", &folder));
        let replaced = self.set_aside(overwrite)?;
        if !replaced.is_empty() {
            sync_folder()?;
            for sidecar in sidecars(&self.path) {
                remove(&sidecar)?;
            }
            sync_folder()?;
        }
        fs::rename(&self.temporary, &self.path).map_err(Error::io("rename the new database to", &self.path))?;
        self.published = true;
        sync_folder()?;
        // The sidecars' second names go last: without them the database's would be incomplete.
        for name in &replaced {
            remove(name)?;
        }
        Ok(())
    }

    /// Gives an old database with sidecars, and these, second names. An old database without sidecars needs none: a rename replaces it at once.
    fn set_aside(&self, overwrite: Overwrite) -> Result<Vec<PathBuf>> {
        let present: Vec<PathBuf> = sidecars(&self.path).filter(|sidecar| sidecar.exists()).collect();
        if overwrite == Overwrite::Never || present.is_empty() {
            return Ok(Vec::new());
        }
        let mut base = self.path.as_os_str().to_owned();
        base.push(".replaced");
        let mut second_names = Vec::new();
        for old in std::iter::once(&self.path).chain(&present).filter(|old| old.exists()) {
            let suffix = old.as_os_str().as_encoded_bytes().get(self.path.as_os_str().len()..).unwrap_or_default();
            let mut name = base.clone();
            name.push(String::from_utf8_lossy(suffix).as_ref());
            let name = PathBuf::from(name);
            // Left over from a replacement that was cut short: the database has since been replaced again or is still there.
            remove(&name)?;
            fs::hard_link(old, &name).map_err(Error::io("keep the old database as", &name))?;
            second_names.push(name);
        }
        Ok(second_names)
    }
}

/// Removes what killed restores to the same path have left: temporary files that nobody holds a lock on.
fn remove_left_over(folder: &Path, path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let found = entry.file_name();
        let rest = found.as_encoded_bytes().strip_prefix(b".").and_then(|rest| rest.strip_prefix(name));
        let Some(rest) = rest.and_then(|rest| rest.strip_prefix(b".restore-")) else { continue };
        // SQLite's own files beside a temporary database go with it.
        if rest.ends_with(b".tmp") && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            tracing::info!(path = %entry.path().display(), "removing what a killed restore has left");
            remove(&entry.path())?;
            for sidecar in sidecars(&entry.path()) {
                remove(&sidecar)?;
            }
        }
    }
    Ok(())
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.published {
            // Nothing else can be done about a temporary file that will not go.
            let _ = fs::remove_file(&self.temporary);
            for sidecar in sidecars(&self.temporary) {
                let _ = fs::remove_file(sidecar);
            }
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

fn sidecars(path: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    SIDECARS.iter().map(move |suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_restore_has_left_goes_and_what_is_in_use_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("my.db");
        let left = folder.path().join(".my.db.restore-1-0.tmp");
        let other = folder.path().join(".other.db.restore-1-0.tmp");
        for path in [&left, &other, &folder.path().join(".my.db.restore-1-0.tmp-wal")] {
            fs::write(path, "left over").unwrap();
        }
        let first = Output::create(&path, Overwrite::Never).unwrap();
        assert!(!left.exists() && other.exists() && first.temporary().exists());
        let second = Output::create(&path, Overwrite::Never).unwrap();
        assert!(first.temporary().exists() && second.temporary().exists());
        drop((first, second));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
