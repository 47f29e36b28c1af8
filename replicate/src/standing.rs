//! What was left here, beside what the replica has: whether it can be gone on with, and what must still be uploaded.

use std::collections::BTreeMap;

use ltx::{Checksum, Timestamp, Txid};

use crate::stage::{Stage, Staged};
use crate::state::State;
use crate::{Newest, Result};

/// How what we have stands to what the replica has.
pub(crate) struct Standing {
    /// TXID and time that the next file must exceed.
    pub(crate) last: (Txid, Timestamp),
    /// Files that a replica does not have yet.
    pub(crate) waiting: Vec<Staged>,
    /// What was captured last, as far as it is worth anything.
    pub(crate) state: Option<State>,
    /// Why all must be captured anew.
    pub(crate) doubt: Option<String>,
}

impl Standing {
    pub(crate) fn find(stage: &Stage, state: Option<State>, newest: Option<Newest>, floor: Txid) -> Result<Self> {
        if let Some(state) = state {
            // Made durable, but never said to be there: it will be made again, with more in it.
            stage.delete(|txid| txid > state.txid)?;
        }
        let mut staged = BTreeMap::new();
        for txid in stage.txids()? {
            match stage.read(txid) {
                Ok(found) => {
                    staged.insert(txid, found);
                }
                Err(error) if error.is_damage() => {
                    tracing::warn!(%error, "a file that waits to be uploaded is damaged; taken for gone");
                    stage.delete(|damaged| damaged == txid)?;
                }
                Err(error) => return Err(error),
            }
        }
        let newest = newest.unwrap_or(Newest { txid: Txid::ZERO, checksum: None, time: None });
        let ours = match (state, staged.last_key_value()) {
            (Some(state), _) => (state.txid, state.checksum, state.time),
            (None, Some((txid, last))) => (*txid, last.checksum, last.time),
            (None, None) => (Txid::ZERO, Checksum::NONE, Timestamp::default()),
        };
        let theirs = match newest.txid {
            txid if txid == ours.0 => Some(ours.1),
            txid => staged.get(&txid).map(|staged| staged.checksum),
        };
        let other = newest.checksum.zip(theirs).is_some_and(|(newest, ours)| newest != ours);
        let missing = (newest.txid.0..ours.0.0).any(|before| !staged.contains_key(&Txid(before).next()));
        let time = ours.2.max(newest.time.unwrap_or_default());
        let anew = |why: String| -> Result<Self> {
            stage.delete(|_| true)?;
            let doubt = Some(format!("{why}; new snapshot"));
            Ok(Self { last: (newest.txid, time), waiting: Vec::new(), state, doubt })
        };
        let (txid, have) = (newest.txid, ours.0);
        if txid > have {
            return anew(format!("the replica holds transaction {txid}, of which nothing is known here"));
        }
        if other {
            return anew(format!("the replica's transaction {txid} is another one than ours"));
        }
        if missing {
            return anew(format!("the replica ends with transaction {txid}, and what follows up to {have} is gone"));
        }
        // A hole above the floor is no doubt of ours: whoever lacks what is gone needs a snapshot, the others go on.
        let floor = floor.min(txid);
        stage.delete(|staged| staged <= floor)?;
        let waiting = staged.into_iter().filter(|(staged, _)| *staged > floor).map(|(_, staged)| staged).collect();
        Ok(Self { last: (have, time), waiting, state, doubt: None })
    }
}
