//! What requests cost, over many replicas: how many, how long they took, what went wrong.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Error;

/// The bounds of [`Cost::within`], in milliseconds.
const BOUNDS: [u64; 11] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000];

/// What is done to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Delete,
    Get,
    Head,
    List,
    Put,
    /// Of an upload in parts.
    Abort,
}

impl Operation {
    const ALL: [Self; 5] = [Self::Delete, Self::Get, Self::Head, Self::List, Self::Put];

    const fn method(self) -> &'static str {
        match self {
            Self::Delete | Self::Abort => "DELETE",
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::List => "LIST",
            Self::Put => "PUT",
        }
    }

    /// As errors call it.
    pub(crate) const fn verb(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Abort => "abort the upload of",
            Self::Get => "read",
            Self::Head => "look at",
            Self::List => "list",
            Self::Put => "write",
        }
    }
}

/// Counts the requests of all replicas that share it. Each attempt is one; an upload in parts is one as well.
#[derive(Debug, Default)]
pub struct Meter {
    counts: [Counts; Operation::ALL.len()],
}

#[derive(Debug, Default)]
struct Counts {
    /// How many took no longer than each bound, and no longer than the one before; the last took longer than all.
    took: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
    retries: AtomicU64,
    bytes: AtomicU64,
    errors: [AtomicU64; Error::CODES.len()],
}

/// What one kind of request has cost.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Cost {
    /// `DELETE`, `GET`, `HEAD`, `LIST` or `PUT`.
    pub operation: &'static str,
    /// How many there were.
    pub count: u64,
    /// How many were made because one before them had failed.
    pub retries: u64,
    /// Bytes of objects that were read or written.
    pub bytes: u64,
    /// How long all took together.
    pub time: Duration,
    /// How many took no longer than so many milliseconds, ascending.
    pub within: [(u64, u64); BOUNDS.len()],
    /// How many failed in each way that there was, as [`Error::code`] calls it.
    pub errors: Vec<(&'static str, u64)>,
}

impl Meter {
    fn counts(&self, operation: Operation) -> &Counts {
        let [delete, get, head, list, put] = &self.counts;
        match operation {
            Operation::Delete | Operation::Abort => delete,
            Operation::Get => get,
            Operation::Head => head,
            Operation::List => list,
            Operation::Put => put,
        }
    }

    /// Notes an attempt.
    pub(crate) fn note(&self, operation: Operation, took: Duration, error: Option<&Error>) {
        let counts = self.counts(operation);
        let bucket = BOUNDS.iter().position(|bound| took <= Duration::from_millis(*bound)).unwrap_or(BOUNDS.len());
        add(&counts.took[bucket], 1);
        add(&counts.micros, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let code = error.and_then(|error| Error::CODES.iter().position(|code| *code == error.code()));
        if let Some(count) = code.and_then(|code| counts.errors.get(code)) {
            add(count, 1);
        }
    }

    pub(crate) fn note_retry(&self, operation: Operation) {
        add(&self.counts(operation).retries, 1);
    }

    pub(crate) fn note_bytes(&self, operation: Operation, bytes: u64) {
        add(&self.counts(operation).bytes, bytes);
    }

    /// What there was so far, for each kind of request.
    #[must_use]
    pub fn costs(&self) -> Vec<Cost> {
        Operation::ALL.iter().map(|operation| self.counts(*operation).cost(operation.method())).collect()
    }
}

impl Counts {
    fn cost(&self, operation: &'static str) -> Cost {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut count = 0;
        let within = array::from_fn(|bound| {
            count += load(&self.took[bound]);
            (BOUNDS[bound], count)
        });
        let errors = Error::CODES.iter().copied().zip(self.errors.iter().map(load)).filter(|(_, count)| *count > 0);
        Cost {
            operation,
            count: count + load(&self.took[BOUNDS.len()]),
            retries: load(&self.retries),
            bytes: load(&self.bytes),
            time: Duration::from_micros(load(&self.micros)),
            within,
            errors: errors.collect(),
        }
    }
}

fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_sorted_by_how_long_they_took_and_how_they_failed() {
        let meter = Meter::default();
        let millis = Duration::from_millis;
        for (took, error) in [
            (millis(1), None),
            (millis(5), None),
            (Duration::from_micros(5_001), Some(Error::Config("x".to_owned()))),
            (millis(10_000), Some(Error::Transient { operation: "read", key: "k".into(), cause: "cut".to_owned() })),
            (millis(10_001), Some(Error::Transient { operation: "read", key: "k".into(), cause: "cut".to_owned() })),
        ] {
            meter.note(Operation::Get, took, error.as_ref());
        }
        meter.note_bytes(Operation::Get, 7);
        meter.note_retry(Operation::Get);
        let costs = meter.costs();
        let [delete, get, head, list, put] = costs.as_slice() else { panic!("{costs:?}") };
        assert_eq!((get.operation, get.count, get.bytes, get.retries), ("GET", 5, 7, 1));
        assert_eq!((get.within[0], get.within[1], get.within[10]), ((5, 2), (10, 3), (10_000, 4)));
        assert_eq!(get.time, Duration::from_micros(1_000 + 5_000 + 5_001 + 10_000_000 + 10_001_000));
        assert_eq!(get.errors, [("transient", 2), ("config", 1)]);
        assert!([delete, head, list, put].iter().all(|cost| cost.count == 0 && cost.errors.is_empty()));
    }
}
