//! Whether the store keeps two writers apart, asked once.

use std::sync::Arc;

use litestream_pageindex::fence;
use litestream_storage::Replica;
use tokio::sync::OnceCell;

use crate::Result;

/// The answer, looked for at most once for all who ask. Only an answer is remembered: after a failure the next one asks again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probe(Arc<OnceCell<bool>>);

impl Probe {
    /// Whether the store keeps two writers apart.
    ///
    /// # Errors
    /// As the store says, after retries.
    pub(crate) async fn honoured(&self, replica: &Replica) -> Result<bool> {
        Ok(*self.0.get_or_try_init(|| fence::honours_conditions(replica)).await?)
    }
}
