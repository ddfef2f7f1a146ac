//! Which workloads, or which objects, a resource is about.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Labels to match: `matchLabels` in most kinds, `labels` in ServiceEntry, Sidecar and EnvoyFilter.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadSelector {
    pub match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LabelsSelector {
    pub labels: BTreeMap<String, String>,
}

/// An object that a policy is attached to.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicyTargetReference {
    pub group: String,
    pub kind: String,
    pub name: String,
    pub namespace: String,
}
