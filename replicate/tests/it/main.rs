//! What capturing promises: whatever an application does, all captured files in order are its database, byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod application;
mod asked;
mod captures;
mod checkpoints;
mod common;
mod disk;
mod goes_on;
mod holes;
mod large;
#[path = "../support/obedient.rs"]
mod obedient;
mod overwritten;
mod parked;
mod processes;
mod resting;
mod soak;
mod table;
mod untouched;
