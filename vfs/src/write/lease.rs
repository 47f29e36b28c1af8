//! A lease on a replica, for those who want to be refused early rather than fenced late: `lock.json` beside the levels.
//!
//! It is a courtesy: what keeps two writers apart is the condition on every upload. A lease that has run out, by the store's own clock, may be
//! taken over; one that is held is an error at open.

use std::time::Duration;

use bytes::Bytes;
use litestream_storage::{Body, ETag, GetRange, Kind, Precondition, PutOptions, Replica};
use ltx::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

const KEY: &str = "lock.json";
/// How long a lease lasts, and how often it is renewed.
const LASTS: Duration = Duration::from_secs(30);
pub(super) const RENEW: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Lock {
    generation: u64,
    /// RFC 3339.
    expires_at: String,
    owner: String,
}

impl Lock {
    fn holds(&self, now: Timestamp) -> bool {
        // What cannot be read does not keep anybody out for ever.
        self.expires_at.parse::<jiff::Timestamp>().is_ok_and(|until| until.as_millisecond() > now.0)
    }
}

/// A lease that is held.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    key: String,
    generation: u64,
    owner: String,
    etag: ETag,
}

/// The store's clock; ours, where it does not tell.
fn now(replica: &Replica) -> Timestamp {
    replica.clock().unwrap_or_else(|| Timestamp(jiff::Timestamp::now().as_millisecond()))
}

fn in_time(replica: &Replica, lasts: Duration) -> String {
    let until = now(replica).0.saturating_add(i64::try_from(lasts.as_millis()).unwrap_or(0));
    jiff::Timestamp::from_millisecond(until).unwrap_or(jiff::Timestamp::MAX).to_string()
}

impl Lease {
    /// Takes the lease of a replica.
    ///
    /// # Errors
    /// [`Error::Leased`] where another has it; as the store says.
    pub(super) async fn take(replica: &Replica, owner: &str) -> Result<Self> {
        let key = replica.side_key(KEY);
        let found = match replica.get(&key, None, GetRange::Whole).await {
            Ok((object, bytes)) => Some((object.etag, serde_json::from_slice::<Lock>(&bytes).ok())),
            Err(error) if error.kind() == Kind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        let (precondition, generation) = match found {
            None => (Precondition::NotExists, 1),
            Some((Some(etag), lock)) => {
                if let Some(lock) = lock.as_ref().filter(|lock| lock.holds(now(replica))) {
                    return Err(held(replica, lock));
                }
                (Precondition::Matches(etag), lock.map_or(1, |lock| lock.generation + 1))
            }
            Some((None, _)) => {
                let why = "the store has no ETags, which a lease needs".to_owned();
                return Err(Error::Setting { name: "lease".to_owned(), why });
            }
        };
        let mut lease = Self { key, generation, owner: owner.to_owned(), etag: ETag::new("") };
        match lease.put(replica, precondition, LASTS).await {
            Err(Error::Leased { .. }) => {
                // Somebody was just faster: who?
                let (_, bytes) = replica.get(&lease.key, None, GetRange::Whole).await?;
                match serde_json::from_slice::<Lock>(&bytes) {
                    Ok(lock) => Err(held(replica, &lock)),
                    Err(_) => Err(Error::Leased {
                        url: replica.url().clone(),
                        owner: "another writer".to_owned(),
                        until: String::new(),
                    }),
                }
            }
            taken => taken.map(|()| lease),
        }
    }

    /// Renews it.
    ///
    /// # Errors
    /// [`Error::Leased`] where another has taken it; as the store says.
    pub(super) async fn renew(&mut self, replica: &Replica) -> Result<()> {
        let precondition = Precondition::Matches(self.etag.clone());
        self.put(replica, precondition, LASTS).await
    }

    /// Gives it back.
    pub(super) async fn release(mut self, replica: &Replica) {
        let precondition = Precondition::Matches(self.etag.clone());
        if let Err(error) = self.put(replica, precondition, Duration::ZERO).await {
            tracing::info!(%error, "the lease runs out by itself");
        }
    }

    async fn put(&mut self, replica: &Replica, precondition: Precondition, lasts: Duration) -> Result<()> {
        let lock = Lock { generation: self.generation, expires_at: in_time(replica, lasts), owner: self.owner.clone() };
        let body = serde_json::to_vec(&lock).map_err(|error| Error::Worker(error.to_string()))?;
        let options = PutOptions { precondition, ..PutOptions::default() };
        match replica.put(&self.key, Body::Bytes(Bytes::from(body)), &options).await {
            Ok(object) => {
                self.etag = object.etag.unwrap_or_else(|| ETag::new(""));
                Ok(())
            }
            Err(error) if error.kind() == Kind::Conflict => {
                let (url, owner) = (replica.url().clone(), "another writer".to_owned());
                Err(Error::Leased { url, owner, until: String::new() })
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn held(replica: &Replica, lock: &Lock) -> Error {
    let until = format!(" until {}", lock.expires_at);
    Error::Leased { url: replica.url().clone(), owner: lock.owner.clone(), until }
}
