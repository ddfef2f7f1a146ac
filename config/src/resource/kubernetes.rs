//! Kubernetes objects, as far as a gateway reads them. Fields that are not here are ignored in silence, because dumps
//! of a cluster are full of them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::value::{SecretBytes, SecretText};

/// `v1` Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Service {
    #[serde(rename = "type")]
    pub type_: String,
    /// `None` (the word) means headless.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    pub external_name: String,
    pub selector: BTreeMap<String, String>,
    pub ports: Vec<ServicePort>,
    pub traffic_distribution: String,
    pub publish_not_ready_addresses: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    pub name: String,
    pub protocol: String,
    pub app_protocol: String,
    pub port: u32,
    pub target_port: Option<IntOrString>,
    pub node_port: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Number(u32),
    Name(String),
}

/// `v1` Endpoints.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoints {
    pub subsets: Vec<EndpointSubset>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSubset {
    pub addresses: Vec<EndpointAddress>,
    pub not_ready_addresses: Vec<EndpointAddress>,
    pub ports: Vec<EndpointPort>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointAddress {
    pub ip: String,
    pub hostname: String,
    pub node_name: String,
    pub target_ref: Option<ObjectReference>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ObjectReference {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointPort {
    pub name: String,
    /// `None` in an EndpointSlice means all ports.
    pub port: Option<u32>,
    pub protocol: String,
    pub app_protocol: String,
}

/// `discovery.k8s.io` EndpointSlice. Its service is the label `kubernetes.io/service-name`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: String,
    pub endpoints: Vec<Endpoint>,
    pub ports: Vec<EndpointPort>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    pub addresses: Vec<String>,
    pub conditions: Option<EndpointConditions>,
    pub hostname: String,
    pub node_name: String,
    pub zone: String,
    pub target_ref: Option<ObjectReference>,
    pub hints: Option<EndpointHints>,
    /// Of `v1beta1`.
    pub topology: BTreeMap<String, String>,
}

/// Unset means `true` for `ready` and `serving`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointHints {
    pub for_zones: Vec<ForZone>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ForZone {
    pub name: String,
}

/// `v1` Secret.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Secret {
    #[serde(rename = "type")]
    pub type_: String,
    /// Base64 in the file. An entry of `string_data` with the same key wins.
    pub data: BTreeMap<String, SecretBytes>,
    pub string_data: BTreeMap<String, SecretText>,
}

/// `v1` ConfigMap.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConfigMap {
    pub data: BTreeMap<String, String>,
}

/// `v1` Namespace: only its metadata matters.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Namespace {}

impl Secret {
    /// The value of `key`, from `stringData` before `data`, as the Kubernetes API merges them.
    pub fn value(&self, key: &str) -> Option<&[u8]> {
        self.string_data.get(key).map(SecretText::expose).or_else(|| self.data.get(key).map(SecretBytes::expose))
    }
}
