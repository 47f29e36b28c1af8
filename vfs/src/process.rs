//! What there is once in a process: the runtime, the fetcher with its cache, temporary files, the open databases, the last error.
//!
//! Made at first use, so that loading the extension starts no thread. A fork copies none of our threads, so a child that opens a database
//! gets everything anew, and what the parent had is left alone for ever: its locks may be held by threads that are not there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use litestream_hydrate::Places;
use litestream_pageindex::Spill;

use crate::database::Database;
use crate::fetch::Fetcher;
use crate::write::buffer::Open;
use crate::{Error, Result, ffi};

/// How long a thread that waits for a blocking call (files) lives on without one.
const IDLE: Duration = Duration::from_secs(2);
/// How many files can be read at once.
const BLOCKING: usize = 32;

/// See the module.
pub(crate) struct Process {
    id: u32,
    forks: Option<u32>,
    runtime: tokio::runtime::Runtime,
    pub(crate) fetcher: Arc<Fetcher>,
    /// What all views keep of small files.
    pub(crate) spill: Arc<Spill>,
    databases: Mutex<HashMap<String, Weak<Database>>>,
    /// The files that databases are pulled into.
    pub(crate) places: Places,
    /// The write buffers that are open.
    pub(crate) buffers: Open,
}

static CURRENT: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());
static LAST_ERROR: Mutex<LastError> = Mutex::new(LastError { text: String::new(), logged: None });
/// What is said over and over is logged once in so long.
const SAME_ERROR: Duration = Duration::from_secs(1);

struct LastError {
    text: String,
    logged: Option<Instant>,
}

impl Process {
    /// This process's.
    ///
    /// # Errors
    /// [`Error::Worker`] where no thread can be started.
    pub(crate) fn current() -> Result<&'static Self> {
        let id = std::process::id();
        let seen = CURRENT.load(Ordering::Acquire);
        if let Some(process) = ffi::leaked(seen)
            && process.id == id
        {
            return Ok(process);
        }
        let made = Box::into_raw(Box::new(Self::new(id)?));
        match CURRENT.compare_exchange(seen, made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => ffi::leaked(made).ok_or_else(|| Error::Worker("no process".to_owned())),
            Err(_) => {
                // Another thread was faster; the runtime that was made in vain ends without anybody waiting for it.
                ffi::reclaim(made).runtime.shutdown_background();
                Self::current()
            }
        }
    }

    fn new(id: u32) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.clamp(2, 4))
            .max_blocking_threads(BLOCKING)
            .thread_keep_alive(IDLE)
            .thread_name("litestream")
            .on_thread_start(ffi::block_signals)
            .enable_all()
            .build()
            .map_err(|error| Error::Worker(format!("cannot start threads: {error}")))?;
        Ok(Self {
            id,
            forks: ffi::forks(),
            runtime,
            fetcher: Arc::default(),
            spill: Arc::default(),
            databases: Mutex::default(),
            places: Places::default(),
            buffers: Open::default(),
        })
    }

    /// Whether this is still the process that it was made in.
    pub(crate) fn is_this(&self) -> bool {
        match self.forks {
            Some(forks) => ffi::forks() == Some(forks),
            None => self.id == std::process::id(),
        }
    }

    /// Starts a task.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(task));
    }

    /// The open databases, by everything that makes them different.
    pub(crate) fn databases(&self) -> MutexGuard<'_, HashMap<String, Weak<Database>>> {
        self.databases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps an error's text for `litestream_error()`: SQLite itself only ever says "disk I/O error".
pub(crate) fn note_error(text: &str) {
    let mut last = LAST_ERROR.lock().unwrap_or_else(PoisonError::into_inner);
    let again = last.text == text && last.logged.is_some_and(|logged| logged.elapsed() < SAME_ERROR);
    if !again {
        last.logged = Some(Instant::now());
        text.clone_into(&mut last.text);
    }
    drop(last);
    if !again {
        tracing::error!("{text}");
    }
}

/// The last error's text, empty where there was none.
pub(crate) fn last_error() -> String {
    LAST_ERROR.lock().unwrap_or_else(PoisonError::into_inner).text.clone()
}
