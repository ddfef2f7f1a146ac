//! The table of codes.

use serde::{Serialize, Serializer};

macro_rules! codes {
    ($($name:ident $id:literal $title:literal)*) => {
        /// What kind of finding a diagnostic is. A code never changes its meaning.
        ///
        /// `IST` codes are Istio's, with the meaning they have in `istioctl analyze`
        /// (<https://istio.io/latest/docs/reference/config/analysis/>); `GW` codes are ours.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// All codes, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// `IST0101`.
            pub fn id(self) -> &'static str {
                match self {
                    $(Self::$name => $id,)*
                }
            }

            /// One line on what it means.
            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$name => $title,)*
                }
            }
        }
    };
}

// The macro keeps a code, its number and its meaning on one line, so that this is the table that the manual prints.
codes! {
    ReferencedResourceNotFound "IST0101" "A resource refers to something that does not exist."
    SchemaValidationError "IST0106" "A field breaks a rule of its kind."
    ConflictingMeshGatewayVirtualServiceHosts "IST0109" "Two VirtualServices of the mesh have the same host."
    VirtualServiceDestinationPortSelectorRequired "IST0112" "A destination has several ports, and the route names none."
    PortNameIsNotUnderNamingConvention "IST0118" "A port name of a Service says nothing about its protocol."
    NoServerCertificateVerificationDestinationLevel "IST0128" "A DestinationRule originates TLS without a CA."
    NoServerCertificateVerificationPortLevel "IST0129" "A port of a DestinationRule originates TLS without a CA."
    VirtualServiceUnreachableRule "IST0130" "A rule can't be reached, because an earlier one always matches."
    VirtualServiceIneffectiveMatch "IST0131" "A match can't be reached, because an earlier one covers it."
    VirtualServiceHostNotFoundInGateway "IST0132" "A host of a VirtualService is not a host of its Gateway."
    SchemaWarning "IST0133" "A field is legal, and probably not meant so."
    ServiceEntryAddressesRequired "IST0134" "A TCP port of a ServiceEntry has no address to tell it by."
    GatewayDuplicateCertificate "IST0138" "Gateways share a certificate, which browsers take as leave to share connections."
    IngressRouteRulesNotAffected "IST0140" "A subset has no effect on an ingress gateway."
    ConflictingGateways "IST0145" "Two servers have the same selector, port and host."
    JwtClaimBasedRoutingWithoutRequestAuthN "IST0149" "A route matches claims, and no RequestAuthentication verifies them."
    ReferencedProviderNotFound "IST0157" "A Telemetry names a provider that MeshConfig does not have."
    InvalidGatewayCredential "IST0161" "A credential that a Gateway or a DestinationRule names can't be used."
    GatewayPortNotDefinedOnService "IST0162" "A port of a Gateway is not a port of its Service."
    DestinationRuleSubsetNotSelectPods "IST0173" "A subset selects no endpoint."
    UnknownDestinationRuleHost "IST0174" "The host of a DestinationRule is no known service."
    ConflictingServiceEntryProtocols "IST0177" "ServiceEntries disagree on the protocol of a host and port."
    Unreadable "GW0001" "A file or directory can't be read."
    Syntax "GW0002" "A document is not YAML."
    DuplicateKey "GW0003" "A key stands twice in one mapping."
    UnknownField "GW0004" "A field that its kind does not have."
    BadValue "GW0005" "A value that its field does not take."
    BadObject "GW0006" "A document is no object: apiVersion, kind or metadata.name is missing or wrong."
    UnsupportedVersion "GW0007" "An apiVersion that does not exist for this kind."
    UnknownKind "GW0008" "A kind that a gateway does not read."
    DuplicateResource "GW0009" "The same kind, namespace and name twice."
    TooLarge "GW0010" "A file, or the number of files, is over the limit."
    EmptyFile "GW0011" "A file with resources became empty, which may be half of a save."
    Unsupported "GW0101" "Known to Istio, and not supported by this gateway."
    Ignored "GW0102" "Known to Istio, and without effect on a gateway."
    SecurityRefused "GW0103" "A security resource that can't be enforced; what it selects answers 503."
    Conflict "GW0104" "Two resources can't both be in force; the older one is."
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique() {
        let mut ids: Vec<_> = Code::ALL.iter().map(|code| code.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), Code::ALL.len());
    }
}
