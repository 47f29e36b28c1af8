//! Prometheus metrics: `addr` in the configuration, `/metrics`. What there is ([`families`]) is computed from the daemon's own counters when it is asked
//! for, and written ([`text`]) while it is being sent, so that ten thousand databases cost nothing in between.

mod families;
mod operations;
mod page;
mod process;
pub(crate) mod server;
#[cfg(test)]
mod tests;
mod text;
