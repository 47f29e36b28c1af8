//! The litestream binary.

mod config;
mod units;
mod when;

fn main() {}
