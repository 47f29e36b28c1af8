//! What keeps a database from being captured is noticed, and said.

use std::sync::atomic::Ordering;

use litestream_replicate::{Capture, Error};

use crate::common::{World, beside, insert};
use crate::processes::{Process, wait_for};

#[test]
fn who_holds_the_database_exclusively() {
    let (mut world, database) = World::with_database(4096);
    insert(&database, 1, 1);
    drop(database);
    let application = Process::start("exclusive", &world.path);
    let mut settings = world.settings();
    settings.patience = std::time::Duration::ZERO;
    let mut said = None;
    wait_for("it to take the database", || {
        match Capture::start(settings.clone(), world.clock(), &mut world.replica) {
            Err(error @ Error::Exclusive { .. }) => said = Some(error.to_string()),
            Err(error) => assert!(error.is_busy() || matches!(error, Error::Unsettled { .. }), "{error}"),
            Ok(_) => std::fs::remove_dir_all(world.own("")).unwrap(),
        }
        said.is_some()
    });
    let (pid, path) = (application.id(), world.path.display());
    let expected =
        format!("PID {pid} holds {path} exclusively (locking_mode=EXCLUSIVE); replication waits until it is NORMAL");
    assert_eq!(said.unwrap(), expected);
    drop(application);
    let database = world.connect();
    let mut capture = world.start();
    world.pass(&mut capture, &database);
}

#[test]
fn files_that_were_deleted_or_replaced() {
    for name in ["", "-wal", "-shm"] {
        for replaced in [false, true] {
            let (mut world, database) = World::with_database(4096);
            let mut capture = world.start();
            insert(&database, 1, 1);
            world.pass(&mut capture, &database);
            let path = beside(&world.path, name);
            let aside = beside(&path, "-aside");
            std::fs::rename(&path, &aside).unwrap();
            if replaced {
                crate::common::write(&path, b"");
            }
            assert_eq!(capture.pass().unwrap(), [], "it is looked at once a second");
            world.time.fetch_add(1_000, Ordering::Relaxed);
            for _ in 0..2 {
                let error = capture.pass().unwrap_err();
                let path = path.display();
                let expected = match error {
                    Error::Replaced(_) if name.is_empty() => {
                        format!("{path}: database file was replaced (changed outside SQLite); new snapshot")
                    }
                    Error::Deleted(_) if !name.is_empty() => format!(
                        "{path} was deleted while in use; committed data may be lost. Restart the application; new snapshot"
                    ),
                    error => panic!("{error}"),
                };
                assert_eq!(error.to_string(), expected);
            }
            // Put back as it was, it is as it was.
            std::fs::rename(&aside, &path).unwrap();
            world.pass(&mut capture, &database);
        }
    }
}
