//! `cargo xtask fixtures`: makes the golden replicas of `fixtures/golden` anew with real Litestream, and the golden block
//! map with real JuiceFS.
//!
//! This file knows which there are. How one is recorded while Litestream runs is `source.rs`; what is expected of it is
//! asked of real Litestream in `oracle.rs`; the others are the recipes, and `blockmap.rs` makes the one that is no replica
//! but a database.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use litestream_fixtures::golden::{Expected, golden_dir};

use crate::tools::Tools;

mod blockmap;
mod juicefs;
mod levels;
mod oracle;
mod page_sizes;
mod source;
mod v03;

/// Arguments of `cargo xtask fixtures`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only these fixtures; all of them if none is named
    names: Vec<String>,
}

/// Makes one fixture's `replica` folder below the given one, and says what is expected of it.
type Recipe = Box<dyn Fn(&Tools, &str, &Path) -> Result<Expected>>;

/// Every golden replica by name.
fn recipes() -> Vec<(String, Recipe)> {
    let mut recipes: Vec<(String, Recipe)> = Vec::new();
    for shift in 9..=16 {
        let page_size = 1_u32 << shift;
        recipes.push((
            format!("page-size-{page_size}"),
            Box::new(move |tools, name, folder| page_sizes::page_size(tools, name, folder, page_size)),
        ));
    }
    recipes.push(("legacy-frames".to_owned(), Box::new(page_sizes::legacy_frames)));
    recipes.push(("levels".to_owned(), Box::new(levels::levels)));
    recipes.push(("levels-pruned".to_owned(), Box::new(levels::levels_pruned)));
    recipes.push(("v03".to_owned(), Box::new(v03::v03)));
    recipes.push(("juicefs".to_owned(), Box::new(juicefs::juicefs)));
    recipes
}

/// Regenerates the named fixtures, or all. Each is replaced as a whole, and only once it is complete.
///
/// # Errors
/// An unknown name, a tool that cannot be had, or a fixture that Litestream itself cannot restore.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let recipes = recipes();
    let mut known: Vec<&str> = recipes.iter().map(|(name, _)| name.as_str()).collect();
    known.push(blockmap::NAME);
    if let Some(unknown) = arguments.names.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("there is no fixture {unknown}; there are: {}", known.join(", "));
    }
    let tools = Tools::new()?;
    let wanted = |name: &String| arguments.names.is_empty() || arguments.names.contains(name);
    for (name, recipe) in recipes.iter().filter(|(name, _)| wanted(name)) {
        make(&tools, name, recipe).with_context(|| format!("fixture {name}"))?;
    }
    if wanted(&blockmap::NAME.to_owned()) {
        blockmap::blockmap(&tools).with_context(|| format!("fixture {}", blockmap::NAME))?;
    }
    Ok(())
}

fn make(tools: &Tools, name: &str, recipe: &Recipe) -> Result<()> {
    let golden = golden_dir();
    fs::create_dir_all(&golden)?;
    let staging = tempfile::Builder::new().prefix(".new-").tempdir_in(&golden)?;
    let expected = recipe(tools, name, staging.path())?;
    let mut json = serde_json::to_string_pretty(&expected)?;
    json.push('\n');
    fs::write(staging.path().join("expected.json"), json)?;

    let target = golden.join(name);
    if target.exists() {
        fs::remove_dir_all(&target)?;
    }
    let staged = staging.keep();
    fs::rename(&staged, &target)?;
    open_to_readers(&target)?;
    println!("{name}: {}", summary(&expected, folder_bytes(&target)?));
    Ok(())
}

fn summary(expected: &Expected, bytes: u64) -> String {
    let files = expected.mtimes_ms.len();
    let what = match &expected.v03 {
        Some(v03) => format!("{} generations, {} times", v03.generations.len(), v03.times.len()),
        None => format!(
            "{} TXIDs, {} of them restorable, {} times",
            expected.txids.len(),
            expected.restorable().count(),
            expected.times.len()
        ),
    };
    format!("{what}, {files} files, {} KiB", bytes.div_ceil(1024))
}

/// A temporary folder is its owner's only; a fixture is like any other folder of the checkout.
#[cfg(unix)]
fn open_to_readers(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?)
}

#[cfg(not(unix))]
fn open_to_readers(_folder: &Path) -> Result<()> {
    Ok(())
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let files = source::files(folder)?;
    files.iter().map(|path| Ok(fs::metadata(folder.join(path))?.len())).sum()
}
