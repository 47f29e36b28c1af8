//! `litestream info`, `list`, `start`, `stop`, `sync`, `register`, `unregister`: one request each, and its answer for people or programs.

use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use ltx::Txid;
use serde::Serialize;
use tabled::Tabled;

use super::args::{InfoArgs, ListedArgs, RegisterArgs, SocketArgs, StartArgs, StopArgs, SyncArgs, UnregisterArgs};
use super::client::{Client, Unanswered, absolute};
use super::wire::{
    Database, DatabaseAnswer, DatabaseRequest, Info, List, PATIENCE, RegisterRequest, Seconds, SyncRequest, seconds,
};
use crate::args::Common;
use crate::output;
use crate::place;

/// How long what needs no work may take.
const QUICK: Duration = Duration::from_secs(10);

/// What became of a database. Lines or JSON, with the same names.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    status: String,
    db_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hex")]
    txid: Option<Txid>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hex")]
    replica_txid: Option<Txid>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hex")]
    final_txid: Option<Txid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u128>,
    socket: String,
}

/// A TXID as we show it everywhere; over the socket it is Litestream's plain number.
fn hex<S: serde::Serializer>(txid: &Option<Txid>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&txid.unwrap_or_default())
}

impl Outcome {
    fn new(answer: &DatabaseAnswer, client: &Client) -> Self {
        Self { status: answer.status.clone(), db_path: answer.path.clone(), socket: client.socket(), ..Self::default() }
    }

    fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            return output::json(self);
        }
        let mut lines = vec![format!("status: {}", self.status), format!("db_path: {}", self.db_path)];
        let mut add = |name: &str, value: Option<String>| lines.extend(value.map(|value| format!("{name}: {value}")));
        add("state", self.state.map(str::to_owned));
        add("replica", self.replica.clone());
        add("txid", self.txid.map(|txid| txid.to_string()));
        add("replica_txid", self.replica_txid.map(|txid| txid.to_string()));
        add("final_txid", self.final_txid.map(|txid| txid.to_string()));
        add("duration_ms", self.duration_ms.map(|time| time.to_string()));
        add("socket", Some(self.socket.clone()));
        output::line(&lines.join("\n"))
    }
}

pub(crate) async fn info(common: &Common, args: &InfoArgs) -> anyhow::Result<()> {
    let client = Client::new(common, &args.socket, QUICK)?;
    let info: Info = client.get("/info").await?;
    if args.socket.json {
        return output::json(&info);
    }
    let uptime = Duration::from_secs(info.uptime_seconds.unsigned_abs());
    let mut lines = vec![
        format!("Litestream {}", info.version),
        format!("  PID:        {}", info.pid),
        format!("  Uptime:     {}", litestream_config::units::format_duration(uptime)),
        format!("  Started at: {}", whole_seconds(&info.started_at)),
        format!("  Databases:  {}", info.database_count),
    ];
    lines.extend(info.error_count.map(|count| format!("  In trouble: {count}")));
    lines.extend(info.lag_seconds.map(|lag| format!("  Lag:        {}", seconds(lag))));
    output::line(&lines.join("\n"))
}

#[derive(Tabled)]
struct Row {
    path: String,
    status: String,
    txid: String,
    lag: String,
    #[tabled(rename = "last sync")]
    last_sync: String,
    problem: String,
}

impl Row {
    fn new(database: &Database) -> Self {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        Self {
            path: database.path.clone(),
            status: database.phase.clone().unwrap_or_else(|| database.status.clone()),
            txid: or_dash(database.txid.clone()),
            lag: or_dash(database.lag_seconds.map(seconds)),
            last_sync: database.last_sync_at.as_deref().map_or_else(|| "never".to_owned(), whole_seconds),
            problem: database.problem(),
        }
    }
}

pub(crate) async fn list(common: &Common, args: &ListedArgs) -> anyhow::Result<()> {
    let client = Client::new(common, &args.socket, QUICK)?;
    let list: List = client.get("/list").await?;
    if args.socket.json {
        return output::json(&list);
    }
    output::table(&list.databases.iter().map(Row::new).collect::<Vec<_>>())
}

pub(crate) async fn start(common: &Common, args: &StartArgs) -> anyhow::Result<()> {
    let client = Client::new(common, &args.socket, PATIENCE)?;
    let request = DatabaseRequest { path: absolute(&args.db)?, timeout: timeout(&args.socket) };
    let answer: DatabaseAnswer = said(client.post("/start", &request).await, "start")?;
    let outcome = Outcome { state: Some("running"), txid: answer.txid.map(Txid), ..Outcome::new(&answer, &client) };
    outcome.print(args.socket.json)
}

pub(crate) async fn stop(common: &Common, args: &StopArgs) -> anyhow::Result<()> {
    let client = Client::new(common, &args.socket, PATIENCE)?;
    let request = DatabaseRequest { path: absolute(&args.db)?, timeout: timeout(&args.socket) };
    let answer: DatabaseAnswer = said(client.post("/stop", &request).await, "stop")?;
    let outcome = Outcome { state: Some("stopped"), txid: answer.txid.map(Txid), ..Outcome::new(&answer, &client) };
    outcome.print(args.socket.json)
}

pub(crate) async fn sync(common: &Common, args: &SyncArgs) -> anyhow::Result<()> {
    let client = Client::new(common, &args.socket, PATIENCE)?;
    let request = SyncRequest { path: absolute(&args.db)?, wait: args.wait, timeout: timeout(&args.socket) };
    let begun = Instant::now();
    let answer: DatabaseAnswer = said(client.post("/sync", &request).await, "sync")?;
    let outcome = Outcome {
        txid: answer.txid.map(Txid),
        replica_txid: answer.replicated_txid.filter(|_| args.wait).map(Txid),
        duration_ms: Some(begun.elapsed().as_millis()),
        ..Outcome::new(&answer, &client)
    };
    outcome.print(args.socket.json)
}

pub(crate) async fn register(common: &Common, args: &RegisterArgs) -> anyhow::Result<()> {
    let client = Client::new(common, &args.socket, PATIENCE)?;
    let request = RegisterRequest { path: absolute(&args.db)?, replica_url: args.replica.clone() };
    let answer: DatabaseAnswer = said(client.post("/register", &request).await, "register")?;
    let replica = args.replica.as_deref().map(place::without_secrets);
    Outcome { replica, ..Outcome::new(&answer, &client) }.print(args.socket.json)
}

pub(crate) async fn unregister(common: &Common, args: &UnregisterArgs) -> anyhow::Result<()> {
    let client = Client::new(common, &args.socket, PATIENCE)?;
    let path = absolute(&args.db)?;
    if args.dry_run {
        return preview(&client, &path, args.socket.json).await;
    }
    let request = DatabaseRequest { path, timeout: timeout(&args.socket) };
    let answer: DatabaseAnswer = said(client.post("/unregister", &request).await, "unregister")?;
    Outcome { final_txid: answer.txid.map(Txid), ..Outcome::new(&answer, &client) }.print(args.socket.json)
}

/// What unregistering would do, from what the daemon says of the database now.
async fn preview(client: &Client, path: &str, json: bool) -> anyhow::Result<()> {
    let list: List = client.get("/list").await?;
    let found = list.databases.iter().find(|database| database.path == path);
    let status = if found.is_some() { "would_unregister" } else { "already_unregistered" };
    let answer = DatabaseAnswer { status: status.to_owned(), path: path.to_owned(), txid: None, replicated_txid: None };
    let replicas: Vec<&str> =
        found.into_iter().flat_map(|found| &found.replicas).map(|replica| &*replica.url).collect();
    let replica = (!replicas.is_empty()).then(|| replicas.join(" "));
    Outcome { replica, ..Outcome::new(&answer, client) }.print(json)
}

fn said<T>(answer: Result<T, Unanswered>, what: &'static str) -> anyhow::Result<T> {
    match answer {
        Err(Unanswered::Refused(error)) => Err(error).context(format!("{what} failed")),
        answer => Ok(answer?),
    }
}

fn timeout(args: &SocketArgs) -> Option<Seconds> {
    args.timeout.map(Seconds)
}

/// A moment without what is finer than a second.
fn whole_seconds(time: &str) -> String {
    time.parse::<Timestamp>()
        .ok()
        .and_then(|time| Timestamp::from_second(time.as_second()).ok())
        .map_or_else(|| time.to_owned(), |time| time.to_string())
}
