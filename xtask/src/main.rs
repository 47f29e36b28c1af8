//! How people run the project.
fn main() {}
