//! Which apiVersion and kind is which [`Kind`].

use super::decode::nearest;
use crate::resource::Kind;

/// What `apiVersion` and `kind` of an object mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Dispatch {
    Known(Kind),
    /// The kind exists in this group, the version doesn't.
    WrongVersion {
        kind: Kind,
        versions: String,
    },
    /// A kind that Istio doesn't have in this group of Istio's, probably misspelled.
    WrongKind {
        nearest: Option<&'static str>,
    },
    /// Somebody else's object; the name is `Deployment.apps`.
    Other {
        name: String,
    },
}

struct Group {
    name: &'static str,
    kinds: &'static [Kind],
    versions: &'static [&'static str],
}

/// Source: `pkg/config/schema/collections` of Istio.
const GROUPS: [Group; 8] = [
    Group {
        name: "networking.istio.io",
        kinds: &[
            Kind::Gateway,
            Kind::VirtualService,
            Kind::DestinationRule,
            Kind::ServiceEntry,
            Kind::WorkloadEntry,
            Kind::WorkloadGroup,
            Kind::Sidecar,
        ],
        versions: &["v1", "v1beta1", "v1alpha3"],
    },
    Group { name: "networking.istio.io", kinds: &[Kind::ProxyConfig], versions: &["v1beta1"] },
    Group { name: "networking.istio.io", kinds: &[Kind::EnvoyFilter], versions: &["v1alpha3"] },
    Group {
        name: "security.istio.io",
        kinds: &[Kind::RequestAuthentication, Kind::AuthorizationPolicy, Kind::PeerAuthentication],
        versions: &["v1", "v1beta1"],
    },
    Group { name: "telemetry.istio.io", kinds: &[Kind::Telemetry], versions: &["v1", "v1alpha1"] },
    Group { name: "mesh.istio.io", kinds: &[Kind::MeshConfig], versions: &["v1alpha1"] },
    Group {
        name: "",
        kinds: &[Kind::Service, Kind::Endpoints, Kind::Secret, Kind::ConfigMap, Kind::Namespace],
        versions: &["v1"],
    },
    Group { name: "discovery.k8s.io", kinds: &[Kind::EndpointSlice], versions: &["v1", "v1beta1"] },
];

/// Looks up an object. `api_version` is empty if the object has none, which only MeshConfig may.
pub(super) fn dispatch(api_version: &str, kind: &str) -> Dispatch {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if api_version.is_empty() && kind == Kind::MeshConfig.as_str() {
        return Dispatch::Known(Kind::MeshConfig);
    }
    for known in GROUPS.iter().filter(|known| known.name == group) {
        let Some(kind) = known.kinds.iter().find(|known| known.as_str() == kind) else { continue };
        if known.versions.contains(&version) {
            return Dispatch::Known(*kind);
        }
        let versions: Vec<String> = known
            .versions
            .iter()
            .map(|version| if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") })
            .collect();
        return Dispatch::WrongVersion { kind: *kind, versions: versions.join(", ") };
    }
    // A misspelled AuthorizationPolicy must not be passed over as somebody else's object.
    if GROUPS.iter().any(|known| known.name == group && !matches!(known.name, "" | "discovery.k8s.io")) {
        let kinds: Vec<&'static str> = GROUPS
            .iter()
            .filter(|known| known.name == group)
            .flat_map(|known| known.kinds)
            .map(|kind| kind.as_str())
            .collect();
        return Dispatch::WrongKind { nearest: nearest(kind, &kinds) };
    }
    // The right kind in a group that looks like Istio's.
    if group.ends_with("istio.io")
        && let Some((known, kind)) = GROUPS
            .iter()
            .filter(|known| known.name.ends_with("istio.io"))
            .find_map(|known| Some((known, known.kinds.iter().find(|known| known.as_str() == kind)?)))
    {
        let versions: Vec<String> = known.versions.iter().map(|version| format!("{}/{version}", known.name)).collect();
        return Dispatch::WrongVersion { kind: *kind, versions: versions.join(", ") };
    }
    let name = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
    Dispatch::Other { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_api_version_of_istio_is_known() {
        for (api_version, kind, expected) in [
            ("networking.istio.io/v1", "Gateway", Kind::Gateway),
            ("networking.istio.io/v1beta1", "VirtualService", Kind::VirtualService),
            ("networking.istio.io/v1alpha3", "WorkloadGroup", Kind::WorkloadGroup),
            ("networking.istio.io/v1beta1", "ProxyConfig", Kind::ProxyConfig),
            ("networking.istio.io/v1alpha3", "EnvoyFilter", Kind::EnvoyFilter),
            ("security.istio.io/v1", "AuthorizationPolicy", Kind::AuthorizationPolicy),
            ("telemetry.istio.io/v1alpha1", "Telemetry", Kind::Telemetry),
            ("", "MeshConfig", Kind::MeshConfig),
            ("v1", "Service", Kind::Service),
            ("discovery.k8s.io/v1", "EndpointSlice", Kind::EndpointSlice),
        ] {
            assert_eq!(dispatch(api_version, kind), Dispatch::Known(expected), "{api_version} {kind}");
        }
    }

    #[test]
    fn wrong_versions_name_the_right_ones() {
        assert_eq!(
            dispatch("networking.istio.io/v2", "EnvoyFilter"),
            Dispatch::WrongVersion { kind: Kind::EnvoyFilter, versions: "networking.istio.io/v1alpha3".into() }
        );
        assert_eq!(
            dispatch("secrity.istio.io/v1", "AuthorizationPolicy"),
            Dispatch::WrongVersion {
                kind: Kind::AuthorizationPolicy,
                versions: "security.istio.io/v1, security.istio.io/v1beta1".into()
            }
        );
    }

    #[test]
    fn misspelled_kinds_of_istio_are_no_strangers() {
        assert_eq!(
            dispatch("security.istio.io/v1", "AuthorizationPolcy"),
            Dispatch::WrongKind { nearest: Some("AuthorizationPolicy") }
        );
    }

    #[test]
    fn the_same_word_in_another_group_is_another_kind() {
        for (api_version, kind, name) in [
            ("gateway.networking.k8s.io/v1", "Gateway", "Gateway.gateway.networking.k8s.io"),
            ("serving.knative.dev/v1", "Service", "Service.serving.knative.dev"),
            ("apps/v1", "Deployment", "Deployment.apps"),
            ("v1", "Pod", "Pod"),
            ("extensions.istio.io/v1alpha1", "WasmPlugin", "WasmPlugin.extensions.istio.io"),
        ] {
            assert_eq!(dispatch(api_version, kind), Dispatch::Other { name: name.into() });
        }
    }
}
