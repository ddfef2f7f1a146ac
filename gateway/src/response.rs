//! Local replies: failure → status, body, response flag, details. The only such table.
//!
//! Source: `reference/networking.md` §9, §4.3, §4.6 and §4.7, measured on Envoy.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

use crate::egress::denials::Reason;
use crate::upstream::on_demand::Unresolved;

/// Envoy's response flags, in the order they were set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    set: [Option<Flag>; 4],
}

/// One response flag; the names are Envoy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "reference/telemetry-and-operations.md §4.6 has the table")]
pub enum Flag {
    UH,
    UT,
    UR,
    UF,
    UC,
    UO,
    NR,
    DI,
    FI,
    DC,
    URX,
    SI,
    DT,
    DPE,
    UPE,
    NC,
    DR,
    DF,
}

impl Flags {
    /// Sets `flag` after those that are set already.
    pub fn set(&mut self, flag: Flag) {
        for place in &mut self.set {
            match place {
                Some(present) if *present == flag => return,
                Some(_) => {}
                None => {
                    *place = Some(flag);
                    return;
                }
            }
        }
    }

    /// Whether no flag is set.
    pub fn is_empty(&self) -> bool {
        self.set[0].is_none()
    }

    /// Whether `flag` is set.
    pub fn contains(&self, flag: Flag) -> bool {
        self.set.contains(&Some(flag))
    }

    /// The flags in order.
    pub fn iter(&self) -> impl Iterator<Item = Flag> {
        self.set.iter().copied().flatten()
    }
}

impl fmt::Display for Flags {
    /// `URX,UF`, or `-` if there is none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (index, flag) in self.iter().enumerate() {
            write!(f, "{}{flag:?}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Why a request gets no answer from an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Not HTTP/1.1 as the grammar has it, or a body that breaks its framing.
    CodecError,
    /// A control character in a header value.
    InvalidCharacters,
    /// More than 60 KiB of head.
    HeadTooLarge,
    /// More than 100 header lines.
    TooManyHeaders,
    /// `content-length` next to `transfer-encoding`.
    LengthAndChunked,
    /// Another transfer coding than one `chunked`.
    InvalidTransferEncoding,
    /// Not HTTP/1.1.
    LowVersion,
    /// No Host line.
    MissingHost,
    /// Characters that can't stand in an authority, or two Host lines.
    InvalidAuthority,
    /// `http:///x`, `GET *`.
    InvalidUrl,
    /// An absolute target whose scheme is not http.
    InvalidScheme,
    /// An absolute https target on a plaintext connection.
    HttpsOnPlaintext,
    /// A target without a path: `OPTIONS *`, `http://h?x`.
    AbsolutePathRejected,
    /// A `connection` line that names a header which must not be dropped.
    ConnectionHeaderRejected,
    /// A header name with `_` where these are refused.
    UnexpectedUnderscore,
    /// QUERY without a content type.
    QueryWithoutContentType,
    /// A path that can't be normalised.
    InvalidPath,
    /// An upgrade other than WebSocket.
    UpgradeRefused,
    /// The head took too long.
    RequestHeaderTimeout,
    /// The request took too long to arrive.
    RequestTimeout,
    /// Nothing moved on the stream; `true` if the request had arrived.
    StreamIdle(bool),
    /// The stream lived too long; `true` if the request had arrived.
    MaxStreamDuration(bool),
    /// A policy that selects this gateway can't be honoured.
    Refused,
    /// No virtual host or no route.
    NoRoute,
    /// The host belongs to another TLS server of the listener (`--strict-sni`).
    Misdirected,
    /// The route's cluster doesn't exist.
    NoCluster,
    /// The cluster has no endpoint.
    NoHealthyUpstream,
    /// The upstream failed before its response began.
    Upstream {
        /// How.
        reset: Reset,
        /// After at least one retry.
        retried: bool,
    },
    /// The route's timeout.
    RouteTimeout,
    /// The timeout of the last try.
    PerTryTimeout,
    /// It must not leave.
    EgressDenied(Reason),
    /// An injected abort.
    Fault {
        /// HTTP status.
        status: u16,
        /// `grpc-status` for gRPC requests.
        grpc_status: Option<u8>,
    },
}

/// How an upstream failed before its response head was complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reset {
    /// No connection. Holds the transport's reason, blanks as `_`.
    ConnectionFailure(Cow<'static, str>),
    /// No connection in time.
    ConnectionTimeout,
    /// The connection closed.
    ConnectionTermination,
    /// The stream was reset (HTTP/2).
    RemoteReset,
    /// The stream was refused (HTTP/2).
    RemoteRefused,
    /// A limit of the cluster.
    Overflow,
    /// The upstream broke its protocol.
    ProtocolError,
    /// The request can't be said in the upstream's protocol: nothing was sent.
    Inexpressible,
    /// The host has no address to connect to.
    Unresolved(Unresolved),
}

impl Reset {
    /// The response flag.
    pub fn flag(&self) -> Flag {
        match self {
            Self::ConnectionFailure(_) | Self::ConnectionTimeout => Flag::UF,
            Self::ConnectionTermination => Flag::UC,
            Self::RemoteReset | Self::RemoteRefused => Flag::UR,
            Self::Overflow => Flag::UO,
            Self::ProtocolError | Self::Inexpressible => Flag::UPE,
            Self::Unresolved(_) => Flag::DF,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::ConnectionFailure(_) => "remote connection failure",
            Self::ConnectionTimeout => "connection timeout",
            Self::ConnectionTermination => "connection termination",
            Self::RemoteReset => "remote reset",
            Self::RemoteRefused => "remote refused stream reset",
            Self::Overflow => "overflow",
            Self::ProtocolError | Self::Inexpressible => "protocol error",
            Self::Unresolved(_) => "dns resolution failure",
        }
    }

    /// `upstream_reset_{before,after}_response_started{reason}`.
    pub fn details(&self, before: bool) -> String {
        let reason = self.reason().replace(' ', "_");
        let when = if before { "before" } else { "after" };
        match self {
            Self::ConnectionFailure(transport) if !transport.is_empty() => {
                format!("upstream_reset_{when}_response_started{{{reason}|{transport}}}")
            }
            _ => format!("upstream_reset_{when}_response_started{{{reason}}}"),
        }
    }
}

/// An answer made by the gateway itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalReply {
    /// HTTP status.
    pub status: u16,
    /// Text of the body; may be empty.
    pub body: Bytes,
    /// `location` header.
    pub location: Option<Bytes>,
    /// Flag to set.
    pub flag: Option<Flag>,
    /// Response code details.
    pub details: Cow<'static, str>,
    /// Header `x-envoy-overloaded: true`.
    pub overloaded: bool,
    /// The connection closes after it (HTTP/1).
    pub close: bool,
    /// `grpc-status` for gRPC requests, if the HTTP status doesn't tell it.
    pub grpc_status: Option<u8>,
}

impl LocalReply {
    /// A reply without body, flag and further ado.
    pub fn new(status: u16, details: &'static str) -> Self {
        Self {
            status,
            body: Bytes::new(),
            location: None,
            flag: None,
            details: Cow::Borrowed(details),
            overloaded: false,
            close: false,
            grpc_status: None,
        }
    }

    fn text(status: u16, body: &'static str, details: &'static str) -> Self {
        Self { body: Bytes::from_static(body.as_bytes()), ..Self::new(status, details) }
    }

    fn flag(self, flag: Flag) -> Self {
        Self { flag: Some(flag), ..self }
    }

    fn closing(self) -> Self {
        Self { close: true, ..self }
    }

    /// The `grpc-status` of this reply to a gRPC request.
    pub fn grpc_code(&self) -> u8 {
        self.grpc_status.unwrap_or(match self.status {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502 | 503 | 504 => 14,
            _ => 2,
        })
    }
}

impl Failure {
    /// The reply to this failure.
    pub fn reply(&self) -> LocalReply {
        let bad = |details| LocalReply::text(400, "Bad Request", details).flag(Flag::DPE).closing();
        match self {
            Self::CodecError => bad("http1.codec_error"),
            Self::InvalidCharacters => bad("http1.invalid_characters"),
            Self::HeadTooLarge => LocalReply::text(431, "Request Header Fields Too Large", "http1.headers_too_large")
                .flag(Flag::DPE)
                .closing(),
            Self::TooManyHeaders => LocalReply::text(431, "Request Header Fields Too Large", "http1.too_many_headers")
                .flag(Flag::DPE)
                .closing(),
            Self::LengthAndChunked => bad("http1.content_length_and_chunked_not_allowed"),
            Self::InvalidTransferEncoding => {
                LocalReply::text(501, "Not Implemented", "http1.invalid_transfer_encoding").flag(Flag::DPE).closing()
            }
            Self::LowVersion => LocalReply::text(426, "Upgrade Required", "low_version").flag(Flag::DPE).closing(),
            Self::MissingHost => LocalReply::new(400, "missing_host_header").closing(),
            Self::InvalidAuthority => bad("http.invalid_authority"),
            Self::InvalidUrl => bad("http1.invalid_url"),
            Self::InvalidScheme => bad("http1.invalid_scheme"),
            Self::HttpsOnPlaintext => {
                LocalReply::text(403, "Forbidden", "http1.https_url_on_plaintext_connection").flag(Flag::DPE).closing()
            }
            Self::AbsolutePathRejected => LocalReply::new(404, "absolute_path_rejected"),
            Self::ConnectionHeaderRejected => bad("http1.connection_header_rejected"),
            Self::UnexpectedUnderscore => bad("http1.unexpected_underscore"),
            Self::QueryWithoutContentType => LocalReply::new(400, "query_missing_content_type").closing(),
            Self::InvalidPath => LocalReply::new(400, "path_normalization_failed").closing(),
            Self::UpgradeRefused => LocalReply::new(403, "upgrade_failed").closing(),
            Self::RequestHeaderTimeout => {
                LocalReply::text(408, "request header timeout", "request_header_timeout").closing()
            }
            Self::RequestTimeout => LocalReply::text(408, "request timeout", "request_overall_timeout").closing(),
            Self::StreamIdle(complete) => LocalReply {
                close: !complete,
                ..LocalReply::text(if *complete { 504 } else { 408 }, "stream timeout", "stream_idle_timeout")
                    .flag(Flag::SI)
            },
            Self::MaxStreamDuration(complete) => LocalReply {
                grpc_status: Some(4),
                close: !complete,
                ..LocalReply::text(
                    if *complete { 504 } else { 408 },
                    "downstream duration timeout",
                    "max_duration_timeout",
                )
            },
            // Ours: Istio has no counterpart, its control plane doesn't hand out what it could not translate.
            Self::Refused => LocalReply::new(503, "policy_not_enforceable"),
            Self::NoRoute => LocalReply::new(404, "route_not_found").flag(Flag::NR),
            // Ours: Istio answers 404. RFC 9110 §15.5.20 lets clients try again on a connection of its own.
            Self::Misdirected => LocalReply::new(421, "misdirected_request").flag(Flag::NR),
            Self::NoCluster => LocalReply::new(503, "cluster_not_found").flag(Flag::NC),
            Self::NoHealthyUpstream => {
                LocalReply::text(503, "no healthy upstream", "no_healthy_upstream").flag(Flag::UH)
            }
            Self::Upstream { reset: Reset::Unresolved(unresolved), .. } => match unresolved {
                Unresolved::NoAddress => {
                    LocalReply::text(503, "DNS resolution failure", "dns_resolution_failure").flag(Flag::DF)
                }
                Unresolved::Forbidden => egress_denied(Reason::ForbiddenAddress),
                Unresolved::Loop => egress_denied(Reason::Loop),
            },
            Self::Upstream { reset, retried } => {
                let status = if matches!(reset, Reset::ProtocolError | Reset::Inexpressible) { 502 } else { 503 };
                let latest = if *retried { "retried and the latest reset reason" } else { "reset reason" };
                let reason = reset.reason();
                LocalReply {
                    body: format!("upstream connect error or disconnect/reset before headers. {latest}: {reason}")
                        .into(),
                    details: reset.details(true).into(),
                    overloaded: *reset == Reset::Overflow,
                    ..LocalReply::new(status, "").flag(reset.flag())
                }
            }
            Self::EgressDenied(reason) => egress_denied(*reason),
            Self::RouteTimeout => LocalReply::text(504, "upstream request timeout", "response_timeout").flag(Flag::UT),
            Self::PerTryTimeout => {
                LocalReply::text(504, "upstream request timeout", "upstream_per_try_timeout").flag(Flag::UT)
            }
            Self::Fault { status, grpc_status } => LocalReply {
                grpc_status: *grpc_status,
                ..LocalReply::text(*status, "fault filter abort", "fault_filter_abort").flag(Flag::FI)
            },
        }
    }
}

/// Ours: Istio's gateways know no such refusals. Unknown hosts get the status that REGISTRY_ONLY has with sidecars.
fn egress_denied(reason: Reason) -> LocalReply {
    let status = match reason {
        Reason::UnknownHost | Reason::UnknownPort | Reason::HostNotServed => 502,
        Reason::NoRoute => 404,
        Reason::InvalidHost(_) => 400,
        // Another connection may do (RFC 9110 §15.5.20).
        Reason::ServerNameMismatch => 421,
        Reason::AddressLiteral
        | Reason::NotCovered
        | Reason::NotTls
        | Reason::ClearText
        | Reason::PastTls
        | Reason::PastRoutes
        | Reason::ForbiddenAddress
        | Reason::Loop => 403,
    };
    LocalReply {
        body: format!("egress denied: {}", reason.explanation()).into(),
        details: format!("egress_denied{{{reason}}}").into(),
        ..LocalReply::new(status, "")
    }
}

/// Whether a content type is gRPC as Envoy sees it: `application/grpc` or `application/grpc+…`.
pub fn is_grpc(content_type: Option<&Bytes>) -> bool {
    content_type
        .and_then(|value| value.strip_prefix(b"application/grpc"))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+"))
}

/// `grpc-message` for a text: `%`, control and non-ASCII bytes are percent-encoded.
pub fn grpc_message(text: &[u8]) -> Bytes {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for &byte in text {
        if (0x20..0x7f).contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_keep_the_order_in_which_they_were_set() {
        let mut flags = Flags::default();
        assert_eq!(flags.to_string(), "-");
        flags.set(Flag::URX);
        flags.set(Flag::UF);
        flags.set(Flag::URX);
        assert_eq!(flags.to_string(), "URX,UF");
    }

    #[test]
    fn upstream_failures_read_as_envoys() {
        let refused = Reset::ConnectionFailure("delayed_connect_error:_Connection_refused".into());
        let reply = Failure::Upstream { reset: refused, retried: true }.reply();
        assert_eq!(reply.body.len(), 121);
        assert_eq!(
            reply.details,
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"
        );
        let overflow = Failure::Upstream { reset: Reset::Overflow, retried: false }.reply();
        assert_eq!((overflow.body.len(), overflow.overloaded, overflow.grpc_code()), (81, true, 14));
    }

    #[test]
    fn grpc_is_recognised_by_its_exact_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; x", false),
            ("application/grpc-web", false),
            ("Application/grpc", false),
        ] {
            assert_eq!(is_grpc(Some(&Bytes::from_static(value.as_bytes()))), expected, "{value}");
        }
        assert!(!is_grpc(None));
    }

    #[test]
    fn grpc_messages_are_percent_encoded() {
        assert_eq!(grpc_message("a, b%\n\u{e9}".as_bytes()), "a, b%25%0A%C3%A9");
    }
}
