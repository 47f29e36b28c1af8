//! The heartbeat: an address that is asked for as long as all is well, so that whoever listens there raises an alarm when it is not.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use litestream_replicate::daemon::{Phase, Status};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::Running;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Never ends by itself.
pub(super) async fn run(running: Arc<Running>) {
    let Some(url) = running.config.heartbeat_url.clone() else { return std::future::pending().await };
    let every = running.config.heartbeat_interval;
    let mut beats = interval(every);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first comes at once, before anything can be known.
    beats.tick().await;
    let mut is_heard = true;
    loop {
        beats.tick().await;
        let statuses = running.daemon.status();
        if let Some(why) = what_is_wrong(&statuses, every) {
            tracing::debug!(why, "no heartbeat");
            continue;
        }
        match beat(&url).await {
            Ok(()) if !is_heard => {
                tracing::info!("the heartbeat is heard again");
                is_heard = true;
            }
            Ok(()) => tracing::debug!("heartbeat"),
            // Without the address, which often carries a token.
            Err(error) if is_heard => {
                tracing::warn!(error = format!("{error:#}"), "the heartbeat is not heard; trying again each time");
                is_heard = false;
            }
            Err(error) => tracing::debug!(error = format!("{error:#}"), "the heartbeat is still not heard"),
        }
    }
}

/// Why no heartbeat must be heard. What is not replicated at all is not well.
fn what_is_wrong(statuses: &[Status], bound: Duration) -> Option<String> {
    if statuses.is_empty() {
        return Some("no database is replicated".to_owned());
    }
    statuses.iter().find_map(|status| {
        let replica = status.replicas.iter().find_map(|replica| replica.error.as_deref());
        let why = match (status.error.as_deref().or(replica), status.phase) {
            (Some(error), _) => error,
            (None, Phase::Stopped | Phase::Waiting) => status.phase.as_str(),
            (None, _) if status.disk_full => "the disk is full",
            (None, _) if status.lag() > bound => "its replicas are late",
            _ => return None,
        };
        Some(format!("{}: {why}", status.path.display()))
    })
}

async fn beat(url: &str) -> anyhow::Result<()> {
    let request = Request::get(url).header(header::USER_AGENT, concat!("litestream/", env!("CARGO_PKG_VERSION")));
    let request = request.body(Empty::<Bytes>::new()).context("its address cannot be used")?;
    // Beats are rare: a connection would not be kept so long.
    let client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector(url)?);
    let answer = timeout(PATIENCE, client.request(request)).await.context("no answer in time")??;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => bail!("the answer is {}", told(status)),
    }
}

/// The system's certificates are read only where they are needed.
fn connector(url: &str) -> anyhow::Result<HttpsConnector<HttpConnector>> {
    let mut roots = RootCertStore::empty();
    if url.starts_with("https:") {
        let native = rustls_native_certs::load_native_certs();
        let error = native.errors.into_iter().next();
        if let (true, Some(error)) = (native.certs.is_empty(), error) {
            return Err(error).context("cannot read the system's certificates");
        }
        roots.add_parsable_certificates(native.certs);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    Ok(HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build())
}

fn told(status: StatusCode) -> String {
    if status.is_redirection() { format!("{status}: redirections are not followed") } else { status.to_string() }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use litestream_replicate::daemon::Counters;

    use super::*;

    fn status(phase: Phase, error: Option<&str>) -> Status {
        Status {
            path: "/a.db".into(),
            phase,
            txid: ltx::Txid(1),
            size: 0,
            wal_size: 0,
            error: error.map(str::to_owned),
            concern: None,
            disk_full: false,
            replicas: Vec::new(),
            counters: Counters::default(),
        }
    }

    #[test]
    fn all_must_be_well() {
        let wrong = |statuses: &[Status]| what_is_wrong(statuses, Duration::from_secs(60));
        assert!(wrong(&[]).unwrap().contains("no database"));
        assert_eq!(wrong(&[status(Phase::Live, None), status(Phase::Idle, None)]), None);
        let mut bad = [status(Phase::Live, None), status(Phase::Live, Some("locked"))];
        assert_eq!(wrong(&bad).as_deref(), Some("/a.db: locked"));
        bad[1] = status(Phase::Stopped, None);
        assert_eq!(wrong(&bad).as_deref(), Some("/a.db: stopped"));
    }

    /// Answers one request, and tells what it was.
    fn answering(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/beat?token=x", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut buffer = [0; 1024];
            while !asked.ends_with(b"\r\n\r\n") {
                let read = stream.read(&mut buffer).unwrap();
                asked.extend_from_slice(&buffer[..read]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(asked).unwrap()
        });
        (url, thread)
    }

    #[tokio::test]
    async fn a_beat_is_a_request_that_must_succeed() {
        let (url, asked) = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        beat(&url).await.unwrap();
        assert!(asked.join().unwrap().starts_with("GET /beat?token=x HTTP/1.1\r\n"));
        let (url, _) = answering("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n");
        assert!(beat(&url).await.unwrap_err().to_string().contains("503"));
    }
}
