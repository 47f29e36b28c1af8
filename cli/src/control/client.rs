//! Asking the daemon, and saying why it cannot be asked.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use litestream_config::SocketConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::args::SocketArgs;
use super::wire::ErrorAnswer;
use crate::args::Common;
use crate::place;

/// How much longer than the daemon the client waits, so that it hears why.
const LONGER: Duration = Duration::from_secs(5);

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    patience: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// There is no daemon that could.
    NoDaemon(anyhow::Error),
    /// The daemon says no.
    Refused(anyhow::Error),
    /// Something else.
    Failed(anyhow::Error),
}

impl From<Unanswered> for anyhow::Error {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::NoDaemon(error) | Unanswered::Refused(error) | Unanswered::Failed(error) => error,
        }
    }
}

/// Where the socket is: as the command line says, or the configuration, or where it always is.
pub(crate) fn socket_path(common: &Common, named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let (_, config) = place::load_config(common)?;
    Ok(config.map_or_else(|| SocketConfig::default().path, |config| config.socket.path))
}

impl Client {
    /// For a command of the command line.
    pub(crate) fn new(common: &Common, args: &SocketArgs, default: Duration) -> anyhow::Result<Self> {
        Ok(Self {
            socket: socket_path(common, args.socket.as_deref())?,
            patience: args.timeout.unwrap_or(default) + LONGER,
        })
    }

    /// For a socket.
    pub(crate) fn at(socket: &Path, patience: Duration) -> Self {
        Self { socket: socket.to_owned(), patience }
    }

    pub(crate) fn socket(&self) -> String {
        self.socket.display().to_string()
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, Unanswered> {
        self.ask(Method::GET, target, Vec::new()).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, target: &str, body: &impl Serialize) -> Result<T, Unanswered> {
        let body = serde_json::to_vec(body).map_err(|error| Unanswered::Failed(error.into()))?;
        self.ask(Method::POST, target, body).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, target: &str, body: Vec<u8>) -> Result<T, Unanswered> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.no_daemon(&error))?;
        let asked = exchange(stream, method, target, body);
        let (status, bytes) = match tokio::time::timeout(self.patience, asked).await {
            Ok(answer) => answer.with_context(|| self.socket()).map_err(Unanswered::Failed)?,
            Err(_) => {
                let patience = litestream_config::units::format_duration(self.patience);
                return Err(Unanswered::Failed(anyhow!(
                    "{}: the daemon has not answered within {patience}; it may still do what it was asked for",
                    self.socket()
                )));
            }
        };
        if !status.is_success() {
            return Err(Unanswered::Refused(refusal(status, &bytes)));
        }
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{}: the answer to {target} is not understood", self.socket()))
            .map_err(Unanswered::Failed)
    }

    fn no_daemon(&self, error: &std::io::Error) -> Unanswered {
        let socket = self.socket();
        let enable = "`litestream replicate` makes one where its configuration says `socket: {enabled: true}`";
        match error.kind() {
            ErrorKind::NotFound => Unanswered::NoDaemon(anyhow!(
                "no daemon to talk to: there is no control socket {socket}: {enable}; name another one with --socket"
            )),
            ErrorKind::ConnectionRefused => Unanswered::NoDaemon(anyhow!(
                "no daemon to talk to: nobody answers at the control socket {socket}, which a dead process left: start `litestream replicate`"
            )),
            ErrorKind::PermissionDenied => Unanswered::Failed(anyhow!(
                "control socket {socket}: permission denied: run this as the daemon's user, or set `socket.permissions`"
            )),
            _ => Unanswered::Failed(anyhow!("control socket {socket}: {error}")),
        }
    }
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    target: &str,
    body: Vec<u8>,
) -> anyhow::Result<(StatusCode, bytes::Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(bytes::Bytes::from(body)))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
    };
    tokio::select! {
        answer = answer => answer,
        Err(error) = connection => Err(error.into()),
    }
}

/// What the daemon says against it, in one line.
fn refusal(status: StatusCode, bytes: &[u8]) -> anyhow::Error {
    let Ok(ErrorAnswer { error, details }) = serde_json::from_slice(bytes) else {
        return anyhow!("the daemon answers {status}: {}", String::from_utf8_lossy(bytes).trim());
    };
    match details {
        None => anyhow!(error),
        Some(serde_json::Value::String(details)) => anyhow!("{error}: {details}"),
        Some(details) => anyhow!("{error}: {details}"),
    }
}

/// A path as the daemon, which may run in another folder, is told it.
pub(crate) fn absolute(path: &Path) -> anyhow::Result<String> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let path = litestream_config::database_path(path, home.as_deref());
    let Some(text) = path.to_str() else {
        bail!("{}: the daemon can only be told names in UTF-8", path.display());
    };
    Ok(text.to_owned())
}
