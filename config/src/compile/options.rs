//! Who this gateway is, and the switches that Istio takes from its environment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::locality::{CLUSTER, Locality, REGION, SUBZONE, ZONE};

/// What the compiler must know that stands in no resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Labels of this gateway, which selectors are compared with.
    pub labels: BTreeMap<String, String>,
    /// Namespace of this gateway; also the root namespace unless MeshConfig names another.
    pub namespace: Arc<str>,
    /// Name of this workload.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// Its cluster, for telemetry.
    pub cluster_id: String,
    /// Suffix of Kubernetes service names: `cluster.local`.
    pub domain: String,
    /// SPIFFE trust domain unless MeshConfig names another.
    pub trust_domain: Option<String>,
    /// `region/zone/subzone`.
    pub locality: Option<String>,
    /// Ports to open by server port (`--port-map`); 0 lets the system choose. Wins over Services.
    pub port_map: BTreeMap<u16, u16>,
    /// `--access-log`: wins over MeshConfig.
    pub access_log: Option<AccessLogChoice>,
    /// Istio's switches.
    pub features: Features,
}

/// `--access-log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogChoice {
    /// No access log.
    Off,
    /// Lines of text, in MeshConfig's format or Istio's.
    Text,
    /// JSON objects, in MeshConfig's format or Istio's.
    Json,
}

/// Istio's environment variables that change what a gateway does, with Istio's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    /// `PILOT_HTTP10`: answer HTTP/1.0 requests.
    pub http10: bool,
    /// `PILOT_SCOPE_GATEWAY_TO_NAMESPACE`: only Gateways of our own namespace may select us.
    pub scope_gateway_to_namespace: bool,
    /// `ISTIO_META_IDLE_TIMEOUT`: idle time of client connections; zero turns it off.
    pub idle_timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        let labels = [("istio", "ingressgateway"), ("app", "istio-ingressgateway")];
        Self {
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            namespace: "istio-system".into(),
            name: "fairlead".to_owned(),
            service_account: "default".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            domain: "cluster.local".to_owned(),
            trust_domain: None,
            locality: None,
            port_map: BTreeMap::new(),
            access_log: None,
            features: Features::default(),
        }
    }
}

impl Options {
    /// Where we are; all parts are empty if that is unknown.
    pub(super) fn locality(&self) -> Locality<'_> {
        Locality::parse(self.locality.as_deref().unwrap_or_default())
    }

    /// The value of one of our labels; those of the topology follow from where we are, as in Istio.
    pub(super) fn label(&self, key: &str) -> Option<&str> {
        let locality = self.locality();
        let derived = match key {
            REGION => locality.region,
            ZONE => locality.zone,
            SUBZONE => locality.subzone,
            CLUSTER => &self.cluster_id,
            _ => "",
        };
        if derived.is_empty() { self.labels.get(key).map(String::as_str) } else { Some(derived) }
    }

    /// Whether our labels hold all of `selector`.
    pub(super) fn is_selected_by(&self, selector: &BTreeMap<String, String>) -> bool {
        is_label_subset(selector, &self.labels)
    }
}

/// Whether `labels` hold all of `selector`.
pub(super) fn is_label_subset(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
