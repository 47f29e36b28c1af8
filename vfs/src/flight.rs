//! Waiting on a host's thread for something that a task of ours brings.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it is looked whether the host wants to stop: well within the 100 ms in which an interrupt must take effect.
const LOOK: Duration = Duration::from_millis(20);

/// A value that will be there at some time, for any number of threads to wait for.
#[derive(Debug)]
pub(crate) struct Flight<T> {
    value: Mutex<Option<T>>,
    landed: Condvar,
}

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Self { value: Mutex::new(None), landed: Condvar::new() }
    }
}

impl<T: Clone> Flight<T> {
    /// Brings the value. The first one stays.
    pub(crate) fn land(&self, value: T) {
        let mut place = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_none() {
            *place = Some(value);
        }
        drop(place);
        self.landed.notify_all();
    }

    /// Waits for the value, at the longest until `deadline`. `None` where that passed, or where `stop` says so: it is asked once before
    /// waiting, and then now and then.
    pub(crate) fn wait(&self, deadline: Option<Instant>, stop: &dyn Fn() -> bool) -> Option<T> {
        let mut place = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let mut asked = false;
        loop {
            if let Some(value) = &*place {
                return Some(value.clone());
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return None;
            }
            let timed_out;
            if !asked {
                // Some hosts notice interrupts only from the first question on. Not under the lock: their functions may take locks of their own.
                drop(place);
                asked = true;
                if stop() {
                    return None;
                }
                place = self.value.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            (place, timed_out) = {
                let (place, timeout) = self.landed.wait_timeout(place, LOOK).unwrap_or_else(PoisonError::into_inner);
                (place, timeout.timed_out())
            };
            if timed_out {
                drop(place);
                if stop() {
                    return None;
                }
                place = self.value.lock().unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}
