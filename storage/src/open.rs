//! From a configuration to a replica.

use std::sync::Arc;

use crate::config::{Location, ReplicaConfig};
use crate::file::FileBackend;
use crate::{Backend, Replica, Result, RetryPolicy, s3};

/// Opens the replica that a configuration describes. Nothing is asked of the store yet.
///
/// # Errors
/// [`crate::Error::Config`] where the configuration cannot work, [`crate::Error::Io`] where a certificate file cannot be read.
pub async fn open(config: &ReplicaConfig, policy: RetryPolicy) -> Result<Replica> {
    let backend: Arc<dyn Backend> = match &config.location {
        Location::File(file) => FileBackend::new(&file.path).into(),
        Location::S3(bucket) => Arc::new(s3::S3Backend::new(bucket, &policy).await?),
    };
    Ok(Replica::new(backend, policy))
}
