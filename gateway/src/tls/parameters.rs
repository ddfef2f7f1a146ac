//! Versions, cipher suites and groups, for both sides of TLS.
//!
//! Source: `reference/networking.md` §2.6; suites and groups of Envoy's defaults are measured.

use config::snapshot::tls::{CipherSuite, Group, TlsParameters, TlsVersion};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{NamedGroup, SupportedCipherSuite, SupportedProtocolVersion, version};

/// Suites of TLS 1.2 where the configuration names none. The first two of each kind of key are equals: a server leaves
/// the choice between them to the client.
const DEFAULT_SUITES: [CipherSuite; 6] = [
    CipherSuite::EcdheEcdsaAes128GcmSha256,
    CipherSuite::EcdheEcdsaChacha20Poly1305,
    CipherSuite::EcdheRsaAes128GcmSha256,
    CipherSuite::EcdheRsaChacha20Poly1305,
    CipherSuite::EcdheEcdsaAes256GcmSha384,
    CipherSuite::EcdheRsaAes256GcmSha384,
];
/// Groups where the configuration names none.
const DEFAULT_GROUPS: [Group; 3] = [Group::X25519MlKem768, Group::X25519, Group::P256];

/// Cryptography with the suites and groups of `parameters`, most preferred first. There may be no groups.
pub fn provider(parameters: &TlsParameters) -> CryptoProvider {
    let suites: &[CipherSuite] =
        if parameters.cipher_suites.is_empty() { &DEFAULT_SUITES } else { &parameters.cipher_suites };
    let groups: &[Group] = if parameters.groups.is_empty() { &DEFAULT_GROUPS } else { &parameters.groups };
    let tls13 = [
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    CryptoProvider {
        cipher_suites: tls13.into_iter().chain(suites.iter().copied().map(suite)).collect(),
        kx_groups: groups.iter().copied().filter_map(group).collect(),
        ..default_provider()
    }
}

/// The versions between the bounds of `parameters` that rustls speaks, if any.
pub fn versions(parameters: &TlsParameters) -> Vec<&'static SupportedProtocolVersion> {
    [(TlsVersion::V1_3, &version::TLS13), (TlsVersion::V1_2, &version::TLS12)]
        .into_iter()
        .filter(|(version, _)| (parameters.min..=parameters.max).contains(version))
        .map(|(_, version)| version)
        .collect()
}

/// A suite's name as OpenSSL and Envoy print it.
pub fn suite_name(suite: rustls::CipherSuite) -> &'static str {
    use rustls::CipherSuite as Suite;
    match suite {
        Suite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        Suite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        Suite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        Suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        Suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        other => other.as_str().unwrap_or("unknown"),
    }
}

/// A group's name as Envoy prints it.
pub fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        other => other.as_str().unwrap_or("unknown"),
    }
}

fn suite(suite: CipherSuite) -> SupportedCipherSuite {
    match suite {
        CipherSuite::EcdheEcdsaAes128GcmSha256 => cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheRsaAes128GcmSha256 => cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheEcdsaAes256GcmSha384 => cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheRsaAes256GcmSha384 => cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheEcdsaChacha20Poly1305 => cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        CipherSuite::EcdheRsaChacha20Poly1305 => cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    }
}

/// `None`: rustls can't do it. The compiler of the configuration has said so.
fn group(group: Group) -> Option<&'static dyn SupportedKxGroup> {
    match group {
        Group::X25519MlKem768 => Some(kx_group::X25519MLKEM768),
        Group::X25519 => Some(kx_group::X25519),
        Group::P256 => Some(kx_group::SECP256R1),
        Group::P384 => Some(kx_group::SECP384R1),
        Group::P521 => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_between_the_bounds() {
        let between = |min, max| {
            let found = versions(&TlsParameters { min, max, ..TlsParameters::default() });
            found.iter().map(|version| version.version).collect::<Vec<_>>()
        };
        use rustls::ProtocolVersion::{TLSv1_2, TLSv1_3};
        assert_eq!(between(TlsVersion::V1_2, TlsVersion::V1_3), [TLSv1_3, TLSv1_2]);
        assert_eq!(between(TlsVersion::V1_0, TlsVersion::V1_2), [TLSv1_2]);
        assert_eq!(between(TlsVersion::V1_3, TlsVersion::V1_3), [TLSv1_3]);
        assert_eq!(between(TlsVersion::V1_0, TlsVersion::V1_1), []);
        assert_eq!(between(TlsVersion::V1_3, TlsVersion::V1_2), []);
    }

    #[test]
    fn the_defaults_are_envoys() {
        let provider = provider(&TlsParameters::default());
        let groups: Vec<NamedGroup> = provider.kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(groups, [NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1]);
        let names: Vec<&str> = provider.cipher_suites.iter().map(|suite| suite_name(suite.suite())).collect();
        assert_eq!(names[3], "ECDHE-ECDSA-AES128-GCM-SHA256");
        assert_eq!(names[8], "ECDHE-RSA-AES256-GCM-SHA384");
    }
}
