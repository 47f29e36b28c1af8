//! A store in memory, for tests and for trying things out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use ltx::{FileName, Timestamp};

use crate::backend::{self, Backend, Body, GetRequest, GetResponse, ListPage, ListRequest, Precondition, PutOptions};
use crate::replica::read_body;
use crate::{ETag, Error, Level, ObjectInfo, Result, s3};

/// A replica in memory. Keys are spelled as on S3.
#[derive(Debug)]
pub struct MemoryBackend {
    url: Arc<str>,
    page: usize,
    version: AtomicU64,
    objects: Mutex<BTreeMap<Arc<str>, Object>>,
}

#[derive(Clone, Debug)]
struct Object {
    bytes: Bytes,
    etag: ETag,
    modified: Timestamp,
    time: Option<Timestamp>,
}

impl Object {
    fn info(&self, key: &Arc<str>) -> ObjectInfo {
        ObjectInfo {
            key: key.clone(),
            size: self.bytes.len() as u64,
            etag: Some(self.etag.clone()),
            modified: self.modified,
            time: self.time,
        }
    }
}

impl MemoryBackend {
    /// An empty replica.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::with_page(name, 1_000)
    }

    /// An empty replica whose listings have pages of this many keys.
    #[must_use]
    pub fn with_page(name: &str, page: usize) -> Self {
        Self {
            url: format!("memory:{name}").into(),
            page: page.max(1),
            version: AtomicU64::new(0),
            objects: Mutex::default(),
        }
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Object>> {
        // Every change is one insert or remove: a panic elsewhere cannot leave the map half changed.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &str) -> Result<(Arc<str>, Object)> {
        let objects = self.objects();
        let found = objects.get_key_value(key).map(|(key, object)| (key.clone(), object.clone()));
        found.ok_or_else(|| Error::NotFound { url: self.url.clone(), key: key.into() })
    }
}

impl From<MemoryBackend> for Arc<dyn Backend> {
    fn from(backend: MemoryBackend) -> Self {
        Arc::new(backend)
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn url(&self) -> &Arc<str> {
        &self.url
    }

    fn key(&self, level: Level, name: FileName) -> String {
        s3::key("", level, name)
    }

    fn side_key(&self, name: &str) -> String {
        name.to_owned()
    }

    fn clock(&self) -> Option<Timestamp> {
        Some(Timestamp(jiff::Timestamp::now().as_millisecond()))
    }

    fn honours_conditions(&self) -> bool {
        true
    }

    async fn list(&self, request: &ListRequest<'_>) -> Result<ListPage> {
        let (prefix, mut after) = s3::listing(request.scope, request.from);
        if let Some(token) = request.token {
            after = token.to_owned();
        }
        let mut page = ListPage { at: self.clock(), ..ListPage::default() };
        let objects = self.objects();
        let bounds = (std::ops::Bound::Excluded(after.as_str()), std::ops::Bound::Unbounded);
        let mut found = objects.range::<str, _>(bounds).skip_while(|(key, _)| ***key < *prefix);
        let mut last = None;
        for (key, object) in found.by_ref().take_while(|(key, _)| key.starts_with(&prefix)).take(self.page) {
            last = Some(key.to_string());
            s3::sort_into(&mut page, "", object.info(key));
        }
        if page.files.len() + page.others.len() > 0
            && let Some(last) = last
        {
            let rest = (std::ops::Bound::Excluded(last.as_str()), std::ops::Bound::Unbounded);
            let more = objects.range::<str, _>(rest).next().is_some_and(|(key, _)| key.starts_with(&prefix));
            page.next = more.then_some(last);
        }
        Ok(page)
    }

    async fn get(&self, request: &GetRequest<'_>) -> Result<GetResponse> {
        let (key, object) = self.find(request.key)?;
        let info = object.info(&key);
        let range = backend::resolve(&self.url, request.key, &request.range, info.size)?;
        let bytes = object.bytes.slice(range.start as usize..range.end as usize);
        Ok(GetResponse { object: info, range, body: futures::stream::iter([Ok(bytes)]).boxed() })
    }

    async fn head(&self, key: &str, _: u32) -> Result<ObjectInfo> {
        let (key, object) = self.find(key)?;
        Ok(object.info(&key))
    }

    async fn put(&self, key: &str, body: &Body, options: &PutOptions<'_>) -> Result<ObjectInfo> {
        let bytes = read_body(body, 0..body.len()).await?;
        let mut objects = self.objects();
        let there = objects.get(key);
        match (&options.precondition, there) {
            (Precondition::NotExists, Some(_)) => {
                return Err(Error::AlreadyExists { url: self.url.clone(), key: key.into() });
            }
            (Precondition::Matches(tag), there) if there.map(|object| &object.etag) != Some(tag) => {
                return Err(Error::Changed {
                    url: self.url.clone(),
                    key: key.into(),
                    expected: format!("ETag {tag}"),
                    found: there.map_or("nothing".into(), |object| format!("ETag {}", object.etag)),
                });
            }
            _ => {}
        }
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        let object = Object {
            bytes,
            etag: ETag::new(&format!("v{version}")),
            // A clock of its own: the n-th put happened at n milliseconds.
            modified: options.time.unwrap_or(Timestamp(version.cast_signed())),
            time: options.time,
        };
        let key: Arc<str> = key.into();
        let info = object.info(&key);
        objects.insert(key, object);
        Ok(info)
    }

    async fn delete(&self, keys: &[&str], _: u32) -> Result<()> {
        let mut objects = self.objects();
        for key in keys {
            objects.remove(*key);
        }
        Ok(())
    }
}
