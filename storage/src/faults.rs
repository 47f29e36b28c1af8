//! A store that fails on purpose: a decorator for tests of what must survive it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use ltx::{FileName, Timestamp};

use crate::backend::{Backend, Body, GetRequest, GetResponse, ListPage, ListRequest, PutOptions};
use crate::{Error, Level, ObjectInfo, Result};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Pass,
    /// It fails before it has any effect.
    Fail,
    /// It takes effect, but the answer is lost.
    LoseAnswer,
    /// The answer never comes.
    Hang,
    /// The body ends after this many bytes (of a read; other requests fail).
    Cut(usize),
    /// The body stands still after this many bytes (of a read; other requests hang).
    Stall(usize),
    /// The object is gone.
    NotFound,
}

/// Decides about each request, in order of arrival, by operation (`list`, `read`, `look at`, `write`, `delete`) and key.
pub type Script = dyn FnMut(&'static str, &str) -> Fault + Send;

/// Wraps a store and fails by a script.
pub struct FaultyBackend {
    inner: Arc<dyn Backend>,
    script: Mutex<Box<Script>>,
}

impl std::fmt::Debug for FaultyBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FaultyBackend").field(&self.inner).finish()
    }
}

impl FaultyBackend {
    /// A store that fails as `script` says.
    pub fn new(inner: Arc<dyn Backend>, script: impl FnMut(&'static str, &str) -> Fault + Send + 'static) -> Self {
        Self { inner, script: Mutex::new(Box::new(script)) }
    }

    /// A store that applies these faults to its first requests of one operation, and passes everything else.
    #[must_use]
    pub fn first(inner: Arc<dyn Backend>, operation: &'static str, faults: impl IntoIterator<Item = Fault>) -> Self {
        let mut faults: VecDeque<Fault> = faults.into_iter().collect();
        Self::new(
            inner,
            move |found, _| {
                if found == operation { faults.pop_front().unwrap_or(Fault::Pass) } else { Fault::Pass }
            },
        )
    }

    /// Decides, and does what needs no answer from the store. What is left is [`Fault::Pass`] or a fault of the answer.
    async fn enter(&self, operation: &'static str, key: &str) -> Result<Fault> {
        let fault = (self.script.lock().unwrap_or_else(PoisonError::into_inner))(operation, key);
        match fault {
            Fault::Fail => Err(broken(operation, key)),
            Fault::Hang => std::future::pending().await,
            Fault::NotFound => Err(Error::NotFound { url: self.inner.url().clone(), key: key.into() }),
            other => Ok(other),
        }
    }

    async fn leave<T>(&self, fault: Fault, operation: &'static str, key: &str, answer: T) -> Result<T> {
        match fault {
            Fault::LoseAnswer | Fault::Cut(_) => Err(broken(operation, key)),
            Fault::Stall(_) => std::future::pending().await,
            _ => Ok(answer),
        }
    }
}

fn broken(operation: &'static str, key: &str) -> Error {
    Error::Transient { operation, key: key.into(), cause: "injected fault".into() }
}

#[async_trait]
impl Backend for FaultyBackend {
    fn url(&self) -> &Arc<str> {
        self.inner.url()
    }

    fn key(&self, level: Level, name: FileName) -> String {
        self.inner.key(level, name)
    }

    fn side_key(&self, name: &str) -> String {
        self.inner.side_key(name)
    }

    fn clock(&self) -> Option<Timestamp> {
        self.inner.clock()
    }

    fn honours_conditions(&self) -> bool {
        self.inner.honours_conditions()
    }

    async fn metadata(&self, key: &str, name: &str, attempt: u32) -> Result<Option<String>> {
        self.inner.metadata(key, name, attempt).await
    }

    async fn list(&self, request: &ListRequest<'_>) -> Result<ListPage> {
        let fault = self.enter("list", "").await?;
        let answer = self.inner.list(request).await?;
        self.leave(fault, "list", "", answer).await
    }

    async fn get(&self, request: &GetRequest<'_>) -> Result<GetResponse> {
        let fault = self.enter("read", request.key).await?;
        let mut response = self.inner.get(request).await?;
        let (at, stall) = match fault {
            Fault::Pass => return Ok(response),
            Fault::Cut(at) => (at, false),
            Fault::Stall(at) => (at, true),
            _ => return Err(broken("read", request.key)),
        };
        let mut left = at;
        let body = std::mem::replace(&mut response.body, futures::stream::empty().boxed());
        let front = body
            .map(move |bytes| {
                bytes.map(|mut bytes| {
                    bytes.truncate(left);
                    left -= bytes.len();
                    bytes
                })
            })
            .take_while(|bytes| std::future::ready(bytes.as_ref().map_or(true, |bytes| !bytes.is_empty())));
        response.body = if stall { front.chain(futures::stream::pending()).boxed() } else { front.boxed() };
        Ok(response)
    }

    async fn head(&self, key: &str, attempt: u32) -> Result<ObjectInfo> {
        let fault = self.enter("look at", key).await?;
        let answer = self.inner.head(key, attempt).await?;
        self.leave(fault, "look at", key, answer).await
    }

    fn paces_put(&self, len: u64) -> bool {
        self.inner.paces_put(len)
    }

    async fn put(&self, key: &str, body: &Body, options: &PutOptions<'_>) -> Result<ObjectInfo> {
        let fault = self.enter("write", key).await?;
        let answer = self.inner.put(key, body, options).await?;
        self.leave(fault, "write", key, answer).await
    }

    async fn delete(&self, keys: &[&str], attempt: u32) -> Result<()> {
        let key = keys.first().copied().unwrap_or_default();
        let fault = self.enter("delete", key).await?;
        self.inner.delete(keys, attempt).await?;
        self.leave(fault, "delete", key, ()).await
    }
}
