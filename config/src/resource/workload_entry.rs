//! `networking.istio.io` WorkloadEntry, also the endpoint of a ServiceEntry.

use std::collections::BTreeMap;

use serde::Deserialize;

/// One workload outside of Kubernetes.
///
/// Source: `networking/v1alpha3/workload_entry.proto`,
/// <https://istio.io/latest/docs/reference/config/networking/workload-entry/>
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadEntry {
    pub address: String,
    pub ports: BTreeMap<String, u32>,
    pub labels: BTreeMap<String, String>,
    pub network: String,
    pub locality: String,
    /// Zero means one.
    pub weight: u32,
    pub service_account: String,
    /// `status.conditions` says `Healthy: False`: the probe of a WorkloadGroup fails. No field of the spec.
    #[serde(skip)]
    pub unhealthy: bool,
}
