//! Rows as perftest prints them, with the ratio to the limit at their end.

use serde::Serialize;

use super::turns::Times;

/// One row. Times are nanoseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was timed.
    pub what: String,
    /// Bytes of state.
    pub bytes: u64,
    /// Bytes of it that changed in each step.
    pub changed_bytes: u64,
    /// Steps that were timed.
    pub iterations: u64,
    /// The shortest.
    pub min_ns: u64,
    /// Half of them took at most this.
    pub median_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// 999 of 1000.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Steps a second.
    pub per_second: f64,
    /// What changed, in bytes a second.
    pub bytes_per_second: f64,
    /// How often the median of the limit fits into this one's; none for a limit.
    pub of_limit: Option<f64>,
}

impl Row {
    /// What `times` say of steps that change so many of `bytes`.
    pub fn new(what: &str, bytes: u64, changed_bytes: u64, times: &Times) -> Self {
        let per_second = times.rate();
        Self {
            what: what.to_owned(),
            bytes,
            changed_bytes,
            iterations: times.histogram.len(),
            min_ns: times.histogram.min(),
            median_ns: times.quantile(0.5),
            p99_ns: times.quantile(0.99),
            p999_ns: times.quantile(0.999),
            max_ns: times.histogram.max(),
            per_second,
            bytes_per_second: per_second * changed_bytes as f64,
            of_limit: None,
        }
    }

    /// The same, beside its limit.
    #[must_use]
    pub fn beside(mut self, limit: &Row) -> Self {
        self.of_limit = Some(self.median_ns as f64 / limit.median_ns.max(1) as f64);
        self
    }
}
