//! Databases that do not exist are restored before anybody can create them anew.

use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context, bail};
use futures::stream::{self, StreamExt};
use litestream_config::DbConfig;
use litestream_hydrate::{Publishing, RestoreOptions};
use litestream_replicate::Left;
use litestream_replicate::daemon::Spec;
use litestream_storage::Replica;
use ltx::Txid;
use tokio::sync::watch;

use super::{Signal, Signals};
use crate::commands::restore;
use crate::logging::Screen;
use crate::output;

/// How many databases are restored at once, and how many requests each may have on their way.
const AT_ONCE: usize = 4;
const REQUESTS: usize = 32;

/// Restores the databases that are missing, where the configuration wants it and there is a backup. Tells which signal has come meanwhile.
///
/// # Errors
/// Which could not be restored. To go on without would be to replicate whatever an application creates there instead.
pub(super) async fn restore(
    specs: &[(DbConfig, Spec)],
    signals: &mut Signals,
    screen: &Screen,
) -> anyhow::Result<Option<Signal>> {
    let is_missing = |database: &DbConfig| database.settings.restore_if_db_not_exists && !database.path.exists();
    let missing: Vec<&(DbConfig, Spec)> = specs.iter().filter(|(database, _)| is_missing(database)).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let (stop, stopped) = watch::channel(false);
    let all = stream::iter(missing).map(|(database, spec)| {
        let mut stopped = stopped.clone();
        async move {
            let publishing = Publishing::default();
            let stopped = async move {
                let _ = stopped.wait_for(|stop| *stop).await;
                anyhow::anyhow!("given up, because of a signal")
            };
            let work = crate::until_interrupted(one(database, spec, &publishing, screen), stopped, &publishing).await;
            work.with_context(|| format!("cannot restore {}", database.path.display()))
        }
    });
    let mut all = pin!(all.buffer_unordered(AT_ONCE).collect::<Vec<anyhow::Result<()>>>());
    let outcomes = tokio::select! {
        outcomes = &mut all => outcomes,
        signal = signals.end() => {
            stop.send_replace(true);
            // What was about to be put in place is put in place.
            tokio::select! {
                _ = all => return Ok(Some(signal)),
                signal = signals.last() => signal.exit_at_once(),
            }
        }
    };
    let failed: Vec<anyhow::Error> = outcomes.into_iter().filter_map(Result::err).collect();
    match failed.as_slice() {
        [] => Ok(None),
        [error] => bail!("{error:#}"),
        several => {
            let lines: String = several.iter().map(|error| format!("\n  {error:#}")).collect();
            bail!("{} databases cannot be restored:{lines}", several.len())
        }
    }
}

async fn one(database: &DbConfig, spec: &Spec, publishing: &Publishing, screen: &Screen) -> anyhow::Result<()> {
    let db = database.path.display();
    let replicas: Vec<Replica> = spec.replicas.iter().map(|target| target.replica.clone()).collect();
    let bar = screen.drawn().add(output::bar(&format!("restoring {db}")));
    let shown = bar.clone();
    let options = RestoreOptions {
        parallelism: REQUESTS,
        publishing: publishing.clone(),
        progress: Arc::new(move |progress| {
            shown.set_length(progress.total);
            shown.set_position(progress.done);
        }),
        ..RestoreOptions::default()
    };
    let outcome = restore::latest(&replicas, &database.path, &options).await;
    bar.finish_and_clear();
    screen.drawn().remove(&bar);
    match outcome? {
        Some(latest) => {
            let size = output::size(latest.size);
            tracing::info!(%db, replica = %latest.url, state = latest.state, size, "restored");
            let captured = Left::read(&database.meta_path).map(|left| left.txid);
            if let Some((captured, restored)) = captured.zip(latest.state.parse::<Txid>().ok())
                && captured > restored
            {
                let why = "more was captured here than had been uploaded, and is not in what was restored: what is left of it goes up now, and `litestream restore -txid` gives it back";
                tracing::warn!(%db, %captured, %restored, "{why}");
            }
        }
        None => tracing::info!(%db, "does not exist, and has no backup: it is replicated once it is created"),
    }
    Ok(())
}
