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

/// Runs `compact --dry-run` and says how many files it would delete, and what it says beside.
fn deletions(config: &str, replica: &Path, arguments: &[&str]) -> (usize, String) {
    let (steps, log) = compact(config, replica, &[&["--dry-run"], arguments].concat());
    (steps.iter().filter(|step| step["action"] == "delete").count(), log)
}

/// Runs `compact` and says what it does, and what it says beside.
fn compact(config: &str, replica: &Path, arguments: &[&str]) -> (Vec<serde_json::Value>, String) {
    let config_path = replica.with_file_name("litestream.yml");
    std::fs::write(&config_path, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_litestream"));
    command.args(["compact", "--json", "--no-snapshot", "--config"]).arg(&config_path);
    let output = command.args(arguments).arg(format!("file://{}", replica.display())).output().unwrap();
    let (data, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{log}");
    (serde_json::from_str(&data).unwrap(), log)
}

/// Configures the replica as a database's.
fn own(replica: &Path, retention: &str) -> String {
    let path = replica.display();
    format!("dbs: [{{path: my.db, snapshot: {{retention: {retention}}}, replica: {{type: file, path: {path}}}}}]")
}

#[test]
fn what_was_merged_just_now_is_deleted_by_a_later_run() {
    let folder = tempfile::tempdir().unwrap();
    let replica = replica(folder.path());
    let config = own(&replica, "30d");
    let run = |arguments: &[&str]| {
        let (steps, _) = compact(&config, &replica, arguments);
        let of = |action: &str| -> Vec<_> {
            let steps = steps.iter().filter(|step| step["action"] == action);
            steps.map(|step| (step["level"].as_u64(), step["max_txid"].as_str().unwrap().to_owned())).collect()
        };
        (of("compact"), of("delete"))
    };
    let (merged, deleted) = run(&["--dry-run"]);
    assert_eq!(merged[0], (Some(1), format!("{:016x}", 0x28)), "26 to 28 were not merged before");
    assert_eq!(deleted.len(), 0x25);
    assert_eq!(deleted.last(), Some(&(Some(0), format!("{:016x}", 0x25))));
    assert_eq!(run(&[]), (merged, deleted), "what was said is done");
    let rest = [0x26, 0x27].map(|txid| (Some(0), format!("{txid:016x}")));
    assert_eq!(run(&[]), (vec![], rest.to_vec()), "the newest stays");
}

#[test]
fn a_url_has_the_retention_of_the_database_it_belongs_to_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let replica = replica(folder.path());
    let own = |retention: &str| own(&replica, retention);
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
