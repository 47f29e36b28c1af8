//! What the control socket answers. Status codes, words and texts are Litestream's where it has them; a database that nobody knows is 404 for all.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::StatusCode;
use litestream_replicate::daemon::{ControlError, Phase, Status};

use super::Host;
use super::wire::{
    Database, DatabaseAnswer, DatabaseRequest, Info, List, PATIENCE, RegisterRequest, Seconds, SyncRequest, TxidAnswer,
    replicated,
};

/// Why a request is not answered.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) error: String,
    pub(crate) details: Option<String>,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), details: None }
    }

    pub(crate) fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: Some(details.into()), ..self }
    }

    fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    fn unknown(path: &Path) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("database not found: {}", path.display()))
            .with_details("it is not replicated by this process; register it, or see `litestream list`")
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Unknown(path) => Self::unknown(&path),
            ControlError::Stopped(path) => {
                Self::new(StatusCode::CONFLICT, format!("database not open: {}", path.display()))
                    .with_details("it is stopped; start it first")
            }
            ControlError::Ending => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            ControlError::Timeout { .. } => Self::new(StatusCode::GATEWAY_TIMEOUT, error.to_string()),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

/// `GET /info`.
pub(crate) fn info<H: Host>(host: &H) -> Info {
    let all = host.daemon().status();
    let started = host.started();
    let lag = all.iter().map(Status::lag).max().unwrap_or_default();
    Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: jiff::Timestamp::now().duration_since(started).as_secs().max(0),
        started_at: started.to_string(),
        database_count: all.len(),
        error_count: Some(all.iter().filter(|status| is_in_trouble(status)).count()),
        lag_seconds: Some(lag.as_secs_f64()),
    }
}

fn is_in_trouble(status: &Status) -> bool {
    status.error.is_some() || status.replicas.iter().any(|replica| replica.error.is_some())
}

/// `GET /list`, all or one.
pub(crate) fn list<H: Host>(host: &H, path: Option<&str>) -> Result<List, Failure> {
    let databases = match path {
        None => host.daemon().status().iter().map(Database::new).collect(),
        Some(path) => vec![Database::new(&known(host, &database(path)?)?)],
    };
    Ok(List { databases })
}

/// `GET /txid`.
pub(crate) fn txid<H: Host>(host: &H, path: Option<&str>) -> Result<TxidAnswer, Failure> {
    let status = known(host, &database(path.unwrap_or_default())?)?;
    Ok(TxidAnswer { txid: status.txid.0 })
}

/// `POST /start`.
pub(crate) fn start<H: Host>(host: &H, request: &DatabaseRequest) -> Result<DatabaseAnswer, Failure> {
    let path = database(&request.path)?;
    let begun = host.daemon().start(&path)?;
    let txid = known(host, &path)?.txid.0;
    Ok(done(if begun { "started" } else { "already_running" }, &path, Some(txid)))
}

/// `POST /stop`.
pub(crate) async fn stop<H: Host>(host: &H, request: &DatabaseRequest) -> Result<DatabaseAnswer, Failure> {
    let path = database(&request.path)?;
    let status = known(host, &path)?;
    if status.phase == Phase::Stopped {
        return Ok(done("already_stopped", &path, Some(status.txid.0)));
    }
    match host.daemon().stop(&path, patience(request.timeout)).await {
        Ok(synced) => Ok(done("stopped", &path, Some(synced.txid.0))),
        // Somebody else was faster.
        Err(ControlError::Stopped(_)) => Ok(done("already_stopped", &path, Some(status.txid.0))),
        Err(error) => {
            let failure = Failure::from(error);
            // What cannot be brought up to date in time is let go all the same.
            match known(host, &path).is_ok_and(|status| status.phase == Phase::Stopped) {
                true => Err(failure.with_details("it is stopped all the same; what was captured lies beside the database, and goes up when it is started again")),
                false => Err(failure),
            }
        }
    }
}

/// `POST /sync`.
pub(crate) async fn sync<H: Host>(host: &H, request: &SyncRequest) -> Result<DatabaseAnswer, Failure> {
    let path = database(&request.path)?;
    let before = known(host, &path)?;
    let synced = host.daemon().sync(&path, request.wait, patience(request.timeout)).await?;
    let changed = synced.txid != before.txid || (request.wait && synced.durable.0 != replicated(&before));
    let word = match (changed, request.wait) {
        (false, _) => "no_change",
        (true, false) => "synced_local",
        (true, true) => "synced",
    };
    Ok(DatabaseAnswer { replicated_txid: Some(synced.durable.0), ..done(word, &path, Some(synced.txid.0)) })
}

/// `POST /register`.
pub(crate) async fn register<H: Host>(host: &H, request: &RegisterRequest) -> Result<DatabaseAnswer, Failure> {
    let path = database(&request.path)?;
    let url = request.replica_url.as_deref().filter(|url| !url.is_empty());
    let (config, spec) = host.spec(&path, url).await.map_err(|error| match url {
        Some(_) => Failure::bad(format!("invalid replica url: {error:#}")),
        None => Failure::bad("replica_url required").with_details(format!("{error:#}")),
    })?;
    let wanted: Vec<String> = spec.replicas.iter().map(|target| target.replica.url().to_string()).collect();
    if let Some(status) = host.daemon().status_of(&path) {
        return already(&path, &status, &wanted);
    }
    let conflict = |error: String| Failure::new(StatusCode::CONFLICT, error);
    match host.register(config, spec).map_err(conflict)? {
        true => Ok(done("registered", &path, None)),
        false if host.daemon().is_ending() => Err(ControlError::Ending.into()),
        false => Ok(done("already_registered", &path, None)),
    }
}

/// Registering again does no harm; but nobody must believe that a database goes where it does not.
fn already(path: &Path, status: &Status, wanted: &[String]) -> Result<DatabaseAnswer, Failure> {
    if wanted.iter().all(|url| status.replicas.iter().any(|replica| replica.url == *url)) {
        return Ok(done("already_registered", path, None));
    }
    let urls: Vec<&str> = status.replicas.iter().map(|replica| &*replica.url).collect();
    let text = format!("database {} is replicated to {} already", path.display(), urls.join(" and "));
    Err(Failure::new(StatusCode::CONFLICT, text).with_details("unregister it first"))
}

/// `POST /unregister`.
pub(crate) async fn unregister<H: Host>(host: &H, request: &DatabaseRequest) -> Result<DatabaseAnswer, Failure> {
    let path = database(&request.path)?;
    match host.unregister(&path, patience(request.timeout)).await {
        Ok(synced) => Ok(done("unregistered", &path, Some(synced.txid.0))),
        Err(ControlError::Unknown(_)) => Ok(done("already_unregistered", &path, Some(0))),
        Err(error) => {
            let failure = Failure::from(error);
            match known(host, &path) {
                Err(_) => Err(failure.with_details("it is let go all the same; what was captured lies beside the database, and goes up when it is registered again")),
                Ok(_) => Err(failure),
            }
        }
    }
}

fn done(status: &str, path: &Path, txid: Option<u64>) -> DatabaseAnswer {
    DatabaseAnswer { status: status.to_owned(), path: path.display().to_string(), txid, replicated_txid: None }
}

/// The database that a request names.
fn database(text: &str) -> Result<PathBuf, Failure> {
    if text.is_empty() {
        return Err(Failure::bad("path required"));
    }
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let home = home.as_deref().unwrap_or(Path::new("/"));
    let path = litestream_config::database_path(Path::new(text), Some(home));
    // Relative to what is for the client to say.
    let relative = !text.starts_with(['/', '~']) && !text.contains("://");
    if relative {
        return Err(Failure::bad(format!("path must be absolute: {text}")));
    }
    Ok(path)
}

fn known<H: Host>(host: &H, path: &Path) -> Result<Status, Failure> {
    host.daemon().status_of(path).ok_or_else(|| Failure::unknown(path))
}

/// Longer, nobody waits.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// As long as was asked for; zero is Litestream's way of saying nothing.
fn patience(asked: Option<Seconds>) -> Duration {
    asked.map(|Seconds(asked)| asked).filter(|asked| !asked.is_zero()).unwrap_or(PATIENCE).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_by_an_absolute_path() {
        let path = |text: &str| database(text).map_err(|failure| failure.error);
        assert_eq!(path("/data/x/../my.db").unwrap(), Path::new("/data/my.db"));
        assert_eq!(path("sqlite:///data/my.db").unwrap(), Path::new("/data/my.db"));
        assert_eq!(path("").unwrap_err(), "path required");
        assert_eq!(path("my.db").unwrap_err(), "path must be absolute: my.db");
    }

    #[test]
    fn each_error_has_its_status() {
        let status = |error: ControlError| Failure::from(error).status.as_u16();
        let path = PathBuf::from("/my.db");
        assert_eq!(status(ControlError::Unknown(path.clone())), 404);
        assert_eq!(status(ControlError::Stopped(path.clone())), 409);
        assert_eq!(status(ControlError::Ending), 503);
        let why = String::new();
        assert_eq!(status(ControlError::Timeout { path: path.clone(), patience: PATIENCE, why: why.clone() }), 504);
        assert_eq!(status(ControlError::Failed { path, why }), 500);
    }
}
