//! The place where the database will be: checked before anything is read, filled under a temporary name, replaced at once and only at the end.

use std::ffi::OsString;
use std::fs::{self, File, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::aside::{Aside, HARD_LINK};
use crate::{Error, Result};

/// How many databases this process has begun.
static NUMBER: AtomicU64 = AtomicU64::new(0);
/// What SQLite keeps beside a database.
const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];
/// How many symbolic links are followed in a row; as many as Linux follows.
const MAX_LINKS: u32 = 40;

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
    /// Where it will be; never a symbolic link.
    path: PathBuf,
    published: bool,
}

impl Output {
    /// Checks whether a database may be put at `path`, or where that leads as a symbolic link.
    ///
    /// # Errors
    /// [`Error::OutputTaken`] and [`Error::OutputUnusable`].
    pub fn check(path: &Path, overwrite: Overwrite) -> Result<()> {
        Self::place(path, overwrite).map(|_| ())
    }

    /// The place that `path` leads to, checked.
    fn place(path: &Path, overwrite: Overwrite) -> Result<PathBuf> {
        let place = follow(path)?;
        let unusable = |path: &Path, why| Err(Error::OutputUnusable { path: path.into(), why });
        if place.file_name().is_none() {
            return unusable(&place, "this is not a file name: name the database file to write");
        }
        let parent = parent(&place);
        if !parent.is_dir() && parent.exists() {
            return unusable(&place, "the folder it should lie in is a file");
        }
        match fs::metadata(&place) {
            Ok(found) if found.is_dir() => {
                return unusable(&place, "is a directory: name the database file to write");
            }
            Ok(found) if !found.is_file() => return unusable(&place, "is not a regular file"),
            Ok(found) if found.len() > 0 && overwrite == Overwrite::Never => {
                return Err(Error::OutputTaken { path: place, why: "exists already" });
            }
            // `Path` takes no notice of a slash at the end, but whoever writes one means a folder.
            Err(_) if [&b"/"[..], b"/."].iter().any(|end| place.as_os_str().as_bytes().ends_with(end)) => {
                return unusable(&place, "names a folder: name the database file to write");
            }
            _ => {}
        }
        for sidecar in sidecars(&place) {
            let Ok(found) = fs::symlink_metadata(&sidecar) else { continue };
            if overwrite == Overwrite::Never {
                let why = "is left over from another database, and SQLite would apply it to the restored one";
                return Err(Error::OutputTaken { path: sidecar, why });
            }
            if found.is_dir() {
                return unusable(&sidecar, "is a directory, where SQLite wants a file of the database's");
            }
        }
        Ok(place)
    }

    /// Begins a database that will lie at `path`. Folders on the way are made. A symbolic link stays, and the database comes to where it leads.
    ///
    /// Until it is published, nobody but its owner can read it.
    ///
    /// # Errors
    /// As [`Output::check`], and [`Error::Io`].
    pub fn create(path: &Path, overwrite: Overwrite) -> Result<Self> {
        let path = Self::place(path, overwrite)?;
        let parent = parent(&path);
        fs::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
        remove_left_over(&parent, &path)?;
        let (file, temporary) = loop {
            // Never the same name twice in a process: an attempt that is still dying must not remove its successor's file.
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let mut name = OsString::from(".");
            name.push(path.file_name().unwrap_or_default());
            name.push(format!(".restore-{}-{number}.tmp", std::process::id()));
            let temporary = parent.join(name);
            match File::options().read(true).write(true).create_new(true).mode(0o600).open(&temporary) {
                // Left over from a killed process that had the same id.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
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
        Ok(Self { file, temporary, path, published: false })
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

    /// Reads bytes that were written before.
    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(Error::io("read", &self.temporary))
    }

    /// Makes what was written durable. Worth calling now and then while more is written, so that the disk works meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("sync", &self.temporary))
    }

    /// Where the database will be; never a symbolic link.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the file lies until it is published.
    #[must_use]
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Syncs the file and gives it its name, replacing what was there together with its `-wal`, `-shm` and `-journal`. It gets the mode and the owner of
    /// the file it replaces, or those of any new file.
    ///
    /// A `-wal` cannot be replaced in the same instant as its database, and SQLite would apply it to whatever database it finds. So the old database
    /// and its sidecars first get second names (`NAME.replaced`, `NAME.replaced-wal`…), then the sidecars go, then the new database takes the name, and
    /// only then the second names go: a crash in between leaves the old database complete under `NAME.replaced`, where SQLite opens it.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::OutputTaken`] where something has appeared at the path meanwhile. What was there is put back then;
    /// [`Error::NotPutBack`] where that fails. Only when the folder cannot be synced at the very end, and there were no sidecars, the new database stays:
    /// it is complete, but a crash of the system may bring the old state back.
    pub fn publish(mut self, overwrite: Overwrite) -> Result<()> {
        self.take_access()?;
        self.file.sync_all().map_err(Error::io("sync", &self.temporary))?;
        // Not a link any more: where it led was decided when the restore began.
        Self::place(&self.path, overwrite)?;
        let aside = match overwrite {
            Overwrite::Never => Aside::default(),
            Overwrite::Replace => Aside::take(&self.path, HARD_LINK)?,
        };
        if let Err(error) = self.take_name(&aside) {
            return Err(aside.put_back(error));
        }
        aside.discard();
        Ok(())
    }

    fn take_name(&mut self, aside: &Aside) -> Result<()> {
        let folder = parent(&self.path);
        let sync_folder =
            || File::open(&folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", &folder));
        if !aside.is_empty() {
            sync_folder()?;
            for sidecar in sidecars(&self.path) {
                remove(&sidecar)?;
            }
            sync_folder()?;
        }
        fs::rename(&self.temporary, &self.path).map_err(Error::io("rename the new database to", &self.path))?;
        self.published = true;
        sync_folder()
    }

    /// Gives the file the mode and the owner it will have.
    fn take_access(&self) -> Result<()> {
        let own = self.file.metadata().map_err(Error::io("look at", &self.temporary))?;
        let mode = match fs::metadata(&self.path) {
            Ok(old) => old.mode() & 0o7777 & self.take_owner(&own, &old),
            Err(_) => self.mode_of_new_files()?,
        };
        // Before the mode, a change of the owner; it may take away parts of it.
        if self.file.metadata().map_or(0, |now| now.mode() & 0o7777) != mode
            && let Err(error) = self.file.set_permissions(Permissions::from_mode(mode))
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot give the restored database the mode {mode:o}");
        }
        Ok(())
    }

    /// Gives the file the owner of the one it replaces. Returns which parts of that one's mode it may have.
    fn take_owner(&self, own: &fs::Metadata, old: &fs::Metadata) -> u32 {
        let (user, group) = (own.uid() != old.uid(), own.gid() != old.gid());
        let as_it_was = fchown(&self.file, user.then(|| old.uid()), group.then(|| old.gid()));
        let Err(error) = as_it_was else { return 0o7777 };
        let path = self.path.display();
        tracing::warn!(%path, %error, uid = old.uid(), gid = old.gid(), "cannot give the restored database the owner it had");
        // What the old group was allowed is not for another one.
        if group && fchown(&self.file, None, Some(old.gid())).is_err() { 0o7707 } else { 0o7777 }
    }

    /// The mode of a file that is created in this folder: 0666 without the umask, or what the folder's access list makes of it. Only a file shows it.
    fn mode_of_new_files(&self) -> Result<u32> {
        let mut probe = self.temporary.clone().into_os_string();
        probe.push(".mode.tmp");
        let probe = PathBuf::from(probe);
        let file = File::options().write(true).create_new(true).open(&probe);
        let mode = file.and_then(|file| file.metadata()).map(|made| made.mode() & 0o7777);
        remove(&probe)?;
        mode.map_err(Error::io("create", &probe))
    }
}

/// Where a path leads when it is a symbolic link, whether anything is there or not.
fn follow(path: &Path) -> Result<PathBuf> {
    let mut place = path.to_owned();
    for _ in 0..MAX_LINKS {
        // What cannot be looked at shows that later, with a better reason.
        let Ok(target) = fs::read_link(&place) else { return Ok(place) };
        place = parent(&place).join(target);
    }
    Err(Error::OutputUnusable { path: path.into(), why: "is a symbolic link that leads back to itself" })
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
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
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

/// The folder that a path lies in.
pub(crate) fn parent(path: &Path) -> PathBuf {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// The names of what SQLite keeps beside a database.
pub(crate) fn sidecars(path: &Path) -> impl Iterator<Item = PathBuf> + '_ {
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

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn publish(path: &Path) -> Result<()> {
        let output = Output::create(path, Overwrite::Replace)?;
        output.write_at(b"new", 0)?;
        output.publish(Overwrite::Replace)
    }

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_database_and_its_sidecars() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        for name in ["db", "db-wal", "db-shm", "db-journal"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let output = Output::create(&path, Overwrite::Replace).unwrap();
        // Now the last step, the rename, must fail.
        fs::remove_file(output.temporary()).unwrap();
        let error = output.publish(Overwrite::Replace).unwrap_err();
        assert!(matches!(error, Error::Io { operation: "rename the new database to", .. }), "{error}");
        for name in ["db", "db-wal", "db-shm", "db-journal"] {
            assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), name);
        }
        assert_eq!(count(folder.path()), 4);
    }

    #[test]
    fn nobody_else_reads_a_database_in_the_making() {
        let folder = tempfile::tempdir().unwrap();
        let output = Output::create(&folder.path().join("db"), Overwrite::Never).unwrap();
        assert_eq!(mode(output.temporary()), 0o600);
    }

    #[test]
    fn a_database_has_the_mode_and_owner_of_the_one_it_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("db"), folder.path().join("other"));
        publish(&path).unwrap();
        fs::write(&other, "").unwrap();
        assert_eq!(mode(&path), mode(&other), "a new database is like any new file");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            std::os::unix::fs::chown(&path, Some(1234), Some(1235)).unwrap();
        }
        let before = fs::metadata(&path).unwrap();
        publish(&path).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_ne!(before.ino(), after.ino());
        assert_eq!((after.uid(), after.gid(), mode(&path)), (before.uid(), before.gid(), 0o640));
        assert_eq!(count(folder.path()), 2);
    }

    #[test]
    fn a_symbolic_link_stays_and_the_database_comes_to_where_it_leads() {
        let folder = tempfile::tempdir().unwrap();
        let [links, data] = ["links", "data"].map(|name| folder.path().join(name));
        fs::create_dir(&links).unwrap();
        fs::create_dir(&data).unwrap();
        fs::write(data.join("old.db"), "old").unwrap();
        fs::write(data.join("old.db-wal"), "old").unwrap();
        for (link, target) in [("to-old", "../data/old.db"), ("to-new", "../data/new.db"), ("twice", "to-new")] {
            let link = links.join(link);
            std::os::unix::fs::symlink(target, &link).unwrap();
            let output = Output::create(&link, Overwrite::Replace).unwrap();
            assert!(fs::canonicalize(output.temporary()).unwrap().starts_with(fs::canonicalize(&data).unwrap()));
            drop(output);
            publish(&link).unwrap();
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            assert_eq!(fs::read(&link).unwrap(), b"new");
        }
        assert_eq!((count(&links), count(&data)), (3, 2), "the old database's sidecar has gone, and nothing is left");
        assert_eq!(fs::read(data.join("new.db")).unwrap(), b"new");
        std::os::unix::fs::symlink("round", links.join("round")).unwrap();
        let error = Output::check(&links.join("round"), Overwrite::Replace).unwrap_err();
        assert!(error.to_string().contains("back to itself"), "{error}");
    }

    #[test]
    fn a_name_that_ends_in_a_slash_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        for end in ["/", "/."] {
            let path = format!("{}/new{end}", folder.path().display());
            let error = Output::check(Path::new(&path), Overwrite::Never).unwrap_err();
            assert!(error.to_string().contains("names a folder"), "{error}");
        }
    }
}
