//! The last steps of a restore, alike for all replicas: sync, check, publish; and what happens when nobody waits for them any more.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::restore::blocking;
use crate::{Error, Output, RestoreOptions, Result};

/// Says whether a restore has begun to put its database in place. Clones belong together.
///
/// Until then a restore that is dropped leaves everything as it was. From then on it is carried to its end even if it is dropped, so whoever wants to
/// give it up must look here first, and wait for it instead.
#[derive(Clone, Debug, Default)]
pub struct Publishing(Arc<AtomicBool>);

impl Publishing {
    /// Whether the database is being put in place, or is there already.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Says that it begins.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Removes the temporary file as soon as an attempt has failed or was given up, even while other threads still finish what they are at.
pub(crate) struct Unlink(Option<PathBuf>);

impl Unlink {
    pub(crate) fn new(output: &Output) -> Self {
        Self(Some(output.temporary().to_owned()))
    }

    fn leave_it(mut self) {
        self.0 = None;
    }
}

impl Drop for Unlink {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Whoever holds the file open last removes what this could not.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Makes a complete database durable, has it checked, and puts it in place.
pub(crate) async fn finish(output: Output, unlink: Unlink, options: &RestoreOptions) -> Result<()> {
    // Each a step of its own. A thread cannot be stopped, but when nobody waits for it, the output that it hands back is dropped, and that is the end.
    let mut output = blocking(move || output.sync().map(|()| output)).await?;
    if let Some(check) = options.check.clone() {
        output = blocking(move || check(output.temporary()).map_err(Error::Check).map(|()| output)).await?;
    }
    // No `await` from here to the thread that publishes: either it will, or this has been dropped before.
    unlink.leave_it();
    options.publishing.begin();
    let overwrite = options.overwrite;
    blocking(move || output.publish(overwrite)).await
}
