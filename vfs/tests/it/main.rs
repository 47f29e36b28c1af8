//! What the VFS promises, one file a promise. One program, since each links the whole S3 client.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
mod edges;
mod hydration;
mod round_trips;
mod rules;
mod speed;
mod writing;

/// Faults of every kind in such a share of requests.
fn faults(share: f64, seed: u64) -> litestream_fixtures::s3::Faults {
    litestream_fixtures::s3::Faults {
        seed,
        rate_503: share / 3.0,
        rate_cut: share / 3.0,
        rate_stall: share / 3.0,
        ..litestream_fixtures::s3::Faults::default()
    }
}
