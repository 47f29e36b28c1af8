//! Word from the system that something in a folder may have come or gone: inotify, where there is one.
//!
//! It is no more than a hint: not every file system tells, and what happens between two looks may be told once or not at all.

use std::path::Path;

#[cfg(target_os = "linux")]
pub(super) use linux::Hints;
#[cfg(not(target_os = "linux"))]
pub(super) use nothing::Hints;

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
    use rustix::io::Errno;
    use tokio::sync::Notify;

    use super::Path;

    pub(in super::super) struct Hints {
        queue: Option<Arc<OwnedFd>>,
        came: Arc<Notify>,
    }

    impl Hints {
        pub(in super::super) fn new() -> Self {
            let came = Arc::new(Notify::new());
            match listen(came.clone()) {
                Ok(queue) => Self { queue: Some(queue), came },
                Err(error) => {
                    tracing::debug!(%error, "no word of files that come and go");
                    Self { queue: None, came }
                }
            }
        }

        /// Asks for word of this folder, and of it alone; once is enough, but more often does no harm.
        pub(in super::super) fn watch(&self, folder: &Path) {
            let Some(queue) = &self.queue else { return };
            // Not what is written: a database is written to all the time.
            let wanted = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::ONLYDIR;
            if let Err(error) = inotify::add_watch(queue, folder, wanted) {
                tracing::debug!(folder = %folder.display(), %error, "no word of files that come and go");
            }
        }

        /// Waits for word. May be dropped and asked for again.
        pub(in super::super) async fn next(&mut self) {
            self.came.notified().await;
        }
    }

    /// A thread of its own waits, to the end of the process: a runtime that ends would wait for one of its own.
    fn listen(came: Arc<Notify>) -> std::io::Result<Arc<OwnedFd>> {
        let queue = Arc::new(inotify::init(CreateFlags::CLOEXEC)?);
        let read = queue.clone();
        std::thread::Builder::new().name("hints".into()).spawn(move || {
            // What exactly has happened is of no interest.
            let mut buffer = [0; 4096];
            loop {
                match rustix::io::read(&read, &mut buffer) {
                    Ok(1..) => came.notify_one(),
                    Err(Errno::INTR) => {}
                    _ => return,
                }
            }
        })?;
        Ok(queue)
    }
}

#[cfg(not(target_os = "linux"))]
mod nothing {
    use super::Path;

    pub(in super::super) struct Hints;

    impl Hints {
        pub(in super::super) const fn new() -> Self {
            Self
        }

        pub(in super::super) const fn watch(&self, _: &Path) {}

        pub(in super::super) async fn next(&mut self) {
            std::future::pending().await
        }
    }
}
