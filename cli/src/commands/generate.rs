//! `litestream completions` and `litestream man`.

use anyhow::Context;
use clap::CommandFactory;

use crate::args::{Arguments, CompletionArgs, ManArgs};

pub(crate) fn completions(args: &CompletionArgs) -> anyhow::Result<()> {
    // Into memory first: the generator panics where the reader of a pipe has gone.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Arguments::command(), "litestream", &mut script);
    crate::output::line(String::from_utf8(script)?.trim_end())
}

pub(crate) fn man(args: &ManArgs) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.folder).with_context(|| format!("cannot create {}", args.folder.display()))?;
    clap_mangen::generate_to(Arguments::command(), &args.folder)
        .with_context(|| format!("cannot write manual pages to {}", args.folder.display()))
}
