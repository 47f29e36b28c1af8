//! What replicating promises: what the application has committed is in the replica a moment later, whatever happens to us, to it or to the store.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod checkpoints;
mod deleted;
mod drills;
mod foreign;
mod gone;
mod keeps_small;
#[path = "../support/obedient.rs"]
mod obedient;
mod offline;
mod replicas;
mod said;
mod site;
mod survives;
mod time;
mod two_hours;
