//! `cargo xtask fuzz`: feeds the readers of the LTX format with mutated real files.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use litestream_fixtures::golden;

/// The fuzz targets, in `ltx/fuzz`.
const TARGETS: [&str; 3] = ["decoder", "index", "frame"];

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How long each target runs, in seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Only these targets
    targets: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has a root")?;
    let cargo_fuzz = install(root)?;
    let wanted = |target: &&str| arguments.targets.is_empty() || arguments.targets.iter().any(|name| name == target);
    let targets: Vec<&str> = TARGETS.iter().copied().filter(|target| wanted(target)).collect();
    ensure!(!targets.is_empty(), "there are only these targets: {}", TARGETS.join(", "));
    for target in &targets {
        let corpus = seed(root, target)?;
        println!("fuzzing {target} for {} s", arguments.seconds);
        let status = Command::new(&cargo_fuzz)
            .current_dir(root.join("ltx"))
            .args(["fuzz", "run", "--sanitizer", "none", target])
            .arg(&corpus)
            .arg("--")
            .args([format!("-max_total_time={}", arguments.seconds), "-print_final_stats=1".into()])
            .args(["-verbosity=0", "-max_len=65536", "-rss_limit_mb=1024"])
            .status()
            .context("cannot start cargo-fuzz")?;
        ensure!(status.success(), "{target}: a finding; see ltx/fuzz/artifacts/{target}");
    }
    println!("{} fuzz targets ran {} s each without a finding", targets.len(), arguments.seconds);
    Ok(())
}

/// cargo-fuzz, from the registry, under `target/tools`.
fn install(root: &Path) -> Result<PathBuf> {
    let tools = root.join("target/tools");
    let binary = tools.join("bin/cargo-fuzz");
    if !binary.exists() {
        println!("installing cargo-fuzz into target/tools");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let install = ["install", "--locked", "--quiet", "cargo-fuzz", "--root"];
        let status = Command::new(cargo).args(install).arg(&tools).status().context("cannot start cargo")?;
        ensure!(status.success(), "cannot install cargo-fuzz");
    }
    Ok(binary)
}

/// Real files to begin with. The targets read a few bytes of their own in front.
fn seed(root: &Path, target: &str) -> Result<PathBuf> {
    let corpus = root.join("ltx/fuzz/corpus").join(target);
    std::fs::create_dir_all(&corpus)?;
    for golden in golden::all() {
        for file in golden.files().iter().filter(|file| file.ends_with(".ltx")).take(6) {
            let bytes = std::fs::read(golden.replica().join(file))?;
            if bytes.len() > 20_000 {
                continue;
            }
            let bytes = match target {
                "decoder" => bytes,
                "index" => [&[0, 0], bytes.as_slice()].concat(),
                _ => [&[3], bytes.get(100..).unwrap_or_default()].concat(),
            };
            std::fs::write(corpus.join(format!("{}-{}", golden.name, file.replace('/', "-"))), bytes)?;
        }
    }
    Ok(corpus)
}
