//! What the VFS promises, one file a promise. One program, since each links the whole S3 client.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
mod round_trips;
mod rules;
