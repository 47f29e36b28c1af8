//! Ctrl-C stops the query that runs, and not the shell.
//!
//! A thread of its own waits for signals. While nothing has been opened, and where a query does not stop when told again and again, Ctrl-C
//! ends the program. Requests to end from others do so at once, and leave the terminal as it was found.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use rusqlite::{Connection, InterruptHandle};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::output;

/// How many times a query is asked to stop before the program ends without it.
const PATIENCE: u32 = 3;
/// How long after that a query is told again that it shall stop: SQLite forgets an interrupt that comes just before a query begins.
const AGAIN: Duration = Duration::from_millis(100);
/// How many steps of a query's program pass between two looks at whether it shall stop.
const STEPS: i32 = 1000;

/// See the module.
#[derive(Default)]
pub(crate) struct Interrupts {
    asked: AtomicU32,
    query: Mutex<Option<InterruptHandle>>,
    /// What else to say where the program is ended.
    last_words: Mutex<String>,
}

impl Interrupts {
    /// Starts to listen.
    pub(crate) fn listen() -> anyhow::Result<Arc<Self>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut signals = {
            let _inside = runtime.enter();
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
                .map(|kind| signal(kind).context("cannot listen to signals"))
        };
        let interrupts = Arc::new(Self::default());
        let (shared, terminal) = (interrupts.clone(), rustix::termios::tcgetattr(std::io::stdin()).ok());
        let listen = move || {
            let end = |why: &str| -> ! {
                if let Some(terminal) = &terminal {
                    let now = rustix::termios::OptionalActions::Now;
                    let _ = rustix::termios::tcsetattr(std::io::stdin(), now, terminal);
                }
                output::note(why);
                process::exit(1)
            };
            let [Ok(interrupt), Ok(terminate), Ok(hangup)] = &mut signals else { return };
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        got = next(interrupt, terminate, hangup) => match got {
                            Some("interrupted") if shared.interrupt() => {}
                            Some(why) => end(&shared.with_last_words(why)),
                            None => return,
                        },
                        () = tokio::time::sleep(AGAIN), if shared.asked() => shared.insist(),
                    }
                }
            });
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(listen)?;
        Ok(interrupts)
    }

    /// From now on the queries of this connection are stopped.
    pub(crate) fn guard(self: &Arc<Self>, connection: &mut Connection) -> rusqlite::Result<()> {
        let shared = self.clone();
        connection.progress_handler(STEPS, Some(move || shared.asked()))?;
        *self.query.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection.get_interrupt_handle());
        Ok(())
    }

    /// Whether the user wants what is going on to stop.
    pub(crate) fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) > 0
    }

    /// Something new begins.
    pub(crate) fn reset(&self) {
        let _nobody_insists = self.query.lock().unwrap_or_else(PoisonError::into_inner);
        self.asked.store(0, Ordering::Relaxed);
    }

    /// The database is being closed: there is no query to stop any more, and Ctrl-C ends the program.
    pub(crate) fn leave(&self, last_words: String) {
        *self.last_words.lock().unwrap_or_else(PoisonError::into_inner) = last_words;
        // To keep it would make the listener wait for the close: SQLite's handle is locked as long.
        *self.query.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn with_last_words(&self, why: &str) -> String {
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.is_empty() { why.to_owned() } else { format!("{why}; {words}") }
    }

    /// Stops the query, and says whether that is enough.
    fn interrupt(&self) -> bool {
        let query = self.query.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(query) = query.as_ref() else { return false };
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        query.interrupt();
        asked < PATIENCE
    }

    /// Says it again as long as it is wanted.
    fn insist(&self) {
        let query = self.query.lock().unwrap_or_else(PoisonError::into_inner);
        if let (true, Some(query)) = (self.asked(), query.as_ref()) {
            query.interrupt();
        }
    }
}

/// What the next signal means.
async fn next(interrupt: &mut Signal, terminate: &mut Signal, hangup: &mut Signal) -> Option<&'static str> {
    tokio::select! {
        got = interrupt.recv() => got.map(|()| "interrupted"),
        got = terminate.recv() => got.map(|()| "terminated"),
        got = hangup.recv() => got.map(|()| "the terminal has gone"),
    }
}
