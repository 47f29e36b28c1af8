//! The control socket: HTTP on a unix socket, JSON, as Litestream has it. What is said ([`wire`]), where ([`listener`]), by whom
//! ([`server`], [`answers`]) and to whom ([`client`], [`commands`]).

pub(crate) mod answers;
pub(crate) mod args;
pub(crate) mod client;
pub(crate) mod commands;
pub(crate) mod listener;
pub(crate) mod server;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod wire;

use std::path::Path;
use std::time::Duration;

use litestream_config::DbConfig;
use litestream_replicate::daemon::{ControlError, Daemon, Spec, Synced};
use litestream_storage::Stores;

/// The process that replicates, as the control socket and the metrics see it.
pub(crate) trait Host: Send + Sync + 'static {
    /// Who replicates.
    fn daemon(&self) -> &Daemon;

    /// Where the replicas lie.
    fn stores(&self) -> &Stores;

    /// Since when.
    fn started(&self) -> jiff::Timestamp;

    /// How a database is replicated to this replica; without one, as the configuration says. Nothing is begun yet.
    ///
    /// # Errors
    /// The address means nothing, its store cannot be opened, or the configuration does not know the database.
    fn spec(
        &self,
        path: &Path,
        replica_url: Option<&str>,
    ) -> impl Future<Output = anyhow::Result<(DbConfig, Spec)>> + Send;

    /// Begins to replicate a database. Says no where it is replicated already.
    ///
    /// # Errors
    /// It shares something with another database that is replicated.
    fn register(&self, database: DbConfig, spec: Spec) -> Result<bool, String>;

    /// Ends replicating a database, as [`Daemon::unregister`] does.
    ///
    /// # Errors
    /// As there.
    fn unregister(&self, path: &Path, patience: Duration) -> impl Future<Output = Result<Synced, ControlError>> + Send;
}
