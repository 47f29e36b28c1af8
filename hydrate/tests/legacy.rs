//! A replica that Litestream 0.3 wrote restores to the bytes that real Litestream restores it to, or not at all.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use litestream_fixtures::db::sha256_file;
use litestream_fixtures::golden::{self, ExpectedV03, Golden, set_mtime_ms};
use litestream_hydrate::legacy::{self, LtxTimes, RestoredLegacy, prefers_legacy};
use litestream_hydrate::{Error, Progress, RestoreOptions};
use litestream_pageindex::Target;
use litestream_storage::file::FileBackend;
use litestream_storage::{Replica, RetryPolicy};
use ltx::{Timestamp, Txid};
use tempfile::TempDir;

/// The newest generation of the fixture; its newest snapshot has index 2, and logs of index 2, 3 and 4 follow.
const WAL: &str = "generations/a96a1987f6e3f8d6/wal";

/// A copy of the fixture that a test may change, and a folder to restore to.
struct Copy {
    golden: Golden,
    replica: TempDir,
    output: TempDir,
}

impl Copy {
    fn new() -> Self {
        let (replica, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let golden = golden::golden("v03");
        golden.copy_replica(replica.path()).unwrap();
        Self { golden, replica, output }
    }

    fn expected(&self) -> &ExpectedV03 {
        self.golden.expected.v03.as_ref().unwrap()
    }

    fn hash_at(&self, at_ms: u64) -> Option<&str> {
        self.expected().times.iter().find(|time| time.at_ms == at_ms).unwrap().newest_sha256.as_deref()
    }

    fn path(&self, file: &str) -> PathBuf {
        self.replica.path().join(file)
    }

    /// Writes a file with the time that it, or a file it stands for, had.
    fn write(&self, file: &str, bytes: &[u8], like: &str) {
        fs::write(self.path(file), bytes).unwrap();
        set_mtime_ms(&self.path(file), self.golden.expected.mtimes_ms[like]).unwrap();
    }

    async fn restore(&self, moment: Option<Timestamp>) -> Result<(RestoredLegacy, String), Error> {
        self.restore_with(moment, &RestoreOptions::default()).await
    }

    async fn restore_with(
        &self,
        moment: Option<Timestamp>,
        options: &RestoreOptions,
    ) -> Result<(RestoredLegacy, String), Error> {
        let path = self.output.path().join("db");
        let outcome = restore_from(self.replica.path(), moment, &path, options).await;
        let left = fs::read_dir(self.output.path()).unwrap().count();
        assert_eq!(left, usize::from(outcome.is_ok()), "only a database that was restored may be left");
        let restored = outcome?;
        let hash = sha256_file(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), restored.size);
        fs::remove_file(&path).unwrap();
        Ok((restored, hash))
    }

    async fn refusal(&self, moment: Option<Timestamp>) -> String {
        let error = self.restore(moment).await.unwrap_err();
        assert!(matches!(error, Error::Legacy { .. }), "{error:?}");
        error.to_string()
    }
}

async fn restore_from(
    replica: &Path,
    moment: Option<Timestamp>,
    path: &Path,
    options: &RestoreOptions,
) -> Result<RestoredLegacy, Error> {
    let replica = Replica::new(FileBackend::new(replica).into(), RetryPolicy::default());
    let legacy = legacy::listing(&replica).await?;
    legacy::restore(&replica, &legacy, moment, path, options).await
}

fn at(ms: u64) -> Timestamp {
    Timestamp(ms.cast_signed())
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn decompress(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    lz4_flex::frame::FrameDecoder::new(fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn the_latest_state() {
    let copy = Copy::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let options = RestoreOptions {
        progress: Arc::new({
            let told = told.clone();
            move |progress| told.lock().unwrap().push(progress)
        }),
        ..RestoreOptions::default()
    };
    let (restored, hash) = copy.restore_with(None, &options).await.unwrap();
    assert_eq!(hash, copy.expected().latest_sha256);
    assert_eq!((restored.generation.to_string().as_str(), restored.index), ("a96a1987f6e3f8d6", 4));
    assert_eq!((restored.time, restored.page_size.get(), restored.files), (at(1_795_430_255_109), 4096, 9));
    let told = told.lock().unwrap();
    assert_eq!(told[0], Progress { done: 0, total: restored.bytes });
    assert_eq!(told.last(), Some(&Progress { done: restored.bytes, total: restored.bytes }));
    assert!(told.is_sorted_by_key(|progress| progress.done));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_every_time() {
    let copy = Copy::new();
    for time in &copy.expected().times {
        match &time.newest_sha256 {
            Some(expected) => {
                let (restored, hash) = copy.restore(Some(at(time.at_ms))).await.unwrap();
                assert_eq!(hash, *expected, "at {}", time.at_ms);
                assert!(restored.time <= at(time.at_ms));
            }
            None => {
                let refusal = copy.refusal(Some(at(time.at_ms))).await;
                assert!(
                    refusal.contains("the oldest moment that can be restored is 2026-11-23T10:37:32.451Z"),
                    "{refusal}"
                );
            }
        }
    }
    assert!(copy.expected().times.len() > 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_gives_an_error_or_the_same_database() {
    let copy = Copy::new();
    let mut random = fastrand::Rng::with_seed(3);
    let (mut refused, mut same) = (0, 0);
    let read_for_latest = |file: &str| {
        let name = file.strip_prefix("generations/a96a1987f6e3f8d6/").unwrap_or_default();
        name == "snapshots/00000002.snapshot.lz4" || name.strip_prefix("wal/").is_some_and(|name| name >= "00000002")
    };
    for file in copy.golden.files() {
        let whole = fs::read(copy.path(&file)).unwrap();
        let ends = [0, 5, 11, whole.len() - 8, whole.len() - 1];
        let cuts = ends.map(|end| whole[..end].to_vec());
        let flips: Vec<Vec<u8>> = (0..14)
            .map(|number| {
                let mut flipped = whole.clone();
                // The frame's header first, then anywhere.
                let place = if number < 8 { number } else { random.usize(..whole.len()) };
                flipped[place] ^= 1 << random.u8(..8);
                flipped
            })
            .collect();
        let longer = [[whole.as_slice(), b"\0"].concat(), [whole.as_slice(), &whole].concat()];
        // What a restore of the latest state does not read can be damaged as much as it likes: one sample of that is enough.
        let read = read_for_latest(&file);
        for damaged in longer.into_iter().chain(cuts).chain(flips).take(if read { usize::MAX } else { 1 }) {
            copy.write(&file, &damaged, &file);
            match copy.restore(None).await {
                Ok((_, hash)) => {
                    assert_eq!(hash, copy.expected().latest_sha256, "{file}");
                    same += 1;
                }
                Err(error) => {
                    assert!(matches!(&error, Error::Legacy { key, .. } if key.ends_with(&file)), "{file}: {error:?}");
                    refused += 1;
                }
            }
        }
        copy.write(&file, &whole, &file);
    }
    assert_eq!((refused, same), (9 * 21, 17));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_segment_is_named() {
    for (missing, named) in [
        (vec!["00000003_00001038"], "00000003_00001038"),
        (vec!["00000003_00000000"], "00000003_00000000"),
        (vec!["00000003_00000000", "00000003_00001038", "00000003_0000a110"], "00000003_00000000"),
        (vec!["00000002_00000000", "00000002_00001038", "00000002_0000a110"], "00000002_00000000"),
        (vec!["00000004_00000000"], "00000004_00000000"),
    ] {
        let copy = Copy::new();
        for segment in &missing {
            fs::remove_file(copy.path(&format!("{WAL}/{segment}.wal.lz4"))).unwrap();
        }
        let refusal = copy.refusal(None).await;
        let expected = format!("WAL segment {named} of generation a96a1987f6e3f8d6 is missing");
        assert!(refusal.contains(&expected), "{refusal}");
        // Up to the gap everything is there.
        let before = 1_795_430_253_093;
        let (_, hash) = copy.restore(Some(at(before))).await.unwrap();
        assert_eq!(Some(hash.as_str()), copy.hash_at(before));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_that_are_cut_inside_frames_are_joined() {
    let copy = Copy::new();
    let names =
        ["00000003_00000000", "00000003_00001038", "00000003_0000a110"].map(|name| format!("{WAL}/{name}.wal.lz4"));
    let log: Vec<u8> = names.iter().flat_map(|name| decompress(&copy.path(name))).collect();
    for name in &names {
        fs::remove_file(copy.path(name)).unwrap();
    }
    let mut offset = 0;
    for end in [5, 32, 33, 50, 4152 + 23, 20_000, 20_001, log.len()] {
        // Offsets may have up to 16 digits.
        let name = format!("{WAL}/00000003_{offset:016x}.wal.lz4");
        copy.write(&name, &compress(&log[offset..end]), &names[0]);
        offset = end;
    }
    let (_, hash) = copy.restore(None).await.unwrap();
    assert_eq!(hash, copy.expected().latest_sha256);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_ends_with_its_last_commit() {
    let copy = Copy::new();
    let last = format!("{WAL}/00000004_00001038.wal.lz4");
    let frames = decompress(&copy.path(&last));
    let first_frame_only = copy.hash_at(1_795_430_255_075).map(str::to_owned);
    let mut torn = frames.clone();
    torn[24 + 100] ^= 1;
    let mut other_salt = frames.clone();
    other_salt[8] ^= 1;
    for tail in [&frames[..1], &frames[..24 + 4095], &torn, &other_salt, &[0; 3 * 4120][..]] {
        copy.write(&last, &compress(tail), &last);
        let (_, hash) = copy.restore(None).await.unwrap();
        assert_eq!(Some(hash), first_frame_only);
    }
    // Frames of a transaction whose commit is not there are left out, however many.
    let uncommitted = frames.chunks(4120).position(|frame| frame[4..8] != [0; 4]).unwrap();
    assert!(uncommitted > 0, "the first transaction has several pages");
    copy.write(&last, &compress(&frames[..uncommitted * 4120]), &last);
    assert_eq!(copy.restore(None).await.ok().map(|(_, hash)| hash), first_frame_only);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_log_or_no_snapshot_is_refused() {
    let copy = Copy::new();
    let name = format!("{WAL}/00000004_00000000.wal.lz4");
    let log = decompress(&copy.path(&name));
    fs::remove_file(copy.path(&format!("{WAL}/00000004_00001038.wal.lz4"))).unwrap();
    for (place, problem) in
        [(0, "header of a write-ahead log"), (6, "header of a write-ahead log"), (13, "checksum is wrong")]
    {
        let mut wrong = log.clone();
        wrong[place] ^= 0x40;
        copy.write(&name, &compress(&wrong), &name);
        let refusal = copy.refusal(None).await;
        assert!(refusal.contains(problem) && refusal.contains("00000004_00000000"), "{refusal}");
    }
    copy.write(&name, &compress(&log[..31]), &name);
    assert!(copy.refusal(None).await.contains("too short"));
    copy.write(&name, &compress(b""), &name);
    assert!(copy.refusal(None).await.contains("too short"));
    let snapshot = "generations/a96a1987f6e3f8d6/snapshots/00000002.snapshot.lz4";
    copy.write(snapshot, &compress(b"SQLite format 3\0"), snapshot);
    assert!(copy.refusal(None).await.contains("not a snapshot of an SQLite database"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_many_spans_is_inflated_in_order() {
    let replica = tempfile::tempdir().unwrap();
    let mut database = vec![0; 33 << 20];
    fastrand::Rng::with_seed(1).fill(&mut database);
    database[..18].copy_from_slice(b"SQLite format 3\0\x10\x00");
    let folder = replica.path().join("generations/0123456789abcdef/snapshots");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("0000000a.snapshot.lz4"), compress(&database)).unwrap();
    // Not written by Litestream.
    for stranger in ["0000000b.snapshot", "b.snapshot.lz4", "0000000B.snapshot.lz4", ".0000000b.snapshot.lz4.tmp"] {
        fs::write(folder.join(stranger), b"x").unwrap();
    }
    let path = replica.path().join("out/db");
    let restored = restore_from(replica.path(), None, &path, &RestoreOptions::default()).await.unwrap();
    assert_eq!((restored.index, restored.files, restored.size), (10, 1, 33 << 20));
    assert!(fs::read(&path).unwrap() == database);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_fails_the_check_does_not_appear() {
    let copy = Copy::new();
    let options = RestoreOptions { check: Some(Arc::new(|_| Err("unsound".into()))), ..RestoreOptions::default() };
    let error = copy.restore_with(None, &options).await.unwrap_err();
    assert!(matches!(error, Error::Check(_)), "{error}");
}

#[tokio::test]
async fn nothing_to_restore_is_an_error() {
    let (empty, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let error = restore_from(empty.path(), None, &output.path().join("db"), &RestoreOptions::default()).await;
    assert!(error.unwrap_err().to_string().contains("there is no snapshot"));
    assert_eq!(fs::read_dir(output.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_format_is_chosen_as_real_litestream_does() {
    let copy = Copy::new();
    let replica = Replica::new(FileBackend::new(copy.replica.path()).into(), RetryPolicy::default());
    let found = legacy::listing(&replica).await.unwrap();
    let (file, snapshot) = (1_795_430_255_109, 1_795_430_254_947);
    assert_eq!(found.newest_file_time(), Some(at(file)));
    let newest = |moment| {
        found.newest_snapshot_before(moment).map(|(generation, index, time)| (generation.to_string(), index, time))
    };
    let new = "a96a1987f6e3f8d6".to_owned();
    assert_eq!(newest(None), Some((new.clone(), 2, at(snapshot))));
    assert_eq!(newest(Some(at(snapshot))), Some((new.clone(), 2, at(snapshot))));
    assert_eq!(newest(Some(at(snapshot - 1))), Some((new, 0, at(1_795_430_252_955))));
    assert_eq!(newest(Some(at(1_795_430_252_450))), None);

    let ltx = |newest_file: u64, snapshot: Option<u64>| LtxTimes {
        newest_file: Some(at(newest_file)),
        snapshot: snapshot.map(at),
    };
    let (none, late) = (LtxTimes::default(), Target::Before(at(file + 10)));
    for target in [Target::Latest, late, Target::Before(at(0))] {
        assert!(prefers_legacy(&found, none, target));
        assert!(!prefers_legacy(&legacy::Legacy::default(), none, target));
        assert!(!prefers_legacy(&legacy::Legacy::default(), ltx(1, None), target));
    }
    assert!(!prefers_legacy(&found, none, Target::Txid(Txid(1))));
    // WAL segments count for the latest state.
    assert!(prefers_legacy(&found, ltx(file - 1, None), Target::Latest));
    assert!(!prefers_legacy(&found, ltx(file, None), Target::Latest));
    // Only snapshots count for a time.
    assert!(prefers_legacy(&found, ltx(file + 5, Some(snapshot - 1)), late));
    assert!(!prefers_legacy(&found, ltx(file + 5, Some(snapshot)), late));
    assert!(prefers_legacy(&found, ltx(file + 5, None), late));
    assert!(!prefers_legacy(&found, ltx(file + 5, None), Target::Before(at(1_795_430_252_450))));
}
