//! `litestream replicate`: the daemon, from its configuration to its end.
//!
//! What this module alone knows is the order of things: all that is wrong is said before anything starts, databases that are missing are restored before
//! they are registered, the child starts after that, and whatever ends the daemon, the replicas are brought up to date first.

mod child;
mod doors;
mod heartbeat;
mod hints;
mod missing;
mod once;
mod plan;
pub(crate) mod running;
mod sharing;
mod signals;
mod table;
mod watch;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use litestream_config::DbConfig;
use litestream_replicate::daemon::Spec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;

use crate::args::{Common, ReplicateArgs, tracing_level};
use crate::logging::{self, Screen};
use crate::place;
use child::Child;
use doors::Doors;
use plan::{Plan, Problems};
use running::Running;
use signals::{Signal, Signals};
use table::Table;
use watch::Watch;
use words::Words;

/// How many databases' replicas are opened at once.
const OPENED: usize = 16;
/// Up to so many databases have a line each at the start.
const FEW: usize = 100;

pub(crate) fn run(
    common: &Common,
    args: &ReplicateArgs,
    log_level: Option<tracing::Level>,
) -> anyhow::Result<ExitCode> {
    let frugal = litestream_replicate::frugal();
    let plan = Plan::new(common, args)?;
    let screen = Screen::stderr();
    let logging = &plan.config.logging;
    logging::set_up_daemon(log_level.unwrap_or_else(|| tracing_level(logging.level)), logging, &screen);
    if !frugal {
        tracing::debug!("SQLite was used before: connections take more memory than they need");
    }
    crate::in_runtime(serve(common, args, plan, &screen))
}

async fn serve(common: &Common, args: &ReplicateArgs, plan: Plan, screen: &Screen) -> anyhow::Result<ExitCode> {
    let command = plan.config.exec.as_deref().map(Words::parse).transpose()?;
    let mut signals = Signals::new(command.is_some())?;
    let descriptors = raise_descriptors();
    let (databases, mut problems) = plan.databases();
    let Plan { config, origin } = plan;
    let running = Arc::new(Running::new(config, &place::policy(common)));
    // Nothing has begun yet that would have to be ended well.
    let specs = tokio::select! {
        specs = specs(&running, databases, &mut problems) => specs,
        _ = signals.end() => return Ok(ExitCode::SUCCESS),
    };
    Problems::none(origin.as_deref(), problems)?;
    // Both are bound before anything starts: whoever cannot be watched had better not begin.
    let doors = if args.once { Doors::default() } else { Doors::open(&running.config).await? };
    // A restore may take long: whoever asks whether we live gets an answer meanwhile.
    let doors = doors.show(&running);
    if missing::restore(&specs, &mut signals, screen).await?.is_some() {
        return Ok(ExitCode::SUCCESS);
    }
    let paths = register(&running, specs);
    let doors = doors.open(&running);
    let mut beside = JoinSet::new();
    if !args.once {
        beside.spawn(heartbeat::run(running.clone()));
        if let Some(watch) = Watch::new(&running, &paths) {
            beside.spawn(watch.run());
        }
    }
    // A child has the terminal for itself.
    let table = (screen.is_seen() && command.is_none()).then(|| Table::show(&running, screen));
    let outcome = if args.once {
        tokio::select! {
            outcome = once::run(&running, common, args, &paths) => outcome,
            signal = signals.end() => Err(anyhow::anyhow!("{signal} before all databases were up to date")),
        }
    } else if let Some(command) = command {
        match Child::start(&command, descriptors) {
            Ok(child) => child.wait(&mut signals).await,
            Err(error) => Err(error),
        }
    } else {
        let signal = signals.end().await;
        tracing::info!(%signal, "ending");
        Ok(ExitCode::SUCCESS)
    };
    beside.shutdown().await;
    let up_to_date = shut_down(&running, &mut signals).await;
    doors.close().await;
    drop(table);
    match outcome {
        Ok(code) if code != ExitCode::SUCCESS => Ok(code),
        Ok(_) if !up_to_date => Ok(ExitCode::FAILURE),
        outcome => outcome,
    }
}

/// Every database may need a few. Whoever started us did not know how many there are. Tells what the limit was.
fn raise_descriptors() -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
    before
}

/// How each database is replicated, and what is wrong with their replicas.
async fn specs(running: &Running, databases: Vec<DbConfig>, problems: &mut Vec<String>) -> Vec<(DbConfig, Spec)> {
    let opened = stream::iter(databases).map(|database| async move {
        let spec = running.spec_for(&database).await;
        spec.map(|spec| (database, spec))
    });
    let mut opened = opened.buffered(OPENED);
    let mut specs = Vec::new();
    while let Some(outcome) = opened.next().await {
        match outcome {
            Ok(spec) => specs.push(spec),
            Err(error) => problems.push(format!("{error:#}")),
        }
        // Opening is computing more than waiting, and a signal should be heard meanwhile.
        tokio::task::yield_now().await;
    }
    specs
}

fn register(running: &Running, specs: Vec<(DbConfig, Spec)>) -> Vec<PathBuf> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), databases = specs.len(), "litestream");
    if specs.is_empty() {
        tracing::warn!("the configuration lists no databases that are there");
    }
    let mut paths = Vec::new();
    let are_few = specs.len() <= FEW;
    for (database, spec) in specs {
        for target in spec.replicas.iter().filter(|_| are_few) {
            let (db, replica, sync_interval) = (database.path.display(), target.replica.url(), target.sync_interval);
            tracing::info!(%db, %replica, kind = target.kind, ?sync_interval, "replicating");
        }
        paths.push(database.path.clone());
        running.register(database, spec);
    }
    paths
}

/// Brings all replicas up to date, in the time that there is for it. Says whether they are.
async fn shut_down(running: &Running, signals: &mut Signals) -> bool {
    let (patience, pause) = (running.config.shutdown_sync_timeout, running.config.shutdown_sync_interval);
    let left = tokio::select! {
        left = running.daemon.shutdown(patience, pause) => left,
        signal = signals.last() => signal.exit_at_once(),
    };
    for error in &left {
        tracing::error!(%error, "not up to date");
    }
    if left.is_empty() {
        tracing::info!("all replicas are up to date");
    }
    left.is_empty()
}
