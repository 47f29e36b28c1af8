//! `litestream version`.

use crate::args::VersionArgs;
use crate::output;

pub(crate) fn run(args: &VersionArgs) -> anyhow::Result<()> {
    output::line(env!("CARGO_PKG_VERSION"))?;
    if args.verbose {
        output::line(&format!("sqlite {}", rusqlite::version()))?;
        output::line("reads replicas of Litestream 0.5.5 and later, and of 0.3 (restore)")?;
        output::line("writes LTX files for Litestream 0.5.16 and later")?;
    }
    Ok(())
}
