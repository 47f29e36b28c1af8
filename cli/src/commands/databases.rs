//! `litestream databases`.

use anyhow::bail;
use serde::Serialize;
use tabled::Tabled;

use crate::args::{Common, ListArgs};
use crate::{output, place};

#[derive(Serialize, Tabled)]
struct Row {
    #[tabled(rename = "path")]
    path: String,
    #[tabled(rename = "replicas", display = "join")]
    replicas: Vec<String>,
}

fn join(replicas: &[String]) -> String {
    replicas.join(" ")
}

pub(crate) fn run(common: &Common, args: &ListArgs) -> anyhow::Result<()> {
    let (path, config) = place::load_config(common)?;
    let Some(config) = config else {
        bail!("there is no configuration file {}: write one, or name another with --config", path.display());
    };
    let rows: Vec<Row> = config
        .databases()?
        .into_iter()
        .map(|database| Row {
            path: database.path.display().to_string(),
            replicas: database.replicas.iter().map(|replica| replica.config.url()).collect(),
        })
        .collect();
    if args.json { output::json(&rows) } else { output::table(&rows) }
}
