//! A restore that nobody waits for any more publishes nothing, unless it has begun to; then it is carried to its end.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use litestream_fixtures::db::sha256_file;
use litestream_fixtures::golden::{self, Golden};
use litestream_hydrate::{Check, Error, Publishing, RestoreOptions, legacy, restore};
use litestream_storage::file::FileBackend;
use litestream_storage::{Replica, RetryPolicy};

/// Restores a golden replica, whichever Litestream wrote it.
async fn restore_any(golden: &Golden, path: &Path, options: &RestoreOptions) -> Result<(), Error> {
    let replica = Replica::new(FileBackend::new(golden.replica()).into(), RetryPolicy::default());
    if golden.expected.v03.is_some() {
        let found = legacy::listing(&replica).await?;
        return legacy::restore(&replica, &found, None, path, options).await.map(|_| ());
    }
    restore(&replica, path, options).await.map(|_| ())
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn names(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_given_up_during_its_check_publishes_nothing() {
    for name in ["page-size-4096", "v03"] {
        let (golden, folder) = (golden::golden(name), tempfile::tempdir().unwrap());
        let path = folder.path().join("db");
        let (checking, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let (go_on, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let check: Arc<Check> = Arc::new(move |_| {
            checking.send(()).unwrap();
            wait.lock().unwrap().recv_timeout(Duration::from_secs(20)).map_err(|error| error.to_string())
        });
        let weak = Arc::downgrade(&check);
        let publishing = Publishing::default();
        let options =
            RestoreOptions { check: Some(check), publishing: publishing.clone(), ..RestoreOptions::default() };
        tokio::select! {
            outcome = restore_any(&golden, &path, &options) => panic!("{name}: {outcome:?}"),
            _ = begun.recv() => {}
        }
        drop(options);
        assert_eq!(names(folder.path()), [] as [&str; 0], "{name}: the temporary file goes at once");
        go_on.send(()).unwrap();
        wait_until("the check ends", || weak.strong_count() == 0).await;
        assert!(!publishing.has_begun());
        assert_eq!(names(folder.path()), [] as [&str; 0], "{name}: a cancelled restore has published its database");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_given_up_while_it_publishes_is_carried_to_its_end() {
    let golden = golden::golden("page-size-4096");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let publishing = Publishing::default();
    let options = RestoreOptions { publishing: publishing.clone(), ..RestoreOptions::default() };
    tokio::select! {
        biased;
        outcome = restore_any(&golden, &path, &options) => outcome.unwrap(),
        // Looked at whenever the restore has to wait.
        () = std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            if publishing.has_begun() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        }) => {}
    }
    wait_until("the database is put in place", || names(folder.path()) == ["db"]).await;
    assert_eq!(Some(sha256_file(&path).unwrap()), golden.expected.latest().unwrap().sha256);
}
