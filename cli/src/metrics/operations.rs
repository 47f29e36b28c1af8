//! What is counted for each kind of store, over all replicas that there ever were.

use litestream_storage::{Cost, Stores};

use super::text::{Kind, Text};

pub(super) const TOTAL: &str = "litestream_replica_operation_total";
pub(super) const BYTES: &str = "litestream_replica_operation_bytes";
pub(super) const DURATION: &str = "litestream_replica_operation_duration_seconds";
pub(super) const ERRORS: &str = "litestream_replica_operation_errors_total";
pub(super) const RETRIES: &str = "litestream_replica_operation_retries_total";

/// Writes what has been asked of the kinds of stores that there are.
pub(super) fn write(stores: &Stores, text: &mut Text) {
    let kinds = stores.meters().map(|(kind, meter)| (kind, meter.costs()));
    let used = |(_, costs): &&(&str, Vec<Cost>)| costs.iter().any(|cost| cost.count > 0);
    let all: Vec<(&str, &Cost)> =
        kinds.iter().filter(used).flat_map(|(kind, costs)| costs.iter().map(|cost| (*kind, cost))).collect();
    if all.is_empty() {
        return;
    }
    let labels = |kind, cost: &Cost| [("operation", cost.operation), ("replica_type", kind)];
    text.head(TOTAL, "The number of replica operations performed", Kind::Counter);
    for (kind, cost) in &all {
        text.sample(TOTAL, &labels(kind, cost), cost.count);
    }
    text.head(BYTES, "The number of bytes used by replica operations", Kind::Counter);
    for (kind, cost) in all.iter().filter(|(_, cost)| matches!(cost.operation, "GET" | "PUT")) {
        text.sample(BYTES, &labels(kind, cost), cost.bytes);
    }
    text.head(DURATION, "Duration of replica operations by type and operation", Kind::Histogram);
    for (kind, cost) in &all {
        let labels = labels(kind, cost);
        let [operation, replica] = labels;
        let bucket = format!("{DURATION}_bucket");
        for (millis, count) in cost.within {
            let bound = (millis as f64 / 1_000.0).to_string();
            text.sample(&bucket, &[operation, replica, ("le", &bound)], count);
        }
        text.sample(&bucket, &[operation, replica, ("le", "+Inf")], cost.count);
        text.sample(&format!("{DURATION}_sum"), &labels, cost.time.as_secs_f64());
        text.sample(&format!("{DURATION}_count"), &labels, cost.count);
    }
    text.head(ERRORS, "Number of replica operation errors by type, operation, and error code", Kind::Counter);
    for (kind, cost) in &all {
        let [operation, replica] = labels(kind, cost);
        // So that the first one shows as an increase.
        let none = cost.errors.iter().all(|(code, _)| *code != "transient").then_some(("transient", 0));
        for (code, count) in cost.errors.iter().copied().chain(none) {
            text.sample(ERRORS, &[operation, replica, ("code", code)], count);
        }
    }
    text.head(RETRIES, "Number of replica operations that were repeated", Kind::Counter);
    for (kind, cost) in &all {
        text.sample(RETRIES, &labels(kind, cost), cost.retries);
    }
}
