//! The `litestream` binary: arguments, configuration, output. What it does lies in the crates below it.

mod args;
mod commands;
mod connect;
mod control;
mod logging;
mod metrics;
mod output;
mod place;
mod serving;
mod shell;

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use args::{Arguments, Command};
use clap::Parser;
use litestream_hydrate::Publishing;

/// How long work that is cancelled may take to clean up behind itself.
const CLEAN_UP: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    // clap prints help on stdout with code 0 and usage errors on stderr with code 2.
    let arguments = Arguments::parse_from(args::normalize(std::env::args_os()));
    let (log_level, odd) = match arguments.log_level {
        Some(level) => (Some(level), None),
        None => args::log_level_of(std::env::var_os("LOG_LEVEL").as_deref()),
    };
    if let Some(odd) = odd {
        output::note(&odd);
    }
    match run(arguments, log_level) {
        Ok(code) => code,
        Err(error) => {
            output::print_error(&error);
            // As clap has it.
            if error.is::<args::Misused>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

fn run(arguments: Arguments, log_level: Option<tracing::Level>) -> anyhow::Result<ExitCode> {
    // A daemon logs as its configuration says.
    if let Command::Replicate(args) = &arguments.command {
        return commands::replicate::run(&arguments.common, args, log_level);
    }
    logging::set_up_plain(log_level.unwrap_or(tracing::Level::WARN));
    // The shell has its own mind about signals, and waits for SQLite, which waits for the VFS.
    if let Command::VfsShell(args) = &arguments.command {
        return commands::vfs_shell::run(&arguments.common, args);
    }
    // So does what pushes, and what asks a person leaves the signals as they are.
    if let Command::VfsBuffer(args) = &arguments.command
        && args.export.is_none()
    {
        return commands::vfs_buffer::run(&arguments.common, args).map(|()| ExitCode::SUCCESS);
    }
    let publishing = Publishing::default();
    let work = until_interrupted(dispatch(arguments, &publishing), interrupted(), &publishing);
    in_runtime(work).map(|()| ExitCode::SUCCESS)
}

/// Runs `work` with threads for it, and leaves nothing half done.
pub(crate) fn in_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(work);
    // What was dropped there may have left uploads to abort.
    runtime.block_on(litestream_storage::settle(CLEAN_UP));
    runtime.shutdown_timeout(CLEAN_UP);
    outcome
}

/// Runs `work` to its end, or until a signal comes; but what has begun to put a database in place is not left half way.
pub(crate) async fn until_interrupted<T>(
    work: impl Future<Output = anyhow::Result<T>>,
    signal: impl Future<Output = anyhow::Error>,
    publishing: &Publishing,
) -> anyhow::Result<T> {
    let mut work = pin!(work);
    tokio::select! {
        outcome = &mut work => return outcome,
        // What is dropped here removes its temporary files and aborts its uploads.
        signal = signal => if !publishing.has_begun() {
            return Err(signal);
        },
    }
    work.await
}

async fn dispatch(arguments: Arguments, publishing: &Publishing) -> anyhow::Result<()> {
    let common = arguments.common;
    match arguments.command {
        Command::Restore(args) => commands::restore::run(&common, &args, publishing).await,
        Command::Compact(args) => commands::compact::run(&common, &args).await,
        Command::Ltx(args) => commands::ltx::run(&common, &args).await,
        // Taken out before; see `run`.
        Command::Replicate(_) => Ok(()),
        Command::VfsShell(args) => commands::vfs_shell::run(&common, &args).map(drop),
        Command::VfsBuffer(args) => commands::vfs_buffer::export(&common, &args, publishing).await,
        Command::Databases(args) => commands::databases::run(&common, &args),
        Command::Version(args) => commands::version::run(&args),
        Command::Completions(args) => commands::generate::completions(&args),
        Command::Man(args) => commands::generate::man(&args),
        Command::Status(args) => commands::status::run(&common, &args).await,
        Command::Reset(args) => commands::reset::run(&common, &args).await,
        Command::Info(args) => control::commands::info(&common, &args).await,
        Command::List(args) => control::commands::list(&common, &args).await,
        Command::Start(args) => control::commands::start(&common, &args).await,
        Command::Stop(args) => control::commands::stop(&common, &args).await,
        Command::Sync(args) => control::commands::sync(&common, &args).await,
        Command::Register(args) => control::commands::register(&common, &args).await,
        Command::Unregister(args) => control::commands::unregister(&common, &args).await,
    }
}

/// Waits for Ctrl-C or a polite request to end.
pub(crate) async fn interrupted() -> anyhow::Error {
    use tokio::signal::unix::{SignalKind, signal};
    let name = match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => "interrupted",
            _ = terminate.recv() => "terminated",
        },
        Err(_) => {
            let _ = tokio::signal::ctrl_c().await;
            "interrupted"
        }
    };
    anyhow::anyhow!("{name}; nothing was changed that is not complete")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn outcome(begun: bool) -> anyhow::Result<()> {
        let publishing = Publishing::default();
        // The signal comes after the work has begun, and before its end.
        let work = async {
            if begun {
                publishing.begin();
            }
            for _ in 0..9 {
                tokio::task::yield_now().await;
            }
            Ok(())
        };
        let signal = async {
            tokio::task::yield_now().await;
            anyhow::anyhow!("interrupted")
        };
        until_interrupted(work, signal, &publishing).await
    }

    #[tokio::test]
    async fn a_signal_stops_what_has_not_begun_to_publish_and_waits_for_what_has() {
        assert_eq!(outcome(false).await.unwrap_err().to_string(), "interrupted");
        outcome(true).await.unwrap();
    }
}
