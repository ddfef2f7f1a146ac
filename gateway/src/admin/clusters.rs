//! `/clusters`: the endpoints of every cluster as they are at the moment, in the lines that Envoy's page of that name has.

use std::fmt::Write;

use crate::state::State;
use crate::upstream::balancer::Member;

/// One line for each fact, by cluster and endpoint; clusters in order of their names.
pub(super) fn page(state: &State) -> String {
    let mut names: Vec<_> = state.clusters.keys().collect();
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let Some(cluster) = state.clusters.get(name) else { continue };
        let members = cluster.members();
        if !members.ready {
            // Writing to a `String` can't fail.
            let _ = writeln!(text, "{name}::warming::names are not resolved yet");
        }
        for Member { endpoint, weight, placement } in &members.list {
            let mut places = placement.locality.splitn(3, '/');
            let mut place = || places.next().unwrap_or_default().to_owned();
            let health = if endpoint.health.is_ejected() { "/failed_outlier_check" } else { "healthy" };
            let facts = [
                ("rq_active", endpoint.active().to_string()),
                ("health_flags", health.to_owned()),
                ("weight", weight.to_string()),
                ("region", place()),
                ("zone", place()),
                ("sub_zone", place()),
                ("priority", placement.priority.to_string()),
            ];
            for (fact, value) in facts {
                let _ = writeln!(text, "{name}::{}::{fact}::{value}", endpoint.address);
            }
        }
    }
    text
}
