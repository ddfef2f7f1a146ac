//! TLS towards upstreams: one setting for each cluster, shared by all workers.
//!
//! Source: `reference/security.md` §4.8, `reference/networking.md` §5.7.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use certs::choice::Choice;
use certs::verify::{self, ServerRules};
use config::snapshot::cluster::UpstreamProtocol;
use config::snapshot::tls::{ClientMode, ClientTls, ServerNameSource};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, CommonState, Error, InvalidMessage, PeerIncompatible};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::credentials::ClientMaterial;
use super::parameters::{provider, versions};
use crate::request::TlsFacts;

/// Names that sessions are kept for, where the name follows the request; each with a few tickets.
const NAMES: usize = 32;
/// Tickets that the TLS library keeps for a name.
const TICKETS: usize = 8;

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the variants say it")]
pub enum Application {
    Http1,
    Http2,
    Tcp,
}

/// TLS of a cluster. Costs little until it is used.
#[derive(Debug)]
pub struct Client {
    /// As configured.
    pub settings: Arc<ClientTls>,
    material: ClientMaterial,
    protocol: UpstreamProtocol,
    http1: Made,
    http2: Made,
    tcp: Made,
}

/// Made when it is first needed.
type Made = OnceLock<Result<Arc<ClientConfig>, Unusable>>;

/// Settings with which no handshake can succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no version of TLS is left to speak")]
pub struct Unusable;

impl Client {
    /// TLS with `material`, for a cluster that speaks `protocol`.
    pub fn new(settings: Arc<ClientTls>, material: ClientMaterial, protocol: UpstreamProtocol) -> Self {
        let (http1, http2, tcp) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Self { settings, material, protocol, http1, http2, tcp }
    }

    /// Whether it does the same with the same certificates.
    pub fn is_same(&self, settings: &ClientTls, material: &ClientMaterial, protocol: UpstreamProtocol) -> bool {
        *self.settings == *settings && self.material == *material && self.protocol == protocol
    }

    /// The name that a request to `authority` needs a connection for; `None` if all connections are for the same one.
    pub fn server_name(&self, authority: &[u8]) -> Option<Arc<str>> {
        match self.settings.server_name {
            ServerNameSource::Request => Some(host_of(authority).into()),
            ServerNameSource::Fixed(_) => None,
        }
    }

    /// Shakes hands on `stream`, which is connected to `peer` (`None` on unix sockets). `server_name` is what
    /// [`Client::server_name`] has made of the request; raw TCP has none.
    ///
    /// # Errors
    /// The reason as Envoy writes it; empty if the server just went away.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        application: Application,
        server_name: Option<&str>,
        peer: Option<IpAddr>,
    ) -> Result<TlsStream<S>, Cow<'static, str>> {
        let name = match &self.settings.server_name {
            ServerNameSource::Fixed(name) => Some(&**name),
            ServerNameSource::Request => server_name,
        };
        let name = match name.map(|name| ServerName::try_from(name.to_owned())) {
            Some(Ok(name)) => name,
            // No certificate can be valid for what is no name.
            Some(Err(_)) if self.verifies_name(application) => return Err(Cow::Owned(refused(NO_NAME))),
            // An address is not sent as SNI, and not looked at either.
            Some(Err(_)) | None => ServerName::IpAddress(peer.unwrap_or(Ipv4Addr::UNSPECIFIED.into()).into()),
        };
        let config = self.config(application).map_err(|Unusable| reason(UNSUPPORTED))?;
        TlsConnector::from(config).connect(name, stream).await.map_err(|error| transport_reason(&error))
    }

    /// What a handshake of ours agreed on, once it is complete.
    pub fn facts(&self, connection: &CommonState) -> TlsFacts {
        TlsFacts::new(connection, self.material.certificate.clone())
    }

    /// Whether the certificate must be valid for the name. Raw TCP has none unless it is fixed.
    fn verifies_name(&self, application: Application) -> bool {
        let has_name = application != Application::Tcp || self.settings.server_name != ServerNameSource::Request;
        self.settings.verify_server_name && has_name
    }

    fn config(&self, application: Application) -> Result<Arc<ClientConfig>, Unusable> {
        let made = match application {
            Application::Http1 => &self.http1,
            Application::Http2 => &self.http2,
            Application::Tcp => &self.tcp,
        };
        made.get_or_init(|| self.make(application)).clone()
    }

    fn make(&self, application: Application) -> Result<Arc<ClientConfig>, Unusable> {
        let ClientTls {
            mode: _,
            server_name,
            ca: _,
            subject_alt_names,
            verify_server_name: _,
            skip_verification,
            certificate: _,
            parameters,
        } = &*self.settings;
        let ClientMaterial { certificate, authority } = &self.material;
        let rules = ServerRules {
            subject_alt_names: subject_alt_names.clone(),
            verify_name: self.verifies_name(application),
            skip_verification: *skip_verification,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider(parameters)))
            .with_protocol_versions(&versions(parameters))
            .map_err(|_| Unusable)?
            .dangerous()
            .with_custom_certificate_verifier(verify::server(authority.clone(), rules));
        let mut config = match certificate {
            Some(certificate) => {
                builder.with_client_cert_resolver(Arc::new(Choice::new(vec![Arc::clone(certificate)])))
            }
            None => builder.with_no_client_auth(),
        };
        let names = if *server_name == ServerNameSource::Request { NAMES } else { 1 };
        config.resumption = Resumption::in_memory_sessions(names * TICKETS);
        config.alpn_protocols = self.alpn(application).iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// What is offered by ALPN, most preferred first.
    fn alpn(&self, application: Application) -> &'static [&'static str] {
        match (self.settings.mode, application) {
            (ClientMode::Simple | ClientMode::Mutual, Application::Http2) => &["h2"],
            (ClientMode::Simple | ClientMode::Mutual, Application::Http1 | Application::Tcp) => &[],
            (ClientMode::IstioMutual, Application::Http1) => &["istio-http/1.1", "istio", "http/1.1"],
            (ClientMode::IstioMutual, Application::Http2) => &["istio-h2", "istio", "h2"],
            (ClientMode::IstioMutual, Application::Tcp) if self.protocol == UpstreamProtocol::Http2 => {
                &["istio-peer-exchange", "istio", "h2"]
            }
            (ClientMode::IstioMutual, Application::Tcp) => &["istio-peer-exchange", "istio"],
        }
    }
}

/// The host of an authority, in lower case, without port and brackets.
fn host_of(authority: &[u8]) -> String {
    let text = String::from_utf8_lossy(authority);
    let host = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => match text.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => &text,
        },
    };
    host.to_ascii_lowercase()
}

/// A number and a name of BoringSSL's.
type Reason = (u32, &'static str);

/// The library number of SSL, as in BoringSSL's packed errors.
const SSL: u32 = 16 << 24;
const VERIFY_FAILED: Reason = (125, "CERTIFICATE_VERIFY_FAILED");
const WRONG_VERSION: Reason = (247, "WRONG_VERSION_NUMBER");
const UNSUPPORTED: Reason = (240, "UNSUPPORTED_PROTOCOL");
const WRONG_CURVE: Reason = (243, "WRONG_CURVE");
const UNEXPECTED: Reason = (225, "UNEXPECTED_MESSAGE");
const DECODE_ERROR: Reason = (137, "DECODE_ERROR");
const BAD_RECORD: Reason = (139, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC");
/// What the verification says of something that is no host name.
const NO_NAME: &str = "_verify_SAN_list";

/// Why a handshake failed, as Envoy writes it. Empty if the server just went away.
fn transport_reason(error: &io::Error) -> Cow<'static, str> {
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else { return Cow::Borrowed("") };
    if let Some(why) = verify::envoy_reason(error) {
        return Cow::Owned(refused(&why));
    }
    match error {
        Error::AlertReceived(alert) => {
            let number = SSL + 1000 + u32::from(u8::from(*alert));
            Cow::Owned(format!(
                "TLS_error:|{number}:SSL_routines:OPENSSL_internal:{}:TLS_error_end",
                alert_name(*alert)
            ))
        }
        // Whatever is no TLS record.
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            reason(WRONG_VERSION)
        }
        Error::InvalidMessage(_) => reason(DECODE_ERROR),
        Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon) => reason(WRONG_CURVE),
        Error::PeerIncompatible(_) => reason(UNSUPPORTED),
        Error::DecryptError => reason(BAD_RECORD),
        _ => reason(UNEXPECTED),
    }
}

fn reason((number, name): Reason) -> Cow<'static, str> {
    Cow::Owned(format!("TLS_error:|{}:SSL_routines:OPENSSL_internal:{name}:TLS_error_end", SSL + number))
}

fn refused(why: &str) -> String {
    let (number, name) = VERIFY_FAILED;
    let number = SSL + number;
    format!("TLS_error:|{number}:SSL_routines:OPENSSL_internal:{name}:verify_cert_failed:{why}:TLS_error_end")
}

/// BoringSSL's name of an alert that was received.
fn alert_name(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CloseNotify => "SSLV3_ALERT_CLOSE_NOTIFY",
        AlertDescription::UnexpectedMessage => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        AlertDescription::BadRecordMac => "SSLV3_ALERT_BAD_RECORD_MAC",
        AlertDescription::DecryptionFailed => "TLSV1_ALERT_DECRYPTION_FAILED",
        AlertDescription::RecordOverflow => "TLSV1_ALERT_RECORD_OVERFLOW",
        AlertDescription::DecompressionFailure => "SSLV3_ALERT_DECOMPRESSION_FAILURE",
        AlertDescription::HandshakeFailure => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        AlertDescription::NoCertificate => "SSLV3_ALERT_NO_CERTIFICATE",
        AlertDescription::BadCertificate => "SSLV3_ALERT_BAD_CERTIFICATE",
        AlertDescription::UnsupportedCertificate => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        AlertDescription::CertificateRevoked => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        AlertDescription::CertificateExpired => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        AlertDescription::CertificateUnknown => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        AlertDescription::IllegalParameter => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        AlertDescription::UnknownCA => "TLSV1_ALERT_UNKNOWN_CA",
        AlertDescription::AccessDenied => "TLSV1_ALERT_ACCESS_DENIED",
        AlertDescription::DecodeError => "TLSV1_ALERT_DECODE_ERROR",
        AlertDescription::DecryptError => "TLSV1_ALERT_DECRYPT_ERROR",
        AlertDescription::ExportRestriction => "TLSV1_ALERT_EXPORT_RESTRICTION",
        AlertDescription::ProtocolVersion => "TLSV1_ALERT_PROTOCOL_VERSION",
        AlertDescription::InsufficientSecurity => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        AlertDescription::InternalError => "TLSV1_ALERT_INTERNAL_ERROR",
        AlertDescription::InappropriateFallback => "TLSV1_ALERT_INAPPROPRIATE_FALLBACK",
        AlertDescription::UserCanceled => "TLSV1_ALERT_USER_CANCELLED",
        AlertDescription::NoRenegotiation => "TLSV1_ALERT_NO_RENEGOTIATION",
        AlertDescription::UnsupportedExtension => "TLSV1_ALERT_UNSUPPORTED_EXTENSION",
        AlertDescription::CertificateUnobtainable => "TLSV1_ALERT_CERTIFICATE_UNOBTAINABLE",
        AlertDescription::UnrecognisedName => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        AlertDescription::BadCertificateStatusResponse => "TLSV1_ALERT_BAD_CERTIFICATE_STATUS_RESPONSE",
        AlertDescription::BadCertificateHashValue => "TLSV1_ALERT_BAD_CERTIFICATE_HASH_VALUE",
        AlertDescription::UnknownPSKIdentity => "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
        AlertDescription::CertificateRequired => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        AlertDescription::NoApplicationProtocol => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        _ => "UNKNOWN_ALERT_TYPE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_lose_port_case_and_brackets() {
        for (authority, host) in [
            ("Shop.Example.com", "shop.example.com"),
            ("shop.example.com:8443", "shop.example.com"),
            ("[2001:DB8::1]:443", "2001:db8::1"),
            ("192.0.2.1:443", "192.0.2.1"),
            ("a:b", "a:b"),
        ] {
            assert_eq!(host_of(authority.as_bytes()), host);
        }
    }

    #[test]
    fn failures_read_as_envoys() {
        // reference/networking.md §5.7.
        let plaintext = Error::InvalidMessage(InvalidMessage::InvalidContentType);
        assert_eq!(
            transport_reason(&io::Error::other(plaintext)),
            "TLS_error:|268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end"
        );
        let alert = Error::AlertReceived(AlertDescription::HandshakeFailure);
        assert_eq!(
            transport_reason(&io::Error::other(alert)),
            "TLS_error:|268436496:SSL_routines:OPENSSL_internal:SSLV3_ALERT_HANDSHAKE_FAILURE:TLS_error_end"
        );
        let unknown = Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert_eq!(
            transport_reason(&io::Error::other(unknown)),
            "TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:\
             _X509_verify_cert:_certificate_verification_error_at_depth_0:_unable_to_get_local_issuer_certificate:TLS_error_end"
        );
    }
}
