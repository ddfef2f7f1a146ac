//! Envoy's format strings: `%COMMAND(arguments):length%` with literal text between, for headers and the access log.
//!
//! Parsed once in `compile`; evaluated by the gateway, which knows the request.

/// A parsed format string.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Format {
    /// The parts in order; neighbouring literals are joined.
    pub pieces: Vec<Piece>,
}

/// One part of a format string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text as it is.
    Literal(String),
    /// A value of the request.
    Command {
        /// Which value.
        command: Command,
        /// Cut to this many bytes.
        max_length: Option<usize>,
    },
}

/// The values that a format string can name. Names are Envoy's, in camel case.
///
/// Source: `reference/networking.md` §3.15, `reference/telemetry-and-operations.md` (access log).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is the Envoy command of the same name")]
pub enum Command {
    DownstreamRemoteAddress,
    DownstreamRemoteAddressWithoutPort,
    DownstreamDirectRemoteAddress,
    DownstreamDirectRemoteAddressWithoutPort,
    DownstreamLocalAddress,
    DownstreamLocalAddressWithoutPort,
    DownstreamLocalPort,
    Protocol,
    /// `REQ(name?alternative)`; lower-case names, pseudo headers with their colon.
    RequestHeader {
        name: String,
        alternative: Option<String>,
    },
    /// `RESP(name?alternative)`.
    ResponseHeader {
        name: String,
        alternative: Option<String>,
    },
    /// `TRAILER(name?alternative)`.
    ResponseTrailer {
        name: String,
        alternative: Option<String>,
    },
    QueryParam(String),
    /// `PATH(WQ|NQ)`: with or without the query.
    Path {
        query: bool,
    },
    /// `START_TIME(format)`: strftime, or `None` for `2026-11-22T00:57:53.253Z`.
    StartTime(Option<String>),
    EmitTime(Option<String>),
    RouteName,
    VirtualHostName,
    /// The cluster's name and a `;`, which Istio ends the statistics name with.
    UpstreamCluster,
    /// The cluster's name.
    UpstreamClusterRaw,
    UpstreamHost,
    UpstreamLocalAddress,
    UpstreamRequestAttemptCount,
    UpstreamTransportFailureReason,
    DownstreamTransportFailureReason,
    StreamId,
    UniqueId,
    ConnectionId,
    Hostname,
    ResponseCode,
    ResponseCodeDetails,
    ResponseFlags,
    ConnectionTerminationDetails,
    /// Milliseconds.
    Duration,
    RequestDuration,
    ResponseDuration,
    ResponseTxDuration,
    BytesReceived,
    BytesSent,
    UpstreamWireBytesSent,
    UpstreamWireBytesReceived,
    DownstreamWireBytesSent,
    DownstreamWireBytesReceived,
    RequestedServerName,
    GrpcStatus,
    GrpcStatusNumber,
    Environment(String),
    /// `DOWNSTREAM_TLS_VERSION`, `UPSTREAM_PEER_SUBJECT` and the like; absent on plaintext connections.
    Tls(TlsEnd, TlsFact),
    /// A command that Envoy accepts and that is empty here: filter state, metadata, trace ids. Holds the text of the
    /// command.
    Empty(String),
}

/// Which connection a command about TLS speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the connections")]
pub enum TlsEnd {
    Downstream,
    Upstream,
}

/// What a command about TLS asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are Envoy's names")]
pub enum TlsFact {
    Version,
    Cipher,
    Group,
    /// Of the other side's certificate.
    Peer(CertificateFact),
    /// Of our certificate.
    Local(CertificateFact),
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateFact {
    /// RFC 2253.
    Subject,
    /// RFC 2253.
    Issuer,
    /// Hex.
    Serial,
    /// SHA-256 of the certificate, hex.
    Fingerprint256,
    /// SHA-1 of the certificate, hex.
    Fingerprint1,
    /// The names of one kind, with commas between.
    UriSans,
    /// Host names.
    DnsSans,
    /// IP addresses.
    IpSans,
    /// E-mail addresses.
    EmailSans,
    /// PEM, URL-encoded.
    Pem,
    /// When it begins to be valid, formatted as `START_TIME` is.
    NotBefore(Option<String>),
    /// When it ends to be valid.
    NotAfter(Option<String>),
}

/// The commands about TLS that stand alone.
const TLS_FACTS: &[(&str, TlsEnd, TlsFact)] = {
    use CertificateFact::{
        DnsSans, EmailSans, Fingerprint1, Fingerprint256, IpSans, Issuer, Pem, Serial, Subject, UriSans,
    };
    use TlsEnd::{Downstream, Upstream};
    use TlsFact::{Cipher, Group, Local, Peer, Version};
    &[
        ("DOWNSTREAM_TLS_VERSION", Downstream, Version),
        ("DOWNSTREAM_TLS_CIPHER", Downstream, Cipher),
        ("DOWNSTREAM_TLS_GROUP", Downstream, Group),
        ("DOWNSTREAM_PEER_SUBJECT", Downstream, Peer(Subject)),
        ("DOWNSTREAM_PEER_ISSUER", Downstream, Peer(Issuer)),
        ("DOWNSTREAM_PEER_SERIAL", Downstream, Peer(Serial)),
        ("DOWNSTREAM_PEER_FINGERPRINT_256", Downstream, Peer(Fingerprint256)),
        ("DOWNSTREAM_PEER_FINGERPRINT_1", Downstream, Peer(Fingerprint1)),
        ("DOWNSTREAM_PEER_URI_SAN", Downstream, Peer(UriSans)),
        ("DOWNSTREAM_PEER_DNS_SAN", Downstream, Peer(DnsSans)),
        ("DOWNSTREAM_PEER_IP_SAN", Downstream, Peer(IpSans)),
        ("DOWNSTREAM_PEER_EMAIL_SAN", Downstream, Peer(EmailSans)),
        ("DOWNSTREAM_PEER_CERT", Downstream, Peer(Pem)),
        ("DOWNSTREAM_LOCAL_SUBJECT", Downstream, Local(Subject)),
        ("DOWNSTREAM_LOCAL_URI_SAN", Downstream, Local(UriSans)),
        ("DOWNSTREAM_LOCAL_DNS_SAN", Downstream, Local(DnsSans)),
        ("DOWNSTREAM_LOCAL_IP_SAN", Downstream, Local(IpSans)),
        ("DOWNSTREAM_LOCAL_EMAIL_SAN", Downstream, Local(EmailSans)),
        ("UPSTREAM_TLS_VERSION", Upstream, Version),
        ("UPSTREAM_TLS_CIPHER", Upstream, Cipher),
        ("UPSTREAM_TLS_GROUP", Upstream, Group),
        ("UPSTREAM_PEER_SUBJECT", Upstream, Peer(Subject)),
        ("UPSTREAM_PEER_ISSUER", Upstream, Peer(Issuer)),
        ("UPSTREAM_PEER_URI_SAN", Upstream, Peer(UriSans)),
        ("UPSTREAM_PEER_DNS_SAN", Upstream, Peer(DnsSans)),
        ("UPSTREAM_PEER_IP_SAN", Upstream, Peer(IpSans)),
        ("UPSTREAM_PEER_CERT", Upstream, Peer(Pem)),
        ("UPSTREAM_LOCAL_URI_SAN", Upstream, Local(UriSans)),
        ("UPSTREAM_LOCAL_DNS_SAN", Upstream, Local(DnsSans)),
        ("UPSTREAM_LOCAL_IP_SAN", Upstream, Local(IpSans)),
    ]
};

/// The text of a command about TLS.
pub(super) fn tls_text(end: TlsEnd, fact: &TlsFact) -> String {
    let time = |name: &str, format: &Option<String>| match format {
        Some(format) => format!("{name}({format})"),
        None => name.to_owned(),
    };
    match (end, fact) {
        (TlsEnd::Downstream, TlsFact::Peer(CertificateFact::NotBefore(format))) => {
            time("DOWNSTREAM_PEER_CERT_V_START", format)
        }
        (TlsEnd::Downstream, TlsFact::Peer(CertificateFact::NotAfter(format))) => {
            time("DOWNSTREAM_PEER_CERT_V_END", format)
        }
        (TlsEnd::Upstream, TlsFact::Peer(CertificateFact::NotBefore(format))) => {
            time("UPSTREAM_PEER_CERT_V_START", format)
        }
        (TlsEnd::Upstream, TlsFact::Peer(CertificateFact::NotAfter(format))) => {
            time("UPSTREAM_PEER_CERT_V_END", format)
        }
        _ => {
            let found = TLS_FACTS.iter().find(|(_, of, named)| *of == end && named == fact);
            found.map_or_else(String::new, |(name, ..)| (*name).to_owned())
        }
    }
}

impl Format {
    /// Parses a format string.
    ///
    /// # Errors
    /// Everything that Envoy refuses: see [`FormatErrorKind`].
    ///
    /// Source: `reference/networking.md` §3.15, `reference/telemetry-and-operations.md` §4.4-4.5.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let mut format = Self::default();
        let mut rest = text;
        while let Some(percent) = rest.find('%') {
            format.push_literal(&rest[..percent]);
            let position = text.len() - rest.len() + percent;
            let after = &rest[percent + 1..];
            if let Some(after) = after.strip_prefix('%') {
                format.push_literal("%");
                rest = after;
                continue;
            }
            let error = |kind| FormatError { position, kind };
            let (token, after) = Token::split(after).ok_or_else(|| error(FormatErrorKind::Syntax))?;
            let command = token.command().map_err(error)?;
            format.pieces.push(Piece::Command { command, max_length: token.length });
            rest = after;
        }
        format.push_literal(rest);
        Ok(format)
    }

    /// Text without any command.
    pub fn literal(text: &str) -> Self {
        let mut format = Self::default();
        format.push_literal(text);
        format
    }

    /// Istio's access log line, with its newline (`EnvoyTextLogFormat`).
    pub fn default_access_log() -> Self {
        Self::parse(DEFAULT_ACCESS_LOG).expect("the constant is a format, as a test shows")
    }

    /// Keys and values of Istio's JSON access log (`EnvoyJSONLogFormatIstio`), in the order of the keys.
    pub fn default_json_access_log() -> Vec<(String, Self)> {
        let parse = |text| Self::parse(text).expect("the constants are formats, as a test shows");
        DEFAULT_JSON_ACCESS_LOG.iter().map(|(key, text)| ((*key).to_owned(), parse(text))).collect()
    }

    /// The text, if there is no command in it.
    pub fn as_literal(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [] => Some(""),
            [Piece::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Commands that Envoy could fill with a value and this gateway can't.
    pub fn unsupported(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Command { command: Command::Empty(text), .. } => {
                let name = text.split('(').next().unwrap_or(text);
                UNSUPPORTED.contains(&name).then_some(text.as_str())
            }
            _ => None,
        })
    }

    fn push_literal(&mut self, text: &str) {
        match self.pieces.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Literal(last)) => last.push_str(text),
            _ => self.pieces.push(Piece::Literal(text.to_owned())),
        }
    }
}

/// Why a text is no format string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} (at byte {position})")]
pub struct FormatError {
    /// Byte offset of the `%` that begins the faulty command.
    pub position: usize,
    /// What is wrong with it.
    pub kind: FormatErrorKind,
}

/// What is wrong with a command of a format string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the message tells")]
pub enum FormatErrorKind {
    #[error("`%` doesn't begin a command; a literal percent sign is `%%`")]
    Syntax,
    #[error("unknown command `{0}`")]
    UnknownCommand(String),
    #[error("`{0}` requires parameters")]
    ParametersRequired(String),
    #[error("`{0}` does not take any parameters")]
    NoParameters(String),
    #[error("`{0}` does not take a length")]
    NoLength(String),
    #[error("`{name}` doesn't take the parameter `{parameter}`")]
    WrongParameter { name: String, parameter: String },
    #[error("more than one alternative header in `{0}`")]
    Alternatives(String),
    #[error("`{0}` is no header name")]
    HeaderName(String),
}

/// `NAME`, `NAME(parameters)`, `NAME(parameters):length` between two percent signs.
struct Token<'a> {
    name: &'a str,
    parameters: Option<&'a str>,
    length: Option<usize>,
    /// Name and parameters as written.
    text: &'a str,
}

impl<'a> Token<'a> {
    /// The command that `text` begins with (after its first `%`) and what follows its last `%`.
    fn split(text: &'a str) -> Option<(Self, &'a str)> {
        let end =
            text.bytes().position(|byte| !(byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_'))?;
        let (name, mut rest) = text.split_at(end);
        if name.is_empty() {
            return None;
        }
        let mut parameters = None;
        if let Some(inside) = rest.strip_prefix('(') {
            // Parameters may hold parentheses and percent signs (`START_TIME(%Y)`): they end where the command can.
            let end =
                inside.match_indices(')').map(|(at, _)| at).find(|&at| Self::tail(&inside[at + 1..]).is_some())?;
            if inside[..end].contains('\n') {
                return None;
            }
            parameters = Some(&inside[..end]);
            rest = &inside[end + 1..];
        }
        let (length, after) = Self::tail(rest)?;
        let text = &text[..text.len() - rest.len()];
        Some((Self { name, parameters: parameters.filter(|text| !text.is_empty()), length, text }, after))
    }

    /// An optional `:length` and the final `%`.
    fn tail(text: &str) -> Option<(Option<usize>, &str)> {
        let Some(text) = text.strip_prefix(':') else { return Some((None, text.strip_prefix('%')?)) };
        let (digits, after) = text.split_once('%')?;
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse().ok().map(|length| (Some(length), after)))?
    }

    fn command(&self) -> Result<Command, FormatErrorKind> {
        if let Some(command) = self.plain() {
            return self.without_parameters().map(|()| command);
        }
        if let Some((_, end, fact)) = TLS_FACTS.iter().find(|(name, ..)| *name == self.name) {
            return self.without_parameters().map(|()| Command::Tls(*end, fact.clone()));
        }
        let validity = |end, fact: fn(Option<String>) -> CertificateFact| {
            self.time().map(|format| Command::Tls(end, TlsFact::Peer(fact(format))))
        };
        match self.name {
            "DOWNSTREAM_PEER_CERT_V_START" => validity(TlsEnd::Downstream, CertificateFact::NotBefore),
            "DOWNSTREAM_PEER_CERT_V_END" => validity(TlsEnd::Downstream, CertificateFact::NotAfter),
            "UPSTREAM_PEER_CERT_V_START" => validity(TlsEnd::Upstream, CertificateFact::NotBefore),
            "UPSTREAM_PEER_CERT_V_END" => validity(TlsEnd::Upstream, CertificateFact::NotAfter),
            "REQ" | "REQUEST_HEADER" => {
                self.headers().map(|(name, alternative)| Command::RequestHeader { name, alternative })
            }
            "RESP" | "RESPONSE_HEADER" => {
                self.headers().map(|(name, alternative)| Command::ResponseHeader { name, alternative })
            }
            "TRAILER" | "RESPONSE_TRAILER" => {
                self.headers().map(|(name, alternative)| Command::ResponseTrailer { name, alternative })
            }
            "QUERY_PARAM" => self.required().map(|name| Command::QueryParam(name.to_owned())),
            "ENVIRONMENT" => self.required().map(|name| Command::Environment(name.to_owned())),
            "START_TIME" => self.time().map(Command::StartTime),
            "EMIT_TIME" => self.time().map(Command::EmitTime),
            "PATH" => match self.parameters.unwrap_or("WQ") {
                "WQ" | "WQ:ORIG_OR_PATH" => Ok(Command::Path { query: true }),
                "NQ" | "NQ:ORIG_OR_PATH" => Ok(Command::Path { query: false }),
                "WQ:PATH" | "NQ:PATH" | "WQ:ORIG" | "NQ:ORIG" => Ok(self.empty()),
                _ => Err(self.wrong_parameter()),
            },
            "GRPC_STATUS" => match self.parameters {
                None | Some("CAMEL_STRING") => Ok(Command::GrpcStatus),
                Some("NUMBER") => Ok(Command::GrpcStatusNumber),
                Some("SNAKE_STRING") => Ok(self.empty()),
                Some(_) => Err(self.wrong_parameter()),
            },
            "RESPONSE_CODE_DETAILS" => match self.parameters {
                None | Some("ALLOW_WHITESPACES") => self.without_length().map(|()| Command::ResponseCodeDetails),
                Some(_) => Err(self.wrong_parameter()),
            },
            "REQUESTED_SERVER_NAME" => match self.parameters {
                None | Some("SNI_ONLY") => self.without_length().map(|()| Command::RequestedServerName),
                Some(_) => Ok(self.empty()),
            },
            name if EMPTY_WITH_PARAMETERS.contains(&name) => self.required().map(|_| self.empty()),
            name if EMPTY_OR_PARAMETERS.contains(&name) => Ok(self.empty()),
            name if EMPTY.contains(&name) || UNSUPPORTED.contains(&name) => {
                self.without_parameters().map(|()| self.empty())
            }
            name => Err(FormatErrorKind::UnknownCommand(name.to_owned())),
        }
    }

    /// Commands that stand alone.
    fn plain(&self) -> Option<Command> {
        Some(match self.name {
            "DOWNSTREAM_REMOTE_ADDRESS" => Command::DownstreamRemoteAddress,
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Command::DownstreamRemoteAddressWithoutPort,
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Command::DownstreamDirectRemoteAddress,
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => Command::DownstreamDirectRemoteAddressWithoutPort,
            "DOWNSTREAM_LOCAL_ADDRESS" => Command::DownstreamLocalAddress,
            "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Command::DownstreamLocalAddressWithoutPort,
            "DOWNSTREAM_LOCAL_PORT" => Command::DownstreamLocalPort,
            "PROTOCOL" => Command::Protocol,
            "ROUTE_NAME" => Command::RouteName,
            "VIRTUAL_HOST_NAME" => Command::VirtualHostName,
            "UPSTREAM_CLUSTER" => Command::UpstreamCluster,
            "UPSTREAM_CLUSTER_RAW" => Command::UpstreamClusterRaw,
            "UPSTREAM_HOST" => Command::UpstreamHost,
            "UPSTREAM_LOCAL_ADDRESS" => Command::UpstreamLocalAddress,
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Command::UpstreamRequestAttemptCount,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => Command::UpstreamTransportFailureReason,
            "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Command::DownstreamTransportFailureReason,
            "STREAM_ID" => Command::StreamId,
            "UNIQUE_ID" => Command::UniqueId,
            "CONNECTION_ID" => Command::ConnectionId,
            "HOSTNAME" => Command::Hostname,
            "RESPONSE_CODE" => Command::ResponseCode,
            "RESPONSE_FLAGS" => Command::ResponseFlags,
            "CONNECTION_TERMINATION_DETAILS" => Command::ConnectionTerminationDetails,
            "DURATION" => Command::Duration,
            "REQUEST_DURATION" => Command::RequestDuration,
            "RESPONSE_DURATION" => Command::ResponseDuration,
            "RESPONSE_TX_DURATION" => Command::ResponseTxDuration,
            "BYTES_RECEIVED" => Command::BytesReceived,
            "BYTES_SENT" => Command::BytesSent,
            "UPSTREAM_WIRE_BYTES_SENT" => Command::UpstreamWireBytesSent,
            "UPSTREAM_WIRE_BYTES_RECEIVED" => Command::UpstreamWireBytesReceived,
            "DOWNSTREAM_WIRE_BYTES_SENT" => Command::DownstreamWireBytesSent,
            "DOWNSTREAM_WIRE_BYTES_RECEIVED" => Command::DownstreamWireBytesReceived,
            "GRPC_STATUS_NUMBER" => Command::GrpcStatusNumber,
            _ => return None,
        })
    }

    /// `X` or `X?Y`; either may be empty.
    fn headers(&self) -> Result<(String, Option<String>), FormatErrorKind> {
        let parameters = self.required()?;
        let (name, alternative) = match parameters.split_once('?') {
            Some((_, alternative)) if alternative.contains('?') => {
                return Err(FormatErrorKind::Alternatives(parameters.to_owned()));
            }
            Some((name, alternative)) => (name, Some(alternative).filter(|name| !name.is_empty())),
            None => (parameters, None),
        };
        Ok((header_name(name)?, alternative.map(header_name).transpose()?))
    }

    /// A strftime format. `%n` would break the line.
    fn time(&self) -> Result<Option<String>, FormatErrorKind> {
        self.without_length()?;
        match self.parameters {
            Some(format) if format.replace("%%", "").contains("%n") => Err(self.wrong_parameter()),
            format => Ok(format.map(str::to_owned)),
        }
    }

    fn required(&self) -> Result<&'a str, FormatErrorKind> {
        self.parameters.ok_or_else(|| FormatErrorKind::ParametersRequired(self.name.to_owned()))
    }

    fn without_parameters(&self) -> Result<(), FormatErrorKind> {
        match self.parameters {
            Some(_) => Err(FormatErrorKind::NoParameters(self.name.to_owned())),
            None => self.without_length(),
        }
    }

    fn without_length(&self) -> Result<(), FormatErrorKind> {
        match self.length {
            Some(_) => Err(FormatErrorKind::NoLength(self.name.to_owned())),
            None => Ok(()),
        }
    }

    fn wrong_parameter(&self) -> FormatErrorKind {
        let parameter = self.parameters.unwrap_or_default().to_owned();
        FormatErrorKind::WrongParameter { name: self.name.to_owned(), parameter }
    }

    fn empty(&self) -> Command {
        Command::Empty(self.text.to_owned())
    }
}

/// A header name in lower case; `host` is another name of `:authority`.
fn header_name(name: &str) -> Result<String, FormatErrorKind> {
    let token = name.strip_prefix(':').unwrap_or(name);
    if !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)) {
        return Err(FormatErrorKind::HeaderName(name.to_owned()));
    }
    let name = name.to_ascii_lowercase();
    Ok(if name == "host" { ":authority".to_owned() } else { name })
}

/// Facts of features that aren't configured: always absent here.
const EMPTY: &[&str] = &[
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "TRACE_ID",
    "SPAN_ID",
    "FILTER_CHAIN_NAME",
    "VIRTUAL_CLUSTER_NAME",
    "LOCAL_REPLY_BODY",
    "CUSTOM_FLAGS",
    "ROUNDTRIP_DURATION",
];

/// The same, with parameters.
const EMPTY_WITH_PARAMETERS: &[&str] = &[
    "DYNAMIC_METADATA",
    "CLUSTER_METADATA",
    "UPSTREAM_METADATA",
    "METADATA",
    "FILTER_STATE",
    "UPSTREAM_FILTER_STATE",
    "CEL",
    "TYPED_CEL",
    "COALESCE",
    "COMMON_DURATION",
    "REQ_WITHOUT_QUERY",
];

/// The same, where parameters are a choice.
const EMPTY_OR_PARAMETERS: &[&str] =
    &["START_TIME_LOCAL", "EMIT_TIME_LOCAL", "QUERY_PARAMS", "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT"];

/// Commands that have a value in Envoy and not (yet) here. Those with parameters stand in the lists above as well.
const UNSUPPORTED: &[&str] = &[
    "ACCESS_LOG_TYPE",
    "BYTES_RETRANSMITTED",
    "CEL",
    "CLUSTER_METADATA",
    "COALESCE",
    "COMMON_DURATION",
    "DOWNSTREAM_CX_RTT",
    "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_DIRECT_LOCAL_PORT",
    "DOWNSTREAM_DIRECT_REMOTE_PORT",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256",
    "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_ISSUER_SERIAL",
    "DOWNSTREAM_PEER_OTHERNAME_SAN",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DYNAMIC_METADATA",
    "EMIT_TIME_LOCAL",
    "FILTER_STATE",
    "GRPC_STATUS",
    "METADATA",
    "PACKETS_RETRANSMITTED",
    "PATH",
    "QUERY_PARAMS",
    "REQUESTED_SERVER_NAME",
    "REQUEST_HEADERS_BYTES",
    "REQUEST_TX_DURATION",
    "REQ_WITHOUT_QUERY",
    "RESPONSE_FLAGS_LONG",
    "RESPONSE_HEADERS_BYTES",
    "RESPONSE_TRAILERS_BYTES",
    "ROUTE_RESOLUTION_COUNT",
    "ROUTE_RESOLUTION_TIME_US",
    "START_TIME_LOCAL",
    "TYPED_CEL",
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED",
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
    "UPSTREAM_DETECTED_CLOSE_TYPE",
    "UPSTREAM_FILTER_STATE",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HOSTS_ATTEMPTED",
    "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_HOST_NAME",
    "UPSTREAM_HOST_NAMES_ATTEMPTED",
    "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_HOST_NAME_WITHOUT_PORT",
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_LOCAL_CLOSE_REASON",
    "UPSTREAM_LOCAL_PORT",
    "UPSTREAM_METADATA",
    "UPSTREAM_PROTOCOL",
    "UPSTREAM_REMOTE_ADDRESS",
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_REMOTE_PORT",
    "UPSTREAM_SERVER_NAME",
    "UPSTREAM_TLS_SESSION_ID",
];

/// Source: `reference/telemetry-and-operations.md` §4.1.
const DEFAULT_ACCESS_LOG: &str = concat!(
    r#"[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% "#,
    r#"%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "#,
    r#""%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% "#,
    r#"%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "#,
    r#""%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% "#,
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
);

/// Source: `reference/telemetry-and-operations.md` §4.2.
const DEFAULT_JSON_ACCESS_LOG: &[(&str, &str)] = &[
    ("authority", "%REQ(:AUTHORITY)%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("duration", "%DURATION%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("route_name", "%ROUTE_NAME%"),
    ("start_time", "%START_TIME%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

    use super::*;

    fn literal(text: &str) -> Piece {
        Piece::Literal(text.to_owned())
    }

    fn command(command: Command, max_length: Option<usize>) -> Piece {
        Piece::Command { command, max_length }
    }

    fn request_header(name: &str, alternative: Option<&str>) -> Command {
        Command::RequestHeader { name: name.to_owned(), alternative: alternative.map(str::to_owned) }
    }

    #[test]
    fn formats_are_read() {
        let time = |text: &str| Command::StartTime(Some(text.to_owned()));
        for (text, pieces) in [
            ("", vec![]),
            ("plain", vec![literal("plain")]),
            ("100%%", vec![literal("100%")]),
            ("%%PROTOCOL%%", vec![literal("%PROTOCOL%")]),
            (
                "pre-%REQ(X-Missing)%-post",
                vec![literal("pre-"), command(request_header("x-missing", None), None), literal("-post")],
            ),
            ("%REQ(X?:Path):3%", vec![command(request_header("x", Some(":path")), Some(3))]),
            ("%REQ(X?)%", vec![command(request_header("x", None), None)]),
            ("%REQ(?Y)%", vec![command(request_header("", Some("y")), None)]),
            ("%REQ(host):0%", vec![command(request_header(":authority", None), Some(0))]),
            ("%PROTOCOL%%PROTOCOL%", vec![command(Command::Protocol, None), command(Command::Protocol, None)]),
            ("%START_TIME()%", vec![command(Command::StartTime(None), None)]),
            ("%START_TIME(%Y-%m-%dT%T.%3f)%", vec![command(time("%Y-%m-%dT%T.%3f"), None)]),
            ("%START_TIME(%s)% %%", vec![command(time("%s"), None), literal(" %")]),
            ("%CEL(f(x))%", vec![command(Command::Empty("CEL(f(x))".to_owned()), None)]),
            ("%PATH(NQ)%", vec![command(Command::Path { query: false }, None)]),
            ("%PATH%", vec![command(Command::Path { query: true }, None)]),
            ("%GRPC_STATUS(NUMBER)%", vec![command(Command::GrpcStatusNumber, None)]),
            ("%DOWNSTREAM_TLS_VERSION%", vec![command(Command::Tls(TlsEnd::Downstream, TlsFact::Version), None)]),
            (
                "%UPSTREAM_PEER_CERT_V_END(%F)%",
                vec![command(
                    Command::Tls(TlsEnd::Upstream, TlsFact::Peer(CertificateFact::NotAfter(Some("%F".to_owned())))),
                    None,
                )],
            ),
        ] {
            assert_eq!(Format::parse(text).unwrap().pieces, pieces, "{text}");
        }
    }

    #[test]
    fn faults_have_a_place() {
        use FormatErrorKind::*;

        let name = |text: &str| text.to_owned();
        for (text, position, kind) in [
            ("%", 0, Syntax),
            ("a%", 1, Syntax),
            ("50% off", 2, Syntax),
            ("%protocol%", 0, Syntax),
            ("%PRO TOCOL%", 0, Syntax),
            ("%REQ(x%", 0, Syntax),
            ("%REQ(x):x%", 0, Syntax),
            ("%REQ(x):-1%", 0, Syntax),
            ("%REQ(x):%", 0, Syntax),
            ("é %NOPE%", 3, UnknownCommand(name("NOPE"))),
            ("%REQUEST_TRAILER(x)%", 0, UnknownCommand(name("REQUEST_TRAILER"))),
            ("%REQ%", 0, ParametersRequired(name("REQ"))),
            ("%REQ()%", 0, ParametersRequired(name("REQ"))),
            ("%DYNAMIC_METADATA%", 0, ParametersRequired(name("DYNAMIC_METADATA"))),
            ("%BYTES_SENT(x)%", 0, NoParameters(name("BYTES_SENT"))),
            ("%BYTES_SENT:3%", 0, NoLength(name("BYTES_SENT"))),
            ("%START_TIME:3%", 0, NoLength(name("START_TIME"))),
            ("%START_TIME(%n)%", 0, WrongParameter { name: name("START_TIME"), parameter: name("%n") }),
            ("%REQ(a?b?c)%", 0, Alternatives(name("a?b?c"))),
            ("%REQ(a b)%", 0, HeaderName(name("a b"))),
            ("%PATH(XX)%", 0, WrongParameter { name: name("PATH"), parameter: name("XX") }),
        ] {
            assert_eq!(Format::parse(text).unwrap_err(), FormatError { position, kind }, "{text}");
        }
    }

    #[test]
    fn istios_own_formats_need_nothing_that_is_missing() {
        let text = Format::default_access_log();
        assert_eq!(text.pieces.last(), Some(&literal("\n")));
        let json = Format::default_json_access_log();
        assert!(json.is_sorted_by_key(|(key, _)| key.clone()));
        assert_eq!(json.len(), 24);
        let formats = json.iter().map(|(_, format)| format).chain([&text]);
        assert_eq!(formats.flat_map(Format::unsupported).count(), 0);
    }

    #[test]
    fn commands_without_a_value_here_are_named() {
        let format = Format::parse("%CEL(request.path)% %DOWNSTREAM_TLS_VERSION% %UPSTREAM_PROTOCOL%").unwrap();
        assert_eq!(format.unsupported().collect::<Vec<_>>(), ["CEL(request.path)", "UPSTREAM_PROTOCOL"]);
    }
}
