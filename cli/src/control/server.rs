//! From a request on the control socket to an answer: who is meant, what is in it, and how it is written.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Host;
use super::answers::{self, Failure};
use super::listener::{Listening, SocketFile};
use super::wire::ErrorAnswer;
use crate::serving::{self, Body, Limits, Serving};

/// More than any request needs.
const LONGEST: usize = 1 << 20;
/// A request may wait for a sync as long as it likes, so a connection lives long.
const LIMITS: Limits = Limits { connections: 256, lifetime: Duration::from_secs(24 * 3600) };

/// The control socket of a running process. Its file goes with it.
#[derive(Debug)]
pub(crate) struct Server {
    serving: Serving,
    file: SocketFile,
}

impl Server {
    /// Begins to answer.
    pub(crate) fn start<H: Host>(listening: Listening, host: Arc<H>) -> Self {
        let Listening { listener, file } = listening;
        tracing::info!(path = %file.path().display(), "control socket listening");
        Self { serving: Serving::start(listener, LIMITS, move |request| respond(host.clone(), request)), file }
    }

    /// Ends. Nobody finds the socket any more; requests that are under way have a moment.
    pub(crate) async fn close(self) {
        drop(self.file);
        self.serving.close().await;
    }
}

async fn respond<H: Host>(host: Arc<H>, request: Request<Incoming>) -> Response<Body> {
    let expected = match request.uri().path() {
        "/start" | "/stop" | "/sync" | "/register" | "/unregister" => Method::POST,
        "/list" | "/info" | "/txid" => Method::GET,
        path => {
            let details =
                "there are GET /info, /list and /txid, and POST /start, /stop, /sync, /register and /unregister";
            return failed(Failure::new(StatusCode::NOT_FOUND, format!("not found: {path}")).with_details(details));
        }
    };
    if *request.method() != expected {
        let mut response = failed(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"));
        let allowed = if expected == Method::POST { "POST" } else { "GET" };
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        return response;
    }
    // What is begun is not left half way because a client hangs up.
    match tokio::spawn(route(host, request)).await {
        Ok(response) => response,
        Err(error) => failed(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the request failed: {error}"))),
    }
}

async fn route<H: Host>(host: Arc<H>, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let asked = parts.uri.query().and_then(|query| parameter(query, "path"));
    let host = &*host;
    match parts.uri.path() {
        "/start" => finish(async { answers::start(host, &read(body).await?) }.await),
        "/stop" => finish(async { answers::stop(host, &read(body).await?).await }.await),
        "/sync" => finish(async { answers::sync(host, &read(body).await?).await }.await),
        "/register" => finish(async { answers::register(host, &read(body).await?).await }.await),
        "/unregister" => finish(async { answers::unregister(host, &read(body).await?).await }.await),
        "/txid" => finish(answers::txid(host, asked.as_deref())),
        "/list" => finish(answers::list(host, asked.as_deref())),
        _ => finish(Ok(answers::info(host))),
    }
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Failure> {
    let wrong = |details: String| Failure::new(StatusCode::BAD_REQUEST, "invalid request body").with_details(details);
    let body = Limited::new(body, LONGEST).collect().await.map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| wrong(error.to_string()))
}

fn finish(outcome: Result<impl Serialize, Failure>) -> Response<Body> {
    outcome.map_or_else(failed, |value| json(StatusCode::OK, &value))
}

fn failed(failure: Failure) -> Response<Body> {
    let Failure { status, error, details } = failure;
    json(status, &ErrorAnswer { error, details: details.map(Into::into) })
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    serving::answer(status, "application/json", text)
}

/// A parameter of a query.
fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    urlencoding::decode(&value.replace('+', " ")).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_found_and_decoded() {
        assert_eq!(parameter("path=/a/b.db", "path").unwrap(), "/a/b.db");
        assert_eq!(parameter("x=1&path=%2Fa+b%2B&paths=2", "path").unwrap(), "/a b+");
        assert_eq!(parameter("paths=2", "path"), None);
    }
}
