//! From a configuration to a replica.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::config::{Location, ReplicaConfig, S3Config};
use crate::file::FileBackend;
use crate::{Backend, Meter, Replica, Result, RetryPolicy, s3};

/// Opens the replica that a configuration describes. Nothing is asked of the store yet.
///
/// # Errors
/// [`crate::Error::Config`] where the configuration cannot work, [`crate::Error::Io`] where a certificate file cannot be read.
pub async fn open(config: &ReplicaConfig, policy: RetryPolicy) -> Result<Replica> {
    Stores::new(policy).open(config).await
}

/// Opens replicas that share connections where they lie in the same bucket: for thousands of them it is one client. What their requests cost is
/// counted together.
#[derive(Debug, Default)]
pub struct Stores {
    policy: RetryPolicy,
    folders: Arc<Meter>,
    objects: Arc<Meter>,
    /// For each bucket, with all that is said of it but the path.
    buckets: Mutex<Vec<(S3Config, s3::S3Backend)>>,
}

impl Stores {
    /// All replicas are as patient as this policy says.
    #[must_use]
    pub fn new(policy: RetryPolicy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// What has been asked of them so far, by the type of store.
    #[must_use]
    pub fn meters(&self) -> [(&'static str, Arc<Meter>); 2] {
        [("file", self.folders.clone()), ("s3", self.objects.clone())]
    }

    /// Opens the replica that a configuration describes, as [`open`] does.
    ///
    /// # Errors
    /// As [`open`].
    pub async fn open(&self, config: &ReplicaConfig) -> Result<Replica> {
        let bucket = match &config.location {
            Location::File(file) => return Ok(self.replica(FileBackend::new(&file.path).into(), &self.folders)),
            Location::S3(bucket) => bucket,
        };
        // However the path is written: below a folder it is written in another way for each database.
        let all_but_path = S3Config { path: String::new(), written_path: None, ..bucket.clone() };
        let mut buckets = self.buckets.lock().await;
        let backend = match buckets.iter().find(|(known, _)| *known == all_but_path) {
            Some((_, backend)) => backend.beside(bucket, &self.policy),
            None => {
                let backend = s3::S3Backend::new(bucket, &self.policy).await?;
                buckets.push((all_but_path, backend.clone()));
                backend
            }
        };
        Ok(self.replica(Arc::new(backend), &self.objects))
    }

    fn replica(&self, backend: Arc<dyn Backend>, meter: &Arc<Meter>) -> Replica {
        Replica::metered(backend, self.policy.clone(), meter.clone())
    }
}
