//! How people run the project: `cargo xtask COMMAND`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod fixtures;
mod litestream;
mod minio;
mod process;
mod tools;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Runs the project's tools and tests")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Regenerates the golden replicas with real Litestream
    Fixtures(fixtures::Arguments),
    /// Finds or installs the programs that the tests run beside ours, and starts each once
    Tools,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Fixtures(arguments) => fixtures::run(&arguments),
        Command::Tools => tools::check(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
