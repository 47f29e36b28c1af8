//! `cargo xtask e2e`: our program and real Litestream on the same replicas, in a real object store and in folders.
//!
//! This file knows which scenarios there are, runs them and prints the table. Where replicas lie and how both programs
//! are called is
//! `world.rs`; the others are the scenarios.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tabled::settings::Style;
use tabled::{Table, Tabled};

use crate::process::run as run_to_end;
use world::{Backend, World};

mod blockmap;
mod compact;
mod encoder;
mod go_blockmap;
mod hosts;
mod juicefs;
mod live;
mod ours;
mod page_sizes;
mod readers;
mod replicate_commands;
mod replicate_control;
mod replicate_juicefs;
mod replicate_switch;
mod sandwiches;
mod volume;
mod world;
mod writer;
mod writes;

/// How long real Litestream or JuiceFS may take for anything.
const DEADLINE: Duration = Duration::from_secs(60);

/// Arguments of `cargo xtask e2e`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Any S3 service, instead of a MinIO of our own: http://HOST:PORT
    #[arg(long, value_name = "URL", env = "LITESTREAM_E2E_ENDPOINT")]
    #[arg(requires_all = ["access_key_id", "secret_access_key", "bucket"])]
    endpoint: Option<String>,
    /// Access key of that service
    #[arg(long, value_name = "KEY", env = "LITESTREAM_E2E_ACCESS_KEY_ID")]
    access_key_id: Option<String>,
    /// Secret key of that service
    #[arg(long, value_name = "SECRET", env = "LITESTREAM_E2E_SECRET_ACCESS_KEY", hide_env_values = true)]
    secret_access_key: Option<String>,
    /// A bucket there; everything is written below one new folder in it, and removed again
    #[arg(long, env = "LITESTREAM_E2E_BUCKET")]
    bucket: Option<String>,
    /// Only this scenario; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// How long the scenarios that read for a time do so, each
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u64,
}

/// What was checked, in a few words with numbers.
type Checked = Result<String>;

struct Scenario {
    name: &'static str,
    run: fn(&mut World) -> Checked,
}

/// Every scenario, in the order in which they run. Those of one backend share a recording, so the compactions, which
/// change it, stand behind.
const SCENARIOS: [Scenario; 21] = [
    Scenario { name: "minio-live", run: |world| live::live(world, Backend::S3) },
    Scenario { name: "file-live", run: |world| live::live(world, Backend::File) },
    Scenario { name: "bucket-root", run: live::bucket_root },
    Scenario { name: "minio-compact", run: |world| compact::compact(world, Backend::S3) },
    Scenario { name: "file-compact", run: |world| compact::compact(world, Backend::File) },
    Scenario { name: "page-sizes", run: page_sizes::page_sizes_by_litestream },
    Scenario { name: "our-encoder", run: encoder::our_encoder },
    Scenario { name: "our-compaction", run: encoder::our_compaction },
    Scenario { name: "juicefs", run: juicefs::juicefs },
    Scenario { name: "blockmap-juicefs", run: blockmap::blockmap_juicefs },
    Scenario { name: "vfs-sqlite3", run: hosts::vfs_sqlite3 },
    Scenario { name: "vfs-hosts", run: hosts::vfs_hosts },
    Scenario { name: "vfs-go", run: hosts::vfs_go },
    Scenario { name: "vfs-readers", run: readers::vfs_readers },
    Scenario { name: "vfs-go-blockmap", run: go_blockmap::vfs_go_blockmap },
    Scenario { name: "vfs-process", run: hosts::vfs_process },
    Scenario { name: "vfs-writes", run: writes::vfs_writes },
    Scenario { name: "vfs-story", run: writes::vfs_story },
    Scenario { name: "replicate-commands", run: replicate_commands::replicate_commands },
    Scenario { name: "replicate-switch", run: replicate_switch::replicate_switch },
    Scenario { name: "replicate-juicefs", run: replicate_juicefs::replicate_juicefs },
];

#[derive(Tabled)]
struct Row {
    scenario: &'static str,
    checked: String,
    seconds: String,
    result: &'static str,
}

/// Runs the scenarios, all of them even if some fail, and prints a table.
///
/// # Errors
/// A scenario failed, is unknown, or cannot be prepared.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if let Some(unknown) = arguments.only.iter().find(|name| !SCENARIOS.iter().any(|known| known.name == **name)) {
        let known: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        bail!("there is no scenario {unknown}; there are: {}", known.join(", "));
    }
    build()?;
    let mut world = World::new(arguments)?;
    let mut rows = Vec::new();
    for scenario in &SCENARIOS {
        if arguments.only.is_empty() || arguments.only.iter().any(|name| name == scenario.name) {
            rows.push(attempt(scenario, &mut world));
        }
    }
    let tidied = world.clean_up().context("cannot remove what was written to the object store");
    println!("\n{}\n", Table::new(&rows).with(Style::blank()));
    let failed = rows.iter().filter(|row| row.result != PASSED).count();
    println!("{} passed, {failed} failed", rows.len() - failed);
    if failed > 0 {
        bail!("{failed} of {} scenarios failed", rows.len());
    }
    tidied
}

const PASSED: &str = "passed";

fn attempt(scenario: &Scenario, world: &mut World) -> Row {
    eprintln!("e2e: {} …", scenario.name);
    let start = Instant::now();
    let result = (scenario.run)(world);
    let seconds = format!("{:.1}", start.elapsed().as_secs_f64());
    let (checked, result) = match result {
        Ok(checked) => (checked, PASSED),
        Err(error) => {
            eprintln!("e2e: {} FAILED: {error:#}", scenario.name);
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            (first, "FAILED")
        }
    };
    Row { scenario: scenario.name, checked, seconds, result }
}

/// Our program, our extension and our Rust example, as they are now.
fn build() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    for arguments in [&["-p", "litestream", "-p", "litestream-vfs"][..], &["-p", "litestream-vfs", "--examples"]] {
        let name = format!("cargo build {}", arguments.join(" "));
        run_to_end(&name, Command::new(&cargo).args(["build", "--quiet"]).args(arguments))?;
    }
    Ok(())
}
