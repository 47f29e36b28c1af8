//! `litestream ltx`.

use litestream_pageindex::Listing;
use litestream_storage::format_time;
use serde::Serialize;
use tabled::Tabled;

use crate::args::{Common, LtxArgs};
use crate::{output, place};

#[derive(Serialize, Tabled)]
struct Row {
    level: u8,
    min_txid: String,
    max_txid: String,
    size: u64,
    created: String,
    #[tabled(skip)]
    replica: String,
}

pub(crate) async fn run(common: &Common, args: &LtxArgs) -> anyhow::Result<()> {
    let place = place::find(common, &args.source).await?;
    let mut rows = Vec::new();
    for replica in &place.replicas {
        let listing = Listing::full(replica).await?;
        rows.extend(listing.files().filter(|file| args.level.0.is_none_or(|level| file.level == level)).map(|file| {
            Row {
                level: file.level.get(),
                min_txid: file.name.min.to_string(),
                max_txid: file.name.max.to_string(),
                size: file.size(),
                created: format_time(file.object.time.unwrap_or(file.object.modified)),
                replica: replica.url().to_string(),
            }
        }));
    }
    if args.json { output::json(&rows) } else { output::table(&rows) }
}
