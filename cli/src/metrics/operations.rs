//! What is counted for each kind of store, over all replicas. A counter must not fall when a database is let go or started anew: what was counted
//! of it stays in the sum.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use litestream_replicate::daemon::{ReplicaStatus, Status};

use super::text::{Kind, Text};

pub(super) const TOTAL: &str = "litestream_replica_operation_total";
pub(super) const BYTES: &str = "litestream_replica_operation_bytes";
pub(super) const DURATION: &str = "litestream_replica_operation_duration_seconds";
pub(super) const ERRORS: &str = "litestream_replica_operation_errors_total";
pub(super) const RETRIES: &str = "litestream_replica_operation_retries_total";

/// What one replica, or all of a kind, have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cost {
    puts: u64,
    gets: u64,
    lists: u64,
    heads: u64,
    deletes: u64,
    written: u64,
    read: u64,
    retries: u64,
    uploads: u64,
    upload_errors: u64,
    upload_seconds: f64,
}

impl Cost {
    fn of(replica: &ReplicaStatus) -> Self {
        let counters = &replica.counters;
        let requests = &counters.requests;
        Self {
            puts: requests.puts,
            gets: requests.gets,
            lists: requests.lists,
            heads: requests.heads,
            deletes: requests.deletes,
            written: requests.bytes_written,
            read: requests.bytes_read,
            retries: requests.retries,
            uploads: counters.uploads,
            upload_errors: counters.errors,
            upload_seconds: counters.upload_time.as_secs_f64(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.puts += other.puts;
        self.gets += other.gets;
        self.lists += other.lists;
        self.heads += other.heads;
        self.deletes += other.deletes;
        self.written += other.written;
        self.read += other.read;
        self.retries += other.retries;
        self.uploads += other.uploads;
        self.upload_errors += other.upload_errors;
        self.upload_seconds += other.upload_seconds;
    }

    /// Whether this was counted from zero again, after `before`.
    fn began_anew(&self, before: &Self) -> bool {
        self.puts < before.puts || self.gets < before.gets || self.lists < before.lists || self.uploads < before.uploads
    }
}

/// What was last seen of each replica, and what is left of those that are gone.
#[derive(Debug, Default)]
pub(super) struct Operations {
    /// By a hash of database and address.
    seen: HashMap<u64, (&'static str, Cost)>,
    gone: BTreeMap<&'static str, Cost>,
}

impl Operations {
    /// Takes note of what the replicas have counted, and writes all that was ever counted.
    pub(super) fn write(&mut self, all: &[Status], text: &mut Text) {
        let mut present = HashSet::new();
        for status in all {
            for replica in &status.replicas {
                let mut hasher = DefaultHasher::new();
                (&status.path, &replica.url).hash(&mut hasher);
                let key = hasher.finish();
                present.insert(key);
                let cost = Cost::of(replica);
                if let Some((kind, before)) = self.seen.insert(key, (replica.kind, cost))
                    && cost.began_anew(&before)
                {
                    self.gone.entry(kind).or_default().add(&before);
                }
            }
        }
        let gone = &mut self.gone;
        self.seen.retain(|key, (kind, cost)| {
            let stays = present.contains(key);
            if !stays {
                gone.entry(kind).or_default().add(cost);
            }
            stays
        });
        let mut sums = self.gone.clone();
        for (kind, cost) in self.seen.values() {
            sums.entry(kind).or_default().add(cost);
        }
        write(&sums, text);
    }
}

fn write(sums: &BTreeMap<&'static str, Cost>, text: &mut Text) {
    if sums.is_empty() {
        return;
    }
    text.head(TOTAL, "The number of replica operations performed", Kind::Counter);
    for (kind, cost) in sums {
        let counts = [
            ("DELETE", cost.deletes),
            ("GET", cost.gets),
            ("HEAD", cost.heads),
            ("LIST", cost.lists),
            ("PUT", cost.puts),
        ];
        for (operation, count) in counts {
            text.sample(TOTAL, &[("operation", operation), ("replica_type", kind)], count);
        }
    }
    text.head(BYTES, "The number of bytes used by replica operations", Kind::Counter);
    for (kind, cost) in sums {
        for (operation, bytes) in [("GET", cost.read), ("PUT", cost.written)] {
            text.sample(BYTES, &[("operation", operation), ("replica_type", kind)], bytes);
        }
    }
    text.head(DURATION, "Duration of replica operations by type and operation", Kind::Histogram);
    for (kind, cost) in sums {
        let labels = [("operation", "PUT"), ("replica_type", *kind)];
        let [operation, replica] = labels;
        text.sample(&format!("{DURATION}_bucket"), &[operation, replica, ("le", "+Inf")], cost.uploads);
        text.sample(&format!("{DURATION}_sum"), &labels, cost.upload_seconds);
        text.sample(&format!("{DURATION}_count"), &labels, cost.uploads);
    }
    text.head(ERRORS, "Number of replica operation errors by type, operation, and error code", Kind::Counter);
    for (kind, cost) in sums {
        let labels = [("operation", "PUT"), ("replica_type", *kind), ("code", "other")];
        text.sample(ERRORS, &labels, cost.upload_errors);
    }
    text.head(RETRIES, "Number of replica operations that were repeated", Kind::Counter);
    for (kind, cost) in sums {
        text.sample(RETRIES, &[("replica_type", kind)], cost.retries);
    }
}
