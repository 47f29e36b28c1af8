//! What is said over the control socket. The names are Litestream's; what is ours alone may be missing, so that its client and its daemon can
//! talk to us, too.

use std::time::Duration;

use litestream_config::units::{format_duration, parse_duration};
use litestream_replicate::daemon::{Phase, ReplicaStatus, Status};
use litestream_storage::format_time;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How long is waited where a request does not say.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A time, in seconds. `1m30s` is understood, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seconds(pub(crate) Duration);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Litestream takes whole numbers only.
        match self.0.subsec_nanos() {
            0 => serializer.serialize_u64(self.0.as_secs()),
            _ => serializer.serialize_f64(self.0.as_secs_f64()),
        }
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a time must be a number of seconds, or a text such as \"1m30s\"")]
        enum Given {
            Number(f64),
            Text(String),
        }
        let wrong = serde::de::Error::custom::<String>;
        match Given::deserialize(deserializer)? {
            Given::Number(number) => Duration::try_from_secs_f64(number)
                .map(Self)
                .map_err(|error| wrong(format!("{number} seconds: {error}"))),
            Given::Text(text) => parse_duration(&text).map(Self).map_err(|error| wrong(error.to_string())),
        }
    }
}

/// `POST /start`, `/stop`, `/unregister`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct DatabaseRequest {
    pub(crate) path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<Seconds>,
}

/// `POST /sync`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SyncRequest {
    pub(crate) path: String,
    pub(crate) wait: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<Seconds>,
}

/// `POST /register`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RegisterRequest {
    pub(crate) path: String,
    /// Ours: without one, the configuration must know the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replica_url: Option<String>,
}

/// What became of a database.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DatabaseAnswer {
    pub(crate) status: String,
    pub(crate) path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) txid: Option<u64>,
    /// After a sync: what every replica holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replicated_txid: Option<u64>,
}

/// `GET /txid`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TxidAnswer {
    pub(crate) txid: u64,
}

/// What went wrong.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ErrorAnswer {
    pub(crate) error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) details: Option<serde_json::Value>,
}

/// `GET /info`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Info {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) uptime_seconds: i64,
    pub(crate) started_at: String,
    pub(crate) database_count: usize,
    /// Ours: how many of them something is wrong with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error_count: Option<usize>,
    /// Ours: the age of the oldest commit that some replica lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lag_seconds: Option<f64>,
}

/// `GET /list`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct List {
    pub(crate) databases: Vec<Database>,
}

/// One database. All but the first three are ours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Database {
    pub(crate) path: String,
    /// `replicating`, `stopped`, and ours: `waiting`.
    pub(crate) status: String,
    /// When every replica was last known to have all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_sync_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) phase: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) txid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lag_seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) wal_size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disk_full: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) concern: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) replicas: Vec<Replica>,
}

/// One replica of a database.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Replica {
    pub(crate) url: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) txid: Option<String>,
    pub(crate) lag_seconds: f64,
    pub(crate) worst_lag_seconds: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_sync_at: Option<String>,
    /// Files that wait to be uploaded.
    pub(crate) waiting: usize,
    pub(crate) fenced: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl Database {
    pub(crate) fn new(status: &Status) -> Self {
        let syncs: Option<Vec<_>> = status.replicas.iter().map(|replica| replica.last_sync).collect();
        Self {
            path: status.path.display().to_string(),
            status: word(status.phase).to_owned(),
            last_sync_at: syncs.and_then(|syncs| syncs.into_iter().min()).map(format_time),
            phase: Some(status.phase.as_str().to_owned()),
            txid: Some(status.txid.to_string()),
            lag_seconds: Some(status.lag().as_secs_f64()),
            size: Some(status.size),
            wal_size: Some(status.wal_size),
            disk_full: Some(status.disk_full),
            error: status.error.clone(),
            concern: status.concern.clone(),
            replicas: status.replicas.iter().map(Replica::new).collect(),
        }
    }

    /// What is wrong or odd, in words for a table.
    pub(crate) fn problem(&self) -> String {
        let own = self.error.iter().chain(&self.concern).cloned();
        let replicas = self.replicas.iter();
        let replicas = replicas.filter_map(|replica| Some(format!("{}: {}", replica.url, replica.error.as_ref()?)));
        own.chain(replicas).collect::<Vec<_>>().join("; ")
    }
}

impl Replica {
    fn new(status: &ReplicaStatus) -> Self {
        Self {
            url: status.url.clone(),
            kind: status.kind.to_owned(),
            txid: status.txid.map(|txid| txid.to_string()),
            lag_seconds: status.lag.as_secs_f64(),
            worst_lag_seconds: status.counters.worst_lag.as_secs_f64(),
            last_sync_at: status.last_sync.map(format_time),
            waiting: status.waiting,
            fenced: status.fenced,
            error: status.error.clone(),
        }
    }
}

/// Litestream's word for a phase. It has none for a database that waits: such a one is `replicating` there, which it is not.
fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Stopped => "stopped",
        Phase::Waiting => "waiting",
        Phase::Starting | Phase::Live | Phase::Idle => "replicating",
    }
}

/// What every replica is known to hold; zero where that is not known of all.
pub(crate) fn replicated(status: &Status) -> u64 {
    status.replicas.iter().map(|replica| replica.txid.map_or(0, |txid| txid.0)).min().unwrap_or_default()
}

/// A time in seconds, as people read it.
pub(crate) fn seconds(seconds: f64) -> String {
    // What is finer than a millisecond tells nobody anything; what is longer than a minute needs no fractions.
    let step = if seconds >= 60.0 { 1000.0 } else { 1.0 };
    format_duration(Duration::from_millis(((seconds * 1000.0 / step).round() * step) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_of_seconds_or_a_duration() {
        let read = |text: &str| serde_json::from_str::<Seconds>(text).map(|seconds| seconds.0.as_millis());
        assert_eq!(read("30").unwrap(), 30_000);
        assert_eq!(read("0.25").unwrap(), 250);
        assert_eq!(read("\"1m30s\"").unwrap(), 90_000);
        for wrong in ["-1", "true", "\"soon\"", "\"5\"", "1e300"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(serde_json::to_string(&Seconds(PATIENCE)).unwrap(), "30");
        assert_eq!(serde_json::to_string(&Seconds(Duration::from_millis(1500))).unwrap(), "1.5");
    }

    #[test]
    fn times_are_written_for_people() {
        for (given, expected) in [(0.0, "0s"), (0.0123, "12ms"), (1.5, "1s500ms"), (61.7, "1m2s"), (7200.0, "2h")] {
            assert_eq!(seconds(given), expected);
        }
    }
}
