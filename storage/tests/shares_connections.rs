//! Replicas in one bucket share connections and nothing else; where anything but the path differs, not even those.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use litestream_fixtures::s3::{Down, Operation, S3Options, S3Server};
use litestream_storage::config::ReplicaConfig;
use litestream_storage::{Body, Error, Level, Replica, RetryPolicy, Stores};
use ltx::{FileName, Timestamp, Txid};
use tokio::net::{TcpListener, TcpStream};

const NAME: FileName = FileName::new(Txid(1), Txid(1));

fn server() -> S3Server {
    let server = S3Server::start(S3Options::default()).unwrap();
    server.create_bucket("bkt");
    server.create_bucket("other");
    server
}

/// Passes on what comes to it, and counts the connections.
struct Counter {
    endpoint: String,
    connections: Arc<AtomicU64>,
}

impl Counter {
    async fn before(server: &S3Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let target = server.endpoint().trim_start_matches("http://").to_owned();
        let connections = Arc::new(AtomicU64::new(0));
        let counter = connections.clone();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::Relaxed);
                let mut store = TcpStream::connect(&target).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut store).await });
            }
        });
        Self { endpoint, connections }
    }

    /// How many there were since this was last asked.
    fn new_ones(&self) -> u64 {
        self.connections.swap(0, Ordering::Relaxed)
    }
}

fn config(server: &S3Server, endpoint: &str, place: &str) -> ReplicaConfig {
    let mut config = ReplicaConfig::from_url(&format!("s3://{place}?endpoint={endpoint}")).unwrap();
    config.set("access-key-id", server.access_key()).unwrap();
    config.set("secret-access-key", server.secret_key()).unwrap();
    config
}

fn with(mut config: ReplicaConfig, key: &str, value: &str) -> ReplicaConfig {
    config.set(key, value).unwrap();
    config
}

async fn look(replica: &Replica) -> Result<usize, Error> {
    Ok(replica.level(Level::ZERO, Txid::ZERO).await?.len())
}

async fn put(replica: &Replica, text: &'static str) {
    replica.put_file(Level::ZERO, NAME, Body::Bytes(text.into()), Timestamp(7)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_replicas_of_a_bucket_are_asked_over_one_connection() {
    let server = server();
    let counter = Counter::before(&server).await;
    let stores = Stores::new(RetryPolicy::default());
    let place = |n: u32| config(&server, &counter.endpoint, &format!("bkt/databases/{n}"));
    for n in 0..40 {
        look(&stores.open(&place(n)).await.unwrap()).await.unwrap();
    }
    assert_eq!(counter.new_ones(), 1);
    assert_eq!(server.stats().total, 40);
    for n in 0..3 {
        look(&litestream_storage::open(&place(n), RetryPolicy::default()).await.unwrap()).await.unwrap();
    }
    assert_eq!(counter.new_ones(), 3, "each on its own takes one of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_are_written_in_another_way_share_connections_too() {
    let server = server();
    let counter = Counter::before(&server).await;
    let stores = Stores::new(RetryPolicy::default());
    for path in ["plain", "/leading", "trailing/", "/both/", "/"] {
        let config = with(config(&server, &counter.endpoint, "bkt"), "path", path);
        look(&stores.open(&config).await.unwrap()).await.unwrap();
        // As for the databases of a watched folder.
        look(&stores.open(&config.join("a.db")).await.unwrap()).await.unwrap();
    }
    // Up to four places are looked in side by side.
    let most = counter.new_ones();
    assert!(most <= 4, "{most} connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_replica_keeps_to_its_own_folder_and_counts_for_itself() {
    let server = server();
    let stores = Stores::new(RetryPolicy::default());
    let open = async |place: &str| stores.open(&config(&server, &server.endpoint(), place)).await.unwrap();
    let (root, a, b) = (open("bkt").await, open("bkt/a").await, open("bkt/deep/b").await);
    put(&a, "a").await;
    put(&b, "b").await;
    put(&root, "root").await;
    let keys = ["", "a/", "deep/b/"].map(|folder| format!("{folder}0000/{NAME}"));
    assert_eq!(server.keys("bkt"), keys);
    for ((replica, key), text) in [&root, &a, &b].into_iter().zip(keys).zip(["root", "a", "b"]) {
        let files = replica.level(Level::ZERO, Txid::ZERO).await.unwrap();
        assert_eq!(files.iter().map(|file| file.key()).collect::<Vec<_>>(), [&key]);
        assert_eq!(replica.get_file(&files[0]).await.unwrap(), text);
        let stats = replica.stats();
        assert_eq!((stats.puts, stats.lists, stats.gets), (1, 1, 1), "{key}");
    }
    let urls = [&root, &a, &b].map(|replica| replica.url().split('?').next().unwrap().to_owned());
    assert_eq!(urls, ["s3://bkt", "s3://bkt/a", "s3://bkt/deep/b"]);
    assert_eq!(b.side_key("lease"), "deep/b/lease");
    let error = b.head("deep/b/nothing").await.unwrap_err().to_string();
    assert!(error.contains("s3://bkt/deep/b"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_looks_in_the_other_places_of_its_own_path_and_of_no_other() {
    let server = server();
    for (folder, txid) in [("/lead/", 1), ("/", 2), ("./", 3)] {
        server.put_object("bkt", &format!("{folder}0000/{}", FileName::new(Txid(txid), Txid(txid))), "x", &[]);
    }
    let stores = Stores::new(RetryPolicy::default());
    let counts = async |path: &str| {
        let config = config(&server, &server.endpoint(), "bkt");
        let config = if path.is_empty() { config } else { with(config, "path", path) };
        look(&stores.open(&config).await.unwrap()).await.unwrap()
    };
    // Whoever comes first, and whoever comes after somebody else.
    for _ in 0..2 {
        assert_eq!(counts("/lead").await, 1);
        assert_eq!(counts("lead").await, 0);
        assert_eq!(counts("").await, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_one_replica_holds_for_no_other() {
    let server = server();
    let counter = Counter::before(&server).await;
    let stores = Stores::new(RetryPolicy::default());
    let plain = config(&server, &counter.endpoint, "bkt/db");
    look(&stores.open(&plain).await.unwrap()).await.unwrap();
    assert_eq!(counter.new_ones(), 1);

    let other = [
        with(plain.clone(), "secret-access-key", "wrong"),
        with(plain.clone(), "access-key-id", "somebody"),
        with(plain.clone(), "region", "eu-west-1"),
        with(plain.clone(), "part-size", "6MiB"),
        config(&server, &counter.endpoint, "other/db"),
    ];
    for (n, config) in other.iter().enumerate() {
        let outcome = look(&stores.open(config).await.unwrap()).await;
        match outcome {
            Err(error) => assert!(n < 2 && matches!(error, Error::Denied { .. }), "{n}: {error}"),
            Ok(files) => assert!(n >= 2 && files == 0, "{n}"),
        }
        assert_eq!(counter.new_ones(), 1, "{n} has a connection of its own");
        look(&stores.open(&plain).await.unwrap()).await.unwrap();
        assert_eq!(counter.new_ones(), 0, "and takes none from the first one");
    }

    let elsewhere = Counter::before(&server).await;
    look(&stores.open(&config(&server, &elsewhere.endpoint, "bkt/db")).await.unwrap()).await.unwrap();
    assert_eq!((counter.new_ones(), elsewhere.new_ones()), (0, 1), "another endpoint");
    assert_eq!(server.requests().iter().filter(|request| request.bucket == "other").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_that_come_first_do_not_spoil_the_right_ones() {
    let server = server();
    let stores = Stores::new(RetryPolicy::default());
    let right = config(&server, &server.endpoint(), "bkt/right");
    let wrong = with(config(&server, &server.endpoint(), "bkt/wrong"), "secret-access-key", "wrong");
    let wrong = stores.open(&wrong).await.unwrap();
    assert!(matches!(look(&wrong).await, Err(Error::Denied { .. })));
    let right = stores.open(&right).await.unwrap();
    put(&right, "right").await;
    assert!(matches!(look(&wrong).await, Err(Error::Denied { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_work_is_not_remembered() {
    let server = server();
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    let stores = Stores::new(RetryPolicy::default());
    let config = with(config(&server, &server.endpoint(), "bkt/db"), "sse-customer-key-path", key.to_str().unwrap());
    let error = stores.open(&config).await.unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    std::fs::write(&key, "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n").unwrap();
    stores.open(&config).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_are_as_patient_as_was_said() {
    let server = server();
    let policy = RetryPolicy { attempts: 3, backoff: Duration::from_millis(1), ..RetryPolicy::default() };
    let stores = Stores::new(policy);
    let open = async |place: &str| stores.open(&config(&server, &server.endpoint(), place)).await.unwrap();
    let replicas = [open("bkt/a").await, open("bkt/b").await, open("other/a").await];
    server.set_down(Some(Down::Refuse)).unwrap();
    for replica in &replicas {
        let error = look(replica).await.unwrap_err();
        assert!(matches!(&error, Error::Unavailable { attempts: 3, url, .. } if url == replica.url()), "{error}");
    }
    server.set_down(None).unwrap();
    for replica in &replicas {
        assert_eq!(look(replica).await.unwrap(), 0, "up again");
        assert_eq!(replica.stats().retries, 2);
    }
    assert_eq!(server.stats().count(Operation::ListObjectsV2), 3);
}

#[tokio::test]
async fn folders_are_opened_too() {
    let folder = tempfile::tempdir().unwrap();
    let stores = Stores::new(RetryPolicy::default());
    for place in ["a", "b"] {
        let url = format!("file://{}", folder.path().join(place).display());
        put(&stores.open(&ReplicaConfig::from_url(&url).unwrap()).await.unwrap(), "text").await;
        assert!(folder.path().join(place).join("ltx/0").join(NAME.to_string()).exists());
    }
}
