//! The metrics' own HTTP server.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use litestream_replicate::daemon::Status;
use tokio::net::TcpListener;

use super::page::Page;
use super::text::CONTENT_TYPE;
use crate::control::Host;
use crate::serving::{self, Body, Limits, Serving};

const LIMITS: Limits = Limits { connections: 64, lifetime: Duration::from_secs(600) };
const PLAIN: &str = "text/plain; charset=utf-8";

/// Listens at `addr`, `HOST:PORT` or `:PORT`.
///
/// # Errors
/// It is no address, or nobody may listen there.
pub(crate) async fn bind(addr: &str) -> anyhow::Result<TcpListener> {
    let wrong = || format!("metrics: cannot listen at {addr:?}, which is `addr` of the configuration");
    let Some((host, port)) = addr.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))
    else {
        bail!("{}: write HOST:PORT or :PORT, such as :9090", wrong());
    };
    if !host.is_empty() {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        return TcpListener::bind((host, port)).await.with_context(wrong);
    }
    // All addresses, of both kinds where the system has both.
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await.with_context(wrong),
    }
}

/// Serves metrics until it is closed.
#[derive(Debug)]
pub(crate) struct Server(Serving);

impl Server {
    /// Begins to answer.
    pub(crate) fn start<H: Host>(listener: TcpListener, host: Arc<H>) -> Self {
        if let Ok(address) = listener.local_addr() {
            tracing::info!("serving metrics at http://{address}/metrics");
        }
        Self(Serving::start(listener, LIMITS, move |request| {
            let response = respond(&*host, &request);
            async move { response }
        }))
    }

    /// Ends.
    pub(crate) async fn close(self) {
        self.0.close().await;
    }
}

fn respond<H: Host>(host: &H, request: &Request<Incoming>) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = serving::answer(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "method not allowed\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => metrics(host, wants_idle(request.uri().query())),
        "/" => serving::answer(StatusCode::OK, PLAIN, "litestream: metrics are at /metrics, health at /healthz\n"),
        "/healthz" => health(&host.daemon().status()),
        _ => serving::answer(StatusCode::NOT_FOUND, PLAIN, "not found: there are /metrics and /healthz\n"),
    }
}

/// Whether databases that do not change are wanted, too. `idle=no` leaves them out.
fn wants_idle(query: Option<&str>) -> bool {
    !query.unwrap_or_default().split('&').any(|pair| matches!(pair, "idle=no" | "idle=0" | "idle=false"))
}

/// The process answers, so it is alive, whatever state its databases are in: those are for alarms, not for whoever restarts processes.
fn health(all: &[Status]) -> Response<Body> {
    let wrong = all.iter().filter(|status| status.error.is_some()).count();
    serving::answer(StatusCode::OK, PLAIN, format!("ok\ndatabases {}\nin trouble {wrong}\n", all.len()))
}

fn metrics<H: Host>(host: &H, idle: bool) -> Response<Body> {
    let page = Page::new(host.started(), host.daemon().status(), host.stores(), idle);
    let frames = page.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
    let mut response = Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_listened_at_or_refused_with_a_reason() {
        for addr in [":0", "127.0.0.1:0", "localhost:0"] {
            assert_ne!(bind(addr).await.unwrap().local_addr().unwrap().port(), 0, "{addr}");
        }
        for addr in ["9090", "localhost", ":http", "a b:1"] {
            let error = format!("{:#}", bind(addr).await.unwrap_err());
            assert!(error.contains("`addr` of the configuration"), "{error}");
        }
        let first = bind("127.0.0.1:0").await.unwrap();
        let error = format!("{:#}", bind(&first.local_addr().unwrap().to_string()).await.unwrap_err());
        assert!(error.contains("in use"), "{error}");
    }

    #[test]
    fn idle_databases_are_left_out_where_that_is_asked_for() {
        assert!(wants_idle(None) && wants_idle(Some("x=1")) && wants_idle(Some("idle=yes")));
        assert!(!wants_idle(Some("x=1&idle=no")) && !wants_idle(Some("idle=0")));
    }
}
