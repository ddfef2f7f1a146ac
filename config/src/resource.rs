//! The Istio model: one struct for each kind, with Istio's field names in snake case and no logic.
//!
//! Every field is optional, as in proto3: a zero, an empty text and an empty list mean "unset". An `Option` stands where
//! unset differs from zero. Names are taken from Istio's API; its reference documents them, so they are documented
//! here only where there is something to add.

#![allow(missing_docs, reason = "the fields are Istio's, and its reference describes them")]

pub mod destination_rule;
pub mod fields;
pub mod gateway;
pub mod kubernetes;
pub mod mesh_config;
pub mod proxy_config;
pub mod security;
pub mod selector;
pub mod service_entry;
pub mod telemetry;
pub mod value;
pub mod virtual_service;
pub mod workload_entry;
pub mod workload_group;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::diagnostic::{Location, Place};
use crate::snapshot::ResourceName;
use crate::source::Document;

/// One object of the configuration: what it is called, what it says, where it stands.
///
/// Two resources are equal if they say the same, wherever they stand.
#[derive(Debug, Clone)]
pub struct Resource {
    pub meta: Meta,
    pub spec: Spec,
    pub origin: Origin,
}

impl Resource {
    /// Kind, namespace and name.
    pub fn name(&self) -> ResourceName {
        ResourceName {
            kind: self.meta.kind.as_str(),
            namespace: Arc::clone(&self.meta.namespace),
            name: Arc::clone(&self.meta.name),
        }
    }

    /// Where the field at `path` (`spec.http[0].route[1].destination.host`) stands; for an absent field its nearest
    /// ancestor that exists, at worst the document's first line. Cost: the first call for a document reads it again.
    pub fn locate(&self, path: &str) -> Location {
        self.origin.locate(path)
    }

    /// The place of the field at `path`, for a finding about it.
    pub(crate) fn place(&self, path: &str) -> Place {
        match &*self.origin.path {
            "" => self.origin.document.place(path),
            item => self.origin.document.place(&format!("{item}.{path}")),
        }
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.meta == other.meta && self.spec == other.spec
    }
}

/// `metadata`, as far as it matters.
#[derive(Debug, Clone, PartialEq)]
pub struct Meta {
    pub kind: Kind,
    /// Never empty: `default` where the document names none.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The order of precedence: older first, absent counts as oldest.
    pub creation_timestamp: Option<jiff::Timestamp>,
}

/// Where a resource comes from: a document, and the path inside of it (`items[3]` in a `List`, else empty).
#[derive(Debug, Clone)]
pub struct Origin {
    pub document: Arc<Document>,
    pub path: Box<str>,
}

impl Origin {
    fn locate(&self, path: &str) -> Location {
        if self.path.is_empty() {
            self.document.locate(path)
        } else {
            self.document.locate(&format!("{}.{path}", self.path))
        }
    }
}

/// The kinds that a gateway knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    MeshConfig,
    ProxyConfig,
    Gateway,
    VirtualService,
    DestinationRule,
    ServiceEntry,
    WorkloadEntry,
    WorkloadGroup,
    Sidecar,
    EnvoyFilter,
    RequestAuthentication,
    AuthorizationPolicy,
    PeerAuthentication,
    Telemetry,
    Service,
    Endpoints,
    EndpointSlice,
    Secret,
    ConfigMap,
    Namespace,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::MeshConfig,
        Self::ProxyConfig,
        Self::Gateway,
        Self::VirtualService,
        Self::DestinationRule,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::WorkloadGroup,
        Self::Sidecar,
        Self::EnvoyFilter,
        Self::RequestAuthentication,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::Telemetry,
        Self::Service,
        Self::Endpoints,
        Self::EndpointSlice,
        Self::Secret,
        Self::ConfigMap,
        Self::Namespace,
    ];

    /// The word after `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MeshConfig => "MeshConfig",
            Self::ProxyConfig => "ProxyConfig",
            Self::Gateway => "Gateway",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::WorkloadGroup => "WorkloadGroup",
            Self::Sidecar => "Sidecar",
            Self::EnvoyFilter => "EnvoyFilter",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::Telemetry => "Telemetry",
            Self::Service => "Service",
            Self::Endpoints => "Endpoints",
            Self::EndpointSlice => "EndpointSlice",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::Namespace => "Namespace",
        }
    }

    /// Whether a resource that can't be accepted must close what it selects (`design.md`, Reload, rule 4).
    pub fn is_security(self) -> bool {
        matches!(self, Self::RequestAuthentication | Self::AuthorizationPolicy | Self::PeerAuthentication)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a resource says. Sidecar and EnvoyFilter keep their JSON form.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    MeshConfig(Arc<mesh_config::MeshConfig>),
    ProxyConfig(Arc<proxy_config::ProxyConfigResource>),
    Gateway(Arc<gateway::Gateway>),
    VirtualService(Arc<virtual_service::VirtualService>),
    DestinationRule(Arc<destination_rule::DestinationRule>),
    ServiceEntry(Arc<service_entry::ServiceEntry>),
    WorkloadEntry(Arc<workload_entry::WorkloadEntry>),
    WorkloadGroup(Arc<workload_group::WorkloadGroup>),
    Sidecar(Arc<Value>),
    EnvoyFilter(Arc<Value>),
    RequestAuthentication(Arc<security::RequestAuthentication>),
    AuthorizationPolicy(Arc<security::AuthorizationPolicy>),
    PeerAuthentication(Arc<security::PeerAuthentication>),
    Telemetry(Arc<telemetry::Telemetry>),
    Service(Arc<kubernetes::Service>),
    Endpoints(Arc<kubernetes::Endpoints>),
    EndpointSlice(Arc<kubernetes::EndpointSlice>),
    Secret(Arc<kubernetes::Secret>),
    ConfigMap(Arc<kubernetes::ConfigMap>),
    Namespace(Arc<kubernetes::Namespace>),
}
