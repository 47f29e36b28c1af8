//! What replicating promises: what the application has committed is in the replica a moment later, whatever happens to us, to it or to the store.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod drills;
mod keeps_small;
mod replicas;
mod site;
mod survives;
mod time;
mod two_hours;
