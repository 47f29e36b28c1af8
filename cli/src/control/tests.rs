//! The socket as clients see it: ours, and such as write their own requests.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use litestream_config::{Config, DbConfig, DbSettings, SocketConfig};
use litestream_replicate::daemon::{ControlError, Daemon, Options, Spec, Synced, Target};
use litestream_storage::Stores;
use litestream_storage::config::ReplicaConfig;
use ltx::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Host;
use super::client::{Client, Unanswered};
use super::listener::listen;
use super::server::Server;
use super::wire::{DatabaseAnswer, DatabaseRequest, Info, List, RegisterRequest, Seconds};
use crate::commands::replicate::running::Running;

/// A process that replicates what it is told.
pub(crate) struct Process {
    daemon: Daemon,
    stores: Stores,
    started: jiff::Timestamp,
}

impl Host for Process {
    fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    fn stores(&self) -> &Stores {
        &self.stores
    }

    fn started(&self) -> jiff::Timestamp {
        self.started
    }

    async fn spec(&self, path: &Path, replica_url: Option<&str>) -> anyhow::Result<(DbConfig, Spec)> {
        let Some(url) = replica_url else { bail!("{} is not in the configuration", path.display()) };
        let replica = self.stores.open(&ReplicaConfig::from_url(url)?).await?;
        let settings = litestream_replicate::Settings::new(path);
        let spec = Spec { settings, replicas: vec![Target::new(replica, "file")], schedule: None };
        let meta_path = litestream_config::default_meta_path(path);
        let (path, settings, replicas) = (path.to_owned(), DbSettings::default(), Vec::new());
        Ok((DbConfig { path, meta_path, settings, replicas }, spec))
    }

    fn register(&self, _: DbConfig, spec: Spec) -> Result<bool, String> {
        Ok(self.daemon.register(spec))
    }

    async fn unregister(&self, path: &Path, patience: Duration) -> Result<Synced, ControlError> {
        self.daemon.unregister(path, patience).await
    }
}

impl Process {
    pub(crate) fn new() -> Arc<Self> {
        let clock = Arc::new(|| Timestamp(jiff::Timestamp::now().as_millisecond()));
        let daemon = Daemon::new(Options::new(clock, "test"));
        Arc::new(Self { daemon, stores: Stores::default(), started: jiff::Timestamp::now() })
    }
}

struct Place {
    folder: tempfile::TempDir,
    server: Server,
    client: Client,
}

async fn begin() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let config = SocketConfig { enabled: true, path: folder.path().join("control.sock"), permissions: 0o600 };
    let server = Server::start(listen(&config).await.unwrap(), Process::new());
    let client = Client::at(&config.path, Duration::from_secs(60));
    Place { folder, server, client }
}

/// A request as `curl` would make it.
async fn raw(place: &Place, request: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(place.folder.path().join("control.sock")).await.unwrap();
    let length = body.len();
    let text = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_litestreams_answers() {
    let place = begin().await;
    for path in ["/start", "/stop", "/sync", "/register", "/unregister"] {
        let request = format!("POST {path}");
        assert_eq!(raw(&place, &request, "{}").await, (400, json!({"error": "path required"})), "{path}");
        let (status, answer) = raw(&place, &request, "garbage").await;
        assert_eq!((status, &answer["error"]), (400, &json!("invalid request body")), "{path}");
        assert!(answer["details"].is_string(), "{answer}");
        assert_eq!(raw(&place, &format!("GET {path}"), "").await.0, 405);
    }
    let (status, answer) = raw(&place, "POST /register", "{\"path\":\"/x.db\"}").await;
    assert_eq!((status, &answer["error"]), (400, &json!("replica_url required")));
    let (status, answer) = raw(&place, "POST /register", "{\"path\":\"/x.db\",\"replica_url\":\"xx://\"}").await;
    assert!(status == 400 && answer["error"].as_str().unwrap().starts_with("invalid replica url: "), "{answer}");
    let (status, answer) = raw(&place, "GET /txid", "").await;
    assert_eq!((status, answer), (400, json!({"error": "path required"})));
    assert_eq!(raw(&place, "GET /nothing", "").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_registered_is_not_found_and_unregistered_already() {
    let place = begin().await;
    for request in ["POST /start", "POST /stop", "POST /sync", "GET /txid?path=/no.db"] {
        let (status, answer) = raw(&place, request, "{\"path\":\"/no.db\"}").await;
        assert_eq!((status, &answer["error"]), (404, &json!("database not found: /no.db")), "{request}");
    }
    let request = DatabaseRequest { path: "/no.db".to_owned(), timeout: None };
    let answer: DatabaseAnswer = place.client.post("/unregister", &request).await.unwrap();
    assert_eq!((&*answer.status, answer.txid), ("already_unregistered", Some(0)));
    let Err(Unanswered::Refused(error)) = place.client.post::<DatabaseAnswer>("/stop", &request).await else {
        panic!("it was stopped")
    };
    assert!(error.to_string().starts_with("database not found: /no.db: "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_tells_of_itself_until_it_ends() {
    let place = begin().await;
    let info: Info = place.client.get("/info").await.unwrap();
    assert_eq!((info.pid, info.database_count), (std::process::id(), 0));
    assert!((0..60).contains(&info.uptime_seconds));
    let list: List = place.client.get("/list").await.unwrap();
    assert!(list.databases.is_empty());
    place.server.close().await;
    let Err(Unanswered::NoDaemon(error)) = place.client.get::<Info>("/info").await else { panic!("it answers") };
    let text = error.to_string();
    assert!(text.contains("control.sock") && text.contains("socket: {enabled: true}"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_registered_synced_stopped_started_and_let_go() {
    let place = begin().await;
    let path = place.folder.path().join("my.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    connection.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
    let (name, url) = (path.to_str().unwrap(), format!("file://{}/replica", place.folder.path().display()));
    let ask = async |request: &str, more: Value| {
        let mut body = json!({"path": name});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        raw(&place, request, &body.to_string()).await
    };
    let answered = |answer: &(u16, Value)| (answer.0, answer.1["status"].as_str().unwrap_or_default().to_owned());

    let register = json!({"replica_url": url});
    assert_eq!(answered(&ask("POST /register", register.clone()).await), (200, "registered".to_owned()));
    assert_eq!(answered(&ask("POST /register", register).await), (200, "already_registered".to_owned()));
    let (status, answer) = ask("POST /register", json!({"replica_url": format!("{url}2")})).await;
    assert_eq!(status, 409, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("replica already"), "{answer}");
    assert_eq!(ask("POST /start", json!({})).await.1["status"], "already_running");

    let wait = json!({"wait": true, "timeout": "1m"});
    let (status, answer) = ask("POST /sync", wait.clone()).await;
    assert_eq!((status, &answer["txid"]), (200, &answer["replicated_txid"]), "{answer}");
    connection.execute_batch("INSERT INTO t VALUES (2)").unwrap();
    let (_, next) = ask("POST /sync", wait.clone()).await;
    assert_eq!(next["status"], "synced");
    assert!(next["txid"].as_u64() > answer["txid"].as_u64() && next["replicated_txid"] == next["txid"], "{next}");
    let (_, again) = ask("POST /sync", wait).await;
    assert_eq!((&again["status"], &again["txid"]), (&json!("no_change"), &next["txid"]));
    let txid = format!("GET /txid?path={}", urlencoding::encode(name));
    assert_eq!(raw(&place, &txid, "").await, (200, json!({"txid": next["txid"]})));

    let list: List = place.client.get(&format!("/list?path={name}")).await.unwrap();
    let [database] = &list.databases[..] else { panic!("{list:?}") };
    assert_eq!((&*database.path, &*database.status), (name, "replicating"));
    assert!(database.last_sync_at.is_some() && database.replicas[0].url == url, "{database:?}");
    assert_eq!(database.replicas[0].txid, database.txid);

    let (_, stopped) = ask("POST /stop", json!({})).await;
    assert_eq!((&stopped["status"], &stopped["txid"]), (&json!("stopped"), &next["txid"]));
    assert_eq!(ask("POST /stop", json!({})).await.1["status"], "already_stopped");
    let (status, answer) = ask("POST /sync", json!({})).await;
    assert_eq!((status, &answer["error"]), (409, &json!(format!("database not open: {name}"))));
    assert_eq!(ask("POST /start", json!({})).await.1["status"], "started");
    let (_, gone) = ask("POST /unregister", json!({"timeout": 60})).await;
    assert_eq!(gone["status"], "unregistered", "{gone}");
    assert_eq!(ask("POST /unregister", json!({})).await.1["status"], "already_unregistered");
    assert_eq!(ask("POST /stop", json!({})).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_registered_is_known_to_the_command_that_replicates() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let text = format!(
        "socket: {{enabled: true, path: {}}}\ndbs:\n  - {{path: {}, replica: {{url: 'file://{}'}}}}\n",
        at("control.sock"),
        at("known.db"),
        at("replica")
    );
    let config = Config::parse(&text, Path::new("litestream.yml"), false, &|_| None).unwrap();
    let listening = listen(&config.socket).await.unwrap();
    let running = Arc::new(Running::new(config, &litestream_storage::RetryPolicy::default()));
    let server = Server::start(listening, running.clone());

    let client = Client::at(&folder.path().join("control.sock"), Duration::from_secs(60));
    let info: Info = client.get("/info").await.unwrap();
    assert_eq!((info.database_count, &*info.started_at), (0, &*running.started.to_string()));
    // One that the configuration knows needs no address; any other does.
    let mut request = RegisterRequest { path: at("known.db"), replica_url: None };
    let answer: DatabaseAnswer = client.post("/register", &request).await.unwrap();
    assert_eq!(answer.status, "registered");
    assert!(running.database(Path::new(&request.path)).is_some());
    request.path = at("other.db");
    let refused: anyhow::Error = client.post::<DatabaseAnswer>("/register", &request).await.unwrap_err().into();
    assert!(refused.to_string().contains("replica_url required"), "{refused}");
    request.replica_url = Some(format!("file://{}", at("elsewhere")));
    client.post::<DatabaseAnswer>("/register", &request).await.unwrap();
    let list: List = client.get("/list").await.unwrap();
    let replicas: Vec<_> = list.databases.iter().flat_map(|database| &database.replicas).collect();
    assert_eq!(replicas.iter().map(|replica| &*replica.kind).collect::<Vec<_>>(), ["file", "file"]);
    let path = at("known.db");
    let request = DatabaseRequest { path: path.clone(), timeout: Some(Seconds(Duration::from_millis(50))) };
    let _ = client.post::<DatabaseAnswer>("/unregister", &request).await;
    assert!(running.database(Path::new(&path)).is_none());

    server.close().await;
    assert!(!folder.path().join("control.sock").exists());
    assert!(client.get::<Info>("/info").await.is_err());
}
