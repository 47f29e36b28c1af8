//! `litestream compact`.

use crate::args::{Common, CompactArgs};

pub(crate) async fn run(_: &Common, _: &CompactArgs) -> anyhow::Result<()> {
    anyhow::bail!("in the making")
}
