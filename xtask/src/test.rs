//! `cargo xtask test`: the whole test suite.

use std::process::Command;

use anyhow::{Context, Result, ensure};

pub(crate) fn run(extra: &[String]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status =
        Command::new(cargo).args(["test", "--workspace"]).args(extra).status().context("cannot start cargo")?;
    ensure!(status.success(), "some tests failed");
    Ok(())
}
