//! Rows as perftest prints them, with ratios at their end.

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
    /// Half of them took at most this: the typical one.
    pub median_ns: u64,
    /// All of them together, over their number.
    pub mean_ns: f64,
    /// How far they lie from that.
    pub stdev_ns: f64,
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
    /// It is what the machine can do at best, beside which another row stands.
    pub is_limit: bool,
    /// How often the median of the limit fits into this one's; 1 of a limit, none where nobody can
    /// tell what the limit is.
    pub of_limit: Option<f64>,
    /// The same of a round trip between two threads, where the limit is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_bare: Option<f64>,
    /// The same of the whole state, where only a part of it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_whole: Option<f64>,
    /// How often the median of ringkeep fits into this one's; only where contenders are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_ringkeep: Option<f64>,
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
            mean_ns: times.histogram.mean(),
            stdev_ns: times.histogram.stdev(),
            p99_ns: times.quantile(0.99),
            p999_ns: times.quantile(0.999),
            max_ns: times.histogram.max(),
            per_second,
            bytes_per_second: per_second * changed_bytes as f64,
            is_limit: false,
            of_limit: None,
            of_bare: None,
            of_whole: None,
            of_ringkeep: None,
        }
    }

    /// The same, as what others stand beside.
    #[must_use]
    pub fn as_limit(self) -> Self {
        Self { is_limit: true, of_limit: Some(1.0), ..self }
    }

    /// The same, as a second limit: what the first one does for whatever stands beside it is not
    /// counted in this one.
    #[must_use]
    pub fn as_bare_limit(self) -> Self {
        Self { is_limit: true, of_bare: Some(1.0), ..self }
    }

    /// The same, beside its limit.
    #[must_use]
    pub fn beside(self, limit: &Row) -> Self {
        self.beside_median(limit.median_ns)
    }

    /// The same, beside a limit that is known, in nanoseconds.
    #[must_use]
    pub fn beside_median(self, limit_ns: u64) -> Self {
        Self { of_limit: Some(self.ratio_to(limit_ns)), ..self }
    }

    /// The same, beside a second limit.
    #[must_use]
    pub fn beside_bare(self, bare: &Row) -> Self {
        Self { of_bare: Some(self.ratio_to(bare.median_ns)), ..self }
    }

    /// The same, beside a commit of the whole state.
    #[must_use]
    pub fn beside_whole(self, whole: &Row) -> Self {
        Self { of_whole: Some(self.ratio_to(whole.median_ns)), ..self }
    }

    /// The same, compared with ringkeep's row.
    #[must_use]
    pub fn compared_with(self, ours: &Row) -> Self {
        Self { of_ringkeep: Some(self.ratio_to(ours.median_ns)), ..self }
    }

    fn ratio_to(&self, ns: u64) -> f64 {
        self.median_ns as f64 / ns.max(1) as f64
    }
}
