//! What is told of each database and of each of its replicas. Names and help texts that Litestream has are Litestream's.

use litestream_replicate::daemon::{ReplicaStatus, Status};

use super::text::{Kind, Text};

/// A metric, and how one database's samples are written.
pub(super) struct Family {
    pub(super) name: &'static str,
    help: &'static str,
    kind: Kind,
    write: fn(&mut Text, &str, &Status, &str),
}

impl Family {
    pub(super) fn head(&self, text: &mut Text) {
        text.head(self.name, self.help, self.kind);
    }

    /// The samples of a database that is called `db`.
    pub(super) fn samples(&self, text: &mut Text, status: &Status, db: &str) {
        (self.write)(text, self.name, status, db);
    }
}

/// One sample a database.
macro_rules! of_database {
    ($kind:ident, $name:literal, $help:literal, $value:expr) => {
        Family {
            name: $name,
            help: $help,
            kind: Kind::$kind,
            write: |text, name, status, db| {
                let value: fn(&Status) -> _ = $value;
                text.sample(name, &[("db", db)], value(status));
            },
        }
    };
}

/// One sample for each value of a label.
macro_rules! by_label {
    ($name:literal, $help:literal, $label:literal, [$($word:literal => $value:expr),+]) => {
        Family {
            name: $name,
            help: $help,
            kind: Kind::Counter,
            write: |text, name, status, db| {
                $(
                    let value: fn(&Status) -> u64 = $value;
                    text.sample(name, &[("db", db), ($label, $word)], value(status));
                )+
            },
        }
    };
}

/// One sample for each replica that has something to tell.
macro_rules! of_replica {
    ($kind:ident, $name:literal, $help:literal, $value:expr) => {
        Family {
            name: $name,
            help: $help,
            kind: Kind::$kind,
            write: |text, name, status, db| {
                let value: fn(&ReplicaStatus) -> Option<_> = $value;
                for replica in &status.replicas {
                    if let Some(value) = value(replica) {
                        text.sample(name, &[("db", db), ("replica", &replica.url)], value);
                    }
                }
            },
        }
    };
}

pub(super) const FAMILIES: &[Family] = &[
    of_database!(Gauge, "litestream_db_size", "The current size of the real DB", |status| status.size),
    of_database!(Gauge, "litestream_wal_size", "The current size of the real WAL", |status| status.wal_size),
    of_database!(Gauge, "litestream_txid", "The current transaction ID", |status| status.txid.0),
    of_database!(
        Gauge,
        "litestream_disk_full",
        "Whether replication is paused because the local disk is full",
        |status| u8::from(status.disk_full)
    ),
    of_database!(
        Counter,
        "litestream_total_wal_bytes",
        "Total number of bytes of the WAL that were captured",
        |status| status.counters.wal_bytes
    ),
    of_database!(Counter, "litestream_sync_count", "Number of sync operations performed", |status| status
        .counters
        .syncs),
    of_database!(Counter, "litestream_sync_error_count", "Number of sync errors that have occurred", |status| status
        .counters
        .sync_errors),
    of_database!(Counter, "litestream_sync_seconds", "Time spent capturing the WAL, in seconds", |status| status
        .counters
        .sync_time
        .as_secs_f64()),
    by_label!("litestream_checkpoint_count", "Number of checkpoint operations performed", "mode", [
        "PASSIVE" => |status| status.counters.passive_checkpoints,
        "TRUNCATE" => |status| status.counters.truncate_checkpoints
    ]),
    // What follows is ours.
    of_database!(
        Gauge,
        "litestream_error",
        "Whether something is wrong with the database or one of its replicas; the text is in `litestream list`",
        |status| u8::from(status.error.is_some() || status.replicas.iter().any(|replica| replica.error.is_some()))
    ),
    of_database!(
        Gauge,
        "litestream_concern",
        "Whether something is odd that does no harm yet; the text is in `litestream list`",
        |status| u8::from(status.concern.is_some())
    ),
    of_database!(
        Counter,
        "litestream_snapshot_count",
        "Number of times that all of the database had to be captured, the first included",
        |status| status.counters.snapshots
    ),
    by_label!("litestream_drill_count", "Number of restore drills, by whether replica and database were equal", "result", [
        "passed" => |status| status.counters.drills_passed,
        "failed" => |status| status.counters.drills_failed
    ]),
    of_database!(Counter, "litestream_compaction_count", "Number of files that compaction made", |status| status
        .counters
        .compacted),
    of_database!(
        Counter,
        "litestream_l0_deleted_count",
        "Number of files of level 0 that retention deleted",
        |status| status.counters.l0_deleted
    ),
    of_replica!(
        Gauge,
        "litestream_replica_lag_seconds",
        "Age of the oldest commit that the replica lacks; 0 where it has all",
        |replica| Some(replica.lag.as_secs_f64())
    ),
    of_replica!(
        Gauge,
        "litestream_replica_worst_lag_seconds",
        "The longest that a commit waited until it was durable, in the last minute",
        |replica| Some(replica.counters.worst_lag.as_secs_f64())
    ),
    of_replica!(
        Gauge,
        "litestream_last_sync_timestamp_seconds",
        "When the replica was last known to have all, in seconds since 1970",
        |replica| replica.last_sync.map(|time| time.0 as f64 / 1000.0)
    ),
    of_replica!(
        Gauge,
        "litestream_replica_txid",
        "Up to which transaction ID the replica is known to hold everything",
        |replica| replica.txid.map(|txid| txid.0)
    ),
    of_replica!(
        Gauge,
        "litestream_replica_waiting_files",
        "Number of captured files that wait to be uploaded",
        |replica| Some(replica.waiting)
    ),
    of_replica!(
        Gauge,
        "litestream_replica_fenced",
        "Whether uploading has stopped because another writer went on",
        |replica| Some(u8::from(replica.fenced))
    ),
    of_replica!(Counter, "litestream_replica_upload_error_count", "Number of uploads that failed", |replica| Some(
        replica.counters.errors
    )),
];
