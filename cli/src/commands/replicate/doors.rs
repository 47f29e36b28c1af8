//! The ways into the process while it runs: the control socket and the metrics.

use std::sync::Arc;

use litestream_config::Config;
use tokio::net::TcpListener;

use super::running::Running;
use crate::control::{listener, server};
use crate::metrics::server as metrics;

/// What is bound, where it is configured.
#[derive(Debug, Default)]
pub(super) struct Doors {
    socket: Option<listener::Listening>,
    metrics: Option<TcpListener>,
}

/// The metrics answer; the control socket does not yet.
#[derive(Debug)]
pub(super) struct Ajar {
    socket: Option<listener::Listening>,
    metrics: Option<metrics::Server>,
}

/// What answers.
#[derive(Debug)]
pub(super) struct Open {
    socket: Option<server::Server>,
    metrics: Option<metrics::Server>,
}

impl Doors {
    /// Binds them. Nobody is answered yet.
    ///
    /// # Errors
    /// Which of them cannot be bound, and why.
    pub(super) async fn open(config: &Config) -> anyhow::Result<Self> {
        let socket = if config.socket.enabled { Some(listener::listen(&config.socket).await?) } else { None };
        let metrics = match &config.addr {
            Some(addr) => Some(metrics::bind(addr).await?),
            None => None,
        };
        Ok(Self { socket, metrics })
    }

    /// Begins to show how it goes.
    pub(super) fn show(self, running: &Arc<Running>) -> Ajar {
        let metrics = self.metrics.map(|listener| metrics::Server::start(listener, running.clone()));
        Ajar { socket: self.socket, metrics }
    }
}

impl Ajar {
    /// Begins to do what it is told.
    pub(super) fn open(self, running: &Arc<Running>) -> Open {
        let socket = self.socket.map(|socket| server::Server::start(socket, running.clone()));
        Open { socket, metrics: self.metrics }
    }
}

impl Open {
    pub(super) async fn close(self) {
        if let Some(socket) = self.socket {
            socket.close().await;
        }
        if let Some(metrics) = self.metrics {
            metrics.close().await;
        }
    }
}
