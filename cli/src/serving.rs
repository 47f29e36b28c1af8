//! HTTP/1.1 on a listener, of whatever kind: accepting, limits, and an orderly end. What is answered is left to the caller.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A body that is answered.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// How long a client may take for the head of a request, and how long a connection is kept without one.
const HEAD: Duration = Duration::from_secs(90);
/// How long requests may go on once the end has come.
const GRACE: Duration = Duration::from_secs(1);
/// The pause after a connection could not be accepted, above all where there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(200);

/// Where connections come from.
pub(crate) trait Accept: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

/// How much clients may ask of us.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at once.
    pub(crate) connections: usize,
    /// How long one may last, whatever it does.
    pub(crate) lifetime: Duration,
}

/// Answers until it is closed or dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Serving {
    /// Begins to answer what comes in at `listener`.
    pub(crate) fn start<L, A, F>(listener: L, limits: Limits, answer: A) -> Self
    where
        L: Accept,
        A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let (end, ended) = watch::channel(false);
        Self { end, task: tokio::spawn(serve(listener, limits, answer, ended)) }
    }

    /// Accepts nothing any more, and gives requests a moment to end.
    pub(crate) async fn close(mut self) {
        self.end.send_replace(true);
        let _ = (&mut self.task).await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<L, A, F>(listener: L, limits: Limits, answer: A, mut ended: watch::Receiver<bool>)
where
    L: Accept,
    A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    // Those that are left are aborted when this is dropped.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = ended.changed() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < limits.connections => match accepted {
                Ok(stream) => {
                    let connection = connection(stream, answer.clone(), ended.clone());
                    connections.spawn(tokio::time::timeout(limits.lifetime, connection));
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection<S, A, F>(stream: S, answer: A, mut ended: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        _ = ended.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // That a client goes away is its own affair.
    if let Err(error) = outcome {
        tracing::debug!("a connection ended early: {error}");
    }
}

/// An answer that is there as a whole.
pub(crate) fn answer(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(content.into()).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
