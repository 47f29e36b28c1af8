//! Whether a database lies where its log and index can be shared with the application.
//!
//! An index is memory that processes of one machine share, and locks are what one kernel knows. A network's or another machine's file
//! system has neither, and where the file alone is mounted, what lies beside it belongs to somebody else.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::statfs::statfs;

use crate::{Error, Result};

/// Where the kernel says what is mounted.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Refuses a place where capturing cannot work. Nothing is opened.
pub(crate) fn check(path: &Path, any_file_system: bool) -> Result<()> {
    if !any_file_system && let Some(kind) = file_system(path).and_then(remote) {
        return Err(Error::FileSystem { path: path.to_owned(), kind });
    }
    // Where there is no such list, nothing is known.
    let mounts = crate::files::read_own(Path::new(MOUNTS)).ok().flatten().unwrap_or_default();
    if is_mounted_alone(&mounts, path) { Err(Error::NotShared(path.to_owned())) } else { Ok(()) }
}

/// The magic number of the file system that a file lies on, where it can be told.
fn file_system(path: &Path) -> Option<u32> {
    #[cfg(test)]
    if let Some(injected) = crate::faults::FILE_SYSTEM.get() {
        return Some(injected);
    }
    // They are numbers of 32 bits, and as signed ones some are negative.
    statfs(path).ok().map(|found| found.filesystem_type().0 as u32)
}

/// The names of file systems that have no memory or locks to share, by their magic numbers (statfs(2), linux/magic.h).
const fn remote(magic: u32) -> Option<&'static str> {
    match magic {
        0x0000_6969 => Some("nfs"),
        0xff53_4d42 => Some("cifs"),
        // Its second version is what `mount -t cifs` gives by now.
        0x0000_517b | 0xfe53_4d42 => Some("smb"),
        0x0102_1997 => Some("9p"),
        // virtiofs has the same.
        0x6573_5546 => Some("fuse"),
        0x786f_4256 => Some("vboxsf"),
        _ => None,
    }
}

/// Whether a file is itself what is mounted, as in `docker run -v /host/db:/data/db`.
fn is_mounted_alone(mounts: &[u8], path: &Path) -> bool {
    // https://www.kernel.org/doc/Documentation/filesystems/proc.txt, 3.5: the fifth field is the mount point.
    let mut points = mounts.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points.any(|point| Path::new(OsStr::from_bytes(&unescape(point))) == path)
}

/// Blanks, tabs, line ends and backslashes are written as `\` and three octal digits.
fn unescape(mut text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    while let Some((first, rest)) = text.split_first() {
        let octal =
            rest.first_chunk::<3>().filter(|digits| *first == b'\\' && digits.iter().all(|d| matches!(d, b'0'..=b'7')));
        match octal {
            Some([a, b, c]) => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                text = &rest[3..];
            }
            None => {
                plain.push(*first);
                text = rest;
            }
        }
    }
    plain
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::faults::FILE_SYSTEM;

    pub(crate) struct Nobody;

    impl crate::Remote for Nobody {
        fn newest(&mut self) -> Result<Option<crate::Newest>, Box<dyn std::error::Error + Send + Sync>> {
            Ok(None)
        }
    }

    const MOUNTS: &[u8] = b"43 42 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
        63 43 0:39 / /data rw - tmpfs tmpfs rw,size=64k\n\
        64 43 254:0 /srv/a /data/my\\040\\134db\\011\\012 rw,relatime shared:1 - ext4 /dev/vda rw\n\
        65 43 254:0 /srv/b /data/\\9\\04 rw - ext4 /dev/vda rw\n";

    #[test]
    fn file_mounted_alone_is_found_whatever_its_name() {
        for (path, alone) in [
            ("/data/my \\db\t\n", true),
            ("/data/\\9\\04", true),
            ("/data", true),
            ("/data/my", false),
            ("/data/db", false),
            ("/srv/a", false),
            ("254:0", false),
        ] {
            assert_eq!(is_mounted_alone(MOUNTS, Path::new(path)), alone, "{path}");
        }
        assert!(!is_mounted_alone(b"", Path::new("")));
        assert!(!is_mounted_alone(b"garbage\n\n1 2 3 4", Path::new("/data/db")));
    }

    #[test]
    fn nfs_cifs_9p_fuse_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        for (magic, name) in [
            (0x6969, "nfs"),
            (0xff53_4d42, "cifs"),
            (0x517b, "smb"),
            (0xfe53_4d42, "smb"),
            (0x0102_1997, "9p"),
            (0x6573_5546, "fuse"),
        ] {
            FILE_SYSTEM.set(Some(magic));
            let error = check(&path, false).unwrap_err().to_string();
            let path = path.display();
            assert_eq!(error, format!("{path} is on {name}: WAL needs local shared memory and locks. Refusing"));
            assert!(check(folder.path(), true).is_ok(), "unless somebody knows better");
        }
        for local in [0xef53, 0x0102_1994, 0x9123_683e, 0x794c_7630] {
            FILE_SYSTEM.set(Some(local));
            assert!(check(&path, false).is_ok(), "{local:x}");
        }
        // And where it is said to be, it is not even opened.
        let path = folder.path().join("there");
        let database = rusqlite::Connection::open(&path).unwrap();
        database.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (a)").unwrap();
        drop(database);
        let mut settings = crate::Settings::new(&path);
        FILE_SYSTEM.set(Some(0x6969));
        let start = |settings| crate::Capture::start(settings, Box::new(|| ltx::Timestamp(1)), &mut Nobody);
        assert!(matches!(start(settings.clone()), Err(Error::FileSystem { kind: "nfs", .. })));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        settings.any_file_system = true;
        assert!(start(settings).is_ok());
        FILE_SYSTEM.set(None);
        assert!(file_system(folder.path()).is_some_and(|magic| magic != 0));
    }
}
