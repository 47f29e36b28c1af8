//! A time that goes on when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use litestream_replicate::daemon::{Options, SharedClock};
use ltx::Timestamp;

use crate::site::until;

/// Clones are the same time.
#[derive(Clone, Default)]
pub(crate) struct Time {
    now: Arc<AtomicI64>,
    /// By how much it goes on whenever somebody asks for it.
    step: Arc<AtomicI64>,
    asked: Arc<AtomicU64>,
}

impl Time {
    /// It begins now, as the store's does, and stands still.
    pub(crate) fn new() -> Self {
        let time = Self::default();
        time.go_on(SystemTime::UNIX_EPOCH.elapsed().unwrap());
        time
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::SeqCst))
    }

    pub(crate) fn go_on(&self, by: Duration) {
        self.now.fetch_add(millis(by), Ordering::SeqCst);
    }

    /// From now on it goes on whenever somebody asks for it: as long as a database rests, that is whoever looks whether something is due.
    pub(crate) fn go_on_when_asked(&self, by: Duration) {
        self.step.store(millis(by), Ordering::SeqCst);
    }

    /// Waits until it was looked at least this often whether something is due. The database must rest, so that nobody else asks for the time.
    pub(crate) async fn looked(&self, times: u64) {
        // Only who asks once more has done what came of asking before, and one may be about to.
        let enough = self.asked.load(Ordering::SeqCst) + times + 2;
        until("it was looked whether something is due", || self.asked.load(Ordering::SeqCst) >= enough).await;
    }

    /// Options with this time, and with a short while between looking whether something is due.
    pub(crate) fn options(&self) -> Options {
        let mut options = crate::site::options();
        options.clock = self.clock();
        options.upkeep_every = Duration::from_millis(2);
        options
    }

    fn clock(&self) -> SharedClock {
        let time = self.clone();
        Arc::new(move || {
            time.asked.fetch_add(1, Ordering::SeqCst);
            Timestamp(time.now.fetch_add(time.step.load(Ordering::SeqCst), Ordering::SeqCst))
        })
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap()
}
