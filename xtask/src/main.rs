//! How people run the project: `cargo xtask COMMAND`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod demo;
mod e2e;
mod fixtures;
mod fuzz;
mod litestream;
mod metrics;
mod minio;
mod process;
mod soak;
mod test;
mod tools;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Runs the project's tools and tests")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a database, puts it on an S3 server in the process, restores it at two moments
    Demo,
    /// Runs the whole test suite
    Test {
        /// Passed on to `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        extra: Vec<String>,
    },
    /// Regenerates the golden replicas with real Litestream
    Fixtures(fixtures::Arguments),
    /// Measures our speed, side by side with real Litestream's and with `cp`
    Bench(bench::Arguments),
    /// Kills restores, writers and our daemon many times, and has stores fail
    Soak(soak::Arguments),
    /// What `soak` starts in processes of their own
    #[command(hide = true)]
    SoakWriter(soak::Writer),
    /// The same
    #[command(hide = true)]
    SoakReader(soak::Reader),
    /// The same
    #[command(hide = true)]
    SoakApp(soak::App),
    /// Our program and real Litestream on the same replicas, in a real object store
    E2e(e2e::Arguments),
    /// Fuzzes the readers of the LTX format
    Fuzz(fuzz::Arguments),
    /// Finds or installs the programs that the tests run beside ours, and starts each once
    Tools,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo => demo::run(),
        Command::Test { extra } => test::run(&extra),
        Command::Fixtures(arguments) => fixtures::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::SoakWriter(arguments) => soak::write(&arguments),
        Command::SoakReader(arguments) => soak::read(&arguments),
        Command::SoakApp(arguments) => soak::live(&arguments),
        Command::E2e(arguments) => e2e::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
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
