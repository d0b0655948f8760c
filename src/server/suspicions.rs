//! What the failure detector found, for the people who read logs and metrics.

use std::time::Duration;

use super::{metrics, node::Node};
use crate::membership::{Finding, NodeId, Time};

/// How often this node says that it is short of processor time.
const LATE_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// When this node said so last.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    told: Option<Time>,
}

impl Node {
    /// The membership's timer ran so much later than it should have. Others may take a node that
    /// does that for dead.
    pub(super) fn ran_late(&self, late: Duration, now: Time) {
        metrics::ran_late(late);
        let long = self.config.membership.suspicion_after / 2;
        let mut lateness = self.lateness.borrow_mut();
        let recent = lateness.told.is_some_and(|told| now.since(told) < LATE_AGAIN_AFTER);
        if late >= long && !recent {
            lateness.told = Some(now);
            tracing::warn!(
                late_ms = late.as_millis(),
                "this server did not get to run in time; give it more processor time, or all servers \
                 of the ring --detection patient"
            );
        }
    }

    pub(super) fn report(&self, finding: &Finding) {
        match finding {
            Finding::Suspected { node, why } => {
                metrics::suspected();
                tracing::warn!(suspect = %node, %why, "a neighbour is suspected");
            }
            Finding::Withdrawn { node, silence } => {
                metrics::suspicion_withdrawn();
                let silent_ms = silence.as_millis();
                tracing::info!(suspect = %node, silent_ms, "heard again; suspected no more");
            }
            Finding::Accused { node, by } => {
                tracing::info!(suspect = %node, %by, "another member suspects somebody");
            }
            Finding::Removed { node, accusers, proposers } => {
                let (accusers, proposers) = (names(accusers), names(proposers));
                tracing::warn!(suspect = %node, accusers, proposers, "the ring goes on without it");
            }
            Finding::RemovedByMistake { node, silence } => {
                let silent_ms = silence.as_millis();
                tracing::warn!(
                    suspect = %node,
                    silent_ms,
                    "it was removed by mistake and lives; it will be waited for longer"
                );
            }
        }
    }
}

fn names(ids: &[NodeId]) -> String {
    let names: Vec<&str> = ids.iter().map(|id| id.name.as_str()).collect();
    if names.is_empty() { "unknown".to_owned() } else { names.join(", ") }
}
