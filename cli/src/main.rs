//! The `litestream` binary: arguments, configuration, output. What it does lies in the crates below it.

mod args;
mod commands;
mod output;
mod place;
mod shell;

use std::process::ExitCode;
use std::time::Duration;

use args::{Arguments, Command};
use clap::Parser;

/// How long work that is cancelled may take to clean up behind itself.
const CLEAN_UP: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    // clap prints help on stdout with code 0 and usage errors on stderr with code 2.
    let arguments = Arguments::parse_from(args::normalize(std::env::args_os()));
    output::set_up_logging(arguments.log_level);
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            output::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    // The shell has its own mind about signals, and waits for SQLite, which waits for the VFS.
    if let Command::VfsShell(args) = &arguments.command {
        return commands::vfs_shell::run(&arguments.common, args);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = dispatch(arguments) => outcome,
            // What is dropped here removes its temporary files and aborts its uploads.
            signal = interrupted() => Err(signal),
        }
    });
    runtime.shutdown_timeout(CLEAN_UP);
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn dispatch(arguments: Arguments) -> anyhow::Result<()> {
    let common = arguments.common;
    match arguments.command {
        Command::Restore(args) => commands::restore::run(&common, &args).await,
        Command::Compact(args) => commands::compact::run(&common, &args).await,
        Command::Ltx(args) => commands::ltx::run(&common, &args).await,
        // Taken out before; see `run`.
        Command::VfsShell(args) => commands::vfs_shell::run(&common, &args).map(drop),
        Command::Databases(args) => commands::databases::run(&common, &args),
        Command::Version(args) => commands::version::run(&args),
        Command::Completions(args) => commands::generate::completions(&args),
        Command::Man(args) => commands::generate::man(&args),
    }
}

/// Waits for Ctrl-C or a polite request to end.
async fn interrupted() -> anyhow::Error {
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
