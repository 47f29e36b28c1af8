//! Where the daemon can be asked: its control socket and its metrics. Both are opened before anything starts, so that what is wrong with them is
//! said at once, and answered to the very end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use litestream_config::{Config, DbConfig};
use litestream_replicate::daemon::{ControlError, Daemon, Spec, Synced};
use tokio::net::TcpListener;

use crate::commands::replicate::running::Running;
use crate::control::Host;
use crate::control::listener::{Listening, listen};
use crate::{control, metrics};

/// What is listened at.
#[derive(Debug, Default)]
pub(crate) struct Doors {
    socket: Option<Listening>,
    metrics: Option<TcpListener>,
}

/// What is answered.
#[derive(Debug)]
pub(crate) struct Answering {
    socket: Option<control::server::Server>,
    metrics: Option<metrics::server::Server>,
}

impl Doors {
    /// Listens as the configuration says; not at all for one sync.
    ///
    /// # Errors
    /// Why that cannot be done.
    pub(crate) async fn open(config: &Config, once: bool) -> anyhow::Result<Self> {
        let mut doors = Self::default();
        if once {
            return Ok(doors);
        }
        if let Some(addr) = &config.addr {
            doors.metrics = Some(metrics::server::bind(addr).await?);
        }
        if config.socket.enabled {
            doors.socket = Some(listen(&config.socket).await?);
        }
        Ok(doors)
    }

    /// Begins to answer.
    pub(crate) fn answer(self, running: &Arc<Running>) -> Answering {
        Answering {
            socket: self.socket.map(|listening| control::server::Server::start(listening, running.clone())),
            metrics: self.metrics.map(|listener| metrics::server::Server::start(listener, running.clone())),
        }
    }
}

impl Answering {
    /// Ends.
    pub(crate) async fn close(self) {
        if let Some(socket) = self.socket {
            socket.close().await;
        }
        if let Some(metrics) = self.metrics {
            metrics.close().await;
        }
    }
}

impl Host for Running {
    fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    fn started(&self) -> jiff::Timestamp {
        self.started
    }

    async fn spec(&self, path: &Path, replica_url: Option<&str>) -> anyhow::Result<(DbConfig, Spec)> {
        let database = self.database_at(path, replica_url)?;
        let spec = self.spec_for(&database).await?;
        Ok((database, spec))
    }

    fn register(&self, database: DbConfig, spec: Spec) -> bool {
        Self::register(self, database, spec)
    }

    async fn unregister(&self, path: &Path, patience: Duration) -> Result<Synced, ControlError> {
        Self::unregister(self, path, patience).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::client::Client;
    use crate::control::wire::{DatabaseAnswer, DatabaseRequest, Info, List, RegisterRequest};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_running_daemon_is_asked_and_told_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "addr: '127.0.0.1:0'\nsocket: {{enabled: true, path: {}}}\ndbs:\n  - {{path: {}, replica: {{url: 'file://{}'}}}}\n",
            at("control.sock"),
            at("known.db"),
            at("replica")
        );
        let config = Config::parse(&text, Path::new("litestream.yml"), false, &|_| None).unwrap();
        assert!(Doors::open(&config, true).await.unwrap().socket.is_none(), "one sync has no doors");
        let doors = Doors::open(&config, false).await.unwrap();
        assert!(doors.metrics.is_some());
        let error = Doors::open(&config, false).await.unwrap_err().to_string();
        assert!(error.contains("another process answers there"), "{error}");
        let running = Arc::new(Running::new(config, litestream_storage::RetryPolicy::default()));
        let answering = doors.answer(&running);

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
        let request = DatabaseRequest {
            path: path.clone(),
            timeout: Some(crate::control::wire::Seconds(Duration::from_millis(50))),
        };
        let _ = client.post::<DatabaseAnswer>("/unregister", &request).await;
        assert!(running.database(Path::new(&path)).is_none());

        answering.close().await;
        assert!(!folder.path().join("control.sock").exists());
        assert!(client.get::<Info>("/info").await.is_err());
    }
}
