//! A parked database: nothing is held. What came meanwhile is found, with a snapshot only where nothing less is proven.

use litestream_replicate::{Capture, NotNow, Parked, Refused, Resting};

use crate::application::{open_files, world};
use crate::common::{World, connect, frames};
use crate::obedient::Application;
use crate::processes::wait_for;

/// Parks, or is refused to for another reason than that the files are not old enough.
fn park(resting: Resting) -> Result<Parked, Box<Refused<Resting, NotNow>>> {
    let mut parked = Some(resting.park());
    wait_for("files to be old", || {
        if let Some(Err(refused)) = parked.take_if(|parked| is_recent(parked)) {
            parked = Some(refused.unharmed.park());
        }
        !parked.as_ref().is_some_and(is_recent)
    });
    parked.unwrap()
}

fn is_recent(parked: &Result<Parked, Box<Refused<Resting, NotNow>>>) -> bool {
    parked.as_ref().is_err_and(|refused| matches!(refused.why, NotNow::Recent))
}

/// A world whose database rests; with its log as it is, or emptied.
fn rests(emptied: bool) -> (World, Resting) {
    let mut world = world();
    let mut settings = world.settings();
    settings.alone_in_process = true;
    let capture = world.start_with(settings);
    let mut resting = world.rest(capture);
    if emptied {
        let mut application = Application::open(&world.path);
        assert!(application.checkpoint("TRUNCATE"));
        application.kill();
        let capture = world.wake(resting);
        resting = world.rest(capture);
        assert_eq!(frames(&world.wal()), 0);
    }
    (world, resting)
}

/// Wakes; says whether that took a snapshot.
fn wake(world: &mut World, parked: &Parked) -> (Capture, bool) {
    let (capture, staged) = parked.wake(world.clock(), &mut world.replica).unwrap();
    world.replica.take(staged);
    world.replica.check(&connect(&world.path));
    let anew = capture.snapshots() > 0;
    (capture, anew)
}

#[test]
fn what_was_written_while_it_was_parked_is_found() {
    type Case = (bool, fn(&World), bool, bool);
    // Whether the log was empty; what happens; whether the files show it; whether it takes a snapshot.
    let cases: [Case; 12] = [
        (false, |_| {}, false, false),
        (true, |_| {}, false, false),
        // Only read, and killed. SQLite gives the log to the database's owner if root opens it, which shows.
        (false, |world| Application::open(&world.path).kill(), rustix::process::geteuid().is_root(), false),
        // Only read, and closed. Who comes first does not know what was copied already: so the last to leave copies all of it once more.
        (false, |world| Application::open(&world.path).close(), true, true),
        // With nothing to copy, the log is deleted all the same, and the file shows that nothing is missing.
        (true, |world| Application::open(&world.path).close(), true, false),
        // Written, and not copied: whatever log it is, all of it is there.
        (false, |world| Application::open(&world.path).insert(3), true, false),
        (true, |world| Application::open(&world.path).insert(3), true, false),
        (
            true,
            |world| {
                let mut application = Application::open(&world.path);
                application.insert(60);
                application.run("DELETE FROM t WHERE id > 9");
                application.run("VACUUM");
                application.insert(9);
            },
            true,
            false,
        ),
        // Copied, and begun anew: nothing shows what is missing.
        (
            false,
            |world| {
                let mut application = Application::open(&world.path);
                application.insert(3);
                assert!(application.checkpoint("RESTART"));
                application.insert(1);
            },
            true,
            true,
        ),
        (
            false,
            |world| {
                let mut application = Application::open(&world.path);
                application.insert(3);
                application.close();
            },
            true,
            true,
        ),
        (
            true,
            |world| {
                let mut application = Application::open(&world.path);
                application.insert(3);
                assert!(application.checkpoint("TRUNCATE"));
            },
            true,
            true,
        ),
        // The same rows as before, but not the same file.
        (
            true,
            |world| {
                let mut application = Application::open(&world.path);
                application.insert(1);
                application.run("DELETE FROM t WHERE id = (SELECT max(id) FROM t)");
                application.close();
            },
            true,
            true,
        ),
    ];
    let rested: Vec<_> = cases.iter().map(|(emptied, ..)| rests(*emptied)).collect();
    for (number, ((_, happens, changed, anew), (mut world, resting))) in cases.into_iter().zip(rested).enumerate() {
        let parked = park(resting).unwrap();
        assert_eq!(open_files(&world), Vec::<String>::new());
        assert!(!parked.changed().unwrap());
        happens(&world);
        assert_eq!(parked.changed().unwrap(), changed, "case {number}");
        let (mut capture, took) = wake(&mut world, &parked);
        assert_eq!(took, anew, "case {number}");
        Application::open(&world.path).insert(1);
        world.replica.take(capture.pass().unwrap());
        world.replica.check(&connect(&world.path));
    }
}

#[test]
fn it_is_not_parked_before_its_files_are_old_or_with_something_new_in_them() {
    let (mut world, resting) = rests(false);
    Application::open(&world.path).insert(1);
    let refused = resting.park().unwrap_err();
    assert!(matches!(refused.why, NotNow::Recent), "{}", refused.why);
    let refused = park(refused.unharmed).unwrap_err();
    assert!(matches!(refused.why, NotNow::Uncaptured), "{}", refused.why);
    world.wake(refused.unharmed);
}
