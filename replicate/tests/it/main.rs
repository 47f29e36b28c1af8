//! What capturing promises: whatever an application does, all captured files in order are its database, byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod application;
mod captures;
mod checkpoints;
mod common;
mod goes_on;
mod holes;
mod parked;
mod processes;
mod resting;
mod said;
mod soak;
