//! Putting the next transaction so that of two writers exactly one goes on.
//!
//! A file of level 0 is put under the condition that there is none of that TXID. That this succeeded proves only that there is none *now*: another
//! writer's may have come and been merged away while this one slept. So where the store's clock says that more than a window has passed since
//! the last proof, level 0 is listed before anything counts as durable; its newest file is never deleted, so whoever went on shows there.

use std::time::Duration;

use bytes::Bytes;
use litestream_storage::{Body, FileInfo, Kind, Level, Precondition, PutOptions, Replica, Scope};
use ltx::{Checksum, FileName, Timestamp, Txid};

use crate::{Listing, OpenFile, Result, open_file};

/// After how much of the store's time since the last proof a put is no proof by itself: well below the time for which level 0 keeps its files.
pub const WINDOW: Duration = Duration::from_secs(60);
/// The metadata that says who wrote a file.
const WRITER: &str = "litestream-writer";
/// The side object that shows whether conditions are honoured.
const PROBE: &str = "litestream-probe";

/// The next transaction's file.
#[derive(Clone, Debug)]
pub struct Next<'a> {
    /// Its TXID.
    pub txid: Txid,
    /// Its bytes.
    pub body: Body,
    /// The time in its header.
    pub time: Timestamp,
    /// Its checksum, by which it is known as ours.
    pub checksum: Checksum,
    /// The writer's id in its header.
    pub writer: u64,
    /// Who that is, for people: host, process.
    pub identity: &'a str,
}

/// What came of a put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there, and nobody else went on.
    Durable(FileInfo),
    /// Another writer went on.
    Fenced {
        /// With which transaction.
        txid: Txid,
        /// Who, as far as that is known.
        by: String,
    },
}

/// Puts the next transaction. `proof` is the store's time at which this writer was last known to be the only one; it is moved on.
///
/// # Errors
/// As the store says. Whether the file is there is not known then; putting it again tells.
pub async fn put(replica: &Replica, next: Next<'_>, proof: &mut Option<Timestamp>, window: Duration) -> Result<Put> {
    let Next { txid, body, time, checksum, writer, identity } = next;
    let me = format!("{writer:016x} {identity}");
    let put = replica.put_file_with(Level::ZERO, FileName::new(txid, txid), body, time, &[(WRITER, &me)]).await;
    let info = match put {
        Ok(info) => info,
        Err(error) if error.kind() == Kind::Conflict => match taken(replica, txid, checksum).await? {
            Put::Durable(info) => info,
            fenced @ Put::Fenced { .. } => return Ok(fenced),
        },
        Err(error) => return Err(error.into()),
    };
    let now = replica.clock();
    let asleep = match (*proof, now) {
        (Some(before), Some(now)) => {
            now.0.saturating_sub(before.0) > i64::try_from(window.as_millis()).unwrap_or(i64::MAX)
        }
        _ => true,
    };
    if asleep && let Some(fenced) = alone(replica, &info).await? {
        return Ok(fenced);
    }
    *proof = now;
    Ok(Put::Durable(info))
}

/// The key that we wanted is taken: by ourselves, perhaps, before an answer was lost.
async fn taken(replica: &Replica, txid: Txid, checksum: Checksum) -> Result<Put> {
    let file = level_0(replica, txid).await?.into_iter().find(|file| file.name == FileName::new(txid, txid));
    let Some(file) = file else {
        return Ok(Put::Fenced { txid, by: "another writer, whose file has gone again".to_owned() });
    };
    let opened = open_file(replica, &file).await?;
    if opened.trailer.file_checksum == checksum {
        return Ok(Put::Durable(file));
    }
    Ok(Put::Fenced { txid, by: who(replica, &opened).await })
}

/// Makes sure that nobody went on while this writer slept. Our own file is deleted then, unless the other went on from it.
async fn alone(replica: &Replica, ours: &FileInfo) -> Result<Option<Put>> {
    let txid = ours.name.max;
    let Some(theirs) = level_0(replica, txid).await?.into_iter().find(|file| file.name.max > txid) else {
        return Ok(None);
    };
    let by = match open_file(replica, &theirs).await {
        Ok(file) => who(replica, &file).await,
        Err(_) => "another writer".to_owned(),
    };
    if let Err(error) = withdraw(replica, ours).await {
        tracing::error!(key = ours.key(), %error, "a file that was written too late cannot be deleted: delete it by hand");
    }
    Ok(Some(Put::Fenced { txid: theirs.name.max, by }))
}

/// Deletes our file where it came too late: another file holds its transaction, which is why the other writer's own could go. Where none does,
/// ours was there in time, only its answer came late, and what the other writer went on with rests on it.
async fn withdraw(replica: &Replica, ours: &FileInfo) -> Result<()> {
    let txid = ours.name.max;
    let holds = |file: &FileInfo| file.key() != ours.key() && file.name.min <= txid && txid <= file.name.max;
    if Listing::full(replica).await?.files().any(holds) {
        replica.delete_keys(&[ours.key()]).await?;
    }
    Ok(())
}

/// Who wrote a file, as far as that is known.
pub async fn who(replica: &Replica, file: &OpenFile) -> String {
    let named = replica.metadata(file.key(), WRITER).await.ok().flatten();
    let node = node(file.header.node_id);
    named.map_or(node.clone(), |named| format!("{node} ({named})"))
}

/// Who wrote a transaction, as far as that is known.
pub async fn who_wrote(replica: &Replica, txid: Txid) -> String {
    let found = level_0(replica, txid).await.ok().and_then(|files| files.into_iter().next());
    match found {
        Some(file) => match open_file(replica, &file).await {
            Ok(file) => who(replica, &file).await,
            Err(_) => "another writer".to_owned(),
        },
        None => "another writer".to_owned(),
    }
}

/// A writer's id as people are told of it.
#[must_use]
pub fn node(node_id: u64) -> String {
    if node_id == 0 { "another program".to_owned() } else { format!("writer {node_id:016x}") }
}

/// The first files of level 0 from a TXID on.
///
/// # Errors
/// As the store says.
pub async fn level_0(replica: &Replica, from: Txid) -> Result<Vec<FileInfo>> {
    Ok(replica.list_page(Scope::Level(Level::ZERO), from, None).await?.files)
}

/// Whether a store honours `If-None-Match`: without it nothing keeps two writers apart.
///
/// Asked with a side object that stays: where it is there already, one conditional PUT that is refused is the proof. Only who finds it missing,
/// and so creates it, has to put once more. It lies beside the levels, as a lease does, where nobody takes it for an LTX file.
///
/// # Errors
/// As the store says, after retries.
pub async fn honours_conditions(replica: &Replica) -> Result<bool> {
    if replica.honours_conditions() {
        return Ok(true);
    }
    let key = replica.side_key(PROBE);
    // Two contents: after a lost answer the second one must not be taken for what the first one has put.
    for content in ["first", "second"] {
        let options = PutOptions { precondition: Precondition::NotExists, ..PutOptions::default() };
        match replica.put(&key, Body::Bytes(Bytes::from(content)), &options).await {
            Err(error) if error.kind() == Kind::Conflict => return Ok(true),
            written => written?,
        };
    }
    // Of no use to anybody.
    if let Err(error) = replica.delete_keys(&[&key]).await {
        tracing::warn!(%key, %error, "cannot delete what was put to try the store");
    }
    Ok(false)
}
