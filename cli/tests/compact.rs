//! `litestream compact` deletes only what somebody has said may go.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use litestream_fixtures::golden::{self, set_mtime_ms};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A replica whose files are all ten days old: a day's retention needs only the newest snapshot.
fn replica(folder: &Path) -> PathBuf {
    let replica = folder.join("replica");
    golden::golden("levels").copy_replica(&replica).unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    for level in std::fs::read_dir(replica.join("ltx")).unwrap() {
        for file in std::fs::read_dir(level.unwrap().path()).unwrap() {
            let age = DAY * 10;
            set_mtime_ms(&file.unwrap().path(), (now - age).as_millis() as u64).unwrap();
        }
    }
    replica
}

/// Runs `compact --dry-run --json` and says how many files it would delete, and what it says beside.
fn deletions(config: &str, replica: &Path, arguments: &[&str]) -> (usize, String) {
    let config_path = replica.with_file_name("litestream.yml");
    std::fs::write(&config_path, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_litestream"));
    command.args(["compact", "--dry-run", "--json", "--no-snapshot", "--config"]).arg(&config_path);
    let output = command.args(arguments).arg(format!("file://{}", replica.display())).output().unwrap();
    let (data, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{log}");
    let steps: Vec<serde_json::Value> = serde_json::from_str(&data).unwrap();
    (steps.iter().filter(|step| step["action"] == "delete").count(), log)
}

#[test]
fn a_url_has_the_retention_of_the_database_it_belongs_to_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let replica = replica(folder.path());
    let own = |retention: &str| {
        let path = replica.display();
        format!("dbs: [{{path: my.db, snapshot: {{retention: {retention}}}, replica: {{type: file, path: {path}}}}}]")
    };
    let other = "snapshot: {retention: 1m}\ndbs: [{path: my.db, replica: {type: file, path: /elsewhere}}]";

    let (deleted, _) = deletions(&own("1d"), &replica, &[]);
    assert!(deleted > 0);
    let (with_long, log) = deletions(&own("30d"), &replica, &[]);
    assert!(with_long < deleted, "{with_long} of {deleted}");
    assert!(!log.contains("--retention"), "{log}");
    let (unknown, log) = deletions(other, &replica, &[]);
    assert_eq!(unknown, 0, "nobody has said how long this replica is kept");
    assert!(log.contains("nothing is deleted by retention") && log.contains("--retention 24h"), "{log}");
    assert_eq!(deletions(other, &replica, &["--retention", "24h"]).0, deleted);
    assert_eq!(deletions(&own("30d"), &replica, &["--retention", "24h"]).0, deleted);
    assert_eq!(deletions(&own("1d"), &replica, &["--no-retention"]).0, 0);
}
