//! The socket's file: made with the permissions that were asked for, before anybody can connect; put in the place of one that a dead process
//! left, never in the place of one that is answered; gone at the end.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use litestream_config::SocketConfig;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::net::{UnixListener, UnixSocket};

/// How many clients may wait to be accepted.
const BACKLOG: u32 = 128;

/// A socket that nobody answers yet.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) listener: UnixListener,
    pub(crate) file: SocketFile,
}

/// Removes its file in the end.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// The device and inode, so that nobody else's is removed.
    identity: Option<(u64, u64)>,
}

/// Makes the socket.
///
/// # Errors
/// Something else lies there, another process answers there, or it cannot be made.
pub(crate) async fn listen(config: &SocketConfig) -> anyhow::Result<Listening> {
    let path = &config.path;
    let failed = || {
        let path = path.display();
        format!(
            "cannot make the control socket {path}; name a path as `socket.path` where this user may make one, or leave `socket` out"
        )
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = fs::File::open(folder).with_context(failed)?;
    lock(&folder).await;
    make_room(path)?;
    let socket = UnixSocket::new_stream().with_context(failed)?;
    socket.bind(path).with_context(failed)?;
    let file = SocketFile { path: path.clone(), identity: identity(path) };
    // Nobody can connect before `listen`.
    fs::set_permissions(path, fs::Permissions::from_mode(config.permissions)).with_context(failed)?;
    let listener = socket.listen(BACKLOG).with_context(failed)?;
    Ok(Listening { listener, file })
}

/// Two that start at once must not each take the other's socket for one that was left. Where a folder cannot be locked, so be it.
async fn lock(folder: &fs::File) {
    for _ in 0..20 {
        match flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => tokio::time::sleep(Duration::from_millis(50)).await,
            _ => return,
        }
    }
}

/// Removes a socket that nobody answers any more.
fn make_room(path: &Path) -> anyhow::Result<()> {
    let failed = || format!("control socket {}", path.display());
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(failed),
        Ok(found) if !found.file_type().is_socket() => bail!(
            "control socket {}: something else lies there that is not a socket; move it away, or name another path as `socket.path`",
            path.display()
        ),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!(
            "control socket {}: another process answers there already; stop it, or name another path as `socket.path`",
            path.display()
        ),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing a control socket that a dead process left");
            fs::remove_file(path).with_context(failed)
        }
        // It went meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(failed),
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl SocketFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &Path) -> SocketConfig {
        SocketConfig { enabled: true, path: path.to_owned(), permissions: 0o640 }
    }

    #[tokio::test]
    async fn a_socket_has_its_permissions_and_goes_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let listening = listen(&config(&path)).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        drop(listening);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_was_left_is_replaced_and_one_that_is_answered_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        // A process that was killed leaves its socket.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = listen(&config(&path)).await.unwrap();
        let error = listen(&config(&path)).await.unwrap_err().to_string();
        assert!(error.contains("another process answers there"), "{error}");
        assert!(UnixStream::connect(&path).is_ok());
        drop(first);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        fs::write(&path, "mine").unwrap();
        let error = listen(&config(&path)).await.unwrap_err().to_string();
        assert!(error.contains("is not a socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn the_socket_of_a_successor_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let first = listen(&config(&path)).await.unwrap();
        fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        let second = listen(&config(&path)).await.unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
    }
}
