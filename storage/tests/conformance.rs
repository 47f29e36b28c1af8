//! Every store keeps the same promises.
#![allow(missing_docs)]

use litestream_storage::conformance::check;
use litestream_storage::file::FileBackend;
use litestream_storage::memory::MemoryBackend;

#[tokio::test]
async fn memory_conforms() {
    check(MemoryBackend::new("conformance").into()).await;
}

#[tokio::test]
async fn memory_with_tiny_pages_conforms() {
    check(MemoryBackend::with_page("conformance", 2).into()).await;
}

#[tokio::test]
async fn files_conform() {
    let folder = tempfile::tempdir().unwrap();
    check(FileBackend::new(folder.path().join("a/b")).into()).await;
    let left: Vec<_> = std::fs::read_dir(folder.path().join("a/b/ltx/0")).unwrap().collect();
    assert!(left.iter().flatten().all(|entry| !entry.file_name().to_string_lossy().contains("tmp")), "{left:?}");
}
