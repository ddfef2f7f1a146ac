//! TLS as configured: what a filter chain offers to clients and what a cluster asks of its upstream.
//!
//! Nothing here holds key material: certificates and CAs are named by their source, and found when the data plane is
//! built.
//!
//! Source: `reference/networking.md` §2.6, §2.7, §5.7; `reference/security.md` §4.

use std::path::PathBuf;
use std::sync::Arc;

/// TLS that a filter chain terminates.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerTls {
    /// As the Gateway says.
    pub mode: ServerMode,
    /// One or two pairs of certificate and key; with two, clients that can do ECDSA get that one. Empty only where the
    /// configuration names none that may be used: then no handshake succeeds.
    pub certificates: Vec<CertificateSource>,
    /// What is asked of clients.
    pub client: ClientAuthentication,
    /// Versions, suites, groups.
    pub parameters: TlsParameters,
    /// Offered protocols, most preferred first. A client without any of them goes on without ALPN.
    pub alpn: &'static [&'static str],
}

/// The modes of `Gateway.servers[].tls` that terminate TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the variants are Istio's modes")]
pub enum ServerMode {
    Simple,
    Mutual,
    OptionalMutual,
    IstioMutual,
}

/// What a filter chain asks of its clients.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClientAuthentication {
    /// No certificate is requested.
    None,
    /// A certificate is requested; one that is sent must be trusted.
    Optional(PeerTrust),
    /// A trusted certificate is needed.
    Required(PeerTrust),
}

/// When a client's certificate is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerTrust {
    /// Trust anchors and CRLs.
    pub ca: CaSource,
    /// One of these must be a SAN of the certificate, of any type; empty: any certificate will do.
    pub subject_alt_names: Vec<String>,
    /// SHA-256 of acceptable public keys (SubjectPublicKeyInfo). With `certificate_hashes`, a hit in either will do;
    /// both empty: any.
    pub spki_pins: Vec<[u8; 32]>,
    /// SHA-256 of acceptable certificates (DER).
    pub certificate_hashes: Vec<[u8; 32]>,
    /// Take any certificate whose key the client has (`insecureSkipVerify`).
    pub skip_verification: bool,
}

/// TLS towards an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientTls {
    /// As the DestinationRule says.
    pub mode: ClientMode,
    /// What is sent as SNI.
    pub server_name: ServerNameSource,
    /// Trust anchors and CRLs; `None` with `skip_verification`.
    pub ca: Option<CaSource>,
    /// One of these must be a SAN of the certificate, of any type; empty: not checked.
    pub subject_alt_names: Vec<Arc<str>>,
    /// The certificate must be valid for the name that is sent as SNI (or the IP address in its place), too.
    pub verify_server_name: bool,
    /// Take any certificate (`insecureSkipVerify`).
    pub skip_verification: bool,
    /// Our certificate: MUTUAL and ISTIO_MUTUAL.
    pub certificate: Option<CertificateSource>,
    /// Versions, suites, groups.
    pub parameters: TlsParameters,
}

/// The modes of `DestinationRule.trafficPolicy.tls` that are not plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the variants are Istio's modes")]
pub enum ClientMode {
    Simple,
    Mutual,
    /// Offers Istio's protocol names by ALPN.
    IstioMutual,
}

/// The SNI of an upstream connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ServerNameSource {
    /// The request's host after rewrites, without port, in lower case; raw TCP sends none.
    Request,
    /// Always this one.
    Fixed(Arc<str>),
}

/// Versions, suites and groups. Only what rustls can do is left here; what the configuration asks for beyond that has
/// been reported.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TlsParameters {
    /// The lowest version that is spoken.
    pub min: TlsVersion,
    /// The highest; below `min`, or below 1.2, every handshake fails.
    pub max: TlsVersion,
    /// Suites of TLS 1.2, most preferred first; empty: Envoy's defaults. TLS 1.3 has all of its three.
    pub cipher_suites: Vec<CipherSuite>,
    /// Key exchange groups, most preferred first; empty: X25519MLKEM768, X25519, P-256.
    pub groups: Vec<Group>,
}

impl Default for TlsParameters {
    fn default() -> Self {
        Self { min: TlsVersion::V1_2, max: TlsVersion::V1_3, cipher_suites: Vec::new(), groups: Vec::new() }
    }
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the variants are the versions")]
pub enum TlsVersion {
    V1_0,
    V1_1,
    V1_2,
    V1_3,
}

macro_rules! named {
    ($(#[$attribute:meta])* $type:ident: $($variant:ident $name:literal)*) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type {
            $(#[doc = $name] $variant,)*
        }

        impl $type {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// As Istio's configuration writes it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// By name; `None` if it can't be offered.
            pub fn by_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

named! {
    /// The suites of TLS 1.2 that are safe: ECDHE with an AEAD.
    CipherSuite:
    EcdheEcdsaAes128GcmSha256 "ECDHE-ECDSA-AES128-GCM-SHA256"
    EcdheRsaAes128GcmSha256 "ECDHE-RSA-AES128-GCM-SHA256"
    EcdheEcdsaAes256GcmSha384 "ECDHE-ECDSA-AES256-GCM-SHA384"
    EcdheRsaAes256GcmSha384 "ECDHE-RSA-AES256-GCM-SHA384"
    EcdheEcdsaChacha20Poly1305 "ECDHE-ECDSA-CHACHA20-POLY1305"
    EcdheRsaChacha20Poly1305 "ECDHE-RSA-CHACHA20-POLY1305"
}

named! {
    /// Key exchange groups.
    Group:
    X25519MlKem768 "X25519MLKEM768"
    X25519 "X25519"
    P256 "P-256"
    P384 "P-384"
    P521 "P-521"
}

/// Where a certificate with its key comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CertificateSource {
    /// A Secret of the gateway's namespace, as a document or mounted below `--certs`.
    Secret(Arc<str>),
    /// Files, named by the configuration.
    Files {
        /// PEM, leaf first.
        certificate: PathBuf,
        /// PEM.
        key: PathBuf,
    },
    /// The workload's identity (SPIFFE), also `builtin://`.
    Workload,
    /// None: why the configuration's name can't be used (`invalid://`, `sds://`, a foreign namespace).
    Unusable(Arc<str>),
}

/// Where trust anchors and CRLs come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CaSource {
    /// Secret `<name>-cacert` if there is one, else Secret `<name>`.
    Credential(Arc<str>),
    /// Exactly this Secret (`caCertCredentialName`).
    Secret(Arc<str>),
    /// A ConfigMap of the gateway's namespace.
    ConfigMap(Arc<str>),
    /// Files, named by the configuration.
    Files {
        /// PEM, one or more certificates.
        ca: PathBuf,
        /// PEM, one or more CRLs.
        crl: Option<PathBuf>,
    },
    /// The roots of the mesh, which come with the workload's identity.
    Workload {
        /// PEM, one or more CRLs.
        crl: Option<PathBuf>,
    },
    /// The operating system's roots.
    System {
        /// PEM, one or more CRLs.
        crl: Option<PathBuf>,
    },
    /// None: why the configuration's name can't be used.
    Unusable(Arc<str>),
}
