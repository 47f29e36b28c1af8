//! The litestream binary.
fn main() {}
