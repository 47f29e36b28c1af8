//! Our daemon as its control socket shows it, and daemons that are in each other's way.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::DEADLINE;
use super::ours::{Ours, config};
use super::replicate_commands::{make, same};
use super::world::World;
use crate::litestream::file_url;
use crate::process::converse;

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is no text")
}

fn says(answer: &Value, name: &str, expected: &str) -> Result<()> {
    ensure!(answer[name] == expected, "{name} is not {expected:?}: {answer}");
    Ok(())
}

/// Everything that can be asked of a running daemon.
pub(super) fn control(world: &World, folder: &Path) -> Result<()> {
    let [one, two] = ["one", "two"].map(|name| folder.join(format!("{name}.db")));
    let [to_one, to_two] = ["one", "two"].map(|name| file_url(&folder.join(format!("control-{name}"))));
    let (first, second) = (make(&one)?, make(&two)?);
    let daemon = Ours::start(world, &config(folder, "", &[(&one, &to_one)])?)?;
    daemon.sync(&one)?;
    ensure!(daemon.ask("info", &[])?["database_count"] == 1, "not one database");

    says(&daemon.ask("register", &["--replica", &to_two, text(&two)?])?, "status", "registered")?;
    ensure!(daemon.ask("info", &[])?["database_count"] == 2, "not two databases");
    second.execute("INSERT INTO t VALUES ('second')", [])?;
    daemon.sync(&two)?;
    same(world, &to_two, &second)?;

    // Stopped: nothing is captured until it is started.
    says(&daemon.ask("stop", &[text(&two)?])?, "state", "stopped")?;
    says(&daemon.listed(&two)?, "status", "stopped")?;
    ensure!(daemon.refused("sync", &[text(&two)?])?.contains("stopped"), "a sync of what is stopped");
    second.execute("INSERT INTO t VALUES ('third')", [])?;
    ensure!(same(world, &to_two, &second).is_err(), "what is stopped was captured");
    says(&daemon.ask("start", &[text(&two)?])?, "status", "started")?;
    says(&daemon.ask("start", &[text(&two)?])?, "status", "already_running")?;
    daemon.sync(&two)?;
    same(world, &to_two, &second)?;

    // What was captured is forgotten, but not behind the daemon's back.
    ensure!(daemon.refused("reset", &["--yes", text(&two)?])?.contains("stop"), "a reset of what is replicated");
    daemon.ask("stop", &[text(&two)?])?;
    daemon.ask("reset", &["--yes", text(&two)?])?;
    daemon.ask("start", &[text(&two)?])?;
    daemon.sync(&two)?;
    same(world, &to_two, &second)?;

    let status = daemon.ask("status", &[text(&one)?])?;
    ensure!(status[0]["live"] == true && status[0]["staged_files"] == 0, "the status is {status}");
    let preview = daemon.ask("unregister", &["--dry-run", text(&two)?])?;
    says(&preview, "status", "would_unregister")?;
    second.execute("INSERT INTO t VALUES ('fourth')", [])?;
    daemon.ask("unregister", &[text(&two)?])?;
    same(world, &to_two, &second).context("after unregister")?;
    ensure!(daemon.listed(&two)?.is_null(), "it is still listed");
    ensure!(daemon.refused("sync", &[text(&two)?])?.contains("not found"), "a sync of what nobody knows");

    first.execute("INSERT INTO t VALUES ('last')", [])?;
    let (status, log) = daemon.terminate()?;
    ensure!(status.success(), "the daemon ended with {status}:\n{log}");
    same(world, &to_one, &first).context("after SIGTERM")
}

/// Two daemons for one replica, and for one database.
pub(super) fn two_daemons(world: &World, folder: &Path) -> Result<String> {
    let [one, two] = ["mine", "yours"].map(|name| folder.join(format!("{name}.db")));
    let url = file_url(&folder.join("contended"));
    let (first, second) = (make(&one)?, make(&two)?);
    second.execute("INSERT INTO t VALUES ('yours')", [])?;
    let places = ["a", "b"].map(|name| folder.join(name));
    places.iter().try_for_each(std::fs::create_dir)?;
    let mine = Ours::start(world, &config(&places[0], "", &[(&one, &url)])?)?;
    mine.sync(&one)?;
    let yours = Ours::start(world, &config(&places[1], "", &[(&two, &url)])?)?;
    yours.sync(&two)?;
    first.execute("INSERT INTO t VALUES ('lost')", [])?;
    let refused = mine.refused("sync", &["--wait", "--timeout", "20s", text(&one)?])?;
    let listed = mine.listed(&one)?;
    ensure!(listed["replicas"][0]["fenced"] == true, "the first is not fenced: {listed}; it says {refused}");
    let why = listed["replicas"][0]["error"].as_str().unwrap_or_default().to_owned();
    ensure!(refused.contains(&why), "sync says {refused}, the list says {why}");
    // Whoever came last goes on.
    second.execute("INSERT INTO t VALUES ('more')", [])?;
    yours.sync(&two)?;
    same(world, &url, &second)?;
    let (status, log) = mine.terminate()?;
    ensure!(status.code() == Some(1) && log.contains("mine.db"), "whoever was fenced ended with {status}:\n{log}");
    drop(yours);

    // The same database twice: the second one waits until the first has ended, and takes over.
    std::fs::remove_file(places[1].join("ours.sock")).ok();
    let first_of_two = Ours::start(world, &config(&places[1], "", &[(&two, &url)])?)?;
    first_of_two.sync(&two)?;
    let mut once = world.our();
    once.args(["replicate", "-once"]).arg(&two).arg(&url);
    let said = converse("a second daemon", &mut once, "", DEADLINE)?;
    let refused = said.status.code() == Some(1) && said.stderr.contains("is replicated by another process");
    ensure!(refused, "a second daemon ended with {}:\n{}", said.status, said.stderr);
    let next = Ours::start(world, &config(&places[0], "", &[(&two, &url)])?)?;
    for number in 0..20 {
        second.execute("INSERT INTO t VALUES (?1)", [format!("both {number}")])?;
        first_of_two.sync(&two)?;
    }
    let waiting = next.listed(&two)?;
    says(&waiting, "status", "waiting")?;
    ensure!(waiting["error"].as_str().is_some_and(|why| why.contains("another process")), "it says {waiting}");
    same(world, &url, &second).context("beside a second daemon on one database")?;
    second.execute("INSERT INTO t VALUES ('between')", [])?;
    drop(first_of_two);
    second.execute("INSERT INTO t VALUES ('after')", [])?;
    next.sync(&two)?;
    same(world, &url, &second).context("once the second daemon has taken over")?;
    Ok("one replica: the first is fenced; one database: the second waits, and takes over".to_owned())
}
