//! When to try again, and when to stop.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::meter::{Meter, Operation};
use crate::{Error, Result};

/// How long to wait for a store, and how often to ask it again.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// How long a connection may take. Default 5 s.
    pub connect: Duration,
    /// How long the first byte of an answer may take before the request is sent again on a new connection. Doubled with every attempt from
    /// the third on, so that a store that is merely slow is not asked in vain for ever. Default 5 s.
    pub first_byte: Duration,
    /// How long a body may stand still before the rest of it is asked for on a new connection. Default 5 s.
    pub stall: Duration,
    /// How long to go on trying one request in all, waiting included. A read that gets on begins anew with every attempt that brought bytes, and the
    /// time that an upload needs at a slow but passable rate does not count. Default 60 s.
    pub total: Duration,
    /// How often to try one request at most; for a read, without getting on. Default 12.
    pub attempts: u32,
    /// The first pause between two attempts; later ones double, each shortened at random by up to half. Default 100 ms.
    pub backoff: Duration,
    /// The longest pause. Default 5 s.
    pub max_backoff: Duration,
    /// Where the randomness starts. Default 0: the process id.
    pub seed: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(5),
            stall: Duration::from_secs(5),
            total: Duration::from_secs(60),
            attempts: 12,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            seed: 0,
        }
    }
}

/// Why attempts may go on for longer than a policy says.
#[derive(Debug, Default)]
pub(crate) struct Leave {
    /// How long each attempt may take without that it counts.
    pub(crate) allowed: Duration,
    /// Set by an attempt that got on, so that the next need not do it all: patience begins anew.
    got_on: AtomicBool,
}

impl Leave {
    pub(crate) fn of(allowed: Duration) -> Self {
        Self { allowed, ..Self::default() }
    }

    /// Says that an attempt got on.
    pub(crate) fn got_on(&self) {
        self.got_on.store(true, Ordering::Relaxed);
    }
}

/// A policy at work for one replica.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    pub(crate) policy: RetryPolicy,
    url: Arc<str>,
    random: Arc<AtomicU64>,
    retries: Arc<AtomicU64>,
    /// Where each attempt is counted.
    meter: Option<Arc<Meter>>,
}

impl Retry {
    pub(crate) fn new(policy: RetryPolicy, url: Arc<str>) -> Self {
        let seed = if policy.seed == 0 { u64::from(std::process::id()) } else { policy.seed };
        Self { policy, url, random: Arc::new(AtomicU64::new(seed)), retries: Arc::default(), meter: None }
    }

    /// Counts each attempt there.
    pub(crate) fn metered(self, meter: Arc<Meter>) -> Self {
        Self { meter: Some(meter), ..self }
    }

    /// Bytes that were read or written.
    pub(crate) fn note_bytes(&self, operation: Operation, bytes: u64) {
        if let Some(meter) = &self.meter {
            meter.note_bytes(operation, bytes);
        }
    }

    /// An attempt that was made without this.
    pub(crate) fn note(&self, operation: Operation, took: Duration, error: Option<&Error>) {
        if let Some(meter) = &self.meter {
            meter.note(operation, took, error);
        }
    }

    /// How often anything was tried again.
    pub(crate) fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Runs attempts until one succeeds, fails for good, or patience ends. Each attempt is told its number and how long it may wait for the
    /// first byte.
    ///
    /// # Errors
    /// The attempt's own error where it is not transient; [`Error::Unavailable`] where all were.
    pub(crate) async fn run<T, F>(
        &self,
        operation: Operation,
        key: &str,
        attempt: impl FnMut(u32, Duration) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.run_with(operation, key, &Leave::default(), attempt).await
    }

    /// As [`run`](Self::run), for attempts that may take longer.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(crate) async fn run_with<T, F>(
        &self,
        operation: Operation,
        key: &str,
        leave: &Leave,
        mut attempt: impl FnMut(u32, Duration) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let begun = Instant::now();
        // What counts begins later with all that does not count.
        let mut started = begun;
        let (mut number, mut in_vain) = (0, 0);
        loop {
            let patience = self.patience(in_vain, started);
            let at = Instant::now();
            let outcome = attempt(number, patience).await;
            self.note(operation, at.elapsed(), outcome.as_ref().err());
            let cause = match outcome {
                Err(Error::Transient { cause, .. }) => cause,
                done => return done,
            };
            number += 1;
            if leave.got_on.swap(false, Ordering::Relaxed) {
                started = Instant::now();
                in_vain = 0;
            } else {
                started += at.elapsed().min(leave.allowed);
            }
            in_vain += 1;
            // Towards the end pauses get shorter, so that the last attempt is not far from the limit.
            let left = self.policy.total.saturating_sub(started.elapsed());
            let pause = self.pause(in_vain).min(left.mul_f64(0.75));
            if in_vain >= self.policy.attempts || left < self.policy.total / 50 {
                return Err(Error::Unavailable {
                    url: self.url.clone(),
                    operation: operation.verb(),
                    key: key.into(),
                    attempts: number,
                    elapsed: begun.elapsed(),
                    cause,
                });
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            if let Some(meter) = &self.meter {
                meter.note_retry(operation);
            }
            tracing::debug!(operation = operation.verb(), key, attempt = number, cause, "trying again");
            tokio::time::sleep(pause).await;
        }
    }

    /// How long an attempt may wait for its first byte after `number` in vain, the time that is left in all considered.
    fn patience(&self, number: u32, started: Instant) -> Duration {
        let left = self.policy.total.saturating_sub(started.elapsed()).max(Duration::from_millis(1));
        let patience = self.policy.first_byte.saturating_mul(1 << number.saturating_sub(1).min(6)).min(left);
        // A store that does not answer at all gets a second chance, on another connection, however short the limit.
        if number == 0 { patience.min(self.policy.total / 2) } else { patience }
    }

    fn pause(&self, attempts: u32) -> Duration {
        let full = self.policy.backoff.saturating_mul(1 << (attempts - 1).min(16)).min(self.policy.max_backoff);
        // SplitMix64: enough to keep many clients from asking in step.
        let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        full.mul_f64(1.0 - ((z >> 40) as f64 / (1u64 << 24) as f64) / 2.0)
    }
}

/// Waits for `future`, but not longer than `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    operation: &'static str,
    key: &str,
    what: &str,
    future: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| {
        let cause = format!("{what} took longer than {:.1} s", limit.as_secs_f64());
        Err(Error::Transient { operation, key: key.into(), cause })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken() -> Result<()> {
        Err(Error::Transient { operation: "write", key: "key".into(), cause: "cut".into() })
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_that_an_attempt_is_allowed_does_not_count() {
        let retry = Retry::new(RetryPolicy { attempts: 4, ..RetryPolicy::default() }, "memory:".into());
        let hour = Duration::from_secs(3_600);
        for (allowed, expected) in [(hour, 4), (Duration::ZERO, 1)] {
            let slow = |_, _| async {
                tokio::time::sleep(hour).await;
                broken()
            };
            let error = retry.run_with(Operation::Put, "key", &Leave::of(allowed), slow).await.unwrap_err();
            let Error::Unavailable { attempts, elapsed, .. } = error else { panic!("{error}") };
            assert_eq!(attempts, expected);
            assert!(elapsed >= hour * expected);
        }
    }
}
