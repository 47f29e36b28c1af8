//! A database file that somebody changes past SQLite while nobody looks: nothing that was noted of it, and nothing that was held, may make one
//! database out of two.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use litestream_replicate::Resting;
use rusqlite::Connection;

use crate::application::{wake, world};
use crate::common::{World, connect};
use crate::obedient::Application;
use crate::processes::wait_for;

/// A database that rests, with an empty log and no application, and a copy of how it was before its last transactions.
fn rests() -> (World, Resting, PathBuf) {
    let mut world = world();
    let copy = world.path.with_file_name("copy");
    let mut application = Application::open(&world.path);
    application.insert(250);
    assert!(application.checkpoint("TRUNCATE"));
    cp(&world.path, &copy);
    application.run("UPDATE t SET body = randomblob(2000)");
    assert!(application.checkpoint("TRUNCATE"));
    let mut settings = world.settings();
    settings.alone_in_process = true;
    let capture = world.start_with(settings);
    application.close();
    let resting = world.rest(capture);
    (world, resting, copy)
}

/// By another process: whoever closes a descriptor of a database here would take our locks away.
fn cp(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

/// How old a file's last change is, its names included.
#[expect(clippy::disallowed_methods, reason = "files have the machine's time")]
fn age(path: &Path) -> Duration {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(path).unwrap();
    let changed = SystemTime::UNIX_EPOCH + Duration::new(file.ctime() as u64, file.ctime_nsec() as u32);
    SystemTime::now().duration_since(changed).unwrap_or_default()
}

/// Starts again. All of the database must have been captured, as it is now.
fn captured_anew(world: &mut World) {
    let capture = world.start();
    assert_eq!(capture.snapshots(), 1);
    world.replica.check(&connect(&world.path));
}

#[test]
fn while_it_rests_and_an_application_then_begins_the_log_anew() {
    let (mut world, resting, copy) = rests();
    cp(&copy, &world.path);
    let mut application = Application::open(&world.path);
    application.insert(1);
    let before = resting.snapshots();
    let mut capture = wake(resting, &world);
    let database = connect(&world.path);
    for rows in [0, 1] {
        application.insert(rows);
        world.pass(&mut capture, &database);
        assert_eq!(capture.snapshots(), before + 1);
    }
    drop(capture);
    application.close();
}

#[test]
fn while_it_rests_and_is_then_parked_or_remembered() {
    let (mut world, mut resting, copy) = rests();
    cp(&copy, &world.path);
    wait_for("the file to be old", || age(&world.path) > Duration::from_millis(2_500));
    assert!(!resting.remember().unwrap());
    let resting = resting.park().unwrap_err().unharmed;
    drop(resting);
    captured_anew(&mut world);
}

#[test]
fn another_file_under_its_name_is_not_remembered_as_if_it_were_it() {
    let (mut world, mut resting, copy) = rests();
    std::fs::rename(&copy, &world.path).unwrap();
    wait_for("the file to be old", || age(&world.path) > Duration::from_millis(2_500));
    assert!(!resting.remember().unwrap());
    drop(resting);
    captured_anew(&mut world);
}

#[test]
fn when_it_was_remembered_and_nobody_was_there() {
    for what in ["overwritten", "replaced", "the machine was started again", "nothing"] {
        let (mut world, mut resting, copy) = rests();
        wait_for("it to be remembered", || resting.remember().unwrap());
        resting.stop(world.clock()).unwrap();
        match what {
            "overwritten" => cp(&copy, &world.path),
            "replaced" => std::fs::rename(&copy, &world.path).unwrap(),
            "the machine was started again" => {
                let state = String::from_utf8(crate::common::read(&world.own("state"))).unwrap();
                let boot = state.split("\"boot\": \"").nth(1).unwrap().split('"').next().unwrap();
                crate::common::write(&world.own("state"), state.replace(boot, &"0".repeat(32)).as_bytes());
            }
            _ => {}
        }
        let mut application = Application::open(&world.path);
        application.insert(1);
        let capture = world.start();
        assert_eq!(capture.snapshots(), u32::from(what != "nothing"), "{what}");
        world.replica.check(&connect(&world.path));
        drop(capture);
        application.close();
    }
}

/// The log would prove that nothing came after; but not of this file.
#[test]
fn just_before_it_is_stopped_with_a_log() {
    for rests in [true, false] {
        let mut world = world();
        let copy = world.path.with_file_name("copy");
        let mut application = Application::open(&world.path);
        application.insert(250);
        assert!(application.checkpoint("TRUNCATE"));
        cp(&world.path, &copy);
        application.run("UPDATE t SET body = randomblob(2000)");
        let mut capture = world.start();
        if rests {
            let resting = world.rest(capture);
            cp(&copy, &world.path);
            world.replica.take(resting.stop(world.clock()).unwrap());
        } else {
            world.replica.take(capture.checkpoint_now().unwrap());
            world.time.fetch_add(1_000, std::sync::atomic::Ordering::Relaxed);
            world.replica.take(capture.pass().unwrap());
            cp(&copy, &world.path);
            world.replica.take(capture.stop().unwrap());
        }
        application.kill();
        captured_anew(&mut world);
    }
}

/// Who may read a file, and under how many names it lies, is no change of it.
#[test]
fn a_file_that_only_got_another_mode_is_still_the_same() {
    use std::os::unix::fs::PermissionsExt;
    let (mut world, resting, _) = rests();
    std::fs::set_permissions(&world.path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::hard_link(&world.path, world.path.with_file_name("link")).unwrap();
    let database: Connection = connect(&world.path);
    let before = resting.snapshots();
    let capture = world.wake(resting);
    assert_eq!(capture.snapshots(), before);
    world.replica.check(&database);
}
