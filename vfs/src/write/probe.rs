//! Whether a store honours `If-None-Match`: without it nothing keeps two writers apart.
//!
//! Asked with a side object that stays: where it is there already, one conditional PUT that is refused is the proof. Only who finds it missing,
//! and so creates it, has to put once more. It lies beside the levels, as a lease does, where nobody takes it for an LTX file.

use std::sync::Arc;

use litestream_storage::{Body, Kind, Precondition, PutOptions, Replica};
use tokio::sync::OnceCell;

use crate::Result;

const KEY: &str = "litestream-probe";

/// The answer, looked for at most once for all who ask. Only an answer is remembered: after a failure the next one asks again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probe(Arc<OnceCell<bool>>);

impl Probe {
    /// Whether the store keeps two writers apart.
    ///
    /// # Errors
    /// As the store says, after retries.
    pub(crate) async fn honoured(&self, replica: &Replica) -> Result<bool> {
        if replica.honours_conditions() {
            return Ok(true);
        }
        self.0.get_or_try_init(|| ask(replica)).await.copied()
    }
}

async fn ask(replica: &Replica) -> Result<bool> {
    let key = replica.side_key(KEY);
    // Two contents: after a lost answer the second one must not be taken for what the first one has put.
    for content in ["first", "second"] {
        let options = PutOptions { precondition: Precondition::NotExists, ..PutOptions::default() };
        match replica.put(&key, Body::Bytes(content.into()), &options).await {
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
