//! `networking.istio.io` WorkloadGroup: checked, otherwise without effect on a gateway.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::workload_entry::WorkloadEntry;

/// Template of workloads that register themselves.
///
/// Source: `networking/v1alpha3/workload_group.proto`,
/// <https://istio.io/latest/docs/reference/config/networking/workload-group/>
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadGroup {
    pub metadata: Option<TemplateMeta>,
    pub template: Option<WorkloadEntry>,
    pub probe: Option<Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TemplateMeta {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}
